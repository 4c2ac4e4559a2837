//! The admin interface: what an operator asks a running xvip over its Unix socket.
//!
//! [`model`] is the language (requests, answers, the status document).

pub mod model;
