//! The conntrack maps, opened by their pins: to be listed, and to be rid of what is over.
//!
//! Whoever opens them has descriptors of its own and reads on a thread of its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use aya::{
    Pod,
    maps::{Array, HashMap, IterableMap, Map, MapData, MapError},
};
use lb_common::abi::{Address, Backend, Flow, FlowKey, NatReturn};

use super::{
    BpfError, Pins,
    batch::{Batches, lookup_batch},
    maps::{elements, map_error},
};
use crate::core::conntrack::{BackendFacts, Backends};

/// An LRU hash map of the conntrack, with its name.
pub struct Table<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    fn open(pins: &Pins, name: &'static str) -> Result<Self, BpfError> {
        let open = || HashMap::try_from(Map::LruHashMap(MapData::from_pin(pins.map(name))?));
        let map = open().map_err(map_error(name))?;
        Ok(Self { name, map })
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The value of `key`. To look at an entry does not make it younger.
    pub fn get(&self, key: &K) -> Result<Option<V>, BpfError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(map_error(self.name)(error)),
        }
    }

    /// Delete `key`, which may be gone already.
    pub fn remove(&mut self, key: &K) -> Result<(), BpfError> {
        match self.map.remove(key) {
            Err(error) if !is_absent(&error) => Err(map_error(self.name)(error)),
            _ => Ok(()),
        }
    }

    /// All entries, in pieces of some thousand. Those that are made or removed meanwhile may or may
    /// not be among them.
    pub fn pieces(&self) -> Result<Pieces<K, V>, BpfError> {
        let name = self.name;
        let batches = lookup_batch(IterableMap::map(&self.map))
            .map_err(|source| BpfError::Batch { name, source })?;
        Ok(Pieces { name, batches })
    }
}

/// A table's entries in pieces.
pub struct Pieces<K, V> {
    name: &'static str,
    batches: Batches<K, V>,
}

impl<K: Pod, V: Pod> Iterator for Pieces<K, V> {
    type Item = Result<Vec<(K, V)>, BpfError>;

    fn next(&mut self) -> Option<Self::Item> {
        let name = self.name;
        let piece = self.batches.next()?;
        Some(piece.map_err(|source| BpfError::Batch { name, source }))
    }
}

fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The conntrack maps of one family.
pub struct FamilyConntrack<A: Address + Pod>
where
    FlowKey<A>: Pod,
    NatReturn<A>: Pod,
{
    /// `flows4`/`flows6`
    pub flows: Table<FlowKey<A>, Flow>,
    /// `half_flows4`/`half_flows6`
    pub half_flows: Table<FlowKey<A>, Flow>,
    /// `returns4`/`returns6`
    pub returns: Table<FlowKey<A>, NatReturn<A>>,
    /// `half_returns4`/`half_returns6`
    pub half_returns: Table<FlowKey<A>, NatReturn<A>>,
}

/// All conntrack maps, and the backends that their entries refer to.
pub struct Conntrack {
    /// IPv4.
    pub v4: FamilyConntrack<[u8; 4]>,
    /// IPv6.
    pub v6: FamilyConntrack<[u8; 16]>,
    backends4: Array<MapData, Backend<[u8; 4]>>,
    backends6: Array<MapData, Backend<[u8; 16]>>,
}

impl Conntrack {
    /// Open the maps that are pinned there.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        Ok(Self {
            v4: FamilyConntrack {
                flows: Table::open(pins, "flows4")?,
                half_flows: Table::open(pins, "half_flows4")?,
                returns: Table::open(pins, "returns4")?,
                half_returns: Table::open(pins, "half_returns4")?,
            },
            v6: FamilyConntrack {
                flows: Table::open(pins, "flows6")?,
                half_flows: Table::open(pins, "half_flows6")?,
                returns: Table::open(pins, "returns6")?,
                half_returns: Table::open(pins, "half_returns6")?,
            },
            backends4: array(pins, "backends4")?,
            backends6: array(pins, "backends6")?,
        })
    }

    /// The backends as the data plane has them now.
    pub fn backends(&self) -> Result<Backends, BpfError> {
        let mut backends = BTreeMap::new();
        read_backends(&self.backends4, "backends4", &mut backends)?;
        read_backends(&self.backends6, "backends6", &mut backends)?;
        Ok(backends)
    }
}

fn array<V: Pod>(pins: &Pins, name: &'static str) -> Result<Array<MapData, V>, BpfError> {
    let open = || Array::try_from(Map::Array(MapData::from_pin(pins.map(name))?));
    open().map_err(map_error(name))
}

fn read_backends<A: Address + Into<IpAddr>>(
    map: &Array<MapData, Backend<A>>,
    name: &'static str,
    into: &mut Backends,
) -> Result<(), BpfError>
where
    Backend<A>: Pod,
{
    for (id, backend) in elements(map, name)? {
        if backend.service() != 0 {
            let facts = BackendFacts {
                service: backend.service(),
                epoch: backend.epoch(),
                address: SocketAddr::new(backend.addr().into(), backend.port()),
            };
            into.insert(id, facts);
        }
    }
    Ok(())
}
