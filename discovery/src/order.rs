//! An operator's orders to the whole mesh: an override of a service's policy, or that a host be drained.
//!
//! An order is an entry in the record of the host at which it was issued, so it travels, and is lost and found, like a
//! registration. Of the orders on one subject the newest counts, wherever it was issued (at the same microsecond that of the
//! lowest node id); to take one back is to issue an empty one. Each ends by itself: there is no order that somebody has to
//! remember. Ends are wall time, the only clock that hosts have in common: a host whose clock is off by a second lets go
//! of an order a second early or late.
//!
//! Whose clock is far ahead could otherwise rule for ever: an order counts for a host only while it ends within
//! [`ORDER_TTL_MAX`] (and `SKEW`) of that host's own time.
//!
//! A host that goes down takes no order with it (its record is kept until the last of them has ended); one that
//! leaves does, and so does one that loses its data directory.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use evenkeel_config::{PUBLISHED_MAX, Published};
use serde::{Deserialize, Serialize};

use crate::wire::{Malformed, Reader, fields, frame, put_varint, whole_text};

/// The longest that an order can stand.
pub const ORDER_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Orders that one host may have issued at a time, those that take one back included.
pub const ORDERS_MAX: usize = 64;
/// How far the clocks of two hosts may be apart.
pub(crate) const SKEW: Duration = Duration::from_secs(3600);

/// What an order is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The policy of every client of this service.
    Override(String),
    /// The host with this node id: nobody is to choose it.
    Drain(u64),
}

/// What an order says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// Lay this over the service's policy.
    Override(Arc<Published>),
    /// Do not choose the host.
    Drain,
    /// Whatever was ordered before no longer counts.
    Undo,
}

/// One order, as its issuer wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrderBody {
    pub instruction: Instruction,
    /// Unix time in microseconds.
    pub issued_us: u64,
    /// Unix time in microseconds.
    pub until_us: u64,
    /// The issuing host's name.
    pub by: String,
}

/// An order that counts at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What it says; never [`Instruction::Undo`].
    pub instruction: Instruction,
    /// When it was issued, in unix microseconds.
    pub issued_us: u64,
    /// When it ends, in unix microseconds.
    pub until_us: u64,
    /// The name of the host that it was issued at.
    pub by: String,
}

/// Why an order was not issued. Nothing changed; the fault is the operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderError {
    /// It would stand for no time at all, or for longer than [`ORDER_TTL_MAX`].
    Ttl,
    /// [`ORDERS_MAX`] orders of this host still stand.
    TooMany,
    /// The mesh has as many records as this host takes: others would not take it either.
    MeshFull,
    /// There is nothing to take back.
    Nothing,
    /// The mesh has no host of this id.
    NoSuchHost,
    /// The host is leaving the mesh.
    Leaving,
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OrderError::Ttl => f.write_str(
                "the ttl must be above zero and at most 24h: for longer, change the configuration",
            ),
            OrderError::TooMany => write!(
                f,
                "{ORDERS_MAX} orders issued at this host have not ended yet: wait, or issue this one at another host"
            ),
            OrderError::MeshFull => f.write_str(
                "the mesh has as many instances, policies and orders as limits.records allows: deregister some, or raise limits.records on every host",
            ),
            OrderError::Nothing => {
                f.write_str("no such order stands, so there is nothing to take back")
            }
            OrderError::NoSuchHost => {
                f.write_str("the mesh has no such host: `evenkeel members` lists them")
            }
            OrderError::Leaving => f.write_str("this host is leaving the mesh: ask another host"),
        }
    }
}

impl std::error::Error for OrderError {}

/// The first character of an order's key in a record. No instance id has a control character.
pub(crate) const ORDER_MARK: char = '\u{2}';

impl Subject {
    /// The key of an order on it in the issuer's record.
    pub(crate) fn key(&self) -> String {
        match self {
            Subject::Override(service) => format!("{ORDER_MARK}override {service}"),
            Subject::Drain(node) => format!("{ORDER_MARK}drain {node:016x}"),
        }
    }

    /// Reads a key behind its mark; `None`: of a kind that a newer host knows.
    pub(crate) fn of_key(key: &str) -> Option<Subject> {
        let (kind, what) = key.strip_prefix(ORDER_MARK)?.split_once(' ')?;
        let subject = match kind {
            "override" => {
                crate::names::is_service_name(what).then(|| Subject::Override(what.to_owned()))
            }
            "drain" => u64::from_str_radix(what, 16).ok().map(Subject::Drain),
            _ => None,
        }?;
        // One subject, one key.
        (subject.key() == key).then_some(subject)
    }
}

const POLICY: u8 = 1;
const ISSUED: u8 = 2;
const UNTIL: u8 = 3;
const BY: u8 = 4;
const UNDO: u8 = 5;

impl OrderBody {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match &self.instruction {
            Instruction::Override(policy) => {
                frame(&mut out, POLICY, |out| out.extend_from_slice(policy.text().as_bytes()));
            }
            Instruction::Drain => {}
            Instruction::Undo => frame(&mut out, UNDO, |_| {}),
        }
        frame(&mut out, ISSUED, |out| put_varint(out, self.issued_us));
        frame(&mut out, UNTIL, |out| put_varint(out, self.until_us));
        frame(&mut out, BY, |out| out.extend_from_slice(self.by.as_bytes()));
        out
    }

    pub fn decode(subject: &Subject, body: &[u8]) -> Result<OrderBody, Malformed> {
        let (mut policy, mut issued, mut until, mut by, mut undo) = (None, None, None, None, false);
        fields(body, |field, r: &mut Reader<'_>| {
            match field {
                POLICY => policy = Some(whole_text(r, PUBLISHED_MAX)?),
                ISSUED => issued = Some(r.varint()?),
                UNTIL => until = Some(r.varint()?),
                BY => by = Some(whole_text(r, NAME_MAX)?),
                UNDO => undo = true,
                _ => {}
            }
            Ok(())
        })?;
        let instruction = match (subject, policy) {
            _ if undo => Instruction::Undo,
            (Subject::Override(_), Some(text)) => {
                Instruction::Override(Arc::new(Published::read(&text).ok_or(Malformed)?))
            }
            (Subject::Override(_), None) => return Err(Malformed),
            (Subject::Drain(_), _) => Instruction::Drain,
        };
        Ok(OrderBody {
            instruction,
            issued_us: issued.ok_or(Malformed)?,
            until_us: until.ok_or(Malformed)?,
            by: by.ok_or(Malformed)?,
        })
    }

    /// Whether it has not ended yet, by this host's clock.
    pub fn stands(&self, wall_us: u64) -> bool {
        let farthest = wall_us.saturating_add(micros(ORDER_TTL_MAX + SKEW));
        self.until_us > wall_us && self.until_us <= farthest
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// An order as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOrder {
    /// Of its entry, without the mark.
    subject: String,
    issued_us: u64,
    until_us: u64,
    /// Of an override.
    policy: Option<String>,
    undo: bool,
}

impl SavedOrder {
    pub(crate) fn of(subject: &Subject, order: &OrderBody) -> SavedOrder {
        let policy = match &order.instruction {
            Instruction::Override(policy) => Some(policy.text().to_string()),
            Instruction::Drain | Instruction::Undo => None,
        };
        SavedOrder {
            subject: subject.key().trim_start_matches(ORDER_MARK).to_owned(),
            issued_us: order.issued_us,
            until_us: order.until_us,
            policy,
            undo: order.instruction == Instruction::Undo,
        }
    }

    /// `None`: not what this version writes.
    pub(crate) fn into_order(self, by: &str) -> Option<(Subject, OrderBody)> {
        let subject = Subject::of_key(&format!("{ORDER_MARK}{}", self.subject))?;
        let instruction = match (&subject, self.policy) {
            _ if self.undo => Instruction::Undo,
            (Subject::Override(_), policy) => {
                Instruction::Override(Arc::new(Published::read(&policy?)?))
            }
            (Subject::Drain(_), _) => Instruction::Drain,
        };
        let SavedOrder { issued_us, until_us, .. } = self;
        Some((subject, OrderBody { instruction, issued_us, until_us, by: by.to_owned() }))
    }
}

/// Longest name of an issuing host that is read.
const NAME_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn orders() -> Vec<(Subject, OrderBody)> {
        let policy = Published::read(r#"{"policy":{"hedge":{"mode":"off"}}}"#).unwrap();
        let body = |instruction| OrderBody {
            instruction,
            issued_us: 1_800_000_000_000_000,
            until_us: 1_800_000_060_000_000,
            by: "host-a".into(),
        };
        let service = || Subject::Override("payments.shop".into());
        vec![
            (service(), body(Instruction::Override(Arc::new(policy)))),
            (service(), body(Instruction::Undo)),
            (Subject::Drain(0xff), body(Instruction::Drain)),
            (Subject::Drain(u64::MAX), body(Instruction::Undo)),
        ]
    }

    #[test]
    fn orders_survive_the_wire_and_the_disk() {
        for (subject, order) in orders() {
            assert_eq!(Subject::of_key(&subject.key()), Some(subject.clone()));
            assert_eq!(OrderBody::decode(&subject, &order.encode()), Ok(order.clone()));
            let json = serde_json::to_string(&SavedOrder::of(&subject, &order)).unwrap();
            let saved: SavedOrder = serde_json::from_str(&json).unwrap();
            assert_eq!(saved.into_order("host-a"), Some((subject, order)));
        }
    }

    #[test]
    fn keys_that_are_not_ours_are_no_subject() {
        for key in [
            "override payments",
            "\u{2}override Payments",
            "\u{2}override",
            "\u{2}drain ff",
            "\u{2}drain 00000000000000FF",
            "\u{2}drain +0000000000000ff",
            "\u{2}teleport x",
            "\u{1}00",
        ] {
            assert_eq!(Subject::of_key(key), None, "{key:?}");
        }
    }

    #[test]
    fn an_order_stands_until_its_end_and_never_for_more_than_a_day_and_the_skew() {
        let (_, order) = orders().remove(0);
        let end = order.until_us;
        assert!(order.stands(end - 1));
        assert!(!order.stands(end));
        assert!(order.stands(end - micros(ORDER_TTL_MAX)));
        assert!(!order.stands(end - micros(ORDER_TTL_MAX + SKEW) - 1), "its issuer's clock is off");
        assert!(!OrderBody { until_us: u64::MAX, ..order }.stands(end));
    }

    proptest! {
        #[test]
        fn random_and_mutated_bodies_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            for (subject, order) in orders() {
                _ = OrderBody::decode(&subject, &bytes);
                let mut body = order.encode();
                let at = at.index(body.len());
                body[at] = byte;
                _ = OrderBody::decode(&subject, &body);
                _ = OrderBody::decode(&subject, &body[..at]);
            }
        }
    }
}
