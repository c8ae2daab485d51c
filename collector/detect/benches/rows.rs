//! Rows through the streaming detectors.
//!
//! ```text
//! cargo bench -p spanwatch-detect                 every mix through all rules as shipped, and what they hold afterwards
//! cargo bench -p spanwatch-detect -- rules        every rule by itself, over the sensor's mix
//! cargo bench -p spanwatch-detect -- threads      all rules on 1, 2 and 4 threads
//! cargo bench -p spanwatch-detect -- once sensor  one round of one mix, for callgrind:
//!     valgrind --tool=callgrind target/release/deps/rows-… once sensor [rule]
//! ```
//!
//! Times are those of the processor, so a noisy neighbour counts little; what counts on such a machine are instructions per row.

#[path = "rows/mix.rs"]
mod mix;

use std::hint::black_box;
use std::time::Instant;

use mix::Mix;
use spanwatch_common::flow::FlowRecord;
use spanwatch_detect::rules::CATALOGUE;
use spanwatch_detect::{Detection, Mode, RuleFile};

/// As in the collector.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rows of a round.
const ROWS: usize = 400_000;
const ROUNDS: usize = 5;
/// Rows between two polls: 0.2 s of 20,000 rows/s.
const POLL_EVERY: usize = 4_096;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["once", mix, ref rule @ ..] => once(mix, rule.first().copied()),
        ["rules"] => by_rule(),
        ["threads"] => by_threads(),
        _ => together(),
    }
}

fn rules(only: Option<&str>) -> RuleFile {
    let mut rules = RuleFile::shipped().expect("the rules as shipped");
    if let Some(only) = only {
        rules.keep_only(&[only.to_owned()]).expect("a rule");
    }
    rules
}

/// As in the running collector: windows close on the way.
fn stream(rules: &RuleFile, threads: usize, records: &[FlowRecord]) -> Detection {
    let mut detection = Detection::new(rules, Mode::Stream).with_threads(threads);
    let mut findings = Vec::new();
    for some in records.chunks(POLL_EVERY) {
        // The clock first, or the records would be from the future.
        detection.poll(some.last().map(FlowRecord::last).unwrap_or_default(), &mut findings);
        black_box(&findings);
        findings.clear();
        some.iter().for_each(|record| detection.observe("sensor-1", black_box(record)));
    }
    detection.poll(records.last().map(FlowRecord::last).unwrap_or_default(), &mut findings);
    assert_eq!(detection.counters().future, 0);
    detection
}

fn once(mix: &str, rule: Option<&str>) {
    let mix = Mix::ALL.into_iter().find(|known| known.name() == mix).expect("sensor, azure or flood");
    let records = mix.records(ROWS);
    // Without any rule: what making the rows costs, to be taken off.
    let rules = rule.map_or_else(|| rules(None), |rule| if rule == "none" { none() } else { rules(Some(rule)) });
    let detection = stream(&rules, 1, &records);
    println!("{} rows, {} findings", detection.counters().observed, detection.counters().findings);
}

fn none() -> RuleFile {
    let mut rules = RuleFile::default();
    rules.set_variants(&[]);
    rules
}

fn together() {
    let rules = rules(None);
    for mix in Mix::ALL {
        let records = mix.records(ROWS);
        print(mix.name(), || stream(&rules, 1, &records));
        let mut held: Vec<(String, usize, usize)> = stream(&rules, 1, &records)
            .states()
            .map(|state| (format!("{} {}", state.rule, state.variant), state.keys, state.bytes))
            .collect();
        held.sort_by_key(|&(_, _, bytes)| std::cmp::Reverse(bytes));
        let all: usize = held.iter().map(|(.., bytes)| bytes).sum();
        println!("  holds {:.1} MB", all as f64 / 1e6);
        for (name, keys, bytes) in held.into_iter().take(5) {
            println!("  {name:<14} {keys:>8} keys {:>8.2} MB", bytes as f64 / 1e6);
        }
    }
}

fn by_rule() {
    let records = Mix::Sensor.records(ROWS);
    let none = none();
    print("no rule", || stream(&none, 1, &records));
    for entry in CATALOGUE {
        let only = rules(Some(entry.id));
        print(entry.id, || stream(&only, 1, &records));
    }
}

/// By the clock on the wall: processor time only says how much is done twice.
#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn by_threads() {
    let (rules, records) = (rules(None), Mix::Sensor.records(ROWS));
    for threads in [1, 2, 4] {
        let mut rates: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let begun = Instant::now();
                black_box(stream(&rules, threads, &records));
                ROWS as f64 / begun.elapsed().as_secs_f64() / 1e6
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        println!("{threads} threads  {:>8.2} Mrows/s  best {:.2}", rates[ROUNDS / 2], rates[ROUNDS - 1]);
    }
}

/// Millions of rows per second of processor time: the median of the rounds, and the best.
fn print(name: &str, run: impl Fn() -> Detection) {
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = busy_nanos();
            black_box(run());
            ROWS as f64 * 1e3 / (busy_nanos() - begun) as f64
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{name:<10} {:>8.2} Mrows/s  best {:.2}", rates[ROUNDS / 2], rates[ROUNDS - 1]);
}

/// How long this thread has had a processor.
fn busy_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    text.split(' ').next().and_then(|first| first.parse().ok()).expect("a number of nanoseconds")
}
