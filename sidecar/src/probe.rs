//! Copies of safe requests that find out whether an endpoint on probation is well again.
//!
//! Nobody waits for a probe: its answer is read, thrown away, and told to its ticket alone. Whether one is due, and
//! whether the budgets pay for it, is the balancer's decision (`Balancer::probe_due`).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use evenkeel_balancer::Ticket;
use http::Request;
use http_body_util::BodyExt as _;

use crate::attempt::{self, Connection, Head, Won};
use crate::body::Body;
use crate::interim::Interim;
use crate::route::{Route, Upstream};
use crate::template::Template;
use crate::worker::Worker;

/// Sends a probe.
pub fn spawn(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    route: &Arc<Route>,
    ticket: Ticket,
    template: &Template,
) {
    let endpoint = ticket.endpoint();
    let h2 = attempt::destination(worker, upstream, &route.policy, endpoint)
        .is_known_to_speak_http2(worker);
    let request = template.request(upstream, endpoint, Body::Empty, None, h2);
    let (worker, upstream, route) = (Rc::clone(worker), Arc::clone(upstream), Arc::clone(route));
    tokio::task::spawn_local(async move {
        let timeout = route.policy.timeout;
        let _ =
            tokio::time::timeout(timeout, run(&worker, &upstream, &route, ticket, request)).await;
    });
}

async fn run(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    route: &Route,
    ticket: Ticket,
    request: Request<Body>,
) {
    let destination = attempt::destination(worker, upstream, &route.policy, ticket.endpoint());
    let ended = attempt::once(worker, destination, request, &Interim::default(), false).await;
    let ended = (ended, ticket);
    let settled = attempt::settle(worker, upstream, &route.policy, ended, None, Instant::now());
    if let Ok(Won { head, ticket, .. }) = settled {
        read(worker, *head).await;
        drop(ticket);
    }
}

/// Reads a short body to its end, so that the connection can be used again: the next probe must not have to dial.
async fn read(worker: &Worker, head: Head) {
    let mut body = head.response.into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return };
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
        if read > READ_MAX {
            return;
        }
    }
    if let Connection::H1(connection) = head.connection {
        worker.pool.put_back(connection);
    }
}

/// A longer answer is cut off, and its connection with it.
const READ_MAX: usize = 256 * 1024;
