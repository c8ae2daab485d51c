//! Sends traffic, and counts what it sent.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, OpenObject, PrintLevel, ProgramInput};
use serde::Serialize;

use crate::traffic::{Encapsulation, Order, SIZES, Shape, Traffic};

/// What libbpf-cargo makes of `bpf/generator.bpf.c`.
#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    unnameable_types,
    unused_qualifications,
    elided_lifetimes_in_paths,
    single_use_lifetimes,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    reason = "generated"
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/generator.skel.rs"));
}

use skeleton::{GeneratorSkel, GeneratorSkelBuilder, types};

/// Six counters of eight octets; [`Sent::read`] reads them in the order of `generator.h`.
const STATE_SIZE: usize = 48;
const _: () = assert!(size_of::<types::generator_state>() == STATE_SIZE);
const _: () = assert!(size_of::<types::generator_config>() == 104);

/// BPF_F_TEST_XDP_LIVE_FRAMES of linux/bpf.h.
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames that one system call makes. It costs some 11 ms besides, and is not to be interrupted from here.
const REPEAT: u64 = 1_000_000;
/// The same when most frames are not yet due, and cost next to nothing.
const REPEAT_PACED: u64 = 4_000_000;

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Frames handed to the interface. Those that it had no room for are among them.
    pub frames: u64,
    /// Those of the marked conversation.
    pub marked: u64,
    /// Octets of all of them, without FCS.
    pub octets: u64,
    /// From the first frame to the last, in nanoseconds; 0 when sending was stopped early.
    pub nanos: u64,
}

impl Sent {
    /// How long it took.
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }

    fn read(state: &MapHandle) -> anyhow::Result<Self> {
        let bytes = state.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).context("read the program's counters")?;
        let bytes = bytes.filter(|bytes| bytes.len() >= STATE_SIZE).context("the program's counters have another form")?;
        let mut values = [0; STATE_SIZE / 8];
        for (value, octets) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *value = u64::from_ne_bytes(*octets);
        }
        let [frames, marked, octets, began, ended, _due] = values;
        Ok(Self { frames, marked, octets, nanos: ended.saturating_sub(began) })
    }
}

/// Sends all of `traffic` out of the interface with this number, on the core of the calling thread, which should be bound to one. Ends
/// early when `stop` is set.
///
/// # Errors
/// Not root, or a kernel without live frames (before 5.18).
pub fn send(traffic: &Traffic, ifindex: u32, stop: &AtomicBool) -> anyhow::Result<Sent> {
    let template = traffic.template();
    let mut storage = MaybeUninit::uninit();
    let skeleton = load(traffic, ifindex, &mut storage).context("load the generating program; it takes root")?;
    let state = MapHandle::try_from(&skeleton.maps.bss).context("keep the program's counters")?;
    let repeat_max = if traffic.packets_per_sec == 0 { REPEAT } else { REPEAT_PACED };
    let mut sent = Sent::default();
    while sent.frames < traffic.count && !stop.load(Ordering::Relaxed) {
        // A program without a rate sends a frame each time it is run.
        let left = if traffic.packets_per_sec == 0 { traffic.count - sent.frames } else { u64::MAX };
        let input = ProgramInput {
            data_in: Some(&template.bytes),
            flags: LIVE_FRAMES,
            repeat: repeat_max.min(left) as u32,
            ..ProgramInput::default()
        };
        match skeleton.progs.generate.test_run(input) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {} // by a signal; what was sent is counted
            Err(error) => return Err(error).context("make live frames (BPF_PROG_TEST_RUN; needs Linux 5.18)"),
        }
        let before = std::mem::replace(&mut sent, Sent::read(&state)?);
        ensure!(
            sent.frames > before.frames || traffic.packets_per_sec > 0,
            "the program made no frame; the template and the program do not agree"
        );
    }
    Ok(sent)
}

/// A program that counts and drops what arrives, where no sensor listens; gone when dropped.
#[derive(Debug)]
pub struct Counter {
    seen: MapHandle,
    _link: libbpf_rs::Link,
}

impl Counter {
    /// Attaches it to the interface with this number.
    ///
    /// # Errors
    /// Not root, or another program is attached there.
    pub fn attach(ifindex: u32) -> anyhow::Result<Self> {
        let mut storage = MaybeUninit::uninit();
        let skeleton = load(&Traffic::default(), ifindex, &mut storage).context("load the counting program; it takes root")?;
        let ifindex = i32::try_from(ifindex).context("the number of an interface")?;
        let link = skeleton.progs.count_and_drop.attach_xdp(ifindex).context("attach the counting program")?;
        Ok(Self { seen: MapHandle::try_from(&skeleton.maps.seen).context("keep the counters")?, _link: link })
    }

    /// Frames that have arrived, and their octets.
    ///
    /// # Errors
    /// The kernel does not give the counters.
    pub fn seen(&self) -> anyhow::Result<(u64, u64)> {
        let cpus = self.seen.lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY).context("read the counters")?;
        let mut sum = (0, 0);
        for cpu in cpus.unwrap_or_default() {
            if let [frames, octets, ..] = cpu.as_chunks::<8>().0 {
                sum.0 += u64::from_ne_bytes(*frames);
                sum.1 += u64::from_ne_bytes(*octets);
            }
        }
        Ok(sum)
    }
}

fn load<'obj>(
    traffic: &Traffic,
    ifindex: u32,
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> libbpf_rs::Result<GeneratorSkel<'obj>> {
    // Without this libbpf writes its own lines to stderr.
    libbpf_rs::set_print(None::<(PrintLevel, fn(PrintLevel, String))>);
    let template = traffic.template();
    let mut sizes = traffic.size.octets();
    if matches!(traffic.shape, Shape::Scan | Shape::Flood) {
        sizes = [60; SIZES];
    }
    let mut open = GeneratorSkelBuilder::default().open(storage)?;
    if let Some(rodata) = &mut open.maps.rodata_data {
        rodata.config = types::generator_config {
            count: traffic.count,
            packets_per_sec: traffic.packets_per_sec,
            ifindex,
            flows: traffic.flows,
            is_random: u32::from(traffic.order == Order::Random),
            shape: match traffic.shape {
                Shape::Tcp => 0,
                Shape::Udp => 1,
                Shape::Scan => 2,
                Shape::Flood => 3,
            },
            outer: match traffic.encapsulation {
                Encapsulation::None => 0,
                Encapsulation::Vlan => 1,
                Encapsulation::Vxlan => 2,
                Encapsulation::Erspan => 3,
            },
            macs_at: template.macs_at as u32,
            network_at: template.network_at as u32,
            template_len: template.bytes.len() as u32,
            marked_one_in: traffic.marked_one_in,
            sizes,
            reserved: 0,
        };
    }
    open.load()
}
