//! A UDP socket and a TCP listener on one port, as DNS and gossip need.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// Both, bound and not blocking.
pub struct PortPair {
    /// For datagrams.
    pub udp: UdpSocket,
    /// For connections.
    pub tcp: TcpListener,
}

impl PortPair {
    /// Binds both to the same port; port 0 finds one that is free for both.
    ///
    /// # Errors
    /// The port is taken, or the address is not this host's.
    pub fn bind(address: SocketAddr) -> io::Result<PortPair> {
        let mut tries = if address.port() == 0 { PORT_TRIES_MAX } else { 1 };
        loop {
            tries -= 1;
            let tcp = TcpListener::bind(address)?;
            tcp.set_nonblocking(true)?;
            match datagrams(tcp.local_addr()?) {
                Ok(udp) => return Ok(PortPair { udp, tcp }),
                Err(cause) if tries == 0 => return Err(cause),
                Err(_) => {}
            }
        }
    }

    /// Where they listen.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// A socket for datagrams with room for a burst, bound and not blocking.
///
/// # Errors
/// The port is taken, or the address is not this host's.
pub fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // What arrives while this process is paused should be there when it wakes. Best effort: the kernel has a maximum.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Times that port 0 is tried, until one is free for both.
const PORT_TRIES_MAX: u32 = 50;

/// A second of the largest mesh's gossip.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_on_one_port_and_a_taken_half_is_an_error() {
        let pair = PortPair::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = pair.local_addr().unwrap();
        assert_eq!(pair.tcp.local_addr().unwrap(), address);
        assert!(PortPair::bind(address).is_err(), "both are taken");
        drop(pair.tcp);
        assert!(PortPair::bind(address).is_err(), "UDP is still taken");
        drop(pair.udp);
        assert!(PortPair::bind(address).is_ok());
    }
}
