//! `vrrp_instance`: one `[[vrrp]]`, and a second one if its excluded addresses are of the other
//! family.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{
    super::{
        Fate,
        document::Key,
        ledger::{Ledger, Word, WordId},
        plan::{self, Instance, Plan, TrackUse},
    },
    Context,
    accept::Accept,
    globals,
    notify::Notify,
    parse::Statement,
    words::{self, Known, claim, claim_all},
};

/// What the lines of a block say.
#[derive(Debug, Default)]
struct Lines {
    /// `state`: whether it is MASTER.
    state: Option<(bool, Vec<WordId>)>,
    priority: Priority,
    interface: Option<(String, Vec<WordId>)>,
    version: Option<(u8, Vec<WordId>)>,
    interval: Option<(f64, Vec<WordId>)>,
    nopreempt: Option<Vec<WordId>>,
    preempt_delay: Option<(f64, Vec<WordId>)>,
    auth: Option<Auth>,
    source: Option<(IpAddr, Vec<WordId>)>,
    peers: Vec<(IpAddr, Vec<WordId>)>,
    addresses: Vec<(IpNet, Vec<WordId>)>,
    excluded: Vec<(IpNet, Vec<WordId>)>,
    tracks: Vec<TrackUse>,
    garp: Vec<Key>,
    /// `v3_checksum_as_v2`
    plain_checksum: Option<Vec<WordId>>,
    accept: Accept,
    /// The `min_ttl` of every unicast peer.
    min_ttls: Vec<Option<(u8, Vec<WordId>)>>,
    /// `unicast_ttl`
    ttl: Option<(u8, Vec<WordId>)>,
    notify: Notify,
    /// `vrid` and `priority`
    keys: Vec<Key>,
}

/// What is known of `priority`.
#[derive(Debug, Default, PartialEq, Eq)]
enum Priority {
    /// No line says one.
    #[default]
    Unsaid,
    /// It is none that there is: keepalived takes its default.
    Wrong,
    Said(u8),
}

/// What keepalived makes of state, priority and strict mode together.
#[derive(Clone, Copy, Debug)]
struct Role {
    /// Priority 255.
    is_owner: bool,
    /// Whether it begins as MASTER.
    is_master: bool,
    is_strict: bool,
}

impl Lines {
    /// Without a priority a MASTER has 255, as without a state priority 255 is MASTER; strict mode takes no
    /// other MASTER.
    fn role(&self, context: &Context<'_>) -> Role {
        let is_strict = self.accept.strict(context).is_some();
        let says_master = self.state.as_ref().map(|(is_master, _)| *is_master);
        let is_owner = match self.priority {
            Priority::Said(priority) => priority == 255,
            Priority::Unsaid => says_master == Some(true),
            Priority::Wrong => false,
        };
        Role {
            is_owner,
            is_master: says_master.filter(|_| !is_strict).unwrap_or(is_owner),
            is_strict,
        }
    }
}

#[derive(Debug)]
struct Auth {
    is_password: bool,
    password: Option<Word>,
    words: Vec<WordId>,
}

/// Reads a `vrrp_instance` into `plan`.
pub(super) fn read(block: &Statement, context: &Context<'_>, plan: &mut Plan) {
    let ledger = context.ledger;
    let name = plan::name(block.word(1), &format!("vrrp-{}", plan.instances.len() + 1));
    let mut lines = Lines::default();
    // First: other lines are about it.
    for statement in block.children("interface") {
        lines.interface = Some((statement.word(1).to_owned(), statement.first(2)));
    }
    if lines.interface.is_none() {
        lines.interface.clone_from(&context.globals.interface);
    }
    for statement in &block.block {
        read_line(statement, context, &mut lines);
    }
    let is_v6 = lines
        .addresses
        .first()
        .is_some_and(|(net, _)| net.addr().is_ipv6());
    let version = version(&lines, is_v6, context);
    let role = lines.role(context);
    let mut keys = vec![Key::text("name", &name, &block.first(2))];
    if let Some((interface, words)) = &lines.interface {
        keys.push(Key::text("interface", interface, words));
    }
    keys.append(&mut lines.keys);
    keys.extend(owner_key(&lines, role));
    let mut comments = Vec::new();
    keys.push(version_key(version, &lines, context, &mut comments));
    keys.extend(interval_key(&lines, version, ledger));
    keys.extend(checksum_key(&lines, version, is_v6, context));
    keys.extend(ttl_key(&lines, is_v6, ledger));
    keys.extend(lines.accept.key(version, context));
    keys.extend(preemption(&lines, role, ledger));
    keys.extend(context.globals.startup_delay.clone());
    for key in &context.globals.garp {
        if !lines.garp.iter().any(|own| own.name() == key.name()) {
            keys.push(key.clone());
        }
    }
    keys.append(&mut lines.garp);
    let group = context.sync.members.get(block.word(1));
    if let Some((group, words)) = group {
        keys.push(Key::text("sync_group", group, words));
    }
    let keeps_weights = group.is_none_or(|(group, _)| context.sync.weighted.contains(group));
    if !keeps_weights || role.is_owner {
        let uses = std::mem::take(&mut lines.tracks);
        lines.tracks = context
            .trackers
            .without_weights(uses, !keeps_weights, ledger);
    }
    let of_group = context.sync.tracks.get(block.word(1));
    lines.tracks.extend(of_group.into_iter().flatten().cloned());
    let (own, other): (Vec<_>, Vec<_>) = std::mem::take(&mut lines.excluded)
        .into_iter()
        .partition(|(net, _)| net.addr().is_ipv6() == is_v6);
    let notify = std::mem::take(&mut lines.notify).into_keys();
    let mut twin = (!other.is_empty()).then(|| twin(&name, &keys, &lines, other, ledger));
    if let Some(twin) = twin.as_mut().filter(|_| !notify.is_empty()) {
        let once = format!("The programs of {name} are run for that one alone: once for an event.");
        twin.comments.push(once);
    }
    lines.addresses.extend(own);
    keys.extend(auth_key(&lines, version, role, ledger));
    strict_peers(&lines, role, ledger);
    if let Some((source, words)) = &lines.source {
        plan.own.push(*source);
        keys.push(Key::text("unicast_source", &source.to_string(), words));
    }
    plan.instances.push(Instance {
        interface: lines.interface.map(|(interface, _)| interface),
        keys,
        addresses: lines.addresses,
        peers: lines.peers,
        tracks: lines.tracks,
        notify,
        comments,
    });
    plan.instances.extend(twin);
}

/// Lines of which the last one counts: what it replaces has no other claim.
const REPLACED: [&str; 8] = [
    "interface",
    "advert_int",
    "version",
    "nopreempt",
    "preempt_delay",
    "unicast_src_ip",
    "mcast_src_ip",
    "unicast_ttl",
];

fn read_line(statement: &Statement, context: &Context<'_>, lines: &mut Lines) {
    let ledger = context.ledger;
    if lines.notify.read(statement, context.tools()) {
        return;
    }
    let words = statement.first(2);
    if REPLACED.contains(&statement.keyword()) {
        ledger.recognise(&words);
    }
    match statement.keyword() {
        "interface" => {}
        "state" => {
            lines.state = Some((statement.word(1) == "MASTER", words.clone()));
            let why = "every xvip begins as Backup; the highest priority becomes the owner";
            ledger.none(&words, why);
        }
        "virtual_router_id" => number(statement, "vrid", ledger, lines),
        "priority" => {
            number(statement, "priority", ledger, lines);
            let said = statement.word(1).parse().ok().filter(|number| *number > 0);
            lines.priority = said.map_or(Priority::Wrong, Priority::Said);
        }
        "advert_int" => lines.interval = decimal(statement, ledger),
        "version" if matches!(statement.word(1), "2" | "3") => {
            lines.version = Some((if statement.word(1) == "2" { 2 } else { 3 }, words));
        }
        "nopreempt" => lines.nopreempt = Some(statement.first(1)),
        "preempt_delay" => lines.preempt_delay = decimal(statement, ledger),
        "authentication" => lines.auth = Some(auth(statement, ledger)),
        "unicast_src_ip" | "mcast_src_ip" => match statement.word(1).parse() {
            Ok(address) => lines.source = Some((address, words)),
            Err(_) => ledger.by_hand(&words, "write an address, vrrp.unicast_source"),
        },
        "unicast_peer" => {
            claim(statement, &Known::Nothing("its lines follow"), ledger);
            for peer in &statement.block {
                unicast_peer(peer, ledger, lines);
            }
        }
        "unicast_ttl" => match statement.word(1).parse() {
            Ok(ttl) => lines.ttl = Some((ttl, words)),
            Err(_) => ledger.by_hand(&words, "write 1..255 as vrrp.unicast_min_ttl"),
        },
        "old_unicast_checksum" if statement.word(1) == "never" => {
            ledger.none(&words, "xvip does not know that checksum");
        }
        "v3_checksum_as_v2" => {
            lines.plain_checksum = globals::switched_on(statement, ledger);
        }
        "track_interface" | "track_script" | "track_file" | "track_process" | "track_bfd" => {
            let own = lines.interface.as_ref().map(|(name, _)| name.as_str());
            let uses = context.trackers.uses(statement, ledger, own);
            lines.tracks.extend(uses);
        }
        "garp_master_delay" | "garp_master_refresh" | "garp_master_refresh_repeat" => {
            lines.garp.extend(globals::announcement(statement, ledger));
        }
        "use_vmac" => virtual_mac(statement, ledger, lines),
        "accept" | "no_accept" | "strict_mode" => lines.accept.read(statement, ledger),
        "virtual_ipaddress" => addresses(statement, ledger, lines, false),
        "virtual_ipaddress_excluded" => addresses(statement, ledger, lines, true),
        keyword => {
            if let Some(known) = words::instance(keyword) {
                claim_all(statement, &known, ledger);
            }
        }
    }
}

/// `use_vmac [NAME] [MAC]`.
fn virtual_mac(statement: &Statement, ledger: &Ledger, lines: &mut Lines) {
    let key = Key::new("use_vmac", "true", &statement.first(1));
    if lines.keys.iter().any(|known| known.name() == key.name()) {
        return ledger.none(&statement.ids(), "it stands there already");
    }
    lines.keys.push(key);
    for (at, id) in statement.ids().into_iter().enumerate().skip(1) {
        if statement.word(at).contains(':') {
            let what = "xvip's virtual MAC is that of RFC 9568: 00:00:5e:00:01:VRID, or 00:00:5e:00:02:VRID";
            ledger.by_hand(&[id], what);
        } else {
            ledger.none(&[id], "xvip needs no interface for a virtual MAC");
        }
    }
}

/// `vrid` and `priority`: 1 to 255.
fn number(statement: &Statement, key: &'static str, ledger: &Ledger, lines: &mut Lines) {
    let words = statement.first(2);
    match statement.word(1).parse::<u8>() {
        Ok(number) if number > 0 => lines.keys.push(Key::new(key, number.to_string(), &words)),
        _ => ledger.by_hand(&words, format!("write 1..255 as vrrp.{key}")),
    }
}

/// A number of seconds, possibly with a fraction.
pub(super) fn decimal(statement: &Statement, ledger: &Ledger) -> Option<(f64, Vec<WordId>)> {
    let words = statement.first(2);
    match statement.word(1).parse::<f64>() {
        Ok(seconds) if (0.0..=100_000.0).contains(&seconds) => Some((seconds, words)),
        _ => {
            ledger.by_hand(&words, "write a number of seconds");
            None
        }
    }
}

fn auth(block: &Statement, ledger: &Ledger) -> Auth {
    let mut words = block.first(1);
    let mut auth = Auth {
        is_password: false,
        password: None,
        words: Vec::new(),
    };
    for line in &block.block {
        match line.keyword() {
            "auth_type" => {
                auth.is_password = matches!(line.word(1), "PASS" | "pass" | "Pass");
                words.extend(line.first(2));
            }
            "auth_pass" => {
                auth.password = line.words.get(1).cloned();
                words.extend(line.first(2));
            }
            _ => {}
        }
    }
    ledger.recognise(&words);
    auth.words = words;
    auth
}

/// keepalived says 2 unless the addresses are IPv6; xvip's default is 3.
fn version(lines: &Lines, is_v6: bool, context: &Context<'_>) -> u8 {
    let said = lines.version.as_ref().or(context.globals.version.as_ref());
    match said {
        _ if is_v6 => 3,
        Some((version, _)) => *version,
        None => 2,
    }
}

fn version_key(
    version: u8,
    lines: &Lines,
    context: &Context<'_>,
    comments: &mut Vec<String>,
) -> Key {
    let said = lines.version.as_ref().or(context.globals.version.as_ref());
    match said {
        Some((said, words)) if *said == version => Key::new("version", version.to_string(), words),
        Some((_, words)) => {
            context.ledger.none(words, "IPv6 is version 3 always");
            Key::new("version", version.to_string(), &[])
        }
        None => {
            comments.push(format!(
                "version {version} is keepalived's default here: on the wire as before. With xvip on every \
                 node, version 3 has intervals below 1s."
            ));
            Key::new("version", version.to_string(), &[])
        }
    }
}

/// The unit is a second in version 2 and 10 ms in version 3; keepalived rounds.
fn interval_key(lines: &Lines, version: u8, ledger: &Ledger) -> Option<Key> {
    let (seconds, words) = lines.interval.as_ref()?;
    let (step, limit): (u32, u64) = if version == 2 {
        (1000, 255_000)
    } else {
        (10, 40_000)
    };
    let steps = (seconds * 1000.0 / f64::from(step)).round().max(1.0);
    // In range: decimal() saw to it.
    #[allow(clippy::cast_sign_loss)]
    let millis = (steps as u64).saturating_mul(step.into());
    if millis > limit {
        let what = format!(
            "xvip sends adverts at least every {}s: write vrrp.advert_interval",
            limit / 1000
        );
        ledger.by_hand(words, what);
        return None;
    }
    Some(Key::duration(
        "advert_interval",
        Duration::from_millis(millis),
        words,
    ))
}

/// What keepalived takes where a MASTER says no priority.
fn owner_key(lines: &Lines, role: Role) -> Option<Key> {
    let (_, words) = lines.state.as_ref()?;
    let is_unsaid = lines.priority == Priority::Unsaid;
    (is_unsaid && role.is_owner).then(|| Key::new("priority", "255", words))
}

/// keepalived ignores both where the state is MASTER or the priority 255, and the delay where nothing
/// preempts and in strict mode.
fn preemption(lines: &Lines, role: Role, ledger: &Ledger) -> Option<Key> {
    let ignored = if role.is_owner {
        Some("keepalived ignores it with priority 255, so xvip's default is the same")
    } else if role.is_master {
        Some("keepalived ignores it with state MASTER, so xvip's default is the same")
    } else {
        None
    };
    if let Some(words) = &lines.nopreempt {
        if let Some((_, words)) = &lines.preempt_delay {
            ledger.none(
                words,
                ignored.unwrap_or("nothing preempts, so nothing waits"),
            );
        }
        if let Some(why) = ignored {
            ledger.none(words, why);
            return None;
        }
        return Some(Key::new("preempt", "false", words));
    }
    let (seconds, words) = lines.preempt_delay.as_ref()?;
    let strict = role
        .is_strict
        .then_some("keepalived ignores it in strict mode, so xvip's default is the same");
    if let Some(why) = ignored.or(strict) {
        ledger.none(words, why);
        return None;
    }
    if *seconds > 1000.0 {
        ledger.by_hand(words, "write at most 1000s as vrrp.preempt_delay");
        return None;
    }
    let delay = Duration::try_from_secs_f64(*seconds).ok()?;
    let millis = u64::try_from(delay.as_millis()).ok()?;
    Some(Key::duration(
        "preempt_delay",
        Duration::from_millis(millis),
        words,
    ))
}

/// The first eight bytes count.
fn auth_key(lines: &Lines, version: u8, role: Role, ledger: &Ledger) -> Option<Key> {
    let auth = lines.auth.as_ref()?;
    let words = &auth.words;
    if role.is_strict {
        ledger.none(words, "keepalived sends none in strict mode");
        return None;
    }
    if version == 3 {
        ledger.none(
            words,
            "VRRP version 3 has no authentication; keepalived sends none either",
        );
        return None;
    }
    if auth.password.is_none() {
        ledger.none(words, "keepalived sends none without a password");
        return None;
    }
    if !auth.is_password {
        ledger.by_hand(
            words,
            "xvip has no IPsec AH: use auth_type PASS or version 3 on every node first",
        );
        return None;
    }
    password_key(
        auth.password.as_ref().map(|word| word.text.as_str()),
        words,
        ledger,
    )
}

/// In strict mode keepalived refuses an instance with unicast peers.
fn strict_peers(lines: &Lines, role: Role, ledger: &Ledger) {
    if !role.is_strict {
        return;
    }
    for (_, words) in &lines.peers {
        let what = "keepalived refuses unicast peers in strict mode where the interface has multicast, and leaves this \
                    instance out: xvip sends to them; see what is meant";
        ledger.by_hand(words, what);
    }
}

/// `auth` of a password.
pub(in crate::import) fn password_key(
    password: Option<&str>,
    words: &[WordId],
    ledger: &Ledger,
) -> Option<Key> {
    let password: String = password.unwrap_or_default().chars().take(8).collect();
    let is_plain = password.chars().all(|c| c.is_ascii_graphic());
    if password.is_empty() || !is_plain {
        let what = "xvip's passwords have 1 to 8 ASCII characters without spaces: write vrrp.auth";
        ledger.by_hand(words, what);
        return None;
    }
    let secret = super::super::document::quoted(&password);
    let value = format!("{{ type = \"password\", secret = {secret} }}");
    Some(Key::new("auth", value, words))
}

/// `ADDRESS [min_ttl N] [max_ttl N]`
fn unicast_peer(line: &Statement, ledger: &Ledger, lines: &mut Lines) {
    let mut min_ttl = None;
    let mut rest = line.words.iter().skip(1);
    while let Some(word) = rest.next() {
        let value = rest.next();
        let number = value.and_then(|value| value.text.parse::<u8>().ok());
        let mut words = vec![word.id];
        words.extend(value.map(|value| value.id));
        match (word.text.as_str(), number) {
            ("min_ttl", Some(ttl)) => min_ttl = Some((ttl, words)),
            ("max_ttl", Some(255)) => ledger.none(&words, "255 is the most that there can be"),
            ("max_ttl", _) => ledger.by_hand(
                &words,
                "xvip has no highest TTL, and sends with 255: the other nodes must take that",
            ),
            ("min_ttl", None) => ledger.by_hand(&words, "write 1..255 as vrrp.unicast_min_ttl"),
            _ => {}
        }
    }
    let words = line.first(1);
    match line.keyword().parse() {
        Ok(address) => {
            lines.peers.push((address, words));
            lines.min_ttls.push(min_ttl);
        }
        Err(_) => ledger.by_hand(&words, "write an address into vrrp.unicast_peers"),
    }
}

/// The lowest TTL that adverts of peers may arrive with. keepalived takes any where a peer has no
/// `min_ttl`; xvip takes what comes from this link, 255, unless it is told otherwise.
fn ttl_key(lines: &Lines, is_v6: bool, ledger: &Ledger) -> Option<Key> {
    if lines.peers.is_empty() {
        return None;
    }
    if let Some((ttl, words)) = &lines.ttl {
        if *ttl == 255 {
            ledger.none(words, "it is what xvip sends with");
        } else {
            let what = format!(
                "xvip sends with TTL 255; while peers run keepalived and send with {ttl}, vrrp.unicast_min_ttl must \
                 be what is left of that here"
            );
            ledger.by_hand(words, what);
        }
    } else if is_v6 {
        ledger.derived(Fate::ByHand(
            "keepalived sends unicast adverts over IPv6 with hop limit 64: while peers run it, write \
             vrrp.unicast_min_ttl = 64, or unicast_ttl 255 on their side"
                .to_owned(),
        ));
    }
    let said: Vec<_> = lines.min_ttls.iter().flatten().collect();
    let (lowest, _) = said.iter().min_by_key(|(ttl, _)| ttl)?;
    let words: Vec<_> = said.iter().flat_map(|(_, words)| words).copied().collect();
    let is_one = said.iter().all(|(ttl, _)| ttl == lowest);
    if !is_one || said.len() != lines.peers.len() {
        let what =
            "not the same for all peers: write the lowest that is needed as vrrp.unicast_min_ttl";
        ledger.by_hand(&words, what);
        return None;
    }
    let lowest = (*lowest).max(1).to_string();
    Some(Key::new("unicast_min_ttl", lowest, &words))
}

/// What the checksum of version 3 covers over IPv4.
fn checksum_key(lines: &Lines, version: u8, is_v6: bool, context: &Context<'_>) -> Option<Key> {
    let global = context.globals.plain_checksum.as_ref();
    let words = lines.plain_checksum.as_ref().or(global)?;
    if version == 2 || is_v6 {
        let why = "it is about version 3 over IPv4, which this is not";
        context.ledger.none(words, why);
        return None;
    }
    Some(Key::text("v3_checksum", "rfc9568", words))
}

/// `ADDRESS[/LENGTH] [dev NAME] [label NAME] ...`
fn addresses(block: &Statement, ledger: &Ledger, lines: &mut Lines, excluded: bool) {
    let header = if excluded {
        "they are in vrrp.addresses like the others, so in adverts as well: nodes with keepalived that \
         do not list them refuse those"
    } else {
        "its lines follow"
    };
    claim(block, &Known::Nothing(header), ledger);
    let interface = lines.interface.as_ref().map(|(name, _)| name.clone());
    for line in &block.block {
        let Some((net, words)) = address(line, interface.as_deref(), ledger) else {
            continue;
        };
        let mut known = lines.addresses.iter().chain(&lines.excluded);
        let first = lines.addresses.first();
        let is_v6 = first.map_or(net.addr().is_ipv6(), |(net, _)| net.addr().is_ipv6());
        if known.any(|(known, _)| known.addr() == net.addr()) {
            ledger.none(&words, "it stands there already");
        } else if excluded {
            lines.excluded.push((net, words));
        } else if net.addr().is_ipv6() == is_v6 {
            lines.addresses.push((net, words));
        } else {
            let what = "keepalived ignores it, because it is not of the first address's family: write a second [[vrrp]], \
                        or put it into virtual_ipaddress_excluded before the import";
            ledger.by_hand(&words, what);
        }
    }
}

/// One line of addresses.
fn address(
    line: &Statement,
    interface: Option<&str>,
    ledger: &Ledger,
) -> Option<(IpNet, Vec<WordId>)> {
    let words = line.first(1);
    let text = line.keyword();
    let net = text
        .parse::<IpNet>()
        .ok()
        // Without a length keepalived takes that of a host.
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    if net.is_none() {
        ledger.by_hand(
            &words,
            "write an address with its length into vrrp.addresses",
        );
    }
    let mut rest = line.words.iter().skip(1);
    while let Some(word) = rest.next() {
        let mut ids = vec![word.id];
        let takes_value = [
            "brd",
            "broadcast",
            "dev",
            "scope",
            "label",
            "peer",
            "preferred_lft",
            "track_group",
        ];
        let value = takes_value
            .contains(&word.text.as_str())
            .then(|| rest.next())
            .flatten();
        ids.extend(value.map(|value| value.id));
        match word.text.as_str() {
            "dev" if value.map(|value| value.text.as_str()) == interface => {
                ledger.none(&ids, "it is vrrp.interface");
            }
            "dev" => ledger.by_hand(
                &ids,
                "xvip adds addresses to vrrp.interface: write a second [[vrrp]] for the other one",
            ),
            "label" => ledger.none(&ids, "xvip's addresses have no labels"),
            "scope" | "brd" | "broadcast" | "home" | "-nodad" | "mngtmpaddr" | "noprefixroute"
            | "autojoin" | "preferred_lft" => ledger.none(
                &ids,
                "xvip adds every VIP alike: with a lifetime, and never as source of the node's own traffic",
            ),
            "no_track" => ledger.none(&ids, "xvip repairs what others remove"),
            "use_vmac" => ledger.by_hand(&ids, "write vrrp.use_vmac for all addresses of the instance"),
            "peer" | "track_group" => ledger.by_hand(&ids, "xvip has no point-to-point addresses"),
            _ => {}
        }
    }
    Some((net?, words))
}

/// The instance for excluded addresses of the other family: it has an election of its own.
fn twin(
    name: &str,
    keys: &[Key],
    lines: &Lines,
    addresses: Vec<(IpNet, Vec<WordId>)>,
    ledger: &Ledger,
) -> Instance {
    let is_v6 = addresses
        .first()
        .is_some_and(|(net, _)| net.addr().is_ipv6());
    let family = if is_v6 { "v6" } else { "v4" };
    let twin = plan::name(&format!("{name}-{family}"), "other");
    let mut own = vec![Key::text("name", &twin, &[])];
    for key in keys {
        match key.name() {
            "name" => {}
            "version" => own.push(Key::new("version", "3", &[])),
            _ => own.push(key.clone()),
        }
    }
    if !lines.peers.is_empty() {
        for (_, words) in &addresses {
            ledger.by_hand(
                words,
                format!("its family has no unicast_peers here: add them to [[vrrp]] {twin}, or it uses multicast"),
            );
        }
    }
    Instance {
        interface: lines
            .interface
            .as_ref()
            .map(|(interface, _)| interface.clone()),
        keys: own,
        addresses,
        peers: Vec::new(),
        tracks: lines.tracks.clone(),
        notify: Vec::new(),
        comments: vec![format!(
            "The excluded addresses of the other family: an advert is of one family, so they are an \
             instance of their own beside {name}."
        )],
    }
}
