//! DNS's shell: a thread of its own that answers from the latest snapshot, over UDP and TCP.
//!
//! What the answer to a question is, [`answers`] decides; this carries bytes. One task answers all of UDP without a
//! task or an allocation for each question beside the answer itself: an answer takes microseconds and never waits.
//! TCP connections are bounded in number ([`Places`]) and in idle time, and may ask one question after another (RFC
//! 7766). Not hickory's server: it spawns a task and logs two lines for each packet.

use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use evenkeel_discovery::Catalog;
use evenkeel_discovery::answers::{self, Transport};
use prometheus::{IntCounter, IntCounterVec, Opts};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::gossip::entropy;
use crate::places::{Place, PlaceCounters, Places};

pub use crate::port_pair::PortPair as Sockets;

/// The running thread. Dropping it stops it and waits for that.
pub struct Dns {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the thread.
///
/// # Errors
/// No entropy, no thread, or the metrics are registered already.
pub fn spawn(
    sockets: Sockets,
    catalog: Arc<ArcSwap<Catalog>>,
    metrics: &prometheus::Registry,
    counters: &PlaceCounters,
) -> io::Result<Dns> {
    // Orders the addresses of an answer, so that clients that take the first are spread.
    let rng = SmallRng::from_seed(entropy()?);
    let queries = Queries::registered(metrics).map_err(io::Error::other)?;
    let places = Places::new(STREAMS_MAX, STREAMS_MAX, counters, "discovery.dns");
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("ek-dns".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(cause) => return tracing::error!(%cause, "DNS cannot start"),
        };
        let serve = async move {
            let (udp, tcp) =
                (UdpSocket::from_std(sockets.udp)?, TcpListener::from_std(sockets.tcp)?);
            let answerer = Arc::new(Answerer { catalog, rng: std::sync::Mutex::new(rng), queries });
            tokio::select! {
                _ = stopped => Ok(()),
                ended = datagrams(&udp, &answerer) => ended,
                () = streams(&tcp, &places, &answerer) => Ok(()),
            }
        };
        let ended: io::Result<()> = runtime.block_on(serve);
        if let Err(cause) = ended {
            tracing::error!(%cause, "DNS stopped: look-ups by DNS fail until a restart");
        }
    })?;
    Ok(Dns { stop: Some(stop), thread: Some(thread) })
}

impl Drop for Dns {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Answerer {
    catalog: Arc<ArcSwap<Catalog>>,
    /// One thread uses it: never contended.
    rng: std::sync::Mutex<SmallRng>,
    queries: Queries,
}

impl Answerer {
    /// A question that breaks us ends with itself: this thread answers everyone else's too.
    fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            answers::answer(&self.catalog.load(), query, transport, &mut *rng)
        }))
        .unwrap_or_else(|_| {
            tracing::error!(bytes = ?query, "a DNS question is not answered: a defect of evenkeel, please report it with this line");
            None
        });
        self.queries.count(transport, answer.as_deref());
        answer
    }

    /// The largest datagram for a querier. A source address of our own is never another host's: the kernel drops such
    /// packets when they come from outside (RFC 1812 section 5.3.8), so a large answer cannot be turned on anybody.
    fn most_to(&self, querier: IpAddr) -> u16 {
        let querier = querier.to_canonical();
        let catalog = self.catalog.load();
        let own = catalog.nodes.get(&catalog.own).map(|node| node.address.ip().to_canonical());
        if querier.is_loopback() || own == Some(querier) {
            answers::UDP_HERE_MAX
        } else {
            answers::UDP_MAX
        }
    }
}

/// `evenkeel_dns_queries_total{transport, rcode}`, the handles resolved once.
struct Queries {
    by_transport: [[IntCounter; RCODES.len()]; 2],
}

impl Queries {
    fn registered(metrics: &prometheus::Registry) -> prometheus::Result<Queries> {
        let family = IntCounterVec::new(
            Opts::new("evenkeel_dns_queries_total", "DNS messages, by how they were answered."),
            &["transport", "rcode"],
        )?;
        let by_transport = ["udp", "tcp"]
            .map(|transport| RCODES.map(|rcode| family.with_label_values(&[transport, rcode])));
        metrics.register(Box::new(family))?;
        Ok(Queries { by_transport })
    }

    fn count(&self, transport: Transport, answer: Option<&[u8]>) {
        let row = match transport {
            Transport::Udp { .. } => &self.by_transport[0],
            Transport::Tcp => &self.by_transport[1],
        };
        // RFC 1035 4.1.1: the response code is the low half of the fourth byte.
        let index = match answer.and_then(|answer| answer.get(3)).map(|byte| byte & 0x0f) {
            Some(code @ 0..=5) => usize::from(code),
            Some(_) => 6,
            None => 7,
        };
        row[index].inc();
    }
}

async fn datagrams(udp: &UdpSocket, answerer: &Answerer) -> io::Result<()> {
    let mut query = [0; QUERY_BYTES_MAX];
    loop {
        udp.readable().await?;
        for _ in 0..BATCH_MAX {
            match udp.try_recv_from(&mut query) {
                Ok((length, from)) => {
                    let transport = Transport::Udp { most: answerer.most_to(from.ip()) };
                    if let Some(answer) = answerer.answer(&query[..length], transport) {
                        // A full buffer loses the answer, as the network may: the client asks again.
                        if let Err(cause) = udp.try_send_to(&answer, from) {
                            debug!(%from, %cause, "a DNS answer was not sent");
                        }
                    }
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                Err(cause) => {
                    debug!(%cause, "DNS cannot receive");
                    break;
                }
            }
        }
        // Under a flood the TCP side still gets its turn.
        tokio::task::yield_now().await;
    }
}

async fn streams(tcp: &TcpListener, places: &Arc<Places>, answerer: &Arc<Answerer>) {
    loop {
        match tcp.accept().await {
            Ok((stream, from)) => {
                let Some(place) = places.enter(from.ip()).await else { continue };
                let answerer = Arc::clone(answerer);
                tokio::spawn(async move {
                    let ended = tokio::select! {
                        ended = stream_of_queries(stream, &place, &answerer) => ended,
                        () = place.gives_way() => Err(io::Error::other("it gave way to a newer one")),
                    };
                    if let Err(cause) = ended {
                        debug!(%from, %cause, "a DNS connection broke off");
                    }
                });
            }
            Err(cause) => {
                warn!(%cause, "DNS cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Each message behind its length in two bytes, RFC 1035 4.2.2.
async fn stream_of_queries(
    mut stream: TcpStream,
    place: &Place,
    answerer: &Answerer,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut query = Vec::new();
    loop {
        place.spare();
        let length = match timeout(IDLE_TIMEOUT, stream.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            Ok(Err(cause)) if cause.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(cause)) => return Err(cause),
            Err(_) => return Ok(()),
        };
        if length > QUERY_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a question of {length} bytes"),
            ));
        }
        query.resize(length, 0);
        timeout(IDLE_TIMEOUT, stream.read_exact(&mut query)).await??;
        let Some(answer) = answerer.answer(&query, Transport::Tcp) else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else {
            return Err(io::Error::other("our own answer is larger than a message may be"));
        };
        let message = [&length.to_be_bytes(), answer.as_slice()].concat();
        timeout(IDLE_TIMEOUT, stream.write_all(&message)).await??;
    }
}

/// Names of RFC 1035 and 2136 for 0 to 5, then the rest, then what got no answer.
const RCODES: [&str; 8] =
    ["noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "other", "ignored"];

/// The largest question: one name, one OPT with its options.
const QUERY_BYTES_MAX: usize = 4096;

/// Questions answered before other tasks get their turn.
const BATCH_MAX: usize = 64;

/// Connections at a time; past it, the one that has waited longest for its client gives way.
const STREAMS_MAX: usize = 256;

/// A connection without a question, or whose client does not take its answer, is closed after this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};

    fn started() -> (Dns, SocketAddr, prometheus::Registry) {
        let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = sockets.local_addr().unwrap();
        let metrics = prometheus::Registry::new();
        let catalog = Arc::new(ArcSwap::from_pointee(Catalog {
            mesh: "evenkeel".into(),
            domain: "mesh".into(),
            ..Catalog::default()
        }));
        let counters = PlaceCounters::registered(&prometheus::Registry::new()).unwrap();
        (spawn(sockets, catalog, &metrics, &counters).unwrap(), address, metrics)
    }

    /// `x.service.mesh A`, with this id.
    fn query(id: u16) -> Vec<u8> {
        let mut query = id.to_be_bytes().to_vec();
        query.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        query.extend(b"\x01x\x07service\x04mesh\x00\x00\x01\x00\x01");
        query
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
    }

    #[test]
    fn questions_on_one_connection_are_answered_in_order() {
        let (_dns, address, metrics) = started();
        let mut stream = StdTcpStream::connect(address).unwrap();
        let together: Vec<u8> = (1..=3).flat_map(|id| framed(&query(id))).collect();
        stream.write_all(&together).unwrap();
        for id in 1..=3u16 {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer[..2], id.to_be_bytes());
            assert_eq!(answer[2] & 0x80, 0x80, "a response");
        }
        let total: u64 = metrics.gather()[0]
            .get_metric()
            .iter()
            .map(|metric| metric.get_counter().get_value() as u64)
            .sum();
        assert_eq!(total, 3);
    }

    #[test]
    fn idle_connections_do_not_keep_a_question_waiting() {
        let (_dns, address, _metrics) = started();
        let idle: Vec<_> =
            (0..STREAMS_MAX).map(|_| StdTcpStream::connect(address).unwrap()).collect();
        let mut stream = StdTcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(IDLE_TIMEOUT / 2)).unwrap();
        stream.write_all(&framed(&query(7))).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        drop(idle);
    }

    #[test]
    fn a_connection_that_claims_too_much_or_talks_nonsense_is_closed() {
        let (_dns, address, _metrics) = started();
        for sent in [&u16::MAX.to_be_bytes()[..], &framed(b"junk"), &framed(b"")] {
            let mut stream = StdTcpStream::connect(address).unwrap();
            stream.write_all(sent).unwrap();
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "{sent:?}");
        }
    }

    #[test]
    fn nonsense_in_datagrams_is_ignored_and_the_end_closes_the_port() {
        let (dns, address, _metrics) = started();
        let socket = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        for nonsense in [&b""[..], b"x", &[0xff; 600], &[0; 5000]] {
            socket.send_to(nonsense, address).unwrap();
        }
        socket.send_to(&query(77), address).unwrap();
        let mut answer = [0; 512];
        // What is answered before ours says that it is nonsense.
        loop {
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let length = socket.recv(&mut answer).unwrap();
            if answer[..length].starts_with(&77u16.to_be_bytes()) {
                break;
            }
        }
        drop(dns);
        assert!(StdTcpStream::connect(address).is_err());
        assert!(StdUdpSocket::bind(address).is_ok());
    }
}
