//! Telling the clients of a dead backend: whom, with what segments, and when again.
//!
//! When a backend goes DOWN its epoch goes up, and the data plane answers whatever the clients of
//! its flows send with RST. Clients that wait send nothing. So every flow of an earlier epoch is
//! looked up in the conntrack tables, and its client gets
//!
//! 1. a RST with the sequence number that it acknowledged last (if it ever did), which ends an idle
//!    connection at once;
//! 2. a SYN|ACK. A client whose connection is still open, because data was under way that it had
//!    not acknowledged to this node, answers it with an ACK that carries the right number, which
//!    the data plane turns into the RST. Connection tracking in between lets the SYN|ACK pass where
//!    it drops a RST whose number is wrong.
//!
//! Both are repeated [a few times](ROUNDS) for flows that are still there. A flow that began anew
//! has another backend or epoch and is not found any more; one that its client has reset is closed.
//! The backend gets a RST in each client's name, in case it is only frozen.
//!
//! A client host gets no more than [`PER_HOST`] challenges in a second, since hosts limit the
//! answers. After [`KEPT`] the entries are removed.
//!
//! A node that does not own the VIP tells nobody. What it has of such flows is from a time when it
//! did, and it forgets it: the flows may have ended or gone on elsewhere since.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    abi::{Flow, FlowKey, Mac, Method},
    conntrack::FlowState,
    headers::IPPROTO_TCP,
};

use super::{segment::Segment, time::Timestamp};

/// When the clients are told, after the backend's death.
pub const ROUNDS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(600),
    Duration::from_millis(1_500),
    Duration::from_secs(4),
];
/// How long the entries of reset flows are kept: whatever a client sends is answered meanwhile.
pub const KEPT: Duration = Duration::from_mins(1);
/// Challenges that a client host gets in a second: Linux answered no more than 1,000 before 6.2
/// (`tcp_challenge_ack_limit`).
pub const PER_HOST: u32 = 500;
const WINDOW: Duration = Duration::from_secs(1);

/// A backend whose life has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Backend id.
    pub backend: u32,
    /// The epoch that begins: flows of others are meant.
    pub epoch: u16,
    /// The backend's family is IPv6.
    pub ipv6: bool,
    /// The clients are to be told; else their flows are only forgotten.
    pub tell: bool,
    /// How the backend is told.
    pub way: Way,
}

/// A backend's death with all that matters for those who were connected to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// Who is told of flows that this node forwards.
    pub order: Order,
    /// The service's VIP.
    pub vip: IpAddr,
    /// The backend's address.
    pub backend: SocketAddr,
    /// How it was forwarded to.
    pub method: Method,
}

/// How a segment gets to a backend that may be frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Not at all.
    None,
    /// In an Ethernet frame, as dsr forwards: addressed to the VIP.
    Link(Link),
    /// As nat forwards, by this node's routes.
    Route(SocketAddr),
}

/// An Ethernet neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// The interface's own MAC.
    pub src: Mac,
    /// The neighbour's MAC.
    pub dst: Mac,
    /// VLAN tags, see [`lb_common::abi::UplinkKey`].
    pub tags: u32,
}

/// A segment to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// What.
    pub segment: Segment,
    /// To this neighbour; `None`: by this node's routes.
    pub link: Option<Link>,
}

/// A TCP flow in the conntrack tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The client.
    pub client: SocketAddr,
    /// VIP and port.
    pub vip: SocketAddr,
    /// The entry.
    pub flow: Flow,
}

impl Found {
    /// An entry of a table; `None` if it is not TCP's.
    pub fn new<A: Copy + Into<IpAddr>>(key: &FlowKey<A>, flow: Flow) -> Option<Self> {
        (key.proto() == IPPROTO_TCP).then(|| Self {
            client: SocketAddr::new(key.src().into(), key.sport()),
            vip: SocketAddr::new(key.dst().into(), key.dport()),
            flow,
        })
    }
}

/// Which flows are to be looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Epoch that flows are *not* of, by backend id.
    ended: BTreeMap<u32, u16>,
    /// Those whose flows are to be removed.
    forgotten: BTreeSet<u32>,
    /// Those that are told for the first time.
    first: BTreeSet<u32>,
    /// IPv4 tables are to be read.
    pub ipv4: bool,
    /// IPv6 tables are to be read.
    pub ipv6: bool,
}

impl Scan {
    /// Whether the flow is one of those.
    pub fn picks(&self, flow: &Flow) -> bool {
        self.ended
            .get(&flow.backend())
            .is_some_and(|epoch| *epoch != flow.epoch())
    }

    /// Whether the flow, one that was picked, is to be removed.
    pub fn forgets(&self, flow: &Flow) -> bool {
        self.forgotten.contains(&flow.backend())
    }
}

/// One backend's death being told.
#[derive(Clone, Copy, Debug)]
struct Job {
    order: Order,
    began: Timestamp,
    /// Rounds that were begun.
    round: usize,
}

impl Job {
    fn due(&self) -> Timestamp {
        let rounds = if self.order.tell { &ROUNDS[..] } else { &[] };
        match (rounds.get(self.round), self.order.tell) {
            (Some(after), _) => self.began + *after,
            (None, true) => self.began + KEPT,
            (None, false) => self.began,
        }
    }

    /// Whether the next round is the one that removes the entries.
    fn ends(&self) -> bool {
        !self.order.tell || self.round >= ROUNDS.len()
    }
}

/// A client that is to be told.
#[derive(Clone, Copy, Debug)]
struct Victim {
    found: Found,
    way: Way,
}

/// Challenges that a host got in the second that began then.
#[derive(Clone, Copy, Debug)]
struct Window {
    began: Timestamp,
    sent: u32,
}

/// The telling of all dead backends.
///
/// Drive it so: [`Self::poll_scan`]; look up what it asks for and hand it to [`Self::handle_found`];
/// send what [`Self::poll_output`] says; wait until [`Self::poll_timeout`].
#[derive(Debug, Default)]
pub struct Resets {
    jobs: Vec<Job>,
    /// In the order in which they are told; a host's limit may hold some back.
    victims: VecDeque<Victim>,
    /// When the first of those that are held back can be told.
    held_until: Option<Timestamp>,
    outputs: VecDeque<Output>,
    hosts: BTreeMap<IpAddr, Window>,
    /// For numbers that nobody knows.
    random: u64,
}

impl Resets {
    /// Nothing to tell. `seed` makes the numbers that are sent where the right ones are unknown.
    pub fn new(seed: u64) -> Self {
        Self {
            random: seed,
            ..Self::default()
        }
    }

    /// A backend died at `now`.
    pub fn begin(&mut self, now: Timestamp, order: Order) {
        self.jobs.retain(|job| job.order.backend != order.backend);
        self.jobs.push(Job {
            order,
            began: now,
            round: 0,
        });
    }

    /// What is to be looked up at `now`, if anything; answered by [`Self::handle_found`].
    pub fn poll_scan(&mut self, now: Timestamp) -> Option<Scan> {
        let mut scan = Scan::default();
        for job in self.jobs.iter_mut().filter(|job| job.due() <= now) {
            let Order { backend, epoch, .. } = job.order;
            scan.ended.insert(backend, epoch);
            if job.order.ipv6 {
                scan.ipv6 = true;
            } else {
                scan.ipv4 = true;
            }
            if job.ends() {
                scan.forgotten.insert(backend);
            } else if job.round == 0 {
                scan.first.insert(backend);
            }
            job.round += 1;
        }
        self.jobs.retain(|job| {
            let ended = scan.forgotten.contains(&job.order.backend);
            !ended
        });
        (!scan.ended.is_empty()).then_some(scan)
    }

    /// The flows that `scan` asked for were found; `seconds` is now on the clock of the flows.
    /// Those that are to be removed are the caller's business.
    pub fn handle_found(&mut self, now: Timestamp, seconds: u32, scan: &Scan, found: &[Found]) {
        let open: BTreeMap<_, _> = found
            .iter()
            .filter(|found| !scan.forgets(&found.flow) && wants_reset(&found.flow, seconds))
            .map(|found| ((found.client, found.vip), *found))
            .collect();
        // Who waits for its turn goes first, unless it is done.
        let mut waiting = BTreeSet::new();
        self.victims.retain_mut(|victim| {
            let key = (victim.found.client, victim.found.vip);
            match open.get(&key) {
                Some(found) => victim.found = *found,
                None => return !scan.ended.contains_key(&victim.found.flow.backend()),
            }
            waiting.insert(key)
        });
        for (key, found) in open {
            let backend = found.flow.backend();
            if waiting.contains(&key) {
                continue;
            }
            let way = self
                .jobs
                .iter()
                .find(|job| job.order.backend == backend)
                .filter(|_| scan.first.contains(&backend))
                .map_or(Way::None, |job| job.order.way);
            self.victims.push_back(Victim { found, way });
        }
        self.release(now);
    }

    /// Go on with clients that were held back.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if self.held_until.is_some_and(|until| until <= now) {
            self.release(now);
        }
    }

    /// The next segment to send.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When there is something to look up, or to send.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let jobs = self.jobs.iter().map(Job::due);
        jobs.chain(self.held_until).min()
    }

    /// Tell those whose hosts are below their limit.
    fn release(&mut self, now: Timestamp) {
        self.hosts.retain(|_, window| now < window.began + WINDOW);
        self.held_until = None;
        for victim in mem::take(&mut self.victims) {
            let host = victim.found.client.ip();
            let window = self.hosts.entry(host).or_insert(Window {
                began: now,
                sent: 0,
            });
            if window.sent < PER_HOST {
                window.sent += 1;
                self.tell(&victim);
            } else {
                let until = window.began + WINDOW;
                let first = self.held_until.map_or(until, |held| held.min(until));
                self.held_until = Some(first);
                self.victims.push_back(victim);
            }
        }
    }

    fn tell(&mut self, victim: &Victim) {
        let Found { client, vip, flow } = victim.found;
        let route = |segment| Output {
            segment,
            link: None,
        };
        if let Some(seq) = flow.cl_ack() {
            let reset = Segment::reset(vip, client, seq);
            self.outputs.push_back(route(reset));
        }
        let seq = flow.cl_ack().unwrap_or_else(|| self.unknown_number());
        let ack = flow.cl_next().unwrap_or(0);
        let challenge = Segment::challenge(vip, client, seq, ack);
        self.outputs.push_back(route(challenge));
        let Some(seq) = flow.cl_next() else {
            return;
        };
        match victim.way {
            Way::None => {}
            Way::Link(link) => self.outputs.push_back(Output {
                segment: Segment::reset(client, vip, seq),
                link: Some(link),
            }),
            Way::Route(backend) => {
                let source = SocketAddr::new(vip.ip(), flow.nat_port());
                let reset = Segment::reset(source, backend, seq);
                self.outputs.push_back(route(reset));
            }
        }
    }

    /// `SplitMix64`: nothing depends on these numbers being hard to guess.
    fn unknown_number(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 32) as u32
    }
}

/// Whether the flow's client may still wait for an answer.
fn wants_reset(flow: &Flow, seconds: u32) -> bool {
    flow.state() != FlowState::Closed && !flow.is_over(seconds)
}

#[cfg(test)]
mod tests;
