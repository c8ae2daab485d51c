//! The commands of the command line, one module each.

pub mod alerts;
pub mod check;
pub mod detect;
pub mod doctor;
pub mod pki;
pub mod query;
pub mod report;
