//! Capture files: pcap and pcapng, plain or packed with gzip or zstd, also from standard input. Capture time is packet time.
//!
//! ```text
//! unpack  pipe or packed file ▷ gunzip, unzstd on a thread of its own ▷ pieces
//! mapped  plain file ▷ its octets in memory
//! input   either ▷ octets in a row
//! parser  octets ▷ pcap or pcapng ▷ a batch of frames, lent from the input
//! ```
//!
//! A file is known by its first octets, never by its name. Where it is damaged or ends too soon, the packets before are handed out, and
//! then one error says where that is. Packets of a link type that is not read are handed out as [`Link::Unread`], and one error at the
//! end says how many there were.
//!
//! A file is read once from beginning to end, so that interfaces are numbered from the moment on when a second one is described; in
//! practice that is before the first packet.

mod batch;
#[cfg(test)]
mod build;
mod input;
mod link_type;
mod mapped;
mod parser;
mod pcap;
mod pcapng;
mod scout;
#[cfg(test)]
mod tests;
mod unpack;

use std::fmt::Display;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::time::Timestamp;

use super::{BATCH, Capture, CaptureError, CaptureErrorKind, Drained, Frame, Losses};
use batch::{Batch, Kept};
use input::{Filled, Input};
use link_type::Unread;
use mapped::Mapped;
use parser::{Damage, HEADER_OCTETS, Parser, Stop};
use scout::Scout;
use unpack::Octets;

/// What to give instead of a file that cannot be opened as a capture.
const WANTED: &str = "give a pcap or pcapng file, plain or compressed with gzip or zstd";

/// A capture file.
pub struct File {
    name: String,
    description: String,
    input: Input,
    parser: Parser,
    scout: Scout,
    /// Time of the packet before.
    last: Timestamp,
    /// A batch that waits for more of the input.
    kept: Kept,
    read: u64,
    unread: Unread,
    /// Nothing more is read.
    has_ended: bool,
    /// Said once, when everything before it was handed out.
    trouble: Option<CaptureError>,
}

/// Why nothing more can be read.
enum Over {
    /// The file ends, in the middle of this unless nothing is left.
    Ended(&'static str),
    /// The file cannot be read on, or unpacked.
    Unreadable(io::Error),
    Damaged(Damage),
    /// The file was cut off while it was read.
    Torn,
}

impl File {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// It is not there, not readable, or no capture file.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        if path == Path::new("-") {
            return Self::from_reader("standard input", io::stdin());
        }
        let mut files = Self::open_shared(path, 1)?;
        files.pop().ok_or_else(|| refuse(&path.display().to_string(), "nobody reads it".to_owned()))
    }

    /// Opens a file for several threads, each of which reads all of it; `-` is standard input.
    ///
    /// A plain file is in memory once for all of them, and each goes at its own pace. Anything else is read once and goes through queues
    /// of a few pieces: where one has nothing waiting, [`drain`](Capture::drain) hands out none, and [`wait`](Capture::wait) waits. Each of them must be read on until it ended, or dropped; otherwise the others wait for ever.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_shared(path: &Path, readers: usize) -> Result<Vec<Self>, CaptureError> {
        let name = path.display().to_string();
        let fail = |error: io::Error| CaptureError {
            kind: CaptureErrorKind::Failed,
            doing: format!("open {name}"),
            cause: error.to_string(),
            remedy: "check the path and its permissions".to_owned(),
        };
        if path == Path::new("-") {
            return Self::from_octets("standard input", Octets::open(Box::new(io::stdin()), readers));
        }
        let file = std::fs::File::open(path).map_err(fail)?;
        let is_regular = file.metadata().map_err(fail)?.is_file();
        let mut magic = [0; 4];
        let is_plain = is_regular && file.read_exact_at(&mut magic, 0).is_ok() && unpack::packing(&magic).is_none();
        match Mapped::new(&file) {
            Ok(mapped) if is_plain => {
                let (mapped, file) = (Arc::new(mapped), Arc::new(file));
                let input = |_| Self::from_input(&name, Input::mapped(Arc::clone(&mapped), Arc::clone(&file)));
                (0..readers).map(input).collect()
            }
            _ => Self::from_octets(&name, Octets::open(Box::new(file), readers)),
        }
    }

    /// Reads a capture file from wherever it comes; `name` is for people.
    ///
    /// # Errors
    /// It is not readable, or no capture file.
    pub fn from_reader(name: &str, reader: impl io::Read + Send + 'static) -> Result<Self, CaptureError> {
        let mut files = Self::from_octets(name, Octets::open(Box::new(reader), 1))?;
        files.pop().ok_or_else(|| refuse(name, "nobody reads it".to_owned()))
    }

    fn from_octets(name: &str, octets: io::Result<Vec<Octets>>) -> Result<Vec<Self>, CaptureError> {
        let octets = octets.map_err(|error| refuse(name, error.to_string()))?;
        octets.into_iter().map(|octets| Self::from_input(name, Input::buffered(octets))).collect()
    }

    /// Reads the first header.
    fn from_input(name: &str, mut input: Input) -> Result<Self, CaptureError> {
        let damage = loop {
            match input.fill(HEADER_OCTETS) {
                Ok(Filled::NotYet) => input.wait(WAIT),
                Ok(_) => break None,
                Err(error) => break Some(error),
            }
        };
        let Some(header) = input.bytes().first_chunk::<HEADER_OCTETS>() else {
            let length = input.bytes().len();
            return Err(refuse(
                name,
                match (damage, input.packing()) {
                    (Some(error), Some(packing)) => format!("its {packing} stream is damaged: {error}"),
                    (Some(error), None) => error.to_string(),
                    (None, _) if length == 0 => "it is empty".to_owned(),
                    (None, _) => format!("it has only {length} octets, less than the header of any capture file"),
                },
            ));
        };
        let (parser, used) = Parser::new(header).map_err(|damage| refuse(name, damage.0.into_owned()))?;
        input.pass(used);
        let packing = input.packing().map(|packing| format!(" in {packing}")).unwrap_or_default();
        let description = format!("file {name}, {}{packing}", parser.format());
        let (unread, name) = (Unread::default(), name.to_owned());
        Ok(Self {
            name,
            description,
            input,
            parser,
            scout: Scout::default(),
            last: Timestamp::NONE,
            kept: Kept::NONE,
            read: 0,
            unread,
            has_ended: false,
            trouble: None,
        })
    }

    /// Octets read so far of the file as it lies on the disk, packed or not.
    pub fn octets_read(&self) -> u64 {
        self.input.octets_read()
    }

    /// Reads nothing more, and has the error ready if there is something to say.
    fn end(&mut self, over: Over) {
        self.has_ended = true;
        let damage = match over {
            Over::Ended(_) if self.input.bytes().is_empty() => None,
            Over::Ended(of) => Some(self.damage(format_args!("the file ends in the middle of a {of} that begins"))),
            Over::Unreadable(error) => {
                let what = match self.input.packing() {
                    Some(packing) => format!("its {packing} stream is damaged or cut off ({error})"),
                    None => error.to_string(),
                };
                // The octets in hand are sound, but are no whole packet.
                let at = self.input.offset() + self.input.bytes().len() as u64;
                Some(format!("{what} at byte {at}, after {} whole packets", self.read))
            }
            Over::Damaged(damage) => Some(self.damage(damage.0)),
            Over::Torn => Some(self.damage("the file was cut off or became unreadable while it was read; that was noticed")),
        };
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
}

/// Longest wait for the first octets before they are asked for again.
const WAIT: Duration = Duration::from_secs(1);

fn refuse(name: &str, cause: String) -> CaptureError {
    CaptureError { kind: CaptureErrorKind::Unsupported, doing: format!("open {name}"), cause, remedy: WANTED.to_owned() }
}

impl Capture for File {
    fn wait(&mut self, timeout: Duration) -> Result<(), CaptureError> {
        self.input.wait(timeout);
        Ok(())
    }

    /// Hands out one batch of as many frames as are wanted, at most [`BATCH`]; fewer at the end of the file and where a MiB without packets
    /// stands between them, so that where a batch ends depends on the file alone and not on the pieces it comes in. None when the file is
    /// [shared](File::open_shared) and nothing waits.
    fn drain(&mut self, _: Timestamp, max: usize, mut each: impl FnMut(&[Frame<'_>])) -> Result<Drained, CaptureError> {
        let mut found = 0;
        while found == 0 && max > 0 && !self.has_ended {
            let input = self.input.bytes();
            let mut frames = [Frame::NONE; BATCH];
            let mut batch = Batch::new(&mut frames, max);
            self.kept.lend(input, &mut batch);
            let mut over = None;
            self.scout.look(input, &self.parser, self.last);
            match self.parser.walk(input, &mut batch, &mut self.unread) {
                Stop::Complete => {}
                Stop::Damage(damage) => over = Some(Over::Damaged(damage)),
                Stop::Need { octets, of } => {
                    self.kept = Kept::keep(&batch, input);
                    match self.input.fill(octets) {
                        Ok(Filled::Enough) => continue,
                        Ok(Filled::NotYet) => break,
                        Ok(Filled::Ended) => over = Some(Over::Ended(of)),
                        Err(error) => over = Some(Over::Unreadable(error)),
                    }
                    frames = [Frame::NONE; BATCH];
                    batch = Batch::new(&mut frames, max);
                    self.kept.lend(self.input.bytes(), &mut batch);
                }
            }
            if self.input.is_torn() {
                // Some of these frames are made of zeros.
                self.end(Over::Torn);
                break;
            }
            if !batch.frames().is_empty() {
                each(batch.frames());
            }
            let passed = batch.passed;
            found = batch.frames().len();
            self.last = batch.frames().last().map_or(self.last, |frame| frame.at);
            self.read += found as u64;
            self.input.pass(passed);
            self.scout.pass(passed, found);
            self.kept.clear();
            if self.input.is_torn() {
                over = Some(Over::Torn);
            }
            if let Some(over) = over {
                self.end(over);
            }
        }
        match self.trouble.take_if(|_| found == 0) {
            Some(trouble) => Err(trouble),
            None if found == 0 && self.has_ended => Ok(Drained::Ended),
            None => Ok(Drained::Frames(found)),
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
