//! A backend that is added while xvip runs, as it is asked for and saved.

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{
    config::{
        addition,
        model::{BackendConfig, CheckTarget, Forwarding},
    },
    core::standing::MAX_WEIGHT,
};

/// What a new backend is, but for its name: the keys of `[[service.backend]]`.
#[derive(Clone, Debug, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBackend {
    /// Its address or host name, and port; left out for a backend of the configuration that was removed
    #[arg(value_name = "ADDRESS:PORT", required = false)]
    pub address: String,
    /// Share of new connections relative to the others, 1 to 1000
    #[arg(long, value_name = "N", default_value = "1")]
    #[serde(default = "one")]
    pub weight: NonZeroU32,
    /// It gets new connections only while too few others are up
    #[arg(long)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
    /// How packets get there
    #[arg(long, value_name = "METHOD", value_enum, default_value = "auto")]
    #[serde(default, skip_serializing_if = "ForwardingWord::is_auto")]
    pub forwarding: ForwardingWord,
    /// Address that is checked instead of its own
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_address: Option<IpAddr>,
    /// TCP port that is checked instead of its own
    #[arg(long, value_name = "PORT")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_port: Option<NonZeroU16>,
}

const fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// `forwarding`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ForwardingWord {
    /// Direct server return to peers, else nat
    #[default]
    Auto,
    /// Direct server return
    Dsr,
    /// Full NAT
    Nat,
}

impl ForwardingWord {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands fields over by reference"
    )]
    const fn is_auto(&self) -> bool {
        matches!(self, Self::Auto)
    }
}

impl NewBackend {
    /// The backend of this name; or what is wrong with it by the rules of the file, and what to write
    /// instead.
    pub fn config(&self, name: &str) -> Result<BackendConfig, String> {
        addition::backend_name(name)?;
        if self.weight.get() > MAX_WEIGHT.into() {
            return Err(format!(
                "weight {} is out of range; write 1..{MAX_WEIGHT}",
                self.weight
            ));
        }
        Ok(BackendConfig {
            weight: self.weight,
            backup: self.backup,
            forwarding: match self.forwarding {
                ForwardingWord::Auto => Forwarding::Auto,
                ForwardingWord::Dsr => Forwarding::Dsr,
                ForwardingWord::Nat => Forwarding::Nat,
            },
            check: CheckTarget {
                address: self.check_address,
                port: self.check_port,
            },
            ..BackendConfig::plain(name, addition::backend_address(&self.address)?)
        })
    }
}

impl From<&BackendConfig> for NewBackend {
    fn from(backend: &BackendConfig) -> Self {
        Self {
            address: backend.written().to_string(),
            weight: backend.weight,
            backup: backend.backup,
            forwarding: match backend.forwarding {
                Forwarding::Auto => ForwardingWord::Auto,
                Forwarding::Dsr => ForwardingWord::Dsr,
                Forwarding::Nat => ForwardingWord::Nat,
            },
            check_address: backend.check.address,
            check_port: backend.check.port,
        }
    }
}
