//! `xvip explain`: what a copy of the ingress program says about a packet, with what this node
//! knows of the backend.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use aya::Pod;
use lb_common::{
    abi::{Address, Flow, FlowKey, Mac, NatReturn, events::TraceEvent},
    headers::TcpHeader,
    reason::{Reason, Verdict},
};

use super::{
    flows::View,
    trace::{self, Teller, verdict_word},
};
use crate::{
    admin::{
        explain::{BackendHealth, ExplainQuery, Explanation},
        flows::{Directory, FlowEntry},
        trace::{Decision, Out, flag_words, parse_flags, protocol_word},
    },
    core::{
        attach::{Attachment, Mode},
        frame::{self, Link, NUMBER, Transport, mac_text},
        network::Port,
    },
    io::{
        bpf::{BpfError, Conntrack, DryRun, FamilyConntrack, Form, Loading},
        clock,
        netlink::{Netlink, NetlinkError},
    },
};

/// A MAC of nobody: where a client's next hop is not known.
const NOBODY: Mac = [0x02, 0, 0, 0, 0, 0];

/// An uplink that a packet can come in through.
#[derive(Clone, Debug)]
pub(super) struct Uplink {
    /// Its name.
    name: String,
    /// Its index: packets to its neighbours leave through it.
    ifindex: u32,
    /// Its MAC.
    mac: Mac,
    /// Form of the program that sees its frames.
    form: Form,
    /// Where and with which tags it sees them.
    seen_at: Port,
}

impl Uplink {
    /// The uplink of an attachment, if it carries the program and `mac` is its address.
    pub(super) fn new(attachment: &Attachment, mac: Option<Mac>) -> Option<Self> {
        let place = &attachment.place;
        let (form, seen_at) = match attachment.mode? {
            Mode::Native | Mode::Generic => (Form::Xdp, place.port),
            Mode::Tc => (Form::Tc, Port::untagged(place.ifindex)),
        };
        Some(Self {
            name: place.interface.clone(),
            ifindex: place.ifindex,
            mac: mac?,
            form,
            seen_at,
        })
    }
}

/// What the controller knows that an answer needs.
pub(super) struct Facts {
    pub(super) loading: Loading,
    pub(super) directory: Directory,
    /// By backend id.
    pub(super) health: BTreeMap<u32, BackendHealth>,
    /// In configuration order.
    pub(super) uplinks: Vec<Uplink>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExplainError {
    #[error("{0} and {1} are of different families")]
    Families(SocketAddr, SocketAddr),
    #[error("{0}")]
    Flags(#[from] crate::admin::trace::FlagError),
    #[error("{0:?} is no MAC")]
    Mac(String),
    #[error("{name:?} is no uplink with a program (there are: {})", known.join(", "))]
    NoUplink { name: String, known: Vec<String> },
    #[error("no uplink carries a program")]
    NoUplinks,
    #[error(
        "{0} is this node's own address: its connections are redirected when they are made, and \
         come in through no uplink"
    )]
    Own(IpAddr),
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error("netlink: {0}")]
    Netlink(#[from] NetlinkError),
    #[error("the program ran, and said nothing that this version understands")]
    Silent,
}

/// Where a packet comes from.
struct Origin<'a> {
    uplink: &'a Uplink,
    mac: Mac,
    words: String,
}

impl Facts {
    /// Answer a question.
    pub(super) fn explain(self, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
        let (client, vip) = (query.client, query.vip);
        if client.is_ipv4() != vip.is_ipv4() {
            return Err(ExplainError::Families(client, vip));
        }
        let transport = transport(query)?;
        let origin = self.origin(query)?;
        let link = Link {
            to: origin.uplink.mac,
            from: origin.mac,
            tags: origin.uplink.seen_at.tags,
        };
        let frame = frame::packet(link, client, vip, transport)
            .ok_or(ExplainError::Families(client, vip))?;
        let mut copy = DryRun::load(&self.loading, origin.uplink.form)?;
        let answer = copy.run(&frame, origin.uplink.seen_at.ifindex)?;
        let entry = self.entry(client, vip, transport.protocol())?;
        let mut teller = Teller::new(self.directory.clone());
        let (decision, reason) = match (answer.record, answer.verdict) {
            (Some(record), _) => (teller.decision(&record), trace::reason(&record)),
            // Nothing is said of a packet to another address.
            (None, Some(Verdict::Pass)) => {
                let decision = not_for_us(query, transport, frame.len(), &origin);
                (decision, Some(Reason::NotVip))
            }
            (None, _) => return Err(ExplainError::Silent),
        };
        let backend = answer.record.map_or(0, |record| record.backend);
        let reply = reply(reason, answer.record.as_ref(), &decision, &origin);
        Ok(Explanation {
            program: origin.uplink.form.program().to_owned(),
            from_mac: mac_text(origin.mac),
            from: origin.words.clone(),
            why: reason.map_or_else(String::new, |reason| reason.text().replace('`', "")),
            health: self.health.get(&backend).cloned(),
            decision,
            entry,
            reply,
        })
    }

    /// Where the client's packets come in, as far as the routing and neighbour tables know.
    fn origin(&self, query: &ExplainQuery) -> Result<Origin<'_>, ExplainError> {
        let client = query.client.ip();
        let mut netlink = Netlink::open()?;
        let hop = netlink.next_hop(client)?;
        if hop.is_some_and(|hop| hop.local) {
            return Err(ExplainError::Own(client));
        }
        let by_route = hop.and_then(|hop| self.uplinks.iter().find(|up| up.ifindex == hop.ifindex));
        let uplink = match &query.interface {
            Some(name) => {
                let found = self.uplinks.iter().find(|uplink| uplink.name == *name);
                found.ok_or_else(|| ExplainError::NoUplink {
                    name: name.clone(),
                    known: self.uplinks.iter().map(|up| up.name.clone()).collect(),
                })?
            }
            None => by_route
                .or(self.uplinks.first())
                .ok_or(ExplainError::NoUplinks)?,
        };
        if let Some(text) = &query.from_mac {
            let mac = parse_mac(text).ok_or_else(|| ExplainError::Mac(text.clone()))?;
            let words = "as you said".to_owned();
            return Ok(Origin { uplink, mac, words });
        }
        let Some(hop) = hop.filter(|hop| hop.ifindex == uplink.ifindex) else {
            let words = format!("made up: there is no route to {client} through this interface");
            let mac = NOBODY;
            return Ok(Origin { uplink, mac, words });
        };
        let known = netlink.neighbour(hop.ifindex, hop.gateway)?;
        let (mac, words) = match known.and_then(|neighbour| neighbour.mac) {
            Some(mac) if hop.gateway == client => (mac, "the client, a neighbour".to_owned()),
            Some(mac) => (mac, format!("the router {}", hop.gateway)),
            None => {
                let words = format!("made up: the MAC of {} is not known", hop.gateway);
                (NOBODY, words)
            }
        };
        Ok(Origin { uplink, mac, words })
    }

    /// The flow's conntrack entry.
    fn entry(
        &self,
        client: SocketAddr,
        vip: SocketAddr,
        protocol: u8,
    ) -> Result<Option<FlowEntry>, BpfError> {
        let maps = Conntrack::open(&self.loading.pins)?;
        let view = View {
            directory: &self.directory,
            backends: maps.backends()?,
            now: clock::monotonic_seconds(),
        };
        let (from, to) = (client.port(), vip.port());
        match (client.ip(), vip.ip()) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                let key = FlowKey::new(client.octets(), from, vip.octets(), to, protocol);
                find(&maps.v4, &view, &key)
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                let key = FlowKey::new(client.octets(), from, vip.octets(), to, protocol);
                find(&maps.v6, &view, &key)
            }
            _ => Ok(None),
        }
    }
}

fn find<A: Address + Pod>(
    maps: &FamilyConntrack<A>,
    view: &View<'_>,
    key: &FlowKey<A>,
) -> Result<Option<FlowEntry>, BpfError>
where
    FlowKey<A>: Pod,
    NatReturn<A>: Pod,
    IpAddr: From<A>,
{
    let entry = |flow: &Flow, half_open| view.entry(key, flow, half_open);
    if let Some(flow) = maps.flows.get(key)? {
        return Ok(Some(entry(&flow, false)));
    }
    let half_open = maps.half_flows.get(key)?;
    Ok(half_open.map(|flow| entry(&flow, true)))
}

fn transport(query: &ExplainQuery) -> Result<Transport, ExplainError> {
    if query.udp {
        return Ok(Transport::Udp);
    }
    let flags = match &query.flags {
        Some(words) => parse_flags(words)?,
        None => TcpHeader::SYN,
    };
    Ok(Transport::Tcp { flags })
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// The decision on a packet to an address that is no VIP.
fn not_for_us(
    query: &ExplainQuery,
    transport: Transport,
    length: usize,
    origin: &Origin<'_>,
) -> Decision {
    let flags = match transport {
        Transport::Tcp { flags } => flags,
        Transport::Udp => 0,
    };
    let number = |wanted: bool| if wanted { NUMBER } else { 0 };
    Decision {
        interface: origin.uplink.name.clone(),
        source: query.client,
        destination: query.vip,
        protocol: protocol_word(transport.protocol()),
        flags: flag_words(flags),
        seq: number(flags != 0),
        ack: number(flags & TcpHeader::ACK != 0),
        length: u32::try_from(length).unwrap_or(u32::MAX),
        stage: "parse".to_owned(),
        reason: Reason::NotVip.label().to_owned(),
        verdict: verdict_word(Some(Reason::NotVip)).to_owned(),
        service: None,
        backend: None,
        out: Some(Out {
            interface: None,
            mac: None,
            source: query.client,
            destination: query.vip,
        }),
    }
}

/// What becomes of the answer to a packet, in words.
fn reply(
    reason: Option<Reason>,
    record: Option<&TraceEvent>,
    decision: &Decision,
    origin: &Origin<'_>,
) -> String {
    let vip = decision.destination;
    let back = format!("{} ({})", origin.uplink.name, mac_text(origin.mac));
    match reason {
        Some(Reason::Local | Reason::LocalFromPeer) => {
            format!("leaves this node as {vip}, by this node's routes")
        }
        Some(
            Reason::Dsr | Reason::DsrRedirect | Reason::DsrStateless | Reason::DsrStatelessRedirect,
        ) => {
            format!(
                "leaves the backend's node as {vip}, straight to the client: it does not come by here"
            )
        }
        Some(Reason::Nat | Reason::NatRedirect) => {
            let (from, to) = decision
                .out
                .as_ref()
                .map_or((vip, vip), |out| (out.destination, out.source));
            format!(
                "comes back from {from} to {to}, becomes one of {vip} here, and leaves by {back}"
            )
        }
        Some(reason) if trace::answers(reason) => {
            format!("is a RST from here, by {back}")
        }
        Some(reason) if reason.verdict() == Verdict::Drop => "none".to_owned(),
        Some(reason) if reason.verdict() == Verdict::Pass => {
            "is this node's kernel's business".to_owned()
        }
        _ if record.is_some() => "is a matter of its own packet".to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink() -> Uplink {
        let place = crate::core::attach::Place {
            interface: "enp0s3".to_owned(),
            ifindex: 2,
            port: Port {
                ifindex: 1,
                tags: 7,
            },
            bond_ports: vec![],
        };
        let attachment = |mode| Attachment {
            place: place.clone(),
            mode,
            note: None,
        };
        let mac = Some([2; 6]);
        assert!(Uplink::new(&attachment(None), mac).is_none());
        assert!(Uplink::new(&attachment(Some(Mode::Native)), None).is_none());
        let tc = Uplink::new(&attachment(Some(Mode::Tc)), mac).unwrap();
        assert_eq!((tc.form, tc.seen_at), (Form::Tc, Port::untagged(2)));
        let xdp = Uplink::new(&attachment(Some(Mode::Generic)), mac).unwrap();
        assert_eq!((xdp.form, xdp.seen_at), (Form::Xdp, place.port));
        xdp
    }

    /// XDP sees a VLAN's frames on the interface that carries it, tc on its own; an uplink without a
    /// program sees none.
    #[test]
    fn frames_are_where_the_program_sees_them() {
        uplink();
    }

    /// Each kind of decision has its own reply.
    #[test]
    fn replies_follow_the_reason() {
        let uplink = uplink();
        let origin = Origin {
            uplink: &uplink,
            mac: [8, 0, 0x27, 0, 2, 0x32],
            words: String::new(),
        };
        let decision = crate::admin::trace::tests::sample();
        let reply = |reason| reply(Some(reason), None, &decision, &origin);
        assert_eq!(
            reply(Reason::Nat),
            "comes back from 10.0.2.11:6443 to 10.0.2.100:40000, becomes one of 10.0.2.100:1644 \
             here, and leaves by enp0s3 (08:00:27:00:02:32)"
        );
        assert!(reply(Reason::DsrRedirect).contains("straight to the client"));
        assert!(reply(Reason::Local).starts_with("leaves this node as 10.0.2.100:1644"));
        assert!(reply(Reason::NoBackendReset).starts_with("is a RST"));
        assert_eq!(reply(Reason::SourceDenied), "none");
        assert!(reply(Reason::NotBalanced).contains("kernel"));
        assert_eq!(reply(Reason::NotAccepted), "none");
    }

    /// What a question leaves open is a SYN; what it says is taken.
    #[test]
    fn a_question_means_a_syn() {
        let query = |text: &str| serde_json::from_str::<ExplainQuery>(text).unwrap();
        let bare = query(r#"{"client":"192.0.2.7:1","vip":"10.0.2.100:2"}"#);
        let flags = TcpHeader::SYN;
        assert_eq!(transport(&bare).unwrap(), Transport::Tcp { flags });
        let udp = query(r#"{"client":"192.0.2.7:1","vip":"10.0.2.100:2","udp":true}"#);
        assert_eq!(transport(&udp).unwrap(), Transport::Udp);
        let bad = query(r#"{"client":"192.0.2.7:1","vip":"10.0.2.100:2","flags":"x"}"#);
        assert!(matches!(transport(&bad), Err(ExplainError::Flags(_))));
        assert_eq!(
            parse_mac("08:00:27:00:02:0b"),
            Some([8, 0, 0x27, 0, 2, 0x0b])
        );
        assert_eq!(parse_mac("08:00:27:00:02"), None);
        assert_eq!(parse_mac("08:00:27:00:02:0b:00"), None);
    }
}
