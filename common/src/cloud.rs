//! What only a cloud's flow log says about a flow: who decided, which rule, which way.
//!
//! A sensor sees packets and no policy, so its records have none of this ([`FlowRecord::cloud`] is empty). A record made from an
//! Azure flow log carries a [`Cloud`]; text and store show its [`FIELDS`] beside the IPFIX elements. They do not travel on the
//! wire between sensor and collector.

use std::sync::Arc;

use crate::flow::FlowRecord;
use crate::time::Timestamp;

/// Who made a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A sensor on a mirror port, or a capture file.
    #[default]
    Sensor,
    /// Azure NSG flow log, version 1: no state, no counters.
    NsgV1,
    /// Azure NSG flow log, version 2.
    NsgV2,
    /// Azure VNet flow log, version 4.
    VnetV4,
    /// Traffic Analytics over NSG flow logs (`AzureNetworkAnalytics_CL`).
    TaNsg,
    /// Traffic Analytics over VNet flow logs (`NTANetAnalytics`).
    TaVnet,
}

impl Origin {
    /// Every origin.
    pub const ALL: [Self; 6] = [Self::Sensor, Self::NsgV1, Self::NsgV2, Self::VnetV4, Self::TaNsg, Self::TaVnet];

    /// The word used in JSON and in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sensor => "Sensor",
            Self::NsgV1 => "NsgV1",
            Self::NsgV2 => "NsgV2",
            Self::VnetV4 => "VnetV4",
            Self::TaNsg => "TaNsg",
            Self::TaVnet => "TaVnet",
        }
    }

    /// Whether it is a Traffic Analytics table, in which many flows are folded into a row.
    pub const fn is_folded(self) -> bool {
        matches!(self, Self::TaNsg | Self::TaVnet)
    }
}

/// What policy decided (ASIM `DvcAction`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Nobody said.
    #[default]
    Unknown,
    /// Let through.
    Allow,
    /// Stopped: decision `D` of an NSG flow log, state `D` of a VNet flow log.
    Deny,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Allow, Self::Deny];

    /// The word used in JSON and in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Allow => "Allow",
            Self::Deny => "Deny",
        }
    }
}

/// Which way a flow was opened, seen from the network interface that logged it (ASIM `NetworkDirection`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Nobody said.
    #[default]
    Unknown,
    /// Towards the interface (`I`); from outside the sites to inside.
    Inbound,
    /// Away from the interface (`O`); from inside the sites to outside.
    Outbound,
    /// Between two hosts inside the sites. Never said by Azure.
    Local,
}

impl Direction {
    /// Every direction.
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Inbound, Self::Outbound, Self::Local];

    /// The word used in JSON and in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Inbound => "Inbound",
            Self::Outbound => "Outbound",
            Self::Local => "Local",
        }
    }
}

/// What a cloud's flow log says beyond the flow itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloud {
    /// Which kind of log.
    pub origin: Origin,
    /// What policy decided.
    pub action: Action,
    /// Which way.
    pub direction: Direction,
    /// How many flows the row stands for: 1, or what Traffic Analytics folded into it (ASIM `EventCount`). At least 1.
    pub events: u32,
    /// When Azure took the row in (`TimeGenerated` of Traffic Analytics); none for a blob.
    pub ingested: Timestamp,
    /// What repeats from row to row, shared.
    pub context: Arc<CloudContext>,
}

impl Default for Cloud {
    fn default() -> Self {
        Self {
            origin: Origin::default(),
            action: Action::default(),
            direction: Direction::default(),
            events: 1,
            ingested: Timestamp::NONE,
            context: Arc::default(),
        }
    }
}

/// The names around a flow, as the log spells them; empty where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CloudContext {
    /// Who saw it: the network interface's MAC address as the log writes it (`0022481A2B3C`), else [`resource`](Self::resource).
    /// It takes the place that a sensor's name has.
    pub observer: Arc<str>,
    /// The resource whose traffic was logged: NSG (`resourceId`), or `targetResourceID`, `TargetResourceId`.
    pub resource: Arc<str>,
    /// The flow log (`flowLogResourceID`).
    pub flow_log: Arc<str>,
    /// The access control list: `aclID`, opaque.
    pub acl: Arc<str>,
    /// The rule that decided.
    pub rule: Arc<str>,
    /// `X`, `NX` or `NX_…` of a VNet flow log.
    pub encryption: Arc<str>,
    /// Source virtual machine, `resource group/name`.
    pub source_vm: Arc<str>,
    /// Destination virtual machine.
    pub destination_vm: Arc<str>,
    /// Traffic Analytics' own class (`IntraVNet`, `ExternalPublic`, …).
    pub flow_type: Arc<str>,
}

impl CloudContext {
    /// Whether the tuple is the platform's own (load-balancer probes and the like), not a tenant's.
    pub fn is_platform(&self) -> bool {
        &*self.rule == "PlatformRule"
    }
}

impl FlowRecord {
    /// Who made it.
    pub fn origin(&self) -> Origin {
        self.cloud.as_ref().map_or(Origin::Sensor, |cloud| cloud.origin)
    }
}

/// What text and store show of a [`Cloud`], one field each.
pub struct CloudField {
    /// JSON key and column name.
    pub name: &'static str,
    /// How to read and write it.
    pub access: CloudAccess,
}

/// Reading and writing a field of a [`Cloud`].
#[derive(Clone, Copy)]
pub enum CloudAccess {
    /// A name that repeats; empty means absent.
    Name(fn(&CloudContext) -> &Arc<str>, fn(&mut CloudContext, Arc<str>)),
    /// A word of a fixed set. Writing says whether the word belongs to it.
    Word(fn(&Cloud) -> &'static str, fn(&mut Cloud, &str) -> bool),
    /// A number, zero or more; zero means absent.
    Number(fn(&Cloud) -> i64, fn(&mut Cloud, i64)),
}

macro_rules! name {
    ($name:literal, $field:ident) => {
        CloudField { name: $name, access: CloudAccess::Name(|context| &context.$field, |context, text| context.$field = text) }
    };
}

macro_rules! word {
    ($name:literal, $field:ident : $ty:ident) => {
        CloudField {
            name: $name,
            access: CloudAccess::Word(
                |cloud| cloud.$field.name(),
                |cloud, word| {
                    let found = $ty::ALL.into_iter().find(|known| known.name() == word);
                    cloud.$field = found.unwrap_or_default();
                    found.is_some()
                },
            ),
        }
    };
}

/// Every field, in the order of JSON keys and columns. The store appends them after the IPFIX elements; names never change.
pub static FIELDS: [CloudField; 14] = [
    word!("flowOrigin", origin: Origin),
    word!("action", action: Action),
    word!("networkDirection", direction: Direction),
    CloudField {
        name: "eventCount",
        access: CloudAccess::Number(
            |cloud| i64::from(cloud.events),
            |cloud, n| cloud.events = u32::try_from(n).unwrap_or(u32::MAX),
        ),
    },
    CloudField {
        name: "ingestTimeNanoseconds",
        access: CloudAccess::Number(|cloud| cloud.ingested.as_nanos(), |cloud, n| cloud.ingested = Timestamp::from_nanos(n)),
    },
    name!("observer", observer),
    name!("resourceId", resource),
    name!("flowLogResourceId", flow_log),
    name!("aclId", acl),
    name!("ruleName", rule),
    name!("flowEncryption", encryption),
    name!("sourceVm", source_vm),
    name!("destinationVm", destination_vm),
    name!("flowType", flow_type),
];
