use proptest::prelude::*;

use super::*;
use crate::policy::{FIELDS, Mode};
use crate::{Environment, parse};

fn load(text: &str) -> Settings {
    match parse(text, "t.yaml", &Environment::named("host-a")) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{problems}\n{text}"),
    }
}

/// What a host publishes that has this in its file.
fn publishes(more: &str) -> Published {
    let text = format!("services: [{{name: web, address: '127.0.0.1:1', {more}}}]");
    load(&text).services.remove(0).policy.expect("it says something")
}

fn order(fields: &[(&str, &str)]) -> Published {
    let owned: Vec<_> = fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Published::of_fields(&owned).expect("a good order")
}

/// The policy of the first route that matches.
fn of<'e>(effective: &'e Effective, method: &str, path: &str) -> &'e Merged {
    first(&effective.routes, method, path).map_or(&effective.default, |at| &effective.routes[at].1)
}

fn first<T>(routes: &[(Match, T)], method: &str, path: &str) -> Option<usize> {
    routes.iter().position(|(matches, _)| {
        matches.method.as_deref().is_none_or(|m| m == method)
            && matches.path.as_deref().is_none_or(|p| match p.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => p == path,
            })
    })
}

#[test]
fn a_later_layer_wins_field_by_field() {
    let settings = load(
        "policy: {timeout: 1s, idle_timeout: 1m, retry: {max: 1}, panic: 1%, hedge: {min: 1ms}, slow_start: 1s}\n\
         upstreams: [{name: web, policy: {panic: 4%, hedge: {min: 4ms}, slow_start: 4s}, \
                      routes: [{match: {path: /x*}, policy: {hedge: {min: 5ms}, slow_start: 5s}}]}]",
    );
    let published = publishes(
        "policy: {idle_timeout: 2m, retry: {max: 2}, panic: 2%, hedge: {min: 2ms}, slow_start: 2s}, \
         routes: [{match: {path: /xy}, policy: {retry: {max: 3}, panic: 3%, hedge: {min: 3ms}, slow_start: 3s}}]",
    );
    let order = order(&[("slow_start", "6s")]);
    let effective = settings.effective("web", Some(&published), Some(&order));
    let merged = of(&effective, "GET", "/xy");
    for (field, origin) in [
        ("balance", Origin::BuiltIn),
        ("timeout", Origin::Host),
        ("idle_timeout", Origin::Published),
        ("retry.max", Origin::PublishedRoute),
        ("panic", Origin::Upstream),
        ("hedge.min", Origin::Route),
        ("slow_start", Origin::Override),
    ] {
        assert_eq!(merged.origins[field], origin, "{field}");
    }
    let policy = &merged.policy;
    assert_eq!((policy.timeout.as_secs(), policy.idle_timeout.as_secs()), (1, 120));
    assert_eq!((policy.retry.max, policy.panic.to_string()), (3, "4%".to_owned()));
    assert_eq!((policy.hedge.min.as_millis(), policy.slow_start.as_secs()), (5, 6));
    assert_eq!(merged.origins.len(), FIELDS.len());
    assert!(merged.bounded.is_empty());
    // Each list on its own, and neither.
    let retries = |path| of(&effective, "GET", path).policy.retry.max;
    assert_eq!((retries("/xy"), retries("/xz"), retries("/")), (3, 2, 2));
    assert_eq!(of(&effective, "GET", "/xz").policy.hedge.min.as_millis(), 5);
    assert_eq!(of(&effective, "GET", "/").policy.hedge.min.as_millis(), 4);
    // Another service has this host's own, and the order is not for it.
    let other = settings.effective("other", None, None);
    assert_eq!((other.default.policy, other.routes.len()), (settings.policy, 0));
}

#[test]
fn what_others_ask_is_bounded_and_what_this_file_says_is_not() {
    const MUCH: &str = "{timeout: 2h, idle_timeout: 48h, repeat: {methods: [GET, POST]}, retry: {max: 10, budget: 90%}, \
                         hedge: {mode: enforce, budget: 50%, max: 5, min: 0s}, scout: {timeout: 1s}, eject: {max: 100%}, \
                         circuit: {connections: 100000, pending: 100000, requests: 100000}, slow_start: 1h, max_body_buffer: 2MiB}";
    let published = publishes(&format!("policy: {MUCH}"));
    let own = load(&format!("upstreams: [{{name: web, policy: {MUCH}}}]"));
    let free = own.effective("web", Some(&published), None).default;
    assert!(free.bounded.is_empty(), "{:?}", free.bounded);
    assert_eq!((free.policy.retry.max, free.policy.repeat.methods.len()), (10, 2));

    let bounded = load("").effective("web", Some(&published), None).default;
    let policy = &bounded.policy;
    assert_eq!(
        (policy.timeout.as_secs(), policy.repeat.methods.as_slice()),
        (3600, &["GET".to_owned()][..])
    );
    assert_eq!((policy.retry.max, policy.hedge.max, policy.max_body_buffer), (5, 3, 1 << 20));
    assert_eq!(
        (policy.circuit.connections, policy.circuit.pending, policy.circuit.requests),
        (16_384, 16_384, 65_536)
    );
    assert_eq!(
        (policy.hedge.budget.to_string(), policy.retry.budget.to_string()),
        ("20%".into(), "50%".into())
    );
    assert_eq!((policy.idle_timeout.as_secs(), policy.slow_start.as_secs()), (86_400, 600));
    assert_eq!(bounded.origins["retry.max"], Origin::Published);
    // These defaults bound nothing; a stricter host's do.
    let all = bounded.bounded.len();
    assert!(
        !["hedge.mode", "hedge.min", "eject.max"].iter().any(|path| bounded.bounded.contains(path))
    );
    let strict = load("mesh: {bounds: {hedge: {mode: observe, min: 1ms}, eject: {max: 50%}}}");
    let bounded = strict.effective("web", Some(&published), None).default;
    assert_eq!(bounded.bounded.len(), all + 3);
    assert_eq!(
        (bounded.policy.hedge.mode, bounded.policy.hedge.min.as_millis()),
        (Mode::Observe, 1)
    );
    // An order too; and a field that is said again is no longer what the bound made of it.
    let ordered = strict.effective(
        "web",
        Some(&published),
        Some(&order(&[("hedge", "enforce"), ("retry.max", "1")])),
    );
    assert_eq!(ordered.default.policy.hedge.mode, Mode::Observe);
    assert_eq!(ordered.default.origins["hedge.mode"], Origin::Override);
    assert!(ordered.default.bounded.contains("hedge.mode"));
    assert!(!ordered.default.bounded.contains("retry.max"));
    // Within the bounds nothing is touched.
    let modest = publishes("policy: {timeout: 1s, hedge: {mode: off}, retry: {max: 0}}");
    assert!(strict.effective("web", Some(&modest), None).default.bounded.is_empty());
}

/// A service must not get more by leaving a field out than by naming it.
#[test]
fn what_nobody_says_is_bounded_and_what_this_file_says_is_not() {
    const STRICT: &str = "mesh: {bounds: {timeout: 5s, repeat: {methods: [GET]}, retry: {max: 1}, \
                          hedge: {mode: off, min: 5ms}, circuit: {requests: 10}}}";
    const BOUNDED: [&str; 6] =
        ["circuit.requests", "hedge.min", "hedge.mode", "repeat.methods", "retry.max", "timeout"];
    let bounded = |merged: &Merged| merged.bounded.iter().copied().collect::<Vec<_>>();
    let published = publishes("policy: {idle_timeout: 1m}");
    let strict = load(STRICT);
    for published in [Some(&published), None] {
        let merged = strict.effective("web", published, None).default;
        assert_eq!(bounded(&merged), BOUNDED);
        let policy = &merged.policy;
        assert_eq!((policy.timeout.as_secs(), policy.retry.max), (5, 1));
        assert_eq!((policy.hedge.mode, policy.hedge.min.as_millis()), (Mode::Off, 5));
        assert_eq!(
            (&*policy.repeat.methods, policy.circuit.requests),
            (&["GET".to_owned()][..], 10)
        );
        assert_eq!(merged.origins["retry.max"], Origin::BuiltIn);
    }
    // What `check` prints is what holds where nobody else says anything.
    assert_eq!(strict.policy, strict.effective("web", None, None).default.policy);

    // The same values, said here: for all services, for this one, and for some of its requests.
    let own = load(&format!(
        "{STRICT}\npolicy: {{retry: {{max: 2}}, circuit: {{requests: 4096}}}}\n\
         upstreams: [{{name: web, policy: {{hedge: {{mode: observe, min: 1ms}}}}, \
                       routes: [{{match: {{path: /x}}, policy: {{timeout: 15s}}}}]}}]"
    ));
    let effective = own.effective("web", Some(&published), None);
    assert_eq!(bounded(of(&effective, "GET", "/x")), ["repeat.methods"]);
    assert_eq!(bounded(&effective.default), ["repeat.methods", "timeout"]);
    let policy = &of(&effective, "GET", "/x").policy;
    assert_eq!((policy.timeout.as_secs(), policy.retry.max), (15, 2));
    assert_eq!((policy.hedge.mode, policy.hedge.min.as_millis()), (Mode::Observe, 1));
    assert_eq!(policy.circuit.requests, 4096);
    // Others say more than this file: the bound holds again, and where they say less there is nothing to bound.
    let more = publishes("policy: {retry: {max: 9}, circuit: {requests: 5}}");
    let merged = own.effective("web", Some(&more), None).default;
    assert_eq!((merged.policy.retry.max, merged.policy.circuit.requests), (1, 5));
    assert_eq!(bounded(&merged), ["repeat.methods", "retry.max", "timeout"]);
}

#[test]
fn others_make_this_host_send_no_more_scouts_than_it_allows() {
    let asked = |bounds: &str, own: &str, policy: &str| {
        let own = load(&format!("mesh: {{bounds: {bounds}}}\n{own}"));
        let merged = own.effective("web", Some(&publishes(&format!("policy: {policy}"))), None);
        let Merged { policy, bounded, .. } = merged.default;
        (policy.scouting().name(), policy.balance.name(), bounded.into_iter().collect::<Vec<_>>())
    };
    let before_each = "{scout: {mode: before_each}}";
    assert_eq!(asked("{}", "", before_each), ("before_each", "p2c", vec![]));
    assert_eq!(
        asked("{scout: {mode: pool}}", "", before_each),
        ("pool", "p2c", vec!["scout.mode"])
    );
    // Without a word of its mode `balance: scout` sends some too.
    let off = "{scout: {mode: off}}";
    assert_eq!(asked(off, "", "{balance: scout}"), ("off", "p2c", vec!["balance"]));
    assert_eq!(asked(off, "policy: {balance: scout}", "{timeout: 1s}"), ("pool", "scout", vec![]));
}

#[test]
fn the_built_in_policy_is_within_the_built_in_bounds() {
    assert!(crate::Bounds::default().tighter_than_built_in().is_empty());
}

#[test]
fn too_many_pairs_leave_published_routes_out_and_say_so() {
    let own: Vec<String> = (0..700)
        .map(|i| format!("{{match: {{path: /a/{i}}}, policy: {{retry: {{max: 1}}}}}}"))
        .collect();
    let settings = load(&format!("upstreams: [{{name: web, routes: [{}]}}]", own.join(", ")));
    let theirs = "routes: [{match: {path: /a/*}, policy: {retry: {max: 2}}}, \
                            {match: {method: GET}, policy: {timeout: 1s}}, {match: {method: PUT}, policy: {timeout: 2s}}]";
    let effective = settings.effective("web", Some(&publishes(theirs)), None);
    assert_eq!(effective.left_out, 2);
    assert!(effective.routes.len() <= ROUTES_MAX);
    assert_eq!(of(&effective, "GET", "/a/5").policy.retry.max, 1);
    assert_eq!(of(&effective, "GET", "/a/x").policy.retry.max, 2);
}

fn a_match() -> impl Strategy<Value = Match> {
    let method = prop::option::of(prop::sample::select(vec!["GET", "POST"]));
    let path = prop::option::of(prop::sample::select(vec![
        "/", "/a", "/a*", "/a/*", "/a/b", "/*", "/ab*",
    ]));
    (method, path).prop_map(|(method, path)| Match {
        method: method.map(str::to_owned),
        path: path.map(str::to_owned),
    })
}

proptest! {
    /// Of each list the first match counts, as if both were looked through for each request.
    #[test]
    fn one_list_of_pairs_is_as_good_as_two(theirs in prop::collection::vec(a_match(), 0..5), ours in prop::collection::vec(a_match(), 0..5)) {
        let mut settings = load("upstreams: [{name: web}]");
        let layer = |timeout: u64| PolicyLayer { timeout: Some(std::time::Duration::from_secs(timeout)), ..PolicyLayer::default() };
        let retries = |max: u32| PolicyLayer { retry_max: Some(max), ..PolicyLayer::default() };
        settings.upstreams[0].routes = (0..).zip(&ours).map(|(i, m)| (m.clone(), retries(i))).collect();
        let mut published = Published::read("{}").expect("an object");
        published.routes = (0..).zip(&theirs).map(|(i, m)| (m.clone(), layer(100 + i))).collect();
        let effective = settings.effective("web", Some(&published), None);
        for method in ["GET", "POST", "PUT"] {
            for path in ["/", "/a", "/ab", "/a/b", "/a/c", "/b"] {
                let merged = of(&effective, method, path);
                let their = first(&published.routes, method, path);
                let our = first(&settings.upstreams[0].routes, method, path);
                prop_assert_eq!(merged.policy.timeout.as_secs(), their.map_or(15, |at| 100 + at as u64));
                prop_assert_eq!(merged.policy.retry.max, our.map_or(2, |at| at as u32));
                prop_assert_eq!(merged.origins["timeout"] == Origin::PublishedRoute, their.is_some());
            }
        }
    }
}
