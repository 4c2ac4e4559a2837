//! Who is told of what: programs that are run, and lines for whoever reads along.
//!
//! States go by keepalived's names, which the scripts of its users know: a line, and the arguments of
//! the program `any`, are
//!
//! ```text
//! INSTANCE "control-plane" MASTER 200
//! GROUP "both" BACKUP 0
//! BACKEND "apiserver/master01" DOWN
//! ADDRESS "control-plane/10.0.2.100" DUPLICATE
//! ```

use std::{collections::VecDeque, fmt, net::IpAddr};

use lb_common::abi::BackendState;

use crate::config::model::{CommandConfig, NotifyConfig};

/// Notices of one subject that wait for the programs of those before; more are no history but an
/// avalanche.
pub const MAX_WAITING: usize = 32;

/// State of an instance or of a group, as far as others are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouterState {
    /// Active, and the owner of the addresses.
    Master,
    /// Backup.
    Backup,
    /// Something that is tracked does not let it take part.
    Fault,
    /// It has ended.
    Stop,
}

impl RouterState {
    /// keepalived's name.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Master => "MASTER",
            Self::Backup => "BACKUP",
            Self::Fault => "FAULT",
            Self::Stop => "STOP",
        }
    }

    /// The state of a group of instances: theirs if they agree, a fault if one has one. `None`:
    /// they are about to change.
    pub fn of_group(members: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        let mut all = None;
        let mut agree = true;
        for member in members {
            match member {
                Some(Self::Fault) => return Some(Self::Fault),
                None => agree = false,
                Some(state) => agree &= *all.get_or_insert(state) == state,
            }
        }
        all.filter(|_| agree)
    }
}

/// What a notice is about. The name alone tells it from others of its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A VRRP instance.
    Instance(String),
    /// A group of VRRP instances.
    Group(String),
    /// A backend, as `SERVICE/BACKEND`.
    Backend(String),
    /// An address of a VRRP instance, as `INSTANCE/ADDRESS`.
    Address(String),
}

/// A change of state that others are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whose state it is.
    pub subject: Subject,
    /// The name of the state.
    pub state: &'static str,
    /// Priority of an instance, 0 of a group.
    pub priority: Option<u8>,
    /// Programs to run, in this order.
    pub commands: Vec<CommandConfig>,
    /// Time that each of them may take.
    pub timeout: std::time::Duration,
}

impl Notice {
    /// Of an instance or a group whose state is another one, for those who are told by `notify`.
    pub fn router(
        subject: Subject,
        state: RouterState,
        priority: u8,
        notify: Option<&NotifyConfig>,
    ) -> Self {
        let mut notice = Self {
            subject,
            state: state.label(),
            priority: Some(priority),
            commands: Vec::new(),
            timeout: notify.map(|notify| notify.timeout).unwrap_or_default(),
        };
        let Some(notify) = notify else {
            return notice;
        };
        let own = match state {
            RouterState::Master => &notify.active,
            RouterState::Backup => &notify.backup,
            RouterState::Fault => &notify.fault,
            RouterState::Stop => &notify.stop,
        };
        notice.commands.extend(own.clone());
        if let Some(any) = &notify.any {
            let mut any = any.clone();
            any.arguments.extend(notice.words());
            notice.commands.push(any);
        }
        notice
    }

    /// Of a backend.
    pub fn backend(service: &str, backend: &str, state: BackendState) -> Self {
        Self {
            subject: Subject::Backend(format!("{service}/{backend}")),
            state: match state {
                BackendState::Up => "UP",
                BackendState::Draining => "DRAINING",
                BackendState::Down => "DOWN",
            },
            priority: None,
            commands: Vec::new(),
            timeout: std::time::Duration::ZERO,
        }
    }

    /// Of an address of `instance` that this node owns and another host has, too, or that no other
    /// host has any more.
    pub fn address(instance: &str, address: IpAddr, duplicate: bool) -> Self {
        Self {
            subject: Subject::Address(format!("{instance}/{address}")),
            state: if duplicate { "DUPLICATE" } else { "UNIQUE" },
            priority: None,
            commands: Vec::new(),
            timeout: std::time::Duration::ZERO,
        }
    }

    /// What stands in the line, without quotes.
    fn words(&self) -> Vec<String> {
        let mut words = vec![
            self.subject.kind().to_owned(),
            self.subject.name().to_owned(),
            self.state.to_owned(),
        ];
        words.extend(self.priority.map(|priority| priority.to_string()));
        words
    }
}

impl Subject {
    /// `INSTANCE`, `GROUP`, `BACKEND` or `ADDRESS`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Instance(_) => "INSTANCE",
            Self::Group(_) => "GROUP",
            Self::Backend(_) => "BACKEND",
            Self::Address(_) => "ADDRESS",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        let (Self::Instance(name) | Self::Group(name) | Self::Backend(name) | Self::Address(name)) =
            self;
        name
    }
}

/// The line, without its end.
impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (self.subject.kind(), self.subject.name());
        write!(f, "{kind} \"{name}\" {}", self.state)?;
        match self.priority {
            Some(priority) => write!(f, " {priority}"),
            None => Ok(()),
        }
    }
}

/// What one subject's programs have to be run for: one notice at a time, in order. A state may have
/// been left by the time that its programs run; one that releases what another has taken must run
/// all the same.
#[derive(Debug, Default)]
pub struct Lane {
    running: bool,
    waiting: VecDeque<Notice>,
}

impl Lane {
    /// `notice` is to have its turn. Beyond [`MAX_WAITING`] the oldest one that waits is given up:
    /// it is the result.
    pub fn push(&mut self, notice: Notice) -> Option<Notice> {
        self.waiting.push_back(notice);
        if self.waiting.len() > MAX_WAITING {
            self.waiting.pop_front()
        } else {
            None
        }
    }

    /// The notice whose turn it is, unless another one is running.
    pub fn begin(&mut self) -> Option<Notice> {
        if self.running {
            return None;
        }
        let next = self.waiting.pop_front();
        self.running = next.is_some();
        next
    }

    /// The one that was running has ended.
    pub fn end(&mut self) {
        self.running = false;
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        !self.running && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn command(name: &str) -> CommandConfig {
        CommandConfig {
            program: format!("/bin/{name}").into(),
            arguments: vec!["first".to_owned()],
            user: "nobody".to_owned(),
        }
    }

    fn notice(name: &str, state: RouterState) -> Notice {
        let subject = Subject::Instance(name.to_owned());
        Notice::router(subject, state, 100, None)
    }

    /// Each state has its program, with the arguments that it was given; the one for all comes after
    /// it, with the words of the line.
    #[test]
    fn states_have_their_programs() {
        let notify = NotifyConfig {
            active: Some(command("active")),
            backup: None,
            fault: Some(command("fault")),
            stop: Some(command("stop")),
            any: Some(command("any")),
            timeout: Duration::from_secs(3),
        };
        for (state, own, label) in [
            (RouterState::Master, Some("/bin/active"), "MASTER"),
            (RouterState::Backup, None, "BACKUP"),
            (RouterState::Fault, Some("/bin/fault"), "FAULT"),
            (RouterState::Stop, Some("/bin/stop"), "STOP"),
        ] {
            let subject = Subject::Group("both".to_owned());
            let notice = Notice::router(subject, state, 0, Some(&notify));
            let mut commands = notice.commands.iter();
            if let Some(own) = own {
                let first = commands.next().unwrap();
                assert_eq!(first.program, std::path::Path::new(own));
                assert_eq!(first.arguments, ["first"]);
            }
            let any = commands.next().unwrap();
            assert_eq!(any.arguments, ["first", "GROUP", "both", label, "0"]);
            assert!(commands.next().is_none());
            assert_eq!(notice.to_string(), format!("GROUP \"both\" {label} 0"));
        }
        let backend = Notice::backend("apiserver", "m1", BackendState::Draining);
        assert_eq!(backend.to_string(), "BACKEND \"apiserver/m1\" DRAINING");
        let address = IpAddr::from([10, 0, 2, 100]);
        for (duplicate, label) in [(true, "DUPLICATE"), (false, "UNIQUE")] {
            let notice = Notice::address("v4", address, duplicate);
            let line = format!("ADDRESS \"v4/10.0.2.100\" {label}");
            assert_eq!(notice.to_string(), line);
        }
    }

    /// A group has the state that its members agree on, and a fault with one of them.
    #[test]
    fn groups_have_the_state_of_all() {
        use RouterState::{Backup, Fault, Master, Stop};
        for (members, expected) in [
            (vec![Some(Master), Some(Master)], Some(Master)),
            (vec![Some(Master), Some(Backup)], None),
            (vec![Some(Backup), None], None),
            (vec![Some(Master), Some(Fault)], Some(Fault)),
            (vec![None, Some(Fault)], Some(Fault)),
            (vec![Some(Stop), Some(Stop)], Some(Stop)),
            (vec![], None),
        ] {
            assert_eq!(
                RouterState::of_group(members.clone()),
                expected,
                "{members:?}"
            );
        }
    }

    /// One at a time and in order; when too many wait, the oldest one is given up and the last one
    /// never.
    #[test]
    fn notices_wait_for_their_turn() {
        let mut lane = Lane::default();
        assert_eq!(lane.push(notice("0", RouterState::Backup)), None);
        assert_eq!(
            lane.begin().map(|n| n.subject.name().to_owned()).as_deref(),
            Some("0")
        );
        for number in 1..=MAX_WAITING {
            let pushed = lane.push(notice(&number.to_string(), RouterState::Master));
            assert_eq!(pushed, None, "{number}");
        }
        assert_eq!(lane.begin(), None, "one is running");
        let given_up = lane.push(notice("last", RouterState::Stop)).unwrap();
        assert_eq!(given_up.subject.name(), "1");
        let mut order = Vec::new();
        loop {
            lane.end();
            let Some(next) = lane.begin() else { break };
            order.push(next.subject.name().to_owned());
        }
        assert_eq!(order.first().map(String::as_str), Some("2"));
        assert_eq!(order.last().map(String::as_str), Some("last"));
        assert_eq!(order.len(), MAX_WAITING);
        assert!(lane.is_idle());
    }
}
