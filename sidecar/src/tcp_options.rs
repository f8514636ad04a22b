//! Options of a TCP socket that no safe wrapper has: what the kernel knows of a connection, and how soon it sends
//! between hosts what got lost.
//!
//! **Why the defaults are wrong between hosts.** Requests between two hosts share a connection, and most are one
//! small segment. When it is lost nothing comes behind it that would tell, so the kernel waits for its time-out:
//! the round trip, and 200 ms at the least, doubled each time that the repetition is lost too. All requests of the
//! connection wait with it. The 200 ms are there because the other end may leave a segment unacknowledged for as
//! long, in the hope that an answer will carry the acknowledgement. Here both ends are ours, so both can wait less
//! ([`resend_soon`]):
//!
//! - An acknowledgement waits [`ACKNOWLEDGED_WITHIN_US`] at most. Answers that are faster carry it as before; for
//!   slower ones a packet without data is sent after 20 ms, where it would be after 40.
//! - What is unacknowledged is sent again after the round trip as it was measured, its variation, and not 200 but
//!   [`LEAST_VARIATION_US`] at the least: 10 ms more than the acknowledgement waits. Both are rounded up to the
//!   kernel's ticks (1 to 10 ms), and stay a tick apart at the coarsest of them. A long path has its round trip on
//!   top, so the values fit a rack and an ocean alike.
//! - As long as fewer than four segments are out, six repetitions come at the same pace, and only then the time
//!   doubles (`TCP_THIN_LINEAR_TIMEOUTS`: any kernel; but under BBR, which leaves no mark by which the kernel knows
//!   that slow start is over, it doubles from the first). It stops at [`LONGEST_WAIT_MS`], the least that the
//!   kernel takes: after a cut of seconds the first repetition comes within one, and not after as long as the cut
//!   has lasted.
//!
//! **Kernels before 6.15** have the third point without its limit and neither of the others. Where only the
//! receiver's is that old, it acknowledges after 40 ms, so a request that takes longer than 30 ms among faster ones
//! is sent twice: one small segment, as a probe (RFC 8985, 7) whose duplicate the receiver reports, so nothing is
//! slowed down for it. (Measured, with one answer in ten after 60 ms: ten duplicates in a hundred requests, all
//! reported; with both new none, and none with all answers that slow, which an old kernel acknowledges at once.)
//! Where only the sender's is that old, all is as it was in that direction, but for acknowledgements that come
//! sooner.
//!
//! The limit of a second costs nothing else. [`crate::socket`] gives up by time and not by the number of repetitions. The
//! kernel gives up a closed window after 15 probes that nobody acknowledges, which are now 14 s; from such a host
//! nothing is heard on HTTP/2 either, which gives up sooner ([`crate::http2::upkeep`]).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use libc::c_int;
use socket2::SockRef;

/// How long ago the last acknowledgement of the peer came, rounded down to milliseconds (`tcpi_last_ack_recv`).
///
/// A peer whose window is closed still acknowledges each probe of it, so this tells a peer that does not read from
/// one that is gone.
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn since_last_ack(socket: &impl AsFd) -> io::Result<Duration> {
    // SAFETY: `tcp_info` is plain integers.
    let info: libc::tcp_info = unsafe { get(socket, libc::TCP_INFO) }?;
    Ok(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// Has a lost segment of a connection to another host sent again after some tens of milliseconds, as far as the kernel
/// can: what it does not know is left out. Set before there is a connection, as what a kernel's own 200 ms have once
/// gone into takes a dozen round trips to be forgotten; what is accepted on a socket that listens has its options.
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn resend_soon(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_thin_linear_timeouts(true)?;
    for (option, value) in SINCE_6_15 {
        match set(socket, option, value) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

fn set(socket: &impl AsFd, option: c_int, value: c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<c_int>()).expect("four bytes");
    // SAFETY: the descriptor is borrowed for the call, and the kernel reads `length` bytes of `value`.
    let asked = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            std::ptr::from_ref(&value).cast(),
            length,
        )
    };
    if asked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
/// `T` is plain integers: any bytes are a value of it.
unsafe fn get<T>(socket: &impl AsFd, option: c_int) -> io::Result<T> {
    // SAFETY: zeroes are a value, as the caller promises.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<T>()).expect("some hundred bytes");
    // SAFETY: the descriptor is borrowed for the call, and the kernel writes at most `length` bytes into `value`.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut length,
        )
    };
    if asked == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// What is set where the kernel has it.
const SINCE_6_15: [(c_int, c_int); 3] = [
    (TCP_RTO_MIN_US, LEAST_VARIATION_US),
    (TCP_RTO_MAX_MS, LONGEST_WAIT_MS),
    (TCP_DELACK_MAX_US, ACKNOWLEDGED_WITHIN_US),
];

/// What is added to the measured round trip, at the least, before an unacknowledged segment is sent again.
const LEAST_VARIATION_US: c_int = 30_000;
/// The longest time between two repetitions of a segment.
const LONGEST_WAIT_MS: c_int = 1_000;
/// How long an acknowledgement may wait for data to go with.
const ACKNOWLEDGED_WITHIN_US: c_int = 20_000;

// Of `linux/tcp.h`; the library has them not yet.
const TCP_RTO_MAX_MS: c_int = 44;
const TCP_RTO_MIN_US: c_int = 45;
const TCP_DELACK_MAX_US: c_int = 46;

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_fresh_connection_was_acknowledged_just_now_and_a_file_is_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(since_last_ack(&stream).unwrap() < Duration::from_secs(60));
        assert!(since_last_ack(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    /// What the kernel has of the options is set; what it does not know was no error.
    fn assert_set(socket: &impl AsFd) {
        assert!(SockRef::from(socket).tcp_thin_linear_timeouts().unwrap());
        for (option, wanted) in SINCE_6_15 {
            // SAFETY: it is one integer.
            match unsafe { get::<c_int>(socket, option) } {
                // Rounded up to ticks, of 10 ms at the most.
                Ok(value) => {
                    assert!((wanted..wanted + 10_000).contains(&value), "{option}: {value}");
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT));
                    assert!(kernel() < (6, 15), "option {option} of this kernel");
                }
            }
        }
    }

    #[test]
    fn what_dials_and_what_is_accepted_has_the_options_of_the_socket_that_it_began_with() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        resend_soon(&listener).unwrap();
        let dialled = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        resend_soon(&dialled).unwrap();
        dialled.connect(&listener.local_addr().unwrap().into()).unwrap();
        assert_set(&dialled);
        assert_set(&listener.accept().unwrap().0);
    }

    #[test]
    fn an_acknowledgement_is_sent_a_tick_before_the_segment_is_sent_again_at_any_rate_of_ticks() {
        for hz in [100, 250, 300, 1000] {
            let ticks = |us: c_int| (us * hz + 999_999) / 1_000_000;
            assert!(
                ticks(ACKNOWLEDGED_WITHIN_US) < ticks(LEAST_VARIATION_US),
                "{hz} ticks a second"
            );
            // The kernel takes no less than two ticks for either.
            assert!(ticks(ACKNOWLEDGED_WITHIN_US) >= 2, "{hz} ticks a second");
        }
    }

    #[test]
    fn a_file_has_nothing_to_send_again() {
        assert!(resend_soon(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    /// The kernel's version, as far as it counts here.
    fn kernel() -> (u32, u32) {
        let name = rustix::system::uname();
        let release = name.release().to_string_lossy();
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }
}
