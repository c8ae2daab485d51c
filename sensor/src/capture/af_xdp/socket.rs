//! One AF_XDP socket: rings and frame memory, bound to one RX queue. It has no transmit ring and can send nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::ring::{FillRing, ReceiveRing};
use super::syscall::{self, Mapping};
use super::umem::{Pages, Umem};

/// Fewer slots than this are not worth having; see [`Socket::open`].
const SLOTS_MIN: u32 = 1024;
/// The kernel wants a completion ring even of a socket that never sends.
const COMPLETION_SLOTS: u32 = 2;

/// What to open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) ifindex: u32,
    pub(super) queue: u32,
    /// A power of two: slots of both rings and frames of the memory.
    pub(super) slots: u32,
    pub(super) frame_size: u32,
    pub(super) huge_pages: bool,
    /// 0 for none.
    pub(super) busy_poll_micros: u32,
}

/// A bound socket with its rings. Fields are dropped in order: the socket before the memory it writes to.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    pub(super) receive: ReceiveRing,
    pub(super) fill: FillRing,
    pub(super) umem: Umem,
    pub(super) slots: u32,
    pub(super) zero_copy: bool,
    pub(super) multi_buffer: bool,
    /// Microseconds that the kernel polls for, as it says; 0 when it does not.
    pub(super) busy_poll_micros: u32,
}

impl Socket {
    /// Makes, fills and binds the socket. When the kernel has not the memory for `slots`, it tries half as many, down to 1024.
    ///
    /// # Errors
    /// The step that failed, and why: `EPERM` without `CAP_NET_RAW`, `ENOBUFS` or `ENOMEM` without memory, `EINVAL` for a
    /// queue that does not exist, `EBUSY` when another socket has it.
    pub(super) fn open(plan: &Plan) -> Result<Self, (&'static str, io::Error)> {
        let mut slots = plan.slots;
        loop {
            match Self::open_with(plan, slots) {
                Err((_, error)) if slots > SLOTS_MIN && is_lack_of_memory(&error) => slots /= 2,
                result => return result,
            }
        }
    }

    fn open_with(plan: &Plan, slots: u32) -> Result<Self, (&'static str, io::Error)> {
        let fd = syscall::xdp_socket().map_err(|error| ("make an AF_XDP socket", error))?;
        let umem = Umem::new(slots, plan.frame_size, plan.huge_pages).map_err(|error| ("get frame memory", error))?;
        let rings = |error| ("make the rings", error);
        syscall::register_umem(fd.as_fd(), umem.mapping(), plan.frame_size)
            .map_err(|error| ("register the frame memory", error))?;
        syscall::set_ring_size(fd.as_fd(), libc::XDP_UMEM_FILL_RING, slots).map_err(rings)?;
        syscall::set_ring_size(fd.as_fd(), libc::XDP_UMEM_COMPLETION_RING, COMPLETION_SLOTS).map_err(rings)?;
        syscall::set_ring_size(fd.as_fd(), libc::XDP_RX_RING, slots).map_err(rings)?;

        let offsets = syscall::ring_offsets(fd.as_fd()).map_err(rings)?;
        let map = |ring: &libc::xdp_ring_offset, slot: usize, offset: libc::off_t| {
            Mapping::ring(fd.as_fd(), ring.desc as usize + slots as usize * slot, offset).map(Arc::new).map_err(rings)
        };
        let receive = map(&offsets.rx, size_of::<libc::xdp_desc>(), libc::XDP_PGOFF_RX_RING)?;
        let fill = map(&offsets.fr, size_of::<u64>(), libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t)?;
        let receive = ReceiveRing::new(receive, &offsets.rx, slots).map_err(rings)?;
        let mut fill = FillRing::new(fill, &offsets.fr, slots).map_err(rings)?;
        fill.put_all(&umem, slots);

        let multi_buffer = bind(fd.as_fd(), plan).map_err(|error| ("bind the AF_XDP socket", error))?;
        let zero_copy = syscall::is_zero_copy(fd.as_fd()).map_err(|error| ("ask for the mode in force", error))?;
        // Busy polling saves a core; without it packets come all the same, and `describe` says which it is.
        let busy_poll_micros = match plan.busy_poll_micros {
            0 => 0,
            wanted => syscall::busy_poll(fd.as_fd(), wanted).unwrap_or(0),
        };
        Ok(Self { fd, receive, fill, umem, slots, zero_copy, multi_buffer, busy_poll_micros })
    }

    /// What the memory lies on.
    pub(super) fn pages(&self) -> Pages {
        self.umem.pages()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Binds in the best way there is and tells whether packets of several buffers are taken: that needs Linux 6.6, and in
/// zero-copy mode the driver's consent.
///
/// The kernel frees the queue of a closed socket a little later, in a work queue; a sensor that is started again at once finds it
/// busy. So a busy queue is tried for a second.
fn bind(fd: BorrowedFd<'_>, plan: &Plan) -> io::Result<bool> {
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for _ in 0..50 {
        for copy in [libc::XDP_ZEROCOPY, libc::XDP_COPY] {
            for sg in [libc::XDP_USE_SG, 0] {
                match syscall::bind(fd, plan.ifindex, plan.queue, copy | sg | libc::XDP_USE_NEED_WAKEUP) {
                    Ok(()) => return Ok(sg != 0),
                    Err(error) => refused = error,
                }
            }
        }
        if refused.raw_os_error() != Some(libc::EBUSY) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(refused)
}

/// Whether fewer slots might help. `ENOBUFS` is what the memlock limit looks like.
pub(super) fn is_lack_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN))
}
