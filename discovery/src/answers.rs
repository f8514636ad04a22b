//! Answers to DNS questions, from a catalogue snapshot: a whole message in, a whole message out.
//!
//! The forms are those that Consul's clients use: `[tag.]service.service[.dc].DOMAIN`, RFC 2782's
//! `_service._tcp.[namespace.]service.DOMAIN`, `host.node[.dc].DOMAIN`, `hex.addr[.dc].DOMAIN`, and ours, `service.DOMAIN`.
//! As long as this host has not heard of the whole mesh, what it does not know may exist: SERVFAIL.
//! A service without a healthy instance does not exist (NXDOMAIN), so that clients try their next choice; both that
//! and an empty answer carry the SOA (RFC 2308). Answers are shuffled and their TTL is 0: the next question gets
//! the next truth. Names outside the domain are refused; forwarding them is not built yet.
//!
//! A name that has nothing itself but stands above one that has is there, empty (RFC 8020): a resolver that walks down
//! label by label (RFC 9156) stops at the first NXDOMAIN. The domain has its SOA and, as its name server, this host.
//!
//! Each SRV record has an address record of its own, as Consul sends them, though several instances of a host share
//! their target: HAProxy gives each additional record to one SRV record only.
//!
//! Additional records that do not fit are left out silently; answers that do not fit set TC (RFC 2181 §9), and the
//! OPT record is never what gives way (RFC 6891 §7).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::catalog::{Catalog, Instance, Node, ServiceView};
use crate::health::Status;
use crate::names::{DnsName, dns_name, hex_address, is_kind};

/// How the question came, which bounds the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// 512 bytes, or what EDNS offers up to this many; the rest is cut and marked with TC.
    Udp {
        /// [`UDP_MAX`], or [`UDP_HERE_MAX`] if the question came from this very host.
        most: u16,
    },
    /// Whole, up to 65,535 bytes.
    Tcp,
}

/// The largest answer over UDP to other hosts, whatever EDNS offers: fits an IPv6 path without fragments.
pub const UDP_MAX: u16 = 1232;
/// The largest answer over UDP to this host itself: it fits the loopback interface whole, and nobody can ask for it in
/// another's name. HAProxy takes what fits for all there is, so more room is more servers that do not come and go.
pub const UDP_HERE_MAX: u16 = 16 * 1024;
/// The largest answer over UDP without EDNS (RFC 1035 §4.2.1).
const UDP_PLAIN: u16 = 512;
const TTL: u32 = 0;

/// Answers one message; `None`: not worth an answer (shorter than a header, or itself a response).
pub fn answer(
    catalog: &Catalog,
    query: &[u8],
    transport: Transport,
    rng: &mut impl Rng,
) -> Option<Vec<u8>> {
    const HEADER_LEN: usize = 12;
    if query.len() < HEADER_LEN || query[2] & 0x80 != 0 {
        return None;
    }
    let Ok(query) = Message::from_vec(query) else {
        return malformed(query);
    };
    let mut response =
        Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.queries.clone_from(&query.queries);
    let mut limit = if transport == Transport::Tcp { u16::MAX } else { UDP_PLAIN };
    if let Some(edns) = &query.edns {
        if let Transport::Udp { most } = transport {
            limit = edns.max_payload().clamp(UDP_PLAIN, most);
        }
        let mut own = Edns::new();
        own.set_max_payload(UDP_MAX).set_version(0);
        response.set_edns(own);
    }
    response.metadata.response_code = respond(catalog, &query, &mut response, rng);
    encode_within(response, limit.into())
}

/// Fills the response; returns its code.
fn respond(
    catalog: &Catalog,
    query: &Message,
    response: &mut Message,
    rng: &mut impl Rng,
) -> ResponseCode {
    if query.metadata.op_code != OpCode::Query {
        return ResponseCode::NotImp;
    }
    if query.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return ResponseCode::BADVERS;
    }
    let [question] = &query.queries[..] else {
        return ResponseCode::FormErr;
    };
    let kind = question.query_type();
    if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return ResponseCode::NotImp;
    }
    if !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
        return ResponseCode::Refused;
    }
    let labels: Vec<String> =
        question.name().iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect();
    let meaning = dns_name(labels.iter().map(String::as_str), &catalog.domain, &catalog.mesh);
    if meaning == DnsName::Foreign {
        return ResponseCode::Refused;
    }
    response.metadata.authoritative = true;
    let mut zone = Zone { catalog, asked: question.name().clone(), kind, rng };
    let Some(Found { answers, additionals }) = zone.look_up(meaning) else {
        if catalog.partial {
            // It may exist. Resolvers remember that a name does not, and ask another server where one fails.
            response.metadata.authoritative = false;
            return ResponseCode::ServFail;
        }
        response.authorities.extend(soa(catalog));
        return ResponseCode::NXDomain;
    };
    if answers.is_empty() {
        response.authorities.extend(soa(catalog));
    }
    response.answers = answers;
    response.additionals = additionals;
    ResponseCode::NoError
}

/// What a name has; `answers` may be empty if it has nothing of the type asked for.
#[derive(Default)]
struct Found {
    answers: Vec<Record>,
    additionals: Vec<Record>,
}

struct Zone<'a, R> {
    catalog: &'a Catalog,
    asked: Name,
    kind: RecordType,
    rng: &'a mut R,
}

impl<R: Rng> Zone<'_, R> {
    /// What the name has; `None`: there is no such name.
    fn look_up(&mut self, name: DnsName) -> Option<Found> {
        match name {
            DnsName::Apex => Some(self.apex()),
            DnsName::Above => Some(Found::default()),
            DnsName::Service(labels) => service_and_tag(self.catalog, &labels)
                .and_then(|(service, tag)| self.service(&service, tag.as_deref()))
                .or_else(|| is_above(self.catalog, &labels).then(Found::default)),
            DnsName::Rfc2782 { service, tag } => self.service(&service, tag.as_deref()),
            DnsName::Node(name) => {
                let addresses: BTreeSet<IpAddr> = self
                    .catalog
                    .alive()
                    .filter(|node| node.name.eq_ignore_ascii_case(&name))
                    .map(|node| node.address.ip())
                    .collect();
                if addresses.is_empty() {
                    return is_above_a_host(self.catalog, &name).then(Found::default);
                }
                Some(self.addresses(addresses))
            }
            DnsName::Address(address) => Some(self.addresses(BTreeSet::from([address]))),
            DnsName::Unknown | DnsName::Foreign => None,
        }
    }

    /// The domain itself.
    fn apex(&self) -> Found {
        let mut found = Found::default();
        if matches!(self.kind, RecordType::SOA | RecordType::ANY) {
            found.answers.extend(soa(self.catalog));
        }
        if matches!(self.kind, RecordType::NS | RecordType::ANY)
            && let Some((server, address)) = name_server(self.catalog)
        {
            let ns = RData::NS(NS(server.clone()));
            found.answers.push(Record::from_rdata(self.asked.clone(), TTL, ns));
            found.additionals.push(address_record(&server, address));
        }
        found
    }

    fn service(&mut self, service: &str, tag: Option<&str>) -> Option<Found> {
        let view = self.catalog.service(service)?;
        let mut instances: Vec<_> = announced(view)
            .filter(|(i, _)| {
                tag.is_none_or(|tag| i.tags.iter().any(|t| t.eq_ignore_ascii_case(tag)))
            })
            .collect();
        // What may have vanished is named only while nothing else is.
        if instances.iter().any(|(i, _)| !i.preserved) {
            instances.retain(|(i, _)| !i.preserved);
        }
        if instances.is_empty() {
            return None;
        }
        if self.kind == RecordType::SRV {
            return Some(self.srv(&instances));
        }
        Some(self.addresses(instances.iter().map(|(_, advertise)| advertise.ip()).collect()))
    }

    fn addresses(&mut self, addresses: BTreeSet<IpAddr>) -> Found {
        let mut answers: Vec<Record> = addresses
            .into_iter()
            .filter(|ip| match self.kind {
                RecordType::A => ip.is_ipv4(),
                RecordType::AAAA => ip.is_ipv6(),
                RecordType::ANY => true,
                _ => false,
            })
            .map(|ip| address_record(&self.asked, ip))
            .collect();
        answers.shuffle(self.rng);
        Found { answers, additionals: vec![] }
    }

    fn srv(&mut self, instances: &[(&Arc<Instance>, SocketAddr)]) -> Found {
        let mut order: Vec<&(&Arc<Instance>, SocketAddr)> = instances.iter().collect();
        order.shuffle(self.rng);
        let mut found = Found::default();
        let mut ports = BTreeSet::new();
        for (instance, advertise) in order {
            if !instance.listens() {
                continue;
            }
            let Some(target) = target(self.catalog, &instance.node, advertise.ip()) else {
                continue;
            };
            if !ports.insert((target.clone(), advertise.port())) {
                continue;
            }
            let weight = match instance.status {
                Status::Passing => instance.weights.passing,
                Status::Warning | Status::Critical => instance.weights.warning,
            };
            let srv = SRV::new(1, weight, advertise.port(), target.clone());
            found.answers.push(Record::from_rdata(self.asked.clone(), TTL, RData::SRV(srv)));
            found.additionals.push(address_record(&target, advertise.ip()));
        }
        found
    }
}

/// The instances that DNS names, and where it sends who asks for them.
fn announced(view: &ServiceView) -> impl Iterator<Item = (&Arc<Instance>, SocketAddr)> {
    view.instances
        .iter()
        .filter(|instance| instance.takes_requests())
        .filter_map(|instance| Some((instance, instance.advertise?)))
}

/// `<host>.node.<dc>.<domain>` if that is the host's address and the name can be said in DNS; else
/// `<hex>.addr.<dc>.<domain>`.
fn target(catalog: &Catalog, node: &Node, address: IpAddr) -> Option<Name> {
    let under = |host: &str, kind: &str| {
        Name::from_ascii(format!("{host}.{kind}.{}.{}.", catalog.mesh, catalog.domain)).ok()
    };
    let name = node.name.to_ascii_lowercase();
    let is_dns_name = name
        .split('.')
        .all(|l| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    let is_alone =
        || catalog.alive().filter(|other| other.name.eq_ignore_ascii_case(&name)).count() == 1;
    let by_name = is_dns_name && node.address.ip() == address && is_alone();
    // A host of an older version may have a name that is too long for DNS: its instances are named all the same.
    by_name.then(|| under(&name, "node")).flatten().or_else(|| under(&hex_address(address), "addr"))
}

/// Whether names that exist stand below these labels of a service's name, which do not name one.
fn is_above(catalog: &Catalog, labels: &[String]) -> bool {
    let is_namespace = |label: &String| {
        catalog.services.iter().any(|(name, view)| {
            name.split_once('.').is_some_and(|(_, namespace)| namespace == label)
                && announced(view).next().is_some()
        })
    };
    let is_mesh = |label: &String| label.eq_ignore_ascii_case(&catalog.mesh);
    match labels {
        // Which tags there are is not gone through for it: to say "empty" of one that is not there misleads nobody.
        [first] => first.starts_with('_') || is_mesh(first) || is_namespace(first),
        [kind, mesh] if is_kind(kind) && is_mesh(mesh) => true,
        [first, namespace] => first.starts_with('_') && is_namespace(namespace),
        _ => false,
    }
}

/// Whether a host's name of several labels ends with these.
fn is_above_a_host(catalog: &Catalog, suffix: &str) -> bool {
    catalog.alive().any(|node| {
        let host = node.name.to_ascii_lowercase();
        host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
    })
}

/// Whether the labels are a service as they stand (`payments`, `payments.shop`), or begin with a tag.
fn service_and_tag(catalog: &Catalog, labels: &[String]) -> Option<(String, Option<String>)> {
    let whole = labels.join(".");
    if catalog.services.contains_key(&whole) {
        return Some((whole, None));
    }
    let (tag, service) = labels.split_first()?;
    let service = service.join(".");
    catalog.services.contains_key(&service).then(|| (service, Some(tag.clone())))
}

fn address_record(name: &Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

/// Who answers for the domain: each host does for its own applications, so it names itself.
fn name_server(catalog: &Catalog) -> Option<(Name, IpAddr)> {
    let own = catalog.nodes.get(&catalog.own)?;
    let address = own.address.ip();
    Some((target(catalog, own, address)?, address))
}

/// The zone's SOA; its last field says how long "no" may be remembered: not at all.
fn soa(catalog: &Catalog) -> Option<Record> {
    let zone = Name::from_ascii(format!("{}.", catalog.domain)).ok()?;
    let server = name_server(catalog).map_or_else(|| zone.clone(), |(server, _)| server);
    let contact = Name::from_ascii(format!("hostmaster.{}.", catalog.domain)).ok()?;
    // Seconds: the index is in µs, and the serial only has to move.
    let serial = (catalog.index / 1_000_000) as u32;
    let soa = SOA::new(server, contact, serial, 3600, 600, 86400, 0);
    Some(Record::from_rdata(zone, TTL, RData::SOA(soa)))
}

/// Encodes; leaves out as many additionals, then as many answers, as it takes to fit.
fn encode_within(mut response: Message, limit: usize) -> Option<Vec<u8>> {
    // No record is shorter than a compressed name and its fixed part: more than this never fit.
    const RECORD_MIN: usize = 12;
    if let Some(whole) = encode(&response, limit) {
        return Some(whole);
    }
    let additionals = std::mem::take(&mut response.additionals);
    if encode(&response, limit).is_some() {
        return most(additionals.len().min(limit / RECORD_MIN), |count| {
            response.additionals = additionals[..count].to_vec();
            encode(&response, limit)
        });
    }
    response.metadata.truncation = true;
    let answers = std::mem::take(&mut response.answers);
    most(answers.len().min(limit / RECORD_MIN), |count| {
        response.answers = answers[..count].to_vec();
        encode(&response, limit)
    })
}

/// `None` if it does not fit. Beyond 64 KiB the encoder drops records, OPT among them, and says so only by the counts.
fn encode(response: &Message, limit: usize) -> Option<Vec<u8>> {
    let encoded = response.to_vec().ok().filter(|encoded| encoded.len() <= limit)?;
    let count = |at: usize| usize::from(u16::from_be_bytes([encoded[at], encoded[at + 1]]));
    let additionals = response.additionals.len() + usize::from(response.edns.is_some());
    (count(6) == response.answers.len() && count(10) == additionals).then_some(encoded)
}

/// The encoding with the most records, at most `max`, that fits.
fn most(max: usize, mut encode: impl FnMut(usize) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let mut best = encode(0)?;
    let (mut fits, mut fails) = (0, max + 1);
    while fits + 1 < fails {
        let middle = usize::midpoint(fits, fails);
        match encode(middle) {
            Some(encoded) => (best, fits) = (encoded, middle),
            None => fails = middle,
        }
    }
    Some(best)
}

/// FORMERR, with as much of the header as every query has.
fn malformed(query: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes([query[0], query[1]]);
    let op_code = OpCode::from_u8(query[2] >> 3 & 0x0f);
    let mut response = Message::error_msg(id, op_code, ResponseCode::FormErr);
    response.metadata.recursion_desired = query[2] & 1 != 0;
    response.to_vec().ok()
}

#[cfg(test)]
mod tests;
