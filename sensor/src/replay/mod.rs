//! The line over a capture file: frames in, records out. Packet time is the only time there is, and the hash secret is fixed, so the same
//! file gives the same bytes again, however many threads share the work.
//!
//! ```text
//! line    file ▷ worker, in steps of 64 frames                 one thread for each job
//! merge   the same step of all lines ▷ its records in order     ┐
//! output  records ▷ JSON, CSV or batches                        ┘ one thread
//! ```
//!
//! # Jobs
//! Each job reads and decodes the whole file, so that each knows all that goes beyond one flow (fragments, tunnels, second copies), and
//! meters the flows whose hash falls to it. [`merge`] puts their records in the order that one job gives them: by step, and by flow id
//! within a step. Only a full flow table shows how many jobs there are, because each job has one; the ledger counts what was evicted.

mod jobs;
mod line;
mod merge;
mod output;
#[cfg(test)]
mod tests;

use std::io;

use spanwatch_common::health::Health;
use spanwatch_common::ledger::Ledger;

use crate::capture::CaptureError;
use crate::capture::file::File;
use crate::flow_table::Records;
use crate::worker::MeterSettings;

pub use jobs::{Wanted, replay_in_jobs};
pub use output::{BatchWriter, Format, TextWriter};

use line::{Line, Turn};

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
    /// A thread.
    #[error("start a job: {0}; give fewer --jobs")]
    Thread(io::Error),
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

/// Replays `file` on this thread and hands the records of each step to `each`, in the order in which they were made. `progress` is told
/// how many octets of the file on disk each step took.
///
/// # Errors
/// The flow table's memory, or whatever `each` returns.
pub fn replay(
    file: &mut File,
    settings: &MeterSettings,
    mut each: impl FnMut(&Records) -> io::Result<()>,
    mut progress: impl FnMut(u64),
) -> Result<Replayed, ReplayError> {
    let mut line = Line::new(file, settings, 0, 1).map_err(ReplayError::Memory)?;
    loop {
        let before = line.octets_read();
        let turn = line.turn();
        each(line.records())?;
        line.records().clear();
        progress(line.octets_read() - before);
        match turn {
            Turn::Stepped => {}
            Turn::Waits => line.wait(),
            Turn::Ended => return line.account(),
        }
    }
}
