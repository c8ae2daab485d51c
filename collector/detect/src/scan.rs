//! AZ-01 and AZ-02: one source tries many hosts, or many ports of one host.
//!
//! | | exact (the public KQL) | fixed |
//! | --- | --- | --- |
//! | who | private IPv4 to private IPv4 | any address but multicast, broadcast and what is excluded |
//! | what | TCP to ports below 10000 | TCP, UDP, SCTP; for AZ-01 also ping; every port |
//! | counts | every record, but the tail of a flow | contacts that came to nothing ([`Contact::Probe`]) |
//!
//! The fixed AZ-01 fires when it is many hosts on one service, or very many in all: the peers of a file sharer are each gone from another
//! port.
//!
//! Innocent things that look alike: vulnerability scanners, monitoring of many dead hosts, load balancers that probe by connecting
//! and hanging up. An ACK-only scan is not counted: its records look like connections that began before the sensor did.

use serde::{Deserialize, Serialize};
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
/// Services of a source whose hosts are told apart.
const SERVICES_MAX: usize = 16;
/// Where no service has enough hosts, it takes so many times as many in all.
const SCATTERED_FACTOR: u64 = 4;

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
    type More = Knocks;
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

    fn note(&self, row: &Row, knocks: &mut Knocks) -> u64 {
        if self.variant == Variant::Fixed {
            knocks.insert(service(row) as u32, row.destination, self.threshold);
        }
        0
    }

    fn size(knocks: &Knocks) -> usize {
        knocks.0.capacity() * size_of::<(u32, u64)>()
    }

    fn limit(&self, _key: &Key) -> Limit {
        Limit::Above(self.threshold)
    }

    fn confirms(&self, _key: &Key, tally: &Tally<Knocks>) -> bool {
        match self.variant {
            Variant::Exact => true,
            Variant::Fixed => {
                tally.count() > SCATTERED_FACTOR * self.threshold || tally.more.hosts_of_one_service() > self.threshold
            }
        }
    }

    fn subject(&self, key: &Key) -> Subject {
        Subject::host(key.source())
    }

    fn sentence(&self, key: &Key, _tally: &Tally<Knocks>, told: &Told<'_>) -> String {
        let (source, Told { count, within, services }) = (Address(key.source), told);
        let outcome = outcome(self.variant);
        if services.len() > NAMED_MAX {
            return format!("{source} tried {count} hosts on more than {NAMED_MAX} services {within}, {outcome}");
        }
        format!("{source} tried {count} hosts on {} {within}, {outcome}", services.join(", "))
    }
}

/// Hosts by service, of the services with the smallest numbers: whatever the order in which they come, the same are kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Knocks(Vec<(u32, u64)>);

impl Knocks {
    /// A host was tried on `service`; more than `enough` of one service need not be kept.
    fn insert(&mut self, service: u32, host: Address, enough: u64) {
        let knock = (service, host.0 as u64 ^ (host.0 >> 64) as u64);
        let Err(place) = self.0.binary_search(&knock) else { return };
        let of_service = |service: u32| self.0.iter().filter(|known| known.0 == service).count();
        match of_service(service) {
            0 if self.services() >= SERVICES_MAX => match self.0.last().map(|last| last.0) {
                Some(largest) if service < largest => {
                    self.0.truncate(self.0.len() - of_service(largest));
                    self.0.insert(place, knock);
                }
                _ => {}
            },
            known if known as u64 > enough => {}
            _ => self.0.insert(place, knock),
        }
    }

    fn services(&self) -> usize {
        self.0.chunk_by(|one, next| one.0 == next.0).count()
    }

    fn hosts_of_one_service(&self) -> u64 {
        self.0.chunk_by(|one, next| one.0 == next.0).map(|hosts| hosts.len() as u64).max().unwrap_or(0)
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
