//! AZ-04: a source speaks to very many hosts.
//!
//! | | exact (the public workbook) | fixed |
//! | --- | --- | --- |
//! | answers | every five minutes of the five sources with most destinations overall: a chart, not an alarm | windows above `threshold_hosts` and far above what the source does usually |
//! | over | the whole range: all data in a replay, each look-back period in a stream | the source's windows of the look-back before |
//!
//! Of sources with equally many destinations, the one with the smaller address comes first (KQL leaves it open).
//!
//! Innocent things that look alike in the fixed form: a deployment, the first contact of a new monitoring system, a file-sharing
//! client. A resolver, a proxy or a browser that always speaks to many stays silent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::card::Card;
use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Stage, Subject, Variant, Window, clock_face, round2};
use crate::hash::{Map, table_bytes};
use crate::row::{Part, Row};
use crate::rules::{Common, Exclude, TimeAxis};
use crate::scan::{ALL_BUT_TAILS, is_countable};
use crate::snapshot::{RestoreError, pack, unpack};
use crate::windows::Windows;
use crate::{Detector, Mode, State};

/// The workbook draws so many sources.
const SOURCES_DRAWN: usize = 5;
/// The workbook counts sets, which are exact.
const EXACT_HOSTS_MAX: usize = 16_384;
/// A source is compared with itself only after so many windows.
const WINDOWS_MIN: u32 = 3;
/// A century: all data in one range.
const WHOLE: Duration = Duration::from_secs(100 * 365 * 86_400);

/// AZ-04 in one of its forms.
pub(crate) struct FanOut {
    rule: Arc<RuleCard>,
    exclude: Exclude,
    time_axis: TimeAxis,
    /// Length of a slot.
    slot: Duration,
    threshold: u64,
    threshold_factor: f64,
    look_back: Duration,
    keys_max: usize,
    /// Hosts per source and slot. The exact form's windows are ranges of many slots, the fixed form's are the slots.
    windows: Windows<SourceSlot, Reached>,
    /// The fixed form: what each source did in the windows before.
    usual: Map<u128, Usual>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct SourceSlot {
    source: u128,
    slot: Timestamp,
}

/// What a source did in one slot.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Reached {
    hosts: Card,
    first: Timestamp,
    last: Timestamp,
}

/// What a source did in its earlier windows, halved when it gets long ago.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Usual {
    windows: u32,
    hosts: u64,
    last: Timestamp,
}

/// Settings of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) threshold_hosts: u64,
    pub(crate) threshold_factor: f64,
    pub(crate) look_back: Duration,
}

impl FanOut {
    pub(crate) fn new(limits: Limits, card: RuleCard, common: &Common, mode: Mode) -> Self {
        let length = match (card.variant, mode) {
            (Variant::Fixed, _) => common.window,
            (Variant::Exact, Mode::Stream) => limits.look_back,
            (Variant::Exact, Mode::Replay) => WHOLE,
        };
        Self {
            exclude: common.exclude.clone(),
            time_axis: common.time_axis,
            slot: common.window,
            threshold: limits.threshold_hosts,
            threshold_factor: limits.threshold_factor,
            look_back: limits.look_back,
            keys_max: common.keys_max,
            windows: Windows::new(length, common.lateness, common.keys_max, mode, Common::state(&card)),
            usual: Map::default(),
            rule: Arc::new(card),
        }
    }

    fn counts(&self, row: &Row) -> bool {
        match self.rule.variant {
            Variant::Exact => row.part != Part::Tail && row.source.is_some() && row.destination.is_some(),
            Variant::Fixed => row.part != Part::Tail && is_countable(row, &self.exclude),
        }
    }

    fn close(&mut self, start: Timestamp, slots: Map<SourceSlot, Reached>, findings: &mut Vec<Finding>) {
        let from = findings.len();
        match self.rule.variant {
            Variant::Exact => self.draw(slots, findings),
            Variant::Fixed => self.judge(start, slots, findings),
        }
        findings[from..].sort_by(Finding::order);
    }

    fn draw(&self, slots: Map<SourceSlot, Reached>, findings: &mut Vec<Finding>) {
        let mut sources: BTreeMap<u128, Vec<(Timestamp, Reached)>> = BTreeMap::new();
        for (SourceSlot { source, slot }, reached) in slots {
            sources.entry(source).or_default().push((slot, reached));
        }
        let overall = |slots: &[(Timestamp, Reached)]| {
            let mut all = Card::exact_to(EXACT_HOSTS_MAX);
            slots.iter().for_each(|(_, reached)| all.merge(&reached.hosts));
            all.count()
        };
        let mut widest: Vec<(std::cmp::Reverse<u64>, String, u128)> = sources
            .iter()
            .map(|(&source, slots)| (std::cmp::Reverse(overall(slots)), Address(source).to_string(), source))
            .collect();
        widest.sort();
        for (_, _, source) in widest.into_iter().take(SOURCES_DRAWN) {
            for (slot, reached) in sources.remove(&source).unwrap_or_default() {
                let sentence = format!(
                    "{} spoke to {} hosts in the {} s from {}",
                    Address(source),
                    reached.hosts.count(),
                    self.slot.as_secs(),
                    clock_face(slot)
                );
                findings.push(self.finding(Address(source), slot, &reached, 0.0, sentence));
            }
        }
    }

    fn judge(&mut self, start: Timestamp, slots: Map<SourceSlot, Reached>, findings: &mut Vec<Finding>) {
        for (SourceSlot { source, .. }, reached) in slots {
            let count = reached.hosts.count();
            let usual = self.usual.get(&source).copied().unwrap_or_default();
            let known = usual.windows >= WINDOWS_MIN && start.since(usual.last) <= self.look_back;
            let mean = usual.hosts as f64 / f64::from(usual.windows.max(1));
            if known && count > self.threshold && count as f64 > self.threshold_factor * mean {
                let sentence = format!(
                    "{} spoke to {count} hosts in the {} s from {}, {:.0} times its usual {mean:.0}",
                    Address(source),
                    self.slot.as_secs(),
                    clock_face(start),
                    count as f64 / mean.max(1.0),
                );
                findings.push(self.finding(Address(source), start, &reached, self.threshold as f64, sentence));
            }
            self.remember(source, start, count);
        }
    }

    fn remember(&mut self, source: u128, start: Timestamp, count: u64) {
        if self.usual.len() >= self.keys_max && !self.usual.contains_key(&source) {
            let mut ages: Vec<(Timestamp, u128)> = self.usual.iter().map(|(&source, usual)| (usual.last, source)).collect();
            ages.sort_unstable();
            ages.truncate(ages.len().div_ceil(8));
            self.windows.state_mut().evicted += ages.len() as u64;
            ages.iter().for_each(|(_, source)| {
                self.usual.remove(source);
            });
        }
        let windows_max = (self.look_back.as_secs() / self.slot.as_secs().max(1)).max(u64::from(WINDOWS_MIN)) as u32;
        let usual = self.usual.entry(source).or_default();
        if start.since(usual.last) > self.look_back {
            *usual = Usual::default();
        }
        if usual.windows >= windows_max {
            usual.windows /= 2;
            usual.hosts /= 2;
        }
        usual.windows += 1;
        usual.hosts += count;
        usual.last = start;
    }

    fn finding(&self, source: Address, slot: Timestamp, reached: &Reached, threshold: f64, sentence: String) -> Finding {
        let value = reached.hosts.count() as f64;
        Finding {
            rule: self.rule.clone(),
            stage: Stage::Closed,
            subject: Subject::host(source),
            window: Window { start: slot, end: slot.plus(self.slot) },
            first: reached.first,
            last: reached.last,
            evidence: Evidence {
                value,
                threshold,
                unit: "hosts".to_owned(),
                hosts: reached.hosts.examples().into_iter().map(Address).collect(),
                ..Evidence::default()
            },
            sentence,
            score: round2(value / threshold.max(1.0)),
            confidence: self.rule.variant.confidence(),
            advice: String::new(),
        }
    }

    fn make_room(&mut self, findings: &mut Vec<Finding>) {
        while let Some((start, slots)) = self.windows.pop_for_room() {
            self.close(start, slots, findings);
        }
        // A chart of the widest can do without sources that reached one host.
        let most = if self.rule.variant == Variant::Exact { 0 } else { self.threshold };
        self.windows.let_go(most, |reached| reached.hosts.count());
    }
}

impl Detector for FanOut {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        if !self.counts(row) {
            return;
        }
        let at = self.time_axis.of(row);
        let Some(start) = self.windows.place(at) else { return };
        let slot = if self.windows.length() == self.slot { start } else { at.floor(self.slot) };
        let key = SourceSlot { source: row.source.0, slot };
        if self.windows.needs_room(start, &key) {
            self.make_room(findings);
            if self.windows.is_closed(start) {
                self.windows.state_mut().late += 1;
                return;
            }
        }
        let exact = self.rule.variant == Variant::Exact;
        let fresh =
            || Reached { hosts: if exact { Card::exact_to(EXACT_HOSTS_MAX) } else { Card::default() }, first: at, last: at };
        let Some(reached) = self.windows.entry(start, key, fresh) else { return };
        reached.hosts.insert(row.destination.0);
        reached.first = reached.first.min(at);
        reached.last = reached.last.max(at);
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        self.windows.reach(newest);
        while let Some((start, slots)) = self.windows.pop_due() {
            self.close(start, slots, findings);
        }
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        // The range of the exact form goes on after a silence.
        if self.rule.variant == Variant::Fixed {
            self.finish(findings);
        }
    }

    fn finish(&mut self, findings: &mut Vec<Finding>) {
        while let Some((start, slots)) = self.windows.pop_first() {
            self.close(start, slots, findings);
        }
    }

    fn interest(&self) -> Interest {
        match self.rule.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => Interest::only(Facts::COUNTABLE).but_not(Facts::TAIL),
        }
    }

    fn state(&self) -> &State {
        self.windows.state()
    }

    fn weigh(&mut self) {
        let usual = table_bytes(&self.usual);
        self.windows.weigh(|reached| reached.hosts.size(), usual);
    }

    fn lateness(&self) -> Duration {
        self.windows.lateness()
    }

    fn snapshot(&self) -> Vec<u8> {
        pack(&(ByteBuf::from(self.windows.snapshot()), &self.usual))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let (windows, usual): (ByteBuf, Map<u128, Usual>) = unpack(bytes)?;
        self.windows.restore(&windows)?;
        self.usual = usual;
        Ok(())
    }
}
