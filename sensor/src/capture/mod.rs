//! Where packets come from.
//!
//! ```text
//! NIC ▷ XDP program ▷ AF_XDP socket, one per RX queue ▷ af_xdp::AfXdp ┐
//! NIC ▷ AF_PACKET ring ▷ libpcap ▷ packet::Packet                     ├▷ Frame ▷ decode
//! ```
//!
//! [`open_port`] takes an interface of the settings, falls down the chain that they allow (zero-copy, copy, generic XDP, libpcap) and says
//! where it landed. It gives one [`Source`] per worker thread.
//!
//! # Nothing gets lost silently
//!
//! A capture counts what the port received (`wire`) apart from what it hands out, so that the sensor can prove
//! `wire = delivered + dropped`. The equation holds exactly after [`Capture::stop`] and draining to [`Drained::Ended`]; while
//! traffic flows, frames that wait in a ring are in `wire` but not yet in `delivered`.
//!
//! | capture | `wire` is | `dropped` is |
//! | --- | --- | --- |
//! | AF_XDP | packets the XDP program saw, plus `rx_missed_errors` of the port since attach | the program's own counts, and `XDP_STATISTICS` of the socket |
//! | libpcap | `ps_recv` (which contains the drops) plus `ps_ifdrop` | `ps_drop`, `ps_ifdrop` |
//! | file | packets in the file plus what is dropped | `isb_ifdrop`, `isb_osdrop` of its interface statistics |
//!
//! On veth, `wire` of AF_XDP moves in step with `rx_packets` of the port (`ip -s link`): both count in the port's NAPI loop.
//! A packet that was received before the program was attached, or after it was detached, is in `rx_packets` only.
//! Sockets are made first, then put into the program's map, then the program is attached, so that no packet meets an
//! attached program without a socket.

pub mod af_xdp;
pub mod file;
pub mod interface;
pub mod packet;
pub mod settings;

use std::fmt;
use std::time::Duration;

use spanwatch_common::ledger;
use spanwatch_common::time::Timestamp;
use spanwatch_ebpf::Hook;

use interface::Interface;
use settings::{Mode, Settings};

/// One captured frame, lent for the length of one call.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The frame from its first header on (see `link`), without FCS; may be cut short.
    pub bytes: &'a [u8],
    /// Octets it had on the wire (without FCS); at least `bytes.len()`.
    pub wire_len: u32,
    /// When it was captured.
    pub at: Timestamp,
    /// What its first header is.
    pub link: Link,
    /// Number of the interface within a capture file, from 1; 0 where there is only one.
    pub interface: u32,
}

impl<'a> Frame<'a> {
    /// No frame: what stands in the unused places of a batch.
    pub const NONE: Self = Self::ethernet(&[], 0, Timestamp::NONE);

    /// An Ethernet frame of a capture with one interface.
    pub const fn ethernet(bytes: &'a [u8], wire_len: u32, at: Timestamp) -> Self {
        Self { bytes, wire_len, at, link: Link::Ethernet, interface: 0 }
    }

    /// The octets to count for it: its length on the wire, as far as that is to be believed.
    #[inline]
    pub fn octets(&self) -> u32 {
        self.wire_len.min(OCTETS_MAX)
    }
}

/// Most frames that are handed out at a time.
pub const BATCH: usize = 64;

/// Longest frame that is believed; a length beyond it is a damaged file's.
const OCTETS_MAX: u32 = 1 << 18;

/// What stands at the beginning of a frame: the link types of the pcap formats that are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Link {
    /// An Ethernet header: DLT 1, and everything live.
    #[default]
    Ethernet,
    /// An IP header of either version: DLT_RAW, DLT_IPV4, DLT_IPV6.
    Raw,
    /// Four octets of address family, then IP: DLT_NULL and DLT_LOOP.
    Null,
    /// Linux cooked capture: 16 octets, then by ethertype. DLT_LINUX_SLL.
    Sll,
    /// Its version 2: 20 octets. DLT_LINUX_SLL2.
    Sll2,
    /// Something else (802.11, PPP, USB…): counted, never read.
    Unread,
}

/// What a call of [`Capture::drain`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// So many frames were handed out; zero when none wait.
    Frames(usize),
    /// Nothing waits and nothing more will come: the file is at its end, or the capture was stopped.
    Ended,
}

/// What a capture lost, and out of how much. Cumulative since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Packets that the port received while the sensor listened.
    pub wire: u64,
    /// Those of them that never reached the sensor, by reason.
    pub dropped: ledger::Dropped,
}

/// A source of frames. One worker thread owns it.
pub trait Capture {
    /// Waits until frames are there or the timeout passes; may return early.
    ///
    /// # Errors
    /// The interface went away, or the kernel refuses to wait.
    fn wait(&mut self, timeout: Duration) -> Result<(), CaptureError>;

    /// Hands at most `max` waiting frames to `each`, up to [`BATCH`] at a time, and gives their buffers back to the kernel as the call
    /// returns.
    ///
    /// `now` becomes the time of the frames that carry none of their own.
    ///
    /// # Errors
    /// The interface went away, or the kernel broke its word about the rings.
    fn drain(&mut self, now: Timestamp, max: usize, each: impl FnMut(&[Frame<'_>])) -> Result<Drained, CaptureError>;

    /// Takes in no more packets. Those already taken in are still handed out by [`Capture::drain`], then it says
    /// [`Drained::Ended`] and the losses are final. Stopping twice is stopping once.
    ///
    /// # Errors
    /// The kernel refuses; the capture goes on.
    fn stop(&mut self) -> Result<(), CaptureError>;

    /// What was lost so far. Costs a few system calls: ask once a second, not once a batch.
    ///
    /// # Errors
    /// The kernel does not give its counters.
    fn losses(&mut self) -> Result<Losses, CaptureError>;

    /// From now on takes in one packet in `one_in` only, chosen at random, or fewer where the settings say so; those left out are counted as
    /// `dropped.shed`. False when this capture cannot choose. Packets that wait in a ring were chosen at the rate before.
    ///
    /// # Errors
    /// The kernel refuses; the rate stays.
    fn sample(&mut self, one_in: u32) -> Result<bool, CaptureError> {
        let _ = one_in;
        Ok(false)
    }

    /// Whether frames carry a time of their own; otherwise theirs is the `now` of [`drain`](Self::drain).
    fn stamps(&self) -> bool {
        true
    }

    /// How it captures, for people, e.g. `af_xdp native copy on mon0 queue 0, 32768 slots, huge pages`.
    fn describe(&self) -> &str;
}

/// The kind of a [`CaptureError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureErrorKind {
    /// There is no interface of this name.
    UnknownInterface,
    /// Capabilities are missing.
    NoPermission,
    /// The kernel, the driver or the interface cannot do this.
    Unsupported,
    /// The memory for rings is not to be had.
    NoMemory,
    /// Another program holds what is needed.
    Busy,
    /// The interface was there and went away.
    Gone,
    /// Everything else.
    Failed,
}

/// Something around a capture failed: what was tried, why it did not work, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureError {
    /// The kind, for deciding.
    pub kind: CaptureErrorKind,
    /// The operation and its object: `attach the XDP program to eno2`.
    pub doing: String,
    /// Why it did not work.
    pub cause: String,
    /// What to do about it; empty when there is no advice.
    pub remedy: String,
}

impl std::error::Error for CaptureError {}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// One of the captures of a live interface.
#[derive(Debug)]
pub enum Source {
    /// One RX queue through AF_XDP.
    AfXdp(Box<af_xdp::AfXdp>),
    /// The whole interface through libpcap.
    Packet(Box<packet::Packet>),
}

/// The way of capturing that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InForce {
    /// AF_XDP; the card writes packets into the sensor's memory.
    AfXdpZeroCopy,
    /// AF_XDP; the driver copies packets into the sensor's memory.
    AfXdpCopy,
    /// AF_XDP on generic XDP, for drivers that have none.
    AfXdpGeneric,
    /// libpcap.
    Packet,
}

/// An opened capture.
#[derive(Debug)]
pub struct Opened {
    /// The interface, as it was found.
    pub interface: Interface,
    /// One for each worker thread.
    pub sources: Vec<Source>,
    /// Where the chain ended.
    pub in_force: InForce,
    /// Why there: one sentence for the log.
    pub why: String,
    /// What distorts or endangers the capture on this interface, with remedies: a log line each.
    pub warnings: Vec<String>,
}

impl Opened {
    /// Whether a worker may see one direction only of a conversation: the port is a fibre of a TAP, or its queues do not keep the
    /// directions together.
    pub fn is_one_sided(&self, settings: &Settings) -> bool {
        settings.tap || self.sources.len() > 1 && !self.interface.spread.keeps_together()
    }
}

/// Opens the first interface of the settings; see [`open_port`].
///
/// # Errors
/// As [`open_port`].
pub fn open(settings: &Settings) -> Result<Opened, CaptureError> {
    open_port(settings.ports()[0], settings)
}

/// Opens the interface called `name`, one of those in the settings, in the best way that the settings, the driver and the kernel allow.
///
/// # Errors
/// There is no such interface, it is down, or nothing that `mode` allows works; says what to do.
pub fn open_port(name: &str, settings: &Settings) -> Result<Opened, CaptureError> {
    let interface = Interface::find(name)?;
    interface.require_up()?;
    let ports = u32::try_from(settings.ports().len()).unwrap_or(1);
    let refused = match settings.mode {
        Mode::Packet => None,
        Mode::Auto | Mode::AfXdp => match af_xdp::open(&interface, settings, ports) {
            Ok((sources, hook, zero_copy)) => {
                let in_force = match hook {
                    Hook::Native if zero_copy => InForce::AfXdpZeroCopy,
                    Hook::Native => InForce::AfXdpCopy,
                    Hook::Generic => InForce::AfXdpGeneric,
                };
                return Ok(Opened {
                    sources: sources.into_iter().map(|source| Source::AfXdp(Box::new(source))).collect(),
                    in_force,
                    why: in_force.why(&interface.driver),
                    warnings: interface.warnings(in_force),
                    interface,
                });
            }
            Err(error) if settings.mode == Mode::AfXdp => return Err(error),
            Err(error) => Some(error),
        },
    };
    let source = match packet::Packet::open(&interface, settings) {
        Ok(source) => source,
        // The sentence about AF_XDP names every capability that is needed, that about libpcap only one.
        Err(error) if error.kind == CaptureErrorKind::NoPermission => return Err(refused.unwrap_or(error)),
        Err(error) => return Err(error),
    };
    Ok(Opened {
        sources: vec![Source::Packet(Box::new(source))],
        in_force: InForce::Packet,
        why: refused.map_or_else(|| InForce::Packet.why(""), |error| format!("AF_XDP does not work here: {error}")),
        warnings: interface.warnings(InForce::Packet),
        interface,
    })
}

impl InForce {
    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::AfXdpZeroCopy => "af_xdp_zero_copy",
            Self::AfXdpCopy => "af_xdp_copy",
            Self::AfXdpGeneric => "af_xdp_generic",
            Self::Packet => "packet",
        }
    }

    fn why(self, driver: &str) -> String {
        let driver = if driver.is_empty() { "the driver".into() } else { format!("the driver {driver}") };
        match self {
            Self::AfXdpZeroCopy => format!("{driver} has XDP and zero-copy"),
            Self::AfXdpCopy => format!("{driver} has XDP, but gives no zero-copy here"),
            Self::AfXdpGeneric => format!("{driver} has no XDP; the network stack runs the program for it"),
            Self::Packet => "mode = \"packet\" asks for libpcap".into(),
        }
    }
}

impl Capture for Source {
    fn wait(&mut self, timeout: Duration) -> Result<(), CaptureError> {
        match self {
            Self::AfXdp(source) => source.wait(timeout),
            Self::Packet(source) => source.wait(timeout),
        }
    }

    fn drain(&mut self, now: Timestamp, max: usize, each: impl FnMut(&[Frame<'_>])) -> Result<Drained, CaptureError> {
        match self {
            Self::AfXdp(source) => source.drain(now, max, each),
            Self::Packet(source) => source.drain(now, max, each),
        }
    }

    fn stop(&mut self) -> Result<(), CaptureError> {
        match self {
            Self::AfXdp(source) => source.stop(),
            Self::Packet(source) => source.stop(),
        }
    }

    fn losses(&mut self) -> Result<Losses, CaptureError> {
        match self {
            Self::AfXdp(source) => source.losses(),
            Self::Packet(source) => source.losses(),
        }
    }

    fn sample(&mut self, one_in: u32) -> Result<bool, CaptureError> {
        match self {
            Self::AfXdp(source) => source.sample(one_in),
            Self::Packet(source) => source.sample(one_in),
        }
    }

    fn stamps(&self) -> bool {
        match self {
            Self::AfXdp(source) => source.stamps(),
            Self::Packet(source) => source.stamps(),
        }
    }

    fn describe(&self) -> &str {
        match self {
            Self::AfXdp(source) => source.describe(),
            Self::Packet(source) => source.describe(),
        }
    }
}
