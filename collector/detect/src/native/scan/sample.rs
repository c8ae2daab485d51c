//! Which targets a source tried, and when: exact while they are few, a fair sample when they are many.
//!
//! Every target is kept until there are too many. Then only those stay whose hash ends in one more zero bit, half of them, and each
//! stands for twice as many (adaptive sampling; Flajolet, Computing 43, 1990). Unlike a sketch of registers this still answers for any
//! stretch of time, any host and any service.

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;

use super::reading::{Came, Technique};
use crate::row::Row;

/// Contacts with one target within so many seconds, cut on whole multiples since 1970, are one try and its repeats.
const TRY_SECS: u32 = 30;
/// From so many tries on, somebody waits for the target rather than looks for it.
const REGULAR_TRIES: u8 = 5;
/// After so many seconds a target that was told of counts anew.
const ANEW_SECS: u32 = 3_600;
/// Set in [`Target::tries`] when the target was part of a scan that was told and is over.
const TOLD: u8 = 0x80;

/// A service of a host that a source tried. 28 bytes, of which there are millions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Target {
    host: [u32; 4],
    /// Last try, seconds since 1970.
    pub(super) at: u32,
    /// Port of the responder.
    pub(super) port: u16,
    /// IP protocol number.
    pub(super) protocol: u8,
    /// How it was tried.
    pub(super) technique: Technique,
    /// What came back.
    pub(super) came: Came,
    tries: u8,
    /// Hash of the address that tried it last, for sources that are networks.
    pub(super) by: u16,
}

impl Target {
    /// The target of `row`.
    pub(super) fn of(row: &Row, technique: Technique, came: Came) -> Self {
        let host = row.destination.0;
        Self {
            host: [(host >> 96) as u32, (host >> 64) as u32, (host >> 32) as u32, host as u32],
            at: secs(row.at.as_nanos()),
            port: row.port,
            protocol: row.protocol,
            technique,
            came,
            tries: 1,
            by: (mixed(row.source.0, 0) >> 48) as u16,
        }
    }

    /// The host.
    pub(super) fn host(&self) -> Address {
        let [a, b, c, d] = self.host.map(u128::from);
        Address(a << 96 | b << 64 | c << 32 | d)
    }

    /// Protocol and port as one number.
    pub(super) const fn service(&self) -> u32 {
        (self.protocol as u32) << 16 | self.port as u32
    }

    /// What it counts, in eighths of a target. Silence after a datagram or a lone ACK proves half as much as a refusal; a target that is
    /// tried again and again is one that somebody waits for; and what was told of is not told again.
    pub(super) fn eighths(&self) -> u64 {
        if self.tries & TOLD != 0 {
            return 0;
        }
        let doubtful =
            matches!((self.technique, self.came), (Technique::Udp | Technique::Ack | Technique::Maimon, Came::Nothing));
        (8 >> u32::from(doubtful)) >> if self.is_regular() { 2 } else { 0 }
    }

    /// Whether it was tried so often that this is a habit.
    pub(super) const fn is_regular(&self) -> bool {
        self.tries & !TOLD >= REGULAR_TRIES
    }

    fn key(&self) -> ([u32; 4], u32) {
        (self.host, self.service())
    }

    fn hash(&self) -> u64 {
        mixed(self.host().0, u64::from(self.service()))
    }

    fn again(&mut self, newer: &Self) {
        let gap = newer.at.saturating_sub(self.at);
        let mut tries = self.tries & !TOLD;
        tries = tries.saturating_add(u8::from(newer.at / TRY_SECS > self.at / TRY_SECS)).min(!TOLD);
        self.tries = if gap >= ANEW_SECS { tries } else { tries | self.tries & TOLD };
        self.at = self.at.max(newer.at);
        self.technique = self.technique.max(newer.technique);
        self.came = self.came.max(newer.came);
        self.by = newer.by;
    }
}

/// Seconds since 1970 of a time in nanoseconds.
pub(super) fn secs(nanos: i64) -> u32 {
    u32::try_from(nanos / 1_000_000_000).unwrap_or(0)
}

/// A hash that is the same in every process: what is in the sample decides what is said.
pub(super) fn mixed(host: u128, rest: u64) -> u64 {
    const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15;
    [host as u64, (host >> 64) as u64, rest].into_iter().fold(0x2545_f491_4f6c_dd1d, |hash: u64, word| {
        let wide = u128::from(hash ^ word) * SPREAD;
        (wide as u64).rotate_left(23) ^ (wide >> 64) as u64
    })
}

/// What became of a target that was shown to a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// Not seen before.
    New,
    /// Seen before.
    Again,
    /// Seen so often that it is a habit.
    Habit,
    /// Not among those that are kept.
    Passed,
}

/// Targets, by host and service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    targets: Vec<Target>,
    /// Of the hashes, so many lowest bits are zero.
    level: u8,
}

impl Sample {
    /// Takes in `target`; holds at most `room` of them, none older than `horizon` when room is needed.
    pub(super) fn note(&mut self, target: Target, room: usize, horizon: u32) -> Noted {
        if self.level > 0 && self.targets.len() * 8 < room {
            self.level -= 1;
        }
        if !self.keeps(&target) {
            return Noted::Passed;
        }
        let mut place = match self.place(&target) {
            Ok(place) => {
                self.targets[place].again(&target);
                return if self.targets[place].is_regular() { Noted::Habit } else { Noted::Again };
            }
            Err(place) => place,
        };
        if self.targets.len() >= room {
            self.make_room(room, horizon);
            if !self.keeps(&target) {
                return Noted::Passed;
            }
            place = self.place(&target).unwrap_or_else(|place| place);
        }
        if self.targets.len() == self.targets.capacity() {
            // Most sources have one or two targets, and there are many such sources.
            self.targets.reserve_exact(self.targets.len().clamp(1, room.saturating_sub(self.targets.len()).max(1)));
        }
        self.targets.insert(place, target);
        Noted::New
    }

    /// Forgets `target`.
    pub(super) fn remove(&mut self, target: &Target) {
        if let Ok(place) = self.place(target) {
            self.targets.remove(place);
        }
    }

    fn make_room(&mut self, room: usize, horizon: u32) {
        self.forget_before(horizon);
        while self.targets.len() > room * 3 / 4 {
            self.halve();
        }
    }

    /// Keeps half of the targets, each for twice as many.
    pub(super) fn halve(&mut self) {
        self.level += 1;
        let mask = (1_u64 << self.level) - 1;
        self.targets.retain(|target| target.hash() & mask == 0);
        self.targets.shrink_to_fit();
    }

    /// Forgets targets last tried before `horizon`.
    pub(super) fn forget_before(&mut self, horizon: u32) {
        self.targets.retain(|target| target.at >= horizon);
    }

    /// Marks the targets that `belongs` names: they were told of. If they were so many that only some were kept, they are forgotten: what
    /// the source does next is looked at closely again.
    pub(super) fn mark_told(&mut self, belongs: impl Fn(&Target) -> bool) {
        if self.level > 0 {
            self.targets.retain(|target| !belongs(target));
            self.targets.shrink_to_fit();
            self.level = 0;
        }
        self.targets.iter_mut().filter(|target| belongs(target)).for_each(|target| target.tries |= TOLD);
    }

    fn keeps(&self, target: &Target) -> bool {
        self.level == 0 || target.hash() & ((1 << self.level) - 1) == 0
    }

    fn place(&self, target: &Target) -> Result<usize, usize> {
        self.targets.binary_search_by_key(&target.key(), Target::key)
    }

    /// Those that are kept, by host, then service.
    pub(super) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// How many targets each that is kept stands for.
    pub(super) const fn factor(&self) -> u64 {
        1 << self.level
    }

    /// Octets held beside itself; by what is held, not by what happens to be reserved, because it decides who is let go.
    pub(super) fn octets(&self) -> usize {
        if self.targets.is_empty() { 0 } else { self.targets.len().next_power_of_two() * size_of::<Target>() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(port: u16, at: u32) -> Target {
        let (technique, came) = (Technique::Syn, Came::Nothing);
        Target { host: [0, 0, 0xffff, 0x0a00_0001], at, port, protocol: 6, technique, came, tries: 1, by: 0 }
    }

    #[test]
    fn what_is_tried_in_five_half_minutes_is_a_habit_however_often_in_each() {
        for pause in [1, 5, 60] {
            let mut sample = Sample::default();
            let tries = (600..).step_by(pause).map(|at| (at, sample.note(target(502, at), 384, 0)));
            let habit = tries.take(500).find(|(_, noted)| *noted == Noted::Habit).map(|(at, _)| at);
            assert_eq!(habit, Some(if pause == 60 { 840 } else { 720 }), "every {pause} s");
        }
    }

    #[test]
    fn a_sample_is_exact_while_it_has_room_and_then_tells_how_many_there_are_within_a_fifth() {
        let mut sample = Sample::default();
        (0..384).for_each(|port| assert_eq!(sample.note(target(port, 600), 384, 0), Noted::New));
        assert_eq!((sample.targets().len(), sample.factor()), (384, 1));
        for port in 384..60_000 {
            sample.note(target(port, 600), 384, 0);
        }
        let about = sample.targets().len() as u64 * sample.factor();
        assert!(sample.targets().len() <= 384 && (48_000..72_000).contains(&about), "{about}");
    }
}
