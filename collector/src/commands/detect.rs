//! `spanwatch-collector detect`: recorded flows through the detectors. The same file gives the same bytes, today and next year.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::alerts::table;
use crate::alert::{Alert, AlertBook};
use crate::config::read_text;
use crate::detect::{Detection, Finding, Mode, RuleFile};
use crate::ingest::recorded::{self, Account, InputArgs};

/// Alerts held at once. A replay that raises more is told so.
const ALERTS_MAX: usize = 1_000_000;
/// Findings are merged after this many records.
const TURN: u64 = 4_096;

/// What `detect` is told.
#[derive(Clone, Debug, Args)]
pub struct DetectArgs {
    /// What to read.
    #[command(flatten)]
    pub inputs: InputArgs,
    /// Rule file; the built-in rules when absent.
    #[arg(long)]
    pub rules: Option<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = DetectFormat::Jsonl)]
    pub format: DetectFormat,
}

/// How to print alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DetectFormat {
    /// One JSON object per line.
    Jsonl,
    /// For people.
    Table,
}

/// Reads, detects, prints.
///
/// # Errors
/// The rule file (a `SettingsError`, for exit code 78) or the records cannot be read, or a line is no record. A closed output is no error.
pub fn run(args: &DetectArgs) -> anyhow::Result<()> {
    let rules = rules(args.rules.as_deref())?;
    let (alerts, account) = detect(&rules, &args.inputs)?;
    eprint!("{}", account.losses());
    let mut out = BufWriter::new(io::stdout().lock());
    match print(&alerts, args.format, &mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error).context("write the alerts"),
        _ => {}
    }
    match account.files_failed {
        0 => Ok(()),
        failed => bail!("{failed} of the files could not be read to their end; what was found is in what could be read"),
    }
}

/// The rules of `path`, or the built-in ones.
///
/// # Errors
/// The file cannot be read, or is wrong at a place that the error names.
pub fn rules(path: Option<&Path>) -> anyhow::Result<RuleFile> {
    let Some(path) = path else { return Ok(RuleFile::default()) };
    Ok(RuleFile::parse(path, &read_text(path)?)?)
}

fn detect(rules: &RuleFile, inputs: &InputArgs) -> anyhow::Result<(Vec<Alert>, Account)> {
    let mut detection = Detection::new(rules, Mode::Replay);
    let mut book = AlertBook::new(ALERTS_MAX);
    let mut told = Vec::new();
    let mut ended: BTreeMap<String, Alert> = BTreeMap::new();
    let mut findings = Vec::new();
    let mut number = 0;
    let account = recorded::read_all(inputs, &mut |observer, record| {
        detection.observe(observer, &record);
        number += 1;
        if number % TURN == 0 {
            detection.drain(&mut findings);
            merge(&mut book, &mut findings, &mut told);
            ended.extend(told.drain(..).map(|alert| (alert.id.clone(), alert)));
        }
    })?;
    detection.finish(&mut findings);
    merge(&mut book, &mut findings, &mut told);
    // Only now, so that which alerts are closed depends on the records and not on their order.
    book.expire(detection.watermark(), detection.watermark(), &mut told);
    ended.extend(told.into_iter().chain(book.alerts().cloned()).map(|alert| (alert.id.clone(), alert)));
    report_losses(&detection, &book);
    let mut alerts: Vec<Alert> = ended.into_values().collect();
    alerts.sort_by(|a, b| (a.first, &a.rule, a.variant, &a.subject).cmp(&(b.first, &b.rule, b.variant, &b.subject)));
    Ok((alerts, account))
}

/// In a replay an alert is detected when its window ends: the file knows no other clock.
fn merge(book: &mut AlertBook, findings: &mut Vec<Finding>, told: &mut Vec<Alert>) {
    for finding in findings.drain(..) {
        book.take(&finding, finding.window.end, told);
    }
}

/// What was not looked at, on standard error.
fn report_losses(detection: &Detection, book: &AlertBook) {
    for state in detection.states().filter(|state| state.late + state.evicted + state.refused > 0) {
        eprintln!(
            "{} {}: {} records came too late (raise lateness_secs), {} keys were let go and {} records refused (raise keys_max)",
            state.rule, state.variant, state.late, state.evicted, state.refused
        );
    }
    if book.forgotten() > 0 {
        eprintln!("more than {ALERTS_MAX} alerts: {} were forgotten before the end", book.forgotten());
    }
}

fn print(alerts: &[Alert], format: DetectFormat, out: &mut impl Write) -> io::Result<()> {
    match format {
        DetectFormat::Table => out.write_all(table(alerts).as_bytes()),
        DetectFormat::Jsonl => alerts.iter().try_for_each(|alert| writeln!(out, "{}", serde_json::to_string(alert)?)),
    }
}

#[cfg(test)]
mod tests {
    use spanwatch_common::flow::{FlowRecord, FlowState, protocol, tcp};
    use spanwatch_common::net::Address;
    use spanwatch_common::text;
    use spanwatch_common::time::Timestamp;

    use super::*;

    /// A scanner among ordinary hosts, a contact each third of a second for ten minutes, one per line.
    fn lines() -> Vec<String> {
        let record = |i: u32| {
            let at = Timestamp::from_nanos(1_795_255_200_000_000_000 + i64::from(i) * 333_333_333);
            let scanner = i.is_multiple_of(7);
            FlowRecord {
                state: FlowState::Begin,
                source: Address::from_v4([10, 0, 0, if scanner { 9 } else { (i % 5) as u8 }]),
                destination: Address::from_v4([10, 0, 1, (i / 7 % 250) as u8]),
                destination_port: 445,
                protocol: protocol::TCP,
                start: [at, if scanner { Timestamp::NONE } else { at }],
                tcp_flags: if scanner { [tcp::SYN, 0] } else { [tcp::SYN | tcp::ACK | tcp::PSH; 2] },
                initial_tcp_flags: [tcp::SYN, 0],
                ..FlowRecord::default()
            }
        };
        (0..1_800)
            .map(|i| {
                let mut line = String::new();
                text::write_json(&record(i), &mut line);
                line
            })
            .collect()
    }

    fn detect_in(text: &str) -> (Vec<Alert>, Account) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("a file");
        let inputs = InputArgs { inputs: vec![file.path().display().to_string()], ta_parity: false };
        detect(&RuleFile::default(), &inputs).expect("a file")
    }

    fn output(lines: &[String]) -> String {
        let (alerts, account) = detect_in(&lines.concat());
        assert_eq!(account.losses(), "");
        let mut out = Vec::new();
        print(&alerts, DetectFormat::Jsonl, &mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_replay_says_the_same_twice_and_in_any_order_within_the_lateness() {
        let ordered = lines();
        let said = output(&ordered);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("\"source\":\"10.0.0.9\"") && said.contains("\"windows\":10"), "{said}");
        assert_eq!(output(&ordered), said);
        // Blocks of 240 contacts (80 s) turned around.
        let shuffled: Vec<String> = ordered.chunks(240).flat_map(|block| block.iter().rev().cloned()).collect();
        assert_eq!(output(&shuffled), said);
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let mut lines = lines();
        lines.truncate(2);
        lines.push("\n{\"flowState\":\"Begin\"}\n".to_owned());
        let (_, account) = detect_in(&lines.concat());
        assert_eq!((account.files_failed, account.rows), (1, 2));
        assert!(account.failures[0].contains(":4: flowStartNanoseconds is missing"), "{:?}", account.failures);
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(output(&[]), "");
        assert_eq!(table(&[]), "no alerts\n");
    }
}
