//! The `ashlar` command: daemon, REST API, command line and laboratory in one binary.

use std::process::ExitCode;

mod allocator;
mod cli;
mod client;
mod daemon;
mod drives;
mod exit;
mod lab;
mod output;
mod values;
mod wire;

fn main() -> ExitCode {
    allocator::set_up();
    cli::main()
}
