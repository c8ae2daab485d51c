//! The rings over anonymous memory, with a kernel played by the test: no privileges, no network card.

use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

const SLOTS: u32 = 64;
const FRAME: u32 = 2048;

/// The kernel's side of both rings, and the memory it writes packets to.
struct Kernel {
    receive: Ring<libc::xdp_desc>,
    fill: Ring<u64>,
    umem: Umem,
}

fn offsets() -> libc::xdp_ring_offset {
    libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 128, desc: 192 }
}

/// Both sides, with all indices starting at `start`.
fn rings(start: u32) -> (Kernel, ReceiveRing, FillRing) {
    let memory = || Arc::new(Mapping::anonymous(4096, false).expect("a page"));
    let (receive, fill) = (memory(), memory());
    let kernel = Kernel {
        receive: Ring::new(Arc::clone(&receive), &offsets(), SLOTS).expect("inside"),
        fill: Ring::new(Arc::clone(&fill), &offsets(), SLOTS).expect("inside"),
        umem: Umem::new(SLOTS, FRAME, false).expect("128 KiB"),
    };
    for ring in [kernel.receive.producer(), kernel.receive.consumer(), kernel.fill.producer(), kernel.fill.consumer()] {
        ring.store(start, Ordering::Relaxed);
    }
    let mut filled = FillRing::new(fill, &offsets(), SLOTS).expect("inside");
    filled.put_all(&kernel.umem, SLOTS);
    (kernel, ReceiveRing::new(receive, &offsets(), SLOTS).expect("inside"), filled)
}

impl Kernel {
    /// Takes a free frame and delivers `len` octets in it; false when no frame is free.
    fn deliver(&mut self, len: u32, options: u32) -> bool {
        let taken = self.fill.consumer().load(Ordering::Relaxed);
        if self.fill.producer().load(Ordering::Acquire) == taken {
            return false;
        }
        let address = self.fill.read(taken);
        self.fill.consumer().store(taken.wrapping_add(1), Ordering::Release);
        assert_eq!(address % u64::from(FRAME), 0, "only starts of frames come back");
        self.publish(libc::xdp_desc { addr: address + 256, len, options });
        true
    }

    fn publish(&mut self, descriptor: libc::xdp_desc) {
        let at = self.receive.producer().load(Ordering::Relaxed);
        self.receive.write(at, descriptor);
        self.receive.producer().store(at.wrapping_add(1), Ordering::Release);
    }

    /// The frames that are free, sorted.
    fn free(&self) -> Vec<u64> {
        let (from, to) = (self.fill.consumer().load(Ordering::Relaxed), self.fill.producer().load(Ordering::Acquire));
        let mut free: Vec<u64> = (0..to.wrapping_sub(from)).map(|n| self.fill.read(from.wrapping_add(n))).collect();
        free.sort_unstable();
        free
    }
}

fn every_frame() -> Vec<u64> {
    (0..u64::from(SLOTS)).map(|frame| frame * u64::from(FRAME)).collect()
}

#[test]
fn ten_thousand_packets_go_through_in_order_and_every_frame_comes_back() {
    // Indices wrap on the way: u32::MAX is 5,000 packets from the start.
    let (mut kernel, mut receive, mut fill) = rings(u32::MAX - 5_000);
    let (mut sent, mut seen) = (0_u32, 0_u32);
    let mut step = 7_u32;
    while seen < 10_000 {
        // Uneven steps on both sides, so that rings are now empty, now full.
        step = step.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        for _ in 0..(step >> 16) % 90 {
            if sent < 10_000 && kernel.deliver(14 + sent % 1_500, 0) {
                sent += 1;
            }
        }
        let max = 1 + (step >> 24) as usize % 70;
        let handed = drain(&mut receive, &mut fill, &kernel.umem, max, NOW, |frames| {
            assert!((1..=BATCH).contains(&frames.len()));
            for frame in frames {
                assert_eq!((frame.bytes.len() as u32, frame.wire_len), (14 + seen % 1_500, 14 + seen % 1_500));
                seen += 1;
            }
        });
        assert!(handed.expect("good descriptors") <= max);
    }
    assert_eq!((sent, seen), (10_000, 10_000));
    assert_eq!(kernel.free(), every_frame());
}

#[test]
fn an_empty_ring_hands_out_nothing_and_a_full_one_everything() {
    let (mut kernel, mut receive, mut fill) = rings(0);
    assert_eq!(drain(&mut receive, &mut fill, &kernel.umem, 64, NOW, |_| panic!("nothing is there")), Ok(0));
    while kernel.deliver(60, 0) {}
    assert!(kernel.free().is_empty());
    assert_eq!(drain(&mut receive, &mut fill, &kernel.umem, 1_000, NOW, |_| ()), Ok(64));
    assert_eq!(kernel.free(), every_frame());
}

#[test]
fn a_packet_of_several_buffers_is_one_packet_and_waits_for_its_last_buffer() {
    let (mut kernel, mut receive, mut fill) = rings(0);
    kernel.deliver(1_792, libc::XDP_PKT_CONTD);
    kernel.deliver(1_792, libc::XDP_PKT_CONTD);
    assert_eq!(drain(&mut receive, &mut fill, &kernel.umem, 64, NOW, |_| panic!("half a packet")), Ok(0));
    kernel.deliver(100, 0);
    kernel.deliver(60, 0);
    let mut seen = Vec::new();
    let handed = drain(&mut receive, &mut fill, &kernel.umem, 64, NOW, |frames| {
        seen.extend(frames.iter().map(|frame| (frame.bytes.len(), frame.wire_len)));
    });
    assert_eq!((handed, seen), (Ok(2), vec![(1_792, 3_684), (60, 60)]));
    assert_eq!(kernel.free(), every_frame());
}

#[test]
fn a_descriptor_outside_the_memory_is_refused_after_the_packets_before_it() {
    let (mut kernel, mut receive, mut fill) = rings(0);
    kernel.deliver(60, 0);
    kernel.publish(libc::xdp_desc { addr: u64::from(SLOTS * FRAME), len: 60, options: 0 });
    let mut seen = 0;
    let result = drain(&mut receive, &mut fill, &kernel.umem, 64, NOW, |frames| seen += frames.len());
    assert_eq!((result, seen), (Err(BadDescriptor { address: 131_072, len: 60 }), 1));
}

#[test]
fn a_ring_outside_its_mapping_is_refused() {
    let memory = Arc::new(Mapping::anonymous(4096, false).expect("a page"));
    assert!(ReceiveRing::new(Arc::clone(&memory), &offsets(), 256).is_err(), "192 + 256 × 16 octets exceed the page");
    let crooked = libc::xdp_ring_offset { producer: 2, ..offsets() };
    assert!(ReceiveRing::new(memory, &crooked, SLOTS).is_err(), "an index that is not aligned");
}
