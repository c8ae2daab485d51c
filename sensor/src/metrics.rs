//! The sensor's own numbers: /metrics for Prometheus, /healthz for whoever asks whether it is well, /live for `spanwatch-sensor top`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use spanwatch_common::encapsulation::Encapsulation;
use spanwatch_common::health::{Health, PortHealth};
use spanwatch_common::ledger::Ledger;
use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::live_view::{LiveView, PortView, Talker};
use crate::uplink::{Link, Uplink};

/// What /metrics, /healthz and /live draw from.
pub struct Vitals {
    /// The running uplink, which has the account of the whole sensor.
    pub uplink: Uplink,
    /// Each capture port: interface, mode in force, and why; in the order of [`Uplink::ports`].
    pub captures: Vec<CaptureInfo>,
    /// Runs since the sensor started.
    pub clock: Clock,
    /// Grows with each question for /live; the workers gather talkers while it does.
    pub asked_for: Arc<AtomicU32>,
}

/// How packets are captured; does not change while the sensor runs.
#[derive(Clone, Debug, Default)]
pub struct CaptureInfo {
    /// Name of the interface.
    pub interface: String,
    /// Name of the mode in force.
    pub mode: &'static str,
    /// Why that one.
    pub why: String,
    /// Receive queues, one worker thread each.
    pub queues: usize,
}

impl CaptureInfo {
    /// All ports in a few words: `af_xdp_copy on eno2, packet on eno3`.
    pub fn all(captures: &[Self]) -> String {
        captures.iter().map(|capture| format!("{} on {}", capture.mode, capture.interface)).collect::<Vec<_>>().join(", ")
    }
}

/// Takes the address; `None` when it is empty.
///
/// # Errors
/// The address is taken or not of this machine.
pub async fn listen(address: &str) -> anyhow::Result<Option<TcpListener>> {
    if address.is_empty() {
        return Ok(None);
    }
    let advice = || format!("listen on {address} for metrics; is another sensor running here? Otherwise change metrics.listen");
    TcpListener::bind(address).await.map(Some).with_context(advice)
}

/// Serves until the task is aborted; without a listener it does nothing until then.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: Option<TcpListener>, vitals: Arc<Vitals>) -> std::io::Result<()> {
    let Some(listener) = listener else { return std::future::pending().await };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/live", get(live))
        .with_state(vitals);
    axum::serve(listener, router).await
}

async fn metrics(State(vitals): State<Arc<Vitals>>) -> impl IntoResponse {
    let mut text = render(&vitals.uplink.ledger(), &vitals.uplink.link(), &vitals.captures);
    render_mirrors(&vitals.uplink.ports(), &mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// What `spanwatch-sensor top` shows.
async fn live(State(vitals): State<Arc<Vitals>>) -> impl IntoResponse {
    let Vitals { uplink, captures, clock, asked_for } = &*vitals;
    asked_for.fetch_add(1, Ordering::Relaxed);
    let port = |(port, capture): (PortHealth, &CaptureInfo)| PortView {
        mode: capture.mode.to_owned(),
        why: capture.why.clone(),
        queues: capture.queues,
        port,
    };
    let ports: Vec<PortView> = uplink.ports().into_iter().zip(captures).map(port).collect();
    let view = LiveView {
        uptime_millis: u64::try_from(clock.running().as_millis()).unwrap_or(u64::MAX),
        ledger: uplink.ledger(),
        queues: uplink.queues(),
        link: uplink.link(),
        talkers: uplink.talkers().iter().map(Talker::from).collect(),
        ..LiveView::of(ports)
    };
    ([(header::CONTENT_TYPE, "application/json")], serde_json::to_string(&view).unwrap_or_default())
}

/// Well as long as packets are captured; the second line tells about the collector, whose absence a sensor survives.
async fn healthz(State(vitals): State<Arc<Vitals>>) -> impl IntoResponse {
    let link = vitals.uplink.link();
    let uplink = match (link.connected, link.trouble) {
        (true, _) => "connected".to_owned(),
        (false, Some(trouble)) => trouble,
        (false, None) => "connecting".to_owned(),
    };
    (StatusCode::OK, format!("capture: {}\nuplink: {uplink}\n", CaptureInfo::all(&vitals.captures)))
}

/// The Prometheus text format, version 0.0.4.
fn render(ledger: &Ledger, link: &Link, captures: &[CaptureInfo]) -> String {
    let mut text = String::new();
    let mut help = |name: &str, kind: &str, says: &str, lines: &[(String, u64)]| write_metric(&mut text, name, kind, says, lines);
    let group = |prefix: &str, label: &str| -> Vec<(String, u64)> {
        let counts = ledger.counts();
        let named = counts.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?, *value)));
        named.filter(|(name, _)| !name.contains('.')).map(|(name, value)| (format!("{{{label}=\"{name}\"}}"), value)).collect()
    };
    help("packets", "gauge", "The ledger: where every packet is.", &group("", "count"));
    help("dropped_packets_total", "counter", "Packets lost before the sensor saw them.", &group("dropped.", "reason"));
    help("ignored_packets_total", "counter", "Packets seen but not metered.", &group("ignored.", "reason"));
    help("odd_packets_total", "counter", "Packets understood only in part.", &group("odd.", "kind"));
    help("flows", "gauge", "Flows and their records.", &group("flows.", "count"));
    let info = |capture: &CaptureInfo| {
        let (interface, why) = (escaped(&capture.interface), escaped(&capture.why));
        (format!("{{interface=\"{interface}\",mode=\"{}\",why=\"{why}\"}}", capture.mode), 1)
    };
    help("capture_info", "gauge", "How packets are captured.", &captures.iter().map(info).collect::<Vec<_>>());
    let queues = |capture: &CaptureInfo| (format!("{{interface=\"{}\"}}", escaped(&capture.interface)), capture.queues as u64);
    help("capture_queues", "gauge", "Receive queues that are read.", &captures.iter().map(queues).collect::<Vec<_>>());
    help("uplink_connected", "gauge", "Whether the collector listens.", &[(String::new(), u64::from(link.connected))]);
    help("uplink_connects_total", "counter", "Connections that the collector welcomed.", &[(String::new(), link.connects)]);
    help("uplink_queue_bytes", "gauge", "Encoded batches that wait.", &[(String::new(), link.queue_bytes)]);
    text
}

/// What the mirrors are judged by, one line for each port, appended to `text`.
fn render_mirrors(ports: &[PortHealth], text: &mut String) {
    let mut each = |name: &str, says: &str, value: fn(&Health) -> u64| {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let line = |port: &PortHealth| (format!("{{interface=\"{}\"}}", escaped(&port.interface)), value(&port.health));
        write_metric(text, &format!("mirror_{name}"), kind, says, &ports.iter().map(line).collect::<Vec<_>>());
    };
    each("packets_total", "Packets handed to the sensor.", |health| health.packets);
    each("octets_total", "Octets of their frames, without preamble and FCS.", |health| health.octets);
    each("group_packets_total", "Packets to a group MAC address, process data apart: any port gets those.", |health| {
        health.group_packets
    });
    each("sliced_packets_total", "Packets captured shorter than they were on the wire.", |health| health.sliced);
    each("dropped_packets_total", "Packets lost before the sensor saw them.", |health| health.dropped);
    each("examined_packets_total", "Packets compared with those just before them, in search of duplicates.", |health| {
        health.examined
    });
    each("deduplicating", "Queues on which duplicates are removed; on the others they are only counted.", |health| {
        health.deduplicating
    });
    each("tcp_flows_total", "Slices of TCP flows past the handshake.", |health| health.tcp_flows);
    each("tcp_one_way_flows_total", "Those of them whose flow only ever showed one side.", |health| health.tcp_flows_one_way);
    each("tcp_octets_total", "TCP payload octets seen.", |health| health.tcp_octets);
    each("missed_octets_total", "TCP octets that were acknowledged, but never came by.", |health| health.missed_octets);
    each("unknown_encapsulation_packets_total", "Packets in an unknown or damaged tunnel or tag.", |health| {
        health.unknown_encapsulation
    });
    each("erspan_packets_total", "Packets that came with an ERSPAN sequence number.", |health| health.erspan_packets);
    each("erspan_missing_packets_total", "Packets missing from those sequences.", |health| health.erspan_gaps);
    each("evicted_flows_total", "Flows that ended early to make room for others.", |health| health.evicted);
    each("aggregate_packets_total", "Packets metered in a flow of many, for want of room.", |health| health.in_aggregate);
    each("shed_packets_total", "Packets left out by sampling.", |health| health.shed);
    each("keep_one_in", "One packet in so many is looked at; 0 and 1 are all.", |health| health.keep_one_in);
    let label = |port: &PortHealth, label: &str, value: &str| {
        format!("{{interface=\"{}\",{label}=\"{value}\"}}", escaped(&port.interface))
    };
    let causes = |port: &PortHealth| {
        let health = &port.health;
        [("copy", health.duplicate_copy), ("routed", health.duplicate_routed), ("redundant", health.duplicate_redundant)]
            .map(|(cause, count)| (label(port, "cause", cause), count))
    };
    let lines: Vec<_> = ports.iter().flat_map(causes).collect();
    write_metric(text, "mirror_duplicate_packets_total", "counter", "Second copies among the examined packets.", &lines);
    let kinds = |port: &PortHealth| {
        let counted = Encapsulation::ALL.into_iter().zip(port.health.encapsulations);
        counted.map(|(kind, count)| (label(port, "kind", kind.name()), count)).collect::<Vec<_>>()
    };
    let lines: Vec<_> = ports.iter().flat_map(kinds).collect();
    write_metric(text, "mirror_encapsulated_packets_total", "counter", "Packets by what was around them.", &lines);
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ")
}

/// One metric: its two lines of explanation, and a line for each set of labels.
fn write_metric(text: &mut String, name: &str, kind: &str, says: &str, lines: &[(String, u64)]) {
    let _ = writeln!(text, "# HELP spanwatch_sensor_{name} {says}\n# TYPE spanwatch_sensor_{name} {kind}");
    for (labels, value) in lines {
        let _ = writeln!(text, "spanwatch_sensor_{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_of_the_ledger_is_a_line() {
        let ledger = Ledger { delivered: 7, ..Ledger::default() };
        let text = render(&ledger, &Link::default(), &[CaptureInfo { why: "it \"works\"".into(), ..CaptureInfo::default() }]);
        assert!(text.contains("spanwatch_sensor_packets{count=\"delivered\"} 7\n"), "{text}");
        assert!(text.contains("spanwatch_sensor_dropped_packets_total{reason=\"ring_full\"} 0\n"), "{text}");
        assert!(text.contains("why=\"it \\\"works\\\"\""), "{text}");
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples, ledger.counts().len() + 5);
    }

    #[test]
    fn every_count_of_the_mirror_is_a_line_with_its_explanation() {
        let mut health = Health { missed_octets: 9, duplicate_routed: 3, ..Health::default() };
        health.encapsulations[Encapsulation::Vxlan as usize] = 5;
        let mut text = String::new();
        let port = |interface: &str, health| PortHealth { interface: interface.into(), health, ..PortHealth::default() };
        render_mirrors(&[port("eno2", health), port("eno3", Health::default())], &mut text);
        for line in [
            "missed_octets_total{interface=\"eno2\"} 9",
            "missed_octets_total{interface=\"eno3\"} 0",
            "duplicate_packets_total{interface=\"eno2\",cause=\"routed\"} 3",
            "encapsulated_packets_total{interface=\"eno2\",kind=\"vxlan\"} 5",
        ] {
            assert!(text.contains(&format!("spanwatch_sensor_mirror_{line}\n")), "{line} is missing in\n{text}");
        }
        // Every number of the struct is somewhere on the page, for each of the two ports.
        let fields = serde_json::to_value(health).expect("JSON");
        let numbers = fields.as_object().expect("an object").values().map(|value| value.as_array().map_or(1, Vec::len));
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 2 * numbers.sum::<usize>());
    }
}
