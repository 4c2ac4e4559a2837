//! `xvip import`: its options.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;

/// Examples in the help.
pub const IMPORT_EXAMPLES: &str = "\
Examples:
  xvip import --keepalived /etc/keepalived/keepalived.conf --haproxy /etc/haproxy/haproxy.cfg \\
      --check-script /etc/keepalived/check_apiserver.sh -o xvip.toml
  xvip import --env keepalived.env --haproxy haproxy.cfg --peer master02=10.0.2.11 -o xvip.toml

Run it on every node with that node's files. Without -o the configuration goes to standard output
and the report to standard error. Exit code 0: every line is mapped, or needs nothing; 6: the file
is written, and lines marked BY HAND need a look; 3: what came out is not valid, and nothing is
written.";

/// What `xvip import` takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Inputs")]
pub struct ImportArgs {
    /// keepalived.conf of this node
    #[arg(long, value_name = "FILE")]
    pub keepalived: Option<PathBuf>,
    /// haproxy.cfg of this node
    #[arg(long, value_name = "FILE")]
    pub haproxy: Option<PathBuf>,
    /// Script that keepalived's `vrrp_script` runs
    #[arg(long, value_name = "FILE")]
    pub check_script: Option<PathBuf>,
    /// Environment of an osixia/keepalived container: a file of NAME=VALUE lines; without FILE, the
    /// environment of this command
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    pub env: Option<Option<PathBuf>>,
    /// Where the configuration goes: a file that is not there yet
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// What the inputs cannot tell.
    #[command(flatten)]
    pub facts: FactArgs,
}

/// What the inputs cannot tell.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What the inputs do not say")]
pub struct FactArgs {
    /// Name of this node [default: that of the server at its address]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Address of this node; may be repeated [default: those of this machine]
    #[arg(long, value_name = "ADDRESS")]
    pub address: Vec<IpAddr>,
    /// Another node that will run xvip; may be repeated [default: keepalived's unicast peers, or the
    /// other servers where this node is one]
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = named_address)]
    pub peer: Vec<(String, IpAddr)>,
    /// Uplink beside those that carry VRRP; may be repeated
    #[arg(long, value_name = "NAME")]
    pub interface: Vec<String>,
    /// Address of a host name in haproxy.cfg; may be repeated
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = named_address)]
    pub host: Vec<(String, IpAddr)>,
    /// Environment variable in haproxy.cfg; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = named_value)]
    pub define: Vec<(String, String)>,
    /// What @NAME lines of keepalived.conf are compared with [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub config_id: Option<String>,
}

impl ImportArgs {
    /// Whether there is anything to import.
    pub fn has_input(&self) -> bool {
        self.keepalived.is_some() || self.haproxy.is_some() || self.env.is_some()
    }
}

fn named_address(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = named_value(text)?;
    let address = address
        .parse()
        .map_err(|_| format!("{address:?} is not an IP address"))?;
    Ok((name, address))
}

fn named_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=...".to_owned()),
    }
}
