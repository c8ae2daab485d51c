//! Export: gathers the records of all workers into numbered batches, and holds those until the collector has them.
//!
//! Pure: takes harvests and `now`, and gives frames. One thread harvests, another ships; both share one [`Exporter`] behind a
//! mutex and hold it for microseconds (the uplink) or for the encoding of what a worker handed over (the harvest).
//!
//! Records go straight from the worker's buffer into columns, and the buffer back to the worker. In the long run the frame that is queued
//! is all that is allocated: once for a batch, never for a record.
//!
//! # At the limit
//! The queue holds at most `queue_bytes_max` of encoded frames. A batch that does not fit is thrown away *before* it gets its
//! number, so that sequence numbers have no gaps, and its records and packets are counted as not sent; the ledger in the next
//! batch tells the collector.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use spanwatch_common::flow::FlowRecord;
use spanwatch_common::health::Health;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::batch::ROWS_MAX;
use spanwatch_common::wire::{Encoder, Head, WireError};

use crate::flow_table::{Records, TALKERS_MAX, Talker};

/// How records become batches, and how many of them wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportSettings {
    /// Most records in a batch. Smaller batches compress worse; larger ones make one lost connection repeat more. 1 to 65536.
    pub batch_records_max: usize,
    /// How long a record may wait for others to travel with, in milliseconds. This delay is part of the time until an alert.
    /// 1 to 10000.
    pub batch_age_millis: u64,
    /// Memory for batches that the collector has not acknowledged, in bytes. When it is full, new records are thrown away and
    /// counted as not sent. The default holds about 2 million records. At least 1 MiB.
    pub queue_bytes_max: usize,
}

impl Default for ExportSettings {
    fn default() -> Self {
        Self { batch_records_max: 4096, batch_age_millis: 200, queue_bytes_max: 64 << 20 }
    }
}

impl ExportSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=ROWS_MAX).contains(&self.batch_records_max) {
            return Err(("batch_records_max", format!("must be between 1 and {ROWS_MAX}")));
        }
        if !(1..=10_000).contains(&self.batch_age_millis) {
            return Err(("batch_age_millis", "must be between 1 and 10000".to_owned()));
        }
        if self.queue_bytes_max < 1 << 20 {
            return Err(("queue_bytes_max", "must be at least 1048576 (1 MiB)".to_owned()));
        }
        Ok(())
    }
}

/// What one worker hands over at a time.
#[derive(Clone, Debug, Default)]
pub struct Harvest {
    /// Number of the worker, from 0. Each worker harvests in order.
    pub worker: usize,
    /// The worker's whole account since it started. It counts exactly the records handed over up to and including this harvest
    /// as exported. What it throws away itself it counts as `not_sent`; its `acknowledged` and `queued` are ignored.
    pub ledger: Ledger,
    /// What the worker's port is judged by, since it started.
    pub health: Health,
    /// Its flows with most octets, most first; empty while nobody watches.
    pub talkers: Vec<Talker>,
    /// Finished records.
    pub records: Records,
}

/// What a worker said last, beside its records.
#[derive(Clone, Debug, Default)]
struct Account {
    ledger: Ledger,
    health: Health,
    talkers: Vec<Talker>,
}

/// Gathers, numbers, and holds until acknowledged.
#[derive(Debug)]
pub struct Exporter {
    sensor: String,
    boot: u64,
    settings: ExportSettings,
    workers: Vec<Account>,
    /// Holds the records that are in no batch yet.
    encoder: Encoder,
    /// How much these stand for, and when the oldest of them came.
    waiting: Count,
    waiting_since: Timestamp,
    /// What is left of the harvest that is being taken over; nothing otherwise.
    coming: Count,
    /// The batch made last.
    frame: Vec<u8>,
    /// Why a batch could not be made, until it is told.
    trouble: Option<WireError>,
    queue: Queue,
    not_sent: Count,
}

impl Exporter {
    /// An empty exporter. `boot` must be larger than at any earlier start of this sensor: nanoseconds since the epoch will do.
    pub fn new(sensor: impl Into<String>, boot: u64, settings: ExportSettings) -> Self {
        let queue = Queue::new(settings.queue_bytes_max);
        Self {
            sensor: sensor.into(),
            boot,
            settings,
            workers: Vec::new(),
            encoder: Encoder::default(),
            waiting: Count::default(),
            waiting_since: Timestamp::NONE,
            coming: Count::default(),
            frame: Vec::new(),
            trouble: None,
            queue,
            not_sent: Count::default(),
        }
    }

    /// Takes over what a worker finished, and queues every batch that this fills; gives the worker's buffer back, empty.
    pub fn take(&mut self, now: Timestamp, harvest: Harvest) -> Records {
        let Harvest { worker, ledger, health, talkers, mut records } = harvest;
        let count = records.len() as u64;
        self.gather(now, worker, Account { ledger, health, talkers }, count, records.iter());
        records.clear();
        records
    }

    /// Takes over `count` records and the account that counts them.
    fn gather(&mut self, now: Timestamp, worker: usize, account: Account, count: u64, records: impl Iterator<Item = FlowRecord>) {
        if self.workers.len() <= worker {
            self.workers.resize(worker + 1, Account::default());
        }
        let before = std::mem::replace(&mut self.workers[worker], account);
        let handed_over = |account: &Account| account.ledger.exported.saturating_sub(account.ledger.not_sent);
        // So that the account balances in a batch that is cut on the way.
        let packets = handed_over(&self.workers[worker]).saturating_sub(handed_over(&before));
        self.coming = Count { records: count, packets };
        for record in records {
            if self.encoder.is_empty() {
                self.waiting_since = now;
            }
            let count = Count { records: 1, packets: record.packets_total() };
            self.coming.subtract(count);
            self.waiting.add(count);
            self.encoder.push(record);
            if self.encoder.len() >= self.settings.batch_records_max {
                self.cut();
            }
        }
        self.coming = Count::default();
    }

    /// Makes a batch of the records that wait, and queues it, or throws it away when the queue is full. It gets the next free number.
    fn cut(&mut self) {
        let ledger = self.ledger();
        let head = Head { sensor: &self.sensor, boot: self.boot, sequence: self.queue.next_sequence(), ledger: &ledger };
        self.frame.clear();
        let made = self.encoder.encode(&head, &mut self.frame);
        let count = std::mem::take(&mut self.waiting);
        if made.is_err() || !self.queue.push(&self.frame, count) {
            self.not_sent.add(count);
        }
        self.trouble = made.err().or(self.trouble.take());
    }

    /// Queues the records that have waited long enough for others.
    ///
    /// # Errors
    /// [`WireError::Unsendable`] when a batch made since the last call exceeds a frame, which the limits rule out; its records count as
    /// not sent.
    pub fn ship_due(&mut self, now: Timestamp) -> Result<(), WireError> {
        // A clock that was set back must not hold records up.
        let aged =
            now < self.waiting_since || now.since(self.waiting_since) >= Duration::from_millis(self.settings.batch_age_millis);
        if aged { self.ship_all() } else { self.trouble.take().map_or(Ok(()), Err) }
    }

    /// Queues every record, because no more will come.
    ///
    /// # Errors
    /// As [`ship_due`](Self::ship_due).
    pub fn ship_all(&mut self) -> Result<(), WireError> {
        if !self.encoder.is_empty() {
            self.cut();
        }
        self.trouble.take().map_or(Ok(()), Err)
    }

    /// The account of the whole sensor. Balances whenever the accounts of the workers do.
    pub fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        for worker in &self.workers {
            ledger.add(&worker.ledger);
        }
        let mut queued = self.queue.held;
        queued.add(self.waiting);
        queued.add(self.coming);
        ledger.acknowledged = self.queue.acknowledged.packets;
        ledger.queued = queued.packets;
        ledger.not_sent += self.not_sent.packets;
        ledger.flows.records_acknowledged = self.queue.acknowledged.records;
        ledger.flows.records_queued = queued.records;
        ledger.flows.records_not_sent += self.not_sent.records;
        ledger
    }

    /// What all capture ports together are judged by.
    pub fn health(&self) -> Health {
        self.health_of(0..self.workers.len())
    }

    /// What one capture port is judged by, whose queues these workers read.
    pub fn health_of(&self, workers: Range<usize>) -> Health {
        let mut health = Health::default();
        for worker in self.workers.iter().take(workers.end).skip(workers.start) {
            health.add(&worker.health);
        }
        health
    }

    /// The account of each worker, as it came; `acknowledged` and `queued` are the exporter's to know.
    pub fn workers(&self) -> impl Iterator<Item = &Ledger> {
        self.workers.iter().map(|worker| &worker.ledger)
    }

    /// The flows with most octets of all workers, the fastest first.
    pub fn talkers(&self) -> Vec<Talker> {
        let mut talkers: Vec<Talker> = self.workers.iter().flat_map(|worker| &worker.talkers).copied().collect();
        talkers.sort_by(|one, other| other.octets_per_sec.total_cmp(&one.octets_per_sec));
        talkers.truncate(TALKERS_MAX);
        talkers
    }

    /// Name of the sensor.
    pub fn sensor(&self) -> &str {
        &self.sensor
    }

    /// Which start of the sensor.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// Whether every record has been acknowledged or counted as not sent.
    pub fn is_idle(&self) -> bool {
        self.encoder.is_empty() && self.queue.frames.is_empty()
    }

    /// The frames that wait for the collector.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

/// Encoded batches until they are acknowledged, in order of their numbers.
#[derive(Debug)]
pub struct Queue {
    frames: VecDeque<(Bytes, Count)>,
    bytes: usize,
    bytes_max: usize,
    /// Sequence number of the first of `frames`.
    first: u64,
    /// How many of `frames` went out on the present connection.
    sent: usize,
    held: Count,
    acknowledged: Count,
}

impl Queue {
    fn new(bytes_max: usize) -> Self {
        Self {
            frames: VecDeque::new(),
            bytes: 0,
            bytes_max,
            first: 1,
            sent: 0,
            held: Count::default(),
            acknowledged: Count::default(),
        }
    }

    /// Number of the oldest batch that is held; of the next one when none is.
    pub fn oldest(&self) -> u64 {
        self.first
    }

    /// The number that the next batch gets.
    pub fn next_sequence(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The next frame to send, while fewer than `credit` are under way.
    pub fn next(&mut self, credit: u32) -> Option<Bytes> {
        if self.sent >= credit as usize {
            return None;
        }
        let frame = self.frames.get(self.sent)?.0.clone();
        self.sent += 1;
        Some(frame)
    }

    /// Lets go of every batch up to and including `up_to`. An older or unknown number changes nothing.
    pub fn acknowledge(&mut self, up_to: u64) {
        while self.first <= up_to {
            let Some((frame, count)) = self.frames.pop_front() else { return };
            self.first += 1;
            self.sent = self.sent.saturating_sub(1);
            self.bytes -= frame.len();
            self.held.subtract(count);
            self.acknowledged.add(count);
        }
    }

    /// A new connection: the collector holds everything up to `up_to`, the rest goes out again.
    pub fn resume_after(&mut self, up_to: u64) {
        self.acknowledge(up_to);
        self.sent = 0;
    }

    /// `false` when the frame does not fit, and is gone.
    fn push(&mut self, frame: &[u8], count: Count) -> bool {
        if self.bytes + frame.len() > self.bytes_max {
            return false;
        }
        self.bytes += frame.len();
        self.held.add(count);
        self.frames.push_back((Bytes::copy_from_slice(frame), count));
        true
    }
}

/// How much some records stand for.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    records: u64,
    packets: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.records += other.records;
        self.packets += other.packets;
    }

    fn subtract(&mut self, other: Self) {
        self.records = self.records.saturating_sub(other.records);
        self.packets = self.packets.saturating_sub(other.packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spanwatch_common::wire::{self, Batch, Message};

    /// A worker whose every flow has two packets, and whose account says so.
    struct Worker {
        number: usize,
        ledger: Ledger,
    }

    impl Worker {
        fn new(number: usize) -> Self {
            Self { number, ledger: Ledger::default() }
        }

        fn hand_over(&mut self, records: usize, now: Timestamp, exporter: &mut Exporter) {
            let packets = 2 * records as u64;
            for count in [&mut self.ledger.wire, &mut self.ledger.delivered, &mut self.ledger.metered, &mut self.ledger.exported]
            {
                *count += packets;
            }
            self.ledger.flows.records += records as u64;
            let record =
                |n: usize| FlowRecord { flow_id: n as u64 * 0x9e37_79b9_7f4a_7c15, packets: [1, 1], ..FlowRecord::default() };
            let account = Account { ledger: self.ledger, ..Account::default() };
            exporter.gather(now, self.number, account, records as u64, (0..records).map(record));
        }
    }

    fn millis(n: i64) -> Timestamp {
        Timestamp::from_nanos((1_000 + n) * 1_000_000)
    }

    fn settings(batch_records_max: usize, queue_bytes_max: usize) -> ExportSettings {
        ExportSettings { batch_records_max, batch_age_millis: 200, queue_bytes_max }
    }

    fn batch(frame: &[u8]) -> Batch {
        match wire::decode(frame) {
            Ok(Some((Message::Data(batch), length))) if length == frame.len() => batch,
            other => panic!("a batch, not {other:?}"),
        }
    }

    /// Number and length of each batch that is queued.
    fn queued(exporter: &Exporter) -> Vec<(u64, usize)> {
        let batches = exporter.queue.frames.iter().map(|(frame, _)| batch(frame));
        batches.map(|batch| (batch.sequence, batch.records.len())).collect()
    }

    #[test]
    fn a_batch_is_cut_when_it_is_full_or_when_its_oldest_record_has_waited() {
        let mut exporter = Exporter::new("plant1", 7, settings(10, 1 << 20));
        let mut worker = Worker::new(0);
        worker.hand_over(25, millis(0), &mut exporter);
        exporter.ship_due(millis(199)).unwrap();
        assert_eq!(queued(&exporter), [(1, 10), (2, 10)]);
        exporter.ship_due(millis(200)).unwrap();
        assert_eq!(queued(&exporter), [(1, 10), (2, 10), (3, 5)]);
        worker.hand_over(1, millis(300), &mut exporter);
        exporter.ship_due(millis(499)).unwrap();
        assert_eq!(queued(&exporter).len(), 3);
        exporter.ship_due(millis(299)).unwrap();
        assert_eq!(queued(&exporter).len(), 4, "a clock that was set back holds nothing up");
    }

    #[test]
    fn the_ledger_balances_at_every_cut_whatever_happens_to_the_batches() {
        let mut exporter = Exporter::new("plant1", 7, settings(100, 1 << 20));
        let mut workers = [Worker::new(0), Worker::new(1), Worker::new(2)];
        let mut seen = 0;
        for step in 0..300_u64 {
            let now = millis(step as i64);
            workers[step as usize % 3].hand_over(step as usize % 270, now, &mut exporter);
            assert_eq!(exporter.ledger().imbalance(), None, "after a harvest");
            exporter.ship_due(now).unwrap();
            for (frame, _) in &exporter.queue.frames {
                let batch = batch(frame);
                if batch.sequence > seen {
                    seen = batch.sequence;
                    assert_eq!(batch.ledger.imbalance(), None, "in batch {seen}");
                }
            }
            while step % 5 != 0 && exporter.queue().next(8).is_some() {}
            match step % 7 {
                0 => {
                    let up_to = exporter.queue().oldest() + 2;
                    exporter.queue().acknowledge(up_to);
                }
                1 => exporter.queue().resume_after(0),
                _ => {}
            }
            assert_eq!(exporter.ledger().imbalance(), None, "after an acknowledgement");
        }
        assert!(seen > 300, "{seen} batches");
    }

    #[test]
    fn a_full_queue_refuses_the_newest_batch_counts_it_and_leaves_no_gap_in_the_numbers() {
        let mut exporter = Exporter::new("plant1", 7, settings(1000, 20_000));
        let mut worker = Worker::new(0);
        for step in 0..50 {
            worker.hand_over(1000, millis(step), &mut exporter);
            exporter.ship_due(millis(step)).unwrap();
            assert!(exporter.queue().bytes() <= 20_000);
        }
        let kept = exporter.queue().next_sequence() - 1;
        let ledger = exporter.ledger();
        assert!((1..50).contains(&kept), "{kept} batches fit");
        assert_eq!(ledger.imbalance(), None);
        assert_eq!((ledger.flows.records_queued, ledger.flows.records_not_sent), (kept * 1000, (50 - kept) * 1000));

        let frames: Vec<_> = std::iter::from_fn(|| exporter.queue().next(u32::MAX)).collect();
        let numbers: Vec<_> = frames.iter().map(|frame| batch(frame).sequence).collect();
        assert_eq!(numbers, (1..=kept).collect::<Vec<_>>());

        exporter.queue().acknowledge(kept);
        worker.hand_over(1000, millis(60), &mut exporter);
        exporter.ship_all().unwrap();
        assert_eq!(exporter.queue().next_sequence(), kept + 2, "the number after the last one kept");
        assert_eq!(exporter.ledger().not_sent, (50 - kept) * 2000);
    }

    #[test]
    fn after_a_reconnect_everything_unacknowledged_goes_out_again_in_order() {
        let mut exporter = Exporter::new("plant1", 7, settings(1, 1 << 20));
        Worker::new(0).hand_over(5, millis(0), &mut exporter);
        exporter.ship_all().unwrap();
        let first: Vec<_> = std::iter::from_fn(|| exporter.queue().next(3)).collect();
        assert_eq!(first.len(), 3, "credit is a limit");
        exporter.queue().resume_after(1);
        let again: Vec<_> = std::iter::from_fn(|| exporter.queue().next(10)).collect();
        assert_eq!(again.len(), 4);
        assert_eq!(again[..2], first[1..]);
        exporter.queue().acknowledge(5);
        assert!(exporter.is_idle());
    }
}
