//! Our own encoding of foca's packets: a derived one could not evolve. Fixed widths, big endian, a version first.

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};

use super::{Id, PACKET_MAX};
use crate::wire::Malformed;

/// Encodes and decodes headers and members.
pub(super) struct Codec;

const CODEC_VERSION: u8 = 1;
const ID_LEN: usize = 12;
const MEMBER_LEN: usize = ID_LEN + 3;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed")
    }
}

impl std::error::Error for Malformed {}

impl foca::Codec<Id> for Codec {
    type Error = Malformed;

    fn encode_header(
        &mut self,
        header: &Header<Id>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        let (kind, id, number) = match &header.message {
            Message::Ping(number) => (1, None, Some(*number)),
            Message::Ack(number) => (2, None, Some(*number)),
            Message::PingReq { target, probe_number } => (3, Some(*target), Some(*probe_number)),
            Message::IndirectPing { origin, probe_number } => {
                (4, Some(*origin), Some(*probe_number))
            }
            Message::IndirectAck { target, probe_number } => {
                (5, Some(*target), Some(*probe_number))
            }
            Message::ForwardedAck { origin, probe_number } => {
                (6, Some(*origin), Some(*probe_number))
            }
            Message::Announce => (7, None, None),
            Message::Feed => (8, None, None),
            Message::Gossip => (9, None, None),
            Message::Broadcast => (10, None, None),
            Message::TurnUndead => (11, None, None),
        };
        let len = 2 + 2 * ID_LEN + 2 + id.map_or(0, |_| ID_LEN) + number.map_or(0, |_| 1);
        if buf.remaining_mut() < len {
            return Err(Malformed);
        }
        buf.put_u8(CODEC_VERSION);
        buf.put_u8(kind);
        put_id(&mut buf, header.src);
        buf.put_u16(header.src_incarnation);
        put_id(&mut buf, header.dst);
        if let Some(id) = id {
            put_id(&mut buf, id);
        }
        if let Some(number) = number {
            buf.put_u8(number);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Id>, Malformed> {
        if take_u8(&mut buf)? != CODEC_VERSION {
            return Err(Malformed);
        }
        let kind = take_u8(&mut buf)?;
        let src = take_id(&mut buf)?;
        let src_incarnation = take_u16(&mut buf)?;
        let dst = take_id(&mut buf)?;
        let message = match kind {
            1 => Message::Ping(take_u8(&mut buf)?),
            2 => Message::Ack(take_u8(&mut buf)?),
            3 => Message::PingReq { target: take_id(&mut buf)?, probe_number: take_u8(&mut buf)? },
            4 => Message::IndirectPing {
                origin: take_id(&mut buf)?,
                probe_number: take_u8(&mut buf)?,
            },
            5 => Message::IndirectAck {
                target: take_id(&mut buf)?,
                probe_number: take_u8(&mut buf)?,
            },
            6 => Message::ForwardedAck {
                origin: take_id(&mut buf)?,
                probe_number: take_u8(&mut buf)?,
            },
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            10 => Message::Broadcast,
            11 => Message::TurnUndead,
            _ => return Err(Malformed),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(
        &mut self,
        member: &Member<Id>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        if buf.remaining_mut() < MEMBER_LEN {
            return Err(Malformed);
        }
        put_id(&mut buf, *member.id());
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Id>, Malformed> {
        let id = take_id(&mut buf)?;
        let incarnation = take_u16(&mut buf)?;
        let state = match take_u8(&mut buf)? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(Malformed),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

pub(super) fn decode_packet(mut bytes: &[u8]) -> Result<(Header<Id>, Vec<Member<Id>>), Malformed> {
    use foca::Codec as _;
    let header = Codec.decode_header(&mut bytes)?;
    let mut updates = Vec::new();
    if !bytes.is_empty() {
        for _ in 0..take_u16(&mut bytes)? {
            updates.push(Codec.decode_member(&mut bytes)?);
        }
    }
    if bytes.is_empty() { Ok((header, updates)) } else { Err(Malformed) }
}

pub(super) fn encode_packet(header: &Header<Id>, updates: &[Member<Id>]) -> Vec<u8> {
    use foca::Codec as _;
    let mut bytes = Vec::with_capacity(PACKET_MAX);
    let fits = "a vector has room";
    Codec.encode_header(header, &mut bytes).expect(fits);
    if !updates.is_empty() {
        bytes.put_u16(u16::try_from(updates.len()).expect("no more than were decoded"));
        updates.iter().for_each(|update| Codec.encode_member(update, &mut bytes).expect(fits));
    }
    bytes
}

fn put_id(buf: &mut impl BufMut, id: Id) {
    buf.put_u64(id.node);
    buf.put_u32(id.epoch);
}

fn take_id(buf: &mut impl Buf) -> Result<Id, Malformed> {
    Ok(Id {
        node: buf.try_get_u64().map_err(|_| Malformed)?,
        epoch: buf.try_get_u32().map_err(|_| Malformed)?,
    })
}

fn take_u16(buf: &mut impl Buf) -> Result<u16, Malformed> {
    buf.try_get_u16().map_err(|_| Malformed)
}

fn take_u8(buf: &mut impl Buf) -> Result<u8, Malformed> {
    buf.try_get_u8().map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use foca::Codec as _;
    use proptest::prelude::*;

    use super::*;

    fn id() -> impl Strategy<Value = Id> {
        any::<(u64, u32)>().prop_map(|(node, epoch)| Id { node, epoch })
    }

    fn message() -> impl Strategy<Value = Message<Id>> {
        (0..11u8, id(), any::<u8>()).prop_map(|(kind, id, probe_number)| match kind {
            0 => Message::Ping(probe_number),
            1 => Message::Ack(probe_number),
            2 => Message::PingReq { target: id, probe_number },
            3 => Message::IndirectPing { origin: id, probe_number },
            4 => Message::IndirectAck { target: id, probe_number },
            5 => Message::ForwardedAck { origin: id, probe_number },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::Broadcast,
            _ => Message::TurnUndead,
        })
    }

    fn member() -> impl Strategy<Value = Member<Id>> {
        (id(), any::<u16>(), 0..3u8).prop_map(|(id, incarnation, state)| {
            Member::new(
                id,
                incarnation,
                [State::Alive, State::Suspect, State::Down][usize::from(state)],
            )
        })
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(
            src in id(),
            src_incarnation in any::<u16>(),
            dst in id(),
            message in message(),
            updates in proptest::collection::vec(member(), 0..20),
        ) {
            let header = Header { src, src_incarnation, dst, message };
            let bytes = encode_packet(&header, &updates);
            prop_assert!(bytes.len() <= PACKET_MAX);
            prop_assert_eq!(decode_packet(&bytes).unwrap(), (header.clone(), updates));
            for room in 0..bytes.len() {
                let mut buf = Vec::new().limit(room);
                // With too little room nothing is written.
                if Codec.encode_header(&header, &mut buf).is_err() {
                    prop_assert!(buf.get_ref().is_empty());
                }
            }
        }

        #[test]
        fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode_packet(&bytes);
        }
    }
}
