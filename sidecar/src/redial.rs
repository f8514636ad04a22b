//! An endpoint that could not be dialled is dialled again beside the requests, until it can be.
//!
//! A host that lost its power answers nothing, so who dials it waits for [`DIAL_TIMEOUT`](crate::pool), and a request that was sent to find out
//! whether it is back would pay that. So after the first failure no request goes there while there is anything else
//! ([`evenkeel_balancer::Endpoint::redial`]); one task for each such endpoint, whatever the number of workers, tries at rising intervals and
//! leaves the connection that it made in its worker's pool.
//!
//! Where nothing else is left the requests go on trying themselves: then the first that gets through ends it too.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use evenkeel_balancer::Endpoint;
use evenkeel_config::policy::Policy;

use crate::attempt::destination;
use crate::route::Upstream;
use crate::worker::Worker;

/// Sees to it that an endpoint that could not be dialled is dialled until it can be, or is gone.
pub fn begin(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    policy: &Policy,
    endpoint: &Arc<Endpoint>,
) {
    let Some(redial) = endpoint.redial() else { return };
    let (worker, upstream, policy) = (Rc::clone(worker), Arc::clone(upstream), policy.clone());
    tokio::task::spawn_local(async move {
        let mut pause = FIRST;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST);
            let serial = redial.endpoint().serial();
            // As it is known now: it may be dialled elsewhere.
            let known = upstream.balancer().endpoints();
            let known = known.iter().find(|endpoint| endpoint.serial() == serial).cloned();
            let Some(endpoint) = known.filter(|_| redial.is_needed()) else { return };
            if is_reachable(&worker, &upstream, &policy, &endpoint).await {
                return redial.succeeded();
            }
        }
    });
}

async fn is_reachable(
    worker: &Rc<Worker>,
    upstream: &Upstream,
    policy: &Policy,
    endpoint: &Endpoint,
) -> bool {
    let to = destination(worker, upstream, policy, endpoint);
    if to.is_known_to_speak_http2(worker) {
        return worker.pool.h2(to.address, to.from, None).await.is_ok();
    }
    match worker.pool.dial_h1(to.address, None).await {
        Ok(connection) => {
            worker.pool.put_back(connection);
            true
        }
        Err(_) => false,
    }
}

/// After the failure.
const FIRST: Duration = Duration::from_millis(250);
/// At the longest.
const LAST: Duration = Duration::from_secs(1);
