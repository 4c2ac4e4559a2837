//! Internet checksums: RFC 1071 sums from scratch and RFC 1624 incremental updates.
//!
//! All values are 16-bit words in host order of the big-endian wire field
//! (`u16::from_be_bytes`), so the code reads like the RFCs.

/// RFC 1624, equation 3: the checksum `HC' = ~(~HC + ~m + m')` after one 16-bit word changed
/// from `old` to `new`. Never makes a wrong checksum right: the error stays in the sum.
#[inline(always)]
#[must_use]
pub const fn update16(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = (!checksum) as u32 + (!old) as u32 + new as u32;
    !fold(sum)
}

/// [`update16`] for every word of an address (`N` a multiple of 4).
///
/// Sums 32-bit words in native order: one's complement sums do not depend on byte order
/// (RFC 1071 section 2), so only the checksum itself is swapped.
#[inline(always)]
#[must_use]
pub fn update_bytes<const N: usize>(checksum: u16, old: &[u8; N], new: &[u8; N]) -> u16 {
    let mut sum = u64::from(!checksum.to_be());
    for (from, to) in old.as_chunks::<4>().0.iter().zip(new.as_chunks::<4>().0) {
        sum += u64::from(!u32::from_ne_bytes(*from));
        sum += u64::from(u32::from_ne_bytes(*to));
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    u16::from_be(!fold(sum as u32))
}

/// What a change of covered bytes adds to a one's complement sum: the sum of the new words and of
/// the complements of the old ones, in native byte order (RFC 1071 section 2: the order does not
/// matter as long as it is one). This is what the kernel calls a `__wsum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta(u32);

impl Delta {
    /// No change.
    pub const ZERO: Self = Self(0);

    #[inline(always)]
    const fn carried(sum: u64) -> Self {
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        Self(((sum & 0xffff_ffff) + (sum >> 32)) as u32)
    }

    /// The change from `old` to `new` (`N` a multiple of 4, at an even offset).
    #[inline(always)]
    #[must_use]
    pub fn bytes<const N: usize>(old: &[u8; N], new: &[u8; N]) -> Self {
        let mut sum = 0;
        for (from, to) in old.as_chunks::<4>().0.iter().zip(new.as_chunks::<4>().0) {
            sum += u64::from(!u32::from_ne_bytes(*from));
            sum += u64::from(u32::from_ne_bytes(*to));
        }
        Self::carried(sum)
    }

    /// The change of one 16-bit field from `old` to `new`, both in host order.
    #[inline(always)]
    #[must_use]
    pub const fn word(old: u16, new: u16) -> Self {
        Self((!old.to_be()) as u32 + new.to_be() as u32)
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self::carried(self.0 as u64 + other.0 as u64)
    }

    /// The checksum field after the change (RFC 1624, equation 3). A wrong one stays wrong.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let sum = (!u16::from_ne_bytes(checksum)) as u64 + self.0 as u64;
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        (!fold(sum as u32)).to_ne_bytes()
    }

    /// Whether nothing changed.
    #[inline(always)]
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The inverse of [`Delta::wsum`].
    #[inline(always)]
    #[must_use]
    pub const fn from_wsum(sum: u32) -> Self {
        Self(sum)
    }

    /// As the kernel's helpers take it.
    #[inline(always)]
    #[must_use]
    pub const fn wsum(self) -> u32 {
        self.0
    }
}

/// One's complement sum of `data` (an odd last byte is padded with zero) added to `initial`.
/// For data of up to 64 KiB.
#[must_use]
pub fn sum(initial: u32, data: &[u8]) -> u32 {
    let mut total = initial;
    let mut words = data.chunks_exact(2);
    for word in &mut words {
        if let &[a, b] = word {
            total += u32::from(u16::from_be_bytes([a, b]));
        }
    }
    if let &[last] = words.remainder() {
        total += u32::from(u16::from_be_bytes([last, 0]));
    }
    total
}

/// Fold a sum of 16-bit words into 16 bits, carries added back.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    // At most one carry is left. The cast keeps the low 16 bits, which is the point.
    ((once & 0xffff) + (once >> 16)) as u16
}

/// [`fold`] for a sum of 32-bit words.
#[inline(always)]
#[must_use]
pub const fn fold32(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    fold(sum as u32)
}

/// RFC 1071 checksum of `data` alone, with the checksum field counted as it stands there:
/// zero to compute one, the received value to verify (the result is then 0).
#[must_use]
pub fn checksum(data: &[u8]) -> u16 {
    !fold(sum(0, data))
}

/// Sum of the TCP/UDP/VRRP pseudo-header: RFC 793 section 3.1 for 4-byte addresses, RFC 8200
/// section 8.1 for 16-byte ones. `length` is that of the upper-layer header and data in bytes.
#[must_use]
pub fn pseudo_header(src: &[u8], dst: &[u8], proto: u8, length: u32) -> u32 {
    let sum = sum(sum(0, src), dst);
    sum + u32::from(proto) + (length >> 16) + (length & 0xffff)
}

/// Checksum of an upper-layer message (header and data) under its pseudo-header.
#[must_use]
pub fn transport(src: &[u8], dst: &[u8], proto: u8, message: &[u8]) -> u16 {
    // Messages are at most 64 KiB by the IP length field.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    !fold(sum(pseudo_header(src, dst, proto, length), message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 section 3's worked example: 00 01 f2 03 f4 f5 f6 f7 sums to ddf2.
    #[test]
    fn sums_as_rfc_1071() {
        assert_eq!(
            fold(sum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])),
            0xddf2
        );
    }

    /// RFC 1624 section 4's example: 5555 -> 3285 with checksum dd2f gives 0000.
    #[test]
    fn updates_as_rfc_1624() {
        assert_eq!(update16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        /// An incremental update equals the checksum from scratch (as one's complement numbers).
        #[test]
        fn update_equals_recomputation(mut data in proptest::collection::vec(any::<u8>(), 24..64), new in any::<[u8; 4]>()) {
            data[0] |= 1; // an all-zero message has two valid checksums
            let before = checksum(&data);
            let old = [data[4], data[5], data[6], data[7]];
            data[4..8].copy_from_slice(&new);
            let updated = update_bytes(before, &old, &new);
            prop_assert_eq!(updated % 0xffff, checksum(&data) % 0xffff);
        }

        /// An update keeps a wrong checksum wrong, by the same error.
        #[test]
        fn update_never_repairs(data in any::<[u8; 16]>(), new in any::<[u8; 4]>(), error in 1u16..0xfffe) {
            let right = checksum(&data);
            let wrong = right.wrapping_add(error);
            prop_assume!(wrong % 0xffff != right % 0xffff);
            let old = [data[4], data[5], data[6], data[7]];
            let mut changed = data;
            changed[4..8].copy_from_slice(&new);
            prop_assert_ne!(update_bytes(wrong, &old, &new) % 0xffff, checksum(&changed) % 0xffff);
        }
    }
}
