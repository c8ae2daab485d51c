//! The functions of KQL that the detection rules rest on: pure, deterministic, without a clock.
//!
//! They give what Kusto gives wherever Kusto says what it gives; each documented example is a test. Where Kusto does not say,
//! the comment on the function says what was inferred and from what, and [`Compat`] holds the choice.
//!
//! A series is a slice of numbers at equal distances. **A value that is not finite is missing**: it takes no part in sums,
//! fits, medians or percentiles, and its score is 0. No input makes a function panic.

pub mod compat;
pub mod dcount;
pub mod decompose;
mod fft;
pub mod fit;
pub mod ipv4;
pub mod make_series;
pub mod outliers;
pub mod periods;
pub mod stats;
pub mod time;

pub use compat::Compat;
