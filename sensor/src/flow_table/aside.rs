//! What only some flows need: counters that outgrew their line, and what TCP remembers of a gap.
//!
//! An aside is taken from a [`Pool`] when a flow first needs one and given back with the record of the slice, unless a gap is still open.

use bytemuck::{Pod, Zeroable};
use spanwatch_common::time::Timestamp;

use super::pool::Pool;

/// Pairs are indexed by [`Way`](crate::decode::Way). Counters are those of the current slice.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Aside {
    /// To be added to the line's.
    pub(super) packets: [u64; 2],
    pub(super) ip_octets: [u64; 2],
    /// Octets of frames beyond those of IP; negative where IP headers claimed more than their frames had.
    pub(super) overhead: [i64; 2],
    pub(super) missed_octets: [u64; 2],
    pub(super) retransmissions: [u32; 2],
    pub(super) out_of_order: [u32; 2],
    pub(super) zero_windows: [u32; 2],
    pub(super) gaps: [Gaps; 2],
}

/// Octets that one direction of a TCP connection has skipped, as sequence numbers.
///
/// The first gap is known exactly. Those that open while it is waiting are one region behind it, of which only the missing octets are
/// known; it takes the first one's place when that is filled or acknowledged.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Gaps {
    pub(super) start: u32,
    pub(super) end: u32,
    /// Octets between `start` and `end` that did not come by; 0 when there is no gap.
    pub(super) missing: u32,
    /// End of the region behind, which begins at `end`.
    pub(super) later_end: u32,
    pub(super) later_missing: u32,
    /// What was last acknowledged although it had not come by.
    pub(super) acknowledged_start: u32,
    pub(super) acknowledged_end: u32,
    pub(super) unused: u32,
    /// When the latest gap opened.
    pub(super) since: Timestamp,
}

pub(super) static EMPTY: Aside = Aside {
    packets: [0; 2],
    ip_octets: [0; 2],
    overhead: [0; 2],
    missed_octets: [0; 2],
    retransmissions: [0; 2],
    out_of_order: [0; 2],
    zero_windows: [0; 2],
    gaps: [Gaps::NONE; 2],
};

/// The asides of all flows, by the number that the flow's cold part has; number 0 stands for none.
pub(super) struct Asides(Pool<Aside>);

impl Asides {
    /// As many as there may be flows.
    pub(super) fn new(flows_max: usize) -> std::io::Result<Self> {
        Pool::new(flows_max).map(Self)
    }

    /// The aside of a flow, whose part in the table holds `number`; taken from the pool if it has none.
    pub(super) fn of(&mut self, number: &mut u32) -> &mut Aside {
        if *number == 0 {
            *number = self.0.put(EMPTY);
        }
        self.0.get_mut(*number)
    }

    /// The aside of a flow, or an empty one.
    pub(super) fn get(&self, number: u32) -> &Aside {
        match number {
            0 => &EMPTY,
            number => self.0.get(number),
        }
    }

    /// Begins the next slice: counters are zero, open gaps stay.
    pub(super) fn next_slice(&mut self, number: &mut u32) {
        if *number == 0 {
            return;
        }
        let aside = self.0.get_mut(*number);
        if aside.gaps.iter().any(|gaps| gaps.missing > 0) {
            *aside = Aside { gaps: aside.gaps, ..EMPTY };
        } else {
            self.give_back(number);
        }
    }

    /// Gives the aside of a flow back, if it has one.
    pub(super) fn give_back(&mut self, number: &mut u32) {
        if *number != 0 {
            self.0.give_back(std::mem::take(number));
        }
    }
}

impl Gaps {
    /// Nothing was skipped.
    pub(super) const NONE: Self = Self {
        start: 0,
        end: 0,
        missing: 0,
        later_end: 0,
        later_missing: 0,
        acknowledged_start: 0,
        acknowledged_end: 0,
        unused: 0,
        since: Timestamp::NONE,
    };

    /// Whether anything is missing.
    pub(super) const fn is_open(&self) -> bool {
        self.missing > 0
    }

    /// Everything before `end` was sent, but nothing from `start` on came by.
    pub(super) const fn open(&mut self, start: u32, end: u32, at: Timestamp) {
        let missing = end.wrapping_sub(start);
        if self.missing == 0 {
            (self.start, self.end, self.missing) = (start, end, missing);
            (self.later_end, self.later_missing) = (end, 0);
        } else {
            self.later_end = end;
            self.later_missing = self.later_missing.saturating_add(missing);
        }
        self.since = at;
    }

    /// Octets from `start` to `end` came by late; gives how many of them had been missing.
    pub(super) fn fill(&mut self, start: u32, end: u32) -> u32 {
        if self.missing == 0 {
            return 0;
        }
        let first = overlap(start, end, self.start, self.end).min(self.missing);
        let later = overlap(start, end, self.end, self.later_end).min(self.later_missing);
        if first > 0 && !is_before(self.start, start) {
            self.start = self.start.wrapping_add(first);
        }
        self.missing -= first;
        self.later_missing -= later;
        self.advance();
        first + later
    }

    /// The other end acknowledged everything before `end`; gives how much of it never came by.
    pub(super) fn acknowledge(&mut self, end: u32) -> u64 {
        let mut missed = 0;
        while self.missing > 0 && is_before(self.start, end) {
            let known = overlap(self.start, end, self.start, self.end);
            // Inside a region of which only the sum is known nothing can be said before its end.
            if is_before(end, self.end) && self.missing != self.end.wrapping_sub(self.start) {
                break;
            }
            let missing = self.missing.min(known);
            missed += u64::from(missing);
            (self.acknowledged_start, self.acknowledged_end) = (self.start, self.start.wrapping_add(known));
            self.start = self.start.wrapping_add(known);
            self.missing -= missing;
            self.advance();
        }
        missed
    }

    /// Octets from `start` to `end` came by after they were acknowledged; gives how many of them had counted as missed.
    pub(super) fn fill_acknowledged(&mut self, start: u32, end: u32) -> u32 {
        let filled = overlap(start, end, self.acknowledged_start, self.acknowledged_end);
        if filled > 0 && !is_before(self.acknowledged_start, start) {
            self.acknowledged_start = self.acknowledged_start.wrapping_add(filled);
        } else if filled > 0 {
            self.acknowledged_end = start;
        }
        filled
    }

    /// Lets the region behind take the place of a gap that is no more.
    const fn advance(&mut self) {
        if self.missing == 0 {
            (self.start, self.end, self.missing) = (self.end, self.later_end, self.later_missing);
            self.later_missing = 0;
        }
    }
}

/// Whether sequence number `a` lies before `b` (RFC 9293 §3.4: modulo 2³²).
pub(super) const fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// How many octets two stretches of the sequence space share.
const fn overlap(a_start: u32, a_end: u32, b_start: u32, b_end: u32) -> u32 {
    let start = if is_before(a_start, b_start) { b_start } else { a_start };
    let end = if is_before(a_end, b_end) { a_end } else { b_end };
    if is_before(start, end) { end.wrapping_sub(start) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_whole_again_whoever_came_and_went() {
        let mut pool = Asides::new(8).expect("a little memory");
        let mut numbers = [0; 8];
        for step in 0..1000_usize {
            // Each flow comes and goes at its own pace, so that all eight are there at some time, and any order of going occurs.
            let flow = step * 5 % 8;
            if step % 3 == 0 {
                pool.give_back(&mut numbers[flow]);
            } else {
                pool.of(&mut numbers[flow]).missed_octets[0] += 1;
            }
            let mut held: Vec<u32> = numbers.into_iter().filter(|&number| number != 0).collect();
            held.sort_unstable();
            assert!(held.iter().all(|&number| number <= 8) && held.windows(2).all(|two| two[0] != two[1]), "{numbers:?}");
        }
        for number in &mut numbers {
            pool.give_back(number);
            assert_eq!(pool.get(*number).missed_octets, [0, 0]);
        }
        let mut again = [0; 8];
        for number in &mut again {
            assert_eq!(pool.of(number).missed_octets, [0, 0], "an aside is empty at first");
        }
        again.sort_unstable();
        assert_eq!(again, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn an_open_gap_outlives_the_slice_and_counters_do_not() {
        let mut pool = Asides::new(1).expect("a little memory");
        let mut number = 0;
        let aside = pool.of(&mut number);
        aside.retransmissions = [3, 4];
        aside.gaps[1].open(100, 200, Timestamp::from_secs(1));
        pool.next_slice(&mut number);
        assert_eq!(pool.get(number).retransmissions, [0, 0]);
        assert_eq!(pool.of(&mut number).gaps[1].acknowledge(200), 100);
        pool.next_slice(&mut number);
        assert_eq!(number, 0);
    }

    #[test]
    fn what_stretches_share_is_told_across_the_wrap() {
        assert_eq!(overlap(10, 20, 15, 30), 5);
        assert_eq!(overlap(10, 20, 20, 30), 0);
        assert_eq!(overlap(u32::MAX - 4, 5, u32::MAX, 100), 6);
    }
}
