//! Evenkeel: the demo's entry points.
mod access; mod attempt; mod body; mod connection; mod demo; mod error; mod headers; mod inbound; mod listener; mod metrics; mod outbound; mod passthrough; mod pool; mod route; mod upstreams; mod worker;

use clap::Parser;

#[derive(Parser)]
enum Command {
    Demo(demo::DemoArgs),
    #[command(hide = true)]
    DemoApplication(demo::ApplicationArgs),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Demo(args) => demo::run(args),
        Command::DemoApplication(args) => demo::run_application(args),
    }
}
