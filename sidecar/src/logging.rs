//! The log on standard error: its format is fixed at the start, its level changes with a reload, and its length is
//! bounded ([`log_limit`]).

use std::io::IsTerminal as _;

use evenkeel_config::settings::Log;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

use crate::log_limit::{self, LeftOutLines};

/// The handle to change the level. Dropping it says how many lines were left out.
pub struct Logging {
    filter: reload::Handle<Targets, Registry>,
    /// `RUST_LOG` is set: the file's level counts for nothing.
    by_environment: bool,
    left_out: LeftOutLines,
}

impl Logging {
    /// Installs the process's logger. `RUST_LOG`, where set, says more than the file.
    ///
    /// # Errors
    /// A logger is installed already, or there is no thread for it.
    pub fn start(log: &Log) -> anyhow::Result<Logging> {
        let told = levels(&std::env::var("RUST_LOG").unwrap_or_default());
        let by_environment = matches!(told, Ok(Some(_)));
        let filter = told.as_ref().ok().cloned().flatten().unwrap_or_else(|| by_file(log));
        let (filter, handle) = reload::Layer::new(filter);
        let (limit, left_out) = log_limit::start()?;
        let registry = tracing_subscriber::registry().with(filter).with(limit);
        if log.json {
            registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()?;
        } else {
            let colour = std::io::stderr().is_terminal();
            registry
                .with(fmt::layer().with_ansi(colour).with_writer(std::io::stderr))
                .try_init()?;
        }
        if let Err(error) = told {
            tracing::warn!(%error, "RUST_LOG is left out; it takes levels, also by module: warn,evenkeel=debug");
        }
        Ok(Logging { filter: handle, by_environment, left_out })
    }

    /// Shows in `/metrics` how many lines were left out.
    ///
    /// # Errors
    /// A metric of this name is there already.
    pub fn register(&self, metrics: &prometheus::Registry) -> prometheus::Result<()> {
        metrics.register(Box::new(self.left_out.counter()))
    }

    /// Takes over a changed level.
    pub fn set(&self, log: &Log) {
        if !self.by_environment
            && let Err(error) = self.filter.reload(by_file(log))
        {
            tracing::warn!(%error, "the log level stays as it was");
        }
    }
}

/// `None`: it says nothing. Empty parts are left out: as after a comma at the end, they would mean everything.
fn levels(told: &str) -> Result<Option<Targets>, ParseError> {
    let parts: Vec<_> = told.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join(",").parse()).transpose()
}

fn by_file(log: &Log) -> Targets {
    // The configuration's reader lets nothing else pass than the names of levels.
    Targets::new().with_default(log.level.parse::<LevelFilter>().unwrap_or(LevelFilter::INFO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn the_environment_says_levels_by_module_and_a_comma_too_many_means_nothing() {
        let some = levels("info, evenkeel=debug,,hyper=off,").unwrap().unwrap();
        assert!(some.would_enable("evenkeel::worker", &Level::DEBUG));
        assert!(!some.would_enable("evenkeel::worker", &Level::TRACE));
        assert!(some.would_enable("h2", &Level::INFO));
        assert!(!some.would_enable("h2", &Level::DEBUG));
        assert!(!some.would_enable("hyper", &Level::ERROR));
        assert!(levels("evenkeel=loud").is_err());
        assert!([" ", ",", ""].iter().all(|nothing| levels(nothing).unwrap().is_none()));
    }
}
