//! What sensor and collector must agree on. Pure: no sockets, no clocks, no files, no `unsafe`.
//!
//! In the order in which you need to learn them:
//!
//! * [`time`] — [`time::Timestamp`], nanoseconds since the Unix epoch
//! * [`net`] — addresses and prefixes
//! * [`service`] — which ports are services
//! * [`flow`] — [`flow::FlowRecord`], the final summary of a flow or of a slice of its life
//! * [`cloud`] — what only a cloud's flow log says about a flow
//! * [`element`] — the fields of a record by their IPFIX element, one table for wire, JSON and CSV
//! * [`text`] — records as JSON lines and CSV
//! * [`ledger`] — the counts that must add up
//! * [`wire`] — frames and messages between sensor and collector
//! * [`checkup`] — what a `doctor` command found out
//! * [`settings`] — reading a TOML file so that a mistake is shown with its line and a hint

pub mod checkup;
pub mod cloud;
pub mod element;
pub mod flow;
pub mod ledger;
pub mod net;
pub mod service;
pub mod settings;
pub mod text;
pub mod time;
pub mod wire;
