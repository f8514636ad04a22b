//! Evenkeel: a service mesh without a control plane. One process a host.

mod admin;
mod app;
mod catalog_http;
mod checks;
mod cli;
mod control;
mod demo;
mod dns;
mod events;
mod gossip;
mod state;

fn main() -> std::process::ExitCode {
    cli::main()
}
