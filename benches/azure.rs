//! Azure's files to rows, and rows through the rules.
//!
//! ```text
//! cargo bench --bench azure               every bench: MB/s or rows/s of one core's time, median and best of 3 rounds
//! cargo bench --bench azure -- parse      only those whose name contains "parse"
//! cargo bench --bench azure -- AZ-        every rule by itself, in both forms
//! ```

#[path = "../tests/support/azure/mod.rs"]
mod azure;

use std::hint::black_box;
use std::sync::LazyLock;

use azure::{Interface, Traffic, Tuple, render};
use spanwatch_azure::{Options, Reader};
use spanwatch_common::flow::FlowRecord;
use spanwatch_detect::rules::CATALOGUE;
use spanwatch_detect::{Detection, Mode, RuleFile, Variant};

/// As in the collector.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 3;
/// As a file is read.
const CHUNK: usize = 1 << 18;

/// Work that can be repeated: `run` does one round and says how many units it handled.
struct Bench {
    name: String,
    unit: &'static str,
    run: Box<dyn FnMut() -> usize>,
}

/// Makes the work of a bench, when it is its turn.
type Maker = Box<dyn Fn() -> Box<dyn FnMut() -> usize>>;

/// An hour of one busy interface: about 300,000 tuples in sixty records.
fn busy_hour(interface: u8) -> Vec<u8> {
    let tuples = Traffic::new(3, 15, 300_000).tuples;
    let hour = |tuple: Tuple| Tuple {
        interface: Interface(interface),
        at_ms: azure::EPOCH * 1_000 + tuple.at_ms % 3_600_000,
        protocol: if tuple.protocol == 1 { 6 } else { tuple.protocol },
        ..tuple
    };
    let mut text = Vec::new();
    render(tuples.into_iter().map(hour).collect(), 3, |file| text.append(&mut file.text.into_bytes()));
    text
}

fn parse(interface: u8) -> Box<dyn FnMut() -> usize> {
    let text = busy_hour(interface);
    Box::new(move || {
        let mut rows = 0;
        let mut reader = Reader::new(Options::default());
        for chunk in text.chunks(CHUNK) {
            reader.push(black_box(chunk), |row| rows += usize::from(black_box(row).destination_port > 0)).expect("a good file");
        }
        reader.finish(|_| rows += 1).expect("a good file");
        black_box(rows);
        text.len()
    })
}

/// The rows of fifteen days of generated files, in the order of the files.
static RECORDS: LazyLock<Vec<FlowRecord>> = LazyLock::new(|| {
    let mut records = Vec::new();
    render(Traffic::new(1, 15, 400_000).tuples, 1, |file| {
        let mut reader = Reader::new(Options::default());
        reader.push(file.text.as_bytes(), |row| records.push(row.to_record())).expect("a good file");
        reader.finish(|row| records.push(row.to_record())).expect("a good file");
    });
    records
});

fn detect(rules: RuleFile) -> Box<dyn FnMut() -> usize> {
    let records = &*RECORDS;
    Box::new(move || {
        let mut detection = Detection::new(&rules, Mode::Replay);
        let mut findings = Vec::new();
        for record in records {
            detection.observe("", black_box(record));
        }
        detection.finish(&mut findings);
        black_box(&findings);
        records.len()
    })
}

/// As in the running collector: in the order of time, windows close on the way.
fn stream(rules: RuleFile) -> Box<dyn FnMut() -> usize> {
    let mut records = RECORDS.clone();
    records.sort_by_key(FlowRecord::first);
    Box::new(move || {
        let mut detection = Detection::new(&rules, Mode::Stream);
        let mut findings = Vec::new();
        for some in records.chunks(4_096) {
            // The clock first, or the records would be from the future.
            detection.poll(some.last().map(FlowRecord::first).unwrap_or_default(), &mut findings);
            black_box(&findings);
            findings.clear();
            some.iter().for_each(|record| detection.observe("", black_box(record)));
        }
        detection.finish(&mut findings);
        assert_eq!(detection.counters().future, 0);
        detection.counters().observed as usize
    })
}

fn rules(variants: &[Variant], only: Option<&str>) -> RuleFile {
    let mut rules = RuleFile::shipped().expect("the rules as shipped");
    rules.set_variants(variants);
    if let Some(rule) = only {
        rules.keep_only(&[rule.to_owned()]).expect("a rule");
    }
    rules
}

fn main() {
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    let mut makers: Vec<(String, &'static str, Maker)> = vec![
        ("parse_vnet".to_owned(), "MB/s", Box::new(|| parse(0))),
        ("parse_nsg_v2".to_owned(), "MB/s", Box::new(|| parse(5))),
        ("rules_shipped".to_owned(), "Mrows/s", Box::new(|| detect(RuleFile::shipped().expect("the rules as shipped")))),
        ("stream_shipped".to_owned(), "Mrows/s", Box::new(|| stream(RuleFile::shipped().expect("the rules as shipped")))),
        ("rules_exact".to_owned(), "Mrows/s", Box::new(|| detect(rules(&[Variant::Exact], None)))),
        ("rules_fixed".to_owned(), "Mrows/s", Box::new(|| detect(rules(&[Variant::Fixed], None)))),
    ];
    if filter.starts_with("AZ") {
        for entry in CATALOGUE {
            for variant in [Variant::Exact, Variant::Fixed] {
                let make = move || detect(rules(&[variant], Some(entry.id)));
                makers.push((format!("{} {variant}", entry.id), "Mrows/s", Box::new(make)));
            }
        }
    }
    for (name, unit, make) in makers.into_iter().filter(|(name, ..)| name.contains(&filter)) {
        print(Bench { name, unit, run: make() });
    }
}

/// Millions of units per second of processor time: the median of the rounds, and the best.
fn print(mut bench: Bench) {
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = busy_nanos();
            let units = (bench.run)();
            units as f64 * 1e3 / (busy_nanos() - begun) as f64
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{:<16} {:>8.2} {:<8} best {:.2}", bench.name, rates[ROUNDS / 2], bench.unit, rates[ROUNDS - 1]);
}

/// How long this thread has had a processor: what a noisy neighbour takes does not count.
fn busy_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    text.split(' ').next().and_then(|first| first.parse().ok()).expect("a number of nanoseconds")
}
