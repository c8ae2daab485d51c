//! The sensor on a live interface against the most that anyone could do there.
//!
//! The generator and the kernel's receiving half run on core 0, the reader on core 1. Two readers alternate: the sensor's whole line, and
//! a loop that only touches each frame. Every round is checked: sent = arrived + lost in the veth pair, arrived = the ledger's wire, and
//! the ledger adds up.

mod flood;
mod round;

use std::process::ExitCode;

use anyhow::ensure;
use clap::Parser;
use round::{Outcome, Reader, Rig};
use spanwatch_generator::traffic::{Order, Size, Traffic};
use spanwatch_generator::{cores, namespace};
use spanwatch_sensor::flow_table::FlowTableSettings;
use spanwatch_sensor::worker::MeterSettings;

/// Measures the sensor live: generator, veth pair, AF_XDP, whole line
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Only the rows whose name contains one of these
    rows: Vec<String>,
    /// Rounds of each kind; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Frames of a round, in millions
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    millions: u64,
    /// Slots of the ring; twice as many buffers of 2048 octets stand behind it
    #[arg(long, default_value_t = 131_072)]
    ring_slots: u32,
    /// Put the reader before all else on its core (SCHED_FIFO), where others use the machine, too
    #[arg(long)]
    reader_first: bool,
    /// Do not look for the highest rate without loss
    #[arg(long)]
    no_search: bool,
    /// Instead of all this: ten million conversations of one SYN each around an established connection
    #[arg(long)]
    flood: bool,
    /// Frames a second of the flood
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    flood_packets_per_sec: u64,
    /// Most flows at once under the flood
    #[arg(long, default_value_t = FlowTableSettings::default().flows_max)]
    flood_flows_max: usize,
}

impl Arguments {
    const fn rig(&self) -> Rig {
        Rig { ring_slots: self.ring_slots, reader_first: self.reader_first }
    }
}

/// What each row is measured with: its name, conversations, and length of frames.
const ROWS: [(&str, u32, Order, Size); 4] = [
    ("1 flow, 64 B", 1, Order::Random, Size::Least),
    ("10 k flows, 64 B", 10_000, Order::Random, Size::Least),
    ("1 M flows, 64 B", 1_000_000, Order::Random, Size::Least),
    ("10 k flows, 1514 B", 10_000, Order::InOrder, Size::Full),
];
/// Where the search for the highest rate without loss begins, and how it goes on, in frames a second.
const RATE_LEAST: u64 = 1_000_000;
const RATE_STEP: u64 = 250_000;
/// How long each rate is tried, and the highest one is proved, in seconds.
const TRIED_SECS: u64 = 3;
const PROVED_SECS: u64 = 10;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("live: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(cores::available() >= 2, "this takes two cores: one sends, the other reads");
    namespace::enter()?;
    namespace::make_veth()?;
    println!("load average at the start: {}", load());
    if arguments.flood {
        flood::run(arguments.flood_packets_per_sec, arguments.flood_flows_max, arguments.rig())?;
    } else {
        table(&arguments)?;
        if !arguments.no_search {
            search(&arguments)?;
        }
    }
    println!("load average at the end: {}", load());
    Ok(())
}

/// One row for each kind of traffic, both readers alternating.
fn table(arguments: &Arguments) -> anyhow::Result<()> {
    println!("medians of {} alternating rounds of {} million frames; Mpps", arguments.rounds, arguments.millions);
    println!(
        "| traffic | touched only | line | least to most | ratio | lost in veth | ring starved | ring full | metered of sent |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let wanted = |name: &str| arguments.rows.is_empty() || arguments.rows.iter().any(|part| name.contains(part.as_str()));
    for (name, flows, order, size) in ROWS.into_iter().filter(|row| wanted(row.0)) {
        let traffic = Traffic { count: arguments.millions * 1_000_000, flows, order, size, ..Traffic::default() };
        let meter = meter(flows);
        let (mut touched, mut line) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds {
            touched.push(round::run(&traffic, Reader::Touch, arguments.rig(), |_| {})?);
            line.push(round::run(&traffic, Reader::Line(&meter), arguments.rig(), |_| {})?);
        }
        let sum = |count: fn(&Outcome) -> u64| line.iter().map(count).sum::<u64>();
        let (ceiling, reached) = (spread(&touched), spread(&line));
        println!(
            "| {name} | {:.2} | {:.2} | {:.2} to {:.2} | {:.1} % | {} | {} | {} | {} of {} |",
            ceiling.1,
            reached.1,
            reached.0,
            reached.2,
            100.0 * reached.1 / ceiling.1,
            sum(|outcome| outcome.sent.frames - outcome.arrived),
            sum(|outcome| outcome.ledger.dropped.ring_starved),
            sum(|outcome| outcome.ledger.dropped.ring_full),
            sum(|outcome| outcome.ledger.metered),
            sum(|outcome| outcome.sent.frames),
        );
    }
    Ok(())
}

/// The highest paced rate at which the line loses nothing, with a million flows.
fn search(arguments: &Arguments) -> anyhow::Result<()> {
    let at = |packets_per_sec: u64, secs: u64| {
        let flows = 1_000_000;
        let traffic = Traffic { count: packets_per_sec * secs, packets_per_sec, flows, ..Traffic::default() };
        round::run(&traffic, Reader::Line(&meter(flows)), arguments.rig(), |_| {})
    };
    let (mut rate, mut highest) = (RATE_LEAST, None);
    loop {
        let outcome = at(rate, TRIED_SECS)?;
        println!(
            "{:.2} Mpps asked, {:.2} arrived for {TRIED_SECS} s: {} lost",
            rate as f64 / 1e6,
            outcome.arrived_mpps(),
            outcome.lost()
        );
        if outcome.lost() > 0 {
            break;
        }
        if outcome.arrived_mpps() < 0.98 * rate as f64 / 1e6 {
            println!("core 0 neither makes nor receives more: the limit found is the generator's, not the sensor's");
            break;
        }
        highest = Some(rate);
        rate += RATE_STEP;
    }
    while let Some(rate) = highest {
        let outcome = at(rate, PROVED_SECS)?;
        println!(
            "{:.2} Mpps asked, {:.2} arrived for {PROVED_SECS} s: {} lost",
            rate as f64 / 1e6,
            outcome.arrived_mpps(),
            outcome.lost()
        );
        if outcome.lost() == 0 {
            println!("highest rate without loss, 1 M flows: {:.2} Mpps", rate as f64 / 1e6);
            return Ok(());
        }
        highest = (rate > RATE_LEAST).then(|| rate - RATE_STEP);
    }
    println!("highest rate without loss, 1 M flows: not even {:.2} Mpps could be held", RATE_LEAST as f64 / 1e6);
    Ok(())
}

/// The sensor's default settings, with room for these flows.
fn meter(flows: u32) -> MeterSettings {
    let table = FlowTableSettings::default();
    let flow_table = FlowTableSettings { flows_max: table.flows_max.max(flows as usize), ..table };
    MeterSettings { flow_table, ..MeterSettings::default() }
}

/// Least, median and most of the rates.
fn spread(outcomes: &[Outcome]) -> (f64, f64, f64) {
    let mut rates: Vec<f64> = outcomes.iter().map(Outcome::mpps).collect();
    rates.sort_by(f64::total_cmp);
    (rates[0], rates[rates.len() / 2], rates[rates.len() - 1])
}

/// How busy the machine is, for whoever reads the figures.
fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}
