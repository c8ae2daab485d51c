//! What a host sent out in the hours of the last four weeks and the days of the same, and what of that is usual.

use serde::{Deserialize, Serialize};
use spanwatch_kql::stats;

/// Hours remembered: four weeks.
pub(super) const HOURS: usize = 4 * WEEK as usize;
/// Days remembered.
const DAYS: usize = 28;
/// Hours in a week.
const WEEK: u32 = 168;
/// The spread is never taken for smaller than this many octets.
pub(super) const SPREAD_MIN: f64 = 1e6;
/// Octets are kept in steps of 1.1 %: 2^(1/64).
const STEPS: f64 = 64.0;

/// Octets as a number of steps on a logarithmic scale, exact enough for a median.
fn packed(octets: u64) -> u16 {
    ((1.0 + octets as f64).log2() * STEPS).round() as u16
}

fn unpacked(steps: u16) -> f64 {
    (f64::from(steps) / STEPS).exp2() - 1.0
}

/// Octets of one host by hour and by day since 1970, modulo those remembered: 1.4 KiB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Past {
    hours: Vec<u16>,
    days: Vec<u16>,
}

impl Default for Past {
    fn default() -> Self {
        Self { hours: vec![0; HOURS], days: vec![0; DAYS] }
    }
}

impl Past {
    pub(super) fn set_hour(&mut self, hour: u32, octets: u64) {
        self.hours[hour as usize % HOURS] = packed(octets);
    }

    pub(super) fn set_day(&mut self, day: u32, octets: u64) {
        self.days[day as usize % DAYS] = packed(octets);
    }

    /// Octets of the hours before `hour`, the oldest first.
    pub(super) fn last_hours(&self, hour: u32, count: u32) -> Vec<f64> {
        (hour.saturating_sub(count)..hour).map(|hour| self.hour(hour).round()).collect()
    }

    /// Memory that it holds.
    pub(super) const fn bytes(&self) -> usize {
        (HOURS + DAYS) * size_of::<u16>() + size_of::<Self>()
    }

    /// Whether all hours and days have a place.
    pub(super) fn is_sound(&self) -> bool {
        self.hours.len() == HOURS && self.days.len() == DAYS
    }

    fn hour(&self, hour: u32) -> f64 {
        unpacked(self.hours[hour as usize % HOURS])
    }

    fn day(&self, day: u32) -> f64 {
        unpacked(self.days[day as usize % DAYS])
    }
}

/// What a baseline rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Basis {
    /// Nothing: watched for too short a time.
    Nothing,
    /// The same hour of so many days, or so many days.
    Days(usize),
    /// The same hour of the week, or the same day of it, of so many weeks.
    Weeks(usize),
}

/// What is usual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usual {
    pub(super) median: f64,
    /// From here on it is not: the median and `z` spreads.
    pub(super) bar: f64,
    pub(super) basis: Basis,
}

/// Which hours of the past can be asked about: those since when the host was known, in which anything at all was seen.
pub(super) struct Watched<'a> {
    /// First whole hour since which the host is known.
    pub(super) since: u32,
    /// By hour, modulo those remembered: whether anything was seen.
    pub(super) seen: &'a [bool],
}

impl Watched<'_> {
    fn hour(&self, hour: u32) -> bool {
        hour >= self.since && self.seen[hour as usize % HOURS]
    }

    fn day(&self, day: u32) -> bool {
        day * 24 >= self.since && (day * 24..day * 24 + 24).any(|hour| self.seen[hour as usize % HOURS])
    }
}

/// What is usual in the hour `hour` since 1970: by the same hour of the week, from two weeks on; before that by the same hour of the day,
/// from three days on. A job does not start on the minute, so of this hour and its two neighbours the one with most counts.
pub(super) fn usual_hour(past: Option<&Past>, watched: &Watched<'_>, hour: u32, z: f64) -> Usual {
    let value = |hour| past.map_or(0.0, |past| past.hour(hour));
    // Not beyond what is remembered, and not this hour itself.
    let held = |then: u32| then < hour && then + HOURS as u32 >= hour && watched.hour(then);
    let samples = |step: u32, times: u32, around: u32| -> Vec<f64> {
        (1..=times).filter_map(|k| around.checked_sub(step * k)).filter(|&then| held(then)).map(value).collect()
    };
    let best = |step, times, least: usize| {
        let neighbours = [hour, hour - 1, hour + 1].map(|around| samples(step, times, around));
        let count = neighbours[0].len();
        let usual = neighbours.iter().filter(|samples| samples.len() >= least).map(|samples| usual(samples, z));
        let usual = usual.max_by(|(_, a), (_, b)| a.total_cmp(b));
        usual.filter(|_| count >= least).map(|(median, bar)| (median, bar, count))
    };
    if let Some((median, bar, weeks)) = best(WEEK, 4, 2) {
        return Usual { median, bar, basis: Basis::Weeks(weeks) };
    }
    if let Some((median, bar, days)) = best(24, 7, 3) {
        return Usual { median, bar, basis: Basis::Days(days) };
    }
    Usual { median: 0.0, bar: 0.0, basis: Basis::Nothing }
}

/// What is usual on the day `day` since 1970: by all days remembered, from three on, or by the same day of the week, from two on, whichever is
/// more.
pub(super) fn usual_day(past: Option<&Past>, watched: &Watched<'_>, day: u32, z: f64) -> Usual {
    let value = |day| past.map_or(0.0, |past| past.day(day));
    let samples = |step: u32| -> Vec<f64> {
        let days = (step..DAYS as u32).step_by(step as usize).filter_map(|ago| day.checked_sub(ago));
        days.filter(|&then| watched.day(then)).map(value).collect()
    };
    let (days, weeks) = (samples(1), samples(7));
    if days.len() < 3 {
        return Usual { median: 0.0, bar: 0.0, basis: Basis::Nothing };
    }
    let (median, bar) = usual(&days, z);
    match (weeks.len() >= 2).then(|| usual(&weeks, z)).filter(|(_, of_weeks)| *of_weeks > bar) {
        Some((median, bar)) => Usual { median, bar, basis: Basis::Weeks(weeks.len()) },
        None => Usual { median, bar, basis: Basis::Days(days.len()) },
    }
}

/// Median, and what lies `z` spreads above it; the spread is at least a twentieth of the median, and [`SPREAD_MIN`].
fn usual(samples: &[f64], z: f64) -> (f64, f64) {
    let median = stats::median(samples).unwrap_or(0.0);
    let distances: Vec<f64> = samples.iter().map(|sample| (sample - median).abs()).collect();
    // 1.4826 turns the median deviation of normally distributed values into their standard deviation.
    let spread = (1.4826 * stats::median(&distances).unwrap_or(0.0)).max(0.05 * median).max(SPREAD_MIN);
    (median, median + z * spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: [bool; HOURS] = [true; HOURS];

    #[test]
    fn octets_are_remembered_to_a_percent() {
        for octets in [0, 1_000_000, 12_345_678, 5_000_000_000_000] {
            let back = unpacked(packed(octets));
            assert!((back - octets as f64).abs() <= 0.006 * octets as f64 + 0.5, "{octets} became {back}");
        }
    }

    #[test]
    fn the_bar_is_six_spreads_above_the_median_of_the_hour_of_the_week() {
        let (mut past, hour) = (Past::default(), 10_000);
        for (week, octets) in (1..=3).zip([100_000_000, 104_000_000, 108_000_000]) {
            past.set_hour(hour - week * WEEK, octets);
        }
        let watched = Watched { since: 0, seen: &SEEN };
        let usual = usual_hour(Some(&past), &watched, hour, 6.0);
        // Four weeks are watched, and in the first nothing was sent: 0, 100, 104, 108. Median 102, deviations 102, 6, 2, 2: median 4.
        assert_eq!(usual.basis, Basis::Weeks(4));
        assert!((usual.median - 102e6).abs() < 1e6, "{}", usual.median);
        assert!((usual.bar - (102e6 + 6.0 * 1.4826 * 4e6)).abs() < 8e6, "{}", usual.bar);
    }

    #[test]
    fn a_job_of_the_hour_before_is_usual_in_this_one_and_what_nobody_watched_is_no_zero() {
        let (mut past, hour) = (Past::default(), 10_000);
        (1..=2).for_each(|week| past.set_hour(hour - 1 - week * WEEK, 800_000_000));
        let watched = Watched { since: hour - 2 * WEEK - 5, seen: &SEEN };
        assert!(usual_hour(Some(&past), &watched, hour, 6.0).median > 790e6);
        assert_eq!(usual_hour(Some(&past), &Watched { since: hour - 71, seen: &SEEN }, hour, 6.0).basis, Basis::Nothing);
        assert_eq!(usual_hour(None, &Watched { since: hour - 72, seen: &SEEN }, hour, 6.0).basis, Basis::Days(3));
        let blind = [false; HOURS];
        assert_eq!(usual_hour(None, &Watched { since: 0, seen: &blind }, hour, 6.0).basis, Basis::Nothing);
    }

    #[test]
    fn a_day_is_compared_with_days_and_with_the_same_day_of_the_week() {
        let (mut past, day) = (Past::default(), 20_000);
        (1..=14).for_each(|ago| past.set_day(day - ago, if ago % 7 == 0 { 900_000_000 } else { 20_000_000 }));
        let watched = Watched { since: (day - 14) * 24, seen: &SEEN };
        let usual = usual_day(Some(&past), &watched, day, 5.0);
        assert_eq!(usual.basis, Basis::Weeks(2));
        assert!((usual.median - 900e6).abs() < 9e6);
        let next = usual_day(Some(&past), &watched, day + 1, 5.0);
        assert!((next.bar - 25e6).abs() < 1e6, "median 20 MB, spread 1 MB: {}", next.bar);
    }
}
