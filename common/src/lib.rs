//! What sensor and collector must agree on. Pure: no sockets, no clocks, no files, no `unsafe`.
//!
//! In the order in which you need to learn them:
//!
//! * [`time`] — [`time::Timestamp`], nanoseconds since the Unix epoch
//! * [`net`] — addresses and prefixes
//! * [`service`] — which ports are services
//! * [`flow`] — [`flow::FlowRecord`], the final summary of a flow or of a slice of its life
//! * [`cloud`] — what only a cloud's flow log says about a flow
//! * [`encapsulation`] — what a decoder takes off a frame on the way to the innermost conversation
//! * [`layer2`] — layer-2 protocols and their instances
//! * [`element`] — the fields of a record by their IPFIX element, one table for wire, JSON and CSV
//! * [`text`] — records as JSON lines and CSV
//! * [`ledger`] — the counts that must add up
//! * [`health`] — whether a mirror port gives what it should
//! * [`wire`] — frames and messages between sensor and collector
//! * [`checkup`] — what a `doctor` command found out
//! * [`settings`] — reading a TOML file so that a mistake is shown with its line and a hint

pub mod checkup;
pub mod cloud;
pub mod element;
pub mod encapsulation;
pub mod flow;
pub mod health;
pub mod layer2;
pub mod ledger;
pub mod net;
pub mod service;
pub mod settings;
pub mod text;
pub mod time;
pub mod wire;
