//! The kernel's own list of TCP sockets (`/proc/net/tcp`): who listens, and how many connections there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

/// A process's listening TCP sockets, by address, as inode numbers: the same number is the same socket.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn listening(pid: u32) -> BTreeMap<SocketAddrV4, BTreeSet<u64>> {
    let mut own = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").flatten() {
        // A descriptor may be closed while the folder is read.
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        own.extend(
            target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']')?.parse::<u64>().ok()),
        );
    }
    let mut sockets: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
    for row in rows().into_iter().filter(|row| row.state == LISTEN && own.contains(&row.inode)) {
        sockets.entry(row.local).or_default().insert(row.inode);
    }
    sockets
}

/// Established connections towards an address, counted at the dialling end.
#[must_use]
pub fn connections_to(address: SocketAddrV4) -> usize {
    rows().iter().filter(|row| row.state == ESTABLISHED && row.remote == address).count()
}

struct Row {
    local: SocketAddrV4,
    remote: SocketAddrV4,
    state: u8,
    inode: u64,
}

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string("/proc/net/tcp").expect("Linux lists its sockets");
    text.lines().skip(1).filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    Some(Row {
        local: address(fields.get(1)?)?,
        remote: address(fields.get(2)?)?,
        state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// `0100007F:1F90`: the address in the machine's byte order, the port as a number.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
    Some(SocketAddrV4::new(Ipv4Addr::from(ip), u16::from_str_radix(port, 16).ok()?))
}

// The states of include/net/tcp_states.h.
const ESTABLISHED: u8 = 0x01;
const LISTEN: u8 = 0x0a;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream};

    #[test]
    fn sees_its_own_listener_and_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
            panic!("IPv4 was asked for")
        };
        assert_eq!(listening(std::process::id())[&address].len(), 1);
        assert_eq!(connections_to(address), 0);
        let _client = TcpStream::connect(address).unwrap();
        assert_eq!(connections_to(address), 1);
    }
}
