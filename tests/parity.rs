//! Every rule's exact form against SQL: the rows of generated Azure files, once through the detectors and once through the query
//! engine with the rule restated in `tests/parity/*.sql`. Both must give the same keys, bins and values, all of them.

#[path = "support/azure/mod.rs"]
mod azure;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use azure::{Traffic, Verdict, render};
use serde_json::{Map, Value};
use spanwatch_azure::{Options, Reader};
use spanwatch_collector::store::{Format, Importer, StoreSettings, query};
use spanwatch_common::flow::FlowRecord;
use tokio::runtime::Runtime;

/// The rules in SQL, `az01.sql` and so on, by name: `AZ-01`.
fn statements() -> BTreeMap<String, String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let files = fs::read_dir(&directory).expect("the directory of the rules").map(|entry| entry.expect("a file").path());
    let mut statements = BTreeMap::new();
    for path in files {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
        if let Some(number) = stem.strip_prefix("az") {
            statements.insert(format!("AZ-{number}"), fs::read_to_string(&path).expect("a statement"));
        }
    }
    statements
}

/// What a rule answers: key fields and the bin's beginning in microseconds, as text, with the value.
type Answer = BTreeMap<String, f64>;

/// `src=10.1.1.0 bin=1793491200000000`, fields in alphabetical order.
fn key<'f>(fields: impl IntoIterator<Item = (&'f str, String)>) -> String {
    let sorted: BTreeMap<&str, String> = fields.into_iter().collect();
    sorted.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

fn settings(directory: &Path) -> StoreSettings {
    StoreSettings { directory: directory.to_owned(), ..StoreSettings::default() }
}

/// Writes the rows of every file into a table, and hands each to `take`.
fn import(runtime: &Runtime, directory: &Path, traffic: &Traffic, mut take: impl FnMut(&FlowRecord)) -> usize {
    runtime.block_on(async {
        let (mut importer, _) = Importer::open(settings(directory), "parity").await.expect("a new table");
        let mut files = Vec::new();
        render(traffic.tuples.clone(), 1, |file| files.push(file));
        let mut rows = 0;
        for file in files {
            let mut records = Vec::new();
            let mut reader = Reader::new(Options::default()).named(&file.path);
            reader.push(file.text.as_bytes(), |row| records.push(row.to_record())).expect("a good file");
            let finished = reader.finish(|row| records.push(row.to_record())).expect("a good file");
            assert_eq!((records.len(), finished.counts.duplicates), (file.told.len(), file.duplicates), "{}", file.path);
            rows += records.len();
            records.iter().for_each(&mut take);
            assert!(importer.push(records).is_ok(), "room in memory");
            if importer.wants_commit() {
                importer.commit(b"").await.expect("room on the disk");
            }
        }
        importer.commit(b"").await.expect("room on the disk");
        rows
    })
}

/// Asks the query engine for a rule's answer.
fn by_sql(runtime: &Runtime, directory: &Path, sql: &str) -> Answer {
    let rows = include_str!("parity/rows.sql");
    let mut lines = Vec::new();
    let sql = format!("WITH rows AS (\n{rows}\n)\nSELECT * FROM (\n{sql}\n)");
    runtime.block_on(query(&settings(directory), &sql, Format::Json, &mut lines)).unwrap_or_else(|error| panic!("{error}\n{sql}"));
    let mut answer = Answer::new();
    for line in String::from_utf8(lines).expect("text").lines() {
        let mut fields: Map<String, Value> = serde_json::from_str(line).expect("JSON");
        let value = fields.remove("value").and_then(|value| value.as_f64()).unwrap_or_else(|| panic!("a value: {line}"));
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let key = key(fields.iter().map(|(name, value)| (name.as_str(), text(value))));
        assert!(answer.insert(key, value).is_none(), "twice: {line}");
    }
    answer
}

/// What is known by construction.
fn check_verdict(verdict: &Verdict, answer: &Answer) {
    let field = format!("{}={}", verdict.field, verdict.value);
    let found = answer.keys().filter(|key| key.split(' ').any(|part| part == field)).any(|key| {
        let bin = key.split(' ').find_map(|part| part.strip_prefix("bin=")).and_then(|bin| bin.parse::<i64>().ok());
        bin.is_some_and(|bin| bin >= verdict.from_ms * 1_000)
    });
    assert_eq!(found, verdict.reported, "{verdict:?}");
}

#[test]
fn exact_forms_answer_as_the_same_rules_in_sql() {
    let tuples = std::env::var("TUPLES").ok().and_then(|n| n.parse().ok()).unwrap_or(150_000);
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = Runtime::new().expect("threads");
    let traffic = Traffic::new(1, 15, tuples);
    let rows = import(&runtime, directory.path(), &traffic, |_| {});
    println!("{rows} rows");
    for (rule, sql) in statements() {
        let answer = by_sql(&runtime, directory.path(), &sql);
        println!("{rule}: {} rows", answer.len());
        for verdict in traffic.verdicts.iter().filter(|verdict| verdict.rule == rule) {
            check_verdict(verdict, &answer);
        }
    }
}
