//! A packet generator of one's own: the kernel's live frames, shaped by a BPF program, into one end of a veth pair.
//!
//! * [`traffic`] — what to send: conversations, order, sizes, what is around them, how fast, how many
//! * [`generator`] — sends it, and says exactly how many frames it sent
//! * [`namespace`] — the network namespace in which alone all of this happens
//! * [`cores`] — which core does what
//!
//! `bpf/generator.bpf.c` makes the frames. One core makes 5 to 8 million of them a second, whatever their number of conversations.

pub mod cores;
pub mod generator;
pub mod namespace;
pub mod traffic;
