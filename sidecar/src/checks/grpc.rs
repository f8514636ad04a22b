//! A gRPC check: one call of `grpc.health.v1.Health/Check` over HTTP/2, with TLS or without.
//!
//! Only `SERVING` passes; all else is critical, with what was answered: a service that the server does not know
//! (`NOT_FOUND`), a server without the health service (`UNIMPLEMENTED`). By hand on hyper rather than with tonic's channel, which
//! keeps connections and dials again by itself: a check dials each time, because whether one can is what it asks.

use std::error::Error;

use bytes::{BufMut as _, Bytes, BytesMut};
use evenkeel_discovery::health::Status;
use evenkeel_discovery::registration::CheckTls;
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::{CheckDial, broke_off};

/// Asks once; what was found, and that as a sentence for people.
pub(super) async fn ask(
    dial: &CheckDial<'_>,
    tls: Option<&CheckTls>,
    service: &str,
) -> Result<(Status, String), String> {
    let stream = dial.connect(tls, Some(b"h2")).await?;
    let authority = dial.authority;
    let what = format!("gRPC health of {service:?} at {authority}");
    let broken = |cause: &(dyn Error + 'static)| broke_off(&what, cause);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|cause| broken(&cause))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let request = Request::post(format!("{scheme}://{authority}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, "evenkeel-check")
        .body(Full::new(framed(&HealthCheckRequest { service: service.to_owned() })))
        .map_err(|cause| broken(&cause))?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(|cause| broken(&cause))?;
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, ANSWER_MAX).collect().await.map_err(|cause| broken(&*cause))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        match grpc_status(&trailers).or_else(|| grpc_status(&head.headers)) {
            Some((0, _)) => {}
            Some((code, message)) => return Err(format!("{what}: status {code} {message}")),
            None => return Err(format!("{what}: HTTP {} without a gRPC status", head.status)),
        }
        let bytes = body.to_bytes();
        let message = bytes.get(5..).unwrap_or_default();
        let answer = HealthCheckResponse::decode(message).map_err(|cause| broken(&cause))?;
        let name = answer.status().as_str_name();
        let status = match answer.status() {
            ServingStatus::Serving => Status::Passing,
            _ => Status::Critical,
        };
        Ok((status, format!("{what}: {name}")))
    };
    // Driven by this very task and gone with it: an aborted check leaves nothing open.
    let mut connection = std::pin::pin!(connection);
    let mut answered = std::pin::pin!(answered);
    tokio::select! {
        biased;
        found = &mut answered => found,
        _ = &mut connection => answered.await,
    }
}

/// The message as a gRPC body: not compressed, its length, itself.
fn framed(message: &HealthCheckRequest) -> Bytes {
    let bytes = message.encode_to_vec();
    let mut frame = BytesMut::with_capacity(5 + bytes.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&bytes);
    frame.freeze()
}

fn grpc_status(headers: &HeaderMap) -> Option<(u32, String)> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers.get("grpc-message").and_then(|message| message.to_str().ok());
    Some((code, message.unwrap_or_default().to_owned()))
}

/// Of an answer, which has a few bytes.
const ANSWER_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use evenkeel_discovery::registration::CheckKind;
    use tokio::net::TcpListener;

    use super::*;
    use crate::checks::ask;
    use crate::checks::tls::TlsClient;

    #[tokio::test]
    async fn a_server_says_what_it_serves() {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("shop.Cart", tonic_health::ServingStatus::Serving).await;
        reporter.set_service_status("shop.Old", tonic_health::ServingStatus::NotServing).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(health.clone());
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        for (service, status, says) in [
            ("", Status::Passing, ": SERVING"),
            ("shop.Cart", Status::Passing, ": SERVING"),
            ("shop.Old", Status::Critical, ": NOT_SERVING"),
            ("shop.No", Status::Critical, "status 5"),
        ] {
            let kind = CheckKind::Grpc {
                authority: authority.clone(),
                service: service.to_owned(),
                tls: None,
            };
            let (found, output) = ask(&TlsClient::default(), &kind, Duration::from_secs(5)).await;
            assert_eq!(found, status, "{output}");
            assert!(output.contains(says), "{output}");
        }
        drop(reporter);
    }

    #[tokio::test]
    async fn what_speaks_no_grpc_is_critical() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let hello = b"HTTP/1.1 400 Bad Request\r\n\r\n";
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, hello).await;
            }
        });
        let kind = CheckKind::Grpc { authority, service: String::new(), tls: None };
        let (found, output) = ask(&TlsClient::default(), &kind, Duration::from_secs(5)).await;
        assert_eq!(found, Status::Critical);
        assert!(output.contains("broke off"), "{output}");
    }
}
