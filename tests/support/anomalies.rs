//! `series_decompose_anomalies(y, threshold, -1, 'linefit')` a second time, from design/detection.md §3 and from nothing of ours.
//!
//! A season is looked for where the rules could have one: a day in hourly values. In fourteen daily values there is none to be found.

/// The scores of `y`: how far each value is off season and line, in units of the spread between the tenth and the ninetieth
/// percentile, times κ.
pub fn scores(y: &[f64]) -> Vec<f64> {
    let n = y.len();
    let season = if n >= 48 && has_period(&less(y, &line(y)), 24) { 24 } else { 1 };
    let mut seasonal = vec![0.0; n];
    if season > 1 {
        for (phase, value) in seasonal.iter_mut().enumerate() {
            let same: Vec<f64> = y.iter().skip(phase % season).step_by(season).copied().collect();
            *value = percentile(&same, 0.5);
        }
    }
    let rest = less(y, &seasonal);
    let dust = 1e-9 * y.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let residual: Vec<f64> =
        less(&rest, &line(&rest)).into_iter().map(|value| if value.abs() <= dust { 0.0 } else { value }).collect();
    let (low, high) = (percentile(&residual, 0.1), percentile(&residual, 0.9));
    let score = |value: f64| match value {
        value if low == high => (value - high).signum() * if (value - high).abs() > dust { 1e6 } else { 0.0 },
        value if value > high => kappa() * (value - high) / (high - low),
        value if value < low => kappa() * (value - low) / (high - low),
        _ => 0.0,
    };
    residual.into_iter().map(|value| score(value).clamp(-1e6, 1e6)).collect()
}

/// The factor by which a score of 1.5 at the 10/90 percentiles falls together with Tukey's fence of a normal residual.
fn kappa() -> f64 {
    let (quartile, tenth) = (0.674_489_750_196_081_7, 1.281_551_565_544_600_4);
    let fence = 4.0 * quartile;
    1.5 * 2.0 * tenth / (fence - tenth)
}

fn less(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// The line of least squares through `y`, at each place.
fn line(y: &[f64]) -> Vec<f64> {
    let n = y.len() as f64;
    let middle = (n - 1.0) / 2.0;
    let mean = y.iter().sum::<f64>() / n;
    let (mut up, mut across) = (0.0, 0.0);
    for (x, value) in y.iter().enumerate() {
        let off = x as f64 - middle;
        up += off * (value - mean);
        across += off * off;
    }
    (0..y.len()).map(|x| mean + up / across * (x as f64 - middle)).collect()
}

/// Linear interpolation between the ordered values (type 7).
fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// Whether the autocorrelation at `lag` is a hill and high: the mean of its biased and unbiased form above 0.6.
fn has_period(y: &[f64], lag: usize) -> bool {
    let n = y.len() as f64;
    let mean = y.iter().sum::<f64>() / n;
    let at = |lag: usize| y.iter().zip(&y[lag..]).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let all = at(0);
    let here = at(lag);
    let hill = (lag - 3..=lag + 3).all(|near| at(near) <= here);
    all > 0.0 && hill && (here / all) * (1.0 + n / (n - lag as f64)) / 2.0 > 0.6
}
