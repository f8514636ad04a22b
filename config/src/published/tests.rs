use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = r#"{"policy":{"timeout":"300ms","repeat":{"methods":["GET","PUT"]},"retry":{"max":0,"when":["connect","503"]},"hedge":{"mode":"off"}},"routes":[{"match":{"path":"/charge","method":"POST"},"policy":{"timeout":"2s"}},{"match":{"path":"/a*"},"policy":{}}]}"#;

fn read(text: &str) -> Published {
    Published::read(text).expect("an object")
}

fn again(published: &Published) -> String {
    Published::write(&published.policy, &published.routes).expect("short").text().to_string()
}

#[test]
fn only_what_was_written_travels_and_always_as_the_same_text() {
    let example = read(EXAMPLE);
    assert_eq!(example.skipped(), [] as [&str; 0]);
    assert_eq!(again(&example), EXAMPLE);
    let shuffled = r#"{ "routes": [], "policy": {"hedge": {"mode": false}, "timeout": "0.3s"} }"#;
    assert_eq!(again(&read(shuffled)), r#"{"policy":{"timeout":"300ms","hedge":{"mode":"off"}}}"#);
    assert_eq!(again(&read("{}")), r#"{"policy":{}}"#);
    // A default that is written is written.
    let default = r#"{"policy":{"timeout":"15s"}}"#;
    assert_eq!(again(&read(default)), default);
}

#[test]
fn what_a_newer_host_says_is_left_out_and_told() {
    for (text, left, told) in [
        (
            r#"{"policy": {"timeout": "1s", "teleport": {"mode": "on"}}}"#,
            r#"{"policy":{"timeout":"1s"}}"#,
            "policy.teleport: unknown key",
        ),
        (
            r#"{"policy": {"timeout": "soon", "retry": {"max": 1}}}"#,
            r#"{"policy":{"retry":{"max":1}}}"#,
            "policy.timeout: ",
        ),
        (
            r#"{"policy": {"retry": {"max": 99, "when": ["connect", "tomorrow"]}}}"#,
            r#"{"policy":{"retry":{"when":["connect"]}}}"#,
            "policy.retry.max: ",
        ),
        (r#"{"policy": 5, "colour": "red"}"#, r#"{"policy":{}}"#, "policy: expected keys"),
        // Without its `host` this route would be for every POST.
        (
            r#"{"policy": {}, "routes": [{"match": {"method": "POST", "host": "x"}, "policy": {"timeout": "1s"}}]}"#,
            r#"{"policy":{}}"#,
            "routes[0].match.host: unknown key",
        ),
        (
            r#"{"policy": {}, "routes": [{"match": {"method": "POST", "path": 5}, "policy": {"timeout": "1s"}}]}"#,
            r#"{"policy":{}}"#,
            "routes[0].match.path: ",
        ),
    ] {
        let published = read(text);
        assert_eq!(again(&published), left, "{text}");
        let skipped = published.skipped();
        assert!(skipped.iter().any(|skipped| skipped.starts_with(told)), "{told} in {skipped:?}");
    }
}

#[test]
fn what_is_no_policy_at_all_is_none() {
    for text in ["", "[]", "5", "null", "{", "policy: {}", "{\"policy\": {}} x"] {
        assert_eq!(Published::read(text), None, "{text}");
    }
    let long = format!("{{\"policy\":{{}},\"x\":\"{}\"}}", "y".repeat(PUBLISHED_MAX));
    assert_eq!(Published::read(&long), None);
}

proptest! {
    #[test]
    fn damaged_text_does_not_panic_and_what_is_read_is_stable(
        at in any::<prop::sample::Index>(),
        with in proptest::collection::vec(any::<char>(), 0..4),
        cut in 0..6usize,
    ) {
        let chars: Vec<char> = EXAMPLE.chars().collect();
        let at = at.index(chars.len());
        let damaged: String =
            chars[..at].iter().chain(&with).chain(chars[at..].iter().skip(cut)).collect();
        if let Some(published) = Published::read(&damaged) {
            let first = again(&published);
            let second = read(&first);
            prop_assert_eq!(second.skipped(), [] as [&str; 0]);
            prop_assert_eq!(again(&second), first);
        }
    }

    #[test]
    fn random_text_does_not_panic(text in ".{0,200}") {
        _ = Published::read(&text);
    }
}

fn typed(fields: &[(&str, &str)]) -> Result<String, Vec<String>> {
    let fields: Vec<_> = fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Published::of_fields(&fields).map(|published| published.text().to_string())
}

#[test]
fn what_an_operator_types_is_read_as_the_file_is() {
    for (fields, text) in [
        (&[("hedge", "off")][..], r#"{"policy":{"hedge":{"mode":"off"}}}"#),
        (&[("hedge", "false")], r#"{"policy":{"hedge":{"mode":"off"}}}"#),
        (
            &[("hedge.mode", "enforce"), ("hedge.max", "1"), ("timeout", "300ms")],
            r#"{"policy":{"timeout":"300ms","hedge":{"mode":"enforce","max":1}}}"#,
        ),
        (&[("hedge", "{mode: off, max: 1}")], r#"{"policy":{"hedge":{"mode":"off","max":1}}}"#),
        (&[("repeat.methods", "[GET, PUT]")], r#"{"policy":{"repeat":{"methods":["GET","PUT"]}}}"#),
        (
            &[("shard", "none"), ("probation", "off")],
            r#"{"policy":{"shard":{"key":"none"},"probation":{"slower_than":"off"}}}"#,
        ),
    ] {
        assert_eq!(typed(fields).as_deref(), Ok(text), "{fields:?}");
    }
    for (fields, problem) in [
        (&[][..], "nothing is said: name a field and its value, as hedge.mode=off"),
        (&[("hedge.mdoe", "off")], "hedge.mdoe: unknown key; did you mean `mode`?"),
        (&[("hedge.mode", "on")], "hedge.mode: `on` is none of off, observe, enforce"),
        (&[("timeout", "soon")], "timeout: `soon` is not a duration"),
        (&[("timeout", "")], "timeout: `` is not a value"),
        (&[("timeout", "[1s")], "timeout: `[1s` is not a value"),
        (&[("timeout", "1s"), ("timeout", "2s")], "timeout: is said twice"),
        (&[("hedge", "off"), ("hedge.mode", "enforce")], "hedge.mode: is said twice"),
        (&[("policy.timeout", "1s")], "policy: unknown key; there is one at `policy`"),
        (&[("balance", "hash")], "balance: hash takes hash.key too"),
        (&[("balance", "round-robin")], "balance: `round-robin` is none of "),
    ] {
        let problems = typed(fields).expect_err(problem);
        assert!(problems.iter().any(|p| p.starts_with(problem)), "{problem}: {problems:?}");
    }
}

#[test]
fn a_key_that_a_newer_host_knows_is_not_taken_for_another() {
    let newer = r#"{"policy":{"shard":{"key":"jwt:sub","size":2},"hash":{"key":"jwt:sub"},"balance":"hash"}}"#;
    let published = read(newer);
    assert_eq!(again(&published), r#"{"policy":{"balance":"hash","shard":{"size":2}}}"#);
    assert_eq!(published.skipped().len(), 2, "{:?}", published.skipped());
}
