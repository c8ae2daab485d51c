//! Kills and restarts of the two loops, and new rules for a running collector.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use spanwatch_common::flow::{FlowRecord, FlowState, protocol, tcp};
use spanwatch_common::net::Address;
use spanwatch_common::wire::Batch;
use tokio::runtime::Runtime;

use super::*;
use crate::alert::file;
use crate::alert::{Alert, AlertState, Class};
use crate::ingest::Outlets;
use crate::ingest::registry::Admission;
use crate::pki::Existing;

const BOOT: u64 = 7;
/// A full hour half a day ago: records from the future are not believed.
static START: LazyLock<Timestamp> =
    LazyLock::new(|| clock().minus(Duration::from_secs(12 * 3_600)).floor(Duration::from_secs(3_600)));
/// A batch every five seconds of event time.
const BATCHES: u64 = 60;

/// A knock at a door that nobody opens.
fn knock(source: [u8; 4], destination: [u8; 4], port: u16, at: Timestamp) -> FlowRecord {
    FlowRecord {
        state: FlowState::Begin,
        source: Address::from_v4(source),
        destination: Address::from_v4(destination),
        destination_port: port,
        protocol: protocol::TCP,
        start: [at, Timestamp::NONE],
        tcp_flags: [tcp::SYN, 0],
        initial_tcp_flags: [tcp::SYN, 0],
        ..FlowRecord::default()
    }
}

/// Two scanners over five minutes, a little more each minute, and a host that one of them scans and that knocks at a remote desktop all
/// the while; the last batch comes hours later, so that every window closes, and every incident.
fn batch(sequence: u64) -> Batch {
    let mut batch = Batch { sensor: "plant1".to_owned(), boot: BOOT, sequence, ..Batch::default() };
    if sequence > BATCHES {
        batch.records.push(knock([10, 0, 0, 7], [10, 0, 0, 2], 80, START.plus(Duration::from_secs(8 * 3_600))));
        return batch;
    }
    let at = START.plus(Duration::from_secs((sequence - 1) * 5));
    let (minute, step) = (sequence.div_ceil(12) as u8, (sequence % 12) as u8);
    batch.records.push(FlowRecord { source_port: 40_000 + sequence as u16, ..knock([10, 0, 0, 2], [10, 0, 0, 77], 3_389, at) });
    for n in 0..=minute {
        let target = step * 8 + n;
        batch.records.push(knock([10, 0, 0, 9], [10, 0, minute, target], 445, at));
        batch.records.push(knock([10, 0, 0, 8], [10, 0, 0, 2], 1_000 * u16::from(minute) + u16::from(target), at));
    }
    batch
}

/// Settings for a collector that keeps everything in `directory`.
fn config(directory: &Path) -> Config {
    let mut config = Config::default();
    config.store.directory = directory.to_owned();
    config.alerts.file = directory.join("alerts.ndjson");
    config
}

fn outbox(config: &Config) -> Arc<Outbox> {
    Outbox::open(&config.delivery, &config.outputs).unwrap()
}

/// Store and detectors of a collector, without the network before them.
struct Line {
    runtime: Runtime,
    outlets: Outlets,
    checkpoints: Checkpoints,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// The last batch that was durable at the start: the sensor sends what comes after it.
    durable: u64,
}

impl Line {
    fn start(directory: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = config(directory);
        let guard = runtime.enter();
        let (outlets, inlets) = ingest::outlets();
        let (stop, stopping) = watch::channel(false);
        let vitals = Arc::new(Vitals::default());
        let (watch, store, durable) = runtime.block_on(async {
            let mut store = Store::open(config.store.clone()).await.unwrap();
            let mut watch = Watch::new(&RuleFile::default(), &config, &outbox(&config)).unwrap();
            resume(&mut watch, &mut store, &config.store).await.unwrap();
            let durable = store.resume_after("plant1", BOOT).await.unwrap();
            (watch, store, durable)
        });
        let (_, reloads) = mpsc::channel(1);
        let commits = Duration::from_millis(30);
        let keep = keep::keep(store, commits, inlets.store, inlets.inquiries, Arc::clone(&vitals), stopping.clone());
        let tasks =
            vec![tokio::spawn(keep), tokio::spawn(watch.run(inlets.detect, reloads, Arc::clone(&vitals), stopping.clone()))];
        drop(guard);
        let checkpoints = Checkpoints { outlets: outlets.clone(), directory: directory.to_owned(), vitals };
        Self { runtime, outlets, checkpoints, stop, tasks, durable }
    }

    fn send(&self, sequence: u64) {
        let batch = batch(sequence);
        self.runtime.block_on(async {
            let place = self.outlets.place(batch.records.len()).await.unwrap();
            place.send_if_new(batch.into(), |_| Admission::New);
        });
    }

    fn checkpoint(&self) -> bool {
        self.runtime.block_on(self.checkpoints.make()).unwrap()
    }

    /// Ends in the middle of everything, as on SIGKILL.
    fn kill(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }

    fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            self.runtime.block_on(task).unwrap();
        }
    }
}

/// The last word on every alert, but for when it was said.
fn alerts(directory: &Path) -> BTreeMap<String, Alert> {
    let told = file::read(&directory.join("alerts.ndjson")).unwrap();
    assert_eq!(told.unreadable, 0);
    // So is it with whether a better rule had spoken before.
    let timeless = |alert: Alert| Alert { detected: Timestamp::NONE, told: Timestamp::NONE, spoken_for: None, ..alert };
    told.alerts.into_iter().map(|alert| (alert.id.clone(), timeless(alert))).collect()
}

#[test]
fn whenever_it_is_killed_a_restarted_collector_finds_what_it_would_have_found() {
    let undisturbed = tempfile::tempdir().unwrap();
    let line = Line::start(undisturbed.path());
    (1..=BATCHES + 1).for_each(|sequence| line.send(sequence));
    line.stop();
    let expected = alerts(undisturbed.path());
    // Minute m brings m + 1 hosts twelve times over, and as many ports: the fifth is the strongest.
    for rule in ["AZ-01", "AZ-02"] {
        let its: Vec<f64> = expected.values().filter(|alert| alert.rule == rule).map(|alert| alert.evidence.value).collect();
        assert_eq!(its, [72.0], "{rule}");
    }
    let incidents: Vec<&Alert> = expected.values().filter(|alert| alert.class == Class::Incident).collect();
    assert_eq!(incidents.len(), 1);
    assert_eq!((incidents[0].subject.as_str(), incidents[0].state), ("10.0.0.8", AlertState::Closed));
    assert!(incidents[0].sentence.contains("; 10.0.0.2 guessed passwords on 10.0.0.77 from "), "{}", incidents[0].sentence);

    for seed in 0..3_u64 {
        let disturbed = tempfile::tempdir().unwrap();
        let mut line = Line::start(disturbed.path());
        let (mut next, mut step) = (1, seed * 5);
        let (mut kills, mut resumed_within) = (0, 0);
        while next <= BATCHES + 1 {
            line.send(next);
            step += 1;
            let dice = step * 7 % 17;
            if dice < 4 {
                assert!(line.checkpoint());
            } else if dice == 5 || dice == 11 {
                // Now with time for a commit, now without.
                std::thread::sleep(Duration::from_millis(if dice == 5 { 100 } else { 5 }));
                line.kill();
                line = Line::start(disturbed.path());
                kills += 1;
                resumed_within += u64::from(line.durable < next);
                next = line.durable;
            }
            next += 1;
        }
        line.stop();
        assert!(kills > 3 && resumed_within > 0, "{kills} kills, {resumed_within} of them with records on the way");
        assert_eq!(nameless(&alerts(disturbed.path())), nameless(&expected), "seed {seed}");
    }
}

/// An incident keeps the name of the alert that seemed to begin it when it opened: which that is depends on what was found together.
fn nameless(alerts: &BTreeMap<String, Alert>) -> BTreeMap<String, Alert> {
    let place = |id: &String| alerts.values().filter(|alert| alert.class == Class::Incident).position(|alert| alert.id == *id);
    let name = |id: &String| place(id).map_or_else(|| id.clone(), |place| format!("incident {place}"));
    let its = alerts.iter().map(|(id, alert)| {
        (name(id), Alert { id: name(&alert.id), incident: alert.incident.as_ref().map(name), ..alert.clone() })
    });
    its.collect()
}

#[test]
fn a_checkpoint_that_does_not_fit_the_table_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let line = Line::start(directory.path());
    line.send(1);
    assert!(line.checkpoint());
    line.stop();
    let checkpoint = Checkpoint::read(directory.path()).unwrap().unwrap();
    Checkpoint { version: checkpoint.version + 9, ..checkpoint }.write(directory.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = config(directory.path());
    let mut watch = Watch::new(&RuleFile::default(), &config, &outbox(&config)).unwrap();
    let mut store = runtime.block_on(Store::open(config.store.clone())).unwrap();
    let error = runtime.block_on(resume(&mut watch, &mut store, &config.store)).unwrap_err();
    assert!(error.to_string().contains("the table was made anew"), "{error}");
}

#[test]
fn new_rules_come_into_force_while_it_runs_and_a_mistake_in_them_leaves_the_old_ones() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    Pki::new(at("pki")).init(&[], clock(), Existing::Keep).unwrap();
    let mut config = Config::default();
    config.ingest.listen = "127.0.0.1:0".to_owned();
    config.metrics.listen = "127.0.0.1:0".to_owned();
    config.pki.directory = at("pki");
    config.store.directory = at("flows");
    config.alerts.file = at("alerts.ndjson");
    config.detect.rules = at("rules.toml");
    let write = |text: &str| std::fs::write(at("rules.toml"), text).unwrap();
    write("[AZ-01]\nvariants = [\"fixed\"]\n");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let rules = config.rules().unwrap();
    let collector = runtime.block_on(Collector::start(config, &rules)).unwrap();
    let forms = || {
        let vitals = collector.vitals().detect();
        let its = vitals.detectors.iter().filter(|state| state.rule == "AZ-01").map(|state| state.variant.to_string());
        its.collect::<Vec<_>>()
    };
    let soon = |what: &str, holds: &dyn Fn() -> bool| {
        for _ in 0..600 {
            if holds() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not within half a minute: {what}");
    };
    soon("one form", &|| forms() == ["fixed"]);

    write("[AZ-01]\nvariants = [\"exact\", \"fixed\"]\n");
    runtime.block_on(collector.reload());
    soon("both forms", &|| forms() == ["exact", "fixed"]);

    write("[AZ-01]\nvariants = []\nthreshold_host = 1\n");
    runtime.block_on(collector.reload());
    soon("an error", &|| collector.vitals().detect().rules_error.is_some());
    let error = collector.vitals().detect().rules_error.clone().unwrap();
    assert!(error.ends_with("rules.toml:3:1: unknown key `threshold_host`; did you mean `threshold_hosts`?"), "{error}");
    assert!(collector.vitals().render().contains("spanwatch_rules_error 1\n"));
    assert_eq!(forms(), ["exact", "fixed"], "those of before");

    write("[AZ-01]\nvariants = []\n");
    runtime.block_on(collector.reload());
    soon("no form", &|| forms().is_empty());
    assert_eq!(collector.vitals().detect().rules_error, None);
    runtime.block_on(collector.stop());
}
