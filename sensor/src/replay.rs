//! The line over a capture file: frames in, records as text out. Packet time is the only time there is, and the hash secret is
//! fixed, so the same file gives the same bytes again.

use std::io::{self, Write};

use spanwatch_common::flow::FlowEndReason;
use spanwatch_common::health::Health;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::text;
use spanwatch_common::time::Timestamp;

use crate::capture::file::File;
use crate::capture::{BATCH, Capture, CaptureError, Drained};
use crate::flow_table::{KeyHasher, Observer, Records};
use crate::worker::{MeterSettings, Worker};

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object per line.
    Jsonl,
    /// A header line, then one row per record.
    Csv,
}

/// Why a replay ended early. What was read before is written all the same.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The output.
    #[error("write records: {0}")]
    Output(#[from] io::Error),
    /// Memory for the flow table.
    #[error("allocate the flow table: {0}; lower flow_table.flows_max")]
    Memory(io::Error),
}

/// What a replay came to.
#[derive(Debug)]
pub struct Replayed {
    /// Every packet accounted for. Balances unless we were wrong, also when the file is damaged or of a link type that is not read.
    pub ledger: Ledger,
    /// How well the mirror did its work that the file was captured from.
    pub health: Health,
    /// Why the replay ended before the file, or what in it was not read.
    pub damage: Option<CaptureError>,
}

/// Replays `file` and hands every record to `each`, in the order in which a live sensor would have made them. `progress` is told
/// how many octets of the file on disk each batch of frames took.
///
/// # Errors
/// The flow table's memory, or whatever `each` returns.
pub fn replay(
    file: &mut File,
    settings: &MeterSettings,
    mut each: impl FnMut(&Records) -> io::Result<()>,
    mut progress: impl FnMut(u64),
) -> Result<Replayed, ReplayError> {
    let observer = Observer { observation_point: 1, ..Observer::default() };
    let mut worker = Worker::new(settings, KeyHasher::fixed(), observer).map_err(ReplayError::Memory)?;
    let mut newest = Timestamp::NONE;
    let mut damage = None;
    loop {
        let before = file.octets_read();
        let drained = file.drain(Timestamp::NONE, BATCH, |frames| {
            newest = frames.iter().fold(newest, |newest, frame| newest.max(frame.at));
            worker.take(frames);
        });
        worker.settle(newest);
        each(worker.records())?;
        worker.records().clear();
        progress(file.octets_read() - before);
        match drained {
            Ok(Drained::Frames(_)) => {}
            Ok(Drained::Ended) => break,
            Err(error) => damage = Some(error),
        }
    }
    worker.flush(FlowEndReason::ForcedEnd);
    each(worker.records())?;
    let losses = file.losses()?;
    Ok(Replayed { ledger: worker.audited_ledger(&losses), health: worker.health(&losses), damage })
}

/// Writes records as text.
pub struct TextWriter<W> {
    out: W,
    format: Format,
    buffer: String,
}

impl<W: Write> TextWriter<W> {
    /// A writer; for CSV it writes the header.
    ///
    /// # Errors
    /// The output refuses the header.
    pub fn new(mut out: W, format: Format) -> io::Result<Self> {
        if format == Format::Csv {
            out.write_all(text::csv_header().as_bytes())?;
        }
        Ok(Self { out, format, buffer: String::new() })
    }

    /// Writes records in their order.
    ///
    /// # Errors
    /// The output refuses them.
    pub fn write(&mut self, records: &Records) -> io::Result<()> {
        self.buffer.clear();
        for record in records.iter() {
            match self.format {
                Format::Jsonl => text::write_json(&record, &mut self.buffer),
                Format::Csv => text::write_csv(&record, &mut self.buffer),
            }
        }
        self.out.write_all(self.buffer.as_bytes())
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// The output refuses it.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}
