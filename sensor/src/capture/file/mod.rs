//! Capture files: pcap and pcapng, plain or packed with gzip or zstd, also from standard input. Capture time is packet time.
//!
//! ```text
//! input   file or pipe ▷ gunzip, unzstd ▷ one large buffer
//! parser  its bytes ▷ pcap or pcapng ▷ frames, lent from the buffer
//! ```
//!
//! A file is known by its first octets, never by its name. Where it is damaged or ends too soon, the packets before are handed out, and
//! then one error says where that is. Packets of a link type that is not read are handed out as [`Link::Unread`], and one error at the
//! end says how many there were.
//!
//! A file is read once from beginning to end, so that interfaces are numbered from the moment on when a second one is described; in
//! practice that is before the first packet.

#[cfg(test)]
mod build;
mod input;
mod link_type;
mod parser;
mod pcap;
mod pcapng;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use spanwatch_common::time::Timestamp;

use super::{BATCH, Capture, CaptureError, CaptureErrorKind, Drained, Frame, Link, Losses};
use input::Input;
use link_type::Unread;
use parser::{HEADER_OCTETS, Parser, Step};

/// What to give instead of a file that cannot be opened as a capture.
const WANTED: &str = "give a pcap or pcapng file, plain or compressed with gzip or zstd";

/// A capture file.
pub struct File {
    name: String,
    description: String,
    input: Input,
    parser: Parser,
    read: u64,
    unread: Unread,
    /// Nothing more is read.
    has_ended: bool,
    /// Said once, when everything before it was handed out.
    trouble: Option<CaptureError>,
}

impl File {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// It is not there, not readable, or no capture file.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        if path == Path::new("-") {
            return Self::from_reader("standard input", std::io::stdin());
        }
        let file = std::fs::File::open(path).map_err(|error| CaptureError {
            kind: CaptureErrorKind::Failed,
            doing: format!("open {}", path.display()),
            cause: error.to_string(),
            remedy: "check the path and its permissions".to_owned(),
        })?;
        Self::from_reader(&path.display().to_string(), file)
    }

    /// Reads a capture file from wherever it comes; `name` is for people.
    ///
    /// # Errors
    /// It is not readable, or no capture file.
    pub fn from_reader(name: &str, reader: impl Read + Send + 'static) -> Result<Self, CaptureError> {
        let fail = |cause: String| CaptureError {
            kind: CaptureErrorKind::Unsupported,
            doing: format!("open {name}"),
            cause,
            remedy: WANTED.to_owned(),
        };
        let mut input = Input::new(Box::new(reader)).map_err(|error| fail(error.to_string()))?;
        let damage = input.fill(HEADER_OCTETS).err();
        let Some(header) = input.bytes().first_chunk::<HEADER_OCTETS>() else {
            let length = input.bytes().len();
            return Err(fail(match (damage, input.packing()) {
                (Some(error), Some(packing)) => format!("its {packing} stream is damaged: {error}"),
                (Some(error), None) => error.to_string(),
                (None, _) if length == 0 => "it is empty".to_owned(),
                (None, _) => format!("it has only {length} octets, less than the header of any capture file"),
            }));
        };
        let (parser, used) = Parser::new(header).map_err(|damage| fail(damage.0.into_owned()))?;
        input.pass(used);
        let packing = input.packing().map(|packing| format!(" in {packing}")).unwrap_or_default();
        let description = format!("file {name}, {}{packing}", parser.format());
        let (unread, name) = (Unread::default(), name.to_owned());
        Ok(Self { name, description, input, parser, read: 0, unread, has_ended: false, trouble: None })
    }

    /// Octets read so far of the file as it lies on the disk, packed or not.
    pub fn octets_read(&self) -> u64 {
        self.input.octets_read()
    }

    /// Reads nothing more, and has the error ready if there is something to say.
    fn end(&mut self, damage: Option<String>) {
        self.has_ended = true;
        let unread = self.unread.packets();
        self.trouble = match damage {
            None if unread == 0 => None,
            None => Some(CaptureError {
                kind: CaptureErrorKind::Unsupported,
                doing: format!("read {}", self.name),
                cause: format!("{unread} of {} packets cannot be read and count as ignored: {}", self.read, self.unread),
                remedy: "capture Ethernet, raw IP, loopback or Linux cooked frames".to_owned(),
            }),
            Some(mut damage) => {
                if unread > 0 {
                    damage += &format!(", of which {unread} cannot be read and count as ignored: {}", self.unread);
                }
                Some(CaptureError {
                    kind: CaptureErrorKind::Failed,
                    doing: format!("read {}", self.name),
                    cause: damage,
                    remedy: "what came before is accounted; copy the file again, or go on without the rest".to_owned(),
                })
            }
        };
    }

    /// The sentence about damage at the place where the input stands.
    fn damage(&self, what: impl Display) -> String {
        format!("{what} at byte {}, after {} whole packets", self.input.offset(), self.read)
    }

    /// Makes `octets` of the input available, or ends.
    fn fill(&mut self, octets: usize, of: &str) {
        match self.input.fill(octets) {
            Ok(true) => {}
            Ok(false) if self.input.bytes().is_empty() => self.end(None),
            Ok(false) => self.end(Some(self.damage(format_args!("the file ends in the middle of a {of} that begins")))),
            Err(error) => {
                let what = match self.input.packing() {
                    Some(packing) => format!("its {packing} stream is damaged or cut off ({error})"),
                    None => error.to_string(),
                };
                // The octets in hand are sound, but are no whole packet.
                let at = self.input.offset() + self.input.bytes().len() as u64;
                self.end(Some(format!("{what} at byte {at}, after {} whole packets", self.read)));
            }
        }
    }
}

impl Capture for File {
    fn wait(&mut self, _: Duration) -> Result<(), CaptureError> {
        Ok(())
    }

    fn drain(&mut self, _: Timestamp, max: usize, mut each: impl FnMut(&[Frame<'_>])) -> Result<Drained, CaptureError> {
        let mut frames = 0;
        while frames < max && !self.has_ended {
            let mut batch = [Frame::NONE; BATCH];
            let (mut waiting, mut passed) = (0, 0);
            let stop = loop {
                if waiting == BATCH.min(max - frames) {
                    break Ok(None);
                }
                match self.parser.step(&self.input.bytes()[passed..]) {
                    Ok(Step::Packet { frame, link_type, used }) => {
                        if frame.link == Link::Unread {
                            self.unread.count(link_type);
                        }
                        batch[waiting] = frame;
                        waiting += 1;
                        passed += used;
                    }
                    Ok(Step::Passed { used }) => passed += used,
                    Ok(Step::Need { octets, of }) => break Ok(Some((octets, of))),
                    Err(damage) => break Err(damage),
                }
            };
            if waiting > 0 {
                each(&batch[..waiting]);
            }
            frames += waiting;
            self.read += waiting as u64;
            self.input.pass(passed);
            match stop {
                Ok(None) => {}
                Ok(Some((octets, of))) => self.fill(octets, of),
                Err(damage) => self.end(Some(self.damage(damage.0))),
            }
        }
        match self.trouble.take_if(|_| frames == 0) {
            Some(trouble) => Err(trouble),
            None if frames == 0 && self.has_ended => Ok(Drained::Ended),
            None => Ok(Drained::Frames(frames)),
        }
    }

    fn stop(&mut self) -> Result<(), CaptureError> {
        self.has_ended = true;
        Ok(())
    }

    fn losses(&mut self) -> Result<Losses, CaptureError> {
        let dropped = self.parser.dropped();
        Ok(Losses { wire: self.read + dropped.total(), dropped })
    }

    fn describe(&self) -> &str {
        &self.description
    }
}
