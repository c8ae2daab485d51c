//! Whether the kernel gives transparent huge pages to memory that asks for them, as the flow tables do.
//!
//! Asking (`madvise`) always succeeds; whether pages come shows only when memory is touched. So a few are tried out, at the start and
//! by `doctor`.

use std::fs;

use memmap2::{Advice, MmapOptions};

/// Size of a transparent huge page.
const HUGE_PAGE: usize = 2 << 20;
/// Memory for the trial: holds two whole huge pages wherever it begins.
const TRIED: usize = 3 * HUGE_PAGE;
/// The least distance between two pages.
const PAGE: usize = 4096;

/// What memory that asks for huge pages gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Huge pages.
    Huge,
    /// Normal pages, and what to do about it.
    Normal {
        /// Why.
        why: &'static str,
        /// A command.
        remedy: &'static str,
    },
}

/// Takes a little memory as the flow tables do, touches it, and looks at what it got.
pub fn try_out() -> Outcome {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if enabled.is_empty() {
        return Outcome::Normal { why: "this kernel has no transparent huge pages", remedy: "use one that has" };
    }
    if enabled.contains("[never]") {
        let remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        return Outcome::Normal { why: "transparent huge pages are switched off", remedy };
    }
    match given() {
        Some(1..) => Outcome::Huge,
        _ => Outcome::Normal {
            why: "the kernel has none to give, because memory is full or in small pieces",
            remedy: "echo 1 > /proc/sys/vm/compact_memory, and start the sensor soon after the machine",
        },
    }
}

/// KiB of the tried memory that came as huge pages; `None` where the kernel does not tell.
fn given() -> Option<u64> {
    let mut map = MmapOptions::new().len(TRIED).map_anon().ok()?;
    map.advise(Advice::HugePage).ok()?;
    map.iter_mut().step_by(PAGE).for_each(|octet| *octet = 1);
    let address = map.as_ptr().addr() as u64;
    huge_kib(&fs::read_to_string("/proc/self/smaps").ok()?, address)
}

/// `AnonHugePages` of the mapping that holds `address`, from the text of /proc/PID/smaps.
fn huge_kib(smaps: &str, address: u64) -> Option<u64> {
    let holds = |line: &str| {
        let (first, end) = line.split_once(' ')?.0.split_once('-')?;
        let parse = |hex| u64::from_str_radix(hex, 16).ok();
        Some((parse(first)?..parse(end)?).contains(&address))
    };
    let mut lines = smaps.lines().skip_while(|line| holds(line) != Some(true));
    let found = lines.find_map(|line| line.strip_prefix("AnonHugePages:"))?;
    found.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_mapping_is_asked() {
        let smaps = "7f0000000000-7f0000200000 rw-p 00000000 00:00 0\n\
                     Rss:                2048 kB\nAnonHugePages:         0 kB\nVmFlags: rd wr\n\
                     7f0000200000-7f0000800000 rw-p 00000000 00:00 0\n\
                     Rss:                6144 kB\nAnonHugePages:      4096 kB\nVmFlags: rd wr hg\n";
        assert_eq!(huge_kib(smaps, 0x7f00_001f_ffff), Some(0));
        assert_eq!(huge_kib(smaps, 0x7f00_0020_0000), Some(4096));
        assert_eq!(huge_kib(smaps, 0x7f00_0080_0000), None);
    }

    #[test]
    fn the_trial_touches_its_memory_and_ends() {
        let outcome = try_out();
        println!("{outcome:?}");
        // Whatever this machine gives: where the kernel was told to give none, none came.
        let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        assert!(!enabled.contains("[never]") || outcome != Outcome::Huge);
    }
}
