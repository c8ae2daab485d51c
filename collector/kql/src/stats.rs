//! Statistics of a set of numbers, and KQL's rounding.

/// The `percent`-th percentile (0 to 100), interpolated linearly between the two nearest values ("type 7", what most tools do).
///
/// `None` when no value is finite or `percent` is out of range.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    of_sorted(&sorted(values), percent)
}

/// The value in the middle, or halfway between the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 50.0)
}

/// The mean of the finite values.
pub fn mean(values: &[f64]) -> Option<f64> {
    let (sum, count) = finite(values).fold((0.0, 0_u64), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// KQL's `variance`: of a sample, so divided by one less than the count. `None` for fewer than two values.
pub fn variance(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let (squares, count) = finite(values).fold((0.0, 0_u64), |(sum, count), value| (sum + (value - mean).powi(2), count + 1));
    (count > 1).then(|| squares / (count - 1) as f64)
}

/// KQL's `stdev`: the root of [`variance`].
pub fn stdev(values: &[f64]) -> Option<f64> {
    variance(values).map(f64::sqrt)
}

/// KQL's `round(value, digits)`: halves go away from zero. Negative `digits` round to tens, hundreds and so on.
pub fn round_half_away(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits.saturating_abs());
    let (rounded, unscaled) = if digits >= 0 { (value * scale, 1.0 / scale) } else { (value / scale, scale) };
    let result = if digits >= 0 { rounded.round() / scale } else { rounded.round() * unscaled };
    if result.is_finite() { result } else { value }
}

/// KQL's `toint`: the fraction is cut off, towards zero. `None` for what does not fit into 32 bits.
pub fn toint(value: f64) -> Option<i32> {
    let whole = value.trunc();
    (whole >= f64::from(i32::MIN) && whole <= f64::from(i32::MAX)).then_some(whole as i32)
}

/// The values that are not missing.
pub(crate) fn finite(values: &[f64]) -> impl Iterator<Item = f64> {
    values.iter().copied().filter(|value| value.is_finite())
}

/// The values that are not missing, ascending.
pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut kept: Vec<f64> = finite(values).collect();
    kept.sort_unstable_by(f64::total_cmp);
    kept
}

/// [`percentile`] of values that are finite and ascending.
pub(crate) fn of_sorted(sorted: &[f64], percent: f64) -> Option<f64> {
    if !(0.0..=100.0).contains(&percent) {
        return None;
    }
    let place = percent / 100.0 * sorted.len().checked_sub(1)? as f64;
    let (below, share) = (sorted[place as usize], place.fract());
    let above = sorted.get(place as usize + 1).copied().unwrap_or(below);
    // From the nearer end, so that neither end is missed by a rounding error.
    Some(if share < 0.5 { below + (above - below) * share } else { above - (above - below) * (1.0 - share) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_between_neighbours() {
        let values = [30.0, 28.0, 5.0, 27.0, 31.0, 38.0, 29.0, 80.0, 25.0, 37.0, 30.0];
        assert_eq!([0.0, 25.0, 50.0, 75.0, 100.0].map(|p| percentile(&values, p)), [5.0, 27.5, 30.0, 34.0, 80.0].map(Some));
        assert_eq!([percentile(&[], 50.0), percentile(&[1.0], 101.0), percentile(&[f64::NAN], 50.0)], [None; 3]);
        assert_eq!(percentile(&[7.0], 90.0), Some(7.0));
    }

    #[test]
    fn a_sample_deviates_by_n_minus_one() {
        let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(variance(&values), Some(32.0 / 7.0));
        assert_eq!(stdev(&[1.0, f64::NAN, 3.0]), Some(2_f64.sqrt()));
        assert_eq!([stdev(&[]), stdev(&[1.0])], [None; 2]);
    }

    #[test]
    fn halves_are_rounded_away_from_zero() {
        assert_eq!([0.5, -0.5, 2.5, -2.5, 1.49].map(|x| round_half_away(x, 0)), [1.0, -1.0, 3.0, -3.0, 1.0]);
        assert_eq!([0.125, -0.125, 12.344].map(|x| round_half_away(x, 2)), [0.13, -0.13, 12.34]);
        assert_eq!(round_half_away(1_250.0, -2), 1_300.0);
        assert_eq!(round_half_away(1e300, 300), 1e300);
    }

    #[test]
    fn whole_numbers_are_cut_towards_zero() {
        assert_eq!([5.9, 4.99, -5.9, 0.0].map(toint), [5, 4, -5, 0].map(Some));
        assert_eq!([f64::NAN, f64::INFINITY, 2_147_483_648.0].map(toint), [None; 3]);
    }
}
