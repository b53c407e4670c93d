//! The `ashlar` command: daemon, REST API, command line and laboratory in one binary.

use std::process::ExitCode;

mod cli;
mod client;
mod daemon;
mod exit;
mod lab;
mod output;
mod values;
mod wire;

/// The engine's buffers go from thread to thread, and many are large: the system's allocator spends a third of the processor on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
