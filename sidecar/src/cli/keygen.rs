//! `evenkeel keygen`: a new gossip key.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::rand::{GetRandomFlags, getrandom};

/// 32 random bytes from the kernel, in base64, as `mesh.gossip.keys` takes them.
///
/// # Errors
/// When the kernel gives no randomness.
pub fn key() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty())
        .context("the kernel gives no random bytes")?;
    // Up to 256 bytes come whole or not at all (getrandom(2)); a short key must not look like a good one.
    anyhow::ensure!(filled == bytes.len(), "the kernel gave only {filled} random bytes");
    Ok(STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_32_bytes_and_differ() {
        let (one, two) = (key().unwrap(), key().unwrap());
        assert_eq!(STANDARD.decode(&one).unwrap().len(), 32);
        assert_ne!(one, two);
    }
}
