//! A map of bounded size that lets go of what weighs least.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::State;
use crate::hash::Map;

/// What is known of each key, of at most so many. When full, an eighth of the keys goes at once: those of the least weight and, where
/// weights are equal, the numerically smallest, so that it does not matter in which order they came.
#[derive(Clone, Debug)]
pub(crate) struct Table<K, V> {
    entries: Map<K, V>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { entries: Map::default() }
    }
}

impl<K: Copy + Ord + std::hash::Hash, V> Table<K, V> {
    /// Takes out what is known of `key`; [`put`](Self::put) brings it back.
    pub(crate) fn take(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key)
    }

    /// Brings back what was [taken](Self::take).
    pub(crate) fn put(&mut self, key: K, value: V) {
        self.entries.insert(key, value);
    }

    /// Whether something is known of `key`.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// What is known of `key`, from `fresh` on. A full table makes room first, and counts what goes.
    pub(crate) fn entry(
        &mut self,
        key: K,
        keys_max: usize,
        state: &mut State,
        weight: impl Fn(&V) -> u64,
        fresh: impl FnOnce() -> V,
    ) -> &mut V {
        if self.entries.len() >= keys_max && !self.entries.contains_key(&key) {
            let mut weights: Vec<(u64, K)> = self.entries.iter().map(|(&key, value)| (weight(value), key)).collect();
            let surplus = (self.entries.len() + 1 - keys_max).max(keys_max / 8).min(weights.len());
            let (_, &mut cut, _) = weights.select_nth_unstable(surplus - 1);
            self.entries.retain(|&key, value| (weight(value), key) > cut);
            state.evicted += surplus as u64;
        }
        self.entries.entry(key).or_insert_with(fresh)
    }

    /// Keeps only what `keep` says, which may change it.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.entries.retain(|key, value| keep(key, value));
    }

    /// Every key with what is known of it, in no order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries.iter_mut()
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl<K: Copy + Ord + Serialize, V: Serialize> Serialize for Table<K, V> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut entries: Vec<(&K, &V)> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|&(key, _)| *key);
        to.collect_seq(entries)
    }
}

impl<'de, K: DeserializeOwned + Eq + std::hash::Hash, V: DeserializeOwned> Deserialize<'de> for Table<K, V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let entries = Vec::<(K, V)>::deserialize(from)?;
        Ok(Self { entries: entries.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Variant;

    #[test]
    fn a_full_table_lets_go_of_the_lightest_eighth() {
        let mut state = State { rule: "X", variant: Variant::Fixed, keys: 0, bytes: 0, late: 0, evicted: 0, refused: 0 };
        let mut table = Table::<u32, u64>::default();
        for key in 0..16 {
            // Weights 16 down to 1: the last two are the lightest.
            table.entry(key, 16, &mut state, |&weight| weight, || 16 - u64::from(key));
        }
        assert_eq!((table.len(), state.evicted), (16, 0));
        table.entry(99, 16, &mut state, |&weight| weight, || 1);
        assert_eq!((table.len(), state.evicted), (15, 2));
        assert!(table.contains(&99) && table.contains(&13) && !table.contains(&14) && !table.contains(&15));
    }
}
