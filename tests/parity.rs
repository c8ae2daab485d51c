//! Every rule's exact form against SQL: the rows of generated Azure files, once through the detectors, once through the query engine with
//! the rule restated in `tests/parity/az*.sql`. Both must give the same keys, bins and values, all of them.
//!
//! Three rules go on where SQL ends: AZ-08, 10 and 15 take their series from `series*.sql` and are judged by `support/anomalies.rs`,
//! which is written from the specification. `TUPLES=1100000 cargo test --release --workspace --test parity` takes more rows.

#[path = "support/anomalies.rs"]
mod anomalies;
#[path = "support/azure/mod.rs"]
mod azure;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use azure::{DAY, Traffic, render};
use serde_json::{Map, Value};
use spanwatch_azure::{Options, Reader};
use spanwatch_collector::store::{Format, Importer, StoreSettings, query};
use spanwatch_common::flow::FlowRecord;
use spanwatch_detect::rules::CATALOGUE;
use spanwatch_detect::{Detection, Finding, Mode, RuleFile, Variant};
use tokio::runtime::Runtime;

/// A day and an hour in the microseconds of the bins.
const DAY_MICROS: i64 = DAY * 1_000_000;
const HOUR_MICROS: i64 = 3_600_000_000;

/// Key fields, the bin's beginning in microseconds (`bin`) among them.
type Key = BTreeMap<String, String>;
/// What a rule answers: every key with its value.
type Answer = BTreeMap<Key, f64>;

/// A table with rows in it, and a way to ask.
struct Table {
    runtime: Runtime,
    directory: tempfile::TempDir,
}

impl Table {
    fn new() -> Self {
        Self { runtime: Runtime::new().expect("threads"), directory: tempfile::tempdir().expect("a directory") }
    }

    fn settings(&self) -> StoreSettings {
        StoreSettings { directory: self.directory.path().to_owned(), ..StoreSettings::default() }
    }

    /// Reads what the traffic's files say, keeps it, and shows every record to `take`; says how many there were.
    fn import(&self, traffic: &Traffic, mut take: impl FnMut(&FlowRecord)) -> usize {
        let (mut importer, _) = self.runtime.block_on(Importer::open(self.settings(), "parity")).expect("a new table");
        let mut rows = 0;
        render(traffic.tuples.clone(), 1, |file| {
            let mut records = Vec::new();
            let mut reader = Reader::new(Options::default()).named(&file.path);
            reader.push(file.text.as_bytes(), |row| records.push(row.to_record())).expect("a good file");
            let finished = reader.finish(|row| records.push(row.to_record())).expect("a good file");
            assert_eq!((records.len(), finished.counts.duplicates), (file.told.len(), file.duplicates), "{}", file.path);
            rows += records.len();
            records.iter().for_each(&mut take);
            assert!(importer.push(records).is_ok(), "room in memory");
            if importer.wants_commit() {
                self.runtime.block_on(importer.commit(b"")).expect("room on the disk");
            }
        });
        self.runtime.block_on(importer.commit(b"")).expect("room on the disk");
        rows
    }

    /// The answer of a statement in `tests/parity`.
    fn ask(&self, name: &str) -> Answer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let sql = format!("WITH rows AS (\n{}\n)\nSELECT * FROM (\n{}\n)", read("rows.sql"), read(&format!("{name}.sql")));
        let mut lines = Vec::new();
        let asked = self.runtime.block_on(query(&self.settings(), &sql, Format::Json, &mut lines));
        asked.unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut answer = Answer::new();
        for line in String::from_utf8(lines).expect("text").lines() {
            let mut fields: Map<String, Value> = serde_json::from_str(line).expect("JSON");
            let value = fields.remove("value").and_then(|value| value.as_f64()).unwrap_or_else(|| panic!("no value: {line}"));
            assert!(answer.insert(key(fields), value).is_none(), "{name} says it twice: {line}");
        }
        answer
    }
}

fn key(fields: Map<String, Value>) -> Key {
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    fields.into_iter().map(|(name, value)| (name, text(value))).collect()
}

/// What the detectors found, by rule.
fn answers(findings: &[Finding]) -> BTreeMap<&'static str, Answer> {
    let mut answers: BTreeMap<&'static str, Answer> = BTreeMap::new();
    for finding in findings {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(&finding.subject) else { panic!("a subject has fields") };
        fields.insert("bin".to_owned(), Value::from(finding.window.start.as_nanos() / 1_000));
        let before = answers.entry(finding.rule.id).or_default().insert(key(fields), finding.evidence.value);
        assert_eq!(before, None, "told twice: {finding:?}");
    }
    answers
}

fn bin(key: &Key) -> i64 {
    key["bin"].parse().expect("a number")
}

/// Every series of `answer`: the key without its bin, and value by bin.
fn series(answer: Answer) -> BTreeMap<Key, BTreeMap<i64, f64>> {
    let mut series: BTreeMap<Key, BTreeMap<i64, f64>> = BTreeMap::new();
    for (mut key, value) in answer {
        let bin = bin(&key);
        key.remove("bin");
        series.entry(key).or_default().insert(bin, value);
    }
    series
}

/// Values from `from` to `to`, 0 where there are none.
fn dense(values: &BTreeMap<i64, f64>, from: i64, to: i64, step: i64) -> Vec<f64> {
    (from..to).step_by(step as usize).map(|at| values.get(&at).copied().unwrap_or(0.0)).collect()
}

/// AZ-08 and AZ-10: the score of each day that has rows, over the fourteen days that it ends; told when its whole part reaches `least`.
fn unusual_days(counts: Answer, least: f64) -> Answer {
    let mut answer = Answer::new();
    for (key, counts) in series(counts) {
        for &day in counts.keys() {
            let scores = anomalies::scores(&dense(&counts, day - 13 * DAY_MICROS, day + DAY_MICROS, DAY_MICROS));
            if let Some(&score) = scores.last().filter(|score| score.trunc() >= least) {
                let bin = ("bin".to_owned(), day.to_string());
                answer.insert(key.clone().into_iter().chain([bin]).collect(), score);
            }
        }
    }
    answer
}

/// AZ-15: at the end of each day, hours of the day before it that stand out of the thirteen days up to then, and the nine sources
/// that sent most in any of them.
fn outbound(sent: Answer, sources: Answer) -> Answer {
    let sent = series(sent);
    let bins = || sent.values().flat_map(|values| values.keys());
    let (Some(first), Some(last)) = (bins().min(), bins().max()) else { return Answer::new() };
    let mut answer = Answer::new();
    for now in (first - first % DAY_MICROS..=last + DAY_MICROS).step_by(DAY_MICROS as usize).skip(1) {
        let (from, to) = (now - 14 * DAY_MICROS, now - DAY_MICROS);
        let mut odd = BTreeSet::new();
        for (key, values) in &sent {
            let scores = anomalies::scores(&dense(values, from, to, HOUR_MICROS));
            let hours = (from..to).step_by(HOUR_MICROS as usize).zip(scores);
            odd.extend(
                hours.filter(|&(at, score)| score > 5.0 && at > to - DAY_MICROS).map(|(at, _)| (key["observer"].clone(), at)),
            );
        }
        let mut loud: Vec<(&Key, &f64)> =
            sources.iter().filter(|(key, _)| odd.contains(&(key["observer"].clone(), bin(key)))).collect();
        loud.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        answer.extend(loud.into_iter().take(9).map(|(key, &value)| (key.clone(), value)));
    }
    answer
}

/// The first differences, for a person.
fn differences(ours: &Answer, theirs: &Answer) -> Vec<String> {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0);
    let only = |answer: &Answer, other: &Answer, who: &str| {
        let missing = answer.iter().filter(|(key, _)| !other.contains_key(*key));
        missing.map(|(key, value)| format!("only {who}: {key:?} {value}")).take(5).collect::<Vec<_>>()
    };
    let mut told = only(ours, theirs, "the detector");
    told.extend(only(theirs, ours, "SQL"));
    let both = ours.iter().filter_map(|(key, &ours)| theirs.get(key).map(|&theirs| (key, ours, theirs)));
    told.extend(both.filter(|&(_, a, b)| !near(a, b)).map(|(key, a, b)| format!("{key:?}: {a}, SQL {b}")).take(5));
    told
}

#[test]
fn exact_forms_answer_as_the_same_rules_in_sql() {
    let tuples = std::env::var("TUPLES").ok().and_then(|n| n.parse().ok()).unwrap_or(150_000);
    let traffic = Traffic::new(1, 15, tuples);
    let mut rules = RuleFile::shipped().expect("the rules as shipped");
    rules.set_variants(&[Variant::Exact]);
    let mut detection = Detection::new(&rules, Mode::Replay);
    let table = Table::new();
    let rows = table.import(&traffic, |record| detection.observe("", record));
    let mut findings = Vec::new();
    detection.finish(&mut findings);
    for state in detection.states() {
        assert_eq!((state.late, state.evicted, state.refused), (0, 0, 0), "{state:?}");
    }
    let mut ours = answers(&findings);
    println!("{rows} rows");
    let mut failed = Vec::new();
    // Those that restate a public rule.
    for rule in CATALOGUE.iter().filter(|entry| !entry.public_id.is_empty()).map(|entry| entry.id) {
        let theirs = match rule {
            "AZ-08" => unusual_days(table.ask("series08"), 5.0),
            "AZ-10" => unusual_days(table.ask("series10"), 6.0),
            "AZ-15" => outbound(table.ask("series15"), table.ask("sources15")),
            _ => table.ask(&rule.replace("AZ-", "az")),
        };
        let ours = ours.remove(rule).unwrap_or_default();
        println!("{rule}: {} rows", theirs.len());
        failed.extend(differences(&ours, &theirs).into_iter().map(|line| format!("{rule}: {line}")));
        for verdict in traffic.verdicts.iter().filter(|verdict| verdict.rule == rule) {
            let is_it = |key: &Key| key.get(verdict.field) == Some(&verdict.value) && bin(key) >= verdict.from_ms * 1_000;
            if theirs.keys().any(is_it) != verdict.reported {
                failed.push(format!("{verdict:?}: known by construction, and SQL says otherwise"));
            }
        }
    }
    assert!(failed.is_empty(), "{} differences:\n{}", failed.len(), failed.join("\n"));
}
