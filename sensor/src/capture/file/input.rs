//! The octets of a capture file one after another: a plain file through a mapping, anything else through one large buffer.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use super::mapped::Mapped;
use super::unpack::Octets;

/// Octets of the buffer; it grows only for a batch that is longer.
const BUFFER_OCTETS: usize = 256 << 10;
/// Octets of a mapping that enter the page table at a time.
const POPULATED_OCTETS: usize = 2 << 20;

/// A file being read from its beginning to its end.
pub(super) struct Input {
    from: From,
    offset: u64,
}

enum From {
    /// A plain file, up to where it ended when it was opened.
    Mapping { mapped: Arc<Mapped>, file: Arc<std::fs::File>, start: usize, populated: usize },
    /// A packed file or a pipe, or what was appended to a plain file meanwhile.
    Buffer { octets: Octets, buffer: Vec<u8>, start: usize, end: usize },
}

/// What came of reading on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// So much is there.
    Enough,
    /// Not yet: somebody else has to do something first.
    NotYet,
    /// The file has no more.
    Ended,
}

impl Input {
    /// A plain file; `file` is the one that is mapped.
    pub(super) const fn mapped(mapped: Arc<Mapped>, file: Arc<std::fs::File>) -> Self {
        Self { from: From::Mapping { mapped, file, start: 0, populated: 0 }, offset: 0 }
    }

    /// Any other.
    pub(super) fn buffered(octets: Octets) -> Self {
        Self { from: From::Buffer { octets, buffer: vec![0; BUFFER_OCTETS], start: 0, end: 0 }, offset: 0 }
    }

    /// What was read and not yet passed.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.from {
            From::Mapping { mapped, start, .. } => &mapped.bytes()[*start..],
            From::Buffer { buffer, start, end, .. } => &buffer[*start..*end],
        }
    }

    /// Goes on behind the first `octets` of [`bytes`](Self::bytes), which must be there.
    pub(super) fn pass(&mut self, octets: usize) {
        self.offset += octets as u64;
        match &mut self.from {
            From::Mapping { mapped, start, populated, .. } => {
                *start += octets;
                if *start + POPULATED_OCTETS / 2 > *populated && *populated < mapped.bytes().len() {
                    let end = (*populated + POPULATED_OCTETS).min(mapped.bytes().len());
                    mapped.populate(*populated..end);
                    *populated = end;
                }
            }
            From::Buffer { start, .. } => *start += octets,
        }
    }

    /// Reads on until [`bytes`](Self::bytes) are at least so many.
    ///
    /// # Errors
    /// The file cannot be read, or what it is packed in is damaged. What was read before is there.
    pub(super) fn fill(&mut self, wanted: usize) -> io::Result<Filled> {
        if let From::Mapping { file, .. } = &self.from {
            if self.bytes().len() >= wanted {
                return Ok(Filled::Enough);
            }
            let appended = Appended { file: Arc::clone(file), at: self.offset };
            *self = Self { offset: self.offset, ..Self::buffered(Octets::plain(appended, self.offset)) };
        }
        let From::Buffer { octets, buffer, start, end } = &mut self.from else { return Ok(Filled::Ended) };
        buffer.copy_within(*start..*end, 0);
        *end -= *start;
        *start = 0;
        if buffer.len() < wanted {
            buffer.resize(wanted, 0);
        }
        while *end < wanted {
            match octets.read(&mut buffer[*end..]) {
                Ok(0) => return Ok(Filled::Ended),
                Ok(read) => *end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Filled::NotYet),
                Err(error) => return Err(error),
            }
        }
        Ok(Filled::Enough)
    }

    /// Waits until there is more to read, for so long at most.
    pub(super) fn wait(&mut self, timeout: Duration) {
        if let From::Buffer { octets, .. } = &mut self.from {
            octets.wait(timeout);
        }
    }

    /// Whether some of what was read lately are zeros in place of octets that the file has lost meanwhile.
    pub(super) fn is_torn(&self) -> bool {
        matches!(&self.from, From::Mapping { mapped, .. } if mapped.is_torn())
    }

    /// Where [`bytes`](Self::bytes) begin, in octets of the unpacked file.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Octets read of the file as it is on disk.
    pub(super) fn octets_read(&self) -> u64 {
        match &self.from {
            From::Mapping { .. } => self.offset,
            From::Buffer { octets, .. } => octets.taken(),
        }
    }

    /// What the file is packed in, if it is.
    pub(super) const fn packing(&self) -> Option<&'static str> {
        match &self.from {
            From::Mapping { .. } => None,
            From::Buffer { octets, .. } => octets.packing(),
        }
    }
}

/// What stands in a file from some place on, whoever else reads the file.
struct Appended {
    file: Arc<std::fs::File>,
    at: u64,
}

impl Read for Appended {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// What a file is that is no capture file, as far as its first octets tell.
pub(super) fn foreign(first: &[u8]) -> String {
    let known: [(&[u8], &str); 8] = [
        (b"BZh", "it is compressed with bzip2"),
        (b"\xfd7zXZ", "it is compressed with xz"),
        (b"\x04\x22\x4d\x18", "it is compressed with lz4"),
        (b"\x1f\x8b", "it is compressed twice"),
        (b"\x28\xb5\x2f\xfd", "it is compressed twice"),
        (b"PK\x03\x04", "it is a zip archive"),
        (b"snoop\0", "it is a snoop file"),
        (b"GMBU", "it is a file of Microsoft Network Monitor"),
    ];
    if let Some((_, what)) = known.iter().find(|(magic, _)| first.starts_with(magic)) {
        return (*what).to_owned();
    }
    let mut text = "it begins like no capture file: ".to_owned();
    for octet in first.iter().take(4) {
        // Writing into a string does not fail.
        let _ = write!(text, "{octet:02x}");
    }
    text
}
