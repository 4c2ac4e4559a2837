//! Parse: Ethernet with up to two VLAN tags, and the TCP header of a packet to a VIP.

use lb_common::{
    conntrack::Segment,
    headers::{ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthAddresses, EthHeader, TcpHeader, VlanTag},
    reason::Reason,
};

use crate::{
    family::Ip,
    packet::{self, Context},
};

/// What the Ethernet header and its VLAN tags say. The MACs stay in the frame, see [`macs`].
#[derive(Clone, Copy)]
pub(crate) struct Ethernet {
    /// Type of the payload, host order.
    pub(crate) ethertype: u16,
    /// Offset of the payload.
    pub(crate) l3: usize,
}

/// Parse the Ethernet header and at most two VLAN tags.
#[inline(always)]
pub(crate) fn ethernet<C: Context>(ctx: &C) -> Result<Ethernet, Reason> {
    let header: EthHeader = packet::load(ctx, 0).ok_or(Reason::Truncated)?;
    let mut ethertype = header.ethertype();
    let mut l3 = EthHeader::LEN;
    for _ in 0..2 {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        let tag: VlanTag = packet::load(ctx, l3).ok_or(Reason::Truncated)?;
        ethertype = tag.ethertype();
        l3 += VlanTag::LEN;
    }
    Ok(Ethernet { ethertype, l3 })
}

/// The frame's MACs.
#[inline(always)]
pub(crate) fn macs<C: Context>(ctx: &C) -> Result<EthAddresses, Reason> {
    packet::load(ctx, 0).ok_or(Reason::Truncated)
}

/// A TCP segment.
#[derive(Clone, Copy)]
pub(crate) struct Tcp {
    /// Source port, host order.
    pub(crate) sport: u16,
    /// Destination port, host order.
    pub(crate) dport: u16,
    /// What conntrack looks at.
    pub(crate) segment: Segment,
    /// Offset of the TCP header.
    pub(crate) l4: usize,
    /// TCP checksum, host order.
    pub(crate) checksum: u16,
}

/// Parse the TCP header of `ip`, which is no fragment.
#[inline(always)]
pub(crate) fn tcp<C: Context>(ctx: &C, ip: &Ip) -> Result<Tcp, Reason> {
    let upper_len = ip.upper_len(ctx)?;
    if upper_len < TcpHeader::LEN {
        return Err(Reason::Truncated);
    }
    let header: TcpHeader = packet::load(ctx, ip.l4).ok_or(Reason::Truncated)?;
    let header_len = header.header_len();
    if header_len < TcpHeader::LEN || header_len > upper_len {
        return Err(Reason::BadTcpHeader);
    }
    let segment = Segment {
        seq: u32::from_be_bytes(header.seq),
        ack: u32::from_be_bytes(header.ack),
        len: (upper_len - header_len) as u32,
        flags: header.flags,
    };
    if !segment.flags_valid() {
        return Err(Reason::BadTcpFlags);
    }
    Ok(Tcp {
        sport: header.sport(),
        dport: header.dport(),
        segment,
        l4: ip.l4,
        checksum: u16::from_be_bytes(header.checksum),
    })
}
