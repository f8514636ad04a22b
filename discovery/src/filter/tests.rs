use proptest::prelude::*;
use serde_json::json;

use super::*;

fn entry() -> Value {
    json!({
        "ServiceTags": ["v2", "traefik.enable=true"],
        "ServiceMeta": {"version": "2.1", "a.b": "dotted", "a-b": "dashed"},
        "ServiceName": "payments",
        "ServicePort": 8443,
        "ServiceEnableTagOverride": false,
        "Node": "host-a",
        "NodeMeta": {},
    })
}

fn matches(text: &str) -> Result<bool, String> {
    let filter = FilterExpression::parse(text, FilteredEntry::Catalog);
    filter.map(|filter| filter.matches(&entry())).map_err(|error| error.to_string())
}

#[test]
fn table_of_what_is_understood() {
    for (text, wanted) in [
        (r#"ServiceName == "payments""#, true),
        ("ServiceName == payments", true),
        ("ServiceName==`payments`", true),
        ("ServiceName != payments", false),
        (r#""v2" in ServiceTags"#, true),
        ("v2 in ServiceTags", true),
        ("v1 in ServiceTags", false),
        ("v1 not in ServiceTags", true),
        (r#""traefik.enable=true" in ServiceTags"#, true),
        ("ServiceTags contains v2", true),
        ("ServiceTags not contains v2", false),
        (r#"ServiceMeta.version == "2.1""#, true),
        (r#"ServiceMeta["a.b"] == dotted"#, true),
        ("ServiceMeta.a.b == dotted", true),
        ("ServiceMeta.a-b == dashed", true),
        ("ServiceMeta.nosuch == x", false),
        ("ServiceMeta.nosuch != x", true),
        ("version in ServiceMeta", true),
        ("nosuch in ServiceMeta", false),
        ("NodeMeta is empty", true),
        ("ServiceTags is not empty", true),
        ("ServicePort == 8443", true),
        ("ServiceEnableTagOverride == false", true),
        ("pay in ServiceName", true),
        ("not ServiceName == payments", false),
        ("not not ServiceName == payments", true),
        ("ServiceName == x or v2 in ServiceTags", true),
        ("ServiceName == x and v2 in ServiceTags", false),
        // `and` binds closer than `or`.
        ("Node == host-a or Node == x and Node == y", true),
        ("(Node == host-a or Node == x) and Node == y", false),
        ("not (Node == x or Node == y)", true),
        // A word of the language is a value where a value stands.
        (r#""in" in ServiceTags"#, false),
        ("ServiceName == or", false),
    ] {
        assert_eq!(matches(text), Ok(wanted), "{text}");
    }
}

#[test]
fn table_of_what_is_refused_and_why() {
    for (text, why) in [
        ("", "it ends where a field should stand"),
        ("ServiceName", "it ends where `==`"),
        ("ServiceName = x", "`=` stands alone"),
        ("ServiceName ==", "it ends where a value"),
        ("ServiceName matches \"p.*\"", "`matches` is not understood"),
        ("Servicename == x", "Selector \"Servicename\" is not valid: here are ServiceTags"),
        ("Service.Tags contains x", "Selector \"Service.Tags\" is not valid"),
        ("ServiceTags == v2", "write `\"v2\" in ServiceTags`"),
        ("8 in ServicePort", "ServicePort has nothing in it"),
        ("\"ServiceName\" == x", "if it is the field, write it without quotes"),
        ("ServiceName == \"x", "a quote is not closed"),
        ("ServiceName == \"\\n\"", "after a backslash"),
        ("(ServiceName == x", "a parenthesis is not closed"),
        ("ServiceName == x)", "`)` is one too many"),
        ("ServiceName == x Node == y", "`Node` is one too many"),
        ("ServiceMeta[version] == x", "one quoted key"),
        ("Node is nothing", "after `is`"),
        ("any ServiceTags as t { t == x }", "Selector \"any\" is not valid"),
    ] {
        let error = matches(text).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    }
    let deep = format!("{}Node == x{}", "(".repeat(40), ")".repeat(40));
    assert!(matches(&deep).expect_err("deep").contains("nested deeper"));
    let long = format!("Node == {}", "x".repeat(FILTER_MAX));
    assert!(matches(&long).expect_err("long").contains("longer than"));
    let wide = vec!["Node == x"; 300].join(" or ");
    assert_eq!(matches(&wide), Ok(false), "width is not depth");
}

#[test]
fn every_field_that_is_offered_is_one_of_the_answer() {
    use crate::consul::{self, Selection};
    let (catalog, all) = (crate::sample::catalog(), Selection::default());
    let mut services = consul::agent_services(&catalog, &all);
    let service = services["payments-1"].take();
    for (entry, sample) in [
        (FilteredEntry::Health, consul::health_service(&catalog, "payments", &all)[0].take()),
        (FilteredEntry::Catalog, consul::catalog_service(&catalog, "payments", &all)[0].take()),
        (FilteredEntry::Node, consul::catalog_nodes(&catalog, &all)[0].take()),
        (FilteredEntry::Check, consul::health_checks(&catalog, "payments", &all)[0].take()),
        (FilteredEntry::Service, service),
    ] {
        for (name, shape) in entry.fields() {
            let found = name.split('.').try_fold(&sample, |value, name| value.get(name));
            let found = found.unwrap_or_else(|| panic!("{entry:?} has no {name}"));
            let is_so = match shape {
                FieldShape::Text => found.is_string(),
                FieldShape::Scalar => found.is_number() || found.is_boolean(),
                FieldShape::List => found.is_array(),
                FieldShape::Map => found.is_object(),
            };
            assert!(is_so, "{entry:?} {name} is {shape:?}: {found}");
        }
    }
}

/// An expression, and whether the entry of these tests matches it.
fn expression() -> impl Strategy<Value = (String, bool)> {
    let test = prop_oneof![
        any::<bool>().prop_map(|is| {
            (format!("ServiceName {} payments", if is { "==" } else { "!=" }), is)
        }),
        (0..4u8).prop_map(|v| (format!("\"v{v}\" in ServiceTags"), v == 2)),
        (0..4u8).prop_map(|v| (format!("v{v} not in ServiceTags"), v != 2)),
        (0..4u8).prop_map(|v| (format!("ServiceMeta.version == 2.{v}"), v == 1)),
    ];
    test.prop_recursive(5, 40, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|(text, is)| (format!("not ({text})"), !is)),
            (inner.clone(), inner.clone())
                .prop_map(|((a, is_a), (b, is_b))| (format!("({a}) and ({b})"), is_a && is_b)),
            (inner.clone(), inner)
                .prop_map(|((a, is_a), (b, is_b))| (format!("({a}) or ({b})"), is_a || is_b)),
        ]
    })
}

proptest! {
    #[test]
    fn an_expression_means_what_its_parts_mean((text, wanted) in expression()) {
        prop_assert_eq!(matches(&text), Ok(wanted), "{}", text);
    }

    #[test]
    fn no_text_panics(text in ".{0,80}") {
        let _ = matches(&text);
    }

    #[test]
    fn no_jumble_of_the_language_panics(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "ServiceName", "ServiceTags", "ServiceMeta", "==", "!=", "(", ")", "[", "]", "in",
                "not", "and", "or", "is", "empty", "contains", "\"a b\"", "`", "\"", ".", "=",
            ]),
            0..12,
        ),
    ) {
        let _ = matches(&words.join(" "));
        let _ = matches(&words.concat());
    }
}
