//! What to send.

use clap::{Args, ValueEnum};
use serde::Serialize;

/// Who talks to whom, in frames of 198.51.100.1 (the server) and clients in 10.0.0.0/8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// TCP segments both ways; in order, each follows the one before.
    #[default]
    Tcp,
    /// UDP both ways.
    Udp,
    /// 203.0.113.1 sends a SYN to each of the clients in turn.
    Scan,
    /// Each client, from all over 10.0.0.0/8, sends the server a SYN.
    Flood,
}

/// Which conversation the next frame belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Any of them, either way, each as likely as the others. Segments with data then repeat their sequence numbers.
    #[default]
    Random,
    /// One after the other, then all of them the other way, and so on: every conversation gets the same number of frames.
    InOrder,
}

/// Length of the frames, before anything is put around them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
pub enum Size {
    /// 64 octets with FCS: frames of 60.
    #[default]
    #[value(name = "64")]
    #[serde(rename = "64")]
    Least,
    /// Frames of 60, 590 and 1514 octets, 7 : 4 : 1 among the conversations.
    #[value(name = "imix")]
    #[serde(rename = "imix")]
    Imix,
    /// Frames of 1514 octets.
    #[value(name = "1514")]
    #[serde(rename = "1514")]
    Full,
}

/// What is around the conversations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Encapsulation {
    /// Nothing.
    #[default]
    None,
    /// A VLAN tag: VID 120.
    Vlan,
    /// VXLAN: VNI 7777.
    Vxlan,
    /// ERSPAN type II: session 100, sequence numbers without gaps.
    Erspan,
}

/// Traffic to send.
#[derive(Clone, Debug, PartialEq, Eq, Args, Serialize)]
pub struct Traffic {
    /// Frames to send in all
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    pub count: u64,
    /// Frames a second; 0 is as fast as it goes
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    pub packets_per_sec: u64,
    /// Different conversations
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX))]
    pub flows: u32,
    /// Which conversation comes next
    #[arg(long, value_enum, default_value_t)]
    pub order: Order,
    /// Who talks to whom
    #[arg(long, value_enum, default_value_t)]
    pub shape: Shape,
    /// Length of the frames
    #[arg(long, value_enum, default_value_t)]
    pub size: Size,
    /// What is around them
    #[arg(long, value_enum, default_value_t)]
    pub encapsulation: Encapsulation,
    /// One frame in so many belongs to an established connection of 203.0.113.7:50000 with 198.51.100.7:502; 0: none does
    #[arg(long, default_value_t = 0)]
    pub marked_one_in: u32,
}

/// The program multiplies nanoseconds by frames a second in 64 bits, so that what is due at the last frame must be below 2⁶⁴ / 10⁹.
const COUNT_MAX: u64 = 10_000_000_000;
/// Addresses in 10.0.0.0/8.
const FLOWS_MAX: i64 = 1 << 24;

impl Default for Traffic {
    fn default() -> Self {
        Self {
            count: 1_000_000,
            packets_per_sec: 0,
            flows: 1,
            order: Order::default(),
            shape: Shape::default(),
            size: Size::default(),
            encapsulation: Encapsulation::default(),
            marked_one_in: 0,
        }
    }
}

/// Octets of each frame, by the number of its conversation modulo the length of this.
pub(crate) const SIZES: usize = 12;

impl Size {
    /// Octets of the frame without FCS.
    pub(crate) const fn octets(self) -> [u32; SIZES] {
        match self {
            Self::Least => [60; SIZES],
            Self::Imix => [60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 590, 60],
            Self::Full => [1514; SIZES],
        }
    }

    const fn longest(self) -> usize {
        match self {
            Self::Least => 60,
            Self::Imix | Self::Full => 1514,
        }
    }
}

/// A frame that is every frame of the traffic but for what the program writes into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    /// All of it, as long as the longest frame.
    pub(crate) bytes: Vec<u8>,
    /// Where the inner frame begins.
    pub(crate) macs_at: usize,
    /// Where its IPv4 header begins.
    pub(crate) network_at: usize,
}

impl Traffic {
    /// The template of its frames.
    pub(crate) fn template(&self) -> Template {
        let len = if self.marked_one_in > 0 { self.size.longest().max(60) } else { self.size.longest() };
        let mut inner = vec![0; len];
        inner[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        (inner[14], inner[22]) = (0x45, 64); // IPv4 without options; time to live
        inner[46] = 5 << 4; // TCP without options
        inner[48] = 0x20; // and with a window that is not closed
        if self.shape == Shape::Udp {
            inner[46..50].fill(0); // data
        }
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let outer = |protocol: u8, rest: &[u8]| {
            let mut header = vec![2, 0, 0, 0, 0, 4, 2, 0, 0, 0, 0, 3, 8, 0];
            header.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
            header.extend_from_slice(rest);
            header
        };
        let before = match self.encapsulation {
            Encapsulation::None => Vec::new(),
            Encapsulation::Vlan => {
                inner.splice(12..12, [0x81, 0, 0, 120]);
                return Template { bytes: inner, macs_at: 0, network_at: 18 };
            }
            // RFC 7348 §5: UDP to port 4789, then the flag that says that there is a VNI, then the VNI.
            Encapsulation::Vxlan => outer(17, &words(&[4789, 0, 0x0800_0000, 7777 << 8])),
            // GRE with a sequence number (RFC 2890); version 1, session 100, an index (draft-foschiano-erspan-03 §4.2).
            Encapsulation::Erspan => outer(47, &words(&[0x1000_88be, 0, 0x1000_1864, 0])),
        };
        let macs_at = before.len();
        Template { bytes: [before, inner].concat(), macs_at, network_at: macs_at + 14 }
    }
}
