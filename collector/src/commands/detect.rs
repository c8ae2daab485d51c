//! `spanwatch-collector detect`: recorded flows through the detectors, and what they found. The same file gives the same bytes, today
//! and next year.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::alerts::table;
use super::findings;
use super::replay::{Keep, Replay, replay};
use crate::config::Config;
use crate::detect::{RuleFile, Variant};
use crate::ingest::recorded::InputArgs;

/// What `detect` is told.
#[derive(Clone, Debug, Args)]
pub struct DetectArgs {
    /// What to read.
    #[command(flatten)]
    pub inputs: InputArgs,
    /// Rule file, or a directory of which every *.toml counts; the rules that come with the collector when absent.
    #[arg(long, value_name = "FILE|DIR")]
    pub rules: Option<PathBuf>,
    /// Switch this form of every rule on, and the other one off, whatever the rule files say. Without it they decide.
    #[arg(long, value_enum)]
    pub variant: Option<VariantChoice>,
    /// Only these rules, such as AZ-05,AZ-06.
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    pub rule: Vec<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = DetectFormat::Table)]
    pub format: DetectFormat,
}

/// Which forms of the rules to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VariantChoice {
    /// As the public KQL computes, to the row: for comparison with Azure.
    Exact,
    /// With the public rules' blind spots and false alarms mended.
    Fixed,
    /// Both, side by side.
    Both,
}

/// How to print what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DetectFormat {
    /// Alerts for people: what belongs together in one line.
    Table,
    /// Alerts as JSON, one per line, as in the alert file.
    Alerts,
    /// Findings as JSON, one line per rule, key and bin: rule, variant, the key (src, dst, dport, proto, vm, service, observer,
    /// facet, as far as the rule has them), binStart, value and threshold; for programs, and for comparison with Azure.
    Jsonl,
}

/// Reads, detects, prints. What was not looked at is told on standard error.
///
/// # Errors
/// The rules have a mistake (a `SettingsError`, for exit code 78), there is nothing to read, or a file could not be read to its end.
/// A closed output is no error.
pub fn run(args: &DetectArgs, config: &Config) -> anyhow::Result<()> {
    let mut rules = rules(args.rules.as_deref())?;
    choose(&mut rules, args)?;
    let keep = if args.format == DetectFormat::Jsonl { Keep::Findings } else { Keep::Alerts };
    let replay = replay(&args.inputs, &rules, (config.sites()?, config.roles()?), keep)?;
    eprint!("{}", replay.losses());
    let mut out = BufWriter::new(io::stdout().lock());
    match print(&replay, args.format, &mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error).context("write what was found"),
        _ => {}
    }
    match replay.account.files_failed {
        0 => Ok(()),
        failed => bail!("{failed} of the files could not be read to their end; what was found is in what could be read"),
    }
}

/// The rules of `path`, a file or a directory, or those that come with the collector.
///
/// # Errors
/// A file cannot be read, or is wrong at a place that the error names.
pub fn rules(path: Option<&Path>) -> anyhow::Result<RuleFile> {
    path.map_or_else(|| Ok(RuleFile::default()), |path| Ok(RuleFile::load(path)?))
}

/// Switches on and off what was typed.
fn choose(rules: &mut RuleFile, args: &DetectArgs) -> anyhow::Result<()> {
    match args.variant {
        None => {}
        Some(VariantChoice::Exact) => rules.set_variants(&[Variant::Exact]),
        Some(VariantChoice::Fixed) => rules.set_variants(&[Variant::Fixed]),
        Some(VariantChoice::Both) => rules.set_variants(&[Variant::Exact, Variant::Fixed]),
    }
    if args.rule.is_empty() {
        return Ok(());
    }
    rules.keep_only(&args.rule).map_err(anyhow::Error::msg)
}

fn print(replay: &Replay, format: DetectFormat, out: &mut impl Write) -> io::Result<()> {
    match format {
        DetectFormat::Table => out.write_all(table(&replay.alerts).as_bytes()),
        DetectFormat::Alerts => replay.alerts.iter().try_for_each(|alert| writeln!(out, "{}", serde_json::to_string(alert)?)),
        DetectFormat::Jsonl => findings::print(&replay.lines, out),
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

    /// What is printed for a file that holds `text`, and what is said on standard error.
    fn detect(text: &str, variant: Option<VariantChoice>, format: DetectFormat) -> (String, String) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("a file");
        let inputs = InputArgs { inputs: vec![file.path().display().to_string()], ta_parity: false };
        let args = DetectArgs { inputs, rules: None, variant, rule: vec!["az-01".to_owned()], format };
        let mut rules = rules(None).expect("our own");
        choose(&mut rules, &args).expect("AZ-01 exists");
        let replay = replay(&args.inputs, &rules, Default::default(), Keep::Both).expect("a file");
        let mut out = Vec::new();
        print(&replay, format, &mut out).expect("memory");
        (String::from_utf8(out).expect("text"), replay.losses())
    }

    fn output(lines: &[String]) -> String {
        let (said, losses) = detect(&lines.concat(), None, DetectFormat::Alerts);
        assert_eq!(losses, "");
        said
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
    fn findings_are_a_line_per_rule_key_and_bin_in_the_form_that_was_asked_for() {
        let text = lines().concat();
        let (fixed, _) = detect(&text, None, DetectFormat::Jsonl);
        // Of three contacts a second every seventh is the scanner's: 26 in a minute, or 25, each to another host.
        assert_eq!(fixed.lines().count(), 10, "{fixed}");
        let first = "{\"rule\":\"AZ-01\",\"variant\":\"fixed\",\"src\":\"10.0.0.9\",\"binStart\":\"2026-11-21T10:00:00Z\",\
                     \"value\":26,\"threshold\":6}";
        assert_eq!(fixed.lines().next(), Some(first));
        // The exact form counts the others as well: five sources in each of ten minutes, and the scanner.
        let (exact, _) = detect(&text, Some(VariantChoice::Exact), DetectFormat::Jsonl);
        assert_eq!(exact.lines().count(), 60, "{exact}");
        assert!(exact.lines().all(|line| line.contains("\"variant\":\"exact\"")));
        let (both, _) = detect(&text, Some(VariantChoice::Both), DetectFormat::Jsonl);
        assert_eq!(both, exact + &fixed);
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let mut lines = lines();
        lines.truncate(2);
        lines.push("\n{\"flowState\":\"Begin\"}\n".to_owned());
        let (_, losses) = detect(&lines.concat(), None, DetectFormat::Alerts);
        assert!(losses.contains(":4: flowStartNanoseconds is missing"), "{losses}");
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(output(&[]), "");
        assert_eq!(table(&[]), "no alerts\n");
    }
}
