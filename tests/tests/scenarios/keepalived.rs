//! xvip and keepalived in one VRRP group, in both roles.
//!
//! Every test has several groups at once, each with its own way of speaking VRRP: they take no
//! longer than one would.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_tests::{
    capture::Recording,
    cluster::PATIENCE,
    process::{output, wait_until},
    skip_unless_installed, skip_unless_root,
    topology::Node,
    vrrp_group::{Group, Mixed},
};
use lb_user::{core::frame::mac_text, io::netlink::Netlink};

fn vip4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

fn vip6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, host)
}

/// A group in each way of speaking: VRIDs from `first` on, with these members.
fn each_way(first: u8, members: &[(&str, u8)]) -> Vec<Group> {
    let group = |number: u8, ipv6: bool| {
        let vrid = first + number;
        let vip: IpAddr = if ipv6 {
            vip6(vrid.into()).into()
        } else {
            vip4(100 + vrid).into()
        };
        Group::new(vrid, vip, members)
    };
    vec![
        group(0, false),
        group(1, false).unicast(),
        group(2, true),
        // keepalived sends these with a hop limit of 64 unless told otherwise.
        group(3, true).unicast().xvip("unicast_min_ttl = 64"),
        group(9, true).unicast().keepalived(" unicast_ttl 255"),
        group(4, false).version_2(),
        group(5, false).version_2().password("pass1122"),
        group(6, false).version_2().unicast().password("p"),
        // Each sends at its own interval, and learns the other's.
        group(7, false)
            .interval_of("m1", 250)
            .interval_of("k1", 500),
        group(8, false)
            .interval_of("m1", 500)
            .interval_of("k1", 250),
    ]
}

/// Versions 2 and 3, multicast and unicast, IPv4 and IPv6, with a password and with different
/// intervals: half of the groups have xvip above keepalived, half below. Each gives way to a
/// better one that comes, and takes over from one that resigns and from one that dies.
#[test]
fn every_way_of_speaking_in_both_roles() {
    skip_unless_root!();
    skip_unless_installed!("keepalived");
    let above = each_way(1, &[("m1", 150), ("k1", 100)]);
    let below = each_way(51, &[("m1", 100), ("k1", 150)]);
    let vrids = |groups: &[Group]| groups.iter().map(|group| group.vrid).collect::<Vec<_>>();
    let (xvips, keepaliveds) = (vrids(&above), vrids(&below));
    let mut mixed = Mixed::new(&["m1", "k1"], [above, below].concat()).unwrap();
    let everyone_at_home: Vec<_> = xvips
        .iter()
        .map(|&vrid| (vrid, "m1"))
        .chain(keepaliveds.iter().map(|&vrid| (vrid, "k1")))
        .collect();

    // The better one takes over, the lesser one listens.
    mixed.start("k1").unwrap();
    mixed.start("m1").unwrap();
    mixed.wait_owners(&everyone_at_home).unwrap();
    // It resigns, and takes over from its lesser when it comes back.
    mixed.stop("m1").unwrap();
    mixed.wait_owner_of_all("k1").unwrap();
    mixed.start("m1").unwrap();
    mixed.wait_owners(&everyone_at_home).unwrap();
    // So does the other.
    mixed.stop("k1").unwrap();
    mixed.wait_owner_of_all("m1").unwrap();
    mixed.start("k1").unwrap();
    mixed.wait_owners(&everyone_at_home).unwrap();
    for vrid in xvips.iter().chain(&keepaliveds) {
        let vrrp = mixed.vrrp("m1", *vrid).unwrap();
        assert!(vrrp.adverts_bad.is_empty(), "{vrrp:?}");
        assert!(vrrp.adverts_received > 0, "{vrrp:?}");
    }
    let log = mixed.log("k1").unwrap();
    for complaint in ["nvalid", "ncorrect", "mismatch", "expected", "dropping"] {
        let line = log.lines().find(|line| line.contains(complaint));
        assert_eq!(line, None);
    }
    // It dies: nobody resigns.
    mixed.kill("m1").unwrap();
    mixed.wait_owner_of_all("k1").unwrap();
}

/// Two Actives of equal priority that hear each other: the one with the higher address stays,
/// whichever of them is xvip, over both families.
#[test]
fn of_equal_priorities_the_higher_address_stays() {
    skip_unless_root!();
    skip_unless_installed!("keepalived");
    // Addresses rise in this order.
    let nodes = ["k1", "m1", "k2"];
    let group =
        |vrid: u8, vip: IpAddr, other: &str| Group::new(vrid, vip, &[("m1", 100), (other, 100)]);
    let groups = vec![
        group(1, vip4(101).into(), "k1"),
        group(2, vip4(102).into(), "k2"),
        group(3, vip6(3).into(), "k1"),
        group(4, vip6(4).into(), "k2"),
        group(5, vip4(105).into(), "k1").version_2(),
        group(6, vip4(106).into(), "k2").version_2(),
    ];
    let mut mixed = Mixed::new(&nodes, groups).unwrap();
    // Nobody hears anybody, so all become Active.
    mixed.net().isolate("m1").unwrap();
    for node in nodes {
        mixed.start(node).unwrap();
    }
    let everywhere = || {
        let all = mixed.groups.iter().map(|group| mixed.owners(group.vrid));
        let counts = all.map(|owners| owners.map(|owners| owners.len()));
        let counts: Vec<usize> = counts.collect::<Result<_, _>>()?;
        Ok(counts.iter().all(|&count| count == 2).then_some(()))
    };
    wait_until("two owners of each group", PATIENCE, everywhere).unwrap();
    mixed.net().reach("m1").unwrap();
    let expected = [
        (1, "m1"),
        (2, "k2"),
        (3, "m1"),
        (4, "k2"),
        (5, "m1"),
        (6, "k2"),
    ];
    mixed.wait_owners(&expected).unwrap();
}

/// Two of one kind and one of the other, with either kind on top: each takes its turn when all
/// above it are gone, by resignation or by death.
#[test]
fn mixed_groups_of_three() {
    skip_unless_root!();
    skip_unless_installed!("keepalived");
    let xvip_first = [("m1", 150), ("k1", 120), ("m2", 90)];
    let keepalived_first = [("k1", 150), ("m1", 120), ("k2", 90)];
    let groups = vec![
        Group::new(1, vip4(101), &xvip_first),
        Group::new(2, vip4(102), &keepalived_first),
        Group::new(3, vip6(3), &xvip_first)
            .unicast()
            .xvip("unicast_min_ttl = 64"),
        Group::new(4, vip6(4), &keepalived_first)
            .unicast()
            .xvip("unicast_min_ttl = 64"),
    ];
    let mut mixed = Mixed::new(&["m1", "k1", "m2", "k2"], groups).unwrap();
    for node in ["m1", "k1", "m2", "k2"] {
        mixed.start(node).unwrap();
    }
    let home = [(1, "m1"), (3, "m1"), (2, "k1"), (4, "k1")];
    mixed.wait_owners(&home).unwrap();
    // The first of the one, second of the other.
    mixed.stop("m1").unwrap();
    let second = [(1, "k1"), (3, "k1"), (2, "k1"), (4, "k1")];
    mixed.wait_owners(&second).unwrap();
    mixed.stop("k1").unwrap();
    let third = [(1, "m2"), (3, "m2"), (2, "k2"), (4, "k2")];
    mixed.wait_owners(&third).unwrap();
    mixed.start("k1").unwrap();
    mixed.wait_owners(&second).unwrap();
    mixed.start("m1").unwrap();
    mixed.wait_owners(&home).unwrap();
    // By death, where the dead leave no address behind: xvip's are gone by themselves.
    mixed.kill("m1").unwrap();
    mixed.wait_owners(&second).unwrap();
}

/// Every form of advert that xvip sends is well-formed for tshark, and its checksum right: version
/// 3 over IPv4 in the reading that is configured. keepalived takes the default one and refuses the
/// other, whose sender it does not listen to; xvip accepts both.
#[test]
fn both_readings_of_the_checksum() {
    skip_unless_root!();
    skip_unless_installed!("keepalived");
    skip_unless_installed!("tshark");
    let plain = "v3_checksum = \"rfc9568\"";
    let alone = [("m1", 150), ("m2", 100)];
    let groups = vec![
        Group::new(1, vip4(101), &alone),
        Group::new(2, vip4(102), &alone).unicast(),
        Group::new(3, vip6(3), &alone),
        Group::new(4, vip6(4), &alone).unicast(),
        Group::new(5, vip4(105), &alone).version_2(),
        Group::new(6, vip4(106), &alone)
            .version_2()
            .unicast()
            .password("pass1122"),
        Group::new(11, vip4(111), &alone).xvip(plain),
        Group::new(12, vip4(112), &alone).unicast().xvip(plain),
        Group::new(13, vip4(113), &[("m1", 150), ("k1", 100)]).xvip(plain),
    ];
    let mut mixed = Mixed::new(&["m1", "m2", "k1"], groups).unwrap();
    let from_m1 = format!(
        "ether src 02:77:00:00:00:{:02x}",
        mixed.net().node("m1").mac()[5]
    );
    let filter = format!("{from_m1} and (ip proto 112 or ip6 proto 112)");
    let recording = Recording::start(mixed.net(), &filter, PATIENCE).unwrap();
    for node in ["m1", "m2", "k1"] {
        mixed.start(node).unwrap();
    }
    let heard = |vrid: u8| {
        let what = format!("m2 to hear group {vrid}");
        wait_until(&what, PATIENCE, || {
            let vrrp = mixed.vrrp("m2", vrid)?;
            Ok((vrrp.adverts_received >= 2).then_some(()))
        })
        .unwrap();
        assert!(mixed.vrrp("m2", vrid).unwrap().adverts_bad.is_empty());
    };
    for vrid in [1, 2, 3, 4, 5, 6, 11, 12] {
        heard(vrid);
    }
    // The other kind does not hear us and takes the address, too; we hear it.
    wait_until("keepalived to refuse the plain form", PATIENCE, || {
        let refused = mixed.log("k1")?.contains("Invalid VRRPv3 checksum");
        Ok((refused && mixed.owners(13)?.len() == 2).then_some(()))
    })
    .unwrap();
    assert!(mixed.vrrp("m1", 13).unwrap().adverts_received > 0);

    let fields = [
        "vrrp.virt_rtr_id",
        "vrrp.checksum.status",
        "_ws.malformed",
        "_ws.expert",
    ];
    let by_reading = [("FALSE", 1..=6), ("TRUE", 11..=13)];
    for (as_in_version_2, vrids) in by_reading {
        let preference = format!("vrrp.v3_checksum_as_in_v2:{as_in_version_2}");
        let rows = recording.dissect(&[&preference], &fields).unwrap();
        for vrid in vrids {
            let vrid: u8 = vrid;
            let own: Vec<_> = rows
                .iter()
                .filter(|row| row[0] == vrid.to_string())
                .collect();
            assert!(own.len() >= 2, "{vrid}: {rows:?}");
            for row in own {
                assert_eq!(row[1..], ["1", "", ""], "{vrid}");
            }
        }
    }
    // tshark does judge: the other reading is wrong to it.
    let rows = recording
        .dissect(&["vrrp.v3_checksum_as_in_v2:FALSE"], &fields)
        .unwrap();
    assert!(
        rows.iter().any(|row| row[0] == "11" && row[1] != "1"),
        "{rows:?}"
    );
}

/// How long a race may take: it is over two seconds after it began.
const RACE: Duration = Duration::from_secs(8);
/// How often it is tried.
const TRIES: usize = 5;

/// Where an entry leads to, and since when.
struct Entry {
    since: Instant,
    mac: [u8; 6],
}

/// Says where a client's neighbour entries for addresses lead to, from one look to the next.
struct Entries {
    ifindex: u32,
    seen: BTreeMap<IpAddr, Vec<Entry>>,
}

impl Entries {
    /// Gives `client` an entry for each address that leads to `mac`; announcements change them.
    fn new(client: &Node, vips: &[IpAddr], mac: [u8; 6]) -> Self {
        let text = mac_text(mac);
        let namespace = client.namespace();
        for vip in vips {
            let command = format!("neigh replace {vip} lladdr {text} dev eth0 nud stale");
            namespace.ip(&command).unwrap();
        }
        let links = namespace.enter(|| Ok(Netlink::open()?.links()?)).unwrap();
        let eth0 = links.iter().find(|link| link.name == "eth0").unwrap();
        Self {
            ifindex: eth0.ifindex,
            seen: vips.iter().map(|vip| (*vip, vec![])).collect(),
        }
    }

    fn look(&mut self, client: &Node) -> anyhow::Result<()> {
        let (ifindex, seen) = (self.ifindex, &mut self.seen);
        client.namespace().enter(|| {
            let mut netlink = Netlink::open()?;
            for (vip, seen) in seen {
                let entry = netlink.neighbour(ifindex, *vip)?;
                let mac = entry.and_then(|entry| entry.mac).context("no entry")?;
                if seen.last().is_none_or(|last| last.mac != mac) {
                    let since = Instant::now();
                    seen.push(Entry { since, mac });
                }
            }
            Ok(())
        })
    }

    fn leads_to(&self, vip: IpAddr, mac: [u8; 6]) -> bool {
        let last = self.seen.get(&vip).and_then(|seen| seen.last());
        last.is_some_and(|last| last.mac == mac)
    }

    /// How long an entry that leads elsewhere now led to `mac`.
    fn time_at(&self, vip: IpAddr, mac: [u8; 6]) -> Duration {
        let seen = self.seen.get(&vip).map(Vec::as_slice).unwrap_or_default();
        let at_mac = seen.windows(2).filter(|pair| pair[0].mac == mac);
        at_mac.map(|pair| pair[1].since - pair[0].since).sum()
    }
}

/// Two Backups rise at the same moment: the lesser one, a keepalived, misses the first advert of the
/// better one, takes over as well, and has so many addresses that its announcements come after the
/// better one's answer to its advert. Clients believe the better one again when that announces once
/// more. A keepalived does so seconds later, as is printed; xvip within an advert, and without its
/// usual repeats, which are off here.
#[test]
fn clients_of_the_loser_of_a_race_are_told_again() {
    skip_unless_root!();
    skip_unless_installed!("keepalived");
    skip_unless_installed!("nft");
    let silent = "garp_repeat = 0\ngarp_delay = \"0s\"\ngarp_refresh = \"0s\"";
    let races = [(1, "k2"), (2, "m2")].map(|(vrid, winner)| {
        let members = [("m1", 150), (winner, 100), ("k1", 90)];
        Group::new(vrid, vip4(100 + vrid), &members)
            .interval(1_000)
            .xvip(silent)
    });
    let vips: Vec<IpAddr> = races.iter().map(|race| race.vip).collect();
    let nodes = ["m1", "k1", "k2", "m2", "client"];
    let mut mixed = Mixed::new(&nodes, races.into()).unwrap();
    for node in ["m1", "m2", "k2"] {
        mixed.start(node).unwrap();
    }
    // The loser's alone.
    for group in &mut mixed.groups {
        let vrid = group.vrid;
        let more = (1..=50).map(|host| format!("  10.99.{vrid}.{host}/32\n"));
        let more: String = more.collect();
        group.keepalived = format!(" virtual_ipaddress_excluded {{\n{more} }}");
    }
    mixed.start("k1").unwrap();
    mixed.wait_owner_of_all("m1").unwrap();
    let (net, loser) = (mixed.net(), mixed.net().node("k1"));
    let nft = |command: &str| {
        let mut nft = loser.namespace().command("nft");
        output(nft.arg(command)).unwrap();
    };
    nft("add table inet scenario");
    nft("add chain inet scenario in { type filter hook input priority 0; }");
    let winners = [(vips[0], "k2"), (vips[1], "m2")];
    let believed = |entries: &Entries| {
        let mut winners = winners.into_iter();
        winners.all(|(vip, node)| entries.leads_to(vip, net.node(node).mac()))
    };
    let race = || {
        mixed.cli("m1", &["resume"])?;
        mixed.wait_owner_of_all("m1")?;
        nft("flush chain inet scenario in");
        for (_, winner) in winners {
            let from = net.node(winner).ipv4();
            let first = "limit rate 1/day burst 1 packets";
            let rule = format!("ip protocol 112 ip saddr {from} {first} drop");
            nft(&format!("add rule inet scenario in {rule}"));
        }
        let mut entries = Entries::new(net.node("client"), &vips, net.node("m1").mac());
        let before = mixed.log("k1")?.len();
        mixed.cli("m1", &["step-down"])?;
        wait_until("the loser to give way in both", RACE, || {
            entries.look(net.node("client"))?;
            let log = mixed.log("k1")?.split_off(before);
            // It has announced all that it will.
            let lost = |vrid: u8| {
                let line = |state| format!("(v{vrid}) Entering {state} STATE");
                let rest = log.split_once(&line("MASTER"));
                rest.is_some_and(|(_, rest)| rest.contains(&line("BACKUP")))
            };
            Ok((lost(1) && lost(2)).then_some(()))
        })?;
        anyhow::Ok(entries)
    };
    // A loser that a busy machine holds up hears the second advert before it rises.
    let told = |error: &_| println!("no race: {error:#}");
    let mut entries = (0..TRIES)
        .find_map(|_| race().inspect_err(told).ok())
        .unwrap();
    wait_until("the winners to be believed", PATIENCE, || {
        entries.look(net.node("client"))?;
        Ok(believed(&entries).then_some(()))
    })
    .unwrap();
    for (vip, winner) in winners {
        let time = entries.time_at(vip, loser.mac());
        println!("the client was at the loser for {time:?} where {winner} won");
    }
}
