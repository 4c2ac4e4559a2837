//! Configuration files for the nodes of a topology that share a VIP.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::topology::Node;

/// The lab's IPv4 VIP.
pub const VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// The lab's IPv6 VIP, `fd77::100`.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);

/// Both.
pub const BOTH: [IpAddr; 2] = [IpAddr::V4(VIP4), IpAddr::V6(VIP6)];

/// For stand-ins without TLS (`--plain`) and masters that are kept busy: a VIP moves, and a backend goes
/// DOWN, only where something is dead.
pub fn be_patient(plane: &mut ControlPlane<'_>) {
    "1s".clone_into(&mut plane.advert_interval);
    "type = \"http\"\ninterval = \"1s\"\nfall = 10".clone_into(&mut plane.health);
}

/// A control plane: who takes part and how. Change fields as the scenario wants them.
#[derive(Clone, Debug)]
pub struct ControlPlane<'a> {
    /// Nodes with xvip; the first has the highest priority (200, then 190, ...).
    pub masters: Vec<&'a Node>,
    /// Nodes with an apiserver. One that is no master runs no xvip: it is reached by nat. Without
    /// any there is no such service.
    pub backends: Vec<&'a Node>,
    /// Virtual addresses: a VRRP instance and a service each.
    pub vips: Vec<IpAddr>,
    /// Port of the VIP.
    pub port: u16,
    /// Port of the backends.
    pub backend_port: u16,
    /// `vrrp.advert_interval`
    pub advert_interval: String,
    /// Further lines of every `[[vrrp]]`.
    pub vrrp: String,
    /// `service.forwarding`
    pub forwarding: String,
    /// Further lines of every `[[service]]`.
    pub service: String,
    /// Lines of every `[service.health]`.
    pub health: String,
    /// Further lines of `[node]`; native XDP is used unless they say otherwise.
    pub node: String,
}

impl<'a> ControlPlane<'a> {
    /// Masters with an apiserver each: one IPv4 VIP, port 1644 to 6443, adverts every second,
    /// https checks every second.
    pub fn new(masters: impl IntoIterator<Item = &'a Node>) -> Self {
        let masters: Vec<_> = masters.into_iter().collect();
        Self {
            backends: masters.clone(),
            masters,
            vips: vec![VIP4.into()],
            port: 1644,
            backend_port: 6443,
            advert_interval: "1s".to_owned(),
            vrrp: String::new(),
            forwarding: "auto".to_owned(),
            service: String::new(),
            health: "type = \"https\"\ninterval = \"1s\"\nfast_interval = \"500ms\"\nfall = 2"
                .to_owned(),
            node: String::new(),
        }
    }

    /// Where clients go: the VIP of this family and the service's port.
    pub fn endpoint(&self, vip: impl Into<IpAddr>) -> SocketAddr {
        SocketAddr::new(vip.into(), self.port)
    }

    /// The configuration file of one master.
    pub fn config(&self, master: &Node) -> String {
        let mut text = self.head(master);
        for peer in self.peers(master) {
            push(
                &mut text,
                format_args!(
                    "[[peer]]\nname = \"{}\"\naddresses = [\"{}\", \"{}\"]\n",
                    peer.name(),
                    peer.ipv4(),
                    peer.ipv6()
                ),
            );
        }
        for (number, vip) in self.vips.iter().enumerate() {
            self.push_vrrp(&mut text, master, number, *vip);
        }
        if !self.backends.is_empty() {
            for (number, vip) in self.vips.iter().enumerate() {
                self.push_service(&mut text, number, *vip);
            }
        }
        text
    }

    fn peers(&self, master: &Node) -> impl Iterator<Item = &&'a Node> {
        let own = master.name().to_owned();
        self.masters.iter().filter(move |peer| peer.name() != own)
    }

    fn head(&self, master: &Node) -> String {
        // `auto` is tc on the lab's veth pairs; their other ends have the stub that XDP needs.
        let attach = if self.node.contains("attach = ") {
            ""
        } else {
            "attach = \"native\"\n"
        };
        format!(
            "[node]\nname = \"{}\"\ninstance = \"{}\"\ninterfaces = [\"eth0\"]\n\
             cgroup = \"{}\"\nstate_dir = \"{}\"\n{attach}{}\n\n",
            master.name(),
            master.instance(),
            master.cgroup().display(),
            master.directory().display(),
            self.node
        )
    }

    /// `v4` and `v6`, with a number where a family has several VIPs.
    fn name(&self, number: usize) -> String {
        let (before, rest) = self.vips.split_at(number);
        let is_v4 = rest.first().is_some_and(IpAddr::is_ipv4);
        let family = if is_v4 { "v4" } else { "v6" };
        match before.iter().filter(|vip| vip.is_ipv4() == is_v4).count() {
            0 => family.to_owned(),
            more => format!("{family}-{more}"),
        }
    }

    fn push_vrrp(&self, text: &mut String, master: &Node, number: usize, vip: IpAddr) {
        let rank = self
            .masters
            .iter()
            .position(|node| node.name() == master.name());
        push(
            text,
            format_args!(
                "[[vrrp]]\nname = \"{name}\"\ninterface = \"eth0\"\nvrid = {vrid}\n\
                 priority = {priority}\nadvert_interval = \"{interval}\"\n\
                 addresses = [\"{vip}/{prefix}\"]\n{more}\n",
                name = self.name(number),
                vrid = 51 + number,
                priority = 200_usize.saturating_sub(10 * rank.unwrap_or(0)).max(1),
                interval = self.advert_interval,
                prefix = if vip.is_ipv4() { 24 } else { 128 },
                more = self.vrrp,
            ),
        );
    }

    fn push_service(&self, text: &mut String, number: usize, vip: IpAddr) {
        push(
            text,
            format_args!(
                "[[service]]\nname = \"apiserver-{name}\"\naddress = \"{vip}\"\nport = {port}\n\
                 forwarding = \"{forwarding}\"\n{more}\n[service.health]\n{health}\n",
                name = self.name(number),
                port = self.port,
                forwarding = self.forwarding,
                more = self.service,
                health = self.health,
            ),
        );
        for backend in &self.backends {
            let address = SocketAddr::new(backend.address_like(vip), self.backend_port);
            push(
                text,
                format_args!(
                    "[[service.backend]]\nname = \"{}\"\naddress = \"{address}\"\n",
                    backend.name()
                ),
            );
        }
    }
}

/// Appends a block and an empty line.
fn push(text: &mut String, block: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{block}");
}
