//! Whether this very process is at the other end of a connection.
//!
//! The admin listener takes orders from its own host, and this process carries other hosts' requests to applications
//! here: one that is registered on the admin's port would make every order look as if it came from the host itself. No
//! header can be trusted to tell, so the kernel is asked: it names the inode of the client's end (one question over
//! netlink, however many sockets there are), and this process has that inode open or not (a link for each of its
//! descriptors). The table in `/proc/net/tcp` has the inode too, but all of it has to be read: tens of milliseconds
//! where there are thousands of sockets, which whoever may connect could spend for us.
//!
//! Where the kernel has no answer (no `tcp_diag`, or a filter on system calls) the table is read after all. Sources:
//! sock_diag(7), proc_net_tcp in the kernel's documentation, proc_pid_fd(5).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

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
    /// Whether some process of this network namespace has the other end of this connection open: not when it was closed,
    /// though the kernel may keep it until both sides have ended.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn is_held(peer: SocketAddr, local: SocketAddr) -> io::Result<bool> {
        asked_for_inode(peer, local).map(|inode| inode.is_some())
    }

    /// Of the connection from `peer` to `local`. Reads links of `/proc`, and blocks for that.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn of(peer: SocketAddr, local: SocketAddr) -> io::Result<SocketOwner> {
        let inode = asked_for_inode(peer, local).or_else(|_| inode_in_tables(peer, local))?;
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

/// The inode of the socket that is bound to `own` and connected to `other`, as the kernel says by `sock_diag`.
fn asked_for_inode(own: SocketAddr, other: SocketAddr) -> io::Result<Option<u64>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    send(&socket, &diag_request(own, other), SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (_, length) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let answer = &answer[..length.min(answer.len())];
    let unreadable = || io::Error::other("an answer of sock_diag that is none");
    let word = |at: usize| {
        let word = answer.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(word))
    };
    let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    match (kind, word(HEADER)) {
        (Some(DIAG_BY_FAMILY), Some(_)) => {}
        // ENOENT, as a negative number.
        (Some(ERROR), Some(code)) if code == 2_u32.wrapping_neg() => return Ok(None),
        _ => return Err(unreadable()),
    }
    // A listener on that port is found too, where there is no connection.
    let port = answer.get(HEADER + 6..HEADER + 8).ok_or_else(unreadable)?;
    let inode = word(HEADER + INODE_AT).ok_or_else(unreadable)?;
    let found = port == other.port().to_be_bytes() && inode != 0;
    Ok(found.then_some(inode.into()))
}

/// `struct nlmsghdr`, then `struct inet_diag_req_v2`.
fn diag_request(own: SocketAddr, other: SocketAddr) -> Vec<u8> {
    const LENGTH: u32 = 72;
    const REQUEST: u16 = 1;
    const TCP: u8 = 6;
    let (own_ip, other_ip) = (own.ip().to_canonical(), other.ip().to_canonical());
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let family = if own_ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut bytes = LENGTH.to_ne_bytes().to_vec();
    bytes.extend(DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    // Sequence and port: one question, one answer.
    bytes.extend([0; 8]);
    bytes.extend([u8::try_from(family.as_raw()).expect("a small constant"), TCP, 0, 0]);
    // Any state.
    bytes.extend([0xff; 4]);
    bytes.extend(own.port().to_be_bytes());
    bytes.extend(other.port().to_be_bytes());
    bytes.extend(address(own_ip).to_be_bytes());
    bytes.extend(address(other_ip).to_be_bytes());
    // Any interface, and no cookie.
    bytes.extend([0; 4]);
    bytes.extend([0xff; 8]);
    bytes
}

/// The same, as the tables of all sockets say.
fn inode_in_tables(own: SocketAddr, other: SocketAddr) -> io::Result<Option<u64>> {
    let mut inode = None;
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        // A kernel without IPv6 has no second table.
        match fs::read_to_string(table) {
            Ok(text) => inode = inode.or_else(|| inode_of(&text, own, other)),
            Err(cause) if table.ends_with('6') && cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(inode)
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

/// Of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Of the inode in `struct inet_diag_msg`.
const INODE_AT: usize = 68;
/// `SOCK_DIAG_BY_FAMILY`.
const DIAG_BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;

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
            let inode = inode_in_tables(peer, local).unwrap();
            assert!(inode.is_some());
            assert_eq!(asked_for_inode(peer, local).unwrap(), inode, "both say the same");

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
