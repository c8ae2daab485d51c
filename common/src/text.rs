//! Records as text: one JSON object or one CSV row per record, keyed by IPFIX element names.
//!
//! Reverse elements are named as RFC 5103 §6.1 says: `reverse` and the name with a capital first letter. Times appear in
//! nanoseconds and in milliseconds. A JSON object leaves out what does not apply to its record; a CSV row has an empty cell there.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::cloud::{Cloud, CloudAccess, CloudContext, FIELDS};
use crate::element::{Access, ELEMENTS, Element, Shown};
use crate::encapsulation::Encapsulations;
use crate::flow::{FlowRecord, FlowState, LAYER2, protocol};
use crate::net::Address;

/// The name of an element in text, given the record it describes (addresses and ICMP are named by family).
fn key(element: &Element, v6: bool) -> Cow<'static, str> {
    let name = match (element.name, v6) {
        ("sourceIPv6Address", false) => "sourceIPv4Address",
        ("sourceIPv6PrefixLength", false) => "sourceIPv4PrefixLength",
        ("destinationIPv6PrefixLength", false) => "destinationIPv4PrefixLength",
        ("destinationIPv6Address", false) => "destinationIPv4Address",
        ("icmpTypeCode", false) => "icmpTypeCodeIPv4",
        ("icmpTypeCode", true) => "icmpTypeCodeIPv6",
        (name, _) => name,
    };
    if element.reverse { Cow::Owned(reverse(name)) } else { Cow::Borrowed(name) }
}

fn reverse(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    format!("reverse{}{rest}", first.to_ascii_uppercase())
}

fn in_millis(key: &str) -> String {
    key.replace("Nanoseconds", "Milliseconds")
}

fn is_v6(record: &FlowRecord) -> bool {
    record.source.as_v4().is_none() && !record.is_layer2()
}

/// Writes the value of one field; text values without their quotes.
fn value(element: &Element, record: &FlowRecord, out: &mut String) {
    let _ = match element.access {
        Access::Wide(get, _) => write!(out, "{}", Address(get(record))),
        Access::Word(get, _) => match element.shown {
            Shown::State => write!(out, "{}", record.state.name()),
            Shown::Encapsulations => write!(out, "{}", record.encapsulations),
            Shown::Time => write!(out, "{}", get(record).cast_signed()),
            Shown::Mac => {
                let [_, _, a, b, c, d, e, f] = get(record).to_be_bytes();
                write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
            }
            Shown::Number | Shown::Address => write!(out, "{}", get(record)),
        },
    }; // writing to a String cannot fail
}

const fn is_quoted(shown: Shown) -> bool {
    matches!(shown, Shown::Mac | Shown::Address | Shown::State | Shown::Encapsulations)
}

/// Appends `record` as one JSON object and a line feed.
pub fn write_json(record: &FlowRecord, out: &mut String) {
    let v6 = is_v6(record);
    out.push('{');
    let mut first = true;
    for element in ELEMENTS.iter().filter(|element| element.applies_to(record)) {
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        let key = key(element, v6);
        if element.shown == Shown::Time
            && let Access::Word(get, _) = element.access
        {
            let millis = get(record).cast_signed().div_euclid(1_000_000);
            let _ = write!(out, "\"{}\":{millis},", in_millis(&key));
        }
        let quote = if is_quoted(element.shown) { "\"" } else { "" };
        let _ = write!(out, "\"{key}\":{quote}");
        value(element, record, out);
        out.push_str(quote);
    }
    if let Some(cloud) = &record.cloud {
        write_cloud(cloud, out);
    }
    out.push_str("}\n");
}

fn write_cloud(cloud: &Cloud, out: &mut String) {
    for field in &FIELDS {
        let value = match field.access {
            CloudAccess::Name(get, _) if get(&cloud.context).is_empty() => continue,
            CloudAccess::Number(get, _) if get(cloud) == 0 => continue,
            CloudAccess::Name(get, _) => Value::from(&**get(&cloud.context)),
            CloudAccess::Word(get, _) => Value::from(get(cloud)),
            CloudAccess::Number(get, _) => Value::from(get(cloud)),
        };
        let _ = write!(out, ",\"{}\":{value}", field.name);
    }
}

/// Why a line is no record.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// Not JSON at all.
    #[error("not a JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// A field that a record cannot do without.
    #[error("{0} is missing; is this the output of `spanwatch-sensor replay --format jsonl`?")]
    Missing(&'static str),
    /// A field with a value of the wrong kind.
    #[error("{key} cannot be {value}")]
    Value {
        /// The JSON key.
        key: String,
        /// What stands there.
        value: String,
    },
}

/// Reads one line that [`write_json`] wrote. Unknown keys are passed over; absent ones are zero.
///
/// # Errors
/// The line is no JSON object, has a field of the wrong kind, or names neither a time nor a state.
pub fn read_json(line: &str) -> Result<FlowRecord, TextError> {
    let object: Map<String, Value> = serde_json::from_str(line)?;
    if !object.contains_key("flowState") {
        return Err(TextError::Missing("flowState"));
    }
    if !object.contains_key("flowStartNanoseconds") && !object.contains_key("reverseFlowStartNanoseconds") {
        return Err(TextError::Missing("flowStartNanoseconds"));
    }
    let v6 = object.contains_key("sourceIPv6Address");
    let mut record = FlowRecord { protocol: LAYER2, ..FlowRecord::default() };
    for element in &ELEMENTS {
        let key = key(element, v6);
        if let Some(value) = object.get(&*key) {
            read_value(element, value, &mut record)
                .ok_or_else(|| TextError::Value { key: key.into_owned(), value: value.to_string() })?;
        }
    }
    if object.contains_key(FIELDS[0].name) {
        record.cloud = Some(Box::new(read_cloud(&object)?));
    }
    Ok(record)
}

fn read_cloud(object: &Map<String, Value>) -> Result<Cloud, TextError> {
    let (mut cloud, mut context) = (Cloud::default(), CloudContext::default());
    for field in &FIELDS {
        let Some(value) = object.get(field.name) else { continue };
        let read = match field.access {
            CloudAccess::Name(_, set) => value.as_str().map(|text| set(&mut context, Arc::from(text))),
            CloudAccess::Word(_, set) => value.as_str().filter(|word| set(&mut cloud, word)).map(drop),
            CloudAccess::Number(_, set) => value.as_i64().filter(|n| *n >= 0).map(|n| set(&mut cloud, n)),
        };
        read.ok_or_else(|| TextError::Value { key: field.name.to_owned(), value: value.to_string() })?;
    }
    cloud.context = Arc::new(context);
    Ok(cloud)
}

fn read_value(element: &Element, value: &Value, record: &mut FlowRecord) -> Option<()> {
    match element.access {
        Access::Wide(_, set) => set(record, value.as_str()?.parse::<Address>().ok()?.0),
        Access::Word(_, set) => set(
            record,
            match element.shown {
                Shown::State => FlowState::ALL.into_iter().find(|state| Some(state.name()) == value.as_str())? as u64,
                Shown::Encapsulations => u64::from(Encapsulations::from_names(value.as_str()?)?.0),
                Shown::Time => value.as_i64()?.cast_unsigned(),
                Shown::Mac => mac(value.as_str()?)?,
                Shown::Number | Shown::Address => value.as_u64()?,
            },
        ),
    }
    Some(())
}

fn mac(text: &str) -> Option<u64> {
    let mut word = 0;
    let mut parts = 0;
    for part in text.split(':') {
        word = word << 8 | u64::from(u8::from_str_radix(part, 16).ok()?);
        parts += 1;
    }
    (parts == 6).then_some(word)
}

/// The CSV header, with a line feed. IPv4 and IPv6 share a column: `sourceIPAddress`, `destinationIPAddress`, `sourcePrefixLength`,
/// `destinationPrefixLength`, `icmpTypeCode`.
pub fn csv_header() -> String {
    let mut header = String::new();
    for element in &ELEMENTS {
        let key = match element.name {
            "sourceIPv6Address" => Cow::Borrowed("sourceIPAddress"),
            "destinationIPv6Address" => Cow::Borrowed("destinationIPAddress"),
            "sourceIPv6PrefixLength" => Cow::Borrowed("sourcePrefixLength"),
            "destinationIPv6PrefixLength" => Cow::Borrowed("destinationPrefixLength"),
            name if element.reverse => Cow::Owned(reverse(name)),
            name => Cow::Borrowed(name),
        };
        if !header.is_empty() {
            header.push(',');
        }
        header.push_str(&key);
    }
    header.push('\n');
    header
}

/// Appends `record` as one CSV row. No cell ever needs quoting.
pub fn write_csv(record: &FlowRecord, out: &mut String) {
    for (column, element) in ELEMENTS.iter().enumerate() {
        if column > 0 {
            out.push(',');
        }
        if element.applies_to(record) {
            value(element, record, out);
        }
    }
    out.push('\n');
}

/// The usual short name of an IP protocol, or its number.
pub fn protocol_name(number: u8) -> Cow<'static, str> {
    match number {
        protocol::ICMP => "ICMP".into(),
        protocol::TCP => "TCP".into(),
        protocol::UDP => "UDP".into(),
        protocol::ICMPV6 => "ICMPv6".into(),
        protocol::SCTP => "SCTP".into(),
        LAYER2 => "layer 2".into(),
        number => format!("protocol {number}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    fn sample() -> FlowRecord {
        FlowRecord {
            flow_id: u64::MAX,
            state: FlowState::Continue,
            end_reason: crate::flow::FlowEndReason::ActiveTimeout,
            ethernet_type: 0x0800,
            source_mac: [2, 0, 0, 0, 0, 1],
            source: "10.0.0.1".parse().expect("a literal"),
            destination: "10.0.0.2".parse().expect("a literal"),
            source_port: 40000,
            destination_port: 502,
            protocol: protocol::TCP,
            packets: [3, 2],
            start: [Timestamp::from_nanos(1_500_000_001), Timestamp::from_secs(2)],
            end: [Timestamp::from_secs(3), Timestamp::from_secs(4)],
            tcp_flags: [0x1b, 0x12],
            ..FlowRecord::default()
        }
    }

    #[test]
    fn a_json_line_reads_back_as_the_same_record() {
        let record = sample();
        let mut line = String::new();
        write_json(&record, &mut line);
        assert!(line.contains("\"sourceIPv4Address\":\"10.0.0.1\""), "{line}");
        assert!(line.contains("\"reversePacketDeltaCount\":2"), "{line}");
        assert!(line.contains("\"flowStartMilliseconds\":1500,\"flowStartNanoseconds\":1500000001"), "{line}");
        assert!(!line.contains("icmp"), "{line}");
        assert_eq!(read_json(&line).expect("our own line"), record);
    }

    #[test]
    fn what_a_cloud_said_reads_back_too() {
        let context = CloudContext { rule: "UserRule_\"x\"".into(), observer: "0022481A2B3C".into(), ..CloudContext::default() };
        let cloud = Cloud {
            origin: crate::cloud::Origin::VnetV4,
            action: crate::cloud::Action::Deny,
            direction: crate::cloud::Direction::Inbound,
            events: 3,
            context: Arc::new(context),
            ..Cloud::default()
        };
        let record = FlowRecord { cloud: Some(Box::new(cloud)), ..sample() };
        let mut line = String::new();
        write_json(&record, &mut line);
        assert!(line.contains(r#""flowOrigin":"VnetV4","action":"Deny""#), "{line}");
        assert_eq!(read_json(&line).expect("our own line"), record);
    }

    #[test]
    fn a_csv_row_has_as_many_cells_as_the_header() {
        let mut row = String::new();
        write_csv(&sample(), &mut row);
        assert_eq!(row.split(',').count(), csv_header().split(',').count());
    }

    #[test]
    fn a_foreign_line_is_refused_with_the_name_of_what_is_missing() {
        assert!(read_json("{}").expect_err("empty").to_string().starts_with("flowState is missing"));
        let error = read_json(r#"{"flowState":"Begin","flowStartNanoseconds":"yesterday"}"#).expect_err("no number");
        assert_eq!(error.to_string(), "flowStartNanoseconds cannot be \"yesterday\"");
    }
}
