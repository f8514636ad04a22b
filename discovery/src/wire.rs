//! The bytes between hosts, inside the sealed envelope: a list of frames (kind, length, content).
//!
//! Decoding is all or nothing and touches no state: a message is either wholly understood or refused, and only
//! then acted on. Unknown kinds are skipped and unknown bytes at the end of a known frame are ignored, so a newer
//! host may say more. A kind's meaning never changes; what needs another meaning gets another kind.
//! Written by hand rather than derived: a derived format cannot skip what it does not know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Most bytes of a message after decompression.
pub(crate) const INFLATED_MAX: usize = 32 * 1024 * 1024;
/// Longest key of a record's entry.
const KEY_MAX: usize = 255;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A packet of the membership protocol.
    Membership(Vec<u8>),
    /// Where the hosts named in the membership packet are.
    Addresses(Vec<Located>),
    /// Changes of one host's record.
    Delta(Delta),
    /// "I have this much of this host's record": sent where the delta does not fit a datagram.
    Have(Extent),
    /// "Say this back": proves that the other end is there now.
    Challenge([u8; 16]),
    /// The answer to a challenge.
    Echo([u8; 16]),
    /// A host is gone for sure: it said goodbye (`left`), or several hosts found its port closed.
    Gone { node: u64, epoch: u32, left: bool },
    /// "Dial this host and tell me what happened."
    Confirm { node: u64, epoch: u32 },
    /// What happened.
    Verdict { node: u64, epoch: u32, refused: bool },
    /// "I suspect you (the receiver) at this incarnation": refute if you are there.
    Suspected { epoch: u32, incarnation: u16 },
    /// "I suspect this host at this incarnation too": whoever does already is the surer.
    Accused { node: u64, epoch: u32, incarnation: u16 },
    /// About quotas: opaque here.
    Quota(Vec<u8>),
    /// Over TCP: who asks or answers.
    Hello(Hello),
    /// Over TCP: "tell me all you know".
    Join,
    /// Over TCP: "is this the hash of what you know?"
    Compare(u64),
    /// Over TCP: it is.
    Equal,
    /// Over TCP: "are you there?" The answer's `Hello` says yes.
    Ping,
    /// Over TCP: "you (the receiver) are not at the address that you claim": another host is, or nobody.
    NotThere { address: SocketAddr, holder: Option<u64> },
    /// Over TCP: membership as the sender sees it.
    Members(Vec<Membered>),
    /// Over TCP: how much the sender has of each record.
    Digest(Vec<Extent>),
    /// Over TCP: "send me what comes after this of each record" (`upto` is what the asker has).
    Wants(Vec<Extent>),
}

/// Where a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    pub node: u64,
    pub generation: u64,
    pub address: SocketAddr,
}

/// How much of a host's record: everything up to `upto` of this generation. [`Extent::TOMBSTONE`]: the record was buried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub node: u64,
    pub generation: u64,
    pub upto: u64,
}

impl Extent {
    /// `upto` of a generation that is gone for good.
    pub const TOMBSTONE: u64 = u64::MAX;
}

/// One host as the membership protocol sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Membered {
    pub node: u64,
    pub epoch: u32,
    pub incarnation: u16,
    pub down: bool,
}

/// Who speaks over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub epoch: u32,
    pub incarnation: u16,
    pub generation: u64,
    pub address: SocketAddr,
}

/// What happened to one host's record after sequence `base`, up to and with `upto`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delta {
    pub node: u64,
    pub generation: u64,
    /// The receiver must have this much; 0: the delta is the whole record up to `upto`.
    pub base: u64,
    pub upto: u64,
    /// Tombstones up to here were forgotten by the owner.
    pub gc: u64,
    /// By rising sequence.
    pub entries: Vec<DeltaEntry>,
}

/// One entry of a record; `body: None` is a tombstone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeltaEntry {
    pub key: Arc<str>,
    pub seq: u64,
    pub body: Option<Arc<[u8]>>,
}

/// The bytes are not a list of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

const MEMBERSHIP: u8 = 1;
const ADDRESSES: u8 = 2;
const DELTA: u8 = 3;
const HAVE: u8 = 4;
const CHALLENGE: u8 = 5;
const ECHO: u8 = 6;
const GONE: u8 = 7;
const CONFIRM: u8 = 8;
const VERDICT: u8 = 9;
const SUSPECTED: u8 = 10;
const QUOTA: u8 = 11;
const ACCUSED: u8 = 12;
const HELLO: u8 = 32;
const JOIN: u8 = 33;
const COMPARE: u8 = 34;
const EQUAL: u8 = 35;
const PING: u8 = 36;
const MEMBERS: u8 = 37;
const DIGEST: u8 = 38;
const WANTS: u8 = 39;
const NOT_THERE: u8 = 40;
const COMPRESSED: u8 = 64;

impl Frame {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Membership(packet) => {
                frame(out, MEMBERSHIP, |out| out.extend_from_slice(packet));
            }
            Frame::Addresses(list) => frame(out, ADDRESSES, |out| {
                for located in list {
                    out.extend_from_slice(&located.node.to_be_bytes());
                    put_varint(out, located.generation);
                    put_address(out, located.address);
                }
            }),
            Frame::Delta(delta) => frame(out, DELTA, |out| delta.encode(out)),
            Frame::Have(extent) => frame(out, HAVE, |out| extent.encode(out)),
            Frame::Challenge(cookie) => frame(out, CHALLENGE, |out| out.extend_from_slice(cookie)),
            Frame::Echo(cookie) => frame(out, ECHO, |out| out.extend_from_slice(cookie)),
            Frame::Gone { node, epoch, left } => frame(out, GONE, |out| {
                put_identity(out, *node, *epoch);
                out.push(u8::from(*left));
            }),
            Frame::Confirm { node, epoch } => {
                frame(out, CONFIRM, |out| put_identity(out, *node, *epoch));
            }
            Frame::Verdict { node, epoch, refused } => frame(out, VERDICT, |out| {
                put_identity(out, *node, *epoch);
                out.push(u8::from(*refused));
            }),
            Frame::Suspected { epoch, incarnation } => frame(out, SUSPECTED, |out| {
                out.extend_from_slice(&epoch.to_be_bytes());
                out.extend_from_slice(&incarnation.to_be_bytes());
            }),
            Frame::Accused { node, epoch, incarnation } => frame(out, ACCUSED, |out| {
                put_identity(out, *node, *epoch);
                out.extend_from_slice(&incarnation.to_be_bytes());
            }),
            Frame::Quota(bytes) => frame(out, QUOTA, |out| out.extend_from_slice(bytes)),
            Frame::Hello(hello) => frame(out, HELLO, |out| {
                out.extend_from_slice(&hello.epoch.to_be_bytes());
                out.extend_from_slice(&hello.incarnation.to_be_bytes());
                put_varint(out, hello.generation);
                put_address(out, hello.address);
            }),
            Frame::Join => frame(out, JOIN, |_| {}),
            Frame::Compare(root) => frame(out, COMPARE, |out| {
                out.extend_from_slice(&root.to_be_bytes());
            }),
            Frame::Equal => frame(out, EQUAL, |_| {}),
            Frame::Ping => frame(out, PING, |_| {}),
            Frame::NotThere { address, holder } => frame(out, NOT_THERE, |out| {
                put_address(out, *address);
                out.push(u8::from(holder.is_some()));
                out.extend_from_slice(&holder.unwrap_or_default().to_be_bytes());
            }),
            Frame::Members(list) => frame(out, MEMBERS, |out| {
                for member in list {
                    put_identity(out, member.node, member.epoch);
                    out.extend_from_slice(&member.incarnation.to_be_bytes());
                    out.push(u8::from(member.down));
                }
            }),
            Frame::Digest(list) => frame(out, DIGEST, |out| {
                list.iter().for_each(|extent| extent.encode(out));
            }),
            Frame::Wants(list) => frame(out, WANTS, |out| {
                list.iter().for_each(|extent| extent.encode(out));
            }),
        }
    }

    /// Reads all frames of a message that may be compressed as a whole.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Frame>, Malformed> {
        let mut reader = Reader(bytes);
        let mut frames = Vec::new();
        while !reader.is_empty() {
            let kind = reader.u8()?;
            let content = reader.counted()?;
            if kind == COMPRESSED {
                // One level only: what is inside is read without this branch.
                let inflated = inflate(content)?;
                let mut inner = Reader(&inflated);
                while !inner.is_empty() {
                    let kind = inner.u8()?;
                    let content = inner.counted()?;
                    frames.extend(Frame::decode(kind, content)?);
                }
            } else {
                frames.extend(Frame::decode(kind, content)?);
            }
        }
        Ok(frames)
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Option<Frame>, Malformed> {
        let mut r = Reader(content);
        Ok(Some(match kind {
            MEMBERSHIP => Frame::Membership(content.to_vec()),
            ADDRESSES => Frame::Addresses(r.list(|r| {
                Ok(Located { node: r.u64()?, generation: r.varint()?, address: r.address()? })
            })?),
            DELTA => Frame::Delta(Delta::decode(&mut r)?),
            HAVE => Frame::Have(Extent::decode(&mut r)?),
            CHALLENGE => Frame::Challenge(r.array()?),
            ECHO => Frame::Echo(r.array()?),
            GONE => Frame::Gone { node: r.u64()?, epoch: r.u32()?, left: r.flag()? },
            CONFIRM => Frame::Confirm { node: r.u64()?, epoch: r.u32()? },
            VERDICT => Frame::Verdict { node: r.u64()?, epoch: r.u32()?, refused: r.flag()? },
            SUSPECTED => Frame::Suspected { epoch: r.u32()?, incarnation: r.u16()? },
            ACCUSED => Frame::Accused { node: r.u64()?, epoch: r.u32()?, incarnation: r.u16()? },
            QUOTA => Frame::Quota(content.to_vec()),
            HELLO => Frame::Hello(Hello {
                epoch: r.u32()?,
                incarnation: r.u16()?,
                generation: r.varint()?,
                address: r.address()?,
            }),
            JOIN => Frame::Join,
            COMPARE => Frame::Compare(r.u64()?),
            EQUAL => Frame::Equal,
            PING => Frame::Ping,
            NOT_THERE => {
                let (address, is_held) = (r.address()?, r.flag()?);
                Frame::NotThere { address, holder: Some(r.u64()?).filter(|_| is_held) }
            }
            MEMBERS => Frame::Members(r.list(|r| {
                Ok(Membered {
                    node: r.u64()?,
                    epoch: r.u32()?,
                    incarnation: r.u16()?,
                    down: r.flag()?,
                })
            })?),
            DIGEST => Frame::Digest(r.list(Extent::decode)?),
            WANTS => Frame::Wants(r.list(Extent::decode)?),
            _ => return Ok(None),
        }))
    }
}

/// Encodes a message, compressed as a whole where that pays.
pub(crate) fn encode_compressed(frames: &[Frame]) -> Vec<u8> {
    const PAYS: usize = 512;
    let mut plain = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut plain));
    if plain.len() < PAYS {
        return plain;
    }
    let mut out = Vec::with_capacity(plain.len() / 3);
    frame(&mut out, COMPRESSED, |out| deflate(&plain, out));
    out
}

fn deflate(plain: &[u8], out: &mut Vec<u8>) {
    let mut encoder = flate2::Compress::new(flate2::Compression::fast(), false);
    let mut chunk = [0u8; 16 * 1024];
    loop {
        let consumed = usize::try_from(encoder.total_in()).expect("no more than the input");
        let before = encoder.total_out();
        let status = encoder
            .compress(&plain[consumed..], &mut chunk, flate2::FlushCompress::Finish)
            .expect("compression into memory does not fail");
        let produced =
            usize::try_from(encoder.total_out() - before).expect("no more than the chunk");
        out.extend_from_slice(&chunk[..produced]);
        if status == flate2::Status::StreamEnd {
            return;
        }
    }
}

fn inflate(compressed: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut decoder = flate2::Decompress::new(false);
    let mut out = Vec::new();
    let mut chunk = [0u8; 16 * 1024];
    loop {
        let consumed = usize::try_from(decoder.total_in()).map_err(|_| Malformed)?;
        let before = decoder.total_out();
        let status = decoder
            .decompress(&compressed[consumed..], &mut chunk, flate2::FlushDecompress::None)
            .map_err(|_| Malformed)?;
        let produced = usize::try_from(decoder.total_out() - before).map_err(|_| Malformed)?;
        if out.len() + produced > INFLATED_MAX {
            return Err(Malformed);
        }
        out.extend_from_slice(&chunk[..produced]);
        if status == flate2::Status::StreamEnd {
            return Ok(out);
        }
        let stuck = produced == 0 && decoder.total_in() == consumed as u64;
        if stuck {
            return Err(Malformed);
        }
    }
}

impl Delta {
    /// How many bytes [`Delta::encode`] and its frame take at most.
    pub fn encoded_len_max(&self) -> usize {
        let entry =
            |e: &DeltaEntry| 10 + 3 + e.key.len() + 1 + 10 + e.body.as_ref().map_or(0, |b| b.len());
        4 + 8 + 4 * 10 + self.entries.iter().map(entry).sum::<usize>()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.node.to_be_bytes());
        put_varint(out, self.generation);
        put_varint(out, self.base);
        put_varint(out, self.upto);
        put_varint(out, self.gc);
        for entry in &self.entries {
            put_varint(out, entry.seq);
            put_bytes(out, entry.key.as_bytes());
            match &entry.body {
                None => out.push(0),
                Some(body) => {
                    out.push(1);
                    put_bytes(out, body);
                }
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Delta, Malformed> {
        let mut delta = Delta {
            node: r.u64()?,
            generation: r.varint()?,
            base: r.varint()?,
            upto: r.varint()?,
            gc: r.varint()?,
            entries: Vec::new(),
        };
        let mut last = delta.base;
        delta.entries = r.list(|r| {
            let seq = r.varint()?;
            let key = r.text(KEY_MAX)?;
            let body = if r.flag()? { Some(Arc::from(r.counted()?)) } else { None };
            // Strictly rising within (base, upto]: anything else is not a delta that we could have made.
            if seq <= last {
                return Err(Malformed);
            }
            last = seq;
            Ok(DeltaEntry { key: Arc::from(key), seq, body })
        })?;
        if last > delta.upto || delta.upto == Extent::TOMBSTONE || delta.gc > delta.upto {
            return Err(Malformed);
        }
        Ok(delta)
    }
}

impl Extent {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.node.to_be_bytes());
        put_varint(out, self.generation);
        put_varint(out, self.upto);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Extent, Malformed> {
        Ok(Extent { node: r.u64()?, generation: r.varint()?, upto: r.varint()? })
    }
}

/// Takes values off the front of bytes that nobody vouches for.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = tail;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[b]| b)
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// LEB128, in its shortest form only.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
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

    /// A length, then so many bytes.
    pub fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        self.bytes(len)
    }

    pub fn text(&mut self, max: usize) -> Result<&'a str, Malformed> {
        let bytes = self.counted()?;
        if bytes.len() > max {
            return Err(Malformed);
        }
        std::str::from_utf8(bytes).map_err(|_| Malformed)
    }

    pub fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = match self.u8()? {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(Malformed),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// Items until the end. Each item takes at least a byte, so the input bounds the list.
    pub fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let mut list = Vec::new();
        while !self.is_empty() {
            list.push(item(self)?);
        }
        Ok(list)
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

/// Appends kind, length and content.
pub(crate) fn frame(out: &mut Vec<u8>, kind: u8, content: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    content(&mut inner);
    out.push(kind);
    put_bytes(out, &inner);
}

/// Reads a body: fields of (number, length, content).
pub(crate) fn fields(
    body: &[u8],
    mut each: impl FnMut(u8, &mut Reader<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut r = Reader(body);
    while !r.is_empty() {
        let field = r.u8()?;
        each(field, &mut Reader(r.counted()?))?;
    }
    Ok(())
}

/// All that is left of a field, as text of at most `max` bytes.
pub(crate) fn whole_text(r: &mut Reader<'_>, max: usize) -> Result<String, Malformed> {
    let bytes = std::mem::take(&mut r.0);
    if bytes.len() > max {
        return Err(Malformed);
    }
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed)
}

fn put_identity(out: &mut Vec<u8>, node: u64, epoch: u32) {
    out.extend_from_slice(&node.to_be_bytes());
    out.extend_from_slice(&epoch.to_be_bytes());
}

#[cfg(test)]
mod tests;
