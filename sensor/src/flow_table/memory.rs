//! Zeroed memory for a fixed number of slots, on huge pages where there are any.
//!
//! At a million flows nearly every packet misses the TLB on 4 KiB pages: 37 ns per packet against 55 measured.

#![allow(unsafe_code, reason = "the prefetch instruction; see `prefetch`")]

use std::marker::PhantomData;

use bytemuck::Pod;
use memmap2::{Advice, MmapMut, MmapOptions};

/// A fixed array of `T`, zeroed, mapped from the operating system.
pub(super) struct Slots<T> {
    map: MmapMut,
    len: usize,
    holds: PhantomData<T>,
}

impl<T: Pod> Slots<T> {
    /// Maps `len` slots. The operating system provides a page when it is first touched, and huge pages where it is allowed to
    /// (`/sys/kernel/mm/transparent_hugepage/enabled` says `always` or `madvise`).
    ///
    /// # Errors
    /// The operating system refuses the memory.
    pub(super) fn new(len: usize) -> std::io::Result<Self> {
        let map = MmapOptions::new().len(len * size_of::<T>()).map_anon()?;
        // Without huge pages the table is slower, not wrong; `doctor` reports what the system allows.
        let _ = map.advise(Advice::HugePage);
        Ok(Self { map, len, holds: PhantomData })
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[..self.len * size_of::<T>()])
    }

    #[inline]
    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[..self.len * size_of::<T>()])
    }
}

/// Asks the processor to fetch the cache line of `slot`, and goes on without waiting.
#[inline]
pub(crate) fn prefetch<T>(slot: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint that cannot fault, whatever the address; the reference is valid besides.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(slot).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slot;
}
