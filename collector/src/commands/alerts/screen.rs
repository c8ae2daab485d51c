//! One alert on a screen: the sentence, the numbers, the course, the rows, the doubts, what to do.

use spanwatch_common::text::protocol_name;
use spanwatch_common::time::Timestamp;

use super::list::{columns, table};
use crate::alert::attack::technique;
use crate::alert::terminal::{printable, to_the_second};
use crate::alert::{Alert, Class};
use crate::commands::layout::wrap;
use crate::detect::finding::{Evidence, Sighting};

/// Where text hangs.
pub(super) const INDENT: usize = 12;
/// Columns of a sparkline.
const SPARKS_MAX: usize = 60;
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `alert`, which stands among `alerts`.
pub(super) fn alert(alert: &Alert, alerts: &[Alert]) -> String {
    let mut text = format!("{}  {}  (alert {})\n\n", alert.rule, alert.title, alert.id);
    text.push_str(&wrap("", 0, &alert.sentence));
    text.push('\n');
    for (head, paragraph) in paragraphs(alert, alerts) {
        if !paragraph.is_empty() {
            text.push_str(&wrap(head, INDENT, &paragraph));
        }
    }
    if !alert.evidence.rows.is_empty() {
        text.push('\n');
        text.push_str(&rows(&alert.evidence.rows));
    }
    let members: Vec<Alert> =
        alert.members.iter().filter_map(|id| alerts.iter().find(|other| other.id == *id)).cloned().collect();
    if !members.is_empty() {
        text.push_str("\nits alerts\n");
        text.push_str(&table(&members));
    }
    text.lines().map(|line| printable(line) + "\n").collect()
}

fn paragraphs(alert: &Alert, alerts: &[Alert]) -> Vec<(&'static str, String)> {
    let Alert { evidence, window, .. } = alert;
    let again = match alert.reopened {
        0 => String::new(),
        1 => ", re-opened once".to_owned(),
        times => format!(", re-opened {times} times"),
    };
    let state = format!("{}; seen from {} to {}{again}", alert.state, to_the_second(alert.first), to_the_second(alert.last));
    let end = window.start.plus(std::time::Duration::from_secs(window.secs));
    let found =
        if alert.windows > 1 { format!("; found in {} windows, this is the strongest", alert.windows) } else { String::new() };
    let mut paragraphs = vec![
        ("state", state),
        ("severity", format!("{}, {:.0} % sure", alert.severity, alert.confidence * 100.0)),
        ("tactics", tactics(alert)),
        ("window", format!("{} to {}{found}", to_the_second(window.start), to_the_second(end))),
        ("measured", measured(evidence)),
        ("contacts", contacts(evidence)),
        ("course", if evidence.series.len() > 1 { sparkline(&evidence.series) } else { String::new() }),
        ("hosts", evidence.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        ("services", evidence.services.join(", ")),
        ("seen by", evidence.observers.join(", ")),
    ];
    paragraphs.extend(alert.doubts.iter().map(|doubt| ("doubt", doubt.clone())));
    if let Some(muted) = &alert.muted {
        paragraphs.push(("muted", format!("by {} until {}: {}", muted.owner, to_the_second(muted.until), muted.reason)));
    }
    let part_of = |class: Class| alerts.iter().rev().find(|other| other.class == class && other.members.contains(&alert.id));
    if let Some(storm) = alert.storm.as_ref().and_then(|id| alerts.iter().find(|other| other.id == *id)) {
        paragraphs.push(("storm", storm.sentence.clone()));
    }
    if let Some(better) = alert.spoken_for.as_ref().and_then(|id| alerts.iter().find(|other| other.id == *id)) {
        paragraphs.push(("told by", format!("{} {}: {}", better.rule, better.id, better.sentence)));
    }
    let own = alert.incident.as_ref().and_then(|id| alerts.iter().find(|other| other.id == *id));
    if let Some(incident) = own.or_else(|| part_of(Class::Incident)) {
        paragraphs.push(("incident", format!("{}: {}", incident.id, incident.sentence)));
    }
    paragraphs.push(("what to do", alert.advice.clone()));
    paragraphs
}

/// `Discovery; T1046 Network Service Discovery`.
fn tactics(alert: &Alert) -> String {
    let name = |id: &String| technique(id).map_or_else(|| id.clone(), |technique| format!("{id} {}", technique.name));
    let techniques: Vec<String> = alert.attack.iter().map(name).collect();
    [alert.tactics.join(", "), techniques.join(", ")].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

/// `412 hosts; the rule asks for more than 25; usual are 3`.
fn measured(evidence: &Evidence) -> String {
    let mut text = format!("{} {}; the threshold is {}", number(evidence.value), evidence.unit, number(evidence.threshold));
    if let Some(baseline) = evidence.baseline {
        text.push_str(&format!("; usual is {}", number(baseline)));
    }
    if let Some(octets) = evidence.octets {
        text.push_str(&format!("; {octets} octets"));
    }
    if let Some(mean) = evidence.mean_octets {
        text.push_str(&format!(", where {} are usual", number(mean)));
    }
    text
}

fn contacts(evidence: &Evidence) -> String {
    match (evidence.attempts, evidence.failures) {
        (Some(attempts), Some(failures)) => format!("{attempts}, of which {failures} came to nothing"),
        (Some(attempts), None) => attempts.to_string(),
        (None, Some(failures)) => format!("{failures} came to nothing"),
        (None, None) => String::new(),
    }
}

/// As few digits as tell it.
pub(super) fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{}", (value * 1_000.0).round() / 1_000.0) }
}

/// The course of a series as blocks from nothing to its highest point, which is named; oldest first.
fn sparkline(series: &[f64]) -> String {
    let stretch = series.len().div_ceil(SPARKS_MAX);
    let points: Vec<f64> = series.chunks(stretch).map(|some| some.iter().copied().fold(0.0, f64::max)).collect();
    let highest = points.iter().copied().fold(0.0, f64::max);
    let spark = |point: &f64| {
        let level = if highest > 0.0 { (point / highest * (SPARKS.len() - 1) as f64).round() } else { 0.0 };
        SPARKS.get(level as usize).copied().unwrap_or(' ')
    };
    format!("{} (oldest first, highest {})", points.iter().map(spark).collect::<String>(), number(highest))
}

/// The rows that speak for it.
fn rows(rows: &[Sighting]) -> String {
    let heading = ["time", "from", "to", "packets", "octets", "flags", "outcome", "seen by"].map(str::to_owned);
    let both = |[forward, reverse]: [u64; 2]| format!("{forward}/{reverse}");
    let rows = rows.iter().map(|row| {
        let outcome = serde_json::to_string(&row.outcome).unwrap_or_default();
        [
            Timestamp::from_nanos(row.at).to_string().get(11..23).unwrap_or_default().to_owned(),
            format!("{}:{}", row.source, row.source_port),
            format!("{} {}/{}", row.destination, protocol_name(row.protocol), row.port),
            both(row.packets),
            both(row.octets),
            row.flags.map(flags).join("/"),
            outcome.trim_matches('"').replace('_', " "),
            if row.flow_id == 0 { row.observer.clone() } else { format!("{} flow {:x}", row.observer, row.flow_id) },
        ]
    });
    columns(&std::iter::once(heading).chain(rows).collect::<Vec<_>>())
}

/// TCP control bits by their letters: `SA`; `-` for none.
fn flags(bits: u16) -> String {
    let letters: String =
        "FSRPAUEC".chars().enumerate().filter(|(bit, _)| bits & 1 << bit != 0).map(|(_, letter)| letter).collect();
    if letters.is_empty() { "-".to_owned() } else { letters }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_course_fits_a_line_and_shows_its_peak() {
        assert_eq!(sparkline(&[0.0, 7.0, 14.0]), "▁▅█ (oldest first, highest 14)");
        let long: Vec<f64> = (0..168).map(f64::from).collect();
        assert_eq!(sparkline(&long).chars().filter(|letter| SPARKS.contains(letter)).count(), 56);
        assert_eq!(sparkline(&[0.0, 0.0]), "▁▁ (oldest first, highest 0)");
    }

    #[test]
    fn control_bits_are_read_as_letters() {
        assert_eq!((flags(0x02), flags(0x12), flags(0x29), flags(0)), ("S".into(), "SA".into(), "FPU".into(), "-".into()));
    }
}
