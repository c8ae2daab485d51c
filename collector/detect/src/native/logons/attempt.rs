//! One short session on a port where people log on, and how much several of them are alike.
//!
//! A wrong password takes the same few packets each time; work does not.

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Origin;
use spanwatch_common::flow::{FORWARD, FlowState, REVERSE, protocol, tcp};
use spanwatch_common::time::Timestamp;

use crate::row::{Contact, Outcome, Part, Row};

/// Attempts kept of a pair: the latest.
const KEPT_MAX: usize = 32;
/// Waits that differ by less than this part of their median are equal.
const RHYTHM_JITTER: f64 = 0.1;
/// This part of waits must be equal to be a rhythm.
const RHYTHM_SHARE: f64 = 0.8;
/// Whoever knocks more often than this, in nanoseconds, has no rhythm but a pace.
const RHYTHM_MIN: i64 = 1_000_000_000;

/// What a row says about logging on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Session {
    /// A whole session, from its first to its last packet.
    Whole(Attempt),
    /// A part of a longer one.
    Part,
}

/// A whole session.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Attempt {
    at: i64,
    octets: u32,
    packets: u16,
}

/// What `row`, which is of TCP, says; none if nobody could have logged on.
pub(super) fn session(row: &Row) -> Option<Session> {
    if row.part != Part::Slice || row.outcome != Outcome::Success {
        // Later slices of a session are not judged any more.
        return (row.part == Part::Slice && row.answered).then_some(Session::Part);
    }
    let is_whole = row.state == FlowState::End && row.contact == Contact::Other;
    let said = (row.flags[FORWARD] | row.flags[REVERSE]) & tcp::PSH != 0 && row.flags[FORWARD] & tcp::SYN != 0;
    if is_whole && (said || row.origin != Origin::Sensor && row.octets_total() > 0) {
        let packets = row.packets[FORWARD].saturating_add(row.packets[REVERSE]);
        return Some(Session::Whole(Attempt {
            at: row.at.as_nanos(),
            octets: u32::try_from(row.octets_total()).unwrap_or(u32::MAX),
            packets: u16::try_from(packets).unwrap_or(u16::MAX),
        }));
    }
    Some(Session::Part)
}

/// Whether rows of this protocol are looked at.
pub(super) const fn is_transport(row: &Row) -> bool {
    row.protocol == protocol::TCP && !row.aggregate && !row.origin.is_folded()
}

/// When attempts are alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Likeness {
    /// Interquartile range of packets, at most.
    pub(crate) packets_spread_max: u64,
    /// Standard deviation of octets by their mean, at most.
    pub(crate) octets_variation_max: f64,
    /// Octets of an attempt, on average, at most.
    pub(crate) octets_max: u64,
}

/// The latest attempts: 16 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Attempts(Vec<Attempt>);

impl Attempts {
    /// Adds one. The oldest goes when there are too many.
    pub(super) fn push(&mut self, attempt: Attempt) {
        if self.0.len() >= KEPT_MAX {
            self.0.remove(0);
        }
        let place = self.0.partition_point(|other| other.at <= attempt.at);
        self.0.insert(place, attempt);
    }

    /// Mean octets of an attempt.
    pub(super) fn octets_mean(&self) -> f64 {
        self.0.iter().map(|attempt| f64::from(attempt.octets)).sum::<f64>() / self.0.len().max(1) as f64
    }

    /// Whether they are alike, and short.
    pub(super) fn are_alike(&self, likeness: &Likeness) -> bool {
        let count = self.0.len();
        let mean = self.octets_mean();
        if count < 4 || mean > likeness.octets_max as f64 {
            return false;
        }
        let mut packets: Vec<u16> = self.0.iter().map(|attempt| attempt.packets).collect();
        packets.sort_unstable();
        let spread = packets[count * 3 / 4] - packets[count / 4];
        let squares = self.0.iter().map(|attempt| (f64::from(attempt.octets) - mean).powi(2)).sum::<f64>();
        u64::from(spread) <= likeness.packets_spread_max
            && (squares / count as f64).sqrt() <= likeness.octets_variation_max * mean
    }

    /// Whether they come at a steady rhythm of a second and more, as a machine's that asks whether all is well, over at least so many
    /// waits.
    pub(super) fn have_rhythm(&self, waits_min: usize) -> bool {
        let mut waits: Vec<i64> = self.0.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
        if waits.len() < waits_min {
            return false;
        }
        waits.sort_unstable();
        let median = waits[waits.len() / 2];
        let equal = waits.iter().filter(|&&wait| ((wait - median).abs() as f64) <= RHYTHM_JITTER * median as f64).count();
        median >= RHYTHM_MIN && equal as f64 >= RHYTHM_SHARE * waits.len() as f64
    }

    /// When the earliest of them was.
    pub(super) fn first(&self) -> Timestamp {
        self.0.first().map_or(Timestamp::NONE, |attempt| Timestamp::from_nanos(attempt.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(octets: impl Fn(usize) -> u32, packets: impl Fn(usize) -> u16, wait_millis: impl Fn(usize) -> i64) -> Attempts {
        let mut attempts = Attempts::default();
        let mut at = 0;
        for i in 0..24 {
            at += wait_millis(i) * 1_000_000;
            attempts.push(Attempt { at, octets: octets(i), packets: packets(i) });
        }
        attempts
    }

    #[test]
    fn wrong_passwords_are_alike_and_work_is_not() {
        let likeness = Likeness { packets_spread_max: 4, octets_variation_max: 0.3, octets_max: 20_000 };
        let alike = |octets: &dyn Fn(usize) -> u32, packets: &dyn Fn(usize) -> u16| {
            attempts(octets, packets, |_| 700).are_alike(&likeness)
        };
        assert!(alike(&|i| 3_000 + 50 * (i as u32 % 3), &|i| 20 + i as u16 % 3));
        assert!(alike(&|_| 3_000, &|i| 20 + 4 * u16::from(i % 2 == 0)), "an interquartile range of 4");
        assert!(!alike(&|_| 3_000, &|i| 20 + 5 * u16::from(i % 2 == 0)), "of 5");
        // Halves of 0.69 and 1.31 of the mean deviate by 0.31 of it.
        assert!(!alike(&|i| if i % 2 == 0 { 2_070 } else { 3_930 }, &|_| 20));
        assert!(alike(&|i| if i % 2 == 0 { 2_130 } else { 3_870 }, &|_| 20));
        assert!(!alike(&|_| 20_001, &|_| 20), "too much for a password");
    }

    #[test]
    fn a_monitors_rhythm_is_told_from_a_guessers_pace() {
        let rhythm = |wait: &dyn Fn(usize) -> i64| attempts(|_| 1, |_| 1, wait).have_rhythm(23);
        assert!(rhythm(&|_| 1_000) && rhythm(&|i| 60_000 + 500 * (i as i64 % 3)));
        assert!(!attempts(|_| 1, |_| 1, |_| 1_000).have_rhythm(24), "24 attempts have 23 waits");
        assert!(!rhythm(&|_| 200), "as fast as it goes");
        assert!(!rhythm(&|i| [1_700, 2_300, 2_900, 2_000, 3_400][i % 5]), "delays that the server draws by lot");
    }
}
