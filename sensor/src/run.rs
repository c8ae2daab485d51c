//! The sensor as a whole: one thread for each receive queue, two for the way to the collector, and this one for signals and metrics.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, bail};
use serde::Serialize;
use spanwatch_common::health::Health;
use spanwatch_common::ledger::Ledger;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::capture::interface::Interface;
use crate::capture::{self, Capture as _, CaptureError, Opened};
use crate::clock::Clock;
use crate::config::Config;
use crate::flow_table::{KeyHasher, Observer};
use crate::live::LiveWorker;
use crate::metrics::{self, CaptureInfo, Vitals};
use crate::uplink::{Farewell, OBSERVATION_POINT, Uplink};
use crate::worker::Worker;

/// Runs the sensor until SIGINT or SIGTERM, or until the capture fails. Writes the final account to `stats`, if given.
///
/// # Errors
/// Something is missing at the start, or the capture failed; what was captured has been sent either way.
pub fn run(config: &Config, stats: Option<&Path>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(watch(config, stats))
}

async fn watch(config: &Config, stats: Option<&Path>) -> anyhow::Result<()> {
    // Listened for before anything is opened, so that an early Ctrl-C ends in an orderly way too.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let Opened { sources, in_force, why, warnings } = capture::open(&config.capture)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let info = CaptureInfo { interface: config.capture.interface.clone(), mode: in_force.name(), why, queues: sources.len() };
    tracing::info!("capturing on {} with {}: {}", info.interface, info.mode, info.why);
    for source in &sources {
        tracing::info!("{}", source.describe());
    }
    // Before the collector hears of this start: a second sensor on the same machine ends here, and disturbs nothing.
    let metrics_listener = metrics::listen(&config.metrics.listen).await?;
    let mut clock = Clock::new();
    let boot = clock.tick().at.as_nanos().cast_unsigned();
    let described = format!("{} on {}", info.mode, info.interface);
    let (uplink, harvests) =
        Uplink::start(config.uplink.clone(), config.export.clone(), boot, described, info.interface.clone())?;
    let vitals = Arc::new(Vitals { uplink, capture: info, clock, asked_for: Arc::default() });

    let stop = Arc::new(AtomicBool::new(false));
    let (ended, mut first_end) = mpsc::unbounded_channel();
    let mut workers: Vec<JoinHandle<Result<(), CaptureError>>> = Vec::new();
    let ingress_interface = Interface::find(&config.capture.interface)?.index;
    for (number, source) in sources.into_iter().enumerate() {
        let hasher = KeyHasher::random().context("ask the kernel for random bytes")?;
        let observer = Observer { observation_point: OBSERVATION_POINT, ingress_interface, one_sided: false };
        let worker = Worker::new(&config.meter(), hasher, observer)
            .with_context(|| format!("allocate the flow table of queue {number}; lower flow_table.flows_max"))?;
        let worker = LiveWorker::new(number, source, worker, harvests.clone(), Arc::clone(&stop));
        let worker = worker.watched(Arc::clone(&vitals.asked_for));
        let ended = ended.clone();
        let thread = std::thread::Builder::new().name(format!("queue {number}")).spawn(move || {
            let result = worker.run();
            let _ = ended.send(()); // nobody listens any more when the sensor stops anyway
            result
        });
        workers.push(thread.context("start a worker thread")?);
    }
    drop((ended, harvests));

    let mut serving = tokio::spawn(metrics::serve(metrics_listener, Arc::clone(&vitals)));
    tokio::select! {
        _ = interrupt.recv() => tracing::info!("interrupted; flushing"),
        _ = terminate.recv() => tracing::info!("asked to stop; flushing"),
        _ = first_end.recv() => tracing::error!("a capture thread has ended; stopping"),
        _ = &mut serving => tracing::error!("the metrics server has ended; stopping"),
    }
    let metrics_failed = serving.is_finished();
    stop.store(true, Ordering::Relaxed);
    let failures: Vec<String> = workers
        .into_iter()
        .filter_map(|worker| match worker.join() {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("a capture thread has panicked; please report this".to_owned()),
        })
        .collect();
    serving.abort();
    let Farewell { ledger, health } = vitals.uplink.finish();
    report(&ledger, &health, stats)?;
    match failures.first() {
        Some(failure) => bail!("{failure}"),
        None if metrics_failed => bail!("metrics could not be served on {}", config.metrics.listen),
        None => Ok(()),
    }
}

/// Says how the account came out, and writes it down.
fn report(ledger: &Ledger, health: &Health, stats: Option<&Path>) -> anyhow::Result<()> {
    let Ledger { wire, delivered, metered, exported, acknowledged, queued, not_sent, .. } = *ledger;
    let dropped = ledger.dropped.total();
    tracing::info!(
        "{wire} packets on the wire: {delivered} delivered, {dropped} dropped; {metered} metered, {exported} exported, {acknowledged} acknowledged"
    );
    if queued + not_sent > 0 {
        tracing::warn!("records for {} packets did not reach the collector", queued + not_sent);
    }
    if let Some(imbalance) = ledger.imbalance() {
        tracing::error!("the ledger does not balance: {imbalance}; please report this");
    }
    if let Some(path) = stats {
        write_stats(ledger, health, path)?;
    }
    Ok(())
}

/// Writes the account into a file, see [`stats_json`].
///
/// # Errors
/// The file cannot be written.
pub fn write_stats(ledger: &Ledger, health: &Health, path: &Path) -> anyhow::Result<()> {
    let json = stats_json(ledger, health)?;
    std::fs::write(path, json).with_context(|| format!("write {}", path.display()))
}

/// The account as one JSON object, with what the mirror is judged by as its `mirror`.
///
/// # Errors
/// None that is known.
pub fn stats_json(ledger: &Ledger, health: &Health) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Stats<'a> {
        #[serde(flatten)]
        ledger: &'a Ledger,
        mirror: &'a Health,
    }
    let stats = Stats { ledger, mirror: health };
    let json = serde_json::to_string_pretty(&stats).context("write the ledger as JSON")?;
    Ok(json + "\n")
}
