//! The running collector: ingest, store, detectors, alerts and metrics, wired together.
//!
//! ```text
//! sensors ═ TLS ═ ingest ──batches──▷ keep: push, commit every few seconds ──marks──▷ registry ──▷ acknowledgements
//!                    └─────batches──▷ watch: observe at once, poll ──findings──▷ alert book ──▷ file, terminal
//! ```
//! Both ways are bounded. When the disk takes nothing, `keep` holds what it has, takes nothing more, acknowledges nothing and
//! tries again; ingest then stops reading, and the sensors keep their records. Nothing acknowledged is ever lost.

mod keep;
mod watch_records;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use spanwatch_common::time::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::detect::RuleFile;
use crate::ingest::{self, sensor, tls};
use crate::metrics::{self, Vitals};
use crate::pki::Pki;
use crate::store::{self, Store, StoreSettings};

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
    vitals: Arc<Vitals>,
    stop: watch::Sender<bool>,
    ingest: JoinHandle<()>,
    keep: JoinHandle<()>,
    watch: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
}

/// Runs until SIGINT or SIGTERM, then stops in order.
///
/// # Errors
/// Something that the collector cannot start without: a port, a certificate, the store, the alert file. Or a part of it panicked:
/// sensors would otherwise wait for a collector that only seems to run.
pub async fn run(config: Config, rules: RuleFile) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let collector = Collector::start(config, &rules).await?;
    let whole = tokio::select! {
        _ = interrupt.recv() => true,
        _ = terminate.recv() => true,
        () = collector.broken() => false,
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
        let watch_records = Watch::new(rules, &config.alerts)?;
        let store = Store::open(config.store.clone()).await?;

        let vitals = Arc::new(Vitals::default());
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
        let watch = tokio::spawn(watch_records.run(inlets.detect, Arc::clone(&vitals), stopping.clone()));
        let ingest = tokio::spawn(sensor::serve(
            listener,
            tls,
            config.ingest,
            Arc::clone(&vitals.registry),
            outlets,
            Arc::clone(&vitals.door),
            stopping,
        ));
        let mut background = vec![tokio::spawn(upkeep(config.store, Arc::clone(&vitals)))];
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
        Ok(Self { sensors, metrics, vitals, stop, ingest, keep, watch, background })
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
        self.stop.send_replace(true);
        // A task that panicked has said so; the others still end in order.
        let _ = self.keep.await;
        let _ = self.watch.await;
        self.vitals.registry.close();
        let _ = tokio::time::timeout(GOODBYE_LIMIT, self.ingest).await;
        for task in self.background {
            task.abort();
            let _ = task.await;
        }
    }
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
