//! What closed bins leave behind, per key.

use std::collections::VecDeque;
use std::hash::Hash;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spanwatch_common::time::Timestamp;

use super::bins::Past;
use crate::hash::{Map, table_bytes};

/// Bins of one key, oldest first, those without a row left out.
pub(crate) type Bins<V> = VecDeque<(Timestamp, V)>;

/// One value per key and bin.
#[derive(Serialize, Deserialize)]
#[serde(bound(
    serialize = "K: Serialize + Eq + Hash, V: Serialize",
    deserialize = "K: Deserialize<'de> + Eq + Hash, V: Deserialize<'de>"
))]
pub(crate) struct History<K, V> {
    keys: Map<K, Bins<V>>,
    /// Bins in which any key had a row. In the others nobody was looking, or there was nothing to see.
    seen: VecDeque<Timestamp>,
    /// The first bin ever.
    since: Timestamp,
}

impl<K, V> Default for History<K, V> {
    fn default() -> Self {
        Self { keys: Map::default(), seen: VecDeque::new(), since: Timestamp::NONE }
    }
}

impl<K: Ord + Hash + Clone, V: Copy> History<K, V> {
    /// Appends a bin; bins come in the order of time.
    pub(crate) fn push(&mut self, key: K, start: Timestamp, value: V) {
        if !self.since.is_some() {
            self.since = start;
        }
        if self.seen.back() != Some(&start) {
            self.seen.push_back(start);
        }
        self.keys.entry(key).or_default().push_back((start, value));
    }

    /// The keys that have a row in the bin at `start`, the last one, in their order; with the value there and all bins.
    pub(crate) fn in_bin(&self, start: Timestamp) -> Vec<(&K, V, &Bins<V>)> {
        let mut found: Vec<_> = self
            .keys
            .iter()
            .filter_map(|(key, bins)| bins.back().filter(|(last, _)| *last == start).map(|&(_, value)| (key, value, bins)))
            .collect();
        found.sort_unstable_by(|a, b| a.0.cmp(b.0));
        found
    }

    /// The bins of `key`.
    pub(crate) fn get(&self, key: &K) -> Option<&Bins<V>> {
        self.keys.get(key)
    }

    /// Every key with its bins, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &Bins<V>)> {
        self.keys.iter()
    }

    /// The first bin that ever had a row; none before that.
    pub(crate) const fn since(&self) -> Timestamp {
        self.since
    }

    /// How many of the bins from `from` up to `to` had rows of any key.
    pub(crate) fn seen(&self, from: Timestamp, to: Timestamp) -> usize {
        self.seen.iter().filter(|start| (from..to).contains(start)).count()
    }

    /// Whether any key had a row in the bin at `start`.
    pub(crate) fn has_seen(&self, start: Timestamp) -> bool {
        self.seen.binary_search(&start).is_ok()
    }
}

/// KQL's `make-series` with default 0: the values from `from` up to `to` every `step`.
pub(crate) fn series<V: Copy>(
    bins: &Bins<V>,
    from: Timestamp,
    to: Timestamp,
    step: Duration,
    number: impl Fn(V) -> f64,
) -> Vec<f64> {
    let mut values = Vec::new();
    let mut present = bins.iter().skip_while(|(start, _)| *start < from).peekable();
    let mut at = from;
    while at < to {
        values.push(present.next_if(|(start, _)| *start == at).map_or(0.0, |&(_, value)| number(value)));
        at = at.plus(step);
    }
    values
}

impl<K, V> Past for History<K, V>
where
    K: Ord + Hash + Clone + Send + Serialize + DeserializeOwned,
    V: Copy + Send + Serialize + DeserializeOwned,
{
    fn trim(&mut self, horizon: Timestamp, keys_max: usize) -> u64 {
        while self.seen.front().is_some_and(|start| *start < horizon) {
            self.seen.pop_front();
        }
        self.keys.retain(|_, bins| {
            while bins.front().is_some_and(|(start, _)| *start < horizon) {
                bins.pop_front();
            }
            !bins.is_empty()
        });
        let ages = self.keys.iter().map(|(key, bins)| (bins.back().map(|(start, _)| *start), key));
        let silent: Vec<K> = longest_silent(ages, keys_max);
        for key in &silent {
            self.keys.remove(key);
        }
        silent.len() as u64
    }

    fn keys(&self) -> usize {
        self.keys.len()
    }

    fn size(&self) -> usize {
        let bins: usize = self.keys.values().map(|bins| bins.capacity() * size_of::<(Timestamp, V)>()).sum();
        table_bytes(&self.keys) + bins + self.seen.capacity() * size_of::<Timestamp>()
    }
}

/// Of more than `keys_max` keys, those silent for longest, so many that an eighth of the room is free without them.
pub(crate) fn longest_silent<'a, K: Ord + Clone + 'a, A: Ord>(
    ages: impl ExactSizeIterator<Item = (A, &'a K)>,
    keys_max: usize,
) -> Vec<K> {
    if ages.len() <= keys_max {
        return Vec::new();
    }
    let surplus = ages.len() - (keys_max - keys_max / 8);
    let mut by_age: Vec<(A, &K)> = ages.collect();
    by_age.sort_unstable();
    by_age.into_iter().take(surplus).map(|(_, key)| key.clone()).collect()
}
