//! The log on standard error: its format is fixed at the start, its level changes with a reload.

use std::io::IsTerminal as _;

use evenkeel_config::settings::Log;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// The handle to change the level.
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Logging {
    /// Installs the process's logger. `RUST_LOG`, where set, says more than the file.
    ///
    /// # Errors
    /// A logger is installed already.
    pub fn start(log: &Log) -> anyhow::Result<Logging> {
        let (filter, handle) = reload::Layer::new(filter(log));
        let registry = tracing_subscriber::registry().with(filter);
        if log.json {
            registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()?;
        } else {
            let colour = std::io::stderr().is_terminal();
            registry
                .with(fmt::layer().with_ansi(colour).with_writer(std::io::stderr))
                .try_init()?;
        }
        Ok(Logging { filter: handle })
    }

    /// Takes over a changed level.
    pub fn set(&self, log: &Log) {
        if let Err(error) = self.filter.reload(filter(log)) {
            tracing::warn!(%error, "the log level stays as it was");
        }
    }
}

fn filter(log: &Log) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&log.level))
}
