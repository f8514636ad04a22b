//! Our own listeners: nothing is ever sent to them for a service or for a name outside the mesh.
//!
//! A request that came back to where it was sent from would go round; one to a listener for operators would give orders that
//! come from this host. A registration that names one of them is a mistake (a port mixed up): it is refused where it comes, and where
//! that could not be known then (a listener that is newer) the error of its requests says so.

use std::net::{IpAddr, SocketAddr};

use arc_swap::ArcSwap;

/// The addresses of our own listeners, as they are now.
#[derive(Debug)]
pub struct OwnListeners {
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// This host's own address.
    node: IpAddr,
}

impl OwnListeners {
    /// None so far.
    pub fn new(node: IpAddr) -> OwnListeners {
        OwnListeners { addresses: ArcSwap::default(), node }
    }

    /// These are ours from now on.
    pub fn add(&self, addresses: &[SocketAddr]) {
        self.addresses.rcu(|known| [known.as_slice(), addresses].concat());
    }

    /// This one is no longer.
    pub fn remove(&self, address: SocketAddr) {
        let others = |known: &Vec<SocketAddr>| {
            known.iter().copied().filter(|one| *one != address).collect::<Vec<_>>()
        };
        self.addresses.rcu(|known| others(known));
    }

    /// Whether one of them is at this address.
    pub fn has(&self, address: SocketAddr) -> bool {
        is_one_of(&self.addresses.load(), self.node, address)
    }
}

fn is_one_of(own: &[SocketAddr], node: IpAddr, address: SocketAddr) -> bool {
    own.iter().any(|ours| {
        ours.port() == address.port() && {
            let (ours, ip) = (ours.ip().to_canonical(), address.ip().to_canonical());
            // Who asks for any address reaches who listens on any, or on a loopback one.
            let here = |ip: IpAddr| ip.is_loopback() || ip == node || ip.is_unspecified();
            ours == ip || ours.is_unspecified() && here(ip) || ip.is_unspecified() && here(ours)
        }
    })
}

/// What is said of a service whose registered address is a listener of ours.
pub const SERVICE_IS_OWN_LISTENER: &str = "the address that the instance was registered with is a listener of Evenkeel itself: register the application's own";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_listeners_are_told_from_others() {
        let own: Vec<SocketAddr> =
            vec!["127.0.0.1:7080".parse().unwrap(), "0.0.0.0:7110".parse().unwrap()];
        let node: IpAddr = "192.0.2.5".parse().unwrap();
        let is = |address: &str| is_one_of(&own, node, address.parse().unwrap());
        assert!(is("127.0.0.1:7080") && is("[::ffff:127.0.0.1]:7080"));
        assert!(is("127.0.0.1:7110") && is("192.0.2.5:7110"));
        assert!(is("0.0.0.0:7080") && is("0.0.0.0:7110") && is("[::]:7110"));
        assert!(!is("127.0.0.2:7080") && !is("192.0.2.6:7110") && !is("0.0.0.0:1"));
    }
}
