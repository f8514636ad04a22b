use proptest::prelude::*;
use serde_json::json;

use std::time::Duration;

use super::check::split_url;
use super::*;
use crate::consul::go_duration;
use crate::health::Status;
use crate::registration::{Check, CheckKind, CheckTls};

const NODE: &str = "10.0.0.5";

fn decode(body: &Value) -> Result<Registration, DecodeError> {
    decode_registration(body.to_string().as_bytes(), NODE.parse().unwrap(), None)
}

fn check(check: &Value) -> Result<Check, DecodeError> {
    let registration = decode(&json!({"Name": "web", "Port": 80, "Check": check}))?;
    Ok(registration.checks.into_iter().next().unwrap())
}

#[test]
fn a_whole_registration() {
    let registration = decode(&json!({
        "ID": "web-1", "Name": "Web", "Tags": ["a", "b"], "Address": "10.0.0.9", "Port": 8080,
        "Meta": {"k": "v"}, "EnableTagOverride": false, "Weights": {"Passing": 10, "Warning": 1},
        "Check": {"HTTP": "http://10.0.0.9:8080/health?full=1", "Interval": "10s", "Timeout": "1s500ms"},
    }))
    .unwrap();
    assert_eq!(registration.service, "web");
    assert_eq!(registration.id, "web-1");
    assert_eq!(registration.address, "10.0.0.9:8080".parse().unwrap());
    assert_eq!(registration.advertise, Some(registration.address));
    assert_eq!(registration.tags, ["a", "b"]);
    assert_eq!(registration.meta["k"], "v");
    assert_eq!(registration.weights, Weights { passing: 10, warning: 1 });
    let [check] = &registration.checks[..] else { panic!("one check") };
    assert_eq!(check.id, "service:web-1");
    assert_eq!(
        (check.interval, check.timeout),
        (Duration::from_secs(10), Duration::from_millis(1500))
    );
    assert_eq!((check.rise, check.fall, check.initial), (1, 1, Status::Critical));
    let CheckKind::Http { authority, path, method, tls: None, .. } = &check.kind else {
        panic!("an HTTP check")
    };
    assert_eq!((&**authority, &**path, &**method), ("10.0.0.9:8080", "/health?full=1", "GET"));
}

#[test]
fn keys_in_any_case_and_nulls() {
    let registration = decode(&json!({
        "name": "web", "port": 80, "tags": null, "meta": null, "address": "", "enable_tag_override": true,
        "checks": [{"tcp": "localhost:80", "interval": "1s", "success_before_passing": 3, "status": "passing"},
                   {"TCP": "localhost:81", "Interval": "1s", "failuresbeforecritical": 2, "Name": "second"}],
    }))
    .unwrap();
    assert_eq!(registration.id, "web");
    assert_eq!(registration.address, "10.0.0.5:80".parse().unwrap());
    let checks: Vec<_> =
        registration.checks.iter().map(|c| (&*c.id, c.rise, c.fall, c.initial)).collect();
    assert_eq!(
        checks,
        [("service:web:1", 3, 1, Status::Passing), ("service:web:2", 1, 2, Status::Critical)]
    );
    assert_eq!(registration.checks[1].name, "second");
}

#[test]
fn a_loopback_address_is_announced_among_loopback_hosts_only() {
    let body = json!({"Name": "web", "Address": "127.0.0.1", "Port": 80}).to_string();
    let announced = |node: &str| {
        decode_registration(body.as_bytes(), node.parse().unwrap(), None).unwrap().advertise
    };
    assert_eq!(announced("10.0.0.5"), None);
    assert_eq!(announced("127.0.0.2"), Some("127.0.0.1:80".parse().unwrap()));
}

#[test]
fn table_of_what_is_refused_and_why() {
    for (body, said) in [
        (json!([]), "the body must be an object"),
        (json!({"Port": 80}), "Name is missing"),
        (json!({"Name": "web", "Port": 70000}), "Port must be"),
        (json!({"Name": "web", "Port": "80"}), "Port must be a whole number"),
        (json!({"Name": "web", "Port": 80, "Address": "web.example"}), "Address must be an IP"),
        (
            json!({"Name": "web", "Port": 80, "Address": "0.0.0.0"}),
            "Address must be one that others",
        ),
        (json!({"Name": "web", "TaggedAddresses": {"lan": {"Port": 1}}}), "one without Address"),
        (json!({"Name": "web", "EnableTagOverride": 1}), "EnableTagOverride must be true or false"),
        (json!({"Name": "web", "Proxy": {"Mode": "x"}}), "not built: Proxy"),
        (json!({"Name": "a b", "Port": 80}), "service name"),
        (json!({"Name": "web", "Port": 80, "Tags": "a"}), "Tags must be a list"),
        (json!({"Name": "web", "Port": 80, "Meta": {"a": 1}}), "Meta must be an object of strings"),
        (json!({"Name": "web", "Port": 80, "Connect": {"Native": true}}), "not built: Connect"),
        (json!({"Name": "web", "Port": 80, "Kind": "connect-proxy"}), "not built: Kind"),
        (json!({"Name": "web", "Port": 80, "Namespace": "team"}), "not built: Namespace"),
    ] {
        let error = decode(&body).unwrap_err().to_string();
        assert!(error.contains(said), "{body}: {error}");
    }
    for (body, said) in [
        (json!({"TTL": "30s", "Interval": "1s"}), "TTL stands for Interval"),
        (json!({"TTL": "30s", "TCP": "a:80"}), "more than one of"),
        (json!({"GRPC": "a", "Interval": "1s"}), "host and a port"),
        (json!({"GRPC": "a:1", "Interval": "1s", "GRPCUseTLS": "yes"}), "GRPCUseTLS must be"),
        (json!({"HTTP": "https://a/", "Interval": "1s", "TLSServerName": "a b"}), "TLSServerName"),
        (json!({"TCP": "a:80", "Interval": "1s", "Header": {"a": ["b"]}}), "only an HTTP check"),
        (json!({"HTTP": "http://a/", "Interval": "1s", "Header": {"a": "b"}}), "Header must be"),
        (
            json!({"HTTP": "http://a/", "Interval": "1s", "Header": {"a b": ["c"]}}),
            "Header must be",
        ),
        (
            json!({"HTTP": "http://a/", "Interval": "1s", "Header": {"a": ["b\r\nc: d"]}}),
            "Header must",
        ),
        (json!({"HTTP": "http://a/", "Interval": "1s", "Header": {"Upgrade": ["x"]}}), "not built"),
        (json!({"Args": ["/bin/true"], "Interval": "1s"}), "not built: Args"),
        (json!({"TCP": "a:80", "Interval": "1s", "OutputMaxSize": 9}), "not built: OutputMaxSize"),
        (json!({"HTTP": "ftp://a/", "Interval": "1s"}), "must begin with http:// or https://"),
        (json!({"HTTP": "http://a b/", "Interval": "1s"}), "host and a port"),
        (json!({"HTTP": "http://a/x y", "Interval": "1s"}), "spaces"),
        (json!({"TCP": "a", "Interval": "1s"}), "host and a port"),
        (json!({"TCP": "a:99999", "Interval": "1s"}), "host and a port"),
        (json!({"Interval": "1s"}), "needs HTTP, TCP, GRPC or TTL"),
        (json!({"TCP": "a:80"}), "Interval is missing"),
        (json!({"TCP": "a:80", "Interval": "1ms"}), "at least 100ms"),
        (json!({"TCP": "a:80", "Interval": "soon"}), "must be a duration"),
        (
            json!({"TCP": "a:80", "Interval": "1s", "Status": "fine"}),
            "passing, warning or critical",
        ),
    ] {
        let error = check(&body).unwrap_err().to_string();
        assert!(error.contains(said), "{body}: {error}");
    }
}

#[test]
fn registrations_as_frameworks_send_them() {
    let check = |value: Value| check(&value).unwrap();
    let http = check(json!({
        "HTTP": "http://a/", "Interval": "10s", "Method": "POST", "Body": "ping", "Notes": "why",
        "Header": {"X-Probe": ["1", "2"], "Host": ["web.example"]}, "TLSSkipVerify": true,
        "DeregisterCriticalServiceAfter": "30m",
    }));
    assert_eq!((http.deregister_after, &*http.notes), (Some(Duration::from_secs(1800)), "why"));
    let CheckKind::Http { method, headers, body, tls: None, .. } = http.kind else {
        panic!("an HTTP check without TLS")
    };
    assert_eq!((&*method, &*body, headers["X-Probe"].len()), ("POST", "ping", 2));
    let grpc = check(json!({"GRPC": "a:50051/shop.Cart", "Interval": "10s", "GRPCUseTLS": false}));
    let wanted =
        CheckKind::Grpc { authority: "a:50051".into(), service: "shop.Cart".into(), tls: None };
    assert_eq!((grpc.kind, grpc.deregister_after), (wanted, None));
    let ttl = check(json!({"TTL": "30s", "Interval": null, "HTTP": "", "Status": "passing"}));
    assert_eq!((ttl.kind, ttl.interval), (CheckKind::Ttl, Duration::from_secs(30)));
    assert_eq!(ttl.initial, Status::Passing);

    // What clients that write every field send for what they do not want.
    let one = decode(&json!({
        "Name": "worker", "EnableTagOverride": true, "Connect": {"Native": false, "SidecarService": null},
        "Proxy": {"MeshGateway": {}, "Expose": {}}, "Kind": "", "Weights": null,
        "TaggedAddresses": {"wan": {"Address": "web.example", "Port": 443}, "lan": {"address": "10.0.0.5"}},
    }))
    .unwrap();
    assert!(one.enable_tag_override);
    assert_eq!(one.address, "10.0.0.5:0".parse().unwrap(), "no port: it listens nowhere");
    assert_eq!(one.tagged_addresses["wan"], ("web.example".to_owned(), 443));
    assert_eq!(one.tagged_addresses["lan"], ("10.0.0.5".to_owned(), 0));

    let named = json!({"Name": "web", "Address": "host-a.example", "Port": 80}).to_string();
    assert_eq!(host_to_look_up(named.as_bytes()), Some("host-a.example".to_owned()));
    let found = decode_registration(
        named.as_bytes(),
        NODE.parse().unwrap(),
        Some("10.0.0.7".parse().unwrap()),
    );
    assert_eq!(found.unwrap().address, "10.0.0.7:80".parse().unwrap());
    for address in ["", "10.0.0.9", "::1", "a b", "http://a", "1.2.3"] {
        let body = json!({"Name": "web", "Address": address}).to_string();
        assert_eq!(host_to_look_up(body.as_bytes()), None, "{address}");
    }
}

#[test]
fn checks_over_tls() {
    let kind = |value: Value| check(&value).unwrap().kind;
    let https = kind(json!({
        "HTTP": "https://web.example/health", "Interval": "10s", "TLSSkipVerify": true,
        "TLSServerName": "api.example",
    }));
    let CheckKind::Http { authority, path, tls, .. } = https else { panic!("an HTTP check") };
    assert_eq!((&*authority, &*path), ("web.example:443", "/health"));
    let named = CheckTls { server_name: Some("api.example".into()), skip_verify: true };
    assert_eq!(tls, Some(named));
    let grpc = kind(json!({"GRPC": "a:1", "Interval": "1s", "grpc_use_tls": true}));
    let plain = Some(CheckTls::default());
    let wanted =
        CheckKind::Grpc { authority: "a:1".into(), service: String::new(), tls: plain.clone() };
    assert_eq!(grpc, wanted);
    let tcp = kind(json!({"TCP": "a:1", "Interval": "1s", "TCPUseTLS": true}));
    assert_eq!(tcp, CheckKind::Tcp { authority: "a:1".into(), tls: plain });
    // What the one has says nothing of the other.
    let tcp =
        kind(json!({"TCP": "a:1", "Interval": "1s", "GRPCUseTLS": true, "TLSSkipVerify": true}));
    assert_eq!(tcp, CheckKind::Tcp { authority: "a:1".into(), tls: None });
}

#[test]
fn a_check_for_an_instance_that_is_registered_already_or_for_the_host() {
    let decode = |body: Value| decode_check_registration(body.to_string().as_bytes());
    let one = decode(json!({"Name": "beat", "ServiceID": "web-1", "TTL": "5s"})).unwrap();
    assert_eq!(one.instance.as_deref(), Some("web-1"));
    assert_eq!((&*one.check.id, &*one.check.name), ("beat", "beat"));
    let one =
        decode(json!({"Name": "beat", "ID": "b", "ServiceID": "web-1", "TTL": "5s"})).unwrap();
    assert_eq!(one.check.id, "b");
    let one = decode(json!({"Name": "disk", "ServiceID": "", "TTL": "5s"})).unwrap();
    assert_eq!((one.instance, &*one.check.id), (None, "disk"), "a check of the host itself");
    let error = decode(json!({"ServiceID": "web-1", "TTL": "5s"})).unwrap_err().to_string();
    assert!(error.contains("Name is missing"), "{error}");
}

#[test]
fn urls_and_durations() {
    for (url, is_https, authority, path) in [
        ("http://a", false, "a:80", "/"),
        ("http://a:8080?x=1", false, "a:8080", "/?x=1"),
        ("http://[::1]/h#frag", false, "[::1]:80", "/h"),
        ("http://[::1]:81/h", false, "[::1]:81", "/h"),
        ("https://a/h", true, "a:443", "/h"),
        ("https://[::1]:8443", true, "[::1]:8443", "/"),
    ] {
        let found = split_url(url).unwrap();
        assert_eq!((found.is_https, &*found.authority, &*found.path), (is_https, authority, path));
    }
    for (text, millis) in [("10s", 10_000), ("1m30s", 90_000), ("500ms", 500), ("1.5h", 5_400_000)]
    {
        assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "10", "s", "-1s", "1d", "1e9s", "99999999999h"] {
        assert_eq!(go_duration(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn random_bodies_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), duration in "[0-9.hmsuµn-]{0,12}", url in "http://[a:\\[\\]/?#@ ]{0,12}") {
        let _ = decode_registration(&bytes, NODE.parse().unwrap(), None);
        let _ = go_duration(&duration);
        let _ = split_url(&url);
    }
}
