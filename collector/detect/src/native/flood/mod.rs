//! ND-07, ND-08 and ND-09: a host is sent more than it can take.
//!
//! | rule | what is measured, per victim and port | what makes it a flood |
//! | --- | --- | --- |
//! | ND-07 SYN flood | TCP connections asked for | hardly any is completed |
//! | ND-08 Amplification | octets that reflectors answer | nobody asked, or for a tenth at most |
//! | ND-09 Connection or packet flood | TCP connections that came about; UDP flows and datagrams; pings | many sources; datagrams hardly answered |
//!
//! All three: the rate over a few seconds (of what slices carry: over a minute) is above a floor and above what is usual of that service
//! ([`baseline`]). Only services that are busy enter the table at all ([`gate`]), so that for one that just entered it is known that
//! it was quiet before. In the first minutes of a detector nothing is known, and floors are higher.
//!
//! Flows that begin are counted when they are announced, so a flood is told within a second or two. What is known only from slices (many
//! packets of one flow, aggregates of a full table) is told when the minute is over.
//!
//! Innocent things that look alike: a load test (few sources, and its connections are completed), a scan (one try per port or host; ports
//! that are not busy by themselves are added up only if the sources are scattered), clients that come back after an outage (their
//! connections are completed), a resolver (it asks), one-way video (few sources).
//!
//! In the order of a row's way: [`measure`] what it adds · [`gate`] whether its service is busy · [`watched`] what that did of late, and whether
//! it is above its limit · [`sources`] who sends · `tell` the sentence.

mod baseline;
mod gate;
mod measure;
mod sources;
mod tell;
#[cfg(test)]
mod tests;
mod watched;

use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::flow::protocol;
use spanwatch_common::time::Timestamp;

use super::table::Table;
use crate::facts::{Facts, Interest};
use crate::finding::{Finding, RuleCard, Stage};
use crate::row::Row;
use crate::rules::{Common, Exclude};
use crate::scan::is_countable;
use crate::snapshot::{RestoreError, pack, unpack};
use crate::{Detector, Sharding, State};

use baseline::Baseline;
use gate::Gate;
pub(crate) use measure::Kind;
use measure::{Key, Measure};
use watched::{Minute, Peak, Watched};

const SECOND: i64 = 1_000_000_000;
/// Time does what it does by itself on multiples of so many seconds.
const EDGE: i64 = 10;
/// Shares of a floor that the gate counts in.
const GATE_UNITS: f64 = 1e6;
/// From this part of a floor within a second on, a service is watched.
const BUSY: f64 = 0.1;
/// Ports that are not busy by themselves are flooded if the sources are as scattered as so many.
const SCATTERED_MIN: f64 = 64.0;

/// Below these rates, per second, nothing is a flood.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Floors {
    /// TCP connections.
    pub(crate) connections: f64,
    /// What slices carry of TCP: packets.
    pub(crate) segments: f64,
    /// UDP flows.
    pub(crate) datagram_flows: f64,
    /// What slices carry of UDP: datagrams, or octets of answers.
    pub(crate) datagrams: f64,
    /// ICMP packets.
    pub(crate) pings: f64,
}

impl Floors {
    fn flows(&self, protocol: u8) -> f64 {
        match protocol {
            protocol::TCP => self.connections,
            protocol::UDP => self.datagram_flows,
            _ => self.pings,
        }
    }

    fn bulk(&self, protocol: u8) -> f64 {
        match protocol {
            protocol::TCP => self.segments,
            protocol::UDP => self.datagrams,
            _ => self.pings,
        }
    }
}

/// What the rule file says.
#[derive(Clone, Debug)]
pub(crate) struct FloodSettings {
    pub(crate) floors: Floors,
    /// How many times the usual.
    pub(crate) factor: f64,
    /// How many times floors are higher while nothing is known.
    pub(crate) cold_factor: f64,
    /// So long nothing is known, from the first row on.
    pub(crate) learning_secs: u64,
    /// What is usual forgets half in this time.
    pub(crate) half_life_secs: u64,
    /// A rate must be kept up for so long.
    pub(crate) sustain_secs: u64,
    /// Up to this part may come to something.
    pub(crate) good_share_max: f64,
    /// Fewer sources make a load test.
    pub(crate) sources_min: f64,
    /// What fewer sources send is a flood from so many times the limit on.
    pub(crate) few_sources_factor: f64,
}

/// When a rate of one protocol is a flood.
struct Limits<'a> {
    kind: &'a Kind,
    settings: &'a FloodSettings,
    protocol: u8,
    is_learned: bool,
    bin_weight: f64,
    minute_weight: f64,
}

impl Limits<'_> {
    fn of_flows(&self, usual: &Baseline) -> f64 {
        usual.limit(self.settings.floors.flows(self.protocol) * self.cold(), self.settings.factor, self.settings.factor)
    }

    fn of_bulk(&self, usual: &Baseline) -> f64 {
        usual.limit(self.settings.floors.bulk(self.protocol) * self.cold(), self.settings.factor, self.settings.factor)
    }

    fn cold(&self) -> f64 {
        if self.is_learned { 1.0 } else { self.settings.cold_factor }
    }

    /// Whether what is above its limit is a flood.
    fn confirm(&self, key: &Key, peak: &Peak, watched: &Watched) -> bool {
        let Some(sources) = watched.flood.as_ref().map(|flood| &flood.sources) else { return false };
        let scattered = |least: f64| sources.has_prefixes || sources.scatter() >= least;
        let useless = peak.good_share < self.settings.good_share_max;
        match self.kind {
            Kind::Reflection(_) => true,
            Kind::Syn => useless && (key.port != 0 || scattered(SCATTERED_MIN)),
            Kind::Load => match (key.protocol, peak.is_bulk) {
                (protocol::TCP, _) => {
                    peak.rate > peak.limit * self.settings.few_sources_factor || scattered(self.settings.sources_min)
                }
                (protocol::UDP, false) => useless && (key.port != 0 || scattered(SCATTERED_MIN)),
                (protocol::UDP, true) => useless && scattered(self.settings.sources_min),
                _ => true,
            },
        }
    }
}

/// One of the three rules at work.
pub(crate) struct Floods {
    rule: Arc<RuleCard>,
    kind: Kind,
    settings: FloodSettings,
    exclude: Exclude,
    keys_max: usize,
    lateness: Duration,
    bin_weight: f64,
    minute_weight: f64,
    gate: Gate,
    table: Table<Key, Watched>,
    /// When the first advance was, in seconds: from then on it is learned what is usual.
    began: Option<i64>,
    /// The last edge of event time, in [`EDGE`]s.
    edge: i64,
    state: State,
}

impl Floods {
    pub(crate) fn new(kind: Kind, settings: FloodSettings, card: RuleCard, common: &Common) -> Self {
        let half_life = settings.half_life_secs as f64;
        Self {
            state: Common::state(&card),
            rule: Arc::new(card),
            kind,
            exclude: common.exclude.clone(),
            keys_max: common.keys_max,
            lateness: common.lateness,
            bin_weight: baseline::weight(half_life / 10.0),
            minute_weight: baseline::weight(half_life / 60.0),
            settings,
            gate: Gate::default(),
            table: Table::default(),
            began: None,
            edge: 0,
        }
    }

    /// The key under which `measure` counts, and what the gate had counted of it before; none if it is not busy.
    fn place(&mut self, measure: &mut Measure, second: i64) -> Option<u32> {
        if self.table.contains(&measure.key) {
            return Some(0);
        }
        let floors = self.settings.floors;
        let (floor_flows, floor_bulk) = (floors.flows(measure.key.protocol), floors.bulk(measure.key.protocol));
        let share = f64::from(measure.count) / floor_flows.max(1.0) + measure.bulk as f64 / floor_bulk.max(1.0);
        let units = (share * GATE_UNITS).ceil() as u32;
        let mut extra = |key: &Key| {
            let total = self.gate.add(key, units, second);
            let before = f64::from(total.saturating_sub(units)) / GATE_UNITS * floor_flows;
            (f64::from(total) >= BUSY * GATE_UNITS).then_some(if measure.count > 0 { before as u32 } else { 0 })
        };
        if let Some(extra) = extra(&measure.key) {
            return Some(extra);
        }
        if !measure.any_port {
            return None;
        }
        measure.key.port = 0;
        if self.table.contains(&measure.key) { Some(0) } else { extra(&measure.key) }
    }

    fn limits(&self, protocol: u8, second: i64) -> Limits<'_> {
        let learning = self.settings.learning_secs.cast_signed();
        Limits {
            kind: &self.kind,
            settings: &self.settings,
            protocol,
            is_learned: self.began.is_some_and(|began| second - began >= learning),
            bin_weight: self.bin_weight,
            minute_weight: self.minute_weight,
        }
    }

    /// Tells the minutes of `key` that are over.
    fn close(&self, key: &Key, watched: &mut Watched, minutes: &[Minute], findings: &mut Vec<Finding>) {
        if let Some(flood) = &watched.flood {
            let peaks = minutes.iter().filter_map(|minute| Some((minute, minute.peak?)));
            findings.extend(peaks.map(|(minute, peak)| self.finding(key, watched, flood, minute, &peak, Stage::Closed)));
            watched.rest();
        }
    }

    /// What `second` does to every service.
    fn reach_all(&mut self, second: i64, findings: &mut Vec<Finding>) {
        let mut table = std::mem::take(&mut self.table);
        let from = findings.len();
        let mut floods = 0;
        table.retain(|key, watched| {
            let limits = self.limits(key.protocol, second);
            let minutes = watched.reach(second, &limits);
            let idle = watched.is_idle(second, &limits);
            if let Some(minutes) = minutes {
                self.close(key, watched, &minutes, findings);
            }
            floods += usize::from(watched.flood.is_some());
            !idle
        });
        findings[from..].sort_by(Finding::order);
        self.table = table;
        self.state.keys = self.table.len();
        let entry = size_of::<(Key, Watched)>() + 64;
        self.state.bytes = Gate::bytes() + self.table.len() * entry + floods * 8_192;
    }
}

impl Detector for Floods {
    fn interest(&self) -> Interest {
        let countable = Interest::only(Facts::COUNTABLE).but_not(Facts::FOLDED);
        match self.kind {
            Kind::Syn => countable.and(Facts::TCP),
            Kind::Reflection(_) => countable.and(Facts::UDP.and(Facts::SLICE)),
            Kind::Load => countable,
        }
    }

    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let Some(mut measure) = self.kind.measure(row) else { return };
        if !is_countable(row, &self.exclude) {
            return;
        }
        let second = row.at.as_nanos().div_euclid(SECOND);
        let Some(extra) = self.place(&mut measure, second) else { return };
        let key = measure.key;
        let is_settled = self.limits(key.protocol, second).is_learned;
        let mut table = std::mem::take(&mut self.table);
        let fresh = || Watched::new(second, is_settled);
        let watched = table.entry(key, self.keys_max, &mut self.state, Watched::weight, fresh);
        let limits = self.limits(key.protocol, second);
        if let Some(minutes) = watched.reach(second, &limits) {
            self.close(&key, watched, &minutes, findings);
        }
        match watched.add(&measure, extra, row, &limits) {
            Err(watched::Late) => self.state.late += 1,
            Ok(None) => {}
            Ok(Some(peak)) => {
                let told = watched.flood.as_ref().map_or(0.0, |flood| flood.told);
                if peak.rate >= told * 2.0 {
                    let stage = if told > 0.0 { Stage::Grown } else { Stage::Crossed };
                    if let (Some(minute), Some(flood)) = (watched.minute(second / 60), &watched.flood) {
                        findings.push(self.finding(&key, watched, flood, minute, &peak, stage));
                    }
                    if let Some(flood) = &mut watched.flood {
                        flood.told = peak.rate;
                    }
                }
            }
        }
        self.table = table;
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        let second = newest.as_nanos().div_euclid(SECOND);
        if second / EDGE > self.edge {
            self.edge = second / EDGE;
            self.began.get_or_insert(self.edge * EDGE);
            self.reach_all(self.edge * EDGE, findings);
        }
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        let mut table = std::mem::take(&mut self.table);
        let from = findings.len();
        for (key, watched) in table.iter_mut() {
            let minutes = watched.close_all(&self.limits(key.protocol, 0));
            self.close(key, watched, &minutes, findings);
        }
        findings[from..].sort_by(Finding::order);
        self.table = table;
    }

    fn wants_order(&self) -> bool {
        true
    }

    fn adds_up(&self) -> bool {
        true
    }

    fn sharding(&self) -> Sharding {
        // The victim of a reflector is who seems to have asked, or not.
        if matches!(self.kind, Kind::Reflection(_)) { Sharding::Whole } else { Sharding::Destination }
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        self.lateness
    }

    fn snapshot(&self) -> Vec<u8> {
        let State { late, evicted, refused, keys, bytes, .. } = self.state;
        pack(&(&self.gate, &self.table, self.began, self.edge, (late, evicted, refused, keys, bytes)))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        type Saved = (Gate, Table<Key, Watched>, Option<i64>, i64, (u64, u64, u64, usize, usize));
        let (gate, table, began, edge, (late, evicted, refused, keys, held)) = unpack::<Saved>(bytes)?;
        (self.gate, self.table, self.began, self.edge) = (gate, table, began, edge);
        self.state = State { late, evicted, refused, keys, bytes: held, ..self.state.clone() };
        Ok(())
    }
}
