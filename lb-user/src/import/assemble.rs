//! Makes the configuration of a plan: finds out who this node and its peers are, which VIP each
//! service is for, and which backends are the nodes themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::{
    Fate, Inputs, Options,
    document::{Document, Key, Section},
    ledger::{Ledger, WordId, base_name},
    plan::{Host, Instance, Listen, LocalCheck, Plan, Server, Service, SourceRule},
    tracks::{self, Candidate},
};

/// Name of the service that a check script alone makes.
const ONLY_SERVICE: &str = "apiserver";

/// What is known about the nodes.
struct Nodes {
    /// `node.name`, if it is known.
    name: Option<String>,
    /// This node's own addresses, those that the inputs tell first.
    own: Vec<IpAddr>,
    /// The others that will run xvip.
    peers: Vec<(String, Vec<IpAddr>)>,
}

impl Nodes {
    /// The address that others reach this node at.
    fn own_of_family(&self, v4: bool) -> Option<IpAddr> {
        let is_usable = |own: &&IpAddr| own.is_ipv4() == v4 && !own.is_loopback();
        self.own.iter().find(is_usable).copied()
    }
}

/// The configuration file.
pub(super) fn assemble(
    plan: &Plan,
    inputs: &Inputs,
    options: &Options<'_>,
    ledger: &Ledger,
) -> String {
    let nodes = nodes(plan, options, ledger);
    let mut services = services(plan, &nodes, ledger);
    if services.is_empty() && inputs.haproxy.is_none() {
        services.extend(only_services(plan, &nodes, ledger));
    }
    if services.is_empty() {
        let what = "the inputs do not tell what listens behind the VIP: write a [[service]]";
        ledger.derived(Fate::ByHand(what.to_owned()));
    }
    let candidates = services
        .iter()
        .map(OneService::candidate)
        .collect::<Vec<_>>();
    let is_own = |backend: SocketAddr| nodes.own.contains(&backend.ip());
    let tracks = tracks::tracks(plan, &candidates, &is_own, ledger);
    let mut document = Document::default();
    document.head(&head(inputs));
    document.push(&node(plan, &nodes, options), ledger);
    for (name, addresses) in &nodes.peers {
        document.push(&peer(name, addresses), ledger);
    }
    for (instance, track) in plan.instances.iter().zip(&tracks.keys) {
        let mut section = vrrp(instance, &nodes, ledger);
        section.keys(track.clone());
        document.push(&section, ledger);
        notify(&mut document, "[vrrp.notify]", &instance.notify, ledger);
    }
    groups(&mut document, plan, ledger);
    for section in &tracks.sections {
        document.push(section, ledger);
    }
    for service in &services {
        push_service(&mut document, service, ledger);
    }
    document.into_text()
}

/// The programs of an instance or a group, if it has any.
fn notify(document: &mut Document, header: &'static str, keys: &[Key], ledger: &Ledger) {
    if keys.is_empty() {
        return;
    }
    let mut section = Section::new(header);
    section.keys(keys.iter().cloned());
    document.push(&section, ledger);
}

/// Groups of imported instances; those of others are no error, but nothing to write.
fn groups(document: &mut Document, plan: &Plan, ledger: &Ledger) {
    for group in &plan.groups {
        let member = Key::text("sync_group", &group.name, &[]);
        let mut keys = plan.instances.iter().flat_map(|instance| &instance.keys);
        if keys.any(|key| key.says_same(&member)) {
            let mut section = Section::new("[[sync_group]]");
            section.key(group.key.clone());
            document.push(&section, ledger);
            notify(document, "[sync_group.notify]", &group.notify, ledger);
        }
    }
    let is_told = plan.groups.iter().any(|group| !group.notify.is_empty())
        || plan
            .instances
            .iter()
            .any(|instance| !instance.notify.is_empty());
    if is_told {
        ledger.derived(Fate::NoEquivalent(
            "programs of notify run one after the other, each for 30s at most: write notify.timeout for one that \
             takes longer"
                .to_owned(),
        ));
    }
}

fn head(inputs: &Inputs) -> Vec<String> {
    let inputs = [
        &inputs.keepalived,
        &inputs.haproxy,
        &inputs.check_script,
        &inputs.env,
    ];
    let names: Vec<_> = inputs
        .into_iter()
        .flatten()
        .map(|input| base_name(&input.name))
        .collect();
    vec![
        format!("Made by `xvip import` of {}.", names.join(", ")),
        "Services and their backends must be the same on every node; name, priority, unicast_* and"
            .to_owned(),
        "the list of peers are this node's own.".to_owned(),
    ]
}

/// All servers of all services.
fn servers(plan: &Plan) -> impl Iterator<Item = &Server> {
    plan.services.iter().flat_map(|service| &service.servers)
}

fn nodes(plan: &Plan, options: &Options<'_>, ledger: &Ledger) -> Nodes {
    let vips: BTreeSet<_> = vips(plan).into_iter().collect();
    let nets: Vec<_> = plan
        .instances
        .iter()
        .flat_map(|instance| &instance.addresses)
        .collect();
    let mut own: Vec<IpAddr> = plan.own.clone();
    own.extend(&options.addresses);
    let mut seen = BTreeSet::new();
    own.retain(|address| !vips.contains(address) && seen.insert(*address));
    // First those that share a network with a VIP; others are of bridges and overlays.
    own.sort_by_key(|address| {
        !plan.own.contains(address) && !nets.iter().any(|(net, _)| net.contains(address))
    });
    let own_server = servers(plan)
        .find(|server| matches!(server.host, Host::Address(address) if own.contains(&address)));
    let name = options
        .node
        .clone()
        .or_else(|| Some(own_server?.name.clone()));
    if let (None, Some(name)) = (&options.node, &name) {
        ledger.derived(Fate::Mapped(format!(
            "node.name = {name:?}: the server at this node's address"
        )));
    }
    let mut nodes = Nodes {
        name,
        own,
        peers: Vec::new(),
    };
    nodes.peers = peers(plan, &nodes, own_server.is_some(), options, ledger);
    let own_name = nodes
        .name
        .clone()
        .unwrap_or_else(|| options.config_id.clone());
    nodes.peers.retain(|(name, _)| *name != own_name);
    nodes
}

/// The other nodes: as given, else keepalived's unicast peers, else the other servers where this
/// node is a server itself.
fn peers(
    plan: &Plan,
    nodes: &Nodes,
    is_server: bool,
    options: &Options<'_>,
    ledger: &Ledger,
) -> Vec<(String, Vec<IpAddr>)> {
    if !options.peers.is_empty() {
        return grouped(options.peers.iter().map(|(name, ip)| (name.clone(), *ip)));
    }
    let unicast: BTreeSet<_> = plan
        .instances
        .iter()
        .flat_map(|instance| &instance.peers)
        .collect();
    let name_of = |address: IpAddr| {
        let server = servers(plan).find(|server| server.host == Host::Address(address));
        server.map_or_else(|| address.to_string(), |server| server.name.clone())
    };
    if !unicast.is_empty() {
        let addresses = unicast.iter().map(|(address, _)| *address);
        let others = addresses.filter(|address| !nodes.own.contains(address));
        let peers = grouped(others.map(|address| (name_of(address), address)));
        for (name, addresses) in &peers {
            ledger.derived(Fate::Mapped(format!(
                "[[peer]] {name:?} at {}: a unicast peer of keepalived",
                spelled(addresses)
            )));
        }
        return peers;
    }
    if is_server {
        // Those beside this node; servers of other services are other machines.
        let is_own = |server: &Server| matches!(server.host, Host::Address(address) if nodes.own.contains(&address));
        let alike = plan
            .services
            .iter()
            .filter(|service| service.servers.iter().any(is_own));
        let alike: Vec<_> = alike.flat_map(|service| &service.servers).collect();
        for server in &alike {
            if let Host::Name(host) = &server.host {
                ledger.derived(Fate::ByHand(format!(
                    "server {:?} is named by {host}: if it runs xvip like this node, write a [[peer]] with its \
                     address",
                    server.name
                )));
            }
        }
        let others = alike.iter().filter_map(|server| match server.host {
            Host::Address(address) if !nodes.own.contains(&address) => {
                Some((server.name.clone(), address))
            }
            _ => None,
        });
        let peers = grouped(others);
        for (name, addresses) in &peers {
            ledger.derived(Fate::ByHand(format!(
                "[[peer]] {name:?} at {}: taken to run xvip like this node, which is a server as well; \
                 remove it if it will not",
                spelled(addresses)
            )));
        }
        return peers;
    }
    if !plan.instances.is_empty() {
        ledger.derived(Fate::ByHand(
            "the inputs do not tell which other nodes will run xvip: write a [[peer]] for each, or give them \
             with --peer NAME=ADDRESS"
                .to_owned(),
        ));
    }
    Vec::new()
}

/// Addresses by name, each once.
fn grouped(peers: impl Iterator<Item = (String, IpAddr)>) -> Vec<(String, Vec<IpAddr>)> {
    let mut grouped: Vec<(String, Vec<IpAddr>)> = Vec::new();
    let mut seen = BTreeSet::new();
    for (name, address) in peers {
        if !seen.insert(address) {
            continue;
        }
        match grouped.iter_mut().find(|(other, _)| *other == name) {
            Some((_, addresses)) => addresses.push(address),
            None => grouped.push((name, vec![address])),
        }
    }
    grouped
}

fn spelled(addresses: &[IpAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    addresses.join(", ")
}

fn node(plan: &Plan, nodes: &Nodes, options: &Options<'_>) -> Section {
    let mut section = Section::new("[node]");
    match &nodes.name {
        Some(name) => section.key(Key::text("name", name, &[])),
        None => section.comment("name is the host name"),
    }
    let used = plan
        .instances
        .iter()
        .filter_map(|instance| instance.interface.clone());
    let mut interfaces: Vec<String> = Vec::new();
    for interface in used.chain(options.interfaces.iter().cloned()) {
        if !interfaces.contains(&interface) {
            interfaces.push(interface);
        }
    }
    section.comment(
        "interfaces are the ones that carry VRRP; add those that lead to clients and backends",
    );
    let names: Vec<_> = interfaces
        .iter()
        .map(|name| super::document::quoted(name))
        .collect();
    section.key(Key::new(
        "interfaces",
        format!("[{}]", names.join(", ")),
        &[],
    ));
    section.keys(plan.node.iter().cloned());
    section
}

fn peer(name: &str, addresses: &[IpAddr]) -> Section {
    let mut section = Section::new("[[peer]]");
    section.key(Key::text("name", name, &[]));
    match addresses {
        [address] => section.key(Key::text("address", &address.to_string(), &[])),
        several => {
            let names: Vec<_> = several.iter().map(|ip| format!("\"{ip}\"")).collect();
            section.key(Key::new(
                "addresses",
                format!("[{}]", names.join(", ")),
                &[],
            ));
        }
    }
    section
}

fn vrrp(instance: &Instance, nodes: &Nodes, ledger: &Ledger) -> Section {
    let mut section = Section::new("[[vrrp]]");
    for comment in &instance.comments {
        section.comment(comment);
    }
    section.keys(instance.keys.iter().cloned());
    let addresses = instance
        .addresses
        .iter()
        .map(|(net, words)| (net.to_string(), words.clone()));
    section.key(Key::list("addresses", addresses.collect()));
    // One list may serve all nodes.
    let is_own = |(ip, _): &&(IpAddr, Vec<WordId>)| nodes.own.contains(ip);
    let (own, others): (Vec<_>, Vec<_>) = instance.peers.iter().partition(is_own);
    for (_, words) in own {
        ledger.none(words, "it is this node's own address");
    }
    if !others.is_empty() {
        let peers = others
            .iter()
            .map(|(ip, words)| (ip.to_string(), words.clone()));
        section.key(Key::list("unicast_peers", peers.collect()));
    }
    section
}

/// Every virtual address, in its order.
fn vips(plan: &Plan) -> Vec<IpAddr> {
    let nets = plan
        .instances
        .iter()
        .flat_map(|instance| &instance.addresses);
    let mut vips: Vec<IpAddr> = nets.map(|(net, _)| net.addr()).collect();
    let mut seen = BTreeSet::new();
    vips.retain(|vip| seen.insert(*vip));
    vips
}

/// A service for one VIP.
struct OneService {
    title: String,
    port: u16,
    addresses: Vec<SocketAddr>,
    name: Key,
    keys: Vec<Key>,
    health: Vec<Key>,
    backends: Vec<Vec<Key>>,
    comments: Vec<String>,
}

impl OneService {
    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            name: &self.title,
            port: self.port,
            backends: &self.addresses,
        }
    }
}

/// The services of the plan, one for every VIP and port.
fn services(plan: &Plan, nodes: &Nodes, ledger: &Ledger) -> Vec<OneService> {
    let vips = vips(plan);
    let mut made = Vec::new();
    let mut names = BTreeSet::new();
    let mut endpoints = BTreeSet::new();
    let mut replies = Replies::default();
    for service in &plan.services {
        recognise(service, ledger);
        let mut families = BTreeSet::new();
        for bind in &service.binds {
            let matching: Vec<IpAddr> = match &bind.listen {
                Listen::Any { v4, v6 } => {
                    let fits = |vip: &&IpAddr| if vip.is_ipv4() { *v4 } else { *v6 };
                    vips.iter().filter(fits).copied().collect()
                }
                Listen::At(address) => vec![*address],
            };
            if matching.is_empty() {
                let what = "no VIP of this family is known: give keepalived.conf, or write the [[service]] by hand";
                ledger.by_hand(&bind.words, what);
            }
            if let Listen::At(address) = bind.listen
                && !vips.is_empty()
                && nodes.own.contains(&address)
            {
                let what = "not imported: it is an address of this node, which no other one takes over; if it is a VIP, \
                            write it into vrrp.addresses, and a [[service]]";
                ledger.by_hand(&bind.words, what);
                continue;
            }
            if let Listen::At(address) = bind.listen
                && !vips.contains(&address)
            {
                let what = "no [[vrrp]] has this address, so no node will own it: add it to vrrp.addresses";
                ledger.by_hand(&bind.words, what);
            }
            for vip in matching {
                families.insert(vip.is_ipv4());
                // keepalived's and haproxy's words for the same thing would be refused.
                if !endpoints.insert((vip, bind.port, service.keys.iter().any(is_udp))) {
                    let what = format!("a service at {vip} port {} is there already", bind.port);
                    ledger.by_hand(&bind.words, what);
                    continue;
                }
                let name = unique(&service.name, vip, &mut names);
                let port = bind.port;
                let Some(one) = one(service, &name, vip, port, &bind.words, nodes, ledger) else {
                    names.remove(&name);
                    continue;
                };
                let is_udp = service.keys.iter().any(is_udp);
                match replies.add(vip, is_udp, &one) {
                    Ok(()) => made.push(one),
                    Err(what) => ledger.by_hand(&bind.words, what),
                }
            }
        }
        strangers(service, &families, ledger);
    }
    made
}

/// Servers that a proxy may connect to, and a packet cannot reach: a service has VIPs, but none of their
/// family.
fn strangers(service: &Service, families: &BTreeSet<bool>, ledger: &Ledger) {
    for server in &service.servers {
        let v4 = match server.host {
            Host::Address(address) => address.is_ipv4(),
            Host::ThisNode { v4 } => v4,
            Host::Name(_) => continue,
        };
        if !families.is_empty() && !families.contains(&v4) {
            let words = [server.name_words.clone(), server.words.clone()].concat();
            let what = "no VIP of the service is of its family, and xvip does not translate: give the server's other address";
            ledger.by_hand(&words, what);
        }
    }
}

/// Words of a service have a meaning, also where no VIP is for it.
fn recognise(service: &Service, ledger: &Ledger) {
    ledger.recognise(&service.words);
    for key in service.keys.iter().chain(&service.health) {
        ledger.recognise(&key.words());
    }
    for server in &service.servers {
        ledger.recognise(&server.name_words);
        ledger.recognise(&server.words);
        for key in &server.keys {
            ledger.recognise(&key.words());
        }
    }
    for bind in &service.binds {
        ledger.recognise(&bind.words);
    }
}

/// Which port of a VIP clients connected to, as a backend's reply from VIP:backend port tells:
/// there can be one only.
#[derive(Default)]
struct Replies {
    /// The client's port, by VIP, whether UDP, and the port of a backend.
    of: BTreeMap<(IpAddr, bool, u16), u16>,
    /// Where clients connect to.
    endpoints: BTreeSet<(IpAddr, bool, u16)>,
}

impl Replies {
    /// Adds those of a service, or says why they would be ambiguous.
    fn add(&mut self, vip: IpAddr, udp: bool, service: &OneService) -> Result<(), String> {
        let own = service.port;
        let ports: BTreeSet<_> = service.addresses.iter().map(SocketAddr::port).collect();
        let other = |port: u16| {
            let of = self.of.get(&(vip, udp, port)).copied();
            of.filter(|other| *other != own)
        };
        let taken = ports.iter().find_map(|&port| {
            let served = port != own && self.endpoints.contains(&(vip, udp, port));
            other(port).or(served.then_some(port))
        });
        if let Some(taken) = taken.or_else(|| other(own)) {
            return Err(format!(
                "replies of its backends could not be told from those to port {taken} of {vip}: let its clients \
                 use port {taken}, or give it another VIP"
            ));
        }
        self.endpoints.insert((vip, udp, own));
        let of = ports.into_iter().map(|port| ((vip, udp, port), own));
        self.of.extend(of);
        Ok(())
    }
}

fn is_udp(key: &Key) -> bool {
    key.says_same(&Key::text("protocol", "udp", &[]))
}

/// A name that no other service has.
fn unique(name: &str, vip: IpAddr, names: &mut BTreeSet<String>) -> String {
    let short: String = name.chars().take(50).collect();
    let of_family = vip.is_ipv6().then(|| format!("{short}-v6"));
    let numbered = (2_usize..).map(|number| format!("{short}-{number}"));
    let mut all = std::iter::once(name.to_owned())
        .chain(of_family)
        .chain(numbered);
    all.find(|candidate| names.insert(candidate.clone()))
        .unwrap_or(short)
}

/// The service at one VIP; `None` if it has no backend of the VIP's family.
fn one(
    service: &Service,
    name: &str,
    vip: IpAddr,
    port: u16,
    bind: &[WordId],
    nodes: &Nodes,
    ledger: &Ledger,
) -> Option<OneService> {
    let mut seen = Vec::new();
    let (addresses, backends): (Vec<_>, Vec<_>) = service
        .servers
        .iter()
        .filter_map(|server| {
            let (address, keys) = backend(server, vip, port, nodes, ledger)?;
            let endpoint = keys.iter().find(|key| key.name() == "address");
            if endpoint.is_some_and(|key| seen.iter().any(|other: &Key| other.says_same(key))) {
                let words = [server.name_words.clone(), server.words.clone()].concat();
                let what = "another server of the service has this address, and xvip takes it once: weight gives it more \
                            connections";
                ledger.by_hand(&words, what);
                return None;
            }
            seen.extend(endpoint.cloned());
            Some((address, keys))
        })
        .unzip();
    if backends.is_empty() {
        let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
        let what = format!("no backend is {family} like the VIP {vip}: no service is made for it");
        ledger.by_hand(bind, what);
        return None;
    }
    let mut keys = vec![
        Key::text("address", &vip.to_string(), bind),
        Key::new("port", port.to_string(), bind),
    ];
    keys.extend(service.keys.iter().cloned());
    keys.extend(sources(&service.sources, vip, ledger));
    let mut health = service.health.clone();
    if service.keys.iter().any(is_udp) && health.first().is_some_and(|key| key.name() == "type") {
        // Questions to a UDP service go to a TCP port that nobody named.
        let needs_port = !health.iter().any(|key| key.name() == "port");
        let is_none = health
            .first()
            .is_some_and(|key| key.says_same(&Key::text("type", "none", &[])));
        if needs_port && !is_none {
            for key in &health {
                let what = "UDP cannot be asked: write type and the TCP port of a check into [service.health]";
                ledger.by_hand(&key.words(), what);
            }
            health = vec![Key::text("type", "none", &[])];
        }
    }
    Some(OneService {
        title: name.to_owned(),
        port,
        addresses,
        name: Key::text("name", name, &service.words),
        keys,
        health,
        backends,
        comments: service.comments.clone(),
    })
}

/// `allow` and `deny`, of the VIP's family.
fn sources(rules: &[SourceRule], vip: IpAddr, ledger: &Ledger) -> Vec<Key> {
    let (own, other): (Vec<_>, Vec<_>) = rules
        .iter()
        .partition(|rule| rule.net.addr().is_ipv4() == vip.is_ipv4());
    for rule in other {
        ledger.recognise(&rule.words);
    }
    let list = |name: &'static str, allowed: bool| {
        let elements = own.iter().filter(|rule| rule.allowed == allowed);
        let elements = elements.map(|rule| (rule.net.to_string(), rule.words.clone()));
        let elements: Vec<_> = elements.collect();
        (!elements.is_empty()).then(|| Key::list(name, elements))
    };
    [list("allow", true), list("deny", false)]
        .into_iter()
        .flatten()
        .collect()
}

/// Keys of a backend; `None` if it is not of the VIP's family.
fn backend(
    server: &Server,
    vip: IpAddr,
    port: u16,
    nodes: &Nodes,
    ledger: &Ledger,
) -> Option<(SocketAddr, Vec<Key>)> {
    let address = match server.host {
        Host::Name(ref host) => {
            let port = server.port.unwrap_or(port);
            return Some(named_backend(server, host, port));
        }
        Host::Address(address) => address,
        Host::ThisNode { v4 } => {
            let own = nodes.own_of_family(v4);
            let what = match own {
                Some(own) => format!(
                    "it is this node itself, {own} for the others: name it so on every node, where all services have the \
                     same backends"
                ),
                None => {
                    "it is this node itself, whose address is not known: give it with --address"
                        .to_owned()
                }
            };
            ledger.by_hand(&server.words, what);
            own?
        }
    };
    if address.is_ipv4() != vip.is_ipv4() {
        ledger.recognise(&server.words);
        ledger.recognise(&server.name_words);
        return None;
    }
    let at = SocketAddr::new(address, server.port.unwrap_or(port));
    let mut keys = vec![
        Key::text("name", &server.name, &server.name_words),
        Key::text("address", &at.to_string(), &server.words),
    ];
    keys.extend(server.keys.iter().cloned());
    Some((at, keys))
}

/// The same for one by host name, whose address is not known here.
fn named_backend(server: &Server, host: &str, port: u16) -> (SocketAddr, Vec<Key>) {
    let mut keys = vec![
        Key::text("name", &server.name, &server.name_words),
        Key::text("address", &format!("{host}:{port}"), &server.words),
    ];
    keys.extend(server.keys.iter().cloned());
    (SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), keys)
}

/// Without a proxy the VIP leads to the apiserver of the node that owns it: a service for that.
fn only_services(plan: &Plan, nodes: &Nodes, ledger: &Ledger) -> Vec<OneService> {
    let made = plan
        .local_check
        .as_ref()
        .map(|check| only_service(check, plan, nodes));
    let made = made.unwrap_or_default();
    if !made.is_empty() {
        let what = "the VIP led to the apiserver of its owner; the [[service]] leads to that of every node \
                    that is known: see that none is missing";
        ledger.derived(Fate::ByHand(what.to_owned()));
    }
    made
}

fn only_service(check: &LocalCheck, plan: &Plan, nodes: &Nodes) -> Vec<OneService> {
    let own: Vec<_> = [true, false]
        .into_iter()
        .filter_map(|v4| nodes.own_of_family(v4))
        .collect();
    let name = nodes.name.clone().unwrap_or_else(|| "this-node".to_owned());
    let made = vips(plan)
        .into_iter()
        .enumerate()
        .filter_map(|(number, vip)| {
            let alike = |address: &&IpAddr| address.is_ipv4() == vip.is_ipv4();
            let mut backends = Vec::new();
            let mut endpoints = Vec::new();
            let of_peers = nodes
                .peers
                .iter()
                .map(|(name, addresses)| (name, addresses));
            for (name, addresses) in std::iter::once((&name, &own)).chain(of_peers) {
                if let Some(address) = addresses.iter().find(alike) {
                    let at = SocketAddr::new(*address, check.port);
                    endpoints.push(at);
                    backends.push(vec![
                        Key::text("name", name, &[]),
                        Key::text("address", &at.to_string(), &check.words),
                    ]);
                }
            }
            let name = match number {
                0 => ONLY_SERVICE.to_owned(),
                _ => format!("{ONLY_SERVICE}-{}", number + 1),
            };
            (!backends.is_empty()).then(|| OneService {
                title: name.clone(),
                port: check.port,
                addresses: endpoints,
                name: Key::text("name", &name, &[]),
                keys: vec![
                    Key::text("address", &vip.to_string(), &[]),
                    Key::new("port", check.port.to_string(), &check.words),
                ],
                health: vec![
                    Key::text(
                        "type",
                        if check.tls { "https" } else { "http" },
                        &check.words,
                    ),
                    Key::text("path", &check.path, &check.words),
                ],
                backends,
                comments: vec!["The apiserver that the check script asks.".to_owned()],
            })
        });
    made.collect()
}

fn push_service(document: &mut Document, service: &OneService, ledger: &Ledger) {
    let mut section = Section::new("[[service]]");
    for comment in &service.comments {
        section.comment(comment);
    }
    section.key(service.name.clone());
    section.keys(service.keys.iter().cloned());
    document.push(&section, ledger);
    let mut health = Section::new("[service.health]");
    health.keys(service.health.iter().cloned());
    document.push(&health, ledger);
    for keys in &service.backends {
        let mut backend = Section::new("[[service.backend]]");
        backend.keys(keys.iter().cloned());
        document.push(&backend, ledger);
    }
}
