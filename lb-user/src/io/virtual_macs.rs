//! The links' filters of received frames: they let those for the virtual MACs of VRRP instances through.
//!
//! Also while a node is Backup: whether such a frame is taken is the data plane's business, which asks
//! the lease.

use std::collections::BTreeMap;

use lb_common::abi::Mac;

use super::netlink::{Netlink, NetlinkError};

/// What was asked of links, by slot of the instance.
#[derive(Debug, Default)]
pub(crate) struct VirtualMacs(BTreeMap<usize, (u32, Mac)>);

impl VirtualMacs {
    /// Has the link with this index receive frames for the MAC of an instance, and no other link any
    /// more; `None`: none does.
    pub(crate) fn place(
        &mut self,
        netlink: &mut Netlink,
        slot: usize,
        place: Option<(u32, Mac)>,
    ) -> Result<(), NetlinkError> {
        let before = match place {
            Some(place) => self.0.insert(slot, place),
            None => self.0.remove(&slot),
        };
        if let Some((ifindex, mac)) = before.filter(|_| before != place) {
            netlink.ignore_mac(ifindex, mac)?;
        }
        // Also where it was before: the link may be another one with the same index.
        place.map_or(Ok(()), |(ifindex, mac)| netlink.receive_mac(ifindex, mac))
    }

    /// Undoes everything.
    pub(crate) fn clear(&mut self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        std::mem::take(&mut self.0)
            .into_values()
            .try_for_each(|(ifindex, mac)| netlink.ignore_mac(ifindex, mac))
    }
}
