//! The one clock of the live sensor: wall time that runs evenly.
//!
//! Time comes from the monotonic clock, laid onto wall time. Where the wall clock is nudged (NTP slews it), the difference is taken
//! over little by little and time never runs backwards. Where it is set, by more than a second, that is reported, because flows
//! that began before are measured on another scale.

use std::time::{Duration, Instant, SystemTime};

use spanwatch_common::time::Timestamp;

/// A difference to the wall clock beyond which it was set rather than nudged.
const STEP: Duration = Duration::from_secs(1);

/// See the module.
pub struct Clock {
    started: Instant,
    /// Wall time at `started`, in nanoseconds since the epoch.
    offset: i64,
    latest: i64,
}

/// What the clock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Now.
    pub at: Timestamp,
    /// Whether the wall clock was set since the tick before.
    pub was_set: bool,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock that starts with the wall clock.
    pub fn new() -> Self {
        let (mono, wall) = read();
        Self { started: mono, offset: wall, latest: wall }
    }

    /// Time since this clock was made, whatever became of the wall clock.
    pub fn running(&self) -> Duration {
        read().0.duration_since(self.started)
    }

    /// Reads the clock. One call for each batch of packets.
    pub fn tick(&mut self) -> Tick {
        let (mono, wall) = read();
        self.tick_from(nanos(mono.duration_since(self.started)), wall)
    }

    fn tick_from(&mut self, elapsed: i64, wall: i64) -> Tick {
        let error = wall - (self.offset + elapsed);
        let was_set = error.unsigned_abs() > STEP.as_nanos() as u64;
        if was_set {
            self.offset += error;
            self.latest = wall;
        } else {
            self.offset += error / 64;
            self.latest = self.latest.max(self.offset + elapsed);
        }
        Tick { at: Timestamp::from_nanos(self.latest), was_set }
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "this is the clock that the loop around a worker reads once per batch")]
fn read() -> (Instant, i64) {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos);
    (Instant::now(), wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn clock() -> Clock {
        Clock { started: read().0, offset: 1000 * SECOND, latest: 1000 * SECOND }
    }

    #[test]
    fn a_nudged_clock_never_runs_backwards() {
        let mut clock = clock();
        let mut before = Timestamp::NONE;
        for step in 1..1000 {
            // The wall clock falls behind by a millisecond every hundredth of a second, then recovers.
            let lag = if step < 500 { step * 1_000_000 } else { (1000 - step) * 1_000_000 };
            let tick = clock.tick_from(step * 10_000_000, 1000 * SECOND + step * 10_000_000 - lag);
            assert!(!tick.was_set && tick.at >= before);
            before = tick.at;
        }
    }

    #[test]
    fn a_clock_that_was_set_is_followed_at_once_either_way() {
        let mut clock = clock();
        let forward = clock.tick_from(SECOND, 5000 * SECOND);
        assert_eq!((forward.at, forward.was_set), (Timestamp::from_secs(5000), true));
        let back = clock.tick_from(2 * SECOND, 1002 * SECOND);
        assert_eq!((back.at, back.was_set), (Timestamp::from_secs(1002), true));
        assert!(!clock.tick_from(3 * SECOND, 1003 * SECOND).was_set);
    }
}
