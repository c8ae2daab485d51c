//! ND-28: a host calls one endpoint again and again, and nobody ever answers.
//!
//! A scan fails at many endpoints; software that waits for its orders and has lost its server fails at one, hundreds of times. So does
//! software with a wrong setting, and which of them it is no flow tells; the sentence says both.
//!
//! Counted per source, destination and port: connections that failed, each once (a sensor's by the announcement, half a second after
//! the SYN; datagrams that a router or the host refused, at the end; a cloud's denials and silences), over the last ten minutes.
//! Silent if a conversation with the endpoint came about within a day ([`known`]), and for endpoints inside while the detector has not
//! watched for a day, or if they have failed for longer.
//!
//! Innocent things that look alike: a server that is down (it answered within the day), a firewall that forbids what many hosts try
//! (from `sources_max` sources on, nobody is blamed), monitoring (role), peers of a P2P network (role; and few tries each).

mod known;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::{Direction, Origin};
use spanwatch_common::flow::{FlowState, protocol};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::lasting::{Lasting, OpenWindow};
use super::sightings::Sightings;
use super::table::Table;
use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Stage, Subject, Window, clock_face, round2, service_name};
use crate::roles::Role;
use crate::row::{Outcome, Part, Row};
use crate::rules::{Common, Exclude};
use crate::scan::is_countable;
use crate::sites::FlowClass;
use crate::snapshot::{Names, RestoreError, pack, unpack};
use crate::{Detector, Sharding, State};

use known::{Conversations, Doorkeeper, number};

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;
/// Minutes over which failures are added up, and the window of its findings.
const MINUTES: i64 = 10;
/// Rows of a window may come so many seconds after it.
const LATENESS: i64 = 30;
/// Known for what looks like this.
const INNOCENT: [Role; 4] = [Role::Monitor, Role::Scanner, Role::PeerToPeer, Role::LoadBalancer];

/// Who calls whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Endpoint {
    source: u128,
    destination: u128,
    port: u16,
    protocol: u8,
}

/// What the rule file says.
#[derive(Clone, Debug)]
pub(crate) struct StormSettings {
    pub(crate) threshold_failures: u64,
    pub(crate) sources_max: usize,
}

/// The failures of one endpoint: about 250 bytes, and 4 KiB more when they are many.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Storm {
    /// By minute modulo [`MINUTES`]: those that nobody answered, and those that were refused.
    minutes: [[u32; 2]; MINUTES as usize],
    /// The newest minute.
    newest: i64,
    /// When the first failure was, and how many there were since.
    since: Timestamp,
    failures: u64,
    claim: Lasting,
    proof: Option<Box<Proof>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Proof {
    sightings: Sightings,
    observers: Names,
}

impl Storm {
    fn new(at: Timestamp) -> Self {
        Self {
            minutes: [[0; 2]; MINUTES as usize],
            newest: at.as_nanos() / SECOND / 60,
            since: at,
            failures: 0,
            claim: Lasting::default(),
            proof: None,
        }
    }

    /// Counts a failure; none if it came too late.
    fn add(&mut self, at: Timestamp, times: u32, refused: bool) -> Option<[u64; 2]> {
        let minute = at.as_nanos() / SECOND / 60;
        if minute <= self.newest - MINUTES {
            return None;
        }
        let from = (self.newest + 1).max(minute - MINUTES + 1);
        (from..=minute).for_each(|fresh| self.minutes[fresh.rem_euclid(MINUTES) as usize] = [0; 2]);
        self.newest = self.newest.max(minute);
        let slot = &mut self.minutes[minute.rem_euclid(MINUTES) as usize][usize::from(refused)];
        *slot = slot.saturating_add(times);
        self.failures += u64::from(times);
        self.since = self.since.min(at);
        let sum = |which: usize| self.minutes.iter().map(|slot| u64::from(slot[which])).sum();
        Some([sum(0), sum(1)])
    }
}

/// ND-28 at work.
pub(crate) struct Callbacks {
    rule: Arc<RuleCard>,
    settings: StormSettings,
    exclude: Exclude,
    keys_max: usize,
    lateness: Duration,
    conversations: Conversations,
    doorkeeper: Doorkeeper,
    storms: Table<Endpoint, Storm>,
    /// Who fails at a destination and port as often as half the threshold: at most one more than `sources_max`.
    crowds: Table<(u128, u16), Vec<u128>>,
    /// When the first advance was, in seconds.
    began: Option<i64>,
    /// The last minute that time has reached.
    edge: i64,
    state: State,
}

impl Callbacks {
    pub(crate) fn new(settings: StormSettings, card: RuleCard, common: &Common) -> Self {
        Self {
            state: Common::state(&card),
            rule: Arc::new(card),
            settings,
            exclude: common.exclude.clone(),
            keys_max: common.keys_max,
            lateness: common.lateness,
            conversations: Conversations::default(),
            doorkeeper: Doorkeeper::default(),
            storms: Table::default(),
            crowds: Table::default(),
            began: None,
            edge: 0,
        }
    }

    /// Another source that fails at the endpoint. Whether so many do that it is no secret of one host.
    fn is_crowd(&mut self, endpoint: &Endpoint) -> bool {
        let Self { crowds, keys_max, state, settings, .. } = self;
        let place = (endpoint.destination, endpoint.port);
        let sources = crowds.entry(place, *keys_max, state, |sources| sources.len() as u64, Vec::new);
        if sources.len() <= settings.sources_max && !sources.contains(&endpoint.source) {
            sources.push(endpoint.source);
        }
        sources.len() > settings.sources_max
    }

    /// A connection failed.
    fn fail(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let endpoint = endpoint(row);
        let number = number(&endpoint);
        let mut times = row.events.max(1);
        if !self.storms.contains(&endpoint) {
            if !self.doorkeeper.knows(number) && u64::from(times) < self.settings.threshold_failures {
                return;
            }
            // The first, which only the doorkeeper saw.
            times += 1;
        }
        let Self { storms, keys_max, state, .. } = self;
        storms.entry(endpoint, *keys_max, state, |storm| storm.failures, || Storm::new(row.at));
        let Some(mut storm) = self.storms.take(&endpoint) else { return };
        self.weigh(&endpoint, &mut storm, row, times, number, findings);
        self.storms.put(endpoint, storm);
    }

    /// What the failure makes of the storm.
    fn weigh(&mut self, endpoint: &Endpoint, storm: &mut Storm, row: &Row, times: u32, number: u64, findings: &mut Vec<Finding>) {
        let second = row.at.as_nanos() / SECOND;
        let refused = matches!(row.outcome, Outcome::Reset | Outcome::Unreachable | Outcome::Denied);
        let Some([silent, refused]) = storm.add(row.at, times, refused) else {
            self.state.late += 1;
            return;
        };
        let failures = silent + refused;
        if failures * 2 < self.settings.threshold_failures {
            return;
        }
        let proof = storm.proof.get_or_insert_default();
        proof.sightings.insert(row);
        proof.observers.insert(&row.observer);
        let is_outside = row.class == FlowClass::External;
        let is_new = second - storm.since.as_nanos() / SECOND < DAY;
        let has_watched = self.began.is_some_and(|began| second - began >= DAY);
        let blamed = (is_outside || has_watched && is_new) && !self.conversations.has(number, second);
        if !blamed || self.is_crowd(endpoint) || failures < self.settings.threshold_failures {
            return;
        }
        let window = second.div_euclid(MINUTES * 60);
        findings.extend(storm.claim.close_before(window).map(|ended| self.finding(endpoint, storm, &ended, Stage::Closed)));
        if let Some(stage) = storm.claim.raise(failures as f64, window, row.at) {
            findings.extend(storm.claim.open().map(|open| self.finding(endpoint, storm, open, stage)));
        }
    }

    fn finding(&self, endpoint: &Endpoint, storm: &Storm, window: &OpenWindow, stage: Stage) -> Finding {
        let Endpoint { port, protocol, .. } = *endpoint;
        let [source, destination] = [endpoint.source, endpoint.destination].map(Address);
        let service = service_name(protocol, port);
        let threshold = self.settings.threshold_failures as f64;
        let start = Timestamp::from_secs(window.number * MINUTES * 60);
        let sum = |which: usize| storm.minutes.iter().map(|slot| u64::from(slot[which])).sum::<u64>();
        let (silent, refused) = (sum(0), sum(1));
        let how = match (silent, refused) {
            (_, 0) => "nobody answered",
            (0, _) => "it was refused each time",
            _ => "nobody answered, or it was refused",
        };
        let course = (storm.newest - MINUTES + 1..=storm.newest).map(|minute| storm.minutes[minute.rem_euclid(MINUTES) as usize]);
        let proof = storm.proof.as_deref();
        Finding {
            rule: self.rule.clone(),
            stage,
            subject: Subject::pair(source, destination).with_port(port).with_protocol(protocol),
            window: Window { start, end: start.plus(Duration::from_secs(MINUTES as u64 * 60)) },
            first: window.first,
            last: window.last,
            sentence: format!(
                "{source} tried {} times within {MINUTES} minutes to reach {destination} on {service}, and {how}; it has failed {} times \
                 since {} and never came through within a day: malware that has lost its server does so, and so does a wrong setting",
                window.peak,
                storm.failures,
                clock_face(storm.since),
            ),
            advice: format!(
                "Find the program on {source} that calls {destination}: if nobody knows it, isolate the host; if somebody does, mend \
                 its setting, or exclude the destination."
            ),
            score: round2(window.peak / threshold),
            confidence: 0.6,
            evidence: Evidence {
                value: window.peak,
                threshold,
                unit: "failed connections".to_owned(),
                attempts: Some(storm.failures),
                failures: Some(storm.failures),
                series: course.map(|[silent, refused]| f64::from(silent) + f64::from(refused)).collect(),
                rows: proof.map(|proof| proof.sightings.to_vec()).unwrap_or_default(),
                hosts: vec![destination],
                services: vec![service],
                observers: proof.map(|proof| proof.observers.to_strings()).unwrap_or_default(),
                ..Evidence::default()
            },
        }
    }

    /// Tells the windows that ended before the one of `number`.
    fn close_before(&mut self, number: i64, findings: &mut Vec<Finding>) {
        let mut storms = std::mem::take(&mut self.storms);
        let from = findings.len();
        for (endpoint, storm) in storms.iter_mut() {
            findings.extend(storm.claim.close_before(number).map(|ended| self.finding(endpoint, storm, &ended, Stage::Closed)));
        }
        findings[from..].sort_by(Finding::order);
        self.storms = storms;
    }
}

fn endpoint(row: &Row) -> Endpoint {
    Endpoint { source: row.source.0, destination: row.destination.0, port: row.port, protocol: row.protocol }
}

/// What a row says of the one connection it counts.
enum Verdict {
    Failed,
    CameAbout,
    Nothing,
}

fn verdict(row: &Row) -> Verdict {
    let counts = match (row.origin, row.protocol) {
        (Origin::Sensor, protocol::TCP) => row.part == Part::Announcement,
        // An answer to a datagram is known when it came, a refusal at the end.
        (Origin::Sensor, protocol::UDP) => row.outcome == Outcome::Success || row.state == FlowState::End,
        (Origin::Sensor, _) => false,
        (_, protocol::TCP | protocol::UDP) => row.state == FlowState::End || row.outcome == Outcome::Denied,
        _ => false,
    };
    match row.outcome {
        _ if !counts => Verdict::Nothing,
        Outcome::Success => Verdict::CameAbout,
        Outcome::NoReply if row.protocol == protocol::UDP => Verdict::Nothing,
        outcome if outcome.is_failure() => Verdict::Failed,
        _ => Verdict::Nothing,
    }
}

impl Detector for Callbacks {
    fn interest(&self) -> Interest {
        Interest::only(Facts::COUNTABLE)
    }

    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        match verdict(row) {
            Verdict::Nothing => {}
            Verdict::CameAbout => self.conversations.insert(number(&endpoint(row)), row.at.as_nanos() / SECOND),
            Verdict::Failed => {
                let goes_out = row.class != FlowClass::External || row.direction == Direction::Outbound;
                if goes_out && is_countable(row, &self.exclude) && !row.source_roles.has_any(&INNOCENT) {
                    self.fail(row, findings);
                }
            }
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        let minute = newest.as_nanos() / SECOND / 60;
        if minute <= self.edge {
            return;
        }
        self.edge = minute;
        self.began.get_or_insert(minute * 60);
        self.close_before((minute * 60 - LATENESS).div_euclid(MINUTES * 60), findings);
        if minute % 60 == 0 {
            // After a day without a failure it begins anew.
            self.storms.retain(|_, storm| minute - storm.newest < DAY / 60);
            let Self { storms, crowds, .. } = self;
            crowds.retain(|&(destination, port), sources| {
                sources.retain(|&source| {
                    let endpoint = |protocol| Endpoint { source, destination, port, protocol };
                    storms.contains(&endpoint(protocol::TCP)) || storms.contains(&endpoint(protocol::UDP))
                });
                !sources.is_empty()
            });
        }
        self.state.keys = self.storms.len();
        let entries = self.storms.len() * (size_of::<(Endpoint, Storm)>() + 16) + self.crowds.len() * 128;
        self.state.bytes = self.conversations.bytes() + Doorkeeper::bytes() + entries;
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        self.close_before(i64::MAX, findings);
    }

    fn wants_order(&self) -> bool {
        true
    }

    fn sharding(&self) -> Sharding {
        // Who else fails at the same destination must be known.
        Sharding::Destination
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        self.lateness
    }

    fn snapshot(&self) -> Vec<u8> {
        let State { late, evicted, refused, keys, bytes, .. } = self.state;
        let counts = (late, evicted, refused, keys, bytes);
        pack(&(&self.conversations, &self.doorkeeper, &self.storms, &self.crowds, self.began, self.edge, counts))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        type Saved = (
            Conversations,
            Doorkeeper,
            Table<Endpoint, Storm>,
            Table<(u128, u16), Vec<u128>>,
            Option<i64>,
            i64,
            (u64, u64, u64, usize, usize),
        );
        let (conversations, doorkeeper, storms, crowds, began, edge, (late, evicted, refused, keys, held)) =
            unpack::<Saved>(bytes)?;
        (self.conversations, self.doorkeeper, self.storms, self.crowds) = (conversations, doorkeeper, storms, crowds);
        (self.began, self.edge) = (began, edge);
        self.state = State { late, evicted, refused, keys, bytes: held, ..self.state.clone() };
        Ok(())
    }
}
