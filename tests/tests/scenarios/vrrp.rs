//! VRRP between nodes in all its forms: version 2 with a password, unicast, several addresses and
//! instances, and the announcements on the wire.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_tests::{
    advert,
    capture::Capture,
    cluster::{Cluster, PATIENCE},
    control_plane::{BOTH, VIP4},
    process::wait_until,
    skip_unless_root,
    vrrp_group::{Group, Mixed},
    witness::{Witness, adverts, claims},
};
use lb_user::{
    admin::model::VrrpState,
    config::model::{AdvertInterval, Password, V3Checksum, VrrpVersion},
    core::vrrp::{Advert, Auth, packet},
};

fn works(cluster: &Cluster) {
    let report = cluster.requests(&cluster.load(VIP4)).unwrap();
    assert_eq!(report.ok, 1000, "{report}");
}

/// VRRP version 2 with a password: elected, moved by a stop, taken back; a node with another
/// password is not listened to.
#[test]
fn version_2_with_a_password() {
    skip_unless_root!();
    let password = "version = 2\nauth = { type = \"password\", secret = \"pass1122\" }";
    let mut cluster = Cluster::builder()
        .masters(2)
        .start(|plane| {
            "1s".clone_into(&mut plane.advert_interval);
            password.clone_into(&mut plane.vrrp);
        })
        .unwrap();
    assert_eq!(cluster.vrrp("m2").unwrap().state, VrrpState::Backup);
    assert_eq!(cluster.vrrp("m2").unwrap().version, 2);
    works(&cluster);
    cluster.stop_xvip("m1").unwrap();
    cluster.wait_has("m2", "eth0", VIP4, true).unwrap();
    works(&cluster);
    cluster.edit_config("m1", |config| {
        *config = config.replace("pass1122", "another");
    });
    cluster.start_xvip("m1").unwrap();
    cluster
        .wait("m2 to refuse the wrong password", || {
            let vrrp = cluster.vrrp("m2")?;
            let bad: u64 = vrrp.adverts_bad.values().sum();
            Ok((bad >= 2 && vrrp.state == VrrpState::Active).then_some(()))
        })
        .unwrap();
}

/// Unicast peers instead of multicast: nothing is sent to the VRRP group.
#[test]
fn unicast_peers() {
    skip_unless_root!();
    let mut cluster = Cluster::builder().masters(2).prepare(|_| {}).unwrap();
    let addresses = [cluster.node("m1").ipv4(), cluster.node("m2").ipv4()];
    for (node, [own, peer]) in [("m1", addresses), ("m2", [addresses[1], addresses[0]])] {
        let unicast = format!("unicast_source = \"{own}\"\nunicast_peers = [\"{peer}\"]\nvrid");
        cluster.edit_config(node, |config| {
            *config = config.replacen("vrid", &unicast, 1);
        });
    }
    let capture = Capture::start(cluster.net(), "ip proto 112", PATIENCE).unwrap();
    for node in ["m1", "m2"] {
        cluster.start_xvip(node).unwrap();
    }
    cluster.wait_settled("m1").unwrap();
    cluster.wait_state("m2", VrrpState::Backup).unwrap();
    works(&cluster);
    cluster.stop_xvip("m1").unwrap();
    cluster.wait_has("m2", "eth0", VIP4, true).unwrap();
    // Adverts of the first owner, over a longer time than it needed to be elected.
    let adverts = capture.lines("10.77.0.11 > 10.77.0.12");
    assert!(!adverts.is_empty());
    let multicast = capture.lines("224.0.0.18");
    assert!(multicast.is_empty(), "{multicast:?}");
}

/// One instance with three addresses and a second one for IPv6: all of them move together with
/// their instance, and each can be stepped down alone.
#[test]
fn several_addresses_and_instances() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .stand_in(&["--listen", "[::]:6443"])
        .prepare(|plane| plane.vips = BOTH.into())
        .unwrap();
    let more: [IpAddr; 2] = [101, 102].map(|host| Ipv4Addr::new(10, 77, 0, host).into());
    for node in ["m1", "m2"] {
        let three = "\"10.77.0.100/24\", \"10.77.0.101/24\", \"10.77.0.102/24\"";
        let edit = |config: &mut String| *config = config.replace("\"10.77.0.100/24\"", three);
        cluster.edit_config(node, edit);
        cluster.start_xvip(node).unwrap();
    }
    cluster.wait_settled("m1").unwrap();
    let addresses: Vec<IpAddr> = BOTH.into_iter().chain(more).collect();
    for &address in &addresses {
        cluster.wait_has("m1", "eth0", address, true).unwrap();
        assert!(!cluster.has("m2", "eth0", address).unwrap());
    }
    let mut step_down = cluster.cli("m1", &["vrrp", "step-down", "v4"]).unwrap();
    lb_tests::process::output(&mut step_down).unwrap();
    for address in addresses.iter().filter(|address| address.is_ipv4()) {
        cluster.wait_has("m2", "eth0", *address, true).unwrap();
        cluster.wait_has("m1", "eth0", *address, false).unwrap();
    }
    assert!(cluster.has("m1", "eth0", BOTH[1]).unwrap());
    works(&cluster);
    let mut resume = cluster.cli("m1", &["vrrp", "resume"]).unwrap();
    lb_tests::process::output(&mut resume).unwrap();
    cluster.wait_settled("m1").unwrap();
}

/// A new owner announces its addresses at once and again more than a second later, by
/// gratuitous ARP and by unsolicited neighbour advertisements.
#[test]
fn a_new_owner_announces_at_once_and_again() {
    skip_unless_root!();
    let mut cluster = Cluster::builder()
        .masters(2)
        .stand_in(&["--listen", "[::]:6443"])
        .start(|plane| plane.vips = BOTH.into())
        .unwrap();
    let filter = "ether src 02:77:00:00:00:0c and (arp or (icmp6 and ip6[40] = 136))";
    let capture = Capture::start(cluster.net(), filter, PATIENCE).unwrap();
    cluster.stop_xvip("m1").unwrap();
    // Both forms of gratuitous ARP: neighbours differ in which one they believe.
    for words in [
        "Request who-has 10.77.0.100",
        "Reply 10.77.0.100 is-at",
        "tgt is fd77::100",
    ] {
        let more_than_locktime = Duration::from_secs(1);
        let times = capture
            .wait_for_repeat(words, more_than_locktime, PATIENCE)
            .unwrap();
        println!("{words}: announced after {times:?} s");
    }
}

/// What a neighbour sends, whose address is the first one.
fn message(version: VrrpVersion, vrid: u8, (src, vip): (IpAddr, IpAddr), auth: Auth) -> Vec<u8> {
    let group = match src {
        IpAddr::V4(_) => IpAddr::V4(packet::GROUP_V4),
        IpAddr::V6(_) => IpAddr::V6(packet::GROUP_V6),
    };
    let advert = Advert {
        version,
        vrid: vrid.try_into().unwrap(),
        priority: 254,
        interval: AdvertInterval::from_centis(100).unwrap(),
        addresses: vec![vip],
        auth,
    };
    packet::emit(&advert, src, group, V3Checksum::Rfc9568)
}

/// A message whose bytes from `at` on are others; its checksum is right again (the plain form).
fn changed(message: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[at..at + bytes.len()].copy_from_slice(bytes);
    message[6..8].fill(0);
    let sum = lb_common::checksum::checksum(&message);
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    message
}

fn vip(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, host).into()
}

const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, 3);

/// The label, the VRID, the TTL and the message of an advert for every check.
fn bad_adverts(src: IpAddr) -> Vec<(&'static str, u8, u8, Vec<u8>)> {
    let vip6 = VIP6.into();
    let secret = Auth::Password(Password(*b"pass1122"));
    let v3 = message(VrrpVersion::V3, 1, (src, vip(101)), Auth::None);
    let v2 = message(VrrpVersion::V2, 2, (src, vip(102)), secret);
    let v6 = message(
        VrrpVersion::V3,
        3,
        ("fe80::1".parse().unwrap(), vip6),
        Auth::None,
    );
    let to_peer = message(VrrpVersion::V3, 4, (src, vip(104)), Auth::None);
    let collision = message(VrrpVersion::V3, 1, (src, vip(200)), Auth::None);
    let mut damaged = v3.clone();
    damaged[6] ^= 0x55;
    vec![
        ("ttl", 1, 254, v3.clone()),
        ("short", 1, 255, v3[..7].to_vec()),
        ("version", 1, 255, changed(&v3, 0, &[0x41])),
        ("type", 1, 255, changed(&v3, 0, &[0x32])),
        ("no_address", 1, 255, changed(&v3[..8], 3, &[0])),
        ("length", 1, 255, changed(&v3, 3, &[2])),
        ("checksum", 1, 255, damaged),
        ("zero_interval", 1, 255, changed(&v3, 4, &[0, 0])),
        ("addresses", 1, 255, collision),
        (
            "version",
            2,
            255,
            changed(&changed(&v3, 1, &[2]), 8, &[10, 77, 0, 102]),
        ),
        ("auth_type", 2, 255, changed(&v2, 4, &[7])),
        ("auth", 2, 255, changed(&v2, 12, b"pass1123")),
        ("interval", 2, 255, changed(&v2, 5, &[9])),
        ("addresses", 2, 255, changed(&v2, 8, &[10, 77, 0, 103])),
        ("v2_over_ipv6", 3, 255, changed(&v6, 0, &[0x21])),
        ("checksum", 3, 255, v6),
        ("unknown_peer", 4, 255, to_peer),
    ]
}

/// Every check of RFC 9568 section 7.1 and RFC 3768 section 7.1 on packets from the wire: what fails
/// one is counted by what failed, logged once however often it comes, and changes nothing, although
/// its priority is higher than the owner's.
#[test]
fn adverts_that_fail_a_check_are_counted_and_change_nothing() {
    skip_unless_root!();
    let own = [("m1", 100)];
    let mut mixed = Mixed::new(
        &["m1", "stranger"],
        vec![
            Group::new(1, vip(101), &own),
            Group::new(2, vip(102), &own)
                .version_2()
                .password("pass1122"),
            Group::new(3, VIP6, &own),
            // Its only peer is not the stranger.
            Group::new(4, vip(104), &own).xvip("unicast_peers = [\"10.77.0.99\"]"),
        ],
    )
    .unwrap();
    mixed.start("m1").unwrap();
    mixed.wait_owner_of_all("m1").unwrap();
    let stranger = mixed.net().node("stranger");
    let src = IpAddr::V4(stranger.ipv4());
    let table = bad_adverts(src);
    for (label, vrid, ttl, bytes) in &table {
        let to = match vrid {
            3 => IpAddr::V6(packet::GROUP_V6),
            4 => IpAddr::V4(mixed.net().node("m1").ipv4()),
            _ => IpAddr::V4(packet::GROUP_V4),
        };
        let counted = || {
            let bad = mixed.vrrp("m1", *vrid)?.adverts_bad;
            Ok::<_, anyhow::Error>(bad.get(*label).copied().unwrap_or(0))
        };
        let before = counted().unwrap();
        advert::send(stranger, to, &[(*ttl, bytes.as_slice()); 3]).unwrap();
        wait_until(&format!("{label} in group {vrid}"), PATIENCE, || {
            Ok((counted()? >= before + 3).then_some(()))
        })
        .unwrap();
        assert_eq!(counted().unwrap(), before + 3, "{label} in group {vrid}");
    }
    let log = mixed.log("m1").unwrap();
    for group in &mixed.groups {
        let vrrp = mixed.vrrp("m1", group.vrid).unwrap();
        assert_eq!(vrrp.state, VrrpState::Active, "{vrrp:?}");
        assert_eq!(vrrp.transitions, 2, "Backup, Active: {vrrp:?}");
        assert_eq!(vrrp.adverts_received, 0, "{vrrp:?}");
        let of_group = format!("vrrp=\"{}\"", group.name);
        // A busy machine is complained about, too.
        let complaints = log.lines().filter(|line| {
            let words = ["an advert was refused", "another group uses VRID"];
            line.contains(&of_group) && words.iter().any(|words| line.contains(words))
        });
        let complaints: Vec<_> = complaints.collect();
        assert_eq!(complaints.len(), vrrp.adverts_bad.len(), "{complaints:#?}");
    }
    // A group of others with this VRID is shown, and what to do.
    let alarms = mixed.vrrp("m1", 1).unwrap().alarms;
    let what =
        "another group uses VRID 1 on eth0: 10.77.0.200 from 10.77.0.12; choose another vrid";
    assert_eq!(
        alarms.iter().map(|alarm| &*alarm.what).collect::<Vec<_>>(),
        [what]
    );
    assert!(log.contains(what), "{log}");
    // A node that stays Active beside us is shown, too: a lesser one that does not hear us.
    let v3 = message(VrrpVersion::V3, 1, (src, vip(101)), Auth::None);
    let rival = changed(&v3, 2, &[50]);
    advert::send(
        stranger,
        packet::GROUP_V4.into(),
        &[(255, rival.as_slice())],
    )
    .unwrap();
    let is_shown = || {
        let vrrp = mixed.vrrp("m1", 1)?;
        Ok(vrrp
            .alarms
            .iter()
            .any(|alarm| alarm.kind == "rival")
            .then_some(vrrp.conflicts))
    };
    let conflicts = wait_until("the rival to be shown", PATIENCE, is_shown).unwrap();
    assert_eq!(conflicts, 1);
}

/// Two Backups take over within milliseconds because neither hears the other, and both announce. As
/// soon as they hear each other the one that stays announces again, in answer to the other's last
/// advert and although it has just done so: neighbours that believe the wrong one do so for no
/// longer than about one advert.
#[test]
fn the_winner_of_a_race_is_believed_within_an_advert() {
    skip_unless_root!();
    // Of the last two the lesser one takes over, and announces, last.
    let members = [("m1", 150), ("m2", 90), ("m3", 100)];
    let group = Group::new(51, VIP4, &members).interval(100);
    let mut mixed = Mixed::new(&["m1", "m2", "m3", "client"], vec![group]).unwrap();
    for node in ["m1", "m2", "m3"] {
        mixed.start(node).unwrap();
    }
    mixed.wait_owner_of_all("m1").unwrap();
    // It asks once, at the start: what it hears then is announced.
    let witness = Witness::start(mixed.net().node("client"), VIP4, Duration::from_hours(1));
    let (loser, winner) = (mixed.net().node("m2").mac(), mixed.net().node("m3").mac());
    mixed.net().keep_apart(&["m2", "m3"], true).unwrap();
    mixed.cli("m1", &["step-down"]).unwrap();
    let both = || Ok(mixed.owners(51)?.iter().eq(["m2", "m3"]).then_some(()));
    wait_until("two new owners", PATIENCE, both).unwrap();
    let mark = witness.mark();
    mixed.net().keep_apart(&["m2", "m3"], false).unwrap();
    mixed.wait_owner_of_all("m3").unwrap();
    // From the loser's first advert that the winner may have heard.
    let answered = || {
        let seen = witness.since(mark);
        let Some((heard, _)) = adverts(&seen, loser).next() else {
            return Ok(None);
        };
        let first = claims(&seen).find(|(at, mac)| *mac == winner && *at > heard);
        let between = |until| {
            let sent = adverts(&seen, winner).filter(|(at, _)| (heard..until).contains(at));
            sent.count()
        };
        Ok(first.map(|(until, _)| between(until)))
    };
    let adverts = wait_until("the winner's announcement", PATIENCE, answered).unwrap();
    // Counted in adverts of the winner, who is as late with these as with the answer. By the repeat
    // after 1.1 s alone it would be about ten.
    assert!(adverts <= 5, "{adverts}");
}
