//! What `/live` says: the state of a running sensor as one JSON object. `spanwatch-sensor top` reads it back.
//!
//! Counts are cumulative since the sensor started; whoever wants rates takes the difference of two looks and of their
//! [`uptime_millis`](LiveView::uptime_millis). Absent keys read as zero, unknown ones are passed over, so that `top` may be older or newer
//! than the sensor.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use spanwatch_common::encapsulation::Encapsulation;
use spanwatch_common::flow::{LAYER2, Mac, protocol};
use spanwatch_common::health::{EncapsulationCounts, Health, PortHealth};
use spanwatch_common::layer2;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::net::Address;
use spanwatch_common::text::protocol_name;

use crate::flow_table;
use crate::uplink::Link;

/// A look at a running sensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LiveView {
    /// How packets are captured, e.g. `af_xdp_zero_copy`; several, with commas, when the ports differ.
    pub mode: String,
    /// Why that way; of the first port.
    pub why: String,
    /// Milliseconds since the sensor started.
    pub uptime_millis: u64,
    /// Every packet accounted for.
    pub ledger: Ledger,
    /// All capture ports together: their names with commas, and the sum of what their mirrors are judged by.
    pub port: PortHealth,
    /// Each capture port.
    pub ports: Vec<PortView>,
    /// Packets by what was around them: those kinds that there were, by name.
    pub encapsulations: BTreeMap<String, u64>,
    /// The account of each receive queue, up to the flow table: those of the first port, then those of the second...
    pub queues: Vec<Ledger>,
    /// The connection to the collector.
    pub link: Link,
    /// The flows with most octets, the fastest first. Empty at the first look, and for two seconds after.
    pub talkers: Vec<Talker>,
}

/// One capture port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortView {
    /// How packets are captured from it.
    pub mode: String,
    /// Why that way.
    pub why: String,
    /// Receive queues that are read.
    pub queues: usize,
    /// Its name, its observation point, and what its mirror is judged by.
    pub port: PortHealth,
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
    /// A view of these ports; everything else is zero.
    pub fn of(ports: Vec<PortView>) -> Self {
        let mut health = Health::default();
        let (mut names, mut modes): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for PortView { mode, port, .. } in &ports {
            health.add(&port.health);
            names.push(&port.interface);
            if !modes.contains(&mode.as_str()) {
                modes.push(mode);
            }
        }
        let interface = names.join(", ");
        let observation_point = ports.first().map_or(0, |first| first.port.observation_point);
        Self {
            mode: modes.join(", "),
            why: ports.first().map_or_else(String::new, |first| first.why.clone()),
            encapsulations: Self::named(&health.encapsulations),
            port: PortHealth { observation_point, interface, health },
            ports,
            ..Self::default()
        }
    }

    /// The ports that are judged, each by itself: a sensor of an earlier version only tells of the one it has.
    pub fn judged_ports(&self) -> impl Iterator<Item = &PortHealth> {
        let alone = if self.ports.is_empty() { Some(&self.port) } else { None };
        self.ports.iter().map(|view| &view.port).chain(alone)
    }

    /// The kinds of encapsulation that were seen, by name.
    pub fn named(counts: &EncapsulationCounts) -> BTreeMap<String, u64> {
        let seen = Encapsulation::ALL.into_iter().zip(*counts).filter(|(_, count)| *count > 0);
        seen.map(|(kind, count)| (kind.name().to_owned(), count)).collect()
    }
}

impl From<&flow_table::Talker> for Talker {
    fn from(flow: &flow_table::Talker) -> Self {
        let is_layer2 = flow.protocol == LAYER2;
        let end = |address, port, mac| if is_layer2 { mac_text(mac) } else { ip_text(address, port) };
        Self {
            source: end(flow.source, flow.source_port, flow.source_mac),
            destination: end(flow.destination, flow.destination_port, flow.destination_mac),
            protocol: if is_layer2 { layer2_name(flow.ethernet_type) } else { ip_name(flow.protocol) },
            packets: flow.packets,
            octets: flow.octets,
            packets_per_sec: flow.packets_per_sec,
            octets_per_sec: flow.octets_per_sec,
        }
    }
}

fn mac_text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

fn ip_text(address: Address, port: u16) -> String {
    match (port, address.as_v4()) {
        (0, _) => address.to_string(),
        (_, Some(v4)) => format!("{v4}:{port}"),
        (_, None) => format!("[{address}]:{port}"),
    }
}

fn layer2_name(ethernet_type: u16) -> String {
    layer2::label(ethernet_type, 0, 0).map_or_else(|| "LLC".to_owned(), Cow::into_owned)
}

fn ip_name(number: u8) -> String {
    let name = match number {
        protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6 | protocol::SCTP => protocol_name(number),
        2 => "IGMP".into(),
        47 => "GRE".into(),
        50 => "ESP".into(),
        89 => "OSPF".into(),
        _ => format!("IP {number}").into(),
    };
    name.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_reads_back_as_it_was_said() {
        let mut view = LiveView { uptime_millis: 7, mode: "packet".into(), ..LiveView::default() };
        view.ledger.dropped.ring_full = 3;
        view.port.health.encapsulations[Encapsulation::Vxlan as usize] = 5;
        view.encapsulations = LiveView::named(&view.port.health.encapsulations);
        view.link.trouble = Some("nobody \"there\"".into());
        view.talkers = vec![Talker { octets_per_sec: 0.5, ..Talker::default() }];
        let json = serde_json::to_string(&view).expect("JSON");
        assert!(json.contains("\"encapsulations\":{\"vxlan\":5}"), "{json}");
        assert_eq!(serde_json::from_str::<LiveView>(&json).expect("a view"), view);
    }

    #[test]
    fn two_ports_are_added_up_and_kept_apart() {
        let port = |interface: &str, mode: &str, packets| PortView {
            mode: mode.into(),
            port: PortHealth {
                interface: interface.into(),
                health: Health { packets, ..Health::default() },
                ..PortHealth::default()
            },
            ..PortView::default()
        };
        let view = LiveView::of(vec![port("eno2", "af_xdp_copy", 5), port("eno3", "packet", 7), port("eno4", "packet", 0)]);
        assert_eq!((view.mode.as_str(), view.port.interface.as_str()), ("af_xdp_copy, packet", "eno2, eno3, eno4"));
        assert_eq!(view.port.health.packets, 12);
        assert_eq!(view.judged_ports().map(|port| port.health.packets).collect::<Vec<_>>(), [5, 7, 0]);
    }

    #[test]
    fn a_talker_is_named_as_people_name_it() {
        let named = |flow: flow_table::Talker| {
            let Talker { source, destination, protocol, .. } = Talker::from(&flow);
            [source, destination, protocol]
        };
        let address = |text: &str| text.parse().expect("an address");
        let tcp = flow_table::Talker {
            source: address("192.0.2.1"),
            source_port: 40000,
            destination: address("2001:db8::2"),
            destination_port: 502,
            protocol: 6,
            ..Default::default()
        };
        assert_eq!(named(tcp), ["192.0.2.1:40000", "[2001:db8::2]:502", "TCP"]);
        let ping = flow_table::Talker { source_port: 0, destination_port: 0, protocol: 1, ..tcp };
        assert_eq!(named(ping), ["192.0.2.1", "2001:db8::2", "ICMP"]);
        let goose = flow_table::Talker { protocol: LAYER2, ethernet_type: 0x88b8, source_mac: [2, 0, 0, 0, 0, 1], ..tcp };
        assert_eq!(named(goose), ["02:00:00:00:00:01", "00:00:00:00:00:00", "GOOSE"]);
        let unknown = flow_table::Talker { ethernet_type: 0x1234, ..goose };
        assert_eq!(named(unknown)[2], "0x1234");
    }
}
