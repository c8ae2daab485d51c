//! Sensor and collector over loopback, with a real store: who may speak, what happens to nonsense, and that nothing is lost
//! or counted twice whatever the network, the collector and the queue do.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use spanwatch_collector::config::Config;
use spanwatch_collector::detect::RuleFile;
use spanwatch_collector::pki::{Existing, Pki};
use spanwatch_collector::run::Collector;
use spanwatch_collector::store::{self, Format};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::ledger::Ledger;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::{self, Hello, Message, RejectCode, VERSION};
use spanwatch_sensor::export::{ExportSettings, Harvest};
use spanwatch_sensor::uplink::settings::UplinkSettings;
use spanwatch_sensor::uplink::{Uplink, check_reach};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const DAY: Duration = Duration::from_secs(86_400);

#[expect(clippy::disallowed_methods, reason = "certificates are valid in real time")]
fn now() -> Timestamp {
    Timestamp::NONE.plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}

/// A collector with everything it needs in a directory of its own.
struct Running {
    config: Config,
    runtime: Runtime,
    collector: Option<Collector>,
}

impl Running {
    /// On a port of its own choice, with the certificates of `pki` and its store beside them.
    fn start(directory: &Path, pki: &Path) -> Self {
        let mut config = Config::default();
        config.ingest.listen = free_address().to_string();
        config.ingest.credit_batches = 8;
        config.pki.directory = pki.to_owned();
        config.store.directory = directory.join("flows");
        config.store.commit_interval_secs = 1;
        config.alerts.file = directory.join("alerts.ndjson");
        config.metrics.listen = String::new();
        Self::start_with(config)
    }

    fn start_with(config: Config) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let collector = runtime.block_on(Collector::start(config.clone(), &RuleFile::default())).unwrap();
        Self { config, runtime, collector: Some(collector) }
    }

    fn address(&self) -> SocketAddr {
        self.collector().sensors
    }

    fn collector(&self) -> &Collector {
        self.collector.as_ref().unwrap()
    }

    /// Stops in order, as on SIGTERM.
    fn stop(mut self) -> Config {
        let collector = self.collector.take().unwrap();
        self.runtime.block_on(collector.stop());
        self.config.clone()
    }

    /// Stops in the middle of everything, as on SIGKILL: every task is dropped where it is.
    fn kill(self) -> Config {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
        self.config
    }
}

/// Flow ids of all stored records, sorted.
fn stored(config: &Config) -> Vec<u64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut out = Vec::new();
    let sql = "SELECT \"flowId\" FROM flows_raw ORDER BY 1";
    runtime.block_on(store::query(&config.store, sql, Format::Csv, &mut out)).unwrap();
    String::from_utf8(out).unwrap().lines().skip(1).map(|line| line.parse().unwrap()).collect()
}

/// An address on which nobody listens.
fn free_address() -> SocketAddr {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// An authority and the identity `plant1`, made `ago`.
fn authority(directory: &Path, ago: Duration) -> (Pki, PathBuf) {
    let pki = Pki::new(directory);
    pki.init(&[], now().minus(ago), Existing::Keep).unwrap();
    let identity = pki.issue("plant1", now().minus(ago), Existing::Keep).unwrap();
    (pki, identity)
}

fn uplink_settings(collector: SocketAddr, identity: &Path) -> UplinkSettings {
    UplinkSettings {
        collector: collector.to_string(),
        identity: identity.to_owned(),
        connect_timeout_secs: 3,
        retry_secs_max: 1,
        ..UplinkSettings::default()
    }
}

/// Harvests as workers hand them over: record *n* has flow id *n* and three packets.
struct Workers {
    ledger: Ledger,
}

impl Workers {
    fn harvest(&mut self, records: u64) -> Harvest {
        let from = self.ledger.flows.records;
        self.ledger.flows.records += records;
        for count in [&mut self.ledger.wire, &mut self.ledger.delivered, &mut self.ledger.metered, &mut self.ledger.exported] {
            *count += 3 * records;
        }
        let record = |id| FlowRecord { flow_id: id, packets: [2, 1], ..FlowRecord::default() };
        Harvest { worker: 0, ledger: self.ledger, records: (from..from + records).map(record).collect() }
    }
}

/// Why `doctor` would say that the collector cannot be reached.
fn obstacle(settings: &UplinkSettings) -> String {
    check_reach(settings).expect_err("it should be refused").to_string()
}

#[test]
fn only_a_certificate_of_the_right_authority_name_and_time_gets_in_and_the_sentence_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, identity) = authority(&directory.path().join("ours"), Duration::ZERO);
    let (_, foreign) = authority(&directory.path().join("foreign"), Duration::ZERO);
    let listening = Listening::start(&ours, Duration::from_millis(10));

    let settings = uplink_settings(listening.address, &identity);
    let (name, _) = check_reach(&settings).unwrap();
    assert_eq!(name, "plant1");

    let said = obstacle(&uplink_settings(listening.address, &foreign));
    assert!(said.contains("not from our authority"), "{said}");
    let said = obstacle(&UplinkSettings { server_name: "elsewhere".to_owned(), ..settings.clone() });
    assert!(said.contains("for another name"), "{said}");
    let said = obstacle(&UplinkSettings { collector: "no-such-host.invalid".to_owned(), ..settings.clone() });
    assert!(said.contains("does not resolve"), "{said}");
    let said = obstacle(&UplinkSettings { identity: directory.path().join("none.pem"), ..settings.clone() });
    assert!(said.contains("pki issue"), "{said}");

    // A sensor whose own certificate has ended: issued three years ago by the same authority.
    let old = ours.issue("plant2", now().minus(3 * 365 * DAY), Existing::Keep).unwrap();
    let said = obstacle(&uplink_settings(listening.address, &old));
    assert!(said.contains("this sensor's certificate has expired"), "{said}");

    // A collector whose certificate has ended.
    let (old_ours, old_identity) = authority(&directory.path().join("old"), 3 * 365 * DAY);
    let old_listening = Listening::start(&old_ours, Duration::from_millis(10));
    let said = obstacle(&uplink_settings(old_listening.address, &old_identity));
    assert!(said.contains("its certificate has expired"), "{said}");

    // A sensor that trusts our collector, but was certified by another authority.
    let mut mixed = std::fs::read_to_string(&foreign).unwrap();
    let foreign_authority = std::fs::read_to_string(directory.path().join("foreign/ca.pem")).unwrap();
    mixed = mixed.replace(&foreign_authority, &std::fs::read_to_string(ours.authority_path()).unwrap());
    let mixed_path = directory.path().join("mixed.pem");
    std::fs::write(&mixed_path, mixed).unwrap();
    let said = obstacle(&uplink_settings(listening.address, &mixed_path));
    assert!(said.contains("does not know the authority of this sensor's certificate"), "{said}");

    assert_eq!(listening.registry.statuses(), [], "nobody got as far as a session");
    assert_eq!(listening.door.rejected.load(Ordering::Relaxed), 0);
    assert_eq!(listening.door.strangers.load(Ordering::Relaxed), 4, "the wrong name, the expired, and both foreign ones");
    let nobody = listening.address;
    drop(listening);
    let said = obstacle(&uplink_settings(nobody, &identity));
    assert!(said.contains("is `spanwatch-collector run` up"), "{said}");
}

#[test]
fn ten_batches_arrive_and_are_acknowledged_only_after_the_commit() {
    let directory = tempfile::tempdir().unwrap();
    let (pki, identity) = authority(directory.path(), Duration::ZERO);
    let listening = Listening::start(&pki, Duration::from_millis(300));
    let export = ExportSettings { batch_records_max: 100, batch_age_millis: 10, ..ExportSettings::default() };
    let (uplink, harvests) = Uplink::start(uplink_settings(listening.address, &identity), export, 7, "a test").unwrap();
    let mut workers = Workers { ledger: Ledger::default() };
    for _ in 0..10 {
        harvests.send(workers.harvest(100)).unwrap();
        assert_eq!(uplink.ledger().imbalance(), None);
    }
    let farewell = uplink.finish();
    assert_eq!(farewell.ledger.imbalance(), None);
    assert_eq!((farewell.ledger.acknowledged, farewell.ledger.queued, farewell.ledger.not_sent), (3000, 0, 0));
    assert_eq!(listening.flow_ids(), (0..1000).collect::<Vec<_>>());
    let (name, status) = listening.registry.statuses().remove(0);
    assert_eq!((name.as_str(), status.batches, status.records), ("plant1", 10, 1000));
    // The sensor's last account says that everything has been acknowledged.
    let seen = || listening.registry.statuses().remove(0).1.ledger;
    for _ in 0..100 {
        if seen().acknowledged == 3000 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(seen(), farewell.ledger);
}

/// Forwards connections to `to`, and cuts each after the next of `lengths` bytes from the sensor.
async fn unreliable(listener: TcpListener, to: SocketAddr, lengths: Vec<usize>) {
    let mut lengths = lengths.into_iter();
    while let Ok((mut sensor, _)) = listener.accept().await {
        let mut collector = TcpStream::connect(to).await.unwrap();
        match lengths.next() {
            Some(length) => {
                let (mut from_sensor, mut to_sensor) = sensor.split();
                let (mut from_collector, mut to_collector) = collector.split();
                let mut limited = tokio::io::AsyncReadExt::take(&mut from_sensor, length as u64);
                tokio::select! {
                    _ = tokio::io::copy(&mut limited, &mut to_collector) => {}
                    _ = tokio::io::copy(&mut from_collector, &mut to_sensor) => {}
                }
            }
            None => drop(tokio::io::copy_bidirectional(&mut sensor, &mut collector).await),
        }
    }
}

#[test]
fn a_connection_that_breaks_anywhere_costs_no_record_and_doubles_none() {
    let directory = tempfile::tempdir().unwrap();
    let (pki, identity) = authority(directory.path(), Duration::ZERO);
    let listening = Listening::start(&pki, Duration::from_millis(50));
    let between = listening.runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = between.local_addr().unwrap();
    // Inside the handshake, the hello, headers and bodies of batches; spread by a golden ratio so that no two are alike.
    let lengths = (1..=12_usize).map(|n| n * 700 + (n * 6_180_339) % 691).collect();
    listening.runtime.spawn(unreliable(between, listening.address, lengths));

    let export = ExportSettings { batch_records_max: 50, batch_age_millis: 10, ..ExportSettings::default() };
    let settings = UplinkSettings { flush_timeout_secs: 60, ..uplink_settings(address, &identity) };
    let (uplink, harvests) = Uplink::start(settings, export, 7, "a test").unwrap();
    let mut workers = Workers { ledger: Ledger::default() };
    for _ in 0..200 {
        harvests.send(workers.harvest(40)).unwrap();
    }
    let farewell = uplink.finish();
    assert_eq!(farewell.ledger.imbalance(), None);
    assert_eq!((farewell.ledger.acknowledged, farewell.ledger.queued), (3 * 8000, 0));
    assert_eq!(listening.flow_ids(), (0..8000).collect::<Vec<_>>(), "each record once, in order");
    let (_, status) = listening.registry.statuses().remove(0);
    assert_eq!(status.gaps, 0);
}
