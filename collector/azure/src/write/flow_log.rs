//! Flow logs: one document for each interface and hour, one record for each of its minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use spanwatch_common::flow::{FORWARD, FlowRecord, FlowState, Mac, REVERSE, protocol};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

use super::{
    Labels, Limits, Naming, Sink, WriteError, Written, append, denied, direction, interface, letter, mac_text, member, or, path,
    string, tellable, time_text,
};
use crate::flow_log::{NSG_CATEGORY, VNET_CATEGORY};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// What a rule's first tuple takes beside its text: two map entries and their keys.
const ENTRY_BYTES: usize = 512;

/// Writes NSG flow logs (v2) or VNet flow logs (v4).
#[derive(Debug)]
pub(crate) struct FlowLogWriter {
    nsg: bool,
    naming: Naming,
    limits: Limits,
    held: BTreeMap<RecordKey, Held>,
    held_bytes: usize,
    /// The latest minute seen; what is held of earlier ones is written when it moves on.
    latest: Timestamp,
    begun: BTreeSet<BlobKey>,
    written: Written,
}

/// Which file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct BlobKey {
    hour: Timestamp,
    mac: Mac,
    /// Flow log or security group: what the path begins with.
    id: Arc<str>,
}

/// Which record of it is being filled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RecordKey {
    minute: Timestamp,
    blob: BlobKey,
    /// The target; for an NSG the same as the blob's id.
    resource: Arc<str>,
}

/// The tuples of a record.
#[derive(Debug, Default)]
struct Held {
    /// Of the latest tuple.
    last: Timestamp,
    /// What it takes in memory, roughly.
    bytes: usize,
    /// By rule list and rule: `"…","…"`.
    tuples: BTreeMap<(Arc<str>, Arc<str>), String>,
}

impl FlowLogWriter {
    pub(crate) fn new(nsg: bool, labels: &Labels, limits: Limits) -> Self {
        Self {
            nsg,
            naming: Naming::new(labels),
            limits,
            held: BTreeMap::new(),
            held_bytes: 0,
            latest: Timestamp::NONE,
            begun: BTreeSet::new(),
            written: Written::default(),
        }
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
        if !record.source.is_some() || !record.destination.is_some() {
            self.written.skipped.blank_address += 1;
            return Ok(());
        }
        if self.nsg && !matches!(record.protocol, protocol::TCP | protocol::UDP) {
            self.written.skipped.protocol += 1;
            return Ok(());
        }
        let at = record.first();
        let minute = at.floor(MINUTE);
        if minute > self.latest {
            self.write_held(minute, sink)?;
            self.latest = minute;
        }
        let direction = direction(record, inside);
        let context = self.naming.context(record);
        let (id, resource, acl) = if self.nsg {
            let group = [&context.acl, &context.resource].into_iter().find(|id| is_security_group(id));
            let group = group.unwrap_or(&self.naming.security_group);
            (group, group, group)
        } else {
            (
                or(&context.flow_log, &self.naming.flow_log),
                or(&context.resource, &self.naming.network),
                or(&context.acl, &self.naming.security_group),
            )
        };
        let list = (Arc::clone(acl), Arc::clone(or(&context.rule, &self.naming.rule)));
        let key = RecordKey {
            minute,
            blob: BlobKey { hour: at.floor(HOUR), mac: interface(record, direction), id: Arc::clone(id) },
            resource: Arc::clone(resource),
        };
        let encryption = if context.encryption.is_empty() { "NX" } else { &*context.encryption };
        let mut tuple = String::with_capacity(96);
        if self.nsg {
            nsg_tuple(&mut tuple, record, letter(direction));
        } else {
            vnet_tuple(&mut tuple, record, letter(direction), encryption);
        }
        let held = self.held.entry(key).or_default();
        held.last = held.last.max(at);
        let tuples = held.tuples.entry(list).or_default();
        let bytes = tuple.len() + if tuples.is_empty() { ENTRY_BYTES } else { 3 };
        held.bytes += bytes;
        self.held_bytes += bytes;
        if !tuples.is_empty() {
            tuples.push(',');
        }
        string(tuples, &tuple);
        self.written.records += 1;
        self.written.rows += 1;
        if self.held_bytes > self.limits.held_bytes_max {
            self.write_held(Timestamp::from_nanos(i64::MAX), sink)?;
        }
        Ok(())
    }

    pub(crate) fn finish(mut self, sink: Sink<'_>) -> Result<Written, WriteError> {
        self.write_held(Timestamp::from_nanos(i64::MAX), sink)?;
        for blob in &self.begun {
            append(sink, &self.path(blob), "]}")?;
        }
        Ok(self.written)
    }

    /// Writes the records of the minutes before `until`.
    fn write_held(&mut self, until: Timestamp, sink: Sink<'_>) -> Result<(), WriteError> {
        while let Some((key, held)) = self.held.pop_first() {
            if key.minute >= until {
                self.held.insert(key, held);
                break;
            }
            self.held_bytes -= held.bytes;
            let first = !self.begun.contains(&key.blob);
            if first && self.begun.len() >= self.limits.blobs_max {
                return Err(WriteError::TooManyBlobs { limit: self.limits.blobs_max });
            }
            let mut text = String::from(if first { "{\"records\":[" } else { "," });
            if self.nsg {
                nsg_record(&mut text, &key, &held)
            } else {
                vnet_record(&mut text, &key, &held)
            }
            append(sink, &self.path(&key.blob), &text)?;
            if first {
                self.written.blobs += 1;
                self.begun.insert(key.blob);
            }
        }
        Ok(())
    }

    fn path(&self, blob: &BlobKey) -> String {
        let (container, key) = if self.nsg {
            ("insights-logs-networksecuritygroupflowevent", "resourceId")
        } else {
            ("insights-logs-flowlogflowevent", "flowLogResourceID")
        };
        path::hourly(container, key, &blob.id, blob.hour, &mac_text(blob.mac))
    }
}

fn is_security_group(id: &str) -> bool {
    id.to_ascii_lowercase().contains("/networksecuritygroups/")
}

const fn state(record: &FlowRecord) -> char {
    match record.state {
        FlowState::Begin => 'B',
        FlowState::Continue => 'C',
        FlowState::End => 'E',
    }
}

fn vnet_tuple(out: &mut String, record: &FlowRecord, direction: char, encryption: &str) {
    let state = if denied(record) { 'D' } else { state(record) };
    let _ = write!(
        out,
        "{},{},{},{},{},{},{direction},{state},{encryption},{},{},{},{}",
        record.first().as_millis(),
        record.source,
        record.destination,
        record.source_port,
        record.destination_port,
        record.protocol,
        record.packets[FORWARD],
        record.octets[FORWARD],
        record.packets[REVERSE],
        record.octets[REVERSE]
    );
}

fn nsg_tuple(out: &mut String, record: &FlowRecord, direction: char) {
    let _ = write!(
        out,
        "{},{},{},{},{},{},{direction},{},{},",
        record.first().as_millis() / 1000,
        record.source,
        record.destination,
        record.source_port,
        record.destination_port,
        if record.protocol == protocol::TCP { 'T' } else { 'U' },
        if denied(record) { 'D' } else { 'A' },
        state(record)
    );
    let counters = [record.packets[FORWARD], record.octets[FORWARD], record.packets[REVERSE], record.octets[REVERSE]];
    if record.state == FlowState::Begin && counters == [0; 4] {
        out.push_str(",,,");
    } else {
        let [packets, octets, packets_back, octets_back] = counters;
        let _ = write!(out, "{packets},{octets},{packets_back},{octets_back}");
    }
}

fn vnet_record(out: &mut String, key: &RecordKey, held: &Held) {
    let _ = write!(out, "{{\"time\":\"{}\",\"flowLogVersion\":4", time_text(held.last));
    member(out, "flowLogGUID", "00000000-0000-0000-0000-000000000000");
    member(out, "macAddress", &mac_text(key.blob.mac));
    member(out, "category", VNET_CATEGORY);
    member(out, "flowLogResourceID", &key.blob.id);
    member(out, "targetResourceID", &key.resource);
    member(out, "operationName", VNET_CATEGORY);
    out.push_str(",\"flowRecords\":{\"flows\":[");
    let mut last_acl = None;
    for ((acl, rule), tuples) in &held.tuples {
        if last_acl == Some(acl) {
            out.push(',');
        } else {
            if last_acl.is_some() {
                out.push_str("]},");
            }
            out.push_str("{\"aclID\":");
            string(out, acl);
            out.push_str(",\"flowGroups\":[");
            last_acl = Some(acl);
        }
        out.push_str("{\"rule\":");
        string(out, rule);
        let _ = write!(out, ",\"flowTuples\":[{tuples}]}}");
    }
    out.push_str("]}]}}");
}

fn nsg_record(out: &mut String, key: &RecordKey, held: &Held) {
    let mac = mac_text(key.blob.mac);
    let _ = write!(out, "{{\"time\":\"{}\"", time_text(held.last));
    member(out, "systemId", "00000000-0000-0000-0000-000000000000");
    member(out, "macAddress", &mac);
    member(out, "category", NSG_CATEGORY);
    member(out, "resourceId", &key.blob.id);
    member(out, "operationName", "NetworkSecurityGroupFlowEvents");
    out.push_str(",\"properties\":{\"Version\":2,\"flows\":[");
    for (number, ((_, rule), tuples)) in held.tuples.iter().enumerate() {
        out.push_str(if number == 0 { "{\"rule\":" } else { ",{\"rule\":" });
        string(out, rule);
        let _ = write!(out, ",\"flows\":[{{\"mac\":\"{mac}\",\"flowTuples\":[{tuples}]}}]}}");
    }
    out.push_str("]}}");
}
