//! KQL's `make-series`: events become a series, one value per bin, gaps filled.

use crate::dcount::Card;

/// No series is longer. Kusto's own limit.
pub const POINTS_MAX: usize = 1 << 20;

/// The bins of a series: from a time (inclusive) to another (exclusive), each one step long.
///
/// Times are counts of any unit, the same for all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bins {
    from: i64,
    to: i64,
    step: i64,
    count: usize,
}

impl Bins {
    /// The bins that begin at `from`, `from + step`, … before `to`; none when `to` is not after `from`.
    ///
    /// # Errors
    /// A sentence, when `step` is not positive or there would be more than [`POINTS_MAX`] bins.
    pub fn new(from: i64, to: i64, step: i64) -> Result<Self, String> {
        if step <= 0 {
            return Err(format!("the step of a series must be positive, not {step}"));
        }
        let span = (i128::from(to) - i128::from(from)).max(0);
        let count = (span + i128::from(step) - 1) / i128::from(step);
        match usize::try_from(count) {
            Ok(count) if count <= POINTS_MAX => Ok(Self { from, to, step, count }),
            _ => Err(format!("a series has at most {POINTS_MAX} points, not {count}: use a longer step or a shorter range")),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// When each begins.
    pub fn starts(&self) -> impl Iterator<Item = i64> {
        let Self { from, step, count, .. } = *self;
        (0..count as i128).map(move |index| (i128::from(from) + index * i128::from(step)) as i64)
    }

    /// Which one `at` lies in, if any. The last bin ends where the series does, in the middle of a step or not.
    pub fn index(&self, at: i64) -> Option<usize> {
        let offset = i128::from(at) - i128::from(self.from);
        (offset >= 0 && at < self.to).then(|| (offset / i128::from(self.step)) as usize)
    }
}

/// What becomes of the values in one bin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// Their sum.
    Sum,
    /// How many events there are, with or without value.
    Count,
    /// Their mean.
    Avg,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// How many different ones there are: exactly up to 1,000, then closely. See [`Card`].
    Dcount,
}

/// The series of `events`, each a time and a value. A bin without events, or without values to aggregate, has `default`.
///
/// Events outside the bins are left out; missing values count as events only.
pub fn make_series(events: impl IntoIterator<Item = (i64, f64)>, bins: Bins, aggregate: Aggregate, default: f64) -> Vec<f64> {
    let mut series = Building::new(bins, aggregate);
    for (at, value) in events {
        series.observe(at, value);
    }
    series.finish(default)
}

/// A series in the making. What comes of it does not depend on the order of events, rounding errors of sums aside.
#[derive(Clone, Debug)]
pub struct Building {
    bins: Bins,
    aggregate: Aggregate,
    /// Events (for [`Aggregate::Count`]) or values per bin.
    counts: Vec<u64>,
    /// Sum, smallest or largest value per bin; empty when not needed.
    values: Vec<f64>,
    /// Different values per bin; empty when not needed.
    cards: Vec<Card>,
}

impl Building {
    /// Without events so far.
    pub fn new(bins: Bins, aggregate: Aggregate) -> Self {
        let start = match aggregate {
            Aggregate::Sum | Aggregate::Avg => Some(0.0),
            Aggregate::Min => Some(f64::INFINITY),
            Aggregate::Max => Some(f64::NEG_INFINITY),
            Aggregate::Count | Aggregate::Dcount => None,
        };
        let values = start.map_or_else(Vec::new, |start| vec![start; bins.count]);
        let cards = if aggregate == Aggregate::Dcount { vec![Card::default(); bins.count] } else { Vec::new() };
        Self { bins, aggregate, counts: vec![0; bins.count], values, cards }
    }

    /// Takes in an event.
    pub fn observe(&mut self, at: i64, value: f64) {
        let Some(index) = self.bins.index(at) else { return };
        if !value.is_finite() && self.aggregate != Aggregate::Count {
            return;
        }
        self.counts[index] += 1;
        match self.aggregate {
            Aggregate::Count => {}
            Aggregate::Sum | Aggregate::Avg => self.values[index] += value,
            Aggregate::Min => self.values[index] = self.values[index].min(value),
            Aggregate::Max => self.values[index] = self.values[index].max(value),
            // Adding 0 makes one of the two zeros.
            Aggregate::Dcount => drop(self.cards[index].insert(u128::from((value + 0.0).to_bits()))),
        }
    }

    /// The series.
    pub fn finish(self, default: f64) -> Vec<f64> {
        let value = |index: usize| match self.aggregate {
            Aggregate::Count => self.counts[index] as f64,
            Aggregate::Avg => self.values[index] / self.counts[index] as f64,
            Aggregate::Dcount => self.cards[index].count() as f64,
            Aggregate::Sum | Aggregate::Min | Aggregate::Max => self.values[index],
        };
        (0..self.bins.count).map(|index| if self.counts[index] == 0 { default } else { value(index) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_aggregate_of_the_same_events() {
        let events = [(0, 3.0), (9, 5.0), (5, 3.0), (5, f64::NAN), (25, f64::NAN), (30, 8.0), (-1, 8.0)];
        let bins = Bins::new(0, 30, 10).unwrap();
        for (aggregate, expected) in [
            (Aggregate::Sum, [11.0, -1.0, -1.0]),
            (Aggregate::Count, [4.0, -1.0, 1.0]),
            (Aggregate::Avg, [11.0 / 3.0, -1.0, -1.0]),
            (Aggregate::Min, [3.0, -1.0, -1.0]),
            (Aggregate::Max, [5.0, -1.0, -1.0]),
            (Aggregate::Dcount, [2.0, -1.0, -1.0]),
        ] {
            assert_eq!(make_series(events, bins, aggregate, -1.0), expected, "{aggregate:?}");
        }
    }

    #[test]
    fn the_end_is_not_part_of_it() {
        for (from, to, step, starts) in
            [(0, 30, 10, &[0, 10, 20][..]), (0, 31, 10, &[0, 10, 20, 30]), (-5, 6, 10, &[-5, 5]), (5, 5, 1, &[])]
        {
            let bins = Bins::new(from, to, step).unwrap();
            assert_eq!(bins.starts().collect::<Vec<_>>(), starts);
            assert_eq!(bins.index(from - 1), None);
        }
        assert_eq!([5, 6].map(|at| Bins::new(-5, 6, 10).unwrap().index(at)), [Some(1), None]);
    }

    #[test]
    fn a_series_has_an_end_to_its_length() {
        assert_eq!(Bins::new(0, 1 << 20, 1).unwrap().count(), POINTS_MAX);
        assert!(Bins::new(0, (1 << 20) + 1, 1).unwrap_err().contains("1048577"));
        assert!(Bins::new(i64::MIN, i64::MAX, 1).unwrap_err().contains("longer step"));
        assert!(Bins::new(0, 10, 0).unwrap_err().contains("positive"));
        let ends = Bins::new(i64::MAX - 10, i64::MAX, 4).unwrap();
        assert_eq!(ends.starts().count(), 3);
        assert_eq!(ends.index(i64::MIN), None);
        assert_eq!(Bins::new(i64::MIN, i64::MAX, 1 << 62).unwrap().starts().last(), Some(1 << 62));
    }
}
