//! Doorman clients of this host: the others hear of the first before it has a lease, and loans are counted for as long as any may hold one.

use std::time::{Duration, Instant};

use evenkeel_config::settings::RateLimit;
use evenkeel_ratelimit::BASE;

use super::Owner;
use crate::quotas::{COMMANDS_MAX, Command};

/// Whether Doorman clients hold leases of this host. The others and the next life must know before the first has one: what
/// this host owns is then lent for longer than it may live.
pub(super) enum Clients {
    None,
    /// Being told. What they ask meanwhile waits.
    Announced(Instant, Vec<Command>),
    Some,
}

impl Owner {
    /// The first client asks: the others hear of it first.
    pub(super) fn announce(&mut self, now: Instant, ask: Command) {
        if let Clients::Announced(_, waiting) = &mut self.clients {
            if waiting.len() < COMMANDS_MAX {
                waiting.push(ask);
            }
            return;
        }
        self.lend_long(now);
        // Nobody else has to hear of it in a mesh of one.
        let wait = if self.census.present.len() > 1 { ANNOUNCED } else { Duration::ZERO };
        self.clients = Clients::Announced(now + wait, vec![ask]);
        self.take_census();
    }

    /// The others have heard of the clients.
    pub(super) fn serve_clients(&mut self) {
        if let Clients::Announced(_, waiting) = std::mem::replace(&mut self.clients, Clients::Some)
        {
            waiting.into_iter().for_each(|ask| self.command(ask));
        }
    }

    /// From now on something may be lent for long.
    fn lend_long(&mut self, now: Instant) {
        let until = now + (BASE + longest_lease(&self.settings)) * 2;
        self.long_loans = self.long_loans.max(Some(until));
        if !self.saved_long {
            self.save(false);
        }
    }

    /// Follows whether anybody has clients: what is lent to a root lasts as long as the clients of any host need it.
    pub(super) fn keep_long_loans(&mut self, now: Instant) {
        if !matches!(self.clients, Clients::None) || !self.census.clients.is_empty() {
            self.lend_long(now);
        } else if self.long_loans.take_if(|until| *until <= now).is_some() {
            self.save(false);
        }
    }
}

/// The longest lease that a client may hold.
pub(super) fn longest_lease(settings: &RateLimit) -> Duration {
    settings.resources.iter().map(|resource| resource.lease).max().unwrap_or_default()
}

/// So long the others take to hear that this host has clients, and some.
const ANNOUNCED: Duration = Duration::from_secs(1);
