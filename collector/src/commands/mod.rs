//! The commands of the command line, one module each.

pub mod alerts;
pub mod detect;
