//! A node around a controller: interfaces, addresses with their lifetimes, tables, leases, a
//! VRRP socket, backends; and several of them on one link. Time passes only when a test says so.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::abi::{Backend, BackendState, Mac, MaglevTable, Service, ServiceKey};

use crate::{
    config::model::{BackendConfig, Config, V3Checksum, VrrpConfig},
    core::{
        controller::{
            Action, Changed, Controller, Event, Fixed, Input, Ordered, Refusal, VIP_LIFETIME,
        },
        desired::{Builder, Facts},
        fixture::{self, ETH0, LO},
        health::{
            Failure, Finding, ProbeOutcome, ProbeResult, Stage, StageTimes, agent::AgentReport,
        },
        names::{Answer, HostKey},
        network::{Interface, InterfaceAddress},
        notify::Notice,
        operator::{Entry, Order, Saved},
        roster::Roster,
        tables::{self, FamilyOp, TableOp, Tables},
        time::Timestamp,
        tracking::{Condition, Observation},
        vrrp::{
            Advert, RxMeta,
            packet::{self, GROUP_V4, GROUP_V6},
        },
    },
};

/// When every test begins: a whole number of seconds, so that traces read well.
const EPOCH: Duration = Duration::from_secs(1_000);
/// Key of the service `apiserver`.
pub(super) const APISERVER_KEY: ServiceKey<[u8; 4]> = ServiceKey::new([10, 0, 2, 100], 1644, 6);
const COOKIE: u64 = 7;

pub(super) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// How a backend answers its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Answers,
    Refuses,
    Silent,
    Unready,
}

/// An address in the imitated kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    ours: bool,
    until: Option<Timestamp>,
    secondary: bool,
}

/// A node.
pub(super) struct Node {
    pub(super) host: u8,
    config: Config,
    pub(super) now: Timestamp,
    pub(super) controller: Option<Controller>,
    pub(super) frozen: bool,
    pub(super) interfaces: Vec<Interface>,
    addresses: BTreeMap<(u32, IpNet), Held>,
    /// MACs of the neighbours, by address; who is missing does not answer.
    pub(super) macs: BTreeMap<IpAddr, Mac>,
    /// What the data plane holds; `maglev` has every table, also those not in force.
    pub(super) tables: Tables,
    leases: BTreeMap<u32, Timestamp>,
    /// Of backends by name; who is missing answers.
    pub(super) moods: BTreeMap<&'static str, Mood>,
    /// What agents say, by where they are asked.
    pub(super) agents: BTreeMap<SocketAddr, &'static str>,
    probes: Vec<(Timestamp, Input)>,
    inputs: VecDeque<Input>,
    outbox: Vec<(usize, Advert)>,
    inbox: VecDeque<(usize, IpAddr, Vec<u8>)>,
    pub(super) adverts_fail: bool,
    /// What looks show, by position of what is tracked; else it is as it should be.
    pub(super) looks: BTreeMap<usize, Observation>,
    /// Writes that fail in their middle.
    pub(super) failing_writes: usize,
    pub(super) failing_readings: usize,
    /// Answers to readings that have not come yet, while there are delays.
    pub(super) delayed: Option<VecDeque<Input>>,
    /// Every action is checked: nothing may refer to what is not there. Off in tests that take
    /// things away.
    pub(super) careful: bool,
    /// What the operator said, as it was saved.
    pub(super) saved: Vec<Entry>,
    /// The same of what he has added and removed.
    pub(super) roster: Roster,
    /// Addresses that others were asked for.
    pub(super) asked: Vec<IpAddr>,
    /// What host names stand for, with a comma between addresses; what is missing cannot be looked up.
    pub(super) hosts: BTreeMap<&'static str, &'static str>,
    /// Lookups take so long.
    pub(super) lookup_time: Duration,
    /// What names stood for last, as it was saved.
    pub(super) names: Vec<(HostKey, IpAddr)>,
    /// What others were told.
    pub(super) notices: Vec<Notice>,
    trace: Vec<String>,
}

impl Node {
    /// master `host` with `services`, started now. Its neighbours are there.
    pub(super) fn start(host: u8, services: &str) -> Self {
        Self::start_with(fixture::config(host, services), host)
    }

    pub(super) fn start_with(config: Config, host: u8) -> Self {
        let mut node = Self::stopped(config, host);
        node.boot();
        node
    }

    /// The node before its controller starts.
    pub(super) fn stopped(config: Config, host: u8) -> Self {
        let neighbours = ["10.0.2.11", "10.0.2.12", "10.0.2.10", "10.0.2.1"];
        let neighbours = neighbours
            .iter()
            .chain(&["fd00::10", "fd00::11", "fd00::12"]);
        let macs = neighbours.map(|text| {
            let address = fixture::ip(text);
            (address, fixture::mac(fixture::host_of(address)))
        });
        let mut node = Self {
            host,
            config,
            now: Timestamp::default() + EPOCH,
            controller: None,
            frozen: false,
            interfaces: fixture::interfaces(host),
            addresses: BTreeMap::new(),
            macs: macs.collect(),
            tables: Tables::default(),
            leases: BTreeMap::new(),
            moods: BTreeMap::new(),
            agents: BTreeMap::new(),
            probes: vec![],
            inputs: VecDeque::new(),
            outbox: vec![],
            inbox: VecDeque::new(),
            adverts_fail: false,
            looks: BTreeMap::new(),
            failing_writes: 0,
            failing_readings: 0,
            delayed: None,
            careful: true,
            saved: vec![],
            asked: vec![],
            hosts: BTreeMap::new(),
            lookup_time: ms(1),
            names: vec![],
            notices: vec![],
            roster: Roster::default(),
            trace: vec![],
        };
        for own in fixture::addresses(host) {
            node.add_address(own.ifindex, own.net, false);
        }
        node
    }

    /// Start a controller. What is in the kernel stays, as after a crash.
    pub(super) fn boot(&mut self) {
        self.inbox.clear();
        self.inputs.clear();
        self.probes.clear();
        let mut controller = Controller::new(self.config.clone(), self.now, COOKIE, 1);
        let saved = Saved {
            words: self.saved.clone(),
            roster: self.roster.clone(),
            names: self.names.clone(),
        };
        controller.restore(self.now, saved);
        for (instance, vrrp) in self.config.vrrp.iter().enumerate() {
            let address = self.source(vrrp.is_ipv6());
            controller.handle(self.now, Input::Listening { instance, address });
        }
        self.controller = Some(controller);
        self.wake();
    }

    pub(super) fn kill(&mut self) {
        self.controller = None;
        self.delayed = None;
    }

    // --- What others do -----------------------------------------------------------------------

    pub(super) fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
        self.wake();
    }

    /// Somebody adds an address.
    pub(super) fn add_address(&mut self, ifindex: u32, net: IpNet, ours: bool) {
        let held = Held {
            ours,
            until: None,
            secondary: false,
        };
        self.addresses.insert((ifindex, net), held);
        self.inputs.push_back(Input::NetworkChanged);
    }

    /// Somebody removes an address and adds it again: it stands behind all others of its subnet, until
    /// those are removed.
    pub(super) fn add_last(&mut self, ifindex: u32, net: IpNet) {
        self.add_address(ifindex, net, false);
        let held = self.addresses.get_mut(&(ifindex, net)).unwrap();
        held.secondary = true;
    }

    /// Somebody removes an address.
    pub(super) fn delete_address(&mut self, ifindex: u32, net: IpNet) {
        if self.addresses.remove(&(ifindex, net)).is_some() {
            for ((other, _), held) in &mut self.addresses {
                held.secondary &= *other != ifindex;
            }
            self.inputs.push_back(Input::NetworkChanged);
        }
    }

    /// The uplink is gone.
    pub(super) fn unplug(&mut self) {
        self.interfaces.retain(|known| known.name != "eth0");
        self.addresses.retain(|(ifindex, _), _| *ifindex == LO);
        self.inputs.push_back(Input::NetworkChanged);
    }

    /// The uplink is there again, as interface `ifindex`.
    pub(super) fn plug(&mut self, ifindex: u32) {
        self.unplug();
        let mut uplink = fixture::interfaces(self.host).pop().unwrap();
        uplink.ifindex = ifindex;
        self.interfaces.push(uplink);
        for own in fixture::addresses(self.host) {
            if own.ifindex == ETH0 {
                self.add_address(ifindex, own.net, false);
            }
        }
    }

    /// The uplink's cable is pulled, or plugged in again.
    pub(super) fn set_carrier(&mut self, up: bool) {
        for uplink in self
            .interfaces
            .iter_mut()
            .filter(|known| known.name == "eth0")
        {
            uplink.up = up;
        }
        self.inputs.push_back(Input::NetworkChanged);
    }

    /// A neighbour has another MAC, and says so.
    pub(super) fn move_neighbour(&mut self, address: &str, mac: Mac) {
        let address = fixture::ip(address);
        self.macs.insert(address, mac);
        self.inputs.push_back(Input::Neighbour {
            ifindex: self.uplink(),
            address,
            mac,
        });
    }

    /// Slot of the instance of a family; each node has its own.
    fn slot_of(&self, ipv6: bool) -> Option<usize> {
        let mut instances = self.config.vrrp.iter();
        let position = instances.position(|vrrp| vrrp.is_ipv6() == ipv6)?;
        self.controller.as_ref()?.slot(position)
    }

    /// Answers to readings come late from now on.
    pub(super) fn delay_readings(&mut self) {
        self.delayed.get_or_insert_default();
    }

    /// They come now.
    pub(super) fn deliver_readings(&mut self) {
        self.inputs
            .extend(self.delayed.take().into_iter().flatten());
        self.wake();
    }

    /// The operator has the controller go on with another configuration.
    pub(super) fn reload(&mut self, config: Config) -> Result<Vec<String>, Vec<Fixed>> {
        self.wake();
        let now = self.now;
        let result = self.controller_mut().reload(now, config.clone());
        if result.is_ok() {
            self.config = config;
        }
        self.wake();
        result
    }

    /// The operator gives an order about the backends of this name.
    pub(super) fn order(&mut self, name: &str, order: Order) -> Result<Vec<Ordered>, Refusal> {
        self.give_order((name, None), order, false)
    }

    /// The operator adds a backend to the first service, or puts it back.
    pub(super) fn add(
        &mut self,
        name: &str,
        new: Option<BackendConfig>,
    ) -> Result<Changed, Refusal> {
        self.wake();
        let (now, service) = (self.now, self.config.services[0].name.clone());
        let target = (name, Some(service.as_str()));
        let result = self.controller_mut().add_backend(now, target, new);
        self.wake();
        result
    }

    /// The operator removes a backend of this name.
    pub(super) fn remove(&mut self, name: &str, drain: Duration) -> Result<Changed, Refusal> {
        self.wake();
        let now = self.now;
        let result = (self.controller_mut()).remove_backend(now, (name, None), drain, false);
        self.wake();
        result
    }

    /// The same with everything that can be said.
    pub(super) fn give_order(
        &mut self,
        target: (&str, Option<&str>),
        order: Order,
        force: bool,
    ) -> Result<Vec<Ordered>, Refusal> {
        self.wake();
        let now = self.now;
        let result = self.controller_mut().order(now, target, order, force);
        self.wake();
        result
    }

    // --- Time ---------------------------------------------------------------------------------

    /// Let time pass for a node that is alone.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.wake();
        while let Some(at) = self.next_event().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.wake();
        }
        self.now = end;
        self.wake();
    }

    /// When something happens next without anyone else.
    fn next_event(&self) -> Option<Timestamp> {
        let expiries = self.addresses.values().filter_map(|held| held.until);
        let probes = self.probes.iter().map(|(at, _)| *at);
        let timer = self.controller.iter().map(Controller::poll_timeout);
        let own = timer.chain(probes).filter(|_| self.runs());
        own.chain(expiries).min()
    }

    const fn runs(&self) -> bool {
        self.controller.is_some() && !self.frozen
    }

    /// The kernel's and the controller's work that is due now.
    pub(super) fn wake(&mut self) {
        let now = self.now;
        let before = self.addresses.len();
        let lives = |held: &Held| held.until.is_none_or(|until| until > now);
        self.addresses.retain(|_, held| lives(held));
        if self.addresses.len() != before {
            self.inputs.push_back(Input::NetworkChanged);
        }
        let mut probes = std::mem::take(&mut self.probes);
        probes.retain(|(at, input)| {
            let due = *at <= now;
            if due {
                self.inputs.push_back(input.clone());
            }
            !due
        });
        self.probes = probes;
        if !self.runs() {
            return;
        }
        while let Some((instance, src, message)) = self.inbox.pop_front() {
            let dst = group(src);
            let meta = RxMeta { src, dst, ttl: 255 };
            self.inputs.push_back(Input::Vrrp {
                instance,
                at: now,
                meta,
                message,
            });
        }
        self.feed();
        self.spurious_timeout();
        if self.controller().poll_timeout() <= now {
            self.controller_mut().handle_timeout(now);
        }
        self.feed();
        assert!(
            self.controller().poll_timeout() > now,
            "what is due was done"
        );
    }

    /// A timer that fires too early does nothing.
    fn spurious_timeout(&mut self) {
        let (now, due) = (self.now, self.controller().poll_timeout());
        if due > now {
            self.controller_mut().handle_timeout(now);
            assert!(self.controller_mut().poll_action().is_none());
            assert_eq!(self.controller().poll_timeout(), due);
        }
    }

    fn feed(&mut self) {
        loop {
            if let Some(action) = self.controller_mut().poll_action() {
                self.execute(action);
            } else if let Some(input) = self.inputs.pop_front() {
                let now = self.now;
                self.controller_mut().handle(now, input);
            } else {
                return;
            }
        }
    }

    pub(super) fn controller(&self) -> &Controller {
        self.controller.as_ref().unwrap()
    }

    pub(super) fn controller_mut(&mut self) -> &mut Controller {
        self.controller.as_mut().unwrap()
    }

    // --- What can be seen ---------------------------------------------------------------------

    /// What happened since the last call, with the milliseconds since the start.
    pub(super) fn trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    /// As [`Self::trace`]: lines that contain one of `words`, without their times.
    pub(super) fn trace_of(&mut self, words: &[&str]) -> Vec<String> {
        let trace = self.trace();
        let lines = trace.iter().map(|line| line.split_once(' ').unwrap().1);
        let wanted = lines.filter(|line| words.iter().any(|word| line.contains(word)));
        wanted.map(str::to_owned).collect()
    }

    /// Addresses of an interface.
    pub(super) fn addresses_of(&self, ifindex: u32) -> Vec<String> {
        let own = self.addresses.keys().filter(|(index, _)| *index == ifindex);
        own.map(|(_, net)| net.to_string()).collect()
    }

    /// Addresses of an interface that are VIPs.
    pub(super) fn vips_of(&self, ifindex: u32) -> Vec<String> {
        let mut vips = self.addresses_of(ifindex);
        vips.retain(|text| text.contains("100/"));
        vips
    }

    /// Whether this node answers for the addresses of instance `position`: it has them, and its
    /// lease is valid.
    pub(super) fn owns(&self, position: usize) -> bool {
        let slot = self.controller.as_ref().and_then(|own| own.slot(position));
        let lease = u32::try_from(slot.unwrap_or(position)).unwrap() + 1;
        let valid = self.leases.get(&lease).is_some_and(|end| *end > self.now);
        let address = self.config.vrrp[position].addresses[0].addr();
        let uplink = self.uplink();
        let own = self.addresses.keys();
        valid
            && own
                .into_iter()
                .any(|(i, net)| *i == uplink && net.addr() == address)
    }

    pub(super) fn states(&self, service: usize) -> Vec<BackendState> {
        let config = self.controller().config();
        let backends = 0..config.services[service].backends.len();
        let state = |backend| self.controller().backend(service, backend).unwrap().state;
        backends.map(state).collect()
    }

    pub(super) fn service(&self) -> Service {
        self.tables.v4.services[&APISERVER_KEY]
    }

    /// States of the backends in the tables, by id.
    pub(super) fn backends(&self) -> Vec<BackendState> {
        self.tables
            .v4
            .backends
            .values()
            .map(Backend::state)
            .collect()
    }

    /// Everything is as it shall be: the tables by what the controller knows, the addresses by
    /// who owns them.
    pub(super) fn assert_converged(&self) {
        let controller = self.controller();
        let config = controller.config();
        let services = 0..config.services.len();
        let health: Vec<_> = services.map(|service| self.states(service)).collect();
        let uplinks = fixture::uplinks(&self.config, controller.network());
        let influences = controller.influences();
        let facts = Facts {
            config,
            network: controller.network(),
            uplinks: &uplinks,
            health: &health,
            influences: &influences,
            leases: super::super::leases(&controller.roles),
            retiring: &controller.retiring,
            netns_cookie: COOKIE,
        };
        let observed = self.in_force();
        let desired = Builder::default().build(&facts, &observed);
        assert!(tables::plan(&desired.tables, &observed).is_empty());
        let loopback = crate::core::desired::loopback_vips(&facts);
        let on_lo = self.addresses.keys().filter(|(ifindex, _)| *ifindex == LO);
        let on_lo: BTreeSet<_> = on_lo.map(|(_, net)| net.addr()).collect();
        assert!(loopback.iter().all(|vip| on_lo.contains(vip)));
        for (position, vrrp) in self.config.vrrp.iter().enumerate() {
            let vip = vrrp.addresses[0].addr();
            let mut uplinks = self.addresses.keys().filter(|(ifindex, _)| *ifindex != LO);
            let has = uplinks.any(|(_, net)| net.addr() == vip);
            assert_eq!(has, self.owns(position), "{vip}");
        }
    }

    fn log(&mut self, what: impl AsRef<str>) {
        let since = self.now.saturating_since(Timestamp::default() + EPOCH);
        self.trace
            .push(format!("{} {}", since.as_millis(), what.as_ref()));
    }

    pub(super) fn uplink(&self) -> u32 {
        let uplink = self.interfaces.iter().find(|known| known.name == "eth0");
        uplink.map_or(0, |known| known.ifindex)
    }

    fn source(&self, ipv6: bool) -> IpAddr {
        let own = fixture::addresses(self.host);
        let mut own = own.iter().map(|own| own.net.addr());
        own.find(|own| own.is_ipv6() == ipv6 && !own.is_loopback())
            .unwrap()
    }

    // --- The kernel ---------------------------------------------------------------------------

    fn look(&mut self, track: usize, serial: u64) {
        let observation = self.looks.get(&track).cloned();
        let observation = observation.unwrap_or(Observation {
            condition: Condition::Met,
            seen: String::new(),
        });
        let input = Input::Looked {
            track,
            serial,
            observation,
        };
        self.probes.push((self.now + ms(1), input));
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::SendAdvert {
                instance,
                advert,
                not_after,
            } => self.send(instance, advert, not_after),
            Action::SetLease { lease, deadline } => self.set_lease(lease, deadline),
            Action::Announce {
                ifindex, addresses, ..
            } => {
                let has = self.has(ifindex, &addresses);
                assert!(has || !self.careful, "announced without having it");
                self.log(format!("announce {} on {ifindex}", addresses[0]));
            }
            Action::ProbeAddresses {
                ifindex, addresses, ..
            } => {
                let has = self.has(ifindex, &addresses);
                assert!(has || !self.careful, "asked without having it");
                self.asked.extend(addresses);
            }
            Action::SetVip { ifindex, net } => {
                self.log(format!("set {net} on {ifindex}"));
                let until = Some(self.now + VIP_LIFETIME);
                self.set_address(ifindex, net, until);
            }
            Action::SetLoopbackVip { ifindex, address } => {
                self.log(format!("set {address} on lo"));
                self.set_address(ifindex, IpNet::from(address), None);
            }
            Action::RemoveAddress { ifindex, net } => {
                self.log(format!("remove {net} from {ifindex}"));
                self.delete_address(ifindex, net);
            }
            Action::Resolve(address) => self.resolve(address),
            Action::Probe {
                service,
                backend,
                serial,
                timeout,
                ..
            } => self.probe(service, backend, serial, timeout),
            Action::AskAgent {
                service,
                backend,
                serial,
                target,
                ..
            } => {
                let said = self.agents.get(&target).copied().unwrap_or_default();
                self.inputs.push_back(Input::AgentSaid {
                    service,
                    backend,
                    serial,
                    report: AgentReport::parse(said.as_bytes()),
                });
            }
            Action::WriteTables(ops) => self.write(&ops),
            Action::Reset(deaths) => {
                for death in deaths {
                    let what = if death.order.tell { "tell" } else { "forget" };
                    let ended = death.order.epoch - 1;
                    self.log(format!(
                        "{what} flows of {} in epoch {ended}",
                        death.backend
                    ));
                }
            }
            Action::ClearSuspect { backend } => self.log(format!("clear suspect {backend}")),
            Action::Look { track, serial, .. } => self.look(track, serial),
            Action::LookUp(key) => self.look_up(key),
            Action::ReadTables => self.read_tables(),
            Action::ReadLinks => self.read_links(),
            Action::Attach(plans) => {
                let names = plans
                    .iter()
                    .map(|plan| format!("{} ({})", plan.name, plan.carrier));
                self.log(format!("attach {}", names.collect::<Vec<_>>().join(", ")));
                let attached = fixture::attached(&plans);
                self.inputs.push_back(Input::Attached(attached));
            }
            Action::Listen { instance, ifindex } => {
                self.log(format!("listen {} on {ifindex:?}", instance + 1));
                let is_ipv6 = self
                    .controller()
                    .vrrp_config(instance)
                    .map(VrrpConfig::is_ipv6);
                if let Some(is_ipv6) = is_ipv6.filter(|_| ifindex.is_some()) {
                    let address = self.source(is_ipv6);
                    let input = Input::Listening { instance, address };
                    self.inputs.push_back(input);
                }
            }
            Action::SaveOperator(saved) => self.save(saved),
            Action::Notify(notice) => self.notices.push(notice),
            Action::Report(event) => self.log(format!("report {}", words(&event))),
        }
    }

    fn look_up(&mut self, key: HostKey) {
        self.log(format!("look {} up", key.host));
        let answer = match self.hosts.get(key.host.as_str()) {
            Some(found) => Answer::Found(found.split(',').map(fixture::ip).collect()),
            None => Answer::Failed("no such host".to_owned()),
        };
        let input = Input::LookedUp { key, answer };
        self.probes.push((self.now + self.lookup_time, input));
    }

    fn save(&mut self, saved: Saved) {
        self.log(format!("save {} words", saved.words.len()));
        self.saved = saved.words;
        self.roster = saved.roster;
        self.names = saved.names;
    }

    fn has(&self, ifindex: u32, addresses: &[IpAddr]) -> bool {
        let mut own = self.addresses.keys();
        own.any(|(index, net)| *index == ifindex && addresses.contains(&net.addr()))
    }

    fn send(&mut self, instance: usize, advert: Advert, not_after: Timestamp) {
        assert!(self.now < not_after);
        let input = if self.adverts_fail || self.uplink() == 0 {
            Input::AdvertFailed { instance }
        } else {
            self.log(format!(
                "advert {} priority {}",
                instance + 1,
                advert.priority
            ));
            self.outbox.push((instance, advert));
            Input::AdvertSent {
                instance,
                at: self.now,
            }
        };
        let now = self.now;
        self.controller_mut().handle(now, input);
    }

    fn set_lease(&mut self, lease: u32, deadline: Option<Timestamp>) {
        if let Some(deadline) = deadline {
            let left = deadline.saturating_since(self.now).as_millis();
            self.log(format!("lease {lease} for {left}"));
            self.leases.insert(lease, deadline);
        } else {
            self.log(format!("lease {lease} ends"));
            self.leases.remove(&lease);
        }
    }

    fn set_address(&mut self, ifindex: u32, net: IpNet, until: Option<Timestamp>) {
        if !self.interfaces.iter().any(|known| known.ifindex == ifindex) {
            return; // ENODEV
        }
        let held = Held {
            ours: true,
            until,
            secondary: false,
        };
        let new = self.addresses.insert((ifindex, net), held).is_none();
        if new && !self.controller().network().knows_address(ifindex, net) {
            self.inputs.push_back(Input::NetworkChanged);
        }
    }

    fn resolve(&mut self, address: IpAddr) {
        let mut hop = fixture::hop(address);
        hop.ifindex = self.uplink();
        let reached = hop.ifindex != 0;
        self.inputs.push_back(Input::Hop {
            address,
            hop: reached.then_some(hop),
        });
        if let Some(&mac) = self.macs.get(&hop.gateway).filter(|_| reached) {
            self.inputs.push_back(Input::Neighbour {
                ifindex: hop.ifindex,
                address: hop.gateway,
                mac,
            });
        }
    }

    fn probe(&mut self, service: usize, backend: usize, serial: u64, timeout: Duration) {
        let config = &self.controller().config().services[service];
        // Its answer does not count if it is gone.
        let name = (config.backends.get(backend)).map_or("", |own| own.name.as_str());
        let mood = self.moods.get(name).copied().unwrap_or(Mood::Answers);
        let failed = |failure| Finding::Failed {
            stage: Stage::Connect,
            failure,
        };
        let (finding, takes) = match mood {
            Mood::Answers => (Finding::Connected, ms(1)),
            Mood::Refuses => (failed(Failure::Refused), ms(1)),
            Mood::Unready => {
                let finding = Finding::Status {
                    code: 503,
                    expected: false,
                    note: None,
                };
                (finding, ms(1))
            }
            Mood::Silent => (failed(Failure::TimedOut), timeout),
        };
        let finished = self.now + takes;
        let times = StageTimes {
            connect: Some(takes),
            ..StageTimes::default()
        };
        let result = ProbeResult {
            backend,
            serial,
            started: self.now,
            finished,
            outcome: ProbeOutcome { finding, times },
        };
        self.probes
            .push((finished, Input::Probed { service, result }));
    }

    fn write(&mut self, ops: &[TableOp]) {
        self.log(format!("write {}", names(ops).join(", ")));
        let fails = self.failing_writes > 0;
        self.failing_writes -= usize::from(fails);
        let written = if fails { ops.len() / 2 } else { ops.len() };
        for op in ops.iter().take(written) {
            self.check(op);
            self.tables.apply(op);
            if self.careful {
                assert_sound(&self.tables);
            }
        }
        if fails {
            self.inputs.push_back(Input::TablesFailed);
        }
    }

    /// A table in force is never written to: readers would see half of it.
    fn check(&self, op: &TableOp) {
        if let TableOp::Maglev(index, table) = op
            && self.careful
        {
            let v4 = self.tables.v4.services.values();
            let mut services = v4.chain(self.tables.v6.services.values());
            let same = self.tables.maglev.get(index) == Some(table);
            assert!(same || services.all(|service| service.table() != *index));
        }
    }

    fn in_force(&self) -> Tables {
        let mut tables = self.tables.clone();
        let v4 = tables.v4.services.values();
        let in_force: BTreeSet<u32> = v4
            .chain(tables.v6.services.values())
            .map(Service::table)
            .collect();
        tables.maglev.retain(|index, _| in_force.contains(index));
        for index in in_force {
            let empty = || Arc::new(MaglevTable::EMPTY);
            tables.maglev.entry(index).or_insert_with(empty);
        }
        tables
    }

    fn read_tables(&mut self) {
        self.log("read tables");
        let answer = if self.reading_fails() {
            Input::TablesFailed
        } else {
            Input::Tables(Box::new(self.in_force()))
        };
        self.answer(answer);
    }

    fn read_links(&mut self) {
        self.log("read links");
        let own = self.addresses.iter();
        let addresses = own.map(|((ifindex, net), held)| InterfaceAddress {
            ifindex: *ifindex,
            net: *net,
            ours: held.ours,
            secondary: held.secondary,
        });
        let addresses = addresses.collect();
        let answer = if self.reading_fails() {
            Input::LinksFailed
        } else {
            Input::Links {
                interfaces: self.interfaces.clone(),
                addresses,
            }
        };
        self.answer(answer);
    }

    fn reading_fails(&mut self) -> bool {
        let fails = self.failing_readings > 0;
        self.failing_readings -= usize::from(fails);
        fails
    }

    fn answer(&mut self, answer: Input) {
        match &mut self.delayed {
            Some(delayed) => delayed.push_back(answer),
            None => self.inputs.push_back(answer),
        }
    }
}

/// Several nodes on one link.
pub(super) struct Link {
    pub(super) nodes: Vec<Node>,
    /// Pairs (from, to) that do not hear each other.
    pub(super) cut: BTreeSet<(usize, usize)>,
}

impl Link {
    /// master10, master11, ... with `services`, started now.
    pub(super) fn start(count: usize, services: &str) -> Self {
        let hosts = fixture::MASTERS.iter().take(count);
        let mut link = Self {
            nodes: hosts.map(|host| Node::start(*host, services)).collect(),
            cut: BTreeSet::new(),
        };
        link.deliver();
        link
    }

    /// Let time pass for all. What `check` says holds at every event.
    pub(super) fn run(&mut self, duration: Duration, mut check: impl FnMut(&Self)) {
        let end = self.nodes[0].now + duration;
        for node in &mut self.nodes {
            node.wake();
        }
        loop {
            self.deliver();
            check(self);
            let next = self.nodes.iter().filter_map(Node::next_event).min();
            let Some(at) = next.filter(|at| *at <= end) else {
                break;
            };
            for node in &mut self.nodes {
                node.now = node.now.max(at);
                node.wake();
            }
        }
        for node in &mut self.nodes {
            node.now = end;
        }
    }

    /// Nodes that answer for the addresses of instance `position`.
    pub(super) fn owners(&self, position: usize) -> Vec<u8> {
        let owners = self.nodes.iter().filter(|node| node.owns(position));
        owners.map(|node| node.host).collect()
    }

    fn deliver(&mut self) {
        while let Some(from) = self.nodes.iter().position(|node| !node.outbox.is_empty()) {
            let sent = std::mem::take(&mut self.nodes[from].outbox);
            for (_, advert) in sent {
                let src = self.nodes[from].source(advert.addresses[0].is_ipv6());
                let bytes = packet::emit(&advert, src, group(src), V3Checksum::default());
                for to in 0..self.nodes.len() {
                    let node = &mut self.nodes[to];
                    let hears = to != from && !self.cut.contains(&(from, to)) && node.uplink() != 0;
                    if let Some(instance) = node.slot_of(src.is_ipv6()).filter(|_| hears) {
                        node.inbox.push_back((instance, src, bytes.clone()));
                        node.wake();
                    }
                }
            }
        }
    }
}

const fn group(src: IpAddr) -> IpAddr {
    match src {
        IpAddr::V4(_) => IpAddr::V4(GROUP_V4),
        IpAddr::V6(_) => IpAddr::V6(GROUP_V6),
    }
}

/// Whoever selects a backend at any moment finds one that is there and takes new flows.
fn assert_sound(tables: &Tables) {
    for service in tables
        .v4
        .services
        .values()
        .filter(|service| service.usable())
    {
        let table = tables.maglev.get(&service.table()).expect("filled first");
        let ids: BTreeSet<u16> = table.slots().iter().copied().collect();
        for id in ids {
            let backend = tables.v4.backends.get(&u32::from(id));
            let backend = backend.expect("written before it is selected");
            assert_ne!(backend.state(), BackendState::Down, "selected while down");
        }
    }
}

fn names(ops: &[TableOp]) -> Vec<String> {
    let name = |op: &TableOp| match op {
        TableOp::V4(op) => family_name(op),
        TableOp::V6(op) => format!("{} of IPv6", family_name(op)),
        TableOp::Maglev(index, _) => format!("maglev {index}"),
        TableOp::PeerMac(_, value) => with(value.is_some(), "peer MAC"),
        TableOp::Uplink(key, value) => with(value.is_some(), &format!("uplink {}", key.ifindex())),
        TableOp::Node(_) => "node".to_owned(),
    };
    ops.iter().map(name).collect()
}

fn family_name<A: lb_common::abi::Address>(op: &FamilyOp<A>) -> String {
    match op {
        FamilyOp::Service(_, Some(service)) => format!("service by {}", service.table()),
        FamilyOp::Service(_, None) => "no service".to_owned(),
        FamilyOp::Backend(id, Some(backend)) => format!("backend {id} {:?}", backend.state()),
        FamilyOp::Backend(id, None) => format!("no backend {id}"),
        FamilyOp::Vip(_, value) => with(value.is_some(), "VIP"),
        FamilyOp::PeerAddr(_, value) => with(value.is_some(), "peer"),
        FamilyOp::ReplyPort(_, value) => with(value.is_some(), "reply port"),
        FamilyOp::NatSource(_, value) => with(value.is_some(), "nat source"),
        FamilyOp::Source(_, value) => with(value.is_some(), "source rule"),
    }
}

fn with(present: bool, what: &str) -> String {
    format!("{}{what}", if present { "" } else { "no " })
}

fn words(event: &Event) -> String {
    match event {
        Event::Vrrp { name, from, to, .. } => format!("{name} {from:?} -> {to:?}"),
        Event::Backend {
            backend, from, to, ..
        } => format!("{backend} {from:?} -> {to:?}"),
        Event::Fitness { name, fitness, .. } if fitness.fault => format!("{name} fault"),
        Event::Fitness { name, fitness, .. } => format!("{name} fit for {}", fitness.priority),
        Event::Quorum {
            service, on_loss, ..
        } => match on_loss {
            Some(policy) => format!("{service} lost its quorum: {policy:?}"),
            None => format!("{service} has its quorum"),
        },
        Event::Operator { backend, what, .. } => format!("operator {backend}: {what}"),
        Event::Late { name, late, .. } => format!("{name} late: {}", late.timers),
        Event::BadAdvert { name, what, .. } => format!("{name} hears: {what}"),
        Event::Duplicate { name, what, .. } | Event::DuplicateGone { name, what, .. } => {
            format!("{name} duplicate: {what}")
        }
        Event::Name { host, change } => match &change.failure {
            Some(why) => format!("name {host}: {why}"),
            None => format!("name {host}: {:?}", change.address),
        },
        Event::Nameless { backend, why, .. } => format!("nameless {backend}: {why}"),
        Event::UplinkMissing { interface } => format!("missing {interface}"),
        Event::Repaired { what } => format!("repaired {what}"),
    }
}
