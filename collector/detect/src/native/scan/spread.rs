//! ND-06: many sources search one network or one host, each so little that none is told of by itself.
//!
//! What is watched is a **ground**: a service in a destination's /24 or /64, or all services of one host. Of each ground the sources of
//! the last hour are kept, each with the few targets that it tried; a sample of them if there are many ([`search`](super::search)).
//!
//! A contact counts only with a target that answered nobody in the last half day: so a service that breaks down or restarts, at which
//! all its clients fail, is no ground. Nor is a flood, which has many sources for each target, or more than [`FLOOD_SOURCES`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use spanwatch_common::net::{Address, Prefix};
use spanwatch_common::time::Timestamp;

use super::known::Known;
use super::limits::failing_share;
use super::reading::{Reading, read, waits};
use super::sample::{mixed, secs};
use super::search::{HOUR, Search, Searcher, Tally};
use super::tell::{long, named};
use crate::facts::{Facts, Interest};
use crate::finding::{EVIDENCE_ROWS_MAX, Evidence, Finding, RuleCard, Sighting, Stage, Subject, Window, clock_face, round2};
use crate::hash::Map;
use crate::native::span;
use crate::row::Row;
use crate::rules::Exclude;
use crate::snapshot::{RestoreError, pack, unpack};
use crate::{Detector, Sharding, State};

/// Sources of all grounds together, for each ground that may be held.
const SOURCES_PER_KEY: usize = 16;
/// So many sources of one ground within the hour are a flood.
const FLOOD_SOURCES: u64 = 20_000;
/// It takes so long to know a flood, in seconds.
const PATIENCE_SECS: u32 = 10;
/// There must be at least so many targets, and one for so many sources.
const TARGETS_MIN: usize = 5;
const SOURCES_PER_TARGET: usize = 10;
const LATENESS: Duration = Duration::from_secs(30);

/// ND-06, ready for use.
#[derive(Clone, Debug)]
pub(crate) struct SpreadRule {
    /// How it speaks.
    pub(crate) card: Arc<RuleCard>,
    /// Fires at so many sources.
    pub(crate) sources: u64,
    /// A source with more targets does not count.
    pub(crate) each: u8,
    /// Least share of failures, 0 to 1.
    pub(crate) share: f64,
    /// Fires at so many times the usual.
    pub(crate) times: f64,
    /// What it does not count.
    pub(crate) exclude: Exclude,
    /// Grounds held.
    pub(crate) keys_max: usize,
}

/// Where sources search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
enum Ground {
    /// A service (protocol · 65536 + port) of the network that begins here.
    Service(Address, u32),
    /// All services of a host.
    Host(Address),
}

/// ND-06 at work.
pub(crate) struct Spread {
    rule: SpreadRule,
    grounds: Map<Ground, Search>,
    /// Which targets answered anybody.
    alive: Known,
    /// Grounds that would be told of if it is not a flood.
    pending: BTreeSet<Ground>,
    /// Grounds that were told of and are not over.
    told: BTreeSet<Ground>,
    /// Sources of all grounds, at the last count.
    searchers: usize,
    advanced: u32,
    state: State,
}

impl Spread {
    /// `rule` at work; `state` names it.
    pub(crate) fn new(rule: SpreadRule, state: State) -> Self {
        Self {
            grounds: Map::default(),
            alive: Known::new(rule.keys_max * 8),
            pending: BTreeSet::new(),
            told: BTreeSet::new(),
            searchers: 0,
            advanced: 0,
            state,
            rule,
        }
    }

    fn fail(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let at = secs(row.at.as_nanos());
        for (ground, target) in grounds(row) {
            if !self.has_room(&ground) {
                self.state.refused += 1;
                continue;
            }
            let search = self.grounds.entry(ground).or_default();
            let before = search.searchers.len();
            let new = search.note(row.source, target, at, true);
            self.searchers = self.searchers + search.searchers.len() - before;
            if search.searchers.len() as u64 * 2 >= self.rule.sources && search.rows.len() < EVIDENCE_ROWS_MAX && new {
                search.rows.push(Sighting::of(row));
            }
            search.observers.insert(&row.observer);
            if new && (search.searchers.len() as u64) << search.level >= self.rule.sources {
                self.judge(ground, at, findings);
            }
        }
    }

    fn has_room(&mut self, ground: &Ground) -> bool {
        let full = self.grounds.len() >= self.rule.keys_max || self.searchers >= self.rule.keys_max * SOURCES_PER_KEY;
        if full && !self.grounds.contains_key(ground) {
            self.let_go();
        }
        self.grounds.len() < self.rule.keys_max || self.grounds.contains_key(ground)
    }

    /// Lets go of the eighth with the fewest sources, longest ago; of none that was told of.
    fn let_go(&mut self) {
        let mut all: Vec<(usize, u32, Ground)> = self
            .grounds
            .iter()
            .filter(|(_, search)| search.told.is_none())
            .map(|(&ground, search)| (search.searchers.len(), search.last, ground))
            .collect();
        all.sort_unstable();
        for (_, _, ground) in all.into_iter().take((self.rule.keys_max / 8).max(1)) {
            self.grounds.remove(&ground);
            self.pending.remove(&ground);
            self.state.evicted += 1;
        }
        self.searchers = self.grounds.values().map(|search| search.searchers.len()).sum();
    }

    /// Tells of `ground` if it is worth it.
    fn judge(&mut self, ground: Ground, now: u32, findings: &mut Vec<Finding>) {
        let Some(search) = self.grounds.get_mut(&ground) else { return };
        let needed = (self.rule.sources as f64).max(self.rule.times * search.usual);
        let window = now - now % HOUR;
        let kept = search.searchers.len();
        // There can be no more than are kept: mostly that is all that has to be known.
        let most = (kept as u64) << search.level;
        if (most as f64) < needed || search.told.is_some_and(|(told, sources)| window <= told && most < sources * 2) {
            return;
        }
        let tally = search.tally(self.rule.each);
        let share = failing_share(tally.sources as f64, (tally.sources + tally.answered) as f64);
        if (tally.sources as f64) < needed || share < self.rule.share || tally.sources >= FLOOD_SOURCES {
            return;
        }
        let targets = search.targets(self.rule.each);
        if targets < TARGETS_MIN.max(kept / SOURCES_PER_TARGET) {
            return;
        }
        let stage = match search.told {
            None if now < tally.first + PATIENCE_SECS => {
                self.pending.insert(ground);
                return;
            }
            None => Stage::Crossed,
            Some((told, sources)) if window > told || tally.sources >= sources * 2 => Stage::Grown,
            Some(_) => return,
        };
        search.told = Some((window, tally.sources));
        self.told.insert(ground);
        let finding = finding(&self.rule, ground, search, (&tally, targets), window, stage, needed);
        findings.push(finding);
    }

    fn account(&mut self) {
        let places = self.grounds.len().next_power_of_two() * (size_of::<Search>() + size_of::<Ground>());
        self.state.keys = self.grounds.len();
        self.state.bytes = places + self.searchers * 2 * size_of::<Searcher>() + self.alive.octets();
    }

    fn close(&mut self, now: u32) {
        let over = |search: &Search| {
            search.told.is_some_and(|(window, _)| now >= window.saturating_add(3 * HOUR) && now > search.last + HOUR)
        };
        let grounds = &mut self.grounds;
        self.told.retain(|ground| {
            let Some(search) = grounds.get_mut(ground) else { return false };
            if over(search) {
                search.told = None;
                search.rows.clear();
            }
            search.told.is_some()
        });
    }
}

fn grounds(row: &Row) -> [(Ground, u64); 2] {
    let service = u32::from(row.protocol) << 16 | u32::from(row.port);
    let network = Prefix::new(row.destination, network_bits(row.destination)).first();
    [
        (Ground::Service(network, service), mixed(row.destination.0, 4)),
        (Ground::Host(row.destination), mixed(u128::from(service), 5)),
    ]
}

/// Of the 128-bit form: a /24 or a /64.
const fn network_bits(address: Address) -> u8 {
    if address.as_v4().is_some() { 96 + 24 } else { 64 }
}

fn finding(
    rule: &SpreadRule,
    ground: Ground,
    search: &Search,
    (tally, targets): (&Tally, usize),
    window: u32,
    stage: Stage,
    needed: f64,
) -> Finding {
    let (what, whom, subject) = match ground {
        Ground::Service(network, service) => {
            let service = named(service);
            let length = network_bits(network) - if network.as_v4().is_some() { 96 } else { 0 };
            let network = format!("{network}/{length}");
            let subject = Subject { service: Some(service.clone()), facet: Some(network.clone()), ..Subject::default() };
            (format!("hosts of {network} on {service}"), network, subject)
        }
        Ground::Host(host) => {
            (format!("ports of {host}"), host.to_string(), Subject { destination: Some(host), ..Subject::default() })
        }
    };
    let (since, time) = (clock_face(Timestamp::from_secs(i64::from(tally.first))), span(long(search.last - tally.first + 1)));
    let (sources, each) = (tally.sources, rule.each);
    let usual = search.usual.round();
    let start = Timestamp::from_secs(i64::from(window));
    let window = Window { start, end: start.plus(long(HOUR)) };
    let within = |secs: u32| window.nearest(Timestamp::from_secs(i64::from(secs)));
    let mut hosts: Vec<Address> = search.rows.iter().map(|row| row.destination).collect();
    let mut services: Vec<u32> = search.rows.iter().map(|row| u32::from(row.protocol) << 16 | u32::from(row.port)).collect();
    hosts.sort_unstable();
    hosts.dedup();
    services.sort_unstable();
    services.dedup();
    Finding {
        rule: rule.card.clone(),
        stage,
        subject,
        window,
        first: within(tally.first),
        last: within(search.last),
        sentence: format!(
            "{sources} sources tried {targets} {what} in {time} from {since}, each at most {each}, and {} were answered; usually \
             {usual} do in an hour",
            tally.answered
        ),
        advice: format!(
            "Somebody with many hosts searches {whom}: block the sources together, by their networks, and look what did answer."
        ),
        score: round2(sources as f64 / needed),
        confidence: 0.7,
        evidence: Evidence {
            value: sources as f64,
            threshold: needed,
            unit: "sources".to_owned(),
            attempts: Some(sources + tally.answered),
            failures: Some(sources),
            baseline: Some(round2(search.usual)),
            rows: search.rows.clone(),
            hosts,
            services: services.into_iter().map(named).collect(),
            observers: search.observers.to_strings(),
            ..Evidence::default()
        },
    }
}

impl Detector for Spread {
    fn interest(&self) -> Interest {
        Interest::only(Facts::COUNTABLE)
    }

    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let service = u32::from(row.protocol) << 16 | u32::from(row.port);
        match read(row, &self.rule.exclude) {
            None => {}
            // A busy server answers all of its clients late: they are many, as searchers are.
            Some(_) if waits(row) => {}
            Some(Reading::Answered) => {
                let at = secs(row.at.as_nanos());
                self.alive.insert(at, Address::NONE, row.destination, service);
                for (ground, target) in grounds(row) {
                    if let Some(search) = self.grounds.get_mut(&ground) {
                        let before = search.searchers.len();
                        search.note(row.source, target, at, false);
                        self.searchers = self.searchers + search.searchers.len() - before;
                    }
                }
            }
            Some(Reading::Failed(..)) if self.alive.contains(Address::NONE, row.destination, service) => {}
            Some(Reading::Failed(..)) => self.fail(row, findings),
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        let now = secs(newest.as_nanos());
        if now / PATIENCE_SECS <= self.advanced / PATIENCE_SECS {
            return;
        }
        self.advanced = now;
        let due = |grounds: &Map<Ground, Search>, ground: &Ground| {
            grounds.get(ground).is_none_or(|search| search.first + PATIENCE_SECS <= now)
        };
        for ground in self.pending.iter().copied().filter(|ground| due(&self.grounds, ground)).collect::<Vec<_>>() {
            self.pending.remove(&ground);
            self.judge(ground, now - now % PATIENCE_SECS, findings);
        }
        self.close(now);
        self.account();
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        for ground in std::mem::take(&mut self.pending) {
            let now = self.grounds.get(&ground).map_or(0, |search| search.last.saturating_add(PATIENCE_SECS));
            self.judge(ground, now, findings);
        }
        self.pending.clear();
        self.close(u32::MAX);
        self.account();
    }

    fn wants_order(&self) -> bool {
        true
    }

    fn sharding(&self) -> Sharding {
        Sharding::Destination
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        LATENESS
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut grounds: Vec<(&Ground, &Search)> = self.grounds.iter().collect();
        grounds.sort_unstable_by_key(|(ground, _)| **ground);
        let State { late, evicted, refused, .. } = self.state;
        let alive = ByteBuf::from(pack(&self.alive));
        pack(&(grounds, alive, &self.pending, &self.told, self.advanced, (late, evicted, refused)))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        type Saved = (Vec<(Ground, Search)>, ByteBuf, BTreeSet<Ground>, BTreeSet<Ground>, u32, (u64, u64, u64));
        let (grounds, alive, pending, told, advanced, (late, evicted, refused)) = unpack::<Saved>(bytes)?;
        self.alive = unpack::<Known>(&alive)?;
        self.grounds = grounds.into_iter().collect();
        self.searchers = self.grounds.values().map(|search| search.searchers.len()).sum();
        (self.pending, self.told, self.advanced) = (pending, told, advanced);
        self.state = State { late, evicted, refused, ..self.state };
        self.account();
        Ok(())
    }
}
