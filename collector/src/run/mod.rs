//! The running collector: ingest, store, detectors, alerts and metrics, wired together.
//!
//! ```text
//! sensors ═ TLS ═ ingest ──batches──▷ keep: push, commit every few seconds ──marks──▷ registry ──▷ acknowledgements
//!                    └─────batches──▷ watch: observe at once, poll ──findings──▷ desk ──▷ journal, file, terminal
//!                    └────accounts──▷ registry ──▷ watch: mirror health, once a minute ──▷ alert book of its own
//!                                                                          journal ──▷ outputs: syslog, webhooks, Sentinel, files
//!                    └─────a cut now and then through both ──version, snapshot──▷ checkpoint
//! ```
//! Both ways are bounded. When the disk takes nothing, `keep` holds what it has, takes nothing more, acknowledges nothing and
//! tries again; ingest then stops reading, and the sensors keep their records. Nothing acknowledged is ever lost.

mod checkpoint;
mod keep;
mod outlet;
#[cfg(test)]
mod tests;
mod watch_records;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use spanwatch_common::time::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::alert::deliver::Outbox;
use crate::config::Config;
use crate::detect::RuleFile;
use crate::ingest::azure::tail;
use crate::ingest::{self, sensor, tls};
use crate::metrics::{self, Vitals};
use crate::pki::Pki;
use crate::store::{self, Store, StoreSettings};

use self::checkpoint::{Checkpoint, Checkpoints};
use self::watch_records::Watch;

/// How long conversations with sensors may take to end.
const GOODBYE_LIMIT: Duration = Duration::from_secs(5);
/// How often it is asked whether every part is still there.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The first upkeep waits so long, so that a restart in a loop does not merge files in a loop.
const UPKEEP_DELAY: Duration = Duration::from_secs(20);

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    /// Where sensors connect.
    pub sensors: SocketAddr,
    /// Where the metrics are, if anywhere.
    pub metrics: Option<SocketAddr>,
    config: Config,
    vitals: Arc<Vitals>,
    reloads: mpsc::Sender<RuleFile>,
    checkpoints: Checkpoints,
    stop: watch::Sender<bool>,
    ingest: JoinHandle<()>,
    keep: JoinHandle<()>,
    watch: JoinHandle<()>,
    outputs: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
}

/// Runs until SIGINT or SIGTERM, then stops in order. On SIGHUP it reads the rules again.
///
/// # Errors
/// Something that the collector cannot start without: a port, a certificate, the store, the alert file. Or a part of it panicked:
/// sensors would otherwise wait for a collector that only seems to run.
pub async fn run(config: Config, rules: RuleFile) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let collector = Collector::start(config, &rules).await?;
    let whole = loop {
        tokio::select! {
            _ = interrupt.recv() => break true,
            _ = terminate.recv() => break true,
            _ = hangup.recv() => collector.reload().await,
            () = collector.broken() => break false,
        }
    };
    tracing::info!("stopping: committing what has arrived");
    collector.stop().await;
    anyhow::ensure!(whole, "a part of the collector ended by itself; please report what it said before");
    Ok(())
}

impl Collector {
    /// Opens everything and begins to listen.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn start(config: Config, rules: &RuleFile) -> anyhow::Result<Self> {
        let tls = tls::server_config(&Pki::new(&config.pki.directory))?;
        let listener = listen(&config.ingest.listen, "ingest.listen").await?;
        let metrics_listener = match config.metrics.listen.as_str() {
            "" => None,
            address => Some(listen(address, "metrics.listen").await?),
        };
        config.roles.iter().filter_map(|role| role.reminder(clock())).for_each(|sentence| tracing::warn!("{sentence}"));
        let outbox = Outbox::open(&config.delivery, &config.outputs).with_context(|| {
            let directory = config.delivery.directory.display();
            format!("cannot use {directory} (is `delivery.directory` right, and may this user write there?)")
        })?;
        let mut store = Store::open(config.store.clone()).await?;
        let mut watch_records = Watch::new(rules, &config, &outbox)?;
        match resume(&mut watch_records, &mut store, &config.store).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!("the detectors start anew, without what they had learned: {error:#}");
                watch_records = Watch::new(rules, &config, &outbox)?;
            }
        }

        let vitals = Arc::new(Vitals::default());
        vitals.detect().rules_loaded_at = clock();
        vitals.deliver_from(&outbox);
        let (outlets, inlets) = ingest::outlets();
        let (stop, stopping) = watch::channel(false);
        let (sensors, metrics) = (listener.local_addr()?, metrics_listener.as_ref().map(TcpListener::local_addr).transpose()?);

        let keep = keep::keep(
            store,
            Duration::from_secs(config.store.commit_interval_secs),
            inlets.store,
            inlets.inquiries,
            Arc::clone(&vitals),
            stopping.clone(),
        );
        let keep = tokio::spawn(keep);
        let (reloads, new_rules) = mpsc::channel(1);
        let watch = tokio::spawn(watch_records.run(inlets.detect, new_rules, Arc::clone(&vitals), stopping.clone()));
        let outputs = tokio::spawn(outbox.run(clock().as_nanos().cast_unsigned(), stopping.clone()));
        let checkpoints =
            Checkpoints { outlets: outlets.clone(), directory: config.store.directory.clone(), vitals: Arc::clone(&vitals) };
        let interval = Duration::from_secs(config.detect.checkpoint_interval_secs);
        let mut background = vec![tokio::spawn(checkpoints.clone().run(interval, stopping.clone()))];
        for container in config.azure.clone() {
            let (store, outlets, vitals) = (config.store.clone(), outlets.clone(), Arc::clone(&vitals));
            background.push(tokio::spawn(tail::follow(container, store, outlets, vitals, clock, stopping.clone())));
        }
        let ingest = tokio::spawn(sensor::serve(
            listener,
            tls,
            config.ingest.clone(),
            Arc::clone(&vitals.registry),
            outlets,
            Arc::clone(&vitals.door),
            stopping,
        ));
        background.push(tokio::spawn(upkeep(config.store.clone(), Arc::clone(&vitals))));
        if let Some(listener) = metrics_listener {
            let router = metrics::router(Arc::clone(&vitals));
            background.push(tokio::spawn(async move {
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::warn!("metrics: {error}");
                }
            }));
        }
        match metrics {
            Some(metrics) => tracing::info!("listening for sensors on {sensors}; metrics on http://{metrics}/metrics"),
            None => tracing::info!("listening for sensors on {sensors}"),
        }
        Ok(Self { sensors, metrics, config, vitals, reloads, checkpoints, stop, ingest, keep, watch, outputs, background })
    }

    /// Reads the rules again and puts them into force. With a mistake in them the old ones stay, and the log, `/healthz` and
    /// `/metrics` say so.
    pub async fn reload(&self) {
        match self.config.rules() {
            Ok(rules) => {
                if self.reloads.send(rules).await.is_ok() {
                    let mut vitals = self.vitals.detect();
                    (vitals.rules_loaded_at, vitals.rules_error) = (clock(), None);
                }
            }
            Err(error) => {
                tracing::error!("the rules of before stay in force: {error}");
                self.vitals.detect().rules_error = Some(error.to_string());
            }
        }
    }

    /// Writes what the detectors have learned beside the records, now. False when store or detectors had a reason not to.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn checkpoint(&self) -> io::Result<bool> {
        self.checkpoints.make().await
    }

    /// The collector's numbers.
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// Waits until a part has ended that should not before [`stop`](Self::stop).
    async fn broken(&self) {
        while ![&self.ingest, &self.keep, &self.watch].into_iter().any(JoinHandle::is_finished) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Stops accepting, commits what has arrived, acknowledges it, and ends.
    pub async fn stop(self) {
        if let Err(error) = self.checkpoint().await {
            tracing::warn!(
                "what the detectors have learned cannot be written: {error}; the next start looks at older records again"
            );
        }
        self.stop.send_replace(true);
        // A task that panicked has said so; the others still end in order.
        let _ = self.keep.await;
        let _ = self.watch.await;
        self.vitals.registry.close();
        let _ = tokio::time::timeout(GOODBYE_LIMIT, self.ingest).await;
        // What they did not get is in the journal.
        let _ = tokio::time::timeout(GOODBYE_LIMIT, self.outputs).await;
        for task in self.background {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Brings the detectors to where the records are: back to the last checkpoint, then over every record that came after it.
///
/// Without a checkpoint they begin with the table as it is now, and a first one says so: a kill before the second must not lose
/// what comes from here on.
async fn resume(watch: &mut Watch, store: &mut Store, settings: &StoreSettings) -> anyhow::Result<()> {
    let Some(checkpoint) = Checkpoint::read(&settings.directory).context("read the checkpoint")? else {
        let first = Checkpoint { version: store.version().await?, snapshot: watch.memory()? };
        return first.write(&settings.directory).context("write the first checkpoint");
    };
    let anew = watch.resume(&checkpoint.snapshot)?;
    let mut records = 0_u64;
    let mut look = |sensor: &str, record| {
        watch.observe(sensor, &record);
        records += 1;
        Ok(())
    };
    // Containers that are followed go before the detectors; what `import` brought in by hand never does.
    let followed = |import: &str| import.starts_with(tail::IMPORT_PREFIX);
    store::added_since(settings, checkpoint.version, &followed, &mut look).await?;
    tracing::info!("the detectors go on where they were; {records} records since the last checkpoint were looked at again");
    if !anew.is_empty() {
        tracing::info!("{} start anew, because their settings have changed", anew.join(", "));
    }
    Ok(())
}

async fn listen(address: &str, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow::anyhow!(
                "listen on {address}: another program does already; stop it (`ss -ltnp` shows which), or change `{key}`"
            )
        }
        io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("listen on {address}: not permitted; choose a port above 1023 as `{key}`")
        }
        io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("listen on {address}: this machine does not have that address; change `{key}`")
        }
        _ => anyhow::anyhow!("listen on {address} (`{key}`): {error}"),
    })
}

/// Merges, drops and tidies in the background.
async fn upkeep(settings: StoreSettings, vitals: Arc<Vitals>) {
    let mut failing = false;
    tokio::time::sleep(UPKEEP_DELAY.min(Duration::from_secs(settings.compact_interval_secs))).await;
    loop {
        match store::upkeep(&settings, clock()).await {
            Ok(done) => {
                let mut store = vitals.store();
                (store.files, store.bytes) = (done.files, done.bytes);
                drop(store);
                if std::mem::take(&mut failing) {
                    tracing::info!("upkeep of the store works again");
                }
                tracing::debug!("upkeep: {done:?}");
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("upkeep of the store: {error}");
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(settings.compact_interval_secs)).await;
    }
}

/// The wall clock.
#[expect(clippy::disallowed_methods, reason = "the collector's loops own their I/O; everything below them is handed the time")]
pub fn clock() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::NONE.plus(since_epoch)
}
