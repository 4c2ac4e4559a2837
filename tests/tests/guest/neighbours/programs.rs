//! Other programs on an uplink: XDP and tc.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
};

use anyhow::Result;
use aya::programs::{
    LinkOrder, TcAttachType,
    tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact},
};
use lb_tests::{
    cluster::{Cluster, patience},
    control_plane::{BOTH, be_patient},
    skip_unless_installed, skip_unless_root,
    tc_stub::{NEXT, OK, TcStub, chain},
    topology::Node,
    xdp_stub::XdpStub,
};
use lb_user::{admin::model::AttachedMode, cli::ExitCode};

use super::{cluster, works};

/// A UDP port whose packets a neighbour drops, and one that it leaves alone.
const DROPPED: u16 = 9999;
const LEFT_ALONE: u16 = 9998;

/// Whether a node gets what a client sends to the port that a neighbour drops.
fn is_dropped(cluster: &Cluster, node: &str) -> bool {
    let receiver = |port: u16| -> Result<UdpSocket> {
        let at = SocketAddr::new(cluster.node(node).ipv4().into(), port);
        cluster
            .node(node)
            .namespace()
            .enter(|| Ok(UdpSocket::bind(at)?))
    };
    let (dropped, left_alone) = (receiver(DROPPED).unwrap(), receiver(LEFT_ALONE).unwrap());
    left_alone.set_read_timeout(Some(patience())).unwrap();
    dropped.set_nonblocking(true).unwrap();
    let sender = cluster
        .client()
        .namespace()
        .enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))
        .unwrap();
    for to in [&dropped, &left_alone] {
        sender.send_to(b"?", to.local_addr().unwrap()).unwrap();
    }
    // It was sent later and is there: the first one would be as well.
    left_alone.recv(&mut [0; 8]).unwrap();
    match dropped.recv(&mut [0; 8]) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            true
        }
    }
}

/// How a neighbour attaches itself: as Cilium does, at the end of the chain, or where it is the first.
fn place(node: &Node, rest: i32, order: LinkOrder, side: TcAttachType) -> Result<TcStub> {
    node.namespace().enter(|| {
        let options = if has_tcx() {
            TcAttachOptions::TcxOrder(order)
        } else {
            let _ = qdisc_add_clsact("eth0");
            TcAttachOptions::Netlink(NlOptions {
                priority: 1,
                handle: TcHandle::new(0, 1),
                ..Default::default()
            })
        };
        TcStub::attach_dropping("eth0", side, options, DROPPED, rest)
    })
}

/// Whether the kernel has tcx links: Linux 6.6 and later.
fn has_tcx() -> bool {
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_str().unwrap().to_owned();
    let mut parts = release
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next(), parts.next()) >= (Some(6), Some(6))
}

/// A tc program that comes last, or came before xvip, has its own traffic, and the VIP goes on: its verdict
/// on all else is "the packet goes on", which ends the chain.
#[test]
fn a_tc_program_at_the_end_of_the_chain() {
    skip_unless_root!();
    for attach in ["native", "tc"] {
        let mut cluster = cluster(attach);
        for name in ["m1", "m2"] {
            for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                let stub = place(cluster.node(name), OK, LinkOrder::last(), side).unwrap();
                std::mem::forget(stub);
            }
        }
        works(&cluster);
        assert!(is_dropped(&cluster, "m1"), "{attach}");
        // Now it is there before xvip.
        for name in ["m1", "m2"] {
            cluster.stop_xvip(name).unwrap();
            lb_tests::process::output(&mut cluster.cli(name, &["detach"]).unwrap()).unwrap();
        }
        for name in ["m1", "m2"] {
            cluster.start_xvip(name).unwrap();
        }
        cluster.wait_settled("m1").unwrap();
        works(&cluster);
        assert!(is_dropped(&cluster, "m1"), "{attach}");
    }
}

/// A tc program that puts itself before xvip's: with "the next one decides" nothing changes, with "the
/// packet goes on" xvip sees nothing until it has put itself first again.
#[test]
fn a_tc_program_at_the_head_of_the_chain() {
    skip_unless_root!();
    for rest in [NEXT, OK] {
        let cluster = cluster("tc");
        let side = TcAttachType::Ingress;
        let _stub = place(cluster.node("m1"), rest, LinkOrder::first(), side).unwrap();
        if has_tcx() {
            let first = || cluster.node("m1").namespace().enter(|| chain("eth0", side));
            cluster
                .wait("xvip's program to be the first", || {
                    Ok((first()?[0] == "tc_ingress").then_some(()))
                })
                .unwrap();
            assert_eq!(first().unwrap(), ["tc_ingress", "stranger"]);
        }
        works(&cluster);
        assert!(is_dropped(&cluster, "m1"), "{rest}");
    }
}

fn prepared(attach: &str) -> Cluster {
    Cluster::builder()
        .masters(1)
        .plain_backends(1)
        .stand_in(&["--listen", "[::]:6443", "--plain"])
        .prepare(|plane| {
            plane.vips = BOTH.into();
            be_patient(plane);
            plane.node = format!("attach = \"{attach}\"");
        })
        .unwrap()
}

fn xdp(node: &Node, interface: &str) -> Result<XdpStub> {
    node.namespace()
        .enter(|| XdpStub::attach([interface], false))
}

/// An XDP program that was there before: with `native` and `generic` xvip does not start and says why, and
/// leaves nothing; with `tc` it works behind it, and `auto` takes tc where it would have been native.
#[test]
fn an_xdp_program_that_is_there_before() {
    skip_unless_root!();
    for attach in ["native", "generic"] {
        let mut cluster = prepared(attach);
        let _stub = xdp(cluster.node("m1"), "eth0").unwrap();
        cluster.start_xvip("m1").unwrap();
        let status = cluster.xvip("m1").wait_exit(patience()).unwrap();
        let said = cluster.xvip("m1").output();
        assert_eq!(status.code(), Some(ExitCode::Failure as i32), "{said}");
        assert!(said.contains("the XDP program `xdp_pass`"), "{said}");
    }
    let mut cluster = prepared("tc");
    let _stub = xdp(cluster.node("m1"), "eth0").unwrap();
    cluster.start_xvip("m1").unwrap();
    cluster.wait_settled("m1").unwrap();
    for vip in BOTH {
        let load = super::few(&cluster, SocketAddr::new(vip, 1644));
        let report = cluster.requests(&load).unwrap();
        assert_eq!(
            (report.ok, report.by_node.len()),
            (load.requests, 2),
            "{report}"
        );
    }
    drop(cluster);

    let mut cluster = prepared("auto");
    let node = cluster.node("m1").namespace();
    node.ip("tuntap add dev tap0 mode tap").unwrap();
    node.ip("link set tap0 up").unwrap();
    let _stub = xdp(cluster.node("m1"), "tap0").unwrap();
    cluster.edit_config("m1", |config| {
        *config = config
            .replace("[\"eth0\"]", "[\"tap0\"]")
            .replace("interface = \"eth0\"", "interface = \"tap0\"");
    });
    cluster.start_xvip("m1").unwrap();
    let shown = cluster.wait("xvip to answer", || Ok(Some(cluster.status("m1")?)));
    let shown = shown.unwrap().data_plane.attach.remove(0);
    assert_eq!(shown.mode, AttachedMode::Tc);
    let note = shown.note.unwrap_or_default();
    let why = "native XDP was refused (the XDP program `xdp_pass`";
    assert!(note.contains(why), "{note}");
}

/// An XDP program that comes after xvip's is refused, in either mode of XDP. Beside tc it is attached, and
/// sees packets before xvip.
#[test]
fn an_xdp_program_that_comes_after() {
    skip_unless_root!();
    for attach in ["native", "generic", "tc"] {
        let cluster = cluster(attach);
        let attached = xdp(cluster.node("m1"), "eth0");
        assert_eq!(attached.is_ok(), attach == "tc");
        works(&cluster);
    }
}

/// libxdp's dispatcher with xdp-filter in it (one program alone where the kernel takes no replacements of
/// functions): beside tc both do their work.
#[test]
fn a_dispatcher_of_libxdp() {
    skip_unless_root!();
    skip_unless_installed!("xdp-filter");
    let cluster = cluster("tc");
    let node = cluster.node("m1");
    let load = ["load", "eth0", "--policy", "allow"];
    node.run("xdp-filter", &load).unwrap();
    works(&cluster);
    node.run("xdp-filter", &["unload", "eth0"]).unwrap();
    works(&cluster);
}
