//! Detection: folds over records in event time.
//!
//! A detector observes rows, closes windows when the records' own time has passed them, and says what it found. It asks no
//! database, reads no clock, holds bounded memory and does not know who made a record. Live stream and replay are the same code.
//!
//! In the order you need them: [`row`] what a detector sees · [`sites`] where addresses belong · [`finding`] what it says ·
//! [`rules`] the rule files and the table of all rules · [`catalogue`] what each rule is, for people · [`card`] counting distinct
//! values · `windows` the windows of event time · `counter` rules that count per window, which are in `scan`, `sweep` and `sessions` ·
//! `fanout`, `beacon`, [`volume`] rules of another kind · `series` rules over days and hours that have closed · [`snapshot`] state as
//! bytes.

#![forbid(unsafe_code)]

mod beacon;
pub mod catalogue;
mod counter;
mod fanout;
pub mod finding;
mod hash;
pub mod indicators;
mod native;
#[cfg(test)]
mod parity;
mod ports;
mod reorder;
pub mod roles;
pub mod row;
pub mod rules;
mod scan;
mod series;
mod sessions;
pub mod sites;
pub mod snapshot;
mod sweep;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod thresholds;
pub mod volume;
mod windows;

pub use spanwatch_kql::dcount as card;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::Origin;
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::time::Timestamp;

pub use finding::{Finding, Stage, Variant};
pub use native::beacon::rhythm;
pub use roles::{LearnedRole, RoleSettings, Roles};
pub use row::Row;
pub use rules::RuleFile;
pub use sites::{SiteSettings, Sites};

use hash::Map;
use reorder::Reorder;
use snapshot::{FORMAT, RestoreError, Saved, Whole, pack, unpack};

/// Observers told apart; further ones share a name.
const OBSERVERS_MAX: usize = 4_096;
/// A record that claims to be from further in the future of a stream than this is not believed.
const FUTURE_MAX: Duration = Duration::from_secs(300);

/// A replay tells the detectors how far event time has come every so many records.
const REPLAY_STRETCH: u64 = 8_192;

/// Rows are shown to a detector so many at a time: what it needs for one stays in the cache for the next. A poll shows the rest.
const WAITING_MAX: usize = 1_024;

/// When findings are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As soon as a threshold is crossed, then as the count grows, then when the window closes.
    Stream,
    /// When the window closes, and only then. Windows stay open to the end of the data, so that the answer does not depend on the
    /// order of records, unless there is no room for all of them.
    Replay,
}

/// One rule in one form.
pub trait Detector: Send {
    /// Takes in a row; may already tell something.
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>);

    /// Event time has reached `newest`: closes the windows that ended longer than the lateness before.
    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>);

    /// Closes all windows, because nothing comes any more for now.
    fn flush(&mut self, findings: &mut Vec<Finding>);

    /// The end of the data.
    fn finish(&mut self, findings: &mut Vec<Finding>) {
        self.flush(findings);
    }

    /// Whether it adds up what moved, rather than who met whom: only then is it shown [aggregates](Row::aggregate), which name no hosts.
    fn adds_up(&self) -> bool {
        false
    }

    /// Whether it must see rows in the order of their time. A stream is nearly in order and is shown as it comes; a replay is sorted
    /// first, as far as there is room.
    fn wants_order(&self) -> bool {
        false
    }

    /// By what its state can be divided among threads without changing what it says.
    fn sharding(&self) -> Sharding {
        Sharding::Whole
    }

    /// Account of itself.
    fn state(&self) -> &State;

    /// How long windows stay open after their end.
    fn lateness(&self) -> Duration;

    /// Everything that it knows, as bytes.
    fn snapshot(&self) -> Vec<u8>;

    /// Goes on exactly as the detector with the same settings would have that made `bytes`.
    ///
    /// # Errors
    /// The bytes are not the state of such a detector. It is then as it was before.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError>;
}

/// By what the state of a detector can be divided: rows with the same key go to the same shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharding {
    /// By the network of the initiator: /24 of IPv4, /48 of IPv6.
    Source,
    /// By the network of the responder: /24 of IPv4, /48 of IPv6.
    Destination,
    /// Not at all: one shard sees every row.
    Whole,
}

/// A detector's account of itself, for /metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// `AZ-01`.
    pub rule: &'static str,
    /// Exact or fixed.
    pub variant: Variant,
    /// Keys held now, over all open windows.
    pub keys: usize,
    /// Memory that it holds, in octets, about; 0 from a rule that does not say.
    pub bytes: usize,
    /// Rows that came after their window had closed.
    pub late: u64,
    /// Keys let go to make room. What they did is forgotten: raise `keys_max` if this grows.
    pub evicted: u64,
    /// Rows not counted because there was no room and nothing to let go.
    pub refused: u64,
}

/// All detectors of the rule file, and the clock they share.
///
/// A stream calls [`observe`](Self::observe) for every record and [`poll`](Self::poll) a few times per second; a replay calls
/// [`drain`](Self::drain) now and then, and both end with [`finish`](Self::finish).
pub struct Detection {
    mode: Mode,
    sites: Sites,
    roles: Roles,
    detectors: Vec<Box<dyn Detector>>,
    /// The settings of each, as text.
    settings: Vec<String>,
    observers: Map<Arc<str>, Observer>,
    others: Arc<str>,
    /// Event time: what the slowest live observer has reached. Never goes back.
    newest: Timestamp,
    /// Wall time of the last poll.
    polled: Timestamp,
    /// Windows were closed because every observer fell silent.
    flushed: bool,
    /// What was told since the last poll. Each key tells at most twice per doubling, so this is bounded by the keys.
    findings: Vec<Finding>,
    /// Rows that no detector has seen yet, at most [`WAITING_MAX`].
    waiting: Vec<Row>,
    /// In a replay: rows on their way to the detectors that want order. None when there is no such detector.
    reorder: Option<Reorder>,
    counters: Counters,
}

/// How much later than a sensor's the records of an origin may come (detection.md §4: Azure's files 10 minutes, Traffic Analytics 90).
const fn tardiness(origin: Origin) -> Duration {
    match origin {
        Origin::Sensor => Duration::ZERO,
        Origin::NsgV1 | Origin::NsgV2 | Origin::VnetV4 => Duration::from_secs(600),
        Origin::TaNsg | Origin::TaVnet => Duration::from_secs(5_400),
    }
}

/// What happened to the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Given to the detectors.
    pub observed: u64,
    /// Without an address or a time: layer 2.
    pub unplaced: u64,
    /// From the future, so not believed.
    pub future: u64,
    /// Findings told.
    pub findings: u64,
}

struct Observer {
    newest: Timestamp,
    /// Wall time of the poll after it was last heard; none until then.
    heard: Timestamp,
    fresh: bool,
}

impl Detection {
    /// The detectors that `rules` switch on.
    pub fn new(rules: &RuleFile, mode: Mode) -> Self {
        let (detectors, settings): (Vec<Box<dyn Detector>>, _) = rules.detectors(mode).into_iter().unzip();
        let reorder = (mode == Mode::Replay && detectors.iter().any(|detector| detector.wants_order())).then(Reorder::default);
        Self {
            mode,
            sites: Sites::default(),
            roles: Roles::default(),
            reorder,
            detectors,
            settings,
            observers: Map::default(),
            others: Arc::from("others"),
            newest: Timestamp::NONE,
            polled: Timestamp::NONE,
            flushed: false,
            findings: Vec::new(),
            waiting: Vec::with_capacity(WAITING_MAX),
            counters: Counters::default(),
        }
    }

    /// The same, with the operator's sites instead of one that is all private space.
    #[must_use]
    pub fn with_sites(self, sites: Sites) -> Self {
        Self { sites, ..self }
    }

    /// The same, with what is known of hosts.
    #[must_use]
    pub fn with_roles(self, roles: Roles) -> Self {
        Self { roles, ..self }
    }

    /// Takes in a record that `observer` made; a cloud's record names its own observer.
    pub fn observe(&mut self, observer: &str, record: &FlowRecord) {
        let observer = record.cloud.as_ref().map_or(observer, |cloud| &*cloud.context.observer);
        let name = self.observer_name(observer);
        let Some(row) = Row::of(&name, record, &self.sites, &self.roles) else {
            self.counters.unplaced += 1;
            return;
        };
        if self.mode == Mode::Stream && self.polled.is_some() && row.at > self.polled.plus(FUTURE_MAX) {
            self.counters.future += 1;
            return;
        }
        self.counters.observed += 1;
        self.flushed = false;
        self.roles.learn(&row);
        // An observer whose records come late lags behind in event time by what they may be late more than a sensor's.
        let reached = row.at.minus(tardiness(row.origin));
        let seen = self.observers.entry(name).or_insert(Observer { newest: reached, heard: Timestamp::NONE, fresh: true });
        seen.newest = seen.newest.max(reached);
        seen.fresh = true;
        let reached = seen.newest;
        self.waiting.push(row);
        if self.waiting.len() >= WAITING_MAX {
            self.show();
        }
        if self.mode == Mode::Replay {
            self.newest = self.newest.max(reached);
            if self.counters.observed.is_multiple_of(REPLAY_STRETCH) {
                self.advance();
            }
        }
    }

    /// Shows the waiting rows to the detectors, all of them to one before the next.
    fn show(&mut self) {
        let Self { detectors, waiting, findings, reorder, .. } = self;
        for detector in detectors.iter_mut().filter(|detector| reorder.is_none() || !detector.wants_order()) {
            let adds_up = detector.adds_up();
            for row in waiting.iter().filter(|row| adds_up || !row.aggregate) {
                detector.observe(row, findings);
            }
        }
        if let Some(reorder) = reorder {
            reorder.take(waiting, &mut |step| in_order(detectors, findings, step));
        }
        waiting.clear();
    }

    /// Closes what has ended, and hands over what was found since the last call. Call it a few times per second.
    ///
    /// Event time is that of the slowest observer heard of within twice the lateness. When none was, all windows close.
    pub fn poll(&mut self, now: Timestamp, out: &mut Vec<Finding>) {
        self.show();
        self.polled = now;
        let patience = self.lateness_max() * 2;
        for observer in self.observers.values_mut().filter(|observer| observer.fresh) {
            observer.heard = now;
            observer.fresh = false;
        }
        self.observers.retain(|_, observer| now.since(observer.heard) <= patience);
        if let Some(slowest) = self.observers.values().map(|observer| observer.newest).min() {
            self.newest = self.newest.max(slowest);
            self.advance();
        } else if !std::mem::replace(&mut self.flushed, true) {
            for detector in &mut self.detectors {
                detector.flush(&mut self.findings);
            }
        }
        self.hand_over(out);
    }

    /// The end of the data: closes everything and hands over what was found since the last call.
    pub fn finish(&mut self, out: &mut Vec<Finding>) {
        self.show();
        if let Some(reorder) = &mut self.reorder {
            reorder.finish(&mut |step| in_order(&mut self.detectors, &mut self.findings, step));
        }
        self.newest = self.observers.values().map(|observer| observer.newest).fold(self.newest, Timestamp::max);
        for detector in &mut self.detectors {
            detector.finish(&mut self.findings);
        }
        self.hand_over(out);
    }

    /// Hands over what was found so far in a replay, without closing anything.
    pub fn drain(&mut self, out: &mut Vec<Finding>) {
        self.show();
        self.hand_over(out);
    }

    /// All windows that ended at or before this are closed. The wall time when every observer is silent. Alerts close by it.
    pub fn watermark(&self) -> Timestamp {
        if self.observers.is_empty() && self.polled.is_some() { self.polled } else { self.newest.minus(self.lateness_max()) }
    }

    /// Everything known, as bytes. What was found and not handed over yet is not in it: poll or drain before.
    pub fn snapshot(&mut self) -> Vec<u8> {
        self.show();
        let observers: BTreeMap<&str, (Timestamp, Timestamp, bool)> =
            self.observers.iter().map(|(name, observer)| (&**name, (observer.newest, observer.heard, observer.fresh))).collect();
        let Counters { observed, unplaced, future, findings } = self.counters;
        let counters = (observed, unplaced, future, findings);
        pack(&Whole {
            format: FORMAT,
            detectors: self
                .detectors
                .iter()
                .zip(&self.settings)
                .map(|(detector, settings)| {
                    let name = format!("{} {}", detector.state().rule, detector.state().variant);
                    (name, Saved { settings: settings.clone(), state: detector.snapshot() })
                })
                .collect(),
            clock: pack(&(observers, self.newest, self.polled, self.flushed, counters)),
            roles: self.roles.snapshot(),
        })
    }

    /// Goes on where the one that made `bytes` was. Detectors whose settings are not those of then start anew, and so do new ones and
    /// those whose part cannot be read; returned are their names (`AZ-01 fixed`).
    ///
    /// # Errors
    /// The bytes are no such state, or one of another version. Everything then is as it was before.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<Vec<String>, RestoreError> {
        type Clock = (BTreeMap<String, (Timestamp, Timestamp, bool)>, Timestamp, Timestamp, bool, (u64, u64, u64, u64));
        let whole: Whole = unpack(bytes)?;
        if whole.format != FORMAT {
            return Err(RestoreError::new(format!("it has format {}, and this version knows format {FORMAT}", whole.format)));
        }
        let (observers, newest, polled, flushed, (observed, unplaced, future, findings)) = unpack::<Clock>(&whole.clock)?;
        if !whole.roles.is_empty() {
            self.roles.restore(&whole.roles)?;
        }
        let mut anew = Vec::new();
        for (detector, settings) in self.detectors.iter_mut().zip(&self.settings) {
            let name = format!("{} {}", detector.state().rule, detector.state().variant);
            match whole.detectors.get(&name) {
                Some(saved) if saved.settings == *settings && detector.restore(&saved.state).is_ok() => {}
                _ => anew.push(name),
            }
        }
        (self.newest, self.polled, self.flushed) = (newest, polled, flushed);
        self.counters = Counters { observed, unplaced, future, findings };
        self.observers = observers
            .into_iter()
            .map(|(name, (newest, heard, fresh))| (Arc::from(name), Observer { newest, heard, fresh }))
            .collect();
        Ok(anew)
    }

    /// After a [`restore`](Self::restore) in a process that was not running for a while: the pause is nobody's silence, and what was
    /// recorded meanwhile is not from the future.
    pub fn wake(&mut self) {
        self.polled = Timestamp::NONE;
        self.observers.values_mut().for_each(|observer| observer.fresh = true);
    }

    fn lateness_max(&self) -> Duration {
        self.detectors.iter().map(|detector| detector.lateness()).max().unwrap_or_default()
    }

    /// What is known of hosts: given and learned.
    pub const fn roles(&self) -> &Roles {
        &self.roles
    }

    /// What happened to the records.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The account of each detector, as of the last poll, drain or finish.
    pub fn states(&self) -> impl Iterator<Item = &State> {
        self.detectors.iter().map(|detector| detector.state())
    }

    fn advance(&mut self) {
        self.show();
        for detector in self.detectors.iter_mut().filter(|detector| self.reorder.is_none() || !detector.wants_order()) {
            detector.advance(self.newest, &mut self.findings);
        }
    }

    fn hand_over(&mut self, out: &mut Vec<Finding>) {
        self.findings.sort_by(Finding::order);
        self.counters.findings += self.findings.len() as u64;
        out.append(&mut self.findings);
    }

    fn observer_name(&self, observer: &str) -> Arc<str> {
        match self.observers.get_key_value(observer) {
            Some((name, _)) => name.clone(),
            None if self.observers.len() < OBSERVERS_MAX => Arc::from(observer),
            None => self.others.clone(),
        }
    }
}

/// Shows a row of a sorted replay, or the time that it has reached, to the detectors that want order.
fn in_order(detectors: &mut [Box<dyn Detector>], findings: &mut Vec<Finding>, step: reorder::Step<'_>) {
    for detector in detectors.iter_mut().filter(|detector| detector.wants_order()) {
        match step {
            reorder::Step::Row(row) if row.aggregate && !detector.adds_up() => {}
            reorder::Step::Row(row) => detector.observe(row, findings),
            reorder::Step::Time(now) => detector.advance(now, findings),
        }
    }
}
