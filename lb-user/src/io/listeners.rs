//! Looks every few seconds, on a thread of its own, whether this node's backends can get the VIPs'
//! connections.
//!
//! Listeners that are bound to the node's address get them by way of the socket map `listeners`. The
//! programs keep it, from one SYN to the next. Where the kernel does not let them (Linux 7.3), this
//! thread does: a server that starts anew is then found by the next look.

use std::{
    collections::BTreeMap,
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
    maps::{Array, HashMap, Map, MapData, MapError, SockMap},
};
use lb_common::{
    abi::{Address, Backend, ReplyPort, Service, ServiceKey},
    headers::IPPROTO_TCP,
};
use tracing::{debug, info, warn};

use super::{
    bpf::Pins,
    held_sockets::{self, Sockets},
    netlink::{NetlinkError, sock_diag::SockDiag},
};
use crate::core::listeners::{Listener, complaints, to_be_given};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(5);

/// Why it is not known whether they can.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("{0}")]
    Map(#[from] MapError),
    #[error("{0}")]
    Netlink(#[from] NetlinkError),
    #[error("{0}")]
    Process(#[from] io::Error),
    #[error("{0}")]
    Socket(#[from] rustix::io::Errno),
}

/// The running watch. Dropping it ends its thread.
pub struct ListenerWatch {
    warnings: Arc<Mutex<Vec<String>>>,
    /// Its end wakes the thread.
    _running: SyncSender<()>,
}

impl ListenerWatch {
    /// Start one in the calling thread's network namespace, for the data plane pinned at `pins`.
    /// `keeps`: the programs cannot write to `listeners`.
    pub fn start(pins: &Pins, keeps: bool) -> io::Result<Self> {
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let (running, stop) = sync_channel(0);
        let shared = Arc::clone(&warnings);
        let mut keeper = keeps.then(Keeper::default);
        let pins = pins.clone();
        thread::Builder::new()
            .name("xvip-listeners".to_owned())
            .spawn(move || watch(&pins, keeper.as_mut(), &shared, &stop))?;
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

fn watch(
    pins: &Pins,
    mut keeper: Option<&mut Keeper>,
    shared: &Mutex<Vec<String>>,
    stop: &Receiver<()>,
) {
    loop {
        match look(pins, keeper.as_deref_mut()) {
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

/// A local backend's service.
#[derive(Clone, Copy)]
struct Asked {
    /// The VIP with the backend's port.
    to: SocketAddr,
    /// The service's element of `listeners`.
    slot: u32,
    /// The backend.
    server: SocketAddr,
}

fn look(pins: &Pins, keeper: Option<&mut Keeper>) -> Result<Vec<String>, LookError> {
    let asked = [
        asked::<[u8; 4]>(pins, ["reply_ports4", "services4", "backends4"])?,
        asked::<[u8; 16]>(pins, ["reply_ports6", "services6", "backends6"])?,
    ]
    .concat();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let listeners = SockDiag::open()?.listeners()?;
    if let Some(keeper) = keeper {
        keeper.keep(pins, &asked, &listeners)?;
    }
    let to: Vec<SocketAddr> = asked.iter().map(|asked| asked.to).collect();
    Ok(complaints(&to, &listeners))
}

/// The VIPs with the ports of their local backends.
fn asked<A>(pins: &Pins, names: [&str; 3]) -> Result<Vec<Asked>, MapError>
where
    A: Address + Pod + Into<IpAddr>,
    Backend<A>: Pod,
{
    let open = |name| MapData::from_pin(pins.map(name));
    let [ports, services, backends] = names;
    let ports: HashMap<_, ServiceKey<A>, ReplyPort> =
        HashMap::try_from(Map::HashMap(open(ports)?))?;
    let services: HashMap<_, ServiceKey<A>, Service> =
        HashMap::try_from(Map::HashMap(open(services)?))?;
    let backends: Array<_, Backend<A>> = Array::try_from(Map::Array(open(backends)?))?;
    let mut asked = Vec::new();
    for entry in &ports {
        let (key, port) = entry?;
        if key.proto() != IPPROTO_TCP {
            continue;
        }
        let service = ServiceKey::new(key.vip(), port.port(), IPPROTO_TCP);
        // It may be gone since.
        let Ok(service) = services.get(&service, 0) else {
            continue;
        };
        let backend = backends.get(&service.local_backend(), 0)?;
        asked.push(Asked {
            to: SocketAddr::new(key.vip().into(), key.port()),
            slot: service.id(),
            server: SocketAddr::new(backend.addr().into(), backend.port()),
        });
    }
    Ok(asked)
}

/// Keeps `listeners` in the programs' stead.
#[derive(Default)]
struct Keeper {
    /// Cookies of the sockets that were put there, by element. The kernel removes those that end.
    kept: BTreeMap<u32, u64>,
}

impl Keeper {
    fn keep(
        &mut self,
        pins: &Pins,
        asked: &[Asked],
        listeners: &[Listener],
    ) -> Result<(), LookError> {
        let mut missing = BTreeMap::new();
        let mut sockets = Sockets::new();
        for asked in asked {
            let Some(listener) = to_be_given(asked.to, asked.server, listeners) else {
                continue;
            };
            if self.kept.get(&asked.slot) != Some(&listener.cookie) {
                sockets.insert(listener.inode, listener.cookie);
                missing.insert(asked.slot, listener.cookie);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let map = Map::SockMap(MapData::from_pin(pins.map("listeners"))?);
        let mut map: SockMap<MapData> = SockMap::try_from(map)?;
        held_sockets::for_each(&sockets, |socket, cookie| -> Result<(), LookError> {
            for (slot, _) in missing.iter().filter(|(_, wanted)| **wanted == cookie) {
                map.set(*slot, socket, 0)?;
                self.kept.insert(*slot, cookie);
            }
            Ok(())
        })?;
        Ok(())
    }
}
