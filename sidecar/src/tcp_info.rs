//! What the kernel knows of a TCP connection: the one socket option that no safe wrapper reads.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

/// How long ago the last acknowledgement of the peer came, rounded down to milliseconds (`tcpi_last_ack_recv`).
///
/// A peer whose window is closed still acknowledges each probe of it, so this tells a peer that does not read from
/// one that is gone.
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn since_last_ack(socket: &impl AsFd) -> io::Result<Duration> {
    // SAFETY: `tcp_info` is plain integers, for which zeroes are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length =
        libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("some hundred bytes");
    // SAFETY: the descriptor is borrowed for the call, and the kernel writes at most `length` bytes into `info`.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            std::ptr::from_mut(&mut info).cast(),
            &raw mut length,
        )
    };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_fresh_connection_was_acknowledged_just_now_and_a_file_is_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(since_last_ack(&stream).unwrap() < Duration::from_secs(60));
        assert!(since_last_ack(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
