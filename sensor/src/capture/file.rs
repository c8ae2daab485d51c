//! Capture files, read by libpcap: pcap and pcapng, also from standard input. Capture time is packet time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap::{Linktype, Offline, Precision};
use spanwatch_common::time::Timestamp;

use super::{Capture, CaptureError, CaptureErrorKind, Drained, Frame, Link, Losses};

/// A capture file.
pub struct File {
    path: PathBuf,
    pcap: pcap::Capture<Offline>,
    link_type: Linktype,
    description: String,
    read: u64,
    ended: bool,
}

impl File {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// It is not there, not readable, or no capture file.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let fail = |kind, cause: String, remedy: &str| CaptureError {
            kind,
            doing: format!("open {}", path.display()),
            cause,
            remedy: remedy.to_owned(),
        };
        // libpcap's message for these two is the same as for a file that is no capture.
        if path != Path::new("-") {
            std::fs::File::open(path)
                .map_err(|error| fail(CaptureErrorKind::Failed, error.to_string(), "check the path and its permissions"))?;
        }
        let pcap = pcap::Capture::from_file_with_precision(path, Precision::Nano).map_err(|error| {
            fail(
                CaptureErrorKind::Unsupported,
                error.to_string(),
                "give a pcap or pcapng file (a compressed one must be unpacked first)",
            )
        })?;
        let link_type = pcap.get_datalink();
        let description = format!("file {}", path.display());
        Ok(Self { path: path.to_owned(), pcap, link_type, description, read: 0, ended: false })
    }

    /// Whether its frames are Ethernet, the only link type that is decoded.
    pub fn is_ethernet(&self) -> bool {
        self.link_type == Linktype::ETHERNET
    }

    /// Number and name of its link type, for people.
    pub fn link_type(&self) -> String {
        let name = self.link_type.get_name().unwrap_or_else(|_| "unknown".to_owned());
        format!("{} ({name})", self.link_type.0)
    }
}

impl Capture for File {
    fn wait(&mut self, _: Duration) -> Result<(), CaptureError> {
        Ok(())
    }

    fn drain(&mut self, _: Timestamp, max: usize, mut each: impl FnMut(&Frame<'_>)) -> Result<Drained, CaptureError> {
        let link = if self.is_ethernet() { Link::Ethernet } else { Link::Unread };
        let mut frames = 0;
        while frames < max && !self.ended {
            match self.pcap.next_packet() {
                Ok(packet) => {
                    let header = packet.header;
                    // A precision of nanoseconds was asked for, so the field of microseconds holds nanoseconds.
                    let nanos = header.ts.tv_sec.saturating_mul(1_000_000_000).saturating_add(header.ts.tv_usec);
                    // Zero means "never" to us; a capture without a clock starts one nanosecond later.
                    let at = Timestamp::from_nanos(nanos.max(1));
                    let bytes = packet.data;
                    each(&Frame { link, ..Frame::ethernet(bytes, header.len.max(header.caplen), at) });
                    frames += 1;
                    self.read += 1;
                }
                Err(pcap::Error::NoMorePackets) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Err(CaptureError {
                        kind: CaptureErrorKind::Failed,
                        doing: format!("read {}", self.path.display()),
                        cause: format!("{error}, after {} whole packets", self.read),
                        remedy: "those packets were metered; copy the file again, or go on without its end".to_owned(),
                    });
                }
            }
        }
        Ok(if frames == 0 && self.ended { Drained::Ended } else { Drained::Frames(frames) })
    }

    fn stop(&mut self) -> Result<(), CaptureError> {
        self.ended = true;
        Ok(())
    }

    fn losses(&mut self) -> Result<Losses, CaptureError> {
        Ok(Losses { wire: self.read, ..Losses::default() })
    }

    fn describe(&self) -> &str {
        &self.description
    }
}
