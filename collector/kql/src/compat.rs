//! What Kusto does not document, as settings.

use serde::{Deserialize, Serialize};

/// How to read Kusto where its documentation is silent. The defaults reproduce every published example and picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compat {
    /// What the distance from the percentile, in widths between the percentiles, is multiplied by to give a "ctukey" score.
    /// Not set: the factor at which a score of 1.5 lies on Tukey's own 1.5 fence of normally distributed values; 2.7144 for
    /// the percentiles 10 and 90. Larger finds more. 0.1 to 100. Inferred: see [`crate::outliers::kappa`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kappa: Option<f64>,
    /// From which score on a detected period counts as a season, when the call does not say. 0 to 1; Kusto documents 0.6. Lower
    /// sees a season in noisier series, and in some that have none.
    pub seasonality_threshold: f64,
    /// What the score of a period is made of. Inferred: see [`PeriodScore`].
    pub period_score: PeriodScore,
}

/// Which autocorrelation is a period's score.
///
/// Kusto publishes one number, 0.84, for a series in which the biased one is 0.736, the unbiased 0.961 and the mean of the two
/// 0.848. It also says that the first example of `series_seasonal` scores 0.7 or more, where the mean is 0.655 and the unbiased
/// 0.744: so the mean is close, and not the whole truth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeriodScore {
    /// Divided by the whole length: long periods score lower.
    Biased,
    /// Divided by the overlap: long periods score as high as short ones, with less evidence.
    Unbiased,
    /// Halfway between.
    #[default]
    Mean,
}

impl Default for Compat {
    fn default() -> Self {
        Self { kappa: None, seasonality_threshold: 0.6, period_score: PeriodScore::Mean }
    }
}

impl Compat {
    /// Checks the values.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(kappa) = self.kappa
            && !(0.1..=100.0).contains(&kappa)
        {
            return Err(("kappa", format!("must be between 0.1 and 100, not {kappa}; leave it out for the usual 2.7144")));
        }
        if !(0.0..=1.0).contains(&self.seasonality_threshold) {
            let threshold = self.seasonality_threshold;
            return Err(("seasonality_threshold", format!("must be between 0 and 1, not {threshold}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range_and_nonsense_is_not() {
        assert_eq!(Compat::default().check(), Ok(()));
        for (key, compat) in [
            ("kappa", Compat { kappa: Some(0.0), ..Compat::default() }),
            ("kappa", Compat { kappa: Some(f64::NAN), ..Compat::default() }),
            ("seasonality_threshold", Compat { seasonality_threshold: 1.5, ..Compat::default() }),
        ] {
            assert_eq!(compat.check().expect_err(key).0, key);
        }
    }
}
