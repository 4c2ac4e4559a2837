//! Connections that are kept between HTTP checks: at most one for each address that is asked. They
//! do nothing meanwhile; what the server has done with one shows when it is used again.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::http::Session;

/// What nobody has asked for that long is closed: its backend is gone.
const MAX_IDLE: Duration = Duration::from_mins(2);

/// The kept connections of a prober. They are closed with it.
#[derive(Default)]
pub(super) struct Kept(Mutex<HashMap<SocketAddr, Idle>>);

struct Idle {
    session: Session,
    since: Instant,
}

impl Kept {
    /// The connection to `target`, if there is one.
    pub(super) fn take(&self, target: SocketAddr) -> Option<Session> {
        self.lock().remove(&target).map(|idle| idle.session)
    }

    /// Keeps `session` in place of another one to `target`.
    pub(super) fn put(&self, target: SocketAddr, session: Session) {
        let since = Instant::now();
        let mut kept = self.lock();
        kept.retain(|_, idle| since.duration_since(idle.since) < MAX_IDLE);
        kept.insert(target, Idle { session, since });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Idle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().keys()).finish()
    }
}
