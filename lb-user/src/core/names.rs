//! Host names of backends: when they are looked up, and which of the addresses that come back is the
//! backend's.
//!
//! A name is looked up at once, then again and again; a lookup begins only when the one before has ended. An
//! answer that has the address in force changes nothing; else the lowest address of the VIP's family is the
//! new one. Where the lookup fails, or no address can be a backend's, the last good one stays: a name server
//! that is away is no reason to move anything, least of all one that is reached by way of the VIP.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::time::Timestamp;

/// Pause after a lookup that found nothing, for a name without an address.
const RETRY: Duration = Duration::from_secs(2);

/// A name, and whether an IPv6 address of it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostKey {
    /// The name.
    pub host: String,
    /// The family.
    pub ipv6: bool,
}

/// What came of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has ended: these are the addresses, of both families.
    Found(Vec<IpAddr>),
    /// It has ended: there are none, and why.
    Failed(String),
    /// It goes on, for so long by now.
    Late(Duration),
}

/// What an answer has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The address in force until now.
    pub before: Option<IpAddr>,
    /// The address in force.
    pub address: Option<IpAddr>,
    /// What is wrong with the last lookup.
    pub failure: Option<String>,
}

impl Change {
    /// Whether another address is in force.
    pub fn is_move(&self) -> bool {
        self.before != self.address
    }
}

/// What is known of a name, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostView<'a> {
    /// The name.
    pub host: &'a str,
    /// When a lookup has said last what it stands for; `None`: not since the start.
    pub resolved: Option<Timestamp>,
    /// What is wrong with the last lookup.
    pub failure: Option<&'a str>,
}

/// What the names of the backends stand for.
#[derive(Clone, Debug, Default)]
pub struct Names {
    interval: Duration,
    vips: BTreeSet<IpAddr>,
    known: BTreeMap<HostKey, Known>,
}

/// What is known of one name.
#[derive(Clone, Debug)]
struct Known {
    /// Not so: it is forgotten when the lookup under way has ended.
    is_wanted: bool,
    /// The last good one.
    address: Option<IpAddr>,
    /// When a lookup has said so last; `None`: an earlier controller has found it.
    resolved: Option<Timestamp>,
    /// What is wrong with the last lookup.
    failure: Option<String>,
    /// When the next lookup is due; `None`: one is under way.
    due: Option<Timestamp>,
}

impl Names {
    /// Goes on with the names that are `wanted`: new ones are due, the others are forgotten. No name may
    /// stand for one of the `vips`.
    pub fn follow(
        &mut self,
        wanted: &BTreeSet<HostKey>,
        vips: BTreeSet<IpAddr>,
        interval: Duration,
        now: Timestamp,
    ) {
        self.vips = vips;
        if self.interval != interval {
            self.interval = interval;
            let latest = now + interval;
            for due in self.known.values_mut().filter_map(|own| own.due.as_mut()) {
                *due = latest.min(*due);
            }
        }
        for (key, known) in &mut self.known {
            known.is_wanted = wanted.contains(key);
            known.address = known.address.filter(|own| !self.vips.contains(own));
        }
        self.known
            .retain(|_, known| known.is_wanted || known.due.is_none());
        for key in wanted {
            self.known.entry(key.clone()).or_insert(Known {
                is_wanted: true,
                address: None,
                resolved: None,
                failure: None,
                due: Some(now),
            });
        }
    }

    /// Takes addresses over that were known otherwise, for names that have none; they are looked up
    /// all the same. Whether any of them was taken.
    pub fn restore(&mut self, addresses: impl IntoIterator<Item = (HostKey, IpAddr)>) -> bool {
        let mut any = false;
        for (key, address) in addresses {
            let Ok(address) = choose(None, vec![address], key.ipv6, &self.vips) else {
                continue;
            };
            let known = self.known.get_mut(&key);
            if let Some(known) = known.filter(|known| known.address.is_none()) {
                known.address = Some(address);
                any = true;
            }
        }
        any
    }

    /// The addresses in force.
    pub fn addresses(&self) -> impl Iterator<Item = (&HostKey, IpAddr)> {
        let known = self.known.iter().filter(|(_, own)| own.is_wanted);
        known.filter_map(|(key, own)| Some((key, own.address?)))
    }

    /// The address in force of one name; else what is in the way of one.
    pub fn address(&self, key: &HostKey) -> Result<IpAddr, String> {
        let known = self.known.get(key);
        let address = known.and_then(|known| known.address);
        address.ok_or_else(|| match known.and_then(|known| known.failure.as_ref()) {
            Some(failure) => format!("{} {failure}", key.host),
            None => format!("{} is being looked up", key.host),
        })
    }

    /// What is known of a name.
    pub fn view(&self, key: &HostKey) -> Option<HostView<'_>> {
        let (key, known) = self.known.get_key_value(key)?;
        Some(HostView {
            host: &key.host,
            resolved: known.resolved,
            failure: known.failure.as_deref(),
        })
    }

    /// When [`Names::take_due`] has something.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.known.values().filter_map(|own| own.due).min()
    }

    /// The names that are to be looked up now.
    pub fn take_due(&mut self, now: Timestamp) -> Vec<HostKey> {
        let mut due = Vec::new();
        for (key, known) in &mut self.known {
            if known.due.is_some_and(|at| at <= now) {
                known.due = None;
                due.push(key.clone());
            }
        }
        due
    }

    /// Takes an answer to a lookup. `None`: nothing has changed, but when the next one is due.
    pub fn answer(&mut self, key: &HostKey, answer: Answer, now: Timestamp) -> Option<Change> {
        let known = self.known.get_mut(key)?;
        let (before, failed) = (known.address, known.failure.clone());
        let found = match answer {
            Answer::Late(time) => {
                // What the lookup before has said tells more.
                let late = || format!("is not answered after {} s", time.as_secs());
                known.failure.get_or_insert_with(late);
                return change(known, before, failed.as_ref());
            }
            Answer::Failed(why) => Err(format!("cannot be looked up: {why}")),
            Answer::Found(addresses) => choose(before, addresses, key.ipv6, &self.vips),
        };
        if !known.is_wanted {
            self.known.remove(key);
            return None;
        }
        match found {
            Ok(address) => {
                known.address = Some(address);
                known.resolved = Some(now);
                known.failure = None;
            }
            Err(failure) => known.failure = Some(failure),
        }
        let pause = match known.address {
            Some(_) => self.interval,
            None => self.interval.min(RETRY),
        };
        known.due = Some(now + pause);
        change(known, before, failed.as_ref())
    }
}

/// What is different from `before` and from the failure until now.
fn change(known: &Known, before: Option<IpAddr>, failed: Option<&String>) -> Option<Change> {
    let is_same = known.address == before && known.failure.as_ref() == failed;
    (!is_same).then(|| Change {
        before,
        address: known.address,
        failure: known.failure.clone(),
    })
}

/// Which of the addresses of a name is the backend's, or why none can be.
fn choose(
    current: Option<IpAddr>,
    mut addresses: Vec<IpAddr>,
    ipv6: bool,
    vips: &BTreeSet<IpAddr>,
) -> Result<IpAddr, String> {
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    addresses.retain(|address| address.is_ipv6() == ipv6);
    if addresses.is_empty() {
        return Err(format!("has no {family} address"));
    }
    let can_be = |address: &IpAddr| is_host(address) && !vips.contains(address);
    let usable: BTreeSet<_> = addresses.iter().copied().filter(can_be).collect();
    if let Some(current) = current.filter(|current| usable.contains(current)) {
        return Ok(current);
    }
    usable.first().copied().ok_or_else(|| {
        let shown: BTreeSet<_> = addresses.iter().map(ToString::to_string).collect();
        let shown: Vec<_> = shown.into_iter().collect();
        let shown = shown.join(", ");
        if addresses.iter().any(|address| vips.contains(address)) {
            return format!("stands for {shown}: a VIP as backend is a loop");
        }
        format!("stands for {shown}, where no other node finds it (often a line of /etc/hosts)")
    })
}

/// Whether other nodes can reach a host at an address.
fn is_host(address: &IpAddr) -> bool {
    let is_special = match address {
        IpAddr::V4(own) => own.is_broadcast() || own.is_link_local(),
        IpAddr::V6(own) => own.is_unicast_link_local() || own.to_ipv4_mapped().is_some(),
    };
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast() && !is_special
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn key(host: &str) -> HostKey {
        HostKey {
            host: host.to_owned(),
            ipv6: false,
        }
    }

    fn ips(addresses: &[&str]) -> Vec<IpAddr> {
        let parsed = addresses.iter().map(|text| text.parse().unwrap());
        parsed.collect()
    }

    fn found(addresses: &[&str]) -> Answer {
        Answer::Found(ips(addresses))
    }

    fn failed() -> Answer {
        Answer::Failed("no such host".to_owned())
    }

    fn vips() -> BTreeSet<IpAddr> {
        ips(&["10.0.2.100", "fd00::100"]).into_iter().collect()
    }

    fn follow(names: &mut Names, wanted: &[&str], interval: Duration, now: Timestamp) {
        let wanted = wanted.iter().map(|host| key(host)).collect();
        names.follow(&wanted, vips(), interval, now);
    }

    fn names() -> Names {
        let mut names = Names::default();
        follow(&mut names, &["cp1"], INTERVAL, at(0));
        names
    }

    fn address(names: &Names) -> String {
        match names.address(&key("cp1")) {
            Ok(address) => address.to_string(),
            Err(why) => why,
        }
    }

    /// A name is looked up at once, at the interval with an address and sooner without; never twice
    /// at a time.
    #[test]
    fn lookups_follow_each_other() {
        let mut names = names();
        assert_eq!(names.take_due(at(0)), [key("cp1")]);
        assert_eq!(
            (names.take_due(at(99)), names.poll_timeout()),
            (vec![], None)
        );
        assert_eq!(address(&names), "cp1 is being looked up");
        assert!(names.answer(&key("cp1"), failed(), at(100)).is_some());
        assert_eq!(address(&names), "cp1 cannot be looked up: no such host");
        assert_eq!(names.poll_timeout(), Some(at(102)));
        assert_eq!(names.take_due(at(101)), []);
        assert_eq!(names.take_due(at(102)), [key("cp1")]);
        let change = names.answer(&key("cp1"), found(&["10.0.2.1"]), at(103));
        assert!(change.unwrap().is_move());
        assert_eq!(names.poll_timeout(), Some(at(133)));
        // A shorter interval holds at once; who is not wanted any more is forgotten.
        follow(&mut names, &["cp1"], Duration::from_secs(5), at(110));
        assert_eq!(names.poll_timeout(), Some(at(115)));
        follow(&mut names, &[], INTERVAL, at(111));
        assert_eq!((names.poll_timeout(), names.addresses().count()), (None, 0));
        assert_eq!(names.answer(&key("cp1"), failed(), at(112)), None);
    }

    /// A lookup that is under way when its name is not wanted any more, and then is again, is waited
    /// for: no second one begins.
    #[test]
    fn a_lookup_outlives_its_name() {
        let mut names = names();
        names.take_due(at(0));
        follow(&mut names, &[], INTERVAL, at(1));
        follow(&mut names, &["cp1"], INTERVAL, at(2));
        assert_eq!(
            (names.take_due(at(3)), names.poll_timeout()),
            (vec![], None)
        );
        names.answer(&key("cp1"), found(&["10.0.2.1"]), at(4));
        assert_eq!(address(&names), "10.0.2.1");
        names.take_due(at(34));
        follow(&mut names, &[], INTERVAL, at(35));
        assert_eq!(names.addresses().count(), 0);
        assert_eq!(
            names.answer(&key("cp1"), found(&["10.0.2.2"]), at(36)),
            None
        );
        assert_eq!(names.known.len(), 0);
    }

    /// The last good address stays when a lookup fails. That is told once, and once that it is over;
    /// how late a lookup is does not hide why the one before has failed.
    #[test]
    fn the_last_good_address_stays() {
        let mut names = names();
        let mut told = Vec::new();
        for (second, answer) in [
            (0, found(&["10.0.2.1"])),
            (30, found(&["10.0.2.1"])),
            (60, Answer::Late(Duration::from_secs(5))),
            (65, failed()),
            (90, Answer::Late(Duration::from_secs(5))),
            (95, failed()),
            (120, found(&["10.0.2.1"])),
            (150, found(&["10.0.2.2"])),
        ] {
            names.take_due(at(second));
            let change = names.answer(&key("cp1"), answer, at(second));
            told.extend(change.map(|change| (second, change.is_move(), change.failure)));
        }
        let failed = |text: &str| Some(text.to_owned());
        assert_eq!(
            told,
            [
                (0, true, None),
                (60, false, failed("is not answered after 5 s")),
                (65, false, failed("cannot be looked up: no such host")),
                (120, false, None),
                (150, true, None),
            ]
        );
        assert_eq!(names.view(&key("cp1")).unwrap().resolved, Some(at(150)));
    }

    /// The address in force stays while it is among the answers; else the lowest one that another node
    /// can reach, and that is no VIP.
    #[test]
    fn the_choice_is_stable() {
        let mut names = names();
        for (answer, expected) in [
            (&["10.0.2.9", "fd00::1", "10.0.2.10"][..], "10.0.2.9"),
            (&["10.0.2.1", "10.0.2.9"], "10.0.2.9"),
            (&["10.0.2.20", "10.0.2.3"], "10.0.2.3"),
            (&["127.0.1.1"], "10.0.2.3"),
            (&["fd00::1"], "10.0.2.3"),
            (&["10.0.2.100"], "10.0.2.3"),
            (&["127.0.1.1", "10.0.2.100", "10.0.2.4"], "10.0.2.4"),
        ] {
            names.answer(&key("cp1"), found(answer), at(1));
            assert_eq!(address(&names), expected, "{answer:?}");
        }
        for (answer, ipv6, expected) in [
            (
                &["127.0.1.1"][..],
                false,
                "stands for 127.0.1.1, where no other node finds it",
            ),
            (&["10.0.2.1"], true, "has no IPv6 address"),
            (&["fe80::1"], true, "stands for fe80::1, where no other"),
            (&[], false, "has no IPv4 address"),
            (
                &["fd00::100"],
                true,
                "stands for fd00::100: a VIP as backend is a loop",
            ),
        ] {
            let why = choose(None, ips(answer), ipv6, &vips()).unwrap_err();
            assert!(why.starts_with(expected), "{why}");
        }
    }

    /// What an earlier controller has found is in force until the first answer, unless it is a VIP by
    /// now.
    #[test]
    fn the_last_good_address_outlives_the_controller() {
        let mut before = names();
        before.answer(&key("cp1"), found(&["10.0.2.1"]), at(1));
        let saved: Vec<_> = before
            .addresses()
            .map(|(key, own)| (key.clone(), own))
            .collect();
        let mut after = names();
        after.restore(saved);
        assert_eq!(after.take_due(at(0)), [key("cp1")]);
        after.answer(&key("cp1"), failed(), at(1));
        assert_eq!(address(&after), "10.0.2.1");
        assert_eq!(after.view(&key("cp1")).unwrap().resolved, None);
        let mut after = names();
        after.restore([
            (key("cp1"), ips(&["10.0.2.100"])[0]),
            (key("cp2"), ips(&["10.0.2.1"])[0]),
        ]);
        assert_eq!(after.addresses().count(), 0);
    }

    /// Answers in any order, at any time.
    fn events() -> impl Strategy<Value = Vec<(u64, u8)>> {
        prop::collection::vec((0_u64..50, 0_u8..6), 1..60)
    }

    proptest! {
        /// At most one lookup is under way, the next one is due within the interval after the end of
        /// one, what is taken early is nothing, and a name that had an address keeps one.
        #[test]
        fn any_history_keeps_an_address(events in events()) {
            let mut names = names();
            let (mut now, mut under_way, mut had) = (at(0), false, false);
            for (wait, event) in events {
                now += Duration::from_secs(wait);
                if let Some(due) = names.poll_timeout() {
                    prop_assert!(!under_way);
                    prop_assert!(due <= now + INTERVAL);
                    if due > now {
                        prop_assert_eq!(names.take_due(now), []);
                    }
                }
                let due = names.take_due(now);
                prop_assert!(due.is_empty() || !under_way);
                under_way |= !due.is_empty();
                if !under_way {
                    continue;
                }
                let answer = match event {
                    0 => failed(),
                    1 => found(&["10.0.2.1"]),
                    2 => found(&["10.0.2.2", "10.0.2.1"]),
                    3 => found(&["10.0.2.100", "127.0.0.1"]),
                    4 => Answer::Late(Duration::from_secs(5)),
                    _ => found(&[]),
                };
                under_way = matches!(answer, Answer::Late(_));
                names.answer(&key("cp1"), answer, now);
                prop_assert_eq!(names.poll_timeout().is_none(), under_way);
                had |= matches!(event, 1 | 2);
                prop_assert_eq!(names.address(&key("cp1")).is_ok(), had);
            }
        }
    }
}
