//! Passive health: a backend that refuses a connection gets no new ones (the data plane sees to
//! that at once), and is checked out of turn. What the check says decides as any other check does.

use super::{Action, Controller};
use crate::core::{
    health::{Class, ProbeResult},
    time::Timestamp,
};

impl Controller {
    /// The backend with this id refused a connection.
    pub(super) fn suspect(&mut self, now: Timestamp, id: u32) {
        let Some((service, backend)) = self.position_of(id) else {
            return;
        };
        self.suspects.insert(id, now);
        if let Some(health) = self.health.get_mut(service) {
            health.check_soon(backend, now);
        }
    }

    /// Ends the suspicion against a backend if its check began after the refusal and passed. It is
    /// not for one that is not well: that gets no new connections by its state, or is the only
    /// one left.
    pub(super) fn clear_suspicion(&mut self, service: usize, result: &ProbeResult) {
        let placement = self
            .placements
            .get(service)
            .and_then(|service| service.backends.get(result.backend));
        let Some(id) = placement.map(|backend| backend.id) else {
            return;
        };
        let refused = self.suspects.get(&id);
        let passed = result.outcome.class() == Class::Pass;
        if passed && refused.is_some_and(|refused| result.started >= *refused) {
            self.suspects.remove(&id);
            self.actions.push_back(Action::ClearSuspect { backend: id });
        }
    }

    fn position_of(&self, id: u32) -> Option<(usize, usize)> {
        self.placements
            .iter()
            .enumerate()
            .find_map(|(at, service)| {
                let backend = service
                    .backends
                    .iter()
                    .position(|backend| backend.id == id)?;
                Some((at, backend))
            })
    }
}
