//! `alerts explain`: an alert's records through its detector once more, and whether that finds the same number.
//!
//! The records are those from the alert's window on, and from before as far as its rule looks back, up to the last one that speaks for
//! it. First only those of its host are looked at. When that gives another number, all records are: some rules compare hosts.

use std::io;
use std::ops::Range;
use std::time::Duration;

use anyhow::Context;
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::screen::{self, INDENT, number};
use crate::alert::terminal::to_the_second;
use crate::alert::{Alert, Class, desk};
use crate::commands::layout::wrap;
use crate::config::Config;
use crate::detect::{Detection, Finding, Mode, RuleFile};
use crate::ingest::recorded::{self, InputArgs};
use crate::store;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The same number, a higher one of an alert that is open and will be told again, or there is nothing to replay.
    Same,
    /// Another number.
    Differs,
}

/// Findings are taken out of the detector after this many records.
const TURN: u64 = 4_096;

/// The screen of `alert`, which stands among `alerts`, and what a replay says: of `inputs`, or of the store when they name nothing.
pub(super) fn explain(
    alert: &Alert,
    alerts: &[Alert],
    inputs: &InputArgs,
    mut rules: RuleFile,
    config: &Config,
) -> anyhow::Result<(String, Answer)> {
    let mut text = screen::alert(alert, alerts);
    let nothing_to_replay = match alert.class {
        Class::Detection => None,
        Class::Incident => Some("An incident is made of alerts: explain those."),
        Class::Storm => Some("A storm counts alerts: explain those."),
        Class::Health => {
            Some("It rests on what the sensor counted at its port, not on flow records: there is nothing to replay.")
        }
    };
    if let Some(sentence) = nothing_to_replay {
        text.push('\n');
        text.push_str(&wrap("replay", INDENT, sentence));
        return Ok((text, Answer::Same));
    }
    let settings = desk::fingerprints(&rules);
    let is_changed = settings.get(&*alert.rule).is_some_and(|now| !alert.settings.is_empty() && *now != alert.settings);
    rules.set_variants(&[alert.variant]);
    rules.keep_only(std::slice::from_ref(&alert.rule)).map_err(anyhow::Error::msg)?;
    let history = rules.rules().find(|(entry, _)| entry.id == alert.rule).map_or(Duration::ZERO, |(_, rule)| rule.history());
    // Some rules keep whole seconds.
    let span = alert.window.start.minus(history)..alert.last.plus(Duration::from_secs(1));
    let hosts: Vec<Address> = alert.source.or(alert.destination).into_iter().collect();

    let mut replay = Replay::new(alert, &rules, config, span.clone(), hosts)?;
    replay.read(inputs, config)?;
    if !replay.is_same() && !replay.hosts.is_empty() {
        let mut whole = Replay::new(alert, &rules, config, span, Vec::new())?;
        whole.read(inputs, config)?;
        if whole.is_same() || replay.best.is_none() {
            replay = whole;
        } else {
            replay.earliest = whole.earliest;
        }
    }
    text.push('\n');
    text.push_str(&wrap("replay", INDENT, &replay.verdict()));
    if replay.is_same() || replay.has_grown() {
        return Ok((text, Answer::Same));
    }
    for reason in replay.reasons(is_changed, history) {
        text.push_str(&wrap("", INDENT, &reason));
    }
    Ok((text, Answer::Differs))
}

/// The records of an alert, once more through its detector.
struct Replay<'a> {
    alert: &'a Alert,
    detection: Detection,
    span: Range<Timestamp>,
    /// Only records of these; all when there is none.
    hosts: Vec<Address>,
    records: u64,
    /// Time of the first record that was read; none as long as there is none.
    earliest: Option<Timestamp>,
    /// What comes nearest to the alert.
    best: Option<Finding>,
}

impl<'a> Replay<'a> {
    fn new(
        alert: &'a Alert,
        rules: &RuleFile,
        config: &Config,
        span: Range<Timestamp>,
        hosts: Vec<Address>,
    ) -> anyhow::Result<Self> {
        let detection = Detection::new(rules, Mode::Replay).with_sites(config.sites()?).with_roles(config.roles()?);
        Ok(Self { alert, detection, span, hosts, records: 0, earliest: None, best: None })
    }

    /// Reads the recordings that `inputs` name, or the store.
    fn read(&mut self, inputs: &InputArgs, config: &Config) -> anyhow::Result<()> {
        if inputs.inputs.is_empty() {
            self.read_store(config)?;
        } else {
            let account = recorded::read_all(inputs, &mut |observer, record| self.take(observer, &record))?;
            eprint!("{}", account.losses());
        }
        let mut findings = Vec::new();
        self.detection.finish(&mut findings);
        self.consider(findings);
        Ok(())
    }

    fn read_store(&mut self, config: &Config) -> anyhow::Result<()> {
        let of = |host: &Address| format!("sourceIPAddress = ip_bytes('{host}') OR destinationIPAddress = ip_bytes('{host}')");
        let filter = self.hosts.iter().map(of).collect::<Vec<_>>().join(" OR ");
        let filter = Some(&*filter).filter(|filter| !filter.is_empty());
        let span = self.span.clone();
        let mut take = |sensor: &str, record: FlowRecord| -> io::Result<()> {
            self.take(sensor, &record);
            Ok(())
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        match runtime.block_on(store::records(&config.store, span, filter, &mut take)) {
            Ok(()) | Err(store::StoreError::Empty(_)) => Ok(()),
            Err(error) => Err(error).context("read the records of the alert from the store"),
        }
    }

    fn take(&mut self, observer: &str, record: &FlowRecord) {
        let is_its = self.hosts.is_empty() || self.hosts.iter().any(|host| [record.source, record.destination].contains(host));
        let at = record.first();
        if !is_its || !self.span.contains(&at) {
            return;
        }
        self.records += 1;
        self.earliest = Some(self.earliest.map_or(at, |earliest| earliest.min(at)));
        self.detection.observe(observer, record);
        if self.records.is_multiple_of(TURN) {
            let mut findings = Vec::new();
            self.detection.drain(&mut findings);
            self.consider(findings);
        }
    }

    /// Keeps what comes nearest: the same window before others, the same number before others, then the largest.
    fn consider(&mut self, findings: Vec<Finding>) {
        let rank = |finding: &Finding| {
            (finding.window.start == self.alert.window.start, is_same(finding.evidence.value, self.alert), finding.evidence.value)
        };
        for finding in findings.into_iter().filter(|finding| finding.subject.to_string() == self.alert.subject) {
            if self.best.as_ref().is_none_or(|best| rank(&finding) > rank(best)) {
                self.best = Some(finding);
            }
        }
    }

    fn is_same(&self) -> bool {
        self.best.as_ref().is_some_and(|best| is_same(best.evidence.value, self.alert))
    }

    /// Whether it goes on: it has come to more since it was last told, and what it has come to is still to be told.
    fn has_grown(&self) -> bool {
        let more =
            |best: &Finding| best.window.start >= self.alert.window.start && best.evidence.value > self.alert.evidence.value;
        self.alert.is_open() && self.best.as_ref().is_some_and(more)
    }

    fn verdict(&self) -> String {
        let evidence = &self.alert.evidence;
        let of = if self.hosts.is_empty() { "records" } else { "records of its host" };
        let from = format!("{} {of} from {} to {}", self.records, to_the_second(self.span.start), to_the_second(self.span.end));
        match &self.best {
            Some(best) if self.is_same() => {
                format!("{from} give the same number: {} {}.", number(best.evidence.value), evidence.unit)
            }
            Some(best) if self.has_grown() => format!(
                "{from} give {} {} by now: it is open, and stood at {} when it was last told.",
                number(best.evidence.value),
                best.evidence.unit,
                number(evidence.value)
            ),
            Some(best) => format!(
                "{from} give {} {}; the alert says {}.",
                number(best.evidence.value),
                best.evidence.unit,
                number(evidence.value)
            ),
            None => format!("{from} give nothing; the alert says {} {}.", number(evidence.value), evidence.unit),
        }
    }

    /// Why the number may be another.
    fn reasons(&self, is_changed: bool, history: Duration) -> Vec<String> {
        let mut reasons = Vec::new();
        if is_changed {
            reasons.push(format!("The settings of {} have changed since; `rules explain {0}` shows them.", self.alert.rule));
        }
        let threshold = self.best.as_ref().map(|best| best.evidence.threshold);
        if let Some(threshold) = threshold.filter(|&threshold| threshold != self.alert.evidence.threshold) {
            reasons.push(format!(
                "The threshold was {}, and is {} now.",
                number(self.alert.evidence.threshold),
                number(threshold)
            ));
        }
        match self.earliest {
            None => reasons.push(
                "There is no record of that time: retention has dropped them (store.retention_days), or they are elsewhere."
                    .to_owned(),
            ),
            Some(earliest)
                if earliest > self.alert.first || earliest.since(self.span.start) > history / 2 + Duration::from_secs(3_600) =>
            {
                reasons.push(format!(
                    "The oldest record is of {}, and the rule looks back to {}: older ones were dropped by retention, or never came.",
                    to_the_second(earliest),
                    to_the_second(self.span.start)
                ));
            }
            Some(_) => {}
        }
        if reasons.is_empty() {
            reasons.push(
                "Records may have come after the alert, sites or roles may have changed, or the detector knew more of the time before."
                    .to_owned(),
            );
        }
        reasons
    }
}

/// Whether `value` is the alert's, but for what adding up in another order makes of a fraction.
fn is_same(value: f64, alert: &Alert) -> bool {
    let expected = alert.evidence.value;
    (value - expected).abs() <= 1e-9 * expected.abs().max(1.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spanwatch_common::flow::{FlowState, protocol, tcp};
    use spanwatch_common::text;
    use spanwatch_common::wire::Batch;

    use super::*;
    use crate::alert::AlertState;
    use crate::commands::replay::{self, Keep};
    use crate::store::Store;

    /// 2026-11-21T10:00:00Z.
    const START: i64 = 1_795_255_200;

    /// 10.0.0.9 knocks at 26 hosts within a minute, beside somebody who does nothing special.
    fn records() -> Vec<FlowRecord> {
        let record = |source: [u8; 4], destination: [u8; 4], second: u32| FlowRecord {
            state: FlowState::Begin,
            source: Address::from_v4(source),
            destination: Address::from_v4(destination),
            destination_port: 445,
            protocol: protocol::TCP,
            start: [Timestamp::from_secs(START + i64::from(second)), Timestamp::NONE],
            tcp_flags: [tcp::SYN, 0],
            initial_tcp_flags: [tcp::SYN, 0],
            ..FlowRecord::default()
        };
        let scan = (0..26).map(|n: u8| record([10, 0, 0, 9], [10, 0, 1, n], u32::from(n)));
        scan.chain([record([10, 0, 0, 8], [10, 0, 1, 1], 30)]).collect()
    }

    /// A recording of `records`, the alerts that `detect` makes of it, and where it is.
    fn recorded(directory: &std::path::Path) -> (Vec<Alert>, InputArgs) {
        let mut lines = String::new();
        records().iter().for_each(|record| text::write_json(record, &mut lines));
        let path = directory.join("flows.jsonl");
        std::fs::write(&path, lines).unwrap();
        let inputs = InputArgs { inputs: vec![path.display().to_string()], ta_parity: false };
        let mut rules = RuleFile::default();
        rules.keep_only(&["AZ-01".to_owned()]).unwrap();
        let replay =
            replay::replay(&inputs, &rules, (crate::detect::Sites::default(), crate::detect::Roles::default()), Keep::Alerts)
                .unwrap();
        (replay.alerts, inputs)
    }

    fn rules(text: &str) -> RuleFile {
        RuleFile::parse(std::path::Path::new("my.toml"), text).unwrap()
    }

    #[test]
    fn a_recording_gives_the_number_of_its_alert_again_and_another_says_why_not() {
        let directory = tempfile::tempdir().unwrap();
        let (alerts, inputs) = recorded(directory.path());
        let config = Config::default();
        let explain = |alert: &Alert, rules: RuleFile| explain(alert, &alerts, &inputs, rules, &config).unwrap();
        let (text, answer) = explain(&alerts[0], RuleFile::default());
        assert_eq!(answer, Answer::Same);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let verdict =
            "replay 26 records of its host from 2026-11-21 09:58:30 to 2026-11-21 10:00:26 give the same number: 26 hosts.";
        assert!(words.ends_with(verdict), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");

        let of = |value: f64, state| Alert {
            evidence: crate::detect::finding::Evidence { value, ..alerts[0].evidence.clone() },
            state,
            ..alerts[0].clone()
        };
        let (text, answer) = explain(&of(20.0, AlertState::Updated), RuleFile::default());
        assert_eq!(answer, Answer::Same);
        assert!(
            text.split_whitespace().collect::<Vec<_>>().join(" ").contains("give 26 hosts by now: it is open, and stood at 20")
        );
        assert_eq!(explain(&of(20.0, AlertState::Closed), RuleFile::default()).1, Answer::Differs);
        let (text, answer) = explain(&of(27.0, AlertState::Closed), rules("[AZ-01]\nthreshold_hosts = 9\n"));
        assert_eq!(answer, Answer::Differs);
        for said in [
            "give 26 hosts; the alert says 27.",
            "The settings of AZ-01 have changed since;",
            "The threshold was 6, and is 9 now.",
        ] {
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains(said), "{words}");
        }
    }

    #[test]
    fn the_store_gives_the_number_again_as_long_as_it_has_the_records() {
        let directory = tempfile::tempdir().unwrap();
        let (alerts, _) = recorded(directory.path());
        let mut config = Config::default();
        config.store.directory = directory.path().join("flows");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = |records: Vec<FlowRecord>| {
            runtime.block_on(async {
                let mut store = Store::open(config.store.clone()).await.unwrap();
                let batch = Batch { sensor: "plant1".to_owned(), boot: 1, sequence: 1, records, ..Batch::default() };
                store.push(Arc::new(batch)).await.unwrap();
                store.commit().await.unwrap();
            });
        };
        let none = InputArgs { inputs: Vec::new(), ta_parity: false };
        let explain = |config: &Config| explain(&alerts[0], &alerts, &none, RuleFile::default(), config).unwrap();
        let (text, answer) = explain(&config);
        assert_eq!(answer, Answer::Differs);
        assert!(text.contains("There is no record of that time: retention has dropped them"), "{text}");
        store(records());
        assert_eq!(explain(&config).1, Answer::Same);
        // The first half is gone.
        std::fs::remove_dir_all(&config.store.directory).unwrap();
        store(records().split_off(13));
        let (text, answer) = explain(&config);
        assert_eq!(answer, Answer::Differs);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("give 13 hosts; the alert says 26."), "{words}");
        assert!(words.contains("The oldest record is of 2026-11-21 10:00:13"), "{words}");
    }
}
