//! The flow table: packets in, final records out. Fixed in size, silent about the time of day.
//!
//! One table serves one receive queue and one thread. Its memory is taken at the start; nothing on the way of a packet allocates,
//! locks or reads a clock. What every packet touches fits one cache line for each flow ([`slot`]); a batch of packets has all
//! its lines fetched before the first is used.
//!
//! # When the table is full
//! The newcomer takes the place of a flow near its own: first a TCP connection that is over, then a SYN that nobody answered, then
//! a flow of one packet, then any other; among equals the one silent longest. That flow ends with flowEndReason 5 and is counted
//! in [`ledger::Flows::evicted`]. No packet is lost by it.

mod hash;
mod memory;
mod settings;
mod slab;
mod slot;

use std::collections::VecDeque;
use std::time::Duration;

use spanwatch_common::flow::{FlowEndReason, FlowRecord, FlowState, protocol, tcp};
use spanwatch_common::ledger;
use spanwatch_common::time::Timestamp;

pub use hash::{KeyHash, KeyHasher};
pub use settings::FlowTableSettings;

use crate::decode::Packet;
use settings::Timeouts;
use slab::{Place, Slab};
use slot::{BEGUN, Cold, EARLIER, FIN_SEEN, Hot, SEVERAL};

/// Packets that are looked up together.
pub const BATCH: usize = 64;
/// How long one look at every flow may take, in packet time: the granularity of timeouts.
const SWEEP: Duration = Duration::from_secs(1);
/// A packet older than the newest one by more than this is counted as late.
const LATE: Duration = Duration::from_secs(2);
/// Most flows that wait for their Begin record; beyond this the oldest is begun early.
const NEWBORN_MAX: usize = 1 << 16;

/// What every record of a table says about where it was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observer {
    /// observationPointId.
    pub observation_point: u32,
    /// ingressInterface.
    pub ingress_interface: u32,
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
    newborn: VecDeque<Newborn>,
    /// The stretch of time, a multiple of the active timeout, to which new packets belong.
    slice: Slice,
    newest: Timestamp,
    swept: Timestamp,
    cursor: usize,
    counts: Counts,
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
        Ok(Self {
            slab: Slab::new(settings.slots().max(slab::PROBE_MAX))?,
            hasher,
            flows_max: settings.flows_max,
            timeouts: settings.timeouts(),
            observer,
            newborn: VecDeque::with_capacity(NEWBORN_MAX),
            slice: Slice::default(),
            newest: Timestamp::NONE,
            swept: Timestamp::NONE,
            cursor: 0,
            counts: Counts::default(),
        })
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts;
        counts.flows.live = self.slab.len as u64;
        counts
    }

    /// Packets in the table, added up flow by flow: for proving that [`Counts`] tells the truth.
    pub fn packets_held(&self) -> u64 {
        let mut held = 0;
        let mut from = 0;
        while let Some(at) = self.slab.next_taken(from, self.slab.slots()) {
            held += self.slab.both(at).0.packets.map(u64::from).iter().sum::<u64>();
            from = at + 1;
        }
        held
    }

    /// Bytes that one flow takes at most, with its share of free places.
    pub fn bytes_per_flow(&self) -> usize {
        self.slab.slots() * (size_of::<Hot>() + size_of::<Cold>()) / self.flows_max
    }

    /// Adds `packets` to their flows. Records come out where a packet ends something: a slice, a closed connection, a flow that
    /// had to make room.
    pub fn observe(&mut self, packets: &[Packet], out: &mut Vec<FlowRecord>) {
        for batch in packets.chunks(BATCH) {
            while self.newborn.len() > NEWBORN_MAX - BATCH {
                self.begin_oldest(out);
            }
            let mut hashes = [KeyHash::default(); BATCH];
            for (packet, hash) in batch.iter().zip(&mut hashes) {
                *hash = self.hasher.hash(&packet.key);
                self.slab.prefetch(*hash);
            }
            for (packet, hash) in batch.iter().zip(hashes) {
                self.add(packet, hash, out);
            }
            self.counts.metered += batch.len() as u64;
        }
    }

    #[inline]
    fn add(&mut self, packet: &Packet, hash: KeyHash, out: &mut Vec<FlowRecord>) {
        if packet.at > self.newest {
            self.newest = packet.at;
            if packet.at >= self.slice.end {
                self.slice = self.slice_of(packet.at);
            }
        } else if self.newest.since(packet.at) > LATE {
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
        let way = packet.way.index();
        if let Some(reason) = self.is_over(at, packet) {
            self.end(at, reason, out);
            let at = match self.slab.find(hash) {
                Place::Free(at) => at,
                Place::Found(_) | Place::Crowded => self.make_room(hash, out),
            };
            let at = self.open(at, packet, hash);
            return self.count(at, way, packet);
        }
        if needs_cut(self.slab.hot_mut(at), packet, self.slice.start) {
            self.continue_later(at, out);
        }
        self.count(at, way, packet);
    }

    /// Whether the flow ended before `packet` came: it was silent for too long and not swept yet, or a new connection begins.
    #[inline]
    fn is_over(&self, at: usize, packet: &Packet) -> Option<FlowEndReason> {
        let hot = self.slab.hot(at);
        if is_reopened(hot, packet) {
            return Some(FlowEndReason::EndOfFlow);
        }
        let newest = hot.last[0].max(hot.last[1]);
        // A flow that was opened a moment ago has no time yet.
        if !newest.is_some() || packet.at.since(newest) < self.timeouts.shortest {
            return None;
        }
        let (hot, cold) = self.slab.both(at);
        let (timeout, reason) = timeout(hot, cold, &self.timeouts);
        (packet.at.since(newest) >= timeout).then_some(reason)
    }

    #[inline]
    fn count(&mut self, at: usize, way: usize, packet: &Packet) {
        let hot = self.slab.hot_mut(at);
        let ip_len = u16::try_from(packet.ip_octets).unwrap_or(u16::MAX);
        if hot.packets[way] == 0 {
            (hot.ttl_min[way], hot.ttl_max[way]) = (packet.ttl, packet.ttl);
            (hot.ip_len_min[way], hot.ip_len_max[way]) = (ip_len, ip_len);
            let (_, cold) = self.slab.both_mut(at);
            cold.first_of_slice(packet);
        } else {
            hot.ttl_min[way] = hot.ttl_min[way].min(packet.ttl);
            hot.ttl_max[way] = hot.ttl_max[way].max(packet.ttl);
            hot.ip_len_min[way] = hot.ip_len_min[way].min(ip_len);
            hot.ip_len_max[way] = hot.ip_len_max[way].max(ip_len);
            if packet.at < hot.last[way] {
                let (_, cold) = self.slab.both_mut(at);
                cold.start[way] = cold.start[way].min(packet.at);
            }
        }
        let hot = self.slab.hot_mut(at);
        hot.packets[way] += 1;
        hot.ip_octets[way] += packet.ip_octets;
        hot.frame_octets[way] += packet.frame_octets;
        hot.last[way] = hot.last[way].max(packet.at);
        hot.flags[way] |= packet.flags;
        if packet.flags & (tcp::FIN | tcp::RST) != 0 && packet.key.protocol == protocol::TCP {
            hot.flags[way] |= FIN_SEEN;
            if packet.flags & tcp::RST != 0 {
                hot.flags[way ^ 1] |= FIN_SEEN;
            }
        }
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

    /// Ends the least valuable flow near the home of `hash`; gives the slot where the newcomer can stand.
    #[cold]
    fn make_room(&mut self, hash: KeyHash, out: &mut Vec<FlowRecord>) -> usize {
        loop {
            let value = |&at: &usize| {
                let (hot, cold) = self.slab.both(at);
                (value(hot, cold), hot.last[0].max(hot.last[1]))
            };
            if let Some(victim) = self.slab.neighbours(hash).min_by_key(value) {
                self.end(victim, FlowEndReason::LackOfResources, out);
                self.counts.flows.evicted += 1;
            }
            // Where every slot near home was taken, the victim stood among them; unless one from beyond moved in, one is free now.
            if let Place::Free(at) = self.slab.find(hash) {
                return at;
            }
        }
    }

    /// Makes a record of the current slice and starts the next one.
    fn cut(&mut self, at: usize, state: FlowState, reason: FlowEndReason, out: &mut Vec<FlowRecord>) {
        let (hot, cold) = self.slab.both_mut(at);
        let packets = u64::from(hot.packets[0]) + u64::from(hot.packets[1]);
        out.push(FlowRecord {
            state,
            end_reason: reason,
            observation_point: self.observer.observation_point,
            ingress_interface: self.observer.ingress_interface,
            ..slot::record(hot, cold)
        });
        if packets > 1 || packets == 1 && cold.life & EARLIER != 0 {
            cold.life |= SEVERAL;
        }
        if packets > 0 {
            cold.life |= EARLIER;
        }
        *hot =
            Hot { tag: hot.tag, last: hot.last, flags: hot.flags.map(|flags| flags & FIN_SEEN), ..bytemuck::Zeroable::zeroed() };
        self.counts.exported += packets;
        self.counts.flows.records += 1;
    }

    /// Makes a Continue record, after the Begin record if that has not been made yet.
    fn continue_later(&mut self, at: usize, out: &mut Vec<FlowRecord>) {
        self.begin(at, out);
        self.cut(at, FlowState::Continue, FlowEndReason::ActiveTimeout, out);
    }

    fn end(&mut self, at: usize, reason: FlowEndReason, out: &mut Vec<FlowRecord>) {
        self.cut(at, FlowState::End, reason, out);
        self.slab.remove(at);
    }

    fn slice_of(&self, at: Timestamp) -> Slice {
        let start = at.floor(self.timeouts.active);
        Slice { start, end: start.plus(self.timeouts.active) }
    }

    /// Moves everything that is due at `now` into `out`: Begin records of new flows, Continue records of slices that are over, End
    /// records of flows that have been silent too long.
    ///
    /// Looks at a share of the table that grows with the time since the last call, so that every flow is looked at once a second.
    pub fn expire(&mut self, now: Timestamp, out: &mut Vec<FlowRecord>) {
        if now >= self.slice.end {
            self.slice = self.slice_of(now);
        }
        while self.newborn.front().is_some_and(|newborn| newborn.due <= now) {
            self.begin_oldest(out);
        }
        let slots = self.slab.slots();
        let since = now.since(self.swept).min(SWEEP);
        let share = (slots as u128 * since.as_nanos() / SWEEP.as_nanos()) as usize;
        if share == 0 {
            return;
        }
        self.swept = now;
        let end = self.cursor + share;
        self.sweep(self.cursor, end.min(slots), now, out);
        if end > slots {
            self.sweep(0, end - slots, now, out);
        }
        self.cursor = end % slots;
    }

    /// Ends every flow, e.g. because the sensor stops or the clock was set. Packet time may start anywhere after this.
    pub fn flush(&mut self, reason: FlowEndReason, out: &mut Vec<FlowRecord>) {
        let mut from = 0;
        while let Some(at) = self.slab.next_taken(from, self.slab.slots()) {
            self.end(at, reason, out);
            from = at; // another flow may have moved here
        }
        self.newborn.clear();
        self.slice = Slice::default();
        (self.newest, self.swept) = (Timestamp::NONE, Timestamp::NONE);
    }

    fn begin_oldest(&mut self, out: &mut Vec<FlowRecord>) {
        let Some(newborn) = self.newborn.pop_front() else { return };
        let Place::Found(at) = self.slab.find(newborn.hash) else { return };
        if self.slab.both(at).1.flow_id == newborn.flow_id {
            self.begin(at, out);
        }
    }

    /// Makes the Begin record of a flow, unless it was made.
    fn begin(&mut self, at: usize, out: &mut Vec<FlowRecord>) {
        let (hot, cold) = self.slab.both_mut(at);
        if cold.life & BEGUN != 0 {
            return;
        }
        cold.life |= BEGUN;
        out.push(FlowRecord {
            state: FlowState::Begin,
            observation_point: self.observer.observation_point,
            ingress_interface: self.observer.ingress_interface,
            packets: [0; 2],
            octets: [0; 2],
            layer2_octets: [0; 2],
            ..slot::record(hot, cold)
        });
        self.counts.flows.records += 1;
    }

    fn sweep(&mut self, from: usize, to: usize, now: Timestamp, out: &mut Vec<FlowRecord>) {
        let mut from = from;
        while let Some(at) = self.slab.next_taken(from, to) {
            from = at + 1;
            let (hot, cold) = self.slab.both(at);
            let newest = hot.last[0].max(hot.last[1]);
            let silent = now.since(newest);
            if silent >= self.timeouts.shortest {
                let (timeout, reason) = timeout(hot, cold, &self.timeouts);
                if silent >= timeout {
                    self.end(at, reason, out);
                    from = at; // another flow may have moved here
                    continue;
                }
            }
            if newest < self.slice.start && hot.packets != [0; 2] {
                self.continue_later(at, out);
            }
        }
    }
}

/// Whether the packet belongs to a later slice than those counted so far, or would make a counter overflow.
#[inline]
fn needs_cut(hot: &Hot, packet: &Packet, slice_start: Timestamp) -> bool {
    let way = packet.way.index();
    let over = hot.ip_octets[way].checked_add(packet.ip_octets).is_none()
        || hot.frame_octets[way].checked_add(packet.frame_octets).is_none()
        || hot.packets[way] == u32::MAX;
    let stale = hot.last[0].max(hot.last[1]) < slice_start && packet.at >= slice_start;
    over || stale && hot.packets != [0; 2]
}

/// Whether the packet is the SYN of a new connection between the ends of one that is over (RFC 9293 §3.5 lets them).
#[inline]
fn is_reopened(hot: &Hot, packet: &Packet) -> bool {
    hot.flags[0] & hot.flags[1] & FIN_SEEN != 0 && packet.flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
}

fn is_closed(hot: &Hot) -> bool {
    hot.flags[0] & hot.flags[1] & FIN_SEEN != 0
}

/// What keeping a flow is worth when the table is full; less goes first.
fn value(hot: &Hot, cold: &Cold) -> u8 {
    if is_closed(hot) {
        0
    } else if cold.is_half_open() {
        1
    } else if is_single(hot, cold) {
        2
    } else {
        3
    }
}

/// Whether one packet is all that was ever seen.
fn is_single(hot: &Hot, cold: &Cold) -> bool {
    let now = u64::from(hot.packets[0]) + u64::from(hot.packets[1]);
    cold.life & SEVERAL == 0 && now + u64::from(cold.life & EARLIER != 0) <= 1
}

fn timeout(hot: &Hot, cold: &Cold, timeouts: &Timeouts) -> (Duration, FlowEndReason) {
    let timeout = match cold.key.protocol {
        protocol::TCP if is_closed(hot) => return (timeouts.closed, FlowEndReason::EndOfFlow),
        protocol::TCP if cold.is_half_open() => timeouts.half_open,
        protocol::TCP => timeouts.tcp,
        protocol::UDP if is_single(hot, cold) => timeouts.udp_single,
        protocol::UDP => timeouts.udp,
        _ => timeouts.other,
    };
    (timeout, FlowEndReason::IdleTimeout)
}

#[cfg(test)]
mod tests;
