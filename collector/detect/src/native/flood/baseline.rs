//! What is usual of one service: mean and spread of its rate, both forgetting exponentially.

use serde::{Deserialize, Serialize};

/// A rate's past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// Exponentially weighted mean of the rate, per second.
    pub(super) mean: f64,
    /// Exponentially weighted mean of the absolute deviation from it.
    deviation: f64,
    /// The same mean, of what came to something.
    pub(super) good: f64,
    /// Bins it has learned from.
    bins: u32,
}

/// From so many bins on, each new one has its constant weight; before, all have the same.
const SETTLED_BINS: u32 = 30;

impl Baseline {
    /// Of a service that was watched all the time and had nothing worth an entry.
    pub(super) fn quiet() -> Self {
        Self { bins: SETTLED_BINS, ..Self::default() }
    }

    /// Takes in a bin of `rate`, of which `good` came to something. `weight` is that of a bin in the long run.
    pub(super) fn learn(&mut self, rate: f64, good: f64, weight: f64) {
        let weight = if self.bins < SETTLED_BINS { weight.max(1.0 / f64::from(self.bins + 1)) } else { weight };
        self.bins = self.bins.saturating_add(1);
        self.deviation += weight * ((rate - self.mean).abs() - self.deviation);
        self.mean += weight * (rate - self.mean);
        self.good += weight * (good - self.good);
    }

    /// Above which rate it is a flood, `floor` at least.
    pub(super) fn limit(&self, floor: f64, factor: f64, deviations: f64) -> f64 {
        floor.max(factor * self.mean + deviations * self.deviation)
    }
}

/// The weight of a bin if half of what is known shall be younger than `half_life_bins` bins.
pub(super) fn weight(half_life_bins: f64) -> f64 {
    1.0 - 0.5_f64.powf(1.0 / half_life_bins.max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_its_own_mean_and_half_of_a_step_is_learned_in_the_half_life() {
        let mut steady = Baseline::default();
        (0..100).for_each(|_| steady.learn(100.0, 90.0, weight(60.0)));
        assert!((steady.mean - 100.0).abs() < 1e-9 && (steady.good - 90.0).abs() < 1e-9);
        assert!((steady.limit(500.0, 6.0, 6.0) - 600.0).abs() < 25.0, "the first bin was a surprise, and is fading");
        let mut quiet = Baseline::quiet();
        (0..60).for_each(|_| quiet.learn(100.0, 0.0, weight(60.0)));
        assert!((quiet.mean - 50.0).abs() < 1e-6, "{}", quiet.mean);
    }
}
