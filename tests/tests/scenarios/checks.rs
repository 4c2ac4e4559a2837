//! Checks of real servers: nginx over HTTP/2 on kept connections, and an agent.

use std::{
    fs::{self, File},
    io::Write,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use lb_tests::{
    cluster::{Cluster, PATIENCE},
    process::Process,
    skip_unless_installed, skip_unless_root,
    topology::Node,
};
use lb_user::admin::model::{
    BackendState::{Down, Draining, Up},
    BackendStatus,
};

/// An nginx that answers checks, with a log line for each.
struct Nginx {
    process: Process,
    log: PathBuf,
    /// It answers 503 while this file is there.
    not_ready: PathBuf,
}

impl Nginx {
    fn start(node: &Node) -> Self {
        let dir = node.directory();
        let made = rcgen::generate_simple_self_signed(vec!["nginx.test".to_owned()]).unwrap();
        fs::write(dir.join("nginx.crt"), made.cert.pem()).unwrap();
        fs::write(dir.join("nginx.key"), made.signing_key.serialize_pem()).unwrap();
        let config = dir.join("nginx.conf");
        let shown = dir.display();
        fs::write(
            &config,
            format!(
                "daemon off; master_process off; pid {shown}/nginx.pid; error_log {shown}/nginx.err;\n\
                 events {{}}\n\
                 http {{\n\
                 log_format checks '$server_protocol $status $connection $connection_requests';\n\
                 access_log {shown}/nginx.log checks;\n\
                 client_body_temp_path {shown}/body; proxy_temp_path {shown}/proxy;\n\
                 fastcgi_temp_path {shown}/fastcgi; uwsgi_temp_path {shown}/uwsgi;\n\
                 scgi_temp_path {shown}/scgi;\n\
                 server {{\n\
                 listen 8443 ssl http2;\n\
                 ssl_certificate {shown}/nginx.crt; ssl_certificate_key {shown}/nginx.key;\n\
                 location /readyz {{ if (-f {shown}/not-ready) {{ return 503; }} return 200 ok; }}\n\
                 }}\n}}\n"
            ),
        )
        .unwrap();
        let config = config.display().to_string();
        let arguments = ["-c", &config, "-e", "stderr"];
        Self {
            process: node.start("nginx", "nginx", &arguments).unwrap(),
            log: dir.join("nginx.log"),
            not_ready: dir.join("not-ready"),
        }
    }

    /// What was asked so far: protocol and status, and how often on this connection.
    fn answers(&self) -> Vec<(String, u32)> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let line = |line: &str| {
            let (rest, requests) = line.rsplit_once(' ')?;
            let (what, _) = rest.rsplit_once(' ')?;
            Some((what.to_owned(), requests.parse().ok()?))
        };
        // The last line may be half there.
        text.lines().filter_map(line).collect()
    }
}

/// An agent that says the same until it is told otherwise. It ends with the test's process.
fn agent(node: &Node, port: u16) -> Arc<Mutex<&'static str>> {
    let said = Arc::new(Mutex::new("up 100%\n"));
    let (listener, words) = (SocketAddr::from((node.ipv4(), port)), Arc::clone(&said));
    let listener = node
        .namespace()
        .enter(|| Ok(TcpListener::bind(listener)?))
        .unwrap();
    // A socket stays in the namespace that it was made in.
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let words = *words.lock().unwrap();
            let _ = stream.write_all(words.as_bytes());
        }
    });
    said
}

fn backend(cluster: &Cluster) -> BackendStatus {
    cluster.backend("m1", "b1").unwrap()
}

/// Waits until the backend is like this.
fn wait(cluster: &Cluster, what: &str, is: impl Fn(&BackendStatus) -> bool) {
    let seen = || Ok(Some(()).filter(|()| is(&backend(cluster))));
    cluster.wait(what, seen).unwrap();
}

/// Checks in HTTP/2 use one connection after the other; a 503 on it drains, and a server that freezes
/// is down all the same. The agent's percentage changes the shares, and its words the state.
#[test]
fn nginx_and_an_agent_are_asked() {
    skip_unless_root!();
    skip_unless_installed!("nginx");
    let builder = Cluster::builder().masters(1).plain_backends(1);
    let prepared = builder.prepare(|plane| {
        "1s".clone_into(&mut plane.advert_interval);
        "type = \"https\"\nhttp_version = \"2\"\nport = 8443\ninterval = \"300ms\"\n\
         fast_interval = \"200ms\"\nfall = 2\nagent = { port = 9777 }"
            .clone_into(&mut plane.health);
    });
    let mut cluster = prepared.unwrap();
    // Beside the agents' common port, where nobody answers.
    cluster.edit_config("m1", |text| {
        *text = text.replace("name = \"b1\"\n", "name = \"b1\"\nagent_port = 9778\n");
    });
    let said = agent(cluster.node("b1"), 9778);
    let _other = Nginx::start(cluster.node("m1"));
    let nginx = Nginx::start(cluster.node("b1"));
    cluster.start_xvip("m1").unwrap();
    cluster.wait_settled("m1").unwrap();

    let reused = || {
        let is_fifth = |(what, requests): &(String, u32)| what == "HTTP/2.0 200" && *requests >= 5;
        Ok(nginx.answers().iter().any(is_fifth).then_some(()))
    };
    cluster
        .wait("a connection to be used again", reused)
        .unwrap();

    File::create(&nginx.not_ready).unwrap();
    wait(&cluster, "503 to drain it", |seen| {
        seen.state == Draining && seen.reason.contains("HTTP 503 after")
    });
    fs::remove_file(&nginx.not_ready).unwrap();
    cluster.wait_backend("m1", "b1", Up).unwrap();

    let expected = [("50%\n", 1.0 / 3.0), ("200%\n", 2.0 / 3.0), ("100%\n", 0.5)];
    for (words, share) in expected {
        *said.lock().unwrap() = words;
        wait(&cluster, words, |seen| (seen.share - share).abs() < 0.001);
    }
    *said.lock().unwrap() = "50% drain\n";
    wait(&cluster, "the agent to drain it", |seen| {
        seen.state == Draining && seen.share < 0.001 && seen.agent_percent == Some(50)
    });
    *said.lock().unwrap() = "ready 100%\n";
    wait(&cluster, "the agent to end that", |seen| {
        seen.state == Up && (seen.share - 0.5).abs() < 0.001
    });

    let count = nginx.answers().len();
    let more = || Ok((nginx.answers().len() > count + 1).then_some(()));
    cluster.wait("a connection that is kept", more).unwrap();
    nginx.process.freeze().unwrap();
    cluster.wait_backend("m1", "b1", Down).unwrap();
    nginx.process.resume().unwrap();
    cluster.wait_backend("m1", "b1", Up).unwrap();
    nginx.process.terminate(PATIENCE).unwrap();
    wait(&cluster, "a server that has gone to be down", |seen| {
        seen.state == Down && seen.reason.contains("connection refused")
    });
}
