//! The words of haproxy.cfg that become no key, and why.

/// What becomes of a line or an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// xvip needs nothing in its place: why.
    Nothing(&'static str),
    /// Somebody must do something: what.
    ByHand(&'static str),
}

const TIMERS: &str =
    "xvip keeps no timers in the data path: a connection lives as long as its ends";
const LOGS: &str = "xvip is not in the connections' way and logs none: `xvip flows`, `xvip trace` and \
                    `xvip status` show them";
const LIMITS: &str = "xvip holds no connection and limits none; new flows can be limited by \
                      node.new_flow_limit and service.source_limit";
const SOCKETS: &str =
    "client and server talk to each other directly: their own sockets' options count";
const STATS: &str = "`xvip status` shows services and backends";
const HTTP: &str = "it is about HTTP requests, which xvip does not look into";
pub(super) const RULES: &str = "xvip has no such rules; sources are allowed and denied by service.allow and service.deny, \
                     and slowed down by service.source_limit";
const PROXY_PROTOCOL: &str = "xvip sends no PROXY header: take it away at the server, too, which sees the \
                              client's address in the packets (but with nat)";
const TLS: &str = "xvip does not end TLS: clients talk to the server itself";
const NAMES: &str = "names of servers are looked up by the node's own resolver (/etc/hosts, /etc/resolv.conf), every \
                     node.resolve_interval; the last good address stays";
const STICKY: &str = "xvip has no stickiness: each new connection goes where the hash of its addresses and \
                      ports says";
pub(in crate::import) const AFFINITY: &str = "xvip keeps a connection, not a client, at a backend: each new connection goes where the hash of \
                        its addresses and ports says; see that the servers do not count on more";
const CONTENT: &str =
    "xvip does not look into connections: keep a balancer that does where this matters";
const SHUTDOWN: &str =
    "resets are sent when a backend goes down (service.on_backend_down), at no other time";
const PROCESS: &str =
    "xvip is one process without user, chroot and tuning; systemd's unit limits it";
const PROBES: &str = "xvip spreads and logs its checks itself";
const NO_PROXY: &str = "there is no proxy between client and server";

/// What becomes of a line of `defaults`, `frontend`, `backend` or `listen`.
pub(super) fn proxy(keyword: &str, second: &str) -> Option<Known> {
    Some(match keyword {
        "no" if matches!(second, "log" | "option" | "balance") => {
            Known::Nothing("it takes back what xvip does not do either")
        }
        "balance" if keeps_clients(second) => Known::ByHand(AFFINITY),
        "balance" if second == "first" => Known::ByHand(
            "haproxy fills one server after the other, and xvip spreads connections over all: write backup = true for \
             those that shall wait until another is down",
        ),
        "timeout" => Known::Nothing(TIMERS),
        "log" | "log-format" | "log-format-sd" | "log-tag" | "error-log-format"
        | "unique-id-format" | "unique-id-header" | "declare" | "capture" | "log-steps" => {
            Known::Nothing(LOGS)
        }
        "maxconn"
        | "fullconn"
        | "rate-limit"
        | "backlog"
        | "retries"
        | "max-keep-alive-queue"
        | "retry-on" => Known::Nothing(LIMITS),
        "stats" => Known::Nothing(STATS),
        "description" | "id" | "enabled" | "bind-process" | "grace" | "guid" | "transparent" => {
            Known::Nothing(NO_PROXY)
        }
        "balance" | "hash-type" | "hash-balance-factor" | "hash-preserve-affinity" => {
            Known::Nothing(
                "xvip chooses by Maglev hashing of addresses and ports, in proportion to weights; every node \
             chooses the same, so a moved VIP keeps its connections",
            )
        }
        "errorfile"
        | "errorfiles"
        | "errorloc"
        | "errorloc302"
        | "errorloc303"
        | "http-request"
        | "http-response"
        | "http-after-response"
        | "http-error"
        | "http-reuse"
        | "http-send-name-header"
        | "redirect"
        | "monitor-uri"
        | "monitor"
        | "monitor-net"
        | "compression"
        | "force-persist"
        | "ignore-persist"
        | "cookie"
        | "appsession"
        | "reqadd"
        | "rspadd"
        | "filter"
        | "use-fcgi-app"
        | "rsprep"
        | "reqrep" => Known::Nothing(HTTP),
        "tcp-request" | "tcp-response" if matches!(second, "content" | "inspect-delay") => {
            Known::ByHand(CONTENT)
        }
        "acl" | "tcp-request" | "tcp-response" | "block" => Known::ByHand(RULES),
        "use_backend" | "use-server" | "force-be-switch" => Known::ByHand(
            "xvip chooses by address and port only: write a [[service]] for what must go elsewhere",
        ),
        "stick" | "stick-table" | "persist" => Known::ByHand(STICKY),
        "email-alert" => {
            Known::Nothing("xvip sends no mail: watch its log or `xvip status --json`")
        }
        "source" => Known::Nothing("backends see the client's address, or with nat the VIP"),
        "dispatch" | "server-template" => {
            Known::ByHand("write a [[service.backend]] with its address for every server")
        }
        "load-server-state-from-file" | "server-state-file-name" => {
            Known::Nothing("xvip's backends keep their state while it runs, also over a reload")
        }
        "clitcpka-cnt" | "clitcpka-idle" | "clitcpka-intvl" | "srvtcpka-cnt" | "srvtcpka-idle"
        | "srvtcpka-intvl" => Known::Nothing(SOCKETS),
        _ => return None,
    })
}

/// Whether a way to balance leads a client always to one server.
fn keeps_clients(algorithm: &str) -> bool {
    let name = algorithm
        .split_once('(')
        .map_or(algorithm, |(name, _)| name);
    matches!(
        name,
        "source" | "uri" | "url_param" | "hdr" | "rdp-cookie" | "hash" | "sticky"
    )
}

/// What becomes of `option NAME`.
pub(super) fn option(name: &str) -> Option<Known> {
    Some(match name {
        "tcplog"
        | "httplog"
        | "httpslog"
        | "dontlognull"
        | "dontlog-normal"
        | "log-separate-errors"
        | "logasap"
        | "socket-stats" => Known::Nothing(LOGS),
        "log-health-checks" => Known::Nothing(PROBES),
        "redispatch" => Known::Nothing(
            "a repeated SYN goes to another backend where the first is down or refused the connection",
        ),
        "clitcpka"
        | "srvtcpka"
        | "tcpka"
        | "tcp-smart-accept"
        | "tcp-smart-connect"
        | "nolinger"
        | "splice-auto"
        | "splice-request"
        | "splice-response"
        | "transparent"
        | "use-small-buffers"
        | "independent-streams" => Known::Nothing(SOCKETS),
        "abortonclose" | "contstats" | "prefer-last-server" | "checkcache" => {
            Known::Nothing(NO_PROXY)
        }
        "persist"
        | "forceclose"
        | "forwardfor"
        | "http-server-close"
        | "httpclose"
        | "http-keep-alive"
        | "http-no-delay"
        | "http-pretend-keepalive"
        | "http-buffer-request"
        | "http-ignore-probes"
        | "http-use-htx"
        | "http-use-proxy-header"
        | "accept-invalid-http-request"
        | "accept-invalid-http-response"
        | "h1-case-adjust-bogus-client"
        | "h1-case-adjust-bogus-server"
        | "originalto"
        | "disable-h2-upgrade"
        | "http-restrict-req-hdr-names"
        | "http-tunnel"
        | "http-drop-request-trailers"
        | "http-drop-response-trailers"
        | "accept-unsafe-violations-in-http-request"
        | "accept-unsafe-violations-in-http-response"
        | "forwarded"
        | "idle-close-on-response" => Known::Nothing(HTTP),
        "smtpchk" | "ldap-check" | "mysql-check" | "pgsql-check" | "redis-check" | "spop-check" => {
            Known::ByHand(
                "xvip has no such check: the service's checks only connect; choose another type in \
             [service.health]",
            )
        }
        _ => return None,
    })
}

/// How many values an option of `bind` takes, and what becomes of it.
pub(super) fn bind(name: &str) -> Option<(usize, Known)> {
    let nothing = |values| (values, Known::Nothing(SOCKETS));
    Some(match name {
        "v4v6" | "v6only" => (
            0,
            Known::Nothing("a service is made for the VIPs of these families"),
        ),
        "interface" => (
            1,
            Known::Nothing("clients reach the VIP by the interfaces of node.interfaces"),
        ),
        "transparent" | "tfo" | "defer-accept" | "prefer-client-ciphers" | "strict-sni" => {
            nothing(0)
        }
        "name" | "mss" | "backlog" | "tcp-ut" | "nice" | "process" | "thread" | "shards" | "id"
        | "user" | "group" | "mode" | "uid" | "gid" | "level" | "severity-output" | "namespace"
        | "proto" | "idle-ping" | "cc" | "label" | "expose-fd" | "guid-prefix" | "tcp-md5sig"
        | "quic-cc-algo" | "quic-socket" => nothing(1),
        "quic-force-retry" => nothing(0),
        "maxconn" => (1, Known::Nothing(LIMITS)),
        "accept-proxy" | "accept-netscaler-cip" => (
            usize::from(name == "accept-netscaler-cip"),
            Known::ByHand("xvip reads no PROXY header: the server gets it as it comes"),
        ),
        "ssl"
        | "allow-0rtt"
        | "generate-certificates"
        | "no-tls-tickets"
        | "no-sslv3"
        | "no-tlsv10"
        | "no-tlsv11"
        | "no-tlsv12"
        | "no-tlsv13"
        | "no-alpn"
        | "no-ca-names"
        | "no-strict-sni" => (0, Known::ByHand(TLS)),
        forced if forced.starts_with("force-") => (0, Known::ByHand(TLS)),
        "crt" | "crt-list" | "ca-file" | "ca-verify-file" | "ca-sign-file" | "ca-sign-pass"
        | "ciphers" | "ciphersuites" | "alpn" | "npn" | "curves" | "ecdhe" | "verify"
        | "crl-file" | "ssl-min-ver" | "ssl-max-ver" | "tls-ticket-keys" | "crt-ignore-err"
        | "ca-ignore-err" | "sigalgs" | "client-sigalgs" | "default-crt" | "ocsp-update"
        | "ktls" | "ech" => (1, Known::ByHand(TLS)),
        _ => return None,
    })
}

/// Options of `server` with a value.
const WITH_VALUE: &[&str] = &[
    "addr",
    "agent-addr",
    "agent-inter",
    "agent-port",
    "agent-send",
    "alpn",
    "ca-file",
    "check-alpn",
    "check-proto",
    "check-sni",
    "ciphers",
    "ciphersuites",
    "cookie",
    "crl-file",
    "crt",
    "downinter",
    "error-limit",
    "fall",
    "fastinter",
    "id",
    "init-addr",
    "inter",
    "log-proto",
    "log-bufsize",
    "maxconn",
    "maxqueue",
    "max-reuse",
    "minconn",
    "namespace",
    "npn",
    "observe",
    "on-error",
    "on-marked-down",
    "on-marked-up",
    "pool-low-conn",
    "pool-max-conn",
    "pool-purge-delay",
    "port",
    "proto",
    "redir",
    "rise",
    "resolve-opts",
    "resolve-prefer",
    "resolve-net",
    "resolvers",
    "proxy-v2-options",
    "set-proxy-v2-tlv-fmt",
    "shard",
    "slowstart",
    "sni",
    "source",
    "usesrc",
    "socks4",
    "ssl-max-ver",
    "ssl-min-ver",
    "tcp-ut",
    "track",
    "verify",
    "verifyhost",
    "weight",
    "ws",
    "interface",
    "curves",
    "sigalgs",
    "client-sigalgs",
    "init-state",
    "guid",
    "hash-key",
    "cc",
    "idle-ping",
    "pool-conn-name",
    "check-pool-conn-name",
    "tcp-md5sig",
    "cert",
    "key",
    "ktls",
];

/// Options of `server` without a value.
const ALONE: &[&str] = &[
    "agent-check",
    "allow-0rtt",
    "backup",
    "check",
    "check-send-proxy",
    "check-ssl",
    "check-via-socks4",
    "check-reuse-pool",
    "no-check-reuse-pool",
    "renegotiate",
    "no-renegotiate",
    "strict-maxconn",
    "sni-auto",
    "no-sni-auto",
    "check-sni-auto",
    "no-check-sni-auto",
    "disabled",
    "enabled",
    "force-sslv3",
    "force-tlsv10",
    "force-tlsv11",
    "force-tlsv12",
    "force-tlsv13",
    "no-agent-check",
    "no-backup",
    "no-check",
    "no-check-ssl",
    "no-check-send-proxy",
    "no-send-proxy",
    "no-send-proxy-v2",
    "no-send-proxy-v2-ssl",
    "no-send-proxy-v2-ssl-cn",
    "no-ssl",
    "no-ssl-reuse",
    "no-sslv3",
    "no-tls-tickets",
    "no-tlsv10",
    "no-tlsv11",
    "no-tlsv12",
    "no-tlsv13",
    "no-verifyhost",
    "no-tfo",
    "no-allow-0rtt",
    "non-stick",
    "send-proxy",
    "send-proxy-v2",
    "send-proxy-v2-ssl",
    "send-proxy-v2-ssl-cn",
    "ssl",
    "ssl-reuse",
    "stick",
    "tfo",
    "tls-tickets",
];

/// How many values an option of `server` takes.
pub(super) fn server_values(name: &str) -> Option<usize> {
    let is_tlv = name.starts_with("set-proxy-v2-tlv-fmt(");
    if is_tlv || WITH_VALUE.contains(&name) {
        Some(1)
    } else {
        ALONE.contains(&name).then_some(0)
    }
}

/// What becomes of an option of `server` that is no key; `value` is its value.
pub(super) fn server(name: &str, value: &str) -> Option<Known> {
    Some(match name {
        // Keys of checks, where there are any.
        "check-reuse-pool" | "no-check-reuse-pool" | "force-tlsv13" => return None,
        "ssl-min-ver" if value == "TLSv1.3" => return None,
        "init-state" if value != "up" => return None,
        "maxconn" | "maxqueue" | "minconn" | "strict-maxconn" => Known::Nothing(LIMITS),
        "on-marked-down" if value == "shutdown-sessions" => Known::Nothing(
            "service.on_backend_down is \"reset\" by default: clients of a dead backend are reset",
        ),
        "on-marked-down" | "on-marked-up" => Known::Nothing(SHUTDOWN),
        "observe" => Known::Nothing(
            "a backend that refuses a connection gets no new ones and is checked at once",
        ),
        "on-error" | "error-limit" => Known::Nothing("it is about observe"),
        "disabled" => Known::Nothing("left out: it is disabled"),
        "enabled" => Known::Nothing("all backends are"),
        "send-proxy"
        | "send-proxy-v2"
        | "send-proxy-v2-ssl"
        | "send-proxy-v2-ssl-cn"
        | "proxy-v2-options"
        | "check-send-proxy"
        | "set-proxy-v2-tlv-fmt" => Known::ByHand(PROXY_PROTOCOL),
        tlv if tlv.starts_with("set-proxy-v2-tlv-fmt(") => Known::ByHand(PROXY_PROTOCOL),
        "ssl" => Known::ByHand(TLS),
        "resolvers" | "resolve-opts" | "resolve-prefer" | "resolve-net" | "init-addr" => {
            Known::Nothing(NAMES)
        }
        "cookie" | "ws" | "proto" | "redir" | "max-reuse" | "pool-low-conn" | "pool-max-conn"
        | "pool-purge-delay" | "log-proto" | "log-bufsize" | "pool-conn-name" => {
            Known::Nothing(HTTP)
        }
        "source" | "usesrc" | "interface" | "namespace" | "socks4" | "check-via-socks4" => {
            Known::Nothing(
                "the kernel's routes lead to backends, which see the client's address, or with nat \
                            the VIP",
            )
        }
        "track" => Known::ByHand("xvip checks every backend itself: this one as well"),
        "tfo" | "tcp-ut" | "idle-ping" | "cc" | "tcp-md5sig" => Known::Nothing(SOCKETS),
        "id" | "guid" | "shard" | "hash-key" | "stick" | "non-stick" => {
            Known::Nothing("the backend's name and address tell it apart")
        }
        "ciphers"
        | "ciphersuites"
        | "ssl-min-ver"
        | "ssl-max-ver"
        | "curves"
        | "sigalgs"
        | "npn"
        | "client-sigalgs"
        | "ssl-reuse"
        | "no-ssl-reuse"
        | "tls-tickets"
        | "allow-0rtt"
        | "crl-file"
        | "check-pool-conn-name"
        | "renegotiate"
        | "sni-auto"
        | "check-sni-auto"
        | "key"
        | "cert"
        | "ktls" => Known::Nothing("checks by TLS use versions 1.2 and 1.3"),
        "init-state" => {
            Known::Nothing("service.health.start says what counts before the first check")
        }
        other if other.starts_with("no-") || other.starts_with("force-") => {
            Known::Nothing("it takes back what xvip does not do either")
        }
        _ => return None,
    })
}

/// What becomes of lines of `global` that are about something else than the process.
pub(super) fn global(keyword: &str) -> Option<Known> {
    Some(match keyword {
        "log" | "log-tag" | "log-send-hostname" => Known::Nothing(LOGS),
        "stats" => Known::Nothing(STATS),
        "setenv" | "presetenv" | "unsetenv" => {
            Known::Nothing("it counts for \"${NAME}\" in the lines below")
        }
        "resetenv" => {
            Known::ByHand("not followed: give what \"${NAME}\" stands for with --define NAME=VALUE")
        }
        "ca-base" | "crt-base" | "key-base" => {
            Known::Nothing("files of certificates are named by their whole path")
        }
        other if other.starts_with("ssl-") || other.starts_with("tune.ssl.") => Known::Nothing(TLS),
        _ => return None,
    })
}

/// What becomes of whole sections beside proxies.
pub(super) fn section(kind: &str) -> Option<Known> {
    Some(match kind {
        "global" => Known::Nothing(PROCESS),
        "peers" => Known::Nothing(
            "nodes with xvip need not tell each other of connections: all choose alike",
        ),
        "resolvers" => Known::Nothing(NAMES),
        "userlist" | "cache" | "http-errors" | "fcgi-app" => Known::Nothing(HTTP),
        "mailers" => Known::Nothing("xvip sends no mail: watch its log or `xvip status --json`"),
        "ring" | "log-forward" | "traces" => Known::Nothing(LOGS),
        "program" => Known::ByHand("xvip starts no programs: give them units of their own"),
        "crt-store" | "dynamic-update" => Known::Nothing(TLS),
        _ => return None,
    })
}
