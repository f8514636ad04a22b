//! How much of a body hyper holds that its connection has not taken yet.
//!
//! hyper takes frames of a body until it has as much as its buffer may hold, which has to be as large as the largest
//! head, and only then writes. A peer that does not read leaves all of it in our memory, and each frame keeps the
//! whole piece that it was read into, so that a stalled body costs several times what is of use. So the body is what
//! stops: it gives no more than [`QUEUED_MAX`] before what it gave was written ([`Outflow::flushed`]).

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::upload::UploadWatch;

/// What a connection of HTTP/1.1 was given to write.
#[derive(Debug, Default)]
pub struct Outflow {
    queued: Cell<usize>,
    waker: RefCell<Option<Waker>>,
    /// Bodies that are on their way out: one, or none.
    bodies: Cell<u32>,
    /// Towards an application: how long that may outlast its answer.
    upload: UploadWatch,
}

impl Outflow {
    /// All that it was given is written.
    pub fn flushed(&self) {
        self.queued.set(0);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Some was written.
    pub fn moves(&self) {
        self.upload.moves();
    }

    /// Whether some of a body was written since this was last asked.
    pub fn moved(&self) -> bool {
        self.bodies.get() > 0 && self.upload.moved()
    }

    /// The answer to the body that is written has ended: what is left of it may stand still for this long.
    pub fn answer_ends(&self, patience: Duration) {
        if self.bodies.get() > 0 {
            self.upload.answer_ends(patience);
        }
    }

    /// Nobody wants the answer to the body that is written any more.
    pub fn answer_is_given_up(&self) {
        if self.bodies.get() > 0 {
            self.upload.answer_is_given_up();
        }
    }

    /// Ready once a body that outlasts its answer has stood still for too long.
    pub fn poll_stands_still(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.upload.poll_stands_still(cx)
    }

    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.queued.get() < QUEUED_MAX {
            return Poll::Ready(());
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A body on its way out on a connection of HTTP/1.1.
#[derive(Debug)]
pub struct PacedBody<B> {
    body: B,
    out: BodyOnItsWay,
}

/// A body's part in its connection's outflow, for as long as there is more of it.
#[derive(Debug)]
struct BodyOnItsWay(Rc<Outflow>);

impl BodyOnItsWay {
    fn new(outflow: &Rc<Outflow>) -> BodyOnItsWay {
        outflow.bodies.set(outflow.bodies.get() + 1);
        BodyOnItsWay(Rc::clone(outflow))
    }
}

impl Drop for BodyOnItsWay {
    fn drop(&mut self) {
        self.0.bodies.set(self.0.bodies.get() - 1);
        self.0.upload.ends();
    }
}

impl<B> PacedBody<B> {
    /// Of the connection that this is the outflow of.
    pub fn new(body: B, outflow: &Rc<Outflow>) -> PacedBody<B> {
        PacedBody { body, out: BodyOnItsWay::new(outflow) }
    }

    /// The body, as far as it was not sent.
    pub fn into_inner(self) -> B {
        self.body
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for PacedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        ready!(self.out.0.poll_room(cx));
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let outflow = &self.out.0;
            outflow.queued.set(outflow.queued.get() + data.len());
            outflow.moves();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes of a body that may wait to be written.
const QUEUED_MAX: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use super::*;

    struct Chunks(VecDeque<Bytes>);

    impl HttpBody for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    #[test]
    fn no_more_is_given_before_what_was_given_is_written() {
        let outflow = Rc::default();
        let chunk = Bytes::from_static(&[0; QUEUED_MAX / 2]);
        let mut body = PacedBody::new(Chunks(vec![chunk; 5].into()), &outflow);
        let mut cx = Context::from_waker(Waker::noop());
        let mut given = || {
            let mut count = 0;
            while let Poll::Ready(Some(_)) = Pin::new(&mut body).poll_frame(&mut cx) {
                count += 1;
            }
            count
        };
        assert_eq!((given(), given()), (2, 0));
        outflow.flushed();
        assert_eq!(given(), 2);
        outflow.flushed();
        assert_eq!(given(), 1, "and then its end");
    }
}
