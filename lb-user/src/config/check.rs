//! What the values of a configuration must be to each other: names and addresses that are
//! unique, families that fit, and the limits of the data plane's maps.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use lb_common::{
    abi::{
        MAX_BACKENDS, MAX_BACKENDS_PER_SERVICE, MAX_LEASES, MAX_PEERS, MAX_SERVICES, MAX_UPLINKS,
        MAX_VIPS, sources::MAX_SOURCE_RULES,
    },
    headers::{IPPROTO_TCP, IPPROTO_UDP},
};

use super::{
    Draft,
    model::{Endpoint, Protocol, VrrpVersion},
    node::PeerDraft,
    raw::{Mark, Marked, Report},
    service::ServiceDraft,
    value::{Fault, family, same_family, socket},
    vrrp::VrrpDraft,
};

/// Addresses of one advert that fit into an Ethernet frame of 1500 bytes: (1500 - 40 - 8) / 16.
const MAX_IPV6_PER_ADVERT: usize = 90;
/// The advert's count field has 8 bits (RFC 9568 section 5.2.5).
const MAX_IPV4_PER_ADVERT: usize = 255;

/// Record every contradiction in `draft`.
pub(super) fn check(report: &Report, draft: &Draft) {
    let vips = Vips::new(draft);
    names(report, draft);
    interfaces(report, draft);
    tracks(report, draft);
    peers(report, draft, &vips);
    routers(report, &draft.vrrp);
    for instance in &draft.vrrp {
        families(report, instance);
        unicast(report, instance, &vips);
    }
    for service in &draft.services {
        backends(report, service, &vips);
        sources(report, service);
    }
    for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
        let of_protocol = |service: &&ServiceDraft| {
            let own = service.protocol.map(Protocol::number);
            own == Some(protocol)
        };
        let services: Vec<_> = draft.services.iter().filter(of_protocol).collect();
        endpoints(report, &services);
        reply_ports(report, &services);
    }
    limits(report, draft, &vips);
}

/// Every VIP, and the key that names it first.
struct Vips<'d>(HashMap<IpAddr, &'d Mark>);

impl<'d> Vips<'d> {
    fn new(draft: &'d Draft) -> Self {
        let mut vips = HashMap::new();
        for (address, mark) in vip_marks(draft) {
            vips.entry(address).or_insert(mark);
        }
        Self(vips)
    }

    /// Refuse `address`, which stands at `mark`, if it is a VIP.
    fn refuse(&self, report: &Report, address: IpAddr, mark: &Mark, hint: &str) {
        if let Some(vip) = self.0.get(&address) {
            let problem = format!("\"{address}\" is a VIP, {}", vip.key());
            report.refuse(mark, Fault::new(problem, hint));
        }
    }
}

/// Every mention of a VIP as such.
fn vip_marks(draft: &Draft) -> impl Iterator<Item = (IpAddr, &Mark)> {
    let virtual_addresses = draft
        .vrrp
        .iter()
        .flat_map(|instance| &instance.addresses)
        .map(|address| (address.value.addr(), &address.mark));
    let services = draft
        .services
        .iter()
        .filter_map(|service| service.address.as_ref())
        .map(|address| (address.value, &address.mark));
    virtual_addresses.chain(services)
}

/// Refuse every item that was there before; `fault` gets the mark of the first.
fn unique<'d, K: Hash + Eq>(
    report: &Report,
    items: impl IntoIterator<Item = (K, &'d Mark)>,
    fault: impl Fn(&K, &Mark) -> Fault,
) {
    let mut seen: HashMap<K, &Mark> = HashMap::new();
    for (item, mark) in items {
        if let Some(first) = seen.get(&item) {
            report.refuse(mark, fault(&item, first));
        } else {
            seen.insert(item, mark);
        }
    }
}

fn names(report: &Report, draft: &Draft) {
    unique_names(report, draft.peers.iter().map(|peer| &peer.name));
    unique_names(report, draft.tracks.iter().map(|track| &track.name));
    unique_names(report, draft.vrrp.iter().map(|instance| &instance.name));
    unique_names(report, draft.services.iter().map(|service| &service.name));
    for service in &draft.services {
        unique_names(report, service.backends.iter().map(|backend| &backend.name));
    }
    for name in draft.peers.iter().filter_map(|peer| peer.name.as_ref()) {
        if Some(&name.value) == draft.node.name.as_ref() {
            report.refuse(
                &name.mark,
                Fault::new(
                    format!("{:?} is the name of this node", name.value),
                    "list only the other nodes",
                ),
            );
        }
    }
}

fn unique_names<'d>(report: &Report, names: impl Iterator<Item = &'d Option<Marked<String>>>) {
    let named = names.flatten().map(|name| (&name.value, &name.mark));
    unique(report, named, |name, first| {
        Fault::new(
            format!("{name:?} is already the name of {}", first.parent()),
            "choose another",
        )
    });
}

fn interfaces(report: &Report, draft: &Draft) {
    let uplinks = &draft.node.interfaces;
    let marked = uplinks.iter().map(|uplink| (&uplink.value, &uplink.mark));
    unique(report, marked, |name, _| {
        Fault::new(format!("{name:?} is there already"), "write it once")
    });
    if uplinks.is_empty() {
        return; // Refused elsewhere; comparing with nothing would only add noise.
    }
    let instances = draft.vrrp.iter();
    for interface in instances.filter_map(|instance| instance.interface.as_ref()) {
        if !uplinks.iter().any(|uplink| uplink.value == interface.value) {
            let known: Vec<_> = uplinks
                .iter()
                .map(|uplink| format!("{:?}", uplink.value))
                .collect();
            report.refuse_absence(
                &interface.mark,
                Fault::new(
                    format!("{:?} is not one of node.interfaces", interface.value),
                    format!("write {} or add it there", known.join(", ")),
                ),
            );
        }
    }
}

/// What is tracked of services is tracked of services that there are.
fn tracks(report: &Report, draft: &Draft) {
    for wanted in draft
        .tracks
        .iter()
        .filter_map(|track| track.service.as_ref())
    {
        let mut names = draft
            .services
            .iter()
            .filter_map(|service| service.name.as_ref());
        if !names.any(|name| name.value == wanted.value) {
            let problem = format!("no [[service]] is named {:?}", wanted.value);
            let hint = "name the service whose backends count";
            report.refuse_absence(&wanted.mark, Fault::new(problem, hint));
        }
    }
}

/// Peers are told apart by their addresses, and a VIP moves between nodes.
fn peers(report: &Report, draft: &Draft, vips: &Vips<'_>) {
    let addresses = || draft.peers.iter().flat_map(|peer| &peer.addresses);
    let marked = addresses().map(|address| (address.value, &address.mark));
    unique(report, marked, |address, first| {
        Fault::new(
            format!("\"{address}\" is already {}", first.key()),
            "write every address once",
        )
    });
    for address in addresses() {
        let hint = "write the node's own address";
        vips.refuse(report, address.value, &address.mark, hint);
    }
}

/// Virtual routers: RFC 9568 section 5.2.3, a VRID is unique on an interface and per family.
fn routers(report: &Report, instances: &[VrrpDraft]) {
    let routers = instances.iter().filter_map(|instance| {
        let (interface, vrid) = (instance.interface.as_ref()?, instance.vrid.as_ref()?);
        let address = instance.addresses.first()?.value.addr();
        let key = (interface.value.as_str(), family(address), vrid.value);
        Some((key, &vrid.mark))
    });
    unique(report, routers, |(interface, family, vrid), first| {
        Fault::new(
            format!(
                "{vrid} is already {} on {interface} for {family}",
                first.key()
            ),
            "choose another",
        )
    });
    let addresses = instances
        .iter()
        .flat_map(|instance| &instance.addresses)
        .map(|address| (address.value.addr(), &address.mark));
    unique(report, addresses, |address, first| {
        Fault::new(
            format!("\"{address}\" is already {}", first.key()),
            "write every virtual address once",
        )
    });
}

/// One family per instance: an advert is carried by the protocol of its addresses.
fn families(report: &Report, instance: &VrrpDraft) {
    let Some(first) = instance.addresses.first().map(|first| first.value.addr()) else {
        return;
    };
    let addresses = instance
        .addresses
        .iter()
        .map(|address| (address.value.addr(), &address.mark));
    let unicast = instance
        .unicast_source
        .iter()
        .chain(&instance.unicast_peers)
        .map(|address| (address.value, &address.mark));
    for (address, mark) in addresses.clone() {
        if !same_family(address, first) {
            report.refuse(
                mark,
                Fault::new(
                    format!("\"{address}\" is not {} like the first", family(first)),
                    format!("write a second [[vrrp]] for {}", family(address)),
                ),
            );
        }
    }
    for (address, mark) in unicast {
        if !same_family(address, first) {
            report.refuse(
                mark,
                Fault::new(
                    format!("\"{address}\" is not of the family of addresses"),
                    format!("write an {} address", family(first)),
                ),
            );
        }
    }
    if let Some(version) = &instance.version
        && version.value == VrrpVersion::V2
        && first.is_ipv6()
    {
        let problem = "VRRP version 2 has no IPv6";
        report.refuse(&version.mark, Fault::new(problem, "write version = 3"));
    }
    let limit = if first.is_ipv4() {
        MAX_IPV4_PER_ADVERT
    } else {
        MAX_IPV6_PER_ADVERT
    };
    at_most(
        report,
        limit,
        "addresses in one instance",
        addresses.map(|(_, mark)| mark),
    );
}

fn unicast(report: &Report, instance: &VrrpDraft, vips: &Vips<'_>) {
    let peers = &instance.unicast_peers;
    let marked = peers.iter().map(|peer| (peer.value, &peer.mark));
    unique(report, marked, |address, first| {
        Fault::new(
            format!("\"{address}\" is already {}", first.key()),
            "write every peer once",
        )
    });
    for peer in peers {
        let hint = "write the node's own address";
        vips.refuse(report, peer.value, &peer.mark, hint);
        if instance.unicast_source.as_ref().map(|source| source.value) == Some(peer.value) {
            report.refuse(
                &peer.mark,
                Fault::new(
                    format!("\"{}\" is unicast_source, this node itself", peer.value),
                    "list only the other nodes",
                ),
            );
        }
    }
    // The owner of an address (priority 255) may send from it: it always has it.
    if let Some(source) = &instance.unicast_source
        && instance
            .priority
            .is_some_and(|priority| priority.get() != 255)
    {
        let hint = "write an address that stays on this node";
        vips.refuse(report, source.value, &source.mark, hint);
    }
}

fn backends(report: &Report, service: &ServiceDraft, vips: &Vips<'_>) {
    let backends = || service.backends.iter().filter_map(|b| b.address.as_ref());
    let marked = backends().map(|backend| (&backend.value, &backend.mark));
    unique(report, marked, |address, first| {
        Fault::new(
            format!("\"{address}\" is already {}", first.key()),
            "write every backend once; weight gives it more connections",
        )
    });
    for backend in backends() {
        // What a name stands for is compared when it is known: see `core::names`.
        let Endpoint::Address(address) = backend.value else {
            continue;
        };
        let address = address.ip();
        let hint = "write the node's own address: a VIP as backend is a loop";
        vips.refuse(report, address, &backend.mark, hint);
        if let Some(vip) = &service.address
            && !same_family(vip.value, address)
        {
            report.refuse(
                &backend.mark,
                Fault::new(
                    format!(
                        "\"{}\" is not {} like the VIP",
                        backend.value,
                        family(vip.value)
                    ),
                    format!("write an {} address", family(vip.value)),
                ),
            );
        }
    }
    at_most(
        report,
        MAX_BACKENDS_PER_SERVICE,
        "backends in one service",
        service.backends.iter().map(|backend| &backend.mark),
    );
}

/// Source rules are of the VIP's family, and no prefix has two.
fn sources(report: &Report, service: &ServiceDraft) {
    let prefixes = service.sources.prefixes();
    let marked = prefixes.map(|prefix| (prefix.value, &prefix.mark));
    unique(report, marked, |prefix, first| {
        Fault::new(
            format!("\"{prefix}\" is already {}", first.key()),
            "write every prefix once, in allow or in deny",
        )
    });
    let Some(vip) = &service.address else {
        return;
    };
    for prefix in service.sources.prefixes() {
        if !same_family(vip.value, prefix.value.addr()) {
            report.refuse(
                &prefix.mark,
                Fault::new(
                    format!(
                        "\"{}\" is not {} like the VIP",
                        prefix.value,
                        family(vip.value)
                    ),
                    format!("write an {} prefix", family(vip.value)),
                ),
            );
        }
    }
}

/// VIP and port of a service, where both are known.
fn endpoint(service: &ServiceDraft) -> Option<(IpAddr, &Marked<NonZeroU16>)> {
    Some((service.address.as_ref()?.value, service.port.as_ref()?))
}

fn endpoints(report: &Report, services: &[&ServiceDraft]) {
    let endpoints = services.iter().filter_map(|service| {
        let (vip, port) = endpoint(service)?;
        Some((SocketAddr::new(vip, port.value.get()), &port.mark))
    });
    unique(report, endpoints, |endpoint, first| {
        Fault::new(
            format!("\"{endpoint}\" is already served by {}", first.parent()),
            "choose another port or merge the services",
        )
    });
}

/// One VIP port per (VIP, backend port). A reply that leaves from VIP:backend port must tell by
/// these alone which port the client connected to; and a VIP:backend port that is itself
/// a service would take what was already translated for another one.
fn reply_ports(report: &Report, services: &[&ServiceDraft]) {
    let served: HashMap<SocketAddr, &Mark> = services
        .iter()
        .filter_map(|service| {
            let (vip, port) = endpoint(service)?;
            // With such a backend it is already a second VIP port of VIP:backend port.
            let is_untranslated = backend_ports(service).any(|(own, _)| own == port.value.get());
            let endpoint = SocketAddr::new(vip, port.value.get());
            (!is_untranslated).then_some((endpoint, &port.mark))
        })
        .collect();
    let mut translated: HashMap<SocketAddr, &Marked<NonZeroU16>> = HashMap::new();
    for service in services {
        let Some((vip, port)) = endpoint(service) else {
            continue;
        };
        let mut seen = HashSet::new();
        for (backend_port, mark) in backend_ports(service) {
            if !seen.insert(backend_port) {
                continue; // One error per port says it all.
            }
            let from = SocketAddr::new(vip, backend_port);
            let first = *translated.entry(from).or_insert(port);
            if first.value != port.value {
                report.refuse(mark, second_port(first, vip, from));
            } else if let Some(other) = served.get(&from) {
                report.refuse(
                    mark,
                    Fault::new(
                        format!("port {backend_port} of the VIP is already {}", other.key()),
                        "use another backend port, or another VIP",
                    ),
                );
            }
        }
    }
}

/// The port of every backend, and where it stands.
fn backend_ports(service: &ServiceDraft) -> impl Iterator<Item = (u16, &Mark)> {
    service
        .backends
        .iter()
        .filter_map(|backend| backend.address.as_ref())
        .map(|address| (address.value.port(), &address.mark))
}

fn second_port(first: &Marked<NonZeroU16>, vip: IpAddr, from: SocketAddr) -> Fault {
    Fault::new(
        format!(
            "replies from \"{from}\" already become \"{}\" for {}",
            socket(vip, first.value),
            first.mark.parent()
        ),
        "use one VIP port per VIP and backend port, or another VIP",
    )
}

/// What the data plane's maps can hold.
fn limits(report: &Report, draft: &Draft, vips: &Vips<'_>) {
    let count = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    let uplinks = draft.node.interfaces.iter().map(|uplink| &uplink.mark);
    at_most(report, count(MAX_UPLINKS), "interfaces", uplinks);
    // Node numbers: 0 is no node, 1 is this node.
    let peers = draft.peers.iter().map(|peer| &peer.mark);
    at_most(report, count(MAX_PEERS) - 3, "peers", peers);
    let instances = draft.vrrp.iter().map(|instance| &instance.mark);
    at_most(report, count(MAX_LEASES) - 1, "instances", instances);
    let services = draft.services.iter().map(|service| &service.mark);
    at_most(report, count(MAX_SERVICES) - 1, "services", services);
    let backends = draft
        .services
        .iter()
        .flat_map(|service| &service.backends)
        .map(|backend| &backend.mark);
    at_most(
        report,
        count(MAX_BACKENDS) - 1,
        "backends in all services",
        backends,
    );
    for is_ipv4 in [true, false] {
        let of_family =
            |(address, mark): (IpAddr, _)| (address.is_ipv4() == is_ipv4).then_some(mark);
        let addresses = peer_addresses(&draft.peers).filter_map(of_family);
        at_most(
            report,
            count(MAX_PEERS),
            "peer addresses of one family",
            addresses,
        );
        let prefixes = draft
            .services
            .iter()
            .flat_map(|service| service.sources.prefixes())
            .map(|prefix| (prefix.value.addr(), &prefix.mark))
            .filter_map(of_family);
        at_most(
            report,
            count(MAX_SOURCE_RULES),
            "prefixes of one family in allow and deny",
            prefixes,
        );
        // Only first mentions: a VIP of an instance and of its services is one VIP.
        let first_mentions = vip_marks(draft)
            .filter(|(address, mark)| vips.0.get(address) == Some(mark))
            .filter_map(of_family);
        at_most(
            report,
            count(MAX_VIPS),
            "VIPs of one family",
            first_mentions,
        );
    }
}

fn peer_addresses(peers: &[PeerDraft]) -> impl Iterator<Item = (IpAddr, &Mark)> {
    peers
        .iter()
        .flat_map(|peer| &peer.addresses)
        .map(|address| (address.value, &address.mark))
}

/// Refuse the first item beyond `limit`.
fn at_most<'d>(
    report: &Report,
    limit: usize,
    things: &str,
    mut items: impl Iterator<Item = &'d Mark>,
) {
    if let Some(beyond) = items.nth(limit) {
        report.refuse(
            beyond,
            Fault::new(
                format!("too many {things}"),
                format!("write at most {limit}"),
            ),
        );
    }
}
