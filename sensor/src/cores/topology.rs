//! What the machine is like: its cores, and where the receive loop of each queue runs. Read from sysfs and procfs once, at the start.
//!
//! Where files are missing (virtual interfaces, containers) less is known, and nothing fails.

use std::fs;
use std::path::Path;

use crate::capture::af_xdp::syscall;
use crate::capture::interface::Interface;

/// The cores of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// All that are online, by number.
    pub cores: Vec<Core>,
    /// Numbers of those that this process may use.
    pub allowed: Vec<usize>,
}

/// One hardware thread, as Linux numbers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Core {
    /// Its number.
    pub number: usize,
    /// The lowest number of the hardware threads on the same physical core.
    pub physical: usize,
    /// The lowest number of those that share its last level of cache.
    pub cache: usize,
    /// NUMA node.
    pub node: usize,
}

/// What a worker reads: an RX queue, or a whole port through libpcap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Name of the interface.
    pub port: String,
    /// Number of the RX queue; 0 for a whole port.
    pub number: usize,
    /// What ethtool calls the channels that the queues of this interface are: `combined` or `rx`.
    pub channels: &'static str,
    /// What is known of its receive loop.
    pub napi: Napi,
    /// NUMA node of the card.
    pub node: Option<usize>,
}

/// Where the kernel's receive loop (NAPI) of a queue runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Napi {
    /// Nobody knows: a virtual interface, or a driver with unusual names.
    #[default]
    Unknown,
    /// Where its interrupt arrives.
    Interrupt {
        /// Number of the interrupt.
        number: u32,
        /// Cores that it may arrive on.
        cores: Vec<usize>,
    },
    /// In kernel threads of its own (`/sys/class/net/DEV/threaded`).
    Threads {
        /// Their process ids.
        pids: Vec<u32>,
        /// Cores that they may run on.
        cores: Vec<usize>,
    },
}

impl Napi {
    /// The cores that it may run on; none when that is not known.
    pub fn cores(&self) -> &[usize] {
        match self {
            Self::Unknown => &[],
            Self::Interrupt { cores, .. } | Self::Threads { cores, .. } => cores,
        }
    }

    /// Where it runs, for people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Unknown => "where its packets are received is not known".to_owned(),
            Self::Interrupt { number, cores } => format!("interrupt {number} on core {}", list(cores)),
            Self::Threads { cores, .. } => format!("receive threads on core {}", list(cores)),
        }
    }

    /// The command that moves it to `core`.
    pub(super) fn move_command(&self, core: usize) -> String {
        match self {
            Self::Unknown => "see /proc/interrupts".to_owned(),
            Self::Interrupt { number, .. } => {
                format!("echo {core} > /proc/irq/{number}/smp_affinity_list (and stop irqbalance, or it moves back)")
            }
            Self::Threads { pids, .. } => {
                let commands: Vec<String> = pids.iter().map(|pid| format!("taskset -pc {core} {pid}")).collect();
                commands.join("; ")
            }
        }
    }
}

impl Topology {
    /// This machine.
    pub fn read() -> Self {
        let online = read_list(Path::new("/sys/devices/system/cpu/online"));
        let allowed = syscall::allowed_cores().unwrap_or_default();
        let online = if online.is_empty() { allowed.clone() } else { online };
        let allowed = if allowed.is_empty() { online.clone() } else { allowed };
        Self { cores: online.into_iter().map(read_core).collect(), allowed }
    }

    /// The allowed cores on the NUMA node of this interface's card; none when there is one node only, or the node is not known.
    pub fn near(&self, interface: &str) -> Vec<usize> {
        if self.cores.windows(2).all(|two| two[0].node == two[1].node) {
            return Vec::new();
        }
        let node = node_of(&Path::new("/sys/class/net").join(interface));
        let is_near = |core: &&Core| Some(core.node) == node && self.allowed.contains(&core.number);
        self.cores.iter().filter(is_near).map(|core| core.number).collect()
    }
}

/// The queues of an interface that `workers` threads read.
pub fn queues(interface: &Interface, workers: usize) -> Vec<Queue> {
    let name = &interface.name;
    let directory = interface.sysfs();
    let of_all = directory.as_deref().map(|directory| napi(name, directory)).unwrap_or_default();
    let node = directory.as_deref().and_then(node_of);
    let queue = |number: usize| {
        let napi = if workers == 1 && interface.rx_queues > 1 { together(&of_all) } else { of_queue(&of_all, number) };
        Queue { port: name.clone(), number, channels: interface.channels, napi, node }
    };
    (0..workers).map(queue).collect()
}

/// The NUMA node of a card, by its directory in sysfs; `None` where the kernel says -1, or nothing.
fn node_of(directory: &Path) -> Option<usize> {
    read(&directory.join("device/numa_node")).parse().ok()
}

/// The receive loops of a port, each with the queue that it is for; `None` when it may be for any.
type Loops = Vec<(Option<usize>, Napi)>;

fn napi(name: &str, directory: &Path) -> Loops {
    if read(&directory.join("threaded")) == "1" {
        let threads = napi_threads(name);
        if threads != Napi::Unknown {
            return vec![(None, threads)];
        }
    }
    // A virtio interface hangs below the PCI device that has the interrupts.
    let device = fs::canonicalize(directory.join("device")).unwrap_or_default();
    let found = [Some(device.as_path()), device.parent()].into_iter().flatten().map(|device| numbers(&device.join("msi_irqs")));
    let Some(found) = found.into_iter().find(|numbers| !numbers.is_empty()) else { return Vec::new() };
    let interrupts = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let named = receive_interrupts(&interrupts, &found);
    let at = |number: u32| {
        let file = |name: &str| read_list(Path::new(&format!("/proc/irq/{number}/{name}")));
        let effective = file("effective_affinity_list");
        let cores = if effective.is_empty() { file("smp_affinity_list") } else { effective };
        Napi::Interrupt { number, cores }
    };
    named.into_iter().map(|(queue, number)| (Some(queue), at(number))).collect()
}

fn of_queue(loops: &Loops, queue: usize) -> Napi {
    let found = loops.iter().find(|(of, _)| of.is_none_or(|of| of == queue));
    found.map_or(Napi::Unknown, |(_, napi)| napi.clone())
}

/// All loops as one, for a worker that reads them all.
fn together(loops: &Loops) -> Napi {
    let Some((_, first)) = loops.first() else { return Napi::Unknown };
    let mut cores: Vec<usize> = loops.iter().flat_map(|(_, napi)| napi.cores()).copied().collect();
    cores.sort_unstable();
    cores.dedup();
    match first {
        Napi::Interrupt { number, .. } => Napi::Interrupt { number: *number, cores },
        other => other.clone(),
    }
}

/// The interrupts in `of`, by the queue that each receives for: from the text of /proc/interrupts, whose lines end with a name that the
/// driver chose.
fn receive_interrupts(interrupts: &str, of: &[u32]) -> Vec<(usize, u32)> {
    let line = |line: &str| {
        let (number, rest) = line.trim().split_once(':')?;
        let number: u32 = number.parse().ok()?;
        let queue = queue_of(rest.split_whitespace().last()?)?;
        of.contains(&number).then_some((queue, number))
    };
    interrupts.lines().filter_map(line).collect()
}

/// The RX queue in an interrupt's name: `eno2-TxRx-3`, `ice-eno2-TxRx-3`, `mlx5_comp3@pci:0000:3b:00.0`, `virtio0-input.3`, `eno2-rx-3`,
/// `eno2-fp-3`.
fn queue_of(name: &str) -> Option<usize> {
    let name = name.split('@').next()?.to_lowercase();
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let receives = ["rx", "input", "comp", "-fp-"].iter().any(|word| name.contains(word));
    if receives { name[name.len() - digits..].parse().ok() } else { None }
}

/// The kernel threads `napi/DEV-N`. Which of them is for which queue the kernel does not say.
fn napi_threads(name: &str) -> Napi {
    // The name of a thread may be cut after 15 octets.
    let long = format!("napi/{name}-");
    let begins: String = long.chars().take(15).collect();
    let (mut pids, mut cores) = (Vec::new(), Vec::new());
    for pid in numbers(Path::new("/proc")) {
        if !read(Path::new(&format!("/proc/{pid}/comm"))).starts_with(&begins) {
            continue;
        }
        let status = read(Path::new(&format!("/proc/{pid}/status")));
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        cores.extend(parse_list(allowed));
        pids.push(pid);
    }
    cores.sort_unstable();
    cores.dedup();
    if pids.is_empty() { Napi::Unknown } else { Napi::Threads { pids, cores } }
}

fn read_core(number: usize) -> Core {
    let directory = Path::new("/sys/devices/system/cpu").join(format!("cpu{number}"));
    let lowest = |file: &str| read_list(&directory.join(file)).first().copied();
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let node = entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()).next();
    Core {
        number,
        physical: lowest("topology/thread_siblings_list").unwrap_or(number),
        // The last level is the highest index.
        cache: (0..8).rev().find_map(|level| lowest(&format!("cache/index{level}/shared_cpu_list"))).unwrap_or(0),
        node: node.unwrap_or(0),
    }
}

/// The entries of a directory whose names are numbers.
fn numbers(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn read_list(path: &Path) -> Vec<usize> {
    parse_list(&read(path))
}

/// A list of cores as the kernel writes it: `0-3,8,10-11`.
fn parse_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// The other way round.
pub(super) fn list(cores: &[usize]) -> String {
    let mut text = String::new();
    let mut rest = cores;
    while let [first, ..] = rest {
        let run = rest.iter().zip(*first..).take_while(|(core, expected)| **core == *expected).count();
        let comma = if text.is_empty() { "" } else { "," };
        text += &if run > 1 { format!("{comma}{first}-{}", first + run - 1) } else { format!("{comma}{first}") };
        rest = &rest[run..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_list("\n"), [0; 0]);
        assert_eq!(list(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
    }

    #[test]
    fn drivers_name_the_queue_of_an_interrupt_each_in_its_own_way() {
        let names =
            ["eno2-TxRx-3", "ice-eno2-TxRx-3", "mlx5_comp3@pci:0000:3b:00.0", "virtio2-input.3", "ens5-Tx-Rx-3", "eth0-fp-3"];
        assert_eq!(names.map(queue_of), [Some(3); 6]);
        let others = ["virtio2-output.3", "virtio2-config", "mlx5_async0@pci:0000:3b:00.0", "eno2-tx-3", "eno2", "eno2-TxRx-"];
        assert_eq!(others.map(queue_of), [None; 6]);
    }

    #[test]
    fn only_interrupts_of_the_device_are_taken() {
        let interrupts = "           CPU0       CPU1\n \
             37:          0          0 PCI-MSIX-0000:00:03.0   0-edge      virtio2-config\n \
             38:          0      17667 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0\n \
             39:      14671          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0\n \
             52:          5          0 PCI-MSIX-0000:00:09.0   1-edge      virtio5-input.0\n\
             NMI:          0          0   Non-maskable interrupts\n";
        assert_eq!(receive_interrupts(interrupts, &[37, 38, 39]), [(0, 38)]);
    }

    #[test]
    fn this_machine_has_at_least_the_core_that_the_test_runs_on() {
        let topology = Topology::read();
        assert!(!topology.allowed.is_empty());
        for core in &topology.allowed {
            assert!(topology.cores.iter().any(|known| known.number == *core), "{topology:?}");
        }
    }
}
