//! Connections that end in every way that TCP has, and source ports that are used again at once:
//! by local, dsr and nat, over IPv4 and IPv6, with both ends in the test's hands.

// Ends are functions of one type, and some of them close.
#![allow(clippy::needless_pass_by_value)]

use std::{
    io::Read,
    net::{Shutdown, TcpStream},
};

use lb_tests::{
    endpoint::{finish, reset, talk, transfer, was_reset},
    kernel, skip_unless_root,
    ways::{Path, Ways},
};

/// How often each port is used again.
const ROUNDS: u16 = 10;
/// Bytes that one side sends after the other one has said that it sends no more: many segments.
const MUCH: usize = 1_000_000;

/// Ends a connection, given the client's and the backend's end.
type End = fn(TcpStream, TcpStream);

/// The client closes first.
fn client_closes(client: TcpStream, server: TcpStream) {
    finish(&client, &server).unwrap();
    finish(&server, &client).unwrap();
}

/// The server closes first: its memory of the connection (TIME-WAIT) is what the next one meets.
fn server_closes(client: TcpStream, server: TcpStream) {
    finish(&server, &client).unwrap();
    finish(&client, &server).unwrap();
}

fn client_resets(client: TcpStream, mut server: TcpStream) {
    reset(client).unwrap();
    assert!(was_reset(&mut server).unwrap());
}

fn server_resets(mut client: TcpStream, server: TcpStream) {
    reset(server).unwrap();
    assert!(was_reset(&mut client).unwrap());
}

/// Both sides say that they are done before either has heard it from the other.
fn both_close(client: TcpStream, server: TcpStream) {
    for end in [&client, &server] {
        end.shutdown(Shutdown::Write).unwrap();
    }
    for mut end in [&client, &server] {
        let mut rest = Vec::new();
        end.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
}

/// Uses one port over and over; each connection ends as `end` ends it.
fn reuse(ways: &Ways, path: Path, port: u16, end: End) {
    for round in 0..ROUNDS {
        let connected = ways.connect(path, Some(port));
        let (client, server) = connected.unwrap_or_else(|error| panic!("{round}: {error:#}"));
        talk(&client, &server).unwrap_or_else(|error| panic!("{path}, {round}: {error:#}"));
        end(client, server);
    }
}

/// A client that uses its port again meets no trace of the connection before: after FIN from
/// either side or from both at once, and after RST from either side.
#[test]
fn a_port_is_used_again_right_after_its_connection_ended() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    // The client's own memory of a connection that it closed first does not hold its port back.
    let client = ways.cluster.client().namespace();
    let reuse_at_once = || {
        kernel::sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        kernel::sysctl("net/ipv4/tcp_tw_reuse_delay", "1")
    };
    client.enter(reuse_at_once).unwrap();
    let ends: [(&str, End); 5] = [
        ("the client closes", client_closes),
        ("the server closes", server_closes),
        ("the client resets", client_resets),
        ("the server resets", server_resets),
        ("both close", both_close),
    ];
    for path in ways.paths() {
        for ((what, end), port) in ends.into_iter().zip(45_000..) {
            println!("{path}: {what}");
            reuse(&ways, path, port, end);
        }
    }
}

/// A side that sends no more goes on receiving: a megabyte comes after its FIN, in either
/// direction.
#[test]
fn half_closed_connections_go_on_in_the_other_direction() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    for path in ways.paths() {
        let (client, server) = ways.connect(path, None).unwrap();
        talk(&client, &server).unwrap();
        finish(&client, &server).unwrap();
        transfer(&server, &client, MUCH).unwrap();
        finish(&server, &client).unwrap();

        let (client, server) = ways.connect(path, None).unwrap();
        talk(&client, &server).unwrap();
        finish(&server, &client).unwrap();
        transfer(&client, &server, MUCH).unwrap();
        finish(&client, &server).unwrap();
    }
}

/// A RST reaches the other end also in the middle of a transfer, and one connection's RST is
/// nobody else's.
#[test]
fn resets_reach_the_other_end_and_nobody_else() {
    skip_unless_root!();
    let ways = Ways::start().unwrap();
    for path in ways.paths() {
        let bystander = ways.connect(path, None).unwrap();
        let (client, server) = ways.connect(path, None).unwrap();
        transfer(&server, &client, MUCH).unwrap();
        client_resets(client, server);
        let (client, server) = ways.connect(path, None).unwrap();
        transfer(&client, &server, MUCH).unwrap();
        server_resets(client, server);
        talk(&bystander.0, &bystander.1).unwrap();
    }
}
