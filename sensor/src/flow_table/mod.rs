//! The flow table: packets in, final records out. Fixed in size, silent about the time of day.
//!
//! One table serves one receive queue and one thread. Its memory is taken at the start; nothing on the way of a packet allocates,
//! locks or reads a clock. What every packet touches fits one cache line for each flow ([`slot`]); a batch of packets has all
//! its lines fetched before the first is used. Counters that outgrow the line, and what TCP remembers of a gap, stand aside ([`aside`]).
//!
//! # When the table is full
//! The newcomer takes the place of a flow near its own: first a TCP connection that is over, then a SYN that nobody answered, then
//! a flow of one packet, then any other; among equals the one silent longest. That flow ends with flowEndReason 5 and is counted
//! in [`ledger::Flows::evicted`]. No packet is lost by it.

mod aggregates;
mod aside;
mod hash;
mod life;
mod memory;
mod records;
mod settings;
mod slab;
mod slot;
mod talkers;
mod tcp;
mod tunnels;

use std::collections::VecDeque;
use std::time::Duration;

use spanwatch_common::flow::FlowRecord;
use spanwatch_common::flow::tcp::ACK;
use spanwatch_common::health::Health;
use spanwatch_common::ledger;
use spanwatch_common::time::Timestamp;

pub use aggregates::{AGGREGATES_MAX, Aggregates};
pub use hash::{KeyHash, KeyHasher};
pub use records::Records;
pub use settings::FlowTableSettings;
pub use talkers::{TALKERS_MAX, Talker};

use crate::capture::BATCH;
use crate::decode::{Around, FlowKey, Packet, TCP_FLAGS, Way};
use aside::Asides;
use settings::Timeouts;
use slab::{Place, Slab};
use slot::{Cold, EXPECTS_ACK, Hot, SEVERAL};
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
    /// Whether the table may see one direction only of a conversation; see [`FlowRecord::one_sided`].
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
    /// Flows and records.
    pub flows: ledger::Flows,
}

/// Live flows.
pub struct FlowTable {
    slab: Slab,
    hasher: KeyHasher,
    flows_max: usize,
    timeouts: Timeouts,
    observer: Observer,
    sampling_population: u32,
    newborn: VecDeque<Newborn>,
    /// The stretch of time, a multiple of the active timeout, to which new packets belong.
    slice: Slice,
    newest: Timestamp,
    swept: Timestamp,
    cursor: usize,
    counts: Counts,
    asides: Asides,
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
    hash: KeyHash,
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
            slab: Slab::new(settings.slots().max(slab::PROBE_MAX))?,
            hasher,
            flows_max: settings.flows_max,
            timeouts,
            observer,
            sampling_population: 0,
            newborn: VecDeque::with_capacity(NEWBORN_MAX),
            slice: Slice::default(),
            newest: Timestamp::NONE,
            swept: Timestamp::NONE,
            cursor: 0,
            counts: Counts::default(),
            asides: Asides::new(settings.flows_max)?,
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

    /// What the flows and tunnels say about the mirror so far: of [`Health`] the TCP and ERSPAN counts, all else is zero.
    pub fn health(&self) -> Health {
        Health { erspan_packets: self.tunnels.erspan_packets, erspan_gaps: self.tunnels.erspan_gaps, ..self.health }
    }

    /// Packets in the table, added up flow by flow: for proving that [`Counts`] tells the truth.
    pub fn packets_held(&self) -> u64 {
        let mut held = 0;
        let mut from = 0;
        while let Some(at) = self.slab.next_taken(from, self.slab.slots()) {
            let (hot, cold) = self.slab.both(at);
            let (_, packets) = slot::volume(hot, cold, self.asides.get(cold.aside));
            held += packets.iter().sum::<u64>();
            from = at + 1;
        }
        held
    }

    /// Bytes that one flow takes at most, with its share of free places, but for its aside.
    pub fn bytes_per_flow(&self) -> usize {
        self.slab.slots() * (size_of::<Hot>() + size_of::<Cold>()) / self.flows_max
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

    /// From now on the packets are one in so many, chosen at random; 0 or 1 when they are all.
    pub fn sample(&mut self, one_in: u32) {
        self.sampling_population = if one_in > 1 { one_in } else { 0 };
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

    /// Adds `packets` to their flows. Records come out where a packet ends something: a slice, a closed connection, a flow that
    /// had to make room.
    pub fn observe(&mut self, packets: &[Packet], out: &mut Vec<FlowRecord>) {
        let mut hashes = [KeyHash::default(); BATCH];
        for batch in packets.chunks(BATCH) {
            while self.newborn.len() > NEWBORN_MAX - BATCH {
                self.begin_oldest(out);
            }
            for (packet, hash) in batch.iter().zip(&mut hashes) {
                *hash = self.hasher.hash(&packet.key);
                self.slab.prefetch(*hash);
            }
            for (packet, hash) in batch.iter().zip(&hashes) {
                self.add(packet, *hash, out);
            }
            self.counts.metered += batch.len() as u64;
        }
        while let Some(quoted) = self.quoted.pop() {
            if let Place::Found(at) = self.slab.find(self.hasher.hash(&quoted.key)) {
                self.slab.both_mut(at).1.icmp_error[quoted.way.index()] = quoted.type_code;
            }
        }
    }

    #[inline]
    fn add(&mut self, packet: &Packet, hash: KeyHash, out: &mut Vec<FlowRecord>) {
        if packet.at > self.newest {
            self.newest = packet.at;
            if packet.at >= self.slice.end {
                self.slice = self.slice_of(packet.at);
            }
        } else if self.newest.as_nanos().wrapping_sub(packet.at.as_nanos()) > LATE_NANOS {
            self.counts.late += 1;
        }
        let at = match self.slab.find(hash) {
            Place::Found(at) => at,
            Place::Free(at) if self.slab.len < self.flows_max => self.open(at, packet, hash),
            Place::Free(_) | Place::Crowded => {
                let at = self.make_room(hash, out);
                self.open(at, packet, hash)
            }
        };
        let hot = self.slab.hot(at);
        let newest = hot.last[0].max(hot.last[1]);
        // Of a packet that is older than the flow's newest the difference is huge as well.
        let silent_nanos = packet.at.as_nanos().wrapping_sub(newest.as_nanos()).cast_unsigned();
        let at = if newest < self.slice.start || silent_nanos >= self.timeouts.shortest_nanos || life::is_reopened(hot, packet) {
            self.turn(at, packet, hash, out)
        } else {
            at
        };
        self.count(at, packet);
    }

    #[inline]
    fn count(&mut self, at: usize, packet: &Packet) {
        let way = packet.way.index();
        let hot = self.slab.hot(at);
        let octets = hot.ip_octets[way].checked_add(packet.ip_octets);
        let mut overhead = packet.frame_octets.wrapping_sub(packet.ip_octets);
        if !(1..u16::MAX).contains(&hot.packets[way])
            || packet.at < hot.last[way]
            || octets.is_none()
            || u32::from(hot.overhead[way]).wrapping_add(overhead) > u32::from(u16::MAX)
        {
            overhead = self.make_ready(at, packet);
        }
        let hot = self.slab.hot_mut(at);
        let is_next = packet.sequence == hot.next_seq[way]
            && packet.flags & tcp::SPECIAL == ACK
            && packet.window != 0
            && hot.flags[way ^ 1] & EXPECTS_ACK == 0
            && hot.next_seq[way ^ 1].wrapping_sub(packet.acknowledgement) <= u32::MAX / 2;
        if is_next {
            hot.next_seq[way] = packet.sequence.wrapping_add(packet.payload_octets);
        } else if packet.flags & TCP_FLAGS != 0 {
            let (hot, cold) = self.slab.both_mut(at);
            tcp::examine(hot, cold, &mut self.asides, packet);
        }
        self.health.tcp_octets += u64::from(packet.payload_octets);
        let ip_len = packet.ip_octets.min(u32::from(u16::MAX)) as u16;
        let hot = self.slab.hot_mut(at);
        hot.ttl_min[way] = hot.ttl_min[way].min(packet.ttl);
        hot.ttl_max[way] = hot.ttl_max[way].max(packet.ttl);
        hot.ip_len_min[way] = hot.ip_len_min[way].min(ip_len);
        hot.ip_len_max[way] = hot.ip_len_max[way].max(ip_len);
        hot.packets[way] += 1;
        hot.ip_octets[way] = hot.ip_octets[way].wrapping_add(packet.ip_octets);
        hot.overhead[way] = hot.overhead[way].wrapping_add(overhead as u16);
        hot.last[way] = hot.last[way].max(packet.at);
        hot.flags[way] |= packet.flags;
    }

    /// Prepares a flow for a packet that its line cannot simply take: the first of a slice, one that comes late, or one that would make a
    /// counter overflow. Gives the octets beyond those of IP that are left for the line.
    #[cold]
    fn make_ready(&mut self, at: usize, packet: &Packet) -> u32 {
        let way = packet.way.index();
        let overhead = packet.frame_octets.wrapping_sub(packet.ip_octets);
        let (hot, cold) = self.slab.both_mut(at);
        if hot.packets[way] == 0 {
            let ip_len = packet.ip_octets.min(u32::from(u16::MAX)) as u16;
            (hot.ttl_min[way], hot.ttl_max[way]) = (packet.ttl, packet.ttl);
            (hot.ip_len_min[way], hot.ip_len_max[way]) = (ip_len, ip_len);
            cold.first_of_slice(packet);
        }
        cold.start[way] = cold.start[way].min(packet.at);
        if hot.packets[way] == u16::MAX {
            let aside = self.asides.of(&mut cold.aside);
            // One stays, so that the line tells that the slice is not empty.
            aside.packets[way] += u64::from(hot.packets[way] - 1);
            hot.packets[way] = 1;
            cold.life |= SEVERAL;
        }
        if hot.ip_octets[way].checked_add(packet.ip_octets).is_none() {
            self.asides.of(&mut cold.aside).ip_octets[way] += u64::from(std::mem::take(&mut hot.ip_octets[way]));
        }
        if u32::from(hot.overhead[way]).wrapping_add(overhead) > u32::from(u16::MAX) {
            let in_line = i64::from(std::mem::take(&mut hot.overhead[way]));
            let aside = self.asides.of(&mut cold.aside);
            aside.overhead[way] += in_line + i64::from(packet.frame_octets) - i64::from(packet.ip_octets);
            return 0;
        }
        overhead
    }

    /// Begins a flow on a free slot.
    fn open(&mut self, at: usize, packet: &Packet, hash: KeyHash) -> usize {
        // The count tells apart flows between the same ends that open within one tick of the clock.
        let opened = packet.at.as_nanos().wrapping_add(self.counts.flows.observed.cast_signed());
        let flow_id = self.hasher.flow_id(&packet.key, opened);
        self.slab.put(at, hash, Cold::new(packet, flow_id));
        self.counts.flows.observed += 1;
        self.counts.flows.peak = self.counts.flows.peak.max(self.slab.len as u64);
        self.newborn.push_back(Newborn { hash, flow_id, due: packet.at.plus(self.timeouts.begin) });
        at
    }
}
#[cfg(test)]
mod tests;
