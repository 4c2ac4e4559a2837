//! Interfaces that come, go and change: the programs and the VRRP sockets follow the configured
//! names.

use std::collections::BTreeSet;

use super::{Action, Controller, Event};
use crate::core::attach::{self, Attachment, Plan, Uplinks};

/// What the programs are attached to, and what of it was said.
#[derive(Default)]
pub(super) struct Attachments {
    /// What was asked for last.
    plans: Vec<Plan>,
    /// What became of it.
    pub(super) attached: Vec<Attachment>,
    /// That as the tables know it.
    pub(super) uplinks: Uplinks,
    /// It was told at least once.
    pub(super) known: bool,
    /// Uplinks that were reported missing.
    pub(super) missing: BTreeSet<String>,
    /// The attachments are to be looked at even if nothing changed.
    pub(super) audit: bool,
}

impl Controller {
    /// After a reading of the interfaces: have the programs and sockets where the names are now.
    pub(super) fn follow_uplinks(&mut self) {
        let plans = attach::plans(&self.config, &self.network);
        self.report_missing(&plans);
        let own = &mut self.attachments;
        if plans != own.plans || own.audit {
            own.audit = false;
            own.plans.clone_from(&plans);
            self.actions.push_back(Action::Attach(plans));
        }
        for (position, config) in self.config.vrrp.iter().enumerate() {
            let ifindex = self.network.interface(&config.interface);
            let ifindex = ifindex.map(|interface| interface.ifindex);
            if let Some(role) = self.roles.get_mut(position)
                && role.listens_on != ifindex
            {
                role.listens_on = ifindex;
                self.actions.push_back(Action::Listen {
                    instance: role.slot,
                    ifindex,
                });
            }
        }
    }

    /// The programs are where they are: the tables follow.
    pub(super) fn set_attached(&mut self, attached: Vec<Attachment>) {
        self.attachments.uplinks = Uplinks::new(&attached);
        self.attachments.known = true;
        self.attachments.attached = attached;
        self.reconcile_tables();
    }

    fn report_missing(&mut self, plans: &[Plan]) {
        let missing = attach::missing(&self.config, plans);
        let missing: BTreeSet<String> = missing.into_iter().map(str::to_owned).collect();
        for interface in missing.difference(&self.attachments.missing).cloned() {
            let event = Event::UplinkMissing { interface };
            self.actions.push_back(Action::Report(event));
        }
        self.attachments.missing = missing;
    }
}
