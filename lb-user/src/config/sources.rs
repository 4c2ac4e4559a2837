//! Who may open flows to a service: `service.allow`, `service.deny` and `service.source_limit`.

use std::num::NonZeroU16;

use ipnet::IpNet;

use super::{
    model::{SourceLimit, SourcesConfig},
    raw::{Marked, Refused, Table, Value},
    value::{self, Fault},
};

/// The source rules of a service and what is compared with its address.
pub(super) struct SourcesDraft {
    pub(super) allow: Vec<Marked<IpNet>>,
    pub(super) deny: Vec<Marked<IpNet>>,
    limit: Result<Option<SourceLimit>, Refused>,
}

impl SourcesDraft {
    /// No rules.
    pub(super) const fn none() -> Self {
        Self {
            allow: Vec::new(),
            deny: Vec::new(),
            limit: Ok(None),
        }
    }

    /// The rules, `None` if something is wrong with them.
    pub(super) fn config(&self) -> Option<SourcesConfig> {
        let values = |prefixes: &[Marked<IpNet>]| prefixes.iter().map(|p| p.value).collect();
        Some(SourcesConfig {
            allow: values(&self.allow),
            deny: values(&self.deny),
            limit: self.limit.ok()?,
        })
    }

    /// Every prefix.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = &Marked<IpNet>> {
        self.allow.iter().chain(&self.deny)
    }
}

/// Read the source rules of a service.
pub(super) fn read(table: &mut Table<'_>) -> SourcesDraft {
    SourcesDraft {
        allow: read_prefixes(table, "allow"),
        deny: read_prefixes(table, "deny"),
        limit: match table.get("source_limit") {
            Some(value) => read_limit(&value).map(Some).ok_or(Refused),
            None => Ok(None),
        },
    }
}

fn read_prefixes(table: &mut Table<'_>, key: &'static str) -> Vec<Marked<IpNet>> {
    let Some(value) = table.get(key) else {
        return Vec::new();
    };
    if value.is_empty_array() {
        // Whether an empty list allows nobody or everybody is anyone's guess.
        value.refuse(Fault::new(
            "is empty",
            format!("remove it, or write prefixes such as {key} = [\"10.0.0.0/8\"]"),
        ));
    }
    value.each(|element| element.text("10.0.0.0/8", value::prefix))
}

/// `source_limit = { rate, burst }`; `burst` is a second's flows unless it is written.
fn read_limit(value: &Value<'_>) -> Option<SourceLimit> {
    let mut table = value.table()?;
    let number = |value: &Value<'_>| value.number(1..=u16::MAX, NonZeroU16::new);
    let rate = table
        .need(
            "rate",
            "write the new flows per second that a source may open",
        )
        .and_then(|value| number(&value));
    let rate = rate.map(|rate| rate.value);
    let burst = table.get_or("burst", rate, number);
    table.finish();
    Some(SourceLimit {
        rate: rate?,
        burst: burst?,
    })
}
