//! The loop that owns the detectors and the alerts.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use spanwatch_common::wire::Batch;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::clock;
use crate::alert::file::{self, AlertFile, Settings};
use crate::alert::terminal::{Colour, Terminal};
use crate::alert::{Alert, AlertBook, AlertSink};
use crate::detect::{Detection, Finding, Mode, RuleFile};
use crate::ingest::stopped;
use crate::metrics::Vitals;

/// How often the detectors are asked what they found.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Alerts that wait for a file which cannot be written. Beyond, the oldest are given up and counted.
const UNWRITTEN_MAX: usize = 10_000;

/// Detectors, alerts, and where these go.
pub(super) struct Watch {
    detection: Detection,
    book: AlertBook,
    file: AlertFile,
    terminal: Box<dyn AlertSink>,
    /// Alerts that the file did not take yet.
    unwritten: Vec<Alert>,
    findings: Vec<Finding>,
    failing: bool,
}

impl Watch {
    /// Opens the alert file and takes over the alerts that are open in it.
    pub(super) fn new(rules: &RuleFile, settings: &Settings) -> anyhow::Result<Self> {
        let trouble = || {
            format!(
                "cannot use the alert file {} (is `alerts.file` right, and may this user write there?)",
                settings.file.display()
            )
        };
        if let Some(directory) = settings.file.parent() {
            fs::create_dir_all(directory).with_context(trouble)?;
        }
        let told = file::read(&settings.file).with_context(trouble)?;
        if told.unreadable > 0 {
            tracing::warn!("{} lines of {} are no alerts and were passed over", told.unreadable, settings.file.display());
        }
        let mut book = AlertBook::new(settings.alerts_max);
        book.restore(told.alerts);
        let stdout = std::io::stdout();
        let colour = Colour::wanted(&stdout);
        Ok(Self {
            detection: Detection::new(rules, Mode::Stream),
            book,
            file: AlertFile::open(settings).with_context(trouble)?,
            terminal: Box::new(Terminal::new(stdout, colour)),
            unwritten: Vec::new(),
            findings: Vec::new(),
            failing: false,
        })
    }

    /// Observes every batch as it comes, and tells what was found, until `stopping` turns true.
    pub(super) async fn run(
        mut self,
        mut batches: mpsc::Receiver<Arc<Batch>>,
        vitals: Arc<Vitals>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(batch) = batches.recv() => self.observe(&batch),
                _ = ticks.tick() => self.tell(&vitals),
                () = stopped(&mut stopping) => break,
            }
        }
        while let Ok(batch) = batches.try_recv() {
            self.observe(&batch);
        }
        self.tell(&vitals);
    }

    fn observe(&mut self, batch: &Batch) {
        for record in &batch.records {
            self.detection.observe(&batch.sensor, record);
        }
    }

    /// Turns findings into alerts and delivers them.
    fn tell(&mut self, vitals: &Vitals) {
        let now = clock();
        let already = self.unwritten.len();
        self.detection.poll(now, &mut self.findings);
        for finding in self.findings.drain(..) {
            self.book.take(&finding, now, &mut self.unwritten);
        }
        self.book.expire(self.detection.watermark(), now, &mut self.unwritten);
        for alert in &self.unwritten[already..] {
            let _ = self.terminal.put(alert); // nobody may be looking; the file counts
        }
        let events = self.unwritten.len() - already;
        let lost = self.write();

        let mut vitals = vitals.detect();
        vitals.counters = self.detection.counters();
        vitals.detectors = self.detection.states().cloned().collect();
        vitals.alerts_open = self.book.open_count() as u64;
        vitals.alerts_forgotten = self.book.forgotten();
        vitals.alert_events += events as u64;
        vitals.alerts_lost += lost;
    }

    /// Writes what waits, in order, as far as the file takes it. Returns how many alerts had to be given up.
    fn write(&mut self) -> u64 {
        let mut written = 0;
        for alert in &self.unwritten {
            match self.file.put(alert) {
                Ok(()) => {
                    written += 1;
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("the alert file can be written again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::error!("write the alert file: {error}; up to {UNWRITTEN_MAX} alerts wait in memory");
                    }
                    break;
                }
            }
        }
        self.unwritten.drain(..written);
        let too_many = self.unwritten.len().saturating_sub(UNWRITTEN_MAX);
        self.unwritten.drain(..too_many);
        too_many as u64
    }
}
