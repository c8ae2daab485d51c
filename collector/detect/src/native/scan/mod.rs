//! ND-01 to ND-06: somebody looks for what can be attacked.
//!
//! A scan is known by what does not answer. Every source has a list of the **targets** (host, protocol, port) that it tried in vain
//! within a week, each with its time: so the same list answers for ten seconds and for seven days.
//!
//! | rule | tells when |
//! | --- | --- |
//! | ND-01 vertical | many ports of one host failed |
//! | ND-02 horizontal | many hosts failed on one service (ping is one) |
//! | ND-03 block | many targets failed, more than two hosts and two services |
//! | ND-04 random walk | first contacts fail as a scanner's do, and the source does not come back to them |
//! | ND-05 low and slow | it comes together over days |
//! | ND-06 distributed | many sources with few targets each fail in one network: [`spread`] |
//!
//! What keeps innocent hosts silent: targets count, not contacts, so that it does not matter how often one tries; a target that is tried
//! again and again is a habit ([`sample::Target::eighths`]); where somebody was answered in the last half day a failure is an outage
//! ([`known`]); and the share of failures must be high ([`limits::failing_share`]), among the ports of the host and among the hosts of
//! the service that are told of, so that the rest of what a host does neither excuses nor accuses it. Ten dead hosts beside 26 live ones
//! are no scan: the certain share of failures is 0.17. Half of a file sharer's peers are gone, and it speaks to the other half.
//!
//! In the order you need them: [`reading`] what a row says · [`sample`] targets · [`source`] one source · [`limits`] from which number
//! on · [`walk`] ND-04's test · [`case`] what was told · [`tell`] the finding · [`table`] all sources in bounded memory · [`known`] who
//! was answered · [`spread`] ND-06 · [`search`] what it knows of one ground.

mod case;
mod known;
pub(crate) mod limits;
mod reading;
mod sample;
mod search;
mod source;
pub(crate) mod spread;
mod table;
mod tell;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_bytes::ByteBuf;
use spanwatch_common::cloud::Direction;
use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::facts::{Facts, Interest};
use crate::finding::{Finding, Stage};
use crate::roles::Role;
use crate::row::Row;
use crate::snapshot::{RestoreError, pack, unpack};
use crate::{Detector, Sharding, State};

use case::Case;
use known::Known;
use limits::{Family, WEEK};
use reading::{Reading, is_external, read};
use sample::{Noted, Target, secs};
use source::{Source, Verdict, is_control};
use table::{Table, host_key, network_key};

/// How late rows may come, Azure's apart.
const LATENESS: Duration = Duration::from_secs(30);
/// What is over is told on edges of so many seconds.
const CLOSE_EVERY: u32 = 10;
/// What is too old is forgotten on edges of so many seconds.
const FORGET_EVERY: u32 = 3_600;
/// Rows are kept of a source that has failed with so many targets.
const CASE_FROM: usize = 5;
/// The service under which it is remembered that a source speaks to control systems at all.
const ANY_CONTROL: u32 = u32::MAX;

/// ND-01 to ND-05 at work.
pub(crate) struct Scans {
    family: Family,
    table: Table,
    known: Known,
    /// Sources of which something was told that is not over.
    told: BTreeSet<u128>,
    closed: u32,
    /// When those that rest were last told. Not worth saving.
    rested: u32,
    forgotten: u32,
    state: State,
}

impl Scans {
    /// `family` at work; `state` names it.
    pub(crate) fn boxed(family: Family, state: State) -> Box<dyn Detector> {
        let table = Table::new(family.keys_max);
        Box::new(Self {
            table,
            known: Known::new(family.keys_max / 2),
            told: BTreeSet::new(),
            closed: 0,
            rested: 0,
            forgotten: 0,
            state,
            family,
        })
    }

    /// The source was answered.
    fn succeed(&mut self, row: &Row) {
        let target = Target::of(row, reading::Technique::Other, reading::Came::Welcome);
        self.known.insert(target.at, row.source, row.destination, target.service());
        if is_control(target.service()) {
            self.known.insert(target.at, row.source, Address::NONE, ANY_CONTROL);
        }
        if let Some(source) = self.table.get_mut(host_key(row.source)) {
            let before = source.octets();
            // A datagram may be answered after it was announced.
            if row.protocol == protocol::UDP {
                source.failed.remove(&target);
            }
            if source.succeed(target) == Noted::New
                && let Some(rule) = &self.family.walk
            {
                source.walk.step(&rule.hypotheses, false);
            }
            let after = source.octets();
            self.table.account(before, after);
        }
    }

    /// The source knocked in vain.
    fn fail(&mut self, row: &Row, target: &Target, findings: &mut Vec<Finding>) {
        let external = is_external(row);
        let about = |source: &mut Source| (source.external, source.roles) = (external, row.source_roles);
        // A source that is told of by itself need not be told of with its network.
        if self.strike(host_key(row.source), row, target, about, findings) == Some(Struck::Loose) {
            for bits in networks(row.source, external) {
                let about = |source: &mut Source| (source.external, source.network) = (external, true);
                self.strike(network_key(row.source, *bits), row, target, about, findings);
            }
        }
    }

    /// Takes in the target under `key`, and tells what it makes worth telling; nothing if there is no place for the source.
    fn strike(
        &mut self,
        key: u128,
        row: &Row,
        target: &Target,
        about: impl FnOnce(&mut Source),
        findings: &mut Vec<Finding>,
    ) -> Option<Struck> {
        let Self { family, table, known, told, .. } = self;
        let (source, earlier) = table.admit(key, target)?;
        let before = source.octets();
        about(source);
        if let Some(earlier) = earlier {
            source.fail(earlier);
        }
        close(family, key, source, target.at, told, findings);
        source.answered.remove(target);
        let noted = source.fail(*target);
        if noted == Noted::New
            && let Some(rule) = &family.walk
        {
            source.walk.step(&rule.hypotheses, true);
        }
        if noted != Noted::Passed && (source.case.is_some() || source.failed.targets().len() >= CASE_FROM) {
            source.case.get_or_insert_with(Box::<Case>::default).keep(row, target);
        }
        // Nobody is told of a scanner's work, but what it does is known when it loses the role.
        let is_told = !source.roles.has(Role::Scanner) && {
            let seeks = is_control(target.service())
                && row.direction != Direction::Outbound
                && !known.contains(row.source, Address::NONE, ANY_CONTROL);
            tell(family, key, source, target, noted, seeks, findings)
        };
        if is_told {
            told.insert(key);
        }
        let after = source.octets();
        table.account(before, after);
        Some(if noted == Noted::New && !is_told { Struck::Loose } else { Struck::Settled })
    }

    fn close_all(&mut self, now: u32, findings: &mut Vec<Finding>) {
        for key in self.told.iter().copied().collect::<Vec<_>>() {
            if let Some(source) = self.table.get_mut(key) {
                let before = source.octets();
                close(&self.family, key, source, now, &mut self.told, findings);
                let after = source.octets();
                self.table.account(before, after);
            } else {
                self.told.remove(&key);
            }
        }
    }

    /// Says what those have come to that pause at `now`: nobody should have to wait for the end to learn it.
    fn rest_all(&mut self, now: u32, findings: &mut Vec<Finding>) {
        for &key in &self.told {
            if let Some(source) = self.table.get_mut(key) {
                let told = source.case.as_deref().map_or(&[][..], |case| &case.told);
                for place in (0..told.len()).filter(|&place| told[place].rests(now)).collect::<Vec<_>>() {
                    sum_up(&self.family, key, source, place, findings);
                }
            }
        }
    }

    fn account(&mut self) {
        self.state.keys = self.table.len();
        self.state.bytes = self.table.octets() + self.known.octets();
        self.state.evicted = self.table.evicted;
        self.state.refused = self.table.refused;
    }
}

/// What became of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Struck {
    /// A new target that belongs to nothing told.
    Loose,
    /// A target that is known, or part of what was told.
    Settled,
}

/// Tells what `target` makes worth telling; says whether something is told of it that is not over.
fn tell(
    family: &Family,
    key: u128,
    source: &mut Source,
    target: &Target,
    noted: Noted,
    seeks: bool,
    findings: &mut Vec<Finding>,
) -> bool {
    let place_of = |source: &Source, shapeless| source.case.as_ref().and_then(|case| case.place_of(target, shapeless));
    if let Some(place) = place_of(source, false) {
        grow(family, key, source, place, noted, findings);
        return true;
    }
    if noted == Noted::Passed {
        return false;
    }
    let verdict = source.judge(family).or_else(|| seeks.then(|| source.seeks_control(family)).flatten());
    if let Some(verdict) = &verdict {
        open(family, key, source, verdict, target.at, findings);
    } else if let Some(place) = place_of(source, true) {
        grow(family, key, source, place, noted, findings);
    }
    verdict.is_some()
}

/// Closes what is over at `now` of the source at `key`, which leaves `open` when nothing is left.
fn close(family: &Family, key: u128, source: &mut Source, now: u32, open: &mut BTreeSet<u128>, findings: &mut Vec<Finding>) {
    let Some(case) = source.case.as_mut().filter(|case| case.told.iter().any(|told| told.is_over(now))) else { return };
    let (over, on) = std::mem::take(&mut case.told).into_iter().partition::<Vec<_>, _>(|told| told.is_over(now));
    case.told = on;
    if case.told.is_empty() {
        open.remove(&key);
    }
    for mut told in over {
        let value = value(source, &told);
        if value > told.value {
            told.window = told.window_of(told.last);
            findings.extend(tell::finding(family, key, source, &told, Stage::Closed, value));
        }
        source.failed.mark_told(|target| told.has(target));
    }
}

/// Tells what was told at `place` once more if it has come to more meanwhile.
fn sum_up(family: &Family, key: u128, source: &mut Source, place: usize, findings: &mut Vec<Finding>) {
    let Some(told) = source.case.as_ref().and_then(|case| case.told.get(place)).cloned() else { return };
    let value = value(source, &told);
    let Some(kept) = source.case.as_mut().and_then(|case| case.told.get_mut(place)) else { return };
    kept.has_rested = true;
    if value > kept.value {
        (kept.window, kept.value) = (kept.window_of(kept.last), value);
        let told = kept.clone();
        findings.extend(tell::finding(family, key, source, &told, Stage::Closed, value));
    }
}

/// The networks under which a failure of `source` counts as well, for those that change their address. Inside, a network of IPv4 has as
/// many hosts as addresses, and each may stray a little.
const fn networks(source: Address, external: bool) -> &'static [u8] {
    match (source.as_v4().is_some(), external) {
        (true, true) => &[96 + 24],
        (true, false) => &[],
        (false, true) => &[64, 48],
        (false, false) => &[],
    }
}

/// The targets of what was told.
fn value(source: &Source, told: &case::Told) -> f64 {
    let targets = source.failed.targets().iter().filter(|target| told.has(target));
    (targets.map(Target::eighths).sum::<u64>() * source.failed.factor()) as f64 / 8.0
}

/// Tells of a source for the first time in a while.
fn open(family: &Family, key: u128, source: &mut Source, verdict: &Verdict, at: u32, findings: &mut Vec<Finding>) {
    let told = source.case.get_or_insert_with(Box::<Case>::default).open(verdict, at).clone();
    let value = value(source, &told);
    findings.extend(tell::finding(family, key, source, &told, Stage::Crossed, value));
    if let Some(told) = source.case.as_mut().and_then(|case| case.told.last_mut()) {
        told.value = value;
    }
}

/// Goes on telling what was told at `place`: when it has doubled, and once in each window while it lasts.
fn grow(family: &Family, key: u128, source: &mut Source, place: usize, noted: Noted, findings: &mut Vec<Finding>) {
    let Some(told) = source.case.as_mut().and_then(|case| case.told.get_mut(place)) else { return };
    if noted != Noted::Habit {
        told.last = told.last.max(source.last);
        told.has_rested = false;
    }
    if noted == Noted::Passed {
        return;
    }
    let turned = told.window_of(told.last) > told.window;
    let factor = source.failed.factor();
    if !turned && !told.may_have_doubled() {
        return;
    }
    let told = told.clone();
    let now = value(source, &told);
    let Some(case) = source.case.as_mut() else { return };
    let kept = &mut case.told[place];
    kept.looked(now, factor);
    if now < told.threshold as f64 || !turned && now < told.value * 2.0 {
        return;
    }
    (kept.window, kept.value) = (told.window_of(told.last), now);
    let told = kept.clone();
    findings.extend(tell::finding(family, key, source, &told, Stage::Grown, now));
}

impl Detector for Scans {
    fn interest(&self) -> Interest {
        Interest::only(Facts::COUNTABLE)
    }

    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        match read(row, &self.family.exclude) {
            None => {}
            Some(Reading::Answered) => self.succeed(row),
            Some(Reading::Failed(technique, came)) => {
                let target = Target::of(row, technique, came);
                if target.at.saturating_add(WEEK) < self.closed {
                    self.state.late += 1;
                } else if !self.known.contains(row.source, row.destination, target.service()) {
                    self.fail(row, &target, findings);
                }
            }
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        let now = secs(newest.minus(LATENESS).as_nanos());
        if now / CLOSE_EVERY > self.closed / CLOSE_EVERY {
            self.closed = now;
            self.close_all(now - now % CLOSE_EVERY, findings);
            self.account();
        }
        let soon = secs(newest.as_nanos());
        if soon / CLOSE_EVERY > self.rested / CLOSE_EVERY {
            self.rested = soon;
            self.rest_all(soon, findings);
        }
        if now / FORGET_EVERY > self.forgotten / FORGET_EVERY {
            self.forgotten = now;
            self.table.forget_before(now.saturating_sub(WEEK));
        }
    }

    fn flush(&mut self, findings: &mut Vec<Finding>) {
        self.close_all(u32::MAX, findings);
        self.account();
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
        LATENESS
    }

    fn snapshot(&self) -> Vec<u8> {
        let known = ByteBuf::from(pack(&self.known));
        pack(&(self.table.save(), known, &self.told, self.closed, self.forgotten, self.state.late))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        type Saved = (table::Saved, ByteBuf, BTreeSet<u128>, u32, u32, u64);
        let (table, known, told, closed, forgotten, late) = unpack::<Saved>(bytes)?;
        let known = unpack::<Known>(&known)?;
        self.known = known;
        self.table.restore(table);
        (self.told, self.closed, self.forgotten, self.state.late) = (told, closed, forgotten, late);
        self.account();
        Ok(())
    }
}
