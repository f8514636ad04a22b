//! The command line: a table of modes, what they print, and the status they end with.
//!
//! Invariants: what was asked for goes to stdout, everything else to stderr; a closed pipe ends the process
//! quietly; 0 done, 1 failed, 64 wrong usage, 78 wrong configuration (sysexits.h).

mod args;
mod check;
mod client;
mod events;
mod explain;
mod keygen;
mod orders;
mod quotas;
mod show;
mod status;
mod table;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use evenkeel_config::Problems;

use args::{Cli, Command};

/// Parses the command line, does what it says and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => {
            let status = if refused.use_stderr() { USAGE } else { DONE };
            // A closed pipe is no reason to say anything.
            let _ = refused.print();
            return ExitCode::from(status);
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::from(DONE),
        Err(failure) => {
            let (text, status) = match failure.downcast_ref::<Problems>() {
                Some(problems) => (problems.to_string(), CONFIGURATION),
                None if is_closed_pipe(&failure) => return ExitCode::from(DONE),
                None => (format!("evenkeel: {failure:#}"), FAILED),
            };
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(status)
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let colour = std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match command {
        Command::Run(args) => {
            let file = args.config.as_deref();
            crate::app::run(check::load(file)?, file)
        }
        Command::Status(ask) => print(&status::status(&ask, colour)?),
        Command::Demo(args) => crate::demo::run(args),
        Command::DemoApplication(args) => crate::demo::run_application(args),
        Command::Check(args) => check::check(&args),
        Command::Schema => print(&format!("{:#}", evenkeel_config::schema())),
        Command::Members(ask) => print(&show::members(&ask, colour)?),
        Command::Services(ask) => print(&show::services(&ask, colour)?),
        Command::Endpoints(args) => print(&show::endpoints(&args, colour)?),
        Command::Explain(args) => print(&explain::explain(&args, colour)?),
        Command::Shards(args) => print(&show::shards(&args, colour)?),
        Command::Quotas(ask) => print(&quotas::quotas(&ask, colour)?),
        Command::Events(args) => events::events(&args, colour),
        Command::Override(args) => print(&orders::override_policy(&args, colour)?),
        Command::Drain(args) => print(&orders::drain(&args, colour)?),
        Command::Keygen => print(&keygen::key()?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "evenkeel", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Writes to stdout, with a newline at the end.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn is_closed_pipe(failure: &anyhow::Error) -> bool {
    failure
        .downcast_ref::<std::io::Error>()
        .is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

const DONE: u8 = 0;
const FAILED: u8 = 1;
/// sysexits.h EX_USAGE.
const USAGE: u8 = 64;
/// sysexits.h EX_CONFIG.
const CONFIGURATION: u8 = 78;
