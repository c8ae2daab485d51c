//! Looks at the machine before a sensor runs on it: what is right, what is not, and what to do about it.
//!
//! The checks about kernel, rights, memory, interface and clock are made here, as values; showing them, and checking whether the
//! collector can be reached, is up to the caller.

use std::fs;
use std::io;
use std::time::Duration;

use spanwatch_common::checkup::Check;

use crate::capture::af_xdp::syscall;
use crate::capture::interface::Interface;
use crate::capture::settings::{Mode, Settings};
use crate::capture::{self, InForce};

/// Checks this machine for capturing with `settings`.
///
/// Unless the interface carries an address of the host, the capture is opened for a moment, as `run` would, to see which mode the
/// driver gives.
pub fn checks(settings: &Settings) -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let capabilities = effective_capabilities(&read("/proc/self/status"));
    let mut checks = vec![
        kernel(&release, fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false), settings.mode),
        rights(capabilities, settings.mode),
    ];
    match Interface::find(&settings.interface) {
        Ok(interface) => {
            let needed = memory_needed(settings, &interface);
            if settings.mode != Mode::Packet {
                checks.push(locked_memory(&read("/proc/self/limits"), capabilities, needed));
            }
            checks.push(huge_pages(&read("/proc/meminfo"), settings, needed));
            checks.push(state(&interface));
            let (mode, in_force) = capture_mode(settings, &interface);
            checks.push(mode);
            checks.push(offloads(&interface, in_force));
            checks.push(mtu(&interface, &release, in_force));
            checks.push(queues(&interface, std::thread::available_parallelism().map_or(1, usize::from), in_force));
        }
        Err(error) => checks.push(Check::fail("interface", format!("{}: {}", error.doing, error.cause), error.remedy)),
    }
    checks.push(clock(syscall::clock_state()));
    checks
}

/// `major.minor` at the start of the kernel's release name.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel(release: &str, btf: bool, mode: Mode) -> Check {
    let release = release.trim();
    // The XDP program touches no kernel structure, so it needs no relocation against BTF.
    let btf = if btf { "BTF is there" } else { "BTF is missing, and not needed" };
    match version(release) {
        Some(_) if mode == Mode::Packet => Check::ok("kernel", format!("Linux {release}, which has what libpcap needs")),
        Some(version) if version >= (5, 18) => Check::ok("kernel", format!("Linux {release}; {btf}")),
        Some(version) if version >= (5, 9) => Check::warn(
            "kernel",
            format!("Linux {release} has AF_XDP, but not for packets of several buffers; {btf}"),
            "for a mirror port with jumbo frames use Linux 5.18 or later, or mode = \"packet\"",
        ),
        Some(_) if mode == Mode::Auto => Check::warn(
            "kernel",
            format!("Linux {release} has no bpf_link for XDP, so libpcap captures"),
            "for more than a million packets/s use Linux 5.9 or later",
        ),
        Some(_) => Check::fail(
            "kernel",
            format!("Linux {release} has no bpf_link for XDP"),
            "use Linux 5.9 or later, or mode = \"packet\"",
        ),
        None => Check::warn("kernel", format!("cannot read a version from {release:?}"), "Linux 5.18 or later is known to work"),
    }
}

/// Capabilities that AF_XDP needs, by their numbers in capability.h.
const CAPABILITIES: [(u32, &str); 4] = [(12, "NET_ADMIN"), (13, "NET_RAW"), (14, "IPC_LOCK"), (39, "BPF")];
const NET_RAW: u64 = 1 << 13;
const IPC_LOCK: u64 = 1 << 14;

/// The `CapEff` line of /proc/self/status.
fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn rights(effective: u64, mode: Mode) -> Check {
    if mode == Mode::Packet && effective & NET_RAW != 0 {
        return Check::ok("capabilities", "NET_RAW is there, all that libpcap needs");
    }
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(number, _)| effective & (1 << number) == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Check::ok("capabilities", "NET_ADMIN, NET_RAW, IPC_LOCK and BPF are there");
    }
    let says = format!("missing: {}", missing.join(", "));
    let remedy = "run as root, or with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_BPF in the systemd unit";
    // Without IPC_LOCK alone it works within the limit of locked memory, which has a check of its own. With NET_RAW alone "auto"
    // ends at libpcap.
    let bearable = missing == ["IPC_LOCK"] || mode == Mode::Auto && effective & NET_RAW != 0;
    if bearable { Check::warn("capabilities", says, remedy) } else { Check::fail("capabilities", says, remedy) }
}

/// Octets of frame memory over all queues.
fn memory_needed(settings: &Settings, interface: &Interface) -> u64 {
    u64::from(settings.ring_slots) * u64::from(capture::af_xdp::frame_size(interface.mtu)) * u64::from(interface.rx_queues)
}

fn mib(octets: u64) -> String {
    format!("{} MiB", octets.div_ceil(1 << 20))
}

fn locked_memory(limits: &str, capabilities: u64, needed: u64) -> Check {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = line.and_then(|rest| rest.split_whitespace().next()).unwrap_or("unlimited");
    match soft.parse::<u64>() {
        _ if capabilities & IPC_LOCK != 0 => Check::ok("locked memory", "without limit, by the capability IPC_LOCK"),
        Ok(limit) if limit < needed => Check::warn(
            "locked memory",
            format!("the limit is {}, the rings want {}; they will be made smaller", mib(limit), mib(needed)),
            "LimitMEMLOCK=infinity or the capability IPC_LOCK in the systemd unit",
        ),
        Ok(limit) => Check::ok("locked memory", format!("the limit is {}, the rings need {}", mib(limit), mib(needed))),
        Err(_) => Check::ok("locked memory", "without limit"),
    }
}

fn huge_pages(meminfo: &str, settings: &Settings, needed: u64) -> Check {
    const NAME: &str = "huge pages";
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let (total, free, size) = (field("HugePages_Total"), field("HugePages_Free"), field("Hugepagesize") * 1024);
    let pages = if size == 0 { 0 } else { needed.div_ceil(size) };
    let remedy = format!("sysctl -w vm.nr_hugepages={pages}");
    if settings.mode == Mode::Packet || !settings.huge_pages {
        Check::ok(NAME, "not asked for")
    } else if total == 0 {
        Check::ok(NAME, format!("none reserved, so normal pages are used; above a million packets/s reserve some: {remedy}"))
    } else if free < pages {
        Check::warn(NAME, format!("{free} of {total} are free, the rings want {pages}"), remedy)
    } else {
        Check::ok(NAME, format!("{free} are free, the rings take {pages}"))
    }
}

fn state(interface: &Interface) -> Check {
    const NAME: &str = "interface";
    let name = &interface.name;
    if let Err(error) = interface.require_up() {
        return Check::fail(NAME, format!("{name} is down"), error.remedy);
    }
    if !interface.carrier {
        return Check::warn(NAME, format!("{name} has no carrier"), "check the cable and the mirror session of the switch");
    }
    if !interface.addresses.is_empty() {
        return Check::warn(
            NAME,
            format!("{name} has the address {}, so the host answers on it", interface.addresses.join(", ")),
            format!("on a port that only receives mirrored traffic: ip addr flush dev {name}"),
        );
    }
    let promiscuous = if interface.promiscuous { "promiscuous" } else { "the sensor will make it promiscuous" };
    Check::ok(NAME, format!("{name} is up, has carrier and no address; {promiscuous}"))
}

/// Opens the capture and closes it again. Gives also the mode that was in force, or will probably be.
fn capture_mode(settings: &Settings, interface: &Interface) -> (Check, InForce) {
    const NAME: &str = "capture mode";
    let expected = if settings.mode == Mode::Packet { InForce::Packet } else { InForce::AfXdpCopy };
    if !interface.addresses.is_empty() {
        let says = format!("not tried, because the host uses {} itself", interface.name);
        return (Check::ok(NAME, says), expected);
    }
    match capture::open(settings) {
        Ok(opened) => {
            let says = format!("{}: {}", opened.in_force.name(), opened.why);
            let check = match opened.in_force {
                InForce::AfXdpZeroCopy | InForce::AfXdpCopy => Check::ok(NAME, says),
                InForce::Packet if settings.mode == Mode::Packet => Check::ok(NAME, says),
                InForce::AfXdpGeneric | InForce::Packet => {
                    Check::warn(NAME, says, "for more than a million packets/s use a network card whose driver has XDP")
                }
            };
            (check, opened.in_force)
        }
        Err(error) => (Check::fail(NAME, format!("{}: {}", error.doing, error.cause), error.remedy), expected),
    }
}

fn offloads(interface: &Interface, in_force: InForce) -> Check {
    match interface.offloads.command(&interface.name, in_force) {
        Some(command) => Check::warn("offloads", "some show the sensor packets that were not on the wire", command),
        None => Check::ok("offloads", "none that would change what is seen"),
    }
}

fn mtu(interface: &Interface, release: &str, in_force: InForce) -> Check {
    if in_force == InForce::Packet {
        return Check::ok("mtu", format!("{} octets", interface.mtu));
    }
    let frame_size = capture::af_xdp::frame_size(interface.mtu);
    let says = format!("{} octets, frame buffers of {frame_size}", interface.mtu);
    let first = capture::af_xdp::first_buffer(frame_size);
    if interface.mtu + 18 <= first {
        Check::ok("mtu", says)
    } else if version(release).is_some_and(|version| version >= (6, 6)) {
        Check::ok("mtu", format!("{says}; of longer packets the first {first} octets are looked at, and all are counted"))
    } else {
        let remedy = "use Linux 6.6 or later, or mode = \"packet\"";
        Check::warn("mtu", format!("{says}; AF_XDP on this kernel loses packets longer than {first} octets"), remedy)
    }
}

fn queues(interface: &Interface, cores: usize, in_force: InForce) -> Check {
    let queues = interface.rx_queues as usize;
    let says = format!("{queues} RX queues, {cores} cores");
    if in_force == InForce::Packet {
        return Check::ok("queues", says);
    }
    if let Some(command) = interface.spread.command(&interface.name) {
        let says = format!("{says}: both directions of a conversation may come on different queues and be metered apart");
        return Check::warn("queues", says, command);
    }
    if queues <= cores {
        return Check::ok("queues", says);
    }
    let remedy = format!("ethtool -L {} combined {cores}", interface.name);
    Check::warn(
        "queues",
        format!("{says}: each queue has a thread, and threads that share a core lose packets in bursts"),
        remedy,
    )
}

fn clock(state: io::Result<(bool, Duration)>) -> Check {
    match state {
        Ok((true, error)) => Check::ok("clock", format!("synchronised, to within {} ms", error.as_millis())),
        Ok((false, _)) => Check::warn(
            "clock",
            "not synchronised: flow times of several sensors will not fit together",
            "run chrony or systemd-timesyncd",
        ),
        Err(error) => Check::warn("clock", format!("the kernel does not tell its state: {error}"), "see that NTP is running"),
    }
}

#[cfg(test)]
mod tests {
    use spanwatch_common::checkup::Verdict;

    use super::*;

    #[test]
    fn kernels_are_told_apart_by_their_numbers() {
        assert_eq!(kernel("6.18.44-fc-v669\n", true, Mode::Auto).verdict, Verdict::Ok);
        assert_eq!(kernel("5.15.0-91-generic", true, Mode::Auto).verdict, Verdict::Warn);
        assert_eq!(kernel("5.4.0", true, Mode::AfXdp).verdict, Verdict::Fail);
        assert_eq!(kernel("5.4.0", true, Mode::Auto).verdict, Verdict::Warn);
        assert_eq!(kernel("5.4.0", true, Mode::Packet).verdict, Verdict::Ok);
        assert_eq!(kernel("6.1.0", false, Mode::Auto).says, "Linux 6.1.0; BTF is missing, and not needed");
        assert_eq!(kernel("", false, Mode::Auto).verdict, Verdict::Warn);
    }

    #[test]
    fn missing_capabilities_are_named_and_ipc_lock_alone_is_bearable() {
        let all = effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert_eq!(rights(all, Mode::AfXdp).verdict, Verdict::Ok);
        assert_eq!(rights(0, Mode::Auto).says, "missing: NET_ADMIN, NET_RAW, IPC_LOCK, BPF");
        assert_eq!(rights(all & !IPC_LOCK, Mode::AfXdp).verdict, Verdict::Warn);
        assert_eq!(rights(all & !(1 << 39), Mode::AfXdp).verdict, Verdict::Fail);
    }

    #[test]
    fn libpcap_needs_one_capability_only() {
        let verdicts = |effective| [Mode::AfXdp, Mode::Auto, Mode::Packet].map(|mode| rights(effective, mode).verdict);
        assert_eq!(verdicts(NET_RAW), [Verdict::Fail, Verdict::Warn, Verdict::Ok]);
        assert_eq!(verdicts(!NET_RAW), [Verdict::Fail; 3]);
    }

    #[test]
    fn the_limit_of_locked_memory_matters_only_without_ipc_lock() {
        let limits = "Max locked memory         8388608              8388608              bytes     \n";
        assert_eq!(locked_memory(limits, IPC_LOCK, 64 << 20).verdict, Verdict::Ok);
        let check = locked_memory(limits, 0, 64 << 20);
        assert_eq!(
            (check.verdict, check.says.as_str()),
            (Verdict::Warn, "the limit is 8 MiB, the rings want 64 MiB; they will be made smaller")
        );
        assert_eq!(locked_memory("Max locked memory  unlimited unlimited bytes", 0, 64 << 20).verdict, Verdict::Ok);
    }

    #[test]
    fn huge_pages_are_counted_in_pages_of_this_machine() {
        let meminfo = "HugePages_Total:      40\nHugePages_Free:       31\nHugepagesize:       2048 kB\n";
        let check = huge_pages(meminfo, &Settings::default(), 64 << 20);
        assert_eq!((check.verdict, check.says.as_str()), (Verdict::Warn, "31 of 40 are free, the rings want 32"));
        assert_eq!(check.remedy, "sysctl -w vm.nr_hugepages=32");
        assert_eq!(huge_pages("", &Settings::default(), 64 << 20).verdict, Verdict::Ok);
    }

    #[test]
    fn an_unknown_interface_fails_and_the_rest_is_checked_still() {
        let checks = checks(&Settings { interface: "no-such-port".into(), ..Settings::default() });
        let names: Vec<_> = checks.iter().map(|check| check.name).collect();
        assert_eq!(names, ["kernel", "capabilities", "interface", "clock"]);
        assert_eq!(checks[2].verdict, Verdict::Fail);
    }
}
