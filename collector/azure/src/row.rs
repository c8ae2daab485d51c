//! What one tuple of a flow log, or one row of a Traffic Analytics table, says.

use std::sync::Arc;

use spanwatch_common::flow::Mac;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

/// The format that a row came in. One file may hold several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// NSG flow log, tuple of 8 fields: who and whether, no counters.
    NsgV1,
    /// NSG flow log, tuple of 13 fields: states and counters.
    NsgV2,
    /// VNet flow log, tuple of 13 fields, milliseconds.
    VnetV4,
    /// Traffic Analytics on NSG flow logs: table `AzureNetworkAnalytics_CL`.
    TaNsg,
    /// Traffic Analytics on VNet flow logs: table `NTANetAnalytics`.
    TaVnet,
}

impl Origin {
    /// The name shown to people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NsgV1 => "NSG flow log v1",
            Self::NsgV2 => "NSG flow log v2",
            Self::VnetV4 => "VNet flow log v4",
            Self::TaNsg => "AzureNetworkAnalytics_CL",
            Self::TaVnet => "NTANetAnalytics",
        }
    }
}

/// Which way a flow went past the network interface that logged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Towards the interface's machine.
    Inbound,
    /// From it.
    Outbound,
    /// Not stated (Traffic Analytics rows only).
    Unknown,
}

/// What the rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// The flow was let through.
    Allow,
    /// It was not.
    Deny,
    /// Not stated (Traffic Analytics rows only).
    Unknown,
}

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

/// What the rows of one flow group (or one Traffic Analytics row) have in common.
///
/// Texts repeat from record to record and are shared.
#[derive(Clone, Debug)]
pub struct Group {
    /// Who logged: ARM id of the NSG (NSG flow logs) or of the target, such as the VNet, subnet or interface (VNet flow logs,
    /// Traffic Analytics). Empty if not stated.
    pub observer: Arc<str>,
    /// ARM id of the flow log resource; empty if not stated, as in NSG flow logs.
    pub flow_log: Arc<str>,
    /// The deciding rule list: opaque, at times a GUID, at times an ARM path, at times `unspecified`.
    pub acl: Arc<str>,
    /// Name of the deciding rule.
    pub rule: Arc<str>,
    /// MAC address of the network interface that logged; none if not stated or not six bytes.
    pub mac: Option<Mac>,
    /// When the record was written (`time`), or the table row came into being (`TimeGenerated`); [`Timestamp::NONE`] if not stated.
    pub logged: Timestamp,
    /// Format version the record states: 1 and 2 (NSG), 4 (VNet); 0 if it states none.
    pub version: u8,
    /// What only Traffic Analytics says.
    pub analytics: Option<Analytics>,
}

/// The part of a Traffic Analytics row that flow logs do not have.
#[derive(Clone, Debug)]
pub struct Analytics {
    /// `IntraVNet`, `InterVNet`, `S2S`, `P2S`, `AzurePublic`, `ExternalPublic`, `MaliciousFlow`, `UnknownPrivate`, `Unknown`, or newer.
    pub flow_type: Arc<str>,
    /// Virtual machine at the source, as `group/machine`; empty if none.
    pub source_vm: Arc<str>,
    /// Virtual machine at the destination.
    pub destination_vm: Arc<str>,
    /// Begin and end of the processing interval that the row sums up; [`Timestamp::NONE`] if not stated.
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
    /// Observer, rule and what else the rows of its group share.
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
    /// Seen from the logging interface.
    pub direction: Direction,
    /// Allowed or denied.
    pub decision: Decision,
    /// Begin, Continue, End, Deny; none for NSG v1 and Traffic Analytics.
    pub state: Option<State>,
    /// `X`, `NX` or `NX_…` as written, values unknown to us included; none outside VNet flow logs and `NTANetAnalytics`.
    pub encryption: Option<&'a str>,
    /// Packets `[initiator to responder, back]` since the flow's previous tuple; in Traffic Analytics of all folded flows.
    pub packets: [u64; 2],
    /// Bytes with headers, likewise.
    pub octets: [u64; 2],
    /// How many flows the row stands for: 1 for a tuple.
    pub event_count: u64,
    /// Hash of observer, interface, rule list, rule and tuple text: equal for exact duplicates. For table rows, of the whole row.
    pub identity: u64,
}
