//! How far a value lies outside what is usual in its series.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::str::FromStr;

use crate::compat::Compat;
use crate::{fit, stats};

/// No score is larger. Reached when the usual values are all the same and one is not.
pub const SCORE_MAX: f64 = 1e6;

/// What counts as usual: the values between two percentiles.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Method(Kind);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    Tukey,
    #[default]
    Ctukey10To90,
    Ctukey {
        low: f64,
        high: f64,
    },
}

impl Method {
    /// Between the quartiles, as in Tukey's own test.
    pub const TUKEY: Self = Self(Kind::Tukey);
    /// Between the percentiles 10 and 90. The default.
    pub const CTUKEY: Self = Self(Kind::Ctukey10To90);

    /// Between any two percentiles from 2 to 98, the lower first. `None` for others.
    pub fn ctukey(low: f64, high: f64) -> Option<Self> {
        (low >= 2.0 && low < high && high <= 98.0).then_some(Self(Kind::Ctukey { low, high }))
    }

    /// The two percentiles.
    fn percentiles(self) -> (f64, f64) {
        match self.0 {
            Kind::Tukey => (25.0, 75.0),
            Kind::Ctukey10To90 => (10.0, 90.0),
            Kind::Ctukey { low, high } => (low, high),
        }
    }

    /// What the distance in widths is multiplied by.
    fn factor(self, compat: &Compat) -> f64 {
        match (self.0, compat.kappa) {
            (Kind::Tukey, _) => 1.0,
            (_, Some(kappa)) => kappa,
            (_, None) => {
                let (low, high) = self.percentiles();
                kappa(low, high)
            }
        }
    }
}

impl FromStr for Method {
    type Err = String;

    /// KQL's names of the two: `tukey` and `ctukey`.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "tukey" => Ok(Self::TUKEY),
            "ctukey" => Ok(Self::CTUKEY),
            _ => Err(format!("\"{name}\" is no way to tell outliers: use \"ctukey\" or \"tukey\"")),
        }
    }
}

/// KQL's `series_outliers`: a score per value, positive above and negative below the usual, 0 within. Beyond ±1.5 is a mild
/// anomaly, beyond ±3 a strong one.
///
/// `ignored` is a value that stands for a missing one; its score is 0, as that of missing ones.
///
/// The score is the distance from the nearer percentile, in widths between the two, times [`kappa`]. The formula is inferred:
/// Kusto does not publish it. Where all usual values are the same, any other scores ±[`SCORE_MAX`], unless it differs by no more
/// than rounding errors (10⁻⁹ of the largest value).
pub fn series_outliers(series: &[f64], method: Method, ignored: Option<f64>, compat: &Compat) -> Vec<f64> {
    match ignored {
        Some(ignored) => {
            let kept: Vec<f64> = series.iter().map(|&value| if value == ignored { f64::NAN } else { value }).collect();
            scores(&kept, fit::dust(&kept), method, compat)
        }
        None => scores(series, fit::dust(series), method, compat),
    }
}

/// The scores of `residual`, in which differences up to `dust` mean nothing.
pub(crate) fn scores(residual: &[f64], dust: f64, method: Method, compat: &Compat) -> Vec<f64> {
    let sorted = stats::sorted(residual);
    let (low, high) = method.percentiles();
    let (Some(low), Some(high)) = (stats::of_sorted(&sorted, low), stats::of_sorted(&sorted, high)) else {
        return vec![0.0; residual.len()];
    };
    let (width, factor) = (high - low, method.factor(compat));
    let score = |value: f64| {
        let beyond = if value > high { value - high } else { (value - low).min(0.0) };
        match () {
            () if !value.is_finite() || beyond.abs() <= dust => 0.0,
            () if width <= dust => beyond.signum() * SCORE_MAX,
            () => (factor * beyond / width).clamp(-SCORE_MAX, SCORE_MAX),
        }
    };
    residual.iter().map(|&value| score(value)).map(|score| if score.is_nan() { 0.0 } else { score }).collect()
}

/// The factor κ of "ctukey": with it, a normally distributed value scores 1.5 exactly where Tukey's test, too, says 1.5.
///
/// 2.7144 for the percentiles 10 and 90, and exactly 1 for 25 and 75, so that the two methods agree there. Inferred from the
/// three published pictures of `series_decompose_anomalies`, which alone leave ±10 %: [`Compat::kappa`] overrides it.
pub fn kappa(low_percentile: f64, high_percentile: f64) -> f64 {
    let (low, high) = (normal_quantile(low_percentile / 100.0), normal_quantile(high_percentile / 100.0));
    let (quartile_low, quartile_high) = (normal_quantile(0.25), normal_quantile(0.75));
    let fence = quartile_high + 1.5 * (quartile_high - quartile_low);
    1.5 * (high - low) / (fence - high)
}

/// Below which value a normally distributed one lies with this probability, 0.02 to 0.98.
fn normal_quantile(probability: f64) -> f64 {
    let density = |x: f64| FRAC_2_SQRT_PI * FRAC_1_SQRT_2 / 2.0 * (-x * x / 2.0).exp();
    let below = |x: f64| {
        // Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/(3·5) + …), by parts.
        let (mut term, mut sum, mut odd) = (x, x, 1.0);
        while term.abs() > 1e-18 {
            odd += 2.0;
            term *= x * x / odd;
            sum += term;
        }
        0.5 + density(x) * sum
    };
    // Newton's steps from the middle: Φ bends towards it, so none oversteps.
    (0..50).fold(0.0, |x, _| x - (below(x) - probability) / density(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kappa_puts_a_score_of_one_and_a_half_on_tukeys_fence() {
        // Quantiles of the normal distribution from its tables.
        let (tenth, quartile) = (1.281_551_565_545, 0.674_489_750_196);
        assert!((kappa(10.0, 90.0) - 1.5 * 2.0 * tenth / (4.0 * quartile - tenth)).abs() < 1e-9);
        assert!((kappa(10.0, 90.0) - 2.7144).abs() < 1e-4);
        assert!((kappa(25.0, 75.0) - 1.0).abs() < 1e-12);
        assert!((normal_quantile(0.98) - 2.053_748_910_631).abs() < 1e-9);
    }

    #[test]
    fn scores_count_widths_beyond_the_percentiles() {
        // 0 to 100: the percentiles are 10 and 90, the quartiles 25 and 75.
        let series: Vec<f64> = (0..=100).map(f64::from).collect();
        let default = series_outliers(&series, Method::CTUKEY, None, &Compat::default());
        let tukey = series_outliers(&series, Method::TUKEY, None, &Compat::default());
        let given = series_outliers(&series, Method::CTUKEY, None, &Compat { kappa: Some(8.0), ..Compat::default() });
        assert_eq!([tukey[0], tukey[50], tukey[100]], [-0.5, 0.0, 0.5]);
        assert_eq!([given[0], given[9], given[10], given[90], given[100]], [-1.0, -0.1, 0.0, 0.0, 1.0]);
        assert!((default[100] - 2.7144 / 8.0).abs() < 1e-4 && default[90] == 0.0);
        let quartiles = Method::ctukey(25.0, 75.0).unwrap();
        assert!(
            series_outliers(&series, quartiles, None, &Compat::default()).iter().zip(&tukey).all(|(a, b)| (a - b).abs() < 1e-12)
        );
        assert_eq!([Method::ctukey(1.0, 90.0), Method::ctukey(10.0, 99.0), Method::ctukey(50.0, 50.0)], [None; 3]);
    }

    #[test]
    fn what_is_ignored_or_missing_scores_nothing_and_moves_nothing() {
        let mut series: Vec<f64> = (0..=100).map(f64::from).collect();
        let before = series_outliers(&series, Method::TUKEY, None, &Compat::default());
        series.extend([-1e9, f64::NAN, f64::INFINITY]);
        let after = series_outliers(&series, Method::TUKEY, Some(-1e9), &Compat::default());
        assert_eq!((&after[..101], &after[101..]), (&*before, &[0.0; 3][..]));
    }

    #[test]
    fn a_constant_series_has_no_outliers_until_something_differs() {
        let compat = Compat::default();
        let almost: Vec<f64> = (0..100).map(|i| if i % 9 == 0 { 0.1 + 0.2 } else { 0.3 }).collect();
        assert!(series_outliers(&almost, Method::CTUKEY, None, &compat).iter().all(|&score| score == 0.0));
        let mut series = vec![5.0; 100];
        (series[7], series[8]) = (5.1, 4.9);
        let scored = series_outliers(&series, Method::CTUKEY, None, &compat);
        assert_eq!([scored[6], scored[7], scored[8]], [0.0, SCORE_MAX, -SCORE_MAX]);
        for short in [&[][..], &[f64::NAN], &[1.0], &[0.0, 0.0], &[f64::MAX, -f64::MAX, 0.0]] {
            let scored = series_outliers(short, Method::CTUKEY, None, &compat);
            assert!(scored.len() == short.len() && scored.iter().all(|score| score.is_finite()), "{short:?} {scored:?}");
        }
    }
}
