//! The flows with most octets, for people who look: gathered by the sweep that visits every flow once a second anyway.

use std::time::Duration;

use spanwatch_common::flow::Mac;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

/// How many are kept.
pub const TALKERS_MAX: usize = 32;
/// The least stretch of time that a rate is taken over.
const STRETCH_MIN: Duration = Duration::from_secs(1);

/// A flow that has said much in the current slice of its life: since the last full minute, or since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Talker {
    /// Address of the initiator; none at layer 2.
    pub source: Address,
    /// Address of the responder; none at layer 2.
    pub destination: Address,
    /// Port of the initiator; 0 where the protocol has none.
    pub source_port: u16,
    /// Port of the responder; 0 where the protocol has none.
    pub destination_port: u16,
    /// IP protocol; 255 at layer 2.
    pub protocol: u8,
    /// Ethertype; 0 for LLC.
    pub ethernet_type: u16,
    /// Of the initiator's frames.
    pub source_mac: Mac,
    /// Of the initiator's frames.
    pub destination_mac: Mac,
    /// Packets of both directions in the slice.
    pub packets: u64,
    /// Octets of both directions in the slice: of IP, or at layer 2 of frames.
    pub octets: u64,
    /// The same per second of the slice so far.
    pub packets_per_sec: f64,
    /// The same per second of the slice so far.
    pub octets_per_sec: f64,
}

/// Those of the round under way, and those of the last one.
#[derive(Default)]
pub(super) struct Talkers {
    pub(super) is_watched: bool,
    /// Whether some flows of this round were visited before anybody watched.
    is_partial: bool,
    /// Most octets first.
    round: Vec<Talker>,
    published: Vec<Talker>,
}

impl Talkers {
    pub(super) fn watch(&mut self, is_watched: bool) {
        if is_watched && !self.is_watched {
            self.round.reserve_exact(TALKERS_MAX + 1);
            self.published.reserve_exact(TALKERS_MAX + 1);
        }
        if !is_watched {
            self.round.clear();
            self.published.clear();
        }
        self.is_partial |= is_watched && !self.is_watched;
        self.is_watched = is_watched;
    }

    pub(super) fn published(&self) -> &[Talker] {
        &self.published
    }

    /// Whether a flow of so many octets is among the first so far.
    pub(super) fn has_place_for(&self, octets: u64) -> bool {
        octets > 0 && (self.round.len() < TALKERS_MAX || self.round.last().is_some_and(|last| octets > last.octets))
    }

    /// Puts a flow in its place. `first` is the time of the slice's first packet.
    pub(super) fn add(&mut self, mut talker: Talker, first: Timestamp, now: Timestamp) {
        let secs = now.since(first).max(STRETCH_MIN).as_secs_f64();
        talker.packets_per_sec = talker.packets as f64 / secs;
        talker.octets_per_sec = talker.octets as f64 / secs;
        let place = self.round.partition_point(|other| other.octets >= talker.octets);
        self.round.insert(place, talker);
        self.round.truncate(TALKERS_MAX);
    }

    /// Every flow was visited.
    pub(super) fn publish(&mut self) {
        if !self.is_partial {
            std::mem::swap(&mut self.round, &mut self.published);
        }
        self.is_partial = false;
        self.round.clear();
    }
}
