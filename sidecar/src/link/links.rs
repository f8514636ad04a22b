//! The accepted connections of one worker: its sweep, its drain, and room where there is none.

use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::{Ending, Link};

/// The connections of a worker, for its sweep, its drain, and room when there is none.
#[derive(Debug, Default)]
pub struct Links(Vec<Weak<Link>>);

impl Links {
    /// One more.
    pub fn insert(&mut self, link: &Rc<Link>) {
        self.0.push(Rc::downgrade(link));
    }

    /// Looks at every connection and forgets those that ended.
    pub fn sweep(&mut self, now: Instant) {
        self.0.retain(|link| link.upgrade().inspect(|link| link.sweep(now)).is_some());
    }

    /// Makes room for another: ends the connection that has been without a request for longest. Whether there is one.
    pub fn give_way(&self, now: Instant) -> bool {
        let links = self.0.iter().filter_map(Weak::upgrade);
        let idle = links.filter(|link| {
            let since = now.saturating_duration_since(link.idle_since.get());
            link.in_flight.get() == 0 && link.ending() == Ending::No && since >= GIVES_WAY_AFTER
        });
        let longest = idle.min_by_key(|link| link.idle_since.get());
        let how = |link: &Link| if link.knows_no_grace() { Ending::Now } else { Ending::Graceful };
        longest.inspect(|link| link.end(how(link))).is_some()
    }

    /// Those that were told to end and have not done so stay above what may be open: past [`LEAVING_MAX`] of them, the one that was told
    /// first is closed.
    pub fn hurry(&self) {
        let links = self.0.iter().filter_map(Weak::upgrade);
        let leaving: Vec<Rc<Link>> =
            links.filter(|link| link.ending() == Ending::Graceful && !link.owes()).collect();
        if leaving.len() > LEAVING_MAX
            && let Some(first) = leaving.iter().min_by_key(|link| link.idle_since.get())
        {
            first.end(Ending::Now);
        }
    }

    /// On how many something is still to be answered, or written.
    pub fn owing(&self) -> usize {
        self.0.iter().filter_map(Weak::upgrade).filter(|link| link.owes()).count()
    }

    /// Ends every connection gracefully.
    pub fn drain(&self) {
        self.0.iter().filter_map(Weak::upgrade).for_each(|link| link.drain());
    }
}

/// Without a request for this long, a connection gives way to another when there are as many as there may be.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(1);
/// Connections of a worker that were told to give way and are still open.
const LEAVING_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::tests::link;
    use crate::message::headers::Found;

    #[test]
    fn the_connection_that_was_idle_longest_gives_way_and_a_busy_one_never() {
        let now = Instant::now();
        let all: Vec<Rc<Link>> =
            (0..3).map(|n| Rc::new(link(now + Duration::from_secs(n)))).collect();
        let mut links = Links::default();
        all.iter().for_each(|link| links.insert(link));
        all[0].request_begins(Found::default());
        all[1].request_begins(Found::default());
        all[1].request_ends(now + Duration::from_secs(1));
        assert!(!links.give_way(now + GIVES_WAY_AFTER / 2), "they have only just begun");
        assert!(links.give_way(now + GIVES_WAY_AFTER * 5));
        let ending: Vec<Ending> = all.iter().map(|link| link.ending()).collect();
        assert_eq!(ending, [Ending::No, Ending::Graceful, Ending::No]);
        assert!(links.give_way(now + GIVES_WAY_AFTER * 5));
        assert_eq!(all[2].ending(), Ending::Now, "it has never asked for anything");
    }

    #[test]
    fn who_gives_way_and_stays_is_closed_when_there_are_many_of_them() {
        let now = Instant::now();
        let later = now + GIVES_WAY_AFTER * 2;
        let all: Vec<Rc<Link>> = (0..=LEAVING_MAX).map(|_| Rc::new(link(now))).collect();
        let mut links = Links::default();
        for link in &all {
            links.insert(link);
            link.request_begins(Found::default());
            link.request_ends(now);
            assert!(links.give_way(later));
            links.hurry();
        }
        let closed = all.iter().filter(|link| link.ending() == Ending::Now).count();
        assert_eq!(closed, 1, "all others have their grace");
    }
}
