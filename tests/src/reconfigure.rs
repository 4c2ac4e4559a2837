//! Changes of a running cluster's configurations.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::{cluster::Cluster, process::output, topology::Node};

impl Cluster {
    /// Changes the configuration of every master; none of them reads it before it is told to.
    pub fn edit_all(&mut self, edit: impl Fn(&mut String)) {
        for node in self.masters() {
            self.edit_config(&node, &edit);
        }
    }

    /// `xvip reload` on a node; what it prints.
    pub fn reload(&self, node: &str) -> Result<String> {
        output(&mut self.cli(node, &["reload"])?)
    }

    /// The same on every master.
    pub fn reload_all(&self) -> Result<()> {
        self.masters()
            .iter()
            .try_for_each(|node| self.reload(node).map(drop))
    }
}

/// Writes lines into the `[[service]]` sections of a VIP.
pub fn service_lines(config: &mut String, vip: IpAddr, lines: &str) {
    let place = format!("address = \"{vip}\"\n");
    *config = config.replace(&place, &format!("{place}{lines}\n"));
}

/// Gives the service of a VIP one more backend, after that of node `known` on the same port.
pub fn add_backend(config: &mut String, vip: IpAddr, known: &Node, port: u16, new: &Node) {
    let section = |node: &Node| {
        let address = SocketAddr::new(node.address_like(vip), port);
        let name = node.name();
        format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n")
    };
    let place = section(known);
    *config = config.replace(&place, &format!("{place}{}", section(new)));
}
