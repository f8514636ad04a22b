//! Requests that came on a connection of HTTP/2 and are not begun yet.
//!
//! A connection brings as many requests at once as its peer likes, and each costs a worker's time; begun as they come, those
//! of one caller would stand before everybody else's in the worker's queue. So a connection begins a few
//! ([`STARTS_MAX`]) each time it has its turn, and the others have theirs in between. A request that is taken back
//! while it waits costs nothing more.
//!
//! Heads are what a request costs while it waits, here and later on its way. Usual ones are free, as many as there may be streams;
//! a large one is paid for until its answer is sent, within [`LARGE_HEADS_MAX`] for each connection and half of
//! `limits.buffers` for all. One that finds no room is refused unread (REFUSED_STREAM): another host may take it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;

use http::Request;
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;

use crate::body::Buffers;
use crate::http2::STREAMS_MAX;
use crate::http2::receive::StreamBody;
use crate::http2::server::{StreamReply, StreamRequest};

/// The requests of one connection that wait for its next turn.
#[derive(Debug)]
pub struct WaitingRequests {
    requests: VecDeque<WaitingRequest>,
    paid: Rc<Cell<usize>>,
    buffers: Arc<Buffers>,
}

/// A request that has not begun.
#[derive(Debug)]
pub struct WaitingRequest {
    /// The request.
    pub request: Request<StreamBody>,
    /// For its response.
    pub reply: StreamReply,
    /// What its head costs, until it is answered.
    pub head: Option<LargeHead>,
}

/// A large head that is paid for.
#[derive(Debug)]
pub struct LargeHead {
    bytes: usize,
    paid: Rc<Cell<usize>>,
    buffers: Arc<Buffers>,
}

impl Drop for LargeHead {
    fn drop(&mut self) {
        self.paid.set(self.paid.get() - self.bytes);
        self.buffers.head_is_gone(self.bytes);
    }
}

/// What became of a request that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It waits for its turn.
    Waits,
    /// Its sender has taken it back already.
    TakenBack,
    /// Its head is large, and there is no room for it.
    Refused,
}

impl WaitingRequests {
    /// None; large heads are paid for from `buffers`.
    pub fn new(buffers: Arc<Buffers>) -> WaitingRequests {
        WaitingRequests { requests: VecDeque::new(), paid: Rc::default(), buffers }
    }

    /// A request came.
    pub fn push(&mut self, cx: &mut Context<'_>, came: StreamRequest) -> Arrival {
        let StreamRequest { request, reply } = came;
        if reply.is_taken_back(cx) {
            return Arrival::TakenBack;
        }
        let (parts, body) = request.into_parts();
        let bytes = head_size(&parts);
        let head = match self.pay(bytes) {
            Ok(head) => head,
            Err(NoRoom) => {
                reply.refuse();
                return Arrival::Refused;
            }
        };
        let request = Request::from_parts(parts, body);
        self.requests.push_back(WaitingRequest { request, reply, head });
        Arrival::Waits
    }

    /// The next of a turn.
    pub fn next(&mut self) -> Option<WaitingRequest> {
        self.requests.pop_front()
    }

    /// Whether there are more.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Forgets those that were taken back, once there are more than there may be streams. How many they were.
    pub fn forget_taken_back(&mut self, cx: &mut Context<'_>) -> usize {
        let before = self.requests.len();
        if before > STREAMS_MAX as usize {
            self.requests.retain(|waiting| !waiting.reply.is_taken_back(cx));
        }
        before - self.requests.len()
    }

    fn pay(&self, bytes: usize) -> Result<Option<LargeHead>, NoRoom> {
        if bytes <= HEAD_FREE {
            return Ok(None);
        }
        let paid = self.paid.get() + bytes;
        if paid > LARGE_HEADS_MAX || !self.buffers.take_for_head(bytes) {
            return Err(NoRoom);
        }
        self.paid.set(paid);
        let (paid, buffers) = (Rc::clone(&self.paid), Arc::clone(&self.buffers));
        Ok(Some(LargeHead { bytes, paid, buffers }))
    }
}

/// There is no room for another large head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NoRoom;

/// Bytes of names and values, and of the places that they are kept in.
fn head_size(parts: &Parts) -> usize {
    let field = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    let fields = parts.headers.iter().map(|each| FIELD_COST + field(each));
    parts.uri.path_and_query().map_or(0, |path| path.as_str().len()) + fields.sum::<usize>()
}

/// Requests that a connection begins in one turn.
pub const STARTS_MAX: usize = 4;
/// What a field costs beside its bytes.
const FIELD_COST: usize = 100;
/// A head up to this size costs nothing: thirty fields of 30 bytes.
const HEAD_FREE: usize = 4 * 1024;
/// Bytes of large heads that one connection may have waiting.
const LARGE_HEADS_MAX: usize = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_heads_are_paid_for_within_two_limits_and_usual_ones_are_free() {
        let refused = prometheus::IntCounter::new("refused", "refused").expect("a name");
        let buffers = Arc::new(Buffers::new(2 * (LARGE_HEADS_MAX + HEAD_FREE * 4), refused));
        let [one, other] = [(); 2].map(|()| WaitingRequests::new(Arc::clone(&buffers)));
        assert!((0..10_000).all(|_| one.pay(HEAD_FREE).is_ok_and(|head| head.is_none())));
        let mut heads = Vec::new();
        while let Ok(head) = one.pay(HEAD_FREE * 2) {
            heads.push(head);
        }
        assert_eq!(heads.len(), LARGE_HEADS_MAX / HEAD_FREE / 2, "its own limit");
        let others: Vec<_> = std::iter::from_fn(|| other.pay(HEAD_FREE * 2).ok()).collect();
        assert_eq!(others.len(), 2, "the limit of all");
        heads.pop();
        assert!(one.pay(HEAD_FREE * 2).is_ok(), "one that was answered makes room");
    }
}
