//! Bytes of memory per live flow: what the process grows by when a table is made and filled.

use std::io;

use spanwatch_sensor::flow_table::FlowTableSettings;
use spanwatch_sensor::worker::MeterSettings;

use crate::frames::{Side, over_ipv6, tcp, udp};
use crate::line::Meter;
use crate::wrapped::Wrapping;

/// Kinds of flows. Half of each are TCP seen both ways, half are a single UDP packet.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Plain IPv4.
    Ipv4,
    /// Plain IPv6.
    Ipv6,
    /// IPv4 in one VXLAN tunnel.
    Vxlan,
}

/// All of them.
pub const KINDS: [(&str, Kind); 3] = [("ipv4", Kind::Ipv4), ("ipv6", Kind::Ipv6), ("vxlan", Kind::Vxlan)];

impl Kind {
    /// All frames of a flow.
    fn frames(self, flow: u32) -> Vec<Vec<u8>> {
        let sides: &[Side] = if flow.is_multiple_of(2) { &[Side::Client, Side::Server] } else { &[Side::Client] };
        sides.iter().map(|&side| self.frame(flow, side)).collect()
    }

    fn frame(self, flow: u32, side: Side) -> Vec<u8> {
        let ipv4 = if flow.is_multiple_of(2) { tcp(flow, side, flow as u16) } else { udp(flow, side, flow as u16) };
        match self {
            Self::Ipv4 => ipv4.to_vec(),
            Self::Ipv6 => over_ipv6(flow, side, &ipv4).to_vec(),
            Self::Vxlan => Wrapping::Vxlan.around(&ipv4),
        }
    }
}

/// Flows whose frames are made at once: few, so that the frames weigh nothing.
const AT_ONCE: u32 = 512;

/// Octets of resident memory that a worker takes for each of `flows` live ones, in a table that was made for so many: the growth of
/// `Rss` between before it was made and when all were seen, divided by `flows`. So everything is in it that a worker holds (flow table with
/// its free places, what is aside, duplicates, fragments, tunnels, records), whole pages as the system gave them.
///
/// # Errors
/// `/proc` cannot be read, or the worker did not keep that many flows.
pub fn bytes_per_flow(kind: Kind, flows: u32) -> io::Result<f64> {
    let flow_table = FlowTableSettings { flows_max: flows as usize, ..FlowTableSettings::default() };
    let before = resident()?;
    let mut meter = Meter::new(&MeterSettings { flow_table, ..MeterSettings::default() }, 1000);
    for first in (0..flows).step_by(AT_ONCE as usize) {
        let frames: Vec<Vec<u8>> = (first..flows.min(first + AT_ONCE)).flat_map(|flow| kind.frames(flow)).collect();
        meter.feed(frames.iter().map(Vec::as_slice));
    }
    let live = meter.account().live;
    if live != u64::from(flows) {
        return Err(io::Error::other(format!("{live} of {flows} flows are live")));
    }
    Ok((resident()? as f64 - before as f64) / f64::from(flows))
}

/// Resident octets of this process.
fn resident() -> io::Result<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let kib = rollup.lines().find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(1024 * kib.ok_or_else(|| io::Error::other("no Rss in /proc/self/smaps_rollup"))?)
}
