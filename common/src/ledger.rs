//! The counts that must add up.
//!
//! ```text
//! wire      = delivered + dropped[*]                        what the port received
//! delivered = metered + ignored[*]                          what reached the sensor
//! metered   = exported + live                               what reached the flow table
//! exported  = acknowledged + queued + not_sent              what left it as records (packets they stand for)
//! ```
//!
//! All counts are packets since the sensor started, unless their name says otherwise. A count never goes down, save
//! `live` and `queued`.

use serde::{Deserialize, Serialize};

/// One sensor's account of every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// Packets the kernel counted at the capture port while the sensor listened; for a file, its packets.
    pub wire: u64,
    /// Packets handed to the sensor.
    pub delivered: u64,
    /// Packets lost on the way to the sensor, by reason.
    pub dropped: Dropped,
    /// Packets that became part of a flow.
    pub metered: u64,
    /// Packets that did not, by reason.
    pub ignored: Ignored,
    /// Metered packets that have left the flow table in records.
    pub exported: u64,
    /// Metered packets still in the flow table.
    pub live: u64,
    /// Exported packets whose records the collector holds durably.
    pub acknowledged: u64,
    /// Exported packets whose records wait for the collector.
    pub queued: u64,
    /// Exported packets whose records were thrown away because the queue was full.
    pub not_sent: u64,
    /// Flows and records.
    pub flows: Flows,
    /// What was understood only in part. These packets are metered (or ignored) above as well.
    pub odd: Odd,
}

/// Reasons for losing a packet before the sensor saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dropped {
    /// No free frame in the fill ring, or a frame longer than a buffer (AF_XDP `rx_dropped`): the sensor stalled.
    pub ring_starved: u64,
    /// The receive ring was full (AF_XDP `rx_ring_full`): the sensor is too slow.
    pub ring_full: u64,
    /// The packet came on a queue that no socket listens to, or that could not be read any more when the capture failed.
    pub no_socket: u64,
    /// Shed in XDP on purpose, under overload.
    pub shed: u64,
    /// Dropped by libpcap's kernel buffer (`ps_drop`).
    pub buffer_full: u64,
    /// Dropped by the network card or its driver (`ps_ifdrop`, `rx_missed_errors`).
    pub interface: u64,
}

/// Reasons for not metering a delivered packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ignored {
    /// Shorter than an Ethernet header.
    pub runt: u64,
    /// From a capture file whose link type is not read.
    pub link_type: u64,
    /// From a link without MAC addresses (raw IP, loopback), and no IP header that makes sense: nobody to meter it for.
    pub not_ip: u64,
    /// A second copy of a packet that was metered, as a port mirrored both ways (or two ports) gives it; removed as `flow.dedup` says.
    pub duplicate_copy: u64,
    /// The same after a router: other MAC addresses, a smaller TTL.
    pub duplicate_routed: u64,
    /// The twin that HSR or PRP (IEC 62439-3) sends the other way round, or over the other network.
    pub duplicate_redundant: u64,
}

/// Flows and the records made of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flows {
    /// Flows created.
    pub observed: u64,
    /// Flows in the table now.
    pub live: u64,
    /// The most flows there ever were at once.
    pub peak: u64,
    /// Records made, of every state.
    pub records: u64,
    /// Flows ended early because the table was full.
    pub evicted: u64,
    /// Records acknowledged by the collector.
    pub records_acknowledged: u64,
    /// Records waiting for the collector.
    pub records_queued: u64,
    /// Records thrown away because the queue was full.
    pub records_not_sent: u64,
}

/// Packets that were understood only in part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Odd {
    /// An IP ethertype whose header makes no sense; metered as a layer-2 conversation.
    pub bad_ip_header: u64,
    /// A transport header that is cut short or contradicts itself; metered without ports or flags.
    pub bad_transport_header: u64,
    /// Captured shorter than on the wire.
    pub sliced: u64,
    /// IP total length of zero (segmentation offload) or a jumbogram; its octets were taken from the frame.
    pub no_ip_length: u64,
    /// Later fragments whose first fragment was not seen; metered without ports.
    pub fragment_without_first: u64,
    /// Headers nested deeper than the decoder follows.
    pub too_deep: u64,
    /// A tunnel header that is understood around something that is not; metered by what is outside.
    pub unknown_encapsulation: u64,
    /// A tunnel or tag header that is cut short or contradicts itself; metered by what is outside.
    pub bad_encapsulation: u64,
    /// Frames with a later part of a fragmented tunnel packet, because the mirror's path has too small an MTU; metered by the tunnel's
    /// addresses, but for the one that completes a packet whose first part was too short to be read.
    pub tunnel_fragment: u64,
    /// Fragmented tunnel packets whose first part was too short to be read and whose other parts did not come in time; metered by the tunnel's
    /// addresses.
    pub tunnel_fragment_lost: u64,
    /// Packets of a tunnel that had no place in the table of tunnels; their flows say nothing of it.
    pub tunnel_not_named: u64,
    /// Packets that had no place in a full flow table and were metered in the aggregate flow of their prefixes.
    pub in_aggregate: u64,
    /// Packets more than two seconds older than a packet before them.
    pub late: u64,
}

impl Dropped {
    /// Sum over all reasons.
    pub const fn total(&self) -> u64 {
        self.ring_starved + self.ring_full + self.no_socket + self.shed + self.buffer_full + self.interface
    }
}

impl Ignored {
    /// Sum over all reasons.
    pub const fn total(&self) -> u64 {
        self.runt + self.link_type + self.not_ip + self.duplicate_copy + self.duplicate_routed + self.duplicate_redundant
    }
}

impl Ledger {
    /// The first equation that does not hold, with its figures; `None` when the ledger balances.
    pub fn imbalance(&self) -> Option<String> {
        let equations = [
            ("wire = delivered + dropped", self.wire, self.delivered + self.dropped.total()),
            ("delivered = metered + ignored", self.delivered, self.metered + self.ignored.total()),
            ("metered = exported + live", self.metered, self.exported + self.live),
            ("exported = acknowledged + queued + not_sent", self.exported, self.acknowledged + self.queued + self.not_sent),
        ];
        equations
            .into_iter()
            .find(|(_, left, right)| left != right)
            .map(|(name, left, right)| format!("{name}: {left} is not {right}"))
    }

    /// Adds the account of another queue or port of the same sensor.
    pub fn add(&mut self, other: &Self) {
        let peak = self.flows.peak + other.flows.peak;
        for (mine, theirs) in self.counts_mut().into_iter().zip(other.counts()) {
            *mine += theirs.1;
        }
        self.flows.peak = peak;
    }

    /// Every count with a dotted name, in a fixed order: for /metrics and for showing.
    pub fn counts(&self) -> [(&'static str, u64); COUNTS] {
        let mut copy = *self;
        let values = copy.counts_mut().map(|count| *count);
        std::array::from_fn(|i| (NAMES[i], values[i]))
    }

    fn counts_mut(&mut self) -> [&mut u64; COUNTS] {
        let Self { dropped, ignored, flows, odd, .. } = self;
        [
            &mut self.wire,
            &mut self.delivered,
            &mut self.metered,
            &mut self.exported,
            &mut self.live,
            &mut self.acknowledged,
            &mut self.queued,
            &mut self.not_sent,
            &mut dropped.ring_starved,
            &mut dropped.ring_full,
            &mut dropped.no_socket,
            &mut dropped.shed,
            &mut dropped.buffer_full,
            &mut dropped.interface,
            &mut ignored.runt,
            &mut ignored.link_type,
            &mut ignored.not_ip,
            &mut ignored.duplicate_copy,
            &mut ignored.duplicate_routed,
            &mut ignored.duplicate_redundant,
            &mut flows.observed,
            &mut flows.live,
            &mut flows.peak,
            &mut flows.records,
            &mut flows.evicted,
            &mut flows.records_acknowledged,
            &mut flows.records_queued,
            &mut flows.records_not_sent,
            &mut odd.bad_ip_header,
            &mut odd.bad_transport_header,
            &mut odd.sliced,
            &mut odd.no_ip_length,
            &mut odd.fragment_without_first,
            &mut odd.too_deep,
            &mut odd.unknown_encapsulation,
            &mut odd.bad_encapsulation,
            &mut odd.tunnel_fragment,
            &mut odd.tunnel_fragment_lost,
            &mut odd.tunnel_not_named,
            &mut odd.in_aggregate,
            &mut odd.late,
        ]
    }
}

const COUNTS: usize = 41;

const NAMES: [&str; COUNTS] = [
    "wire",
    "delivered",
    "metered",
    "exported",
    "live",
    "acknowledged",
    "queued",
    "not_sent",
    "dropped.ring_starved",
    "dropped.ring_full",
    "dropped.no_socket",
    "dropped.shed",
    "dropped.buffer_full",
    "dropped.interface",
    "ignored.runt",
    "ignored.link_type",
    "ignored.not_ip",
    "ignored.duplicate_copy",
    "ignored.duplicate_routed",
    "ignored.duplicate_redundant",
    "flows.observed",
    "flows.live",
    "flows.peak",
    "flows.records",
    "flows.evicted",
    "flows.records_acknowledged",
    "flows.records_queued",
    "flows.records_not_sent",
    "odd.bad_ip_header",
    "odd.bad_transport_header",
    "odd.sliced",
    "odd.no_ip_length",
    "odd.fragment_without_first",
    "odd.too_deep",
    "odd.unknown_encapsulation",
    "odd.bad_encapsulation",
    "odd.tunnel_fragment",
    "odd.tunnel_fragment_lost",
    "odd.tunnel_not_named",
    "odd.in_aggregate",
    "odd.late",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_packet_is_named_with_its_equation() {
        let mut ledger =
            Ledger { wire: 10, delivered: 9, metered: 9, exported: 5, live: 4, acknowledged: 5, ..Ledger::default() };
        assert_eq!(ledger.imbalance().as_deref(), Some("wire = delivered + dropped: 10 is not 9"));
        ledger.dropped.ring_full = 1;
        assert_eq!(ledger.imbalance(), None);
    }

    #[test]
    fn every_count_is_listed_once_under_the_name_it_has_in_json() {
        let mut ledger = Ledger::default();
        for (n, count) in ledger.counts_mut().into_iter().enumerate() {
            *count = n as u64 + 1;
        }
        let json = serde_json::to_value(ledger).expect("plain numbers");
        let mut leaves = 0;
        for (name, value) in ledger.counts() {
            assert_eq!(json.pointer(&format!("/{}", name.replace('.', "/"))), Some(&value.into()), "{name}");
        }
        for value in json.as_object().expect("an object").values() {
            leaves += value.as_object().map_or(1, |inner| inner.len());
        }
        assert_eq!(leaves, COUNTS);
        let sum = |group: &str| ledger.counts().iter().filter(|(name, _)| name.starts_with(group)).map(|(_, n)| n).sum::<u64>();
        assert_eq!((sum("dropped."), sum("ignored.")), (ledger.dropped.total(), ledger.ignored.total()));
    }
}
