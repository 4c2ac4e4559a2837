//! Forward: carry a decision out on the packet: local delivery, dsr, and the redirection of
//! frames between uplinks.

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect};
use lb_common::{
    abi::{Address, Backend, Mac, same_mac},
    checksum,
    headers::{EthAddresses, TcpHeader},
    reason::Reason,
};

use crate::{
    maps,
    packet::{self, Context},
    parse::{self, Tcp},
};

/// A reason, with the interface for those that redirect (0 for the others).
#[derive(Clone, Copy)]
pub(crate) struct Decision {
    /// Why.
    pub(crate) reason: Reason,
    /// Where to, for [`lb_common::reason::Verdict::Redirect`].
    pub(crate) ifindex: u32,
}

impl From<Reason> for Decision {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, ifindex: 0 }
    }
}

/// Send the frame out of another interface; the return value is the XDP action.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> u32 {
    // SAFETY: the helper has no preconditions; an unknown interface becomes XDP_ABORTED.
    let action = unsafe { bpf_redirect(ifindex, 0) };
    u32::try_from(action).unwrap_or(xdp_action::XDP_ABORTED)
}

/// local: to this node's own stack. The backend's port replaces the VIP's where they differ;
/// ports are not part of the pseudo-header, so one 16-bit checksum update is all.
#[inline(always)]
pub(crate) fn local<C: Context>(ctx: &C, tcp: &Tcp, port: u16, reason: Reason) -> Decision {
    let vip_port = tcp.dport;
    if port != vip_port {
        let sum = checksum::update16(tcp.checksum, vip_port, port);
        if !packet::store(ctx, tcp.l4 + TcpHeader::DPORT, port.to_be_bytes())
            || !packet::store(ctx, tcp.l4 + TcpHeader::CHECKSUM, sum.to_be_bytes())
        {
            return Reason::Truncated.into();
        }
    }
    reason.into()
}

/// Whether the frame leaves through the interface that it came in by, or through another.
#[derive(Clone, Copy)]
pub(crate) struct Exit {
    src: Mac,
    /// 0: the same interface.
    ifindex: u32,
}

impl Exit {
    /// The reason for this way out.
    #[inline(always)]
    pub(crate) fn decide(self, same: Reason, other: Reason) -> Decision {
        Decision {
            reason: if self.ifindex == 0 { same } else { other },
            ifindex: self.ifindex,
        }
    }
}

/// Put next hop `mac` behind interface `ifindex` into the Ethernet header.
#[inline(always)]
pub(crate) fn rewrite_ethernet<C: Context>(
    ctx: &C,
    ifindex: u32,
    mac: Mac,
) -> Result<Exit, Reason> {
    let exit = if ifindex == ctx.ifindex() {
        // The frame was addressed to our own MAC on this interface.
        Exit {
            src: parse::macs(ctx)?.dst,
            ifindex: 0,
        }
    } else {
        let src = maps::uplink_mac(ifindex).ok_or(Reason::Unresolved)?;
        Exit { src, ifindex }
    };
    let addresses = EthAddresses {
        dst: mac,
        src: exit.src,
    };
    if packet::store(ctx, 0, addresses) {
        Ok(exit)
    } else {
        Err(Reason::Truncated)
    }
}

/// dsr: to the backend's node, addresses and ports untouched. Never back to where the frame
/// came from.
#[inline(always)]
pub(crate) fn dsr<C: Context, A: Address>(ctx: &C, backend: &Backend<A>) -> Decision {
    match try_dsr(ctx, backend) {
        Ok(exit) => exit.decide(Reason::Dsr, Reason::DsrRedirect),
        Err(reason) => reason.into(),
    }
}

#[inline(always)]
fn try_dsr<C: Context, A: Address>(ctx: &C, backend: &Backend<A>) -> Result<Exit, Reason> {
    if backend.ifindex() == 0 {
        return Err(Reason::Unresolved);
    }
    if same_mac(&backend.mac(), &parse::macs(ctx)?.src) {
        return Err(Reason::NoOtherBackend);
    }
    rewrite_ethernet(ctx, backend.ifindex(), backend.mac())
}
