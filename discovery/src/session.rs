//! Which senders have proved to be there now, and which of their envelopes came before.
//!
//! An envelope that opens proves that a key holder sealed it, once. So an unseen (sender, salt) is believed only after
//! it has said back a cookie that we made just now; from then on a window over its counters refuses what came before
//! (RFC 4303 §3.4.3). The cookie is a hash over a secret of ours, so strangers cost no memory, and it expires.
//! An attacker who replays recorded traffic, even a whole start-up, gets a challenge that the recording cannot answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::seal::{Salt, SubKey};

/// Envelopes may arrive this much out of order.
const WINDOW: u64 = 1024;
/// A host that restarts has two for a while; more means that two processes share an id.
const SALTS_PER_SENDER_MAX: usize = 2;
/// A cookie is good for one to two of these.
const COOKIE_LIFE: Duration = Duration::from_secs(60);

/// The senders that have proved to be there.
#[derive(Debug)]
pub(crate) struct Sessions {
    sessions: BTreeMap<(u64, Salt), Session>,
    max: usize,
    secret: [u8; 32],
    start: Instant,
}

#[derive(Debug)]
struct Session {
    window: Window,
    sub_key: Option<SubKey>,
    last_heard: Instant,
}

/// What is known of an envelope's sender.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Proved, and this counter is new.
    Fresh,
    /// Proved, but this counter was used, or is too old to tell.
    Replayed,
    /// Not proved yet.
    Unproved,
}

impl Sessions {
    pub fn new(secret: [u8; 32], max: usize, now: Instant) -> Self {
        Sessions {
            sessions: BTreeMap::new(),
            max: max.max(SALTS_PER_SENDER_MAX),
            secret,
            start: now,
        }
    }

    /// The sub-key kept for this sender.
    pub fn sub_key(&self, sender: u64, salt: Salt) -> Option<&SubKey> {
        self.sessions.get(&(sender, salt))?.sub_key.as_ref()
    }

    /// Judges an envelope that opened, and remembers its counter.
    pub fn accept(
        &mut self,
        now: Instant,
        sender: u64,
        salt: Salt,
        counter: u64,
        sub_key: Option<SubKey>,
    ) -> Standing {
        let Some(session) = self.sessions.get_mut(&(sender, salt)) else {
            return Standing::Unproved;
        };
        if !session.window.accept(counter) {
            return Standing::Replayed;
        }
        session.sub_key = sub_key;
        session.last_heard = now;
        Standing::Fresh
    }

    /// This sender proved to be there, with an envelope of this counter.
    pub fn prove(
        &mut self,
        now: Instant,
        sender: u64,
        salt: Salt,
        counter: u64,
        sub_key: Option<SubKey>,
    ) {
        if let Some(session) = self.sessions.get_mut(&(sender, salt)) {
            session.window.accept(counter);
            session.last_heard = now;
            return;
        }
        let of_sender = (sender, [0; 16])..=(sender, [255; 16]);
        let oldest = |sessions: &mut dyn Iterator<Item = (&(u64, Salt), &Session)>| {
            sessions.min_by_key(|(_, session)| session.last_heard).map(|(key, _)| *key)
        };
        if self.sessions.range(of_sender.clone()).count() >= SALTS_PER_SENDER_MAX
            && let Some(key) = oldest(&mut self.sessions.range(of_sender))
        {
            self.sessions.remove(&key);
        }
        if self.sessions.len() >= self.max
            && let Some(key) = oldest(&mut self.sessions.iter())
        {
            self.sessions.remove(&key);
        }
        let mut window = Window::default();
        window.accept(counter);
        self.sessions.insert((sender, salt), Session { window, sub_key, last_heard: now });
    }

    /// What this sender must say back.
    pub fn cookie(&self, now: Instant, sender: u64, salt: Salt) -> [u8; 16] {
        self.cookie_of(self.period(now), sender, salt)
    }

    /// Whether this is what it had to say back.
    pub fn is_cookie(&self, now: Instant, sender: u64, salt: Salt, said: [u8; 16]) -> bool {
        let period = self.period(now);
        [Some(period), period.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|p| self.cookie_of(p, sender, salt) == said)
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / COOKIE_LIFE.as_secs()
    }

    fn cookie_of(&self, period: u64, sender: u64, salt: Salt) -> [u8; 16] {
        let hash = Sha256::new()
            .chain_update(self.secret)
            .chain_update(period.to_be_bytes())
            .chain_update(sender.to_be_bytes())
            .chain_update(salt)
            .finalize();
        let mut cookie = [0; 16];
        cookie.copy_from_slice(&hash[..16]);
        cookie
    }
}

/// The last [`WINDOW`] counters of one sender, a bit each.
#[derive(Debug, Clone)]
struct Window {
    highest: u64,
    seen: [u64; (WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Self {
        Window { highest: 0, seen: [0; (WINDOW / 64) as usize] }
    }
}

impl Window {
    /// Whether this counter is new; if so it no longer is. Counters start at 1.
    fn accept(&mut self, counter: u64) -> bool {
        if counter == 0 {
            return false;
        }
        if counter > self.highest {
            if counter - self.highest >= WINDOW {
                self.seen = [0; (WINDOW / 64) as usize];
            } else {
                for skipped in self.highest + 1..counter {
                    self.set(skipped, false);
                }
            }
            self.highest = counter;
            self.set(counter, true);
            return true;
        }
        if self.highest - counter >= WINDOW || self.get(counter) {
            return false;
        }
        self.set(counter, true);
        true
    }

    fn get(&self, counter: u64) -> bool {
        self.seen[(counter % WINDOW / 64) as usize] & (1 << (counter % 64)) != 0
    }

    fn set(&mut self, counter: u64, seen: bool) {
        let word = &mut self.seen[(counter % WINDOW / 64) as usize];
        let bit = 1 << (counter % 64);
        *word = if seen { *word | bit } else { *word & !bit };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(steps in proptest::collection::vec((any::<bool>(), 0..1500u64), 1..400)) {
            let mut window = Window::default();
            let mut seen = BTreeSet::new();
            let mut highest = 0u64;
            for (forward, step) in steps {
                let counter = if forward { highest + step } else { highest.saturating_sub(step) };
                let new = counter > 0 && !seen.contains(&counter) && counter + WINDOW > highest;
                prop_assert_eq!(window.accept(counter), new, "counter {} after {}", counter, highest);
                if new {
                    seen.insert(counter);
                    highest = highest.max(counter);
                }
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test may start its clock anywhere")]
    fn t0() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_sender_is_believed_after_it_said_the_cookie_back() {
        let t0 = t0();
        let mut sessions = Sessions::new([3; 32], 10, t0);
        let salt = [9; 16];
        assert_eq!(sessions.accept(t0, 1, salt, 5, None), Standing::Unproved);
        let cookie = sessions.cookie(t0, 1, salt);
        assert!(sessions.is_cookie(t0 + Duration::from_secs(59), 1, salt, cookie));
        assert!(!sessions.is_cookie(t0, 2, salt, cookie), "another sender's");
        assert!(!sessions.is_cookie(t0, 1, [8; 16], cookie), "another start's");
        assert!(!sessions.is_cookie(t0 + 3 * COOKIE_LIFE, 1, salt, cookie), "too old");
        sessions.prove(t0, 1, salt, 5, None);
        assert_eq!(sessions.accept(t0, 1, salt, 5, None), Standing::Replayed);
        assert_eq!(sessions.accept(t0, 1, salt, 6, None), Standing::Fresh);
        assert_eq!(sessions.accept(t0, 1, salt, 6, None), Standing::Replayed);
        assert_eq!(sessions.accept(t0, 1, salt, 4, None), Standing::Fresh, "late but new");
    }

    #[test]
    fn the_table_is_bounded_for_each_sender_and_in_all() {
        let t0 = t0();
        let mut sessions = Sessions::new([3; 32], 4, t0);
        for i in 0..10 {
            sessions.prove(t0 + Duration::from_secs(i), 1, [i as u8; 16], 1, None);
        }
        assert_eq!(sessions.sessions.len(), SALTS_PER_SENDER_MAX);
        for i in 0..10 {
            sessions.prove(t0 + Duration::from_secs(20 + i), i, [0; 16], 1, None);
        }
        assert_eq!(sessions.sessions.len(), 4);
        assert!(sessions.sessions.contains_key(&(9, [0; 16])), "the newest stay");
    }
}
