//! One request at a time, from a blocking test.
//!
//! Each call makes a runtime and a connection of its own: what a test observes cannot depend on what an
//! earlier request left behind. Load comes from [`crate::load`].

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// What came back, to the last trailer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The head.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// What followed the body.
    pub trailers: HeaderMap,
}

impl Answer {
    /// A header as text, empty when it is missing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// A trailer or, for answers without a body, the header of that name.
    #[must_use]
    pub fn trailer(&self, name: &str) -> &str {
        let value = self.trailers.get(name).or_else(|| self.headers.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("not JSON ({error}), status {}: {}", self.status, self.text())
        })
    }
}

/// Which HTTP a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// `GET path` with this `Host`.
///
/// # Errors
/// When no whole answer comes.
pub fn get(to: SocketAddr, host: &str, path: &str) -> io::Result<Answer> {
    send(to, Version::Http1, request(Method::GET, host, path))
}

/// A request without a body.
///
/// # Panics
/// When host or path are no such thing.
#[must_use]
pub fn request(method: Method, host: &str, path: &str) -> Request<Full<Bytes>> {
    let built =
        Request::builder().method(method).uri(path).header("host", host).body(Full::default());
    built.expect("a test's own request is well-formed")
}

/// Sends one request on a connection of its own and reads the answer to its end.
///
/// # Errors
/// When no whole answer comes within a minute.
pub fn send<B>(to: SocketAddr, version: Version, request: Request<B>) -> io::Result<Answer>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let limit = tokio::time::timeout(ANSWER_MAX, send_async(to, version, request)).await;
        limit.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within a minute"))
        })
    })
}

async fn send_async<B>(
    to: SocketAddr,
    version: Version,
    mut request: Request<B>,
) -> io::Result<Answer>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let response = match version {
        Version::Http1 => {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(connect(to).await?)
                    .await
                    .map_err(io::Error::other)?;
            tokio::spawn(connection);
            sender.send_request(request).await
        }
        Version::Http2 => {
            let mut sender = http2_to(to, &mut request).await?;
            sender.send_request(request).await
        }
    };
    let (head, body) = response.map_err(io::Error::other)?.into_parts();
    let collected = body.collect().await.map_err(io::Error::other)?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    Ok(Answer { status: head.status, headers: head.headers, body: collected.to_bytes(), trailers })
}

/// Sends a request over HTTP/2, takes it back when `arrived` returns, and keeps the connection until `learnt` does: what the other
/// side sees is the stream's end (RST_STREAM) alone.
///
/// # Errors
/// When there is no connection, or an answer came.
pub fn abandon(
    to: SocketAddr,
    mut request: Request<Full<Bytes>>,
    arrived: impl FnOnce() + Send + 'static,
    learnt: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut sender = http2_to(to, &mut request).await?;
        tokio::select! {
            answer = sender.send_request(request) => {
                return Err(io::Error::other(format!("an answer: {answer:?}")));
            }
            waited = tokio::task::spawn_blocking(arrived) => waited.map_err(io::Error::other)?,
        }
        tokio::task::spawn_blocking(learnt).await.map_err(io::Error::other)
    })
}

async fn connect(to: SocketAddr) -> io::Result<TokioIo<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

/// A connection for this request, whose host goes into its target.
async fn http2_to<B>(
    to: SocketAddr,
    request: &mut Request<B>,
) -> io::Result<hyper::client::conn::http2::SendRequest<B>>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Some(authority) = request.headers_mut().remove("host") {
        *request.uri_mut() = http2_uri(&authority, request.uri())?;
    }
    let io = connect(to).await?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (sender, connection) = handshake.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// HTTP/2 carries the host in the target.
///
/// # Errors
/// When the host is not one.
pub fn http2_uri(host: &http::HeaderValue, uri: &Uri) -> io::Result<Uri> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Uri::builder()
        .scheme("http")
        .authority(host.as_bytes())
        .path_and_query(path)
        .build()
        .map_err(io::Error::other)
}

/// Longer than anything a test asks for.
const ANSWER_MAX: Duration = Duration::from_secs(60);
