//! OCSF 1.5.0: Detection Finding (class 2004) for an alert, Network Activity (class 4001) for each row of its evidence.
//!
//! Enumerations are the schema's: `activity_id` 1 create, 2 update, 3 close (99 never); `status_id` 1 new, 2 in progress, 3 suppressed,
//! 4 resolved; `analytic.type_id` 1 rule, 3 statistical; `confidence_id` 1 low, 2 medium, 3 high; `observables.type_id` 2 IP address.
//! `type_uid` is `class_uid · 100 + activity_id`. Times are milliseconds since 1970.

use serde_json::{Map, Value as Json, json};
use spanwatch_common::net::Address;
use spanwatch_common::text::protocol_name;
use spanwatch_detect::finding::Sighting;
use spanwatch_detect::row::Outcome;

use super::map::{self, MAP, Value};
use super::{PRODUCT, VENDOR, VERSION, attack, json_of, set};
use crate::{Alert, AlertState};

/// The version of the schema.
pub const SCHEMA_VERSION: &str = "1.5.0";
const FINDING: u64 = 2004;
const ACTIVITY: u64 = 4001;

/// `alert` as a Detection Finding.
pub fn finding(alert: &Alert) -> Json {
    let (activity, caption) = match alert.state {
        AlertState::Open => (1, "Create"),
        AlertState::Updated => (2, "Update"),
        AlertState::Closed => (3, "Close"),
    };
    let (status, status_caption) = match (alert.state, &alert.muted) {
        (AlertState::Closed, _) => (4, "Resolved"),
        (_, Some(_)) => (3, "Suppressed"),
        (AlertState::Open, None) => (1, "New"),
        (AlertState::Updated, None) => (2, "In Progress"),
    };
    let mut root = head(FINDING, activity, 2, ("Detection Finding", "Findings", caption));
    for field in MAP.iter().filter(|field| !field.ocsf.is_empty() && !field.ocsf.starts_with("evidences.")) {
        let value = (field.value)(alert);
        match (field.ocsf, value) {
            (_, Value::Absent) | ("finding_info.attacks", _) => {}
            ("finding_info.types", Value::Text(text)) => set(&mut root, field.ocsf, json!([text])),
            ("metadata.loggers", _) => {
                let loggers: Vec<Json> = alert.evidence.observers.iter().map(|name| json!({ "name": name })).collect();
                set(&mut root, field.ocsf, loggers);
            }
            (path, value) => set(&mut root, path, written(value)),
        }
    }
    let names = map::severity(alert.severity);
    let confidence = match alert.confidence {
        sure if sure >= 0.75 => (3, "High"),
        sure if sure >= 0.4 => (2, "Medium"),
        _ => (1, "Low"),
    };
    // A baseline was learned; without one, a threshold was crossed.
    let analytic = if alert.evidence.baseline.is_some() { (3, "Statistical") } else { (1, "Rule") };
    let more = [
        ("severity", Json::from(names.ocsf_caption)),
        ("status_id", status.into()),
        ("status", status_caption.into()),
        ("is_alert", (alert.state != AlertState::Closed).into()),
        ("confidence_id", confidence.0.into()),
        ("confidence", confidence.1.into()),
        ("start_time", alert.first.as_millis().into()),
        ("end_time", alert.last.as_millis().into()),
        ("finding_info.desc", alert.sentence.clone().into()),
        ("finding_info.modified_time", alert.told.as_millis().into()),
        ("finding_info.analytic.name", alert.title.clone().into()),
        ("finding_info.analytic.type_id", analytic.0.into()),
        ("finding_info.analytic.type", analytic.1.into()),
    ];
    for (path, value) in more {
        set(&mut root, path, value);
    }
    let lists = [("finding_info.attacks", attacks(alert)), ("evidences", evidences(alert)), ("observables", observables(alert))];
    for (path, list) in lists {
        if !list.is_empty() {
            set(&mut root, path, list);
        }
    }
    Json::Object(root)
}

/// The rows of the evidence of `alert` as Network Activity, which names the alert as what it belongs to (`metadata.correlation_uid`).
pub fn network_activity(alert: &Alert) -> Vec<Json> {
    alert.evidence.rows.iter().map(|row| activity(alert, row)).collect()
}

fn activity(alert: &Alert, row: &Sighting) -> Json {
    let (id, caption) = match row.outcome {
        Outcome::Denied | Outcome::Reset => (5, "Refuse"),
        Outcome::NoReply | Outcome::Unreachable => (4, "Fail"),
        Outcome::Unknown | Outcome::Success => (6, "Traffic"),
    };
    let mut root = head(ACTIVITY, id, 4, ("Network Activity", "Network Activity", caption));
    let at = row.at.div_euclid(1_000_000);
    let flags = u64::from(row.flags[0] | row.flags[1]);
    let more = [
        ("time", Json::from(at)),
        ("start_time", at.into()),
        // The row is evidence, not itself the alert.
        ("severity_id", 1.into()),
        ("severity", "Informational".into()),
        ("metadata.correlation_uid", alert.id.clone().into()),
        ("metadata.loggers", json!([{ "name": row.observer }])),
        ("src_endpoint", endpoint(row.source, row.source_port)),
        ("dst_endpoint", endpoint(row.destination, row.port)),
        ("connection_info", connection(row)),
        ("connection_info.tcp_flags", flags.into()),
        ("traffic.packets_out", row.packets[0].into()),
        ("traffic.packets_in", row.packets[1].into()),
        ("traffic.packets", row.packets[0].saturating_add(row.packets[1]).into()),
        ("traffic.bytes_out", row.octets[0].into()),
        ("traffic.bytes_in", row.octets[1].into()),
        ("traffic.bytes", row.octets[0].saturating_add(row.octets[1]).into()),
    ];
    for (path, value) in more {
        if path != "connection_info.tcp_flags" || flags != 0 {
            set(&mut root, path, value);
        }
    }
    Json::Object(root)
}

/// What every event begins with. `captions`: of class, category and activity.
fn head(class: u64, activity: u64, category: u64, captions: (&str, &str, &str)) -> Map<String, Json> {
    let head = json!({
        "class_uid": class,
        "class_name": captions.0,
        "category_uid": category,
        "category_name": captions.1,
        "activity_id": activity,
        "activity_name": captions.2,
        "type_uid": class * 100 + activity,
        "type_name": format!("{}: {}", captions.0, captions.2),
        "metadata": {
            "version": SCHEMA_VERSION,
            "product": { "name": PRODUCT, "vendor_name": VENDOR, "version": VERSION },
        },
    });
    match head {
        Json::Object(head) => head,
        _ => Map::new(),
    }
}

fn written(value: Value) -> Json {
    match value {
        Value::Time(at) => at.as_millis().into(),
        value => json_of(value, |severity| severity.ocsf.into()),
    }
}

/// One object for each technique and tactic that it serves; if the alert names tactics, only for those.
fn attacks(alert: &Alert) -> Vec<Json> {
    let tactics = attack::tactics_of(alert);
    let own = |id: &str| attack::name(id).map_or_else(|| json!({ "uid": id }), |name| json!({ "uid": id, "name": name }));
    let mut attacks = Vec::new();
    for id in &alert.attack {
        let mut one = json!({ "version": attack::VERSION });
        match id.split_once('.') {
            Some((parent, _)) => {
                one["technique"] = own(parent);
                one["sub_technique"] = own(id);
            }
            None => one["technique"] = own(id),
        }
        let served = attack::served(&tactics, id);
        if served.is_empty() {
            attacks.push(one.clone());
        }
        for tactic in served {
            one["tactic"] = json!({ "uid": attack::tactic_id(tactic, id), "name": tactic.name() });
            attacks.push(one.clone());
        }
    }
    attacks
}

/// The rows; or, of an alert without rows, whom it is about.
fn evidences(alert: &Alert) -> Vec<Json> {
    let rows: Vec<Json> = alert.evidence.rows.iter().map(evidence).collect();
    if !rows.is_empty() {
        return rows;
    }
    let mut one = Map::new();
    for field in &MAP {
        let Some(path) = field.ocsf.strip_prefix("evidences.") else { continue };
        match (field.value)(alert) {
            Value::Absent => {}
            value => set(&mut one, path, written(value)),
        }
    }
    if one.contains_key("connection_info") {
        set(&mut one, "connection_info.direction_id", 0);
    }
    if one.is_empty() { Vec::new() } else { vec![Json::Object(one)] }
}

fn evidence(row: &Sighting) -> Json {
    json!({
        "src_endpoint": endpoint(row.source, row.source_port),
        "dst_endpoint": endpoint(row.destination, row.port),
        "connection_info": connection(row),
        "data": row,
    })
}

fn endpoint(address: Address, port: u16) -> Json {
    match port {
        0 => json!({ "ip": address }),
        port => json!({ "ip": address, "port": port }),
    }
}

fn connection(row: &Sighting) -> Json {
    let version = if row.source.as_v4().is_some() { 4 } else { 6 };
    let mut connection = json!({
        // A row does not say which side is inside.
        "direction_id": 0,
        "protocol_num": row.protocol,
        "protocol_name": protocol_name(row.protocol).to_ascii_lowercase(),
        "protocol_ver_id": version,
    });
    if row.flow_id != 0 {
        // As text: JSON readers lose the last digits of so large a number.
        connection["uid"] = row.flow_id.to_string().into();
    }
    connection
}

fn observables(alert: &Alert) -> Vec<Json> {
    let sides = [("evidences.src_endpoint.ip", alert.source), ("evidences.dst_endpoint.ip", alert.destination)];
    let known = sides.into_iter().filter_map(|(name, address)| address.map(|address| (name, address)));
    known.map(|(name, address)| json!({ "name": name, "type_id": 2, "type": "IP Address", "value": address })).collect()
}
