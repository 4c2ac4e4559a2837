//! UDP services: answers come from the VIP's port by every method, flows stay with their backend
//! until they are silent or it dies, and the nodes' own processes are served as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use lb_common::reason::Reason;
use lb_tests::{
    cluster::{Builder, Cluster, PATIENCE},
    control_plane::BOTH,
    datagram::{Answer, Client, Server, by_process},
    process::{output, workspace_binary},
    skip_unless_root,
};
use lb_user::admin::model::BackendState::{Down, Draining, Up};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Port of the services.
const PORT: u16 = 5353;
/// Port of the backends.
const BACKEND_PORT: u16 = 5300;
/// Clients of a service, enough for each backend to get some.
const CLIENTS: usize = 40;
/// Bytes of a question.
const QUESTION: usize = 100;

/// A UDP service of each family with backends on `m1` (local, while it owns the VIPs), `m2` (dsr) and
/// `b1` (nat), and their servers. Their stand-ins say whether they are well.
struct Udp {
    cluster: Cluster,
    servers: BTreeMap<String, Server>,
}

/// The nodes.
fn nodes() -> Builder {
    let builder = Cluster::builder().masters(2).plain_backends(1);
    builder.stand_in(&["--listen", "[::]:6443", "--plain"])
}

impl Udp {
    /// All of it, settled; with a line of `[node]`, and lines of every service.
    fn start(builder: Builder, node: &str, service: &str, backends: &[&str]) -> Self {
        let mut cluster = builder
            .prepare(|plane| {
                plane.vips = BOTH.into();
                "type = \"http\"\ninterval = \"1s\"".clone_into(&mut plane.health);
                node.clone_into(&mut plane.node);
            })
            .unwrap();
        let mut text = String::new();
        for vip in BOTH {
            let family = if vip.is_ipv4() { "v4" } else { "v6" };
            write!(
                text,
                "[[service]]\nname = \"dns-{family}\"\naddress = \"{vip}\"\nport = {PORT}\n\
                 protocol = \"udp\"\n{service}\n[service.health]\ntype = \"http\"\nport = 6443\n\
                 interval = \"500ms\"\nfast_interval = \"100ms\"\nfall = 2\n\n"
            )
            .unwrap();
            for backend in backends {
                let address = cluster.node(backend).address_like(vip);
                let address = SocketAddr::new(address, BACKEND_PORT);
                write!(
                    text,
                    "[[service.backend]]\nname = \"{backend}\"\naddress = \"{address}\"\n\n"
                )
                .unwrap();
            }
        }
        for node in cluster.masters() {
            cluster.edit_config(&node, |config| config.push_str(&text));
        }
        let start = |name: &&str| {
            let server = Server::start(cluster.node(name), BACKEND_PORT).unwrap();
            ((*name).to_owned(), server)
        };
        let servers = backends.iter().map(start).collect();
        for node in cluster.masters() {
            cluster.start_xvip(&node).unwrap();
        }
        cluster.wait_settled("m1").unwrap();
        Self { cluster, servers }
    }

    /// Clients of a service.
    fn clients(&self, vip: IpAddr) -> Vec<Client> {
        let open = |_| Client::open(self.cluster.client(), service(vip)).unwrap();
        (0..CLIENTS).map(open).collect()
    }

    /// A node's server and its stand-in end.
    fn kill(&mut self, node: &str) {
        self.servers.remove(node).unwrap();
        self.cluster.kill_stand_in(node).unwrap();
    }

    /// Both are back.
    fn revive(&mut self, node: &str) {
        let server = Server::start(self.cluster.node(node), BACKEND_PORT).unwrap();
        self.servers.insert(node.to_owned(), server);
        self.cluster.start_stand_in(node).unwrap();
    }

    /// The flows of a service on a node.
    fn flows(&self, node: &str, vip: IpAddr) -> Vec<Value> {
        let vip = vip.to_string();
        let service = format!("dns-{}", if vip.contains(':') { "v6" } else { "v4" });
        let arguments = ["flows", "--json", "--service", &service];
        let listed = output(&mut self.cluster.cli(node, &arguments).unwrap()).unwrap();
        let lines = listed.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn service(vip: IpAddr) -> SocketAddr {
    SocketAddr::new(vip, PORT)
}

/// Who answers each client, all of them as the VIP.
#[track_caller]
fn answers(clients: &[Client], vip: IpAddr) -> Vec<Answer> {
    let ask = |client: &Client| {
        let answer = client.ask(QUESTION, PATIENCE).unwrap();
        assert_eq!(answer.from, service(vip));
        answer
    };
    clients.iter().map(ask).collect()
}

/// Names of the servers.
fn servers(answers: &[Answer]) -> BTreeSet<&str> {
    answers
        .iter()
        .map(|answer| answer.server.as_str())
        .collect()
}

/// Local, dsr and nat, both families, both ways of attachment: answers come from VIP:port, the
/// servers see the client (by nat the VIP), a client's datagrams go to one server, and the flows are
/// listed.
#[test]
fn answers_come_from_the_vip_by_every_method() {
    skip_unless_root!();
    for attach in ["native", "tc"] {
        let node = format!("attach = \"{attach}\"");
        let udp = Udp::start(nodes(), &node, "", &["m1", "m2", "b1"]);
        for vip in BOTH {
            let clients = udp.clients(vip);
            let first = answers(&clients, vip);
            assert_eq!(servers(&first), BTreeSet::from(["b1", "m1", "m2"]));
            let own = udp.cluster.client().address_like(vip);
            for (client, answer) in clients.iter().zip(&first) {
                let seen = if answer.server == "b1" { vip } else { own };
                assert_eq!(answer.client.ip(), seen, "{answer:?}");
                assert_eq!(answer.client.port(), client.port().unwrap(), "{answer:?}");
            }
            for _ in 0..3 {
                assert_eq!(answers(&clients, vip), first, "{attach}");
            }
            // As long as fits a frame.
            let long = clients[0].ask(1_400, PATIENCE).unwrap();
            assert_eq!(long, first[0]);

            let flows = udp.flows("m1", vip);
            assert_eq!(flows.len(), CLIENTS, "{flows:?}");
            for flow in &flows {
                let client: SocketAddr = flow["client"].as_str().unwrap().parse().unwrap();
                let at = clients
                    .iter()
                    .position(|c| c.port().unwrap() == client.port());
                assert_eq!(flow["backend"], first[at.unwrap()].server, "{flow}");
                assert_eq!(flow["state"], "udp", "{flow}");
            }
        }
    }
}

/// A backend that dies loses its flows to the others as soon as the checks have noticed; those of
/// the others stay where they are. Back again it serves new flows.
#[test]
fn flows_of_a_dead_backend_go_elsewhere() {
    skip_unless_root!();
    let mut udp = Udp::start(nodes(), "", "", &["m1", "m2", "b1"]);
    for dead in ["m1", "m2", "b1"] {
        let clients = BOTH.map(|vip| (vip, udp.clients(vip)));
        let before = clients
            .each_ref()
            .map(|(vip, clients)| answers(clients, *vip));
        udp.kill(dead);
        udp.cluster.wait_backend("m1", dead, Down).unwrap();
        for ((vip, clients), before) in clients.iter().zip(&before) {
            let after = answers(clients, *vip);
            assert!(!servers(&after).contains(dead), "{after:?}");
            for (before, after) in before.iter().zip(&after) {
                assert!(before.server == dead || before == after, "{after:?}");
            }
        }
        udp.revive(dead);
        udp.cluster.wait_backend("m1", dead, Up).unwrap();
        for vip in BOTH {
            let back = answers(&udp.clients(vip), vip);
            assert_eq!(servers(&back), BTreeSet::from(["b1", "m1", "m2"]));
        }
    }
}

/// A backend that is not ready keeps the flows that it has, until they are silent for the service's
/// idle timeout: then they are new ones, and go elsewhere.
#[test]
fn silent_flows_end() {
    skip_unless_root!();
    let idle = "idle_timeout = \"3s\"";
    let udp = Udp::start(nodes(), "", idle, &["m1", "m2", "b1"]);
    let clients = BOTH.map(|vip| (vip, udp.clients(vip)));
    let before = clients
        .each_ref()
        .map(|(vip, clients)| answers(clients, *vip));
    let stand_in = udp.cluster.stand_in("m2");
    stand_in.signal(Signal::SIGUSR1).unwrap();
    udp.cluster.wait_backend("m1", "m2", Draining).unwrap();
    // Who asks all the time is still answered by the same one (or, on a machine that took so long,
    // has been silent too long; then nothing is proved here).
    let (vip, talking) = &clients[0];
    let mut kept = 0;
    let silent = udp.cluster.wait("other flows to end", || {
        let now = answers(talking, *vip);
        kept += usize::from(now == before[0]);
        let (vip, quiet) = &clients[1];
        let idle = udp.flows("m1", *vip);
        let all = idle.len() == quiet.len();
        let over = |flow: &Value| flow["idle_seconds"].as_u64().unwrap() >= 4;
        Ok((!all || idle.iter().all(over)).then_some(()))
    });
    silent.unwrap();
    println!("the talking clients were answered by the same servers {kept} times");
    assert!(kept > 0);
    let (vip, quiet) = &clients[1];
    let after = answers(quiet, *vip);
    assert_eq!(servers(&after), BTreeSet::from(["b1", "m1"]), "{after:?}");
}

/// The VIP moves, and back: every client is answered again from it, by dsr and local by the same
/// server.
#[test]
fn flows_go_on_at_another_owner() {
    skip_unless_root!();
    let mut udp = Udp::start(nodes(), "", "", &["m1", "m2"]);
    let clients = BOTH.map(|vip| (vip, udp.clients(vip)));
    let before = clients
        .each_ref()
        .map(|(vip, clients)| answers(clients, *vip));
    assert_eq!(servers(&before[0]), BTreeSet::from(["m1", "m2"]));
    udp.cluster.stop_xvip("m1").unwrap();
    udp.cluster.wait_settled("m2").unwrap();
    let moved = clients
        .each_ref()
        .map(|(vip, clients)| answers(clients, *vip));
    assert_eq!(moved, before);
    udp.cluster.start_xvip("m1").unwrap();
    udp.cluster.wait_settled("m1").unwrap();
    let back = clients
        .each_ref()
        .map(|(vip, clients)| answers(clients, *vip));
    assert_eq!(back, before);
}

/// A process whose socket is connected to a backend that says nothing any more: when the checks have
/// noticed, its next system call fails, and it can connect anew.
#[test]
fn connected_sockets_of_a_dead_backend_are_ended() {
    skip_unless_root!();
    let mut udp = Udp::start(nodes(), "", "", &["m2"]);
    let binary = workspace_binary("xvip-client").unwrap();
    let start = |vip: IpAddr| {
        let target = service(vip).to_string();
        let arguments = [
            "--udp-connected",
            "--requests=1000000000",
            "--timeout-ms=600000",
            "--target",
            &target,
        ];
        let label = if vip.is_ipv4() { "asks-v4" } else { "asks-v6" };
        let node = udp.cluster.node("m1");
        node.start(label, binary.to_str().unwrap(), &arguments)
            .unwrap()
    };
    let processes = BOTH.map(start);
    let connected = udp.cluster.wait("both clients to connect", || {
        let now = udp.cluster.reason("m1", Reason::ConnectRemote)?;
        Ok((now == 2).then_some(()))
    });
    connected.unwrap();
    // Nobody refuses what is sent there.
    udp.servers["m2"].fall_silent();
    udp.cluster.kill_stand_in("m2").unwrap();
    for process in &processes {
        assert!(!process.wait_exit(PATIENCE).unwrap().success());
        let said = process.output();
        assert!(said.contains("connection abort"), "{said}");
    }
}

/// Processes on the nodes that ask the VIP, connected or not: the node's own server answers, then
/// another one when it stops listening, then nobody, and that is said at once.
#[test]
fn processes_on_the_nodes_are_served() {
    skip_unless_root!();
    let mut udp = Udp::start(nodes(), "", "", &["m1", "m2"]);
    let ask = |udp: &Udp, node: &str, other: &str| {
        for vip in BOTH {
            let own = udp.cluster.node(node).address_like(vip);
            for connected in [false, true] {
                let at = udp.cluster.node(node);
                let answers = by_process(at, service(vip), 3, connected).unwrap();
                assert_eq!(answers.len(), 3);
                for answer in answers {
                    assert_eq!((answer.server.as_str(), answer.from), (other, service(vip)));
                    assert_eq!(answer.client.ip(), own, "{answer:?}");
                }
            }
        }
    };
    for node in ["m1", "m2"] {
        ask(&udp, node, node);
        let cluster = &udp.cluster;
        assert!(cluster.reason(node, Reason::SendLocal).unwrap() >= 6);
        assert_eq!(cluster.reason(node, Reason::ConnectLocal).unwrap(), 2);
    }
    // No check has noticed yet.
    udp.servers.remove("m1").unwrap();
    ask(&udp, "m1", "m2");
    assert!(udp.cluster.reason("m1", Reason::SendRemote).unwrap() >= 6);

    for node in ["m1", "m2"] {
        udp.cluster.kill_stand_in(node).unwrap();
        udp.cluster.wait_backend("m1", node, Down).unwrap();
    }
    for connected in [false, true] {
        let at = udp.cluster.node("m1");
        let error = by_process(at, service(BOTH[0]), 1, connected).unwrap_err();
        let said = format!("{error:#}");
        assert!(said.contains("Connection refused"), "{said}");
    }
}
