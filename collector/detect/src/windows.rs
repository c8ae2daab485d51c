//! Open windows of event time and the keys in them: what every rule that counts per window is built on.
//!
//! In a stream a window closes when event time has passed its end by more than the lateness. In a replay none closes before the
//! end of the data, because files go back in time from one network interface to the next, unless there is no room: then the
//! oldest that have ended go first. When no window can be closed, the quietest keys are let go; what counts as quiet is the
//! detector's to say. Everything that is lost by this is counted.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use spanwatch_common::time::Timestamp;

use crate::hash::{Map, table_bytes};
use crate::snapshot::{RestoreError, pack, unpack};
use crate::{Mode, State};

/// A replay holds all windows at once, so it may hold so many times the keys of a stream.
pub(crate) const REPLAY_ROOM: usize = 16;

/// Windows by their start, each with what every key did in it.
pub(crate) struct Windows<K, T> {
    /// Ascending.
    open: VecDeque<(Timestamp, Map<K, T>)>,
    /// Place of the window that was asked for last: mostly the next row belongs there too.
    recent: usize,
    /// From when to when the window reaches to which a row was placed last.
    span: (Timestamp, Timestamp),
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
        let span = (Timestamp::NONE, Timestamp::NONE);
        Self {
            open: VecDeque::new(),
            recent: 0,
            span,
            length,
            lateness,
            keys_max,
            mode,
            closed: never,
            newest: never,
            crowded: false,
            state,
        }
    }

    /// The window to which `at` belongs, by its start; none when it is closed, which is counted.
    pub(crate) fn place(&mut self, at: Timestamp) -> Option<Timestamp> {
        if at < self.span.0 || at >= self.span.1 {
            let start = at.floor(self.length);
            self.span = (start, start.plus(self.length));
        }
        let (start, end) = self.span;
        if end <= self.closed {
            self.state.late += 1;
            return None;
        }
        Some(start)
    }

    /// Where the window at `start` stands, or would stand.
    fn find(&self, start: Timestamp) -> Result<usize, usize> {
        if self.open.get(self.recent).is_some_and(|(recent, _)| *recent == start) {
            return Ok(self.recent);
        }
        self.open.binary_search_by_key(&start, |(start, _)| *start)
    }

    /// Whether the window at `start` is closed for good.
    pub(crate) fn is_closed(&self, start: Timestamp) -> bool {
        start.plus(self.length) <= self.closed
    }

    /// Whether there is no room for `key` in the window at `start`, and [`pop_for_room`](Self::pop_for_room) or
    /// [`let_go`](Self::let_go) might make some.
    pub(crate) fn needs_room(&self, start: Timestamp, key: &K) -> bool {
        self.state.keys >= self.keys_max
            && !self.crowded
            && !self.find(start).is_ok_and(|place| self.open[place].1.contains_key(key))
    }

    /// What `key` did in the window at `start`, from `fresh` on; none when there is no room, which is counted.
    pub(crate) fn entry(&mut self, start: Timestamp, key: K, fresh: impl FnOnce() -> T) -> Option<&mut T> {
        let found = self.find(start);
        if self.state.keys >= self.keys_max {
            let known = found.ok().and_then(|place| self.open[place].1.get_mut(&key));
            self.state.refused += u64::from(known.is_none());
            return known;
        }
        self.recent = found.unwrap_or_else(|place| {
            self.open.insert(place, (start, Map::default()));
            place
        });
        match self.open[self.recent].1.entry(key) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(place) => {
                self.state.keys += 1;
                Some(place.insert(fresh()))
            }
        }
    }

    /// What `key` did in the window at `start`.
    pub(crate) fn get_mut(&mut self, start: Timestamp, key: &K) -> Option<&mut T> {
        let place = self.find(start).ok()?;
        self.open[place].1.get_mut(key)
    }

    /// What every key did, in all windows.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.open.iter().flat_map(|(_, keys)| keys.values())
    }

    /// Lets go of the keys whose `weight` is smallest, until an eighth of the room is free, none above `weight_max`. Keys of the
    /// same weight go or stay together, so that it does not matter in which order they came.
    pub(crate) fn let_go(&mut self, weight_max: u64, weight: impl Fn(&T) -> u64) {
        let Some(surplus) = self.state.keys.checked_sub(self.enough()).filter(|&surplus| surplus > 0) else { return };
        let mut weights: Vec<u64> = self.values().map(&weight).collect();
        let (_, &mut cut, _) = weights.select_nth_unstable(surplus - 1);
        let quiet = cut.min(weight_max);
        for (_, keys) in &mut self.open {
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
        let (start, _) = self.open.front()?;
        (start.plus(self.length) <= self.newest.minus(self.lateness)).then(|| self.pop_first()).flatten()
    }

    /// The oldest window, ended or not.
    pub(crate) fn pop_first(&mut self) -> Option<(Timestamp, Map<K, T>)> {
        let (start, keys) = self.open.pop_front()?;
        self.state.keys -= keys.len();
        self.closed = self.closed.max(start.plus(self.length));
        self.crowded = false;
        Some((start, keys))
    }

    /// Keys, and what was lost.
    pub(crate) const fn state(&self) -> &State {
        &self.state
    }

    /// Brings the account of memory up to date: `heap` is what the value of a key holds elsewhere, `beside` what the detector holds beside
    /// its windows.
    pub(crate) fn weigh(&mut self, heap: impl Fn(&T) -> usize, beside: usize) {
        let tables: usize = self.open.iter().map(|(_, keys)| table_bytes(keys)).sum();
        self.state.bytes = tables + self.values().map(heap).sum::<usize>() + beside;
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
        let open: BTreeMap<Timestamp, &Map<K, T>> = self.open.iter().map(|(start, keys)| (*start, keys)).collect();
        pack(&(open, self.closed, self.newest, self.crowded, late, evicted, refused))
    }

    /// Goes on where the one that made `bytes` was.
    pub(crate) fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        type Held<K, T> = (BTreeMap<Timestamp, Map<K, T>>, Timestamp, Timestamp, bool, u64, u64, u64);
        let (open, closed, newest, crowded, late, evicted, refused) = unpack::<Held<K, T>>(bytes)?;
        let keys = open.values().map(Map::len).sum();
        let open = open.into_iter().collect();
        let state = State { keys, late, evicted, refused, ..self.state };
        *self = Self { open, closed, newest, crowded, state, ..*self };
        Ok(())
    }
}
