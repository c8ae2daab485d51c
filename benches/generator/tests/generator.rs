//! What the generator says it sent is what arrives: as many frames, as fast, of as many conversations, as was asked for.

#[path = "../../../tests/support/netns.rs"]
mod netns;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use netns::{in_namespace, skip};
use spanwatch_common::time::Timestamp;
use spanwatch_generator::generator::{self, Counter, Sent};
use spanwatch_generator::namespace::{self, RECEIVER, SENDER};
use spanwatch_generator::traffic::{Encapsulation, Order, Shape, Size, Traffic};
use spanwatch_sensor::capture::settings::{Mode, Settings};
use spanwatch_sensor::capture::{self, Capture, Drained, Frame};
use spanwatch_sensor::decode::{Around, Rules, decode};

const SYN: u8 = 2;
const ACK: u8 = 16;

fn send(traffic: &Traffic) -> Sent {
    let sender = namespace::index(SENDER).expect("the sending interface");
    generator::send(traffic, sender, &AtomicBool::new(false)).expect("live frames")
}

/// What one frame says of its innermost conversation.
struct Seen {
    length: usize,
    source: ([u8; 4], u16),
    destination: ([u8; 4], u16),
    protocol: u8,
    flags: u8,
    sequence: u32,
    payload: u32,
    around: Around,
}

/// Sends `traffic`, and gives what a sensor's capture takes in of it. Where the inner headers begin, the sensor's decoder says; what
/// is in them is read here.
fn sent_and_seen(traffic: &Traffic) -> Vec<Seen> {
    let settings = Settings { interface: RECEIVER.into(), mode: Mode::AfXdp, ring_slots: 65_536, ..Settings::default() };
    let mut source = capture::open(&settings).expect("AF_XDP on veth").sources.remove(0);
    assert_eq!(send(traffic).frames, traffic.count);
    std::thread::sleep(Duration::from_millis(50));
    source.stop().expect("stop");
    let mut seen = Vec::new();
    let mut take = |frames: &[Frame<'_>]| seen.extend(frames.iter().map(|frame| read(frame.bytes)));
    while source.drain(Timestamp::from_secs(1), 256, &mut take).expect("drain") != Drained::Ended {}
    assert_eq!(seen.len() as u64, traffic.count);
    seen
}

fn read(bytes: &[u8]) -> Seen {
    let mut around = Around::default();
    let frame = Frame::ethernet(bytes, bytes.len() as u32, Timestamp::from_secs(1));
    let packet = decode(&frame, &Rules::default(), &mut around).expect("a frame of ours");
    let at = usize::from(packet.network_at);
    assert_eq!(sum(&bytes[at..at + 20]), 0xffff, "the checksum of the inner IPv4 header");
    if at > 18 {
        assert_eq!(sum(&bytes[14..34]), 0xffff, "the checksum of the outer IPv4 header");
        assert_eq!(usize::from(word(bytes, 16)), bytes.len() - 14, "the length in the outer IPv4 header");
    }
    let address = |at: usize| *bytes[at..].first_chunk().expect("an address");
    Seen {
        length: bytes.len(),
        source: (address(at + 12), word(bytes, at + 20)),
        destination: (address(at + 16), word(bytes, at + 22)),
        protocol: bytes[at + 9],
        flags: bytes[at + 33],
        sequence: u32::from_be_bytes(address(at + 24)),
        payload: u32::from(word(bytes, at + 2)) - 40,
        around,
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The ones' complement sum of RFC 1071; all ones over a header whose checksum is right.
fn sum(header: &[u8]) -> u32 {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(word(pair, 0))).sum();
    (sum & 0xffff) + (sum >> 16)
}

/// Frames of each client, to and from its server, which is whoever has port 502.
fn by_client(seen: &[Seen]) -> HashMap<([u8; 4], u16), [u64; 2]> {
    let mut found: HashMap<_, [u64; 2]> = HashMap::new();
    for frame in seen {
        let (way, client) = if frame.destination.1 == 502 { (0, frame.source) } else { (1, frame.destination) };
        found.entry(client).or_default()[way] += 1;
    }
    found
}

#[test]
fn every_frame_is_counted_where_it_is_sent_and_where_it_arrives() {
    in_namespace("every_frame_is_counted_where_it_is_sent_and_where_it_arrives", || {
        namespace::make_veth().expect("a veth pair");
        let counter = Counter::attach(namespace::index(RECEIVER).expect("its number")).expect("the counting program");
        let traffic = Traffic { count: 100_000, packets_per_sec: 50_000, flows: 10, ..Traffic::default() };
        let sent = send(&traffic);
        assert_eq!((sent.frames, sent.octets), (100_000, 6_000_000));
        assert_eq!(counter.seen().expect("counters"), (100_000, 6_000_000));
        assert_eq!(netns::counter(RECEIVER, "rx_packets"), 100_000);
        // 99,999 gaps of 20 µs. Never faster; slower only by what a busy machine holds up the last frame.
        let seconds = sent.took().as_secs_f64();
        assert!((1.9999..2.1).contains(&seconds), "100,000 frames at 50,000 a second took {seconds} s");

        // As fast as it goes the veth pair may be full now and then, and that shows as the difference.
        let sent = send(&Traffic { count: 300_000, ..Traffic::default() });
        assert_eq!(sent.frames, 300_000);
        let arrived = counter.seen().expect("counters").0 - 100_000;
        assert!(arrived <= 300_000);
        assert_eq!(arrived, netns::counter(RECEIVER, "rx_packets") - 100_000);
    });
}

#[test]
fn in_order_each_conversation_gets_its_share_both_ways_whatever_is_around_it() {
    in_namespace("in_order_each_conversation_gets_its_share_both_ways_whatever_is_around_it", || {
        namespace::make_veth().expect("a veth pair");
        let around = [
            (Encapsulation::None, 0, 0),
            (Encapsulation::Vlan, 4, 0),
            (Encapsulation::Vxlan, 50, 7777),
            (Encapsulation::Erspan, 50, 100),
        ];
        for (encapsulation, octets, number) in around {
            let traffic = Traffic {
                count: 9600,
                packets_per_sec: 50_000,
                flows: 1200,
                order: Order::InOrder,
                size: Size::Imix,
                encapsulation,
                ..Traffic::default()
            };
            let seen = sent_and_seen(&traffic);
            // Eight passes over 1200 conversations, every other one the other way.
            let conversations = by_client(&seen);
            assert_eq!(conversations.len(), 1200, "{encapsulation:?}");
            assert!(conversations.values().all(|ways| *ways == [4, 4]), "{encapsulation:?}");
            let of_length = |length: usize| seen.iter().filter(|frame| frame.length == length + octets).count();
            assert_eq!([of_length(60), of_length(590), of_length(1514)], [5600, 3200, 800], "7 : 4 : 1, {encapsulation:?}");
            for (frame, place) in seen.iter().zip(0..) {
                let Around { layer2_segment, erspan_session, erspan_sequence, .. } = frame.around;
                assert_eq!((layer2_segment & 0xff_ffff) + u64::from(erspan_session), number, "VNI or session, {encapsulation:?}");
                assert_eq!(erspan_sequence.unwrap_or(place), place, "ERSPAN without gaps");
            }
            let mut next = HashMap::new();
            for frame in &seen {
                let follows = next.insert((frame.source, frame.destination), frame.sequence + frame.payload);
                assert_eq!(follows.unwrap_or(frame.sequence), frame.sequence, "a gap or a repetition, {encapsulation:?}");
            }
        }
    });
}

#[test]
fn each_shape_is_what_it_is_called() {
    in_namespace("each_shape_is_what_it_is_called", || {
        namespace::make_veth().expect("a veth pair");
        let of = |shape, order, flows| {
            sent_and_seen(&Traffic { count: 10_000, packets_per_sec: 50_000, shape, order, flows, ..Traffic::default() })
        };
        let scan = of(Shape::Scan, Order::InOrder, 10_000);
        assert!(scan.iter().all(|frame| frame.source == ([203, 0, 113, 1], 40_000) && frame.flags == SYN));
        assert!(scan.windows(2).all(|pair| pair[0].destination.0 < pair[1].destination.0), "destinations rise");

        let flood = of(Shape::Flood, Order::InOrder, 10_000);
        assert!(flood.iter().all(|frame| frame.destination == ([198, 51, 100, 1], 502) && frame.flags == SYN));
        assert_eq!(by_client(&flood).len(), 10_000);

        let udp = of(Shape::Udp, Order::Random, 100);
        assert!(udp.iter().all(|frame| frame.protocol == 17));
        let conversations = by_client(&udp);
        assert_eq!(conversations.len(), 100);
        // 50 expected each way, with a standard deviation of 7.
        assert!(conversations.values().flatten().all(|frames| (8..=92).contains(frames)), "{conversations:?}");
    });
}

#[test]
fn the_marked_connection_is_interleaved_exactly_and_begins_with_a_handshake() {
    in_namespace("the_marked_connection_is_interleaved_exactly_and_begins_with_a_handshake", || {
        namespace::make_veth().expect("a veth pair");
        let order = Order::InOrder;
        let traffic = Traffic { count: 1000, packets_per_sec: 50_000, flows: 90, order, marked_one_in: 10, ..Traffic::default() };
        let seen = sent_and_seen(&traffic);
        let marked: Vec<&Seen> = seen.iter().step_by(10).collect();
        assert!(marked.iter().all(|frame| [frame.source.0, frame.destination.0].contains(&[203, 0, 113, 7])));
        let flags: Vec<u8> = marked.iter().take(3).map(|frame| frame.flags).collect();
        assert_eq!(flags, [SYN, SYN | ACK, ACK]);
        let mut conversations = by_client(&seen);
        assert_eq!(conversations.remove(&([203, 0, 113, 7], 50_000)), Some([50, 50]));
        assert_eq!(conversations.len(), 90);
        assert!(conversations.values().all(|ways| *ways == [5, 5]));
    });
}

/// The program itself, with output to be read.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanwatch-generator"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Network namespaces that some process is in.
fn namespaces() -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter_map(|process| fs::read_link(process.path().join("ns/net")).ok()).collect()
}

#[test]
fn the_program_leaves_nothing_behind_even_when_it_is_interrupted() {
    if !Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|status| status.success()) {
        return skip("no network namespace can be made here");
    }
    let output = program(&["--count", "1000", "--flows", "10"]).output().expect("the program");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(report["sent"]["frames"], 1000);
    assert_eq!(report["received"], report["received_by_veth"]);

    let here = fs::read_link("/proc/self/ns/net").expect("our namespace");
    let mut child = program(&["--count", "10000000", "--packets-per-sec", "1000"]).spawn().expect("the program");
    let link = format!("/proc/{}/ns/net", child.id());
    let mut its = here.clone();
    for _ in 0..500 {
        std::thread::sleep(Duration::from_millis(10));
        its = fs::read_link(&link).expect("it runs for hours");
        if its != here {
            break;
        }
    }
    assert_ne!(its, here, "it runs in a namespace of its own");
    std::thread::sleep(Duration::from_millis(300));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    assert!(!child.wait().expect("it ends").success(), "it was interrupted");
    assert!(!namespaces().contains(&its), "nobody is left in its namespace");
}
