//! What an operator types.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use spanwatch_common::settings::SettingsError;
use tracing_subscriber::EnvFilter;

use crate::commands::alerts::AlertsArgs;
use crate::commands::detect::DetectArgs;
use crate::commands::export::ExportArgs;
use crate::commands::import::ImportArgs;
use crate::commands::outputs::OutputsArgs;
use crate::commands::pki::PkiArgs;
use crate::commands::query::QueryArgs;
use crate::commands::report::ReportArgs;
use crate::commands::rules::RulesArgs;
use crate::commands::{alerts, check, detect, doctor, export, import, outputs, pki, query, report, rules};
use crate::config::Config;

/// Exit code of a bad configuration (`EX_CONFIG` of sysexits.h).
const EXIT_CONFIG: u8 = 78;

/// Receives flow records from sensors, keeps them, and raises alerts about scans and odd volumes.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 `alerts explain` finds another number, 78 bad configuration.
#[derive(Debug, Parser)]
#[command(name = "spanwatch-collector", version)]
pub struct CommandLine {
    /// The settings file. Without it /etc/spanwatch/collector.toml, or the defaults if there is none.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Receive, store, detect, alert; until SIGINT or SIGTERM. SIGHUP reads the rules again.
    Run,
    /// Check the settings and the rule files, and exit with 0 or 78.
    Check,
    /// Check everything that a running collector needs, and say what to do about it.
    Doctor,
    /// Ask the stored records with SQL; also beside a running collector.
    ///
    /// The table `flows` shows addresses as text; `flows_raw` is as stored. "DESCRIBE flows" lists the columns, whose names are
    /// those of IPFIX. For example the ten largest conversations:
    ///
    /// "SELECT sourceIPAddress, destinationIPAddress, sum(octetDeltaCount) AS octets FROM flows GROUP BY 1, 2 ORDER BY octets DESC LIMIT 10"
    Query(QueryArgs),
    /// Ports, peers, volumes and deviations of hosts, and the rules that would let in only what was seen; from the stored records.
    ///
    /// Over sensors' and Azure's records alike. Of what two observers both saw, one counts, hour by hour: the one that has octets before
    /// one that has none, then the inbound side, then the one with most octets.
    Report(ReportArgs),
    /// Show alerts: the newest state of each, oldest first; explain one, mute some.
    Alerts(AlertsArgs),
    /// Where alerts go, and whether they arrive.
    Outputs(OutputsArgs),
    /// Run recorded flows through the detectors and print what they find.
    ///
    /// Reads Azure's flow logs and what `spanwatch-sensor replay` prints: spanwatch-sensor replay x.pcap | spanwatch-collector detect -
    ///
    /// The table shows alerts. For a line per rule, key and bin, as the public KQL rules answer:
    /// spanwatch-collector detect PT1H.json --variant exact --format jsonl
    Detect(DetectArgs),
    /// Put recorded flows into the store, beside everything else; also while the collector runs.
    ///
    /// Azure's flow logs, Traffic Analytics tables, or recordings of a sensor. What was imported before is not imported again, and
    /// an import that was interrupted goes on where it stopped: just repeat it.
    Import(ImportArgs),
    /// Write stored records as Azure's own files, so that KQL, workbooks and Traffic Analytics tooling run on them as they are.
    ///
    /// By default what sensors saw. Flow logs become a PT1H.json for each network interface and hour in Azure's layout of paths;
    /// nta becomes JSON lines of the table NTANetAnalytics. `import` takes all of them back.
    Export(ExportArgs),
    /// Show, explain and check the detection rules.
    Rules(RulesArgs),
    /// Make certificates: for this collector, and an identity for each sensor.
    Pki(PkiArgs),
}

/// Does what was typed, and says on stderr what went wrong.
pub fn run(command_line: CommandLine) -> ExitCode {
    log_to_stderr();
    match dispatch(command_line) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("spanwatch-collector: {}", sentence(&error));
            let is_settings = error.downcast_ref::<SettingsError>().is_some();
            if is_settings { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(command_line: CommandLine) -> anyhow::Result<ExitCode> {
    let path = command_line.config.as_deref();
    match command_line.command {
        Command::Detect(args) => detect::run(&args, &Config::load(path)?)?,
        Command::Import(args) => import::run(&args, &Config::load(path)?)?,
        Command::Export(args) => runtime()?.block_on(export::run(&args, &Config::load(path)?, crate::run::clock()))?,
        Command::Rules(args) => rules::run(&args, &Config::load(path)?)?,
        Command::Check => check::run(path)?,
        Command::Run => {
            let config = Config::load(path)?;
            let rules = config.rules()?;
            runtime()?.block_on(crate::run::run(config, rules))?;
        }
        Command::Doctor => return doctor::run(&Config::load(path)?),
        Command::Query(args) => runtime()?.block_on(query::run(&args, &Config::load(path)?))?,
        Command::Report(args) => runtime()?.block_on(report::run(&args, &Config::load(path)?, crate::run::clock()))?,
        Command::Alerts(args) => return alerts::run(&args, &Config::load(path)?),
        Command::Outputs(args) => runtime()?.block_on(outputs::run(&args, &Config::load(path)?))?,
        Command::Pki(args) => pki::run(&args, path)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The error and what caused it. Some errors quote their cause; nobody needs to read it twice.
fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !sentence.contains(&cause) {
            sentence.push_str(": ");
            sentence.push_str(&cause);
        }
    }
    sentence
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Logs go to stderr, where journald finds them. `RUST_LOG` chooses more or less of them.
fn log_to_stderr() {
    // What the libraries beneath the store call information is noise to an operator; the table format's logs as errors what it
    // also returns, and that is told in a sentence of our own, and warns when two writers meet, which is everyday business.
    let quiet = "warn,buoyant_kernel=off,deltalake_core=error,spanwatch_collector=info";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quiet));
    let stderr = std::io::stderr;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(stderr().is_terminal());
    // A second call in one process (tests) keeps the first.
    let _ = log.with_writer(stderr).try_init();
}
