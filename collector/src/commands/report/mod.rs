//! `spanwatch-collector report`: what the stored records say about hosts, for people who close down a network that is wide open.
//!
//! In the order in which a record meets them:
//!
//! * `period` — the stretch of time that is asked for
//! * `conversations` — rows as conversations, each counted once however many saw it
//! * `host`, `volume` — added up as ports, peers, volumes, deviations
//! * `allow`, `prefixes` — made into rules; `allow_forms` — as network security group, nftables
//! * `sheet` — written as table, CSV, JSON

mod allow;
mod allow_forms;
mod conversations;
mod host;
mod period;
mod prefixes;
mod sheet;
mod volume;

use std::collections::HashMap;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::net::Prefix;
use spanwatch_common::time::Timestamp;

use self::allow::Seen;
use self::conversations::{CONVERSATIONS_MAX, Conversation, Gathering, Tally};
use self::host::{Peers, Ports};
use self::prefixes::Widening;
use self::sheet::{Sheet, SheetFormat};
use self::volume::{By, Deviations, Volume};
use crate::config::Config;
use crate::detect::row::Part;
use crate::detect::{Row, Sites};
use crate::store;

/// Lines of a report before the largest are picked, and peers or ports counted in them.
const GROUPS_MAX: usize = 1_000_000;
/// What two observers both saw is recognised within this time.
const HOUR: Duration = Duration::from_secs(3_600);
/// Sensors and interfaces whose names are held at once; beyond it they are held anew.
const NAMES_MAX: usize = 65_536;
/// The length to which IPv6 sources may be widened: a subnet (RFC 4291 §2.5.1).
const V6_SUBNET: u8 = 64;

/// More than a report can hold.
#[derive(Debug)]
pub(crate) struct Overfull;

/// What `report` is told.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Which report.
    #[command(subcommand)]
    pub report: Report,
}

/// The reports.
#[derive(Clone, Debug, Subcommand)]
pub enum Report {
    /// The ports that a host (or a subnet's hosts) serves and uses.
    Ports(HostArgs),
    /// Whom a host (or a subnet's hosts) speaks with.
    Peers(HostArgs),
    /// Who moves how much.
    Volume(VolumeArgs),
    /// Sources and services whose volume once lay farthest from their own average.
    ///
    /// The volume of each source and service is added up in windows and compared with the mean of all its windows that had records:
    /// deviation = |volume - mean| / mean, as in the exact form of AZ-03. 5 or 7 are worth a look.
    Deviations(DeviationArgs),
    /// The least set of rules that lets in to a host or subnet what was seen to work, and nothing that was not seen.
    ///
    /// Denied, refused and unanswered contacts (scans) are left out and counted; so is what went one way only, such as syslog, unless
    /// --one-way takes it in. Look at a period that contains everything that happens rarely: month's end, backups, updates.
    AllowRules(AllowArgs),
}

/// Which records to look at.
#[derive(Clone, Debug, Args)]
pub struct PeriodArgs {
    /// From when: a time such as 2026-11-21T10:00:00Z, or how long ago, such as 24h or 7d.
    #[arg(long, default_value = "7d", value_name = "TIME")]
    pub since: String,
    /// Until when, likewise; now when absent.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

/// What `ports` and `peers` are told.
#[derive(Clone, Debug, Args)]
pub struct HostArgs {
    /// An address, or a subnet such as 10.1.2.0/24.
    #[arg(value_name = "HOST|SUBNET")]
    pub target: Prefix,
    /// Which records.
    #[command(flatten)]
    pub period: PeriodArgs,
    /// How to print.
    #[arg(long, value_enum, default_value_t = SheetFormat::Table)]
    pub format: SheetFormat,
}

/// What `volume` is told.
#[derive(Clone, Debug, Args)]
pub struct VolumeArgs {
    /// What to add up by.
    #[arg(long, value_enum, default_value_t = By::Conversation)]
    pub by: By,
    /// How many lines.
    #[arg(long, default_value_t = 50)]
    pub top: usize,
    /// Which records.
    #[command(flatten)]
    pub period: PeriodArgs,
    /// How to print.
    #[arg(long, value_enum, default_value_t = SheetFormat::Table)]
    pub format: SheetFormat,
}

/// What `deviations` is told.
#[derive(Clone, Debug, Args)]
pub struct DeviationArgs {
    /// Length of a window in seconds.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub window_secs: u64,
    /// How many lines.
    #[arg(long, default_value_t = 50)]
    pub top: usize,
    /// Which records.
    #[command(flatten)]
    pub period: PeriodArgs,
    /// How to print.
    #[arg(long, value_enum, default_value_t = SheetFormat::Table)]
    pub format: SheetFormat,
}

/// What `allow-rules` is told.
#[derive(Clone, Debug, Args)]
pub struct AllowArgs {
    /// The address, or subnet such as 10.1.2.0/24, to let traffic in to.
    #[arg(value_name = "HOST|SUBNET")]
    pub target: Prefix,
    /// Let in whole IPv4 prefixes of this length (and IPv6 /64) of which two or more addresses were seen. Without it, only what was seen.
    #[arg(long, value_name = "LENGTH", value_parser = clap::value_parser!(u8).range(0..=32))]
    pub aggregate: Option<u8>,
    /// Let in also what went one way only and nobody had to answer.
    #[arg(long)]
    pub one_way: bool,
    /// Which records.
    #[command(flatten)]
    pub period: PeriodArgs,
    /// How to print.
    #[arg(long, value_enum, default_value_t = AllowFormat::Table)]
    pub format: AllowFormat,
}

/// How to print allow rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AllowFormat {
    /// For people.
    Table,
    /// A header and a line per rule.
    Csv,
    /// One JSON object per line.
    Json,
    /// The security rules of a network security group, as in an Azure Resource Manager template.
    Nsg,
    /// A table of nftables, ready for `nft -f`.
    Nftables,
}

/// Reads the store, adds up, prints; as of the wall-clock time `now`. What is left out is said on standard error.
///
/// # Errors
/// The store cannot be read, the period is none, there is more than a report can hold, or the output cannot be written. A closed
/// output (`| head`) is no error.
pub async fn run(args: &ReportArgs, config: &Config, now: Timestamp) -> anyhow::Result<()> {
    let written = match &args.report {
        Report::Ports(args) => {
            let mut ports = Ports::new(args.target);
            let touching = touching(&args.target);
            gather(config, args.period.span(now)?, Some(touching), HOUR, |_, seen, tally| ports.add(seen, tally)).await?;
            print(&ports.sheet(), args.format)
        }
        Report::Peers(args) => {
            let mut peers = Peers::new(args.target);
            let touching = touching(&args.target);
            gather(config, args.period.span(now)?, Some(touching), HOUR, |_, seen, tally| peers.add(seen, tally)).await?;
            print(&peers.sheet(), args.format)
        }
        Report::Volume(args) => {
            let mut volume = Volume::new(args.by);
            gather(config, args.period.span(now)?, None, HOUR, |hour, seen, tally| volume.add(hour, seen, tally)).await?;
            print(&volume.sheet(args.top), args.format)
        }
        Report::Deviations(args) => {
            let (mut deviations, window) = (Deviations::default(), Duration::from_secs(args.window_secs));
            gather(config, args.period.span(now)?, None, window, |window, seen, tally| deviations.add(window, seen, tally))
                .await?;
            print(&deviations.sheet(args.top, window), args.format)
        }
        Report::AllowRules(args) => {
            let mut seen = Seen::new(args.target);
            let within = within("destinationIPAddress", &args.target);
            gather(config, args.period.span(now)?, Some(within), HOUR, |_, conversation, tally| seen.add(conversation, tally))
                .await?;
            allow_rules(args, seen)?
        }
    };
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

fn allow_rules(args: &AllowArgs, seen: Seen) -> anyhow::Result<io::Result<()>> {
    let (allowed, left_out) = seen.allowed(args.one_way);
    let rules = allow::rules(&allowed, args.aggregate.map(|v4| Widening { v4, v6: V6_SUBNET }));
    eprintln!(
        "{} conversations let in by {} rules; left out: {} denied, refused or unanswered, {} one way only{}, {} with a blank source",
        allowed.len(),
        rules.len(),
        left_out.failed,
        left_out.one_way,
        if left_out.one_way > 0 { " (--one-way lets them in)" } else { "" },
        left_out.blank
    );
    let widened = rules.iter().filter(|rule| rule.permitted_sources() > u128::from(rule.seen_sources)).count();
    if widened > 0 {
        eprintln!("{widened} rules let in more sources than were seen; compare seen and permitted sources in the table");
    }
    Ok(match args.format {
        AllowFormat::Table => print(&allow_forms::sheet(&rules), SheetFormat::Table),
        AllowFormat::Csv => print(&allow_forms::sheet(&rules), SheetFormat::Csv),
        AllowFormat::Json => print(&allow_forms::sheet(&rules), SheetFormat::Json),
        AllowFormat::Nsg => {
            let (group, left_out) = allow_forms::network_security_group(&rules, &args.target).map_err(anyhow::Error::msg)?;
            if left_out > 0 {
                eprintln!("{left_out} rules are of protocols that a network security group cannot name; the table shows them");
            }
            writeln!(io::stdout(), "{group:#}")
        }
        AllowFormat::Nftables => write!(io::stdout(), "{}", allow_forms::nftables(&rules, &args.target)),
    })
}

impl PeriodArgs {
    fn span(&self, now: Timestamp) -> anyhow::Result<Range<Timestamp>> {
        let time = |key: &str, text: &str| period::parse(text, now).map_err(|sentence| anyhow!("{key}: {sentence}"));
        let since = time("--since", &self.since)?;
        let until = self.until.as_deref().map_or(Ok(now), |text| time("--until", text))?;
        if since >= until {
            bail!("--since {} is not before --until {}", self.since, self.until.as_deref().unwrap_or("now"));
        }
        Ok(since..until)
    }
}

fn print(sheet: &Sheet, format: SheetFormat) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    sheet.write(format, &mut out)?;
    out.flush()
}

/// Hands the conversations of `span`, each counted once per `window`, to `add`.
async fn gather(
    config: &Config,
    span: Range<Timestamp>,
    filter: Option<String>,
    window: Duration,
    mut add: impl FnMut(Timestamp, &Conversation, &Tally) -> Result<(), Overfull> + Send,
) -> anyhow::Result<()> {
    let sites = Sites::default();
    let mut gathering = Gathering::new(window);
    let mut names: HashMap<String, Arc<str>> = HashMap::new();
    let mut overfull = false;
    let mut close = |window, conversation, tally| overfull |= add(window, &conversation, &tally).is_err();
    let mut take = |sensor: &str, record: FlowRecord| {
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        if !names.contains_key(sensor) {
            names.insert(sensor.to_owned(), Arc::from(sensor));
        }
        // A tail only says that what was counted before is over; it would make a window of zero.
        if let Some(observer) = names.get(sensor)
            && let Some(row) = Row::of(observer, &record, &sites).filter(|row| window == HOUR || row.part != Part::Tail)
        {
            gathering.observe(&row, record.last(), &mut close);
        }
        Ok(())
    };
    store::records(&config.store, span, filter.as_deref(), &mut take).await?;
    gathering.finish(&mut close);
    if gathering.cut() > 0 {
        eprintln!(
            "more than {CONVERSATIONS_MAX} conversations in one window, {} times: what two observers both saw may count twice there",
            gathering.cut()
        );
    }
    if overfull {
        bail!(
            "there is more than a report can hold ({GROUPS_MAX} lines, ports or peers); ask for less time with --since and --until, or for fewer hosts"
        );
    }
    Ok(())
}

/// A condition for records of which one end lies in `target`.
fn touching(target: &Prefix) -> String {
    format!("({}) OR ({})", within("sourceIPAddress", target), within("destinationIPAddress", target))
}

fn within(column: &str, target: &Prefix) -> String {
    format!("{column} BETWEEN ip_bytes('{}') AND ip_bytes('{}')", target.first(), target.last())
}
