//! Looks every few seconds, on a thread of its own, whether this node's backends can get the VIPs'
//! connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use lb_common::{
    abi::{Address, ReplyPort, ServiceKey},
    headers::IPPROTO_TCP,
};
use tracing::{debug, info, warn};

use super::{
    bpf::Pins,
    netlink::{NetlinkError, sock_diag::SockDiag},
};
use crate::core::listeners::complaints;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(5);

/// Why it is not known whether they can.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("{0}")]
    Map(#[from] MapError),
    #[error("{0}")]
    Netlink(#[from] NetlinkError),
}

/// The running watch. Dropping it ends its thread.
pub struct ListenerWatch {
    warnings: Arc<Mutex<Vec<String>>>,
    /// Its end wakes the thread.
    _running: SyncSender<()>,
}

impl ListenerWatch {
    /// Start one in the calling thread's network namespace, for the data plane pinned at `pins`.
    pub fn start(pins: &Pins) -> io::Result<Self> {
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let (running, stop) = sync_channel(0);
        let (shared, pins) = (Arc::clone(&warnings), pins.clone());
        thread::Builder::new()
            .name("xvip-listeners".to_owned())
            .spawn(move || watch(&pins, &shared, &stop))?;
        Ok(Self {
            warnings,
            _running: running,
        })
    }

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.warnings.lock();
        warnings.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn watch(pins: &Pins, shared: &Mutex<Vec<String>>, stop: &Receiver<()>) {
    loop {
        match look(pins) {
            Ok(now) => {
                let mut known = shared.lock().unwrap_or_else(PoisonError::into_inner);
                for complaint in now.iter().filter(|new| !known.contains(new)) {
                    warn!("{complaint}");
                }
                if now.is_empty() && !known.is_empty() {
                    info!("this node's backends can get every connection again");
                }
                *known = now;
            }
            Err(error) => debug!(%error, "cannot look for listeners"),
        }
        if stop.recv_timeout(PAUSE) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

fn look(pins: &Pins) -> Result<Vec<String>, LookError> {
    let asked = [
        asked::<[u8; 4]>(pins, "reply_ports4")?,
        asked::<[u8; 16]>(pins, "reply_ports6")?,
    ]
    .concat();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    Ok(complaints(&asked, &SockDiag::open()?.listeners()?))
}

/// The VIPs with the ports of their local backends.
fn asked<A>(pins: &Pins, name: &str) -> Result<Vec<SocketAddr>, MapError>
where
    A: Address + Pod + Into<IpAddr>,
{
    let map = Map::HashMap(MapData::from_pin(pins.map(name))?);
    let map: HashMap<MapData, ServiceKey<A>, ReplyPort> = HashMap::try_from(map)?;
    let mut asked = Vec::new();
    for key in map.keys() {
        let key = key?;
        if key.proto() == IPPROTO_TCP {
            asked.push(SocketAddr::new(key.vip().into(), key.port()));
        }
    }
    Ok(asked)
}
