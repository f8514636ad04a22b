//! How long an upload may outlast its answer.
//!
//! An application may answer before it has read the request's body, and what is still to come of that is sent on. The
//! request is over then, for its caller and for every count of requests, but the upload still holds its stream or its
//! connection, and nobody waits for anything that would end it. So it keeps its place among them, and once its answer
//! has ended it has `policy.idle_timeout`, at most five minutes, between two movements. Not before: a call of gRPC may send nothing for hours
//! while its answer streams. An answer that nobody wants any more, because its request is sent again or its caller has gone, ends the
//! upload at once.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// One upload, as seen by who may end it.
#[derive(Debug, Default)]
pub struct UploadWatch {
    /// How long it may stand still; `None`: its answer has not ended, or it has.
    patience: Cell<Option<Duration>>,
    moved: Cell<bool>,
    still: RefCell<Option<Pin<Box<Sleep>>>>,
    waker: RefCell<Option<Waker>>,
}

impl UploadWatch {
    /// Some of it was taken from its caller, or written.
    pub fn moves(&self) {
        self.moved.set(true);
    }

    /// Whether it moved since this was last asked, while its answer goes on.
    pub fn moved(&self) -> bool {
        self.moved.take()
    }

    /// Its answer has ended: from now on it may stand still for this long.
    pub fn answer_ends(&self, patience: Duration) {
        self.patience.set(Some(patience));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Nobody wants its answer any more: it ends, unless that has ended before.
    pub fn answer_is_given_up(&self) {
        if self.patience.get().is_none() {
            self.answer_ends(Duration::ZERO);
        }
    }

    /// It has ended, or the next one begins.
    pub fn ends(&self) {
        self.patience.set(None);
        *self.still.borrow_mut() = None;
    }

    /// Ready once it has stood still for too long; polled with whatever sends it.
    pub fn poll_stands_still(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = self.patience.get() else {
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        if patience.is_zero() {
            return Poll::Ready(());
        }
        let mut still = self.still.borrow_mut();
        let timer = still.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if self.moved.take() {
            timer.as_mut().reset(Instant::now() + patience);
        }
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn an_upload_may_stand_still_until_its_answer_has_ended_and_for_a_while_then() {
        let watch = UploadWatch::default();
        let stands_still =
            || watch.poll_stands_still(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(!stands_still());
        tokio::time::advance(PATIENCE * 100).await;
        assert!(!stands_still(), "its answer still comes");
        watch.answer_ends(PATIENCE);
        for _ in 0..3 {
            assert!(!stands_still());
            tokio::time::advance(PATIENCE * 9 / 10).await;
            watch.moves();
        }
        assert!(!stands_still());
        tokio::time::advance(PATIENCE).await;
        assert!(stands_still());
        watch.answer_is_given_up();
        watch.moves();
        assert!(!stands_still(), "its answer has been taken");
        watch.ends();
        assert!(!stands_still(), "the connection carries another");
        watch.answer_is_given_up();
        watch.moves();
        assert!(stands_still(), "however fast it goes");
    }
}
