//! What an application speaks whose registration does not say: learnt, never guessed at a request's expense.
//!
//! HTTP/1.1 is what applications speak as a rule, so that is what a request of HTTP/1.1 goes out in. A caller of HTTP/2
//! or gRPC is a reason to ask: on a connection of its own the preface of HTTP/2 and empty SETTINGS are sent, and
//! nothing else, until the application's own SETTINGS come, which every server of HTTP/2 sends first (RFC 9113 §3.4).
//! A server of HTTP/1.1 answers the preface with 400 or closes. Only an answer is learnt from: who refuses the connection, resets it or says
//! nothing in time may be starting, full or paused, and is asked again with the next reason. So no request is ever sent to who cannot read it. The
//! other way round, an attempt in HTTP/1.1 that got no answer, or one that is no HTTP/1, is a reason to ask as well: where
//! HTTP/2 is spoken, it is what the next request goes out in, and this one speaks against nobody. It is not taken for
//! one that was not executed: the application may speak both, and have died of it.
//!
//! What was learnt is asked anew after [`KNOWN_FOR`]: another program may listen on the address by then. Requests go by
//! the old answer meanwhile, and go on by it where there is no new one.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// What a worker has learnt of applications.
#[derive(Debug, Default)]
pub struct SpokenProtocols(Rc<RefCell<Known>>);

type Known = HashMap<SocketAddr, Rc<Learnt>>;

#[derive(Debug)]
struct Learnt {
    since: Cell<Instant>,
    /// It speaks HTTP/2; asked at most once.
    http2: OnceCell<bool>,
    /// How often in a row it gave no answer, and when last.
    silences: Cell<u32>,
    silent_at: Cell<Instant>,
    /// It left a request of HTTP/1.1 without an answer in HTTP/1.
    not_http1: Cell<bool>,
}

impl SpokenProtocols {
    /// Whether a request goes to this application in HTTP/2. `wanted`: its caller speaks HTTP/2 or gRPC.
    pub async fn speaks_http2(&self, address: SocketAddr, wanted: bool) -> bool {
        if !wanted && self.0.borrow().is_empty() {
            return false;
        }
        let learnt = self.learnt(address, wanted);
        match learnt {
            Some(learnt) if wanted => learnt.asks(address).await.unwrap_or(false),
            Some(learnt) => learnt.not_http1.get(),
            None => false,
        }
    }

    /// Whether an application is known not to speak HTTP/1.1.
    pub fn speaks_no_http1(&self, address: SocketAddr) -> bool {
        self.learnt(address, false).is_some_and(|learnt| learnt.not_http1.get())
    }

    /// An application left a request of HTTP/1.1 without an answer in HTTP/1. Whether it speaks HTTP/2, which is what it gets
    /// from now on.
    pub async fn answered_no_http1(&self, address: SocketAddr) -> bool {
        let Some(learnt) = self.learnt(address, true) else { return false };
        let http2 = learnt.asks(address).await;
        if let Some(http2) = http2 {
            learnt.not_http1.set(http2);
        }
        http2.unwrap_or(false)
    }

    fn learnt(&self, address: SocketAddr, begin: bool) -> Option<Rc<Learnt>> {
        let (now, mut known) = (Instant::now(), self.0.borrow_mut());
        let valid =
            |learnt: &Rc<Learnt>| now.saturating_duration_since(learnt.since.get()) < KNOWN_FOR;
        if let Some(learnt) = known.get(&address).filter(|learnt| valid(learnt)) {
            return Some(Rc::clone(learnt));
        }
        if let Some(silent) = known.get(&address).filter(|old| begin && !old.http2.initialized()) {
            // How often it was silent counts on.
            silent.since.set(now);
            return Some(Rc::clone(silent));
        }
        let of_use = |old: &&Rc<Learnt>| old.http2.initialized() && (begin || old.not_http1.get());
        if let Some(old) = known.get(&address).filter(of_use) {
            old.since.set(now);
            tokio::task::spawn_local(ask_again(Rc::clone(&self.0), address));
            return Some(Rc::clone(old));
        }
        if !begin {
            known.remove(&address);
            return None;
        }
        if known.len() >= KNOWN_MAX {
            known.retain(|_, learnt| valid(learnt));
        }
        if known.len() >= KNOWN_MAX {
            return None;
        }
        let learnt = Rc::new(Learnt::new(now));
        known.insert(address, Rc::clone(&learnt));
        Some(learnt)
    }
}

impl Learnt {
    fn new(now: Instant) -> Learnt {
        Learnt {
            since: Cell::new(now),
            http2: OnceCell::new(),
            silences: Cell::new(0),
            silent_at: Cell::new(now),
            not_http1: Cell::new(false),
        }
    }

    /// Whether it speaks HTTP/2, if it says so now or has said it; all who wait for that ask once. `None`: it has not said.
    async fn asks(&self, address: SocketAddr) -> Option<bool> {
        let ask = async || {
            let silences = self.silences.get();
            let pause = ASKED_AGAIN * 2u32.pow(silences.min(DOUBLINGS_MAX));
            if silences > 0 && self.silent_at.get().elapsed() < pause {
                return Err(());
            }
            let answer = answers_preface(address).await;
            self.silences.set(if answer.is_none() { silences + 1 } else { 0 });
            self.silent_at.set(Instant::now());
            answer.ok_or(())
        };
        self.http2.get_or_try_init(ask).await.ok().copied()
    }
}

/// Asks whoever is at this address by now, and forgets what was said before if there is another answer.
async fn ask_again(known: Rc<RefCell<Known>>, address: SocketAddr) {
    let Some(http2) = answers_preface(address).await else { return };
    if known.borrow().get(&address).is_some_and(|old| old.http2.get() == Some(&http2)) {
        return;
    }
    let learnt = Learnt { http2: OnceCell::new_with(Some(http2)), ..Learnt::new(Instant::now()) };
    known.borrow_mut().insert(address, Rc::new(learnt));
}

/// Whether a server of HTTP/2 is at this address; `None`: nobody there says anything, or not in time.
async fn answers_preface(address: SocketAddr) -> Option<bool> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(PREFACE_AND_SETTINGS).await?;
        let (mut head, mut came) = ([0; FRAME_HEAD], 0);
        while came < FRAME_HEAD {
            match stream.read(&mut head[came..]).await {
                Ok(0) => break,
                Ok(n) => came += n,
                // What came before it is an answer all the same.
                Err(_) if came > 0 => break,
                Err(error) => return Err(error),
            }
        }
        // SETTINGS, which are no acknowledgement, of the connection.
        let settings = head[3..] == [4, 0, 0, 0, 0, 0] && came == FRAME_HEAD;
        Ok::<_, io::Error>((came > 0).then_some(settings))
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asked).await.ok()?.ok()?
}

const PREFACE_AND_SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const FRAME_HEAD: usize = 9;
/// An application that is silent for this long gets this request in HTTP/1.1, and is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two askings of an application that did not answer, doubled each time so often: one that never does is not to hold up
/// every request.
const ASKED_AGAIN: Duration = Duration::from_millis(250);
const DOUBLINGS_MAX: u32 = 6;
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Addresses of which something is known; of more nothing is learnt.
const KNOWN_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// An application that says this to whoever has said something; how often it was asked.
    async fn application(says: &'static [u8]) -> (SocketAddr, Rc<Cell<u32>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        tokio::task::spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.set(count.get() + 1);
                let _ = stream.read(&mut [0; 64]).await;
                let _ = stream.write_all(says).await;
            }
        });
        (address, asked)
    }

    #[tokio::test(flavor = "local")]
    async fn each_application_is_asked_once_and_only_where_there_is_a_reason() {
        let (http2, asked) = application(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64").await;
        let spoken = SpokenProtocols::default();
        assert!(!spoken.speaks_http2(http2, false).await);
        assert_eq!(asked.get(), 0, "a caller of HTTP/1.1 is no reason");
        for _ in 0..3 {
            assert!(spoken.speaks_http2(http2, true).await);
            assert!(!spoken.speaks_http2(http2, false).await, "it may speak both");
        }
        assert!(spoken.answered_no_http1(http2).await);
        assert!(spoken.speaks_http2(http2, false).await);
        assert_eq!(asked.get(), 1);
    }

    /// What was learnt of an application so long ago that it is asked again.
    fn learnt_long_ago(address: SocketAddr) -> SpokenProtocols {
        let spoken = SpokenProtocols::default();
        let long_ago = Instant::now().checked_sub(KNOWN_FOR).expect("the machine runs for longer");
        let old = Learnt { http2: OnceCell::new_with(Some(true)), ..Learnt::new(long_ago) };
        spoken.0.borrow_mut().insert(address, Rc::new(old));
        spoken
    }

    #[tokio::test(flavor = "local")]
    async fn what_is_known_is_asked_again_beside_the_requests() {
        let (other, asked) = application(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let spoken = learnt_long_ago(other);
        assert!(spoken.speaks_http2(other, true).await, "the old answer, at once");
        assert!(spoken.speaks_http2(other, true).await);
        while spoken.speaks_http2(other, true).await {
            tokio::task::yield_now().await;
        }
        assert_eq!(asked.get(), 1);
    }

    #[tokio::test(flavor = "local")]
    async fn who_says_nothing_keeps_what_was_learnt() {
        let (silent, _) = application(b"").await;
        let spoken = learnt_long_ago(silent);
        ask_again(Rc::clone(&spoken.0), silent).await;
        assert!(spoken.speaks_http2(silent, true).await);
    }

    #[tokio::test(flavor = "local")]
    async fn an_application_that_could_not_be_asked_is_asked_again() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let spoken = SpokenProtocols::default();
        assert!(!spoken.speaks_http2(address, true).await, "nobody listens");
        assert!(!spoken.answered_no_http1(address).await);
        let listener = TcpListener::bind(address).await.unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 64]).await;
            let _ = stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await;
        });
        while !spoken.speaks_http2(address, true).await {
            tokio::task::yield_now().await;
        }
        assert!(spoken.answered_no_http1(address).await);
    }

    #[tokio::test(flavor = "local")]
    async fn who_answers_anything_else_speaks_http1() {
        for says in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"x", b"\0\0\x00\x04\x01\0\0\0\0"] {
            let (address, _) = application(says).await;
            let spoken = SpokenProtocols::default();
            assert!(!spoken.speaks_http2(address, true).await, "{says:?}");
            assert!(!spoken.answered_no_http1(address).await, "{says:?}");
        }
    }
}
