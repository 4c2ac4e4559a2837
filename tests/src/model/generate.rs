//! Random steps: conversations of a few clients with the services, the replies of nat backends, what
//! else a network has, all of it damaged now and then, and changes of the tables in between.

mod icmp;
mod scripts;

use std::{collections::VecDeque, net::IpAddr};

use ipnet::IpNet;
use lb_common::{
    abi::{self, Mac},
    headers::{
        ArpPacket, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPPROTO_UDP,
        NdPacket, TcpHeader,
    },
};

use super::{
    Model,
    case::Step,
    random::Random,
    tables::{Change, Port, State, Tables},
    world,
};
use crate::packet::{
    self, BACKEND_PORT, BROADCAST_MAC, EXTERNAL_MACS, Frame, MASTER_MACS, OTHER_OWN_MAC,
    OTHER_UPLINK, OWN_MAC, ROUTER_MAC, ROUTER2_MAC, Tcp, UPLINK, Upper, V4, V6, VIP_PORT,
};

const SYN: u8 = TcpHeader::SYN;
const ACK: u8 = TcpHeader::ACK;
const FIN: u8 = TcpHeader::FIN;
const RST: u8 = TcpHeader::RST;
const PSH: u8 = TcpHeader::PSH;

/// The longest socket buffer that a program run takes is somewhat longer.
const LONGEST_BUFFER: usize = 3000;
/// The shortest frame that a program run takes.
const SHORTEST: usize = 14;
/// Data bytes of a segment are below this number.
const MAX_DATA: usize = 200;
/// Clients' ports: few, so that they meet; one that nat does not take over, and those of
/// connections that the kernel has.
const PORTS: [u16; 6] = [
    40_000,
    40_001,
    40_002,
    80,
    world::CONNECTED[0],
    world::CONNECTED[1],
];
/// Or below this one, now and then: more than a page, and than what is answered.
const LARGE: usize = 12_000;
/// Limits of entries: few or no limit at all.
const LIMITS: [u32; 4] = [0, 1, 3, 10];
/// Steps of the clock: none of them adds up to a limit.
const AGES: [u32; 4] = [25, 90, 7_000, 8_000];

/// A family whose addresses can be looked up.
trait Family: packet::Family {
    /// The address, if it is of this family.
    fn address(addr: IpAddr) -> Option<Self::Addr>;
}

impl Family for V4 {
    fn address(addr: IpAddr) -> Option<[u8; 4]> {
        match addr {
            IpAddr::V4(four) => Some(four.octets()),
            IpAddr::V6(_) => None,
        }
    }
}

impl Family for V6 {
    fn address(addr: IpAddr) -> Option<[u8; 16]> {
        match addr {
            IpAddr::V6(six) => Some(six.octets()),
            IpAddr::V4(_) => None,
        }
    }
}

/// A client's conversation as the client sees it.
#[derive(Clone, Debug)]
struct Conversation<F: Family> {
    client: F::Addr,
    sport: u16,
    vip: F::Addr,
    dport: u16,
    /// Where its frames come in.
    ifindex: u32,
    tags: Vec<(u16, u16)>,
    from: Mac,
    /// Its next sequence number.
    seq: u32,
    /// What it has acknowledged.
    ack: u32,
    /// It has sent a SYN and heard of the answer.
    open: bool,
    /// It speaks UDP.
    udp: bool,
}

/// Makes steps.
pub struct Generator {
    random: Random,
    base: Tables,
    four: Vec<Conversation<V4>>,
    six: Vec<Conversation<V6>>,
    /// Steps that belong to the last one.
    next: VecDeque<Step>,
}

/// The tags of a frame that tables describe so.
fn tags(tags: u32) -> Vec<(u16, u16)> {
    let (outer, inner) = (tags as u16, (tags >> 16) as u16);
    match (outer, inner) {
        (0, _) => Vec::new(),
        (outer, 0) => vec![(ETHERTYPE_VLAN, outer)],
        (outer, inner) => vec![(ETHERTYPE_QINQ, outer), (ETHERTYPE_VLAN, inner)],
    }
}

/// Where a client's frames come in, mostly untagged.
fn way(random: &mut Random) -> (u32, Vec<(u16, u16)>) {
    let (ifindex, id, _) = if random.once_in(8) {
        *random.pick(&world::UPLINKS)
    } else {
        *random.pick(&[world::UPLINKS[0], world::UPLINKS[0], world::UPLINKS[1]])
    };
    (ifindex, tags(id))
}

/// The MAC of this node on an interface.
fn own_mac(ifindex: u32) -> Mac {
    if ifindex == OTHER_UPLINK {
        OTHER_OWN_MAC
    } else {
        OWN_MAC
    }
}

impl Generator {
    /// Steps of `seed`, in a world that begins with the tables `base`.
    pub fn new(seed: u64, base: Tables) -> Self {
        let mut random = Random::new(seed);
        let four = (0..12).map(|_| conversation(&mut random)).collect();
        let six = (0..12).map(|_| conversation(&mut random)).collect();
        Self {
            random,
            base,
            four,
            six,
            next: VecDeque::new(),
        }
    }

    /// The next step, given what the model has come to.
    pub fn step(&mut self, model: &Model) -> Step {
        if let Some(step) = self.next.pop_front() {
            return step;
        }
        if self.random.once_in(400) {
            let Self { random, base, .. } = self;
            self.next = if random.once_in(2) {
                scripts::any::<V4>(random, base)
            } else {
                scripts::any::<V6>(random, base)
            };
        }
        if self.random.once_in(12) {
            return Step::Change(self.change(model));
        }
        let outgoing = self.random.once_in(8);
        let (ifindex, mut frame) = if outgoing {
            (UPLINK, self.outgoing())
        } else {
            self.incoming(model)
        };
        if self.random.once_in(8) {
            self.damage(&mut frame);
        }
        if outgoing && is_buffer(&frame) {
            Step::Out { frame }
        } else {
            Step::In { ifindex, frame }
        }
    }

    fn incoming(&mut self, model: &Model) -> (u32, Vec<u8>) {
        match self.random.below(30) {
            0 => (UPLINK, self.neighbours()),
            n if n % 2 == 0 => {
                let Self { random, four, .. } = self;
                incoming::<V4>(random, four, model)
            }
            _ => {
                let Self { random, six, .. } = self;
                incoming::<V6>(random, six, model)
            }
        }
    }

    fn outgoing(&mut self) -> Vec<u8> {
        match self.random.below(8) {
            0 => self.neighbours(),
            n if n % 2 == 0 => reply::<V4>(&mut self.random).emit(),
            _ => reply::<V6>(&mut self.random).emit(),
        }
    }

    /// ARP and neighbour discovery, of VIPs and others.
    fn neighbours(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let from = *random.pick(&[OWN_MAC, ROUTER_MAC, MASTER_MACS[1]]);
        let second4 = V4::address(world::second_vip::<V4>()).unwrap_or_default();
        let second6 = V6::address(world::second_vip::<V6>()).unwrap_or_default();
        if random.once_in(2) {
            let addresses = [
                <V4 as packet::Family>::VIP,
                second4,
                second4,
                <V4 as packet::Family>::CLIENT,
                <V4 as packet::Family>::NOT_VIP,
            ];
            let operation = *random.pick(&[ArpPacket::REQUEST, ArpPacket::REPLY]);
            packet::arp(
                operation,
                from,
                *random.pick(&addresses),
                *random.pick(&addresses),
            )
        } else {
            let addresses = [
                <V6 as packet::Family>::VIP,
                second6,
                second6,
                <V6 as packet::Family>::CLIENT,
                [0; 16],
            ];
            let kind = *random.pick(&[NdPacket::SOLICITATION, NdPacket::ADVERTISEMENT, 133]);
            let (src, target) = (*random.pick(&addresses), *random.pick(&addresses));
            packet::neighbour(kind, from, src, *random.pick(&addresses), target).emit()
        }
    }

    /// Bytes changed, cut off, or added.
    fn damage(&mut self, frame: &mut Vec<u8>) {
        let random = &mut self.random;
        for _ in 0..random.below(4) {
            // The headers are what programs read.
            let at = random.below(frame.len().min(90));
            frame[at] = if random.once_in(3) {
                frame[at] ^ (1 << random.below(8))
            } else {
                random.byte()
            };
        }
        match random.below(6) {
            0 => frame.truncate(SHORTEST + random.below(frame.len() - SHORTEST + 1)),
            1 => {
                let more = random.below(40);
                frame.extend((0..more).map(|_| random.byte()));
            }
            _ => {}
        }
    }

    /// A change of the tables: of one thing, or of one back to what it was.
    fn change(&mut self, model: &Model) -> Change {
        let away = model.tables.changes_to(&self.base);
        let random = &mut self.random;
        // The more is changed, the more is put back.
        if random.below(6) < away.len() {
            return random.pick(&away).clone();
        }
        let state = &model.state;
        let flows: Vec<_> = state.flows.keys().chain(state.half_flows.keys()).collect();
        let returns: Vec<_> = state
            .returns
            .keys()
            .chain(state.half_returns.keys())
            .collect();
        match random.below(24) {
            22 | 23 => {
                let vips: Vec<_> = self.base.vips.keys().copied().collect();
                Change::Closed(*random.pick(&vips), true)
            }
            21 => Change::Trace(true),
            20 => Change::Limits(*random.pick(&LIMITS), *random.pick(&LIMITS)),
            0 if !flows.is_empty() => Change::EvictFlow(**random.pick(&flows)),
            1 if !returns.is_empty() => Change::EvictReturn(**random.pick(&returns)),
            2..5 if !flows.is_empty() => Change::Age(**random.pick(&flows), *random.pick(&AGES)),
            5 => Change::Lease(world::LEASE, false),
            6 => {
                let (ifindex, tags, _) = *random.pick(&world::UPLINKS);
                Change::Uplink((ifindex, tags), None)
            }
            12 | 13 => {
                let backends: Vec<u32> = self.base.backends.keys().copied().collect();
                Change::Suspect(*random.pick(&backends), random.once_in(4))
            }
            14 => source_rule(random, &self.base),
            7 => other_station(random, &self.base),
            8 | 9 => other_service(random, &self.base),
            10 | 11 => other_table(random, &self.base),
            _ => other_backend(random, &self.base),
        }
    }
}

/// Something of another station is gone.
fn other_station(random: &mut Random, base: &Tables) -> Change {
    fn key<K: Copy, V>(random: &mut Random, map: &std::collections::BTreeMap<K, V>) -> K {
        let keys: Vec<K> = map.keys().copied().collect();
        *random.pick(&keys)
    }
    match random.below(5) {
        0 => Change::PeerMac(key(random, &base.peer_macs), None),
        1 => Change::PeerAddr(key(random, &base.peer_addrs), None),
        2 => Change::ReplyPort(key(random, &base.reply_ports), None),
        3 => Change::Vip(key(random, &base.vips), None),
        _ => {
            let sources: Vec<Port> = base.nat_sources.iter().copied().collect();
            Change::NatSource(*random.pick(&sources), false)
        }
    }
}

/// A rule about clients' addresses.
fn source_rule(random: &mut Random, base: &Tables) -> Change {
    let services: Vec<_> = base.services.iter().collect();
    let ((vip, _), service) = *random.pick(&services);
    let (clients, lengths) = if vip.is_ipv4() {
        (world::clients::<V4>(), [0, 24, 31, 32])
    } else {
        (world::clients::<V6>(), [0, 64, 127, 128])
    };
    let length = *random.pick(&lengths);
    let net = IpNet::new_assert(*random.pick(&clients), length).trunc();
    let rule = (service.id, net.addr(), length);
    Change::Source(rule, Some(random.once_in(2)))
}

/// A service is gone, without backends, or without the one on this node.
fn other_service(random: &mut Random, base: &Tables) -> Change {
    let services: Vec<_> = base.services.iter().collect();
    let (key, service) = *random.pick(&services);
    let mut service = service.clone();
    match random.below(14) {
        0 => return Change::Service(*key, None),
        9.. => service.source_rate = (1, 1 + random.word() % 2),
        1 => service.flags = 0,
        2 => service.flags |= abi::Service::SILENT,
        3 => service.flags = abi::Service::SILENT,
        4 => service.flags |= abi::Service::SOURCES,
        5 => service.flags |= abi::Service::DEFAULT_DENY,
        6 => service.fallback = [0, service.fallback[1]],
        _ => (service.local_backend, service.local_port) = (0, 0),
    }
    Change::Service(*key, Some(service))
}

/// Other backends have a service's slots.
fn other_table(random: &mut Random, base: &Tables) -> Change {
    let tables: Vec<_> = base.maglev.iter().collect();
    let (table, backends) = *random.pick(&tables);
    let length = random.below(6);
    let pattern = (0..length).map(|_| *random.pick(backends)).collect();
    Change::Maglev(*table, pattern)
}

/// A backend is in another state, elsewhere, or gone.
fn other_backend(random: &mut Random, base: &Tables) -> Change {
    let backends: Vec<_> = base.backends.iter().collect();
    let (id, backend) = *random.pick(&backends);
    let mut backend = backend.clone();
    match random.below(20) {
        0 => return Change::Backend(*id, None),
        1 => backend.service += 1,
        12 | 13 | 16.. => backend.epoch += 1,
        14 => (backend.epoch, backend.state) = (backend.epoch + 1, 0),
        15 => {
            let (ifindex, tags, _) = *random.pick(&world::UPLINKS);
            (backend.ifindex, backend.tags) = (ifindex, tags);
        }
        2 => backend.ifindex = 0,
        3 => backend.ifindex = OTHER_UPLINK,
        4 if backend.method != 1 => backend.method ^= 1,
        5..8 => backend.state = 2,
        _ => backend.state = 0,
    }
    Change::Backend(*id, Some(backend))
}

/// Whether a program run takes a frame for a socket buffer: it wants all of the IP header, and has
/// room for less than a page.
pub fn is_buffer(frame: &[u8]) -> bool {
    let kind = frame
        .get(12..14)
        .map_or(0, |kind| u16::from_be_bytes([kind[0], kind[1]]));
    let header = match kind {
        ETHERTYPE_IPV4 => 20,
        ETHERTYPE_IPV6 => 40,
        _ => 0,
    };
    (SHORTEST + header..=LONGEST_BUFFER).contains(&frame.len())
}

fn address<F: Family>(addr: IpAddr) -> F::Addr {
    F::address(addr).unwrap_or(F::VIP)
}

/// A client that is going to talk to a service.
fn conversation<F: Family>(random: &mut Random) -> Conversation<F> {
    let clients = world::clients::<F>();
    let client = address::<F>(*random.pick(&clients));
    let second = address::<F>(world::second_vip::<F>());
    let services = [
        (F::VIP, VIP_PORT),
        (F::VIP, VIP_PORT),
        (F::VIP, world::NAT_PORT),
        (second, VIP_PORT),
        (F::VIP, world::UDP_PORT),
        (F::VIP, world::BOUND_PORT),
    ];
    let (vip, dport) = *random.pick(&services);
    let (ifindex, tags) = way(random);
    let mut conversation = Conversation {
        client,
        sport: *random.pick(&PORTS),
        vip,
        dport,
        ifindex,
        tags,
        udp: dport == world::UDP_PORT,
        from: *random.pick(&[ROUTER_MAC, ROUTER_MAC, ROUTER2_MAC]),
        seq: random.word(),
        ack: random.word(),
        open: false,
    };
    match random.below(8) {
        // A peer is the client.
        0 => {
            let node = 1 + random.below(2);
            (conversation.client, conversation.from) = (F::MASTERS[node], MASTER_MACS[node]);
        }
        // A peer forwards the client's frames.
        1 => conversation.from = MASTER_MACS[1 + random.below(2)],
        // A machine with a backend is the client.
        2 => {
            let number = random.below(2);
            (conversation.client, conversation.from) =
                (F::EXTERNALS[number], EXTERNAL_MACS[number]);
        }
        _ => {}
    }
    conversation
}

fn incoming<F: Family>(
    random: &mut Random,
    conversations: &mut [Conversation<F>],
    model: &Model,
) -> (u32, Vec<u8>) {
    let (mut ifindex, mut frame) = match random.below(16) {
        0 => (UPLINK, something_else(random)),
        5 => icmp::incoming(random, model),
        1..5 => nat_reply(random, model).unwrap_or_else(|| stray_reply(random)),
        _ => {
            let at = random.below(conversations.len());
            if random.once_in(20) {
                conversations[at] = conversation(random);
            }
            let speaker = &mut conversations[at];
            (speaker.ifindex, segment(random, speaker))
        }
    };
    frame.to = own_mac(ifindex);
    if random.once_in(6) {
        decorate(random, &mut ifindex, &mut frame);
    }
    (ifindex, frame.emit())
}

/// The next segment of a conversation.
fn segment<F: Family>(random: &mut Random, speaker: &mut Conversation<F>) -> Frame<F> {
    let most = if random.once_in(100) { LARGE } else { MAX_DATA };
    let data: Vec<u8> = (0..random.below(most)).map(|_| random.byte()).collect();
    let mut tcp = Tcp {
        sport: speaker.sport,
        dport: speaker.dport,
        seq: speaker.seq,
        ack: speaker.ack,
        flags: ACK,
        options: Vec::new(),
        data: Vec::new(),
    };
    match (speaker.open, random.below(20)) {
        (false, 0..12) | (true, 0) => {
            // A new one may begin before the old one has ended.
            if speaker.open || random.once_in(2) {
                speaker.seq = random.word();
            }
            (tcp.seq, tcp.ack, tcp.flags) = (speaker.seq, 0, SYN);
            tcp.options = vec![2, 4, 5, 0xb4, 1, 1, 4, 2];
        }
        (false, _) => {
            speaker.seq = speaker.seq.wrapping_add(1);
            tcp.seq = speaker.seq;
            speaker.open = true;
        }
        (true, 1) => {
            tcp.flags |= FIN;
            speaker.seq = speaker.seq.wrapping_add(1);
            speaker.open = random.once_in(2);
        }
        (true, 2) => {
            tcp.flags = *random.pick(&[RST, RST | ACK]);
            speaker.open = false;
        }
        // Late, early, or of nobody.
        (true, 3) => {
            tcp.seq = speaker.seq.wrapping_sub(random.word() >> random.below(32));
            tcp.ack = speaker.ack.wrapping_sub(random.word() >> random.below(32));
            tcp.flags = *random.pick(&[ACK, ACK | FIN, RST, SYN | ACK, ACK | PSH]);
            tcp.data = data;
        }
        (true, 4) => tcp.flags = *random.pick(&[0, PSH, SYN | FIN, SYN | RST, FIN, RST | FIN]),
        (true, 5..8) => {
            speaker.ack = speaker.ack.wrapping_add(random.word() >> 20);
            tcp.ack = speaker.ack;
        }
        (true, _) => {
            tcp.flags |= PSH;
            speaker.seq = speaker.seq.wrapping_add(data.len() as u32);
            tcp.data = data;
        }
    }
    if random.once_in(40) {
        speaker.from = *random.pick(&[ROUTER_MAC, ROUTER2_MAC, MASTER_MACS[1]]);
        (speaker.ifindex, speaker.tags) = way(random);
    }
    let upper = if speaker.udp {
        datagram(random, speaker.sport, speaker.dport, &tcp.data)
    } else {
        Upper::Tcp(tcp)
    };
    let mut frame = Frame::packet(upper).from(speaker.from, speaker.client);
    frame.dst = speaker.vip;
    frame.tags.clone_from(&speaker.tags);
    frame
}

/// A UDP packet, of a wrong length or without a checksum now and then.
fn datagram(random: &mut Random, sport: u16, dport: u16, data: &[u8]) -> Upper {
    let mut length = data.len() as u16 + 8;
    if random.once_in(20) {
        length = *random.pick(&[0, 7, 8, length + 1, length / 2]);
    }
    let mut bytes = [sport, dport, length, 0].map(u16::to_be_bytes).concat();
    bytes.extend(data);
    let checksum = if random.once_in(4) { None } else { Some(6) };
    Upper::Raw(IPPROTO_UDP, checksum, bytes)
}

/// The reply of a nat backend to one of the flows that there are.
fn nat_reply<F: Family>(random: &mut Random, model: &Model) -> Option<(u32, Frame<F>)> {
    let State {
        returns,
        half_returns,
        ..
    } = &model.state;
    let keys: Vec<_> = returns
        .keys()
        .chain(half_returns.keys())
        .filter(|key| F::address(key.src.ip()).is_some())
        .collect();
    if keys.is_empty() {
        return None;
    }
    let key = random.pick(&keys);
    let number = usize::from(key.src.ip() == F::EXTERNALS[1].into());
    let flags = *random.pick(&[SYN | ACK, ACK, ACK | PSH, ACK | FIN, RST | ACK, RST]);
    let data = vec![0x55; random.below(MAX_DATA)];
    let (sport, dport) = (key.src.port(), key.dst.port());
    let mut frame = if key.proto == IPPROTO_UDP {
        Frame::packet(datagram(random, sport, dport, &data))
    } else {
        let segment = Frame::<F>::tcp(flags, random.word(), random.word(), &data);
        segment.sport(sport).dport(dport)
    };
    (frame.from, frame.src) = (EXTERNAL_MACS[number], address::<F>(key.src.ip()));
    frame.dst = address::<F>(key.dst.ip());
    let (ifindex, tags) = way(random);
    frame.tags = tags;
    Some((ifindex, frame))
}

/// A segment of a backend that belongs to nothing.
fn stray_reply<F: Family>(random: &mut Random) -> (u32, Frame<F>) {
    let number = random.below(2);
    let port = *random.pick(&[BACKEND_PORT, world::NAT_BACKEND_PORT, 22]);
    let flags = *random.pick(&[SYN | ACK, ACK, RST]);
    let frame = Frame::<F>::tcp(flags, random.word(), random.word(), &[])
        .from(EXTERNAL_MACS[number], F::EXTERNALS[number])
        .sport(port)
        .dport(*random.pick(&PORTS));
    (UPLINK, frame)
}

/// What else comes to a VIP, or to this node.
fn something_else<F: Family>(random: &mut Random) -> Frame<F> {
    match random.below(6) {
        0 => Frame::packet(packet::udp(
            *random.pick(&[VIP_PORT, world::UDP_BACKEND_PORT]),
        )),
        1 => Frame::packet(packet::echo::<F>()),
        2 => Frame::packet(Upper::Raw(112, None, vec![0x21; 20])),
        3 => Frame::<F>::data().dst(F::NOT_VIP),
        // Around the service, or to nothing.
        4 => Frame::<F>::syn().dport(BACKEND_PORT),
        _ => Frame::<F>::syn().dport(22),
    }
}

/// A VLAN id with a priority: none, one of an uplink, or any.
fn vlan(random: &mut Random) -> u16 {
    let any = random.word() as u16 & 0xfff;
    let id = *random.pick(&[0, 5, 6, 7, 8, any]);
    id | *random.pick(&[0, 0x6000])
}

/// What is unusual about a frame, valid or not.
fn decorate<F: Family>(random: &mut Random, ifindex: &mut u32, frame: &mut Frame<F>) {
    match random.below(12) {
        0 => frame.tags = vec![(ETHERTYPE_VLAN, vlan(random))],
        1 => {
            frame.tags = vec![
                (ETHERTYPE_QINQ, vlan(random)),
                (ETHERTYPE_VLAN, vlan(random)),
            ];
        }
        2 => frame.options.push(vec![1; 1 + random.below(20)]),
        3 => frame.options = vec![vec![1; random.below(8)]; 1 + random.below(5)],
        4 => frame.fragment = *random.pick(&[0x2000, 0x2001, 185, 0x4000]),
        5 => frame.src = *random.pick(F::BAD_SOURCES),
        6 => frame.to = *random.pick(&[BROADCAST_MAC, ROUTER_MAC, OWN_MAC, OTHER_OWN_MAC]),
        7 => *ifindex = *random.pick(&[UPLINK, OTHER_UPLINK, world::NO_UPLINK]),
        8 => frame.checksum_error = random.word() as u16,
        9 => frame.padding = vec![0x5a; 1 + random.below(40)],
        10 => {
            frame.ttl = *random.pick(&[0, 1, 1, 2, 255]);
            if random.once_in(2) {
                frame.from = MASTER_MACS[1];
            }
        }
        _ => frame.from = *random.pick(&[MASTER_MACS[1], MASTER_MACS[2], ROUTER2_MAC]),
    }
    // IPv4 has room for 40 bytes of options.
    if F::HEADER_LEN == 20 {
        let mut left = 40_usize;
        frame.options.retain(|option| {
            let fits = option.len() <= left;
            left -= if fits { option.len() } else { 0 };
            fits
        });
    }
}

/// A segment that leaves this node.
fn reply<F: Family>(random: &mut Random) -> Frame<F> {
    let clients = world::clients::<F>();
    let sports = [BACKEND_PORT, BACKEND_PORT, VIP_PORT, 22, 40_000];
    let clients_port = *random.pick(&PORTS);
    let flags = *random.pick(&[SYN | ACK, ACK, ACK | PSH, ACK | FIN, RST]);
    let data = vec![0xaa; random.below(MAX_DATA)];
    if random.once_in(8) {
        let mut frame = icmp::outgoing(random);
        if random.once_in(6) {
            decorate(random, &mut 0, &mut frame);
        }
        return frame;
    }
    let mut frame = if random.once_in(4) {
        Frame::packet(datagram(
            random,
            world::UDP_BACKEND_PORT,
            clients_port,
            &data,
        ))
    } else {
        let segment = Frame::<F>::tcp(flags, random.word(), random.word(), &data);
        segment.sport(*random.pick(&sports)).dport(clients_port)
    };
    (frame.from, frame.to) = (OWN_MAC, ROUTER_MAC);
    let second = address::<F>(world::second_vip::<F>());
    frame.src = *random.pick(&[F::VIP, F::VIP, second, F::NOT_VIP]);
    frame.dst = address::<F>(*random.pick(&clients));
    if random.once_in(6) {
        decorate(random, &mut 0, &mut frame);
    }
    frame
}
