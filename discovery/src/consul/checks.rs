//! Checks in Consul's JSON: of a host whether it is there (`serfHealth`), in maintenance, and its own; of an instance its own.
//!
//! A host that stopped answering is critical by its `serfHealth`, and so is everything on it. One that vanished together
//! with many others is not called so as long as its instances are kept: it may be this host that is cut off.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Selection, everything, named};
use crate::catalog::{Catalog, CheckState, Instance, Node, NodeStatus};
use crate::health::Status;
use crate::record::MAINTENANCE;

/// Which checks `/v1/health/state/…` is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckStates {
    /// All.
    Any,
    /// Those of this status.
    Only(Status),
}

impl CheckStates {
    /// Consul's word for it.
    #[must_use]
    pub fn of(word: &str) -> Option<CheckStates> {
        Some(match word {
            "any" => CheckStates::Any,
            "passing" => CheckStates::Only(Status::Passing),
            "warning" => CheckStates::Only(Status::Warning),
            "critical" => CheckStates::Only(Status::Critical),
            _ => return None,
        })
    }
}

/// `/v1/health/state/{state}`: the checks of all hosts and instances that are in that state.
#[must_use]
pub fn health_state(catalog: &Catalog, states: CheckStates, selection: &Selection) -> Value {
    let preserved: BTreeSet<u64> =
        everything(catalog).filter(|i| i.preserved).map(|i| i.node.id).collect();
    let hosts = catalog
        .nodes
        .values()
        .filter(|node| node.status != NodeStatus::Left && selection.has_node(node))
        .flat_map(|node| of_host(node, preserved.contains(&node.id)));
    let instances = everything(catalog)
        .filter(|instance| instance.advertise.is_some() && selection.has_node(&instance.node))
        .flat_map(|instance| of_instance(instance));
    let is_asked = |check: &Value| match states {
        CheckStates::Any => true,
        CheckStates::Only(status) => check["Status"] == status.as_str(),
    };
    hosts.chain(instances).filter(is_asked).filter(|check| selection.has_entry(check)).collect()
}

/// `/v1/health/checks/{service}`: the checks of a service's instances, without those of their hosts.
#[must_use]
pub fn health_checks(catalog: &Catalog, service: &str, selection: &Selection) -> Value {
    let name = service.to_ascii_lowercase();
    let seen = catalog.service(&name).into_iter().flat_map(|view| &view.instances);
    seen.chain(catalog.lost_instances(&name))
        .filter(|instance| instance.advertise.is_some() && selection.has_node(&instance.node))
        .flat_map(|instance| of_instance(instance))
        .filter(|check| selection.has_entry(check))
        .collect()
}

/// `/v1/health/node/{name}`: the checks of a host and of all on it; `[]` if there is none of the name.
#[must_use]
pub fn health_node(catalog: &Catalog, name: &str, selection: &Selection) -> Value {
    let Some(node) = named(catalog, name) else { return json!([]) };
    let on_it: Vec<&Arc<Instance>> =
        everything(catalog).filter(|instance| instance.node.id == node.id).collect();
    let is_preserved = on_it.iter().any(|instance| instance.preserved);
    let announced = on_it.into_iter().filter(|instance| instance.advertise.is_some());
    of_host(node, is_preserved)
        .into_iter()
        .chain(announced.flat_map(|instance| of_instance(instance)))
        .filter(|check| selection.has_entry(check))
        .collect()
}

/// The host's own checks first, then the instance's.
pub(super) fn all_of(instance: &Instance) -> Value {
    let mut checks = of_host(&instance.node, instance.preserved);
    checks.extend(of_instance(instance));
    Value::Array(checks)
}

fn of_host(node: &Node, preserved: bool) -> Vec<Value> {
    let is_gone = matches!(node.status, NodeStatus::Failed | NodeStatus::Dead);
    let (status, output) = match (is_gone, preserved) {
        (_, true) => (
            Status::Passing,
            "Vanished together with many other hosts: kept for a while in case it is this host that is cut off",
        ),
        (true, false) => (Status::Critical, "Agent not live or unreachable"),
        (false, false) => (Status::Passing, "Agent alive and reachable"),
    };
    let alive = CheckState {
        id: "serfHealth".to_owned(),
        name: "Serf Health Status".to_owned(),
        kind: "",
        notes: String::new(),
        status,
        output: output.to_owned(),
    };
    let mut checks = vec![host_check(node, &alive)];
    checks.extend(said_of_host(node));
    checks
}

/// What the host says of itself: that it is in maintenance, and its own checks.
pub(super) fn said_of_host(node: &Node) -> impl Iterator<Item = Value> {
    let why =
        if node.drain_reason.is_empty() { "the host is draining" } else { &node.drain_reason };
    let maintenance = node.draining.then(|| CheckState {
        id: "_node_maintenance".to_owned(),
        name: "Node Maintenance Mode".to_owned(),
        kind: "",
        notes: why.to_owned(),
        status: Status::Critical,
        output: String::new(),
    });
    let maintenance = maintenance.map(|check| host_check(node, &check));
    maintenance.into_iter().chain(node.checks.iter().map(|check| host_check(node, check)))
}

fn host_check(node: &Node, check: &CheckState) -> Value {
    json!({
        "Node": node.name,
        "CheckID": check.id,
        "Name": check.name,
        "Status": check.status.as_str(),
        "Notes": check.notes,
        "Output": check.output,
        "ServiceID": "",
        "ServiceName": "",
        "ServiceTags": [],
        "Type": check.kind,
        "CreateIndex": node.index,
        "ModifyIndex": node.index,
    })
}

pub(super) fn of_instance(instance: &Instance) -> Vec<Value> {
    let entry = |check: &CheckState| {
        json!({
            "Node": instance.node.name,
            "CheckID": check.id,
            "Name": check.name,
            "Status": check.status.as_str(),
            "Notes": check.notes,
            "Output": check.output,
            "ServiceID": instance.id,
            "ServiceName": instance.service,
            "ServiceTags": instance.tags,
            "Type": if check.kind == MAINTENANCE { "" } else { check.kind },
            "CreateIndex": instance.create_index,
            "ModifyIndex": instance.modify_index,
        })
    };
    instance.checks.iter().map(entry).collect()
}
