//! The frame memory that the kernel writes packets into.

use std::io;

use super::syscall::Mapping;

const HUGE_PAGE: usize = 2 << 20;

/// What kind of pages the memory lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// Reserved huge pages (`vm.nr_hugepages`).
    Huge,
    /// Normal pages that the kernel may merge into huge ones.
    Transparent,
    /// Normal pages.
    Normal,
}

impl Pages {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Huge => "huge pages",
            Self::Transparent => "transparent huge pages",
            Self::Normal => "normal pages",
        }
    }
}

/// A power-of-two number of frames of equal, power-of-two size.
#[derive(Debug)]
pub(super) struct Umem {
    mapping: Mapping,
    frame_size: u32,
    pages: Pages,
}

impl Umem {
    /// Memory for `frames` frames of `frame_size` octets (2048 or 4096), on the best pages there are.
    pub(super) fn new(frames: u32, frame_size: u32, huge_pages: bool) -> io::Result<Self> {
        let len = frames as usize * frame_size as usize;
        if huge_pages && let Ok(mapping) = Mapping::anonymous(len.next_multiple_of(HUGE_PAGE), true) {
            return Ok(Self { mapping, frame_size, pages: Pages::Huge });
        }
        let mapping = Mapping::anonymous(len, false)?;
        let pages =
            if huge_pages && len >= HUGE_PAGE && mapping.prefer_huge_pages() { Pages::Transparent } else { Pages::Normal };
        Ok(Self { mapping, frame_size, pages })
    }

    /// The memory, for registering.
    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// What it lies on.
    pub(super) fn pages(&self) -> Pages {
        self.pages
    }

    /// Octets of a frame.
    pub(super) fn frame_size(&self) -> u32 {
        self.frame_size
    }

    /// The address of the frame that `address` lies in.
    pub(super) fn frame_of(&self, address: u64) -> u64 {
        address & !u64::from(self.frame_size - 1)
    }

    /// The `len` octets at `address`, if they lie inside one frame.
    ///
    /// `address` comes from a receive descriptor that has not been released yet: until then the kernel does not write there.
    pub(super) fn packet(&self, address: u64, len: u32) -> Option<&[u8]> {
        let start = usize::try_from(address).ok()?;
        let end = start.checked_add(len as usize)?;
        let last = address.checked_add(u64::from(len.max(1)) - 1)?;
        if end > self.mapping.len() || self.frame_of(address) != self.frame_of(last) {
            return None;
        }
        // SAFETY: `start..end` lies inside the mapping, checked above, which lives as long as `self`. The kernel writes to a
        // frame only between its address being put on the fill ring and its descriptor appearing on the receive ring;
        // `drain` puts it back on the fill ring only after the borrow it lends from here has ended.
        Some(unsafe { std::slice::from_raw_parts(self.mapping.start().as_ptr().add(start), len as usize) })
    }

    /// Starts loading the first octets at `address` into the cache.
    pub(super) fn prefetch(&self, address: u64) {
        let Ok(start) = usize::try_from(address) else { return };
        if start >= self.mapping.len() {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: `start` lies inside the mapping, checked above, and a prefetch reads nothing that anyone sees.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.mapping.start().as_ptr().add(start).cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_must_lie_inside_one_frame_of_the_memory() {
        let umem = Umem::new(4, 2048, false).expect("8 KiB");
        assert_eq!(umem.packet(256, 60).expect("inside").len(), 60);
        assert_eq!(umem.packet(256, 1792).expect("to the end of the frame").len(), 1792);
        assert!(umem.packet(256, 1793).is_none(), "one octet into the next frame");
        assert!(umem.packet(3 * 2048 + 256, 1793).is_none(), "one octet beyond the memory");
        assert!(umem.packet(4 * 2048, 1).is_none());
        assert!(umem.packet(u64::MAX, 2).is_none());
        umem.prefetch(u64::MAX);
    }

    #[test]
    fn any_address_inside_a_frame_leads_back_to_its_start() {
        let umem = Umem::new(4, 2048, false).expect("8 KiB");
        assert_eq!(umem.frame_of(2048 + 256), 2048);
        assert_eq!(umem.frame_of(4095), 2048);
    }
}
