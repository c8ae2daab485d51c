//! The store as the collector and its operator see it: batches in, SQL out.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may fail loudly, and its name says what it is for")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use spanwatch_common::element::{Access, ELEMENTS, Shown};
use spanwatch_common::encapsulation::Encapsulations;
use spanwatch_common::flow::{BiflowDirection, FlowEndReason, FlowRecord, FlowState, LAYER2, protocol, segment};
use spanwatch_common::text::csv_header;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::Batch;
use spanwatch_store::{Format, Mark, Pushed, Store, StoreError, StoreSettings, query, upkeep};

/// 2025-11-21T10:00:00Z.
const TEN: i64 = 1_763_719_200;

fn settings(directory: &Path) -> StoreSettings {
    StoreSettings { directory: directory.join("flows"), retention_days: 0, ..StoreSettings::default() }
}

fn at(secs: i64, nanos: i64) -> Timestamp {
    Timestamp::from_secs(secs).plus(Duration::from_nanos(nanos.unsigned_abs()))
}

fn tcp(secs: i64) -> FlowRecord {
    FlowRecord {
        flow_id: u64::MAX,
        state: FlowState::Continue,
        end_reason: FlowEndReason::ActiveTimeout,
        biflow_direction: BiflowDirection::Initiator,
        observation_point: u32::MAX,
        ingress_interface: 7,
        ethernet_type: 0x0800,
        vlan: 4094,
        customer_vlan: 1,
        vlan_tags: 2,
        source_mac: [0xfe, 0xff, 0xff, 0xff, 0xff, 0x01],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: "10.0.0.1".parse().unwrap(),
        destination: "192.168.255.2".parse().unwrap(),
        source_port: 65535,
        destination_port: 502,
        protocol: protocol::TCP,
        class_of_service: [255, 0],
        fragment_flags: [0x40, 0x60],
        packets: [3, 2],
        octets: [180, 120],
        layer2_octets: [5_000_000_000, 148],
        start: [at(secs, 123_456_789), at(secs + 1, 1)],
        end: [at(secs + 2, 999_999_999), at(secs + 3, 0)],
        tcp_flags: [0x1b, 0xfff],
        initial_tcp_flags: [2, 0x12],
        ttl_min: [63, 128],
        ttl_max: [64, 255],
        ip_len_min: [40, 40],
        ip_len_max: [1500, 65535],
        encapsulations: Encapsulations::from_names("vlan+erspan2+pptp").unwrap(),
        layer2_segment: segment::id(segment::PPPOE, u32::MAX),
        mpls_top_label: 0x00ff_ffff,
        tunnel: ["192.0.2.1".parse().unwrap(), "2001:db8::ffff".parse().unwrap()],
        erspan_session: 1023,
        answered: true,
        tcp_handshake: [u32::MAX, 1],
        tcp_retransmissions: [2, u32::MAX],
        tcp_out_of_order: [u32::MAX, 3],
        tcp_zero_windows: [4, u32::MAX],
        tcp_missed_octets: [u64::MAX, 5],
        icmp_error: [0x0301, 0x0b00],
        ..FlowRecord::default()
    }
}

fn icmpv6(secs: i64) -> FlowRecord {
    FlowRecord {
        flow_id: 1 << 63,
        ethernet_type: 0x86dd,
        source: "2001:db8::1".parse().unwrap(),
        destination: "ff02::1".parse().unwrap(),
        protocol: protocol::ICMPV6,
        icmp_type_code: [0x8000, 0],
        end_reason: FlowEndReason::IdleTimeout,
        packets: [1, 0],
        octets: [64, 0],
        layer2_octets: [78, 0],
        start: [at(secs, 0), Timestamp::NONE],
        end: [at(secs, 0), Timestamp::NONE],
        ttl_min: [255, 0],
        ttl_max: [255, 0],
        ip_len_min: [64, 0],
        ip_len_max: [64, 0],
        ..FlowRecord::default()
    }
}

fn layer2(secs: i64) -> FlowRecord {
    FlowRecord {
        flow_id: 3,
        state: FlowState::Begin,
        llc_saps: 0x4242,
        source_mac: [2, 0, 0, 0, 0, 3],
        destination_mac: [1, 0x80, 0xc2, 0, 0, 0],
        protocol: LAYER2,
        start: [Timestamp::NONE, at(secs, 5)],
        end: [Timestamp::NONE, at(secs, 6)],
        ..FlowRecord::default()
    }
}

fn arp(secs: i64) -> FlowRecord {
    FlowRecord {
        flow_id: 4,
        ethernet_type: 0x0806,
        arp: ["192.0.2.7".parse().unwrap(), "192.0.2.1".parse().unwrap()],
        layer2_instance: u64::MAX,
        llc_saps: 0,
        ..layer2(secs)
    }
}

fn batch(sensor: &str, boot: u64, sequence: u64, records: Vec<FlowRecord>) -> Arc<Batch> {
    Arc::new(Batch { sensor: sensor.to_owned(), boot, sequence, records, ..Batch::default() })
}

async fn ask(settings: &StoreSettings, sql: &str) -> Result<Vec<Value>, StoreError> {
    let mut out = Vec::new();
    query(settings, sql, Format::Json, &mut out).await?;
    Ok(String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

async fn text(settings: &StoreSettings, sql: &str, format: Format) -> String {
    let mut out = Vec::new();
    query(settings, sql, format, &mut out).await.unwrap();
    String::from_utf8(out).unwrap()
}

async fn count(settings: &StoreSettings) -> u64 {
    let rows = ask(settings, "SELECT count(*) AS n FROM flows").await.unwrap();
    rows[0]["n"].as_u64().unwrap()
}

/// The record that a row of `flows_raw` stands for.
fn record(row: &Value) -> FlowRecord {
    let header = csv_header();
    let mut record = FlowRecord { protocol: LAYER2, ..FlowRecord::default() };
    for (element, name) in ELEMENTS.iter().zip(header.trim_end().split(',')) {
        let value = &row[name];
        match element.access {
            _ if value.is_null() => {}
            Access::Wide(_, set) => set(&mut record, u128::from_str_radix(value.as_str().unwrap(), 16).unwrap()),
            Access::Word(_, set) if element.shown == Shown::State => {
                let state = FlowState::ALL.into_iter().find(|state| state.name() == value).unwrap();
                set(&mut record, state as u64);
            }
            Access::Word(_, set) if element.shown == Shown::Encapsulations => {
                set(&mut record, u64::from(Encapsulations::from_names(value.as_str().unwrap()).unwrap().0));
            }
            Access::Word(_, set) => set(&mut record, value.as_i64().unwrap().cast_unsigned()),
        }
    }
    record
}

/// Every file below `directory` whose path contains `part`.
fn files(directory: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut rest = vec![directory.to_owned()];
    while let Some(directory) = rest.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rest.push(path);
            } else if path.to_string_lossy().contains(part) {
                found.push(path);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_comes_out_in_every_column_for_v4_v6_and_layer_2() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    let records = vec![tcp(TEN + 3600), icmpv6(TEN), layer2(TEN + 1), arp(TEN + 2)];
    assert_eq!(store.push(batch("plant-1", 5, 1, records.clone())).await.unwrap(), Pushed::New);
    assert_eq!(store.buffered_rows(), 4);
    assert_eq!(store.commit().await.unwrap(), [Mark { sensor: "plant-1".to_owned(), boot: 5, up_to: 1 }]);
    assert_eq!(store.buffered_rows(), 0);

    let rows = ask(&settings, "SELECT * FROM flows_raw ORDER BY time").await.unwrap();
    let stored: Vec<FlowRecord> = rows.iter().map(record).collect();
    let in_order = [records[1].clone(), records[2].clone(), records[3].clone(), records[0].clone()];
    assert_eq!(stored, in_order);
    let mut read = Vec::new();
    let mut take = |_: &str, record: FlowRecord| {
        read.push(record);
        Ok(())
    };
    spanwatch_store::records(&settings, at(TEN, 0)..at(TEN + 7200, 0), None, &mut take).await.unwrap();
    assert_eq!(read, in_order);
    assert!(rows.iter().all(|row| row["sensor"] == "plant-1"));
    assert!(settings.directory.join("date=2025-11-21/hour=10").is_dir());
    assert!(settings.directory.join("date=2025-11-21/hour=11").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn people_read_addresses_times_and_numbers_without_a_sign() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    store.push(batch("plant-1", 5, 1, vec![tcp(TEN), icmpv6(TEN), layer2(TEN)])).await.unwrap();
    store.commit().await.unwrap();

    let sql = "SELECT flowId, sourceIPAddress, sourceMacAddress, sourceTransportPort, observationPointId, flowStartNanoseconds, \
               reverseTcpControlBits, flowState, date, hour FROM flows WHERE sourceIPAddress = '10.0.0.1'";
    assert_eq!(
        text(&settings, sql, Format::Csv).await,
        "flowId,sourceIPAddress,sourceMacAddress,sourceTransportPort,observationPointId,flowStartNanoseconds,reverseTcpControlBits,\
         flowState,date,hour\n18446744073709551615,10.0.0.1,fe:ff:ff:ff:ff:01,65535,4294967295,2025-11-21T10:00:00.123456789Z,4095,\
         Continue,2025-11-21,10\n"
    );
    let sql = "SELECT count(*) AS n FROM flows_raw WHERE destinationIPAddress BETWEEN ip_bytes('192.168.0.0') AND ip_bytes('192.168.255.255')";
    assert_eq!(ask(&settings, sql).await.unwrap()[0]["n"], 1);
    let table = text(&settings, "SELECT sensor, packetDeltaCount FROM flows WHERE protocolIdentifier = 6", Format::Table).await;
    assert_eq!(table, "sensor   packetDeltaCount\n-------  ----------------\nplant-1                 3\n(1 row)\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_without_ip_has_a_name_and_what_was_around_one_is_found_by_its_word() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    let goose = FlowRecord { ethernet_type: 0x88b8, layer2_instance: 0x3fff, llc_saps: 0, ..layer2(TEN + 2) };
    let dcp = FlowRecord { ethernet_type: 0x8892, layer2_instance: 0xfefe, llc_saps: 0, ..layer2(TEN + 3) };
    let cdp = FlowRecord { llc_saps: 0xaaaa, layer2_instance: 0x0c_2000, ..layer2(TEN + 4) };
    let unknown = FlowRecord { ethernet_type: 0x88b5, llc_saps: 0, ..layer2(TEN + 5) };
    let records = vec![tcp(TEN), layer2(TEN + 1), goose, dcp, cdp, unknown, arp(TEN + 6)];
    store.push(batch("plant-1", 5, 1, records)).await.unwrap();
    store.commit().await.unwrap();

    let sql = "SELECT layer2Protocol, layer2Instance, arpSenderAddress FROM flows ORDER BY time";
    assert_eq!(
        text(&settings, sql, Format::Csv).await,
        "layer2Protocol,layer2Instance,arpSenderAddress\n,,\nSTP,,\nGOOSE,16383,\nPROFINET DCP,65278,\nCDP,794624,\n0x88b5,,\n\
         ARP,-1,192.0.2.7\n"
    );
    let sql = "SELECT flowAnswered, encapsulations, tunnelSourceAddress FROM flows WHERE encapsulations LIKE '%erspan2%'";
    let found = text(&settings, sql, Format::Csv).await;
    assert_eq!(found, "flowAnswered,encapsulations,tunnelSourceAddress\n1,vlan+erspan2+pptp,192.0.2.1\n");
    let scalar = ask(&settings, "SELECT layer2_name(35020, 0, 0) AS a, layer2_name(0, 17218, 0) AS b").await.unwrap();
    assert_eq!((scalar[0]["a"].as_str(), scalar[0]["b"].as_str()), (Some("LLDP"), Some("LLC 0x4342")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_comes_again_counts_once_also_after_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    assert_eq!(store.push(batch("a", 1, 1, vec![tcp(TEN)])).await.unwrap(), Pushed::New);
    assert_eq!(store.push(batch("a", 1, 1, vec![tcp(TEN)])).await.unwrap(), Pushed::Repeat);
    assert_eq!(store.resume_after("a", 1).await.unwrap(), 0, "in memory is not durable");
    store.commit().await.unwrap();
    assert_eq!(store.push(batch("a", 1, 1, vec![tcp(TEN)])).await.unwrap(), Pushed::Repeat);
    assert_eq!(store.push(batch("b", u64::MAX, 1, vec![tcp(TEN)])).await.unwrap(), Pushed::New);
    assert_eq!(store.push(batch("a", 1, 4, vec![tcp(TEN)])).await.unwrap(), Pushed::New);
    assert_eq!(store.counts().missing, 2, "batches 2 and 3 of sensor a");
    store.commit().await.unwrap();
    drop(store);

    let mut store = Store::open(settings.clone()).await.unwrap();
    assert_eq!(store.resume_after("a", 1).await.unwrap(), 4);
    assert_eq!(store.resume_after("a", 2).await.unwrap(), 0, "a new start begins anew");
    assert_eq!((store.newest_boot("a").await.unwrap(), store.newest_boot("c").await.unwrap()), (1, 0));
    assert_eq!(store.resume_after("b", u64::MAX).await.unwrap(), 1);
    assert_eq!(store.push(batch("a", 1, 4, vec![tcp(TEN)])).await.unwrap(), Pushed::Repeat);
    assert_eq!(store.push(batch("a", 2, 1, vec![tcp(TEN)])).await.unwrap(), Pushed::New);
    store.commit().await.unwrap();
    assert_eq!(store.push(batch("a", 1, 5, vec![tcp(TEN)])).await.unwrap(), Pushed::Repeat, "of a start that is over");
    assert_eq!(count(&settings).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_the_commit_leaves_no_half_and_upkeep_clears_its_files() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    store.push(batch("a", 1, 1, vec![tcp(TEN)])).await.unwrap();
    store.commit().await.unwrap();
    store.push(batch("a", 1, 2, vec![tcp(TEN)])).await.unwrap();
    drop(store);
    // What a crash between the Parquet file and the log entry leaves: a file that no commit names, and a half-written one.
    let whole = files(&settings.directory, ".parquet").remove(0);
    fs::copy(&whole, whole.with_file_name("part-orphan.zstd.parquet")).unwrap();
    fs::write(whole.with_file_name("0123.staged"), b"PAR1").unwrap();

    let mut store = Store::open(settings.clone()).await.unwrap();
    assert_eq!(count(&settings).await, 1);
    assert_eq!(store.resume_after("a", 1).await.unwrap(), 1);
    assert_eq!(store.push(batch("a", 1, 2, vec![tcp(TEN)])).await.unwrap(), Pushed::New, "it was never acknowledged");
    store.commit().await.unwrap();
    assert_eq!(count(&settings).await, 2);

    let soon = upkeep(&settings, now()).await.unwrap();
    assert_eq!((soon.removed_files, soon.merged_files), (0, 2), "they might belong to a commit under way");
    let later = upkeep(&settings, now().plus(Duration::from_secs(2 * 3600))).await.unwrap();
    assert_eq!((later.removed_files, later.files), (4, 1), "the two that were merged, and the two of the crash");
    assert_eq!(files(&settings.directory, "part-").len() + files(&settings.directory, ".staged").len(), 1);
    assert_eq!(count(&settings).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_writer_and_any_number_of_readers() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let nothing = ask(&settings, "SELECT 1").await.unwrap_err();
    assert!(nothing.to_string().starts_with("there are no flow records in "), "{nothing}");
    let mut store = Store::open(settings.clone()).await.unwrap();
    let second = Store::open(settings.clone()).await.err().unwrap();
    assert!(second.to_string().starts_with("another collector writes to "), "{second}");

    let writer = async {
        for sequence in 1..=20 {
            store.push(batch("a", 1, sequence, vec![tcp(TEN); 10])).await.unwrap();
            store.commit().await.unwrap();
        }
    };
    let reader = async {
        let mut last = 0;
        for _ in 0..10 {
            let seen = count(&settings).await;
            assert!(seen >= last && seen % 10 == 0, "{seen} after {last}");
            last = seen;
        }
    };
    tokio::join!(writer, reader);
    assert_eq!(count(&settings).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_changes_nothing_and_a_wrong_one_says_why() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    store.push(batch("a", 1, 1, vec![tcp(TEN)])).await.unwrap();
    store.commit().await.unwrap();
    let out = home.path().join("out.csv");
    for sql in [
        "DELETE FROM flows_raw".to_owned(),
        "INSERT INTO flows_raw SELECT * FROM flows_raw".to_owned(),
        "DROP TABLE flows".to_owned(),
        "CREATE TABLE t AS SELECT 1".to_owned(),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        format!("COPY flows TO '{}'", out.display()),
        format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{}'", out.display()),
    ] {
        let error = ask(&settings, &sql).await.expect_err(&sql).to_string();
        assert!(error.contains("not supported"), "{sql}: {error}");
    }
    assert!(!out.exists());
    let error = ask(&settings, "SELECT sourceIpAddress FROM flows").await.unwrap_err().to_string();
    assert!(error.contains("sourceIpAddress"), "{error}");
    assert_eq!(count(&settings).await, 1);
    assert_eq!(text(&settings, "SELECT flowId FROM flows WHERE hour = 3", Format::Csv).await, "flowId\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_on_time_leaves_out_files_of_other_hours() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    store.push(batch("a", 1, 1, (0..5).map(|hour| tcp(TEN + hour * 3600)).collect())).await.unwrap();
    store.commit().await.unwrap();
    for condition in ["time >= '2025-11-21T13:00:00Z'", "hour >= 13"] {
        let plan = text(&settings, &format!("EXPLAIN SELECT flowId FROM flows WHERE {condition}"), Format::Json).await;
        let named = |hour: u32| plan.contains(&format!("hour={hour}/"));
        assert!(named(13) && named(14) && !named(12), "{condition}: {plan}");
        assert_eq!(ask(&settings, &format!("SELECT flowId FROM flows WHERE {condition}")).await.unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn merging_and_dropping_keep_the_rows_that_should_stay_and_readers_undisturbed() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    for sequence in 1..=120_u32 {
        let records = (0..3).map(|hour| FlowRecord { flow_id: sequence.into(), ..tcp(TEN + hour * 3600 - i64::from(sequence)) });
        store.push(batch("a", 1, sequence.into(), records.collect())).await.unwrap();
        store.commit().await.unwrap();
    }
    let day = Duration::from_secs(86_400);
    let then = now();
    let before = ask(&settings, "SELECT * FROM flows_raw ORDER BY time, flowId").await.unwrap();
    let small = files(&settings.directory, "part-").len();
    assert_eq!((before.len(), small), (360, 360));

    let merged = upkeep(&settings, then).await.unwrap();
    assert_eq!((merged.merged_files, merged.merged_into, merged.files), (360, 3, 3));
    assert!(merged.checkpoint, "after more than a hundred commits");
    assert_eq!(files(&settings.directory, "part-").len(), 363, "those merged stay for readers");
    assert_eq!(ask(&settings, "SELECT * FROM flows_raw ORDER BY time, flowId").await.unwrap(), before);
    let again = upkeep(&settings, then).await.unwrap();
    assert_eq!((again.merged_files, again.removed_files, again.checkpoint), (0, 0, false), "nothing left to do");
    let swept = upkeep(&settings, then.plus(Duration::from_secs(3700))).await.unwrap();
    assert_eq!((swept.removed_files, files(&settings.directory, "part-").len()), (360, 3));
    assert_eq!(ask(&settings, "SELECT * FROM flows_raw ORDER BY time, flowId").await.unwrap(), before);

    // The writer has seen nothing of all this, and goes on.
    store.push(batch("a", 1, 121, vec![tcp(TEN + 2 * 3600)])).await.unwrap();
    store.commit().await.unwrap();
    assert_eq!(count(&settings).await, 361);
    drop(store);
    let mut store = Store::open(settings.clone()).await.unwrap();
    assert_eq!(store.resume_after("a", 1).await.unwrap(), 121, "marks survive the checkpoint");

    // By size: the oldest hours go; the newest stays, whatever its size.
    settings.retention_bytes_max = 1;
    let dropped = upkeep(&settings, then).await.unwrap();
    assert_eq!(dropped.dropped_files, 3);
    let left = ask(&settings, "SELECT DISTINCT hour FROM flows").await.unwrap();
    assert_eq!(left, [serde_json::json!({ "hour": 12 })]);
    // By age, nothing stays.
    settings.retention_days = 1;
    upkeep(&settings, then.plus(day)).await.unwrap();
    assert_eq!(count(&settings).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_waits_for_counts_once_all_the_same() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    for sequence in 1..=60 {
        store.push(batch("a", 1, sequence, vec![tcp(TEN)])).await.unwrap();
        // From "hardly begun" to "nearly done": a commit takes some milliseconds.
        let _ = tokio::time::timeout(Duration::from_micros(sequence * 400), store.commit()).await;
    }
    while store.buffered_rows() > 0 {
        let _ = store.commit().await;
    }
    assert_eq!(count(&settings).await, 60);
    assert_eq!(store.resume_after("a", 1).await.unwrap(), 60);
    assert_eq!(store.counts().committed, 60);
}

/// A file system of one megabyte, gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None when this process may not mount.
    fn mount(path: &Path) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "spanwatch-test"]).arg(path).output();
        mount.is_ok_and(|done| done.status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&home.path().join("disk")) else {
        assert!(std::env::var_os("REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"), "mounting a tmpfs needs root");
        println!("skipped: mounting a tmpfs needs root");
        return;
    };
    let settings = StoreSettings { buffer_rows_max: 500_000, ..settings(&disk.0) };
    let mut store = Store::open(settings.clone()).await.unwrap();
    store.push(batch("a", 1, 1, vec![tcp(TEN)])).await.unwrap();
    store.commit().await.unwrap();
    let ballast = disk.0.join("ballast");
    let room = fs::metadata(&settings.directory).map(|_| 1 << 20).unwrap();
    let _ = fs::write(&ballast, vec![0; room]);

    store.push(batch("a", 1, 2, vec![tcp(TEN); 1000])).await.unwrap();
    for _ in 0..2 {
        let error = store.commit().await.unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        assert!(
            error.to_string().starts_with("the disk under ") && error.to_string().contains("is full; free some space"),
            "{error}"
        );
    }
    assert_eq!((store.buffered_rows(), store.counts().failed_commits), (1000, 2));
    assert_eq!(store.resume_after("a", 1).await.unwrap(), 1);
    assert_eq!(files(&settings.directory, "part-").len(), 1, "no partial file");
    assert_eq!(files(&settings.directory, ".staged").len(), 0, "no partial file");

    fs::remove_file(&ballast).unwrap();
    store.push(batch("a", 1, 3, vec![tcp(TEN)])).await.unwrap();
    assert_eq!(store.commit().await.unwrap(), [Mark { sensor: "a".to_owned(), boot: 1, up_to: 3 }]);
    assert_eq!(count(&settings).await, 1002);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_refuses_and_a_wild_clock_does_not_make_a_file_per_record() {
    let home = tempfile::tempdir().unwrap();
    let settings = StoreSettings { commit_rows_max: 1000, buffer_rows_max: 1500, ..settings(home.path()) };
    let mut store = Store::open(settings.clone()).await.unwrap();
    store.push(batch("a", 1, 1, (0..1000).map(|hour| tcp(TEN + hour * 3600)).collect())).await.unwrap();
    assert!(store.wants_commit());
    assert_eq!(store.push(batch("a", 1, 2, vec![tcp(TEN); 501])).await.unwrap(), Pushed::Full);
    store.commit().await.unwrap();
    assert_eq!(files(&settings.directory, "part-").len(), 96);
    assert_eq!(count(&settings).await, 1000);
    assert_eq!(store.push(batch("a", 1, 2, vec![tcp(TEN); 501])).await.unwrap(), Pushed::New);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_with_little_memory_goes_on_on_disk() {
    let home = tempfile::tempdir().unwrap();
    // The rows take some 160 MiB.
    let settings = StoreSettings { query_memory_bytes_max: 96 << 20, ..settings(home.path()) };
    let mut store = Store::open(settings.clone()).await.unwrap();
    for sequence in 1..=4_u64 {
        let records =
            (0..65_536_u64).map(|i| FlowRecord { flow_id: (sequence << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15), ..tcp(TEN) });
        store.push(batch("a", 1, sequence, records.collect())).await.unwrap();
    }
    store.commit().await.unwrap();
    let sorted = text(&settings, "SELECT * FROM flows ORDER BY flowId", Format::Csv).await;
    assert_eq!(sorted.lines().count(), 4 * 65_536 + 1);
}

#[expect(clippy::disallowed_methods, reason = "files have the wall clock's time")]
fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_nanos(since_epoch.as_nanos().try_into().unwrap())
}
