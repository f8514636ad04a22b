//! A Doorman client in another language, written from the protocol's table alone, against any host of a mesh.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use evenkeel_tests::mesh::{Lab, Setup};
use evenkeel_tests::wait::{self, SOON};
use serde_json::Value;

use super::grpc::{python, script};

/// What the client was answered, by whom it asked first and by whom the greedy one asked.
fn answers(first: &str, greedy: &str) -> Value {
    let out = Command::new(python()).arg(script("doorman.py")).args([first, greedy]).output();
    let out = out.unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&out.stderr)))
}

fn setup(lab: &Lab, number: u8) -> Setup {
    let resources = "[{match: db, capacity: 500, per: 1s}, {match: minute, capacity: 600, per: 1m, safe: 60}, \
                     {match: jobs, capacity: 8, safe: unlimited}]";
    Setup {
        join: vec![1, 2],
        more: format!(
            "ratelimit: {{listen: \"{}:7113\", resources: {resources}}}\n",
            lab.ip(number)
        ),
        ..Setup::default()
    }
}

fn a_doorman_client_gets_leases_from_any_host(workers: usize) {
    let lab = Lab::new(workers);
    let _hosts = lab.mesh(&[setup(&lab, 1), setup(&lab, 2)]);
    let target = |number: u8| format!("{}:7113", lab.ip(number));
    let unix = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // Hosts that have just met do not yet know what each of them owns. Everything is given back, so the next try begins anew.
    let mut answer = Value::Null;
    wait::for_true("both hosts lend", SOON, || {
        answer = answers(&target(1), &target(2));
        answer["first"]["leases"]["db"]["capacity"] == 10.0
            // The host may have had to borrow first.
            && answer["refreshed"]["leases"]["db"]["capacity"] == 20.0
            && answer["first"]["leases"]["minute"]["capacity"].as_f64() > Some(2.0)
            && answer["greedy"]["leases"]["db"]["capacity"].as_f64() > Some(100.0)
    });
    assert_eq!(answer["discovery"]["address"], target(1), "{answer:#}");
    assert_eq!(answer["discovery"]["is_master"], 1);

    let lease = &answer["first"]["leases"]["db"];
    let expiry = lease["expiry_time"].as_u64().unwrap();
    assert!(
        expiry > unix() - 30 && expiry <= unix() + 20,
        "at most the lease from now: {answer:#}"
    );
    assert_eq!(lease["refresh_interval"], 5);
    let greedy = answer["greedy"]["leases"]["db"]["capacity"].as_f64().unwrap();
    assert!(greedy <= 480.0, "two clients of two hosts share 500: {answer:#}");
    let minute = &answer["first"]["leases"]["minute"];
    assert!(
        minute["capacity"].as_f64().unwrap() <= 10.0,
        "600 a minute are 10 a second: {answer:#}"
    );
    assert_eq!(minute["safe"], 1.0);
    for call in ["first", "refreshed", "greedy"] {
        assert_eq!(answer[call]["mastership"], false, "{call}: no host sends a client elsewhere");
    }
    assert_eq!(answer["released"].as_array().unwrap().len(), 0);
    assert!(answer["server"]["capacity"].as_f64().unwrap() <= 3.0, "{answer:#}");
    assert_eq!((&answer["server"]["kind"], &answer["server"]["safe"]), (&3.into(), &(-1.0).into()));

    for (call, code, details) in [
        ("nan", "INVALID_ARGUMENT", "resource `db`: wants NaN"),
        ("negative", "INVALID_ARGUMENT", "resource `db`: wants -1"),
        ("without_wants", "INVALID_ARGUMENT", "resource `db`: wants is missing"),
        ("without_client", "INVALID_ARGUMENT", "client_id is missing"),
        ("unknown", "NOT_FOUND", "resource `nosuch`: "),
        ("no_clients", "INVALID_ARGUMENT", "resource `jobs`: num_clients is 0"),
        ("not_a_message", "INTERNAL", ""),
    ] {
        assert_eq!(answer[call]["code"], code, "{call}: {answer:#}");
        assert!(
            answer[call]["details"].as_str().unwrap().starts_with(details),
            "{call}: {answer:#}"
        );
    }
    assert_eq!(answer["health"], 1, "SERVING");
    for listed in ["services", "services_before_v1"] {
        let services = answer[listed].as_array().unwrap();
        assert!(services.contains(&"doorman.Capacity".into()), "{listed}: {answer:#}");
    }
}

each_workers!(a_doorman_client_gets_leases_from_any_host);
