//! Services that lose their quorum, and get it back: what is reported of that.

use std::collections::BTreeMap;

use super::{Action, Controller, Event};
use crate::core::{desired::identity, standing};

impl Controller {
    /// Reports what has changed. At first a loss is one only when every backend was checked: until
    /// then nothing is known.
    pub(super) fn follow_quorums(&mut self) {
        let influences = self.influences();
        let mut lost = BTreeMap::new();
        for (position, config) in self.config.services.iter().enumerate() {
            let standing = standing::of_service(config, &self.states(position), &influences);
            let own = identity(config);
            let before = self.quorum_lost.get(&own).copied();
            if before.is_none() && standing.is_quorum_lost && !self.is_checked(position) {
                continue;
            }
            lost.insert(own, standing.is_quorum_lost);
            if before.unwrap_or(false) != standing.is_quorum_lost {
                self.actions.push_back(Action::Report(Event::Quorum {
                    service: config.name.clone(),
                    healthy: standing.healthy,
                    min_healthy: config.quorum.min_healthy.get(),
                    on_loss: standing.is_quorum_lost.then_some(config.quorum.on_loss),
                }));
            }
        }
        self.quorum_lost = lost;
    }

    /// Whether there is a result for each backend of a service.
    fn is_checked(&self, service: usize) -> bool {
        let Some(health) = self.health.get(service) else {
            return false;
        };
        let backends = self
            .config
            .services
            .get(service)
            .map_or(0, |config| config.backends.len());
        health.is_unchecked() || (0..backends).all(|backend| health.last(backend).is_some())
    }
}
