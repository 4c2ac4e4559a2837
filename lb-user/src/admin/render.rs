//! A status document as text for people: who owns the addresses first, then what an operator looks
//! for next. The JSON form is the one for programs; this one may change.

mod accept;
pub mod backends;
mod kernel;
mod late;
pub mod observe;

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use super::model::{
    AttachedMode, BackendState, BackendStatus, ConntrackStatus, DataPlaneStatus, NotifyStatus,
    PeerStatus, ReasonStatus, SchedulingStatus, ServiceStatus, Status, TrackStatus, VrrpState,
    VrrpStatus,
};

/// Whether the text goes to a terminal that shows colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// ANSI colours for states.
    Ansi,
    /// Plain text.
    Never,
}

/// The text of `status`, with a newline at its end.
pub fn status(status: &Status, colour: Colour) -> String {
    let mut sections = vec![heading(status, colour)];
    if !status.vrrp.is_empty() {
        sections.push(vrrp(&status.vrrp, colour));
        sections.extend(accept::closed(&status.vrrp));
        sections.extend(tracking(&status.vrrp, colour));
        sections.extend(late::timers(&status.vrrp, colour));
    }
    sections.extend(status.services.iter().map(|entry| service(entry, colour)));
    sections.push(data_plane(&status.data_plane, colour));
    if !status.peers.is_empty() {
        sections.push(peers(&status.peers, colour));
    }
    if !status.reasons.is_empty() {
        sections.push(reasons(&status.reasons, colour));
    }
    if !status.conntrack.entries.is_empty() || !status.conntrack.deleted.is_empty() {
        sections.push(conntrack(&status.conntrack, colour));
    }
    sections.extend(kernel::section(&status.kernel, colour));
    sections.join("\n")
}

pub use kernel::section as kernel;

/// One line per instance on who owns its addresses, one on this xvip, one per warning and alarm.
fn heading(status: &Status, colour: Colour) -> String {
    let mut text = String::new();
    for instance in &status.vrrp {
        text += &owner_line(instance, &status.peers, colour);
    }
    let line = format!(
        "xvip {} on {}, instance {}, up {}, {}",
        status.version,
        status.node,
        status.instance,
        Age(status.uptime_ms),
        status.config_file
    );
    push_line(&mut text, &printable(&line));
    if let Some(line) = late::scheduling(&status.scheduling, colour) {
        push_line(&mut text, &line);
    }
    if let Some(refused) = &status.config.refused {
        let age = Age(refused.since_ms);
        let line = format!("the configuration was refused {age} ago, the one before goes on:");
        for line in std::iter::once(line.as_str()).chain(refused.error.lines()) {
            push_line(&mut text, &Cell::new(line).tint(Tint::Red).paint(colour));
        }
    }
    for warning in &status.data_plane.warnings {
        let line = format!("warning: {}", printable(warning));
        push_line(&mut text, &Cell::new(line).tint(Tint::Yellow).paint(colour));
    }
    for line in accept::unenforced(status, colour) {
        push_line(&mut text, &line);
    }
    if let Some(untold) = untold(&status.notify) {
        push_line(
            &mut text,
            &Cell::new(untold).tint(Tint::Yellow).paint(colour),
        );
    }
    for instance in &status.vrrp {
        for alarm in &instance.alarms {
            let line = format!("alarm: {}: {}", instance.name, alarm.what);
            let since = alarm.since_ms.map(|since| format!("for {}, ", Age(since)));
            let since = since.unwrap_or_default();
            let line = format!("{} ({since}{} ago)", printable(&line), Age(alarm.ago_ms));
            push_line(&mut text, &Cell::new(line).tint(Tint::Red).paint(colour));
        }
    }
    text
}

/// What somebody who wants to know of changes was not told.
fn untold(notify: &NotifyStatus) -> Option<String> {
    let counts = [
        (notify.commands_failed, "programs failed"),
        (notify.notices_given_up, "changes were given up"),
        (notify.lines_lost, "lines were not read"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts = join(counts.map(|(count, what)| format!("{count} {what}")));
    (!counts.is_empty()).then(|| format!("warning: notify: {counts}"))
}

fn owner_line(vrrp: &VrrpStatus, peers: &[PeerStatus], colour: Colour) -> String {
    let addresses = join(vrrp.addresses.iter().map(ToString::to_string));
    let (owner, tint) = match (vrrp.state, vrrp.owner) {
        (VrrpState::Active, Some(address)) => (format!("this node ({address})"), Tint::Green),
        (VrrpState::Active, None) => ("this node".to_owned(), Tint::Green),
        (_, Some(address)) => (node_at(address, peers), Tint::Plain),
        (_, None) => ("nobody that this node hears".to_owned(), Tint::Red),
    };
    let owner = Cell::new(owner).tint(tint).paint(colour);
    let name = printable(&vrrp.name);
    format!("{name}: {addresses} is owned by {owner}\n")
}

/// The peer at `address`, or the bare address of somebody else.
fn node_at(address: IpAddr, peers: &[PeerStatus]) -> String {
    peers
        .iter()
        .find(|peer| peer.addresses.contains(&address))
        .map_or_else(
            || address.to_string(),
            |peer| format!("{} ({address})", peer.name),
        )
}

fn vrrp(instances: &[VrrpStatus], colour: Colour) -> String {
    let mut table = Table::new([
        "VRRP",
        "INTERFACE",
        "VRID",
        "VERSION",
        "PRIORITY",
        "STATE",
        "SINCE",
        "LEASE",
        "CHANGES",
        "SENT",
        "RECEIVED",
        "BAD",
        "CAUSE",
    ])
    .numbers([2, 3, 4, 6, 7, 8, 9, 10, 11]);
    for instance in instances {
        table.row([
            Cell::new(&instance.name),
            Cell::new(interface(instance)),
            Cell::new(instance.vrid),
            Cell::new(instance.version),
            Cell::new(priority(instance)),
            Cell::new(instance.state).tint(match instance.state {
                VrrpState::Active => Tint::Green,
                VrrpState::Backup => Tint::Plain,
                VrrpState::Initialize => Tint::Yellow,
                VrrpState::Fault => Tint::Red,
            }),
            Cell::new(Age(instance.since_ms)),
            optional(instance.lease_remaining_ms.map(Age)),
            Cell::new(instance.transitions),
            Cell::new(instance.adverts_sent),
            Cell::new(instance.adverts_received),
            Cell::new(bad_adverts(instance)),
            Cell::new(&instance.cause),
        ]);
    }
    table.render(colour)
}

/// The interface, and the virtual MAC on it.
fn interface(vrrp: &VrrpStatus) -> String {
    match &vrrp.virtual_mac {
        Some(mac) => format!("{} ({mac})", vrrp.interface),
        None => vrrp.interface.clone(),
    }
}

/// What changes priorities; nothing if nothing does.
fn tracking(instances: &[VrrpStatus], colour: Colour) -> Option<String> {
    let mut table = Table::new(["VRRP", "TRACKS", "EFFECT", "SEEN"]);
    let mut any = false;
    for instance in instances {
        let effective = |track: &&TrackStatus| track.fault || track.adds != 0;
        for track in instance.tracking.iter().filter(effective) {
            any = true;
            let effect = match track.adds {
                _ if track.fault => Cell::new("fault").tint(Tint::Red),
                adds => Cell::new(format!("{adds:+}")),
            };
            table.row([
                Cell::new(&instance.name),
                Cell::new(&track.name),
                effect,
                Cell::new(&track.seen),
            ]);
        }
    }
    any.then(|| table.render(colour))
}

/// The priority that counts now, and the configured one where that is another.
fn priority(vrrp: &VrrpStatus) -> String {
    if vrrp.effective_priority == vrrp.priority {
        vrrp.priority.to_string()
    } else {
        format!("{} (of {})", vrrp.effective_priority, vrrp.priority)
    }
}

/// The number of refused adverts, and of which kinds.
fn bad_adverts(vrrp: &VrrpStatus) -> String {
    let total = vrrp
        .adverts_bad
        .values()
        .fold(0_u64, |sum, count| sum.saturating_add(*count));
    if total == 0 {
        return "0".to_owned();
    }
    let kinds = join(
        vrrp.adverts_bad
            .iter()
            .map(|(label, count)| format!("{label} {count}")),
    );
    format!("{total} ({kinds})")
}

fn service(service: &ServiceStatus, colour: Colour) -> String {
    let address = match service.address {
        IpAddr::V4(address) => format!("{address}:{}", service.port),
        IpAddr::V6(address) => format!("[{address}]:{}", service.port),
    };
    let mut text = String::new();
    let line = format!(
        "service {}, {address}/{}: {} connections, {} packets, {}",
        service.name,
        service.protocol,
        service.connections,
        service.packets,
        Bytes(service.bytes)
    );
    push_line(&mut text, &printable(&line));
    if service.quorum_lost && service.min_healthy > 1 {
        let line = format!(
            "quorum lost: {} of the {} backends that must be up",
            service.healthy, service.min_healthy
        );
        push_line(&mut text, &Cell::new(line).tint(Tint::Red).paint(colour));
    }
    if !service.reasons.is_empty() {
        let reasons = service.reasons.iter();
        let reasons = join(reasons.map(|one| format!("{} {}", one.reason, one.packets)));
        push_line(
            &mut text,
            &printable(&format!("packets by reason: {reasons}")),
        );
    }
    let mut table = Table::new([
        "BACKEND",
        "ADDRESS",
        "METHOD",
        "STATE",
        "SINCE",
        "WEIGHT",
        "SHARE",
        "CONNECTIONS",
        "ACTIVE",
        "PACKETS",
        "BYTES",
        "RESETS",
        "REFUSED",
        "DROPPED",
        "REASON",
    ])
    .numbers([4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
    for backend in &service.backends {
        table.row(backend_row(backend));
    }
    text += &table.render(colour);
    text
}

fn backend_row(backend: &BackendStatus) -> [Cell; 15] {
    let method = if backend.resolved {
        Cell::new(backend.method)
    } else {
        Cell::new(format!("{} (unresolved)", backend.method)).tint(Tint::Yellow)
    };
    [
        Cell::new(&backend.name),
        Cell::new(backends::place(backend)),
        method,
        state_cell(backend.in_force),
        Cell::new(Age(backend.since_ms)),
        Cell::new(backends::weight(backend)),
        Cell::new(format!("{:.1}%", backend.share * 100.0)),
        Cell::new(backend.connections),
        optional(backend.active_flows),
        Cell::new(backend.packets),
        Cell::new(Bytes(backend.bytes)),
        Cell::new(backend.resets),
        Cell::new(backend.refused),
        Cell::new(backend.drops),
        Cell::new(reason(backend)),
    ]
}

/// What the checks say last; before it what else decides, after it what is in the way.
fn reason(backend: &BackendStatus) -> String {
    let mut reason = match backends::words(backend) {
        Some(words) => format!("{words}; checks say {}: {}", backend.state, backend.reason),
        None => backend.reason.clone(),
    };
    if let Some(why) = &backend.unresolved {
        reason.extend(["; unresolved: ", why]);
    }
    reason
}

fn state_cell(state: BackendState) -> Cell {
    Cell::new(state).tint(match state {
        BackendState::Up => Tint::Green,
        BackendState::Draining => Tint::Yellow,
        BackendState::Down => Tint::Red,
    })
}

fn data_plane(data_plane: &DataPlaneStatus, colour: Colour) -> String {
    let mut table = Table::new(["ATTACHED TO", "MODE", "NOTE"]);
    for attach in &data_plane.attach {
        table.row([
            Cell::new(&attach.interface),
            Cell::new(attach.mode).tint(match attach.mode {
                AttachedMode::Native | AttachedMode::Tc => Tint::Plain,
                AttachedMode::Generic => Tint::Yellow,
                AttachedMode::None => Tint::Red,
            }),
            attach.note.as_ref().map_or_else(Cell::default, Cell::new),
        ]);
    }
    match &data_plane.cgroup {
        Some(path) => table.row([
            Cell::new(path),
            Cell::new("cgroup"),
            Cell::new("connect hooks"),
        ]),
        None => table.row([
            Cell::new("-"),
            Cell::new("cgroup"),
            Cell::new("off: connections from this node to a VIP are not redirected"),
        ]),
    }
    table.render(colour)
}

fn peers(peers: &[PeerStatus], colour: Colour) -> String {
    let mut table = Table::new(["PEER", "MAC", "ADDRESSES"]);
    for peer in peers {
        let mac = match (&peer.mac, peer.resolved) {
            (Some(mac), true) => Cell::new(mac),
            (Some(mac), false) => Cell::new(format!("{mac} (stale)")).tint(Tint::Yellow),
            (None, _) => Cell::new("unknown").tint(Tint::Yellow),
        };
        let addresses = join(peer.addresses.iter().map(ToString::to_string));
        table.row([Cell::new(&peer.name), mac, Cell::new(addresses)]);
    }
    table.render(colour)
}

fn reasons(reasons: &[ReasonStatus], colour: Colour) -> String {
    let mut table = Table::new(["REASON", "PACKETS", "BYTES"]).numbers([1, 2]);
    for reason in reasons {
        table.row([
            Cell::new(&reason.reason),
            Cell::new(reason.packets),
            Cell::new(Bytes(reason.bytes)),
        ]);
    }
    table.render(colour)
}

fn conntrack(conntrack: &ConntrackStatus, colour: Colour) -> String {
    let list = |counts: &BTreeMap<String, u64>| {
        join(counts.iter().map(|(name, count)| format!("{name} {count}")))
    };
    let mut table = Table::new(["CONNTRACK", "ENTRIES", "STATES"]).numbers([1]);
    for (map, states) in &conntrack.entries {
        let total = states
            .values()
            .fold(0, |sum: u64, n| sum.saturating_add(*n));
        table.row([Cell::new(map), Cell::new(total), Cell::new(list(states))]);
    }
    let total = conntrack
        .deleted
        .values()
        .fold(0, |sum: u64, n| sum.saturating_add(*n));
    table.row([
        Cell::new("collected"),
        Cell::new(total),
        Cell::new(list(&conntrack.deleted)),
    ]);
    table.render(colour)
}

/// A table of `N` columns as wide as their contents.
struct Table<const N: usize> {
    header: [Cell; N],
    /// Columns whose cells are flush right.
    right: [bool; N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    fn new(header: [&str; N]) -> Self {
        Self {
            header: header.map(Cell::new),
            right: [false; N],
            rows: Vec::new(),
        }
    }

    /// Puts the columns at these positions flush right.
    fn numbers<const M: usize>(mut self, columns: [usize; M]) -> Self {
        for column in columns {
            if let Some(right) = self.right.get_mut(column) {
                *right = true;
            }
        }
        self
    }

    fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    fn render(&self, colour: Colour) -> String {
        let mut widths = self.header.each_ref().map(Cell::width);
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        let mut text = String::new();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(widths).zip(self.right) {
                let padding = " ".repeat(width.saturating_sub(cell.width()));
                let painted = cell.paint(colour);
                let aligned = if right {
                    [padding, painted]
                } else {
                    [painted, padding]
                };
                line += &aligned.concat();
                line += "  ";
            }
            push_line(&mut text, line.trim_end());
        }
        text
    }
}

/// What stands in a table's cell.
#[derive(Default)]
struct Cell {
    text: String,
    tint: Tint,
}

/// Colour by meaning.
#[derive(Clone, Copy, Default)]
enum Tint {
    #[default]
    Plain,
    Green,
    Yellow,
    Red,
}

impl Cell {
    fn new(value: impl fmt::Display) -> Self {
        Self {
            text: printable(&value.to_string()),
            tint: Tint::Plain,
        }
    }

    const fn tint(mut self, tint: Tint) -> Self {
        self.tint = tint;
        self
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn paint(&self, colour: Colour) -> String {
        let code = match (colour, self.tint) {
            (Colour::Never, _) | (_, Tint::Plain) => return self.text.clone(),
            (Colour::Ansi, Tint::Green) => 32,
            (Colour::Ansi, Tint::Yellow) => 33,
            (Colour::Ansi, Tint::Red) => 31,
        };
        format!("\x1b[{code}m{}\x1b[0m", self.text)
    }
}

fn optional(value: Option<impl fmt::Display>) -> Cell {
    value.map_or_else(|| Cell::new("-"), Cell::new)
}

fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The text without control characters: a reason may quote what a backend said, and that must not
/// steer the operator's terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// Milliseconds as the two largest units that matter.
struct Age(u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = Duration::from_millis(self.0);
        let seconds = age.as_secs();
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
        if days > 0 {
            write!(f, "{days}d{:02}h", hours % 24)
        } else if hours > 0 {
            write!(f, "{hours}h{:02}m", minutes % 60)
        } else if minutes > 0 {
            write!(f, "{minutes}m{:02}s", seconds % 60)
        } else {
            write!(f, "{seconds}.{:01}s", age.subsec_millis() / 100)
        }
    }
}

/// A number of bytes in the largest binary unit that it fills.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        // In tenths of the unit, in integers: exact, and never more than 64 bits.
        let mut whole = self.0 / 1024;
        let mut rest = self.0 % 1024;
        let mut units = UNITS.iter();
        let mut unit = units.next();
        while whole >= 1024 && units.len() > 0 {
            rest = whole % 1024;
            whole /= 1024;
            unit = units.next();
        }
        write!(f, "{whole}.{} {}", rest * 10 / 1024, unit.unwrap_or(&"KiB"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::model::{KernelStatus, tests::sample};

    /// The whole text for a document with a value in every field.
    #[test]
    fn the_owner_sees_this() {
        let expected = "\
control-plane: 10.0.2.100/24 is owned by this node (10.0.2.10)
xvip 0.1.0 on master01, instance default, up 1h02m, /etc/xvip/xvip.toml
scheduling of the controller: real-time, priority 50
the configuration was refused 12.0s ago, the one before goes on:
xvip.toml:2:1: node.interfces: unknown key
warning: the apiserver listens on one address
warning: notify: 2 programs failed, 3 changes were given up, 1 lines were not read
alarm: control-plane: 10.0.2.11 is Active as well (for 1m04s, 0.7s ago)

VRRP           INTERFACE                   VRID  VERSION      PRIORITY  STATE   SINCE  LEASE  CHANGES  SENT  RECEIVED             BAD  CAUSE
control-plane  enp0s3 (00:00:5e:00:01:33)    51        3  180 (of 200)  active  1m04s   2.7s        2    64        12  3 (checksum 3)  no advert for 3.218 s

control-plane: only services are reachable at 10.0.2.100 (accept = false)

VRRP           TRACKS  EFFECT  SEEN
control-plane  disk    -20     /run/disk holds -20

VRRP           LATE TIMERS  WORST
control-plane            3  21 ms

service apiserver, 10.0.2.100:1644/tcp: 1200 connections, 48000 packets, 9.0 MiB
packets by reason: local 16000
BACKEND   ADDRESS         METHOD            STATE     SINCE       WEIGHT  SHARE  CONNECTIONS  ACTIVE  PACKETS    BYTES  RESETS  REFUSED  DROPPED  REASON
master01  10.0.2.10:6443  local             up        1m04s            1  50.0%          400       7    16000  3.0 MiB       3        2        1  200 OK
master02  10.0.2.11:6443  dsr               draining  1m04s  0.25 (of 1)  50.0%          400       7    16000  3.0 MiB       3        2        1  drained, in maintenance in 4m10s, weight 50% (ordered 50.0s ago), agent wants 75%, slow start at 50%; checks say draining: 500
master03  10.0.2.12:6443  nat (unresolved)  down      1m04s            1   0.0%          400       -    16000  3.0 MiB       3        2        1  refused; unresolved: there is no route to it

ATTACHED TO     MODE     NOTE
enp0s3          generic  the driver has no native XDP
/sys/fs/cgroup  cgroup   connect hooks

PEER      MAC                ADDRESSES
master02  02:00:00:00:00:11  10.0.2.11, fd00::11

REASON  PACKETS    BYTES
local     16000  3.0 MiB

CONNTRACK  ENTRIES  STATES
flows4          16  established 14, fin 2
collected      386  ended 386

KERNEL  FEATURE  USED  NOTE
6.1.0   -        yes
        tcx      no    Linux 6.6 has it; the kernel does not know it; instead: clsact filters; none
";
        assert_eq!(status(&sample(), Colour::Never), expected);
    }

    /// A Backup names the owner, by its peer name where it has one; nobody is said to be nobody.
    #[test]
    fn a_backup_names_the_owner() {
        let mut document = sample();
        let first_line = |document: &Status| {
            let text = status(document, Colour::Never);
            text.lines().next().unwrap().to_owned()
        };
        document.vrrp[0].state = VrrpState::Backup;
        document.vrrp[0].owner = Some("10.0.2.11".parse().unwrap());
        assert_eq!(
            first_line(&document),
            "control-plane: 10.0.2.100/24 is owned by master02 (10.0.2.11)"
        );
        document.vrrp[0].owner = Some("10.0.2.77".parse().unwrap());
        assert_eq!(
            first_line(&document),
            "control-plane: 10.0.2.100/24 is owned by 10.0.2.77"
        );
        document.vrrp[0].owner = None;
        assert_eq!(
            first_line(&document),
            "control-plane: 10.0.2.100/24 is owned by nobody that this node hears"
        );
    }

    /// What has no effect is not shown; a fault is.
    #[test]
    fn only_what_has_an_effect_is_shown() {
        let mut document = sample();
        document.vrrp[0].tracking[0].adds = 0;
        let text = status(&document, Colour::Never);
        assert!(!text.contains("TRACKS"), "{text}");
        document.vrrp[0].tracking[0].fault = true;
        let text = status(&document, Colour::Never);
        assert!(text.contains("disk    fault   /run/disk holds"), "{text}");
    }

    /// Without instances, services and peers there are no empty tables, and no panic.
    #[test]
    fn empty_sections_are_left_out() {
        let mut document = sample();
        document.vrrp.clear();
        document.services.clear();
        document.peers.clear();
        document.config.refused = None;
        document.reasons.clear();
        document.conntrack = ConntrackStatus::default();
        document.notify = NotifyStatus::default();
        document.data_plane.warnings.clear();
        document.data_plane.cgroup = None;
        document.scheduling = SchedulingStatus::default();
        document.kernel = KernelStatus::default();
        let expected = "\
xvip 0.1.0 on master01, instance default, up 1h02m, /etc/xvip/xvip.toml

ATTACHED TO  MODE     NOTE
enp0s3       generic  the driver has no native XDP
-            cgroup   off: connections from this node to a VIP are not redirected
";
        assert_eq!(status(&document, Colour::Never), expected);
    }

    /// Colours change nothing but colours: without their codes the text is the plain one.
    #[test]
    fn colours_keep_the_columns() {
        let coloured = status(&sample(), Colour::Ansi);
        assert!(coloured.contains("\x1b[32mup\x1b[0m"), "{coloured}");
        let mut plain = coloured;
        for code in ["\x1b[0m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, status(&sample(), Colour::Never));
    }

    /// What a backend said cannot steer the terminal or break the table.
    #[test]
    fn control_characters_are_replaced() {
        let mut document = sample();
        document.services[0].backends[0].reason = "500 \x1b[2J\r\nforged line".into();
        let text = status(&document, Colour::Never);
        assert!(!text.contains('\x1b') && !text.contains('\r'), "{text:?}");
        assert_eq!(
            text.lines().count(),
            status(&sample(), Colour::Never).lines().count()
        );
    }

    /// Ages at the borders of their units.
    #[test]
    fn ages_show_two_units() {
        for (ms, text) in [
            (0, "0.0s"),
            (59_999, "59.9s"),
            (60_000, "1m00s"),
            (3_599_999, "59m59s"),
            (3_600_000, "1h00m"),
            (86_399_999, "23h59m"),
            (90_000_000, "1d01h"),
            (u64::MAX, "213503982334d14h"),
        ] {
            assert_eq!(Age(ms).to_string(), text);
        }
    }

    /// Sizes at the borders of their units.
    #[test]
    fn sizes_show_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (9_437_184, "9.0 MiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
