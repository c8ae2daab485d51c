//! What the sequence numbers of a TCP connection tell a bystander: what was sent again, what came late, what was skipped.
//!
//! A segment that simply follows the one before it is counted where every packet is; everything else comes here. Nothing is
//! believed that cannot be: a jump of more than a quarter of the sequence space is another connection, or injected, and a RST's numbers
//! are anybody's guess (RFC 5961). A direction that was never heard can miss nothing, so a one-sided feed counts no missed octets.

use std::time::Duration;

use spanwatch_common::flow::tcp::{ACK, FIN, RST, SYN};

use super::aside::{Asides, Gaps};
use super::hot::{EXPECTS_ACK, FIN_SEEN, Hot};
use super::slot::{Cold, SEQUENCED};
use crate::decode::{IS_FRAGMENT, Update};

/// Bits of [`Update::flags`] that decide whether a segment can be an ordinary one, which has ACK and none of the others.
pub(super) const SPECIAL: u16 = SYN | FIN | RST | ACK | IS_FRAGMENT;
/// Farther than this from what was expected is not the same connection: no window is that large (RFC 7323 §2.3).
const PLAUSIBLE: u32 = 1 << 30;
/// Reordering takes no longer than this or a round trip, whichever is more; later it is a retransmission.
const REORDERING: Duration = Duration::from_millis(3);

/// A segment that is not simply the next one; before it is counted.
#[cold]
pub(super) fn examine(hot: &mut Hot, cold: &mut Cold, asides: &mut Asides, packet: &Update) {
    let way = packet.way.index();
    if packet.flags & (FIN | RST) != 0 {
        hot.half[way].flags |= FIN_SEEN;
        if packet.flags & RST != 0 {
            hot.half[way ^ 1].flags |= FIN_SEEN;
        }
    }
    // A fragment's length is not the segment's.
    if packet.flags & (RST | IS_FRAGMENT) != 0 || !packet.has_numbers {
        return;
    }
    if packet.window == 0 && packet.flags & (SYN | FIN) == 0 {
        asides.of(&mut cold.aside).zero_windows[way] += 1;
    }
    if packet.flags & ACK != 0 {
        acknowledge(hot, cold, asides, packet);
    }
    advance(hot, cold, asides, packet);
}

/// What the acknowledgement number says about the other direction.
fn acknowledge(hot: &mut Hot, cold: &mut Cold, asides: &mut Asides, packet: &Update) {
    let other = packet.way.opposite().index();
    let (next, end) = (hot.half[other].next_seq, packet.acknowledgement);
    if !cold.is_sequenced(other) {
        // As far ahead as a number can be, so that the acknowledgements of a one-sided feed do not come here one by one.
        hot.half[other].next_seq = end.wrapping_add(u32::MAX / 2);
        return;
    }
    let ahead = end.wrapping_sub(next);
    if ahead == 0 || ahead > u32::MAX / 2 {
        if hot.half[other].flags & EXPECTS_ACK == 0 {
            return;
        }
        if cold.handshake[0] != 0 && cold.handshake[1] == 0 && ahead == 0 {
            cold.handshake[1] = round_trip(packet, hot, other);
        }
        if cold.aside != 0 {
            let aside = asides.of(&mut cold.aside);
            aside.missed_octets[other] += aside.gaps[other].acknowledge(end);
            if aside.gaps[other].is_open() {
                return;
            }
        }
        hot.half[other].flags &= !EXPECTS_ACK;
    } else if ahead < PLAUSIBLE {
        let aside = asides.of(&mut cold.aside);
        let gaps = &mut aside.gaps[other];
        aside.missed_octets[other] += gaps.acknowledge(next) + u64::from(ahead);
        *gaps = Gaps { acknowledged_start: next, acknowledged_end: end, since: packet.at, ..Gaps::NONE };
        hot.half[other].next_seq = end;
        hot.half[other].flags &= !EXPECTS_ACK;
    }
}

/// What the sequence number says about its own direction.
fn advance(hot: &mut Hot, cold: &mut Cold, asides: &mut Asides, packet: &Update) {
    let way = packet.way.index();
    // SYN and FIN take a number each (RFC 9293 §3.4).
    let span = packet.payload_octets + u32::from(packet.flags & SYN != 0) + u32::from(packet.flags & FIN != 0);
    let (next, start, end) = (hot.half[way].next_seq, packet.sequence, packet.sequence.wrapping_add(span));
    if !cold.is_sequenced(way) {
        cold.life |= SEQUENCED << way;
        hot.half[way].next_seq = end;
        // Where the mirror shows the client's ACK first, the times mean nothing.
        let is_answer = packet.flags & (SYN | ACK) == SYN | ACK && cold.asked(way ^ 1) && hot.half[way ^ 1].flags & ACK == 0;
        if is_answer {
            cold.handshake[0] = round_trip(packet, hot, way ^ 1);
            hot.half[way].flags |= EXPECTS_ACK;
        }
        return;
    }
    let ahead = start.wrapping_sub(next);
    let is_other_connection = packet.flags & SYN != 0 && end != next;
    if ahead == 0 {
        hot.half[way].next_seq = end;
    } else if is_other_connection || (PLAUSIBLE..=PLAUSIBLE.wrapping_neg()).contains(&ahead) {
        if cold.aside != 0 {
            asides.of(&mut cold.aside).gaps[way] = Gaps::NONE;
        }
        hot.half[way].next_seq = end;
    } else if ahead < PLAUSIBLE {
        asides.of(&mut cold.aside).gaps[way].open(next, start, packet.at);
        hot.half[way].flags |= EXPECTS_ACK;
        hot.half[way].next_seq = end;
    } else if span > 0 {
        let behind = ahead.wrapping_neg();
        let is_longer = span > behind;
        if is_longer {
            hot.half[way].next_seq = end;
        }
        // One octet back is a keep-alive (RFC 9293 §3.8.4), a window probe (§3.8.6.1), or what follows one.
        if behind > 1 || !is_longer && packet.flags & (SYN | FIN) != 0 {
            count_late(cold, asides, packet, next, end);
        }
    }
}

/// A segment whose beginning lies before octets that were sent earlier.
fn count_late(cold: &mut Cold, asides: &mut Asides, packet: &Update, next: u32, end: u32) {
    let way = packet.way.index();
    let [server, client] = cold.handshake;
    let reordering = REORDERING.max(Duration::from_nanos(u64::from(server) + u64::from(client)));
    let aside = asides.of(&mut cold.aside);
    let gaps = &mut aside.gaps[way];
    let is_soon = packet.at.since(gaps.since) <= reordering;
    // Nothing later came by, only the acknowledgement: the mirror mixed up the directions, not the network the segments.
    let is_last = gaps.acknowledged_end == next;
    let missing = gaps.fill(packet.sequence, end);
    let acknowledged = gaps.fill_acknowledged(packet.sequence, end);
    if missing + acknowledged == 0 || !is_soon {
        aside.retransmissions[way] += 1;
        return;
    }
    aside.missed_octets[way] = aside.missed_octets[way].saturating_sub(u64::from(acknowledged));
    if missing > 0 || !is_last {
        aside.out_of_order[way] += 1;
    }
}

/// Nanoseconds since the last packet that went `other`. None when a capture without a clock of its own gave both the same time: unknown.
fn round_trip(packet: &Update, hot: &Hot, other: usize) -> u32 {
    u32::try_from(packet.at.since(hot.last[other]).as_nanos()).unwrap_or(u32::MAX)
}
