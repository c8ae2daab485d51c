//! Azure's flow logs from files, web servers and Blob Storage: every row once, whatever happens in between.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may fail loudly, and its name says what it is for")]

mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spanwatch_collector::config::Config;
use spanwatch_collector::detect::RuleFile;
use spanwatch_collector::ingest::azure::hour::BlobHour;
use spanwatch_collector::ingest::azure::settings::AzureSettings;
use spanwatch_collector::pki::{Existing, Pki};
use spanwatch_collector::run::Collector;
use spanwatch_collector::store::{self, Format};
use spanwatch_common::time::Timestamp;
use tokio::runtime::Runtime;

use support::{SIGNATURE, Service, address, record};

const MAC: &str = "00224800000A";
const PATIENCE: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "a container is followed in real time")]
fn now() -> Timestamp {
    Timestamp::NONE.plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The destinations of all stored rows, sorted.
fn stored(config: &Config) -> Vec<String> {
    let mut out = Vec::new();
    let sql = "SELECT \"destinationIPAddress\" FROM flows ORDER BY 1";
    match runtime().block_on(store::query(&config.store, sql, Format::Csv, &mut out)) {
        Ok(_) => String::from_utf8(out).unwrap().lines().skip(1).map(str::to_owned).collect(),
        Err(store::StoreError::Empty(_)) => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

/// What [`stored`] gives when the conversations `0..count` are there, each once.
fn each_once(count: u32) -> Vec<String> {
    let mut all: Vec<String> = (0..count).map(address).collect();
    all.sort();
    all
}

fn wait_for_rows(config: &Config, count: u32) {
    wait_until(|| stored(config).len() >= count as usize);
}

fn wait_until(is_so: impl Fn() -> bool) {
    let mut waited = Duration::ZERO;
    while !is_so() {
        assert!(waited < PATIENCE, "in vain");
        std::thread::sleep(Duration::from_millis(100));
        waited += Duration::from_millis(100);
    }
}

/// Settings for a collector in `directory` that follows the container of `service`.
fn settings(directory: &Path, service: &Service) -> Config {
    let mut config = Config::default();
    config.ingest.listen = "127.0.0.1:0".to_owned();
    config.metrics.listen = String::new();
    config.pki.directory = directory.join("pki");
    config.store.directory = directory.join("flows");
    config.store.commit_interval_secs = 1;
    config.alerts.file = directory.join("alerts.ndjson");
    let credential_file = directory.join("sas");
    std::fs::write(&credential_file, format!("?sv=2024-11-04&sp=rl&sig={SIGNATURE}\n")).unwrap();
    config.azure = vec![AzureSettings {
        name: "plant".to_owned(),
        account: "acct".to_owned(),
        container: "logs".to_owned(),
        credential_file,
        endpoint: format!("http://{}", service.address),
        poll_interval_secs: 1,
        ..AzureSettings::default()
    }];
    Pki::new(&config.pki.directory).init(&[], now(), Existing::Keep).unwrap();
    config
}

/// The path of this hour's blob, and a time in it in milliseconds.
fn this_hour(mac: &str) -> (String, i64) {
    let at = now();
    let path =
        format!("flowLogResourceID=/S_NETWORKWATCHERRG/NETWORKWATCHER_X_F/{}/m=00/macAddress={mac}/PT1H.json", BlobHour::of(at));
    (path, at.as_millis())
}

fn start(config: &Config) -> (Runtime, Collector) {
    let runtime = runtime();
    let collector = runtime.block_on(Collector::start(config.clone(), &RuleFile::default())).unwrap();
    (runtime, collector)
}

/// Nothing that was written anywhere below `directory`, the credential file excepted, holds the signature.
fn assert_no_secret(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert_no_secret(&path);
        } else if !path.ends_with("sas") {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(SIGNATURE.len()).any(|window| window == SIGNATURE.as_bytes()), "{}", path.display());
        }
    }
}

#[test]
fn a_container_is_followed_through_trouble_restarts_and_kills_and_every_row_comes_once() {
    for no_block_lists in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let service = Service::start();
        service.shelf().no_block_lists = no_block_lists;
        let config = settings(directory.path(), &service);
        let (path, millis) = this_hour(MAC);
        let (other, _) = this_hour("00224800000B");
        let mut rows = 0;
        let mut append = |path: &str, mac: &str, count| {
            service.shelf().append(path, &record(mac, millis + i64::from(rows), rows, rows + count));
            rows += count;
            rows
        };
        append(&path, MAC, 10);
        let (runtime, collector) = start(&config);
        let total = append(&other, "00224800000B", 20);
        wait_for_rows(&config, total);
        // Azure at times writes a tuple twice, and not only within a minute.
        service.shelf().append(&path, &record(MAC, millis, 0, 10));
        wait_until(|| collector.vitals().containers()["plant"].duplicates == 10);

        // The service has bad moments, and connections break.
        service.shelf().failures = Some((3, 503));
        service.shelf().breaks = 1;
        let total = append(&path, MAC, 500);
        wait_for_rows(&config, total);

        // In order: the end of one run and the next.
        runtime.block_on(collector.stop());
        let total = append(&path, MAC, 30);
        let (runtime, collector) = start(&config);
        wait_for_rows(&config, total);
        wait_until(|| collector.vitals().containers()["plant"].rounds > 0);
        let sums = collector.vitals().containers()["plant"].clone();
        assert_eq!((sums.rows, sums.blobs, sums.duplicates, sums.trouble), (30, 2, 0, None), "only what was new was read");
        wait_until(|| collector.vitals().detect().counters.observed >= 30);
        drop(collector);

        // In disorder, several times, in the middle of whatever it did.
        runtime.shutdown_timeout(PATIENCE);
        for step in 0..4 {
            append(&other, "00224800000B", 1_000);
            let total = append(&path, MAC, 40);
            let (runtime, collector) = start(&config);
            std::thread::sleep(Duration::from_millis(100 + 250 * step));
            drop(collector);
            runtime.shutdown_timeout(PATIENCE);
            let (runtime, collector) = start(&config);
            wait_for_rows(&config, total);
            runtime.block_on(collector.stop());
        }
        let total = append(&path, MAC, 1);
        let (runtime, collector) = start(&config);
        wait_for_rows(&config, total);

        // Another document under the same name, of the same length or longer, is read from its beginning.
        service.shelf().remove(&path);
        let total = append(&path, MAC, 3_000);
        wait_for_rows(&config, total);
        assert_eq!(collector.vitals().containers()["plant"].replaced, 1);
        runtime.block_on(collector.stop());

        assert_eq!(stored(&config), each_once(total), "block lists: {}", !no_block_lists);
        assert_no_secret(directory.path());
    }
}

#[test]
fn a_container_that_may_not_be_read_is_told_in_a_sentence_and_read_when_it_may() {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::start();
    let config = settings(directory.path(), &service);
    let sas = &config.azure[0].credential_file;
    std::fs::write(sas, "sv=2024-11-04&sp=rl&sig=WRONG").unwrap();
    let (path, millis) = this_hour(MAC);
    service.shelf().append(&path, &record(MAC, millis, 0, 10));
    let (runtime, collector) = start(&config);
    let trouble = |collector: &Collector| collector.vitals().containers().get("plant").and_then(|plant| plant.trouble.clone());
    wait_until(|| trouble(&collector).is_some());
    let said = trouble(&collector).unwrap();
    assert!(said.contains("does not permit") && said.contains("sp=rl") && !said.contains("WRONG"), "{said}");
    assert!(collector.vitals().render().contains("spanwatch_azure_trouble{container=\"plant\"} 1"));
    std::fs::write(sas, format!("sv=2024-11-04&sp=rl&sig={SIGNATURE}")).unwrap();
    wait_for_rows(&config, 10);
    runtime.block_on(collector.stop());
}

/// A settings file whose store takes few rows at a time.
fn settings_file(directory: &Path) -> (PathBuf, Config) {
    let path = directory.join("collector.toml");
    let store = directory.join("flows");
    let text = format!("[store]\ndirectory = {store:?}\ncommit_rows_max = 1000\n");
    std::fs::write(&path, &text).unwrap();
    let config = Config::parse(&path, &text).unwrap();
    (path, config)
}

fn collector(settings: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanwatch-collector"));
    command.arg("--config").arg(settings);
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn document(records: &[String]) -> String {
    format!("{{\"records\":[{}]}}", records.join(","))
}

#[test]
fn an_import_that_is_killed_goes_on_where_it_stopped_and_what_grew_is_continued() {
    let directory = tempfile::tempdir().unwrap();
    let (settings, config) = settings_file(directory.path());
    let logs = directory.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let records = |from: u32, to: u32| -> Vec<String> {
        (from..to).map(|n| record(MAC, 1_795_255_200_000 + i64::from(n), n * 500, (n + 1) * 500)).collect()
    };
    std::fs::write(logs.join("a.json"), document(&records(0, 40))).unwrap();
    let packed = std::fs::File::create(logs.join("b.json.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    packed.write_all(document(&records(40, 80)).as_bytes()).unwrap();
    packed.finish().unwrap();
    // Still being written: the last record has not ended.
    let whole = document(&records(80, 100));
    std::fs::write(logs.join("c.json"), &whole[..whole.len() - 1_000]).unwrap();

    let mut kills = 0;
    let done = loop {
        let mut child =
            collector(&settings).arg("import").arg(&logs).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(150 + 150 * kills));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        kills += 1;
        child.kill().unwrap();
        child.wait().unwrap();
    };
    assert!(done.success() && kills > 0, "{done} after {kills} kills");
    assert_eq!(stored(&config), each_once(99 * 500));

    std::fs::write(logs.join("c.json"), &whole).unwrap();
    let output = collector(&settings).arg("import").arg(&logs).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("sources    3 = 1 read + 2 imported before + 0 not read to the end"), "{said}");
    assert!(said.contains("tuples     500 = 500 rows stored + 0 duplicates"), "{said}");
    assert_eq!(stored(&config), each_once(100 * 500));

    // Another file under the same name is another file.
    std::fs::write(logs.join("a.json"), document(&records(100, 101))).unwrap();
    let said = text(&collector(&settings).arg("import").arg(logs.join("*.json")).output().unwrap());
    assert!(said.contains("1 of them have other content"), "{said}");
    assert_eq!(stored(&config), each_once(101 * 500));
}

#[test]
fn an_import_over_the_network_survives_a_bad_connection_and_keeps_the_signature_to_itself() {
    let directory = tempfile::tempdir().unwrap();
    let (settings, config) = settings_file(directory.path());
    let service = Service::start();
    let records: Vec<String> = (0..20).map(|n| record(MAC, 1_795_255_200_000, n * 100, (n + 1) * 100)).collect();
    service.shelf().put("y=2026/m=11/d=21/h=10/m=00/macAddress=00224800000A/PT1H.json", document(&records).as_bytes());
    let url = format!(
        "http://{}/logs/y=2026/m=11/d=21/h=10/m=00/macAddress=00224800000A/PT1H.json?sv=2024-11-04&sig={SIGNATURE}",
        service.address
    );
    service.shelf().failures = Some((2, 503));
    service.shelf().breaks = 2;
    let output = collector(&settings).args(["import", &url]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("2000 = 2000 rows stored + 0 duplicates"), "{said}");
    assert!(!said.contains(SIGNATURE), "{said}");
    assert_eq!(stored(&config), each_once(2_000));

    let wrong = url.replace(SIGNATURE, "ANOTHERSECRET");
    let output = collector(&settings).args(["import", &wrong]).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success() && said.contains("does not permit it (403)") && !said.contains("ANOTHERSECRET"), "{said}");

    // The same blob through the container, which is another source.
    let output = collector(&settings)
        .args(["import", "--dry-run", "az://acct/logs/y=2026"])
        .env("AZURE_STORAGE_ENDPOINT", format!("http://{}", service.address))
        .env("AZURE_STORAGE_SAS_TOKEN", format!("sv=2024-11-04&sig={SIGNATURE}"))
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("2000 = 2000 rows, not stored + 0 duplicates"), "{said}");
    assert_no_secret(directory.path());
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_imported_also_from_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let (settings, config) = settings_file(directory.path());
    let logs = directory.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let foreign = "{\"time\":\"2026-11-21T10:00:00Z\",\"category\":\"AzureFirewallNetworkRule\",\"properties\":{}}\n";
    std::fs::write(logs.join("a.json"), foreign).unwrap();
    std::fs::write(logs.join("b.json"), document(&[record(MAC, 1_795_255_200_000, 0, 10)])).unwrap();
    // The second record is damaged; the first is not.
    let damaged =
        document(&[record(MAC, 1_795_255_200_000, 10, 20), record(MAC, 1_795_255_200_000, 20, 30).replace(",O,", ",X,")]);
    std::fs::write(logs.join("c.json"), damaged).unwrap();
    let output = collector(&settings).arg("import").arg(&logs).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("sources    3 = 1 read + 0 imported before + 2 not read to the end"), "{said}");
    assert!(said.contains("a.json: record 0") && said.contains("AzureFirewallNetworkRule"), "{said}");
    assert!(said.contains("c.json: record 1, tuple 0"), "{said}");
    assert_eq!(stored(&config), each_once(20));

    let pipe = |text: &str| {
        let mut child = collector(&settings)
            .args(["import", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let piped = document(&[record(MAC, 1_795_255_200_000, 20, 40)]);
    let said = text(&pipe(&piped));
    assert!(said.contains("20 = 20 rows stored"), "{said}");
    let said = text(&pipe(&piped));
    assert!(said.contains("0 = 0 rows stored"), "{said}");
    assert_eq!(stored(&config), each_once(40));
}
