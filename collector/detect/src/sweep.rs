//! AZ-05, AZ-06, AZ-16, AZ-17 and AZ-23: scans as Sentinel's rules count them.
//!
//! | | exact: key × window, counts | fixed |
//! | --- | --- | --- |
//! | AZ-05 | public IPv4 source × 5 min, ports whatever the destination | source and destination, any source, failed contacts |
//! | AZ-06 | port × 1 h, hosts reached inbound, at most 100 | source and port, failed hosts, and most of its hosts failed |
//! | AZ-16 | source, destination × 30 s, ports | failed contacts |
//! | AZ-17 | source, port but 80 and 443 × 30 s, hosts | failed contacts |
//! | AZ-23 | source × 1 h, ports allowed between private and public, as many source ports | failed contacts, no matter from which port |
//!
//! Exact forms count every row but the tail of a sensor's flow. A blank address of Traffic Analytics is no host.

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::{Action, Direction};
use spanwatch_common::net::{Address, Prefix};

use crate::card::Card;
use crate::counter::{Count, Counting, Key, Limit, Tally, Told};
use crate::facts::{Facts, Interest};
use crate::finding::{Subject, Variant};
use crate::ports::PortSet;
use crate::row::{Contact, Part, Row};
use crate::rules::Exclude;
use crate::scan::{ALL_BUT_TAILS, FAILED_PORTS, PROBES, failed_port, has_ports, is_countable, is_innocent, is_probe, outcome};

/// KQL's `make_set(…, 100)` of AZ-06 stops here.
const SWEEP_HOSTS_MAX: u64 = 100;
/// A set of KQL is exact; beyond so many hosts in half a minute we are content with 0.8 %.
const EXACT_HOSTS_MAX: usize = 16_384;

/// Whether KQL's `ipv4_is_private(address) == false`: null for IPv6 and for a blank address, hence false here.
pub(crate) fn is_public_v4(address: Address) -> bool {
    address.as_v4().is_some() && !address.is_private_v4()
}

/// AZ-05.
pub(crate) struct PortScan {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) threshold: u64,
}

impl Counting for PortScan {
    type More = ();
    const UNIT: &'static str = "ports";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = true;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => FAILED_PORTS,
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        match self.variant {
            Variant::Exact => {
                let loopback = Address::from_v4([127, 0, 0, 1]);
                let counts = row.part != Part::Tail && is_public_v4(row.source) && row.source != loopback;
                counts.then(|| (Key::of_source(row), Count::Distinct(u128::from(row.port))))
            }
            Variant::Fixed => failed_port(row, &self.exclude),
        }
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::Above(self.threshold)
    }

    fn subject(&self, key: &Key) -> Subject {
        Subject::pair(key.source(), key.destination())
    }

    fn sentence(&self, key: &Key, _tally: &Tally<()>, told: &Told<'_>) -> String {
        let (source, outcome) = (key.source(), outcome(self.variant));
        let whose = match self.variant {
            Variant::Exact => "of any hosts".to_owned(),
            Variant::Fixed => format!("of {}", key.destination()),
        };
        format!("{source} tried {} ports {whose} {}, {outcome}: {}", told.count, told.within, told.services())
    }
}

/// AZ-06.
pub(crate) struct PortSweep {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) threshold: u64,
    pub(crate) failure_ratio_min: f64,
}

impl Counting for PortSweep {
    /// Hosts that answered, in the fixed form.
    type More = Card;
    const UNIT: &'static str = "hosts";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = true;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => Interest::only(Facts::COUNTABLE.and(Facts::PORTS)).but_not(Facts::TAIL),
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        match self.variant {
            Variant::Exact => {
                let counts = row.part != Part::Tail && row.direction == Direction::Inbound && row.destination.is_some();
                counts.then(|| (Key { port: row.port, ..Key::default() }, Count::Distinct(row.destination.0)))
            }
            Variant::Fixed => {
                let key = || Key { port: row.port, protocol: row.protocol, ..Key::of_source(row) };
                let failed = row.contact == Contact::Probe;
                let counts = has_ports(row) && row.part != Part::Tail && (failed || is_answer(row));
                (counts && !is_innocent(row) && is_countable(row, &self.exclude))
                    .then(|| (key(), if failed { Count::Distinct(row.destination.0) } else { Count::Sum(0) }))
            }
        }
    }

    fn size(answered: &Card) -> usize {
        answered.size()
    }

    fn note(&self, row: &Row, answered: &mut Card) -> u64 {
        if self.variant == Variant::Fixed && row.contact != Contact::Probe {
            answered.insert(row.destination.0);
        }
        0
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::Above(self.threshold)
    }

    fn value(&self, count: u64) -> f64 {
        match self.variant {
            Variant::Exact => count.min(SWEEP_HOSTS_MAX) as f64,
            Variant::Fixed => count as f64,
        }
    }

    fn confirms(&self, _key: &Key, tally: &Tally<Card>) -> bool {
        let failed = tally.count() as f64;
        self.variant == Variant::Exact || failed >= self.failure_ratio_min * (failed + tally.more.count() as f64)
    }

    fn subject(&self, key: &Key) -> Subject {
        let subject = Subject::host(key.source()).with_port(key.port);
        if self.variant == Variant::Fixed { subject.with_protocol(key.protocol) } else { subject }
    }

    fn sentence(&self, key: &Key, tally: &Tally<Card>, told: &Told<'_>) -> String {
        match self.variant {
            Variant::Exact => {
                let count = self.value(told.count);
                let more = if told.count > SWEEP_HOSTS_MAX { " or more" } else { "" };
                format!("port {} was reached inbound on {count}{more} hosts {}, from whatever sources", key.port, told.within)
            }
            Variant::Fixed => format!(
                "{} tried {} on {} hosts {} and no conversation came of it; {} hosts answered",
                key.source(),
                told.services(),
                told.count,
                told.within,
                tally.more.count(),
            ),
        }
    }
}

/// Whether the row shows a conversation.
fn is_answer(row: &Row) -> bool {
    row.outcome == crate::row::Outcome::Success
}

/// AZ-16.
pub(crate) struct QuickPortScan {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) threshold: u64,
}

impl Counting for QuickPortScan {
    type More = ();
    const UNIT: &'static str = "ports";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = false;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => FAILED_PORTS,
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        match self.variant {
            Variant::Exact => {
                let known = self.exclude.sources.iter().any(|prefix: &Prefix| prefix.contains(row.source));
                let counts = row.part != Part::Tail && !known;
                counts.then(|| (Key::of_pair(row), Count::Distinct(u128::from(row.port))))
            }
            Variant::Fixed => failed_port(row, &self.exclude),
        }
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::Above(self.threshold)
    }

    fn subject(&self, key: &Key) -> Subject {
        Subject::pair(key.source(), key.destination())
    }

    fn sentence(&self, key: &Key, _tally: &Tally<()>, told: &Told<'_>) -> String {
        let (source, destination, outcome) = (key.source(), key.destination(), outcome(self.variant));
        format!("{source} tried {} ports of {destination} {}, {outcome}: {}", told.count, told.within, told.services())
    }
}

/// AZ-17.
pub(crate) struct QuickSweep {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) threshold: u64,
    pub(crate) ignored: PortSet,
}

impl Counting for QuickSweep {
    type More = ();
    const UNIT: &'static str = "hosts";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = true;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => PROBES,
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        if self.ignored.contains(row.port) {
            return None;
        }
        let key = Key { port: row.port, ..Key::of_source(row) };
        let (counts, key) = match self.variant {
            Variant::Exact => (row.part != Part::Tail && row.destination.is_some(), key),
            Variant::Fixed => (is_probe(row, &self.exclude), Key { protocol: row.protocol, ..key }),
        };
        counts.then_some((key, Count::Distinct(row.destination.0)))
    }

    fn card(&self) -> Card {
        Card::exact_to(EXACT_HOSTS_MAX)
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::Above(self.threshold)
    }

    fn subject(&self, key: &Key) -> Subject {
        let subject = Subject::host(key.source()).with_port(key.port);
        if self.variant == Variant::Fixed { subject.with_protocol(key.protocol) } else { subject }
    }

    fn sentence(&self, key: &Key, _tally: &Tally<()>, told: &Told<'_>) -> String {
        let (source, outcome) = (key.source(), outcome(self.variant));
        format!("{source} tried {} on {} hosts {}, {outcome}", told.services(), told.count, told.within)
    }
}

/// AZ-23.
pub(crate) struct WideScan {
    pub(crate) variant: Variant,
    pub(crate) exclude: Exclude,
    pub(crate) threshold: u64,
    pub(crate) source_ports_min: u64,
    pub(crate) port_ratio_min: f64,
    pub(crate) ignored: PortSet,
}

/// Ports that a source tried, and from which.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ports {
    tried: PortSet,
    from: PortSet,
}

impl Counting for WideScan {
    type More = Ports;
    const UNIT: &'static str = "ports";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = true;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => ALL_BUT_TAILS,
            Variant::Fixed => FAILED_PORTS,
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        if self.ignored.contains(row.port) {
            return None;
        }
        let counts = match self.variant {
            Variant::Exact => {
                let (source, destination) = (row.source, row.destination);
                row.part != Part::Tail
                    && row.action != Action::Deny
                    && (source.is_private_v4() && is_public_v4(destination)
                        || is_public_v4(source) && destination.is_private_v4())
            }
            Variant::Fixed => has_ports(row) && is_probe(row, &self.exclude),
        };
        counts.then(|| (Key::of_source(row), Count::Sum(0)))
    }

    fn size(ports: &Ports) -> usize {
        ports.tried.size() + ports.from.size()
    }

    fn note(&self, row: &Row, ports: &mut Ports) -> u64 {
        if self.variant == Variant::Exact && row.source_port != 0 {
            ports.from.insert(row.source_port);
        }
        u64::from(ports.tried.insert(row.port))
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::From(self.threshold)
    }

    fn confirms(&self, _key: &Key, tally: &Tally<Ports>) -> bool {
        let (tried, from) = (tally.more.tried.count(), tally.more.from.count());
        self.variant == Variant::Fixed
            || u64::from(from) >= self.source_ports_min && f64::from(tried) >= self.port_ratio_min * f64::from(from)
    }

    fn subject(&self, key: &Key) -> Subject {
        Subject::host(key.source())
    }

    fn sentence(&self, key: &Key, tally: &Tally<Ports>, told: &Told<'_>) -> String {
        let (source, Told { count, within, .. }) = (key.source(), told);
        match self.variant {
            Variant::Exact => {
                format!("{source} used {count} ports of others from {} ports of its own {within}", tally.more.from.count())
            }
            Variant::Fixed => format!("{source} tried {count} ports of any hosts {within}, and no conversation came of it"),
        }
    }
}
