//! An incident in one sentence: who did what to whom, in the order of time.

use std::collections::BTreeSet;
use std::time::Duration;

use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::alert::Alert;
use crate::attack::{Tactic, tactics_of};

/// Deeds that are told one by one.
pub(crate) const DEEDS_MAX: usize = 8;
/// A deed that lasted longer is told `from` when it was, and not `at`.
const MOMENT: Duration = Duration::from_secs(60);

/// `10.0.0.9 scanned 254 hosts at 10:02, guessed passwords on 10.0.0.5 from 10:10; 10.0.0.5 sent 812 MB to 203.0.113.9 from 10:40 (UTC).`
///
/// `alerts` come in the order in which they began. What a host did to the same end and the same host is told once, by the
/// [strongest](is_stronger) alert.
pub fn tell(alerts: &[&Alert]) -> String {
    let deeds = deeds(alerts);
    let several_days = days(alerts) > 1;
    let mut text = String::new();
    let mut actor: Option<Option<Address>> = None;
    for (deed, begun) in deeds.iter().take(DEEDS_MAX) {
        if actor == Some(deed.source) {
            text.push_str(", ");
        } else {
            text.push_str(if text.is_empty() { "" } else { "; " });
            text.push_str(&deed.source.map_or_else(|| "somebody".to_owned(), |source| source.to_string()));
            text.push(' ');
        }
        actor = Some(deed.source);
        let preposition = if deed.last.since(*begun) < MOMENT { "at" } else { "from" };
        text.push_str(&format!("{} {preposition} {}", deed_of(deed), time_of_day(*begun, several_days)));
    }
    let more = deeds.len().saturating_sub(DEEDS_MAX);
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text + " (UTC)."
}

/// What `alerts`, in their order, come to: for each deed its strongest alert, and when it began.
pub(crate) fn deeds<'a>(alerts: &[&'a Alert]) -> Vec<(&'a Alert, Timestamp)> {
    let mut deeds: Vec<(&Alert, Timestamp)> = Vec::new();
    for &alert in alerts {
        let same = |other: &Alert| end(other) == end(alert) && other.source == alert.source && is_same_victim(other, alert);
        match deeds.iter_mut().find(|(other, _)| same(other)) {
            Some((strongest, _)) if is_stronger(alert, strongest) => *strongest = alert,
            Some(_) => {}
            None => deeds.push((alert, alert.first)),
        }
    }
    deeds
}

/// Of two that count the same, the one that counts more; else the one with the higher score.
fn is_stronger(alert: &Alert, than: &Alert) -> bool {
    if unit(alert) == unit(than) { alert.evidence.value > than.evidence.value } else { alert.score > than.score }
}

/// What it counts: `ports`, of whatever kind.
fn unit(alert: &Alert) -> &str {
    alert.evidence.unit.trim_start_matches("failed ")
}

/// What the deed is for: the first tactic of its first technique that is known.
fn end(alert: &Alert) -> Option<Tactic> {
    alert.attack.iter().find_map(|id| tactics_of(std::slice::from_ref(id)).first().copied())
}

/// One of them may not say on whom, as a scan of many hosts.
fn is_same_victim(a: &Alert, b: &Alert) -> bool {
    a.destination == b.destination || a.destination.is_none() || b.destination.is_none()
}

/// `scanned 254 hosts`, `guessed passwords on 10.0.0.5`.
fn deed_of(alert: &Alert) -> String {
    let on = |one: &str, many: &str| alert.destination.map_or_else(|| many.to_owned(), |host| format!("{one} {host}"));
    match end(alert) {
        Some(Tactic::Reconnaissance | Tactic::Discovery) => {
            let unit = unit(alert);
            match (unit, alert.destination) {
                ("ports" | "targets", Some(host)) => format!("scanned {} ports of {host}", alert.evidence.value),
                ("hosts" | "ports" | "targets", _) => format!("scanned {} {unit}", alert.evidence.value),
                _ => on("scanned", "scanned the network"),
            }
        }
        Some(Tactic::CredentialAccess) => on("guessed passwords on", "guessed passwords on several hosts"),
        Some(Tactic::InitialAccess) => on("came in at", "came in from outside"),
        Some(Tactic::LateralMovement) => on("moved on to", "moved on to other hosts"),
        Some(Tactic::CommandAndControl) => on("called home to", "called home"),
        Some(Tactic::Exfiltration) => {
            let sent = alert.evidence.octets.map_or_else(|| "data".to_owned(), size);
            on(&format!("sent {sent} to"), &format!("sent {sent} out"))
        }
        Some(Tactic::Impact) => on("flooded", "flooded others"),
        _ => on(&format!("raised \"{}\" on", alert.title), &format!("raised \"{}\"", alert.title)),
    }
}

/// `812 MB`: three digits, in units of a thousand.
fn size(octets: u64) -> String {
    let (mut value, mut unit) = (octets as f64, "B");
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1_000.0 {
            break;
        }
        (value, unit) = (value / 1_000.0, next);
    }
    if value < 10.0 && unit != "B" { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// `10:02`, or `2026-11-21 10:02`.
fn time_of_day(at: Timestamp, with_day: bool) -> String {
    let text = at.to_string();
    let clock = text.get(11..16).unwrap_or_default();
    if with_day { format!("{} {clock}", text.get(..10).unwrap_or_default()) } else { clock.to_owned() }
}

fn days(alerts: &[&Alert]) -> usize {
    alerts.iter().map(|alert| alert.first.floor(Duration::from_secs(86_400))).collect::<BTreeSet<_>>().len()
}
