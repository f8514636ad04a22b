//! Asks a running host's admin listener: one request, one bounded answer.
//!
//! On a runtime of its own, because nothing else runs in these modes. Errors are for the person at the terminal.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::args::ADMIN_VARIABLE;
use crate::admin::report::ErrorReport;

/// GETs a path from the host that answers at `admin` (`host:port`) and returns the body of a 200.
///
/// # Errors
/// Says what to do when nobody answers, and the host's own words when it refuses.
pub fn get(admin: &str, path_and_query: &str) -> anyhow::Result<Bytes> {
    send(admin, Method::GET, path_and_query, Bytes::new())
}

/// As [`get`], with a method and a body.
///
/// # Errors
/// As [`get`].
pub fn send(
    admin: &str,
    method: Method,
    path_and_query: &str,
    body: Bytes,
) -> anyhow::Result<Bytes> {
    let admin = admin.strip_prefix("http://").unwrap_or(admin).trim_end_matches('/');
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let asked = runtime.block_on(async {
        tokio::time::timeout(ANSWER_TIMEOUT, ask(admin, method, path_and_query, body))
            .await
            .map_err(|_| anyhow!("{admin} did not answer within {ANSWER_TIMEOUT:?}: is the process stopped or overloaded?"))?
    });
    // A look-up that hangs on its own thread must not hold the exit.
    runtime.shutdown_background();
    asked
}

async fn ask(
    admin: &str,
    method: Method,
    path_and_query: &str,
    body: Bytes,
) -> anyhow::Result<Bytes> {
    let unreadable = |cause| {
        anyhow!(
            "{admin}: {cause}. Write --admin (or {ADMIN_VARIABLE}) as HOST:PORT, for example 127.0.0.1:7119"
        )
    };
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host(admin).await.map_err(unreadable)?.collect();
    let stream = TcpStream::connect(addresses.as_slice()).await.map_err(|cause| {
        anyhow!(
            "no evenkeel answers at {admin} ({cause}): is it running? Start it with `evenkeel run -c FILE`, or say where its admin.listen is with --admin HOST:PORT or in {ADMIN_VARIABLE}"
        )
    })?;
    let not_ours = || {
        format!("{admin} does not speak HTTP as evenkeel's admin listener does: is --admin right?")
    };
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.with_context(not_ours)?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path_and_query)
        .header(HOST, admin)
        .header(ACCEPT, "application/json")
        .body(Full::new(body))
        .with_context(|| format!("cannot ask for {path_and_query}"))?;
    let response = sender.send_request(request).await.with_context(not_ours)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|cause| anyhow!("the answer of {admin} broke off: {cause}"))?
        .to_bytes();
    driver.abort();
    if status == StatusCode::OK {
        return Ok(body);
    }
    match refusal(&body) {
        Some(said) => bail!("{said}"),
        // Something else listens there: its pages are of no use in a terminal.
        None => bail!(
            "{admin} answered {status} to {path_and_query}, and not as evenkeel's admin listener does: is --admin right? The default is port 7119"
        ),
    }
}

/// What an admin listener says when it refuses.
fn refusal(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<ErrorReport>(body).ok().map(|report| report.error)
}

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer: the members and services of the largest mesh.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_admin_listener_says_is_repeated() {
        let ours = refusal(br#"{"error": "no service \"x\""}"#);
        assert_eq!(ours.as_deref(), Some("no service \"x\""));
        for other in ["", "<!DOCTYPE HTML><p>Not found", "evenkeel does not serve /x", "{}", "[1]"]
        {
            assert_eq!(refusal(other.as_bytes()), None, "{other}");
        }
    }
}
