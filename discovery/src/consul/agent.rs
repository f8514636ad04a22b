//! What an agent says of itself: Consul's `/v1/agent/…`, of this host and what is registered on it.
//!
//! Unlike the catalogue it shows what is not announced outside the mesh, and where the application really listens.

use std::sync::Arc;

use serde_json::{Value, json};

use super::checks::{of_instance, said_of_host};
use super::{Selection, node_meta, service, uuid};
use crate::catalog::{Catalog, Instance, Node, NodeStatus};

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
pub fn agent_services(catalog: &Catalog, selection: &Selection) -> Value {
    let entry = |instance: &Arc<Instance>| (instance.id.clone(), own_service(catalog, instance));
    let is_selected = |(_, entry): &(String, Value)| selection.has_entry(entry);
    Value::Object(own(catalog).map(entry).filter(is_selected).collect())
}

/// `/v1/agent/service/{id}`: one of this host's own instances.
#[must_use]
pub fn agent_service(catalog: &Catalog, id: &str) -> Option<Value> {
    own(catalog).find(|instance| instance.id == id).map(|instance| own_service(catalog, instance))
}

/// `/v1/agent/checks`: the checks of this host's own instances by id, and of the host where there are any.
#[must_use]
pub fn agent_checks(catalog: &Catalog, selection: &Selection) -> Value {
    let host = catalog.nodes.get(&catalog.own).into_iter().flat_map(|node| said_of_host(node));
    let entries = host
        .chain(own(catalog).flat_map(|instance| of_instance(instance)))
        .filter(|entry| selection.has_entry(entry))
        .map(|entry| (entry["CheckID"].as_str().unwrap_or_default().to_owned(), entry));
    Value::Object(entries.collect())
}

fn own(catalog: &Catalog) -> impl Iterator<Item = &Arc<Instance>> {
    let own = catalog.own;
    let all = catalog.services.values().flat_map(|view| &view.instances);
    all.filter(move |instance| instance.node.id == own)
}

fn own_service(catalog: &Catalog, instance: &Instance) -> Value {
    let mut service = service(instance, instance.address);
    service["Datacenter"] = json!(catalog.mesh);
    service
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
