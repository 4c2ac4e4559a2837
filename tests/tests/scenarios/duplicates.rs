//! A host outside of the group that has the VIPs, too: the owner finds it, shows it, and sees its end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_tests::{
    capture::Capture,
    cluster::PATIENCE,
    process::wait_until,
    skip_unless_root,
    vrrp_group::{Group, Mixed},
};

const VIPS: [(u8, IpAddr); 2] = [
    (1, IpAddr::V4(Ipv4Addr::new(10, 77, 0, 101))),
    (2, IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, 2))),
];

/// What a node shows of a group's address.
fn shown(mixed: &Mixed, node: &str, vrid: u8) -> anyhow::Result<Vec<String>> {
    let alarms = mixed.vrrp(node, vrid)?.alarms.into_iter();
    let duplicates = alarms.filter(|alarm| alarm.kind == "duplicate_address");
    Ok(duplicates.map(|alarm| alarm.what).collect())
}

/// Both addresses are given to a host that speaks no VRRP: the owner shows and logs its MAC, which it
/// has asked for; they are taken from it: that ends. A takeover between two nodes of the group is no
/// such thing, however often the new owner asks.
#[test]
fn a_stranger_with_the_vips_is_shown_and_a_takeover_is_not() {
    skip_unless_root!();
    let members = [("m1", 150), ("m2", 100)];
    let groups = VIPS.map(|(vrid, vip)| {
        let group = Group::new(vrid, vip, &members).interval(500);
        group.xvip("duplicate_probe = \"1s\"")
    });
    let mut mixed = Mixed::new(&["m1", "m2", "stranger"], groups.into()).unwrap();
    let stranger = mixed.net().node("stranger").mac();
    for (_, vip) in VIPS {
        let stranger = mixed.net().node("stranger").namespace();
        stranger.add_address(vip, "eth0").unwrap();
    }
    for node in ["m1", "m2"] {
        mixed.start(node).unwrap();
    }
    let text = format!("MAC 02:77:00:00:00:{:02x} on eth0 has", stranger[5]);
    for (vrid, vip) in VIPS {
        let what = wait_until("the stranger to be shown", PATIENCE, || {
            Ok(shown(&mixed, "m1", vrid)?.pop())
        })
        .unwrap();
        assert!(what.contains(&format!("{text} {vip}, too")), "{what}");
        assert!(mixed.log("m1").unwrap().contains(&what), "{what}");
        let vrrp = mixed.vrrp("m1", vrid).unwrap();
        assert!(vrrp.claims_of_others >= 2, "{vrrp:?}");
    }
    for (_, vip) in VIPS {
        let stranger = mixed.net().node("stranger").namespace();
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let command = format!("addr del {vip}/{length} dev eth0");
        stranger.ip(&command).unwrap();
    }
    for (vrid, vip) in VIPS {
        wait_until("the alarm to end", PATIENCE, || {
            Ok(shown(&mixed, "m1", vrid)?.is_empty().then_some(()))
        })
        .unwrap();
        let end = format!("does not claim {vip} any more");
        assert!(mixed.log("m1").unwrap().contains(&end), "{vip}");
    }

    let m2 = mixed.net().node("m2").mac();
    let from_m2 = format!("ether src 02:77:00:00:00:{:02x}", m2[5]);
    let capture = Capture::start(mixed.net(), &from_m2, PATIENCE).unwrap();
    mixed.cli("m1", &["step-down"]).unwrap();
    mixed.wait_owner_of_all("m2").unwrap();
    // Longer than what is an alarm has to last.
    for words in ["who-has 10.77.0.101 tell 0.0.0.0", ":: > ff02::1:ff01:2"] {
        wait_until("m2 to ask", PATIENCE, || {
            Ok((capture.lines(words).len() >= 5).then_some(()))
        })
        .unwrap();
    }
    for node in ["m1", "m2"] {
        for (vrid, _) in VIPS {
            assert_eq!(shown(&mixed, node, vrid).unwrap(), [""; 0], "{node}");
        }
    }
    assert!(!mixed.log("m2").unwrap().contains("duplicate address"));
}
