//! AZ-03: a source moves far more over a service than it usually does.
//!
//! Per source and service (protocol and port of the responder), octets of both directions are summed in windows of five minutes.
//! A window's deviation is `round(abs(volume - mean) / mean, 2)` with the mean over the windows that had records at all: an
//! absent window is absent, not zero, as in KQL's `summarize`. A mean of zero has no deviation.
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | mean over | the whole range: all data in a replay, each look-back period in a stream | the windows of the look-back before and with this one |
//! | records | all but the tail of a flow; one that announces a flow makes a window of zero | those that carry counters |
//! | tells | the largest deviation above 0 of each key, when the range ends | each window upwards of both thresholds |
//! | observers | added up | kept apart, so that what two of them saw is not counted twice |
//!
//! Innocent things that look alike: a nightly backup over a service that idles by day, an update. A steady transfer and a first
//! transfer stay silent: deviation `n - 1` is the most that one of `n` windows can reach.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::finding::{Evidence, Finding, RuleCard, Stage, Subject, Variant, Window, clock_face, round2, service_name};
use super::row::{Part, Row};
use super::rules::{Exclude, VolumeDeviation, secs};
use super::{Detector, Mode, State};

/// AZ-03 in one of its forms.
pub struct Volume {
    rule: Arc<RuleCard>,
    threshold: f64,
    octets_min: u64,
    window: Duration,
    look_back: Duration,
    lateness: Duration,
    exclude: Exclude,
    keys_max: usize,
    /// Windows remembered per key on average; beyond that, new ones are refused.
    windows_max: usize,
    mode: Mode,
    open: BTreeMap<Timestamp, HashMap<Key, Cell>>,
    /// Closed windows per key.
    past: HashMap<Key, Past>,
    /// Closed windows of all keys together.
    past_windows: usize,
    /// Windows that end at or before this time are closed for good.
    closed: Timestamp,
    crowded: bool,
    /// Observer of the exact form's keys.
    everyone: Arc<str>,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    observer: Arc<str>,
    host: Address,
    protocol: u8,
    port: u16,
}

/// One key in one open window.
#[derive(Clone, Copy, Debug)]
struct Cell {
    octets: u64,
    first: Timestamp,
    last: Timestamp,
    /// Octets at which to tell next.
    tell_at: u64,
    told: bool,
}

/// The closed windows of one key, oldest first.
#[derive(Default)]
struct Past {
    windows: VecDeque<(Timestamp, Cell)>,
    octets: u128,
}

impl Past {
    fn forget_before(&mut self, horizon: Timestamp) -> usize {
        let before = self.windows.len();
        while let Some((start, cell)) = self.windows.front() {
            if *start >= horizon {
                break;
            }
            self.octets -= u128::from(cell.octets);
            self.windows.pop_front();
        }
        before - self.windows.len()
    }
}

/// KQL's `round(abs(volume - mean) / mean, 2)`; none for a mean of zero, where KQL's NaN passes no filter.
fn deviation(octets: u64, mean: f64) -> Option<f64> {
    (mean > 0.0).then(|| round2((octets as f64 - mean).abs() / mean))
}

impl Volume {
    /// AZ-03 as `settings` say.
    pub fn new(settings: &VolumeDeviation, variant: Variant, mode: Mode) -> Self {
        let rule = RuleCard {
            id: "AZ-03",
            title: "Volume deviation",
            variant,
            severity: settings.severity,
            attack: settings.attack.clone(),
        };
        let windows_per_look_back = settings.look_back_secs.div_ceil(settings.window_secs) as usize + 1;
        Self {
            threshold: settings.threshold_means,
            octets_min: settings.octets_min,
            window: secs(settings.window_secs),
            look_back: secs(settings.look_back_secs),
            lateness: secs(settings.lateness_secs),
            exclude: Exclude {
                sources: settings.exclude_sources.clone(),
                destinations: settings.exclude_destinations.clone(),
                ports: settings.exclude_ports.clone(),
            },
            keys_max: settings.keys_max,
            windows_max: settings.keys_max.saturating_mul(windows_per_look_back),
            mode,
            open: BTreeMap::new(),
            past: HashMap::new(),
            past_windows: 0,
            closed: Timestamp::from_nanos(i64::MIN),
            crowded: false,
            everyone: Arc::from(""),
            state: State::of(&rule),
            rule: Arc::new(rule),
        }
    }

    /// The key under which `row` counts, if it does.
    fn key(&self, row: &Row) -> Option<Key> {
        let observer = match self.rule.variant {
            Variant::Exact if row.part != Part::Tail && row.source.is_some() => self.everyone.clone(),
            Variant::Fixed if row.part == Part::Slice && !self.exclude.covers(row.source, row.destination, row.port) => {
                row.observer.clone()
            }
            Variant::Exact | Variant::Fixed => return None,
        };
        Some(Key { observer, host: row.source, protocol: row.protocol, port: row.port })
    }

    /// Lets the open cells with the least octets go until an eighth is free, never one that could fire. Exact sums let nothing go.
    fn make_room(&mut self) {
        let enough = self.keys_max - self.keys_max / 8;
        let mut little = 1_000;
        while self.rule.variant == Variant::Fixed && self.state.keys > enough && little < self.octets_min {
            for cells in self.open.values_mut() {
                let before = cells.len();
                cells.retain(|_, cell| cell.octets > little);
                self.state.evicted += (before - cells.len()) as u64;
                self.state.keys -= before - cells.len();
            }
            little *= 4;
        }
        self.crowded = self.state.keys >= self.keys_max;
    }

    fn close_first(&mut self, findings: &mut Vec<Finding>) {
        let Some((start, cells)) = self.open.pop_first() else { return };
        self.crowded = false;
        self.state.keys -= cells.len();
        let range = start.floor(self.look_back);
        let older = |past: &Past| past.windows.front().is_some_and(|(first, _)| *first < range);
        if self.rule.variant == Variant::Exact && self.mode == Mode::Stream && self.past.values().any(older) {
            self.report_range(findings);
        }
        let mut cells: Vec<(Key, Cell)> = cells.into_iter().collect();
        cells.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let from = findings.len();
        for (key, cell) in cells {
            if self.past_windows >= self.windows_max || (self.past.len() >= self.keys_max && !self.past.contains_key(&key)) {
                self.forget_silent();
            }
            if self.past_windows >= self.windows_max || (self.past.len() >= self.keys_max && !self.past.contains_key(&key)) {
                self.state.refused += 1;
                continue;
            }
            let past = self.past.entry(key.clone()).or_default();
            past.windows.push_back((start, cell));
            past.octets += u128::from(cell.octets);
            self.past_windows += 1;
            if self.rule.variant == Variant::Fixed {
                self.past_windows -= past.forget_before(start.plus(self.window).minus(self.look_back));
                let mean = past.octets as f64 / past.windows.len() as f64;
                if let Some(finding) = self.judge(&key, &cell, start, mean, Stage::Closed) {
                    findings.push(finding);
                }
            }
        }
        findings[from..].sort_by(Finding::order);
    }

    /// Forgets the eighth of the keys that were not heard of for longest. The exact form forgets nothing.
    fn forget_silent(&mut self) {
        if self.rule.variant == Variant::Exact {
            return;
        }
        let mut by_age: Vec<(Timestamp, Key)> = self
            .past
            .iter()
            .map(|(key, past)| (past.windows.back().map_or(Timestamp::NONE, |(start, _)| *start), key.clone()))
            .collect();
        by_age.sort_unstable();
        by_age.truncate(by_age.len().div_ceil(8));
        for (_, key) in by_age {
            if let Some(past) = self.past.remove(&key) {
                self.past_windows -= past.windows.len();
                self.state.evicted += 1;
            }
        }
    }

    /// The fixed form's decision.
    fn judge(&self, key: &Key, cell: &Cell, start: Timestamp, mean: f64, stage: Stage) -> Option<Finding> {
        let value = deviation(cell.octets, mean)?;
        let fires = cell.octets as f64 > mean && value >= self.threshold && cell.octets >= self.octets_min;
        fires.then(|| self.finding(key, cell, start, mean, value, stage))
    }

    /// The exact form's answer: the largest deviation of each key over the range, which then begins anew.
    fn report_range(&mut self, findings: &mut Vec<Finding>) {
        if self.rule.variant == Variant::Fixed {
            return;
        }
        let from = findings.len();
        for (key, past) in std::mem::take(&mut self.past) {
            let mean = past.octets as f64 / past.windows.len() as f64;
            let mut worst: Option<(f64, Timestamp, Cell)> = None;
            for (start, cell) in past.windows {
                if let Some(value) = deviation(cell.octets, mean).filter(|&value| worst.is_none_or(|(most, ..)| value > most)) {
                    worst = Some((value, start, cell));
                }
            }
            if let Some((value, start, cell)) = worst.filter(|&(value, ..)| value > 0.0) {
                findings.push(self.finding(&key, &cell, start, mean, value, Stage::Closed));
            }
        }
        self.past_windows = 0;
        findings[from..].sort_by(Finding::order);
    }

    fn finding(&self, key: &Key, cell: &Cell, start: Timestamp, mean: f64, value: f64, stage: Stage) -> Finding {
        let Key { observer, host, protocol, port } = key;
        let threshold = if self.rule.variant == Variant::Fixed { self.threshold } else { 0.0 };
        let service = service_name(*protocol, *port);
        Finding {
            sentence: format!(
                "{host} exchanged {} over {service} in the {} s from {}, {:.1} times its mean of {}",
                in_bytes(cell.octets as f64),
                self.window.as_secs(),
                clock_face(start),
                cell.octets as f64 / mean,
                in_bytes(mean),
            ),
            rule: self.rule.clone(),
            stage,
            subject: Subject::Service { host: *host, protocol: *protocol, port: *port, observer: observer.to_string() },
            window: Window { start, end: start.plus(self.window) },
            first: cell.first,
            last: cell.last,
            evidence: Evidence {
                value,
                threshold,
                unit: "means off the mean".to_owned(),
                octets: Some(cell.octets),
                mean_octets: Some(round2(mean)),
                services: vec![service],
                observers: Some(observer.to_string()).filter(|name| !name.is_empty()).into_iter().collect(),
                ..Evidence::default()
            },
            score: if threshold > 0.0 { round2(value / threshold) } else { value },
        }
    }
}

impl Detector for Volume {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let Some(key) = self.key(row) else { return };
        let start = row.at.floor(self.window);
        if start.plus(self.window) <= self.closed {
            self.state.late += 1;
            return;
        }
        let known = self.open.get(&start).is_some_and(|cells| cells.contains_key(&key));
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
        let fresh = Cell { octets: 0, first: row.at, last: row.at, tell_at: self.octets_min, told: false };
        let cell = self.open.entry(start).or_default().entry(key.clone()).or_insert(fresh);
        cell.octets = cell.octets.saturating_add(row.octets_total());
        cell.first = cell.first.min(row.at);
        cell.last = cell.last.max(row.at);
        // A volume only grows, so what deviates upwards before the window closes will have deviated when it does.
        if self.mode == Mode::Stream && self.rule.variant == Variant::Fixed && cell.octets >= cell.tell_at {
            let (octets, windows) = self.past.get(&key).map_or((0, 0), |past| (past.octets, past.windows.len()));
            let mean = (octets + u128::from(cell.octets)) as f64 / (windows + 1) as f64;
            let stage = if cell.told { Stage::Grown } else { Stage::Crossed };
            let so_far = *cell;
            if let Some(finding) = self.judge(&key, &so_far, start, mean, stage) {
                findings.push(finding);
                if let Some(cell) = self.open.get_mut(&start).and_then(|cells| cells.get_mut(&key)) {
                    cell.told = true;
                    cell.tell_at = so_far.octets.saturating_mul(2);
                }
            }
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        let watermark = newest.minus(self.lateness);
        while self.open.first_key_value().is_some_and(|(start, _)| start.plus(self.window) <= watermark) {
            self.close_first(findings);
        }
        self.closed = self.closed.max(watermark.floor(self.window));
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        while let Some((start, _)) = self.open.first_key_value() {
            self.closed = self.closed.max(start.plus(self.window));
            self.close_first(findings);
        }
    }

    fn finish(&mut self, findings: &mut Vec<Finding>) {
        self.flush(findings);
        self.report_range(findings);
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        self.lateness
    }
}

/// `812.4 MB`.
fn in_bytes(octets: f64) -> String {
    let (unit, name) = match octets {
        octets if octets >= 1e9 => (1e9, "GB"),
        octets if octets >= 1e6 => (1e6, "MB"),
        octets if octets >= 1e3 => (1e3, "kB"),
        _ => (1.0, "bytes"),
    };
    format!("{:.1} {name}", octets / unit)
}
