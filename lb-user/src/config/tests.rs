//! What is accepted and what is refused, with the exact words.

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    time::Duration,
};

use proptest::prelude::*;

use super::{model::*, *};

/// A valid configuration that the tests change here and there.
const BASE: &str = include_str!("../../tests/fixtures/config/base.toml");

/// Changes of [`BASE`] and the errors that they make.
const REFUSED: &str = include_str!("../../tests/fixtures/config/refused.txt");

/// The configuration that the project is specified by, every section once.
const EXAMPLE: &str = include_str!("../../tests/fixtures/config/example.toml");

fn facts() -> HostFacts {
    HostFacts {
        hostname: "node-a".to_owned(),
    }
}

/// The files that the tests name, below /etc.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let content = match path.to_str() {
        Some("/etc/good.secret") => "pass1122\n",
        Some("/etc/check") => "#!/bin/sh\n",
        Some("/etc/long.secret") => "pass11223\n",
        Some("/etc/ca.crt") => {
            "text\n-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
        }
        Some("/etc/client.key") => {
            "-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n"
        }
        _ => return Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    Ok(content.as_bytes().to_vec())
}

fn read(text: &str) -> Result<Config, ConfigErrors> {
    parse(text, "/etc/xvip.toml", &facts(), &read_file)
}

/// [`BASE`] with each of `edits` (old, new) made at the one place where old stands.
fn edited(edits: &[(&str, &str)]) -> String {
    edits.iter().fold(BASE.to_owned(), |text, (old, new)| {
        assert_eq!(text.matches(old).count(), 1, "{old}");
        text.replace(old, new)
    })
}

/// The errors of `text`, without the file's name.
fn errors(text: &str) -> Vec<String> {
    let errors = read(text).err().map_or_else(Vec::new, |errors| {
        errors.to_string().lines().map(str::to_owned).collect()
    });
    let short = |line: &String| line.trim_start_matches("/etc/xvip.toml:").to_owned();
    errors.iter().map(short).collect()
}

/// One paragraph of [`REFUSED`].
#[derive(Default)]
struct Case {
    /// Lines of [`BASE`], each group unique in it, and what stands there instead.
    edits: Vec<(String, String)>,
    errors: Vec<String>,
}

impl Case {
    fn parse(paragraph: &str) -> Self {
        let mut case = Self::default();
        let mut last = None;
        for line in paragraph.lines() {
            let mut chars = line.chars();
            let kind = chars.next();
            let text = chars.as_str().strip_prefix(' ').unwrap_or_default();
            if kind == Some('-') && last != kind {
                case.edits.push((String::new(), String::new()));
            }
            match (kind, case.edits.last_mut()) {
                (Some('-'), Some((old, _))) => writeln!(old, "{text}").unwrap(),
                (Some('+'), Some((_, new))) => writeln!(new, "{text}").unwrap(),
                (Some('!'), _) => case.errors.push(text.to_owned()),
                (Some('#'), _) => {}
                _ => panic!("{line}"),
            }
            last = kind;
        }
        case
    }
}

/// Every rule refuses what breaks it, at the right place and in the right words.
#[test]
fn refuses_what_breaks_a_rule() {
    let cases: Vec<_> = REFUSED
        .split("\n\n")
        .map(Case::parse)
        .filter(|case| !case.edits.is_empty())
        .collect();
    assert!(cases.len() > 100);
    for case in cases {
        let edits: Vec<_> = case
            .edits
            .iter()
            .map(|(old, new)| (old.as_str(), new.as_str()))
            .collect();
        assert!(!case.errors.is_empty(), "{edits:?}");
        assert_eq!(errors(&edited(&edits)), case.errors, "{edits:?}");
    }
}

/// What is found in one run is found together, in the order of the file.
#[test]
fn reports_everything_at_once() {
    let text = "[[vrrp]]\nname = \"a\"\ninterface = \"eth1\"\nvrid = 300\npriorty = 1\n\
        addresses = [\"10.0.2.100\"]\n[node]\ninterfaces = [\"eth0\"]\nattach = 3\n";
    assert_eq!(
        errors(text),
        [
            r#"3:13: vrrp[0].interface: "eth1" is not one of node.interfaces; write "eth0" or add it there"#,
            "4:8: vrrp[0].vrid: 300 is out of range; write 1..255",
            r#"5:1: vrrp[0].priorty: unknown key; did you mean "priority"?"#,
            r#"6:14: vrrp[0].addresses[0]: "10.0.2.100" has no prefix length; write the one of the network, such as "10.0.2.100/24""#,
            r#"9:10: node.attach: found an integer; write "auto", "native", "tc" or "generic""#,
        ]
    );
}

/// An empty file lacks the one key that has no default.
#[test]
fn needs_interfaces() {
    let missing =
        r#"1:1: node.interfaces: is missing; name the uplinks, such as interfaces = ["eth0"]"#;
    assert_eq!(errors(""), [missing]);
}

/// The name of the file, the key and the hint are there as values, too.
#[test]
fn errors_have_parts() {
    let errors = read("node.interfaces = [\"eth0\"]\nnode.nam = 1\n").unwrap_err();
    assert_eq!(
        errors.errors(),
        [ConfigError {
            file: "/etc/xvip.toml".to_owned(),
            line: 2,
            column: 6,
            key: "node.nam".to_owned(),
            problem: "unknown key".to_owned(),
            hint: "did you mean \"name\"?".to_owned(),
        }]
    );
    assert_eq!(
        errors.to_string(),
        "/etc/xvip.toml:2:6: node.nam: unknown key; did you mean \"name\"?"
    );
}

/// A host name that cannot be a name is no default.
#[test]
fn checks_the_host_name() {
    let facts = HostFacts {
        hostname: String::new(),
    };
    let errors = parse("node.interfaces = [\"eth0\"]", "f", &facts, &read_file).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "f:1:1: node.name: is missing; write one; this machine's host name is no name"
    );
}

/// Columns count characters, not bytes.
#[test]
fn counts_columns_in_characters() {
    let text = "node = { name = \"m\u{fc}ller\", interfaces = [\"\"] }";
    assert_eq!(
        errors(text),
        [
            r#"1:41: node.interfaces[0]: "" is not an interface name; write 1 to 15 characters without '/', ':' and spaces, such as "eth0""#
        ]
    );
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The example of the documentation means what it says.
#[test]
fn reads_the_example() {
    let expected = Config {
        node: NodeConfig {
            name: "master01".to_owned(),
            instance: "default".to_owned(),
            interfaces: vec!["enp0s3".to_owned()],
            attach: AttachMode::Auto,
            cgroup: CgroupPath::Auto,
            state_dir: PathBuf::from("/run/xvip"),
            new_flow_limit: 20_000,
            adoption_limit: 20_000,
            notify_fifo: None,
            realtime: Realtime::Auto,
            realtime_priority: NonZeroU8::new(50).unwrap(),
            resolve_interval: Duration::from_secs(30),
        },
        peers: vec![Peer {
            name: "master02".to_owned(),
            addresses: vec![ip("10.0.2.11")],
        }],
        tracks: vec![],
        vrrp: vec![VrrpConfig {
            name: "control-plane".to_owned(),
            interface: "enp0s3".to_owned(),
            vrid: NonZeroU8::new(51).unwrap(),
            version: VrrpVersion::V2,
            priority: NonZeroU8::new(200).unwrap(),
            advert_interval: AdvertInterval::from_centis(100).unwrap(),
            preempt: true,
            preempt_delay: Duration::ZERO,
            startup_delay: Duration::ZERO,
            addresses: vec!["10.0.2.100/24".parse().unwrap()],
            unicast_source: Some(ip("10.0.2.10")),
            unicast_peers: vec![ip("10.0.2.11")],
            unicast_min_ttl: 255,
            v3_checksum: V3Checksum::default(),
            announce: AnnounceConfig::default(),
            duplicate_probe: Duration::from_secs(30),
            password: Some(Password(*b"pass1122")),
            track: vec![],
            track_defaults: true,
            use_vmac: false,
            accept: true,
            sync_group: None,
            notify: NotifyConfig::default(),
        }],
        groups: vec![],
        services: vec![ServiceConfig {
            name: "apiserver".to_owned(),
            address: ip("10.0.2.100"),
            port: NonZeroU16::new(1644).unwrap(),
            protocol: Protocol::Tcp,
            on_no_backend: OnNoBackend::Reset,
            sources: SourcesConfig::default(),
            on_backend_down: OnBackendDown::Reset,
            quorum: QuorumConfig {
                min_healthy: NonZeroU32::MIN,
                on_loss: OnQuorumLoss::UseAll,
            },
            use_all_backups: false,
            slow_start: Duration::ZERO,
            health: default_health(),
            backends: vec![BackendConfig {
                name: "master01".to_owned(),
                address: SocketAddr::from((Ipv4Addr::new(10, 0, 2, 10), 6443)),
                host: None,
                weight: NonZeroU32::MIN,
                backup: false,
                forwarding: Forwarding::Auto,
                check: CheckTarget::default(),
                agent: CheckTarget::default(),
            }],
        }],
    };
    assert_eq!(read(EXAMPLE), Ok(expected));
}

/// `accept` is about nodes that do not own the addresses.
#[test]
fn the_address_owner_accepts_whatever_is_written() {
    let with = |priority: u8, line: &str| {
        let text = EXAMPLE.replace("vrid = 51\n", &format!("vrid = 51\n{line}\n"));
        text.replace("priority = 200 ", &format!("priority = {priority} "))
    };
    let accepts = |priority, line| {
        let text = with(priority, line);
        let vrrp = read(&text).unwrap().vrrp.remove(0);
        (vrrp.accept, vrrp.accepts())
    };
    assert_eq!(accepts(254, ""), (true, true));
    assert_eq!(accepts(254, "accept = true"), (true, true));
    assert_eq!(accepts(254, "accept = false"), (false, false));
    assert_eq!(accepts(255, "accept = false"), (false, true));
    assert!(read(&with(254, "accept = \"no\"")).is_err());
}

/// Backups, a quorum and a slow start: what is written is what is meant, and what cannot be is refused.
#[test]
fn reads_what_recoveries_and_losses_need() {
    let with = |service: &str, backend: &str| {
        let text = EXAMPLE.replace("port = 1644\n", &format!("port = 1644\n{service}\n"));
        text + backend
    };
    let lines =
        "min_healthy = 1\non_quorum_loss = \"drop\"\nuse_all_backups = true\nslow_start = \"60s\"";
    let service = read(&with(lines, "\nbackup = true\n"))
        .unwrap()
        .services
        .remove(0);
    let quorum = (service.quorum.min_healthy.get(), service.quorum.on_loss);
    assert_eq!(quorum, (1, OnQuorumLoss::Drop));
    assert_eq!(service.slow_start, Duration::from_mins(1));
    assert!(service.use_all_backups && service.backends[0].backup);
    for (line, expected) in [
        (
            "min_healthy = 2",
            "service[0].min_healthy: 2 backends of 1 must be up; write at most 1",
        ),
        (
            "min_healthy = 0",
            "service[0].min_healthy: 0 is out of range; write 1..160",
        ),
        (
            "slow_start = \"2h\"",
            "service[0].slow_start: \"2h\" is not a duration",
        ),
        (
            "on_quorum_loss = \"panic\"",
            "service[0].on_quorum_loss: \"panic\" is not known",
        ),
    ] {
        let errors = errors(&with(line, ""));
        assert!(errors[0].contains(expected), "{errors:?}");
    }
    let udp = "protocol = \"udp\"\non_quorum_loss = \"reset\"";
    let errors = errors(&with(udp, ""));
    assert!(
        errors
            .iter()
            .any(|error| error.contains("which has no resets")),
        "{errors:?}"
    );
}

fn default_health() -> HealthConfig {
    let tls = TlsConfig {
        verify: TlsVerify::None,
        server_name: None,
        client: None,
        min: TlsMin::V12,
    };
    let http = HttpConfig {
        path: "/readyz".to_owned(),
        method: HttpMethod::Get,
        version: HttpVersion::V11,
        host: None,
        headers: Vec::new(),
        expect_status: vec![StatusRange::only(200)],
        expect_body: None,
        bearer_token_file: None,
        keep_alive: true,
    };
    HealthConfig {
        check: CheckConfig::Https(tls, http),
        target: CheckTarget::default(),
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        rise: NonZeroU32::new(2).unwrap(),
        fall: NonZeroU32::new(3).unwrap(),
        fast_interval: Duration::from_millis(500),
        down_interval: Duration::from_secs(2),
        spread: 10,
        start: StartState::Probe,
        agent: None,
    }
}

/// The same with version 3 and a password is refused: the example shows one that needs version 2.
#[test]
fn refuses_the_example_with_version_3() {
    assert_eq!(
        errors(&EXAMPLE.replace("version = 2", "version = 3")),
        [
            "25:8: vrrp[0].auth: VRRP version 3 has no authentication; remove it or write version = 2"
        ]
    );
}

/// Everything that has a default can be left out.
#[test]
fn fills_in_defaults() {
    let config = read(
        "node.interfaces = [\"eth0\"]\n\
        [[vrrp]]\nname = \"v\"\ninterface = \"eth0\"\nvrid = 1\naddresses = [\"fd00::100/64\"]\n\
        [[service]]\nname = \"s\"\naddress = \"fd00::100\"\nport = 443\n\
        [[service.backend]]\nname = \"b\"\naddress = \"[fd00::10]:6443\"\n",
    )
    .unwrap();
    assert_eq!(
        config.node,
        NodeConfig {
            name: "node-a".to_owned(),
            instance: "default".to_owned(),
            interfaces: vec!["eth0".to_owned()],
            attach: AttachMode::Auto,
            cgroup: CgroupPath::Auto,
            state_dir: PathBuf::from("/run/xvip"),
            new_flow_limit: 20_000,
            adoption_limit: 20_000,
            notify_fifo: None,
            realtime: Realtime::Auto,
            realtime_priority: NonZeroU8::new(50).unwrap(),
            resolve_interval: Duration::from_secs(30),
        }
    );
    let vrrp = &config.vrrp[0];
    assert_eq!(vrrp.version, VrrpVersion::V3);
    assert_eq!(vrrp.priority.get(), 100);
    assert_eq!(vrrp.advert_interval.centis(), 100);
    assert!(vrrp.preempt);
    assert_eq!(vrrp.preempt_delay, Duration::ZERO);
    assert_eq!((vrrp.unicast_source, vrrp.password), (None, None));
    assert!(vrrp.unicast_peers.is_empty());
    assert_eq!(vrrp.unicast_min_ttl, 255);
    assert_eq!(vrrp.v3_checksum, V3Checksum::PseudoHeader);
    let service = &config.services[0];
    assert_eq!(service.protocol, Protocol::Tcp);
    assert_eq!(service.on_no_backend, OnNoBackend::Reset);
    assert_eq!(service.sources, SourcesConfig::default());
    assert_eq!(service.on_backend_down, OnBackendDown::Reset);
    assert_eq!(service.health, default_health());
    assert_eq!(service.backends[0].weight.get(), 1);
    assert_eq!(service.backends[0].forwarding, Forwarding::Auto);
}

/// A UDP service: its flows end by silence, a check says which TCP port it asks, and the VIP's TCP
/// port of the same number may be another service's.
#[test]
fn reads_udp_services() {
    let second = |health: &str, more: &str| {
        let text = format!(
            "\n[[service]]\nname = \"dns\"\naddress = \"10.0.2.100\"\nport = 1644\n\
            protocol = \"udp\"\n{more}\n[service.health]\n{health}\n\
            [[service.backend]]\nname = \"b\"\naddress = \"10.0.2.10:6443\"\n"
        );
        read(&edited(&[("#end", &text)]))
            .unwrap()
            .services
            .remove(1)
    };
    let udp = |seconds| Protocol::Udp {
        idle_seconds: NonZeroU16::new(seconds).unwrap(),
    };
    let unchecked = second("type = \"none\"", "");
    assert_eq!(unchecked.protocol, udp(60));
    assert_eq!(unchecked.health.check, CheckConfig::None);
    let checked = second("type = \"tcp\"\nport = 53", "idle_timeout = \"18.5m\"");
    assert_eq!(checked.protocol, udp(1110));
    assert_eq!(checked.health.target.port, NonZeroU16::new(53));
    assert_eq!(checked.health.check, CheckConfig::Tcp(Vec::new()));
}

/// Prefixes that include each other are no contradiction; a burst is a second's flows unless it is
/// written.
#[test]
fn reads_source_rules() {
    let text = edited(&[(
        "forwarding = \"auto\"",
        "allow = [\"10.0.0.0/8\", \"10.1.2.3/32\"]\ndeny = [\"10.1.0.0/16\", \"0.0.0.0/0\"]\n\
        source_limit = { rate = 50 }\non_no_backend = \"drop\"",
    )]);
    let service = read(&text).unwrap().services.remove(0);
    let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect();
    let number = |number| NonZeroU16::new(number).unwrap();
    assert_eq!(service.on_no_backend, OnNoBackend::Drop);
    assert_eq!(
        service.sources,
        SourcesConfig {
            allow: nets(&["10.0.0.0/8", "10.1.2.3/32"]),
            deny: nets(&["10.1.0.0/16", "0.0.0.0/0"]),
            limit: Some(SourceLimit {
                rate: number(50),
                burst: number(50),
            }),
        }
    );
}

/// Limits go beyond 16 bits, and 0 is none.
#[test]
fn reads_limits_of_new_flows() {
    let text = edited(&[(
        "attach = \"auto\"",
        "attach = \"auto\"\nnew_flow_limit = 10000000\nadoption_limit = 0",
    )]);
    let node = read(&text).unwrap().node;
    assert_eq!((node.new_flow_limit, node.adoption_limit), (10_000_000, 0));
}

/// What other VRRP speakers may want otherwise.
#[test]
fn reads_how_adverts_are_sent_and_accepted() {
    let text = edited(&[(
        "priority = 200",
        "v3_checksum = \"rfc9568\"\nunicast_min_ttl = 64\ngarp_repeat = 0\ngarp_delay = \"0s\"\n\
         garp_refresh = \"10s\"\ngarp_refresh_repeat = 2\nduplicate_probe = \"0s\"",
    )]);
    let vrrp = read(&text).unwrap().vrrp.remove(0);
    assert_eq!(vrrp.v3_checksum, V3Checksum::Rfc9568);
    assert_eq!(vrrp.unicast_min_ttl, 64);
    let announce = AnnounceConfig {
        repeat: 0,
        delay: Duration::ZERO,
        refresh: Duration::from_secs(10),
        refresh_repeat: 2,
    };
    assert_eq!(vrrp.announce, announce);
    assert_eq!(vrrp.duplicate_probe, Duration::ZERO);
}

/// Everything that can be tracked, and what instances make of it.
#[test]
fn reads_tracking() {
    let tracks = "\n\
        [[track]]\nname = \"own\"\ntype = \"local_backend\"\nservice = \"apiserver\"\nweight = -20\n\
        [[track]]\nname = \"any\"\ntype = \"any_backend\"\nservice = \"apiserver\"\n\
        [[track]]\nname = \"wan\"\ntype = \"interface\"\ninterface = \"eth1\"\n\
        [[track]]\nname = \"disk\"\ntype = \"file\"\nfile = \"/run/disk\"\ninterval = \"5s\"\n\
        [[track]]\nname = \"etcd\"\ntype = \"process\"\nprocess = \"etcd\"\nat_least = 2\nrise = 2\nfall = 3\n";
    let references = "vrid = 51\nsync_group = \"both\"\ntrack_defaults = false\ntrack = [\"own\", \"wan\", \
        { name = \"disk\", weight = 254, reverse = true }]";
    let text = edited(&[("#end", tracks), ("vrid = 51", references)]);
    let config = read(&text).unwrap();
    let subjects: Vec<_> = config.tracks.iter().map(|t| t.subject.clone()).collect();
    let service = || "apiserver".to_owned();
    let process = TrackSubject::Process {
        name: "etcd".to_owned(),
        at_least: NonZeroU32::new(2).unwrap(),
    };
    assert_eq!(
        subjects,
        [
            TrackSubject::LocalBackend(service()),
            TrackSubject::AnyBackend(service()),
            TrackSubject::Interface("eth1".to_owned()),
            TrackSubject::File("/run/disk".into()),
            process,
        ]
    );
    assert_eq!(config.tracks[3].interval, Duration::from_secs(5));
    assert_eq!(
        (config.tracks[4].rise.get(), config.tracks[4].fall.get()),
        (2, 3)
    );
    let tracked = |track, weight, reverse| Tracked {
        track,
        weight,
        reverse,
    };
    let vrrp = &config.vrrp[0];
    let expected = [
        tracked(0, -20, false),
        tracked(2, 0, false),
        tracked(3, 254, true),
    ];
    assert_eq!(vrrp.track, expected);
    assert!(!vrrp.track_defaults);
    assert_eq!(vrrp.sync_group.as_deref(), Some("both"));
}

/// What is wrong with tracking is said where it stands.
#[test]
fn refuses_wrong_tracking() {
    let tracks = "\n\
        [[track]]\nname = \"own\"\ntype = \"local_backend\"\nservice = \"etcd\"\ninterval = \"1s\"\n\
        [[track]]\nname = \"disk\"\ntype = \"file\"\nfile = \"/run/disk\"\nweight = 255\nat_least = 2\n\
        [[track]]\nname = \"disk\"\ntype = \"process\"\nfile = \"/run/disk\"\nprocess = \"/usr/bin/etcd\"\n\
        [[track]]\nname = \"what\"\ntype = \"script\"\n";
    let references =
        "vrid = 51\ntrack = [\"own\", \"own\", \"lost\", { name = \"own\", weight = -254 }]";
    let text = edited(&[("#end", tracks), ("vrid = 51", references)]);
    let found = errors(&text);
    for expected in [
        "track[0].service: no [[service]] is named \"etcd\"; name the service whose backends count",
        "track[0].interval: is not used by this type; remove it or write type = \"file\", \"process\" or \"command\"",
        "track[1].weight: 255 is out of range; write -254..254",
        "track[1].at_least: is not used by this type; remove it or write type = \"process\"",
        "track[2].file: is not used by this type; remove it or write type = \"file\"",
        "track[2].process: \"/usr/bin/etcd\" is not the name of a process; write the name without its \
         path, such as \"kube-apiserver\"",
        "track[2].name: \"disk\" is already the name of track[1]; choose another",
        "track[3].type: \"script\" is not known; write \"local_backend\", \"any_backend\", \"interface\", \
         \"file\", \"process\" or \"command\"",
        "vrrp[0].track[1]: \"own\" is there already; write it once",
        "vrrp[0].track[2]: no [[track]] is named \"lost\"; add one, or write another name",
        "vrrp[0].track[3].weight: -254 is out of range; write -253..253",
    ] {
        let there = found.iter().any(|error| error.ends_with(expected));
        assert!(there, "{expected}\n{found:#?}");
    }
}

/// A backend's own forwarding wins over its service's.
#[test]
fn backends_override_forwarding() {
    let text = edited(&[
        ("forwarding = \"auto\"", "forwarding = \"nat\""),
        ("weight = 1", "forwarding = \"dsr\""),
    ]);
    let backends = read(&text).unwrap().services.remove(0).backends;
    assert_eq!(
        backends.iter().map(|b| b.forwarding).collect::<Vec<_>>(),
        [Forwarding::Dsr, Forwarding::Nat]
    );
}

/// Files that the configuration names are read from its own directory.
#[test]
fn reads_named_files() {
    let text = edited(&[
        (
            "version = 3",
            "version = 2\nauth = { type = \"password\", secret_file = \"good.secret\" }",
        ),
        (
            "verify = \"none\"",
            "verify = \"ca\"\nca_file = \"ca.crt\"\nserver_name = \"kubernetes\"\n\
            client_cert_file = \"/etc/ca.crt\"\nclient_key_file = \"client.key\"",
        ),
    ]);
    let config = read(&text).unwrap();
    assert_eq!(config.vrrp[0].password, Some(Password(*b"pass1122")));
    let CheckConfig::Https(tls, _) = &config.services[0].health.check else {
        panic!("not https");
    };
    assert_eq!(
        *tls,
        TlsConfig {
            verify: TlsVerify::Ca(PathBuf::from("/etc/ca.crt")),
            server_name: Some("kubernetes".to_owned()),
            client: Some(ClientCert {
                cert_file: PathBuf::from("/etc/ca.crt"),
                key_file: PathBuf::from("/etc/client.key"),
            }),
            min: TlsMin::V12,
        }
    );
}

/// What an HTTP check sends and expects, and where and how often it is made.
#[test]
fn reads_checks_in_detail() {
    let text = edited(&[
        (
            "path = \"/readyz\"\nexpect_status = [200]\ninterval = \"2s\"",
            "path = \"/readyz\"\nexpect_status = [204, \"200-203\", \"300-399\"]\ninterval = \"1s\"\n\
            address = \"10.0.2.9\"\nport = 8080\nmethod = \"OPTIONS\"\nhttp_version = \"2\"\n\
            headers = { X-Check = \"a b\", accept = \"text/plain\" }\nexpect_body_regex = '^\\S+$'\n\
            bearer_token_file = \"good.secret\"\ntls_min = \"1.3\"\ndown_interval = \"10s\"\nspread = 0\n\
            keep_alive = false",
        ),
        (
            "weight = 1",
            "check_address = \"10.0.2.8\"\ncheck_port = 8081",
        ),
        (
            "address = \"10.0.2.11:6443\"",
            "address = \"10.0.2.11:6443\"\ncheck_port = 8082",
        ),
    ]);
    let service = read(&text).unwrap().services.remove(0);
    let health = &service.health;
    let CheckConfig::Https(tls, http) = &health.check else {
        panic!("not https");
    };
    let expected = HttpConfig {
        path: "/readyz".to_owned(),
        method: HttpMethod::Options,
        version: HttpVersion::V2,
        host: None,
        headers: vec![
            ("X-Check".to_owned(), "a b".to_owned()),
            ("accept".to_owned(), "text/plain".to_owned()),
        ],
        expect_status: vec![
            StatusRange::only(204),
            StatusRange {
                first: 200,
                last: 203,
            },
            StatusRange {
                first: 300,
                last: 399,
            },
        ],
        expect_body: Some(BodyMatch::Regex("^\\S+$".to_owned())),
        bearer_token_file: Some(PathBuf::from("/etc/good.secret")),
        keep_alive: false,
    };
    assert_eq!((http, tls.min), (&expected, TlsMin::V13));
    assert_eq!(health.down_interval, Duration::from_secs(10));
    assert_eq!(health.spread, 0);
    let targets: Vec<_> = (0..3)
        .map(|backend| service.probe_target(backend))
        .collect();
    let target = |text: &str| Some(text.parse().unwrap());
    assert_eq!(
        targets,
        [target("10.0.2.8:8081"), target("10.0.2.9:8082"), None]
    );
}

/// Conversations, in their short form and in steps.
#[test]
fn reads_conversations() {
    let steps = |keys: &str| {
        let text = edited(&[
            (
                "type = \"https\"\npath = \"/readyz\"\nexpect_status = [200]\n",
                "",
            ),
            ("verify = \"none\"", keys),
        ]);
        match read(&text).unwrap().services.remove(0).health.check {
            CheckConfig::Tcp(steps) | CheckConfig::Tls(_, steps) => steps,
            other => panic!("{other:?}"),
        }
    };
    let send = |bytes: &[u8]| Step::Send(bytes.to_vec());
    let expect = |bytes: &[u8]| Step::Expect(Pattern::Bytes(bytes.to_vec()));
    assert_eq!(steps("type = \"tcp\""), []);
    assert_eq!(
        steps("type = \"tcp\"\nexpect = \"+PONG\"\nsend = \"PING\\r\\n\""),
        [send(b"PING\r\n"), expect(b"+PONG")]
    );
    assert_eq!(
        steps("type = \"tls\"\nexpect = \"220 \""),
        [expect(b"220 ")]
    );
    let all = "type = \"tls\"\nsteps = [{ expect_regex = '^2' }, { send_hex = \"00ff 0A\" }, \
        { expect_hex = \"05 00\" }, { send = \"x\" }, { expect = \"y\" }]";
    assert_eq!(
        steps(all),
        [
            Step::Expect(Pattern::Regex("^2".to_owned())),
            send(b"\x00\xff\x0a"),
            expect(b"\x05\x00"),
            send(b"x"),
            expect(b"y"),
        ]
    );
}

/// A program, its arguments and who runs it; also for UDP, without a port.
#[test]
fn reads_commands() {
    let text = |more: &str| {
        edited(&[
            (
                "type = \"https\"\npath = \"/readyz\"\nexpect_status = [200]\n",
                more,
            ),
            ("verify = \"none\"\n", ""),
        ])
    };
    let command = |text: &str| match read(text).unwrap().services.remove(0).health.check {
        CheckConfig::Command(command) => command,
        other => panic!("{other:?}"),
    };
    let full =
        "type = \"command\"\ncommand = [\"/etc/check\", \"-a\", \"{address}\"]\nuser = \"root\"\n";
    let expected = CommandConfig {
        program: PathBuf::from("/etc/check"),
        arguments: vec!["-a".to_owned(), "{address}".to_owned()],
        user: "root".to_owned(),
    };
    assert_eq!(command(&text(full)), expected);
    let short = text("type = \"command\"\ncommand = [\"/etc/check\"]\n");
    let short = short.replace("protocol = \"tcp\"", "protocol = \"udp\"");
    assert_eq!(command(&short).user, "nobody");
}

/// Agents are asked at the backends' addresses and as often as the checks unless it is written.
#[test]
fn reads_agents() {
    let service = |agent: &str| {
        let text = edited(&[("interval = \"2s\"", &format!("interval = \"3s\"\n{agent}"))]);
        read(&text).unwrap().services.remove(0)
    };
    assert_eq!(service("").health.agent, None);
    let short = service("agent = { port = 9777 }");
    let expected = AgentConfig {
        port: NonZeroU16::new(9777).unwrap(),
        address: None,
        send: String::new(),
        interval: Duration::from_secs(3),
        timeout: Duration::from_secs(1),
    };
    assert_eq!(short.health.agent, Some(expected));
    assert_eq!(
        short.agent_target(1),
        Some("10.0.2.11:9777".parse().unwrap())
    );
    let full = "agent = { port = 1, address = \"10.0.2.9\", send = \"x\\n\", interval = \"9s\", timeout = \"2s\" }";
    let full = service(full);
    assert_eq!(full.agent_target(1), Some("10.0.2.9:1".parse().unwrap()));
    // A backend's own come first.
    let text = edited(&[
        ("interval = \"2s\"", "agent = { port = 9777 }"),
        (
            "weight = 1",
            "agent_address = \"10.0.2.8\"\nagent_port = 9778",
        ),
    ]);
    let own = read(&text).unwrap().services.remove(0);
    let targets = [0, 1].map(|backend| own.agent_target(backend).unwrap().to_string());
    assert_eq!(targets, ["10.0.2.8:9778", "10.0.2.11:9777"]);
    let agent = full.health.agent.unwrap();
    assert_eq!(
        (agent.send.as_str(), agent.timeout),
        ("x\n", Duration::from_secs(2))
    );
}

/// A backend is checked at its own address and port where nothing else is written, and
/// `down_interval` is `interval`.
#[test]
fn checks_go_to_the_backend() {
    let text = edited(&[("interval = \"2s\"", "interval = \"3s\"")]);
    let service = read(&text).unwrap().services.remove(0);
    assert_eq!(service.probe_target(1), Some(service.backends[1].address));
    assert_eq!(service.health.down_interval, Duration::from_secs(3));
}

/// A short interval shortens the default fast interval: checks never slow down while changing.
#[test]
fn fast_interval_follows_interval() {
    let config = read(&edited(&[("interval = \"2s\"", "interval = \"200ms\"")])).unwrap();
    let fast = config.services[0].health.fast_interval;
    assert_eq!(fast, Duration::from_millis(200));
}

/// What looks like a contradiction and is none: VIP ports that share nothing but the VIP, a
/// VRID in both families, equal backends behind two VIPs, and the owner's own address.
#[test]
fn accepts_what_can_work() {
    let second = "\n[[service]]\nname = \"second\"\naddress = \"10.0.2.101\"\nport = 1644\n\
        [[service.backend]]\nname = \"b\"\naddress = \"10.0.2.10:6443\"\n\
        \n[[service]]\nname = \"third\"\naddress = \"10.0.2.100\"\nport = 8443\n\
        [[service.backend]]\nname = \"b\"\naddress = \"10.0.2.10:8443\"\n\
        \n[[vrrp]]\nname = \"v6\"\ninterface = \"eth0\"\nvrid = 51\naddresses = [\"fe80::1/64\"]\n";
    assert_eq!(errors(&edited(&[("#end", second)])), Vec::<String>::new());
    let owner = [
        ("priority = 200", "priority = 255"),
        (
            "unicast_source = \"10.0.2.10\"",
            "unicast_source = \"10.0.2.100\"",
        ),
    ];
    assert_eq!(errors(&edited(&owner)), Vec::<String>::new());
}

/// `count` sections made by `section`.
fn sections(count: u32, section: impl Fn(&mut String, u32)) -> String {
    (0..count).fold(String::new(), |mut text, index| {
        section(&mut text, index);
        text
    })
}

/// Text of `services` services of `backends` backends each, each with a VIP of its own.
fn services(services: u32, backends: u32) -> String {
    sections(services, |text, s| {
        let vip = format!("10.1.0.{s}");
        let header = format!("[[service]]\nname = \"s{s}\"\naddress = \"{vip}\"\nport = 80\n");
        text.push_str(&header);
        text.push_str(&sections(backends, |text, b| {
            let address = Ipv4Addr::from_bits(0x0a02_0000 + s * 1000 + b);
            let entry =
                format!("[[service.backend]]\nname = \"b{b}\"\naddress = \"{address}:80\"\n");
            text.push_str(&entry);
        }));
    })
}

/// The maps of the data plane are never asked for more than they hold, and can be filled.
#[test]
fn keeps_to_the_limits() {
    let peers = |count| {
        sections(count, |text, i| {
            writeln!(text, "[[peer]]\nname = \"p{i}\"\naddress = \"10.3.0.{i}\"").unwrap();
        })
    };
    let instances = |count| {
        sections(count, |text, i| {
            let header = "[[vrrp]]\ninterface = \"eth0\"";
            let id = i + 1;
            writeln!(
                text,
                "{header}\nname = \"v{i}\"\nvrid = {id}\naddresses = [\"10.4.0.{id}/24\"]"
            )
            .unwrap();
        })
    };
    let addresses = |count, start: &str, length| {
        let list = sections(count, |text, i| {
            write!(text, "\"{start}{:x}/{length}\",", i + 1).unwrap();
        });
        format!("[[vrrp]]\nname = \"v\"\ninterface = \"eth0\"\nvrid = 1\naddresses = [{list}]")
    };
    let v4_addresses = |count: u32, start: u32| {
        let list = sections(count, |text, i| {
            write!(text, "\"{}/8\",", Ipv4Addr::from_bits(start + i)).unwrap();
        });
        let name = format!("name = \"v{start}\"\nvrid = {}\n", start % 7 + 1);
        format!("[[vrrp]]\n{name}interface = \"eth0\"\naddresses = [{list}]\n")
    };
    let two = |count| v4_addresses(200, 0x0a01_0000) + &v4_addresses(count, 0x0b01_0000);
    let uplinks = |count| {
        let list = sections(count, |text, i| write!(text, "\"eth{i}\",").unwrap());
        format!("interfaces = [{list}]")
    };
    let eth0 = "[node]\ninterfaces = [\"eth0\"]\n".to_owned();
    let cases = [
        (
            eth0.clone() + &peers(253),
            eth0.clone() + &peers(254),
            "peer[253]: too many peers; write at most 253",
        ),
        (
            eth0.clone() + &instances(63),
            eth0.clone() + &instances(64),
            "vrrp[63]: too many instances; write at most 63",
        ),
        (
            eth0.clone() + &services(63, 1),
            eth0.clone() + &services(64, 1),
            "service[63]: too many services; write at most 63",
        ),
        (
            eth0.clone() + &services(1, 160),
            eth0.clone() + &services(1, 161),
            "service[0].backend[160]: too many backends in one service; write at most 160",
        ),
        (
            eth0.clone() + &services(11, 93),
            eth0.clone() + &services(8, 128),
            "service[7].backend[127]: too many backends in all services; write at most 1023",
        ),
        (
            eth0.clone() + &addresses(90, "fd00::", 64),
            eth0.clone() + &addresses(91, "fd00::", 64),
            "vrrp[0].addresses[90]: too many addresses in one instance; write at most 90",
        ),
        (
            eth0.clone() + &two(56),
            eth0.clone() + &two(57),
            "vrrp[1].addresses[56]: too many VIPs of one family; write at most 256",
        ),
        (
            format!("[node]\n{}", uplinks(64)),
            format!("[node]\n{}", uplinks(65)),
            "node.interfaces[64]: too many interfaces; write at most 64",
        ),
    ];
    for (full, beyond, expected) in cases {
        assert_eq!(errors(&full), Vec::<String>::new(), "{expected}");
        let errors = errors(&beyond);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].ends_with(&format!(": {expected}")), "{errors:?}");
    }
}

/// A directory of its own, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xvip-config-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `load` reads the file and, next to it, what it names.
#[test]
fn loads_files() {
    let scratch = Scratch::new("loads");
    scratch.file("vrrp.secret", b"s3cret\r\n");
    let text = edited(&[(
        "version = 3",
        "version = 2\nauth = { type = \"password\", secret_file = \"vrrp.secret\" }",
    )]);
    let path = scratch.file("xvip.toml", text.as_bytes());
    let config = load(&path, &facts()).unwrap();
    assert_eq!(config.vrrp[0].password, Some(Password(*b"s3cret\0\0")));
}

/// The instance of a file that is not valid, or not even TOML, is found as far as it is written.
#[test]
fn finds_the_instance_of_a_wrong_file() {
    let scratch = Scratch::new("wrong");
    let found = |text: &str| {
        let (directory, instance) = node_of(&scratch.file("x.toml", text.as_bytes())).unwrap();
        (directory.display().to_string(), instance)
    };
    let node = "[node]\ninstance = \"a\"\nstate_dir = \"/run/b\"\n";
    for rest in ["", "colour = 1", "[[vrrp]\n", "[[service]]\nport ="] {
        let text = format!("{node}{rest}");
        assert_eq!(found(&text), ("/run/b".into(), "a".into()), "{text}");
    }
    for text in ["", "node = 1", "[node]\ninstance = 7"] {
        assert_eq!(
            found(text),
            ("/run/xvip".into(), "default".into()),
            "{text}"
        );
    }
    assert_eq!(node_of(&scratch.0.join("none.toml")), None);
}

/// A file that cannot be read, or is no text, is an error like the others.
#[test]
fn refuses_unreadable_files() {
    let scratch = Scratch::new("unreadable");
    let missing = scratch.0.join("none.toml");
    assert_eq!(
        load(&missing, &facts()).unwrap_err().to_string(),
        format!(
            "{}: cannot be read: No such file or directory (os error 2); \
            name a readable file with --config",
            missing.display()
        )
    );
    let binary = scratch.file("binary.toml", b"[node]\nname = \"\xc3\xa4\xff\"\n");
    assert_eq!(
        load(&binary, &facts()).unwrap_err().to_string(),
        format!(
            "{}:2:10: invalid UTF-8; save the file as UTF-8",
            binary.display()
        )
    );
}

/// The reference documents a configuration that works, every key of it.
#[test]
fn reads_the_documented_configuration() {
    let document = include_str!("../../../docs/CONFIG.md");
    let start = document.find("```toml\n").unwrap() + "```toml\n".len();
    let length = document[start..].find("```").unwrap();
    let example = &document[start..start + length];
    assert_eq!(errors(example), Vec::<String>::new());
    for line in example.lines().filter(|line| line.contains(" = ")) {
        let key = line.split(" = ").next().unwrap_or_default();
        assert!(
            document.contains(&format!("| `{key}` |")),
            "{key} has no row"
        );
    }
}

/// Neither errors nor the configuration show a secret.
#[test]
fn secrets_stay_secret() {
    let auth = |secret: &str| {
        let auth = format!("version = 2\nauth = {{ type = \"password\", secret = {secret} }}");
        read(&edited(&[("version = 3", &auth)]))
    };
    assert!(!format!("{:?}", auth("\"hunter2\"")).contains("hunter2"));
    for wrong in [
        "\"hunter2hunter2\"",
        "[\"hunter2\"]",
        "\"hunter2",
        "hunter2",
    ] {
        assert!(
            !auth(wrong).unwrap_err().to_string().contains("hunter2"),
            "{wrong}"
        );
    }
}

/// Text that looks a little like TOML.
fn toml_like() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z_]{1,8}",
        "\\PC{0,4}",
        prop::sample::select(vec![
            "[", "]", "[[", "]]", "=", "\"", "'", "'''", ".", ",", "{", "}", "#", "\n", "\r\n",
            "\u{feff}", "node", "peer", "vrrp", "service", "backend", "health", "0x", "1e9", "-",
            "\\u00", "\t",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Whatever the text: an answer, never a panic, and errors in order, inside the text.
    #[test]
    fn survives_any_text(text in prop_oneof![any::<String>(), toml_like()]) {
        check_errors(&text);
    }

    /// The same near a valid configuration, where the deeper checks are reached.
    #[test]
    fn survives_damage(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..12, "\\PC{0,3}|[0-9]{0,6}|\"|\n"), 1..4)
    ) {
        let mut text: Vec<char> = BASE.chars().collect();
        for (at, length, new) in cuts {
            let start = at.index(text.len() + 1);
            let end = (start + length).min(text.len());
            text.splice(start..end, new.chars());
        }
        check_errors(&text.into_iter().collect::<String>());
    }

    /// Lines taken out, doubled or swapped: sections without keys, keys without sections.
    #[test]
    fn survives_shuffled_lines(
        moves in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_u8..3), 1..6)
    ) {
        let mut lines: Vec<&str> = EXAMPLE.lines().collect();
        for (from, to, kind) in moves {
            let (from, to) = (from.index(lines.len()), to.index(lines.len()));
            match kind {
                0 => drop(lines.remove(from)),
                1 => lines.insert(to, lines[from]),
                _ => lines.swap(from, to),
            }
        }
        check_errors(&lines.join("\n"));
    }
}

/// Errors are sorted, stand inside the text, and say something.
fn check_errors(text: &str) {
    let Err(errors) = read(text) else {
        return;
    };
    let positions: Vec<_> = errors.errors().iter().map(|e| (e.line, e.column)).collect();
    assert!(!positions.is_empty() && positions.is_sorted());
    for error in errors.errors() {
        assert!((1..=text.matches('\n').count() + 1).contains(&error.line));
        assert!(error.column >= 1 && !error.problem.is_empty());
        assert_ne!(error.problem, "refused without a reason");
    }
}

/// Programs that are told of changes, and the one that is asked: each with its user and its time.
#[test]
fn reads_programs() {
    let sections = "\n\
        [[sync_group]]\nname = \"both\"\nnotify = { any = [\"/etc/check\", \"x\"], user = \"root\" }\n\
        [[track]]\nname = \"asked\"\ntype = \"command\"\ncommand = [\"/etc/check\"]\ninterval = \"5s\"\n";
    let keys = "vrid = 51\nsync_group = \"both\"\nstartup_delay = \"10s\"\n\
        notify = { active = [\"/etc/check\"], timeout = \"5s\" }";
    let config = read(&edited(&[("#end", sections), ("vrid = 51", keys)])).unwrap();
    let command = |arguments: &[&str], user: &str| CommandConfig {
        program: PathBuf::from("/etc/check"),
        arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        user: user.to_owned(),
    };
    let own = &config.vrrp[0].notify;
    assert_eq!(own.active, Some(command(&[], "nobody")));
    assert_eq!((&own.any, own.timeout), (&None, Duration::from_secs(5)));
    assert_eq!(config.vrrp[0].startup_delay, Duration::from_secs(10));
    let group = &config.groups[0];
    assert_eq!(group.notify.any, Some(command(&["x"], "root")));
    assert_eq!(group.notify.timeout, Duration::from_secs(30));
    let asked = TrackSubject::Command {
        command: command(&[], "nobody"),
        timeout: Duration::from_secs(5),
    };
    assert_eq!(config.tracks[0].subject, asked);
}

/// What is wrong with programs is said where it stands.
#[test]
fn refuses_wrong_programs() {
    let sections = "\n\
        [[sync_group]]\nname = \"nobody\"\n\
        [[track]]\nname = \"asked\"\ntype = \"command\"\n\
        [[track]]\nname = \"disk\"\ntype = \"file\"\nfile = \"/run/disk\"\ntimeout = \"1s\"\n";
    let keys = "vrid = 51\nnotify = { active = [], backup = [\"check\"], up = 1 }";
    let found = errors(&edited(&[("#end", sections), ("vrid = 51", keys)]));
    for expected in [
        "sync_group[0].name: no [[vrrp]] has sync_group = \"nobody\"; write it into those that belong \
         together",
        "track[0].command: is missing; write command = \"...\": this type needs it",
        "track[1].timeout: is not used by this type; remove it or write type = \"command\"",
        "vrrp[0].notify.active: is empty; write the program and its arguments, such as \
         [\"/usr/local/bin/on-active\"]",
        "vrrp[0].notify.backup[0]: \"check\" is not an absolute path; write a path that starts with '/'",
    ] {
        assert!(
            found.iter().any(|error| error.contains(expected)),
            "{expected}\n{found:#?}"
        );
    }
    let unknown = found
        .iter()
        .any(|error| error.contains("vrrp[0].notify.up: unknown key"));
    assert!(unknown, "{found:#?}");
}
