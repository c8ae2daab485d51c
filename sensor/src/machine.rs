//! Instructions of the processor that have no safe name.

#![allow(unsafe_code, reason = "each block says why it is sound")]

/// Asks the processor to fetch the cache line where `slot` begins, and goes on without waiting.
#[inline]
pub(crate) fn prefetch<T: ?Sized>(slot: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint that cannot fault, whatever the address; the reference is valid besides.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(slot).cast::<i8>());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slot;
}

/// A bit for each byte that is `byte`, the lowest for the first.
#[inline]
pub(crate) fn equal_bytes(bytes: [u8; 16], byte: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: all three instructions are SSE2's, which belongs to every processor of this architecture; they take values, no addresses.
    unsafe {
        use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set1_epi8};
        _mm_movemask_epi8(_mm_cmpeq_epi8(bytemuck::cast(bytes), _mm_set1_epi8(byte.cast_signed()))).cast_unsigned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    bytes.iter().rev().fold(0, |bits, &other| bits << 1 | u32::from(other == byte))
}
