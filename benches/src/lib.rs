//! What the stages of the sensor's line cost, over frames in memory.
//!
//! * [`frames`] — the frames: kinds of packets, their sizes, which flow each belongs to, how they lie in memory
//! * [`wrapped`] — the same with something around them
//! * [`line`](mod@line) — a worker that is fed as the live loop feeds it
//! * [`table`] — the flow table alone
//! * [`plans`] — every bench by name
//! * [`memory`] — bytes per live flow
//!
//! The program `stages` (`src/bin/stages.rs`) times and counts them; `tests/` holds them to what was committed.

pub mod frames;
pub mod line;
pub mod memory;
pub mod plans;
pub mod table;
pub mod wrapped;
