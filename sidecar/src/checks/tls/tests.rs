use std::sync::Mutex;

use evenkeel_discovery::health::Status;
use evenkeel_discovery::registration::CheckKind;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::checks::ask;

/// Who issues certificates, and its own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Authority {
        Authority::called("test authority")
    }

    fn called(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    /// A server whose certificate is for this name.
    fn server_for(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        server(certificate.der().clone(), &key)
    }

    /// The client of a host whose store has this authority alone.
    fn trusted(&self) -> TlsClient {
        client_trusting(vec![self.certificate.clone()])
    }
}

fn client_trusting(certificates: Vec<CertificateDer<'static>>) -> TlsClient {
    let verifying = OnceCell::new_with(Some(verifying(certificates).unwrap()));
    let store = Rc::new(TrustStore { begun: Instant::now(), verifying });
    TlsClient { store: RefCell::new(Some(store)) }
}

fn server(certificate: CertificateDer<'static>, key: &KeyPair) -> ServerConfig {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap()
}

/// The name (SNI) and the protocol (ALPN) that were asked for with a handshake.
type Asked = (Option<String>, Option<Vec<u8>>);

/// An application that answers over TLS; and what its callers asked for with the handshake.
struct Application {
    authority: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Application {
    async fn with(mut config: ServerConfig) -> Application {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let session = stream.get_ref().1;
                let name = session.server_name().map(str::to_owned);
                let protocol = session.alpn_protocol().map(<[u8]>::to_vec);
                noted.lock().unwrap().push((name, protocol));
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        });
        Application { authority, asked }
    }

    async fn is_asked(&self, client: &TlsClient, tls: CheckTls) -> (Status, String) {
        let kind = https(&self.authority, tls);
        let (status, output) = ask(client, &kind, Duration::from_secs(20)).await;
        assert!(output.len() < evenkeel_discovery::health::OUTPUT_MAX, "it would be cut: {output}");
        (status, output)
    }
}

fn https(authority: &str, tls: CheckTls) -> CheckKind {
    CheckKind::Http {
        authority: authority.to_owned(),
        path: "/healthz".into(),
        method: "GET".into(),
        headers: std::collections::BTreeMap::new(),
        body: String::new(),
        tls: Some(tls),
    }
}

fn unchanged(_: &mut CertificateParams) {}

fn skipping() -> CheckTls {
    CheckTls { skip_verify: true, server_name: None }
}

fn named(name: &str) -> CheckTls {
    CheckTls { skip_verify: false, server_name: Some(name.to_owned()) }
}

#[tokio::test]
async fn a_certificate_of_an_authority_of_the_store_passes() {
    let authority = Authority::new();
    let application = Application::with(authority.server_for("127.0.0.1", unchanged)).await;
    let (status, output) = application.is_asked(&authority.trusted(), CheckTls::default()).await;
    let url = format!("GET https://{}/healthz: 204 No Content", application.authority);
    assert_eq!((status, output), (Status::Passing, url));
    // An address is no name that could be asked for.
    assert_eq!(application.asked.lock().unwrap()[..], [(None, Some(b"http/1.1".to_vec()))]);
}

#[tokio::test]
async fn whose_certificate_is_not_taken_and_what_to_do_then() {
    let authority = Authority::new();
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    };
    let early = |params: &mut CertificateParams| params.not_before = date_time_ymd(4000, 1, 1);
    let own = Authority::new();
    let own_key = own.issuer.key();
    for (config, client, said) in [
        (
            authority.server_for("127.0.0.1", unchanged),
            Authority::called("another").trusted(),
            "not trusted: add its authority",
        ),
        (
            authority.server_for("127.0.0.1", unchanged),
            // One of the same name, as when it was made anew.
            own.trusted(),
            "not trusted: add its authority to this host's store (update-ca-certificates), or set TLSSkipVerify",
        ),
        (
            authority.server_for("127.0.0.1", unchanged),
            client_trusting(Vec::new()),
            "this host's store has no authority at all: install ca-certificates",
        ),
        (
            authority.server_for("127.0.0.1", expired),
            authority.trusted(),
            "expired on Wed, 01 Jan 2020 00:00:00 GMT: renew it",
        ),
        (
            authority.server_for("127.0.0.1", early),
            authority.trusted(),
            "not valid before Sat, 01 Jan 4000",
        ),
        (
            authority.server_for("web.example", unchanged),
            authority.trusted(),
            "is for web.example, not for 127.0.0.1: set TLSServerName",
        ),
        (server(own.certificate.clone(), own_key), authority.trusted(), "CA:TRUE"),
    ] {
        let application = Application::with(config).await;
        let (status, output) = application.is_asked(&client, CheckTls::default()).await;
        assert_eq!(status, Status::Critical, "{output}");
        assert!(output.contains(said), "{said}: {output}");
        let (status, output) = application.is_asked(&client, skipping()).await;
        assert_eq!(status, Status::Passing, "who skips verification takes it: {output}");
    }
}

#[tokio::test]
async fn the_registered_name_is_asked_for_and_expected() {
    let authority = Authority::new();
    let application = Application::with(authority.server_for("web.example", unchanged)).await;
    let client = authority.trusted();
    let (status, output) = application.is_asked(&client, named("web.example")).await;
    assert_eq!(status, Status::Passing, "{output}");
    let (status, output) = application.is_asked(&client, named("other.example")).await;
    assert_eq!(status, Status::Critical);
    assert!(output.contains("is for web.example, not for other.example"), "{output}");
    let (status, output) = application.is_asked(&client, named("a:b")).await;
    assert_eq!(status, Status::Critical);
    assert!(output.contains("set TLSServerName"), "{output}");
    let asked = application.asked.lock().unwrap();
    assert_eq!(asked[0].0.as_deref(), Some("web.example"));
}

#[tokio::test]
async fn who_speaks_no_tls_on_the_port_is_told_from_who_does_not_answer() {
    for (answer, said) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "answers without TLS: write http://"),
        (b"", "closed the connection during the handshake"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer).await;
            }
        });
        let kind = https(&authority, skipping());
        let (status, output) = ask(&TlsClient::default(), &kind, Duration::from_secs(20)).await;
        assert_eq!(status, Status::Critical);
        assert!(output.contains(said), "{said}: {output}");
    }
}

#[tokio::test]
async fn the_time_of_a_check_covers_the_handshake() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let kind = https(&listener.local_addr().unwrap().to_string(), skipping());
    let (status, output) = ask(&TlsClient::default(), &kind, Duration::from_millis(50)).await;
    assert_eq!(status, Status::Critical);
    assert!(output.contains("did not answer the handshake in time"), "{output}");
}

#[tokio::test]
async fn an_application_that_wants_a_certificate_of_its_caller_is_named_so() {
    let authority = Authority::new();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap().der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let application = Application::with(config).await;
    let (status, output) = application.is_asked(&authority.trusted(), CheckTls::default()).await;
    assert_eq!(status, Status::Critical);
    assert!(output.contains("wants a certificate of its caller"), "{output}");
}

#[tokio::test]
async fn tcp_and_grpc_checks_speak_tls_too() {
    let authority = Authority::new();
    let client = authority.trusted();
    let application = Application::with(authority.server_for("127.0.0.1", unchanged)).await;
    let at = application.authority.clone();
    let tcp = CheckKind::Tcp { authority: at.clone(), tls: Some(CheckTls::default()) };
    let (status, output) = ask(&client, &tcp, Duration::from_secs(20)).await;
    assert_eq!((status, output), (Status::Passing, format!("{at} accepts connections with TLS")));

    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop.Cart", tonic_health::ServingStatus::Serving).await;
    let mut config = authority.server_for("cart.example", unchanged);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let service = hyper_util::service::TowerToHyperService::new(health.clone());
            let executor = hyper_util::rt::TokioExecutor::new();
            let server = hyper::server::conn::http2::Builder::new(executor);
            tokio::spawn(server.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
        }
    });
    for (tls, status, said) in [
        (named("cart.example"), Status::Passing, "SERVING"),
        (CheckTls::default(), Status::Critical, "is for cart.example, not for 127.0.0.1"),
    ] {
        let grpc = CheckKind::Grpc {
            authority: authority.clone(),
            service: "shop.Cart".into(),
            tls: Some(tls),
        };
        let (found, output) = ask(&client, &grpc, Duration::from_secs(20)).await;
        assert_eq!(found, status, "{output}");
        assert!(output.contains(said), "{output}");
    }
    drop(reporter);
}

#[tokio::test(start_paused = true)]
async fn the_store_is_read_again_after_a_while_and_once_for_all_who_wait() {
    let client = client_trusting(Vec::new());
    let first = Rc::clone(client.store.borrow().as_ref().unwrap());
    client.verifying().await.unwrap();
    assert!(Rc::ptr_eq(&first, client.store.borrow().as_ref().unwrap()), "it is new enough");
    tokio::time::advance(STORE_KEPT).await;
    let (one, other) = tokio::join!(client.verifying(), client.verifying());
    assert!(one.is_ok() && other.is_ok());
    let second = Rc::clone(client.store.borrow().as_ref().unwrap());
    assert!(!Rc::ptr_eq(&first, &second), "what an operator added meanwhile counts");
    assert!(second.verifying.initialized());
}
