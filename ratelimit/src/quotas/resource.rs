//! One resource on one host: its rules, and the parts that follow them.
//!
//! The parts do not know each other; what connects them is here. What this host and its clients want becomes what it asks the root for; what it
//! may use is shared between its clients, whose leases are set aside, and the host itself, which spends the rest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::AskError;
use crate::algorithm::{Algorithm, Claim};
use crate::client::Client;
use crate::concurrency::Concurrency;
use crate::election::Rosters;
use crate::lease::Party;
use crate::quantity::Micros;
use crate::root::Root;
use crate::spending::Spending;
use crate::store::{NEWCOMERS, Request, Store, Terms};
use crate::template::{Safe, Template};
use crate::wire::Message;

/// One resource in use.
#[derive(Debug)]
pub(super) struct Resource {
    rules: Template,
    /// No template matches it any more.
    retired: bool,
    pub client: Client,
    root: Option<Root>,
    pub store: Store,
    /// What this host itself wants.
    pub own: Claim,
    /// A root wants to hear from us, though we want nothing.
    summoned_until: Option<Instant>,
    /// When it is due, as in the owner's timers.
    pub due: Option<Instant>,
    /// What the host itself was last told that it may spend.
    pub told: Option<Spending>,
    /// What its requests take, where it is held and not spent.
    places: Option<Arc<Concurrency>>,
    /// What they held when they were last closed.
    in_use: Micros,
}

/// What a Doorman client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// How much.
    pub amount: Micros,
    /// For how long.
    pub lease: Duration,
    /// When to come back.
    pub refresh: Duration,
    /// What to use when it cannot; `None`: no limit.
    pub safe: Option<Micros>,
}

/// One resource as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its id.
    pub resource: Arc<[u8]>,
    /// All there is.
    pub capacity: Micros,
    /// Who is its root.
    pub root: Option<u64>,
    /// Whether that one answers.
    pub in_touch: bool,
    /// What this host and its clients want.
    pub wants: Micros,
    /// What they may use.
    pub has: Micros,
    /// What the host owns of it.
    pub right: Micros,
    /// What its clients hold.
    pub clients_hold: Micros,
    /// How many clients there are.
    pub clients: usize,
    /// Where this host serves as root.
    pub serves: Option<Serving>,
}

/// What a root knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// When it was first asked.
    pub since: Instant,
    /// The hosts that ask it.
    pub hosts: Vec<HostShare>,
}

/// One host's part of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostShare {
    /// Which.
    pub host: u64,
    /// What it wants.
    pub wants: Micros,
    /// What it has, by its right and by loans together.
    pub has: Micros,
}

impl Resource {
    pub fn new(
        now: Instant,
        id: Arc<[u8]>,
        rules: Template,
        me: Party,
        epoch: Instant,
        locked_until: Option<Instant>,
    ) -> Resource {
        // Without an earlier life nobody holds leases of it, and when its loans have ended its leases have too.
        let learning_until =
            locked_until.map_or(epoch, |until| until.min(epoch + rules.learning.min(rules.lease)));
        Resource {
            client: Client::new(id, me, epoch, now, locked_until),
            root: None,
            store: Store::new(learning_until),
            own: Claim { wants: Micros::ZERO, subclients: 1, priority: 0 },
            rules,
            retired: false,
            summoned_until: None,
            due: None,
            told: None,
            places: None,
            in_use: Micros::ZERO,
        }
    }

    /// Its requests take these places.
    pub fn hold(&mut self, places: Arc<Concurrency>) {
        self.places = Some(places);
        self.close();
    }

    /// Lets no request in, so that what they hold stays what it is.
    pub fn close(&mut self) {
        if let Some(places) = &self.places {
            self.in_use = places.close();
            self.client.set_in_use(self.in_use);
        }
    }

    /// Lets them in again, up to this; unless the operator allows more while no root answers.
    pub fn open(&self, spending: Spending) {
        let is_more_allowed = !spending.in_touch && matches!(self.rules.safe, Safe::Each(_));
        if let Some(places) = &self.places {
            places.open(if is_more_allowed { Micros::MAX } else { spending.amount });
        }
    }

    /// It has these rules from now on.
    pub fn follow(&mut self, rules: Template) {
        (self.rules, self.retired) = (rules, false);
    }

    /// It has no rules any more: it is wanted and asked for no longer, and what is lent runs out.
    pub fn retire(&mut self) {
        self.retired = true;
        self.own.wants = Micros::ZERO;
    }

    pub fn is_retired(&self) -> bool {
        self.retired
    }

    pub fn capacity(&self) -> Micros {
        self.rules.capacity
    }

    /// Whether hosts share it, so that there is a root.
    pub fn is_shared(&self) -> bool {
        self.rules.algorithm.shares()
    }

    /// What the host itself may spend.
    pub fn spending(&self, now: Instant) -> Spending {
        let amount = match self.rules.algorithm {
            Algorithm::None => Micros::MAX,
            Algorithm::Static => self.rules.capacity,
            _ => self.client.usable(now).minus(self.store.held()),
        };
        // What is not shared needs no root. Who has just begun and has nothing yet is as good as cut off.
        let has_begun = self.client.has_begun(now) || !amount.is_zero();
        Spending { amount, in_touch: !self.is_shared() || self.client.in_touch(now) && has_begun }
    }

    /// A Doorman client asks.
    pub fn handle_client(
        &mut self,
        now: Instant,
        id: &[u8],
        request: Request,
    ) -> Result<Grant, AskError> {
        let rules = &self.rules;
        let shared = self.is_shared();
        let (client, store) = (&mut self.client, &mut self.store);
        let terms = Terms {
            algorithm: rules.algorithm,
            floors: &rules.floors,
            capacity: if shared { client.usable(now) } else { rules.capacity },
            own: self.own,
            right: client.owned(),
            lease: rules.lease,
        };
        let (soonest, latest) = (now + rules.refresh, now + rules.lease);
        let granted = store.ask(now, id, request, terms, |others, shown, wanted| {
            client.reserve(now, (others, shown), wanted, soonest, latest)
        });
        let (amount, until) = granted.map_err(|_| AskError::TooManyClients)?;
        let lease = until.saturating_duration_since(now);
        let safe = match rules.safe {
            Safe::Share if shared => Some(client.owned().part(1, store.len() as u64)),
            Safe::Share => Some(rules.capacity.part(1, store.len() as u64)),
            Safe::Each(amount) => Some(amount),
            Safe::Stop => Some(Micros::ZERO),
            Safe::Unlimited => None,
        };
        Ok(Grant { amount, lease, refresh: rules.refresh.min(lease), safe })
    }

    /// A root is short of what idle hosts own.
    pub fn summon(&mut self, now: Instant) {
        self.summoned_until = Some(now + SUMMONED);
        self.client.set_summoned(now, true);
    }

    /// The root that this host is for others, from now on if it was none.
    pub fn root(&mut self, now: Instant, me: Party, epoch: Instant) -> &mut Root {
        let (id, rules) = (self.client.resource(), &self.rules);
        let root = self.root.get_or_insert_with(|| Root::new(id, me, epoch, now));
        root.set_rules(now, rules.algorithm, rules.capacity, &rules.floors, rules.per.is_none());
        root
    }

    /// Follows what changed outside.
    pub fn prepare(&mut self, now: Instant, rosters: &Rosters, root: Option<u64>) {
        self.store.expire(now);
        let mut wants = self.store.wants();
        for claim in wants.iter_mut().filter(|_| self.store.keeps_back(self.own)) {
            // So that they have what they want beside what is kept back.
            claim.wants = claim.wants.plus(claim.wants.part(1, NEWCOMERS - 1));
        }
        let band = self.rules.floors.band(self.own.priority);
        match wants.iter_mut().find(|claim| claim.priority == band) {
            Some(claim) => {
                claim.wants = claim.wants.plus(self.own.wants);
                claim.subclients =
                    claim.subclients.saturating_add(u32::from(!self.own.wants.is_zero()));
            }
            None => wants.push(Claim { priority: band, ..self.own }),
        }
        self.client.set_wants(now, wants);
        self.client.set_extra(if self.store.is_empty() {
            Duration::ZERO
        } else {
            self.rules.lease
        });
        self.client.set_whole(self.rules.per.is_none());
        self.client.set_root(now, root);
        self.client.set_summoned(now, self.summoned_until.is_some_and(|until| until > now));
        self.client.set_right(now, rosters, self.rules.capacity);
        let rules = &self.rules;
        if let Some(root) = &mut self.root {
            root.set_rules(
                now,
                rules.algorithm,
                rules.capacity,
                &rules.floors,
                rules.per.is_none(),
            );
        }
    }

    /// Does what is due; what it has to say, and to whom.
    pub fn run(&mut self, now: Instant, rosters: &Rosters) -> Vec<(u64, Message)> {
        let mut said = Vec::new();
        self.client.set_right(now, rosters, self.rules.capacity);
        self.client.handle_timeout(now);
        while let Some((to, ask)) = self.client.poll_transmit() {
            said.push((to, Message::Ask(ask)));
        }
        if let Some(root) = &mut self.root {
            root.handle_timeout(now, rosters);
            while let Some(message) = root.poll_transmit() {
                said.push(message);
            }
            if root.is_idle() {
                self.root = None;
            }
        }
        said
    }

    /// Whether it may be forgotten.
    pub fn is_idle(&self, now: Instant) -> bool {
        let summoned = self.summoned_until.is_some_and(|until| until > now);
        !summoned
            && self.own.wants.is_zero()
            && self.in_use.is_zero()
            && self.store.is_empty()
            && self.root.is_none()
            && self.client.is_idle()
    }

    /// When it is due.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let end = self.store.next_end().map(|end| end + Duration::from_nanos(1));
        let root = self.root.as_ref().and_then(Root::poll_timeout);
        let summoned = self.summoned_until.filter(|until| *until > now);
        self.client.poll_timeout(now).into_iter().chain(root).chain(end).chain(summoned).min()
    }

    #[cfg(test)]
    pub fn root_ledger(&self) -> Option<&crate::lease::Ledger> {
        self.root.as_ref().map(Root::ledger)
    }

    pub fn report(&self, now: Instant) -> Report {
        let serves = self.root.as_ref().and_then(|root| {
            Some(Serving { since: root.since()?, hosts: root.holders(now).collect() })
        });
        Report {
            resource: self.client.resource(),
            capacity: self.rules.capacity,
            root: self.client.root(),
            in_touch: self.client.in_touch(now),
            wants: self.client.wants(),
            has: self.client.usable(now),
            right: self.client.right(now),
            clients_hold: self.store.held(),
            clients: self.store.len(),
            serves,
        }
    }
}

/// A host that wants nothing takes part for so long after a root has asked for it.
const SUMMONED: Duration = Duration::from_secs(10);
