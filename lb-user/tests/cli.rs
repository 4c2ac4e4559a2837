//! The real binary, as an operator or a script meets it: what it prints where, and its exit codes.

// A failed unwrap is a failed test; clippy.toml's exception reaches test functions only.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{self, Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
};

use lb_user::admin::{Paths, lock::InstanceLock};

const SUCCESS: i32 = 0;
const FAILURE: i32 = 1;
const USAGE: i32 = 2;
const CONFIG: i32 = 3;
const NOT_RUNNING: i32 = 4;
const BY_HAND: i32 = 6;

/// A directory with a valid configuration whose state directory is the directory itself.
struct Node(PathBuf);

impl Node {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("xvip-cli-{}-{number}", process::id()));
        fs::create_dir(&dir).unwrap();
        let node = Self(dir);
        node.write_config(&format!(
            r#"
[node]
name = "master01"
instance = "cli-test"
interfaces = ["uplink"]
state_dir = "{}"

[[vrrp]]
name = "control-plane"
interface = "uplink"
vrid = 51
addresses = ["10.0.2.100/24"]

[[service]]
name = "apiserver"
address = "10.0.2.100"
port = 1644
[service.health]
type = "tcp"
[[service.backend]]
name = "master01"
address = "10.0.2.10:6443"
"#,
            node.0.display()
        ));
        node
    }

    fn write_config(&self, text: &str) {
        fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.0.join("xvip.toml")
    }

    fn paths(&self) -> Paths {
        Paths::new(&self.0, "cli-test")
    }

    /// Runs `xvip ARGS --config` with this node's configuration.
    fn xvip(&self, args: &str) -> Output {
        command(args)
            .arg("--config")
            .arg(self.config())
            .output()
            .unwrap()
    }

    /// A stand-in for a running controller: gives one request this answer and returns the request.
    fn answer(&self, answer: &'static str) -> JoinHandle<String> {
        answer_at(&self.paths().socket(), answer)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xvip"));
    command.args(args.split_whitespace()).env_remove("XVIP_LOG");
    command
}

fn answer_at(socket: &Path, answer: &'static str) -> JoinHandle<String> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = String::new();
        BufReader::new(stream.try_clone().unwrap())
            .read_line(&mut request)
            .unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        request
    })
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
}

/// A status document with nothing in it but what must be, and a field from the future.
const STATUS: &str = concat!(
    r#"{"ok":{"version":"9.9.9","node":"master01","instance":"cli-test","uptime_ms":1000,"#,
    r#""config_file":"/x","data_plane":{"abi_version":1,"attach":[],"cgroup":null,"#,
    r#""warnings":[]},"vrrp":[],"services":[],"peers":[],"reasons":[],"later":1}}"#,
    "\n"
);

/// Help goes to standard output, documents the exit codes, and every command has examples.
#[test]
fn help_explains_every_command() {
    let output = command("--help").output().unwrap();
    assert_code(&output, SUCCESS);
    assert!(stdout(&output).contains("Exit codes:"));
    for name in [
        "run",
        "check",
        "import",
        "status",
        "detach",
        "vrrp",
        "vrrp step-down",
        "vrrp resume",
    ] {
        let output = command(name).arg("--help").output().unwrap();
        assert_code(&output, SUCCESS);
        for expected in ["Examples:", "--config <FILE>", "--log-format", "XVIP_LOG"] {
            assert!(stdout(&output).contains(expected), "{name}: {expected}");
        }
    }
}

/// A wrong command line is explained on standard error; also one that only the environment makes
/// wrong.
#[test]
fn usage_errors_exit_with_2() {
    for args in ["", "frobnicate", "status --yaml", "check --log-level loud"] {
        let output = command(args).output().unwrap();
        assert_code(&output, USAGE);
        assert!(stdout(&output).is_empty(), "{output:?}");
        assert!(!stderr(&output).is_empty(), "{output:?}");
    }
    let output = command("check").env("XVIP_LOG", "loud").output().unwrap();
    assert_code(&output, USAGE);
    assert!(stderr(&output).contains("loud"), "{output:?}");
}

/// A valid file is said to be valid.
#[test]
fn check_accepts_a_good_file() {
    let node = Node::new();
    let output = node.xvip("check");
    assert_code(&output, SUCCESS);
    assert!(stdout(&output).contains("is valid"), "{output:?}");
    assert!(stderr(&output).is_empty(), "{output:?}");
}

/// Every error of a bad file is printed with its place, in one run.
#[test]
fn check_prints_every_error() {
    let node = Node::new();
    let good = fs::read_to_string(node.config()).unwrap();
    let bad = good
        .replace("vrid = 51", "vrid = 0")
        .replace("port = 1644", "prot = 1644");
    node.write_config(&bad);
    let output = node.xvip("check");
    assert_code(&output, CONFIG);
    assert!(stdout(&output).is_empty(), "{output:?}");
    for wrong in ["vrid = 0", "prot = 1644"] {
        let line = 1 + bad.lines().position(|line| line == wrong).unwrap();
        let place = format!("{}:{line}:", node.config().display());
        assert!(stderr(&output).contains(&place), "{place} in {output:?}");
    }
}

/// A file that is not there is a configuration error that names it.
#[test]
fn check_names_a_missing_file() {
    let output = command("check --config /nonexistent/xvip.toml")
        .output()
        .unwrap();
    assert_code(&output, CONFIG);
    assert!(stderr(&output).contains("/nonexistent/xvip.toml"));
}

/// Without a running xvip, `status` and `vrrp` say so and where they looked.
#[test]
fn nothing_runs() {
    let node = Node::new();
    for args in ["status", "status --json", "vrrp step-down", "vrrp resume a"] {
        let output = node.xvip(args);
        assert_code(&output, NOT_RUNNING);
        let expected = format!(
            "xvip: no xvip answers at {}: is it running?\n",
            node.paths().socket().display()
        );
        assert_eq!(stderr(&output), expected);
        assert!(stdout(&output).is_empty(), "{output:?}");
    }
}

/// `--json` prints all that the controller said, the text form what this xvip understands of it.
#[test]
fn status_comes_as_text_and_json() {
    let node = Node::new();
    let controller = node.answer(STATUS);
    let output = node.xvip("status");
    assert_code(&output, SUCCESS);
    assert_eq!(controller.join().unwrap(), "{\"command\":\"status\"}\n");
    let first = stdout(&output).lines().next().unwrap();
    assert_eq!(
        first,
        "xvip 9.9.9 on master01, instance cli-test, up 1.0s, /x"
    );
    assert!(!stdout(&output).contains('\x1b'), "{output:?}");

    fs::remove_file(node.paths().socket()).unwrap();
    let controller = node.answer(STATUS);
    let output = node.xvip("status --json");
    assert_code(&output, SUCCESS);
    controller.join().unwrap();
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let said: serde_json::Value = serde_json::from_str(STATUS).unwrap();
    assert_eq!(printed, said["ok"]);
}

/// `--socket` asks without reading a configuration, which its user may not be able to read.
#[test]
fn a_socket_can_be_named() {
    let node = Node::new();
    let socket = node.0.join("other.sock");
    let controller = answer_at(&socket, STATUS);
    let output = command("status --config /nonexistent --socket")
        .arg(&socket)
        .output()
        .unwrap();
    assert_code(&output, SUCCESS);
    controller.join().unwrap();
}

/// `vrrp` commands say what they did; a refusal is a failure with the controller's reason.
#[test]
fn vrrp_commands_report() {
    let node = Node::new();
    let controller = node.answer("{\"ok\":{\"instances\":[\"control-plane\"]}}\n");
    let output = node.xvip("vrrp step-down control-plane");
    assert_code(&output, SUCCESS);
    assert_eq!(
        controller.join().unwrap(),
        "{\"command\":\"step_down\",\"vrrp\":\"control-plane\"}\n"
    );
    assert!(stdout(&output).starts_with("control-plane "), "{output:?}");

    fs::remove_file(node.paths().socket()).unwrap();
    let controller = node.answer("{\"error\":\"no VRRP instance is named \\\"x\\\"\"}\n");
    let output = node.xvip("vrrp resume x");
    assert_code(&output, FAILURE);
    controller.join().unwrap();
    assert_eq!(stderr(&output), "xvip: no VRRP instance is named \"x\"\n");
}

/// A reader that goes away (`xvip status | head -1`) is no failure and no panic.
#[test]
fn a_closed_pipe_is_no_failure() {
    let node = Node::new();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let controller = node.answer(STATUS);
    let output = command("status --json --config")
        .arg(node.config())
        .stdout(closed())
        .output()
        .unwrap();
    assert_code(&output, SUCCESS);
    assert!(stderr(&output).is_empty(), "{output:?}");
    controller.join().unwrap();

    let output = command("--help").stdout(closed()).output().unwrap();
    assert_code(&output, SUCCESS);
    assert!(stderr(&output).is_empty(), "{output:?}");
}

/// While a controller of the instance runs, a second one and `detach` are refused before they
/// touch anything.
#[test]
fn a_running_instance_is_left_alone() {
    let node = Node::new();
    let _controller = InstanceLock::acquire(node.paths()).unwrap();
    for args in ["run", "detach"] {
        let output = node.xvip(args);
        assert_code(&output, FAILURE);
        let expected = format!("held by process {}", process::id());
        assert!(stderr(&output).contains(&expected), "{output:?}");
    }
}

/// `run` and `detach` need a valid configuration.
#[test]
fn a_bad_configuration_stops_every_command() {
    let node = Node::new();
    node.write_config("[node]\ninterfaces = 7\n");
    for args in ["run", "detach", "status", "vrrp resume"] {
        assert_code(&node.xvip(args), CONFIG);
    }
}

/// `import` writes a file that `check` accepts, once, and its exit code says whether somebody must
/// look at something.
#[test]
fn import_writes_a_valid_file() {
    let node = Node::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/import");
    let output = node.0.join("imported.toml");
    let import = |peer: &[&str]| {
        command("import --address 10.77.0.11 --keepalived")
            .arg(fixtures.join("two-masters/m1.keepalived.conf"))
            .arg("--haproxy")
            .arg(fixtures.join("two-masters/haproxy.cfg"))
            .arg("--check-script")
            .arg(fixtures.join("two-masters/check_apiserver.sh"))
            .arg("-o")
            .arg(&output)
            .args(peer)
            .output()
            .unwrap()
    };
    let done = import(&[]);
    assert_code(&done, BY_HAND);
    assert!(
        stdout(&done).contains("BY HAND: [[peer]] \"m2\""),
        "{done:?}"
    );
    fs::remove_file(&output).unwrap();

    let done = import(&["--peer", "m2=10.77.0.12"]);
    assert_code(&done, SUCCESS);
    assert!(stdout(&done).contains("m1.keepalived.conf:20: priority 101 -> vrrp.priority = 101"));
    assert_eq!(
        fs::metadata(&output).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let check = command("check --config").arg(&output).output().unwrap();
    assert_code(&check, SUCCESS);

    let written = fs::read(&output).unwrap();
    let again = import(&[]);
    assert_code(&again, FAILURE);
    assert!(stderr(&again).contains("not there yet"), "{again:?}");
    assert_eq!(fs::read(&output).unwrap(), written);
}

/// What cannot be imported is refused: nothing named, nothing readable, nothing valid.
#[test]
fn import_refuses_what_it_cannot_do() {
    let node = Node::new();
    let output = node.0.join("imported.toml");
    let done = command("import").output().unwrap();
    assert_code(&done, USAGE);

    let done = command("import --keepalived /nonexistent/k.conf")
        .output()
        .unwrap();
    assert_code(&done, CONFIG);
    assert!(stderr(&done).contains("/nonexistent/k.conf"), "{done:?}");

    let text = "vrrp_instance a {\n interface eth0\n virtual_ipaddress {\n 10.0.0.1/24\n }\n}\n";
    let path = node.0.join("keepalived.conf");
    fs::write(&path, text).unwrap();
    let done = command("import -o")
        .arg(&output)
        .arg("--keepalived")
        .arg(&path)
        .output()
        .unwrap();
    assert_code(&done, CONFIG);
    assert!(
        stderr(&done).contains("vrrp[0].vrid: is missing"),
        "{done:?}"
    );
    assert!(!output.exists());
}

/// `import --env` takes the variables of the keepalived image from its own environment, and
/// includes are read.
#[test]
fn import_reads_the_environment_and_includes() {
    let node = Node::new();
    let done = command("import --env --address 10.0.2.10")
        .env("KEEPALIVED_INTERFACE", "uplink")
        .env(
            "KEEPALIVED_VIRTUAL_IPS",
            "#PYTHON2BASH:['10.0.2.100', '10.0.2.101/24']",
        )
        .env("KEEPALIVED_UNICAST_PEERS", "#PYTHON2BASH:['10.0.2.11']")
        .output()
        .unwrap();
    assert_code(&done, BY_HAND); // Nothing says what listens behind the VIP.
    for line in [
        "\"10.0.2.100/32\",",
        "\"10.0.2.101/24\",",
        "\"10.0.2.11\",",
        "priority = 150",
    ] {
        assert!(stdout(&done).contains(line), "{line}: {done:?}");
    }

    fs::write(node.0.join("a.inc"), "virtual_router_id 7\n").unwrap();
    let text = "vrrp_instance a {\n interface eth0\n include *.inc\n virtual_ipaddress {\n 10.0.0.1/24\n }\n}\n";
    let path = node.0.join("keepalived.conf");
    fs::write(&path, text).unwrap();
    let done = command("import --keepalived").arg(&path).output().unwrap();
    assert!(stdout(&done).contains("vrid = 7  # a.inc:1"), "{done:?}");
}
