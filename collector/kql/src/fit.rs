//! A straight line through a series.

use crate::stats;

/// The line that fits a series best, and how well.
#[derive(Clone, Debug, PartialEq)]
pub struct LineFit {
    /// The share of the variance that the line explains, 0 to 1. NaN for a constant series, which has none to explain.
    pub rsquare: f64,
    /// Rise per point.
    pub slope: f64,
    /// Variance of the series (n − 1). NaN for fewer than two values.
    pub variance: f64,
    /// Variance of what the line leaves over (n − 1). NaN for fewer than two values.
    pub rvariance: f64,
    /// Where the line stands one point *before* the first: KQL counts from 1.
    pub interception: f64,
    /// The line at each point, missing ones included.
    pub line_fit: Vec<f64>,
}

/// KQL's `series_fit_line`: least squares over x = 1, 2, … n.
///
/// One value alone gives a level line through it; none gives NaN throughout.
pub fn series_fit_line(series: &[f64]) -> LineFit {
    let line = Line::through(series);
    let line_fit: Vec<f64> = (0..series.len()).map(|index| line.at(index)).collect();
    let residual: Vec<f64> = series.iter().zip(&line_fit).map(|(value, fitted)| value - fitted).collect();
    let (variance, rvariance) = (stats::variance(series), stats::variance(&residual));
    let squares = stats::finite(&residual).map(|left| left * left).sum::<f64>();
    let count = stats::finite(series).count() as f64;
    let rsquare = match variance {
        Some(variance) if variance.sqrt() > dust(series) => 1.0 - squares / (variance * (count - 1.0)),
        _ => f64::NAN,
    };
    LineFit {
        rsquare,
        slope: line.slope,
        variance: variance.unwrap_or(f64::NAN),
        rvariance: rvariance.unwrap_or(f64::NAN),
        interception: line.interception,
        line_fit,
    }
}

/// What is too small, beside the largest value of `series`, to be anything but rounding errors.
pub(crate) fn dust(series: &[f64]) -> f64 {
    1e-9 * stats::finite(series).fold(0.0, |largest: f64, value| largest.max(value.abs()))
}

/// A straight line over x = 1, 2, …
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    slope: f64,
    interception: f64,
}

impl Line {
    /// The line of least squares. Missing values keep their place on the axis.
    pub(crate) fn through(series: &[f64]) -> Self {
        let points = || series.iter().zip(1_u64..).filter(|(y, _)| y.is_finite()).map(|(&y, x)| (x as f64, y));
        let count = points().count() as f64;
        let mean_x = points().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = points().map(|(_, y)| y).sum::<f64>() / count;
        let spread = points().map(|(x, _)| (x - mean_x).powi(2)).sum::<f64>();
        let slope = if spread > 0.0 { points().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread } else { 0.0 };
        Self { slope, interception: mean_y - slope * mean_x }
    }

    /// The same height everywhere.
    pub(crate) fn level(height: f64) -> Self {
        Self { slope: 0.0, interception: height }
    }

    /// Its height at the point with this index, counted from 0.
    pub(crate) fn at(self, index: usize) -> f64 {
        self.interception + self.slope * (index as f64 + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_value_keeps_its_place() {
        let fit = series_fit_line(&[1.0, f64::NAN, 5.0, 7.0]);
        assert!((fit.slope - 2.0).abs() < 1e-12 && (fit.interception + 1.0).abs() < 1e-12);
        assert!((fit.line_fit[1] - 3.0).abs() < 1e-12 && (fit.rsquare - 1.0).abs() < 1e-12);
    }

    #[test]
    fn too_little_to_fit_is_said_by_nan() {
        let none = series_fit_line(&[]);
        assert!(none.line_fit.is_empty() && none.interception.is_nan() && none.rsquare.is_nan());
        let one = series_fit_line(&[4.0]);
        assert_eq!((one.slope, one.interception, &*one.line_fit), (0.0, 4.0, &[4.0][..]));
        assert!(one.variance.is_nan() && one.rsquare.is_nan());
        let constant = series_fit_line(&[0.1; 7]);
        assert!(constant.slope.abs() < 1e-15 && constant.rsquare.is_nan() && constant.variance < 1e-30);
    }
}
