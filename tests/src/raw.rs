//! Bytes as they are: for requests no client library would send, and for datagrams nobody invited.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// A connection that says exactly what it is told.
#[derive(Debug)]
pub struct Raw(TcpStream);

/// What the other side sent until it closed or fell silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Everything that came.
    pub bytes: Vec<u8>,
    /// Whether the other side closed (or reset) the connection.
    pub closed: bool,
}

impl Heard {
    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The status of the first response, 0 when there is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.text()
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .unwrap_or(0)
    }

    /// How many responses came.
    #[must_use]
    pub fn responses(&self) -> usize {
        self.text().matches("HTTP/1.1 ").count()
    }
}

impl Raw {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(to: SocketAddr) -> io::Result<Raw> {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        Ok(Raw(stream))
    }

    /// Connects from this address.
    ///
    /// # Errors
    /// When nobody listens, or does not accept.
    pub fn connect_from(source: IpAddr, to: SocketAddr) -> io::Result<Raw> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(Raw(socket.into()))
    }

    /// Sends bytes; a peer that has already closed is no error, what matters is what it answered.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref());
    }

    /// Reads until the other side closes, or says nothing for `silence`.
    pub fn hear(&mut self, silence: Duration) -> Heard {
        self.hear_until(silence, |_| false)
    }

    /// [`Raw::hear`], but no longer than until so many responses have begun.
    pub fn hear_responses(&mut self, count: usize, silence: Duration) -> Heard {
        self.hear_until(silence, |heard| heard.responses() >= count)
    }

    /// [`Raw::hear`], but no longer than until this has come.
    pub fn hear_text(&mut self, text: &str, silence: Duration) -> Heard {
        self.hear_until(silence, |heard| heard.text().contains(text))
    }

    fn hear_until(&mut self, silence: Duration, enough: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = Heard { bytes: Vec::new(), closed: false };
        let _ = self.0.set_read_timeout(Some(silence));
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => heard.closed = true,
                Ok(n) => {
                    heard.bytes.extend_from_slice(&buffer[..n]);
                    if !enough(&heard) {
                        continue;
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) => {}
                Err(_) => heard.closed = true,
            }
            return heard;
        }
    }
}

/// Bytes without meaning, the same for the same seed.
#[must_use]
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    // splitmix64: enough to hit every byte value, and a failure can be repeated.
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    bytes.truncate(length);
    bytes
}
