//! Reads interfaces, addresses, next hops and neighbours on a thread of its own: a node with many
//! routes or backends takes its time, and adverts do not wait for that.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use tokio::sync::mpsc::UnboundedSender;
use tracing::warn;

use super::{
    ethtool,
    netlink::{LinkInfo, LinkType, Netlink, NetlinkError, Resolution},
};
use crate::core::{
    controller::Input,
    network::{Hop, Interface, InterfaceAddress, LinkKind, Vlan},
};

/// What is to be read.
enum Question {
    Links,
    Hop(IpAddr),
}

/// The thread; it ends when this is dropped.
pub struct NetworkReader {
    questions: Sender<Question>,
}

impl NetworkReader {
    /// Start it. It reads with `netlink` and answers by `answers`.
    pub fn start(netlink: Netlink, answers: UnboundedSender<Input>) -> io::Result<Self> {
        let (questions, asked) = mpsc::channel();
        thread::Builder::new()
            .name("xvip-netlink".to_owned())
            .spawn(move || answer(netlink, &asked, &answers))?;
        Ok(Self { questions })
    }

    /// Read all interfaces and addresses; answered by [`Input::Links`] or [`Input::LinksFailed`].
    pub fn read_links(&self) {
        self.ask(Question::Links);
    }

    /// Find out how `address` is reached and keep its neighbour resolved; answered by
    /// [`Input::Hop`] and [`Input::Neighbour`].
    pub fn resolve(&self, address: IpAddr) {
        self.ask(Question::Hop(address));
    }

    fn ask(&self, question: Question) {
        if self.questions.send(question).is_err() {
            warn!("nobody reads the network any more");
        }
    }
}

fn answer(mut netlink: Netlink, asked: &Receiver<Question>, answers: &UnboundedSender<Input>) {
    while let Ok(question) = asked.recv() {
        // Nobody listens any more when the controller ends.
        let mut say = |input| drop(answers.send(input));
        match question {
            Question::Links => say(links(&mut netlink)),
            Question::Hop(address) => hop(&mut netlink, address, &mut say),
        }
    }
}

fn links(netlink: &mut Netlink) -> Input {
    let read =
        read_interfaces(netlink).and_then(|interfaces| Ok((interfaces, netlink.addresses()?)));
    match read {
        Ok((interfaces, addresses)) => Input::Links {
            interfaces,
            addresses: addresses
                .into_iter()
                .map(|own| InterfaceAddress {
                    ifindex: own.ifindex,
                    net: own.net,
                    ours: own.ours,
                    secondary: own.secondary,
                })
                .collect(),
        },
        Err(error) => {
            warn!(%error, "cannot read interfaces and addresses; trying again");
            Input::LinksFailed
        }
    }
}

/// Every interface, as the core knows them.
pub fn read_interfaces(netlink: &mut Netlink) -> Result<Vec<Interface>, NetlinkError> {
    let links = netlink.links()?;
    let tags: BTreeSet<(u32, bool)> = links.iter().filter_map(LinkInfo::vlan_tag).collect();
    let interface = |link: LinkInfo| Interface {
        strips_tags: strips_tags(&link, &tags),
        kind: kind(&link),
        ifindex: link.ifindex,
        name: link.name,
        mac: link.mac,
        up: link.up,
        master: link.master,
    };
    Ok(links.into_iter().map(interface).collect())
}

fn kind(link: &LinkInfo) -> LinkKind {
    match link.kind {
        LinkType::Other => LinkKind::Other,
        LinkType::Bond => LinkKind::Bond,
        LinkType::Bridge => LinkKind::Bridge,
        LinkType::Veth => LinkKind::Veth,
        LinkType::Vlan {
            parent,
            id,
            is_service_tag,
        } => LinkKind::Vlan(Vlan {
            parent,
            id,
            is_service_tag,
        }),
    }
}

/// The feature with which a link takes tags out of its frames that are among `tags`, those of each
/// carrier, or of the bond that it is a port of. A link that does not say has no hardware that could.
fn strips_tags(link: &LinkInfo, tags: &BTreeSet<(u32, bool)>) -> Option<&'static str> {
    let carriers = [Some(link.ifindex), link.master];
    let own = tags.iter().filter(|(at, _)| carriers.contains(&Some(*at)));
    let mut features = own.map(|(_, service)| ethtool::tag_stripping(*service));
    features.find(|feature| ethtool::has_feature(&link.name, feature).unwrap_or(false))
}

fn hop(netlink: &mut Netlink, address: IpAddr, say: &mut impl FnMut(Input)) {
    let hop = match netlink.next_hop(address) {
        Ok(hop) => hop.filter(|hop| !hop.local),
        Err(error) => {
            warn!(%address, %error, "cannot find the next hop");
            return;
        }
    };
    let hop = hop.map(|hop| Hop {
        ifindex: hop.ifindex,
        gateway: hop.gateway,
    });
    say(Input::Hop { address, hop });
    let Some(Hop { ifindex, gateway }) = hop else {
        return;
    };
    match netlink.keep_resolved(ifindex, gateway) {
        Ok(Resolution::Managed | Resolution::Static | Resolution::Once) => {}
        Err(error) => warn!(%gateway, %error, "cannot keep a neighbour resolved"),
    }
    if let Ok(Some(neighbour)) = netlink.neighbour(ifindex, gateway)
        && let Some(mac) = neighbour.mac
    {
        say(Input::Neighbour {
            ifindex,
            address: gateway,
            mac,
        });
    }
}
