//! The application behind the mesh: a small HTTP/1.1 server that notes every request it executes.
//!
//! It knows nothing of Evenkeel. One thread serves one request at a time, so that it has a queue, and answers
//! at once, so that what is measured is not its work. Each execution is one line in the ledger file, written
//! *before* the answer, so what a client was told is in the file even if the process is killed in between.
//! The ledger is a file and not a counter because the demo also reads what applications did on a host that
//! is gone.
//!
//! It never deduplicates: an id that comes twice is written twice. That is what the demo looks for.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::ledger::Entry;
use super::process;

/// `evenkeel demo-application`: one of the demo's six applications. Started by `evenkeel demo` only.
#[derive(Debug, clap::Args)]
pub struct ApplicationArgs {
    /// The name it answers with.
    #[arg(long)]
    name: String,
    /// Where it listens; the address it got is the first line on standard output.
    #[arg(long)]
    listen: SocketAddr,
    /// The file every executed request is appended to.
    #[arg(long)]
    ledger: PathBuf,
    /// The process whose end is this one's end.
    #[arg(long)]
    parent: i32,
    /// How long one request takes besides its own work, in microseconds.
    #[arg(long, default_value_t = 0)]
    service_time_us: u64,
}

/// Serves until killed.
pub fn run_application(args: ApplicationArgs) -> anyhow::Result<()> {
    process::die_with(args.parent)?;
    let ledger = File::options()
        .append(true)
        .create(true)
        .open(&args.ledger)
        .with_context(|| format!("cannot open the ledger {}", args.ledger.display()))?;
    let application = Rc::new(Application {
        name: args.name,
        ledger,
        service_time: Duration::from_micros(args.service_time_us),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(serve(application, args.listen)))
}

struct Application {
    name: String,
    ledger: File,
    service_time: Duration,
}

async fn serve(application: Rc<Application>, listen: SocketAddr) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors: those that close make room.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Without it a small answer may wait for the peer's delayed acknowledgement.
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let application = Rc::clone(&application);
        let service = hyper::service::service_fn(move |request| {
            let application = Rc::clone(&application);
            async move { Ok::<_, Infallible>(application.answer(request).await) }
        });
        tokio::task::spawn_local(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            // A caller that breaks off (a cancelled copy) is no news to an application.
            let _ = connection.await;
        });
    }
}

impl Application {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        // A request counts as executed once it is complete.
        if Limited::new(body, BODY_MAX).collect().await.is_err() {
            return reply(
                StatusCode::BAD_REQUEST,
                format!("the body broke off or is over {BODY_MAX} bytes\n"),
            );
        }
        if !self.service_time.is_zero() {
            std::thread::sleep(self.service_time);
        }
        let path = head.uri.path();
        if let Some(entry) = Entry::from_request(&head.method, path)
            && let Err(error) = (&self.ledger).write_all(entry.to_line().as_bytes())
        {
            return reply(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("cannot write the ledger: {error}\n"),
            );
        }
        let status = if head.method == Method::POST { StatusCode::CREATED } else { StatusCode::OK };
        reply(status, format!("{{\"application\":\"{}\",\"path\":{path:?}}}\n", self.name))
    }
}

fn reply(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("application/json"),
    );
    response
}

const BODY_MAX: usize = 64 * 1024;
