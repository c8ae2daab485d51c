//! When records are made, and of which flows: slices, timeouts, and what gives way when the table is full.

use std::time::Duration;

use spanwatch_common::flow::{FlowEndReason, FlowRecord, FlowState, protocol, tcp};
use spanwatch_common::time::Timestamp;

use super::aggregates::Aggregates;
use super::aside::Aside;
use super::hot::Hot;
use super::records::{Cause, Records};
use super::settings::Timeouts;
use super::slot::{self, BEGUN, Cold, EARLIER, SEVERAL};
use super::{FlowTable, SWEEP, Slice};
use crate::decode::Update;

impl FlowTable {
    /// Moves everything that is due at `now` into `out`: Begin records of new flows, Continue records of slices that are over, End
    /// records of flows that have been silent too long.
    ///
    /// Looks at a share of the table that grows with the time since the last call, so that every flow is looked at once a second.
    pub fn expire(&mut self, now: Timestamp, out: &mut Records) {
        self.begin_due(now, out);
        let slots = self.slab.touched();
        let since = now.since(self.swept).min(SWEEP);
        let share = (slots as u128 * since.as_nanos() / SWEEP.as_nanos()) as usize;
        if share == 0 && since < SWEEP {
            return;
        }
        self.swept = now;
        let end = self.cursor.min(slots) + share;
        self.sweep(self.cursor, end.min(slots), now, out);
        if end >= slots {
            self.talkers.publish();
            self.sweep(0, end - slots, now, out);
        }
        self.cursor = if end >= slots { end - slots } else { end };
    }

    /// The same, and looks at every flow: what comes out then depends on packets and `now` alone, not on where flows stand.
    pub fn expire_all(&mut self, now: Timestamp, out: &mut Records) {
        self.begin_due(now, out);
        self.swept = now;
        self.cursor = 0;
        self.sweep(0, self.slab.touched(), now, out);
        self.talkers.publish();
    }

    /// Makes the Begin records that are due, and all of aggregates, as [`expire`](Self::expire) does first.
    pub fn begin_due(&mut self, now: Timestamp, out: &mut Records) {
        out.observed_by(self.observer);
        self.advance(now);
        while self.newborn.front().is_some_and(|newborn| newborn.due <= now) {
            self.begin_oldest(out);
        }
        self.count_aggregates(out, |aggregates, made| aggregates.expire(now, made));
    }

    /// Ends every flow, e.g. because the sensor stops or the clock was set. Packet time may start anywhere after this.
    pub fn flush(&mut self, reason: FlowEndReason, out: &mut Records) {
        self.flush_some(reason, usize::MAX, out);
    }

    /// The same for at most so many flows, so that their records need not all be held at once. Whether none is left.
    pub fn flush_some(&mut self, reason: FlowEndReason, flows_max: usize, out: &mut Records) -> bool {
        out.observed_by(self.observer);
        let mut from = 0;
        for _ in 0..flows_max {
            let Some(at) = self.slab.next_taken(from, self.slab.touched()) else { break };
            self.end(at, reason, out);
            from = at + 1;
        }
        if self.slab.len > 0 {
            return false;
        }
        self.count_aggregates(out, |aggregates, made| aggregates.flush(reason, made));
        self.newborn.clear();
        self.slice = Slice::default();
        (self.newest, self.swept, self.room_since) = (Timestamp::NONE, Timestamp::NONE, Timestamp::NONE);
        true
    }

    /// Lets aggregates make records, which `make` gives the packets of, and accounts for both.
    fn count_aggregates(&mut self, out: &mut Records, make: impl FnOnce(&mut Aggregates, &mut Vec<FlowRecord>) -> u64) {
        let before = out.made().len();
        self.counts.exported += make(&mut self.aggregates, out.made());
        self.counts.flows.records += (out.made().len() - before) as u64;
    }

    pub(super) fn begin_oldest(&mut self, out: &mut Records) {
        let Some(newborn) = self.newborn.pop_front() else { return };
        let at = newborn.slot as usize;
        // The flow may be gone, and another stand there.
        if self.slab.next_taken(at, at + 1).is_some() && self.slab.both(at).1.flow_id == newborn.flow_id {
            self.begin(at, out);
        }
    }

    /// Makes the Begin record of a flow, unless it was made.
    fn begin(&mut self, at: usize, out: &mut Records) {
        let cold = self.slab.both_mut(at).1;
        if cold.life & BEGUN != 0 {
            return;
        }
        cold.life |= BEGUN;
        self.tell(at, FlowState::Begin, FlowEndReason::None, out);
    }

    fn sweep(&mut self, from: usize, to: usize, now: Timestamp, out: &mut Records) {
        let mut from = from;
        // Ends several flows at a time, so that what each needs is fetched while the others are looked at.
        let mut over = [(0, FlowEndReason::None); 16];
        let mut waiting = 0;
        while let Some(at) = self.slab.next_taken(from, to) {
            from = at + 1;
            let (hot, cold) = self.slab.both(at);
            let newest = hot.newest();
            let silent_nanos = now.as_nanos().saturating_sub(newest.as_nanos());
            if silent_nanos >= self.timeouts.shortest_nanos.cast_signed() {
                let (timeout, reason) = timeout(hot, cold, &self.timeouts);
                if now.since(newest) >= timeout {
                    self.slab.prefetch_removal(at, &self.hasher);
                    over[waiting] = (at, reason);
                    waiting += 1;
                    if waiting == over.len() {
                        waiting = 0;
                        over.iter().for_each(|&(at, reason)| self.end(at, reason, out));
                    }
                    continue;
                }
            }
            if self.talkers.is_watched {
                self.weigh(at, now);
            }
            if newest < self.slice.start && !self.slab.hot(at).is_empty() {
                self.continue_later(at, out);
            }
        }
        over[..waiting].iter().for_each(|&(at, reason)| self.end(at, reason, out));
    }

    /// Puts a flow among the talkers if it has said enough.
    fn weigh(&mut self, at: usize, now: Timestamp) {
        let (hot, cold) = self.slab.both(at);
        let aside = self.asides.get(cold.aside);
        let (octets, _) = slot::volume(hot, cold, aside);
        if self.talkers.has_place_for(octets.iter().sum()) {
            let (talker, first) = slot::talker(hot, cold, aside, self.slab.wide_of(cold));
            self.talkers.add(talker, first, now);
        }
    }

    /// Readies a flow that was silent for a while, or whose next connection begins, for a packet: ends it if it is over, cuts it if the packet
    /// belongs to a later slice. Whether the flow is still there.
    #[cold]
    pub(super) fn turn(&mut self, at: usize, packet: &Update, out: &mut Records) -> bool {
        if let Some(reason) = self.is_over(at, packet) {
            self.end(at, reason, out);
            return false;
        }
        let hot = self.slab.hot(at);
        let is_stale = hot.newest() < self.slice.start && packet.at >= self.slice.start;
        if is_stale && !hot.is_empty() {
            self.continue_later(at, out);
        }
        true
    }

    /// Whether the flow ended before `packet` came: it was silent for too long and not swept yet, or a new connection begins.
    fn is_over(&self, at: usize, packet: &Update) -> Option<FlowEndReason> {
        let (hot, cold) = self.slab.both(at);
        if is_reopened(hot, packet) {
            return Some(FlowEndReason::EndOfFlow);
        }
        let newest = hot.newest();
        // A flow that was opened a moment ago has no time yet.
        if !newest.is_some() {
            return None;
        }
        let (timeout, reason) = timeout(hot, cold, &self.timeouts);
        (packet.at.since(newest) >= timeout).then_some(reason)
    }

    /// Ends the least valuable of the flows that the hand passes next, if one may go.
    #[cold]
    pub(super) fn make_room(&mut self, now: Timestamp, out: &mut Records) -> bool {
        if now.since(self.room_since) >= ROOM_INTERVAL {
            (self.room_since, self.room_made) = (now, 0);
        }
        if self.room_made == ROOM_MAX {
            return false;
        }
        let slots = self.slab.touched();
        let mut victim = None;
        // After a round without a victim only a few are looked at: there is none to be had, and packets wait.
        let looks = if self.barren < slots { LOOKS_MAX } else { LOOKS_BARREN };
        for looked in 1..=looks.min(slots) {
            let at = if self.hand < slots { self.hand } else { 0 };
            self.hand = at + 1;
            self.barren = self.barren.saturating_add(1);
            let (hot, cold) = self.slab.both(at);
            let value = value(hot, cold, now, &self.timeouts);
            if value < Value::Kept && victim.is_none_or(|(least, _)| (value, hot.newest()) < least) {
                victim = Some(((value, hot.newest()), at));
            }
            let enough = matches!(victim, Some(((Value::Over | Value::HalfOpen, _), _))) && looked >= LOOKS_ENOUGH;
            if value == Value::Over || enough {
                break;
            }
        }
        let Some((_, at)) = victim else { return false };
        self.barren = 0;
        self.room_made += 1;
        self.end(at, FlowEndReason::LackOfResources, out);
        self.counts.flows.evicted += 1;
        true
    }

    /// Puts what is known of the current slice into `out`.
    fn tell(&mut self, at: usize, state: FlowState, reason: FlowEndReason, out: &mut Records) {
        let (hot, cold) = self.slab.both(at);
        let aside = (cold.aside != 0).then(|| self.asides.get(cold.aside));
        let wide = self.slab.wide_of(cold).map(|wide| (wide, self.tunnels.named(wide.tunnel)));
        out.push(hot, cold, aside, wide, Cause { state, reason, sampling_population: self.sampled[0].max(self.sampled[1]) });
        self.counts.flows.records += 1;
    }

    /// Makes a record of the current slice and starts the next one.
    fn cut(&mut self, at: usize, state: FlowState, reason: FlowEndReason, out: &mut Records) {
        self.tell(at, state, reason, out);
        let (hot, cold) = self.slab.both_mut(at);
        let aside = self.asides.get(cold.aside);
        let (_, packets) = slot::volume(hot, cold, aside);
        if is_established(hot, cold, packets) {
            self.health.tcp_flows += 1;
            // On a fibre of a TAP every flow has one side: that is how it is meant to be.
            let has_both = cold.heard(0) && cold.heard(1);
            self.health.tcp_flows_one_way += u64::from(!has_both && !self.observer.one_sided);
        }
        self.health.missed_octets += missed_octets(aside);
        let packets = packets[0] + packets[1];
        self.counts.exported += packets;
        if packets > 1 || packets == 1 && cold.life & EARLIER != 0 {
            cold.life |= SEVERAL;
        }
        if packets > 0 {
            cold.life |= EARLIER;
        }
        cold.icmp_error = [0; 2];
        cold.next_slice(hot);
        self.asides.next_slice(&mut cold.aside);
        hot.next_slice();
    }

    /// Makes a Continue record, after the Begin record if that has not been made yet.
    pub(super) fn continue_later(&mut self, at: usize, out: &mut Records) {
        self.begin(at, out);
        self.cut(at, FlowState::Continue, FlowEndReason::ActiveTimeout, out);
    }

    pub(super) fn end(&mut self, at: usize, reason: FlowEndReason, out: &mut Records) {
        self.cut(at, FlowState::End, reason, out);
        self.asides.give_back(&mut self.slab.both_mut(at).1.aside);
        self.slab.remove(at, &self.hasher);
    }

    /// Goes on to the slice of `at`, unless that is the current one or an earlier one.
    #[cold]
    #[inline(never)]
    pub(super) fn advance(&mut self, at: Timestamp) {
        if at >= self.slice.end {
            let start = at.floor(self.timeouts.active);
            self.slice = Slice { start, end: start.plus(self.timeouts.active) };
            self.sampled = [self.sampled[1], self.sampling_rate];
        }
    }
}

/// Most flows that give way in each [`ROOM_INTERVAL`]: 100,000 a second. A flood of single packets would else become a record each, and
/// crowd the records of conversations out of the way to the collector. Aggregates describe it better.
const ROOM_MAX: u32 = 10_000;
const ROOM_INTERVAL: Duration = Duration::from_millis(100);
/// Flows that the hand looks at for one that gives way.
const LOOKS_MAX: usize = 32;
/// The same if there is a SYN among them that nobody answered: in a flood of those any is as good, and there is no time to lose.
const LOOKS_ENOUGH: usize = 4;
/// The same while there is hardly any hope.
const LOOKS_BARREN: usize = 2;

/// Whether the packet is the SYN of a new connection between the ends of one that is over (RFC 9293 §3.5 lets them).
#[inline]
pub(super) fn is_reopened(hot: &Hot, packet: &Update) -> bool {
    hot.is_closed() && packet.flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
}

/// Whether a TCP connection said more than SYN in a slice, and was answered more than that it is refused, as far as one side can tell.
fn is_established(hot: &Hot, cold: &Cold, packets: [u64; 2]) -> bool {
    cold.protocol == protocol::TCP
        && hot
            .half
            .iter()
            .zip(packets)
            .any(|(half, packets)| half.flags & tcp::ACK != 0 && (packets > 1 || half.flags & (tcp::SYN | tcp::RST) == 0))
}

fn missed_octets(aside: &Aside) -> u64 {
    aside.missed_octets.iter().sum()
}

/// What keeping a flow is worth when the table is full; less goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    /// A TCP connection that is over.
    Over,
    /// A SYN that nobody answered.
    HalfOpen,
    /// One packet.
    Single,
    /// A conversation that has been silent for half of what it may be.
    Silent,
    /// A conversation.
    Kept,
}

fn value(hot: &Hot, cold: &Cold, now: Timestamp, timeouts: &Timeouts) -> Value {
    if hot.is_closed() {
        Value::Over
    } else if cold.is_half_open(hot) {
        Value::HalfOpen
    } else if is_single(hot, cold) {
        Value::Single
    } else if now.since(hot.newest()) * 2 >= timeout(hot, cold, timeouts).0 {
        Value::Silent
    } else {
        Value::Kept
    }
}

/// Whether one packet is all that was ever seen.
fn is_single(hot: &Hot, cold: &Cold) -> bool {
    let now = u32::from(hot.half[0].packets) + u32::from(hot.half[1].packets);
    cold.life & SEVERAL == 0 && now + u32::from(cold.life & EARLIER != 0) <= 1
}

fn timeout(hot: &Hot, cold: &Cold, timeouts: &Timeouts) -> (Duration, FlowEndReason) {
    let timeout = match cold.protocol {
        protocol::TCP if hot.is_closed() => return (timeouts.closed, FlowEndReason::EndOfFlow),
        protocol::TCP if cold.is_half_open(hot) => timeouts.half_open,
        protocol::TCP => timeouts.tcp,
        protocol::UDP if is_single(hot, cold) => timeouts.udp_single,
        protocol::UDP => timeouts.udp,
        _ => timeouts.other,
    };
    (timeout, FlowEndReason::IdleTimeout)
}
