//! What hosts and roots say to each other, and its bytes (inside the envelope that the mesh seals).
//!
//! An [`Ask`] goes from a host to a root, an [`Answer`] back; both carry whole states, never changes, so that any of them may be lost or
//! come twice. Each is one frame (kind, length, content); frames stand in a row in a datagram. Decoding is all or nothing and
//! touches no state. Unknown kinds are skipped and unknown bytes at the end of a frame ignored, so a newer host may say more.
//! Every number is checked here: what is decoded is within the limits that the rest of the crate relies on.

use std::sync::Arc;
use std::time::Duration;

use crate::algorithm::{BANDS_MAX, Claim, SUBCLIENTS_MAX};
use crate::election::{MEMBERS_MAX, Roster, hash};
use crate::lease::{LOAN_MAX, Loan, Word};
use crate::quantity::Micros;

/// Between two hosts, about one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// To a root.
    Ask(Ask),
    /// From a root.
    Answer(Answer),
    /// From a root that is short: "take part, though you want nothing".
    Summon(Arc<[u8]>),
}

/// What one host wants and offers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ask {
    /// Which resource: any bytes, at most [`RESOURCE_ID_MAX`].
    pub resource: Arc<[u8]>,
    /// The asker's life.
    pub life: u64,
    /// Rises with each message of this life.
    pub number: u64,
    /// The asker's clock, in its own nanoseconds: loans in the answer count from here.
    pub stamp: u64,
    /// The root's life that the asker knows; 0: none yet.
    pub root_life: u64,
    /// The latest stamp of that life: the pledge counts from there.
    pub echo: u64,
    /// What it wants, by band; at most [`BANDS_MAX`].
    pub wants: Vec<Wants>,
    /// What it has for its dealings with this root.
    pub own: Micros,
    /// What it lends to the root.
    pub pledge: Loan,
    /// Its word on what the root lends to it.
    pub word: Word,
    /// Leases should last longer by this: it has clients that ask seldom.
    pub extra: Duration,
    /// The newest roster that it knows.
    pub epoch: u64,
    /// It has lent no more than every roster gives it.
    pub clear: bool,
    /// The latest roster that it knows to be settled.
    pub settled: u64,
}

/// What one band of a host wants.
pub type Wants = Claim;

/// What a root lends, and what it would like to be lent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Answer {
    /// Which resource.
    pub resource: Arc<[u8]>,
    /// The root's life.
    pub life: u64,
    /// Rises with each message of this life.
    pub number: u64,
    /// The root's clock, in its own nanoseconds: pledges in the next ask count from here.
    pub stamp: u64,
    /// The life of the host that is answered.
    pub host_life: u64,
    /// The latest stamp of that life.
    pub echo: u64,
    /// What the root lends.
    pub lease: Loan,
    /// How much of the lease the host should keep.
    pub keep: Micros,
    /// How much the host should pledge.
    pub call: Micros,
    /// The root's word on what is pledged.
    pub word: Word,
    /// Pledges should last longer by this.
    pub extra: Duration,
    /// The latest roster that is settled.
    pub settled: u64,
}

/// The bytes are not messages; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl Message {
    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut content = Vec::with_capacity(128);
        let kind = match self {
            Message::Ask(ask) => {
                ask.encode(&mut content);
                ASK
            }
            Message::Answer(answer) => {
                answer.encode(&mut content);
                ANSWER
            }
            Message::Summon(resource) => {
                put_bytes(&mut content, resource);
                SUMMON
            }
        };
        out.push(kind);
        put_bytes(out, &content);
    }

    /// Reads all messages of a datagram.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Message>, Malformed> {
        let mut reader = Reader(bytes);
        let mut messages = Vec::new();
        while !reader.0.is_empty() {
            let kind = reader.byte()?;
            let mut content = Reader(reader.counted()?);
            match kind {
                ASK => messages.push(Message::Ask(Ask::decode(&mut content)?)),
                ANSWER => messages.push(Message::Answer(Answer::decode(&mut content)?)),
                SUMMON => messages.push(Message::Summon(content.resource()?)),
                _ => {}
            }
        }
        Ok(messages)
    }
}

impl Ask {
    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, &self.resource);
        for number in [self.life, self.number, self.stamp, self.root_life, self.echo] {
            put(out, number);
        }
        put(out, self.wants.len() as u64);
        for wants in &self.wants {
            put(out, wants.priority.cast_unsigned());
            put(out, wants.wants.micros());
            put(out, u64::from(wants.subclients));
        }
        put(out, self.own.micros());
        put_loan(out, self.pledge);
        put_word(out, self.word);
        put_duration(out, self.extra);
        put(out, self.epoch);
        put(out, u64::from(self.clear));
        put(out, self.settled);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Ask, Malformed> {
        Ok(Ask {
            resource: r.resource()?,
            life: r.number()?,
            number: r.number()?,
            stamp: r.number()?,
            root_life: r.number()?,
            echo: r.number()?,
            wants: r.wants()?,
            own: r.micros()?,
            pledge: r.loan()?,
            word: r.word()?,
            extra: r.duration()?,
            epoch: r.number()?,
            clear: r.flag()?,
            settled: r.number()?,
        })
    }
}

impl Answer {
    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, &self.resource);
        for number in [self.life, self.number, self.stamp, self.host_life, self.echo] {
            put(out, number);
        }
        put_loan(out, self.lease);
        put(out, self.keep.micros());
        put(out, self.call.micros());
        put_word(out, self.word);
        put_duration(out, self.extra);
        put(out, self.settled);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Answer, Malformed> {
        Ok(Answer {
            resource: r.resource()?,
            life: r.number()?,
            number: r.number()?,
            stamp: r.number()?,
            host_life: r.number()?,
            echo: r.number()?,
            lease: r.loan()?,
            keep: r.micros()?,
            call: r.micros()?,
            word: r.word()?,
            extra: r.duration()?,
            settled: r.number()?,
        })
    }
}

/// Takes values off the front of bytes that nobody vouches for.
/// The rosters of a registrar as hosts tell them to each other, in parts of at most `part_max` bytes.
#[must_use]
pub fn encode_rosters(rosters: &[Roster], part_max: usize) -> Vec<Vec<u8>> {
    let mut whole = Vec::new();
    put(&mut whole, rosters.len() as u64);
    for Roster { epoch, members, removed, settled } in rosters {
        put(&mut whole, *epoch);
        put(&mut whole, u64::from(*settled));
        put(&mut whole, members.len() as u64);
        for (host, weight) in members {
            whole.extend_from_slice(&host.to_be_bytes());
            put(&mut whole, u64::from(*weight));
        }
        put(&mut whole, removed.len() as u64);
        for (host, lasts) in removed {
            whole.extend_from_slice(&host.to_be_bytes());
            put_duration(&mut whole, *lasts);
        }
    }
    let mut checked = hash(&whole).to_be_bytes().to_vec();
    checked.append(&mut whole);
    let whole = checked;
    whole.chunks(part_max.max(1)).map(<[u8]>::to_vec).collect()
}

/// Reads what [`encode_rosters`] wrote, from all parts in order. Parts of two writings do not fit together: the hash says so.
pub fn decode_rosters<'a>(
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<Roster>, Malformed> {
    let whole: Vec<u8> = parts.into_iter().flatten().copied().collect();
    let mut reader = Reader(&whole);
    if reader.host()? != hash(reader.0) {
        return Err(Malformed);
    }
    let count = reader.number()?;
    if count > 2 {
        return Err(Malformed);
    }
    let rosters: Vec<Roster> = (0..count).map(|_| reader.roster()).collect::<Result<_, _>>()?;
    let rise = rosters.windows(2).all(|pair| pair[0].epoch < pair[1].epoch);
    if reader.0.is_empty() && rise { Ok(rosters) } else { Err(Malformed) }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    /// LEB128, in its shortest form only.
    fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (shift == 63 && bits > 1) || (shift > 0 && byte == 0) {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    fn resource(&mut self) -> Result<Arc<[u8]>, Malformed> {
        let id = self.counted()?;
        if id.len() > RESOURCE_ID_MAX { Err(Malformed) } else { Ok(Arc::from(id)) }
    }

    fn micros(&mut self) -> Result<Micros, Malformed> {
        Micros::from_micros(self.number()?).map_err(|_| Malformed)
    }

    fn duration(&mut self) -> Result<Duration, Malformed> {
        let duration = Duration::from_nanos(self.number()?);
        if duration > LOAN_MAX { Err(Malformed) } else { Ok(duration) }
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn loan(&mut self) -> Result<Loan, Malformed> {
        Ok(Loan { seq: self.number()?, amount: self.micros()?, lasts: self.duration()? })
    }

    fn word(&mut self) -> Result<Word, Malformed> {
        Ok(Word { seq: self.number()?, amount: self.micros()? })
    }

    fn host(&mut self) -> Result<u64, Malformed> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = tail;
        Ok(u64::from_be_bytes(*head))
    }

    fn roster(&mut self) -> Result<Roster, Malformed> {
        let (epoch, settled) = (self.number()?, self.flag()?);
        let count = |reader: &mut Self| match usize::try_from(reader.number()?) {
            // Each takes eight bytes at least.
            Ok(count) if count <= MEMBERS_MAX && count * 8 <= reader.0.len() => Ok(count),
            _ => Err(Malformed),
        };
        let members = (0..count(self)?).map(|_| {
            let weight = |reader: &mut Self| u32::try_from(reader.number()?).map_err(|_| Malformed);
            Ok((self.host()?, weight(self)?))
        });
        let members = members.collect::<Result<_, _>>()?;
        let removed = (0..count(self)?).map(|_| Ok((self.host()?, self.duration()?)));
        let removed = removed.collect::<Result<_, _>>()?;
        Ok(Roster { epoch, members, removed, settled })
    }

    fn wants(&mut self) -> Result<Vec<Wants>, Malformed> {
        let count = self.number()?;
        if count > BANDS_MAX as u64 {
            return Err(Malformed);
        }
        let wants = (0..count).map(|_| {
            let (priority, wants) = (self.number()?.cast_signed(), self.micros()?);
            let subclients = u32::try_from(self.number()?).map_err(|_| Malformed)?;
            if subclients > SUBCLIENTS_MAX {
                Err(Malformed)
            } else {
                Ok(Wants { wants, subclients, priority })
            }
        });
        wants.collect()
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_duration(out: &mut Vec<u8>, duration: Duration) {
    put(out, duration.min(LOAN_MAX).as_nanos() as u64);
}

fn put_loan(out: &mut Vec<u8>, loan: Loan) {
    put(out, loan.seq);
    put(out, loan.amount.micros());
    put_duration(out, loan.lasts);
}

fn put_word(out: &mut Vec<u8>, word: Word) {
    put(out, word.seq);
    put(out, word.amount.micros());
}

const ASK: u8 = 1;
const ANSWER: u8 = 2;
const SUMMON: u8 = 3;
/// Longest id of a resource, in bytes.
pub const RESOURCE_ID_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn micros() -> impl Strategy<Value = Micros> {
        (0..=Micros::MAX.micros()).prop_map(|micros| Micros::from_micros(micros).unwrap())
    }

    fn duration() -> impl Strategy<Value = Duration> {
        (0..=LOAN_MAX.as_nanos() as u64).prop_map(Duration::from_nanos)
    }

    fn loan() -> impl Strategy<Value = Loan> {
        (any::<u64>(), micros(), duration()).prop_map(|(seq, amount, lasts)| Loan {
            seq,
            amount,
            lasts,
        })
    }

    fn word() -> impl Strategy<Value = Word> {
        (any::<u64>(), micros()).prop_map(|(seq, amount)| Word { seq, amount })
    }

    fn wants() -> impl Strategy<Value = Wants> {
        (micros(), 0..=SUBCLIENTS_MAX, any::<i64>())
            .prop_map(|(wants, subclients, priority)| Wants { wants, subclients, priority })
    }

    fn message() -> impl Strategy<Value = Message> {
        let resource = vec(any::<u8>(), 0..=RESOURCE_ID_MAX).prop_map(Arc::<[u8]>::from);
        let numbers = any::<[u64; 7]>();
        let ask = (vec(wants(), 0..=BANDS_MAX), any::<bool>());
        (
            resource,
            numbers,
            micros(),
            micros(),
            loan(),
            word(),
            duration(),
            proptest::option::of(ask),
        )
            .prop_map(
                |(
                    resource,
                    [life, number, stamp, other, echo, epoch, settled],
                    own,
                    call,
                    loan,
                    word,
                    extra,
                    ask,
                )| match ask {
                    Some((wants, clear)) => Message::Ask(Ask {
                        resource,
                        life,
                        number,
                        stamp,
                        root_life: other,
                        echo,
                        wants,
                        own,
                        pledge: loan,
                        word,
                        extra,
                        epoch,
                        clear,
                        settled,
                    }),
                    None => Message::Answer(Answer {
                        resource,
                        life,
                        number,
                        stamp,
                        host_life: other,
                        echo,
                        lease: loan,
                        keep: own,
                        call,
                        word,
                        extra,
                        settled,
                    }),
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(messages in vec(message(), 0..4)) {
            let mut bytes = Vec::new();
            messages.iter().for_each(|message| message.encode(&mut bytes));
            prop_assert_eq!(Message::decode_all(&bytes), Ok(messages));
        }

        #[test]
        fn damaged_bytes_are_refused_or_mean_something_within_the_limits(message in message(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            for message in Message::decode_all(&bytes).unwrap_or_default() {
                let mut again = Vec::new();
                message.encode(&mut again);
                prop_assert_eq!(Message::decode_all(&again), Ok(vec![message]));
            }
            bytes.truncate(at);
            let _ = Message::decode_all(&bytes);
        }

        #[test]
        fn rosters_survive_the_wire_in_parts_of_any_size(
            mut epochs in proptest::collection::btree_set(any::<u64>(), 0..=2),
            members in proptest::collection::btree_map(any::<u64>(), any::<u32>(), 0..50),
            removed in proptest::collection::btree_map(any::<u64>(), duration(), 0..5),
            settled in any::<bool>(),
            part_max in 1usize..200,
            lost in any::<prop::sample::Index>(),
        ) {
            let mut rosters = Vec::new();
            while let Some(epoch) = epochs.pop_first() {
                let (members, removed) = (members.clone(), removed.clone());
                rosters.push(Roster { epoch, members, removed, settled });
            }
            let mut parts = encode_rosters(&rosters, part_max);
            let read = decode_rosters(parts.iter().map(Vec::as_slice));
            prop_assert_eq!(read.as_ref(), Ok(&rosters));
            parts.remove(lost.index(parts.len()));
            let part = decode_rosters(parts.iter().map(Vec::as_slice));
            prop_assert!(part.is_err() || rosters.is_empty() || part != read);
        }

        #[test]
        fn any_bytes_at_all(bytes in vec(any::<u8>(), 0..300)) {
            let _ = decode_rosters([bytes.as_slice()]);
            let _ = Message::decode_all(&bytes);
        }
    }

    #[test]
    fn quantities_and_lengths_beyond_the_limits_are_refused() {
        let answer = |bytes: &[u8]| {
            let mut out = vec![ANSWER];
            put_bytes(&mut out, bytes);
            Message::decode_all(&out)
        };
        let mut body = Vec::new();
        put_bytes(&mut body, &[0; RESOURCE_ID_MAX + 1]);
        (0..20).for_each(|_| put(&mut body, 1));
        assert_eq!(answer(&body), Err(Malformed));
        let mut body = Vec::new();
        put_bytes(&mut body, b"db");
        (0..6).for_each(|_| put(&mut body, 1));
        put(&mut body, u64::MAX);
        (0..20).for_each(|_| put(&mut body, 1));
        assert_eq!(answer(&body), Err(Malformed), "more than any quantity");
        assert_eq!(
            Message::decode_all(&[99, 2, 0xff, 0xff]),
            Ok(vec![]),
            "a newer host may say more"
        );
    }
}
