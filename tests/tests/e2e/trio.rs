//! The mesh of most tests: host 1 asks, hosts 2 and 3 offer `payments`.

use evenkeel_tests::mesh::{App, Host, Lab, Setup};

/// Three hosts and two applications, known to each other.
pub struct Trio {
    /// Offers nothing: its applications are clients.
    pub caller: Host,
    /// Hosts 2 and 3.
    pub hosts: Vec<Host>,
    /// Applications 2 and 3, each beside the host of that number.
    pub apps: Vec<App>,
    /// Dropped last.
    pub lab: Lab,
}

impl Trio {
    /// Starts it with `caller` as host 1's setup.
    pub fn start(lab: Lab, caller: &Setup) -> Trio {
        Trio::start_with(lab, caller, |app| payments(app, ""))
    }

    /// Starts it with services of the test's own for hosts 2 and 3.
    pub fn start_with(lab: Lab, caller: &Setup, services: impl Fn(&App) -> String) -> Trio {
        let apps: Vec<App> = [2, 3].map(|number| lab.app(number)).into();
        let mut setups = vec![caller.clone()];
        setups.extend(apps.iter().map(|app| Setup { services: services(app), ..caller.clone() }));
        for setup in &mut setups[1..] {
            // Listeners have host 1's address in them.
            setup.listeners.clear();
        }
        let mut hosts = lab.mesh(&setups);
        for host in &hosts {
            host.wait_for_instances("payments", 2);
        }
        Trio { caller: hosts.remove(0), hosts, apps, lab }
    }

    /// The files of what was executed.
    pub fn ledgers(&self) -> Vec<&std::path::Path> {
        self.apps.iter().map(|app| app.ledger.as_path()).collect()
    }
}

/// `services:` of a host beside this application, checked often; `more` is added to the first entry.
///
/// The application speaks both HTTPs on its port, so it is offered twice: `payments-h2` as HTTP/2.
pub fn payments(app: &App, more: &str) -> String {
    let address = app.address;
    format!(
        "[{{name: payments, address: \"{address}\", check: {{http: /healthz, interval: 200ms, timeout: 2s, rise: 1, fall: 2}}{more}}}, \
          {{name: payments-h2, address: \"{address}\", protocol: http2}}]"
    )
}
