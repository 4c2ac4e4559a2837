//! Two guests with virtio network cards on one bridge: guest `a` owns VIPs on cards of several kinds and
//! has a backend; guest `b` has the client, a backend by dsr and one by nat. Every kind is asked for
//! requests and for a bulk transfer, in both families, and says in which mode it works and why.
//!
//! ```text
//!   guest a: namespace uplinks                 guest b: namespaces client, peer (xvip), plain
//!     .1 on every card, VIP .100                 .2             .3            .4
//!        |card 1  |card 2  | ...                 |              |             |
//!   -----+--------+--------+---------------------+--------------+-------------+---- bridge of the host
//! ```
//!
//! A card has a subnet of its own, `10.78.N.0/24` and `fd78:N::/64`. The guests talk about the test over one
//! more card of `a` and the client's: 10.78.99.1 and .2.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    num::NonZeroUsize,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_common::reason::Reason;
use lb_tests::{
    client::{self, Load, Report},
    guest,
    kernel::{self, Cgroup},
    netns::{NetNs, unique},
    process::{Process, TempDir, output, wait_until, workspace_binary},
    skip,
};
use lb_user::admin::{
    Paths,
    client::ask_for,
    model::{AttachedMode, BackendState, Command, Status, VrrpState},
};

/// Two emulated machines, and a host that is busy.
const PATIENCE: Duration = Duration::from_mins(2);
/// Where guest `a` takes orders.
const ORDERS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 78, 99, 1)), 7);
/// The service's port, and that of its backends.
const PORT: u16 = 1644;
const BACKEND_PORT: u16 = 6480;

/// A kind of card: what the host gives guest `a` as the card with this number.
struct Card {
    number: u8,
    what: &'static str,
    mtu: u16,
    mode: AttachedMode,
    /// What the note says where the mode is not native.
    note: &'static str,
}

/// The cards, as `xtask/src/vm/pair.rs` makes them.
const CARDS: [Card; 5] = [
    Card {
        number: 1,
        what: "one queue",
        mtu: 1500,
        mode: AttachedMode::Native,
        note: "",
    },
    Card {
        number: 2,
        what: "four queues",
        mtu: 1500,
        mode: AttachedMode::Native,
        note: "",
    },
    Card {
        number: 3,
        what: "four queues without offloads",
        mtu: 1500,
        mode: AttachedMode::Native,
        note: "",
    },
    Card {
        number: 4,
        what: "four queues with jumbo frames",
        mtu: 9000,
        mode: AttachedMode::Native,
        note: "",
    },
    Card {
        number: 5,
        what: "offloads that the guest cannot turn off",
        mtu: 1500,
        mode: AttachedMode::Tc,
        note: "native XDP was refused",
    },
];

impl Card {
    /// Its hardware address in guest `a`.
    fn mac(&self) -> [u8; 6] {
        [0x02, 0x78, 0, 0, 0, self.number]
    }

    /// The addresses of a host in its subnet.
    fn hosts(&self, host: u8) -> [IpAddr; 2] {
        let (number, host) = (u16::from(self.number), u16::from(host));
        [
            Ipv4Addr::new(10, 78, self.number, host.to_be_bytes()[1]).into(),
            Ipv6Addr::new(0xfd78, number, 0, 0, 0, 0, 0, host).into(),
        ]
    }

    fn vips(&self) -> [IpAddr; 2] {
        self.hosts(100)
    }

    /// Each address with its prefix length, for `ip`.
    fn with_prefix(&self, host: u8) -> [String; 2] {
        self.hosts(host).map(|address| {
            let length = if address.is_ipv4() { 24 } else { 64 };
            format!("{address}/{length}")
        })
    }
}

/// The test of both guests: each plays its part.
#[test]
fn cards_of_virtio() {
    let role = guest::role();
    if role.is_some() {
        load_driver().unwrap();
    }
    match role.as_deref() {
        Some("a") => owner().unwrap(),
        Some("b") => client_and_backends().unwrap(),
        _ => skip::note("needs two guests: cargo xtask test --only vm --step pair"),
    }
}

// --- Guest a ------------------------------------------------------------------------------------

/// Does what guest `b` asks for until that says that it is done.
fn owner() -> Result<()> {
    let control = interface_of([0x02, 0x78, 0, 0, 0, 99])?;
    ip(&format!("addr add 10.78.99.1/24 dev {control}"))?;
    ip(&format!("link set {control} up"))?;
    let uplinks = NetNs::new("uplinks")?;
    uplinks.enter(quiet)?;
    let mut names = Vec::new();
    for card in &CARDS {
        let name = interface_of(card.mac())?;
        plug(&uplinks, &name, card.mtu)?;
        for address in card.with_prefix(1) {
            uplinks.add_address(address, &name)?;
        }
        let features = output(uplinks.command("ethtool").args(["-k", &name]))?;
        let queues = output(uplinks.command("ethtool").args(["-l", &name]))?;
        let telling = |line: &&str| {
            let words = [
                "gro-hw",
                "large-receive",
                "rx-checksumming",
                "tx-checksumming",
            ];
            words.iter().any(|word| line.contains(word))
        };
        let told: Vec<_> = features.lines().filter(telling).collect();
        let queues: Vec<_> = queues
            .lines()
            .filter(|line| line.contains("Combined"))
            .collect();
        println!(
            "card {} ({}): {name}, {queues:?}, {told:?}",
            card.number, card.what
        );
        names.push((card.number, name));
    }
    let mut owner = Side::new(uplinks, "a")?;
    owner.stand_in("a")?;
    let listener = TcpListener::bind(ORDERS).context("cannot take orders")?;
    let (orders, _) = listener.accept()?;
    let mut answers = orders.try_clone()?;
    for line in BufReader::new(orders).lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words.as_slice() {
            ["run", mode, numbers @ ..] => {
                let numbers: BTreeSet<u8> = numbers.iter().flat_map(|n| n.parse()).collect();
                let chosen = names.iter().filter(|(number, _)| numbers.contains(number));
                let chosen: Vec<_> = chosen.cloned().collect();
                owner.run(&config(&owner, "a", &chosen, mode, 200))?;
                owner.wait_settled(VrrpState::Active)?
            }
            ["status"] => {
                let answered = || owner.status().map(Some);
                wait_until("xvip to answer", PATIENCE, answered)?
            }
            ["end"] => {
                owner.detach()?;
                break;
            }
            _ => anyhow::bail!("an unknown order: {line}"),
        };
        writeln!(answers, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

// --- Guest b ------------------------------------------------------------------------------------

fn client_and_backends() -> Result<()> {
    let mut sides = Vec::new();
    for (number, label) in [(101, "client"), (102, "peer"), (103, "plain")] {
        let namespace = NetNs::new(label)?;
        namespace.enter(quiet)?;
        let name = interface_of([0x02, 0x78, 0, 0, 0, number])?;
        plug(&namespace, &name, 9000)?;
        for card in &CARDS {
            for address in card.with_prefix(number - 99) {
                namespace.add_address(address, &name)?;
            }
            // What this end could send the card could not receive.
            let [v4, v6] = card.hosts(0);
            let ([own, _], mtu) = (card.hosts(number - 99), card.mtu);
            namespace.ip(&format!(
                "route change {v4}/24 dev {name} src {own} mtu {mtu}"
            ))?;
            // The kernel's own route stays, with a metric of 256.
            namespace.ip(&format!(
                "-6 route add {v6}/64 dev {name} metric 1 mtu {mtu}"
            ))?;
        }
        sides.push((namespace, name));
    }
    let [(client, at), (peer, peer_at), (plain, _)] =
        <[_; 3]>::try_from(sides).map_err(|_| anyhow::anyhow!("not three namespaces"))?;
    client.ip(&format!("addr add 10.78.99.2/24 dev {at}"))?;
    let mut plain = Side::new(plain, "plain")?;
    plain.stand_in("plain")?;
    let mut peer = Side::new(peer, "peer")?;
    peer.stand_in("peer")?;
    let mut owner = Owner::reach(&client)?;
    let all: Vec<_> = CARDS
        .iter()
        .map(|card| (card.number, peer_at.clone()))
        .collect();

    let (refusing, native): (Vec<_>, Vec<_>) = CARDS
        .iter()
        .partition(|card| card.mode != AttachedMode::Native);
    for cards in [native, refusing] {
        let numbers: Vec<_> = cards.iter().map(|card| card.number).collect();
        let chosen: Vec<_> = all
            .iter()
            .filter(|(n, _)| numbers.contains(n))
            .cloned()
            .collect();
        peer.run(&config(&peer, "peer", &chosen, "auto", 100))?;
        let words: Vec<_> = numbers.iter().map(u8::to_string).collect();
        let status = owner.ask(&format!("run auto {}", words.join(" ")))?;
        let peers = peer.wait_settled(VrrpState::Backup)?;
        println!("the peer: {:?}", peers.data_plane.attach);
        for (card, shown) in cards.iter().zip(&status.data_plane.attach) {
            println!("{}: {}, {:?}", card.what, shown.mode, shown.note);
        }
        for (card, shown) in cards.iter().zip(&status.data_plane.attach) {
            ensure!(shown.mode == card.mode, "{}: {shown:?}", card.what);
            let note = shown.note.as_deref().unwrap_or_default();
            ensure!(note.contains(card.note), "{}: {note}", card.what);
        }
        for card in cards {
            for vip in card.vips() {
                exchange(&client, &mut owner, card, vip)?;
            }
        }
    }
    owner.end()
}

/// Requests and a bulk transfer through one VIP: none fails, all three backends answer, and each way is
/// counted.
fn exchange(client: &NetNs, owner: &mut Owner, card: &Card, vip: IpAddr) -> Result<()> {
    let before = by_way(&owner.ask("status")?);
    let many = Load {
        requests: 45,
        plain: true,
        timeout_ms: 60_000,
        ..Load::new(SocketAddr::new(vip, PORT))
    };
    let bulk = Load {
        requests: 6,
        concurrency: NonZeroUsize::MIN.saturating_add(2),
        bytes: 250_000,
        upload: 250_000,
        ..many.clone()
    };
    for load in [many, bulk] {
        let report: Report = client.block_on(|| client::run(&load))?;
        println!("{}: {vip}: {report}", card.what);
        ensure!(
            report.ok == load.requests && report.failed() == 0,
            "{}: {report}",
            card.what
        );
        ensure!(
            load.requests < 45 || report.by_node.len() == 3,
            "{}: {report}",
            card.what
        );
    }
    let after = by_way(&owner.ask("status")?);
    let moved = before.iter().zip(&after).all(|(b, a)| b < a);
    ensure!(moved, "{}: {before:?} {after:?}", card.what);
    Ok(())
}

/// Packets sent by each of the ways.
fn by_way(status: &Status) -> [u64; 3] {
    let ways: [&[Reason]; 3] = [
        &[Reason::Local],
        &[Reason::Dsr, Reason::DsrRedirect],
        &[Reason::Nat, Reason::NatRedirect],
    ];
    ways.map(|reasons| {
        let labels: Vec<_> = reasons.iter().map(|reason| reason.label()).collect();
        let counts = status.reasons.iter();
        let own = counts.filter(|count| labels.contains(&count.reason.as_str()));
        own.map(|count| count.packets).sum()
    })
}

/// Guest `a`, as guest `b` asks it.
struct Owner(BufReader<TcpStream>);

impl Owner {
    fn reach(from: &NetNs) -> Result<Self> {
        let stream = wait_until("guest a to take orders", PATIENCE, || {
            let connected =
                from.enter(|| Ok(TcpStream::connect_timeout(&ORDERS, Duration::from_secs(1))?));
            connected.map(Some)
        })?;
        stream.set_read_timeout(Some(PATIENCE * 2))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Has it take back what its xvip left, and waits for that.
    fn end(&mut self) -> Result<()> {
        writeln!(self.0.get_mut(), "end")?;
        let mut rest = String::new();
        self.0
            .read_line(&mut rest)
            .context("guest a says nothing")?;
        ensure!(rest.is_empty(), "guest a says {rest}");
        Ok(())
    }

    fn ask(&mut self, order: &str) -> Result<Status> {
        writeln!(self.0.get_mut(), "{order}")?;
        let mut answer = String::new();
        self.0
            .read_line(&mut answer)
            .context("guest a says nothing")?;
        serde_json::from_str(&answer).with_context(|| format!("guest a's answer to `{order}`"))
    }
}

// --- Both ---------------------------------------------------------------------------------------

/// A namespace with a stand-in, and with xvip where that is started.
struct Side {
    // In the order of removal: processes, pins, cgroup, namespace, files.
    xvip: Option<Process>,
    stand_in: Option<Process>,
    pins: Pins,
    cgroup: Cgroup,
    namespace: NetNs,
    directory: TempDir,
}

/// Pins that go with the test.
struct Pins(String);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = kernel::remove_pins(&self.0) {
            eprintln!("left behind: the pins of {}: {error}", self.0);
        }
    }
}

impl Side {
    fn new(namespace: NetNs, label: &str) -> Result<Self> {
        kernel::ensure_bpffs()?;
        let instance = unique(label);
        Ok(Self {
            xvip: None,
            stand_in: None,
            cgroup: Cgroup::new(&instance)?,
            directory: TempDir::new(&instance)?,
            pins: Pins(instance),
            namespace,
        })
    }

    fn stand_in(&mut self, name: &str) -> Result<()> {
        let mut command = self
            .namespace
            .command(text(&workspace_binary("xvip-standin")?)?);
        command.args([
            "--node",
            name,
            "--plain",
            "--listen",
            &format!("[::]:{BACKEND_PORT}"),
        ]);
        let log = self.directory.path().join("standin.log");
        let process = Process::spawn("standin", &command, Some(self.cgroup.path()), log)?;
        process.wait_for_output("ready", PATIENCE)?;
        self.stand_in = Some(process);
        Ok(())
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("xvip.toml")
    }

    /// Starts xvip with a configuration, in place of one that runs.
    fn run(&mut self, config: &str) -> Result<()> {
        if self.xvip.is_some() {
            self.detach()?;
        }
        fs::write(self.file(), config)?;
        let mut command = self.namespace.command(text(&workspace_binary("xvip")?)?);
        command.args(["run", "--config", text(&self.file())?]);
        let log = self.directory.path().join("xvip.log");
        self.xvip = Some(Process::spawn(
            "xvip",
            &command,
            Some(self.cgroup.path()),
            log,
        )?);
        Ok(())
    }

    /// Stops xvip and takes away what it leaves.
    fn detach(&mut self) -> Result<()> {
        let process = self.xvip.take().context("no xvip runs")?;
        ensure!(
            process.terminate(PATIENCE)?.success(),
            "xvip failed:\n{}",
            process.output()
        );
        let mut command = self.namespace.command(text(&workspace_binary("xvip")?)?);
        output(command.args(["detach", "--config", text(&self.file())?])).map(drop)
    }

    fn status(&self) -> Result<Status> {
        let paths = Paths::new(self.directory.path(), &self.pins.0);
        Ok(ask_for(&paths.socket(), &Command::Status)?)
    }

    /// Waits until every instance is in a state and every backend is UP.
    fn wait_settled(&self, state: VrrpState) -> Result<Status> {
        let process = self.xvip.as_ref().context("no xvip runs")?;
        let settled = wait_until(&format!("xvip to be {state}"), PATIENCE, || {
            ensure!(process.is_running(), "it has ended");
            let status = self.status()?;
            let mut backends = status.services.iter().flat_map(|service| &service.backends);
            let up = backends.all(|one| one.state == BackendState::Up && one.resolved);
            let there = status.vrrp.iter().all(|vrrp| vrrp.state == state);
            Ok((up && there && !status.vrrp.is_empty()).then_some(status))
        });
        settled.with_context(|| format!("xvip wrote:\n{}", process.output()))
    }
}

/// The configuration of a node with uplinks: of each card its number and the interface that leads there.
fn config(side: &Side, name: &str, cards: &[(u8, String)], mode: &str, priority: u8) -> String {
    let interfaces: BTreeSet<_> = cards.iter().map(|(_, at)| format!("\"{at}\"")).collect();
    let interfaces: Vec<_> = interfaces.into_iter().collect();
    let mut all = format!(
        "[node]\nname = \"{name}\"\ninstance = \"{}\"\ninterfaces = [{}]\ncgroup = \"{}\"\n\
         state_dir = \"{}\"\nattach = \"{mode}\"\n\n",
        side.pins.0,
        interfaces.join(", "),
        side.cgroup.path().display(),
        side.directory.path().display(),
    );
    let chosen = CARDS.iter().filter_map(|card| {
        let (_, at) = cards.iter().find(|(number, _)| *number == card.number)?;
        Some((card, at))
    });
    let (other, other_host) = if name == "a" { ("peer", 3) } else { ("a", 1) };
    let mut addresses = Vec::new();
    let mut rest = String::new();
    for (card, at) in chosen {
        addresses.extend(
            card.hosts(other_host)
                .map(|address| format!("\"{address}\"")),
        );
        for (family, vip) in card.vips().into_iter().enumerate() {
            let number = card.number;
            let vrid = usize::from(number) * 2 + family;
            let length = if vip.is_ipv4() { 24 } else { 128 };
            // Writing to a string does not fail.
            let _ = writeln!(
                rest,
                "[[vrrp]]\nname = \"v{vrid}\"\ninterface = \"{at}\"\nvrid = {vrid}\n\
                 priority = {priority}\nadvert_interval = \"3s\"\naddresses = [\"{vip}/{length}\"]\n\n\
                 [[service]]\nname = \"s{vrid}\"\naddress = \"{vip}\"\nport = {PORT}\n\
                 [service.health]\ntype = \"tcp\"\nstart = \"up\"\ninterval = \"10s\"\ntimeout = \"10s\"\nfall = 10\n"
            );
            for (backend, host) in [("a", 1), ("peer", 3), ("plain", 4)] {
                let address = SocketAddr::new(card.hosts(host)[family], BACKEND_PORT);
                let _ = writeln!(
                    rest,
                    "[[service.backend]]\nname = \"{backend}\"\naddress = \"{address}\"\n"
                );
            }
        }
    }
    let _ = writeln!(
        all,
        "[[peer]]\nname = \"{other}\"\naddresses = [{}]\n",
        addresses.join(", ")
    );
    all + &rest
}

/// Has the kernel find the cards: nothing in a guest does that by itself.
fn load_driver() -> Result<()> {
    for module in ["virtio_pci", "virtio_net"] {
        output(std::process::Command::new("modprobe").arg(module))?;
    }
    Ok(())
}

/// Moves a card into a namespace and sets it up.
fn plug(to: &NetNs, name: &str, mtu: u16) -> Result<()> {
    ip(&format!("link set {name} netns {}", to.name()))?;
    to.ip(&format!("link set {name} mtu {mtu} up"))?;
    Ok(())
}

/// IPv6 without waiting for its own timers.
fn quiet() -> Result<()> {
    for scope in ["all", "default"] {
        for name in ["accept_dad", "accept_ra", "router_solicitations"] {
            kernel::sysctl(&format!("net/ipv6/conf/{scope}/{name}"), "0")?;
        }
    }
    Ok(())
}

fn ip(arguments: &str) -> Result<String> {
    output(std::process::Command::new("ip").args(arguments.split(' ')))
}

/// The interface with a hardware address, when the kernel has found it.
fn interface_of(mac: [u8; 6]) -> Result<String> {
    let text: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = text.join(":");
    wait_until(&format!("a card {text}"), PATIENCE, || {
        for entry in fs::read_dir("/sys/class/net")? {
            let entry = entry?;
            let own = fs::read_to_string(entry.path().join("address"))?;
            if own.trim() == text {
                return Ok(entry.file_name().into_string().ok());
            }
        }
        Ok(None)
    })
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
