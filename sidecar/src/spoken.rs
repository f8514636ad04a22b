//! What an application speaks whose registration does not say: learnt, never guessed at a request's expense.
//!
//! HTTP/1.1 is what applications speak as a rule, so that is what a request of HTTP/1.1 goes out in. A caller of HTTP/2
//! or gRPC is a reason to ask: on a connection of its own the preface of HTTP/2 and empty SETTINGS are sent, and
//! nothing else, until the application's own SETTINGS come, which every server of HTTP/2 sends first (RFC 9113 §3.4).
//! A server of HTTP/1.1 answers the preface with 400 or closes. So no request is ever sent to who cannot read it. The
//! other way round, an attempt in HTTP/1.1 that got no answer, or one that is no HTTP/1, is a reason to ask as well: where
//! HTTP/2 is spoken, it is what the next request goes out in, and this one speaks against nobody. It is not taken for
//! one that was not executed: the application may speak both, and have died of it.
//!
//! What was learnt is asked anew after [`KNOWN_FOR`]: another program may listen on the address by then. Requests go by
//! the old answer meanwhile, so that an application which is silent is waited for once, and not every minute.

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
            Some(learnt) if wanted => *learnt.http2.get_or_init(|| answers_preface(address)).await,
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
        let http2 = *learnt.http2.get_or_init(|| answers_preface(address)).await;
        learnt.not_http1.set(http2);
        http2
    }

    fn learnt(&self, address: SocketAddr, begin: bool) -> Option<Rc<Learnt>> {
        let (now, mut known) = (Instant::now(), self.0.borrow_mut());
        let valid =
            |learnt: &Rc<Learnt>| now.saturating_duration_since(learnt.since.get()) < KNOWN_FOR;
        if let Some(learnt) = known.get(&address).filter(|learnt| valid(learnt)) {
            return Some(Rc::clone(learnt));
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
        Learnt { since: Cell::new(now), http2: OnceCell::new(), not_http1: Cell::new(false) }
    }
}

/// Asks whoever is at this address by now, and forgets what was said before if the answer is another.
async fn ask_again(known: Rc<RefCell<Known>>, address: SocketAddr) {
    let http2 = answers_preface(address).await;
    if known.borrow().get(&address).is_some_and(|old| old.http2.get() == Some(&http2)) {
        return;
    }
    let learnt = Learnt { http2: OnceCell::new_with(Some(http2)), ..Learnt::new(Instant::now()) };
    known.borrow_mut().insert(address, Rc::new(learnt));
}

/// Whether a server of HTTP/2 is at this address.
async fn answers_preface(address: SocketAddr) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(PREFACE_AND_SETTINGS).await?;
        let mut head = [0; FRAME_HEAD];
        stream.read_exact(&mut head).await?;
        // SETTINGS, which are no acknowledgement, of the connection.
        Ok::<_, io::Error>(head[3..] == [4, 0, 0, 0, 0, 0])
    };
    matches!(tokio::time::timeout(ANSWER_TIMEOUT, asked).await, Ok(Ok(true)))
}

const PREFACE_AND_SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const FRAME_HEAD: usize = 9;
/// An application that is silent for this long is taken for one of HTTP/1.1.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
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

    #[tokio::test(flavor = "local")]
    async fn what_is_known_is_asked_again_beside_the_requests() {
        let (silent, asked) = application(b"").await;
        let spoken = SpokenProtocols::default();
        let long_ago = Instant::now().checked_sub(KNOWN_FOR).expect("the machine runs for longer");
        let old = Learnt { http2: OnceCell::new_with(Some(true)), ..Learnt::new(long_ago) };
        spoken.0.borrow_mut().insert(silent, Rc::new(old));
        assert!(spoken.speaks_http2(silent, true).await, "the old answer, at once");
        assert!(spoken.speaks_http2(silent, true).await);
        while spoken.speaks_http2(silent, true).await {
            tokio::task::yield_now().await;
        }
        assert_eq!(asked.get(), 1);
    }

    #[tokio::test(flavor = "local")]
    async fn who_answers_anything_else_speaks_http1() {
        for says in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"", b"\0\0\x00\x04\x01\0\0\0\0"] {
            let (address, _) = application(says).await;
            let spoken = SpokenProtocols::default();
            assert!(!spoken.speaks_http2(address, true).await, "{says:?}");
            assert!(!spoken.answered_no_http1(address).await, "{says:?}");
        }
    }
}
