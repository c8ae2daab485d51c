//! The line: everything between the capture and the export queue, fed as the live loop feeds it.

use spanwatch_common::flow::FlowEndReason;
use spanwatch_common::time::Timestamp;
use spanwatch_sensor::capture::{BATCH, Frame, Losses};
use spanwatch_sensor::flow_table::{KeyHasher, Observer, Records};
use spanwatch_sensor::worker::{MeterSettings, Worker};

use crate::frames::Frames;
use crate::plans::Work;

/// Packets between two looks at the clock, as in `sensor/src/live.rs`.
const POLL: usize = 256;
/// When packet time begins: 40 s before a full minute, at which every flow is cut. No bench gets so far.
const START: Timestamp = Timestamp::from_secs(1_700_000_000);

/// A worker and its packet time, which advances evenly.
pub struct Meter {
    worker: Worker,
    now: Timestamp,
    nanos_per_packet: i64,
    records: u64,
}

impl Meter {
    /// A worker for packets that come `nanos_per_packet` apart.
    ///
    /// # Panics
    /// The operating system refuses the memory.
    pub fn new(settings: &MeterSettings, nanos_per_packet: i64) -> Self {
        let worker = Worker::new(settings, KeyHasher::fixed(), Observer::default()).expect("memory for the flow table");
        Self { worker, now: START, nanos_per_packet, records: 0 }
    }

    /// Meters frames: a poll at a time, in batches of 64, with the time of their poll, as from a ring that never runs empty. Records are
    /// counted and thrown away.
    pub fn feed<'a>(&mut self, mut frames: impl Iterator<Item = &'a [u8]>) {
        let mut batch = [Frame::NONE; BATCH];
        loop {
            self.now = Timestamp::from_nanos(self.now.as_nanos() + self.nanos_per_packet * POLL as i64);
            for _ in 0..POLL / BATCH {
                let mut taken = 0;
                for (place, bytes) in batch.iter_mut().zip(&mut frames) {
                    *place = Frame::ethernet(bytes, bytes.len() as u32, self.now);
                    taken += 1;
                }
                self.worker.take(&batch[..taken]);
                if taken < BATCH {
                    return self.settle();
                }
            }
            self.settle();
        }
    }

    /// Lets so many seconds pass without a packet.
    pub fn idle(&mut self, secs: i64) {
        for _ in 0..secs * 100 {
            self.now = Timestamp::from_nanos(self.now.as_nanos() + 10_000_000);
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.worker.settle(self.now);
        let records = self.worker.records();
        self.records += records.len() as u64;
        records.clear();
    }

    /// Packets metered, records made, flows that live.
    pub fn account(&self) -> Account {
        let ledger = self.worker.ledger(&Losses::default());
        Account { metered: ledger.metered, records: self.records, opened: ledger.flows.observed, live: ledger.flows.live }
    }

    /// The worker, for what it counts beside that.
    pub fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// Ends all flows and gives the records of that.
    pub fn finish(&mut self) -> Records {
        self.worker.flush(FlowEndReason::ForcedEnd);
        let ended = self.worker.records().clone();
        self.worker.records().clear();
        ended
    }
}

/// What a meter came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Packets in flows.
    pub metered: u64,
    /// Records made.
    pub records: u64,
    /// Flows that were opened.
    pub opened: u64,
    /// Flows in the table.
    pub live: u64,
}

/// A meter and the frames that it is fed again and again.
pub struct Line {
    /// The meter.
    pub meter: Meter,
    frames: Frames,
    /// Number of the next frame.
    next: usize,
    per_pass: usize,
}

impl Line {
    /// A pass takes `per_pass` frames, of which `frames` holds a multiple.
    pub fn new(meter: Meter, frames: Frames, per_pass: usize) -> Self {
        assert!(frames.len().is_multiple_of(per_pass), "passes of equal length");
        Self { meter, frames, next: 0, per_pass }
    }
}

impl Work for Line {
    fn ready(&mut self) {
        if self.next == self.frames.len() {
            self.next = 0;
            self.frames.renew();
        }
    }

    fn pass(&mut self) -> usize {
        let range = self.next..self.next + self.per_pass;
        self.next = range.end;
        self.meter.feed(self.frames.range(range));
        self.per_pass
    }
}
