//! Layer-2 protocols by name, and what tells apart their conversations between the same two stations: the *instance*
//! ([`FlowRecord::layer2_instance`](crate::flow::FlowRecord::layer2_instance)).
//!
//! | ethertype | protocol | instance |
//! | --- | --- | --- |
//! | 0x0806 | ARP | 0; sender and target addresses are fields of their own |
//! | 0x8892 | PROFINET RT | lowest frame id of its class ([`profinet_class`]); DCP has one for each service |
//! | 0x88b8, 0x88b9, 0x88ba | GOOSE, GSE management, sampled values | APPID (IEC 61850-8-1 annex C) |
//! | 0x88a4 | EtherCAT | type of the frame: 1 datagrams, 4 network variables, 5 mailbox |
//! | 0x88ab | POWERLINK | message type: 1 SoC, 3 PReq, 4 PRes, 5 SoA, 6 ASnd, 7 AMNI |
//! | 0x88cd | SERCOS III | telegram: first octet of the header (bit 6: MDT or AT, bits 0–1: number) |
//! | 0x88f7 | PTP | domain |
//! | LLC aa/aa | SNAP | OUI · 65536 + protocol id: 0x0000_0c_2000 is CDP |

use std::borrow::Cow;

/// Ethertypes that the code names.
pub mod ethertype {
    #![allow(missing_docs, reason = "the names are the protocols'")]
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
    pub const PROFINET: u16 = 0x8892;
    pub const ETHERCAT: u16 = 0x88a4;
    pub const POWERLINK: u16 = 0x88ab;
    pub const GOOSE: u16 = 0x88b8;
    pub const GSE_MANAGEMENT: u16 = 0x88b9;
    pub const SAMPLED_VALUES: u16 = 0x88ba;
    pub const LLDP: u16 = 0x88cc;
    pub const SERCOS: u16 = 0x88cd;
    pub const PTP: u16 = 0x88f7;
}

/// Lowest frame id of the class of PROFINET frames that `frame_id` belongs to (IEC 61158-6-10, FrameID ranges).
pub const fn profinet_class(frame_id: u16) -> u16 {
    match frame_id {
        0x0000..=0x00ff => 0x0000,   // PTCP time synchronisation and reserved
        0x0100..=0x7fff => 0x0100,   // RT_CLASS_3, isochronous
        0x8000..=0xbfff => 0x8000,   // RT_CLASS_1, unicast and multicast
        0xc000..=0xfbff => 0xc000,   // RT_CLASS_UDP and legacy RT_CLASS_1
        0xfc00..=0xfcff => 0xfc00,   // alarm, high priority
        0xfd00..=0xfdff => 0xfd00,   // reserved
        0xfe00..=0xfefb => 0xfe00,   // alarm, low priority
        0xfefc..=0xfeff => frame_id, // DCP: hello, get/set, identify request, identify response
        0xff00..=0xff1f => 0xff00,   // PTCP announce
        0xff20..=0xff3f => 0xff20,   // PTCP follow-up
        0xff40..=0xff7f => 0xff40,   // PTCP delay
        0xff80..=0xffff => 0xff80,   // fragments and reserved
    }
}

/// Whether this is the cyclic data of a plant, which goes to group addresses in many cells and says nothing against a mirror that shows
/// little else.
pub const fn is_process_data(ethernet_type: u16) -> bool {
    matches!(
        ethernet_type,
        ethertype::PROFINET
            | ethertype::ETHERCAT
            | ethertype::POWERLINK
            | ethertype::GOOSE
            | ethertype::SAMPLED_VALUES
            | ethertype::SERCOS
    )
}

/// What a layer-2 conversation is called for people: its [`name`], or its number in hexadecimal; none without either.
pub fn label(ethernet_type: u16, llc_saps: u16, instance: u64) -> Option<Cow<'static, str>> {
    match (name(ethernet_type, llc_saps, instance), ethernet_type, llc_saps) {
        (Some(name), _, _) => Some(Cow::Borrowed(name)),
        (None, 0, 0) => None,
        (None, 0, saps) => Some(Cow::Owned(format!("LLC 0x{saps:04x}"))),
        (None, ethernet_type, _) => Some(Cow::Owned(format!("0x{ethernet_type:04x}"))),
    }
}

/// The usual name of a layer-2 conversation; none for an unknown one. `ethernet_type` is 0 for LLC, which has `llc_saps`.
pub const fn name(ethernet_type: u16, llc_saps: u16, instance: u64) -> Option<&'static str> {
    Some(match (ethernet_type, llc_saps) {
        (ethertype::ARP, _) => "ARP",
        (ethertype::PROFINET, _) if instance >= 0xfefc && instance <= 0xfeff => "PROFINET DCP",
        (ethertype::PROFINET, _) => "PROFINET RT",
        (ethertype::ETHERCAT, _) => "EtherCAT",
        (ethertype::POWERLINK, _) => "POWERLINK",
        (ethertype::GOOSE, _) => "GOOSE",
        (ethertype::GSE_MANAGEMENT, _) => "GSE",
        (ethertype::SAMPLED_VALUES, _) => "SV",
        (ethertype::LLDP, _) => "LLDP",
        (ethertype::SERCOS, _) => "SERCOS",
        (ethertype::PTP, _) => "PTP",
        (0x8809, _) => "slow protocols",
        (0x8863 | 0x8864, _) => "PPPoE",
        (0x8847 | 0x8848, _) => "MPLS",
        (0x888e, _) => "EAPOL",
        (0x88e1, _) => "HomePlug",
        (0x88e3, _) => "MRP",
        (0x88e5, _) => "MACsec",
        (0x88fb, _) => "PRP supervision",
        (0x892f, _) => "HSR",
        (0x9000, _) => "loopback",
        (0, 0x4242) => "STP",
        (0, 0xfefe) => "IS-IS",
        (0, 0xf0f0) => "NetBEUI",
        (0, 0xe0e0) => "IPX",
        (0, 0xaaaa) => match instance {
            0x0c_2000 => "CDP",
            0x0c_2003 => "VTP",
            0x0c_2004 => "DTP",
            0x0c_010b => "PVST+",
            0x0c_0111 => "UDLD",
            0x0c_0104 => "PAgP",
            0x81_0000..=0x81_ffff => "Nortel discovery",
            _ => "SNAP",
        },
        _ => return None,
    })
}
