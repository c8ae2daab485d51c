//! libpcap: the whole interface through one AF_PACKET ring. Works everywhere, at about half the rate of AF_XDP.
//!
//! The kernel collects packets in blocks and hands over a block when it is full or `wakeup_millis` old (immediate mode is off:
//! it would cost a system call per packet). libpcap puts VLAN tags back where the card took them out. Packets carry the
//! kernel's time stamp.
//!
//! `ps_recv` counts every packet that came to the socket, those dropped for want of room (`ps_drop`) included; `ps_ifdrop` are drops
//! of the card, which never came to the socket. All three are 32 bits wide and wrap.

use std::fmt;
use std::os::fd::AsFd;
use std::time::Duration;

use pcap::{Active, Linktype, Precision};
use spanwatch_common::ledger::Dropped;
use spanwatch_common::time::Timestamp;

use super::af_xdp::syscall;
use super::interface::Interface;
use super::settings::Settings;
use super::{BATCH, Capture, CaptureError, CaptureErrorKind, Drained, Frame, Losses};

/// Packets of one interface through libpcap.
pub struct Packet {
    capture: pcap::Capture<Active>,
    name: String,
    description: String,
    received: Wrapping,
    dropped: Wrapping,
    missed: Wrapping,
    delivered: u64,
    /// After a stop: for how many milliseconds more the kernel's last block may be waited for.
    ending: Option<u32>,
    wakeup_millis: u32,
    waiting: Waiting,
}

/// Packets of a batch: libpcap lends each for one call only, so they are copied.
#[derive(Default)]
struct Waiting {
    octets: Vec<u8>,
    /// Where each ends in `octets`, its length on the wire, its time.
    packets: Vec<(usize, u32, Timestamp)>,
}

impl Waiting {
    fn add(&mut self, octets: &[u8], wire_len: u32, at: Timestamp) {
        self.octets.extend_from_slice(octets);
        self.packets.push((self.octets.len(), wire_len, at));
    }

    fn is_full(&self) -> bool {
        self.packets.len() == BATCH
    }

    /// Hands out what waits, if anything does, as one batch.
    fn hand_out(&mut self, each: &mut impl FnMut(&[Frame<'_>])) {
        if self.packets.is_empty() {
            return;
        }
        let mut batch = [Frame::NONE; BATCH];
        let mut start = 0;
        for (frame, &(end, wire_len, at)) in batch.iter_mut().zip(&self.packets) {
            *frame = Frame::ethernet(&self.octets[start..end], wire_len, at);
            start = end;
        }
        each(&batch[..self.packets.len()]);
        self.octets.clear();
        self.packets.clear();
    }
}

/// A 32-bit counter that wraps, read often enough to be followed.
#[derive(Clone, Copy, Debug, Default)]
struct Wrapping {
    last: u32,
    total: u64,
}

impl Wrapping {
    fn read(&mut self, value: u32) -> u64 {
        self.total += u64::from(value.wrapping_sub(self.last));
        self.last = value;
        self.total
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packet").field("description", &self.description).field("delivered", &self.delivered).finish()
    }
}

impl Packet {
    /// Opens the interface, promiscuous.
    pub(super) fn open(interface: &Interface, settings: &Settings) -> Result<Self, CaptureError> {
        let name = &interface.name;
        let failed = |error: pcap::Error| refused(name, &error);
        let capture = pcap::Capture::from_device(name.as_str())
            .map_err(failed)?
            .promisc(true)
            .immediate_mode(false)
            .snaplen(settings.snap_len_bytes.cast_signed())
            .buffer_size(settings.buffer_bytes.cast_signed())
            .timeout(i32::try_from(settings.wakeup_millis).unwrap_or(1000))
            .precision(Precision::Nano)
            .open()
            .map_err(failed)?
            .setnonblock()
            .map_err(failed)?;
        if capture.get_datalink() != Linktype::ETHERNET {
            return Err(CaptureError {
                kind: CaptureErrorKind::Unsupported,
                doing: format!("capture from {name} through libpcap"),
                cause: "its frames are not Ethernet".into(),
                remedy: "name the Ethernet interface that the mirrored traffic arrives on".into(),
            });
        }
        // Where the kernel cannot do that (before 4.20), packets that the host sends on the port are captured as well; they
        // are counted on both sides of the account.
        let _ = syscall::ignore_outgoing(capture.as_fd());
        Ok(Self {
            capture,
            name: name.clone(),
            description: format!("libpcap on {name}, {} MiB buffer", settings.buffer_bytes >> 20),
            received: Wrapping::default(),
            dropped: Wrapping::default(),
            missed: Wrapping::default(),
            delivered: 0,
            ending: None,
            wakeup_millis: settings.wakeup_millis,
            waiting: Waiting::default(),
        })
    }
}

impl Capture for Packet {
    fn wait(&mut self, timeout: Duration) -> Result<(), CaptureError> {
        let Err(error) = syscall::wait_readable(self.capture.as_fd(), timeout) else { return Ok(()) };
        if error.raw_os_error() == Some(libc::ENETDOWN) && Interface::names().contains(&self.name) {
            // The link was taken down and the socket comes back with it. Polling again at once would only spin.
            std::thread::sleep(timeout);
            return Ok(());
        }
        Err(CaptureError {
            kind: CaptureErrorKind::Gone,
            doing: format!("wait for packets on {}", self.name),
            cause: error.to_string(),
            remedy: "see whether the interface still exists: ip link".into(),
        })
    }

    fn drain(&mut self, _now: Timestamp, max: usize, mut each: impl FnMut(&[Frame<'_>])) -> Result<Drained, CaptureError> {
        let waiting = &mut self.waiting;
        let handed = self.capture.dispatch(Some(max), |packet| {
            let at = Timestamp::from_secs(packet.header.ts.tv_sec).plus(nanos(packet.header.ts.tv_usec));
            waiting.add(packet.data, packet.header.len, at);
            if waiting.is_full() {
                waiting.hand_out(&mut each);
            }
        });
        waiting.hand_out(&mut each);
        let handed = handed.map_err(|error| refused(&self.name, &error))?;
        self.delivered += handed as u64;
        if handed > 0 || max == 0 {
            return Ok(Drained::Frames(handed));
        }
        let Some(patience_millis) = self.ending else { return Ok(Drained::Frames(0)) };
        // The last block may still be open in the kernel; its packets are counted as received already.
        let losses = self.losses()?;
        if patience_millis == 0 || self.delivered + losses.dropped.total() >= losses.wire {
            return Ok(Drained::Ended);
        }
        self.ending = Some(patience_millis - 1);
        std::thread::sleep(Duration::from_millis(1));
        Ok(Drained::Frames(0))
    }

    fn stop(&mut self) -> Result<(), CaptureError> {
        if self.ending.is_none() {
            syscall::refuse_packets(self.capture.as_fd()).map_err(|error| CaptureError {
                kind: CaptureErrorKind::Failed,
                doing: format!("stop the capture on {}", self.name),
                cause: error.to_string(),
                remedy: String::new(),
            })?;
            self.ending = Some(self.wakeup_millis * 4 + 200);
        }
        Ok(())
    }

    fn losses(&mut self) -> Result<Losses, CaptureError> {
        let stats = self.capture.stats().map_err(|error| refused(&self.name, &error))?;
        let received = self.received.read(stats.received);
        let dropped = self.dropped.read(stats.dropped);
        let missed = self.missed.read(stats.if_dropped);
        Ok(Losses { wire: received + missed, dropped: Dropped { buffer_full: dropped, interface: missed, ..Dropped::default() } })
    }

    fn describe(&self) -> &str {
        &self.description
    }
}

/// With `Precision::Nano` the field for microseconds holds nanoseconds.
fn nanos(field: libc::suseconds_t) -> Duration {
    Duration::from_nanos(u64::try_from(field).unwrap_or(0))
}

fn refused(name: &str, error: &pcap::Error) -> CaptureError {
    let cause = match error {
        pcap::Error::PcapError(text) => text.clone(),
        other => other.to_string(),
    };
    let lower = cause.to_lowercase();
    let (kind, remedy) = if lower.contains("permi") {
        (
            CaptureErrorKind::NoPermission,
            "run as root, or grant the capability NET_RAW (systemd: AmbientCapabilities=CAP_NET_RAW)",
        )
    } else if lower.contains("disappeared") || lower.contains("went down") || lower.contains("network is down") {
        (CaptureErrorKind::Gone, "see whether the interface still exists and is up: ip link")
    } else {
        (CaptureErrorKind::Failed, "")
    };
    CaptureError { kind, doing: format!("capture from {name} through libpcap"), cause, remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_of_32_bits_is_followed_over_its_end() {
        let mut counter = Wrapping::default();
        assert_eq!(counter.read(u32::MAX), 0xffff_ffff);
        assert_eq!(counter.read(4), 0x1_0000_0004);
    }

    #[test]
    fn missing_permission_is_answered_with_the_capability() {
        let error = refused("eno2", &pcap::Error::PcapError("socket: Operation not permitted".into()));
        assert_eq!(error.kind, CaptureErrorKind::NoPermission);
        assert!(error.remedy.contains("NET_RAW"), "{error}");
    }
}
