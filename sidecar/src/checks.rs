//! Health checks beside the applications of this host: who is asked how, and when an answer counts.
//!
//! Each host checks its own applications over loopback and publishes the verdict; nobody checks over the
//! network, so a partition does not make instances critical, it makes hosts unreachable, which gossip knows better.
//! An HTTP check passes with a 2xx head and warns with 429, a TCP check passes with a connection, a gRPC check with `SERVING`;
//! each of them may speak TLS ([`tls`]), whose handshake is part of the time that the check has.
//! Rise and fall are counted by `discovery::health`. An HTTP check never follows redirects and never reads a body: that the
//! head came is the answer. A check with a TTL is not run: the application reports, and `discovery` decides.
//!
//! Runs on the control thread, one small task for each check; the set follows what is registered.

use std::collections::BTreeMap;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evenkeel_discovery::health::{RiseFall, Status};
use evenkeel_discovery::registration::{Check, CheckKind, CheckTls};
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::debug;

use crate::gossip::Command;

mod grpc;
mod tls;

use tls::TlsClient;

/// A verdict to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whose; empty: this host's own.
    pub instance: String,
    /// Which of its checks.
    pub check: String,
    /// What it is now.
    pub status: Status,
    /// What the last run said.
    pub output: String,
}

/// Runs these checks of instances (by id) and of the host itself (whose id is empty), until `registered` closes. Each check's first result, each change
/// after it, and now and then another reason for the same goes to `commands`. Must be called within a `LocalSet`.
pub async fn run(
    mut registered: watch::Receiver<Arc<Vec<(String, Check)>>>,
    commands: mpsc::Sender<Command>,
) {
    let tls = Rc::new(TlsClient::default());
    let mut running: BTreeMap<(String, String), Running> = BTreeMap::new();
    loop {
        let checks = Arc::clone(&registered.borrow_and_update());
        let run_here = checks.iter().filter(|(_, check)| check.kind != CheckKind::Ttl);
        let wanted: BTreeMap<(String, String), Check> = run_here
            .map(|(instance, check)| ((instance.clone(), check.id.clone()), check.clone()))
            .collect();
        running.retain(|key, run| wanted.get(key) == Some(&run.check));
        for (key, check) in wanted {
            running.entry(key).or_insert_with_key(|(instance, _)| {
                let task = tokio::task::spawn_local(repeat(
                    instance.clone(),
                    check.clone(),
                    Rc::clone(&tls),
                    commands.clone(),
                ));
                Running { check, task: task.abort_handle() }
            });
        }
        if registered.changed().await.is_err() {
            return;
        }
    }
}

/// A check's task; gone when this is dropped.
struct Running {
    check: Check,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn repeat(
    instance: String,
    check: Check,
    tls: Rc<TlsClient>,
    commands: mpsc::Sender<Command>,
) {
    let mut health = RiseFall::new(check.initial, check.rise, check.fall);
    // Checks of one host are spread over the interval by their name, so that they do not run in lockstep.
    let spread = instance
        .bytes()
        .chain(check.id.bytes())
        .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let first = Instant::now() + check.interval.min(FIRST_WITHIN) * (spread % 1000) / 1000;
    let mut due = tokio::time::interval_at(first, check.interval.max(INTERVAL_MIN));
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said: Option<Said> = None;
    loop {
        due.tick().await;
        let (result, output) = ask(&tls, &check.kind, check.timeout).await;
        if result != Status::Passing {
            debug!(instance, check = check.id, result = result.as_str(), "{output}");
        }
        let is_other = health.report(result).is_some();
        let fails = result == health.status() && result != Status::Passing;
        if is_other || said.as_ref().is_none_or(|said| fails && said.is_outdated_by(&output)) {
            said = Some(Said { at: Instant::now(), output: output.clone() });
            let verdict = Verdict {
                instance: instance.clone(),
                check: check.id.clone(),
                status: health.status(),
                output,
            };
            if commands.send(Command::Health(verdict)).await.is_err() {
                return;
            }
        }
    }
}

/// What was last published of a check.
struct Said {
    at: Instant,
    output: String,
}

impl Said {
    /// It fails for another reason now, and has failed for the old one for a while: whoever looks is to find this one.
    fn is_outdated_by(&self, output: &str) -> bool {
        self.output != output && self.at.elapsed() >= REASON_AGAIN
    }
}

/// Runs a check once: what it found, and that as a sentence for people.
async fn ask(tls: &TlsClient, kind: &CheckKind, timeout: Duration) -> (Status, String) {
    let authority = match kind {
        CheckKind::Http { authority, .. }
        | CheckKind::Grpc { authority, .. }
        | CheckKind::Tcp { authority, .. } => authority,
        CheckKind::Ttl => return (Status::Critical, "is reported by the application".to_owned()),
    };
    let dial = CheckDial { client: tls, authority, deadline: Instant::now() + timeout };
    let asked = async {
        match kind {
            CheckKind::Http { .. } => ask_http(&dial, kind).await,
            CheckKind::Grpc { service, tls, .. } => grpc::ask(&dial, tls.as_ref(), service).await,
            CheckKind::Tcp { tls, .. } => {
                dial.connect(tls.as_ref(), None).await?;
                let what = if tls.is_some() { "connections with TLS" } else { "connections" };
                Ok((Status::Passing, format!("{authority} accepts {what}")))
            }
            CheckKind::Ttl => Err("is reported by the application".to_owned()),
        }
    };
    match tokio::time::timeout_at(dial.deadline, asked).await {
        Ok(Ok(found)) => found,
        Ok(Err(problem)) => (Status::Critical, problem),
        Err(_) => (Status::Critical, format!("{authority} did not answer within {timeout:?}")),
    }
}

/// Whom one run of a check asks, and until when.
struct CheckDial<'a> {
    client: &'a TlsClient,
    /// `host:port`.
    authority: &'a str,
    deadline: Instant,
}

/// A connection to an application, with TLS or without.
trait CheckStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> CheckStream for S {}

impl CheckDial<'_> {
    /// Connects, and shakes hands where TLS is spoken; `protocol` is what the application is asked to speak then (ALPN).
    async fn connect(
        &self,
        tls: Option<&CheckTls>,
        protocol: Option<&[u8]>,
    ) -> Result<Box<dyn CheckStream>, String> {
        let authority = self.authority;
        let stream = TcpStream::connect(authority)
            .await
            .map_err(|cause| format!("cannot connect to {authority}: {cause}"))?;
        let Some(tls) = tls else { return Ok(Box::new(stream)) };
        let shaken = self.client.handshake(stream, authority, tls, protocol, self.deadline);
        Ok(Box::new(shaken.await?))
    }
}

/// What is said of an exchange that broke off.
fn broke_off(what: &str, cause: &(dyn Error + 'static)) -> String {
    match tls::said_of(cause) {
        Some(said) => format!("{what}: {said}"),
        None => format!("{what} broke off: {cause}"),
    }
}

async fn ask_http(dial: &CheckDial<'_>, kind: &CheckKind) -> Result<(Status, String), String> {
    let CheckKind::Http { authority, path, method, headers, body, tls } = kind else {
        return Err("is no HTTP check".to_owned());
    };
    let stream = dial.connect(tls.as_ref(), Some(b"http/1.1")).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let what = format!("{method} {scheme}://{authority}{path}");
    let broken = |cause: &(dyn Error + 'static)| broke_off(&what, cause);
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|cause| broken(&cause))?;
    let mut request = Request::builder()
        .method(&**method)
        .uri(path)
        .header(HOST, authority)
        .header(USER_AGENT, "evenkeel-check")
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(body.clone())))
        .map_err(|cause| broken(&cause))?;
    for (name, values) in headers {
        let name = HeaderName::try_from(name).map_err(|cause| broken(&cause))?;
        request.headers_mut().remove(&name);
        for value in values {
            let value = HeaderValue::try_from(value).map_err(|cause| broken(&cause))?;
            request.headers_mut().append(&name, value);
        }
    }
    // The connection is driven by this very task and gone with it: an aborted check leaves nothing open.
    let mut connection = std::pin::pin!(connection);
    let mut response = std::pin::pin!(sender.send_request(request));
    let status = tokio::select! {
        biased;
        answered = &mut response => answered.map_err(|cause| broken(&cause))?.status(),
        _ = &mut connection => response.await.map_err(|cause| broken(&cause))?.status(),
    };
    let health = match status {
        status if status.is_success() => Status::Passing,
        StatusCode::TOO_MANY_REQUESTS => Status::Warning,
        _ => Status::Critical,
    };
    Ok((health, format!("{what}: {status}")))
}

/// The first run comes within this, or the interval: an instance that is well is published soon.
const FIRST_WITHIN: Duration = Duration::from_millis(200);

/// While a status stays, another reason for it is published this long after the last: it costs gossip, and wakes watchers.
const REASON_AGAIN: Duration = Duration::from_secs(30);

/// No check runs more often, whatever was registered.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn http(authority: &str) -> CheckKind {
        CheckKind::Http {
            authority: authority.to_owned(),
            path: "/healthz".into(),
            method: "GET".into(),
            headers: BTreeMap::new(),
            body: String::new(),
            tls: None,
        }
    }

    async fn ask(kind: &CheckKind, timeout: Duration) -> (Status, String) {
        super::ask(&TlsClient::default(), kind, timeout).await
    }

    /// Answers every connection with these bytes.
    async fn answering(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let read = stream.read(&mut head).await.unwrap();
                assert!(
                    head[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"),
                    "{:?}",
                    &head[..read]
                );
                let _ = stream.write_all(answer).await;
            }
        });
        authority
    }

    #[tokio::test]
    async fn answers_and_what_they_mean() {
        for (answer, status, says) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], Status::Passing, "200"),
            (b"HTTP/1.1 204 No Content\r\n\r\n", Status::Passing, "204"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", Status::Passing, "200"),
            (
                b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n",
                Status::Warning,
                "429",
            ),
            (
                b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
                Status::Critical,
                "302",
            ),
            (
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
                Status::Critical,
                "503",
            ),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Status::Critical, "broke off"),
            (b"", Status::Critical, "broke off"),
        ] {
            let authority = answering(answer).await;
            let (found, output) = ask(&http(&authority), Duration::from_secs(5)).await;
            assert_eq!(found, status, "{output}");
            assert!(output.contains(says), "{output}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_reason_for_the_same_is_published_now_and_then() {
        let said = Said { at: Instant::now(), output: "refused".into() };
        assert!(!said.is_outdated_by("503"), "it has just been said");
        tokio::time::advance(REASON_AGAIN).await;
        assert!(said.is_outdated_by("503"));
        assert!(!said.is_outdated_by("refused"), "the same is no news");
    }

    #[tokio::test]
    async fn headers_and_a_body_are_sent_as_registered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let application = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut received, mut buffer) = (Vec::new(), [0; 1024]);
            while !received.ends_with(b"ping") {
                let read = stream.read(&mut buffer).await.unwrap();
                assert!(read > 0, "{}", String::from_utf8_lossy(&received));
                received.extend_from_slice(&buffer[..read]);
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            String::from_utf8(received).unwrap().to_ascii_lowercase()
        });
        let check = CheckKind::Http {
            authority,
            path: "/healthz".into(),
            method: "POST".into(),
            headers: [
                ("X-Probe".to_owned(), vec!["1".to_owned(), "2".to_owned()]),
                ("Host".to_owned(), vec!["web.example".to_owned()]),
            ]
            .into(),
            body: "ping".into(),
            tls: None,
        };
        assert_eq!(ask(&check, Duration::from_secs(5)).await.0, Status::Passing);
        let received = application.await.unwrap();
        assert!(received.starts_with("post /healthz http/1.1\r\n"), "{received}");
        assert_eq!(received.matches("host:").count(), 1, "{received}");
        for line in ["host: web.example", "x-probe: 1", "x-probe: 2", "content-length: 4"] {
            assert!(received.contains(&format!("{line}\r\n")), "{line}: {received}");
        }
    }

    #[tokio::test]
    async fn a_listener_that_never_answers_passes_tcp_and_fails_http() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let tcp = CheckKind::Tcp { authority: authority.clone(), tls: None };
        assert_eq!(ask(&tcp, Duration::from_secs(5)).await.0, Status::Passing);
        let (status, output) = ask(&http(&authority), Duration::from_millis(50)).await;
        assert_eq!(status, Status::Critical);
        assert!(output.contains("did not answer within 50ms"), "{output}");
        drop(listener);
        let (status, output) = ask(&tcp, Duration::from_secs(5)).await;
        assert_eq!(status, Status::Critical);
        assert!(output.contains("cannot connect"), "{output}");
    }
}
