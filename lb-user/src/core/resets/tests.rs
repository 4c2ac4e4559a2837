//! The telling as timed traces: what is looked up, who gets which segment, and when.

use lb_common::{
    conntrack::{ENDED_SECONDS, Segment as Seen},
    headers::TcpHeader,
};

use super::*;

/// Seconds on the clock of the flows.
const SECONDS: u32 = 100;
const BACKEND: u32 = 5;
const EPOCH: u16 = 3;

const LINK: Link = Link {
    ifindex: 2,
    src: [2, 0, 0, 0, 0, 10],
    dst: [2, 0, 0, 0, 0, 11],
    tags: 0,
};

fn at(millis: u64) -> Timestamp {
    Timestamp::from_nanos(1_000_000_000_000 + millis * 1_000_000)
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn vip() -> SocketAddr {
    socket("10.0.2.100:6443")
}

fn order() -> Order {
    Order {
        backend: BACKEND,
        epoch: EPOCH,
        ipv6: false,
        tell: true,
        way: Way::None,
    }
}

/// A flow of the backend's last epoch, in which the client acknowledged 501 and sends 101 next.
fn flow() -> Flow {
    let mut flow = Flow::new(BACKEND, 33_000, 0, FlowState::Syn, SECONDS).in_epoch(EPOCH - 1);
    flow.observe(seen(TcpHeader::ACK), SECONDS);
    flow
}

fn seen(flags: u8) -> Seen {
    Seen {
        seq: 101,
        ack: 501,
        len: 0,
        flags,
    }
}

fn found(client: &str, flow: Flow) -> Found {
    Found {
        client: socket(client),
        vip: vip(),
        flow,
    }
}

/// `count` clients of one host.
fn crowd(host: u8, count: u16) -> Vec<Found> {
    (0..count)
        .map(|port| found(&format!("10.0.1.{host}:{}", 10_000 + port), flow()))
        .collect()
}

fn outputs(resets: &mut Resets) -> Vec<Output> {
    std::iter::from_fn(|| resets.poll_output()).collect()
}

/// One round: the scan is answered with `found`.
fn round(resets: &mut Resets, now: Timestamp, found: &[Found]) -> Vec<Output> {
    let scan = resets.poll_scan(now).expect("nothing to look up");
    resets.handle_found(now, SECONDS, &scan, found);
    outputs(resets)
}

/// Clients that were challenged, in order.
fn challenged(outputs: &[Output]) -> Vec<SocketAddr> {
    let challenges = outputs.iter().map(|output| output.segment);
    let challenges = challenges.filter(|s| s.flags == TcpHeader::SYN | TcpHeader::ACK);
    challenges.map(|segment| segment.dst).collect()
}

/// A client whose numbers are known gets the RST that ends it, and the challenge.
#[test]
fn a_known_client_is_reset_and_challenged() {
    let mut resets = Resets::new(1);
    resets.begin(at(0), order());
    let found = found("10.0.1.7:40000", flow());
    let sent = round(&mut resets, at(0), &[found]);
    let expected = [
        Segment::reset(vip(), found.client, 501),
        Segment::challenge(vip(), found.client, 501, 101),
    ];
    let expected = expected.map(|segment| Output {
        segment,
        link: None,
    });
    assert_eq!(sent, expected);
}

/// Of a client that never acknowledged anything nothing is known: it gets a challenge only.
#[test]
fn an_unknown_client_is_challenged() {
    let mut resets = Resets::new(1);
    resets.begin(at(0), order());
    let silent = Flow::new(BACKEND, 0, 0, FlowState::Syn, SECONDS);
    let sent = round(&mut resets, at(0), &[found("10.0.1.7:40000", silent)]);
    let [output] = sent[..] else {
        panic!("{sent:?}");
    };
    assert_eq!(output.segment.flags, TcpHeader::SYN | TcpHeader::ACK);
    assert_eq!(output.segment.ack, 0);
    assert_ne!(output.segment.seq, 0);
}

/// The backend is told in the client's name, once: by a frame to the VIP (dsr), or from the port
/// that nat uses.
#[test]
fn the_backend_is_told_once() {
    let client = "10.0.1.7:40000";
    let backend = socket("10.0.2.11:6443");
    let source = socket("10.0.2.100:33000");
    let by_link = Output {
        segment: Segment::reset(socket(client), vip(), 101),
        link: Some(LINK),
    };
    let by_route = Output {
        segment: Segment::reset(source, backend, 101),
        link: None,
    };
    for (way, expected) in [(Way::Link(LINK), by_link), (Way::Route(backend), by_route)] {
        let mut resets = Resets::new(1);
        resets.begin(at(0), Order { way, ..order() });
        let sent = round(&mut resets, at(0), &[found(client, flow())]);
        assert_eq!(sent[2..], [expected]);
        let again = round(&mut resets, at(600), &[found(client, flow())]);
        assert_eq!(again.len(), 2, "{again:?}");
    }
}

/// The rounds come at 0, 0.6, 1.5 and 4 s; after 60 s the entries are removed, and all is done.
#[test]
fn rounds_have_their_times() {
    let mut resets = Resets::new(1);
    resets.begin(at(0), order());
    for millis in [0, 600, 1_500, 4_000] {
        assert_eq!(resets.poll_timeout(), Some(at(millis)));
        if millis > 0 {
            assert_eq!(resets.poll_scan(at(millis - 1)), None);
        }
        let sent = round(&mut resets, at(millis), &[found("10.0.1.7:40000", flow())]);
        assert_eq!(challenged(&sent).len(), 1);
    }
    assert_eq!(resets.poll_timeout(), Some(at(60_000)));
    let scan = resets.poll_scan(at(60_000)).unwrap();
    assert!(scan.picks(&flow()) && scan.forgets(&flow()));
    resets.handle_found(
        at(60_000),
        SECONDS,
        &scan,
        &[found("10.0.1.7:40000", flow())],
    );
    assert_eq!(outputs(&mut resets), []);
    assert_eq!(resets.poll_timeout(), None);
}

/// Only flows of earlier epochs are looked up: one that a new SYN made anew is not, and neither is
/// another backend's.
#[test]
fn new_flows_are_left_alone() {
    let mut resets = Resets::new(1);
    resets.begin(at(0), order());
    let scan = resets.poll_scan(at(0)).unwrap();
    assert!(scan.picks(&flow()) && !scan.forgets(&flow()));
    assert!(
        scan.picks(&flow().in_epoch(EPOCH + 1)),
        "an epoch before a wrap"
    );
    assert!(!scan.picks(&flow().in_epoch(EPOCH)));
    assert!(!scan.picks(&Flow::new(6, 0, 0, FlowState::Syn, SECONDS)));
    assert!(scan.ipv4 && !scan.ipv6);
}

/// Who has confirmed by a RST, and who has been silent for too long, is done.
#[test]
fn flows_that_ended_are_left_alone() {
    let mut resets = Resets::new(1);
    resets.begin(at(0), order());
    let mut closed = flow();
    closed.observe(seen(TcpHeader::RST), SECONDS);
    let ended = SECONDS - ENDED_SECONDS;
    let stale = Flow::new(BACKEND, 0, 0, FlowState::Syn, ended).in_epoch(EPOCH - 1);
    let mut half_closed = flow();
    half_closed.observe(seen(TcpHeader::FIN | TcpHeader::ACK), SECONDS);
    let flows = [
        found("10.0.1.7:1", closed),
        found("10.0.1.7:2", stale),
        found("10.0.1.7:3", half_closed),
    ];
    let sent = round(&mut resets, at(0), &flows);
    assert_eq!(challenged(&sent), [socket("10.0.1.7:3")]);
}

/// A host gets 500 challenges in a second; other hosts need not wait for it.
#[test]
fn hosts_have_a_limit() {
    let mut resets = Resets::new(1);
    resets.begin(at(0), order());
    let mut clients = crowd(7, 1_200);
    clients.extend(crowd(8, 300));
    let sent = challenged(&round(&mut resets, at(0), &clients));
    let of = |sent: &[SocketAddr], host: &str| {
        let is_host = |client: &&SocketAddr| client.ip().to_string() == host;
        sent.iter().filter(is_host).count()
    };
    assert_eq!((of(&sent, "10.0.1.7"), of(&sent, "10.0.1.8")), (500, 300));
    // The second round finds all of them again: who waits goes first, when the second is over.
    let again = challenged(&round(&mut resets, at(600), &clients));
    assert_eq!((of(&again, "10.0.1.7"), of(&again, "10.0.1.8")), (0, 200));
    assert_eq!(resets.poll_timeout(), Some(at(1_000)));
    resets.handle_timeout(at(999));
    assert_eq!(outputs(&mut resets), []);
    resets.handle_timeout(at(1_000));
    let later = challenged(&outputs(&mut resets));
    assert_eq!((of(&later, "10.0.1.7"), of(&later, "10.0.1.8")), (500, 100));
    assert!(later.iter().all(|client| !sent[..500].contains(client)));
}

/// A client that waits for its turn and is done meanwhile gets nothing.
#[test]
fn waiting_clients_are_dropped_when_done() {
    let mut resets = Resets::new(1);
    resets.begin(at(0), order());
    let clients = crowd(7, 600);
    round(&mut resets, at(0), &clients);
    let left = &clients[599..];
    assert_eq!(round(&mut resets, at(600), left), []);
    resets.handle_timeout(at(1_000));
    assert_eq!(challenged(&outputs(&mut resets)), [clients[599].client]);
}

/// A second death begins anew: the flows of both lives are told.
#[test]
fn a_second_death_begins_anew() {
    let mut resets = Resets::new(1);
    resets.begin(at(0), order());
    round(&mut resets, at(0), &[]);
    let epoch = EPOCH + 1;
    resets.begin(at(100), Order { epoch, ..order() });
    assert_eq!(resets.poll_timeout(), Some(at(100)));
    let scan = resets.poll_scan(at(100)).unwrap();
    assert!(scan.picks(&flow()) && scan.picks(&flow().in_epoch(EPOCH)));
    assert!(!scan.picks(&flow().in_epoch(epoch)));
}

/// Who does not own the VIP forgets the flows and sends nothing.
#[test]
fn who_does_not_own_the_vip_forgets() {
    let mut resets = Resets::new(1);
    let tell = false;
    resets.begin(at(0), Order { tell, ..order() });
    let scan = resets.poll_scan(at(0)).unwrap();
    assert!(scan.picks(&flow()) && scan.forgets(&flow()));
    resets.handle_found(at(0), SECONDS, &scan, &[found("10.0.1.7:40000", flow())]);
    assert_eq!(outputs(&mut resets), []);
    assert_eq!(resets.poll_timeout(), None);
}

/// Entries of both families become flows; those of UDP do not.
#[test]
fn entries_become_flows() {
    let key = FlowKey::new([10, 0, 1, 7], 40_000, [10, 0, 2, 100], 6443, IPPROTO_TCP);
    let expected = found("10.0.1.7:40000", flow());
    assert_eq!(Found::new(&key, flow()), Some(expected));
    let mut host = [0; 16];
    host[0] = 0xfd;
    let key = FlowKey::new(host, 1, host, 2, IPPROTO_TCP);
    let client = Found::new(&key, flow()).unwrap().client;
    assert_eq!(client, socket("[fd00::]:1"));
    let udp = FlowKey::new(host, 1, host, 2, 17);
    assert_eq!(Found::new(&udp, flow()), None);
}
