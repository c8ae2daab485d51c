//! The loop that owns the detectors and the alerts.
//!
//! Findings become lines at the [desk](Desk). Every line goes to the journal of the
//! outputs, which take what they want of it, and to the alert file; those that are not quiet also to the terminal.

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
use super::outlet::Outlet;
use crate::alert::deliver::Outbox;
use crate::alert::file::{self, AlertFile};
use crate::alert::mute::{self, MuteFile};
use crate::alert::terminal::{Colour, Terminal};
use crate::alert::{Alert, AlertBook, AlertSink, Class, Desk};
use crate::config::Config;
use crate::detect::{Detection, Finding, Mode, Roles, RuleFile, Sites};
use crate::health::{Account, HealthWatch, Verdict};
use crate::ingest::{ToDetect, stopped};
use crate::metrics::Vitals;

/// How often the detectors are asked what they found.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often it is asked whether sensors have sent an account, and whether the mutes have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Detectors, alerts, and where these go.
pub(super) struct Watch {
    sites: Sites,
    /// Those that are given; what was learned is with the detectors.
    roles: Roles,
    /// On how many threads the detectors work.
    threads: usize,
    detection: Detection,
    desk: Desk,
    /// What is muted, as `alerts mute` leaves it.
    mutes: MuteFile,
    /// None when the operator wants none.
    health: Option<HealthWatch>,
    /// Alerts about mirrors. No checkpoint holds them: their records are no part of what it sums up.
    health_book: AlertBook,
    /// When the sensors' accounts and the mutes were last looked at.
    looked: Timestamp,
    /// Where every line goes, in this order: what is journalled for others before the file, which says after a restart what was told.
    outlets: Vec<Outlet>,
    terminal: Box<dyn AlertSink>,
    /// What the file said when the collector started, by id: saying it again after a restart helps nobody.
    written: HashMap<String, Alert>,
    /// Lines on their way out.
    lines: Vec<Alert>,
    findings: Vec<Finding>,
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
    pub(super) fn new(rules: &RuleFile, config: &Config, outbox: &Arc<Outbox>) -> anyhow::Result<Self> {
        let (settings, health) = (&config.alerts, &config.health);
        let (sites, roles) = (config.sites()?, config.roles()?);
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
        let mut desk = Desk::new(rules, settings.alerts_max, settings.rule_alerts_per_hour_max);
        desk.restore(&told.alerts);
        let mut health_book = AlertBook::new(Class::Health, settings.alerts_max);
        health_book.restore(told.alerts.iter().cloned());
        let stdout = std::io::stdout();
        let colour = Colour::wanted(&stdout);
        Ok(Self {
            detection: Detection::new(rules, Mode::Stream)
                .with_sites(sites.clone())
                .with_roles(roles.clone())
                .with_threads(config.detect.threads),
            sites,
            desk,
            mutes: MuteFile::new(mute::path_beside(&settings.file)),
            roles,
            threads: config.detect.threads,
            health: health.enabled.then(|| HealthWatch::new(health)),
            health_book,
            looked: Timestamp::NONE,
            outlets: vec![
                Outlet::new("the journal of the outputs", Arc::clone(outbox), |_| true),
                Outlet::new("the alert file", AlertFile::open(settings).with_context(trouble)?, |_| true),
            ],
            terminal: Box::new(Terminal::new(stdout, colour)),
            written: told.alerts.into_iter().map(|alert| (alert.id.clone(), alert)).collect(),
            lines: Vec::new(),
            findings: Vec::new(),
        })
    }

    /// Goes on from a snapshot that an earlier run made. Rules whose settings have changed since start anew, and are named.
    ///
    /// # Errors
    /// The snapshot is none of this version of the collector; nothing has changed then.
    pub(super) fn resume(&mut self, snapshot: &[u8]) -> anyhow::Result<Vec<String>> {
        let memory: Memory = rmp_serde::from_slice(snapshot)?;
        let anew = self.detection.restore(&memory.detection)?;
        self.detection.wake();
        if let Err(error) = self.desk.resume(&memory.alerts, self.written.values()) {
            tracing::warn!("the alerts go on as the alert file has them: {error}");
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
        if !self.outlets.iter_mut().all(|outlet| outlet.settle().unwrap_or(false)) {
            return;
        }
        match self.memory() {
            Ok(bytes) => drop(reply.send(bytes)), // whoever asked may have stopped waiting
            Err(error) => tracing::warn!("what the detectors have learned cannot be put into words: {error}"),
        }
    }

    /// What detectors and alerts know, as bytes for [`resume`](Self::resume).
    pub(super) fn memory(&mut self) -> anyhow::Result<Vec<u8>> {
        let memory = Memory { detection: self.detection.snapshot(), alerts: self.desk.snapshot()? };
        Ok(rmp_serde::to_vec(&memory)?)
    }

    /// Puts new rules into force. Those whose settings are the same keep what they have learned.
    fn reload(&mut self, rules: &RuleFile, vitals: &Vitals) {
        self.tell(vitals);
        let fresh = || {
            Detection::new(rules, Mode::Stream)
                .with_sites(self.sites.clone())
                .with_roles(self.roles.clone())
                .with_threads(self.threads)
        };
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
        self.desk.set_rules(rules);
        self.tell(vitals);
    }

    /// Turns findings into alerts and delivers them.
    fn tell(&mut self, vitals: &Vitals) {
        let now = clock();
        self.look_around(vitals, now);
        self.detection.poll(now, &mut self.findings);
        self.desk.take_all(&mut self.findings, now, &mut self.lines);
        self.desk.expire(self.detection.watermark(), now, &mut self.lines);
        self.leave_out_what_is_written();
        for line in self.lines.iter().filter(|line| !line.is_quiet()) {
            let _ = self.terminal.put(line); // nobody may be looking; the file counts
        }
        let lost: u64 = self.outlets.iter_mut().map(|outlet| outlet.put(&self.lines)).sum();
        let quiet = self.lines.iter().filter(|line| line.is_quiet()).count();
        let events = self.lines.drain(..).count();

        let mut vitals = vitals.detect();
        vitals.counters = self.detection.counters();
        vitals.detectors = self.detection.states().cloned().collect();
        vitals.alerts_open = (self.desk.open_count() + self.health_book.open_count()) as u64;
        vitals.alerts_muted = self.desk.muted_count() as u64;
        vitals.incidents_open = self.desk.incident_count() as u64;
        vitals.alerts_forgotten = self.desk.forgotten() + self.health_book.forgotten();
        vitals.alert_events += events as u64;
        vitals.alerts_quiet += quiet as u64;
        vitals.alerts_lost += lost;
    }

    /// Looks, now and then, at what is not in the records: how the mirrors do, and what is muted.
    fn look_around(&mut self, vitals: &Vitals, now: Timestamp) {
        // Also when the clock was set back.
        if now >= self.looked && now.since(self.looked) < LOOK_INTERVAL {
            return;
        }
        self.looked = now;
        self.look_at_mirrors(vitals, now);
        match self.mutes.changed() {
            Ok(None) => {}
            Ok(Some(mutes)) => {
                self.desk.set_mutes(mutes, now, &mut self.lines);
                vitals.detect().mutes_error = None;
            }
            Err(error) => {
                let error = format!("the mutes of before hold: read {}: {error}", self.mutes.path().display());
                if vitals.detect().mutes_error.replace(error.clone()).as_ref() != Some(&error) {
                    tracing::error!("{error}");
                }
            }
        }
    }

    /// Asks the sensors' accounts how their mirrors do.
    fn look_at_mirrors(&mut self, vitals: &Vitals, now: Timestamp) {
        let Some(health) = &mut self.health else { return };
        vitals.registry.each(|sensor, boot, status| {
            let account = Account { boot, connected: status.connected, received: status.accounts, ports: &status.ports };
            health.take(sensor, account, now);
        });
        for verdict in health.poll(now) {
            match verdict {
                Verdict::Found(finding) => self.health_book.take(&finding, now, &mut self.lines),
                Verdict::Over(rule, subject) => self.health_book.close(&rule, &subject, now, &mut self.lines),
            }
        }
        self.health_book.expire(now, now, &mut self.lines);
        // Their book knows no mutes: one that is muted comes back with its next line.
        for line in self.lines.iter_mut().filter(|line| line.class == Class::Health && line.is_open()) {
            line.muted = self.desk.muted(line, now);
        }
        health.conditions(self.desk.conditions());
        let mirrors = health.symptoms().map(|(sensor, interface, present)| (sensor.to_owned(), interface.to_owned(), present));
        vitals.detect().mirrors = mirrors.collect();
    }

    /// After a restart the same is found again: alerts that the file knows are told by their last word only, and not at all when the
    /// file has that.
    fn leave_out_what_is_written(&mut self) {
        if self.written.is_empty() {
            return;
        }
        let mut had_their_say = HashSet::new();
        self.lines.reverse();
        self.lines.retain(|line| match self.written.get(&line.id) {
            Some(before) => had_their_say.insert(line.id.clone()) && !line.says_the_same_as(before),
            None => true,
        });
        self.lines.reverse();
        self.written.retain(|id, _| !had_their_say.contains(id));
    }
}
