//! Columns of numbers turned into the bytes of a batch: rows sorted, bases taken off, columns foretold, bytes in planes.

use std::borrow::Cow;
use std::ops::Range;

use super::column::{Column, range, wide_width_of, width_of, write_wides, write_words};
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
        let (base, span) = short_range(values);
        (packed.base, packed.width) = (u128::from(base), width_of(span));
        let room = room_for(&mut self.values, values.len() * packed.width);
        let codes = self.order.iter().map(|row| values[usize::from(*row)].wrapping_sub(base));
        write_words(room, packed.width, codes);
    }

    fn wide(&mut self, values: &[u128], packed: &mut Packed) {
        let base = values.iter().copied().min().unwrap_or(0);
        let span = values.iter().copied().max().unwrap_or(0) - base;
        (packed.base, packed.width) = (base, wide_width_of(span));
        let room = room_for(&mut self.values, values.len() * packed.width);
        write_wides(room, packed.width, self.order.iter().map(|row| values[usize::from(*row)] - base));
    }

    fn planes(&mut self, values: &[u64], packed: &mut Packed) {
        let (base, span) = short_range(values);
        packed.base = u128::from(base);
        self.sorted.clear();
        self.sorted.extend(self.order.iter().map(|row| values[usize::from(*row)].wrapping_sub(base)));
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
            let Some(other) = words_of(columns, *number) else { continue };
            match factor {
                1 => other.zip(&mut self.codes, |code, value| *code = code.wrapping_sub(value)), // most, and several at a time
                _ => other.zip(&mut self.codes, |code, value| *code = code.wrapping_sub(factor.wrapping_mul(value))),
            }
        }
        let rows = || self.codes.iter().zip(&buffer.values);
        let (base, span) = range(rows().filter(|(_, value)| **value != 0).map(|(code, _)| *code));
        let Some(longest) = span.checked_add(1) else { return false };
        self.sorted.clear();
        self.sorted.extend(self.order.iter().map(|row| {
            let row = usize::from(*row);
            if buffer.values[row] == 0 { 0 } else { self.codes[row].wrapping_sub(base).wrapping_add(1) }
        }));
        (packed.base, packed.references) = (u128::from(base), references);
        self.write_planes(longest, packed);
        true
    }

    /// Writes the codes in `sorted`, of which `longest` is the largest.
    fn write_planes(&mut self, longest: u64, packed: &mut Packed) {
        packed.planes = true;
        packed.width = (u64::BITS - longest.leading_zeros()).div_ceil(8) as usize;
        for place in 0..packed.width {
            self.values.extend(self.sorted.iter().map(|code| (code >> (8 * place)) as u8));
        }
    }
}

/// A base, and how much larger the largest of `values` is: for short numbers zero, which is as good and sooner found than the least.
fn short_range(values: &[u64]) -> (u64, u64) {
    let bits = values.iter().fold(0, |bits, value| bits | value);
    if bits <= 0xffff { (0, bits) } else { range(values.iter().copied()) }
}

/// `octets` more of `values`.
fn room_for(values: &mut Vec<u8>, octets: usize) -> &mut [u8] {
    let from = values.len();
    values.resize(from + octets, 0);
    &mut values[from..]
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
