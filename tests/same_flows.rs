//! The same frames give the same flows, whether they come from a file or through AF_XDP from a wire.

#[path = "support/netns.rs"]
mod netns;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netns::{counter, in_namespace, mirror_port, skip};
use spanwatch_common::flow::{FlowEndReason, FlowRecord, FlowState};
use spanwatch_common::ledger::Ledger;
use spanwatch_common::time::Timestamp;
use spanwatch_sensor::capture::file::File;
use spanwatch_sensor::capture::settings::{Mode, Settings};
use spanwatch_sensor::capture::{Capture, Drained, Link, open};
use spanwatch_sensor::flow_table::{KeyHasher, Observer, Records};
use spanwatch_sensor::live::LiveWorker;
use spanwatch_sensor::replay::replay;
use spanwatch_sensor::worker::{MeterSettings, Worker};

/// One conversation: packets, sizes, flags, ports, addresses and tags each way, added up over its records. Times and what
/// follows from them are left out.
fn conversations(records: &[FlowRecord]) -> Vec<FlowRecord> {
    let mut flows: BTreeMap<u64, FlowRecord> = BTreeMap::new();
    for record in records {
        let timeless = FlowRecord {
            flow_id: 0,
            state: FlowState::default(),
            end_reason: FlowEndReason::default(),
            ingress_interface: 0,
            start: [Timestamp::NONE; 2],
            end: [Timestamp::NONE; 2],
            // A round trip is time, and reordering is told from retransmission by it.
            tcp_handshake: [0; 2],
            tcp_retransmissions: [0; 2],
            tcp_out_of_order: [0; 2],
            tcp_missed_octets: [0; 2],
            ..record.clone()
        };
        let Some(flow) = flows.get_mut(&record.flow_id) else {
            flows.insert(record.flow_id, timeless);
            continue;
        };
        flow.answered |= timeless.answered;
        for way in 0..2 {
            flow.tcp_zero_windows[way] += timeless.tcp_zero_windows[way];
            flow.icmp_error[way] = flow.icmp_error[way].max(timeless.icmp_error[way]);
            // What has not been seen on a way yet is zero in an earlier record.
            if flow.packets[way] == 0 {
                flow.icmp_type_code[way] = timeless.icmp_type_code[way];
                flow.class_of_service[way] = timeless.class_of_service[way];
                flow.initial_tcp_flags[way] = timeless.initial_tcp_flags[way];
                flow.ttl_min[way] = timeless.ttl_min[way];
                flow.ip_len_min[way] = timeless.ip_len_min[way];
            } else if timeless.packets[way] > 0 {
                flow.ttl_min[way] = flow.ttl_min[way].min(timeless.ttl_min[way]);
                flow.ip_len_min[way] = flow.ip_len_min[way].min(timeless.ip_len_min[way]);
            }
            flow.packets[way] += timeless.packets[way];
            flow.octets[way] += timeless.octets[way];
            flow.layer2_octets[way] += timeless.layer2_octets[way];
            flow.tcp_flags[way] |= timeless.tcp_flags[way];
            flow.fragment_flags[way] |= timeless.fragment_flags[way];
            flow.ttl_max[way] = flow.ttl_max[way].max(timeless.ttl_max[way]);
            flow.ip_len_max[way] = flow.ip_len_max[way].max(timeless.ip_len_max[way]);
        }
    }
    let mut flows: Vec<FlowRecord> = flows.into_values().collect();
    flows.sort_by_cached_key(|flow| format!("{flow:?}"));
    flows
}

/// The frames of a capture file; `None` when they cannot be sent as they are: not Ethernet, cut short, too short
/// or too long for the wire, or spread over more than a second, so that timeouts would come between.
fn sendable(path: &Path) -> Option<Vec<Vec<u8>>> {
    let mut file = File::open(path).ok()?;
    let (mut sent, mut first, mut last, mut good) = (Vec::new(), None, Timestamp::NONE, true);
    loop {
        let drained = file.drain(Timestamp::NONE, 64, |frames| {
            frames.iter().for_each(|frame| {
                good &= frame.link == Link::Ethernet
                    && frame.bytes.len() == frame.wire_len as usize
                    && (14..=1514).contains(&frame.bytes.len());
                last = last.max(frame.at);
                first.get_or_insert(frame.at);
                sent.push(frame.bytes.to_vec());
            })
        });
        match drained {
            Ok(Drained::Frames(_)) => {}
            Ok(Drained::Ended) => break,
            Err(_) => return None,
        }
    }
    (good && !sent.is_empty() && last.since(first?) < Duration::from_secs(1)).then_some(sent)
}

fn replayed(path: &Path) -> (Vec<FlowRecord>, Ledger) {
    let mut records = Vec::new();
    let gather = |new: &Records| {
        records.extend(new.iter());
        Ok(())
    };
    let mut file = File::open(path).expect("a capture file");
    let replayed = replay(&mut file, &MeterSettings::default(), gather, |_| {}).expect("memory for the table");
    (records, replayed.ledger)
}

/// Sends the frames into `gen0` and meters what AF_XDP takes from `mon0`, with the loop of the real sensor.
fn metered_live(frames: &[Vec<u8>]) -> (Vec<FlowRecord>, Ledger) {
    let settings = Settings { interface: "mon0".into(), mode: Mode::AfXdp, ring_slots: 4096, ..Settings::default() };
    let source = open(&settings).expect("AF_XDP").sources.pop().expect("one queue");
    let before = counter("mon0", "rx_packets");
    let observer = Observer { observation_point: 1, ..Observer::default() };
    let worker = Worker::new(&MeterSettings::default(), KeyHasher::fixed(), observer).expect("memory for the table");
    let (harvests, harvested) = crossbeam::channel::unbounded();
    let stop = Arc::new(AtomicBool::new(false));
    let live = LiveWorker::new(0, source, worker, harvests, Arc::clone(&stop));
    let thread = std::thread::spawn(move || live.run());
    let mut port = pcap::Capture::from_device("gen0").expect("a name").open().expect("a sender");
    for frame in frames {
        port.sendpacket(frame.as_slice()).expect("room to send");
    }
    for _ in 0..5000 {
        if counter("mon0", "rx_packets") - before == frames.len() as u64 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("no panic").expect("a capture to the end");
    let (mut records, mut ledger) = (Vec::new(), Ledger::default());
    for harvest in harvested {
        records.extend(harvest.records.iter());
        ledger = harvest.ledger;
    }
    (records, ledger)
}

fn compare(path: &Path, frames: &[Vec<u8>]) {
    let (from_file, file_ledger) = replayed(path);
    let (from_wire, wire_ledger) = metered_live(frames);
    let name = path.display();
    assert_eq!(wire_ledger.wire, frames.len() as u64, "{name}: every frame was counted on the wire");
    assert_eq!((wire_ledger.delivered, wire_ledger.dropped.total()), (frames.len() as u64, 0), "{name}");
    assert_eq!((wire_ledger.metered, wire_ledger.ignored), (file_ledger.metered, file_ledger.ignored), "{name}");
    assert_eq!(wire_ledger.odd, file_ledger.odd, "{name}");
    assert_eq!(conversations(&from_wire), conversations(&from_file), "{name}");
}

/// Whether AF_XDP is to be had here.
fn af_xdp_works() -> bool {
    let settings = Settings { interface: "mon0".into(), mode: Mode::AfXdp, ring_slots: 64, ..Settings::default() };
    open(&settings).map_err(|error| skip(&error.to_string())).is_ok()
}

/// An IPv4 packet in an Ethernet frame; `header` is that of TCP or UDP. Checksums are left zero: the sensor does not read them.
fn ipv4(from: u8, to: u8, protocol: u8, header: &[u8], payload: usize) -> Vec<u8> {
    let total = (20 + header.len() + payload) as u16;
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x08, 0x00];
    frame.extend([0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
    frame.extend(header);
    frame.resize(frame.len() + payload, 0x55);
    frame.resize(frame.len().max(60), 0);
    frame
}

fn tcp(from: u8, to: u8, ports: [u16; 2], flags: u8, payload: usize) -> Vec<u8> {
    let [a, b] = ports.map(u16::to_be_bytes);
    ipv4(from, to, 6, &[a[0], a[1], b[0], b[1], 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0], payload)
}

/// A short office day: web conversations, name look-ups, a scan, and two switches greeting each other.
fn office() -> Vec<Vec<u8>> {
    let [fin, syn, rst, psh, ack] = [1, 2, 4, 8, 16];
    let mut frames = Vec::new();
    for n in 0..40_u16 {
        let (out, back) = ([40_000 + n, 443], [443, 40_000 + n]);
        frames.push(tcp(1, 2, out, syn, 0));
        frames.push(tcp(2, 1, back, syn | ack, 0));
        frames.push(tcp(1, 2, out, psh | ack, 300 + usize::from(n)));
        frames.push(tcp(2, 1, back, psh | ack, 1_400));
        frames.push(tcp(1, 2, out, fin | ack, 0));
        frames.push(tcp(2, 1, back, fin | ack, 0));
        frames.push(tcp(9, 2, [50_000, 1 + n], syn, 0));
        frames.push(tcp(2, 9, [1 + n, 50_000], rst | ack, 0));
        let [a, b] = [30_000 + n, 53].map(u16::to_be_bytes);
        frames.push(ipv4(1, 3, 17, &[a[0], a[1], b[0], b[1], 0, 40, 0, 0], 32));
        frames.push(ipv4(3, 1, 17, &[b[0], b[1], a[0], a[1], 0, 90, 0, 0], 82));
        let mut greeting = vec![1, 0x80, 0xc2, 0, 0, 0x0e, 2, 0, 0, 0, 0, 8, 0x88, 0xcc];
        greeting.resize(60 + usize::from(n), 7);
        frames.push(greeting);
    }
    frames
}

/// Writes a capture file with a frame every millisecond.
fn write_capture(path: &Path, frames: &[Vec<u8>]) {
    let dead = pcap::Capture::dead(pcap::Linktype::ETHERNET).expect("a writer");
    let mut file = dead.savefile(path).expect("a writable folder");
    for (n, frame) in (0..).zip(frames) {
        let len = frame.len() as u32;
        let header = pcap::PacketHeader { ts: libc::timeval { tv_sec: 1_700_000_000, tv_usec: n * 1_000 }, caplen: len, len };
        file.write(&pcap::Packet::new(&header, frame));
    }
}

#[test]
fn an_office_gives_the_same_flows_from_a_file_and_from_the_wire() {
    in_namespace("an_office_gives_the_same_flows_from_a_file_and_from_the_wire", || {
        mirror_port(1, 1500);
        if !af_xdp_works() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("office.pcap");
        let frames = office();
        write_capture(&path, &frames);
        assert_eq!(frames.len(), 440);
        // 40 web conversations, 40 probed ports, 40 look-ups, and one pair of switches.
        assert_eq!(conversations(&replayed(&path).0).len(), 121);
        compare(&path, &frames);
    });
}

#[test]
fn captures_of_the_shared_corpus_give_the_same_flows_from_a_file_and_from_the_wire() {
    in_namespace("captures_of_the_shared_corpus_give_the_same_flows_from_a_file_and_from_the_wire", || {
        let Ok(folder) = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/dev")) else {
            println!("skipped: the shared corpus is not there");
            return;
        };
        mirror_port(1, 1500);
        if !af_xdp_works() {
            return;
        }
        let mut compared = 0;
        for entry in folder.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "pcap" || extension == "pcapng")
                && let Some(frames) = sendable(&path)
            {
                compare(&path, &frames);
                compared += 1;
            }
        }
        println!("{compared} captures compared");
        assert!(compared >= 10, "only {compared} captures of the corpus could be sent");
    });
}
