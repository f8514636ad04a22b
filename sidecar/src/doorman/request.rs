//! What a Doorman client asks, checked: every required field is there, every id fits, every number is a quantity, every resource has rules.
//!
//! What is wrong is named by field and resource, so that whoever wrote the client finds it. Quantities come for each second and leave in the unit of
//! the resource's capacity.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use evenkeel_config::settings::{RateLimit, Resource};
use evenkeel_ratelimit::{Claim, Micros, RESOURCE_ID_MAX, Request as Ask, SUBCLIENTS_MAX};
use tonic::Status;

use super::proto;

/// One resource that a client asks for.
pub struct Asked {
    /// Its id.
    pub id: Arc<[u8]>,
    /// What is asked, in the unit of its capacity.
    pub ask: Ask,
    /// Of that unit, what is one for each second.
    pub unit: Unit,
}

/// One resource that a server asks for, on behalf of its own clients.
pub struct AskedByServer {
    /// Its id.
    pub id: Arc<[u8]>,
    /// What is asked by each band of priority; at least one.
    pub bands: Vec<Ask>,
    /// Its rules, which are told to the server.
    pub rules: Resource,
}

/// How many units of a resource are one for each second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unit(f64);

impl Unit {
    /// Of a resource; what is held and not spent has no time in it.
    pub fn of(rules: &Resource) -> Unit {
        Unit(rules.per.unwrap_or(Duration::from_secs(1)).as_secs_f64())
    }

    /// What a client reads.
    pub fn per_second(self, quantity: Micros) -> f64 {
        quantity.as_f64() / self.0
    }

    /// What a client wrote, if it is a quantity.
    fn quantity(self, per_second: f64) -> Result<Micros, evenkeel_ratelimit::BadQuantity> {
        // First by itself, so that nothing absurd becomes infinite.
        Micros::from_f64(per_second)?;
        Micros::from_f64(per_second * self.0)
    }
}

/// The client's id and what it asks for.
pub fn client(
    rules: &RateLimit,
    request: proto::GetCapacityRequest,
) -> Result<(Arc<[u8]>, Vec<Asked>), Status> {
    let client = id("client_id", request.client_id)?;
    within("resource", request.resource.len(), RESOURCES_MAX)?;
    let mut seen = BTreeSet::new();
    let mut asked = Vec::with_capacity(request.resource.len());
    for resource in request.resource {
        let (id, rules) = known(rules, resource.resource_id, &mut seen)?;
        let unit = Unit::of(rules);
        let claim = Claim {
            wants: wants(&id, resource.wants, unit)?,
            subclients: 1,
            priority: of(&id, "priority", resource.priority)?,
        };
        let ask = Ask { claim, has: has(&id, resource.has, unit)? };
        asked.push(Asked { id, ask, unit });
    }
    Ok((client, asked))
}

/// The server's id and what it asks for.
pub fn server(
    rules: &RateLimit,
    request: proto::GetServerCapacityRequest,
) -> Result<(Arc<[u8]>, Vec<AskedByServer>), Status> {
    let server = id("server_id", request.server_id)?;
    if server.len() > RESOURCE_ID_MAX - BAND_BYTES {
        let most = RESOURCE_ID_MAX - BAND_BYTES;
        return Err(Status::invalid_argument(format!("server_id is longer than {most} bytes")));
    }
    within("resource", request.resource.len(), RESOURCES_MAX)?;
    let mut seen = BTreeSet::new();
    let mut asked = Vec::with_capacity(request.resource.len());
    for resource in request.resource {
        let (id, rules) = known(rules, resource.resource_id, &mut seen)?;
        within("wants", resource.wants.len(), BANDS_MAX)?;
        let unit = Unit::of(rules);
        // How what it holds is divided among its bands is not said; that each holds all of it frees nothing that is in use.
        let has = has(&id, resource.has, unit)?;
        let mut bands: Vec<Ask> = Vec::with_capacity(resource.wants.len());
        for band in resource.wants {
            let claim = claim(&id, &band, unit)?;
            if bands.iter().any(|earlier| earlier.claim.priority == claim.priority) {
                return Err(Status::invalid_argument(format!(
                    "resource `{}`: priority {} stands there twice",
                    Shown(&id),
                    claim.priority
                )));
            }
            bands.push(Ask { claim, has });
        }
        if bands.is_empty() {
            let claim = Claim { wants: Micros::ZERO, subclients: 1, priority: 0 };
            bands.push(Ask { claim, has });
        }
        asked.push(AskedByServer { id, bands, rules: rules.clone() });
    }
    Ok((server, asked))
}

/// A client, and the resources that it gives back.
pub type Released = (Arc<[u8]>, Vec<Arc<[u8]>>);

/// The client's id and what it gives back.
pub fn release(request: proto::ReleaseCapacityRequest) -> Result<Released, Status> {
    let client = id("client_id", request.client_id)?;
    within("resource_id", request.resource_id.len(), RESOURCES_MAX)?;
    let resources =
        request.resource_id.into_iter().map(|resource| id("resource_id", Some(resource)));
    Ok((client, resources.collect::<Result<_, _>>()?))
}

/// The client that a server's band is.
pub fn band(server: &[u8], priority: i64) -> Arc<[u8]> {
    [server, &[0], priority.to_string().as_bytes()].concat().into()
}

/// An id as it may stand in an error, which is text of bounded length.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(self.0);
        let mut shown = text.chars();
        for c in shown.by_ref().take(SHOWN_MAX) {
            write!(f, "{}", c.escape_debug())?;
        }
        if shown.next().is_some() { f.write_str("…") } else { Ok(()) }
    }
}

/// The id of a resource that was not named before, and its rules.
fn known<'r>(
    rules: &'r RateLimit,
    resource: Option<Vec<u8>>,
    seen: &mut BTreeSet<Arc<[u8]>>,
) -> Result<(Arc<[u8]>, &'r Resource), Status> {
    let id = id("resource_id", resource)?;
    if !seen.insert(Arc::clone(&id)) {
        let why = format!("resource `{}` stands there twice", Shown(&id));
        return Err(Status::invalid_argument(why));
    }
    match rules.find(&id) {
        Some(found) => Ok((id, found)),
        None => Err(super::answer::unknown(&id)),
    }
}

fn claim(id: &[u8], band: &proto::PriorityBandAggregate, unit: Unit) -> Result<Claim, Status> {
    let clients = of(id, "num_clients", band.num_clients)?;
    if clients < 1 {
        let why = format!("resource `{}`: num_clients is {clients}, at least 1", Shown(id));
        return Err(Status::invalid_argument(why));
    }
    Ok(Claim {
        wants: wants(id, band.wants, unit)?,
        // More than that weigh no more.
        subclients: u32::try_from(clients).unwrap_or(SUBCLIENTS_MAX).min(SUBCLIENTS_MAX),
        priority: of(id, "priority", band.priority)?,
    })
}

fn wants(id: &[u8], wants: Option<f64>, unit: Unit) -> Result<Micros, Status> {
    let wants = of(id, "wants", wants)?;
    unit.quantity(wants).map_err(|why| {
        Status::invalid_argument(format!("resource `{}`: wants {wants}: {why}", Shown(id)))
    })
}

/// What the client says it holds. When its lease ends it knows by its own clock, which says nothing here.
fn has(id: &[u8], lease: Option<proto::Lease>, unit: Unit) -> Result<Micros, Status> {
    let Some(lease) = lease else { return Ok(Micros::ZERO) };
    of(id, "has.expiry_time", lease.expiry_time)?;
    of(id, "has.refresh_interval", lease.refresh_interval)?;
    let capacity = of(id, "has.capacity", lease.capacity)?;
    unit.quantity(capacity).map_err(|why| {
        Status::invalid_argument(format!("resource `{}`: has {capacity}: {why}", Shown(id)))
    })
}

fn id(field: &str, id: Option<Vec<u8>>) -> Result<Arc<[u8]>, Status> {
    let why = match id {
        None => "is missing".to_owned(),
        Some(id) if id.is_empty() => "is empty".to_owned(),
        Some(id) if id.len() > RESOURCE_ID_MAX => {
            format!("is longer than {RESOURCE_ID_MAX} bytes: `{}`", Shown(&id))
        }
        Some(id) => return Ok(id.into()),
    };
    Err(Status::invalid_argument(format!("{field} {why}")))
}

fn of<T>(id: &[u8], field: &str, value: Option<T>) -> Result<T, Status> {
    value.ok_or_else(|| {
        Status::invalid_argument(format!("resource `{}`: {field} is missing", Shown(id)))
    })
}

fn within(field: &str, count: usize, most: usize) -> Result<(), Status> {
    if count <= most {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("{field}: {count} items, at most {most} in one request")))
}

/// Most resources in one request: each is looked up in all rules.
pub const RESOURCES_MAX: usize = 1_000;
/// Most bands of priority of one resource.
pub const BANDS_MAX: usize = 64;
/// A NUL byte and a priority in decimal digits.
const BAND_BYTES: usize = 1 + "-9223372036854775808".len();
/// Characters of an id in an error.
const SHOWN_MAX: usize = 64;
