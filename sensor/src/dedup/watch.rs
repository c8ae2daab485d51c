//! `dedup = "auto"`: when duplicates are looked for, and when they are removed.

use std::time::Duration;

use spanwatch_common::time::Timestamp;

/// How often a burst of packets is looked at while duplicates are only counted ...
const BURST_EVERY: Duration = Duration::from_secs(1);
/// ... for at least this long ...
const BURST: Duration = Duration::from_millis(100);
/// ... and at least so many packets, so that a slow port is looked at as a whole ...
const BURST_PACKETS: u64 = 64;
/// ... but no more than so many, which are enough to judge by, so that a fast port loses no time.
const BURST_PACKETS_MAX: u64 = 1024;
/// Nothing is decided on fewer packets than this.
const PACKETS_MIN: u64 = 100;
/// This share of duplicates, in ‰, over [`ON_AFTER`] turns removal on. A mirror of both directions gives 500.
const ON_PERMILLE: u64 = 50;
/// See [`ON_PERMILLE`].
const ON_AFTER: Duration = Duration::from_secs(10);
/// Less than this share, in ‰, over [`OFF_AFTER`] turns it off. The gap to [`ON_PERMILLE`] keeps it from going to and fro.
const OFF_PERMILLE: u64 = 5;
/// See [`OFF_PERMILLE`].
const OFF_AFTER: Duration = Duration::from_secs(60);

/// Decides by the packets that were looked at.
#[derive(Debug, Default)]
pub(super) struct Watch {
    removing: bool,
    interval: Stretch,
    burst: Stretch,
}

/// A stretch of packet time, and what was seen in it.
#[derive(Debug, Default)]
struct Stretch {
    began: Timestamp,
    examined: u64,
    found: u64,
}

impl Watch {
    /// Whether duplicates are removed.
    pub(super) const fn removes(&self) -> bool {
        self.removing
    }

    /// Takes note of a packet that was looked at. Returns the time before which no other need be looked at.
    pub(super) fn saw(&mut self, at: Timestamp, is_copy: bool) -> Option<Timestamp> {
        self.interval.add(at, is_copy);
        let length = if self.removing { OFF_AFTER } else { ON_AFTER };
        if at.since(self.interval.began) >= length && self.interval.examined >= PACKETS_MIN {
            let permille = self.interval.found * 1000 / self.interval.examined;
            self.removing = if self.removing { permille >= OFF_PERMILLE } else { permille >= ON_PERMILLE };
            self.interval = Stretch::default();
            self.burst = Stretch::default();
        }
        if self.removing {
            return None;
        }
        self.burst.add(at, is_copy);
        let examined = self.burst.examined;
        let is_over = at.since(self.burst.began) >= BURST && examined >= BURST_PACKETS || examined >= BURST_PACKETS_MAX;
        is_over.then(|| std::mem::take(&mut self.burst).began.plus(BURST_EVERY))
    }
}

impl Stretch {
    fn add(&mut self, at: Timestamp, is_copy: bool) {
        // The first packet begins it, and so does one from before it: the clock was set back.
        if self.examined == 0 || at < self.began {
            self.began = at;
        }
        self.examined += 1;
        self.found += u64::from(is_copy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets from `from` to `to`, a millisecond apart, of which one in `copy_one_in` is a copy. Returns how many were looked at.
    fn feed(watch: &mut Watch, secs: std::ops::Range<i64>, copy_one_in: u64) -> u64 {
        let (mut looked, mut wake) = (0, Timestamp::NONE);
        for millis in secs.start * 1000..secs.end * 1000 {
            let at = Timestamp::from_nanos(millis * 1_000_000);
            if at >= wake {
                looked += 1;
                wake = watch.saw(at, looked % copy_one_in == 0).unwrap_or(wake);
            }
        }
        looked
    }

    #[test]
    fn removal_begins_after_ten_seconds_of_duplicates_and_ends_after_a_minute_without() {
        let mut watch = Watch::default();
        feed(&mut watch, 1_000..1_010, 2);
        assert!(!watch.removes(), "too early");
        feed(&mut watch, 1_010..1_012, 2);
        assert!(watch.removes());
        // The first minute began with duplicates; the second is free of them.
        feed(&mut watch, 1_012..1_130, u64::MAX);
        assert!(watch.removes(), "the second minute is not over");
        feed(&mut watch, 1_130..1_132, u64::MAX);
        assert!(!watch.removes());
    }

    #[test]
    fn between_the_two_thresholds_nothing_changes() {
        let mut watch = Watch::default();
        feed(&mut watch, 1_000..1_100, 21); // 4.8 %
        assert!(!watch.removes());
        feed(&mut watch, 1_100..1_112, 20); // 5 %
        assert!(watch.removes());
        feed(&mut watch, 1_112..1_300, 190); // 0.52 %
        assert!(watch.removes());
    }

    #[test]
    fn while_it_only_counts_it_looks_at_a_tenth_of_a_busy_port_and_at_all_of_a_slow_one() {
        let looked = feed(&mut Watch::default(), 1_000..1_100, u64::MAX);
        assert!((9_900..10_400).contains(&looked), "{looked} of 100000");
        let mut watch = Watch::default();
        let slow = (0..500).filter(|i| watch.saw(Timestamp::from_nanos(i * 20_000_000), true).is_none()).count();
        assert!(slow >= 490, "{slow} of 500 went on at once");
    }

    #[test]
    fn a_few_packets_decide_nothing() {
        let mut watch = Watch::default();
        for n in 0..99 {
            watch.saw(Timestamp::from_secs(1_000 + n), true);
        }
        assert!(!watch.removes());
        watch.saw(Timestamp::from_secs(1_099), true);
        assert!(watch.removes());
    }
}
