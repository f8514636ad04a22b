use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::policy::{
    After, Balance, Factor, KeySource, Mode, Origin, Probation, Shard, ShardFallback, Zone,
};
use crate::ratelimit::{Algorithm, Direction, Fail, Safe};
use crate::settings::{Access, CheckKind, DataDir, Protocol};

const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn env() -> Environment {
    Environment { state_directory: Some("/state".into()), ..Environment::named("host-a") }
}

fn good(text: &str) -> Loaded {
    parse(text, "t.yaml", &env()).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

/// `line:column: message` of each problem.
fn problems(text: &str) -> Vec<String> {
    let found = parse(text, "t.yaml", &env()).err().map_or(Vec::new(), |problems| problems.0);
    found.iter().map(|p| format!("{}:{}: {}", p.line, p.column, p.message)).collect()
}

fn warnings(text: &str) -> Vec<String> {
    good(text).warnings.iter().map(|p| format!("{}:{}: {}", p.line, p.column, p.message)).collect()
}

#[test]
fn nothing_is_a_mesh_of_one_host() {
    for text in
        ["", "\n", "# nothing\n", "---\n", "{}", "mesh:\nservices:\npolicy:\nnode:\n", "\u{feff}"]
    {
        let loaded = good(text);
        assert_eq!(loaded.settings, Settings::one_host(&env()), "{text:?}");
        assert_eq!(loaded.warnings, [], "{text:?}");
    }
}

#[test]
fn all_problems_at_once() {
    let text = include_str!("../../tests/data/many_problems.yaml");
    let problems = parse(text, "many_problems.yaml", &env()).expect_err("many problems");
    insta::assert_snapshot!(problems.to_string());
}

#[test]
fn broken_syntax_does_not_hide_what_stands_before_it() {
    let found = problems(
        "nodes: {}\npolicy:\n  tiemout: 1s\nservices:\n  - name: a\n    tags: [a, b\nlog: {}\n",
    );
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(
        found[0].starts_with("1:1: nodes: unknown key")
            && found[1].starts_with("3:3: policy.tiemout")
    );
    assert!(found[2].contains("not YAML"), "{found:#?}");
}

#[test]
fn warns_of_what_is_likely_not_meant() {
    let keys = |rest: &str| format!("mesh: {{gossip: {{keys: [{KEY}]}}{rest}}}");
    let table = [
        (
            format!(
                "{}\nnode: {{address: 10.0.0.5}}\nservices: [{{name: a, address: '127.0.0.1:1'}}]",
                keys("")
            ),
            vec![
                "3:31: services[0].address: 127.0.0.1:1 is only reached through the mesh: look-ups by those without it will not find `a`; `advertise` says where they may dial it",
            ],
        ),
        (
            keys(", insecure: true"),
            vec!["1:82: mesh.insecure: has no effect while there are keys: leave it out"],
        ),
        (
            "node: {address: 10.0.0.5}".to_owned(),
            vec![
                "1:17: node.address: 10.0.0.5: others dial it for requests, but mesh.data listens on 127.0.0.1:7110",
            ],
        ),
        (
            "node: {zone: 1e3}".to_owned(),
            vec!["1:14: node.zone: `1e3` without quotes is a number to YAML tools: write \"1e3\""],
        ),
        (
            format!(
                "{}\nservices: [{{name: a, address: '10.0.0.5:1', advertise: '127.0.0.1:1'}}]\nnode: {{address: 10.0.0.5}}",
                keys("")
            ),
            vec!["2:56: services[0].advertise: those on other hosts would be sent to themselves"],
        ),
    ];
    for (text, expected) in table {
        assert_eq!(warnings(&text), expected, "{text}");
    }
    // Allowed to be reached by others, and not reached by them.
    let deaf =
        "mesh: {insecure: true, join: ['127.0.0.1:7111', 'seeds.example:7111', '10.0.0.6:7111']}";
    let message = "1:49: mesh.join[1]: `seeds.example:7111` is on another machine and could not reach this one: \
                   write mesh.gossip.listen: \"0.0.0.0:7111\", mesh.data.listen: \"0.0.0.0:7110\", \
                   node.address: an address of this host that others can dial";
    assert_eq!(warnings(deaf), [message]);
    let heard = "mesh: {insecure: true, join: ['10.0.0.6:7111'], gossip: {listen: '0.0.0.0:7111'}, \
                 data: {listen: '10.0.0.5:7110'}}\nnode: {address: 10.0.0.5}";
    assert_eq!(warnings(heard), [""; 0]);
    let half = heard.replace("0.0.0.0", "127.0.0.1");
    let message = "1:31: mesh.join[0]: `10.0.0.6:7111` is on another machine and could not reach this one: \
                   write mesh.gossip.listen: \"0.0.0.0:7111\"";
    assert_eq!(warnings(&half), [message]);
    let nearby = "mesh: {insecure: true, join: ['127.0.0.2:7111', '[::1]:7111', 'localhost:7111']}";
    assert_eq!(warnings(nearby), [""; 0]);
    let covered =
        "upstreams: [{name: a, routes: [{match: {path: /v1/*}}, {match: {path: /v1/x}}]}]";
    let message = "1:57: upstreams[0].routes[1].match: routes[0] takes all of these requests, so this one never would";
    assert_eq!(warnings(covered), [message]);
    let scouted = |policy: &str, more: &str| {
        let endpoints = "endpoints: ['127.0.0.1:1']";
        warnings(&format!("upstreams: [{{name: a, {endpoints}, policy: {{{policy}}}{more}}}]"))
    };
    let [when, how] = ["scout: {mode: pool}", ", scout: {tcp: 9}"];
    let route = ", routes: [{match: {path: /x}, policy: {balance: scout}}]";
    let unasked = "1:63: upstreams[0].scout: nobody asks there: write `policy: {scout: {mode: pool}}` beside it";
    assert_eq!(scouted("", how), [unasked]);
    let nowhere = "1:20: upstreams[0].name: its policy asks endpoints how they are, and nothing says where: write \
                   `scout: {http: /scout}` or `scout: {tcp: 9999}` beside `endpoints`";
    assert_eq!(scouted(when, ""), [nowhere]);
    for (policy, more) in
        [("", String::new()), (when, how.to_owned()), ("", format!("{how}{route}"))]
    {
        assert_eq!(scouted(policy, &more), [""; 0], "{policy:?} {more:?}");
    }
    let nowhere = parse("", "t.yaml", &Environment::named("a")).expect("loads");
    assert!(
        nowhere.warnings[0]
            .message
            .starts_with("node.data_dir: this system names no state directory")
    );
    let meant = parse("node: {data_dir: ''}", "t.yaml", &Environment::named("a")).expect("loads");
    assert_eq!((meant.warnings, meant.settings.node.data_dir), (vec![], DataDir::Nothing));
}

#[test]
fn a_loopback_application_is_announced_where_it_can_be_reached() {
    let service = "services: [{name: a, address: '127.0.0.1:1'}]";
    let advertise = |text: &str, env: &Environment| {
        parse(text, "t.yaml", env).expect("loads").settings.services[0]
            .advertise
            .map(|to| to.to_string())
    };
    let routed = Environment { default_route: Some([10, 0, 0, 5].into()), ..env() };
    let keys = format!("mesh: {{gossip: {{keys: [{KEY}]}}}}");
    // Alone, everybody who asks is on this host.
    assert_eq!(advertise(service, &routed).as_deref(), Some("127.0.0.1:1"));
    // With others, a loopback address means themselves to them.
    assert_eq!(advertise(&format!("{keys}\n{service}"), &routed), None);
    // Unless this host is reached at a loopback address too.
    let near = format!("{keys}\n{service}\nnode: {{address: 127.0.0.2}}");
    assert_eq!(advertise(&near, &routed).as_deref(), Some("127.0.0.1:1"));
    let elsewhere = format!("{keys}\nservices: [{{name: a, address: '10.0.0.5:1'}}]");
    assert_eq!(advertise(&elsewhere, &routed).as_deref(), Some("10.0.0.5:1"));
}

#[test]
fn listens_on_loopback_only_until_there_are_keys() {
    let addresses = |text: &str| {
        let s = good(text).settings;
        [
            s.mesh.gossip,
            s.mesh.data,
            s.outbound.listen,
            s.discovery.http,
            s.discovery.dns,
            s.ratelimit.listen,
            s.admin,
        ]
        .map(|listen| listen.address.to_string())
    };
    let alone = addresses("");
    assert!(alone.iter().all(|address| address.starts_with("127.0.0.1:")), "{alone:?}");
    let keyed = addresses(&format!("mesh: {{gossip: {{keys: [{KEY}]}}}}"));
    assert_eq!(keyed[..2], ["0.0.0.0:7111", "0.0.0.0:7110"]);
    assert!(keyed[2..].iter().all(|address| address.starts_with("127.0.0.1:")), "{keyed:?}");
    // Several hosts on one machine: each on its own loopback address.
    assert_eq!(addresses("node: {address: 127.0.0.2}")[..2], ["127.0.0.2:7111", "127.0.0.2:7110"]);
    // Asked for.
    let open = "mesh: {insecure: true, join: ['10.0.0.6:7111'], gossip: {listen: '0.0.0.0:7111'}}";
    assert_eq!(addresses(open)[..2], ["0.0.0.0:7111", "127.0.0.1:7110"]);
    assert_eq!(
        problems("mesh: {join: ['127.0.0.2:7111', 'localhost:7111', '[::1]:7111']}"),
        Vec::<String>::new()
    );
    // Tests let the system choose.
    good("admin: {listen: '127.0.0.1:0'}\noutbound: {listen: '127.0.0.1:0'}");
}

#[test]
fn policies_merge_field_by_field_and_know_where_from() {
    let text = "policy: {timeout: 5s, hedge: {mode: enforce, budget: 10%}, repeat: {methods: [GET, PUT]}}\n\
                upstreams:\n  - name: catalog\n    policy: {balance: random, hedge: {max: 1}, repeat: {methods: [GET]}}\n    \
                routes: [{match: {path: '/a/*', method: GET}, policy: {hedge: {after: 20ms, budget: 1%}}}]\n  - name: other\n";
    let settings = good(text).settings;
    let catalog = settings.effective("catalog", None, None);
    let other = settings.effective("other", None, None).default;
    let (route, catalog) = (&catalog.routes[0].1, &catalog.default);

    assert_eq!(settings.policy.timeout.as_secs(), 5);
    assert_eq!(other.policy, settings.policy);
    assert_eq!(other.origins, settings.origins);
    assert_eq!((catalog.policy.balance, settings.policy.balance), (Balance::Random, Balance::P2c));
    assert_eq!(catalog.policy.repeat.methods, ["GET"]);
    let hedge = &route.policy.hedge;
    assert_eq!(
        (hedge.mode, hedge.max, hedge.budget.to_string()),
        (Mode::Enforce, 1, "1%".to_owned())
    );
    assert_eq!(hedge.after, After::Fixed(std::time::Duration::from_millis(20)));

    let origins = [
        ("timeout", Origin::Host),
        ("idle_timeout", Origin::BuiltIn),
        ("balance", Origin::Upstream),
        ("hedge.mode", Origin::Host),
        ("hedge.max", Origin::Upstream),
        ("hedge.after", Origin::Route),
        ("hedge.budget", Origin::Route),
        ("hedge.min", Origin::BuiltIn),
        ("repeat.methods", Origin::Upstream),
    ];
    for (field, origin) in origins {
        assert_eq!(route.origins[field], origin, "{field}");
    }
    assert_eq!(settings.origins["hedge.budget"], Origin::Host);
    assert_eq!(settings.origins.len(), crate::policy::FIELDS.len());
}

#[test]
fn a_word_takes_away_what_a_lower_layer_gave() {
    let text = "policy: {shard: {key: \"header:X-Tenant\", size: 2}, probation: {min_requests: 9}}\n\
                upstreams: [{name: a, policy: {shard: none, probation: off, balance: hash, hash: {key: path:1}},\n\
                routes: [{match: {path: /}, policy: {shard: {key: address}, zone: any, probation: {slower_than: 5x}}}]}]";
    let settings = good(text).settings;
    let effective = settings.effective("a", None, None);
    let (host, upstream) = (&settings.policy, &effective.default);
    assert_eq!(host.shard.key, Some(KeySource::Header("x-tenant".to_owned())));
    assert_eq!((upstream.policy.shard.key.as_ref(), upstream.policy.shard.size), (None, 2));
    assert_eq!(upstream.policy.probation.slower_than, None);
    assert_eq!(upstream.origins["shard.key"], Origin::Upstream);
    assert_eq!(upstream.origins["shard.size"], Origin::Host);
    assert_eq!(upstream.origins["probation.slower_than"], Origin::Upstream);
    let route = &effective.routes[0].1.policy;
    assert_eq!(
        route.shard,
        Shard { key: Some(KeySource::Address), size: 2, fallback: ShardFallback::Fail }
    );
    assert_eq!((route.zone, route.balance), (Zone::Any, Balance::Hash));
    assert_eq!(route.hash.key, Some(KeySource::Path(1)));
    assert_eq!(
        route.probation,
        Probation { slower_than: Some(Factor::thousandths(5_000)), min_requests: 9 }
    );
}

#[test]
fn reads_what_a_full_file_says() {
    let settings = good(include_str!("../../tests/data/full.yaml")).settings;
    assert_eq!(settings.workers, Some(10));
    assert_eq!(settings.mesh.keys.len(), 2);
    assert_eq!(settings.services[0].meta["build"], "42");
    assert_eq!(settings.services[0].tags[..4], ["v2", "2.1", "true", "2024-01-02"]);
    assert_eq!(settings.services[1].protocol, Some(Protocol::Grpc));
    assert_eq!(settings.services[2].check, None);
    let https = CheckKind::Https {
        path: "/".into(),
        skip_verify: true,
        server_name: Some("vault.example".into()),
    };
    assert_eq!(settings.services[3].check.as_ref().map(|check| &check.kind), Some(&https));
    assert_eq!(settings.policy.hedge.mode, Mode::Off);
    assert_eq!(settings.policy.repeat.key_header.as_deref(), Some("idempotency-key"));
    let catalog = settings.effective("catalog", None, None);
    assert_eq!(catalog.routes[0].1.policy.repeat.key_header, None);
    let published = settings.services[0].policy.as_ref().expect("payments publishes a policy");
    assert!(published.text().starts_with(r#"{"policy":{"timeout":"2s","#), "{published:?}");
    assert_eq!((settings.services[1].policy.as_ref(), settings.mesh.bounds.retry_max), (None, 3));
    assert_eq!((settings.log.access, settings.log.json), (Access::Off, true));
    let [db, jobs] = &settings.ratelimit.resources[..] else { panic!("two resources") };
    assert_eq!((db.capacity, db.per, db.burst), (20_000.5, Some(Duration::from_secs(60)), 50.0));
    assert_eq!((&db.floors[..], db.safe), (&[(-1, 0), (10, 205)][..], Safe::Each(0.0)));
    assert_eq!((jobs.capacity, jobs.per, jobs.burst), (8.0, None, 0.0));
    assert_eq!((jobs.safe, jobs.learning), (Safe::Share, Duration::from_secs(20)));
    let [charge, work] = &settings.ratelimit.apply[..] else { panic!("two rules") };
    assert_eq!((charge.direction, charge.cost, charge.enforce), (Direction::Outbound, 5, false));
    assert_eq!(charge.key, Some(KeySource::Header("x-tenant".to_owned())));
    assert_eq!((work.direction, work.fail, work.enforce), (Direction::Inbound, Fail::Safe, true));
    assert_eq!(settings.node.data_dir, DataDir::Path("/var/lib/evenkeel".into()));
}

#[test]
fn what_a_resource_does_not_say_follows_from_what_it_says() {
    let resource = |said: &str| {
        let text = format!("ratelimit: {{resources: [{{match: a, {said}}}]}}");
        good(&text).settings.ratelimit.resources.remove(0)
    };
    let seconds = Duration::from_secs;
    let plain = resource("capacity: 500, per: 1s");
    assert_eq!(plain.burst, 50.0);
    assert_eq!((plain.algorithm, plain.safe), (Algorithm::FairShare, Safe::Share));
    assert_eq!(
        (plain.lease, plain.refresh, plain.learning),
        (seconds(20), seconds(5), seconds(20))
    );
    let short = resource("capacity: 0.005, per: 1s, lease: 2s");
    assert_eq!((short.lease, short.refresh, short.learning), (seconds(2), seconds(2), seconds(2)));
    assert_eq!(short.burst, 0.0);
    assert_eq!(resource("capacity: 0").per, None);
}

#[test]
fn reads_files_and_the_key_file_beside_them() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("evenkeel.yaml");
    let keys = directory.path().join("gossip.keys");
    std::fs::write(&file, "node: {data_dir: state}\nmesh: {gossip: {keys: {file: gossip.keys}}}\n")
        .expect("written");
    std::fs::write(&keys, format!("# ours\n{KEY}\n")).expect("written");

    std::fs::set_permissions(&keys, PermissionsExt::from_mode(0o600)).expect("set");
    let loaded = load(&file, &env()).expect("loads");
    assert_eq!((loaded.settings.mesh.keys.len(), loaded.warnings), (1, vec![]));
    assert_eq!(loaded.settings.node.data_dir, DataDir::Path(directory.path().join("state")));

    std::fs::set_permissions(&keys, PermissionsExt::from_mode(0o644)).expect("set");
    let loaded = load(&file, &env()).expect("loads");
    let message = &loaded.warnings[0].message;
    assert_eq!(message, "mesh.gossip.keys.file: everyone can read the keys: chmod 600 gossip.keys");

    std::fs::write(&keys, "not a key\n").expect("written");
    let problems = load(&file, &env()).expect_err("no key").to_string();
    assert!(
        problems.starts_with(&format!("{}:2:30: mesh.gossip.keys.file: ", file.display())),
        "{problems}"
    );
    assert!(
        problems.contains("line 1: not base64") && !problems.contains("not a key"),
        "{problems}"
    );
}

#[test]
fn what_is_no_configuration_is_refused_with_a_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("evenkeel.yaml");
    let refusal = |bytes: &[u8]| {
        std::fs::write(&file, bytes).expect("written");
        load(&file, &env()).expect_err("refused").0.remove(0)
    };
    let problem = refusal(b"node:\n  name: a\xff\n");
    assert_eq!((problem.line, problem.column, problem.message.as_str()), (2, 10, "not UTF-8 text"));
    assert_eq!(refusal(&vec![b'#'; FILE_MAX + 1]).message, format!("larger than {FILE_MAX} bytes"));
    // No line of a file that is not there: the reason is the system's.
    let none = load(&directory.path().join("none"), &env()).expect_err("refused").to_string();
    assert!(
        none.contains("/none: this configuration file cannot be read: No such file or directory"),
        "{none}"
    );
    let folder = load(directory.path(), &env()).expect_err("refused").to_string();
    assert!(
        folder.contains(": this configuration file cannot be read: Is a directory"),
        "{folder}"
    );
}

#[test]
fn a_hostname_that_cannot_be_a_name_asks_for_one() {
    let nameless = Environment { hostname: "höst".to_owned(), ..env() };
    let problems = parse("", "t.yaml", &nameless).expect_err("no name").to_string();
    assert!(
        problems.starts_with("t.yaml:1:1: node.name: write one, for the hostname `höst` is not"),
        "{problems}"
    );
    parse("node: {name: a}", "t.yaml", &nameless).expect("loads");
}

#[test]
fn what_is_shown_of_a_file_is_bounded_and_printable() {
    let text = format!(
        "\"a\\nb\": 1\nnode: {{name: '{}'}}\n{}",
        "x y ".repeat(1000),
        "z: 1\n".repeat(1000)
    );
    let problems = parse(&text, "t.yaml", &env()).expect_err("problems");
    assert!(problems.0.len() <= 200);
    let shown = problems.to_string();
    assert_eq!(shown.lines().count(), problems.0.len());
    assert!(shown.lines().all(|line| line.len() < 600));
    assert!(shown.contains("further problems"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,80}|([a-z_]{1,8}: ?|[\\[\\]{},&*!|>'\"%#\n -]|[0-9]{1,4}[a-z%]{0,3}){0,60}") {
        let _ = parse(&text, "t.yaml", &env()).is_ok();
    }

    /// A good file with a piece cut out, doubled or replaced.
    #[test]
    fn no_damage_panics(from in 0_usize..4000, length in 0_usize..40, with in "[\\PC\n]{0,12}") {
        let full: Vec<char> = include_str!("../../tests/data/full.yaml").chars().collect();
        let from = from.min(full.len());
        let to = (from + length).min(full.len());
        let text: String = full[..from].iter().copied().chain(with.chars()).chain(full[to..].iter().copied()).collect();
        if let Err(problems) = parse(&text, "t.yaml", &env()) {
            prop_assert!(!problems.0.is_empty());
            let lines = text.split('\n').count() + 1;
            prop_assert!(problems.0.iter().all(|p| (1..=lines).contains(&p.line) && p.column >= 1), "{problems}");
        }
    }
}
