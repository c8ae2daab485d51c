//! The flow table: packets in, final records out. Fixed in size, silent about the time of day.
//!
//! One table serves one receive queue and one thread. Its memory is taken at the start; nothing on the way of a packet allocates,
//! locks or reads a clock. What every packet touches is a line of the [`index`] and a line of its flow ([`hot`]); a batch of packets has
//! all its lines fetched before the first is used. Counters that outgrow the line, and what TCP remembers of a gap, stand aside ([`aside`]).
//!
//! # When the table is full
//! The newcomer takes the place of another flow among those that a hand passes next: of a TCP connection that is over, else of a SYN that
//! nobody answered, else of a flow of one packet, else of a conversation that has been silent for half of its timeout; among equals of the
//! one silent longest. That flow ends with flowEndReason 5 and is counted in [`ledger::Flows::evicted`]. Where none may go, or too many
//! went in the last tenth of a second, the packet is metered in a flow of prefixes ([`aggregates`]). No packet is lost by either.

mod aggregates;
mod aside;
mod hash;
mod hot;
mod index;
mod life;
mod memory;
mod pool;
mod records;
mod settings;
mod slab;
mod slot;
mod talkers;
mod tcp;
mod tunnels;

use std::collections::VecDeque;
use std::time::Duration;

use spanwatch_common::health::Health;
use spanwatch_common::ledger;
use spanwatch_common::time::Timestamp;

pub use aggregates::{AGGREGATES_MAX, Aggregates};
pub use hash::{KeyHash, KeyHasher};
pub use records::Records;
pub use settings::FlowTableSettings;
pub use talkers::{TALKERS_MAX, Talker};

use crate::capture::BATCH;
use crate::decode::{Around, FlowKey, Packet, TCP_FLAGS, Update, Way};
use aside::Asides;
use settings::Timeouts;
use slab::Slab;
use slot::{Cold, SEVERAL};
use talkers::Talkers;
use tunnels::Tunnels;

/// How long one look at every flow may take, in packet time: the granularity of timeouts.
const SWEEP: Duration = Duration::from_secs(1);
/// A packet older than the newest one by more than this is counted as late.
const LATE_NANOS: i64 = 2_000_000_000;
/// Most flows that wait for their Begin record; beyond this the oldest is begun early.
const NEWBORN_MAX: usize = 1 << 16;

/// What every record of a table says about where it was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observer {
    /// observationPointId.
    pub observation_point: u32,
    /// ingressInterface of packets that do not name their own.
    pub ingress_interface: u32,
    /// Whether the table may see one direction only of a conversation; see [`FlowRecord::one_sided`](spanwatch_common::flow::FlowRecord::one_sided).
    pub one_sided: bool,
}

/// What the table has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that became part of a flow.
    pub metered: u64,
    /// Packets that left in records.
    pub exported: u64,
    /// Packets more than two seconds older than another before them.
    pub late: u64,
    /// Metered packets that had no place in the table and are part of an aggregate.
    pub in_aggregate: u64,
    /// Flows and records.
    pub flows: ledger::Flows,
}

/// Live flows.
pub struct FlowTable {
    slab: Slab,
    hasher: KeyHasher,
    timeouts: Timeouts,
    observer: Observer,
    /// The highest rate at which packets were left out, in the slice before the current one and in the current one.
    sampled: [u32; 2],
    sampling_rate: u32,
    newborn: VecDeque<Newborn>,
    newborn_max: usize,
    /// This table's number, and how many tables there are that have the flows between them.
    share: (u64, u64),
    /// The stretch of time, a multiple of the active timeout, to which new packets belong.
    slice: Slice,
    newest: Timestamp,
    swept: Timestamp,
    cursor: usize,
    /// Where the search for a flow that gives way goes on, and how many were looked at since one did.
    hand: usize,
    barren: usize,
    /// How many flows gave way of late, and since when that is counted.
    room_made: u32,
    room_since: Timestamp,
    counts: Counts,
    asides: Asides,
    aggregates: Aggregates,
    tunnels: Tunnels,
    talkers: Talkers,
    /// What ICMP errors of the batch under way quoted.
    quoted: Vec<Quoted>,
    /// Of this only what concerns TCP.
    health: Health,
}

/// A packet that an ICMP error names.
struct Quoted {
    key: FlowKey,
    way: Way,
    type_code: u16,
}

struct Newborn {
    slot: u32,
    flow_id: u64,
    due: Timestamp,
}

#[derive(Clone, Copy, Default)]
struct Slice {
    start: Timestamp,
    end: Timestamp,
}

impl FlowTable {
    /// A table as the settings say, which were [`check`](FlowTableSettings::check)ed.
    ///
    /// # Errors
    /// The operating system refuses the memory.
    pub fn new(settings: &FlowTableSettings, hasher: KeyHasher, observer: Observer) -> std::io::Result<Self> {
        let timeouts = settings.timeouts();
        Ok(Self {
            slab: Slab::new(settings.flows_max)?,
            hasher,
            timeouts,
            observer,
            sampled: [0; 2],
            sampling_rate: 0,
            newborn: VecDeque::with_capacity(NEWBORN_MAX),
            newborn_max: NEWBORN_MAX,
            share: (0, 1),
            slice: Slice::default(),
            newest: Timestamp::NONE,
            swept: Timestamp::NONE,
            cursor: 0,
            hand: 0,
            barren: 0,
            room_made: 0,
            room_since: Timestamp::NONE,
            counts: Counts::default(),
            asides: Asides::new(settings.flows_max)?,
            aggregates: Aggregates::new(AGGREGATES_MAX, timeouts.active, timeouts.begin, hasher, observer),
            tunnels: Tunnels::new(settings.tunnels_max, timeouts.longest + timeouts.active, hasher),
            talkers: Talkers::default(),
            quoted: Vec::with_capacity(BATCH),
            health: Health::default(),
        })
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts;
        counts.flows.live = self.slab.len as u64;
        counts
    }

    /// Flows in the table.
    pub const fn flows_live(&self) -> u64 {
        self.slab.len as u64
    }

    /// What the flows and tunnels say about the mirror so far: of [`Health`] the TCP and ERSPAN counts, and what was done because the table
    /// was full or packets are sampled; all else is zero.
    pub fn health(&self) -> Health {
        Health {
            erspan_packets: self.tunnels.erspan_packets,
            erspan_gaps: self.tunnels.erspan_gaps,
            evicted: self.counts.flows.evicted,
            in_aggregate: self.counts.in_aggregate,
            keep_one_in: u64::from(self.sampling_rate),
            ..self.health
        }
    }

    /// Packets in the table, added up flow by flow: for proving that [`Counts`] tells the truth.
    pub fn packets_held(&self) -> u64 {
        let mut held = self.aggregates.packets_held();
        let mut from = 0;
        while let Some(at) = self.slab.next_taken(from, self.slab.touched()) {
            let (hot, cold) = self.slab.both(at);
            let (_, packets) = slot::volume(hot, cold, self.asides.get(cold.aside));
            held += packets.iter().sum::<u64>();
            from = at + 1;
        }
        held
    }

    /// A number for the tunnel that a packet came in, for [`Packet::tunnel`]; 0 when the list of tunnels has no place for it. Counts what
    /// is missing from ERSPAN's sequence. To be asked once for each packet that [`Around`] names a tunnel, overlay or label of.
    pub fn tunnel(&mut self, around: &Around, at: Timestamp) -> u32 {
        self.tunnels.number(around, at)
    }

    /// An ICMP error quoted a packet: marks its flow, if it is in the table once the packets of the next [`observe`](Self::observe) are.
    /// To be called at most once for each of those.
    pub fn icmp_error(&mut self, key: &FlowKey, way: Way, type_code: u16) {
        if self.quoted.len() < self.quoted.capacity() {
            self.quoted.push(Quoted { key: *key, way, type_code });
        }
    }

    /// From now on the packets are one in so many, chosen at random; 0 or 1 when they are all. Records say the highest rate of their slice
    /// and the one before.
    pub fn sample(&mut self, one_in: u32) {
        self.sampling_rate = if one_in > 1 { one_in } else { 0 };
        self.sampled[1] = self.sampled[1].max(self.sampling_rate);
        self.aggregates.sample(one_in);
    }

    /// From now on this is table `number` of `of`, counted from 0, each of which is given all packets and takes those of its own flows. Nothing
    /// but a full table makes it matter how many there are: so many flows wait for their Begin record as the table has room for.
    pub fn share(&mut self, number: usize, of: usize) {
        self.share = (number as u64, of as u64);
        self.newborn_max = self.newborn_max.max(self.slab.capacity());
    }

    /// Starts or stops looking for [`talkers`](Self::talkers).
    pub fn watch(&mut self, is_watched: bool) {
        self.talkers.watch(is_watched);
    }

    /// The flows with most octets in their current slice, most first, when every flow was last looked at: at most a second ago
    /// (two after [`watch`](Self::watch) began). Empty while nobody watches.
    pub fn talkers(&self) -> &[Talker] {
        self.talkers.published()
    }

    /// Adds packets to their flows. Records come out where a packet ends something: a slice, a closed connection, a flow that had to make
    /// room.
    pub fn observe(&mut self, packets: &[Packet], out: &mut Records) {
        for batch in packets.chunks(BATCH) {
            let mut updates = [Update::NONE; BATCH];
            for (origin, (packet, update)) in (0..).zip(batch.iter().zip(&mut updates)) {
                *update = Update::of(packet, self.hasher.hash(&packet.key), origin);
                self.prefetch(update);
            }
            self.update(&mut updates[..batch.len()], |update| batch[usize::from(update.origin)], out);
        }
    }

    /// Starts fetching what [`update`](Self::update) will need for a packet. To be called for each.
    #[inline(always)]
    pub fn prefetch(&self, update: &mut Update) {
        update.guess = self.slab.prefetch(update.hash);
    }

    /// The same as [`observe`](Self::observe) for at most [`BATCH`] packets of which only that is known which most of them need. `packet` gives
    /// all of one where its flow wants to know more.
    #[inline]
    pub fn update(&mut self, updates: &mut [Update], packet: impl Fn(&Update) -> Packet, out: &mut Records) {
        out.observed_by(self.observer);
        while self.newborn.len() > self.newborn_max - BATCH {
            self.begin_oldest(out);
        }
        let mut elsewhere = 0;
        for update in &mut *updates {
            update.guess = self.slab.guess(update.hash, update.guess);
        }
        let (mut payload_octets, is_shared) = (0, self.share.1 > 1);
        for update in &*updates {
            self.tick(update.at);
            if is_shared && !self.is_ours(update.hash) {
                elsewhere += 1;
                continue;
            }
            payload_octets += u64::from(update.payload_octets);
            if !self.slab.hot_mut(update.guess as usize).take(update, self.slice.start, self.timeouts.shortest_nanos) {
                self.add(update, &|| packet(update), out);
            }
        }
        self.health.tcp_octets += payload_octets;
        self.counts.metered += updates.len() as u64 - elsewhere;
        while let Some(quoted) = self.quoted.pop() {
            if let Some(at) = self.slab.find(self.hasher.hash(&quoted.key)) {
                self.slab.both_mut(at).1.icmp_error[quoted.way.index()] = quoted.type_code;
            }
        }
    }

    /// Whether the flow of this key belongs to this table, and not to another one that it shares the flows with.
    fn is_ours(&self, hash: KeyHash) -> bool {
        let (number, of) = self.share;
        // The lower bits of the hash choose the table, the upper ones the place in it.
        (u64::from(hash.home as u32) * of) >> 32 == number
    }

    /// Takes note of a packet's time.
    #[inline]
    fn tick(&mut self, at: Timestamp) {
        if at > self.newest {
            self.newest = at;
            if at >= self.slice.end {
                self.advance(at);
            }
        } else if self.newest.as_nanos().wrapping_sub(at.as_nanos()) > LATE_NANOS {
            self.counts.late += 1;
        }
    }

    /// Adds a packet that is not simply the next one of its flow.
    #[inline(never)]
    fn add(&mut self, update: &Update, packet: &impl Fn() -> Packet, out: &mut Records) {
        let Some(at) = self.place(update, packet, out) else { return };
        let way = update.way.index();
        let mut overhead = update.frame_octets.wrapping_sub(update.ip_octets);
        let hot = self.slab.hot(at);
        if !hot.half[way].has_room(update, overhead) || update.at < hot.last[way] {
            overhead = self.make_ready(at, update, packet);
        }
        let (hot, cold) = self.slab.both_mut(at);
        if hot.is_next(update) {
            hot.half[way].next_seq = update.sequence.wrapping_add(update.payload_octets);
        } else if update.flags & TCP_FLAGS != 0 {
            tcp::examine(hot, cold, &mut self.asides, update);
        }
        hot.count(update, overhead);
    }

    /// The slot of the flow that a packet belongs to, ready for it.
    fn place(&mut self, update: &Update, packet: &impl Fn() -> Packet, out: &mut Records) -> Option<usize> {
        let Some(at) = self.slab.settle(update.hash, update.guess) else { return self.open(update, 0, packet, out) };
        let hot = self.slab.hot(at);
        if hot.is_awake(update, self.slice.start, self.timeouts.shortest_nanos) {
            return Some(at);
        }
        let predecessor = if hot.newest() == update.at { self.slab.both(at).1.flow_id } else { 0 };
        if self.turn(at, update, out) { Some(at) } else { self.open(update, predecessor, packet, out) }
    }

    /// Prepares a flow for a packet that its line cannot simply take: the first of a slice, one that comes late, or one that would make a
    /// counter overflow. Gives the octets beyond those of IP that are left for the line.
    fn make_ready(&mut self, at: usize, update: &Update, packet: &impl Fn() -> Packet) -> u32 {
        let way = update.way.index();
        let overhead = update.frame_octets.wrapping_sub(update.ip_octets);
        let (hot, cold) = self.slab.both_mut(at);
        let half = &mut hot.half[way];
        if half.packets == 0 {
            let ip_len = update.ip_octets.min(u32::from(u16::MAX)) as u16;
            (half.ttl_min, half.ttl_max) = (update.ttl, update.ttl);
            (half.ip_len_min, half.ip_len_max) = (ip_len, ip_len);
            if cold.heard(way) {
                cold.start[way] = update.at;
            } else {
                let (icmp_type_code, tunnel) = match update.is_simple {
                    true => (0, 0),
                    false => {
                        let packet = packet();
                        (packet.icmp_type_code, packet.tunnel)
                    }
                };
                self.slab.hear(at, update, icmp_type_code, tunnel);
            }
        }
        let (hot, cold) = self.slab.both_mut(at);
        let half = &mut hot.half[way];
        cold.start[way] = cold.start[way].min(update.at);
        if half.packets == u16::MAX {
            let aside = self.asides.of(&mut cold.aside);
            // One stays, so that the line tells that the slice is not empty.
            aside.packets[way] += u64::from(half.packets - 1);
            half.packets = 1;
            cold.life |= SEVERAL;
        }
        if half.ip_octets.checked_add(update.ip_octets).is_none() {
            self.asides.of(&mut cold.aside).ip_octets[way] += u64::from(std::mem::take(&mut half.ip_octets));
        }
        if u32::from(half.overhead).wrapping_add(overhead) > u32::from(u16::MAX) {
            let in_line = i64::from(std::mem::take(&mut half.overhead));
            let aside = self.asides.of(&mut cold.aside);
            aside.overhead[way] += in_line + i64::from(update.frame_octets) - i64::from(update.ip_octets);
            return 0;
        }
        overhead
    }

    /// Begins a flow, or counts the packet in an aggregate. `predecessor` is the flow of the same key that has ended within the same tick of the clock, or 0.
    fn open(&mut self, update: &Update, predecessor: u64, packet: &impl Fn() -> Packet, out: &mut Records) -> Option<usize> {
        let packet = packet();
        if self.slab.is_full() && !self.make_room(update.at, out) {
            self.aggregates.count(&packet);
            self.counts.in_aggregate += 1;
            return None;
        }
        let opened = if predecessor == 0 { packet.at.as_nanos() } else { predecessor.cast_signed() };
        let flow_id = self.hasher.flow_id(&packet.key, opened);
        let (cold, wide) = Cold::new(&packet, flow_id);
        let at = self.slab.put(update.hash, cold, wide);
        self.slab.hear(at, update, packet.icmp_type_code, packet.tunnel);
        self.counts.flows.observed += 1;
        self.counts.flows.peak = self.counts.flows.peak.max(self.slab.len as u64);
        // By the newest packet, not by this one, so that those who wait are due in the order in which they stand.
        self.newborn.push_back(Newborn { slot: at as u32, flow_id, due: self.newest.plus(self.timeouts.begin) });
        Some(at)
    }
}

#[cfg(test)]
mod tests;
