//! What passes before the response: 1xx from the application, and the leave to send a body that its caller waits for.
//!
//! A proxy forwards interim responses (RFC 9110 §15.2) and does not give leave in the application's place
//! (§10.1.1): a request with `expect: 100-continue` goes on with the expectation and without its body. The body is
//! asked of the caller, which is what gives it leave, when the application sends 100, or when it has said
//! nothing for [`PATIENCE`], since many never do. A final response that the caller gets instead means that the body is not wanted;
//! one that is followed by another attempt leaves everything as it was.
//!
//! 101 is no interim response but the end of HTTP on a connection, and nobody here asks for it.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use tokio::time::Sleep;

use crate::http2::server::StreamReply;
use crate::link::Link;
use crate::message::headers;

/// Where a request's interim responses go.
#[derive(Debug, Clone, Default)]
pub struct Interim {
    caller: InterimCaller,
    gate: Option<Rc<ContinueGate>>,
}

/// Who is told of interim responses.
#[derive(Debug, Clone, Default)]
pub enum InterimCaller {
    /// Nobody: a caller of HTTP/1.0, or none at all.
    #[default]
    Nobody,
    /// The caller on a connection of HTTP/1.1.
    Http1(Rc<Link>),
    /// The caller on a stream of HTTP/2.
    Http2(StreamReply),
}

impl Interim {
    /// For a request of this caller; `waits`: it sends its body when it is told to.
    pub fn new(caller: InterimCaller, waits: bool) -> Interim {
        let gate = waits.then(|| Rc::new(ContinueGate::new(caller.clone())));
        Interim { caller, gate }
    }

    /// The same request's for a copy of it: the caller hears of the first attempt alone.
    pub fn for_copy(&self) -> Interim {
        Interim { caller: InterimCaller::Nobody, gate: self.gate.clone() }
    }

    /// What holds the body back, if anything does.
    pub fn gate(&self) -> Option<&Rc<ContinueGate>> {
        self.gate.as_ref()
    }

    /// Whether the caller waits for leave to send its body.
    pub fn waits(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.state.get() == GateState::Shut)
    }

    /// An interim response came.
    pub fn pass(&self, status: StatusCode, fields: &HeaderMap) {
        if status == StatusCode::CONTINUE {
            if let Some(gate) = &self.gate {
                gate.open();
            }
            return;
        }
        if status == StatusCode::SWITCHING_PROTOCOLS || matches!(self.caller, InterimCaller::Nobody)
        {
            return;
        }
        let mut fields = fields.clone();
        let found = headers::find(&fields);
        headers::strip(&mut fields, found);
        // RFC 9110 §8.6: it has no body, and a reader that believes it would wait for one.
        fields.remove(CONTENT_LENGTH);
        match &self.caller {
            InterimCaller::Nobody => {}
            InterimCaller::Http1(link) => link.interim(status, &fields),
            InterimCaller::Http2(reply) => reply.interim(status, &fields),
        }
    }

    /// The caller gets its final response: a body that it has no leave to send by now is not wanted. What an attempt came to that may
    /// be followed by another is no final response yet: the body is still there.
    pub fn final_response(&self) {
        if let Some(gate) = &self.gate {
            gate.end();
        }
    }
}

/// Holds back a body until the application wants it.
#[derive(Debug)]
pub struct ContinueGate {
    state: Cell<GateState>,
    caller: InterimCaller,
    patience: RefCell<Option<Pin<Box<Sleep>>>>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GateState {
    Shut,
    Open,
    /// The final response came first.
    Ended,
}

impl ContinueGate {
    fn new(caller: InterimCaller) -> ContinueGate {
        ContinueGate {
            state: Cell::new(GateState::Shut),
            caller,
            patience: RefCell::new(None),
            waker: RefCell::new(None),
        }
    }

    /// Whether the final response came before the leave: a body behind it is never asked for.
    pub fn ended(&self) -> bool {
        self.state.get() == GateState::Ended
    }

    /// Ready once the body may be read; never, once the response came instead. The first poll begins the wait.
    pub fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.get() == GateState::Shut {
            let mut patience = self.patience.borrow_mut();
            let waiting = patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
            if waiting.as_mut().poll(cx).is_pending() {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            drop(patience);
            self.open();
        }
        match self.state.get() {
            GateState::Open => Poll::Ready(()),
            GateState::Shut | GateState::Ended => Poll::Pending,
        }
    }

    fn open(&self) {
        if self.state.get() != GateState::Shut {
            return;
        }
        self.state.set(GateState::Open);
        // hyper gives leave by itself when the body is read.
        if let InterimCaller::Http2(reply) = &self.caller {
            reply.interim(StatusCode::CONTINUE, &HeaderMap::new());
        }
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn end(&self) {
        if self.state.get() == GateState::Shut {
            self.state.set(GateState::Ended);
        }
    }
}

/// Interim responses to one request that are passed on: they are hints, and more would only fill memory.
pub const INTERIMS_MAX: u32 = 16;
/// How long an application may leave an expectation unanswered before its request's body is sent all the same; curl
/// waits as long.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::message::headers::Found;
    use crate::message::headers::tests::map;

    fn gated() -> (Interim, Rc<ContinueGate>) {
        let interim = Interim::new(InterimCaller::Nobody, true);
        let gate = Rc::clone(interim.gate().unwrap());
        (interim, gate)
    }

    fn poll(gate: &ContinueGate) -> Poll<()> {
        gate.poll_open(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_for_100_and_for_a_second_at_most() {
        let (interim, gate) = gated();
        assert!(poll(&gate).is_pending());
        interim.pass(StatusCode::EARLY_HINTS, &HeaderMap::new());
        assert!(poll(&gate).is_pending(), "hints are no leave");
        interim.pass(StatusCode::CONTINUE, &HeaderMap::new());
        assert!(poll(&gate).is_ready());
        interim.final_response();
        assert!(poll(&gate).is_ready(), "and it goes on beside the response");

        let (_, gate) = gated();
        assert!(poll(&gate).is_pending());
        tokio::time::advance(PATIENCE).await;
        assert!(poll(&gate).is_ready());
    }

    #[test]
    fn an_interim_response_names_no_length_and_nothing_of_its_own_connection() {
        let address = "127.0.0.1:1".parse().unwrap();
        let link = Rc::new(Link::new(address, address, Instant::now()));
        link.request_begins(Found::default());
        let interim = Interim::new(InterimCaller::Http1(Rc::clone(&link)), false);
        let fields =
            [("link", "</a>"), ("content-length", "5"), ("connection", "x-gone"), ("x-gone", "1")];
        interim.pass(StatusCode::EARLY_HINTS, &map(&fields));
        let mut text = Vec::new();
        let written = link.poll_interim(&mut Context::from_waker(Waker::noop()), |_, bytes| {
            text.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        });
        assert!(written.is_ready());
        assert_eq!(text, b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_response_in_place_of_100_means_that_the_body_is_not_wanted() {
        let (interim, gate) = gated();
        assert!(poll(&gate).is_pending());
        interim.final_response();
        assert!(!interim.waits() && poll(&gate).is_pending() && gate.ended());
        tokio::time::advance(PATIENCE).await;
        assert!(poll(&gate).is_pending(), "it never will be");
    }
}
