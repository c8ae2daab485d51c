//! AZ-07, AZ-09, AZ-14, AZ-22 and AZ-24: too many sessions of one kind.
//!
//! | | exact: key × window, counts | fixed |
//! | --- | --- | --- |
//! | AZ-07 | source × 5 min, rows that failed | failed connections, each once |
//! | AZ-09 | port, protocol, direction, action of the watch list × 10 min, rows | per source, connections, each once |
//! | AZ-14 | public IPv4 source, RDP × 5 min, failures that policy did not cause | source and destination, connections of any outcome |
//! | AZ-22 | source, destination, protocol × 1 h, denied rows, if two such triples were denied | connections denied, ports that reset |
//! | AZ-24 | source, destination × 1 h, rows with an indicator | but for knocks from outside that came to nothing |
//!
//! A connection shows in several rows: a sensor tells beginning, slices and end, and Azure logs it at both network interfaces.
//! Fixed forms count it once, by addresses, ports and protocol. A port that answers with a reset is closed, or its service is down, and
//! that is one fact however often somebody tries: the fixed AZ-22 counts it once. A row of Traffic Analytics stands for several connections and says
//! how many.

use std::sync::Arc;

use spanwatch_common::cloud::Action;
use spanwatch_common::flow::protocol;

use crate::counter::{Count, Counting, Key, Limit, Tally, Told};
use crate::facts::{Facts, Interest};
use crate::finding::{Severity, Subject, Variant, service_name};
use crate::indicators::Indicators;
use crate::ports::PortSet;
use crate::row::{Contact, Outcome, Part, Row};
use crate::rules::Exclude;
use crate::rules::watch_list::{WatchList, facet_words};
use crate::scan::{ALL_BUT_TAILS, is_countable};
use crate::sweep::is_public_v4;

/// The connection to which a row belongs, as one number, or how many connections a folded row stands for.
fn connections(row: &Row) -> Count {
    if row.origin.is_folded() {
        return Count::Sum(u64::from(row.events));
    }
    let ends = u128::from(row.protocol) << 32 | u128::from(row.port) << 16 | u128::from(row.source_port);
    // The upper bits of an IPv4 address are all the same, so nothing is lost on it; of an IPv6 address it makes another.
    Count::Distinct(row.destination.0 ^ ends << 80)
}

/// AZ-07.
pub(crate) struct Failures {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) threshold: u64,
}

impl Counting for Failures {
    type More = ();
    const UNIT: &'static str = "failures";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = true;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => Interest::only(Facts::FAILED.and(Facts::COUNTABLE)),
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        let counted = match self.variant {
            Variant::Exact => (row.part != Part::Tail && row.is_asim_failure() && row.source.is_some()).then_some(Count::Sum(1)),
            Variant::Fixed => (row.outcome.is_failure() && is_countable(row, &self.exclude)).then(|| connections(row)),
        };
        counted.map(|count| (Key::of_source(row), count))
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::Above(self.threshold)
    }

    fn subject(&self, key: &Key) -> Subject {
        Subject::host(key.source())
    }

    fn sentence(&self, key: &Key, _tally: &Tally<()>, told: &Told<'_>) -> String {
        format!("{} failed {} times {}: {}", key.source(), told.count, told.within, told.services())
    }
}

/// AZ-09.
pub(crate) struct PortMisuse {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) list: WatchList,
}

impl Counting for PortMisuse {
    type More = ();
    const UNIT: &'static str = "sessions";
    const NAMES_SERVICES: bool = false;
    const NAMES_HOSTS: bool = true;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => Interest::only(Facts::COUNTABLE).but_not(Facts::TAIL),
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        if row.part == Part::Tail {
            return None;
        }
        let entry = self.list.find(row)?;
        let service = Key { port: row.port, protocol: row.protocol, ..Key::default() };
        match self.variant {
            Variant::Exact => Some((Key { facet: self.list.facet(row, entry), ..service }, Count::Sum(1))),
            Variant::Fixed => is_countable(row, &self.exclude)
                .then(|| (Key { source: row.source.0, facet: self.list.facet(row, entry), ..service }, connections(row))),
        }
    }

    fn limit(&self, key: &Key) -> Limit {
        self.list.entry(key.facet).map_or(Limit::From(u64::MAX), |entry| Limit::Above(entry.threshold))
    }

    fn quiet_max(&self) -> u64 {
        self.list.threshold_min()
    }

    fn severity(&self, key: &Key) -> Option<Severity> {
        self.list.entry(key.facet).map(|entry| entry.severity)
    }

    fn subject(&self, key: &Key) -> Subject {
        let subject = Subject::host(key.source()).with_port(key.port).with_protocol(key.protocol);
        let (direction, action) = self.list.words(key.facet);
        Subject { facet: facet_words(direction, action), ..subject }
    }

    fn sentence(&self, key: &Key, _tally: &Tally<()>, told: &Told<'_>) -> String {
        let name = self.list.entry(key.facet).map_or("", |entry| &*entry.name);
        let service = service_name(key.protocol, key.port);
        let (direction, action) = self.list.words(key.facet);
        let kind = facet_words(direction, action).map_or(String::new(), |words| format!(", {words}"));
        let who = if key.source == 0 { "all hosts".to_owned() } else { key.source().to_string() };
        format!("{who} had {} sessions on {service} ({name}{kind}) {}", told.count, told.within)
    }
}

/// AZ-14.
pub(crate) struct Logons {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) threshold: u64,
    pub(crate) ports: PortSet,
}

impl Counting for Logons {
    type More = ();
    const UNIT: &'static str = "connections";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = true;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => Interest::only(Facts::TCP.and(Facts::COUNTABLE)).but_not(Facts::TAIL),
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        if !self.ports.contains(row.port) || row.part == Part::Tail {
            return None;
        }
        match self.variant {
            Variant::Exact => {
                let counts = row.is_asim_failure() && row.action != Action::Deny && is_public_v4(row.source);
                counts.then(|| (Key { port: row.port, ..Key::of_source(row) }, Count::Sum(u64::from(row.events))))
            }
            Variant::Fixed => (row.protocol == protocol::TCP && is_countable(row, &self.exclude))
                .then(|| (Key { port: row.port, ..Key::of_pair(row) }, connections(row))),
        }
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::From(self.threshold)
    }

    fn subject(&self, key: &Key) -> Subject {
        Subject::pair(key.source(), key.destination()).with_port(key.port)
    }

    fn sentence(&self, key: &Key, _tally: &Tally<()>, told: &Told<'_>) -> String {
        let (source, port, Told { count, within, .. }) = (key.source(), key.port, told);
        match self.variant {
            Variant::Exact => format!("{source} failed {count} times on port {port} of any hosts {within}"),
            Variant::Fixed => format!("{source} connected {count} times to port {port} of {} {within}", key.destination()),
        }
    }
}

/// AZ-22.
pub(crate) struct Denials {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) threshold: u64,
}

impl Counting for Denials {
    type More = ();
    const UNIT: &'static str = "denials";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = false;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => Interest::only(Facts::DENY),
            Variant::Fixed => Interest::only(Facts::REFUSED.and(Facts::COUNTABLE)),
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        let key = || Key { protocol: row.protocol, ..Key::of_pair(row) };
        match self.variant {
            Variant::Exact => (row.action == Action::Deny).then(|| (key(), Count::Sum(1))),
            Variant::Fixed => {
                let refused = match row.outcome {
                    Outcome::Denied => connections(row),
                    Outcome::Reset => Count::Distinct(u128::from(row.port)),
                    _ => return None,
                };
                is_countable(row, &self.exclude).then(|| (key(), refused))
            }
        }
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::From(match self.variant {
            Variant::Exact => 1,
            Variant::Fixed => self.threshold,
        })
    }

    fn tells(&self, fired: usize) -> bool {
        self.variant == Variant::Fixed || fired > 1
    }

    fn subject(&self, key: &Key) -> Subject {
        Subject::pair(key.source(), key.destination()).with_protocol(key.protocol)
    }

    fn sentence(&self, key: &Key, _tally: &Tally<()>, told: &Told<'_>) -> String {
        let (source, destination) = (key.source(), key.destination());
        format!("{source} was refused {} times by {destination} {}: {}", told.count, told.within, told.services())
    }
}

/// AZ-24.
pub(crate) struct Indicated {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) indicators: Arc<Indicators>,
}

impl Indicated {
    /// Whether Azure said so, or an end that is not private is in the set.
    fn is_indicated(&self, row: &Row) -> bool {
        row.context.as_ref().is_some_and(|context| &*context.flow_type == "MaliciousFlow")
            || !self.indicators.is_empty() && (self.indicators.contains(row.source) || self.indicators.contains(row.destination))
    }
}

impl Counting for Indicated {
    type More = ();
    const UNIT: &'static str = "contacts";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = false;

    fn interest(&self) -> Interest {
        // Without a list of its own it knows only what a cloud says.
        if self.indicators.is_empty() { Interest::only(Facts::CLOUD).but_not(Facts::TAIL) } else { ALL_BUT_TAILS }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        if row.context.is_none() && self.indicators.is_empty() || row.part == Part::Tail || !self.is_indicated(row) {
            return None;
        }
        match self.variant {
            Variant::Exact => Some((Key::of_pair(row), Count::Sum(1))),
            Variant::Fixed => {
                let knock = row.contact == Contact::Probe && !row.source.is_private();
                (!knock && is_countable(row, &self.exclude)).then(|| (Key::of_pair(row), connections(row)))
            }
        }
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::From(1)
    }

    fn subject(&self, key: &Key) -> Subject {
        Subject::pair(key.source(), key.destination())
    }

    fn sentence(&self, key: &Key, _tally: &Tally<()>, told: &Told<'_>) -> String {
        let known = if self.indicators.contains(key.source()) { key.source() } else { key.destination() };
        let (source, destination) = (key.source(), key.destination());
        let (count, within, services) = (told.count, &told.within, told.services());
        format!("{source} spoke to {destination} {count} times {within} ({services}); {known} is a known bad address")
    }
}
