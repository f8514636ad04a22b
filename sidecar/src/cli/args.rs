//! What can be typed, as it was typed. What it means is decided in the file of each mode.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// A service mesh without a control plane: one process a host, nothing central.
#[derive(Debug, Parser)]
#[command(
    name = "evenkeel",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "What asks a running host asks --admin ADDR, else $EVENKEEL_ADMIN, else 127.0.0.1:7119.\n\
                  Exit status: 0 done, 1 failed, 64 wrong usage, 78 wrong configuration."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The modes of the one binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run this host's part of the mesh, in the foreground.
    ///
    /// Without -c it runs with an empty configuration: a mesh of this one host, on loopback only, with every
    /// default. SIGHUP reloads the file, SIGTERM drains and leaves.
    Run(RunArgs),
    /// Show this host: its name and address, whether it is ready or why not, where it listens, whom it sees.
    Status(AskArgs),
    /// Show what Evenkeel does for the tail of the latency, against three ordinary balancers, on this machine.
    Demo(crate::demo::DemoArgs),
    /// One of the demo's applications; started by `evenkeel demo` only.
    #[command(hide = true)]
    DemoApplication(crate::demo::ApplicationArgs),
    /// Check a configuration: everything that is wrong with it at once, or that all is well.
    Check(CheckArgs),
    /// Print the JSON Schema of the configuration file.
    Schema,
    /// Show the hosts of the mesh, as the running host sees them, and which version each runs.
    Members(AskArgs),
    /// Show the services of the mesh, how many of their instances are healthy, and the upstreams of this host's file.
    Services(AskArgs),
    /// Show the endpoints of a service, as the running host's balancer sees them.
    Endpoints(ServiceArgs),
    /// Explain what would happen to a request: each endpoint, each filter's verdict, the limits that apply, and where
    /// each field of the policy comes from.
    Explain(ExplainArgs),
    /// Show the few endpoints that a key's requests may go to, and how much that shard shares with others.
    Shards(ShardsArgs),
    /// Shared limits: who wants how much of which resource, who has it, and which host is its root.
    Quotas(AskArgs),
    /// Show what happened lately: hosts that came and went, health that changed, joins that failed.
    Events(EventsArgs),
    /// Change a service's policy on every host of the mesh, for a while; without a service: show what is overridden.
    ///
    /// Fields are written as in the configuration, with points: `hedge.mode=off timeout=300ms`; `hedge=off` is short
    /// for `hedge.mode=off`. A new override of a service replaces the one before. It ends by itself after --ttl.
    Override(OverrideArgs),
    /// Ask every host of the mesh to stop choosing a host, for a while. What is in flight there finishes.
    Drain(DrainArgs),
    /// Print a new random gossip key for mesh.gossip.keys.
    Keygen,
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// What to run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration (YAML); without it: an empty one.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What to check.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration (YAML); `-`: standard input; without it: an empty one.
    #[arg(value_name = "FILE", conflicts_with = "config")]
    pub file: Option<PathBuf>,
    /// The same, as `run` takes it.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print what it means: every default filled in, secrets left out.
    #[arg(long)]
    pub print: bool,
}

/// Whom to ask, and how to print the answer.
#[derive(Debug, Clone, Args)]
pub struct AskArgs {
    /// The admin listener of the running host [default: $EVENKEEL_ADMIN, else 127.0.0.1:7119].
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// A table to read, or the answer as it is.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

impl AskArgs {
    /// Whom to ask: what was typed, else what the environment says, else the default of `admin.listen`.
    pub fn admin(&self) -> String {
        let environment = || std::env::var(ADMIN_VARIABLE).ok().filter(|said| !said.is_empty());
        self.admin.clone().or_else(environment).unwrap_or_else(|| ADMIN_DEFAULT.to_owned())
    }

    /// A command of ours as a hint, with the flags that were typed: whoever copies it asks the same host.
    pub fn hint(&self, command: &str) -> String {
        match &self.admin {
            Some(admin) => format!("{command} --admin {admin}"),
            None => command.to_owned(),
        }
    }
}

/// Where commands ask when nothing is typed.
pub const ADMIN_VARIABLE: &str = "EVENKEEL_ADMIN";
const ADMIN_DEFAULT: &str = "127.0.0.1:7119";

/// A question about what happened.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on: print what happens from now on, until Ctrl-C. With --output json, one event a line.
    #[arg(short, long)]
    pub follow: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// The shape of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// To read.
    Table,
    /// The body of the admin's answer, unchanged.
    Json,
}

/// A question about one service.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// The service: `payments`, `payments.shop`, with or without the mesh's domain.
    pub service: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// A question about one request.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub about: ServiceArgs,
    /// The request's path.
    #[arg(long, default_value = "/")]
    pub path: String,
    /// The request's method.
    #[arg(long, default_value = "GET")]
    pub method: String,
    /// The value of the key that decides its shard, or its endpoint under `balance: hash`.
    #[arg(long)]
    pub key: Option<String>,
}

/// A question about one key.
#[derive(Debug, Args)]
pub struct ShardsArgs {
    #[command(flatten)]
    pub about: ServiceArgs,
    /// The key's value, as requests carry it.
    #[arg(long)]
    pub key: String,
    /// The request's path, where routes have shards of their own.
    #[arg(long, default_value = "/")]
    pub path: String,
    /// The request's method.
    #[arg(long, default_value = "GET")]
    pub method: String,
}

/// An order about a service.
#[derive(Debug, Args)]
pub struct OverrideArgs {
    /// The service.
    #[arg(requires = "what")]
    pub service: Option<String>,
    /// Fields of the policy, each with its value.
    #[arg(value_name = "FIELD=VALUE", group = "what")]
    pub fields: Vec<String>,
    /// When it ends; at most 24h.
    #[arg(long, default_value = "1h")]
    pub ttl: String,
    /// Take back what was ordered for the service, at whichever host.
    #[arg(long, group = "what", conflicts_with = "fields")]
    pub undo: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// An order about a host.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The host's name, or its id.
    pub host: String,
    /// When it ends; at most 24h.
    #[arg(long, default_value = "24h")]
    pub ttl: String,
    /// Let it be chosen again.
    #[arg(long)]
    pub undo: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_table_of_modes_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_hint_repeats_the_address_that_was_typed_and_no_other() {
        let ask = |admin: Option<&str>| AskArgs {
            admin: admin.map(str::to_owned),
            output: Output::Table,
        };
        assert_eq!(ask(Some("a:1")).hint("evenkeel quotas"), "evenkeel quotas --admin a:1");
        assert_eq!(ask(None).hint("evenkeel quotas"), "evenkeel quotas");
        assert_eq!(ask(Some("a:1")).admin(), "a:1");
    }
}
