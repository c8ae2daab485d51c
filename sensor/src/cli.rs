//! The command line of the sensor.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use spanwatch_common::checkup::{self, Check};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::settings::SettingsError;

use crate::capture::file::File;
use crate::config::{Config, DEFAULT_PATH};
use crate::dedup::DedupMode;
use crate::doctor;
use crate::replay::{BatchWriter, Format, Replayed, TextWriter, Wanted, replay_in_jobs};
use crate::run;
use crate::top;
use crate::uplink;
use crate::worker::MeterSettings;

/// Exit code of a configuration that is wrong (`EX_CONFIG` of sysexits.h).
const EXIT_CONFIG: u8 = 78;

/// Watches a mirror port: turns packets into flow records and ships them to a collector. Never sends on the port it watches.
#[derive(Parser)]
#[command(name = "spanwatch-sensor", version)]
struct Cli {
    /// Log more.
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Capture, meter and ship until SIGINT or SIGTERM.
    Run {
        /// The settings.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// Write the final account here, as JSON; `mirror` in it is what the mirror is judged by.
        #[arg(long)]
        stats: Option<PathBuf>,
    },
    /// Check the settings and the identity that they name, and do nothing else. Ends with 0, or with 78 and the place of the mistake.
    Check {
        /// The settings.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Look at this machine: kernel, rights, interface, driver, clock, collector. Ends with 1 when something must be mended.
    Doctor {
        /// The settings.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Watch a running sensor in the terminal: rates, losses, talkers, encapsulations, and what is wrong with the mirror.
    Top {
        /// Where the sensor listens for metrics (metrics.listen) [default: 127.0.0.1:9477].
        #[arg(long, conflicts_with = "config")]
        address: Option<String>,
        /// Take the address from these settings.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Print one snapshot as plain text, over one second, and end.
        #[arg(long)]
        once: bool,
    },
    /// Turn a capture file into records, as a live sensor would. The same file gives the same bytes.
    Replay {
        /// A pcap or pcapng file, plain or compressed with gzip or zstd, or - for standard input.
        file: PathBuf,
        /// How records are written.
        #[arg(long, value_enum, default_value = "jsonl")]
        format: Format,
        /// How many threads share the work, by flows; at most 64. What comes out is the same, unless the flow table gets full: each has one.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
        jobs: u8,
        /// Write records here instead of to standard output.
        #[arg(long)]
        output: Option<PathBuf>,
        /// Write the account here, as JSON; `mirror` in it is what the mirror is judged by.
        #[arg(long)]
        stats: Option<PathBuf>,
        /// Settings for decoding and the flow table; the defaults otherwise.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Whether second copies of packets are removed. A file is evidence: off unless said here or in the settings.
        #[arg(long, value_enum)]
        dedup: Option<DedupMode>,
    },
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.verbose);
    let result = match cli.command {
        Command::Run { config, stats } => {
            Config::load(&config).map_err(Into::into).and_then(|config| run::run(&config, stats.as_deref()))
        }
        Command::Check { config } => check(&config),
        Command::Doctor { config } => Config::load(&config).map_err(Into::into).and_then(|config| examine(&config)),
        Command::Top { address, config, once } => watch(address, config.as_deref(), once),
        Command::Replay { file, format, jobs, output, stats, config, dedup } => meter_settings(config.as_deref(), dedup)
            .and_then(|settings| replay_file(&file, jobs, format, output.as_deref(), stats.as_deref(), &settings)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spanwatch-sensor: {}", sentence(&error));
            if error.is::<SettingsError>() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn start_log(verbose: bool) {
    let level = if verbose { tracing::Level::DEBUG } else { tracing::Level::INFO };
    // journald adds the time itself; a person at a terminal wants it, and colours.
    let terminal = io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_ansi(terminal).with_target(false);
    if terminal { log.init() } else { log.without_time().init() }
}

/// The error and its causes, without those that it names itself.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        _ if said.contains(&cause) => said,
        _ => format!("{said}: {cause}"),
    })
}

/// Whoever reads the output has had enough (`… | head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

fn watch(address: Option<String>, config: Option<&Path>, once: bool) -> anyhow::Result<()> {
    let settings = config.map(Config::load).transpose()?.unwrap_or_default();
    let address = address.unwrap_or(settings.metrics.listen);
    if address.is_empty() {
        anyhow::bail!(
            "metrics.listen is empty, so the sensor cannot be looked at; give it an address such as \"127.0.0.1:9477\""
        );
    }
    if once {
        return Ok(io::stdout().lock().write_all(top::once(&address)?.as_bytes())?);
    }
    top::watch(&address)
}

/// What a replay meters by: the settings' file, but duplicates are counted unless somebody says otherwise.
fn meter_settings(config: Option<&Path>, dedup: Option<DedupMode>) -> anyhow::Result<MeterSettings> {
    let mut settings = match config {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            Config::parse(path, &text)?.meter()
        }
        None => {
            let mut settings = Config::default().meter();
            settings.flow.dedup = DedupMode::Off;
            settings
        }
    };
    settings.flow.dedup = dedup.unwrap_or(settings.flow.dedup);
    Ok(settings)
}

fn replay_file(
    path: &Path,
    jobs: u8,
    format: Format,
    output: Option<&Path>,
    stats: Option<&Path>,
    settings: &MeterSettings,
) -> anyhow::Result<()> {
    if format == Format::Batch && output.is_none() && io::stdout().is_terminal() {
        anyhow::bail!("batches are no text for a terminal; name a file with --output");
    }
    let mut files = File::open_shared(path, usize::from(jobs))?;
    let sink: Box<dyn Write> = match output {
        Some(path) => Box::new(std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?),
        None => Box::new(io::stdout().lock()),
    };
    let mut sink = BufWriter::new(sink);
    let bar = progress_bar(path, output.is_some());
    let mut replay = |wanted, each: &mut dyn FnMut(FlowRecord) -> io::Result<()>| {
        replay_in_jobs(&mut files, settings, wanted, each, |octets| bar.inc(octets))
    };
    let replayed = match format {
        Format::Jsonl | Format::Csv => {
            let mut writer = if format == Format::Csv { TextWriter::csv(sink) } else { TextWriter::jsonl(sink) };
            let replayed = replay(Wanted::Records, &mut |record| writer.write(&record))?;
            writer.finish()?;
            replayed
        }
        Format::Batch => {
            let mut writer = BatchWriter::new(sink);
            let replayed = replay(Wanted::Records, &mut |record| writer.write(record))?;
            writer.finish(&replayed.ledger, &replayed.health)?;
            replayed
        }
        Format::None => {
            let replayed = replay(Wanted::Account, &mut |_| Ok(()))?;
            sink.write_all(run::stats_json(&replayed.ledger, &replayed.health)?.as_bytes())?;
            sink.flush()?;
            replayed
        }
    };
    let Replayed { ledger, health, damage } = replayed;
    bar.finish_and_clear();
    if let Some(path) = stats {
        run::write_stats(&ledger, &health, path)?;
    }
    if let Some(imbalance) = ledger.imbalance() {
        anyhow::bail!("the ledger does not balance: {imbalance}; please report this");
    }
    match damage {
        Some(damage) => Err(damage.into()),
        None => Ok(()),
    }
}

/// A bar on stderr for a person who waits; nothing when records go to the same terminal, or when nobody looks.
fn progress_bar(path: &Path, has_output_file: bool) -> ProgressBar {
    let is_watched = io::stderr().is_terminal() && (has_output_file || !io::stdout().is_terminal());
    let length = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
    let bar = match (is_watched, length) {
        (false, _) => return ProgressBar::hidden(),
        (true, Some(length)) => ProgressBar::new(length),
        (true, None) => ProgressBar::new_spinner(),
    };
    let style =
        if length.is_some() { "{bar:40} {bytes} of {total_bytes}, {eta} left" } else { "{spinner} {bytes}, {bytes_per_sec}" };
    ProgressStyle::with_template(style).map(|style| bar.clone().with_style(style)).unwrap_or(bar)
}

fn check(path: &Path) -> anyhow::Result<()> {
    Config::load(path)?.check_identity(path)?;
    println!("{}: fine", path.display());
    Ok(())
}

fn examine(config: &Config) -> anyhow::Result<()> {
    let mut checks = doctor::checks(&config.capture);
    checks.extend(doctor::machine_checks(&config.capture, &config.workers));
    checks.push(reach(config));
    print!("{}", checkup::render(&checks));
    if checkup::any_fails(&checks) {
        anyhow::bail!("something above must be mended before the sensor can run");
    }
    Ok(())
}

/// Whether the collector can be reached and takes this sensor.
fn reach(config: &Config) -> Check {
    match uplink::check_reach(&config.uplink) {
        Ok((name, ends)) => Check::ok(
            "collector",
            format!("{} takes this sensor as {name}; its certificate ends {ends}", config.uplink.collector),
        ),
        Err(error) => Check::fail("collector", error.to_string(), "records wait in memory until it can be reached"),
    }
}
