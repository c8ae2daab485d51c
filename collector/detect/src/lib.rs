//! Detection: folds over records in event time.
//!
//! A detector observes rows, closes windows when the records' own time has passed them, and says what it found. It asks no
//! database, reads no clock, holds bounded memory and does not know who made a record. Live stream and replay are the same code.
//!
//! In the order you need them: [`row`] what a detector sees · [`sites`] where addresses belong · [`finding`] what it says · [`rules`] the rule file ·
//! [`card`] counting distinct values · [`scan`] AZ-01 and AZ-02 · [`volume`] AZ-03.

#![forbid(unsafe_code)]

pub mod finding;
#[cfg(test)]
mod parity;
pub mod row;
pub mod rules;
pub mod scan;
pub mod sites;
#[cfg(test)]
mod tests;
pub mod volume;

pub use spanwatch_kql::dcount as card;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::Origin;
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::time::Timestamp;

pub use finding::{Finding, Stage, Variant};
pub use row::Row;
pub use rules::RuleFile;
pub use sites::{SiteSettings, Sites};

use finding::RuleCard;

/// Observers told apart; further ones share a name.
const OBSERVERS_MAX: usize = 4_096;
/// A record that claims to be from further in the future of a stream than this is not believed.
const FUTURE_MAX: Duration = Duration::from_secs(300);

/// A replay closes windows every so many records, up to the event time that was reached one such stretch before. A sensor puts
/// out the remains of long silent flows only when its capture goes on: after a pause in the file they stand behind newer records.
const REPLAY_STRETCH: u64 = 8_192;

/// When findings are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As soon as a threshold is crossed, then as the count grows, then when the window closes.
    Stream,
    /// When the window closes, and only then: the answer does not depend on the order of records within the lateness.
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

    /// Account of itself.
    fn state(&self) -> &State;

    /// How long windows stay open after their end.
    fn lateness(&self) -> Duration;
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
    /// Rows that came after their window had closed.
    pub late: u64,
    /// Keys let go to make room. What they did is forgotten: raise `keys_max` if this grows.
    pub evicted: u64,
    /// Rows not counted because there was no room and nothing to let go.
    pub refused: u64,
}

impl State {
    const fn of(rule: &RuleCard) -> Self {
        Self { rule: rule.id, variant: rule.variant, keys: 0, late: 0, evicted: 0, refused: 0 }
    }
}

/// All detectors of the rule file, and the clock they share.
///
/// A stream calls [`observe`](Self::observe) for every record and [`poll`](Self::poll) a few times per second; a replay calls
/// [`drain`](Self::drain) now and then, and both end with [`finish`](Self::finish).
pub struct Detection {
    mode: Mode,
    sites: Sites,
    detectors: Vec<Box<dyn Detector>>,
    observers: HashMap<Arc<str>, Observer>,
    others: Arc<str>,
    /// Event time: what the slowest live observer has reached. Never goes back.
    newest: Timestamp,
    /// In a replay: event time at the end of the last stretch.
    stretch_end: Timestamp,
    /// Wall time of the last poll.
    polled: Timestamp,
    /// Windows were closed because every observer fell silent.
    flushed: bool,
    /// What was told since the last poll. Each key tells at most twice per doubling, so this is bounded by the keys.
    findings: Vec<Finding>,
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
        let mut detectors: Vec<Box<dyn Detector>> = Vec::new();
        for variant in [Variant::Exact, Variant::Fixed] {
            if rules.horizontal.variants.contains(&variant) {
                detectors.push(Box::new(scan::Scan::horizontal(&rules.horizontal, variant, mode)));
            }
            if rules.vertical.variants.contains(&variant) {
                detectors.push(Box::new(scan::Scan::vertical(&rules.vertical, variant, mode)));
            }
            if rules.volume.variants.contains(&variant) {
                detectors.push(Box::new(volume::Volume::new(&rules.volume, variant, mode)));
            }
        }
        Self {
            mode,
            sites: Sites::default(),
            detectors,
            observers: HashMap::new(),
            others: Arc::from("others"),
            newest: Timestamp::NONE,
            stretch_end: Timestamp::NONE,
            polled: Timestamp::NONE,
            flushed: false,
            findings: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The same, with the operator's sites instead of one that is all private space.
    #[must_use]
    pub fn with_sites(self, sites: Sites) -> Self {
        Self { sites, ..self }
    }

    /// Takes in a record that `observer` made; a cloud's record names its own observer.
    pub fn observe(&mut self, observer: &str, record: &FlowRecord) {
        let observer = record.cloud.as_ref().map_or(observer, |cloud| &*cloud.context.observer);
        let name = self.observer_name(observer);
        let Some(row) = Row::of(&name, record, &self.sites) else {
            self.counters.unplaced += 1;
            return;
        };
        if self.mode == Mode::Stream && self.polled.is_some() && row.at > self.polled.plus(FUTURE_MAX) {
            self.counters.future += 1;
            return;
        }
        self.counters.observed += 1;
        self.flushed = false;
        for detector in &mut self.detectors {
            detector.observe(&row, &mut self.findings);
        }
        // An observer whose records come late lags behind in event time by what they may be late more than a sensor's.
        let reached = row.at.minus(tardiness(row.origin));
        let seen = self.observers.entry(name).or_insert(Observer { newest: reached, heard: Timestamp::NONE, fresh: true });
        seen.newest = seen.newest.max(reached);
        seen.fresh = true;
        if self.mode == Mode::Replay && self.counters.observed.is_multiple_of(REPLAY_STRETCH) {
            let reached = seen.newest;
            self.newest = std::mem::replace(&mut self.stretch_end, reached);
            self.advance();
        }
    }

    /// Closes what has ended, and hands over what was found since the last call. Call it a few times per second.
    ///
    /// Event time is that of the slowest observer heard of within twice the lateness. When none was, all windows close.
    pub fn poll(&mut self, now: Timestamp, out: &mut Vec<Finding>) {
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
        self.newest = self.observers.values().map(|observer| observer.newest).fold(self.newest, Timestamp::max);
        for detector in &mut self.detectors {
            detector.finish(&mut self.findings);
        }
        self.hand_over(out);
    }

    /// Hands over what was found so far in a replay, without closing anything.
    pub fn drain(&mut self, out: &mut Vec<Finding>) {
        self.hand_over(out);
    }

    /// All windows that ended at or before this are closed. The wall time when every observer is silent. Alerts close by it.
    pub fn watermark(&self) -> Timestamp {
        if self.observers.is_empty() && self.polled.is_some() { self.polled } else { self.newest.minus(self.lateness_max()) }
    }

    fn lateness_max(&self) -> Duration {
        self.detectors.iter().map(|detector| detector.lateness()).max().unwrap_or_default()
    }

    /// What happened to the records.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The account of each detector.
    pub fn states(&self) -> impl Iterator<Item = &State> {
        self.detectors.iter().map(|detector| detector.state())
    }

    fn advance(&mut self) {
        for detector in &mut self.detectors {
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
