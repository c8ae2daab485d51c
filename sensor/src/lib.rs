//! Turns mirrored packets into flow records and ships them to a collector.
//!
//! In the order of the line:
//!
//! * [`capture`] — frames from AF_XDP, libpcap or a file
//! * [`decode`] — what one frame says
//! * [`dedup`] — second copies of a packet
//! * [`fragments`] — ports for later fragments
//! * [`reassembly`] — tunnel packets from their fragments
//! * [`flow_table`] — live flows, and the records that come of them
//! * [`overload`] — what is shed when there is too much, and when
//! * [`worker`] — one receive queue: decode, fragments, flow table together
//! * [`cores`] — which core each thread runs on
//! * [`huge_pages`] — whether the kernel gives any to the flow tables
//! * [`live`] — the loop around a worker that owns capture and clock
//! * [`export`] — batches, numbered and held until they are acknowledged
//! * [`uplink`] — the way to the collector
//! * [`metrics`] — /metrics, /healthz and /live
//! * [`live_view`] — what /live says
//! * [`top`] — the terminal view of it
//! * [`replay`] — the same line over a capture file
//! * [`doctor`] — is this machine fit for it
//! * [`flow_settings`] — what makes packets one flow
//! * [`config`], [`cli`], [`run`] — settings, commands, and the sensor as a whole

#![deny(unsafe_code)]

pub mod capture;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cores;
pub mod decode;
pub mod dedup;
pub mod doctor;
pub mod export;
pub mod flow_settings;
pub mod flow_table;
pub mod fragments;
pub mod huge_pages;
pub mod live;
pub mod live_view;
mod machine;
pub mod metrics;
pub mod overload;
pub mod reassembly;
pub mod replay;
pub mod run;
pub mod top;
pub mod uplink;
pub mod worker;
