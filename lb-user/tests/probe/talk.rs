//! Checks that send and expect bytes, plain and over TLS.

use lb_user::config::model::{Pattern, Step};

use super::*;

fn send(bytes: &[u8]) -> Step {
    Step::Send(bytes.to_vec())
}

fn expect(bytes: &[u8]) -> Step {
    Step::Expect(Pattern::Bytes(bytes.to_vec()))
}

fn matching(regex: &str) -> Step {
    Step::Expect(Pattern::Regex(regex.to_owned()))
}

/// Greets in two pieces, answers PING with `reply`, and closes after QUIT.
async fn talker<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, reply: &[u8]) {
    let _ = stream.write_all(b"220 rea").await;
    let _ = stream.flush().await;
    let _ = stream.write_all(b"dy\r\n").await;
    let mut line = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        line.push(byte);
        match line.as_slice() {
            b"PING\r\n" => {
                let _ = stream.write_all(reply).await;
                line.clear();
            }
            b"QUIT\r\n" => break,
            _ => {}
        }
    }
    let _ = stream.shutdown().await;
}

async fn plain_talker(reply: &'static [u8]) -> SocketAddr {
    serve(move |stream| talker(stream, reply)).await
}

async fn ask(steps: &[Step], address: SocketAddr, timeout: Duration) -> ProbeOutcome {
    let check = CheckConfig::Tcp(steps.to_vec());
    prober(check).probe(address, timeout).await
}

/// Proves that a conversation passes that goes as configured: pieces are put together, several
/// expectations look at the same bytes, and bytes need not be text.
#[tokio::test]
async fn conversation_passes() {
    let address = plain_talker(b"\x05\x00\xff+PONG\r\n").await;
    let steps = [
        matching("^220 .*\r\n$"),
        expect(b"ready"),
        send(b"PI"),
        send(b"NG\r\n"),
        expect(b"\x00\xff"),
        matching("\\+(PONG|OK)"),
        send(b"QUIT\r\n"),
    ];
    let outcome = ask(&steps, address, PLENTY).await;
    assert_eq!(outcome.finding, Finding::Answered);
    assert!(outcome.times.talk.is_some());
    assert!(
        outcome.to_string().starts_with("answered after "),
        "{outcome}"
    );
}

/// Proves that a conversation passes over TLS.
#[tokio::test]
async fn conversation_passes_over_tls() {
    let acceptor = Pki::new().acceptor();
    let address = serve(move |stream| {
        let acceptor = acceptor.clone();
        async move { talker(acceptor.accept(stream).await.unwrap(), b"+PONG").await }
    })
    .await;
    let steps = vec![send(b"PING\r\n"), expect(b"+PONG")];
    let check = CheckConfig::Tls(any_tls(), steps);
    let outcome = prober(check).probe(address, PLENTY).await;
    assert_eq!(outcome.finding, Finding::Answered, "{outcome}");
    assert!(outcome.times.tls.is_some());
}

/// Proves that what was received before a sending answers no expectation after it.
#[tokio::test]
async fn sending_begins_anew() {
    let address = plain_talker(b"+PONG").await;
    let steps = [
        expect(b"ready\r\n"),
        send(b"PING\r\n"),
        expect(b"PONG"),
        send(b"PING\r\n"),
        matching("^\\+PONG"),
    ];
    assert_eq!(
        ask(&steps, address, PLENTY).await.finding,
        Finding::Answered
    );
    let steps = [expect(b"ready\r\n"), send(b"PING\r\n"), expect(b"ready")];
    let outcome = ask(&steps, address, BRIEF).await;
    assert_eq!(outcome.class(), Class::NotReady);
}

/// Proves that another answer than the expected one is not ready, never dead, and is told.
#[tokio::test]
async fn other_answers_are_told() {
    let address = plain_talker(b"-ERR no\r\n").await;
    let steps = [expect(b"ready\r\n"), send(b"PING\r\n"), expect(b"+PONG")];
    let outcome = ask(&steps, address, AFTER_HANDSHAKE).await;
    assert_eq!(outcome.class(), Class::NotReady);
    assert!(outcome.timed_out() && !outcome.proves_death());
    let text = outcome.to_string();
    let told = r#""+PONG" did not come, but "-ERR no\r\n": answer timed out after "#;
    assert!(text.starts_with(told), "{text}");

    let closes = serve(|stream| answer_raw(stream, b"bye")).await;
    let steps = [send(b"PING\r\n"), matching("PONG$")];
    let outcome = ask(&steps, closes, PLENTY).await;
    assert_eq!(outcome.class(), Class::NotReady);
    let text = outcome.to_string();
    let told = r#"/PONG$/ did not come, but "bye": connection closed after "#;
    assert!(text.starts_with(told), "{text}");
}

/// Proves that a flood of something else ends the check before its time does.
#[tokio::test]
async fn flood_is_bounded() {
    let address = serve(|mut stream: TcpStream| async move {
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    let outcome = ask(&[expect(b"y")], address, PLENTY).await;
    assert_eq!(outcome.class(), Class::NotReady);
    assert!(!outcome.timed_out(), "{outcome}");
    assert!(
        outcome.to_string().ends_with("64 KiB of something else"),
        "{outcome}"
    );
}
