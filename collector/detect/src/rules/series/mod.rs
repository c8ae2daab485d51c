//! Settings of the rules that compare days and hours with those before them.

mod anomalies;
mod deviations;

use std::time::Duration;

pub use anomalies::{AZ_08, AZ_10, AZ_15, OutboundVolume, UnusualDay, WatchedPort};
pub use deviations::{AZ_13, AZ_18, AZ_19, AZ_25, AZ_26, CommonPorts, DenialRate, ManyDestinations, UnusualSmb, VariableHosts};

/// Windows that a rule may look back.
const WINDOWS_MAX: u64 = 1_000;

/// So many windows, and one more: the first may have begun before them.
const fn windows(window_secs: u64, number: u64) -> Duration {
    Duration::from_secs(window_secs * (number + 1))
}
