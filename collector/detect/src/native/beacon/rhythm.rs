//! How much the contacts of a host with a service are like a beacon: one number from 0 to 1, and the parts that it is made of.
//!
//! | part | 1 means | 0 means |
//! | --- | --- | --- |
//! | interval | contacts at equal distances, up to jitter, with or without missed ones | distances of every length |
//! | size | the same number of octets each time | every size |
//! | coverage | half a day without a break, or a whole day | less than [`HOURS_MIN`] hours |
//! | flatness | as many contacts in every hour | all in a few hours |
//!
//! Their weighted mean is the base. What is known of the destination moves it: what most hosts call is the estate's own software; what
//! hardly any other does, or what was never called before, is not. And the intervals limit it: who is busy all day in no rhythm is no
//! beacon, whatever he calls. Software that phones home from few hosts is as regular as a beacon and cannot be told from one by its flows.
//!
//! The four parts are those of RITA, from their description; the comb, the bursts and the limit are ours.

use spanwatch_kql::stats::{mean, percentile, stdev};

/// Hours with contacts that it takes to cover anything.
pub const HOURS_MIN: usize = 6;
/// Contacts that it takes to look for a rhythm.
pub const CONTACTS_MIN: usize = 6;
/// Intervals that it takes to have one.
const INTERVALS_MIN: usize = 9;
/// Hosts on the network that it takes to say what is rare or common among them.
pub const HOSTS_MIN: usize = 10;

/// How far intervals may lie off the period, as a part of it and with the doubt of few of them, before that limits the total: half of a
/// jitter of 40 %, and some. Of contacts by chance it is 0.69.
const SPREAD_FREE: f64 = 0.25;
/// How fast the limit falls beyond.
const LIMIT_RATE: f64 = 3.0;
/// Tenths of a second: quartiles of intervals closer than this are not skewed.
const SPREAD_MIN: f64 = 100.0;

/// What was seen of one host's contacts with one service.
#[derive(Clone, Copy, Debug)]
pub struct Contacts<'a> {
    /// When they began, in tenths of a second, ascending.
    pub starts: &'a [u32],
    /// Octets that the host sent in each; 0 where nobody counted.
    pub sizes: &'a [u32],
    /// How many there were in each of the last 24 hours, the oldest first.
    pub hours: &'a [u32; 24],
}

/// What is known of the service that is called.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Standing {
    /// Share of the hosts that call its network there, 0 to 1; none where there are fewer than [`HOSTS_MIN`].
    pub prevalence: Option<f64>,
    /// How long it has been called.
    pub age: Age,
}

/// How long a host has called a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Age {
    /// For a week at most, after a week or more in which it did not.
    New,
    /// Nobody has watched long enough to say.
    #[default]
    Unknown,
    /// For thirty days or longer.
    Old,
}

/// How much each part counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of the interval.
    pub interval: f64,
    /// Of the size.
    pub size: f64,
    /// Of the coverage.
    pub coverage: f64,
    /// Of the flatness.
    pub flatness: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { interval: 0.25, size: 0.25, coverage: 0.25, flatness: 0.25 }
    }
}

/// The verdict and its parts, each 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// How much it is like a beacon, all considered.
    pub total: f64,
    /// The same, before the service's standing is.
    pub base: f64,
    /// What the total can be at most, by how far the intervals lie off the period.
    pub limit: f64,
    /// Regularity of the intervals.
    pub interval: f64,
    /// Regularity of the sizes; none where nobody counted octets.
    pub size: Option<f64>,
    /// How much of the day.
    pub coverage: f64,
    /// How evenly over its hours.
    pub flatness: f64,
    /// Seconds from one beat to the next.
    pub period_secs: f64,
    /// How far an interval is off the period, as a part of it.
    pub jitter: f64,
    /// Median octets of a contact.
    pub octets: f64,
}

impl Score {
    /// The same contacts with a service of another standing.
    #[must_use]
    pub fn with(self, standing: Standing) -> Self {
        let total = if self.base > 0.0 { (self.base + modifier(standing)).min(self.limit).max(0.0) } else { 0.0 };
        Self { total, ..self }
    }

    /// What it may become once there are enough hours: the mean of the parts that do not need them.
    pub fn promise(self) -> f64 {
        weighted_mean([Some(self.interval), self.size, None, Some(self.flatness)], Weights::default())
    }
}

/// How much `contacts` are like a beacon; 0 with fewer than ten of them, or in fewer than [`HOURS_MIN`] hours.
pub fn score(contacts: Contacts<'_>, standing: Standing, weights: Weights) -> Score {
    let intervals = beats(contacts.starts);
    if contacts.starts.len() < CONTACTS_MIN || intervals.len() < INTERVALS_MIN {
        return Score::default();
    }
    let beat = beat(&intervals);
    let sizes: Vec<f64> = contacts.sizes.iter().filter(|&&size| size > 0).map(|&size| f64::from(size)).collect();
    let size = (sizes.len() * 2 >= contacts.sizes.len() && !sizes.is_empty()).then(|| regularity(&sizes, 0.0));
    let span = contacts.starts.last().zip(contacts.starts.first()).map_or(0, |(last, first)| last - first);
    let (coverage, flatness) = (coverage(contacts.hours, f64::from(span) / 36_000.0), flatness(contacts.hours));
    let parts = [Some(beat.regularity), size, Some(coverage), Some(flatness)];
    let base = match coverage {
        0.0 => 0.0,
        _ => weighted_mean(parts, weights),
    };
    // Few intervals lie together by chance.
    let doubt = 0.5 / (intervals.len() as f64).sqrt();
    let parts = Score {
        total: base,
        base,
        limit: (1.0 - LIMIT_RATE * (beat.jitter / 2.0 + doubt - SPREAD_FREE)).clamp(0.0, 1.0),
        interval: beat.regularity,
        size,
        coverage,
        flatness,
        period_secs: beat.period / 10.0,
        jitter: beat.jitter,
        octets: percentile(&sizes, 50.0).unwrap_or(0.0),
    };
    parts.with(standing)
}

/// The mean of the parts (interval, size, coverage, flatness) that are known.
fn weighted_mean(parts: [Option<f64>; 4], weights: Weights) -> f64 {
    let weights = [weights.interval, weights.size, weights.coverage, weights.flatness];
    let (sum, whole) = parts
        .into_iter()
        .zip(weights)
        .filter_map(|(part, weight)| part.map(|part| (part * weight, weight)))
        .fold((0.0, 0.0), |(sum, whole), (part, weight)| (sum + part, whole + weight));
    if whole > 0.0 { sum / whole } else { 0.0 }
}

/// What the standing of the service adds to the base: 0.15 for what at most 2 % of the hosts call, falling to 0 at 10 %, and to -0.5
/// for what half of them do; 0.15 for what is new, -0.3 for what is old.
fn modifier(standing: Standing) -> f64 {
    let by_prevalence = match standing.prevalence {
        None => 0.0,
        Some(share) if share <= 0.02 => 0.15,
        Some(share) if share <= 0.1 => 0.15 * (0.1 - share) / 0.08,
        Some(share) => -0.5 * ((share - 0.1) / 0.4).min(1.0),
    };
    let by_age = match standing.age {
        Age::New => 0.15,
        Age::Unknown => 0.0,
        Age::Old => -0.3,
    };
    // What is new or rare is not therefore a beacon twice over.
    (by_prevalence + by_age).min(0.15)
}

/// Intervals between beats, in tenths of a second. Contacts that come in bursts, such as three requests per call, are one beat.
fn beats(starts: &[u32]) -> Vec<f64> {
    let gaps: Vec<f64> = starts.windows(2).map(|pair| f64::from(pair[1] - pair[0])).collect();
    let Some(mean) = mean(&gaps) else { return gaps };
    // Of contacts that come by chance, 22 % follow the one before within a quarter of the mean: 1 - exp(-1/4).
    let close = gaps.iter().filter(|&&gap| gap < mean / 4.0).count();
    if close * 10 < gaps.len() * 4 {
        return gaps;
    }
    let mut beats = Vec::new();
    let mut since = 0.0;
    for gap in gaps {
        since += gap;
        if gap >= mean / 2.0 {
            beats.push(since);
            since = 0.0;
        }
    }
    beats
}

struct Beat {
    regularity: f64,
    /// In tenths of a second.
    period: f64,
    jitter: f64,
}

fn beat(intervals: &[f64]) -> Beat {
    let median = percentile(intervals, 50.0).unwrap_or(0.0);
    let plain = Beat { regularity: regularity(intervals, SPREAD_MIN), period: median, jitter: 2.0 * spread(intervals, median) };
    match comb(intervals) {
        // Where beats were missed the median is too long, whichever of the two is the more regular.
        Some(comb) => Beat { regularity: comb.regularity.max(plain.regularity), jitter: comb.jitter.min(plain.jitter), ..comb },
        None => plain,
    }
}

/// The rhythm behind intervals that are multiples of it, more or less, because some beats were missed; none if chance might look the same.
///
/// Each interval is measured against the nearest multiple of a period; by chance it lies a quarter of the period off on average, with
/// a standard deviation of 1/sqrt(48). The best of a few periods counts if it is better than chance by four of those of the mean.
fn comb(intervals: &[f64]) -> Option<Beat> {
    const PERIODS: u32 = 40;
    let (low, high) = (percentile(intervals, 10.0)? * 0.8, percentile(intervals, 50.0)? * 1.1);
    if low < 5.0 {
        return None;
    }
    let beats = |gap: &f64, period: f64| (gap / period).round().max(1.0);
    let off = |period: f64| {
        let distance = |gap: &f64| (gap / period - beats(gap, period)).abs();
        intervals.iter().map(distance).sum::<f64>() / intervals.len() as f64
    };
    let periods = (0..=PERIODS).map(|step| low + (high - low) * f64::from(step) / f64::from(PERIODS));
    let tooth = periods.min_by(|&a, &b| off(a).total_cmp(&off(b)))?;
    let single: Vec<f64> = intervals.iter().map(|gap| gap / beats(gap, tooth)).collect();
    let period = percentile(&single, 50.0)?;
    let off = off(period);
    let chance = (1.0 / 48.0_f64).sqrt() / (intervals.len() as f64).sqrt();
    // The mean distance of a jitter of ±j is j/2.
    (0.25 - off >= 4.0 * chance).then_some(Beat { regularity: 1.0 - off, period, jitter: 2.0 * off })
}

/// How alike `values` are: the mean of one that knows how far they lie from their median, and one that knows whether to one side.
fn regularity(values: &[f64], spread_min: f64) -> f64 {
    let median = percentile(values, 50.0).unwrap_or(0.0);
    (1.0 - spread(values, median) + 1.0 - bowley(values, spread_min).abs()) / 2.0
}

/// Median distance from the median, as a part of it; 1 at most.
fn spread(values: &[f64], median: f64) -> f64 {
    if median <= 0.0 {
        return 1.0;
    }
    let distances: Vec<f64> = values.iter().map(|value| (value - median).abs()).collect();
    (percentile(&distances, 50.0).unwrap_or(median) / median).min(1.0)
}

/// Bowley's skewness of the quartiles, -1 to 1; 0 where they lie closer than `spread_min`, or two of them coincide.
fn bowley(values: &[f64], spread_min: f64) -> f64 {
    let quartile = |percent| percentile(values, percent).unwrap_or(0.0);
    let (q1, q2, q3) = (quartile(25.0), quartile(50.0), quartile(75.0));
    if q3 - q1 <= spread_min || q2 == q1 || q2 == q3 { 0.0 } else { (q1 + q3 - 2.0 * q2) / (q3 - q1) }
}

/// The share of a day between the first contact and the last, or of half a day in hours without a break, if that is more.
fn coverage(hours: &[u32; 24], span_hours: f64) -> f64 {
    let active = hours.iter().filter(|&&count| count > 0).count();
    if active < HOURS_MIN {
        return 0.0;
    }
    let (start, end) = longest_run(hours);
    (span_hours / 24.0).max((end - start) as f64 / 12.0).min(1.0)
}

/// How evenly contacts are spread over the hours since the first of them; or, four fifths of that, over the longest stretch without an
/// empty hour, for a host that sleeps at night.
fn flatness(hours: &[u32; 24]) -> f64 {
    let first = hours.iter().position(|&count| count > 0).unwrap_or(0);
    let (start, end) = longest_run(hours);
    let stretch = if end - start >= HOURS_MIN { 0.8 * evenness(&hours[start..end]) } else { 0.0 };
    evenness(&hours[first..]).max(stretch)
}

/// 1 - standard deviation / mean, at least 0. Hours are put together until there are four contacts in each on average.
fn evenness(hours: &[u32]) -> f64 {
    let contacts: u32 = hours.iter().sum();
    let width = [1, 2, 3, 4, 6].into_iter().find(|width| contacts as usize * width >= 4 * hours.len()).unwrap_or(6);
    let bins: Vec<f64> = hours.chunks_exact(width).map(|bin| bin.iter().map(|&count| f64::from(count)).sum()).collect();
    match (mean(&bins), stdev(&bins)) {
        (Some(mean), Some(stdev)) if mean > 0.0 => (1.0 - stdev / mean).max(0.0),
        _ => 0.0,
    }
}

/// The longest stretch of hours with contacts, from and to.
fn longest_run(hours: &[u32; 24]) -> (usize, usize) {
    let (mut longest, mut start) = ((0, 0), 0);
    for (hour, &count) in hours.iter().enumerate() {
        if count == 0 {
            start = hour + 1;
        } else if hour + 1 - start > longest.1 - longest.0 {
            longest = (start, hour + 1);
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_the_weighted_mean_of_the_parts_that_are_known() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} and {b}");
        // .16 + .14 + .18 + .15, and a quarter of 1.
        let uneven = Weights { interval: 0.2, size: 0.2, coverage: 0.3, flatness: 0.3 };
        near(weighted_mean([Some(0.8), Some(0.7), Some(0.6), Some(0.5)], uneven), 0.63);
        near(weighted_mean([Some(0.1), Some(0.2), Some(0.3), Some(0.4)], Weights::default()), 0.25);
        near(weighted_mean([Some(0.9), None, Some(0.6), Some(0.3)], Weights::default()), 0.6);
    }

    #[test]
    fn missed_beats_and_bursts_leave_a_rhythm_and_chance_has_none() {
        // Every third beat of 60 s is missed: 60, 120, 60, 120 …
        let missed: Vec<f64> = (0..100).map(|i| if i % 2 == 0 { 600.0 } else { 1_200.0 }).collect();
        let found = beat(&missed);
        assert!((found.period - 600.0).abs() < 30.0 && found.regularity > 0.95, "{} {}", found.period, found.regularity);
        // Three requests within two seconds, every five minutes.
        let starts: Vec<u32> = (0..50).flat_map(|call| [0, 8, 20].map(|after| call * 3_000 + after)).collect();
        assert_eq!(beats(&starts), [3_000.0; 49]);
        // Exponential intervals, by their quantiles.
        let chance: Vec<f64> = (0..200).map(|i| -600.0 * (1.0 - (f64::from(i) + 0.5) / 200.0).ln()).collect();
        assert!(comb(&chance).is_none());
        assert!(beat(&chance).regularity < 0.6);
    }

    #[test]
    fn six_hours_cover_half_and_five_cover_nothing() {
        let active = |from: usize, to: usize| std::array::from_fn(|hour| u32::from((from..to).contains(&hour)) * 12);
        assert_eq!(coverage(&active(19, 24), 5.0), 0.0);
        assert_eq!(coverage(&active(18, 24), 6.0), 0.5);
        assert_eq!(coverage(&active(8, 17), 9.0), 0.75, "nine hours of twelve");
        assert_eq!(flatness(&active(18, 24)), 1.0, "hours before the first contact do not count");
        assert_eq!(flatness(&active(8, 17)), 0.8, "a host that sleeps");
    }

    #[test]
    fn what_half_of_the_hosts_call_is_theirs_and_what_nobody_else_calls_is_not() {
        let standing = |share, age| modifier(Standing { prevalence: Some(share), age });
        assert_eq!(standing(0.02, Age::Unknown), 0.15);
        assert_eq!(standing(0.5, Age::Unknown), -0.5);
        assert_eq!(standing(0.02, Age::New), 0.15);
        assert!((standing(0.02, Age::Old) + 0.15).abs() < 1e-12);
        assert_eq!(modifier(Standing::default()), 0.0);
    }
}
