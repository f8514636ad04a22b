//! What becomes of this host's instances by what is known of their health: reports that applications owe, instances
//! that were critical for too long, maintenance that an operator asked for.
//!
//! A check with a TTL is not run by anybody: the application reports, and each report is good for the TTL, whatever it
//! says. When the next one does not come in time, the check is critical. Deciding that here, and not in a task
//! beside it, makes it a matter of the same clock as all else: a simulation or a test can have it happen.
//!
//! An instance in maintenance has one more check, always critical. Maintenance outlives a restart, also that of an instance
//! that the configuration offers: who asked for it did so for a reason that the restart does not know. A host in
//! maintenance asks all hosts not to choose it, as one that drains.

use std::time::Instant;

use super::{Discovery, Event};
use crate::discovery::offers::Offer;
use crate::health::{Health, Status};
use crate::registration::{
    Check, CheckKind, DEREGISTER_AFTER_MIN, RegisterError, Registration, TEXT_MAX,
};

/// Under this id is kept why the host itself is in maintenance; no instance has it.
const HOST_MAINTENANCE: &str = "";

/// What is known of one check of an instance of this host.
#[derive(Debug, Clone)]
pub(super) struct CheckRun {
    pub health: Health,
    /// The application's next report is due by then.
    expires: Option<Instant>,
    critical_since: Option<Instant>,
}

impl CheckRun {
    /// A check of which nothing is known yet but how it begins.
    pub fn begin(now: Instant, check: &Check) -> CheckRun {
        let is_critical = check.initial == Status::Critical;
        CheckRun {
            health: Health { status: check.initial, output: String::new() },
            expires: (check.kind == CheckKind::Ttl && !is_critical).then(|| now + check.interval),
            critical_since: is_critical.then_some(now),
        }
    }

    /// Takes what is known now; returns whether the status is another, or is said for the first time why it is so.
    pub fn set(&mut self, now: Instant, health: Health) -> bool {
        let is_other = self.health.status != health.status;
        if is_other {
            self.critical_since = (health.status == Status::Critical).then_some(now);
        }
        let is_first = self.health.output.is_empty() && !health.output.is_empty();
        if is_other || is_first {
            self.health = health;
        }
        is_other || is_first
    }

    /// Takes another reason for the same status; returns whether it is one.
    pub fn set_output(&mut self, health: Health) -> bool {
        let is_other = self.health.status == health.status && self.health.output != health.output;
        if is_other {
            self.health = health;
        }
        is_other
    }

    /// Takes an application's report; returns whether it says something else, or for the first time why.
    pub fn report(&mut self, now: Instant, check: &Check, health: Health) -> bool {
        self.expires = Some(now + check.interval);
        self.set(now, health)
    }

    /// When the application's next report is due.
    pub fn expires(&self) -> Option<Instant> {
        self.expires
    }

    /// Becomes critical if the report that was due did not come; returns whether that is news.
    pub fn expire(&mut self, now: Instant, check: &Check) -> bool {
        if self.expires.is_none_or(|at| at > now) {
            return false;
        }
        self.expires = None;
        let ttl = check.interval.as_secs_f64();
        let output = format!("TTL expired: nothing was reported for {ttl}s");
        self.set(now, Health { status: Status::Critical, output })
    }

    /// When the check has been critical for so long that its instance is to be withdrawn.
    fn withdrawn_at(&self, check: &Check) -> Option<Instant> {
        let after = check.deregister_after?.max(DEREGISTER_AFTER_MIN);
        self.critical_since?.checked_add(after)
    }

    fn due(&self, check: &Check) -> Option<Instant> {
        [self.expires, self.withdrawn_at(check)].into_iter().flatten().min()
    }
}

impl Offer {
    /// What is known of this very check, if the instance has it: how it would begin is of no importance then.
    pub(super) fn run_of(&self, check: &Check) -> Option<CheckRun> {
        let is_same = |known: &Check| *known == Check { initial: known.initial, ..check.clone() };
        let at = self.registration.checks.iter().position(is_same)?;
        self.runs.get(at).cloned()
    }

    fn checks(&self) -> impl Iterator<Item = (&Check, &CheckRun)> {
        self.registration.checks.iter().zip(&self.runs)
    }
}

impl Discovery {
    /// An application reports on a check with a TTL.
    ///
    /// # Errors
    /// There is no such check on this host, or it is one that this host runs itself.
    pub fn report_check(
        &mut self,
        now: Instant,
        wall_ms: u64,
        check: &str,
        health: Health,
    ) -> Result<(), RegisterError> {
        if self.has_host_check(check) {
            return self.report_host_check(now, wall_ms, check, health);
        }
        let (id, at) = self.find_check(check)?;
        let known = self.offers.get_mut(&id).and_then(|offer| {
            let Offer { registration, runs } = offer;
            Some((registration.checks.get(at)?, runs.get_mut(at)?))
        });
        let (registered, run) =
            known.ok_or_else(|| RegisterError::NoSuchCheck(check.to_owned()))?;
        if registered.kind != CheckKind::Ttl {
            return Err(RegisterError::NotReported(check.to_owned()));
        }
        let is_other = run.report(now, registered, health);
        self.schedule_checks();
        if is_other {
            self.write_offer(now, &id);
            self.publish(now, wall_ms);
            self.tell(Event::SaveDue);
        }
        Ok(())
    }

    /// The registration of an instance with one more check, or with this one instead of that of the same id.
    ///
    /// # Errors
    /// This host offers no such instance.
    pub fn with_check(&self, instance: &str, check: Check) -> Result<Registration, RegisterError> {
        let offer = self.offers.get(instance);
        let offer = offer.ok_or_else(|| RegisterError::NoSuchId(instance.to_owned()))?;
        let mut registration = offer.registration.clone();
        match registration.checks.iter_mut().find(|known| known.id == check.id) {
            Some(known) => *known = check,
            None => registration.checks.push(check),
        }
        Ok(registration)
    }

    /// The registration of the instance that has this check, without it.
    ///
    /// # Errors
    /// There is no such check on this host.
    pub fn without_check(&self, check: &str) -> Result<Registration, RegisterError> {
        let (id, at) = self.find_check(check)?;
        let offer = self.offers.get(&id);
        let offer = offer.ok_or_else(|| RegisterError::NoSuchCheck(check.to_owned()))?;
        let mut registration = offer.registration.clone();
        registration.checks.remove(at);
        Ok(registration)
    }

    /// Puts an instance of this host into maintenance for a reason, or takes it out again.
    ///
    /// # Errors
    /// This host offers no such instance, or the reason is too long.
    pub fn set_maintenance(
        &mut self,
        now: Instant,
        wall_ms: u64,
        id: &str,
        reason: Option<String>,
    ) -> Result<(), RegisterError> {
        if !self.offers.contains_key(id) {
            return Err(RegisterError::NoSuchId(id.to_owned()));
        }
        if self.change_maintenance(id, reason)? {
            self.write_offer(now, id);
            self.publish(now, wall_ms);
        }
        Ok(())
    }

    /// Puts this whole host into maintenance for a reason, or takes it out again.
    ///
    /// # Errors
    /// The reason is too long.
    pub fn set_host_maintenance(
        &mut self,
        now: Instant,
        wall_ms: u64,
        reason: Option<String>,
    ) -> Result<(), RegisterError> {
        if self.change_maintenance(HOST_MAINTENANCE, reason)? {
            self.write_node(now);
            self.publish(now, wall_ms);
        }
        Ok(())
    }

    /// Why this host is in maintenance, if it is.
    #[must_use]
    pub fn host_maintenance(&self) -> Option<&str> {
        self.maintenance.get(HOST_MAINTENANCE).map(String::as_str)
    }

    fn change_maintenance(
        &mut self,
        id: &str,
        reason: Option<String>,
    ) -> Result<bool, RegisterError> {
        if reason.as_ref().is_some_and(|reason| reason.len() > TEXT_MAX) {
            return Err(RegisterError::TooLarge("bytes of the reason", TEXT_MAX));
        }
        let is_other = self.maintenance.get(id) != reason.as_ref();
        match reason {
            Some(reason) => self.maintenance.insert(id.to_owned(), reason),
            None => self.maintenance.remove(id),
        };
        if is_other {
            self.tell(Event::SaveDue);
        }
        Ok(is_other)
    }

    /// Which instance has this check, and the check's place in it.
    pub(super) fn find_check(&self, check: &str) -> Result<(String, usize), RegisterError> {
        let place = |offer: &Offer| offer.registration.checks.iter().position(|c| c.id == check);
        self.offers
            .iter()
            .find_map(|(id, offer)| Some((id.clone(), place(offer)?)))
            .ok_or_else(|| RegisterError::NoSuchCheck(check.to_owned()))
    }

    /// Notes when a check next becomes something by itself.
    pub(super) fn schedule_checks(&mut self) {
        let due = |offer: &Offer| offer.checks().filter_map(|(check, run)| run.due(check)).min();
        let due = self.offers.values().filter_map(due).chain(self.host_checks.due()).min();
        self.timers.checks = due;
    }

    /// Reports that did not come make their checks critical; what was critical for too long is withdrawn.
    pub(super) fn checks_due(&mut self, now: Instant, wall_ms: u64) {
        let mut changed = Vec::new();
        let mut withdrawn = Vec::new();
        for (id, offer) in &mut self.offers {
            let Offer { registration, runs } = offer;
            for (check, run) in registration.checks.iter().zip(runs) {
                if run.expire(now, check) {
                    changed.push(id.clone());
                } else if run.withdrawn_at(check).is_some_and(|at| at <= now) {
                    withdrawn.push((id.clone(), check.id.clone()));
                }
            }
        }
        for id in changed {
            self.write_offer(now, &id);
            self.tell(Event::SaveDue);
        }
        for (id, check) in withdrawn {
            if self.deregister(now, wall_ms, &id).is_ok() {
                self.tell(Event::Withdrawn { id, check });
            }
        }
        if self.host_checks.expire(now) {
            self.host_checks_changed(now, wall_ms);
        }
        self.schedule_checks();
        self.publish(now, wall_ms);
    }

    /// Every check of this host, with the id of the instance that it is for; empty: it is for the host itself.
    pub fn checks(&self) -> impl Iterator<Item = (&str, &Check)> {
        let of_instances = self.offers.iter().flat_map(|(id, offer)| {
            offer.registration.checks.iter().map(move |check| (id.as_str(), check))
        });
        self.host_checks.iter().map(|check| ("", check)).chain(of_instances)
    }
}
