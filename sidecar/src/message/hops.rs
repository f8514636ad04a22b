//! How often a request has passed hosts of ours, and the mark by which it is told.
//!
//! Every message that leaves us for an application says so in `Via` (RFC 9110 §7.6.3), with the version in which it came
//! to us. The way from one host of the mesh to another counts as one proxy: who takes the message from an application
//! adds the mark, requests at the calling host and responses at the receiving one.
//!
//! One mark of ours is no loop. An application that is itself a gateway hands `Via` on with the request to the next
//! service, and must be able to. But a service whose registered address is a listener of ours, anywhere in the mesh, would send one request
//! round and round: past [`HOPS_MAX`] it is refused. Gateways that drop `Via` mostly pass names that they do not know, so
//! the count also travels in a field of its own, in which a caller can only overstate it.
//!
//! Outside the mesh there are no gateways of ours to pass: a request that already went out once (`evenkeel` alone, not
//! `evenkeel-mesh`) and is to go out again has come back, and is refused at once.

use http::Version;
use http::header::{HeaderMap, HeaderValue, VIA};

use super::headers::HOPS;

/// The proxies of ours that a request passed before it came here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hops {
    /// Their number.
    pub count: usize,
    /// One of them sent it out of the mesh.
    pub went_outside: bool,
    /// It came to the last of them in HTTP/2.
    pub came_in_http2: bool,
}

impl Hops {
    /// Whether the request has been going round.
    pub fn too_many(self) -> bool {
        self.count >= HOPS_MAX
    }

    /// The number as the next host of ours is told it, with this one counted in; there is none for the first.
    pub fn value(self) -> HeaderValue {
        const NUMBERS: [&str; HOPS_MAX] =
            ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];
        HeaderValue::from_static(NUMBERS[self.count.min(HOPS_MAX - 1)])
    }
}

/// Which of our marks a message leaves with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViaMark {
    /// On its way to or from a service.
    Mesh,
    /// On its way out of the mesh.
    Outside,
}

/// Reads from a request's head which proxies of ours it has passed.
pub fn passed(headers: &HeaderMap) -> Hops {
    let mut hops = Hops::default();
    for line in headers.get_all(VIA) {
        for_each_member(line.as_bytes(), |member| {
            let mut words = member.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            let (came_in, by) = (words.next(), words.next().unwrap_or_default());
            let outside = by.eq_ignore_ascii_case(OUTSIDE.as_bytes());
            hops.went_outside |= outside;
            if outside || by.eq_ignore_ascii_case(MESH.as_bytes()) {
                hops.count += 1;
                hops.came_in_http2 = came_in == Some(b"2");
            }
        });
    }
    let told = headers.get(HOPS).and_then(|value| value.to_str().ok()?.parse().ok());
    hops.count = hops.count.max(told.unwrap_or(0));
    hops
}

/// Adds our mark to a message that came in this version.
pub fn mark(headers: &mut HeaderMap, came_in: Version, mark: ViaMark) {
    let value = match (mark, came_in) {
        (ViaMark::Mesh, Version::HTTP_10) => "1.0 evenkeel-mesh",
        (ViaMark::Mesh, Version::HTTP_2) => "2 evenkeel-mesh",
        (ViaMark::Mesh, _) => "1.1 evenkeel-mesh",
        (ViaMark::Outside, Version::HTTP_10) => "1.0 evenkeel",
        (ViaMark::Outside, Version::HTTP_2) => "2 evenkeel",
        (ViaMark::Outside, _) => "1.1 evenkeel",
    };
    headers.append(VIA, HeaderValue::from_static(value));
}

/// The members of a list whose comments, in parentheses that nest, may hold commas themselves.
fn for_each_member(list: &[u8], mut see: impl FnMut(&[u8])) {
    let (mut depth, mut escaped, mut from) = (0usize, false, 0);
    for (at, &byte) in list.iter().enumerate() {
        match byte {
            _ if std::mem::take(&mut escaped) => {}
            b'\\' if depth > 0 => escaped = true,
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                see(&list[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    see(&list[from..]);
}

/// More proxies of ours than any chain of services has on a request's way.
pub const HOPS_MAX: usize = 16;
const MESH: &str = "evenkeel-mesh";
const OUTSIDE: &str = "evenkeel";

#[cfg(test)]
mod tests {
    use super::super::headers::tests::map;
    use super::*;

    fn hops(lines: &[&str]) -> (usize, bool) {
        let fields: Vec<_> = lines.iter().map(|line| ("via", *line)).collect();
        let Hops { count, went_outside, .. } = passed(&map(&fields));
        (count, went_outside)
    }

    #[test]
    fn our_marks_are_counted_wherever_they_stand() {
        for (lines, expected) in [
            (&[][..], (0, false)),
            (&["1.1 varnish"], (0, false)),
            (&["1.1 evenkeel"], (1, true)),
            (&["1.0 a, 1.1 evenkeel"], (1, true)),
            (&["1.0 a", "HTTP/1.1 Evenkeel (x), 1.1 b"], (1, true)),
            (&["1.1 evenkeel-mesh,2 evenkeel-mesh", "1.0\tevenkeel-mesh"], (3, false)),
            (&["1.1 evenkeel-mesh, 1.1 evenkeel"], (2, true)),
            (&["1.1 a (from 1.1 b, 1.1 evenkeel)"], (0, false)),
            (&["1.1 a (\\), 1.1 evenkeel)"], (0, false)),
            (&["1.1 a ((x), 1.1 evenkeel) , 1.1 evenkeel-mesh"], (1, false)),
            (&["1.1 myevenkeel, 1.1 evenkeel.example, evenkeel"], (0, false)),
            (&["", ",,", "("], (0, false)),
        ] {
            assert_eq!(hops(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn the_count_of_our_own_field_can_only_add() {
        let of =
            |told: &str| passed(&map(&[("via", "1.1 evenkeel-mesh"), ("evenkeel-hops", told)]));
        assert_eq!((of("7").count, of("0").count, of("x").count), (7, 1, 1));
        assert!(of("16").too_many() && of("99999").too_many() && !of("15").too_many());
        assert!(!of("99999999999999999999999").too_many(), "what cannot be read says nothing");
    }

    #[test]
    fn each_hop_adds_one_and_says_how_the_message_came() {
        let mut headers = HeaderMap::new();
        for came_in in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            mark(&mut headers, came_in, ViaMark::Mesh);
        }
        mark(&mut headers, Version::HTTP_2, ViaMark::Outside);
        let marks: Vec<_> = headers.get_all(VIA).iter().collect();
        assert_eq!(
            marks,
            ["1.0 evenkeel-mesh", "1.1 evenkeel-mesh", "2 evenkeel-mesh", "2 evenkeel"]
        );
        let mut hops = passed(&headers);
        assert_eq!((hops.count, hops.value()), (4, HeaderValue::from_static("5")));
        hops.count = 1000;
        assert_eq!(hops.value(), "16");
    }
}
