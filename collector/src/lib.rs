//! The collector: receives flow records from sensors, keeps them, looks for scans and odd volumes in them, raises alerts.
//!
//! In the order in which a record meets them, then what surrounds the line:
//!
//! * [`ingest`] — sensors connect, batches come in, acknowledgements go back
//! * [`store`] — records at rest, and SQL over them
//! * [`detect`] — folds over records that make findings
//! * [`health`] — what sensors say of their mirror ports, as findings
//! * [`alert`] — findings merged into what a person sees
//! * [`run`] — all of these wired together
//! * [`metrics`] — the collector's own numbers
//! * [`pki`] — its certificate authority
//! * [`config`] — all settings
//! * [`cli`] — what an operator types; [`commands`] — what that does

#![forbid(unsafe_code)]

pub use spanwatch_alert as alert;
pub use spanwatch_detect as detect;
pub use spanwatch_store as store;

pub mod cli;
pub mod commands;
pub mod config;
pub mod health;
pub mod ingest;
pub mod metrics;
pub mod pki;
pub mod run;
