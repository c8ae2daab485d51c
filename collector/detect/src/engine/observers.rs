//! Who sends records, and how far each has come in event time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::Origin;
use spanwatch_common::time::Timestamp;

use crate::hash::Map;

/// Observers told apart; further ones share a name.
const OBSERVERS_MAX: usize = 4_096;

/// Observers that were heard of lately.
pub(super) struct Observers {
    known: Map<Arc<str>, Observer>,
    /// Whose rows come now: those of one observer come in runs.
    speaker: Speaker,
    others: Arc<str>,
}

/// How far one has come, and when it was heard.
struct Observer {
    /// How far it has come in event time.
    newest: Timestamp,
    /// Wall time of the poll after it was last heard; none until then.
    heard: Timestamp,
    /// It was heard since the last poll.
    fresh: bool,
}

/// Who speaks, and what was heard of it since that was written down.
struct Speaker {
    name: Arc<str>,
    reached: Option<Timestamp>,
}

/// How far each observer had come, when it was heard, and whether it was since the last poll.
pub(super) type Saved = BTreeMap<String, (Timestamp, Timestamp, bool)>;

impl Default for Observers {
    fn default() -> Self {
        Self { known: Map::default(), speaker: Speaker { name: Arc::from(""), reached: None }, others: Arc::from("others") }
    }
}

impl Observers {
    /// Rows of `observer` follow; returns the name that they are to have.
    pub(super) fn listen_to(&mut self, observer: &str) -> &Arc<str> {
        if *self.speaker.name != *observer {
            self.change_to(observer);
        }
        &self.speaker.name
    }

    fn change_to(&mut self, observer: &str) {
        self.write_down();
        self.speaker.name = match self.known.get_key_value(observer) {
            Some((name, _)) => name.clone(),
            None if self.known.len() < OBSERVERS_MAX => Arc::from(observer),
            None => self.others.clone(),
        };
    }

    /// Takes note of a row that the speaker said at `said_at`; returns how far event time has come by it. An observer whose records come
    /// late lags behind by what they may be late more than a sensor's.
    pub(super) fn hear(&mut self, origin: Origin, said_at: Timestamp) -> Timestamp {
        let reached = said_at.minus(tardiness(origin));
        self.speaker.reached = Some(self.speaker.reached.map_or(reached, |before| before.max(reached)));
        reached
    }

    /// Writes down what was heard of the speaker.
    fn write_down(&mut self) {
        let Some(reached) = self.speaker.reached.take() else { return };
        if let Some(seen) = self.known.get_mut(&self.speaker.name) {
            seen.newest = seen.newest.max(reached);
            seen.fresh = true;
            return;
        }
        let seen = Observer { newest: reached, heard: Timestamp::NONE, fresh: true };
        self.known.insert(self.speaker.name.clone(), seen);
    }

    /// How far the slowest has come of those heard of within `patience` before `now`; the others are forgotten.
    pub(super) fn slowest(&mut self, now: Timestamp, patience: Duration) -> Option<Timestamp> {
        self.write_down();
        for observer in self.known.values_mut().filter(|observer| observer.fresh) {
            observer.heard = now;
            observer.fresh = false;
        }
        self.known.retain(|_, observer| now.since(observer.heard) <= patience);
        self.known.values().map(|observer| observer.newest).min()
    }

    /// How far the fastest has come.
    pub(super) fn furthest(&mut self) -> Option<Timestamp> {
        self.write_down();
        self.known.values().map(|observer| observer.newest).max()
    }

    /// Whether none was heard of lately.
    pub(super) fn are_silent(&self) -> bool {
        self.known.is_empty() && self.speaker.reached.is_none()
    }

    /// Takes all that are known for heard of just now.
    pub(super) fn wake(&mut self) {
        self.known.values_mut().for_each(|observer| observer.fresh = true);
    }

    /// All that is known of them.
    pub(super) fn save(&mut self) -> Saved {
        self.write_down();
        let saved = |(name, seen): (&Arc<str>, &Observer)| (name.to_string(), (seen.newest, seen.heard, seen.fresh));
        self.known.iter().map(saved).collect()
    }

    /// Goes on as the one that made `saved` would have.
    pub(super) fn restore(&mut self, saved: Saved) {
        self.speaker.reached = None;
        let observer = |(name, (newest, heard, fresh))| (Arc::from(name), Observer { newest, heard, fresh });
        self.known = saved.into_iter().map(observer).collect();
    }
}

/// How much later than a sensor's the records of an origin may come (detection.md §4: Azure's files 10 minutes, Traffic Analytics 90).
const fn tardiness(origin: Origin) -> Duration {
    match origin {
        Origin::Sensor => Duration::ZERO,
        Origin::NsgV1 | Origin::NsgV2 | Origin::VnetV4 => Duration::from_secs(600),
        Origin::TaNsg | Origin::TaVnet => Duration::from_secs(5_400),
    }
}
