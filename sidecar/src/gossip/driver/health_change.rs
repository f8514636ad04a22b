//! Carries out what applications and operators say of the health of this host and of its instances.

use std::time::Instant;

use evenkeel_discovery::RegisterError;
use evenkeel_discovery::consul::CheckRegistration;
use evenkeel_discovery::registration::{Origin, Registration};
use tokio::sync::oneshot;

use super::{ChangeError, Driver, Round, wall_ms};
use crate::gossip::HealthChange;

impl Driver {
    pub(super) fn change_health(
        &mut self,
        change: HealthChange,
        done: oneshot::Sender<Result<(), ChangeError>>,
        round: &mut Round,
    ) {
        let (now, wall) = (Instant::now(), wall_ms());
        match change {
            HealthChange::Report(check, health) => {
                let result = self.discovery.report_check(now, wall, &check, health);
                let _ = done.send(result.map_err(ChangeError::Refused));
            }
            HealthChange::AddCheck(added) => {
                let CheckRegistration { instance, check } = *added;
                let id = check.id.clone();
                let result = match instance {
                    None => {
                        let registered = self.discovery.register_host_check(now, wall, check);
                        registered.map_err(ChangeError::Refused)
                    }
                    Some(instance) => {
                        let result = self.discovery.with_check(&instance, check);
                        self.register_again(result)
                    }
                };
                self.finish(result, done, round, |events| {
                    events.info("check_registered", id, "by the HTTP API");
                });
            }
            HealthChange::RemoveCheck(check) => {
                let result = if self.discovery.has_host_check(&check) {
                    let withdrawn = self.discovery.deregister_host_check(now, wall, &check);
                    withdrawn.map_err(ChangeError::Refused)
                } else {
                    let result = self.discovery.without_check(&check);
                    self.register_again(result)
                };
                self.finish(result, done, round, |events| {
                    events.info("check_deregistered", check, "by the HTTP API");
                });
            }
            HealthChange::Maintenance(id, reason) => {
                let what = maintenance(reason.as_deref());
                let result = self.discovery.set_maintenance(now, wall, &id, reason);
                let result = result.map_err(ChangeError::Refused);
                self.finish(result, done, round, |events| events.info("maintenance", id, what));
            }
            HealthChange::HostMaintenance(reason) => {
                let what = maintenance(reason.as_deref());
                let result = self.discovery.set_host_maintenance(now, wall, reason);
                let result = result.map_err(ChangeError::Refused);
                self.finish(result, done, round, |events| {
                    events.info("maintenance", "this host", what);
                });
            }
        }
    }

    /// An instance gets other checks; those of the configuration belong to the file.
    fn register_again(
        &mut self,
        changed: Result<Registration, RegisterError>,
    ) -> Result<(), ChangeError> {
        let registration = changed.map_err(ChangeError::Refused)?;
        if registration.origin == Origin::Configuration {
            return Err(ChangeError::Configured(registration.id));
        }
        self.discovery
            .register(Instant::now(), wall_ms(), registration)
            .map_err(ChangeError::Refused)
    }
}

fn maintenance(reason: Option<&str>) -> String {
    match reason {
        None => "over: may be chosen again".to_owned(),
        Some("") => "begins, by the HTTP API: not chosen until it is over".to_owned(),
        Some(reason) => format!("begins, by the HTTP API ({reason}): not chosen until it is over"),
    }
}
