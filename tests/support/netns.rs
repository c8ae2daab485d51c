//! A network namespace for one test: made before it, gone after it, whatever happens.
//!
//! The test runs once more, alone, in a child process inside the namespace. So it sees the namespace's own /sys, needs no unsafe
//! code, and nothing it does can reach the machine's interfaces. The children of a namespace that is deleted lose their
//! interfaces with it.

#![allow(dead_code, reason = "each test file uses a part")]

use std::process::{Command, Stdio};

const INSIDE: &str = "SPANWATCH_TEST_NETNS";

/// Deletes the namespace when dropped, also when the test panics.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

/// Runs `body` inside a fresh network namespace. `test` is the full name of the calling test.
///
/// Where namespaces cannot be made, prints why and returns; with REQUIRE_PRIVILEGED=1 it panics instead.
pub(crate) fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let name = format!("sw-test-{}-{test}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    let namespace = match made {
        Ok(output) if output.status.success() => Namespace(name),
        Ok(output) => return skip(&String::from_utf8_lossy(&output.stderr)),
        Err(error) => return skip(&format!("ip: {error}")),
    };
    let program = std::env::current_exe().expect("the test's own path");
    let output = Command::new("ip")
        .args(["netns", "exec", &namespace.0])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("ip ran a moment ago");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{test} failed inside its namespace:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    // A renamed test would run nothing and succeed.
    assert!(said.contains("1 passed"), "{test} is not the name of the calling test:\n{said}");
}

/// Says why a test does not run; with REQUIRE_PRIVILEGED=1 that is a failure.
pub(crate) fn skip(reason: &str) {
    assert!(
        std::env::var_os("REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"),
        "REQUIRE_PRIVILEGED=1, and this machine cannot run the test: {reason}"
    );
    println!("skipped: {}", reason.trim());
}

/// Runs one command, words separated by spaces, and panics with its complaint when it fails.
pub(crate) fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a command")).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A veth pair `gen0` to `mon0` with `queues` queues each, up, silent (no IPv6) and without segmentation offloads.
///
/// A frame sent on `gen0` is received on `mon0`, as from a mirror port.
pub(crate) fn mirror_port(queues: u32, mtu: u32) {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap_or(());
    let count = format!("numtxqueues {queues} numrxqueues {queues}");
    run(&format!("ip link add mon0 mtu {mtu} {count} type veth peer name gen0 mtu {mtu} {count}"));
    run("ip link set gen0 up");
    run("ip link set mon0 up");
}

/// One of the kernel's counters of an interface, e.g. `rx_packets`.
pub(crate) fn counter(interface: &str, name: &str) -> u64 {
    let path = format!("/sys/class/net/{interface}/statistics/{name}");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().parse().expect("a number")
}
