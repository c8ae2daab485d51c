//! The examples that Kusto's documentation gives, and what its pictures show.

use std::num::NonZeroUsize;

use spanwatch_kql::Compat;
use spanwatch_kql::dcount::Card;
use spanwatch_kql::decompose::{Model, Seasonality, Trend, series_decompose, series_decompose_anomalies};
use spanwatch_kql::fit::series_fit_line;
use spanwatch_kql::ipv4::ipv4_is_private;
use spanwatch_kql::make_series::{Aggregate, Bins, make_series};
use spanwatch_kql::outliers::Method;
use spanwatch_kql::periods::{series_periods_detect, series_periods_validate};
use spanwatch_kql::stats::percentile;

/// A month of an application's traffic, two values a day.
const TRAFFIC: [f64; 60] = [
    80.0, 139.0, 87.0, 110.0, 68.0, 54.0, 50.0, 51.0, 53.0, 133.0, 86.0, 141.0, 97.0, 156.0, 94.0, 149.0, 95.0, 140.0, 77.0,
    61.0, 50.0, 54.0, 47.0, 133.0, 72.0, 152.0, 94.0, 148.0, 105.0, 162.0, 101.0, 160.0, 87.0, 63.0, 53.0, 55.0, 54.0, 151.0,
    103.0, 189.0, 108.0, 183.0, 113.0, 175.0, 113.0, 178.0, 90.0, 71.0, 62.0, 62.0, 65.0, 165.0, 109.0, 181.0, 115.0, 182.0,
    121.0, 178.0, 114.0, 170.0,
];

#[test]
fn series_fit_line_counts_from_one_and_divides_by_n_minus_one() {
    let fit = series_fit_line(&[2.0, 5.0, 6.0, 8.0, 11.0, 15.0, 17.0, 18.0, 25.0, 26.0, 30.0, 30.0]);
    // Worked out with exact fractions; the documentation prints the first three decimals, cut off.
    for (name, got, expected) in [
        ("rsquare", fit.rsquare, 0.982_900_730_884_447),
        ("slope", fit.slope, 71.0 / 26.0),
        ("variance", fit.variance, 13_019.0 / 132.0),
        ("rvariance", fit.rvariance, 1.686_480_186_480_186),
        ("interception", fit.interception, -5.0 / 3.0),
    ] {
        assert!((got - expected).abs() < 1e-9, "{name} {got}");
    }
    let documented = [1.064, 3.7945, 6.526, 9.256, 11.987, 14.718, 17.449, 20.180, 22.910, 25.641, 28.371, 31.102];
    assert!(fit.line_fit.iter().zip(documented).all(|(got, expected)| (got - expected).abs() < 2e-3), "{:?}", fit.line_fit);
}

#[test]
fn series_periods_detect_finds_the_week_and_only_the_week() {
    let periods = series_periods_detect(&TRAFFIC, 0.0, 50.0, 2, &Compat::default());
    // Documented: periods [14, 0], scores [0.84, 0].
    assert_eq!(periods.len(), 1, "{periods:?}");
    assert_eq!((periods[0].length, (periods[0].score * 100.0).trunc()), (14, 84.0));
    let scores = series_periods_validate(&TRAFFIC, &[14.0, 10.0], &Compat::default());
    assert_eq!((scores[0], scores[1]), (periods[0].score, 0.0));
}

#[test]
fn series_seasonal_repeats_the_median_of_each_phase() {
    // The examples of series_seasonal, where no trend is looked for.
    let seasonal = |series: &[f64]| {
        let model = Model { trend: Trend::None, ..Model::default() };
        series_decompose(series, &model, &Compat::default()).seasonal
    };
    let six = [2., 5., 3., 4., 3., 2., 1., 2., 3., 4., 3., 2., 1., 2., 3., 4., 3., 2., 1., 2., 3., 4., 3., 2., 1.];
    let six_seasonal = [1., 2., 3., 4., 3., 2., 1., 2., 3., 4., 3., 2., 1., 2., 3., 4., 3., 2., 1., 2., 3., 4., 3., 2., 1.];
    assert_eq!(seasonal(&six), six_seasonal);
    let five = [8., 12., 14., 12., 10., 10., 12., 14., 12., 10., 10., 12., 14., 12., 10., 10., 12., 14., 12., 10.];
    assert_eq!(seasonal(&five), [10., 12., 14., 12., 10.].repeat(4));
    let short = [1., 3., 5., 2., 4., 6., 1., 3., 5., 2., 4., 6.];
    assert_eq!(seasonal(&short), [0.0; 12], "two rounds are too few to detect a period in");
}

/// `series_outliers` as it was documented in 2018 and 2019: quartiles per side, without the far tenth. Today's is another, whose
/// formula is not published; this one fixes how percentiles interpolate.
fn outliers_of_2018(series: &[f64]) -> Vec<f64> {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = series.len() as f64;
    let quartiles = |values: &[f64]| [25.0, 75.0].map(|percent| percentile(values, percent).expect("not empty"));
    let (whole, high, low) =
        (quartiles(&sorted), quartiles(&sorted[..(0.9 * n) as usize]), quartiles(&sorted[(0.1 * n) as usize..]));
    let score = |x: f64| match () {
        () if x > whole[1] => (x - high[1]) / (high[1] - high[0]),
        () if x < whole[0] => (x - low[0]) / (low[1] - low[0]),
        () => 0.0,
    };
    series.iter().copied().map(score).collect()
}

#[test]
fn percentiles_reproduce_the_documented_outliers_of_2018() {
    let series = [30.0, 28.0, 5.0, 27.0, 31.0, 38.0, 29.0, 80.0, 25.0, 37.0, 30.0];
    let documented = [
        0.0,
        0.0,
        -3.206_896_551_724_138,
        -0.172_413_793_103_448_3,
        0.0,
        2.666_666_666_666_666_7,
        0.0,
        16.666_666_666_666_67,
        -0.448_275_862_068_965_8,
        2.333_333_333_333_333_7,
        0.0,
    ];
    assert!(outliers_of_2018(&series).iter().zip(documented).all(|(got, expected)| (got - expected).abs() < 1e-9));
}

#[test]
fn make_series_fills_gaps_and_averages() {
    let at = |day: i64, hour: i64, minute: i64| (day * 24 + hour) * 60 + minute;
    // Minutes since the beginning of 2017.
    let events = [
        (at(-1, 6, 0), 50.0),
        (at(0, 0, 0), 4.0),
        (at(1, 0, 0), 3.0),
        (at(2, 0, 0), 4.0),
        (at(2, 3, 0), 6.0),
        (at(4, 0, 0), 8.0),
        (at(4, 13, 40), 13.0),
        (at(5, 0, 0), 4.0),
        (at(6, 0, 0), 3.0),
        (at(7, 0, 0), 8.0),
        (at(7, 21, 0), 8.0),
        (at(8, 0, 0), 2.0),
        (at(8, 12, 0), 11.0),
        (at(9, 5, 0), 5.0),
    ];
    let bins = Bins::new(0, at(9, 0, 0), at(1, 0, 0)).unwrap();
    assert_eq!(make_series(events, bins, Aggregate::Avg, 0.0), [4.0, 3.0, 5.0, 0.0, 10.5, 4.0, 3.0, 8.0, 6.5]);
}

#[test]
fn make_series_tells_an_empty_bin_from_one_that_adds_up_to_little() {
    // Days of 2025: values on 7 and 16 January and 1 February, weeks from 6 January to 9 February.
    let bins = Bins::new(5, 39, 7).unwrap();
    let values = [(6, 10.0), (15, 20.0), (31, 30.0)];
    assert_eq!(make_series(values, bins, Aggregate::Sum, 0.0), [10.0, 20.0, 0.0, 30.0, 0.0]);
    let constant = values.map(|(day, _)| (day, -1.0));
    assert_eq!(make_series(constant, bins, Aggregate::Max, -2.0), [-1.0, -1.0, -2.0, -1.0, -2.0]);
}

#[test]
fn ipv4_is_private_takes_prefixes_and_says_null_to_nonsense() {
    for (text, expected) in [
        ("192.168.1.1/24", Some(true)),
        ("10.1.2.3/24", Some(true)),
        ("202.1.2.3", Some(false)),
        ("127.0.0.1", Some(false)),
        ("10.1.2.3", Some(true)),
        ("", None),
    ] {
        assert_eq!(ipv4_is_private(text), expected, "{text:?}");
    }
}

#[test]
fn dcount_is_exact_to_a_thousand() {
    let mut card = Card::default();
    for value in 1..=1_000 {
        card.insert(value);
        assert_eq!(u128::from(card.count()), value);
    }
}

/// Five weeks by the hour, as in the examples of `series_decompose_anomalies`: quieter nights and weekends, noise, six planted
/// outliers of 8. With a trend the weekend is lower, too.
fn weeks(with_trend: bool, noise: &mut impl FnMut() -> f64) -> Vec<f64> {
    let weekend = if with_trend { 5.0 } else { 10.0 };
    let value = |t: i32| {
        let day = if (t / 24) % 7 >= 5 { weekend } else { 15.0 } - f64::from(((t % 24) / 10).pow(2));
        let planted = match t {
            150 | 200 | 780 => -8.0,
            300 | 400 | 600 => 8.0,
            _ => 0.0,
        };
        2.0 * noise() + day + planted + if with_trend { f64::from(t) / 72.0 } else { 0.0 }
    };
    (1..=840).map(value).collect()
}

/// Numbers from 0 to 1 (Marsaglia's xorshift).
fn uniform(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[test]
fn the_four_documented_anomaly_examples_look_as_in_their_pictures() {
    const SEEDS: u64 = 60;
    let planted = [150, 200, 300, 400, 600, 780];
    for (with_trend, trend, threshold, found_range, false_range) in [
        (false, Trend::Avg, 1.5, 6.0..=6.0, 0.0..=12.0),
        (true, Trend::Avg, 1.5, 1.0..=4.0, 0.0..=0.0),
        (true, Trend::Linefit, 1.5, 6.0..=6.0, 1.0..=12.0),
        (true, Trend::Linefit, 2.5, 5.9..=6.0, 0.0..=2.0),
    ] {
        let week = Model { seasonality: Seasonality::Period(NonZeroUsize::new(168).unwrap()), trend, ..Model::default() };
        let auto = Model { seasonality: Seasonality::Auto, ..week.clone() };
        let (mut found, mut wrong) = (0, 0);
        for seed in 1..=SEEDS {
            let series = weeks(with_trend, &mut uniform(seed));
            let anomalies = series_decompose_anomalies(&series, threshold, &week, Method::CTUKEY, &Compat::default());
            let hits = planted.iter().filter(|&&t| anomalies.flags[t - 1] != 0).count();
            found += hits;
            wrong += anomalies.flags.iter().filter(|&&flag| flag != 0).count() - hits;
            if seed <= 6 {
                let detected = series_decompose_anomalies(&series, threshold, &auto, Method::CTUKEY, &Compat::default());
                assert_eq!(detected, anomalies, "the week is detected, seed {seed}");
            }
        }
        let (found, wrong) = (found as f64 / SEEDS as f64, wrong as f64 / SEEDS as f64);
        assert!(found_range.contains(&found), "{trend:?} at {threshold}: found {found} of 6");
        assert!(false_range.contains(&wrong), "{trend:?} at {threshold}: {wrong} false");
    }
}

#[test]
fn white_noise_has_no_season() {
    for seed in 1..=200 {
        let mut noise = uniform(seed);
        let series: Vec<f64> = (0..336).map(|_| noise() + noise() + noise() + noise()).collect();
        let periods = series_periods_detect(&series, 0.0, 400.0, 5, &Compat::default());
        assert!(periods.iter().all(|period| period.score <= 0.6), "seed {seed}: {periods:?}");
    }
}

#[test]
fn a_fortnight_of_days_hides_its_week() {
    let mut noise = uniform(5);
    let week = [1.0, 1.0, 1.0, 1.0, 1.0, 0.4, 0.4];
    let series: Vec<f64> = week.repeat(2).iter().map(|share| share * 1_000.0 + 40.0 * noise()).collect();
    assert!(series_periods_detect(&series, 0.0, 14.0, 5, &Compat::default()).is_empty());
}
