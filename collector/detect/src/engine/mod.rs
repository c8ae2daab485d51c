//! All detectors together, and the clock they share.
//!
//! `observers` who sends records, and how far each has come.

mod observers;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::flow::FlowRecord;
use spanwatch_common::time::Timestamp;

use self::observers::Observers;
use crate::crew::Crew;
use crate::finding::Finding;
use crate::reorder::{Reorder, Step};
use crate::roles::Roles;
use crate::row::Row;
use crate::rules::RuleFile;
use crate::shards::{Batch, SHARDS, Unit};
use crate::sites::Sites;
use crate::snapshot::{FORMAT, RestoreError, Whole, pack, unpack};
use crate::{Detector, Mode, State};

/// A record that claims to be from further in the future of a stream than this is not believed.
const FUTURE_MAX: Duration = Duration::from_secs(300);

/// How often, in event time, detectors say what they hold.
const MINUTE: Duration = Duration::from_secs(60);

/// A replay tells the detectors how far event time has come every so many records.
const REPLAY_STRETCH: u64 = 8_192;

/// Rows are shown to a detector so many at a time: what it needs for one stays in the cache for the next. A poll shows the rest.
const WAITING_MAX: usize = 1_024;

/// All detectors of the rule file, and the clock they share.
///
/// A stream calls [`observe`](Self::observe) for every record and [`poll`](Self::poll) a few times per second; a replay calls
/// [`drain`](Self::drain) now and then, and both end with [`finish`](Self::finish).
pub struct Detection {
    mode: Mode,
    sites: Sites,
    roles: Roles,
    crew: Crew,
    /// The account of each detector, its shards added up, as of the last report.
    states: Vec<State>,
    /// The longest of all detectors.
    lateness_max: Duration,
    observers: Observers,
    /// Event time: what the slowest live observer has reached. Never goes back.
    newest: Timestamp,
    /// Wall time of the last poll.
    polled: Timestamp,
    /// The minute of event time at which detectors were asked last what they hold.
    weighed: Timestamp,
    /// Windows were closed because every observer fell silent.
    flushed: bool,
    /// Rows that no detector has seen yet, at most [`WAITING_MAX`].
    waiting: Batch,
    /// Batches that all detectors may have seen, to be filled again.
    shown: VecDeque<Arc<Batch>>,
    /// In a replay: rows on their way to the detectors that want order. None when there is no such detector.
    reorder: Option<Reorder>,
    counters: Counters,
}

/// What happened to the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Given to the detectors.
    pub observed: u64,
    /// Without an address or a time: layer 2.
    pub unplaced: u64,
    /// From the future, so not believed.
    pub future: u64,
    /// Findings told.
    pub findings: u64,
}

impl Detection {
    /// The detectors that `rules` switch on.
    pub fn new(rules: &RuleFile, mode: Mode) -> Self {
        Self::of(rules.detectors(mode), mode)
    }

    /// These detectors, each with its settings as text: itself, or all its shards.
    fn of(detectors: Vec<(Vec<Box<dyn Detector>>, String)>, mode: Mode) -> Self {
        let units: Vec<Unit> = detectors.into_iter().flat_map(|(parts, settings)| Unit::of(parts, settings)).collect();
        let lateness_max = units.iter().map(|unit| unit.detector.lateness()).max().unwrap_or_default();
        let reorder = (mode == Mode::Replay && units.iter().any(|unit| unit.wants_order)).then(Reorder::default);
        let mut detection = Self {
            mode,
            sites: Sites::default(),
            roles: Roles::default(),
            reorder,
            crew: Crew::here(units.into_iter()),
            states: Vec::new(),
            lateness_max,
            observers: Observers::default(),
            newest: Timestamp::NONE,
            polled: Timestamp::NONE,
            weighed: Timestamp::NONE,
            flushed: false,
            waiting: Batch::default(),
            shown: VecDeque::new(),
            counters: Counters::default(),
        };
        detection.report();
        detection
    }

    /// The same, with the operator's sites instead of one that is all private space.
    #[must_use]
    pub fn with_sites(self, sites: Sites) -> Self {
        Self { sites, ..self }
    }

    /// The same, with what is known of hosts.
    #[must_use]
    pub fn with_roles(self, roles: Roles) -> Self {
        Self { roles, ..self }
    }

    /// The same, with the detectors on so many threads of their own, at most [`SHARDS`]; with 1 they work where they are called. What
    /// they find does not depend on it.
    ///
    /// # Panics
    /// Later, at whatever call comes next, when a detector panics on its thread.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { crew: self.crew.spread(threads.min(SHARDS)), ..self }
    }

    /// Takes in a record that `observer` made; a cloud's record names its own observer.
    pub fn observe(&mut self, observer: &str, record: &FlowRecord) {
        let observer = record.cloud.as_ref().map_or(observer, |cloud| &*cloud.context.observer);
        let Some(row) = Row::of(self.observers.listen_to(observer), record, &self.sites, &self.roles) else {
            self.counters.unplaced += 1;
            return;
        };
        let is_future = |at: Timestamp| self.polled.is_some() && at > self.polled.plus(FUTURE_MAX);
        if self.mode == Mode::Stream && is_future(row.at) {
            self.counters.future += 1;
            return;
        }
        // Where hardly anything new begins, the slices of what lasts say how late it is: they end when they are sent.
        let said_at = if self.mode == Mode::Stream && !is_future(row.end) { row.end } else { row.at };
        self.counters.observed += 1;
        self.flushed = false;
        self.roles.learn(&row);
        let reached = self.observers.hear(row.origin, said_at);
        self.waiting.push(row);
        if self.waiting.rows.len() >= WAITING_MAX {
            self.show();
        }
        if self.mode == Mode::Replay {
            self.newest = self.newest.max(reached);
            if self.counters.observed.is_multiple_of(REPLAY_STRETCH) {
                self.advance();
            }
        }
    }

    /// Shows the waiting rows to the detectors, all of them to one before the next.
    fn show(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let batch = next_batch(&mut self.waiting, &mut self.shown);
        let sorted_later = self.reorder.is_some();
        let shown = batch.clone();
        self.crew.post(move |unit| {
            if !(sorted_later && unit.wants_order) {
                unit.walk(&shown);
            }
        });
        let Self { crew, shown, reorder: Some(reorder), .. } = self else {
            self.shown.push_back(batch);
            return;
        };
        let rows = Arc::try_unwrap(batch).map_or_else(|shared| shared.rows.clone(), |batch| batch.rows);
        let mut sorted = Batch::default();
        reorder.take(rows, &mut |step| step_on(step, &mut sorted, crew, shown));
        show_sorted(&mut sorted, crew, shown);
    }

    /// Closes what has ended, and hands over what was found since the last call. Call it a few times per second.
    ///
    /// Event time is that of the slowest observer heard of within twice the lateness. When none was, all windows close.
    pub fn poll(&mut self, now: Timestamp, out: &mut Vec<Finding>) {
        self.show();
        self.polled = now;
        if let Some(slowest) = self.observers.slowest(now, self.lateness_max * 2) {
            self.newest = self.newest.max(slowest);
            self.advance();
        } else if !std::mem::replace(&mut self.flushed, true) {
            self.crew.post(Unit::flush);
        }
        self.hand_over(out);
    }

    /// The end of the data: closes everything and hands over what was found since the last call.
    pub fn finish(&mut self, out: &mut Vec<Finding>) {
        self.show();
        if let Self { crew, shown, reorder: Some(reorder), .. } = self {
            let mut sorted = Batch::default();
            reorder.finish(&mut |step| step_on(step, &mut sorted, crew, shown));
            show_sorted(&mut sorted, crew, shown);
        }
        self.newest = self.observers.furthest().map_or(self.newest, |furthest| furthest.max(self.newest));
        self.crew.post(Unit::finish);
        self.hand_over(out);
    }

    /// Hands over what was found so far in a replay, without closing anything.
    pub fn drain(&mut self, out: &mut Vec<Finding>) {
        self.show();
        self.hand_over(out);
    }

    /// All windows that ended at or before this are closed. The wall time when every observer is silent. Alerts close by it.
    pub fn watermark(&self) -> Timestamp {
        if self.observers.are_silent() && self.polled.is_some() { self.polled } else { self.newest.minus(self.lateness_max) }
    }

    /// Everything known, as bytes. What was found and not handed over yet is not in it: poll or drain before.
    pub fn snapshot(&mut self) -> Vec<u8> {
        self.show();
        let Counters { observed, unplaced, future, findings } = self.counters;
        let counters = (observed, unplaced, future, findings);
        let clock = pack(&(self.observers.save(), self.newest, self.polled, self.flushed, counters));
        pack(&Whole {
            format: FORMAT,
            detectors: self.crew.ask(|unit| unit.save()).into_iter().collect(),
            clock,
            roles: self.roles.snapshot(),
        })
    }

    /// Goes on where the one that made `bytes` was, on however many threads that was. Detectors whose settings are not those of then
    /// start anew, and so do new ones and those whose part cannot be read; returned are their names (`AZ-01 fixed`).
    ///
    /// # Errors
    /// The bytes are no such state, or one of another version. Everything then is as it was before.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<Vec<String>, RestoreError> {
        type Clock = (observers::Saved, Timestamp, Timestamp, bool, (u64, u64, u64, u64));
        let whole: Whole = unpack(bytes)?;
        if whole.format != FORMAT {
            return Err(RestoreError::new(format!("it has format {}, and this version knows format {FORMAT}", whole.format)));
        }
        let (observers, newest, polled, flushed, (observed, unplaced, future, findings)) = unpack::<Clock>(&whole.clock)?;
        if !whole.roles.is_empty() {
            self.roles.restore(&whole.roles)?;
        }
        let saved = Arc::new(whole.detectors);
        let answers = self.crew.ask(move |unit| {
            let done = unit.restore(|name| saved.get(name));
            (!done).then(|| unit.name.clone())
        });
        let mut anew: Vec<String> = answers.into_iter().flatten().collect();
        anew.dedup();
        let failed = anew.clone();
        self.crew.post(move |unit| unit.settle(&failed));
        (self.newest, self.polled, self.flushed) = (newest, polled, flushed);
        self.counters = Counters { observed, unplaced, future, findings };
        self.observers.restore(observers);
        self.report();
        Ok(anew)
    }

    /// After a [`restore`](Self::restore) in a process that was not running for a while: the pause is nobody's silence, and what was
    /// recorded meanwhile is not from the future.
    pub fn wake(&mut self) {
        self.polled = Timestamp::NONE;
        self.observers.wake();
    }

    /// What is known of hosts: given and learned.
    pub const fn roles(&self) -> &Roles {
        &self.roles
    }

    /// What happened to the records.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The account of each detector, as of the last poll, drain, finish or restore.
    pub fn states(&self) -> impl Iterator<Item = &State> {
        self.states.iter()
    }

    /// Memory that all detectors hold, in octets, about.
    pub fn bytes(&self) -> usize {
        self.states.iter().map(|state| state.bytes).sum()
    }

    fn advance(&mut self) {
        self.show();
        let (newest, sorted_later) = (self.newest, self.reorder.is_some());
        self.crew.post(move |unit| {
            if !(sorted_later && unit.wants_order) {
                unit.advance(newest);
            }
        });
        let minute = newest.floor(MINUTE);
        if minute > self.weighed {
            self.weighed = minute;
            self.crew.post(|unit| unit.detector.weigh());
        }
    }

    fn hand_over(&mut self, out: &mut Vec<Finding>) {
        let mut findings = self.report();
        // Those of one rule that are equal in this order stay in that in which it told them.
        findings.sort_by(Finding::order);
        self.counters.findings += findings.len() as u64;
        out.append(&mut findings);
    }

    /// Fetches the accounts of all detectors, and what they told since the last time, in the order of detectors.
    fn report(&mut self) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.states.clear();
        for (mut told, state) in self.crew.ask(Unit::report) {
            findings.append(&mut told);
            match self.states.last_mut() {
                Some(whole) if whole.rule == state.rule && whole.variant == state.variant => whole.add(&state),
                _ => self.states.push(state),
            }
        }
        findings
    }
}

/// Makes a batch of what waits, and room for what comes.
fn next_batch(waiting: &mut Batch, shown: &mut VecDeque<Arc<Batch>>) -> Arc<Batch> {
    let mut empty = Batch::default();
    // The oldest first: if it is still in somebody's hands, so are the others.
    if let Some(oldest) = shown.pop_front() {
        match Arc::try_unwrap(oldest) {
            Ok(batch) => empty = batch,
            Err(busy) => shown.push_front(busy),
        }
    }
    empty.clear();
    Arc::new(std::mem::replace(waiting, empty))
}

/// Takes a step of a sorted replay, and shows the rows when there are enough.
fn step_on(step: Step, sorted: &mut Batch, crew: &mut Crew, shown: &mut VecDeque<Arc<Batch>>) {
    match step {
        Step::Row(row) => sorted.push(row),
        Step::Time(now) => sorted.push_time(now),
    }
    if sorted.rows.len() >= WAITING_MAX {
        show_sorted(sorted, crew, shown);
    }
}

/// Shows rows in the order of time to the detectors that want it.
fn show_sorted(sorted: &mut Batch, crew: &mut Crew, shown: &mut VecDeque<Arc<Batch>>) {
    if sorted.is_empty() {
        return;
    }
    let batch = next_batch(sorted, shown);
    shown.push_back(batch.clone());
    crew.post(move |unit| {
        if unit.wants_order {
            unit.walk(&batch);
        }
    });
}
