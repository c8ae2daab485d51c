//! `spanwatch-collector report`: what the stored records say about hosts, for people who close down a network that is wide open.
//!
//! In the order in which a record meets them:
//!
//! * `conversations` — rows as conversations, each counted once however many saw it
//! * `host`, `volume` — added up as ports, peers, volumes, deviations
//! * `allow`, `prefixes` — made into rules; `allow_forms` — as network security group, nftables
//! * `layer2` — conversations without IP, which the others leave out
//! * `sheet` — written as table, CSV, JSON

mod allow;
mod allow_forms;
mod conversations;
mod host;
mod layer2;
mod prefixes;
mod sheet;
mod volume;

use std::collections::HashMap;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::net::Prefix;
use spanwatch_common::time::Timestamp;

use self::allow::{Rule, Seen};
use self::conversations::{CONVERSATIONS_MAX, Conversation, Gathering, Tally};
use self::host::{Peers, Ports};
use self::layer2::Stations;
use self::prefixes::Widening;
use self::volume::{Deviations, Volume};
use super::period::PeriodArgs;
use crate::config::Config;
use crate::detect::row::Part;
use crate::detect::{Roles, Row, Sites};
use crate::store;

pub use self::sheet::SheetFormat;
pub use self::volume::By;

/// Lines of a report before the largest are picked, and peers or ports counted in them: some 100 octets of memory each.
const GROUPS_MAX: usize = 4_000_000;
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
    /// Who speaks to whom without IP: GOOSE, PROFINET, EtherCAT, ARP, spanning tree and the like.
    Layer2(Layer2Args),
    /// The least set of rules that lets in to a host or subnet what was seen to work, and nothing that was not seen.
    ///
    /// Denied, refused and unanswered contacts (scans) are left out and counted; so is what went one way only, such as syslog, unless
    /// --one-way takes it in. Look at a period that contains everything that happens rarely: month's end, backups, updates.
    AllowRules(AllowArgs),
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

/// What `layer2` is told.
#[derive(Clone, Debug, Args)]
pub struct Layer2Args {
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
    let mut out = BufWriter::new(io::stdout());
    let done = report(args, config, now, &mut out, &mut io::stderr()).await.and_then(|()| Ok(out.flush()?));
    match done {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) => Ok(()),
        done => done,
    }
}

/// Writes the report to `out`, and to `notes` what was left out of it.
async fn report(
    args: &ReportArgs,
    config: &Config,
    now: Timestamp,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> anyhow::Result<()> {
    let gather = Gather { config, now, notes };
    match &args.report {
        Report::Ports(args) => {
            let mut ports = Ports::new(args.target);
            let touching = touching(&args.target);
            gather.each(&args.period, Some(touching), HOUR, every_row, |_, seen, tally| ports.add(seen, tally)).await?;
            ports.sheet().write(args.format, out)?;
        }
        Report::Peers(args) => {
            let mut peers = Peers::new(args.target);
            let touching = touching(&args.target);
            gather.each(&args.period, Some(touching), HOUR, every_row, |_, seen, tally| peers.add(seen, tally)).await?;
            peers.sheet().write(args.format, out)?;
        }
        Report::Volume(args) => {
            let mut volume = Volume::new(args.by);
            gather.each(&args.period, None, HOUR, every_row, |hour, seen, tally| volume.add(hour, seen, tally)).await?;
            volume.sheet(args.top).write(args.format, out)?;
        }
        Report::Deviations(args) => {
            let (mut deviations, window) = (Deviations::default(), Duration::from_secs(args.window_secs));
            let add = |window, seen: &_, tally: &_| deviations.add(window, seen, tally);
            gather.each(&args.period, None, window, all_but_tails, add).await?;
            deviations.sheet(args.top, window).write(args.format, out)?;
        }
        Report::Layer2(args) => gather.stations(&args.period).await?.sheet(args.top).write(args.format, out)?,
        Report::AllowRules(args) => {
            let mut seen = Seen::new(args.target);
            let within = within("destinationIPAddress", &args.target);
            let add = |_, conversation: &_, tally: &_| seen.add(conversation, tally);
            gather.each(&args.period, Some(within), HOUR, every_row, add).await?;
            allow_rules(args, seen, out, notes)?;
        }
    }
    Ok(())
}

fn allow_rules(args: &AllowArgs, seen: Seen, out: &mut impl Write, notes: &mut impl Write) -> anyhow::Result<()> {
    let (allowed, left_out) = seen.allowed(args.one_way);
    let rules = allow::rules(&allowed, args.aggregate.map(|v4| Widening { v4, v6: V6_SUBNET }));
    writeln!(
        notes,
        "{} conversations let in by {} rules; left out: {} denied, refused or unanswered, {} one way only{}, {} with a blank source",
        allowed.len(),
        rules.len(),
        left_out.failed,
        left_out.one_way,
        if left_out.one_way > 0 { " (--one-way lets them in)" } else { "" },
        left_out.blank
    )?;
    let widened: Vec<&Rule> = rules.iter().filter(|rule| rule.permitted_sources() > u128::from(rule.seen_sources)).collect();
    if !widened.is_empty() {
        let permitted = widened.iter().map(|rule| rule.permitted_sources()).fold(0, u128::saturating_add);
        let seen: u64 = widened.iter().map(|rule| rule.seen_sources).sum();
        writeln!(notes, "{} rules are wider than what was seen: {permitted} sources may speak, {seen} did", widened.len())?;
    }
    match args.format {
        AllowFormat::Table => allow_forms::sheet(&rules).write(SheetFormat::Table, out)?,
        AllowFormat::Csv => allow_forms::sheet(&rules).write(SheetFormat::Csv, out)?,
        AllowFormat::Json => allow_forms::sheet(&rules).write(SheetFormat::Json, out)?,
        AllowFormat::Nsg => {
            let (group, left_out) = allow_forms::network_security_group(&rules, &args.target).map_err(anyhow::Error::msg)?;
            if left_out > 0 {
                writeln!(
                    notes,
                    "{left_out} rules are of protocols that a network security group cannot name; the table shows them"
                )?;
            }
            writeln!(out, "{group:#}")?;
        }
        AllowFormat::Nftables => write!(out, "{}", allow_forms::nftables(&rules, &args.target))?,
    }
    Ok(())
}

fn every_row(_: &Row) -> bool {
    true
}

/// A tail only says that what was counted before is over; it would make a window of zero.
fn all_but_tails(row: &Row) -> bool {
    row.part != Part::Tail
}

/// Reads the store for a report.
struct Gather<'a, N> {
    config: &'a Config,
    now: Timestamp,
    notes: &'a mut N,
}

impl<N: Write> Gather<'_, N> {
    /// Hands the conversations of `period`, each counted once per `window`, to `add`.
    async fn each(
        self,
        period: &PeriodArgs,
        filter: Option<String>,
        window: Duration,
        keep: fn(&Row) -> bool,
        mut add: impl FnMut(Timestamp, &Conversation, &Tally) -> Result<(), Overfull> + Send,
    ) -> anyhow::Result<()> {
        let sites = Sites::default();
        let mut gathering = Gathering::new(window);
        let mut names = Names::default();
        let mut overfull = false;
        let (mut in_aggregates, mut sampled) = (0_u64, false);
        let mut close = |window, conversation, tally| overfull |= add(window, &conversation, &tally).is_err();
        let mut take = |sensor: &str, record: FlowRecord| {
            if let Some(row) = Row::of(&names.of(sensor), &record, &sites, &Roles::default()).filter(keep) {
                sampled |= record.sampling_population > 1;
                if row.aggregate {
                    in_aggregates = in_aggregates.saturating_add(row.octets_total());
                } else {
                    gathering.observe(&row, record.last(), &mut close);
                }
            }
            Ok(())
        };
        store::records(&self.config.store, period.span(self.now)?, filter.as_deref(), &mut take).await?;
        gathering.finish(&mut close);
        if in_aggregates > 0 {
            writeln!(
                self.notes,
                "{in_aggregates} octets belong to nobody here: a sensor's flow table was full, and it added them up by prefixes"
            )?;
        }
        if sampled {
            writeln!(self.notes, "octets are estimates in part: a sensor could look at some of the packets only")?;
        }
        if gathering.cut() > 0 {
            writeln!(
                self.notes,
                "more than {CONVERSATIONS_MAX} conversations in one window, {} times: what two observers both saw may count twice there",
                gathering.cut()
            )?;
        }
        if overfull { too_much() } else { Ok(()) }
    }

    /// The conversations of `period` that have no IP header.
    async fn stations(self, period: &PeriodArgs) -> anyhow::Result<Stations> {
        let (mut stations, mut names, mut overfull) = (Stations::default(), Names::default(), false);
        let mut take = |sensor: &str, record: FlowRecord| {
            overfull |= stations.add(&names.of(sensor), &record).is_err();
            Ok(())
        };
        store::records(&self.config.store, period.span(self.now)?, Some(layer2::WITHOUT_IP), &mut take).await?;
        if overfull { too_much() } else { Ok(stations) }
    }
}

fn too_much<T>() -> anyhow::Result<T> {
    bail!("this is more than a report can hold; ask for less time with --since and --until, or for fewer hosts")
}

/// Names of sensors and interfaces, each held once.
#[derive(Default)]
struct Names(HashMap<String, Arc<str>>);

impl Names {
    fn of(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        if self.0.len() >= NAMES_MAX {
            self.0.clear();
        }
        let new: Arc<str> = Arc::from(name);
        self.0.insert(name.to_owned(), Arc::clone(&new));
        new
    }
}

/// A condition for records of which one end lies in `target`.
fn touching(target: &Prefix) -> String {
    format!("({}) OR ({})", within("sourceIPAddress", target), within("destinationIPAddress", target))
}

fn within(column: &str, target: &Prefix) -> String {
    format!("{column} BETWEEN ip_bytes('{}') AND ip_bytes('{}')", target.first(), target.last())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use spanwatch_common::cloud::{Action, Cloud, CloudContext, Direction, Origin};
    use spanwatch_common::flow::{FlowState, LAYER2, protocol, tcp};
    use spanwatch_common::wire::Batch;

    use super::*;
    use crate::store::{Importer, Store, StoreSettings};

    /// 2025-11-21T10:00:00Z.
    const TEN: i64 = 1_763_719_200;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ReportArgs,
    }

    fn flow(source: &str, port: u16, octets: [u64; 2]) -> FlowRecord {
        FlowRecord {
            source: source.parse().unwrap(),
            destination: "198.51.100.7".parse().unwrap(),
            destination_port: port,
            protocol: protocol::TCP,
            octets,
            packets: octets.map(|octets| octets.div_ceil(100)),
            start: [Timestamp::from_secs(TEN), if octets[1] > 0 { Timestamp::from_secs(TEN) } else { Timestamp::NONE }],
            end: [Timestamp::from_secs(TEN + 10); 2],
            initial_tcp_flags: [tcp::SYN, tcp::SYN | tcp::ACK],
            tcp_flags: [
                tcp::SYN | if octets[1] > 0 { tcp::ACK | tcp::PSH } else { 0 },
                if octets[1] > 0 { tcp::SYN | tcp::ACK } else { 0 },
            ],
            ..FlowRecord::default()
        }
    }

    fn azure(direction: Direction, observer: &str, action: Action, record: FlowRecord) -> FlowRecord {
        let state = if action == Action::Deny { FlowState::Begin } else { FlowState::End };
        let context = CloudContext { observer: observer.into(), ..CloudContext::default() };
        let cloud = Cloud { origin: Origin::VnetV4, action, direction, context: Arc::new(context), ..Cloud::default() };
        FlowRecord { state, cloud: Some(Box::new(cloud)), initial_tcp_flags: [0; 2], tcp_flags: [0; 2], ..record }
    }

    /// A switch that says what it is, every 30 s.
    fn lldp() -> FlowRecord {
        FlowRecord {
            ethernet_type: 0x88cc,
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [1, 0x80, 0xc2, 0, 0, 0x0e],
            packets: [2, 0],
            layer2_octets: [120, 0],
            start: [Timestamp::from_secs(TEN), Timestamp::NONE],
            end: [Timestamp::from_secs(TEN + 10), Timestamp::NONE],
            protocol: LAYER2,
            ..FlowRecord::default()
        }
    }

    /// A web server with two clients, of which Azure saw one at both ends; an administrator and a switch seen by a sensor; two scanners.
    async fn made(home: &std::path::Path) -> Config {
        let store = StoreSettings { directory: home.join("flows"), ..StoreSettings::default() };
        let (mut importer, _) = Importer::open(store.clone(), "azure").await.unwrap();
        let rows = vec![
            azure(Direction::Outbound, "client", Action::Allow, flow("192.0.2.4", 443, [1_000, 9_001])),
            azure(Direction::Inbound, "server", Action::Allow, flow("192.0.2.4", 443, [1_000, 9_000])),
            azure(Direction::Inbound, "server", Action::Allow, flow("192.0.2.5", 443, [500, 500])),
            azure(Direction::Inbound, "server", Action::Deny, flow("203.0.113.66", 3389, [0, 0])),
        ];
        importer.push(rows).unwrap();
        importer.commit(b"").await.unwrap();
        let mut sensor = Store::open(store.clone()).await.unwrap();
        let records = vec![flow("192.0.2.200", 22, [3_000, 2_000]), flow("203.0.113.67", 22, [60, 0]), lldp()];
        sensor
            .push(Arc::new(Batch { sensor: "plant1".to_owned(), boot: 1, sequence: 1, records, ..Batch::default() }))
            .await
            .unwrap();
        sensor.commit().await.unwrap();
        Config { store, ..Config::default() }
    }

    async fn told(config: &Config, line: &str) -> (String, String) {
        let now = Timestamp::from_secs(TEN + 3_600);
        let args = Line::parse_from(std::iter::once("report").chain(line.split_whitespace())).args;
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        report(&args, config, now, &mut out, &mut notes).await.unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sensors_and_azure_tell_one_story_and_scans_do_not_become_rules() {
        let home = tempfile::tempdir().unwrap();
        let config = made(home.path()).await;
        let first_and_last = "2025-11-21T10:00:00.000000000Z,2025-11-21T10:00:10.000000000Z";
        assert_eq!(
            told(&config, "ports 198.51.100.7 --since 1d --format csv").await.0,
            format!(
                "role,service,peers,verdict,flows,failed,octets_in,octets_out,first,last\n\
                 serves,TCP/443,2,talked,2,0,1500,9500,{first_and_last}\n\
                 serves,TCP/22,2,talked,2,1,3060,2000,{first_and_last}\n\
                 serves,TCP/3389,1,failed,1,1,0,0,{first_and_last}\n"
            )
        );
        let (peers, _) = told(&config, "peers 192.0.2.0/24 --since 1d --format csv").await;
        assert!(peers.contains(&format!("uses,198.51.100.7,TCP/22 TCP/443,talked,3,0,11500,4500,{first_and_last}\n")), "{peers}");
        let (volume, _) = told(&config, "volume --by service --top 1 --since 1d --format csv").await;
        assert_eq!(volume, "service,octets,share_percent,octets_sent,octets_received,flows\nTCP/443,11000,68.49,1500,9500,2\n");

        let (stations, _) = told(&config, "layer2 --since 1d --format csv").await;
        assert_eq!(
            stations,
            format!(
                "protocol,instance,source,destination,packets_out,packets_back,octets,first,last,sensor\n\
                 LLDP,,02:00:00:00:00:01,01:80:c2:00:00:0e,2,0,120,{first_and_last},plant1\n"
            )
        );
        let (rules, notes) = told(&config, "allow-rules 198.51.100.7 --since 1d --format csv").await;
        assert_eq!(
            rules,
            "protocol,ports,destinations,sources,seen_sources,permitted_sources\n\
             TCP,22,198.51.100.7,192.0.2.200,1,1\nTCP,443,198.51.100.7,192.0.2.4/31,2,2\n"
        );
        assert_eq!(
            notes,
            "3 conversations let in by 2 rules; left out: 2 denied, refused or unanswered, 0 one way only, 0 with a blank source\n"
        );
        let (wide, notes) = told(&config, "allow-rules 198.51.100.0/24 --aggregate 24 --since 1d --format csv").await;
        assert!(wide.contains("TCP,443,198.51.100.7,192.0.2.0/24,2,256\n"), "{wide}");
        assert!(notes.ends_with("1 rules are wider than what was seen: 256 sources may speak, 2 did\n"), "{notes}");
        for (format, expected) in
            [("nsg", "\"securityRules\""), ("nftables", "tcp dport 443 accept"), ("json", "\"seen_sources\":2")]
        {
            let (text, _) = told(&config, &format!("allow-rules 198.51.100.7 --since 1d --format {format}")).await;
            assert!(text.contains(expected), "{text}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_in_the_period_is_an_empty_report_and_a_wrong_period_says_so() {
        let home = tempfile::tempdir().unwrap();
        let config = made(home.path()).await;
        assert_eq!(
            told(&config, "ports 198.51.100.7 --since 2025-11-20 --until 2025-11-21").await.0.lines().last(),
            Some("(nothing)")
        );
        assert_eq!(told(&config, "deviations --since 1d --format json").await.0, "", "one window deviates from nothing");
        let args = Line::parse_from(["report", "volume", "--since", "1h", "--until", "2h"]).args;
        let wrong = report(&args, &config, Timestamp::from_secs(TEN), &mut io::sink(), &mut io::sink()).await.unwrap_err();
        assert_eq!(wrong.to_string(), "--since 1h is not before --until 2h");
    }
}
