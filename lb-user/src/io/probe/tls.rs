//! The TLS stage of a probe.

use std::{net::SocketAddr, path::Path, sync::Arc};

use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{ProbeSetupError, io_failure};
use crate::{
    config::model::{ClientCert, TlsConfig, TlsMin, TlsVerify},
    core::health::Failure,
};

/// Makes TLS handshakes.
pub(super) struct TlsProbe {
    connector: TlsConnector,
    /// Configured name; else the address of the backend, which is not sent as SNI (RFC 6066
    /// section 3 allows no addresses there).
    server_name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for TlsProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsProbe")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl TlsProbe {
    /// Handshakes as `config` says, offering the application protocol `alpn` if there is one.
    pub(super) fn new(config: &TlsConfig, alpn: Option<&[u8]>) -> Result<Self, ProbeSetupError> {
        let provider = Arc::new(ring::default_provider());
        let builder = verified(config, provider)?;
        let mut client = identified(builder, config.client.as_ref())?;
        client.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
        // A resumed session would not prove that the backend still has its key.
        client.resumption = Resumption::disabled();
        Ok(Self {
            connector: TlsConnector::from(Arc::new(client)),
            server_name: config.server_name.as_deref().map(server_name).transpose()?,
        })
    }

    /// Makes the handshake with `target` over `stream`.
    ///
    /// TLS 1.3 is complete for the client before the server has looked at the client's
    /// certificate: if that is refused, only what is read afterwards says so.
    pub(super) async fn handshake(
        &self,
        target: SocketAddr,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let address = || ServerName::IpAddress(target.ip().into());
        let name = self.server_name.clone().unwrap_or_else(address);
        let handshake = self.connector.connect(name, stream);
        handshake.await.map_err(|error| io_failure(&error))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, ProbeSetupError> {
    ServerName::try_from(name.to_owned()).map_err(|_| ProbeSetupError::ServerName(name.to_owned()))
}

/// The client with its way to verify the server.
fn verified(
    config: &TlsConfig,
    provider: Arc<CryptoProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, ProbeSetupError> {
    let versions = match config.min {
        TlsMin::V12 => &[&TLS13, &TLS12][..],
        TlsMin::V13 => &[&TLS13][..],
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?;
    Ok(match &config.verify {
        TlsVerify::None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        TlsVerify::Ca(path) => builder.with_root_certificates(roots(path)?),
    })
}

/// The client with its own certificate, if it has one.
fn identified(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    client: Option<&ClientCert>,
) -> Result<ClientConfig, ProbeSetupError> {
    let Some(ClientCert {
        cert_file,
        key_file,
    }) = client
    else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(cert_file)?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|source| ProbeSetupError::Pem {
        path: key_file.clone(),
        source,
    })?;
    let with_client = builder.with_client_auth_cert(chain, key);
    with_client.map_err(|source| ProbeSetupError::Client {
        cert: cert_file.clone(),
        key: key_file.clone(),
        source,
    })
}

fn roots(path: &Path) -> Result<RootCertStore, ProbeSetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| ProbeSetupError::Ca {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(roots)
}

/// All certificates of a PEM file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ProbeSetupError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found = found.map_err(|source| ProbeSetupError::Pem {
        path: path.to_owned(),
        source,
    })?;
    if found.is_empty() {
        return Err(ProbeSetupError::NoCertificate(path.to_owned()));
    }
    Ok(found)
}

/// `verify = "none"`: any certificate will do, whoever signed it and whatever its names and
/// dates. The handshake's signature is still checked: a server that cannot sign with its key
/// cannot serve anybody.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
