//! Rules that judge bins of event time after they have closed.
//!
//! Azure runs such a rule on a schedule, every hour or day, over a look-back that ends when it runs. Here the schedule is that of
//! event time: a rule is judged at each full hour or day (UTC) that event time has passed, over the bins before it, so that a
//! recording from last year gives what it would have given then. A replay judges for the last time when the hour or day that has
//! the last row is over. Bins are half-open: a row at 11:00:00 belongs to the hour from 11:00.
//!
//! A stream that falls silent closes nothing: a day is not over because nobody speaks for a minute.

use std::hash::Hash;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spanwatch_common::time::Timestamp;

use crate::finding::{Finding, RuleCard, Variant};
use crate::hash::Map;
use crate::row::Row;
use crate::rules::{Common, TimeAxis};
use crate::snapshot::{RestoreError, pack, unpack};
use crate::windows::{REPLAY_ROOM, Windows};
use crate::{Detector, Interest, Mode, State};

/// Cells that weigh more than this are never let go.
const WEIGHT_MAX: u64 = 1_000;

/// What tells one rule over bins from another.
pub(crate) trait Rule: Send {
    /// What is counted apart.
    type Key: Clone + Ord + Hash + Send + Serialize + DeserializeOwned;
    /// The keys of a row: an option or a few.
    type Keys: IntoIterator<Item = Self::Key>;
    /// What is counted of a key in one bin.
    type Cell: Send + Serialize + DeserializeOwned;
    /// What is kept of closed bins.
    type Past: Past;

    /// When it is judged, and over what.
    fn schedule(&self) -> Schedule;

    /// See [`Detector::interest`].
    fn interest(&self) -> Interest {
        Interest::EVERYTHING
    }

    /// The keys under which `row` counts; none if it does not.
    fn keys(&self, row: &Row) -> Self::Keys;

    /// See [`Detector::adds_up`].
    fn adds_up(&self) -> bool {
        false
    }

    /// A cell without any row.
    fn fresh(&self) -> Self::Cell;

    /// Counts `row`.
    fn add(&self, cell: &mut Self::Cell, row: &Row);

    /// How much would be lost with the cell; the lightest are let go when room is short.
    fn weight(&self, cell: &Self::Cell) -> u64;

    /// Memory that a cell takes beside itself, in octets.
    fn size(_cell: &Self::Cell) -> usize {
        0
    }

    /// Takes over a bin that has closed. Bins come in the order of time, their cells in the order of keys.
    fn absorb(&self, past: &mut Self::Past, start: Timestamp, cells: Vec<(Self::Key, Self::Cell)>);

    /// Judges, as a query run at `now`: everything before `now` has been absorbed, and nothing after.
    fn judge(&self, past: &mut Self::Past, now: Timestamp, findings: &mut Vec<Finding>);

    /// The end of a replay, after the last judgement.
    fn conclude(&self, _past: &mut Self::Past, _findings: &mut Vec<Finding>) {}
}

/// What a rule keeps of closed bins.
pub(crate) trait Past: Default + Send + Serialize + DeserializeOwned {
    /// Forgets what lies before `horizon`, and of the rest what was silent longest while there are more than `keys_max` keys;
    /// says how many had to go for want of room.
    fn trim(&mut self, horizon: Timestamp, keys_max: usize) -> u64;

    /// Keys held.
    fn keys(&self) -> usize;

    /// Memory that it takes beside itself, in octets.
    fn size(&self) -> usize;
}

/// When a rule is judged, and over what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// How often the rule is judged; a multiple of the bin.
    pub(crate) every: Duration,
    /// How much of the past it looks at, the bins judged included.
    pub(crate) look_back: Duration,
}

/// A [`Rule`] on its grid: a detector.
pub(crate) struct Binned<R: Rule> {
    rule: R,
    schedule: Schedule,
    variant: Variant,
    time_axis: TimeAxis,
    /// Keys of the past at most.
    keys_max: usize,
    open: Windows<R::Key, R::Cell>,
    past: R::Past,
    clock: Clock,
}

/// Where the schedule stands.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Clock {
    /// When to judge next; none before the first data and after the look-back has run empty.
    due: Timestamp,
    /// Where the last absorbed bin ended.
    absorbed: Timestamp,
}

impl<R: Rule> Binned<R> {
    /// `rule` at work. Room is for `keys_max` keys in all open bins together, and again as many in the past.
    pub(crate) fn boxed(rule: R, card: &RuleCard, common: &Common, mode: Mode) -> Box<dyn Detector>
    where
        R: 'static,
    {
        Box::new(Self {
            schedule: rule.schedule(),
            rule,
            variant: card.variant,
            time_axis: common.time_axis,
            keys_max: if mode == Mode::Replay { common.keys_max.saturating_mul(REPLAY_ROOM) } else { common.keys_max },
            open: Windows::new(common.window, common.lateness, common.keys_max, mode, Common::state(card)),
            past: R::Past::default(),
            clock: Clock { due: Timestamp::NONE, absorbed: Timestamp::NONE },
        })
    }

    /// Judges at each scheduled time up to and including `until`, as long as the look-back holds data.
    fn judge_until(&mut self, until: Timestamp, findings: &mut Vec<Finding>) {
        while self.clock.due.is_some() && self.clock.due <= until {
            let now = self.clock.due;
            if now >= self.clock.absorbed.plus(self.schedule.look_back) {
                self.clock.due = Timestamp::NONE;
                return;
            }
            let from = findings.len();
            self.rule.judge(&mut self.past, now, findings);
            findings[from..].sort_by(Finding::order);
            self.clock.due = now.plus(self.schedule.every);
            self.trim();
        }
    }

    /// Forgets what the next judgement does not look at, and what there is no room for.
    fn trim(&mut self) {
        let horizon = self.clock.due.minus(self.schedule.look_back);
        self.open.state_mut().evicted += self.past.trim(horizon, self.keys_max);
    }

    fn close(&mut self, start: Timestamp, cells: Map<R::Key, R::Cell>, findings: &mut Vec<Finding>) {
        self.judge_until(start, findings);
        let mut cells: Vec<(R::Key, R::Cell)> = cells.into_iter().collect();
        cells.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.rule.absorb(&mut self.past, start, cells);
        self.clock.absorbed = start.plus(self.open.length());
        if !self.clock.due.is_some() {
            self.clock.due = start.floor(self.schedule.every).plus(self.schedule.every);
        }
        if self.past.keys() > self.keys_max {
            self.trim();
        }
    }

    fn make_room(&mut self, findings: &mut Vec<Finding>) {
        while let Some((start, cells)) = self.open.pop_for_room() {
            self.close(start, cells, findings);
        }
        // An exact form lets nothing go: what there is no room for is refused, and counted.
        let light = if self.variant == Variant::Fixed { WEIGHT_MAX } else { 0 };
        self.open.let_go(light, |cell| self.rule.weight(cell));
    }
}

impl<R: Rule> Detector for Binned<R> {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let at = self.time_axis.of(row);
        for key in self.rule.keys(row) {
            let Some(start) = self.open.place(at) else { return };
            self.open.reach(at);
            if self.open.needs_room(start, &key) {
                self.make_room(findings);
                if self.open.is_closed(start) {
                    self.open.state_mut().late += 1;
                    return;
                }
            }
            if let Some(cell) = self.open.entry(start, key, || self.rule.fresh()) {
                self.rule.add(cell, row);
            }
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        self.open.reach(newest);
        while let Some((start, cells)) = self.open.pop_due() {
            self.close(start, cells, findings);
        }
        if self.open.mode() == Mode::Stream {
            self.judge_until(newest.minus(self.open.lateness()), findings);
        }
    }

    fn flush(&mut self, _findings: &mut Vec<Finding>) {}

    fn finish(&mut self, findings: &mut Vec<Finding>) {
        if self.open.mode() == Mode::Stream {
            return;
        }
        while let Some((start, cells)) = self.open.pop_first() {
            self.close(start, cells, findings);
        }
        // To the end of the hour or day that has the last row, and not into the days after it, in which nothing happened.
        let last = self.clock.absorbed.minus(self.open.length()).floor(self.schedule.every).plus(self.schedule.every);
        self.judge_until(last, findings);
        self.rule.conclude(&mut self.past, findings);
    }

    fn interest(&self) -> Interest {
        self.rule.interest()
    }

    fn adds_up(&self) -> bool {
        self.rule.adds_up()
    }

    fn state(&self) -> &State {
        self.open.state()
    }

    fn weigh(&mut self) {
        let past = self.past.size();
        self.open.weigh(R::size, past);
    }

    fn lateness(&self) -> Duration {
        self.open.lateness()
    }

    fn snapshot(&self) -> Vec<u8> {
        pack(&(self.open.snapshot(), &self.past, self.clock))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let (open, past, clock) = unpack::<(Vec<u8>, R::Past, Clock)>(bytes)?;
        self.open.restore(&open)?;
        self.past = past;
        self.clock = clock;
        Ok(())
    }
}
