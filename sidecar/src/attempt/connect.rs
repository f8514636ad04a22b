//! Opening a tunnel to one instance of a service: the attempts of a CONNECT.
//!
//! The same choice as for a request, and the same reasons to try again, in a loop of its own because most of a request's is not
//! wanted here: nothing is hedged (two connections to applications, one of them for nothing), and how long an application's kernel takes to accept says
//! nothing about how long the application takes to answer ([`Ticket::dials_only`](evenkeel_balancer::Ticket::dials_only)).
//!
//! Until the tunnel stands nothing of what its caller says is sent anywhere, so an attempt that failed may be followed by another, within `retry.max` and
//! the budget. Who waits for a host that the mesh calls down goes elsewhere; a tunnel that stands stays where it is.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use evenkeel_balancer::Attempt;
use smallvec::SmallVec;

use super::sending::{Next, Sending, Start};
use super::{Deadline, Event, Story, Waiting, Won, poll_event, settle, too_late};
use crate::alarm::Alarm;
use crate::error::Error;
use crate::interim::Interim;
use crate::route::{Route, Upstream};
use crate::template::Template;
use crate::worker::Worker;

/// Opens a tunnel to an instance of the upstream; or passes on what its host says instead.
///
/// # Errors
/// What the caller is told when there is no tunnel.
pub async fn open(
    worker: &Rc<Worker>,
    upstream: &Arc<Upstream>,
    route: &Arc<Route>,
    template: &Template,
    deadline: Deadline,
    interim: &Interim,
) -> Result<Won, Error> {
    let (policy, start) = (&route.policy, deadline.start);
    let request = Sending::new(worker, upstream, route, template, None, interim);
    upstream.retries().request(start);
    let mut ticket = request.first(deadline).await?;
    upstream.metrics().of(worker.id).attempts[Attempt::First as usize].inc();

    let (mut how, mut since, mut story) = (Start::AtOnce, Instant::now(), Story::default());
    let mut tried: SmallVec<[u64; 4]> = SmallVec::new();
    loop {
        ticket.dials_only();
        tried.push(ticket.endpoint().serial());
        let mut dialling = pin!(Some(request.begin(ticket.endpoint(), deadline, how)));
        let mut waiting = Waiting::new(ticket, since);
        let mut alarm = Alarm::new(&worker.alarms, deadline.at);
        let leaves = || waiting.is_lost() && request.may_leave(Instant::now(), story.retries);
        let event =
            poll_fn(|cx| poll_event(cx, dialling.as_mut(), leaves, &mut [], &mut alarm)).await;
        let now = Instant::now();
        let Event::First(ended) = event else {
            waiting.timed_out(now, policy.timeout);
            return Err(too_late(upstream, start));
        };
        let why = match settle(worker, upstream, policy, (ended, waiting.take()), None, now) {
            Ok(won) => return Ok(Won { story, ..won }),
            Err(why) => why,
        };
        let left = deadline.at.saturating_duration_since(now);
        let next = request.retry(now, left, &why.outcome, story.retries, &tried);
        let Some(Next { ticket: next, wait, fresh }) = next else {
            return why.give_up(None, story);
        };
        story.retries += 1;
        (ticket, how, since) = (next, Start::Again { wait, fresh }, now + wait);
    }
}
