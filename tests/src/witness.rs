//! An eyewitness of who has an IPv4 address: a station that keeps asking by ARP and notes, with
//! the kernel's receive times, every claim to the address and every advert about it.
//!
//! What it says about owners rests on the order of frames and on the times at which they arrived,
//! not on when anybody came to look: a busy machine makes it see less, not something else.

use std::{
    io::IoSliceMut,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, send, setsockopt, sockopt},
        time::{TimeSpec, TimeVal, TimeValLike},
    },
    time::{ClockId, clock_gettime},
};

use crate::{
    process::wait_until,
    topology::Node,
    who_has::{Mac, arp_request, open},
};

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The witness asked who has the address.
    Asked,
    /// Somebody said to have it: an answer, or a gratuitous ARP.
    Claim(Mac),
    /// A VRRP advert.
    Advert {
        /// Who sent it.
        from: Mac,
        /// Its priority; 0: a resignation.
        priority: u8,
    },
}

/// Something seen, and when: time since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Time since the epoch.
    pub at: Duration,
    /// What.
    pub seen: Seen,
}

/// A running witness. Dropping it ends it.
#[derive(Debug)]
pub struct Witness {
    events: Arc<Mutex<Vec<Event>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Witness {
    /// Asks from a node every `pace`.
    pub fn start(node: &Node, vip: Ipv4Addr, pace: Duration) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (events.clone(), stop.clone());
        let question = arp_request(node.mac(), node.ipv4(), vip);
        let thread = node.namespace().spawn(move || {
            let socket = open()?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(1))?;
            let mut ask_at = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                if Instant::now() >= ask_at {
                    ask_at = Instant::now() + pace;
                    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
                    lock(&shared).push(event(now, Seen::Asked));
                    send(socket.as_raw_fd(), &question, MsgFlags::empty())?;
                }
                if let Some((at, frame)) = receive(&socket)?
                    && let Some(seen) = read(&frame, vip)
                {
                    lock(&shared).push(event(at, seen));
                }
            }
            Ok(())
        });
        Self {
            events,
            stop,
            thread: Some(thread),
        }
    }

    /// How many events there are: what [`Witness::since`] takes.
    pub fn mark(&self) -> usize {
        lock(&self.events).len()
    }

    /// The events after a mark.
    pub fn since(&self, mark: usize) -> Vec<Event> {
        lock(&self.events).get(mark..).unwrap_or_default().to_vec()
    }

    /// Waits until `owner` is the only one that claims the address, for `questions` questions that
    /// were all answered.
    pub fn wait_settled(&self, owner: Mac, questions: usize, deadline: Duration) -> Result<()> {
        let mut mark = self.mark();
        wait_until("one owner", deadline, || {
            let new = self.since(mark);
            if claims(&new).any(|(_, mac)| mac != owner) {
                mark = self.mark();
                return Ok(None);
            }
            let asked = new.iter().filter(|event| event.seen == Seen::Asked).count();
            let answered = claims(&new).count() >= questions;
            Ok((asked >= questions && answered).then_some(()))
        })
    }

    /// Ends it; everything that it saw, in the order of time.
    pub fn finish(mut self) -> Result<Vec<Event>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            ended.map_err(|_| anyhow::anyhow!("the witness panicked"))??;
        }
        let mut events = lock(&self.events).clone();
        events.sort_by_key(|event| event.at);
        Ok(events)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The claims among events.
pub fn claims(events: &[Event]) -> impl Iterator<Item = (Duration, Mac)> {
    events.iter().filter_map(|event| match event.seen {
        Seen::Claim(mac) => Some((event.at, mac)),
        _ => None,
    })
}

/// The adverts of one sender among events: when, and with which priority.
pub fn adverts(events: &[Event], sender: Mac) -> impl Iterator<Item = (Duration, u8)> {
    events.iter().filter_map(move |event| match event.seen {
        Seen::Advert { from, priority } if from == sender => Some((event.at, priority)),
        _ => None,
    })
}

fn event(at: TimeSpec, seen: Seen) -> Event {
    Event {
        at: at.into(),
        seen,
    }
}

pub(crate) fn lock<T>(events: &Mutex<T>) -> MutexGuard<'_, T> {
    match events.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

/// The next frame and when the kernel received it; `None`: none for now.
pub(crate) fn receive(socket: &OwnedFd) -> Result<Option<(TimeSpec, Vec<u8>)>> {
    let mut buffer = [0; 2048];
    let mut control = cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::empty();
    let received =
        match recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error).context("cannot receive"),
        };
    let at = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(at) => Some(at),
        _ => None,
    });
    let length = received.bytes;
    let at = at.context("a frame without its time")?;
    Ok(Some((
        at,
        buffer.get(..length).unwrap_or_default().to_vec(),
    )))
}

/// What a frame says: an ARP packet whose sender has the address, or a VRRP advert over IPv4.
fn read(frame: &[u8], vip: Ipv4Addr) -> Option<Seen> {
    let field = |at: usize, length: usize| frame.get(at..at + length);
    let from: Mac = field(6, 6)?.try_into().ok()?;
    match field(12, 2)? {
        [0x08, 0x06] if field(28, 4)? == vip.octets() => {
            Some(Seen::Claim(field(22, 6)?.try_into().ok()?))
        }
        [0x08, 0x00] if field(23, 1)? == [112] => {
            let header = usize::from(field(14, 1)?.first()? & 0x0f) * 4;
            let priority = *field(14 + header + 2, 1)?.first()?;
            Some(Seen::Advert { from, priority })
        }
        _ => None,
    }
}
