//! `xvip flows`: which conntrack entries are asked for, and what is said of each.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::model::Method;

/// Which entries are asked for: those that fit everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowQuery {
    /// The client's network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpNet>,
    /// The VIP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<IpAddr>,
    /// The VIP's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip_port: Option<u16>,
    /// Name of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Name of the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// State.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<FlowState>,
    /// At most so many entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Count them instead.
    pub count: bool,
}

/// State of a flow.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum FlowState {
    /// The client sent SYN, and nothing since.
    Syn,
    /// The client acknowledged something.
    Established,
    /// The client sent FIN.
    Fin,
    /// The client reset the connection.
    Closed,
    /// A UDP flow.
    Udp,
    /// The backend went down: the client is told so.
    Reset,
}

impl fmt::Display for FlowState {
    /// The word that stands in the JSON form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Syn => "syn",
            Self::Established => "established",
            Self::Fin => "fin",
            Self::Closed => "closed",
            Self::Udp => "udp",
            Self::Reset => "reset",
        })
    }
}

/// A conntrack entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEntry {
    /// Client's address and port.
    pub client: SocketAddr,
    /// VIP and port.
    pub vip: SocketAddr,
    /// `"tcp"`, `"udp"`, or a number.
    pub protocol: String,
    /// Name of the service; absent if its backend is no longer configured.
    pub service: Option<String>,
    /// Name of the backend; absent if it is no longer configured.
    pub backend: Option<String>,
    /// How packets get there; absent if the backend is no longer configured.
    pub method: Option<Method>,
    /// State.
    pub state: FlowState,
    /// The entry is among those whose client has not acknowledged anything on this node yet.
    pub half_open: bool,
    /// Source port towards a nat backend.
    pub nat_port: Option<u16>,
    /// Seconds since the client's last packet.
    pub idle_seconds: u32,
}

/// Entries with one service, backend and state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCount {
    /// Name of the service; absent if the backend is no longer configured.
    pub service: Option<String>,
    /// Name of the backend; absent if it is no longer configured.
    pub backend: Option<String>,
    /// State.
    pub state: FlowState,
    /// How many.
    pub flows: u64,
    /// How many of them are half-open.
    pub half_open: u64,
}

/// The names of what entries refer to by ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Names of services by id.
    pub services: BTreeMap<u32, String>,
    /// Backends by id.
    pub backends: BTreeMap<u32, BackendName>,
}

/// A backend, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendName {
    /// Name of its service.
    pub service: String,
    /// Its name.
    pub name: String,
    /// How packets get there.
    pub method: Method,
    /// Its address.
    pub address: SocketAddr,
}

/// A query that names what is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No service has this name.
    #[error("no service is named {name:?} (there are: {})", known.join(", "))]
    UnknownService {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// No backend, or none of the service, has this name.
    #[error("no backend is named {name:?} (there are: {})", known.join(", "))]
    UnknownBackend {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// No VIP of this address and port is configured.
    #[error("{asked} is no VIP of this node (there are: {})", known.join(", "))]
    UnknownVip {
        /// What was asked for.
        asked: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The client and the VIP are of different families.
    #[error("the client {client} and the VIP {vip} are of different families")]
    Families {
        /// The client.
        client: IpNet,
        /// The VIP.
        vip: IpAddr,
    },
}

impl FlowQuery {
    /// Whether the names in it are known.
    pub fn check(&self, directory: &Directory) -> Result<(), QueryError> {
        if let (Some(client), Some(vip)) = (self.client, self.vip)
            && client.addr().is_ipv4() != vip.is_ipv4()
        {
            return Err(QueryError::Families { client, vip });
        }
        let services = directory.names(|backend| Some(&backend.service));
        if let Some(name) = self.service.clone().filter(|name| !services.contains(name)) {
            return Err(QueryError::UnknownService {
                name,
                known: services,
            });
        }
        let in_service = |backend: &&BackendName| {
            let service = self.service.as_ref();
            service.is_none_or(|service| *service == backend.service)
        };
        let backends = directory.names(|backend| Some(backend).filter(in_service).map(|b| &b.name));
        if let Some(name) = self.backend.clone().filter(|name| !backends.contains(name)) {
            return Err(QueryError::UnknownBackend {
                name,
                known: backends,
            });
        }
        Ok(())
    }

    /// Whether the entry is asked for.
    pub fn fits(&self, entry: &FlowEntry) -> bool {
        let named =
            |wanted: &Option<String>, name: &Option<String>| wanted.is_none() || wanted == name;
        self.client
            .is_none_or(|net| net.contains(&entry.client.ip()))
            && self.vip.is_none_or(|vip| vip == entry.vip.ip())
            && self.vip_port.is_none_or(|port| port == entry.vip.port())
            && named(&self.service, &entry.service)
            && named(&self.backend, &entry.backend)
            && self.state.is_none_or(|state| state == entry.state)
    }

    /// Whether entries of IPv4 (or else of IPv6) can fit.
    pub fn wants_family(&self, v4: bool) -> bool {
        let client = self.client.map(|net| net.addr().is_ipv4());
        let vip = self.vip.map(|vip| vip.is_ipv4());
        client.is_none_or(|is| is == v4) && vip.is_none_or(|is| is == v4)
    }
}

impl Directory {
    /// Some names of the backends, each once, sorted.
    fn names<'a>(&'a self, of: impl Fn(&'a BackendName) -> Option<&'a String>) -> Vec<String> {
        let mut names: Vec<_> = self.backends.values().filter_map(of).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Counts of entries: how many, and how many of them half-open.
#[derive(Clone, Debug, Default)]
pub struct Counter(BTreeMap<Kind, (u64, u64)>);

/// Service, backend and state.
type Kind = (Option<String>, Option<String>, FlowState);

impl Counter {
    /// Count one.
    pub fn add(&mut self, entry: FlowEntry) {
        let key = (entry.service, entry.backend, entry.state);
        let (flows, half_open) = self.0.entry(key).or_default();
        *flows += 1;
        *half_open += u64::from(entry.half_open);
    }

    /// The counts by service, backend and state.
    pub fn counts(self) -> impl Iterator<Item = FlowCount> {
        self.0.into_iter().map(
            |((service, backend, state), (flows, half_open))| FlowCount {
                service,
                backend,
                state,
                flows,
                half_open,
            },
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An entry with a value in every field.
    pub(crate) fn sample() -> FlowEntry {
        FlowEntry {
            client: "192.0.2.7:40000".parse().unwrap(),
            vip: "10.0.2.100:1644".parse().unwrap(),
            protocol: "tcp".to_owned(),
            service: Some("apiserver".to_owned()),
            backend: Some("master02".to_owned()),
            method: Some(Method::Nat),
            state: FlowState::Established,
            half_open: false,
            nat_port: Some(40_000),
            idle_seconds: 3,
        }
    }

    fn directory() -> Directory {
        let backend = |service: &str, name: &str| BackendName {
            service: service.to_owned(),
            name: name.to_owned(),
            method: Method::Dsr,
            address: "10.0.2.10:6443".parse().unwrap(),
        };
        Directory {
            services: BTreeMap::new(),
            backends: BTreeMap::from([
                (1, backend("apiserver", "master01")),
                (2, backend("apiserver", "master02")),
                (3, backend("web", "w1")),
            ]),
        }
    }

    fn query(text: &str) -> FlowQuery {
        serde_json::from_str(text).unwrap()
    }

    /// Each filter lets its own through and nothing else.
    #[test]
    fn filters_choose() {
        for (text, fits) in [
            ("{}", true),
            (r#"{"client":"192.0.2.0/24"}"#, true),
            (r#"{"client":"192.0.3.0/24"}"#, false),
            (r#"{"client":"2001:db8::/32"}"#, false),
            (r#"{"vip":"10.0.2.100"}"#, true),
            (r#"{"vip":"10.0.2.101"}"#, false),
            (r#"{"vip_port":1644}"#, true),
            (r#"{"vip_port":1645}"#, false),
            (r#"{"service":"apiserver"}"#, true),
            (r#"{"service":"web"}"#, false),
            (r#"{"backend":"master02"}"#, true),
            (r#"{"backend":"master01"}"#, false),
            (r#"{"state":"established"}"#, true),
            (r#"{"state":"fin"}"#, false),
            (r#"{"backend":"master02","state":"fin"}"#, false),
        ] {
            assert_eq!(query(text).fits(&sample()), fits, "{text}");
        }
    }

    /// A family is not read for nothing.
    #[test]
    fn families_are_chosen() {
        for (text, v4, v6) in [
            ("{}", true, true),
            (r#"{"client":"192.0.2.0/24"}"#, true, false),
            (r#"{"vip":"fd00::1"}"#, false, true),
        ] {
            let query = query(text);
            assert_eq!(
                (query.wants_family(true), query.wants_family(false)),
                (v4, v6)
            );
        }
    }

    /// A name that is not there is an error that says what there is.
    #[test]
    fn unknown_names_are_refused() {
        for (text, error) in [
            (r#"{"service":"web","backend":"w1"}"#, None),
            (
                r#"{"service":"wbe"}"#,
                Some("no service is named \"wbe\" (there are: apiserver, web)"),
            ),
            (
                r#"{"service":"web","backend":"master01"}"#,
                Some("no backend is named \"master01\" (there are: w1)"),
            ),
            (
                r#"{"client":"192.0.2.0/24","vip":"fd00::1"}"#,
                Some("the client 192.0.2.0/24 and the VIP fd00::1 are of different families"),
            ),
        ] {
            let result = query(text).check(&directory());
            assert_eq!(
                result.err().map(|e| e.to_string()).as_deref(),
                error,
                "{text}"
            );
        }
        assert!(serde_json::from_str::<FlowQuery>(r#"{"clinet":"192.0.2.0/24"}"#).is_err());
    }

    /// Counts are by service, backend and state, with the half-open ones apart.
    #[test]
    fn counts_are_grouped() {
        let mut counter = Counter::default();
        let syn = FlowEntry {
            state: FlowState::Syn,
            half_open: true,
            ..sample()
        };
        for entry in [sample(), syn.clone(), sample(), syn, sample()] {
            counter.add(entry);
        }
        let counts: Vec<_> = counter
            .counts()
            .map(|count| (count.state, count.flows, count.half_open))
            .collect();
        let wanted = [(FlowState::Syn, 2, 2), (FlowState::Established, 3, 0)];
        assert_eq!(counts, wanted);
    }
}
