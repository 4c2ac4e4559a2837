//! Where the programs go: from configuration and interfaces to what is attached where, and the
//! ways to attach it in their order.
//!
//! The kernel decides whether a driver takes an XDP program, so a plan holds every way that may
//! be tried. What came of it comes back as [`Attachment`]s, and with them the data plane's idea
//! of an uplink: XDP sees a VLAN's frames on the interface that carries it, with their tags; tc
//! sees them on the sub-interface, without. XDP in the driver sees a bond's frames on its ports.

use std::collections::{BTreeMap, BTreeSet};

use super::network::{Interface, LinkKind, Network, Port};
use crate::config::model::{AttachMode, Config};

/// How the ingress program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// XDP in the driver.
    Native,
    /// `tc_ingress`, after the packet became a socket buffer.
    Tc,
    /// XDP in the network stack.
    Generic,
}

impl Mode {
    const fn words(self) -> &'static str {
        match self {
            Self::Native => "native XDP",
            Self::Tc => "tc",
            Self::Generic => "generic XDP",
        }
    }
}

/// An uplink that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its configured name.
    pub interface: String,
    /// Its index; tc programs are attached to it.
    pub ifindex: u32,
    /// Where its frames are on the wire; XDP programs are attached there.
    pub port: Port,
    /// Ports of the bond that carries its frames: native XDP, attached to the bond, runs in their
    /// drivers and sees the frames there.
    pub bond_ports: Vec<u32>,
}

/// Uplinks whose frames come in through one interface, and so in one mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Index of that interface.
    pub carrier: u32,
    /// Its name.
    pub name: String,
    /// The uplinks, in configuration order; at least one.
    pub places: Vec<Place>,
    /// Modes to be tried, the best one first; empty: none will do.
    pub modes: Vec<Mode>,
    /// Why better modes are not among them.
    pub passed_over: Vec<String>,
}

impl Plan {
    /// Why `mode` is used, if it is not the best one. `refused` are the modes that were tried, with
    /// what the kernel said.
    pub fn note(&self, mode: Mode, refused: &[(Mode, String)]) -> Option<String> {
        let reasons = self.reasons(refused);
        let used = match mode {
            Mode::Native => return None,
            Mode::Tc => "tc is used",
            Mode::Generic => "packets take the slower generic path",
        };
        (!reasons.is_empty()).then(|| format!("{reasons}, so {used}"))
    }

    /// Why there is no mode that works. `former` is that of the plan before, which goes on.
    pub fn failure(&self, former: Option<Mode>, refused: &[(Mode, String)]) -> String {
        let reasons = self.reasons(refused);
        match former {
            Some(mode) => format!("{reasons}, so {} goes on", mode.words()),
            None => reasons,
        }
    }

    fn reasons(&self, refused: &[(Mode, String)]) -> String {
        let refused = refused
            .iter()
            .map(|(mode, why)| format!("{} was refused ({why})", mode.words()));
        let all: Vec<_> = self.passed_over.iter().cloned().chain(refused).collect();
        all.join("; ")
    }
}

/// What became of an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The uplink.
    pub place: Place,
    /// Mode in force; `None`: it carries no ingress program.
    pub mode: Option<Mode>,
    /// Why it is not the best one, or why there is none, in words.
    pub note: Option<String>,
}

impl Attachment {
    /// Where the ingress program sees the uplink's frames.
    fn seen_at(&self) -> Option<Port> {
        Some(match self.mode? {
            Mode::Tc => Port::untagged(self.place.ifindex),
            Mode::Native | Mode::Generic => self.place.port,
        })
    }

    /// Where else it sees them.
    fn also_seen_at(&self) -> impl Iterator<Item = Port> {
        let native = self.mode == Some(Mode::Native);
        let ports = self.place.bond_ports.iter().filter(move |_| native);
        ports.map(|&ifindex| Port {
            ifindex,
            ..self.place.port
        })
    }
}

/// What is to be attached where: every uplink that is there and has an Ethernet address.
pub fn plans(config: &Config, network: &Network) -> Vec<Plan> {
    let mut plans: Vec<Plan> = Vec::new();
    for name in &config.node.interfaces {
        let Some(interface) = network.interface(name).filter(|found| found.mac.is_some()) else {
            continue;
        };
        let port = network.port(interface.ifindex);
        let port = port.unwrap_or(Port::untagged(interface.ifindex));
        let bond_ports = network.bond_ports(port.ifindex);
        let place = Place {
            interface: name.clone(),
            ifindex: interface.ifindex,
            port,
            bond_ports: bond_ports.map(|own| own.ifindex).collect(),
        };
        let carrier = place.port.ifindex;
        match plans.iter_mut().find(|plan| plan.carrier == carrier) {
            Some(plan) => plan.places.push(place),
            None => plans.push(Plan {
                carrier,
                name: network.name(carrier).unwrap_or(name).to_owned(),
                places: vec![place],
                modes: vec![],
                passed_over: vec![],
            }),
        }
    }
    for plan in &mut plans {
        (plan.modes, plan.passed_over) = modes(config, plan, network);
    }
    plans
}

/// The modes to be tried, and why others are not.
fn modes(config: &Config, plan: &Plan, network: &Network) -> (Vec<Mode>, Vec<String>) {
    let (wanted, carrier) = (config.node.attach, network.at(plan.carrier));
    if let Some(why) = blind(plan, network) {
        return match wanted {
            AttachMode::Auto | AttachMode::Tc => (vec![Mode::Tc], vec![why]),
            AttachMode::Native | AttachMode::Generic => (vec![], vec![why]),
        };
    }
    if let Some(place) = plan.places.iter().find(|place| is_deep(place, carrier)) {
        let why = format!(
            "{} has more than two VLAN tags, which XDP programs do not read",
            place.interface
        );
        return match wanted {
            AttachMode::Auto | AttachMode::Tc => (vec![Mode::Tc], vec![why]),
            AttachMode::Native | AttachMode::Generic => (vec![], vec![why]),
        };
    }
    let generic = blind_above(plan, carrier).map_or(Ok(Mode::Generic), Err);
    match wanted {
        AttachMode::Auto => {
            let others = [Mode::Tc].into_iter().chain(generic.ok());
            match unsuited(plan, network) {
                Some(why) => (others.collect(), vec![why]),
                None => ([Mode::Native].into_iter().chain(others).collect(), vec![]),
            }
        }
        AttachMode::Native => match undeliverable(config, plan, carrier) {
            Some(why) => (vec![], vec![why]),
            None => (vec![Mode::Native], vec![]),
        },
        AttachMode::Tc => (vec![Mode::Tc], vec![]),
        AttachMode::Generic => match generic {
            Ok(mode) => (vec![mode], vec![]),
            Err(why) => (vec![], vec![why]),
        },
    }
}

/// Why native XDP will not do on a carrier, whatever the kernel says.
fn unsuited(plan: &Plan, network: &Network) -> Option<String> {
    let (name, carrier) = (&plan.name, network.at(plan.carrier)?);
    let mut drivers = network.bond_ports(plan.carrier).chain([carrier]);
    if let Some(veth) = drivers.find(|driver| driver.kind == LinkKind::Veth) {
        return Some(format!(
            "{} is one end of a veth pair, and the other end need not take what XDP sends",
            veth.name
        ));
    }
    match carrier.kind {
        LinkKind::Bridge => Some(format!("{name} is a bridge, which has no native XDP")),
        // The data plane keeps the port that a client's last packet came in by.
        LinkKind::Bond => Some(format!(
            "{name} is a bond, and answers by nat, which native XDP sends out of one port, do not \
             change to another when that one fails"
        )),
        LinkKind::Other | LinkKind::Veth | LinkKind::Vlan(_) => None,
    }
}

/// Why frames for a virtual MAC would not reach the kernel's stack: a veth pair looks at the MAC of a
/// frame before its native XDP program, and at the new one only to find more to refuse
/// (`veth_xdp_rcv_skb` of Linux 6.18).
fn undeliverable(config: &Config, plan: &Plan, carrier: Option<&Interface>) -> Option<String> {
    let vmac = |name: &str| {
        let mut instances = config.vrrp.iter();
        instances.any(|vrrp| vrrp.use_vmac && vrrp.interface == name)
    };
    let used = plan.places.iter().any(|place| vmac(&place.interface));
    (used && carrier?.kind == LinkKind::Veth).then(|| {
        let name = &plan.name;
        format!(
            "{name} is one end of a veth pair, which drops frames for a virtual MAC (vrrp.use_vmac) \
             behind native XDP"
        )
    })
}

/// The plans where carriers work together: native XDP cannot send a packet out of an interface
/// without it. `refused` are carriers whose driver has none. Where a better mode was asked for by
/// name, it stays.
pub fn even_out(plans: &[Plan], refused: &BTreeSet<u32>) -> Vec<Plan> {
    let lacks = |plan: &&Plan| {
        !plan.modes.is_empty()
            && (refused.contains(&plan.carrier) || !plan.modes.contains(&Mode::Native))
    };
    let Some(lacking) = plans.iter().find(lacks) else {
        return plans.to_vec();
    };
    let mut plans = plans.to_vec();
    for plan in &mut plans {
        let choice = plan.modes.len() > 1 && plan.modes.contains(&Mode::Native);
        if choice && !refused.contains(&plan.carrier) {
            plan.modes.retain(|mode| *mode != Mode::Native);
            plan.passed_over.push(format!(
                "native XDP cannot send packets out of {}, which has none",
                lacking.name
            ));
        }
    }
    plans
}

/// The first VLAN of a plan.
fn tagged(plan: &Plan) -> Option<&str> {
    let mut tagged = plan.places.iter().filter(|place| place.port.tags != 0);
    Some(&tagged.next()?.interface)
}

/// Why XDP cannot tell a VLAN's frames from others: the hardware of its carrier, or of one of a bond's
/// ports, takes the tags out. The bond itself has no hardware, whatever it says.
fn blind(plan: &Plan, network: &Network) -> Option<String> {
    let vlan = tagged(plan)?;
    let carrier = network.at(plan.carrier);
    let mut hardware: Vec<_> = network.bond_ports(plan.carrier).collect();
    hardware.extend(carrier.filter(|found| found.kind != LinkKind::Bond));
    let mut found = hardware
        .iter()
        .filter_map(|own| Some((&own.name, own.strips_tags?)));
    let (name, feature) = found.next()?;
    Some(format!(
        "{name} takes VLAN tags out of the frames in hardware, so XDP cannot tell those of {vlan} \
         (ethtool -K {name} {feature} off)"
    ))
}

/// Why generic XDP cannot tell them: what reaches a bond or a bridge has passed one of its ports in the
/// network stack, which took the outer tag out of the frame there (`__netif_receive_skb_core`).
fn blind_above(plan: &Plan, carrier: Option<&Interface>) -> Option<String> {
    let (name, vlan) = (&plan.name, tagged(plan)?);
    let kind = match carrier?.kind {
        LinkKind::Bond => "bond",
        LinkKind::Bridge => "bridge",
        LinkKind::Other | LinkKind::Veth | LinkKind::Vlan(_) => return None,
    };
    Some(format!(
        "{name} is a {kind}, whose frames have lost their VLAN tags before generic XDP, which cannot \
         tell those of {vlan}"
    ))
}

/// A VLAN that counts as its own carrier, because its tags do not fit.
fn is_deep(place: &Place, carrier: Option<&Interface>) -> bool {
    let vlan = carrier.is_some_and(|found| matches!(found.kind, LinkKind::Vlan(_)));
    vlan && place.port.ifindex == place.ifindex
}

/// The uplinks as the data plane knows them: those that carry an ingress program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    ports: BTreeMap<u32, Port>,
    /// Ports of bonds, with the uplink's index.
    of_bonds: BTreeSet<(u32, Port)>,
}

impl Uplinks {
    /// Those of `attachments`.
    pub fn new(attachments: &[Attachment]) -> Self {
        let ports = attachments
            .iter()
            .filter_map(|own| Some((own.place.ifindex, own.seen_at()?)));
        let of_bonds = attachments.iter().flat_map(|own| {
            let ports = own.also_seen_at();
            ports.map(|port| (own.place.ifindex, port))
        });
        Self {
            ports: ports.collect(),
            of_bonds: of_bonds.collect(),
        }
    }

    /// Where the programs see the frames of interface `ifindex`, and where they leave for it;
    /// `None`: it is no uplink, or carries no program.
    pub fn port(&self, ifindex: u32) -> Option<Port> {
        self.ports.get(&ifindex).copied()
    }

    /// Each uplink's interface index and port; where programs see a bond's frames, each of them.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Port)> {
        let ports = self.ports.iter().map(|(ifindex, port)| (*ifindex, *port));
        ports.chain(self.of_bonds.iter().copied())
    }
}

/// Configured uplinks that are not there, or have no Ethernet address.
pub fn missing<'a>(config: &'a Config, plans: &[Plan]) -> Vec<&'a str> {
    let there = |name: &str| {
        let mut places = plans.iter().flat_map(|plan| &plan.places);
        places.any(|place| place.interface == name)
    };
    let names = config.node.interfaces.iter().map(String::as_str);
    names.filter(|name| !there(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        fixture::{self, ETH0},
        network::Vlan,
    };

    fn link(ifindex: u32, name: &str, kind: LinkKind) -> Interface {
        Interface {
            ifindex,
            name: name.to_owned(),
            mac: Some(fixture::mac(u8::try_from(ifindex).unwrap())),
            up: true,
            kind,
            strips_tags: None,
            master: None,
        }
    }

    fn vlan(parent: u32, id: u16) -> LinkKind {
        LinkKind::Vlan(Vlan {
            parent,
            id,
            is_service_tag: false,
        })
    }

    fn network(links: &[Interface]) -> Network {
        let mut network = Network::default();
        network.set_links(links.to_vec(), []);
        network
    }

    fn config(interfaces: &[&str], attach: AttachMode) -> Config {
        let mut config = fixture::config(10, "");
        config.node.interfaces = interfaces.iter().map(|&name| name.to_owned()).collect();
        config.node.attach = attach;
        config
    }

    const ALL: [Mode; 3] = [Mode::Native, Mode::Tc, Mode::Generic];

    /// A network card: every mode, and no word about the best one.
    #[test]
    fn auto_tries_all_modes() {
        let network = network(&[link(ETH0, "eth0", LinkKind::Other)]);
        let plans = plans(&config(&["eth0"], AttachMode::Auto), &network);
        assert_eq!((plans[0].carrier, &plans[0].modes[..]), (ETH0, &ALL[..]));
        assert_eq!(plans[0].note(Mode::Native, &[]), None);
        let refused = [(Mode::Native, "Operation not supported".to_owned())];
        assert_eq!(
            plans[0].note(Mode::Tc, &refused).unwrap(),
            "native XDP was refused (Operation not supported), so tc is used"
        );
    }

    /// Native XDP on a veth pair cannot hand on what is sent to a virtual MAC; a card's can.
    #[test]
    fn virtual_macs_need_another_mode_on_veth() {
        let native = |kind, use_vmac| {
            let mut config = config(&["eth0"], AttachMode::Native);
            config.vrrp[0].use_vmac = use_vmac;
            let plans = plans(&config, &network(&[link(ETH0, "eth0", kind)]));
            plans[0].modes.clone()
        };
        assert_eq!(native(LinkKind::Veth, false), [Mode::Native]);
        assert_eq!(native(LinkKind::Veth, true), []);
        assert_eq!(native(LinkKind::Other, true), [Mode::Native]);
    }

    /// What is asked for is what is tried, and needs no excuse.
    #[test]
    fn explicit_modes_stand_alone() {
        let network = network(&[link(ETH0, "br0", LinkKind::Bridge)]);
        for (wanted, mode) in [
            (AttachMode::Native, Mode::Native),
            (AttachMode::Tc, Mode::Tc),
            (AttachMode::Generic, Mode::Generic),
        ] {
            let plans = plans(&config(&["br0"], wanted), &network);
            assert_eq!(plans[0].modes, [mode]);
            assert_eq!(plans[0].note(mode, &[]), None);
        }
    }

    /// A bridge is not asked for what it cannot have.
    #[test]
    fn bridges_go_by_tc() {
        let network = network(&[link(ETH0, "br0", LinkKind::Bridge)]);
        let plans = plans(&config(&["br0"], AttachMode::Auto), &network);
        assert_eq!(plans[0].modes, [Mode::Tc, Mode::Generic]);
        assert_eq!(
            plans[0].note(Mode::Tc, &[]).unwrap(),
            "br0 is a bridge, which has no native XDP, so tc is used"
        );
    }

    /// What is sent on by XDP gets lost in a veth pair whose other end runs none.
    #[test]
    fn veth_pairs_go_by_tc() {
        let network = network(&[link(ETH0, "eth0", LinkKind::Veth)]);
        let auto = plans(&config(&["eth0"], AttachMode::Auto), &network);
        assert_eq!(auto[0].modes, [Mode::Tc, Mode::Generic]);
        assert_eq!(
            auto[0].note(Mode::Tc, &[]).unwrap(),
            "eth0 is one end of a veth pair, and the other end need not take what XDP sends, so tc \
             is used"
        );
        let native = plans(&config(&["eth0"], AttachMode::Native), &network);
        assert_eq!(native[0].modes, [Mode::Native]);
    }

    /// One card without native XDP takes it from the others, too: before it is tried where that is
    /// known, else after the driver has refused. What is asked for by name stays.
    #[test]
    fn one_without_native_xdp_takes_it_from_all() {
        let mut links = [
            link(ETH0, "eth0", LinkKind::Other),
            link(7, "eth1", LinkKind::Other),
        ];
        let modes = |plans: &[Plan]| -> Vec<Vec<Mode>> {
            plans.iter().map(|plan| plan.modes.clone()).collect()
        };
        let (two, none) = (["eth0", "eth1"], BTreeSet::new());
        let auto = plans(&config(&two, AttachMode::Auto), &network(&links));
        assert_eq!(even_out(&auto, &none), auto);
        let refused = BTreeSet::from([7]);
        let evened = even_out(&auto, &refused);
        assert_eq!(modes(&evened), [ALL[1..].to_vec(), ALL.to_vec()]);
        let note = evened[0].note(Mode::Tc, &[]).unwrap();
        assert!(note.contains("out of eth1"), "{note}");
        let native = plans(&config(&two, AttachMode::Native), &network(&links));
        assert_eq!(even_out(&native, &refused), native);
        links[0].kind = LinkKind::Bridge;
        let bridged = plans(&config(&two, AttachMode::Auto), &network(&links));
        let evened = even_out(&bridged, &none);
        assert_eq!(modes(&evened), [ALL[1..].to_vec(), ALL[1..].to_vec()]);
    }

    /// Two VLANs and their carrier itself: one attachment, three keys.
    #[test]
    fn vlans_share_their_carrier() {
        let links = [
            link(ETH0, "eth0", LinkKind::Other),
            link(5, "eth0.5", vlan(ETH0, 5)),
            link(6, "stacked", vlan(5, 66)),
            link(7, "eth1", LinkKind::Other),
        ];
        let network = network(&links);
        let config = config(&["eth0.5", "eth1", "eth0", "stacked"], AttachMode::Auto);
        let plans = plans(&config, &network);
        let carriers: Vec<_> = plans.iter().map(|plan| plan.name.as_str()).collect();
        assert_eq!(carriers, ["eth0", "eth1"]);
        let tags: Vec<_> = plans[0]
            .places
            .iter()
            .map(|place| place.port.tags)
            .collect();
        assert_eq!(tags, [5, 0, 5 | 66 << 16]);
        assert_eq!(plans[0].modes, ALL);
    }

    /// Tags that the hardware takes away cannot be told by XDP: auto uses tc, and an explicit mode
    /// fails with the mend. An untagged uplink does not care.
    #[test]
    fn stripped_tags_forbid_xdp() {
        let mut card = link(ETH0, "eth0", LinkKind::Other);
        card.strips_tags = Some("rx-vlan-hw-parse");
        let network = network(&[card, link(5, "eth0.5", vlan(ETH0, 5))]);
        let auto = plans(&config(&["eth0.5"], AttachMode::Auto), &network);
        assert_eq!(auto[0].modes, [Mode::Tc]);
        let note = auto[0].note(Mode::Tc, &[]).unwrap();
        assert!(
            note.contains("ethtool -K eth0 rx-vlan-hw-parse off"),
            "{note}"
        );
        for explicit in [AttachMode::Native, AttachMode::Generic] {
            let plans = plans(&config(&["eth0.5"], explicit), &network);
            assert!(plans[0].modes.is_empty());
            assert!(plans[0].failure(None, &[]).contains("rx-vlan-hw-parse off"));
            let goes_on = plans[0].failure(Some(Mode::Tc), &[]);
            assert!(
                goes_on.ends_with("rx-vlan-hw-parse off), so tc goes on"),
                "{goes_on}"
            );
        }
        let untagged = plans(&config(&["eth0"], AttachMode::Auto), &network);
        assert_eq!(untagged[0].modes, ALL);
    }

    fn bond_of(port: LinkKind) -> [Interface; 4] {
        let mut ports = [link(ETH0, "eth0", port), link(5, "eth1", port)];
        for port in &mut ports {
            port.master = Some(6);
        }
        let [first, second] = ports;
        let bond = link(6, "bond0", LinkKind::Bond);
        [first, second, bond, link(7, "bond0.5", vlan(6, 5))]
    }

    /// A bond's frames are its ports' to native XDP, with the bond's MAC and tags, and its own to the others.
    #[test]
    fn bonds_are_seen_at_their_ports() {
        let network = network(&bond_of(LinkKind::Other));
        let plans = plans(&config(&["bond0.5"], AttachMode::Auto), &network);
        assert_eq!((plans[0].carrier, plans[0].places.len()), (6, 1));
        let seen = |mode| {
            let (place, note) = (plans[0].places[0].clone(), None);
            let mode = Some(mode);
            Uplinks::new(&[Attachment { place, mode, note }])
                .iter()
                .map(|(uplink, port)| (uplink, port.ifindex, port.tags))
                .collect::<Vec<_>>()
        };
        let native = [(7, 6, 5), (7, ETH0, 5), (7, 5, 5)];
        assert_eq!(
            seen(Mode::Native).into_iter().collect::<BTreeSet<_>>(),
            BTreeSet::from(native)
        );
        assert_eq!(seen(Mode::Tc), [(7, 7, 0)]);
    }

    /// On a bond `auto` is tc. Native XDP can be asked for, unless a port's hardware takes tags out.
    #[test]
    fn bonds_go_by_tc_unless_asked() {
        let modes = |links: &[Interface], uplink, wanted| {
            let plan = plans(&config(&[uplink], wanted), &network(links)).remove(0);
            (plan.modes.clone(), plan.failure(None, &[]))
        };
        let cards = bond_of(LinkKind::Other);
        let (tc, why) = modes(&cards, "bond0", AttachMode::Auto);
        assert_eq!(tc, [Mode::Tc, Mode::Generic]);
        assert!(
            why.starts_with("bond0 is a bond, and answers by nat"),
            "{why}"
        );
        assert_eq!(modes(&cards, "bond0", AttachMode::Native).0, [Mode::Native]);
        let veths = bond_of(LinkKind::Veth);
        let (tc, why) = modes(&veths, "bond0", AttachMode::Auto);
        assert_eq!(tc, [Mode::Tc, Mode::Generic]);
        assert!(why.starts_with("eth0 is one end of a veth pair"), "{why}");
        assert_eq!(modes(&cards, "bond0.5", AttachMode::Auto).0, [Mode::Tc]);
        assert_eq!(
            modes(&cards, "bond0.5", AttachMode::Native).0,
            [Mode::Native]
        );
        let mut stripping = cards;
        stripping[1].strips_tags = Some("rx-vlan-hw-parse");
        let (tc, why) = modes(&stripping, "bond0.5", AttachMode::Auto);
        assert_eq!(tc, [Mode::Tc]);
        assert!(
            why.contains("ethtool -K eth1 rx-vlan-hw-parse off"),
            "{why}"
        );
    }

    /// What comes to a bond or bridge through the stack has no tags left for generic XDP.
    #[test]
    fn generic_xdp_sees_no_vlans_of_bonds_and_bridges() {
        let mut links = bond_of(LinkKind::Other);
        for (kind, word) in [(LinkKind::Bond, "bond"), (LinkKind::Bridge, "bridge")] {
            links[2].kind = kind;
            let network = network(&links);
            let generic = plans(&config(&["bond0.5"], AttachMode::Generic), &network).remove(0);
            assert!(generic.modes.is_empty());
            let why = generic.failure(None, &[]);
            assert!(why.contains(&format!("is a {word}, whose frames")), "{why}");
            let untagged = plans(&config(&["bond0"], AttachMode::Generic), &network).remove(0);
            assert_eq!(untagged.modes, [Mode::Generic]);
        }
    }

    /// Three tags do not fit: such an interface is served by tc alone.
    #[test]
    fn three_tags_go_by_tc() {
        let links = [
            link(ETH0, "eth0", LinkKind::Other),
            link(5, "a", vlan(ETH0, 5)),
            link(6, "b", vlan(5, 6)),
            link(7, "c", vlan(6, 7)),
        ];
        let plans = plans(&config(&["c"], AttachMode::Auto), &network(&links));
        assert_eq!(
            (plans[0].carrier, &plans[0].modes[..]),
            (7, &[Mode::Tc][..])
        );
    }

    /// Where the data plane sees a VLAN depends on the mode; without a program nowhere.
    #[test]
    fn modes_decide_where_frames_are_seen() {
        let place = Place {
            interface: "eth0.5".to_owned(),
            ifindex: 5,
            port: Port {
                ifindex: ETH0,
                tags: 5,
            },
            bond_ports: vec![],
        };
        let seen = |mode| {
            let (place, note) = (place.clone(), None);
            Uplinks::new(&[Attachment { place, mode, note }]).port(5)
        };
        assert_eq!(seen(Some(Mode::Native)), Some(place.port));
        assert_eq!(seen(Some(Mode::Generic)), Some(place.port));
        assert_eq!(seen(Some(Mode::Tc)), Some(Port::untagged(5)));
        assert_eq!(seen(None), None);
    }

    /// What is not there is named and not planned for; nor is what has no Ethernet address.
    #[test]
    fn missing_uplinks_are_named() {
        let mut tunnel = link(9, "tun0", LinkKind::Other);
        tunnel.mac = None;
        let network = network(&[link(ETH0, "eth0", LinkKind::Other), tunnel]);
        let config = config(&["eth1", "eth0", "tun0"], AttachMode::Auto);
        let plans = plans(&config, &network);
        assert_eq!(plans.len(), 1);
        assert_eq!(missing(&config, &plans), ["eth1", "tun0"]);
    }
}
