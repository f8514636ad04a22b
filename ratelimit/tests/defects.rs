//! The nine defects of Doorman that must not come back, each as a test that fails when it does.

// A test is its own error handler; clippy's exemption covers only the functions marked `#[test]`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use evenkeel_ratelimit::{
    Algorithm, Allocation, AskError, BASE, Bucket, Claim, Client, Demand, Floors, Grant, LEASE,
    Micros, Pace, Party, Quotas, Request, Roster, Rosters, Safe, Template, Templates, Transmit,
};

const DB: &[u8] = b"db.payments";

#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

fn units(units: u64) -> Micros {
    Micros::units(units)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn template(pattern: &str, capacity: u64) -> Template {
    Template {
        pattern: pattern.into(),
        capacity: units(capacity),
        per: Some(secs(1)),
        burst: Micros::ZERO,
        algorithm: Algorithm::FairShare,
        floors: Floors::default(),
        lease: secs(20),
        refresh: secs(5),
        learning: secs(20),
        safe: Safe::Share,
    }
}

fn request(wants: u64, has: u64) -> Request {
    Request { claim: Claim { wants: units(wants), subclients: 1, priority: 0 }, has: units(has) }
}

/// Hosts that hear each other at once, unless they are cut off.
struct Mesh {
    now: Instant,
    hosts: BTreeMap<u64, Quotas>,
    cut: BTreeSet<u64>,
}

impl Mesh {
    fn new(hosts: u64, capacity: u64) -> Mesh {
        let now = start();
        let roster = Roster {
            epoch: 1,
            members: (0..hosts).map(|host| (host, 1)).collect(),
            settled: true,
            ..Roster::default()
        };
        let host = |host| {
            let mut quotas = Quotas::new(now, Party { host, life: 1 }, None);
            quotas.set_templates(now, Templates::new(vec![template("db.*", capacity)]).unwrap());
            quotas.set_roster(now, roster.clone()).unwrap();
            quotas.set_live(now, (0..hosts).collect());
            (host, quotas)
        };
        Mesh { now, hosts: (0..hosts).map(host).collect(), cut: BTreeSet::new() }
    }

    fn client(
        &mut self,
        host: u64,
        client: &str,
        wants: u64,
        has: Micros,
    ) -> Result<Grant, AskError> {
        let request = Request { has, ..request(wants, 0) };
        let granted = self.hosts.get_mut(&host).unwrap().handle_client(
            self.now,
            DB,
            client.as_bytes(),
            request,
        );
        self.deliver();
        granted
    }

    fn want(&mut self, host: u64, wants: u64) {
        self.hosts.get_mut(&host).unwrap().offer(self.now, DB, units(wants)).unwrap();
        self.deliver();
    }

    fn spend(&self, host: u64) -> Micros {
        self.hosts[&host].spending(self.now, DB).map_or(Micros::ZERO, |spending| spending.amount)
    }

    fn deliver(&mut self) {
        loop {
            let sent = |(from, quotas): (&u64, &mut Quotas)| {
                quotas.poll_transmit().map(|transmit| (*from, transmit))
            };
            let Some((from, Transmit { to, bytes })) = self.hosts.iter_mut().find_map(sent) else {
                return;
            };
            if !self.cut.contains(&from)
                && !self.cut.contains(&to)
                && let Some(receiver) = self.hosts.get_mut(&to)
            {
                receiver.handle_datagram(self.now, from, &bytes).unwrap();
            }
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let due = |mesh: &Mesh| mesh.hosts.values().filter_map(Quotas::poll_timeout).min();
        while let Some(next) = due(self).filter(|next| *next <= end) {
            self.now = self.now.max(next) + Duration::from_micros(1);
            self.hosts.values_mut().for_each(|quotas| quotas.handle_timeout(self.now));
            self.deliver();
        }
        self.now = end;
    }
}

/// In Doorman's client leases never expire and the safe capacity is never read.
#[test]
fn defect_1_a_lease_expires_and_what_is_left_is_the_safe_capacity() {
    let mut mesh = Mesh::new(4, 100);
    mesh.want(0, 100);
    mesh.run(secs(2));
    assert!(mesh.spend(0) > units(95), "{}", mesh.spend(0));
    mesh.cut.insert(0);
    mesh.run(LEASE + BASE);
    assert_eq!(mesh.spend(0), units(25), "its right, and not what it had");

    let granted = mesh.client(0, "c", 5, Micros::ZERO).unwrap();
    assert_eq!(
        granted.safe,
        Some(units(25)),
        "clients that reach nobody have together what their host owns: others have the rest"
    );
    let granted = mesh.client(0, "d", 5, Micros::ZERO).unwrap();
    assert_eq!(granted.safe, Some(units(25).part(1, 2)));
    mesh.run(secs(21));
    assert_eq!(
        mesh.hosts[&0].reports(mesh.now).map(|report| report.clients).sum::<usize>(),
        0,
        "clients that do not come back are gone"
    );
}

/// In Doorman an over-committed resource gives negative grants, which its limiter takes for "unlimited".
#[test]
fn defect_2_an_over_committed_resource_grants_nothing_rather_than_less() {
    let mut mesh = Mesh::new(1, 100);
    let first = mesh.client(0, "first", 90, Micros::ZERO).unwrap();
    assert_eq!(first.amount, units(90));
    let templates = Templates::new(vec![template("db.*", 10)]).unwrap();
    mesh.hosts.get_mut(&0).unwrap().set_templates(mesh.now, templates);
    let second = mesh.client(0, "second", 50, Micros::ZERO).unwrap();
    assert_eq!(second.amount, Micros::ZERO, "90 are out of 10");
    assert_eq!(mesh.spend(0), Micros::ZERO);
    let t0 = mesh.now;
    assert!(
        Bucket::new(t0, Pace::new(second.amount, secs(1), Micros::ZERO))
            .try_acquire(t0, 1)
            .is_err(),
        "nothing means nothing"
    );
    mesh.run(secs(5));
    let first = mesh.client(0, "first", 90, first.amount).unwrap();
    assert!(first.amount <= units(10));
}

/// Doorman settles at 2.5, 5, 25, 32.5, 35.
#[test]
fn defect_3_fair_share_is_max_min() {
    let claims =
        [5, 5, 25, 30, 40].map(|wants| Claim { wants: units(wants), subclients: 1, priority: 0 });
    let allocation = Allocation::new(Algorithm::FairShare, units(100), &claims, &Floors::default());
    assert_eq!(claims.map(|claim| allocation.grant(claim).whole()), [5, 5, 25, 30, 35]);
}

/// Doorman's limiter admits up to twice the limit at 91 a second.
#[test]
fn defect_4_no_second_admits_more_than_the_limit() {
    let t0 = start();
    for limit in [1, 7, 91, 99, 100, 101, 997, 12_345] {
        let bucket = Bucket::new(t0, Pace::new(units(limit), secs(1), units(1)));
        let moments = (0..30_000u32).map(|step| t0 + Duration::from_micros(100) * step);
        let admitted: Vec<_> = moments.filter(|now| bucket.try_acquire(*now, 1).is_ok()).collect();
        // The request `limit + 1` after any comes a second after it, to the step.
        for (first, beyond) in admitted.iter().zip(admitted.iter().skip(limit as usize + 1)) {
            assert!(*beyond - *first >= secs(1), "more than {limit} within {:?}", *beyond - *first);
        }
        assert!(
            admitted.len() as f64 >= 3.0 * limit.min(5_000) as f64 * 0.9,
            "{} at {limit}",
            admitted.len()
        );
    }
}

/// Doorman's limiter measures what it admitted, as one over the gap; an idle window gives NaN.
#[test]
fn defect_5_demand_is_what_was_offered_and_silence_is_zero() {
    let t0 = start();
    let (bucket, demand) =
        (Bucket::new(t0, Pace::new(units(10), secs(1), units(1))), Demand::new(t0, secs(1)));
    let mut admitted = 0;
    for step in 0..2_000 {
        let now = t0 + millis(step);
        demand.offer(now, 1);
        admitted += u32::from(bucket.try_acquire(now, 1).is_ok());
    }
    assert!(admitted <= 21);
    assert_eq!(demand.in_each(secs(1), t0 + secs(2)), units(1_000));
    assert_eq!(demand.in_each(secs(1), t0 + secs(60)), Micros::ZERO);
}

/// An id with a `/` matches no `*`: Doorman's server panics.
#[test]
fn defect_6_an_id_that_matches_nothing_is_an_answer() {
    let mut mesh = Mesh::new(1, 100);
    let host = mesh.hosts.get_mut(&0).unwrap();
    assert_eq!(
        host.handle_client(mesh.now, b"db/payments", b"c", request(1, 0)),
        Err(AskError::UnknownResource)
    );
    assert_eq!(
        host.handle_client(mesh.now, b"", b"c", request(1, 0)),
        Err(AskError::UnknownResource)
    );
    assert_eq!(host.offer(mesh.now, b"db/payments", units(1)), Err(AskError::UnknownResource));
    host.handle_release(mesh.now, b"db/payments", b"c");
    assert!(host.handle_client(mesh.now, DB, b"c", request(1, 0)).is_ok());
}

/// In Doorman a new parent knows no `has` of its children, so that the whole subtree gets nothing while it learns.
#[test]
fn defect_7_a_new_root_takes_nothing_from_those_it_does_not_know() {
    let mut mesh = Mesh::new(5, 100);
    (0..5).for_each(|host| mesh.want(host, 100));
    mesh.run(secs(2));
    let old = mesh.hosts[&0].reports(mesh.now).next().unwrap().root.unwrap();
    mesh.hosts.remove(&old);
    let live: BTreeSet<u64> = mesh.hosts.keys().copied().collect();
    for quotas in mesh.hosts.values_mut() {
        quotas.set_live(mesh.now, live.clone());
    }
    for _ in 0..100 {
        mesh.run(millis(50));
        live.iter()
            .for_each(|host| assert!(mesh.spend(*host) >= units(19), "{}", mesh.spend(*host)));
    }
    // A host that starts again believes what its clients say they hold, instead of granting nothing.
    let mut again = Quotas::new(mesh.now, Party { host: 0, life: 2 }, Some(mesh.now + secs(22)));
    again.set_templates(mesh.now, Templates::new(vec![template("db.*", 100)]).unwrap());
    again
        .set_roster(
            mesh.now,
            Roster {
                epoch: 1,
                members: BTreeMap::from([(0, 1)]),
                settled: true,
                ..Roster::default()
            },
        )
        .unwrap();
    let granted = again.handle_client(mesh.now, DB, b"c", request(50, 30)).unwrap();
    assert_eq!(granted.amount, units(30));
}

/// In Doorman a partitioned old master and a new one together grant up to twice the capacity.
#[test]
fn defect_8_two_roots_together_never_grant_more_than_there_is() {
    let mut mesh = Mesh::new(6, 90);
    (0..6).for_each(|host| mesh.want(host, if host < 2 { 90 } else { 0 }));
    mesh.run(secs(2));
    // Two halves, each with a root of its own and one that wants everything.
    let halves = [BTreeSet::from([0, 2, 3]), BTreeSet::from([1, 4, 5])];
    for half in &halves {
        for host in half {
            mesh.hosts.get_mut(host).unwrap().set_live(mesh.now, half.clone());
        }
    }
    for _ in 0..100 {
        mesh.run(millis(50));
        let total = Micros::sum((0..6).map(|host| mesh.spend(host)));
        assert!(total <= u128::from(units(90).micros()), "{total}");
    }
    assert!(mesh.spend(0) > units(40) && mesh.spend(1) > units(40), "each half uses what it owns");
}

/// In Doorman a newcomer gets nothing until the others have refreshed, and a dead holder strands its share for a whole lease.
#[test]
fn defect_9_a_newcomer_has_something_at_once_and_the_dead_strand_little() {
    let mut mesh = Mesh::new(4, 100);
    mesh.run(secs(1));
    (0..3).for_each(|host| mesh.want(host, 100));
    mesh.run(secs(2));
    assert!(mesh.spend(0) > units(32), "{}", mesh.spend(0));
    mesh.want(3, 100);
    assert!(mesh.spend(3) > Micros::ZERO, "at once");
    mesh.run(millis(100));
    assert!(
        mesh.spend(3) > units(24),
        "and its share within a tenth of a second: {}",
        mesh.spend(3)
    );

    let mut mesh = Mesh::new(1, 100);
    mesh.client(0, "greedy", 1_000, Micros::ZERO).unwrap();
    assert!(mesh.client(0, "newcomer", 1_000, Micros::ZERO).unwrap().amount > Micros::ZERO);

    // A dead borrower: what it had is back with its owners when its lease has run out.
    let mut mesh = Mesh::new(4, 100);
    mesh.want(0, 100);
    mesh.run(secs(2));
    mesh.hosts.remove(&0);
    let live: BTreeSet<u64> = [1, 2, 3].into();
    mesh.hosts.values_mut().for_each(|quotas| quotas.set_live(mesh.now, live.clone()));
    (1..4).for_each(|host| mesh.want(host, 100));
    mesh.run(BASE + millis(500));
    (1..4).for_each(|host| assert!(mesh.spend(host) >= units(24), "{}", mesh.spend(host)));
}

/// Not Doorman's, but the same kind: a client without a root or a roster is at nothing, not at everything.
#[test]
fn who_owns_nothing_and_reaches_nobody_uses_nothing() {
    let t0 = start();
    let mut client = Client::new(DB.into(), Party { host: 1, life: 1 }, t0, t0, None);
    client.set_right(t0, &Rosters::new(1), units(100));
    assert_eq!(client.usable(t0), Micros::ZERO);
}
