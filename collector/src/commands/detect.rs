//! `spanwatch-collector detect`: recorded flows through the detectors. The same file gives the same bytes, today and next year.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use spanwatch_common::text;

use super::alerts::table;
use crate::alert::file::next_line;
use crate::alert::{Alert, AlertBook};
use crate::detect::{Detection, Finding, Mode, RuleFile};

/// What records from a file are said to be seen by.
const OBSERVER: &str = "replay";
/// Alerts held at once. A replay that raises more is told so.
const ALERTS_MAX: usize = 1_000_000;
/// Findings are merged after this many records.
const TURN: u64 = 4_096;

/// What `detect` is told.
#[derive(Clone, Debug, Args)]
pub struct DetectArgs {
    /// Records as JSON lines; - for standard input.
    pub file: PathBuf,
    /// Rule file, or a directory of them; the built-in rules when absent.
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
    let stdin = args.file.as_os_str() == "-";
    let name = if stdin { "standard input".to_owned() } else { args.file.display().to_string() };
    let mut input: Box<dyn BufRead> = if stdin {
        Box::new(BufReader::with_capacity(1 << 18, io::stdin()))
    } else {
        Box::new(BufReader::with_capacity(1 << 18, File::open(&args.file).with_context(|| format!("open {name}"))?))
    };
    let alerts = detect(&rules, &name, &mut input)?;
    let mut out = BufWriter::new(io::stdout().lock());
    match print(&alerts, args.format, &mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("write the alerts"),
        _ => Ok(()),
    }
}

/// The rules of `path`, or the built-in ones.
///
/// # Errors
/// The file cannot be read, or is wrong at a place that the error names.
pub fn rules(path: Option<&Path>) -> anyhow::Result<RuleFile> {
    let Some(path) = path else { return Ok(RuleFile::default()) };
    Ok(RuleFile::load(path)?)
}

fn detect(rules: &RuleFile, name: &str, input: &mut impl BufRead) -> anyhow::Result<Vec<Alert>> {
    let mut detection = Detection::new(rules, Mode::Replay);
    let mut book = AlertBook::new(ALERTS_MAX);
    let mut told = Vec::new();
    let mut ended: BTreeMap<String, Alert> = BTreeMap::new();
    let mut findings = Vec::new();
    let mut line = Vec::new();
    let mut number = 0;
    while next_line(input, &mut line).with_context(|| format!("read {name}"))? {
        number += 1;
        let Ok(text) = std::str::from_utf8(&line).map(str::trim) else {
            bail!("{name}:{number}: not text; make records of a capture with `spanwatch-sensor replay`");
        };
        if text.is_empty() {
            continue;
        }
        match text::read_json(text) {
            Ok(record) => detection.observe(OBSERVER, &record),
            Err(error) => bail!("{name}:{number}: {error}"),
        }
        if number % TURN == 0 {
            detection.drain(&mut findings);
            merge(&mut book, &mut findings, &mut told);
            ended.extend(told.drain(..).map(|alert| (alert.id.clone(), alert)));
        }
    }
    detection.finish(&mut findings);
    merge(&mut book, &mut findings, &mut told);
    // Only now, so that which alerts are closed depends on the records and not on their order.
    book.expire(detection.watermark(), detection.watermark(), &mut told);
    ended.extend(told.into_iter().chain(book.alerts().cloned()).map(|alert| (alert.id.clone(), alert)));
    report_losses(&detection, &book);
    let mut alerts: Vec<Alert> = ended.into_values().collect();
    alerts.sort_by(|a, b| (a.first, &a.rule, a.variant, &a.subject).cmp(&(b.first, &b.rule, b.variant, &b.subject)));
    Ok(alerts)
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

    fn output(lines: &[String]) -> String {
        let alerts = detect(&RuleFile::default(), "test", &mut lines.concat().as_bytes()).expect("records");
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
        let error = detect(&RuleFile::default(), "x.jsonl", &mut lines.concat().as_bytes()).expect_err("line 4");
        assert!(error.to_string().starts_with("x.jsonl:4: flowStartNanoseconds is missing"), "{error}");
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(output(&[]), "");
        assert_eq!(table(&[]), "no alerts\n");
    }
}
