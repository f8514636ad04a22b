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

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// What a connection of HTTP/1.1 was given to write.
#[derive(Debug, Default)]
pub struct Outflow {
    queued: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl Outflow {
    /// All that it was given is written.
    pub fn flushed(&self) {
        self.queued.set(0);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
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
    outflow: Rc<Outflow>,
}

impl<B> PacedBody<B> {
    /// Of the connection that this is the outflow of.
    pub fn new(body: B, outflow: &Rc<Outflow>) -> PacedBody<B> {
        PacedBody { body, outflow: Rc::clone(outflow) }
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
        ready!(self.outflow.poll_room(cx));
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.outflow.queued.set(self.outflow.queued.get() + data.len());
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
