//! What others are told: of instances and groups whose state is another one than the one that was told
//! last, and of backends.

use lb_common::abi::BackendState;

use super::{Action, Controller, Role};
use crate::core::{
    notify::{Notice, RouterState, Subject},
    vrrp::State,
};

impl Role {
    /// The state that others are told; `None`: it is about to be Active, and does not own the
    /// addresses yet.
    fn router_state(&self) -> Option<RouterState> {
        match self.instance.state() {
            State::Active => self.owns.then_some(RouterState::Master),
            State::Backup => Some(RouterState::Backup),
            State::Initialize if self.instance.is_faulty() => Some(RouterState::Fault),
            State::Initialize => Some(RouterState::Stop),
        }
    }
}

impl Controller {
    /// Tell of what has changed since the last time.
    pub(super) fn tell(&mut self) {
        for (role, config) in self.roles.iter_mut().zip(&self.config.vrrp) {
            let Some(state) = role.router_state().filter(|now| role.told != Some(*now)) else {
                continue;
            };
            role.told = Some(state);
            let subject = Subject::Instance(config.name.clone());
            let priority = role.instance.priority();
            let notice = Notice::router(subject, state, priority, Some(&config.notify));
            self.actions.push_back(Action::Notify(notice));
        }
        self.tell_of_groups();
    }

    fn tell_of_groups(&mut self) {
        let groups = self.config.vrrp.iter();
        let mut groups: Vec<_> = groups.filter_map(|vrrp| vrrp.sync_group.as_ref()).collect();
        groups.sort_unstable();
        groups.dedup();
        self.told_groups.retain(|name, _| groups.contains(&name));
        for name in groups {
            let members = self.roles.iter().zip(&self.config.vrrp);
            let members = members.filter(|(_, config)| config.sync_group.as_ref() == Some(name));
            let Some(state) = RouterState::of_group(members.map(|(role, _)| role.told)) else {
                continue;
            };
            if self.told_groups.insert(name.clone(), state) == Some(state) {
                continue;
            }
            let mut configured = self.config.groups.iter();
            let notify = configured.find(|group| group.name == *name);
            let notify = notify.map(|group| &group.notify);
            let subject = Subject::Group(name.clone());
            // keepalived says 0 of groups, too: their members may differ.
            let notice = Notice::router(subject, state, 0, notify);
            self.actions.push_back(Action::Notify(notice));
        }
    }

    /// A backend has another state.
    pub(super) fn tell_of_backend(&mut self, service: &str, backend: &str, state: BackendState) {
        let notice = Notice::backend(service, backend, state);
        self.actions.push_back(Action::Notify(notice));
    }
}
