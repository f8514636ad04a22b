//! What a Doorman client is told: grants as leases on the wire, and refusals as a gRPC status that says what to do.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use evenkeel_config::settings::Algorithm;
use evenkeel_ratelimit::{AskError, Grant, Micros, RESOURCE_ID_MAX};
use tonic::Status;

use super::proto::{self, algorithm::Kind};
use super::request::{Asked, AskedByServer, Shown, Unit};

/// What a client gets; `asked_at` is before the grant was made.
pub fn resource(asked: &Asked, grant: &Grant, asked_at: SystemTime) -> proto::ResourceResponse {
    proto::ResourceResponse {
        resource_id: Some(asked.id.to_vec()),
        gets: Some(lease(asked.unit, grant.amount, grant.lease, grant.refresh, asked_at)),
        safe_capacity: Some(safe(asked.unit, grant.safe)),
    }
}

/// What a server gets: its bands together, until the first of them ends. It has at least one.
pub fn server_resource(
    asked: &AskedByServer,
    grants: &[Grant],
    asked_at: SystemTime,
) -> proto::ServerCapacityResourceResponse {
    let rules = &asked.rules;
    let unit = Unit::of(rules);
    let amount = Micros::from_u128(Micros::sum(grants.iter().map(|grant| grant.amount)));
    let soonest = |of: fn(&Grant) -> Duration| grants.iter().map(of).min().unwrap_or_default();
    let gets = lease(unit, amount, soonest(|g| g.lease), soonest(|g| g.refresh), asked_at);
    let kind = match rules.algorithm {
        Algorithm::None => Kind::NoAlgorithm,
        Algorithm::Static => Kind::Static,
        Algorithm::ProportionalShare => Kind::ProportionalShare,
        Algorithm::FairShare => Kind::FairShare,
    };
    proto::ServerCapacityResourceResponse {
        resource_id: Some(asked.id.to_vec()),
        gets: Some(gets),
        algorithm: Some(proto::Algorithm {
            kind: Some(kind.into()),
            lease_length: Some(whole_seconds(rules.lease)),
            refresh_interval: Some(whole_seconds(rules.refresh)),
            parameters: Vec::new(),
            learning_mode_duration: Some(seconds(rules.learning)),
        }),
        // Without a limit if any band has none; that of its clients is the same for all, give or take who came in between.
        safe_capacity: Some(safe(unit, grants.iter().map(|grant| grant.safe).min().flatten())),
    }
}

/// No rules match the id.
pub fn unknown(id: &[u8]) -> Status {
    let why =
        "no `match` of ratelimit.resources of this host matches it: add one there, or mend the id";
    Status::not_found(format!("resource `{}`: {why}", Shown(id)))
}

/// The owner of the leases refused.
pub fn refused(id: &[u8], why: AskError) -> Status {
    let id = Shown(id);
    match why {
        AskError::UnknownResource => unknown(id.0),
        AskError::IdTooLong => Status::invalid_argument(format!(
            "resource `{id}`: an id has at most {RESOURCE_ID_MAX} bytes"
        )),
        AskError::TooManyResources => Status::resource_exhausted(format!(
            "resource `{id}`: this host has as many resources in use as it can: ask another host, or release some"
        )),
        AskError::TooManyClients => Status::resource_exhausted(format!(
            "resource `{id}`: it has as many clients at this host as it can: ask another host"
        )),
    }
}

/// This host is going away.
pub fn stopped() -> Status {
    Status::unavailable("this host is going away: ask another")
}

fn lease(
    unit: Unit,
    amount: Micros,
    lease: Duration,
    refresh: Duration,
    asked_at: SystemTime,
) -> proto::Lease {
    // Rounded down: the client has stopped before it counts as free.
    let end = asked_at.duration_since(UNIX_EPOCH).unwrap_or_default() + lease;
    proto::Lease {
        expiry_time: Some(seconds(end)),
        refresh_interval: Some(whole_seconds(refresh)),
        capacity: Some(unit.per_second(amount)),
    }
}

/// −1 is any amount.
fn safe(unit: Unit, safe: Option<Micros>) -> f64 {
    safe.map_or(-1.0, |safe| unit.per_second(safe))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// An interval of nothing would have the client ask without a pause.
fn whole_seconds(duration: Duration) -> i64 {
    seconds(duration).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_early_rather_than_late() {
        let millis = Duration::from_millis;
        for (now, length, refresh, expiry, interval) in [
            (1_000_000, 20_000, 5_000, 1_020, 5),
            (1_000_999, 20_000, 5_999, 1_020, 5),
            (1_000_999, 20_001, 999, 1_021, 1),
            (1_000_500, 400, 0, 1_000, 1),
        ] {
            let wire = lease(
                Unit::of(&rules(None)),
                Micros::ZERO,
                millis(length),
                millis(refresh),
                UNIX_EPOCH + millis(now),
            );
            assert_eq!(wire.expiry_time, Some(expiry), "{now} {length}");
            assert_eq!(wire.refresh_interval, Some(interval), "{refresh}");
        }
    }

    #[test]
    fn capacities_are_for_each_second() {
        let minute = Unit::of(&rules(Some(Duration::from_secs(60))));
        assert_eq!(minute.per_second(Micros::units(300)), 5.0);
        assert_eq!(safe(minute, Some(Micros::units(60))), 1.0);
        assert_eq!((safe(minute, None), safe(minute, Some(Micros::ZERO))), (-1.0, 0.0));
        let held = Unit::of(&rules(None));
        assert_eq!(held.per_second(Micros::units(8)), 8.0);
    }

    fn rules(per: Option<Duration>) -> evenkeel_config::settings::Resource {
        let env = evenkeel_config::Environment::named("a");
        let text = "ratelimit: {resources: [{match: a, capacity: 1}]}";
        let mut settings = evenkeel_config::parse(text, "t.yaml", &env).unwrap().settings;
        evenkeel_config::settings::Resource { per, ..settings.ratelimit.resources.remove(0) }
    }
}
