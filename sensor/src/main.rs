//! The sensor's front door.

fn main() -> std::process::ExitCode {
    spanwatch_sensor::cli::main()
}
