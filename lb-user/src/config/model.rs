//! The validated configuration. Values of these types are correct by construction of the
//! validator: nothing downstream checks them again.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    path::PathBuf,
    time::Duration,
};

mod health;
mod notify;

pub use self::health::{
    AgentConfig, BodyMatch, CheckConfig, CheckTarget, ClientCert, CommandConfig, HealthConfig,
    HttpConfig, HttpMethod, HttpVersion, Pattern, StartState, StatusRange, Step, TlsConfig, TlsMin,
    TlsVerify, bearer_token,
};
pub use self::notify::{GroupConfig, NotifyConfig};
use ipnet::IpNet;
use lb_common::{
    abi::{Mac, virtual_mac},
    headers::{IPPROTO_TCP, IPPROTO_UDP},
};

/// Everything that one xvip needs to know. Immutable: a reload makes a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: NodeConfig,
    /// Other nodes that run xvip, in file order (their position numbers them in the map ABI).
    pub peers: Vec<Peer>,
    /// What VRRP instances may track, in file order.
    pub tracks: Vec<TrackConfig>,
    /// VRRP instances in file order.
    pub vrrp: Vec<VrrpConfig>,
    /// What is said of groups of instances, in file order.
    pub groups: Vec<GroupConfig>,
    /// Services in file order.
    pub services: Vec<ServiceConfig>,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Name of this node, default: the host name.
    pub name: String,
    /// Names the pins below the BPF file system; letters, digits, `-` and `_`.
    pub instance: String,
    /// Uplinks that carry the data plane; at least one.
    pub interfaces: Vec<String>,
    /// How the ingress program is attached.
    pub attach: AttachMode,
    /// Where the connect hooks are attached.
    pub cgroup: CgroupPath,
    /// Directory of the admin socket.
    pub state_dir: PathBuf,
    /// Conntrack entries for new flows that a CPU makes in a second; 0: any number.
    pub new_flow_limit: u32,
    /// Flows of another owner that a CPU adopts in a second; 0: any number.
    pub adoption_limit: u32,
    /// Named pipe that every change of state is written to.
    pub notify_fifo: Option<PathBuf>,
    /// When the controller has real-time scheduling.
    pub realtime: Realtime,
    /// Its priority then, 1..=99.
    pub realtime_priority: NonZeroU8,
    /// Between the end of a lookup of a backend's host name and the next one.
    pub resolve_interval: Duration,
}

/// `node.realtime`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Realtime {
    /// Where adverts are too fast for ordinary scheduling.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// `node.attach`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// Native XDP where the driver has it, else tc, else generic XDP (the reason is said at start
    /// and in status).
    Auto,
    /// Native XDP or refuse to start.
    Native,
    /// The tc program.
    Tc,
    /// Generic XDP.
    Generic,
}

/// `node.cgroup`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupPath {
    /// The root of cgroup2.
    Auto,
    /// A cgroup2 directory.
    Path(PathBuf),
    /// No connect hooks.
    Off,
}

/// `[[peer]]`: another node that runs xvip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name.
    pub name: String,
    /// Every address of the node in `address` and `addresses`; at least one.
    pub addresses: Vec<IpAddr>,
}

/// `[[vrrp]]`
// Switches of an operator, each for itself.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VrrpConfig {
    /// Name.
    pub name: String,
    /// Interface that adverts are sent on and the addresses are added to.
    pub interface: String,
    /// Virtual router id, 1..=255.
    pub vrid: NonZeroU8,
    /// Protocol version.
    pub version: VrrpVersion,
    /// Priority 1..=255; 255 is the address owner.
    pub priority: NonZeroU8,
    /// Advertisement interval.
    pub advert_interval: AdvertInterval,
    /// Take over from a lower-priority Active.
    pub preempt: bool,
    /// How long a higher-priority Backup hears a lower-priority Active before it takes over.
    pub preempt_delay: Duration,
    /// How long it is Backup after its start, whatever it hears.
    pub startup_delay: Duration,
    /// Virtual addresses with prefix length, all of one family; at least one.
    pub addresses: Vec<IpNet>,
    /// Source address of adverts; default: the interface's first address of the family
    /// (IPv6: link-local).
    pub unicast_source: Option<IpAddr>,
    /// Unicast peers; empty: multicast.
    pub unicast_peers: Vec<IpAddr>,
    /// Lowest TTL or hop limit that adverts of unicast peers may arrive with; 255: from this link
    /// only.
    pub unicast_min_ttl: u8,
    /// What the checksum of version 3 over IPv4 covers in adverts of this node.
    pub v3_checksum: V3Checksum,
    /// How often the addresses are announced while Active.
    pub announce: AnnounceConfig,
    /// How often the owner asks whether another host has its addresses; zero: never.
    pub duplicate_probe: Duration,
    /// Simple password (v2 only), zero-padded to 8 bytes.
    pub password: Option<Password>,
    /// What changes the priority, beyond the defaults.
    pub track: Vec<Tracked>,
    /// Whether the interface, the data plane on it and the services' backends are tracked.
    pub track_defaults: bool,
    /// Whether the addresses are claimed by the group's virtual MAC, not by the interface's.
    pub use_vmac: bool,
    /// `Accept_Mode` (RFC 9568 section 6.1): see [`Self::accepts`], which counts.
    pub accept: bool,
    /// Instances with the same group belong together: see [`crate::core::controller`].
    pub sync_group: Option<String>,
    /// Who is told of changes of its state.
    pub notify: NotifyConfig,
}

impl VrrpConfig {
    /// Whether the other one is of the same group, or is this one.
    pub fn moves_with(&self, other: &Self) -> bool {
        self.name == other.name || self.sync_group.is_some() && self.sync_group == other.sync_group
    }

    /// Whether this node's own sockets are reachable at the addresses. Those of the address owner
    /// always are.
    pub fn accepts(&self) -> bool {
        self.accept || self.priority == NonZeroU8::MAX
    }

    /// MAC that the addresses are claimed by, if it is not the interface's.
    pub fn virtual_mac(&self) -> Option<Mac> {
        self.use_vmac
            .then(|| virtual_mac(self.vrid.get(), self.is_ipv6()))
    }

    /// Whether the addresses are IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.addresses
            .first()
            .is_some_and(|net| net.addr().is_ipv6())
    }
}

/// Gratuitous ARP and unsolicited NA of an Active router. The first one goes out at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceConfig {
    /// Repeats, 1.1 s apart.
    pub repeat: u8,
    /// One more that long after becoming Active; zero: none.
    pub delay: Duration,
    /// Between refreshes; zero: none.
    pub refresh: Duration,
    /// Announcements of each refresh, 1.1 s apart.
    pub refresh_repeat: u8,
}

impl Default for AnnounceConfig {
    fn default() -> Self {
        Self {
            repeat: 2,
            delay: Duration::from_secs(5),
            refresh: Duration::from_mins(1),
            refresh_repeat: 1,
        }
    }
}

/// What the checksum of a version 3 advert over IPv4 covers: RFC 5798 was read in two ways. Both
/// are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum V3Checksum {
    /// A pseudo-header with the addresses, and the message; as over IPv6. keepalived wants it.
    #[default]
    PseudoHeader,
    /// The message alone: RFC 9568 section 5.2.8.
    Rfc9568,
}

/// Largest change of a priority by one thing that is tracked; more is a fault.
pub const MAX_TRACK_WEIGHT: i16 = 253;

/// An element of `vrrp.track`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Position in [`Config::tracks`].
    pub track: usize,
    /// How much it changes the priority, -253..=253 (of files 254); 0: it is a fault.
    pub weight: i16,
    /// The other way round.
    pub reverse: bool,
}

/// `[[track]]`: something that makes a node more or less fit to own addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackConfig {
    /// Name.
    pub name: String,
    /// What is tracked.
    pub subject: TrackSubject,
    /// Time between two looks at what does not tell by itself.
    pub interval: Duration,
    /// Looks in a row until it is as it should be.
    pub rise: NonZeroU32,
    /// Looks in a row until it is not.
    pub fall: NonZeroU32,
}

/// `track.type` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackSubject {
    /// The service's backend on this node is UP.
    LocalBackend(String),
    /// A backend of the service is not DOWN.
    AnyBackend(String),
    /// An interface is up and has a carrier.
    Interface(String),
    /// The number in a file.
    File(PathBuf),
    /// Processes of this name run.
    Process {
        /// Name of the process.
        name: String,
        /// How many there must be.
        at_least: NonZeroU32,
    },
    /// A program ends with status 0.
    Command {
        /// What is run.
        command: CommandConfig,
        /// Time that a run may take.
        timeout: Duration,
    },
}

impl TrackSubject {
    /// Whether somebody has to look at it again and again.
    pub const fn is_polled(&self) -> bool {
        matches!(
            self,
            Self::File(_) | Self::Process { .. } | Self::Command { .. }
        )
    }
}

/// VRRP protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VrrpVersion {
    /// RFC 3768.
    V2,
    /// RFC 9568 (and its predecessor RFC 5798).
    V3,
}

/// An advertisement interval in centiseconds: 1..=4095 (v3), or whole seconds 1..=255 (v2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdvertInterval(u16);

impl AdvertInterval {
    /// An interval of `centis` centiseconds; `None` for 0.
    pub const fn from_centis(centis: u16) -> Option<Self> {
        if centis == 0 {
            None
        } else {
            Some(Self(centis))
        }
    }

    /// Centiseconds.
    pub const fn centis(self) -> u16 {
        self.0
    }

    /// As a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64 * 10)
    }
}

/// RFC 2338 simple text password, zero-padded. Not shown by `Debug`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Password(pub [u8; 8]);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// `[[service]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Name.
    pub name: String,
    /// VIP.
    pub address: IpAddr,
    /// Port.
    pub port: NonZeroU16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// What a client hears that no backend can serve.
    pub on_no_backend: OnNoBackend,
    /// Who may open flows, and how fast.
    pub sources: SourcesConfig,
    /// What becomes of a backend's flows when it goes DOWN.
    pub on_backend_down: OnBackendDown,
    /// How many backends must be well.
    pub quorum: QuorumConfig,
    /// All backups take part when they are needed, instead of the first one that is UP.
    pub use_all_backups: bool,
    /// How long the weight of a backend grows that was DOWN; zero: it is there at once.
    pub slow_start: Duration,
    /// How the backends are checked.
    pub health: HealthConfig,
    /// Backends in file order; 1..=`MAX_BACKENDS_PER_SERVICE`.
    pub backends: Vec<BackendConfig>,
}

impl ServiceConfig {
    /// Where the backend at this position is checked: address and port are each its own `check_*`,
    /// else those of the service's checks, else the backend's.
    pub fn probe_target(&self, backend: usize) -> Option<SocketAddr> {
        let backend = self.backends.get(backend)?;
        let (own, common) = (backend.check, self.health.target);
        let mut target = backend.address;
        if let Some(address) = own.address.or(common.address) {
            target.set_ip(address);
        }
        if let Some(port) = own.port.or(common.port) {
            target.set_port(port.get());
        }
        Some(target)
    }
}

impl ServiceConfig {
    /// Where the agent of the backend at this position is asked.
    pub fn agent_target(&self, backend: usize) -> Option<SocketAddr> {
        let agent = self.health.agent.as_ref()?;
        let backend = self.backends.get(backend)?;
        let address = backend.agent.address.or(agent.address);
        let port = backend.agent.port.unwrap_or(agent.port);
        Some(SocketAddr::new(
            address.unwrap_or(backend.address.ip()),
            port.get(),
        ))
    }
}

/// `service.protocol`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp {
        /// Seconds of silence that end a flow.
        idle_seconds: NonZeroU16,
    },
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => IPPROTO_TCP,
            Self::Udp { .. } => IPPROTO_UDP,
        }
    }

    /// The name that stands in configuration and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp { .. } => "udp",
        }
    }

    /// Seconds of silence that end a flow; 0 where the protocol itself says so.
    pub const fn idle_seconds(self) -> u16 {
        match self {
            Self::Tcp => 0,
            Self::Udp { idle_seconds } => idle_seconds.get(),
        }
    }
}

/// `service.on_no_backend`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnNoBackend {
    /// A connection is refused at once.
    Reset,
    /// Nothing: the client tries again until its time is up.
    Drop,
}

/// `service.allow`, `service.deny` and `service.source_limit`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcesConfig {
    /// Prefixes of the service's family whose new flows are taken. With any, those of others are
    /// refused.
    pub allow: Vec<IpNet>,
    /// Prefixes whose new flows are refused. The longest prefix that fits decides, and no prefix is
    /// in both.
    pub deny: Vec<IpNet>,
    /// New flows of one source; `None`: any number.
    pub limit: Option<SourceLimit>,
}

/// `service.source_limit`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLimit {
    /// New flows per second.
    pub rate: NonZeroU16,
    /// New flows at once.
    pub burst: NonZeroU16,
}

/// `service.min_healthy` and `service.on_quorum_loss`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumConfig {
    /// With fewer backends that are UP the backups join; with fewer even so, see `on_loss`.
    pub min_healthy: NonZeroU32,
    /// What becomes of new flows then.
    pub on_loss: OnQuorumLoss,
}

/// `service.on_quorum_loss`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnQuorumLoss {
    /// Backends that are DRAINING take new flows with those that are UP.
    UseAll,
    /// New flows are refused.
    Reset,
    /// New flows are not answered.
    Drop,
}

/// `service.on_backend_down`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnBackendDown {
    /// Its clients are reset, so that they connect anew at once.
    Reset,
    /// They are forwarded to it as before.
    Keep,
}

/// `backend.address`
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Address and port.
    Address(SocketAddr),
    /// Host name and port.
    Name {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
}

impl Endpoint {
    /// The port.
    pub const fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name { port, .. } => *port,
        }
    }
}

/// As it is written.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// `[[service.backend]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// Name, unique in its service.
    pub name: String,
    /// Address (the family of the service's) and port. Of a backend by host name the address that the
    /// name stands for; as read from a file, where none is known, the unspecified one of IPv4.
    pub address: SocketAddr,
    /// The host name that `address` comes from.
    pub host: Option<String>,
    /// Share of new flows relative to the other backends.
    pub weight: NonZeroU32,
    /// It takes new flows only while too few others are UP.
    pub backup: bool,
    /// The backend's own `forwarding`, else its service's.
    pub forwarding: Forwarding,
    /// Where it is checked instead of where its service's checks go.
    pub check: CheckTarget,
    /// Where its agent is asked instead of where `service.health.agent` says.
    pub agent: CheckTarget,
}

impl BackendConfig {
    /// One with the defaults of everything but its name and place.
    pub fn plain(name: &str, endpoint: Endpoint) -> Self {
        let (address, host) = Self::place(endpoint);
        Self {
            name: name.to_owned(),
            address,
            host,
            weight: NonZeroU32::MIN,
            backup: false,
            forwarding: Forwarding::Auto,
            check: CheckTarget::default(),
            agent: CheckTarget::default(),
        }
    }

    /// `address` and `host` of a backend that is at `endpoint`.
    pub fn place(endpoint: Endpoint) -> (SocketAddr, Option<String>) {
        match endpoint {
            Endpoint::Address(address) => (address, None),
            Endpoint::Name { host, port } => {
                let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
                (SocketAddr::new(nowhere, port), Some(host))
            }
        }
    }

    /// Where it is: its address; its host name while no address of that is known.
    pub fn endpoint(&self) -> Endpoint {
        match &self.host {
            Some(_) if self.address.ip().is_unspecified() => self.written(),
            _ => Endpoint::Address(self.address),
        }
    }

    /// Where it is by the words of the configuration.
    pub fn written(&self) -> Endpoint {
        match &self.host {
            Some(host) => Endpoint::Name {
                host: host.clone(),
                port: self.address.port(),
            },
            None => Endpoint::Address(self.address),
        }
    }
}

/// `forwarding`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forwarding {
    /// local on this node, dsr on a peer, else nat.
    Auto,
    /// Direct server return.
    Dsr,
    /// Full NAT.
    Nat,
}
