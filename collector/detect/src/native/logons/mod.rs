//! ND-17: passwords are guessed.
//!
//! Flows do not say whether a logon failed. But a wrong password takes the same few packets each time, and somebody who guesses comes
//! again at once: many short sessions that are [alike](attempt), each counted once, when it is over.
//!
//! | claim | per | from which number on |
//! | --- | --- | --- |
//! | guessing | source, host and port | `threshold_attempts` within five minutes |
//! | slow guessing | source, host and port | `slow_attempts` within a day |
//! | password spraying | source and port | `spray_hosts` hosts within half an hour, `spray_tries` on each |
//!
//! A session of one that guesses that is far larger or longer than the attempts is told as a hint that one password was right.
//!
//! Innocent things that look alike: monitoring by logging on (a steady rhythm, from inside, since the first day), connection pools of a database, mail
//! programs, directory lookups (ports of everyday use: tenfold numbers, from inside only against what is usual), automation (the same on
//! earlier days), backups (large sessions of all sizes). Servers that offer more to guess than a port are not seen: web forms, VPNs.

mod attempt;
mod pair;
mod spray;
mod tell;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Direction;
use spanwatch_common::time::Timestamp;

use super::table::Table;
use crate::facts::{Facts, Interest};
use crate::finding::{Finding, RuleCard, Stage};
use crate::ports::PortSet;
use crate::roles::Role;
use crate::row::Row;
use crate::rules::{Common, Exclude};
use crate::scan::is_countable;
use crate::sites::FlowClass;
use crate::snapshot::{RestoreError, pack, unpack};
use crate::{Detector, Sharding, State};

pub(crate) use attempt::Likeness;
use attempt::{Attempt, Session, is_transport, session};
use pair::Pair;
use spray::Spray;
use tell::Claim;

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;
/// Rows of a window may come so many seconds after it.
const LATENESS: i64 = 30;
/// A pair is forgotten when it was not seen for so long: what it did a week ago still says what is usual.
const FORGOTTEN: Duration = Duration::from_secs(8 * 86_400);
/// A session so many times as large as an attempt is work...
const WORK_FACTOR: f64 = 5.0;
/// ... and so is one of so many nanoseconds.
const WORK_NANOS: i64 = 30 * SECOND;
/// Over so many waits one can speak of a rhythm...
const RHYTHM_WAITS: usize = 6;
/// ... and on the first day, when everything is new, over so many.
const RHYTHM_WAITS_AT_FIRST: usize = 2;
/// Hosts known for logging on to others all day.
const INNOCENT: [Role; 4] = [Role::Monitor, Role::Scanner, Role::LoadBalancer, Role::Backup];

/// What the rule file says.
#[derive(Clone, Debug)]
pub(crate) struct GuessSettings {
    pub(crate) ports: PortSet,
    pub(crate) everyday_ports: PortSet,
    pub(crate) everyday_factor: u64,
    pub(crate) threshold_attempts: u64,
    pub(crate) slow_attempts: u64,
    pub(crate) spray_hosts: u64,
    pub(crate) spray_tries: u64,
    pub(crate) likeness: Likeness,
}

/// Who tries whom where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Target {
    source: u128,
    destination: u128,
    port: u16,
}

/// ND-17 at work.
pub(crate) struct Logons {
    /// For guessing, and for spraying: each names its own technique.
    rules: [Arc<RuleCard>; 2],
    settings: GuessSettings,
    exclude: Exclude,
    keys_max: usize,
    lateness: Duration,
    pairs: Table<Target, Pair>,
    sprays: Table<(u128, u16), Spray>,
    /// When the first advance was, in seconds.
    began: Option<i64>,
    /// The last minute that time has reached.
    edge: i64,
    state: State,
}

impl Logons {
    pub(crate) fn new(settings: GuessSettings, card: RuleCard, common: &Common) -> Self {
        let without = |technique: &str| {
            let attack = card.attack.iter().filter(|known| *known != technique).cloned().collect();
            Arc::new(RuleCard { attack, ..card.clone() })
        };
        Self {
            state: Common::state(&card),
            rules: [without("T1110.003"), without("T1110.001")],
            settings,
            exclude: common.exclude.clone(),
            keys_max: common.keys_max,
            lateness: common.lateness,
            pairs: Table::default(),
            sprays: Table::default(),
            began: None,
            edge: 0,
        }
    }

    /// An attempt, which changes what is known of `pair` and of the source.
    fn attempt(&mut self, target: &Target, pair: &mut Pair, row: &Row, attempt: Attempt, findings: &mut Vec<Finding>) {
        let Some(pace) = pair.add(attempt, row.at) else {
            self.state.late += 1;
            return;
        };
        let settings = &self.settings;
        let second = row.at.as_nanos() / SECOND;
        let is_everyday = settings.everyday_ports.contains(target.port);
        let is_outside = row.class == FlowClass::External && row.direction != Direction::Outbound;
        let learned = self.began.map(|began| began + DAY).filter(|&learned| second >= learned);
        let threshold = settings.threshold_attempts * if is_everyday { settings.everyday_factor } else { 1 };
        let is_many = pace.in_minutes >= threshold && !pace.usual[0];
        let is_much = pace.in_day >= settings.slow_attempts && !pace.usual[1] && !is_everyday;
        if pace.in_minutes * 2 >= threshold {
            pair.prove(row);
        }
        if (is_many || is_much) && pair.attempts.are_alike(&settings.likeness) {
            let is_new = learned.is_some_and(|learned| pair.since.as_nanos() / SECOND >= learned);
            let has_rhythm = !is_outside && pair.attempts.have_rhythm(RHYTHM_WAITS);
            // A tool has a rhythm too, but was not there from the beginning.
            let is_trusted = !is_outside && (is_everyday && learned.is_none() || has_rhythm && !is_new);
            if is_many && !is_trusted {
                pair.accuse();
                self.raise(target, pair, Claim::Guessing, pace.in_minutes, row, findings);
            } else if is_much && !pair.fast.is_told() && (is_outside || is_new && !has_rhythm) {
                pair.accuse();
                pair.prove(row);
                self.raise(target, pair, Claim::SlowGuessing, pace.in_day, row, findings);
            }
        }
        // From inside: who was there yesterday, who comes like clockwork and who uses what everybody uses sprays nothing.
        let waits = if learned.is_some() { RHYTHM_WAITS } else { RHYTHM_WAITS_AT_FIRST };
        let is_known = second - pair.since.as_nanos() / SECOND >= DAY || pair.attempts.have_rhythm(waits);
        if is_outside || !is_everyday && !is_known {
            let factor = if is_outside || learned.is_some() { 1 } else { 2 };
            self.spray(row, attempt, factor, findings);
        }
    }

    /// A claim about `pair` is true.
    fn raise(&self, target: &Target, pair: &mut Pair, claim: Claim, value: u64, row: &Row, findings: &mut Vec<Finding>) {
        let number = claim.window_of(row.at);
        let lasting = claim.of(pair);
        let ended = lasting.close_before(number);
        let stage = lasting.raise(value as f64, number, row.at);
        findings.extend(ended.map(|ended| self.about_pair(target, pair, claim, &ended, Stage::Closed)));
        let open = claim.of(pair).open().copied();
        findings.extend(stage.zip(open).map(|(stage, open)| self.about_pair(target, pair, claim, &open, stage)));
    }

    /// A session of a pair that is accused, larger or longer than an attempt.
    fn came_in(&self, target: &Target, pair: &mut Pair, row: &Row, findings: &mut Vec<Finding>) {
        if pair.came_in.is_some() {
            return;
        }
        pair.came_in = Some((row.at, row.octets_total()));
        let claim = if pair.fast.is_told() { Claim::Guessing } else { Claim::SlowGuessing };
        let open = claim.of(pair).open().copied();
        findings.extend(open.map(|open| self.about_pair(target, pair, claim, &open, Stage::Grown)));
    }

    /// The attempt counts towards a spray, which takes `factor` times as many hosts.
    fn spray(&mut self, row: &Row, attempt: Attempt, factor: u64, findings: &mut Vec<Finding>) {
        let key = (row.source.0, row.port);
        let Self { sprays, keys_max, state, .. } = self;
        sprays.entry(key, *keys_max, state, Spray::weight, Spray::default);
        let Some(mut spray) = sprays.take(&key) else { return };
        let number = Claim::Spraying.window_of(row.at);
        findings.extend(spray.claim.close_before(number).map(|ended| self.about_spray(key, &spray, &ended, Stage::Closed)));
        let settings = &self.settings;
        if !spray.add(row, attempt, number, settings.spray_tries) {
            self.state.late += 1;
        } else if spray.tried as u64 >= settings.spray_hosts * factor
            && spray.sample.are_alike(&settings.likeness)
            && let Some(stage) = spray.claim.raise(spray.tried as f64, number, row.at)
        {
            findings.extend(spray.claim.open().map(|open| self.about_spray(key, &spray, open, stage)));
        }
        self.sprays.put(key, spray);
    }

    /// Tells the windows that ended before `now`.
    fn close_before(&mut self, now: Timestamp, findings: &mut Vec<Finding>) {
        let (mut pairs, mut sprays) = (std::mem::take(&mut self.pairs), std::mem::take(&mut self.sprays));
        let from = findings.len();
        for (target, pair) in pairs.iter_mut() {
            for claim in [Claim::Guessing, Claim::SlowGuessing] {
                let ended = claim.of(pair).close_before(claim.window_of(now));
                findings.extend(ended.map(|ended| self.about_pair(target, pair, claim, &ended, Stage::Closed)));
            }
            if pair.proof.is_some() && !pair.fast.is_told() && !pair.slow.is_told() && now.since(pair.last).as_secs() > 600 {
                (pair.proof, pair.came_in) = (None, None);
            }
        }
        for (&key, spray) in sprays.iter_mut() {
            let ended = spray.claim.close_before(Claim::Spraying.window_of(now));
            findings.extend(ended.map(|ended| self.about_spray(key, spray, &ended, Stage::Closed)));
        }
        findings[from..].sort_by(Finding::order);
        (self.pairs, self.sprays) = (pairs, sprays);
    }
}

impl Detector for Logons {
    fn interest(&self) -> Interest {
        Interest::only(Facts::COUNTABLE.and(Facts::PORTS))
    }

    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        if !self.settings.ports.contains(row.port) || !is_transport(row) {
            return;
        }
        let Some(session) = session(row) else { return };
        if !is_countable(row, &self.exclude) || row.source_roles.has_any(&INNOCENT) {
            return;
        }
        let target = Target { source: row.source.0, destination: row.destination.0, port: row.port };
        if matches!(session, Session::Whole(_)) {
            let Self { pairs, keys_max, state, .. } = self;
            pairs.entry(target, *keys_max, state, |pair| pair.total, || Pair::new(row.at));
        } else if !self.pairs.contains(&target) {
            return;
        }
        let Some(mut pair) = self.pairs.take(&target) else { return };
        let is_accused = pair.fast.is_told() || pair.slow.is_told();
        let is_large = row.octets_total() as f64 > WORK_FACTOR * pair.attempts.octets_mean();
        let is_work = is_large || row.end.as_nanos() - row.at.as_nanos() >= WORK_NANOS;
        match session {
            _ if is_accused && is_work => self.came_in(&target, &mut pair, row, findings),
            Session::Whole(attempt) => self.attempt(&target, &mut pair, row, attempt, findings),
            Session::Part => {}
        }
        self.pairs.put(target, pair);
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        let minute = newest.as_nanos() / SECOND / 60;
        if minute <= self.edge {
            return;
        }
        self.edge = minute;
        self.began.get_or_insert(minute * 60);
        let now = Timestamp::from_secs(minute * 60);
        self.close_before(now.minus(Duration::from_secs(LATENESS as u64)), findings);
        if minute % 60 == 0 {
            self.pairs.retain(|_, pair| now.since(pair.last) < FORGOTTEN);
            self.sprays.retain(|_, spray| spray.claim.is_told() || now.since(spray.sample.first()).as_secs() < 7_200);
        }
        self.state.keys = self.pairs.len();
        self.state.bytes = self.pairs.len() * (size_of::<(Target, Pair)>() + 700) + self.sprays.len() * 2_048;
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        self.close_before(Timestamp::from_nanos(i64::MAX), findings);
    }

    fn wants_order(&self) -> bool {
        true
    }

    fn sharding(&self) -> Sharding {
        Sharding::Source
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        self.lateness
    }

    fn snapshot(&self) -> Vec<u8> {
        let State { late, evicted, refused, keys, bytes, .. } = self.state;
        pack(&(&self.pairs, &self.sprays, self.began, self.edge, (late, evicted, refused, keys, bytes)))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        type Saved = (Table<Target, Pair>, Table<(u128, u16), Spray>, Option<i64>, i64, (u64, u64, u64, usize, usize));
        let (pairs, sprays, began, edge, (late, evicted, refused, keys, held)) = unpack::<Saved>(bytes)?;
        (self.pairs, self.sprays, self.began, self.edge) = (pairs, sprays, began, edge);
        self.state = State { late, evicted, refused, keys, bytes: held, ..self.state.clone() };
        Ok(())
    }
}
