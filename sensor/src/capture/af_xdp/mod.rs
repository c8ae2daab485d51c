//! AF_XDP: the XDP program gives each packet to the socket of its RX queue, which has a ring of its own.
//!
//! * `syscall` — the system calls, each with a safe face
//! * `umem` — the memory that packets are written to
//! * `ring` — the rings, and the walk that hands out packets and returns their frames
//! * `socket` — all of it for one queue
//! * this file — all queues of an interface, and the account of what was lost
//!
//! Frames are 2048 octets when the MTU fits (1700), else 4096. A longer packet takes several frames where the kernel can do that
//! (Linux 6.6) and is handed out with its first frame's octets and its full `wire_len`; elsewhere it is lost and counted as
//! `ring_starved`.

#![allow(unsafe_code, reason = "the rings are shared with the kernel; each block says why it is sound")]

mod ring;
mod socket;
pub(crate) mod syscall;
mod umem;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spanwatch_common::ledger::Dropped;
use spanwatch_common::time::Timestamp;
use spanwatch_ebpf::{Config, Hook, Program};

use super::interface::Interface;
use super::settings::{NoSocket, Settings};
use super::{Capture, CaptureError, CaptureErrorKind, Drained, Frame, Losses};
use socket::{Plan, Socket};

/// The packets of one RX queue.
#[derive(Debug)]
pub struct AfXdp {
    socket: Socket,
    queue: u32,
    port: Arc<Port>,
    stopped: bool,
    description: String,
}

/// What all queues of an interface share: the attached program and the promiscuous mode.
#[derive(Debug)]
struct Port {
    interface: Interface,
    program: Mutex<Program>,
    missed_before: u64,
    _promiscuous: OwnedFd,
}

/// Opens a socket on every RX queue of the interface, fills the program's map, then attaches the program: in the driver, or
/// else generically. Gives one source per queue, where the program runs, and whether all sockets are zero-copy.
/// The interface shares the memory for rings with `ports` - 1 others.
pub(super) fn open(interface: &Interface, settings: &Settings, ports: u32) -> Result<(Vec<AfXdp>, Hook, bool), CaptureError> {
    let name = &interface.name;
    let config = Config {
        queues: interface.rx_queues,
        keep_one_in: settings.keep_one_in,
        pass_unclaimed: settings.no_socket == NoSocket::Pass,
    };
    let mut program = Program::load(&config).map_err(|error| refused(error.doing.to_owned(), &error.source))?;

    let frame_size = frame_size(interface.mtu);
    let wanted = settings.slots(interface.speed_mbits, interface.rx_queues);
    let slots = affordable_slots(wanted, frame_size, interface.rx_queues * ports, available_memory());
    let mut sockets = Vec::new();
    for queue in 0..interface.rx_queues {
        let plan = Plan {
            ifindex: interface.index,
            queue,
            slots,
            frame_size,
            huge_pages: settings.huge_pages,
            busy_poll_micros: settings.busy_poll_micros,
        };
        let socket = Socket::open(&plan).map_err(|(step, error)| refused(format!("{step} for {name} queue {queue}"), &error))?;
        program
            .set_socket(queue, socket.as_fd())
            .map_err(|error| refused(format!("{} for {name} queue {queue}", error.doing), &error.source))?;
        sockets.push(socket);
    }
    let promiscuous =
        syscall::promiscuous(interface.index).map_err(|error| refused(format!("switch {name} to promiscuous mode"), &error))?;

    let missed_before = interface.rx_missed();
    let hook = attach(&mut program, interface)?;
    let zero_copy = sockets.iter().all(|socket| socket.zero_copy);
    let port =
        Arc::new(Port { interface: interface.clone(), program: Mutex::new(program), missed_before, _promiscuous: promiscuous });
    let sources = (0..)
        .zip(sockets)
        .map(|(queue, socket)| AfXdp {
            description: describe(name, queue, hook, &socket, wanted, settings.busy_poll_micros),
            socket,
            queue,
            port: Arc::clone(&port),
            stopped: false,
        })
        .collect();
    Ok((sources, hook, zero_copy))
}

/// Octets of a frame for an interface of this MTU.
pub(crate) fn frame_size(mtu: u32) -> u32 {
    if mtu <= 1700 { 2048 } else { 4096 }
}

/// Octets of a packet that fit into its first frame, behind the headroom that the kernel keeps there (`XDP_PACKET_HEADROOM`).
pub(crate) fn first_buffer(frame_size: u32) -> u32 {
    frame_size - 256
}

impl Capture for AfXdp {
    fn wait(&mut self, timeout: Duration) -> Result<(), CaptureError> {
        if self.stopped {
            return Ok(());
        }
        syscall::wait_readable(self.socket.as_fd(), timeout).map_err(|error| CaptureError {
            kind: if error.raw_os_error() == Some(libc::ENETDOWN) { CaptureErrorKind::Gone } else { CaptureErrorKind::Failed },
            doing: format!("wait for packets on {}", self.port.interface.name),
            cause: error.to_string(),
            remedy: "see whether the interface still exists: ip link".into(),
        })
    }

    fn drain(&mut self, now: Timestamp, max: usize, each: impl FnMut(&[Frame<'_>])) -> Result<Drained, CaptureError> {
        let Socket { receive, fill, umem, .. } = &mut self.socket;
        let packets = ring::drain(receive, fill, umem, max, now, each).map_err(|bad| CaptureError {
            kind: CaptureErrorKind::Failed,
            doing: format!("read the receive ring of {} queue {}", self.port.interface.name, self.queue),
            cause: format!("the kernel names {} octets at {}, which is no frame of ours", bad.len, bad.address),
            remedy: "this is a fault of kernel or driver; use mode = \"packet\" until it is mended".into(),
        })?;
        // With busy polling nobody but this call runs the driver's receive loop.
        if packets > 0 && (fill.needs_wakeup() || self.socket.busy_poll_micros > 0) {
            syscall::wake_receive(self.socket.as_fd());
        }
        Ok(if packets == 0 && self.stopped && max > 0 { Drained::Ended } else { Drained::Frames(packets) })
    }

    fn stop(&mut self) -> Result<(), CaptureError> {
        self.port.stop()?;
        self.stopped = true;
        Ok(())
    }

    fn losses(&mut self) -> Result<Losses, CaptureError> {
        let name = &self.port.interface.name;
        let socket = syscall::statistics(self.socket.as_fd())
            .map_err(|error| refused(format!("read the drop counters of {name} queue {}", self.queue), &error))?;
        let mut counted = self.port.counters(self.queue)?;
        let mut missed = 0;
        // The first queue's worker also answers for what belongs to no queue.
        if self.queue == 0 {
            counted = counted.plus(&self.port.counters(self.port.interface.rx_queues)?);
            missed = self.port.interface.rx_missed().saturating_sub(self.port.missed_before);
        }
        Ok(Losses {
            wire: counted.packets + missed,
            dropped: Dropped {
                ring_starved: socket.rx_dropped,
                ring_full: socket.rx_ring_full,
                no_socket: counted.no_socket,
                shed: counted.shed,
                interface: missed,
                ..Dropped::default()
            },
        })
    }

    fn sample(&mut self, one_in: u32) -> Result<bool, CaptureError> {
        let sampled = self.port.program().sample(self.queue, one_in);
        sampled.map_err(|error| refused(error.doing.to_owned(), &error.source)).map(|()| true)
    }

    fn stamps(&self) -> bool {
        false
    }

    fn describe(&self) -> &str {
        &self.description
    }
}

impl Port {
    fn program(&self) -> MutexGuard<'_, Program> {
        // The program's state is whole between any two of its calls, so a panic elsewhere did not harm it.
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counters(&self, queue: u32) -> Result<spanwatch_ebpf::Counters, CaptureError> {
        self.program().counters(queue).map_err(|error| refused(error.doing.to_owned(), &error.source))
    }

    /// Detaches the program and waits, at most 50 ms, until the packets that were under way have been counted.
    fn stop(&self) -> Result<(), CaptureError> {
        self.program().detach();
        let seen = || -> Result<u64, CaptureError> {
            (0..=self.interface.rx_queues).map(|queue| Ok(self.counters(queue)?.packets)).sum()
        };
        let mut before = seen()?;
        for _ in 0..25 {
            std::thread::sleep(Duration::from_millis(2));
            let after = seen()?;
            if after == before {
                break;
            }
            before = after;
        }
        Ok(())
    }
}

/// Driver first, then generic. A program of somebody else on the interface is not pushed aside.
fn attach(program: &mut Program, interface: &Interface) -> Result<Hook, CaptureError> {
    let name = &interface.name;
    let native = match program.attach(interface.index, Hook::Native) {
        Ok(()) => return Ok(Hook::Native),
        Err(error) => error.source,
    };
    if matches!(native.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
        return Err(CaptureError {
            kind: CaptureErrorKind::Busy,
            doing: format!("attach the XDP program to {name}"),
            cause: "another XDP program is attached there".into(),
            remedy: format!("find it with `ip link show {name}` and stop its owner, or use mode = \"packet\""),
        });
    }
    program.attach(interface.index, Hook::Generic).map_err(|generic| {
        let mut error = refused(format!("attach the XDP program to {name}"), &generic.source);
        error.cause = format!("in the driver: {native}; generically: {}", generic.source);
        error
    })?;
    Ok(Hook::Generic)
}

/// Turns an errno into a sentence with advice.
fn refused(doing: String, error: &std::io::Error) -> CaptureError {
    let (kind, remedy) = match error.raw_os_error() {
        _ if error.kind() == std::io::ErrorKind::PermissionDenied => (
            CaptureErrorKind::NoPermission,
            "run as root, or grant the capabilities NET_ADMIN, NET_RAW, BPF and IPC_LOCK (systemd: AmbientCapabilities=)",
        ),
        _ if socket::is_lack_of_memory(error) => (
            CaptureErrorKind::NoMemory,
            "make stall_millis or ring_slots smaller, or raise the limit of locked memory (systemd: LimitMEMLOCK=infinity, or the capability IPC_LOCK)",
        ),
        Some(libc::EBUSY) => {
            (CaptureErrorKind::Busy, "another program has an AF_XDP socket on this queue; stop it, or use mode = \"packet\"")
        }
        Some(libc::EAFNOSUPPORT) => {
            (CaptureErrorKind::Unsupported, "this kernel is built without AF_XDP (CONFIG_XDP_SOCKETS); use mode = \"packet\"")
        }
        Some(libc::ERANGE) => (
            CaptureErrorKind::Unsupported,
            "the MTU is too large for XDP on this driver or kernel; lower it, or use mode = \"packet\"",
        ),
        _ => (CaptureErrorKind::Unsupported, "use mode = \"packet\", which works on every interface"),
    };
    CaptureError { kind, doing, cause: error.to_string(), remedy: remedy.into() }
}

/// As many slots as were asked for, or the largest power of two whose frames, over all queues, take no more than a quarter of the
/// available memory; at least 64.
fn affordable_slots(wanted: u32, frame_size: u32, queues: u32, available: u64) -> u32 {
    let per_slot = u64::from(frame_size) * u64::from(queues.max(1));
    let mut slots = wanted;
    while slots > 64 && u64::from(slots) * per_slot > available / 4 {
        slots /= 2;
    }
    slots
}

/// `MemAvailable` in octets; without it, no limit.
fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

fn describe(name: &str, queue: u32, hook: Hook, socket: &Socket, wanted: u32, busy_poll_wanted: u32) -> String {
    let hook = match hook {
        Hook::Native => "native",
        Hook::Generic => "generic",
    };
    let copy = if socket.zero_copy { "zero-copy" } else { "copy" };
    let fewer = if socket.slots < wanted { format!(" (of {wanted} asked for; memory allows no more)") } else { String::new() };
    let jumbo = if socket.multi_buffer { ", several buffers per packet" } else { "" };
    let busy = match (busy_poll_wanted, socket.busy_poll_micros) {
        (0, _) => String::new(),
        (_, 0) => ", no busy polling (the kernel refuses it)".into(),
        (_, micros) => format!(", busy polling {micros} µs"),
    };
    format!("af_xdp {hook} {copy} on {name} queue {queue}, {} slots{fewer}, {}{jumbo}{busy}", socket.slots, socket.pages().name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_shrink_to_a_quarter_of_the_available_memory() {
        // 32768 slots × 2048 octets × 4 queues = 256 MiB, a quarter of 1 GiB.
        assert_eq!(affordable_slots(32_768, 2048, 4, 1 << 30), 32_768);
        assert_eq!(affordable_slots(32_768, 2048, 4, (1 << 30) - 1), 16_384);
        assert_eq!(affordable_slots(32_768, 2048, 64, 1), 64);
    }
}
