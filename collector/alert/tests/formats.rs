//! Each format against files that were written by hand from its specification. `VERSION` in them stands for our own.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may fail loudly, and its name says what it is for")]

use std::fs;
use std::path::PathBuf;

use serde_json::Value as Json;
use spanwatch_alert::Alert;
use spanwatch_alert::deliver::format::syslog::{Framing, Header};
use spanwatch_alert::deliver::format::{Format, fit, map, ocsf};

const CASES: [&str; 3] = ["scan", "beacon", "health"];

fn golden(case: &str, file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim_end_matches('\n').replace("VERSION", env!("CARGO_PKG_VERSION"))
}

fn alert(case: &str) -> Alert {
    serde_json::from_str(&golden(case, "alert.json")).unwrap()
}

fn header() -> Header {
    Header { facility: 16, hostname: "collector1".to_owned(), enterprise_number: 32_473 }
}

#[track_caller]
fn assert_json(case: &str, file: &str, written: &str) {
    assert!(!written.contains('\n'), "{case}/{file} takes more than one line");
    let (expected, written): (Json, Json) =
        (serde_json::from_str(&golden(case, file)).unwrap(), serde_json::from_str(written).unwrap());
    assert_eq!(format!("{written:#}"), format!("{expected:#}"), "{case}/{file}");
}

#[test]
fn json_formats_are_what_their_schemas_ask_for() {
    for case in CASES {
        let alert = alert(case);
        assert_json(case, "ocsf.json", &Format::Ocsf.line(&alert));
        assert_json(case, "ecs.json", &Format::Ecs.line(&alert));
        assert_json(case, "asim.json", &Format::Asim.line(&alert));
    }
}

#[test]
fn our_own_line_loses_nothing() {
    for case in CASES {
        let line = Format::Ndjson.line(&alert(case));
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Alert>(&line).unwrap(), alert(case), "{case}");
    }
}

#[test]
fn rows_of_evidence_are_network_activity_that_names_its_alert() {
    let written = Json::Array(ocsf::network_activity(&alert("scan"))).to_string();
    assert_json("scan", "activity.json", &written);
    assert!(ocsf::network_activity(&alert("health")).is_empty());
}

#[test]
fn cef_and_syslog_are_written_and_escaped_to_the_letter() {
    for case in CASES {
        assert_eq!(Format::Cef.line(&alert(case)), golden(case, "cef.txt"), "{case}");
        let message = header().message(&alert(case), Format::Cef, 8_192);
        assert_eq!((message.text, message.shortened), (golden(case, "syslog.txt"), false), "{case}");
    }
}

#[test]
fn a_message_that_is_too_long_loses_evidence_before_words_and_never_its_form() {
    let mut alert = alert("scan");
    for number in 0..8 {
        let mut row = alert.evidence.rows[0].clone();
        row.at += number;
        alert.evidence.rows.push(row);
    }
    let whole = header().message(&alert, Format::Ndjson, usize::MAX);
    let slim = header().message(&alert, Format::Ndjson, 2_048);
    assert!(!whole.shortened && whole.text.len() > 2_048 && slim.shortened && slim.text.len() <= 2_048);
    let body: Alert = serde_json::from_str(&slim.text[slim.text.find('{').unwrap()..]).unwrap();
    assert_eq!((&body.sentence, body.evidence.rows.len(), body.evidence.attempts), (&alert.sentence, 0, Some(412)));

    // Two bytes for each letter, and an escape for each =.
    alert.sentence = "é=".repeat(2_000);
    let short = header().message(&alert, Format::Cef, 2_048);
    assert!(short.shortened && (2_000..=2_048).contains(&short.text.len()), "{}", short.text.len());
    assert!(short.text.contains(" cs1=Network Service Discovery (T1046)") && short.text.ends_with('…'), "{}", short.text);
    assert!(!short.text.ends_with("\\…"));

    for bytes_max in [0, 1, 100, 700] {
        assert!(fit(&alert, bytes_max, |alert| Format::Ecs.line(alert)).text.len() <= bytes_max);
    }
}

#[test]
fn messages_on_a_stream_are_counted_in_octets_or_end_with_a_line_feed() {
    let mut stream = Vec::new();
    Framing::OctetCounting.put("é!", &mut stream);
    Framing::Lf.put("é\n!", &mut stream);
    assert_eq!(stream, "3 é!é !\n".as_bytes());
}

#[test]
fn the_map_prints_a_row_for_each_field() {
    let table = map::markdown();
    assert_eq!(table.lines().count(), 2 + map::MAP.len());
    assert!(table.contains("| `id` | `externalId` | `finding_info.uid` | `event.id` | `EventUid` |\n"));
}
