//! Checks of the host itself: of its disk, of an agent that all its applications need.
//!
//! They stand in what the host says of itself, beside its address, and count towards the health of each of its instances, as Consul
//! has it: while one of them is critical, nothing on the host is chosen. A reader joins the two ([`crate::publish`]), so a host with a
//! thousand instances says it once. They come by the HTTP API only, are saved, and are run or reported as those of
//! instances are ([`super::checks`]). Nothing is withdrawn because of them, however long they are critical.

use std::time::Instant;

use super::checks::CheckRun;
use super::{Discovery, Event, Saved};
use crate::catalog::CheckState;
use crate::health::Health;
use crate::registration::{BODY_MAX, CHECKS_MAX, Check, CheckKind, RegisterError, SavedCheck};

/// The checks of this host, at most [`CHECKS_MAX`].
#[derive(Debug, Clone, Default)]
pub(super) struct HostChecks(Vec<HostCheck>);

#[derive(Debug, Clone)]
struct HostCheck {
    check: Check,
    run: CheckRun,
}

impl HostCheck {
    /// Whether it is this very check: how it would begin is of no importance then.
    fn is_same(&self, known: &Check) -> bool {
        *known == Check { initial: known.initial, ..self.check.clone() }
    }
}

impl HostChecks {
    /// Those of an earlier life.
    pub fn restored(now: Instant, saved: Option<&Saved>) -> HostChecks {
        let saved = saved.into_iter().flat_map(|saved| saved.host_checks.iter().cloned());
        let begin = |saved| {
            let check = Check::from(saved);
            HostCheck { run: CheckRun::begin(now, &check), check }
        };
        HostChecks(saved.take(CHECKS_MAX).map(begin).collect())
    }

    pub fn to_save(&self) -> Vec<SavedCheck> {
        let save =
            |one: &HostCheck| SavedCheck::from(&one.check).with_reported(one.run.health.status);
        self.0.iter().map(save).collect()
    }

    /// As they are published.
    pub fn states(&self) -> Vec<CheckState> {
        self.0.iter().map(|one| CheckState::of(&one.check, &one.run.health)).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Check> {
        self.0.iter().map(|one| &one.check)
    }

    /// When the next report is due.
    pub fn due(&self) -> Option<Instant> {
        self.0.iter().filter_map(|one| one.run.expires()).min()
    }

    /// Makes those critical whose report did not come; returns whether there are any.
    pub fn expire(&mut self, now: Instant) -> bool {
        let mut any = false;
        for one in &mut self.0 {
            any |= one.run.expire(now, &one.check);
        }
        any
    }

    fn find(&mut self, id: &str) -> Result<&mut HostCheck, RegisterError> {
        let found = self.0.iter_mut().find(|one| one.check.id == id);
        found.ok_or_else(|| RegisterError::NoSuchCheck(id.to_owned()))
    }

    /// With this one more, or instead of that of the same id. One that stays the same keeps its health.
    fn with(&self, now: Instant, check: Check) -> Result<HostChecks, RegisterError> {
        let mut next = self.clone();
        let known = self.0.iter().position(|one| one.check.id == check.id);
        if known.is_none() && self.0.len() >= CHECKS_MAX {
            return Err(RegisterError::TooLarge("number of checks of the host", CHECKS_MAX));
        }
        let begun = HostCheck { run: CheckRun::begin(now, &check), check };
        match known.and_then(|at| next.0.get_mut(at)) {
            Some(known) if begun.is_same(&known.check) => {}
            Some(known) => *known = begun,
            None => next.0.push(begun),
        }
        Ok(next)
    }
}

impl Discovery {
    /// Checks the host itself too, or otherwise than so far if there is a check of this id.
    ///
    /// # Errors
    /// What is wrong with it; nothing changed.
    pub fn register_host_check(
        &mut self,
        now: Instant,
        wall_ms: u64,
        check: Check,
    ) -> Result<(), RegisterError> {
        if self.left {
            return Err(RegisterError::Leaving);
        }
        check.validate()?;
        if let Ok((instance, _)) = self.find_check(&check.id) {
            let whose = format!("the instance {instance:?}");
            return Err(RegisterError::CheckIdTaken(check.id, whose));
        }
        let next = self.host_checks.with(now, Check { deregister_after: None, ..check })?;
        let before = std::mem::replace(&mut self.host_checks, next);
        if self.node_body().len() > BODY_MAX {
            self.host_checks = before;
            return Err(RegisterError::TooLarge("bytes of the host's checks", BODY_MAX));
        }
        self.host_checks_changed(now, wall_ms);
        Ok(())
    }

    /// No longer checks the host so.
    ///
    /// # Errors
    /// There is no such check of this host.
    pub fn deregister_host_check(
        &mut self,
        now: Instant,
        wall_ms: u64,
        id: &str,
    ) -> Result<(), RegisterError> {
        let before = self.host_checks.0.len();
        self.host_checks.0.retain(|one| one.check.id != id);
        if self.host_checks.0.len() == before {
            return Err(RegisterError::NoSuchCheck(id.to_owned()));
        }
        self.host_checks_changed(now, wall_ms);
        Ok(())
    }

    /// Whether the host itself has a check of this id.
    #[must_use]
    pub fn has_host_check(&self, id: &str) -> bool {
        self.host_checks.iter().any(|check| check.id == id)
    }

    /// Publishes what a check of the host found, if that is another status or another reason.
    ///
    /// # Errors
    /// There is no such check of this host.
    pub fn set_host_health(
        &mut self,
        now: Instant,
        wall_ms: u64,
        id: &str,
        health: Health,
    ) -> Result<(), RegisterError> {
        let known = self.host_checks.find(id)?;
        if known.run.set(now, health.clone()) || known.run.set_output(health) {
            self.write_node(now);
            self.publish(now, wall_ms);
        }
        Ok(())
    }

    /// An application reports on a check of the host, which has a TTL.
    pub(super) fn report_host_check(
        &mut self,
        now: Instant,
        wall_ms: u64,
        id: &str,
        health: Health,
    ) -> Result<(), RegisterError> {
        let known = self.host_checks.find(id)?;
        if known.check.kind != CheckKind::Ttl {
            return Err(RegisterError::NotReported(id.to_owned()));
        }
        let is_other = known.run.report(now, &known.check, health);
        self.schedule_checks();
        if is_other {
            self.host_checks_changed(now, wall_ms);
        }
        Ok(())
    }

    pub(super) fn host_checks_changed(&mut self, now: Instant, wall_ms: u64) {
        self.schedule_checks();
        self.write_node(now);
        self.publish(now, wall_ms);
        self.tell(Event::SaveDue);
    }
}
