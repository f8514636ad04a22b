//! Consul's HTTP API as its clients use it: what is documented is what is answered, and nothing of theirs is a 404.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use evenkeel_tests::client::{self, Answer, Version, get, request};
use evenkeel_tests::mesh::{Host, Lab, Setup};
use evenkeel_tests::wait::{self, SOON};
use http::Method;
use serde_json::{Value, json};

use super::trio::Trio;

fn ask(host: &Host, path: &str) -> Answer {
    get(host.discovery().into(), "discovery", path).unwrap()
}

fn put(host: &Host, path: &str, body: &Value) -> Answer {
    let head = http::Request::put(path).header("host", "discovery");
    let request = head.body(http_body_util::Full::new(body.to_string().into())).unwrap();
    client::send(host.discovery().into(), Version::Http1, request).unwrap()
}

fn ids(answer: &Value, pointer: &str) -> Vec<String> {
    let entries = answer.as_array().unwrap().iter();
    entries.map(|entry| entry.pointer(pointer).unwrap().as_str().unwrap().to_owned()).collect()
}

/// The rows of the table in the documentation: method, path, whether it is answered, the sentence.
fn documented() -> Vec<(String, String, bool, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/consul.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().filter(|line| line.contains("| `/v1/"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [method, path, here, notes] = cells[..] else { panic!("{row}") };
        let path = path.trim_matches('`').to_owned();
        (method.to_owned(), path, here == "yes", notes.to_owned())
    })
    .collect()
}

/// Every row of the documentation's table is so: what is said to be here is answered, the rest is a 501 with its sentence.
#[test]
fn the_documented_paths_are_those_of_the_server() {
    let lab = Lab::new(1);
    let host = lab.mesh(&[Setup::default()]).remove(0);
    let rows = documented();
    assert!(rows.len() > 60, "the table is in docs/consul.md: {} rows", rows.len());
    for (method, path, is_here, notes) in rows {
        let path = path.replace("{state}", "any").replace(['{', '}'], "");
        let method = if method == "any" { "GET" } else { &*method };
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = client::send(
            host.discovery().into(),
            Version::Http1,
            request(method, "discovery", &path),
        )
        .unwrap();
        let (status, text) = (answer.status.as_u16(), answer.text());
        if is_here {
            // Of what is asked for by an id, or changed, this test knows none that is right.
            let is_answered = matches!(status, 200 | 400) || status == 404 && notes.contains("404");
            let is_answered = is_answered || notes.starts_with("as `pass`") && status == 404;
            let is_answered = is_answered || path.contains("service/maintenance") && status == 400;
            assert!(is_answered, "{path}: {status} {text}");
        } else {
            assert_eq!(status, 501, "{path}: {text}");
            assert!(text.contains(&notes), "{path}: {text}");
        }
    }
    for path in ["/v1/nothing", "/v1/health/nothing/web", "/v1/agent"] {
        assert_eq!(ask(&host, path).status, 501, "{path}");
    }
}

/// The parameters in the documentation's table.
fn documented_parameters() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/consul.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once("\n## Parameters\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let cells = section.lines().filter(|line| line.starts_with("| `"));
    let cells = cells.map(|row| row.split('|').nth(1).unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// A query, and how many instances it finds, or the status of its refusal.
type ParameterCase = (&'static str, Result<usize, u16>);

/// Every parameter of the documentation's table has a case here, and does what is said of it.
#[test]
fn the_documented_parameters_are_those_of_the_server() {
    let lab = Lab::new(1);
    let zoned = Setup { zone: "a".into(), join: Vec::new(), ..Setup::default() };
    let host = lab.mesh(&[zoned]).remove(0);
    for (id, status) in [("web-1", "passing"), ("web-2", "critical")] {
        let check = json!({"TTL": "1h", "Status": status});
        let body = json!({"Name": "web", "ID": id, "Port": 9001, "Tags": [id], "Check": check});
        assert_eq!(put(&host, "/v1/agent/service/register", &body).status, 200);
    }
    host.wait_for_passing("web", 1);
    let cases: [(&str, &[ParameterCase]); 19] = [
        ("index", &[("index=1", Ok(2)), ("index=x", Err(400))]),
        ("wait", &[("index=1&wait=10s", Ok(2)), ("wait=10", Err(400))]),
        ("passing", &[("passing", Ok(1)), ("passing=false", Ok(2)), ("passing=maybe", Err(400))]),
        ("tag", &[("tag=WEB-2", Ok(1)), ("tag=web-1&tag=web-2", Ok(0))]),
        ("node-meta", &[("node-meta=zone:a", Ok(2)), ("node-meta=zone:b", Ok(0))]),
        (
            "filter",
            &[
                ("filter=%22web-1%22+in+Service.Tags", Ok(1)),
                ("filter=Service.ID+matches+%22web%22", Err(400)),
            ],
        ),
        ("stale", &[("stale", Ok(2)), ("stale&consistent", Err(400))]),
        ("consistent", &[("consistent", Ok(2))]),
        ("pretty", &[("pretty", Ok(2))]),
        ("dc", &[("dc=test", Ok(2)), ("dc=other", Err(500))]),
        ("ns", &[("ns=default", Ok(2)), ("ns=other", Err(400))]),
        ("partition", &[("partition=", Ok(2)), ("partition=other", Err(400))]),
        ("peer", &[("peer=", Ok(2)), ("peer=other", Err(400))]),
        ("sg", &[("sg=", Ok(2)), ("sg=other", Err(400))]),
        ("hash", &[("hash=abc", Err(501))]),
        ("near", &[("near=_agent", Ok(2))]),
        ("cached", &[("cached", Ok(2))]),
        ("token", &[("token=secret", Ok(2))]),
        ("merge-central-config", &[("merge-central-config", Ok(2))]),
    ];
    let tested: BTreeSet<String> = cases.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(documented_parameters(), tested, "documented, and tested here");
    for (query, expected) in cases.iter().flat_map(|(_, queries)| *queries) {
        let answer = ask(&host, &format!("/v1/health/service/web?{query}"));
        let found = match answer.status.as_u16() {
            200 => Ok(answer.json().as_array().unwrap().len()),
            refused => Err(refused),
        };
        assert_eq!(found, *expected, "{query}: {}", answer.text());
    }
    assert!(ask(&host, "/v1/health/service/web?pretty").text().contains("\n    "));
}

/// Traefik's watch: a blocking query on the checks of all wakes when one changes, and not at the rate of changes.
#[test]
fn who_watches_all_checks_hears_of_each_change() {
    let lab = Lab::new(1);
    let host = lab.mesh(&[Setup::default()]).remove(0);
    let first = ask(&host, "/v1/health/state/any");
    assert!(ids(&first.json(), "/CheckID").contains(&"serfHealth".to_owned()));
    let index = first.header("x-consul-index").to_owned();
    let path = format!("/v1/health/state/any?index={index}&wait=20s");
    let began = Instant::now();
    let second = std::thread::scope(|scope| {
        let watch = scope.spawn(|| ask(&host, &path));
        let body = json!({"Name": "web", "Port": 9001, "Check": {"TTL": "30s"}});
        assert_eq!(put(&host, "/v1/agent/service/register", &body).status, 200);
        watch.join().unwrap()
    });
    assert!(began.elapsed() < Duration::from_secs(15), "it was woken: {:?}", began.elapsed());
    assert_ne!(second.header("x-consul-index"), index);
    assert!(ids(&second.json(), "/CheckID").contains(&"service:web".to_owned()));
    // An index of a host whose clock is ahead is not waited for.
    let began = Instant::now();
    let ahead = ask(&host, "/v1/health/service/web?index=9999999999999999&wait=20s");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_ne!(ahead.header("x-consul-index"), "9999999999999999");
}

/// An application that reports by itself, as Spring Cloud and go-micro do.
#[test]
fn a_ttl_check_passes_while_it_is_reported() {
    let lab = Lab::new(1);
    let host = lab.mesh(&[Setup::default()]).remove(0);
    let body = json!({"Name": "web", "ID": "web-1", "Port": 9001, "Check": {"TTL": "2s"}});
    assert_eq!(put(&host, "/v1/agent/service/register", &body).status, 200);
    host.wait_for_passing("web", 0);
    assert_eq!(put(&host, "/v1/agent/check/pass/service:web-1?note=fine", &json!({})).status, 200);
    host.wait_for_passing("web", 1);
    assert_eq!(ask(&host, "/v1/agent/checks").json()["service:web-1"]["Output"], "fine");
    host.wait_for_passing("web", 0);
    let checks = ask(&host, "/v1/health/checks/web").json();
    assert!(checks[0]["Output"].as_str().unwrap().contains("TTL expired"), "{checks}");
    let update = json!({"Status": "warning", "Output": "hot"});
    assert_eq!(put(&host, "/v1/agent/check/update/service:web-1", &update).status, 200);
    let of_it = "/v1/health/state/warning";
    wait::for_true("the report shows", SOON, || {
        ids(&ask(&host, of_it).json(), "/Output") == ["hot"]
    });
    assert_eq!(put(&host, "/v1/agent/check/pass/nosuch", &json!({})).status, 404);

    let beat = json!({"Name": "beat", "ServiceID": "web-1", "TTL": "30s"});
    assert_eq!(put(&host, "/v1/agent/check/register", &beat).status, 200);
    assert!(ask(&host, "/v1/agent/checks").json()["beat"].is_object());
    assert_eq!(put(&host, "/v1/agent/check/deregister/beat", &json!({})).status, 200);
    assert!(ask(&host, "/v1/agent/checks").json()["beat"].is_null());
}

/// What deploy scripts do: out of every look-up for a while, and back.
#[test]
fn maintenance_of_an_instance_and_of_the_host() {
    let trio = Trio::start(Lab::new(1), &Setup::default());
    let host = &trio.hosts[0];
    for path in ["/v1/agent/service/maintenance/payments", "/v1/agent/maintenance"] {
        let on = put(host, &format!("{path}?enable=true&reason=new+disk"), &json!({}));
        assert_eq!(on.status, 200, "{}", on.text());
        trio.caller.wait_for_passing("payments", 1);
        for _ in 0..10 {
            assert_eq!(trio.caller.get("payments", "/").header("x-app"), "app-3", "{path}");
        }
        assert_eq!(put(host, &format!("{path}?enable=false"), &json!({})).status, 200);
        trio.caller.wait_for_passing("payments", 2);
    }
}

/// Prometheus finds its targets here: one that is killed must stay long enough for `up == 0` to fire.
#[test]
fn what_was_on_a_killed_host_stays_visible_as_critical() {
    let mut trio = Trio::start(Lab::new(1), &Setup::default());
    trio.hosts.remove(0);
    trio.caller.wait_for_passing("payments", 1);
    let all = || ask(&trio.caller, "/v1/health/service/payments").json();
    wait::for_true("the killed host's instance shows", SOON, || {
        all().as_array().unwrap().len() == 2
    });
    let critical = all()
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| {
            let checks = entry["Checks"].as_array().unwrap();
            checks.iter().any(|c| c["CheckID"] == "serfHealth" && c["Status"] == "critical")
        })
        .count();
    assert_eq!(critical, 1);
    for _ in 0..10 {
        assert_eq!(trio.caller.get("payments", "/").header("x-app"), "app-3", "never chosen");
    }
}

/// Registrations as Steeltoe, Spring and registrator write them, and what selects among them.
#[test]
fn registrations_of_frameworks_and_filters() {
    let lab = Lab::new(1);
    let host = lab.mesh(&[Setup::default()]).remove(0);
    let at = lab.ip(1);
    for body in [
        json!({"Name": "a", "Port": 9001, "Check": {"TCP": format!("{at}:9001"), "Interval": "10s", "DeregisterCriticalServiceAfter": "30m"}}),
        json!({"Name": "b", "Port": 9001, "Check": {"HTTP": format!("http://{at}:9001/"), "Header": {"X-Probe": ["1"]}, "TLSSkipVerify": true, "Interval": "10s"}}),
        json!({"Name": "c", "Port": 9001, "Check": {"GRPC": format!("{at}:9001"), "Interval": "10s"}}),
        json!({"Name": "f", "Port": 9001, "Check": {"HTTP": format!("https://{at}:9001/"), "TLSSkipVerify": true, "Interval": "10s"}}),
        json!({"Name": "d", "Port": 8080, "Address": "localhost", "Tags": ["v2"], "Meta": {"secure": "false"}}),
        json!({"Name": "e", "Tags": ["v1"], "TaggedAddresses": {"wan": {"Address": "web.example", "Port": 443}}}),
    ] {
        let answer = put(&host, "/v1/agent/service/register", &body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    }
    let script =
        json!({"Name": "g", "Port": 1, "Check": {"Args": ["/bin/true"], "Interval": "10s"}});
    let refused = put(&host, "/v1/agent/service/register", &script);
    assert_eq!(refused.status, 501);
    assert!(refused.text().contains("use an HTTP, TCP, GRPC or TTL check"), "{}", refused.text());
    let one = ask(&host, "/v1/agent/service/e").json();
    assert_eq!(one["Port"], 0);
    assert_eq!(one["TaggedAddresses"]["wan"], json!({"Address": "web.example", "Port": 443}));

    let services = ask(&host, "/v1/catalog/services?filter=v2%20in%20ServiceTags").json();
    assert_eq!(services, json!({"d": ["v2"]}));
    let path = "/v1/health/service/d?filter=Service.Meta.secure%20%3D%3D%20%22false%22";
    assert_eq!(ids(&ask(&host, path).json(), "/Service/ID"), ["d"]);
    let path = "/v1/health/service/d?filter=Service.Meta.secure%20!%3D%20false";
    assert_eq!(ask(&host, path).json(), json!([]));
    let wrong = ask(&host, "/v1/health/service/d?filter=Tags%20contains%20v2");
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("Service.Tags"), "{}", wrong.text());
}
