use super::*;
use crate::catalog::CheckState;
use crate::sample::catalog;

fn ids(value: &Value, pointer: &str) -> Vec<String> {
    let entries = value.as_array().expect("a list");
    entries
        .iter()
        .map(|entry| entry.pointer(pointer).unwrap().as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_health_entry_has_every_field_that_clients_read() {
    let filter = Selection { passing: true, tags: vec!["V2".into()], ..Selection::default() };
    let answer = health_service(&catalog(), "payments", &filter);
    assert_eq!(
        answer,
        json!([{
            "Node": {
                "ID": "00000000-0000-0000-0000-000000000001", "Node": "host-a", "Address": "10.0.0.1", "Datacenter": "prod",
                "TaggedAddresses": {"lan": "10.0.0.1", "lan_ipv4": "10.0.0.1", "wan": "10.0.0.1", "wan_ipv4": "10.0.0.1"},
                "Meta": {"zone": "eu-west-1a"}, "CreateIndex": 40, "ModifyIndex": 40,
            },
            "Service": {
                "ID": "payments-1", "Service": "payments", "Tags": ["v2"], "Address": "10.0.0.1", "Port": 8443,
                "TaggedAddresses": {
                    "lan_ipv4": {"Address": "10.0.0.1", "Port": 8443}, "wan_ipv4": {"Address": "10.0.0.1", "Port": 8443},
                },
                "Meta": {"version": "2.1"}, "Weights": {"Passing": 10, "Warning": 1}, "EnableTagOverride": false,
                "CreateIndex": 100, "ModifyIndex": 200,
            },
            "Checks": [{
                "Node": "host-a", "CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing", "Notes": "",
                "Output": "Agent alive and reachable", "ServiceID": "", "ServiceName": "", "ServiceTags": [], "Type": "",
                "CreateIndex": 40, "ModifyIndex": 40,
            }],
        }])
    );
}

#[test]
fn table_of_filters() {
    let filter = |passing, tags: &[&str]| Selection {
        passing,
        tags: tags.iter().map(|t| (*t).to_owned()).collect(),
        ..Selection::default()
    };
    for (name, filter, instances) in [
        (
            "payments",
            filter(false, &[]),
            vec!["payments-1", "payments-2", "payments-3", "payments-4"],
        ),
        (
            "Payments",
            filter(false, &[]),
            vec!["payments-1", "payments-2", "payments-3", "payments-4"],
        ),
        // Neither warning nor draining passes.
        ("payments", filter(true, &[]), vec!["payments-1"]),
        ("payments", filter(false, &["v2"]), vec!["payments-1"]),
        ("payments", filter(false, &["v2", "v3"]), vec![]),
        ("sick", filter(false, &[]), vec!["sick"]),
        ("sick", filter(true, &[]), vec![]),
        // Not announced outside the mesh.
        ("inside", filter(false, &[]), vec![]),
        ("nothing", filter(false, &[]), vec![]),
    ] {
        let health = health_service(&catalog(), name, &filter);
        assert_eq!(ids(&health, "/Service/ID"), instances, "{name} {filter:?}");
        let flat = catalog_service(&catalog(), name, &filter);
        assert_eq!(ids(&flat, "/ServiceID"), instances, "{name} {filter:?}");
    }
}

#[test]
fn checks_say_what_is_wrong() {
    let answer = health_service(&catalog(), "payments", &Selection::default());
    let statuses = |instance: usize| ids(&answer[instance]["Checks"], "/Status");
    let names = |instance: usize| ids(&answer[instance]["Checks"], "/CheckID");
    assert_eq!(names(1), ["serfHealth", "service:payments-2"]);
    assert_eq!(statuses(1), ["passing", "warning"]);
    assert_eq!(statuses(2), ["passing", "critical"]);
    assert_eq!(names(3), ["serfHealth", "_node_maintenance"]);
    assert_eq!(statuses(3), ["passing", "critical"]);
}

#[test]
fn checks_of_a_host_stand_with_all_that_is_on_it() {
    let mut catalog = catalog();
    let disk = CheckState {
        id: "disk".into(),
        name: "Disk".into(),
        kind: "ttl",
        notes: String::new(),
        status: Status::Critical,
        output: "full".into(),
    };
    let node = Node { checks: vec![disk], ..Node::clone(&catalog.nodes[&1]) };
    let (node, all) = (Arc::new(node), Selection::default());
    catalog.nodes.insert(1, Arc::clone(&node));
    for view in catalog.services.values_mut() {
        let view = Arc::make_mut(view);
        for instance in view.instances.iter_mut().filter(|instance| instance.node.id == 1) {
            Arc::make_mut(instance).node = Arc::clone(&node);
        }
    }
    let shop = health_service(&catalog, "payments.shop", &all);
    let check = &shop[0]["Checks"][1];
    assert_eq!(
        (&check["CheckID"], &check["Type"], &check["Output"]),
        (&json!("disk"), &json!("ttl"), &json!("full"))
    );
    assert_eq!((&check["ServiceID"], &check["Status"]), (&json!(""), &json!("critical")));
    assert_eq!(health_node(&catalog, "host-a", &all)[1]["CheckID"], "disk");
    assert_eq!(agent_checks(&catalog, &all)["disk"]["Name"], "Disk");
    let critical = health_state(&catalog, CheckStates::Only(Status::Critical), &all);
    let disks = |found: &Value| {
        found.as_array().unwrap().iter().filter(|check| check["CheckID"] == "disk").count()
    };
    assert_eq!(disks(&critical), 1);
    assert_eq!(disks(&health_checks(&catalog, "payments.shop", &all)), 0, "only the service's own");
}

#[test]
fn flat_entries_have_every_field_that_clients_read() {
    let answer = catalog_service(&catalog(), "payments.shop", &Selection::default());
    let keys: BTreeSet<&String> = answer[0].as_object().unwrap().keys().collect();
    for key in "ID,Node,Address,Datacenter,TaggedAddresses,NodeMeta,ServiceID,ServiceName,ServiceAddress,\
                ServiceTaggedAddresses,ServiceTags,ServiceMeta,ServicePort,ServiceWeights,ServiceEnableTagOverride,\
                CreateIndex,ModifyIndex"
        .split(',')
    {
        assert!(keys.contains(&key.to_owned()), "{key}");
    }
    assert_eq!(answer[0]["ServiceAddress"], "10.0.0.9");
    assert_eq!(answer[0]["ServiceTags"], json!([]));
}

#[test]
fn lists_of_services_hosts_and_members() {
    let catalog = catalog();
    assert_eq!(
        catalog_services(&catalog, &Selection::default()),
        json!({"payments": ["v2"], "payments.shop": [], "sick": [], "six": []})
    );
    assert_eq!(
        ids(&catalog_nodes(&catalog, &Selection::default()), "/Node"),
        ["host-a", "host-b", "host-c"]
    );
    let members = agent_members(&catalog);
    assert_eq!(ids(&members, "/Name"), ["host-a", "host-b", "host-c", "host-d"]);
    assert_eq!(members[0]["Status"], 1);
    assert_eq!(members[3]["Status"], 4);
    let own: Vec<String> = agent_services(&catalog, &Selection::default())
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(own, ["inside", "payments-1", "shop", "sick", "six"]);
    assert_eq!(agent_services(&catalog, &Selection::default())["inside"]["Address"], "127.0.0.1");
    let own = agent_self(&catalog, "1.2.3");
    assert_eq!(own["Config"]["Datacenter"], "prod");
    assert_eq!(own["Config"]["NodeName"], "host-a");
    assert_eq!(own["Member"]["Name"], "host-a");
    assert_eq!(uuid(0x1234_5678_9abc_def0), "00000000-0000-0000-1234-56789abcdef0");
}

#[test]
fn checks_by_state_service_and_host() {
    use crate::filter::{FilterExpression, FilteredEntry};
    let (catalog, all) = (catalog(), Selection::default());
    let any = health_state(&catalog, CheckStates::Any, &all);
    let serf = ids(&any, "/CheckID").iter().filter(|id| *id == "serfHealth").count();
    assert_eq!(serf, 4, "of the hosts that are up and of the one that failed");
    let critical = health_state(&catalog, CheckStates::of("critical").unwrap(), &all);
    assert_eq!(
        ids(&critical, "/CheckID"),
        ["_node_maintenance", "serfHealth", "service:payments-3", "service:sick"]
    );
    assert_eq!(critical[0]["Notes"], "new disk");
    assert_eq!(critical[1]["Node"], "host-d");
    assert_eq!(CheckStates::of("unknown"), None);

    let checks = health_checks(&catalog, "Payments", &all);
    assert_eq!(ids(&checks, "/CheckID"), ["service:payments-2", "service:payments-3"]);
    assert_eq!(health_checks(&catalog, "nothing", &all), json!([]));
    let host = health_node(&catalog, "HOST-B", &all);
    assert_eq!(ids(&host, "/CheckID"), ["serfHealth", "service:payments-2", "service:payments-3"]);
    assert_eq!(health_node(&catalog, "nothing", &all), json!([]));
    let expression = FilterExpression::parse("Status == critical", FilteredEntry::Check).ok();
    let filtered = health_node(&catalog, "host-b", &Selection { expression, ..all.clone() });
    assert_eq!(ids(&filtered, "/CheckID"), ["service:payments-3"]);
    let own: Vec<String> =
        agent_checks(&catalog, &all).as_object().unwrap().keys().cloned().collect();
    assert_eq!(own, ["service:sick"]);
}

#[test]
fn one_host_and_what_it_offers() {
    let (catalog, all) = (catalog(), Selection::default());
    let node = catalog_node(&catalog, "Host-A", &all);
    assert_eq!(node["Node"]["Node"], "host-a");
    let services: Vec<&String> = node["Services"].as_object().unwrap().keys().collect();
    assert_eq!(services, ["payments-1", "shop", "sick", "six"], "not what is inside the mesh only");
    let list = catalog_node_services(&catalog, "host-a", &all);
    assert_eq!(ids(&list["Services"], "/ID").len(), 4);
    assert_eq!(catalog_node(&catalog, "nothing", &all), Value::Null);
    assert_eq!(
        catalog_node_services(&catalog, "nothing", &all),
        json!({"Node": null, "Services": []})
    );
    assert_eq!(agent_service(&catalog, "inside").unwrap()["Port"], 8443);
    assert_eq!(agent_service(&catalog, "payments-2"), None, "it is another host's");
}

#[test]
fn what_is_lost_is_critical_and_only_for_who_asks_for_all() {
    let mut catalog = catalog();
    let payments = &catalog.services["payments"].instances[0];
    let lost = Instance {
        node: Arc::clone(&catalog.nodes[&4]),
        id: "payments-9".into(),
        service: "gone".into(),
        ..Instance::clone(payments)
    };
    catalog.lost.insert("gone".into(), vec![Arc::new(lost)]);
    let all = Selection::default();
    let health = health_service(&catalog, "gone", &all);
    assert_eq!(ids(&health, "/Service/ID"), ["payments-9"]);
    assert_eq!(ids(&health[0]["Checks"], "/Status"), ["critical"]);
    let passing = Selection { passing: true, ..all.clone() };
    assert_eq!(health_service(&catalog, "gone", &passing), json!([]));
    assert_eq!(ids(&catalog_service(&catalog, "gone", &all), "/Node"), ["host-d"]);
    assert_eq!(catalog_services(&catalog, &all)["gone"], json!(["v2"]));
    assert_eq!(
        catalog_node(&catalog, "host-d", &all)["Services"]["payments-9"]["ID"],
        "payments-9"
    );
}

#[test]
fn node_meta_and_expressions_select_services_too() {
    use crate::filter::{FilterExpression, FilteredEntry};
    let catalog = catalog();
    let names = |selection: &Selection| {
        catalog_services(&catalog, selection)
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let zone = |value: &str| Selection {
        node_meta: vec![("zone".into(), value.into())],
        ..Selection::default()
    };
    assert_eq!(names(&zone("eu-west-1a")), ["payments", "payments.shop", "sick", "six"]);
    assert_eq!(names(&zone("elsewhere")), [] as [&str; 0]);
    assert_eq!(ids(&catalog_nodes(&catalog, &zone("eu-west-1a")), "/Node"), ["host-a"]);
    let expression = FilterExpression::parse("v2 in ServiceTags", FilteredEntry::Catalog).ok();
    assert_eq!(names(&Selection { expression, ..Selection::default() }), ["payments"]);
}
