//! The life of an alert, in memory and on disk.

use super::*;
use crate::file::{AlertFile, Settings, read};
use crate::terminal::{Colour, line};
use crate::{AlertBook, AlertSink, AlertState, Class};

/// What the book tells about each finding: states and hosts.
fn told(book: &mut AlertBook, findings: &[Finding]) -> Vec<(AlertState, f64)> {
    let mut out = Vec::new();
    findings.iter().for_each(|finding| book.take(finding, finding.last, &mut out));
    out.iter().map(|alert| (alert.state, alert.evidence.value)).collect()
}

#[test]
fn an_alert_opens_is_updated_rather_than_repeated_and_closes() {
    use AlertState::{Closed, Open, Updated};
    use Stage::{Crossed, Grown};
    let mut book = AlertBook::new(Class::Detection, 16);
    assert_eq!(told(&mut book, &[finding(0, Crossed, 7)]), [(Open, 7.0)]);
    assert_eq!(told(&mut book, &[finding(0, Grown, 22)]), [], "less than √10 times what was told");
    assert_eq!(told(&mut book, &[finding(0, Grown, 23)]), [(Updated, 23.0)], "more than 22.1");
    assert_eq!(told(&mut book, &[finding(0, Stage::Closed, 25)]), [(Updated, 25.0)], "the final numbers of its first window");
    assert_eq!(told(&mut book, &[finding(60, Crossed, 7), finding(60, Stage::Closed, 26)]), [], "nothing new");
    assert_eq!(told(&mut book, &[finding(120, Stage::Closed, 80)]), [(Updated, 80.0)]);
    let graver = RuleCard { severity: Severity::High, ..(*finding(0, Crossed, 7).rule).clone() };
    let graver = Finding { rule: Arc::new(graver), ..finding(120, Grown, 7) };
    assert_eq!(told(&mut book, &[graver, finding(120, Grown, 7)]), [(Updated, 80.0)], "graver, and it stays so");
    let alert = book.alerts().next().expect("one").clone();
    assert_eq!((alert.windows, alert.first, alert.last, alert.detected), (3, secs(1), secs(170), secs(50)));

    let mut out = Vec::new();
    book.expire(secs(299), secs(1_000), &mut out);
    assert_eq!(out, [], "its last window ended at 180 s; two more have not passed");
    book.expire(secs(300), secs(1_000), &mut out);
    assert_eq!(out.iter().map(|alert| alert.state).collect::<Vec<_>>(), [Closed]);
    assert_eq!(book.open_count(), 0);

    assert_eq!(told(&mut book, &[finding(3_600, Crossed, 7)]), [(Open, 80.0)], "the strongest evidence stays");
    let again = book.alerts().next().expect("one");
    assert_eq!(again.severity, Severity::Medium, "what made it grave is over");
    assert_eq!((again.id.as_str(), again.reopened), (alert.id.as_str(), 1), "the same alert, not a new one");
    book.expire(secs(90_000), secs(90_000), &mut out);
    assert_eq!(told(&mut book, &[finding(93_600, Crossed, 7)]), [(Open, 7.0)]);
    assert_ne!(book.alerts().next().expect("one").id, alert.id, "after a day it is a new one");
}

#[test]
fn a_lasting_alert_is_told_again_after_an_hour() {
    let mut book = AlertBook::new(Class::Detection, 16);
    let minutes: Vec<Finding> = (0..=60).map(|minute| finding(minute * 60, Stage::Closed, 9)).collect();
    assert_eq!(told(&mut book, &minutes), [(AlertState::Open, 9.0), (AlertState::Updated, 9.0)]);
}

#[test]
fn a_full_book_forgets_the_longest_silent_and_counts_it() {
    let mut book = AlertBook::new(Class::Detection, 16);
    for i in 0..20 {
        let other = Subject::host(Address::from_v4([10, 0, 1, i]));
        book.take(&Finding { subject: other, ..finding(i64::from(i) * 60, Stage::Closed, 7) }, secs(0), &mut Vec::new());
    }
    assert!(book.alerts().count() <= 16);
    assert_eq!(book.forgotten() as usize, 20 - book.alerts().count());
    assert!(book.alerts().any(|alert| alert.subject == "10.0.1.19"));
    assert!(!book.alerts().any(|alert| alert.subject == "10.0.1.0"));
}

fn settings(directory: &tempfile::TempDir, file_bytes_max: u64) -> Settings {
    Settings { file: directory.path().join("alerts.ndjson"), file_bytes_max, ..Settings::default() }
}

#[test]
fn a_restart_continues_open_alerts_and_repeats_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory, 1 << 20);
    let mut out = Vec::new();
    let mut book = AlertBook::new(Class::Detection, 16);
    book.take(&finding(0, Stage::Crossed, 7), secs(8), &mut out);
    let mut file = AlertFile::open(&settings).unwrap();
    out.iter().for_each(|alert| file.put(alert).unwrap());
    drop(file);
    std::fs::write(&settings.file, [std::fs::read(&settings.file).unwrap(), b"{\"id\":\"torn".to_vec()].concat()).unwrap();

    let lines = read(&settings.file).unwrap();
    assert_eq!((&lines.alerts, lines.unreadable), (&out, 1), "what was written is what is read, a torn line apart");
    let mut book = AlertBook::new(Class::Detection, 16);
    book.restore(lines.alerts);
    assert_eq!(told(&mut book, &[finding(0, Stage::Crossed, 7), finding(60, Stage::Crossed, 8)]), []);
    assert_eq!(told(&mut book, &[finding(60, Stage::Grown, 24)]), [(AlertState::Updated, 24.0)]);

    let updated = book.alerts().next().expect("one").clone();
    AlertFile::open(&settings).unwrap().put(&updated).unwrap();
    assert_eq!(read(&settings.file).unwrap().alerts, [updated], "the torn line swallows nothing after it");
}

#[test]
fn the_file_is_rotated_and_reading_bridges_the_rotation() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory, 4_000);
    let mut file = AlertFile::open(&settings).unwrap();
    let mut alerts = Vec::new();
    AlertBook::new(Class::Detection, 16).take(&finding(0, Stage::Crossed, 7), secs(8), &mut alerts);
    let length = serde_json::to_string(&alerts[0]).unwrap().len() as u64 + 1;
    let lines = 4_000 / length + 2;
    for i in 0..lines {
        file.put(&Alert { id: format!("{i:016x}"), ..alerts[0].clone() }).unwrap();
    }
    assert_eq!(std::fs::metadata(&settings.file).unwrap().len(), 2 * length);
    let read = read(&settings.file).unwrap();
    assert_eq!((read.alerts.len() as u64, read.unreadable), (lines, 0));

    std::fs::remove_file(&settings.file).unwrap();
    file.put(&alerts[0]).unwrap();
    assert_eq!(std::fs::metadata(&settings.file).unwrap().len(), length, "a file that somebody removed is made anew");
}

#[test]
fn a_line_for_a_terminal_says_it_all_and_obeys_no_escape() {
    let mut alerts = Vec::new();
    AlertBook::new(Class::Detection, 16).take(&finding(0, Stage::Crossed, 7), secs(8), &mut alerts);
    let mut alert = alerts.remove(0);
    alert.id = "23e006d45a29ef94".to_owned();
    assert_eq!(
        line(&alert, Colour::No),
        "2026-11-21 10:00:08  medium     70 %  AZ-01  open     23e006d4  10.0.0.9 tried 7 hosts\n"
    );
    alert.sentence = "\x1b[2Jgone".to_owned();
    assert_eq!(
        line(&alert, Colour::Yes),
        "2026-11-21 10:00:08  \x1b[33mmedium  \x1b[0m   70 %  AZ-01  open     23e006d4  [2Jgone\n"
    );
}

#[test]
fn no_file_is_no_alerts_and_a_directory_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    assert!(read(&directory.path().join("absent")).unwrap().alerts.is_empty());
    assert!(read(directory.path()).is_err());
}

#[test]
fn a_line_that_was_written_before_there_were_incidents_is_read() {
    let old = r#"{"id":"0011223344556677","rule":"AZ-01","variant":"fixed","title":"Horizontal scan","severity":"medium","state":"open","subject":"10.0.0.9","source":"10.0.0.9","first":"2026-11-21T10:00:01.000000000Z","last":"2026-11-21T10:00:50.000000000Z","detected":"2026-11-21T10:00:08.000000000Z","told":"2026-11-21T10:00:08.000000000Z","sentence":"10.0.0.9 tried 7 hosts","score":1.1,"window":{"start":"2026-11-21T10:00:00.000000000Z","secs":60},"windows":1,"reopened":0,"evidence":{"value":7.0,"threshold":6.0,"unit":"hosts"},"attack":["T1046"]}"#;
    let alert: Alert = serde_json::from_str(old).unwrap();
    assert_eq!((alert.class, alert.confidence, alert.is_quiet()), (Class::Detection, 1.0, false));
    assert!(alert.tactics.is_empty() && alert.doubts.is_empty() && alert.members.is_empty());
}
