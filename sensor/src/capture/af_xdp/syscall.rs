//! The system calls that AF_XDP, the interface checks and the packet socket need, each with a safe face.
//!
//! Structures and numbers come from `libc`; their meaning is in Linux' `Documentation/networking/af_xdp.rst`,
//! `include/uapi/linux/ethtool.h` and packet(7).

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

/// Structures that the kernel reads and writes as plain memory.
///
/// # Safety
/// Every bit pattern is a valid value, and padding may hold anything.
unsafe trait Plain: Sized {}

// SAFETY: integers, and C structures made of integers only, are valid for every bit pattern.
unsafe impl Plain for c_int {}
// SAFETY: as above.
unsafe impl Plain for libc::xdp_umem_reg {}
// SAFETY: as above.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: as above.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: as above.
unsafe impl Plain for libc::xdp_options {}
// SAFETY: as above.
unsafe impl Plain for libc::packet_mreq {}

/// A piece of memory from mmap, given back on drop. The memory is shared with the kernel: its owner reads and writes it
/// through the bounds-checked faces of `umem` and `ring` only.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that belongs to the process, not to a thread; `Mapping` itself only hands out its address.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references allow nothing but reading address and length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` octets of zeroed private memory; with `huge` on 2 MiB pages, which fails when none are free.
    pub(super) fn anonymous(len: usize, huge: bool) -> io::Result<Self> {
        // MAP_POPULATE takes the pages now, so that a lack of memory shows here.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let flags = if huge { flags | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB } else { flags & !libc::MAP_POPULATE };
        Self::new(len, flags, -1, 0)
    }

    /// A ring of an AF_XDP socket, at one of the `*_PGOFF_*` offsets.
    pub(super) fn ring(socket: BorrowedFd<'_>, len: usize, offset: libc::off_t) -> io::Result<Self> {
        Self::new(len, libc::MAP_SHARED | libc::MAP_POPULATE, socket.as_raw_fd(), offset)
    }

    fn new(len: usize, flags: c_int, fd: c_int, offset: libc::off_t) -> io::Result<Self> {
        // SAFETY: without MAP_FIXED, mmap only makes a new mapping and touches no existing memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))?;
        Ok(Self { start, len })
    }

    /// Asks for transparent huge pages; true when the kernel agrees to try.
    pub(super) fn prefer_huge_pages(&self) -> bool {
        // SAFETY: the range is exactly this mapping, made in `new` and not unmapped before drop.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_HUGEPAGE) == 0 }
    }

    /// First octet; page-aligned.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Octets.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what mmap returned in `new`; whoever used it held a reference to this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A fresh AF_XDP socket.
pub(super) fn xdp_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_XDP, libc::SOCK_RAW)
}

/// Registers `umem`, cut into frames of `frame_size` octets, as the frame memory of the socket.
pub(super) fn register_umem(socket: BorrowedFd<'_>, umem: &Mapping, frame_size: u32) -> io::Result<()> {
    let registration = libc::xdp_umem_reg {
        addr: umem.start.as_ptr().expose_provenance() as u64,
        len: umem.len as u64,
        chunk_size: frame_size,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
}

/// Sets the size of a ring: `XDP_RX_RING`, `XDP_UMEM_FILL_RING` or `XDP_UMEM_COMPLETION_RING`.
pub(super) fn set_ring_size(socket: BorrowedFd<'_>, ring: c_int, slots: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_XDP, ring, &slots.cast_signed())
}

/// Where in their mappings the rings keep indices and slots.
pub(super) fn ring_offsets(socket: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    let zero = libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
    get_option(socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, libc::xdp_mmap_offsets { rx: zero, tx: zero, fr: zero, cr: zero })
}

/// The socket's drop counters since it was made.
pub(super) fn statistics(socket: BorrowedFd<'_>) -> io::Result<libc::xdp_statistics> {
    let zero = libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    get_option(socket, libc::SOL_XDP, libc::XDP_STATISTICS, zero)
}

/// Whether the bound socket is in zero-copy mode.
pub(super) fn is_zero_copy(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let options = get_option(socket, libc::SOL_XDP, libc::XDP_OPTIONS, libc::xdp_options { flags: 0 })?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// Asks the kernel to run the driver's receive loop on the core that reads the socket, for up to `micros` at a time. Gives what is in
/// force afterwards: 0 when the kernel does not prefer busy polling.
pub(super) fn busy_poll(socket: BorrowedFd<'_>, micros: u32) -> io::Result<u32> {
    /// Packets of one round, as the kernel's own loop takes them.
    const BUDGET: c_int = 64;
    set_option(socket, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &1)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &micros.cast_signed())?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &BUDGET)?;
    let preferred = get_option(socket, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 0)?;
    let in_force = get_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, 0)?;
    Ok(if preferred == 1 { in_force.max(0).cast_unsigned() } else { 0 })
}

/// Binds the socket to one RX queue.
pub(super) fn bind(socket: BorrowedFd<'_>, ifindex: u32, queue: u32, flags: u16) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    // SAFETY: `address` lives across the call and the length is its own.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_xdp>() as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until the socket has something to read. An error condition on the socket, such as its interface being removed, is
/// an error here.
pub(in crate::capture) fn wait_readable(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // Rounded up: a timeout of half a millisecond must not become a busy loop.
    let millis = c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX);
    // SAFETY: one entry is passed, and it lives across the call.
    let ready = unsafe { libc::poll(&raw mut entry, 1, millis) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    let failed = entry.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0;
    if entry.revents & libc::POLLIN != 0 && !failed {
        return Ok(());
    }
    // An AF_XDP socket whose interface is removed wakes nobody up; it only keeps the error to be asked for.
    match get_option(socket, libc::SOL_SOCKET, libc::SO_ERROR, 0)? {
        0 if failed => Err(io::Error::from_raw_os_error(libc::ENETDOWN)),
        0 => Ok(()),
        pending => Err(io::Error::from_raw_os_error(pending)),
    }
}

/// Tells the driver that frames wait in the fill ring, after it asked to be told.
pub(super) fn wake_receive(socket: BorrowedFd<'_>) {
    // SAFETY: no buffer is passed; the call only triggers the driver. Its result says nothing that matters here.
    unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
}

/// Puts the interface into promiscuous mode for as long as the returned socket is open. The socket has protocol 0: it
/// receives nothing.
pub(super) fn promiscuous(ifindex: u32) -> io::Result<OwnedFd> {
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW)?;
    let membership = libc::packet_mreq {
        mr_ifindex: ifindex.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    use std::os::fd::AsFd;
    set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    Ok(socket)
}

/// Makes a packet socket deaf to what this host itself sends (Linux 4.20).
pub(in crate::capture) fn ignore_outgoing(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)
}

/// Makes a packet socket refuse every further packet; what is in its ring stays readable, and refused packets are not counted.
pub(in crate::capture) fn refuse_packets(socket: BorrowedFd<'_>) -> io::Result<()> {
    // One classic BPF instruction: return 0 octets of the packet.
    let mut code = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    // SAFETY: `program` points to the one instruction in `code`; both live across the call, and the kernel copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel considers the clock synchronised (adjtimex without `STA_UNSYNC`), and its estimated maximum error.
pub(crate) fn clock_state() -> io::Result<(bool, Duration)> {
    // SAFETY: `timex` is a C structure of integers, for which zero is a value; modes = 0 means "only read".
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` lives across the call and is written within its own size.
    if unsafe { libc::adjtimex(&raw mut state) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let error = Duration::from_micros(u64::try_from(state.maxerror).unwrap_or(0));
    Ok((state.status & libc::STA_UNSYNC == 0, error))
}

/// The cores that the calling thread may run on.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: `cpu_set_t` is an array of integers, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` lives across the call and is written within its own size; 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: CPU_ISSET reads a bit below CPU_SETSIZE, the number of bits in the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// Lets the calling thread, and those it starts from now on, run on these cores only.
pub(crate) fn pin_thread(cores: &[usize]) -> io::Result<()> {
    // SAFETY: `cpu_set_t` is an array of integers, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores.iter().filter(|&&core| core < libc::CPU_SETSIZE as usize) {
        // SAFETY: the bit lies below CPU_SETSIZE, the number of bits in the set.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    // SAFETY: `set` lives across the call and the size is its own; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One ioctl that takes an `ifreq` holding the interface's name.
fn interface_ioctl(name: &str, request: libc::Ioctl, fill: impl FnOnce(&mut libc::ifreq)) -> io::Result<libc::ifreq> {
    use std::os::fd::AsFd;
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    // SAFETY: `ifreq` is a C structure of integers and raw pointers, for which zero is a value.
    let mut argument: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= argument.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (slot, octet) in argument.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = octet.cast_signed();
    }
    fill(&mut argument);
    // SAFETY: all requests used here take an `ifreq`; it lives across the call, and `fill` points it at memory of its caller
    // that does so too.
    if unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(argument)
}

/// The interface's MTU in octets.
pub(in crate::capture) fn mtu(name: &str) -> io::Result<u32> {
    let answer = interface_ioctl(name, libc::SIOCGIFMTU, |_| ())?;
    // SAFETY: SIOCGIFMTU answers in this member; every bit pattern is an integer.
    Ok(unsafe { answer.ifr_ifru.ifru_mtu }.max(0).cast_unsigned())
}

/// The value of one of ethtool's simple yes/no or flag words, such as `ETHTOOL_GGRO` or `ETHTOOL_GFLAGS`.
pub(in crate::capture) fn ethtool_value(name: &str, command: u32) -> io::Result<u32> {
    // struct ethtool_value: cmd, data.
    let mut value: [u32; 2] = [command, 0];
    interface_ioctl(name, libc::SIOCETHTOOL, |argument| argument.ifr_ifru.ifru_data = value.as_mut_ptr().cast())?;
    Ok(value[1])
}

/// RX queues in use (`ETHTOOL_GCHANNELS`): receive-only channels, and combined ones.
pub(in crate::capture) fn rx_channels(name: &str) -> io::Result<(u32, u32)> {
    const GET_CHANNELS: u32 = 0x3c;
    // struct ethtool_channels: cmd, max rx/tx/other/combined, rx/tx/other/combined count.
    let mut channels: [u32; 9] = [GET_CHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
    interface_ioctl(name, libc::SIOCETHTOOL, |argument| argument.ifr_ifru.ifru_data = channels.as_mut_ptr().cast())?;
    Ok((channels[5], channels[8]))
}

/// How the card spreads packets over RX queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::capture) struct ReceiveHash {
    /// The secret key of the hash.
    pub(in crate::capture) key: Vec<u8>,
    /// The hash function is Toeplitz.
    pub(in crate::capture) toeplitz: bool,
    /// Source and destination are mixed before hashing (symmetric-xor, symmetric-or-xor).
    pub(in crate::capture) mixed: bool,
    /// The RX queue for each hash value, modulo its length; empty where the card has no such table.
    pub(in crate::capture) table: Vec<u32>,
}

/// The receive hash of the interface (`ETHTOOL_GRSSH`).
pub(in crate::capture) fn receive_hash(name: &str) -> io::Result<ReceiveHash> {
    const GET_RECEIVE_HASH: u32 = 0x46;
    const HEAD: usize = 6;
    const TOEPLITZ: u8 = 1;
    const SYMMETRIC_XOR: u8 = 1;
    const SYMMETRIC_OR_XOR: u8 = 2;
    // struct ethtool_rxfh: cmd, context, table size, key size, function and mixing (octets), reserved; then table and key. The
    // kernel answers sizes of zero with the sizes it has, and fills in no more than it is given.
    let mut request = vec![0_u32; HEAD];
    request[0] = GET_RECEIVE_HASH;
    interface_ioctl(name, libc::SIOCETHTOOL, |argument| argument.ifr_ifru.ifru_data = request.as_mut_ptr().cast())?;
    let (table, key) = (request[2].min(1 << 16) as usize, request[3].min(1 << 10) as usize);
    request.fill(0);
    request.resize(HEAD + table + key.div_ceil(4), 0);
    request[..4].copy_from_slice(&[GET_RECEIVE_HASH, 0, table as u32, key as u32]);
    interface_ioctl(name, libc::SIOCETHTOOL, |argument| argument.ifr_ifru.ifru_data = request.as_mut_ptr().cast())?;
    let [function, mixing, ..] = request[4].to_ne_bytes();
    let octets = request[HEAD + table..].iter().flat_map(|word| word.to_ne_bytes());
    Ok(ReceiveHash {
        key: octets.take(key).collect(),
        toeplitz: function & TOEPLITZ != 0,
        mixed: matches!(mixing, SYMMETRIC_XOR | SYMMETRIC_OR_XOR),
        table: request[HEAD..HEAD + table].to_vec(),
    })
}

/// What the card hashes of packets of a kind (`ETHTOOL_GRXFH`; `flow_type` as `TCP_V4_FLOW`): the `RXH_*` bits.
pub(in crate::capture) fn hashed_fields(name: &str, flow_type: u32) -> io::Result<u64> {
    const GET_FIELDS: u32 = 0x29;
    // struct ethtool_rxnfc: cmd, flow_type, data of eight octets; then a rule, which this request leaves alone. 512 octets hold it.
    let mut request = [0_u32; 128];
    request[..2].copy_from_slice(&[GET_FIELDS, flow_type]);
    interface_ioctl(name, libc::SIOCETHTOOL, |argument| argument.ifr_ifru.ifru_data = request.as_mut_ptr().cast())?;
    let [a, b, c, d] = request[2].to_ne_bytes();
    let [e, f, g, h] = request[3].to_ne_bytes();
    Ok(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
}

/// The name of the interface's driver (`ETHTOOL_GDRVINFO`).
pub(in crate::capture) fn driver(name: &str) -> io::Result<String> {
    const GET_DRIVER_INFO: u32 = 3;
    // struct ethtool_drvinfo: cmd, then driver[32] among 192 octets of text and numbers.
    let mut info = [0_u32; 49];
    info[0] = GET_DRIVER_INFO;
    interface_ioctl(name, libc::SIOCETHTOOL, |argument| argument.ifr_ifru.ifru_data = info.as_mut_ptr().cast())?;
    let text: Vec<u8> = info[1..9].iter().flat_map(|word| word.to_ne_bytes()).take_while(|octet| *octet != 0).collect();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn socket(family: c_int, kind: c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket() takes no pointers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is not negative, checked above, so socket() has just made it and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option<T: Plain>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let value = std::ptr::from_ref(value).cast::<c_void>();
    // SAFETY: `value` points to a live `T` and the length is that of `T`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, size_of::<T>() as libc::socklen_t) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an option over `value`; what an older kernel does not fill in keeps its value.
fn get_option<T: Plain>(socket: BorrowedFd<'_>, level: c_int, name: c_int, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets, the size of the live `value`; `Plain` makes any result a valid value.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
