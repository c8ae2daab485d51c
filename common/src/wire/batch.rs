//! Batches of records, laid out in columns.
//!
//! ```text
//! batch  = { sensor: str, boot: u64, seq: u64, ledger: map, rows: u32, columns: [column…] }
//! column = { e: element number, w: width, b: base, h: high base, p: bool, r: [[element number, factor]…], v: bin }
//! ```
//! `e` is [`Element::number`](crate::element::Element::number). A column has one *code* for each row: the unsigned little-endian integer
//! of `w` bytes at `v[i·w..]`, where `w` is 0, 1, 2, 4, 8 or 16; width 0 means that every code is zero. The value of row *i* is
//! `h·2⁶⁴ + b` plus its code, modulo 2¹²⁸. Keys that are zero, false or empty may be left out. An element that the receiver does not
//! know is passed over; one that is absent reads as zero. The rows are in no particular order.
//!
//! # Form 2
//! A collector that asked for it ([`Welcome::batch_form`](super::Welcome::batch_form)) may get columns that compress better; only for
//! elements that fit 64 bits:
//!
//! * `p`: the bytes are in *planes*. Byte *j* of code *i* is `v[j·rows + i]`, and `w` may be anything from 0 to 8.
//! * `r`: the values are *foretold* by other columns. A code of zero stands for the value zero. Any other code stands for `b` + code − 1
//!   + Σ factor · value of that element in the same row, modulo 2⁶⁴. The columns of those elements come before.
//!
//! Which columns travel how is the sensor's choice (`layout`), and not part of the format.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::WireError;
use super::column::Column;
use crate::element::ELEMENTS;
use crate::flow::FlowRecord;
use crate::ledger::Ledger;

/// The newest form of batches.
pub const FORM: u32 = 2;
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

impl PackedBatch<'_> {
    /// In form 1, with every column, and the rows in their order. A sensor's [`Encoder`](super::Encoder) does more with less.
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
        let mut codes = Vec::new();
        for column in &self.columns {
            column.check(rows)?;
            if let Some(element) = ELEMENTS.iter().find(|element| element.number() == column.element) {
                column.unpack(element, &mut records, &mut codes)?;
            }
        }
        Ok(Batch { sensor: self.sensor.into_owned(), boot: self.boot, sequence: self.seq, ledger: self.ledger, records })
    }
}
