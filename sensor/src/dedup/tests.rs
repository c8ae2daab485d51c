use spanwatch_common::encapsulation::Encapsulations;

use super::*;
use crate::capture::Frame;
use crate::decode::{Rules, decode};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")).collect()
}

const MACS: &str = "020000000002 020000000001";
/// 192.0.2.1:40000 > 192.0.2.2:502, ACK with twelve octets of Modbus, total length 52, TTL 64.
const POLL: &str =
    "0800 45000034 12344000 40060000 c0000201 c0000202 9c4001f6 00000001 00000001 5010ffff abcd0000 000100000006 010300000002";
/// The same behind a router: TTL 63, header checksum and DSCP others.
const POLL_ROUTED: &str =
    "0800 45b80034 12344000 3f060148 c0000201 c0000202 9c4001f6 00000001 00000001 5010ffff abcd0000 000100000006 010300000002";
/// 2001:db8::1 > 2001:db8::2, UDP with four octets, hop limit 64.
const V6: &str =
    "86dd 60012345 000c1140 20010db8000000000000000000000001 20010db8000000000000000000000002 14e914e9 000cbeef 01020304";
const V6_ROUTED: &str =
    "86dd 6b812345 000c113f 20010db8000000000000000000000001 20010db8000000000000000000000002 14e914e9 000cbeef 01020304";
/// The same datagram with another flow label.
const V6_RELABELLED: &str =
    "86dd 60012346 000c1140 20010db8000000000000000000000001 20010db8000000000000000000000002 14e914e9 000cbeef 01020304";
/// GOOSE, APPID 1; the last octets are sqNum 7 and the rest of a short PDU.
const GOOSE: &str = "88b8 00010020 00000000 6116 800361626381 01ff 8201 01 8501 01 8601 07 a203 830101";
const GOOSE_NEXT: &str = "88b8 00010020 00000000 6116 800361626381 01ff 8201 01 8501 01 8601 08 a203 830101";

/// A dedup at work, fed with frames as text.
struct Port(Dedup);

impl Port {
    fn new(mode: DedupMode) -> Self {
        Self(Dedup::new(mode, 2000, &KeyHasher::fixed()))
    }

    fn sees(&mut self, micros: i64, frame: &str) -> Option<Cause> {
        self.sees_around(micros, frame, Encapsulations::NONE, None)
    }

    fn sees_around(&mut self, micros: i64, frame: &str, kinds: Encapsulations, twin: Option<Redundancy>) -> Option<Cause> {
        let bytes = hex(frame);
        let at = Timestamp::from_nanos(1_700_000_000_000_000_000 + micros * 1000);
        let mut around = Around::default();
        let frame = Frame::ethernet(&bytes, bytes.len() as u32, at);
        let packet = decode(&frame, &Rules::default(), &mut around).expect("an Ethernet frame");
        let packet = Packet { encapsulations: kinds, ..packet };
        self.0.removes(&bytes, &packet, &Around { redundancy: twin, ..around })
    }
}

/// What the second of two frames is, so many microseconds after the first.
fn second(first: &str, micros: i64, then: &str) -> Option<Cause> {
    let mut port = Port::new(DedupMode::On);
    assert_eq!(port.sees(0, first), None, "a first sight");
    port.sees(micros, then)
}

#[test]
fn copies_are_found_however_the_mirror_made_them() {
    let exact = format!("{MACS} {POLL}");
    assert_eq!(second(&exact, 3, &exact), Some(Cause::Copy));
    assert_eq!(second(&exact, 2, &format!("{MACS} 8100 0078 {POLL}")), Some(Cause::Copy), "tagged");
    assert_eq!(second(&exact, 3, &format!("{exact} 000000000000 aabbccdd")), Some(Cause::Copy), "padding and FCS");
    assert_eq!(second(&exact, 5, &format!("020000000004 020000000003 {POLL_ROUTED}")), Some(Cause::Routed));
    assert_eq!(second(&format!("{MACS} {V6}"), 5, &format!("020000000004 020000000003 {V6_ROUTED}")), Some(Cause::Routed));
    assert_eq!(
        second(&format!("{MACS} {GOOSE}"), 3, &format!("{MACS} 8100 8001 {GOOSE} 0000")),
        Some(Cause::Copy),
        "padded anew"
    );
}

#[test]
fn what_differs_where_no_switch_or_router_writes_is_another_packet() {
    let poll = format!("{MACS} {POLL}");
    for (octet, what) in
        [(4, "identification"), (15, "source address"), (24, "sequence number"), (51, "the last octet of payload")]
    {
        let mut other = hex(&poll);
        other[14 + octet] ^= 1;
        let other: String = other.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(second(&poll, 3, &other), None, "{what}");
    }
    assert_eq!(second(&format!("{MACS} {V6}"), 3, &format!("{MACS} {V6_RELABELLED}")), None, "flow label");
    assert_eq!(second(&format!("{MACS} {GOOSE}"), 3, &format!("{MACS} {GOOSE_NEXT}")), None, "sqNum");
    assert_eq!(second(&format!("{MACS} {GOOSE}"), 3, &format!("020000000002 020000000003 {GOOSE}")), None, "another publisher");
}

#[test]
fn the_window_ends_where_the_setting_says_in_both_directions() {
    let poll = format!("{MACS} {POLL}");
    assert_eq!(second(&poll, 2_000, &poll), Some(Cause::Copy));
    assert_eq!(second(&poll, 2_001, &poll), None);
    assert_eq!(second(&poll, -2_000, &poll), Some(Cause::Copy), "the copy overtook the original");
    assert_eq!(second(&poll, -2_001, &poll), None);
    assert_eq!(second(&poll, 250_000, &poll), None, "a retransmission");
}

#[test]
fn a_poll_that_repeats_for_ever_counts_each_time_and_its_copies_never() {
    let mut port = Port::new(DedupMode::On);
    let poll = format!("{MACS} {POLL}");
    for round in 0..1_000 {
        assert_eq!(port.sees(round * 2_500, &poll), None, "round {round}");
        assert_eq!(port.sees(round * 2_500 + 3, &poll), Some(Cause::Copy), "round {round}");
    }
}

#[test]
fn a_packet_has_three_copies_at_most_so_that_a_flood_stays_visible() {
    let mut port = Port::new(DedupMode::On);
    let counted = (0..1_000).filter(|n| port.sees(*n, &format!("{MACS} {POLL}")).is_none()).count();
    assert_eq!(counted, 250);
}

#[test]
fn twins_have_the_same_sequence_another_path_and_four_hundred_milliseconds() {
    for kind in [Encapsulation::Hsr, Encapsulation::Prp] {
        for frame in [format!("{MACS} {POLL}"), format!("{MACS} {GOOSE} 000000000000 aabb0000")] {
            let twin = |micros, sequence, path| {
                let mut port = Port::new(DedupMode::On);
                let around = Encapsulations::NONE.with(kind);
                assert_eq!(port.sees_around(0, &frame, around, Some(Redundancy { sequence: 7, path: 0xa })), None);
                port.sees_around(micros, &frame, around, Some(Redundancy { sequence, path }))
            };
            assert_eq!(twin(400_000, 7, 0xb), Some(Cause::Redundant));
            assert_eq!(twin(400_001, 7, 0xb), None);
            assert_eq!(twin(3, 7, 0xa), Some(Cause::Copy), "the mirror's doing");
            assert_eq!(twin(3, 8, 0xb), None, "the next frame");
        }
    }
}

#[test]
fn a_prp_trailer_and_the_fcs_behind_it_may_differ_between_twins() {
    let prp = Encapsulations::NONE.with(Encapsulation::Prp);
    let mut port = Port::new(DedupMode::On);
    let lan = |lan: &str, fcs: &str| format!("{MACS} {GOOSE} 0007 {lan}030 88fb {fcs}");
    let around = |path| Some(Redundancy { sequence: 7, path });
    assert_eq!(port.sees_around(0, &lan("a", "01020304"), prp, around(0xa)), None);
    assert_eq!(port.sees_around(9, &lan("b", "05060708"), prp, around(0xb)), Some(Cause::Redundant));
}

#[test]
fn off_counts_everything_and_auto_counts_what_it_finds_until_there_is_much_of_it() {
    let poll = format!("{MACS} {POLL}");
    let mut off = Port::new(DedupMode::Off);
    assert_eq!((off.sees(0, &poll), off.sees(3, &poll)), (None, None));
    assert_eq!(off.0.counts(), Counts::default());

    let mut auto = Port::new(DedupMode::Auto);
    let mut removed_first = None;
    for millis in 0..20_000 {
        auto.sees(millis * 1_000, &format!("{MACS} {POLL}"));
        if auto.sees(millis * 1_000 + 3, &poll).is_some() && removed_first.is_none() {
            removed_first = Some(millis);
        }
        if millis == 500 {
            let counts = auto.0.counts();
            assert!(counts.examined > 100 && counts.copies[Cause::Copy as usize] > 50, "found from the start: {counts:?}");
        }
    }
    let first = removed_first.expect("removal begins");
    assert!((10_000..11_200).contains(&first), "after {first} ms");
    assert!(auto.0.is_removing());
}

#[test]
fn a_table_that_is_full_of_newer_packets_takes_nothing_for_a_copy() {
    let mut port = Port::new(DedupMode::On);
    let poll = |id: u32| format!("{MACS} {}", POLL.replace("00000001 5010", &format!("{id:08x} 5010")));
    // Eight packets for each place, all within the window.
    for id in 0..8 * PLACES as u32 {
        assert_eq!(port.sees(0, &poll(id)), None, "packet {id}");
    }
    assert_eq!(port.sees(3, &poll(8 * PLACES as u32 - 1)), Some(Cause::Copy), "the newest is still there");
}
