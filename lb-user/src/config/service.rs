//! `[[service]]` and `[[service.backend]]`.

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use super::{
    Context, health,
    model::{
        BackendConfig, CheckTarget, Endpoint, Forwarding, OnBackendDown, OnNoBackend, OnQuorumLoss,
        Protocol, QuorumConfig, ServiceConfig,
    },
    raw::{Mark, Marked, Refused, Table, Value},
    sources::{self, SourcesDraft},
    value::{self, Fault},
};

/// `[[service]]` and what is compared with other sections.
pub(super) struct ServiceDraft {
    /// `None` if something is wrong with it.
    pub(super) config: Option<ServiceConfig>,
    pub(super) mark: Mark,
    pub(super) name: Option<Marked<String>>,
    pub(super) address: Option<Marked<IpAddr>>,
    pub(super) port: Option<Marked<NonZeroU16>>,
    pub(super) protocol: Option<Protocol>,
    pub(super) sources: SourcesDraft,
    pub(super) backends: Vec<BackendDraft>,
}

/// `[[service.backend]]` and what is compared with other sections.
pub(super) struct BackendDraft {
    pub(super) config: Option<BackendConfig>,
    pub(super) mark: Mark,
    pub(super) name: Option<Marked<String>>,
    pub(super) address: Option<Marked<Endpoint>>,
}

/// `service.idle_timeout`
const DEFAULT_IDLE_SECONDS: NonZeroU16 = NonZeroU16::new(60).unwrap();

/// Read one `[[service]]`.
pub(super) fn read(mut table: Table<'_>, context: &Context<'_>) -> ServiceDraft {
    let name = table
        .need("name", "write a name such as \"apiserver\"")
        .and_then(|value| value.text("apiserver", value::name));
    let address = table
        .need("address", "write the VIP, such as \"10.0.2.100\"")
        .and_then(|value| value.text("10.0.2.100", value::vip));
    let port = table
        .need("port", "write the port that clients connect to")
        .and_then(|value| value.number(1..=u16::MAX, NonZeroU16::new));
    let transport = read_transport(&mut table);
    let protocol = read_protocol(&mut table, transport);
    let forwarding = table.get_or("forwarding", Forwarding::Auto, forwarding);
    let on_backend_down = table.get_or("on_backend_down", OnBackendDown::Reset, |value| {
        value.choice(&[
            ("reset", OnBackendDown::Reset),
            ("keep", OnBackendDown::Keep),
        ])
    });
    let on_no_backend = read_on_no_backend(&mut table, transport);
    let quorum = read_quorum(&mut table, transport);
    let min_healthy = table.get("min_healthy");
    let use_all_backups = table.get_or("use_all_backups", false, Value::boolean);
    let slow_start = table.get_or("slow_start", Duration::ZERO, |value| {
        value.text("60s", |text| value::duration(text, &value::SLOW_START))
    });
    let sources = sources::read(&mut table);
    let health = health::read(table.table("health"), transport, context);
    // Where the section is wrong nobody knows: nothing is said of what belongs to it.
    let has_agent = health.as_ref().is_none_or(|health| health.agent.is_some());
    let backends = read_backends(&mut table, forwarding, has_agent);
    if let (Some(value), Some(quorum)) = (min_healthy, &quorum)
        && !backends.is_empty()
        && usize::try_from(quorum.min_healthy.get()).is_ok_and(|wanted| wanted > backends.len())
    {
        let (wanted, there) = (quorum.min_healthy, backends.len());
        value.refuse(Fault::new(
            format!("{wanted} backends of {there} must be up"),
            format!("write at most {there}"),
        ));
    }
    let mark = table.mark().clone();
    table.finish();
    let config = || {
        Some(ServiceConfig {
            name: name.as_ref()?.value.clone(),
            address: address.as_ref()?.value,
            port: port.as_ref()?.value,
            protocol: protocol?,
            on_no_backend: on_no_backend?,
            sources: sources.config()?,
            on_backend_down: on_backend_down?,
            quorum: quorum?,
            use_all_backups: use_all_backups?,
            slow_start: slow_start?,
            health: health?,
            backends: backends
                .iter()
                .map(|backend| backend.config.clone())
                .collect::<Option<_>>()?,
        })
    };
    ServiceDraft {
        config: config(),
        mark,
        name,
        address,
        port,
        protocol,
        sources,
        backends,
    }
}

/// `service.protocol` without what belongs to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

fn read_transport(table: &mut Table<'_>) -> Option<Transport> {
    table.get_or("protocol", Transport::Tcp, |value| {
        value.choice(&[("tcp", Transport::Tcp), ("udp", Transport::Udp)])
    })
}

/// `protocol` with `idle_timeout`, which TCP has no use for.
fn read_protocol(table: &mut Table<'_>, transport: Option<Transport>) -> Option<Protocol> {
    let idle = table.get("idle_timeout");
    match transport? {
        Transport::Tcp => {
            if let Some(value) = idle {
                value.refuse(Fault::new(
                    "is not used with protocol = \"tcp\", which says when a flow ends",
                    "remove it or write protocol = \"udp\"",
                ));
            }
            Some(Protocol::Tcp)
        }
        Transport::Udp => {
            let idle_seconds = match idle {
                Some(value) => value.text("60s", value::idle_timeout)?.value,
                None => DEFAULT_IDLE_SECONDS,
            };
            Some(Protocol::Udp { idle_seconds })
        }
    }
}

fn read_on_no_backend(table: &mut Table<'_>, transport: Option<Transport>) -> Option<OnNoBackend> {
    let value = table.get("on_no_backend");
    match (value, transport) {
        (Some(value), Some(Transport::Udp)) => {
            value.refuse(Fault::new(
                "is not used with protocol = \"udp\", which has no resets",
                "remove it",
            ));
            None
        }
        (Some(value), _) => {
            let choice =
                value.choice(&[("reset", OnNoBackend::Reset), ("drop", OnNoBackend::Drop)]);
            choice.map(|choice| choice.value)
        }
        (None, Some(Transport::Udp)) => Some(OnNoBackend::Drop),
        (None, _) => Some(OnNoBackend::Reset),
    }
}

/// `min_healthy` and `on_quorum_loss`
fn read_quorum(table: &mut Table<'_>, transport: Option<Transport>) -> Option<QuorumConfig> {
    let min_healthy = table.get_or("min_healthy", NonZeroU32::MIN, |value| {
        value.number(1..=160, |number| NonZeroU32::new(number.into()))
    });
    let on_loss = table.get("on_quorum_loss").map(|value| {
        let choice = value.choice(&[
            ("use_all", OnQuorumLoss::UseAll),
            ("reset", OnQuorumLoss::Reset),
            ("drop", OnQuorumLoss::Drop),
        ])?;
        if choice.value == OnQuorumLoss::Reset && transport == Some(Transport::Udp) {
            value.refuse(Fault::new(
                "\"reset\" is not used with protocol = \"udp\", which has no resets",
                "write \"drop\"",
            ));
            return None;
        }
        Some(choice.value)
    });
    Some(QuorumConfig {
        min_healthy: min_healthy?,
        on_loss: on_loss.unwrap_or(Some(OnQuorumLoss::UseAll))?,
    })
}

fn forwarding(value: &Value<'_>) -> Option<Marked<Forwarding>> {
    value.choice(&[
        ("auto", Forwarding::Auto),
        ("dsr", Forwarding::Dsr),
        ("nat", Forwarding::Nat),
    ])
}

/// `inherited`: the service's forwarding, `None` if that is wrong.
fn read_backends(
    table: &mut Table<'_>,
    inherited: Option<Forwarding>,
    has_agent: bool,
) -> Vec<BackendDraft> {
    let hint = "write at least one [[service.backend]]";
    let Some(value) = table.need("backend", hint) else {
        return Vec::new();
    };
    if value.is_empty_array() {
        value.refuse(Fault::new("is empty", hint));
    }
    table
        .tables("backend")
        .into_iter()
        .map(|backend| read_backend(backend, inherited, has_agent))
        .collect()
}

fn read_backend(
    mut table: Table<'_>,
    inherited: Option<Forwarding>,
    has_agent: bool,
) -> BackendDraft {
    let name = table
        .need("name", "write a name such as \"master01\"")
        .and_then(|value| value.text("master01", value::name));
    let address = table
        .need("address", "write one such as \"10.0.2.10:6443\"")
        .and_then(|value| value.text("10.0.2.10:6443", value::backend));
    let weight = table.get_or("weight", NonZeroU32::MIN, |value| {
        value.number(1..=1000, |weight| NonZeroU32::new(weight.into()))
    });
    let backup = table.get_or("backup", false, Value::boolean);
    let forwarding = table.get_or("forwarding", inherited, forwarding);
    let check = read_other_target(&mut table, "check_address", "check_port");
    if !has_agent {
        refuse_agent(&mut table);
    }
    let agent = read_other_target(&mut table, "agent_address", "agent_port");
    let mark = table.mark().clone();
    table.finish();
    let config = || {
        let (address, host) = BackendConfig::place(address.as_ref()?.value.clone());
        Some(BackendConfig {
            name: name.as_ref()?.value.clone(),
            address,
            host,
            weight: weight?,
            backup: backup?,
            forwarding: forwarding?,
            check: check.ok()?,
            agent: agent.ok()?,
        })
    };
    BackendDraft {
        config: config(),
        mark,
        name,
        address,
    }
}

/// Refuse what is written about an agent that nobody asks.
fn refuse_agent(table: &mut Table<'_>) {
    for key in ["agent_address", "agent_port"] {
        if let Some(value) = table.get(key) {
            value.refuse(Fault::new(
                "is not used: agents are asked where service.health.agent says so",
                "write agent = { port = 9777 } into [service.health], or remove it",
            ));
        }
    }
}

/// Where this backend, or its agent, is asked instead.
fn read_other_target(
    table: &mut Table<'_>,
    address: &'static str,
    port: &'static str,
) -> Result<CheckTarget, Refused> {
    let address = health::read_address(table, address);
    let port = health::read_port(table, port);
    Ok(CheckTarget {
        address: address?,
        port: port?,
    })
}
