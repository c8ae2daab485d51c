//! Bins: where on a grid a value lies.

/// KQL's `bin(value, width)`: the largest multiple of `width` that is not above `value`, for negative values too.
///
/// Times are counts of any unit since the epoch, so bins of a minute begin at full minutes. `None` when `width` is not
/// positive, or when the bin begins before the smallest number.
pub fn bin(value: i64, width: i64) -> Option<i64> {
    bin_at(value, width, 0)
}

/// KQL's `bin_at(value, width, fixed)`: like [`bin`], on the grid that passes through `fixed`.
pub fn bin_at(value: i64, width: i64, fixed: i64) -> Option<i64> {
    if width <= 0 {
        return None;
    }
    let offset = (i128::from(value) - i128::from(fixed)).rem_euclid(i128::from(width));
    i64::try_from(i128::from(value) - offset).ok()
}

/// [`bin`] of real numbers. `None` when `width` is not positive or the result is not finite.
pub fn bin_real(value: f64, width: f64) -> Option<f64> {
    let binned = (value / width).floor() * width;
    (width > 0.0 && binned.is_finite()).then_some(binned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_floors_on_the_epoch_grid_before_it_too() {
        assert_eq!([-61, -60, -1, 0, 59, 60].map(|t| bin(t, 60)), [-120, -60, -60, 0, 0, 60].map(Some));
        assert_eq!([4.5, -0.5, -1.0].map(|x| bin_real(x, 1.0)), [4.0, -1.0, -1.0].map(Some));
    }

    #[test]
    fn a_grid_may_pass_through_any_point() {
        assert_eq!([6, 7, 13, 14, -1].map(|t| bin_at(t, 7, 7)), [0, 7, 7, 14, -7].map(Some));
        assert_eq!(bin_at(10, 3, i64::MAX), Some(10), "10 lies on the grid of threes through 2^63 - 1");
    }

    #[test]
    fn what_has_no_bin_has_none() {
        assert_eq!([bin(5, 0), bin(5, -1), bin(i64::MIN, 3)], [None; 3]);
        assert_eq!([bin_real(5.0, 0.0), bin_real(5.0, -1.0), bin_real(f64::NAN, 1.0), bin_real(1e308, 1e-10)], [None; 4]);
    }
}
