//! What one tuple of a flow log, or one row of a Traffic Analytics table, says.

use std::sync::Arc;

use spanwatch_common::cloud::{Action, Cloud, CloudContext, Direction, Origin};
use spanwatch_common::flow::{BiflowDirection, FlowEndReason, FlowRecord, FlowState, Mac, REVERSE};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use crate::seen::hash;

/// Where in the flow's life the tuple was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The flow began; no counters yet.
    Begin,
    /// It goes on; counters since its previous tuple.
    Continue,
    /// It ended; counters since its previous tuple.
    End,
    /// It was denied (VNet flow logs only; NSG flow logs say Begin and deny in another column).
    Deny,
}

impl State {
    /// The letter in a tuple.
    pub const fn letter(self) -> char {
        match self {
            Self::Begin => 'B',
            Self::Continue => 'C',
            Self::End => 'E',
            Self::Deny => 'D',
        }
    }
}

/// Where a row stood, so that a finding can point at its evidence and no row is taken twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Byte offset of the row's record from the beginning of the (uncompressed) file.
    pub byte_offset: u64,
    /// Number of the record in the file, from 0. For Traffic Analytics each line is a record; a CSV header is none.
    pub record: u64,
    /// Number of the tuple in the record, from 0, duplicates counted too; of the public address in a Traffic Analytics row.
    pub tuple: u32,
}

/// What the rows of one rule (or one Traffic Analytics row) have in common.
#[derive(Clone, Debug)]
pub struct Group {
    /// The names around the flow; one shared copy for all rows that have the same.
    pub context: Arc<CloudContext>,
    /// MAC address of the network interface that logged; none if not stated or not six bytes.
    pub mac: Option<Mac>,
    /// When the record was written (`time`), or the table row came into being (`TimeGenerated`); [`Timestamp::NONE`] if not stated.
    pub logged: Timestamp,
    /// Format version the record states: 1 and 2 (NSG), 4 (VNet); 0 if it states none.
    pub version: u8,
    /// Begin and end of the Traffic Analytics interval that the row sums up; [`Timestamp::NONE`] if not stated.
    pub interval: [Timestamp; 2],
    /// `IsFlowCapturedAtUdrHop`: a copy seen at a routing hop, to be left out of sums.
    pub udr_hop: bool,
}

/// One tuple or table row, lent for the length of one call.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Where it stood.
    pub position: Position,
    /// Which format it had. For NSG flow logs this follows the tuple, not the version that the record states.
    pub origin: Origin,
    /// Interface, rule and what else the rows of its group share.
    pub group: &'a Group,
    /// Time of the tuple; first flow of a Traffic Analytics row. Resolution: seconds (NSG), milliseconds (VNet).
    pub start: Timestamp,
    /// Time of the tuple; start of the last flow of a Traffic Analytics row.
    pub end: Timestamp,
    /// Address of the initiator; [`Address::NONE`] where Traffic Analytics leaves it blank and blanks are kept.
    pub source: Address,
    /// Address of the responder.
    pub destination: Address,
    /// Port of the initiator; 0 in Traffic Analytics, which folds it away, and for protocols without ports.
    pub source_port: u16,
    /// Port of the responder.
    pub destination_port: u16,
    /// IANA protocol number; 0 where a Traffic Analytics row states none.
    pub protocol: u8,
    /// Seen from the logging interface; unknown only where a Traffic Analytics row does not say.
    pub direction: Direction,
    /// Allowed or denied; unknown only where a Traffic Analytics row does not say.
    pub action: Action,
    /// Begin, Continue, End, Deny; none for NSG v1 and Traffic Analytics.
    pub state: Option<State>,
    /// Packets `[initiator to responder, back]` since the flow's previous tuple; in Traffic Analytics of all folded flows.
    pub packets: [u64; 2],
    /// Bytes with headers, likewise.
    pub octets: [u64; 2],
    /// How many flows the row stands for: 1 for a tuple.
    pub event_count: u64,
    /// Hash of observer, interface, rule list, rule and tuple text: equal for exact duplicates. For table rows, of the whole row.
    pub identity: u64,
}

impl Row<'_> {
    /// The row as the store and the detectors take it.
    ///
    /// Azure has no flag, size or MAC of the far end to tell: those fields stay empty. A tuple that says nothing of the flow's life
    /// (NSG v1) begins it; a Traffic Analytics row ends what it sums up. The reverse half has times only if a packet came back.
    pub fn to_record(&self) -> FlowRecord {
        let state = match (self.state, self.origin) {
            (Some(State::Begin | State::Deny), _) | (None, Origin::NsgV1) => FlowState::Begin,
            (Some(State::Continue), _) => FlowState::Continue,
            (Some(State::End), _) | (None, _) => FlowState::End,
        };
        let mac = self.group.mac.unwrap_or_default();
        let (source_mac, destination_mac) = match self.direction {
            Direction::Outbound => (mac, Mac::default()),
            Direction::Inbound => (Mac::default(), mac),
            Direction::Unknown | Direction::Local => Default::default(),
        };
        let answered = self.packets[REVERSE] > 0;
        let back = |time| if answered { time } else { Timestamp::NONE };
        FlowRecord {
            flow_id: self.flow_id(),
            state,
            end_reason: match state {
                FlowState::Begin => FlowEndReason::None,
                FlowState::Continue => FlowEndReason::ActiveTimeout,
                FlowState::End => FlowEndReason::EndOfFlow,
            },
            biflow_direction: BiflowDirection::Initiator,
            ethernet_type: self.ethernet_type(),
            source_mac,
            destination_mac,
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
            packets: self.packets,
            octets: self.octets,
            start: [self.start, back(self.start)],
            end: [self.end, back(self.end)],
            answered,
            cloud: Some(Box::new(Cloud {
                origin: self.origin,
                action: self.action,
                direction: self.direction,
                events: u32::try_from(self.event_count).unwrap_or(u32::MAX).max(1),
                ingested: if self.origin.is_folded() { self.group.logged } else { Timestamp::NONE },
                context: Arc::clone(&self.group.context),
            })),
            ..FlowRecord::default()
        }
    }

    /// The same for all tuples of one flow at one interface; also for a later flow between the same ports.
    fn flow_id(&self) -> u64 {
        let mut key = [0; 37];
        let (source, rest) = key.split_at_mut(16);
        let (destination, rest) = rest.split_at_mut(16);
        source.copy_from_slice(&self.source.0.to_be_bytes());
        destination.copy_from_slice(&self.destination.0.to_be_bytes());
        let [sport, dport] = [self.source_port.to_be_bytes(), self.destination_port.to_be_bytes()];
        rest.copy_from_slice(&[sport[0], sport[1], dport[0], dport[1], self.protocol]);
        hash(hash(0, self.group.context.observer.as_bytes()), &key)
    }

    fn ethernet_type(&self) -> u16 {
        const IPV4: u16 = 0x0800;
        const IPV6: u16 = 0x86dd;
        let address = if self.source.is_some() { self.source } else { self.destination };
        match (address.is_some(), address.as_v4()) {
            (false, _) => 0,
            (true, Some(_)) => IPV4,
            (true, None) => IPV6,
        }
    }
}
