//! Leases for Doorman clients: `doorman.Capacity` over gRPC, with the health and reflection services beside it.
//!
//! Any host serves any client: what it grants it has from its own part of the resource and from the resource's root, and the owner of the
//! leases ([`crate::quotas`]) knows which. So [`Capacity::discovery`] always says "me", and no answer ever sends a client elsewhere.
//!
//! Invariants: a request is checked whole before anything of it is granted, so one bad resource leaves the others as they were. A client
//! stops before its lease is counted as free: the end of a lease is counted from before the owner was asked, and rounded down to a second.
//! Every call has a deadline, every connection a limit ([`listener`]).
//!
//! `request` turns what is on the wire into what is asked, `answer` turns grants into what is on the wire. Capacities on the wire are for each
//! second; a resource whose `per` is another time is converted in these two. Not served: parameters of algorithms, which nobody reads.
//!
//! Source: Doorman's protocol (proto/doorman.proto), semantics as its server had them where they were sound.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use evenkeel_config::settings::Settings;
use evenkeel_ratelimit::{Grant, Request as Ask};
use http::uri::Authority;
use tonic::{Request, Response, Status};
use tracing::error;

use crate::places::{PlaceCounters, Places};
use crate::quotas::{QuotasHandle, Stopped};
use calls::Calls;
use proto::capacity_server::{Capacity, CapacityServer};

mod answer;
mod calls;
mod listener;
mod request;

/// The protocol's messages, with nothing required and ids as bytes: see `build.rs`.
mod proto {
    // ResourceTemplate and ResourceRepository belong to the protocol's files and travel in no call.
    #![allow(missing_docs, dead_code, clippy::all)]
    tonic::include_proto!("doorman");

    /// The protocol as it is written, for reflection.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/doorman.bin"));
}

/// The service and where it listens.
pub struct Doorman {
    listener: TcpListener,
    service: Service,
    calls: Calls,
    places: Arc<Places>,
}

impl Doorman {
    /// Nothing is served yet.
    ///
    /// # Errors
    /// The listener has no address, or a metric of this name is there already.
    pub fn new(
        listener: TcpListener,
        quotas: QuotasHandle,
        settings: Arc<ArcSwap<Settings>>,
        metrics: &prometheus::Registry,
        counters: &PlaceCounters,
    ) -> anyhow::Result<Doorman> {
        let own = listener.local_addr()?;
        let calls = Calls::registered(metrics)?;
        let places = listener::places(counters);
        Ok(Doorman { listener, service: Service { quotas, settings, own }, calls, places })
    }

    /// Serves until it is dropped. Runs on a `LocalSet`.
    pub async fn serve(self) {
        if let Err(cause) = self.run().await {
            error!(%cause, "ratelimit.listen: Doorman clients are not answered until a restart");
        }
    }

    async fn run(self) -> anyhow::Result<()> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<CapacityServer<Service>>().await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let capacity = CapacityServer::new(self.service);
        let mut routes = tonic::service::Routes::builder();
        routes
            .add_service(capacity.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        listener::serve(self.listener, routes.routes(), self.calls, self.places).await
    }
}

struct Service {
    quotas: QuotasHandle,
    settings: Arc<ArcSwap<Settings>>,
    /// Where it listens.
    own: SocketAddr,
}

#[tonic::async_trait]
impl Capacity for Service {
    async fn discovery(
        &self,
        request: Request<proto::DiscoveryRequest>,
    ) -> Result<Response<proto::DiscoveryResponse>, Status> {
        // The address that reached us reaches us again; ours may be 0.0.0.0.
        let asked = request.extensions().get::<Authority>();
        let address = asked
            .and_then(|to| Some(format!("{}:{}", to.host(), to.port()?)))
            .unwrap_or_else(|| self.own.to_string());
        let mastership = proto::Mastership { master_address: Some(address.into_bytes()) };
        Ok(Response::new(proto::DiscoveryResponse {
            mastership: Some(mastership),
            is_master: Some(true),
        }))
    }

    async fn get_capacity(
        &self,
        request: Request<proto::GetCapacityRequest>,
    ) -> Result<Response<proto::GetCapacityResponse>, Status> {
        let rules = self.settings.load_full();
        let (client, asked) = request::client(&rules.ratelimit, request.into_inner())?;
        let now = SystemTime::now();
        let asks = asked.iter().map(|asked| (Arc::clone(&asked.id), asked.ask)).collect();
        let grants = self.ask(client, asks).await?;
        let response = asked
            .iter()
            .zip(grants)
            .map(|(asked, grant)| answer::resource(asked, &grant, now))
            .collect();
        Ok(Response::new(proto::GetCapacityResponse { response, mastership: None }))
    }

    async fn get_server_capacity(
        &self,
        request: Request<proto::GetServerCapacityRequest>,
    ) -> Result<Response<proto::GetServerCapacityResponse>, Status> {
        let rules = self.settings.load_full();
        let (server, asked) = request::server(&rules.ratelimit, request.into_inner())?;
        let now = SystemTime::now();
        let mut grants: Vec<Vec<Grant>> = vec![Vec::new(); asked.len()];
        // Each of its bands is a client of its own.
        let mut bands: BTreeMap<i64, Vec<(usize, Ask)>> = BTreeMap::new();
        for (index, resource) in asked.iter().enumerate() {
            for band in &resource.bands {
                bands.entry(band.claim.priority).or_default().push((index, *band));
            }
        }
        for (priority, band) in bands {
            let asks = band.iter().map(|(index, ask)| (Arc::clone(&asked[*index].id), *ask));
            let granted = self.ask(request::band(&server, priority), asks.collect()).await?;
            for ((index, _), grant) in band.iter().zip(granted) {
                grants[*index].push(grant);
            }
        }
        let response = asked
            .iter()
            .zip(grants)
            .map(|(asked, grants)| answer::server_resource(asked, &grants, now))
            .collect();
        Ok(Response::new(proto::GetServerCapacityResponse { response, mastership: None }))
    }

    async fn release_capacity(
        &self,
        request: Request<proto::ReleaseCapacityRequest>,
    ) -> Result<Response<proto::ReleaseCapacityResponse>, Status> {
        let (client, resources) = request::release(request.into_inner())?;
        self.quotas.release(client, resources).await.map_err(|Stopped| answer::stopped())?;
        Ok(Response::new(proto::ReleaseCapacityResponse { mastership: None }))
    }
}

impl Service {
    /// Asks the owner of the leases; one refusal is the whole call's.
    async fn ask(
        &self,
        client: Arc<[u8]>,
        asks: Vec<(Arc<[u8]>, Ask)>,
    ) -> Result<Vec<Grant>, Status> {
        let ids: Vec<_> = asks.iter().map(|(id, _)| Arc::clone(id)).collect();
        let grants = self.quotas.ask(client, asks).await.map_err(|Stopped| answer::stopped())?;
        ids.iter()
            .zip(grants)
            .map(|(id, grant)| grant.map_err(|why| answer::refused(id, why)))
            .collect()
    }
}

/// The largest request: more than [`request::RESOURCES_MAX`] resources with the longest ids take.
const MESSAGE_BYTES_MAX: usize = 512 * 1024;

#[cfg(test)]
mod tests;
