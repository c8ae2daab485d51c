//! Records in, frames out: what a sensor makes batches with.

use std::fmt;

use serde::ser::{Serialize, SerializeSeq, Serializer};
use zstd::bulk::Compressor;

use super::WireError;
use super::batch::ROWS_MAX;
use super::columns::Columns;
use super::frame::seal;
use super::message::DATA;
use super::packer::Packer;
use crate::flow::FlowRecord;
use crate::ledger::Ledger;

/// What a batch says beside its records.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Name of the sensor.
    pub sensor: &'a str,
    /// Which start of the sensor.
    pub boot: u64,
    /// From 1, without gaps, for each boot.
    pub sequence: u64,
    /// The sensor's account when the batch is made.
    pub ledger: &'a Ledger,
}

/// Makes batches of form 2, one after the other. All its memory is used again: once it has seen a batch as long as any to come, it
/// allocates nothing.
///
/// The records of a batch leave in another order than they came: by state, protocol, service and hosts, for like beside like compresses
/// best. Those who need them in another order sort them by their times.
pub struct Encoder {
    columns: Columns,
    packer: Packer,
    plain: Vec<u8>,
    compressed: Vec<u8>,
    zstd: Compressor<'static>,
}

impl Default for Encoder {
    fn default() -> Self {
        let (plain, compressed) = Default::default();
        Self { columns: Columns::new(), packer: Packer::new(), plain, compressed, zstd: Compressor::default() }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Encoder {
    /// How many records wait for the next batch.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether no record waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a record to the next batch.
    ///
    /// # Panics
    /// The next batch has [`ROWS_MAX`] records already.
    #[inline]
    pub fn push(&mut self, record: FlowRecord) {
        assert!(self.columns.len() < ROWS_MAX, "whoever fills a batch sends it before it is too long");
        self.columns.push(record);
    }

    /// Appends the records that wait to `out` as one frame. Whatever comes of it, none waits afterwards.
    ///
    /// # Errors
    /// [`WireError::Unsendable`] when the frame exceeds the limits that a receiver enforces, which [`ROWS_MAX`] rules out.
    pub fn encode(&mut self, head: &Head<'_>, out: &mut Vec<u8>) -> Result<(), WireError> {
        self.columns.turn();
        self.packer.pack(&self.columns);
        let rows = self.columns.len() as u32;
        self.columns.clear();

        self.plain.clear();
        self.plain.extend_from_slice(&DATA);
        let Head { sensor, boot, sequence, ledger } = *head;
        let batch = Outgoing { sensor, boot, seq: sequence, ledger, rows, columns: Sequence(&self.packer) };
        batch
            .serialize(&mut rmp_serde::Serializer::new(&mut self.plain).with_struct_map())
            .map_err(|error| WireError::Malformed(error.to_string()))?;
        seal(&mut self.zstd, &self.plain, &mut self.compressed, out)
    }
}

/// A batch as it stands in the message, without a list of its columns in memory.
#[derive(serde::Serialize)]
struct Outgoing<'a> {
    sensor: &'a str,
    boot: u64,
    seq: u64,
    ledger: &'a Ledger,
    rows: u32,
    columns: Sequence<'a>,
}

struct Sequence<'a>(&'a Packer);

impl Serialize for Sequence<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let columns = self.0.columns();
        let mut sequence = serializer.serialize_seq(Some(columns.len()))?;
        for column in columns {
            sequence.serialize_element(&column)?;
        }
        sequence.end()
    }
}
