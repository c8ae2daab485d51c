//! Sensor and collector over loopback, with a real store: who may speak, what happens to nonsense, and that nothing is lost
//! or counted twice whatever the network, the collector and the queue do.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
use spanwatch_sensor::uplink::{Port, Uplink, check_reach};
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
        Self::start_with(Self::settings(directory, pki))
    }

    fn settings(directory: &Path, pki: &Path) -> Config {
        let mut config = Config::default();
        config.ingest.listen = free_address().to_string();
        config.ingest.credit_batches = 8;
        config.pki.directory = pki.to_owned();
        config.store.directory = directory.join("flows");
        config.store.commit_interval_secs = 1;
        config.alerts.file = directory.join("alerts.ndjson");
        config.metrics.listen = String::new();
        config
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
    ask(config, "SELECT \"flowId\" FROM flows_raw ORDER BY 1").lines().map(|line| line.parse().unwrap()).collect()
}

/// What the store answers, without the names of the columns.
fn ask(config: &Config, sql: &str) -> String {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut out = Vec::new();
    runtime.block_on(store::query(&config.store, sql, Format::Csv, &mut out)).unwrap();
    String::from_utf8(out).unwrap().split_once('\n').unwrap().1.to_owned()
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

/// One port that the first worker reads.
fn ports() -> Vec<Port> {
    vec![Port { observation_point: 1, interface: "mon0".into(), workers: 0..1 }]
}

fn uplink_settings(collector: SocketAddr, identity: &Path) -> UplinkSettings {
    UplinkSettings {
        collector: collector.to_string(),
        identity: identity.to_owned(),
        connect_timeout_secs: 3,
        retry_secs_max: 1,
        flush_timeout_secs: 60,
        ..UplinkSettings::default()
    }
}

/// Harvests as workers hand them over: record *n* has flow id *n* and three packets.
#[derive(Default)]
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
        let at = Timestamp::from_secs(1_790_000_000);
        let record = |id| FlowRecord { flow_id: id, packets: [2, 1], start: [at; 2], end: [at; 2], ..FlowRecord::default() };
        Harvest { ledger: self.ledger, records: (from..from + records).map(record).collect(), ..Harvest::default() }
    }

    /// One direction of flows that are told apart by `ports`, a packet each, as a fibre of a TAP shows it.
    fn halves(&mut self, ports: Range<u16>, way: usize) -> Harvest {
        let records = ports.len() as u64;
        self.ledger.flows.records += records;
        for count in [&mut self.ledger.wire, &mut self.ledger.delivered, &mut self.ledger.metered, &mut self.ledger.exported] {
            *count += records;
        }
        let half = |source_port| {
            let mut record = FlowRecord {
                one_sided: true,
                protocol: 17,
                source: "192.0.2.1".parse().unwrap(),
                destination: "198.51.100.53".parse().unwrap(),
                source_port,
                destination_port: 53,
                ..FlowRecord::default()
            };
            let at = Timestamp::from_secs(1_790_000_000);
            (record.packets[way], record.octets[way]) = (1, 60);
            (record.start[way], record.end[way]) = (at, at);
            record
        };
        Harvest { ledger: self.ledger, records: ports.map(half).collect(), ..Harvest::default() }
    }
}

/// Why `doctor` would say that the collector cannot be reached.
fn obstacle(settings: &UplinkSettings) -> String {
    check_reach(settings).expect_err("it should be refused").to_string()
}

#[test]
fn only_a_certificate_of_the_right_authority_name_and_time_gets_in_and_the_sentence_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (ours, identity) = authority(&at("ours"), Duration::ZERO);
    let (_, foreign) = authority(&at("foreign"), Duration::ZERO);
    let running = Running::start(directory.path(), &at("ours"));

    let settings = uplink_settings(running.address(), &identity);
    let (name, _) = check_reach(&settings).unwrap();
    assert_eq!(name, "plant1");

    let said = obstacle(&uplink_settings(running.address(), &foreign));
    assert!(said.contains("not from our authority"), "{said}");
    let said = obstacle(&UplinkSettings { server_name: "elsewhere".to_owned(), ..settings.clone() });
    assert!(said.contains("for another name"), "{said}");
    let said = obstacle(&UplinkSettings { collector: "no-such-host.invalid".to_owned(), ..settings.clone() });
    assert!(said.contains("does not resolve"), "{said}");
    let said = obstacle(&UplinkSettings { identity: at("none.pem"), ..settings.clone() });
    assert!(said.contains("pki issue"), "{said}");

    // A sensor whose own certificate has ended: issued three years ago by the same authority.
    let old = ours.issue("plant2", now().minus(3 * 365 * DAY), Existing::Keep).unwrap();
    let said = obstacle(&uplink_settings(running.address(), &old));
    assert!(said.contains("this sensor's certificate has expired"), "{said}");

    // A sensor that trusts our collector, but was certified by another authority.
    let foreign_authority = std::fs::read_to_string(at("foreign/ca.pem")).unwrap();
    let our_authority = std::fs::read_to_string(ours.authority_path()).unwrap();
    let mixed = std::fs::read_to_string(&foreign).unwrap().replace(&foreign_authority, &our_authority);
    std::fs::write(at("mixed.pem"), mixed).unwrap();
    let said = obstacle(&uplink_settings(running.address(), &at("mixed.pem")));
    assert!(said.contains("does not know the authority of this sensor's certificate"), "{said}");

    let vitals = running.collector().vitals();
    assert_eq!(vitals.registry.statuses(), [], "nobody got as far as a session");
    assert_eq!(vitals.door.rejected.load(Ordering::Relaxed), 0, "nor was anything of theirs read");
    assert_eq!(vitals.door.strangers.load(Ordering::Relaxed), 4, "the wrong name, the expired, and both foreign ones");

    // A collector whose certificate has ended.
    let (_, old_identity) = authority(&at("old"), 3 * 365 * DAY);
    let old_running = Running::start(&at("old"), &at("old"));
    let said = obstacle(&uplink_settings(old_running.address(), &old_identity));
    assert!(said.contains("its certificate has expired"), "{said}");

    running.stop();
    let said = obstacle(&settings);
    assert!(said.contains("is `spanwatch-collector run` up"), "{said}");
}

#[test]
fn ten_batches_arrive_and_are_acknowledged_after_the_commit() {
    let directory = tempfile::tempdir().unwrap();
    let (_, identity) = authority(&directory.path().join("pki"), Duration::ZERO);
    let running = Running::start(directory.path(), &directory.path().join("pki"));
    let export = ExportSettings { batch_records_max: 100, batch_age_millis: 10, ..ExportSettings::default() };
    let (uplink, harvests) = Uplink::start(uplink_settings(running.address(), &identity), export, 7, "a test", ports()).unwrap();
    let mut workers = Workers::default();
    for _ in 0..10 {
        harvests.send(workers.harvest(100)).unwrap();
        assert_eq!(uplink.ledger().imbalance(), None);
    }
    let ledger = uplink.finish().ledger;
    assert_eq!(ledger.imbalance(), None);
    assert_eq!((ledger.acknowledged, ledger.queued, ledger.not_sent), (3000, 0, 0));
    // What is acknowledged is stored, whatever happens now.
    assert_eq!(stored(&running.config), (0..1000).collect::<Vec<_>>());

    let status = || running.collector().vitals().registry.statuses().remove(0);
    assert_eq!((status().0.as_str(), status().1.batches, status().1.records), ("plant1", 10, 1000));
    // The sensor's last account says that everything has been acknowledged.
    assert!(eventually(|| status().1.ledger == ledger), "{:?}", status());
    running.stop();
}

/// Whether `fact` becomes true within some seconds.
fn eventually(fact: impl Fn() -> bool) -> bool {
    (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        fact()
    })
}

/// Forwards connections to `to`, and cuts each after the next of `lengths` bytes from the sensor.
async fn unreliable(listener: TcpListener, to: SocketAddr, lengths: Vec<usize>) {
    let mut lengths = lengths.into_iter();
    while let Ok((mut sensor, _)) = listener.accept().await {
        let Ok(mut collector) = TcpStream::connect(to).await else { continue };
        match lengths.next() {
            Some(length) => {
                let (mut from_sensor, mut to_sensor) = sensor.split();
                let (mut from_collector, mut to_collector) = collector.split();
                let mut limited = (&mut from_sensor).take(length as u64);
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
    let (_, identity) = authority(&directory.path().join("pki"), Duration::ZERO);
    let running = Running::start(directory.path(), &directory.path().join("pki"));
    let between = running.runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = between.local_addr().unwrap();
    // Inside the handshake, the hello, headers and bodies of batches; spread by a golden ratio so that no two are alike.
    let lengths = (1..=12_usize).map(|n| n * 700 + (n * 6_180_339) % 691).collect();
    running.runtime.spawn(unreliable(between, running.address(), lengths));

    let export = ExportSettings { batch_records_max: 50, batch_age_millis: 10, ..ExportSettings::default() };
    let (uplink, harvests) = Uplink::start(uplink_settings(address, &identity), export, 7, "a test", ports()).unwrap();
    let mut workers = Workers::default();
    for _ in 0..200 {
        harvests.send(workers.harvest(40)).unwrap();
    }
    let ledger = uplink.finish().ledger;
    assert_eq!(ledger.imbalance(), None);
    assert_eq!((ledger.acknowledged, ledger.queued), (3 * 8000, 0));
    let (_, status) = running.collector().vitals().registry.statuses().remove(0);
    assert_eq!(status.gaps, 0);
    assert!(status.connects > 1, "some connection got as far as a session before it broke");
    assert_eq!(stored(&running.stop()), (0..8000).collect::<Vec<_>>(), "each record once");
}

#[test]
fn a_collector_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (_, identity) = authority(&directory.path().join("pki"), Duration::ZERO);
    let mut running = Running::start(directory.path(), &directory.path().join("pki"));
    let export = ExportSettings { batch_records_max: 50, batch_age_millis: 10, ..ExportSettings::default() };
    let settings = uplink_settings(running.address(), &identity);
    let (uplink, harvests) = Uplink::start(settings, export, 7, "a test", ports()).unwrap();
    let mut workers = Workers::default();
    for turn in 0..6 {
        for _ in 0..20 {
            harvests.send(workers.harvest(50)).unwrap();
        }
        // Before, during and after a commit.
        std::thread::sleep(Duration::from_millis(300 + 270 * turn));
        let config = running.kill();
        std::thread::sleep(Duration::from_millis(50));
        running = Running::start_with(config);
    }
    let ledger = uplink.finish().ledger;
    assert_eq!(ledger.imbalance(), None);
    assert_eq!((ledger.acknowledged, ledger.queued), (3 * 6000, 0));
    assert_eq!(stored(&running.stop()), (0..6000).collect::<Vec<_>>());
}

#[test]
fn halves_that_travel_apart_meet_and_a_collector_that_is_killed_meanwhile_loses_and_doubles_none() {
    const FLOWS: u16 = 200;
    let directory = tempfile::tempdir().unwrap();
    let (_, identity) = authority(&directory.path().join("pki"), Duration::ZERO);
    let mut config = Running::settings(directory.path(), &directory.path().join("pki"));
    (config.ingest.credit_batches, config.ingest.join_wait_millis) = (64, 1000);
    let mut running = Running::start_with(config);
    let export = ExportSettings { batch_records_max: 50, batch_age_millis: 10, ..ExportSettings::default() };
    let settings = uplink_settings(running.address(), &identity);
    let (uplink, harvests) = Uplink::start(settings, export, 7, "a test", ports()).unwrap();
    let mut workers = Workers::default();
    let joined = |running: &Running| running.collector().vitals().registry.statuses().first().map_or(0, |known| known.1.joined);

    // Undisturbed: each flow becomes one record, although each half came in batches of its own.
    harvests.send(workers.halves(0..FLOWS, 1)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    harvests.send(workers.halves(0..FLOWS, 0)).unwrap();
    assert!(eventually(|| uplink.ledger().acknowledged == 2 * u64::from(FLOWS)), "{:?}", uplink.ledger());
    assert_eq!(joined(&running), u64::from(FLOWS));
    let whole = "SELECT count(*), count(DISTINCT sourceTransportPort), sum(packetDeltaCount), sum(reversePacketDeltaCount), \
                 sum(flowAnswered), count(flowOneSided) FROM flows";
    assert_eq!(ask(&running.config, whole), "200,200,200,200,200,0\n");

    for turn in 1..=5 {
        let flows = turn * FLOWS..(turn + 1) * FLOWS;
        harvests.send(workers.halves(flows.clone(), 0)).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        harvests.send(workers.halves(flows, 1)).unwrap();
        // While they wait for each other, on their way, before, during and after the commit.
        std::thread::sleep(Duration::from_millis(450 * u64::from(turn)));
        let config = running.kill();
        running = Running::start_with(config);
    }
    let ledger = uplink.finish().ledger;
    assert_eq!(ledger.imbalance(), None);
    assert_eq!((ledger.acknowledged, ledger.queued), (12 * u64::from(FLOWS), 0));
    let config = running.stop();
    let flows =
        "SELECT sum(packetDeltaCount) AS there, sum(reversePacketDeltaCount) AS back FROM flows GROUP BY sourceTransportPort";
    let once = format!("SELECT count(*), min(there), max(there), min(back), max(back) FROM ({flows})");
    assert_eq!(ask(&config, &once), "1200,1,1,1,1\n");
}

#[test]
fn an_earlier_start_is_turned_away_also_by_a_collector_that_was_restarted_since() {
    let directory = tempfile::tempdir().unwrap();
    let (_, identity) = authority(&directory.path().join("pki"), Duration::ZERO);
    let running = Running::start(directory.path(), &directory.path().join("pki"));
    let settings = uplink_settings(running.address(), &identity);
    let (uplink, harvests) = Uplink::start(settings, ExportSettings::default(), 7, "a test", ports()).unwrap();
    harvests.send(Workers::default().harvest(10)).unwrap();
    assert_eq!(uplink.finish().ledger.acknowledged, 30);
    let running = Running::start_with(running.stop());
    running.runtime.block_on(async {
        let mut past = Speaker::connect(running.address(), &identity).await;
        past.say(&hello("plant1", 5)).await;
        let (code, reason) = past.rejection().await;
        assert_eq!(code, RejectCode::Superseded, "{reason}");
    });
    running.stop();
}

#[test]
fn a_full_queue_throws_the_newest_away_and_the_account_says_how_much() {
    let directory = tempfile::tempdir().unwrap();
    let (_, identity) = authority(directory.path(), Duration::ZERO);
    let export = ExportSettings { batch_records_max: 1000, batch_age_millis: 1, queue_bytes_max: 1 << 20 };
    let settings = UplinkSettings { flush_timeout_secs: 0, ..uplink_settings(free_address(), &identity) };
    let (uplink, harvests) = Uplink::start(settings, export, 7, "a test", ports()).unwrap();
    let mut workers = Workers::default();
    while uplink.ledger().not_sent == 0 {
        harvests.send(workers.harvest(1000)).unwrap();
        assert!(workers.ledger.flows.records < 10_000_000, "the queue has no end");
    }
    assert!(uplink.link().queue_bytes <= 1 << 20);
    assert!(uplink.link().trouble.is_none_or(|said| said.contains("is `spanwatch-collector run` up")));
    let ledger = uplink.finish().ledger;
    assert_eq!(ledger.imbalance(), None);
    assert_eq!(ledger.queued + ledger.not_sent, 3 * workers.ledger.flows.records);
    assert_eq!(ledger.flows.records_queued + ledger.flows.records_not_sent, workers.ledger.flows.records);
}

/// What a sensor says on a connection that the test writes itself.
struct Speaker {
    stream: TlsStream<TcpStream>,
}

impl Speaker {
    async fn connect(address: SocketAddr, identity: &Path) -> Self {
        let mut certificates = CertificateDer::pem_file_iter(identity).unwrap().map(Result::unwrap);
        let certificate = certificates.next().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificates.next().unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], PrivateKeyDer::from_pem_file(identity).unwrap())
            .unwrap();
        config.alpn_protocols = vec![wire::ALPN.to_vec()];
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("collector").unwrap();
        Self { stream: TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap() }
    }

    async fn say(&mut self, message: &Message) {
        let mut frame = Vec::new();
        wire::encode(message, &mut frame).unwrap();
        self.say_bytes(&frame).await;
    }

    async fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn hear(&mut self) -> Message {
        let mut head = [0; wire::HEADER_LEN];
        self.stream.read_exact(&mut head).await.unwrap();
        let header = wire::Header::parse(&head).unwrap();
        let mut body = vec![0; header.body_len()];
        self.stream.read_exact(&mut body).await.unwrap();
        header.message(&body).unwrap()
    }

    /// The collector's last word: why it hangs up.
    async fn rejection(&mut self) -> (RejectCode, String) {
        match self.hear().await {
            Message::Reject(reject) => (reject.code, reject.reason),
            other => panic!("a rejection, not {other:?}"),
        }
    }
}

fn hello(sensor: &str, boot: u64) -> Message {
    let (sensor, software) = (sensor.to_owned(), "a test".to_owned());
    Message::Hello(Hello { version: VERSION, sensor, boot, next: 1, software, ..Hello::default() })
}

#[test]
fn nonsense_closes_its_own_connection_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (pki, identity) = authority(&directory.path().join("pki"), Duration::ZERO);
    let rogue = pki.issue("rogue", now(), Existing::Keep).unwrap();
    let running = Running::start(directory.path(), &directory.path().join("pki"));
    let address = running.address();
    let export = ExportSettings { batch_age_millis: 10, ..ExportSettings::default() };
    let (uplink, harvests) = Uplink::start(uplink_settings(address, &identity), export, 7, "a test", ports()).unwrap();
    let mut workers = Workers::default();
    harvests.send(workers.harvest(10)).unwrap();

    let mut batch = Vec::new();
    let records = vec![FlowRecord::default()];
    let data = wire::Batch { sensor: "rogue".to_owned(), boot: 3, sequence: 1, ledger: Ledger::default(), records };
    wire::encode(&Message::Data(data.clone()), &mut batch).unwrap();
    let damaged = {
        let mut bytes = batch.clone();
        *bytes.last_mut().unwrap() ^= 0x10;
        bytes
    };
    let endless = {
        let mut bytes = batch.clone();
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes
    };
    let borrowed = {
        let mut bytes = Vec::new();
        wire::encode(&Message::Data(wire::Batch { sensor: "plant1".to_owned(), ..data }), &mut bytes).unwrap();
        bytes
    };
    running.runtime.block_on(async {
        let mut liar = Speaker::connect(address, &rogue).await;
        liar.say(&hello("plant1", 9)).await;
        let (code, reason) = liar.rejection().await;
        assert_eq!(code, RejectCode::Name, "{reason}");

        let mut stranger = Speaker::connect(address, &rogue).await;
        stranger.say(&Message::Hello(Hello { version: 99, sensor: "rogue".to_owned(), boot: 1, ..Hello::default() })).await;
        assert_eq!(stranger.rejection().await.0, RejectCode::Version);

        for nonsense in [damaged, endless, borrowed] {
            let mut speaker = Speaker::connect(address, &rogue).await;
            speaker.say(&hello("rogue", 3)).await;
            assert!(matches!(speaker.hear().await, Message::Welcome(_)));
            speaker.say_bytes(&nonsense).await;
            let (code, reason) = speaker.rejection().await;
            assert_eq!(code, RejectCode::Protocol, "{reason}");
        }

        let mut first = Speaker::connect(address, &rogue).await;
        first.say(&hello("rogue", 5)).await;
        assert!(matches!(first.hear().await, Message::Welcome(_)));
        let mut second = Speaker::connect(address, &rogue).await;
        second.say(&hello("rogue", 6)).await;
        assert!(matches!(second.hear().await, Message::Welcome(_)));
        assert_eq!(first.rejection().await.0, RejectCode::Superseded);
        let mut late = Speaker::connect(address, &rogue).await;
        late.say(&hello("rogue", 5)).await;
        assert_eq!(late.rejection().await.0, RejectCode::Superseded);
    });

    assert_eq!(uplink.link().connects, 1, "the honest sensor noticed nothing");
    harvests.send(workers.harvest(10)).unwrap();
    let ledger = uplink.finish().ledger;
    assert_eq!((ledger.acknowledged, ledger.imbalance()), (60, None));
    let malformed: u64 = running.collector().vitals().registry.statuses().iter().map(|(_, status)| status.malformed).sum();
    assert_eq!(malformed, 3);
    assert_eq!(stored(&running.stop()), (0..20).collect::<Vec<_>>());
}
