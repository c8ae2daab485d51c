//! The commands of the command line, one module each.

pub mod alerts;
pub mod check;
pub mod detect;
pub mod doctor;
mod findings;
pub mod import;
mod layout;
pub mod pki;
pub mod query;
mod replay;
pub mod report;
pub mod rules;
