//! The score as a table for people, and whether the goals are met.

use std::fmt::Write as _;

use crate::score::{Score, middle_and_worst, ratio};

/// So many false alerts, misses and alerts beside the point are shown.
const SHOWN_MAX: usize = 60;

fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn seconds(value: f64) -> String {
    match value {
        _ if value.abs() >= 7_200.0 => format!("{:.1} h", value / 3_600.0),
        _ if value.abs() >= 120.0 => format!("{:.1} min", value / 60.0),
        _ => format!("{value:.1} s"),
    }
}

fn waits(waits: &[f64]) -> [String; 2] {
    middle_and_worst(waits).map_or_else(|| ["-".to_owned(), "-".to_owned()], |(middle, worst)| [seconds(middle), seconds(worst)])
}

/// The whole table.
pub(crate) fn text(score: &Score) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<7} {:>6} {:>6} {:>7} {:>8} {:>9} {:>9} {:>7} {:>10} {:>10} {:>13}",
        "rule", "true", "false", "beside", "reports", "precision", "found", "recall", "median", "worst", "false/1000h·d"
    );
    for (rule, own) in &score.rules {
        let [middle, worst] = waits(&own.waits);
        let found = format!("{}/{}", own.found, own.expected);
        let _ = writeln!(
            out,
            "{rule:<7} {:>6} {:>6} {:>7} {:>8} {:>9} {found:>9} {:>7} {middle:>10} {worst:>10} {:>13.2}",
            own.true_alerts,
            own.false_alerts,
            own.beside,
            own.reports,
            share(ratio(own.true_alerts, own.true_alerts + own.false_alerts)),
            share(ratio(own.found, own.expected)),
            own.false_alerts as f64 * 1_000.0 / score.host_days
        );
    }
    for (family, name) in [("ND-", "ND"), ("AZ-", "AZ"), ("", "all")] {
        let (true_, false_) = score.alerts(family);
        let _ = writeln!(
            out,
            "{name:<7} {true_:>6} {false_:>6} {:>26} {:>53.2}",
            share(score.precision(family)),
            score.false_per_1000_host_days(family)
        );
    }
    if !score.groups.is_empty() {
        let _ = writeln!(out, "\n{:<20} {:>9} {:>7} {:>10} {:>10}", "attacks", "found", "recall", "median", "worst");
    }
    for (name, group) in &score.groups {
        let [middle, worst] = waits(&group.waits);
        let found = format!("{}/{}", group.found, group.attacks);
        let _ = writeln!(out, "{name:<20} {found:>9} {:>7} {middle:>10} {worst:>10}", share(ratio(group.found, group.attacks)));
    }
    for (rule, own) in score.rules.iter().filter(|(_, own)| !own.missed.is_empty()) {
        let _ = writeln!(out, "\n{rule} did not find: {}", own.missed.join("; "));
    }
    list(&mut out, "nobody found in time", &score.missed);
    list(&mut out, "false alerts", &score.false_alerts);
    list(&mut out, "beside the point", &score.beside);
    out
}

fn list(out: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title} ({}):", lines.len());
    for line in lines.iter().take(SHOWN_MAX) {
        let _ = writeln!(out, "  {line}");
    }
    if lines.len() > SHOWN_MAX {
        let _ = writeln!(out, "  and {} more; --format json has them all", lines.len() - SHOWN_MAX);
    }
}

/// Which of the goals are missed, a sentence each.
pub(crate) fn shortfalls(attacks: &Score, ordinary: Option<&Score>, area: Option<f64>) -> Vec<String> {
    let mut missed = Vec::new();
    for (group, goal) in [
        ("fast scan", 1.0),
        ("slow scan", 0.95),
        ("internet sweep", 1.0),
        ("flood", 1.0),
        ("brute force", 1.0),
        ("callback storm", 1.0),
        ("exfiltration", 1.0),
        ("beacon", 0.95),
        ("lateral movement", 1.0),
        ("change", 1.0),
    ] {
        if let Some(recall) = attacks.recall(group).filter(|&recall| recall < goal) {
            missed.push(format!("{group}: recall {recall:.3}, and {goal} is the goal"));
        }
    }
    if let Some(precision) = attacks.precision("").filter(|&precision| precision < 0.98) {
        missed.push(format!("precision {precision:.3}, and 0.98 is the goal"));
    }
    if let Some(area) = area.filter(|&area| area < 0.95) {
        missed.push(format!("ND-10: area under the curve {area:.3}, and 0.95 is the goal"));
    }
    if let Some(rate) = ordinary.map(|ordinary| ordinary.false_per_1000_host_days("")).filter(|&rate| rate > 1.0) {
        missed.push(format!("{rate:.2} false alerts per 1,000 hosts and day of ordinary traffic, and 1 is the goal"));
    }
    missed
}
