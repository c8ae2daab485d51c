//! The loop around a worker: it owns the capture and the clock, and it never waits for anyone but the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError};
use spanwatch_common::flow::FlowEndReason;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::time::Timestamp;

use crate::capture::{Capture, CaptureError, Drained, Frame, Losses};
use crate::clock::Clock;
use crate::export::Harvest;
use crate::flow_table::Records;
use crate::overload::{Change, Look, Overload, OverloadSettings, State};
use crate::worker::Worker;

/// Frames between two looks at the clock.
const FRAMES_MAX: usize = 256;
/// Longest wait for frames: how late a timeout may be noticed on a silent port.
const WAIT: Duration = Duration::from_millis(20);
/// How far the time of a frame may lie ahead of the clock, which follows the kernel's to within a second.
const AHEAD_MAX: Duration = Duration::from_secs(2);
/// How often records are handed over, however few.
const HARVEST_INTERVAL: Duration = Duration::from_millis(50);
/// Records that are handed over at once.
const HARVEST_RECORDS: usize = 1024;
/// How often the capture's losses are asked for.
const LOSSES_INTERVAL: Duration = Duration::from_secs(1);
/// How long the flows with most octets are gathered after somebody asked for them.
const WATCHED_FOR: Duration = Duration::from_secs(10);
/// Records that wait here while the export thread is busy; beyond this the newest are thrown away and counted.
const HELD_MAX: usize = 1 << 16;
/// Flows whose records are handed over at a time when all of them end.
const FLUSHED_AT_ONCE: usize = 4096;

/// Frames that are still taken out of the rings of a capture that has failed: as many as the largest ring holds.
const RESCUED_MAX: usize = 1 << 20;

/// Runs one queue until `stop` is set or the capture fails; either way every flow is flushed and handed over.
pub struct LiveWorker<C> {
    capture: C,
    worker: Worker,
    number: usize,
    harvests: Sender<Harvest>,
    stop: Arc<AtomicBool>,
    /// Grows whenever somebody asks for the flows with most octets.
    asked_for: Arc<AtomicU32>,
    losses: Losses,
    overload: Overload,
    /// Spent buffers of records, back from the export thread.
    spares: Receiver<Records>,
    /// One of them, empty.
    spare: Option<Records>,
    /// Records that had no place in the queue to the export thread, and the packets they stood for.
    thrown_away: (u64, u64),
}

impl<C: Capture> LiveWorker<C> {
    /// Worker `number` of the sensor, counted from 0.
    pub fn new(number: usize, capture: C, worker: Worker, harvests: Sender<Harvest>, stop: Arc<AtomicBool>) -> Self {
        Self {
            capture,
            worker,
            number,
            harvests,
            stop,
            asked_for: Arc::default(),
            losses: Losses::default(),
            overload: Overload::new(&OverloadSettings::default(), 1),
            spares: crossbeam::channel::never(),
            spare: None,
            thrown_away: (0, 0),
        }
    }

    /// Takes spent buffers of records from here before it makes new ones.
    #[must_use]
    pub fn recycling(self, spares: Receiver<Records>) -> Self {
        Self { spares, ..self }
    }

    /// Gathers the flows with most octets for a while whenever `asked_for` has grown.
    #[must_use]
    pub fn watched(self, asked_for: Arc<AtomicU32>) -> Self {
        Self { asked_for, ..self }
    }

    /// Does under overload what `overload` says.
    #[must_use]
    pub fn shedding(self, overload: Overload) -> Self {
        Self { overload, ..self }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The capture failed. What it gave before has been handed over.
    pub fn run(mut self) -> Result<(), CaptureError> {
        let mut clock = Clock::new();
        let result = self.turn_around(&mut clock);
        if result.is_err() {
            self.rescue(&mut clock);
        }
        while !self.worker.flush_some(FlowEndReason::ForcedEnd, FLUSHED_AT_ONCE) {
            let ledger = self.account(self.worker.ledger(&self.losses));
            self.hand_over(ledger);
        }
        // What cannot be read any more stays as it was last read.
        if let Ok(losses) = self.capture.losses() {
            self.losses = losses;
        }
        if result.is_err() {
            self.give_up_the_rest();
        }
        // Nothing waits any more: here the capture's own count of the wire stands, whatever it says.
        let wire = self.losses.wire;
        let ledger = Ledger { wire, ..self.account(self.worker.audited_ledger(&self.losses)) };
        self.hand_over(ledger);
        result
    }

    /// Hands the last records over. The export thread outlives the workers, so this only waits for its present batch.
    fn hand_over(&mut self, ledger: Ledger) {
        let (health, records) = (self.worker.health(&self.losses), self.take_records());
        let _ = self.harvests.send(Harvest { worker: self.number, ledger, health, talkers: Vec::new(), records });
    }

    /// Takes the records away from the worker, and leaves it an empty buffer: a spare one, if there is any.
    fn take_records(&mut self) -> Records {
        let spare = self.spare.take().or_else(|| self.spares.try_recv().ok()).unwrap_or_default();
        std::mem::replace(self.worker.records(), spare)
    }

    /// Takes what the rings of a failed capture still hold: they stay readable when the interface is gone.
    fn rescue(&mut self, clock: &mut Clock) {
        let _ = self.capture.stop(); // as far as that still works
        let now = clock.tick().at;
        let worker = &mut self.worker;
        for _ in 0..RESCUED_MAX / FRAMES_MAX {
            match self.capture.drain(now, FRAMES_MAX, |frames| worker.take(frames)) {
                Ok(Drained::Frames(1..)) => {}
                Ok(Drained::Frames(0) | Drained::Ended) | Err(_) => break,
            }
        }
    }

    /// Counts packets that a failed capture saw, and that nobody can read any more, as lost.
    fn give_up_the_rest(&mut self) {
        let delivered = self.worker.ledger(&self.losses).delivered;
        let known = delivered + self.losses.dropped.total();
        self.losses.dropped.no_socket += self.losses.wire.saturating_sub(known);
        self.losses.wire = self.losses.wire.max(known);
    }

    fn turn_around(&mut self, clock: &mut Clock) -> Result<(), CaptureError> {
        let (mut harvested, mut asked) = (Timestamp::NONE, Timestamp::NONE);
        let mut stopped = false;
        let mut deduplicating = self.worker.is_deduplicating();
        let (mut asked_before, mut watched_until) = (0, Timestamp::NONE);
        if !self.capture.sample(self.overload.keep_one_in())? {
            self.overload = self.overload.clone().without_sampling();
        }
        self.worker.sample(self.overload.keep_one_in());
        let stamps = self.capture.stamps();
        // After a full turn more frames wait already, most likely: no need to ask the kernel.
        let mut more_wait = false;
        loop {
            if !stopped && self.stop.load(Ordering::Relaxed) {
                self.capture.stop()?;
                stopped = true;
            }
            if !stopped && !more_wait {
                self.capture.wait(WAIT)?;
            }
            let tick = clock.tick();
            if tick.was_set {
                tracing::warn!("the system clock was set; every flow is ended, so that no duration spans the step");
                self.worker.flush(FlowEndReason::ForcedEnd);
                (harvested, asked) = (Timestamp::NONE, Timestamp::NONE);
            }
            let worker = &mut self.worker;
            let drained = self.capture.drain(tick.at, FRAMES_MAX, |frames| {
                // Stamped by the kernel before the clock was set back: left as it is, it would hold up every timeout until then.
                if stamps && frames.iter().any(|frame| frame.at.since(tick.at) > AHEAD_MAX) {
                    for frame in frames {
                        worker.take(&[Frame { at: frame.at.min(tick.at), ..*frame }]);
                    }
                } else {
                    worker.take(frames);
                }
            })?;
            self.worker.settle(tick.at);
            more_wait = drained == Drained::Frames(FRAMES_MAX);
            if drained == Drained::Ended {
                return Ok(());
            }
            if deduplicating != self.worker.is_deduplicating() {
                deduplicating = !deduplicating;
                self.say_deduplicating(deduplicating);
            }
            if tick.at.since(asked) >= LOSSES_INTERVAL {
                self.losses = self.capture.losses()?;
                asked = tick.at;
                let asked_for = self.asked_for.load(Ordering::Relaxed);
                if asked_for != asked_before {
                    (asked_before, watched_until) = (asked_for, tick.at.plus(WATCHED_FOR));
                }
                self.worker.watch(tick.at < watched_until);
                let look = Look::of(&self.worker.ledger(&self.losses), tick.at);
                if let Some(change) = self.overload.judge(look) {
                    self.shed(&change)?;
                }
            }
            if self.worker.records().len() >= HARVEST_RECORDS || tick.at.since(harvested) >= HARVEST_INTERVAL {
                self.harvest();
                harvested = tick.at;
            }
        }
    }

    /// Samples as the change says, and tells of it.
    fn shed(&mut self, change: &Change) -> Result<(), CaptureError> {
        self.capture.sample(change.keep_one_in)?;
        self.worker.sample(change.keep_one_in);
        match change.state {
            State::Normal => tracing::info!("queue {}: {}", self.number, change.says),
            _ => tracing::warn!("queue {}: {}", self.number, change.says),
        }
        Ok(())
    }

    /// Tells once that `dedup = "auto"` has changed its mind.
    fn say_deduplicating(&self, deduplicating: bool) {
        let found = self.worker.health(&self.losses);
        if deduplicating {
            let (duplicates, examined) = (found.duplicates(), found.examined);
            tracing::warn!(
                "queue {}: second copies of packets are removed from now on ({duplicates} of {examined} looked at so far); \
                 `spanwatch-sensor top` says what to change on the switch",
                self.number
            );
        } else {
            tracing::info!("queue {}: packets come once again; second copies are only counted from now on", self.number);
        }
    }

    /// Hands the records over if there is room; keeps them for the next turn otherwise.
    fn harvest(&mut self) {
        let ledger = self.account(self.worker.ledger(&self.losses));
        let (health, talkers) = (self.worker.health(&self.losses), self.worker.talkers().to_vec());
        let records = self.take_records();
        if let Err(TrySendError::Full(harvest) | TrySendError::Disconnected(harvest)) =
            self.harvests.try_send(Harvest { worker: self.number, ledger, health, talkers, records })
        {
            let mut records = harvest.records;
            let (gone, packets) = records.truncate(HELD_MAX);
            self.thrown_away.0 += gone;
            self.thrown_away.1 += packets;
            self.spare = Some(std::mem::replace(self.worker.records(), records));
        }
    }

    /// The worker's ledger, completed with what this loop knows.
    fn account(&self, ledger: Ledger) -> Ledger {
        let mut ledger = Ledger {
            // Between two looks at the losses more has been delivered than the capture has told of.
            wire: ledger.wire.max(ledger.delivered + ledger.dropped.total()),
            not_sent: self.thrown_away.1,
            ..ledger
        };
        ledger.flows.records_not_sent = self.thrown_away.0;
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::CaptureErrorKind;
    use crate::flow_table::{FlowTableSettings, KeyHasher, Observer};
    use crate::worker::MeterSettings;

    /// A ring of so many equal frames on a port that saw some more.
    struct Ring {
        frames: usize,
        wire: u64,
        /// How often the kernel was asked for more.
        asked: Arc<AtomicU32>,
        /// Set by the second question; without it the interface is gone at the second.
        stop: Option<Arc<AtomicBool>>,
        stopped: bool,
    }

    impl Ring {
        fn of(frames: usize, wire: u64, stop: Option<Arc<AtomicBool>>) -> Self {
            Self { frames, wire, asked: Arc::default(), stop, stopped: false }
        }
    }

    impl Capture for Ring {
        fn wait(&mut self, _: Duration) -> Result<(), CaptureError> {
            match (self.asked.fetch_add(1, Ordering::Relaxed), &self.stop) {
                (0, _) => Ok(()),
                (_, Some(stop)) => {
                    stop.store(true, Ordering::Relaxed);
                    Ok(())
                }
                (_, None) => {
                    self.frames += 500; // they came between the last look and the end
                    let (doing, cause) = ("wait for packets on eno2".into(), "it is gone".into());
                    Err(CaptureError { kind: CaptureErrorKind::Gone, doing, cause, remedy: String::new() })
                }
            }
        }

        fn drain(&mut self, now: Timestamp, max: usize, mut each: impl FnMut(&[Frame<'_>])) -> Result<Drained, CaptureError> {
            let frame = [2; 60];
            let count = self.frames.min(max);
            (0..count).for_each(|_| each(&[Frame::ethernet(&frame, 60, now)]));
            self.frames -= count;
            Ok(if count == 0 && self.stopped { Drained::Ended } else { Drained::Frames(count) })
        }

        fn stop(&mut self) -> Result<(), CaptureError> {
            self.stopped = true;
            Ok(())
        }

        fn losses(&mut self) -> Result<Losses, CaptureError> {
            Ok(Losses { wire: self.wire, ..Losses::default() })
        }

        fn describe(&self) -> &str {
            "a ring"
        }
    }

    fn run(ring: Ring) -> (Result<(), CaptureError>, Ledger) {
        let stop = ring.stop.clone().unwrap_or_default();
        let settings =
            MeterSettings { flow_table: FlowTableSettings { flows_max: 64, ..Default::default() }, ..MeterSettings::default() };
        let worker = Worker::new(&settings, KeyHasher::fixed(), Observer::default()).expect("memory");
        let (harvests, harvested) = crossbeam::channel::unbounded();
        let result = LiveWorker::new(0, ring, worker, harvests, stop).run();
        (result, harvested.iter().last().expect("a last harvest").ledger)
    }

    #[test]
    fn a_capture_that_fails_hands_out_what_it_holds_and_the_rest_is_counted() {
        // 200 frames in time, 500 that lie in the ring when the interface goes, and three that the port saw and nobody can read.
        let (result, ledger) = run(Ring::of(200, 703, None));
        assert_eq!(result.expect_err("it is gone").kind, CaptureErrorKind::Gone);
        assert_eq!((ledger.wire, ledger.delivered, ledger.dropped.no_socket), (703, 700, 3));
        assert_eq!(ledger.imbalance(), None);
    }

    #[test]
    fn after_a_full_turn_nobody_asks_the_kernel() {
        let ring = Ring::of(600, 600, Some(Arc::default()));
        let asked = Arc::clone(&ring.asked);
        let (result, ledger) = run(ring);
        assert_eq!((result, ledger.delivered, ledger.imbalance()), (Ok(()), 600, None));
        // Before the first of three turns (256, 256, 88), and after the last.
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
