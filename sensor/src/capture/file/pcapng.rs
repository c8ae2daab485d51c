//! The format in blocks (draft-ietf-opsawg-pcapng): sections, each with a byte order and interfaces of its own, and packets that name
//! their interface. Blocks that say nothing about packets are passed over.

use spanwatch_common::ledger::Dropped;
use spanwatch_common::time::Timestamp;

use super::batch::Batch;
use super::link_type;
use super::mapped::prefetch;
use super::parser::{ByteOrder, Damage, Fields, NEAR_SECS, PACKET_OCTETS_MAX, PREFETCH_OCTETS, Step, timestamp, without_fcs};
use crate::capture::{Frame, Link};

/// The type of a section header block, a palindrome: it reads the same in both byte orders.
pub(super) const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// The byte-order magic that follows in it.
const BIG_ENDIAN: [u8; 4] = [0x1a, 0x2b, 0x3c, 0x4d];
const LITTLE_ENDIAN: [u8; 4] = [0x4d, 0x3c, 0x2b, 0x1a];

const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// Type, length, and the length once more.
const BLOCK_OCTETS_MIN: usize = 12;
/// What stands before the octets of an enhanced packet.
const PLAIN_HEADER_OCTETS: usize = 28;
/// Longest block that is believed, in octets, as in Wireshark.
const BLOCK_OCTETS_MAX: u32 = 16 << 20;
/// Interfaces of one section; the obsolete packet block cannot name more.
const INTERFACES_MAX: usize = 1 << 16;
/// A larger count of lost packets is not believed: some writers put all ones where they do not know.
const DROPPED_MAX: u64 = 1 << 40;
/// Keeps the sum over any number of sections from running over.
const DROPPED_SUM_MAX: u64 = 1 << 60;

const END_OF_OPTIONS: u16 = 0;

/// Takes a file apart, from its first section header on.
#[derive(Debug, Default)]
pub(super) struct Parser {
    order: ByteOrder,
    interfaces: Vec<Interface>,
    dropped: Dropped,
    /// Time of the packet before.
    last: Timestamp,
}

/// An interface description block, and the newest statistics of the interface.
#[derive(Debug)]
struct Interface {
    link: Link,
    link_type: u16,
    /// Octets that simple packet blocks were cut to; 0 is no limit.
    snap_len: u32,
    fcs_octets: u32,
    clock: Clock,
    /// Nanoseconds in a tick of an interface whose packets are plain in all else; 0 for any other.
    plain_nanos_per_tick: u64,
    dropped: Dropped,
}

/// How a time stamp becomes a time.
#[derive(Clone, Copy, Debug)]
struct Clock {
    unit: Unit,
    offset_secs: i64,
}

/// How long a tick is.
#[derive(Clone, Copy, Debug)]
enum Unit {
    /// So many nanoseconds.
    Nanos(u64),
    /// So many ticks are a nanosecond.
    PerNano(u64),
    /// 2 to the power of minus so many seconds.
    Binary(u8),
}

impl Parser {
    /// What the interface statistics of all sections say was lost.
    pub(super) const fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Takes the packets that are as nearly all are: enhanced packet blocks without options, of an interface whose clock needs no more than a
    /// multiplication.
    #[inline]
    pub(super) fn walk_plain<'a>(&mut self, input: &'a [u8], batch: &mut Batch<'_, 'a>) {
        match self.order {
            ByteOrder::Little => self.walk_in_order(input, batch, u32::from_le_bytes),
            ByteOrder::Big => self.walk_in_order(input, batch, u32::from_be_bytes),
        }
    }

    #[inline]
    fn walk_in_order<'a>(&mut self, input: &'a [u8], batch: &mut Batch<'_, 'a>, word: impl Fn([u8; 4]) -> u32) {
        let mut rest = &input[batch.passed..];
        let Self { interfaces, last, .. } = self;
        let numbered = interfaces.len() > 1;
        batch.extend(|| {
            let (header, after) = rest.split_first_chunk::<PLAIN_HEADER_OCTETS>()?;
            let (words, _) = header.as_chunks::<4>();
            let [kind, length, index, high] = [word(words[0]), word(words[1]), word(words[2]), word(words[3])];
            let [low, captured, original] = [word(words[4]), word(words[5]), word(words[6])];
            // The octets, padded, and the length once more: then there are no options.
            if kind != ENHANCED_PACKET || captured > PACKET_OCTETS_MAX {
                return None;
            }
            let padded = captured.next_multiple_of(4) as usize;
            let (data, end) = after.split_at_checked(padded)?;
            let (repeated, next) = end.split_first_chunk::<4>()?;
            if length as usize != PLAIN_HEADER_OCTETS + padded + 4 || word(*repeated) != length {
                return None;
            }
            let interface = interfaces.get(index as usize)?;
            let ticks = u64::from(high) << 32 | u64::from(low);
            let nanos = ticks.checked_mul(interface.plain_nanos_per_tick).filter(|nanos| (1..i64::MAX as u64).contains(nanos))?;
            prefetch(next, PREFETCH_OCTETS);
            rest = next;
            *last = Timestamp::from_nanos(nanos.cast_signed());
            let number = if numbered { index + 1 } else { 0 };
            let bytes = &data[..captured as usize];
            Some(Frame { bytes, wire_len: original.max(captured), at: *last, link: interface.link, interface: number })
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
        if word(0) != ENHANCED_PACKET {
            return None;
        }
        let interface = self.interfaces.get(word(2) as usize)?;
        let at = interface.clock.time(u64::from(word(3)) << 32 | u64::from(word(4)));
        let nanos = at.as_nanos().wrapping_sub(near.as_nanos()).wrapping_add(1_000_000_000);
        let (length, captured) = (word(1), word(5));
        let is_plausible = (0..i64::from(NEAR_SECS) * 1_000_000_000).contains(&nanos)
            && captured <= word(6)
            && captured <= PACKET_OCTETS_MAX
            && (captured + 32..=BLOCK_OCTETS_MAX).contains(&length);
        is_plausible.then_some(length as usize)
    }

    /// See [`super::parser::Parser::walk`].
    pub(super) fn step<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, Damage> {
        let Some(start) = input.first_chunk::<BLOCK_OCTETS_MIN>() else {
            return Ok(Step::Need { octets: BLOCK_OCTETS_MIN, of: "block" });
        };
        let is_section_header = start.starts_with(&SECTION_HEADER);
        let order = match start {
            _ if !is_section_header => self.order,
            [.., a, b, c, d] if [*a, *b, *c, *d] == BIG_ENDIAN => ByteOrder::Big,
            [.., a, b, c, d] if [*a, *b, *c, *d] == LITTLE_ENDIAN => ByteOrder::Little,
            _ => return Err(Damage::new("a section header does not say its byte order")),
        };
        let mut fields = Fields::new(order, start);
        let (kind, length) = (fields.u32()?, fields.u32()?);
        if (length as usize) < BLOCK_OCTETS_MIN || !length.is_multiple_of(4) || length > BLOCK_OCTETS_MAX {
            return Err(Damage(format!("a block claims a length of {length} octets").into()));
        }
        let used = length as usize;
        let Some(block) = input.get(..used) else { return Ok(Step::Need { octets: used, of: "block" }) };
        let mut fields = Fields::new(order, block);
        fields.bytes(8)?;
        let body = fields.bytes(used - BLOCK_OCTETS_MIN)?;
        if fields.u32()? != length {
            return Err(Damage::new("a block says different lengths at its beginning and at its end"));
        }
        let mut fields = Fields::new(order, body);
        match kind {
            ENHANCED_PACKET => {
                let (interface, high, low) = (fields.u32()?, fields.u32()?, fields.u32()?);
                let (captured, original) = (fields.u32()?, fields.u32()?);
                let ticks = u64::from(high) << 32 | u64::from(low);
                self.packet(interface, Some(ticks), captured, original, fields, used)
            }
            SIMPLE_PACKET => {
                let original = fields.u32()?;
                let snap_len = self.interface(0)?.snap_len;
                let captured = if snap_len == 0 { original } else { original.min(snap_len) };
                self.packet(0, None, captured, original, fields, used)
            }
            OBSOLETE_PACKET => {
                let interface = fields.u16()?;
                let _drops_count = fields.u16()?;
                let (high, low, captured, original) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
                let ticks = u64::from(high) << 32 | u64::from(low);
                self.packet(interface.into(), Some(ticks), captured, original, fields, used)
            }
            _ if is_section_header => self.section(order, fields).map(|()| Step::Passed { used }),
            INTERFACE_DESCRIPTION => self.describe(fields).map(|()| Step::Passed { used }),
            INTERFACE_STATISTICS => self.count_lost(fields).map(|()| Step::Passed { used }),
            _ => Ok(Step::Passed { used }),
        }
    }

    fn interface(&self, index: u32) -> Result<&Interface, Damage> {
        self.interfaces.get(index as usize).ok_or(Damage::new("a block names an interface that was not described"))
    }

    /// `data` begins with the captured octets; options follow them.
    #[inline]
    fn packet<'a>(
        &mut self,
        index: u32,
        ticks: Option<u64>,
        captured: u32,
        original: u32,
        mut data: Fields<'a>,
        used: usize,
    ) -> Result<Step<'a>, Damage> {
        let interface = self.interface(index)?;
        if captured > PACKET_OCTETS_MAX {
            return Err(Damage(
                format!("a packet claims {captured} captured octets (at most {PACKET_OCTETS_MAX} are possible)").into(),
            ));
        }
        let bytes = data.bytes(captured as usize)?;
        let padding = captured.next_multiple_of(4) - captured;
        let fcs_octets = if data.rest().len() <= padding as usize {
            interface.fcs_octets
        } else {
            data.bytes(padding as usize)?;
            fcs_of_flags(self.order, data).unwrap_or(interface.fcs_octets)
        };
        // A simple packet block has no time. That of the packet before it is the nearest that is known.
        let at = ticks.map_or(self.last.max(timestamp(0)), |ticks| interface.clock.time(ticks));
        let (bytes, wire_len) = without_fcs(bytes, original.max(captured), fcs_octets);
        let number = if self.interfaces.len() > 1 { index + 1 } else { 0 };
        let frame = Frame { bytes, wire_len, at, link: interface.link, interface: number };
        let link_type = interface.link_type;
        self.last = at;
        Ok(Step::Packet { frame, link_type, used })
    }

    fn section(&mut self, order: ByteOrder, mut fields: Fields<'_>) -> Result<(), Damage> {
        let _magic = fields.u32()?;
        let (major, minor) = (fields.u16()?, fields.u16()?);
        if major != 1 {
            return Err(Damage(format!("a section has version {major}.{minor} of the pcapng format").into()));
        }
        self.order = order;
        self.interfaces.clear();
        Ok(())
    }

    fn describe(&mut self, mut fields: Fields<'_>) -> Result<(), Damage> {
        if self.interfaces.len() == INTERFACES_MAX {
            return Err(Damage(format!("a section describes more than {INTERFACES_MAX} interfaces").into()));
        }
        let (link_type, _reserved, snap_len) = (fields.u16()?, fields.u16()?, fields.u32()?);
        let mut interface = Interface {
            link: link_type::link(link_type),
            link_type,
            snap_len,
            fcs_octets: 0,
            clock: Clock { unit: Unit::Nanos(1_000), offset_secs: 0 },
            plain_nanos_per_tick: 0,
            dropped: Dropped::default(),
        };
        for option in options(fields) {
            match option? {
                (9, &[resolution]) => interface.clock.unit = Unit::from_resolution(resolution),
                (13, &[length]) => interface.fcs_octets = fcs_of_interface(length),
                (14, offset) => interface.clock.offset_secs = Fields::new(self.order, offset).u64()?.cast_signed(),
                _ => {}
            }
        }
        if let Clock { unit: Unit::Nanos(nanos), offset_secs: 0 } = interface.clock
            && interface.fcs_octets == 0
            && interface.link != Link::Unread
        {
            interface.plain_nanos_per_tick = nanos;
        }
        self.interfaces.push(interface);
        Ok(())
    }

    /// The counts of an interface run from the beginning of the capture, so only their growth is new.
    fn count_lost(&mut self, mut fields: Fields<'_>) -> Result<(), Damage> {
        let index = fields.u32()?;
        let _time = fields.u64()?;
        self.interface(index)?;
        let known = &mut self.interfaces[index as usize].dropped;
        for option in options(fields) {
            let (code, value) = option?;
            let (known, sum) = match code {
                5 => (&mut known.interface, &mut self.dropped.interface),
                7 => (&mut known.buffer_full, &mut self.dropped.buffer_full),
                _ => continue,
            };
            let count = Fields::new(self.order, value).u64()?;
            if (*known..DROPPED_MAX).contains(&count) {
                *sum = (*sum + (count - *known)).min(DROPPED_SUM_MAX);
                *known = count;
            }
        }
        Ok(())
    }
}

impl Unit {
    /// `if_tsresol`: a negative power of 10, or of 2 when the highest bit is set.
    const fn from_resolution(resolution: u8) -> Self {
        let power = resolution & 0x7f;
        if resolution & 0x80 != 0 {
            return Self::Binary(power);
        }
        match power {
            0..=9 => Self::Nanos(10u64.pow(9 - power as u32)),
            // A tick so short that 2^64 of them are no nanosecond.
            29.. => Self::PerNano(u64::MAX),
            _ => Self::PerNano(10u64.pow(power as u32 - 9)),
        }
    }
}

impl Clock {
    #[inline]
    fn time(self, ticks: u64) -> Timestamp {
        let nanos = match self.unit {
            Unit::Nanos(nanos) => u128::from(ticks) * u128::from(nanos),
            Unit::PerNano(ticks_per_nano) => u128::from(ticks / ticks_per_nano),
            Unit::Binary(power) => (u128::from(ticks) * 1_000_000_000) >> power,
        };
        // Below 2^94, as is the offset in nanoseconds.
        timestamp(nanos.cast_signed() + i128::from(self.offset_secs) * 1_000_000_000)
    }
}

/// The options at the end of a block: code and value of each.
fn options<'a>(mut fields: Fields<'a>) -> impl Iterator<Item = Result<(u16, &'a [u8]), Damage>> {
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over || fields.rest().is_empty() {
            return None;
        }
        let option = next_option(&mut fields);
        is_over = !matches!(option, Ok((code, _)) if code != END_OF_OPTIONS);
        Some(option).filter(|option| !matches!(option, Ok((END_OF_OPTIONS, _))))
    })
}

fn next_option<'a>(fields: &mut Fields<'a>) -> Result<(u16, &'a [u8]), Damage> {
    let (code, length) = (fields.u16()?, usize::from(fields.u16()?));
    let value = fields.bytes(length.next_multiple_of(4))?;
    Ok((code, &value[..length]))
}

/// Bits 5 to 8 of the flags of a packet: octets of its frame check sequence, 0 where that is not known. A packet whose options are broken
/// is a packet all the same.
fn fcs_of_flags(order: ByteOrder, fields: Fields<'_>) -> Option<u32> {
    let (_, flags) = options(fields).map_while(Result::ok).find(|(code, _)| *code == 2)?;
    Some((Fields::new(order, flags).u32().ok()? >> 5) & 0xf).filter(|octets| *octets > 0)
}

/// `if_fcslen` is in bits, but was long taken to be in octets. No frame check sequence is shorter than an octet or longer than 7.
const fn fcs_of_interface(length: u8) -> u32 {
    (if length < 8 { length } else { length / 8 }) as u32
}
