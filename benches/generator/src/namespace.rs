//! The network namespace in which packets are made: a fresh one, without a name, that nothing leads out of.
//!
//! The program starts itself once more inside it, by way of `unshare`, in the same process. So there is nothing to remove: the kernel
//! takes the namespace and its interfaces away when the process ends, however it ends.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

/// The interface that frames are sent from.
pub const SENDER: &str = "gen0";
/// The interface that they arrive on: where a sensor listens.
pub const RECEIVER: &str = "mon0";
/// Holds the longest frame with everything around it; a sensor's buffers of 2048 octets still suffice.
const MTU: u32 = 1600;
/// What the process inside is told: the namespace that it must not be in.
const OUTSIDE: &str = "SPANWATCH_GENERATOR_OUTSIDE";

/// Starts this program again, with the same arguments, in fresh network and mount namespaces; returns inside them.
///
/// # Errors
/// Namespaces cannot be made here: it takes root.
pub fn enter() -> anyhow::Result<()> {
    let here = fs::read_link("/proc/self/ns/net").context("find out the present network namespace")?;
    if let Some(outside) = std::env::var_os(OUTSIDE) {
        ensure!(here != outside, "still in the network namespace of the machine; {OUTSIDE} is not to be set by hand");
        return Ok(());
    }
    let program = std::env::current_exe().context("find out the program's own path")?;
    // /sys shows the interfaces of the namespace it was mounted in.
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--", "sh", "-c", "mount -t sysfs sysfs /sys && exec \"$0\" \"$@\""])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(OUTSIDE, here)
        .exec();
    Err(error).context("run unshare (package util-linux)")
}

/// Makes the veth pair of [`SENDER`] and [`RECEIVER`], both up and silent, in a network namespace that has no other interface.
///
/// # Errors
/// The namespace has interfaces already, so it is not one of ours; or the kernel has no veth.
pub fn make_veth() -> anyhow::Result<()> {
    for entry in fs::read_dir("/sys/class/net").context("list the interfaces")? {
        let name = entry?.file_name();
        ensure!(name == "lo", "this network namespace has the interface {}; packets are made in empty ones only", name.display());
    }
    // No neighbour discovery on the new interfaces: every packet on them is the generator's. Absent where the kernel has no IPv6.
    match fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context("switch IPv6 off"),
        _ => {}
    }
    ip("link set lo up")?;
    ip(&format!("link add {RECEIVER} mtu {MTU} type veth peer name {SENDER} mtu {MTU}"))?;
    ip(&format!("link set {SENDER} up"))?;
    ip(&format!("link set {RECEIVER} up"))
}

/// The number of an interface of this namespace.
///
/// # Errors
/// There is none of this name.
pub fn index(interface: &str) -> anyhow::Result<u32> {
    read_number(&format!("/sys/class/net/{interface}/ifindex")).map(|index| index as u32)
}

/// One of the kernel's counters of an interface, e.g. `rx_packets`.
///
/// # Errors
/// There is no such interface or counter.
pub fn counter(interface: &str, name: &str) -> anyhow::Result<u64> {
    read_number(&format!("/sys/class/net/{interface}/statistics/{name}"))
}

fn read_number(path: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} holds no number"))
}

/// Runs `ip` with these words.
fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("run ip (package iproute2)")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
