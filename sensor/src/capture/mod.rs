//! Where packets come from.
//!
//! ```text
//! NIC ▷ XDP program ▷ AF_XDP socket, one per RX queue ▷ af_xdp::AfXdp ┐
//! NIC ▷ AF_PACKET ring ▷ libpcap ▷ packet::Packet                     ├▷ Frame ▷ decode
//! ```
//!
//! [`open`] takes the settings, falls down the chain that they allow (zero-copy, copy, generic XDP, libpcap) and says
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
//!
//! On veth, `wire` of AF_XDP moves in step with `rx_packets` of the port (`ip -s link`): both count in the port's NAPI loop.
//! A packet that was received before the program was attached, or after it was detached, is in `rx_packets` only.
//! Sockets are made first, then put into the program's map, then the program is attached, so that no packet meets an
//! attached program without a socket.

pub mod file;
pub mod settings;

use std::fmt;
use std::time::Duration;

use spanwatch_common::ledger;
use spanwatch_common::time::Timestamp;

/// One captured frame, lent for the length of one call.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The frame from its destination MAC on, without FCS; may be cut short.
    pub bytes: &'a [u8],
    /// Octets it had on the wire (without FCS); at least `bytes.len()`.
    pub wire_len: u32,
    /// When it was captured.
    pub at: Timestamp,
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

    /// Hands at most `max` waiting frames to `each` and gives each buffer back to the kernel as the call returns.
    ///
    /// `now` becomes the time of the frames that carry none of their own.
    ///
    /// # Errors
    /// The interface went away, or the kernel broke its word about the rings.
    fn drain(&mut self, now: Timestamp, max: usize, each: impl FnMut(&Frame<'_>)) -> Result<Drained, CaptureError>;

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
