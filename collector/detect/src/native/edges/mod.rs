//! What was not there before, and what is there no more: ND-13 lateral movement, ND-14 new asset, ND-15 new service, ND-16 silent
//! asset.
//!
//! All four learn before they speak, each sensor for itself: a sensor that is added a month later learns its own week first. A replay
//! that is shorter than the learning says nothing. What was learned is in the snapshot, so a restart forgets nothing.
//!
//! `known` what was seen, and on which day · `recent` what was looked at a moment ago · [`Learning`] who still learns · `lateral` ND-13 ·
//! `assets` ND-14, with `bindings` for MAC addresses and `churn` for networks where new is usual · `services` ND-15 · `silence` ND-16.

pub(crate) mod assets;
mod bindings;
mod churn;
mod known;
pub(crate) mod lateral;
mod recent;
pub(crate) mod services;
pub(crate) mod silence;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::{Direction, Origin};
use spanwatch_common::flow::{FORWARD, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

pub(crate) use assets::Assets;
pub(crate) use known::Known;
pub(crate) use lateral::Lateral;
pub(crate) use recent::Recent;
pub(crate) use services::Services;
pub(crate) use silence::Silence;

use crate::finding::{Evidence, Finding, RuleCard, Severity, Stage, Subject, Window};
use crate::native::span;
use crate::row::{Contact, Outcome, Row};
use crate::sites::FlowClass;

/// Windows of these rules.
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
/// What time does by itself, it does on multiples of this.
const MINUTE: Duration = Duration::from_secs(60);
const DAY_SECS: u64 = 86_400;
/// All of a cloud's flow logs learn together: each interface is an observer, and a new machine has a new one.
const CLOUD: &str = "cloud";

/// The parts of [`Detector`](crate::Detector) that are the same for all four. What they know, and is saved, is their `memory`; `turn` does
/// what the end of a minute brings, `learned` counts what they know and says it, `account` what it takes.
macro_rules! learner_parts {
    () => {
        fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
            let minute = newest.floor($crate::native::edges::MINUTE);
            if minute <= self.memory.minute {
                return;
            }
            let before = std::mem::replace(&mut self.memory.minute, minute);
            self.turn(before, minute, findings);
            let (count, what) = self.learned();
            self.memory.learning.reports(&self.card, minute, self.numbers.learn, (count, &what), findings);
            self.account();
        }

        fn wants_order(&self) -> bool {
            true
        }

        fn state(&self) -> &$crate::State {
            &self.state
        }

        fn lateness(&self) -> Duration {
            self.lateness
        }

        fn snapshot(&self) -> Vec<u8> {
            $crate::snapshot::pack(&self.memory)
        }

        fn restore(&mut self, bytes: &[u8]) -> Result<(), $crate::snapshot::RestoreError> {
            self.memory = $crate::snapshot::unpack(bytes)?;
            self.account();
            Ok(())
        }
    };
}
use learner_parts;

/// A number for a thing made of `parts`, the same in every process: it stands in snapshots.
pub(crate) fn fingerprint(parts: &[u64]) -> u64 {
    let folded = parts.iter().fold(0x243f_6a88_85a3_08d3, |state: u64, &part| {
        let wide = u128::from((state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15)) * 0xd6e8_feb8_6659_fd93;
        (wide as u64).rotate_left(29) ^ (wide >> 64) as u64
    });
    // The last part has to reach all bits, too (finalizer of MurmurHash3, public domain).
    let mixed = (folded ^ folded >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ mixed >> 33
}

/// The two halves of an address, for a [`fingerprint`].
pub(crate) const fn halves(address: Address) -> [u64; 2] {
    [(address.0 >> 64) as u64, address.0 as u64]
}

/// Days since 1970.
pub(crate) fn day_of(at: Timestamp) -> u16 {
    u16::try_from(at.as_nanos() / (DAY_SECS as i64 * 1_000_000_000)).unwrap_or(0)
}

/// Whole days of `span`, at least one.
pub(crate) fn days(span: Duration) -> u16 {
    u16::try_from(span.as_secs().div_ceil(DAY_SECS)).unwrap_or(u16::MAX).max(1)
}

/// Which ends of `row`, initiator and responder, are hosts of the operator's own.
pub(crate) fn own_ends(row: &Row) -> [bool; 2] {
    match (row.class, row.direction) {
        (FlowClass::IntraSite | FlowClass::InterSite, _) => [true, true],
        (FlowClass::Unknown, _) => [false, false],
        // The direction in a cloud's log is that of one interface, and says nothing about sites.
        (class, _) if row.origin != Origin::Sensor => {
            [row.source.is_private(), row.destination.is_private() && class != FlowClass::Multicast]
        }
        (_, Direction::Outbound) => [true, false],
        (_, Direction::Inbound) => [false, true],
        _ => [false, false],
    }
}

/// Whether the two really spoke: answered, not hung up on unused, and in TCP with a handshake that was completed.
pub(crate) fn conversed(row: &Row) -> bool {
    let completed = row.protocol != protocol::TCP || row.origin != Origin::Sensor || row.flags[FORWARD] & tcp::ACK != 0;
    row.outcome == Outcome::Success && row.contact == Contact::Other && completed
}

/// Whether it is certain who opened the flow: a TCP stream that is seen from the middle only has a guess.
pub(crate) fn opened(row: &Row) -> bool {
    let seen = row.initial_flags[FORWARD] & (tcp::SYN | tcp::ACK) == tcp::SYN;
    row.protocol != protocol::TCP || row.origin != Origin::Sensor || seen
}

/// Who still learns, and since when.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Learning {
    /// Number of each sensor; [`CLOUD`] for all clouds. The engine bounds how many observers there are.
    numbers: BTreeMap<String, u16>,
    lessons: Vec<Lesson>,
    /// Whose row was last, and its number: rows of one observer come in runs.
    #[serde(skip)]
    last: Option<(Arc<str>, u16)>,
    /// The number of [`CLOUD`], at hand: the interfaces of a cloud come in no runs.
    #[serde(skip)]
    cloud: Option<u16>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Lesson {
    since: Timestamp,
    /// Its end was told.
    told: bool,
}

impl Learning {
    /// The number of who made `row`, whose first row begins its lesson. For every row, whether it concerns the rule or not.
    pub(crate) fn meet(&mut self, row: &Row) -> u16 {
        let is_cloud = row.origin != Origin::Sensor;
        if let Some(number) = self.cloud.filter(|_| is_cloud) {
            return number;
        }
        if let Some((observer, number)) = self.last.as_ref().filter(|_| !is_cloud)
            && Arc::ptr_eq(observer, &row.observer)
        {
            return *number;
        }
        let name = if is_cloud { CLOUD } else { &*row.observer };
        let number = match self.numbers.get(name) {
            Some(&number) => number,
            None => {
                let number = u16::try_from(self.lessons.len()).unwrap_or(u16::MAX);
                self.numbers.insert(name.to_owned(), number);
                self.lessons.push(Lesson { since: row.at, told: false });
                number
            }
        };
        if is_cloud {
            self.cloud = Some(number);
        } else {
            self.last = Some((row.observer.clone(), number));
        }
        number
    }

    /// Whether the observer with this number has learned for `learn` at `at`.
    pub(crate) fn is_over(&self, number: u16, at: Timestamp, learn: Duration) -> bool {
        self.lessons.get(usize::from(number)).is_some_and(|lesson| at >= lesson.since.plus(learn))
    }

    /// What the observer with this number is called.
    pub(crate) fn name(&self, number: u16) -> &str {
        self.numbers.iter().find(|(_, known)| **known == number).map_or(CLOUD, |(name, _)| name)
    }

    /// The observers whose lesson is over at `now`, and since when they learned: each once.
    fn graduates(&mut self, now: Timestamp, learn: Duration) -> Vec<(String, Timestamp)> {
        let mut done = Vec::new();
        for (name, &number) in &self.numbers {
            let Some(lesson) = self.lessons.get_mut(usize::from(number)) else { continue };
            if !lesson.told && now >= lesson.since.plus(learn) {
                lesson.told = true;
                done.push((name.clone(), lesson.since));
            }
        }
        done
    }

    /// One report of what was learned for each observer whose lesson is over: `what` is counted, such as "12 services of 3 hosts".
    pub(crate) fn reports(
        &mut self,
        card: &RuleCard,
        now: Timestamp,
        learn: Duration,
        (count, what): (usize, &str),
        findings: &mut Vec<Finding>,
    ) {
        if learn.is_zero() {
            return;
        }
        for (name, since) in self.graduates(now, learn) {
            let card = Arc::new(RuleCard { severity: Severity::Informational, ..card.clone() });
            let subject = Subject { observer: Some(name.clone()), facet: Some("baseline".to_owned()), ..Subject::default() };
            findings.push(Finding {
                first: since.max(now.floor(HOUR)),
                sentence: format!("learned for {} at {name} what is usual: {what}; from now on what is new is told", span(learn)),
                evidence: Evidence { value: count as f64, unit: "learned".to_owned(), ..Evidence::default() },
                confidence: 1.0,
                ..claim(card, Stage::Closed, subject, now)
            });
        }
    }
}

/// A finding about `at`, in the hour of `at`, that says nothing yet.
pub(crate) fn claim(rule: Arc<RuleCard>, stage: Stage, subject: Subject, at: Timestamp) -> Finding {
    let start = at.floor(HOUR);
    Finding {
        rule,
        stage,
        subject,
        window: Window { start, end: start.plus(HOUR) },
        first: at,
        last: at,
        evidence: Evidence::default(),
        sentence: String::new(),
        advice: String::new(),
        score: 1.0,
        confidence: 0.5,
    }
}

/// `card` as serious as `severity`, naming `techniques` besides its own.
pub(crate) fn graver(card: &RuleCard, severity: Severity, techniques: &[&str]) -> Arc<RuleCard> {
    let mut card = RuleCard { severity, ..card.clone() };
    for technique in techniques {
        if !card.attack.iter().any(|known| known == technique) {
            card.attack.push((*technique).to_owned());
        }
    }
    Arc::new(card)
}

/// The first three of `things`, and how many more there are.
pub(crate) fn few<T: ToString>(things: &[T]) -> String {
    let named: Vec<String> = things.iter().take(3).map(T::to_string).collect();
    match things.len() {
        0..=3 => named.join(", "),
        count => format!("{} and {} more", named.join(", "), count - 3),
    }
}
