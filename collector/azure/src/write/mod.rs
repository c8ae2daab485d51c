//! Records of any origin to Azure's own files, so that what reads those can read a mirror port.
//!
//! What a format cannot carry is left out and counted in [`Skipped`].

mod flow_log;
mod fold;
mod path;

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::{Action, CloudContext, Direction};
use spanwatch_common::flow::{FlowRecord, Mac};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use flow_log::FlowLogWriter;
use fold::FoldWriter;

/// A format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// VNet flow log, version 4: `PT1H.json` of each interface and hour.
    VnetFlowLog,
    /// NSG flow log, version 2, likewise. TCP and UDP only.
    NsgFlowLog,
    /// Traffic Analytics' table `NTANetAnalytics` as JSON lines, folded by interval.
    Nta,
}

/// The names of the resources, for records that no cloud named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Subscription id. Default all zero.
    pub subscription: String,
    /// Resource group of the virtual network or security group. Default `SPANWATCH`.
    pub resource_group: String,
    /// Region of the network watcher. Default `ONPREMISES`.
    pub region: String,
    /// Name of the flow log. Default `SPANWATCH`.
    pub flow_log: String,
    /// Name of the virtual network. Default `MIRRORPORT`.
    pub network: String,
    /// Name of the network security group. Default `MIRRORPORT`.
    pub security_group: String,
    /// Name of the rule. Default `UserRule_MirrorPort`.
    pub rule: String,
}

impl Default for Labels {
    fn default() -> Self {
        Self {
            subscription: "00000000-0000-0000-0000-000000000000".into(),
            resource_group: "SPANWATCH".into(),
            region: "ONPREMISES".into(),
            flow_log: "SPANWATCH".into(),
            network: "MIRRORPORT".into(),
            security_group: "MIRRORPORT".into(),
            rule: "UserRule_MirrorPort".into(),
        }
    }
}

impl Labels {
    fn security_group_id(&self) -> Arc<str> {
        self.id("NETWORKSECURITYGROUPS", &self.security_group)
    }

    fn network_id(&self) -> Arc<str> {
        self.id("VIRTUALNETWORKS", &self.network)
    }

    fn id(&self, kind: &str, name: &str) -> Arc<str> {
        let Self { subscription, resource_group, .. } = self;
        format!("/SUBSCRIPTIONS/{subscription}/RESOURCEGROUPS/{resource_group}/PROVIDERS/MICROSOFT.NETWORK/{kind}/{name}").into()
    }

    fn flow_log_id(&self) -> Arc<str> {
        let Self { subscription, region, flow_log, .. } = self;
        format!(
            "/SUBSCRIPTIONS/{subscription}/RESOURCEGROUPS/NETWORKWATCHERRG/PROVIDERS/MICROSOFT.NETWORK/NETWORKWATCHERS/NETWORKWATCHER_{region}/FLOWLOGS/{flow_log}"
        )
        .into()
    }
}

/// What a writer may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most text (flow logs, in bytes) held back to fill a minute's record; on reaching it, all records held are written. Default 32 MiB.
    pub held_bytes_max: usize,
    /// Most files of one export, one for each interface and hour; reaching it is an error. Default 100,000.
    pub blobs_max: usize,
    /// Most table rows and public addresses held to fold an interval; on reaching it, they are written, and the interval has more
    /// rows than it need have. About 400 bytes each. Default 200,000.
    pub folds_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { held_bytes_max: 32 << 20, blobs_max: 100_000, folds_max: 200_000 }
    }
}

/// Records that were left out, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Without an IP header: Azure logs none.
    pub layer2: u64,
    /// Neither TCP nor UDP, which is all that NSG flow logs know.
    pub protocol: u64,
    /// One address is blank (a Traffic Analytics row imported for parity), which no tuple can say.
    pub blank_address: u64,
    /// A sensor's sum over all flows between two prefixes, which had no place in its flow table: a tuple names two addresses.
    pub aggregate: u64,
    /// Without a time, or before 1970-01-01, or at a time of which seconds and milliseconds cannot be told apart.
    pub time: u64,
}

impl Skipped {
    /// All together.
    pub const fn total(&self) -> u64 {
        self.layer2 + self.protocol + self.blank_address + self.aggregate + self.time
    }
}

/// What has been written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Records taken in and carried by the format.
    pub records: u64,
    /// Tuples, or table rows after folding.
    pub rows: u64,
    /// Files begun.
    pub blobs: u64,
    /// What was left out.
    pub skipped: Skipped,
}

/// An export that cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The sink failed.
    #[error("cannot write {blob}: {source}")]
    Sink {
        /// Which file.
        blob: String,
        /// Why.
        source: io::Error,
    },
    /// More files than allowed.
    #[error("the export has more than {limit} files (one for each interface and hour); narrow --since and --until")]
    TooManyBlobs {
        /// The limit.
        limit: usize,
    },
}

/// Where the text goes: called with the path of a file, relative, `/` between its parts, and with what to append to it.
pub type Sink<'s> = &'s mut dyn FnMut(&str, &[u8]) -> io::Result<()>;

/// Writes records as files of Azure. Records come best in the order of their time; any order gives the same rows.
///
/// A tuple has the time of the record's first packet, whatever its state, so that detection by windows finds the same on both sides.
/// Azure's direction is kept; of a sensor's record it is outbound if the source lies inside the sites (and is then logged at the
/// source's MAC address), else inbound if the destination does, else outbound.
///
/// Counters of a record of sampled packets are multiplied by the population, because no format can say that they were sampled. The two
/// halves of a flow that was seen one-sided are two tuples, each with a direction of zeros.
#[derive(Debug)]
pub struct Writer(Kind);

#[derive(Debug)]
enum Kind {
    FlowLog(Box<FlowLogWriter>),
    Fold(Box<FoldWriter>),
}

impl Writer {
    /// `interval` is that of Traffic Analytics, 10 or 60 minutes in Azure; flow logs do not ask for it.
    pub fn new(format: Format, labels: &Labels, interval: Duration, limits: Limits) -> Self {
        Self(match format {
            Format::VnetFlowLog | Format::NsgFlowLog => {
                Kind::FlowLog(Box::new(FlowLogWriter::new(format == Format::NsgFlowLog, labels, limits)))
            }
            Format::Nta => Kind::Fold(Box::new(FoldWriter::new(labels, interval, limits))),
        })
    }

    /// Takes in one record; `inside` says whether an address belongs to the sites.
    ///
    /// # Errors
    /// The sink's, or too many files.
    pub fn write(&mut self, record: &FlowRecord, inside: impl Fn(Address) -> bool, sink: Sink<'_>) -> Result<(), WriteError> {
        let estimated = (record.sampling_population > 1).then(|| estimated(record));
        let record = estimated.as_ref().unwrap_or(record);
        match &mut self.0 {
            Kind::FlowLog(writer) => writer.write(record, &inside, sink),
            Kind::Fold(writer) => writer.write(record, &inside, sink),
        }
    }

    /// Writes what is held and ends every file.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn finish(self, sink: Sink<'_>) -> Result<Written, WriteError> {
        match self.0 {
            Kind::FlowLog(writer) => writer.finish(sink),
            Kind::Fold(writer) => writer.finish(sink),
        }
    }
}

fn append(sink: &mut dyn FnMut(&str, &[u8]) -> io::Result<()>, blob: &str, text: &str) -> Result<(), WriteError> {
    sink(blob, text.as_bytes()).map_err(|source| WriteError::Sink { blob: blob.to_owned(), source })
}

/// The names around a record, those missing filled from the labels.
#[derive(Debug)]
struct Naming {
    network: Arc<str>,
    security_group: Arc<str>,
    flow_log: Arc<str>,
    rule: Arc<str>,
    empty: Arc<CloudContext>,
}

impl Naming {
    fn new(labels: &Labels) -> Self {
        Self {
            network: labels.network_id(),
            security_group: labels.security_group_id(),
            flow_log: labels.flow_log_id(),
            rule: labels.rule.as_str().into(),
            empty: Arc::default(),
        }
    }

    fn context<'r>(&'r self, record: &'r FlowRecord) -> &'r CloudContext {
        record.cloud.as_ref().map_or(&self.empty, |cloud| &cloud.context)
    }
}

fn or<'t>(text: &'t Arc<str>, fallback: &'t Arc<str>) -> &'t Arc<str> {
    if text.is_empty() { fallback } else { text }
}

/// What all packets would have been counted as, by those that were looked at.
fn estimated(record: &FlowRecord) -> FlowRecord {
    let times = |counts: [u64; 2]| counts.map(|count| count.saturating_mul(u64::from(record.sampling_population)));
    FlowRecord { packets: times(record.packets), octets: times(record.octets), ..record.clone() }
}

/// Whether the record can be told in any of the formats; counts it otherwise.
fn tellable(record: &FlowRecord, skipped: &mut Skipped) -> bool {
    /// Before this a time in milliseconds would be taken for seconds.
    const FIRST: Timestamp = Timestamp::from_secs(100_000_000);
    let reason = if record.is_layer2() {
        &mut skipped.layer2
    } else if record.prefix_lengths != [0; 2] {
        &mut skipped.aggregate
    } else if record.first() < FIRST {
        &mut skipped.time
    } else {
        return true;
    };
    *reason += 1;
    false
}

/// As the cloud says it, else by the sites.
fn direction(record: &FlowRecord, inside: &dyn Fn(Address) -> bool) -> Direction {
    match record.cloud.as_ref().map(|cloud| cloud.direction) {
        Some(said @ (Direction::Inbound | Direction::Outbound)) => said,
        _ if !inside(record.source) && inside(record.destination) => Direction::Inbound,
        _ => Direction::Outbound,
    }
}

/// MAC address of the interface that saw the record in that direction.
fn interface(record: &FlowRecord, direction: Direction) -> Mac {
    let said = record.cloud.as_ref().and_then(|cloud| crate::field::mac(cloud.context.observer.as_bytes()));
    said.unwrap_or(if direction == Direction::Inbound { record.destination_mac } else { record.source_mac })
}

fn denied(record: &FlowRecord) -> bool {
    record.cloud.as_ref().is_some_and(|cloud| cloud.action == Action::Deny)
}

const fn letter(direction: Direction) -> char {
    if matches!(direction, Direction::Inbound) { 'I' } else { 'O' }
}

/// A MAC address as Azure writes it.
fn mac_text(mac: Mac) -> String {
    mac.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

/// `2026-11-21T10:00:00.1234567Z`.
fn time_text(time: Timestamp) -> String {
    let mut text = time.to_string();
    text.truncate("2026-11-21T10:00:00.1234567".len());
    text.push('Z');
    text
}

/// `,"key":"text"` with what JSON asks to be escaped.
fn member(out: &mut String, key: &str, text: &str) {
    let _ = write!(out, ",\"{key}\":");
    string(out, text);
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
