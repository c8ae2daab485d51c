//! What one source did on one port of one host.

use serde::{Deserialize, Serialize};
use spanwatch_common::time::Timestamp;

use super::attempt::{Attempt, Attempts};
use crate::native::lasting::Lasting;
use crate::native::sightings::Sightings;
use crate::row::Row;
use crate::snapshot::Names;

/// Stretches of half a minute that are added up to five minutes.
pub(super) const STRETCHES: i64 = 10;
/// Seconds of a stretch.
pub(super) const STRETCH: i64 = 30;
/// Hours that are added up to a day.
const HOURS: i64 = 24;
/// How many times what was seen on earlier days is still nothing new.
const USUAL_FACTOR: f64 = 3.0;
/// What an earlier day counts for, one day later.
const DAY_FADES: f64 = 0.8;

/// Counts by stretches of time, of which the latest few are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    newest: i64,
    counts: Vec<u16>,
}

impl Counts {
    /// Counts one in the stretch of `number`, of which `kept` are kept, and returns the sum; none if it is too old.
    fn add(&mut self, number: i64, kept: i64) -> Option<u64> {
        if self.counts.is_empty() {
            (self.newest, self.counts) = (number, vec![0; kept as usize]);
        }
        if number <= self.newest - kept {
            return None;
        }
        let from = (self.newest + 1).max(number - kept + 1);
        (from..=number).for_each(|fresh| self.counts[fresh.rem_euclid(kept) as usize] = 0);
        self.newest = self.newest.max(number);
        let count = &mut self.counts[number.rem_euclid(kept) as usize];
        *count = count.saturating_add(1);
        Some(self.counts.iter().map(|&count| u64::from(count)).sum())
    }

    /// The counts, oldest first.
    fn course(&self) -> Vec<f64> {
        let kept = self.counts.len() as i64;
        (self.newest - kept + 1..=self.newest).map(|number| f64::from(self.counts[number.rem_euclid(kept) as usize])).collect()
    }
}

/// How much is usual: the most that was seen on earlier days on which nobody was accused, fading day by day. Yesterday is none of them
/// yet: what began last night must not excuse itself this morning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Usual {
    earlier: f64,
    yesterday: f64,
    today: f64,
}

impl Usual {
    fn turn(&mut self, days: i64, was_accused: bool) {
        let today = if was_accused { 0.0 } else { std::mem::take(&mut self.today) };
        self.earlier = (self.earlier * DAY_FADES.powi(days.clamp(0, 100) as i32)).max(self.yesterday);
        (self.yesterday, self.today) = (today, 0.0);
        if days > 1 {
            self.earlier = self.earlier.max(std::mem::take(&mut self.yesterday));
        }
    }

    /// Whether `count` is no more than was seen before.
    fn covers(&mut self, count: u64) -> bool {
        self.today = self.today.max(count as f64);
        count as f64 <= self.earlier * USUAL_FACTOR
    }
}

/// One pair: about 600 bytes, and 6 KiB more once it is accused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pair {
    /// When it was seen first.
    pub(super) since: Timestamp,
    /// When it was seen last.
    pub(super) last: Timestamp,
    pub(super) attempts: Attempts,
    stretches: Counts,
    hours: Counts,
    /// The day of the newest attempt, since 1970.
    day: i64,
    was_accused: bool,
    usual: [Usual; 2],
    /// Attempts since it is accused, or since it was seen first.
    pub(super) total: u64,
    /// Many within five minutes.
    pub(super) fast: Lasting,
    /// Many within a day.
    pub(super) slow: Lasting,
    /// When a longer session came after them, and its octets.
    pub(super) came_in: Option<(Timestamp, u64)>,
    pub(super) proof: Option<Box<Proof>>,
}

/// Rows and observers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Proof {
    pub(super) sightings: Sightings,
    pub(super) observers: Names,
}

/// How many attempts there were of late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) in_minutes: u64,
    pub(super) in_day: u64,
    /// Whether each is no more than on earlier days.
    pub(super) usual: [bool; 2],
}

impl Pair {
    pub(super) fn new(at: Timestamp) -> Self {
        Self {
            since: at,
            last: at,
            attempts: Attempts::default(),
            stretches: Counts::default(),
            hours: Counts::default(),
            day: day(at),
            was_accused: false,
            usual: [Usual::default(); 2],
            total: 0,
            fast: Lasting::default(),
            slow: Lasting::default(),
            came_in: None,
            proof: None,
        }
    }

    /// Takes in an attempt; none if it came too late.
    pub(super) fn add(&mut self, attempt: Attempt, at: Timestamp) -> Option<Pace> {
        let second = at.as_nanos() / 1_000_000_000;
        let in_minutes = self.stretches.add(second / STRETCH, STRETCHES)?;
        let in_day = self.hours.add(second / 3_600, HOURS)?;
        let days = day(at) - self.day;
        if days > 0 {
            self.usual.iter_mut().for_each(|usual| usual.turn(days, self.was_accused));
            self.day = day(at);
            self.was_accused = self.fast.is_told() || self.slow.is_told();
        }
        self.attempts.push(attempt);
        self.total += 1;
        self.since = self.since.min(at);
        self.last = self.last.max(at);
        Some(Pace { in_minutes, in_day, usual: [self.usual[0].covers(in_minutes), self.usual[1].covers(in_day)] })
    }

    /// Keeps `row` as proof.
    pub(super) fn prove(&mut self, row: &Row) {
        let proof = self.proof.get_or_insert_default();
        proof.sightings.insert(row);
        proof.observers.insert(&row.observer);
    }

    /// It is accused: what it did today is no measure of what is usual.
    pub(super) const fn accuse(&mut self) {
        self.was_accused = true;
    }

    /// Attempts by half minutes, or by hours, oldest first.
    pub(super) fn course(&self, is_slow: bool) -> Vec<f64> {
        if is_slow { self.hours.course() } else { self.stretches.course() }
    }
}

fn day(at: Timestamp) -> i64 {
    at.as_nanos().div_euclid(86_400_000_000_000)
}
