//! skeleton
pub mod alert;
pub mod commands;
pub mod detect;
