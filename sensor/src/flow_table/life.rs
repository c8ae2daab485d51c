//! When records are made, and of which flows: slices, timeouts, and what gives way when the table is full.

use std::time::Duration;

use spanwatch_common::flow::{FlowEndReason, FlowRecord, FlowState, protocol, tcp};
use spanwatch_common::time::Timestamp;

use super::hash::KeyHash;
use super::settings::Timeouts;
use super::slab::Place;
use super::slot::{self, BEGUN, Cold, EARLIER, EXPECTS_ACK, FIN_SEEN, Hot, SEVERAL};
use super::{FlowTable, SWEEP, Slice};
use crate::decode::Packet;

impl FlowTable {
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
        if end >= slots {
            self.talkers.publish();
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

    pub(super) fn begin_oldest(&mut self, out: &mut Vec<FlowRecord>) {
        let Some(newborn) = self.newborn.pop_front() else { return };
        let Place::Found(at) = self.slab.find(newborn.hash) else { return };
        if self.slab.both(at).1.flow_id == newborn.flow_id {
            self.begin(at, out);
        }
    }

    /// Makes the Begin record of a flow, unless it was made.
    fn begin(&mut self, at: usize, out: &mut Vec<FlowRecord>) {
        let cold = self.slab.both_mut(at).1;
        if cold.life & BEGUN != 0 {
            return;
        }
        cold.life |= BEGUN;
        let mut record = self.record(at);
        record.state = FlowState::Begin;
        (record.packets, record.octets, record.layer2_octets) = ([0; 2], [0; 2], [0; 2]);
        (record.tcp_retransmissions, record.tcp_out_of_order) = ([0; 2], [0; 2]);
        (record.tcp_zero_windows, record.tcp_missed_octets) = ([0; 2], [0; 2]);
        out.push(record);
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
            if self.talkers.is_watched {
                self.weigh(at, now);
            }
            let is_stale = newest < self.slice.start;
            if is_stale && self.slab.hot(at).packets != [0; 2] {
                self.continue_later(at, out);
            }
        }
    }

    /// Puts a flow among the talkers if it has said enough.
    fn weigh(&mut self, at: usize, now: Timestamp) {
        let (hot, cold) = self.slab.both(at);
        let aside = self.asides.get(cold.aside);
        let (octets, _) = slot::volume(hot, cold, aside);
        if self.talkers.has_place_for(octets.iter().sum()) {
            let (talker, first) = slot::talker(hot, cold, aside);
            self.talkers.add(talker, first, now);
        }
    }

    /// Readies a flow that was silent for a while, or whose next connection begins, for `packet`: ends it and opens another if it was
    /// over, cuts it if `packet` belongs to a later slice. Gives the slot of the flow that the packet belongs to.
    #[cold]
    pub(super) fn turn(&mut self, at: usize, packet: &Packet, hash: KeyHash, out: &mut Vec<FlowRecord>) -> usize {
        if let Some(reason) = self.is_over(at, packet) {
            self.end(at, reason, out);
            let at = match self.slab.find(hash) {
                Place::Free(at) => at,
                Place::Found(_) | Place::Crowded => self.make_room(hash, out),
            };
            return self.open(at, packet, hash);
        }
        let hot = self.slab.hot(at);
        let is_stale = hot.last[0].max(hot.last[1]) < self.slice.start && packet.at >= self.slice.start;
        if is_stale && hot.packets != [0; 2] {
            self.continue_later(at, out);
        }
        at
    }

    /// Whether the flow ended before `packet` came: it was silent for too long and not swept yet, or a new connection begins.
    fn is_over(&self, at: usize, packet: &Packet) -> Option<FlowEndReason> {
        let (hot, cold) = self.slab.both(at);
        if is_reopened(hot, packet) {
            return Some(FlowEndReason::EndOfFlow);
        }
        let newest = hot.last[0].max(hot.last[1]);
        // A flow that was opened a moment ago has no time yet.
        if !newest.is_some() {
            return None;
        }
        let (timeout, reason) = timeout(hot, cold, &self.timeouts);
        (packet.at.since(newest) >= timeout).then_some(reason)
    }

    /// Ends the least valuable flow near the home of `hash`; gives the slot where the newcomer can stand.
    #[cold]
    pub(super) fn make_room(&mut self, hash: KeyHash, out: &mut Vec<FlowRecord>) -> usize {
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

    /// What is known of the current slice.
    fn record(&self, at: usize) -> FlowRecord {
        let (hot, cold) = self.slab.both(at);
        let mut record = slot::record(hot, cold, self.asides.get(cold.aside), &self.tunnels.named(cold.tunnel));
        record.observation_point = self.observer.observation_point;
        record.one_sided = self.observer.one_sided;
        record.sampling_population = self.sampling_population;
        if record.ingress_interface == 0 {
            record.ingress_interface = self.observer.ingress_interface;
        }
        record
    }

    /// Makes a record of the current slice and starts the next one.
    fn cut(&mut self, at: usize, state: FlowState, reason: FlowEndReason, out: &mut Vec<FlowRecord>) {
        let mut record = self.record(at);
        (record.state, record.end_reason) = (state, reason);
        let packets = record.packets_total();
        if is_established(&record) {
            self.health.tcp_flows += 1;
            self.health.tcp_flows_one_way += u64::from(!record.answered);
        }
        self.health.missed_octets += record.tcp_missed_octets.iter().sum::<u64>();
        self.counts.exported += packets;
        self.counts.flows.records += 1;
        out.push(record);
        let (hot, cold) = self.slab.both_mut(at);
        if packets > 1 || packets == 1 && cold.life & EARLIER != 0 {
            cold.life |= SEVERAL;
        }
        if packets > 0 {
            cold.life |= EARLIER;
        }
        cold.icmp_error = [0; 2];
        self.asides.next_slice(&mut cold.aside);
        *hot = Hot {
            tag: hot.tag,
            last: hot.last,
            next_seq: hot.next_seq,
            flags: hot.flags.map(|flags| flags & (FIN_SEEN | EXPECTS_ACK)),
            ..bytemuck::Zeroable::zeroed()
        };
    }

    /// Makes a Continue record, after the Begin record if that has not been made yet.
    pub(super) fn continue_later(&mut self, at: usize, out: &mut Vec<FlowRecord>) {
        self.begin(at, out);
        self.cut(at, FlowState::Continue, FlowEndReason::ActiveTimeout, out);
    }

    pub(super) fn end(&mut self, at: usize, reason: FlowEndReason, out: &mut Vec<FlowRecord>) {
        self.cut(at, FlowState::End, reason, out);
        self.asides.give_back(&mut self.slab.both_mut(at).1.aside);
        self.slab.remove(at);
    }

    pub(super) fn slice_of(&self, at: Timestamp) -> Slice {
        let start = at.floor(self.timeouts.active);
        Slice { start, end: start.plus(self.timeouts.active) }
    }
}

/// Whether the packet is the SYN of a new connection between the ends of one that is over (RFC 9293 §3.5 lets them).
#[inline]
pub(super) fn is_reopened(hot: &Hot, packet: &Packet) -> bool {
    hot.flags[0] & hot.flags[1] & FIN_SEEN != 0 && packet.flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
}

fn is_closed(hot: &Hot) -> bool {
    hot.flags[0] & hot.flags[1] & FIN_SEEN != 0
}

/// Whether a TCP connection said more than SYN, and was answered more than that it is refused, as far as one side can tell.
fn is_established(record: &FlowRecord) -> bool {
    record.protocol == protocol::TCP
        && record
            .packets
            .iter()
            .zip(record.tcp_flags)
            .any(|(&packets, flags)| flags & tcp::ACK != 0 && (packets > 1 || flags & (tcp::SYN | tcp::RST) == 0))
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
