//! Looks at the machine before a sensor runs on it: what is right, what is not, and what to do about it.
//!
//! The checks about kernel, rights, memory, interface and clock are made here, as values; showing them, and checking whether the
//! collector can be reached, is up to the caller.

use std::fs;
use std::io;
use std::time::Duration;

use spanwatch_common::checkup::Check;

use crate::capture::af_xdp::syscall;
use crate::capture::interface::{Interface, Spread};
use crate::capture::settings::{Mode, Settings};
use crate::capture::{self, InForce};
use crate::cores::plan;
use crate::cores::settings::WorkerSettings;
use crate::cores::topology::{self, Queue, Topology};
use crate::huge_pages::{self, Outcome};

/// Checks this machine for capturing with `settings`.
///
/// Unless an interface carries an address of the host, its capture is opened for a moment, as `run` would, to see which mode the
/// driver gives.
pub fn checks(settings: &Settings) -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let capabilities = effective_capabilities(&read("/proc/self/status"));
    let mut checks = vec![
        kernel(&release, fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false), settings.mode),
        rights(capabilities, settings.mode),
    ];
    let ports: Vec<_> = settings.ports().into_iter().map(|name| (name, Interface::find(name))).collect();
    let found = || ports.iter().filter_map(|(_, interface)| interface.as_ref().ok());
    if found().count() > 0 {
        let needed = found().map(|interface| memory_needed(settings, interface)).sum();
        if settings.mode != Mode::Packet {
            checks.push(locked_memory(&read("/proc/self/limits"), capabilities, needed));
        }
        checks.push(huge_pages(&read("/proc/meminfo"), settings, needed));
    }
    for (name, interface) in &ports {
        let of_port = match interface {
            Ok(interface) => port(settings, interface, &release),
            Err(error) => vec![Check::fail("interface", format!("{}: {}", error.doing, error.cause), error.remedy.clone())],
        };
        let named = |check: Check| Check { says: format!("{name}: {}", check.says), ..check };
        let is_plain = |check: &Check| ports.len() == 1 || check.says.contains(name);
        checks.extend(of_port.into_iter().map(|check| if is_plain(&check) { check } else { named(check) }));
    }
    checks.push(clock(syscall::clock_state()));
    checks
}

/// Checks where the sensor's threads would run, and what pages its flow tables would get.
pub fn machine_checks(capture: &Settings, workers: &WorkerSettings) -> Vec<Check> {
    let topology = Topology::read();
    let read_by = |interface: &Interface| if capture.mode == Mode::Packet { 1 } else { interface.rx_queues as usize };
    let found = capture.ports().into_iter().filter_map(|name| Interface::find(name).ok());
    let queues: Vec<Queue> = found.flat_map(|interface| topology::queues(&interface, read_by(&interface))).collect();
    let mut checks = cores(&topology, &queues, workers);
    checks.push(match huge_pages::try_out() {
        Outcome::Huge => Check::ok("table pages", "flow tables get transparent huge pages"),
        Outcome::Normal { why, remedy } => Check::warn("table pages", format!("flow tables get normal pages: {why}"), remedy),
    });
    checks
}

/// Everything about one port.
fn port(settings: &Settings, interface: &Interface, release: &str) -> Vec<Check> {
    let (mode, in_force) = capture_mode(settings, interface);
    let mut checks = vec![
        state(interface),
        mode,
        offloads(interface, in_force),
        mtu(interface, release, in_force),
        queues(interface, std::thread::available_parallelism().map_or(1, usize::from), in_force),
    ];
    if settings.busy_poll_micros > 0 && in_force != InForce::Packet {
        checks.push(busy_polling(interface, interface.busy_poll_help()));
    }
    checks
}

/// Where each worker would run, and each trouble with that.
fn cores(topology: &Topology, queues: &[Queue], settings: &WorkerSettings) -> Vec<Check> {
    const NAME: &str = "cores";
    let plan = match plan(topology, queues, &settings.cores) {
        Ok(plan) => plan,
        Err(sentence) => return vec![Check::fail(NAME, sentence, "workers.cores in the settings")],
    };
    let troubles = plan.troubles(topology, queues);
    if troubles.is_empty() {
        return vec![Check::ok(NAME, plan.lines(queues).join("; "))];
    }
    troubles.into_iter().map(|(says, remedy)| Check::warn(NAME, says, remedy)).collect()
}

/// `help` is for how many rounds the driver leaves interrupts off, and for how many nanoseconds.
fn busy_polling(interface: &Interface, help: (u64, u64)) -> Check {
    const NAME: &str = "busy polling";
    if help.0 > 0 && help.1 > 0 {
        return Check::ok(NAME, format!("interrupts stay off for {} rounds, or {} µs", help.0, help.1 / 1000));
    }
    let directory = format!("/sys/class/net/{}", interface.name);
    Check::warn(
        NAME,
        "interrupts are not put off, so the kernel goes on receiving on another core as well",
        format!("echo 2 > {directory}/napi_defer_hard_irqs; echo 200000 > {directory}/gro_flush_timeout"),
    )
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
    let slots = settings.slots(interface.speed_mbits, interface.rx_queues);
    u64::from(slots) * u64::from(capture::af_xdp::frame_size(interface.mtu)) * u64::from(interface.rx_queues)
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
        let says = format!(
            "none reserved, so the rings' {} take normal pages; above a million packets/s reserve some: {remedy}",
            mib(needed)
        );
        Check::ok(NAME, says)
    } else if free < pages {
        Check::warn(NAME, format!("{free} of {total} are free, the rings want {pages}"), remedy)
    } else {
        Check::ok(NAME, format!("{free} are free, the rings take {pages} for {}", mib(needed)))
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
    match capture::open_port(&interface.name, settings) {
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
    if let Some(command) = interface.spread.command(&interface.name, interface.channels) {
        let says = format!(
            "{says}: both directions of a conversation may come on different queues; the records say so, and the collector joins them"
        );
        return Check::warn("queues", says, command);
    }
    let says = match interface.spread {
        Spread::OneQueue => says,
        _ => format!("{says}; both directions of a conversation come on the same queue"),
    };
    if queues <= cores {
        if interface.parts_fragments {
            let name = &interface.name;
            let says = format!(
                "{says}; fragmented UDP comes on another (ethtool -N {name} rx-flow-hash udp4 sd keeps it with the rest)"
            );
            return Check::ok("queues", says);
        }
        return Check::ok("queues", says);
    }
    let remedy = format!("ethtool -L {} {} {cores}", interface.name, interface.channels);
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
    use crate::cores::settings::Cores;
    use crate::cores::topology::{Core, Napi};

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
    fn a_worker_on_its_queues_core_is_a_warning_with_the_command_that_moves_the_interrupt() {
        let core = |number| Core { number, physical: number, ..Core::default() };
        let two = Topology { cores: vec![core(0), core(1)], allowed: vec![0, 1] };
        let napi = Napi::Interrupt { number: 42, cores: vec![1] };
        let queue = Queue { port: "eno2".into(), napi, ..Queue::default() };
        let of = |cores| self::cores(&two, std::slice::from_ref(&queue), &WorkerSettings { cores });
        let good = &of(Cores::Auto)[0];
        assert_eq!((good.verdict, good.says.as_str()), (Verdict::Ok, "eno2 queue 0: worker on core 0, interrupt 42 on core 1"));
        let bad = &of(Cores::These(vec![1]))[0];
        assert_eq!(bad.verdict, Verdict::Warn);
        assert!(bad.remedy.starts_with("echo 0 > /proc/irq/42/smp_affinity_list"), "{}", bad.remedy);
        assert_eq!(of(Cores::These(vec![7]))[0].verdict, Verdict::Fail);
    }

    #[test]
    fn an_unknown_interface_fails_and_the_rest_is_checked_still() {
        let checks = checks(&Settings { interface: "no-such-port".into(), ..Settings::default() });
        let names: Vec<_> = checks.iter().map(|check| check.name).collect();
        assert_eq!(names, ["kernel", "capabilities", "interface", "clock"]);
        assert_eq!(checks[2].verdict, Verdict::Fail);
    }
}
