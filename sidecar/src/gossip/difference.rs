//! What changed between two snapshots, as events for people.

use evenkeel_discovery::{Catalog, Instance, ServiceView, Status};
use std::sync::Arc;

use crate::events::Events;

/// Notes instances that came, went or changed their health. At most [`NOTED_MAX`] for one snapshot: at a join to
/// a large mesh everything is new, and a log of everything says nothing.
pub fn note(old: &Catalog, new: &Catalog, events: &Events) {
    let mut noted = Noted { events, left: NOTED_MAX, suppressed: 0 };
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
        events.info(
            "instances_changed",
            "mesh",
            format!("and {} more instances changed", noted.suppressed),
        );
    }
}

struct Noted<'e> {
    events: &'e Events,
    left: usize,
    suppressed: usize,
}

impl Noted<'_> {
    fn note(
        &mut self,
        worth_a_look: bool,
        kind: &'static str,
        instance: &Instance,
        detail: String,
    ) {
        if self.left == 0 {
            self.suppressed += 1;
            return;
        }
        self.left -= 1;
        let subject = format!("{}/{}", instance.service, instance.id);
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
    let (old, new) = (instances(old), instances(new));
    for (key, instance) in &new {
        let on = format!(
            "{} on {} ({})",
            instance.address,
            instance.node.name,
            instance.status.as_str()
        );
        match old.get(key) {
            None => noted.note(false, "instance_registered", instance, on),
            Some(before) if before.status != instance.status => {
                let said = instance
                    .checks
                    .iter()
                    .find(|check| check.status == instance.status)
                    .map_or(String::new(), |check| format!(": {}", check.output));
                let detail = format!(
                    "on {}: {} → {}{said}",
                    instance.node.name,
                    before.status.as_str(),
                    instance.status.as_str()
                );
                noted.note(instance.status != Status::Passing, "health_changed", instance, detail);
            }
            Some(_) => {}
        }
    }
    for (_, instance) in old.iter().filter(|(key, _)| !new.contains_key(*key)) {
        noted.note(
            false,
            "instance_gone",
            instance,
            format!("{} on {}", instance.address, instance.node.name),
        );
    }
}

/// Events for one snapshot.
const NOTED_MAX: usize = 50;
