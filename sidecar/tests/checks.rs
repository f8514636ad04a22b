//! Checks over TLS by the real binary, of applications whose certificates are made here: registered over HTTP and named in the file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod host;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use host::{Host, eventually};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// An application that answers 200 over TLS, for as long as the test runs; its certificate is for this name.
    fn application(&self, name: &str) -> SocketAddr {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let session = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(session, stream);
                // Who does not take the certificate is gone.
                if stream.read(&mut [0; 1024]).is_ok() {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                }
            }
        });
        address
    }
}

/// What the one check of a service says: its status and its output.
fn check_of(host: &Host, service: &str) -> (String, String) {
    let checks = host.get(&format!("/v1/health/checks/{service}"));
    let text = |field: &str| checks[0][field].as_str().unwrap_or_default().to_owned();
    (text("Status"), text("Output"))
}

#[test]
fn applications_are_checked_over_tls() {
    let (ours, other) = (Authority::new(), Authority::new());
    let mut host = Host::alone("tls");
    // Read when the first check wants it.
    std::fs::write(host.authorities(), &ours.pem).unwrap();
    let (trusted, foreign) = (ours.application("127.0.0.1"), other.application("127.0.0.1"));
    let named = ours.application("web.example");
    let register = |name: &str, application: SocketAddr, more: &str| {
        let (ip, port) = (application.ip(), application.port());
        let body = format!(
            r#"{{"Name": "{name}", "Address": "{ip}", "Port": {port},
                "Check": {{"HTTP": "https://{application}/", "Interval": "100ms"{more}}}}}"#
        );
        assert_eq!(host.put("/v1/agent/service/register", &body), (200, String::new()));
    };
    register("trusted", trusted, "");
    register("skipping", foreign, r#", "TLSSkipVerify": true"#);
    register("named", named, r#", "TLSServerName": "web.example""#);
    register("foreign", foreign, "");
    register("other-name", named, "");
    for name in ["trusted", "skipping", "named"] {
        eventually("it passes", || check_of(&host, name).0 == "passing");
    }
    for (name, said) in [
        ("foreign", "the certificate is not trusted: add its authority to this host's store"),
        ("other-name", "the certificate is for web.example, not for 127.0.0.1: set TLSServerName"),
    ] {
        eventually("it says why not", || check_of(&host, name).1.contains(said));
        assert_eq!(check_of(&host, name).0, "critical");
    }
    let explained = host.evenkeel(&["explain", "foreign"]);
    assert!(explained.contains("certificate"), "{explained}");

    host.reconfigure(&format!(
        "services:\n\
         \x20 - {{name: filed, address: \"{trusted}\", check: {{https: /, interval: 100ms, timeout: 20s}}}}\n\
         \x20 - {{name: filed-skipping, address: \"{foreign}\", check: {{https: /, tls_skip_verify: true, interval: 100ms, timeout: 20s}}}}\n\
         \x20 - {{name: filed-named, address: \"{named}\", check: {{https: /, tls_server_name: web.example, interval: 100ms, timeout: 20s}}}}\n\
         \x20 - {{name: filed-foreign, address: \"{foreign}\", check: {{https: /, interval: 100ms, timeout: 20s}}}}\n"
    ));
    for name in ["filed", "filed-skipping", "filed-named"] {
        eventually("it passes", || check_of(&host, name).0 == "passing");
    }
    eventually("it says why not", || {
        check_of(&host, "filed-foreign").1.contains("tls_skip_verify")
    });
}
