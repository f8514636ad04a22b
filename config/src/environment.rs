//! What the configuration takes from the operating system: the values behind defaults that no file can know.
//!
//! They come in as an argument, so that the same file and the same `Environment` always make the same
//! [`Settings`]. [`Environment::from_os`] is the only place that asks the system.
//! It changes nothing and sends nothing: the default route's address is read off an unconnected UDP socket.

use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;

use crate::settings::{DataDir, Settings};

/// What the operating system says about this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `node.name` when the file says none.
    pub hostname: String,
    /// `node.data_dir` when the file says none; `None`: nowhere to keep anything.
    pub state_directory: Option<PathBuf>,
    /// The source address of the default route: `node.address` when the file says none.
    pub default_route: Option<IpAddr>,
}

impl Environment {
    /// A host of this name without a default route that keeps its state nowhere: for tests.
    #[must_use]
    pub fn named(hostname: &str) -> Environment {
        Environment { hostname: hostname.to_owned(), state_directory: None, default_route: None }
    }

    /// What this host's system says.
    #[must_use]
    pub fn from_os() -> Environment {
        Environment {
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            state_directory: state_directory(|name| std::env::var_os(name).map(PathBuf::from)),
            default_route: default_route(),
        }
    }
}

impl DataDir {
    /// The directory this comes to on this host; `None`: nothing is kept.
    #[must_use]
    pub fn resolve(&self, env: &Environment) -> Option<PathBuf> {
        match self {
            DataDir::Default => env.state_directory.clone(),
            DataDir::Path(path) => Some(path.clone()),
            DataDir::Nothing => None,
        }
    }
}

impl Settings {
    /// What other hosts dial: `node.address`; while the data listener is on a loopback address, that one
    /// (nobody could dial another); else the default route's source address, else 127.0.0.1.
    #[must_use]
    pub fn node_address(&self, env: &Environment) -> IpAddr {
        node_address(self.node.address, self.mesh.data.address.ip(), env)
    }
}

pub(crate) fn node_address(written: Option<IpAddr>, data: IpAddr, env: &Environment) -> IpAddr {
    let fallback = IpAddr::from([127, 0, 0, 1]);
    let derived = if data.is_loopback() { Some(data) } else { env.default_route };
    written.or(derived).unwrap_or(fallback)
}

/// `$STATE_DIRECTORY` is set by systemd and is ours alone; it may name several, separated by colons.
fn state_directory(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name: &str| var(name).filter(|path| path.is_absolute());
    if let Some(given) = var("STATE_DIRECTORY") {
        let first = given.to_string_lossy().split(':').next().unwrap_or_default().to_owned();
        if !first.is_empty() {
            return Some(PathBuf::from(first));
        }
    }
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("evenkeel"))
}

/// Connecting a UDP socket sends nothing: it only makes the kernel choose a route. The address is one that
/// is reserved for documentation (RFC 5737), so it is never on a local network.
fn default_route() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_goes_where_the_system_says() {
        let table = [
            (
                &[("STATE_DIRECTORY", "/var/lib/evenkeel:/var/lib/b"), ("HOME", "/root")][..],
                Some("/var/lib/evenkeel"),
            ),
            (&[("STATE_DIRECTORY", ""), ("HOME", "/root")], Some("/root/.local/state/evenkeel")),
            (&[("XDG_STATE_HOME", "/x"), ("HOME", "/root")], Some("/x/evenkeel")),
            (
                &[("XDG_STATE_HOME", "relative"), ("HOME", "/root")],
                Some("/root/.local/state/evenkeel"),
            ),
            (&[], None),
        ];
        for (vars, expected) in table {
            let found = state_directory(|name| {
                vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
            });
            assert_eq!(found, expected.map(PathBuf::from), "{vars:?}");
        }
    }

    #[test]
    fn others_dial_an_address_that_listens() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let env = Environment { default_route: Some(ip("10.0.0.5")), ..Environment::named("a") };
        assert_eq!(node_address(None, ip("0.0.0.0"), &env), ip("10.0.0.5"));
        assert_eq!(node_address(None, ip("127.0.0.3"), &env), ip("127.0.0.3"));
        assert_eq!(node_address(Some(ip("10.9.9.9")), ip("127.0.0.3"), &env), ip("10.9.9.9"));
        assert_eq!(node_address(None, ip("0.0.0.0"), &Environment::named("a")), ip("127.0.0.1"));
    }

    #[test]
    fn the_system_knows_a_hostname() {
        assert!(!Environment::from_os().hostname.is_empty());
    }
}
