//! What can go wrong between xvip and the kernel's routing netlink.

use std::io;

use netlink_packet_core::DecodeError;

/// A netlink request that did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket itself failed.
    #[error("netlink socket: {operation}: {source}")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("{request}: {source}{}", explain(.detail.as_deref()))]
    Refused {
        /// The request in words, with the values asked for.
        request: String,
        /// The kernel's error.
        source: io::Error,
        /// The kernel's own explanation, where it gives one.
        detail: Option<String>,
    },
    /// A reply does not parse.
    #[error("{request}: malformed reply: {detail}")]
    Malformed {
        /// The request in words.
        request: String,
        /// What is wrong with the reply.
        detail: String,
    },
    /// The state changed under every attempt to read it whole.
    #[error("{request}: the state changed during each of {attempts} readings")]
    Inconsistent {
        /// The request in words.
        request: String,
        /// How often it was tried.
        attempts: u32,
    },
}

impl NetlinkError {
    /// The kernel's error number, if the kernel refused.
    pub fn errno(&self) -> Option<nix::errno::Errno> {
        match self {
            Self::Refused { source, .. } | Self::Socket { source, .. } => {
                source.raw_os_error().map(nix::errno::Errno::from_raw)
            }
            Self::Malformed { .. } | Self::Inconsistent { .. } => None,
        }
    }

    /// For `map_err` on the socket's calls.
    pub(super) fn socket(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Socket { operation, source }
    }

    /// For `map_err` on decoding.
    pub(super) fn malformed(request: &str) -> impl Fn(DecodeError) -> Self {
        let request = request.to_owned();
        move |error| Self::Malformed {
            request: request.clone(),
            detail: error.to_string(),
        }
    }
}

fn explain(detail: Option<&str>) -> String {
    detail.map(|text| format!(" ({text})")).unwrap_or_default()
}
