//! ArcSight Common Event Format: `CEF:0|vendor|product|version|signature id|name|severity|key=value …`.
//!
//! *Implementing CEF*, version 25: in the header `|` and `\` are escaped with a backslash; in an extension value `=`, `\` and line ends
//! (as `\n`, `\r`) are, and `|` is not. Times are milliseconds since 1970.

use std::fmt::Write;

use super::map::{self, Field, MAP, Value};
use super::{PRODUCT, VENDOR, VERSION};
use crate::Alert;

/// `alert` as one line; the sentence comes last, so that a receiver that cuts long lines cuts that.
pub fn line(alert: &Alert) -> String {
    let [vendor, product, version, rule, title] = [VENDOR, PRODUCT, VERSION, &alert.rule, &alert.title].map(header);
    let severity = map::severity(alert.severity).cef;
    let mut line = format!("CEF:0|{vendor}|{product}|{version}|{rule}|{title}|{severity}|");
    let (sentence, others): (Vec<&Field>, Vec<&Field>) = MAP.iter().partition(|field| field.cef == "msg");
    let mut gap = "";
    for field in others.into_iter().chain(sentence) {
        let Some(value) = extension((field.value)(alert)) else { continue };
        for (key, value) in keys(field.cef, &value) {
            // Writing into a String does not fail.
            let _ = write!(line, "{gap}{key}={value}");
            gap = " ";
        }
    }
    line
}

/// The key, and for a custom field its label, under which `value` stands.
fn keys<'a>(name: &'a str, value: &'a str) -> Vec<(String, &'a str)> {
    match name.split_once(' ') {
        _ if name.is_empty() || name.starts_with('(') => Vec::new(),
        None => vec![(name.to_owned(), value)],
        // An address: IPv4 has a field of its own, IPv6 a custom one.
        Some((v4, _)) if name.contains("c6a") && !value.contains(':') => vec![(v4.to_owned(), value)],
        Some((v4, v6)) if name.contains("c6a") => {
            let label = if v4 == "src" { "Source IPv6 Address" } else { "Destination IPv6 Address" };
            vec![(format!("{v6}Label"), label), (v6.to_owned(), value)]
        }
        Some((key, label)) => vec![(format!("{key}Label"), label), (key.to_owned(), value)],
    }
}

fn extension(value: Value) -> Option<String> {
    Some(match value {
        Value::Absent => return None,
        Value::Text(text) => escape(&text),
        Value::Texts(texts) => escape(&texts.join("; ")),
        Value::Number(number) | Value::Share(number) => number.to_string(),
        Value::Count(count) => count.to_string(),
        Value::Time(at) => at.as_millis().to_string(),
        Value::Severity(severity) => map::severity(severity).cef.to_string(),
    })
}

fn header(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace(['\r', '\n'], " ")
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('=', "\\=").replace('\r', "\\r").replace('\n', "\\n")
}
