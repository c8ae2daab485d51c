//! Batches of records, laid out in columns.
//!
//! ```text
//! batch  = { sensor: str, boot: u64, seq: u64, ledger: map, rows: u32, columns: [column…] }
//! column = { e: element number, w: width, b: base, h: high base, v: bin }
//! ```
//! `e` is [`Element::number`]. Value *i* of a column is `h·2⁶⁴ + b` plus the unsigned little-endian integer of `w` bytes at
//! `v[i·w..]`, modulo 2¹²⁸; `w` is 0, 1, 2, 4, 8 or 16. Width 0 is a column whose rows all have the base. `h` is left out when zero.
//! An element that the receiver does not know is passed over; one that is absent reads as zero.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::WireError;
use crate::element::{Access, ELEMENTS, Element};
use crate::flow::FlowRecord;
use crate::ledger::Ledger;

/// Most records in a batch.
pub const ROWS_MAX: usize = 65_536;
/// Most columns in a batch, known or not.
const COLUMNS_MAX: usize = 256;
/// Longest sensor name, in bytes.
const NAME_LEN_MAX: usize = 255;

/// Records shipped together, numbered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Name of the sensor.
    pub sensor: String,
    /// Which start of the sensor.
    pub boot: u64,
    /// From 1, without gaps, for each boot.
    pub sequence: u64,
    /// The sensor's account when the batch was made.
    pub ledger: Ledger,
    /// At most [`ROWS_MAX`].
    pub records: Vec<FlowRecord>,
}

/// A batch as it stands in the message.
#[derive(Serialize, Deserialize)]
pub(super) struct PackedBatch<'a> {
    sensor: Cow<'a, str>,
    boot: u64,
    seq: u64,
    #[serde(default)]
    ledger: Ledger,
    rows: u32,
    #[serde(borrow)]
    columns: Vec<Column<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Column<'a> {
    #[serde(rename = "e")]
    element: u64,
    #[serde(rename = "w")]
    width: u8,
    #[serde(rename = "b")]
    base: u64,
    #[serde(rename = "h", default, skip_serializing_if = "is_zero")]
    base_high: u64,
    #[serde(rename = "v", borrow, with = "serde_bytes")]
    values: Cow<'a, [u8]>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl PackedBatch<'_> {
    pub(super) fn pack(batch: &Batch) -> PackedBatch<'_> {
        debug_assert!(batch.records.len() <= ROWS_MAX, "the exporter cuts batches before they grow so long");
        let mut words = Vec::with_capacity(batch.records.len());
        PackedBatch {
            sensor: Cow::Borrowed(&batch.sensor),
            boot: batch.boot,
            seq: batch.sequence,
            ledger: batch.ledger,
            rows: u32::try_from(batch.records.len()).unwrap_or(u32::MAX),
            columns: ELEMENTS.iter().map(|element| Column::pack(element, &batch.records, &mut words)).collect(),
        }
    }

    pub(super) fn unpack(self) -> Result<Batch, WireError> {
        let malformed = |what: &str| Err(WireError::Malformed(what.to_owned()));
        let rows = self.rows as usize;
        if rows > ROWS_MAX {
            return malformed("a batch has more than 65536 rows");
        }
        if self.columns.len() > COLUMNS_MAX {
            return malformed("a batch has more than 256 columns");
        }
        if self.sensor.len() > NAME_LEN_MAX {
            return malformed("the name of the sensor is longer than 255 bytes");
        }
        let mut records = vec![FlowRecord::default(); rows];
        for column in &self.columns {
            if !matches!(column.width, 0 | 1 | 2 | 4 | 8 | 16) || column.values.len() != rows * usize::from(column.width) {
                return malformed("a column is not as long as its batch");
            }
            if let Some(element) = ELEMENTS.iter().find(|element| element.number() == column.element) {
                column.unpack(element, &mut records);
            }
        }
        Ok(Batch { sensor: self.sensor.into_owned(), boot: self.boot, sequence: self.seq, ledger: self.ledger, records })
    }
}

impl Column<'_> {
    fn pack(element: &Element, records: &[FlowRecord], words: &mut Vec<u64>) -> Column<'static> {
        match element.access {
            Access::Word(get, _) => {
                words.clear();
                words.extend(records.iter().map(get));
                pack_words(element.number(), words)
            }
            Access::Wide(get, _) => pack_wide(element.number(), records, get),
        }
    }

    fn unpack(&self, element: &Element, records: &mut [FlowRecord]) {
        let base = u128::from(self.base_high) << 64 | u128::from(self.base);
        let width = usize::from(self.width);
        match element.access {
            Access::Word(_, set) => match self.width {
                0 => records.iter_mut().for_each(|record| set(record, self.base)),
                _ => each(&self.values, width, records, |record, delta| set(record, self.base.wrapping_add(delta as u64))),
            },
            Access::Wide(_, set) => match self.width {
                0 => records.iter_mut().for_each(|record| set(record, base)),
                _ => each(&self.values, width, records, |record, delta| set(record, base.wrapping_add(delta))),
            },
        }
    }
}

/// Calls `put` with every record and its value from `values`; the widths are decided once, outside the loop.
fn each(values: &[u8], width: usize, records: &mut [FlowRecord], put: impl Fn(&mut FlowRecord, u128)) {
    fn chunks<const N: usize>(values: &[u8]) -> impl Iterator<Item = [u8; N]> {
        values.as_chunks::<N>().0.iter().copied()
    }
    let records = records.iter_mut();
    match width {
        1 => records.zip(values).for_each(|(record, &v)| put(record, u128::from(v))),
        2 => records.zip(chunks(values)).for_each(|(record, v)| put(record, u128::from(u16::from_le_bytes(v)))),
        4 => records.zip(chunks(values)).for_each(|(record, v)| put(record, u128::from(u32::from_le_bytes(v)))),
        8 => records.zip(chunks(values)).for_each(|(record, v)| put(record, u128::from(u64::from_le_bytes(v)))),
        _ => records.zip(chunks(values)).for_each(|(record, v)| put(record, u128::from_le_bytes(v))),
    }
}

/// The smallest base and width that hold every word. Words are compared as signed numbers so that a column of times that has
/// "never" (zero) in it, or a time before 1970, is no special case.
fn pack_words(element: u64, words: &[u64]) -> Column<'static> {
    let base = words.iter().map(|word| word.cast_signed()).min().unwrap_or(0);
    let span = words.iter().map(|word| word.wrapping_sub(base.cast_unsigned())).max().unwrap_or(0);
    let base = base.cast_unsigned();
    let mut values = Vec::new();
    let width = match span {
        0 => 0,
        1..=0xff => {
            values.extend(words.iter().map(|word| word.wrapping_sub(base) as u8));
            1
        }
        0x100..=0xffff => {
            values.extend(words.iter().flat_map(|word| (word.wrapping_sub(base) as u16).to_le_bytes()));
            2
        }
        0x1_0000..=0xffff_ffff => {
            values.extend(words.iter().flat_map(|word| (word.wrapping_sub(base) as u32).to_le_bytes()));
            4
        }
        _ => {
            values.extend(words.iter().flat_map(|word| word.wrapping_sub(base).to_le_bytes()));
            8
        }
    };
    Column { element, width, base, base_high: 0, values: Cow::Owned(values) }
}

fn pack_wide(element: u64, records: &[FlowRecord], get: fn(&FlowRecord) -> u128) -> Column<'static> {
    let base = records.iter().map(get).min().unwrap_or(0);
    let span = records.iter().map(|record| get(record) - base).max().unwrap_or(0);
    let mut values = Vec::new();
    let width = match span {
        0 => 0,
        1..=0xffff_ffff => {
            values.extend(records.iter().flat_map(|record| ((get(record) - base) as u32).to_le_bytes()));
            4
        }
        _ => {
            values.extend(records.iter().flat_map(|record| (get(record) - base).to_le_bytes()));
            16
        }
    };
    Column { element, width, base: base as u64, base_high: (base >> 64) as u64, values: Cow::Owned(values) }
}
