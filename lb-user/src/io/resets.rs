//! Carries out what `core::resets` decides, on threads of its own: conntrack tables are large, and
//! neither reading them nor the sending may delay an advert.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    net::IpAddr,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::Instant,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use lb_common::abi::{Flow, FlowKey, Method};
use tracing::{debug, info, warn};

use super::{
    bpf::{
        Pins,
        batch::{BatchError, lookup_batch},
    },
    clock,
    local_sockets::{LocalSockets, LocalSocketsError},
    packet_socket::PacketSocket,
    raw_socket::RawSocket,
};
use crate::core::{
    resets::{Death, Found, Output, Resets, Scan},
    segment,
};

/// Why clients of dead backends cannot be reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The conntrack tables.
    #[error("conntrack tables: {0}")]
    Map(#[from] MapError),
    /// Their reading.
    #[error("conntrack tables: {0}")]
    Batch(#[from] BatchError),
    /// The local connections' table.
    #[error("{0}")]
    Local(#[from] LocalSocketsError),
    /// A socket or a thread.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Takes orders. The threads end with it.
pub struct Resetter {
    flows: Sender<Vec<Death>>,
    sockets: Sender<Vec<Death>>,
}

impl Resetter {
    /// Starts the threads, in the network namespace of the calling one, for the data plane pinned at
    /// `pins`.
    pub fn start(pins: &Pins) -> Result<Self, ResetError> {
        let (flows, orders) = channel();
        let worker = Worker {
            engine: Resets::new(clock::now().as_nanos()),
            v4: FlowTables::open(pins, "flows4", "half_flows4")?,
            v6: FlowTables::open(pins, "flows6", "half_flows6")?,
            raw: RawSocket::open()?,
            links: BTreeMap::new(),
        };
        let thread = thread::Builder::new().name("xvip-resets".to_owned());
        thread.spawn(move || worker.run(&orders))?;

        let (sockets, orders) = channel::<Vec<Death>>();
        let local = LocalSockets::open(pins)?;
        let thread = thread::Builder::new().name("xvip-sockets".to_owned());
        thread.spawn(move || {
            for deaths in orders {
                local.end(&deaths);
            }
        })?;
        Ok(Self { flows, sockets })
    }

    /// Resets all that is connected to these backends. Returns at once.
    pub fn reset(&self, deaths: Vec<Death>) {
        // The threads live as long as this does, unless they panicked.
        let sockets = self.sockets.send(deaths.clone());
        if self.flows.send(deaths).is_err() || sockets.is_err() {
            warn!("cannot reset the clients of a dead backend: a thread has ended");
        }
    }
}

/// The thread that tells clients.
struct Worker {
    engine: Resets,
    v4: FlowTables<[u8; 4]>,
    v6: FlowTables<[u8; 16]>,
    raw: RawSocket,
    /// Sockets for frames, by interface index.
    links: BTreeMap<u32, PacketSocket>,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Vec<Death>>) {
        loop {
            let received = match self.engine.poll_timeout() {
                Some(at) => orders.recv_timeout(at.saturating_since(clock::now())),
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(deaths) => self.begin(&deaths),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.turn();
        }
    }

    fn begin(&mut self, deaths: &[Death]) {
        // Flows of a local backend have no entry.
        let forwarded = deaths.iter().filter(|death| death.method != Method::Local);
        for death in forwarded {
            self.engine.begin(clock::now(), death.order);
        }
    }

    fn turn(&mut self) {
        let now = clock::now();
        if let Some(scan) = self.engine.poll_scan(now) {
            let seconds = clock::monotonic_seconds();
            let found = self.look_up(&scan);
            self.engine.handle_found(now, seconds, &scan, &found);
        }
        self.engine.handle_timeout(now);
        let mut sent = 0u64;
        while let Some(output) = self.engine.poll_output() {
            match self.send(&output) {
                Ok(()) => sent += 1,
                // No route, no interface: nobody is there who could be told.
                Err(error) => debug!(%error, "cannot send a reset"),
            }
        }
        if sent > 0 {
            debug!(segments = sent, "told the clients of a dead backend");
        }
    }

    /// The flows that `scan` asks for. Those to be removed are removed.
    fn look_up(&mut self, scan: &Scan) -> Vec<Found> {
        let started = Instant::now();
        let mut found = Vec::new();
        let v4 = if scan.ipv4 {
            self.v4.look_up(scan, &mut found)
        } else {
            Ok(())
        };
        let v6 = if scan.ipv6 {
            self.v6.look_up(scan, &mut found)
        } else {
            Ok(())
        };
        if let Err(error) = v4.and(v6) {
            warn!(%error, "cannot read which clients a dead backend has");
        }
        let milliseconds = started.elapsed().as_millis();
        if found.is_empty() {
            debug!(milliseconds, "no flows of a dead backend");
        } else {
            info!(flows = found.len(), milliseconds, "flows of a dead backend");
        }
        found
    }

    fn send(&mut self, output: &Output) -> Result<(), Box<dyn std::error::Error>> {
        let Some(packet) = output.segment.packet() else {
            return Ok(());
        };
        let Some(link) = output.link else {
            return Ok(self.raw.send(&packet, output.segment.dst.ip())?);
        };
        let socket = match self.links.entry(link.ifindex) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(PacketSocket::open(link.ifindex)?),
        };
        let frame = segment::frame(&packet, link.src, link.dst, link.tags);
        let sent = socket.send(&frame);
        if sent.is_err() {
            // The interface may be gone and come back.
            self.links.remove(&link.ifindex);
        }
        Ok(sent?)
    }
}

/// The conntrack tables of one family.
struct FlowTables<A>
where
    FlowKey<A>: Pod,
{
    tables: [FlowTable<A>; 2],
}

/// One table, to be read in pieces and to be changed.
struct FlowTable<A>
where
    FlowKey<A>: Pod,
{
    data: MapData,
    entries: HashMap<MapData, FlowKey<A>, Flow>,
}

impl<A: Copy + Into<IpAddr>> FlowTables<A>
where
    FlowKey<A>: Pod,
{
    fn open(pins: &Pins, flows: &str, half_flows: &str) -> Result<Self, ResetError> {
        let open = |path: &Path| -> Result<FlowTable<A>, ResetError> {
            let map = Map::from_map_data(MapData::from_pin(path)?)?;
            Ok(FlowTable {
                data: MapData::from_pin(path)?,
                entries: HashMap::try_from(map)?,
            })
        };
        Ok(Self {
            tables: [open(&pins.map(flows))?, open(&pins.map(half_flows))?],
        })
    }

    fn look_up(&mut self, scan: &Scan, found: &mut Vec<Found>) -> Result<(), ResetError> {
        for table in &mut self.tables {
            for piece in lookup_batch::<FlowKey<A>, Flow>(&table.data)? {
                for (key, flow) in piece?.into_iter().filter(|(_, flow)| scan.picks(flow)) {
                    found.extend(Found::new(&key, flow));
                    if scan.forgets(&flow) {
                        // It may have been evicted meanwhile.
                        let _ = table.entries.remove(&key);
                    }
                }
            }
        }
        Ok(())
    }
}
