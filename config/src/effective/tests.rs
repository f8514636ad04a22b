use proptest::prelude::*;

use super::*;
use crate::policy::Origins;
use crate::{Environment, parse};

const FULL: &str = include_str!("../../tests/data/full.yaml");

fn load(text: &str) -> Settings {
    match parse(text, "t.yaml", &Environment::named("host-a")) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{problems}\n{text}"),
    }
}

/// Without what the effective configuration says otherwise on purpose: keys, and where values came from.
fn meaning(mut settings: Settings) -> Settings {
    settings.mesh.keys.clear();
    for listen in [
        &mut settings.mesh.gossip,
        &mut settings.mesh.data,
        &mut settings.outbound.listen,
        &mut settings.discovery.http,
        &mut settings.discovery.dns,
        &mut settings.ratelimit.listen,
        &mut settings.admin,
    ] {
        listen.explicit = true;
    }
    settings.origins = Origins::new();
    settings
}

/// The effective configuration with the keys put back.
fn with_keys(settings: &Settings) -> String {
    let mut out = String::new();
    super::settings(settings, Secrets::Shown).write(0, &mut out);
    out
}

#[test]
fn loads_again_to_the_same() {
    for text in [
        "",
        FULL,
        "services: [{name: a, address: '10.0.0.1:1'}]",
        "upstreams: [{name: a, routes: []}]",
        "mesh: {bounds: {retry: {max: 1}, hedge: {mode: off}}}",
    ] {
        let settings = load(text);
        assert_eq!(meaning(load(&with_keys(&settings))), meaning(settings), "{text}");
    }
    let settings = load("services: [{name: a, address: '127.0.0.1:1'}]");
    assert_eq!(meaning(load(&settings.to_effective_yaml())), meaning(settings));
}

#[test]
fn an_empty_file_in_full() {
    insta::assert_snapshot!(load("").to_effective_yaml());
}

#[test]
fn a_full_file_in_full() {
    insta::assert_snapshot!(load(FULL).to_effective_yaml());
}

#[test]
fn keys_are_never_shown() {
    let settings = load(FULL);
    let shown = [
        settings.to_effective_yaml(),
        serde_json::to_string(&settings).expect("JSON"),
        format!("{settings:?}"),
    ];
    for text in shown {
        assert!(!text.contains("AAAAAAAA") && !text.contains("AQEBAQ"), "{text}");
        assert!(text.contains("redacted"), "{text}");
    }
    let problems = parse(&settings.to_effective_yaml(), "t.yaml", &Environment::named("a"))
        .expect_err("no keys");
    assert_eq!(problems.0.len(), 2, "{problems}");
    assert!(
        problems.0.iter().all(|problem| problem.message.starts_with("mesh.gossip.keys[")),
        "{problems}"
    );
}

#[test]
fn a_policy_in_the_notation_of_the_file() {
    let policy = Policy::default();
    insta::assert_snapshot!(policy.to_yaml());
    let json = serde_json::to_value(&policy).expect("JSON");
    assert_eq!(json["timeout"], "15s");
    assert_eq!(json["hedge"]["after"], "p95");
    assert_eq!(json["retry"]["when"], serde_json::json!(["connect", "refused", "reset", "503"]));
}

/// `p99.9` and the like of every kind of field, in the order of the policy.
fn layer() -> impl Strategy<Value = String> {
    let field = prop_oneof![
        (1_u64..10_000_000).prop_map(|us| format!("timeout: {us}us")),
        (0_u64..10_000).prop_map(|ms| format!("slow_start: {ms}ms")),
        prop::sample::select(vec!["p2c", "least_request", "round_robin", "random"])
            .prop_map(|name| format!("balance: {name}")),
        (0_u32..=1000).prop_map(|tenths| format!("panic: {}.{}%", tenths / 10, tenths % 10)),
        (0_u32..=10, 0_u32..=100)
            .prop_map(|(max, share)| format!("retry: {{max: {max}, budget: {share}%}}")),
        (1_u32..999, 1_u32..=5, prop::sample::select(vec!["off", "observe", "enforce", "false"]))
            .prop_map(|(p, max, mode)| format!(
                "hedge: {{after: p{}.{}, max: {max}, mode: {mode}}}",
                p / 10,
                p % 10
            )),
        prop::sample::select(vec![
            "shard: none",
            "shard: {key: \"header:x-tenant\", size: 2}",
            "shard: {fallback: widen}",
            "probation: off",
            "probation: false",
            "probation: {slower_than: 2.5x, min_requests: 9}",
            "zone: any",
            "balance: hash, hash: {key: \"path:1\", bound: 1.125}",
            "hash: {key: identity, bound: 2}",
        ])
        .prop_map(str::to_owned),
        (0_usize..1 << 28).prop_map(|bytes| format!("max_body_buffer: {bytes}B")),
        "[A-Z]{1,8}".prop_map(|method| format!("repeat: {{methods: [\"{method}\"]}}")),
    ];
    field.prop_map(|field| format!("{{{field}}}"))
}

/// A resource and a rule that draws on it.
fn shared() -> impl Strategy<Value = String> {
    let amount = || {
        (0_u64..=1_000_000_000_000, 0_u32..1000).prop_map(|(whole, part)| match part {
            0 => whole.to_string(),
            part => format!("{}.{part:03}", whole.min(999_999_999_999)),
        })
    };
    let rate = prop_oneof![
        Just(String::new()),
        (1_u32..5000).prop_map(|ms| format!(", per: {ms}ms")),
        (1_u32..5000, amount()).prop_map(|(ms, burst)| format!(", per: {ms}ms, burst: {burst}")),
    ];
    let times =
        (1_u32..=3600, 1_u32..=3600, 0_u32..=3600).prop_map(|(lease, refresh, learning)| {
            format!(
                "lease: {lease}s, refresh: {}s, learning: {}s",
                refresh.min(lease),
                learning.min(lease)
            )
        });
    let safe = prop_oneof![amount(), Just("share".to_owned()), Just("unlimited".to_owned())];
    let floors = (any::<i64>(), 0_u32..=500, 0_u32..=500).prop_map(|(priority, a, b)| {
        let share = |tenths: u32| format!("{}.{}%", tenths / 10, tenths % 10);
        format!(
            "[{{priority: {priority}, share: {}}}, {{priority: {}, share: {}}}]",
            share(a),
            priority ^ 1,
            share(b)
        )
    });
    let key = prop::sample::select(vec!["none", "address", "identity", "path:3", "\"header:x-a\""]);
    (amount(), rate, times, safe, floors, key).prop_map(|(capacity, rate, times, safe, floors, key)| {
        format!(
            "ratelimit: {{resources: [{{match: 'a*', capacity: {capacity}{rate}, {times}, safe: {safe}, floors: {floors}}}], \
             apply: [{{direction: inbound, service: s, resource: ab, key: {key}}}]}}"
        )
    })
}

proptest! {
    #[test]
    fn any_resources_load_again_to_the_same(text in shared()) {
        let settings = load(&text);
        prop_assert_eq!(meaning(load(&settings.to_effective_yaml())), meaning(settings));
    }

    #[test]
    fn any_policies_load_again_to_the_same(host in layer(), upstream in layer(), route in layer()) {
        let text = format!(
            "policy: {host}\nupstreams: [{{name: a, policy: {upstream}, \
             routes: [{{match: {{path: /x}}, policy: {route}}}]}}]"
        );
        let settings = load(&text);
        prop_assert_eq!(meaning(load(&settings.to_effective_yaml())), meaning(settings));
    }

    #[test]
    fn any_text_is_written_so_that_it_reads_back(text in "\\PC{0,20}|[-+0-9._:eEoxTZ]{1,12}|[a-z]{0,5}[ #:{}\\[\\],&*!|>'\"%@`\\\\-]{1,5}") {
        let mut settings = load("services: [{name: a, address: '127.0.0.1:1'}]");
        settings.services[0].meta.insert(text.clone(), text.clone());
        if !text.is_empty() {
            settings.services[0].tags.push(text);
        }
        prop_assert_eq!(meaning(load(&settings.to_effective_yaml())), meaning(settings));
    }
}
