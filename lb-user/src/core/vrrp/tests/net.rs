//! Two or three instances joined in memory: a virtual clock, a network that can be cut, and the
//! parts of a node that matter to VRRP (addresses, lease in the data plane, a socket that
//! queues while the controller is frozen). Adverts travel as bytes.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU8,
    time::Duration,
};

use crate::{
    config::model::{
        AdvertInterval, AnnounceConfig, NotifyConfig, V3Checksum, VrrpConfig, VrrpVersion,
    },
    core::{
        time::Timestamp,
        vrrp::{
            Instance, RxMeta, VrrpAction,
            packet::{self, GROUP_V4},
        },
    },
};

/// When every test begins, so that times before the start exist.
const EPOCH: Duration = Duration::from_secs(1_000);

pub(super) fn interval(milliseconds: u16) -> AdvertInterval {
    AdvertInterval::from_centis(milliseconds / 10).unwrap()
}

/// Version 3, VRID 51, 1 s, preempting, one address, multicast.
pub(super) fn config(priority: u8) -> VrrpConfig {
    VrrpConfig {
        name: "test".into(),
        interface: "eth0".into(),
        vrid: NonZeroU8::new(51).unwrap(),
        version: VrrpVersion::V3,
        priority: NonZeroU8::new(priority).unwrap(),
        advert_interval: interval(1_000),
        preempt: true,
        preempt_delay: Duration::ZERO,
        startup_delay: Duration::ZERO,
        addresses: vec!["10.0.2.100/24".parse().unwrap()],
        unicast_source: None,
        unicast_peers: vec![],
        unicast_min_ttl: packet::TTL,
        v3_checksum: V3Checksum::default(),
        announce: AnnounceConfig::default(),
        duplicate_probe: Duration::from_secs(30),
        password: None,
        track: vec![],
        track_defaults: true,
        use_vmac: false,
        accept: true,
        sync_group: None,
        notify: NotifyConfig::default(),
    }
}

pub(super) fn with(mut config: VrrpConfig, change: impl FnOnce(&mut VrrpConfig)) -> VrrpConfig {
    change(&mut config);
    config
}

pub(super) fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// One line of a trace: microseconds since the start, node, what happened.
pub(super) type Line = (u64, usize, &'static str);

pub(super) struct Node {
    pub(super) instance: Option<Instance>,
    config: VrrpConfig,
    address: IpAddr,
    inbox: VecDeque<(IpAddr, Vec<u8>)>,
    frozen: bool,
    /// Adverts cannot be sent.
    pub(super) send_fails: bool,
    has_addresses: bool,
    lease: Option<Timestamp>,
    announced: Vec<Timestamp>,
}

pub(super) struct Net {
    pub(super) now: Timestamp,
    pub(super) nodes: Vec<Node>,
    /// Pairs (from, to) that do not hear each other.
    cut: Vec<(usize, usize)>,
    trace: Vec<Line>,
    /// Also call `handle_timeout` when nothing is due.
    pub(super) spurious: bool,
}

impl Net {
    /// Nodes 0, 1, 2 with the addresses 10.0.2.10, .11, .12, all started at time 0.
    pub(super) fn new(configs: impl IntoIterator<Item = VrrpConfig>) -> Self {
        let now = Timestamp::default() + EPOCH;
        let nodes = configs.into_iter().zip(10..).map(|(config, host)| Node {
            instance: None,
            config,
            address: IpAddr::from(Ipv4Addr::new(10, 0, 2, host)),
            inbox: VecDeque::new(),
            frozen: false,
            send_fails: false,
            has_addresses: false,
            lease: None,
            announced: vec![],
        });
        let mut net = Self {
            now,
            nodes: nodes.collect(),
            cut: vec![],
            trace: vec![],
            spurious: false,
        };
        for node in 0..net.nodes.len() {
            net.start(node);
        }
        net
    }

    // --- What can happen ----------------------------------------------------------------------

    /// Start the controller of `node`, anew if it was stopped or killed.
    pub(super) fn start(&mut self, node: usize) {
        let Node {
            config, address, ..
        } = &self.nodes[node];
        let mut instance = Instance::new(config, self.now);
        instance.handle_listening(self.now, *address);
        self.nodes[node].instance = Some(instance);
        self.nodes[node].frozen = false;
        self.nodes[node].lease = None;
        self.nodes[node].has_addresses = false; // stale ones are removed at start
        self.act(node);
    }

    /// Kill the controller of `node`: nothing is told to anyone.
    pub(super) fn kill(&mut self, node: usize) {
        self.nodes[node].instance = None;
        self.nodes[node].inbox.clear();
    }

    pub(super) fn freeze(&mut self, node: usize) {
        self.nodes[node].frozen = true;
    }

    /// The controller goes on: first what queued up in its socket, then its timers.
    pub(super) fn thaw(&mut self, node: usize) {
        self.nodes[node].frozen = false;
        self.deliver();
        self.fire(node);
    }

    /// Neither of the two hears the other any more.
    pub(super) fn cut(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
    }

    /// `to` does not hear `from` any more.
    pub(super) fn cut_one_way(&mut self, from: usize, to: usize) {
        self.cut.push((from, to));
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    /// An input to the instance of `node`, if it runs and is not frozen, and what follows from it at once.
    pub(super) fn input(&mut self, node: usize, input: impl FnOnce(&mut Instance, Timestamp)) {
        let now = self.now;
        let Node {
            instance, frozen, ..
        } = &mut self.nodes[node];
        if let (Some(instance), false) = (instance, *frozen) {
            input(instance, now);
        }
        self.act(node);
    }

    /// Let time pass: every timer fires at its exact time.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.deliver();
            let next = self.running().filter_map(|node| {
                let at = self.nodes[node].instance.as_ref()?.poll_timeout()?;
                Some((at.max(self.now), node))
            });
            match next.min() {
                Some((at, node)) if at <= end => {
                    self.pass_to(at);
                    self.fire(node);
                }
                _ => break,
            }
        }
        self.pass_to(end);
    }

    // --- What can be seen ---------------------------------------------------------------------

    /// What happened since the last call.
    pub(super) fn trace(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.trace)
    }

    /// As [`Net::trace`], changes of ownership only.
    pub(super) fn moves(&mut self) -> Vec<Line> {
        let is_move = |line: &Line| matches!(line.2, "active" | "backup");
        self.trace().into_iter().filter(is_move).collect()
    }

    /// Nodes that answer for the addresses: they have them and their lease is valid.
    pub(super) fn owners(&self) -> Vec<usize> {
        let owns =
            |node: &Node| node.has_addresses && node.lease.is_some_and(|lease| lease > self.now);
        (0..self.nodes.len())
            .filter(|&node| owns(&self.nodes[node]))
            .collect()
    }

    pub(super) fn instance(&self, node: usize) -> &Instance {
        self.nodes[node].instance.as_ref().unwrap()
    }

    /// For what a caller may do that this one does not.
    pub(super) fn instance_mut(&mut self, node: usize) -> &mut Instance {
        self.nodes[node].instance.as_mut().unwrap()
    }

    // --- Machinery ----------------------------------------------------------------------------

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|&node| {
            let node = &self.nodes[node];
            node.instance.is_some() && !node.frozen
        })
    }

    fn pass_to(&mut self, at: Timestamp) {
        if self.spurious {
            let half = at.saturating_since(self.now) / 2;
            for node in 0..self.nodes.len() {
                let now = self.now + half;
                let Node {
                    instance, frozen, ..
                } = &mut self.nodes[node];
                if let (Some(instance), false) = (instance, *frozen)
                    && instance.poll_timeout().is_none_or(|due| due > now)
                {
                    instance.handle_timeout(now);
                    assert_eq!(instance.poll_action(), None, "spurious wake-ups do nothing");
                }
            }
        }
        self.now = self.now.max(at);
    }

    fn fire(&mut self, node: usize) {
        self.input(node, Instance::handle_timeout);
        let again = self.nodes[node].instance.as_ref().unwrap().poll_timeout();
        assert!(
            again.is_none_or(|at| at > self.now),
            "a timer that fired is gone"
        );
    }

    fn deliver(&mut self) {
        while let Some(node) = self.has_mail() {
            let (src, bytes) = self.nodes[node].inbox.pop_front().unwrap();
            let meta = RxMeta {
                src,
                dst: IpAddr::V4(GROUP_V4),
                ttl: 255,
            };
            let advert = packet::parse(&bytes, &meta, packet::TTL).unwrap();
            self.input(node, |instance, now| {
                let _ = instance.handle_advert(now, now, src, &advert);
            });
        }
    }

    fn has_mail(&self) -> Option<usize> {
        self.running().find(|&n| !self.nodes[n].inbox.is_empty())
    }

    fn act(&mut self, node: usize) {
        while let Some(action) = self.next_action(node) {
            match action {
                VrrpAction::SendAdvert { advert, not_after } => {
                    self.log(
                        node,
                        if advert.priority == 0 {
                            "resign"
                        } else {
                            "advert"
                        },
                    );
                    assert!(self.now < not_after);
                    self.send(node, &advert);
                }
                VrrpAction::SetLease { deadline } => self.nodes[node].lease = deadline,
                VrrpAction::BecomeActive => {
                    self.log(node, "active");
                    assert!(!std::mem::replace(
                        &mut self.nodes[node].has_addresses,
                        true
                    ));
                    assert!(self.nodes[node].lease.is_some(), "lease before addresses");
                    self.nodes[node].announced.clear();
                }
                VrrpAction::BecomeBackup => {
                    self.log(node, "backup");
                    assert!(std::mem::take(&mut self.nodes[node].has_addresses));
                    assert_eq!(self.nodes[node].lease, None, "fenced first");
                }
                VrrpAction::Announce => {
                    self.log(node, "announce");
                    assert!(self.nodes[node].has_addresses);
                    let now = self.now;
                    let announced = &mut self.nodes[node].announced;
                    announced.retain(|&at| now < at + ms(1_000));
                    announced.push(now);
                    // The first, four answers at once and their follow-ups.
                    assert!(announced.len() <= 9, "{announced:?}");
                }
            }
        }
    }

    fn next_action(&mut self, node: usize) -> Option<VrrpAction> {
        self.nodes[node].instance.as_mut()?.poll_action()
    }

    fn send(&mut self, node: usize, advert: &packet::Advert) {
        let (now, src) = (self.now, self.nodes[node].address);
        let fails = self.nodes[node].send_fails;
        if !fails {
            let bytes = packet::emit(advert, src, IpAddr::V4(GROUP_V4), V3Checksum::default());
            for to in 0..self.nodes.len() {
                let heard = to != node && !self.cut.contains(&(node, to));
                if heard && self.nodes[to].instance.is_some() {
                    self.nodes[to].inbox.push_back((src, bytes.clone()));
                }
            }
        }
        let instance = self.nodes[node].instance.as_mut().unwrap();
        if fails {
            instance.handle_advert_failed(now);
        } else {
            instance.handle_advert_sent(now, now);
        }
    }

    fn log(&mut self, node: usize, what: &'static str) {
        let since = self.now.saturating_since(Timestamp::default() + EPOCH);
        let micros = u64::try_from(since.as_micros()).unwrap();
        self.trace.push((micros, node, what));
    }
}
