//! Gossip over TCP: one request frame and one response frame for each connection, each behind its length.
//!
//! Whoever can reach the port can open a connection, so everything is bounded before it is believed: the number
//! of connections, the time for the whole exchange, a frame's length, and the memory that all of them hold
//! together, which grows with the bytes that came and not with the length that was claimed.
//!
//! A host that wants to join is a stranger until its request is read, so strangers cannot be refused here as on the
//! mesh port. They are kept short instead ([`Places`]): an address has [`STREAMS_EACH_MAX`] of the places, whoever
//! sends nothing within [`FIRST_BYTE_TIMEOUT`] is closed (a host writes its request as soon as it is connected) and
//! gives its place to a newcomer before that, and when all places are taken by exchanges, the slow ones of an address
//! that holds several give way to an address that holds fewer. Members come before strangers: their connections take
//! the places of strangers that are not being answered, however many addresses those have, and a stranger that finds no
//! place is closed and not waited for, as members would have to wait behind it. Whoever shows the key is no stranger from
//! then on. A dial that is closed is made again.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use evenkeel_discovery::discovery::FRAME_MAX;
use evenkeel_discovery::{Catalog, Dial, DialError, DialId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::places::{Place, PlaceCounters, Places};

/// What the streams tell the owner of `Discovery`.
pub enum Arrival {
    /// Someone's request; the answer goes back on the channel, `None` closes without one.
    Request(SocketAddr, Vec<u8>, oneshot::Sender<Option<Vec<u8>>>),
    /// The end of a dial of ours.
    Response(DialId, SocketAddr, Result<Vec<u8>, DialError>),
}

/// The places of the listener.
pub fn places(counters: &PlaceCounters) -> Arc<Places> {
    Places::new(STREAMS_MAX, STREAMS_EACH_MAX, counters, "mesh.gossip")
}

/// Whether a live member has an address, by the snapshot that readers see.
pub fn members_of(catalog: Arc<ArcSwap<Catalog>>) -> impl FnMut(IpAddr) -> bool {
    let (mut as_of, mut members) = (None, BTreeSet::new());
    move |address| {
        let catalog = catalog.load();
        if as_of != Some(catalog.nodes_index) {
            as_of = Some(catalog.nodes_index);
            members = catalog.alive().map(|node| node.address.ip().to_canonical()).collect();
        }
        members.contains(&address.to_canonical())
    }
}

/// Accepts until the receiving end is gone. `is_member`: whether a live member has this address.
pub async fn accept(
    listener: TcpListener,
    places: Arc<Places>,
    arrivals: mpsc::Sender<Arrival>,
    mut is_member: impl FnMut(IpAddr) -> bool,
) {
    let memory = Arc::new(Semaphore::new(MEMORY_MAX / CHUNK));
    while !arrivals.is_closed() {
        match listener.accept().await {
            Ok((stream, from)) => {
                let is_member = is_member(from.ip());
                let place = match is_member {
                    true => places.enter_known(from.ip()).await,
                    false => places.try_enter(from.ip()),
                };
                let Some(place) = place else { continue };
                let limit = if is_member { SERVE_TIMEOUT } else { STRANGER_TIMEOUT };
                let (arrivals, memory) = (arrivals.clone(), Arc::clone(&memory));
                tokio::spawn(async move {
                    let exchange = serve(stream, from, limit, &place, &arrivals, &memory);
                    let ended = tokio::select! {
                        ended = timeout(SERVE_TIMEOUT, exchange) => ended,
                        () = place.gives_way() => {
                            return debug!(%from, "a gossip stream gave way to a newer one");
                        }
                    };
                    match ended {
                        Ok(Ok(())) => {}
                        Ok(Err(cause)) => debug!(%from, %cause, "a gossip stream broke off"),
                        Err(_) => {
                            debug!(%from, "a gossip stream took longer than {SERVE_TIMEOUT:?}");
                        }
                    }
                });
            }
            Err(cause) => {
                warn!(%cause, "gossip cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    from: SocketAddr,
    limit: Duration,
    place: &Place,
    arrivals: &mpsc::Sender<Arrival>,
    memory: &Semaphore,
) -> io::Result<()> {
    timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut [0])).await??;
    place.slow();
    let (request, held) = timeout(limit, read_frame(&mut stream, memory)).await??;
    let (answer, answered) = oneshot::channel();
    place.kept();
    if arrivals.send(Arrival::Request(from, request, answer)).await.is_err() {
        return Ok(());
    }
    let response = answered.await.ok().flatten();
    drop(held);
    if let Some(response) = response {
        place.known();
        place.slow();
        write_frame(&mut stream, &response).await?;
        stream.shutdown().await?;
    }
    Ok(())
}

/// Makes one dial and tells how it ended. `source`: the address to dial from.
pub async fn dial(
    dial: Dial,
    source: Option<IpAddr>,
    memory: Arc<Semaphore>,
    arrivals: mpsc::Sender<Arrival>,
) {
    let Dial { id, to, request, timeout: limit } = dial;
    let exchange = async {
        let mut stream = connect(to, source).await?;
        write_frame(&mut stream, &request).await?;
        let (response, _held) = read_frame(&mut stream, &memory).await?;
        Ok::<_, io::Error>(response)
    };
    let result = match timeout(limit, exchange).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(cause)) if cause.kind() == io::ErrorKind::ConnectionRefused => {
            Err(DialError::Refused)
        }
        Ok(Err(cause)) => {
            debug!(%to, %cause, "a gossip dial failed");
            Err(DialError::Other)
        }
        Err(_) => {
            debug!(%to, "a gossip dial took longer than {limit:?}");
            Err(DialError::Other)
        }
    };
    let _ = arrivals.send(Arrival::Response(id, to, result)).await;
}

/// How much all responses to dials may hold together.
#[must_use]
pub fn dial_memory() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MEMORY_MAX / CHUNK))
}

async fn connect(to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source.filter(|source| source.is_ipv4() == to.is_ipv4()) {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn write_frame(stream: &mut TcpStream, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).ok().filter(|_| frame.len() <= FRAME_MAX);
    let length =
        length.ok_or_else(|| io::Error::other("our own frame is larger than a frame may be"))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(frame).await
}

/// Reads one frame; the permits stand for its memory and are kept as long as it is.
async fn read_frame<'m>(
    stream: &mut TcpStream,
    memory: &'m Semaphore,
) -> io::Result<(Vec<u8>, Vec<SemaphorePermit<'m>>)> {
    let length = stream.read_u32().await? as usize;
    if length > FRAME_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes, more than {FRAME_MAX}"),
        ));
    }
    let (mut frame, mut held) = (Vec::new(), Vec::new());
    while frame.len() < length {
        let permit = memory
            .try_acquire()
            .map_err(|_| io::Error::other("all memory for gossip streams is in use"))?;
        held.push(permit);
        let chunk = CHUNK.min(length - frame.len());
        frame.reserve(chunk);
        let mut piece = (&mut *stream).take(chunk as u64);
        let target = frame.len() + chunk;
        while frame.len() < target {
            if piece.read_buf(&mut frame).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok((frame, held))
}

/// Connections of others at a time; further ones of members wait in the kernel's backlog, unless somebody gives way.
const STREAMS_MAX: usize = 64;

/// Of these, from one address.
const STREAMS_EACH_MAX: usize = 16;

/// From the opening of a connection to the first byte of its request.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that all frames being received hold together, for each direction of dialling.
const MEMORY_MAX: usize = 64 * 1024 * 1024;

/// How memory is counted.
const CHUNK: usize = 64 * 1024;

/// For a whole exchange that someone else began.
const SERVE_TIMEOUT: Duration = Duration::from_secs(10);

/// For the request of a stranger: what a host that joins has to say is little.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(3);

/// After a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener whose requests are answered with their own bytes, doubled.
    async fn doubling() -> SocketAddr {
        doubling_for(|_| false).await
    }

    async fn doubling_for(is_member: impl Fn(IpAddr) -> bool + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrivals, mut arrived) = mpsc::channel(4);
        let counters = PlaceCounters::registered(&prometheus::Registry::new()).unwrap();
        tokio::spawn(accept(listener, places(&counters), arrivals, is_member));
        tokio::spawn(async move {
            while let Some(arrival) = arrived.recv().await {
                if let Arrival::Request(_, request, answer) = arrival {
                    let _ = answer.send((!request.is_empty()).then(|| request.repeat(2)));
                }
            }
        });
        address
    }

    async fn dialled(to: SocketAddr, request: Vec<u8>) -> Result<Vec<u8>, DialError> {
        let (arrivals, mut arrived) = mpsc::channel(1);
        let asked = Dial { id: DialId(7), to, request, timeout: Duration::from_secs(5) };
        dial(asked, None, dial_memory(), arrivals).await;
        match arrived.recv().await {
            Some(Arrival::Response(DialId(7), _, result)) => result,
            _ => panic!("no end of the dial was told"),
        }
    }

    #[tokio::test]
    async fn an_exchange_carries_frames_of_any_size() {
        let address = doubling().await;
        for size in [1, 100, CHUNK, CHUNK + 1, 1_000_000] {
            let request: Vec<u8> = (0..size).map(|n| n as u8).collect();
            assert_eq!(
                dialled(address, request.clone()).await,
                Ok(request.repeat(2)),
                "{size} bytes"
            );
        }
        assert_eq!(
            dialled(address, Vec::new()).await,
            Err(DialError::Other),
            "closed without an answer"
        );
    }

    #[tokio::test]
    async fn a_closed_port_is_told_from_other_failures() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(dialled(address, vec![1]).await, Err(DialError::Refused));
    }

    #[tokio::test]
    async fn who_says_nothing_keeps_nobody_out() {
        let address = doubling().await;
        let from = |last: u8| async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
            socket.connect(address).await.unwrap()
        };
        let mut silent = Vec::new();
        for n in 0..2 * STREAMS_MAX {
            silent.push(from(2 + (n % 16) as u8).await);
        }
        assert_eq!(dialled(address, vec![7]).await, Ok(vec![7, 7]));
        for stream in &mut silent {
            let closed = timeout(SERVE_TIMEOUT / 2, stream.read(&mut [0; 1])).await;
            assert!(
                matches!(closed, Ok(Ok(0) | Err(_))),
                "closed without waiting for the whole exchange"
            );
        }
    }

    #[tokio::test]
    async fn strangers_that_speak_slowly_from_many_addresses_keep_no_member_out() {
        let member: IpAddr = [127, 0, 0, 1].into();
        let address = doubling_for(move |from| from == member).await;
        let mut slow = Vec::new();
        for n in 0..2 * STREAMS_MAX {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 1, 1 + n as u8], 0))).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            // Some of these are closed already.
            let _ = stream.write_all(&8u32.to_be_bytes()).await;
            slow.push(stream);
        }
        for _ in 0..STREAMS_EACH_MAX {
            assert_eq!(dialled(address, vec![7]).await, Ok(vec![7, 7]));
        }
        for stream in &mut slow {
            let closed = timeout(SERVE_TIMEOUT, stream.read(&mut [0; 1])).await;
            assert!(matches!(closed, Ok(Ok(0) | Err(_))), "its time is short");
        }
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_cut_off() {
        let address = doubling().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "closed");
    }

    #[tokio::test]
    async fn memory_is_held_for_what_came_not_for_what_was_claimed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut receiver, _) = listener.accept().await.unwrap();
        let memory = Semaphore::new(2);
        sender.write_all(&(4 * CHUNK as u32).to_be_bytes()).await.unwrap();
        sender.write_all(&vec![0; 3 * CHUNK]).await.unwrap();
        let refused = read_frame(&mut receiver, &memory).await.map(|(frame, _)| frame.len());
        assert!(refused.is_err_and(|cause| cause.to_string().contains("memory")));
        assert_eq!(memory.available_permits(), 2, "given back");
    }
}
