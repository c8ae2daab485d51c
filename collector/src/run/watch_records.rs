//! The loop that owns the detectors and the alerts.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::clock;
use crate::alert::file::{self, AlertFile, Settings};
use crate::alert::terminal::{Colour, Terminal};
use crate::alert::{Alert, AlertBook, AlertSink, Class};
use crate::detect::{Detection, Finding, Mode, Roles, RuleFile, Sites};
use crate::health::{Account, HealthSettings, HealthWatch, Verdict};
use crate::ingest::{ToDetect, stopped};
use crate::metrics::Vitals;

/// How often the detectors are asked what they found.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often it is asked whether sensors have sent an account.
const MIRRORS_INTERVAL: Duration = Duration::from_secs(1);
/// Alerts that wait for a file which cannot be written. Beyond, the oldest are given up and counted.
const UNWRITTEN_MAX: usize = 10_000;

/// Detectors, alerts, and where these go.
pub(super) struct Watch {
    sites: Sites,
    /// Those that are given; what was learned is with the detectors.
    roles: Roles,
    detection: Detection,
    book: AlertBook,
    /// None when the operator wants none.
    health: Option<HealthWatch>,
    /// Alerts about mirrors. No checkpoint holds them: their records are no part of what it sums up.
    health_book: AlertBook,
    /// When the sensors' accounts were last looked at.
    health_looked: Timestamp,
    file: AlertFile,
    terminal: Box<dyn AlertSink>,
    /// What the file said when the collector started, by id: saying it again after a restart helps nobody.
    written: HashMap<String, Alert>,
    /// Alerts that the file did not take yet.
    unwritten: Vec<Alert>,
    findings: Vec<Finding>,
    failing: bool,
}

/// What a restart must not forget.
#[derive(Serialize, Deserialize)]
struct Memory {
    #[serde(with = "serde_bytes")]
    detection: Vec<u8>,
    #[serde(with = "serde_bytes")]
    alerts: Vec<u8>,
}

impl Watch {
    /// Opens the alert file and takes over the alerts that are open in it.
    pub(super) fn new(rules: &RuleFile, sites: Sites, settings: &Settings, health: &HealthSettings) -> anyhow::Result<Self> {
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
        let mut book = AlertBook::new(Class::Detection, settings.alerts_max);
        book.restore(told.alerts.iter().cloned());
        let mut health_book = AlertBook::new(Class::Health, settings.alerts_max);
        health_book.restore(told.alerts.iter().cloned());
        let stdout = std::io::stdout();
        let colour = Colour::wanted(&stdout);
        Ok(Self {
            detection: Detection::new(rules, Mode::Stream).with_sites(sites.clone()),
            sites,
            roles: Roles::default(),
            book,
            health: health.enabled.then(|| HealthWatch::new(health)),
            health_book,
            health_looked: Timestamp::NONE,
            file: AlertFile::open(settings).with_context(trouble)?,
            terminal: Box::new(Terminal::new(stdout, colour)),
            written: told.alerts.into_iter().map(|alert| (alert.id.clone(), alert)).collect(),
            unwritten: Vec::new(),
            findings: Vec::new(),
            failing: false,
        })
    }

    /// The same, with the roles that the operator gave.
    #[must_use]
    pub(super) fn with_roles(self, roles: Roles) -> Self {
        Self { detection: self.detection.with_roles(roles.clone()), roles, ..self }
    }

    /// Goes on from a snapshot that an earlier run made. Rules whose settings have changed since start anew, and are named.
    ///
    /// # Errors
    /// The snapshot is none of this version of the collector; nothing has changed then.
    pub(super) fn resume(&mut self, snapshot: &[u8]) -> anyhow::Result<Vec<String>> {
        let memory: Memory = rmp_serde::from_slice(snapshot)?;
        let anew = self.detection.restore(&memory.detection)?;
        self.detection.wake();
        let mut book = AlertBook::new(Class::Detection, self.book.alerts_max());
        let written: Vec<Alert> = self.written.values().cloned().collect();
        match book.resume(&memory.alerts, &written) {
            Ok(()) => self.book = book,
            Err(error) => tracing::warn!("the alerts go on as the alert file has them: {error}"),
        }
        Ok(anew)
    }

    /// Looks at a record.
    pub(super) fn observe(&mut self, observer: &str, record: &FlowRecord) {
        self.detection.observe(observer, record);
    }

    /// Observes every batch as it comes, and tells what was found, until `stopping` turns true. New rules come by `reloads`.
    pub(super) async fn run(
        mut self,
        mut batches: mpsc::Receiver<ToDetect>,
        mut reloads: mpsc::Receiver<RuleFile>,
        vitals: Arc<Vitals>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(next) = batches.recv() => self.next(next, &vitals),
                Some(rules) = reloads.recv() => self.reload(&rules, &vitals),
                _ = ticks.tick() => self.tell(&vitals),
                () = stopped(&mut stopping) => break,
            }
        }
        while let Ok(next) = batches.try_recv() {
            self.next(next, &vitals);
        }
        self.tell(&vitals);
    }

    fn next(&mut self, next: ToDetect, vitals: &Vitals) {
        match next {
            ToDetect::Batch(batch) => batch.records.iter().for_each(|record| self.observe(&batch.sensor, record)),
            ToDetect::Cut(reply) => self.cut(reply, vitals),
        }
    }

    /// Answers with everything learned so far, if all that was to be told of it is in the alert file: else it might never be told.
    fn cut(&mut self, reply: oneshot::Sender<Vec<u8>>, vitals: &Vitals) {
        self.tell(vitals);
        if !self.unwritten.is_empty() || self.file.sync().is_err() {
            return;
        }
        match self.memory() {
            Ok(bytes) => drop(reply.send(bytes)), // whoever asked may have stopped waiting
            Err(error) => tracing::warn!("what the detectors have learned cannot be put into words: {error}"),
        }
    }

    /// What detectors and alerts know, as bytes for [`resume`](Self::resume).
    pub(super) fn memory(&mut self) -> anyhow::Result<Vec<u8>> {
        let memory = Memory { detection: self.detection.snapshot(), alerts: self.book.snapshot()? };
        Ok(rmp_serde::to_vec(&memory)?)
    }

    /// Puts new rules into force. Those whose settings are the same keep what they have learned.
    fn reload(&mut self, rules: &RuleFile, vitals: &Vitals) {
        self.tell(vitals);
        let fresh = || Detection::new(rules, Mode::Stream).with_sites(self.sites.clone()).with_roles(self.roles.clone());
        let mut detection = fresh();
        match detection.restore(&self.detection.snapshot()) {
            Ok(anew) if anew.is_empty() => tracing::info!("rules read again: all go on"),
            Ok(anew) => tracing::info!("rules read again: {} start anew, the others go on", anew.join(", ")),
            Err(error) => {
                tracing::warn!("rules read again: {error}");
                detection = fresh();
            }
        }
        self.detection = detection;
        self.tell(vitals);
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
        self.look_at_mirrors(vitals, now);
        self.leave_out_what_is_written(already);
        for alert in &self.unwritten[already..] {
            let _ = self.terminal.put(alert); // nobody may be looking; the file counts
        }
        let events = self.unwritten.len() - already;
        let lost = self.write();

        let mut vitals = vitals.detect();
        vitals.counters = self.detection.counters();
        vitals.detectors = self.detection.states().cloned().collect();
        vitals.alerts_open = (self.book.open_count() + self.health_book.open_count()) as u64;
        vitals.alerts_forgotten = self.book.forgotten() + self.health_book.forgotten();
        vitals.alert_events += events as u64;
        vitals.alerts_lost += lost;
    }

    /// Asks the sensors' accounts, now and then, how their mirrors do.
    fn look_at_mirrors(&mut self, vitals: &Vitals, now: Timestamp) {
        let Some(health) = &mut self.health else { return };
        // Also when the clock was set back.
        if now >= self.health_looked && now.since(self.health_looked) < MIRRORS_INTERVAL {
            return;
        }
        self.health_looked = now;
        vitals.registry.each(|sensor, boot, status| {
            let account = Account { boot, connected: status.connected, received: status.accounts, ports: &status.ports };
            health.take(sensor, account, now);
        });
        for verdict in health.poll(now) {
            match verdict {
                Verdict::Found(finding) => self.health_book.take(&finding, now, &mut self.unwritten),
                Verdict::Over(rule, subject) => self.health_book.close(&rule, &subject, now, &mut self.unwritten),
            }
        }
        self.health_book.expire(now, now, &mut self.unwritten);
        let mirrors = health.symptoms().map(|(sensor, interface, present)| (sensor.to_owned(), interface.to_owned(), present));
        vitals.detect().mirrors = mirrors.collect();
    }

    /// After a restart the same is found again: of the alerts from `already` on, those that the file knows are told by their last
    /// word only, and not at all when the file has that.
    fn leave_out_what_is_written(&mut self, already: usize) {
        if self.written.is_empty() {
            return;
        }
        let mut news = self.unwritten.split_off(already);
        let mut had_their_say = HashSet::new();
        news.reverse();
        news.retain(|alert| match self.written.get(&alert.id) {
            Some(before) => had_their_say.insert(alert.id.clone()) && !alert.says_the_same_as(before),
            None => true,
        });
        news.reverse();
        self.unwritten.append(&mut news);
        self.written.retain(|id, _| !had_their_say.contains(id));
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
