//! What needs a machine of its own, on the kernels that users have: `cargo xtask test --only vm` runs
//! this in guests. On a host, what it lacks is skipped with a reason. Root is needed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed helper is a failed test"
)]

mod devices;
mod journey;
mod neighbours;
mod system;
mod virtio;
