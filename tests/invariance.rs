//! Encapsulation invariance: whatever a mirror puts around a conversation, and whatever it does to the stream, the inner flows are those
//! of the bare capture.
//!
//! `wrap.py` of the shared lab makes the variants of every Ethernet capture of the shared corpus and says what to expect of each. Both
//! lie outside the repository; without them the test says so and passes. `sensor/src/decode/tests` has the same headers, built by us.
//!
//! The whole set takes minutes; `make test` runs a third of the captures, chosen by name, and `ALL=1` all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use spanwatch_common::encapsulation::Encapsulation;
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::ledger::Ledger;
use spanwatch_sensor::capture::file::File;
use spanwatch_sensor::dedup::DedupMode;
use spanwatch_sensor::flow_settings::FlowSettings;
use spanwatch_sensor::flow_table::Records;
use spanwatch_sensor::replay::{Replayed, replay};
use spanwatch_sensor::worker::MeterSettings;

/// One direction of an inner conversation, without VLAN and encapsulation: ends, protocol, and at layer 2 what it carries.
type Direction = (String, String, String);
/// Packets and IP octets (at layer 2: nothing, frames differ by what is around them).
type Flows = BTreeMap<Direction, (u64, u64)>;

fn inner_flows(records: &[FlowRecord]) -> Flows {
    let mut flows = Flows::new();
    for r in records {
        let ends = if r.is_layer2() {
            [r.source_mac, r.destination_mac].map(|mac| format!("{mac:02x?}"))
        } else {
            let port = |port: u16| if r.is_icmp() { 0 } else { port };
            [(r.source, port(r.source_port)), (r.destination, port(r.destination_port))]
                .map(|(address, port)| format!("{address} {port}"))
        };
        for way in 0..2 {
            let what = if r.is_layer2() {
                let arp = [r.arp[way], r.arp[way ^ 1]];
                format!("{:04x} {:04x} {:x} {arp:?}", r.ethernet_type, r.llc_saps, r.layer2_instance)
            } else {
                format!("protocol {}", r.protocol)
            };
            let sum = flows.entry((ends[way].clone(), ends[way ^ 1].clone(), what)).or_default();
            sum.0 += r.packets[way];
            sum.1 += r.octets[way];
        }
    }
    flows.retain(|_, (packets, _)| *packets > 0);
    flows
}

fn times(flows: &Flows, n: u64) -> Flows {
    flows.iter().map(|(key, (packets, octets))| (key.clone(), (packets * n, octets * n))).collect()
}

fn meter(path: &Path, dedup: DedupMode) -> (Vec<FlowRecord>, Ledger) {
    let settings = MeterSettings { flow: FlowSettings { dedup, ..FlowSettings::default() }, ..MeterSettings::default() };
    let mut file = File::open(path).expect("a capture file");
    let mut records = Vec::new();
    let gather = |new: &Records| {
        records.extend(new.iter());
        Ok(())
    };
    let Replayed { ledger, damage, .. } = replay(&mut file, &settings, gather, |_| {}).expect("memory for the table");
    assert!(damage.is_none(), "{}: {damage:?}", path.display());
    assert_eq!(ledger.imbalance(), None, "{}", path.display());
    let exported: u64 = records.iter().map(FlowRecord::packets_total).sum();
    assert_eq!(exported, ledger.metered, "{}", path.display());
    (records, ledger)
}

/// What a variant must give, from the flows of the bare capture.
enum Expect {
    /// The same flows, whether duplicates are removed or not.
    Same,
    /// The same flows; a copy that the base has already cannot be known for sure any more: something else in each frame differs, or too
    /// little of it is in one piece.
    SameButForCopies,
    /// Twice the flows, or the same flows when duplicates are removed.
    Doubled,
    /// The same, with sequence numbers that tell the base's own copies apart.
    DoubledByRedundancy,
    /// Twice the flows always.
    Twice,
    /// Some directions of them, each whole.
    Part,
    /// An account that balances, no more.
    Balance,
}

/// What the bare capture has that matters to some variants.
struct Traits {
    has_tunnels: bool,
    has_fragments: bool,
    /// What it carries makes no sense, and what sense is made of it depends on the room there is.
    is_broken: bool,
    has_random_macs: bool,
}

fn expectation(variant: &str, capture: &Traits) -> Expect {
    match variant {
        _ if capture.is_broken => Expect::Balance,
        // Only frames with IPv4 right behind the MAC header are sent a second time by span_dup_routed.
        "span_dup_exact" | "span_dup_tagged" | "span_dup_routed" => Expect::Doubled,
        "hsr_both_directions" | "prp_both" => Expect::DoubledByRedundancy,
        "hsr_single" | "prp_lanA" | "metamako_trailer" | "ixia_trailer" | "erspan2_fragmented" => Expect::SameButForCopies,
        "true_retransmit_250ms" => Expect::Twice,
        // FabricPath's outer addresses are no sender's.
        "tap_rx_only" if capture.has_tunnels => Expect::Balance,
        "tap_rx_only" => Expect::Part,
        // Ambiguous by design: MAC addresses that begin like IP. Dice have thrown those of one capture.
        "mpls_pw_nocw" if capture.has_random_macs => Expect::Balance,
        "bitflip" => Expect::Balance,
        // The inner headers, or those behind IPv6's fragment header, lie behind the cut.
        "slice64" | "slice128" if capture.has_tunnels || capture.has_fragments => Expect::Balance,
        // What tells two packets apart may lie behind it, too.
        "slice64" | "slice128" => Expect::SameButForCopies,
        // A later fragment before its first has no ports; nothing waits for it.
        "tap_merge_reordered" if capture.has_fragments => Expect::Balance,
        _ => Expect::Same,
    }
}

fn differences(expected: &Flows, found: &Flows) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differing = keys.into_iter().filter(|key| expected.get(*key) != found.get(*key));
    differing.take(3).map(|key| format!("{key:?}: bare {:?}, variant {:?}", expected.get(key), found.get(key))).collect()
}

/// The captures of the corpus that are classic pcap files of Ethernet, or can be made one.
fn captures(folder: &Path, scratch: &Path) -> Vec<PathBuf> {
    let manifest = std::fs::read_to_string(folder.join("MANIFEST.tsv")).expect("a manifest");
    let names = manifest.lines().skip(1).filter_map(|line| line.split('\t').next());
    let mut captures = Vec::new();
    for (n, name) in names.enumerate() {
        if std::env::var_os("ALL").is_none() && n % 3 != 0 {
            continue;
        }
        let plain = scratch.join(format!("{name}.classic.pcap"));
        let converted = Command::new("editcap").args(["-F", "pcap"]).arg(folder.join(name)).arg(&plain).output();
        match converted {
            Ok(done) if done.status.success() => {}
            _ => continue, // several link types, or no editcap here
        }
        let link_type = std::fs::read(&plain).expect("just written").get(20).copied();
        if link_type == Some(1) {
            captures.push(plain);
        }
    }
    captures
}

#[test]
fn inner_flows_do_not_depend_on_what_is_around_them() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let (corpus, wrap) = (shared.join("corpus/dev"), shared.join("lab/wrap.py"));
    if !corpus.is_dir() || !wrap.is_file() || Command::new("editcap").arg("--version").output().is_err() {
        println!("skipped: the shared corpus and lab are not there, or editcap is not installed");
        return;
    }
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let captures = captures(&corpus, scratch.path());
    let (mut compared, mut wrong) = (0, Vec::new());
    for capture in &captures {
        let variants = scratch.path().join("variants");
        let made =
            Command::new("python3").arg(&wrap).arg(capture).arg(&variants).args(["--stem", "x"]).output().expect("python3 runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        wrong.extend(compare(capture, &variants, &mut compared));
        std::fs::remove_dir_all(&variants).expect("ours");
    }
    println!("{} captures, {compared} variants compared", captures.len());
    assert!(compared >= captures.len() * 40 && captures.len() >= 25, "only {compared} variants of {} captures", captures.len());
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

/// Compares every variant in the folder with its base; the differences.
fn compare(capture: &Path, variants: &Path, compared: &mut usize) -> Vec<String> {
    let name = capture.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let base = variants.join("x__BASE.pcap");
    let (records, _) = meter(&base, DedupMode::Off);
    let bare = inner_flows(&records);
    let capture = Traits {
        has_tunnels: records.iter().any(|r| r.encapsulations.iter().any(|kind| kind != Encapsulation::Vlan)),
        has_fragments: records.iter().any(|r| r.fragment_flags.iter().any(|flags| flags & 0x20 != 0)),
        is_broken: name.starts_with("mal_"),
        has_random_macs: name.starts_with("l2_cisco_fabricpath"),
    };
    let without_duplicates = inner_flows(&meter(&base, DedupMode::On).0);
    let mut wrong = Vec::new();
    let mut files: Vec<PathBuf> = std::fs::read_dir(variants).expect("ours").map(|entry| entry.expect("ours").path()).collect();
    files.sort();
    for file in files {
        let variant = file.file_stem().unwrap_or_default().to_string_lossy().trim_start_matches("x__").to_owned();
        if variant == "BASE" || file.extension().is_none_or(|extension| extension != "pcap") {
            continue;
        }
        *compared += 1;
        let [off, on] = [DedupMode::Off, DedupMode::On].map(|mode| {
            let mut flows = inner_flows(&meter(&file, mode).0);
            if variant == "erspan2_fragmented" {
                // A later fragment of the tunnel's packet is a packet of the tunnel, save the one that completes a packet.
                flows.retain(|(from, to, _), _| !(from == "10.255.0.1 0" && to == "10.255.0.2 0"));
            }
            flows
        });
        let mut check = |what: &str, expected: &Flows, found: &Flows| {
            for difference in differences(expected, found) {
                wrong.push(format!("{name} {variant} {what}: {difference}"));
            }
        };
        let has_own_copies = bare != without_duplicates;
        match expectation(&variant, &capture) {
            Expect::Same => {
                check("dedup off", &bare, &off);
                check("dedup on", &without_duplicates, &on);
            }
            Expect::SameButForCopies => {
                check("dedup off", &bare, &off);
                if !has_own_copies {
                    check("dedup on", &bare, &on);
                }
            }
            Expect::Doubled => {
                if variant != "span_dup_routed" {
                    check("dedup off", &times(&bare, 2), &off);
                }
                check("dedup on", &without_duplicates, &on);
            }
            Expect::DoubledByRedundancy => {
                check("dedup off", &times(&bare, 2), &off);
                check("dedup on", &bare, &on);
            }
            Expect::Twice => {
                check("dedup off", &times(&bare, 2), &off);
                if !has_own_copies {
                    check("dedup on", &times(&bare, 2), &on);
                }
            }
            Expect::Part => {
                let part: Flows = bare.iter().filter(|(key, _)| off.contains_key(*key)).map(|(k, v)| (k.clone(), *v)).collect();
                check("dedup off", &part, &off);
            }
            Expect::Balance => {}
        }
    }
    wrong
}
