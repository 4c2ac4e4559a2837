//! xvip's controller: VRRP for the VIP, checks of the backends, and reconciliation of the data
//! plane's maps, addresses and neighbours.
//!
//! [`core`] decides, [`io`] acts, [`config`] says what is wanted, [`admin`] answers the operator.

pub mod admin;
pub mod cli;
pub mod config;
pub mod core;
pub mod import;
pub mod io;
pub mod logging;
