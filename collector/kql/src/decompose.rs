//! A series as season plus trend plus what is left over, and the anomalies in what is left over.

use std::num::NonZeroUsize;
use std::str::FromStr;

use crate::compat::Compat;
use crate::fit::{self, Line};
use crate::outliers::{self, Method};
use crate::{periods, stats};

/// What is regular about a series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// What repeats.
    pub seasonality: Seasonality,
    /// What goes on.
    pub trend: Trend,
    /// How many points at the end nothing is learnt from: they are judged by, or predicted from, those before.
    pub test_points: usize,
    /// From which score on a detected period is a season; not set: [`Compat::seasonality_threshold`].
    pub seasonality_threshold: Option<f64>,
}

/// What repeats in a series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seasonality {
    /// Whatever [`periods::series_periods_detect`] finds.
    #[default]
    Auto,
    /// Nothing.
    None,
    /// The same every so many points.
    Period(NonZeroUsize),
}

/// What goes on in a series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trend {
    /// Its mean.
    #[default]
    Avg,
    /// A straight line.
    Linefit,
    /// Nothing.
    None,
}

impl TryFrom<i64> for Seasonality {
    type Error = String;

    /// KQL's numbers: −1 to detect it, 0 for none, otherwise the period in points.
    fn try_from(number: i64) -> Result<Self, String> {
        match usize::try_from(number).map(NonZeroUsize::new) {
            Ok(Some(period)) => Ok(Self::Period(period)),
            Ok(None) => Ok(Self::None),
            Err(_) if number == -1 => Ok(Self::Auto),
            Err(_) => Err(format!("{number} is no seasonality: use -1 to detect it, 0 for none, or the period in points")),
        }
    }
}

impl FromStr for Trend {
    type Err = String;

    /// KQL's names: `avg`, `linefit` and `none`.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "avg" => Ok(Self::Avg),
            "linefit" => Ok(Self::Linefit),
            "none" => Ok(Self::None),
            _ => Err(format!("\"{name}\" is no trend: use \"avg\", \"linefit\" or \"none\"")),
        }
    }
}

/// The parts of a series, each as long as it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decomposition {
    /// What is expected: season plus trend.
    pub baseline: Vec<f64>,
    /// What repeats; zeros without a season.
    pub seasonal: Vec<f64>,
    /// What goes on.
    pub trend: Vec<f64>,
    /// What is left over; NaN where the series is missing.
    pub residual: Vec<f64>,
}

/// KQL's `series_decompose`.
///
/// The season at a point is the median of the points of the same phase; the trend is fitted to what the season leaves. Both are
/// learnt from all but the last `test_points`. A phase that was never seen has season 0.
///
/// Inferred: Kusto does not say what a period is detected in. Here it is the series without its mean, and with
/// [`Trend::Linefit`] without its line.
pub fn series_decompose(series: &[f64], model: &Model, compat: &Compat) -> Decomposition {
    let known = &series[..series.len().saturating_sub(model.test_points)];
    let period = match model.seasonality {
        Seasonality::None => None,
        Seasonality::Period(period) => Some(period.get()),
        Seasonality::Auto => detect_season(known, model, compat),
    };
    let phases: Vec<f64> = (0..period.unwrap_or(0).min(known.len()))
        .map(|phase| {
            let same: Vec<f64> = known.iter().skip(phase).step_by(period.unwrap_or(1)).copied().collect();
            stats::median(&same).unwrap_or(0.0)
        })
        .collect();
    let season_at = |index: usize| period.and_then(|period| phases.get(index % period)).copied().unwrap_or(0.0);
    let seasonal: Vec<f64> = (0..series.len()).map(season_at).collect();

    let deseasoned: Vec<f64> = known.iter().zip(&seasonal).map(|(value, season)| value - season).collect();
    let line = match model.trend {
        Trend::Avg => Line::level(stats::mean(&deseasoned).unwrap_or(0.0)),
        Trend::Linefit if stats::finite(&deseasoned).next().is_some() => Line::through(&deseasoned),
        Trend::Linefit | Trend::None => Line::level(0.0),
    };
    let trend: Vec<f64> = (0..series.len()).map(|index| line.at(index)).collect();
    let baseline: Vec<f64> = seasonal.iter().zip(&trend).map(|(season, trend)| season + trend).collect();
    let residual = series.iter().zip(&baseline).map(|(value, expected)| value - expected).collect();
    Decomposition { baseline, seasonal, trend, residual }
}

fn detect_season(known: &[f64], model: &Model, compat: &Compat) -> Option<usize> {
    let threshold = model.seasonality_threshold.unwrap_or(compat.seasonality_threshold);
    let dust = fit::dust(known);
    match model.trend {
        Trend::Avg | Trend::None => periods::season(known, dust, threshold, compat),
        Trend::Linefit => {
            let line = Line::through(known);
            let detrended: Vec<f64> = known.iter().enumerate().map(|(index, value)| value - line.at(index)).collect();
            periods::season(&detrended, dust, threshold, compat)
        }
    }
}

/// What is not as expected in a series; each part as long as it.
#[derive(Clone, Debug, PartialEq)]
pub struct Anomalies {
    /// 1 where the series is anomalously high, −1 where low, otherwise 0.
    pub flags: Vec<i8>,
    /// By how much: see [`outliers::series_outliers`].
    pub scores: Vec<f64>,
    /// What is expected.
    pub baseline: Vec<f64>,
}

/// KQL's `series_decompose_anomalies`: the outliers in what season and trend leave over.
///
/// A point is flagged when its score is beyond ±`threshold`. Kusto's own is 1.5; a constant series has no anomalies.
pub fn series_decompose_anomalies(series: &[f64], threshold: f64, model: &Model, method: Method, compat: &Compat) -> Anomalies {
    let Decomposition { baseline, residual, .. } = series_decompose(series, model, compat);
    let scores = outliers::scores(&residual, fit::dust(series), method, compat);
    let flag = |score: &f64| match score.abs() > threshold {
        true if *score > 0.0 => 1,
        true => -1,
        false => 0,
    };
    Anomalies { flags: scores.iter().map(flag).collect(), scores, baseline }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anomalies(series: &[f64], model: &Model) -> Anomalies {
        series_decompose_anomalies(series, 1.5, model, Method::CTUKEY, &Compat::default())
    }

    fn period(points: usize) -> Seasonality {
        Seasonality::Period(NonZeroUsize::new(points).unwrap())
    }

    #[test]
    fn season_and_trend_add_up_to_the_series() {
        // A week of five busy days and two quiet ones, growing by 2 a day.
        let series: Vec<f64> = (0..28).map(|day| if day % 7 < 5 { 100.0 } else { 10.0 } + 2.0 * f64::from(day)).collect();
        let model = Model { seasonality: period(7), trend: Trend::Linefit, ..Model::default() };
        let parts = series_decompose(&series, &model, &Compat::default());
        for (index, value) in series.iter().enumerate() {
            assert!((parts.baseline[index] - parts.seasonal[index] - parts.trend[index]).abs() < 1e-9);
            assert!((parts.baseline[index] + parts.residual[index] - value).abs() < 1e-9);
        }
        assert_eq!(parts.seasonal[..7], parts.seasonal[21..]);
        assert_eq!(parts.seasonal[0], (100.0 + 114.0 + 128.0 + 142.0) / 4.0, "the median of four is between the middle two");
    }

    #[test]
    fn nothing_is_learnt_from_test_points() {
        let calm: Vec<f64> = (0..60).map(|i| f64::from(i % 6) * 10.0 + f64::from(i * i % 7) / 10.0).collect();
        let mut tested = calm.clone();
        tested[54..].fill(1e6);
        for trend in [Trend::Avg, Trend::Linefit] {
            let model = Model { seasonality: period(6), trend, test_points: 6, ..Model::default() };
            let (calm, tested) = (anomalies(&calm, &model), anomalies(&tested, &model));
            assert_eq!(calm.baseline, tested.baseline);
            assert_eq!(tested.flags[54..], [1; 6]);
        }
        let all = Model { test_points: 99, ..Model::default() };
        assert_eq!(series_decompose(&calm, &all, &Compat::default()).baseline, [0.0; 60]);
    }

    #[test]
    fn constant_short_and_missing_series_have_no_anomalies() {
        let nothing = f64::NAN;
        let long = [0.1 + 0.2; 100];
        for series in [&[][..], &[1.0], &[1.0, 2.0], &[1.0, nothing, 2.0], &[nothing; 9], &[f64::INFINITY; 9], &[0.0; 30], &long]
        {
            for trend in [Trend::Avg, Trend::Linefit, Trend::None] {
                for seasonality in [Seasonality::Auto, Seasonality::None, period(7), period(1_000)] {
                    let found = anomalies(series, &Model { seasonality, trend, ..Model::default() });
                    assert!([found.scores.len(), found.baseline.len()].iter().all(|&len| len == series.len()));
                    assert!(found.baseline.iter().all(|value| value.is_finite()), "{series:?} {seasonality:?} {trend:?}");
                    assert!(found.scores.iter().all(|value| value.is_finite()), "{series:?} {seasonality:?} {trend:?}");
                    let two_values_are_their_own_percentiles = series.len() == 2 || series.len() == 3;
                    assert!(two_values_are_their_own_percentiles || found.flags.iter().all(|&flag| flag == 0), "{series:?}");
                }
            }
        }
    }

    #[test]
    fn what_kql_calls_them() {
        assert_eq!([-1, 0, 7].map(Seasonality::try_from), [Ok(Seasonality::Auto), Ok(Seasonality::None), Ok(period(7))]);
        assert!(Seasonality::try_from(-2).unwrap_err().contains("use -1"));
        assert_eq!(["avg", "linefit", "none"].map(str::parse), [Ok(Trend::Avg), Ok(Trend::Linefit), Ok(Trend::None)]);
        assert!("mean".parse::<Trend>().unwrap_err().contains("linefit"));
    }
}
