//! `[node]` and `[[peer]]`.

use std::{net::IpAddr, num::NonZeroU8, path::PathBuf, time::Duration};

use lb_common::abi::{DEFAULT_ADOPTION_LIMIT, DEFAULT_NEW_FLOW_LIMIT};

use super::{
    Context,
    model::{AttachMode, CgroupPath, NodeConfig, Peer, Realtime},
    raw::{Mark, Marked, Table, Value},
    value::{self, Fault},
};

/// Default of `node.instance`.
pub(super) const DEFAULT_INSTANCE: &str = "default";
/// Default of `node.state_dir`.
pub(super) const DEFAULT_STATE_DIR: &str = "/run/xvip";

/// That of the kernel's threads for interrupts: nothing here needs to come before those.
const DEFAULT_REALTIME_PRIORITY: u8 = 50;
/// The highest one of Linux (sched(7)).
const MAX_REALTIME_PRIORITY: u16 = 99;

/// A change of a name is followed within half a minute, and a name server hears little of it.
const DEFAULT_RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// More entries per second than any CPU makes.
const MAX_LIMIT: u32 = 10_000_000;

/// `[node]` and what is compared with other sections.
pub(super) struct NodeDraft {
    /// `None` if something is wrong with it.
    pub(super) config: Option<NodeConfig>,
    pub(super) name: Option<String>,
    pub(super) interfaces: Vec<Marked<String>>,
}

/// `[[peer]]` and what is compared with other sections.
pub(super) struct PeerDraft {
    /// `None` if something is wrong with it.
    pub(super) config: Option<Peer>,
    pub(super) mark: Mark,
    pub(super) name: Option<Marked<String>>,
    pub(super) addresses: Vec<Marked<IpAddr>>,
}

/// Read `[node]`.
pub(super) fn read_node(mut table: Table<'_>, context: &Context<'_>) -> NodeDraft {
    let name = read_name(&mut table, &context.facts.hostname);
    let instance = table.get_or("instance", DEFAULT_INSTANCE.to_owned(), |value| {
        value.text(DEFAULT_INSTANCE, value::instance)
    });
    let interfaces = read_interfaces(&mut table);
    let attach = table.get_or("attach", AttachMode::Auto, |value| {
        value.choice(&[
            ("auto", AttachMode::Auto),
            ("native", AttachMode::Native),
            ("tc", AttachMode::Tc),
            ("generic", AttachMode::Generic),
        ])
    });
    let cgroup = table.get_or("cgroup", CgroupPath::Auto, |value| {
        value.text("auto", cgroup)
    });
    let state_dir = table.get_or("state_dir", PathBuf::from(DEFAULT_STATE_DIR), |value| {
        value.text(DEFAULT_STATE_DIR, value::absolute_path)
    });
    let new_flow_limit = table.get_or("new_flow_limit", DEFAULT_NEW_FLOW_LIMIT, limit);
    let adoption_limit = table.get_or("adoption_limit", DEFAULT_ADOPTION_LIMIT, limit);
    let notify_fifo = match table.get("notify_fifo") {
        Some(value) => value
            .text("/run/xvip/events", value::absolute_path)
            .map(|path| Some(path.value)),
        None => Some(None),
    };
    let realtime = table.get_or("realtime", Realtime::Auto, |value| {
        value.choice(&[
            ("auto", Realtime::Auto),
            ("on", Realtime::On),
            ("off", Realtime::Off),
        ])
    });
    let realtime_priority = table.get_or(
        "realtime_priority",
        NonZeroU8::new(DEFAULT_REALTIME_PRIORITY),
        |value| {
            value.number(1..=MAX_REALTIME_PRIORITY, |number| {
                u8::try_from(number).ok().and_then(NonZeroU8::new)
            })
        },
    );
    let resolve_interval = table.get_or("resolve_interval", DEFAULT_RESOLVE_INTERVAL, |value| {
        value.text("30s", |text| value::duration(text, &value::RESOLVE_TIME))
    });
    table.finish();
    let config = || {
        Some(NodeConfig {
            name: name.clone()?,
            instance: instance?,
            interfaces: interfaces
                .iter()
                .map(|interface| interface.value.clone())
                .collect(),
            attach: attach?,
            cgroup: cgroup?,
            state_dir: state_dir?,
            new_flow_limit: new_flow_limit?,
            adoption_limit: adoption_limit?,
            notify_fifo: notify_fifo.clone()?,
            realtime: realtime?,
            realtime_priority: realtime_priority?,
            resolve_interval: resolve_interval?,
        })
    };
    NodeDraft {
        config: config(),
        name,
        interfaces,
    }
}

/// `name`, by default the host name.
fn read_name(table: &mut Table<'_>, hostname: &str) -> Option<String> {
    if let Some(value) = table.get("name") {
        return Some(value.text("master01", value::name)?.value);
    }
    let name = value::name(hostname).ok();
    if name.is_none() {
        table.refuse_missing("name", "write one; this machine's host name is no name");
    }
    name
}

fn read_interfaces(table: &mut Table<'_>) -> Vec<Marked<String>> {
    let hint = "name the uplinks, such as interfaces = [\"eth0\"]";
    let Some(value) = table.need("interfaces", hint) else {
        return Vec::new();
    };
    if value.is_empty_array() {
        value.refuse(Fault::new("is empty", hint));
    }
    value.each(|element| element.text("eth0", value::interface))
}

/// Entries per CPU and second; 0: any number.
fn limit(value: &Value<'_>) -> Option<Marked<u32>> {
    value.large_number(0..=MAX_LIMIT)
}

fn cgroup(text: &str) -> Result<CgroupPath, Fault> {
    match text {
        "auto" => Ok(CgroupPath::Auto),
        "off" => Ok(CgroupPath::Off),
        path => match value::absolute_path(path) {
            Ok(path) => Ok(CgroupPath::Path(path)),
            Err(_) => Err(Fault::new(
                format!("{text:?} is not known"),
                "write \"auto\", \"off\" or the path of a cgroup2 directory",
            )),
        },
    }
}

/// Read one `[[peer]]`.
pub(super) fn read_peer(mut table: Table<'_>) -> PeerDraft {
    let name = table
        .need("name", "write the node's name")
        .and_then(|value| value.text("master02", value::name));
    let one = table.get("address");
    let several = table.get("addresses");
    match (&one, &several) {
        (None, None) => {
            table.refuse_missing("address", "write one such as address = \"10.0.2.11\"");
        }
        (None, Some(list)) if list.is_empty_array() => list.refuse(Fault::new(
            "is empty",
            "write one or more such as [\"10.0.2.11\", \"fd00::11\"]",
        )),
        _ => {}
    }
    let mut addresses: Vec<_> = one
        .and_then(|value| value.text("10.0.2.11", value::host_address))
        .into_iter()
        .collect();
    if let Some(list) = several {
        addresses.extend(list.each(|value| value.text("10.0.2.11", value::host_address)));
    }
    let mark = table.mark().clone();
    table.finish();
    PeerDraft {
        config: name.as_ref().map(|name| Peer {
            name: name.value.clone(),
            addresses: addresses.iter().map(|address| address.value).collect(),
        }),
        mark,
        name,
        addresses,
    }
}
