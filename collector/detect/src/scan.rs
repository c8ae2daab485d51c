//! AZ-01 and AZ-02: one source tries many hosts, or many ports of one host.
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | who | private IPv4 to private IPv4 | any address but multicast, broadcast and what is excluded |
//! | what | TCP to ports below 10000 | TCP, UDP, SCTP; for AZ-01 also ping; every port |
//! | counts | every record, but the tail of a flow | contacts that came to nothing ([`Contact::Probe`]) |
//!
//! Innocent things that look alike: vulnerability scanners, monitoring of many dead hosts, load balancers that probe by connecting
//! and hanging up. An ACK-only scan is not counted: its records look like connections that began before the sensor did.
//!
//! Windows are epoch-aligned stretches of event time; each holds a [`Card`] per key until the watermark passes its end. At
//! `keys_max` keys the quietest are let go and counted; a key that is over the threshold stays.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::card::{Card, EXAMPLES_MAX, Least};
use super::finding::{Evidence, Finding, RuleCard, Stage, Subject, Variant, Window, clock_face, round2, service_name};
use super::row::{Contact, Part, Row};
use super::rules::{Exclude, HorizontalScan, VerticalScan, secs};
use super::{Detector, Mode, State};

/// Exact rules look at ports below this one.
const EXACT_PORT_END: u16 = 10_000;

/// Services named in a sentence.
const NAMED_MAX: usize = 5;

/// What is counted per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// Hosts, per source.
    Hosts,
    /// Ports, per source and destination.
    Ports,
}

/// AZ-01 or AZ-02 in one of its forms.
pub struct Scan {
    rule: Arc<RuleCard>,
    counted: Counted,
    threshold: u64,
    window: Duration,
    lateness: Duration,
    exclude: Exclude,
    keys_max: usize,
    /// Whether to tell before a window closes.
    early: bool,
    windows: BTreeMap<Timestamp, HashMap<Key, Tally>>,
    /// Windows that end at or before this time are closed for good.
    closed: Timestamp,
    /// Eviction found nothing to let go; no use trying again before a window closes.
    crowded: bool,
    state: State,
}

/// Source and, when ports are counted, destination.
type Key = (Address, Address);

/// What one key did in one window.
#[derive(Default)]
struct Tally {
    targets: Card,
    /// Services tried, while hosts are counted.
    services: Least,
    first: Timestamp,
    last: Timestamp,
    /// Count at which to tell next.
    tell_at: u64,
    told: bool,
    observers: Vec<Arc<str>>,
}

impl Scan {
    /// AZ-01 as `settings` say.
    pub fn horizontal(settings: &HorizontalScan, variant: Variant, mode: Mode) -> Self {
        let rule = RuleCard {
            id: "AZ-01",
            title: "Horizontal scan",
            variant,
            severity: settings.severity,
            attack: settings.attack.clone(),
        };
        let exclude = Exclude {
            sources: settings.exclude_sources.clone(),
            destinations: settings.exclude_destinations.clone(),
            ports: settings.exclude_ports.clone(),
        };
        Self {
            counted: Counted::Hosts,
            threshold: settings.threshold_hosts,
            window: secs(settings.window_secs),
            lateness: secs(settings.lateness_secs),
            exclude,
            keys_max: settings.keys_max,
            early: mode == Mode::Stream,
            windows: BTreeMap::new(),
            closed: Timestamp::from_nanos(i64::MIN),
            crowded: false,
            state: State::of(&rule),
            rule: Arc::new(rule),
        }
    }

    /// AZ-02 as `settings` say.
    pub fn vertical(settings: &VerticalScan, variant: Variant, mode: Mode) -> Self {
        let rule = RuleCard {
            id: "AZ-02",
            title: "Vertical scan",
            variant,
            severity: settings.severity,
            attack: settings.attack.clone(),
        };
        let exclude = Exclude {
            sources: settings.exclude_sources.clone(),
            destinations: settings.exclude_destinations.clone(),
            ports: settings.exclude_ports.clone(),
        };
        Self {
            counted: Counted::Ports,
            threshold: settings.threshold_ports,
            window: secs(settings.window_secs),
            lateness: secs(settings.lateness_secs),
            exclude,
            keys_max: settings.keys_max,
            early: mode == Mode::Stream,
            windows: BTreeMap::new(),
            closed: Timestamp::from_nanos(i64::MIN),
            crowded: false,
            state: State::of(&rule),
            rule: Arc::new(rule),
        }
    }

    /// Whether the rule looks at this record at all.
    fn counts(&self, row: &Row) -> bool {
        match self.rule.variant {
            Variant::Exact => {
                row.protocol == protocol::TCP
                    && row.part != Part::Tail
                    && row.port < EXACT_PORT_END
                    && row.source.is_private_v4()
                    && row.destination.is_private_v4()
            }
            Variant::Fixed => {
                row.contact == Contact::Probe
                    && !row.platform
                    && row.source != row.destination
                    && row.destination.is_some()
                    && !row.destination.is_multicast()
                    && (self.counted == Counted::Hosts || !matches!(row.protocol, protocol::ICMP | protocol::ICMPV6))
                    && !self.exclude.covers(row.source, row.destination, row.port)
            }
        }
    }

    /// Lets the quietest keys of all windows go until an eighth is free, never one that is over the threshold.
    fn make_room(&mut self) {
        let enough = self.keys_max - self.keys_max / 8;
        let mut quiet = 1;
        while self.state.keys > enough && quiet <= self.threshold {
            for tallies in self.windows.values_mut() {
                let before = tallies.len();
                tallies.retain(|_, tally| tally.targets.count() > quiet);
                self.state.evicted += (before - tallies.len()) as u64;
                self.state.keys -= before - tallies.len();
            }
            quiet += 1;
        }
        self.crowded = self.state.keys >= self.keys_max;
    }

    fn close_first(&mut self, findings: &mut Vec<Finding>) {
        let Some((start, tallies)) = self.windows.pop_first() else { return };
        self.state.keys -= tallies.len();
        self.crowded = false;
        let from = findings.len();
        let over = tallies.iter().filter(|(_, tally)| tally.targets.count() > self.threshold);
        findings.extend(over.map(|(key, tally)| self.finding(*key, tally, start, Stage::Closed)));
        findings[from..].sort_by(Finding::order);
    }

    fn finding(&self, key: Key, tally: &Tally, start: Timestamp, stage: Stage) -> Finding {
        let count = tally.targets.count();
        let mut evidence = Evidence {
            value: count as f64,
            threshold: self.threshold as f64,
            observers: tally.observers.iter().map(ToString::to_string).collect(),
            ..Evidence::default()
        };
        let subject = match self.counted {
            Counted::Hosts => {
                evidence.unit = "hosts".to_owned();
                evidence.hosts = tally.targets.examples().iter().map(|&host| Address(host)).collect();
                evidence.services = tally.services.values().iter().map(|&service| named(service)).collect();
                Subject::Host(key.0)
            }
            Counted::Ports => {
                evidence.unit = "ports".to_owned();
                evidence.services = tally.targets.examples().iter().map(|&service| named(service)).collect();
                Subject::Pair(key.0, key.1)
            }
        };
        Finding {
            sentence: self.sentence(key, count, start, &evidence),
            rule: self.rule.clone(),
            stage,
            subject,
            window: Window { start, end: start.plus(self.window) },
            first: tally.first,
            last: tally.last,
            score: round2(evidence.value / evidence.threshold),
            evidence,
        }
    }

    fn sentence(&self, (source, destination): Key, count: u64, start: Timestamp, evidence: &Evidence) -> String {
        let within = format!("in the {} s from {}", self.window.as_secs(), clock_face(start));
        let outcome = match self.rule.variant {
            Variant::Exact => "answered or not",
            Variant::Fixed => "and no conversation came of it",
        };
        let services = &evidence.services;
        match self.counted {
            Counted::Hosts if services.len() > NAMED_MAX => {
                format!("{source} tried {count} hosts on more than {NAMED_MAX} services {within}, {outcome}")
            }
            Counted::Hosts => format!("{source} tried {count} hosts on {} {within}, {outcome}", services.join(", ")),
            Counted::Ports => {
                let (few, more) = services.split_at(services.len().min(NAMED_MAX));
                let more = if more.is_empty() { "" } else { ", …" };
                format!("{source} tried {count} ports of {destination} {within}, {outcome}: {}{more}", few.join(", "))
            }
        }
    }
}

impl Detector for Scan {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        if !self.counts(row) {
            return;
        }
        let start = row.at.floor(self.window);
        if start.plus(self.window) <= self.closed {
            self.state.late += 1;
            return;
        }
        let service = u128::from(row.protocol) << 16 | u128::from(row.port);
        let (key, target) = match self.counted {
            Counted::Hosts => ((row.source, Address::NONE), row.destination.0),
            Counted::Ports => ((row.source, row.destination), service),
        };
        let known = self.windows.get(&start).is_some_and(|tallies| tallies.contains_key(&key));
        if !known {
            if self.state.keys >= self.keys_max && !self.crowded {
                self.make_room();
            }
            if self.state.keys >= self.keys_max {
                self.state.refused += 1;
                return;
            }
            self.state.keys += 1;
        }
        let tally = self.windows.entry(start).or_default().entry(key).or_insert_with(|| Tally {
            first: row.at,
            last: row.at,
            tell_at: self.threshold + 1,
            ..Tally::default()
        });
        tally.first = tally.first.min(row.at);
        tally.last = tally.last.max(row.at);
        if self.counted == Counted::Hosts {
            tally.services.insert(service);
        }
        if tally.observers.len() < EXAMPLES_MAX
            && let Err(place) = tally.observers.binary_search(&row.observer)
        {
            tally.observers.insert(place, row.observer.clone());
        }
        if tally.targets.insert(target) && self.early && tally.targets.count() >= tally.tell_at {
            let stage = if std::mem::replace(&mut tally.told, true) { Stage::Grown } else { Stage::Crossed };
            tally.tell_at = tally.targets.count() * 2;
            if let Some(tally) = self.windows.get(&start).and_then(|tallies| tallies.get(&key)) {
                findings.push(self.finding(key, tally, start, stage));
            }
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        let watermark = newest.minus(self.lateness);
        while self.windows.first_key_value().is_some_and(|(start, _)| start.plus(self.window) <= watermark) {
            self.close_first(findings);
        }
        self.closed = self.closed.max(watermark.floor(self.window));
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        while let Some((start, _)) = self.windows.first_key_value() {
            self.closed = self.closed.max(start.plus(self.window));
            self.close_first(findings);
        }
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        self.lateness
    }
}

fn named(service: u128) -> String {
    service_name((service >> 16) as u8, service as u16)
}
