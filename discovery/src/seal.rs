//! The envelope that every datagram and every TCP frame travels in, from the first version on.
//!
//! ```text
//! "EVKL" version channel  mesh  key id  sender  salt  counter | body | tag
//!   4       1       1      4      4       8      16      8             16
//! ```
//!
//! With keys the body is sealed by ChaCha20-Poly1305 (RFC 8439) under a sub-key
//! HKDF-SHA256 (RFC 5869) of (key, sender ‖ salt), the counter as nonce; header, channel, mesh name and, in a
//! response, the request it answers are the associated data. Not random nonces under the key itself: 96 random bits
//! wear out within hours at ten thousand hosts; a salt drawn at each start makes a counter safe. Without keys the
//! tag is a CRC-32 of the same bytes, against corruption, not against malice.
//!
//! Opening an envelope proves who sealed it, not when: replays are the business of [`crate::session`].

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};

use crate::wire::Reader;

/// What is drawn at random at each start.
pub(crate) type Salt = [u8; 16];

const MAGIC: [u8; 4] = *b"EVKL";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 4 + 1 + 1 + 4 + 4 + 8 + 16 + 8;
const TAG_LEN: usize = 16;
/// What an envelope adds to its body.
pub(crate) const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// What an envelope travels on; one made for one channel does not open on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Datagram = 0,
    Request = 1,
    Response = 2,
    ScoutQuestion = 3,
    ScoutAnswer = 4,
}

/// Why an envelope was refused. The peer's or the network's fault; no state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Shorter than an envelope, or longer than allowed.
    Length,
    /// Not ours.
    Magic,
    /// Of a later protocol.
    Version,
    /// Of another mesh.
    ForeignMesh,
    /// Sealed with a key that we do not have, or not sealed where we have keys, or the reverse.
    UnknownKey,
    /// The seal does not fit: wrong key, tampered, or for another channel.
    Seal,
    /// The checksum does not fit.
    Checksum,
}

/// Who sealed an envelope, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub channel: Channel,
    pub sender: u64,
    pub salt: Salt,
    pub counter: u64,
    key_id: [u8; 4],
}

impl Header {
    /// What a response is bound to.
    pub fn binding(&self) -> [u8; 32] {
        let mut binding = [0; 32];
        binding[..8].copy_from_slice(&self.sender.to_be_bytes());
        binding[8..24].copy_from_slice(&self.salt);
        binding[24..].copy_from_slice(&self.counter.to_be_bytes());
        binding
    }
}

/// Seals what this host sends and opens what others sent.
pub(crate) struct Sealer {
    mesh: String,
    mesh_hash: [u8; 4],
    keys: Vec<Key>,
    sender: u64,
    salt: Salt,
    counter: u64,
    own: Option<SubKey>,
}

struct Key {
    id: [u8; 4],
    secret: [u8; 32],
}

/// The cipher for one sender's salt under one key; deriving it costs more than using it, so sessions keep it.
#[derive(Clone)]
pub(crate) struct SubKey {
    key_id: [u8; 4],
    cipher: ChaCha20Poly1305,
}

impl fmt::Debug for SubKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubKey(redacted)")
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("sender", &self.sender)
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// The first key seals, all open.
    pub fn new(mesh: &str, keys: &[[u8; 32]], sender: u64, salt: Salt) -> Self {
        let keys: Vec<Key> =
            keys.iter().map(|secret| Key { id: key_id(secret), secret: *secret }).collect();
        let own = keys.first().map(|key| SubKey::derive(key, sender, salt));
        Sealer {
            mesh: mesh.to_owned(),
            mesh_hash: prefix(b"evenkeel mesh ", mesh.as_bytes()),
            keys,
            sender,
            salt,
            counter: 0,
            own,
        }
    }

    /// Continues as another sender; the salt must be a new one.
    pub fn rename(&mut self, sender: u64, salt: Salt) {
        self.sender = sender;
        self.salt = salt;
        self.counter = 0;
        self.own = self.keys.first().map(|key| SubKey::derive(key, sender, salt));
    }

    /// Seals a body; `binding` is empty except in a response. Returns the header's [`Header::binding`] too.
    pub fn seal(&mut self, channel: Channel, binding: &[u8], body: &[u8]) -> (Vec<u8>, [u8; 32]) {
        self.counter += 1;
        let header = Header {
            channel,
            sender: self.sender,
            salt: self.salt,
            counter: self.counter,
            key_id: self.own.as_ref().map_or([0; 4], |own| own.key_id),
        };
        let mut out = Vec::with_capacity(OVERHEAD + body.len());
        self.put_header(&header, &mut out);
        let associated = self.associated(&out, binding);
        match &self.own {
            Some(own) => {
                let payload = Payload { msg: body, aad: &associated };
                let sealed = own
                    .cipher
                    .encrypt(&nonce(header.counter), payload)
                    .expect("a body is far below 256 GiB");
                out.extend_from_slice(&sealed);
            }
            None => {
                out.extend_from_slice(body);
                out.extend_from_slice(&checksum(&associated, body));
            }
        }
        (out, header.binding())
    }

    /// Reads who sealed it, without believing it yet.
    pub fn header(&self, envelope: &[u8]) -> Result<Header, Refused> {
        let mut r = Reader(envelope);
        let magic: [u8; 4] = r.array().map_err(|_| Refused::Length)?;
        if magic != MAGIC {
            return Err(Refused::Magic);
        }
        if envelope.len() < OVERHEAD {
            return Err(Refused::Length);
        }
        let mut read = || -> Result<Header, Refused> {
            let length = |_| Refused::Length;
            if r.u8().map_err(length)? != VERSION {
                return Err(Refused::Version);
            }
            let channel = match r.u8().map_err(length)? {
                0 => Channel::Datagram,
                1 => Channel::Request,
                2 => Channel::Response,
                3 => Channel::ScoutQuestion,
                4 => Channel::ScoutAnswer,
                _ => return Err(Refused::Version),
            };
            let mesh: [u8; 4] = r.array().map_err(length)?;
            if mesh != self.mesh_hash {
                return Err(Refused::ForeignMesh);
            }
            Ok(Header {
                channel,
                key_id: r.array().map_err(length)?,
                sender: r.u64().map_err(length)?,
                salt: r.array().map_err(length)?,
                counter: r.u64().map_err(length)?,
            })
        };
        read()
    }

    /// Opens an envelope whose header was read by [`Sealer::header`], with the sub-key of an earlier one if it fits.
    /// Returns the body, and the sub-key to keep.
    pub fn open(
        &self,
        header: &Header,
        channel: Channel,
        binding: &[u8],
        envelope: &[u8],
        kept: Option<&SubKey>,
    ) -> Result<(Vec<u8>, Option<SubKey>), Refused> {
        if header.channel != channel {
            return Err(Refused::Seal);
        }
        let (head, sealed) = envelope.split_at_checked(HEADER_LEN).ok_or(Refused::Length)?;
        let associated = self.associated(head, binding);
        if self.keys.is_empty() {
            if header.key_id != [0; 4] {
                return Err(Refused::UnknownKey);
            }
            let (body, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(Refused::Length)?;
            if *tag != checksum(&associated, body) {
                return Err(Refused::Checksum);
            }
            return Ok((body.to_vec(), None));
        }
        let sub_key = match kept.filter(|kept| kept.key_id == header.key_id) {
            Some(kept) => kept.clone(),
            None => {
                let key = self
                    .keys
                    .iter()
                    .find(|key| key.id == header.key_id)
                    .ok_or(Refused::UnknownKey)?;
                SubKey::derive(key, header.sender, header.salt)
            }
        };
        let payload = Payload { msg: sealed, aad: &associated };
        let body =
            sub_key.cipher.decrypt(&nonce(header.counter), payload).map_err(|_| Refused::Seal)?;
        Ok((body, Some(sub_key)))
    }

    fn put_header(&self, header: &Header, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.push(header.channel as u8);
        out.extend_from_slice(&self.mesh_hash);
        out.extend_from_slice(&header.key_id);
        out.extend_from_slice(&header.sender.to_be_bytes());
        out.extend_from_slice(&header.salt);
        out.extend_from_slice(&header.counter.to_be_bytes());
    }

    fn associated(&self, header: &[u8], binding: &[u8]) -> Vec<u8> {
        [header, binding, self.mesh.as_bytes()].concat()
    }
}

impl SubKey {
    fn derive(key: &Key, sender: u64, salt: Salt) -> SubKey {
        let mut info = [0; 24];
        info[..8].copy_from_slice(&sender.to_be_bytes());
        info[8..].copy_from_slice(&salt);
        let mut secret = [0; 32];
        Hkdf::<Sha256>::new(Some(b"evenkeel envelope 1"), &key.secret)
            .expand(&info, &mut secret)
            .expect("32 bytes are within HKDF's limit");
        SubKey { key_id: key.id, cipher: ChaCha20Poly1305::new(&secret.into()) }
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

fn checksum(associated: &[u8], body: &[u8]) -> [u8; TAG_LEN] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(associated);
    crc.update(body);
    let mut tag = [0; TAG_LEN];
    tag[..4].copy_from_slice(&crc.finalize().to_be_bytes());
    tag
}

/// Names a key without telling it: never 0, which means "no key".
fn key_id(secret: &[u8; 32]) -> [u8; 4] {
    let mut id = prefix(b"evenkeel key id ", secret);
    id[0] |= 1;
    id
}

fn prefix(label: &[u8], bytes: &[u8]) -> [u8; 4] {
    let hash = Sha256::new().chain_update(label).chain_update(bytes).finalize();
    [hash[0], hash[1], hash[2], hash[3]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const OTHER: [u8; 32] = [8; 32];

    fn open(by: &Sealer, channel: Channel, envelope: &[u8]) -> Result<Vec<u8>, Refused> {
        let header = by.header(envelope)?;
        by.open(&header, channel, &[], envelope, None).map(|(body, _)| body)
    }

    #[test]
    fn table_of_who_opens_what() {
        let sealer = |mesh: &str, keys: &[[u8; 32]]| Sealer::new(mesh, keys, 1, [1; 16]);
        for (name, from, to, result) in [
            ("same key", sealer("m", &[KEY]), sealer("m", &[KEY]), Ok(b"hello".to_vec())),
            (
                "a later key receives",
                sealer("m", &[KEY]),
                sealer("m", &[OTHER, KEY]),
                Ok(b"hello".to_vec()),
            ),
            ("no keys at all", sealer("m", &[]), sealer("m", &[]), Ok(b"hello".to_vec())),
            ("wrong key", sealer("m", &[OTHER]), sealer("m", &[KEY]), Err(Refused::UnknownKey)),
            ("unsealed to sealed", sealer("m", &[]), sealer("m", &[KEY]), Err(Refused::UnknownKey)),
            ("sealed to unsealed", sealer("m", &[KEY]), sealer("m", &[]), Err(Refused::UnknownKey)),
            ("another mesh", sealer("n", &[KEY]), sealer("m", &[KEY]), Err(Refused::ForeignMesh)),
        ] {
            let mut from = from;
            let (envelope, _) = from.seal(Channel::Datagram, &[], b"hello");
            assert_eq!(open(&to, Channel::Datagram, &envelope), result, "{name}");
        }
    }

    #[test]
    fn a_datagram_is_not_a_request_and_a_response_answers_one_request_only() {
        for keys in [&[KEY][..], &[]] {
            let mut sealer = Sealer::new("m", keys, 1, [1; 16]);
            let (datagram, _) = sealer.seal(Channel::Datagram, &[], b"x");
            assert!(open(&sealer, Channel::Request, &datagram).is_err());
            let mut as_request = datagram.clone();
            as_request[5] = Channel::Request as u8;
            assert!(open(&sealer, Channel::Request, &as_request).is_err());

            let (_, first) = sealer.seal(Channel::Request, &[], b"x");
            let (_, second) = sealer.seal(Channel::Request, &[], b"x");
            let (response, _) = sealer.seal(Channel::Response, &first, b"y");
            let header = sealer.header(&response).unwrap();
            assert!(sealer.open(&header, Channel::Response, &first, &response, None).is_ok());
            assert!(sealer.open(&header, Channel::Response, &second, &response, None).is_err());
        }
    }

    #[test]
    fn the_same_body_never_looks_the_same() {
        let mut sealer = Sealer::new("m", &[KEY], 1, [1; 16]);
        let (a, _) = sealer.seal(Channel::Datagram, &[], b"hello");
        let (b, _) = sealer.seal(Channel::Datagram, &[], b"hello");
        assert_ne!(a[HEADER_LEN..], b[HEADER_LEN..]);
        assert!(!a.windows(5).any(|w| w == b"hello"));
    }

    proptest! {
        #[test]
        fn every_changed_byte_is_noticed(at in any::<prop::sample::Index>(), flip in 1..=255u8, sealed in any::<bool>()) {
            let keys: &[[u8; 32]] = if sealed { &[KEY] } else { &[] };
            let mut sealer = Sealer::new("m", keys, 1, [1; 16]);
            let (mut envelope, _) = sealer.seal(Channel::Datagram, &[], b"a body of some length");
            let at = at.index(envelope.len());
            envelope[at] ^= flip;
            prop_assert!(open(&sealer, Channel::Datagram, &envelope).is_err());
        }

        #[test]
        fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let sealer = Sealer::new("m", &[KEY], 1, [1; 16]);
            prop_assert!(open(&sealer, Channel::Datagram, &bytes).is_err());
        }
    }
}
