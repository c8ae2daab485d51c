//! The whole sensor in a network namespace: from frames on a port to the records that a collector gets, and its end.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../../tests/support/netns.rs"]
mod netns;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netns::{in_namespace, mirror_port, run, skip};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::health::PortHealth;
use spanwatch_common::wire::{self, Ack, Message, VERSION, Welcome};
use spanwatch_sensor::capture::settings::{Mode, Settings};
use spanwatch_sensor::capture::{CaptureErrorKind, open_port};
use spanwatch_sensor::config::Config;
use spanwatch_sensor::cores::plan;
use spanwatch_sensor::cores::settings::Cores;
use spanwatch_sensor::cores::topology::{Queue, Topology};
use spanwatch_sensor::top::client::look;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(20);
const METRICS: &str = "127.0.0.1:19477";

/// What the collector heard.
enum Heard {
    Record(Box<FlowRecord>),
    Ports(Vec<PortHealth>),
}

/// Writes an identity for the sensor; gives key and certificate of the collector, signed by the same authority.
fn identity(path: &Path) -> (String, String) {
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(params, authority_key);
    let issue = |name: SanType| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (key.serialize_pem(), certificate.pem())
    };
    let (key, certificate) = issue(SanType::URI("sensor:plant1".try_into().unwrap()));
    std::fs::write(path, key + &certificate + &authority.pem()).unwrap();
    issue(SanType::DnsName("collector".try_into().unwrap()))
}

/// A collector that says yes to everything; gives its address.
fn collector((key, certificate): (String, String), heard: Sender<Heard>) -> SocketAddr {
    let (address, listening) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            let provider = rustls::crypto::ring::default_provider();
            let mut config = rustls::ServerConfig::builder_with_provider(provider.into())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap();
            config.alpn_protocols = vec![wire::ALPN.to_vec()];
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            address.send(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config)).accept(stream).await.unwrap();
            let mut head = [0; wire::HEADER_LEN];
            while stream.read_exact(&mut head).await.is_ok() {
                let header = wire::Header::parse(&head).unwrap();
                let mut body = vec![0; header.body_len()];
                stream.read_exact(&mut body).await.unwrap();
                let answer = match header.message(&body).unwrap() {
                    Message::Hello(_) => {
                        Message::Welcome(Welcome { version: VERSION, resume_after: 0, credit: 8, ..Welcome::default() })
                    }
                    Message::Data(batch) => {
                        for record in batch.records {
                            heard.send(Heard::Record(Box::new(record))).unwrap();
                        }
                        Message::Ack(Ack { boot: batch.boot, up_to: batch.sequence })
                    }
                    Message::Stats(stats) => {
                        heard.send(Heard::Ports(stats.ports)).unwrap();
                        continue;
                    }
                    other => panic!("{other:?}"),
                };
                let mut frame = Vec::new();
                wire::encode(&answer, &mut frame).unwrap();
                stream.write_all(&frame).await.unwrap();
                stream.flush().await.unwrap();
            }
        });
    });
    listening.recv().unwrap()
}

/// A UDP packet of one octet between 192.0.2.1:1000 and 192.0.2.2:2000, one way or the other.
fn udp(answers: bool) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let (mut from, mut to) = (([192, 0, 2, 1], 1000_u16), ([192, 0, 2, 2], 2000_u16));
    if answers {
        std::mem::swap(&mut from, &mut to);
    }
    frame.extend([0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(from.0);
    frame.extend(to.0);
    frame.extend(from.1.to_be_bytes());
    frame.extend(to.1.to_be_bytes());
    frame.extend([0, 9, 0, 0, b'x']);
    frame.resize(60, 0);
    frame
}

fn send(interface: &str, frame: &[u8], times: usize) {
    let mut port = pcap::Capture::from_device(interface).unwrap().open().unwrap();
    for _ in 0..times {
        port.sendpacket(frame).unwrap();
    }
}

/// Waits until `is_so`, or patience ends.
#[expect(clippy::disallowed_methods, reason = "a test of real interfaces is the loop that owns the I/O")]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The cores that each thread of this process called `queue N` may run on, by N.
fn workers_cores() -> Vec<String> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").starts_with("queue ") {
            let status = read("status");
            let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned();
            found.push((read("comm"), cores));
        }
    }
    found.sort();
    found.into_iter().map(|(_, cores)| cores).collect()
}

/// Rings for an interface that brings little.
fn slow() -> Settings {
    Settings { mode: Mode::AfXdp, packets_per_sec_max: 20_000, ..Settings::default() }
}

/// A running sensor with the identity in `directory`, where it also leaves its account.
fn start(capture: Settings, collector: SocketAddr, directory: &Path) -> JoinHandle<Result<(), String>> {
    let mut config = Config { capture, ..Config::default() };
    config.uplink.collector = collector.to_string();
    config.uplink.identity = directory.join("identity.pem");
    config.metrics.listen = METRICS.to_owned();
    let stats = directory.join("stats.json");
    let sensor = std::thread::spawn(move || spanwatch_sensor::run::run(&config, Some(&stats)).map_err(|error| error.to_string()));
    wait_until("the sensor starts", || look(METRICS).is_ok() || sensor.is_finished());
    sensor
}

fn records(heard: Receiver<Heard>) -> (Vec<FlowRecord>, Vec<PortHealth>) {
    let (mut records, mut ports) = (Vec::new(), Vec::new());
    for heard in heard {
        match heard {
            Heard::Record(record) => records.push(*record),
            Heard::Ports(latest) => ports = latest,
        }
    }
    (records, ports)
}

#[test]
fn two_fibres_of_a_tap_feed_one_sensor_and_losing_one_ends_it() {
    in_namespace("two_fibres_of_a_tap_feed_one_sensor_and_losing_one_ends_it", || {
        mirror_port(1, 1500);
        run("ip link add mon1 type veth peer name gen1");
        run("ip link set gen1 up");
        run("ip link set mon1 up");
        run("ip link set lo up");
        let capture = Settings { interfaces: vec!["mon0".into(), "mon1".into()], tap: true, ..slow() };
        let index = match open_port("mon1", &capture) {
            Ok(opened) => opened.interface.index,
            Err(error) if matches!(error.kind, CaptureErrorKind::NoPermission | CaptureErrorKind::Unsupported) => {
                return skip(&error.to_string());
            }
            Err(error) => panic!("{error}"),
        };
        let directory = tempfile::tempdir().unwrap();
        let (told, heard) = mpsc::channel();
        let address = collector(identity(&directory.path().join("identity.pem")), told);
        let sensor = start(capture, address, directory.path());
        let queues: Vec<Queue> = ["mon0", "mon1"].map(|port| Queue { port: port.into(), ..Queue::default() }).into();
        let planned = plan(&Topology::read(), &queues, &Cores::Auto).unwrap();
        let planned: Vec<String> = planned.workers.iter().map(|place| place.core.unwrap().to_string()).collect();
        assert_eq!(workers_cores(), planned, "veth says nothing of interrupts; each worker is where the plan puts it");

        send("gen0", &udp(false), 30);
        send("gen1", &udp(true), 20);
        wait_until("every packet is seen", || look(METRICS).is_ok_and(|view| view.ledger.delivered == 50));
        let view = look(METRICS).unwrap();
        assert_eq!((view.mode.as_str(), view.port.interface.as_str()), ("af_xdp_copy", "mon0, mon1"));
        let seen: Vec<_> = view.ports.iter().map(|view| (view.port.interface.as_str(), view.port.health.packets)).collect();
        assert_eq!(seen, [("mon0", 30), ("mon1", 20)]);
        let metrics = Command::new("curl").args(["-s", &format!("http://{METRICS}/metrics")]).output();
        if let Ok(metrics) = metrics {
            let text = String::from_utf8_lossy(&metrics.stdout).into_owned();
            assert!(text.contains("spanwatch_sensor_mirror_packets_total{interface=\"mon1\"} 20\n"), "{text}");
        }

        // The rest of the account must come out although one port is gone.
        run("ip link del gen0");
        let error = sensor.join().unwrap().expect_err("half a view is no view");
        assert!(error.contains("mon0"), "{error}");
        let stats: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(directory.path().join("stats.json")).unwrap()).unwrap();
        let count = |name: &str| stats[name].as_u64().unwrap();
        assert_eq!((count("wire"), count("metered"), count("acknowledged")), (50, 50, 50));

        let (records, ports) = records(heard);
        assert_eq!(
            ports.iter().map(|port| (port.observation_point, port.health.packets)).collect::<Vec<_>>(),
            [(1, 30), (2, 20)]
        );
        assert!(records.iter().all(|record| record.one_sided), "each fibre carries one direction");
        for (observation_point, packets) in [(1, 30), (2, 20)] {
            let of_port: Vec<_> = records.iter().filter(|record| record.observation_point == observation_point).collect();
            let sum: u64 = of_port.iter().map(|record| record.packets[0] + record.packets[1]).sum();
            assert_eq!(sum, packets, "port {observation_point}");
            if observation_point == 2 {
                assert!(of_port.iter().all(|record| record.ingress_interface == index));
            }
        }
    });
}

#[test]
fn a_second_interrupt_ends_a_sensor_that_waits_for_its_collector() {
    in_namespace("a_second_interrupt_ends_a_sensor_that_waits_for_its_collector", || {
        mirror_port(1, 1500);
        run("ip link set lo up");
        let capture = Settings { interface: "mon0".into(), mode: Mode::Auto, ..slow() };
        if let Err(error) = open_port("mon0", &capture) {
            return skip(&error.to_string());
        }
        let directory = tempfile::tempdir().unwrap();
        identity(&directory.path().join("identity.pem"));
        // Nobody listens on port 9 here, so the flush would last its 15 s.
        let sensor = start(capture, "127.0.0.1:9".parse().unwrap(), directory.path());
        send("gen0", &udp(false), 3);
        wait_until("every packet is seen", || look(METRICS).is_ok_and(|view| view.ledger.delivered == 3));
        let interrupt = format!("kill -INT {}", std::process::id());
        run(&interrupt);
        wait_until("the flows are flushed", || look(METRICS).is_ok_and(|view| view.ledger.queued == 3));
        assert!(!sensor.is_finished());
        run(&interrupt);
        let error = sensor.join().unwrap().expect_err("records were lost");
        assert!(error.starts_with("interrupted again, and ended at once: 1 records for 3 packets"), "{error}");
    });
}
