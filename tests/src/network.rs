//! A network of a test's own, in which hosts can be cut off from each other.
//!
//! The test runs once more inside a network namespace (`unshare`, in a user namespace so that it needs no root), where it may
//! change routing without touching the machine. A cut drops what one host sends to the others and they to it, packets of open connections too;
//! the host's own applications still reach it, and it them. That is what a broken switch looks like, and what stopping a process does not:
//! a host that is cut off goes on serving.

use std::net::Ipv4Addr;
use std::process::Command;

/// The network namespace that this process is in.
#[derive(Debug)]
pub struct Network(());

impl Network {
    /// The namespace of this test; `None` in the outer process, when the test has passed inside. `test` is its full name.
    ///
    /// # Panics
    /// When it did not pass, or there cannot be a namespace.
    #[must_use]
    pub fn own(test: &str) -> Option<Network> {
        if std::env::var_os(INSIDE).is_some() {
            ip(&["link", "set", "lo", "up"]);
            // Rules of ours come before the table of local addresses.
            ip(&["rule", "add", "pref", "100", "lookup", "local"]);
            ip(&["rule", "del", "pref", "0"]);
            return Some(Network(()));
        }
        let program = std::env::current_exe().expect("the test's own path");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]).arg(program);
        command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
        let output = command.output().expect("util-linux has `unshare`");
        let said = String::from_utf8_lossy(&output.stdout);
        eprintln!("{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{test} did not pass in a network namespace. Where there can be none for users: \
             sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
        );
        None
    }

    /// Cuts a host off from all hosts of its test, the first 31 addresses of its network.
    pub fn cut(&self, host: Ipv4Addr) {
        change("add", &host.to_string(), &others(host));
    }

    /// Ends that.
    pub fn heal(&self, host: Ipv4Addr) {
        change("del", &host.to_string(), &others(host));
    }

    /// Cuts two hosts off from each other and from nobody else.
    pub fn cut_between(&self, one: Ipv4Addr, other: Ipv4Addr) {
        change("add", &one.to_string(), &other.to_string());
    }

    /// Ends that.
    pub fn heal_between(&self, one: Ipv4Addr, other: Ipv4Addr) {
        change("del", &one.to_string(), &other.to_string());
    }
}

/// The hosts of a host's test, with itself.
fn others(host: Ipv4Addr) -> String {
    let [a, b, c, last] = host.octets();
    assert!(last < 32, "{host}: only hosts 1 to 31 can be cut off");
    format!("{a}.{b}.{c}.0/27")
}

fn change(what: &str, one: &str, other: &str) {
    for (from, to) in [(one, other), (other, one)] {
        ip(&["rule", what, "pref", "10", "from", from, "to", to, "blackhole"]);
    }
}

fn ip(args: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("ip").args(args).env("PATH", path).output();
    let output = output.expect("`ip` is installed by `make test`");
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Set in the process that is inside.
const INSIDE: &str = "EVENKEEL_TEST_NETWORK";

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::net::UdpSocket;
    use std::time::Duration;

    fn hears(from: Ipv4Addr, to: Ipv4Addr) -> bool {
        let sender = UdpSocket::bind((from, 0)).unwrap();
        let receiver = UdpSocket::bind((to, 0)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sent = sender.send_to(b"?", receiver.local_addr().unwrap());
        sent.and_then(|_| receiver.recv(&mut [0; 8]))
            .map_err(|error: io::Error| error.kind())
            .is_ok()
    }

    #[test]
    fn a_host_is_cut_off_from_hosts_and_not_from_applications() {
        let Some(network) =
            Network::own("network::tests::a_host_is_cut_off_from_hosts_and_not_from_applications")
        else {
            return;
        };
        let [one, two, three, app] = [1, 2, 3, 101].map(|last| Ipv4Addr::new(127, 0, 7, last));
        assert!(hears(one, two) && hears(two, one));
        network.cut(two);
        assert!(!hears(one, two) && !hears(two, one) && !hears(three, two));
        assert!(hears(one, three) && hears(two, app) && hears(app, two));
        network.heal(two);
        assert!(hears(one, two) && hears(two, one));
        network.cut_between(one, two);
        assert!(!hears(one, two) && !hears(two, one) && hears(one, three) && hears(three, two));
        network.heal_between(one, two);
        assert!(hears(one, two) && hears(two, one));
    }
}
