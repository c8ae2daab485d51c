//! The octets of a capture file, whatever they are packed in, through one large buffer.

use std::fmt::Write as _;
use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// Octets of the buffer; it grows only for a packet or block that is longer.
const BUFFER_OCTETS: usize = 256 << 10;

/// Decompressed octets per call. A decompressor that finds damage gives nothing of that call, so this much before it is lost at most.
const PIECE_OCTETS: usize = 4 << 10;

/// A file being read, decompressed if need be, from its beginning to its end.
pub(super) struct Input {
    packed: Packed,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
}

/// What the file is packed in, told by its first octets.
enum Packed {
    Plain(Counted),
    Gzip(Box<MultiGzDecoder<BufReader<Counted>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Counted>>>),
}

/// The file itself, and how much of it was read.
struct Counted {
    reader: io::Chain<Cursor<Vec<u8>>, Box<dyn Read + Send>>,
    octets: u64,
}

impl Input {
    /// Looks at the first octets and reads no further.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) fn new(mut reader: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut magic = Vec::with_capacity(4);
        reader.by_ref().take(4).read_to_end(&mut magic)?;
        let (is_gzip, is_zstd) = (magic.starts_with(&[0x1f, 0x8b]), begins_zstd(&magic));
        let file = Counted { reader: Cursor::new(magic).chain(reader), octets: 0 };
        let packed = if is_gzip {
            Packed::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER_OCTETS, file))))
        } else if is_zstd {
            Packed::Zstd(Box::new(zstd::Decoder::with_buffer(BufReader::with_capacity(BUFFER_OCTETS, file))?))
        } else {
            Packed::Plain(file)
        };
        Ok(Self { packed, buffer: vec![0; BUFFER_OCTETS], start: 0, end: 0, offset: 0 })
    }

    /// What was read and not yet passed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Goes on behind the first `octets` of [`bytes`](Self::bytes), which must be there.
    pub(super) fn pass(&mut self, octets: usize) {
        self.start += octets;
        self.offset += octets as u64;
    }

    /// Reads on until [`bytes`](Self::bytes) are at least so many; says whether the file had as many.
    ///
    /// # Errors
    /// The file cannot be read, or what it is packed in is damaged. What was read before is there.
    pub(super) fn fill(&mut self, octets: usize) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < octets {
            self.buffer.resize(octets, 0);
        }
        while self.end < octets {
            match self.packed.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Where [`bytes`](Self::bytes) begin, in octets of the unpacked file.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Octets read of the file as it is on disk.
    pub(super) fn octets_read(&self) -> u64 {
        match &self.packed {
            Packed::Plain(file) => file.octets,
            Packed::Gzip(decoder) => decoder.get_ref().get_ref().octets,
            Packed::Zstd(decoder) => decoder.get_ref().get_ref().octets,
        }
    }

    /// What the file is packed in, if it is.
    pub(super) const fn packing(&self) -> Option<&'static str> {
        match self.packed {
            Packed::Plain(_) => None,
            Packed::Gzip(_) => Some("gzip"),
            Packed::Zstd(_) => Some("zstd"),
        }
    }
}

impl Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = buffer.len().min(PIECE_OCTETS);
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Gzip(decoder) => decoder.read(&mut buffer[..piece]),
            Self::Zstd(decoder) => decoder.read(&mut buffer[..piece]),
        }
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.octets += read as u64;
        Ok(read)
    }
}

/// A zstd frame, or one of those frames that decompressors skip (RFC 8878 section 3.1).
fn begins_zstd(magic: &[u8]) -> bool {
    matches!(magic, [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18])
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
