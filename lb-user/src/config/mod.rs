//! Configuration: one TOML file, read raw with positions and validated into the immutable
//! [`model::Config`] that everything else works from.

pub mod model;
