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
    /// What `RUST_LOG` says and nobody can read.
    misread: Option<ParseError>,
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
        Ok(Logging { filter: handle, by_environment, left_out, misread: told.err() })
    }

    /// Warns of an environment that cannot be read. Not at the start: a log begins with who writes it.
    pub fn warn_of_environment(&self) {
        if let Some(error) = &self.misread {
            tracing::warn!(%error, "RUST_LOG is left out; it takes levels, also by module: warn,evenkeel=debug");
        }
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

/// The level is for what we say. Libraries say at most what is worth an operator's look: below `info` they have a line
/// for each frame of HTTP/2, which only `RUST_LOG` brings.
fn by_file(log: &Log) -> Targets {
    // The configuration's reader lets nothing else pass than the names of levels.
    let level = log.level.parse::<LevelFilter>().unwrap_or(LevelFilter::INFO);
    Targets::new().with_default(level.min(LevelFilter::INFO)).with_target("evenkeel", level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_level_below_info_is_for_our_own_lines() {
        let log = |level: &str| {
            let text = format!("log: {{level: {level}}}");
            let env = evenkeel_config::Environment::named("host-a");
            by_file(&evenkeel_config::parse(&text, "t.yaml", &env).unwrap().settings.log)
        };
        for level in ["debug", "trace"] {
            assert!(log(level).would_enable("evenkeel::attempt", &Level::DEBUG), "{level}");
            assert!(log(level).would_enable("evenkeel_discovery::membership", &Level::DEBUG));
            assert!(!log(level).would_enable("h2::codec", &Level::DEBUG), "a line for each frame");
            assert!(log(level).would_enable("h2::codec", &Level::INFO), "{level}");
        }
        assert!(!log("info").would_enable("evenkeel::attempt", &Level::DEBUG));
        assert!(!log("warn").would_enable("h2::codec", &Level::INFO));
    }

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
