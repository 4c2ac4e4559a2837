//! Questions to a backend's agent.

use lb_common::abi::BackendState;
use lb_user::{
    core::health::agent::{AgentReport, AgentState},
    io::probe::agent::ask,
};

use super::*;

/// What becomes of a backend whose agent said this.
fn limit(report: Option<AgentReport>) -> Option<BackendState> {
    let mut state = AgentState::default();
    state.hear(report?);
    Some(state.limit())
}

/// Proves that an agent that speaks at once is understood, with and without a line end.
#[tokio::test]
async fn agents_are_understood() {
    for answer in ["drain\n", "drain", "50%, drain\r\nmaint\n"] {
        let address = serve(move |mut stream: TcpStream| async move {
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        })
        .await;
        let report = ask(address, "", PLENTY).await;
        assert_eq!(limit(report), Some(BackendState::Draining), "{answer:?}");
    }
}

/// Proves that an agent gets what is sent to it, and that a line is enough: it need not close.
#[tokio::test]
async fn agents_are_told_first() {
    let address = serve(|mut stream: TcpStream| async move {
        let mut line = [0; 6];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"state\n");
        let _ = stream.write_all(b"stopped#upgrade\n").await;
        let _ = read_to_end(&mut stream).await;
    })
    .await;
    let report = ask(address, "state\n", PLENTY).await;
    assert_eq!(limit(report), Some(BackendState::Down));
}

/// Proves that agents that are not there, hang, chatter or talk nonsense say nothing.
#[tokio::test]
async fn other_agents_say_nothing() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let closed = socket.local_addr().unwrap();
    assert_eq!(ask(closed, "", PLENTY).await, None);
    let hangs = serve(|mut stream| async move {
        let _ = read_to_end(&mut stream).await;
    })
    .await;
    assert_eq!(ask(hangs, "", BRIEF).await, None);
    let chatters = serve(|mut stream: TcpStream| async move {
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    assert_eq!(ask(chatters, "", PLENTY).await, None);
    let nonsense = serve(|stream| answer_raw(stream, b"HTTP/1.1 400 Bad Request\r\n")).await;
    assert_eq!(ask(nonsense, "GET", PLENTY).await, None);
}
