//! Whether this very process is at the other end of a connection.
//!
//! The admin listener takes orders from its own host, and this process carries other hosts' requests to applications
//! here: one that is registered on the admin's port would make every order look as if it came from the host itself.
//! No header can be trusted to tell, so the kernel is asked: its table of TCP sockets has the inode of the client's
//! end, and this process has that inode open or not.
//!
//! It takes milliseconds on a host with tens of thousands of connections (the whole table is read), so it is asked
//! for orders and registrations only, once for each connection. Source: proc_net_tcp in the kernel's documentation,
//! proc_pid_fd(5).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Who is at the other end of a connection that was accepted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketOwner {
    /// This process.
    ThisProcess,
    /// Another one of this network namespace.
    AnotherProcess,
    /// Nobody in this network namespace, or the connection is gone.
    NotHere,
}

impl SocketOwner {
    /// Of the connection from `peer` to `local`. Reads files of the kernel, and blocks for that.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn of(peer: SocketAddr, local: SocketAddr) -> io::Result<SocketOwner> {
        let mut inode = None;
        for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
            // A kernel without IPv6 has no second table.
            match fs::read_to_string(table) {
                Ok(text) => inode = inode.or_else(|| inode_of(&text, peer, local)),
                Err(cause) if table.ends_with('6') && cause.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => return Err(cause),
            }
        }
        let Some(inode) = inode else { return Ok(SocketOwner::NotHere) };
        let socket = format!("socket:[{inode}]");
        for open in fs::read_dir("/proc/self/fd")? {
            // A descriptor may be closed meanwhile.
            if fs::read_link(open?.path()).is_ok_and(|target| target.as_os_str() == socket.as_str())
            {
                return Ok(SocketOwner::ThisProcess);
            }
        }
        Ok(SocketOwner::AnotherProcess)
    }
}

/// The inode of the socket that is bound to `own` and connected to `other`.
fn inode_of(table: &str, own: SocketAddr, other: SocketAddr) -> Option<u64> {
    let same = |text: &str, address: SocketAddr| {
        let found = address_of(text);
        found.is_some_and(|(ip, port)| ip == address.ip().to_canonical() && port == address.port())
    };
    table.lines().skip(1).find_map(|row| {
        let mut columns = row.split_ascii_whitespace().skip(1);
        let is_it = same(columns.next()?, own) && same(columns.next()?, other);
        // sl local remote st queues tr:tm retrnsmt uid timeout inode
        is_it.then(|| columns.nth(6)?.parse().ok()).flatten()
    })
}

/// `0100007F:1BCF`: words of 32 bits as this machine reads them from the network's order.
fn address_of(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok();
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?.to_ne_bytes())),
        32 => {
            let mut bytes = [0; 16];
            for (at, piece) in bytes.chunks_exact_mut(4).enumerate() {
                piece.copy_from_slice(&word(at)?.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn our_own_connections_are_told_from_others() {
        for (listen, host) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::1]:0", "::1")]
        {
            let listener = TcpListener::bind(listen).unwrap();
            let port = listener.local_addr().unwrap().port();
            let _ours = TcpStream::connect((host, port)).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            let local = accepted.local_addr().unwrap();
            assert_eq!(SocketOwner::of(peer, local).unwrap(), SocketOwner::ThisProcess, "{listen}");

            let script = format!("exec 3<>/dev/tcp/{host}/{port}; read -r _ <&3");
            let mut other =
                std::process::Command::new("bash").args(["-c", &script]).spawn().unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            let local = accepted.local_addr().unwrap();
            assert_eq!(
                SocketOwner::of(peer, local).unwrap(),
                SocketOwner::AnotherProcess,
                "{listen}"
            );
            drop(accepted);
            other.wait().unwrap();

            let nobody = "192.0.2.1:9".parse().unwrap();
            assert_eq!(SocketOwner::of(nobody, local).unwrap(), SocketOwner::NotHere);
        }
    }
}
