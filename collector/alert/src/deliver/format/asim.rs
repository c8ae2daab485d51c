//! Microsoft Sentinel: columns of ASIM's Alert Event schema 0.1.
//!
//! The schema has one host (`Dvc…`): the initiator. The responder, its port and the numbers are in `AdditionalFields`, a dynamic column.
//! Columns that Sentinel derives as aliases (`AlertId`, `AlertDescription`, `IpAddr`, `Rule`) are not sent.

use serde_json::{Map, Value as Json};

use super::map::{MAP, Value};
use super::{PRODUCT, VENDOR, VERSION, json_of, set};
use crate::{Alert, Class};

/// The version of the schema.
pub const SCHEMA_VERSION: &str = "0.1";

/// `alert` as a row: an object whose keys are columns.
pub fn object(alert: &Alert) -> Json {
    let mut root = Map::new();
    for field in MAP.iter().filter(|field| !field.asim.is_empty()) {
        match (field.value)(alert) {
            Value::Absent => {}
            value => set(&mut root, field.asim, written(value)),
        }
    }
    // Neither says that it is malicious (`Threat`): that is for a person to find out.
    let deviates = alert.class == Class::Health || alert.evidence.baseline.is_some();
    let kind = if deviates { "Anomaly" } else { "Suspicious Activity" };
    let more = [
        ("EventSchema", Json::from("AlertEvent")),
        ("EventSchemaVersion", SCHEMA_VERSION.into()),
        ("EventType", "Alert".into()),
        ("EventSubType", kind.into()),
        ("EventCount", 1.into()),
        ("EventVendor", VENDOR.into()),
        ("EventProduct", PRODUCT.into()),
        ("EventProductVersion", VERSION.into()),
        ("DetectionMethod", "Intrusion Detection".into()),
    ];
    for (path, value) in more {
        set(&mut root, path, value);
    }
    if alert.source.is_some() {
        set(&mut root, "IndicatorType", "Ip");
        set(&mut root, "IndicatorAssociation", "Associated");
    }
    Json::Object(root)
}

fn written(value: Value) -> Json {
    json_of(value, |severity| severity.asim.into())
}
