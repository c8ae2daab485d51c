//! A plain file mapped into memory, so that its octets are not copied, and what happens when somebody cuts it off meanwhile.
//!
//! To touch a page behind the end of a file raises SIGBUS, and that ends a process. Here a handler puts zeros in place of what is gone and
//! takes note of it; the reader asks [`Mapped::is_torn`] after each batch and ends there. A file that grows is no trouble: the mapping is
//! as long as the file was, and what came later is read the ordinary way. Octets that somebody overwrites in place may be seen old or new, as with
//! any way of reading.

#![allow(
    unsafe_code,
    reason = "a mapping of a file, the handler that keeps it from ending the process, and the prefetch instruction"
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::{Advice, Mmap};

/// Files that can be mapped at a time; further ones are read the ordinary way.
const MAPPED_MAX: usize = 64;

/// A file, as long as it was when it was mapped.
pub(super) struct Mapped {
    map: Mmap,
    guard: &'static Guard,
}

/// Where a mapping lies, for the handler. Free while `start` is 0, being set up while it is 1.
struct Guard {
    start: AtomicUsize,
    end: AtomicUsize,
    is_torn: AtomicBool,
}

static GUARDS: [Guard; MAPPED_MAX] =
    [const { Guard { start: AtomicUsize::new(0), end: AtomicUsize::new(0), is_torn: AtomicBool::new(false) } }; MAPPED_MAX];

/// The handler that was there before ours, and the size of a page; `None` when the system did not let us in.
static BEFORE: OnceLock<Option<(libc::sigaction, usize)>> = OnceLock::new();

impl Mapped {
    /// Maps the whole of `file`.
    ///
    /// # Errors
    /// It is empty, cannot be mapped, or too many are; read it the ordinary way then.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        if BEFORE.get_or_init(install).is_none() {
            return Err(io::Error::other("SIGBUS cannot be handled"));
        }
        // SAFETY: the octets are only ever read, as octets, for which every value is valid; lengths found among them are checked against the
        // length of the mapping, which does not change; pages that the file loses are replaced by `on_bus_error` before they are read.
        let map = unsafe { Mmap::map(file)? };
        if map.is_empty() {
            return Err(io::Error::other("the file is empty"));
        }
        let claim = |guard: &&Guard| guard.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let guard = GUARDS.iter().find(claim).ok_or_else(|| io::Error::other("too many files are mapped"))?;
        let range = map.as_ptr_range();
        guard.is_torn.store(false, Ordering::Relaxed);
        guard.end.store(range.end as usize, Ordering::Relaxed);
        guard.start.store(range.start as usize, Ordering::Release);
        // Only a hint: reading ahead further than for files that are read here and there.
        let _ = map.advise(Advice::Sequential);
        Ok(Self { map, guard })
    }

    /// The file. What was cut off it since reads as zeros.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether octets were asked for that the file has lost: some of what was read lately were zeros in their place.
    pub(super) fn is_torn(&self) -> bool {
        self.guard.is_torn.load(Ordering::Relaxed)
    }

    /// Enters these octets into the page table at once, which is cheaper than a fault for every few pages.
    pub(super) fn populate(&self, range: Range<usize>) {
        // Where the kernel does not know how (before 5.14), or the file has lost them, the faults come one by one.
        let _ = self.map.advise_range(Advice::PopulateRead, range.start, range.len());
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.guard.start.store(0, Ordering::Release);
    }
}

/// Puts [`on_bus_error`] before whatever handles SIGBUS.
fn install() -> Option<(libc::sigaction, usize)> {
    // SAFETY: `sigaction` is plain data, for which zeros are valid; both calls are given pointers to such values or null, and the handler has
    // the signature that SA_SIGINFO asks for and calls nothing but `mmap` and `sigaction`.
    unsafe {
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).ok().filter(|page| page.is_power_of_two())?;
        let mut before: libc::sigaction = std::mem::zeroed();
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = on_bus_error as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let is_installed = libc::sigaction(libc::SIGBUS, &raw const ours, &raw mut before) == 0;
        is_installed.then_some((before, page))
    }
}

/// Gives a mapping zeros from the page at fault to its end. A fault anywhere else is left to whoever handled it before: the instruction
/// is repeated and finds them.
extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid `info`, in which SIGBUS has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let (before, page) = match BEFORE.get() {
        Some(Some((before, page))) => (Some(before), *page),
        _ => (None, 4096),
    };
    for guard in &GUARDS {
        let (start, end) = (guard.start.load(Ordering::Acquire), guard.end.load(Ordering::Relaxed));
        if start > 1 && (start..end).contains(&address) {
            guard.is_torn.store(true, Ordering::Relaxed);
            let from = address & !(page - 1);
            // SAFETY: the range lies inside a mapping of `Mapped`, which is there as long as its guard names it and is only read; the thread that
            // reads it is the one that is in this handler.
            let zeros = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                libc::mmap(from as *mut libc::c_void, end - from, libc::PROT_READ, flags, -1, 0)
            };
            if zeros != libc::MAP_FAILED {
                return;
            }
        }
    }
    // SAFETY: as in `install`.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, before.map_or(&raw const default, std::ptr::from_ref), std::ptr::null_mut());
    }
}

/// Asks the processor to fetch the cache line at `place` of `bytes`, if there is one, and goes on without waiting.
#[inline]
pub(super) fn prefetch(bytes: &[u8], place: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint that cannot fault, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, place);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_loses_while_it_is_mapped_reads_as_zeros_and_is_noticed() {
        let file = tempfile::tempfile().expect("a file");
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 3 << 14], 0).expect("room on the disk");
        let mapped = Mapped::new(&file).expect("a mapping");
        file.set_len(1 << 14).expect("a shorter file");
        let sum = |range: Range<usize>| mapped.bytes()[range].iter().map(|octet| u64::from(*octet)).sum::<u64>();
        assert_eq!((sum(0..1 << 14), mapped.is_torn()), (7 << 14, false));
        mapped.populate(1 << 14..2 << 14); // refused, and no trouble
        assert_eq!((sum(2 << 14..3 << 14), mapped.is_torn()), (0, true));
        assert_eq!(sum(0..1 << 14), 7 << 14);
        drop(mapped);
        // Its place is free again.
        let maps: Vec<_> = (0..MAPPED_MAX / 2).map(|_| Mapped::new(&file)).collect();
        assert!(maps.iter().all(|map| map.as_ref().is_ok_and(|map| !map.is_torn())));
    }
}
