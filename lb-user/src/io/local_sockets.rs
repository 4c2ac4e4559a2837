//! Ends the connections of this machine's own processes with a backend that died.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    time::{Duration, Instant},
};

use aya::maps::{MapData, MapError};
use lb_common::headers::IPPROTO_TCP;
use nix::errno::Errno;
use tracing::{debug, info, warn};

use super::{
    bpf::{
        Pins,
        batch::{BatchError, lookup_batch},
    },
    held_sockets::{self, Sockets},
    netlink::{
        NetlinkError,
        sock_diag::{Connected, SockDiag},
    },
    netns,
};
use crate::core::{
    local_sockets::{Origin, is_sent, is_served},
    resets::Death,
};

/// Network namespaces that are looked into, at most.
const NAMESPACES: usize = 1_024;
/// Time that looking into them may take.
const TIME: Duration = Duration::from_secs(5);

/// Why connections could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum LocalSocketsError {
    /// The map of the connections that were rewritten.
    #[error("{0}")]
    Map(#[from] MapError),
    /// Its reading.
    #[error("{0}")]
    Batch(#[from] BatchError),
    /// The kernel's list of sockets.
    #[error("{0}")]
    Netlink(#[from] NetlinkError),
    /// The processes that hold them.
    #[error("processes: {0}")]
    Processes(#[from] io::Error),
}

/// Ends connections.
pub struct LocalSockets {
    connects4: MapData,
    connects6: MapData,
}

impl LocalSockets {
    /// For the connections that the data plane pinned at `pins` has rewritten.
    pub fn open(pins: &Pins) -> Result<Self, LocalSocketsError> {
        Ok(Self {
            connects4: MapData::from_pin(pins.map("connects4"))?,
            connects6: MapData::from_pin(pins.map("connects6"))?,
        })
    }

    /// Ends what was connected to backends that died: in the calling thread's network namespace,
    /// and, where some process was sent to them, in every other one.
    pub fn end(&self, deaths: &[Death]) {
        let origins = self.origins(deaths).unwrap_or_else(|error| {
            warn!(%error, "cannot read which processes were connected to a dead backend");
            BTreeMap::new()
        });
        let meant = |socket: &Connected| {
            let connection = &socket.connection;
            let origin = origins.get(&connection.cookie);
            deaths.iter().any(|death| {
                (socket.protocol == IPPROTO_TCP && is_served(connection, death))
                    || origin.is_some_and(|origin| is_sent(connection, origin, death))
            })
        };
        let mut ended = end_here(meant);
        if !origins.is_empty() {
            ended += end_elsewhere(&|socket| {
                origins.contains_key(&socket.connection.cookie) && meant(socket)
            });
        }
        if ended > 0 {
            info!(
                connections = ended,
                "ended this node's own connections with a dead backend"
            );
        }
    }

    /// Sockets by number that were sent to backends that died.
    fn origins(&self, deaths: &[Death]) -> Result<BTreeMap<u64, Origin>, LocalSocketsError> {
        let mut origins = BTreeMap::new();
        let died = |origin: &Origin| {
            let backend = origin.backend();
            deaths.iter().any(|death| death.order.backend == backend)
        };
        for piece in lookup_batch(&self.connects4)? {
            let piece = piece?
                .into_iter()
                .map(|(cookie, origin)| (cookie, Origin::V4(origin)));
            origins.extend(piece.filter(|(_, origin)| died(origin)));
        }
        for piece in lookup_batch(&self.connects6)? {
            let piece = piece?
                .into_iter()
                .map(|(cookie, origin)| (cookie, Origin::V6(origin)));
            origins.extend(piece.filter(|(_, origin)| died(origin)));
        }
        Ok(origins)
    }
}

/// Ends connections of the calling thread's network namespace; returns how many.
fn end_here(meant: impl Fn(&Connected) -> bool) -> usize {
    try_end_here(meant).unwrap_or_else(|error| {
        warn!(%error, "cannot end this node's own connections with a dead backend");
        0
    })
}

fn try_end_here(meant: impl Fn(&Connected) -> bool) -> Result<usize, LocalSocketsError> {
    let mut sockets = SockDiag::open()?;
    let mut ended = 0;
    let mut held = Sockets::new();
    for socket in sockets.connections()?.into_iter().filter(meant) {
        match sockets.destroy(&socket) {
            Ok(was_there) => ended += usize::from(was_there),
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => {
                // A UDP socket would not be told.
                if socket.protocol == IPPROTO_TCP {
                    held.insert(socket.inode, socket.connection.cookie);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ended + held_sockets::end(&held)?)
}

/// Ends connections of all network namespaces.
fn end_elsewhere(meant: &(impl Fn(&Connected) -> bool + Sync)) -> usize {
    let namespaces = netns::all(NAMESPACES).unwrap_or_else(|error| {
        warn!(%error, "cannot list the network namespaces");
        Vec::new()
    });
    let deadline = Instant::now() + TIME;
    let in_time = |_: &&File| Instant::now() < deadline;
    let ended = namespaces.iter().take_while(in_time).map(|namespace| {
        match netns::inside(namespace, || try_end_here(meant)) {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => {
                debug!(%error, "cannot end the connections of a network namespace");
                0
            }
            Err(error) => {
                debug!(%error, "cannot enter a network namespace");
                0
            }
        }
    });
    ended.sum()
}
