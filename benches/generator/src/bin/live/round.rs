//! One round: traffic from the generator on one core, and what the other core makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use crossbeam::channel::{self, Receiver, Sender};
use spanwatch_common::ledger::Ledger;
use spanwatch_common::time::Timestamp;
use spanwatch_generator::cores;
use spanwatch_generator::generator::{self, Sent};
use spanwatch_generator::namespace::{self, RECEIVER, SENDER};
use spanwatch_generator::traffic::Traffic;
use spanwatch_sensor::capture::settings::{Mode, Settings};
use spanwatch_sensor::capture::{self, Capture, CaptureError, Drained, Frame, InForce, Losses};
use spanwatch_sensor::export::Harvest;
use spanwatch_sensor::flow_table::{KeyHasher, Observer, Records};
use spanwatch_sensor::live::LiveWorker;
use spanwatch_sensor::worker::{MeterSettings, Worker};

/// Makes the packets; the kernel's receiving half of the veth pair runs there too.
const SENDING_CORE: usize = 0;
/// Reads them from the ring.
const READING_CORE: usize = 1;
/// Harvests that wait for their reader, as in the sensor.
const HARVESTS_MAX: usize = 64;
/// Frames that the touching reader takes at a time, as the sensor's loop does.
const FRAMES_MAX: usize = 256;
/// How long it waits for them, likewise.
const WAIT: Duration = Duration::from_millis(20);

/// Who reads the frames.
#[derive(Clone, Copy)]
pub(crate) enum Reader<'a> {
    /// A loop that looks at the first octets of each frame and gives it back: the most that anyone could do.
    Touch,
    /// The sensor's line, from capture to harvest.
    Line(&'a MeterSettings),
}

/// How the reader is set up.
#[derive(Clone, Copy)]
pub(crate) struct Rig {
    /// Slots of the receive ring; twice as many buffers stand behind it.
    pub(crate) ring_slots: u32,
    /// Whether the reader goes before whatever else runs on its core.
    pub(crate) reader_first: bool,
}

/// What a round came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// What the generator says.
    pub(crate) sent: Sent,
    /// Frames that arrived at the port, by the veth pair's own count.
    pub(crate) arrived: u64,
    /// The reader's account.
    pub(crate) ledger: Ledger,
    /// Frames that had been read when the last was sent.
    pub(crate) read_in_time: u64,
    /// Memory that the process occupied, in bytes: with the capture open, before there was a flow table.
    pub(crate) resident_before: u64,
    /// The same when the last frame had been sent; it never gives back what its tables have grown to.
    pub(crate) resident_after: u64,
}

impl Outcome {
    /// Frames read a second while frames were being sent, in millions.
    pub(crate) fn mpps(&self) -> f64 {
        self.read_in_time as f64 / self.sent.took().as_secs_f64() / 1e6
    }

    /// Frames that arrived a second, in millions.
    pub(crate) fn arrived_mpps(&self) -> f64 {
        self.arrived as f64 / self.sent.took().as_secs_f64() / 1e6
    }

    /// Frames that were sent and not read.
    pub(crate) fn lost(&self) -> u64 {
        self.sent.frames - self.ledger.delivered
    }

    /// Every frame is accounted for: what was sent arrived or found the veth pair's ring full, what arrived is the ledger's wire, and the
    /// ledger adds up.
    fn check(&self) -> anyhow::Result<()> {
        let Self { sent, arrived, ledger, .. } = self;
        ensure!(*arrived <= sent.frames, "{arrived} frames arrived, but only {} were sent", sent.frames);
        ensure!(ledger.wire == *arrived, "{arrived} frames arrived at the port, but the ledger says {} on the wire", ledger.wire);
        if let Some(imbalance) = ledger.imbalance() {
            bail!("the ledger does not balance: {imbalance}");
        }
        Ok(())
    }
}

/// Sends `traffic`, lets `reader` read it, and checks that the accounts agree. `each` is shown every harvest of the line.
///
/// # Errors
/// The capture does not open as AF_XDP in the driver, something fails, or a packet is not accounted for.
pub(crate) fn run(traffic: &Traffic, reader: Reader<'_>, rig: Rig, each: impl FnMut(&Harvest) + Send) -> anyhow::Result<Outcome> {
    let settings = Settings { interface: RECEIVER.into(), mode: Mode::AfXdp, ring_slots: rig.ring_slots, ..Settings::default() };
    let opened = capture::open(&settings)?;
    ensure!(opened.in_force == InForce::AfXdpCopy, "the capture runs as {}: {}", opened.in_force.name(), opened.why);
    let resident_before = resident()?;
    let arrived_before = namespace::counter(RECEIVER, "rx_packets")?;
    let source = opened.sources.into_iter().next().context("the capture has no queue")?;
    let read = Arc::new(AtomicU64::new(0));
    let source = Counted { source, read: Arc::clone(&read) };
    let stop = Arc::new(AtomicBool::new(false));
    let (harvests, harvested) = channel::bounded(HARVESTS_MAX);
    let (spent, spares) = channel::bounded(HARVESTS_MAX);
    let (ready, is_ready) = channel::bounded::<()>(1);
    let sender = namespace::index(SENDER)?;

    thread::scope(|scope| {
        let stop_reading = Arc::clone(&stop);
        let reading = scope.spawn(move || -> anyhow::Result<Option<Ledger>> {
            pin(READING_CORE)?;
            if rig.reader_first {
                cores::first().context("put the reader before others; it takes root")?;
            }
            let meter = match reader {
                Reader::Touch => {
                    drop(ready);
                    return touch(source, &stop_reading).map(Some);
                }
                Reader::Line(meter) => meter,
            };
            let hasher = KeyHasher::random().context("ask the kernel for random bytes")?;
            let worker = Worker::new(meter, hasher, Observer::default()).context("allocate the flow table")?;
            drop(ready);
            LiveWorker::new(0, source, worker, harvests, stop_reading).recycling(spares).run()?;
            Ok(None)
        });
        let harvesting = scope.spawn(|| {
            pin(SENDING_CORE)?;
            Ok::<_, anyhow::Error>(harvest(&harvested, &spent, each))
        });
        let sending = scope.spawn(|| -> anyhow::Result<(Sent, u64, u64)> {
            pin(SENDING_CORE)?;
            let _ = is_ready.recv(); // ends when the reader has dropped its end: ready, or failed
            let sent = generator::send(traffic, sender, &AtomicBool::new(false));
            let read_in_time = read.load(Ordering::Relaxed);
            let (resident_after, settled) = (resident(), settle());
            stop.store(true, Ordering::Relaxed);
            settled?;
            Ok((sent?, read_in_time, resident_after?))
        });
        let touched = reading.join().map_err(|_| anyhow!("the reader panicked"))??;
        let line = harvesting.join().map_err(|_| anyhow!("the harvest panicked"))??;
        let (sent, read_in_time, resident_after) = sending.join().map_err(|_| anyhow!("the generator panicked"))??;
        let outcome = Outcome {
            sent,
            arrived: namespace::counter(RECEIVER, "rx_packets")? - arrived_before,
            ledger: touched.unwrap_or(line),
            read_in_time,
            resident_before,
            resident_after,
        };
        outcome.check()?;
        Ok(outcome)
    })
}

/// Memory that this process occupies, in bytes.
///
/// # Errors
/// /proc does not say.
pub(crate) fn resident() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc/self/status has no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
    Ok(kib * 1024)
}

/// Waits until no more frames arrive.
fn settle() -> anyhow::Result<()> {
    let mut before = namespace::counter(RECEIVER, "rx_packets")?;
    loop {
        thread::sleep(Duration::from_millis(20));
        let after = namespace::counter(RECEIVER, "rx_packets")?;
        if after == before {
            return Ok(());
        }
        before = after;
    }
}

/// Takes harvests until there are no more, and gives their buffers back; gives the last ledger.
fn harvest(harvested: &Receiver<Harvest>, spent: &Sender<Records>, mut each: impl FnMut(&Harvest)) -> Ledger {
    let mut ledger = Ledger::default();
    for harvest in harvested {
        each(&harvest);
        // What becomes of records is beyond the line: all that the loop did not throw away count as queued.
        ledger = Ledger { queued: harvest.ledger.exported - harvest.ledger.not_sent, ..harvest.ledger };
        let mut records = harvest.records;
        records.clear();
        let _ = spent.try_send(records); // the sensor's loop has enough of them
    }
    ledger
}

/// Reads the first octets of each frame until `stop` is set and nothing waits.
fn touch(mut source: Counted, stop: &AtomicBool) -> anyhow::Result<Ledger> {
    let (mut delivered, mut sum, mut stopped) = (0, 0_u64, false);
    loop {
        if !stopped && stop.load(Ordering::Relaxed) {
            source.stop()?;
            stopped = true;
        }
        source.wait(WAIT)?;
        let drained = source.drain(Timestamp::NONE, FRAMES_MAX, |frames| {
            for frame in frames {
                sum = sum.wrapping_add(frame.bytes.first_chunk().map_or(0, |octets| u64::from_ne_bytes(*octets)));
            }
        })?;
        match drained {
            Drained::Frames(frames) => delivered += frames as u64,
            Drained::Ended => break,
        }
    }
    std::hint::black_box(sum);
    let Losses { wire, dropped } = source.losses()?;
    // Whatever is touched counts as metered and sent, so that one account serves both readers.
    Ok(Ledger { wire, dropped, delivered, metered: delivered, exported: delivered, queued: delivered, ..Ledger::default() })
}

fn pin(core: usize) -> anyhow::Result<()> {
    cores::pin(core).with_context(|| format!("run on core {core}"))
}

/// A capture that says how far it has been read, to whoever asks from another core. Costs an addition for each call.
struct Counted {
    source: capture::Source,
    read: Arc<AtomicU64>,
}

impl Capture for Counted {
    fn wait(&mut self, timeout: Duration) -> Result<(), CaptureError> {
        self.source.wait(timeout)
    }

    fn drain(&mut self, now: Timestamp, max: usize, each: impl FnMut(&[Frame<'_>])) -> Result<Drained, CaptureError> {
        let drained = self.source.drain(now, max, each)?;
        if let Drained::Frames(frames) = drained {
            self.read.fetch_add(frames as u64, Ordering::Relaxed);
        }
        Ok(drained)
    }

    fn stop(&mut self) -> Result<(), CaptureError> {
        self.source.stop()
    }

    fn losses(&mut self) -> Result<Losses, CaptureError> {
        self.source.losses()
    }

    fn describe(&self) -> &str {
        self.source.describe()
    }
}
