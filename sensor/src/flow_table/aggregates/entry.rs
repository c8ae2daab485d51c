//! One aggregate: what it counts, and the record of it.

use spanwatch_common::encapsulation::Encapsulations;
use spanwatch_common::flow::{BiflowDirection, FORWARD, FlowRecord, Mac, protocol};
use spanwatch_common::layer2::ethertype;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::Level;
use crate::decode::{DONT_FRAGMENT, FlowKey, IS_FRAGMENT, Kind, Packet, TCP_FLAGS};
use crate::flow_table::{KeyHash, Observer};

/// One aggregate. The key is that of a flow, but that `a` is always the source; the unused inner VLAN holds the prefix lengths.
pub(super) struct Entry {
    pub(super) key: FlowKey,
    pub(super) hash: KeyHash,
    pub(super) flow_id: u64,
    pub(super) level: Level,
    pub(super) host: u16,
    pub(super) begun: bool,
    pub(super) opened: Timestamp,
    pub(super) last: Timestamp,
    /// Of the first packet; a MAC address as long as all packets have the same.
    pub(super) source_mac: Mac,
    pub(super) destination_mac: Mac,
    pub(super) first_flags: u16,
    pub(super) class_of_service: u8,
    pub(super) vlan_tags: u8,
    pub(super) encapsulations: Encapsulations,
    pub(super) slice: Tally,
    /// A slice that is over and has no record yet.
    pub(super) earlier: Tally,
}

/// What was counted in a slice.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) packets: u64,
    pub(super) ip_octets: u64,
    pub(super) frame_octets: u64,
    pub(super) start: Timestamp,
    pub(super) end: Timestamp,
    pub(super) flags: u16,
    pub(super) ttl_min: u8,
    pub(super) ttl_max: u8,
    pub(super) ip_len_min: u16,
    pub(super) ip_len_max: u16,
    pub(super) sampling_population: u32,
}

impl Entry {
    /// The aggregate of `key`, before its first packet.
    pub(super) fn new(key: FlowKey, hash: KeyHash, flow_id: u64, level: Level, host: usize) -> Self {
        Self {
            key,
            hash,
            flow_id,
            level,
            host: host as u16, // a number below 2 × COUNTERS
            begun: false,
            opened: Timestamp::NONE,
            last: Timestamp::NONE,
            source_mac: [0; 6],
            destination_mac: [0; 6],
            first_flags: 0,
            class_of_service: 0,
            vlan_tags: 0,
            encapsulations: Encapsulations::default(),
            slice: Tally::default(),
            earlier: Tally::default(),
        }
    }

    /// Counts a packet.
    pub(super) fn add(&mut self, packet: &Packet, sampling_population: u32) {
        let ip_len = packet.ip_octets.min(u32::from(u16::MAX)) as u16;
        if !self.opened.is_some() {
            (self.opened, self.first_flags) = (packet.at, packet.flags & TCP_FLAGS);
            (self.source_mac, self.destination_mac) = (packet.source_mac, packet.destination_mac);
            (self.class_of_service, self.vlan_tags) = (packet.class_of_service, packet.vlan_tags);
            self.encapsulations = packet.encapsulations;
        }
        if self.source_mac != packet.source_mac {
            self.source_mac = [0; 6];
        }
        if self.destination_mac != packet.destination_mac {
            self.destination_mac = [0; 6];
        }
        let slice = &mut self.slice;
        if slice.packets == 0 {
            *slice = Tally {
                start: packet.at,
                end: packet.at,
                ttl_min: packet.ttl,
                ip_len_min: ip_len,
                sampling_population,
                ..Tally::default()
            };
        }
        slice.packets += 1;
        slice.ip_octets += u64::from(packet.ip_octets);
        slice.frame_octets += u64::from(packet.frame_octets);
        (slice.start, slice.end) = (slice.start.min(packet.at), slice.end.max(packet.at));
        slice.flags |= packet.flags;
        (slice.ttl_min, slice.ttl_max) = (slice.ttl_min.min(packet.ttl), slice.ttl_max.max(packet.ttl));
        (slice.ip_len_min, slice.ip_len_max) = (slice.ip_len_min.min(ip_len), slice.ip_len_max.max(ip_len));
        self.last = self.last.max(packet.at);
    }

    /// Puts the slice under way aside. One that still waits there becomes part of it: both were over before anybody asked for records.
    pub(super) fn end_slice(&mut self) {
        let slice = std::mem::take(&mut self.slice);
        let earlier = &mut self.earlier;
        if earlier.packets == 0 {
            *earlier = slice;
        } else if slice.packets > 0 {
            *earlier = Tally {
                packets: earlier.packets + slice.packets,
                ip_octets: earlier.ip_octets + slice.ip_octets,
                frame_octets: earlier.frame_octets + slice.frame_octets,
                start: earlier.start.min(slice.start),
                end: earlier.end.max(slice.end),
                flags: earlier.flags | slice.flags,
                ttl_min: earlier.ttl_min.min(slice.ttl_min),
                ttl_max: earlier.ttl_max.max(slice.ttl_max),
                ip_len_min: earlier.ip_len_min.min(slice.ip_len_min),
                ip_len_max: earlier.ip_len_max.max(slice.ip_len_max),
                sampling_population: slice.sampling_population,
            };
        }
    }

    /// Everything that a record of `tally` says, but for why it was made.
    pub(super) fn record(&self, tally: &Tally, observer: &Observer) -> FlowRecord {
        let key = &self.key;
        let is_icmp = matches!(key.protocol, protocol::ICMP | protocol::ICMPV6);
        let (ports, icmp_type_code) = if is_icmp { ([0; 2], key.b_port) } else { ([key.a_port, key.b_port], 0) };
        let is_tcp = key.protocol == protocol::TCP;
        // The tail of an aggregate that fell silent has the time of its last packet.
        let (start, end) = if tally.packets > 0 { (tally.start, tally.end) } else { (self.last, self.last) };
        let mut record = FlowRecord {
            flow_id: self.flow_id,
            biflow_direction: if ports[1] != 0 { BiflowDirection::Initiator } else { BiflowDirection::Arbitrary },
            observation_point: observer.observation_point,
            ingress_interface: observer.ingress_interface,
            one_sided: observer.one_sided,
            sampling_population: tally.sampling_population,
            ethernet_type: match key.kind {
                kind if kind == Kind::Ipv4 as u8 => ethertype::IPV4,
                kind if kind == Kind::Ipv6 as u8 => ethertype::IPV6,
                kind if kind == Kind::Layer2 as u8 => key.detail,
                _ => 0,
            },
            llc_saps: if key.kind == Kind::Llc as u8 { key.detail } else { 0 },
            vlan: key.vlan,
            vlan_tags: self.vlan_tags,
            source_mac: self.source_mac,
            destination_mac: self.destination_mac,
            source: Address(u128::from_be_bytes(key.a)),
            destination: Address(u128::from_be_bytes(key.b)),
            source_port: ports[0],
            destination_port: ports[1],
            protocol: key.protocol,
            encapsulations: self.encapsulations,
            prefix_lengths: key.customer_vlan.to_be_bytes(),
            ..FlowRecord::default()
        };
        record.icmp_type_code[FORWARD] = icmp_type_code;
        record.class_of_service[FORWARD] = self.class_of_service;
        record.packets[FORWARD] = tally.packets;
        record.octets[FORWARD] = tally.ip_octets;
        record.layer2_octets[FORWARD] = tally.frame_octets;
        (record.start[FORWARD], record.end[FORWARD]) = (start, end);
        record.tcp_flags[FORWARD] = tally.flags & TCP_FLAGS;
        record.initial_tcp_flags[FORWARD] = if is_tcp { self.first_flags } else { 0 };
        record.fragment_flags[FORWARD] =
            if tally.flags & DONT_FRAGMENT != 0 { 0x40 } else { 0 } | if tally.flags & IS_FRAGMENT != 0 { 0x20 } else { 0 };
        (record.ttl_min[FORWARD], record.ttl_max[FORWARD]) = (tally.ttl_min, tally.ttl_max);
        (record.ip_len_min[FORWARD], record.ip_len_max[FORWARD]) = (tally.ip_len_min, tally.ip_len_max);
        record
    }
}
