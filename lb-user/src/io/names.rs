//! Lookups of backends' host names, by the node's resolver: `/etc/hosts`, DNS, whatever
//! `/etc/nsswitch.conf` says.
//!
//! A lookup takes as long as the resolver does (`/etc/resolv.conf`), on a thread of its own. Nobody waits for
//! it; one that is late is told of, and its answer counts when it comes.

use std::{io, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use tokio::{
    net::lookup_host,
    runtime,
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::core::{
    controller::Input,
    names::{Answer, HostKey},
};

/// Time after which a lookup is late.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lookups at once, without those that are late: a name server is asked with measure.
const AT_ONCE: usize = 16;

/// Looks names up on other threads than its caller's.
pub(super) struct Lookups {
    runtime: runtime::Handle,
    told: mpsc::UnboundedSender<Input>,
    turns: Arc<Semaphore>,
}

impl Lookups {
    /// Looks up on the threads of `runtime` and tells `told` what comes of it.
    pub(super) fn new(runtime: runtime::Handle, told: mpsc::UnboundedSender<Input>) -> Self {
        Self {
            runtime,
            told,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Looks a name up; the answers, [`Input::LookedUp`], have the same key.
    pub(super) fn look_up(&self, key: HostKey) {
        let (told, turns) = (self.told.clone(), Arc::clone(&self.turns));
        let tell = move |key: &HostKey, answer| {
            let key = key.clone();
            // Nobody listens any more when the controller ends.
            let _ = told.send(Input::LookedUp { key, answer });
        };
        self.runtime.spawn(async move {
            // It is never closed.
            let turn = turns.acquire().await;
            let mut lookup = pin!(addresses(&key.host));
            let in_time = timeout(PATIENCE, &mut lookup).await;
            let answer = if let Ok(answer) = in_time {
                answer
            } else {
                drop(turn);
                tell(&key, Answer::Late(PATIENCE));
                lookup.await
            };
            tell(&key, answer);
        });
    }
}

/// The addresses of a name.
async fn addresses(host: &str) -> Answer {
    match lookup_host((host, 0)).await {
        Ok(found) => Answer::Found(found.map(|place| place.ip()).collect::<Vec<IpAddr>>()),
        Err(error) => Answer::Failed(words(&error)),
    }
}

/// What the resolver says, without what every error of it begins with.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let bare = text.strip_prefix("failed to lookup address information: ");
    bare.unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are looked up as other programs do, and what is no name has no address; each lookup has one
    /// answer.
    #[tokio::test]
    async fn names_have_addresses() {
        let (told, mut heard) = mpsc::unbounded_channel();
        let lookups = Lookups::new(runtime::Handle::current(), told);
        // A label of more than 63 bytes is refused before anybody is asked.
        for host in ["localhost".to_owned(), "a".repeat(64)] {
            let key = HostKey { host, ipv6: false };
            lookups.look_up(key.clone());
            let Some(Input::LookedUp { key: told, answer }) = heard.recv().await else {
                panic!("another answer");
            };
            assert_eq!(told, key);
            if key.host == "localhost" {
                let localhost: IpAddr = [127, 0, 0, 1].into();
                let Answer::Found(found) = answer else {
                    panic!("{answer:?}");
                };
                assert!(found.contains(&localhost), "{found:?}");
            } else {
                assert!(
                    matches!(&answer, Answer::Failed(why) if !why.contains("failed to lookup")),
                    "{answer:?}"
                );
            }
        }
        assert!(heard.try_recv().is_err());
    }
}
