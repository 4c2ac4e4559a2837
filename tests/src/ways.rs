//! One service for each way of forwarding and each family, with one backend each, whose sockets
//! are in the test's own hands.
//!
//! ```text
//!     client ---> VIP:1001 ---> m1:7001   local (m1 owns the VIPs)
//!                 VIP:1002 ---> m2:7002   dsr
//!                 VIP:1003 ---> b1:7003   nat
//! ```

use std::{
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
};

use anyhow::{Context, Result};

use crate::{
    cluster::{Builder, Cluster},
    control_plane::BOTH,
    endpoint::{self, Server},
    topology::Node,
};

/// How packets get to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is on the owner.
    Local,
    /// It is on a peer.
    Dsr,
    /// Its node has no xvip.
    Nat,
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Local, Self::Dsr, Self::Nat];

    /// Node of its backend.
    pub fn node(self) -> &'static str {
        match self {
            Self::Local => "m1",
            Self::Dsr => "m2",
            Self::Nat => "b1",
        }
    }

    /// Port of its service.
    pub fn port(self) -> u16 {
        1001 + self as u16
    }

    /// Port of its backend.
    pub fn backend_port(self) -> u16 {
        self.port() + 6000
    }
}

/// A service.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// How its packets go.
    pub way: Way,
    /// Its address.
    pub vip: IpAddr,
}

impl Path {
    /// Where its clients connect.
    pub fn target(self) -> SocketAddr {
        SocketAddr::new(self.vip, self.way.port())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} by {}", self.way, self.target())
    }
}

/// The services, their backends and a client.
#[derive(Debug)]
pub struct Ways {
    /// Masters `m1` (the owner) and `m2`, `b1` without xvip, and the client.
    pub cluster: Cluster,
    servers: Vec<Server>,
}

impl Ways {
    /// All of it, settled.
    pub fn start() -> Result<Self> {
        Self::with(|builder| builder, "", |_| Ok(()))
    }

    /// The same with other nodes (`build`), with further lines of every service, and with changes
    /// to the network before any xvip runs.
    pub fn with(
        build: impl FnOnce(Builder) -> Builder,
        service: &str,
        prepare: impl FnOnce(&mut Cluster) -> Result<()>,
    ) -> Result<Self> {
        let builder = build(Cluster::builder().masters(2).plain_backends(1));
        let mut cluster = builder.prepare(|plane| {
            plane.vips = BOTH.into();
            plane.backends.clear();
        })?;
        let mut services = String::new();
        for way in Way::ALL {
            for vip in BOTH {
                push_service(&mut services, cluster.node(way.node()), way, vip, service)?;
            }
        }
        for node in cluster.masters() {
            cluster.edit_config(&node, |config| config.push_str(&services));
        }
        prepare(&mut cluster)?;
        let listen = |way: Way| Server::listen(cluster.node(way.node()), way.backend_port());
        let servers = Way::ALL.into_iter().map(listen).collect::<Result<_>>()?;
        for node in cluster.masters() {
            cluster.start_xvip(&node)?;
        }
        cluster.wait_settled("m1")?;
        Ok(Self { cluster, servers })
    }

    /// Every service.
    pub fn paths(&self) -> impl Iterator<Item = Path> + use<> {
        let both = |way| BOTH.into_iter().map(move |vip| Path { way, vip });
        Way::ALL.into_iter().flat_map(both)
    }

    /// The backend of a service.
    pub fn server(&self, way: Way) -> Result<&Server> {
        self.servers.get(way as usize).context("no such server")
    }

    /// Stops a backend's listener.
    pub fn close(&mut self, way: Way) {
        if let Some(server) = self.servers.get_mut(way as usize) {
            server.close();
        }
    }

    /// A connection from the client through a service: the client's end and the backend's.
    pub fn connect(&self, path: Path, port: Option<u16>) -> Result<(TcpStream, TcpStream)> {
        self.connect_from(self.cluster.client(), path, port)
    }

    /// The same from another node.
    pub fn connect_from(
        &self,
        node: &Node,
        path: Path,
        port: Option<u16>,
    ) -> Result<(TcpStream, TcpStream)> {
        let client = endpoint::connect(node, port, path.target())
            .with_context(|| format!("cannot connect: {path}"))?;
        let server = self.server(path.way)?.take(&client);
        Ok((client, server.with_context(|| path.to_string())?))
    }
}

fn push_service(to: &mut String, node: &Node, way: Way, vip: IpAddr, service: &str) -> Result<()> {
    let family = if vip.is_ipv4() { "v4" } else { "v6" };
    let backend = SocketAddr::new(node.address_like(vip), way.backend_port());
    write!(
        to,
        "[[service]]\nname = \"{way:?}-{family}\"\naddress = \"{vip}\"\nport = {port}\n{service}\n\
         [service.health]\ntype = \"tcp\"\ninterval = \"500ms\"\nfast_interval = \"100ms\"\nfall = 2\n\
         [[service.backend]]\nname = \"{name}\"\naddress = \"{backend}\"\n\n",
        port = way.port(),
        name = node.name(),
    )
    .context("cannot write to a string")
}

/// A service of one backend without health checks, as a block of a configuration. `more` are further
/// lines of `[[service]]`.
pub fn unchecked_service(
    name: &str,
    address: SocketAddr,
    backend: (&str, SocketAddr),
    more: &str,
) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\naddress = \"{}\"\nport = {}\n{more}\n\
         [service.health]\ntype = \"none\"\n\
         [[service.backend]]\nname = \"{}\"\naddress = \"{}\"\n\n",
        address.ip(),
        address.port(),
        backend.0,
        backend.1,
    )
}

/// `v4` or `v6`.
pub fn family_word(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "v4" } else { "v6" }
}
