//! The flow record: what a sensor says about one flow, or about one slice of its life. Final once made.
//!
//! Names and meanings follow the IANA IPFIX registry; a record is bidirectional (RFC 5103): index 0 of every pair counts what
//! the initiator sent ("forward"), index 1 what came back ("reverse").

use crate::cloud::Cloud;
use crate::encapsulation::Encapsulations;
use crate::net::Address;
use crate::time::Timestamp;

/// Index of the initiator's half in every pair of a record.
pub const FORWARD: usize = 0;
/// Index of the responder's half in every pair of a record.
pub const REVERSE: usize = 1;

/// Where in its life a flow was when the record was made, as in Azure VNet flow logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FlowState {
    /// First sight: says who speaks to whom, and the flags so far. Counters are zero; what was counted follows in the next record.
    Begin = 1,
    /// Still alive; counters since the previous record.
    Continue = 2,
    /// Over; counters since the previous record.
    #[default]
    End = 3,
}

impl FlowState {
    /// Every state, in the order of a flow's life.
    pub const ALL: [Self; 3] = [Self::Begin, Self::Continue, Self::End];

    /// The word used in JSON and in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin => "Begin",
            Self::Continue => "Continue",
            Self::End => "End",
        }
    }

    /// From its number on the wire; an unknown one reads as the end of the flow.
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Begin,
            2 => Self::Continue,
            _ => Self::End,
        }
    }
}

/// Why a record was made: IPFIX element 136, flowEndReason. Zero in a [`FlowState::Begin`] record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FlowEndReason {
    /// Not ended (Begin).
    #[default]
    None = 0,
    /// No packet for the idle timeout.
    IdleTimeout = 1,
    /// Cut at a multiple of the active timeout; the flow lives on.
    ActiveTimeout = 2,
    /// TCP said that it is over (FIN from both sides, or RST).
    EndOfFlow = 3,
    /// The sensor stopped, the file ended, or the clock was set.
    ForcedEnd = 4,
    /// The table was full and another flow needed the place.
    LackOfResources = 5,
}

impl FlowEndReason {
    /// From element 136; an unregistered number reads as a forced end.
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::None,
            1 => Self::IdleTimeout,
            2 => Self::ActiveTimeout,
            3 => Self::EndOfFlow,
            5 => Self::LackOfResources,
            _ => Self::ForcedEnd,
        }
    }
}

/// How the initiator became known: IPFIX element 239, biflowDirection (RFC 5103 §6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum BiflowDirection {
    /// The first packet's sender, for want of anything better.
    #[default]
    Arbitrary = 0,
    /// The sender of the first packet opened the flow, and says so (SYN, echo request, service port).
    Initiator = 1,
    /// The first packet seen was an answer; its receiver opened the flow.
    ReverseInitiator = 2,
}

impl BiflowDirection {
    /// From element 239; what we do not produce (3, perimeter) reads as arbitrary.
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Initiator,
            2 => Self::ReverseInitiator,
            _ => Self::Arbitrary,
        }
    }
}

/// A MAC address, as transmitted.
pub type Mac = [u8; 6];

/// Bits of tcpControlBits (element 6; RFC 9293 §3.1).
pub mod tcp {
    #![allow(missing_docs, reason = "the names are RFC 9293's")]
    pub const FIN: u16 = 0x01;
    pub const SYN: u16 = 0x02;
    pub const RST: u16 = 0x04;
    pub const PSH: u16 = 0x08;
    pub const ACK: u16 = 0x10;
    pub const URG: u16 = 0x20;
}

/// IP protocol numbers that the code names.
pub mod protocol {
    #![allow(missing_docs, reason = "the names are IANA's")]
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// The summary of a flow, or of a slice of its life.
///
/// Pairs are `[forward, reverse]`. Counters are deltas since the previous record of the same [`flow_id`](Self::flow_id).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowRecord {
    /// Element 148, flowId: the same for all records of one flow.
    pub flow_id: u64,
    /// Begin, Continue or End.
    pub state: FlowState,
    /// Element 136, flowEndReason.
    pub end_reason: FlowEndReason,
    /// Element 239, biflowDirection.
    pub biflow_direction: BiflowDirection,
    /// Element 138, observationPointId: number of the capture port within the sensor, from 1.
    pub observation_point: u32,
    /// Element 10, ingressInterface: ifIndex of the capture port; 0 for a file.
    pub ingress_interface: u32,
    /// Element 256, ethernetType after all tags; 0 for an 802.3 length frame, which has [`llc_saps`](Self::llc_saps) instead.
    pub ethernet_type: u16,
    /// DSAP · 256 + SSAP of an LLC frame (IEEE 802.2), else 0.
    pub llc_saps: u16,
    /// Element 243, dot1qVlanId: VID of the outer tag, 0 when untagged or priority-tagged.
    pub vlan: u16,
    /// Element 245, dot1qCustomerVlanId: VID of the inner tag, 0 when there is none.
    pub customer_vlan: u16,
    /// How many VLAN tags the first frame carried.
    pub vlan_tags: u8,
    /// Element 56, sourceMacAddress: of the initiator, as seen in the first frame.
    pub source_mac: Mac,
    /// Element 80, destinationMacAddress.
    pub destination_mac: Mac,
    /// Element 8 or 27: address of the initiator; none for a layer-2 flow.
    pub source: Address,
    /// Element 12 or 28: address of the responder; none for a layer-2 flow.
    pub destination: Address,
    /// Element 7, sourceTransportPort; 0 where the protocol has none.
    pub source_port: u16,
    /// Element 11, destinationTransportPort; 0 where the protocol has none.
    pub destination_port: u16,
    /// Element 4, protocolIdentifier; for IPv6 that of the last header. 255 for a layer-2 flow.
    pub protocol: u8,
    /// Element 32 or 139: ICMP type · 256 + code of the first packet each way.
    pub icmp_type_code: [u16; 2],
    /// Element 5, ipClassOfService of the first packet each way.
    pub class_of_service: [u8; 2],
    /// Element 197, fragmentFlags: OR over the packets each way of 0x40 (don't fragment) and 0x20 (more fragments, or a later fragment).
    pub fragment_flags: [u8; 2],
    /// Element 2, packetDeltaCount.
    pub packets: [u64; 2],
    /// Element 1, octetDeltaCount: IP header and payload, never padding, FCS or Ethernet header; 0 for a layer-2 flow.
    pub octets: [u64; 2],
    /// Element 352, layer2OctetDeltaCount: whole frames without preamble and FCS.
    pub layer2_octets: [u64; 2],
    /// Element 156, flowStartNanoseconds, each way; none where no packet went that way.
    pub start: [Timestamp; 2],
    /// Element 157, flowEndNanoseconds, each way.
    pub end: [Timestamp; 2],
    /// Element 6, tcpControlBits: OR over the packets each way.
    pub tcp_flags: [u16; 2],
    /// CERT element 14, initialTCPFlags: of the first packet of the flow each way.
    pub initial_tcp_flags: [u16; 2],
    /// Element 52, minimumTTL (hop limit for IPv6); 0 where no packet went that way.
    pub ttl_min: [u8; 2],
    /// Element 53, maximumTTL.
    pub ttl_max: [u8; 2],
    /// Element 25, minimumIpTotalLength.
    pub ip_len_min: [u16; 2],
    /// Element 26, maximumIpTotalLength.
    pub ip_len_max: [u16; 2],
    /// What was around the conversation in its first frame, and was taken off.
    pub encapsulations: Encapsulations,
    /// Element 351, layer2SegmentId: the kind of overlay in the top byte ([`segment`]), its identifier below; 0 when there is none.
    pub layer2_segment: u64,
    /// Element 70, mplsTopLabelStackSection: label · 16 + traffic class · 2 + bottom of stack; 0 when there is none.
    pub mpls_top_label: u32,
    /// Outer addresses of the outermost tunnel: who sent the tunnel's packet that carried the initiator's first frame (or, as long as
    /// only the responder was heard, to whom it was sent), and the other end. They say which switch mirrored it. None without a tunnel.
    pub tunnel: [Address; 2],
    /// Session of the ERSPAN header, 0 to 1023; says something only where `encapsulations` has ERSPAN II or III.
    pub erspan_session: u16,
    /// VLAN that the ERSPAN header names: that of the mirrored frame, whether its tag was mirrored or not. Never part of the key.
    pub erspan_vlan: u16,
    /// What tells apart conversations of one layer-2 protocol between the same stations ([`crate::layer2`]): APPID of GOOSE and SV,
    /// frame id class of PROFINET, OUI · 65536 + protocol id of SNAP, and so on. 0 where the protocol has none.
    pub layer2_instance: u64,
    /// ARP's protocol addresses: of the sender and of the target, by [`source_mac`](Self::source_mac). None in other flows.
    pub arp: [Address; 2],
    /// Whether both ends were heard at any time in the flow's life so far. In UDP: whether it was answered.
    pub answered: bool,
    /// Round trips of the TCP handshake in ns: SYN to SYN+ACK (the server's half of the path, seen from the mirror port), SYN+ACK to
    /// ACK (the client's half). 0 where it was not seen; in every record after it was. At most 4.29 s. Through AF_XDP packets have the time
    /// at which they were fetched, so that a round trip shorter than a burst's handling is not seen either.
    pub tcp_handshake: [u32; 2],
    /// TCP segments each way that were sent before: seen, or missing for longer than reordering takes.
    pub tcp_retransmissions: [u32; 2],
    /// TCP segments each way that came after later ones, within the time that reordering takes.
    pub tcp_out_of_order: [u32; 2],
    /// TCP segments each way that closed the window (RFC 9293 §3.8.6.1).
    pub tcp_zero_windows: [u32; 2],
    /// TCP octets sent each way that the other end acknowledged, but that never came by: proof of loss on the mirror.
    pub tcp_missed_octets: [u64; 2],
    /// Type · 256 + code of the last ICMP error that quoted a packet sent each way; 0 when there was none in this slice.
    pub icmp_error: [u16; 2],
    /// Elements 9 and 13 (29 and 30 for IPv6), sourceIPv4PrefixLength and destinationIPv4PrefixLength: how many leading bits of source and
    /// destination are meant, in a record that stands for many flows because the table was full (RFC 7015); the other bits are zero, and so
    /// are ports that differ. 0 in a record of one flow.
    pub prefix_lengths: [u8; 2],
    /// Element 310, samplingPopulation: the packets counted are one in so many, chosen at random; 0 when every packet was looked at.
    pub sampling_population: u32,
    /// The sensor knew beforehand that it might see one direction only: a receive queue of a card that spreads the two directions over
    /// queues, or one fibre of a TAP. A direction without packets then says nothing.
    pub one_sided: bool,
    /// What only a cloud's flow log says; none for what a sensor saw.
    pub cloud: Option<Box<Cloud>>,
}

/// Kinds of overlay in the top byte of layer2SegmentId. IANA has registered 1 and 2; ours are above 0x80.
pub mod segment {
    #![allow(missing_docs, reason = "the names are the overlays'")]
    pub const VXLAN: u8 = 1;
    pub const NVGRE: u8 = 2;
    pub const GENEVE: u8 = 0x81;
    pub const VXLAN_GPE: u8 = 0x82;
    /// A plain GRE key (RFC 2890), 32 bits.
    pub const GRE_KEY: u8 = 0x83;
    /// A GTP-U tunnel endpoint identifier, 32 bits.
    pub const GTP_U: u8 = 0x84;
    /// The I-SID of 802.1ah.
    pub const PBB: u8 = 0x85;
    /// A PPPoE session, 16 bits.
    pub const PPPOE: u8 = 0x86;

    /// The element's value.
    pub const fn id(kind: u8, id: u32) -> u64 {
        (kind as u64) << 56 | id as u64
    }
}

/// The protocol number of a flow that has no IP header (IANA "Reserved").
pub const LAYER2: u8 = 255;

impl FlowRecord {
    /// Earliest time in the record, whichever way the packet went.
    pub fn first(&self) -> Timestamp {
        match self.start {
            [forward, reverse] if !reverse.is_some() => forward,
            [forward, reverse] if !forward.is_some() => reverse,
            [forward, reverse] => forward.min(reverse),
        }
    }

    /// Latest time in the record, whichever way the packet went.
    pub fn last(&self) -> Timestamp {
        self.end[FORWARD].max(self.end[REVERSE])
    }

    /// Packets of both directions.
    pub const fn packets_total(&self) -> u64 {
        self.packets[FORWARD] + self.packets[REVERSE]
    }

    /// Whether it has no IP header.
    pub const fn is_layer2(&self) -> bool {
        !self.source.is_some() && !self.destination.is_some()
    }

    /// Whether the protocol is ICMP or ICMPv6.
    pub const fn is_icmp(&self) -> bool {
        matches!(self.protocol, protocol::ICMP | protocol::ICMPV6)
    }
}
