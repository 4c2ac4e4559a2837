//! What xvip wants of a kernel: which features it uses, since when Linux has them, and what it does
//! where one is missing.
//!
//! Whether a feature is there is found out by trying it (`io/kernel.rs`), not by the kernel's version:
//! distributions carry features back, and options of the build leave them out. The version decides in
//! one place only: a kernel below [`OLDEST`] is refused, unless it has features of younger ones.

use std::fmt;

/// The oldest kernel that xvip runs on.
pub const OLDEST: Version = Version(5, 15);

/// Major and minor version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// The version that a release as of `uname -r` begins with.
    pub fn of(release: &str) -> Option<Self> {
        let mut numbers = release.split(|other: char| !other.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self(next()?, next()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A feature that kernels have or lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Maps of the type `BPF_MAP_TYPE_RINGBUF`.
    RingBuffer,
    /// `SO_NETNS_COOKIE`.
    NetnsCookie,
    /// Programs for `connect()` and `getpeername()` in a cgroup.
    ConnectHooks,
    /// Programs for `sendmsg()` and `recvmsg()` in a cgroup.
    DatagramHooks,
    /// Programs of the type `sk_lookup`.
    ListenerLookup,
    /// XDP and tc programs write to socket maps.
    SockmapUpdate,
    /// `bpf_ktime_get_coarse_ns()` in all programs.
    CoarseClock,
    /// `NTF_EXT_MANAGED`.
    ManagedNeighbours,
    /// XDP programs on frames of several buffers, with `bpf_xdp_load_bytes()`.
    XdpFrags,
    /// `bpf_set_retval()` in programs for `connect()`.
    SetRetval,
    /// tcx links.
    Tcx,
    /// `SOCK_DESTROY`.
    SockDestroy,
    /// `SCHED_FIFO` for a thread of this process.
    Realtime,
    /// The just-in-time compiler of BPF programs.
    Jit,
}

/// What xvip does without a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// It does not start; this is what an operator can do.
    Refuses(&'static str),
    /// It does something else.
    Uses {
        /// What that is.
        instead: &'static str,
        /// What it costs.
        cost: &'static str,
    },
}

impl Feature {
    /// All, in the order in which Linux got them; those that depend on options alone come last.
    pub const ALL: [Self; 14] = [
        Self::DatagramHooks,
        Self::RingBuffer,
        Self::ConnectHooks,
        Self::ListenerLookup,
        Self::SockmapUpdate,
        Self::CoarseClock,
        Self::NetnsCookie,
        Self::ManagedNeighbours,
        Self::XdpFrags,
        Self::SetRetval,
        Self::Tcx,
        Self::SockDestroy,
        Self::Realtime,
        Self::Jit,
    ];

    /// Its name in the status document. Names stay.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingBuffer => "ring_buffer",
            Self::NetnsCookie => "netns_cookie",
            Self::ConnectHooks => "connect_hooks",
            Self::DatagramHooks => "datagram_hooks",
            Self::ListenerLookup => "listener_lookup",
            Self::SockmapUpdate => "sockmap_update",
            Self::CoarseClock => "coarse_clock",
            Self::ManagedNeighbours => "managed_neighbours",
            Self::XdpFrags => "xdp_frags",
            Self::SetRetval => "set_retval",
            Self::Tcx => "tcx",
            Self::SockDestroy => "sock_destroy",
            Self::Realtime => "realtime",
            Self::Jit => "jit",
        }
    }

    /// The first version of Linux that has it, as far as a version decides.
    pub const fn since(self) -> Option<Version> {
        Some(match self {
            Self::DatagramHooks => Version(5, 2),
            Self::RingBuffer | Self::ConnectHooks => Version(5, 8),
            Self::ListenerLookup => Version(5, 9),
            Self::SockmapUpdate => Version(5, 10),
            Self::CoarseClock => Version(5, 11),
            Self::NetnsCookie => Version(5, 14),
            Self::ManagedNeighbours => Version(5, 16),
            Self::XdpFrags => Version(5, 18),
            Self::SetRetval => Version(6, 1),
            Self::Tcx => Version(6, 6),
            Self::SockDestroy | Self::Realtime | Self::Jit => return None,
        })
    }

    /// Whether xvip can be told to do without it. Of the others it uses what it finds.
    pub const fn is_dispensable(self) -> bool {
        matches!(
            self,
            Self::SockmapUpdate | Self::CoarseClock | Self::XdpFrags | Self::SetRetval | Self::Tcx
        )
    }

    /// The build option that can leave it out, or the kernels that took it back.
    pub const fn option(self) -> Option<&'static str> {
        Some(match self {
            Self::ConnectHooks | Self::DatagramHooks => "CONFIG_CGROUP_BPF",
            Self::SockmapUpdate => "not 7.3",
            Self::SockDestroy => "CONFIG_INET_DIAG_DESTROY",
            Self::Realtime => "no CONFIG_RT_GROUP_SCHED, or a cgroup with real-time run time",
            Self::Jit => "CONFIG_BPF_JIT",
            _ => return None,
        })
    }

    /// What xvip does without it.
    pub const fn without(self) -> Without {
        let (instead, cost) = match self {
            Self::RingBuffer | Self::NetnsCookie => {
                return Without::Refuses("run a kernel that has it");
            }
            Self::ConnectHooks => {
                return Without::Refuses("set node.cgroup to \"off\" to do without connect hooks");
            }
            Self::DatagramHooks => (
                "no hooks for datagrams",
                "datagrams that this node's own processes send to a VIP without connecting are not \
                 redirected",
            ),
            Self::ListenerLookup => (
                "no lookup of listeners",
                "a local backend gets connections to the VIP only if it listens on the wildcard address",
            ),
            Self::SockmapUpdate => (
                "listeners that the controller looks for every 5 s",
                "a local backend that listens on the node's address only gets connections to the VIP \
                 some seconds after it has started, and only while a controller runs",
            ),
            Self::CoarseClock => (
                "the exact clock",
                "each packet takes some nanoseconds longer",
            ),
            Self::ManagedNeighbours => (
                "a request to resolve neighbours every 5 s",
                "packets to a neighbour that was forgotten in between are dropped until it answers",
            ),
            Self::XdpFrags => (
                "XDP on frames of one buffer",
                "uplinks whose MTU does not fit one page run tc instead of native XDP",
            ),
            Self::SetRetval => (
                "a plain refusal of connect()",
                "a process of this node gets EPERM instead of ECONNREFUSED when no backend takes its \
                 connection",
            ),
            Self::Tcx => (
                "clsact filters of priority 1",
                "somebody else's filter of priority 1 may stand before them",
            ),
            Self::SockDestroy => (
                "copies of the processes' descriptors (pidfd_getfd)",
                "local connections with a dead backend that no process holds open are not ended",
            ),
            Self::Realtime => (
                "ordinary scheduling",
                "adverts are late where the CPUs are busy: advert_interval should be 100 ms or more",
            ),
            Self::Jit => (
                "the interpreter of BPF programs",
                "each packet takes several times as long (sysctl net.core.bpf_jit_enable=1 helps)",
            ),
        };
        Without::Uses { instead, cost }
    }

    /// Since when, and with which option, Linux has it.
    fn origin(self) -> String {
        let since = self.since().map(|version| format!("Linux {version}"));
        let parts = [since, self.option().map(str::to_owned)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// What came of trying a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Which.
    pub feature: Feature,
    /// Why it cannot be used; `Ok`: it is used.
    pub result: Result<(), String>,
}

/// The kernel of this machine. Features that the configuration does without were not tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// `uname -r`
    pub release: String,
    /// The features that were tried.
    pub tried: Vec<Tried>,
}

/// xvip does not run on this kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(String);

impl Kernel {
    /// Whether the kernel has a feature that was tried.
    pub fn has(&self, feature: Feature) -> bool {
        let mut tried = self.tried.iter();
        tried.any(|tried| tried.feature == feature && tried.result.is_ok())
    }

    /// The features that it lacks, each with why it cannot be used.
    pub fn lacks(&self) -> impl Iterator<Item = (Feature, &str)> {
        self.tried.iter().filter_map(|tried| {
            let why = tried.result.as_ref().err()?;
            Some((tried.feature, why.as_str()))
        })
    }

    /// Whether xvip can run on it.
    pub fn check(&self) -> Result<(), Unsupported> {
        let release = &self.release;
        let needed = self
            .lacks()
            .filter_map(|(feature, why)| match feature.without() {
                Without::Refuses(remedy) => Some((feature, why, remedy)),
                Without::Uses { .. } => None,
            });
        let needed: Vec<_> = needed.collect();
        if self.is_too_old() {
            let lacks = needed.iter().map(|(feature, ..)| words(*feature));
            let lacks = lacks.collect::<Vec<_>>().join(", ");
            let lacks = if lacks.is_empty() {
                String::new()
            } else {
                format!(" (it lacks {lacks})")
            };
            return Err(Unsupported(format!(
                "this kernel, Linux {release}, is too old: xvip needs Linux {OLDEST} or later{lacks}"
            )));
        }
        let Some((feature, why, remedy)) = needed.first() else {
            return Ok(());
        };
        let what = words(*feature);
        Err(Unsupported(format!(
            "this kernel, Linux {release}, lacks {what}: {why}; {remedy}"
        )))
    }

    /// A kernel with features of a later one is what a distribution made of several.
    fn is_too_old(&self) -> bool {
        let is_younger = |feature: &Feature| feature.since().is_some_and(|since| since > OLDEST);
        Version::of(&self.release).is_some_and(|version| version < OLDEST)
            && !Feature::ALL
                .iter()
                .filter(|feature| is_younger(feature))
                .any(|feature| self.has(*feature))
    }

    /// One line for the log on all that is missing; `None`: nothing is.
    pub fn summary(&self) -> Option<String> {
        let missing: Vec<_> = self.lacks().map(|(feature, _)| words(feature)).collect();
        (!missing.is_empty()).then(|| {
            format!(
                "this kernel, Linux {}, lacks {}: `xvip status` says what is done instead",
                self.release,
                missing.join(", ")
            )
        })
    }

    /// Whether an operator should act on what is missing.
    pub fn is_slow(&self) -> bool {
        self.lacks().any(|(feature, _)| feature == Feature::Jit)
    }
}

/// A feature by name, with since when Linux has it.
fn words(feature: Feature) -> String {
    format!("{} ({})", feature.name(), feature.origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(release: &str, lacking: &[Feature]) -> Kernel {
        let tried = Feature::ALL.map(|feature| Tried {
            feature,
            result: if lacking.contains(&feature) {
                Err("refused".to_owned())
            } else {
                Ok(())
            },
        });
        Kernel {
            release: release.to_owned(),
            tried: tried.to_vec(),
        }
    }

    /// What kernels call themselves.
    #[test]
    fn releases_have_versions() {
        for (release, version) in [
            ("5.15.0-91-generic", Some(Version(5, 15))),
            ("6.12.117+deb12-cloud-amd64", Some(Version(6, 12))),
            ("5.14.0-503.el9.x86_64", Some(Version(5, 14))),
            ("7.3", Some(Version(7, 3))),
            ("6", None),
            ("", None),
            ("next-20261201", None),
        ] {
            assert_eq!(Version::of(release), version, "{release}");
        }
        assert!(Version(5, 9) < Version(5, 15) && Version(5, 15) < Version(6, 0));
    }

    /// The list is complete, in the order of the versions, and names are there once.
    #[test]
    fn features_are_listed_by_age() {
        let ages: Vec<_> = Feature::ALL.iter().filter_map(|one| one.since()).collect();
        assert!(ages.is_sorted(), "{ages:?}");
        let mut names = Feature::ALL.map(Feature::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Feature::ALL.len());
        // What may be missing at the oldest kernel has a substitute, or an option that leaves it out.
        for feature in Feature::ALL {
            let refuses = matches!(feature.without(), Without::Refuses(_));
            assert!(!refuses || feature.since() <= Some(OLDEST), "{feature:?}");
        }
    }

    /// A kernel that has everything is fine, and nothing is said of it.
    #[test]
    fn a_complete_kernel_is_fine() {
        let kernel = kernel("6.18.44", &[]);
        assert_eq!(kernel.check(), Ok(()));
        assert_eq!(kernel.summary(), None);
    }

    /// What has a substitute is named in one line and refuses nothing.
    #[test]
    fn one_line_names_all_that_is_missing() {
        let lacking = [Feature::Tcx, Feature::SockDestroy];
        let kernel = kernel("6.1.0-57-cloud-amd64", &lacking);
        assert_eq!(kernel.check(), Ok(()));
        assert_eq!(
            kernel.summary().unwrap(),
            "this kernel, Linux 6.1.0-57-cloud-amd64, lacks tcx (Linux 6.6), sock_destroy \
             (CONFIG_INET_DIAG_DESTROY): `xvip status` says what is done instead"
        );
        assert!(!kernel.is_slow());
    }

    /// An old kernel is refused with what it lacks.
    #[test]
    fn an_old_kernel_is_refused_in_a_sentence() {
        let lacking = [
            Feature::CoarseClock,
            Feature::NetnsCookie,
            Feature::ManagedNeighbours,
            Feature::XdpFrags,
            Feature::SetRetval,
            Feature::Tcx,
        ];
        assert_eq!(
            kernel("5.10.0-43-cloud-amd64", &lacking)
                .check()
                .unwrap_err()
                .to_string(),
            "this kernel, Linux 5.10.0-43-cloud-amd64, is too old: xvip needs Linux 5.15 or later (it \
             lacks netns_cookie (Linux 5.14))"
        );
        // Nothing that is needed is missing, but nobody has tried such a kernel.
        let young: Vec<_> = lacking[2..].to_vec();
        let refusal = kernel("5.14.1", &young).check().unwrap_err().to_string();
        assert!(refusal.ends_with("needs Linux 5.15 or later"), "{refusal}");
        assert_eq!(kernel("5.15.1", &young).check(), Ok(()));
    }

    /// A kernel whose number is old and whose features are young is judged by these.
    #[test]
    fn features_carried_back_count() {
        let lacking = [Feature::Tcx];
        assert_eq!(kernel("5.14.0-503.el9.x86_64", &lacking).check(), Ok(()));
    }

    /// An option that leaves out what is needed: the sentence names it and the remedy.
    #[test]
    fn a_missing_option_is_named() {
        assert_eq!(
            kernel("6.1.0", &[Feature::ConnectHooks])
                .check()
                .unwrap_err()
                .to_string(),
            "this kernel, Linux 6.1.0, lacks connect_hooks (Linux 5.8, CONFIG_CGROUP_BPF): refused; set \
             node.cgroup to \"off\" to do without connect hooks"
        );
    }
}
