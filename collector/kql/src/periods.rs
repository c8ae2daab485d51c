//! Which periods a series has: a day in hourly values, a week in daily ones.
//!
//! Kusto documents what is found, not how. This is our way to it, after AutoPeriod (Vlachos, Yu, Castelli, 2005): frequencies
//! that stand out of the spectrum propose periods, the autocorrelation decides.
//!
//! 1. take off the mean;
//! 2. a frequency stands out when its power exceeds what the strongest of the shuffled series has in 99 of 100 shuffles;
//! 3. such a frequency stands for a few whole periods: the one of them with the largest autocorrelation is taken, if it is a hill
//!    there: not less than its neighbourhood of an eighth, more than the next values on either side;
//! 4. its score is made of the autocorrelation there (see [`PeriodScore`]);
//! 5. its multiples are tried too, and stay only if they score 0.05 better: that is how a week wins over a day.
//!
//! The shuffles are the same in every run, so the answer depends on the series only.

use crate::compat::{Compat, PeriodScore};
use crate::fft::{Complex, Fft};
use crate::{fit, stats};

/// The shortest period looked for, in points. The longest is half the series.
pub const PERIOD_MIN: usize = 4;
/// How much better a multiple of a period must score to be one of its own.
const MULTIPLE_GAIN_MIN: f64 = 0.05;
/// Each shuffle in this many pairs is one transform: one series is its real part, the other its imaginary part.
const SHUFFLE_PAIRS: usize = 50;

/// A period and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Period {
    /// Its length in points.
    pub length: usize,
    /// 0 (none) to 1.
    pub score: f64,
}

/// KQL's `series_periods_detect`: at most `count` periods from `shortest` to `longest` points, the best first.
///
/// The bounds are narrowed to 4 points and half the series. On 14 daily points there is no week to be found: that takes three.
pub fn series_periods_detect(series: &[f64], shortest: f64, longest: f64, count: usize, compat: &Compat) -> Vec<Period> {
    let Some(centred) = centred(series) else { return Vec::new() };
    let mut periods = detect(&centred, shortest, longest, compat);
    periods.truncate(count);
    periods
}

/// KQL's `series_periods_validate`: the score of each of `lengths`, rounded to whole points. 0 for a length outside 4 points to
/// half the series, and for one that steps 2 to 5 above do not come upon: the autocorrelation alone makes no period.
pub fn series_periods_validate(series: &[f64], lengths: &[f64], compat: &Compat) -> Vec<f64> {
    let Some(centred) = centred(series) else { return vec![0.0; lengths.len()] };
    let correlation = Correlation::of(&centred);
    let candidates = candidates(&centred, &correlation, PERIOD_MIN, series.len() / 2);
    let score = |length: f64| match candidates.binary_search_by(|&candidate| (candidate as f64).total_cmp(&length.round())) {
        Ok(place) => correlation.score(candidates[place], compat),
        Err(_) => 0.0,
    };
    lengths.iter().map(|&length| score(length)).collect()
}

/// The best period of a series whose trend was taken off, if it scores more than `threshold`.
pub(crate) fn season(detrended: &[f64], dust: f64, threshold: f64, compat: &Compat) -> Option<usize> {
    let centred = without_mean(detrended, dust)?;
    // Most series have no peak that high, and need no shuffling to say so.
    let correlation = Correlation::of(&centred);
    let high = |lag: &usize| correlation.is_peak(*lag) && correlation.score(*lag, compat) > threshold;
    (PERIOD_MIN..=centred.len() / 2).find(high)?;
    let best = detect(&centred, 0.0, f64::INFINITY, compat).into_iter().next()?;
    (best.score > threshold).then_some(best.length)
}

fn centred(series: &[f64]) -> Option<Vec<f64>> {
    without_mean(series, fit::dust(series))
}

/// The series around its mean; missing values lie on it. `None` when there is nothing but dust.
fn without_mean(series: &[f64], dust: f64) -> Option<Vec<f64>> {
    let mean = stats::mean(series)?;
    let centred: Vec<f64> = series.iter().map(|value| if value.is_finite() { value - mean } else { 0.0 }).collect();
    let largest = centred.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    // Brought to 1, so that squares neither overflow nor vanish.
    (largest > dust && largest.is_finite()).then(|| centred.iter().map(|value| value / largest).collect())
}

fn detect(centred: &[f64], shortest: f64, longest: f64, compat: &Compat) -> Vec<Period> {
    let correlation = Correlation::of(centred);
    let shortest = (shortest.ceil() as usize).max(PERIOD_MIN);
    let longest = (longest.floor() as usize).min(centred.len() / 2);
    let mut kept: Vec<Period> = Vec::new();
    for length in candidates(centred, &correlation, shortest, longest) {
        let period = Period { length, score: correlation.score(length, compat) };
        let repeats = |shorter: &Period| is_multiple(length, shorter.length) && period.score < shorter.score + MULTIPLE_GAIN_MIN;
        if !kept.iter().any(repeats) {
            kept.push(period);
        }
    }
    kept.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.length.cmp(&b.length)));
    kept
}

/// The periods that prominent frequencies stand for, and their multiples, as far as they are hills: ascending.
fn candidates(centred: &[f64], correlation: &Correlation, shortest: usize, longest: usize) -> Vec<usize> {
    if shortest > longest {
        return Vec::new();
    }
    let n = centred.len();
    let mut found: Vec<usize> = prominent_frequencies(centred)
        .filter_map(|frequency| {
            let first = (n / (frequency + 1)).max(shortest);
            let last = if frequency > 1 { n.div_ceil(frequency - 1).min(longest) } else { longest };
            correlation.highest(first, last).filter(|&length| correlation.is_hill(length))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    let multiples: Vec<usize> = found
        .iter()
        .flat_map(|&length| (2..=longest / length).map(move |times| (length * times, times.min(length / 2))))
        .filter_map(|(product, reach)| correlation.highest(product - reach, (product + reach).min(longest)))
        .filter(|&length| correlation.is_peak(length))
        .collect();
    found.extend(multiples);
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether `long` is a few times `short`, allowing for `short` being rounded to whole points.
fn is_multiple(long: usize, short: usize) -> bool {
    let times = (long + short / 2) / short;
    times >= 2 && long.abs_diff(times * short) <= times.min((short / 8).max(1))
}

/// How a series agrees with itself, moved by each number of points.
struct Correlation {
    /// Over the whole length: Σ xᵢ xᵢ₊ₖ / Σ xᵢ².
    biased: Vec<f64>,
}

impl Correlation {
    fn of(centred: &[f64]) -> Self {
        let n = centred.len();
        // Twice the length, so that the end does not meet the beginning.
        let mut buffer = vec![Complex::default(); (2 * n).next_power_of_two()];
        for (cell, &value) in buffer.iter_mut().zip(centred) {
            cell.re = value;
        }
        let mut transform = Fft::new(buffer.len());
        transform.apply(&mut buffer);
        for cell in &mut buffer {
            *cell = Complex::real(cell.norm_sqr());
        }
        // Of what is real and symmetric, the transform is its own inverse, up to a factor that drops out below.
        transform.apply(&mut buffer);
        let whole = buffer[0].re;
        Self { biased: buffer[..n].iter().map(|cell| cell.re / whole).collect() }
    }

    /// Over the overlap only.
    fn unbiased(&self, lag: usize) -> f64 {
        let n = self.biased.len();
        self.biased[lag] * n as f64 / (n - lag) as f64
    }

    fn score(&self, lag: usize, compat: &Compat) -> f64 {
        let score = match compat.period_score {
            PeriodScore::Biased => self.biased[lag],
            PeriodScore::Unbiased => self.unbiased(lag),
            PeriodScore::Mean => (self.biased[lag] + self.unbiased(lag)) / 2.0,
        };
        score.clamp(0.0, 1.0)
    }

    /// The lag from `first` to `last` at which the series agrees best; the first of equals.
    fn highest(&self, first: usize, last: usize) -> Option<usize> {
        let better = |best: usize, lag| if self.unbiased(lag) > self.unbiased(best) { lag } else { best };
        (first..=last).reduce(better)
    }

    fn is_peak(&self, lag: usize) -> bool {
        let here = self.unbiased(lag);
        here > 0.0 && here > self.unbiased(lag - 1) && here > self.unbiased(lag + 1)
    }

    fn is_hill(&self, lag: usize) -> bool {
        let reach = (lag / 8).max(1);
        let around = lag - reach..=(lag + reach).min(self.biased.len() - 1);
        self.is_peak(lag) && around.into_iter().all(|other| self.unbiased(other) <= self.unbiased(lag) + 1e-12)
    }
}

/// The frequencies (in periods per series) whose power chance does not explain.
fn prominent_frequencies(centred: &[f64]) -> impl Iterator<Item = usize> {
    let n = centred.len();
    let mut transform = Fft::new(n);
    let mut buffer: Vec<Complex> = centred.iter().map(|&value| Complex::real(value)).collect();
    transform.apply(&mut buffer);
    let power: Vec<f64> = buffer.iter().take(n / 2 + 1).map(|cell| cell.norm_sqr()).collect();
    let limit = chance(centred, &mut transform);
    (1..power.len()).filter(move |&frequency| power[frequency] > limit)
}

/// The power that the strongest frequency stays below in 99 % of shuffles.
fn chance(centred: &[f64], transform: &mut Fft) -> f64 {
    let n = centred.len();
    let mut shuffle = Shuffle(0x5eed);
    let (mut one, mut other) = (centred.to_vec(), centred.to_vec());
    let mut buffer = vec![Complex::default(); n];
    let mut strongest = Vec::with_capacity(2 * SHUFFLE_PAIRS);
    for _ in 0..SHUFFLE_PAIRS {
        shuffle.apply(&mut one);
        shuffle.apply(&mut other);
        for (cell, (&re, &im)) in buffer.iter_mut().zip(one.iter().zip(&other)) {
            *cell = Complex { re, im };
        }
        transform.apply(&mut buffer);
        let (mut of_one, mut of_other) = (0.0_f64, 0.0_f64);
        for frequency in 1..=n / 2 {
            let (here, mirrored) = (buffer[frequency], buffer[n - frequency].conj());
            of_one = of_one.max((here + mirrored).norm_sqr() / 4.0);
            of_other = of_other.max((here - mirrored).norm_sqr() / 4.0);
        }
        strongest.extend([of_one, of_other]);
    }
    stats::percentile(&strongest, 99.0).unwrap_or(f64::INFINITY)
}

/// Puts values in random order (Fisher and Yates), by the generator splitmix64.
struct Shuffle(u64);

impl Shuffle {
    fn apply(&mut self, values: &mut [f64]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        ((u128::from(x) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(series: &[f64]) -> Vec<usize> {
        let periods = series_periods_detect(series, 0.0, f64::INFINITY, 10, &Compat::default());
        periods.into_iter().map(|period| period.length).collect()
    }

    #[test]
    fn a_sine_has_its_period_and_none_of_the_multiples() {
        let sine = |n: usize, period: f64| (0..n).map(|i| (i as f64 / period * std::f64::consts::TAU).sin()).collect::<Vec<_>>();
        assert_eq!(detected(&sine(336, 24.0)), [24]);
        assert_eq!(detected(&sine(500, 7.0)), [7]);
        let scores = series_periods_validate(&sine(336, 24.0), &[24.0, 24.4, 12.0, 3.0, 169.0, f64::NAN], &Compat::default());
        assert!(scores[0] > 0.9 && scores[1] == scores[0], "{scores:?}");
        assert_eq!(scores[2..], [0.0; 4], "half the period, too short, too long, and no number");
    }

    #[test]
    fn bounds_keep_to_what_was_asked() {
        let sine: Vec<f64> = (0..336).map(|i| (f64::from(i) / 24.0 * std::f64::consts::TAU).sin()).collect();
        let compat = Compat::default();
        assert!(series_periods_detect(&sine, 30.0, 40.0, 10, &compat).is_empty());
        assert!(series_periods_detect(&sine, 0.0, f64::INFINITY, 0, &compat).is_empty());
        assert!(series_periods_detect(&sine, f64::NAN, f64::NAN, 2, &compat).is_empty());
    }

    #[test]
    fn what_has_no_period_is_defined_and_has_none() {
        let nothing = f64::NAN;
        for series in [&[][..], &[1.0], &[1.0, 2.0, 3.0], &[0.1; 50], &[nothing; 50], &[f64::MAX, -f64::MAX, f64::MAX, 1.0, 2.0]]
        {
            assert_eq!(detected(series), [0; 0], "{series:?}");
            assert_eq!(series_periods_validate(series, &[4.0], &Compat::default()), [0.0], "{series:?}");
        }
    }
}
