//! The VRRP socket against the kernel, and against keepalived where that is installed, in network
//! namespaces that each test makes for itself. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    num::{NonZeroU8, NonZeroU32},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use lb_user::{
    config::model::{
        AdvertInterval, AnnounceConfig, NotifyConfig, Password, V3Checksum, VrrpConfig, VrrpVersion,
    },
    core::vrrp::{Advert, Auth, Instance, State, VrrpAction, packet},
    io::{
        clock,
        vrrp_socket::{Received, VrrpSocket, VrrpSocketError},
    },
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::timeout;

/// A network namespace without a name: it ends with the last file, socket and process in it, so
/// there is nothing to clean up, whatever becomes of the test.
struct Namespace {
    file: File,
}

impl Namespace {
    fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace (needs root)");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Self {
            file: file.join().unwrap(),
        };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` in a thread in this namespace.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            match scope.spawn(inside).join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn ip(&self, arguments: &str) {
        let words = arguments.split_whitespace();
        let output = self.run(|| Command::new("ip").args(words).output().unwrap());
        assert!(output.status.success(), "ip {arguments}: {output:?}");
    }

    /// A path by which another process can name this namespace.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// A socket in this namespace that belongs to the calling test's runtime.
    fn open(&self, config: &VrrpConfig) -> Result<VrrpSocket, VrrpSocketError> {
        let runtime = tokio::runtime::Handle::current();
        self.run(|| {
            let _context = runtime.enter();
            let ifindex = if_nametoindex(config.interface.as_str()).unwrap();
            VrrpSocket::open(config, NonZeroU32::new(ifindex).unwrap())
        })
    }
}

/// Two nodes on one link: `eth0` has 10.0.2.10, `fe80::10` and `fd00:2::10`, or the same with
/// 20.
fn pair() -> (Namespace, Namespace) {
    let (a, b) = (Namespace::new(), Namespace::new());
    let peer = b.path();
    a.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {peer}"
    ));
    for (namespace, host) in [(&a, 10), (&b, 20)] {
        namespace.ip("link set eth0 addrgenmode none");
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("addr add 10.0.2.{host}/24 dev eth0"));
        namespace.ip(&format!("addr add fd00:2::{host}/64 dev eth0 nodad"));
        namespace.ip(&format!("addr add fe80::{host}/64 dev eth0 nodad"));
    }
    (a, b)
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn config(vip: &str) -> VrrpConfig {
    VrrpConfig {
        name: "test".into(),
        interface: "eth0".into(),
        vrid: NonZeroU8::new(51).unwrap(),
        version: VrrpVersion::V3,
        priority: NonZeroU8::new(200).unwrap(),
        advert_interval: AdvertInterval::from_centis(10).unwrap(),
        preempt: true,
        preempt_delay: Duration::ZERO,
        startup_delay: Duration::ZERO,
        addresses: vec![vip.parse().unwrap()],
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

fn with(mut config: VrrpConfig, change: impl FnOnce(&mut VrrpConfig)) -> VrrpConfig {
    change(&mut config);
    config
}

fn advert(config: &VrrpConfig) -> Advert {
    Advert {
        version: config.version,
        vrid: config.vrid,
        priority: config.priority.get(),
        interval: config.advert_interval,
        addresses: config.addresses.iter().map(ipnet::IpNet::addr).collect(),
        auth: config.password.map_or(Auth::None, Auth::Password),
    }
}

/// Runs a test that has a minute: far more than anything here takes.
fn in_time(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        timeout(Duration::from_mins(1), test)
            .await
            .expect("what is waited for happens within a minute");
    });
}

/// What `to` receives of adverts that `from` sends until one arrives: a link that has just come
/// up loses the first ones.
async fn send_until_received(from: &VrrpSocket, advert: &Advert, to: &VrrpSocket) -> Received {
    loop {
        from.send(advert).unwrap();
        if let Ok(received) = timeout(Duration::from_millis(200), to.recv()).await {
            return received.unwrap();
        }
    }
}

/// One advert from the first node to the second, which must be what was sent.
async fn exchange(one: &VrrpConfig, two: &VrrpConfig, src: &str, dst: &str) {
    let (a, b) = pair();
    let (from, to) = (a.open(one).unwrap(), b.open(two).unwrap());
    assert_eq!(from.source(), addr(src));
    let received = send_until_received(&from, &advert(one), &to).await;
    assert_eq!(received.meta.src, addr(src));
    assert_eq!(received.meta.dst, addr(dst));
    assert_eq!(received.meta.ttl, 255);
    let parsed = packet::parse(&received.message, &received.meta, packet::TTL);
    assert_eq!(parsed, Ok(advert(one)));
    assert_eq!(from.try_recv().unwrap(), None, "own adverts do not loop");
}

/// IPv4 adverts reach the group from the interface's address, with TTL 255.
#[test]
fn ipv4_multicast_is_exchanged() {
    let config = config("10.0.2.100/24");
    in_time(exchange(&config, &config, "10.0.2.10", "224.0.0.18"));
}

/// IPv6 adverts reach the group from the link-local address, with hop limit 255.
#[test]
fn ipv6_multicast_is_exchanged() {
    let config = config("fd00:2::100/64");
    in_time(exchange(&config, &config, "fe80::10", "ff02::12"));
}

/// IPv4 adverts reach a unicast peer.
#[test]
fn ipv4_unicast_is_exchanged() {
    let one = with(config("10.0.2.100/24"), |c| {
        c.unicast_peers = vec![addr("10.0.2.20")];
    });
    let two = with(one.clone(), |c| c.unicast_peers = vec![addr("10.0.2.10")]);
    in_time(exchange(&one, &two, "10.0.2.10", "10.0.2.20"));
}

/// IPv6 adverts reach a unicast peer by its global address, from the configured source.
#[test]
fn ipv6_unicast_is_exchanged() {
    let one = with(config("fd00:2::100/64"), |c| {
        c.unicast_source = Some(addr("fd00:2::10"));
        c.unicast_peers = vec![addr("fd00:2::20")];
    });
    let two = with(one.clone(), |c| {
        c.unicast_source = None;
        c.unicast_peers = vec![addr("fd00:2::10")];
    });
    in_time(exchange(&one, &two, "fd00:2::10", "fd00:2::20"));
}

/// IPv6 unicast peers with link-local addresses are sent to from the link-local address.
#[test]
fn ipv6_link_local_unicast_is_exchanged() {
    let one = with(config("fd00:2::100/64"), |c| {
        c.unicast_peers = vec![addr("fe80::20")];
    });
    let two = with(one.clone(), |c| c.unicast_peers = vec![addr("fe80::10")]);
    in_time(exchange(&one, &two, "fe80::10", "fe80::20"));
}

/// An advert is as old as it has been in the socket, in both families: what counts is when the kernel
/// received it, not when somebody reads it.
///
/// A machine where nobody has asked for such times so far begins to take them a moment after the
/// first socket has: until then the time of reading counts.
#[test]
fn adverts_age_in_the_socket() {
    const WAIT: Duration = Duration::from_millis(50);
    const TRIES: usize = 40;
    in_time(async {
        let (a, b) = pair();
        for vip in ["10.0.2.100/24", "fe80::100/64"] {
            let config = config(vip);
            let (from, to) = (a.open(&config).unwrap(), b.open(&config).unwrap());
            // The kernel gives each a copy: where one has it, the other has, or is about to.
            let other = b.open(&config).unwrap();
            let mut ages = Vec::new();
            while ages.last().is_none_or(|age| *age < WAIT / 2) {
                assert!(ages.len() < TRIES, "{ages:?}");
                let sent = clock::now();
                send_until_received(&from, &advert(&config), &other).await;
                tokio::time::sleep(WAIT).await;
                let received = to.try_recv().unwrap().expect("a copy of the advert");
                let since = clock::now().saturating_since(sent);
                assert!(received.age <= since, "{:?} of {since:?}", received.age);
                ages.push(received.age);
                for socket in [&to, &other] {
                    while socket.try_recv().unwrap().is_some() {}
                }
            }
        }
    });
}

/// Adverts of other VRIDs do not reach the socket, in both families; what queued up is drained
/// in order without waiting.
#[test]
fn only_adverts_of_the_own_vrid_are_received() {
    in_time(async {
        for vip in ["10.0.2.100/24", "fd00:2::100/64"] {
            let (a, b) = pair();
            let own = config(vip);
            let other = with(own.clone(), |c| c.vrid = NonZeroU8::new(52).unwrap());
            let (from, to) = (a.open(&own).unwrap(), b.open(&own).unwrap());
            send_until_received(&from, &advert(&own), &to).await;
            while to.try_recv().unwrap().is_some() {}
            for priority in [1, 2, 3] {
                from.send(&advert(&other)).unwrap();
                let priority = NonZeroU8::new(priority).unwrap();
                let own = with(own.clone(), |c| c.priority = priority);
                from.send(&advert(&own)).unwrap();
            }
            for priority in [1, 2, 3] {
                let received = to.recv().await.unwrap();
                let parsed = packet::parse(&received.message, &received.meta, packet::TTL).unwrap();
                assert_eq!((parsed.vrid, parsed.priority), (own.vrid, priority));
            }
            assert_eq!(to.try_recv().unwrap(), None);
        }
    });
}

/// A virtual address is never the source, even where it comes first on the interface.
#[test]
fn the_virtual_address_is_not_the_source() {
    in_time(async {
        let namespace = Namespace::new();
        namespace.ip("link add eth0 type veth peer name eth1");
        namespace.ip("addr add 10.0.2.100/24 dev eth0");
        let config = config("10.0.2.100/24");
        let refused = namespace.open(&config);
        assert!(matches!(refused, Err(VrrpSocketError::NoSource { .. })));
        namespace.ip("addr add 10.0.2.10/24 dev eth0");
        let socket = namespace.open(&config).unwrap();
        assert_eq!(socket.source(), addr("10.0.2.10"));
    });
}

/// An interface or a source address that vanishes makes sending fail: the lease is not renewed.
#[test]
fn a_vanished_interface_fails_the_send() {
    in_time(async {
        for vip in ["10.0.2.100/24", "fd00:2::100/64"] {
            let (a, b) = pair();
            let config = config(vip);
            let (from, to) = (a.open(&config).unwrap(), b.open(&config).unwrap());
            send_until_received(&from, &advert(&config), &to).await;
            a.ip("addr flush dev eth0");
            assert!(matches!(
                from.send(&advert(&config)),
                Err(VrrpSocketError::Send { .. })
            ));
            a.ip("link del eth0");
            assert!(from.send(&advert(&config)).is_err());
            assert!(to.send(&advert(&config)).is_err());
        }
    });
}

// --- keepalived -------------------------------------------------------------------------------

/// A running keepalived; ended with its files when dropped.
struct Keepalived {
    child: Child,
    lines: tokio::sync::mpsc::UnboundedReceiver<String>,
    directory: PathBuf,
}

impl Keepalived {
    /// Starts it in `namespace` with one instance of priority 100; `None` if not installed.
    fn start(namespace: &Namespace, body: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("xvip-test-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let file = |name: &str| directory.join(name).into_os_string();
        let instance = format!(
            "vrrp_instance one {{\n state BACKUP\n interface eth0\n virtual_router_id 51\n \
             priority 100\n {body}\n}}\n"
        );
        File::create(file("conf"))
            .and_then(|mut conf| conf.write_all(instance.as_bytes()))
            .unwrap();
        let mut command = Command::new("keepalived");
        command.args(["-n", "-l", "-D", "-G", "-P"]);
        for (option, name) in [("-f", "conf"), ("-p", "pid"), ("-r", "vrrp_pid")] {
            command.arg(option).arg(file(name));
        }
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let Ok(mut child) = namespace.run(|| command.spawn()) else {
            std::fs::remove_dir_all(&directory).unwrap();
            eprintln!("keepalived is not installed: nothing tested against it");
            return None;
        };
        let (sender, lines) = tokio::sync::mpsc::unbounded_channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Some(Self {
            child,
            lines,
            directory,
        })
    }

    async fn logs(&mut self, wanted: &str) {
        loop {
            let line = self.lines.recv().await.expect("keepalived goes on");
            eprintln!("keepalived: {line}");
            if line.contains(wanted) {
                return;
            }
        }
    }

    fn terminate(&self) {
        let id = i32::try_from(self.child.id()).unwrap();
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        self.terminate();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// An instance and its socket, driven as the controller does it.
struct Router {
    instance: Instance,
    socket: VrrpSocket,
}

impl Router {
    fn new(namespace: &Namespace, config: &VrrpConfig) -> Self {
        let socket = namespace.open(config).unwrap();
        let mut instance = Instance::new(config, clock::now());
        instance.handle_listening(clock::now(), socket.source());
        Self { instance, socket }
    }

    fn act(&mut self) {
        while let Some(action) = self.instance.poll_action() {
            if let VrrpAction::SendAdvert { advert, .. } = action {
                let sent_at = clock::now();
                match self.socket.send(&advert) {
                    Ok(_) => self.instance.handle_advert_sent(clock::now(), sent_at),
                    Err(_) => self.instance.handle_advert_failed(clock::now()),
                }
            }
        }
    }

    fn hear(&mut self, received: &Received) -> Advert {
        let advert = packet::parse(&received.message, &received.meta, packet::TTL).unwrap();
        let src = received.meta.src;
        let now = clock::now();
        let heard = self.instance.handle_advert(now, now, src, &advert);
        assert!(heard.is_ok(), "{advert:?}: {heard:?}");
        advert
    }

    /// One round: wait for an advert or a timer.
    async fn step(&mut self) -> Option<Advert> {
        self.act();
        let until = self.instance.poll_timeout();
        let wait = until.map_or(Duration::from_secs(1), |at| {
            at.saturating_since(clock::now())
        });
        let advert = if let Ok(received) = timeout(wait, self.socket.recv()).await {
            Some(self.hear(&received.unwrap()))
        } else {
            while let Some(received) = self.socket.try_recv().unwrap() {
                self.hear(&received);
            }
            self.instance.handle_timeout(clock::now());
            None
        };
        self.act();
        advert
    }

    async fn run_until(&mut self, event: impl Future<Output = ()>) {
        tokio::select! {
            () = event => {}
            () = self.until(|_, _| false) => {}
        }
    }

    async fn until(&mut self, reached: impl Fn(&Instance, Option<&Advert>) -> bool) {
        loop {
            let advert = self.step().await;
            if reached(&self.instance, advert.as_ref()) {
                return;
            }
        }
    }
}

/// Both roles on both sides: it is Active and heard, yields to us, takes over from us when we
/// resign, and resigns itself.
async fn take_turns_with_keepalived(config: VrrpConfig, body: &str) {
    let (a, b) = pair();
    let Some(mut keepalived) = Keepalived::start(&b, body) else {
        return;
    };
    keepalived.logs("Entering MASTER STATE").await;
    let mut router = Router::new(&a, &config);
    router
        .until(|_, advert| advert.is_some_and(|advert| advert.priority == 100))
        .await;
    assert_eq!(router.instance.state(), State::Backup);
    router
        .until(|instance, _| instance.state() == State::Active)
        .await;
    // It logs that once it has heard and accepted our adverts.
    router
        .run_until(keepalived.logs("Entering BACKUP STATE"))
        .await;
    assert_eq!(router.instance.state(), State::Active);
    router.instance.step_down(clock::now());
    router
        .run_until(keepalived.logs("Entering MASTER STATE"))
        .await;
    keepalived.terminate();
    router
        .until(|_, advert| advert.is_some_and(|advert| advert.priority == 0))
        .await;
    assert_eq!(router.instance.counters().address_mismatches, 0);
}

/// Version 3 over IPv4 and multicast.
#[test]
fn keepalived_v3_ipv4() {
    let body = "version 3\n advert_int 0.1\n virtual_ipaddress {\n 10.0.2.100/24\n }";
    in_time(take_turns_with_keepalived(config("10.0.2.100/24"), body));
}

/// Version 3 over IPv4 between unicast peers.
#[test]
fn keepalived_v3_ipv4_unicast() {
    let body = "version 3\n advert_int 0.1\n unicast_src_ip 10.0.2.20\n \
                unicast_peer {\n 10.0.2.10\n }\n virtual_ipaddress {\n 10.0.2.100/24\n }";
    let config = with(config("10.0.2.100/24"), |c| {
        c.unicast_peers = vec![addr("10.0.2.20")];
    });
    in_time(take_turns_with_keepalived(config, body));
}

/// Version 3 over IPv6: its first address must be a link-local one (RFC 9568 section 5.2.9).
#[test]
fn keepalived_v3_ipv6() {
    let body = "version 3\n advert_int 0.1\n \
                virtual_ipaddress {\n fe80::100/64\n fd00:2::100/64\n }";
    let config = with(config("fe80::100/64"), |c| {
        c.addresses.push("fd00:2::100/64".parse().unwrap());
    });
    in_time(take_turns_with_keepalived(config, body));
}

/// Version 2 with a password.
#[test]
fn keepalived_v2_with_password() {
    let body = "version 2\n advert_int 1\n \
                authentication {\n auth_type PASS\n auth_pass pass1122\n }\n \
                virtual_ipaddress {\n 10.0.2.100/24\n }";
    let config = with(config("10.0.2.100/24"), |c| {
        c.version = VrrpVersion::V2;
        c.advert_interval = AdvertInterval::from_centis(100).unwrap();
        c.password = Some(Password(*b"pass1122"));
    });
    in_time(take_turns_with_keepalived(config, body));
}

/// Version 2 without authentication.
#[test]
fn keepalived_v2() {
    let body = "version 2\n advert_int 1\n virtual_ipaddress {\n 10.0.2.100/24\n }";
    let config = with(config("10.0.2.100/24"), |c| {
        c.version = VrrpVersion::V2;
        c.advert_interval = AdvertInterval::from_centis(100).unwrap();
    });
    in_time(take_turns_with_keepalived(config, body));
}
