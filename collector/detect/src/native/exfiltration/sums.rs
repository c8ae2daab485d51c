//! What hosts and pairs of hosts have sent in the open hours and days.

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Address;

use super::past::Past;
use crate::native::network;
use crate::native::sightings::Sightings;

/// Networks that are remembered of a host, and for how many days after the last.
const KNOWN_MAX: usize = 4;
const KNOWN_DAYS: u32 = 28;

/// Octets both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Traffic {
    pub(super) out: u64,
    pub(super) back: u64,
}

impl Traffic {
    const NONE: Self = Self { out: 0, back: 0 };

    /// Whether at least `times` as much went out as came back.
    pub(super) const fn is_one_way(self, times: u64) -> bool {
        self.out >= self.back.saturating_mul(times)
    }

    fn add(&mut self, more: Self) {
        self.out = self.out.saturating_add(more.out);
        self.back = self.back.saturating_add(more.back);
    }
}

/// The sum of an open hour or day.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sum {
    /// Which, since 1970.
    number: u32,
    pub(super) traffic: Traffic,
    /// The peer that got most, and what it got and gave.
    pub(super) top: (u128, Traffic),
    /// Octets out from which on it is worth a look.
    pub(super) bar: f64,
}

/// The two hours, or days, that are open, by their number modulo two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Open([Sum; 2]);

impl Open {
    const fn new() -> Self {
        Self([Sum { number: u32::MAX, traffic: Traffic::NONE, top: (0, Traffic::NONE), bar: 0.0 }; 2])
    }

    pub(super) fn get(&self, number: u32) -> Option<&Sum> {
        Some(&self.0[number as usize % 2]).filter(|sum| sum.number == number)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Sum> {
        Some(&mut self.0[number as usize % 2]).filter(|sum| sum.number == number)
    }

    fn add(&mut self, number: u32, traffic: Traffic, (peer, exchanged): (u128, Traffic), bar: u64) {
        let sum = &mut self.0[number as usize % 2];
        if sum.number != number {
            *sum = Sum { number, traffic: Traffic::default(), top: (0, Traffic::NONE), bar: bar as f64 };
        }
        sum.traffic.add(traffic);
        if exchanged.out > sum.top.1.out || peer == sum.top.0 {
            sum.top = (peer, exchanged);
        }
    }
}

/// What is known of a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Host {
    /// Hour in which it was first seen.
    pub(super) since: u32,
    /// Hour in which it was last seen.
    pub(super) last: u32,
    pub(super) hours: Open,
    pub(super) days: Open,
    pub(super) past: Option<Box<Past>>,
    /// Networks that got most on earlier days, on how many, and on which last.
    known: Vec<(u128, u32, u32)>,
    /// Rows of the open hours, once they carry much.
    pub(super) rows: Option<Box<Sightings>>,
}

impl Host {
    pub(super) const fn new(hour: u32) -> Self {
        Self { since: hour, last: hour, hours: Open::new(), days: Open::new(), past: None, known: Vec::new(), rows: None }
    }

    /// Takes in what it sent and got in `hour`, and what it and `peer` have exchanged in that hour by now.
    pub(super) fn add(&mut self, hour: u32, traffic: Traffic, peer: (u128, Traffic), (hour_bar, day_bar): (u64, u64)) {
        self.last = self.last.max(hour);
        self.hours.add(hour, traffic, peer, hour_bar);
        self.days.add(hour / 24, traffic, peer, day_bar);
    }

    /// Remembers the hour, if it ever sends `remembered_min` in one. Returns whether it sent anything.
    pub(super) fn close_hour(&mut self, hour: u32, remembered_min: u64) -> bool {
        let sent = self.hours.get(hour).map(|sum| sum.traffic.out);
        if sent >= Some(remembered_min) {
            self.past.get_or_insert_default();
        }
        if let Some(past) = &mut self.past {
            past.set_hour(hour, sent.unwrap_or(0));
        }
        let after = i64::from(hour + 1) * 3_600_000_000_000;
        if let Some(rows) = &mut self.rows {
            rows.forget_before(after);
        }
        if self.hours.get(hour + 1).is_none() {
            self.rows = None;
        }
        sent.is_some()
    }

    pub(super) fn close_day(&mut self, day: u32, remembered_min: u64) {
        let (sent, (peer, there)) = self.days.get(day).map_or((0, (0, Traffic::NONE)), |sum| (sum.traffic.out, sum.top));
        if let Some(past) = &mut self.past {
            past.set_day(day, sent);
        }
        if there.out < remembered_min {
            return;
        }
        let network = network(Address(peer));
        self.known.retain(|&(_, _, last)| last + KNOWN_DAYS >= day);
        match self.known.iter_mut().find(|(known, ..)| *known == network) {
            Some((_, days, last)) => (*days, *last) = (*days + 1, day),
            None => {
                if self.known.len() >= KNOWN_MAX
                    && let Some(place) = (0..self.known.len()).min_by_key(|&place| self.known[place].2)
                {
                    self.known.remove(place);
                }
                self.known.push((network, 1, day));
            }
        }
    }

    /// On how many earlier days `network` got most of what it sent.
    pub(super) fn days_to(&self, network: u128) -> u32 {
        self.known.iter().find(|(known, ..)| *known == network).map_or(0, |&(_, days, _)| days)
    }

    pub(super) fn bytes(&self) -> usize {
        let rows = self.rows.as_ref().map_or(0, |rows| rows.to_vec().len() * 200);
        size_of::<(u128, Self)>()
            + self.known.len() * size_of::<(u128, u32, u32)>()
            + self.past.as_ref().map_or(0, |past| past.bytes())
            + rows
    }

    pub(super) fn is_sound(&self) -> bool {
        self.past.as_ref().is_none_or(|past| past.is_sound())
    }
}

/// Who sent to whom, on which day since 1970; apart, what went in messages that carry little by nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct PairKey {
    pub(super) source: u128,
    pub(super) destination: u128,
    pub(super) day: u32,
    pub(super) tunnel: bool,
}

/// What is known of a pair on one day.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Pair {
    pub(super) traffic: Traffic,
    /// The newest hour, and the traffic in it.
    in_hour: (u32, Traffic),
    /// Octets out from which on it is worth a look.
    pub(super) bar: f64,
}

impl Pair {
    pub(super) const fn new(bar: u64) -> Self {
        Self { traffic: Traffic::NONE, in_hour: (0, Traffic::NONE), bar: bar as f64 }
    }

    /// Takes in what was exchanged in `hour`; returns what was in that hour so far.
    pub(super) fn add(&mut self, hour: u32, traffic: Traffic) -> Traffic {
        self.traffic.add(traffic);
        if hour > self.in_hour.0 {
            self.in_hour = (hour, Traffic::NONE);
        }
        if hour == self.in_hour.0 {
            self.in_hour.1.add(traffic);
        }
        self.in_hour.1
    }
}
