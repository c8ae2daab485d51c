//! `spanwatch-collector alerts`: what was found, why, and who wants to hear no more of it.

mod explain;
mod list;
mod mutes;
mod screen;

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::alert::{Alert, file};
use crate::config::Config;
use crate::ingest::recorded::InputArgs;

pub(in crate::commands) use list::table;

/// Exit code when the replay of an alert finds another number.
const EXIT_DIFFERS: u8 = 3;

/// What `alerts` is told.
#[derive(Clone, Debug, Args)]
pub struct AlertsArgs {
    /// Without a deed: list them.
    #[command(flatten)]
    list: ListArgs,
    #[command(subcommand)]
    deed: Option<Deed>,
    /// Another alert file than that of the settings, such as `detect --format alerts` writes.
    #[arg(long, global = true, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
struct ListArgs {
    /// Keep going, and print every event as it comes; as a table without those that are for the record only.
    #[arg(long)]
    follow: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t = AlertsFormat::Table)]
    format: AlertsFormat,
    /// Only alerts that are not closed.
    #[arg(long)]
    open: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Deed {
    /// One alert with its numbers and the rows that speak for it.
    Show {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// The same, and its records through the detector once more: is it the same number?
    ///
    /// The records come from the store, from so long before the alert's window as its rule looks back. Exit code 0 when the number is the
    /// same, 3 when it is another; then it is said what may be the reason.
    Explain {
        /// Its id, or the beginning of it.
        id: String,
        /// Recordings in place of the store, as `detect` reads them.
        #[arg(long = "from", value_name = "PATH", num_args = 1..)]
        recordings: Vec<String>,
        /// Rule file or directory in place of that of the settings.
        #[arg(long, value_name = "FILE|DIR")]
        rules: Option<PathBuf>,
    },
    /// Hear no more of an alert, or of whatever a rule says about a subject, for a while. It goes on being recorded.
    ///
    /// For example: alerts mute --rule AZ-01 --subject 10.0.0.9 --owner kim --until 2027-01-31 --reason "our own scanner"
    Mute {
        #[command(flatten)]
        target: mutes::TargetArgs,
        #[command(flatten)]
        terms: mutes::TermsArgs,
    },
    /// End a mute.
    Unmute {
        #[command(flatten)]
        target: mutes::TargetArgs,
    },
    /// What is muted, by whom, until when and why.
    Mutes,
}

/// How to print alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AlertsFormat {
    /// For people.
    Table,
    /// One JSON object per line.
    Json,
}

/// Does what was asked.
///
/// # Errors
/// The alert file cannot be read, there is no such alert, what was typed is no mute, the store or a recording cannot be read, the output
/// cannot be written. A closed output (`| head`) is no error.
pub fn run(args: &AlertsArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let path = args.file.as_deref().unwrap_or(&config.alerts.file);
    let mut out = io::stdout().lock();
    let done = match &args.deed {
        None => list::print(&args.list, path, &mut out).map(|()| ExitCode::SUCCESS),
        Some(deed) => act(deed, path, config).and_then(|(text, code)| {
            out.write_all(text.as_bytes())?;
            Ok(code)
        }),
    };
    match done {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) => {
            Ok(ExitCode::SUCCESS)
        }
        done => done,
    }
}

fn act(deed: &Deed, path: &Path, config: &Config) -> anyhow::Result<(String, ExitCode)> {
    let now = crate::run::clock();
    let text = match deed {
        Deed::Show { id } => {
            let alerts = read(path)?;
            screen::alert(find(&alerts, id, path)?, &alerts)
        }
        Deed::Explain { id, recordings, rules } => {
            let alerts = read(path)?;
            let inputs = InputArgs { inputs: recordings.clone(), ta_parity: false };
            let rules = match rules {
                Some(rules) => super::detect::rules(Some(rules))?,
                None => config.rules()?,
            };
            let (text, answer) = explain::explain(find(&alerts, id, path)?, &alerts, &inputs, rules, config)?;
            return Ok((text, if answer == explain::Answer::Same { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DIFFERS) }));
        }
        Deed::Mute { target, terms } => mutes::mute(&target.target(|id| full_id(path, id))?, terms, path, now)?,
        Deed::Unmute { target } => mutes::unmute(&target.target(|id| full_id(path, id))?, path, now)?,
        Deed::Mutes => mutes::list(path, now)?,
    };
    Ok((text, ExitCode::SUCCESS))
}

fn read(path: &Path) -> anyhow::Result<Vec<Alert>> {
    Ok(file::read(path).with_context(|| format!("read the alert file {}", path.display()))?.alerts)
}

/// The one alert whose id begins with `id`.
fn find<'a>(alerts: &'a [Alert], id: &str, path: &Path) -> anyhow::Result<&'a Alert> {
    let mut found = alerts.iter().filter(|alert| !id.is_empty() && alert.id.starts_with(&id.to_lowercase()));
    match (found.next(), found.next()) {
        (Some(alert), None) => Ok(alert),
        (Some(_), Some(_)) => bail!("several alerts begin with {id:?}; write more of the id"),
        (None, _) => bail!("there is no alert {id:?} in {}; `alerts` lists them", path.display()),
    }
}

fn full_id(path: &Path, id: &str) -> anyhow::Result<String> {
    let alerts = read(path)?;
    find(&alerts, id, path).map(|alert| alert.id.clone())
}
