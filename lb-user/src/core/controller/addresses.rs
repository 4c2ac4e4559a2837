//! The addresses of this node: VIPs come and go with ownership, and stay as they shall be.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use lb_common::abi::Mac;

use super::{Action, Controller, Event, VIP_RENEWAL};
use crate::{
    config::model::VrrpConfig,
    core::{
        desired,
        network::{Interface, InterfaceAddress, Network},
        time::Timestamp,
    },
};

/// What this node's addresses shall be.
struct Wanted {
    /// Interface index of `lo`; 0 if it is not there.
    lo: u32,
    /// VIPs on `lo`.
    loopback: BTreeSet<IpAddr>,
    /// Owned VIPs: position of the instance, interface index, address.
    owned: Vec<(usize, u32, IpNet)>,
    /// VIPs of VRRP instances: nobody but this controller may add them.
    managed: BTreeSet<IpAddr>,
}

impl Wanted {
    fn keeps(&self, own: &InterfaceAddress) -> bool {
        if own.ifindex == self.lo {
            own.net == IpNet::from(own.net.addr()) && self.loopback.contains(&own.net.addr())
        } else {
            self.owned
                .iter()
                .any(|(_, ifindex, net)| *ifindex == own.ifindex && *net == own.net)
        }
    }

    /// A VIP of an earlier owner or of a crashed controller. The VIP of a service that no VRRP
    /// instance moves may be the administrator's own.
    fn is_stale(&self, own: &InterfaceAddress) -> bool {
        (own.ours || self.managed.contains(&own.net.addr())) && !self.keeps(own)
    }
}

/// The form in which an owned VIP is added. IPv6: without the prefix, which would make it a
/// candidate for the source of the node's own connections.
fn as_added(net: &IpNet) -> IpNet {
    match net {
        IpNet::V4(_) => *net,
        IpNet::V6(net) => IpNet::from(IpAddr::from(net.addr())),
    }
}

/// Where the neighbours are told to find an instance's addresses: index of the interface, and MAC.
fn place(network: &Network, config: &VrrpConfig) -> Option<(u32, Mac)> {
    let (ifindex, own) = network.place(&config.interface)?;
    Some((ifindex, config.virtual_mac().unwrap_or(own)))
}

impl Controller {
    /// Take in a reading of all interfaces and addresses.
    pub(super) fn set_links(
        &mut self,
        now: Timestamp,
        interfaces: Vec<Interface>,
        addresses: Vec<InterfaceAddress>,
    ) {
        let before = std::mem::take(&mut self.network);
        self.network = before.clone();
        self.network.set_links(interfaces, addresses);
        self.links_known = true;
        self.report_lost(now, &before);
        self.forget_vanished_interfaces();
        self.follow_uplinks();
        self.reconcile_addresses(now);
        self.announce_elsewhere(now);
        self.resolve_all();
        self.reconcile_tables();
    }

    /// Ask for the ways that are not asked for since the last reading.
    pub(super) fn resolve_all(&mut self) {
        for address in desired::to_resolve(&self.facts()) {
            if self.resolving.insert(address) {
                self.actions.push_back(Action::Resolve(address));
            }
        }
    }

    /// Bring this node's addresses to what they shall be: VIPs of a former owner or of a crashed
    /// controller go, missing ones come.
    pub(super) fn reconcile_addresses(&mut self, now: Timestamp) {
        if !self.links_known {
            return;
        }
        let wanted = self.wanted(now);
        let stale: Vec<_> = self
            .network
            .addresses()
            .filter(|own| wanted.is_stale(own))
            .copied()
            .collect();
        for own in stale {
            self.remove_address(own.ifindex, own.net);
        }
        let loopback = wanted.loopback.iter().copied();
        let missing = |address: &IpAddr| {
            let net = IpNet::from(*address);
            wanted.lo != 0 && !self.network.knows_address(wanted.lo, net)
        };
        let loopback: Vec<_> = loopback.filter(missing).collect();
        for address in loopback {
            let ifindex = wanted.lo;
            self.actions
                .push_back(Action::SetLoopbackVip { ifindex, address });
            self.reading_links.overtake();
        }
        for (position, ifindex, net) in wanted.owned {
            if !self.network.knows_address(ifindex, net) {
                self.set_vip(position, ifindex, net);
            } else if let Some(other) = self.network.behind(ifindex, net)
                && !wanted.managed.contains(&other.addr())
            {
                self.put_behind(position, ifindex, net, other);
            }
        }
    }

    /// Somebody has added the node's own address again after the VIP: the node's connections leave from
    /// the VIP, and its peers, which have that on `lo`, drop them. What is added last comes last. The
    /// kernel keeps the other address meanwhile, because `promote_secondaries` is set.
    fn put_behind(&mut self, position: usize, ifindex: u32, net: IpNet, other: IpNet) {
        self.remove_address(ifindex, net);
        self.set_vip(position, ifindex, net);
        if let Some(name) = self.network.name(ifindex) {
            let what = format!("the order of addresses on {name} ({net} stood before {other})");
            self.actions
                .push_back(Action::Report(Event::Repaired { what }));
        }
    }

    /// Add what is owned, and put off its end.
    pub(super) fn renew_vips(&mut self, now: Timestamp) {
        self.renew_at = now + VIP_RENEWAL;
        for (position, ifindex, net) in self.owned(now) {
            self.set_vip(position, ifindex, net);
        }
    }

    /// Remove whatever the instance at `position` may have added, whether it was seen or not: the
    /// last reading may be older than the addresses.
    pub(super) fn give_up_vips(&mut self, now: Timestamp, position: usize) {
        let placed = self.roles.get_mut(position);
        let placed = placed.map(|role| std::mem::take(&mut role.placed));
        for (ifindex, net) in placed.into_iter().flatten() {
            self.remove_address(ifindex, net);
        }
        self.reconcile_addresses(now);
    }

    /// Remove the addresses that the instance at `position` has added and is not configured for any
    /// more.
    pub(super) fn give_up_old_vips(&mut self, position: usize) {
        let (Some(role), Some(config)) =
            (self.roles.get_mut(position), self.config.vrrp.get(position))
        else {
            return;
        };
        let wanted: BTreeSet<IpNet> = config.addresses.iter().map(as_added).collect();
        let placed = std::mem::take(&mut role.placed);
        let (kept, old): (BTreeSet<_>, BTreeSet<_>) = placed
            .into_iter()
            .partition(|(_, net)| wanted.contains(net));
        role.placed = kept;
        for (ifindex, net) in old {
            self.remove_address(ifindex, net);
        }
    }

    /// Tell the neighbours who has the addresses of the instance at `position`.
    pub(super) fn announce(&mut self, position: usize) {
        let (Some(role), Some(config)) =
            (self.roles.get_mut(position), self.config.vrrp.get(position))
        else {
            return;
        };
        role.announced = place(&self.network, config);
        if let Some((ifindex, mac)) = role.announced {
            self.actions.push_back(Action::Announce {
                ifindex,
                mac,
                addresses: config.addresses.iter().map(IpNet::addr).collect(),
            });
        }
    }

    /// An owner's interface appeared or changed its MAC: what the neighbours know is void.
    fn announce_elsewhere(&mut self, now: Timestamp) {
        let moved = |position: &usize| {
            let role = self.roles.get(*position);
            let config = self.config.vrrp.get(*position);
            role.zip(config).is_some_and(|(role, config)| {
                role.owns_at(now) && role.announced != place(&self.network, config)
            })
        };
        let moved: Vec<_> = (0..self.roles.len()).filter(moved).collect();
        for position in moved {
            self.announce(position);
        }
    }

    /// Say which addresses are gone that this controller did not remove. An interface that
    /// vanished took its addresses along: that is no meddling.
    fn report_lost(&mut self, now: Timestamp, before: &Network) {
        let wanted = self.wanted(now);
        let lost = before
            .addresses()
            .filter(|own| wanted.keeps(own) && !self.network.knows_address(own.ifindex, own.net));
        for own in lost {
            if let Some(name) = self.network.name(own.ifindex) {
                let what = format!("address {} of {name}, which was gone", own.net);
                self.actions
                    .push_back(Action::Report(Event::Repaired { what }));
            }
        }
    }

    fn forget_vanished_interfaces(&mut self) {
        for role in &mut self.roles {
            let network = &self.network;
            role.placed
                .retain(|(ifindex, _)| network.name(*ifindex).is_some());
        }
    }

    fn set_vip(&mut self, position: usize, ifindex: u32, net: IpNet) {
        if let Some(role) = self.roles.get_mut(position) {
            role.placed.insert((ifindex, net));
        }
        self.actions.push_back(Action::SetVip { ifindex, net });
        self.reading_links.overtake();
    }

    fn remove_address(&mut self, ifindex: u32, net: IpNet) {
        self.network.forget_address(ifindex, net);
        self.actions
            .push_back(Action::RemoveAddress { ifindex, net });
        self.reading_links.overtake();
    }

    fn wanted(&self, now: Timestamp) -> Wanted {
        let managed = self.config.vrrp.iter().flat_map(|vrrp| &vrrp.addresses);
        Wanted {
            lo: self.network.interface("lo").map_or(0, |lo| lo.ifindex),
            loopback: desired::loopback_vips(&self.facts()),
            owned: self.owned(now),
            managed: managed.map(IpNet::addr).collect(),
        }
    }

    /// Owned VIPs: position of the instance, interface index, address.
    fn owned(&self, now: Timestamp) -> Vec<(usize, u32, IpNet)> {
        let mut owned = Vec::new();
        for (position, (role, config)) in self.roles.iter().zip(&self.config.vrrp).enumerate() {
            if let Some(interface) = self.network.interface(&config.interface)
                && role.owns_at(now)
            {
                let nets = config.addresses.iter().map(as_added);
                owned.extend(nets.map(|net| (position, interface.ifindex, net)));
            }
        }
        owned
    }
}
