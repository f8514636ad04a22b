//! What the quotas thread shows, from what it has.

use std::time::Instant;

use evenkeel_discovery::Catalog;
use evenkeel_ratelimit::{HostShare, Quotas, Registrar, Report};

use super::report::{self, View};

/// Everything in use, as it is now.
pub fn of(
    now: Instant,
    quotas: &Quotas,
    registrar: &Registrar,
    catalog: &Catalog,
    dropped: u64,
    waiting: bool,
    configured: usize,
) -> View {
    let counters = quotas.counters();
    let newest = registrar.newest();
    let name = |host: u64| host_name(catalog, host);
    let mut members: Vec<String> = newest.members.keys().map(|host| name(*host)).collect();
    members.sort();
    View {
        roster: (newest.epoch > 0).then_some(report::Roster {
            epoch: newest.epoch,
            settled: newest.settled,
            members,
        }),
        waiting,
        configured: Some(configured),
        resources: quotas
            .reports(now)
            .map(|report| resource(now, quotas, catalog, &report))
            .collect(),
        counters: report::Counters {
            malformed: counters.malformed,
            refused: counters.refused,
            dropped: counters.dropped + dropped,
        },
    }
}

fn resource(now: Instant, quotas: &Quotas, catalog: &Catalog, report: &Report) -> report::Resource {
    let (resource, key) = super::split(&report.resource);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let has_key = resource.len() < report.resource.len();
    let host = |share: &HostShare| report::Host {
        host: host_name(catalog, share.host),
        wants: share.wants.as_f64(),
        has: share.has.as_f64(),
    };
    report::Resource {
        resource: text(resource),
        key: has_key.then(|| text(key)),
        capacity: report.capacity.as_f64(),
        per_s: quotas
            .rules(&report.resource)
            .and_then(|rules| rules.per)
            .map(|per| per.as_secs_f64()),
        root: report.root.map(|root| host_name(catalog, root)),
        in_touch: report.in_touch,
        wants: report.wants.as_f64(),
        has: report.has.as_f64(),
        owns: report.right.as_f64(),
        clients: report.clients,
        clients_have: report.clients_hold.as_f64(),
        root_for_s: report
            .serves
            .as_ref()
            .map(|serves| now.saturating_duration_since(serves.since).as_secs_f64()),
        hosts: report.serves.iter().flat_map(|serves| serves.hosts.iter().map(host)).collect(),
    }
}

fn host_name(catalog: &Catalog, host: u64) -> String {
    catalog.nodes.get(&host).map_or_else(|| format!("{host:016x}"), |node| node.name.clone())
}
