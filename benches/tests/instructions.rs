//! No stage of the line costs more or fewer instructions than the committed figure says.

use std::path::Path;
use std::process::Command;

/// Counting and comparing is `instructions.py`'s, which also writes the figures anew.
#[test]
fn instructions_per_packet_are_those_that_were_committed() {
    if cfg!(debug_assertions) {
        return println!("skipped: the figures are those of --release");
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        let must = |name, value| std::env::var_os(name).is_some_and(|set| set == value);
        assert!(!must("REQUIRE_PRIVILEGED", "1") && !must("CI", "true"), "no valgrind: install what deploy/packages.txt names");
        return println!("skipped: no valgrind to count with");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.py");
    let output = Command::new(script).args(["--check", env!("CARGO_BIN_EXE_stages")]).output().expect("python3");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "\n{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
}
