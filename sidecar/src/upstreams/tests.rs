use std::collections::BTreeMap;

use evenkeel_config::Environment;
use evenkeel_discovery::catalog::{Instance, Node, NodeStatus, Policies, ServiceView};
use evenkeel_discovery::{Status, Weights};
use proptest::prelude::*;

use super::*;
use crate::metrics::Metrics;
use crate::route::Destination;

struct Scene {
    upstreams: Upstreams,
    settings: Arc<Settings>,
    t0: Instant,
}

impl Scene {
    fn new(yaml: &str) -> Scene {
        let loaded = evenkeel_config::parse(yaml, "test.yaml", &Environment::named("a"));
        let (metrics, t0) = (Metrics::new(1).unwrap(), Instant::now());
        let (wanted, _) = tokio::sync::mpsc::channel(1);
        let limits = Arc::new(Limits::new(wanted, &metrics.registry).unwrap());
        let upstreams =
            Upstreams::new(t0, metrics.register(), Arc::default(), watch::Sender::new(0), limits);
        Scene { upstreams, settings: Arc::new(loaded.unwrap().settings), t0 }
    }

    fn publish(&mut self, after: Duration, catalog: &Arc<Catalog>) -> Arc<Router> {
        self.upstreams.publish(self.t0 + after, &self.settings, catalog);
        self.upstreams.router.load_full()
    }
}

fn node(id: u64) -> Arc<Node> {
    Arc::new(Node {
        id,
        name: format!("host-{id}"),
        address: SocketAddr::from(([10, 0, 0, id as u8], 7111)),
        mesh: SocketAddr::from(([10, 0, 0, id as u8], 7110)),
        zone: None,
        generation: 1,
        status: NodeStatus::Alive,
        draining: false,
        drain_reason: String::new(),
        version: String::new(),
        checks: Vec::new(),
        index: 1,
    })
}

/// One instance of a service on a host.
fn view(service: &str, host: u64, port: u16) -> Arc<ServiceView> {
    let instance = Instance {
        node: node(host),
        id: format!("{service}-1"),
        service: service.to_owned(),
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        advertise: None,
        tagged_addresses: BTreeMap::new(),
        enable_tag_override: false,
        protocol: None,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        weights: Weights::default(),
        status: Status::Passing,
        checks: Vec::new(),
        preserved: false,
        create_index: 1,
        modify_index: 1,
    };
    let (instances, policies) = (vec![Arc::new(instance)], Policies::default());
    Arc::new(ServiceView { name: service.to_owned(), index: 1, instances, policies })
}

/// The mesh as host 1 sees it.
fn catalog(views: impl IntoIterator<Item = Arc<ServiceView>>) -> Arc<Catalog> {
    Arc::new(Catalog {
        mesh: "evenkeel".into(),
        domain: "mesh".into(),
        own: 1,
        nodes: [1, 2].map(|id| (id, node(id))).into(),
        services: views.into_iter().map(|view| (view.name.clone(), view)).collect(),
        nodes_index: 1,
        ..Catalog::default()
    })
}

fn endpoints(router: &Router, host: &str) -> Option<usize> {
    match router.resolve(host) {
        Destination::Upstream(upstream) => Some(upstream.balancer().endpoints().len()),
        _ => None,
    }
}

#[test]
fn a_service_is_found_under_each_of_its_names() {
    let mut scene = Scene::new("");
    let router =
        scene.publish(Duration::ZERO, &catalog([view("web", 2, 1), view("web.shop", 2, 1)]));
    for host in [
        "web",
        "web:80",
        "web.mesh",
        "WEB.mesh",
        "web.service.mesh:80",
        "web.service.evenkeel.mesh",
        "web.shop",
        "web.shop.mesh",
        "web.shop.service.mesh",
        "web.shop.service.evenkeel.mesh",
    ] {
        assert_eq!(endpoints(&router, host), Some(1), "{host}");
    }
    for host in ["mesh", "web.node.mesh", "other.mesh", "web.example.com", "service.mesh", ".mesh"]
    {
        assert_eq!(endpoints(&router, host), None, "{host}");
    }
}

#[test]
fn what_is_gone_is_remembered_for_a_while_and_never_more_than_so_much() {
    let mut scene = Scene::new("");
    let second = Duration::from_secs(1);
    for n in 0..4 * GONE_MAX as u32 {
        scene.publish(n * second, &catalog([view(&format!("pr-{n}"), 2, 1)]));
    }
    let last = 4 * GONE_MAX as u32 - 1;
    let router = scene.publish(last * second, &catalog([]));
    assert_eq!(router.upstreams.iter().count(), GONE_MAX);
    assert_eq!(scene.upstreams.known.len(), GONE_MAX);
    assert_eq!(endpoints(&router, &format!("pr-{last}")), Some(0), "it has no instance any more");
    assert!(matches!(router.resolve("pr-0"), Destination::Unknown(_)));
    let back = catalog([view(&format!("pr-{last}"), 2, 1)]);
    let router = scene.publish(last * second + GONE_KEPT, &back);
    assert_eq!(router.upstreams.iter().count(), 1, "an hour later");
    assert_eq!(endpoints(&router, &format!("pr-{last}")), Some(1));
    assert!(scene.upstreams.gone.is_empty());
}

#[test]
fn a_change_of_one_service_leaves_all_else_as_it_is() {
    let mut scene = Scene::new("");
    let views: Vec<_> = (0..500).map(|n| view(&format!("s{n}"), 2, 1)).collect();
    let own = view("own", 1, 1);
    let all = |changed: Arc<ServiceView>| {
        catalog(views.iter().cloned().chain([Arc::clone(&own), changed]))
    };
    let before = scene.publish(Duration::ZERO, &all(view("s7", 2, 1)));
    let learnt: *const UpstreamState = &*before.upstreams.get("s7").unwrap().state;
    assert_eq!(endpoints(&before, "s7"), Some(1));
    let after = scene.publish(Duration::ZERO, &all(view("s7", 2, 2)));
    assert!(Arc::ptr_eq(&before.members, &after.members));
    assert!(Arc::ptr_eq(&before.local, &after.local));
    for n in 0..500 {
        let name = format!("s{n}");
        let (old, new) =
            (before.upstreams.get(&name).unwrap(), after.upstreams.get(&name).unwrap());
        assert!(Arc::ptr_eq(old, new), "{name}: its policy is the same");
    }
    let moved = after.upstreams.get("s7").unwrap();
    assert!(std::ptr::eq(learnt, &*moved.state), "what was learnt stays");
    assert_eq!(moved.balancer().endpoints()[0].spec().address.port(), 2);
    let unused = after.upstreams.iter().filter(|one| one.state.used().is_none()).count();
    assert_eq!(unused, 500, "what nobody asked for has no balancer");
}

#[test]
fn who_waits_for_a_host_that_is_called_down_is_told_before_its_endpoints_go() {
    let mut scene = Scene::new("");
    let up = catalog([view("web", 2, 1)]);
    let router = scene.publish(Duration::ZERO, &up);
    let endpoints = router.upstreams.get("web").unwrap().balancer().endpoints();
    let told = scene.upstreams.hosts_lost.subscribe();
    let failed = Node { status: NodeStatus::Failed, ..Node::clone(&node(2)) };
    let down = Arc::new(Catalog {
        nodes: [(1, node(1)), (2, Arc::new(failed))].into(),
        services: BTreeMap::new(),
        nodes_index: 2,
        ..Catalog::clone(&up)
    });
    for _ in 0..2 {
        scene.publish(Duration::ZERO, &down);
        assert!(endpoints[0].is_lost());
        assert_eq!(*told.borrow(), 1, "once");
    }
}

#[test]
fn endpoints_of_the_file_are_not_the_meshs_service_of_that_name() {
    let mut scene = Scene::new(
        "upstreams: [{name: web, endpoints: [\"127.0.0.1:1\", \"127.0.0.1:2\"]}, {name: later}]",
    );
    let router = scene.publish(Duration::ZERO, &catalog([view("web", 2, 1)]));
    assert_eq!(endpoints(&router, "web"), Some(2));
    assert_eq!(endpoints(&router, "later"), Some(0));
    let router = scene.publish(Duration::ZERO, &catalog([view("later", 2, 1)]));
    assert_eq!((endpoints(&router, "web"), endpoints(&router, "later")), (Some(2), Some(1)));
    let router = scene.publish(2 * GONE_KEPT, &catalog([]));
    assert_eq!((endpoints(&router, "web"), endpoints(&router, "later")), (Some(2), Some(0)));
}

proptest! {
    #[test]
    fn what_differs_is_what_a_look_at_all_would_find(
        before in prop::collection::btree_map(0..30u8, 0..3u8, 0..20),
        after in prop::collection::btree_map(0..30u8, 0..3u8, 0..20),
    ) {
        let keys: BTreeSet<&u8> = before.keys().chain(after.keys()).collect();
        let expected: Vec<&u8> =
            keys.into_iter().filter(|key| before.get(key) != after.get(key)).collect();
        prop_assert_eq!(differing(&before, &after, |one, other| one == other), expected);
    }

    /// Whatever came before, the router is the one that the last catalogue alone would make, but for what is gone.
    #[test]
    fn a_router_made_from_changes_is_the_one_made_at_once(
        steps in prop::collection::vec(prop::collection::btree_map(0..6u8, (1..3u64, 1..3u16), 0..6), 1..8),
    ) {
        let catalogs = steps.iter().map(|step| {
            catalog(step.iter().map(|(name, (host, port))| view(&format!("s{name}"), *host, *port)))
        });
        let (mut scene, mut router, mut last) = (Scene::new(""), Arc::default(), Arc::default());
        for next in catalogs {
            router = scene.publish(Duration::ZERO, &next);
            last = next;
        }
        let at_once = Scene::new("").publish(Duration::ZERO, &last);
        let seen = |router: &Router| {
            let of = |upstream: &Arc<Upstream>| {
                let endpoints = upstream.balancer().endpoints();
                let specs: Vec<EndpointSpec> = endpoints.iter().map(|one| one.spec().clone()).collect();
                (upstream.name.to_string(), specs)
            };
            let upstreams: BTreeMap<_, _> = router.upstreams.iter().map(of).collect();
            upstreams.into_iter().filter(|(_, specs)| !specs.is_empty()).collect::<Vec<_>>()
        };
        prop_assert_eq!(seen(&router), seen(&at_once));
        let own = |router: &Router| -> BTreeMap<String, SocketAddr> {
            router.local.iter().map(|(id, local)| (id.to_string(), local.address)).collect()
        };
        prop_assert_eq!(own(&router), own(&at_once));
        prop_assert_eq!(&router.members, &at_once.members);
    }
}
