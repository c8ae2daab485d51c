//! Frames: length, checksum, compression, and the limits that come before any allocation.

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, DParameter, compress_bound};

use super::message::Message;

/// Bytes before the body of a frame.
pub const HEADER_LEN: usize = 13;
/// Longest body on the wire: 4 MiB.
pub const FRAME_LEN_MAX: usize = 4 << 20;
/// Longest body after decompression: 16 MiB.
pub const PLAIN_LEN_MAX: usize = 16 << 20;
/// How many times longer than on the wire a body may become.
pub const PLAIN_RATIO_MAX: usize = 32;

const CODEC_PLAIN: u8 = 0;
const CODEC_ZSTD: u8 = 1;
/// Level 1: level 3 buys 1.5–4 % in size for half as much time again.
const ZSTD_LEVEL: i32 = 1;
/// A hostile frame cannot make the decompressor keep more than 8 MiB of history.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Why bytes are no message. The connection that sent them is beyond repair: close it.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A length in the header is beyond its limit.
    #[error(
        "frame of {length} B for {plain_length} B of content exceeds the limits ({FRAME_LEN_MAX} B, {PLAIN_LEN_MAX} B, ratio {PLAIN_RATIO_MAX}); is the other end a Spanwatch sensor or collector?"
    )]
    TooLong {
        /// Of the body on the wire, in bytes.
        length: u64,
        /// Of the body decompressed, in bytes.
        plain_length: u64,
    },
    /// Bits changed on the way, or the frame was cut.
    #[error("checksum of a frame is {computed:#010x}, its header says {announced:#010x}; the frame was damaged on the way")]
    Checksum {
        /// As the header says.
        announced: u32,
        /// Of the bytes that arrived.
        computed: u32,
    },
    /// A codec number from the future.
    #[error("frame is compressed with unknown codec {0}; upgrade this end")]
    Codec(u8),
    /// Decompression failed or gave another length than announced.
    #[error("frame does not decompress: {0}")]
    Compression(std::io::Error),
    /// The content is not the MessagePack that we expect.
    #[error("message is malformed: {0}")]
    Malformed(String),
    /// A message that is too large to be sent. Cannot happen to batches within [`super::batch::ROWS_MAX`].
    #[error("message of {0} B does not fit a frame")]
    Unsendable(usize),
}

/// The first [`HEADER_LEN`] bytes of a frame, checked against the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    length: u32,
    codec: u8,
    plain_length: u32,
    crc32c: u32,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// [`WireError::TooLong`] before anything is allocated for the body, [`WireError::Codec`].
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        let [l0, l1, l2, l3, codec, p0, p1, p2, p3, c0, c1, c2, c3] = *bytes;
        let header = Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            codec,
            plain_length: u32::from_le_bytes([p0, p1, p2, p3]),
            crc32c: u32::from_le_bytes([c0, c1, c2, c3]),
        };
        let (length, plain_length) = (header.length as usize, header.plain_length as usize);
        if length > FRAME_LEN_MAX || plain_length > PLAIN_LEN_MAX || plain_length > PLAIN_RATIO_MAX * length {
            return Err(WireError::TooLong { length: length as u64, plain_length: plain_length as u64 });
        }
        if codec > CODEC_ZSTD {
            return Err(WireError::Codec(codec));
        }
        Ok(header)
    }

    /// How many bytes of body follow.
    pub const fn body_len(&self) -> usize {
        self.length as usize
    }

    /// Reads the message in `body`, which must be [`body_len`](Self::body_len) bytes long.
    ///
    /// # Errors
    /// Every [`WireError`] but those of [`parse`](Self::parse).
    pub fn message(&self, body: &[u8]) -> Result<Message, WireError> {
        let computed = crc32c::crc32c(body);
        if computed != self.crc32c || body.len() != self.body_len() {
            return Err(WireError::Checksum { announced: self.crc32c, computed });
        }
        match self.codec {
            CODEC_PLAIN => Message::decode(body),
            _ => {
                let mut zstd = Decompressor::new().map_err(WireError::Compression)?;
                zstd.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(WireError::Compression)?;
                let plain = zstd.decompress(body, self.plain_length as usize).map_err(WireError::Compression)?;
                if plain.len() != self.plain_length as usize {
                    return Err(WireError::Compression(std::io::Error::other("length differs from the one announced")));
                }
                Message::decode(&plain)
            }
        }
    }
}

/// Appends `message` to `out` as one frame.
///
/// # Errors
/// [`WireError::Unsendable`] when it exceeds the limits that a receiver enforces.
pub fn encode(message: &Message, out: &mut Vec<u8>) -> Result<(), WireError> {
    seal(&mut Compressor::default(), &message.encode()?, &mut Vec::new(), out)
}

/// Appends the message in `plain` to `out` as one frame. `packed` is room to work in.
pub(super) fn seal(zstd: &mut Compressor<'_>, plain: &[u8], packed: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), WireError> {
    for parameter in [CParameter::CompressionLevel(ZSTD_LEVEL), CParameter::ContentSizeFlag(true)] {
        zstd.set_parameter(parameter).map_err(WireError::Compression)?;
    }
    packed.clear();
    packed.reserve(compress_bound(plain.len()));
    zstd.compress_to_buffer(plain, packed).map_err(WireError::Compression)?;
    let (codec, body) = if packed.len() < plain.len() && plain.len() <= PLAIN_RATIO_MAX * packed.len() {
        (CODEC_ZSTD, packed.as_slice())
    } else {
        (CODEC_PLAIN, plain)
    };
    if body.len() > FRAME_LEN_MAX || plain.len() > PLAIN_LEN_MAX {
        return Err(WireError::Unsendable(plain.len()));
    }
    let lengths = (u32::try_from(body.len()), u32::try_from(plain.len()));
    let (Ok(length), Ok(plain_length)) = lengths else { return Err(WireError::Unsendable(plain.len())) };
    out.reserve(HEADER_LEN + body.len());
    out.extend_from_slice(&length.to_le_bytes());
    out.push(codec);
    out.extend_from_slice(&plain_length.to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    out.extend_from_slice(body);
    Ok(())
}

/// Reads one whole frame from the start of `bytes`; for tests and files. `Ok(None)` when bytes are missing.
///
/// # Errors
/// As [`Header::parse`] and [`Header::message`].
pub fn decode(bytes: &[u8]) -> Result<Option<(Message, usize)>, WireError> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let header = Header::parse(head)?;
    match rest.get(..header.body_len()) {
        Some(body) => Ok(Some((header.message(body)?, HEADER_LEN + body.len()))),
        None => Ok(None),
    }
}
