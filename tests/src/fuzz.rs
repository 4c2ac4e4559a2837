//! What must hold for whatever bytes come in from outside, as functions that panic where it does not:
//! the entry points of the fuzz targets (`fuzz/`), and of a test that calls them a million times
//! with damaged samples, so that CI needs no fuzzer.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzzer looks for"
)]

use std::{cell::RefCell, io, net::IpAddr, sync::LazyLock};

use lb_user::{
    admin::model::Command,
    config::{self, HostFacts, model::V3Checksum},
    core::vrrp::packet::{self as vrrp, RxMeta},
};

use crate::{
    model::{Model, random::Random, tables::State, world},
    packet::{
        BACKEND_PORT, Family, Frame, OWN_MAC, ROUTER_MAC, UPLINK, V4, V6, VIP_PORT, arp, echo,
        neighbour, udp,
    },
};

/// A VRRP message: the first byte is its TTL, the lowest bit of the second its family. An advert that
/// is accepted says the same when it is sent again.
pub fn advert(data: &[u8]) {
    let Some((&[ttl, family], message)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (src, dst): (IpAddr, IpAddr) = if family & 1 == 0 {
        (V4::MASTERS[1].into(), vrrp::GROUP_V4.into())
    } else {
        (V6::MASTERS[1].into(), vrrp::GROUP_V6.into())
    };
    match vrrp::parse(message, &RxMeta { src, dst, ttl }, vrrp::TTL) {
        Ok(advert) => {
            let again = vrrp::emit(&advert, src, dst, V3Checksum::default());
            let meta = RxMeta { src, dst, ttl };
            assert_eq!(vrrp::parse(&again, &meta, vrrp::TTL), Ok(advert));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A configuration. What is refused is refused with a place and a reason.
pub fn configuration(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let facts = HostFacts {
        hostname: "master01".to_owned(),
    };
    let no_file = |_: &_| Err(io::ErrorKind::NotFound.into());
    if let Err(errors) = config::parse(text, "xvip.toml", &facts, &no_file) {
        assert!(!errors.errors().is_empty());
        for error in errors.errors() {
            assert!(!error.problem.is_empty(), "{error:?}");
            let lines = text.split('\n').count();
            assert!(error.line <= lines, "{error:?} of {lines} lines");
        }
    }
}

/// A request to the admin socket, as the server reads it. What is understood reads back.
pub fn request(data: &[u8]) {
    if let Ok(command) = serde_json::from_slice::<Command>(data) {
        let again = serde_json::to_vec(&command).expect("a command is JSON");
        let read = serde_json::from_slice::<Command>(&again).expect("its own words");
        assert_eq!(read, command);
    }
}

/// A frame, in the model's own parser: it is judged, and never becomes longer. (The
/// programs' parser is compared with it by `tests/bpf/model.rs`.)
pub fn frame(data: &[u8]) {
    thread_local! {
        static MODEL: RefCell<Model> = RefCell::new(Model::new(world::tables(), world::sockets()));
    }
    MODEL.with_borrow_mut(|model| {
        let outcome = model.ingress(data, UPLINK, 1000);
        // A RST as the answer is as short as can be.
        assert!(outcome.leaves.frame.len() <= data.len());
        let outcome = model.egress(data);
        assert_eq!(outcome.leaves.frame.len(), data.len());
        if model.state.flows.len() > 1000 {
            model.state = State::default();
        }
    });
}

/// An entry point, what it is called, samples to damage, and its share of a million calls.
pub struct Target {
    /// As in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// The entry point.
    pub run: fn(&[u8]),
    /// Inputs that go far.
    pub samples: Vec<Vec<u8>>,
    /// Calls.
    pub calls: usize,
}

/// Every entry point.
pub static TARGETS: LazyLock<Vec<Target>> = LazyLock::new(|| {
    vec![
        Target {
            name: "advert",
            run: advert,
            samples: adverts(),
            calls: 300_000,
        },
        Target {
            name: "configuration",
            run: configuration,
            samples: vec![
                include_bytes!("../../lb-user/tests/fixtures/config/base.toml").to_vec(),
                include_bytes!("../../lb-user/tests/fixtures/config/example.toml").to_vec(),
            ],
            calls: 10_000,
        },
        Target {
            name: "request",
            run: request,
            samples: [
                r#"{"command":"status"}"#,
                r#"{"command":"step_down","vrrp":"control-plane"}"#,
                r#"{"command":"resume","vrrp":null}"#,
            ]
            .map(|text| text.as_bytes().to_vec())
            .to_vec(),
            calls: 190_000,
        },
        Target {
            name: "frame",
            run: frame,
            samples: frames(),
            calls: 500_000,
        },
    ]
});

/// Write an advert's checksum.
fn put_checksum(message: &mut [u8], sum: u16) {
    if let Some(field) = message.get_mut(6..8) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// Adverts of each form, with the two bytes before them that [`advert`] wants.
fn adverts() -> Vec<Vec<u8>> {
    // Version 2 with a password, version 3, version 3 over IPv6; checksums plain, so that they
    // stay right with any addresses, or to be damaged.
    let mut v2 = vec![0x21, 51, 100, 1, 1, 1, 0, 0, 192, 0, 2, 100];
    v2.extend(*b"secret\0\0");
    let v3 = vec![0x31, 51, 100, 1, 0, 100, 0, 0, 192, 0, 2, 100];
    let mut v6 = vec![0x31, 51, 100, 1, 0, 100, 0, 0];
    v6.extend(V6::VIP);
    let plain = |message: &mut Vec<u8>| {
        let sum = lb_common::checksum::checksum(message);
        put_checksum(message, sum);
    };
    let with_pseudo_header = |message: &mut Vec<u8>| {
        let (src, dst) = (V6::MASTERS[1], vrrp::GROUP_V6.octets());
        let sum = lb_common::checksum::transport(&src, &dst, vrrp::PROTOCOL, message);
        put_checksum(message, sum);
    };
    let (mut v2, mut v3) = (v2, v3);
    plain(&mut v2);
    plain(&mut v3);
    with_pseudo_header(&mut v6);
    [(0, v2), (0, v3), (1, v6)]
        .map(|(family, message)| [&[vrrp::TTL, family], &message[..]].concat())
        .to_vec()
}

fn frames() -> Vec<Vec<u8>> {
    fn of<F: Family>() -> Vec<Vec<u8>> {
        let data = Frame::<F>::data();
        vec![
            Frame::<F>::syn().emit(),
            data.emit(),
            data.clone().vlan(7).emit(),
            data.clone().qinq(7, 8).ip_options(&[1; 4]).emit(),
            data.clone().ip_options(&[1; 12]).ip_options(&[1; 4]).emit(),
            data.clone().fragment(0x2000).emit(),
            data.clone().padded().emit(),
            data.clone().dport(BACKEND_PORT).emit(),
            data.macs(OWN_MAC, ROUTER_MAC)
                .src(F::VIP)
                .dst(F::CLIENT)
                .sport(BACKEND_PORT)
                .emit(),
            Frame::<F>::fin().emit(),
            Frame::<F>::rst(1).emit(),
            Frame::<F>::packet(udp(VIP_PORT)).emit(),
            Frame::<F>::packet(echo::<F>()).emit(),
        ]
    }
    let mut frames = of::<V4>();
    frames.extend(of::<V6>());
    frames.push(arp([0, 1], ROUTER_MAC, V4::CLIENT, V4::VIP));
    frames.push(neighbour(135, ROUTER_MAC, V6::CLIENT, V6::VIP, V6::VIP).emit());
    frames
}

/// One of the samples with a few bytes changed, cut off, doubled or added; sometimes bytes alone.
pub fn damaged(random: &mut Random, samples: &[Vec<u8>]) -> Vec<u8> {
    if random.once_in(32) {
        return (0..random.below(200)).map(|_| random.byte()).collect();
    }
    let mut data = random.pick(samples).clone();
    for _ in 0..random.below(4) {
        let at = random.below(data.len().max(1));
        if let Some(byte) = data.get_mut(at) {
            *byte = if random.once_in(3) {
                *byte ^ (1 << random.below(8))
            } else {
                random.byte()
            };
        }
    }
    let at = random.below(data.len() + 1);
    match random.below(12) {
        0 => data.truncate(at),
        1 => data.insert(at, random.byte()),
        2 => drop(data.drain(at..(at + random.below(8)).min(data.len()))),
        // A part of another sample, or of the same one once more.
        3 => {
            let other = random.pick(samples);
            let from = random.below(other.len() + 1);
            let to = (from + random.below(64)).min(other.len());
            data.splice(
                at..at,
                other.get(from..to).unwrap_or_default().iter().copied(),
            );
        }
        _ => {}
    }
    data
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    /// Every run of this test is the same: what is new is the fuzzer's to find.
    const SEED: u64 = 0x5eed;

    /// A million damaged samples: nothing panics, and what is promised of each holds.
    #[test]
    fn a_million_inputs_hold() {
        let mut calls = 0;
        for target in TARGETS.iter() {
            let mut random = Random::new(SEED);
            for sample in &target.samples {
                (target.run)(sample);
            }
            for call in 0..target.calls {
                let data = damaged(&mut random, &target.samples);
                let held = catch_unwind(|| (target.run)(&data));
                assert!(held.is_ok(), "{} call {call}: {data:02x?}", target.name);
            }
            calls += target.calls;
        }
        assert_eq!(calls, 1_000_000);
    }

    /// Each sample goes far: the adverts, configurations and requests are accepted.
    #[test]
    fn samples_are_valid() {
        for sample in adverts() {
            let v6 = sample[1] == 1;
            let (src, dst): (IpAddr, IpAddr) = if v6 {
                (V6::MASTERS[1].into(), vrrp::GROUP_V6.into())
            } else {
                (V4::MASTERS[1].into(), vrrp::GROUP_V4.into())
            };
            vrrp::parse(&sample[2..], &RxMeta { src, dst, ttl: 255 }, vrrp::TTL).unwrap();
        }
        for target in TARGETS.iter().filter(|target| target.name == "request") {
            for sample in &target.samples {
                serde_json::from_slice::<Command>(sample).unwrap();
            }
        }
    }
}
