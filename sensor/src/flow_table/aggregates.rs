//! Flows of prefixes: where packets go that find the flow table full of flows worth more than theirs, so that a flood is still described
//! (what RFC 7015 calls aggregated flows).
//!
//! An aggregate counts one direction: packets as their senders sent them. Its record has prefix lengths, and everything that differs among its
//! packets is zero. Which prefixes, is decided packet by packet, by what describes floods and scans in few records:
//!
//! | level | source | destination | service | for |
//! | --- | --- | --- | --- | --- |
//! | pair | host | host | yes | both ends are busy, or nothing is known yet and the table has room |
//! | pair, any service | host | host | | a scan of many ports of one host |
//! | victim | /16, then /4 | host | yes | a busy destination: a flood from random sources, answers of reflectors |
//! | victim, any service | /1 | host | | the same on many ports |
//! | sweeper | host | /16, then /4 | yes | a busy source: a scan, the answers of a flood's victim |
//! | sweeper, any service | host | /1 | | the same on many ports |
//! | scattered | /16, then /4 without service | the same | yes | neither end stands out |
//! | last | /1 | /1 | | everything else; has always a place |
//!
//! Of IPv6 hosts these are /128, /48, /12 and /3; layer 2 has one aggregate for each ethertype. A *service* is the port that a conversation is
//! about (of the destination where the packet asks, of the source where it answers), or ICMP's type and code. TCP's requests (SYN) are kept
//! apart from the rest at every level but the last, so that a flood of them shows as one.
//!
//! Each level of a host, and each level without one, has a quota; a packet takes the first level where its aggregate exists or may be made. A
//! packet counts once: that of the wider prefix does not contain what the narrower counts. How busy a host is, is told by counters
//! that hosts share by a keyed hash, and that are halved every second. Nothing here allocates after [`Aggregates::new`].

mod entry;
mod sent;

use std::time::Duration;

use spanwatch_common::flow::{FlowEndReason, FlowRecord, FlowState};
use spanwatch_common::time::Timestamp;

use super::{KeyHash, KeyHasher, Observer};
use crate::decode::{FlowKey, Packet};
use entry::{Entry, Tally};
use sent::{LAST_MAX, Sent};

/// As many aggregates as describe any mixture of floods; the last level comes on top.
pub const AGGREGATES_MAX: usize = 1024;

/// An aggregate that no packet came to for this long ends.
const IDLE: Duration = Duration::from_secs(60);
/// How often every aggregate is looked at.
const SWEEP: Duration = Duration::from_millis(100);
/// How often the counters of busy hosts are halved.
const HALVING: Duration = Duration::from_secs(1);
/// Counters of busy sources, and as many of busy destinations.
const COUNTERS: usize = 4096;
/// A host is busy from this many packets on, ...
const BUSY_MIN: u32 = 16;
/// ... and four times its share of a counter if all hosts were equal.
const BUSY_SHARES: u32 = 4;
/// Stands for no aggregate in the index.
const NOWHERE: u16 = u16::MAX;

/// How much is left out of a packet's ends; the narrowest first.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Level {
    Pair,
    PairAnyService,
    Host,
    HostCoarse,
    HostAnyService,
    Scattered,
    ScatteredCoarse,
    Layer2,
    Last,
}

const LEVELS: usize = 9;
/// The first so many levels have a quota for each host.
const LEVELS_OF_HOSTS: usize = 5;

impl Level {
    /// Most aggregates of one host (of all, where the level has none), in a table of `max`.
    fn quota(self, max: usize) -> usize {
        match self {
            Self::Pair | Self::PairAnyService | Self::Host | Self::HostCoarse => 32.min(max / 16),
            Self::HostAnyService => 16.min(max / 16),
            Self::Scattered | Self::ScatteredCoarse => max / 8,
            Self::Layer2 => 64.min(max / 16),
            Self::Last => LAST_MAX,
        }
    }

    /// How many aggregates there may be before another is made: the last quarter is kept for naming hosts that nothing else names.
    const fn limit(self, max: usize) -> usize {
        if matches!(self, Self::HostAnyService) { max } else { max - max / 4 }
    }
}

/// Live aggregates.
pub struct Aggregates {
    entries: Vec<Entry>,
    entries_max: usize,
    /// Open addressing: places in `entries`.
    index: Vec<u16>,
    /// By level, and for levels of hosts by host, as far as counters tell hosts apart.
    taken: [usize; LEVELS],
    taken_of_host: Vec<[u8; LEVELS_OF_HOSTS]>,
    /// Packets of late to or from the hosts that share a counter.
    sources: Vec<u32>,
    destinations: Vec<u32>,
    /// Packets of late.
    recent: u32,
    hasher: KeyHasher,
    secret: [u64; 2],
    active: Duration,
    begin: Duration,
    observer: Observer,
    sampling_population: u32,
    /// The stretch of time, a multiple of the active timeout, to which new packets belong.
    slice_start: Timestamp,
    slice_end: Timestamp,
    swept: Timestamp,
    halved: Timestamp,
    opened: u64,
    /// Some aggregate has an earlier slice whose record is due.
    has_earlier: bool,
}

impl Aggregates {
    /// At most `entries_max` aggregates (no more than 32,768) beside the 273 of the last level. `active` is the length of a slice on the
    /// clock, `begin` how long after the first packet the Begin record follows.
    pub fn new(entries_max: usize, active: Duration, begin: Duration, hasher: KeyHasher, observer: Observer) -> Self {
        let entries_max = entries_max.min(1 << 15);
        let most = entries_max + LAST_MAX;
        Self {
            entries: Vec::with_capacity(most),
            entries_max,
            index: vec![NOWHERE; (2 * most).next_power_of_two()],
            taken: [0; LEVELS],
            taken_of_host: vec![[0; LEVELS_OF_HOSTS]; 2 * COUNTERS],
            sources: vec![0; COUNTERS],
            destinations: vec![0; COUNTERS],
            recent: 0,
            hasher,
            secret: hasher.secret(),
            active,
            begin,
            observer,
            sampling_population: 0,
            slice_start: Timestamp::NONE,
            slice_end: Timestamp::NONE,
            swept: Timestamp::NONE,
            halved: Timestamp::NONE,
            opened: 0,
            has_earlier: false,
        }
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Packets that were counted and are in no record yet.
    pub fn packets_held(&self) -> u64 {
        self.entries.iter().map(|entry| entry.slice.packets + entry.earlier.packets).sum()
    }

    /// From now on the packets are one in so many, chosen at random; 0 or 1 when they are all. Cuts every slice.
    pub fn sample(&mut self, one_in: u32) {
        let population = if one_in > 1 { one_in } else { 0 };
        if population != self.sampling_population {
            self.sampling_population = population;
            for entry in &mut self.entries {
                entry.end_slice();
            }
            self.has_earlier = true;
        }
    }

    /// Counts a packet in the aggregate that describes it best.
    pub fn count(&mut self, packet: &Packet) {
        if packet.at >= self.slice_end {
            self.turn_slice(packet.at);
        }
        let place = self.place(packet);
        let entry = &mut self.entries[place];
        if entry.slice.packets > 0 && entry.last < self.slice_start && packet.at >= self.slice_start {
            entry.end_slice();
            self.has_earlier = true;
        }
        entry.add(packet, self.sampling_population);
    }

    /// Moves the records that are due at `now` into `out`: Begin records, slices that are over, aggregates that fell silent. Gives the packets
    /// that they stand for.
    pub fn expire(&mut self, now: Timestamp, out: &mut Vec<FlowRecord>) -> u64 {
        let is_over = now >= self.slice_end && !self.entries.is_empty();
        if !is_over && !self.has_earlier && now.since(self.swept) < SWEEP {
            return 0;
        }
        if is_over {
            self.turn_slice(now);
        }
        if now.since(self.halved) >= HALVING {
            self.halve();
            self.halved = now;
        }
        (self.swept, self.has_earlier) = (now, false);
        let (mut packets, mut at, mut ended) = (0, 0, false);
        while at < self.entries.len() {
            if now.since(self.entries[at].last) >= IDLE {
                packets += self.end(at, FlowEndReason::IdleTimeout, out);
                ended = true;
                continue; // the last one stands here now
            }
            let is_stale = self.entries[at].slice.packets > 0 && self.entries[at].last < self.slice_start;
            packets += self.give_earlier(at, out);
            if is_stale {
                self.entries[at].end_slice();
                packets += self.give_earlier(at, out);
            }
            if now.since(self.entries[at].opened) >= self.begin {
                let slice = self.entries[at].slice;
                self.give_begin(at, &slice, out);
            }
            at += 1;
        }
        if ended {
            self.rebuild_index();
        }
        packets
    }

    /// Ends every aggregate. Gives the packets that the records stand for. Packet time may start anywhere after this.
    pub fn flush(&mut self, reason: FlowEndReason, out: &mut Vec<FlowRecord>) -> u64 {
        let mut packets = 0;
        while !self.entries.is_empty() {
            packets += self.end(self.entries.len() - 1, reason, out);
        }
        self.rebuild_index();
        self.sources.fill(0);
        self.destinations.fill(0);
        self.recent = 0;
        (self.slice_start, self.slice_end) = (Timestamp::NONE, Timestamp::NONE);
        (self.swept, self.halved, self.has_earlier) = (Timestamp::NONE, Timestamp::NONE, false);
        packets
    }

    fn turn_slice(&mut self, at: Timestamp) {
        self.slice_start = at.floor(self.active);
        self.slice_end = self.slice_start.plus(self.active);
    }

    fn halve(&mut self) {
        for counter in self.sources.iter_mut().chain(&mut self.destinations) {
            *counter /= 2;
        }
        self.recent /= 2;
    }

    /// The place of the aggregate that `packet` belongs to.
    fn place(&mut self, packet: &Packet) -> usize {
        let sent = Sent::of(packet);
        if packet.key.is_layer2() {
            return self.find(&sent.key(0, 0, true), Level::Layer2, 0).unwrap_or_else(|| self.last(&sent));
        }
        let [host, fine, coarse, coarsest] = sent.widths();
        let (source, destination) = (self.counter_of(sent.source), self.counter_of(sent.destination));
        let (sent_by, sent_to) = (bump(&mut self.sources[source]), bump(&mut self.destinations[destination]));
        self.recent = self.recent.saturating_add(1);
        let busy = BUSY_MIN.max(self.recent / COUNTERS as u32 * BUSY_SHARES);
        let (is_source_busy, is_destination_busy) = (sent_by >= busy, sent_to >= busy);
        let is_unknown = !is_source_busy && !is_destination_busy;
        // The busier end is the one that the flood or scan is about.
        let is_about_destination = sent_to >= sent_by;
        let about = if is_about_destination { destination } else { COUNTERS + source };
        if is_source_busy && is_destination_busy || is_unknown && self.entries.len() < self.entries_max / 4 {
            let found = self
                .find(&sent.key(host, host, true), Level::Pair, about)
                .or_else(|| self.find(&sent.key(host, host, false), Level::PairAnyService, about));
            if let Some(place) = found {
                return place;
            }
        }
        if !is_unknown {
            let key = |other, with_service| match is_about_destination {
                true => sent.key(other, host, with_service),
                false => sent.key(host, other, with_service),
            };
            let found = self
                .find(&key(fine, true), Level::Host, about)
                .or_else(|| self.find(&key(coarse, true), Level::HostCoarse, about))
                .or_else(|| self.find(&key(coarsest, false), Level::HostAnyService, about));
            if let Some(place) = found {
                return place;
            }
        }
        self.find(&sent.key(fine, fine, true), Level::Scattered, 0)
            .or_else(|| self.find(&sent.key(coarse, coarse, false), Level::ScatteredCoarse, 0))
            .unwrap_or_else(|| self.last(&sent))
    }

    fn counter_of(&self, address: u128) -> usize {
        let product = u128::from(address as u64 ^ self.secret[0]) * u128::from((address >> 64) as u64 ^ self.secret[1] | 1);
        ((product >> 64) as u64 ^ product as u64) as usize % COUNTERS
    }

    /// The place of an aggregate that exists or may be made.
    fn find(&mut self, key: &FlowKey, level: Level, host: usize) -> Option<usize> {
        let hash = self.hasher.hash(key);
        let free = match self.look_up(key, hash) {
            Ok(place) => return Some(place),
            Err(free) => free,
        };
        let taken = match self.taken_of_host[host].get(level as usize) {
            Some(&taken) => usize::from(taken),
            None => self.taken[level as usize],
        };
        let others = self.entries.len() - self.taken[Level::Last as usize];
        let is_allowed = others < level.limit(self.entries_max) && taken < level.quota(self.entries_max);
        is_allowed.then(|| self.make(*key, hash, level, host, free))
    }

    /// The place of the aggregate that takes whatever has no other.
    fn last(&mut self, sent: &Sent<'_>) -> usize {
        let key = sent.last_key();
        let hash = self.hasher.hash(&key);
        match self.look_up(&key, hash) {
            Ok(place) => place,
            Err(free) => self.make(key, hash, Level::Last, 0, free),
        }
    }

    /// Where the key is, or else where in the index it would go: at most half of the index is in use.
    fn look_up(&self, key: &FlowKey, hash: KeyHash) -> Result<usize, usize> {
        let mut at = self.home(hash);
        loop {
            match self.index[at] {
                NOWHERE => return Err(at),
                place if self.entries[usize::from(place)].key == *key => return Ok(usize::from(place)),
                _ => at = (at + 1) % self.index.len(),
            }
        }
    }

    const fn home(&self, hash: KeyHash) -> usize {
        (hash.home >> (u64::BITS - self.index.len().trailing_zeros())) as usize
    }

    fn make(&mut self, key: FlowKey, hash: KeyHash, level: Level, host: usize, free: usize) -> usize {
        debug_assert!(self.entries.len() < self.entries.capacity(), "levels and quotas allow no more");
        self.opened += 1;
        let place = self.entries.len();
        let flow_id = self.hasher.flow_id(&key, self.opened.cast_signed());
        self.entries.push(Entry::new(key, hash, flow_id, level, host));
        self.index[free] = place as u16; // below 32,768 + LAST_MAX
        self.taken[level as usize] += 1;
        if let Some(taken) = self.taken_of_host[host].get_mut(level as usize) {
            *taken += 1;
        }
        place
    }

    fn end(&mut self, at: usize, reason: FlowEndReason, out: &mut Vec<FlowRecord>) -> u64 {
        let mut packets = self.give_earlier(at, out);
        let entry = self.entries.swap_remove(at);
        let mut record = entry.record(&entry.slice, &self.observer);
        (record.state, record.end_reason) = (FlowState::End, reason);
        packets += record.packets_total();
        out.push(record);
        self.taken[entry.level as usize] -= 1;
        if let Some(taken) = self.taken_of_host[usize::from(entry.host)].get_mut(entry.level as usize) {
            *taken -= 1;
        }
        packets
    }

    /// Makes the record of a slice that is over, if there is one, after the Begin record.
    fn give_earlier(&mut self, at: usize, out: &mut Vec<FlowRecord>) -> u64 {
        let earlier = std::mem::take(&mut self.entries[at].earlier);
        if earlier.packets == 0 {
            return 0;
        }
        self.give_begin(at, &earlier, out);
        let mut record = self.entries[at].record(&earlier, &self.observer);
        (record.state, record.end_reason) = (FlowState::Continue, FlowEndReason::ActiveTimeout);
        out.push(record);
        earlier.packets
    }

    /// Makes the Begin record out of what was counted first, unless it was made.
    fn give_begin(&mut self, at: usize, first: &Tally, out: &mut Vec<FlowRecord>) {
        let entry = &self.entries[at];
        if entry.begun {
            return;
        }
        let mut record = entry.record(first, &self.observer);
        record.state = FlowState::Begin;
        (record.packets, record.octets, record.layer2_octets) = ([0; 2], [0; 2], [0; 2]);
        out.push(record);
        self.entries[at].begun = true;
    }

    fn rebuild_index(&mut self) {
        self.index.fill(NOWHERE);
        for place in 0..self.entries.len() {
            let mut at = self.home(self.entries[place].hash);
            while self.index[at] != NOWHERE {
                at = (at + 1) % self.index.len();
            }
            self.index[at] = place as u16; // as in `make`
        }
    }
}

/// Adds one, and gives the sum.
const fn bump(counter: &mut u32) -> u32 {
    *counter = counter.saturating_add(1);
    *counter
}

#[cfg(test)]
mod tests;
