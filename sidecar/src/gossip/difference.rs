//! What changed between two snapshots, as events for people.

use evenkeel_discovery::{Catalog, Instance, ServiceView, Status, Subject};
use std::sync::Arc;

use crate::admin::report;
use crate::events::Events;

/// Notes orders and policies that came, changed or ended, and instances that came, went or changed their health. At most [`NOTED_MAX`]
/// for one snapshot, orders first: at a join to a large mesh everything is new, and a log of everything says nothing.
pub fn note(old: &Catalog, new: &Catalog, events: &Events) {
    let mut noted = Noted { events, left: NOTED_MAX, suppressed: 0 };
    note_orders(old, new, &mut noted);
    for (name, view) in &new.services {
        match old.services.get(name) {
            Some(before) if Arc::ptr_eq(before, view) => {}
            before => compare(before.map(Arc::as_ref), Some(view), &mut noted),
        }
    }
    for (_, before) in old.services.iter().filter(|(name, _)| !new.services.contains_key(*name)) {
        compare(Some(before), None, &mut noted);
    }
    if noted.suppressed > 0 {
        let more = format!("and {} more instances, policies or orders changed", noted.suppressed);
        events.info("more_changed", "mesh", more);
    }
}

/// Orders that came, were replaced, or ended.
fn note_orders(old: &Catalog, new: &Catalog, noted: &mut Noted<'_>) {
    let name = |catalog: &Catalog, subject: &Subject| match subject {
        Subject::Override(service) => service.clone(),
        Subject::Drain(node) => {
            catalog.nodes.get(node).map_or_else(|| format!("{node:016x}"), |node| node.name.clone())
        }
    };
    for (subject, order) in &new.orders {
        if old.orders.get(subject) != Some(order) {
            let kind = match subject {
                Subject::Override(_) => "override_issued",
                Subject::Drain(_) => "drain_issued",
            };
            let said = report::Order::of(subject, order);
            noted.note(true, kind, name(new, subject), format!("by {said}"));
        }
    }
    for (subject, order) in old.orders.iter().filter(|(gone, _)| !new.orders.contains_key(gone)) {
        let kind = match subject {
            Subject::Override(_) => "override_ended",
            Subject::Drain(_) => "drain_ended",
        };
        noted.note(false, kind, name(new, subject), format!("was issued at {}", order.by));
    }
}

struct Noted<'e> {
    events: &'e Events,
    left: usize,
    suppressed: usize,
}

impl Noted<'_> {
    fn note(&mut self, worth_a_look: bool, kind: &'static str, subject: String, detail: String) {
        if self.left == 0 {
            self.suppressed += 1;
            return;
        }
        self.left -= 1;
        if worth_a_look {
            self.events.warn(kind, subject, detail);
        } else {
            self.events.info(kind, subject, detail);
        }
    }
}

fn compare(old: Option<&ServiceView>, new: Option<&ServiceView>, noted: &mut Noted<'_>) {
    let key = |instance: &Instance| (instance.node.id, instance.id.clone());
    let instances =
        |view: Option<&ServiceView>| -> std::collections::BTreeMap<(u64, String), Arc<Instance>> {
            view.map(|view| view.instances.iter().map(|one| (key(one), Arc::clone(one))).collect())
                .unwrap_or_default()
        };
    note_policy(old, new, noted);
    let subject = |instance: &Instance| format!("{}/{}", instance.service, instance.id);
    let (old, new) = (instances(old), instances(new));
    for (key, instance) in &new {
        let on = format!(
            "{} on {} ({})",
            instance.address,
            instance.node.name,
            instance.status.as_str()
        );
        match old.get(key) {
            None => noted.note(false, "instance_registered", subject(instance), on),
            Some(before) if before.status != instance.status => {
                let said = instance
                    .checks
                    .iter()
                    .chain(&instance.node.checks)
                    .find(|check| check.status == instance.status)
                    .map_or(String::new(), |check| format!(": {}", check.output));
                let detail = format!(
                    "on {}: {} → {}{said}",
                    instance.node.name,
                    before.status.as_str(),
                    instance.status.as_str()
                );
                let worth_a_look = instance.status != Status::Passing;
                noted.note(worth_a_look, "health_changed", subject(instance), detail);
            }
            Some(_) => {}
        }
    }
    for (_, instance) in old.iter().filter(|(key, _)| !new.contains_key(*key)) {
        noted.note(
            false,
            "instance_gone",
            subject(instance),
            format!("{} on {}", instance.address, instance.node.name),
        );
    }
}

/// What holds for a service that was there before is another now.
fn note_policy(old: Option<&ServiceView>, new: Option<&ServiceView>, noted: &mut Noted<'_>) {
    let (Some(old), Some(new)) = (old, new) else { return };
    if old.policies.winner() != new.policies.winner() {
        let said = match new.policies.winner() {
            Some(policy) => format!("published now: {}", policy.text()),
            None => "none is published any more".to_owned(),
        };
        noted.note(false, "policy_changed", new.name.clone(), said);
    }
}

/// Events for one snapshot.
const NOTED_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_discovery::{Instruction, Node, NodeStatus, Order, PolicyVote, Weights};

    fn instance(host: u64, id: &str, status: Status) -> Arc<Instance> {
        let address = "10.0.0.1:80".parse().unwrap();
        let node = Node {
            id: host,
            name: format!("host-{host}"),
            address,
            mesh: address,
            zone: None,
            generation: 1,
            status: NodeStatus::Alive,
            draining: false,
            drain_reason: String::new(),
            version: String::new(),
            checks: Vec::new(),
            index: 1,
        };
        Arc::new(Instance {
            node: Arc::new(node),
            id: id.to_owned(),
            service: "web".to_owned(),
            address,
            advertise: None,
            tagged_addresses: Default::default(),
            enable_tag_override: false,
            protocol: None,
            tags: Vec::new(),
            meta: Default::default(),
            weights: Weights::default(),
            status,
            checks: Vec::new(),
            preserved: false,
            create_index: 1,
            modify_index: 1,
        })
    }

    fn catalog(instances: Vec<Arc<Instance>>) -> Catalog {
        let mut catalog = Catalog::default();
        if !instances.is_empty() {
            let policies = evenkeel_discovery::Policies::default();
            let view = ServiceView { name: "web".to_owned(), index: 1, instances, policies };
            catalog.services.insert("web".to_owned(), Arc::new(view));
        }
        catalog
    }

    fn noted(old: &Catalog, new: &Catalog) -> Vec<(String, String)> {
        let events = Events::default();
        note(old, new, &events);
        events.after(0).into_iter().map(|event| (event.kind, event.subject)).collect()
    }

    #[test]
    fn what_came_went_and_changed() {
        let one = |kind: &str| vec![(kind.to_owned(), "web/a".to_owned())];
        let none = catalog(Vec::new());
        let passing = catalog(vec![instance(1, "a", Status::Passing)]);
        let critical = catalog(vec![instance(1, "a", Status::Critical)]);
        assert_eq!(noted(&none, &passing), one("instance_registered"));
        assert_eq!(noted(&passing, &critical), one("health_changed"));
        assert_eq!(noted(&critical, &none), one("instance_gone"));
        assert_eq!(noted(&passing, &passing), []);
        // The same id on another host is another instance.
        let elsewhere = catalog(vec![instance(2, "a", Status::Passing)]);
        assert_eq!(
            noted(&passing, &elsewhere),
            [one("instance_registered"), one("instance_gone")].concat()
        );
    }

    #[test]
    fn orders_and_policies_that_came_changed_and_ended() {
        let policy = |text: &str| Arc::new(evenkeel_config::Published::read(text).unwrap());
        let ordered = |text: &str| {
            let mut catalog = catalog(Vec::new());
            let instruction = Instruction::Override(policy(text));
            let order = Order { instruction, issued_us: 1, until_us: 2, by: "host-a".to_owned() };
            catalog.orders.insert(Subject::Override("web".to_owned()), Arc::new(order));
            catalog
        };
        let one = |kind: &str, subject: &str| vec![(kind.to_owned(), subject.to_owned())];
        let (none, first) = (catalog(Vec::new()), ordered("{}"));
        assert_eq!(noted(&none, &first), one("override_issued", "web"));
        assert_eq!(noted(&first, &ordered("{\"policy\":{}}")), one("override_issued", "web"));
        assert_eq!(noted(&first, &first), []);
        assert_eq!(noted(&first, &none), one("override_ended", "web"));

        let publishing = |text: &str| {
            let mut catalog = catalog(vec![instance(1, "a", Status::Passing)]);
            let mut view = ServiceView::clone(&catalog.services["web"]);
            let vote =
                PolicyVote { hash: [0; 16], policy: policy(text), instances: 1, hosts: Vec::new() };
            view.policies.published.push(vote);
            catalog.services.insert("web".to_owned(), Arc::new(view));
            catalog
        };
        let plain = catalog(vec![instance(1, "a", Status::Passing)]);
        assert_eq!(noted(&plain, &publishing("{}")), one("policy_changed", "web"));
        assert_eq!(noted(&publishing("{}"), &plain), one("policy_changed", "web"));
        assert_eq!(noted(&publishing("{}"), &publishing("{}")), []);
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let many = catalog(
            (0..NOTED_MAX + 7).map(|n| instance(1, &n.to_string(), Status::Passing)).collect(),
        );
        let events = Events::default();
        note(&catalog(Vec::new()), &many, &events);
        let all = events.after(0);
        assert_eq!(all.len(), NOTED_MAX + 1);
        assert!(
            all.last().is_some_and(|event| event.detail.contains("7 more")),
            "{:?}",
            all.last()
        );
    }

    #[test]
    fn a_flood_of_orders_is_cut_too_and_comes_before_instances() {
        let mut many = catalog(vec![instance(1, "a", Status::Passing)]);
        for node in 0..NOTED_MAX as u64 {
            let order = Order {
                instruction: Instruction::Drain,
                issued_us: 1,
                until_us: 2,
                by: "host-a".to_owned(),
            };
            many.orders.insert(Subject::Drain(node), Arc::new(order));
        }
        let kinds: Vec<String> =
            noted(&catalog(Vec::new()), &many).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds.len(), NOTED_MAX + 1);
        assert_eq!((&*kinds[NOTED_MAX - 1], &*kinds[NOTED_MAX]), ("drain_issued", "more_changed"));
    }
}
