//! The XDP program of the sensor, and its life: open and load ([`Program::load`]), then attach ([`Program::attach`]).
//!
//! The program counts each packet by RX queue and redirects it to the AF_XDP socket of that queue; `bpf/capture.bpf.c` fits on
//! a screen. It is attached by a bpf_link, which the kernel detaches when this process ends, however it ends.
//!
//! Needs Linux 5.9 (bpf_link for XDP), from 5.18 on also at jumbo MTUs; and the capabilities BPF and NET_ADMIN.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, OpenObject, PrintLevel};

/// What libbpf-cargo makes of `bpf/capture.bpf.c`: the object, its maps and the twins of the C structs.
#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    unnameable_types,
    unused_qualifications,
    elided_lifetimes_in_paths,
    single_use_lifetimes,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    reason = "generated"
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/capture.skel.rs"));
}

use skeleton::{CaptureSkel, CaptureSkelBuilder, types};

/// Five counters of eight octets; [`Counters::from_bytes`] reads them in the order of `capture.h`.
const COUNTERS_SIZE: usize = 40;
const _: () = assert!(size_of::<types::queue_counters>() == COUNTERS_SIZE);
const _: () = assert!(size_of::<types::capture_config>() == 12);

/// Constants of the program, fixed when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// RX queues of the interface, at least 1.
    pub queues: u32,
    /// Look at one packet in so many, chosen at random; 1 is every packet. [`Program::sample`] can only ask for fewer.
    pub keep_one_in: u32,
    /// Leave packets that no socket takes to the host's network stack, instead of dropping them.
    pub pass_unclaimed: bool,
}

/// Where in the kernel the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// In the network driver.
    Native,
    /// In the network stack, for drivers without XDP; costs an skb per packet.
    Generic,
}

/// What the program counted on one RX queue; `packets = redirected + no_socket + shed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets seen.
    pub packets: u64,
    /// Their octets, without FCS.
    pub bytes: u64,
    /// Packets sent to the queue's socket, whether or not it had room.
    pub redirected: u64,
    /// Packets on a queue without a socket.
    pub no_socket: u64,
    /// Packets left out by sampling.
    pub shed: u64,
}

/// An operation on the program that the kernel refused.
#[derive(Debug)]
pub struct Error {
    /// What was tried, e.g. "load the XDP program".
    pub doing: &'static str,
    /// Why it did not work.
    pub source: io::Error,
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.source)
    }
}

/// The loaded program. Dropping it detaches it.
#[derive(Debug)]
pub struct Program {
    program: OwnedFd,
    sockets: MapHandle,
    counters: MapHandle,
    sampling: MapHandle,
    queues: u32,
    frags: bool,
    link: Option<OwnedFd>,
}

impl Program {
    /// Opens the object, sets its constants and map sizes, and hands it to the kernel.
    ///
    /// # Errors
    /// Capabilities are missing, or the kernel is too old.
    pub fn load(config: &Config) -> Result<Self, Error> {
        // Without this libbpf writes its own lines to stderr, between those of the sensor.
        libbpf_rs::set_print(None::<(PrintLevel, fn(PrintLevel, String))>);
        match Self::load_variant(config, true) {
            // A kernel before 5.18 does not know programs for packets of several buffers.
            Err(error) if error.source.kind() != io::ErrorKind::PermissionDenied => Self::load_variant(config, false),
            loaded => loaded,
        }
    }

    fn load_variant(config: &Config, frags: bool) -> Result<Self, Error> {
        let failed = |error| Error { doing: "load the XDP program", source: into_io(error) };
        let mut storage = MaybeUninit::uninit();
        let skeleton = load_skeleton(config, frags, &mut storage).map_err(failed)?;
        let program = if frags { &skeleton.progs.capture_frags } else { &skeleton.progs.capture_linear };
        let program =
            program.as_fd().try_clone_to_owned().map_err(|source| Error { doing: "keep the loaded XDP program", source })?;
        Ok(Self {
            program,
            sockets: MapHandle::try_from(&skeleton.maps.sockets).map_err(failed)?,
            counters: MapHandle::try_from(&skeleton.maps.counters).map_err(failed)?,
            sampling: MapHandle::try_from(&skeleton.maps.sampling).map_err(failed)?,
            queues: config.queues,
            frags,
            link: None,
        })
    }

    /// Whether packets of several buffers (jumbo MTUs) are accepted.
    pub fn handles_frags(&self) -> bool {
        self.frags
    }

    /// Gives the packets of `queue` to an AF_XDP socket that is bound to that queue.
    ///
    /// # Errors
    /// The queue is out of range, or `socket` is not a bound AF_XDP socket.
    pub fn set_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let failed = |error| Error { doing: "put the AF_XDP socket into the program's map", source: into_io(error) };
        self.sockets.update(&queue.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY).map_err(failed)
    }

    /// From now on looks at one packet of `queue` in `one_in`, chosen at random, or at [`Config::keep_one_in`] where that is fewer. Takes
    /// effect with the next packet; nothing is loaded or attached anew.
    ///
    /// # Errors
    /// The queue is out of range.
    pub fn sample(&self, queue: u32, one_in: u32) -> Result<(), Error> {
        set_sampling(&self.sampling, queue, one_in)
    }

    /// Attaches the program to an interface by a bpf_link.
    ///
    /// # Errors
    /// The driver has no XDP (`EOPNOTSUPP`), the MTU is too large for it (`ERANGE`), or another program is attached (`EBUSY`,
    /// `EEXIST`).
    #[expect(unsafe_code, reason = "libbpf-rs attaches in the driver's default mode only; the mode is ours to choose")]
    pub fn attach(&mut self, ifindex: u32, hook: Hook) -> Result<(), Error> {
        let failed = |source| Error { doing: "attach the XDP program", source };
        let ifindex = i32::try_from(ifindex).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let options = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
            flags: match hook {
                Hook::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
                Hook::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
            },
            ..Default::default()
        };
        // SAFETY: `options` lives across the call, and its `sz` is its own size, set above; the call keeps no reference.
        let fd =
            unsafe { libbpf_sys::bpf_link_create(self.program.as_raw_fd(), ifindex, libbpf_sys::BPF_XDP, &raw const options) };
        if fd < 0 {
            return Err(failed(io::Error::from_raw_os_error(-fd)));
        }
        // SAFETY: `fd` is not negative, checked above, so bpf_link_create has just made it and nobody else owns it.
        self.link = Some(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(())
    }

    /// Detaches the program; the counters stay readable. When it returns, no packet meets the program any more, save those
    /// that the driver is working on at this moment.
    pub fn detach(&mut self) {
        self.link = None;
    }

    /// What was counted on `queue` since loading; `queues` (one past the last) stands for all queues beyond.
    ///
    /// # Errors
    /// The queue is out of range.
    pub fn counters(&self, queue: u32) -> Result<Counters, Error> {
        read_counters(&self.counters, queue)
    }

    /// Queues the program was loaded for.
    pub fn queues(&self) -> u32 {
        self.queues
    }
}

impl Counters {
    /// The sum with another queue's counters.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            redirected: self.redirected + other.redirected,
            no_socket: self.no_socket + other.no_socket,
            shed: self.shed + other.shed,
        }
    }

    fn from_bytes(bytes: &[u8; COUNTERS_SIZE]) -> Self {
        let mut values = [0; COUNTERS_SIZE / 8];
        for (value, octets) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *value = u64::from_ne_bytes(*octets);
        }
        let [packets, bytes, redirected, no_socket, shed] = values;
        Self { packets, bytes, redirected, no_socket, shed }
    }
}

fn load_skeleton<'obj>(
    config: &Config,
    frags: bool,
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> libbpf_rs::Result<CaptureSkel<'obj>> {
    let mut open = CaptureSkelBuilder::default().open(storage)?;
    if let Some(rodata) = &mut open.maps.rodata_data {
        rodata.config = types::capture_config {
            keep_one_in: config.keep_one_in,
            pass_unclaimed: u32::from(config.pass_unclaimed),
            queues: config.queues,
        };
    }
    open.maps.sockets.set_max_entries(config.queues)?;
    open.maps.counters.set_max_entries(config.queues + 1)?;
    open.maps.sampling.set_max_entries(config.queues + 1)?;
    open.progs.capture_frags.set_autoload(frags);
    open.progs.capture_linear.set_autoload(!frags);
    open.load()
}

fn set_sampling(map: &impl MapCore, queue: u32, one_in: u32) -> Result<(), Error> {
    let failed = |error| Error { doing: "set the sampling rate of the XDP program", source: into_io(error) };
    map.update(&queue.to_ne_bytes(), &one_in.to_ne_bytes(), MapFlags::ANY).map_err(failed)
}

fn read_counters(map: &impl MapCore, queue: u32) -> Result<Counters, Error> {
    let failed = |source| Error { doing: "read the counters of the XDP program", source };
    let values = map.lookup_percpu(&queue.to_ne_bytes(), MapFlags::ANY).map_err(|error| failed(into_io(error)))?;
    let values =
        values.ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no queue {queue}"))))?;
    Ok(values
        .iter()
        .filter_map(|cpu| cpu.first_chunk())
        .map(Counters::from_bytes)
        .fold(Counters::default(), |sum, cpu| sum.plus(&cpu)))
}

fn into_io(error: libbpf_rs::Error) -> io::Error {
    let kind = match error.kind() {
        ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
        ErrorKind::NotFound => io::ErrorKind::NotFound,
        ErrorKind::AlreadyExists => io::ErrorKind::AlreadyExists,
        ErrorKind::OutOfMemory => io::ErrorKind::OutOfMemory,
        ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{error:#}"))
}

#[cfg(test)]
mod tests;
