//! Orders to the whole mesh, given at one host: what was typed, and what stands afterwards.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::Method;

use super::args::{AskArgs, DrainArgs, Output, OverrideArgs};
use super::client;
use super::show::encoded;
use super::table::{Cell, Table, Tone, paragraph};
use crate::admin::orders::{DrainBody, OverrideBody};
use crate::admin::report::{Order, Orders};

/// `evenkeel override`.
pub fn override_policy(args: &OverrideArgs, colour: bool) -> anyhow::Result<String> {
    let Some(service) = &args.service else {
        return shown(&args.ask, &client::get(&args.ask.admin(), "/v1/orders")?, |orders| {
            listed(orders, colour)
        });
    };
    let admin = args.ask.admin();
    let path = format!("/v1/override/{}", encoded(service));
    if args.undo {
        let answer = client::send(&admin, Method::DELETE, &path, Bytes::new())?;
        return shown(&args.ask, &answer, |_| format!("{service} is no longer overridden.\n"));
    }
    let fields = args.fields.iter().map(|field| assignment(field)).collect::<Result<_, _>>()?;
    let body = serde_json::to_vec(&OverrideBody { fields, ttl: args.ttl.clone() })?;
    let answer = client::send(&admin, Method::PUT, &path, body.into())?;
    shown(&args.ask, &answer, |orders| {
        let order = orders.orders.first().cloned().unwrap_or_default();
        format!(
            "Every host of the mesh follows this for {service} until {}:\n{}\nTo end it sooner: {}\n",
            order.until,
            order.policy,
            args.ask.hint(&format!("evenkeel override {service} --undo"))
        )
    })
}

/// `evenkeel drain`.
pub fn drain(args: &DrainArgs, colour: bool) -> anyhow::Result<String> {
    let (host, admin) = (&args.host, args.ask.admin());
    let path = format!("/v1/drain/{}", encoded(host));
    if args.undo {
        let answer = client::send(&admin, Method::DELETE, &path, Bytes::new())?;
        return shown(&args.ask, &answer, |_| format!("{host} may be chosen again.\n"));
    }
    let body = serde_json::to_vec(&DrainBody { ttl: args.ttl.clone() })?;
    let answer = client::send(&admin, Method::PUT, &path, body.into())?;
    shown(&args.ask, &answer, |orders| {
        let until = orders.orders.first().map_or("", |order| order.until.as_str());
        let chosen = format!(
            "No host of the mesh chooses {host} until {until}; what is in flight there finishes."
        );
        let notes = orders.notes.iter().map(|note| format!("{note}."));
        let said = std::iter::once(chosen).chain(notes);
        let said: String = said.map(|text| paragraph("", &text, Tone::Plain, colour)).collect();
        let undo = args.ask.hint(&format!("evenkeel drain {host} --undo"));
        format!("{said}To end it sooner: {undo}\n")
    })
}

fn assignment(field: &str) -> anyhow::Result<(String, String)> {
    match field.split_once('=') {
        Some((path, value)) if !path.is_empty() => Ok((path.to_owned(), value.to_owned())),
        _ => bail!("{field}: write a field and its value, as hedge.mode=off"),
    }
}

fn shown(
    ask: &AskArgs,
    body: &Bytes,
    text: impl FnOnce(&Orders) -> String,
) -> anyhow::Result<String> {
    if ask.output == Output::Json {
        return Ok(String::from_utf8_lossy(body).into_owned());
    }
    let orders = serde_json::from_slice(body).with_context(|| {
        format!("{} answered something else than an evenkeel: is --admin right?", ask.admin())
    })?;
    Ok(text(&orders))
}

fn listed(orders: &Orders, colour: bool) -> String {
    if orders.orders.is_empty() {
        return "Nothing is overridden and no host is drained by an order.\n".to_owned();
    }
    let mut table = Table::new(&["KIND", "SUBJECT", "BY", "UNTIL", "POLICY"]).wrapping([4]);
    for Order { kind, subject, policy, by, until, .. } in &orders.orders {
        table.row(vec![
            Cell::text(kind).tone(Tone::Warn),
            Cell::text(subject),
            Cell::text(by),
            Cell::text(until),
            Cell::text(policy),
        ]);
    }
    table.render(colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_split_at_the_first_equals_sign() {
        let split = |text: &str| assignment(text).ok();
        assert_eq!(split("hedge.mode=off"), Some(("hedge.mode".into(), "off".into())));
        assert_eq!(
            split("repeat.key_header=a=b"),
            Some(("repeat.key_header".into(), "a=b".into()))
        );
        for wrong in ["hedge", "=off", ""] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn orders_as_a_table() {
        let order = Order {
            kind: "override".into(),
            subject: "web".into(),
            policy: r#"{"policy":{}}"#.into(),
            by: "host-a".into(),
            until: "2026-03-01T12:00:00.000Z".into(),
            ..Order::default()
        };
        assert_eq!(
            listed(&Orders { orders: vec![order], ..Orders::default() }, false),
            "KIND      SUBJECT  BY      UNTIL                     POLICY\n\
             override  web      host-a  2026-03-01T12:00:00.000Z  {\"policy\":{}}\n"
        );
    }
}
