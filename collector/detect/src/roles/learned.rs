//! Roles that are learned from what a host does all day.
//!
//! For every host of the operator's own the day is summed up in a few hundred bytes. At the end of each day (UTC, event time) it is asked
//! which roles the day was like; a role is learned when five of the last seven days were like it, and lost when none of seven was.
//!
//! | role | a day is like it when |
//! | --- | --- |
//! | monitor | it spoke to 20 hosts or more, 80 % of them those of the day before, on 8 ports at most, in 20 hours of the day |
//! | dns | it answered 5 hosts or more on port 53, and asked 20 or more there |
//! | proxy | on 5 ports at most it answered 10 hosts or more of our own, and it spoke to 50 or more outside on other ports than 53 |
//! | backup | it moved 1 GB or more within our own networks, nearly all of it in 6 hours at most, some of them those of the day before, and in these with 3 hosts or more |
//! | domain controller | it answered 10 hosts or more on each of 88, 389 or 636, and 445 |
//! | peer to peer | it spoke to 100 hosts or more outside on as many high ports, and 3 of 10 that it tried did not answer |
//!
//! Who is backed up is no backup: of a server that is copied every night it would be excused to send as much to somebody else. Only
//! those who answered count as spoken to: a scan teaches nobody. Octets that leave our networks are no backup: exfiltration would be.
//! Distinct hosts are counted in bitmaps (linear counting), right within a few in a hundred.
//!
//! Memory: 800 bytes per host, [`HOSTS_MAX`] of them; further hosts learn nothing until others have been gone for a week. Rows of a day that is
//! over are counted as late and teach nothing.

use serde::{Deserialize, Serialize};
use spanwatch_common::flow::protocol;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::{Role, RoleSet};
use crate::hash::Map;
use crate::native::edges::{Recent, fingerprint, halves, own_ends};
use crate::row::{Contact, Outcome, Row};
use crate::sites::FlowClass;
use crate::snapshot::{RestoreError, pack, unpack};

/// Hosts that are watched at once.
const HOSTS_MAX: usize = 16_384;
/// Days of the last seven that make a role.
const DAYS_TO_LEARN: u32 = 5;
/// The last seven days, yesterday lowest.
const WEEK: u8 = 0x7f;
/// Slices with fewer octets are no backup's.
const OCTETS_MIN: u64 = 1 << 20;
/// Hosts with which a backup moves its octets, at least.
const MOVERS_MIN: u32 = 3;
const DAY_SECS: i64 = 86_400;
/// The last so many seconds of a day teach nothing, and what a day taught holds so long after its end: what is learned then does not
/// depend on how late a row came, if it came no later.
const MARGIN_SECS: i64 = 600;

/// The roles that are learned, in the order of [`Host::days`].
const ROLES: [Role; 6] = [Role::Monitor, Role::Dns, Role::Proxy, Role::Backup, Role::DomainController, Role::PeerToPeer];

/// A role that was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LearnedRole {
    /// Whose it is.
    pub address: Address,
    /// What it is.
    pub role: Role,
    /// Since when it holds: ten minutes after a midnight.
    pub since: Timestamp,
    /// How many of the last seven days were like it.
    pub days: u32,
}

/// Learns.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Learner {
    /// Days since 1970; 0 before the first row.
    day: i64,
    /// Boxed, because half of a table's places are empty.
    hosts: Map<Address, Box<Host>>,
    /// Who spoke to whom this hour.
    recent: Recent,
    /// What holds, and since when.
    held: Map<Address, Vec<(Role, Timestamp)>>,
    late: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Host {
    /// For each of [`ROLES`] a bit for each of the last seven days, yesterday lowest.
    days: [u8; ROLES.len()],
    /// Days since it was last heard.
    gone: u8,
    today: Day,
    /// Peers and busy hours of the day before.
    peers_before: Bits<8>,
    busy_before: u32,
}

/// What a host did today.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Day {
    // As who asks.
    peers: Bits<8>,
    ports: Bits<1>,
    /// A bit for each hour in which it asked.
    hours: u32,
    dns_servers: Bits<2>,
    outside: Bits<4>,
    strangers: Bits<8>,
    strange_ports: Bits<4>,
    strangers_failed: Bits<8>,
    // As who answers.
    listens: Bits<1>,
    clients: Bits<2>,
    dns_clients: Bits<1>,
    kerberos: Bits<1>,
    ldap: Bits<1>,
    smb: Bits<1>,
    /// KiB by hour, both ways, within our own networks.
    kibs: [u32; 24],
    /// With whom, by hour: 64 places, in which every host has one.
    #[serde(default)]
    movers: [u64; 24],
}

/// Linear counting: a bit for each thing seen (Whang, Vander-Zanden and Taylor 1990).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bits<const WORDS: usize>(#[serde(with = "words")] [u64; WORDS]);

impl<const WORDS: usize> Default for Bits<WORDS> {
    fn default() -> Self {
        Self([0; WORDS])
    }
}

impl<const WORDS: usize> Bits<WORDS> {
    fn insert(&mut self, thing: u64) {
        let place = thing as usize % (WORDS * 64);
        self.0[place / 64] |= 1 << (place % 64);
    }

    fn ones(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// About how many things were inserted.
    fn count(&self) -> f64 {
        let size = (WORDS * 64) as f64;
        // A full map says at least what one free bit would.
        let free = (size - f64::from(self.ones())).max(1.0);
        size * (size / free).ln()
    }

    /// About what part of its things are in `other`, chance taken out.
    fn part_in(&self, other: &Self) -> f64 {
        let both: u32 = self.0.iter().zip(&other.0).map(|(a, b)| (a & b).count_ones()).sum();
        let chance = f64::from(other.ones()) / (WORDS * 64) as f64;
        if self.ones() == 0 || chance >= 1.0 {
            return 0.0;
        }
        (f64::from(both) / f64::from(self.ones()) - chance) / (1.0 - chance)
    }
}

/// Arrays of any length, as sequences.
mod words {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer, const WORDS: usize>(words: &[u64; WORDS], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(words)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const WORDS: usize>(from: D) -> Result<[u64; WORDS], D::Error> {
        let words = Vec::<u64>::deserialize(from)?;
        words.try_into().map_err(|_| D::Error::custom("a bitmap has another size"))
    }
}

impl Host {
    /// Which of [`ROLES`] today was like.
    fn likeness(&self) -> [bool; ROLES.len()] {
        let day = &self.today;
        let steady = day.peers.part_in(&self.peers_before) >= 0.8;
        let monitor = day.peers.count() >= 20.0 && steady && day.ports.ones() <= 8 && day.hours.count_ones() >= 20;
        let dns = day.dns_clients.count() >= 5.0 && day.dns_servers.count() >= 20.0;
        let proxy = day.listens.ones() <= 5 && day.clients.count() >= 10.0 && day.outside.count() >= 50.0;
        let backup = day.octets() >= 1_000_000_000 && day.is_bunched() && day.is_hub() && day.busy() & self.busy_before != 0;
        let controller = [&day.kerberos, &day.ldap, &day.smb].iter().all(|clients| clients.count() >= 10.0);
        let (strangers, gone) = (day.strangers.count(), day.strangers_failed.count());
        let failing = gone >= 0.3 * (strangers + gone);
        let peer_to_peer = strangers >= 100.0 && day.strange_ports.count() >= 100.0 && failing;
        [monitor, dns, proxy, backup, controller, peer_to_peer]
    }

    /// Its day is over.
    fn close(&mut self) {
        let likeness = self.likeness();
        for (days, like) in self.days.iter_mut().zip(likeness) {
            *days = (*days << 1 | u8::from(like)) & WEEK;
        }
        self.peers_before = self.today.peers;
        self.busy_before = self.today.busy();
        self.gone = if self.today == Day::default() { self.gone.saturating_add(1) } else { 0 };
        self.today = Day::default();
    }
}

impl PartialEq for Day {
    /// Whether both saw somebody at the same hours: enough to know an empty day.
    fn eq(&self, other: &Self) -> bool {
        (self.hours, self.listens, self.peers, self.clients, self.strangers_failed)
            == (other.hours, other.listens, other.peers, other.clients, other.strangers_failed)
    }
}

impl Day {
    fn octets(&self) -> u64 {
        self.kibs.iter().map(|&kib| u64::from(kib) << 10).sum()
    }

    /// The hours that have a tenth of the day's octets or more.
    fn busy(&self) -> u32 {
        let tenth = self.octets() / 10;
        let busy = |&(_, kib): &(usize, &u32)| *kib > 0 && u64::from(*kib) << 10 >= tenth;
        self.kibs.iter().enumerate().filter(busy).fold(0, |hours, (hour, _)| hours | 1 << hour)
    }

    /// Whether nearly all octets moved in a few hours.
    fn is_bunched(&self) -> bool {
        let busy = self.busy();
        let within: u64 =
            self.kibs.iter().enumerate().filter(|(hour, _)| busy >> hour & 1 == 1).map(|(_, &kib)| u64::from(kib) << 10).sum();
        busy.count_ones() <= 6 && within * 10 >= self.octets() * 8
    }

    /// Whether several hosts took part in the hours in which most octets moved.
    fn is_hub(&self) -> bool {
        let busy = self.busy();
        let movers =
            self.movers.iter().enumerate().filter(|(hour, _)| busy >> hour & 1 == 1).fold(0, |all, (_, hour)| all | hour);
        movers.count_ones() >= MOVERS_MIN
    }

    /// `kib` moved in `hour`, with `peer`; 0 is nothing.
    fn moved(&mut self, hour: usize, kib: u32, peer: u64) {
        if kib > 0 {
            self.kibs[hour] = self.kibs[hour].saturating_add(kib);
            self.movers[hour] |= 1 << (peer % 64);
        }
    }
}

impl Learner {
    /// The roles of `address` that were learned before `at`.
    pub(super) fn of(&self, address: Address, at: Timestamp) -> RoleSet {
        if self.held.is_empty() {
            return RoleSet::NONE;
        }
        let held = self.held.get(&address).map_or(&[][..], Vec::as_slice);
        held.iter().filter(|(_, since)| *since <= at).fold(RoleSet::NONE, |set, (role, _)| set.with(RoleSet::of(&[*role])))
    }

    /// What was learned, in order.
    pub(super) fn learned(&self) -> Vec<LearnedRole> {
        let mut all = Vec::new();
        for (&address, held) in &self.held {
            for &(role, since) in held {
                let days = self.hosts.get(&address).zip(ROLES.iter().position(|&known| known == role));
                all.push(LearnedRole {
                    address,
                    role,
                    since,
                    days: days.map_or(0, |(host, place)| host.days[place].count_ones()),
                });
            }
        }
        all.sort_unstable();
        all
    }

    /// Learns from `row`.
    pub(super) fn observe(&mut self, row: &Row) {
        let failed = row.contact == Contact::Probe;
        let met = row.outcome == Outcome::Success && !failed;
        if !met && !failed || row.platform || row.aggregate || row.class == FlowClass::Multicast {
            return;
        }
        let seconds = row.at.as_nanos() / 1_000_000_000;
        let day = seconds / DAY_SECS;
        if seconds % DAY_SECS >= DAY_SECS - MARGIN_SECS {
            return;
        }
        if day != self.day && !self.turn(day) {
            return;
        }
        let hours = (seconds / 3_600).cast_unsigned();
        let hour = (hours % 24) as usize;
        let octets = row.octets_total();
        let [high, low] = halves(row.destination);
        let server = fingerprint(&[high, low]);
        let [high, low] = halves(row.source);
        let client = fingerprint(&[high, low]);
        let what = u64::from(row.port) << 16 | u64::from(row.protocol) << 8 | hours << 32 | u64::from(met);
        let key = server.rotate_left(17) ^ client.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ what.wrapping_mul(0xff51_afd7_ed55_8ccd);
        let fresh = !self.recent.has(key);
        if !fresh && octets < OCTETS_MIN {
            return;
        }
        self.recent.put(key);
        let [ours, theirs] = own_ends(row);
        let kib = if ours && theirs && octets >= OCTETS_MIN { u32::try_from(octets >> 10).unwrap_or(u32::MAX) } else { 0 };
        if ours && let Some(today) = self.today(row.source, met) {
            today.ask(row, server, hour, met, theirs);
            today.moved(hour, kib, server);
        }
        if theirs
            && met
            && let Some(today) = self.today(row.destination, true)
        {
            today.answer(row, client, ours);
            today.moved(hour, kib, client);
        }
    }

    /// The day of `address`; a host begins one by having `met` somebody, which a forged address does not.
    fn today(&mut self, address: Address, met: bool) -> Option<&mut Day> {
        let full = self.hosts.len() >= HOSTS_MAX;
        match self.hosts.entry(address) {
            std::collections::hash_map::Entry::Occupied(host) => Some(&mut host.into_mut().today),
            std::collections::hash_map::Entry::Vacant(_) if full || !met => None,
            std::collections::hash_map::Entry::Vacant(place) => Some(&mut place.insert(Box::default()).today),
        }
    }

    /// Closes the days before `day`; whether rows of `day` teach anything.
    fn turn(&mut self, day: i64) -> bool {
        if self.day == 0 {
            self.day = day;
        }
        if day < self.day {
            self.late += 1;
            return false;
        }
        // After a week without a row everything is forgotten, however much longer it was.
        for passed in self.day..day.min(self.day + 9) {
            self.hosts.values_mut().for_each(|host| host.close());
            self.decide(Timestamp::from_secs((passed + 1) * DAY_SECS + MARGIN_SECS));
        }
        self.hosts.retain(|_, host| host.gone < 7);
        self.day = day;
        true
    }

    /// Which roles hold from `now` on.
    fn decide(&mut self, now: Timestamp) {
        let mut held: Map<Address, Vec<(Role, Timestamp)>> = Map::default();
        for (&address, host) in &self.hosts {
            let before = self.held.get(&address).map_or(&[][..], Vec::as_slice);
            for (&role, days) in ROLES.iter().zip(host.days) {
                let since = before.iter().find(|(known, _)| *known == role).map(|&(_, since)| since);
                let learned = days.count_ones() >= DAYS_TO_LEARN;
                if learned || since.is_some() && days != 0 {
                    held.entry(address).or_default().push((role, since.unwrap_or(now)));
                }
            }
        }
        self.held = held;
    }

    pub(super) fn snapshot(&self) -> Vec<u8> {
        pack(self)
    }

    pub(super) fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        *self = unpack(bytes)?;
        Ok(())
    }
}

impl Day {
    /// It asked `server`.
    fn ask(&mut self, row: &Row, server: u64, hour: usize, met: bool, theirs: bool) {
        let stranger = !theirs && row.port >= 1_024;
        if !met {
            if stranger {
                self.strangers_failed.insert(server);
            }
            return;
        }
        self.peers.insert(server);
        self.ports.insert(fingerprint(&[u64::from(row.port)]));
        self.hours |= 1 << hour;
        if row.port == 53 {
            self.dns_servers.insert(server);
        } else if !theirs {
            self.outside.insert(server);
        }
        if stranger {
            self.strangers.insert(server);
            self.strange_ports.insert(fingerprint(&[u64::from(row.port)]));
        }
    }

    /// It answered `client`.
    fn answer(&mut self, row: &Row, client: u64, ours: bool) {
        if row.protocol != protocol::TCP && row.protocol != protocol::UDP {
            return;
        }
        self.listens.insert(fingerprint(&[u64::from(row.port)]));
        if ours {
            self.clients.insert(client);
        }
        match row.port {
            53 => self.dns_clients.insert(client),
            88 => self.kerberos.insert(client),
            389 | 636 => self.ldap.insert(client),
            445 => self.smb.insert(client),
            _ => {}
        }
    }
}
