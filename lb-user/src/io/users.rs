//! Whether the users that a configuration's programs run as are there: better said when it is loaded
//! than when the programs are needed.

use nix::unistd::User;

use super::command::NoUser;
use crate::config::model::{CommandConfig, Config, TrackSubject};

/// A program would run as a user that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {source}")]
pub struct UserError {
    /// Where it stands: `vrrp "v4": notify`.
    place: String,
    /// Who there is not.
    source: NoUser,
}

/// Looks for the users of everything that `config` runs but health checks, which look themselves.
pub fn check(config: &Config) -> Result<(), UserError> {
    for vrrp in &config.vrrp {
        let place = || format!("vrrp {:?}: notify", vrrp.name);
        vrrp.notify
            .commands()
            .try_for_each(|one| exists(one, place))?;
    }
    for group in &config.groups {
        let place = || format!("sync_group {:?}: notify", group.name);
        let mut commands = group.notify.commands();
        commands.try_for_each(|one| exists(one, place))?;
    }
    for track in &config.tracks {
        if let TrackSubject::Command { command, .. } = &track.subject {
            exists(command, || format!("track {:?}", track.name))?;
        }
    }
    Ok(())
}

fn exists(command: &CommandConfig, place: impl FnOnce() -> String) -> Result<(), UserError> {
    let user = &command.user;
    match User::from_name(user) {
        Ok(Some(_)) => Ok(()),
        _ => Err(UserError {
            place: place(),
            source: NoUser(user.clone()),
        }),
    }
}
