//! What a replay writes: records as text, or as the batches that a sensor sends.

use std::io::{self, Write};

use spanwatch_common::flow::FlowRecord;
use spanwatch_common::health::{Health, PortHealth};
use spanwatch_common::ledger::Ledger;
use spanwatch_common::text;
use spanwatch_common::wire::{self, Encoder, Head, Message, Stats};

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object per line.
    Jsonl,
    /// A header line, then one row per record.
    Csv,
    /// Batches as a sensor sends them to the collector, then the account.
    Batch,
    /// No records; the account alone, as JSON.
    None,
}

/// Text that is gathered before it is written, in octets.
const TEXT_OCTETS: usize = 64 << 10;
/// Records in a batch.
const BATCH_RECORDS: usize = 4096;
/// The sensor's name, and the number of its start, in batches: the same for every replay, so that the same file gives the same bytes.
const SENSOR: &str = "replay";
const BOOT: u64 = 1;

/// Writes records as text.
pub struct TextWriter<W> {
    out: W,
    write: fn(&FlowRecord, &mut String),
    buffer: String,
}

impl<W: Write> TextWriter<W> {
    /// A writer of one JSON object per line.
    pub const fn jsonl(out: W) -> Self {
        Self { out, write: text::write_json, buffer: String::new() }
    }

    /// A writer of a header line, then one row per record.
    pub fn csv(out: W) -> Self {
        Self { out, write: text::write_csv, buffer: text::csv_header() }
    }

    /// Writes a record.
    ///
    /// # Errors
    /// The output refuses it.
    pub fn write(&mut self, record: &FlowRecord) -> io::Result<()> {
        (self.write)(record, &mut self.buffer);
        if self.buffer.len() >= TEXT_OCTETS {
            self.out.write_all(self.buffer.as_bytes())?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// The output refuses it.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(self.buffer.as_bytes())?;
        self.out.flush()
    }
}

/// Writes records as [`wire`] frames: batches of the sensor `replay`, numbered from 1, then its account. The account that each batch carries
/// is empty, because what it is meanwhile depends on who is faster.
pub struct BatchWriter<W> {
    out: W,
    encoder: Encoder,
    /// Number of the next batch.
    sequence: u64,
    frame: Vec<u8>,
}

impl<W: Write> BatchWriter<W> {
    /// A writer.
    pub fn new(out: W) -> Self {
        Self { out, encoder: Encoder::default(), sequence: 1, frame: Vec::new() }
    }

    /// Writes a record.
    ///
    /// # Errors
    /// The output refuses it.
    pub fn write(&mut self, record: FlowRecord) -> io::Result<()> {
        self.encoder.push(record);
        if self.encoder.len() == BATCH_RECORDS { self.ship() } else { Ok(()) }
    }

    /// Writes what is left, then the account.
    ///
    /// # Errors
    /// The output refuses it.
    pub fn finish(mut self, ledger: &Ledger, health: &Health) -> io::Result<()> {
        if !self.encoder.is_empty() {
            self.ship()?;
        }
        let port = PortHealth { observation_point: 1, interface: SENSOR.to_owned(), health: *health };
        let stats = Stats { boot: BOOT, ledger: *ledger, capture: "file".to_owned(), ports: vec![port] };
        wire::encode(&Message::Stats(stats), &mut self.frame).map_err(io::Error::other)?;
        self.out.write_all(&self.frame)?;
        self.out.flush()
    }

    fn ship(&mut self) -> io::Result<()> {
        let head = Head { sensor: SENSOR, boot: BOOT, sequence: self.sequence, ledger: &Ledger::default() };
        self.encoder.encode(&head, &mut self.frame).map_err(io::Error::other)?;
        self.sequence += 1;
        self.out.write_all(&self.frame)?;
        self.frame.clear();
        Ok(())
    }
}
