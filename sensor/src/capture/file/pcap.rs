//! The classic format (draft-ietf-opsawg-pcap): one header with magic number and link type, then packets, each after a header of its own.

use super::batch::Batch;
use super::link_type;
use super::mapped::prefetch;
use super::parser::{
    ByteOrder, Damage, Fields, HEADER_OCTETS, NEAR_SECS, PACKET_OCTETS_MAX, PREFETCH_OCTETS, Step, timestamp, without_fcs,
};
use crate::capture::{Frame, Link};
use spanwatch_common::time::Timestamp;

/// Time stamps in microseconds.
const MICROSECONDS: u32 = 0xa1b2_c3d4;
/// Time stamps in nanoseconds.
const NANOSECONDS: u32 = 0xa1b2_3c4d;
/// Alexey Kuznetzov's patch of libpcap: 8 octets more in each packet header (interface index, protocol, packet type).
const MODIFIED: u32 = 0xa1b2_cd34;

/// Octets of a packet's header, but for [`MODIFIED`].
const PLAIN_HEADER_OCTETS: usize = 16;

/// Takes apart what follows the file header.
#[derive(Debug)]
pub(super) struct Parser {
    order: ByteOrder,
    nanos_per_unit: u32,
    header_octets: usize,
    lengths: Lengths,
    link: Link,
    link_type: u16,
    fcs_octets: u32,
}

/// The order of a packet's two lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lengths {
    /// Captured, then original.
    CapturedFirst,
    /// Original, then captured: before version 2.3.
    OriginalFirst,
    /// Version 2.3 was written both ways; the captured length is the smaller one.
    SmallerIsCaptured,
}

impl Parser {
    /// Reads the file header.
    ///
    /// # Errors
    /// No magic number of this format, or an unknown version.
    pub(super) fn new(header: &[u8; HEADER_OCTETS]) -> Result<Self, Damage> {
        let recognised = [ByteOrder::Little, ByteOrder::Big].into_iter().find_map(|order| {
            let mut fields = Fields::new(order, header);
            match fields.u32().ok()? {
                MICROSECONDS => Some((fields, order, 1_000, 16)),
                NANOSECONDS => Some((fields, order, 1, 16)),
                MODIFIED => Some((fields, order, 1_000, 24)),
                _ => None,
            }
        });
        let Some((mut fields, order, nanos_per_unit, header_octets)) = recognised else {
            return Err(Damage(super::input::foreign(header).into()));
        };
        let version = (fields.u16()?, fields.u16()?);
        let lengths = match version {
            (2, 0..=2) => Lengths::OriginalFirst,
            (2, 3) => Lengths::SmallerIsCaptured,
            (2, _) => Lengths::CapturedFirst,
            (major, minor) => return Err(Damage(format!("it has version {major}.{minor} of the pcap format").into())),
        };
        // Time zone, accuracy and snapshot length: the first two are always zero, the third binds nobody.
        fields.bytes(12)?;
        let network = fields.u32()?;
        let link_type = network as u16;
        // Bit 26: the length of the frame check sequence is known, and the upper four bits say it in units of 16 bits.
        let fcs_octets = if network & 1 << 26 == 0 { 0 } else { (network >> 28) * 2 };
        let link = link_type::link(link_type);
        Ok(Self { order, nanos_per_unit, header_octets, lengths, link, link_type, fcs_octets })
    }

    /// Takes the packets that are as nearly all are: whole, and in a file of the format's present version without frame check sequences.
    #[inline]
    pub(super) fn walk_plain<'a>(&self, input: &'a [u8], batch: &mut Batch<'_, 'a>) {
        let is_plain = self.header_octets == PLAIN_HEADER_OCTETS
            && self.lengths == Lengths::CapturedFirst
            && self.fcs_octets == 0
            && self.link != Link::Unread;
        match self.order {
            _ if !is_plain => {}
            ByteOrder::Little => self.walk_in_order(input, batch, u32::from_le_bytes),
            ByteOrder::Big => self.walk_in_order(input, batch, u32::from_be_bytes),
        }
    }

    #[inline]
    fn walk_in_order<'a>(&self, input: &'a [u8], batch: &mut Batch<'_, 'a>, word: impl Fn([u8; 4]) -> u32) {
        let mut rest = &input[batch.passed..];
        let (nanos_per_unit, link) = (u64::from(self.nanos_per_unit), self.link);
        batch.extend(|| {
            let (header, after) = rest.split_first_chunk::<PLAIN_HEADER_OCTETS>()?;
            let (words, _) = header.as_chunks::<4>();
            let [secs, fraction, captured, original] = [word(words[0]), word(words[1]), word(words[2]), word(words[3])];
            if captured > PACKET_OCTETS_MAX {
                return None;
            }
            let (bytes, next) = after.split_at_checked(captured as usize)?;
            prefetch(next, PREFETCH_OCTETS);
            rest = next;
            // At most 2^32 seconds and 2^32 units: below 2^63.
            let nanos = u64::from(secs) * 1_000_000_000 + u64::from(fraction) * nanos_per_unit;
            let at = Timestamp::from_nanos(nanos.max(1).cast_signed());
            Some(Frame { bytes, wire_len: original.max(captured), at, link, interface: 0 })
        });
        batch.passed = input.len() - rest.len();
    }

    /// See [`super::parser::Parser::guess`].
    #[inline]
    pub(super) fn guess(&self, input: &[u8], near: Timestamp) -> Option<usize> {
        let (header, _) = input.split_first_chunk::<PLAIN_HEADER_OCTETS>()?;
        let (words, _) = header.as_chunks::<4>();
        let word = |n: usize| match self.order {
            ByteOrder::Little => u32::from_le_bytes(words[n]),
            ByteOrder::Big => u32::from_be_bytes(words[n]),
        };
        let near_secs = (near.as_nanos() / 1_000_000_000) as u32;
        let is_near = word(0).wrapping_sub(near_secs.wrapping_sub(1)) < NEAR_SECS;
        let captured = word(2);
        (is_near && captured <= word(3) && captured <= PACKET_OCTETS_MAX).then(|| self.header_octets + captured as usize)
    }

    /// See [`super::parser::Parser::walk`].
    pub(super) fn step<'a>(&self, input: &'a [u8]) -> Result<Step<'a>, Damage> {
        let Some(header) = input.get(..self.header_octets) else {
            return Ok(Step::Need { octets: self.header_octets, of: "packet" });
        };
        let mut fields = Fields::new(self.order, header);
        let (secs, fraction, first, second) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        let (captured, original) = match self.lengths {
            Lengths::CapturedFirst => (first, second),
            Lengths::OriginalFirst => (second, first),
            Lengths::SmallerIsCaptured => (first.min(second), first.max(second)),
        };
        if captured > PACKET_OCTETS_MAX {
            return Err(Damage(
                format!("a packet claims {captured} captured octets (at most {PACKET_OCTETS_MAX} are possible)").into(),
            ));
        }
        let used = self.header_octets + captured as usize;
        let Some(bytes) = input.get(self.header_octets..used) else { return Ok(Step::Need { octets: used, of: "packet" }) };
        let nanos = i128::from(u64::from(secs) * 1_000_000_000 + u64::from(fraction) * u64::from(self.nanos_per_unit));
        let (bytes, wire_len) = without_fcs(bytes, original.max(captured), self.fcs_octets);
        let frame = Frame { bytes, wire_len, at: timestamp(nanos), link: self.link, interface: 0 };
        Ok(Step::Packet { frame, link_type: self.link_type, used })
    }
}
