//! Orders issued at this host, and the end of all orders.

use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_config::Published;

use super::{Discovery, Event};
use crate::order::{
    Instruction, ORDER_TTL_MAX, ORDERS_MAX, OrderBody, OrderError, SKEW, SavedOrder, Subject,
    micros,
};

impl Discovery {
    /// Orders that all clients of a service follow this policy for a while. It replaces any other override of the service.
    ///
    /// # Errors
    /// Why not; nothing changed.
    pub fn override_policy(
        &mut self,
        now: Instant,
        wall_ms: u64,
        service: &str,
        policy: Arc<Published>,
        ttl: Duration,
    ) -> Result<(), OrderError> {
        let subject = Subject::Override(service.to_owned());
        self.issue(now, wall_ms, &subject, Instruction::Override(policy), ttl)
    }

    /// Orders that nobody chooses a host for a while.
    ///
    /// # Errors
    /// Why not; nothing changed.
    pub fn drain(
        &mut self,
        now: Instant,
        wall_ms: u64,
        node: u64,
        ttl: Duration,
    ) -> Result<(), OrderError> {
        if node != self.config.node.id && !self.membership.up().contains_key(&node) {
            return Err(OrderError::NoSuchHost);
        }
        self.issue(now, wall_ms, &Subject::Drain(node), Instruction::Drain, ttl)
    }

    /// Takes back what was ordered on a subject, wherever it was issued.
    ///
    /// # Errors
    /// Why not; nothing changed.
    pub fn undo(
        &mut self,
        now: Instant,
        wall_ms: u64,
        subject: &Subject,
    ) -> Result<(), OrderError> {
        let (standing, _) = self.registry.standing(wall_ms.saturating_mul(1000));
        if !standing.contains_key(subject) {
            return Err(OrderError::Nothing);
        }
        // Longer than any order that was issued before it, also one that is still on its way here.
        self.issue(now, wall_ms, subject, Instruction::Undo, ORDER_TTL_MAX)
    }

    fn issue(
        &mut self,
        now: Instant,
        wall_ms: u64,
        subject: &Subject,
        instruction: Instruction,
        ttl: Duration,
    ) -> Result<(), OrderError> {
        if self.left {
            return Err(OrderError::Leaving);
        }
        if ttl.is_zero() || ttl > ORDER_TTL_MAX {
            return Err(OrderError::Ttl);
        }
        self.withdraw_orders(now, wall_ms);
        let is_undo = instruction == Instruction::Undo;
        // What takes orders back must be possible however many there are.
        let max = if is_undo { ORDERS_MAX + UNDOS_MAX } else { ORDERS_MAX };
        let counts = |subject: &Subject, order: &OrderBody, known: &Subject| {
            known != subject && (is_undo || order.instruction != Instruction::Undo)
        };
        let own = self.registry.own_orders();
        if own.filter(|(known, order)| counts(subject, order, known)).count() >= max {
            return Err(OrderError::TooMany);
        }
        let key = subject.key();
        if !is_undo && !self.registry.has_own(&key) && self.registry.own_room() == 0 {
            return Err(OrderError::MeshFull);
        }
        let wall_us = wall_ms.saturating_mul(1000);
        // Newer than what it replaces, even if that was issued by a clock that is ahead of ours.
        let (newest, latest_end) = self.registry.latest_on(subject).unwrap_or_default();
        let end = wall_us.saturating_add(micros(ttl));
        // Others pass over what ends too far from now.
        let farthest = wall_us.saturating_add(micros(ORDER_TTL_MAX + SKEW));
        let order = OrderBody {
            instruction,
            issued_us: wall_us.max(newest.saturating_add(1)),
            until_us: if is_undo { end.max(latest_end.min(farthest)) } else { end },
            by: self.config.node.name.clone(),
        };
        self.write_own(now, &key, Some(order.encode()));
        self.publish(now, wall_ms);
        self.tell(Event::SaveDue);
        Ok(())
    }

    /// The end of some order has come, or the clock was set.
    pub(super) fn expire_orders(&mut self, now: Instant, wall_ms: u64) {
        self.withdraw_orders(now, wall_ms);
        self.publisher.touch_orders(now);
    }

    /// Takes those of our own out of our record that have ended, and those that another host has ordered otherwise since: they must
    /// not count again when that order ends or its issuer leaves. Not those that end too far from now: our clock may be wrong.
    pub(super) fn withdraw_orders(&mut self, now: Instant, wall_ms: u64) {
        let wall_us = wall_ms.saturating_mul(1000);
        let ended = self.registry.own_orders().filter(|(subject, order)| {
            order.until_us <= wall_us || self.registry.is_superseded(subject, order, wall_us)
        });
        let keys: Vec<String> = ended.map(|(subject, _)| subject.key()).collect();
        for key in &keys {
            self.write_own(now, key, None);
        }
        if !keys.is_empty() {
            self.tell(Event::SaveDue);
        }
    }

    pub(super) fn restore_orders(&mut self, now: Instant, wall_ms: u64, orders: Vec<SavedOrder>) {
        let name = self.config.node.name.clone();
        let orders = orders.into_iter().filter_map(|order| order.into_order(&name));
        for (subject, order) in orders.take(ORDERS_MAX + UNDOS_MAX) {
            if order.until_us > wall_ms.saturating_mul(1000) {
                self.write_own(now, &subject.key(), Some(order.encode()));
            }
        }
    }

    pub(super) fn orders_to_save(&self) -> Vec<SavedOrder> {
        self.registry.own_orders().map(|(subject, order)| SavedOrder::of(subject, order)).collect()
    }
}

/// Orders of this host that take others back; each goes on counting until what it takes back would have ended.
const UNDOS_MAX: usize = 512;
