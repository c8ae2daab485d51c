//! Imports as whoever imports sees them: rows and state in, exactly once, beside a collector; and records read back.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may fail loudly, and its name says what it is for")]

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::{Action, Cloud, CloudContext, Direction, Origin};
use spanwatch_common::flow::{FlowRecord, FlowState, protocol};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::Batch;
use spanwatch_store::{Format, Importer, Store, StoreError, StoreSettings, query, records, upkeep};

/// 2025-11-21T10:00:00Z.
const TEN: i64 = 1_763_719_200;
/// Where a child process of a test finds the table.
const CHILD_TABLE: &str = "SPANWATCH_TEST_IMPORT_INTO";

fn settings(directory: &Path) -> StoreSettings {
    StoreSettings { directory: directory.join("flows"), retention_days: 0, ..StoreSettings::default() }
}

fn azure(secs: i64, number: u64) -> FlowRecord {
    let context = CloudContext {
        observer: "0022481A2B3C".into(),
        resource: "/SUBSCRIPTIONS/S/NSG".into(),
        rule: format!("UserRule_{}", number % 3).into(),
        source_vm: "rg/vm1".into(),
        ..CloudContext::default()
    };
    FlowRecord {
        flow_id: number,
        state: FlowState::End,
        source: Address::from_v4([192, 0, 2, 1]),
        destination: Address::from_v4([198, 51, 100, 7]),
        source_port: 50_000,
        destination_port: 443,
        protocol: protocol::TCP,
        packets: [10, 8],
        octets: [1_000, 9_000],
        start: [Timestamp::from_secs(secs); 2],
        end: [Timestamp::from_secs(secs + 1); 2],
        cloud: Some(Box::new(Cloud {
            origin: Origin::VnetV4,
            action: Action::Allow,
            direction: Direction::Inbound,
            events: 3,
            ingested: Timestamp::from_nanos(TEN * 1_000_000_000 + 5),
            context: Arc::new(context),
        })),
        ..FlowRecord::default()
    }
}

fn seen(secs: i64, number: u64) -> FlowRecord {
    FlowRecord { cloud: None, ..azure(secs, number) }
}

fn batch(sequence: u64, records: Vec<FlowRecord>) -> Arc<Batch> {
    Arc::new(Batch { sensor: "plant1".to_owned(), boot: 1, sequence, records, ..Batch::default() })
}

async fn rows(settings: &StoreSettings, sql: &str) -> String {
    let mut out = Vec::new();
    query(settings, sql, Format::Csv, &mut out).await.unwrap();
    String::from_utf8(out).unwrap()
}

async fn all(settings: &StoreSettings, filter: Option<&str>) -> Vec<(String, FlowRecord)> {
    let mut found = Vec::new();
    let mut take = |sensor: &str, record| {
        found.push((sensor.to_owned(), record));
        Ok(())
    };
    records(settings, Timestamp::NONE..Timestamp::from_secs(2 * TEN), filter, &mut take).await.unwrap();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cloud_says_is_kept_beside_what_a_sensor_saw_and_reads_back_the_same() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    store.push(batch(1, vec![seen(TEN + 3, 1)])).await.unwrap();
    store.commit().await.unwrap();
    // Traffic Analytics leaves a public address blank; a log without an observer is named after its import.
    let blank = FlowRecord { source: Address::NONE, cloud: Some(Box::default()), ..azure(TEN + 3600, 3) };
    let (mut importer, state) = Importer::open(settings.clone(), "azure").await.unwrap();
    assert_eq!(state, None);
    importer.push(vec![blank.clone(), azure(TEN, 2)]).unwrap();
    importer.commit(b"two rows").await.unwrap();

    let expected = [("0022481A2B3C", azure(TEN, 2)), ("plant1", seen(TEN + 3, 1)), ("azure", blank)];
    assert_eq!(all(&settings, None).await, expected.map(|(sensor, record)| (sensor.to_owned(), record)));
    assert_eq!(all(&settings, Some("ruleName = 'UserRule_2' AND sourceIPAddress = ip_bytes('192.0.2.1')")).await.len(), 1);
    let wrong = records(&settings, Timestamp::NONE..Timestamp::from_secs(TEN), Some("ruelName = ''"), &mut |_, _| Ok(())).await;
    assert!(matches!(wrong, Err(StoreError::Query(_))), "{wrong:?}");

    let sql = "SELECT sensor, flowOrigin, action, networkDirection, eventCount, ingestTimeNanoseconds, observer, ruleName, sourceVm, \
               destinationVm, sourceIPAddress FROM flows ORDER BY time";
    assert_eq!(
        rows(&settings, sql).await,
        "sensor,flowOrigin,action,networkDirection,eventCount,ingestTimeNanoseconds,observer,ruleName,sourceVm,destinationVm,sourceIPAddress\n\
         0022481A2B3C,VnetV4,Allow,Inbound,3,2025-11-21T10:00:00.000000005Z,0022481A2B3C,UserRule_2,rg/vm1,,192.0.2.1\n\
         plant1,Sensor,,,,,,,,,192.0.2.1\n\
         azure,Sensor,Unknown,Unknown,1,,,,,,\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_holds_its_first_instant_and_not_its_last_to_the_nanosecond() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let (mut importer, _) = Importer::open(settings.clone(), "azure").await.unwrap();
    let at = |nanos: i64| {
        let time = Timestamp::from_nanos(TEN * 1_000_000_000 + nanos);
        FlowRecord { start: [time; 2], ..azure(TEN, nanos.unsigned_abs()) }
    };
    importer.push((0..5).map(|nanos| at(nanos * 100)).collect()).unwrap();
    importer.commit(b"").await.unwrap();
    let mut found = Vec::new();
    let span = Timestamp::from_nanos(TEN * 1_000_000_000 + 100)..Timestamp::from_nanos(TEN * 1_000_000_000 + 300);
    let mut take = |_: &str, record: FlowRecord| {
        found.push(record.flow_id);
        Ok(())
    };
    records(&settings, span, None, &mut take).await.unwrap();
    assert_eq!(found, [100, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_goes_on_where_its_last_commit_was_and_one_name_runs_once() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let (mut importer, _) = Importer::open(settings.clone(), "azure").await.unwrap();
    let busy = Importer::open(settings.clone(), "azure").await.err().unwrap();
    assert_eq!(busy.to_string(), "an import named azure is running already; wait for it to end, or stop it");
    importer.push(vec![azure(TEN, 1)]).unwrap();
    importer.commit(b"one").await.unwrap();
    importer.commit(b"nothing new, but further").await.unwrap();
    importer.push(vec![azure(TEN, 2)]).unwrap();
    drop(importer);

    let (mut importer, state) = Importer::open(settings.clone(), "azure").await.unwrap();
    assert_eq!(state.as_deref(), Some(&b"nothing new, but further"[..]));
    importer.push(vec![azure(TEN, 2)]).unwrap();
    importer.commit(b"two").await.unwrap();
    let (_other, state) = Importer::open(settings.clone(), "another").await.unwrap();
    assert_eq!(state, None);
    assert_eq!(rows(&settings, "SELECT count(*) AS n FROM flows").await, "n\n2\n");
    let states = settings.directory.join("_imports/azure");
    assert_eq!(fs::read_dir(&states).unwrap().count(), 2, "the lock and one state");

    drop(importer);
    let state = fs::read_dir(&states).unwrap().map(|entry| entry.unwrap().path()).find(|path| !path.ends_with(".lock"));
    fs::remove_file(state.unwrap()).unwrap();
    let lost = Importer::open(settings, "azure").await.err().unwrap().to_string();
    assert!(lost.contains("where the import azure stopped"), "{lost}");
}

/// Once the commit that was under way has ended.
async fn reopen(settings: &StoreSettings) -> (Importer, Option<Vec<u8>>) {
    loop {
        match Importer::open(settings.clone(), "azure").await {
            Err(StoreError::ImportBusy(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
            opened => return opened.unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_waits_for_neither_loses_nor_doubles_and_its_state_is_its_own() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let (mut importer, _) = Importer::open(settings.clone(), "azure").await.unwrap();
    for number in 1..=60_u64 {
        importer.push(vec![azure(TEN, number)]).unwrap();
        // From "hardly begun" to "nearly done": a commit takes some milliseconds.
        let state = number.to_string();
        let _ = tokio::time::timeout(Duration::from_micros(number * 400), importer.commit(state.as_bytes())).await;
        if number % 20 == 0 {
            // As after a crash: what was not durable must be taken in again, from where the state says.
            drop(importer);
            let (again, state) = reopen(&settings).await;
            importer = again;
            let reached: u64 = state.map_or(0, |state| String::from_utf8(state).unwrap().parse().unwrap());
            importer.push((reached + 1..=number).map(|number| azure(TEN, number)).collect()).unwrap();
        }
    }
    importer.commit(b"60").await.unwrap();
    assert_eq!(importer.buffered_rows(), 0);
    assert_eq!(
        rows(&settings, "SELECT count(*), count(DISTINCT flowId), max(flowId) FROM flows").await.lines().nth(1),
        Some("60,60,60")
    );
}

/// Not a test of its own: what the next one starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_imports_until_it_is_killed() {
    let Some(directory) = env::var_os(CHILD_TABLE) else { return };
    let settings = settings(Path::new(&directory));
    let (mut importer, state) = Importer::open(settings, "azure").await.unwrap();
    let mut next: u64 = state.map_or(0, |state| String::from_utf8(state).unwrap().parse().unwrap());
    loop {
        importer.push((next..next + 7).map(|number| azure(TEN, number)).collect()).unwrap();
        next += 7;
        importer.commit(next.to_string().as_bytes()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_again_and_again_beside_a_collector_loses_and_doubles_nothing() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    let mut store = Store::open(settings.clone()).await.unwrap();
    let mut sequence = 0;
    for round in 0..12_u64 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child_that_imports_until_it_is_killed"])
            .env(CHILD_TABLE, home.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let writing = async {
            loop {
                sequence += 1;
                store.push(batch(sequence, vec![seen(TEN, sequence)])).await.unwrap();
                store.commit().await.unwrap();
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(150 + round * 37), writing).await;
        child.kill().unwrap();
        child.wait().unwrap();
        upkeep(&settings, Timestamp::from_secs(TEN + 86_400)).await.unwrap();
    }
    while store.buffered_rows() > 0 {
        store.commit().await.unwrap();
    }
    let (_importer, state) = Importer::open(settings.clone(), "azure").await.unwrap();
    let imported: u64 = String::from_utf8(state.unwrap()).unwrap().parse().unwrap();
    assert!(imported > 12, "the children hardly ran");
    let mut numbers = HashSet::new();
    let found = all(&settings, None).await;
    for (_, record) in &found {
        assert!(numbers.insert((record.cloud.is_some(), record.flow_id)), "{record:?} came twice");
    }
    assert_eq!(found.len() as u64, sequence + imported);
    assert!((0..imported).all(|number| numbers.contains(&(true, number))));
    assert!((1..=sequence).all(|number| numbers.contains(&(false, number))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_gives_records_back_and_many_hours_are_kept_apart() {
    let home = tempfile::tempdir().unwrap();
    let settings = StoreSettings { commit_rows_max: 1_000, buffer_rows_max: 1_500, ..settings(home.path()) };
    let (mut importer, _) = Importer::open(settings.clone(), "azure").await.unwrap();
    importer.push((0..1_000).map(|hour| azure(TEN + hour / 4 * 3600, hour.unsigned_abs())).collect()).unwrap();
    assert!(importer.wants_commit());
    assert_eq!(importer.push(vec![azure(TEN, 1); 501]).unwrap_err().len(), 501);
    importer.commit(b"").await.unwrap();
    importer.push(vec![azure(TEN, 1); 501]).unwrap();
    let apart = "SELECT count(*) AS n FROM (SELECT DISTINCT date, hour FROM flows)";
    assert_eq!(rows(&settings, apart).await, "n\n250\n");
    let numbers: Vec<u64> = all(&settings, None).await.iter().map(|(_, record)| record.flow_id).collect();
    assert_eq!(numbers, (0..1_000).collect::<Vec<_>>(), "in the order of time");
}
