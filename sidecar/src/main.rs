//! Evenkeel: the demo's entry points.
mod demo;

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
