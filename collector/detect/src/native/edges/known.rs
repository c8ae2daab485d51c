//! What was seen, and on which day last: a set that forgets.
//!
//! Eight bytes for each thing, 48 bits of its fingerprint and the day: among a million things known, one in 280 million new ones is
//! taken for known. Open addressing at three quarters at most, so 11 to 22 bytes per thing.

use serde::{Deserialize, Serialize};

/// Things known, each with its last day.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Known {
    /// 0 is free; else 48 bits of fingerprint, 16 bits of day.
    slots: Vec<u64>,
    len: usize,
    limit: usize,
    /// Let go to make room.
    evicted: u64,
    /// On this day nothing older was left to let go.
    stuck: u16,
}

/// What [`Known::see`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Not known, and is now.
    New,
    /// Known, and seen last on this day.
    Again(u16),
    /// Not known, and there is no room to remember it: everything known was seen today.
    Refused,
}

const SLOTS_MIN: usize = 64;

impl Known {
    /// Holds at most `limit` things.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Notes `key` on `day` (from 1 on).
    pub(crate) fn see(&mut self, key: u64, day: u16) -> Sight {
        let day = day.max(1);
        if let Some(place) = self.find(key) {
            let last = self.slots[place] as u16;
            self.slots[place] = tagged(key, last.max(day));
            return Sight::Again(last);
        }
        if self.len >= self.limit && !self.make_room(day) {
            return Sight::Refused;
        }
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.rebuild((self.slots.len() * 2).max(SLOTS_MIN), |_| true);
        }
        self.put(tagged(key, day));
        self.len += 1;
        Sight::New
    }

    /// Whether `key` is known.
    pub(crate) fn has(&self, key: u64) -> bool {
        self.find(key).is_some()
    }

    /// Forgets what was seen last before `day`.
    pub(crate) fn expire(&mut self, day: u16) {
        if self.slots.iter().any(|&slot| slot != 0 && (slot as u16) < day) {
            self.rebuild(self.slots.len(), |last| last >= day);
        }
    }

    /// How many things are known.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Things let go to make room.
    pub(crate) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Memory, in octets.
    pub(crate) const fn bytes(&self) -> usize {
        self.slots.len() * 8
    }

    fn find(&self, key: u64) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let tag = key >> 16;
        let mut place = tag as usize & mask;
        loop {
            match self.slots[place] {
                0 => return None,
                slot if slot >> 16 == tag => return Some(place),
                _ => place = (place + 1) & mask,
            }
        }
    }

    /// Puts a slot that is not there yet; there is a free place.
    fn put(&mut self, slot: u64) {
        let mask = self.slots.len() - 1;
        let mut place = (slot >> 16) as usize & mask;
        while self.slots[place] != 0 {
            place = (place + 1) & mask;
        }
        self.slots[place] = slot;
    }

    /// Lets go what was not seen for longest, day by day, until an eighth is free; whether there is any room then.
    fn make_room(&mut self, today: u16) -> bool {
        if self.stuck == today {
            return false;
        }
        let mut by_day = std::collections::BTreeMap::<u16, usize>::new();
        for slot in self.slots.iter().filter(|&&slot| slot != 0) {
            *by_day.entry(*slot as u16).or_default() += 1;
        }
        let (mut gone, mut until) = (0, 0);
        for (&day, &count) in by_day.range(..today) {
            if gone >= (self.limit / 8).max(1) {
                break;
            }
            (gone, until) = (gone + count, day + 1);
        }
        if gone == 0 {
            self.stuck = today;
            return false;
        }
        self.rebuild(self.slots.len(), |last| last >= until);
        self.evicted += gone as u64;
        true
    }

    fn rebuild(&mut self, size: usize, keep: impl Fn(u16) -> bool) {
        let old = std::mem::replace(&mut self.slots, vec![0; size]);
        self.len = 0;
        for slot in old.into_iter().filter(|&slot| slot != 0 && keep(slot as u16)) {
            self.put(slot);
            self.len += 1;
        }
    }
}

/// Never 0, because no day is.
const fn tagged(key: u64, day: u16) -> u64 {
    key >> 16 << 16 | day as u64
}

#[cfg(test)]
mod tests {
    use super::super::fingerprint;
    use super::*;

    #[test]
    fn a_thing_is_new_once_and_again_after_it_was_forgotten() {
        let mut known = Known::new(1 << 16);
        for thing in 0..10_000_u64 {
            assert_eq!(known.see(fingerprint(&[thing]), 100), Sight::New);
        }
        assert_eq!(known.see(fingerprint(&[7]), 103), Sight::Again(100));
        known.expire(101);
        assert_eq!((known.len(), known.has(fingerprint(&[7])), known.has(fingerprint(&[8]))), (1, true, false));
        assert_eq!(known.see(fingerprint(&[8]), 104), Sight::New);
    }

    #[test]
    fn when_full_the_oldest_days_go_and_a_flood_of_one_day_does_not_push_out_itself() {
        let mut known = Known::new(64);
        (0..32).for_each(|thing| assert_eq!(known.see(fingerprint(&[thing]), 10), Sight::New));
        (32..64).for_each(|thing| assert_eq!(known.see(fingerprint(&[thing]), 11), Sight::New));
        assert_eq!(known.see(fingerprint(&[64]), 12), Sight::New);
        // Day 10 went as a whole.
        assert_eq!((known.len(), known.evicted()), (33, 32));
        (65..200).for_each(|thing| _ = known.see(fingerprint(&[thing]), 12));
        assert_eq!((known.len(), known.evicted()), (64, 64));
        assert_eq!(known.see(fingerprint(&[1_000]), 12), Sight::Refused);
        assert!(known.has(fingerprint(&[64])));
    }
}
