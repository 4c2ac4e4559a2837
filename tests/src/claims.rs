//! Who says to have the VIPs, as the wire carries it, while a client keeps asking in every way there
//! is: by ARP and neighbour solicitation, to all and to each node by itself.
//!
//! A claim is **false** if the last advert of its VIP's family before it was another node's: that
//! one is Active then, and the claimant is not. Both rest on the order in which the bridge saw the
//! frames, not on any clock.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::{
    socket::{MsgFlags, send, setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};

use crate::{
    process::wait_until,
    topology::{Node, Topology},
    who_has::{Mac, open_on, questions},
    witness::{lock, receive},
};

/// Between two rounds of questions.
const PACE: Duration = Duration::from_millis(50);

/// What was seen, in the order in which it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A claim of an address: ARP with it as the sender, a neighbour advertisement for it, or a
    /// neighbour solicitation from it.
    Claim {
        /// When, since the epoch.
        at: Duration,
        /// Who sent it.
        from: Mac,
        /// The address.
        vip: IpAddr,
        /// What it was.
        form: Form,
    },
    /// An advert.
    Advert {
        /// When, since the epoch.
        at: Duration,
        /// Who sent it.
        from: Mac,
        /// Of an IPv4 group.
        ipv4: bool,
        /// Its priority; 0: a resignation.
        priority: u8,
    },
}

/// How an address is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// To whoever asked.
    Answer,
    /// To everybody: gratuitous ARP, unsolicited neighbour advertisement.
    Announcement,
    /// As the sender of a question.
    Question,
}

/// A running observation. Dropping it ends it.
#[derive(Debug)]
pub struct Claims {
    events: Arc<Mutex<Vec<Event>>>,
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Claims {
    /// Lets `client` ask for `vips` everybody and each of `nodes`, which may be further MACs.
    pub fn start(net: &Topology, client: &Node, vips: &[IpAddr], nodes: &[Mac]) -> Result<Self> {
        // Frames between two ports do not reach the bridge's own interface otherwise.
        net.bridge().ip("link set br0 promisc on")?;
        let own = Self {
            events: Arc::default(),
            rounds: Arc::default(),
            stop: Arc::default(),
        };
        let questions: Vec<_> = vips
            .iter()
            .flat_map(|vip| questions(client, *vip, nodes))
            .collect();
        let (events, stop, vips) = (own.events.clone(), own.stop.clone(), vips.to_vec());
        let (open, opened) = std::sync::mpsc::channel();
        net.bridge().spawn(move || {
            let socket = open_on("br0")?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
            open.send(())?;
            while !stop.load(Ordering::Relaxed) {
                if let Some((at, frame)) = receive(&socket)? {
                    lock(&events).extend(read(at.into(), &frame, &vips));
                }
            }
            Ok(())
        });
        opened.recv().context("the bridge cannot be listened to")?;
        let (rounds, stop) = (own.rounds.clone(), own.stop.clone());
        client.namespace().spawn(move || {
            let socket = open_on("eth0")?;
            while !stop.load(Ordering::Relaxed) {
                for question in &questions {
                    send(socket.as_raw_fd(), question, MsgFlags::empty())?;
                }
                rounds.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PACE);
            }
            Ok(())
        });
        Ok(own)
    }

    /// Everything that was seen.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.events).clone()
    }

    /// How many events there are: what [`Claims::since`] takes.
    pub fn mark(&self) -> usize {
        lock(&self.events).len()
    }

    /// The events after a mark.
    pub fn since(&self, mark: usize) -> Vec<Event> {
        lock(&self.events).get(mark..).unwrap_or_default().to_vec()
    }

    /// Waits for so many more rounds of questions.
    pub fn wait_rounds(&self, count: u64, deadline: Duration) -> Result<()> {
        let end = self.rounds.load(Ordering::Relaxed) + count;
        wait_until("more questions", deadline, || {
            Ok((self.rounds.load(Ordering::Relaxed) >= end).then_some(()))
        })
    }

    /// Waits until a node was seen to claim each of `vips`, after a mark.
    pub fn wait_claims(
        &self,
        mark: usize,
        from: Mac,
        vips: &[IpAddr],
        deadline: Duration,
    ) -> Result<()> {
        wait_until(&format!("{from:02x?} to claim {vips:?}"), deadline, || {
            let seen = self.since(mark);
            let claimed = |vip: &IpAddr| claims(&seen, from).any(|(_, claimed)| claimed == *vip);
            Ok(vips.iter().all(claimed).then_some(()))
        })
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The claims of one sender among events: how, and of what.
pub fn claims(events: &[Event], sender: Mac) -> impl Iterator<Item = (Form, IpAddr)> {
    events.iter().filter_map(move |event| match event {
        Event::Claim {
            from, vip, form, ..
        } if *from == sender => Some((*form, *vip)),
        _ => None,
    })
}

/// The claims of a node (all of its MACs, that of its adverts first) while another one is Active.
pub fn false_claims(events: &[Event], node: &[Mac]) -> Vec<Event> {
    let mut other_is_active = [false; 2];
    let mut found = Vec::new();
    for event in events {
        match *event {
            Event::Advert {
                from,
                ipv4,
                priority,
                ..
            } => {
                if let Some(active) = other_is_active.get_mut(usize::from(ipv4)) {
                    *active = !node.contains(&from) && priority > 0;
                }
            }
            Event::Claim { from, vip, .. } => {
                let other = other_is_active.get(usize::from(vip.is_ipv4()));
                if node.contains(&from) && other == Some(&true) {
                    found.push(*event);
                }
            }
        }
    }
    found
}

/// What a frame says about one of `vips`.
fn read(at: Duration, frame: &[u8], vips: &[IpAddr]) -> Option<Event> {
    let field = |from: usize, length: usize| frame.get(from..from + length);
    let from: Mac = field(6, 6)?.try_into().ok()?;
    let to_all = field(0, 1)?.first()? & 1 == 1;
    let claim = |vip: IpAddr, form| {
        vips.contains(&vip).then_some(Event::Claim {
            at,
            from,
            vip,
            form,
        })
    };
    let advert = |ipv4, priority: Option<&[u8]>| {
        Some(Event::Advert {
            at,
            from,
            ipv4,
            priority: *priority?.first()?,
        })
    };
    let ipv6 = |from| Some(Ipv6Addr::from(<[u8; 16]>::try_from(field(from, 16)?).ok()?));
    match (field(12, 2)?, field(20, 1)?) {
        ([0x08, 0x06], _) => {
            let vip = Ipv4Addr::from(<[u8; 4]>::try_from(field(28, 4)?).ok()?);
            let form = match (field(20, 2)?, field(38, 4)? == vip.octets()) {
                (_, true) => Form::Announcement,
                ([0, 2], _) => Form::Answer,
                _ => Form::Question,
            };
            claim(vip.into(), form)
        }
        ([0x08, 0x00], _) if field(23, 1)? == [112] => {
            let length = usize::from(field(14, 1)?.first()? & 0x0f) * 4;
            advert(true, field(14 + length + 2, 1))
        }
        ([0x86, 0xdd], [112]) => advert(false, field(56, 1)),
        ([0x86, 0xdd], [58]) => match field(54, 1)? {
            [136] if to_all => claim(ipv6(62)?.into(), Form::Announcement),
            [136] => claim(ipv6(62)?.into(), Form::Answer),
            [135] => claim(ipv6(22)?.into(), Form::Question),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];
    const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

    fn claim(from: Mac) -> Event {
        Event::Claim {
            at: Duration::ZERO,
            from,
            vip: VIP,
            form: Form::Answer,
        }
    }

    fn advert(from: Mac, ipv4: bool, priority: u8) -> Event {
        Event::Advert {
            at: Duration::ZERO,
            from,
            ipv4,
            priority,
        }
    }

    /// A claim is false from the other's advert on, until the other resigns or the node itself
    /// advertises; adverts of the other family say nothing.
    #[test]
    fn false_claims_follow_the_adverts() {
        let events = [
            claim(A),
            advert(B, false, 100),
            claim(A),
            advert(B, true, 100),
            claim(B),
            claim(A),
            advert(B, true, 0),
            claim(A),
            advert(B, true, 100),
            advert(A, true, 100),
            claim(A),
        ];
        assert_eq!(false_claims(&events, &[A]), [claim(A)]);
        assert_eq!(false_claims(&events, &[B]), []);
    }

    /// An ARP reply is a claim of its sender's address, and so is a request from it.
    #[test]
    fn arp_claims_its_sender() {
        let mut frame = [0; 42];
        frame[6..12].copy_from_slice(&A);
        frame[12..14].copy_from_slice(&[8, 6]);
        frame[20..22].copy_from_slice(&[0, 2]);
        frame[28..32].copy_from_slice(&[10, 0, 0, 9]);
        assert_eq!(read(Duration::ZERO, &frame, &[VIP]), Some(claim(A)));
        assert_eq!(read(Duration::ZERO, &frame, &[]), None);
        frame[21] = 1;
        let Some(Event::Claim { form, .. }) = read(Duration::ZERO, &frame, &[VIP]) else {
            unreachable!()
        };
        assert_eq!(form, Form::Question);
    }
}
