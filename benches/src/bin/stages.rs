//! Times every stage of the line, counts one for callgrind, or weighs a flow.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use spanwatch_bench::memory;
use spanwatch_bench::plans::{PLANS, Plan, Scale, Work};

const USAGE: &str = "\
usage: stages [NAME...]                 nanoseconds per packet (or record) of every bench, or of those named (or whose names contain a word):
                                        median and least of 15 rounds. Rounds of all benches alternate, so that a noisy neighbour hits each
       stages --list                    their names
       stages --count NAME [ROUNDS]     one bench at a 64th of its size, for callgrind (see instructions.py): prints what it handled in
                                        `counted_round`
       stages --memory [FLOWS]          bytes per live flow, all tables included (1000000)";

const ROUNDS: usize = 15;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["--list"] => {
            PLANS.iter().for_each(|plan| println!("{}", plan.name));
            Ok(())
        }
        ["--count", name] => count(name, "1"),
        ["--count", name, rounds] => count(name, rounds),
        ["--memory"] => weigh("1000000"),
        ["--memory", flows] => weigh(flows),
        names if names.iter().any(|name| name.starts_with('-')) => Err(USAGE.into()),
        names => time(names),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

fn time(names: &[&str]) -> Result<(), String> {
    let is_meant = |plan: &Plan, name: &str| match PLANS.iter().any(|plan| plan.name == name) {
        true => plan.name == name,
        false => plan.name.contains(name),
    };
    let wanted = |plan: &&Plan| names.is_empty() || names.iter().any(|name| is_meant(plan, name));
    let plans: Vec<&Plan> = PLANS.iter().filter(wanted).collect();
    if plans.is_empty() {
        return Err(format!("no bench has a name like {}; `stages --list` lists them", names.join(" or ")));
    }
    let mut works: Vec<Box<dyn Work>> = plans.iter().map(|plan| (plan.prepare)(Scale::Whole)).collect();
    let mut figures = vec![Vec::new(); plans.len()];
    // The first round is for the caches, the branch predictor and the records' memory.
    for round in 0..=ROUNDS {
        for (work, figures) in works.iter_mut().zip(&mut figures) {
            let figure = timed_round(work.as_mut());
            if round > 0 {
                figures.push(figure);
            }
        }
    }
    for (plan, figures) in plans.iter().zip(&mut figures) {
        figures.sort_by(f64::total_cmp);
        println!("{:<14} median {:7.1} ns/{}   least {:7.1}", plan.name, figures[ROUNDS / 2], plan.unit, figures[0]);
    }
    Ok(())
}

/// Nanoseconds per packet of one round.
#[expect(clippy::disallowed_methods, reason = "a bench is a clock")]
fn timed_round(work: &mut dyn Work) -> f64 {
    let (mut handled, mut taken) = (0, Duration::ZERO);
    while handled < Scale::Whole.packets() {
        work.ready();
        let start = Instant::now();
        handled += black_box(work.pass());
        taken += start.elapsed();
    }
    taken.as_secs_f64() * 1e9 / handled as f64
}

fn count(name: &str, rounds: &str) -> Result<(), String> {
    let plan = PLANS.iter().find(|plan| plan.name == name).ok_or("no bench has this name; `stages --list` lists them")?;
    let rounds: usize = rounds.parse().map_err(|_| "ROUNDS is a number")?;
    let mut work = (plan.prepare)(Scale::Counted);
    // As when timing: the first round is not counted.
    let mut round = |pass: fn(&mut dyn Work) -> usize| {
        let mut handled = 0;
        while handled < Scale::Counted.packets() {
            work.ready();
            handled += pass(work.as_mut());
        }
        handled
    };
    round(|work| work.pass());
    let handled: usize = (0..rounds).map(|_| round(counted_round)).sum();
    println!("{handled} {}s", plan.unit);
    Ok(())
}

/// What callgrind is told to count, by this name.
#[inline(never)]
fn counted_round(work: &mut dyn Work) -> usize {
    black_box(work.pass())
}

fn weigh(flows: &str) -> Result<(), String> {
    let flows =
        flows.parse().ok().filter(|flows| (64..=8_000_000).contains(flows)).ok_or("FLOWS is a number from 64 to 8000000")?;
    for (name, kind) in memory::KINDS {
        let bytes = memory::bytes_per_flow(kind, flows).map_err(|error| format!("{name}: {error}"))?;
        println!("{name:<14} {bytes:7.1} bytes/flow");
    }
    Ok(())
}
