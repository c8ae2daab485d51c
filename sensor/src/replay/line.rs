//! One job: a capture file and a worker, in steps that depend on the file alone.

use std::io;
use std::time::Duration;

use spanwatch_common::flow::FlowEndReason;
use spanwatch_common::time::Timestamp;

use super::{ReplayError, Replayed};
use crate::capture::file::File;
use crate::capture::{BATCH, Capture, CaptureError, Drained, Losses};
use crate::flow_table::{KeyHasher, Observer, Records};
use crate::worker::{MeterSettings, Worker};

/// How often every flow is looked at, in packet time.
const SWEEP: Duration = Duration::from_secs(1);
/// Longest wait for octets of a file before they are asked for again.
const WAIT: Duration = Duration::from_secs(1);

/// Meters one share of the flows of a file.
pub(super) struct Line<'a> {
    file: &'a mut File,
    worker: Worker,
    is_first: bool,
    newest: Timestamp,
    /// The second in which every flow was last looked at.
    swept: Timestamp,
    damage: Option<CaptureError>,
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A step is complete.
    Stepped,
    /// The file gives nothing at the moment.
    Waits,
    /// The file is at its end, and so are all flows. This was a step, too.
    Ended,
}

impl<'a> Line<'a> {
    /// Job `number` of `of`, counted from 0, reading `file`.
    ///
    /// # Errors
    /// The operating system refuses the memory.
    pub(super) fn new(file: &'a mut File, settings: &MeterSettings, number: usize, of: usize) -> io::Result<Self> {
        let observer = Observer { observation_point: 1, ..Observer::default() };
        let mut worker = Worker::new(settings, KeyHasher::fixed(), observer)?;
        worker.share(number, of);
        Ok(Self { file, worker, is_first: number == 0, newest: Timestamp::NONE, swept: Timestamp::NONE, damage: None })
    }

    /// One step, if the file gives it: a batch of frames, 64 but for the last, and the records that are due after them.
    pub(super) fn turn(&mut self) -> Turn {
        let Self { file, worker, newest, .. } = self;
        let drained = file.drain(Timestamp::NONE, BATCH, |frames| {
            *newest = frames.iter().fold(*newest, |newest, frame| newest.max(frame.at));
            worker.take(frames);
        });
        match drained {
            Ok(Drained::Frames(0)) => return Turn::Waits,
            Ok(Drained::Frames(_)) => {}
            Ok(Drained::Ended) => {
                self.worker.flush(FlowEndReason::ForcedEnd);
                return Turn::Ended;
            }
            Err(error) => self.damage = Some(error),
        }
        self.settle();
        Turn::Stepped
    }

    /// Ends a step: every flow is looked at once in each second of packet time, and those that wait for their Begin record each time.
    fn settle(&mut self) {
        let second = self.newest.floor(SWEEP);
        if second > self.swept {
            self.swept = second;
            self.worker.settle_fully(self.newest);
        } else {
            self.worker.begin(self.newest);
        }
    }

    /// Waits until the file gives more, for a while.
    pub(super) fn wait(&mut self) {
        // A file that cannot be waited for says so when it is read.
        let _ = self.file.wait(WAIT);
    }

    /// The records made since they were last taken away.
    pub(super) const fn records(&mut self) -> &mut Records {
        self.worker.records()
    }

    /// Flows in the table.
    pub(super) fn live(&self) -> u64 {
        self.worker.flows_live()
    }

    /// Octets read so far of the file as it lies on the disk.
    pub(super) fn octets_read(&self) -> u64 {
        self.file.octets_read()
    }

    /// What it came to: the accounts of all jobs add up to that of one.
    ///
    /// # Errors
    /// The file does not tell what was lost when it was captured.
    pub(super) fn account(self) -> Result<Replayed, ReplayError> {
        let losses = if self.is_first { self.file.losses()? } else { Losses::default() };
        Ok(Replayed { ledger: self.worker.audited_ledger(&losses), health: self.worker.health(&losses), damage: self.damage })
    }
}
