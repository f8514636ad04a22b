//! This host's own record: what it offers, and how it stays ahead of all that others have heard of it.
//! Its own changes are published at once, so that a client that registered finds itself in its next look-up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_config::Published;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::checks::CheckRun;
use super::{
    Discovery, Event, GENERATION_MAX, JUMP_WINDOW, JUMPS_MAX, NOTE_MAX, NodeInfo, SavedRegistration,
};
use crate::health::Health;
use crate::index::{PolicyHash, note_key, policy_hash, policy_key};
use crate::membership::Membership;
use crate::record::{InstanceBody, NODE_KEY, NodeBody};
use crate::registration::{BODY_MAX, INSTANCES_MAX, Origin, RegisterError, Registration};

/// That records are not taken, for want of room, is told this often.
const REFUSED_TOLD_EVERY: Duration = Duration::from_secs(300);

/// One instance registered here.
#[derive(Debug)]
pub(super) struct Offer {
    pub registration: Registration,
    /// Of each check, in their order.
    pub runs: Vec<CheckRun>,
}

impl Offer {
    fn encode(&self, maintenance: Option<&str>, policy: Option<PolicyHash>) -> Vec<u8> {
        let health = self.runs.iter().map(|run| &run.health);
        InstanceBody::of(&self.registration, health, maintenance, policy).encode()
    }
}

impl Discovery {
    /// Offers an instance, or replaces the one of the same id (checks that stay the same keep their health).
    ///
    /// # Errors
    /// What is wrong with it; nothing changed.
    pub fn register(
        &mut self,
        now: Instant,
        wall_ms: u64,
        registration: Registration,
    ) -> Result<(), RegisterError> {
        if self.left {
            return Err(RegisterError::Leaving);
        }
        let known = self.offers.get(&registration.id);
        if known.is_none() && self.offers.len() >= INSTANCES_MAX {
            self.counters.registrations_refused += 1;
            return Err(RegisterError::TooMany);
        }
        let is_saved = registration.origin == Origin::Api
            || known.is_some_and(|known| known.registration.origin == Origin::Api);
        let policy = self.policies.get(&registration.service);
        let (offer, body) = self.offer(now, registration, policy.map(|(hash, _)| *hash))?;
        let id = offer.registration.id.clone();
        let named = policy.map(|(hash, _)| policy_key(hash));
        let is_new = |key: &str| usize::from(!self.registry.has_own(key));
        if is_new(&id) + named.as_deref().map_or(0, is_new) > self.registry.own_room() {
            self.counters.registrations_refused += 1;
            return Err(RegisterError::MeshFull);
        }
        if let Some((hash, policy)) = policy.cloned() {
            self.write_policy(now, &hash, &policy);
        }
        self.write_own(now, &id, Some(body));
        self.offers.insert(id, offer);
        self.schedule_checks();
        self.withdraw_unused_policies(now);
        self.publish(now, wall_ms);
        if is_saved {
            self.tell(Event::SaveDue);
        }
        Ok(())
    }

    /// Whether this host can offer exactly these of its configuration, and say this of their policies, besides what applications registered. If it can,
    /// each [`Discovery::register`] succeeds once the others of the configuration are withdrawn.
    ///
    /// # Errors
    /// The id of the first that cannot be offered, and why.
    pub fn check_offers(
        &self,
        now: Instant,
        configured: &[Registration],
        policies: &BTreeMap<String, Arc<Published>>,
    ) -> Result<(), (String, RegisterError)> {
        let ids: BTreeSet<&str> = configured.iter().map(|one| one.id.as_str()).collect();
        let stays = |offer: &&Offer| {
            offer.registration.origin == Origin::Api
                && !ids.contains(offer.registration.id.as_str())
        };
        let staying: Vec<&Registration> =
            self.offers.values().filter(stays).map(|offer| &offer.registration).collect();
        // What is said of a service takes a place of its own, once for all that say the same; what was said before gives its back.
        let offered = configured.iter().chain(staying.iter().copied());
        let said = offered.filter_map(|one| policies.get(&one.service));
        let said: BTreeSet<PolicyHash> =
            said.map(|policy| policy_hash(policy.text().as_bytes())).collect();
        let staying = staying.len();
        let room = self.offers.len() - staying
            + self.registry.own_policies().count()
            + self.registry.own_room();
        let room = room.saturating_sub(said.len());
        for (at, registration) in configured.iter().enumerate() {
            let refuse = |cause| (registration.id.clone(), cause);
            if self.left {
                return Err(refuse(RegisterError::Leaving));
            }
            if staying + at >= INSTANCES_MAX {
                return Err(refuse(RegisterError::TooMany));
            }
            if at >= room {
                return Err(refuse(RegisterError::MeshFull));
            }
            // A policy may come with it.
            let policy = Some(PolicyHash::default());
            self.offer(now, registration.clone(), policy).map_err(refuse)?;
        }
        Ok(())
    }

    /// A registration as it is offered, and what others are told of it.
    fn offer(
        &self,
        now: Instant,
        registration: Registration,
        policy: Option<PolicyHash>,
    ) -> Result<(Offer, Vec<u8>), RegisterError> {
        registration.validate()?;
        if let Some(check) = registration.checks.iter().find(|one| self.has_host_check(&one.id)) {
            return Err(RegisterError::CheckIdTaken(check.id.clone(), "this host".to_owned()));
        }
        let known = self.offers.get(&registration.id);
        let begin = |check| {
            let same = known.and_then(|known| known.run_of(check));
            same.unwrap_or_else(|| CheckRun::begin(now, check))
        };
        let runs = registration.checks.iter().map(begin).collect();
        let offer = Offer { registration, runs };
        let maintenance = self.maintenance.get(&offer.registration.id).map(String::as_str);
        let body = offer.encode(maintenance, policy);
        if body.len() > BODY_MAX {
            return Err(RegisterError::TooLarge("bytes of the registration", BODY_MAX));
        }
        Ok((offer, body))
    }

    /// Withdraws an instance.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn deregister(
        &mut self,
        now: Instant,
        wall_ms: u64,
        id: &str,
    ) -> Result<(), RegisterError> {
        let offer = self.offers.remove(id).ok_or_else(|| RegisterError::NoSuchId(id.to_owned()))?;
        self.write_own(now, id, None);
        let was_in_maintenance = self.maintenance.remove(id).is_some();
        self.withdraw_unused_policies(now);
        self.publish(now, wall_ms);
        if offer.registration.origin == Origin::Api || was_in_maintenance {
            self.tell(Event::SaveDue);
        }
        Ok(())
    }

    /// Publishes the health of one check (by its index in [`Registration::checks`]) if its status changed.
    ///
    /// # Errors
    /// There is no instance of this id, or it has no such check.
    pub fn set_health(
        &mut self,
        now: Instant,
        wall_ms: u64,
        id: &str,
        check: usize,
        health: Health,
    ) -> Result<(), RegisterError> {
        let offer =
            self.offers.get_mut(id).ok_or_else(|| RegisterError::NoSuchId(id.to_owned()))?;
        let known = offer
            .runs
            .get_mut(check)
            .ok_or_else(|| RegisterError::NoSuchId(format!("{id}, check {check}")))?;
        if known.set(now, health.clone()) || known.set_output(health) {
            self.write_offer(now, id);
            self.schedule_checks();
            self.publish(now, wall_ms);
        }
        Ok(())
    }

    /// Writes what is offered under this id into our record again.
    pub(super) fn write_offer(&mut self, now: Instant, id: &str) {
        let Some(offer) = self.offers.get(id) else { return };
        let policy = self.policies.get(&offer.registration.service);
        let maintenance = self.maintenance.get(id).map(String::as_str);
        let body = offer.encode(maintenance, policy.map(|(hash, _)| *hash));
        self.write_own(now, id, Some(body));
    }

    /// Asks all hosts to stop (or start again) choosing this one.
    pub fn set_draining(&mut self, now: Instant, wall_ms: u64, draining: bool) {
        if self.draining != draining {
            self.draining = draining;
            self.write_node(now);
            self.publish(now, wall_ms);
        }
    }

    /// Writes what this host says of itself into its record again.
    pub(super) fn write_node(&mut self, now: Instant) {
        let body = self.node_body();
        self.write_own(now, NODE_KEY, Some(body));
    }

    pub(super) fn node_body(&self) -> Vec<u8> {
        let NodeInfo { name, address, mesh_port, zone, version, .. } = self.config.node.clone();
        let mesh = SocketAddr::new(address.ip(), mesh_port);
        let maintenance = self.host_maintenance();
        let draining = self.draining || maintenance.is_some();
        let drain_reason = maintenance.unwrap_or_default().to_owned();
        let checks = self.host_checks.states();
        NodeBody { name, address, mesh, zone, draining, drain_reason, version, checks }.encode()
    }

    /// What this host says of the policy of each service, as long as it offers the service. Replaces all it said before.
    ///
    /// A policy goes out before the instances that name it, and is withdrawn after the last of them, so that no host
    /// ever sees a name without what it stands for.
    pub fn set_policies(
        &mut self,
        now: Instant,
        wall_ms: u64,
        policies: BTreeMap<String, Arc<Published>>,
    ) {
        let named = |(service, policy): (String, Arc<Published>)| {
            (service, (policy_hash(policy.text().as_bytes()), policy))
        };
        self.policies = policies.into_iter().map(named).collect();
        let of = |offer: &Offer| self.policies.get(&offer.registration.service).cloned();
        let said: Vec<(PolicyHash, Arc<Published>)> = self.offers.values().filter_map(of).collect();
        let named = |(id, offer): (&String, &Offer)| {
            let maintenance = self.maintenance.get(id).map(String::as_str);
            (id.clone(), offer.encode(maintenance, of(offer).map(|(hash, _)| hash)))
        };
        let bodies: Vec<(String, Vec<u8>)> = self.offers.iter().map(named).collect();
        for (hash, policy) in said {
            self.write_policy(now, &hash, &policy);
        }
        for (id, body) in bodies {
            self.write_own(now, &id, Some(body));
        }
        self.withdraw_unused_policies(now);
        self.publish(now, wall_ms);
    }

    /// Writes a note into this host's record, or takes it back: what the rest of the program tells its like on all hosts
    /// ([`Catalog::notes`](crate::Catalog::notes)). Returns whether it is short enough ([`NOTE_MAX`]) and the records of the mesh
    /// have room for it; if not, nothing changed.
    pub fn note(&mut self, now: Instant, wall_ms: u64, name: &str, body: Option<Vec<u8>>) -> bool {
        let key = note_key(name);
        if self.left || body.as_ref().is_some_and(|body| body.len() > NOTE_MAX) {
            return false;
        }
        if body.is_some() && !self.registry.has_own(&key) && self.registry.own_room() == 0 {
            return false;
        }
        self.write_own(now, &key, body);
        self.publish(now, wall_ms);
        true
    }

    /// A host's record was not taken because a limit of ours is reached: its services are missing here. Told now and then,
    /// as it will be tried again and again.
    pub(super) fn refuse_record(&mut self, now: Instant, node: u64) {
        self.counters.refused_limit += 1;
        let is_told = |since: Instant| now.saturating_duration_since(since) < REFUSED_TOLD_EVERY;
        if !self.refused_told.is_some_and(is_told) {
            self.refused_told = Some(now);
            let name = self.name_of(node);
            self.tell(Event::RecordRefused { node, name });
        }
    }

    fn write_policy(&mut self, now: Instant, hash: &PolicyHash, policy: &Published) {
        self.write_own(now, &policy_key(hash), Some(policy.text().as_bytes().to_vec()));
    }

    fn withdraw_unused_policies(&mut self, now: Instant) {
        let used: BTreeSet<PolicyHash> = self
            .offers
            .values()
            .filter_map(|offer| Some(self.policies.get(&offer.registration.service)?.0))
            .collect();
        let unused: Vec<PolicyHash> =
            self.registry.own_policies().filter(|hash| !used.contains(hash)).collect();
        for hash in unused {
            self.write_own(now, &policy_key(&hash), None);
        }
    }

    pub(super) fn registrations_to_save(&self) -> Vec<SavedRegistration> {
        self.offers
            .values()
            .filter(|offer| offer.registration.origin == Origin::Api)
            .map(|offer| {
                let statuses = offer.runs.iter().map(|run| run.health.status);
                SavedRegistration::from(&offer.registration).with_reported(statuses)
            })
            .collect()
    }

    pub(super) fn write_own(&mut self, now: Instant, key: &str, body: Option<Vec<u8>>) {
        let changes = self.registry.write(now, key, body);
        let own = self.config.node.id;
        self.spread.push(now, own, self.generation(), changes.base, self.membership.up().len() + 1);
        self.publisher.touch_services(now, changes.services);
        if changes.node {
            self.publisher.touch_node(now, own, &self.registry);
        }
        if changes.orders {
            self.publisher.touch_orders(now);
        }
        if changes.notes {
            self.publisher.touch_notes(now, own);
        }
    }

    /// Others have a later state of our record than we do: from an earlier life that was not saved, or from another
    /// process under our id. Jump above it; if that happens again and again, it is the latter: take another id.
    pub(super) fn jump_above(&mut self, now: Instant, wall_ms: u64, generation: u64) {
        if generation >= GENERATION_MAX {
            self.counters.refused_limit += 1;
            return;
        }
        self.suspect_a_double(now);
        let own = self.config.node.id;
        if self.registry.jump((generation + 1).max(wall_ms)) {
            self.spread.push(now, own, self.generation(), 0, self.membership.up().len() + 1);
            self.publisher.touch_node(now, own, &self.registry);
            self.tell(Event::SaveDue);
            self.learn_address(now, self.own_location());
        }
    }

    /// Others were ahead of us about ourselves. Once is an earlier life; again and again is another process.
    pub(super) fn suspect_a_double(&mut self, now: Instant) {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) > JUMP_WINDOW;
        while self.jumps.front().is_some_and(is_old) {
            self.jumps.pop_front();
        }
        self.jumps.push_back(now);
        if self.jumps.len() > JUMPS_MAX {
            self.jumps.clear();
            self.take_new_identity(now);
        }
    }

    fn take_new_identity(&mut self, now: Instant) {
        let old = self.config.node.id;
        let new: u64 = self.rng.random();
        self.config.node.id = new;
        self.sealer.rename(new, self.rng.random());
        let rng = ChaCha8Rng::from_seed(self.rng.random());
        let epoch = self.membership.epoch();
        let members = self.membership.members();
        self.membership =
            Membership::new(new, epoch, self.config.profile, self.config.limits.members, rng);
        self.membership.handle_members(now, &members);
        let services = self.registry.rename_own(new);
        // Above the old id's, which is still known at our address.
        self.registry.jump(self.generation() + 1);
        self.peers.rename_own(old);
        self.publisher.touch_services(now, services);
        self.publisher.touch_node(now, old, &self.registry);
        self.publisher.touch_node(now, new, &self.registry);
        let size = self.membership.up().len() + 1;
        self.spread.push(now, new, self.generation(), 0, size);
        self.learn_address(now, self.own_location());
        self.tell(Event::NewIdentity { node: new });
        self.tell(Event::SaveDue);
    }
}
