//! Settings of the flow table.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::tunnels;

/// Size and timeouts of the flow table. There is one table for each receive queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowTableSettings {
    /// Most flows at once, per receive queue. Each takes 155 bytes of memory, all tables included: 116 MiB for 786432; 56 more when it is not
    /// plain IPv4 (IPv6, layer 2, in a tunnel), and 168 more while it has TCP trouble or more than 65535 packets a minute. Memory is taken
    /// as it is needed. When the table is full, another flow ends early with flowEndReason 5, and is counted: first one that is over, then a SYN
    /// that nobody answered, then a single packet, then one that has been silent for half of its timeout; at most 100,000 a second. A packet
    /// that finds no place even so is metered in a flow of prefixes. 64 to 100 million.
    pub flows_max: usize,
    /// A long flow is cut into records at the multiples of this on the clock. 1 to 300.
    pub active_timeout_secs: u64,
    /// A Begin record follows the first packet after this long. 0 to 1000.
    pub begin_after_millis: u64,
    /// Silence after which a TCP connection is over.
    pub idle_timeout_tcp_secs: u64,
    /// Silence after which a SYN that nobody answered is given up.
    pub idle_timeout_half_open_secs: u64,
    /// How long a TCP connection lingers after FIN from both sides, or RST.
    pub idle_timeout_closed_secs: u64,
    /// Silence after which a UDP conversation is over.
    pub idle_timeout_udp_secs: u64,
    /// The same for a single UDP packet.
    pub idle_timeout_udp_single_secs: u64,
    /// The same for everything else: ICMP, other IP protocols, layer 2.
    pub idle_timeout_other_secs: u64,
    /// Most tunnels, overlays and ERSPAN sessions that are told apart, per receive queue; flows in others name none, and their packets are
    /// counted as odd.tunnel_not_named. One that no packet came in for longer than any flow lives gives way. 1 to 65535.
    pub tunnels_max: usize,
}

impl Default for FlowTableSettings {
    fn default() -> Self {
        Self {
            flows_max: 786_432,
            active_timeout_secs: 60,
            begin_after_millis: 500,
            idle_timeout_tcp_secs: 300,
            idle_timeout_half_open_secs: 10,
            idle_timeout_closed_secs: 5,
            idle_timeout_udp_secs: 60,
            idle_timeout_udp_single_secs: 15,
            idle_timeout_other_secs: 60,
            tunnels_max: 4096,
        }
    }
}

impl FlowTableSettings {
    /// # Errors
    /// The key that is out of range, and a sentence about it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let range = |key, value: u64, least: u64, most: u64| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err((key, format!("{value} is out of range; choose {least} to {most}"))),
        };
        range("flows_max", self.flows_max as u64, 64, 100_000_000)?;
        range("active_timeout_secs", self.active_timeout_secs, 1, 300)?;
        range("begin_after_millis", self.begin_after_millis, 0, 1000)?;
        range("idle_timeout_tcp_secs", self.idle_timeout_tcp_secs, 1, 86_400)?;
        range("idle_timeout_half_open_secs", self.idle_timeout_half_open_secs, 1, 3600)?;
        range("idle_timeout_closed_secs", self.idle_timeout_closed_secs, 1, 3600)?;
        range("idle_timeout_udp_secs", self.idle_timeout_udp_secs, 1, 86_400)?;
        range("idle_timeout_udp_single_secs", self.idle_timeout_udp_single_secs, 1, 86_400)?;
        range("idle_timeout_other_secs", self.idle_timeout_other_secs, 1, 86_400)?;
        range("tunnels_max", self.tunnels_max as u64, 1, tunnels::ENTRIES_MAX as u64)
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        let secs = Duration::from_secs;
        let timeouts = Timeouts {
            active: secs(self.active_timeout_secs),
            begin: Duration::from_millis(self.begin_after_millis),
            tcp: secs(self.idle_timeout_tcp_secs),
            half_open: secs(self.idle_timeout_half_open_secs),
            closed: secs(self.idle_timeout_closed_secs),
            udp: secs(self.idle_timeout_udp_secs),
            udp_single: secs(self.idle_timeout_udp_single_secs),
            other: secs(self.idle_timeout_other_secs),
            shortest_nanos: 0,
            longest: Duration::ZERO,
        };
        let Timeouts { tcp, half_open, closed, udp, udp_single, other, .. } = timeouts;
        let idle = [tcp, half_open, closed, udp, udp_single, other];
        let shortest = idle.into_iter().min().unwrap_or_default();
        let longest = idle.into_iter().max().unwrap_or_default();
        Timeouts { shortest_nanos: shortest.as_nanos() as u64, longest, ..timeouts }
    }
}

/// The same, ready for use.
#[derive(Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) active: Duration,
    pub(super) begin: Duration,
    pub(super) tcp: Duration,
    pub(super) half_open: Duration,
    pub(super) closed: Duration,
    pub(super) udp: Duration,
    pub(super) udp_single: Duration,
    pub(super) other: Duration,
    /// No flow expires before this; at most a day.
    pub(super) shortest_nanos: u64,
    /// Every flow that nothing was seen of expires after this.
    pub(super) longest: Duration,
}
