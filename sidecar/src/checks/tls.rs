//! TLS for checks: whose certificate is taken, and what an operator is told when it is not.
//!
//! A certificate has to come from an authority of this host's own store, as for curl and for Consul's agent: the store is read with
//! `rustls-native-certs`, which is kept by rustls' own maintainers and is Rust alone (on Linux `rustls-platform-verifier` is the same reader
//! behind one more layer, for the sake of other systems). It is read when the first check wants it, and again for a check
//! that comes [`STORE_KEPT`] later: an authority that an operator adds counts without a restart.
//!
//! No session is resumed. A resumed one shows no certificate, so that an expired one would go on passing.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use evenkeel_discovery::registration::CheckTls;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct,
    RootCertStore, SignatureScheme, WantsVerifier,
};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The client of all checks over TLS.
#[derive(Default)]
pub(super) struct TlsClient {
    /// As it was last read; `None`: no check has asked for it.
    store: RefCell<Option<Rc<TrustStore>>>,
}

/// The authorities of this host's store, once they are read. Checks that come meanwhile wait for the same reading.
struct TrustStore {
    begun: Instant,
    verifying: OnceCell<Verifying>,
}

/// What takes only certificates of the store's authorities.
#[derive(Clone)]
struct Verifying {
    config: ClientConfig,
    authorities: usize,
}

impl TlsClient {
    /// Shakes hands with the application; else why it cannot, as a sentence for an operator.
    pub async fn handshake(
        &self,
        stream: TcpStream,
        authority: &str,
        tls: &CheckTls,
        protocol: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<TlsStream<TcpStream>, String> {
        let name = server_name(authority, tls)?;
        let problem = |said: &str| format!("TLS with {authority}: {said}");
        let Verifying { mut config, authorities } = match tls.skip_verify {
            true => Verifying { config: taking_any().map_err(|e| problem(&e))?, authorities: 0 },
            false => self.verifying().await.map_err(|e| problem(&e))?,
        };
        config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
        config.resumption = Resumption::disabled();
        let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream);
        match timeout_at(deadline, shaken).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(cause)) => Err(problem(&match rustls_error(&cause) {
                Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))
                    if authorities == 0 =>
                {
                    NO_AUTHORITIES.to_owned()
                }
                Some(cause) => advice(cause),
                None if cause.kind() == io::ErrorKind::UnexpectedEof => {
                    "it closed the connection during the handshake: does it speak TLS there?"
                        .to_owned()
                }
                None => format!("the handshake broke off: {cause}"),
            })),
            Err(_) => Err(problem(
                "it did not answer the handshake in time: it is slow, or speaks no TLS there",
            )),
        }
    }

    async fn verifying(&self) -> Result<Verifying, String> {
        let store = {
            let mut last = self.store.borrow_mut();
            let fresh = last.take().filter(|store| store.begun.elapsed() < STORE_KEPT);
            let begin =
                || Rc::new(TrustStore { begun: Instant::now(), verifying: OnceCell::new() });
            Rc::clone(last.insert(fresh.unwrap_or_else(begin)))
        };
        store.verifying.get_or_try_init(read_store).await.cloned()
    }
}

async fn read_store() -> Result<Verifying, String> {
    let read = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
    let read = read.await.map_err(|cause| format!("the host's store cannot be read: {cause}"))?;
    for problem in &read.errors {
        tracing::debug!(%problem, "part of the host's store of certificates cannot be read");
    }
    verifying(read.certs)
}

fn verifying(certificates: Vec<CertificateDer<'static>>) -> Result<Verifying, String> {
    let mut roots = RootCertStore::empty();
    let (authorities, _) = roots.add_parsable_certificates(certificates);
    let config = builder(provider())?.with_root_certificates(roots).with_no_client_auth();
    Ok(Verifying { config, authorities })
}

fn taking_any() -> Result<ClientConfig, String> {
    let provider = provider();
    let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
    let dangerous = builder(provider)?.dangerous();
    Ok(dangerous.with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn builder(
    provider: Arc<CryptoProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| cause.to_string())
}

/// Takes whatever certificate is shown, for `TLSSkipVerify`. Nothing is learnt about who answers, so its signatures prove nothing
/// either: old keys and formats that rustls would not verify with are taken too.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whose certificate is expected: the name that was registered, else the host of `host:port`.
fn server_name(authority: &str, tls: &CheckTls) -> Result<ServerName<'static>, String> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = tls.server_name.as_deref().unwrap_or(host);
    ServerName::try_from(name.to_owned()).map_err(|_| {
        format!("TLS with {authority}: no certificate can be for {name:?}: set TLSServerName")
    })
}

/// What TLS says of an error that came later than the handshake, if it comes from there: a server of TLS 1.3 refuses a client without a certificate
/// only after the client is done.
pub(super) fn said_of(cause: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(cause);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<io::Error>().and_then(rustls_error) {
            return Some(advice(found));
        }
        next = cause.source();
    }
    None
}

fn rustls_error(cause: &io::Error) -> Option<&rustls::Error> {
    cause.get_ref()?.downcast_ref()
}

/// What is wrong, and what to do next.
fn advice(error: &rustls::Error) -> String {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(problem) => advice_on_certificate(problem),
        // What begins like no record of TLS.
        E::InvalidMessage(_) => {
            "it answers without TLS: write http:// instead of https://, or leave out GRPCUseTLS or TCPUseTLS".into()
        }
        E::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => "it wants a certificate of its caller, which checks do not have: let it answer checks without, or use a TCP check".into(),
        E::AlertReceived(AlertDescription::UnrecognisedName) => {
            "it does not know the name that was asked for: set TLSServerName to one that it has".into()
        }
        E::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure)
        | E::PeerIncompatible(_) => format!(
            "no version or cipher of TLS is common: it needs TLS 1.2 or 1.3 with an AEAD cipher ({error})"
        ),
        error => format!("the handshake failed: {error}"),
    }
}

fn advice_on_certificate(problem: &CertificateError) -> String {
    let date =
        |at: &UnixTime| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(at.as_secs()));
    match problem {
        // The signature is bad where the store has another authority of the same name, such as one that was made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "the certificate is not trusted: add its authority to this host's store (update-ca-certificates), or set TLSSkipVerify (in the file tls_skip_verify)".into(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate expired on {}: renew it", date(not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "the certificate is not valid before {}: does a clock go wrong?",
            date(not_before)
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let for_whom = match &presented[..] {
                [] => "names nobody".to_owned(),
                [one] => format!("is for {}", bare(one)),
                [one, others @ ..] => format!("is for {} and {} more", bare(one), others.len()),
            };
            format!(
                "the certificate {for_whom}, not for {}: set TLSServerName (tls_server_name) to a name that it has, or TLSSkipVerify",
                expected.to_str()
            )
        }
        // webpki's word for a certificate that says of itself that it is an authority's.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => "the certificate is self-signed as an authority's own (CA:TRUE), which is taken for no server's: have one issued for the server, or set TLSSkipVerify (in the file tls_skip_verify)".into(),
        problem => format!("the certificate is not taken: {problem}"),
    }
}

/// A name as webpki shows it, `DnsName("web.example")`, without its kind.
fn bare(presented: &str) -> &str {
    let inner = presented.split_once('(').map_or(presented, |(_, inner)| inner);
    inner.trim_end_matches(')').trim_matches('"')
}

/// Said instead of [`CertificateError::UnknownIssuer`] where no authority could be known.
const NO_AUTHORITIES: &str = "the certificate is not trusted, as this host's store has no authority at all: install ca-certificates, or set TLSSkipVerify (in the file tls_skip_verify)";

/// The host's store is read again for a check that comes so much later.
const STORE_KEPT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
