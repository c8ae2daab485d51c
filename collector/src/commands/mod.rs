//! The commands of the command line, one module each.

pub mod alerts;
pub mod check;
pub mod detect;
pub mod doctor;
pub mod export;
mod findings;
pub mod import;
mod layout;
pub mod outputs;
pub mod period;
pub mod pki;
pub mod query;
mod replay;
pub mod report;
pub mod rules;
