//! The sensor's own numbers, for Prometheus and for whoever asks whether it is well.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use spanwatch_common::ledger::Ledger;
use tokio::net::TcpListener;

use crate::uplink::{Link, Uplink};

/// What /metrics and /healthz draw from.
pub struct Vitals {
    /// The running uplink, which has the account of the whole sensor.
    pub uplink: Uplink,
    /// Interface, mode in force, and why.
    pub capture: CaptureInfo,
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
    let router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(vitals);
    axum::serve(listener, router).await
}

async fn metrics(State(vitals): State<Arc<Vitals>>) -> impl IntoResponse {
    let text = render(&vitals.uplink.ledger(), &vitals.uplink.link(), &vitals.capture);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// Well as long as packets are captured; the second line tells about the collector, whose absence a sensor survives.
async fn healthz(State(vitals): State<Arc<Vitals>>) -> impl IntoResponse {
    let link = vitals.uplink.link();
    let uplink = match (link.connected, link.trouble) {
        (true, _) => "connected".to_owned(),
        (false, Some(trouble)) => trouble,
        (false, None) => "connecting".to_owned(),
    };
    (StatusCode::OK, format!("capture: {} on {}\nuplink: {uplink}\n", vitals.capture.mode, vitals.capture.interface))
}

/// The Prometheus text format, version 0.0.4.
fn render(ledger: &Ledger, link: &Link, capture: &CaptureInfo) -> String {
    let mut text = String::new();
    let mut help = |name: &str, kind: &str, says: &str, lines: &[(String, u64)]| {
        let _ = writeln!(text, "# HELP spanwatch_sensor_{name} {says}\n# TYPE spanwatch_sensor_{name} {kind}");
        for (labels, value) in lines {
            let _ = writeln!(text, "spanwatch_sensor_{name}{labels} {value}");
        }
    };
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
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ");
    let info =
        format!("{{interface=\"{}\",mode=\"{}\",why=\"{}\"}}", escape(&capture.interface), capture.mode, escape(&capture.why));
    help("capture_info", "gauge", "How packets are captured.", &[(info, 1)]);
    help("capture_queues", "gauge", "Receive queues that are read.", &[(String::new(), capture.queues as u64)]);
    help("uplink_connected", "gauge", "Whether the collector listens.", &[(String::new(), u64::from(link.connected))]);
    help("uplink_connects_total", "counter", "Connections that the collector welcomed.", &[(String::new(), link.connects)]);
    help("uplink_queue_bytes", "gauge", "Encoded batches that wait.", &[(String::new(), link.queue_bytes)]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_of_the_ledger_is_a_line() {
        let ledger = Ledger { delivered: 7, ..Ledger::default() };
        let text = render(&ledger, &Link::default(), &CaptureInfo { why: "it \"works\"".into(), ..CaptureInfo::default() });
        assert!(text.contains("spanwatch_sensor_packets{count=\"delivered\"} 7\n"), "{text}");
        assert!(text.contains("spanwatch_sensor_dropped_packets_total{reason=\"ring_full\"} 0\n"), "{text}");
        assert!(text.contains("why=\"it \\\"works\\\"\""), "{text}");
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples, ledger.counts().len() + 5);
    }
}
