//! A scout's datagrams: "how is this instance of yours?" and the answer, in gossip's envelope.
//!
//! ```text
//! question: nonce 8 | service counted | instance counted | zeros, to an answer's length at least
//! answer:   nonce 8 | flags 1 | in flight 4 | latency µs 4 | stalled µs 4
//! ```
//!
//! Bytes behind these are ignored, so a newer host may say more. Invariants: an answer is never longer than its question, so a forged
//! sender's address turns nobody into an amplifier; reading touches no state but a bounded cache of sub-keys, into which only what has opened gets.
//!
//! **No session** (`session`): a handshake would cost more than what is asked. The asker's nonce is 64 random bits that only a key holder
//! can read and repeat, and it is taken once, so an answer is from now. A replayed *question* is answered again, sealed, to where it
//! claims to come from; it tells its sender nothing and costs us as much as any datagram.
//!
//! Does not keep what is outstanding, and knows no time: that is the shell's.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::seal::{Channel, Refused, Salt, Sealer, SubKey};
use crate::wire::{Malformed, Reader, put_bytes};

/// What is asked of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Comes back with the answer.
    pub nonce: u64,
    /// The service, whose instance it should be.
    pub service: String,
    /// The instance's id on that host.
    pub instance: String,
}

/// What it says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answer {
    /// The question's.
    pub nonce: u64,
    /// The host offers the instance; if not, the rest means nothing.
    pub known: bool,
    /// The application has shown life just now, or owes no answer.
    pub alive: bool,
    /// The host asks not to be chosen.
    pub draining: bool,
    /// Requests in flight at the application.
    pub in_flight: u32,
    /// What it takes to a response's head, in µs resolution up to an hour; `None`: not known.
    pub latency: Option<Duration>,
    /// For how long it has owed an answer, if longer than usual.
    pub stalled: Option<Duration>,
}

/// Why a datagram is no scout of ours. The sender's or the network's fault; no state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// Not a sealed scout of this mesh: foreign, another key, or tampered with.
    Envelope,
    /// Sealed by one of us and not what it should be.
    Malformed,
}

impl From<Refused> for Unusable {
    fn from(_: Refused) -> Unusable {
        Unusable::Envelope
    }
}

impl From<Malformed> for Unusable {
    fn from(_: Malformed) -> Unusable {
        Unusable::Malformed
    }
}

/// One end of the conversation: seals what it sends and opens what it gets. Each sender has one of its own, with a salt of its own.
#[derive(Debug)]
pub struct Scouting {
    sealer: Sealer,
    sub_keys: BTreeMap<(u64, Salt), SubKey>,
}

impl Scouting {
    /// As a member of this mesh. `salt`: random, and never used before.
    #[must_use]
    pub fn new(mesh: &str, keys: &[[u8; 32]], sender: u64, salt: [u8; 16]) -> Scouting {
        Scouting { sealer: Sealer::new(mesh, keys, sender, salt), sub_keys: BTreeMap::new() }
    }

    /// The datagram that asks; `None`: the names are longer than [`NAME_MAX`].
    pub fn ask(&mut self, nonce: u64, service: &str, instance: &str) -> Option<Vec<u8>> {
        if service.len() > NAME_MAX || instance.len() > NAME_MAX {
            return None;
        }
        let mut body = Vec::with_capacity(ANSWER_LEN.max(10 + service.len() + instance.len()));
        body.extend_from_slice(&nonce.to_be_bytes());
        put_bytes(&mut body, service.as_bytes());
        put_bytes(&mut body, instance.as_bytes());
        body.resize(body.len().max(ANSWER_LEN), 0);
        Some(self.sealer.seal(Channel::ScoutQuestion, &[], &body).0)
    }

    /// Reads a question.
    ///
    /// # Errors
    /// It is none of ours.
    pub fn read_question(&mut self, datagram: &[u8]) -> Result<Question, Unusable> {
        let body = self.open(Channel::ScoutQuestion, datagram)?;
        if body.len() < ANSWER_LEN {
            // Its answer would be longer than itself.
            return Err(Unusable::Malformed);
        }
        let mut r = Reader(&body);
        Ok(Question {
            nonce: r.u64()?,
            service: r.text(NAME_MAX)?.to_owned(),
            instance: r.text(NAME_MAX)?.to_owned(),
        })
    }

    /// The datagram that answers.
    pub fn answer(&mut self, answer: &Answer) -> Vec<u8> {
        let micros = |duration: Option<Duration>| {
            duration.map_or(0, |d| u32::try_from(d.as_micros()).unwrap_or(u32::MAX).max(1))
        };
        let flags =
            u8::from(answer.known) | u8::from(answer.alive) << 1 | u8::from(answer.draining) << 2;
        let mut body = Vec::with_capacity(ANSWER_LEN);
        body.extend_from_slice(&answer.nonce.to_be_bytes());
        body.push(flags);
        body.extend_from_slice(&answer.in_flight.to_be_bytes());
        body.extend_from_slice(&micros(answer.latency).to_be_bytes());
        body.extend_from_slice(&micros(answer.stalled).to_be_bytes());
        self.sealer.seal(Channel::ScoutAnswer, &[], &body).0
    }

    /// Reads an answer; whether it is to a question of ours its nonce says.
    ///
    /// # Errors
    /// It is none of ours.
    pub fn read_answer(&mut self, datagram: &[u8]) -> Result<Answer, Unusable> {
        let body = self.open(Channel::ScoutAnswer, datagram)?;
        let mut r = Reader(&body);
        let (nonce, flags, in_flight) = (r.u64()?, r.u8()?, r.u32()?);
        let mut duration = || -> Result<Option<Duration>, Malformed> {
            let micros = u64::from(r.u32()?);
            Ok((micros > 0).then(|| Duration::from_micros(micros)))
        };
        Ok(Answer {
            nonce,
            known: flags & 1 != 0,
            alive: flags & 2 != 0,
            draining: flags & 4 != 0,
            in_flight,
            latency: duration()?,
            stalled: duration()?,
        })
    }

    fn open(&mut self, channel: Channel, datagram: &[u8]) -> Result<Vec<u8>, Unusable> {
        if datagram.len() > DATAGRAM_MAX {
            return Err(Unusable::Envelope);
        }
        let header = self.sealer.header(datagram)?;
        let from = (header.sender, header.salt);
        let kept = self.sub_keys.get(&from);
        let (body, sub_key) = self.sealer.open(&header, channel, &[], datagram, kept)?;
        if let Some(sub_key) = sub_key
            && kept.is_none()
        {
            if self.sub_keys.len() >= SUB_KEYS_MAX {
                // Deriving one again takes microseconds; keeping count of who came last would take more.
                self.sub_keys.clear();
            }
            self.sub_keys.insert(from, sub_key);
        }
        Ok(body)
    }
}

/// Longest name of a service and of an instance that can be asked about.
pub const NAME_MAX: usize = 255;
/// The longest scout: an envelope, two names, and room for what a later version may add.
pub const DATAGRAM_MAX: usize = 1024;
const ANSWER_LEN: usize = 8 + 1 + 3 * 4;
/// Senders whose sub-keys are kept: each worker of each host has one.
const SUB_KEYS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn pair(keys: &[[u8; 32]]) -> (Scouting, Scouting) {
        (Scouting::new("m", keys, 1, [1; 16]), Scouting::new("m", keys, 2, [2; 16]))
    }

    #[test]
    fn a_question_is_no_answer_and_another_mesh_hears_neither() {
        for keys in [&[KEY][..], &[]] {
            let (mut asker, mut host) = pair(keys);
            let question = asker.ask(9, "payments", "payments-1").unwrap();
            let answer = host.answer(&Answer { nonce: 9, known: true, ..Answer::default() });
            assert_eq!(asker.read_answer(&answer).unwrap().nonce, 9);
            assert_eq!(host.read_question(&question).unwrap().instance, "payments-1");
            assert_eq!(host.read_question(&answer), Err(Unusable::Envelope));
            assert_eq!(asker.read_answer(&question), Err(Unusable::Envelope));
            let mut foreign = Scouting::new("n", keys, 3, [3; 16]);
            assert_eq!(foreign.read_question(&question), Err(Unusable::Envelope));
            let mut other_key = Scouting::new("m", &[[8; 32]], 3, [3; 16]);
            assert_eq!(other_key.read_question(&question), Err(Unusable::Envelope));
        }
    }

    #[test]
    fn gossip_is_no_scout() {
        let mut sealer = Sealer::new("m", &[KEY], 1, [1; 16]);
        let (datagram, _) = sealer.seal(Channel::Datagram, &[], &[0; 64]);
        let (_, mut host) = pair(&[KEY]);
        assert_eq!(host.read_question(&datagram), Err(Unusable::Envelope));
    }

    #[test]
    fn a_question_shorter_than_its_answer_is_refused() {
        let mut sealer = Sealer::new("m", &[KEY], 1, [1; 16]);
        let mut body = vec![0; 8];
        put_bytes(&mut body, b"a");
        put_bytes(&mut body, b"b");
        let (short, _) = sealer.seal(Channel::ScoutQuestion, &[], &body);
        let (_, mut host) = pair(&[KEY]);
        assert_eq!(host.read_question(&short), Err(Unusable::Malformed));
    }

    #[test]
    fn sub_keys_are_kept_for_so_many_senders() {
        let (_, mut host) = pair(&[KEY]);
        for sender in 0..SUB_KEYS_MAX as u64 + 10 {
            let mut asker = Scouting::new("m", &[KEY], sender, [9; 16]);
            assert!(host.read_question(&asker.ask(1, "a", "b").unwrap()).is_ok());
            assert!(host.sub_keys.len() <= SUB_KEYS_MAX);
        }
        let strangers = Scouting::new("m", &[[8; 32]], 5, [5; 16]).ask(1, "a", "b").unwrap();
        let before = host.sub_keys.len();
        assert!(host.read_question(&strangers).is_err());
        assert_eq!(host.sub_keys.len(), before, "strangers leave nothing behind");
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(nonce in any::<u64>(), service in "[a-z.-]{1,255}", instance in "[a-z0-9:-]{1,255}", sealed in any::<bool>()) {
            let keys: &[[u8; 32]] = if sealed { &[KEY] } else { &[] };
            let (mut asker, mut host) = pair(keys);
            let question = asker.ask(nonce, &service, &instance).expect("the names are short enough");
            prop_assert!(question.len() <= DATAGRAM_MAX);
            prop_assert_eq!(host.read_question(&question), Ok(Question { nonce, service, instance }));
            let answer = host.answer(&Answer::default());
            prop_assert!(answer.len() <= question.len(), "{} to {}", answer.len(), question.len());
        }

        #[test]
        fn an_answer_comes_back_as_it_was_given(nonce in any::<u64>(), flags in 0..8u8, in_flight in any::<u32>(), latency in 0..u32::MAX, stalled in 0..u32::MAX) {
            let micros = |micros: u32| (micros > 0).then(|| Duration::from_micros(micros.into()));
            let answer = Answer {
                nonce, in_flight, latency: micros(latency), stalled: micros(stalled),
                known: flags & 1 != 0, alive: flags & 2 != 0, draining: flags & 4 != 0,
            };
            let (mut asker, mut host) = pair(&[KEY]);
            let datagram = host.answer(&answer);
            prop_assert_eq!(asker.read_answer(&datagram), Ok(answer));
        }

        #[test]
        fn no_bytes_panic_and_changed_ones_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), flip in 1..=255u8, cut in any::<prop::sample::Index>()) {
            for keys in [&[KEY][..], &[]] {
                let (mut asker, mut host) = pair(keys);
                prop_assert!(host.read_question(&bytes).is_err() && asker.read_answer(&bytes).is_err());
                let mut question = asker.ask(1, "payments", "payments-1").expect("short names");
                prop_assert!(host.read_question(&question[..cut.index(question.len())]).is_err());
                let mut answer = host.answer(&Answer { nonce: 1, known: true, ..Answer::default() });
                let place = at.index(question.len());
                question[place] ^= flip;
                let place = at.index(answer.len());
                answer[place] ^= flip;
                prop_assert!(host.read_question(&question).is_err() && asker.read_answer(&answer).is_err());
            }
        }

        /// Sealed well by a key holder that says nonsense.
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..120)) {
            let mut sealer = Sealer::new("m", &[KEY], 1, [1; 16]);
            let (mut asker, mut host) = pair(&[KEY]);
            let question = sealer.seal(Channel::ScoutQuestion, &[], &body).0;
            if let Ok(question) = host.read_question(&question) {
                prop_assert!(body.len() >= ANSWER_LEN && question.service.len() <= NAME_MAX);
            }
            let answer = sealer.seal(Channel::ScoutAnswer, &[], &body).0;
            prop_assert_eq!(asker.read_answer(&answer).is_ok(), body.len() >= ANSWER_LEN);
        }
    }
}
