//! What of a request decides its shard, and its endpoint under `balance: hash`.
//!
//! Values are taken as they stand, byte for byte: nothing is decoded, trimmed of case or normalised, so that whoever computes a
//! key elsewhere (`evenkeel shards --key`) comes to the same. Of a header that comes more than once the first counts.

use std::borrow::Cow;
use std::net::IpAddr;

use evenkeel_balancer::{Attempt, Wish, key_hash};
use evenkeel_config::policy::{Balance, KeySource, Policy};
use http::header::{COOKIE, HeaderMap, HeaderValue};

/// The hashes of a request's keys, those that its policy asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keys {
    shard: Option<u64>,
    hash: Option<u64>,
}

/// What keys are taken from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The request's path, without the query.
    pub path: &'a str,
    /// Where the caller's connection comes from.
    pub caller: IpAddr,
    /// The name of the calling host.
    pub host: &'a str,
}

impl Keys {
    /// The keys of a request under a policy.
    pub fn of(policy: &Policy, request: Source<'_>) -> Keys {
        // A request without the key is in the shard of those without.
        let shard = policy.shard.key.as_ref();
        let shard = shard.map(|key| key_hash(&request.value(key).unwrap_or_default()));
        let hash = policy.hash.key.as_ref().filter(|_| policy.balance == Balance::Hash);
        let hash = hash.and_then(|key| request.value(key)).map(|value| key_hash(&value));
        Keys { shard, hash }
    }

    /// What an attempt asks of the balancer.
    pub fn wish(self, attempt: Attempt, tried: &[u64]) -> Wish<'_> {
        Wish { attempt, tried, shard: self.shard, hash: self.hash }
    }
}

impl<'a> Source<'a> {
    /// The bytes of a key, if the request has it.
    pub fn value(self, key: &KeySource) -> Option<Cow<'a, [u8]>> {
        match key {
            KeySource::Header(name) => {
                self.headers.get(name.as_str()).map(|value| Cow::Borrowed(value.as_bytes()))
            }
            KeySource::Cookie(name) => self.cookie(name).map(Cow::Borrowed),
            KeySource::Path(segment) => {
                let at = usize::try_from(*segment).ok()?.checked_sub(1)?;
                let segment = self.path.strip_prefix('/')?.split('/').nth(at)?;
                (!segment.is_empty()).then_some(Cow::Borrowed(segment.as_bytes()))
            }
            KeySource::Address => {
                Some(Cow::Owned(self.caller.to_canonical().to_string().into_bytes()))
            }
            KeySource::Identity => Some(Cow::Borrowed(self.host.as_bytes())),
        }
    }

    /// RFC 6265 §4.2: pairs with `; ` between them.
    fn cookie(self, name: &str) -> Option<&'a [u8]> {
        self.headers
            .get_all(COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .flat_map(|pairs| pairs.split(|&byte| byte == b';'))
            .filter_map(|pair| pair.trim_ascii().split_at_checked(name.len()))
            .find_map(|(start, rest)| {
                (start == name.as_bytes()).then(|| rest.strip_prefix(b"=")).flatten()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(
        key: &KeySource,
        path: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Option<String> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
            .collect();
        let source = Source {
            headers: &headers,
            path,
            caller: "::ffff:10.1.2.3".parse().unwrap(),
            host: "host-a",
        };
        source.value(key).map(|value| String::from_utf8(value.into_owned()).unwrap())
    }

    #[test]
    fn each_source_gives_its_bytes_or_nothing() {
        let header = || KeySource::Header("x-tenant".into());
        assert_eq!(value(&header(), "/", &[("x-tenant", " A ")]).as_deref(), Some(" A "));
        assert_eq!(value(&header(), "/", &[]), None);
        let cookies = [("cookie", "a=1; session=x=y;b=2"), ("cookie", "last=z")];
        for (name, expected) in
            [("session", Some("x=y")), ("b", Some("2")), ("last", Some("z")), ("sess", None)]
        {
            let key = KeySource::Cookie(name.into());
            assert_eq!(value(&key, "/", &cookies).as_deref(), expected, "{name}");
        }
        for (segment, path, expected) in [
            (1, "/users/7/orders", Some("users")),
            (2, "/users/7/orders", Some("7")),
            (4, "/users/7/orders", None),
            (1, "/", None),
            (2, "/users//7", None),
            (1, "*", None),
        ] {
            let key = KeySource::Path(segment);
            assert_eq!(value(&key, path, &[]).as_deref(), expected, "{segment} of {path}");
        }
        assert_eq!(value(&KeySource::Address, "/", &[]).as_deref(), Some("10.1.2.3"));
        assert_eq!(value(&KeySource::Identity, "/", &[]).as_deref(), Some("host-a"));
    }

    #[test]
    fn keys_are_computed_only_where_the_policy_asks_for_them() {
        let headers = HeaderMap::new();
        let source =
            Source { headers: &headers, path: "/", caller: [127, 0, 0, 1].into(), host: "host-a" };
        let mut policy = Policy::default();
        policy.hash.key = Some(KeySource::Identity);
        let none = Keys::of(&policy, source);
        assert_eq!((none.shard, none.hash), (None, None), "p2c");
        policy.balance = Balance::Hash;
        policy.shard.key = Some(KeySource::Header("x-tenant".into()));
        let keys = Keys::of(&policy, source);
        assert_eq!(keys.shard, Some(key_hash(b"")), "all without a key share a shard");
        assert_eq!(keys.hash, Some(key_hash(b"host-a")));
    }
}
