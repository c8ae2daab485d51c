//! One receive queue: decode, fragments and flow table together. Pure; the loop that feeds it owns the capture and the clock.

use serde::{Deserialize, Serialize};
use spanwatch_common::flow::{FlowEndReason, FlowRecord};
use spanwatch_common::health::Health;
use spanwatch_common::layer2::is_process_data;
use spanwatch_common::ledger::{Ignored, Ledger, Odd};
use spanwatch_common::time::Timestamp;

use crate::capture::{Frame, Losses};
use crate::decode::{self, Around, DecodeSettings, Kind, Packet, Rules, Undecodable};
use crate::dedup::{Cause, Dedup, DedupMode};
use crate::flow_table::{BATCH, FlowTable, FlowTableSettings, KeyHasher, Observer};
use crate::fragments::{FragmentSettings, FragmentTable};

/// Settings of the middle of the line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeterSettings {
    /// What makes packets one flow, and whether second copies of a packet count.
    pub flow: FlowSettings,
    /// What is taken off frames.
    pub decode: DecodeSettings,
    /// Size and timeouts of the flow table.
    pub flow_table: FlowTableSettings,
    /// Size and timeout of the fragment table.
    pub fragments: FragmentSettings,
}

/// What makes packets one flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowSettings {
    /// What is in the key beside addresses, ports and protocol.
    pub key: KeySettings,
    /// Second copies of a packet, as a port mirrored both ways gives them: "off", they count like any packet; "on", they are removed from the
    /// first one on; "auto", they are counted, and removed as long as they are many (from 5 % of the packets in 10 s on, until they are below
    /// 0.5 % in a minute). What is removed is in the ledger.
    pub dedup: DedupMode,
    /// How far apart copies may be, in microseconds. Longer finds copies that come by different ways; too long takes repeated packets for
    /// copies. HSR and PRP twins have 400 ms in any case. 500 to 10000.
    pub dedup_window_micros: u32,
}

impl Default for FlowSettings {
    fn default() -> Self {
        Self { key: KeySettings::default(), dedup: DedupMode::default(), dedup_window_micros: 2000 }
    }
}

impl FlowSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The key that is out of range, and a sentence about it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(500..=10_000).contains(&self.dedup_window_micros) {
            return Err(("dedup_window_micros", format!("{} is out of range; choose 500 to 10000", self.dedup_window_micros)));
        }
        Ok(())
    }
}

/// What is in the key of a flow beside addresses, ports and protocol of the innermost conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeySettings {
    /// Whether packets of different VLANs belong to different flows: machine cells with the same addresses, each in a VLAN of its own.
    /// Turn it off when the switch tags only one direction.
    pub vlan: bool,
    /// Whether packets of different overlays (VXLAN network, GENEVE network, NVGRE subnet, GRE key) belong to different flows. Turn it on where
    /// tenants with the same addresses are told apart by nothing else.
    pub tunnel: bool,
    /// Whether packets from different interfaces of a capture file belong to different flows. Leave it off for the two fibres of a TAP.
    pub interface: bool,
    /// Whether packets between different pairs of MAC addresses belong to different flows. Splits a conversation that takes several
    /// routers.
    pub mac: bool,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self { vlan: true, tunnel: false, interface: false, mac: false }
    }
}

/// Longest frame that is believed; a length beyond it is a damaged file's.
const FRAME_OCTETS_MAX: u32 = 1 << 18;

/// Turns frames into records, and accounts for every one.
pub struct Worker {
    table: FlowTable,
    dedup: Dedup,
    fragments: FragmentTable,
    rules: Rules,
    around: Around,
    batch: Vec<Packet>,
    records: Vec<FlowRecord>,
    delivered: u64,
    ignored: Ignored,
    odd: Odd,
    health: Health,
}

impl Worker {
    /// A worker with memory for as much as the settings say.
    ///
    /// # Errors
    /// The operating system refuses the memory.
    pub fn new(settings: &MeterSettings, hasher: KeyHasher, observer: Observer) -> std::io::Result<Self> {
        Ok(Self {
            table: FlowTable::new(&settings.flow_table, hasher, observer)?,
            dedup: Dedup::new(settings.flow.dedup, settings.flow.dedup_window_micros, &hasher),
            fragments: FragmentTable::new(&settings.fragments, hasher),
            rules: Rules::new(&settings.decode, settings.flow.key.vlan),
            around: Around::default(),
            batch: Vec::with_capacity(BATCH),
            records: Vec::new(),
            delivered: 0,
            ignored: Ignored::default(),
            odd: Odd::default(),
            health: Health::default(),
        })
    }

    /// Takes one frame.
    #[inline]
    pub fn take(&mut self, frame: &Frame<'_>) {
        self.delivered += 1;
        let frame = Frame { wire_len: frame.wire_len.min(FRAME_OCTETS_MAX), ..*frame };
        match decode::decode(&frame, &self.rules, &mut self.around) {
            Ok(mut packet) => {
                self.odd.sliced += u64::from(frame.bytes.len() < frame.wire_len as usize);
                packet.odd.count(&mut self.odd);
                self.count_health(&packet);
                if let Some(cause) = self.dedup.removes(frame.bytes, &packet, &self.around) {
                    *match cause {
                        Cause::Copy => &mut self.ignored.duplicate_copy,
                        Cause::Routed => &mut self.ignored.duplicate_routed,
                        Cause::Redundant => &mut self.ignored.duplicate_redundant,
                    } += 1;
                    return;
                }
                if packet.fragment.is_some() && !self.fragments.resolve(&mut packet) {
                    self.odd.fragment_without_first += 1;
                }
                self.batch.push(packet);
                if self.batch.len() == BATCH {
                    self.observe();
                }
            }
            Err(Undecodable::Runt) => self.ignored.runt += 1,
            Err(Undecodable::LinkType) => self.ignored.link_type += 1,
            Err(Undecodable::NotIp) => self.ignored.not_ip += 1,
        }
    }

    /// Counts what a mirror is judged by, whether or not the packet is a copy.
    #[inline]
    fn count_health(&mut self, packet: &Packet) {
        if packet.destination_mac[0] & 1 != 0 {
            let is_process_data = packet.key.kind == Kind::Layer2 as u8 && is_process_data(packet.key.detail);
            self.health.group_packets += u64::from(!is_process_data);
        }
        let mut kinds = packet.encapsulations.0;
        while kinds != 0 {
            if let Some(count) = self.health.encapsulations.get_mut(kinds.trailing_zeros() as usize) {
                *count += 1;
            }
            kinds &= kinds - 1;
        }
    }

    fn observe(&mut self) {
        self.table.observe(&self.batch, &mut self.records);
        self.batch.clear();
    }

    /// Puts the frames taken so far into their flows, and makes the records that are due at `now`.
    pub fn settle(&mut self, now: Timestamp) {
        self.observe();
        self.table.expire(now, &mut self.records);
    }

    /// Ends every flow.
    pub fn flush(&mut self, reason: FlowEndReason) {
        self.observe();
        self.table.flush(reason, &mut self.records);
    }

    /// The records made since they were last taken away.
    pub const fn records(&mut self) -> &mut Vec<FlowRecord> {
        &mut self.records
    }

    /// The account so far, with the capture's side of it. Frames that were taken are metered once they are
    /// [`settle`](Self::settle)d. Records count as queued from the moment they are made.
    pub fn ledger(&self, losses: &Losses) -> Ledger {
        let counts = self.table.counts();
        Ledger {
            wire: losses.wire,
            delivered: self.delivered,
            dropped: losses.dropped,
            metered: counts.metered,
            ignored: self.ignored,
            exported: counts.exported,
            live: counts.metered - counts.exported,
            acknowledged: 0,
            queued: counts.exported,
            not_sent: 0,
            flows: spanwatch_common::ledger::Flows { records_queued: counts.flows.records, ..counts.flows },
            odd: Odd { late: counts.late, ..self.odd },
        }
    }

    /// How well the mirror does its work so far.
    pub fn health(&self, losses: &Losses) -> Health {
        let found = self.dedup.counts();
        Health {
            packets: self.delivered,
            sliced: self.odd.sliced,
            dropped: losses.dropped.total(),
            examined: found.examined,
            duplicate_copy: found.copies[Cause::Copy as usize],
            duplicate_routed: found.copies[Cause::Routed as usize],
            duplicate_redundant: found.copies[Cause::Redundant as usize],
            deduplicating: u64::from(self.is_deduplicating()),
            unknown_encapsulation: self.odd.unknown_encapsulation + self.odd.bad_encapsulation,
            ..self.health
        }
    }

    /// Whether second copies are removed at present.
    pub fn is_deduplicating(&self) -> bool {
        self.dedup.is_removing()
    }

    /// The same, with the packets in the table added up flow by flow: exact, and as slow as the table is large.
    pub fn audited_ledger(&self, losses: &Losses) -> Ledger {
        Ledger { live: self.table.packets_held(), ..self.ledger(losses) }
    }
}
