//! The upstreams by name, as the router has them: a table whose copies share what is the same in them.
//!
//! Each change of the mesh makes a new router. To copy a table of all services for a change of one would cost what
//! there is instead of what changed, so the table is cut into [`SHELVES_MAX`] shelves by the hash of the name: a copy shares
//! them all, and writing to one copies that shelf alone.

use std::sync::Arc;

use evenkeel_balancer::key_hash;
use foldhash::HashMap;

use crate::route::Upstream;

/// The upstreams by name. Cheap to clone.
#[derive(Debug, Clone)]
pub struct UpstreamTable {
    shelves: Vec<Arc<Shelf>>,
}

type Shelf = HashMap<Arc<str>, Arc<Upstream>>;

impl Default for UpstreamTable {
    fn default() -> Self {
        UpstreamTable { shelves: vec![Arc::default(); SHELVES_MAX] }
    }
}

impl UpstreamTable {
    /// The upstream of exactly this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.shelves[shelf_of(name)].get(name)
    }

    /// Every upstream, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.shelves.iter().flat_map(|shelf| shelf.values())
    }

    /// Puts an upstream in the place of the one of its name.
    pub fn put(&mut self, upstream: Arc<Upstream>) {
        let name = Arc::clone(&upstream.name);
        if self.get(&name).is_none_or(|known| !Arc::ptr_eq(known, &upstream)) {
            Arc::make_mut(&mut self.shelves[shelf_of(&name)]).insert(name, upstream);
        }
    }

    /// Takes out the one of this name.
    pub fn remove(&mut self, name: &str) {
        if self.get(name).is_some() {
            Arc::make_mut(&mut self.shelves[shelf_of(name)]).remove(name);
        }
    }
}

fn shelf_of(name: &str) -> usize {
    (key_hash(name.as_bytes()) % SHELVES_MAX as u64) as usize
}

/// Copying so many pointers for each router is little, and a shelf of ten thousand services holds 156.
const SHELVES_MAX: usize = 64;
