//! The collector's own numbers, for Prometheus and for whoever asks whether it is well.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use spanwatch_common::health::{Health, SymptomKind};
use spanwatch_common::time::Timestamp;

use crate::alert::deliver::{Outbox, OutputStatus};
use crate::detect;
use crate::ingest::azure::vitals::TailVitals;
use crate::ingest::registry::Registry;
use crate::ingest::sensor::Door;
use crate::store;

/// Where every part of the collector leaves its numbers.
#[derive(Debug, Default)]
pub struct Vitals {
    /// Sensors.
    pub registry: Arc<Registry>,
    /// Connections.
    pub door: Arc<Door>,
    store: Mutex<StoreVitals>,
    azure: Mutex<BTreeMap<String, TailVitals>>,
    detect: Mutex<DetectVitals>,
    outbox: OnceLock<Arc<Outbox>>,
}

/// Numbers of the store.
#[derive(Clone, Debug, Default)]
pub struct StoreVitals {
    /// What it counted.
    pub counts: store::Counts,
    /// Records that wait for a commit.
    pub buffered_rows: usize,
    /// Why nothing can be stored at the moment.
    pub trouble: Option<String>,
    /// Files and bytes of the table, as of the last upkeep.
    pub files: usize,
    /// Bytes in them.
    pub bytes: u64,
}

/// Numbers of the detectors.
#[derive(Clone, Debug, Default)]
pub struct DetectVitals {
    /// What happened to the records.
    pub counters: detect::Counters,
    /// Each detector's account.
    pub detectors: Vec<detect::State>,
    /// Alerts raised, updated or closed.
    pub alert_events: u64,
    /// Alerts that could not be written.
    pub alerts_lost: u64,
    /// Alerts that are open now.
    pub alerts_open: u64,
    /// Those of them that are muted.
    pub alerts_muted: u64,
    /// Incidents that are open now.
    pub incidents_open: u64,
    /// Lines that were recorded and told nobody: muted, or beyond a rule's budget.
    pub alerts_quiet: u64,
    /// Why the mutes could not be read again. Those read before hold.
    pub mutes_error: Option<String>,
    /// Alerts forgotten because there were too many.
    pub alerts_forgotten: u64,
    /// When the rules in force were read.
    pub rules_loaded_at: Timestamp,
    /// Why the rule files could not be read again. Those read before stay in force.
    pub rules_error: Option<String>,
    /// When what the detectors have learned was last written to disk; none before the first time.
    pub checkpoint_at: Timestamp,
    /// How long that is.
    pub checkpoint_bytes: u64,
    /// The symptoms that each sensor's ports showed in their last minute.
    pub mirrors: Vec<Mirror>,
}

/// Sensor, interface, and a mark for each of [`SymptomKind::ALL`].
pub type Mirror = (String, String, [bool; SymptomKind::ALL.len()]);

impl Vitals {
    /// The store's numbers, to be read or changed.
    pub fn store(&self) -> MutexGuard<'_, StoreVitals> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The detectors' numbers, to be read or changed.
    pub fn detect(&self) -> MutexGuard<'_, DetectVitals> {
        self.detect.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the outputs of `outbox` are shown; another one later is not.
    pub fn deliver_from(&self, outbox: &Arc<Outbox>) {
        self.outbox.get_or_init(|| Arc::clone(outbox));
    }

    /// How each output is doing.
    pub fn outputs(&self) -> Vec<OutputStatus> {
        self.outbox.get().map(|outbox| outbox.status()).unwrap_or_default()
    }

    /// The numbers of the container that is followed as `name`, to be changed.
    pub fn azure(&self, name: &str, change: impl FnOnce(&mut TailVitals)) {
        let mut containers = self.azure.lock().unwrap_or_else(PoisonError::into_inner);
        change(containers.entry(name.to_owned()).or_default());
    }

    /// The numbers of every container that is followed.
    pub fn containers(&self) -> BTreeMap<String, TailVitals> {
        self.azure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All numbers in the text format of Prometheus (version 0.0.4).
    pub fn render(&self) -> String {
        let mut page = Page::default();
        self.render_door(&mut page);
        self.render_sensors(&mut page);
        self.render_mirrors(&mut page);
        self.render_azure(&mut page);
        self.render_store(&mut page);
        self.render_detect(&mut page);
        self.render_outputs(&mut page);
        page.text
    }

    fn render_door(&self, page: &mut Page) {
        let door = [
            ("connections_total", "Connections accepted.", &self.door.connections),
            ("connections_crowded_total", "Connections closed because there were too many.", &self.door.crowded),
            ("connections_stranger_total", "Handshakes that failed: wrong certificate, none, or no TLS.", &self.door.strangers),
            (
                "connections_rejected_total",
                "Sensors turned away after the handshake, or closed for nonsense.",
                &self.door.rejected,
            ),
        ];
        for (name, help, count) in door {
            page.metric(name, "counter", help);
            page.value(name, "", count.load(Ordering::Relaxed));
        }
    }

    fn render_sensors(&self, page: &mut Page) {
        let statuses = self.registry.statuses();
        page.metric("sensor_connected", "gauge", "Whether a connection speaks for the sensor.");
        for (sensor, status) in &statuses {
            page.value("sensor_connected", &format!("sensor=\"{sensor}\""), u64::from(status.connected));
        }
        type Get = fn(&crate::ingest::registry::Status) -> u64;
        let counters: [(&str, &str, Get); 8] = [
            ("sensor_connects_total", "How often the sensor was welcomed.", |status| status.connects),
            ("sensor_batches_total", "New batches.", |status| status.batches),
            ("sensor_records_total", "Records in new batches.", |status| status.records),
            ("sensor_joined_total", "Records put together of two halves of a flow.", |status| status.joined),
            ("sensor_lone_halves_total", "Halves of flows whose other half did not come.", |status| status.lone_halves),
            ("sensor_repeats_total", "Batches that came again and were dropped.", |status| status.repeats),
            ("sensor_gaps_total", "Batches that never came.", |status| status.gaps),
            ("sensor_malformed_total", "Messages that made no sense.", |status| status.malformed),
        ];
        for (name, help, get) in counters {
            page.metric(name, "counter", help);
            for (sensor, status) in &statuses {
                page.value(name, &format!("sensor=\"{sensor}\""), get(status));
            }
        }
        page.metric("sensor_ledger_packets", "gauge", "The sensor's latest account, as it sent it.");
        for (sensor, status) in &statuses {
            for (count, value) in status.ledger.counts() {
                page.value("sensor_ledger_packets", &format!("sensor=\"{sensor}\",count=\"{count}\""), value);
            }
        }
    }

    fn render_mirrors(&self, page: &mut Page) {
        let mut ports = Vec::new();
        self.registry.each(|sensor, _, status| {
            ports.extend(status.ports.iter().map(|port| (mirror_labels(sensor, &port.interface), port.health)));
        });
        type Get = fn(&Health) -> u64;
        let counts: [(&str, &str, Get); 20] = [
            ("packets", "Packets handed to the sensor.", |health| health.packets),
            ("group_packets", "Broadcast and multicast packets that any port of the VLAN gets.", |health| health.group_packets),
            ("sliced_packets", "Packets that were captured shorter than they were.", |health| health.sliced),
            ("dropped_packets", "Packets lost before the sensor.", |health| health.dropped),
            ("examined_packets", "Packets compared with those just before them.", |health| health.examined),
            ("duplicates_copy", "Identical second copies among these.", |health| health.duplicate_copy),
            ("duplicates_routed", "Second copies from behind a router.", |health| health.duplicate_routed),
            ("duplicates_redundant", "HSR or PRP twins.", |health| health.duplicate_redundant),
            ("deduplicating", "1 while the sensor removes second copies.", |health| health.deduplicating),
            ("tcp_flows", "Slices of TCP flows past the handshake.", |health| health.tcp_flows),
            ("tcp_flows_one_way", "Those of them that only showed one side.", |health| health.tcp_flows_one_way),
            ("tcp_octets", "TCP payload octets seen.", |health| health.tcp_octets),
            ("missed_octets", "TCP octets that were acknowledged, but never came by.", |health| health.missed_octets),
            ("unknown_encapsulation_packets", "Packets in an unknown or damaged tunnel.", |health| health.unknown_encapsulation),
            ("erspan_packets", "Packets that came with an ERSPAN sequence number.", |health| health.erspan_packets),
            ("erspan_gaps", "Packets missing from these sequences.", |health| health.erspan_gaps),
            ("evicted_flows", "Flows that ended early because the flow table was full.", |health| health.evicted),
            ("aggregate_packets", "Packets metered by prefixes because it was full.", |health| health.in_aggregate),
            ("shed_packets", "Packets left out on purpose, of those that were lost.", |health| health.shed),
            ("keep_one_in", "One packet in so many is looked at; 0 or 1 for all.", |health| health.keep_one_in),
        ];
        for (name, help, get) in counts {
            let name = format!("collector_mirror_{name}");
            page.metric(&name, "gauge", &format!("{help} Since the sensor started, as it last said."));
            for (labels, health) in &ports {
                page.value(&name, labels, get(health));
            }
        }
        page.metric("collector_mirror_symptom", "gauge", "1 while the last minute of the port showed the symptom.");
        for (sensor, interface, present) in &self.detect().mirrors {
            let labels = mirror_labels(sensor, interface);
            for (kind, present) in SymptomKind::ALL.iter().zip(present) {
                page.value("collector_mirror_symptom", &format!("{labels},symptom=\"{}\"", kind.name()), u64::from(*present));
            }
        }
    }

    fn render_azure(&self, page: &mut Page) {
        let containers = self.containers();
        if containers.is_empty() {
            return;
        }
        type Get = fn(&TailVitals) -> u64;
        let values: [(&str, &str, &str, Get); 12] = [
            ("azure_trouble", "gauge", "1 while the container cannot be read.", |vitals| u64::from(vitals.trouble.is_some())),
            ("azure_blobs", "gauge", "Blobs that are followed.", |vitals| vitals.blobs),
            ("azure_blobs_waiting", "gauge", "Blobs that wait because there are too many.", |vitals| vitals.blobs_waiting),
            ("azure_blobs_refused", "gauge", "Blobs that hold what cannot be read.", |vitals| vitals.refused),
            ("azure_blobs_replaced_total", "counter", "Blobs that were replaced and read anew.", |vitals| vitals.replaced),
            ("azure_bytes_total", "counter", "Bytes read.", |vitals| vitals.bytes),
            ("azure_rows_total", "counter", "Rows stored.", |vitals| vitals.rows),
            ("azure_duplicates_total", "counter", "Exact duplicates left out.", |vitals| vitals.duplicates),
            ("azure_held_back_bytes", "gauge", "Bytes of records that have not ended yet.", |vitals| vitals.held_back),
            ("azure_lag_seconds", "gauge", "From the newest stored row to the last look.", |vitals| vitals.lag_secs),
            ("azure_rounds_total", "counter", "Times the container was looked through.", |vitals| vitals.rounds),
            ("azure_failed_rounds_total", "counter", "Times trouble came in between.", |vitals| vitals.failed_rounds),
        ];
        for (name, kind, help, get) in values {
            page.metric(name, kind, help);
            for (container, vitals) in &containers {
                page.value(name, &format!("container=\"{container}\""), get(vitals));
            }
        }
    }

    fn render_store(&self, page: &mut Page) {
        let vitals = self.store().clone();
        let counts = vitals.counts;
        let values = [
            ("store_records_total", "counter", "Records taken.", counts.records),
            ("store_committed_total", "counter", "Records made durable.", counts.committed),
            ("store_repeats_total", "counter", "Batches that were there already.", counts.repeats),
            ("store_missing_total", "counter", "Batches that never came.", counts.missing),
            ("store_refused_total", "counter", "Batches that had to wait for room.", counts.refused),
            ("store_commits_total", "counter", "Commits.", counts.commits),
            ("store_failed_commits_total", "counter", "Commits that failed and were tried again.", counts.failed_commits),
            ("store_buffered_records", "gauge", "Records that wait for a commit.", vitals.buffered_rows as u64),
            ("store_files", "gauge", "Files in the table, as of the last upkeep.", vitals.files as u64),
            ("store_bytes", "gauge", "Bytes in them.", vitals.bytes),
            ("store_trouble", "gauge", "1 while nothing can be stored.", u64::from(vitals.trouble.is_some())),
        ];
        for (name, kind, help, value) in values {
            page.metric(name, kind, help);
            page.value(name, "", value);
        }
    }

    fn render_outputs(&self, page: &mut Page) {
        let Some(outbox) = self.outbox.get() else { return };
        page.metric("outputs_journal_bytes", "gauge", "What the journal of the outputs takes on disk.");
        page.value("outputs_journal_bytes", "", outbox.journal_bytes());
        type Get = fn(&OutputStatus) -> u64;
        let values: [(&str, &str, &str, Get); 6] = [
            ("output_waiting", "gauge", "Alerts that the output wants and has not got yet.", |status| status.waiting),
            ("output_delivered_total", "counter", "Alerts delivered.", |status| status.delivered),
            ("output_refused_total", "counter", "Alerts that the receiver will never take; they are parked.", |status| {
                status.refused
            }),
            ("output_dropped_total", "counter", "Alerts given up because the journal was full.", |status| status.dropped),
            ("output_shortened_total", "counter", "Alerts delivered without part of their evidence.", |status| status.shortened),
            ("output_failing", "gauge", "Whether nothing gets through at present.", |status| {
                u64::from(status.failing_since.is_some())
            }),
        ];
        let outputs = outbox.status();
        for (name, kind, help, get) in values {
            page.metric(name, kind, help);
            for status in &outputs {
                page.value(name, &format!("output=\"{}\"", status.name), get(status));
            }
        }
    }

    fn render_detect(&self, page: &mut Page) {
        let vitals = self.detect().clone();
        let counters = vitals.counters;
        let values = [
            ("detect_records_total", "Records given to the detectors.", counters.observed),
            ("detect_unplaced_total", "Records without an address or a time.", counters.unplaced),
            ("detect_future_total", "Records from the future, not believed.", counters.future),
            ("detect_findings_total", "Findings told.", counters.findings),
            ("alert_events_total", "Alerts raised, updated or closed.", vitals.alert_events),
            ("alerts_lost_total", "Alert events that could not be written.", vitals.alerts_lost),
            (
                "alerts_quiet_total",
                "Alert events for the record only: muted, or beyond the budget of their rule.",
                vitals.alerts_quiet,
            ),
            ("alerts_forgotten_total", "Alerts forgotten because there were too many.", vitals.alerts_forgotten),
        ];
        for (name, help, value) in values {
            page.metric(name, "counter", help);
            page.value(name, "", value);
        }
        page.metric("alerts_open", "gauge", "Alerts that are open now.");
        page.value("alerts_open", "", vitals.alerts_open);
        page.metric("alerts_muted", "gauge", "Alerts that are open and muted now.");
        page.value("alerts_muted", "", vitals.alerts_muted);
        page.metric("incidents_open", "gauge", "Incidents that are open now.");
        page.value("incidents_open", "", vitals.incidents_open);
        let gauges = [
            ("rules_loaded_at_seconds", "When the rules in force were read (Unix time).", secs(vitals.rules_loaded_at)),
            (
                "rules_error",
                "1 while the rule files cannot be read again; those read before are in force.",
                u64::from(vitals.rules_error.is_some()),
            ),
            (
                "detect_checkpoint_at_seconds",
                "When what the detectors have learned was last written to disk (Unix time); 0 for not yet.",
                secs(vitals.checkpoint_at),
            ),
            ("detect_checkpoint_bytes", "How long that is.", vitals.checkpoint_bytes),
        ];
        for (name, help, value) in gauges {
            page.metric(name, "gauge", help);
            page.value(name, "", value);
        }
        type Get = fn(&detect::State) -> u64;
        let by_detector: [(&str, &str, &str, Get); 4] = [
            ("detector_keys", "gauge", "Keys held over all open windows.", |state| state.keys as u64),
            ("detector_late_total", "counter", "Records that came after their window had closed.", |state| state.late),
            ("detector_evicted_total", "counter", "Keys forgotten to make room.", |state| state.evicted),
            ("detector_refused_total", "counter", "Records not counted for want of room.", |state| state.refused),
        ];
        for (name, kind, help, get) in by_detector {
            page.metric(name, kind, help);
            for state in &vitals.detectors {
                page.value(name, &format!("rule=\"{}\",variant=\"{}\"", state.rule, state.variant), get(state));
            }
        }
    }
}

/// Names of interfaces come from sensors as they are.
fn mirror_labels(sensor: &str, interface: &str) -> String {
    let interface = interface.replace('\\', "\\\\").replace('"', "\\\"");
    format!("sensor=\"{sensor}\",interface=\"{interface}\"")
}

/// Whole seconds since the epoch.
const fn secs(at: Timestamp) -> u64 {
    (at.as_nanos() / 1_000_000_000).cast_unsigned()
}

/// Text in the making. Label values other than interfaces are sensor names, dotted counts and rule names, none of which needs escaping.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let name = format!("spanwatch_{name}");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}"); // writing to a String cannot fail
    }

    fn value(&mut self, name: &str, labels: &str, value: u64) {
        let _ = match labels {
            "" => writeln!(self.text, "spanwatch_{name} {value}"),
            labels => writeln!(self.text, "spanwatch_{name}{{{labels}}} {value}"),
        };
    }
}

/// `/metrics` and `/healthz`.
pub fn router(vitals: Arc<Vitals>) -> axum::Router {
    async fn metrics(State(vitals): State<Arc<Vitals>>) -> impl IntoResponse {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], vitals.render())
    }
    async fn healthz(State(vitals): State<Arc<Vitals>>) -> (StatusCode, String) {
        if let Some(trouble) = vitals.store().trouble.clone() {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n"));
        }
        // Old rules still watch, so this is no reason to call the collector ill.
        let mut text = match vitals.detect().rules_error.clone() {
            None => "ok\n".to_owned(),
            Some(error) => format!("ok, but with the rules of before: {error}\n"),
        };
        if let Some(error) = vitals.detect().mutes_error.clone() {
            let _ = writeln!(text, "ok, but {error}"); // writing to a String cannot fail
        }
        // Neither is a container that cannot be read: sensors are heard all the same.
        for (container, azure) in vitals.containers() {
            if let Some(trouble) = azure.trouble {
                let _ = writeln!(text, "ok, but without azure {container}: {trouble}"); // writing to a String cannot fail
            }
        }
        // Alerts for an output that cannot be reached wait in the journal.
        for status in vitals.outputs() {
            if let (Some(since), Some(error)) = (status.failing_since, status.last_error) {
                let _ = writeln!(text, "ok, but output {} has failed since {since}: {error}", status.name);
            }
        }
        (StatusCode::OK, text)
    }
    axum::Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(vitals)
}

#[cfg(test)]
mod tests {
    use spanwatch_common::health::PortHealth;
    use spanwatch_common::wire::Stats;

    use super::*;

    #[test]
    fn the_counts_of_a_mirror_stand_under_its_interface_whatever_that_is_called() {
        let vitals = Vitals::default();
        let session = vitals.registry.welcome("plant1", 5, 0).unwrap();
        let health = Health { packets: 7, tcp_flows_one_way: 3, ..Health::default() };
        let ports = vec![PortHealth { observation_point: 1, interface: "en\"o\\2\n".to_owned(), health }];
        vitals.registry.stats(&session, Stats { boot: 5, ports, ..Stats::default() });
        let present = SymptomKind::ALL.map(|kind| kind == SymptomKind::OneWay);
        vitals.detect().mirrors = vec![("plant1".to_owned(), "eno2".to_owned(), present)];
        let page = vitals.render();
        for line in [
            r#"spanwatch_collector_mirror_packets{sensor="plant1",interface="en\"o\\2"} 7"#,
            r#"spanwatch_collector_mirror_tcp_flows_one_way{sensor="plant1",interface="en\"o\\2"} 3"#,
            r#"spanwatch_collector_mirror_symptom{sensor="plant1",interface="eno2",symptom="one_way"} 1"#,
            r#"spanwatch_collector_mirror_symptom{sensor="plant1",interface="eno2",symptom="sliced"} 0"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
