//! KQL's `make-series`: events become a series, one value per bin, gaps filled.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::str::FromStr;

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

impl FromStr for Aggregate {
    type Err = String;

    /// KQL's names of them.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "sum" => Ok(Self::Sum),
            "count" => Ok(Self::Count),
            "avg" => Ok(Self::Avg),
            "min" => Ok(Self::Min),
            "max" => Ok(Self::Max),
            "dcount" => Ok(Self::Dcount),
            _ => Err(format!("\"{name}\" makes no series: use \"sum\", \"count\", \"avg\", \"min\", \"max\" or \"dcount\"")),
        }
    }
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
///
/// It takes memory for the bins that have events only, until it is finished.
#[derive(Clone, Debug, PartialEq)]
pub struct Building {
    bins: Bins,
    aggregate: Aggregate,
    cells: BTreeMap<usize, Cell>,
}

/// What is known of a bin with events.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cell {
    /// Events for [`Aggregate::Count`], values for the others.
    count: u64,
    /// Sum, smallest or largest value.
    value: f64,
    /// Different values, for [`Aggregate::Dcount`].
    card: Card,
}

impl Building {
    /// Without events so far.
    pub fn new(bins: Bins, aggregate: Aggregate) -> Self {
        Self { bins, aggregate, cells: BTreeMap::new() }
    }

    /// Takes in an event.
    pub fn observe(&mut self, at: i64, value: f64) {
        let counts_only = self.aggregate == Aggregate::Count;
        let Some(index) = self.bins.index(at).filter(|_| value.is_finite() || counts_only) else { return };
        // Adding 0 makes one of the two zeros.
        let cell = Cell { count: 1, value, card: self.card(|card| card.insert(u128::from((value + 0.0).to_bits()))) };
        self.add(index, cell);
    }

    /// Takes in an event whose value is no number, but can be counted.
    pub fn observe_bytes(&mut self, at: i64, value: &[u8]) {
        let Some(index) = self.bins.index(at) else { return };
        if let Aggregate::Count | Aggregate::Dcount = self.aggregate {
            self.add(index, Cell { count: 1, value: 0.0, card: self.card(|card| card.insert_bytes(value)) });
        }
    }

    /// A counter of one value, if that is what is asked for.
    fn card(&self, insert: impl FnOnce(&mut Card) -> bool) -> Card {
        let mut card = Card::default();
        if self.aggregate == Aggregate::Dcount {
            insert(&mut card);
        }
        card
    }

    fn add(&mut self, index: usize, more: Cell) {
        match self.cells.entry(index) {
            Entry::Vacant(entry) => drop(entry.insert(more)),
            Entry::Occupied(mut entry) => {
                let cell = entry.get_mut();
                cell.count += more.count;
                cell.card.merge(&more.card);
                match self.aggregate {
                    Aggregate::Sum | Aggregate::Avg => cell.value += more.value,
                    Aggregate::Min => cell.value = cell.value.min(more.value),
                    Aggregate::Max => cell.value = cell.value.max(more.value),
                    Aggregate::Count | Aggregate::Dcount => {}
                }
            }
        }
    }

    /// The events so far as bytes, for [`merge_bytes`](Self::merge_bytes): per bin its number (4 bytes), the count (8), the value
    /// (8), and the length (4) and bytes of the counter, all big-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (&index, cell) in &self.cells {
            bytes.extend((index as u32).to_be_bytes());
            bytes.extend(cell.count.to_be_bytes());
            bytes.extend(cell.value.to_be_bytes());
            let card = cell.card.to_bytes();
            bytes.extend((card.len() as u32).to_be_bytes());
            bytes.extend(card);
        }
        bytes
    }

    /// Takes in the events of another series over the same bins. `None` when these bytes are none; what came before the mistake
    /// has been taken in.
    pub fn merge_bytes(&mut self, mut bytes: &[u8]) -> Option<()> {
        fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (&head, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(head)
        }
        while !bytes.is_empty() {
            let index = u32::from_be_bytes(take(&mut bytes)?) as usize;
            let (count, value) = (u64::from_be_bytes(take(&mut bytes)?), f64::from_be_bytes(take(&mut bytes)?));
            let card_len = u32::from_be_bytes(take(&mut bytes)?) as usize;
            let (card, rest) = bytes.split_at_checked(card_len)?;
            bytes = rest;
            if index >= self.bins.count {
                return None;
            }
            self.add(index, Cell { count, value, card: Card::from_bytes(card)? });
        }
        Some(())
    }

    /// How much memory it takes, in bytes, with the finished series.
    pub fn size(&self) -> usize {
        let cards: usize = self.cells.values().map(|cell| cell.card.size()).sum();
        // A tree keeps its nodes at least half full.
        self.bins.count * size_of::<f64>() + self.cells.len() * 2 * size_of::<(usize, Cell)>() + cards
    }

    /// The series.
    pub fn finish(&self, default: f64) -> Vec<f64> {
        let mut series = vec![default; self.bins.count];
        for (&index, cell) in &self.cells {
            series[index] = match self.aggregate {
                Aggregate::Count => cell.count as f64,
                Aggregate::Avg => cell.value / cell.count as f64,
                Aggregate::Dcount => cell.card.count() as f64,
                Aggregate::Sum | Aggregate::Min | Aggregate::Max => cell.value,
            };
        }
        series
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
            let (mut one, mut other) = (Building::new(bins, aggregate), Building::new(bins, aggregate));
            events[..3].iter().for_each(|&(at, value)| one.observe(at, value));
            events[3..].iter().for_each(|&(at, value)| other.observe(at, value));
            assert_eq!(one.merge_bytes(&other.to_bytes()), Some(()));
            assert_eq!(one.finish(-1.0), expected, "{aggregate:?} in two parts");
        }
    }

    #[test]
    fn what_is_no_number_can_be_counted() {
        let bins = Bins::new(0, 20, 10).unwrap();
        for (aggregate, expected) in
            [(Aggregate::Count, [3.0, 0.0]), (Aggregate::Dcount, [2.0, 0.0]), (Aggregate::Sum, [0.0, 0.0])]
        {
            let mut series = Building::new(bins, aggregate);
            for (at, name) in [(1, "plc-1"), (2, "plc-2"), (3, "plc-1"), (20, "plc-3")] {
                series.observe_bytes(at, name.as_bytes());
            }
            assert_eq!(series.finish(0.0), expected, "{aggregate:?}");
            let bytes = series.to_bytes();
            assert!((1..bytes.len()).all(|len| series.clone().merge_bytes(&bytes[..len]).is_none()), "a part is none");
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
