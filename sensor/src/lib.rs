//! skeleton
pub mod export;
pub mod uplink;
