//! Rules that count something per key and window: one engine for all of them, a [`Counting`] for each.
//!
//! Windows are epoch-aligned stretches of event time ([`Windows`]), also where the public rule runs on a schedule: each epoch bin
//! is judged once, over all rows in it. A stream tells when the threshold is crossed, when the count has doubled since, and when
//! the window closes; a replay only the last.
//!
//! At `keys_max` keys the quietest are let go and counted; a key that is over the threshold stays.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::card::{Card, Least};
use crate::finding::{Evidence, Finding, RuleCard, Severity, Stage, Subject, Window, clock_face, round2, service_name};
use crate::hash::Map;
use crate::row::Row;
use crate::rules::{Common, TimeAxis};
use crate::snapshot::{Names, RestoreError};
use crate::windows::Windows;
use crate::{Detector, Interest, Mode, State};

/// Services named in a sentence.
const NAMED_MAX: usize = 5;

/// Under what a row counts. Parts that a rule does not ask for are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Key {
    /// The initiator's address.
    pub(crate) source: u128,
    /// The responder's address.
    pub(crate) destination: u128,
    /// The responder's port.
    pub(crate) port: u16,
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// What else the rule tells apart, by a number of its own.
    pub(crate) facet: u8,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { source, destination, port, protocol, facet } = *self;
        state.write_u128(source);
        state.write_u128(destination);
        state.write_u32(u32::from(port) << 16 | u32::from(protocol) << 8 | u32::from(facet));
    }
}

impl Key {
    /// By initiator.
    pub(crate) fn of_source(row: &Row) -> Self {
        Self { source: row.source.0, ..Self::default() }
    }

    /// By initiator and responder.
    pub(crate) fn of_pair(row: &Row) -> Self {
        Self { destination: row.destination.0, ..Self::of_source(row) }
    }

    /// The initiator's address.
    pub(crate) const fn source(&self) -> Address {
        Address(self.source)
    }

    /// The responder's address.
    pub(crate) const fn destination(&self) -> Address {
        Address(self.destination)
    }
}

/// What a row adds under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// A value, counted once per window.
    Distinct(u128),
    /// So many.
    Sum(u64),
}

/// The threshold of a rule, as its settings say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// More than so many fire.
    Above(u64),
    /// So many fire.
    From(u64),
}

impl Limit {
    /// The number in the settings.
    pub(crate) const fn threshold(self) -> u64 {
        match self {
            Self::Above(threshold) | Self::From(threshold) => threshold,
        }
    }

    /// The smallest count that fires.
    pub(crate) const fn fires_from(self) -> u64 {
        match self {
            Self::Above(threshold) => threshold + 1,
            Self::From(threshold) => threshold,
        }
    }
}

/// What makes one counting rule.
pub(crate) trait Counting: Send + 'static {
    /// What it keeps per key beyond the count.
    type More: Clone + Default + Serialize + DeserializeOwned + Send;
    /// What is counted: `hosts`.
    const UNIT: &'static str;
    /// Whether a finding names services (protocol and port) that were tried.
    const NAMES_SERVICES: bool;
    /// Whether a finding names hosts that were tried.
    const NAMES_HOSTS: bool;

    /// See [`Detector::interest`].
    fn interest(&self) -> Interest {
        Interest::EVERYTHING
    }

    /// Key and count of a row; none if the rule does not look at it.
    fn count(&self, row: &Row) -> Option<(Key, Count)>;

    /// Keeps what is needed beyond the count; what is returned is added to the sum.
    fn note(&self, _row: &Row, _more: &mut Self::More) -> u64 {
        0
    }

    /// Memory that it takes beside itself, in octets.
    fn size(_more: &Self::More) -> usize {
        0
    }

    /// From which count on a key fires.
    fn limit(&self, key: &Key) -> Limit;

    /// The largest count that is below every threshold: a key with no more may be let go.
    fn quiet_max(&self) -> u64 {
        self.limit(&Key::default()).fires_from().saturating_sub(1)
    }

    /// The measured value as the rule reports it.
    fn value(&self, count: u64) -> f64 {
        count as f64
    }

    /// Whether a key that reached the threshold also meets the other conditions of the rule.
    fn confirms(&self, _key: &Key, _tally: &Tally<Self::More>) -> bool {
        true
    }

    /// Whether a window with so many keys that fire is told at all.
    fn tells(&self, _fired: usize) -> bool {
        true
    }

    /// Severity of a key, where it is not the rule's.
    fn severity(&self, _key: &Key) -> Option<Severity> {
        None
    }

    /// Whom a finding is about.
    fn subject(&self, key: &Key) -> Subject;

    /// What happened, for a person; `told` says the rest.
    fn sentence(&self, key: &Key, tally: &Tally<Self::More>, told: &Told<'_>) -> String;

    /// An empty counter of distinct values.
    fn card(&self) -> Card {
        Card::default()
    }
}

/// What a sentence may need besides key and tally.
pub(crate) struct Told<'a> {
    pub(crate) count: u64,
    /// `in the 60 s from 10:41:00 UTC`.
    pub(crate) within: String,
    /// Services that were tried, smallest first.
    pub(crate) services: &'a [String],
}

impl Told<'_> {
    /// `TCP/22, TCP/23, …`.
    pub(crate) fn services(&self) -> String {
        let (few, more) = self.services.split_at(self.services.len().min(NAMED_MAX));
        format!("{}{}", few.join(", "), if more.is_empty() { "" } else { ", …" })
    }
}

/// What one key did in one window: about 300 bytes, and 20 more for each distinct value up to a thousand, at most 20 KiB more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tally<M> {
    pub(crate) distinct: Card,
    pub(crate) sum: u64,
    pub(crate) more: M,
    services: Least,
    hosts: Least,
    observers: Names,
    first: Timestamp,
    last: Timestamp,
    /// Count at which to tell next.
    tell_at: u64,
    told: bool,
}

impl<M> Tally<M> {
    /// Different values and sums together; a rule has one or the other, or both where some rows stand for many.
    pub(crate) fn count(&self) -> u64 {
        self.distinct.count().saturating_add(self.sum)
    }

    /// Memory that it takes, without what `more` holds elsewhere.
    fn octets(&self) -> usize {
        size_of::<Self>() + self.distinct.size() + self.services.size() + self.hosts.size() + self.observers.size()
    }
}

/// A counting rule at work.
pub(crate) struct Counter<C: Counting> {
    rule: Arc<RuleCard>,
    counting: C,
    time_axis: TimeAxis,
    /// Tallies are boxed: they are large, and places of a table are empty or copied when it grows.
    windows: Windows<Key, Box<Tally<C::More>>>,
}

impl<C: Counting> Counter<C> {
    /// `counting` in the form that `card` says.
    pub(crate) fn boxed(counting: C, card: RuleCard, common: &Common, mode: Mode) -> Box<dyn Detector> {
        let windows = Windows::new(common.window, common.lateness, common.keys_max, mode, Common::state(&card));
        Box::new(Self { rule: Arc::new(card), counting, time_axis: common.time_axis, windows })
    }

    fn make_room(&mut self, findings: &mut Vec<Finding>) {
        while let Some((start, tallies)) = self.windows.pop_for_room() {
            self.close(start, &tallies, findings);
        }
        self.windows.let_go(self.counting.quiet_max(), |tally| tally.count());
    }

    fn close(&self, start: Timestamp, tallies: &Map<Key, Box<Tally<C::More>>>, findings: &mut Vec<Finding>) {
        let counting = &self.counting;
        let fires = |key: &Key, tally: &Tally<C::More>| {
            tally.count() >= counting.limit(key).fires_from() && counting.confirms(key, tally)
        };
        let over: Vec<_> = tallies.iter().filter(|(key, tally)| fires(key, tally)).collect();
        if counting.tells(over.len()) {
            let from = findings.len();
            findings.extend(over.into_iter().map(|(key, tally)| self.finding(key, tally, start, Stage::Closed)));
            findings[from..].sort_by(Finding::order);
        }
    }

    fn finding(&self, key: &Key, tally: &Tally<C::More>, start: Timestamp, stage: Stage) -> Finding {
        let count = tally.count();
        let named = |services: &Least| services.values().iter().map(|&service| named(service)).collect::<Vec<_>>();
        let evidence = Evidence {
            value: self.counting.value(count),
            threshold: self.counting.limit(key).threshold() as f64,
            unit: C::UNIT.to_owned(),
            hosts: tally.hosts.values().iter().map(|&host| Address(host)).collect(),
            services: named(&tally.services),
            observers: tally.observers.to_strings(),
            ..Evidence::default()
        };
        let within = format!("in the {} s from {}", self.windows.length().as_secs(), clock_face(start));
        let told = Told { count, within, services: &evidence.services };
        Finding {
            sentence: self.counting.sentence(key, tally, &told),
            rule: match self.counting.severity(key) {
                Some(severity) if severity != self.rule.severity => Arc::new(RuleCard { severity, ..(*self.rule).clone() }),
                _ => self.rule.clone(),
            },
            stage,
            subject: self.counting.subject(key),
            window: Window { start, end: start.plus(self.windows.length()) },
            first: tally.first,
            last: tally.last,
            score: round2(evidence.value / evidence.threshold.max(1.0)),
            confidence: self.rule.variant.confidence(),
            evidence,
            advice: String::new(),
        }
    }
}

impl<C: Counting> Detector for Counter<C> {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let Some((key, count)) = self.counting.count(row) else { return };
        let at = self.time_axis.of(row);
        let Some(start) = self.windows.place(at) else { return };
        if self.windows.needs_room(start, &key) {
            self.make_room(findings);
            if self.windows.is_closed(start) {
                self.windows.state_mut().late += 1;
                return;
            }
        }
        let counting = &self.counting;
        let fresh = || {
            Box::new(Tally {
                distinct: counting.card(),
                sum: 0,
                more: C::More::default(),
                services: Least::default(),
                hosts: Least::default(),
                observers: Names::default(),
                first: at,
                last: at,
                tell_at: counting.limit(&key).fires_from(),
                told: false,
            })
        };
        let Some(tally) = self.windows.entry(start, key, fresh) else { return };
        tally.first = tally.first.min(at);
        tally.last = tally.last.max(at);
        tally.observers.insert(&row.observer);
        if C::NAMES_SERVICES {
            tally.services.insert(service(row));
        }
        if C::NAMES_HOSTS {
            tally.hosts.insert(row.destination.0);
        }
        let noted = counting.note(row, &mut tally.more);
        tally.sum = tally.sum.saturating_add(noted);
        let changed = match count {
            Count::Distinct(value) => tally.distinct.insert(value),
            Count::Sum(more) => {
                tally.sum = tally.sum.saturating_add(more);
                more > 0
            }
        };
        let is_news = changed || noted > 0 || !tally.told && tally.count() >= tally.tell_at;
        // What is told only once a window is complete, or never alone, waits for its end.
        if is_news && self.windows.mode() == Mode::Stream && self.counting.tells(1) {
            self.tell_early(start, &key, findings);
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        self.windows.reach(newest);
        while let Some((start, tallies)) = self.windows.pop_due() {
            self.close(start, &tallies, findings);
        }
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        while let Some((start, tallies)) = self.windows.pop_first() {
            self.close(start, &tallies, findings);
        }
    }

    fn interest(&self) -> Interest {
        self.counting.interest()
    }

    fn state(&self) -> &State {
        self.windows.state()
    }

    fn weigh(&mut self) {
        self.windows.weigh(|tally| tally.octets() + C::size(&tally.more), 0);
    }

    fn lateness(&self) -> Duration {
        self.windows.lateness()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.windows.snapshot()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.windows.restore(bytes)
    }
}

impl<C: Counting> Counter<C> {
    fn tell_early(&mut self, start: Timestamp, key: &Key, findings: &mut Vec<Finding>) {
        let Some(tally) = self.windows.get_mut(start, key) else { return };
        if tally.count() < tally.tell_at || !self.counting.confirms(key, tally) {
            return;
        }
        let stage = if std::mem::replace(&mut tally.told, true) { Stage::Grown } else { Stage::Crossed };
        tally.tell_at = tally.count() * 2;
        let told = tally.clone();
        findings.push(self.finding(key, &told, start, stage));
    }
}

/// Protocol and port of the responder as one number.
pub(crate) fn service(row: &Row) -> u128 {
    u128::from(row.protocol) << 16 | u128::from(row.port)
}

/// `TCP/445` of the number that stands for it.
pub(crate) fn named(service: u128) -> String {
    service_name((service >> 16) as u8, service as u16)
}
