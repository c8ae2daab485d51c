//! Flow accounting against the truth that tshark gives, for every Ethernet capture of the shared corpus.
//!
//! The corpus lies outside the repository. Without it the test says so and passes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use spanwatch_common::flow::{FORWARD, FlowRecord, LAYER2, Mac, REVERSE};
use spanwatch_common::ledger::Ledger;
use spanwatch_common::net::Address;
use spanwatch_sensor::capture::file::File;
use spanwatch_sensor::capture::{CaptureError, CaptureErrorKind};
use spanwatch_sensor::replay::replay;
use spanwatch_sensor::worker::MeterSettings;

/// VLANs, both ends sorted, protocol. An end is an address and a port; ICMP has no ports here.
type Key = (u16, u16, (Address, u16), (Address, u16), u8);
/// For each end as the sender: packets, IP octets, frame octets, OR of TCP flags.
type Halves = [[u64; 4]; 2];

fn corpus() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/dev");
    if !folder.is_dir() {
        println!("skipped: the shared corpus is not there");
        return None;
    }
    Some(folder)
}

fn meter(path: &Path) -> (Vec<FlowRecord>, Ledger) {
    let mut file = File::open(path).expect("a capture file");
    let mut records = Vec::new();
    let gather = |new: &[FlowRecord]| {
        records.extend_from_slice(new);
        Ok(())
    };
    let (ledger, damage) = replay(&mut file, &MeterSettings::default(), gather, |_| {}).expect("memory for the table");
    let is_unread = |error: &CaptureError| error.kind == CaptureErrorKind::Unsupported && ledger.ignored.link_type > 0;
    assert!(damage.as_ref().is_none_or(is_unread), "{}: {damage:?}", path.display());
    (records, ledger)
}

fn add(into: &mut BTreeMap<Key, Halves>, vlans: (u16, u16), ends: [(Address, u16); 2], protocol: u8, counts: Halves) {
    let ends = if matches!(protocol, 1 | 58) { ends.map(|(address, _)| (address, 0)) } else { ends };
    let swapped = ends[0] > ends[1];
    let [a, b] = if swapped { [ends[1], ends[0]] } else { ends };
    let halves = into.entry((vlans.0, vlans.1, a, b, protocol)).or_default();
    // Where both ends are the same there is one direction only, as in truth.py (a flow is its own reverse).
    let same = ends[0] == ends[1];
    for (way, count) in counts.into_iter().enumerate() {
        let half = &mut halves[if same { 0 } else { way ^ usize::from(swapped) }];
        for (sum, n) in half.iter_mut().zip(&count[..3]) {
            *sum += n;
        }
        half[3] |= count[3];
    }
}

fn ours(records: &[FlowRecord]) -> BTreeMap<Key, Halves> {
    let mut flows = BTreeMap::new();
    for r in records.iter().filter(|r| r.protocol != LAYER2) {
        let ends = [(r.source, r.source_port), (r.destination, r.destination_port)];
        let half = |way: usize| [r.packets[way], r.octets[way], r.layer2_octets[way], u64::from(r.tcp_flags[way])];
        add(&mut flows, (r.vlan, r.customer_vlan), ends, r.protocol, [half(FORWARD), half(REVERSE)]);
    }
    flows
}

fn vlans(text: &str) -> (u16, u16) {
    let mut ids = text.split(',').map(|id| id.parse().unwrap_or(0));
    (ids.next().unwrap_or(0), ids.next().unwrap_or(0))
}

fn rows(path: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(path).expect("a truth file beside the capture");
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// IP in IP, IPv6 in IP, GRE: protocols whose packets tshark follows into the tunnel where it can.
const TUNNELS: [u64; 3] = [4, 41, 47];

/// The flows of the truth that neither travel in a tunnel nor are one.
fn truth(capture: &Path) -> BTreeMap<Key, Halves> {
    let mut flows = BTreeMap::new();
    for row in rows(&beside(capture, "flows.tsv")).iter().filter(|row| row[1].is_empty()) {
        let number = |i: usize| row[i].parse::<u64>().expect("a number");
        if TUNNELS.contains(&number(4)) {
            continue;
        }
        let flags = |i: usize| u64::from_str_radix(row[i].trim_start_matches("0x"), 16).expect("flags");
        let end = |address: usize, port: usize| (row[address].parse().expect("an address"), number(port) as u16);
        let counts = [[number(7), number(8), number(9), flags(15)], [number(10), number(11), number(12), flags(16)]];
        add(&mut flows, vlans(&row[0]), [end(2, 5), end(3, 6)], number(4) as u8, counts);
    }
    flows
}

/// MPLS, PPPoE, provider backbone bridging: the same among ethertypes.
const TUNNEL_ETHERTYPES: [u16; 3] = [0x8847, 0x8864, 0x88e7];

/// VLANs, both MAC addresses sorted, ethertype.
type PairKey = (u16, u16, Mac, Mac, u16);

fn add_pair(
    into: &mut BTreeMap<PairKey, [[u64; 2]; 2]>,
    vlans: (u16, u16),
    ends: [Mac; 2],
    ethertype: u16,
    counts: [[u64; 2]; 2],
) {
    let swapped = ends[0] > ends[1];
    let [a, b] = if swapped { [ends[1], ends[0]] } else { ends };
    let halves = into.entry((vlans.0, vlans.1, a, b, ethertype)).or_default();
    for (way, [frames, octets]) in counts.into_iter().enumerate() {
        let half = &mut halves[way ^ usize::from(swapped)];
        half[0] += frames;
        half[1] += octets;
    }
}

fn our_pairs(records: &[FlowRecord]) -> BTreeMap<PairKey, [[u64; 2]; 2]> {
    let mut pairs = BTreeMap::new();
    for r in records.iter().filter(|r| r.protocol == LAYER2 && r.ethernet_type != 0) {
        let half = |way: usize| [r.packets[way], r.layer2_octets[way]];
        add_pair(
            &mut pairs,
            (r.vlan, r.customer_vlan),
            [r.source_mac, r.destination_mac],
            r.ethernet_type,
            [half(FORWARD), half(REVERSE)],
        );
    }
    pairs
}

/// The layer-2 conversations of the truth that have an ethertype and travel in no tunnel.
fn true_pairs(capture: &Path) -> BTreeMap<PairKey, [[u64; 2]; 2]> {
    let mut pairs = BTreeMap::new();
    let mac = |text: &str| -> Mac {
        let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).expect("a MAC")).collect();
        octets.try_into().expect("six octets")
    };
    for row in rows(&beside(capture, "l2.tsv")).iter().filter(|row| row[1].is_empty()) {
        let ethertype = row[4].strip_prefix("0x").and_then(|hex| u16::from_str_radix(hex, 16).ok());
        let Some(ethertype) = ethertype.filter(|ethertype| !TUNNEL_ETHERTYPES.contains(ethertype)) else { continue };
        let number = |i: usize| row[i].parse::<u64>().expect("a number");
        let counts = [[number(5), number(6)], [number(7), number(8)]];
        add_pair(&mut pairs, vlans(&row[0]), [mac(&row[2]), mac(&row[3])], ethertype, counts);
    }
    pairs
}

fn beside(capture: &Path, ending: &str) -> PathBuf {
    let mut name = capture.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

#[test]
fn every_ethernet_capture_is_accounted_as_tshark_counts_it() {
    let Some(folder) = corpus() else { return };
    let mut wrong = Vec::new();
    let (mut captures, mut compared, mut pairs) = (0, 0, 0);
    for row in rows(&folder.join("MANIFEST.tsv")) {
        let capture = folder.join(&row[0]);
        let packets: u64 = row[7].parse().expect("a number of packets");
        let (records, ledger) = meter(&capture);
        if ledger.delivered != packets || ledger.metered + ledger.ignored.total() != packets || ledger.imbalance().is_some() {
            wrong.push(format!("{}: {packets} packets, but {ledger:?}", row[0]));
        }
        let exported: u64 = records.iter().map(FlowRecord::packets_total).sum();
        if exported != ledger.metered {
            wrong.push(format!("{}: metered {} but exported {exported}", row[0], ledger.metered));
        }
        if ledger.ignored.link_type == packets {
            continue;
        }
        captures += 1;
        let (ours, our_pairs) = (ours(&records), our_pairs(&records));
        for (key, expected) in true_pairs(&capture) {
            pairs += 1;
            match our_pairs.get(&key) {
                Some(found) if *found == expected => {}
                found => wrong.push(format!("{}: {key:x?}\n    tshark {expected:?}\n    we     {found:?}", row[0])),
            }
        }
        for (key, expected) in truth(&capture) {
            compared += 1;
            match ours.get(&key) {
                Some(found) if *found == expected => {}
                found => wrong.push(format!("{}: {key:?}\n    tshark {expected:?}\n    we     {found:?}", row[0])),
            }
        }
    }
    println!("{captures} captures, {compared} flows and {pairs} layer-2 pairs compared");
    assert!(captures >= 90 && compared >= 900, "the corpus has shrunk: {captures} captures, {compared} flows");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}
