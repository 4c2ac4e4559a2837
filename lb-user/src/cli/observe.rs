//! `xvip flows`, `trace` and `explain`: what they take on the command line.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;

use super::Target;
use crate::admin::{
    explain::ExplainQuery,
    flows::{FlowQuery, FlowState},
    trace::{TraceQuery, flag_words, parse_flags},
};

pub(super) const FLOWS_EXAMPLES: &str = "\
Examples:
  xvip flows --client 192.0.2.0/24
  xvip flows --backend master02 --state established --limit 20
  xvip flows --count
  xvip flows --json | jq -r 'select(.idle_seconds > 600) | .client'

Flows of a backend on this node have no entry: the kernel's socket table is theirs (ss -tn).
With --json each entry, or count, is an object on a line of its own.";

pub(super) const TRACE_EXAMPLES: &str = "\
Examples:
  xvip trace --client 192.0.2.7
  xvip trace --client 192.0.2.0/24 --vip 10.0.2.100:6443 --count 20
  xvip trace --client 2001:db8::/32 --duration 10s --json

Prints a line for each packet until Ctrl-C: what came, what was decided where in the pipeline and
why, and how the packet went on. Times are UTC. One trace at a time; without one, tracing costs nothing.";

pub(super) const EXPLAIN_EXAMPLES: &str = "\
Examples:
  xvip explain 192.0.2.7:40000 10.0.2.100:6443
  xvip explain 192.0.2.7:40000 10.0.2.100:6443 --flags ack
  xvip explain [2001:db8::7]:40000 [fd00::100]:53 --udp --json

Runs the program itself on the live maps, with nothing written and nothing sent: what is printed
is what it would do with that packet now.";

/// What `flows` takes.
#[derive(Clone, Debug, Args)]
pub struct FlowsArgs {
    /// Only clients in this network
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub client: Option<IpNet>,
    /// Only this VIP
    #[arg(long, value_name = "IP[:PORT]")]
    pub vip: Option<VipPort>,
    /// Only this service (`service.name`)
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Only this backend (`backend.name`)
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Only this state
    #[arg(long)]
    pub state: Option<FlowState>,
    /// At most so many entries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Count entries by service, backend and state instead
    #[arg(long, conflicts_with = "limit")]
    pub count: bool,
    /// Print JSON, an object per line: a stable interface for scripts
    #[arg(long)]
    pub json: bool,
    /// Whom to ask.
    #[command(flatten)]
    pub target: Target,
}

impl FlowsArgs {
    /// What is asked for.
    pub fn query(&self) -> FlowQuery {
        FlowQuery {
            client: self.client,
            vip: self.vip.map(|vip| vip.address),
            vip_port: self.vip.and_then(|vip| vip.port),
            service: self.service.clone(),
            backend: self.backend.clone(),
            state: self.state,
            limit: self.limit,
            count: self.count,
        }
    }
}

/// What `trace` takes.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Packets of clients in this network
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub client: IpNet,
    /// Only from this port of the client
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub client_port: Option<u16>,
    /// Only to this VIP
    #[arg(long, value_name = "IP[:PORT]")]
    pub vip: Option<VipPort>,
    /// End after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time, such as 10s
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,
    /// Print JSON, an object per line: a stable interface for scripts
    #[arg(long)]
    pub json: bool,
    /// Whom to ask.
    #[command(flatten)]
    pub target: Target,
}

impl TraceArgs {
    /// What is asked for.
    pub fn query(&self) -> TraceQuery {
        TraceQuery {
            client: self.client,
            client_port: self.client_port,
            vip: self.vip.map(|vip| vip.address),
            vip_port: self.vip.and_then(|vip| vip.port),
            count: self.count,
            duration_ms: self
                .duration
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// What `explain` takes.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// Client's address and port
    #[arg(value_name = "CLIENT:PORT", value_parser = endpoint)]
    pub client: SocketAddr,
    /// VIP and port
    #[arg(value_name = "VIP:PORT", value_parser = endpoint)]
    pub vip: SocketAddr,
    /// A UDP packet instead of a TCP segment
    #[arg(long, conflicts_with = "flags")]
    pub udp: bool,
    /// TCP flags of the segment, with commas between them: fin, syn, rst, psh, ack
    #[arg(long, value_name = "FLAGS", default_value = "syn", value_parser = flags)]
    pub flags: String,
    /// Uplink that the packet comes in through [default: the one towards the client]
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// MAC that the packet comes from [default: that of the next hop towards the client]
    #[arg(long, value_name = "MAC", value_parser = mac)]
    pub from_mac: Option<String>,
    /// Print JSON: a stable interface for scripts
    #[arg(long)]
    pub json: bool,
    /// Whom to ask.
    #[command(flatten)]
    pub target: Target,
}

impl ExplainArgs {
    /// What is asked for.
    pub fn query(&self) -> ExplainQuery {
        ExplainQuery {
            client: self.client,
            vip: self.vip,
            udp: self.udp,
            flags: (!self.udp).then(|| self.flags.clone()),
            interface: self.interface.clone(),
            from_mac: self.from_mac.clone(),
        }
    }
}

/// A VIP, perhaps with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipPort {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: Option<u16>,
}

impl FromStr for VipPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            let port = None;
            return Ok(Self { address, port });
        }
        match text.parse::<SocketAddr>() {
            Ok(both) if both.port() != 0 => Ok(Self {
                address: both.ip(),
                port: Some(both.port()),
            }),
            _ => Err("write IP or IP:PORT, such as 10.0.2.100:6443 or [fd00::100]:6443".to_owned()),
        }
    }
}

/// A network, or an address for itself.
fn network(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse().map(|address: IpAddr| IpNet::from(address)))
        .map(|net| net.trunc())
        .map_err(|_| {
            "write a network or an address, such as 192.0.2.0/24 or 2001:db8::7".to_owned()
        })
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .ok()
        .filter(|endpoint: &SocketAddr| endpoint.port() != 0)
        .ok_or_else(|| "write IP:PORT, such as 10.0.2.100:6443 or [fd00::100]:6443".to_owned())
}

fn flags(text: &str) -> Result<String, String> {
    parse_flags(text)
        .map(flag_words)
        .map_err(|error| error.to_string())
}

fn mac(text: &str) -> Result<String, String> {
    let bytes: Vec<_> = text
        .split(':')
        .map(|part| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() == 2)
        })
        .collect();
    if bytes.len() == 6 && bytes.iter().all(Option::is_some) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("write a MAC such as 08:00:27:00:02:0b".to_owned())
    }
}

/// `<digits>(ms|s|m|h)`, not 0.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let unit = text.find(|c: char| !c.is_ascii_digit());
    let parse = |at| {
        let (number, unit) = text.split_at_checked(at)?;
        let number: u64 = number.parse().ok()?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        number.checked_mul(millis).filter(|millis| *millis != 0)
    };
    unit.and_then(parse)
        .map(Duration::from_millis)
        .ok_or_else(|| "write a number and ms, s, m or h, such as 10s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A VIP with or without a port, in both families.
    #[test]
    fn vips_may_have_ports() {
        for (text, address, port) in [
            ("10.0.2.100", "10.0.2.100", None),
            ("10.0.2.100:1644", "10.0.2.100", Some(1644)),
            ("fd00::100", "fd00::100", None),
            ("[fd00::100]:1644", "fd00::100", Some(1644)),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(text.parse(), Ok(VipPort { address, port }), "{text}");
        }
        for bad in [
            "",
            "10.0.2",
            "10.0.2.100:0",
            "10.0.2.100:x",
            "vip",
            "10.0.2.100/24",
        ] {
            assert!(bad.parse::<VipPort>().is_err(), "{bad}");
        }
    }

    /// A network's host bits do not count; an address stands for itself.
    #[test]
    fn networks_may_be_addresses() {
        for (text, net) in [
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::7", "2001:db8::7/128"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), net);
        }
        for bad in ["", "192.0.2.0/33", "client"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    /// The other words: times, MACs, control bits, endpoints.
    #[test]
    fn words_are_checked() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "10", "s", "0s", "-1s", "1.5s", "1d"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!(mac("08:00:27:00:02:0B").as_deref(), Ok("08:00:27:00:02:0b"));
        for bad in [
            "",
            "08:00:27:00:02",
            "08:00:27:00:02:0b:01",
            "8:0:27:0:2:b",
            "08-00-27-00-02-0b",
        ] {
            assert!(mac(bad).is_err(), "{bad}");
        }
        assert_eq!(flags("ACK,syn").as_deref(), Ok("syn,ack"));
        assert!(flags("urgent").is_err());
        assert!(endpoint("10.0.2.100:6443").is_ok() && endpoint("10.0.2.100").is_err());
    }
}
