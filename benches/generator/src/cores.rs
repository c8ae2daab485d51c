//! Which core does what.

use std::io;

/// Binds the calling thread to one core, numbered from 0.
///
/// # Errors
/// There is no such core, or this process may not use it.
#[expect(unsafe_code, reason = "sched_setaffinity has no safe face in the standard library")]
pub fn pin(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a `cpu_set_t` is an array of integers, for which zero is a value.
    let mut cores: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` is below CPU_SETSIZE, checked above, so the bit lies inside the set.
    unsafe { libc::CPU_SET(core, &mut cores) };
    // SAFETY: `cores` is as long as the call is told, and is only read; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cores) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts the calling thread before all ordinary ones on its core (SCHED_FIFO 10), where others use the machine, too. Linux still keeps
/// a twentieth of the core for them.
///
/// # Errors
/// Not root.
#[expect(unsafe_code, reason = "sched_setscheduler has no safe face in the standard library")]
pub fn first() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 10 };
    // SAFETY: `parameters` is only read; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Cores that this process may use.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
