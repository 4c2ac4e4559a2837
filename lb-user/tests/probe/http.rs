//! What an HTTP check sends, what it expects, and both versions of HTTP.

use hyper::header::HeaderMap;
use lb_user::config::model::BodyMatch;

use super::*;

/// A plain server whose answers are all these bytes, and what it was sent.
async fn raw_server(response: &'static str) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let (sent, requests) = mpsc::unbounded_channel();
    let address = serve(move |mut stream: TcpStream| {
        let sent = sent.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let _ = sent.send(String::from_utf8(head).unwrap());
            let _ = stream.write_all(response.as_bytes()).await;
            let _ = stream.shutdown().await;
            let _ = read_to_end(&mut stream).await;
        }
    })
    .await;
    (address, requests)
}

async fn check(http: HttpConfig, address: SocketAddr) -> ProbeOutcome {
    let check = CheckConfig::Http(http);
    prober(check).probe(address, PLENTY).await
}

/// Proves that a range of statuses is one, with both its ends.
#[tokio::test]
async fn ranges_of_statuses_are_expected() {
    let http = HttpConfig {
        expect_status: vec![StatusRange {
            first: 201,
            last: 399,
        }],
        ..readyz()
    };
    for (code, expected) in [
        (200, false),
        (201, true),
        (304, true),
        (399, true),
        (400, false),
    ] {
        let address = serve(move |stream| answer(stream, code)).await;
        let outcome = check(http.clone(), address).await;
        let passed = outcome.class() == Class::Pass;
        assert_eq!(passed, expected, "{code}: {outcome}");
    }
}

/// Proves that a failed answer's reason is told, as kube-apiserver words it.
#[tokio::test]
async fn reasons_are_told() {
    let (address, _requests) = raw_server(
        "HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n\
        [+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n",
    )
    .await;
    let outcome = check(readyz(), address).await;
    let text = outcome.to_string();
    assert!(text.starts_with("HTTP 500 after "), "{text}");
    assert!(text.ends_with(" s: etcd failed"), "{text}");
}

/// Proves that the body must hold what is expected, be it a text or an expression.
#[tokio::test]
async fn body_is_matched() {
    let (address, _requests) =
        raw_server("HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nstatus: (fine)").await;
    let cases = [
        (BodyMatch::Text("(fine)".into()), true),
        (BodyMatch::Text("Fine".into()), false),
        (BodyMatch::Regex("^status: \\((ok|fine)\\)$".into()), true),
        (BodyMatch::Regex("^fine".into()), false),
    ];
    for (expect_body, passes) in cases {
        let outcome = check(
            HttpConfig {
                expect_body: Some(expect_body.clone()),
                ..readyz()
            },
            address,
        )
        .await;
        assert_eq!(outcome.class() == Class::Pass, passes, "{outcome}");
        if !passes {
            let text = outcome.to_string();
            assert_eq!(outcome.class(), Class::NotReady);
            let note = format!(": {expect_body} is not in its body");
            assert!(text.ends_with(&note), "{text}");
        }
    }
}

/// Proves that what stands beyond the bound of a body is not looked at, and not waited for.
#[tokio::test]
async fn body_is_read_up_to_a_bound() {
    let address = serve(|mut stream: TcpStream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    for (text, passes) in [("xxx", true), ("y", false)] {
        let http = HttpConfig {
            expect_body: Some(BodyMatch::Text(text.into())),
            ..readyz()
        };
        let outcome = check(http, address).await;
        assert_eq!(outcome.class() == Class::Pass, passes, "{outcome}");
    }
}

/// Proves that method and headers are sent as configured, over our own ones.
#[tokio::test]
async fn method_and_headers_are_sent() {
    let (address, mut requests) = raw_server("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").await;
    let headers = [
        ("X-Check", "a b"),
        ("x-check", "c"),
        ("User-Agent", "probe"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let http = HttpConfig {
        method: HttpMethod::Head,
        headers: headers.to_vec(),
        ..readyz()
    };
    let outcome = check(http.clone(), address).await;
    assert_eq!(
        outcome.finding,
        status(200, true),
        "a HEAD has no body to wait for"
    );
    let request = requests.recv().await.unwrap().to_lowercase();
    assert!(
        request.starts_with("head /readyz http/1.1\r\n"),
        "{request}"
    );
    for line in [
        "x-check: a b\r\n",
        "x-check: c\r\n",
        "user-agent: probe\r\n",
    ] {
        assert!(request.contains(line), "{request}");
    }
    assert!(!request.contains("xvip/"), "{request}");

    let (address, mut requests) = raw_server("HTTP/1.1 204 No Content\r\n\r\n").await;
    let http = HttpConfig {
        method: HttpMethod::Options,
        expect_status: vec![StatusRange::only(204)],
        ..readyz()
    };
    assert_eq!(check(http, address).await.finding, status(204, true));
    assert!(
        requests
            .recv()
            .await
            .unwrap()
            .starts_with("OPTIONS /readyz ")
    );
}

/// Proves that the token is the file's present one, and that a file that cannot be used says
/// nothing about the backend.
#[tokio::test]
async fn bearer_token_follows_its_file() {
    let (address, mut requests) = raw_server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let dir = TempDir::new();
    let http = HttpConfig {
        bearer_token_file: Some(dir.write("token", "one\n")),
        ..readyz()
    };
    let prober = prober(CheckConfig::Http(http));
    for token in ["one", "two"] {
        dir.write("token", &format!("{token}\n"));
        let outcome = prober.probe(address, PLENTY).await;
        assert_eq!(outcome.finding, status(200, true));
        let request = requests.recv().await.unwrap().to_lowercase();
        let line = format!("authorization: bearer {token}\r\n");
        assert!(request.contains(&line), "{request}");
    }
    for (content, problem) in [("", "is empty"), ("two words", "holds no token")] {
        dir.write("token", content);
        let outcome = prober.probe(address, PLENTY).await;
        assert_eq!(outcome.class(), Class::Void);
        assert!(outcome.to_string().ends_with(problem), "{outcome}");
    }
    std::fs::remove_file(dir.0.join("token")).unwrap();
    let outcome = prober.probe(address, PLENTY).await;
    assert_eq!(outcome.class(), Class::Void, "{outcome}");
}

// --- HTTP/2 -----------------------------------------------------------------------------------

/// Serves HTTP/2 requests with `code` and a body in two pieces, and passes on their heads.
async fn answer_http2<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    code: u16,
    seen: mpsc::UnboundedSender<(hyper::Uri, HeaderMap)>,
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let _ = seen.send((request.uri().clone(), request.headers().clone()));
        let response = Response::builder().status(code).body(()).unwrap();
        let mut body = respond.send_response(response, false).unwrap();
        body.send_data("[-]etcd failed:".into(), false).unwrap();
        body.send_data(" reason withheld\n".into(), true).unwrap();
    }
}

type Seen = mpsc::UnboundedReceiver<(hyper::Uri, HeaderMap)>;

/// A TLS server for HTTP/2 alone.
async fn http2_server(code: u16) -> (SocketAddr, Seen) {
    let pki = Pki::new();
    let mut config = ServerConfig::clone(&pki.server);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (sent, seen) = mpsc::unbounded_channel();
    let address = serve(move |stream| {
        let (acceptor, sent) = (acceptor.clone(), sent.clone());
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                answer_http2(stream, code, sent).await;
            }
        }
    })
    .await;
    (address, seen)
}

fn http2() -> HttpConfig {
    HttpConfig {
        version: HttpVersion::V2,
        ..readyz()
    }
}

/// Proves that a request in HTTP/2 over TLS passes, and what the server sees of it.
#[tokio::test]
async fn http2_over_tls_passes() {
    let (address, mut seen) = http2_server(200).await;
    let http = HttpConfig {
        host: Some("cluster.test".into()),
        headers: vec![("X-Check".into(), "1".into())],
        ..http2()
    };
    let check = CheckConfig::Https(any_tls(), http);
    let outcome = prober(check).probe(address, PLENTY).await;
    assert_eq!(outcome.finding, status(200, true));
    let (uri, headers) = seen.recv().await.unwrap();
    assert_eq!(uri.to_string(), "https://cluster.test/readyz");
    assert_eq!(headers.get("x-check").unwrap(), "1");
    assert!(headers.get("connection").is_none() && headers.get("host").is_none());
}

/// Proves that an unhappy answer in HTTP/2 is told with its reason, also without TLS.
#[tokio::test]
async fn http2_failures_are_told() {
    let (address, _seen) = http2_server(500).await;
    let check = CheckConfig::Https(any_tls(), http2());
    let outcome = prober(check).probe(address, PLENTY).await;
    assert_eq!(outcome.class(), Class::NotReady);
    assert!(outcome.to_string().ends_with(": etcd failed"), "{outcome}");

    let (sent, mut seen) = mpsc::unbounded_channel();
    let address = serve(move |stream| answer_http2(stream, 503, sent.clone())).await;
    let outcome = prober(CheckConfig::Http(http2()))
        .probe(address, PLENTY)
        .await;
    assert!(outcome.to_string().starts_with("HTTP 503 "), "{outcome}");
    let (uri, _) = seen.recv().await.unwrap();
    assert_eq!(uri.to_string(), format!("http://{address}/readyz"));
}

/// Proves that a server without HTTP/2 fails the check, before and after the handshake, and that
/// one that closes or hangs in the middle is not ready.
#[tokio::test]
async fn missing_http2_is_not_ready() {
    // No application protocol is agreed on.
    let pki = Pki::new();
    let mut config = ServerConfig::clone(&pki.server);
    config.alpn_protocols = Vec::new();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let address = serve(move |stream| {
        let acceptor = acceptor.clone();
        async move { answer(acceptor.accept(stream).await.unwrap(), 200).await }
    })
    .await;
    let check = CheckConfig::Https(any_tls(), http2());
    let outcome = prober(check).probe(address, PLENTY).await;
    assert_eq!(
        protocol_error(&outcome, Stage::Http),
        "HTTP/2 is not spoken"
    );

    for raw in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let address = serve(move |stream| answer_raw(stream, raw)).await;
        let outcome = prober(CheckConfig::Http(http2()))
            .probe(address, PLENTY)
            .await;
        assert_eq!(outcome.class(), Class::NotReady, "{outcome}");
        assert!(!outcome.timed_out(), "{outcome}");
    }
    let hangs = serve(|mut stream| async move {
        let _ = read_to_end(&mut stream).await;
    })
    .await;
    let outcome = prober(CheckConfig::Http(http2())).probe(hangs, BRIEF).await;
    assert_eq!(outcome.finding, failed(Stage::Http, Failure::TimedOut));
}

// --- TLS --------------------------------------------------------------------------------------

/// Proves that a server of TLS 1.2 alone passes unless at least 1.3 is asked for.
#[tokio::test]
async fn oldest_tls_version_is_kept() {
    let pki = Pki::asking(ClientAuth::RequiredInTls12);
    let address = https_server(&pki, 200).await;
    for (min, passes) in [(TlsMin::V12, true), (TlsMin::V13, false)] {
        let mut tls = pki.verified(None);
        tls.client = Some(pki.client());
        tls.min = min;
        let check = CheckConfig::Https(tls, readyz());
        let outcome = prober(check).probe(address, PLENTY).await;
        assert_eq!(outcome.class() == Class::Pass, passes, "{outcome}");
        if !passes {
            protocol_error(&outcome, Stage::Tls);
        }
    }
}
