//! The uplink: carries batches to the collector and survives its absence.
//!
//! Two threads, neither of which a capture thread ever waits for. The *harvest* thread takes finished records from the workers
//! and cuts batches ([`crate::export`]); the *uplink* thread connects, sends within the collector's credit, and lets go of what
//! is acknowledged. When the connection breaks it tries again, with pauses that double up to a limit, and resends.
//!
//! * [`settings`] — where the collector is, and patience
//! * [`identity`] — key, certificate, authority: one file
//! * [`trouble`] — every way it can fail, as a sentence
//! * `connection` — one connection from lookup to end

mod connection;
pub mod identity;
pub mod settings;
pub mod trouble;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use spanwatch_common::health::{Health, PortHealth};
use spanwatch_common::ledger::Ledger;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::{self, Welcome};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsConnector;

use self::identity::{Identity, IdentityError};
use self::settings::UplinkSettings;
use self::trouble::Trouble;
use crate::export::{ExportSettings, Exporter, Harvest};
use crate::flow_table::{Records, Talker};

/// What this program calls itself in the hello.
const SOFTWARE: &str = concat!("spanwatch-sensor ", env!("CARGO_PKG_VERSION"));
/// Harvests that may wait for the harvest thread.
const HARVESTS_MAX: usize = 64;
/// First pause between two attempts to connect.
const RETRY_MIN: Duration = Duration::from_millis(500);

/// Why an uplink cannot start.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Key and certificate do not fit each other, or cannot be used.
    #[error("identity {path}: {source}; make it anew with `spanwatch-collector pki issue NAME`")]
    Tls {
        /// The file.
        path: String,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The system gives no thread or no event queue.
    #[error("start the uplink: {0}")]
    System(#[from] std::io::Error),
    /// No way to the collector; only from [`check_reach`].
    #[error(transparent)]
    Unreachable(#[from] Trouble),
}

/// The running uplink.
#[derive(Debug)]
pub struct Uplink {
    shared: Arc<Shared>,
    /// Until they are joined.
    harvesting: Mutex<Option<JoinHandle<()>>>,
    shipping: Mutex<Option<JoinHandle<()>>>,
}

/// A capture port and who reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// observationPointId in its records, from 1.
    pub observation_point: u32,
    /// Name of its interface.
    pub interface: String,
    /// Numbers of the workers that read its queues.
    pub workers: Range<usize>,
}

/// How the connection is doing, for /metrics, /healthz and /live.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// Whether the collector has welcomed us and still listens.
    pub connected: bool,
    /// How often it has welcomed us.
    pub connects: u64,
    /// Why there is no connection; the last reason while there is one.
    pub trouble: Option<String>,
    /// Bytes of encoded batches that wait.
    pub queue_bytes: u64,
}

/// What became of the records, once the uplink has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// The final account; what is still `queued` in it is lost.
    pub ledger: Ledger,
    /// What the mirror is judged by, at the end.
    pub health: Health,
}

/// What both threads and the face share.
#[derive(Debug)]
struct Shared {
    exporter: Mutex<Exporter>,
    link: Mutex<Link>,
    /// How packets are captured, told to the collector.
    capture: String,
    /// The capture ports, in the order of their observation points.
    ports: Vec<Port>,
    /// Where the spent buffers of each worker go.
    spent: Mutex<Vec<Option<Sender<Records>>>>,
    /// Something to send, something acknowledged, or time to stop.
    wake: Notify,
    /// No more harvests will come.
    stopping: AtomicBool,
    /// The last harvest is in the exporter.
    harvested: AtomicBool,
    /// Turns true when the last flush begins.
    flushing: watch::Sender<bool>,
}

impl Uplink {
    /// Starts both threads. `boot` must be larger than at any earlier start of this sensor (nanoseconds since the epoch);
    /// `capture` tells the collector how packets are captured, `ports` where.
    ///
    /// The sender is for the workers. It never blocks for the network, but may be full for a moment: use `try_send`, and keep
    /// the harvest for the next turn when it is.
    ///
    /// # Errors
    /// The identity is unusable, or the system refuses a thread. That the collector is away is no error.
    pub fn start(
        settings: UplinkSettings,
        export: ExportSettings,
        boot: u64,
        capture: impl Into<String>,
        ports: Vec<Port>,
    ) -> Result<(Self, Sender<Harvest>), UplinkError> {
        let identity = Identity::load(&settings.identity)?;
        let sensor = identity.name.clone();
        let tls = connector(&settings, identity)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;

        let shared = Arc::new(Shared {
            exporter: Mutex::new(Exporter::new(sensor, boot, export.clone())),
            link: Mutex::new(Link::default()),
            capture: capture.into(),
            ports,
            spent: Mutex::default(),
            wake: Notify::new(),
            stopping: AtomicBool::new(false),
            harvested: AtomicBool::new(false),
            flushing: watch::Sender::new(false),
        });
        let (sender, receiver) = crossbeam::channel::bounded(HARVESTS_MAX);
        // Often enough that a record waits a quarter longer than it should at most.
        let pace = Duration::from_millis((export.batch_age_millis / 4).max(1));
        let harvesting = std::thread::Builder::new().name("harvest".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || harvest(&shared, &receiver, pace)
        })?;
        let shipping = std::thread::Builder::new().name("uplink".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                runtime.block_on(ship(&settings, &tls, &shared));
                // A name lookup that hangs must not hold the sensor up beyond its flush timeout.
                runtime.shutdown_background();
            }
        })?;
        Ok((Self { shared, harvesting: Mutex::new(Some(harvesting)), shipping: Mutex::new(Some(shipping)) }, sender))
    }

    /// Gives the spent buffers of records of `worker` back to it, as long as `spent` has room.
    pub fn give_back(&self, worker: usize, spent: Sender<Records>) {
        let mut all = self.shared.spent();
        if all.len() <= worker {
            all.resize(worker + 1, None);
        }
        all[worker] = Some(spent);
    }

    /// The account of the whole sensor, as of now.
    pub fn ledger(&self) -> Ledger {
        self.shared.exporter().ledger()
    }

    /// What each capture port is judged by, as of now, in the order of their observation points.
    pub fn ports(&self) -> Vec<PortHealth> {
        self.shared.ports()
    }

    /// The account of each worker up to the flow table, as of now.
    pub fn queues(&self) -> Vec<Ledger> {
        self.shared.exporter().workers().copied().collect()
    }

    /// The flows with most octets, the fastest first; empty while nobody watches.
    pub fn talkers(&self) -> Vec<Talker> {
        self.shared.exporter().talkers()
    }

    /// How the connection is doing.
    pub fn link(&self) -> Link {
        let queue_bytes = self.shared.exporter().queue().bytes() as u64;
        Link { queue_bytes, ..self.shared.link().clone() }
    }

    /// Ships what is left, waits until it is acknowledged or `flush_timeout_secs` have passed, and stops.
    ///
    /// The workers must have handed over their last harvest before. Others may still look at the ledger meanwhile; a second
    /// call only returns it.
    pub fn finish(&self) -> Farewell {
        self.shared.stopping.store(true, Ordering::Release);
        join(&self.harvesting);
        self.shared.flushing.send_replace(true);
        self.shared.wake.notify_one();
        join(&self.shipping);
        let ledger = self.shared.exporter().ledger();
        if ledger.flows.records_queued > 0 {
            let (records, packets) = (ledger.flows.records_queued, ledger.queued);
            tracing::warn!("{records} records ({packets} packets) were not acknowledged in time and are lost");
        }
        Farewell { ledger, health: self.shared.exporter().health() }
    }
}

/// Whether the collector can be reached and takes this sensor; returns the sensor's name and the end of its certificate.
/// Disturbs no running sensor of the same name.
///
/// # Errors
/// The first thing that is in the way, in a sentence that says what to do.
pub fn check_reach(settings: &UplinkSettings) -> Result<(String, Timestamp), UplinkError> {
    let identity = Identity::load(&settings.identity)?;
    let (name, ends) = (identity.name.clone(), identity.ends);
    let tls = connector(settings, identity)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(connection::ask(settings, &tls, &name));
    runtime.shutdown_background(); // without waiting for a name lookup that hangs
    answer?;
    Ok((name, ends))
}

/// Waits for a thread, once. A panicked one has said so on stderr; the account shows what it left behind.
fn join(thread: &Mutex<Option<JoinHandle<()>>>) {
    let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(thread) = thread {
        let _ = thread.join();
    }
}

impl Shared {
    fn exporter(&self) -> MutexGuard<'_, Exporter> {
        self.exporter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ports(&self) -> Vec<PortHealth> {
        let exporter = self.exporter();
        let port = |port: &Port| PortHealth {
            observation_point: port.observation_point,
            interface: port.interface.clone(),
            health: exporter.health_of(port.workers.clone()),
        };
        self.ports.iter().map(port).collect()
    }

    fn spent(&self) -> MutexGuard<'_, Vec<Option<Sender<Records>>>> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self, settings: &UplinkSettings, welcome: &Welcome) {
        let mut link = self.link();
        link.connected = true;
        link.connects += 1;
        tracing::info!("connected to collector {}; it holds batches up to {}", settings.collector, welcome.resume_after);
    }

    /// Notes why there is no connection; says so when it is news.
    fn disconnected(&self, trouble: &Trouble) {
        let sentence = trouble.to_string();
        let mut link = self.link();
        let is_news = std::mem::take(&mut link.connected) || link.trouble.as_ref() != Some(&sentence);
        if is_news {
            tracing::warn!("{sentence}; records are kept and sent later");
        }
        link.trouble = Some(sentence);
    }

    /// Whether the sensor stops and everything has arrived.
    fn is_done(&self) -> bool {
        self.harvested.load(Ordering::Acquire) && self.exporter().is_idle()
    }
}

/// TLS 1.3 with both certificates, and nothing else.
fn connector(settings: &UplinkSettings, identity: Identity) -> Result<TlsConnector, UplinkError> {
    let unusable = |source| UplinkError::Tls { path: settings.identity.display().to_string(), source };
    let mut roots = RootCertStore::empty();
    for authority in identity.authorities {
        roots.add(authority).map_err(unusable)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![identity.certificate], identity.key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![wire::ALPN.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The harvest thread: takes what the workers finished, cuts batches, wakes the uplink.
fn harvest(shared: &Shared, harvests: &Receiver<Harvest>, pace: Duration) {
    let ship = |exporter: &mut Exporter, result: Result<(), wire::WireError>| {
        if let Err(error) = result {
            tracing::error!("{error}; its records are counted as not sent");
        }
        exporter.queue().bytes()
    };
    loop {
        let is_last = shared.stopping.load(Ordering::Acquire);
        let first = if is_last { harvests.try_recv().ok() } else { receive(harvests, pace) };
        let now = clock();
        let mut exporter = shared.exporter();
        let was_empty = first.is_none();
        for harvest in first.into_iter().chain(harvests.try_iter()) {
            let worker = harvest.worker;
            let records = exporter.take(now, harvest);
            if let Some(Some(spent)) = shared.spent().get(worker) {
                let _ = spent.try_send(records); // a worker that has enough of them leaves it to be freed
            }
            let due = exporter.ship_due(now);
            ship(&mut exporter, due);
        }
        let due = if is_last && was_empty { exporter.ship_all() } else { exporter.ship_due(now) };
        let bytes = ship(&mut exporter, due);
        drop(exporter);
        if bytes > 0 {
            shared.wake.notify_one();
        }
        if is_last && was_empty {
            shared.harvested.store(true, Ordering::Release);
            return;
        }
    }
}

/// The next harvest, or nothing after `pace`.
fn receive(harvests: &Receiver<Harvest>, pace: Duration) -> Option<Harvest> {
    match harvests.recv_timeout(pace) {
        Ok(harvest) => Some(harvest),
        Err(RecvTimeoutError::Timeout) => None,
        // Every worker has gone and `finish` is about to be called; until then, do not spin.
        Err(RecvTimeoutError::Disconnected) => {
            std::thread::sleep(pace);
            None
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the harvest thread owns the age of batches")]
fn clock() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::NONE.plus(since_epoch)
}

/// The uplink thread: connects and ships, again and again, until the sensor stops.
async fn ship(settings: &UplinkSettings, tls: &TlsConnector, shared: &Shared) {
    let flushing = || async { drop(shared.flushing.subscribe().wait_for(|flushing| *flushing).await) };
    let give_up = async {
        flushing().await;
        tokio::time::sleep(Duration::from_secs(settings.flush_timeout_secs)).await;
    };
    let ship = async {
        let mut failures = 0;
        loop {
            let before = shared.link().connects;
            let ended = match connection::connect(settings, tls).await {
                Ok(stream) => connection::converse(stream, settings, shared).await,
                Err(trouble) => Err(trouble),
            };
            if let Err(trouble) = ended {
                shared.disconnected(&trouble);
            }
            if shared.is_done() {
                return;
            }
            failures = if shared.link().connects > before { 0 } else { failures + 1 };
            let longest = Duration::from_secs(settings.retry_secs_max);
            // A sensor that stops has no time for long pauses.
            tokio::select! {
                () = tokio::time::sleep(pause(failures, longest, random_byte())) => {}
                () = async { flushing().await; tokio::time::sleep(RETRY_MIN).await } => {}
            }
        }
    };
    tokio::select! {
        () = ship => {}
        () = give_up => {}
    }
    shared.link().connected = false;
}

/// How long to wait after `failures` vain attempts in a row: twice as long each time, up to `longest`, less up to a half by
/// chance so that a hundred sensors do not come back in the same instant.
fn pause(failures: u32, longest: Duration, chance: u8) -> Duration {
    let whole = RETRY_MIN.saturating_mul(1 << failures.min(16)).min(longest);
    whole - whole.mul_f64(f64::from(chance) / 512.0)
}

fn random_byte() -> u8 {
    let mut byte = [0];
    match getrandom::fill(&mut byte) {
        Ok(()) => byte[0],
        Err(_) => 0, // no chance, only no spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_are_spread() {
        let longest = Duration::from_secs(30);
        assert_eq!(pause(0, longest, 0), Duration::from_millis(500));
        assert_eq!(pause(3, longest, 0), Duration::from_secs(4));
        assert_eq!(pause(100, longest, 0), longest);
        assert!(pause(100, longest, 255) > longest / 2);
    }
}
