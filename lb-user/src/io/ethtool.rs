//! What the hardware does to frames before anyone sees them.

use std::{ffi::c_char, io, os::fd::AsRawFd};

use nix::libc;
use socket2::{Domain, Socket, Type};

/// `linux/ethtool.h`: commands.
mod command {
    /// The size of a set of strings.
    pub(super) const GET_STRING_SET: u32 = 0x37;
    /// The strings of a set.
    pub(super) const GET_STRINGS: u32 = 0x1b;
    /// Which features there are and which are on.
    pub(super) const GET_FEATURES: u32 = 0x3a;
}
/// The set with the names of features: a feature's bit is its place in it.
const FEATURE_NAMES: u32 = 4;
const NAME_LENGTH: usize = 32;
/// Words of `struct ethtool_sset_info`, `ethtool_gstrings` and `ethtool_gfeatures` before their data, and
/// of a block of 32 features: available, requested, active, never changed.
const SET_HEADER: usize = 4;
const STRINGS_HEADER: usize = 3;
const FEATURES_HEADER: usize = 2;
const FEATURE_BLOCK: usize = 4;
const ACTIVE: usize = 2;
/// `linux/sockios.h`
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// The feature with which an interface takes VLAN tags out of the frames that it receives: by its name
/// `ethtool -K` switches it off.
pub const fn tag_stripping(is_service_tag: bool) -> &'static str {
    if is_service_tag {
        "rx-vlan-stag-hw-parse"
    } else {
        "rx-vlan-hw-parse"
    }
}

/// Whether a feature of interface `name` is on.
///
/// # Errors
/// There is no such interface, or it has no features.
pub fn has_feature(name: &str, feature: &str) -> io::Result<bool> {
    let device = Device::new(name)?;
    let names = device.feature_names()?;
    let Some(bit) = names.iter().position(|known| known == feature) else {
        return Ok(false);
    };
    let active = device.active_features(names.len())?;
    let word = active.get(bit / 32).copied().unwrap_or_default();
    Ok(word & 1 << (bit % 32) != 0)
}

/// An interface that is asked.
struct Device {
    socket: Socket,
    name: [c_char; libc::IFNAMSIZ],
}

impl Device {
    fn new(name: &str) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::new(Domain::IPV4, Type::DGRAM, None)?,
            name: interface_name(name)?,
        })
    }

    /// Names of all features that this kernel knows.
    fn feature_names(&self) -> io::Result<Vec<String>> {
        let mut set = [0; SET_HEADER + 1];
        set[0] = command::GET_STRING_SET;
        // The mask of wanted sets is 64 bits wide.
        let mask = (1_u64 << FEATURE_NAMES).to_ne_bytes();
        let (low, high) = mask.split_at(4);
        set[2] = u32::from_ne_bytes(low.try_into().unwrap_or_default());
        set[3] = u32::from_ne_bytes(high.try_into().unwrap_or_default());
        self.ask(&mut set)?;
        let count = usize::try_from(set[SET_HEADER]).unwrap_or_default();
        let mut strings = vec![0; STRINGS_HEADER + count * NAME_LENGTH / 4];
        if let [command, set, ..] = strings.as_mut_slice() {
            (*command, *set) = (command::GET_STRINGS, FEATURE_NAMES);
        }
        self.ask(&mut strings)?;
        let bytes: Vec<u8> = strings
            .iter()
            .skip(STRINGS_HEADER)
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let names = bytes.chunks(NAME_LENGTH).map(|name| {
            let end = name.iter().position(|byte| *byte == 0);
            let text = name.get(..end.unwrap_or(NAME_LENGTH)).unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        });
        Ok(names.collect())
    }

    /// Features that are on, 32 a word.
    fn active_features(&self, count: usize) -> io::Result<Vec<u32>> {
        let blocks = count.div_ceil(32);
        let mut features = vec![0; FEATURES_HEADER + blocks * FEATURE_BLOCK];
        if let [command, size, ..] = features.as_mut_slice() {
            *command = command::GET_FEATURES;
            *size = u32::try_from(blocks).unwrap_or_default();
        }
        self.ask(&mut features)?;
        let blocks = features.get(FEATURES_HEADER..).unwrap_or_default();
        let active = blocks.chunks(FEATURE_BLOCK);
        Ok(active
            .filter_map(|block| block.get(ACTIVE).copied())
            .collect())
    }

    /// Carries out the command in the first word of `words`, which has room for the answer.
    fn ask(&self, words: &mut [u32]) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: words.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the request is a valid `struct ifreq` with a terminated name. Its data is one of the
        // three structures of `command`, with room for the number of entries that the kernel itself
        // has said (the set of names does not change while it runs) or is told. Both outlive the call.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// The name with its terminating zero.
fn interface_name(name: &str) -> io::Result<[c_char; libc::IFNAMSIZ]> {
    let mut bytes = [0; libc::IFNAMSIZ];
    if name.len() >= bytes.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loopback interface scatters and gathers, on every kernel, and takes no tags out; a name that
    /// cannot be one is refused.
    #[test]
    fn interfaces_are_asked_by_name() {
        assert!(has_feature("lo", "tx-scatter-gather").unwrap());
        assert!(!has_feature("lo", "no-such-feature").unwrap());
        for is_service_tag in [false, true] {
            assert!(!has_feature("lo", tag_stripping(is_service_tag)).unwrap());
        }
        assert!(has_feature("a-name-that-is-too-long", "tx-scatter-gather").is_err());
        assert!(has_feature("none-such", "tx-scatter-gather").is_err());
    }

    /// The names are the kernel's: the features that are asked for are among them.
    #[test]
    fn features_are_found_by_name() {
        let names = Device::new("lo").unwrap().feature_names().unwrap();
        for is_service_tag in [false, true] {
            let name = tag_stripping(is_service_tag);
            assert!(names.iter().any(|known| known == name), "{names:?}");
        }
    }
}
