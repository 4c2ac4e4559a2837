//! Which backends of a service take new flows, and in what shares: what follows from the checks'
//! word (healthy), the operator's (enabled), the agent's (its weight) and the configuration's
//! (backup, quorum).
//!
//! | pool                                        | when                                                |
//! |---------------------------------------------|-----------------------------------------------------|
//! | backends that are UP and no backup          | there are `min_healthy` of them (1 by default)      |
//! | these, and the backups that are UP          | else; only the first backup without `use_all_backups` |
//! | these, and everybody who is DRAINING        | else, with `on_quorum_loss = "use_all"`             |
//! | nobody                                      | else                                                |
//!
//! Only backends that the operator has left enabled, with a weight above 0, are counted. Whoever is
//! not in the pool and not DOWN is DRAINING in the data plane: its flows go on.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::abi::BackendState;

use super::desired::{ServiceIdentity, identity};
use crate::config::model::{BackendConfig, OnQuorumLoss, ServiceConfig};

/// What makes a backend the same one as before: its service and its address.
pub type BackendIdentity = (ServiceIdentity, SocketAddr);

/// A weight of 1 in the unit of [`Standing::weight`].
pub const WEIGHT_UNIT: u32 = 1_000_000;

/// The largest weight of a backend, by configuration or at run time.
pub const MAX_WEIGHT: u16 = 1_000;

/// What the operator has made of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The checks decide.
    #[default]
    Enabled,
    /// No new flows; those that it has go on.
    Draining,
    /// DOWN, whatever the checks say.
    Maintenance,
}

/// A weight in place of the configured one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weight {
    /// The configured one.
    #[default]
    Configured,
    /// This one, up to [`MAX_WEIGHT`].
    Absolute(u16),
    /// So many percent of the configured one, at most [`MAX_WEIGHT`] in the end.
    Percent(u16),
}

/// What beside configuration and checks has a say about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Influence {
    /// The operator's word.
    pub mode: Mode,
    /// The operator's weight.
    pub weight: Weight,
    /// Percent of it that its agent wants. 0 is a state (DRAINING) and no weight: it counts as 100.
    pub agent: u16,
    /// Percent of that which a slow start has reached.
    pub ramp: u8,
}

impl Influence {
    /// No say.
    pub const NONE: Self = Self {
        mode: Mode::Enabled,
        weight: Weight::Configured,
        agent: 100,
        ramp: 100,
    };

    /// The weight in force in units of [`WEIGHT_UNIT`], which is the product of three hundreds: no
    /// percentage is rounded, and 1 % of 1 % of 1 % of the smallest weight is not 0.
    fn weight(self, backend: &BackendConfig) -> u32 {
        let configured = u64::from(backend.weight.get());
        let hundredths = match self.weight {
            Weight::Configured => configured * 100,
            Weight::Absolute(weight) => u64::from(weight) * 100,
            Weight::Percent(percent) => configured * u64::from(percent),
        };
        let most = u64::from(MAX_WEIGHT) * 100;
        let agent = if self.agent == 0 { 100 } else { self.agent };
        let parts = (hundredths.min(most) * u64::from(agent)).min(most * 100);
        // Up to 1,000 x 100 x 100 x 100, which fits.
        u32::try_from(parts * u64::from(self.ramp)).unwrap_or(u32::MAX)
    }
}

/// Those that have a say, by backend; who is missing has none.
pub type Influences = BTreeMap<BackendIdentity, Influence>;

/// What a backend is in the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its state there.
    pub state: BackendState,
    /// Its weight among those that take new flows, in units of [`WEIGHT_UNIT`]; 0: it takes none.
    pub weight: u32,
    /// The weight that it has as soon as it takes new flows.
    pub own_weight: u32,
}

/// What the backends of a service are in the data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceStanding {
    /// In configuration order.
    pub backends: Vec<Standing>,
    /// How many are UP, enabled, with a weight, and meant for now: backups only as far as they
    /// have joined.
    pub healthy: u32,
    /// Whether these are fewer than `min_healthy`.
    pub is_quorum_lost: bool,
}

impl ServiceStanding {
    /// Whether anybody takes new flows.
    pub fn takes_new(&self) -> bool {
        self.backends.iter().any(|backend| backend.weight > 0)
    }
}

/// The backends of `service`, whose checks say `states`.
pub fn of_service(
    service: &ServiceConfig,
    states: &[BackendState],
    influences: &Influences,
) -> ServiceStanding {
    let own = identity(service);
    let known: Vec<Known> = service
        .backends
        .iter()
        .enumerate()
        .map(|(position, config)| {
            let influence = influences.get(&(own, config.address));
            let influence = influence.unwrap_or(&Influence::NONE);
            let checked = states.get(position).copied();
            Known {
                state: match influence.mode {
                    Mode::Maintenance => BackendState::Down,
                    Mode::Enabled | Mode::Draining => checked.unwrap_or(BackendState::Down),
                },
                weight: influence.weight(config),
                is_excluded: influence.mode != Mode::Enabled,
                is_backup: config.backup,
            }
        })
        .collect();
    let (pool, healthy) = pool(service, &known);
    let standing = |(known, takes_new): (&Known, bool)| Standing {
        state: match known.state {
            BackendState::Up if !takes_new => BackendState::Draining,
            state => state,
        },
        weight: if takes_new { known.weight } else { 0 },
        own_weight: known.weight,
    };
    ServiceStanding {
        backends: known.iter().zip(pool).map(standing).collect(),
        healthy,
        is_quorum_lost: healthy < service.quorum.min_healthy.get(),
    }
}

/// A backend while the pool is made.
struct Known {
    state: BackendState,
    weight: u32,
    /// The operator wants no new flows there.
    is_excluded: bool,
    is_backup: bool,
}

impl Known {
    /// Whether it can take new flows, in this state.
    fn is(&self, state: BackendState) -> bool {
        self.state == state && self.weight > 0 && !self.is_excluded
    }
}

/// Who takes new flows, and how many of them are UP. The table is in the module's documentation.
fn pool(service: &ServiceConfig, known: &[Known]) -> (Vec<bool>, u32) {
    let min_healthy = service.quorum.min_healthy.get();
    let count = |pool: &[bool]| {
        let members = pool.iter().filter(|takes_new| **takes_new).count();
        u32::try_from(members).unwrap_or(u32::MAX)
    };
    let up = |one: &Known| one.is(BackendState::Up);
    let mut pool: Vec<bool> = known.iter().map(|one| up(one) && !one.is_backup).collect();
    if count(&pool) < min_healthy {
        let all = if service.use_all_backups {
            usize::MAX
        } else {
            1
        };
        let mut backups = known.iter().zip(&mut pool);
        let backups = backups.by_ref().filter(|(one, _)| up(one) && one.is_backup);
        for (_, takes_new) in backups.take(all) {
            *takes_new = true;
        }
    }
    let healthy = count(&pool);
    if healthy < min_healthy {
        match service.quorum.on_loss {
            OnQuorumLoss::UseAll => {
                for (one, takes_new) in known.iter().zip(&mut pool) {
                    *takes_new |= up(one) || one.is(BackendState::Draining);
                }
            }
            OnQuorumLoss::Reset | OnQuorumLoss::Drop => pool.fill(false),
        }
    }
    (pool, healthy)
}

#[cfg(test)]
mod tests {
    use BackendState::{Down, Draining, Up};
    use proptest::prelude::*;

    use super::*;
    use crate::core::fixture::{self, APISERVER};

    /// The service `apiserver` with these lines, and these in its third backend; it has a fourth.
    fn service(lines: &str, third: &str) -> ServiceConfig {
        let text = APISERVER.replace("port = 1644", &format!("port = 1644\n{lines}"));
        let fourth = "[[service.backend]]\nname = \"spare\"\naddress = \"10.0.2.13:6443\"\n";
        let text = format!("{text}{third}\n{fourth}{third}\n");
        fixture::config(10, &text).services.remove(0)
    }

    fn weights(service: &ServiceConfig, states: &[BackendState]) -> Vec<u32> {
        let standing = of_service(service, states, &Influences::new());
        let backends = standing.backends.iter();
        backends.map(|one| one.weight / WEIGHT_UNIT).collect()
    }

    fn influence(service: &ServiceConfig, backend: usize, influence: Influence) -> Influences {
        let address = service.backends[backend].address;
        Influences::from([((identity(service), address), influence)])
    }

    /// Those that are UP; without any those that are DRAINING; without any nobody.
    #[test]
    fn checks_alone_decide_by_default() {
        let service = service("", "");
        assert_eq!(weights(&service, &[Up, Draining, Up, Down]), [1, 0, 1, 0]);
        assert_eq!(
            weights(&service, &[Down, Draining, Down, Draining]),
            [0, 1, 0, 1]
        );
        assert_eq!(weights(&service, &[Down; 4]), [0; 4]);
        assert_eq!(weights(&service, &[]), [0; 4]);
    }

    /// The operator's word: drained ones take nothing, not even as the last ones; maintenance is
    /// DOWN; the checks' DOWN stays.
    #[test]
    fn the_operator_excludes() {
        let service = service("", "");
        for (mode, state) in [(Mode::Draining, Draining), (Mode::Maintenance, Down)] {
            let word = Influence {
                mode,
                ..Influence::NONE
            };
            let influences = influence(&service, 1, word);
            let standing = of_service(&service, &[Up; 4], &influences);
            assert_eq!((standing.backends[1].state, standing.healthy), (state, 3));
            assert_eq!(standing.backends[1].weight, 0);
            let last = of_service(&service, &[Down, Up, Down, Down], &influences);
            assert!(!last.takes_new() && last.is_quorum_lost);
            let down = of_service(&service, &[Up, Down, Up, Up], &influences);
            assert_eq!(down.backends[1].state, Down);
        }
    }

    /// Weights at run time, by themselves, as a part of the configured one, and while it grows;
    /// with 0 it counts as drained.
    #[test]
    fn weights_are_scaled() {
        let service = service("", "weight = 10");
        for (weight, agent, ramp, expected) in [
            (Weight::Configured, 100, 100, 10_000_000),
            (Weight::Configured, 75, 100, 7_500_000),
            (Weight::Configured, 0, 100, 10_000_000),
            (Weight::Percent(50), 100, 100, 5_000_000),
            (Weight::Percent(50), 30, 50, 750_000),
            (Weight::Percent(1), 100, 10, 10_000),
            (Weight::Percent(1), 1, 1, 10),
            (Weight::Percent(60_000), 100, 100, 1_000_000_000),
            (Weight::Percent(60_000), 60_000, 50, 500_000_000),
            (Weight::Absolute(1_000), 100, 100, 1_000_000_000),
            (Weight::Absolute(1_000), 200, 100, 1_000_000_000),
            (Weight::Absolute(3), 100, 20, 600_000),
            (Weight::Absolute(0), 50, 100, 0),
        ] {
            let word = Influence {
                weight,
                agent,
                ramp,
                mode: Mode::Enabled,
            };
            let influences = influence(&service, 2, word);
            let standing = of_service(&service, &[Up; 4], &influences);
            let own = standing.backends[2];
            assert_eq!(own.weight, expected, "{weight:?}");
            let state = if expected > 0 { Up } else { Draining };
            assert_eq!(own.state, state, "{weight:?}");
        }
    }

    proptest! {
        /// Weights are exactly the product of what has a say, up to the largest one: shares are kept, and
        /// no weight becomes 0 that is not.
        #[test]
        fn weights_are_exact(
            configured in 1u32..=1_000,
            percent in 1u16..=1_000,
            agent in 1u16..=1_000,
            ramp in 1u8..=100,
        ) {
            let service = service("", &format!("weight = {configured}"));
            let influence = Influence {
                weight: Weight::Percent(percent),
                agent,
                ramp,
                mode: Mode::Enabled,
            };
            let own = u64::from(influence.weight(&service.backends[2]));
            let wanted = u64::from(configured) * u64::from(percent) * u64::from(agent);
            let most = u64::from(MAX_WEIGHT) * 10_000;
            prop_assert!(own > 0);
            // The operator's weight has a bound of its own before the agent has a say.
            let by_operator = (u64::from(configured) * u64::from(percent)).min(most / 100);
            let expected = (by_operator * u64::from(agent)).min(most) * u64::from(ramp);
            prop_assert_eq!(own, expected);
            if wanted <= most && by_operator < most / 100 {
                prop_assert_eq!(own, wanted * u64::from(ramp));
            }
        }
    }

    /// Backups stay out while another backend is UP, and keep their flows then; the first one that
    /// is UP comes in for them, or all.
    #[test]
    fn backups_wait() {
        let one = service("", "backup = true");
        let idle = of_service(&one, &[Up, Down, Up, Up], &Influences::new());
        let states: Vec<_> = idle.backends.iter().map(|one| one.state).collect();
        assert_eq!(states, [Up, Down, Draining, Draining]);
        assert_eq!(weights(&one, &[Up, Down, Up, Up]), [1, 0, 0, 0]);
        assert_eq!(weights(&one, &[Draining, Down, Up, Up]), [0, 0, 1, 0]);
        assert_eq!(weights(&one, &[Down, Down, Draining, Up]), [0, 0, 0, 1]);
        assert_eq!(
            weights(&one, &[Draining, Down, Draining, Down]),
            [1, 0, 1, 0]
        );
        let all = service("use_all_backups = true", "backup = true");
        assert_eq!(weights(&all, &[Down, Draining, Up, Up]), [0, 0, 1, 1]);
        assert_eq!(weights(&all, &[Up, Down, Up, Up]), [1, 0, 0, 0]);
    }

    /// Below the quorum backups join those that are left; with too few even so the policy decides.
    #[test]
    fn a_lost_quorum_has_its_policy() {
        let quorum = |policy: &str, third: &str| {
            let policy = match policy {
                "" => String::new(),
                policy => format!("on_quorum_loss = \"{policy}\"\n"),
            };
            service(&format!("min_healthy = 2\n{policy}"), third)
        };
        let with_backups = quorum("reset", "backup = true");
        assert_eq!(weights(&with_backups, &[Up, Up, Up, Up]), [1, 1, 0, 0]);
        assert_eq!(weights(&with_backups, &[Up, Down, Up, Up]), [1, 0, 1, 0]);
        for (policy, expected) in [
            ("", [1, 1, 0, 1]),
            ("use_all", [1, 1, 0, 1]),
            ("reset", [0; 4]),
            ("drop", [0; 4]),
        ] {
            let service = quorum(policy, "");
            let states = [Up, Draining, Down, Draining];
            assert_eq!(weights(&service, &states), expected, "{policy}");
            let standing = of_service(&service, &states, &Influences::new());
            assert_eq!((standing.healthy, standing.is_quorum_lost), (1, true));
            // Flows go on all the same.
            let first = standing.backends[0].state;
            assert_eq!(first == Up, expected[0] == 1, "{policy}");
            assert_ne!(first, Down);
        }
    }
}
