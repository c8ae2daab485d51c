//! The table `NTANetAnalytics`: flows of an interval that differ only in the source port become one row.
//!
//! As in Azure, the side that lies in the public Internet is blank in the row, and all public addresses of otherwise equal flows are
//! listed in one column with counters of their own.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::cloud::{CloudContext, Direction};
use spanwatch_common::flow::{FORWARD, FlowRecord, FlowState, REVERSE, protocol};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::{
    Labels, Limits, Naming, Sink, WriteError, Written, append, denied, direction, interface, letter, mac_text, member, or,
    tellable, time_text,
};

/// The one file of a table export.
const BLOB: &str = "NTANetAnalytics.jsonl";

/// Writes table rows.
#[derive(Debug)]
pub(crate) struct FoldWriter {
    naming: Naming,
    interval: Duration,
    limits: Limits,
    /// By the interval's begin; those before the latest but one are written when a later one begins.
    open: BTreeMap<Timestamp, HashMap<Key, Fold>>,
    /// Rows and public addresses in `open`.
    folds: usize,
    written: Written,
}

/// What the flows of a row have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    source: Address,
    destination: Address,
    port: u16,
    protocol: u8,
    direction: Direction,
    denied: bool,
    names: [Arc<str>; 9],
}

/// Their sum.
#[derive(Debug, Default)]
struct Fold {
    sums: Sums,
    /// Of whichever side is blank in the key.
    public: BTreeMap<Address, Sums>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    first: Timestamp,
    last: Timestamp,
    begun: u64,
    ended: u64,
    packets: [u64; 2],
    octets: [u64; 2],
}

impl Sums {
    fn add(&mut self, record: &FlowRecord) {
        let at = record.first();
        self.first = if self.first.is_some() { self.first.min(at) } else { at };
        self.last = self.last.max(at);
        let events = record.cloud.as_ref().map_or(1, |cloud| u64::from(cloud.events));
        match record.state {
            FlowState::Begin => self.begun += events,
            FlowState::Continue => {}
            FlowState::End => self.ended += events,
        }
        for way in [FORWARD, REVERSE] {
            self.packets[way] = self.packets[way].saturating_add(record.packets[way]);
            self.octets[way] = self.octets[way].saturating_add(record.octets[way]);
        }
    }

    /// A flow may begin before the interval or end behind it, and the shortest ones only end: the larger number is the better one.
    fn flows(&self) -> u64 {
        self.begun.max(self.ended).max(1)
    }
}

impl FoldWriter {
    /// An interval below a second counts as one.
    pub(crate) fn new(labels: &Labels, interval: Duration, limits: Limits) -> Self {
        let interval = interval.max(Duration::from_secs(1));
        Self { naming: Naming::new(labels), interval, limits, open: BTreeMap::new(), folds: 0, written: Written::default() }
    }

    pub(crate) fn write(
        &mut self,
        record: &FlowRecord,
        inside: &dyn Fn(Address) -> bool,
        sink: Sink<'_>,
    ) -> Result<(), WriteError> {
        if !tellable(record, &mut self.written.skipped) {
            return Ok(());
        }
        let interval = record.first().floor(self.interval);
        let direction = direction(record, inside);
        let (flow_type, blank) = kind(record, inside);
        let names = self.names(record, direction, flow_type);
        let (mut source, mut destination) = (record.source, record.destination);
        let public = match blank {
            Some(FORWARD) => std::mem::take(&mut source),
            Some(_) => std::mem::take(&mut destination),
            None => Address::NONE,
        };
        let key = Key {
            source,
            destination,
            port: record.destination_port,
            protocol: record.protocol,
            direction,
            denied: denied(record),
            names,
        };
        let table = self.open.entry(interval).or_default();
        let before = table.len();
        let fold = table.entry(key).or_default();
        fold.sums.add(record);
        if public.is_some() {
            let listed = fold.public.len();
            fold.public.entry(public).or_default().add(record);
            self.folds += fold.public.len() - listed;
        }
        self.folds += table.len() - before;
        self.written.records += 1;
        if self.folds > self.limits.folds_max {
            self.write_open(0, sink)
        } else if self.open.len() > 2 {
            self.write_open(2, sink)
        } else {
            Ok(())
        }
    }

    pub(crate) fn finish(mut self, sink: Sink<'_>) -> Result<Written, WriteError> {
        self.write_open(0, sink)?;
        Ok(self.written)
    }

    /// Writes all intervals but the latest `keep`.
    fn write_open(&mut self, keep: usize, sink: Sink<'_>) -> Result<(), WriteError> {
        while self.open.len() > keep {
            let Some((start, table)) = self.open.pop_first() else { break };
            // Equal input gives equal files.
            let mut rows: Vec<(Key, Fold)> = table.into_iter().collect();
            rows.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            let mut text = String::new();
            for (key, fold) in &rows {
                self.folds -= 1 + fold.public.len();
                row(&mut text, start, self.interval, key, fold);
                self.written.rows += 1;
                if text.len() > 1 << 20 {
                    append(sink, BLOB, &text)?;
                    text.clear();
                }
            }
            append(sink, BLOB, &text)?;
            self.written.blobs = 1;
        }
        Ok(())
    }

    fn names(&self, record: &FlowRecord, direction: Direction, flow_type: &'static str) -> [Arc<str>; 9] {
        let context: &CloudContext = self.naming.context(record);
        let mac = interface(record, direction);
        let mac = if mac == [0; 6] { Arc::default() } else { mac_text(mac).into() };
        let flow_type = if context.flow_type.is_empty() { flow_type.into() } else { Arc::clone(&context.flow_type) };
        [
            flow_type,
            Arc::clone(or(&context.acl, &self.naming.security_group)),
            Arc::clone(or(&context.rule, &self.naming.rule)),
            mac,
            Arc::clone(or(&context.resource, &self.naming.network)),
            Arc::clone(or(&context.flow_log, &self.naming.flow_log)),
            Arc::clone(&context.encryption),
            Arc::clone(&context.source_vm),
            Arc::clone(&context.destination_vm),
        ]
    }
}

/// The columns of [`Key::names`].
const NAMES: [&str; 9] = [
    "FlowType",
    "AclGroup",
    "AclRule",
    "MacAddress",
    "TargetResourceId",
    "FlowLogResourceId",
    "FlowEncryption",
    "SrcVm",
    "DestVm",
];

/// `FlowType`, and which side is blank in the row because it is public.
fn kind(record: &FlowRecord, inside: &dyn Fn(Address) -> bool) -> (&'static str, Option<usize>) {
    let public = |address: Address| address.is_some() && !inside(address) && !address.is_private() && !address.is_multicast();
    let (source, destination) = (record.source, record.destination);
    match (public(source), public(destination)) {
        // A blank side stays blank, and nothing is known of it.
        _ if !source.is_some() || !destination.is_some() => ("Unknown", None),
        (true, false) => ("ExternalPublic", Some(FORWARD)),
        (false, true) => ("ExternalPublic", Some(REVERSE)),
        (true, true) => ("Unknown", None),
        _ if inside(source) && inside(destination) => ("IntraVNet", None),
        _ if source.is_multicast() || destination.is_multicast() => ("Unknown", None),
        _ => ("UnknownPrivate", None),
    }
}

fn row(out: &mut String, start: Timestamp, interval: Duration, key: &Key, fold: &Fold) {
    let sums = &fold.sums;
    let end = time_text(start.plus(interval));
    let _ = write!(out, "{{\"TimeGenerated\":\"{end}\",\"TimeProcessed\":\"{end}\",\"Type\":\"NTANetAnalytics\"");
    member(out, "SubType", "FlowLog");
    member(out, "FASchemaVersion", "3");
    member(out, "FlowIntervalStartTime", &time_text(start));
    member(out, "FlowIntervalEndTime", &end);
    member(out, "FlowStartTime", &time_text(sums.first));
    member(out, "FlowEndTime", &time_text(sums.last));
    let address = |address: Address| if address.is_some() { address.to_string() } else { String::new() };
    member(out, "SrcIp", &address(key.source));
    member(out, "DestIp", &address(key.destination));
    let public = public_list(&fold.public);
    let (source_list, destination_list) = if key.source.is_some() { ("", &*public) } else { (&*public, "") };
    member(out, "SrcPublicIps", source_list);
    member(out, "DestPublicIps", destination_list);
    let _ = write!(out, ",\"DestPort\":{}", key.port);
    match key.protocol {
        protocol::TCP => member(out, "L4Protocol", "T"),
        protocol::UDP => member(out, "L4Protocol", "U"),
        protocol::ICMP => member(out, "L4Protocol", "ICMP"),
        other => member(out, "L4Protocol", &other.to_string()),
    }
    member(out, "FlowDirection", if letter(key.direction) == 'I' { "Inbound" } else { "Outbound" });
    member(out, "FlowStatus", if key.denied { "Denied" } else { "Allowed" });
    for (column, name) in NAMES.iter().zip(&key.names) {
        member(out, column, name);
    }
    let flows = |inbound: bool, denied: bool| {
        if (key.direction == Direction::Inbound) == inbound && key.denied == denied { sums.flows() } else { 0 }
    };
    let _ = writeln!(
        out,
        concat!(
            r#","AllowedInFlows":{},"DeniedInFlows":{},"AllowedOutFlows":{},"DeniedOutFlows":{},"PacketsSrcToDest":{},"#,
            r#""PacketsDestToSrc":{},"BytesSrcToDest":{},"BytesDestToSrc":{},"CompletedFlows":{},"IsFlowCapturedAtUdrHop":false}}"#
        ),
        flows(true, false),
        flows(true, true),
        flows(false, false),
        flows(false, true),
        sums.packets[FORWARD],
        sums.packets[REVERSE],
        sums.octets[FORWARD],
        sums.octets[REVERSE],
        sums.ended
    );
}

/// `ip|started|ended|packets out|packets in|bytes out|bytes in`, blank between entries.
fn public_list(public: &BTreeMap<Address, Sums>) -> String {
    let mut list = String::new();
    for (address, sums) in public {
        let blank = if list.is_empty() { "" } else { " " };
        let [packets_out, packets_in] = sums.packets;
        let [octets_out, octets_in] = sums.octets;
        let _ =
            write!(list, "{blank}{address}|{}|{}|{packets_out}|{packets_in}|{octets_out}|{octets_in}", sums.flows(), sums.ended);
    }
    list
}
