//! Listening sockets: opened once, kept over reloads, shared out among the workers.
//!
//! Each worker accepts on a socket of its own of one `SO_REUSEPORT` group, so a connection is accepted where it is
//! served. The kernel spreads connections by hash: few long-lived ones (the mesh's) may all fall to
//! one worker, so an accepting worker with more than its share hands the raw socket to the least loaded
//! ([`hand_over`]). A second process of the same user could join the group unseen, so the port is probed
//! first without the option.
//!
//! Sockets are never closed while the process serves: closing one of a group resets the connections queued on it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// What a connection that is accepted on a socket is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Requests of applications to anything, by name.
    Outbound,
    /// Requests of applications to one service.
    Service(String),
    /// Requests of other hosts to this host's applications.
    Inbound,
}

/// The configuration key of such a listener, as an operator looks for it.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Outbound => f.write_str("outbound.listen"),
            Role::Service(service) => write!(f, "outbound.listeners ({service})"),
            Role::Inbound => f.write_str("mesh.data.listen"),
        }
    }
}

/// Opens one socket for each of `workers` on `address`.
///
/// Port 0 picks a free port; the address in use is returned.
///
/// # Errors
/// The address is taken by another process, or is not this host's.
pub fn open(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let probe = bind(address, false)?;
    let address = probe.local_addr()?.as_socket().expect("an IP socket has an IP address");
    drop(probe);
    open_beside(address, workers)
}

/// As [`open`], on an address that meets another listener of this process, which closes in a moment: for so long both
/// are one `SO_REUSEPORT` group. Not probed, as our own listener would be found.
///
/// # Errors
/// As for [`open`].
pub fn open_beside(
    address: SocketAddr,
    workers: usize,
) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let sockets = (0..workers)
        .map(|_| {
            let socket = bind(address, true)?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        })
        .collect::<io::Result<_>>()?;
    Ok((address, sockets))
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Which worker takes a connection that `own` accepted, by the connections each serves.
///
/// Its own, unless it serves more than a quarter (and at least one) above the least loaded.
pub fn hand_over(own: usize, loads: &[usize]) -> usize {
    let (least, &load) =
        loads.iter().enumerate().min_by_key(|&(_, load)| load).expect("at least one worker");
    if loads[own] > load + (load / 4).max(1) { least } else { own }
}

const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_and_not_shared() {
        let (address, first) = open("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        assert_eq!(first.len(), 2);
        assert_eq!(open(address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_listener_of_our_own_is_not_in_the_way_of_the_one_that_takes_its_place() {
        let (address, _first) = open("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let wider = SocketAddr::new([0, 0, 0, 0].into(), address.port());
        assert_eq!(open(wider, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(open_beside(wider, 2).unwrap().1.len(), 2);
    }

    #[test]
    fn few_connections_are_spread_and_many_stay() {
        assert_eq!(hand_over(0, &[0, 0]), 0);
        assert_eq!(hand_over(0, &[2, 0]), 1);
        assert_eq!(hand_over(0, &[110, 100]), 0);
        assert_eq!(hand_over(0, &[130, 100, 120]), 1);
    }
}
