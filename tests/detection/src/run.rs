//! Records through detectors and alert book, as the collector does it, with the record's own time in place of the clock.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use spanwatch_alert::{Alert, AlertBook, Class};
use spanwatch_common::flow::{FlowRecord, FlowState};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_detect::rules::CATALOGUE;
use spanwatch_detect::{Detection, Finding, Mode, RuleFile, Sites};

use crate::ordinary;
use crate::truth::Attack;

/// From the making of a record at the sensor to its arrival at the collector.
const ON_THE_WAY: Duration = Duration::from_millis(150);
/// The collector polls five times a second. Where no second counts, a poll in five seconds says the same, and sooner for who waits.
const POLL: Duration = Duration::from_millis(200);
const POLL_SELDOM: Duration = Duration::from_secs(5);
/// An attack whose alert is due within so many seconds is polled for as the collector does.
const URGENT_SECS: f64 = 60.0;
const ALERTS_MAX: usize = 65_536;
/// Who sees everything.
const OBSERVER: &str = "plant1";
/// A rhythm takes so many contacts.
const RHYTHM_MIN: u32 = 6;

/// Source, destination and port.
pub(crate) type Caller = (Address, Address, u16);

/// A collector's detection, and what it told.
pub(crate) struct Session {
    detection: Detection,
    book: AlertBook,
    sites: Sites,
    findings: Vec<Finding>,
    events: Vec<Alert>,
    alerts: BTreeMap<String, Alert>,
    records: u64,
    next_poll: Timestamp,
    /// When every second counts.
    urgent: Vec<(Timestamp, Timestamp)>,
    /// How often an inside host opened a connection to one outside: who might have a rhythm.
    callers: HashMap<Caller, u32>,
}

/// What a run told.
pub(crate) struct Outcome {
    /// Each alert once, as it last was, with the time at which it was first told.
    pub(crate) alerts: Vec<Alert>,
    pub(crate) records: u64,
    /// Who called out often enough to have a rhythm.
    pub(crate) callers: Vec<Caller>,
    /// What each rule held at the end: id, keys, octets, let go.
    pub(crate) states: Vec<(String, usize, usize, u64)>,
}

/// What a session knew when it was killed.
#[cfg(test)]
pub(crate) struct Saved {
    detection: Vec<u8>,
    book: Vec<u8>,
    alerts: BTreeMap<String, Alert>,
    next_poll: Timestamp,
}

/// The shipped rules whose ids begin with `family`.
pub(crate) fn shipped(family: &str) -> anyhow::Result<RuleFile> {
    let mut rules = RuleFile::shipped().context("read the shipped rules")?;
    let ids: Vec<String> = CATALOGUE.iter().map(|entry| entry.id.to_owned()).filter(|id| id.starts_with(family)).collect();
    anyhow::ensure!(!ids.is_empty(), "no rule's id begins with {family:?}; write ND- or AZ-");
    rules.keep_only(&ids).map_err(anyhow::Error::msg)?;
    Ok(rules)
}

/// These rules, the sites and roles of the place.
fn detection(rules: &RuleFile, mode: Mode) -> anyhow::Result<Detection> {
    let sites = ordinary::sites().map_err(anyhow::Error::msg)?;
    let roles = ordinary::roles().map_err(anyhow::Error::msg)?;
    Ok(Detection::new(rules, mode).with_sites(sites).with_roles(roles))
}

impl Session {
    /// One that knows nothing yet. What `truth` says decides only how often is polled.
    pub(crate) fn new(rules: &RuleFile, truth: &[Attack]) -> anyhow::Result<Self> {
        let urgent = truth.iter().filter(|attack| attack.within_secs.is_some_and(|secs| secs <= URGENT_SECS));
        Ok(Self {
            detection: detection(rules, Mode::Stream)?,
            book: AlertBook::new(Class::Detection, ALERTS_MAX),
            sites: ordinary::sites().map_err(anyhow::Error::msg)?,
            findings: Vec::new(),
            events: Vec::new(),
            alerts: BTreeMap::new(),
            records: 0,
            next_poll: Timestamp::NONE,
            urgent: urgent
                .map(|attack| (attack.start().minus(POLL_SELDOM), attack.end().plus(Duration::from_secs(30))))
                .collect(),
            callers: HashMap::new(),
        })
    }

    /// The same, going on where another was killed.
    #[cfg(test)]
    pub(crate) fn resume(rules: &RuleFile, truth: &[Attack], saved: &Saved) -> anyhow::Result<Self> {
        let mut session = Self::new(rules, truth)?;
        let anew = session.detection.restore(&saved.detection)?;
        anyhow::ensure!(anew.is_empty(), "{} do not take their own state", anew.join(", "));
        session.book.resume(&saved.book)?;
        session.alerts = saved.alerts.clone();
        session.next_poll = saved.next_poll;
        Ok(session)
    }

    /// What it knows now.
    #[cfg(test)]
    pub(crate) fn save(&mut self) -> anyhow::Result<Saved> {
        let now = self.next_poll;
        self.poll(now);
        Ok(Saved {
            detection: self.detection.snapshot(),
            book: self.book.snapshot()?,
            alerts: self.alerts.clone(),
            next_poll: self.next_poll,
        })
    }

    /// A record that the sensor made at `made`.
    pub(crate) fn take(&mut self, made: Timestamp, record: &FlowRecord) {
        let now = made.plus(ON_THE_WAY);
        if !self.next_poll.is_some() {
            self.next_poll = now.floor(POLL).plus(POLL);
        }
        while self.next_poll <= now {
            let at = self.next_poll;
            self.poll(at);
            let urgent = self.urgent.iter().any(|&(from, until)| from <= at && at <= until);
            self.next_poll = at.plus(if urgent { POLL } else { POLL_SELDOM });
        }
        self.records += 1;
        if record.state == FlowState::Begin {
            self.note(record);
        }
        self.detection.observe(OBSERVER, record);
    }

    fn note(&mut self, record: &FlowRecord) {
        if self.sites.number(record.source).is_some() && self.sites.number(record.destination).is_none() {
            *self.callers.entry((record.source, record.destination, record.destination_port)).or_default() += 1;
        }
    }

    fn poll(&mut self, now: Timestamp) {
        self.detection.poll(now, &mut self.findings);
        for finding in self.findings.drain(..) {
            self.book.take(&finding, now, &mut self.events);
        }
        self.book.expire(self.detection.watermark(), now, &mut self.events);
        for event in self.events.drain(..) {
            self.alerts.insert(event.id.clone(), event);
        }
    }

    /// Everything told. The stream stops here; nothing is closed that time has not closed.
    pub(crate) fn end(mut self) -> Outcome {
        let now = self.next_poll;
        self.poll(now);
        for alert in self.book.alerts() {
            self.alerts.insert(alert.id.clone(), alert.clone());
        }
        let states =
            self.detection.states().map(|state| (state.rule.to_owned(), state.keys, state.bytes, state.evicted + state.refused));
        Outcome {
            states: states.collect(),
            alerts: self.alerts.into_values().collect(),
            records: self.records,
            callers: self.callers.into_iter().filter(|&(_, count)| count >= RHYTHM_MIN).map(|(caller, _)| caller).collect(),
        }
    }
}

/// All of `traffic` through one session.
pub(crate) fn stream(
    rules: &RuleFile,
    truth: &[Attack],
    traffic: impl Iterator<Item = (Timestamp, FlowRecord)>,
) -> anyhow::Result<Outcome> {
    let mut session = Session::new(rules, truth)?;
    for (made, record) in traffic {
        session.take(made, &record);
    }
    Ok(session.end())
}

/// All of `records` as a file that is replayed, in whatever order they come.
#[cfg(test)]
pub(crate) fn replay(rules: &RuleFile, records: impl Iterator<Item = FlowRecord>) -> anyhow::Result<Vec<Alert>> {
    let mut detection = detection(rules, Mode::Replay)?;
    let mut findings = Vec::new();
    for record in records {
        detection.observe(OBSERVER, &record);
    }
    detection.finish(&mut findings);
    findings.sort_by(Finding::order);
    let mut book = AlertBook::new(Class::Detection, ALERTS_MAX);
    let mut events = Vec::new();
    for finding in &findings {
        book.take(finding, finding.last, &mut events);
    }
    Ok(book.alerts().cloned().collect())
}
