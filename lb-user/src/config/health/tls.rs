//! Keys of checks that make a TLS handshake.

use std::path::PathBuf;

use crate::config::{
    Context,
    model::{ClientCert, TlsConfig, TlsMin, TlsVerify},
    raw::{Table, Value},
    value::{self, Fault},
};

/// All of them.
pub(super) const KEYS: &[&str] = &[
    "verify",
    "ca_file",
    "server_name",
    "client_cert_file",
    "client_key_file",
    "tls_min",
];

/// Read them.
pub(super) fn read(table: &mut Table<'_>, context: &Context<'_>) -> Option<TlsConfig> {
    /// `verify`
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Verify {
        None,
        Ca,
    }
    let verify = table.get_or("verify", Verify::None, |value| {
        value.choice(&[("none", Verify::None), ("ca", Verify::Ca)])
    });
    let ca_value = table.get("ca_file");
    match (verify, &ca_value) {
        (Some(Verify::Ca), None) => {
            table.refuse_missing("ca_file", "name the PEM file that verify = \"ca\" needs");
        }
        (Some(Verify::None), Some(value)) => value.refuse(Fault::new(
            "is not used with verify = \"none\"",
            "remove it or write verify = \"ca\"",
        )),
        _ => {}
    }
    let ca_file = ca_value.and_then(|value| certificates(&value, context));
    let server_name = table
        .get("server_name")
        .and_then(|value| value.text("kubernetes", value::server_name));
    let client = read_client(table, context);
    let min = table.get_or("tls_min", TlsMin::V12, |value| {
        value.choice(&[("1.2", TlsMin::V12), ("1.3", TlsMin::V13)])
    });
    Some(TlsConfig {
        verify: match verify? {
            Verify::None => TlsVerify::None,
            Verify::Ca => TlsVerify::Ca(ca_file?),
        },
        server_name: server_name.map(|name| name.value),
        client,
        min: min?,
    })
}

/// `client_cert_file` and `client_key_file`: both or none.
fn read_client(table: &mut Table<'_>, context: &Context<'_>) -> Option<ClientCert> {
    let cert = table.get("client_cert_file");
    let key = table.get("client_key_file");
    match (&cert, &key) {
        (Some(_), None) => {
            table.refuse_missing("client_key_file", "name the key of client_cert_file");
        }
        (None, Some(_)) => {
            table.refuse_missing(
                "client_cert_file",
                "name the certificate of client_key_file",
            );
        }
        _ => {}
    }
    let cert_file = cert.and_then(|value| certificates(&value, context));
    let key_file = key.and_then(|value| pem(&value, context, "PRIVATE KEY", "private key"));
    Some(ClientCert {
        cert_file: cert_file?,
        key_file: key_file?,
    })
}

fn certificates(value: &Value<'_>, context: &Context<'_>) -> Option<PathBuf> {
    pem(value, context, "CERTIFICATE", "certificate")
}

/// A readable file with at least one PEM section (RFC 7468) whose label ends with `label`.
fn pem(value: &Value<'_>, context: &Context<'_>, label: &str, thing: &str) -> Option<PathBuf> {
    let path = value.text("/etc/kubernetes/pki/ca.crt", |named| {
        let (path, content) = context.read(named)?;
        let label = format!("{label}-----");
        let is_start = |line: &str| line.starts_with("-----BEGIN ") && line.contains(&label);
        if String::from_utf8_lossy(&content).lines().any(is_start) {
            Ok(path)
        } else {
            Err(Fault::new(
                format!("{named:?} holds no {thing}"),
                format!("name a PEM file with a {thing}"),
            ))
        }
    });
    path.map(|path| path.value)
}
