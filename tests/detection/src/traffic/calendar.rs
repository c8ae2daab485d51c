//! When people are there. Times are UTC; the year has no summer time here.

use std::time::Duration;

use spanwatch_common::time::Timestamp;

use super::Dice;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// When a host does what it does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Presence {
    /// Day and night.
    Always,
    /// On working days, about 8 to 17, not on holidays, and ill at times; the number is whose.
    Office(u64),
    /// 18 to 23 every day.
    Evening,
}

/// 12 November 2026.
const HOLIDAY: i64 = 20_769;

impl Presence {
    /// From when to when on a day, counted from 1970; none if not at all.
    pub(crate) fn on(self, day: i64) -> Option<(Timestamp, Timestamp)> {
        let midnight = Timestamp::from_secs(day * 86_400);
        match self {
            Self::Always => Some((midnight, midnight.plus(DAY))),
            Self::Evening => Some((midnight.plus(HOUR * 18), midnight.plus(HOUR * 23))),
            Self::Office(who) => {
                // 1 January 1970 was a Thursday.
                let weekend = (day + 3).rem_euclid(7) >= 5;
                let mut dice = Dice::new(who, &day.to_string());
                let ill = dice.chance(0.05);
                let from = midnight.plus(dice.around(HOUR * 8, 0.1));
                let until = midnight.plus(dice.around(HOUR * 17, 0.06));
                (!weekend && day != HOLIDAY && !ill).then_some((from, until))
            }
        }
    }

    /// `at`, or if nobody is there then, the time at which somebody next comes.
    pub(crate) fn next(self, at: Timestamp) -> Timestamp {
        let today = at.as_nanos().div_euclid(DAY.as_nanos() as i64);
        (today..today + 14)
            .filter_map(|day| self.on(day))
            .find(|&(_, until)| at < until)
            .map_or(at.plus(DAY * 14), |(from, _)| at.max(from))
    }

    /// When who is there at `at` leaves.
    pub(crate) fn leaves(self, at: Timestamp) -> Timestamp {
        let today = at.as_nanos().div_euclid(DAY.as_nanos() as i64);
        self.on(today).map_or(at, |(_, until)| until)
    }
}
