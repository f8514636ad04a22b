//! What becomes of instances by what is reported of them, and what stays of those whose host vanished.

use super::*;
use crate::publish::LOST_KEPT;
use crate::registration::CHECKS_MAX;

const TTL: Duration = Duration::from_secs(30);

fn beating(id: &str) -> Registration {
    let mut beating = registration(id, "web");
    beating.checks[0].kind = CheckKind::Ttl;
    beating.checks[0].interval = TTL;
    beating
}

fn status(host: &Discovery) -> Option<Status> {
    Some(host.snapshot().service("web")?.instances[0].status)
}

fn health(status: Status) -> Health {
    Health { status, output: "said so".into() }
}

#[test]
fn a_report_is_good_for_the_ttl_and_no_longer() {
    let t0 = t0();
    let mut host = host(1, t0);
    host.register(t0, WALL, beating("1")).unwrap();
    assert_eq!(status(&host), Some(Status::Critical), "nothing was reported yet");
    host.report_check(t0, WALL, "service:1", health(Status::Passing)).unwrap();
    assert_eq!(status(&host), Some(Status::Passing));

    let almost = t0 + TTL - Duration::from_millis(1);
    host.handle_timeout(almost, WALL);
    assert_eq!(status(&host), Some(Status::Passing));
    // Each report, whatever it says, is good for the whole TTL.
    host.report_check(almost, WALL, "service:1", health(Status::Warning)).unwrap();
    host.handle_timeout(t0 + TTL, WALL);
    assert_eq!(status(&host), Some(Status::Warning));
    assert!(host.poll_timeout().is_some_and(|due| due <= almost + TTL), "it wakes for the expiry");
    host.handle_timeout(almost + TTL, WALL);
    assert_eq!(status(&host), Some(Status::Critical));
    let output = host.snapshot().service("web").unwrap().instances[0].checks[0].output.clone();
    assert!(output.contains("TTL expired"), "{output}");
    host.report_check(almost + TTL, WALL, "service:1", health(Status::Passing)).unwrap();
    assert_eq!(status(&host), Some(Status::Passing), "the next report brings it back");
}

#[test]
fn reports_are_for_checks_with_a_ttl_only() {
    let t0 = t0();
    let mut host = host(1, t0);
    host.register(t0, WALL, registration("1", "web")).unwrap();
    let report =
        |host: &mut Discovery, id: &str| host.report_check(t0, WALL, id, health(Status::Passing));
    let no_such = Err(RegisterError::NoSuchCheck("service:2".into()));
    assert_eq!(report(&mut host, "service:2"), no_such);
    let not_reported = Err(RegisterError::NotReported("service:1".into()));
    assert_eq!(report(&mut host, "service:1"), not_reported);
    assert_eq!(status(&host), Some(Status::Critical));
}

#[test]
fn a_restart_and_a_second_registration_keep_what_was_reported() {
    let t0 = t0();
    let mut host = host(1, t0);
    host.register(t0, WALL, beating("1")).unwrap();
    host.report_check(t0, WALL, "service:1", health(Status::Passing)).unwrap();
    let saved = host.saved();
    let mut again = Discovery::new(config(1), Some(saved), t0, WALL, [9; 32], [9; 16]);
    assert_eq!(status(&again), Some(Status::Passing));
    again.register(t0, WALL, beating("1")).unwrap();
    assert_eq!(status(&again), Some(Status::Passing), "clients register again after a restart");
    again.handle_timeout(t0 + TTL, WALL);
    assert_eq!(status(&again), Some(Status::Critical), "it has to go on reporting");
}

#[test]
fn what_is_critical_for_too_long_is_withdrawn() {
    let t0 = t0();
    let mut host = host(1, t0);
    let mut one = beating("1");
    // Less than is allowed: it counts as a minute, as Consul has it.
    one.checks[0].deregister_after = Some(Duration::from_secs(1));
    host.register(t0, WALL, one).unwrap();
    host.register(t0, WALL, registration("2", "web")).unwrap();
    host.report_check(t0, WALL, "service:1", health(Status::Passing)).unwrap();
    let expired = t0 + TTL;
    host.handle_timeout(expired, WALL);
    host.handle_timeout(expired + Duration::from_secs(59), WALL);
    assert_eq!(host.registrations().count(), 2);
    events(&mut host);
    let due = expired + Duration::from_secs(60);
    assert!(host.poll_timeout().is_some_and(|at| at <= due));
    host.handle_timeout(due, WALL);
    let left: Vec<&str> = host.registrations().map(|one| &*one.id).collect();
    assert_eq!(left, ["2"], "the other one may be critical for ever");
    let withdrawn = Event::Withdrawn { id: "1".into(), check: "service:1".into() };
    let events = events(&mut host);
    assert!(events.contains(&withdrawn) && events.contains(&Event::SaveDue), "{events:?}");
}

#[test]
fn checks_come_and_go_and_the_others_keep_their_health() {
    let t0 = t0();
    let mut host = host(1, t0);
    host.register(t0, WALL, beating("1")).unwrap();
    host.report_check(t0, WALL, "service:1", health(Status::Passing)).unwrap();
    let second = Check { id: "second".into(), ..beating("1").checks.remove(0) };
    let with = host.with_check("1", second.clone()).unwrap();
    host.register(t0, WALL, with).unwrap();
    assert_eq!(status(&host), Some(Status::Critical), "the new one has not reported");
    let with_once = host.with_check("1", second).unwrap();
    assert_eq!(with_once.checks.len(), 2, "the same id is the same check");
    let without = host.without_check("second").unwrap();
    host.register(t0, WALL, without).unwrap();
    assert_eq!(status(&host), Some(Status::Passing));
    assert_eq!(host.without_check("second"), Err(RegisterError::NoSuchCheck("second".into())));
    let unknown = host.with_check("9", beating("9").checks.remove(0));
    assert_eq!(unknown, Err(RegisterError::NoSuchId("9".into())));
}

#[test]
fn maintenance_outlives_a_restart_and_ends_with_the_instance() {
    let t0 = t0();
    let mut host = host(1, t0);
    let mut configured = registration("1", "web");
    (configured.checks, configured.origin) = (vec![], Origin::Configuration);
    host.register(t0, WALL, configured.clone()).unwrap();
    host.set_maintenance(t0, WALL, "1", Some("new disk".into())).unwrap();
    let check =
        |host: &Discovery| host.snapshot().service("web").unwrap().instances[0].checks.clone();
    assert_eq!(status(&host), Some(Status::Critical));
    assert_eq!(check(&host)[0].id, "_service_maintenance:1");
    assert_eq!(check(&host)[0].notes, "new disk");
    host.set_host_maintenance(t0, WALL, Some("rack".into())).unwrap();
    let draining = |host: &Discovery| host.snapshot().nodes[&1].draining;
    assert!(draining(&host));
    assert_eq!(host.snapshot().nodes[&1].drain_reason, "rack");

    let mut again = Discovery::new(config(1), Some(host.saved()), t0, WALL, [9; 32], [9; 16]);
    again.register(t0, WALL, configured.clone()).unwrap();
    assert_eq!(status(&again), Some(Status::Critical));
    assert!(draining(&again));
    // A drain of the process that ends does not end the operator's.
    again.set_draining(t0, WALL, true);
    again.set_draining(t0, WALL, false);
    assert!(draining(&again));
    again.set_host_maintenance(t0, WALL, None).unwrap();
    assert!(!draining(&again));

    again.deregister(t0, WALL, "1").unwrap();
    again.register(t0, WALL, configured).unwrap();
    assert_eq!(status(&again), Some(Status::Passing), "it is another one");
    let unknown = again.set_maintenance(t0, WALL, "9", None);
    assert_eq!(unknown, Err(RegisterError::NoSuchId("9".into())));
}

fn host_check(id: &str) -> Check {
    let beating = beating("1").checks.remove(0);
    Check { id: id.into(), initial: Status::Critical, ..beating }
}

#[test]
fn a_check_of_the_host_counts_for_all_on_it_everywhere() {
    let t0 = t0();
    let mut hosts = pair(t0);
    let later = t0 + Duration::from_millis(40);
    let ok = Health { status: Status::Passing, output: "listens".into() };
    hosts[1].set_health(t0, WALL, "1", 0, ok).unwrap();
    hosts[1].register_host_check(t0, WALL, host_check("disk")).unwrap();
    assert_eq!(status(&hosts[1]), Some(Status::Critical), "it has not been reported on yet");
    let seen = |hosts: &mut Vec<Discovery>, now: Instant| {
        hosts[1].handle_timeout(now, WALL);
        talk(now, hosts);
        hosts[0].handle_timeout(now + Duration::from_millis(20), WALL);
        status(&hosts[0])
    };
    assert_eq!(seen(&mut hosts, later), Some(Status::Critical));
    hosts[1].report_check(later, WALL, "disk", health(Status::Passing)).unwrap();
    let later = later + Duration::from_secs(1);
    assert_eq!(seen(&mut hosts, later), Some(Status::Passing));
    let node = &hosts[0].snapshot().nodes[&2];
    assert_eq!((&*node.checks[0].id, &*node.checks[0].output), ("disk", "said so"));

    // The next report is owed, as it is by applications.
    assert!(hosts[1].poll_timeout().is_some_and(|due| due <= later + TTL));
    hosts[1].handle_timeout(later + TTL, WALL);
    assert_eq!(status(&hosts[1]), Some(Status::Critical));
    hosts[1].deregister_host_check(later + TTL, WALL, "disk").unwrap();
    assert_eq!(status(&hosts[1]), Some(Status::Passing));
    let gone = hosts[1].deregister_host_check(later + TTL, WALL, "disk");
    assert_eq!(gone, Err(RegisterError::NoSuchCheck("disk".into())));
}

#[test]
fn checks_of_the_host_outlive_a_restart_and_have_ids_of_their_own() {
    let t0 = t0();
    let mut host = host(1, t0);
    host.register(t0, WALL, registration("1", "web")).unwrap();
    let taken = host.register_host_check(t0, WALL, host_check("service:1")).unwrap_err();
    assert!(taken.to_string().contains("of the instance \"1\": use another"), "{taken}");
    host.register_host_check(t0, WALL, host_check("disk")).unwrap();
    let mut other = registration("2", "web");
    other.checks[0].id = "disk".into();
    let taken = host.register(t0, WALL, other).unwrap_err();
    assert!(taken.to_string().contains("of this host: use another"), "{taken}");
    host.report_check(t0, WALL, "disk", health(Status::Warning)).unwrap();
    host.register_host_check(t0, WALL, host_check("disk")).unwrap();
    let states = |host: &Discovery| -> Vec<(String, Status)> {
        let node = Arc::clone(&host.snapshot().nodes[&1]);
        node.checks.iter().map(|check| (check.id.clone(), check.status)).collect()
    };
    assert_eq!(states(&host), [("disk".to_owned(), Status::Warning)], "the same again is the same");
    let mut run_here = host_check("port");
    run_here.kind = CheckKind::Tcp { authority: "127.0.0.1:22".into(), tls: None };
    host.register_host_check(t0, WALL, run_here).unwrap();
    let whose: Vec<(&str, &str)> = host.checks().map(|(of, check)| (of, &*check.id)).collect();
    assert_eq!(whose, [("", "disk"), ("", "port"), ("1", "service:1")]);
    let not_reported = Err(RegisterError::NotReported("port".into()));
    assert_eq!(host.report_check(t0, WALL, "port", health(Status::Passing)), not_reported);
    host.set_host_health(t0, WALL, "port", health(Status::Passing)).unwrap();

    let mut again = Discovery::new(config(1), Some(host.saved()), t0, WALL, [9; 32], [9; 16]);
    let known = [("disk".to_owned(), Status::Warning), ("port".to_owned(), Status::Critical)];
    assert_eq!(states(&again), known, "one that is run here is run again first");
    again.handle_timeout(t0 + TTL, WALL);
    assert_eq!(states(&again)[0].1, Status::Critical, "the report goes on being owed");
    for number in 2..CHECKS_MAX {
        again.register_host_check(t0, WALL, host_check(&number.to_string())).unwrap();
    }
    let full = again.register_host_check(t0, WALL, host_check("one more")).unwrap_err();
    assert!(full.to_string().contains("checks of the host: more than the limit of 8"), "{full}");
}

/// Two hosts that know each other; the second offers `web`.
fn pair(t0: Instant) -> Vec<Discovery> {
    let mut hosts = vec![host(1, t0), host(2, t0)];
    let mut web = registration("1", "web");
    web.advertise = Some(web.address);
    hosts[1].register(t0, WALL, web).unwrap();
    hosts[0].join(t0, address(2));
    talk(t0, &mut hosts);
    hosts[0].handle_timeout(t0 + Duration::from_millis(20), WALL);
    assert!(hosts[0].snapshot().service("web").is_some());
    hosts
}

/// Lets a host find out that the other does not answer.
fn alone_until(host: &mut Discovery, mut now: Instant, until: Instant) {
    while now < until {
        now = host.poll_timeout().unwrap_or(until).clamp(now, until);
        host.handle_timeout(now, WALL);
        while host.poll_transmit().is_some() {}
        while let Some(dial) = host.poll_dial() {
            host.handle_response(now, WALL, dial.id, Err(DialError::Other));
        }
    }
}

fn lost(host: &Discovery) -> usize {
    host.snapshot().lost_instances("web").count()
}

#[test]
fn what_a_killed_host_offered_stays_visible_for_three_days() {
    let t0 = t0();
    let mut a = pair(t0).remove(0);
    let index = a.snapshot().service_index("web");
    let down = t0 + Duration::from_secs(60);
    alone_until(&mut a, t0 + Duration::from_millis(20), down);
    assert!(a.snapshot().service("web").is_none(), "nobody chooses it, and DNS does not know it");
    assert_eq!(lost(&a), 1);
    let snapshot = a.snapshot();
    let instance = snapshot.lost_instances("web").next().unwrap();
    assert_eq!(instance.node.status, NodeStatus::Failed);
    let after = snapshot.service_index("web");
    assert!(after > index, "who watches the service is woken");
    // Its record is forgotten after an hour; what it offered is not.
    alone_until(&mut a, down, t0 + 2 * DOWN_KEPT);
    assert_eq!(lost(&a), 1);
    let end = down + LOST_KEPT + Duration::from_secs(60);
    a.handle_timeout(end, WALL);
    a.handle_timeout(end + Duration::from_secs(1), WALL);
    assert_eq!(lost(&a), 0);
    assert!(a.snapshot().service_index("web") > after);
}

#[test]
fn a_goodbye_leaves_nothing_and_a_return_ends_it() {
    let t0 = t0();
    let mut hosts = pair(t0);
    hosts[1].leave(t0, WALL);
    talk(t0, &mut hosts);
    hosts[0].handle_timeout(t0 + Duration::from_millis(40), WALL);
    assert!(hosts[0].snapshot().service("web").is_none());
    assert_eq!(lost(&hosts[0]), 0);

    let mut hosts = pair(t0);
    let down = t0 + Duration::from_secs(60);
    alone_until(&mut hosts[0], t0 + Duration::from_millis(20), down);
    assert_eq!(lost(&hosts[0]), 1);
    // Another process at its address, with an id of its own and without the service.
    let mut new = config(2);
    new.node.id = 77;
    hosts[1] = Discovery::new(new, None, down, WALL + 60_000, [7; 32], [7; 16]);
    hosts[1].join(down, address(1));
    talk(down, &mut hosts);
    hosts[0].handle_timeout(down + Duration::from_millis(20), WALL + 60_000);
    assert_eq!(lost(&hosts[0]), 0);
}
