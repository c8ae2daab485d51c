//! AZ-01 and AZ-02: one source tries many hosts, or many ports of one host.
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | who | private IPv4 to private IPv4 | any address but multicast, broadcast and what is excluded |
//! | what | TCP to ports below 10000 | TCP, UDP, SCTP; for AZ-01 also ping; every port |
//! | counts | every record, but the tail of a flow | contacts that came to nothing ([`Contact::Probe`]) |
//!
//! Innocent things that look alike: vulnerability scanners, monitoring of many dead hosts, load balancers that probe by connecting
//! and hanging up. An ACK-only scan is not counted: its records look like connections that began before the sensor did.

use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;

use crate::counter::{Count, Counting, Key, Limit, Tally, Told, service};
use crate::facts::{Facts, Interest};
use crate::finding::{Subject, Variant};
use crate::roles::Role;
use crate::row::{Contact, Part, Row};
use crate::rules::{Common, Exclude};
use crate::sites::FlowClass;

/// Exact AZ-01 and AZ-02 look at ports below this one.
const EXACT_PORT_END: u16 = 10_000;
/// A sentence names services up to so many.
const NAMED_MAX: usize = 5;

/// Whether the public rules AZ-01 and AZ-02 look at a row.
fn is_private_tcp(row: &Row) -> bool {
    row.protocol == protocol::TCP
        && row.port < EXACT_PORT_END
        && row.part != Part::Tail
        && row.source.is_private_v4()
        && row.destination.is_private_v4()
}

/// The rows of which [`is_probe`] may be true.
pub(crate) const PROBES: Interest = Interest::only(Facts::PROBE.and(Facts::COUNTABLE));
/// The rows of which [`failed_port`] may make something.
pub(crate) const FAILED_PORTS: Interest = Interest::only(Facts::PROBE.and(Facts::COUNTABLE).and(Facts::PORTS));
/// What exact forms read: every row but the tail of a sensor's flow.
pub(crate) const ALL_BUT_TAILS: Interest = Interest::EVERYTHING.but_not(Facts::TAIL);

/// Whose contacts come to nothing because that is what they are for, or whom they speak to is often gone.
const INNOCENT: [Role; 4] = [Role::Scanner, Role::Monitor, Role::LoadBalancer, Role::PeerToPeer];

/// Whether a row speaks of a contact that came to nothing, for the fixed forms of all scan rules.
pub(crate) fn is_probe(row: &Row, exclude: &Exclude) -> bool {
    row.contact == Contact::Probe && !is_innocent(row) && is_countable(row, exclude)
}

/// Whether the initiator has a role that explains failures.
pub(crate) fn is_innocent(row: &Row) -> bool {
    row.source_roles.has_any(&INNOCENT)
}

/// Whether the fixed form of a rule may count a row at all: neither the platform's own nor to a group, and not excluded.
pub(crate) fn is_countable(row: &Row, exclude: &Exclude) -> bool {
    !row.platform
        && row.source != row.destination
        && row.source.is_some()
        && row.destination.is_some()
        && row.class != FlowClass::Multicast
        && !exclude.covers(row.source, row.destination, row.port)
}

/// Whether the protocol has ports (and ping has not).
pub(crate) const fn has_ports(row: &Row) -> bool {
    !matches!(row.protocol, protocol::ICMP | protocol::ICMPV6)
}

/// A port of one host on which no conversation came about: what the fixed forms of all port scan rules count.
pub(crate) fn failed_port(row: &Row, exclude: &Exclude) -> Option<(Key, Count)> {
    (has_ports(row) && is_probe(row, exclude)).then(|| (Key::of_pair(row), Count::Distinct(service(row))))
}

/// What the two forms say about answers, at the end of a sentence.
pub(crate) const fn outcome(variant: Variant) -> &'static str {
    match variant {
        Variant::Exact => "answered or not",
        Variant::Fixed => "and no conversation came of it",
    }
}

/// AZ-01.
pub(crate) struct Horizontal {
    variant: Variant,
    exclude: Exclude,
    threshold: u64,
}

impl Horizontal {
    pub(crate) fn new(variant: Variant, common: &Common, threshold: u64) -> Self {
        Self { variant, exclude: common.exclude.clone(), threshold }
    }
}

impl Counting for Horizontal {
    type More = ();
    const UNIT: &'static str = "hosts";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = true;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => Interest::only(Facts::TCP).but_not(Facts::TAIL),
            Variant::Fixed => PROBES,
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        let counts = match self.variant {
            Variant::Exact => is_private_tcp(row),
            Variant::Fixed => is_probe(row, &self.exclude),
        };
        counts.then(|| (Key::of_source(row), Count::Distinct(row.destination.0)))
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::Above(self.threshold)
    }

    fn subject(&self, key: &Key) -> Subject {
        Subject::host(key.source())
    }

    fn sentence(&self, key: &Key, _tally: &Tally<()>, told: &Told<'_>) -> String {
        let (source, Told { count, within, services }) = (Address(key.source), told);
        let outcome = outcome(self.variant);
        if services.len() > NAMED_MAX {
            return format!("{source} tried {count} hosts on more than {NAMED_MAX} services {within}, {outcome}");
        }
        format!("{source} tried {count} hosts on {} {within}, {outcome}", services.join(", "))
    }
}

/// AZ-02.
pub(crate) struct Vertical {
    variant: Variant,
    exclude: Exclude,
    threshold: u64,
}

impl Vertical {
    pub(crate) fn new(variant: Variant, common: &Common, threshold: u64) -> Self {
        Self { variant, exclude: common.exclude.clone(), threshold }
    }
}

impl Counting for Vertical {
    type More = ();
    const UNIT: &'static str = "ports";
    const NAMES_SERVICES: bool = true;
    const NAMES_HOSTS: bool = false;

    fn interest(&self) -> Interest {
        match self.variant {
            Variant::Exact => Interest::only(Facts::TCP).but_not(Facts::TAIL),
            Variant::Fixed => FAILED_PORTS,
        }
    }

    fn count(&self, row: &Row) -> Option<(Key, Count)> {
        match self.variant {
            Variant::Exact => is_private_tcp(row).then(|| (Key::of_pair(row), Count::Distinct(service(row)))),
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
