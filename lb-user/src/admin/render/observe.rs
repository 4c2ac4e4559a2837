//! What `xvip flows`, `trace` and `explain` find, as text for people.

use super::{Age, Cell, Colour, Table, Tint, printable, push_line};
use crate::admin::{
    explain::Explanation,
    flows::{FlowCount, FlowEntry, FlowState},
    model::BackendState,
    stream::End,
    trace::{Decision, Out, TimeOfDay, TraceRecord},
};

/// Entries whose columns are made equally wide: a long list is printed while it comes.
pub const ROWS: usize = 1_000;

/// A piece of a list of entries; its head comes with the first one.
pub fn flows(entries: &[FlowEntry], first: bool, colour: Colour) -> String {
    let mut table = Table::new([
        "CLIENT", "VIP", "PROTO", "SERVICE", "BACKEND", "METHOD", "STATE", "NAT PORT", "IDLE",
    ])
    .numbers([7, 8]);
    for entry in entries {
        table.row([
            Cell::new(entry.client),
            Cell::new(entry.vip),
            Cell::new(&entry.protocol),
            name(entry.service.as_ref()),
            name(entry.backend.as_ref()),
            entry.method.map_or_else(unknown, Cell::new),
            state(entry.state, entry.half_open),
            entry.nat_port.map_or_else(unknown, Cell::new),
            Cell::new(Age(u64::from(entry.idle_seconds) * 1000)),
        ]);
    }
    let text = table.render(colour);
    match text.split_once('\n') {
        Some((_, rows)) if !first => rows.to_owned(),
        _ => text,
    }
}

/// What follows a list.
pub fn flows_end(end: End) -> String {
    let entries = if end.items == 1 { "entry" } else { "entries" };
    let more = if end.more { ", and there are more" } else { "" };
    format!("{} {entries}{more}\n", end.items)
}

/// Counts of entries, and their sum.
pub fn counts(counts: &[FlowCount], colour: Colour) -> String {
    let mut table =
        Table::new(["SERVICE", "BACKEND", "STATE", "FLOWS", "HALF-OPEN"]).numbers([3, 4]);
    let mut sum = (0_u64, 0_u64);
    for count in counts {
        sum = (
            sum.0.saturating_add(count.flows),
            sum.1.saturating_add(count.half_open),
        );
        table.row([
            name(count.service.as_ref()),
            name(count.backend.as_ref()),
            state(count.state, false),
            Cell::new(count.flows),
            Cell::new(count.half_open),
        ]);
    }
    table.row([
        Cell::new("total"),
        Cell::default(),
        Cell::default(),
        Cell::new(sum.0),
        Cell::new(sum.1),
    ]);
    table.render(colour)
}

fn unknown() -> Cell {
    Cell::new("-")
}

fn name(name: Option<&String>) -> Cell {
    name.map_or_else(unknown, Cell::new)
}

fn state(state: FlowState, half_open: bool) -> Cell {
    let text = if half_open {
        format!("{state} (half-open)")
    } else {
        state.to_string()
    };
    Cell::new(text).tint(match state {
        FlowState::Established | FlowState::Udp => Tint::Green,
        FlowState::Reset => Tint::Red,
        FlowState::Syn | FlowState::Fin | FlowState::Closed => Tint::Plain,
    })
}

/// One packet of a trace, on one line.
pub fn trace(record: &TraceRecord, colour: Colour) -> String {
    let time = TimeOfDay(record.time_us).to_string();
    let mut words = vec![time, decision(&record.decision, colour)];
    if let Some(out) = &record.decision.out {
        words.push(way_out(&record.decision, out));
    }
    words.join(" ") + "\n"
}

/// The packet, and what was decided where and why.
fn decision(decision: &Decision, colour: Colour) -> String {
    let packet = format!(
        "{} {} > {} {}",
        decision.interface,
        decision.source,
        decision.destination,
        segment(decision)
    );
    let verdict = Cell::new(&decision.verdict).tint(match decision.verdict.as_str() {
        "drop" => Tint::Red,
        _ => Tint::Green,
    });
    let backend = decision.backend.as_ref();
    format!(
        "{}: {} by {} ({}){}",
        printable(&packet),
        verdict.paint(colour),
        printable(&decision.reason),
        printable(&decision.stage),
        backend.map_or_else(String::new, |name| format!(", backend {}", printable(name)))
    )
}

/// Protocol, control bits and length.
fn segment(decision: &Decision) -> String {
    let flags = if decision.flags.is_empty() {
        String::new()
    } else {
        format!(
            " {} seq {} ack {}",
            decision.flags, decision.seq, decision.ack
        )
    };
    format!("{}{flags} len {}", decision.protocol, decision.length)
}

/// Where the packet goes, and how it looks then, if otherwise.
fn way_out(decision: &Decision, out: &Out) -> String {
    let to = match (&out.interface, &out.mac) {
        (Some(interface), Some(mac)) => format!("-> {interface} {mac}"),
        (Some(interface), None) => format!("-> {interface}"),
        (None, _) => "-> this node".to_owned(),
    };
    if (out.source, out.destination) == (decision.source, decision.destination) {
        return printable(&to);
    }
    let rewritten = format!("{to} as {} > {}", out.source, out.destination);
    printable(&rewritten)
}

/// What follows a trace, on standard error.
pub fn trace_end(end: End) -> String {
    let packets = if end.items == 1 { "packet" } else { "packets" };
    let lost = if end.lossy {
        "; some may be missing: they came faster than they were read for a while"
    } else {
        ""
    };
    format!("{} {packets}{lost}\n", end.items)
}

/// What would become of a packet, in a few lines.
pub fn explanation(explanation: &Explanation, colour: Colour) -> String {
    let asked = &explanation.decision;
    let mut text = String::new();
    push_line(&mut text, &decision(asked, colour));
    let why = printable(&explanation.why);
    push_line(&mut text, &format!("  why      {why}"));
    let from = format!("{} ({})", explanation.from_mac, explanation.from);
    push_line(&mut text, &format!("  from     {}", printable(&from)));
    if let Some(service) = &asked.service {
        push_line(&mut text, &format!("  service  {}", printable(service)));
    }
    if let Some(backend) = backend(explanation, colour) {
        push_line(&mut text, &format!("  backend  {backend}"));
    }
    if let Some(out) = &asked.out {
        push_line(&mut text, &format!("  way      {}", way_out(asked, out)));
    }
    let entry = explanation.entry.as_ref().map_or_else(
        || "none".to_owned(),
        |entry| {
            format!(
                "{}{}, backend {}, idle for {} s",
                entry.state,
                if entry.half_open { " (half-open)" } else { "" },
                entry.backend.as_deref().unwrap_or("-"),
                entry.idle_seconds
            )
        },
    );
    push_line(&mut text, &format!("  entry    {}", printable(&entry)));
    let reply = printable(&explanation.reply);
    push_line(&mut text, &format!("  reply    {reply}"));
    let program = printable(&explanation.program);
    push_line(&mut text, &format!("  program  {program}"));
    text
}

fn backend(explanation: &Explanation, colour: Colour) -> Option<String> {
    let name = printable(explanation.decision.backend.as_ref()?);
    let Some(health) = &explanation.health else {
        return Some(name);
    };
    let state = Cell::new(health.state).tint(match health.state {
        BackendState::Up => Tint::Green,
        BackendState::Draining => Tint::Yellow,
        BackendState::Down => Tint::Red,
    });
    Some(format!(
        "{name} {} by {}, {} for {}: {}",
        health.address,
        health.method,
        state.paint(colour),
        Age(health.since_ms),
        printable(&health.reason)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{
        explain::BackendHealth, flows::tests::sample as entry, model::Method,
        trace::tests::sample as decision,
    };

    /// A list, in two pieces: one head.
    #[test]
    fn a_list_of_flows() {
        let half = FlowEntry {
            client: "[2001:db8::7]:50000".parse().unwrap(),
            vip: "[fd00::100]:1644".parse().unwrap(),
            service: None,
            backend: None,
            method: None,
            state: FlowState::Syn,
            half_open: true,
            nat_port: None,
            idle_seconds: 64,
            ..entry()
        };
        let expected = "\
CLIENT               VIP               PROTO  SERVICE    BACKEND   METHOD  STATE            NAT PORT   IDLE
192.0.2.7:40000      10.0.2.100:1644   tcp    apiserver  master02  nat     established         40000   3.0s
[2001:db8::7]:50000  [fd00::100]:1644  tcp    -          -         -       syn (half-open)         -  1m04s
";
        assert_eq!(
            flows(&[entry(), half.clone()], true, Colour::Never),
            expected
        );
        let rest = flows(&[half], false, Colour::Never);
        assert!(rest.starts_with("[2001:db8::7]"), "{rest}");
        assert_eq!(flows(&[], false, Colour::Never), "");
        let end = |items, more| {
            flows_end(End {
                items,
                more,
                ..End::default()
            })
        };
        assert_eq!(end(1, false), "1 entry\n");
        assert_eq!(end(50, true), "50 entries, and there are more\n");
    }

    /// Counts and their sum.
    #[test]
    fn counts_have_a_sum() {
        let count = |state, flows, half_open| FlowCount {
            service: Some("apiserver".to_owned()),
            backend: Some("master02".to_owned()),
            state,
            flows,
            half_open,
        };
        let expected = "\
SERVICE    BACKEND   STATE        FLOWS  HALF-OPEN
apiserver  master02  syn              5          5
apiserver  master02  established     12          1
total                                17          6
";
        let all = [
            count(FlowState::Syn, 5, 5),
            count(FlowState::Established, 12, 1),
        ];
        assert_eq!(counts(&all, Colour::Never), expected);
    }

    /// A packet that goes on is shown as it came and as it went, one that does not without.
    #[test]
    fn a_trace_is_a_line_per_packet() {
        let record = |decision| TraceRecord {
            time_us: 3_661_042_000,
            decision,
        };
        let expected = "01:01:01.042 enp0s3 192.0.2.7:40000 > 10.0.2.100:1644 tcp syn seq 1 ack 0 \
             len 74: tx by nat (select), backend master02 -> enp0s3 08:00:27:00:02:0b as \
             10.0.2.100:40000 > 10.0.2.11:6443\n";
        assert_eq!(trace(&record(decision()), Colour::Never), expected);
        let dropped = Decision {
            out: None,
            backend: None,
            reason: "no_backend".to_owned(),
            verdict: "drop".to_owned(),
            ..decision()
        };
        let expected = "01:01:01.042 enp0s3 192.0.2.7:40000 > 10.0.2.100:1644 tcp syn seq 1 ack 0 \
             len 74: drop by no_backend (select)\n";
        assert_eq!(trace(&record(dropped), Colour::Never), expected);
    }

    /// An explanation says what, why and where to, and what comes back.
    #[test]
    fn an_explanation() {
        let explanation = Explanation {
            program: "xdp_ingress".to_owned(),
            from_mac: "08:00:27:00:02:32".to_owned(),
            from: "the client's neighbour entry".to_owned(),
            decision: decision(),
            why: "Translated and sent to the backend.".to_owned(),
            health: Some(BackendHealth {
                address: "10.0.2.11:6443".parse().unwrap(),
                method: Method::Nat,
                state: BackendState::Up,
                since_ms: 64_000,
                reason: "200 OK".to_owned(),
            }),
            entry: None,
            reply: "comes back to 10.0.2.100:40000 and is translated".to_owned(),
        };
        let expected = "\
enp0s3 192.0.2.7:40000 > 10.0.2.100:1644 tcp syn seq 1 ack 0 len 74: tx by nat (select), backend master02
  why      Translated and sent to the backend.
  from     08:00:27:00:02:32 (the client's neighbour entry)
  service  apiserver
  backend  master02 10.0.2.11:6443 by nat, up for 1m04s: 200 OK
  way      -> enp0s3 08:00:27:00:02:0b as 10.0.2.100:40000 > 10.0.2.11:6443
  entry    none
  reply    comes back to 10.0.2.100:40000 and is translated
  program  xdp_ingress
";
        assert_eq!(super::explanation(&explanation, Colour::Never), expected);
    }
}
