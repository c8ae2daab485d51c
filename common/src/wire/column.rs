//! One column, as it stands in a batch; [`batch`](super::batch) says what its keys mean.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::WireError;
use crate::element::{Access, ELEMENTS, Element};
use crate::flow::FlowRecord;

/// Most columns that foretell another.
const REFERENCES_MAX: usize = 4;

#[derive(Serialize, Deserialize)]
pub(super) struct Column<'a> {
    #[serde(rename = "e")]
    pub(super) element: u64,
    #[serde(rename = "w")]
    pub(super) width: u8,
    #[serde(rename = "b")]
    pub(super) base: u64,
    #[serde(rename = "h", default, skip_serializing_if = "is_zero")]
    pub(super) base_high: u64,
    #[serde(rename = "p", default, skip_serializing_if = "is_false")]
    pub(super) planes: bool,
    /// Number of an element, and by what its value is multiplied.
    #[serde(rename = "r", default, skip_serializing_if = "<[_]>::is_empty")]
    pub(super) references: Cow<'a, [(u64, u64)]>,
    #[serde(rename = "v", borrow, with = "serde_bytes")]
    pub(super) values: Cow<'a, [u8]>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Column<'_> {
    /// In form 1.
    pub(super) fn pack(element: &Element, records: &[FlowRecord], words: &mut Vec<u64>) -> Column<'static> {
        match element.access {
            Access::Word(get, _) => {
                words.clear();
                words.extend(records.iter().map(get));
                pack_words(element.number(), words)
            }
            Access::Wide(get, _) => pack_wide(element.number(), records, get),
        }
    }

    /// Whether it is as long as its batch, known or not.
    pub(super) fn check(&self, rows: usize) -> Result<(), WireError> {
        let fits = if self.planes { self.width <= 8 } else { matches!(self.width, 0 | 1 | 2 | 4 | 8 | 16) };
        if fits && self.values.len() == rows * usize::from(self.width) {
            return Ok(());
        }
        Err(malformed("a column is not as long as its batch"))
    }

    /// Sets `element` in every record. `codes` is room to work in.
    pub(super) fn unpack(&self, element: &Element, records: &mut [FlowRecord], codes: &mut Vec<u64>) -> Result<(), WireError> {
        if self.planes || !self.references.is_empty() {
            let Access::Word(_, set) = element.access else {
                return Err(malformed("a column of addresses is in planes or foretold"));
            };
            self.read_codes(records.len(), codes)?;
            return self.foretell(records, codes, set);
        }
        let base = u128::from(self.base_high) << 64 | u128::from(self.base);
        let width = usize::from(self.width);
        match element.access {
            Access::Word(_, set) => match self.width {
                0 => records.iter_mut().for_each(|record| set(record, self.base)),
                _ => each(&self.values, width, records, |record, code| set(record, self.base.wrapping_add(code as u64))),
            },
            Access::Wide(_, set) => match self.width {
                0 => records.iter_mut().for_each(|record| set(record, base)),
                _ => each(&self.values, width, records, |record, code| set(record, base.wrapping_add(code))),
            },
        }
        Ok(())
    }

    fn read_codes(&self, rows: usize, codes: &mut Vec<u64>) -> Result<(), WireError> {
        codes.clear();
        codes.resize(rows, 0);
        let width = usize::from(self.width);
        if self.planes {
            for (place, plane) in self.values.chunks_exact(rows.max(1)).enumerate() {
                codes.iter_mut().zip(plane).for_each(|(code, byte)| *code |= u64::from(*byte) << (8 * place));
            }
        } else if width <= 8 {
            each(&self.values, width, codes, |code, value| *code = value as u64);
        } else {
            return Err(malformed("a column of 128 bits is foretold"));
        }
        Ok(())
    }

    fn foretell(&self, records: &mut [FlowRecord], codes: &[u64], set: fn(&mut FlowRecord, u64)) -> Result<(), WireError> {
        let records = records.iter_mut().zip(codes);
        if self.references.is_empty() {
            records.for_each(|(record, code)| set(record, self.base.wrapping_add(*code)));
            return Ok(());
        }
        if self.references.len() > REFERENCES_MAX {
            return Err(malformed("a column is foretold by more than 4 others"));
        }
        let mut terms: [(fn(&FlowRecord) -> u64, u64); REFERENCES_MAX] = [(|_| 0, 0); REFERENCES_MAX];
        for (term, (number, factor)) in terms.iter_mut().zip(&*self.references) {
            match ELEMENTS.iter().find(|element| element.number() == *number).map(|element| element.access) {
                Some(Access::Word(get, _)) => *term = (get, *factor),
                _ => return Err(malformed("a column is foretold by one that is unknown or holds addresses")),
            }
        }
        let terms = &terms[..self.references.len()];
        let least = self.base.wrapping_sub(1);
        for (record, &code) in records {
            let foretold =
                |sum: u64, (get, factor): &(fn(&FlowRecord) -> u64, u64)| sum.wrapping_add(factor.wrapping_mul(get(record)));
            let value = if code == 0 { 0 } else { terms.iter().fold(least.wrapping_add(code), foretold) };
            set(record, value);
        }
        Ok(())
    }
}

fn malformed(what: &str) -> WireError {
    WireError::Malformed(what.to_owned())
}

/// Calls `put` with every target and its value from `values`; the widths are decided once, outside the loop.
fn each<T>(values: &[u8], width: usize, targets: &mut [T], put: impl Fn(&mut T, u128)) {
    fn chunks<const N: usize>(values: &[u8]) -> impl Iterator<Item = [u8; N]> {
        values.as_chunks::<N>().0.iter().copied()
    }
    let targets = targets.iter_mut();
    match width {
        0 => {}
        1 => targets.zip(values).for_each(|(target, &v)| put(target, u128::from(v))),
        2 => targets.zip(chunks(values)).for_each(|(target, v)| put(target, u128::from(u16::from_le_bytes(v)))),
        4 => targets.zip(chunks(values)).for_each(|(target, v)| put(target, u128::from(u32::from_le_bytes(v)))),
        8 => targets.zip(chunks(values)).for_each(|(target, v)| put(target, u128::from(u64::from_le_bytes(v)))),
        _ => targets.zip(chunks(values)).for_each(|(target, v)| put(target, u128::from_le_bytes(v))),
    }
}

/// The smallest base and width that hold every word.
fn pack_words(element: u64, words: &[u64]) -> Column<'static> {
    let (base, span) = range(words.iter().copied());
    let width = width_of(span);
    let mut values = vec![0; words.len() * width];
    write_words(&mut values, width, words.iter().map(|word| word.wrapping_sub(base)));
    plain(element, width, u128::from(base), values)
}

fn pack_wide(element: u64, records: &[FlowRecord], get: fn(&FlowRecord) -> u128) -> Column<'static> {
    let base = records.iter().map(get).min().unwrap_or(0);
    let span = records.iter().map(|record| get(record) - base).max().unwrap_or(0);
    let width = wide_width_of(span);
    let mut values = vec![0; records.len() * width];
    write_wides(&mut values, width, records.iter().map(|record| get(record) - base));
    plain(element, width, base, values)
}

fn plain(element: u64, width: usize, base: u128, values: Vec<u8>) -> Column<'static> {
    let (base, base_high) = (base as u64, (base >> 64) as u64);
    let (planes, references) = (false, Cow::Borrowed(&[][..]));
    Column { element, width: width as u8, base, base_high, planes, references, values: Cow::Owned(values) }
}

/// Bytes that hold every code of a column of words up to `span`.
pub(super) const fn width_of(span: u64) -> usize {
    match span {
        0 => 0,
        1..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    }
}

/// The same for a column of addresses.
pub(super) const fn wide_width_of(span: u128) -> usize {
    match span {
        0 => 0,
        1..=0xffff_ffff => 4,
        _ => 16,
    }
}

/// The least of some words and how much larger the largest is. They are compared as signed numbers, so that a column of times that has
/// "never" (zero) in it, or a time before 1970, is no special case.
pub(super) fn range(words: impl Iterator<Item = u64>) -> (u64, u64) {
    let (least, most) = words.fold((i64::MAX, i64::MIN), |(least, most), word| {
        let word = word.cast_signed();
        (least.min(word), most.max(word))
    });
    if least > most { (0, 0) } else { (least.cast_unsigned(), most.cast_unsigned().wrapping_sub(least.cast_unsigned())) }
}

/// Fills `room` with codes of `width` bytes.
pub(super) fn write_words(room: &mut [u8], width: usize, codes: impl Iterator<Item = u64>) {
    match width {
        0 => {}
        1 => put(room, codes.map(|code| [code as u8])),
        2 => put(room, codes.map(|code| (code as u16).to_le_bytes())),
        4 => put(room, codes.map(|code| (code as u32).to_le_bytes())),
        _ => put(room, codes.map(u64::to_le_bytes)),
    }
}

/// The same for a column of addresses.
pub(super) fn write_wides(room: &mut [u8], width: usize, codes: impl Iterator<Item = u128>) {
    match width {
        0 => {}
        4 => put(room, codes.map(|code| (code as u32).to_le_bytes())),
        _ => put(room, codes.map(u128::to_le_bytes)),
    }
}

fn put<const N: usize>(room: &mut [u8], codes: impl Iterator<Item = [u8; N]>) {
    room.as_chunks_mut::<N>().0.iter_mut().zip(codes).for_each(|(room, code)| *room = code);
}
