//! How well a mirror port does its work: what a sensor counts beside the ledger, per capture port.
//!
//! The ledger says where every packet went; these counts say whether the mirror gave what it should. All are cumulative since the sensor
//! started, so that whoever looks takes the difference of two looks, a minute apart, say.

pub mod judge;

use serde::{Deserialize, Serialize};

use crate::encapsulation;

pub use judge::{Symptom, SymptomKind, judge};

/// Counts of one capture port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Packets handed to the sensor.
    pub packets: u64,
    /// Octets of their frames on the wire, without preamble and FCS.
    pub octets: u64,
    /// Those packets that any other port would have got as well: to a group (multicast, broadcast) MAC address, process data apart, which
    /// [plants send to groups](crate::layer2::is_process_data) as a matter of course.
    pub group_packets: u64,
    /// Those that were captured shorter than they were on the wire.
    pub sliced: u64,
    /// Lost before the sensor saw them, whatever the reason (the ledger has each).
    pub dropped: u64,
    /// Packets that were compared with those just before them, in search of duplicates.
    pub examined: u64,
    /// Second copies among them with the same TTL: the port mirrors both ways, or two ports.
    pub duplicate_copy: u64,
    /// Second copies among them from behind a router.
    pub duplicate_routed: u64,
    /// HSR or PRP twins among them.
    pub duplicate_redundant: u64,
    /// 1 while duplicates are removed, 0 while they are only counted.
    pub deduplicating: u64,
    /// Slices of TCP flows (records with packets) that were past the handshake.
    pub tcp_flows: u64,
    /// Those of them whose flow only ever showed one side; not counted where that is to be expected, as on a fibre of a TAP.
    pub tcp_flows_one_way: u64,
    /// TCP payload octets seen.
    pub tcp_octets: u64,
    /// TCP octets that were acknowledged, but never came by.
    pub missed_octets: u64,
    /// Packets inside a tunnel or tag that the decoder does not understand, or that contradicts itself.
    pub unknown_encapsulation: u64,
    /// Packets that came with an ERSPAN sequence number.
    pub erspan_packets: u64,
    /// Packets missing from those sequences.
    pub erspan_gaps: u64,
    /// Flows that ended early because the flow table was full.
    pub evicted: u64,
    /// Packets that were metered in aggregate flows because the flow table was full.
    pub in_aggregate: u64,
    /// Packets that the XDP program left out on purpose; part of `dropped`.
    pub shed: u64,
    /// At present one packet in so many is looked at, chosen at random; 0 or 1 for all of them.
    pub keep_one_in: u64,
    /// Packets by what was around them, indexed by the bit of [`encapsulation::Encapsulation`].
    #[serde(with = "as_list")]
    pub encapsulations: EncapsulationCounts,
}

/// A list that may be longer or shorter than ours: the other end knows more kinds, or fewer.
mod as_list {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::EncapsulationCounts;

    pub(super) fn serialize<S: Serializer>(counts: &EncapsulationCounts, to: S) -> Result<S::Ok, S::Error> {
        counts.as_slice().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<EncapsulationCounts, D::Error> {
        let list = Vec::<u64>::deserialize(from)?;
        Ok(std::array::from_fn(|i| list.get(i).copied().unwrap_or(0)))
    }
}

/// Packets by kind of encapsulation.
pub type EncapsulationCounts = [u64; encapsulation::COUNT];

/// The counts of one capture port, and which one it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortHealth {
    /// observationPointId in the records of this port, from 1.
    pub observation_point: u32,
    /// Name of the interface, e.g. `eno2`.
    pub interface: String,
    /// Its counts since the sensor started.
    pub health: Health,
}

impl Health {
    /// Adds the counts of another queue of the same port.
    pub fn add(&mut self, other: &Self) {
        let Self {
            packets,
            octets,
            group_packets,
            sliced,
            dropped,
            examined,
            duplicate_copy,
            duplicate_routed,
            duplicate_redundant,
            deduplicating,
            tcp_flows,
            tcp_flows_one_way,
            tcp_octets,
            missed_octets,
            unknown_encapsulation,
            erspan_packets,
            erspan_gaps,
            evicted,
            in_aggregate,
            shed,
            keep_one_in,
            encapsulations,
        } = other;
        self.packets += packets;
        self.octets += octets;
        self.group_packets += group_packets;
        self.sliced += sliced;
        self.dropped += dropped;
        self.examined += examined;
        self.duplicate_copy += duplicate_copy;
        self.duplicate_routed += duplicate_routed;
        self.duplicate_redundant += duplicate_redundant;
        self.deduplicating = self.deduplicating.max(*deduplicating);
        self.tcp_flows += tcp_flows;
        self.tcp_flows_one_way += tcp_flows_one_way;
        self.tcp_octets += tcp_octets;
        self.missed_octets += missed_octets;
        self.unknown_encapsulation += unknown_encapsulation;
        self.erspan_packets += erspan_packets;
        self.erspan_gaps += erspan_gaps;
        self.evicted += evicted;
        self.in_aggregate += in_aggregate;
        self.shed += shed;
        self.keep_one_in = self.keep_one_in.max(*keep_one_in);
        for (mine, theirs) in self.encapsulations.iter_mut().zip(encapsulations) {
            *mine += theirs;
        }
    }

    /// What was counted since an earlier look at the same port.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let minus = u64::saturating_sub; // a sensor that was restarted in between counts from zero
        Self {
            packets: minus(self.packets, before.packets),
            octets: minus(self.octets, before.octets),
            group_packets: minus(self.group_packets, before.group_packets),
            sliced: minus(self.sliced, before.sliced),
            dropped: minus(self.dropped, before.dropped),
            examined: minus(self.examined, before.examined),
            duplicate_copy: minus(self.duplicate_copy, before.duplicate_copy),
            duplicate_routed: minus(self.duplicate_routed, before.duplicate_routed),
            duplicate_redundant: minus(self.duplicate_redundant, before.duplicate_redundant),
            deduplicating: self.deduplicating,
            tcp_flows: minus(self.tcp_flows, before.tcp_flows),
            tcp_flows_one_way: minus(self.tcp_flows_one_way, before.tcp_flows_one_way),
            tcp_octets: minus(self.tcp_octets, before.tcp_octets),
            missed_octets: minus(self.missed_octets, before.missed_octets),
            unknown_encapsulation: minus(self.unknown_encapsulation, before.unknown_encapsulation),
            erspan_packets: minus(self.erspan_packets, before.erspan_packets),
            erspan_gaps: minus(self.erspan_gaps, before.erspan_gaps),
            evicted: minus(self.evicted, before.evicted),
            in_aggregate: minus(self.in_aggregate, before.in_aggregate),
            shed: minus(self.shed, before.shed),
            keep_one_in: self.keep_one_in,
            encapsulations: std::array::from_fn(|i| minus(self.encapsulations[i], before.encapsulations[i])),
        }
    }

    /// Second copies, whatever their cause.
    pub const fn duplicates(&self) -> u64 {
        self.duplicate_copy + self.duplicate_routed + self.duplicate_redundant
    }
}
