//! Parse: Ethernet with up to two VLAN tags, and the TCP or UDP header of a packet to a VIP.

use lb_common::{
    conntrack::Segment,
    headers::{
        ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthAddresses, EthHeader, TcpHeader, UdpHeader, VlanTag,
    },
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
    /// VLAN tags, see [`lb_common::abi::UplinkKey`].
    pub(crate) tags: u32,
}

/// Parse the Ethernet header and at most two VLAN tags.
#[inline(always)]
pub(crate) fn ethernet<C: Context>(ctx: &C) -> Result<Ethernet, Reason> {
    let header: EthHeader = packet::load(ctx, 0).ok_or(Reason::Truncated)?;
    let mut ethertype = header.ethertype();
    let mut l3 = EthHeader::LEN;
    let mut tags = u32::from(ctx.taken_tag());
    for _ in 0..2 {
        // (One tag may be out of the frame already.)
        let full = tags > 0xffff;
        if full || (ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ) {
            break;
        }
        let tag: VlanTag = packet::load(ctx, l3).ok_or(Reason::Truncated)?;
        ethertype = tag.ethertype();
        l3 += VlanTag::LEN;
        // A tag with VLAN id 0 carries a priority only.
        let vid = u32::from(tag.vid());
        tags |= if tags == 0 { vid } else { vid << 16 };
    }
    Ok(Ethernet {
        ethertype,
        l3,
        tags,
    })
}

/// The frame's MACs.
#[inline(always)]
pub(crate) fn macs<C: Context>(ctx: &C) -> Result<EthAddresses, Reason> {
    packet::load(ctx, 0).ok_or(Reason::Truncated)
}

/// What the transport header says.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    /// UDP, not TCP.
    pub(crate) udp: bool,
    /// Source port, host order.
    pub(crate) sport: u16,
    /// Destination port, host order.
    pub(crate) dport: u16,
    /// What conntrack looks at (TCP; all zero for UDP).
    pub(crate) segment: Segment,
    /// Offset of the header.
    pub(crate) l4: usize,
    /// Checksum as in the frame.
    pub(crate) checksum: [u8; 2],
}

impl Transport {
    /// Of a packet that is neither TCP nor UDP, whose upper layer is at `l4`.
    #[inline(always)]
    pub(crate) const fn none(l4: usize) -> Self {
        Self {
            udp: false,
            sport: 0,
            dport: 0,
            segment: Segment {
                seq: 0,
                ack: 0,
                len: 0,
                flags: 0,
            },
            l4,
            checksum: [0; 2],
        }
    }

    /// Offset of the checksum in the frame.
    #[inline(always)]
    pub(crate) const fn checksum_at(&self) -> usize {
        let at = if self.udp {
            UdpHeader::CHECKSUM
        } else {
            TcpHeader::CHECKSUM
        };
        self.l4 + at
    }
}

/// Parse the TCP header of `ip`, which is no fragment.
#[inline(always)]
pub(crate) fn tcp<C: Context>(ctx: &C, ip: &Ip) -> Result<Transport, Reason> {
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
    Ok(Transport {
        udp: false,
        sport: header.sport(),
        dport: header.dport(),
        segment,
        l4: ip.l4,
        checksum: header.checksum,
    })
}

/// Parse the UDP header of `ip`, which is no fragment.
#[inline(always)]
pub(crate) fn udp<C: Context>(ctx: &C, ip: &Ip) -> Result<Transport, Reason> {
    let upper_len = ip.upper_len(ctx)?;
    if upper_len < UdpHeader::LEN {
        return Err(Reason::Truncated);
    }
    let header: UdpHeader = packet::load(ctx, ip.l4).ok_or(Reason::Truncated)?;
    let length = usize::from(header.length());
    // An aggregate of datagrams (GSO) has the length of all of them in the IP header only.
    if length < UdpHeader::LEN || length > upper_len {
        return Err(Reason::BadUdpHeader);
    }
    Ok(Transport {
        udp: true,
        sport: header.sport(),
        dport: header.dport(),
        segment: Segment {
            seq: 0,
            ack: 0,
            len: 0,
            flags: 0,
        },
        l4: ip.l4,
        checksum: header.checksum,
    })
}
