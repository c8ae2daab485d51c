//! Webhooks against an HTTP server: what it sees, what it may answer, and what survives.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may fail loudly, and its name says what it is for")]

mod support;

use std::fs;
use std::path::Path;

use ring::hmac;
use spanwatch_alert::Alert;
use spanwatch_alert::deliver::format::Format;
use spanwatch_alert::deliver::settings::{Body, Kind};
use spanwatch_alert::deliver::{Outbox, OutputSettings, test};
use support::{AS_USUAL, Receiver, Running, SILENCE, Seen, alert, delivery, ids, once, until};

fn webhook(url: String) -> OutputSettings {
    let name = "hook".to_owned();
    OutputSettings {
        name,
        kind: Kind::Webhook,
        url,
        body: Body::Array,
        batch_max: 10,
        timeout_secs: 2,
        ..OutputSettings::default()
    }
}

/// `Spanwatch-Signature` as a receiver would check it.
fn is_signed(seen: &Seen, key: &[u8]) -> bool {
    let (time, digits) = seen.header("spanwatch-signature").strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let tag: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
    let message = [time.as_bytes(), b".", &seen.raw].concat();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), &message, &tag).is_ok()
}

#[tokio::test]
async fn alerts_arrive_in_order_whatever_the_receiver_answers_in_between() {
    let directory = tempfile::tempdir().unwrap();
    let [token_file, hmac_key_file] = [("token", "t0ken\n"), ("key", "secret\n")].map(|(name, text)| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    });
    let receiver = Receiver::start(&[401, 500, AS_USUAL, 429, 413], |_| None).await;
    let output = OutputSettings { token_file, hmac_key_file, gzip: true, ..webhook(receiver.url("/alerts?x=1")) };
    let running = Running::start(directory.path(), &[output]);
    running.put(0..25);
    running.drained().await;
    assert_eq!(receiver.taken(), ids(0..25));
    let status = &running.outbox.status()[0];
    assert_eq!((status.delivered, status.refused, status.dropped, status.failing_since), (25, 0, 0, None));

    let seen = receiver.seen();
    assert_eq!(seen.iter().map(|seen| seen.status).take(5).collect::<Vec<_>>(), [401, 500, 204, 429, 413]);
    // 413 halves the batch; success doubles it again.
    assert_eq!(seen.iter().skip(4).map(|seen| seen.ids().len()).collect::<Vec<_>>(), [10, 5, 10]);
    for seen in &seen {
        assert!(is_signed(seen, b"secret") && !is_signed(seen, b"other"));
        assert_eq!(
            (seen.header("authorization"), seen.header("content-type"), &*seen.path),
            ("Bearer t0ken", "application/json", "/alerts?x=1")
        );
        let alerts: Vec<Alert> = serde_json::from_str(&seen.body).unwrap();
        assert_eq!(alerts[0], alert(alerts[0].id[6..].parse().unwrap()));
    }
    // The same batch has the same key, another has another.
    assert_eq!(seen[0].header("idempotency-key"), seen[1].header("idempotency-key"));
    assert_ne!(seen[2].header("idempotency-key"), seen[3].header("idempotency-key"));
    running.stop().await;
}

#[tokio::test]
async fn one_alert_that_is_refused_is_parked_and_the_others_pass() {
    let directory = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(&[], |seen| seen.body.contains("alert-0007").then(|| (422, "no sevens".to_owned()))).await;
    let running = Running::start(directory.path(), &[webhook(receiver.url("/"))]);
    running.put(0..20);
    running.drained().await;
    assert_eq!(receiver.taken(), [ids(0..7), ids(8..20)].concat());
    let status = running.outbox.status().remove(0);
    assert_eq!((status.delivered, status.refused, status.waiting), (19, 1, 0));
    assert_eq!(status.last_error.as_deref(), Some("answered 422 Unprocessable Entity: no sevens"));
    let parked = fs::read_to_string(directory.path().join("hook.refused.ndjson")).unwrap();
    assert_eq!(serde_json::from_str::<Alert>(parked.trim()).unwrap(), alert(7));
    running.stop().await;
}

#[tokio::test]
async fn nothing_is_lost_when_receiver_and_collector_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    // A port on which nobody listens.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = webhook(format!("http://{address}/"));
    let running = Running::start(directory.path(), std::slice::from_ref(&output));
    running.put(0..30);
    until("the output fails", || running.outbox.status()[0].failing_since.is_some()).await;
    running.kill().await;

    // It takes the first batch; the answer to the second never comes, and the collector dies while it waits for it.
    let receiver = Receiver::start_at(address, &[AS_USUAL, SILENCE], |_| None).await;
    let running = Running::start(directory.path(), std::slice::from_ref(&output));
    assert_eq!(running.outbox.status()[0].waiting, 30);
    until("two batches are there", || receiver.taken().len() == 20).await;
    running.kill().await;

    // What a crash tore is no alert, and costs none.
    let journal = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let newest = journal.filter(|path| path.extension().is_some_and(|suffix| suffix == "alerts")).max().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes.extend_from_slice(&[200, 0, 0, 0, 1, 2, 3, 4, 5]);
    fs::write(&newest, bytes).unwrap();

    let running = Running::start(directory.path(), &[output]);
    running.put(30..40);
    running.drained().await;
    // Of the second batch nobody could know that it had arrived.
    assert_eq!(receiver.taken(), [ids(0..20), ids(10..40)].concat());
    assert_eq!(once(receiver.taken()), ids(0..40));
    running.stop().await;
}

#[tokio::test]
async fn a_full_journal_gives_up_the_oldest_for_those_who_lack_them_and_counts() {
    let directory = tempfile::tempdir().unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = directory.path().join("all.ndjson");
    let file = OutputSettings { name: "file".to_owned(), path: path.clone(), ..OutputSettings::default() };
    let away = webhook(format!("http://{address}/"));
    let settings = spanwatch_alert::deliver::DeliverySettings { journal_bytes_max: 1 << 20, ..delivery(directory.path()) };
    let outbox = Outbox::open(&settings, &[away.clone(), file]).unwrap();
    let (shutdown, over) = tokio::sync::watch::channel(false);
    let task = tokio::spawn(std::sync::Arc::clone(&outbox).run(1, over));
    for number in 0..1_000 {
        outbox.put(&Alert { sentence: "x".repeat(2_000), ..alert(number) }).unwrap();
        if number % 50 == 0 {
            let caught_up = || outbox.status()[1].waiting == 0;
            until("the file has them", caught_up).await;
        }
    }
    until("the file has all", || outbox.status()[1].waiting == 0).await;
    assert!(outbox.journal_bytes() <= 1 << 20);
    let [hook, file] = &*outbox.status() else { panic!() };
    assert_eq!((file.delivered, file.dropped), (1_000, 0));
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1_000);
    assert!(hook.dropped > 400 && hook.dropped + hook.waiting == 1_000, "{hook:?}");

    // Whoever comes back gets all that is left.
    let dropped = usize::try_from(hook.dropped).unwrap();
    let receiver = Receiver::start_at(address, &[], |_| None).await;
    until("the rest is there", || outbox.status()[0].waiting == 0).await;
    assert_eq!(receiver.taken(), ids(dropped..1_000));
    assert_eq!(outbox.status()[0].delivered + outbox.status()[0].dropped, 1_000);
    shutdown.send_replace(true);
    task.await.unwrap();
}

#[tokio::test]
async fn an_output_that_is_new_gets_what_comes_from_now_on_and_only_what_it_wants() {
    let directory = tempfile::tempdir().unwrap();
    let file =
        |name: &str| OutputSettings { name: name.to_owned(), path: directory.path().join(name), ..OutputSettings::default() };
    let lines = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap_or_default().lines().count();
    let running = Running::start(directory.path(), &[file("old")]);
    running.put(0..5);
    running.drained().await;
    running.stop().await;

    let picky = OutputSettings { rules: vec!["AZ-*".to_owned()], ..file("picky") };
    let running = Running::start(directory.path(), &[file("old"), file("new"), picky]);
    running.put(5..8);
    running.outbox.put(&Alert { rule: "AZ-01".to_owned(), ..alert(8) }).unwrap();
    running.drained().await;
    assert_eq!((lines("old"), lines("new"), lines("picky")), (9, 4, 1));

    // As logrotate does it.
    fs::rename(directory.path().join("new"), directory.path().join("new.1")).unwrap();
    running.put(9..10);
    running.drained().await;
    assert_eq!((lines("new.1"), lines("new")), (4, 1));
    // Everybody has everything: of the journal, one segment is left.
    running.stop().await;
    assert_eq!(segments(directory.path()), 1);
}

fn segments(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|suffix| suffix == "alerts")).count()
}

#[tokio::test]
async fn a_test_says_what_the_receiver_says() {
    let receiver = Receiver::start(&[AS_USUAL, 403, 307], |_| None).await;
    let output = OutputSettings { body: Body::Object, ..webhook(receiver.url("/")) };
    assert_eq!(test(&output).await, Ok(()));
    let sent: Alert = serde_json::from_str(&receiver.seen()[0].body).unwrap();
    assert_eq!((&*sent.rule, &*sent.sentence), ("TEST", "This is a test of the output hook; nothing has happened."));
    assert_eq!(test(&output).await, Err("answered 403 Forbidden; is the credential right?: as told".to_owned()));
    assert_eq!(test(&output).await, Err("answered 307 Temporary Redirect; give the address that it points to".to_owned()));
    let nobody = OutputSettings { token_file: "/nonexistent/token".into(), ..output };
    let said = test(&nobody).await.unwrap_err();
    assert!(said.starts_with("read /nonexistent/token: No such file"), "{said}");
}

#[tokio::test]
async fn findings_travel_with_their_evidence_where_that_is_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(&[], |_| None).await;
    let output = OutputSettings { format: Format::Ocsf, network_activity: true, ..webhook(receiver.url("/")) };
    assert_eq!(output.check(), Ok(()));
    let running = Running::start(directory.path(), &[output]);
    let scan: Alert = serde_json::from_str(include_str!("golden/scan/alert.json")).unwrap();
    running.outbox.put(&scan).unwrap();
    running.drained().await;
    let sent: Vec<serde_json::Value> = serde_json::from_str(&receiver.seen()[0].body).unwrap();
    assert_eq!(sent.iter().map(|event| event["type_uid"].as_u64().unwrap()).collect::<Vec<_>>(), [200_401, 400_104, 400_105]);
    running.stop().await;
}

#[tokio::test]
async fn an_alert_that_the_disk_refuses_stays_with_the_caller() {
    let directory = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(&[], |_| None).await;
    let inner = directory.path().join("outbox");
    let running = Running::start(&inner, &[webhook(receiver.url("/"))]);
    fs::remove_dir_all(&inner).unwrap();
    assert!(running.outbox.put(&alert(0)).is_err());
    assert_eq!(running.outbox.status()[0].waiting, 0);
    fs::create_dir(&inner).unwrap();
    running.put(0..3);
    running.drained().await;
    assert_eq!(receiver.taken(), ids(0..3));
    running.stop().await;
}
