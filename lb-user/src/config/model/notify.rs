//! Who is told of changes of state.

use std::time::Duration;

use super::CommandConfig;

/// `vrrp.notify` and `sync_group.notify`: programs that are run when a state begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotifyConfig {
    /// On Active, once the addresses are owned.
    pub active: Option<CommandConfig>,
    /// On Backup.
    pub backup: Option<CommandConfig>,
    /// On a fault.
    pub fault: Option<CommandConfig>,
    /// On the end of the instance.
    pub stop: Option<CommandConfig>,
    /// On all of them, after the one above; what has changed is appended to its arguments.
    pub any: Option<CommandConfig>,
    /// Time that each of them may take.
    pub timeout: Duration,
}

impl NotifyConfig {
    /// All programs.
    pub fn commands(&self) -> impl Iterator<Item = &CommandConfig> {
        let all = [
            &self.active,
            &self.backup,
            &self.fault,
            &self.stop,
            &self.any,
        ];
        all.into_iter().flatten()
    }
}

/// `[[sync_group]]`: what is said of instances with this `vrrp.sync_group` together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// Name.
    pub name: String,
    /// Who is told when all of them have another state.
    pub notify: NotifyConfig,
}
