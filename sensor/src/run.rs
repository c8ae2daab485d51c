//! The sensor as a whole: one thread for each receive queue of each port, two for the way to the collector, and this one for signals
//! and metrics.
//!
//! When one port goes away, or its capture fails, the sensor sends what it has and ends with an error. Whoever reads the records could not
//! tell half a view from a quiet network; a service manager that starts the sensor again can wait for the port.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow, bail};
use crossbeam::channel::Sender;
use serde::Serialize;
use spanwatch_common::health::Health;
use spanwatch_common::ledger::Ledger;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::capture::af_xdp::syscall;
use crate::capture::settings::Settings as CaptureSettings;
use crate::capture::{self, Capture as _, CaptureError, Opened, Source};
use crate::clock::Clock;
use crate::config::Config;
use crate::cores::topology::{self, Queue, Topology};
use crate::cores::{self, Plan};
use crate::export::Harvest;
use crate::flow_table::{KeyHasher, Observer};
use crate::huge_pages::{self, Outcome};
use crate::live::LiveWorker;
use crate::metrics::{self, CaptureInfo, Vitals};
use crate::overload::Overload;
use crate::uplink::{Farewell, Port, Uplink};
use crate::worker::Worker;

/// Spent buffers of records that wait for their worker.
const SPARES_MAX: usize = 4;

/// A worker thread, and how its capture ended.
type Running = JoinHandle<Result<(), CaptureError>>;

/// Runs the sensor until SIGINT or SIGTERM, or until a capture fails. Writes the final account to `stats`, if given.
///
/// # Errors
/// Something is missing at the start, or a capture failed; what was captured has been sent either way. Or a second SIGINT came while it
/// was being sent.
pub fn run(config: &Config, stats: Option<&Path>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(watch(config, stats));
    // A flush that somebody has given up must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn watch(config: &Config, stats: Option<&Path>) -> anyhow::Result<()> {
    // Listened for before anything is opened, so that an early Ctrl-C ends in an orderly way too.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let topology = Topology::read();
    let opened = open_ports(&config.capture, &topology)?;
    let captures: Vec<CaptureInfo> = opened.iter().map(CaptureInfo::from).collect();
    let queues: Vec<Queue> = opened.iter().flat_map(|port| topology::queues(&port.interface, port.sources.len())).collect();
    let plan = cores::plan(&topology, &queues, &config.workers.cores).map_err(|sentence| anyhow!("workers.cores: {sentence}"))?;
    say_plan(&plan, &topology, &queues);
    say_table_pages();
    // What is started from here on stays off the workers' cores; they go to theirs by themselves.
    pin(if plan.others.is_empty() { &topology.allowed } else { &plan.others }, "the other threads");

    // Before the collector hears of this start: a second sensor on the same machine ends here, and disturbs nothing.
    let metrics_listener = metrics::listen(&config.metrics.listen).await?;
    let mut clock = Clock::new();
    let boot = clock.tick().at.as_nanos().cast_unsigned();
    let described = CaptureInfo::all(&captures);
    let (uplink, harvests) = Uplink::start(config.uplink.clone(), config.export.clone(), boot, described, ports_of(&opened))?;
    let vitals = Arc::new(Vitals { uplink, captures, clock, asked_for: Arc::default() });

    let stop = Arc::new(AtomicBool::new(false));
    let (ended, mut first_end) = mpsc::unbounded_channel();
    let workers = start_workers(config, opened, &plan, &vitals, &harvests, &stop, &ended)?;
    drop((ended, harvests));

    let mut serving = tokio::spawn(metrics::serve(metrics_listener, Arc::clone(&vitals)));
    tokio::select! {
        _ = interrupt.recv() => tracing::info!("interrupted; flushing (once more ends at once)"),
        _ = terminate.recv() => tracing::info!("asked to stop; flushing"),
        _ = first_end.recv() => tracing::error!("a capture thread has ended; stopping"),
        _ = &mut serving => tracing::error!("the metrics server has ended; stopping"),
    }
    let metrics_failed = serving.is_finished();
    stop.store(true, Ordering::Relaxed);
    let flushing = {
        let vitals = Arc::clone(&vitals);
        tokio::task::spawn_blocking(move || (join(workers), vitals.uplink.finish()))
    };
    let (failures, Farewell { ledger, health }) = tokio::select! {
        flushed = flushing => flushed.context("flush")?,
        _ = interrupt.recv() => {
            let Ledger { live, queued, flows, .. } = vitals.uplink.ledger();
            bail!(
                "interrupted again, and ended at once: {} records for {queued} packets, and the flows of {live} packets in the tables, did \
                 not reach the collector",
                flows.records_queued
            );
        }
    };
    serving.abort();
    report(&ledger, &health, stats)?;
    match failures.first() {
        Some(failure) => bail!("{failure}"),
        None if metrics_failed => bail!("metrics could not be served on {}", config.metrics.listen),
        None => Ok(()),
    }
}

/// Opens every port, and says how.
fn open_ports(settings: &CaptureSettings, topology: &Topology) -> Result<Vec<Opened>, CaptureError> {
    let mut all = Vec::new();
    for name in settings.ports() {
        // Memory is taken on the node of the core that takes it: the card's own.
        let near = topology.near(name);
        if !near.is_empty() {
            pin(&near, "the thread that opens the port");
        }
        let opened = capture::open_port(name, settings)?;
        for warning in &opened.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!("capturing on {name} with {}: {}", opened.in_force.name(), opened.why);
        for source in &opened.sources {
            tracing::info!("{}", source.describe());
        }
        all.push(opened);
    }
    Ok(all)
}

impl From<&Opened> for CaptureInfo {
    fn from(opened: &Opened) -> Self {
        Self {
            interface: opened.interface.name.clone(),
            mode: opened.in_force.name(),
            why: opened.why.clone(),
            queues: opened.sources.len(),
        }
    }
}

/// The ports as the uplink tells of them. Workers are numbered through all of them.
fn ports_of(opened: &[Opened]) -> Vec<Port> {
    let mut first = 0;
    let port = |(observation_point, port): (u32, &Opened)| {
        let workers = first..first + port.sources.len();
        first = workers.end;
        Port { observation_point, interface: port.interface.name.clone(), workers }
    };
    (1..).zip(opened).map(port).collect()
}

/// One thread for each source of each port, on its core.
fn start_workers(
    config: &Config,
    opened: Vec<Opened>,
    plan: &Plan,
    vitals: &Vitals,
    harvests: &Sender<Harvest>,
    stop: &Arc<AtomicBool>,
    ended: &mpsc::UnboundedSender<()>,
) -> anyhow::Result<Vec<Running>> {
    // One secret for all, so that what is hashed with it compares across queues and ports.
    let hasher = KeyHasher::random().context("ask the kernel for random bytes")?;
    let mut workers = Vec::new();
    for (observation_point, port) in (1..).zip(opened) {
        let one_sided = port.is_one_sided(&config.capture);
        let observer = Observer { observation_point, ingress_interface: port.interface.index, one_sided };
        for source in port.sources {
            let number = workers.len();
            let name = &port.interface.name;
            let worker = Worker::new(&config.meter(), hasher, observer)
                .with_context(|| format!("allocate the flow table of worker {number} ({name}); lower flow_table.flows_max"))?;
            let (spent, spares) = crossbeam::channel::bounded(SPARES_MAX);
            vitals.uplink.give_back(number, spent);
            let worker: LiveWorker<Source> = LiveWorker::new(number, source, worker, harvests.clone(), Arc::clone(stop));
            let overload = Overload::new(&config.overload, config.capture.keep_one_in);
            let worker = worker.watched(Arc::clone(&vitals.asked_for)).recycling(spares).shedding(overload);
            let core = plan.workers.get(number).and_then(|place| place.core);
            let ended = ended.clone();
            let thread = std::thread::Builder::new().name(format!("queue {number}")).spawn(move || {
                if let Some(core) = core {
                    pin(&[core], &format!("worker {number}"));
                }
                let result = worker.run();
                let _ = ended.send(()); // nobody listens any more when the sensor stops anyway
                result
            });
            workers.push(thread.context("start a worker thread")?);
        }
    }
    Ok(workers)
}

/// Waits for every worker; gives what went wrong.
fn join(workers: Vec<Running>) -> Vec<String> {
    let failure = |worker: Running| match worker.join() {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("a capture thread has panicked; please report this".to_owned()),
    };
    workers.into_iter().filter_map(failure).collect()
}

/// Binds the calling thread to cores. A sensor on the wrong core is slow, not wrong: a refusal is only said.
fn pin(cores: &[usize], what: &str) {
    if let Err(error) = syscall::pin_thread(cores) {
        tracing::warn!(
            "{what} cannot be bound to the cores {cores:?}: {error}; see workers.cores, and the cores that this process is given"
        );
    }
}

fn say_plan(plan: &Plan, topology: &Topology, queues: &[Queue]) {
    for line in plan.lines(queues) {
        tracing::info!("{line}");
    }
    for (says, remedy) in plan.troubles(topology, queues) {
        tracing::warn!("{says}; {remedy}");
    }
}

fn say_table_pages() {
    match huge_pages::try_out() {
        Outcome::Huge => tracing::info!("flow tables are on transparent huge pages"),
        Outcome::Normal { why, remedy } => {
            tracing::info!("flow tables are on normal pages, which is slower from 100,000 flows on: {why}; {remedy}");
        }
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
