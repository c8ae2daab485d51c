//! What a replay writes: records as text, or as the batches that a sensor sends.

use std::io::{self, Write};
use std::time::Duration;

use spanwatch_common::flow::FlowRecord;
use spanwatch_common::health::{Health, PortHealth};
use spanwatch_common::ledger::Ledger;
use spanwatch_common::text;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::{self, Encoder, Head, Message, Stats, WireError};

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
/// Packet time in a batch. Its records leave in no order, and detection takes it amiss when one comes half a minute late.
const BATCH_SPAN: Duration = Duration::from_secs(5);
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
    sequence: u64,
    /// The first record that ends later than this goes into the next batch.
    until: Timestamp,
    frame: Vec<u8>,
}

impl<W: Write> BatchWriter<W> {
    /// A writer.
    pub fn new(out: W) -> Self {
        Self { out, encoder: Encoder::default(), sequence: 1, until: Timestamp::NONE, frame: Vec::new() }
    }

    /// Writes a record.
    ///
    /// # Errors
    /// The output refuses it.
    pub fn write(&mut self, record: FlowRecord) -> io::Result<()> {
        if self.encoder.len() == BATCH_RECORDS || record.last() > self.until {
            self.ship()?;
        }
        if self.encoder.is_empty() {
            self.until = record.last().plus(BATCH_SPAN);
        }
        self.encoder.push(record);
        Ok(())
    }

    /// Writes what is left, then the account.
    ///
    /// # Errors
    /// The output refuses it.
    pub fn finish(mut self, ledger: &Ledger, health: &Health) -> io::Result<()> {
        self.ship()?;
        let port = PortHealth { observation_point: 1, interface: SENSOR.to_owned(), health: *health };
        let stats = Stats { boot: BOOT, ledger: *ledger, capture: "file".to_owned(), ports: vec![port] };
        self.send(|_, frame| wire::encode(&Message::Stats(stats), frame))?;
        self.out.flush()
    }

    fn ship(&mut self) -> io::Result<()> {
        if self.encoder.is_empty() {
            return Ok(());
        }
        let head = Head { sensor: SENSOR, boot: BOOT, sequence: self.sequence, ledger: &Ledger::default() };
        self.sequence += 1;
        self.send(|encoder, frame| encoder.encode(&head, frame))
    }

    fn send(&mut self, make: impl FnOnce(&mut Encoder, &mut Vec<u8>) -> Result<(), WireError>) -> io::Result<()> {
        self.frame.clear();
        make(&mut self.encoder, &mut self.frame).map_err(io::Error::other)?;
        self.out.write_all(&self.frame)
    }
}
