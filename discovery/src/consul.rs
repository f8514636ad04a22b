//! The catalogue in Consul's JSON, so that clients written for a Consul agent work unmodified; and, in
//! `registration`, Consul's registrations read into ours.
//!
//! Only shapes are decided here: the shell serves HTTP and sets the headers (`X-Consul-Index` from
//! [`Catalog::service_index`], `services_index`, `nodes_index`). The quirks are Consul's: `[]`, never `null`, for
//! tags and checks, `serfHealth` among the checks, node ids that look like UUIDs. The datacenter is the mesh's name.
//! An instance that is not announced outside the mesh (no `advertise`) is in its own host's `agent/services` only.
//! A draining host shows as in maintenance, as Consul shows it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::catalog::{Catalog, Instance, Node, NodeStatus};
use crate::health::Status;

mod registration;

pub use registration::{DecodeError, decode_registration};

/// What a query asks to leave out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only instances whose every check passes.
    pub passing: bool,
    /// Only instances that have all of these tags, in any case.
    pub tags: Vec<String>,
}

/// `/v1/agent/self`.
#[must_use]
pub fn agent_self(catalog: &Catalog, version: &str) -> Value {
    let own = catalog.nodes.get(&catalog.own);
    json!({
        "Config": {
            "Datacenter": catalog.mesh,
            "PrimaryDatacenter": catalog.mesh,
            "NodeName": own.map_or("", |node| &node.name),
            "NodeID": uuid(catalog.own),
            "Revision": "",
            "Server": false,
            "Version": version,
        },
        "Member": own.map(|node| member(catalog, node)),
        "Meta": own.map_or_else(|| json!({}), |node| node_meta(node)),
        "Stats": {},
    })
}

/// `/v1/agent/members`: those that are up, and those that went away lately, with Serf's status numbers.
#[must_use]
pub fn agent_members(catalog: &Catalog) -> Value {
    catalog.nodes.values().map(|node| member(catalog, node)).collect()
}

/// `/v1/agent/services`: this host's own instances by id.
#[must_use]
pub fn agent_services(catalog: &Catalog) -> Value {
    let own = catalog
        .services
        .values()
        .flat_map(|view| &view.instances)
        .filter(|i| i.node.id == catalog.own);
    let entry = |instance: &Arc<Instance>| {
        let mut service = service(instance, instance.address);
        service["Datacenter"] = json!(catalog.mesh);
        (instance.id.clone(), service)
    };
    Value::Object(own.map(entry).collect())
}

/// `/v1/catalog/services`: names and the union of their tags.
#[must_use]
pub fn catalog_services(catalog: &Catalog) -> Value {
    let entry = |(name, view): (&String, &Arc<crate::catalog::ServiceView>)| {
        let mut announced = view.instances.iter().filter(|i| i.advertise.is_some()).peekable();
        announced.peek()?;
        let tags: BTreeSet<&String> = announced.flat_map(|instance| &instance.tags).collect();
        Some((name.clone(), json!(tags)))
    };
    Value::Object(catalog.services.iter().filter_map(entry).collect())
}

/// `/v1/catalog/service/{name}`; an unknown service is `[]`.
#[must_use]
pub fn catalog_service(catalog: &Catalog, name: &str, filter: &Filter) -> Value {
    let entry = |(instance, advertise): (&Arc<Instance>, SocketAddr)| {
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
            "ServiceTaggedAddresses": service_addresses(advertise),
            "ServiceWeights": weights(instance),
            "ServiceMeta": instance.meta,
            "ServicePort": advertise.port(),
            "ServiceEnableTagOverride": false,
            "CreateIndex": instance.create_index,
            "ModifyIndex": instance.modify_index,
        })
    };
    selected(catalog, name, filter).into_iter().map(entry).collect()
}

/// `/v1/catalog/nodes`: those that are up.
#[must_use]
pub fn catalog_nodes(catalog: &Catalog) -> Value {
    catalog.alive().map(|node| node_entry(catalog, node)).collect()
}

/// `/v1/health/service/{name}`; an unknown service is `[]`.
#[must_use]
pub fn health_service(catalog: &Catalog, name: &str, filter: &Filter) -> Value {
    let entry = |(instance, advertise): (&Arc<Instance>, SocketAddr)| {
        json!({
            "Node": node_entry(catalog, &instance.node),
            "Service": service(instance, advertise),
            "Checks": checks(instance),
        })
    };
    selected(catalog, name, filter).into_iter().map(entry).collect()
}

/// The instances of a service that the query asks for, with where they are announced.
fn selected<'a>(
    catalog: &'a Catalog,
    name: &str,
    filter: &Filter,
) -> Vec<(&'a Arc<Instance>, SocketAddr)> {
    let view = catalog.service(&name.to_ascii_lowercase());
    let has =
        |instance: &Instance, tag: &str| instance.tags.iter().any(|t| t.eq_ignore_ascii_case(tag));
    let mut selected: Vec<_> = view
        .into_iter()
        .flat_map(|view| &view.instances)
        .filter_map(|instance| Some((instance, instance.advertise?)))
        .filter(|(instance, _)| filter.tags.iter().all(|tag| has(instance, tag)))
        .filter(|(i, _)| !filter.passing || (i.status == Status::Passing && !i.node.draining))
        .collect();
    // Of those that may have vanished a client who wants only what works hears while nothing else is left.
    if filter.passing && selected.iter().any(|(i, _)| !i.preserved) {
        selected.retain(|(i, _)| !i.preserved);
    }
    selected
}

fn member(catalog: &Catalog, node: &Node) -> Value {
    let status = match node.status {
        NodeStatus::Alive => 1,
        NodeStatus::Left => 3,
        NodeStatus::Failed | NodeStatus::Dead => 4,
    };
    json!({
        "Name": node.name,
        "Addr": node.address.ip(),
        "Port": node.address.port(),
        "Tags": {"dc": catalog.mesh, "id": uuid(node.id), "role": "node"},
        "Status": status,
        "ProtocolMin": 1,
        "ProtocolMax": 5,
        "ProtocolCur": 2,
        "DelegateMin": 2,
        "DelegateMax": 5,
        "DelegateCur": 4,
    })
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
        "TaggedAddresses": service_addresses(address),
        "Meta": instance.meta,
        "Port": address.port(),
        "Weights": weights(instance),
        "EnableTagOverride": false,
        "CreateIndex": instance.create_index,
        "ModifyIndex": instance.modify_index,
    })
}

fn weights(instance: &Instance) -> Value {
    json!({"Passing": instance.weights.passing, "Warning": instance.weights.warning})
}

/// The host's own checks first, then the instance's.
fn checks(instance: &Instance) -> Value {
    let node = &instance.node;
    let of_node = |id: &str, name: &str, status: Status, notes: &str, output: &str| {
        json!({
            "Node": node.name,
            "CheckID": id,
            "Name": name,
            "Status": status.as_str(),
            "Notes": notes,
            "Output": output,
            "ServiceID": "",
            "ServiceName": "",
            "ServiceTags": [],
            "Type": "",
            "CreateIndex": node.index,
            "ModifyIndex": node.index,
        })
    };
    let alive = if instance.preserved {
        "Vanished together with many other hosts: kept for a while in case it is this host that is cut off"
    } else {
        "Agent alive and reachable"
    };
    let mut checks = vec![of_node("serfHealth", "Serf Health Status", Status::Passing, "", alive)];
    if node.draining {
        let (name, why) = ("Node Maintenance Mode", "the host is draining");
        checks.push(of_node("_node_maintenance", name, Status::Critical, why, ""));
    }
    checks.extend(instance.checks.iter().map(|check| {
        json!({
            "Node": node.name,
            "CheckID": check.id,
            "Name": check.name,
            "Status": check.status.as_str(),
            "Notes": "",
            "Output": check.output,
            "ServiceID": instance.id,
            "ServiceName": instance.service,
            "ServiceTags": instance.tags,
            "Type": check.kind,
            "CreateIndex": instance.create_index,
            "ModifyIndex": instance.modify_index,
        })
    }));
    Value::Array(checks)
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

fn service_addresses(address: SocketAddr) -> Value {
    let family = match address.ip() {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    };
    let entry = json!({"Address": address.ip(), "Port": address.port()});
    json!({format!("lan_{family}"): entry, format!("wan_{family}"): entry})
}

/// A host id in the form that Consul's clients expect of one.
fn uuid(node: u64) -> String {
    format!("00000000-0000-0000-{:04x}-{:012x}", node >> 48, node & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests;
