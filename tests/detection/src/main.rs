//! `detection`: traffic with truth, and how well the rules do on it.
//!
//! `traffic` conversations in virtual time and a sensor's records of them · `ordinary` two weeks of a place where nothing is wrong ·
//! `attacks` what intruders do there · `truth` what really happened · `run` through detectors and alerts · `score` truth and alerts to
//! a table · `report` the table as text · `memory` what the detectors hold under stress.

mod attacks;
mod memory;
mod ordinary;
mod report;
mod run;
mod score;
#[cfg(test)]
mod tests;
mod traffic;
mod truth;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use spanwatch_alert::Alert;
use spanwatch_detect::RuleFile;

use attacks::Plan;
use ordinary::Place;
use run::Outcome;
use score::Score;
use traffic::Traffic;
use truth::Attack;

/// Traffic with truth, and how well the shipped rules do on it.
#[derive(Parser)]
#[command(name = "detection", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Two weeks of ordinary traffic, and the same with attacks, in virtual time: the confusion table.
    Run(Run),
    /// Truth and alerts from elsewhere, such as a lab with real tools: the confusion table.
    Score(ScoreFiles),
    /// Memory of detectors with 200,000 quiet sources and 2,000 scanners, and in a flood from 10,000,000 forged sources.
    Memory {
        /// Rules whose ids begin so; empty for all.
        #[arg(long, default_value = "ND-")]
        rules: String,
    },
}

#[derive(clap::Args)]
struct ScoreFiles {
    /// A JSON array of attacks: name, group, expected, fair, by, to, start, end, due, within_secs.
    truth: PathBuf,
    /// The alert file of a collector.
    alerts: PathBuf,
    /// Hosts times days, for the rate of false alerts.
    #[arg(long, default_value_t = 1.0)]
    host_days: f64,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Fail when a goal is missed.
    #[arg(long)]
    check: bool,
}

#[derive(clap::Args)]
struct Run {
    /// Hosts inside.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(60..=330))]
    hosts: u64,
    /// Days, of which the first nine are quiet in both runs.
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u32).range(10..=60))]
    days: u32,
    /// Another world.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rules whose ids begin so; empty for all.
    #[arg(long, default_value = "")]
    rules: String,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Fail when a goal is missed.
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Attacks begin after a week to learn from, and a day.
const FIRST_DAY: u32 = 9;

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run(run) => score_all(&run),
        Command::Score(files) => score_files(&files),
        Command::Memory { rules } => memory::measure(&rules).map(|()| ExitCode::SUCCESS),
    }
}

/// What happens in `place`, with attacks if there is a plan; and what of it is an attack.
fn world(place: &Place, plan: Option<Plan>) -> (Traffic, Vec<Attack>) {
    let mut traffic = Traffic::until(place.at(place.days, 0, 0));
    let mut truth = ordinary::enter(place, &mut traffic);
    if let Some(plan) = plan {
        truth.extend(attacks::enter(place, plan, &mut traffic));
    }
    (traffic, truth)
}

fn one(rules: &RuleFile, place: &Place, plan: Option<Plan>) -> anyhow::Result<(Vec<Attack>, Outcome)> {
    let (traffic, truth) = world(place, plan);
    let outcome = run::stream(rules, &truth, traffic)?;
    Ok((truth, outcome))
}

fn score_all(settings: &Run) -> anyhow::Result<ExitCode> {
    let place = Place { hosts: settings.hosts, days: settings.days, seed: settings.seed };
    let rules = run::shipped(&settings.rules)?;
    let quiet = thread::spawn({
        let rules = rules.clone();
        move || one(&rules, &place, None)
    });
    let (truth, outcome) = one(&rules, &place, Some(Plan { first_day: FIRST_DAY, patient: true }))?;
    let (innocent_truth, innocent) = quiet.join().map_err(|_| anyhow::anyhow!("the ordinary weeks failed"))??;
    let host_days = (place.hosts * u64::from(place.days)) as f64;
    let attacks = Score::of(&truth, &outcome.alerts, host_days);
    let ordinary = Score::of(&innocent_truth, &innocent.alerts, host_days);
    let area = |rule| score::area_under_curve(rule, &truth, &outcome.alerts, &outcome.callers);
    let (area, baseline) = (area("ND-10"), area("AZ-11"));
    let shortfalls = report::shortfalls(&attacks, Some(&ordinary), area);
    if settings.format == Format::Json {
        let whole = serde_json::json!({
            "hosts": place.hosts, "days": place.days, "seed": place.seed,
            "records": { "ordinary": innocent.records, "attacks": outcome.records },
            "ordinary": ordinary, "attacks": attacks,
            "areaUnderCurve": { "ND-10": area, "AZ-11": baseline }, "shortfalls": shortfalls,
        });
        println!("{whole:#}");
    } else {
        println!("Ordinary traffic: {} hosts, {} days, {} records\n", place.hosts, place.days, innocent.records);
        println!("{}", report::text(&ordinary));
        println!("The same with attacks: {} records\n", outcome.records);
        println!("{}", report::text(&attacks));
        let shown = |area: Option<f64>| area.map_or_else(|| "-".to_owned(), |area| format!("{area:.3}"));
        println!(
            "Beacons among {} that call out: area under the curve ND-10 {}, AZ-11 {}",
            outcome.callers.len(),
            shown(area),
            shown(baseline)
        );
        println!("\nheld at the end, keys / octets / let go or refused:");
        for (rule, keys, octets, gone) in &outcome.states {
            println!("  {rule:<7} {keys:>9} {octets:>12} {gone:>9}");
        }
        for shortfall in &shortfalls {
            println!("goal missed: {shortfall}");
        }
    }
    Ok(if settings.check && !shortfalls.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn score_files(files: &ScoreFiles) -> anyhow::Result<ExitCode> {
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let truth: Vec<Attack> =
        serde_json::from_str(&read(&files.truth)?).with_context(|| format!("{} is no list of attacks", files.truth.display()))?;
    // The last line of an alert is the alert as it stands.
    let mut alerts = BTreeMap::new();
    for (number, line) in (1..).zip(read(&files.alerts)?.lines()) {
        let alert: Alert =
            serde_json::from_str(line).with_context(|| format!("line {number} of {} is no alert", files.alerts.display()))?;
        alerts.insert(alert.id.clone(), alert);
    }
    let alerts: Vec<Alert> = alerts.into_values().collect();
    let score = Score::of(&truth, &alerts, files.host_days);
    let shortfalls = report::shortfalls(&score, None, None);
    if files.format == Format::Json {
        println!("{:#}", serde_json::json!({ "score": score, "shortfalls": shortfalls }));
    } else {
        println!("{}", report::text(&score));
        shortfalls.iter().for_each(|shortfall| println!("goal missed: {shortfall}"));
    }
    Ok(if files.check && !shortfalls.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
