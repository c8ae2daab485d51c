//! AZ-11 and AZ-12: a host calls out in a steady rhythm, as software does that waits for orders.
//!
//! Contacts are kept for each UTC day of event time (the public rules run daily over one day) and judged when it closes.
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | contacts | every row to a public IPv4 address but 169.254/16 and 127/8 | connections to addresses that are not private, each once |
//! | interval | to the source's next contact, to whatever destination, in whole seconds | to the next connection of the same source, destination, port and protocol |
//! | rhythm | the commonest interval of an hour has the share | intervals near the median of the day have the share |
//!
//! The exact form can see periods of 11 to 225 s only (AZ-12: 26 to 116 s), none with jitter, and none of a host that does anything
//! else meanwhile: detection.md §2.1. Rows of Traffic Analytics, in which connections are folded, have no rhythm for the fixed form.
//!
//! Innocent things that look alike: time servers, update checks, monitoring agents, telemetry. Exclude their destinations or ports.
//!
//! A contact takes 16 octets; at `contacts_max` of them new ones are refused and counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::flow::FlowState;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::counter::Key;
use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Stage, Subject, Variant, Window, clock_face, round2, service_name};
use crate::hash::Map;
use crate::row::{Part, Row};
use crate::rules::{Common, Exclude, TimeAxis};
use crate::scan::{ALL_BUT_TAILS, is_countable};
use crate::snapshot::RestoreError;
use crate::sweep::is_public_v4;
use crate::windows::{REPLAY_ROOM, Windows};
use crate::{Detector, Mode, State};

const SECOND: i64 = 1_000_000_000;
const HOUR: Duration = Duration::from_secs(3_600);
/// Rows of one source port that come closer than this, in nanoseconds, are the same moment seen twice.
const SAME_MOMENT: i64 = 2 * SECOND;

/// What the two rules differ in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    /// Intervals up to this many seconds do not count.
    pub(crate) gap_secs_ignored: u64,
    /// Fires above this many intervals.
    pub(crate) threshold_events: u64,
    /// Fires above this many equal intervals; the exact form only.
    pub(crate) threshold_modal: u64,
    /// Fires above this share, in percent.
    pub(crate) threshold_share: f64,
    /// Intervals off the median by this part of it still count; the fixed form only.
    pub(crate) jitter_max: f64,
    /// The rhythm lasts at least so long; the fixed form only.
    pub(crate) span_secs_min: u64,
    /// Contacts held at once.
    pub(crate) contacts_max: usize,
}

/// AZ-11 or AZ-12 in one of its forms.
pub(crate) struct Beacon {
    rule: Arc<RuleCard>,
    rhythm: Rhythm,
    exclude: Exclude,
    time_axis: TimeAxis,
    days: Windows<Key, Vec<Contact>>,
    contacts: usize,
    contacts_max: usize,
}

/// A row as far as a rhythm goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Contact {
    source_port: u16,
    at: i64,
    /// Number of the [`FlowState`].
    state: u8,
}

impl Beacon {
    pub(crate) fn new(rhythm: Rhythm, card: RuleCard, common: &Common, mode: Mode) -> Self {
        let room = if mode == Mode::Replay { REPLAY_ROOM } else { 1 };
        Self {
            contacts_max: rhythm.contacts_max.saturating_mul(room),
            rhythm,
            exclude: common.exclude.clone(),
            time_axis: common.time_axis,
            days: Windows::new(common.window, common.lateness, common.keys_max, mode, Common::state(&card)),
            contacts: 0,
            rule: Arc::new(card),
        }
    }

    fn key(&self, row: &Row) -> Option<Key> {
        if row.part == Part::Tail {
            return None;
        }
        let key = || Key { port: row.port, ..Key::of_pair(row) };
        match self.rule.variant {
            Variant::Exact => {
                let local = row.destination.as_v4().is_some_and(|v4| v4.is_link_local() || v4.is_loopback());
                (is_public_v4(row.destination) && !local).then(key)
            }
            Variant::Fixed => {
                let counts = !row.destination.is_private() && !row.origin.is_folded() && is_countable(row, &self.exclude);
                counts.then(|| Key { protocol: row.protocol, ..key() })
            }
        }
    }

    fn close(&mut self, day: Timestamp, keys: Map<Key, Vec<Contact>>, findings: &mut Vec<Finding>) {
        self.contacts -= keys.values().map(Vec::len).sum::<usize>();
        let from = findings.len();
        match self.rule.variant {
            Variant::Exact => self.judge_exactly(keys, findings),
            Variant::Fixed => {
                for (key, contacts) in keys {
                    findings.extend(self.judge(key, contacts, day));
                }
            }
        }
        findings[from..].sort_by(Finding::order);
    }

    /// As the KQL in design/kql/az11_az12_beacon.kql, step by step.
    fn judge_exactly(&self, keys: Map<Key, Vec<Contact>>, findings: &mut Vec<Finding>) {
        let mut sources: BTreeMap<u128, Vec<(i64, Key)>> = BTreeMap::new();
        for (key, contacts) in keys {
            sources.entry(key.source).or_default().extend(contacts.into_iter().map(|contact| (contact.at, key)));
        }
        // Intervals by destination, port and hour, and how often each was met.
        let mut hours: BTreeMap<(Key, Timestamp), BTreeMap<u64, u64>> = BTreeMap::new();
        for contacts in sources.values_mut() {
            // Addresses are text in KQL, and are put in order as text.
            let text = |key: &Key| key.destination().to_string();
            contacts.sort_by(|(a, x), (b, y)| {
                a.cmp(b).then_with(|| if x.destination == y.destination { x.port.cmp(&y.port) } else { text(x).cmp(&text(y)) })
            });
            for pair in contacts.windows(2) {
                let &[(at, key), (next, _)] = pair else { continue };
                let gap = (next.div_euclid(SECOND) - at.div_euclid(SECOND)).unsigned_abs();
                if gap > self.rhythm.gap_secs_ignored {
                    let hour = Timestamp::from_nanos(at).floor(HOUR);
                    *hours.entry((key, hour)).or_default().entry(gap).or_default() += 1;
                }
            }
        }
        for ((key, hour), gaps) in hours {
            let events: u64 = gaps.values().sum();
            // Of equally frequent intervals the largest: the last maximum.
            let Some((&gap, &modal)) = gaps.iter().max_by_key(|(_, n)| **n) else { continue };
            let share = 100.0 * modal as f64 / events as f64;
            let rhythm = &self.rhythm;
            if events > rhythm.threshold_events && modal > rhythm.threshold_modal && share > rhythm.threshold_share {
                let window = Window { start: hour, end: hour.plus(HOUR) };
                let sentence = format!(
                    "{} called {} port {} {events} times in the hour from {}; {modal} times the next contact came after {gap} s",
                    key.source(),
                    key.destination(),
                    key.port,
                    clock_face(hour),
                );
                let subject = Subject::pair(key.source(), key.destination()).with_port(key.port);
                findings.push(self.finding(subject, window, (window.start, window.end), share, sentence));
            }
        }
    }

    fn judge(&self, key: Key, contacts: Vec<Contact>, day: Timestamp) -> Option<Finding> {
        let rhythm = &self.rhythm;
        if contacts.len() as u64 <= rhythm.threshold_events {
            return None;
        }
        let starts = connections(contacts);
        let gaps: Vec<i64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let (&first, &last) = (starts.first()?, starts.last()?);
        if gaps.len() as u64 <= rhythm.threshold_events || last - first < secs(rhythm.span_secs_min) {
            return None;
        }
        let mut sorted = gaps.clone();
        sorted.sort_unstable();
        let median = sorted[sorted.len() / 2];
        if median <= secs(rhythm.gap_secs_ignored) {
            return None;
        }
        let near = gaps.iter().filter(|&&gap| ((gap - median).abs() as f64) <= rhythm.jitter_max * median as f64).count();
        let share = 100.0 * near as f64 / gaps.len() as f64;
        if share <= rhythm.threshold_share {
            return None;
        }
        let (source, destination, service) = (key.source(), key.destination(), service_name(key.protocol, key.port));
        let sentence = format!(
            "{source} called {destination} {service} {} times from {} to {}, about every {} s; {share:.0} % of the intervals keep to that",
            starts.len(),
            clock_face(Timestamp::from_nanos(first)),
            clock_face(Timestamp::from_nanos(last)),
            (median + SECOND / 2) / SECOND,
        );
        let subject = Subject::pair(source, destination).with_port(key.port).with_protocol(key.protocol);
        let window = Window { start: day, end: day.plus(self.days.length()) };
        let times = (Timestamp::from_nanos(first), Timestamp::from_nanos(last));
        Some(self.finding(subject, window, times, share, sentence))
    }

    fn finding(&self, subject: Subject, window: Window, times: (Timestamp, Timestamp), share: f64, sentence: String) -> Finding {
        let hosts: Vec<Address> = subject.destination.into_iter().collect();
        Finding {
            rule: self.rule.clone(),
            stage: Stage::Closed,
            subject,
            window,
            first: times.0,
            last: times.1,
            evidence: Evidence {
                value: share,
                threshold: self.rhythm.threshold_share,
                unit: "% equal intervals".to_owned(),
                hosts,
                ..Evidence::default()
            },
            sentence,
            score: round2(share / self.rhythm.threshold_share.max(1.0)),
            confidence: self.rule.variant.confidence(),
            advice: String::new(),
        }
    }

    fn make_room(&mut self, findings: &mut Vec<Finding>) {
        while let Some((day, keys)) = self.days.pop_for_room() {
            self.close(day, keys, findings);
        }
        // The exact form needs every contact. The fixed one can do without those that cannot be a rhythm yet.
        if self.rule.variant == Variant::Fixed {
            self.days.let_go(self.rhythm.threshold_events, |contacts| contacts.len() as u64);
            self.contacts = self.days.values().map(Vec::len).sum();
        } else {
            self.days.let_go(0, |contacts| contacts.len() as u64);
        }
    }
}

const fn secs(secs: u64) -> i64 {
    secs.cast_signed().saturating_mul(SECOND)
}

/// When connections began, ascending. Later rows of a connection, and rows of a second network interface, begin none.
fn connections(mut contacts: Vec<Contact>) -> Vec<i64> {
    contacts.sort_unstable();
    let mut starts = Vec::new();
    let mut before: Option<Contact> = None;
    // Whether a connection from this source port is under way.
    let mut open = false;
    for contact in contacts {
        let before = before.replace(contact).filter(|before| before.source_port == contact.source_port);
        let elsewhere = before.is_none();
        let moment_later = before.is_none_or(|before| contact.at - before.at > SAME_MOMENT);
        let begins = contact.state == FlowState::Begin as u8;
        if elsewhere || moment_later && (begins || !open) {
            starts.push(contact.at);
        }
        open = contact.state != FlowState::End as u8;
    }
    starts.sort_unstable();
    starts
}

impl Detector for Beacon {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let Some(key) = self.key(row) else { return };
        let at = self.time_axis.of(row);
        let Some(day) = self.days.place(at) else { return };
        if self.days.needs_room(day, &key) {
            self.make_room(findings);
            if self.days.is_closed(day) {
                self.days.state_mut().late += 1;
                return;
            }
        }
        if self.contacts >= self.contacts_max {
            if let Some((ended, keys)) = self.days.pop_early() {
                self.close(ended, keys, findings);
            }
            if self.contacts >= self.contacts_max || self.days.is_closed(day) {
                self.days.state_mut().refused += 1;
                return;
            }
        }
        let Some(contacts) = self.days.entry(day, key, Vec::new) else { return };
        contacts.push(Contact { source_port: row.source_port, at: at.as_nanos(), state: row.state as u8 });
        self.contacts += 1;
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        self.days.reach(newest);
        while let Some((day, keys)) = self.days.pop_due() {
            self.close(day, keys, findings);
        }
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        // A day is judged as a whole: silence within it is no reason to judge half of it, unless the data ends here.
        if self.days.mode() == Mode::Replay {
            self.finish(findings);
        }
    }

    fn finish(&mut self, findings: &mut Vec<Finding>) {
        while let Some((day, keys)) = self.days.pop_first() {
            self.close(day, keys, findings);
        }
    }

    fn interest(&self) -> Interest {
        match self.rule.variant {
            Variant::Exact => ALL_BUT_TAILS.but_not(Facts::TO_PRIVATE),
            Variant::Fixed => Interest::only(Facts::COUNTABLE).but_not(Facts::TAIL.and(Facts::TO_PRIVATE).and(Facts::FOLDED)),
        }
    }

    fn state(&self) -> &State {
        self.days.state()
    }

    fn weigh(&mut self) {
        self.days.weigh(|contacts| contacts.capacity() * size_of::<Contact>(), 0);
    }

    fn lateness(&self) -> Duration {
        self.days.lateness()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.days.snapshot()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.days.restore(bytes)?;
        self.contacts = self.days.values().map(Vec::len).sum();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_begins_once() {
        let row = |source_port: u16, secs: i64, state: FlowState| Contact { source_port, at: secs * SECOND, state: state as u8 };
        use FlowState::{Begin, Continue, End};
        // A long connection, seen at two interfaces; a short one of which only the end is told; the first port used again.
        let rows = vec![
            row(40_000, 0, Begin),
            row(40_000, 1, Begin),
            row(40_000, 300, Continue),
            row(40_000, 301, Continue),
            row(40_000, 600, End),
            row(40_000, 601, End),
            row(40_001, 60, End),
            row(40_000, 900, Begin),
        ];
        assert_eq!(connections(rows), [0, 60 * SECOND, 900 * SECOND]);
    }
}
