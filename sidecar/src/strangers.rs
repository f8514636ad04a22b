//! Connections to the mesh port from addresses that no live member has.
//!
//! Only hosts of the mesh have business there, and until certificates say who they are their addresses do. A stranger
//! that is accepted like a member takes part in `limits.connections`, has its frames parsed and its mistakes logged.
//! So it is turned away before a byte is read, and counted in a metric of its own.
//!
//! But a stranger may be a member that we have not heard of. A host learns of the whole mesh in its first exchange,
//! and may send us a request a moment later; we learn of it by gossip, which goes round every 100 ms and reaches a
//! thousand hosts within a second (a lost message is made up for within ten). To refuse it at once would fail
//! requests in the moment in which a host joins, or comes back after a partition. So a stranger waits, unread, for up
//! to [`WAIT_MAX`] in a small room of its own: [`ROOM_MAX`] places, [`ROOM_EACH_MAX`] for one address, in which who
//! has waited longest gives way to who comes ([`Places`]). It costs a descriptor and what the kernel buffers. As soon
//! as a router knows its address it is served as if it had just been accepted.
//!
//! Who is turned away is told so in a way that costs no request: an HTTP/2 GOAWAY with 0 as the last stream says that
//! nothing of what was sent was looked at (RFC 9113 §6.8), so a member sends its requests elsewhere, whatever their
//! methods. It needs nothing to be read first. Before the socket is closed, what came is drained: a reset, which
//! closing a socket with unread bytes causes, could overtake the GOAWAY. Nobody lingers who gave way.
//!
//! Membership may also end while a connection lasts, so each request is checked again ([`crate::inbound`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::places::{PlaceCounters, Places};

/// The waiting room.
pub fn waiting_room(counters: &PlaceCounters) -> Arc<Places> {
    Places::new(ROOM_MAX, ROOM_EACH_MAX, counters, "mesh.data strangers")
}

/// Lets a stranger wait until it `is_member`; `None`: it was turned away.
pub async fn wait(
    mut stream: TcpStream,
    room: &Arc<Places>,
    is_member: impl Fn() -> bool,
) -> Option<TcpStream> {
    let place = room.try_enter(stream.peer_addr().ok()?.ip())?;
    let until = Instant::now() + WAIT_MAX;
    let gave_way = loop {
        // A router has no bell that rings when it changes, and these are few.
        tokio::select! {
            () = sleep(LOOK_AGAIN) => {}
            () = place.gives_way() => break true,
        }
        if is_member() {
            return Some(stream);
        }
        if Instant::now() >= until {
            break false;
        }
    };
    let told = stream.write_all(&turned_away()).await.is_ok() && stream.shutdown().await.is_ok();
    if told && !gave_way {
        let _ = timeout(LINGER_MAX, drain(&mut stream)).await;
    }
    None
}

/// Reads until the peer closes, or has sent more than a request begins with.
async fn drain(stream: &mut TcpStream) {
    let (mut buffer, mut left) = ([0; 4096], DRAIN_MAX);
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        left = left.saturating_sub(read);
        if left == 0 {
            return;
        }
    }
}

/// A server's side of HTTP/2 from its beginning to its end: SETTINGS, GOAWAY.
fn turned_away() -> Vec<u8> {
    let settings = [0, 0, 0, 0x4, 0, 0, 0, 0, 0];
    let length = u8::try_from(8 + WHY.len()).expect("a short text");
    let go_away = [0, 0, length, 0x7, 0, 0, 0, 0, 0];
    let last_stream = [0; 4];
    let refused_stream = [0, 0, 0, 0x7];
    [&settings[..], &go_away, &last_stream, &refused_stream, WHY].concat()
}

/// The caller's log and answer show it.
const WHY: &[u8] = b"no live member of this mesh has your address: see node.address";
/// Strangers that wait at a time.
const ROOM_MAX: usize = 64;
/// Of these, from one address: a host opens a connection for each of its workers.
const ROOM_EACH_MAX: usize = 8;
/// Longer than the news of a new host takes. Shorter than callers are patient: what is turned away may still be
/// answered elsewhere.
const WAIT_MAX: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LINGER_MAX: Duration = Duration::from_millis(500);
const DRAIN_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Empty;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use std::cell::Cell;
    use tokio::net::TcpListener;

    fn room() -> Arc<Places> {
        waiting_room(&PlaceCounters::registered(&prometheus::Registry::new()).unwrap())
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let (connected, accepted) = tokio::join!(TcpStream::connect(to), listener.accept());
        (connected.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn a_member_that_was_not_known_yet_is_served_with_all_that_it_sent() {
        let (mut caller, accepted) = pair().await;
        caller.write_all(b"PRI * HTTP/2.0").await.unwrap();
        let looks = Cell::new(0);
        let known = || looks.replace(looks.get() + 1) == 3;
        let mut served = wait(accepted, &room(), known).await.unwrap();
        let mut first = [0; 14];
        served.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"PRI * HTTP/2.0");
    }

    #[tokio::test]
    async fn a_stranger_is_told_that_none_of_its_requests_was_looked_at() {
        let (caller, accepted) = pair().await;
        let io = TokioIo::new(caller);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post("http://payments/").body(Empty::<&[u8]>::new()).unwrap();
        let room = room();
        let (answer, kept) =
            tokio::join!(sender.send_request(request), wait(accepted, &room, || false));
        assert!(kept.is_none());
        let error = answer.unwrap_err();
        let h2 = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<h2::Error>());
        let h2 = h2.expect("an error of HTTP/2");
        assert!(h2.is_go_away() && h2.is_remote(), "{h2}");
        assert!(h2.to_string().contains("node.address"), "{h2}");
    }

    #[tokio::test]
    async fn one_address_waits_in_few_places_and_the_oldest_gives_way() {
        let room = room();
        let began = Instant::now();
        let mut waiting = Vec::new();
        for _ in 0..4 * ROOM_EACH_MAX {
            let (caller, accepted) = pair().await;
            let room = Arc::clone(&room);
            waiting
                .push((caller, tokio::spawn(async move { wait(accepted, &room, || false).await })));
        }
        let (_caller, oldest) = waiting.swap_remove(0);
        assert!(oldest.await.unwrap().is_none());
        assert!(began.elapsed() < WAIT_MAX, "it did not wait to the end");
    }
}
