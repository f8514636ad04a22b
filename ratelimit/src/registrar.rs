//! When the next roster is due, and what it says.
//!
//! One host of the mesh writes rosters, the *registrar*: of those that know the newest roster, the root of a resource that everybody has ([`REGISTRAR`]). So
//! no host is special, the next one takes over without being told, and none that comes anew writes before it has heard. What the registrar
//! writes travels with the gossip; every host follows the newest it hears of.
//!
//! **Who is on it.** A host that takes part joins with the next roster. It is taken off when it has said goodbye or when its process
//! is gone for certain: then nobody uses its right once its loans have ended. A host that is merely silent may be behind a partition, where
//! it goes on using its right: it is taken off only after a long time (`absent`), and only where most of the roster is present, so that at most one side of
//! a partition does so. Until then its right is nobody else's, which costs utilisation. After that the bound is the one that `election` states.
//!
//! **Epochs.** Two hosts may both take themselves for the registrar. The low bits of an epoch are those of its writer's id, so that they hardly ever (once in
//! a million such times) write different rosters under one epoch; the larger epoch wins everywhere. The first of a mesh is the smallest, so that a host that began alone by mistake follows
//! the mesh that it meets.
//!
//! **Settled** is a roster when each of its members has said that it knows it (`known`), and as long after that as the longest loan lasts: by then nobody has
//! lent or uses more than it gives him, of any resource. The registrar then says so with the roster itself, and goes on telling the last settled one
//! beside a newer one: a host that comes anew owns what both give it. (Roots find out for each resource, and sooner; but only from hosts that answer.)
//!
//! **The first** is settled as it stands, since nobody uses another. Two parts of a mesh that begin apart both have one, and are over
//! their capacity until they hear of each other; so a host begins only when it has met the others or has waited for them in vain, which its caller knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::client::BASE;
use crate::election::{Roster, root_of};
use crate::lease::DRIFT;

/// Writes rosters where it is this host's turn.
#[derive(Debug)]
pub struct Registrar {
    host: u64,
    /// The last that is known to be settled.
    settled: Option<Roster>,
    newest: Roster,
    /// When the newest was heard of or written.
    since: Option<Instant>,
    /// Since when all its members say that they know it.
    agreed: Option<Instant>,
    /// Members that are not there, since when.
    missed: BTreeMap<u64, Instant>,
    /// Hosts that were taken off, since when, and how long from then their loans last.
    removed: BTreeMap<u64, (Instant, Duration)>,
    /// How long clients of members hold their leases, and when these last said so.
    clients: BTreeMap<u64, (Duration, Instant)>,
}

/// Who is there.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Hosts that are up and take part, with this one.
    pub present: BTreeSet<u64>,
    /// Hosts that have said goodbye or whose process is gone for certain.
    pub gone: BTreeSet<u64>,
    /// The newest roster that each host says it knows.
    pub known: BTreeMap<u64, u64>,
    /// This host has met the others, or has waited for them in vain.
    pub may_begin: bool,
    /// How long Doorman clients of a host hold their leases, of those that have any.
    pub clients: BTreeMap<u64, Duration>,
    /// A host that is silent for so long is taken off.
    pub absent: Duration,
}

impl Registrar {
    /// Knows no roster yet.
    #[must_use]
    pub fn new(host: u64) -> Registrar {
        Registrar {
            host,
            settled: None,
            newest: Roster::default(),
            since: None,
            agreed: None,
            missed: BTreeMap::new(),
            removed: BTreeMap::new(),
            clients: BTreeMap::new(),
        }
    }

    /// This host.
    #[must_use]
    pub fn host(&self) -> u64 {
        self.host
    }

    /// The newest roster that is known; of epoch 0: none.
    #[must_use]
    pub fn newest(&self) -> &Roster {
        &self.newest
    }

    /// What the registrar tells the others: the last settled roster, and the newest if it is another. The others follow them in this order.
    #[must_use]
    pub fn rosters(&self) -> Vec<Roster> {
        let newest = Some(&self.newest).filter(|newest| newest.epoch > 0);
        let settled = self.settled.as_ref().filter(|settled| settled.epoch < self.newest.epoch);
        settled.into_iter().chain(newest).cloned().collect()
    }

    /// Somebody's rosters were heard of; whether any of that is new.
    pub fn heard(&mut self, now: Instant, rosters: Vec<Roster>) -> bool {
        let mut news = false;
        for roster in rosters {
            if roster.settled && self.settled.as_ref().is_none_or(|s| s.epoch < roster.epoch) {
                self.settled = Some(roster.clone());
                news = true;
            }
            if roster.epoch > self.newest.epoch {
                self.follow(now, roster);
                news = true;
            } else if roster.epoch == self.newest.epoch && roster.settled {
                self.newest.settled = true;
            }
        }
        news
    }

    /// Whether this host is the one that writes.
    #[must_use]
    pub fn is_registrar(&self, census: &Census) -> bool {
        let known = |host: &u64| match census.known.get(host) {
            _ if *host == self.host => self.newest.epoch,
            known => known.copied().unwrap_or(0),
        };
        let newest = census.present.iter().map(known).max();
        let who_know = census.present.iter().filter(|host| Some(known(host)) == newest);
        root_of(REGISTRAR, who_know.copied()) == Some(self.host)
    }

    /// Writes the next roster, or that the newest is settled, if this host is to do so now; whether it did. Call it about every second and when the
    /// census changes.
    pub fn write(&mut self, now: Instant, census: &Census) -> bool {
        self.clients.retain(|host, _| self.newest.members.contains_key(host));
        for host in &census.present {
            if let Some(lease) = census.clients.get(host) {
                self.clients.insert(*host, (*lease, now));
            } else if let Some((lease, said)) = self.clients.get(host)
                // What was lent while there were clients has ended.
                && now.saturating_duration_since(*said) > *lease + BASE * 2
            {
                self.clients.remove(host);
            }
        }
        for host in self.newest.members.keys() {
            if census.present.contains(host) {
                self.missed.remove(host);
            } else {
                self.missed.entry(*host).or_insert(now);
            }
        }
        if !self.is_registrar(census) {
            self.agreed = None;
            return false;
        }
        let apart = EVERY + EVERY_EACH * census.present.len() as u32;
        let recently = self.since.is_some_and(|since| now.saturating_duration_since(since) < apart);
        let next = if self.newest.epoch == 0 {
            census.may_begin.then(|| self.first(census))
        } else {
            self.next(now, census).filter(|_| !recently)
        };
        match next {
            Some(roster) => self.heard(now, vec![roster]),
            None => self.settle(now, census),
        }
    }

    fn follow(&mut self, now: Instant, roster: Roster) {
        self.removed.retain(|host, _| roster.removed.contains_key(host));
        for (host, lasts) in &roster.removed {
            self.removed.entry(*host).or_insert((now, *lasts));
        }
        self.missed.retain(|host, _| roster.members.contains_key(host));
        self.newest = roster;
        self.since = Some(now);
        self.agreed = None;
    }

    /// Whether the newest turns out to be settled.
    fn settle(&mut self, now: Instant, census: &Census) -> bool {
        let Roster { epoch, members, settled, .. } = &self.newest;
        if *settled || *epoch == 0 {
            return false;
        }
        if !members.keys().all(|host| census.known.get(host) == Some(epoch)) {
            // Who was heard to know it goes on knowing it, wherever he is now; but he may have begun anew.
            self.agreed = None;
            return false;
        }
        let agreed = *self.agreed.get_or_insert(now);
        let is_over = |since: Instant, lasts: Duration| {
            now.saturating_duration_since(since) > lasts + lasts / DRIFT
        };
        let mut removed = self.removed.values();
        if !is_over(agreed, self.loans_last())
            || !removed.all(|(since, lasts)| is_over(*since, *lasts))
        {
            return false;
        }
        self.newest.settled = true;
        self.settled = Some(self.newest.clone());
        true
    }

    fn first(&self, census: &Census) -> Roster {
        Roster {
            epoch: self.epoch(1),
            members: census.present.iter().map(|host| (*host, 1)).collect(),
            removed: BTreeMap::new(),
            settled: true,
        }
    }

    /// The successor of the newest; `None`: nobody comes or goes.
    fn next(&self, now: Instant, census: &Census) -> Option<Roster> {
        let members = &self.newest.members;
        let there = members.keys().filter(|host| census.present.contains(host)).count();
        let most_are_there = there * 2 > members.len();
        let is_off = |host: &u64| {
            let silent = self.missed.get(host).is_some_and(|since| {
                now.saturating_duration_since(*since) >= census.absent && most_are_there
            });
            census.gone.contains(host) || silent
        };
        let stay = |host: &u64| census.present.contains(host) || !is_off(host);
        let mut next: BTreeMap<u64, u32> =
            members.iter().filter(|(host, _)| stay(host)).map(|(host, w)| (*host, *w)).collect();
        next.extend(census.present.iter().map(|host| (*host, 1)));
        if next == *members {
            return None;
        }
        // Those whose loans have ended need not be waited for any more.
        let recent = self.removed.iter().filter_map(|(host, (since, lasts))| {
            let left = lasts.checked_sub(now.saturating_duration_since(*since))?;
            Some((*host, left))
        });
        let lasts = self.loans_last();
        let left = members.keys().map(|host| (*host, lasts));
        let removed = recent.chain(left).filter(|(host, _)| !next.contains_key(host)).collect();
        let counter = (self.newest.epoch >> WRITER_BITS) + 1;
        Some(Roster { epoch: self.epoch(counter), members: next, removed, settled: false })
    }

    /// No loan of a member lasts longer: what a host lends to a root lasts as long as the clients of any host need it.
    fn loans_last(&self) -> Duration {
        BASE + self.clients.values().map(|(lease, _)| *lease).max().unwrap_or_default()
    }

    fn epoch(&self, counter: u64) -> u64 {
        counter << WRITER_BITS | (self.host & ((1 << WRITER_BITS) - 1))
    }
}

/// The resource whose root writes rosters. No template's id has a NUL at its start.
pub const REGISTRAR: &[u8] = b"\0roster";
/// Rosters are at least so far apart: hosts that come together are on one.
const EVERY: Duration = Duration::from_secs(1);
/// And for each host so much more, since each says that it knows it.
const EVERY_EACH: Duration = Duration::from_millis(5);
/// Bits of an epoch that tell its writer.
const WRITER_BITS: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    const ABSENT: Duration = Duration::from_secs(600);
    const LOANS: Duration = Duration::from_secs(22);
    /// Of one host's clients.
    const LEASE: Duration = Duration::from_secs(20);

    fn census(present: &[u64], gone: &[u64]) -> Census {
        Census {
            known: BTreeMap::new(),
            present: present.iter().copied().collect(),
            gone: gone.iter().copied().collect(),
            may_begin: true,
            clients: present.iter().take(1).map(|host| (*host, LEASE)).collect(),
            absent: ABSENT,
        }
    }

    /// All hosts of the census, each of which hears what any writes.
    struct Mesh {
        now: Instant,
        hosts: BTreeMap<u64, Registrar>,
        written: Vec<Roster>,
    }

    impl Mesh {
        fn new(hosts: impl IntoIterator<Item = u64>) -> Mesh {
            let hosts = hosts.into_iter().map(|host| (host, Registrar::new(host))).collect();
            Mesh { now: start(), hosts, written: Vec::new() }
        }

        /// For so long the hosts that are present see this, and hear each other.
        fn run(&mut self, census: &Census, lasts: Duration) {
            let end = self.now + lasts;
            while self.now < end {
                self.now += Duration::from_millis(500);
                let known = |host: &u64| (*host, self.hosts[host].newest.epoch);
                let known = census.present.iter().map(known).collect();
                let census = Census { known, ..census.clone() };
                for host in &census.present {
                    if !self.hosts.get_mut(host).unwrap().write(self.now, &census) {
                        continue;
                    }
                    let rosters = self.hosts[host].rosters();
                    for host in &census.present {
                        self.hosts.get_mut(host).unwrap().heard(self.now, rosters.clone());
                    }
                    let newest = rosters.into_iter().next_back().unwrap();
                    match self.written.last_mut().filter(|last| last.epoch == newest.epoch) {
                        Some(known) => *known = newest,
                        None => self.written.push(newest),
                    }
                }
            }
        }

        fn members(&self) -> Vec<u64> {
            self.written.last().map_or(Vec::new(), |last| last.members.keys().copied().collect())
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn one_host_begins_and_hosts_that_come_are_added_together() {
        let mut mesh = Mesh::new(1..=5);
        let waiting = Census { may_begin: false, ..census(&[1, 2, 3], &[]) };
        mesh.run(&waiting, MINUTE);
        assert_eq!(mesh.written, [], "nobody begins before it has met the others");
        mesh.run(&census(&[1, 2, 3], &[]), MINUTE);
        assert_eq!(mesh.written.len(), 1);
        assert!(mesh.written[0].settled);
        assert_eq!(mesh.members(), [1, 2, 3]);
        mesh.run(&census(&[1, 2, 3, 4, 5], &[]), MINUTE);
        assert_eq!(mesh.written.len(), 2, "both come with one roster");
        assert_eq!(mesh.members(), [1, 2, 3, 4, 5]);
        assert!(mesh.written[1].epoch > mesh.written[0].epoch);
    }

    #[test]
    fn a_roster_is_settled_when_all_have_known_it_for_as_long_as_loans_last() {
        let mut mesh = Mesh::new(1..=4);
        mesh.run(&census(&[1, 2, 3], &[]), MINUTE);
        mesh.run(&census(&[1, 2, 3, 4], &[]), LOANS);
        assert!(!mesh.written[1].settled, "loans made before may still run");
        mesh.run(&census(&[1, 2, 3, 4], &[]), Duration::from_secs(3));
        assert!(mesh.written[1].settled);

        let mut mesh = Mesh::new(1..=4);
        mesh.run(&census(&[1, 2, 3], &[]), MINUTE);
        // 3 is cut off before it hears of the second.
        mesh.run(&census(&[1, 2, 4], &[]), ABSENT - MINUTE);
        assert!(!mesh.written[1].settled, "it may use more than the second gives it");
        let told = mesh.hosts[&4].rosters();
        assert_eq!(told.len(), 2, "who comes anew hears of the settled one too");
        assert_eq!(told[0], mesh.written[0]);
        mesh.run(&census(&[1, 2, 3, 4], &[]), MINUTE);
        assert!(
            !mesh.written[1].settled,
            "here it does not hear what was written while it was away"
        );
        let rosters = mesh.hosts[&1].rosters();
        mesh.hosts.get_mut(&3).unwrap().heard(mesh.now, rosters);
        mesh.run(&census(&[1, 2, 3, 4], &[]), MINUTE);
        assert!(mesh.written[1].settled);
        assert_eq!(mesh.hosts[&2].rosters().len(), 1);
    }

    #[test]
    fn who_is_gone_for_certain_is_taken_off_at_once_and_waited_for_as_long_as_its_loans_last() {
        let mut mesh = Mesh::new(1..=4);
        mesh.run(&census(&[1, 2, 3, 4], &[]), MINUTE);
        mesh.run(&census(&[1, 2, 3], &[4]), Duration::from_secs(2));
        assert_eq!(mesh.members(), [1, 2, 3]);
        assert_eq!(mesh.written[1].removed, [(4, LOANS)].into());
        mesh.run(&census(&[1, 2], &[3, 4]), Duration::from_secs(5));
        assert_eq!(
            mesh.written[2].removed.keys().collect::<Vec<_>>(),
            [&3, &4],
            "4 may still have loans out"
        );
        assert!(mesh.written[2].removed[&4] < mesh.written[2].removed[&3]);
        mesh.run(&census(&[1, 2], &[3, 4]), LOANS);
        mesh.run(&census(&[1], &[2, 3, 4]), MINUTE);
        assert_eq!(mesh.written[3].removed.keys().collect::<Vec<_>>(), [&2]);
        mesh.run(&census(&[1, 2], &[3, 4]), MINUTE);
        assert_eq!(mesh.members(), [1, 2], "who comes back is on it again");
        assert!(mesh.written[4].removed.is_empty());
        assert_eq!(mesh.written.len(), 5);
    }

    #[test]
    fn without_clients_nobody_is_waited_for_longer_than_hosts_lend_to_each_other() {
        let mut mesh = Mesh::new(1..=3);
        let alone = |present: &[u64], gone: &[u64]| Census {
            clients: BTreeMap::new(),
            ..census(present, gone)
        };
        mesh.run(&census(&[1, 2, 3], &[]), MINUTE);
        mesh.run(&census(&[2, 3], &[1]), Duration::from_secs(2));
        assert_eq!(mesh.written[1].removed, [(1, LOANS)].into(), "1 had clients when it went");
        mesh.run(&alone(&[2, 3], &[1]), MINUTE);
        mesh.run(&alone(&[3], &[1, 2]), Duration::from_secs(2));
        assert_eq!(mesh.written[2].removed, [(2, BASE)].into());
        mesh.run(&alone(&[3], &[1, 2]), BASE + Duration::from_secs(1));
        assert!(mesh.written[2].settled);
    }

    #[test]
    fn who_is_silent_keeps_its_place_for_long_and_a_minority_takes_nobody_off() {
        let mut mesh = Mesh::new(1..=5);
        mesh.run(&census(&[1, 2, 3, 4, 5], &[]), MINUTE);
        mesh.run(&census(&[1, 2, 3, 4], &[]), ABSENT - MINUTE);
        assert_eq!(mesh.written.len(), 1, "it may be behind a partition");
        mesh.run(&census(&[1, 2, 3, 4, 5], &[]), MINUTE);
        mesh.run(&census(&[1, 2, 3, 4], &[]), ABSENT - MINUTE);
        assert_eq!(mesh.written.len(), 1, "it was heard of in between");
        mesh.run(&census(&[1, 2, 3, 4], &[]), 2 * MINUTE);
        assert_eq!(mesh.members(), [1, 2, 3, 4]);
        mesh.run(&census(&[1, 2], &[]), 3 * ABSENT);
        assert_eq!(mesh.members(), [1, 2, 3, 4], "two of four are not most");
    }

    #[test]
    fn two_that_write_at_once_write_different_epochs_and_the_larger_wins() {
        let now = start();
        let (mut one, mut two) = (Registrar::new(1), Registrar::new(2));
        assert!(one.write(now, &census(&[1], &[])) && two.write(now, &census(&[2], &[])));
        let (a, b) = (one.rosters(), two.rosters());
        assert!(a[0].epoch < b[0].epoch);
        assert!(one.heard(now, b.clone()));
        assert!(!two.heard(now, a), "it is older");
        assert_eq!(one.newest(), two.newest());
        let mut mesh = Mesh { now, hosts: [(1, one), (2, two)].into(), written: b };
        mesh.run(&census(&[1, 2], &[]), MINUTE);
        assert_eq!(mesh.members(), [1, 2]);
        assert_eq!(mesh.written.len(), 2);
    }

    #[test]
    fn the_next_registrar_takes_over() {
        let mut mesh = Mesh::new(1..=3);
        let all = census(&[1, 2, 3], &[]);
        mesh.run(&all, MINUTE);
        let registrar = *mesh.hosts.iter().find(|(_, host)| host.is_registrar(&all)).unwrap().0;
        let rest: Vec<u64> = (1..=3).filter(|host| *host != registrar).collect();
        mesh.run(&census(&rest, &[registrar]), MINUTE);
        assert_eq!(mesh.members(), rest);
    }
}
