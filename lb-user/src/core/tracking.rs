//! Tracking: what makes a node more or less fit to own addresses.
//!
//! A [`Condition`] is what was found out about one thing; a [`TrackWeight`] says what an instance makes
//! of it; all of its effects together give its [`Fitness`]. Weights mean what they mean in
//! keepalived, whose users know them:
//!
//! | weight     | met              | failed            | a number                                  |
//! |------------|------------------|-------------------|-------------------------------------------|
//! | 0          | nothing          | fault             | fault unless it is 0                      |
//! | positive   | adds the weight  | nothing           | adds weight x number; fault below -253    |
//! | negative   | nothing          | adds the weight   | adds weight x number; fault below -253    |
//!
//! `reverse` is the other way round: what would be added is taken away, and with weight 0 it is the
//! met condition (the number 0) that is a fault. What is not known yet has no effect.
//!
//! A [`Monitor`] decides when something is looked at that does not tell by itself, and how many
//! answers in a row count.

use std::{fmt, num::NonZeroU8};

use crate::{
    config::model::{MAX_TRACK_WEIGHT, TrackConfig, Tracked},
    core::time::Timestamp,
};

/// What tracking makes of a priority stays within these: 0 is who resigns, 255 who owns the addresses
/// by itself (RFC 9568 section 5.2.4).
const PRIORITIES: (i32, i32) = (1, 254);
/// Of the addresses' own router, which no weight changes.
const OWNER: u8 = 255;

/// What is known of something that is tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing yet.
    #[default]
    Unknown,
    /// As it should be.
    Met,
    /// Not as it should be.
    Failed,
    /// The number that a file holds, -254..=254.
    Number(i16),
}

/// What an instance makes of a condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackWeight {
    /// -253..=253 (for numbers 254 as well); 0: a fault.
    pub weight: i16,
    /// The other way round.
    pub reverse: bool,
}

impl From<&Tracked> for TrackWeight {
    fn from(tracked: &Tracked) -> Self {
        Self {
            weight: tracked.weight,
            reverse: tracked.reverse,
        }
    }
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The priority changes by this much.
    Adds(i16),
    /// The instance must not be Active.
    Fault,
}

impl Effect {
    /// No effect.
    pub const NONE: Self = Self::Adds(0);
}

/// For operators: `-20`, `+5`, `fault`.
impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adds(number) => write!(f, "{number:+}"),
            Self::Fault => f.write_str("fault"),
        }
    }
}

impl TrackWeight {
    /// What `condition` comes to; the table is in the module's documentation.
    pub fn of(self, condition: Condition) -> Effect {
        let signed = if self.reverse {
            -self.weight
        } else {
            self.weight
        };
        match condition {
            Condition::Met | Condition::Failed if self.weight == 0 => {
                Self::fault_if((condition == Condition::Met) == self.reverse)
            }
            Condition::Met if self.weight > 0 => Effect::Adds(signed),
            Condition::Failed if self.weight < 0 => Effect::Adds(signed),
            Condition::Unknown | Condition::Met | Condition::Failed => Effect::NONE,
            Condition::Number(number) if self.weight == 0 => {
                Self::fault_if((number == 0) == self.reverse)
            }
            Condition::Number(number) => {
                let product = i32::from(signed) * i32::from(number);
                let most = MAX_TRACK_WEIGHT.into();
                match i16::try_from(product.min(most)) {
                    Ok(adds) if adds >= -MAX_TRACK_WEIGHT => Effect::Adds(adds),
                    _ => Effect::Fault,
                }
            }
        }
    }

    const fn fault_if(fault: bool) -> Effect {
        if fault { Effect::Fault } else { Effect::NONE }
    }
}

/// How fit this node is to own an instance's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitness {
    /// The priority that it takes part with.
    pub priority: u8,
    /// It must not take part.
    pub fault: bool,
}

impl Fitness {
    /// What `effects` make of the configured priority. That of the addresses' own router stays.
    pub fn new(configured: NonZeroU8, effects: impl IntoIterator<Item = Effect>) -> Self {
        let mut priority = i32::from(configured.get());
        let mut fault = false;
        for effect in effects {
            match effect {
                Effect::Adds(number) => priority += i32::from(number),
                Effect::Fault => fault = true,
            }
        }
        let (lowest, highest) = PRIORITIES;
        let priority = match configured.get() {
            OWNER => OWNER,
            _ => u8::try_from(priority.clamp(lowest, highest)).unwrap_or(OWNER - 1),
        };
        Self { priority, fault }
    }
}

/// One look at something that is tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What it says.
    pub condition: Condition,
    /// What was seen, in words.
    pub seen: String,
}

/// Something that has to be looked at again and again: a file, a process, a command.
#[derive(Clone, Debug)]
pub struct Monitor {
    config: TrackConfig,
    condition: Condition,
    seen: String,
    /// Observations in a row that contradict `condition`.
    against: u32,
    next_at: Timestamp,
    /// Serial of the look under way: there is never more than one.
    looking: Option<u64>,
    serial: u64,
}

impl Monitor {
    /// A monitor that looks at once. Serial numbers begin above `serial`.
    pub fn new(config: TrackConfig, now: Timestamp, serial: u64) -> Self {
        Self {
            config,
            condition: Condition::Unknown,
            seen: "not looked at yet".to_owned(),
            against: 0,
            next_at: now,
            looking: None,
            serial,
        }
    }

    /// The same thing under another configuration: what is known stays, a look under way does not
    /// count. Serial numbers begin above `serial`.
    #[must_use]
    pub fn succeeded(&self, now: Timestamp, serial: u64) -> Self {
        Self {
            next_at: now,
            looking: None,
            serial,
            ..self.clone()
        }
    }

    /// What it watches.
    pub fn config(&self) -> &TrackConfig {
        &self.config
    }

    /// What is known.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// What was seen last, in words.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// When [`Monitor::look`] has something to do.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.looking.is_none().then_some(self.next_at)
    }

    /// The serial number of a look that is to begin `now`.
    pub fn look(&mut self, now: Timestamp) -> Option<u64> {
        if self.looking.is_some() || now < self.next_at {
            return None;
        }
        self.serial += 1;
        self.next_at = now + self.config.interval;
        self.looking = Some(self.serial);
        self.looking
    }

    /// The look with this serial number has ended. Returns whether the condition changed.
    pub fn handle(&mut self, now: Timestamp, serial: u64, observation: Observation) -> bool {
        if self.looking != Some(serial) {
            return false;
        }
        self.looking = None;
        // Late looks are not made up for.
        self.next_at = self.next_at.max(now);
        self.seen = observation.seen;
        let found = observation.condition;
        if found == self.condition {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = match found {
            // The first answer decides.
            _ if self.condition == Condition::Unknown => 1,
            Condition::Met => self.config.rise.get(),
            Condition::Failed => self.config.fall.get(),
            Condition::Number(_) | Condition::Unknown => 1,
        };
        if self.against < needed {
            return false;
        }
        self.against = 0;
        self.condition = found;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use super::*;
    use crate::config::model::TrackSubject;

    fn of(weight: i16, reverse: bool, condition: Condition) -> Effect {
        TrackWeight { weight, reverse }.of(condition)
    }

    /// Every cell of the table, and its reverse.
    #[test]
    fn weights_mean_what_they_mean_in_keepalived() {
        use Condition::{Failed, Met, Number, Unknown};
        use Effect::{Adds, Fault};
        for (weight, condition, forward, reversed) in [
            (0, Met, Adds(0), Fault),
            (0, Failed, Fault, Adds(0)),
            (0, Number(0), Adds(0), Fault),
            (0, Number(3), Fault, Adds(0)),
            (20, Met, Adds(20), Adds(-20)),
            (20, Failed, Adds(0), Adds(0)),
            (-20, Met, Adds(0), Adds(0)),
            (-20, Failed, Adds(-20), Adds(20)),
            (2, Number(30), Adds(60), Adds(-60)),
            (-2, Number(30), Adds(-60), Adds(60)),
            (1, Number(-254), Fault, Adds(253)),
            (1, Number(-253), Adds(-253), Adds(253)),
            (254, Number(-1), Fault, Adds(253)),
            (0, Unknown, Adds(0), Adds(0)),
            (-20, Unknown, Adds(0), Adds(0)),
        ] {
            assert_eq!(
                of(weight, false, condition),
                forward,
                "{weight} {condition:?}"
            );
            assert_eq!(
                of(weight, true, condition),
                reversed,
                "{weight} {condition:?}"
            );
        }
    }

    /// Priorities stay between those that mean something else, and faults win.
    #[test]
    fn effects_add_up_within_bounds() {
        let fitness = |configured, effects: &[Effect]| {
            Fitness::new(NonZeroU8::new(configured).unwrap(), effects.iter().copied())
        };
        let fit = |priority| Fitness {
            priority,
            fault: false,
        };
        assert_eq!(fitness(100, &[]), fit(100));
        assert_eq!(fitness(100, &[Effect::Adds(-20), Effect::Adds(5)]), fit(85));
        assert_eq!(fitness(100, &[Effect::Adds(-253)]), fit(1));
        assert_eq!(
            fitness(200, &[Effect::Adds(253), Effect::Adds(253)]),
            fit(254)
        );
        assert_eq!(fitness(255, &[Effect::Adds(-253)]), fit(255));
        let faulty = Fitness {
            priority: 255,
            fault: true,
        };
        assert_eq!(fitness(255, &[Effect::Fault]), faulty);
    }

    fn monitor(rise: u32, fall: u32) -> Monitor {
        let config = TrackConfig {
            name: "disk".to_owned(),
            subject: TrackSubject::File("/run/disk".into()),
            interval: Duration::from_secs(2),
            rise: NonZeroU32::new(rise).unwrap(),
            fall: NonZeroU32::new(fall).unwrap(),
        };
        Monitor::new(config, Timestamp::from_nanos(0), 0)
    }

    /// Looks begin one interval apart, never two at once, and an answer to an old one is none.
    #[test]
    fn one_look_at_a_time() {
        let at = |seconds: u64| Timestamp::from_nanos(seconds * 1_000_000_000);
        let met = || Observation {
            condition: Condition::Met,
            seen: "there".to_owned(),
        };
        let mut monitor = monitor(1, 1);
        let first = monitor.look(at(0)).unwrap();
        assert_eq!((monitor.look(at(9)), monitor.poll_timeout()), (None, None));
        assert!(!monitor.handle(at(9), first + 1, met()));
        assert!(monitor.handle(at(9), first, met()));
        assert_eq!(monitor.poll_timeout(), Some(at(9)));
        let second = monitor.look(at(9)).unwrap();
        assert!(!monitor.handle(at(9), first, met()) && second != first);
        assert!(!monitor.handle(at(9), second, met()));
        assert_eq!(monitor.look(at(10)), None);
        assert_eq!(monitor.poll_timeout(), Some(at(11)));
    }

    /// The first answer decides; then as many in a row as configured.
    #[test]
    fn answers_in_a_row_decide() {
        use Condition::{Failed, Met};
        let mut monitor = monitor(2, 3);
        let mut now = Timestamp::from_nanos(0);
        for (condition, expected) in [
            (Failed, Failed),
            (Met, Failed),
            (Failed, Failed),
            (Met, Failed),
            (Met, Met),
            (Failed, Met),
            (Failed, Met),
            (Failed, Failed),
        ] {
            let serial = monitor.look(now).unwrap();
            let seen = String::new();
            let before = monitor.condition();
            let changed = monitor.handle(now, serial, Observation { condition, seen });
            assert_eq!(monitor.condition(), expected);
            assert_eq!(changed, before != expected);
            now += Duration::from_secs(2);
        }
    }
}
