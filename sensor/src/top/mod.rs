//! `spanwatch-sensor top`.
