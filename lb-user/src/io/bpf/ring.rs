//! Reading a ring buffer that the data plane writes fixed-size records to.

use std::{io, marker::PhantomData, path::Path};

use aya::{
    Pod,
    maps::{Map, MapData, MapError, RingBuf},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A ring buffer that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Waiting for it.
    #[error("ring buffer: {0}")]
    Register(#[from] io::Error),
}

/// Reads the records of a ring buffer, each a `T`. What a reader takes no other one gets: a ring
/// buffer has one reader.
pub struct RingReader<T> {
    ring: AsyncFd<RingBuf<MapData>>,
    /// Records that are no `T`.
    foreign: u64,
    record: PhantomData<fn() -> T>,
}

impl<T: Pod> RingReader<T> {
    /// A reader of the ring buffer that is pinned at `path`. Records that nobody has read are still
    /// there. Must be called in a tokio runtime.
    pub fn open(path: &Path) -> Result<Self, RingError> {
        let map = Map::from_map_data(MapData::from_pin(path)?)?;
        let ring = RingBuf::try_from(map)?;
        // SAFETY: the ring buffer owns the map's valid descriptor, always returns the same one and
        // keeps it open until it is dropped. The `AsyncFd` owns it and hands it out to this file
        // only, which replaces nothing in it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self {
            ring: ring.map_err(io::Error::from)?,
            foreign: 0,
            record: PhantomData,
        })
    }

    /// The next record that is there already.
    pub fn try_next(&mut self) -> Option<T> {
        take(self.ring.get_mut(), &mut self.foreign)
    }

    /// Wait for the next record. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> io::Result<T> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            if let Some(record) = take(guard.get_inner_mut(), &mut self.foreign) {
                return Ok(record);
            }
            // What has come since that look is still to be reported, and ends the waiting.
            guard.clear_ready();
        }
    }

    /// Records that had another size than a `T`, and were skipped.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }
}

/// The next record of a ring buffer that nobody waits for; those that are no `T` are skipped.
pub(super) fn next_record<T: Pod>(ring: &mut RingBuf<MapData>) -> Option<T> {
    take(ring, &mut 0)
}

/// The next record of this size; others are counted.
fn take<T: Pod>(ring: &mut RingBuf<MapData>, foreign: &mut u64) -> Option<T> {
    loop {
        let item = ring.next()?;
        match record(&item) {
            Some(record) => return Some(record),
            None => *foreign = foreign.saturating_add(1),
        }
    }
}

/// A record from its bytes.
fn record<T: Pod>(bytes: &[u8]) -> Option<T> {
    (bytes.len() == size_of::<T>()).then(|| {
        // SAFETY: there are as many bytes as a `T` has, read without regard to alignment, and
        // every bit pattern is a `T` (`Pod`).
        unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
    })
}

#[cfg(test)]
mod tests {
    use lb_common::abi::events::Event;

    use super::*;

    /// A record is taken by its size alone, wherever it lies in memory.
    #[test]
    fn records_are_taken_by_size() {
        let mut bytes = vec![0u8; 17];
        bytes[1] = 1;
        bytes[5] = 7;
        bytes[9] = 9;
        assert_eq!(record::<Event>(&bytes[1..]), Some(Event::refused(7, 9)));
        assert_eq!(record::<Event>(&bytes), None);
        assert_eq!(record::<Event>(&bytes[..15]), None);
    }
}
