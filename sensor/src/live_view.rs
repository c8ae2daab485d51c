//! What `/live` says: the state of a running sensor as one JSON object. `spanwatch-sensor top` reads it back.
//!
//! Counts are cumulative since the sensor started; whoever wants rates takes the difference of two looks and of their
//! [`uptime_millis`](LiveView::uptime_millis). Absent keys read as zero, unknown ones are passed over, so that `top` may be older or newer
//! than the sensor.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use spanwatch_common::encapsulation::Encapsulation;
use spanwatch_common::health::{EncapsulationCounts, PortHealth};
use spanwatch_common::ledger::Ledger;

use crate::uplink::Link;

/// A look at a running sensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LiveView {
    /// How packets are captured, e.g. `af_xdp_zero_copy`.
    pub mode: String,
    /// Why that way.
    pub why: String,
    /// Milliseconds since the sensor started.
    pub uptime_millis: u64,
    /// Every packet accounted for.
    pub ledger: Ledger,
    /// The capture port, and what its mirror is judged by.
    pub port: PortHealth,
    /// Packets by what was around them: those kinds that there were, by name.
    pub encapsulations: BTreeMap<String, u64>,
    /// The account of each receive queue, up to the flow table.
    pub queues: Vec<Ledger>,
    /// The connection to the collector.
    pub link: Link,
    /// The flows with most octets, most first. Empty at the first look, and for two seconds after.
    pub talkers: Vec<Talker>,
}

/// A flow that says much at present.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Talker {
    /// Address and port of the initiator; at layer 2 its MAC address.
    pub source: String,
    /// Address and port of the responder; at layer 2 its MAC address.
    pub destination: String,
    /// Name of the protocol.
    pub protocol: String,
    /// Packets of both directions, since the last full minute or the flow's beginning.
    pub packets: u64,
    /// Octets of both directions: of IP, or at layer 2 of frames.
    pub octets: u64,
    /// The same per second.
    pub packets_per_sec: f64,
    /// The same per second.
    pub octets_per_sec: f64,
}

impl LiveView {
    /// The kinds of encapsulation that were seen, by name.
    pub fn named(counts: &EncapsulationCounts) -> BTreeMap<String, u64> {
        let seen = Encapsulation::ALL.into_iter().zip(*counts).filter(|(_, count)| *count > 0);
        seen.map(|(kind, count)| (kind.name().to_owned(), count)).collect()
    }
}
