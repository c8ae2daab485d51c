//! What is written is read back the same, and what cannot be written is counted.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use spanwatch_azure::{Format, Labels, Limits, Skipped, WriteError, Writer, Written};
use spanwatch_common::cloud::{Action, Cloud, CloudContext, Direction, Origin};
use spanwatch_common::flow::{FlowRecord, FlowState, LAYER2, protocol};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use support::{document, nsg, read, vnet};

const TEN_MINUTES: Duration = Duration::from_secs(600);

/// The sites of these tests: 10.0.0.0/8.
fn inside(address: Address) -> bool {
    address.as_v4().is_some_and(|v4| v4.octets()[0] == 10)
}

/// Path to content, and what the writer says of it.
fn write_within(
    format: Format,
    limits: Limits,
    records: &[FlowRecord],
) -> Result<(BTreeMap<String, String>, Written), WriteError> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut sink = |path: &str, text: &[u8]| {
        files.entry(path.to_owned()).or_default().push_str(std::str::from_utf8(text).expect("text"));
        Ok(())
    };
    let mut writer = Writer::new(format, &Labels::default(), TEN_MINUTES, limits);
    for record in records {
        writer.write(record, inside, &mut sink)?;
    }
    let written = writer.finish(&mut sink)?;
    Ok((files, written))
}

fn write(format: Format, records: &[FlowRecord]) -> (BTreeMap<String, String>, Written) {
    write_within(format, Limits::default(), records).expect("within the limits")
}

/// What a row says in every format that carries it: who, when, which way, whether, how much.
type Normal = (Timestamp, Address, Address, u16, u16, u8, bool, bool, FlowState, [u64; 2], [u64; 2]);

fn normal(record: &FlowRecord, resolution: Duration) -> Normal {
    let cloud = record.cloud.as_ref();
    let denied = cloud.is_some_and(|cloud| cloud.action == Action::Deny);
    let inbound = match cloud.map(|cloud| cloud.direction) {
        Some(Direction::Inbound) => true,
        Some(Direction::Outbound) => false,
        _ => !inside(record.source) && inside(record.destination),
    };
    // A VNet flow log has one letter for "denied", whatever else it was.
    let state = if denied { FlowState::Begin } else { record.state };
    let (source, destination) = (record.source, record.destination);
    let (sport, dport) = (record.source_port, record.destination_port);
    let at = record.first().floor(resolution);
    (at, source, destination, sport, dport, record.protocol, inbound, denied, state, record.packets, record.octets)
}

fn read_all(files: &BTreeMap<String, String>) -> Vec<FlowRecord> {
    files
        .iter()
        .flat_map(|(path, text)| {
            serde_json::from_str::<serde_json::Value>(text).unwrap_or_else(|error| panic!("{path}: {error}\n{text}"));
            let outcome = read(text);
            assert_eq!(outcome.finished().held_back, 0);
            outcome.rows
        })
        .collect()
}

fn sensor(secs: i64, source: &str, destination: &str) -> FlowRecord {
    let at = Timestamp::from_nanos(secs * 1_000_000_000 + 123_456_789);
    FlowRecord {
        state: FlowState::End,
        source: source.parse().expect("a literal"),
        destination: destination.parse().expect("a literal"),
        source_port: 40_000,
        destination_port: 443,
        protocol: protocol::TCP,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        packets: [7, 5],
        octets: [700, 5_000],
        start: [at, at],
        end: [at, at],
        ..FlowRecord::default()
    }
}

#[test]
fn a_sensors_records_lie_in_the_file_of_their_interface_and_hour() {
    let out = sensor(1_795_255_200, "10.0.0.4", "192.0.2.10");
    let back = sensor(1_795_255_201, "192.0.2.10", "10.0.0.4");
    let later = sensor(1_795_258_800, "10.0.0.4", "10.0.0.5");
    let (files, written) = write(Format::VnetFlowLog, &[out, back, later]);
    let ends: Vec<&str> = files.keys().map(|path| path.split_once("/y=").unwrap().1).collect();
    assert_eq!(
        ends,
        [
            "2026/m=11/d=21/h=10/m=00/macAddress=020000000001/PT1H.json",
            "2026/m=11/d=21/h=10/m=00/macAddress=020000000002/PT1H.json",
            "2026/m=11/d=21/h=11/m=00/macAddress=020000000001/PT1H.json"
        ]
    );
    let root = "insights-logs-flowlogflowevent/flowLogResourceID=/SUBSCRIPTIONS/00000000-0000-0000-0000-000000000000/";
    assert!(files.keys().all(|path| path.starts_with(root)));
    assert!(files.values().next().unwrap().contains("\"1795255200123,10.0.0.4,192.0.2.10,40000,443,6,O,E,NX,7,700,5,5000\""));
    assert_eq!((written.records, written.rows, written.blobs, written.skipped), (3, 3, 3, Skipped::default()));
}

#[test]
fn azures_own_records_go_back_to_where_they_came_from() {
    let file = document(&[vnet(&[
        "1795255200123,10.0.0.4,192.0.2.10,40000,443,6,O,C,NX_HW_NOT_SUPPORTED,1021,588096,8005,4610880",
        "1795255203123,198.51.100.7,10.0.0.4,50000,22,6,I,D,NX,0,0,0,0",
    ])]);
    let rows = read(&file).rows;
    let (files, _) = write(Format::VnetFlowLog, &rows);
    assert_eq!(read_all(&files), rows, "every field, names included");
    let (path, _) = files.first_key_value().unwrap();
    assert!(
        path.contains("/flowLogResourceID=/SUBSCRIPTIONS/X/FLOWLOGS/LOG/y=2026/") && path.contains("macAddress=112233445566"),
        "{path}"
    );

    let file = document(&[nsg(
        2,
        &[
            "1795255201,10.0.0.4,192.0.2.53,40000,53,U,O,A,B,,,,",
            "1795255202,10.0.0.4,192.0.2.53,40000,53,U,O,A,E,1,70,1,182",
            "1795255203,198.51.100.7,10.0.0.4,50000,22,T,I,D,B,,,,",
        ],
    )]);
    let rows = read(&file).rows;
    let (files, _) = write(Format::NsgFlowLog, &rows);
    assert_eq!(read_all(&files), rows);
    assert!(files.values().next().unwrap().contains("\"1795255203,198.51.100.7,10.0.0.4,50000,22,T,I,D,B,,,,\""));
}

#[test]
fn of_sampled_packets_the_estimate_is_written() {
    let sampled = FlowRecord { sampling_population: 8, ..sensor(1_795_255_200, "10.0.0.4", "192.0.2.10") };
    let (files, _) = write(Format::VnetFlowLog, &[sampled]);
    assert!(files.values().next().unwrap().contains(",E,NX,56,5600,40,40000\""), "{files:?}");
}

#[test]
fn what_a_format_cannot_say_is_counted() {
    let layer2 = FlowRecord {
        protocol: LAYER2,
        source: Address::NONE,
        destination: Address::NONE,
        ..sensor(1_795_255_200, "10.0.0.1", "10.0.0.2")
    };
    let ping = FlowRecord {
        protocol: protocol::ICMP,
        source_port: 0,
        destination_port: 0,
        ..sensor(1_795_255_200, "10.0.0.1", "10.0.0.2")
    };
    let blank = FlowRecord { source: Address::NONE, ..sensor(1_795_255_200, "10.0.0.1", "10.0.0.2") };
    let timeless = sensor(5, "10.0.0.1", "10.0.0.2");
    let aggregate = FlowRecord { prefix_lengths: [24, 32], ..sensor(1_795_255_200, "10.0.0.0", "10.0.0.2") };
    let records = [layer2, ping, blank, timeless, aggregate];
    let vnet = Skipped { layer2: 1, protocol: 0, blank_address: 1, aggregate: 1, time: 1 };
    assert_eq!(write(Format::VnetFlowLog, &records).1.skipped, vnet);
    assert_eq!(write(Format::NsgFlowLog, &records).1.skipped, Skipped { protocol: 1, ..vnet });
    assert_eq!(write(Format::Nta, &records).1.skipped, Skipped { blank_address: 0, ..vnet });
}

#[test]
fn limits_bound_memory_and_lose_nothing() {
    let records: Vec<_> =
        (0..2_000).map(|n| FlowRecord { source_port: n, ..sensor(1_795_255_200, "10.0.0.4", "192.0.2.10") }).collect();
    let tight = Limits { held_bytes_max: 10_000, ..Limits::default() };
    let (files, written) = write_within(Format::VnetFlowLog, tight, &records).unwrap();
    assert_eq!((written.rows, read_all(&files).len()), (2_000, 2_000));
    assert!(files.values().next().unwrap().matches("\"time\"").count() > 10, "written in many records");

    let tight = Limits { blobs_max: 1, ..Limits::default() };
    let two = [sensor(1_795_255_200, "10.0.0.4", "10.0.0.5"), sensor(1_795_258_800, "10.0.0.4", "10.0.0.5")];
    assert!(matches!(write_within(Format::NsgFlowLog, tight, &two), Err(WriteError::TooManyBlobs { limit: 1 })));

    let records: Vec<_> =
        (0..2_000).map(|n| FlowRecord { destination_port: n, ..sensor(1_795_255_200, "10.0.0.4", "10.0.0.5") }).collect();
    let tight = Limits { folds_max: 100, ..Limits::default() };
    let (files, written) = write_within(Format::Nta, tight, &records).unwrap();
    assert_eq!((written.rows, read(&files["NTANetAnalytics.jsonl"]).rows.len()), (2_000, 2_000));
}

#[test]
fn a_sink_that_fails_ends_the_export_with_the_files_name() {
    let mut writer = Writer::new(Format::Nta, &Labels::default(), TEN_MINUTES, Limits::default());
    let mut full = |_: &str, _: &[u8]| Err(std::io::Error::other("disk full"));
    writer.write(&sensor(1_795_255_200, "10.0.0.4", "10.0.0.5"), inside, &mut full).unwrap();
    let error = writer.finish(&mut full).unwrap_err();
    assert_eq!(error.to_string(), "cannot write NTANetAnalytics.jsonl: disk full");
}

#[test]
fn a_load_test_folds_to_one_row_and_the_internet_to_a_list() {
    // 900 connections from one client to one server, and three clients from the Internet to it.
    let mut records: Vec<_> =
        (0..900).map(|n| FlowRecord { source_port: n, ..sensor(1_795_255_200, "10.0.0.4", "10.0.0.5") }).collect();
    records.extend(["198.51.100.1", "198.51.100.2", "2001:db8::3"].map(|client| sensor(1_795_255_260, client, "10.0.0.5")));
    let (files, written) = write(Format::Nta, &records);
    assert_eq!((written.records, written.rows), (903, 2));
    let text = &files["NTANetAnalytics.jsonl"];
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let inner = rows.iter().find(|row| row["FlowType"] == "IntraVNet").unwrap();
    assert_eq!((&inner["AllowedOutFlows"], &inner["BytesDestToSrc"]), (&900.into(), &4_500_000.into()));
    let outer = rows.iter().find(|row| row["FlowType"] == "ExternalPublic").unwrap();
    assert_eq!(outer["SrcIp"], "");
    assert_eq!(outer["SrcPublicIps"], "198.51.100.1|1|1|7|5|700|5000 198.51.100.2|1|1|7|5|700|5000 2001:db8::3|1|1|7|5|700|5000");
    assert_eq!(outer["FlowIntervalStartTime"], "2026-11-21T10:00:00.0000000Z");
    assert_eq!(outer["TimeGenerated"], "2026-11-21T10:10:00.0000000Z");
    let back = read(text);
    assert_eq!(back.rows.len(), 4, "the list is taken apart again");
    assert!(back.rows.iter().all(|row| row.origin() == Origin::TaVnet));
}

prop_compose! {
    fn any_address()(which in 0_u8..6, low in 1_u8..6) -> Address {
        match which {
            0 | 1 => Address::from_v4([10, 0, 0, low]),
            2 => Address::from_v4([192, 168, 1, low]),
            3 => Address::from_v4([198, 51, 100, low]),
            4 => Address::from_v4([192, 0, 2, low]),
            _ => format!("2001:db8::{low}").parse().expect("a literal"),
        }
    }
}

prop_compose! {
    fn any_cloud()(
        action in 0_usize..3, direction in 0_usize..4, acl in "[a-z/\"\\\\]{0,6}", rule in "(UserRule_|DefaultRule_)[a-zA-Zäß ]{0,5}",
        observer in prop::sample::select(vec!["", "112233445566", "not a mac"]), encryption in prop::sample::select(vec!["", "X", "NX_NEW"]),
    ) -> Box<Cloud> {
        let context = CloudContext {
            acl: acl.into(), rule: rule.into(), observer: observer.into(), encryption: encryption.into(), ..CloudContext::default()
        };
        Box::new(Cloud {
            origin: Origin::VnetV4,
            action: Action::ALL[action],
            direction: Direction::ALL[direction],
            context: Arc::new(context),
            ..Cloud::default()
        })
    }
}

prop_compose! {
    fn any_record()(
        // Two hours, an uneven number of nanoseconds.
        nanos in 0_i64..7_200_000_000_000, state in 0_usize..3, source in any_address(), destination in any_address(),
        ports in any::<[u16; 2]>(), protocol in prop::sample::select(vec![1_u8, 6, 17, 132]), mac in any::<[u8; 6]>(),
        packets in any::<[u32; 2]>(), octets in any::<[u64; 2]>(), cloud in prop::option::of(any_cloud()), reversed in any::<bool>(),
    ) -> FlowRecord {
        let at = Timestamp::from_nanos(1_795_255_200_000_000_000 + nanos);
        FlowRecord {
            state: FlowState::ALL[state], source, destination, source_port: ports[0], destination_port: ports[1], protocol,
            source_mac: mac, destination_mac: [mac[0], 1, 2, 3, 4, 5],
            packets: packets.map(u64::from), octets,
            // A flow whose answers alone were seen has no forward time.
            start: if reversed { [Timestamp::NONE, at] } else { [at, at] },
            end: [at.plus(Duration::from_secs(3)); 2],
            cloud, ..FlowRecord::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn import_of_what_was_exported_gives_back_the_same_rows(records in prop::collection::vec(any_record(), 0..60)) {
        for (format, resolution) in [(Format::VnetFlowLog, Duration::from_millis(1)), (Format::NsgFlowLog, Duration::from_secs(1))] {
            let (files, written) = write(format, &records);
            let carried = |record: &&FlowRecord| format == Format::VnetFlowLog || matches!(record.protocol, 6 | 17);
            let mut expected: Vec<Normal> = records.iter().filter(carried).map(|record| normal(record, resolution)).collect();
            let mut found: Vec<Normal> = read_all(&files).iter().map(|record| normal(record, resolution)).collect();
            prop_assert_eq!(written.records + written.skipped.total(), records.len() as u64);
            expected.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_table_gives_back_the_sums(records in prop::collection::vec(any_record(), 0..60)) {
        // Counters that cannot overflow in a sum.
        let records: Vec<FlowRecord> =
            records.into_iter().map(|record| FlowRecord { octets: record.octets.map(|octets| octets >> 16), ..record }).collect();
        let (files, _) = write(Format::Nta, &records);
        let back = files.values().map(|text| read(text).rows).next().unwrap_or_default();
        let sums = |records: &[FlowRecord]| {
            let mut sums: BTreeMap<_, [u64; 4]> = BTreeMap::new();
            for record in records {
                let (at, source, destination, _, port, protocol, inbound, denied, ..) = normal(record, TEN_MINUTES);
                let sum = sums.entry((at, source, destination, port, protocol, inbound, denied)).or_default();
                let [a, b] = record.packets;
                let [c, d] = record.octets;
                for (sum, more) in sum.iter_mut().zip([a, b, c, d]) {
                    *sum += more;
                }
            }
            sums
        };
        prop_assert_eq!(sums(&back), sums(&records));
    }
}
