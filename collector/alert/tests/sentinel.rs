//! Microsoft Sentinel against an HTTP server that is as strict as Azure: tokens, gzip, arrays of at most 1 MB.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may fail loudly, and its name says what it is for")]

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value as Json;
use spanwatch_alert::Alert;
use spanwatch_alert::deliver::OutputSettings;
use spanwatch_alert::deliver::format::Format;
use spanwatch_alert::deliver::settings::Kind;
use support::{Receiver, Running, Seen, alert, ids};

const STREAM: &str = "/dataCollectionRules/dcr-0123/streams/Custom-SpanwatchAlerts?api-version=2023-01-01";

/// The authority and the endpoint in one. The first token is revoked after its first use.
fn azure(tokens: &AtomicUsize, seen: &Seen) -> (u16, String) {
    if seen.path == "/tenant-1/oauth2/v2.0/token" {
        let form = "grant_type=client_credentials&client_id=app-1&client_secret=s%26cret&scope=https%3A%2F%2Fmonitor.azure.com%2F.default";
        if seen.body != form {
            return (400, format!(r#"{{"error":"invalid_request","seen":{:?}}}"#, seen.body));
        }
        let number = tokens.fetch_add(1, Ordering::Relaxed) + 1;
        return (200, format!(r#"{{"token_type":"Bearer","expires_in":3599,"access_token":"token-{number}"}}"#));
    }
    let newest = format!("Bearer token-{}", tokens.load(Ordering::Relaxed));
    let revoked = seen.header("authorization") == "Bearer token-1" && seen.body.contains("alert-0002");
    match () {
        () if seen.path != STREAM => (404, seen.path.clone()),
        () if seen.header("authorization") != newest || revoked => (401, "InvalidToken".to_owned()),
        () if seen.header("content-encoding") != "gzip" || seen.header("content-type") != "application/json" => {
            (415, String::new())
        }
        () if seen.body.len() > 1_000_000 || seen.raw.len() > 1_000_000 => (413, String::new()),
        () if serde_json::from_str::<Vec<Json>>(&seen.body).is_err() => (400, "no array".to_owned()),
        () => (204, String::new()),
    }
}

#[tokio::test]
async fn rows_arrive_in_order_within_the_limit_and_tokens_are_kept_until_they_are_no_good() {
    let directory = tempfile::tempdir().unwrap();
    let client_secret_file = directory.path().join("secret");
    fs::write(&client_secret_file, "s&cret\n").unwrap();
    let tokens = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tokens);
    let receiver = Receiver::start(&[], move |seen| Some(azure(&counted, seen))).await;
    let output = OutputSettings {
        name: "sentinel".to_owned(),
        kind: Kind::Sentinel,
        format: Format::Asim,
        endpoint: receiver.url("/"),
        authority: receiver.url(""),
        rule_id: "dcr-0123".to_owned(),
        stream: "Custom-SpanwatchAlerts".to_owned(),
        tenant_id: "tenant-1".to_owned(),
        client_id: "app-1".to_owned(),
        client_secret_file,
        ..OutputSettings::default()
    };
    assert_eq!(output.check(), Ok(()));
    let running = Running::start(directory.path(), &[output]);
    running.put(0..2);
    running.drained().await;
    // Two and a half megabytes, of which no two calls have one in common.
    for number in 2..502 {
        running.outbox.put(&Alert { sentence: "é".repeat(2_500), ..alert(number) }).unwrap();
    }
    running.drained().await;
    assert_eq!(receiver.taken(), [vec![], ids(0..502)].concat());
    let status = &running.outbox.status()[0];
    assert_eq!((status.delivered, status.refused, status.shortened), (502, 0, 0));
    assert_eq!(tokens.load(Ordering::Relaxed), 2);
    let calls = receiver.seen();
    let full: Vec<usize> = calls.iter().filter(|seen| seen.path == STREAM).map(|seen| seen.body.len()).collect();
    assert!(full.iter().filter(|len| **len > 900_000).count() >= 2, "{full:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_secret_that_is_wrong_is_said_and_alerts_wait() {
    let directory = tempfile::tempdir().unwrap();
    let client_secret_file = directory.path().join("secret");
    fs::write(&client_secret_file, "wrong").unwrap();
    let tokens = AtomicUsize::new(0);
    let receiver = Receiver::start(&[], move |seen| Some(azure(&tokens, seen))).await;
    let output = OutputSettings {
        name: "sentinel".to_owned(),
        kind: Kind::Sentinel,
        format: Format::Asim,
        endpoint: receiver.url(""),
        authority: receiver.url("/"),
        rule_id: "dcr-0123".to_owned(),
        stream: "Custom-SpanwatchAlerts".to_owned(),
        tenant_id: "tenant-1".to_owned(),
        client_id: "app-1".to_owned(),
        client_secret_file: client_secret_file.clone(),
        ..OutputSettings::default()
    };
    let running = Running::start(directory.path(), &[output]);
    running.put(0..3);
    support::until("it fails", || running.outbox.status()[0].failing_since.is_some()).await;
    let said = running.outbox.status()[0].last_error.clone().unwrap();
    assert!(said.starts_with("get a token: answered 400 Bad Request; are tenant_id, client_id and the secret right"), "{said}");
    // The secret is put right; nobody restarts anything.
    fs::write(&client_secret_file, "s&cret").unwrap();
    running.drained().await;
    assert_eq!(receiver.taken(), ids(0..3));
    running.stop().await;
}
