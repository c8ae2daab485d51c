//! Columns of numbers turned into the bytes of a batch: rows sorted, bases taken off, columns foretold, bytes in planes.

use std::borrow::Cow;
use std::ops::Range;

use super::column::{Column, wide_width_of, width_of};
use super::columns::{Buffer, Columns, Values};
use super::layout::{HOSTS, Layout, SORTED_BY, layout};
use crate::element::ELEMENTS;

/// The lowest bits of a sort key hold the number of the row; [`SORTED_BY`] and the two hosts leave just so many.
const ROW_BITS: u32 = 16;
/// Bits of a sort key that tell hosts apart, for each end.
const HOST_BITS: u32 = 11;
/// 2⁶⁴ divided by the golden ratio: multiplied by it, numbers that lie close together differ in their highest bits (Knuth, TAOCP 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Packs one batch after the other into the same memory.
pub(super) struct Packer {
    columns: Vec<Packed>,
    /// The bytes of all columns.
    values: Vec<u8>,
    /// Row numbers in the order in which they are sent.
    order: Vec<u16>,
    /// Room to work in: sort keys; the codes of one column, and the same in the order in which they are sent.
    keys: Vec<u64>,
    codes: Vec<u64>,
    sorted: Vec<u64>,
    wides: Vec<u128>,
}

/// A column without its bytes.
struct Packed {
    element: u64,
    width: usize,
    base: u128,
    planes: bool,
    references: &'static [(u64, u64)],
    values: Range<usize>,
}

impl Packer {
    pub(super) fn new() -> Self {
        Self {
            columns: Vec::with_capacity(ELEMENTS.len()),
            values: Vec::new(),
            order: Vec::new(),
            keys: Vec::new(),
            codes: Vec::new(),
            sorted: Vec::new(),
            wides: Vec::new(),
        }
    }

    /// Packs these columns, in place of those before.
    pub(super) fn pack(&mut self, columns: &Columns) {
        self.sort(columns);
        self.columns.clear();
        self.values.clear();
        let layouts = || ELEMENTS.iter().map(|element| layout(element.number()));
        for is_foretold in [false, true] {
            for (place, layout) in layouts().enumerate() {
                if matches!(layout, Layout::Foretold(_)) == is_foretold {
                    self.column(columns, place, layout);
                }
            }
        }
    }

    /// The columns as they stand in the message.
    pub(super) fn columns(&self) -> impl ExactSizeIterator<Item = Column<'_>> {
        self.columns.iter().map(|column| Column {
            element: column.element,
            width: column.width as u8,
            base: column.base as u64,
            base_high: (column.base >> 64) as u64,
            planes: column.planes,
            references: Cow::Borrowed(column.references),
            values: Cow::Borrowed(&self.values[column.values.clone()]),
        })
    }

    /// Puts like beside like: sorts by state, protocol, service and hosts. Rows that are alike in these keep their order.
    fn sort(&mut self, columns: &Columns) {
        let Self { keys, codes, order, .. } = self;
        keys.clear();
        keys.resize(columns.len(), 0);
        for (number, bits) in SORTED_BY {
            if let Some(values) = words_of(columns, number) {
                values.zip(keys, |key, value| *key = *key << bits | value);
            }
        }
        for [address, mac] in HOSTS {
            codes.clear();
            codes.resize(columns.len(), 0);
            if let Some(Values::Wides(addresses)) = place_of(address).map(|place| columns.at(place)) {
                addresses.zip(codes, |code, address| *code = address as u64 ^ (address >> 64) as u64);
            }
            if let Some(macs) = words_of(columns, mac) {
                macs.zip(codes, |code, mac| *code ^= mac);
            }
            for (key, code) in keys.iter_mut().zip(&*codes) {
                *key = *key << HOST_BITS | code.wrapping_mul(SPREAD) >> (u64::BITS - HOST_BITS);
            }
        }
        keys.iter_mut().enumerate().for_each(|(row, key)| *key = *key << ROW_BITS | row as u64);
        keys.sort_unstable(); // no two are alike
        order.clear();
        order.extend(keys.iter().map(|key| *key as u16));
    }

    fn column(&mut self, columns: &Columns, place: usize, layout: Layout) {
        let element = ELEMENTS[place].number();
        let from = self.values.len();
        let mut packed = Packed { element, width: 0, base: 0, planes: false, references: &[], values: from..from };
        match (columns.at(place), layout) {
            (Values::Words(buffer), _) if buffer.values.is_empty() => packed.base = u128::from(buffer.same),
            (Values::Wides(buffer), _) if buffer.values.is_empty() => packed.base = buffer.same,
            (Values::Wides(buffer), _) => self.wide(&buffer.values, &mut packed),
            (Values::Words(buffer), Layout::Foretold(references)) if self.foretell(columns, buffer, references, &mut packed) => {}
            (Values::Words(buffer), Layout::Rows) => self.rows(&buffer.values, &mut packed),
            (Values::Words(buffer), _) => self.planes(&buffer.values, &mut packed),
        }
        packed.values.end = self.values.len();
        // An absent column reads as zero.
        if packed.width != 0 || packed.base != 0 {
            self.columns.push(packed);
        }
    }

    fn rows(&mut self, values: &[u64], packed: &mut Packed) {
        let (base, span) = range(values.iter().copied());
        (packed.base, packed.width) = (u128::from(base), width_of(span));
        self.sorted.clear();
        self.sorted.extend(self.order.iter().map(|row| values[usize::from(*row)].wrapping_sub(base)));
        let room = room_for(&mut self.values, self.sorted.len() * packed.width);
        match packed.width {
            1 => room.iter_mut().zip(&self.sorted).for_each(|(byte, code)| *byte = *code as u8),
            2 => put(room, &self.sorted, |code| (code as u16).to_le_bytes()),
            4 => put(room, &self.sorted, |code| (code as u32).to_le_bytes()),
            8 => put(room, &self.sorted, u64::to_le_bytes),
            _ => {}
        }
    }

    fn wide(&mut self, values: &[u128], packed: &mut Packed) {
        let base = values.iter().copied().min().unwrap_or(0);
        let span = values.iter().copied().max().unwrap_or(0) - base;
        (packed.base, packed.width) = (base, wide_width_of(span));
        self.wides.clear();
        self.wides.extend(self.order.iter().map(|row| values[usize::from(*row)] - base));
        let room = room_for(&mut self.values, self.wides.len() * packed.width);
        match packed.width {
            4 => put(room, &self.wides, |code| (code as u32).to_le_bytes()),
            16 => put(room, &self.wides, u128::to_le_bytes),
            _ => {}
        }
    }

    fn planes(&mut self, values: &[u64], packed: &mut Packed) {
        let (base, span) = range(values.iter().copied());
        packed.base = u128::from(base);
        self.codes.clear();
        self.codes.extend(values.iter().map(|value| value.wrapping_sub(base)));
        self.write_planes(span, packed);
    }

    /// `false`, and nothing done, when the codes do not fit 64 bits.
    fn foretell(
        &mut self,
        columns: &Columns,
        buffer: &Buffer<u64>,
        references: &'static [(u64, u64)],
        packed: &mut Packed,
    ) -> bool {
        self.codes.clear();
        self.codes.extend_from_slice(&buffer.values);
        for (number, factor) in references {
            if let Some(other) = words_of(columns, *number) {
                other.zip(&mut self.codes, |code, value| *code = code.wrapping_sub(factor.wrapping_mul(value)));
            }
        }
        let rows = || self.codes.iter().zip(&buffer.values);
        let (base, span) = range(rows().filter(|(_, value)| **value != 0).map(|(code, _)| *code));
        let Some(longest) = span.checked_add(1) else { return false };
        for (code, value) in self.codes.iter_mut().zip(&buffer.values) {
            *code = if *value == 0 { 0 } else { code.wrapping_sub(base) + 1 };
        }
        (packed.base, packed.references) = (u128::from(base), references);
        self.write_planes(longest, packed);
        true
    }

    /// Writes the codes, of which `longest` is the largest.
    fn write_planes(&mut self, longest: u64, packed: &mut Packed) {
        packed.planes = true;
        packed.width = (u64::BITS - longest.leading_zeros()).div_ceil(8) as usize;
        self.sorted.clear();
        self.sorted.extend(self.order.iter().map(|row| self.codes[usize::from(*row)]));
        for place in 0..packed.width {
            self.values.extend(self.sorted.iter().map(|code| (code >> (8 * place)) as u8));
        }
    }
}

/// The least of some words and how much larger the largest is. They are compared as signed numbers, so that a column of times that has
/// "never" (zero) in it, or a time before 1970, is no special case.
fn range(words: impl Iterator<Item = u64>) -> (u64, u64) {
    let (least, most) = words.fold((i64::MAX, i64::MIN), |(least, most), word| {
        let word = word.cast_signed();
        (least.min(word), most.max(word))
    });
    if least > most { (0, 0) } else { (least.cast_unsigned(), most.cast_unsigned().wrapping_sub(least.cast_unsigned())) }
}

/// `octets` more of `values`.
fn room_for(values: &mut Vec<u8>, octets: usize) -> &mut [u8] {
    let from = values.len();
    values.resize(from + octets, 0);
    &mut values[from..]
}

fn put<T: Copy, const N: usize>(room: &mut [u8], codes: &[T], bytes: impl Fn(T) -> [u8; N]) {
    room.as_chunks_mut::<N>().0.iter_mut().zip(codes).for_each(|(room, code)| *room = bytes(*code));
}

fn words_of(columns: &Columns, number: u64) -> Option<&Buffer<u64>> {
    match columns.at(place_of(number)?) {
        Values::Words(buffer) => Some(buffer),
        Values::Wides(_) => None,
    }
}

fn place_of(number: u64) -> Option<usize> {
    ELEMENTS.iter().position(|element| element.number() == number)
}
