//! AZ-20 and AZ-21: a source reaches a destination and port, or uses a port at all, for the first time in days.
//!
//! AZ-20 is judged at every full hour, AZ-21 at the end of every UTC day, against the memory of the days before it. A second
//! sighting is silent; after `memory_secs` without one, the next is a first one again.
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | rows | all; AZ-21 without the common ports | of flows that were not refused, denied or ignored; ports of ICMP are none |
//! | AZ-20 reports | each source, port and destination, unless that destination is the **only** one learnt for source and port: two regular destinations are reported every hour | those not in memory |
//! | AZ-21 reports | each source and port that are not in memory | the same |
//! | told | one row each | one finding per source, with how many and which |
//! | begins | at once: the first hour of a log is all first sights | when `learn_secs` have passed since the first row |
//!
//! Innocent things that look alike: a new server, a new version of a program, a colleague back from holidays.
//!
//! Memory: 150 bytes at most per source, port and destination (AZ-20) or source and port (AZ-21), `keys_max` of them; beyond, those
//! not seen for longest are forgotten, counted, and first sights again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::bins::{self, Past, Schedule};
use super::history::longest_silent;
use super::{Tally, claim, during, looked_at, looks_at};
use crate::card::{EXAMPLES_MAX, Least};
use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Subject, Variant, Window, service_name};
use crate::hash::{Map, table_bytes};
use crate::ports::PortSet;
use crate::row::Row;
use crate::rules::Exclude;

/// AZ-20 or AZ-21 in one of its forms.
pub(crate) struct Firsts {
    pub(crate) card: Arc<RuleCard>,
    /// Whether the destination is part of what is remembered: AZ-20.
    pub(crate) destinations: bool,
    pub(crate) exclude: Exclude,
    /// Ports that are never told, in either form.
    pub(crate) common_ports: PortSet,
    /// Length of a bin.
    pub(crate) bin: Duration,
    /// How long a sighting is remembered.
    pub(crate) memory: Duration,
    /// How long the fixed form only learns.
    pub(crate) learn: Duration,
}

/// Source, port, and destination where it is remembered.
type Key = (Address, u16, Address);

/// What was seen of a key in one bin.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sight {
    tally: Tally,
    /// The smallest protocol number.
    protocol: u8,
    /// Destinations, where they are not part of the key.
    hosts: Least,
}

/// The two destinations of a source and port that were seen last, which is all that the public AZ-20 needs.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Last {
    newest: (Address, Timestamp),
    other: Option<(Address, Timestamp)>,
}

impl Last {
    fn see(&mut self, destination: Address, at: Timestamp) {
        if self.newest.0 != destination {
            self.other = Some(self.newest);
        }
        self.newest = (destination, at);
    }

    /// Whether the public query reports `destination`: nothing was learnt since `horizon`, or something else was.
    fn reports(&self, destination: Address, horizon: Timestamp) -> bool {
        let differs = |(known, at): (Address, Timestamp)| known != destination && at >= horizon;
        self.newest.1 < horizon || differs(self.newest) || self.other.is_some_and(differs)
    }
}

/// What closed bins leave behind.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The bin in which each key was seen last.
    seen: Map<Key, Timestamp>,
    /// The same for the exact AZ-20.
    last: Map<(Address, u16), Last>,
    /// First sights of the bin that is judged next.
    fresh: Vec<(Key, Sight)>,
    /// The first bin ever.
    since: Timestamp,
}

impl Past for Memory {
    fn trim(&mut self, horizon: Timestamp, keys_max: usize) -> u64 {
        self.seen.retain(|_, at| *at >= horizon);
        self.last.retain(|_, last| last.newest.1 >= horizon);
        let old = longest_silent(self.seen.iter().map(|(key, at)| (*at, key)), keys_max);
        for key in &old {
            self.seen.remove(key);
        }
        let older = longest_silent(self.last.iter().map(|(key, last)| (last.newest.1, key)), keys_max);
        for key in &older {
            self.last.remove(key);
        }
        (old.len() + older.len()) as u64
    }

    fn keys(&self) -> usize {
        self.seen.len().max(self.last.len())
    }

    fn size(&self) -> usize {
        let fresh: usize = self.fresh.iter().map(|(_, sight)| sight.hosts.size()).sum();
        table_bytes(&self.seen) + table_bytes(&self.last) + self.fresh.capacity() * size_of::<(Key, Sight)>() + fresh
    }
}

impl Firsts {
    /// Whether `key` in the bin at `start` is a first sight.
    fn is_first(&self, past: &Memory, &(source, port, destination): &Key, start: Timestamp) -> bool {
        let horizon = start.minus(self.memory);
        if self.card.variant == Variant::Exact && self.destinations {
            return past.last.get(&(source, port)).is_none_or(|last| last.reports(destination, horizon));
        }
        let learnt = start >= past.since.plus(self.learn);
        learnt && past.seen.get(&(source, port, destination)).is_none_or(|at| *at < horizon)
    }

    /// One row of the public query.
    fn single(&self, &(source, port, destination): &Key, sight: &Sight, now: Timestamp) -> Finding {
        let start = now.minus(self.bin);
        let (subject, what) = if self.destinations {
            (Subject::pair(source, destination), format!("reached {destination} on port {port}"))
        } else {
            (Subject::host(source), format!("used port {port}"))
        };
        let sentence = format!("{source} {what} for the first time in {} days", self.memory.as_secs() / 86_400);
        let hosts = if self.destinations { vec![destination] } else { addresses(&sight.hosts) };
        let evidence = first_sights(1, hosts, vec![service_name(sight.protocol, port)]);
        claim(&self.card, subject.with_port(port), Window { start, end: now }, &sight.tally, evidence, sentence)
    }

    /// All first sights of one source in one bin.
    fn group(&self, source: Address, sights: &[(Key, Sight)], now: Timestamp) -> Finding {
        let start = now.minus(self.bin);
        let (mut hosts, mut services, mut tally) = (Least::default(), BTreeSet::new(), Tally::default());
        for ((_, port, destination), sight) in sights {
            services.insert((sight.protocol, *port));
            tally.merge(&sight.tally);
            if self.destinations {
                hosts.insert(destination.0);
            }
            sight.hosts.values().iter().for_each(|&host| hosts.insert(host));
        }
        let services: Vec<String> =
            services.into_iter().take(EXAMPLES_MAX).map(|(protocol, port)| service_name(protocol, port)).collect();
        let hosts = addresses(&hosts);
        let count = sights.len();
        let things = match (self.destinations, count) {
            (true, 1) => "a destination and port".to_owned(),
            (true, _) => format!("{count} destinations and ports"),
            (false, 1) => "a port".to_owned(),
            (false, _) => format!("{count} ports"),
        };
        let sentence = format!(
            "{source} used {things} {} that it had not used for {} days: {} of {}",
            during(start, self.bin),
            self.memory.as_secs() / 86_400,
            few(&services),
            few(&hosts)
        );
        let evidence = first_sights(count, hosts, services);
        claim(&self.card, Subject::host(source), Window { start, end: now }, &tally, evidence, sentence)
    }
}

fn first_sights(count: usize, hosts: Vec<Address>, services: Vec<String>) -> Evidence {
    Evidence { value: count as f64, threshold: 0.0, unit: "first sights".to_owned(), hosts, services, ..Evidence::default() }
}

/// The first three, and whether there are more.
fn few<T: ToString>(things: &[T]) -> String {
    let named: Vec<String> = things.iter().take(3).map(T::to_string).collect();
    format!("{}{}", named.join(", "), if things.len() > 3 { ", …" } else { "" })
}

fn addresses(hosts: &Least) -> Vec<Address> {
    hosts.values().iter().map(|&host| Address(host)).collect()
}

impl bins::Rule for Firsts {
    type Key = Key;
    type Keys = Option<Key>;
    type Cell = Sight;
    type Past = Memory;

    // Judged at the end of every bin.
    fn schedule(&self) -> Schedule {
        Schedule { every: self.bin, look_back: self.bin + self.memory }
    }

    fn interest(&self) -> Interest {
        match self.card.variant {
            Variant::Exact => looked_at(Variant::Exact),
            Variant::Fixed => looked_at(Variant::Fixed).but_not(Facts::FAILED),
        }
    }

    fn keys(&self, row: &Row) -> Option<Key> {
        let Row { source, destination, port, .. } = *row;
        let met = self.card.variant == Variant::Exact || (port != 0 && !row.outcome.is_failure());
        let counts = met
            && source.is_some()
            && destination.is_some()
            && !self.common_ports.contains(port)
            && looks_at(self.card.variant, &self.exclude, row);
        counts.then_some((source, port, if self.destinations { destination } else { Address::NONE }))
    }

    fn fresh(&self) -> Sight {
        Sight { protocol: u8::MAX, ..Sight::default() }
    }

    fn add(&self, cell: &mut Sight, row: &Row) {
        cell.tally.add(1, row.at);
        cell.protocol = cell.protocol.min(row.protocol);
        if !self.destinations {
            cell.hosts.insert(row.destination.0);
        }
    }

    fn size(cell: &Sight) -> usize {
        cell.hosts.size()
    }

    fn weight(&self, cell: &Sight) -> u64 {
        cell.tally.count
    }

    fn absorb(&self, past: &mut Memory, start: Timestamp, cells: Vec<(Key, Sight)>) {
        if !past.since.is_some() {
            past.since = start;
        }
        let (mut keys, mut fresh) = (Vec::with_capacity(cells.len()), Vec::new());
        for (key, sight) in cells {
            if self.is_first(past, &key, start) {
                fresh.push((key, sight));
            }
            keys.push(key);
        }
        past.fresh = fresh;
        for (source, port, destination) in keys {
            if self.card.variant == Variant::Exact && self.destinations {
                let newest = (destination, start);
                past.last.entry((source, port)).or_insert(Last { newest, other: None }).see(destination, start);
            } else {
                past.seen.insert((source, port, destination), start);
            }
        }
    }

    fn judge(&self, past: &mut Memory, now: Timestamp, findings: &mut Vec<Finding>) {
        let fresh = std::mem::take(&mut past.fresh);
        if self.card.variant == Variant::Exact {
            findings.extend(fresh.iter().map(|(key, sight)| self.single(key, sight, now)));
            return;
        }
        let mut by_source: BTreeMap<Address, Vec<(Key, Sight)>> = BTreeMap::new();
        for (key, sight) in fresh {
            by_source.entry(key.0).or_default().push((key, sight));
        }
        findings.extend(by_source.iter().map(|(source, sights)| self.group(*source, sights, now)));
    }
}
