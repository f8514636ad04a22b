//! A small catalogue for the tests of what answers from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use evenkeel_config::settings::Protocol;

use crate::catalog::{Catalog, CheckState, Instance, Node, NodeStatus, Policies, ServiceView};
use crate::health::Status;
use crate::registration::Weights;

/// Mesh `prod`, domain `mesh`: hosts a (own), b, c up, d failed; services payments, payments.shop, sick, inside, six.
pub(crate) fn catalog() -> Catalog {
    let a = node(1, "host-a", "10.0.0.1", NodeStatus::Alive);
    let b = node(2, "host-b", "10.0.0.2", NodeStatus::Alive);
    let c = Node {
        draining: true,
        drain_reason: "new disk".into(),
        ..node(3, "host-c", "10.0.0.3", NodeStatus::Alive)
    };
    let d = node(4, "host-d", "10.0.0.4", NodeStatus::Failed);
    let nodes: BTreeMap<u64, Arc<Node>> =
        [a, b, c, d].into_iter().map(|node| (node.id, Arc::new(node))).collect();
    let on = |host: u64, service: &str, id: &str, advertise: &str| Instance {
        node: Arc::clone(&nodes[&host]),
        id: id.into(),
        service: service.into(),
        address: "127.0.0.1:8443".parse().unwrap(),
        advertise: advertise.parse().ok(),
        tagged_addresses: BTreeMap::new(),
        enable_tag_override: false,
        protocol: Some(Protocol::Http),
        tags: vec![],
        meta: BTreeMap::new(),
        weights: Weights::default(),
        status: Status::Passing,
        checks: vec![],
        preserved: false,
        create_index: 100,
        modify_index: 200,
    };
    let tagged = Instance {
        tags: vec!["v2".into()],
        meta: [("version".to_owned(), "2.1".to_owned())].into(),
        weights: Weights { passing: 10, warning: 1 },
        ..on(1, "payments", "payments-1", "10.0.0.1:8443")
    };
    let checked = |status, instance: Instance| Instance {
        status,
        checks: vec![CheckState {
            id: format!("service:{}", instance.id),
            name: "alive".into(),
            kind: "http",
            notes: String::new(),
            status,
            output: "said so".into(),
        }],
        ..instance
    };
    let instances = [
        tagged,
        checked(Status::Warning, on(2, "payments", "payments-2", "10.0.0.2:8443")),
        checked(Status::Critical, on(2, "payments", "payments-3", "10.0.0.2:8444")),
        on(3, "payments", "payments-4", "10.0.0.3:8443"),
        on(1, "payments.shop", "shop", "10.0.0.9:8443"),
        checked(Status::Critical, on(1, "sick", "sick", "10.0.0.1:1")),
        on(1, "inside", "inside", "none"),
        on(1, "six", "six", "[2001:db8::6]:80"),
    ];
    let mut services: BTreeMap<String, Vec<Arc<Instance>>> = BTreeMap::new();
    for instance in instances {
        services.entry(instance.service.clone()).or_default().push(Arc::new(instance));
    }
    let view = |(name, instances): (String, Vec<Arc<Instance>>)| {
        (
            name.clone(),
            Arc::new(ServiceView { name, index: 200, instances, policies: Policies::default() }),
        )
    };
    Catalog {
        mesh: "prod".into(),
        domain: "mesh".into(),
        own: 1,
        partial: false,
        nodes,
        services: services.into_iter().map(view).collect(),
        lost: BTreeMap::new(),
        orders: BTreeMap::new(),
        notes: BTreeMap::new(),
        index: 300_000_000,
        nodes_index: 50,
        services_index: 60,
        checks_index: 70,
    }
}

fn node(id: u64, name: &str, ip: &str, status: NodeStatus) -> Node {
    let ip: std::net::IpAddr = ip.parse().unwrap();
    Node {
        id,
        name: name.into(),
        address: (ip, 7111).into(),
        mesh: (ip, 7110).into(),
        zone: (id == 1).then(|| "eu-west-1a".to_owned()),
        generation: 7,
        status,
        draining: false,
        drain_reason: String::new(),
        version: "0.1.0".into(),
        checks: vec![],
        index: 40,
    }
}
