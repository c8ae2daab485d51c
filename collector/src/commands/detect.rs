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

/// Run recorded flows through the detectors and print the alerts.
///
/// Reads what `spanwatch-sensor replay` prints: spanwatch-sensor replay x.pcap | spanwatch-collector detect -
#[derive(Clone, Debug, Args)]
pub struct DetectArgs {
    /// Records as JSON lines; - for standard input.
    pub file: PathBuf,
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
    let text = std::fs::read_to_string(path).with_context(|| format!("read the rule file {}", path.display()))?;
    Ok(RuleFile::parse(path, &text)?)
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
        let text = std::str::from_utf8(&line).map(str::trim).with_context(|| format!("{name}:{number}: not UTF-8 text"))?;
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
