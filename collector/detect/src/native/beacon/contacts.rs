//! The contacts of one host with one service: when they began, what was sent, how many in each hour of the last day.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use spanwatch_common::flow::{FORWARD, FlowState};
use spanwatch_common::time::Timestamp;

use super::rhythm::CONTACTS_MIN;
use crate::finding::Window;
use crate::native::sightings::Sightings;
use crate::row::{Part, Row};

/// Contacts whose starts are kept, the newest.
pub(super) const STARTS_MAX: usize = 512;
/// Rows of one source port that come closer than this are the same moment seen twice, in tenths of a second.
const SAME_MOMENT: u32 = 20;
/// Contacts that may be under way at once: a later row is looked for among so many.
const UNDER_WAY_MAX: usize = 16;
const HOUR: u32 = 36_000;
/// Hours that are counted: a day, and those that have begun when it is judged.
const HOURS_KEPT: usize = 26;

/// Tenths of a second since 1970, which begin anew every 13.6 years: only differences mean something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Tenths(u32);

impl Tenths {
    pub(super) const fn of(at: Timestamp) -> Self {
        Self(at.as_nanos().div_euclid(100_000_000) as u32)
    }

    /// How long ago it was at `later`; negative if it was not yet.
    pub(super) const fn before(self, later: Self) -> i32 {
        later.0.wrapping_sub(self.0).cast_signed()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Contact {
    start: Tenths,
    /// Sent by the initiator.
    octets: u32,
    source_port: u16,
    over: bool,
}

/// What was told of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    /// Start of the window in which.
    pub(super) window: Timestamp,
    /// How many there were in the day then.
    pub(super) contacts: u32,
    /// How much like a beacon they were.
    pub(super) score: f64,
}

/// What is known of one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Track {
    contacts: VecDeque<Contact>,
    /// Of the last hours up to the newest contact, by hour modulo their number; none before there are enough contacts.
    hours: Option<Box<[u16; HOURS_KEPT]>>,
    /// Hour of the newest contact, since 1970.
    hour: u32,
    /// When the first began.
    pub(super) first: Timestamp,
    /// When the newest began.
    pub(super) last: Timestamp,
    /// Rows that speak for it, once it looks like something.
    pub(super) sightings: Option<Box<Sightings>>,
    pub(super) told: Option<Told>,
}

impl Track {
    pub(super) const fn new(at: Timestamp) -> Self {
        Self { contacts: VecDeque::new(), hours: None, hour: 0, first: at, last: at, sightings: None, told: None }
    }

    /// Takes in a row; returns whether it began a contact.
    pub(super) fn observe(&mut self, row: &Row) -> bool {
        let start = Tenths::of(row.at);
        let octets = u32::try_from(row.octets[FORWARD]).unwrap_or(u32::MAX);
        let over = row.state == FlowState::End;
        let known = self.contacts.iter_mut().rev().take(UNDER_WAY_MAX).find(|contact| contact.source_port == row.source_port);
        if let Some(known) = known {
            let same_moment = known.start.before(start).unsigned_abs() <= SAME_MOMENT;
            let begins = row.part != Part::Tail && (row.state == FlowState::Begin || known.over && over);
            if same_moment || !begins {
                if !known.over {
                    known.octets = known.octets.saturating_add(octets);
                    known.over = over;
                }
                return false;
            }
        } else if row.state == FlowState::Continue || row.part == Part::Tail {
            // Began before anybody looked.
            return false;
        }
        if self.contacts.len() >= STARTS_MAX {
            self.contacts.pop_front();
        }
        self.contacts.push_back(Contact { start, octets, source_port: row.source_port, over });
        self.first = self.first.min(row.at);
        self.last = self.last.max(row.at);
        self.count_hour(row.at);
        true
    }

    fn count_hour(&mut self, at: Timestamp) {
        let hour = hour_of(at);
        let Some(hours) = &mut self.hours else {
            self.hour = self.hour.max(hour);
            if self.contacts.len() >= CONTACTS_MIN {
                let newest = Tenths::of(Timestamp::from_secs(i64::from(self.hour) * 3_600));
                let mut hours = Box::new([0_u16; HOURS_KEPT]);
                for contact in &self.contacts {
                    // Hours from the start of the contact's to that of the newest.
                    let ago = contact.start.before(newest).max(0).cast_unsigned().div_ceil(HOUR);
                    if let Some(count) = self.hour.checked_sub(ago).filter(|_| (ago as usize) < HOURS_KEPT) {
                        hours[count as usize % HOURS_KEPT] += 1;
                    }
                }
                self.hours = Some(hours);
            }
            return;
        };
        if hour > self.hour {
            for passed in (self.hour + 1..=hour).take(HOURS_KEPT) {
                hours[passed as usize % HOURS_KEPT] = 0;
            }
            self.hour = hour;
        }
        if ((self.hour - hour) as usize) < HOURS_KEPT {
            let count = &mut hours[hour as usize % HOURS_KEPT];
            *count = count.saturating_add(1);
        }
    }

    /// How many starts are held.
    pub(super) fn held(&self) -> usize {
        self.contacts.len()
    }

    /// Whether there are enough to have a rhythm.
    pub(super) const fn is_mature(&self) -> bool {
        self.hours.is_some()
    }

    /// Forgets what began more than a day before `edge`; returns how many.
    pub(super) fn forget_before_day(&mut self, edge: Timestamp) -> usize {
        let (before, edge) = (self.contacts.len(), Tenths::of(edge));
        self.contacts.retain(|contact| contact.start.before(edge) <= 24 * HOUR.cast_signed());
        before - self.contacts.len()
    }

    /// Starts before `edge`, ascending, in tenths of a second since the first, and the octets of each.
    pub(super) fn series(&self, edge: Timestamp) -> (Vec<u32>, Vec<u32>) {
        let edge = Tenths::of(edge);
        let mut ago: Vec<(i32, u32)> = self
            .contacts
            .iter()
            .map(|contact| (contact.start.before(edge), contact.octets))
            .filter(|&(ago, _)| ago > 0)
            .collect();
        ago.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = ago.first().map_or(0, |&(ago, _)| ago);
        ago.into_iter().map(|(ago, octets)| ((oldest - ago).cast_unsigned(), octets)).unzip()
    }

    /// How many began in each of the 24 hours that end with `edge`, a full hour, the oldest first.
    pub(super) fn hours(&self, edge: Timestamp) -> [u32; 24] {
        let end = hour_of(edge);
        std::array::from_fn(|index| {
            let hour = (end + index as u32).saturating_sub(24);
            // Of an hour after the newest nothing is kept yet, and of one long before it nothing any more.
            let kept = hour <= self.hour && ((self.hour - hour) as usize) < HOURS_KEPT;
            self.hours.as_ref().filter(|_| kept).map_or(0, |hours| u32::from(hours[hour as usize % HOURS_KEPT]))
        })
    }

    /// Whether it was told in `window`.
    pub(super) fn told_in(&self, window: Window) -> Option<Told> {
        self.told.filter(|told| told.window == window.start)
    }

    /// Memory that it holds, about.
    pub(super) fn bytes(&self) -> usize {
        self.contacts.len() * size_of::<Contact>()
            + self.hours.as_ref().map_or(0, |_| size_of::<[u16; HOURS_KEPT]>())
            + self.sightings.as_ref().map_or(0, |rows| rows.to_vec().len() * 200)
    }
}

fn hour_of(at: Timestamp) -> u32 {
    u32::try_from(at.as_nanos().div_euclid(3_600_000_000_000)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::talk;
    use crate::{Roles, Sites};
    use spanwatch_common::flow::{FlowRecord, protocol};
    use std::sync::Arc;

    fn row(source_port: u16, secs: f64, state: FlowState, octets: u64) -> Row {
        let record = FlowRecord { source_port, state, ..talk("10.0.0.1", "192.0.2.1", protocol::TCP, 443, secs, 2 * octets) };
        Row::of(&Arc::from("tap"), &record, &Sites::default(), &Roles::default()).unwrap()
    }

    #[test]
    fn a_contact_counts_once_and_takes_what_its_later_rows_carry() {
        use FlowState::{Begin, Continue, End};
        let mut track = Track::new(crate::tests::at(0.0));
        // A long connection at two interfaces; a short one of which only the end is told; the first port used again.
        let began: Vec<bool> = [
            (40_000, 0.0, Begin, 0),
            (40_000, 1.0, Begin, 0),
            (40_000, 300.0, Continue, 70),
            (40_000, 600.0, End, 30),
            (40_001, 60.0, End, 50),
            (40_000, 900.0, Begin, 0),
            (40_002, 950.0, Continue, 10),
        ]
        .into_iter()
        .map(|(port, secs, state, octets)| track.observe(&row(port, secs, state, octets)))
        .collect();
        assert_eq!(began, [true, false, false, false, true, true, false]);
        let (starts, sizes) = track.series(crate::tests::at(3_600.0));
        assert_eq!((starts, sizes), (vec![0, 600, 9_000], vec![100, 50, 0]));
    }

    #[test]
    fn hours_are_those_of_the_last_day_also_over_a_pause() {
        let mut track = Track::new(crate::tests::at(0.0));
        for (port, minute) in (0_u16..).zip([0.0, 10.0, 20.0, 70.0, 80.0, 130.0, 135.0, 600.0]) {
            track.observe(&row(port, minute * 60.0, FlowState::End, 100));
        }
        let hours = track.hours(crate::tests::at(11.0 * 3_600.0));
        assert_eq!(hours[13..], [3, 2, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
        track.observe(&row(99, 40.0 * 3_600.0, FlowState::End, 100));
        assert_eq!(track.hours(crate::tests::at(41.0 * 3_600.0)).iter().sum::<u32>(), 1);
    }
}
