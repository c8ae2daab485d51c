//! Open windows of event time and the keys in them: what every rule that counts per window is built on.
//!
//! In a stream a window closes when event time has passed its end by more than the lateness. In a replay none closes before the
//! end of the data, because files go back in time from one network interface to the next, unless there is no room: then the
//! oldest that have ended go first. When no window can be closed, the quietest keys are let go; what counts as quiet is the
//! detector's to say. Everything that is lost by this is counted.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use spanwatch_common::time::Timestamp;

use crate::hash::Map;
use crate::snapshot::{RestoreError, pack, unpack};
use crate::{Mode, State};

/// A replay holds all windows at once, so it may hold so many times the keys of a stream.
pub(crate) const REPLAY_ROOM: usize = 16;

/// Windows by their start, each with what every key did in it.
pub(crate) struct Windows<K, T> {
    open: BTreeMap<Timestamp, Map<K, T>>,
    length: Duration,
    lateness: Duration,
    keys_max: usize,
    mode: Mode,
    /// Windows that end at or before this time are closed for good.
    closed: Timestamp,
    /// Event time.
    newest: Timestamp,
    /// Nothing was there to let go; no use trying again before a window closes.
    crowded: bool,
    state: State,
}

impl<K: Eq + Hash + Serialize + DeserializeOwned, T: Serialize + DeserializeOwned> Windows<K, T> {
    /// None open yet.
    pub(crate) fn new(length: Duration, lateness: Duration, keys_max: usize, mode: Mode, state: State) -> Self {
        let keys_max = if mode == Mode::Replay { keys_max.saturating_mul(REPLAY_ROOM) } else { keys_max };
        let never = Timestamp::from_nanos(i64::MIN);
        Self { open: BTreeMap::new(), length, lateness, keys_max, mode, closed: never, newest: never, crowded: false, state }
    }

    /// The window to which `at` belongs, by its start; none when it is closed, which is counted.
    pub(crate) fn place(&mut self, at: Timestamp) -> Option<Timestamp> {
        let start = at.floor(self.length);
        if self.is_closed(start) {
            self.state.late += 1;
            return None;
        }
        Some(start)
    }

    /// Whether the window at `start` is closed for good.
    pub(crate) fn is_closed(&self, start: Timestamp) -> bool {
        start.plus(self.length) <= self.closed
    }

    /// Whether there is no room for `key` in the window at `start`, and [`pop_for_room`](Self::pop_for_room) or
    /// [`let_go`](Self::let_go) might make some.
    pub(crate) fn needs_room(&self, start: Timestamp, key: &K) -> bool {
        self.state.keys >= self.keys_max && !self.crowded && !self.open.get(&start).is_some_and(|keys| keys.contains_key(key))
    }

    /// What `key` did in the window at `start`, from `fresh` on; none when there is no room, which is counted.
    pub(crate) fn entry(&mut self, start: Timestamp, key: K, fresh: impl FnOnce() -> T) -> Option<&mut T> {
        if self.state.keys >= self.keys_max {
            let known = self.open.get_mut(&start).and_then(|keys| keys.get_mut(&key));
            self.state.refused += u64::from(known.is_none());
            return known;
        }
        let keys = self.open.entry(start).or_default();
        let before = keys.len();
        let place = keys.entry(key);
        if let std::collections::hash_map::Entry::Vacant(_) = place {
            self.state.keys += 1;
        }
        debug_assert!(before <= self.state.keys);
        Some(place.or_insert_with(fresh))
    }

    /// What `key` did in the window at `start`.
    pub(crate) fn get_mut(&mut self, start: Timestamp, key: &K) -> Option<&mut T> {
        self.open.get_mut(&start).and_then(|keys| keys.get_mut(key))
    }

    /// What every key did, in all windows.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.open.values().flat_map(Map::values)
    }

    /// Lets go of the keys whose `weight` is smallest, until an eighth of the room is free, none above `weight_max`. Keys of the
    /// same weight go or stay together, so that it does not matter in which order they came.
    pub(crate) fn let_go(&mut self, weight_max: u64, weight: impl Fn(&T) -> u64) {
        let Some(surplus) = self.state.keys.checked_sub(self.enough()).filter(|&surplus| surplus > 0) else { return };
        let mut weights: Vec<u64> = self.values().map(&weight).collect();
        let (_, &mut cut, _) = weights.select_nth_unstable(surplus - 1);
        let quiet = cut.min(weight_max);
        for keys in self.open.values_mut() {
            let before = keys.len();
            keys.retain(|_, value| weight(value) > quiet);
            self.state.evicted += (before - keys.len()) as u64;
            self.state.keys -= before - keys.len();
        }
        self.crowded = self.state.keys >= self.keys_max;
    }

    fn enough(&self) -> usize {
        self.keys_max - self.keys_max / 8
    }

    /// In a replay without room: the oldest window that has ended.
    pub(crate) fn pop_for_room(&mut self) -> Option<(Timestamp, Map<K, T>)> {
        (self.state.keys > self.enough()).then(|| self.pop_early()).flatten()
    }

    /// In a replay, for want of room elsewhere: the oldest window that has ended.
    pub(crate) fn pop_early(&mut self) -> Option<(Timestamp, Map<K, T>)> {
        (self.mode == Mode::Replay).then(|| self.pop_ended()).flatten()
    }

    /// Event time has reached `newest`.
    pub(crate) fn reach(&mut self, newest: Timestamp) {
        self.newest = self.newest.max(newest);
    }

    /// In a stream: the oldest window that has ended, to be called until there is none.
    pub(crate) fn pop_due(&mut self) -> Option<(Timestamp, Map<K, T>)> {
        if self.mode == Mode::Replay {
            return None;
        }
        let due = self.pop_ended();
        if due.is_none() {
            self.closed = self.closed.max(self.newest.minus(self.lateness).floor(self.length));
        }
        due
    }

    fn pop_ended(&mut self) -> Option<(Timestamp, Map<K, T>)> {
        let (start, _) = self.open.first_key_value()?;
        (start.plus(self.length) <= self.newest.minus(self.lateness)).then(|| self.pop_first()).flatten()
    }

    /// The oldest window, ended or not.
    pub(crate) fn pop_first(&mut self) -> Option<(Timestamp, Map<K, T>)> {
        let (start, keys) = self.open.pop_first()?;
        self.state.keys -= keys.len();
        self.closed = self.closed.max(start.plus(self.length));
        self.crowded = false;
        Some((start, keys))
    }

    /// Keys, and what was lost.
    pub(crate) const fn state(&self) -> &State {
        &self.state
    }

    /// To count what is lost elsewhere.
    pub(crate) const fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    pub(crate) const fn length(&self) -> Duration {
        self.length
    }

    pub(crate) const fn lateness(&self) -> Duration {
        self.lateness
    }

    pub(crate) const fn mode(&self) -> Mode {
        self.mode
    }

    /// Everything that [`restore`](Self::restore) needs.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        let State { late, evicted, refused, .. } = self.state;
        pack(&(&self.open, self.closed, self.newest, self.crowded, late, evicted, refused))
    }

    /// Goes on where the one that made `bytes` was.
    pub(crate) fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        type Held<K, T> = (BTreeMap<Timestamp, Map<K, T>>, Timestamp, Timestamp, bool, u64, u64, u64);
        let (open, closed, newest, crowded, late, evicted, refused) = unpack::<Held<K, T>>(bytes)?;
        let keys = open.values().map(Map::len).sum();
        let state = State { keys, late, evicted, refused, ..self.state };
        *self = Self { open, closed, newest, crowded, state, ..*self };
        Ok(())
    }
}
