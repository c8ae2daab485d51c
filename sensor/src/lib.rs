//! Turns mirrored packets into flow records and ships them to a collector.
//!
//! In the order of the line:
//!
//! * [`capture`] — frames from AF_XDP, libpcap or a file
//! * [`decode`] — what one frame says
//! * [`fragments`] — ports for later fragments
//! * [`flow_table`] — live flows, and the records that come of them
//! * [`worker`] — one receive queue: capture, decode, flow table, in one thread
//! * [`replay`] — the same line over a capture file

#![deny(unsafe_code)]

pub mod capture;
pub mod decode;
pub mod flow_table;
pub mod fragments;
pub mod replay;
pub mod worker;
