//! What the inputs want, in xvip's words: instances, services and what is known about nodes.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{document::Key, ledger::WordId};

/// Everything that was read.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Keys of `[node]`.
    pub(super) node: Vec<Key>,
    /// `[[vrrp]]`
    pub(super) instances: Vec<Instance>,
    /// `[[sync_group]]`
    pub(super) groups: Vec<Group>,
    /// What clients connect to.
    pub(super) services: Vec<Service>,
    /// This node's own addresses, as the inputs tell.
    pub(super) own: Vec<IpAddr>,
    /// What instances can track, by name.
    pub(super) tracks: BTreeMap<String, Track>,
    /// The apiserver that a check script asks.
    pub(super) local_check: Option<LocalCheck>,
}

/// `[[vrrp]]`
#[derive(Debug)]
pub(super) struct Instance {
    /// `vrrp.interface`
    pub(super) interface: Option<String>,
    /// All keys but `addresses` and `unicast_peers`.
    pub(super) keys: Vec<Key>,
    /// `vrrp.addresses`, of one family.
    pub(super) addresses: Vec<(IpNet, Vec<WordId>)>,
    /// `vrrp.unicast_peers`
    pub(super) peers: Vec<(IpAddr, Vec<WordId>)>,
    /// `vrrp.track`
    pub(super) tracks: Vec<TrackUse>,
    /// Keys of `vrrp.notify`.
    pub(super) notify: Vec<Key>,
    /// What stands above it.
    pub(super) comments: Vec<String>,
}

/// `[[sync_group]]`
#[derive(Debug)]
pub(super) struct Group {
    /// `sync_group.name`
    pub(super) name: String,
    /// The same with the words that say it.
    pub(super) key: Key,
    /// Keys of `sync_group.notify`.
    pub(super) notify: Vec<Key>,
}

/// `[[track]]`
#[derive(Clone, Debug)]
pub(super) struct Track {
    /// What is tracked.
    pub(super) subject: Subject,
    /// `track.weight`
    pub(super) weight: Option<Weight>,
    /// Further keys.
    pub(super) keys: Vec<Key>,
    /// The words that say its name.
    pub(super) words: Vec<WordId>,
}

/// What is tracked.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    /// An apiserver of this node, or the proxy in front of all of them.
    Local(LocalCheck),
    /// What the keys say.
    Keys,
}

/// How a priority follows what is tracked.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    /// 0: a fault.
    pub(super) value: i16,
    /// The other way round.
    pub(super) reverse: bool,
    /// The words that say it.
    pub(super) words: Vec<WordId>,
}

impl Weight {
    /// One that no words say.
    pub(super) fn plain(value: i16) -> Self {
        Self {
            value,
            reverse: false,
            words: Vec::new(),
        }
    }
}

/// A list of what an instance of keepalived tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracked {
    /// `track_interface`
    Interface,
    /// `track_script`
    Script,
    /// `track_file`
    File,
    /// `track_process`
    Process,
}

/// An element of `vrrp.track`.
#[derive(Clone, Debug)]
pub(super) struct TrackUse {
    /// Of the track, or of the interface.
    pub(super) name: String,
    /// Which list of keepalived it stands in.
    pub(super) list: Tracked,
    /// In place of the track's own.
    pub(super) weight: Option<Weight>,
    /// The words that say its name.
    pub(super) words: Vec<WordId>,
}

impl TrackUse {
    /// Whether it is an interface.
    pub(super) fn is_interface(&self) -> bool {
        self.list == Tracked::Interface
    }

    /// All words that it was made of.
    pub(super) fn all_words(&self) -> Vec<WordId> {
        let mut words = self.words.clone();
        words.extend(self.weight.iter().flat_map(|weight| &weight.words));
        words
    }
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Listen {
    /// On every VIP of these families.
    Any {
        /// IPv4
        v4: bool,
        /// IPv6
        v6: bool,
    },
    /// On this one.
    At(IpAddr),
}

/// An address and port that clients connect to.
#[derive(Clone, Debug)]
pub(super) struct Bind {
    /// Which address.
    pub(super) listen: Listen,
    /// `service.port`
    pub(super) port: u16,
    /// The words that say it.
    pub(super) words: Vec<WordId>,
}

/// What became of a server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// An address of its own.
    Address(IpAddr),
    /// A host name, which is looked up by the xvip that runs.
    Name(String),
    /// A loopback address: the node itself.
    ThisNode {
        /// Whether it is 127.0.0.0/8.
        v4: bool,
    },
}

/// `[[service.backend]]`
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// `name`
    pub(super) name: String,
    /// The words that say it.
    pub(super) name_words: Vec<WordId>,
    /// The address of `address`.
    pub(super) host: Host,
    /// The port of `address`; the client's where absent.
    pub(super) port: Option<u16>,
    /// The words that say address and port.
    pub(super) words: Vec<WordId>,
    /// Further keys.
    pub(super) keys: Vec<Key>,
}

/// An element of `service.allow` or `service.deny`.
#[derive(Clone, Debug)]
pub(super) struct SourceRule {
    /// The prefix, without bits behind its length.
    pub(super) net: IpNet,
    /// Which of them it is in.
    pub(super) allowed: bool,
    /// The words that say it.
    pub(super) words: Vec<WordId>,
}

/// `[[service]]`, one for every VIP that it listens on.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// `service.name`
    pub(super) name: String,
    /// The words that say it.
    pub(super) words: Vec<WordId>,
    /// Where it listens.
    pub(super) binds: Vec<Bind>,
    /// Further keys of the service.
    pub(super) keys: Vec<Key>,
    /// `service.allow` and `service.deny`, of both families.
    pub(super) sources: Vec<SourceRule>,
    /// Keys of `[service.health]`.
    pub(super) health: Vec<Key>,
    /// Its backends.
    pub(super) servers: Vec<Server>,
    /// What stands above it.
    pub(super) comments: Vec<String>,
}

/// A check script that asks the node's own apiserver, or the proxy in front of it.
#[derive(Clone, Debug, Default)]
pub(super) struct LocalCheck {
    /// The port that it asks.
    pub(super) port: u16,
    /// The path that it asks for.
    pub(super) path: String,
    /// Whether by TLS.
    pub(super) tls: bool,
    /// The words that say it.
    pub(super) words: Vec<WordId>,
}

/// `text` as a name of a section: 1 to 64 characters without spaces.
pub(super) fn name(text: &str, otherwise: &str) -> String {
    let plain = |c: char| {
        if c.is_whitespace() || c.is_control() {
            '-'
        } else {
            c
        }
    };
    let name: String = text.chars().map(plain).take(64).collect();
    if name.is_empty() {
        otherwise.to_owned()
    } else {
        name
    }
}
