//! ND-10: a host calls a service outside in a rhythm, jitter and missed calls allowed, as software does that waits for orders.
//!
//! Contacts are kept per source, destination, port and protocol, for the last day, at most the newest 512; judged at every full hour of
//! event time by [`rhythm::score`], together with how many other hosts call the same network there, and for how long this one has.
//! Told once in each day in which the threshold is reached, again when the contacts have doubled, and at the end of the day.
//!
//! Looked at are connections from the operator's sites to the outside. Folded rows of Traffic Analytics have no rhythm. A conversation
//! that stays open is one contact, however regularly it speaks.
//!
//! Innocent things that look alike: time servers (port 123 is excluded), update checks, telemetry, mail and cloud clients; most hosts
//! have them, which takes them below the threshold where there are ten hosts or more. Monitoring servers, backup servers and load
//! balancers are not looked at, nor are the questions of a resolver and the deliveries of a mail server, known by the many hosts they
//! go to. An agent that few hosts have is as regular as a beacon: exclude its destination.
//!
//! Memory: about 150 bytes per key, and 12 per contact. When full, an eighth goes: those with too few contacts for a rhythm before the
//! others, and those silent for longest first.

mod contacts;
pub mod rhythm;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::Direction;
use spanwatch_common::time::Timestamp;

use self::contacts::{Told, Track};
use self::rhythm::{Age, Contacts, HOSTS_MIN, Score, Standing, Weights};
use crate::counter::Key;
use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Stage, Subject, Window, clock_face, round2, service_name};
use crate::hash::Map;
use crate::native::{in_bytes, network};
use crate::roles::Role;
use crate::row::Row;
use crate::rules::rhythm::BeaconInRhythm;
use crate::rules::{Common, Exclude, Rule};
use crate::scan::is_countable;
use crate::sites::FlowClass;
use crate::snapshot::{RestoreError, pack, unpack};
use crate::{Detector, State};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// What was silent for longer is forgotten: without a rhythm, and with one.
const FORGOTTEN_AFTER: [Duration; 2] = [Duration::from_secs(26 * 3_600), Duration::from_secs(4 * 86_400)];
/// A destination is new for so long, where it was not called for as long before.
const NEW: Duration = Duration::from_secs(7 * 86_400);
const OLD: Duration = Duration::from_secs(30 * 86_400);
/// Rows are kept of what comes so close to the threshold.
const SUSPECT: f64 = 0.7;
/// Hosts with these roles call out in a rhythm all day.
const INNOCENT: [Role; 3] = [Role::Monitor, Role::Backup, Role::LoadBalancer];

/// Mail and names: who speaks these with more than so many hosts does it for others, and in their rhythm.
const RELAYED: [u16; 3] = [25, 53, 853];
const RELAY_PEERS: usize = 8;

/// ND-10.
pub(crate) struct Beacons {
    rule: Arc<RuleCard>,
    exclude: Exclude,
    threshold: f64,
    weights: Weights,
    lateness: Duration,
    keys_max: usize,
    contacts_max: usize,
    tracks: Map<Key, Track>,
    /// Of all tracks together.
    contacts: usize,
    /// Hour of the first row.
    began: Timestamp,
    /// The full hour that is judged next.
    edge: Timestamp,
    state: State,
}

/// Who calls which network at which port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    network: u128,
    port: u16,
    protocol: u8,
    source: u128,
}

impl Beacons {
    pub(crate) fn new(settings: &BeaconInRhythm, card: RuleCard) -> Self {
        let common = settings.common();
        let [interval, size, coverage, flatness] = settings.weights;
        Self {
            exclude: common.exclude,
            threshold: settings.threshold,
            weights: Weights { interval, size, coverage, flatness },
            lateness: common.lateness,
            keys_max: common.keys_max,
            contacts_max: settings.contacts_max,
            tracks: Map::default(),
            contacts: 0,
            began: Timestamp::NONE,
            edge: Timestamp::NONE,
            state: Common::state(&card),
            rule: Arc::new(card),
        }
    }

    fn is_candidate(&self, row: &Row) -> bool {
        row.direction == Direction::Outbound
            && row.class == FlowClass::External
            && !row.origin.is_folded()
            && !row.source_roles.has_any(&INNOCENT)
            && is_countable(row, &self.exclude)
    }

    /// Lets an eighth of the keys go, and as many more as it takes to have room for contacts.
    fn make_room(&mut self) {
        let mut keys: Vec<(bool, Timestamp, Key)> =
            self.tracks.iter().map(|(key, track)| (track.is_mature(), track.last, *key)).collect();
        keys.sort_unstable();
        let keys_enough = self.keys_max - self.keys_max / 8;
        let contacts_enough = self.contacts_max - self.contacts_max / 8;
        for (_, _, key) in keys {
            if self.tracks.len() <= keys_enough && self.contacts <= contacts_enough {
                break;
            }
            self.contacts -= self.tracks.remove(&key).map_or(0, |track| track.held());
            self.state.evicted += 1;
        }
    }

    /// Judges what is known of the day before `edge`, a full hour.
    fn judge(&mut self, edge: Timestamp, findings: &mut Vec<Finding>) {
        self.forget(edge);
        let from = findings.len();
        let window_start = edge.minus(Duration::from_nanos(1)).floor(DAY);
        let window = Window { start: window_start, end: window_start.plus(DAY) };
        let suspects: Vec<(Key, Score)> = self.suspects(edge);
        let calls = if suspects.is_empty() { Vec::new() } else { self.calls() };
        let hosts = calls.iter().map(|call| call.source).collect::<BTreeSet<u128>>().len();
        let mut relays: BTreeMap<(u128, u16), usize> = BTreeMap::new();
        for key in self.tracks.keys().filter(|key| !suspects.is_empty() && RELAYED.contains(&key.port)) {
            *relays.entry((key.source, key.port)).or_default() += 1;
        }
        for (key, score) in suspects {
            if relays.get(&(key.source, key.port)).is_some_and(|&peers| peers > RELAY_PEERS) {
                continue;
            }
            let callers = callers(&calls, &key);
            let age = self.tracks.get(&key).map_or(Age::Unknown, |track| self.age(track, edge));
            let prevalence = (hosts >= HOSTS_MIN).then(|| callers as f64 / hosts as f64);
            let total = score.with(Standing { prevalence, age });
            let Some(track) = self.tracks.get_mut(&key) else { continue };
            if total.total < self.threshold {
                continue;
            }
            let contacts: u32 = track.hours(edge).iter().sum();
            let stage = match track.told_in(window) {
                None => Stage::Crossed,
                Some(told) if edge == window.end && (told.contacts, told.score) != (contacts, total.total) => Stage::Closed,
                Some(told) if contacts >= told.contacts.saturating_mul(2) => Stage::Grown,
                Some(_) => continue,
            };
            track.told = Some(Told { window: window.start, contacts, score: total.total });
            let track = track.clone();
            findings.push(self.finding(&key, &track, (total, callers, hosts), (stage, window, edge)));
        }
        findings[from..].sort_by(Finding::order);
    }

    fn forget(&mut self, edge: Timestamp) {
        let mut gone = 0;
        let mut bytes = 0;
        self.tracks.retain(|_, track| {
            gone += track.forget_before_day(edge);
            let kept = edge.since(track.last) <= FORGOTTEN_AFTER[usize::from(track.is_mature())];
            gone += if kept { 0 } else { track.held() };
            bytes += if kept { size_of::<(Key, Track)>() + track.bytes() } else { 0 };
            kept
        });
        self.contacts -= gone;
        (self.state.keys, self.state.bytes) = (self.tracks.len(), bytes);
    }

    /// Those that are so close to the threshold that the standing of their destination can take them over it.
    fn suspects(&mut self, edge: Timestamp) -> Vec<(Key, Score)> {
        let mut suspects = Vec::new();
        for (key, track) in self.tracks.iter_mut().filter(|(_, track)| track.is_mature()) {
            let (starts, sizes) = track.series(edge);
            let hours = track.hours(edge);
            let score =
                rhythm::score(Contacts { starts: &starts, sizes: &sizes, hours: &hours }, Standing::default(), self.weights);
            if score.promise() >= self.threshold * SUSPECT {
                track.sightings.get_or_insert_default().forget_before(edge.minus(DAY).as_nanos());
            } else {
                track.sightings = None;
            }
            if score.base >= self.threshold * SUSPECT {
                suspects.push((*key, score));
            }
        }
        suspects.sort_unstable_by_key(|&(key, _)| key);
        suspects
    }

    /// Who calls what, in order.
    fn calls(&self) -> Vec<Call> {
        let call =
            |key: &Key| Call { network: network(key.destination()), port: key.port, protocol: key.protocol, source: key.source };
        let mut calls: Vec<Call> = self.tracks.keys().map(call).collect();
        calls.sort_unstable();
        calls.dedup();
        calls
    }

    fn age(&self, track: &Track, edge: Timestamp) -> Age {
        match edge.since(track.first) {
            age if age >= OLD => Age::Old,
            age if age <= NEW && track.first.since(self.began) >= NEW => Age::New,
            _ => Age::Unknown,
        }
    }

    fn finding(
        &self,
        key: &Key,
        track: &Track,
        (score, callers, hosts): (Score, usize, usize),
        (stage, window, edge): (Stage, Window, Timestamp),
    ) -> Finding {
        let (source, destination, service) = (key.source(), key.destination(), service_name(key.protocol, key.port));
        let hours = track.hours(edge);
        let contacts: u32 = hours.iter().sum();
        let stretch = 24 - hours.iter().position(|&count| count > 0).unwrap_or(0);
        let size =
            if score.octets > 0.0 { format!(", sending about {} each time", in_bytes(score.octets)) } else { String::new() };
        let others = match callers {
            _ if hosts < HOSTS_MIN => String::new(),
            1 => format!("; none of {} other hosts calls there", hosts - 1),
            _ => format!("; {callers} of {hosts} hosts call there"),
        };
        let rows = track.sightings.as_ref().map(|rows| rows.to_vec()).unwrap_or_default();
        Finding {
            rule: self.rule.clone(),
            stage,
            subject: Subject::pair(source, destination).with_port(key.port).with_protocol(key.protocol),
            window,
            first: track.first.max(window.start),
            last: track.last.min(edge),
            sentence: format!(
                "{source} called {destination} {service} {contacts} times in the {stretch} hours to {}, every {}{}{size}{others}",
                clock_face(edge),
                in_time(score.period_secs),
                give_or_take(score.jitter),
            ),
            advice: format!(
                "Find the program on {source} that calls {destination}; if it belongs there, put {destination} into exclude_destinations of ND-10"
            ),
            score: round2(score.total / self.threshold),
            // Some thirty contacts make a rhythm that chance does not.
            confidence: round2((0.5 + 0.4 * (f64::from(contacts) / 30.0).min(1.0)) * score.total.min(1.0)),
            evidence: Evidence {
                value: round2(score.total),
                threshold: self.threshold,
                unit: "likeness to a beacon, 0 to 1".to_owned(),
                attempts: Some(u64::from(contacts)),
                series: hours.map(f64::from).to_vec(),
                observers: rows.iter().map(|row| row.observer.clone()).collect::<BTreeSet<_>>().into_iter().take(20).collect(),
                rows,
                hosts: vec![destination],
                services: vec![service],
                ..Evidence::default()
            },
        }
    }
}

/// How many hosts call the network of `key` there.
fn callers(calls: &[Call], key: &Key) -> usize {
    let service = (network(key.destination()), key.port, key.protocol);
    let from = calls.partition_point(|call| (call.network, call.port, call.protocol) < service);
    calls[from..].partition_point(|call| (call.network, call.port, call.protocol) == service)
}

/// `45 s`, `5.0 min`, `1.5 h`.
fn in_time(secs: f64) -> String {
    match secs {
        secs if secs >= 5_400.0 => format!("{:.1} h", secs / 3_600.0),
        secs if secs >= 90.0 => format!("{:.1} min", secs / 60.0),
        secs if secs >= 10.0 => format!("{secs:.0} s"),
        _ => format!("{secs:.1} s"),
    }
}

fn give_or_take(jitter: f64) -> String {
    if jitter < 0.01 { String::new() } else { format!(" give or take {:.0} %", 100.0 * jitter) }
}

impl Detector for Beacons {
    fn interest(&self) -> Interest {
        Interest::only(Facts::COUNTABLE.and(Facts::EXTERNAL))
    }

    fn observe(&mut self, row: &Row, _findings: &mut Vec<Finding>) {
        if !self.is_candidate(row) {
            return;
        }
        if !self.edge.is_some() {
            self.began = row.at.floor(HOUR);
            self.edge = self.began.plus(HOUR);
        }
        if row.at.plus(HOUR) < self.edge {
            self.state.late += 1;
            return;
        }
        let key = Key { port: row.port, protocol: row.protocol, ..Key::of_pair(row) };
        let room = self.tracks.len() < self.keys_max && self.contacts < self.contacts_max;
        if !room && !self.tracks.contains_key(&key) {
            self.make_room();
        }
        let track = self.tracks.entry(key).or_insert_with(|| Track::new(row.at));
        let before = track.held();
        track.observe(row);
        self.contacts += track.held() - before;
        if let Some(rows) = &mut track.sightings {
            rows.insert(row);
        }
        self.state.keys = self.tracks.len();
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        if !self.edge.is_some() {
            return;
        }
        while newest >= self.edge.plus(self.lateness) {
            self.judge(self.edge, findings);
            // With nothing left to judge, the hours without traffic need not be walked through.
            let next = if self.tracks.is_empty() { newest.minus(self.lateness).floor(HOUR) } else { self.edge };
            self.edge = next.max(self.edge).plus(HOUR);
        }
    }

    fn flush(&mut self, _findings: &mut Vec<Finding>) {
        // Silence for a while is no reason to judge half an hour.
    }

    fn finish(&mut self, findings: &mut Vec<Finding>) {
        if self.edge.is_some() {
            self.judge(self.edge, findings);
            self.edge = self.edge.plus(HOUR);
        }
    }

    fn wants_order(&self) -> bool {
        true
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        self.lateness
    }

    fn snapshot(&self) -> Vec<u8> {
        let State { bytes, late, evicted, .. } = self.state;
        pack(&(&self.tracks, self.began, self.edge, (bytes, late, evicted)))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        type Held = (Map<Key, Track>, Timestamp, Timestamp, (usize, u64, u64));
        let (tracks, began, edge, (bytes, late, evicted)) = unpack::<Held>(bytes)?;
        self.contacts = tracks.values().map(Track::held).sum();
        self.state = State { keys: tracks.len(), bytes, late, evicted, ..self.state };
        (self.tracks, self.began, self.edge) = (tracks, began, edge);
        Ok(())
    }
}
