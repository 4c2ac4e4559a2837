//! `xvip import` on whole files: what comes out of the fixtures in `fixtures/import`, that no line
//! gets lost, and that nothing makes it panic. `XVIP_BLESS=1` writes the expected results anew.

// A failed unwrap is a failed test; clippy.toml's exception reaches test functions only.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use lb_user::{
    config::ConfigErrors,
    import::{self, Fate, Imported, Input, Inputs, Options, Refusal, Report},
};
use proptest::prelude::*;

/// Inputs of a case, as file names below `fixtures/import`.
struct Case {
    /// Name of the expected results.
    name: &'static str,
    keepalived: Option<&'static str>,
    haproxy: Option<&'static str>,
    script: Option<&'static str>,
    env: Option<&'static str>,
    address: Option<&'static str>,
    peers: &'static [(&'static str, &'static str)],
    hosts: &'static [(&'static str, &'static str)],
}

const NONE: Case = Case {
    name: "",
    keepalived: None,
    haproxy: None,
    script: None,
    env: None,
    address: None,
    peers: &[],
    hosts: &[],
};

const CASES: [Case; 10] = [
    Case {
        name: "two-masters/m1",
        keepalived: Some("two-masters/m1.keepalived.conf"),
        haproxy: Some("two-masters/haproxy.cfg"),
        script: Some("two-masters/check_apiserver.sh"),
        address: Some("10.77.0.11"),
        peers: &[("m2", "10.77.0.12")],
        ..NONE
    },
    Case {
        name: "two-masters/without-flags",
        keepalived: Some("two-masters/m2.keepalived.conf"),
        haproxy: Some("two-masters/haproxy.cfg"),
        ..NONE
    },
    Case {
        name: "two-balancers/lb1",
        keepalived: Some("two-balancers/lb1.keepalived.conf"),
        haproxy: Some("two-balancers/haproxy.cfg"),
        address: Some("10.77.0.11"),
        peers: &[("lb2", "10.77.0.12")],
        ..NONE
    },
    Case {
        name: "unicast/m1",
        keepalived: Some("unicast/m1.keepalived.conf"),
        haproxy: Some("unicast/haproxy.cfg"),
        ..NONE
    },
    Case {
        name: "unicast/without-haproxy",
        keepalived: Some("unicast/m2.keepalived.conf"),
        ..NONE
    },
    Case {
        name: "many-addresses/edge1",
        keepalived: Some("many-addresses/keepalived.conf"),
        haproxy: Some("many-addresses/haproxy.cfg"),
        hosts: &[("cp3.example.net", "192.0.2.23")],
        ..NONE
    },
    Case {
        name: "several-vips/edge1",
        keepalived: Some("several-vips/edge1.keepalived.conf"),
        haproxy: Some("several-vips/haproxy.cfg"),
        address: Some("10.77.0.11"),
        peers: &[("edge2", "10.77.0.12"), ("edge2", "fd77::12")],
        ..NONE
    },
    Case {
        name: "container/m1",
        haproxy: Some("container/haproxy.cfg"),
        env: Some("container/m1.env"),
        address: Some("10.77.0.11"),
        ..NONE
    },
    Case {
        name: "programs/node",
        keepalived: Some("programs/keepalived.conf"),
        haproxy: Some("programs/haproxy.cfg"),
        ..NONE
    },
    Case {
        name: "lvs/director",
        keepalived: Some("lvs/keepalived.conf"),
        ..NONE
    },
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/import")
}

fn input(name: &str) -> Input {
    Input {
        name: name.rsplit('/').next().unwrap().to_owned(),
        text: fs::read_to_string(fixtures().join(name)).unwrap(),
    }
}

impl Case {
    fn inputs(&self) -> Inputs {
        Inputs {
            keepalived: self.keepalived.map(input),
            haproxy: self.haproxy.map(input),
            check_script: self.script.map(input),
            env: self.env.map(input),
        }
    }

    fn run(&self) -> Result<Imported, Refusal> {
        let named = |list: &[(&str, &str)]| -> Vec<(String, IpAddr)> {
            let parse =
                |(name, address): &(&str, &str)| ((*name).to_owned(), address.parse().unwrap());
            list.iter().map(parse).collect()
        };
        let addresses: Vec<_> = self
            .address
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        import::import(
            &self.inputs(),
            &Options {
                addresses,
                peers: named(self.peers),
                hosts: named(self.hosts),
                ..options()
            },
        )
    }
}

fn options() -> Options<'static> {
    Options {
        config_id: "edge1".to_owned(),
        output: "xvip.toml".to_owned(),
        // Programs are there, certificates are not.
        read_file: &|path| {
            let others = ["/usr/bin/test", "/etc/keepalived/told.sh"];
            let is_other = || others.iter().any(|other| path == Path::new(other));
            if path.starts_with("/usr/local/bin")
                || path.starts_with("/usr/local/sbin")
                || is_other()
            {
                Ok(Vec::new())
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        },
        ..Options::default()
    }
}

/// The lines of an input that say something: neither empty, nor comments, nor braces alone.
fn lines_that_count(input: &Input, is_comment: impl Fn(&str) -> bool) -> BTreeSet<(String, usize)> {
    let lines = input.text.lines().enumerate();
    lines
        .filter(|(_, line)| {
            let line = line.trim();
            !is_comment(line) && line.chars().any(|c| !"{} \t".contains(c))
        })
        .map(|(index, _)| (input.name.clone(), index + 1))
        .collect()
}

fn reported(report: &Report) -> BTreeSet<(String, usize)> {
    let entries = report.entries().iter();
    entries
        .map(|entry| (entry.file.clone(), entry.line))
        .collect()
}

/// Every fixture becomes the configuration and the report that stand beside it.
#[test]
fn fixtures_become_what_stands_beside_them() {
    let bless = std::env::var_os("XVIP_BLESS").is_some();
    for case in &CASES {
        let imported = match case.run() {
            Ok(imported) => imported,
            Err(refusal) => panic!("{}: {refusal}", case.name),
        };
        let results = [
            ("toml", imported.toml),
            ("report", imported.report.to_string()),
        ];
        for (extension, text) in results {
            let path = fixtures().join(format!("{}.{extension}", case.name));
            if bless {
                fs::write(&path, &text).unwrap();
            }
            let expected = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(
                text,
                expected,
                "{}: XVIP_BLESS=1 writes it anew",
                path.display()
            );
        }
    }
}

/// A server's host name stays one, for every VIP; what is no name is left to somebody.
#[test]
fn names_of_servers_stay() {
    let haproxy = "defaults\n    mode tcp\nlisten api\n    bind 10.77.0.100:1644\n    option tcp-check\n\
         \x20   server cp1 CP1.example.net:6443 check resolvers dns\n    server cp2 10.77.0.12:6443 check\n\
         \x20   server cp3 10.77.0.300:6443 check\n    server cp4 localhost:6443 check\n\
         resolvers dns\n    nameserver one 192.0.2.53:53\n";
    let keepalived = "vrrp_instance v {\n    interface eth0\n    virtual_router_id 51\n\
         \x20   virtual_ipaddress {\n        10.77.0.100/24\n    }\n}\n";
    let input = |name: &str, text: &str| {
        Some(Input {
            name: name.to_owned(),
            text: text.to_owned(),
        })
    };
    let inputs = Inputs {
        haproxy: input("haproxy.cfg", haproxy),
        keepalived: input("keepalived.conf", keepalived),
        ..Inputs::default()
    };
    let imported = import::import(&inputs, &options());
    let Imported { toml, report } = imported.unwrap_or_else(|refusal| panic!("{refusal}"));
    assert!(
        toml.contains("address = \"cp1.example.net:6443\""),
        "{toml}"
    );
    let report = report.to_string();
    assert_eq!(
        report.matches("write the server's own address").count(),
        2,
        "{report}"
    );
    assert!(
        report.contains("are looked up by the node's own resolver"),
        "{report}"
    );
    assert!(!toml.contains("cp3") && !toml.contains("cp4"), "{toml}");
}

/// No line of a fixture is missing from its report.
#[test]
fn every_line_is_reported() {
    for case in &CASES {
        let report = match case.run() {
            Ok(imported) => imported.report,
            Err(refusal) => panic!("{}: {refusal}", case.name),
        };
        let reported = reported(&report);
        let inputs = case.inputs();
        let all = [
            inputs.keepalived,
            inputs.haproxy,
            inputs.check_script,
            inputs.env,
        ];
        for input in all.into_iter().flatten() {
            let lines = lines_that_count(&input, |line| line.starts_with(['#', '!']));
            assert!(lines.len() > 5, "{}", input.name);
            let missing: Vec<_> = lines.difference(&reported).collect();
            assert!(missing.is_empty(), "{}: {missing:?}", case.name);
        }
    }
}

/// What the programs' own manuals list is mapped, explained, or left to somebody with a sentence that
/// says what to do: the import knows every keyword.
#[test]
fn every_keyword_is_known() {
    for name in ["keywords/keepalived.conf", "keywords/haproxy.cfg"] {
        let only = input(name);
        let lines = lines_that_count(&only, |line| line.starts_with(['#', '!']));
        let mut inputs = Inputs::default();
        if name.ends_with("cfg") {
            inputs.haproxy = Some(only);
        } else {
            inputs.keepalived = Some(only);
        }
        let own = ["10.77.0.11".parse().unwrap()];
        let options = Options {
            addresses: own.to_vec(),
            ..options()
        };
        // It is no sensible configuration: what comes out need not be one.
        let report = match import::import(&inputs, &options) {
            Ok(imported) => imported.report,
            Err(Refusal::Invalid { report, errors, .. }) => {
                assert_no_syntax_error(&errors);
                report
            }
            Err(refusal) => panic!("{name}: {refusal}"),
        };
        let unknown = report.entries().iter();
        let unknown = unknown.filter(|entry| entry.fate == Fate::Unknown);
        let unknown: Vec<_> = unknown.map(ToString::to_string).collect();
        assert!(unknown.is_empty(), "{}", unknown.join("\n"));
        let missing: Vec<_> = lines.difference(&reported(&report)).cloned().collect();
        assert!(lines.len() > 300 && missing.is_empty(), "{missing:?}");
    }
}

/// An instance with one VIP.
const INSTANCE: &str = "vrrp_instance v {\n interface eth0\n virtual_router_id 51\n virtual_ipaddress {\n \
                        10.0.0.100/24\n }\n}\n";

/// What becomes of these files, which need no others.
fn imported(keepalived: &str, haproxy: &str) -> Result<Imported, Refusal> {
    import::import(&inputs(keepalived, haproxy), &options())
}

/// `keepalived` in a file `k` and `haproxy` in a file `h`; an empty one was not given.
fn inputs(keepalived: &str, haproxy: &str) -> Inputs {
    let input = |name: &str, text: &str| {
        (!text.is_empty()).then(|| Input {
            name: name.to_owned(),
            text: text.to_owned(),
        })
    };
    Inputs {
        keepalived: input("k", keepalived),
        haproxy: input("h", haproxy),
        ..Inputs::default()
    }
}

/// The lines of the configuration that set one of `keys`, without where they come from.
fn keys(toml: &str, keys: &[&str]) -> Vec<String> {
    let is_wanted = |line: &&str| {
        keys.iter()
            .any(|key| line.starts_with(&format!("{key} = ")))
    };
    let lines = toml.lines().filter(is_wanted);
    lines
        .map(|line| line.split("  #").next().unwrap_or_default().to_owned())
        .collect()
}

/// Priority, state and strict mode decide together, as keepalived 2.2 completes an instance.
#[test]
fn an_instance_is_what_keepalived_makes_of_it() {
    for (global, lines, expected) in [
        ("", "state MASTER", &["priority = 255"][..]),
        ("", "state MASTER\n priority 300", &[]),
        (
            "",
            "state MASTER\n priority 150\n nopreempt",
            &["priority = 150"],
        ),
        (
            "",
            "state MASTER\n priority 150\n preempt_delay 5",
            &["priority = 150"],
        ),
        ("", "priority 255\n nopreempt", &["priority = 255"]),
        (
            "",
            "priority 150\n nopreempt",
            &["priority = 150", "preempt = false"],
        ),
        (
            "",
            "priority 150\n preempt_delay 5",
            &["priority = 150", "preempt_delay = \"5s\""],
        ),
        // In strict mode 255 alone is MASTER, and there is no delay and no password.
        (
            "vrrp_strict",
            "state MASTER\n priority 150\n nopreempt\n authentication {\n auth_type PASS\n auth_pass x\n }",
            &["priority = 150", "preempt = false"],
        ),
        (
            "",
            "strict_mode\n priority 150\n preempt_delay 5",
            &["priority = 150"],
        ),
        (
            "vrrp_strict",
            "strict_mode off\n priority 150\n authentication {\n auth_type PASS\n auth_pass x\n }",
            &[
                "priority = 150",
                "auth = { type = \"password\", secret = \"x\" }",
            ],
        ),
        (
            "",
            "priority 150\n authentication {\n auth_type PASS\n }",
            &["priority = 150"],
        ),
        // Each address once, and those of the first one's family.
        (
            "",
            "priority 150\n virtual_ipaddress {\n 10.0.0.100/24\n fd00::100/64\n 10.0.0.100/32\n }",
            &["priority = 150"],
        ),
    ] {
        let text = format!(
            "global_defs {{\n {global}\n}}\nvrrp_instance a {{\n interface eth0\n virtual_router_id 1\n {lines}\n \
             virtual_ipaddress {{\n 10.0.0.100/24\n }}\n}}\n"
        );
        let found = imported(&text, "").unwrap_or_else(|refusal| panic!("{lines}: {refusal}"));
        let found = keys(
            &found.toml,
            &["priority", "preempt", "preempt_delay", "auth"],
        );
        assert_eq!(found, expected, "{global:?}, {lines:?}");
    }
}

/// Weights of a sync group's members: keepalived takes some for 0, and ignores what others stand at.
#[test]
fn weights_in_sync_groups_are_those_of_keepalived() {
    let tracks = |group: &str, list: &str| {
        let text = format!(
            "vrrp_script s {{\n script /usr/bin/test\n weight -20\n user root\n}}\n\
             vrrp_track_process p {{\n process etcd\n weight 5\n}}\n\
             track_file f {{\n file /run/f\n}}\ntrack_file g {{\n file /run/g\n weight 2\n}}\n\
             vrrp_sync_group G {{\n group {{\n a\n }}\n {group}\n}}\n\
             vrrp_instance a {{\n interface eth0\n virtual_router_id 1\n priority 100\n {list}\n \
             virtual_ipaddress {{\n 10.0.0.100/24\n }}\n}}\n"
        );
        let Imported { toml, report } = imported(&text, "").unwrap_or_else(|r| panic!("{r}"));
        let (_, rest) = toml.split_once("track = [").unwrap_or_default();
        let list = rest.split(']').next().unwrap_or_default().lines();
        let list = list.filter_map(|line| line.split(",  #").next());
        let list: Vec<_> = list.map(|line| line.trim().to_owned()).collect();
        (
            list.concat(),
            report
                .to_string()
                .contains("BY HAND: keepalived ignores it"),
        )
    };
    for (list, alone, weighted) in [
        ("track_script {\n s\n }", "", "\"s\""),
        (
            "track_script {\n s weight 0\n }",
            "{ name = \"s\", weight = 0 }",
            "{ name = \"s\", weight = 0 }",
        ),
        ("track_process {\n p\n }", "\"p\"", "\"p\""),
        (
            "track_file {\n f\n }",
            "{ name = \"f\", weight = 0 }",
            "\"f\"",
        ),
        ("track_file {\n g\n }", "", "\"g\""),
        (
            "track_interface {\n eth1 weight 10\n }",
            "{ name = \"interface-eth1\", weight = 0 }",
            "{ name = \"interface-eth1\", weight = 10 }",
        ),
        // Its own interface is tracked as a fault, whatever is said.
        ("track_interface {\n eth0 weight 10\n }", "", ""),
    ] {
        let (found, told) = tracks("", list);
        assert_eq!(found, alone, "{list}");
        assert_eq!(told, alone.is_empty() && !weighted.is_empty(), "{list}");
        let (found, _) = tracks("sync_group_tracking_weight", list);
        assert_eq!(found, weighted, "{list}");
    }
    // Two interfaces on a line: keepalived does not know the second one.
    let text = INSTANCE.replace(
        "virtual_ipaddress",
        "track_interface {\n eth0 eth1\n }\n virtual_ipaddress",
    );
    let Imported { report, .. } = imported(&text, "").unwrap();
    let unknown = report
        .entries()
        .iter()
        .filter(|entry| entry.fate == Fate::Unknown);
    assert_eq!(
        unknown.map(|entry| entry.text.as_str()).collect::<Vec<_>>(),
        ["eth1"]
    );
    // More than xvip has: said, and not written.
    let (found, _) = tracks(
        "sync_group_tracking_weight",
        "track_script {\n s weight 254\n }",
    );
    assert_eq!(found, "\"s\"");
}

/// Passwords and tokens are in the configuration, and in no line of the report.
#[test]
fn no_secret_is_reported() {
    let keepalived = "$WORD=pw-0000\n$A_TOKEN=pw-0001\nvrrp_script s {\n \
         script \"/usr/bin/test -H 'Authorization: Bearer pw-0002'\"\n user root\n}\n\
         vrrp_instance a {\n interface eth0\n virtual_router_id 1\n priority 100\n authentication {\n auth_type PASS\n \
         auth_pass $WORD\n @other auth_pass pw-0003\n }\n track_script {\n s\n }\n \
         notify \"/opt/x --token=pw-0004\"\n virtual_ipaddress {\n 10.0.0.100/24\n }\n}\n\
         auth_pass pw-0005\n";
    let haproxy = "global\n setenv DB_PASSWORD pw-0006\nuserlist u\n user a insecure-password pw-0007\n user b password pw-0008\n\
         listen stats\n mode http\n bind *:1\n stats enable\n stats auth admin:pw-0009\n\
         listen a\n bind *:6443\n option httpchk\n http-check send meth GET uri / hdr Authorization \"Bearer pw-0010\" hdr Cookie pw-0011\n \
         server m 10.0.0.11:6443 check agent-check agent-port 5 agent-send \"auth pw-0012\"\n\
         listen b\n bind *:6379\n option tcp-check\n tcp-check send \"AUTH pw-0013\\r\\n\"\n tcp-check expect string +OK\n \
         server r 10.0.0.21:6379 check\n\
         listen c\n bind *:81\n option httpchk GET / HTTP/1.1\\r\\nAuthorization: Basic pw-0014\n server s 10.0.0.22:81 check\n\
         listen d\n bind *:82\n option httpchk GET \"/${THE_TOKEN}\"\n server s 10.0.0.23:82 check\n";
    let env = "KEEPALIVED_PASSWORD: pw-0016\nAWS_SESSION=pw-0017\nKEEPALIVED_VIRTUAL_IPS=10.0.0.101\nKEEPALIVED_ROUTER_ID=9\n";
    let script = "#!/bin/sh\ncurl -sk -u admin:pw-0018 https://localhost:6443/ || exit 1\n";
    let input = |text: &str| {
        Some(Input {
            name: "f".to_owned(),
            text: text.to_owned(),
        })
    };
    let inputs = Inputs {
        keepalived: input(keepalived),
        haproxy: input(haproxy),
        check_script: input(script),
        env: input(env),
    };
    let variables = [("THE_TOKEN".to_owned(), "pw-0015".to_owned())];
    let options = Options {
        variables: variables.into(),
        ..options()
    };
    let imported = import::import(&inputs, &options).unwrap_or_else(|refusal| panic!("{refusal}"));
    let report = imported.report.to_string();
    assert!(!report.contains("pw-"), "{report}");
    for number in [2, 10, 11, 12, 13, 14, 15] {
        let secret = format!("pw-{number:04}");
        assert!(
            imported.toml.contains(&secret),
            "{secret}: {}\n{report}",
            imported.toml
        );
    }
    // What is not written for another reason is not shown either.
    let broken = keepalived.replace("virtual_router_id 1", "virtual_router_id 1000");
    let refusal = self::imported(&broken, haproxy).unwrap_err();
    assert!(!refusal.to_string().contains("pw-"), "{refusal}");
}

/// How servers are checked, where haproxy's rules and its servers' options say different things.
#[test]
fn checks_are_those_of_haproxy() {
    let found = |options: &str, lines: &str, server: &str| {
        let haproxy = format!(
            "listen a\n bind 10.0.0.100:6443\n {options}\n {lines}\n server m 10.0.0.11:6443 check {server}\n"
        );
        let found = Options {
            read_file: &|_| Ok(Vec::new()),
            ..self::options()
        };
        let inputs = Inputs {
            keepalived: Some(Input {
                name: "k".to_owned(),
                text: INSTANCE.to_owned(),
            }),
            haproxy: Some(Input {
                name: "h".to_owned(),
                text: haproxy,
            }),
            ..Inputs::default()
        };
        // The file of certificates holds none.
        let (toml, report) = match import::import(&inputs, &found) {
            Ok(Imported { toml, report }) | Err(Refusal::Invalid { toml, report, .. }) => {
                (toml, report)
            }
            Err(refusal) => panic!("{refusal}"),
        };
        let (_, toml) = toml.split_once("[service.health]").unwrap();
        let health = toml.split("[[").next().unwrap().to_owned();
        let asked = ["type", "path", "server_name", "verify"];
        (keys(&health, &asked).join(", "), report.to_string())
    };
    for (options, lines, server, expected, by_hand) in [
        // TLS of the traffic is that of checks, unless they go elsewhere.
        (
            "",
            "",
            "ssl verify none",
            r#"type = "tls", verify = "none""#,
            "",
        ),
        ("", "", "ssl verify none port 80", r#"type = "tcp""#, ""),
        (
            "",
            "",
            "check-ssl verify none port 80",
            r#"type = "tls", verify = "none""#,
            "",
        ),
        // A connection of its own takes the server's options only if it says so.
        (
            "option tcp-check",
            "tcp-check connect",
            "check-ssl verify none",
            r#"type = "tcp""#,
            "",
        ),
        (
            "option tcp-check",
            "tcp-check connect default",
            "check-ssl verify none",
            r#"type = "tls", verify = "none""#,
            "",
        ),
        (
            "option httpchk GET /a",
            "http-check connect ssl\n http-check send meth GET uri /b\n http-check connect\n http-check send uri /c",
            "verify none",
            r#"type = "https", path = "/b", verify = "none""#,
            "one connection and one request",
        ),
        // Without a name haproxy does not look at those of a certificate.
        (
            "",
            "",
            "check-ssl verify required ca-file /ca.pem",
            r#"type = "tls", verify = "ca""#,
            "does not look at the names",
        ),
        (
            "",
            "",
            "check-ssl verify required ca-file /ca.pem verifyhost api",
            r#"type = "tls", verify = "ca", server_name = "api""#,
            "",
        ),
    ] {
        let (keys, report) = found(options, lines, server);
        assert_eq!(keys, expected, "{lines:?}, {server}");
        // That the proxy itself began TLS is told as well.
        let told = report
            .lines()
            .filter(|line| line.starts_with("h:") && line.contains("BY HAND"));
        let told: Vec<_> = told
            .filter(|line| !line.contains("does not end TLS"))
            .collect();
        assert_eq!(told.is_empty(), by_hand.is_empty(), "{server}: {told:?}");
        assert!(
            told.iter().all(|line| line.contains(by_hand)),
            "{server}: {told:?}"
        );
    }
}

/// What stands around a pattern is no part of it, and a program runs as haproxy did.
#[test]
fn expectations_are_those_of_haproxy() {
    let haproxy = |lines: &str| {
        format!(
            "global\n user prober\nlisten a\n bind 10.0.0.100:8443\n {lines}\n server m1 10.0.0.11:6443 check\n"
        )
    };
    let http = "option httpchk GET /\n http-check expect";
    let tcp = "option tcp-check\n tcp-check";
    for (lines, expected) in [
        (
            format!("{tcp} expect string +OK\\ ready comment POP\\ protocol"),
            "{ expect = \"+OK ready\" }",
        ),
        (
            format!("{tcp} send PING\\r\\n comment ping"),
            "{ send = \"PING\\r\\n\" }",
        ),
        (
            format!("{tcp} expect comment x rstring ^2.."),
            "{ expect_regex = \"^2..\" }",
        ),
        (
            format!("{http} string ok comment x"),
            "expect_body = \"ok\"",
        ),
        (
            format!("{http} status 200,401 comment x"),
            "expect_status = [200, 401]",
        ),
        (
            format!("{http} rstatus ^(200|401)$"),
            "expect_status = [200, 401]",
        ),
        (
            format!("{http} ! rstatus ^[45]"),
            "expect_status = [\"200-399\"]",
        ),
        (
            "option external-check\n external-check command /usr/local/bin/probe".to_owned(),
            "user = \"prober\"",
        ),
    ] {
        let Imported { toml, report } = imported(INSTANCE, &haproxy(&lines)).unwrap();
        assert!(toml.contains(expected), "{lines}\n{toml}");
        let report = report.to_string();
        let mut told = report.lines().filter(|line| line.starts_with("h:"));
        assert!(
            !told.any(|line| line.contains("BY HAND") || line.contains("nothing that is")),
            "{report}"
        );
    }
}

/// Variables that the file itself sets, and addresses that are no VIP.
#[test]
fn listeners_of_haproxy_are_vips() {
    let haproxy = "global\n setenv PORT 6443\n presetenv PORT 1\n presetenv VIP 10.0.0.100\n\
                   listen a\n bind \"${VIP}:8443\"\n bind 10.0.0.11:8443\n balance first\n \
                   server m1 10.0.0.11:\"${PORT}\" check\n server m2 10.0.0.12:6443 check\n";
    let own = Options {
        addresses: vec!["10.0.0.11".parse().unwrap()],
        ..options()
    };
    let inputs = inputs(INSTANCE, haproxy);
    let Imported { toml, report } = import::import(&inputs, &own).unwrap_or_else(|r| panic!("{r}"));
    assert_eq!(toml.matches("[[service]]").count(), 1, "{toml}");
    assert!(
        toml.contains("address = \"10.0.0.100\"") && toml.contains("10.0.0.11:6443"),
        "{toml}"
    );
    let report = report.to_string();
    for expected in [
        "h:7: 10.0.0.11:8443: BY HAND: not imported: it is an address of this node",
        "h:8: balance first: BY HAND: haproxy fills one server after the other",
        "h:2: setenv PORT 6443: it counts for",
    ] {
        assert!(report.contains(expected), "{expected}\n{report}");
    }
}

/// A check of this node that nothing takes over is told; one of the proxy is built in.
#[test]
fn checks_of_this_node_are_not_lost() {
    let keepalived = |port: u16| {
        format!(
            "vrrp_script s {{\n script \"/usr/bin/curl -k https://localhost:{port}/\"\n}}\n\
             vrrp_instance v {{\n interface eth0\n virtual_router_id 51\n track_script {{\n s\n }}\n \
             virtual_ipaddress {{\n 10.0.0.100/24\n }}\n}}\n"
        )
    };
    let haproxy = "listen a\n bind 10.0.0.100:8443\n server m1 10.0.0.11:6443 check\n server m2 10.0.0.12:6443 check\n";
    for (port, told, toml_has) in [
        (6443, "track.type = \"local_backend\"", true),
        (8443, "s: built in:", false),
        (
            2379,
            "s: BY HAND: nothing checks it: no service leads to port 2379",
            false,
        ),
    ] {
        let Imported { toml, report } = imported(&keepalived(port), haproxy).unwrap();
        let report = report.to_string();
        assert!(report.contains(told), "{port}\n{report}");
        assert_eq!(toml.contains("local_backend"), toml_has, "{port}");
    }
}

/// Two servers at one address are one, and servers of other services are no peers of this node.
#[test]
fn a_backend_and_a_peer_are_there_once() {
    let haproxy = "listen a\n bind :::8443\n server m1 10.0.0.11:6443 check\n server again 10.0.0.11:6443 check\n \
                   server m2 10.0.0.12:6443 check\nlisten b\n bind 10.0.0.100:80\n server m2 10.0.0.32:80 check\n \
                   server w 10.0.0.33:80 check\n";
    let inputs = inputs(INSTANCE, haproxy);
    let own = Options {
        addresses: vec!["10.0.0.11".parse().unwrap()],
        ..options()
    };
    let Imported { toml, report } = import::import(&inputs, &own).unwrap_or_else(|r| panic!("{r}"));
    let (_, peers) = toml.split_once("[[peer]]").unwrap();
    let peers = peers.split("[[vrrp]]").next().unwrap();
    assert_eq!(
        keys(peers, &["name", "address", "addresses"]),
        ["name = \"m2\"", "address = \"10.0.0.12\""]
    );
    let report = report.to_string();
    assert!(
        report.contains("h:4: server again 10.0.0.11:6443: BY HAND: another server"),
        "{report}"
    );
}

/// A list of peers that serves all nodes holds this one as well.
#[test]
fn a_node_is_no_peer_of_its_own() {
    let text = INSTANCE.replace(
        "virtual_ipaddress",
        "unicast_peer {\n 10.0.0.11\n 10.0.0.12\n }\n virtual_ipaddress",
    );
    let inputs = Inputs {
        keepalived: Some(Input {
            name: "k".to_owned(),
            text,
        }),
        ..Inputs::default()
    };
    let own = Options {
        addresses: vec!["10.0.0.11".parse().unwrap()],
        ..options()
    };
    let Imported { toml, report } = import::import(&inputs, &own).unwrap_or_else(|r| panic!("{r}"));
    assert!(
        !toml.contains("10.0.0.11") && toml.contains("10.0.0.12"),
        "{toml}"
    );
    assert!(
        report
            .to_string()
            .contains("10.0.0.11: it is this node's own address"),
        "{report}"
    );
}

/// A server that no VIP's family fits, and one that is another on every node, are told.
#[test]
fn servers_that_are_not_as_before_are_told() {
    let haproxy = "listen a\n bind :::8443 v4v6\n server m1 127.0.0.1:6443 check fastinter 5s\n server m2 10.0.0.12:6443 check\n \
                   server m3 [fd00::13]:6443 check\n";
    let own = Options {
        addresses: vec!["10.0.0.11".parse().unwrap()],
        ..options()
    };
    let inputs = |keepalived: &str| inputs(keepalived, haproxy);
    let report = |keepalived: &str| {
        import::import(&inputs(keepalived), &own)
            .unwrap()
            .report
            .to_string()
    };
    let found = report(INSTANCE);
    for expected in [
        "h:3: 127.0.0.1:6443: BY HAND: it is this node itself, 10.0.0.11 for the others",
        "h:3: fastinter 5s: BY HAND: xvip's is at most",
        "h:5: server m3 fd00::13:6443: BY HAND: no VIP of the service is of its family",
    ] {
        assert!(
            found.contains(&expected.replace("fd00::13:", "[fd00::13]:")),
            "{expected}\n{found}"
        );
    }
    // Those of an IPv6 VIP lead to it.
    let v6 = INSTANCE
        .replace("v {", "w {")
        .replace("10.0.0.100/24", "fd00::100/64");
    let haproxy_of_both = report(&format!("{INSTANCE}{v6}"));
    assert!(
        !haproxy_of_both.contains("of its family"),
        "{haproxy_of_both}"
    );
}

/// What an instance of keepalived accepts is what its words say, or strict mode, as keepalived.conf(5) has it.
#[test]
fn accept_mode_is_that_of_keepalived() {
    let key = |version: u8, global: &str, own: &str| {
        let text = format!(
            "global_defs {{\n vrrp_version {version}\n {global}\n}}\nvrrp_instance a {{\n interface eth0\n \
             virtual_router_id 1\n priority 100\n {own}\n virtual_ipaddress {{\n 10.0.0.100/24\n }}\n}}\n"
        );
        let inputs = Inputs {
            keepalived: Some(Input {
                name: "k".to_owned(),
                text,
            }),
            ..Inputs::default()
        };
        let imported = import::import(&inputs, &options()).unwrap();
        let about = |text: &str| text.contains("accept") || text.contains("strict");
        for entry in imported.report.entries() {
            assert!(!about(&entry.text) || !entry.fate.needs_hand(), "{entry:?}");
        }
        let mut lines = imported.toml.lines();
        let line = lines.find(|line| line.starts_with("accept = "));
        line.and_then(|line| line.split(' ').nth(2)?.parse::<bool>().ok())
    };
    for (version, global, own, accepts) in [
        (3, "", "", None),
        (3, "", "accept", Some(true)),
        (3, "", "no_accept", Some(false)),
        (3, "", "no_accept\n accept", Some(true)),
        (3, "vrrp_strict", "", Some(false)),
        (2, "vrrp_strict", "", Some(false)),
        (3, "vrrp_strict", "accept", Some(true)),
        (2, "vrrp_strict", "accept", Some(false)),
        (3, "vrrp_strict", "strict_mode off", None),
        (3, "vrrp_strict off", "", None),
        (3, "", "strict_mode", Some(false)),
        (3, "", "strict_mode on", Some(false)),
        (2, "", "strict_mode off\n no_accept", Some(false)),
    ] {
        let said = key(version, global, own);
        assert_eq!(said, accepts, "version {version}, {global:?}, {own:?}");
    }
}

/// What is written may say too little, but it is TOML, with known keys of the right types.
fn assert_no_syntax_error(errors: &ConfigErrors) {
    for error in errors.errors() {
        let is_syntax = error.key.is_empty() || error.problem == "unknown key";
        assert!(!is_syntax, "{error}");
    }
}

/// The report of lines that are not text of any format.
fn import_both(keepalived: &str, haproxy: &str, env: &str) -> Option<Report> {
    let input = |name: &str, text: &str| {
        Some(Input {
            name: name.to_owned(),
            text: text.to_owned(),
        })
    };
    let inputs = Inputs {
        keepalived: input("k", keepalived),
        haproxy: input("h", haproxy),
        check_script: input("s", keepalived),
        env: input("e", env),
    };
    match import::import(&inputs, &options()) {
        Ok(imported) => Some(imported.report),
        Err(Refusal::Invalid { report, errors, .. }) => {
            assert_no_syntax_error(&errors);
            Some(report)
        }
        Err(Refusal::TooLarge(_)) => None,
    }
}

/// Words that mean something to one of the formats, and some that mean nothing.
const WORDS: &[&str] = &[
    "{",
    "}",
    "vrrp_instance",
    "vrrp_script",
    "virtual_server",
    "real_server",
    "virtual_ipaddress",
    "virtual_ipaddress_excluded",
    "unicast_peer",
    "authentication",
    "auth_pass",
    "auth_type",
    "PASS",
    "track_script",
    "global_defs",
    "priority",
    "advert_int",
    "version",
    "interface",
    "eth0",
    "255",
    "0",
    "-1",
    "99999999999999999999",
    "1e308",
    "nan",
    "10.0.0.1",
    "10.0.0.1/24",
    "fd00::1/64",
    "dev",
    "label",
    "VI_1",
    "SSL_GET",
    "HTTP_GET",
    "url",
    "path",
    "status_code",
    "200-299",
    "delay_loop",
    "retry",
    "frontend",
    "backend",
    "listen",
    "defaults",
    "bind",
    "*:6443",
    ":::6443",
    "server",
    "m1",
    "10.0.0.2:6443",
    "[fd00::2]:6443",
    "check",
    "check-ssl",
    "inter",
    "1s",
    "option",
    "httpchk",
    "GET",
    "/healthz",
    "http-check",
    "expect",
    "send",
    "connect",
    "ssl",
    "status",
    "rstatus",
    "(2|3)[0-9][0-9]",
    "mode",
    "tcp",
    "http",
    "default_backend",
    "default-server",
    "weight",
    "port",
    "timeout",
    "tcp-check",
    "string",
    "from",
    "junk",
    "acl",
    "src",
    "10.0.0.0/8",
    "tcp-request",
    "connection",
    "reject",
    "accept",
    "if",
    "unless",
    "stick-table",
    "conn_rate(3s)",
    "track_script",
    "vrrp_sync_group",
    "track_file",
    "file",
    "script",
    "user",
    "interval",
    "script_user",
    "notify",
    "notify_master",
    "notify_fifo",
    "notify_fifo_script",
    "vrrp_startup_delay",
    "init_fail",
    "reverse",
    "/usr/local/bin/x",
    "\"/usr/local/bin/x 'a b' c\"",
    "agent-check",
    "agent-port",
    "agent-addr",
    "KEEPALIVED_PRIORITY=1",
    "käse",
    "[",
    "]",
    "(",
    ")",
    "~SEQ(A,1,9)",
    "@edge1",
    "@^edge1",
    "protocol",
    "UDP",
    "group",
    "virtual_server_group",
    "lb_kind",
    "DR",
    "no",
    "stats",
    "global",
    "maxconn",
];

fn text() -> impl Strategy<Value = String> {
    let word = proptest::sample::select(WORDS);
    let line = proptest::collection::vec(word, 1..7);
    let line = line.prop_map(|words| words.join(" "));
    proptest::collection::vec(line, 0..40).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever words come in whatever order: nothing panics, and every line is reported.
    #[test]
    fn no_line_gets_lost(keepalived in text(), haproxy in text()) {
        let report = import_both(&keepalived, &haproxy, "").unwrap();
        let reported = reported(&report);
        for (name, text) in [("k", keepalived), ("h", haproxy)] {
            let input = Input { name: name.to_owned(), text };
            for line in lines_that_count(&input, |_| false) {
                prop_assert!(reported.contains(&line), "{line:?} of\n{}\n{report}", input.text);
            }
        }
    }

    /// Any text at all.
    #[test]
    fn nothing_panics(text in "\\PC*", other in "(?s).{0,400}") {
        import_both(&text, &other, &text);
        import_both(&other, &text, &other);
    }

    /// A fixture with a piece cut out or put elsewhere.
    #[test]
    fn damaged_fixtures_do_not_panic(from in 0..3000_usize, to in 0..3000_usize, length in 0..400_usize) {
        let damage = |name: &str| {
            let mut bytes = input(name).text.into_bytes();
            let from = from % bytes.len();
            let piece: Vec<_> = bytes.drain(from..bytes.len().min(from + length)).collect();
            let to = to % (bytes.len() + 1);
            bytes.splice(to..to, piece);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let keepalived = damage("many-addresses/keepalived.conf");
        let haproxy = damage("many-addresses/haproxy.cfg");
        import_both(&keepalived, &haproxy, &damage("container/m1.env"));
        import_both(&damage("lvs/keepalived.conf"), &damage("two-masters/haproxy.cfg"), "");
    }
}

/// Inputs that are made to exhaust a parser end, and soon.
#[test]
fn hostile_inputs_end() {
    let deep = "vrrp_instance {\n".repeat(10_000);
    let many = "a ".repeat(300_000);
    let doubling = "$A=${B}${B}\n$B=${C}${C}\n$C=${A}${A}\nx ${A}\n";
    let lines = "$X= \\\n $X \\\n $X \\\n $X\n$X\n";
    let unclosed = "vrrp_instance \"never closed {\n  priority 5\n";
    for text in [
        &deep,
        &many,
        doubling,
        lines,
        unclosed,
        "}\n}\n{\n",
        "\0\u{1}\u{7f}\n",
    ] {
        import_both(text, text, text);
    }
    // A file that includes itself.
    let again: import::Include<'_> = &|_| {
        Ok(vec![Input {
            name: "again".to_owned(),
            text: "include again\ninclude again\n".to_owned(),
        }])
    };
    let inputs = Inputs {
        keepalived: Some(Input {
            name: "k".to_owned(),
            text: "include again\n".to_owned(),
        }),
        ..Inputs::default()
    };
    let options = Options {
        include: again,
        ..options()
    };
    let Err(Refusal::Invalid { report, .. }) = import::import(&inputs, &options) else {
        panic!("nothing was in it");
    };
    assert!(report.needs_hand());
}

/// What becomes no valid configuration is refused, with the reasons.
#[test]
fn an_invalid_result_is_refused() {
    let text = "vrrp_instance a {\n interface eth0\n virtual_ipaddress {\n 10.0.0.1/24\n }\n}\n";
    let inputs = Inputs {
        keepalived: Some(Input {
            name: "k".to_owned(),
            text: text.to_owned(),
        }),
        ..Inputs::default()
    };
    let refusal = import::import(&inputs, &options()).unwrap_err();
    let Refusal::Invalid { errors, .. } = &refusal else {
        panic!("{refusal}");
    };
    assert_eq!(errors.errors()[0].key, "vrrp[0].vrid");
    assert!(refusal.to_string().contains("was not written"), "{refusal}");
}
