//! The event loop: carries the controller's actions out and feeds it with what happens.
//!
//! Controller, VRRP sockets, netlink and maps live on one thread whose calls are short. Probes
//! run on threads of their own: a TLS handshake never delays an advert.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::select_all;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    announce::Announcer,
    bpf::{
        self, BpfError, Conntrack, Counts, DataPlane, Loading, Outcome, Pins, features::Features,
        ring::RingError,
    },
    claims::ClaimWatch,
    clock,
    collect::Collector,
    kernel::{self, UnknownFeature},
    listeners::ListenerWatch,
    look::Looker,
    mounts,
    mounts::{Bpffs, MountError},
    names::Lookups,
    netlink::{AddressSpec, NetEvent, NetEvents, Netlink, NetlinkError},
    netns::{self, NetnsCookieError},
    notify::Notifier,
    observe::{Asker, Observer},
    operator_file::{self, OperatorFile},
    orders,
    plane_events::PlaneEvents,
    privilege::{self, PrivilegeError},
    probe::{self, ServiceProber},
    reader::{self, NetworkReader},
    realtime::Realtime,
    reload::{self, Fresh, Read, ReloadError, Reloads, ServiceProbeError},
    resets::{ResetError, Resetter},
    settings::{SettingError, SettingsWatch},
    status,
    sysctl::SysctlError,
    undo::{self, Undo},
    users::{self, UserError},
    virtual_macs::VirtualMacs,
    vrrp_socket::{Received, VrrpSocket, VrrpSocketError},
};
use crate::{
    admin::{
        Paths,
        lock::InstanceLock,
        model::{Command, CommandError, Reply, VrrpReply},
        server::{AdminRequest, AdminServer, BindError, Limits},
        vrrp_targets,
    },
    config::model::{Config, OnQuorumLoss, VrrpConfig},
    core::{
        attach::{self, Attachment, Mode, Plan},
        controller::{Action, Controller, Event, Input, VIP_LIFETIME},
        health::ProbeResult,
        kernel::{Feature, Kernel, Unsupported},
        names::Change,
        network::Network,
        time::Timestamp,
        tracking::Fitness,
        vrrp::{Advert, Cause},
    },
};

/// Threads for probes.
const PROBE_THREADS: usize = 2;
/// Pause before a VRRP socket that could not be opened, or failed, is opened again.
const SOCKET_RETRY: Duration = Duration::from_secs(1);
/// Network events that are taken in before anything else is done.
const EVENTS_PER_TURN: usize = 1_000;

/// Why the controller could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The process may not do what it has to.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// The kernel is too old, or lacks something that nothing stands in for.
    #[error(transparent)]
    Kernel(#[from] Unsupported),
    /// Somebody wants to do without a feature that there is not.
    #[error(transparent)]
    Feature(#[from] UnknownFeature),
    /// None of the uplinks is there; this is the first one.
    #[error("node.interfaces: there is no interface {name:?} on this node (there are: {})", known.join(", "))]
    NoInterface {
        /// Its name.
        name: String,
        /// Those that are there.
        known: Vec<String>,
    },
    /// No uplink is an Ethernet interface.
    #[error("node.interfaces: {0:?} has no Ethernet address, so it cannot carry the data plane")]
    NoMac(String),
    /// The data plane.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// A file system.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What clients of dead backends are reset with.
    #[error("resets: {0}")]
    Resets(#[from] ResetError),
    /// What the data plane tells.
    #[error("events of the data plane: {0}")]
    Events(#[from] RingError),
    /// Netlink.
    #[error("netlink: {0}")]
    Netlink(#[from] NetlinkError),
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A kernel setting that is kept.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The network namespace's cookie.
    #[error(transparent)]
    Netns(#[from] NetnsCookieError),
    /// A service's checks.
    #[error(transparent)]
    Probe(#[from] ServiceProbeError),
    /// A user that a program runs as.
    #[error(transparent)]
    User(#[from] UserError),
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] BindError),
    /// The runtime itself.
    #[error("cannot set up the runtime: {0}")]
    Runtime(#[from] io::Error),
}

impl RunError {
    /// Whether a privilege or a kernel feature is missing.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Bpf(error) => {
                error.is_permission()
                    || matches!(
                        error,
                        BpfError::Load(_) | BpfError::Program { .. } | BpfError::Refused(_)
                    )
            }
            Self::Privilege(_) | Self::Kernel(_) | Self::Mount(_) | Self::Netns(_) => true,
            Self::Sysctl(error) | Self::Setting(SettingError::Sysctl(error)) => error.is_refused(),
            Self::Admin(error) => error.is_permission(),
            Self::Runtime(error) => error.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }
}

/// Run the controller of `config` until SIGTERM or SIGINT. `config_file` is where it was read from,
/// and is read from again on request.
pub fn run(config: Config, config_file: &Path, lock: InstanceLock) -> Result<(), RunError> {
    let kernel = try_kernel(&config)?;
    kernel.check()?;
    report_kernel(&kernel);
    let probes = runtime::Builder::new_multi_thread()
        .worker_threads(PROBE_THREADS)
        .thread_name("xvip-probe")
        .enable_all()
        .build()?;
    let main = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = main.block_on(async {
        let admin = AdminServer::bind(lock, Limits::default())?;
        let config_file = config_file.to_owned();
        let engine = Engine::start(config, config_file, kernel, &admin, probes.handle())?;
        engine.run(&admin).await
    });
    // Probes under way are dropped, which resets their connections.
    probes.shutdown_background();
    result
}

/// What this machine's kernel has of what xvip uses with `config`.
pub fn try_kernel(config: &Config) -> Result<Kernel, RunError> {
    // Without privileges every trial would fail.
    privilege::check()?;
    Ok(kernel::detect(&config.node.cgroup)?)
}

fn report_kernel(kernel: &Kernel) {
    match kernel.summary() {
        Some(summary) if kernel.is_slow() => warn!("{summary}"),
        Some(summary) => info!("{summary}"),
        None => {}
    }
}

/// Counters that were read for somebody who asked for the status.
struct Counted {
    counts: Counts,
    reply: StatusReply,
}

type StatusReply = oneshot::Sender<Result<Reply, CommandError>>;

/// Everything that actions are carried out on.
struct Engine {
    controller: Controller,
    data_plane: DataPlane,
    netlink: Netlink,
    events: NetEvents,
    reader: NetworkReader,
    /// By slot of the instance: where its socket is to be, and the socket once it is open.
    listening: Vec<Option<NonZeroU32>>,
    sockets: Vec<Option<VrrpSocket>>,
    socket_retry: Option<Instant>,
    announcers: BTreeMap<u32, Announcer>,
    claims: ClaimWatch,
    probers: Vec<Arc<ServiceProber>>,
    probe_runtime: runtime::Handle,
    probed: mpsc::UnboundedSender<Input>,
    results: mpsc::UnboundedReceiver<Input>,
    counting: mpsc::UnboundedSender<Counted>,
    counted: mpsc::UnboundedReceiver<Counted>,
    inputs: VecDeque<Input>,
    /// What was said of the attachments last.
    attached: Vec<Attachment>,
    attach_failures: Vec<String>,
    resetter: Resetter,
    plane_events: PlaneEvents,
    facts: status::Facts,
    reloads: Reloads,
    collector: Collector,
    listeners: ListenerWatch,
    settings: SettingsWatch,
    observer: Observer,
    operator_file: OperatorFile,
    notifier: Notifier,
    realtime: Realtime,
    virtual_macs: VirtualMacs,
    looker: Looker,
    lookups: Lookups,
}

impl Engine {
    fn start(
        config: Config,
        config_file: PathBuf,
        kernel: Kernel,
        admin: &AdminServer,
        probe_runtime: &runtime::Handle,
    ) -> Result<Self, RunError> {
        // Subscribed before the first reading: no change is missed.
        let events = NetEvents::open()?;
        let mut netlink = Netlink::open()?;
        let plans = first_plans(&config, &mut netlink)?;
        if mounts::ensure_bpffs(Path::new(mounts::BPFFS))? == Bpffs::Mounted {
            info!(
                path = mounts::BPFFS,
                "mounted a BPF file system: the data plane is pinned there"
            );
        }
        let cgroup = mounts::open_cgroup(&config.node.cgroup)?;
        let pins = Pins::new(&config.node.instance);
        let features = Features::of(&kernel);
        let loading = Loading {
            object: bpf::object(),
            pins: pins.clone(),
            features,
            tcx: kernel.has(Feature::Tcx),
            paths: Paths::new(&config.node.state_dir, &config.node.instance),
        };
        // First of all that changes something: a kernel that refuses a program is left as it was.
        let hooks = cgroup.as_ref().map(|cgroup| &cgroup.directory);
        let mut data_plane = DataPlane::open(&loading, hooks, &plans)?;
        let settings = SettingsWatch::start(undo::file(&config))?;
        for warning in &data_plane.warnings {
            warn!("{warning}");
        }
        // Before VRRP starts: some drivers reset the link when a program is attached.
        let mut outcome = data_plane.attach(&plans);
        if !outcome.failures.is_empty() {
            return Err(outcome.failures.remove(0).into());
        }
        let probers = reload::probers(&config)?;
        users::check(&config)?;
        let (probed, results) = mpsc::unbounded_channel();
        let reader = NetworkReader::start(Netlink::open()?, probed.clone())?;
        let (counting, counted) = mpsc::unbounded_channel();
        let cookie = netns::cookie()?.get();
        let now = clock::now();
        let facts = status::Facts {
            started: now,
            cgroup: cgroup.map(|cgroup| cgroup.path),
            kernel,
        };
        info!(
            node = config.node.name,
            instance = config.node.instance,
            admin = %admin.path().display(),
            "xvip {} starts", env!("CARGO_PKG_VERSION")
        );
        let sockets = config.vrrp.iter().map(|_| None).collect();
        let observer = Observer::new(loading, probe_runtime.clone(), probed.clone());
        let listening = config.vrrp.iter().map(|_| None).collect();
        let operator_file = OperatorFile::start(&config)?;
        let saved = operator_file::load(&config);
        let notifier = Notifier::start(&config, probe_runtime);
        // The seed only has to differ between nodes.
        let mut controller = Controller::new(config, now, cookie, now.as_nanos());
        controller.restore(now, saved);
        let mut engine = Self {
            controller,
            data_plane,
            netlink,
            events,
            reader,
            listening,
            sockets,
            socket_retry: None,
            announcers: BTreeMap::new(),
            claims: ClaimWatch::new(probed.clone()),
            probers,
            probe_runtime: probe_runtime.clone(),
            looker: Looker::new(probe_runtime.clone(), probed.clone()),
            lookups: Lookups::new(probe_runtime.clone(), probed.clone()),
            probed,
            results,
            counting,
            counted,
            inputs: VecDeque::new(),
            attached: Vec::new(),
            attach_failures: Vec::new(),
            resetter: Resetter::start(&pins)?,
            plane_events: PlaneEvents::open(&pins)?,
            facts,
            reloads: Reloads::new(config_file, probe_runtime.clone(), now),
            collector: Collector::start(Conntrack::open(&pins)?)?,
            listeners: ListenerWatch::start(&pins, !features.sockmap_update)?,
            settings,
            observer,
            operator_file,
            notifier,
            realtime: Realtime::of_this_thread(probe_runtime)?,
            virtual_macs: VirtualMacs::default(),
        };
        engine.take_outcome(outcome);
        // Loading programs took its time, which an ordinary thread may take.
        engine.realtime.follow(engine.controller.config());
        Ok(engine)
    }

    async fn run(mut self, admin: &AdminServer) -> Result<(), RunError> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (requests, mut asked) = mpsc::channel(Limits::default().clients);
        let serve = admin.serve(requests);
        tokio::pin!(serve);
        loop {
            self.turn();
            if self.controller.is_stopping() {
                let result = self.virtual_macs.clear(&mut self.netlink);
                warn_of("cannot give up a virtual MAC", result);
                // Nobody waits for this node any more.
                self.notifier.finish().await;
                info!("xvip stops; the data plane goes on (xvip detach removes it)");
                return Ok(());
            }
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = sleep_until(deadline) => {}
                (instance, received) = next_packet(&self.sockets) => {
                    self.take_packet(instance, received);
                }
                Some(input) = self.results.recv() => self.inputs.push_back(input),
                event = self.events.next() => self.take_event(event),
                input = self.plane_events.next() => self.inputs.push_back(input),
                Some(request) = asked.recv() => self.answer(request),
                Some(counted) = self.counted.recv() => self.answer_status(counted),
                _ = terminate.recv() => self.inputs.push_back(Input::Stop),
                _ = interrupt.recv() => self.inputs.push_back(Input::Stop),
                _ = hangup.recv() => self.reloads.ask(None),
                read = self.reloads.next() => self.take_config(read),
                never = &mut serve => match never {},
            }
        }
    }

    /// Take in all that has happened, do all that is due, carry out all that follows.
    fn turn(&mut self) {
        // A decision that rests on silence is one for the time until which the sockets are known to
        // be drained: this thread may be stopped anywhere below, for longer than a takeover needs.
        let heard_until = self.drain_sockets();
        if self.socket_retry.is_some_and(|at| at <= Instant::now()) {
            self.open_sockets();
        }
        self.feed();
        if self.controller.poll_timeout() <= heard_until {
            self.controller.handle_timeout(heard_until);
        }
        self.feed();
    }

    /// Hand queued inputs to the controller and carry its actions out, until there are no more.
    fn feed(&mut self) {
        loop {
            if let Some(action) = self.controller.poll_action() {
                self.execute(action);
            } else if let Some(input) = self.inputs.pop_front() {
                self.controller.handle(clock::now(), input);
            } else {
                return;
            }
        }
    }

    fn deadline(&self) -> Instant {
        let wait = self
            .controller
            .poll_timeout()
            .saturating_since(clock::now());
        let controller = Instant::now() + wait;
        self.socket_retry
            .map_or(controller, |retry| retry.min(controller))
    }

    fn probe(
        &self,
        (service, backend, serial): (usize, usize, u64),
        target: SocketAddr,
        (limit, reuse): (Duration, bool),
    ) {
        let Some(prober) = self.probers.get(service).map(Arc::clone) else {
            return;
        };
        let config = self.controller.config().services.get(service);
        let config = config.and_then(|config| config.backends.get(backend));
        let name = config.map_or_else(String::new, |config| config.name.clone());
        let probed = self.probed.clone();
        self.probe_runtime.spawn(async move {
            let started = clock::now();
            let outcome = prober.probe(&name, target, limit, reuse).await;
            let finished = clock::now();
            let result = ProbeResult {
                backend,
                serial,
                started,
                finished,
                outcome,
            };
            // Nobody listens any more when the controller ends.
            let _ = probed.send(Input::Probed { service, result });
        });
    }

    fn ask_agent(
        &self,
        (service, backend, serial): (usize, usize, u64),
        target: SocketAddr,
        (send, limit): (String, Duration),
    ) {
        let asked = self.probed.clone();
        self.probe_runtime.spawn(async move {
            let report = probe::agent::ask(target, &send, limit).await;
            let _ = asked.send(Input::AgentSaid {
                service,
                backend,
                serial,
                report,
            });
        });
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::SendAdvert {
                instance,
                advert,
                not_after,
            } => {
                let input = self.send_advert(instance, &advert, not_after);
                // Before everything else: what follows from it is the takeover.
                self.controller.handle(clock::now(), input);
            }
            Action::SetLease { lease, deadline } => {
                let result = self.data_plane.maps.set_lease(lease, deadline);
                warn_of("cannot write a lease", result);
            }
            Action::Announce {
                ifindex,
                mac,
                addresses,
            } => {
                self.announce(ifindex, mac, &addresses);
            }
            Action::ProbeAddresses {
                ifindex,
                mac,
                addresses,
            } => self.claims.probe(ifindex, mac, &addresses),
            Action::SetVip { ifindex, net } => {
                let spec = AddressSpec::owned_vip(ifindex, net, VIP_LIFETIME);
                warn_of("cannot add a VIP", self.netlink.set_address(&spec));
            }
            Action::SetLoopbackVip { ifindex, address } => {
                let spec = AddressSpec::loopback_vip(ifindex, address);
                warn_of("cannot add a VIP to lo", self.netlink.set_address(&spec));
            }
            Action::RemoveAddress { ifindex, net } => {
                let result = self.netlink.remove_address(ifindex, net);
                warn_of("cannot remove an address", result);
            }
            Action::Resolve(address) => self.reader.resolve(address),
            Action::Probe {
                service,
                backend,
                serial,
                timeout,
                target,
                reuse,
            } => self.probe((service, backend, serial), target, (timeout, reuse)),
            Action::AskAgent {
                service,
                backend,
                serial,
                timeout,
                target,
                send,
            } => self.ask_agent((service, backend, serial), target, (send, timeout)),
            Action::Look {
                track,
                serial,
                subject,
            } => self.looker.look(track, serial, subject),
            Action::LookUp(key) => self.lookups.look_up(key),
            Action::WriteTables(ops) => {
                let written = ops.iter().try_for_each(|op| self.data_plane.maps.write(op));
                if let Err(error) = written {
                    warn!(%error, "cannot write to the data plane; trying again");
                    self.inputs.push_back(Input::TablesFailed);
                }
            }
            Action::Reset(deaths) => self.resetter.reset(deaths),
            Action::ClearSuspect { backend } => {
                let result = self.data_plane.maps.clear_suspect(backend);
                warn_of("cannot clear a suspicion", result);
            }
            Action::ReadTables => self.read_tables(),
            Action::ReadLinks => self.reader.read_links(),
            Action::Attach(plans) => {
                let outcome = self.data_plane.attach(&plans);
                self.take_outcome(outcome);
            }
            Action::Listen { instance, ifindex } => self.listen(instance, ifindex),
            Action::SaveOperator(saved) => self.operator_file.save(saved),
            Action::Notify(notice) => self.notifier.tell(notice),
            Action::Report(event) => report(event),
        }
    }

    // --- Uplinks ------------------------------------------------------------------------------

    /// Say what changed, and let the controller know.
    fn take_outcome(&mut self, outcome: Outcome) {
        let Outcome {
            attached,
            repaired,
            warnings,
            failures,
        } = outcome;
        for what in repaired {
            report(Event::Repaired { what });
        }
        for warning in &warnings {
            warn!("{warning}");
        }
        for own in attached.iter().filter(|own| !self.attached.contains(own)) {
            report_attachment(own);
        }
        let failures: Vec<_> = failures.iter().map(ToString::to_string).collect();
        for failure in failures
            .iter()
            .filter(|text| !self.attach_failures.contains(text))
        {
            warn!("{failure}; trying again");
        }
        self.attach_failures = failures;
        self.attached.clone_from(&attached);
        self.inputs.push_back(Input::Attached(attached));
    }

    // --- VRRP ---------------------------------------------------------------------------------

    /// The interface of an instance is another one now, or gone.
    fn listen(&mut self, instance: usize, ifindex: Option<u32>) {
        if let (Some(listening), Some(socket)) = (
            self.listening.get_mut(instance),
            self.sockets.get_mut(instance),
        ) {
            *listening = ifindex.and_then(NonZeroU32::new);
            *socket = None;
        }
        // Bound to an interface that may be gone.
        self.announcers.clear();
        self.claims.clear();
        let config = self.controller.vrrp_config(instance);
        let place = ifindex.zip(config.and_then(VrrpConfig::virtual_mac));
        let result = self.virtual_macs.place(&mut self.netlink, instance, place);
        warn_of("cannot have a virtual MAC received", result);
        if ifindex.is_none() {
            return;
        }
        if let Some(vrrp) = self.controller.vrrp_config(instance) {
            let result = self.settings.add_vip_interface(&vrrp.interface);
            warn_of("cannot set up the interface of a VRRP instance", result);
        }
        self.open_socket(instance);
    }

    fn open_sockets(&mut self) {
        self.socket_retry = None;
        for position in 0..self.sockets.len() {
            if self.sockets.get(position).is_some_and(Option::is_none) {
                self.open_socket(position);
            }
        }
    }

    fn open_socket(&mut self, position: usize) {
        let Some(config) = self.controller.vrrp_config(position) else {
            return;
        };
        // Without an interface there is nothing to try again.
        let Some(ifindex) = self.listening.get(position).copied().flatten() else {
            return;
        };
        match VrrpSocket::open(config, ifindex) {
            Ok(socket) => {
                let address = socket.source();
                self.inputs.push_back(Input::Listening {
                    instance: position,
                    address,
                });
                if let Some(slot) = self.sockets.get_mut(position) {
                    *slot = Some(socket);
                }
            }
            Err(error) => {
                warn!(vrrp = config.name, %error, "cannot open the VRRP socket; trying again");
                self.socket_retry = Some(Instant::now() + SOCKET_RETRY);
            }
        }
    }

    fn send_advert(&mut self, instance: usize, advert: &Advert, not_after: Timestamp) -> Input {
        let at = clock::now();
        let Some(socket) = self.sockets.get(instance).and_then(Option::as_ref) else {
            return Input::AdvertFailed { instance };
        };
        if at >= not_after {
            return Input::AdvertFailed { instance };
        }
        match socket.send(advert) {
            Ok(sent) => {
                if sent.failed > 0 {
                    debug!(
                        instance,
                        failed = sent.failed,
                        "an advert did not reach every peer"
                    );
                }
                Input::AdvertSent { instance, at }
            }
            Err(error) => {
                warn!(instance, %error, "cannot send an advert");
                Input::AdvertFailed { instance }
            }
        }
    }

    /// Takes in every advert that waits. Everything that came before the time that is returned is in
    /// the inputs.
    fn drain_sockets(&mut self) -> Timestamp {
        let before = clock::now();
        for position in 0..self.sockets.len() {
            while let Some(received) = self
                .sockets
                .get(position)
                .and_then(Option::as_ref)
                .map(VrrpSocket::try_recv)
            {
                match received {
                    Ok(Some(received)) => self.take_packet(position, Ok(received)),
                    Ok(None) => break,
                    Err(error) => self.take_packet(position, Err(error)),
                }
            }
        }
        before
    }

    fn take_packet(&mut self, instance: usize, received: Result<Received, VrrpSocketError>) {
        match received {
            Ok(Received { age, meta, message }) => {
                self.inputs.push_back(Input::Vrrp {
                    instance,
                    at: clock::now() - age,
                    meta,
                    message,
                });
            }
            Err(error) => {
                warn!(instance, %error, "the VRRP socket failed; opening it again");
                if let Some(slot) = self.sockets.get_mut(instance) {
                    *slot = None;
                }
                self.socket_retry = Some(Instant::now() + SOCKET_RETRY);
            }
        }
    }

    fn announce(&mut self, ifindex: u32, mac: [u8; 6], addresses: &[IpAddr]) {
        let announcer = match self.announcers.entry(ifindex) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => match Announcer::open(ifindex) {
                Ok(announcer) => vacant.insert(announcer),
                Err(error) => return warn!(%error, "cannot announce the VIP"),
            },
        };
        for &address in addresses {
            if let Err(error) = announcer.announce(mac, address) {
                warn!(%address, %error, "cannot announce the VIP");
            }
        }
    }

    // --- Network and tables -------------------------------------------------------------------

    fn take_event(&mut self, event: Result<NetEvent, NetlinkError>) {
        let mut failed = event.is_err();
        let mut changed = self.note_event(event);
        // A change comes with many events: they are taken together.
        // There is always more while routes flap: other work is due, too.
        let mut left = EVENTS_PER_TURN;
        while !failed
            && left > 0
            && let Some(event) = self.events.try_next().transpose()
        {
            failed = event.is_err();
            changed |= self.note_event(event);
            left -= 1;
        }
        if failed {
            // Such a socket only repeats its error. Without a new one the audit sees changes.
            match NetEvents::open() {
                Ok(events) => self.events = events,
                Err(error) => warn!(%error, "cannot subscribe to network events"),
            }
        }
        if changed {
            self.inputs.push_back(Input::NetworkChanged);
        }
    }

    /// Whether the event asks for a new reading of the network.
    fn note_event(&mut self, event: Result<NetEvent, NetlinkError>) -> bool {
        match event {
            Ok(NetEvent::Neighbour(neighbour)) => {
                if let Some(mac) = neighbour.mac {
                    let (ifindex, address) = (neighbour.ifindex, neighbour.addr);
                    self.inputs.push_back(Input::Neighbour {
                        ifindex,
                        address,
                        mac,
                    });
                }
                false
            }
            Ok(NetEvent::NeighbourRemoved { .. }) => false,
            // A renewal is an event, too.
            Ok(NetEvent::Address(own)) => !self
                .controller
                .network()
                .knows_address(own.ifindex, own.net),
            Ok(
                NetEvent::Link(_)
                | NetEvent::LinkRemoved { .. }
                | NetEvent::AddressRemoved { .. }
                | NetEvent::Routes
                | NetEvent::Overrun,
            ) => true,
            Err(error) => {
                warn!(%error, "cannot read network events");
                true
            }
        }
    }

    fn read_tables(&mut self) {
        let input = match self.data_plane.maps.read_tables() {
            Ok(tables) => Input::Tables(Box::new(tables)),
            Err(error) => {
                warn!(%error, "cannot read the data plane's tables");
                Input::TablesFailed
            }
        };
        self.inputs.push_back(input);
    }

    // --- Configuration ------------------------------------------------------------------------

    /// The configuration was read again: go on with it, or with the one before.
    fn take_config(&mut self, read: Read) {
        let result = read.and_then(|fresh| self.go_on_with(*fresh));
        // Whoever asked may rely on it when he has the answer.
        self.feed();
        self.reloads.finish(clock::now(), result);
    }

    fn go_on_with(&mut self, fresh: Fresh) -> Result<Vec<String>, ReloadError> {
        let Fresh { config, probers } = fresh;
        let now = clock::now();
        let reloaded = self.controller.reload(now, config);
        let changes = reloaded.map_err(ReloadError::Fixed)?;
        self.probers = probers;
        self.notifier.reload(self.controller.config());
        self.realtime.follow(self.controller.config());
        let positions = 0..self.controller.config().vrrp.len();
        let slots = positions.filter_map(|position| self.controller.slot(position));
        let places = slots.max().map_or(0, |last| last.saturating_add(1));
        // A socket of a slot that is no longer used is closed by an action.
        let places = places.max(self.sockets.len());
        self.sockets.resize_with(places, || None);
        self.listening.resize(places, None);
        Ok(changes)
    }

    // --- Admin --------------------------------------------------------------------------------

    fn answer(&mut self, request: AdminRequest) {
        let reply = match request.command {
            Command::Status => return self.count(request.reply),
            Command::Reload => return self.reloads.ask(Some(request.reply)),
            Command::Backend(query) => {
                let reply = orders::carry_out(&mut self.controller, clock::now(), &query);
                // Done and saved before the answer.
                self.feed();
                return self.operator_file.answer(request.reply, reply);
            }
            Command::Flows(query) => {
                let asker = Asker::new(request.reply, request.lines);
                return self.observer.flows(&self.controller, query, asker);
            }
            Command::Trace(query) => {
                let asker = Asker::new(request.reply, request.lines);
                let begun = self.observer.trace(&self.controller, query, asker);
                return self.inputs.extend(begun);
            }
            Command::Explain(query) => {
                let asker = Asker::new(request.reply, request.lines);
                let now = clock::now();
                return self.observer.explain(&self.controller, now, query, asker);
            }
            Command::StepDown { vrrp } => {
                self.vrrp_command(vrrp.as_deref(), |instance| Input::StepDown { instance })
            }
            Command::Resume { vrrp } => {
                self.vrrp_command(vrrp.as_deref(), |instance| Input::Resume { instance })
            }
        };
        // The asker may be gone.
        let _ = request.reply.send(reply);
    }

    /// Read the counters for a status, on another thread: it takes a system call per flow.
    fn count(&self, reply: StatusReply) {
        let placements = self.controller.placements();
        let services: Vec<u32> = placements.iter().map(|service| service.id).collect();
        let backends: Vec<u32> = placements
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| backend.id))
            .collect();
        let maps = Arc::clone(&self.data_plane.counters);
        let counting = self.counting.clone();
        self.probe_runtime.spawn_blocking(move || {
            let read = maps.read(&services, &backends, clock::monotonic_seconds());
            let counts = read.unwrap_or_else(|error| {
                warn!(%error, "cannot read the counters");
                Counts::default()
            });
            // Nobody listens any more when the controller ends.
            let _ = counting.send(Counted { counts, reply });
        });
    }

    fn answer_status(&self, Counted { counts, reply }: Counted) {
        let now = clock::now();
        let mut status = status::status(
            &self.controller,
            &self.data_plane,
            &counts,
            &self.facts,
            now,
        );
        status.conntrack = self.collector.status();
        status.notify = self.notifier.status();
        status.scheduling = self.realtime.status();
        status.config_file = self.reloads.file().display().to_string();
        status.config = self.reloads.status(now);
        let warnings = &mut status.data_plane.warnings;
        warnings.extend(self.listeners.warnings());
        warnings.extend(self.settings.warnings());
        // The asker may be gone.
        let _ = reply.send(Ok(Reply::Status(Box::new(status))));
    }

    fn vrrp_command(
        &mut self,
        name: Option<&str>,
        input: impl Fn(usize) -> Input,
    ) -> Result<Reply, CommandError> {
        let instances = &self.controller.config().vrrp;
        let chosen = vrrp_targets(instances, name)?;
        let names = chosen
            .iter()
            .filter_map(|&at| instances.get(at))
            .map(|vrrp| vrrp.name.clone());
        let reply = VrrpReply {
            instances: names.collect(),
        };
        let slots = chosen.iter().filter_map(|&at| self.controller.slot(at));
        self.inputs.extend(slots.map(input));
        Ok(Reply::Vrrp(reply))
    }
}

/// The next packet of any socket, with the instance's position.
async fn next_packet(sockets: &[Option<VrrpSocket>]) -> (usize, Result<Received, VrrpSocketError>) {
    let waiting: Vec<_> = sockets
        .iter()
        .enumerate()
        .filter_map(|(position, socket)| socket.as_ref().map(|socket| (position, socket)))
        .map(|(position, socket)| Box::pin(async move { (position, socket.recv().await) }))
        .collect();
    if waiting.is_empty() {
        return pending().await;
    }
    select_all(waiting).await.0
}

/// What is to be attached at the start: at least one uplink must be there.
fn first_plans(config: &Config, netlink: &mut Netlink) -> Result<Vec<Plan>, RunError> {
    let interfaces = reader::read_interfaces(netlink)?;
    let known: Vec<_> = interfaces.iter().map(|one| one.name.clone()).collect();
    let mut network = Network::default();
    network.set_links(interfaces, []);
    let plans = attach::plans(config, &network);
    if !plans.is_empty() {
        return Ok(plans);
    }
    let mut names = config.node.interfaces.iter();
    match names.clone().find(|name| known.contains(name)) {
        Some(name) => Err(RunError::NoMac(name.clone())),
        None => Err(RunError::NoInterface {
            name: names.next().cloned().unwrap_or_default(),
            known,
        }),
    }
}

fn report_attachment(own: &Attachment) {
    let interface = &own.place.interface;
    match (own.mode, &own.note) {
        (Some(mode), None) => info!(interface, ?mode, "attached"),
        (Some(mode @ Mode::Tc), Some(note)) => info!(interface, ?mode, "attached: {note}"),
        (Some(mode), Some(note)) => warn!(interface, ?mode, "attached: {note}"),
        (None, note) => warn!(interface, "not attached: {}", note.as_deref().unwrap_or("")),
    }
}

fn report(event: Event) {
    match event {
        Event::Vrrp {
            name,
            from,
            to,
            cause,
        } => {
            // This node could not say in time that it is there.
            if cause == Cause::LeaseLapsed {
                warn!(vrrp = name, %from, %to, %cause, "VRRP state changed");
            } else {
                info!(vrrp = name, %from, %to, %cause, "VRRP state changed");
            }
        }
        Event::Late {
            name,
            late,
            interval,
        } => {
            warn!(
                vrrp = name,
                timers = late.timers,
                worst = ?late.worst,
                ?interval,
                "this node was late: the machine is too busy for this advert_interval"
            );
        }
        Event::BadAdvert {
            name,
            from,
            what,
            suppressed,
        } => {
            warn!(vrrp = name, %from, suppressed, "{what}");
        }
        Event::Duplicate {
            name,
            what,
            since,
            suppressed,
        } => {
            warn!(vrrp = name, ?since, suppressed, "duplicate address: {what}");
        }
        Event::DuplicateGone {
            name,
            what,
            suppressed,
        } => {
            info!(vrrp = name, suppressed, "duplicate address: {what}");
        }
        Event::Backend {
            service,
            backend,
            from,
            to,
            cause,
        } => {
            info!(service, backend, ?from, ?to, cause, "backend state changed");
        }
        Event::Fitness {
            name,
            fitness,
            configured,
            because,
        } => report_fitness(&name, fitness, configured, &because),
        Event::Quorum {
            service,
            healthy,
            min_healthy,
            on_loss,
        } => report_quorum(&service, (healthy, min_healthy), on_loss),
        Event::Operator {
            service,
            backend,
            what,
        } => {
            info!(service, backend, what, "an operator's order");
        }
        Event::Name { host, change } => report_name(&host, &change),
        Event::Nameless {
            service,
            backend,
            why,
        } => {
            warn!(service, backend, why, "a backend has no address");
        }
        Event::UplinkMissing { interface } => {
            warn!(
                interface,
                "this uplink is not there, or has no Ethernet address: it carries no data plane; \
                 waiting for it"
            );
        }
        Event::Repaired { what } => {
            warn!("somebody else changed {what}; repaired");
        }
    }
}

fn report_fitness(name: &str, fitness: Fitness, configured: u8, because: &str) {
    let Fitness { priority, fault } = fitness;
    if fault {
        warn!(vrrp = name, because, "this node must not own the addresses");
    } else if because.is_empty() {
        info!(
            vrrp = name,
            priority, "nothing changes the priority any more"
        );
    } else {
        info!(
            vrrp = name,
            priority, configured, because, "priority changed"
        );
    }
}

fn report_name(host: &str, change: &Change) {
    let Change {
        before,
        address,
        failure,
    } = change;
    let shown =
        |address: &Option<IpAddr>| address.map_or_else(|| "-".to_owned(), |own| own.to_string());
    let (before, address) = (shown(before), shown(address));
    match failure {
        Some(why) if change.address.is_none() => {
            warn!(
                host,
                why, "the host name of a backend stands for no address"
            );
        }
        Some(why) => {
            warn!(
                host,
                address, why, "a host name gives no address: the last good one stays"
            );
        }
        None if change.is_move() => {
            info!(
                host,
                address, before, "the host name of a backend stands for this address now"
            );
        }
        None => info!(host, address, "a host name gives an address again"),
    }
}

fn report_quorum(service: &str, (healthy, min_healthy): (u32, u32), on_loss: Option<OnQuorumLoss>) {
    let effect = match on_loss {
        None => {
            info!(
                service,
                healthy, min_healthy, "enough backends are up again"
            );
            return;
        }
        Some(OnQuorumLoss::UseAll) => "new connections go to those that are draining, too",
        Some(OnQuorumLoss::Reset) => "new connections are refused",
        Some(OnQuorumLoss::Drop) => "new connections get no answer",
    };
    warn!(
        service,
        healthy, min_healthy, effect, "too few backends are up"
    );
}

fn warn_of<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        warn!(%error, "{what}");
    }
}

/// Remove everything that the instance of `config` put into the kernel: programs, maps,
/// addresses, neighbour marks and settings. Returns what was removed, in words.
pub fn detach(config: &Config) -> Result<Vec<String>, RunError> {
    privilege::check()?;
    let mut removed = Vec::new();
    let pins = Pins::new(&config.node.instance);
    if pins.remove_all()? {
        removed.push(format!(
            "programs and maps ({})",
            pins.directory().display()
        ));
    }
    let filters = bpf::remove_filters(&pins)?;
    removed.extend(filters.iter().map(|name| format!("filters of {name}")));
    let mut netlink = Netlink::open()?;
    let managed: Vec<IpAddr> = config
        .vrrp
        .iter()
        .flat_map(|vrrp| vrrp.addresses.iter().map(ipnet::IpNet::addr))
        .collect();
    let vips: Vec<IpAddr> = config.services.iter().map(|s| s.address).collect();
    for own in netlink.addresses()? {
        let address = own.net.addr();
        // The VIP of a service that no instance moves may be the administrator's own.
        if managed.contains(&address) || own.ours && vips.contains(&address) {
            netlink.remove_address(own.ifindex, own.net)?;
            removed.push(format!("address {}", own.net));
        }
    }
    for link in netlink.links()? {
        let here = config
            .vrrp
            .iter()
            .filter(|vrrp| vrrp.interface == link.name);
        for mac in here.filter_map(VrrpConfig::virtual_mac) {
            netlink.ignore_mac(link.ifindex, mac)?;
        }
    }
    let saved = operator_file::saved_addresses(config);
    for neighbour in netlink
        .neighbours()?
        .iter()
        .filter(|neighbour| neighbour.managed)
    {
        if undo::resolves(config, neighbour.addr) || saved.contains(&neighbour.addr) {
            netlink.forget(neighbour.ifindex, neighbour.addr)?;
        }
    }
    let Undo { restored } = undo::restore(config)?;
    removed.extend(
        restored
            .into_iter()
            .map(|setting| format!("setting {setting}")),
    );
    Ok(removed)
}
