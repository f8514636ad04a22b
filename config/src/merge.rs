//! What holds for a request: all that is said of a service, laid on each other.
//!
//! Built-in < host < published < published route < upstream < upstream route < override, field by field. What a service
//! publishes is more to the point than a host's defaults for everything, and what a client's own file says of this very
//! service more than what the service says to all; an operator who overrides at 3 am is heard by all.
//!
//! The routes that a service publishes and those of the client's own file are two lists, and of each the first match
//! counts. Together they are one list again: the pairs of a published and an own route (or none), in the order of both, each for
//! the requests that both match; the first of these that matches is the pair of first matches. So a request takes one
//! look through one list, as if all routes stood in one file. Pairs that no request can match are left out.
//!
//! Computed when something is said anew, never for a request.

use std::collections::BTreeSet;

use crate::layer::PolicyLayer;
use crate::policy::{Origin, Origins, Policy};
use crate::published::Published;
use crate::settings::{Match, Settings};

/// What holds for a service's requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// For requests that no route matches.
    pub default: Merged,
    /// First match wins.
    pub routes: Vec<(Match, Merged)>,
    /// Published routes that do not count, because all routes together would be more than [`ROUTES_MAX`].
    pub left_out: usize,
}

/// A policy, and who said what of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// Every field.
    pub policy: Policy,
    /// Who set each field.
    pub origins: Origins,
    /// Fields that would be beyond `mesh.bounds` and are the bound.
    pub bounded: BTreeSet<&'static str>,
}

/// Most routes of a service, published and own ones together.
pub const ROUTES_MAX: usize = 2_000;

impl Settings {
    /// What holds for a service: what is `published` of it and what an operator's `order` says, together with this file.
    #[must_use]
    pub fn effective(
        &self,
        service: &str,
        published: Option<&Published>,
        order: Option<&Published>,
    ) -> Effective {
        let upstream = self.upstreams.iter().find(|upstream| upstream.name == service);
        let built_in = self.mesh.bounds.tighter_than_built_in();
        let merged = |published_route: Option<&PolicyLayer>, own_route: Option<&PolicyLayer>| {
            let (mut policy, mut origins) = (self.policy.clone(), self.origins.clone());
            for (layer, origin) in [
                (published.map(|published| &published.policy), Origin::Published),
                (published_route, Origin::PublishedRoute),
                (upstream.map(|upstream| &upstream.said), Origin::Upstream),
                (own_route, Origin::Route),
                (order.map(|order| &order.policy), Origin::Override),
            ] {
                if let Some(layer) = layer {
                    (policy, origins) = layer.over(&policy, &origins, origin);
                }
            }
            // Last, because a field counts once, and as whoever said it last.
            let mut bounded = self.mesh.bounds.hold(&mut policy, &origins);
            // These were brought within their bounds when the file was read.
            let unsaid = |path: &&&str| origins.get(**path) == Some(&Origin::BuiltIn);
            bounded.extend(built_in.iter().filter(unsaid));
            Merged { policy, origins, bounded }
        };
        let theirs = published.map_or(&[][..], |published| &published.routes);
        let ours = upstream.map_or(&[][..], |upstream| &upstream.routes);
        let mut routes: Vec<(Match, Merged)> = Vec::new();
        let mut left_out = 0;
        for (at, (their_match, their_layer)) in theirs.iter().enumerate() {
            let pairs = ours.iter().filter_map(|(our_match, our_layer)| {
                Some((both(their_match, our_match)?, Some(our_layer)))
            });
            let row: Vec<_> = pairs.chain([(their_match.clone(), None)]).collect();
            if routes.len() + row.len() + ours.len() > ROUTES_MAX {
                left_out = theirs.len() - at;
                break;
            }
            routes.extend(
                row.into_iter().map(|(matches, ours)| (matches, merged(Some(their_layer), ours))),
            );
        }
        let own = ours.iter().map(|(matches, layer)| (matches.clone(), merged(None, Some(layer))));
        routes.extend(own);
        Effective { default: merged(None, None), routes, left_out }
    }
}

/// What matches a request that both match; `None`: there is no such request.
fn both(a: &Match, b: &Match) -> Option<Match> {
    let method = match (&a.method, &b.method) {
        (Some(a), Some(b)) if a != b => return None,
        (method, other) => method.clone().or_else(|| other.clone()),
    };
    let path = match (&a.path, &b.path) {
        (Some(a), Some(b)) => Some(both_paths(a, b)?.to_owned()),
        (path, other) => path.clone().or_else(|| other.clone()),
    };
    Some(Match { path, method })
}

fn both_paths<'p>(a: &'p str, b: &'p str) -> Option<&'p str> {
    let within = |prefix: &str, path: &str| path.trim_end_matches('*').starts_with(prefix);
    match (a.strip_suffix('*'), b.strip_suffix('*')) {
        (None, None) => (a == b).then_some(a),
        (Some(prefix), None) => within(prefix, b).then_some(b),
        (None, Some(prefix)) => within(prefix, a).then_some(a),
        (Some(prefix), Some(other)) if within(prefix, other) => Some(b),
        (Some(prefix), Some(other)) => within(other, prefix).then_some(a),
    }
}

#[cfg(test)]
mod tests;
