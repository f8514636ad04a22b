//! Every path of Consul's HTTP API, and what becomes of it here: one table that the router is made of, that `docs/consul.md`
//! prints and that the tests hold the server to.
//!
//! Clients of Consul read 404 as "there is no such thing" and go on: a lock that was never taken, a check that was never
//! registered. So what is not here is refused with 501 and a sentence that says what to do instead, also a path that is in no
//! row. 404 is left for what is asked for by its id and does not exist, as Consul has it.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, get, put};

use super::{Refusal, Shared, changes, lookups};

/// One path of Consul's.
pub(super) struct ConsulPath {
    /// The only method, or `any`.
    method: &'static str,
    /// In axum's notation: `{x}` is one part, `{*x}` all that follows.
    path: &'static str,
    answer: PathAnswer,
}

enum PathAnswer {
    /// By whom, and what of Consul's is different.
    Served(
        fn() -> MethodRouter<Arc<Shared>>,
        #[cfg_attr(
            not(test),
            expect(dead_code, reason = "for the documentation, which a test holds to it")
        )]
        &'static str,
    ),
    /// What to do instead.
    Refused(&'static str),
}

use PathAnswer::{Refused, Served};

impl ConsulPath {
    /// Of those that are answered: what the router is to be told.
    pub(super) fn route(&self) -> Option<(&'static str, MethodRouter<Arc<Shared>>)> {
        match self.answer {
            Served(route, _) => Some((self.path, route())),
            Refused(_) => None,
        }
    }

    fn is_for(&self, method: &str, path: &str) -> bool {
        let mut parts = path.split('/');
        let is_path = self.path.split('/').all(|wanted| {
            wanted.starts_with("{*")
                || parts.next().is_some_and(|part| part == wanted || wanted.starts_with('{'))
        });
        let is_whole = self.path.contains("{*") || parts.next().is_none_or(str::is_empty);
        (self.method == "any" || self.method == method) && is_path && is_whole
    }
}

/// Answers whatever no row serves.
pub(super) async fn refused(request: Request) -> Refusal {
    refusal(request.method().as_str(), request.uri().path())
}

fn refusal(method: &str, path: &str) -> Refusal {
    let row = CONSUL_PATHS.iter().find(|row| row.is_for(method, path));
    let why = row.and_then(|row| match row.answer {
        Refused(why) => Some(why),
        Served(..) => None,
    });
    match why {
        Some(why) => Refusal(StatusCode::NOT_IMPLEMENTED, format!("{path}: {why}")),
        None if path.starts_with("/v1/") => Refusal(
            StatusCode::NOT_IMPLEMENTED,
            format!(
                "{path}: evenkeel does not have this path: see docs/consul.md for those it has"
            ),
        ),
        None => Refusal(
            StatusCode::NOT_FOUND,
            format!("{path}: everything here is below /v1/, see docs/consul.md"),
        ),
    }
}

const NO_STORE: &str =
    "evenkeel is not a key-value store and will not become one: keep it with Consul, etcd or Redis";
const NO_LOCKS: &str = "evenkeel has no sessions, locks, events or stored queries: keep them with Consul, etcd or Redis";
const NO_CATALOG_WRITES: &str =
    "hosts say themselves what they offer: register at the host's own agent/service/register";
const NO_ACL: &str = "there are no tokens: whoever may connect to this address may ask; a token that is sent is ignored";
const NO_CONNECT: &str = "Connect is not built: a request to this host's proxy (port 7080) is balanced and carried without it";
const NO_SERVERS: &str =
    "there are no Consul servers to operate: see `evenkeel members` and the admin address";
const CONFIGURED: &str =
    "this is set in evenkeel's configuration file: change it there, it is reloaded";
const ONE_MESH: &str =
    "a mesh has no namespaces, partitions or peers: name services `name.namespace`";

/// All of them, in the order in which the documentation prints them.
pub(super) const CONSUL_PATHS: &[ConsulPath] = &[
    served("GET", "/v1/agent/self", || get(lookups::agent_self), ""),
    served("GET", "/v1/agent/members", || get(lookups::agent_members), ""),
    served("GET", "/v1/agent/services", || get(lookups::agent_services), "`filter`"),
    served(
        "GET",
        "/v1/agent/service/{id}",
        || get(lookups::agent_service),
        "404 for an unknown id; no `hash`",
    ),
    served("GET", "/v1/agent/checks", || get(lookups::agent_checks), "`filter`"),
    served("PUT", "/v1/agent/service/register", || put(changes::register), "see Registrations"),
    served(
        "PUT",
        "/v1/agent/service/deregister/{*id}",
        || put(changes::deregister),
        "404 for an unknown id",
    ),
    served(
        "PUT",
        "/v1/agent/service/maintenance/{*id}",
        || put(changes::service_maintenance),
        "`enable`, `reason`; outlives a restart",
    ),
    served(
        "PUT",
        "/v1/agent/maintenance",
        || put(changes::host_maintenance),
        "`enable`, `reason`; outlives a restart",
    ),
    served(
        "PUT",
        "/v1/agent/check/register",
        || put(changes::register_check),
        "for an instance of this host (`ServiceID`), else for the host itself: see Checks of a host",
    ),
    served(
        "PUT",
        "/v1/agent/check/deregister/{*id}",
        || put(changes::deregister_check),
        "404 for an unknown id",
    ),
    served(
        "PUT",
        "/v1/agent/check/pass/{*id}",
        || put(changes::pass_check),
        "checks with a TTL; `note`; 404 for an unknown id",
    ),
    served("PUT", "/v1/agent/check/warn/{*id}", || put(changes::warn_check), "as `pass`"),
    served("PUT", "/v1/agent/check/fail/{*id}", || put(changes::fail_check), "as `pass`"),
    served(
        "PUT",
        "/v1/agent/check/update/{*id}",
        || put(changes::update_check),
        "as `pass`, with `Status` and `Output`",
    ),
    served(
        "GET",
        "/v1/catalog/datacenters",
        || get(lookups::datacenters),
        "the mesh's name, alone",
    ),
    served(
        "GET",
        "/v1/catalog/nodes",
        || get(lookups::catalog_nodes),
        "hosts that are up; blocking, `filter`, `node-meta`",
    ),
    served("GET", "/v1/catalog/node/{name}", || get(lookups::catalog_node), "blocking, `filter`"),
    served(
        "GET",
        "/v1/catalog/node-services/{name}",
        || get(lookups::catalog_node_services),
        "blocking, `filter`",
    ),
    served(
        "GET",
        "/v1/catalog/services",
        || get(lookups::catalog_services),
        "blocking, `filter`, `node-meta`",
    ),
    served(
        "GET",
        "/v1/catalog/service/{name}",
        || get(lookups::catalog_service),
        "blocking, `tag`, `filter`, `node-meta`",
    ),
    served(
        "GET",
        "/v1/health/service/{name}",
        || get(lookups::health_service),
        "blocking, `passing`, `tag`, `filter`, `node-meta`",
    ),
    served(
        "GET",
        "/v1/health/checks/{name}",
        || get(lookups::health_checks),
        "blocking, `filter`, `node-meta`",
    ),
    served("GET", "/v1/health/node/{name}", || get(lookups::health_node), "blocking, `filter`"),
    served(
        "GET",
        "/v1/health/state/{state}",
        || get(lookups::health_state),
        "blocking, at most once a second; `filter`, `node-meta`",
    ),
    served("GET", "/v1/status/leader", || get(lookups::leader), "this host: there is no leader"),
    served("GET", "/v1/status/peers", || get(lookups::peers), "the hosts that are up"),
    without("any", "/v1/kv", NO_STORE),
    without("any", "/v1/kv/{*key}", NO_STORE),
    without("any", "/v1/txn", NO_STORE),
    without("any", "/v1/session/{*rest}", NO_LOCKS),
    without("any", "/v1/event/{*rest}", NO_LOCKS),
    without("any", "/v1/query", NO_LOCKS),
    without("any", "/v1/query/{*rest}", NO_LOCKS),
    without("any", "/v1/catalog/register", NO_CATALOG_WRITES),
    without("any", "/v1/catalog/deregister", NO_CATALOG_WRITES),
    without("any", "/v1/catalog/connect/{name}", NO_CONNECT),
    without("any", "/v1/catalog/gateway-services/{name}", NO_CONNECT),
    without("any", "/v1/health/connect/{name}", NO_CONNECT),
    without("any", "/v1/health/ingress/{name}", NO_CONNECT),
    without("any", "/v1/connect/{*rest}", NO_CONNECT),
    without("any", "/v1/agent/connect/{*rest}", NO_CONNECT),
    without("any", "/v1/discovery-chain/{*rest}", NO_CONNECT),
    without("any", "/v1/config", CONFIGURED),
    without("any", "/v1/config/{*rest}", CONFIGURED),
    without(
        "any",
        "/v1/agent/health/service/{*rest}",
        "ask /v1/health/service/NAME or /v1/agent/checks",
    ),
    without("any", "/v1/agent/metrics", "metrics are at the admin address, /metrics on port 7119"),
    without(
        "any",
        "/v1/agent/metrics/stream",
        "metrics are at the admin address, /metrics on port 7119",
    ),
    without(
        "any",
        "/v1/agent/monitor",
        "logs go to standard error, and `evenkeel events` shows what happened",
    ),
    without("any", "/v1/agent/host", "ask the host's own monitoring"),
    without("any", "/v1/agent/version", "/v1/agent/self and `evenkeel --version` have the version"),
    without(
        "any",
        "/v1/agent/reload",
        "send the process SIGHUP, or change its file: it is reloaded",
    ),
    without("any", "/v1/agent/leave", "send the process SIGTERM: it drains and says goodbye"),
    without(
        "any",
        "/v1/agent/join/{address}",
        "name the host in mesh.join: it is reloaded or read at the start",
    ),
    without(
        "any",
        "/v1/agent/force-leave/{node}",
        "a host that is gone is found by itself and leaves look-ups at once",
    ),
    without("any", "/v1/agent/token/{name}", NO_ACL),
    without("any", "/v1/acl/{*rest}", NO_ACL),
    without("any", "/v1/operator/{*rest}", NO_SERVERS),
    without("any", "/v1/snapshot", NO_SERVERS),
    without("any", "/v1/internal/{*rest}", NO_SERVERS),
    without(
        "any",
        "/v1/coordinate/{*rest}",
        "there are no coordinates: requests through this host's proxy go to the fastest instance",
    ),
    without("any", "/v1/namespace", ONE_MESH),
    without("any", "/v1/namespace/{*rest}", ONE_MESH),
    without("any", "/v1/namespaces", ONE_MESH),
    without("any", "/v1/partition", ONE_MESH),
    without("any", "/v1/partition/{*rest}", ONE_MESH),
    without("any", "/v1/partitions", ONE_MESH),
    without("any", "/v1/peering", ONE_MESH),
    without("any", "/v1/peering/{*rest}", ONE_MESH),
    without("any", "/v1/peerings", ONE_MESH),
    without("any", "/v1/exported-services", ONE_MESH),
    without("any", "/v1/imported-services", ONE_MESH),
];

const fn served(
    method: &'static str,
    path: &'static str,
    route: fn() -> MethodRouter<Arc<Shared>>,
    notes: &'static str,
) -> ConsulPath {
    ConsulPath { method, path, answer: Served(route, notes) }
}

const fn without(method: &'static str, path: &'static str, instead: &'static str) -> ConsulPath {
    ConsulPath { method, path, answer: Refused(instead) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows as the documentation prints them.
    fn printed() -> String {
        let row = |row: &ConsulPath| {
            let (state, notes) = match row.answer {
                Served(_, notes) => ("yes", notes),
                Refused(instead) => ("501", instead),
            };
            format!("| {} | `{}` | {state} | {notes} |\n", row.method, row.path.replace("{*", "{"))
        };
        CONSUL_PATHS.iter().map(row).collect()
    }

    #[test]
    fn the_documentation_prints_this_table() {
        let page = include_str!("../../../docs/consul.md");
        assert!(page.contains(&printed()), "in docs/consul.md should stand:\n{}", printed());
    }

    #[test]
    fn what_is_not_here_is_never_a_404() {
        for (method, path, says) in [
            ("GET", "/v1/kv/a/b", "key-value store"),
            ("PUT", "/v1/session/create", "no sessions"),
            ("PUT", "/v1/catalog/register", "agent/service/register"),
            ("GET", "/v1/agent/health/service/name/web", "ask /v1/health/service/NAME"),
            ("GET", "/v1/query", "stored queries"),
            ("GET", "/v1/operator/raft/configuration", "no Consul servers"),
            ("GET", "/v1/from/the/future", "does not have this path"),
            ("GET", "/v1/health/service", "does not have this path"),
            ("GET", "/v1/agent/service/a/b", "does not have this path"),
        ] {
            let Refusal(status, text) = refusal(method, path);
            assert_eq!(status, StatusCode::NOT_IMPLEMENTED, "{path}");
            assert!(text.starts_with(path) && text.contains(says), "{text}");
        }
        assert_eq!(refusal("GET", "/favicon.ico").0, StatusCode::NOT_FOUND);
    }
}
