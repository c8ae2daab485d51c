//! The settings of outputs: the shipped example, and what mistakes are told.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may fail loudly, and its name says what it is for")]

use spanwatch_alert::Alert;
use spanwatch_alert::deliver::format::Format;
use spanwatch_alert::deliver::settings::{Body, Kind, Transport};
use spanwatch_alert::deliver::{DeliverySettings, OutputSettings, test_alert};
use spanwatch_common::time::Timestamp;
use spanwatch_detect::finding::Severity;

const SHIPPED: &str = include_str!("../../../deploy/collector.toml");

fn syslog() -> OutputSettings {
    let address = "192.0.2.10:514".to_owned();
    OutputSettings { name: "siem".to_owned(), kind: Kind::Syslog, format: Format::Cef, address, ..OutputSettings::default() }
}

#[test]
fn the_example_of_an_output_shows_every_key_with_its_default() {
    let example = SHIPPED.split("#[[outputs]]").nth(1).unwrap().split("\n\n").next().unwrap();
    let lines: Vec<&str> =
        example.lines().filter(|line| !line.starts_with("# ")).map(|line| line.trim_start_matches('#')).collect();
    let written: toml::Table = lines.join("\n").parse().unwrap();
    assert_eq!(written, toml::Table::try_from(syslog()).unwrap());
    assert_eq!(syslog().check(), Ok(()));
    assert_eq!(written.try_into::<OutputSettings>().unwrap(), syslog());
}

#[test]
fn the_shipped_section_on_delivery_shows_the_defaults() {
    let shipped: toml::Table = SHIPPED.parse().unwrap();
    assert_eq!(shipped["delivery"], toml::Value::try_from(DeliverySettings::default()).unwrap());
    assert_eq!(DeliverySettings::default().check(), Ok(()));
}

#[test]
fn a_mistake_names_its_key_and_what_to_write() {
    let mistake = |settings: OutputSettings| settings.check().unwrap_err();
    assert_eq!(mistake(OutputSettings { name: "a b".to_owned(), ..syslog() }).0, "name");
    let (key, sentence) = mistake(OutputSettings { address: "192.0.2.10".to_owned(), ..syslog() });
    assert_eq!((key, &*sentence), ("address", "must be host and port of the receiver, such as 192.0.2.10:514"));
    let (key, sentence) = mistake(OutputSettings { transport: Transport::Tls, ..syslog() });
    assert!(key == "ca_file" && sentence.contains("/etc/ssl/certs/ca-certificates.crt"), "{sentence}");
    let (key, sentence) = mistake(OutputSettings { message_bytes_max: 100_000, transport: Transport::Udp, ..syslog() });
    assert_eq!((key, &*sentence), ("message_bytes_max", "must be 480 to 65000, not 100000"));
    let webhook = OutputSettings { kind: Kind::Webhook, url: "https://example.net/".to_owned(), ..syslog() };
    assert_eq!(mistake(webhook.clone()).0, "format");
    let rows = OutputSettings { format: Format::Ocsf, network_activity: true, ..webhook };
    assert_eq!(mistake(rows.clone()).0, "network_activity");
    assert_eq!(OutputSettings { body: Body::Array, ..rows }.check(), Ok(()));
    let sentinel = OutputSettings { kind: Kind::Sentinel, format: Format::Asim, endpoint: "https://x".to_owned(), ..syslog() };
    let (key, sentence) = mistake(sentinel);
    assert_eq!((key, &*sentence), ("rule_id", "must be the immutable id that the data collection rule shows, dcr-…"));
}

#[test]
fn an_output_gets_what_it_asks_for() {
    let alert = test_alert("siem", Timestamp::from_secs(1_795_255_200));
    let alert = Alert { rule: "ND-05".to_owned(), severity: Severity::Medium, confidence: 0.6, ..alert };
    let wants = |keys: &str| {
        let settings: OutputSettings = toml::from_str(keys).unwrap();
        settings.wants(&alert)
    };
    for yes in ["", "severity_min = \"medium\"", "confidence_min = 0.6", "rules = [\"AZ-01\", \"ND-*\"]", "states = [\"open\"]"] {
        assert!(wants(yes), "{yes}");
    }
    for no in [
        "severity_min = \"high\"",
        "confidence_min = 0.61",
        "rules = [\"ND-0\"]",
        "states = [\"closed\"]",
        "classes = [\"health\"]",
    ] {
        assert!(!wants(no), "{no}");
    }
    let muted = serde_json::json!({ "owner": "ops", "until": "2026-12-01T00:00:00.000000000Z", "reason": "scanner" });
    let muted = Alert { muted: serde_json::from_value(muted).unwrap(), ..alert };
    assert!(!OutputSettings::default().wants(&muted));
    assert!(OutputSettings { include_quiet: true, ..OutputSettings::default() }.wants(&muted));
}
