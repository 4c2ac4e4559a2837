//! HTTP checks over connections that are kept.

use super::*;

/// Long enough for an answer after a quarter of it.
const SOME: Duration = Duration::from_secs(4);

fn keep_alive() -> HttpConfig {
    HttpConfig {
        keep_alive: true,
        ..readyz()
    }
}

fn plain() -> Prober {
    prober(CheckConfig::Http(keep_alive()))
}

/// A server that hands each connection to `serve` with its number, from 0, and how many came.
async fn counting<F: Future<Output = ()> + Send + 'static>(
    serve_one: impl Fn(TcpStream, u32) -> F + Send + 'static,
) -> (SocketAddr, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&count);
    let address = serve(move |stream| {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        serve_one(stream, number)
    })
    .await;
    (address, count)
}

/// Reads the head of a request; `None`: there is none any more.
async fn head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

async fn ok<S: AsyncWrite + Unpin>(stream: &mut S) {
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let _ = stream.write_all(response).await;
}

/// Answers requests for ever.
async fn answer_all<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    while head(&mut stream).await.is_some() {
        ok(&mut stream).await;
    }
}

/// Checks once over a fresh connection and three times over what is kept; all of them pass.
async fn four_passes(prober: &Prober, address: SocketAddr) {
    let first = prober.probe(address, PLENTY).await;
    assert_eq!(first.class(), Class::Pass, "{first}");
    for _ in 0..3 {
        let outcome = prober.probe_again(address, PLENTY).await;
        assert_eq!(outcome.class(), Class::Pass, "{outcome}");
    }
}

/// Proves that one connection serves check after check, with TLS and without, until a fresh one is
/// asked for; and that the request says so.
#[tokio::test]
async fn connections_are_used_again() {
    let (sent, mut heads) = mpsc::unbounded_channel();
    let (address, count) = counting(move |mut stream, _| {
        let sent = sent.clone();
        async move {
            while let Some(head) = head(&mut stream).await {
                let _ = sent.send(head);
                ok(&mut stream).await;
            }
        }
    })
    .await;
    let prober = plain();
    four_passes(&prober, address).await;
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let again = prober.probe_again(address, PLENTY).await;
    assert!(again.times.connect.is_none() && again.times.http.is_some());
    prober.probe(address, PLENTY).await;
    assert_eq!(count.load(Ordering::Relaxed), 2);
    let head = heads.recv().await.unwrap().to_lowercase();
    assert!(!head.contains("connection: close"), "{head}");

    let acceptor = Pki::new().acceptor();
    let (address, count) = counting(move |stream, _| {
        let acceptor = acceptor.clone();
        async move { answer_all(acceptor.accept(stream).await.unwrap()).await }
    })
    .await;
    let check = CheckConfig::Https(any_tls(), keep_alive());
    let prober = super::prober(check);
    four_passes(&prober, address).await;
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

/// Proves that every backend has a connection of its own.
#[tokio::test]
async fn backends_do_not_share_connections() {
    let prober = plain();
    let (one, first) = counting(|stream, _| answer_all(stream)).await;
    let (other, second) = counting(|stream, _| answer_all(stream)).await;
    four_passes(&prober, one).await;
    four_passes(&prober, other).await;
    prober.probe_again(one, PLENTY).await;
    let counts = [first, second].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts, [1, 1]);
}

/// Proves that without `keep_alive` nothing is kept, and the server is told.
#[tokio::test]
async fn nothing_is_kept_unless_configured() {
    let (address, count) = counting(|mut stream, _| async move {
        let head = head(&mut stream).await.unwrap().to_lowercase();
        assert!(head.contains("connection: close\r\n"), "{head}");
        ok(&mut stream).await;
        let _ = read_to_end(&mut stream).await;
    })
    .await;
    four_passes(&prober(CheckConfig::Http(readyz())), address).await;
    assert_eq!(count.load(Ordering::Relaxed), 4);
}

/// Proves that checks pass with a server that closes after each answer: if it says so, if it does
/// not, by reset, and if its answer ends with the connection.
#[tokio::test]
async fn servers_may_close() {
    for (response, reset) in [
        (
            "200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            false,
        ),
        ("200 OK\r\nContent-Length: 0\r\n\r\n", false),
        ("200 OK\r\nContent-Length: 0\r\n\r\n", true),
        ("200 OK\r\n\r\nto the end", false),
    ] {
        let (address, count) = counting(move |mut stream, _| async move {
            let _ = head(&mut stream).await;
            let response = format!("HTTP/1.1 {response}");
            let _ = stream.write_all(response.as_bytes()).await;
            if reset {
                // What comes next finds nobody.
                let _ = stream.read_u8().await;
                stream.set_zero_linger().unwrap();
            } else {
                let _ = stream.shutdown().await;
                let _ = read_to_end(&mut stream).await;
            }
        })
        .await;
        four_passes(&plain(), address).await;
        assert_eq!(count.load(Ordering::Relaxed), 4, "{response}");
    }
}

/// Proves that a server that goes away is dead with proof, although a connection was kept.
#[tokio::test]
async fn a_server_that_goes_away_is_dead() {
    // At an address of its own: nobody else gets the port meanwhile.
    let own = Ipv4Addr::new(127, 0, 77, 1);
    let listener = TcpListener::bind((own, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = head(&mut stream).await;
        ok(&mut stream).await;
        stream.set_zero_linger().unwrap();
    });
    let prober = plain();
    let first = prober.probe(address, PLENTY).await;
    assert_eq!(first.class(), Class::Pass, "{first}");
    server.await.unwrap();
    let outcome = prober.probe_again(address, PLENTY).await;
    assert_eq!(outcome.finding, failed(Stage::Connect, Failure::Refused));
    assert!(outcome.proves_death());
}

/// Proves that a frozen server shows in the handshake of a fresh connection, within the time limit
/// of the one check.
#[tokio::test]
async fn a_frozen_server_is_dead_within_the_limit() {
    let acceptor = Pki::new().acceptor();
    let (address, count) = counting(move |mut stream, number| {
        let acceptor = acceptor.clone();
        async move {
            if number > 0 {
                let _ = read_to_end(&mut stream).await;
                return;
            }
            let mut stream = acceptor.accept(stream).await.unwrap();
            let _ = head(&mut stream).await;
            ok(&mut stream).await;
            let _ = read_to_end(&mut stream).await;
        }
    })
    .await;
    let prober = prober(CheckConfig::Https(any_tls(), keep_alive()));
    let first = prober.probe(address, PLENTY).await;
    assert_eq!(first.class(), Class::Pass, "{first}");
    let outcome = prober.probe_again(address, AFTER_HANDSHAKE).await;
    assert_eq!(outcome.finding, failed(Stage::Tls, Failure::TimedOut));
    assert_eq!(outcome.class(), Class::Dead);
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

/// Proves that a kept connection whose answer takes long still counts: it comes when a fresh
/// connection is there, which is not answered.
#[tokio::test]
async fn a_late_answer_counts() {
    let (opened, was_opened) = tokio::sync::watch::channel(0);
    let opened = Arc::new(opened);
    let (address, count) = counting(move |mut stream, number| {
        let (opened, mut was_opened) = (Arc::clone(&opened), was_opened.clone());
        async move {
            opened.send_replace(number);
            if number > 0 {
                let _ = read_to_end(&mut stream).await;
                return;
            }
            let _ = head(&mut stream).await;
            ok(&mut stream).await;
            let _ = head(&mut stream).await;
            was_opened.wait_for(|number| *number > 0).await.unwrap();
            ok(&mut stream).await;
            answer_all(stream).await;
        }
    })
    .await;
    let prober = plain();
    prober.probe(address, PLENTY).await;
    let outcome = prober.probe_again(address, SOME).await;
    assert_eq!(outcome.finding, status(200, true));
    assert_eq!(count.load(Ordering::Relaxed), 2);
    // It is the one that is kept.
    prober.probe_again(address, PLENTY).await;
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

/// Proves that a server that has forgotten the kept connection, without a word, passes by a fresh one.
#[tokio::test]
async fn a_silent_connection_is_replaced() {
    let (address, count) = counting(|mut stream, number| async move {
        if number > 0 {
            return answer_all(stream).await;
        }
        let _ = head(&mut stream).await;
        ok(&mut stream).await;
        let _ = read_to_end(&mut stream).await;
    })
    .await;
    let prober = plain();
    prober.probe(address, PLENTY).await;
    for _ in 0..2 {
        let outcome = prober.probe_again(address, SOME).await;
        assert_eq!(outcome.finding, status(200, true));
        assert!(outcome.times.http.is_some());
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

/// Proves that an unhappy answer on a kept connection counts, and ends it; that one which speaks
/// of the connection does not count; and that one without HTTP is none.
#[tokio::test]
async fn unhappy_answers_count() {
    for (second, code, connections) in [
        ("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nok", 500, 1),
        ("HTTP/1.1 408 No\r\nContent-Length: 2\r\n\r\nok", 200, 2),
        ("HTTP/1.1 421 No\r\nContent-Length: 2\r\n\r\nok", 200, 2),
        ("\0\r\n\r\n", 200, 2),
    ] {
        let (address, count) = counting(move |mut stream, number| async move {
            let _ = head(&mut stream).await;
            ok(&mut stream).await;
            if number == 0 {
                let _ = head(&mut stream).await;
                let _ = stream.write_all(second.as_bytes()).await;
            }
            answer_all(stream).await;
        })
        .await;
        let prober = plain();
        prober.probe(address, PLENTY).await;
        let outcome = prober.probe_again(address, PLENTY).await;
        assert_eq!(outcome.finding, status(code, code == 200), "{second:?}");
        assert_eq!(count.load(Ordering::Relaxed), connections, "{second:?}");
        prober.probe_again(address, PLENTY).await;
        assert_eq!(count.load(Ordering::Relaxed), 2, "{second:?}");
    }
}

/// Proves that another token goes over another connection.
#[tokio::test]
async fn another_token_has_another_connection() {
    let (address, count) = counting(|stream, _| answer_all(stream)).await;
    let dir = TempDir::new();
    let http = HttpConfig {
        bearer_token_file: Some(dir.write("token", "one")),
        ..keep_alive()
    };
    let prober = prober(CheckConfig::Http(http));
    four_passes(&prober, address).await;
    assert_eq!(count.load(Ordering::Relaxed), 1);
    dir.write("token", "two");
    let outcome = prober.probe_again(address, PLENTY).await;
    assert_eq!(outcome.finding, status(200, true));
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

/// Proves that kept connections end in order with their prober.
#[tokio::test]
async fn connections_end_with_the_prober() {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = head(&mut stream).await;
        ok(&mut stream).await;
        read_to_end(&mut stream).await
    });
    let prober = plain();
    prober.probe(address, PLENTY).await;
    drop(prober);
    server.await.unwrap().unwrap();
}

/// Proves that HTTP/2 connections are used again, also after an answer whose body is long, and that
/// a server that ends one (GOAWAY) or closes it passes by a fresh one.
#[tokio::test]
async fn http2_connections_are_used_again() {
    for (shutdown_after, connections) in [(u32::MAX, 1), (1, 4)] {
        let (address, count) = counting(move |stream, _| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut requests = 0;
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                requests += 1;
                let response = Response::builder().status(200).body(()).unwrap();
                let mut body = respond.send_response(response, false).unwrap();
                body.send_data(vec![b'x'; 40_000].into(), true).unwrap();
                if requests == shutdown_after {
                    connection.graceful_shutdown();
                }
            }
        })
        .await;
        let http = HttpConfig {
            version: HttpVersion::V2,
            ..keep_alive()
        };
        four_passes(&prober(CheckConfig::Http(http)), address).await;
        assert_eq!(count.load(Ordering::Relaxed), connections);
    }
}
