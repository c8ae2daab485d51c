//! Elastic Common Schema 8.17: one document with `event.kind: alert`.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json, json};

use super::map::{MAP, Value};
use super::{PRODUCT, VENDOR, VERSION, attack, json_of, number, set};
use crate::{Alert, Class};

/// The version of the schema.
pub const SCHEMA_VERSION: &str = "8.17.0";

/// `alert` as a document.
pub fn object(alert: &Alert) -> Json {
    let mut root = Map::new();
    for field in MAP.iter().filter(|field| !field.ecs.is_empty()) {
        match (field.ecs, (field.value)(alert)) {
            (_, Value::Absent) | ("threat.technique" | "threat.tactic", _) => {}
            ("event.dataset", Value::Text(class)) => set(&mut root, field.ecs, format!("spanwatch.{class}")),
            (path, value) => set(&mut root, path, written(value)),
        }
    }
    let category = if alert.class == Class::Health { json!(["network"]) } else { json!(["network", "intrusion_detection"]) };
    let more = [
        ("ecs.version", Json::from(SCHEMA_VERSION)),
        ("event.kind", "alert".into()),
        ("event.category", category),
        // Of the types that both categories allow, the one that says that nothing was blocked.
        ("event.type", json!(["info"])),
        ("event.module", "spanwatch".into()),
        ("observer.vendor", VENDOR.into()),
        ("observer.product", PRODUCT.into()),
        ("observer.version", VERSION.into()),
    ];
    for (path, value) in more {
        set(&mut root, path, value);
    }
    let addresses: Vec<_> = [alert.source, alert.destination].into_iter().flatten().collect();
    if let Some(first) = addresses.first() {
        set(&mut root, "network.type", if first.as_v4().is_some() { "ipv4" } else { "ipv6" });
        set(&mut root, "related.ip", json!(addresses));
    }
    threat(alert, &mut root);
    Json::Object(root)
}

/// Techniques and their sub-techniques stand in lists of their own; a sub-technique's parent is among the techniques.
fn threat(alert: &Alert, root: &mut Map<String, Json>) {
    let mut tactics: Vec<(&str, String)> = Vec::new();
    for tactic in attack::tactics_of(alert) {
        // An alert may name techniques of both matrices.
        let serving = alert.attack.iter().filter(|id| !attack::served(&[tactic], id).is_empty());
        let ids: BTreeSet<&str> = serving.map(|id| attack::tactic_id(tactic, id)).collect();
        let ids = if ids.is_empty() { [attack::tactic_id(tactic, "")].into() } else { ids };
        tactics.extend(ids.into_iter().map(|id| (id, tactic.name().to_owned())));
    }
    // Lists run side by side: a technique without a known name stands with its identifier.
    let named = |id: &'_ str| attack::name(id).unwrap_or(id).to_owned();
    let mut techniques: Vec<(&str, String)> = Vec::new();
    for id in &alert.attack {
        let parent = id.split_once('.').map_or(&**id, |(parent, _)| parent);
        if techniques.iter().all(|(id, _)| *id != parent) {
            techniques.push((parent, named(parent)));
        }
    }
    let subs = alert.attack.iter().filter(|id| id.contains('.')).map(|id| (&**id, named(id))).collect();
    let lists = [("threat.tactic", tactics), ("threat.technique", techniques), ("threat.technique.subtechnique", subs)];
    for (path, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        let (ids, names): (Vec<&str>, Vec<String>) = list.into_iter().unzip();
        set(root, "threat.framework", "MITRE ATT&CK");
        set(root, &format!("{path}.id"), json!(ids));
        set(root, &format!("{path}.name"), json!(names));
    }
}

fn written(value: Value) -> Json {
    match value {
        Value::Share(share) => number(share),
        value => json_of(value, |severity| severity.ecs.into()),
    }
}
