//! The hash of a key: what of a request decides its shard, or its endpoint under `balance: hash`.
//!
//! All hosts must send one key to the same endpoints, whatever their version: so the function is written out here and never
//! changes, and known answers hold it. FNV-1a (draft-eastlake-fnv) reads the bytes, and the finaliser of SplitMix64 spreads what
//! it leaves in the low bits. Not a default hasher, which differs from process to process; not a keyed one, because
//! hosts share no secret for it: who may choose keys can choose them to collide, and gains nothing over sending the same key twice.

/// The hash of a key's bytes; the same on every host and in every version.
#[must_use]
pub fn key_hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(FNV_OFFSET, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
    scramble(fnv)
}

/// The finaliser of SplitMix64: every bit of the input changes every bit of the output.
pub(crate) fn scramble(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // FNV-1a's own answers, scrambled.
        for (text, fnv) in [
            ("", 0xCBF2_9CE4_8422_2325),
            ("a", 0xAF63_DC4C_8601_EC8C),
            ("foobar", 0x8594_4171_F739_67E8),
        ] {
            assert_eq!(key_hash(text.as_bytes()), scramble(fnv), "{text:?}");
        }
        // Ours: a host that answers otherwise sends tenants to other shards than all others.
        assert_eq!(key_hash(b""), 0xF52A_15E9_A9B5_E89B);
        assert_eq!(key_hash(b"tenant-1"), 0x82B9_4B9E_8ABE_94CD);
        assert_eq!(key_hash(b"tenant-2"), 0x71B8_3683_2E38_F050);
    }
}
