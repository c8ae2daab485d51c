//! The wire format, version 1: an old batch decodes for ever, encoding and decoding are each other's inverse, and nothing
//! that arrives damaged or boastful is believed.
//!
//! The golden files hold frames as the release wrote them that first knew their fields. They are never written anew for a changed encoder: a sensor
//! in the field will not be changed either. To add one for a *new* case, run with `WRITE_GOLDEN=1`; files that exist stay.

use std::path::PathBuf;

use proptest::prelude::*;
use spanwatch_common::element::{Access, ELEMENTS};
use spanwatch_common::encapsulation::Encapsulations;
use spanwatch_common::flow::{BiflowDirection, FlowEndReason, FlowRecord, FlowState, LAYER2, protocol, segment, tcp};
use spanwatch_common::health::{Health, PortHealth};
use spanwatch_common::ledger::Ledger;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::{
    self, Ack, Batch, FRAME_LEN_MAX, HEADER_LEN, Hello, Message, PLAIN_LEN_MAX, PLAIN_RATIO_MAX, Reject, RejectCode, Stats,
    Welcome, WireError,
};

fn encode(message: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    wire::encode(message, &mut frame).unwrap();
    frame
}

fn decode(frame: &[u8]) -> Result<Message, WireError> {
    match wire::decode(frame)? {
        Some((message, length)) => {
            assert_eq!(length, frame.len());
            Ok(message)
        }
        None => panic!("the frame is whole"),
    }
}

/// A web request over IPv4, a ping over IPv6 that nobody answered, and a layer-2 conversation.
fn records() -> Vec<FlowRecord> {
    let at = |nanos: i64| Timestamp::from_nanos(1_790_000_000_000_000_000 + nanos);
    let web = FlowRecord {
        flow_id: u64::MAX,
        state: FlowState::End,
        end_reason: FlowEndReason::EndOfFlow,
        biflow_direction: BiflowDirection::Initiator,
        observation_point: 1,
        ingress_interface: 7,
        ethernet_type: 0x0800,
        vlan: 100,
        customer_vlan: 4094,
        vlan_tags: 2,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: Address::from_v4([10, 77, 0, 1]),
        destination: Address::from_v4([192, 0, 2, 80]),
        source_port: 65535,
        destination_port: 443,
        protocol: protocol::TCP,
        class_of_service: [0, 0xb8],
        fragment_flags: [0x40, 0x40],
        packets: [10, 12],
        octets: [1_500, 1 << 40],
        layer2_octets: [1_640, (1 << 40) + 168],
        start: [at(0), at(310_000)],
        end: [at(2_000_000_001), at(2_000_500_000)],
        tcp_flags: [tcp::SYN | tcp::ACK | tcp::FIN, tcp::SYN | tcp::ACK | tcp::FIN | tcp::PSH],
        initial_tcp_flags: [tcp::SYN, tcp::SYN | tcp::ACK],
        ttl_min: [64, 57],
        ttl_max: [64, 58],
        ip_len_min: [40, 40],
        ip_len_max: [600, 1500],
        ..FlowRecord::default()
    };
    let ping = FlowRecord {
        flow_id: 1,
        state: FlowState::Begin,
        ethernet_type: 0x86dd,
        source: Address::from_v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        destination: Address::from_v6([0xfe; 16]),
        protocol: protocol::ICMPV6,
        icmp_type_code: [128 << 8, 0],
        start: [at(5), Timestamp::NONE],
        end: [at(5), Timestamp::NONE],
        ttl_min: [255, 0],
        ttl_max: [255, 0],
        ..FlowRecord::default()
    };
    let goose = FlowRecord {
        flow_id: 2,
        state: FlowState::Continue,
        end_reason: FlowEndReason::ActiveTimeout,
        ethernet_type: 0x88b8,
        source_mac: [2, 0, 0, 0, 0, 3],
        destination_mac: [1, 0x0c, 0xcd, 1, 0, 1],
        protocol: LAYER2,
        packets: [60_000, 0],
        layer2_octets: [60_000 * 150, 0],
        start: [Timestamp::from_nanos(-1), Timestamp::NONE],
        end: [at(60_000_000_000), Timestamp::NONE],
        ..FlowRecord::default()
    };
    vec![web, ping, goose]
}

/// What came through a mirror's tunnel, a layer-2 conversation with its instance, ARP, and everything that is counted of TCP.
fn encapsulated() -> Vec<FlowRecord> {
    let [web, _, goose] = <[FlowRecord; 3]>::try_from(records()).unwrap();
    let mirrored = FlowRecord {
        encapsulations: Encapsulations::from_names("vlan+svlan+mpls+erspan3+vxlan").unwrap(),
        layer2_segment: segment::id(segment::VXLAN, 0x00ab_cdef),
        mpls_top_label: 0x00ff_ff1f,
        tunnel: [Address::from_v4([192, 0, 2, 1]), Address::from_v6([0xfd; 16])],
        erspan_session: 1023,
        erspan_vlan: 4094,
        answered: true,
        tcp_handshake: [310_000, u32::MAX],
        tcp_retransmissions: [1, 2],
        tcp_out_of_order: [3, 4],
        tcp_zero_windows: [5, 6],
        tcp_missed_octets: [14_600, 1 << 40],
        icmp_error: [0x0304, 0x0b00],
        ..web
    };
    let arp = FlowRecord {
        ethernet_type: 0x0806,
        arp: [Address::from_v4([192, 0, 2, 7]), Address::from_v4([192, 0, 2, 1])],
        answered: true,
        ..goose.clone()
    };
    vec![mirrored, FlowRecord { layer2_instance: 0x3fff, ..goose }, arp]
}

/// Two capture ports, of which one has seen everything that there is to see.
fn ports() -> Vec<PortHealth> {
    let health = Health {
        packets: 1_000_001,
        octets: 900_000_000,
        group_packets: 2,
        sliced: 3,
        dropped: 4,
        examined: 500_005,
        duplicate_copy: 6,
        duplicate_routed: 7,
        duplicate_redundant: 8,
        deduplicating: 1,
        tcp_flows: 10,
        tcp_flows_one_way: 9,
        tcp_octets: 1 << 40,
        missed_octets: 12,
        unknown_encapsulation: 13,
        erspan_packets: 15,
        erspan_gaps: 14,
        encapsulations: std::array::from_fn(|bit| bit as u64 * 1_000),
        ..Health::default()
    };
    let quiet = PortHealth { observation_point: 2, interface: "eno3".to_owned(), health: Health::default() };
    vec![PortHealth { observation_point: 1, interface: "eno2".to_owned(), health }, quiet]
}

fn ledger() -> Ledger {
    let mut ledger = Ledger { wire: 60_025, delivered: 60_024, metered: 60_023, exported: 60_022, live: 1, ..Ledger::default() };
    ledger.dropped.ring_full = 1;
    ledger.ignored.runt = 1;
    ledger.queued = 60_022;
    ledger.flows.records = 3;
    ledger.flows.records_queued = 3;
    ledger.odd.late = 4;
    ledger
}

fn batch(records: Vec<FlowRecord>) -> Message {
    Message::Data(Batch { sensor: "plant1".to_owned(), boot: 1_790_000_000_000_000_001, sequence: 42, ledger: ledger(), records })
}

/// One message of each kind, a batch too long to go uncompressed, and what the second release added.
fn golden() -> Vec<(&'static str, Message)> {
    let many = (0..1000_u64).map(|n| {
        let ip = 0x0a4d_0000 + (n as u32 % 250);
        FlowRecord { flow_id: n, source: Address::from_v4(ip.to_be_bytes()), destination_port: n as u16, ..records()[0].clone() }
    });
    let software = "spanwatch-sensor 0.1.0".to_owned();
    vec![
        ("hello", Message::Hello(Hello { version: 1, sensor: "plant1".to_owned(), boot: 7, next: 3, software, batch_form: 0 })),
        ("welcome", Message::Welcome(Welcome { version: 1, resume_after: 2, credit: 256, batch_form: 0 })),
        ("data_kinds", batch(records())),
        ("data_empty", batch(Vec::new())),
        ("data_many", batch(many.collect())),
        ("ack", Message::Ack(Ack { boot: 7, up_to: 42 })),
        (
            "stats",
            Message::Stats(Stats { boot: 7, ledger: ledger(), capture: "af_xdp native copy".to_owned(), ports: Vec::new() }),
        ),
        ("data_encapsulated", batch(encapsulated())),
        (
            "stats_ports",
            Message::Stats(Stats { boot: 7, ledger: ledger(), capture: "af_xdp native copy".to_owned(), ports: ports() }),
        ),
        ("reject", Message::Reject(Reject { code: RejectCode::Superseded, reason: "another has taken over".to_owned() })),
    ]
}

#[test]
fn what_any_release_wrote_is_read_for_ever() {
    for (name, message) in golden() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/wire_v1_{name}.bin"));
        if std::env::var_os("WRITE_GOLDEN").is_some() && !path.exists() {
            std::fs::write(&path, encode(&message)).unwrap();
        }
        let frame = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(decode(&frame).unwrap(), message, "{name}");
    }
}

#[test]
fn a_batch_from_a_newer_sensor_is_read_as_far_as_it_is_known() {
    // A column and a key that nobody knows yet, and without most columns: {sensor, boot, seq, rows: 2, columns: [destinationPort, ?], later: 5}.
    let port = ELEMENTS.iter().find(|element| element.name == "destinationTransportPort").unwrap().number();
    let mut body = vec![0x92, 3, 0x86];
    for (key, value) in [("boot", 9_u8), ("seq", 1), ("rows", 2), ("later", 5)] {
        body.push(0xa0 | key.len() as u8);
        body.extend_from_slice(key.as_bytes());
        body.push(value);
    }
    body.extend_from_slice(b"\xa6sensor\xa2p1");
    body.extend_from_slice(b"\xa7columns\x92");
    for (element, values) in [(port, [1_u8, 3]), (0x7fff_ffff_ffff, [9, 9])] {
        body.extend_from_slice(b"\x84\xa1e\xcf");
        body.extend_from_slice(&element.to_be_bytes());
        body.extend_from_slice(b"\xa1w\x01\xa1b\xcd\x01\xf4\xa1v\xc4\x02");
        body.extend_from_slice(&values);
    }
    match decode(&framed(&body)).unwrap() {
        Message::Data(batch) => {
            assert_eq!((batch.sensor.as_str(), batch.boot, batch.sequence), ("p1", 9, 1));
            assert_eq!(batch.records.iter().map(|record| record.destination_port).collect::<Vec<_>>(), [501, 503]);
        }
        other => panic!("a batch, not {other:?}"),
    }
}

#[test]
fn an_account_from_a_newer_sensor_is_read_as_far_as_it_is_known() {
    // {boot: 9, later: 5, ports: [{interface: "p", later: 5, health: {packets: 7, later: 5, encapsulations: [0, 1, …, 40]}}]}
    let mut body = b"\x92\x05\x83\xa4boot\x09\xa5later\x05\xa5ports\x91\x83\xa9interface\xa1p\xa5later\x05".to_vec();
    body.extend_from_slice(b"\xa6health\x83\xa7packets\x07\xa5later\x05\xaeencapsulations\xdc\x00\x29");
    body.extend(0..41);
    match decode(&framed(&body)).unwrap() {
        Message::Stats(Stats { boot: 9, ports, .. }) => {
            assert_eq!((ports.len(), &*ports[0].interface, ports[0].health.packets), (1, "p", 7));
            assert!(ports[0].health.encapsulations.iter().enumerate().all(|(bit, count)| bit as u64 == *count));
        }
        other => panic!("an account, not {other:?}"),
    }
}

/// `body` as an uncompressed frame.
fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    [&length[..], &[0], &length, &crc32c(body).to_le_bytes(), body].concat()
}

/// CRC-32C bit by bit (polynomial 0x1EDC6F41, reflected; RFC 9260 appendix A), as a second opinion.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[test]
fn every_bit_that_changes_on_the_way_is_noticed() {
    let frame = encode(&batch(records()));
    for bit in 0..frame.len() * 8 {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match wire::decode(&damaged) {
            Err(_) => {}
            // The length says that more is to come: a receiver waits, and its time limit ends it.
            Ok(None) => assert!(bit < 32, "bit {bit}"),
            // The announced plain length is only a limit for an uncompressed body; its own length is what counts.
            Ok(Some((message, _))) => {
                assert!((40..72).contains(&bit) && frame[4] == 0, "bit {bit}");
                assert_eq!(message, batch(records()));
            }
        }
    }
}

#[test]
fn a_frame_cut_anywhere_is_incomplete_and_never_a_message() {
    let frame = encode(&batch(records()));
    for length in 0..frame.len() {
        assert!(matches!(wire::decode(&frame[..length]), Ok(None)), "{length} of {} bytes", frame.len());
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused_from_the_header_alone() {
    let header = |length: usize, codec: u8, plain: usize| {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        bytes[4] = codec;
        bytes[5..9].copy_from_slice(&u32::try_from(plain).unwrap().to_le_bytes());
        wire::Header::parse(&bytes)
    };
    assert!(header(FRAME_LEN_MAX, 1, PLAIN_LEN_MAX).is_ok());
    assert!(matches!(header(FRAME_LEN_MAX + 1, 1, PLAIN_LEN_MAX), Err(WireError::TooLong { .. })));
    assert!(matches!(header(FRAME_LEN_MAX, 1, PLAIN_LEN_MAX + 1), Err(WireError::TooLong { .. })));
    assert!(matches!(header(100, 1, 100 * PLAIN_RATIO_MAX + 1), Err(WireError::TooLong { .. })), "a bomb");
    assert!(matches!(header(100, 2, 100), Err(WireError::Codec(2))));
}

/// Any record at all: every field set to any value that its type holds.
fn any_record() -> impl Strategy<Value = FlowRecord> {
    let words = prop::collection::vec(prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>(), 0..1000_u64], ELEMENTS.len());
    (words, any::<u128>()).prop_map(|(words, high)| {
        let mut record = FlowRecord::default();
        for (element, word) in ELEMENTS.iter().zip(words) {
            match element.access {
                Access::Word(_, set) => set(&mut record, word),
                Access::Wide(_, set) => set(&mut record, high ^ u128::from(word)),
            }
        }
        record
    })
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(records in prop::collection::vec(any_record(), 0..40)) {
        let message = batch(records);
        prop_assert_eq!(decode(&encode(&message)).unwrap(), message);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = wire::decode(&bytes);
        // The same as the body of a frame whose header is right.
        let _ = wire::decode(&framed(&bytes));
    }

    #[test]
    fn a_mutated_message_with_a_right_checksum_is_an_error_or_a_message(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let frame = encode(&Message::Stats(Stats { boot: 7, ledger: ledger(), capture: String::new(), ports: Vec::new() }));
        let small = encode(&Message::Ack(Ack { boot: 7, up_to: 9 }));
        for mut frame in [frame, small] {
            if frame[4] == 0 {
                let body = frame.len() - HEADER_LEN;
                frame[HEADER_LEN + place.index(body)] = byte;
                let crc = crc32c(&frame[HEADER_LEN..]);
                frame[9..13].copy_from_slice(&crc.to_le_bytes());
                let _ = wire::decode(&frame);
            }
        }
    }
}
