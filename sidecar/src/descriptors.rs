//! File descriptors: as many as this process may have, and some of them for the control side alone.
//!
//! The data plane's connections are other people's: callers open them, applications hold them open by not answering.
//! Without a reserve they take every descriptor there is, and then admin, look-ups and gossip cannot accept, so that
//! nobody can see what is wrong and the other hosts take this one for dead. So workers stop accepting while what is
//! left is the control side's, and begin again when something was closed. A caller's connection waits in the kernel's
//! backlog meanwhile.
//!
//! Counting them would cost a directory of `/proc` for each connection. It is not needed: the kernel gives the lowest
//! number that is free, so a descriptor with number n says that at least n others are open (open(2)).

use std::os::fd::{AsFd, AsRawFd as _};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many descriptors there are, and how many of these the data plane leaves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    max: u64,
    reserve: u64,
}

impl Descriptors {
    /// Raises the soft limit to the hard one, which only a process of this user is allowed anyway, and sets the
    /// reserve aside.
    ///
    /// The soft limit is 1024 on most systems for the sake of programs that use `select`; this one does not.
    pub fn raised() -> Descriptors {
        let limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
            if let Err(cause) = setrlimit(Resource::Nofile, raised) {
                tracing::warn!(%cause, "the limit on open files stays as it is: set LimitNOFILE or ulimit -n");
            }
        }
        Descriptors::of(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }

    fn of(max: u64) -> Descriptors {
        Descriptors { max, reserve: (max / 4).min(RESERVE_MAX) }
    }

    /// Whether the data plane may keep this descriptor, which was just opened.
    pub fn may_keep(&self, opened: &impl AsFd) -> bool {
        let number = u64::try_from(opened.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
        number < self.max - self.reserve
    }

    /// Whether an accepted connection may keep this descriptor. A quarter of the data plane's own stays free for the
    /// dials of those that were accepted: else callers that are idle leave none for one that asks.
    pub fn may_accept(&self, opened: &impl AsFd) -> bool {
        let data_plane = self.max - self.reserve;
        let number = u64::try_from(opened.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
        number < data_plane - (data_plane / 4).min(RESERVE_MAX)
    }

    /// Whether the next descriptor would be one that an accepted connection may keep. `any` is one that is open.
    pub fn has_room(&self, any: &impl AsFd) -> bool {
        any.as_fd().try_clone_to_owned().is_ok_and(|next| self.may_accept(&next))
    }
}

/// What all listeners of the control side, the exchanges of gossip and the files take together: half of it usually.
/// Where there are few descriptors, a quarter of them.
const RESERVE_MAX: u64 = 2_048;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn the_last_descriptors_are_the_control_sides() {
        assert_eq!(Descriptors::of(1_024), Descriptors { max: 1_024, reserve: 256 });
        assert_eq!(Descriptors::of(1 << 20), Descriptors { max: 1 << 20, reserve: 2_048 });
        let open = UdpSocket::bind("127.0.0.1:0").unwrap();
        let number = u64::try_from(open.as_raw_fd()).unwrap();
        let with = |left: u64| Descriptors { max: number + left + 10, reserve: 10 };
        assert!(with(1).may_keep(&open));
        assert!(!with(0).may_keep(&open));
        let accepting = |left: u64| Descriptors { max: (number + left) * 4 / 3 + 10, reserve: 10 };
        assert!(accepting(2).may_accept(&open) && !accepting(0).may_accept(&open));
        assert!(accepting(0).may_keep(&open), "what is accepted may be served");
        // Other tests open descriptors meanwhile: far below and far above.
        assert!(Descriptors::of(1 << 20).has_room(&open));
        assert!(!Descriptors { max: 3, reserve: 1 }.has_room(&open));
    }
}
