//! What the hardware does to frames before anyone sees them.

use std::{ffi::c_char, io, os::fd::AsRawFd};

use nix::libc;
use socket2::{Domain, Socket, Type};

/// `linux/ethtool.h`: read the feature flags; the one that says that VLAN tags of received frames
/// are taken out by hardware (`rx-vlan-hw-parse`, rxvlan).
const GET_FLAGS: u32 = 0x25;
const STRIPS_VLAN_TAGS: u32 = 1 << 8;
/// `linux/sockios.h`
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether interface `name` takes 802.1Q tags out of the frames that it receives.
///
/// # Errors
/// There is no such interface, or it has no such features.
pub fn strips_vlan_tags(name: &str) -> io::Result<bool> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut value = Value {
        command: GET_FLAGS,
        data: 0,
    };
    let mut request = libc::ifreq {
        ifr_name: interface_name(name)?,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    // SAFETY: the request is a valid `struct ifreq` with a terminated name; its data points to a
    // `struct ethtool_value`, which is what this command reads and writes. Both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data & STRIPS_VLAN_TAGS != 0)
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

    /// The loopback interface answers, a name that cannot be one is refused.
    #[test]
    fn interfaces_are_asked_by_name() {
        assert!(!strips_vlan_tags("lo").unwrap());
        assert!(strips_vlan_tags("a-name-that-is-too-long").is_err());
        assert!(strips_vlan_tags("none-such").is_err());
    }
}
