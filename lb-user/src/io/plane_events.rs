//! What the data plane tells the controller.

use std::future::pending;

use lb_common::abi::events::Event;
use tracing::warn;

use super::bpf::{
    Pins,
    ring::{RingError, RingReader},
};
use crate::core::controller::Input;

/// The events of the data plane, as inputs.
pub struct PlaneEvents {
    ring: Option<RingReader<Event>>,
}

impl PlaneEvents {
    /// Of the data plane pinned at `pins`. Events of the time without a controller come first.
    pub fn open(pins: &Pins) -> Result<Self, RingError> {
        let ring = RingReader::open(&pins.map("events"))?;
        Ok(Self { ring: Some(ring) })
    }

    /// Wait for the next event. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Input {
        while let Some(ring) = &mut self.ring {
            match ring.next().await {
                Ok(event) => {
                    if let Some(input) = input(&event) {
                        return input;
                    }
                }
                Err(error) => {
                    // Without them backends are checked at their usual times only.
                    warn!(%error, "cannot read the events of the data plane any more");
                    self.ring = None;
                }
            }
        }
        pending().await
    }
}

/// `None`: a newer data plane's event that this controller does not know.
fn input(event: &Event) -> Option<Input> {
    match event.kind() {
        Event::REFUSED => Some(Input::Refused {
            backend: event.backend(),
        }),
        _ => None,
    }
}
