//! The catalogue in Consul's JSON, so that clients written for a Consul agent work unmodified; and, in
//! `registration`, Consul's registrations read into ours.
//!
//! Only shapes are decided here: the shell serves HTTP and sets the headers (`X-Consul-Index` from
//! [`Catalog::service_index`], `services_index`, `nodes_index`, `checks_index`). The quirks are Consul's: `[]`, never `null`, for
//! tags and checks, `serfHealth` among the checks, node ids that look like UUIDs. The datacenter is the mesh's name.
//! An instance that is not announced outside the mesh (no `advertise`) is in its own host's `agent/services` only.
//! A draining host shows as in maintenance, as Consul shows it. What vanished with its host ([`Catalog::lost`]) shows as
//! critical wherever not only what passes is asked for.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::catalog::{Catalog, Instance, Node, NodeStatus};
use crate::filter::FilterExpression;
use crate::health::Status;

mod agent;
mod checks;
mod registration;

pub use agent::{agent_checks, agent_members, agent_self, agent_service, agent_services};
pub use checks::{CheckStates, health_checks, health_node, health_state};
pub use registration::{
    CheckRegistration, DecodeError, decode_check_registration, decode_registration, host_to_look_up,
};

/// Which entries of an answer a query asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only instances whose every check passes.
    pub passing: bool,
    /// Only instances that have all of these tags, in any case.
    pub tags: Vec<String>,
    /// Only what is on hosts that have all of these in their meta.
    pub node_meta: Vec<(String, String)>,
    /// Only entries that match.
    pub expression: Option<FilterExpression>,
}

impl Selection {
    fn has_node(&self, node: &Node) -> bool {
        self.node_meta.iter().all(|(key, value)| {
            key == "zone" && node.zone.as_ref().is_some_and(|zone| zone == value)
        })
    }

    fn has_entry(&self, entry: &Value) -> bool {
        self.expression.as_ref().is_none_or(|expression| expression.matches(entry))
    }
}

/// `/v1/catalog/services`: names and the union of their tags. What is selected are instances.
#[must_use]
pub fn catalog_services(catalog: &Catalog, selection: &Selection) -> Value {
    let names: BTreeSet<&String> = catalog.services.keys().chain(catalog.lost.keys()).collect();
    let entry = |name: &String| {
        let mut announced = selected(catalog, name, selection)
            .into_iter()
            .filter(|(instance, advertise)| {
                // Most queries select by nothing: no entry is made for them.
                selection.expression.is_none()
                    || selection.has_entry(&catalog_entry(catalog, instance, *advertise))
            })
            .peekable();
        announced.peek()?;
        let tags: BTreeSet<&String> = announced.flat_map(|(instance, _)| &instance.tags).collect();
        Some((name.clone(), json!(tags)))
    };
    Value::Object(names.into_iter().filter_map(entry).collect())
}

/// `/v1/catalog/service/{name}`; an unknown service is `[]`.
#[must_use]
pub fn catalog_service(catalog: &Catalog, name: &str, selection: &Selection) -> Value {
    selected(catalog, name, selection)
        .into_iter()
        .map(|(instance, advertise)| catalog_entry(catalog, instance, advertise))
        .filter(|entry| selection.has_entry(entry))
        .collect()
}

fn catalog_entry(catalog: &Catalog, instance: &Instance, advertise: SocketAddr) -> Value {
    let node = &instance.node;
    json!({
        "ID": uuid(node.id),
        "Node": node.name,
        "Address": node.address.ip(),
        "Datacenter": catalog.mesh,
        "TaggedAddresses": node_addresses(node),
        "NodeMeta": node_meta(node),
        "ServiceKind": "",
        "ServiceID": instance.id,
        "ServiceName": instance.service,
        "ServiceTags": instance.tags,
        "ServiceAddress": advertise.ip(),
        "ServiceTaggedAddresses": service_addresses(instance, advertise),
        "ServiceWeights": weights(instance),
        "ServiceMeta": instance.meta,
        "ServicePort": advertise.port(),
        "ServiceEnableTagOverride": instance.enable_tag_override,
        "CreateIndex": instance.create_index,
        "ModifyIndex": instance.modify_index,
    })
}

/// `/v1/catalog/nodes`: those that are up.
#[must_use]
pub fn catalog_nodes(catalog: &Catalog, selection: &Selection) -> Value {
    catalog
        .alive()
        .filter(|node| selection.has_node(node))
        .map(|node| node_entry(catalog, node))
        .filter(|entry| selection.has_entry(entry))
        .collect()
}

/// `/v1/catalog/node/{name}`: the host and what it offers by id; `null` if there is none of the name.
#[must_use]
pub fn catalog_node(catalog: &Catalog, name: &str, selection: &Selection) -> Value {
    let Some(node) = named(catalog, name).filter(|node| selection.has_node(node)) else {
        return Value::Null;
    };
    let services: Map<String, Value> = offered(catalog, node.id, selection)
        .map(|entry| (entry["ID"].as_str().unwrap_or_default().to_owned(), entry))
        .collect();
    json!({"Node": node_entry(catalog, node), "Services": services})
}

/// `/v1/catalog/node-services/{name}`: the host and what it offers as a list; both empty if there is none of the name.
#[must_use]
pub fn catalog_node_services(catalog: &Catalog, name: &str, selection: &Selection) -> Value {
    let Some(node) = named(catalog, name).filter(|node| selection.has_node(node)) else {
        return json!({"Node": null, "Services": []});
    };
    let services: Vec<Value> = offered(catalog, node.id, selection).collect();
    json!({"Node": node_entry(catalog, node), "Services": services})
}

/// The host of this name that is up, else one that was.
fn named<'a>(catalog: &'a Catalog, name: &str) -> Option<&'a Arc<Node>> {
    let of_name = |node: &&Arc<Node>| node.name.eq_ignore_ascii_case(name);
    catalog
        .alive()
        .find(of_name)
        .or_else(|| catalog.nodes.values().filter(|n| n.status != NodeStatus::Left).find(of_name))
}

/// What a host announces.
fn offered<'a>(
    catalog: &'a Catalog,
    node: u64,
    selection: &'a Selection,
) -> impl Iterator<Item = Value> + 'a {
    everything(catalog)
        .filter(move |instance| instance.node.id == node)
        .filter_map(|instance| Some(service(instance, instance.advertise?)))
        .filter(move |entry| selection.has_entry(entry))
}

/// Every instance, of those too whose hosts vanished.
fn everything(catalog: &Catalog) -> impl Iterator<Item = &Arc<Instance>> {
    let seen = catalog.services.values().flat_map(|view| &view.instances);
    seen.chain(catalog.lost.values().flatten())
}

/// `/v1/health/service/{name}`; an unknown service is `[]`.
#[must_use]
pub fn health_service(catalog: &Catalog, name: &str, selection: &Selection) -> Value {
    let entry = |(instance, advertise): (&Arc<Instance>, SocketAddr)| {
        json!({
            "Node": node_entry(catalog, &instance.node),
            "Service": service(instance, advertise),
            "Checks": checks::all_of(instance),
        })
    };
    selected(catalog, name, selection)
        .into_iter()
        .map(entry)
        .filter(|entry| selection.has_entry(entry))
        .collect()
}

/// The instances of a service that the query asks for, with where they are announced.
fn selected<'a>(
    catalog: &'a Catalog,
    name: &str,
    selection: &Selection,
) -> Vec<(&'a Arc<Instance>, SocketAddr)> {
    let name = name.to_ascii_lowercase();
    let view = catalog.service(&name);
    let lost = catalog.lost_instances(&name).filter(|_| !selection.passing);
    let has =
        |instance: &Instance, tag: &str| instance.tags.iter().any(|t| t.eq_ignore_ascii_case(tag));
    let mut selected: Vec<_> = view
        .into_iter()
        .flat_map(|view| &view.instances)
        .chain(lost)
        .filter_map(|instance| Some((instance, instance.advertise?)))
        .filter(|(instance, _)| selection.has_node(&instance.node))
        .filter(|(instance, _)| selection.tags.iter().all(|tag| has(instance, tag)))
        .filter(|(i, _)| !selection.passing || (i.status == Status::Passing && !i.node.draining))
        .collect();
    // Of those that may have vanished a client who wants only what works hears while nothing else is left.
    if selection.passing && selected.iter().any(|(i, _)| !i.preserved) {
        selected.retain(|(i, _)| !i.preserved);
    }
    selected
}

fn node_entry(catalog: &Catalog, node: &Node) -> Value {
    json!({
        "ID": uuid(node.id),
        "Node": node.name,
        "Address": node.address.ip(),
        "Datacenter": catalog.mesh,
        "TaggedAddresses": node_addresses(node),
        "Meta": node_meta(node),
        "CreateIndex": node.index,
        "ModifyIndex": node.index,
    })
}

fn service(instance: &Instance, address: SocketAddr) -> Value {
    json!({
        "ID": instance.id,
        "Service": instance.service,
        "Tags": instance.tags,
        "Address": address.ip(),
        "TaggedAddresses": service_addresses(instance, address),
        "Meta": instance.meta,
        "Port": address.port(),
        "Weights": weights(instance),
        "EnableTagOverride": instance.enable_tag_override,
        "CreateIndex": instance.create_index,
        "ModifyIndex": instance.modify_index,
    })
}

fn weights(instance: &Instance) -> Value {
    json!({"Passing": instance.weights.passing, "Warning": instance.weights.warning})
}

fn node_meta(node: &Node) -> Value {
    Value::Object(node.zone.iter().map(|zone| ("zone".to_owned(), json!(zone))).collect())
}

fn node_addresses(node: &Node) -> Value {
    let ip = node.address.ip();
    let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
    let keys =
        ["lan".to_owned(), format!("lan_{family}"), "wan".to_owned(), format!("wan_{family}")];
    Value::Object(keys.into_iter().map(|key| (key, json!(ip))).collect::<Map<_, _>>())
}

/// The registered ones, and those that every instance has where the registration says nothing else.
fn service_addresses(instance: &Instance, address: SocketAddr) -> Value {
    let family = match address.ip() {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    };
    let entry = json!({"Address": address.ip(), "Port": address.port()});
    let mut addresses = Map::new();
    for name in [format!("lan_{family}"), format!("wan_{family}")] {
        addresses.insert(name, entry.clone());
    }
    for (name, (host, port)) in &instance.tagged_addresses {
        addresses.insert(name.clone(), json!({"Address": host, "Port": port}));
    }
    Value::Object(addresses)
}

/// A host id in the form that Consul's clients expect of one.
fn uuid(node: u64) -> String {
    format!("00000000-0000-0000-{:04x}-{:012x}", node >> 48, node & 0xffff_ffff_ffff)
}

/// A duration as Go writes it, `1h2m3.5s`; `None` if it is not one, or longer than a century.
#[must_use]
pub fn go_duration(text: &str) -> Option<Duration> {
    const MAX_SECS: f64 = 100.0 * 365.0 * 24.0 * 3600.0;
    let mut rest = text;
    let mut secs = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        secs += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    (!text.is_empty() && secs <= MAX_SECS).then(|| Duration::from_secs_f64(secs))
}

#[cfg(test)]
mod tests;
