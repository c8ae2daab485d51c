//! What both file formats have in common: bytes in, packets out. Pure: no file, no clock, no memory beyond the interfaces of a file.

use std::borrow::Cow;

use spanwatch_common::ledger::Dropped;
use spanwatch_common::time::Timestamp;

use super::batch::Batch;
use super::link_type::Unread;
use super::{pcap, pcapng};
use crate::capture::{Frame, Link};

/// Longest packet that is believed, in octets; libpcap and Wireshark draw the same line.
pub(super) const PACKET_OCTETS_MAX: u32 = 1 << 18;

/// So much of a file tells what it is: the file header of pcap. The smallest section header of pcapng is longer.
pub(super) const HEADER_OCTETS: usize = 24;

/// What stands at the beginning of the input.
pub(super) enum Step<'a> {
    /// A packet, whose record takes the first `used` octets.
    Packet {
        /// The packet, lent from the input.
        frame: Frame<'a>,
        /// Its link type by number.
        link_type: u16,
        /// At least 1.
        used: usize,
    },
    /// The first `used` octets (at least 1) hold no packet.
    Passed {
        /// At least 1.
        used: usize,
    },
    /// The input ends within what comes next.
    Need {
        /// Octets that must be there to go on; more than are there.
        octets: usize,
        /// What it is that comes next: `packet`.
        of: &'static str,
    },
}

/// Why a batch ends.
#[derive(Debug)]
pub(super) enum Stop {
    /// It has as many frames as are wanted, or what was passed beside them is long enough.
    Complete,
    /// The input ends within what comes next.
    Need {
        /// Octets that must be there from the beginning of the batch to go on.
        octets: usize,
        /// What it is that comes next: `packet`.
        of: &'static str,
    },
    /// Nothing after it can be read.
    Damage(Damage),
}

/// A batch ends after so many octets without a packet, so that no more than this and one block have to be in memory.
const WITHOUT_PACKET_MAX: usize = 1 << 20;

/// What comes next in a file cannot be what it should be. One sentence's subject and predicate, without the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage(pub(super) Cow<'static, str>);

impl Damage {
    pub(super) const fn new(what: &'static str) -> Self {
        Self(Cow::Borrowed(what))
    }
}

/// Takes a capture file apart. Knows where in the file it is by what it was given before.
#[derive(Debug)]
pub(super) enum Parser {
    /// The classic format.
    Pcap(pcap::Parser),
    /// The format in blocks.
    Pcapng(pcapng::Parser),
}

impl Parser {
    /// Recognises a file by its first octets and says how many of them are used up.
    ///
    /// # Errors
    /// It is neither format, or a version of it that nobody reads.
    pub(super) fn new(header: &[u8; HEADER_OCTETS]) -> Result<(Self, usize), Damage> {
        if header.starts_with(&pcapng::SECTION_HEADER) {
            return Ok((Self::Pcapng(pcapng::Parser::default()), 0));
        }
        Ok((Self::Pcap(pcap::Parser::new(header)?), HEADER_OCTETS))
    }

    /// Goes through `input` behind what `batch` has passed, and adds the frames it finds; counts those of a link type that is not read.
    #[inline]
    pub(super) fn walk<'a>(&mut self, input: &'a [u8], batch: &mut Batch<'_, 'a>, unread: &mut Unread) -> Stop {
        while !batch.is_full() {
            match self {
                Self::Pcap(parser) => parser.walk_plain(input, batch),
                Self::Pcapng(parser) => parser.walk_plain(input, batch),
            }
            if batch.is_full() {
                break;
            }
            // Whatever is not as packets usually are, one by one.
            match self.step(&input[batch.passed..]) {
                Ok(Step::Packet { frame, link_type, used }) => {
                    if frame.link == Link::Unread {
                        unread.count(link_type);
                    }
                    batch.push(frame);
                    batch.passed += used;
                }
                Ok(Step::Passed { used }) => {
                    batch.passed += used;
                    if batch.passed >= WITHOUT_PACKET_MAX {
                        break;
                    }
                }
                Ok(Step::Need { octets, of }) => return Stop::Need { octets: batch.passed + octets, of },
                Err(damage) => return Stop::Damage(damage),
            }
        }
        Stop::Complete
    }

    /// The octets of the record that seems to stand at the beginning of `input`, of a packet at a time about that of `near`. For guessing where
    /// records are.
    #[inline]
    pub(super) fn guess(&self, input: &[u8], near: Timestamp) -> Option<usize> {
        match self {
            Self::Pcap(parser) => parser.guess(input, near),
            Self::Pcapng(parser) => parser.guess(input, near),
        }
    }

    /// Takes the next packet, or the next thing that is none, from the beginning of `input`. Give it what follows the octets that it used;
    /// when it needs more, give it the same again and more.
    ///
    /// # Errors
    /// The file is damaged here. Nothing after it can be read.
    fn step<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, Damage> {
        match self {
            Self::Pcap(parser) => parser.step(input),
            Self::Pcapng(parser) => parser.step(input),
        }
    }

    /// What the file says was lost while it was captured, so far.
    pub(super) fn dropped(&self) -> Dropped {
        match self {
            Self::Pcap(_) => Dropped::default(),
            Self::Pcapng(parser) => parser.dropped(),
        }
    }

    /// The name of the format.
    pub(super) const fn format(&self) -> &'static str {
        match self {
            Self::Pcap(_) => "pcap",
            Self::Pcapng(_) => "pcapng",
        }
    }
}

/// How much later than a packet those behind it may be, in seconds, to be recognised by [`Parser::guess`]; one second of it may be earlier.
pub(super) const NEAR_SECS: u32 = 256;

/// How far ahead of the walk the input is fetched into the processor's cache, in octets.
pub(super) const PREFETCH_OCTETS: usize = 1 << 10;

/// The order of octets in numbers, which is that of the machine that wrote the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ByteOrder {
    /// Least significant octet first.
    #[default]
    Little,
    /// Most significant octet first.
    Big,
}

/// Reads numbers one after another.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    order: ByteOrder,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) const fn new(order: ByteOrder, rest: &'a [u8]) -> Self {
        Self { order, rest }
    }

    /// What was not read yet.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `octets`.
    #[inline]
    pub(super) fn bytes(&mut self, octets: usize) -> Result<&'a [u8], Damage> {
        let (bytes, rest) = self.rest.split_at_checked(octets).ok_or(TOO_SHORT)?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(TOO_SHORT)?;
        self.rest = rest;
        Ok(*bytes)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, Damage> {
        let bytes = self.array()?;
        Ok(match self.order {
            ByteOrder::Little => u16::from_le_bytes(bytes),
            ByteOrder::Big => u16::from_be_bytes(bytes),
        })
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32, Damage> {
        let bytes = self.array()?;
        Ok(match self.order {
            ByteOrder::Little => u32::from_le_bytes(bytes),
            ByteOrder::Big => u32::from_be_bytes(bytes),
        })
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Result<u64, Damage> {
        let bytes = self.array()?;
        Ok(match self.order {
            ByteOrder::Little => u64::from_le_bytes(bytes),
            ByteOrder::Big => u64::from_be_bytes(bytes),
        })
    }
}

const TOO_SHORT: Damage = Damage::new("a block is too short for what it should hold");

/// A time out of a file. Zero means "never" to us, so a capture without a clock starts one nanosecond later; what lies before the epoch or
/// after the year 2262 becomes the nearest time that can be said.
#[inline]
pub(super) fn timestamp(nanos: i128) -> Timestamp {
    Timestamp::from_nanos(i64::try_from(nanos.max(1)).unwrap_or(i64::MAX))
}

/// Takes a frame check sequence of so many octets off the end of a frame: off its length on the wire, and off its bytes as far as they
/// reach into it.
#[inline]
pub(super) fn without_fcs(bytes: &[u8], wire_len: u32, fcs_octets: u32) -> (&[u8], u32) {
    let wire_len = wire_len.saturating_sub(fcs_octets);
    (&bytes[..bytes.len().min(wire_len as usize)], wire_len)
}
