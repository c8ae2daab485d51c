//! KQL's functions in SQL: hunts over stored records.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may fail loudly, and its name says what it is for")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use spanwatch_common::flow::{FlowRecord, protocol};
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::Batch;
use spanwatch_store::{Format, Store, StoreError, StoreSettings, query};

/// 2025-11-21T10:00:00Z, a Friday.
const TEN: i64 = 1_763_719_200;

fn settings(directory: &Path) -> StoreSettings {
    StoreSettings { directory: directory.join("flows"), retention_days: 0, ..StoreSettings::default() }
}

/// `secs` after ten o'clock.
fn flow(secs: i64, source: &str, destination: &str, port: u16, octets: u64) -> FlowRecord {
    let at = Timestamp::from_secs(TEN + secs).plus(Duration::from_millis(250));
    FlowRecord {
        flow_id: secs.unsigned_abs(),
        ethernet_type: 0x0800,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        source_port: 40_000,
        destination_port: port,
        protocol: protocol::TCP,
        packets: [1, 0],
        octets: [octets, 0],
        layer2_octets: [octets + 18, 0],
        start: [at, Timestamp::NONE],
        end: [at, Timestamp::NONE],
        ..FlowRecord::default()
    }
}

async fn stored(settings: &StoreSettings, records: Vec<FlowRecord>) {
    let mut store = Store::open(settings.clone()).await.unwrap();
    let batch = Batch { sensor: "plant-1".to_owned(), boot: 1, sequence: 1, records, ..Batch::default() };
    store.push(Arc::new(batch)).await.unwrap();
    store.commit().await.unwrap();
}

async fn ask(settings: &StoreSettings, sql: &str) -> Result<Vec<Value>, StoreError> {
    let mut out = Vec::new();
    query(settings, sql, Format::Json, &mut out).await?;
    Ok(String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_horizontal_scan_is_hunted_as_in_kql() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    // Within a minute from 10:02: one host reaches 30 others, another 6, a public one 40. A load test: 500 times the same host.
    let mut records: Vec<FlowRecord> = (0..30).map(|i| flow(120 + i, "10.0.0.7", &format!("10.0.1.{i}"), 445, 60)).collect();
    records.extend((0..6).map(|i| flow(120 + i, "10.0.0.8", &format!("10.0.1.{i}"), 445, 60)));
    records.extend((0..40).map(|i| flow(120 + i, "198.51.100.9", &format!("10.0.1.{i}"), 445, 60)));
    records.extend((0..500).map(|i| flow(120 + i % 60, "10.0.0.9", "10.0.1.1", 443, 60)));
    records.push(flow(120, "2001:db8::1", "2001:db8::2", 443, 60));
    stored(&settings, records).await;

    let hunt = "SELECT sourceIPAddress AS src, bin(time, INTERVAL '1 minute') AS minute, dcount(destinationIPAddress) AS hosts \
                FROM flows WHERE destinationTransportPort < 10000 AND ipv4_is_private(sourceIPAddress) \
                AND ipv4_is_private(destinationIPAddress) GROUP BY src, minute HAVING hosts > 6";
    assert_eq!(ask(&settings, hunt).await.unwrap(), [json!({"src": "10.0.0.7", "minute": "2025-11-21T10:02:00Z", "hosts": 30})]);

    // The raw table has addresses as 16 bytes; IPv6 is neither private nor public.
    let classes = "SELECT ipv4_is_private(sourceIPAddress) AS private, dcount(sourceIPAddress) AS sources FROM flows_raw \
                   GROUP BY 1 ORDER BY 1";
    assert_eq!(
        ask(&settings, classes).await.unwrap(),
        [json!({"private": false, "sources": 1}), json!({"private": true, "sources": 3}), json!({"private": null, "sources": 1}),]
    );
    let within = "SELECT count(*) AS n FROM flows WHERE ipv4_is_in_range(sourceIPAddress, '198.51.100.0/24')";
    assert_eq!(ask(&settings, within).await.unwrap(), [json!({"n": 40})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_hour_is_hunted_as_in_kql() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    // A week by the hour: busy days and quiet nights, a little noise; one host sends ten times as much in the hour 100.
    let volume = |hour: u64| if (8..18).contains(&((hour + 10) % 24)) { 50_000 } else { 5_000 } + hour * 7_919 % 997;
    let mut records = Vec::new();
    for hour in 0..168_u64 {
        let secs = hour as i64 * 3_600 + 60;
        let burst = if hour == 100 { 500_000 } else { 0 };
        records.push(flow(secs, "10.0.0.7", "192.0.2.1", 443, volume(hour) + burst));
        records.push(flow(secs, "10.0.0.8", "192.0.2.1", 443, volume(hour + 5) / 2));
        records.push(flow(secs + 1_800, "10.0.0.8", "192.0.2.2", 443, volume(hour + 5) / 2));
    }
    stored(&settings, records).await;

    let week = "TIMESTAMP '2025-11-21 10:00:00', TIMESTAMP '2025-11-28 10:00:00', INTERVAL '1 hour'";
    let hunt = format!(
        "WITH volumes AS (SELECT sourceIPAddress AS src, make_series(octetDeltaCount, time, {week}) AS sent FROM flows GROUP BY src), \
         judged AS (SELECT src, unnest(range({week})) AS hour, unnest(sent) AS sent, \
                    unnest(series_decompose_anomalies(sent, 3)['ad_flag']) AS flag FROM volumes) \
         SELECT src, hour, sent FROM judged WHERE flag <> 0"
    );
    let sent = volume(100) as f64 + 500_000.0;
    assert_eq!(ask(&settings, &hunt).await.unwrap(), [json!({"src": "10.0.0.7", "hour": "2025-11-25T14:00:00", "sent": sent})]);

    let season = format!(
        "SELECT series_periods_detect(make_series(octetDeltaCount, time, {week}), 4, 100, 2)['periods'] AS periods FROM flows"
    );
    assert_eq!(ask(&settings, &season).await.unwrap(), [json!({"periods": [24.0, 0.0]})]);

    let peers = format!(
        "SELECT sourceIPAddress AS src, array_max(make_series(destinationIPAddress, time, {week}, 'dcount')) AS peers, \
         array_max(make_series(1, time, {week}, 'count', -1)) AS flows, min(octetDeltaCount) AS least, \
         percentile(octetDeltaCount, 0) AS p0, dcount(destinationIPAddress) AS hosts FROM flows GROUP BY src ORDER BY src"
    );
    let rows = ask(&settings, &peers).await.unwrap();
    let numbers = |row: &Value| ["peers", "flows", "hosts"].map(|name| row[name].as_f64().unwrap());
    assert_eq!(rows.iter().map(numbers).collect::<Vec<_>>(), [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]);
    assert!(rows.iter().all(|row| row["least"].as_f64() == row["p0"].as_f64()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_examples_come_out_of_sql() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    stored(&settings, vec![flow(0, "10.0.0.7", "10.0.0.8", 443, 60)]).await;
    let value =
        async |expression: &str| ask(&settings, &format!("SELECT {expression} AS v")).await.map(|rows| rows[0]["v"].clone());

    let fit = value("series_fit_line([2,5,6,8,11,15,17,18,25,26,30,30])").await.unwrap();
    for (name, documented) in [("rsquare", 0.982), ("slope", 2.730), ("variance", 98.628), ("rvariance", 1.686)] {
        assert!((fit[name].as_f64().unwrap() - documented).abs() < 1e-3, "{name} of {fit}");
    }
    assert!((fit["interception"].as_f64().unwrap() + 1.666).abs() < 1e-3 && fit["line_fit"].as_array().unwrap().len() == 12);

    let traffic = "[80,139,87,110,68,54,50,51,53,133,86,141,97,156,94,149,95,140,77,61,50,54,47,133,72,152,94,148,105,162,101,160,\
                   87,63,53,55,54,151,103,189,108,183,113,175,113,178,90,71,62,62,65,165,109,181,115,182,121,178,114,170]";
    let detected = value(&format!("series_periods_detect({traffic}, 0.0, 50.0, 2)")).await.unwrap();
    assert_eq!(detected["periods"], json!([14.0, 0.0]));
    assert_eq!((detected["scores"][0].as_f64().unwrap() * 100.0).trunc(), 84.0);
    let validated = value(&format!("series_periods_validate({traffic}, 14, 10)")).await.unwrap();
    assert_eq!((&validated["scores"][0], &validated["scores"][1]), (&detected["scores"][0], &json!(0.0)));

    let seasonal =
        value("series_decompose([8,12,14,12,10,10,12,14,12,10,10,12,14,12,10,10,12,14,12,10])['seasonal']").await.unwrap();
    assert_eq!(seasonal, json!([10.0, 12.0, 14.0, 12.0, 10.0].repeat(4)));

    for (expression, expected) in [
        ("ipv4_is_private('192.168.1.1/24')", json!(true)),
        ("ipv4_is_private('127.0.0.1')", json!(false)),
        ("ipv4_is_private('')", json!(null)),
        ("ipv4_is_private(NULL)", json!(null)),
        ("bin(-1, 60)", json!(-60)),
        ("bin(4.5, 1)", json!(4.0)),
        ("bin(TIMESTAMP '1969-12-31 23:59:59', INTERVAL '1 day')", json!("1969-12-31T00:00:00")),
        ("series_outliers([1,1,1,NULL,1,1,1,1,1,1,1,9])", json!([0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 1e6])),
        ("series_outliers([1,2,9], 'ctukey', 9)[3]", json!(0.0)),
        ("series_decompose_anomalies(NULL)['ad_flag']", json!(null)),
        ("series_decompose_anomalies([])['ad_flag']", json!([])),
    ] {
        assert_eq!(value(expression).await.unwrap(), expected, "{expression}");
    }
    // Worked out by hand: of 2, 4, 4, 4, 5, 5, 7, 9 the mean is 5, and the squares of the distances add up to 32.
    let aggregates = ask(
        &settings,
        "SELECT stdev(x) AS s, variance(x) AS v, percentile(x, 90) AS p, dcount(x) AS d, \
                                     dcount(CASE WHEN x < 0 THEN x END) AS none \
                                     FROM (SELECT unnest([2,4,4,4,5,5,7,9]) AS x)",
    )
    .await
    .unwrap();
    assert!((aggregates[0]["s"].as_f64().unwrap() - (32.0_f64 / 7.0).sqrt()).abs() < 1e-12);
    assert!((aggregates[0]["v"].as_f64().unwrap() - 32.0 / 7.0).abs() < 1e-12);
    assert!((aggregates[0]["p"].as_f64().unwrap() - 7.6).abs() < 1e-12, "7 + 0.3 × (9 − 7)");
    assert_eq!((&aggregates[0]["d"], &aggregates[0]["none"]), (&json!(5), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_values_are_counted_closely_by_group_and_in_all() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    stored(&settings, vec![flow(0, "10.0.0.7", "10.0.0.8", 443, 60)]).await;
    let rows =
        ask(&settings, "SELECT value % 3 AS rest, dcount(value / 3) AS n FROM range(0, 90000) GROUP BY rest ORDER BY rest").await;
    for row in rows.unwrap() {
        assert!((row["n"].as_f64().unwrap() - 30_000.0).abs() < 600.0, "{row}");
    }
    let rows =
        ask(&settings, "SELECT dcount(concat('host-', value % 1000)) AS few, dcount(value) AS many FROM range(0, 90000)").await;
    let row = &rows.unwrap()[0];
    assert_eq!(row["few"], json!(1000), "exact to a thousand");
    assert!((row["many"].as_f64().unwrap() - 90_000.0).abs() < 1_800.0, "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_answered_with_a_sentence() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path());
    stored(&settings, vec![flow(0, "10.0.0.7", "10.0.0.8", 443, 60), flow(3_600, "10.0.0.7", "10.0.0.9", 443, 60)]).await;
    for (expression, hint) in [
        ("bin(time, 5)", "bin(time, INTERVAL '5 minutes')"),
        ("bin(time, INTERVAL '1 month')", "use days, hours, minutes or seconds"),
        ("bin(octetDeltaCount, 0)", "must be more than nothing"),
        ("ipv4_is_private(octetDeltaCount)", "an address is text or 16 bytes, not Int64"),
        ("series_fit_line(octetDeltaCount)", "a list of numbers"),
        ("series_outliers([1,2,3], 'zscore')", "use \"ctukey\" or \"tukey\""),
        ("series_outliers([1,2,3], 'ctukey', NULL, 0, 90)", "from 2 to 98"),
        ("series_periods_detect([1,2,3])", "how many)"),
        ("series_decompose([1,2,3], -7)", "use -1 to detect it"),
        ("series_decompose([1,2,3], 0, 'flat')", "use \"avg\", \"linefit\" or \"none\""),
        ("series_decompose_anomalies([1,2,3], 'strong')", "argument 2"),
        ("percentile(octetDeltaCount, 101)", "between 0 and 100"),
        ("percentile(octetDeltaCount, octetDeltaCount)", "not a column"),
        ("dcount()", "dcount"),
        ("make_series(octetDeltaCount, time, time, time, INTERVAL '1 hour')", "not a column"),
        ("make_series(octetDeltaCount, time, DATE '2025-11-21', DATE '2025-11-22')", "call it as make_series("),
        ("make_series(octetDeltaCount, time, DATE '2025-11-21', DATE '2025-11-22', 60)", "a step of the same kind"),
        (
            "make_series(octetDeltaCount, time, DATE '2025-11-21', DATE '2025-11-22', INTERVAL '1 millisecond')",
            "at most 1048576 points",
        ),
        ("make_series(octetDeltaCount, time, DATE '2025-11-21', DATE '2025-11-22', INTERVAL '1 hour', 'mode')", "\"dcount\""),
        ("make_series(sourceIPAddress, time, DATE '2025-11-21', DATE '2025-11-22', INTERVAL '1 hour')", "can only be counted"),
    ] {
        let error = ask(&settings, &format!("SELECT {expression} AS v FROM flows")).await.unwrap_err().to_string();
        assert!(error.contains(hint) && !error.contains('\n'), "{expression}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn series_that_do_not_fit_into_memory_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let settings = StoreSettings { query_memory_bytes_max: 64 << 20, query_spill_bytes_max: 1 << 20, ..settings(home.path()) };
    stored(&settings, vec![flow(0, "10.0.0.7", "10.0.0.8", 443, 60)]).await;
    // A thousand series of a million points each would be 8 GB.
    let sql = "SELECT value % 1000 AS g, make_series(1, value, 0, 1000000, 1) AS s FROM range(0, 5000) GROUP BY g";
    let error = ask(&settings, sql).await.unwrap_err().to_string();
    assert!(error.contains("needs more than `store.query_memory_bytes_max`"), "{error}");
}
