//! Every key of the file: one table that the loader, the schema and the operator's documentation share.
//!
//! The loader reads a value only through its row here (`section.rs` looks the row up by name and takes bounds
//! and choices from it), so a key that is accepted is in the schema and the reverse. A key of the design that
//! has no code behind it yet is [`Shape::NotBuilt`]: refused by name, because a key that is accepted and
//! ignored is a promise broken in silence.

use crate::forms;
use crate::ratelimit::{APPLY_MAX, FLOORS_MAX, RESOURCES_MAX};

/// One key of a mapping.
pub(crate) struct Key {
    pub name: &'static str,
    pub shape: Shape,
    /// As JSON; empty: there is none, or `about` says it.
    pub default: &'static str,
    /// One sentence or two, for the schema.
    pub about: &'static str,
}

/// What may be written as a value.
pub(crate) enum Shape {
    /// Text that a YAML tool takes for text; `pattern` for the schema.
    Text { pattern: &'static str },
    /// As `Text`, and what such a tool takes for a number or truth value and writes back as it stands.
    Plain { pattern: &'static str },
    /// `2s`; whether zero makes sense.
    Duration { zero: bool },
    /// `5%`.
    Share,
    /// `64KiB`.
    Size,
    /// `p95` or `20ms`.
    After,
    /// `3x`; or `off`.
    Factor,
    /// `connect`, `"503"`.
    RetryOn,
    /// A whole number, both bounds included.
    Int { min: u64, max: u64 },
    /// Any whole number of 64 bits.
    Signed,
    /// A number with at most three decimal places, both bounds included.
    Decimal { min: u64, max: u64 },
    /// A number from 0 to [`crate::notation::AMOUNT_MAX`] with at most three decimal places.
    Amount,
    /// An amount, or one of these words.
    AmountOr { words: &'static [&'static str] },
    /// `true` or `false`.
    Bool,
    /// `true`, or the key left out.
    True,
    /// One of `built`; those in `later` are refused by name. `false` means `off` where `off` is one of `built`.
    Choice { built: &'static [&'static str], later: &'static [&'static str] },
    /// These keys.
    Map(&'static [Key]),
    /// These keys, or the word that says that there is none of it.
    MapOr { keys: &'static [Key], word: &'static str },
    /// Any keys, `Plain` values.
    Meta { max: usize },
    /// At most `max` of these.
    List { of: &'static Shape, max: usize },
    /// A list, or a mapping with these keys.
    ListOrMap { of: &'static Shape, max: usize, keys: &'static [Key] },
    /// Part of the design, refused by name.
    NotBuilt,
}

const fn key(name: &'static str, shape: Shape, default: &'static str, about: &'static str) -> Key {
    Key { name, shape, default, about }
}

const fn later(name: &'static str) -> Key {
    Key { name, shape: Shape::NotBuilt, default: "", about: "" }
}

/// The file. One row a key, as a table: rustfmt would make ten lines of each.
#[rustfmt::skip]
pub(crate) static ROOT: &[Key] = &[
    key("node", Shape::Map(NODE), "", "Who this host is."),
    key("workers", Shape::Int { min: 1, max: 256 }, "", "Worker threads. Default: the CPU quota, at most 4."),
    key("mesh", Shape::Map(MESH), "", "The mesh this host belongs to."),
    key("services", Shape::List { of: &Shape::Map(SERVICE), max: 1_000 }, "[]", "What this host offers."),
    key("policy", Shape::Map(POLICY), "", "This host's defaults for every upstream."),
    key("upstreams", Shape::List { of: &Shape::Map(UPSTREAM), max: 1_000 }, "[]",
        "Services found otherwise, or this client's own policy for a mesh service."),
    key("outbound", Shape::Map(OUTBOUND), "", "Where applications send requests."),
    key("discovery", Shape::Map(DISCOVERY), "", "Where applications look services up."),
    key("ratelimit", Shape::Map(RATELIMIT), "", "What all hosts share, and which requests draw on it."),
    key("admin", Shape::Map(ADMIN), "", "Where the operator looks."),
    key("limits", Shape::Map(LIMITS), "", "Upper bounds."),
    key("shutdown", Shape::Map(SHUTDOWN), "", "How this host goes away."),
    key("log", Shape::Map(LOG), "", "What is written to the log."),
];

/// What a host publishes of a service that it offers.
#[rustfmt::skip]
pub(crate) static PUBLISHED: &[Key] = &[
    key("policy", Shape::Map(POLICY), "", ""),
    key("routes", Shape::List { of: &Shape::Map(ROUTE), max: 1_000 }, "[]", ""),
];

#[rustfmt::skip]
const NODE: &[Key] = &[
    key("name", Shape::Text { pattern: forms::NODE }, "", "This host's name. Default: the hostname."),
    key("address", Shape::Text { pattern: forms::IP }, "",
        "What other hosts dial. Default: the default route's source address, else 127.0.0.1."),
    key("zone", Shape::Text { pattern: forms::FILLED }, "", "Where this host stands, published with its record."),
    key("data_dir", Shape::Text { pattern: forms::FILE }, "",
        "Keeps the host's identity, members and registrations; \"\" keeps nothing. Default: $STATE_DIRECTORY, \
         else the XDG state directory."),
];

#[rustfmt::skip]
const MESH: &[Key] = &[
    key("name", Shape::Text { pattern: forms::LABEL }, "\"evenkeel\"",
        "Hosts of different meshes ignore each other. Also Consul's datacenter."),
    key("domain", Shape::Text { pattern: forms::DOMAIN }, "\"mesh\"", "The DNS domain answered here."),
    key("join", Shape::List { of: &Shape::Text { pattern: forms::HOST_PORT }, max: 64 }, "[]",
        "The gossip address, host:port, of some other hosts. Names are looked up again at every try."),
    key("gossip", Shape::Map(GOSSIP), "", "Membership and registrations, over UDP and TCP."),
    key("data", Shape::Map(DATA), "", "Requests from other hosts."),
    later("tls"),
    key("insecure", Shape::Bool, "false",
        "Allows addresses other than loopback without keys: whoever reaches them can join."),
    key("bounds", Shape::Map(BOUNDS), "", "The most that published policies and overrides may ask of this host's clients."),
];

#[rustfmt::skip]
const BOUNDS: &[Key] = &[
    key("timeout", Shape::Duration { zero: false }, "\"1h\"", "At most."),
    key("idle_timeout", Shape::Duration { zero: false }, "\"24h\"", "At most."),
    key("repeat", Shape::Map(BOUNDS_REPEAT), "", "Which requests may be sent twice."),
    key("retry", Shape::Map(BOUNDS_RETRY), "", "Attempts in sequence."),
    key("hedge", Shape::Map(BOUNDS_HEDGE), "", "Copies beside the first attempt."),
    key("scout", Shape::Map(BOUNDS_SCOUT), "", "Asking endpoints before they are chosen."),
    key("eject", Shape::Map(BOUNDS_EJECT), "", "Endpoints that are left out for a while."),
    key("circuit", Shape::Map(BOUNDS_CIRCUIT), "", "What is open towards one upstream."),
    key("slow_start", Shape::Duration { zero: true }, "\"10m\"", "At most."),
    key("max_body_buffer", Shape::Size, "\"1MiB\"", "At most."),
];

#[rustfmt::skip]
const BOUNDS_REPEAT: &[Key] = &[
    key("methods", Shape::List { of: &Shape::Text { pattern: forms::METHOD }, max: 32 },
        r#"["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]"#, "Only these."),
];

#[rustfmt::skip]
const BOUNDS_RETRY: &[Key] = &[
    key("max", Shape::Int { min: 0, max: 10 }, "5", "At most."),
    key("budget", Shape::Share, "\"50%\"", "At most."),
];

#[rustfmt::skip]
const BOUNDS_HEDGE: &[Key] = &[
    key("mode", Shape::Choice { built: &["off", "observe", "enforce"], later: &[] }, "\"enforce\"",
        "At most, in the order off, observe, enforce."),
    key("min", Shape::Duration { zero: true }, "\"0s\"", "At least."),
    key("budget", Shape::Share, "\"20%\"", "At most."),
    key("max", Shape::Int { min: 1, max: 5 }, "3", "At most."),
];

#[rustfmt::skip]
const BOUNDS_SCOUT: &[Key] = &[
    key("mode", Shape::Choice { built: &["off", "pool", "before_each"], later: &[] }, "\"before_each\"",
        "At most, in the order off, pool, before_each. With off, balance: scout becomes p2c."),
    key("timeout", Shape::Duration { zero: false }, "\"10ms\"", "At most."),
];

#[rustfmt::skip]
const BOUNDS_EJECT: &[Key] = &[key("max", Shape::Share, "\"100%\"", "At most.")];

#[rustfmt::skip]
const BOUNDS_CIRCUIT: &[Key] = &[
    key("connections", Shape::Int { min: 1, max: 1_000_000 }, "16384", "At most."),
    key("pending", Shape::Int { min: 0, max: 1_000_000 }, "16384", "At most."),
    key("requests", Shape::Int { min: 1, max: 1_000_000 }, "65536", "At most."),
];

#[rustfmt::skip]
const GOSSIP: &[Key] = &[
    key("listen", Shape::Text { pattern: forms::SOCKET }, "", "Default: 0.0.0.0:7111, without keys 127.0.0.1:7111."),
    key("profile", Shape::Choice { built: &["lan"], later: &["wan", "local"] }, "\"lan\"",
        "The timing of probes and gossip."),
    key("keys", Shape::ListOrMap { of: &Shape::Text { pattern: forms::KEY }, max: KEYS_MAX, keys: KEY_FILE }, "[]",
        "Keys made by `evenkeel keygen`: the first sends, all receive. Or {file: …} with one key a line."),
];

#[rustfmt::skip]
const KEY_FILE: &[Key] = &[
    key("file", Shape::Text { pattern: forms::FILE }, "",
        "Required. One key a line, `#` starts a comment. Relative to this file's directory."),
];

#[rustfmt::skip]
const DATA: &[Key] = &[
    key("listen", Shape::Text { pattern: forms::SOCKET }, "", "Default: 0.0.0.0:7110, without keys 127.0.0.1:7110."),
];

#[rustfmt::skip]
const SERVICE: &[Key] = &[
    key("name", Shape::Text { pattern: forms::SERVICE }, "", "Required. name or name.namespace, lower case."),
    key("id", Shape::Text { pattern: forms::ID }, "", "Unique on this host. Default: the name."),
    key("address", Shape::Text { pattern: forms::SOCKET }, "", "Required. The application."),
    key("advertise", Shape::Text { pattern: forms::SOCKET }, "",
        "Where look-ups send those who come without the mesh. Default: `address`, unless that is a loopback \
         address and node.address is not."),
    key("protocol", Shape::Choice { built: &["http", "http2", "grpc"], later: &["tcp"] }, "",
        "What the application speaks. Default: told from the first bytes."),
    key("tags", Shape::List { of: &Shape::Plain { pattern: forms::FILLED }, max: 32 }, "[]", "Shown by look-ups."),
    key("meta", Shape::Meta { max: 64 }, "{}", "Shown by look-ups."),
    key("check", Shape::Map(CHECK), "", "How the application's health is known. Default: always passing."),
    key("scout", Shape::Map(SCOUT), "",
        "How the application itself answers scouts: `http` or `tcp`. Default: its state is told from the progress of what is in flight."),
    later("admission"),
    later("allow"),
    key("policy", Shape::Map(POLICY), "", "Published: what every client of this service does unless it says otherwise."),
    key("routes", Shape::List { of: &Shape::Map(ROUTE), max: 1_000 }, "[]",
        "Published: requests that have a policy of their own; the first match wins."),
];

#[rustfmt::skip]
const CHECK: &[Key] = &[
    key("http", Shape::Text { pattern: forms::PATH }, "", "Passes when a GET of this path answers 2xx."),
    key("https", Shape::Text { pattern: forms::PATH }, "",
        "Passes when a GET of this path over TLS answers 2xx. Requests do not speak TLS to applications: for services that are only looked up."),
    key("tls_skip_verify", Shape::Bool, "false", "`https` takes whatever certificate is shown, instead of one that this host trusts."),
    key("tls_server_name", Shape::Text { pattern: forms::TLS_NAME }, "",
        "The name that `https` asks for and expects in the certificate. Default: the address."),
    key("tcp", Shape::True, "", "Passes when the address accepts a connection."),
    later("grpc"),
    later("ttl"),
    key("interval", Shape::Duration { zero: false }, "\"1s\"", "Between two checks."),
    key("timeout", Shape::Duration { zero: false }, "\"500ms\"", "Of one check."),
    key("rise", Shape::Int { min: 1, max: 100 }, "2", "Successes in a row that make it passing."),
    key("fall", Shape::Int { min: 1, max: 100 }, "2", "Failures in a row that make it critical."),
];

#[rustfmt::skip]
const SCOUT: &[Key] = &[
    key("http", Shape::Text { pattern: forms::PATH }, "", "It answers a GET of this path with 2xx."),
    key("tcp", Shape::Int { min: 1, max: 65_535 }, "", "It answers each byte on this port with a byte."),
];

#[rustfmt::skip]
const UPSTREAM: &[Key] = &[
    key("name", Shape::Text { pattern: forms::SERVICE }, "", "Required. The service's name."),
    key("endpoints", Shape::List { of: &Shape::Text { pattern: forms::SOCKET }, max: 10_000 }, "[]",
        "The address of each endpoint. Empty: the mesh's own instances."),
    key("protocol", Shape::Choice { built: &["http", "http2", "grpc"], later: &["tcp"] }, "",
        "What `endpoints` speak. Default: http."),
    key("scout", Shape::Map(SCOUT), "", "How `endpoints` answer scouts: `http` or `tcp`. Default: they are not scouted."),
    key("policy", Shape::Map(POLICY), "", "For requests to this upstream."),
    key("routes", Shape::List { of: &Shape::Map(ROUTE), max: 1_000 }, "[]",
        "Requests that have a policy of their own; the first match wins."),
];

#[rustfmt::skip]
const ROUTE: &[Key] = &[
    key("match", Shape::Map(MATCH), "", "Required. Which requests: all that is given must match."),
    key("policy", Shape::Map(POLICY), "", "For these requests."),
];

#[rustfmt::skip]
const MATCH: &[Key] = &[
    key("path", Shape::Text { pattern: forms::PATH }, "", "The path: exact, or a prefix when it ends in `*`."),
    key("method", Shape::Text { pattern: forms::METHOD }, "", "The method, upper case."),
];

#[rustfmt::skip]
pub(crate) const POLICY: &[Key] = &[
    key("timeout", Shape::Duration { zero: false }, "\"15s\"", "To the response's head, all attempts together."),
    key("idle_timeout", Shape::Duration { zero: false }, "\"5m\"",
        "Between bytes of a body; and of a tunnel, in which neither side says anything."),
    key("balance", Shape::Choice { built: &["p2c", "least_request", "round_robin", "random", "hash", "scout"], later: &[] }, "\"p2c\"",
        "How an endpoint is chosen."),
    key("hash", Shape::Map(HASH), "", "For balance: hash."),
    key("repeat", Shape::Map(REPEAT), "", "Which requests may be sent twice at all."),
    key("retry", Shape::Map(RETRY), "", "Attempts in sequence."),
    key("hedge", Shape::Map(HEDGE), "", "Copies beside the first attempt."),
    later("tie"),
    key("scout", Shape::Map(POLICY_SCOUT), "", "Asking an endpoint's host how it is, before it gets a request."),
    key("shard", Shape::MapOr { keys: SHARD, word: "none" }, "",
        "Each key's requests go to a few endpoints only. none: to any."),
    key("zone", Shape::Choice { built: &["prefer", "any"], later: &[] }, "\"prefer\"",
        "prefer: endpoints of this host's zone first, as long as they have capacity."),
    key("eject", Shape::Map(EJECT), "", "When an endpoint that errs is left out for a while."),
    key("probation", Shape::MapOr { keys: PROBATION, word: "off" }, "",
        "When an endpoint that is slower than its peers is left out until it is well again."),
    key("panic", Shape::Share, "\"50%\"", "Below this share of usable endpoints all of them are used again."),
    key("circuit", Shape::Map(CIRCUIT), "", "Limits on what is open towards one upstream."),
    key("slow_start", Shape::Duration { zero: true }, "\"10s\"", "A new endpoint's load grows over this time."),
    key("max_body_buffer", Shape::Size, "\"64KiB\"", "Kept of a request's body so that it can be sent again."),
];

#[rustfmt::skip]
const HASH: &[Key] = &[
    key("key", Shape::Text { pattern: forms::KEY_SOURCE }, "\"none\"",
        "What of a request is hashed: header:NAME, cookie:NAME, path:N, address or identity."),
    key("bound", Shape::Decimal { min: 1, max: 100 }, "1.25",
        "An endpoint with more than so many times the mean of requests in flight gets no more."),
];

#[rustfmt::skip]
const SHARD: &[Key] = &[
    key("key", Shape::Text { pattern: forms::KEY_SOURCE }, "\"none\"",
        "What of a request decides its shard: header:NAME, cookie:NAME, path:N, address or identity."),
    key("size", Shape::Int { min: 1, max: 64 }, "4", "Endpoints in a shard."),
    key("fallback", Shape::Choice { built: &["fail", "widen"], later: &[] }, "\"fail\"",
        "What becomes of a request whose shard has no usable endpoint: it fails, or goes to any."),
];

#[rustfmt::skip]
const PROBATION: &[Key] = &[
    key("slower_than", Shape::Factor, "\"3x\"", "How many times as slow as its peers; off: no probation."),
    key("min_requests", Shape::Int { min: 1, max: 1_000_000 }, "50",
        "Recent answers without which an endpoint is not judged."),
];

#[rustfmt::skip]
const REPEAT: &[Key] = &[
    key("methods", Shape::List { of: &Shape::Text { pattern: forms::METHOD }, max: 32 }, r#"["GET", "HEAD", "OPTIONS", "TRACE"]"#,
        "HTTP methods that are safe to repeat."),
    key("grpc", Shape::List { of: &Shape::Text { pattern: forms::GRPC }, max: 256 }, "[]",
        "gRPC methods that are safe to repeat: package.Service/Method, with `*`."),
    key("key_header", Shape::Text { pattern: forms::HEADER }, "\"none\"",
        "A request header that makes a request retryable in sequence, never copied."),
];

#[rustfmt::skip]
const RETRY: &[Key] = &[
    key("max", Shape::Int { min: 0, max: 10 }, "2", "Attempts after the first."),
    key("budget", Shape::Share, "\"20%\"", "Retries as a share of requests, beside a small floor."),
    key("when", Shape::List { of: &Shape::RetryOn, max: 32 }, r#"["connect", "refused", "reset", "503"]"#,
        "What is worth another attempt: connect, refused, reset, or a status."),
];

#[rustfmt::skip]
const HEDGE: &[Key] = &[
    key("mode", Shape::Choice { built: &["off", "observe", "enforce"], later: &[] }, "\"observe\"",
        "observe: count what copies would have done."),
    key("after", Shape::After, "\"p95\"",
        "How long to wait before a copy: a percentile of recent times to the response's head, or a duration."),
    key("min", Shape::Duration { zero: true }, "\"1ms\"", "Never a copy sooner than this."),
    key("budget", Shape::Share, "\"5%\"", "Copies as a share of requests."),
    key("max", Shape::Int { min: 1, max: 5 }, "2", "Copies beside the first attempt."),
];

#[rustfmt::skip]
const POLICY_SCOUT: &[Key] = &[
    key("mode", Shape::Choice { built: &["off", "pool", "before_each"], later: &[] }, "\"off\"",
        "pool: ask a few beside each request. before_each: ask the chosen one first and wait for its answer."),
    key("timeout", Shape::Duration { zero: false }, "\"1ms\"", "An endpoint that has not answered by then is avoided."),
];

#[rustfmt::skip]
const EJECT: &[Key] = &[
    key("consecutive", Shape::Int { min: 0, max: 1_000 }, "5", "Failures in a row; 0 switches ejection off."),
    key("base", Shape::Duration { zero: false }, "\"10s\"", "The first time out, doubled each time in a row."),
    key("max", Shape::Share, "\"50%\"", "At most this share of the endpoints at once."),
];

#[rustfmt::skip]
const CIRCUIT: &[Key] = &[
    key("connections", Shape::Int { min: 1, max: 1_000_000 }, "1024", "Open connections."),
    key("pending", Shape::Int { min: 0, max: 1_000_000 }, "1024", "Requests waiting for a connection."),
    key("requests", Shape::Int { min: 1, max: 1_000_000 }, "4096", "Requests in flight."),
];

#[rustfmt::skip]
const OUTBOUND: &[Key] = &[
    key("listen", Shape::Text { pattern: forms::SOCKET }, "\"127.0.0.1:7080\"", "The HTTP proxy."),
    key("passthrough", Shape::Bool, "true", "Requests for names outside the mesh pass through."),
    key("listeners", Shape::List { of: &Shape::Map(LISTENER), max: 256 }, "[]",
        "Listeners whose every request goes to one service."),
    later("virtual_range"),
];

#[rustfmt::skip]
const LISTENER: &[Key] = &[
    key("listen", Shape::Text { pattern: forms::SOCKET }, "", "Required. Where to listen."),
    key("service", Shape::Text { pattern: forms::SERVICE }, "", "Required. Where its requests go."),
];

#[rustfmt::skip]
const DISCOVERY: &[Key] = &[
    key("http", Shape::Text { pattern: forms::SOCKET }, "\"127.0.0.1:8500\"", "Consul's HTTP API."),
    key("dns", Shape::Text { pattern: forms::SOCKET }, "\"127.0.0.1:8600\"", "DNS over UDP and TCP."),
    later("recursors"),
];

#[rustfmt::skip]
const RATELIMIT: &[Key] = &[
    key("listen", Shape::Text { pattern: forms::SOCKET }, "\"127.0.0.1:7113\"", "Leases for Doorman clients, gRPC."),
    key("absent", Shape::Duration { zero: false }, "\"1m\"",
        "A host that was not heard of for so long, and did not say goodbye, loses its part of every resource to the others."),
    key("resources", Shape::List { of: &Shape::Map(RESOURCE), max: RESOURCES_MAX }, "[]",
        "What is shared. Of an id counts the first that names it, else the first whose glob matches it."),
    key("apply", Shape::List { of: &Shape::Map(APPLY), max: APPLY_MAX }, "[]", "Which requests draw on which resource."),
];

#[rustfmt::skip]
const RESOURCE: &[Key] = &[
    key("match", Shape::Text { pattern: forms::FILLED }, "", "Required. An id, or a glob: `*` and `?` do not cross `/`."),
    key("capacity", Shape::Amount, "", "Required. How much there is, over all hosts."),
    key("per", Shape::Duration { zero: false }, "", "The capacity is so much in this time. Default: it is held, so many at once."),
    key("burst", Shape::Amount, "", "So many may come at once beyond the rate, over all hosts. Default: a tenth of the capacity."),
    key("algorithm", Shape::Choice { built: &["none", "static", "proportional_share", "fair_share"], later: &[] }, "\"fair_share\"",
        "How it is shared."),
    key("lease", Shape::Duration { zero: false }, "\"20s\"", "How long a Doorman client holds its lease, 1s to 1h."),
    key("refresh", Shape::Duration { zero: false }, "\"5s\"", "How often it comes back, 1s to the lease."),
    key("learning", Shape::Duration { zero: true }, "",
        "A host that has just started believes for so long what such clients say they hold. Default: the lease."),
    key("safe", Shape::AmountOr { words: &["share", "unlimited"] }, "\"share\"",
        "What may be used by those who reach nobody: so much each, or share, or unlimited."),
    key("floors", Shape::List { of: &Shape::Map(FLOOR), max: FLOORS_MAX }, "[]", "What priorities are sure of."),
];

#[rustfmt::skip]
const FLOOR: &[Key] = &[
    key("priority", Shape::Signed, "", "Required. This priority and those above it, up to that of the next floor. Larger is more important."),
    key("share", Shape::Share, "", "Required. Of the capacity; all floors together at most 100%."),
];

#[rustfmt::skip]
const APPLY: &[Key] = &[
    key("direction", Shape::Choice { built: &["outbound", "inbound"], later: &[] }, "",
        "Required. outbound: at the caller's host. inbound: at the application's."),
    key("service", Shape::Text { pattern: forms::SERVICE }, "", "Required. Requests to this service."),
    key("path", Shape::Text { pattern: forms::PATH }, "", "The path: exact, or a prefix when it ends in `*`."),
    key("method", Shape::Text { pattern: forms::METHOD }, "", "The method, upper case."),
    key("resource", Shape::Text { pattern: forms::FILLED }, "", "Required. The id of what they draw on; one of `resources` matches it."),
    key("cost", Shape::Int { min: 1, max: 1_000_000 }, "1", "What one request takes."),
    key("key", Shape::Text { pattern: forms::KEY_SOURCE }, "\"none\"",
        "Each value has a resource of its own: header:NAME, cookie:NAME, path:N, address or identity."),
    key("wait", Shape::Duration { zero: true }, "\"0s\"", "A request may be held back for so long instead of refused, at most 1s; not for what is held."),
    key("fail", Shape::Choice { built: &["open", "safe", "closed"], later: &[] }, "\"safe\"",
        "What goes while the resource's root does not answer: everything, what `safe` of the resource says, nothing."),
    key("mode", Shape::Choice { built: &["enforce", "observe"], later: &[] }, "\"enforce\"",
        "observe: count what would have been refused."),
];

#[rustfmt::skip]
const ADMIN: &[Key] = &[
    key("listen", Shape::Text { pattern: forms::SOCKET }, "\"127.0.0.1:7119\"",
        "Metrics, health and what the command line asks for."),
];

#[rustfmt::skip]
const LIMITS: &[Key] = &[
    key("connections", Shape::Int { min: 1, max: 1_000_000 }, "10000",
        "Accepted connections, each of outbound and inbound."),
    key("members", Shape::Int { min: 1, max: 1_000_000 }, "20000", "Hosts of the mesh."),
    key("records", Shape::Int { min: 1, max: 10_000_000 }, "200000", "Service instances of the mesh."),
    key("buffers", Shape::Size, "\"256MiB\"", "Bodies kept for a repeat and windows that grew, all together."),
];

#[rustfmt::skip]
const SHUTDOWN: &[Key] = &[
    key("settle", Shape::Duration { zero: true }, "\"5s\"",
        "After this host has said that it goes, requests are accepted for this long."),
    key("timeout", Shape::Duration { zero: true }, "\"30s\"", "Then what is in flight has this long to finish."),
];

#[rustfmt::skip]
const LOG: &[Key] = &[
    key("level", Shape::Choice { built: &["error", "warn", "info", "debug", "trace"], later: &[] }, "\"info\"",
        "The least important message that is written."),
    key("format", Shape::Choice { built: &["text", "json"], later: &[] }, "\"text\"", "How it is written."),
    key("access", Shape::Choice { built: &["off", "errors", "all"], later: &[] }, "\"errors\"",
        "Which requests are logged."),
];

/// Keys that are received with at the same time: two in a rotation, some to spare.
pub(crate) const KEYS_MAX: usize = 8;

/// Calls `visit` with every row and its path, `services[].check.http`, parents first.
pub(crate) fn each(visit: &mut impl FnMut(&str, &'static Key)) {
    each_of(ROOT, "", visit);
}

fn each_of(keys: &'static [Key], parent: &str, visit: &mut impl FnMut(&str, &'static Key)) {
    for key in keys {
        let path =
            if parent.is_empty() { key.name.to_owned() } else { format!("{parent}.{}", key.name) };
        visit(&path, key);
        match key.shape {
            Shape::Map(inner)
            | Shape::ListOrMap { keys: inner, .. }
            | Shape::MapOr { keys: inner, .. } => {
                each_of(inner, &path, visit);
            }
            Shape::List { of: Shape::Map(inner), .. } => {
                each_of(inner, &format!("{path}[]"), visit);
            }
            _ => {}
        }
    }
}
