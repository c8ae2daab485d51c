//! Recorded flows through the detectors. The same records give the same answer, in any order within the lateness.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::findings::Line;
use crate::alert::incident::Incidents;
use crate::alert::{Alert, AlertBook, Class, desk};
use crate::detect::{Detection, Finding, Mode, Roles, RuleFile, Sites};
use crate::ingest::recorded::{self, Account, InputArgs};

/// Alerts held at once. A replay that raises more is told so.
const ALERTS_MAX: usize = 1_000_000;
/// Findings held at once: some three gigabytes. A replay that finds more is told so.
const FINDINGS_MAX: usize = 10_000_000;
/// Findings are taken out of the detectors after this many records.
const TURN: u64 = 4_096;

/// What to keep of what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Findings, merged into alerts.
    Alerts,
    /// Every finding, as a line.
    Findings,
    /// Both.
    Both,
}

/// What came of a replay.
pub(super) struct Replay {
    /// The detectors at their end.
    pub(super) detection: Detection,
    /// The last state of each alert, by time, rule and subject.
    pub(super) alerts: Vec<Alert>,
    /// Every finding, by rule, form, bin and key.
    pub(super) lines: Vec<Line>,
    /// What was read.
    pub(super) account: Account,
    alerts_forgotten: u64,
    lines_refused: u64,
}

/// Runs everything that `inputs` name through the detectors that `rules` switch on.
///
/// # Errors
/// What was typed names nothing that could be read at all.
pub(super) fn replay(inputs: &InputArgs, rules: &RuleFile, (sites, roles): (Sites, Roles), keep: Keep) -> anyhow::Result<Replay> {
    let mut detection = Detection::new(rules, Mode::Replay).with_sites(sites).with_roles(roles);
    let mut finds =
        Finds { keep, book: AlertBook::new(Class::Detection, ALERTS_MAX), told: BTreeMap::new(), lines: Vec::new(), refused: 0 };
    let mut findings = Vec::new();
    let mut number = 0_u64;
    let account = recorded::read_all(inputs, &mut |observer, record| {
        detection.observe(observer, &record);
        number += 1;
        if number.is_multiple_of(TURN) {
            detection.drain(&mut findings);
            finds.take(&mut findings);
        }
    })?;
    detection.finish(&mut findings);
    finds.take(&mut findings);
    let mut replay = finds.finish(detection, account);
    let settings = desk::fingerprints(rules);
    for alert in &mut replay.alerts {
        alert.settings = settings.get(&*alert.rule).cloned().unwrap_or_default();
    }
    add_incidents(&mut replay);
    Ok(replay)
}

/// Adds the incidents that the alerts make, and names them in those. Alerts come in the order in which they began, whatever the order of
/// the records was.
fn add_incidents(replay: &mut Replay) {
    let mut incidents = Incidents::default();
    let mut told = Vec::new();
    for alert in &replay.alerts {
        incidents.expire(alert.first, alert.first, &mut told);
        incidents.see(alert, alert.last, &mut told);
    }
    told.extend(incidents.open().cloned());
    let last: BTreeMap<String, Alert> = told.into_iter().map(|line| (line.id.clone(), line)).collect();
    let whole = last.into_values().filter(|incident| incident.incident.is_none());
    for incident in whole {
        let members = replay.alerts.iter_mut().filter(|alert| incident.members.contains(&alert.id));
        members.for_each(|alert| alert.incident = Some(incident.id.clone()));
        replay.alerts.push(incident);
    }
    replay.alerts.sort_by(order);
}

fn order(a: &Alert, b: &Alert) -> std::cmp::Ordering {
    (a.first, &a.rule, a.variant, &a.subject).cmp(&(b.first, &b.rule, b.variant, &b.subject))
}

/// What was found so far.
struct Finds {
    keep: Keep,
    book: AlertBook,
    told: BTreeMap<String, Alert>,
    lines: Vec<Line>,
    refused: u64,
}

impl Finds {
    fn take(&mut self, findings: &mut Vec<Finding>) {
        let mut told = Vec::new();
        for finding in findings.drain(..) {
            if self.keep != Keep::Findings {
                // In a replay an alert is detected when its window ends: the records know no other clock.
                self.book.take(&finding, finding.window.end, &mut told);
            }
            if self.keep != Keep::Alerts {
                if self.lines.len() < FINDINGS_MAX {
                    self.lines.push(Line::of(&finding));
                } else {
                    self.refused += 1;
                }
            }
        }
        self.told.extend(told.into_iter().map(|alert| (alert.id.clone(), alert)));
    }

    fn finish(mut self, detection: Detection, account: Account) -> Replay {
        // Only now, so that which alerts are closed depends on the records and not on their order.
        let mut told = Vec::new();
        self.book.expire(detection.watermark(), detection.watermark(), &mut told);
        self.told.extend(told.into_iter().chain(self.book.alerts().cloned()).map(|alert| (alert.id.clone(), alert)));
        let mut alerts: Vec<Alert> = self.told.into_values().collect();
        alerts.sort_by(order);
        self.lines.sort_by(Line::order);
        Replay {
            detection,
            alerts,
            lines: self.lines,
            account,
            alerts_forgotten: self.book.forgotten(),
            lines_refused: self.refused,
        }
    }
}

impl Replay {
    /// What was not looked at, and why: one line each, empty when nothing was.
    pub(super) fn losses(&self) -> String {
        let mut text = self.account.losses();
        let counters = self.detection.counters();
        let mut line = |count: u64, sentence: &str| {
            if count > 0 {
                let _ = writeln!(text, "{count} {sentence}"); // writing to a String cannot fail
            }
        };
        line(counters.unplaced, "records without an address or a time (layer 2) were not looked at");
        for state in self.detection.states() {
            let name = format!("{} {}", state.rule, state.variant);
            line(state.late, &format!("records came too late for {name}: raise its lateness_secs"));
            line(state.evicted, &format!("keys of {name} were let go to make room: raise its keys_max"));
            line(state.refused, &format!("records had no room in {name}: raise its keys_max"));
        }
        line(self.alerts_forgotten, &format!("alerts were forgotten, because there were more than {ALERTS_MAX}"));
        line(self.lines_refused, &format!("findings were left out, because there were more than {FINDINGS_MAX}"));
        text
    }
}
