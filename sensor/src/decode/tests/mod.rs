mod wrapped;

use super::*;
use crate::capture::Link;
use spanwatch_common::flow::{protocol, tcp};
use spanwatch_common::net::Address;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")).collect()
}

fn read(frame: &str) -> Packet {
    let bytes = hex(frame);
    decode(&Frame::ethernet(&bytes, bytes.len() as u32, Timestamp::from_secs(1)), &Rules::default(), &mut Around::default())
        .expect("an Ethernet frame")
}

const MACS: &str = "020000000002 020000000001 ";
/// 10.0.0.1:40000 > 10.0.0.2:502, SYN, total length 40, TTL 64, DF.
const SYN: &str = "45000028 00014000 40060000 0a000001 0a000002 9c4001f6 00000001 00000000 5002ffff 00000000 ";

#[test]
fn a_padded_syn_counts_forty_octets() {
    let packet = read(&format!("{MACS} 0800 {SYN} 000000000000"));
    assert_eq!((packet.frame_octets, packet.ip_octets), (60, 40));
    assert_eq!(packet.flags, tcp::SYN | DONT_FRAGMENT);
    assert_eq!((packet.key.a_port, packet.key.b_port, packet.way), (40000, 502, Way::FromA));
    assert_eq!((packet.ttl, packet.speech), (64, Speech::Request));
    assert_eq!(packet.odd, Oddity::None);
}

#[test]
fn the_answer_has_the_same_key_and_the_other_way() {
    let asked = read(&format!("{MACS} 0800 {SYN}"));
    let answer = "45000028 00010000 40060000 0a000002 0a000001 01f69c40 00000001 00000002 5012ffff 00000000";
    let answered = read(&format!("020000000001 020000000002 0800 {answer}"));
    assert_eq!(asked.key, answered.key);
    assert_eq!(answered.way, Way::FromB);
    assert_eq!(answered.speech, Speech::Response);
}

#[test]
fn tags_are_read_outer_first_and_a_priority_tag_is_untagged() {
    let double = read(&format!("{MACS} 88a8 0064 8100 200a 0800 {SYN}"));
    assert_eq!((double.key.vlan, double.key.customer_vlan, double.vlan_tags), (100, 10, 2));
    assert_eq!((double.frame_octets, double.ip_octets), (62, 40));
    let priority = read(&format!("{MACS} 8100 c000 0800 {SYN}"));
    assert_eq!((priority.key.vlan, priority.vlan_tags), (0, 1));
    assert_eq!(priority.key, read(&format!("{MACS} 0800 {SYN}")).key);
}

#[test]
fn an_ethertype_that_is_a_length_is_llc() {
    let stp = read("0180c2000000 020000000001 0026 424203 000000000080");
    assert_eq!((stp.key.kind, stp.key.detail, stp.key.protocol), (Kind::Llc as u8, 0x4242, 255));
    let arp = read(&format!("{MACS} 0806 0001080006040001"));
    assert_eq!((arp.key.kind, arp.key.detail, arp.ip_octets), (Kind::Layer2 as u8, 0x0806, 0));
}

#[test]
fn ip_that_makes_no_sense_is_still_a_conversation_of_two_macs() {
    for bad in ["35000028", "44000028", "4500", "45000010 00014000 40060000 0a000001 0a000002"] {
        let packet = read(&format!("{MACS} 0800 {bad}"));
        assert_eq!((packet.key.kind, packet.key.detail), (Kind::Layer2 as u8, 0x0800), "{bad}");
        assert_eq!(packet.odd, Oddity::BadIpHeader, "{bad}");
    }
}

#[test]
fn a_sliced_tcp_header_keeps_its_ports_and_says_so() {
    let packet = read(&format!("{MACS} 0800 45000028 00014000 40060000 0a000001 0a000002 9c4001f6 0000"));
    assert_eq!((packet.key.a_port, packet.key.b_port, packet.flags & TCP_FLAGS), (40000, 502, 0));
    assert_eq!(packet.odd, Oddity::BadTransportHeader);
}

#[test]
fn padding_is_no_transport_header() {
    // A first fragment of eight octets: ports and sequence number, then padding that looks like flags.
    let tiny = "4500001c 00012000 40060000 0a000001 0a000002 9c4001f6 00000001 ffffffffffffffffffffffffffffffffffff";
    let packet = read(&format!("{MACS} 0800 {tiny}"));
    assert_eq!((packet.frame_octets, packet.ip_octets), (60, 28));
    assert_eq!((packet.key.a_port, packet.flags & TCP_FLAGS), (40000, 0));
    assert_eq!(packet.odd, Oddity::BadTransportHeader);
    let empty = "60000000 0000 11 40 20010db8000000000000000000000001 20010db8000000000000000000000002";
    let packet = read(&format!("{MACS} 86dd {empty} 14e914e914e9"));
    assert_eq!((packet.key.a_port, packet.ip_octets, packet.odd), (0, 40, Oddity::BadTransportHeader));
}

#[test]
fn options_and_a_total_length_of_zero_are_understood() {
    let options = "46000020 00010000 40110000 0a000001 0a000002 94040000 0400 0035 0008 0000";
    assert_eq!(read(&format!("{MACS} 0800 {options}")).key.b_port, 53);
    let offloaded = read(&format!("{MACS} 0800 {}", SYN.replacen("45000028", "45000000", 1)));
    assert_eq!((offloaded.ip_octets, offloaded.odd), (40, Oddity::NoIpLength));
}

#[test]
fn extension_headers_are_followed_to_the_transport() {
    // Hop-by-hop, then a first fragment, then UDP.
    let header = "60000000 0018 00 40 20010db8000000000000000000000001 20010db8000000000000000000000002";
    let packet = read(&format!("{MACS} 86dd {header} 2c00010400000000 11000001 0000002a 14e9 14e9 0010 0000"));
    assert_eq!((packet.key.protocol, packet.key.a_port, packet.ip_octets), (protocol::UDP, 5353, 64));
    assert_eq!(packet.fragment.map(|f| (f.id, f.first, f.more)), Some((42, true, true)));
    // A later fragment names no ports, whatever its bytes look like.
    let later = read(&format!(
        "{MACS} 86dd {} 11000008 0000002a 14e9 14e9 0010 0000",
        header.replacen("001800", "00102c", 1).replacen("0018 00", "0010 2c", 1)
    ));
    assert_eq!((later.key.protocol, later.key.a_port), (protocol::UDP, 0));
    assert_eq!(later.fragment.map(|f| (f.id, f.first, f.offset)), Some((42, false, 8)));
}

#[test]
fn echo_request_and_reply_meet_but_two_pingers_do_not() {
    let echo = |kind: &str, ends: &str, id: &str| {
        read(&format!("{MACS} 0800 4500001c 00010000 40010000 {ends} {kind}00 0000 {id} 0001"))
    };
    let ask = echo("08", "0a000001 0a000002", "0007");
    let reply = echo("00", "0a000002 0a000001", "0007");
    assert_eq!(ask.key, reply.key);
    assert_eq!((ask.speech, reply.speech), (Speech::Request, Speech::Response));
    assert_ne!(ask.key, echo("08", "0a000001 0a000002", "0008").key);
    assert_eq!((ask.icmp_type_code, reply.icmp_type_code), (0x0800, 0));
}

#[test]
fn thirteen_bytes_are_no_frame() {
    assert_eq!(
        decode(&Frame::ethernet(&[0; 13], 13, Timestamp::NONE), &Rules::default(), &mut Around::default()),
        Err(Undecodable::Runt)
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(4096))]

    /// Whatever a frame holds: where the short way takes it, it says what the long way says.
    #[test]
    fn the_short_way_agrees_with_the_long_one(
        ethertype in proptest::sample::select(vec!["0800", "8100 0064 0800", "8100 e000 0800", "86dd", "88a8"]),
        v6: bool,
        octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 60),
        first in proptest::sample::select(vec![0x45, 0x46, 0x60, 0x6f]),
        protocol in proptest::sample::select(vec![6_u8, 17, 1, 58]),
        ports in proptest::sample::select(vec![[53_u16, 40_000], [40_000, 53], [1, 4789], [502, 502]]),
        length in 0_u16..90,
        twins: bool,
        trailer: bool,
        longer in 0_u32..40,
    ) {
        let mut ip = octets;
        ip[0] = first;
        let (length_at, protocol_at, addresses_at, width) = if v6 { (4, 6, 8, 16) } else { (2, 9, 12, 4) };
        ip[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        (ip[6], ip[7]) = if v6 { (ip[6], ip[7]) } else { (ip[6] & 0x40, 0) };
        ip[protocol_at] = protocol;
        let transport = if v6 { 40 } else { 20 };
        ip[transport..transport + 4].copy_from_slice(&[ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat());
        if twins {
            ip.copy_within(addresses_at..addresses_at + width, addresses_at + width);
        }
        let mut bytes = hex(&format!("{MACS} {ethertype}"));
        bytes.extend(ip);
        bytes.extend([0; 20]);
        if trailer {
            bytes.extend([0x88, 0xfb]);
        }
        let frame = Frame::ethernet(&bytes, bytes.len() as u32 + longer, Timestamp::from_secs(1));
        let (rules, hasher) = (Rules::default(), KeyHasher::fixed());
        let mut short = Update::NONE;
        let found = update_plain(&frame, &rules, &hasher, 0, &mut short);
        if found != Found::Other {
            let packet = decode_any(&frame, &rules, &mut Around::default()).expect("Ethernet");
            let long = Update::of(&packet, hasher.hash(&packet.key), 0);
            proptest::prop_assert_eq!(format!("{short:?}"), format!("{long:?}"));
            proptest::prop_assert_eq!(packet.encapsulations.is_empty(), found == Found::Untagged);
        }
    }
}
