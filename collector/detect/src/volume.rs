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
//! | who | the virtual machine at the source, by the last part of its name | the source address |
//! | observers | added up | kept apart, so that what two of them saw is not counted twice |
//! | aggregates of a full table | left out, as they are from exported flow logs | under the source prefix; under the source if it is one host |
//!
//! Only Traffic Analytics names virtual machines; its rows without one are dropped, as the KQL does. In rows of flow logs and
//! sensors the source address takes the machine's place.
//!
//! Innocent things that look alike: a nightly backup over a service that idles by day, an update. A steady transfer and a first
//! transfer stay silent: deviation `n - 1` is the most that one of `n` windows can reach.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use spanwatch_common::net::Address;
use spanwatch_common::text::protocol_name;
use spanwatch_common::time::Timestamp;

use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Stage, Subject, Variant, Window, clock_face, round2, service_name};
use crate::hash::{Map, table_bytes};
use crate::native::in_bytes;
use crate::row::{Part, Row};
use crate::rules::volumes::VolumeDeviation;
use crate::rules::{Common, Exclude, TimeAxis};
use crate::scan::ALL_BUT_TAILS;
use crate::snapshot::{Name, RestoreError, pack, unpack};
use crate::windows::{REPLAY_ROOM, Windows};
use crate::{Detector, Mode, State};

/// AZ-03 in one of its forms.
pub struct Volume {
    rule: Arc<RuleCard>,
    threshold: f64,
    octets_min: u64,
    look_back: Duration,
    time_axis: TimeAxis,
    exclude: Exclude,
    keys_max: usize,
    /// Windows remembered per key on average; beyond that, new ones are refused.
    windows_max: usize,
    windows: Windows<Key, Cell>,
    /// Closed windows per key.
    past: Map<Key, Past>,
    /// Closed windows of all keys together.
    past_windows: usize,
    /// In the keys of addresses that stand for themselves.
    nameless: Name,
    /// Short names of virtual machines by their full ones, so that a row needs no new text. Never more than `keys_max`.
    machines: Map<Arc<str>, Name>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Key {
    /// Observer in the fixed form, virtual machine in the exact one; empty where the address alone counts.
    name: Name,
    /// None for a virtual machine.
    host: Address,
    protocol: u8,
    port: u16,
    /// How many bits of `host` count, where it stands for all hosts of a prefix.
    #[serde(default)]
    prefix: Option<u8>,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { name, host, protocol, port, prefix } = self;
        name.hash(state);
        state.write_u128(host.0);
        // No prefix is so long.
        let prefix = prefix.unwrap_or(u8::MAX);
        state.write_u32(u32::from(*protocol) << 24 | u32::from(*port) << 8 | u32::from(prefix));
    }
}

/// One key in one open window.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Cell {
    octets: u64,
    first: Timestamp,
    last: Timestamp,
    /// Octets at which to tell next.
    tell_at: u64,
    told: bool,
}

/// The closed windows of one key, oldest first.
#[derive(Default, Serialize, Deserialize)]
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
    /// AZ-03 as `settings` say, in the form that `card` names.
    pub fn new(settings: &VolumeDeviation, card: RuleCard, mode: Mode) -> Self {
        let common = settings.common_settings();
        let room = if mode == Mode::Replay { REPLAY_ROOM } else { 1 };
        let keys_max = common.keys_max.saturating_mul(room);
        let windows_per_look_back = settings.look_back_secs.div_ceil(settings.window_secs) as usize + 1;
        Self {
            threshold: settings.threshold_means,
            octets_min: settings.octets_min,
            look_back: Duration::from_secs(settings.look_back_secs),
            time_axis: common.time_axis,
            keys_max,
            windows_max: keys_max.saturating_mul(windows_per_look_back),
            windows: Windows::new(common.window, common.lateness, common.keys_max, mode, Common::state(&card)),
            exclude: common.exclude,
            past: Map::default(),
            past_windows: 0,
            nameless: Name(Arc::from("")),
            machines: Map::default(),
            rule: Arc::new(card),
        }
    }

    /// The key under which `row` counts, if it does.
    fn key(&mut self, row: &Row) -> Option<Key> {
        let (name, host) = match self.rule.variant {
            Variant::Exact if row.part != Part::Tail => self.machine(row)?,
            Variant::Fixed if row.part == Part::Slice && !self.exclude.covers(row.source, row.destination, row.port) => {
                (Name(row.observer.clone()), row.source)
            }
            Variant::Exact | Variant::Fixed => return None,
        };
        Some(Key { name, host, protocol: row.protocol, port: row.port, prefix: row.source_prefix })
    }

    /// The virtual machine at the source, or the address in its place; none where Traffic Analytics names no machine.
    fn machine(&mut self, row: &Row) -> Option<(Name, Address)> {
        let Some(full) = row.context.as_ref().map(|context| &context.source_vm).filter(|name| !name.is_empty()) else {
            let stands_for_itself = row.source.is_some() && !row.origin.is_folded();
            return stands_for_itself.then(|| (self.nameless.clone(), row.source));
        };
        if let Some(name) = self.machines.get(full) {
            return Some((name.clone(), Address::NONE));
        }
        let short = Name(Arc::from(full.rsplit('/').next().unwrap_or(full)));
        if self.machines.len() < self.keys_max {
            self.machines.insert(full.clone(), short.clone());
        }
        (!short.0.is_empty()).then_some((short, Address::NONE))
    }

    /// Closes what can be closed, then lets the open cells with the least octets go, never one that could fire. Exact sums let
    /// nothing go.
    fn make_room(&mut self, findings: &mut Vec<Finding>) {
        while let Some((start, cells)) = self.windows.pop_for_room() {
            self.close(start, cells, findings);
        }
        let least = if self.rule.variant == Variant::Fixed { self.octets_min.saturating_sub(1) } else { 0 };
        self.windows.let_go(least, |cell| cell.octets);
    }

    fn close(&mut self, start: Timestamp, cells: Map<Key, Cell>, findings: &mut Vec<Finding>) {
        let range = start.floor(self.look_back);
        let older = |past: &Past| past.windows.front().is_some_and(|(first, _)| *first < range);
        if self.rule.variant == Variant::Exact && self.windows.mode() == Mode::Stream && self.past.values().any(older) {
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
                self.windows.state_mut().refused += 1;
                continue;
            }
            let past = self.past.entry(key.clone()).or_default();
            past.windows.push_back((start, cell));
            past.octets += u128::from(cell.octets);
            self.past_windows += 1;
            if self.rule.variant == Variant::Fixed {
                self.past_windows -= past.forget_before(start.plus(self.windows.length()).minus(self.look_back));
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
                self.windows.state_mut().evicted += 1;
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
        let Key { name, host, protocol, port, prefix } = key;
        let who = match prefix {
            _ if !host.is_some() => name.0.to_string(),
            Some(bits) => format!("{host}/{bits}"),
            None => host.to_string(),
        };
        let threshold = if self.rule.variant == Variant::Fixed { self.threshold } else { 0.0 };
        let service = service_name(*protocol, *port);
        Finding {
            sentence: format!(
                "{who} exchanged {} over {service} in the {} s from {}, {:.1} times its mean of {}",
                in_bytes(cell.octets as f64),
                self.windows.length().as_secs(),
                clock_face(start),
                cell.octets as f64 / mean,
                in_bytes(mean),
            ),
            rule: self.rule.clone(),
            stage,
            subject: match self.rule.variant {
                Variant::Exact => {
                    Subject { vm: Some(who), service: Some(format!("{}{port}", protocol_name(*protocol))), ..Subject::default() }
                }
                Variant::Fixed => {
                    let subject = Subject::host(*host).with_protocol(*protocol).with_port(*port);
                    Subject { observer: Some(name.0.to_string()), ..subject }
                }
            },
            window: Window { start, end: start.plus(self.windows.length()) },
            first: cell.first,
            last: cell.last,
            evidence: Evidence {
                value,
                threshold,
                unit: "means off the mean".to_owned(),
                octets: Some(cell.octets),
                mean_octets: Some(round2(mean)),
                services: vec![service],
                observers: match self.rule.variant {
                    Variant::Exact => Vec::new(),
                    Variant::Fixed => vec![name.0.to_string()],
                },
                ..Evidence::default()
            },
            score: if threshold > 0.0 { round2(value / threshold) } else { value },
            confidence: self.rule.variant.confidence(),
            advice: String::new(),
        }
    }
}

impl Detector for Volume {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let Some(key) = self.key(row) else { return };
        let at = self.time_axis.of(row);
        let Some(start) = self.windows.place(at) else { return };
        if self.windows.needs_room(start, &key) {
            self.make_room(findings);
            if self.windows.is_closed(start) {
                self.windows.state_mut().late += 1;
                return;
            }
        }
        let octets_min = self.octets_min;
        let fresh = || Cell { octets: 0, first: at, last: at, tell_at: octets_min, told: false };
        let Some(cell) = self.windows.entry(start, key, fresh) else { return };
        cell.octets = cell.octets.saturating_add(row.octets_total());
        cell.first = cell.first.min(at);
        cell.last = cell.last.max(at);
        let so_far = *cell;
        // A volume only grows, so what deviates upwards before the window closes will have deviated when it does.
        if self.windows.mode() == Mode::Stream && self.rule.variant == Variant::Fixed && so_far.octets >= so_far.tell_at {
            // Made again, because a copy of every row's key would cost more.
            let Some(key) = self.key(row) else { return };
            let (octets, windows) = self.past.get(&key).map_or((0, 0), |past| (past.octets, past.windows.len()));
            let mean = (octets + u128::from(so_far.octets)) as f64 / (windows + 1) as f64;
            let stage = if so_far.told { Stage::Grown } else { Stage::Crossed };
            if let Some(finding) = self.judge(&key, &so_far, start, mean, stage) {
                findings.push(finding);
                if let Some(cell) = self.windows.get_mut(start, &key) {
                    cell.told = true;
                    cell.tell_at = so_far.octets.saturating_mul(2);
                }
            }
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        self.windows.reach(newest);
        while let Some((start, cells)) = self.windows.pop_due() {
            self.close(start, cells, findings);
        }
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        while let Some((start, cells)) = self.windows.pop_first() {
            self.close(start, cells, findings);
        }
    }

    fn finish(&mut self, findings: &mut Vec<Finding>) {
        self.flush(findings);
        self.report_range(findings);
    }

    fn interest(&self) -> Interest {
        match self.rule.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => Interest::only(Facts::SLICE),
        }
    }

    fn adds_up(&self) -> bool {
        self.rule.variant == Variant::Fixed
    }

    fn state(&self) -> &State {
        self.windows.state()
    }

    fn weigh(&mut self) {
        let windows: usize = self.past.values().map(|past| past.windows.capacity() * size_of::<(Timestamp, Cell)>()).sum();
        self.windows.weigh(|_| 0, table_bytes(&self.past) + windows + table_bytes(&self.machines));
    }

    fn lateness(&self) -> Duration {
        self.windows.lateness()
    }

    fn snapshot(&self) -> Vec<u8> {
        pack(&(ByteBuf::from(self.windows.snapshot()), &self.past))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let (windows, past): (ByteBuf, Map<Key, Past>) = unpack(bytes)?;
        self.windows.restore(&windows)?;
        self.past_windows = past.values().map(|past| past.windows.len()).sum();
        self.past = past;
        Ok(())
    }
}
