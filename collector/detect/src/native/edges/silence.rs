//! ND-16: silent asset. A host that was never quiet for long is silent for several times its longest pause.
//!
//! For each host the longest pause of each of the last fifteen days is kept. Only hosts whose pauses all were short are watched: an
//! office machine that sleeps at night and at weekends is not one. Time in which the sensor saw nobody at all is taken out of every
//! pause, and time stands still for the hosts of a sensor that has stopped. When most hosts of one sensor are silent, that is one finding
//! about the sensor, because a tap or a switch is likelier than all of them.
//!
//! A pause that was told is not learned the first time; from the second on it is what the host does.
//!
//! Times are in steps of 16 s. Memory: 72 bytes per host in a table that is half to seven eighths full; when full, further hosts are not
//! watched, and counted as refused.
//!
//! Rows of a cloud's flow logs are passed over: they come minutes to hours late, each interface by itself.
//!
//! Innocent things that look alike: maintenance, an address that moved to another device.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Origin;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::{Learning, Recent, claim, fingerprint, halves, learner_parts, own_ends, span};
use crate::finding::{Evidence, Finding, RuleCard, Stage, Subject, Window, clock_face};
use crate::hash::{Map, table_bytes};
use crate::row::{Outcome, Row};
use crate::rules::{Common, Exclude};
use crate::sites::FlowClass;
use crate::{Detector, State};

/// Seconds of a step.
const STEP: i64 = 16;
/// Steps of a day.
const DAY: u32 = 86_400 / STEP as u32;
/// Days whose longest pauses are kept, today's included.
const DAYS: usize = 15;
/// A sensor that sees nobody for so many steps is blind.
const BLIND: u32 = 8;
/// Windows of this rule: an alert lasts for two of them after it was told last.
const WINDOW: Duration = Duration::from_secs(86_400);
/// So many silent hosts of one sensor, if they are most of its hosts, are the sensor's silence.
const MASS_MIN: u32 = 3;

/// The numbers of ND-16.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    pub(crate) learn: Duration,
    pub(crate) pauses: f64,
    pub(crate) silence_min: Duration,
    pub(crate) pause_max: Duration,
}

/// ND-16.
pub(crate) struct Silence {
    numbers: Numbers,
    card: Arc<RuleCard>,
    exclude: Exclude,
    lateness: Duration,
    hosts_max: usize,
    state: State,
    memory: Memory,
}

#[derive(Default, Serialize, Deserialize)]
struct Memory {
    /// For the names of observers and the report.
    learning: Learning,
    recent: Recent,
    observers: Vec<Observer>,
    hosts: Map<Packed, Host>,
    minute: Timestamp,
    refused: u64,
}

/// An address in four words: a wide number would have the table leave gaps beside it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Address", into = "Address")]
struct Packed([u32; 4]);

impl From<Address> for Packed {
    fn from(Address(address): Address) -> Self {
        Self([96, 64, 32, 0].map(|bits| (address >> bits) as u32))
    }
}

impl From<Packed> for Address {
    fn from(Packed(words): Packed) -> Self {
        Self(words.into_iter().fold(0, |address, word| address << 32 | u128::from(word)))
    }
}

impl Hash for Packed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(Address::from(*self).0);
    }
}

/// A sensor, in steps since 1970.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Observer {
    newest: u32,
    /// Steps in which it saw nobody, in all.
    blind: u32,
    /// Most of its hosts are silent, and that was told.
    told: bool,
}

/// A host, in steps since 1970.
#[derive(Clone, Serialize, Deserialize)]
struct Host {
    first: u32,
    last: u32,
    observer: u16,
    /// What the observer's blindness was at `last`.
    blind: u32,
    /// Day of the newest of `pauses`.
    day: u32,
    /// Longest pause that ended on each day, by day modulo [`DAYS`].
    pauses: [u16; DAYS],
    /// Silence that was told last; 0 when none was.
    told: u32,
    /// Whether that was told as part of its sensor's silence.
    folded: bool,
    /// Times it was told.
    lapses: u8,
}

impl Host {
    /// Its longest pause in steps; at least one.
    fn usual(&self) -> u32 {
        u32::from(self.pauses.iter().copied().max().unwrap_or(0)).max(1)
    }

    /// Makes `day` the newest.
    fn roll(&mut self, day: u32) {
        for passed in self.day.saturating_add(1).max(day.saturating_sub(DAYS as u32 - 1))..=day {
            self.pauses[passed as usize % DAYS] = 0;
        }
        self.day = self.day.max(day);
    }

    fn learn(&mut self, pause: u32) {
        let today = &mut self.pauses[self.day as usize % DAYS];
        *today = (*today).max(u16::try_from(pause).unwrap_or(u16::MAX));
    }
}

/// A host was heard.
#[derive(Clone, Copy)]
struct Heard {
    from: u32,
    until: u32,
    /// In an exchange. Who only knocks, or refuses, is alive as well; but a forged address is not watched for it.
    met: bool,
}

/// A host that is silent.
struct Quiet {
    address: Address,
    observer: u16,
    silent: u32,
    limit: u32,
    usual: u32,
    last: u32,
    told: u32,
}

impl Silence {
    /// With nothing learned.
    pub(crate) fn new(numbers: Numbers, card: RuleCard, common: &Common) -> Self {
        Self {
            memory: Memory::default(),
            state: Common::state(&card),
            exclude: common.exclude.clone(),
            lateness: common.lateness,
            hosts_max: common.keys_max,
            card: Arc::new(card),
            numbers,
        }
    }

    /// `address` was heard.
    fn hear(&mut self, address: Address, observer: u16, heard: Heard, findings: &mut Vec<Finding>) {
        let Heard { from, until, met } = heard;
        if self.exclude.covers_host(address) {
            return;
        }
        let Memory { hosts, observers, refused, .. } = &mut self.memory;
        let blind = |number: u16| observers.get(usize::from(number)).map_or(0, |observer| observer.blind);
        let full = hosts.len() >= self.hosts_max;
        let host = match hosts.entry(address.into()) {
            std::collections::hash_map::Entry::Occupied(host) => host.into_mut(),
            std::collections::hash_map::Entry::Vacant(_) if !met => return,
            std::collections::hash_map::Entry::Vacant(_) if full => {
                *refused += 1;
                return;
            }
            std::collections::hash_map::Entry::Vacant(place) => place.insert(Host {
                first: from,
                last: from,
                observer,
                blind: blind(observer),
                day: from / DAY,
                pauses: [0; DAYS],
                told: 0,
                folded: false,
                lapses: 0,
            }),
        };
        if until < host.last {
            return;
        }
        host.roll(until / DAY);
        let pause = from.saturating_sub(host.last).saturating_sub(blind(host.observer).saturating_sub(host.blind));
        let (told, folded) = (std::mem::take(&mut host.told), std::mem::take(&mut host.folded));
        // A pause that was told is not usual yet.
        if told == 0 || host.lapses > 1 {
            host.learn(pause);
        }
        let (usual, last) = (host.usual(), host.last);
        (host.last, host.observer, host.blind) = (until, observer, blind(observer));
        if told > 0 && !folded && pause >= told {
            let quiet = Quiet { address, observer, silent: pause, limit: self.limit(usual), usual, last, told };
            let finding = self.tell(&quiet, Stage::Closed, time(from));
            findings.push(finding);
        }
    }

    /// From how many steps of silence on a host with these pauses is told.
    fn limit(&self, usual: u32) -> u32 {
        let times = (f64::from(usual) * self.numbers.pauses).ceil() as u32;
        times.max(steps(self.numbers.silence_min))
    }

    /// Looks for those who are silent when a minute ends.
    fn turn(&mut self, _before: Timestamp, now: Timestamp, findings: &mut Vec<Finding>) {
        let (learn, pause_max, reached) = (steps(self.numbers.learn), steps(self.numbers.pause_max), step(now));
        // Per observer: hosts watched, and silent ones.
        let mut watched: BTreeMap<u16, (u32, u32)> = BTreeMap::new();
        let mut quiet: Vec<Quiet> = Vec::new();
        for (&packed, host) in &self.memory.hosts {
            let address = Address::from(packed);
            let usual = host.usual();
            let Some(observer) = self.memory.observers.get(usize::from(host.observer)) else { continue };
            // A pause that has not ended may be a usual one: only what was heard since counts as watched.
            if host.first + learn > host.last || usual > pause_max {
                continue;
            }
            let silent =
                reached.min(observer.newest).saturating_sub(host.last).saturating_sub(observer.blind.saturating_sub(host.blind));
            let limit = self.limit(usual);
            let (all, silent_ones) = watched.entry(host.observer).or_default();
            *all += 1;
            if silent > limit {
                *silent_ones += 1;
                // Who is still silent when its sensor hears most hosts again is silent by itself.
                let told = if host.folded && !observer.told { 0 } else { host.told };
                if told == 0 || silent >= told.saturating_mul(2) {
                    quiet.push(Quiet { address, observer: host.observer, silent, limit, usual, last: host.last, told });
                }
            }
        }
        quiet.sort_by_key(|quiet| quiet.address);
        self.judge_observers(&watched, &quiet, now, findings);
        for quiet in quiet {
            let massed = self.memory.observers.get(usize::from(quiet.observer)).is_some_and(|observer| observer.told);
            let Some(host) = self.memory.hosts.get_mut(&quiet.address.into()) else { continue };
            host.told = quiet.silent;
            host.folded = massed && (quiet.told == 0 || host.folded);
            host.lapses = host.lapses.saturating_add(u8::from(quiet.told == 0 && !massed));
            if !host.folded {
                let stage = if quiet.told == 0 { Stage::Crossed } else { Stage::Grown };
                findings.push(self.tell(&quiet, stage, now));
            }
        }
        // Who has been gone for a fortnight is no host of ours any more.
        self.memory.hosts.retain(|_, host| host.last + DAY * DAYS as u32 > reached);
    }

    /// Tells of sensors most of whose hosts are silent.
    fn judge_observers(
        &mut self,
        watched: &BTreeMap<u16, (u32, u32)>,
        quiet: &[Quiet],
        now: Timestamp,
        findings: &mut Vec<Finding>,
    ) {
        for (&number, &(all, silent)) in watched {
            let Some(observer) = self.memory.observers.get_mut(usize::from(number)) else { continue };
            let most = silent >= MASS_MIN && silent * 2 > all;
            if most && !observer.told {
                let name = self.memory.learning.name(number).to_owned();
                let hosts: Vec<Address> =
                    quiet.iter().filter(|quiet| quiet.observer == number).map(|quiet| quiet.address).collect();
                findings.push(Finding {
                    sentence: format!("{silent} of the {all} hosts that {name} hears all the time are silent at once"),
                    advice: "Look at the mirror port, the switch and the power before the hosts.".to_owned(),
                    evidence: Evidence {
                        value: f64::from(silent),
                        threshold: f64::from(all) / 2.0,
                        unit: "hosts".to_owned(),
                        hosts: hosts.into_iter().take(20).collect(),
                        observers: vec![name.clone()],
                        ..Evidence::default()
                    },
                    score: 2.0 * f64::from(silent) / f64::from(all),
                    confidence: 0.8,
                    ..in_day(claim(
                        self.card.clone(),
                        Stage::Crossed,
                        Subject { observer: Some(name), ..Subject::default() },
                        now,
                    ))
                });
            }
            observer.told = most;
        }
    }

    fn tell(&self, quiet: &Quiet, stage: Stage, now: Timestamp) -> Finding {
        let name = self.memory.learning.name(quiet.observer).to_owned();
        let (silent, usual) = (long(quiet.silent), long(quiet.usual));
        let since = time(quiet.last);
        let is = if stage == Stage::Closed { "spoke again; it was" } else { "is" };
        Finding {
            first: since.max(now.floor(WINDOW)),
            sentence: format!(
                "{} {is} silent for {} since {}; its longest pause of {} was {}, and {name} still hears others",
                quiet.address,
                span(silent),
                clock_face(since),
                span(self.numbers.learn),
                span(usual)
            ),
            advice: format!("Look whether {} runs, and at its cable and switch port.", quiet.address),
            evidence: Evidence {
                value: silent.as_secs_f64(),
                threshold: long(quiet.limit).as_secs_f64(),
                unit: "seconds".to_owned(),
                baseline: Some(usual.as_secs_f64()),
                hosts: vec![quiet.address],
                observers: vec![name],
                ..Evidence::default()
            },
            score: f64::from(quiet.silent) / f64::from(quiet.limit.max(1)),
            confidence: 0.7,
            ..in_day(claim(self.card.clone(), stage, Subject::host(quiet.address), now))
        }
    }

    fn learned(&self) -> (usize, String) {
        let count = self.memory.hosts.len();
        (count, format!("the pauses of {count} hosts"))
    }

    fn account(&mut self) {
        let Memory { hosts, refused, .. } = &self.memory;
        self.state.keys = hosts.len();
        self.state.bytes = table_bytes(hosts) + 32_768;
        self.state.refused = *refused;
    }
}

impl Detector for Silence {
    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        let number = self.memory.learning.meet(row);
        if row.platform || row.origin != Origin::Sensor {
            return;
        }
        let (from, until) = (step(row.at), step(row.end.max(row.at)));
        let observers = &mut self.memory.observers;
        if observers.len() <= usize::from(number) {
            observers.resize(usize::from(number) + 1, Observer::default());
        }
        let observer = &mut observers[usize::from(number)];
        let pause = from.saturating_sub(observer.newest);
        if observer.newest != 0 && pause > BLIND {
            observer.blind += pause;
        }
        observer.newest = observer.newest.max(until);
        let multicast = row.class == FlowClass::Multicast;
        let met = row.outcome == Outcome::Success || multicast;
        let [ours, theirs] = own_ends(row);
        let refused = row.outcome == Outcome::Reset;
        for (address, own) in [(row.source, ours), (row.destination, theirs && !multicast && (met || refused))] {
            if !own {
                continue;
            }
            let [high, low] = halves(address);
            let key =
                fingerprint(&[high, low, u64::from(from) << 32 | u64::from(until), u64::from(number) << 1 | u64::from(met)]);
            if !self.memory.recent.has(key) {
                self.memory.recent.put(key);
                self.hear(address, number, Heard { from, until, met }, findings);
            }
        }
    }

    // That nothing comes any more is nobody's silence.
    fn flush(&mut self, _findings: &mut Vec<Finding>) {
        self.account();
    }

    learner_parts!();
}

fn in_day(finding: Finding) -> Finding {
    let start = finding.last.floor(WINDOW);
    Finding { window: Window { start, end: start.plus(WINDOW) }, ..finding }
}

fn step(at: Timestamp) -> u32 {
    u32::try_from(at.as_nanos() / (STEP * 1_000_000_000)).unwrap_or(0)
}

fn steps(span: Duration) -> u32 {
    u32::try_from(span.as_secs().div_ceil(STEP.cast_unsigned())).unwrap_or(u32::MAX)
}

fn time(step: u32) -> Timestamp {
    Timestamp::from_secs(i64::from(step) * STEP)
}

fn long(steps: u32) -> Duration {
    Duration::from_secs(u64::from(steps) * STEP.cast_unsigned())
}
