//! Groups of VRRP instances that move together: IPv4 and IPv6 of one control plane, say.
//!
//! What one of a group tracks counts for all of them, so that every node ranks alike in each. An instance
//! that stops to be Active takes the others with it, which resign: the next owner has them all within
//! the skew. A step-down or resume of one is one of all.

use super::Controller;
use crate::core::{
    time::Timestamp,
    vrrp::{Cause, State, Transition},
};

impl Controller {
    /// Positions of the instances that move together with the one at `position`, itself included.
    pub(super) fn group_of(&self, position: usize) -> impl Iterator<Item = usize> + '_ {
        let vrrp = &self.config.vrrp;
        let members = vrrp.iter().enumerate().filter(move |(_, config)| {
            vrrp.get(position).is_some_and(|own| own.moves_with(config))
        });
        members.map(|(at, _)| at)
    }

    /// Slots of the instances that move together with the one of `slot`, itself included.
    pub(super) fn group_slots(&self, slot: usize) -> Vec<usize> {
        let Some(position) = self.position(slot) else {
            return Vec::new();
        };
        let members = self.group_of(position);
        members.filter_map(|member| self.slot(member)).collect()
    }

    /// Gather the actions of those that follow the instance at `position`.
    pub(super) fn collect_group(&mut self, now: Timestamp, position: usize) {
        let others: Vec<_> = self
            .group_of(position)
            .filter(|at| *at != position)
            .collect();
        for other in others {
            self.collect_vrrp(now, other);
        }
    }

    /// After an instance's change of state: the others of its group follow one that left its
    /// addresses. Returns whether somebody did.
    pub(super) fn follow(&mut self, now: Timestamp, position: usize, left: Transition) -> bool {
        let leaves = left.from == State::Active && left.to != State::Active;
        // Whoever follows is not followed, and a stop is one of each by itself.
        if !leaves || matches!(left.cause, Cause::SyncGroup | Cause::Stop) {
            return false;
        }
        let others: Vec<_> = self
            .group_of(position)
            .filter(|at| *at != position)
            .collect();
        let mut followed = false;
        for other in others {
            if let Some(role) = self.roles.get_mut(other) {
                followed |= role.instance.state() == State::Active;
                role.instance.follow_group(now);
            }
        }
        followed
    }
}
