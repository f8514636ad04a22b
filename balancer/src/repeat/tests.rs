use evenkeel_config::policy::Share;
use proptest::prelude::*;

use super::*;

const SAFE: Request = Request {
    safe: true,
    keyed: false,
    body: Body::Complete,
    streaming: false,
    retry_of_retry: false,
    retries: 0,
};
const UNSAFE: Request = Request { safe: false, ..SAFE };
const KEYED: Request = Request { keyed: true, ..UNSAFE };

fn status(status: u16) -> Outcome {
    Outcome::Response { status, pushback: None }
}

#[test]
fn what_the_application_never_saw_is_sent_again_whatever_it_is() {
    let retry = Retry::default();
    for request in [
        SAFE,
        UNSAFE,
        KEYED,
        Request { streaming: true, ..UNSAFE },
        Request { body: Body::Partial, ..UNSAFE },
    ] {
        assert!(may_retry(&request, &Outcome::NotSent, &retry), "{request:?}");
        assert!(may_retry(&request, &Outcome::Refused, &retry), "{request:?}");
    }
}

#[test]
fn what_it_may_have_seen_only_if_it_is_named_or_keyed() {
    let retry = Retry::default();
    for outcome in [Outcome::ResetBeforeHead, status(503)] {
        assert!(may_retry(&SAFE, &outcome, &retry));
        assert!(may_retry(&KEYED, &outcome, &retry));
        assert!(!may_retry(&UNSAFE, &outcome, &retry));
        assert!(!may_retry(&Request { streaming: true, ..SAFE }, &outcome, &retry));
        assert!(
            !may_retry(&Request { retry_of_retry: true, ..SAFE }, &outcome, &retry),
            "no retry of a retry"
        );
    }
    assert!(
        !may_retry(&SAFE, &Outcome::ResetAfterHead, &retry),
        "the caller may have seen the head"
    );
    assert!(!may_retry(&SAFE, &status(500), &retry), "not named by `when`");
}

#[test]
fn each_trigger_can_be_left_out() {
    let outcomes = [Outcome::NotSent, Outcome::Refused, Outcome::ResetBeforeHead, status(503)];
    let triggers = [RetryOn::Connect, RetryOn::Refused, RetryOn::Reset, RetryOn::Status(503)];
    for (chosen, trigger) in triggers.into_iter().enumerate() {
        let retry = Retry { when: vec![trigger], ..Retry::default() };
        for (index, outcome) in outcomes.iter().enumerate() {
            assert_eq!(
                may_retry(&SAFE, outcome, &retry),
                index == chosen,
                "{outcome:?} on {trigger:?}"
            );
        }
    }
}

#[test]
fn a_lost_body_and_spent_retries_end_it() {
    let retry = Retry { max: 2, ..Retry::default() };
    assert!(!may_retry(&Request { body: Body::Lost, ..SAFE }, &Outcome::NotSent, &retry));
    assert!(may_retry(&Request { retries: 1, ..SAFE }, &Outcome::NotSent, &retry));
    assert!(!may_retry(&Request { retries: 2, ..SAFE }, &Outcome::NotSent, &retry));
    assert!(!may_retry(&SAFE, &Outcome::NotSent, &Retry { max: 0, ..retry }));
}

#[test]
fn a_server_can_forbid_retries() {
    let outcome = |pushback| Outcome::Response { status: 503, pushback: Some(pushback) };
    assert!(!may_retry(&SAFE, &outcome(Pushback::Never), &Retry::default()));
    assert!(may_retry(
        &SAFE,
        &outcome(Pushback::After(Duration::from_millis(5))),
        &Retry::default()
    ));
    let parsed = [
        ("20", Pushback::After(Duration::from_millis(20))),
        (" 0 ", Pushback::After(Duration::ZERO)),
        ("-1", Pushback::Never),
        ("", Pushback::Never),
        ("x", Pushback::Never),
        ("99999999999999999999", Pushback::Never),
    ];
    for (text, expected) in parsed {
        assert_eq!(Pushback::parse(text.as_bytes()), expected, "{text:?}");
    }
    assert_eq!(Pushback::parse(&[0xff]), Pushback::Never);
}

#[test]
fn a_copy_needs_a_named_request_and_its_whole_body() {
    let hedge = Hedge { mode: Mode::Enforce, budget: Share::percent(5), ..Hedge::default() };
    assert!(may_copy(&SAFE, &hedge));
    assert!(
        may_copy(&SAFE, &Hedge { mode: Mode::Observe, ..hedge.clone() }),
        "what would have been copied is counted"
    );
    for request in [
        UNSAFE,
        KEYED,
        Request { body: Body::Partial, ..SAFE },
        Request { body: Body::Lost, ..SAFE },
        Request { streaming: true, ..SAFE },
        Request { retry_of_retry: true, ..SAFE },
    ] {
        assert!(!may_copy(&request, &hedge), "{request:?}");
    }
    assert!(!may_copy(&SAFE, &Hedge { mode: Mode::Off, ..hedge.clone() }));
    assert!(!may_copy(&SAFE, &Hedge { max: 0, ..hedge }));
}

#[test]
fn methods_and_grpc_methods_are_named_by_the_policy() {
    let repeat =
        Repeat { grpc: vec!["shop.Catalog/Get*".into(), "*/List".into()], ..Repeat::default() };
    for (method, expected) in
        [("GET", true), ("HEAD", true), ("POST", false), ("get", false), ("DELETE", false)]
    {
        assert_eq!(is_safe(&repeat, method, None), expected, "{method}");
    }
    for (path, expected) in [
        ("/shop.Catalog/GetItem", true),
        ("/shop.Catalog/Get", true),
        ("/shop.Catalog/SetItem", false),
        ("/any.Thing/List", true),
        ("/any.Thing/ListAll", false),
        ("", false),
    ] {
        assert_eq!(is_safe(&repeat, "POST", Some(path)), expected, "{path}");
    }
    let posts = Repeat { methods: vec!["POST".into()], ..Repeat::default() };
    assert!(!is_safe(&posts, "POST", Some("/a.B/C")), "for gRPC its own list decides");
}

proptest! {
    #[test]
    fn a_glob_agrees_with_its_definition(pattern in "[ab*]{0,6}", name in "[ab]{0,8}") {
        fn matches(pattern: &[u8], name: &[u8]) -> bool {
            match pattern.split_first() {
                None => name.is_empty(),
                Some((b'*', rest)) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
                Some((byte, rest)) => name.split_first().is_some_and(|(first, tail)| first == byte && matches(rest, tail)),
            }
        }
        prop_assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), matches(pattern.as_bytes(), name.as_bytes()));
    }

    #[test]
    fn an_unsafe_request_is_never_copied_and_never_repeated_once_sent(
        keyed in any::<bool>(), streaming in any::<bool>(), retry_of_retry in any::<bool>(), code in 100u16..600, reset in any::<bool>(),
    ) {
        let request = Request { safe: false, keyed, streaming, retry_of_retry, ..SAFE };
        let hedge = Hedge { mode: Mode::Enforce, ..Hedge::default() };
        prop_assert!(!may_copy(&request, &hedge));
        let retry = Retry { when: vec![RetryOn::Connect, RetryOn::Refused, RetryOn::Reset, RetryOn::Status(code)], ..Retry::default() };
        let outcome = if reset { Outcome::ResetBeforeHead } else { status(code) };
        prop_assert!(keyed || !may_retry(&request, &outcome, &retry));
    }
}
