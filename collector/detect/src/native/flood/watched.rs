//! What is known of one busy service: its last seconds and minutes, what is usual of it, and the flood if there is one.

use serde::{Deserialize, Serialize};
use spanwatch_common::time::Timestamp;

use super::baseline::Baseline;
use super::measure::Measure;
use super::sources::Sources;
use super::{FloodSettings, Limits};
use crate::native::sightings::Sightings;
use crate::row::Row;
use crate::snapshot::Names;

/// Seconds held: a bin of ten, and the thirty that its rows may be late.
const SECONDS: i64 = 32;
/// Seconds of a bin of the baseline.
const BIN: i64 = 10;
/// A bin is taken into the baseline so many seconds after its end.
const BIN_SETTLES: i64 = 20;
/// A minute is closed so many seconds after its end: slices of it are told when it is over.
pub(super) const MINUTE_SETTLES: i64 = 30;
/// After so many bins above the limit (an hour) what was a flood becomes the rule, slowly.
const BINS_OVER_MAX: u32 = 360;
/// The same in minutes.
const MINUTES_OVER_MAX: u32 = 60;
/// Slices of a minute are taken for so many seconds at least.
const SPAN_MIN: f64 = 10.0;
/// Bins without anything that are learned one by one; after more (two hours), nothing is left to forget.
const GAP_MAX: i64 = 720;

/// A second's flows, and those of them that came to something.
type Second = [u32; 2];

/// One service; about 500 bytes, and 6 KiB more while it is flooded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Watched {
    /// The newest second that a row or the time has reached.
    newest: i64,
    /// By second modulo [`SECONDS`].
    seconds: [Second; SECONDS as usize],
    /// The first bin that is not part of the baseline yet.
    unlearned: i64,
    /// Minutes before this one are closed.
    pub(super) closed: i64,
    /// Of flows as they begin.
    pub(super) flows: Baseline,
    /// Of packets or octets.
    pub(super) bulk: Baseline,
    bins_over: u32,
    minutes_over: u32,
    /// The newest second of a row.
    active: i64,
    /// The newest minute with a peak.
    peaked: i64,
    /// Those that are open and in which something was counted, oldest first.
    minutes: Vec<Minute>,
    /// From half the limit on.
    pub(super) flood: Option<Box<Flood>>,
}

/// What came in one minute.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Minute {
    /// Since 1970.
    pub(super) number: i64,
    pub(super) count: u64,
    pub(super) good: u64,
    pub(super) bulk: u64,
    pub(super) bulk_back: u64,
    /// Nanoseconds: when the slices begin and end.
    slices: Option<(i64, i64)>,
    /// The highest rate above the limit.
    pub(super) peak: Option<Peak>,
    /// Of the rows.
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

/// A rate above its limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Peak {
    /// Per second.
    pub(super) rate: f64,
    pub(super) limit: f64,
    /// What is usual, per second; none while that is being learned.
    pub(super) usual: Option<f64>,
    /// Which part came to something.
    pub(super) good_share: f64,
    /// Measured over so many seconds...
    pub(super) over_secs: i64,
    /// ... up to the end of this one.
    pub(super) second: i64,
    /// Of packets or octets instead of flows.
    pub(super) is_bulk: bool,
}

/// Who and what, once it looks like a flood.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Flood {
    pub(super) sources: Sources,
    pub(super) sightings: Sightings,
    pub(super) observers: Names,
    /// The rate that was told last; 0 before.
    pub(super) told: f64,
}

impl Watched {
    /// From `second` on. `is_settled`: whatever it did before was too little to be watched, and that was seen.
    pub(super) fn new(second: i64, is_settled: bool) -> Self {
        let baseline = if is_settled { Baseline::quiet() } else { Baseline::default() };
        Self {
            newest: second,
            seconds: [[0; 2]; SECONDS as usize],
            unlearned: second / BIN - 1,
            closed: second / 60 - 2,
            flows: baseline,
            bulk: baseline,
            bins_over: 0,
            minutes_over: 0,
            active: second,
            peaked: i64::MIN,
            minutes: Vec::new(),
            flood: None,
        }
    }

    /// Adds `measure`; `extra` is what the gate had counted before. Says what is above its limit now, or that the row came too late.
    pub(super) fn add(&mut self, measure: &Measure, extra: u32, row: &Row, limits: &Limits<'_>) -> Result<Option<Peak>, Late> {
        let second = row.at.as_nanos().div_euclid(1_000_000_000);
        let number = second / 60;
        if number < self.closed || measure.count > 0 && second / BIN < self.unlearned {
            return Err(Late);
        }
        self.active = self.active.max(second);
        let place = self.minutes.partition_point(|minute| minute.number < number);
        if self.minutes.get(place).is_none_or(|minute| minute.number != number) {
            self.minutes.insert(place, Minute { number, first: row.at, last: row.at, ..Minute::default() });
        }
        let minute = &mut self.minutes[place];
        minute.first = minute.first.min(row.at);
        minute.last = minute.last.max(row.at);
        let good = if measure.good > 0 { measure.good.saturating_add(extra) } else { 0 };
        minute.count += u64::from(measure.count.saturating_add(extra));
        minute.good += u64::from(good);
        let mut highest = None;
        if measure.count > 0 {
            let slot = &mut self.seconds[second.rem_euclid(SECONDS) as usize];
            slot[0] = slot[0].saturating_add(measure.count).saturating_add(extra);
            slot[1] = slot[1].saturating_add(good);
            highest = self.flow_peak(second, limits);
        }
        if measure.bulk > 0 {
            let minute = &mut self.minutes[place];
            minute.bulk = minute.bulk.saturating_add(measure.bulk);
            minute.bulk_back = minute.bulk_back.saturating_add(measure.bulk_back);
            let (from, to) = minute.slices.unwrap_or((i64::MAX, i64::MIN));
            minute.slices = Some((from.min(row.at.as_nanos()), to.max(row.end.as_nanos())));
            highest = self.bulk_peak(place, second, limits);
        }
        let Some(peak) = highest else { return Ok(None) };
        let flood = self.flood.get_or_insert_default();
        flood.sources.insert(measure.source, u64::from(measure.count).max(measure.bulk));
        flood.sources.has_prefixes |= measure.from_prefix;
        flood.sightings.insert(row);
        flood.observers.insert(&row.observer);
        if peak.rate <= peak.limit || !limits.confirm(&measure.key, &peak, self) {
            return Ok(None);
        }
        self.peaked = self.peaked.max(number);
        let minute = &mut self.minutes[place];
        if minute.peak.is_none_or(|before| before.rate / before.limit < peak.rate / peak.limit) {
            minute.peak = Some(peak);
        }
        Ok(Some(peak))
    }

    /// The rate of flows up to `second`, if it is above half the limit.
    fn flow_peak(&self, second: i64, limits: &Limits<'_>) -> Option<Peak> {
        let limit = limits.of_flows(&self.flows);
        let over_secs = limits.settings.sustain_secs.cast_signed();
        let [count, good] = self.sum(second - over_secs + 1, second);
        let rate = count / over_secs as f64;
        if rate * 2.0 <= limit {
            return None;
        }
        // Who usually completes so many goes on doing that: the flood is what is above.
        let excess = (rate - self.flows.mean).max(1.0);
        let good_share = ((good / over_secs as f64 - self.flows.good) / excess).clamp(0.0, 1.0);
        let usual = limits.is_learned.then_some(self.flows.mean);
        Some(Peak { rate, limit, usual, good_share, over_secs, second, is_bulk: false })
    }

    /// The rate of what slices carried in the minute at `place`, if it is above half the limit.
    fn bulk_peak(&self, place: usize, second: i64, limits: &Limits<'_>) -> Option<Peak> {
        let minute = &self.minutes[place];
        let limit = limits.of_bulk(&self.bulk);
        let (from, to) = minute.slices?;
        let span = ((to - from) as f64 / 1e9).max(SPAN_MIN);
        let rate = minute.bulk as f64 / span;
        if rate * 2.0 <= limit {
            return None;
        }
        let good_share = (minute.bulk_back as f64 / minute.bulk as f64).min(1.0);
        let usual = limits.is_learned.then_some(self.bulk.mean);
        Some(Peak { rate, limit, usual, good_share, over_secs: span.round() as i64, second, is_bulk: true })
    }

    /// Flows from second to second, both included, and those that came to something.
    fn sum(&self, from: i64, to: i64) -> [f64; 2] {
        let known = (from..=to).filter(|&second| second <= self.newest && second > self.newest - SECONDS);
        known.fold([0.0; 2], |[count, good], second| {
            let [more, more_good] = self.seconds[second.rem_euclid(SECONDS) as usize];
            [count + f64::from(more), good + f64::from(more_good)]
        })
    }

    /// Time has reached `second`: bins become part of the baseline. When minutes are over, those in which something was counted are
    /// returned.
    pub(super) fn reach(&mut self, second: i64, limits: &Limits<'_>) -> Option<Vec<Minute>> {
        if second <= self.newest {
            return None;
        }
        let settled = (second - BIN_SETTLES) / BIN;
        self.unlearned = self.unlearned.max(settled - GAP_MAX);
        while self.unlearned < settled {
            let from = self.unlearned * BIN;
            let [rate, good] = self.sum(from, from + BIN - 1).map(|sum| sum / BIN as f64);
            self.unlearned += 1;
            let limit = limits.of_flows(&self.flows);
            self.bins_over = if rate > limit { self.bins_over.saturating_add(1) } else { 0 };
            if rate <= limit || self.bins_over > BINS_OVER_MAX {
                self.flows.learn(rate.min(limit), good.min(limit), limits.bin_weight);
            }
        }
        let forgotten = (self.newest + 1).max(second - SECONDS + 1);
        (forgotten..=second).for_each(|second| self.seconds[second.rem_euclid(SECONDS) as usize] = [0; 2]);
        self.newest = second;
        let closed = (second - MINUTE_SETTLES).div_euclid(60);
        (closed > self.closed).then(|| self.close_before(closed, limits))
    }

    /// Closes the minutes before `closed`, and returns those in which something was counted.
    fn close_before(&mut self, closed: i64, limits: &Limits<'_>) -> Vec<Minute> {
        let over: Vec<Minute> = self.minutes.extract_if(.., |minute| minute.number < closed).collect();
        let from = self.closed.max(closed - GAP_MAX);
        for number in from..closed {
            let minute = over.iter().find(|minute| minute.number == number);
            let rate = minute.map_or(0.0, |minute| minute.bulk as f64 / 60.0);
            let limit = limits.of_bulk(&self.bulk);
            self.minutes_over = if rate > limit { self.minutes_over.saturating_add(1) } else { 0 };
            if rate <= limit || self.minutes_over > MINUTES_OVER_MAX {
                self.bulk.learn(rate.min(limit), 0.0, limits.minute_weight);
            }
        }
        self.closed = self.closed.max(closed);
        over
    }

    /// Closes every minute in which something was counted.
    pub(super) fn close_all(&mut self, limits: &Limits<'_>) -> Vec<Minute> {
        let end = self.minutes.last().map_or(self.closed, |minute| minute.number + 1);
        self.close_before(end, limits)
    }

    /// The flood is over when a whole minute without a peak has closed.
    pub(super) fn rest(&mut self) {
        if self.closed > self.peaked.saturating_add(1) {
            self.flood = None;
        }
    }

    /// Whether it has done so little for so long that nothing is lost when it is forgotten.
    pub(super) fn is_idle(&self, second: i64, limits: &Limits<'_>) -> bool {
        let FloodSettings { floors, .. } = limits.settings;
        let is_little = |mean: f64, floor: f64| mean * 10.0 < floor;
        second - self.active > 600
            && is_little(self.flows.mean, floors.flows(limits.protocol))
            && is_little(self.bulk.mean, floors.bulk(limits.protocol))
    }

    /// Flows of each second up to the newest, oldest first.
    pub(super) fn course(&self) -> Vec<f64> {
        (self.newest - SECONDS + 1..=self.newest).map(|second| self.sum(second, second)[0]).collect()
    }

    /// The minute of `number`, while it is open.
    pub(super) fn minute(&self, number: i64) -> Option<&Minute> {
        self.minutes.iter().find(|minute| minute.number == number)
    }

    /// What is let go first when the table is full: the quietest.
    pub(super) fn weight(&self) -> u64 {
        let flood = u64::from(self.flood.is_some()) << 48;
        flood + (self.flows.mean + self.bulk.mean.sqrt() + self.sum(self.newest - 9, self.newest)[0]) as u64
    }
}

/// A row came after its minute had been closed.
#[derive(Debug)]
pub(super) struct Late;
