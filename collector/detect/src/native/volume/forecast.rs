//! What a number should be in the next ten minutes, by the week so far: Holt and Winters' additive smoothing with a season of a week, on a
//! logarithmic scale, so that "twice as much" is as far off by night as by day.
//!
//! There is no trend: networks grow over months, which the level follows. A value far off moves level and season only as far as three
//! deviations would, and the deviation not at all: an anomaly does not become usual by lasting an hour. It does by lasting two days.

use serde::{Deserialize, Serialize};
use spanwatch_kql::outliers::kappa;

/// Bins in a day and in a week, ten minutes each.
pub(super) const DAY: usize = 144;
pub(super) const WEEK: usize = 7 * DAY;
/// Bins that are learnt from before anything is judged: three days.
const LEARNT_MIN: u32 = 3 * DAY as u32;

/// How fast the level follows, per bin.
const LEVEL_RATE: f64 = 0.02;
/// How fast a bin of the week follows, per week.
const SEASON_RATE: f64 = 0.3;
/// How fast the deviation follows, per bin.
const DEVIATION_RATE: f64 = 0.02;
/// How fast the mean of the last hour follows, which stands in for the season at first.
const HOUR_RATE: f64 = 1.0 / 6.0;
/// Values within a tenth are never odd.
const DEVIATION_MIN: f64 = 0.08;
/// A mean deviation to the standard deviation of normally distributed values: sqrt(pi/2).
const TO_SIGMA: f64 = 1.2533;
/// The tenth part of normally distributed values lies beyond so many standard deviations.
const TENTH: f64 = 1.2816;

/// What a forecast rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    /// The same ten minutes of other days.
    Days,
    /// The same ten minutes of the week.
    Weeks,
}

/// A value and what it was measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    /// What was expected.
    pub(super) expected: f64,
    /// How odd it is, signed, on the scale of KQL's `series_outliers`: beyond 1.5 mild, beyond 3 strong.
    pub(super) score: f64,
    /// The least that was expected at this time of any day of the week.
    pub(super) least: f64,
    pub(super) basis: Basis,
}

/// One number's week: 4 KiB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Forecast {
    /// What a bin of the week differs from the level; not finite before it was seen.
    season: Vec<f32>,
    level: f64,
    /// Mean distance between value and forecast.
    deviation: f64,
    /// The mean of the last hour.
    hour: f64,
    learnt: u32,
    /// On the logarithmic scale, values below this are much alike.
    unit: f64,
}

impl Forecast {
    /// For numbers among which those below `unit` do not matter.
    pub(super) fn new(unit: f64) -> Self {
        Self { season: vec![f32::NAN; WEEK], level: 0.0, deviation: 0.0, hour: 0.0, learnt: 0, unit }
    }

    fn scaled(&self, value: f64) -> f64 {
        (value / self.unit).ln_1p()
    }

    fn unscaled(&self, scaled: f64) -> f64 {
        (scaled.exp_m1() * self.unit).max(0.0)
    }

    /// Forecasts of this bin by the seasons of all days that know it, of this day's first.
    fn days(&self, bin: usize) -> impl Iterator<Item = f64> {
        (0..7)
            .map(move |day| f64::from(self.season[(bin + day * DAY) % WEEK]))
            .filter(|season| season.is_finite())
            .map(|season| self.level + season)
    }

    fn expect(&self, bin: usize) -> Option<(f64, Basis)> {
        if self.learnt < LEARNT_MIN {
            return None;
        }
        if self.season[bin].is_finite() {
            return Some((self.level + f64::from(self.season[bin]), Basis::Weeks));
        }
        let (sum, days) = self.days(bin).fold((0.0, 0), |(sum, days), value| (sum + value, days + 1));
        (days >= 2).then(|| (sum / f64::from(days), Basis::Days))
    }

    /// Judges `value` in the bin `bin` of the week (0 to [`WEEK`]), if enough is known, and learns from it. `threshold` is the score from which
    /// on it is an anomaly, and is not learnt as usual.
    pub(super) fn observe(&mut self, bin: usize, value: f64, threshold: f64) -> Option<Verdict> {
        let bin = bin % WEEK;
        let scaled = self.scaled(value);
        let expected = self.expect(bin);
        let verdict = expected.map(|(expected, basis)| Verdict {
            expected: self.unscaled(expected),
            score: self.score(scaled - expected),
            least: self.unscaled(self.days(bin).fold(expected, f64::min)),
            basis,
        });
        let odd = verdict.is_some_and(|verdict| verdict.score.abs() >= threshold);
        self.learn(bin, scaled, expected.map(|(expected, _)| expected), odd);
        verdict
    }

    fn learn(&mut self, bin: usize, scaled: f64, expected: Option<f64>, odd: bool) {
        if self.learnt == 0 {
            (self.hour, self.deviation) = (scaled, DEVIATION_MIN);
        }
        let error = scaled - expected.unwrap_or(self.hour);
        let most = 3.0 * TO_SIGMA * self.deviation;
        let believed = if expected.is_some() { error.clamp(-most, most) } else { error };
        if !odd {
            self.deviation = (self.deviation + DEVIATION_RATE * (believed.abs() - self.deviation)).max(DEVIATION_MIN);
        }
        let season = f64::from(self.season[bin]);
        if season.is_finite() {
            self.season[bin] = (season + SEASON_RATE * believed) as f32;
            if expected.is_some() {
                self.level += LEVEL_RATE * believed;
            }
        } else {
            // A bin that is seen for the first time is as it is: no other day knows a Sunday.
            self.season[bin] = (scaled - self.level) as f32;
        }
        self.hour += HOUR_RATE * (scaled - self.hour);
        self.learnt = self.learnt.saturating_add(1);
    }

    /// The score of `series_outliers` (between the percentiles 10 and 90) of an error among normally distributed ones.
    fn score(&self, error: f64) -> f64 {
        let tenth = TENTH * TO_SIGMA * self.deviation;
        kappa(10.0, 90.0) * (error.abs() - tenth).max(0.0) / (2.0 * tenth) * error.signum()
    }

    /// Whether the week has a place for each bin.
    pub(super) fn is_sound(&self) -> bool {
        self.season.len() == WEEK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Traffic of an office: by day ten times that of the night, at weekends that of the night; some per cent of noise.
    fn office(bin: usize) -> f64 {
        let (day, of_day) = (bin / DAY % 7, bin % DAY);
        let busy = day < 5 && (48..108).contains(&of_day);
        let noise = 1.0 + 0.05 * (((bin * 7_919) % 13) as f64 / 6.0 - 1.0);
        noise * if busy { 100e6 } else { 10e6 }
    }

    #[test]
    fn a_week_is_learnt_and_ten_times_as_much_scores_high_and_a_weekend_does_not() {
        let mut forecast = Forecast::new(1e5);
        let scores: Vec<f64> = (0..3 * WEEK)
            .map(|bin| forecast.observe(bin % WEEK, office(bin), 5.0).map_or(0.0, |verdict| verdict.score))
            .collect();
        assert!(scores[..LEARNT_MIN as usize].iter().all(|&score| score == 0.0), "three days of learning");
        assert!(
            scores[WEEK..].iter().all(|score| score.abs() < 3.0),
            "{:?}",
            scores[WEEK..].iter().fold(0.0_f64, |a, b| a.max(b.abs()))
        );
        let night = forecast.clone().observe(10, 100e6, 5.0).expect("learnt");
        assert!(night.score > 10.0 && night.basis == Basis::Weeks, "{night:?}");
        assert!((night.expected - 10e6).abs() < 1e6, "{night:?}");
        // A holiday: a Tuesday noon like a Sunday's. Odd, but no less than some day has at noon.
        let holiday = forecast.observe(DAY + 70, 10e6, 5.0).expect("learnt");
        assert!(holiday.score < -10.0 && holiday.least < 11e6, "{holiday:?}");
    }

    #[test]
    fn the_score_is_one_and_a_half_on_tukeys_fence_and_five_at_six_deviations() {
        let forecast = Forecast { deviation: 0.1, ..Forecast::new(1.0) };
        let sigma = TO_SIGMA * 0.1;
        assert!((forecast.score(2.698 * sigma) - 1.5).abs() < 1e-3);
        // 2.7144 * (6 - 1.2816) / 2.5632
        assert!((forecast.score(-6.0 * sigma) + 4.997).abs() < 1e-3);
        assert_eq!(forecast.score(1.28 * sigma), 0.0);
    }

    #[test]
    fn an_anomaly_is_still_one_after_an_hour_and_usual_after_some_days() {
        let mut forecast = Forecast::new(1e5);
        for bin in 0..2 * WEEK {
            forecast.observe(bin % WEEK, office(bin), 5.0);
        }
        let scores: Vec<f64> =
            (0..WEEK).map(|bin| forecast.observe(bin, 5.0 * office(bin), 5.0).map_or(0.0, |verdict| verdict.score)).collect();
        assert!(scores[..12].iter().all(|&score| score > 5.0));
        assert!(scores[4 * DAY..].iter().all(|&score| score < 5.0), "used to it");
    }
}
