//! The two rings between kernel and sensor, and the walk that empties one into the other.
//!
//! ```text
//!   fill ring     sensor ▷ kernel    addresses of free frames
//!   receive ring  kernel ▷ sensor    descriptors of packets (address, length)
//! ```
//!
//! Every frame is in exactly one place: on the fill ring, with the kernel, or on the receive ring. [`drain`] walks both rings in
//! lock step, so a packet cannot be handled without its frame going back.
//!
//! Each ring has one producer and one consumer. Indices run through all of u32 and wrap; a slot is index modulo size. The producer
//! publishes slots by a release store of its index, which the other side reads with acquire.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use spanwatch_common::time::Timestamp;

use super::syscall::Mapping;
use super::umem::Umem;
use crate::capture::{BATCH, Frame};

/// One ring: `T` is the type of a slot, which must be plain data.
#[derive(Debug)]
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    mask: u32,
    /// Keeps the memory behind the pointers.
    _mapping: Arc<Mapping>,
    _slot: PhantomData<T>,
}

// SAFETY: the pointers lead into `_mapping`, which is not tied to a thread; the index words are atomics, and the slots are
// accessed by the one owner of the ring only.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    /// A ring of `slots` (a power of two) inside `mapping`, at offsets the kernel gave.
    fn new(mapping: Arc<Mapping>, offsets: &libc::xdp_ring_offset, slots: u32) -> io::Result<Self> {
        let at = |offset: u64, len: usize, align: usize| {
            let start = usize::try_from(offset).ok().filter(|start| start.is_multiple_of(align));
            let fits = start.and_then(|start| start.checked_add(len)).is_some_and(|end| end <= mapping.len());
            match start {
                // SAFETY: `start + len` lies inside the mapping, checked one line above.
                Some(start) if fits => Ok(unsafe { mapping.start().add(start) }),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel describes a ring that lies outside its memory")),
            }
        };
        debug_assert!(slots.is_power_of_two());
        Ok(Self {
            producer: at(offsets.producer, 4, 4)?.cast(),
            consumer: at(offsets.consumer, 4, 4)?.cast(),
            flags: at(offsets.flags, 4, 4)?.cast(),
            slots: at(offsets.desc, slots as usize * size_of::<T>(), align_of::<T>())?.cast(),
            mask: slots - 1,
            _mapping: mapping,
            _slot: PhantomData,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: four aligned octets inside the mapping, checked in `new`; only atomics touch them, on both sides.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }
    }

    fn read(&self, index: u32) -> T {
        // SAFETY: the masked index is below the number of slots, whose extent `new` checked. The caller reads between the
        // consumer's and the producer's index, where the producer does not write.
        unsafe { self.slots.add((index & self.mask) as usize).read() }
    }

    fn write(&mut self, index: u32, value: T) {
        // SAFETY: the masked index is below the number of slots, whose extent `new` checked. The caller writes from the
        // producer's index up to a full ring, where the consumer does not read.
        unsafe { self.slots.add((index & self.mask) as usize).write(value) }
    }
}

/// The receive ring, consumed here.
#[derive(Debug)]
pub(super) struct ReceiveRing(Ring<libc::xdp_desc>);

/// The fill ring, produced here.
#[derive(Debug)]
pub(super) struct FillRing(Ring<u64>);

impl ReceiveRing {
    /// See [`Ring::new`].
    pub(super) fn new(mapping: Arc<Mapping>, offsets: &libc::xdp_ring_offset, slots: u32) -> io::Result<Self> {
        Ring::new(mapping, offsets, slots).map(Self)
    }
}

impl FillRing {
    /// See [`Ring::new`].
    pub(super) fn new(mapping: Arc<Mapping>, offsets: &libc::xdp_ring_offset, slots: u32) -> io::Result<Self> {
        Ring::new(mapping, offsets, slots).map(Self)
    }

    /// Gives all `frames` of `umem` to the kernel, once, at the start; the ring has a slot for each.
    pub(super) fn put_all(&mut self, umem: &Umem, frames: u32) {
        let start = self.0.producer().load(Ordering::Relaxed);
        for frame in 0..frames {
            self.0.write(start.wrapping_add(frame), u64::from(frame) * u64::from(umem.frame_size()));
        }
        self.0.producer().store(start.wrapping_add(frames), Ordering::Release);
    }

    /// Whether the kernel asks for a system call to notice new frames.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.0.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A descriptor that no packet can have: the rings are unusable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadDescriptor {
    pub(super) address: u64,
    pub(super) len: u32,
}

/// Hands at most `max` packets to `each`, up to [`BATCH`] at a time, each as its first buffer and its length on the wire, and returns their
/// frames to the kernel. Gives the number of packets. `now` becomes their time.
///
/// A packet of several buffers (`XDP_USE_SG`) is handed out once, when all its buffers are there.
pub(super) fn drain(
    receive: &mut ReceiveRing,
    fill: &mut FillRing,
    umem: &Umem,
    max: usize,
    now: Timestamp,
    mut each: impl FnMut(&[Frame<'_>]),
) -> Result<usize, BadDescriptor> {
    let first = receive.0.consumer().load(Ordering::Relaxed);
    let available = receive.0.producer().load(Ordering::Acquire).wrapping_sub(first);
    let free = fill.0.producer().load(Ordering::Relaxed);

    let mut batch = [Frame::NONE; BATCH];
    let mut packets = 0;
    let mut waiting = 0;
    let mut done = 0;
    let mut result = Ok(());
    while packets < max && done < available {
        // All buffers of the packet, or none.
        let descriptor = receive.0.read(first.wrapping_add(done));
        let mut buffers = 1;
        let mut wire_len = descriptor.len;
        let mut last = descriptor;
        while last.options & libc::XDP_PKT_CONTD != 0 && done + buffers < available {
            last = receive.0.read(first.wrapping_add(done + buffers));
            wire_len = wire_len.saturating_add(last.len);
            buffers += 1;
        }
        if last.options & libc::XDP_PKT_CONTD != 0 {
            break;
        }
        let Some(bytes) = umem.packet(descriptor.addr, descriptor.len) else {
            result = Err(BadDescriptor { address: descriptor.addr, len: descriptor.len });
            break;
        };
        umem.prefetch(descriptor.addr);
        batch[waiting] = Frame::ethernet(bytes, wire_len, now);
        waiting += 1;
        if waiting == BATCH {
            each(&batch);
            waiting = 0;
        }
        for _ in 0..buffers {
            let address = receive.0.read(first.wrapping_add(done)).addr;
            fill.0.write(free.wrapping_add(done), umem.frame_of(address));
            done += 1;
        }
        packets += 1;
    }
    if waiting > 0 {
        each(&batch[..waiting]);
    }
    // Only now does the kernel get the frames back.
    receive.0.consumer().store(first.wrapping_add(done), Ordering::Release);
    fill.0.producer().store(free.wrapping_add(done), Ordering::Release);
    result.map(|()| packets)
}

#[cfg(test)]
mod tests;
