//! The doorway of `spanwatch-collector`.

use std::process::ExitCode;

use clap::Parser;

/// Detectors make and drop millions of small sets; the system's allocator takes a third of their time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command_line = spanwatch_collector::cli::CommandLine::parse();
    spanwatch_collector::cli::run(command_line)
}
