//! Forward: carry a decision out on the packet: local delivery, dsr, and the redirection of
//! frames between uplinks.

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect};
use lb_common::{
    abi::{Address, Backend, Mac, same_mac},
    checksum::Delta,
    headers::{EthAddresses, EthHeader, TcpHeader},
    reason::Reason,
};

use crate::{
    decision::Decision,
    maps,
    packet::{self, Context},
    parse::{self, Transport},
};

/// Send the frame out of interface `ifindex`; the return value is the program's.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> u32 {
    // SAFETY: the helper has no preconditions; an unknown interface drops the frame.
    let action = unsafe { bpf_redirect(ifindex, 0) };
    u32::try_from(action).unwrap_or(xdp_action::XDP_ABORTED)
}

/// local: to this node's own stack. The backend's port replaces the VIP's where they differ;
/// ports are not part of the pseudo-header, so one 16-bit checksum update is all.
#[inline(always)]
pub(crate) fn local<C: Context>(
    ctx: &C,
    transport: &Transport,
    port: u16,
    reason: Reason,
) -> Reason {
    let vip_port = transport.dport;
    if port == vip_port {
        return reason;
    }
    let body = Delta::word(vip_port, port);
    let translated = packet::store(ctx, transport.l4 + TcpHeader::DPORT, port.to_be_bytes())
        && ctx.fix_checksum(
            transport.checksum_at(),
            transport.checksum,
            Delta::ZERO,
            body,
            transport.udp,
        );
    if translated {
        reason
    } else {
        Reason::Truncated
    }
}

/// Whether the frame leaves through the interface that it came in by, or through another.
#[derive(Clone, Copy)]
pub(crate) struct Exit {
    src: Mac,
    /// 0: the same interface.
    ifindex: u32,
}

impl Exit {
    /// The decision for this way out.
    #[inline(always)]
    pub(crate) fn decide(self, same: Reason, other: Reason) -> Decision {
        if self.ifindex == 0 {
            same.into()
        } else {
            Decision::new(other, self.ifindex)
        }
    }
}

/// Put next hop `mac` behind `hop` (interface, VLAN tags) into the Ethernet header of a frame that
/// has `tags` now.
#[inline(always)]
pub(crate) fn rewrite_ethernet<C: Context>(
    ctx: &C,
    tags: u32,
    (ifindex, new_tags): (u32, u32),
    mac: Mac,
) -> Result<Exit, Reason> {
    let exit = if ifindex == ctx.ifindex() && tags == new_tags {
        // The frame was addressed to our own MAC on this interface.
        Exit {
            src: parse::macs(ctx)?.dst,
            ifindex: 0,
        }
    } else {
        let src = maps::uplink_mac(ifindex, new_tags).ok_or(Reason::Unresolved)?;
        Exit { src, ifindex }
    };
    let addresses = EthAddresses {
        dst: mac,
        src: exit.src,
    };
    if tags != new_tags && !retag(ctx, tags, new_tags) {
        return Err(Reason::VlanMismatch);
    }
    if packet::store(ctx, 0, addresses) {
        Ok(exit)
    } else {
        Err(Reason::Truncated)
    }
}

/// Change the VLAN id of a frame with one tag to that of another single tag. More would change the
/// frame's length.
#[inline(always)]
fn retag<C: Context>(ctx: &C, tags: u32, new_tags: u32) -> bool {
    const VID: u32 = 0xfff;
    let single = |tags: u32| tags != 0 && tags <= VID;
    if !single(tags) || !single(new_tags) || ctx.taken_tag() != 0 {
        return false;
    }
    let Some(tci) = packet::load::<C, [u8; 2]>(ctx, EthHeader::LEN) else {
        return false;
    };
    let tci = u16::from_be_bytes(tci);
    // A priority tag before the one that counts: two tags after all.
    if u32::from(tci) & VID != tags {
        return false;
    }
    let priority = tci & !(VID as u16);
    packet::store(
        ctx,
        EthHeader::LEN,
        (priority | new_tags as u16).to_be_bytes(),
    )
}

/// dsr: to the backend's node, addresses and ports untouched. Never back to where the frame
/// came from. `stateless`: without an entry.
#[inline(always)]
pub(crate) fn dsr<C: Context, A: Address>(
    ctx: &C,
    tags: u32,
    stateless: bool,
    backend: &Backend<A>,
) -> Decision {
    match try_dsr(ctx, tags, backend) {
        Ok(exit) if stateless => exit.decide(Reason::DsrStateless, Reason::DsrStatelessRedirect),
        Ok(exit) => exit.decide(Reason::Dsr, Reason::DsrRedirect),
        Err(reason) => reason.into(),
    }
}

/// [`dsr`], but the decision is the caller's.
#[inline(always)]
pub(crate) fn try_dsr<C: Context, A: Address>(
    ctx: &C,
    tags: u32,
    backend: &Backend<A>,
) -> Result<Exit, Reason> {
    if backend.ifindex() == 0 {
        return Err(Reason::Unresolved);
    }
    if same_mac(&backend.mac(), &parse::macs(ctx)?.src) {
        return Err(Reason::NoOtherBackend);
    }
    let hop = (backend.ifindex(), backend.tags());
    rewrite_ethernet(ctx, tags, hop, backend.mac())
}
