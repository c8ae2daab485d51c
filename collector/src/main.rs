//! The doorway of `spanwatch-collector`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let command_line = spanwatch_collector::cli::CommandLine::parse();
    spanwatch_collector::cli::run(command_line)
}
