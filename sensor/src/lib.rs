//! Turns mirrored packets into flow records and ships them to a collector.

pub mod capture;
pub mod doctor;
