//! Sends packets through a veth pair in a network namespace of its own, counts them at the other end, and prints both as JSON.

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use clap::Parser;
use serde::Serialize;
use spanwatch_generator::cores;
use spanwatch_generator::generator::{self, Counter, Sent};
use spanwatch_generator::namespace::{self, RECEIVER, SENDER};
use spanwatch_generator::traffic::Traffic;

/// Makes packets on one core, in a network namespace that is gone afterwards
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    traffic: Traffic,
    /// The core that makes the packets, and receives them
    #[arg(long, default_value_t = 0)]
    core: usize,
}

/// What is printed.
#[derive(Serialize)]
struct Report<'a> {
    asked: &'a Traffic,
    sent: Sent,
    /// By the program at the other end.
    received: u64,
    received_octets: u64,
    /// By the other end itself; less than sent when its ring of 256 frames was full.
    received_by_veth: u64,
    packets_per_sec: f64,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spanwatch-generator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let Arguments { traffic, core } = Arguments::parse();
    namespace::enter()?;
    namespace::make_veth()?;
    cores::pin(core).with_context(|| format!("run on core {core}"))?;
    let counter = Counter::attach(namespace::index(RECEIVER)?)?;
    let sent = generator::send(&traffic, namespace::index(SENDER)?, &AtomicBool::new(false))?;
    let (received, received_octets) = counter.seen()?;
    let report = Report {
        asked: &traffic,
        sent,
        received,
        received_octets,
        received_by_veth: namespace::counter(RECEIVER, "rx_packets")?,
        packets_per_sec: sent.frames as f64 / sent.took().as_secs_f64(),
    };
    println!("{}", serde_json::to_string_pretty(&report).context("write JSON")?);
    Ok(())
}
