//! What is wrong among the routers of a link, as received adverts show it: for status, and for the
//! log no more often than anybody wants to read it.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use crate::core::time::Timestamp;

/// How long an alarm is shown after it was last seen.
pub const SHOWN: Duration = Duration::from_mins(1);
/// Between two lines of the log about the same thing and the same sender.
const LOG_GAP: Duration = Duration::from_mins(1);
/// Things and senders that are told apart; what is beyond is not logged, only counted.
const MAX_SUBJECTS: usize = 64;

/// Something that an operator has to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Another node is Active as well, although it should hear this one.
    Rival {
        /// Where its adverts come from.
        from: IpAddr,
        /// Its priority.
        priority: u8,
        /// When it was heard last.
        heard: Timestamp,
    },
    /// Another group of routers uses the same VRID: it has none of this group's addresses.
    Collision {
        /// Where its adverts come from.
        from: IpAddr,
        /// Its virtual addresses.
        addresses: Vec<IpAddr>,
        /// When it was heard last.
        heard: Timestamp,
    },
}

impl Alarm {
    /// Where it comes from.
    pub const fn from(&self) -> IpAddr {
        match self {
            Self::Rival { from, .. } | Self::Collision { from, .. } => *from,
        }
    }

    /// When it was seen last.
    pub const fn heard(&self) -> Timestamp {
        match self {
            Self::Rival { heard, .. } | Self::Collision { heard, .. } => *heard,
        }
    }

    /// Stable name for status and metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Rival { .. } => "rival",
            Self::Collision { .. } => "vrid_collision",
        }
    }

    /// What it is and what to do, for an instance with this VRID on this interface.
    pub fn describe(&self, vrid: u8, interface: &str) -> String {
        match self {
            Self::Rival { from, priority, .. } => format!(
                "{from} is Active as well, with priority {priority}: see whether it hears this node's adverts"
            ),
            Self::Collision {
                from, addresses, ..
            } => {
                let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
                format!(
                    "another group uses VRID {vrid} on {interface}: {} from {from}; choose another vrid",
                    addresses.join(", ")
                )
            }
        }
    }
}

/// Says what may be logged: the first of each kind and sender, then one per minute with the number
/// of those in between.
#[derive(Debug, Default)]
pub struct Complaints {
    subjects: BTreeMap<(&'static str, IpAddr), Subject>,
}

#[derive(Debug)]
struct Subject {
    logged: Timestamp,
    suppressed: u64,
}

impl Complaints {
    /// There is something to say of a sender: whether to log it now, and how many like it were not
    /// logged since the last time.
    pub fn admit(&mut self, now: Timestamp, kind: &'static str, from: IpAddr) -> Option<u64> {
        if let Some(subject) = self.subjects.get_mut(&(kind, from)) {
            if now < subject.logged + LOG_GAP {
                subject.suppressed += 1;
                return None;
            }
            subject.logged = now;
            return Some(std::mem::take(&mut subject.suppressed));
        }
        if self.subjects.len() >= MAX_SUBJECTS {
            // Who has been silent for long begins anew.
            self.subjects
                .retain(|_, subject| now < subject.logged + LOG_GAP);
        }
        if self.subjects.len() >= MAX_SUBJECTS {
            return None;
        }
        let subject = Subject {
            logged: now,
            suppressed: 0,
        };
        self.subjects.insert((kind, from), subject);
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 11));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 12));

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    /// Each kind and sender is logged at once, then once a minute with what came between.
    #[test]
    fn a_minute_has_one_line_per_kind_and_sender() {
        let mut complaints = Complaints::default();
        assert_eq!(complaints.admit(at(0), "ttl", A), Some(0));
        for second in 1..60 {
            assert_eq!(complaints.admit(at(second), "ttl", A), None);
        }
        assert_eq!(complaints.admit(at(30), "ttl", B), Some(0));
        assert_eq!(complaints.admit(at(30), "checksum", A), Some(0));
        assert_eq!(complaints.admit(at(60), "ttl", A), Some(59));
        assert_eq!(complaints.admit(at(120), "ttl", A), Some(0));
    }

    /// Forged senders fill neither the memory nor the log, and are forgotten.
    #[test]
    fn many_senders_are_not_all_logged() {
        let mut complaints = Complaints::default();
        let sender = |number: u32| IpAddr::from(number.to_be_bytes());
        let admitted = |complaints: &mut Complaints, now| {
            let all = 0..1000;
            all.filter(|&n| complaints.admit(now, "ttl", sender(n)).is_some())
                .count()
        };
        assert_eq!(admitted(&mut complaints, at(0)), MAX_SUBJECTS);
        assert_eq!(admitted(&mut complaints, at(1)), 0);
        assert_eq!(complaints.subjects.len(), MAX_SUBJECTS);
        assert_eq!(complaints.admit(at(61), "ttl", sender(5000)), Some(0));
    }
}
