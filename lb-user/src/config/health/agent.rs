//! `service.health.agent`: who else is asked about a backend.

use std::{num::NonZeroU16, time::Duration};

use super::{check_time, read_address};
use crate::config::{
    model::AgentConfig,
    raw::{Refused, Table},
    value,
};

/// Its keys in `[service.health]`.
pub(super) const KEYS: &[&str] = &["agent"];

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Read it, if it is there. `interval` is that of the checks.
pub(super) fn read(
    table: &mut Table<'_>,
    interval: Option<Duration>,
) -> Result<Option<AgentConfig>, Refused> {
    let Some(value) = table.get("agent") else {
        return Ok(None);
    };
    let mut table = value.table().ok_or(Refused)?;
    let port = table
        .need("port", "write the TCP port of the agents")
        .and_then(|value| value.number(1..=u16::MAX, NonZeroU16::new));
    let address = read_address(&mut table, "address");
    let send = table.get_or("send", String::new(), |value| {
        value.text("state\n", value::not_empty)
    });
    let interval = table.get_or("interval", interval, check_time);
    let timeout = table.get_or("timeout", DEFAULT_TIMEOUT, check_time);
    table.finish();
    let config = || {
        Some(AgentConfig {
            port: port?.value,
            address: address.ok()?,
            send: send?,
            interval: interval?,
            timeout: timeout?,
        })
    };
    config().map(Some).ok_or(Refused)
}
