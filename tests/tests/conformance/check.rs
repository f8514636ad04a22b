//! What a row demands of what was seen, each demand a value that can be listed and shown.

use crate::conformance::caller::Heard;
use crate::conformance::message::{End, Message, latin1, values};
use crate::conformance::script::Names;

/// What must have reached the backend.
#[derive(Debug, Clone, Copy)]
pub enum Arrives {
    /// One whole request, of which all of this is true.
    Once(&'static [Check]),
    /// Nothing, not even a head.
    Nothing,
    /// Nothing whole: a head and a part of the content may have.
    Unfinished,
    /// It does not matter.
    Anything,
}

/// A demand on one message. Text may name the placeholders of [`crate::conformance::script`].
#[derive(Debug, Clone, Copy)]
pub enum Check {
    /// The request's method.
    Method(&'static str),
    /// The request's target, as it is written.
    Target(&'static str),
    /// `Host`, or `:authority`.
    Authority(&'static str),
    /// One of the values of this field is this.
    Has(&'static str, &'static str),
    /// One of the values of this field contains this.
    Contains(&'static str, &'static str),
    /// The field is there once, with this value.
    Only(&'static str, &'static str),
    /// The field is there so often.
    Count(&'static str, usize),
    /// The field is not there.
    Lacks(&'static str),
    /// The content.
    Body(&'static str),
    /// The trailer section has this field with this value.
    Trailer(&'static str, &'static str),
    /// The trailer section does not have this field.
    NoTrailer(&'static str),
    /// The final response's status is one of these, and the response is whole.
    Status(&'static [u16]),
    /// The interim responses have exactly these statuses.
    Interim(&'static [u16]),
    /// The response does not look whole: it ends early, or is a 502 or a 504 instead.
    Broken,
    /// The request was refused: a whole 4xx or 501, or an error of the stream or the connection before any response.
    Refused,
    /// The proxy closes the connection behind the response, and nothing else comes on it.
    Closed,
    /// So many responses came.
    Answers(usize),
    /// The demand is on the response of this number, from 0.
    Of(usize, &'static Check),
}

impl Arrives {
    /// What is wrong with what reached the backend.
    pub fn faults(&self, arrivals: &[Message], names: &Names) -> Vec<String> {
        let (count, checks) = match *self {
            Arrives::Once(checks) => (1, checks),
            Arrives::Nothing => (0, &[][..]),
            Arrives::Unfinished => {
                let whole = arrivals.iter().filter(|message| message.is_complete()).count();
                return (whole > 0)
                    .then(|| format!("{whole} whole requests arrived"))
                    .into_iter()
                    .collect();
            }
            Arrives::Anything => return Vec::new(),
        };
        let mut faults = Vec::new();
        if arrivals.len() != count {
            faults.push(format!("{} requests arrived instead of {count}", arrivals.len()));
        }
        for message in arrivals {
            if !message.is_complete() {
                faults.push("the request did not arrive whole".into());
            }
            faults.extend(breaches(message));
            faults.extend(checks.iter().filter_map(|check| fault_of(message, check, names)));
        }
        faults
    }
}

/// What no response may have, whatever the row is about.
pub fn breaches_of_heard(heard: &Heard) -> Vec<String> {
    let answers = || heard.answers.iter().filter(|answer| answer.status != 0);
    let mut faults: Vec<String> = answers().flat_map(breaches).collect();
    if answers().any(|answer| latin1(&answer.body).contains(CREDENTIALS)) {
        faults.push("a response repeats the credentials of a target (RFC 9110 §4.2.4)".into());
    }
    faults
}

/// What is wrong with what the caller was told.
pub fn faults_of_heard(heard: &Heard, checks: &[Check], names: &Names) -> Vec<String> {
    let mut faults = Vec::new();
    if !heard.surplus.is_empty() {
        faults.push(format!("behind the response came {:?}", latin1(&heard.surplus)));
    }
    faults.extend(checks.iter().filter_map(|check| fault_of_heard(heard, check, names)));
    faults
}

fn fault_of_heard(heard: &Heard, check: &Check, names: &Names) -> Option<String> {
    let (answer, check) = match check {
        Check::Of(number, check) => (heard.answers.get(*number), *check),
        check => (heard.answers.first(), check),
    };
    let nothing = Message::default();
    let answer = answer.unwrap_or(&nothing);
    let statuses = || heard.interim.iter().map(|interim| interim.status);
    let holds = match check {
        Check::Interim(expected) => statuses().eq(expected.iter().copied()),
        Check::Closed => heard.closed,
        Check::Answers(count) => heard.answers.len() == *count,
        Check::Status(allowed) => allowed.contains(&answer.status) && answer.is_complete(),
        Check::Broken => {
            matches!(answer.status, 502 | 504)
                || answer.end.is_some() && !answer.is_complete()
                || heard.answers.is_empty() && heard.closed
        }
        Check::Refused => match &answer.end {
            Some(End::Complete) => matches!(answer.status, 400..=499 | 501),
            Some(End::StreamReset(_) | End::GoAway(_) | End::Closed) => answer.status == 0,
            _ => heard.answers.is_empty() && heard.closed,
        },
        check => return fault_of(answer, check, names),
    };
    (!holds).then(|| format!("the caller's side: not {check:?}"))
}

fn fault_of(message: &Message, check: &Check, names: &Names) -> Option<String> {
    let fill = |text: &str| names.fill(text);
    let holds = match *check {
        Check::Method(method) => message.method == method,
        Check::Target(target) => message.target == fill(target),
        Check::Authority(authority) => message.authority == fill(authority),
        Check::Has(name, value) => message.values(name).contains(&fill(value).as_str()),
        Check::Contains(name, part) => {
            message.values(name).iter().any(|value| value.contains(&fill(part)))
        }
        Check::Only(name, value) => message.values(name) == [fill(value)],
        Check::Count(name, count) => message.values(name).len() == count,
        Check::Lacks(name) => message.values(name).is_empty(),
        Check::Body(body) => message.body == fill(body).as_bytes(),
        Check::Trailer(name, value) => values(&message.trailers, name) == [fill(value)],
        Check::NoTrailer(name) => values(&message.trailers, name).is_empty(),
        _ => false,
    };
    (!holds).then(|| format!("not {check:?}"))
}

/// What no message may have once it has passed the proxy, whatever the row is about.
fn breaches(message: &Message) -> Vec<String> {
    let mut breaches = Vec::new();
    for (name, value) in &message.fields {
        let of_the_hop = HOP_BY_HOP.contains(&name.as_str());
        // A connection may say of itself whether it lasts, and that `te` ends with it.
        let options = ["close", "keep-alive", "te"];
        let says_more = name == "connection" && !options.contains(&value.to_lowercase().as_str());
        if of_the_hop || says_more {
            breaches.push(format!("hop-by-hop passed (RFC 9110 §7.6.1): {name}: {value}"));
        }
        if is_of_hosts(name) {
            breaches.push(format!("a header between hosts passed: {name}: {value}"));
        }
    }
    for (name, value) in &message.trailers {
        if NEVER_TRAILERS.contains(&name.as_str())
            || name.starts_with("evenkeel-")
            || name.starts_with(':')
        {
            breaches.push(format!("as a trailer passed (RFC 9110 §6.5.1): {name}: {value}"));
        }
    }
    if let Some(End::Malformed(what)) = &message.end {
        breaches.push(format!("malformed: {what}"));
    }
    breaches
}

/// Whether only hosts may say this to each other. Some names are for applications too: what is left of the time,
/// how a request went, and how many hosts it has passed, which an application that is a proxy itself hands on.
fn is_of_hosts(name: &str) -> bool {
    let of_applications = ["evenkeel-timeout", "evenkeel-debug", "evenkeel-hops"];
    name.starts_with("evenkeel-") && !of_applications.contains(&name)
}

/// What rows write where a target has a user and a password; no response and no log may repeat it.
pub const CREDENTIALS: &str = "user:secret";

/// Fields that belong to one connection (RFC 9110 §7.6.1), apart from `connection` and `transfer-encoding`, which
/// the next hop may have of its own.
const HOP_BY_HOP: &[&str] =
    &["keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate"];

/// Fields that frame, route, authenticate or say how the content is to be read (RFC 9110 §6.5.1).
const NEVER_TRAILERS: &[&str] = &[
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
