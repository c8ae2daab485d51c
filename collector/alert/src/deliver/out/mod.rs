//! Where alerts go: the deeds.
//!
//! An output takes a batch and says what came of it. It opens what it needs when it needs it, and again after trouble, so that a receiver
//! may be away when the collector starts. It does not know the journal, and never tries twice: that is the courier's decision.

mod file;
mod http;
mod sentinel;
mod syslog;
mod webhook;

use std::path::Path;

use spanwatch_common::time::Timestamp;

use self::file::FileOut;
use self::sentinel::Sentinel;
use self::syslog::SyslogOut;
use self::webhook::Webhook;
use super::courier::Outcome;
use super::format::{Fitted, Format, fit, ocsf};
use super::settings::{Body, Kind, OutputSettings};
use crate::Alert;

/// What a request carries at most, in bytes before gzip. Azure's limit for one call is 1 MB, packed and unpacked; others are rarely smaller.
const BODY_LEN_MAX: usize = 1_000_000;

/// What came of a batch.
#[derive(Debug)]
pub(super) struct Sent {
    /// How many alerts from its beginning were tried; at least one.
    pub(super) tried: usize,
    /// Of those, how many had to be shortened.
    pub(super) shortened: u64,
    /// What came of them.
    pub(super) outcome: Outcome,
}

/// An output.
pub(super) enum Out {
    File(FileOut),
    Syslog(SyslogOut),
    Webhook(Webhook),
    Sentinel(Sentinel),
}

impl Out {
    /// An output as `settings` say. Nothing is opened yet.
    pub(super) fn new(settings: &OutputSettings) -> Self {
        let settings = settings.clone();
        match settings.kind {
            Kind::File => Self::File(FileOut::new(settings)),
            Kind::Syslog => Self::Syslog(SyslogOut::new(settings)),
            Kind::Webhook => Self::Webhook(Webhook::new(settings)),
            Kind::Sentinel => Self::Sentinel(Sentinel::new(settings)),
        }
    }

    /// How many alerts it can use at once.
    pub(super) const fn batch_max(settings: &OutputSettings) -> usize {
        match (settings.kind, settings.body) {
            (Kind::Webhook, Body::Object) => 1,
            _ => settings.batch_max,
        }
    }

    /// Tries to deliver `alerts` from the first on, at least one of them. `key` tells this batch from others, for receivers that want to
    /// recognise what they already have.
    pub(super) async fn send(&mut self, alerts: &[Alert], key: &str, now: Timestamp) -> Sent {
        match self {
            Self::File(file) => file.send(alerts).await,
            Self::Syslog(syslog) => syslog.send(alerts).await,
            Self::Webhook(webhook) => webhook.send(alerts, key, now).await,
            Self::Sentinel(sentinel) => sentinel.send(alerts, now).await,
        }
    }

    /// Says goodbye where that is usual.
    pub(super) async fn close(&mut self) {
        if let Self::Syslog(syslog) = self {
            syslog.close().await;
        }
    }
}

/// The lines of `alert`: one, or with its evidence several.
fn lines(alert: &Alert, settings: &OutputSettings, bytes_max: usize) -> Fitted {
    let evidence = settings.network_activity && settings.format == Format::Ocsf;
    fit(alert, bytes_max, |alert| {
        let mut text = settings.format.line(alert);
        for row in if evidence { ocsf::network_activity(alert) } else { Vec::new() } {
            text.push('\n');
            text.push_str(&row.to_string());
        }
        text
    })
}

/// Lines of `alerts` from the first on until `bytes_max` is reached, each with a separator's byte; and how many had to be shortened.
fn pack(alerts: &[Alert], settings: &OutputSettings, bytes_max: usize) -> (Vec<String>, u64) {
    let (mut packed, mut bytes, mut shortened) = (Vec::new(), 2, 0);
    for alert in alerts {
        let line = lines(alert, settings, bytes_max.saturating_sub(3));
        bytes += line.text.len() + 1;
        if bytes > bytes_max && !packed.is_empty() {
            break;
        }
        shortened += u64::from(line.shortened);
        packed.push(line.text);
    }
    (packed, shortened)
}

/// The content of a file with a secret, without the line feed that editors add.
fn secret(path: &Path) -> Result<String, Outcome> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => {
            Err(Outcome::Failed(format!("read {}: {error}; does it exist, and may this user read it?", path.display()), None))
        }
    }
}

/// An error and what caused it, in one line.
fn whole(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        cause = inner.source();
    }
    said
}
