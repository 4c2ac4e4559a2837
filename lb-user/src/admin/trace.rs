//! `xvip trace`: which packets are followed, and what is said of each.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use lb_common::{
    abi::events::{FAMILY_V4, FAMILY_V6, TraceFilter},
    headers::TcpHeader,
};
use serde::{Deserialize, Serialize};

use super::flows::QueryError;

/// Which packets are followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceQuery {
    /// The client's network.
    pub client: IpNet,
    /// The client's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_port: Option<u16>,
    /// The VIP; every one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<IpAddr>,
    /// The VIP's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip_port: Option<u16>,
    /// End after so many packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// End after so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

impl TraceQuery {
    /// The VIPs among `known` that packets are followed to.
    pub fn vips(&self, known: impl IntoIterator<Item = IpAddr>) -> Result<Vec<IpAddr>, QueryError> {
        let v4 = self.client.addr().is_ipv4();
        if let Some(vip) = self.vip.filter(|vip| vip.is_ipv4() != v4) {
            let client = self.client;
            return Err(QueryError::Families { client, vip });
        }
        let mut known: Vec<_> = known
            .into_iter()
            .filter(|vip| vip.is_ipv4() == v4)
            .collect();
        known.sort_unstable();
        known.dedup();
        let chosen: Vec<_> = known
            .iter()
            .copied()
            .filter(|known| self.vip.is_none_or(|vip| vip == *known))
            .collect();
        if chosen.is_empty() {
            return Err(QueryError::UnknownVip {
                asked: self.vip.map_or_else(
                    || format!("no address of the family of {}", self.client),
                    |vip| vip.to_string(),
                ),
                known: known.iter().map(ToString::to_string).collect(),
            });
        }
        Ok(chosen)
    }

    /// The filter as the data plane knows it.
    pub fn filter(&self) -> TraceFilter {
        TraceFilter {
            client: bytes(self.client.network()),
            mask: bytes(self.client.netmask()),
            family: if self.client.addr().is_ipv4() {
                FAMILY_V4
            } else {
                FAMILY_V6
            },
            client_port: self.client_port.unwrap_or(0),
            vip_port: self.vip_port.unwrap_or(0),
            ..TraceFilter::default()
        }
    }
}

/// An address as trace maps hold it: IPv4 in the first four bytes.
fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            for (to, from) in bytes.iter_mut().zip(address.octets()) {
                *to = from;
            }
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRecord {
    /// When: microseconds since 1970, to a few milliseconds.
    pub time_us: u64,
    /// What it was, and what became of it.
    #[serde(flatten)]
    pub decision: Decision,
}

/// A packet, and what the data plane decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Interface that it came in through.
    pub interface: String,
    /// Source as it came in.
    pub source: SocketAddr,
    /// Destination as it came in.
    pub destination: SocketAddr,
    /// `"tcp"`, `"udp"`, or a number.
    pub protocol: String,
    /// TCP control bits as a list of words with commas, such as `syn,ack`; empty for others.
    pub flags: String,
    /// Sequence number (TCP).
    pub seq: u32,
    /// Acknowledgement number (TCP).
    pub ack: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// Where in the pipeline it was decided.
    pub stage: String,
    /// Label of the reason.
    pub reason: String,
    /// What was done: `"pass"`, `"drop"`, `"tx"` or `"redirect"`.
    pub verdict: String,
    /// Name of the service.
    pub service: Option<String>,
    /// Name of the backend.
    pub backend: Option<String>,
    /// The packet as it went on; absent if it did not.
    pub out: Option<Out>,
}

/// A packet as it leaves the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Out {
    /// Interface that it goes out through; absent: to this node's own stack.
    pub interface: Option<String>,
    /// Destination MAC, where it goes out.
    pub mac: Option<String>,
    /// Source.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
}

/// TCP control bits by name, in the order of their numbers.
const FLAGS: [(u8, &str); 5] = [
    (TcpHeader::FIN, "fin"),
    (TcpHeader::SYN, "syn"),
    (TcpHeader::RST, "rst"),
    (TcpHeader::PSH, "psh"),
    (TcpHeader::ACK, "ack"),
];

/// Control bits in words.
pub fn flag_words(flags: u8) -> String {
    let set: Vec<_> = FLAGS
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, word)| *word)
        .collect();
    set.join(",")
}

/// Words, with commas, `|` or `+` between them, that name no control bit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no TCP flag: write fin, syn, rst, psh or ack, with commas between them")]
pub struct FlagError(String);

/// Control bits from words, see [`flag_words`].
pub fn parse_flags(text: &str) -> Result<u8, FlagError> {
    text.split([',', '|', '+']).try_fold(0, |flags, word| {
        let word = word.trim().to_ascii_lowercase();
        let found = FLAGS.iter().find(|(_, name)| *name == word);
        found.map(|(bit, _)| flags | bit).ok_or(FlagError(word))
    })
}

/// IP protocols by name.
pub fn protocol_word(protocol: u8) -> String {
    match protocol {
        lb_common::headers::IPPROTO_TCP => "tcp".to_owned(),
        17 => "udp".to_owned(),
        1 => "icmp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// A time of day, UTC, from microseconds since 1970.
#[derive(Clone, Copy)]
pub struct TimeOfDay(pub u64);

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000;
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{hour:02}:{minute:02}:{second:02}.{:03}",
            self.0 / 1000 % 1000
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A packet with a value in every field.
    pub(crate) fn sample() -> Decision {
        Decision {
            interface: "enp0s3".to_owned(),
            source: "192.0.2.7:40000".parse().unwrap(),
            destination: "10.0.2.100:1644".parse().unwrap(),
            protocol: "tcp".to_owned(),
            flags: "syn".to_owned(),
            seq: 1,
            ack: 0,
            length: 74,
            stage: "select".to_owned(),
            reason: "nat".to_owned(),
            verdict: "tx".to_owned(),
            service: Some("apiserver".to_owned()),
            backend: Some("master02".to_owned()),
            out: Some(Out {
                interface: Some("enp0s3".to_owned()),
                mac: Some("08:00:27:00:02:0b".to_owned()),
                source: "10.0.2.100:40000".parse().unwrap(),
                destination: "10.0.2.11:6443".parse().unwrap(),
            }),
        }
    }

    fn query(text: &str) -> TraceQuery {
        serde_json::from_str(text).unwrap()
    }

    /// Host bits do not count, ports are as written, the family is the client's.
    #[test]
    fn the_filter_is_the_clients_network() {
        let filter = query(r#"{"client":"192.0.2.7/24","client_port":5,"vip_port":1644}"#).filter();
        assert_eq!(filter.client[..5], [192, 0, 2, 0, 0]);
        assert_eq!(filter.mask[..5], [255, 255, 255, 0, 0]);
        assert_eq!(
            (filter.family, filter.client_port, filter.vip_port),
            (4, 5, 1644)
        );
        let filter = query(r#"{"client":"2001:db8::7/64"}"#).filter();
        assert_eq!(filter.client[..9], [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0]);
        assert_eq!(filter.mask, [[255; 8], [0; 8]].as_flattened());
        assert_eq!(
            (filter.family, filter.client_port, filter.vip_port),
            (6, 0, 0)
        );
    }

    /// The VIPs are those of the client's family, or the one that was asked for.
    #[test]
    fn vips_are_chosen() {
        let known = ["10.0.2.100", "10.0.2.101", "fd00::1", "10.0.2.100"];
        let known = || known.map(|vip| vip.parse().unwrap());
        let chosen = |text: &str| {
            query(text)
                .vips(known())
                .map(|vips| vips.iter().map(ToString::to_string).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        let all = r#"{"client":"192.0.2.0/24"}"#;
        assert_eq!(chosen(all).unwrap(), ["10.0.2.100", "10.0.2.101"]);
        let one = r#"{"client":"192.0.2.0/24","vip":"10.0.2.101"}"#;
        assert_eq!(chosen(one).unwrap(), ["10.0.2.101"]);
        let unknown = r#"{"client":"192.0.2.0/24","vip":"10.0.2.102"}"#;
        assert_eq!(
            chosen(unknown).unwrap_err(),
            "10.0.2.102 is no VIP of this node (there are: 10.0.2.100, 10.0.2.101)"
        );
        let mixed = r#"{"client":"192.0.2.0/24","vip":"fd00::1"}"#;
        assert!(chosen(mixed).unwrap_err().contains("different families"));
    }

    /// Control bits survive the way to words and back; nonsense is refused.
    #[test]
    fn flags_are_words() {
        for flags in 0..32 {
            let words = flag_words(flags);
            if flags == 0 {
                assert_eq!(words, "");
            } else {
                assert_eq!(parse_flags(&words), Ok(flags), "{words}");
            }
        }
        assert_eq!(parse_flags("SYN|ack"), parse_flags("ack,syn"));
        for bad in ["", "sin", "syn,", "syn ack"] {
            assert!(parse_flags(bad).is_err(), "{bad}");
        }
    }

    /// Midnight, and a time within a day.
    #[test]
    fn times_of_day() {
        assert_eq!(TimeOfDay(0).to_string(), "00:00:00.000");
        let time = ((86_400 + 3_661) * 1000 + 42) * 1000;
        assert_eq!(TimeOfDay(time).to_string(), "01:01:01.042");
    }
}
