//! Alerts in the words of others: one alert, one line of text.
//!
//! [`MAP`] says what each field is called in each format; the modules add what a format wants beyond that. Where a message may only be
//! so long, [`fit`] leaves out evidence first, then shortens the sentence.

pub mod asim;
pub mod attack;
pub mod cef;
pub mod ecs;
pub mod map;
pub mod ndjson;
pub mod ocsf;
pub mod syslog;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use spanwatch_detect::finding::Evidence;

use self::map::SeverityNames;
pub use self::map::{Field, MAP, SEVERITIES, Value};
use crate::Alert;

/// Who made it, in formats that ask.
pub(crate) const VENDOR: &str = "Spanwatch";
/// What made it.
pub(crate) const PRODUCT: &str = "Spanwatch Collector";
/// Its version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How an alert is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Our own line, as in the alert file: nothing is lost.
    #[default]
    Ndjson,
    /// ArcSight Common Event Format, version 0.
    Cef,
    /// OCSF 1.5 Detection Finding (2004), and if wanted Network Activity (4001) for its evidence.
    Ocsf,
    /// Elastic Common Schema 8.17.
    Ecs,
    /// Columns of Microsoft Sentinel's ASIM Alert Event schema 0.1.
    Asim,
}

impl Format {
    /// Whether each line is a JSON object.
    pub const fn is_json(self) -> bool {
        !matches!(self, Self::Cef)
    }

    /// `alert` as one line, without a line feed.
    pub fn line(self, alert: &Alert) -> String {
        match self {
            Self::Ndjson => ndjson::line(alert),
            Self::Cef => cef::line(alert),
            Self::Ocsf => ocsf::finding(alert).to_string(),
            Self::Ecs => ecs::object(alert).to_string(),
            Self::Asim => asim::object(alert).to_string(),
        }
    }
}

/// What [`fit`] made of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitted {
    /// The text.
    pub text: String,
    /// Something was left out.
    pub shortened: bool,
}

/// Writes `alert` with `write` in at most `bytes_max` bytes: whole if that fits; otherwise without rows, series and lists, which the
/// alert file has; otherwise with as much of the sentence as there is room for. Only if the rest is too long by itself, the text is cut.
pub fn fit(alert: &Alert, bytes_max: usize, write: impl Fn(&Alert) -> String) -> Fitted {
    let text = write(alert);
    if text.len() <= bytes_max {
        return Fitted { text, shortened: false };
    }
    let kept = |number: usize, all: &[String]| all.iter().take(number).cloned().collect();
    let mut slim = Alert {
        evidence: Evidence {
            series: Vec::new(),
            rows: Vec::new(),
            hosts: Vec::new(),
            // One service says which port; two already say that there is more than one.
            services: kept(2, &alert.evidence.services),
            observers: kept(1, &alert.evidence.observers),
            ..alert.evidence.clone()
        },
        members: Vec::new(),
        ..alert.clone()
    };
    let mut text = write(&slim);
    let parts: [fn(&mut Alert) -> &mut String; 2] = [|alert| &mut alert.advice, |alert| &mut alert.sentence];
    for part in parts {
        if text.len() <= bytes_max {
            break;
        }
        // As much of it as fits. By halves, because escapes make a text longer than its words.
        let words = std::mem::take(part(&mut slim));
        text = write(&slim);
        let (mut fits, mut too_long) = (0, words.len());
        while fits + 1 < too_long {
            let middle = usize::midpoint(fits, too_long);
            *part(&mut slim) = format!("{}…", cut(&words, middle));
            let longer = write(&slim);
            if longer.len() <= bytes_max {
                (fits, text) = (middle, longer);
            } else {
                too_long = middle;
            }
        }
        *part(&mut slim) = if fits == 0 { String::new() } else { format!("{}…", cut(&words, fits)) };
    }
    text.truncate(cut(&text, bytes_max).len());
    Fitted { text, shortened: true }
}

/// The longest beginning of `text` that has at most `bytes_max` bytes and ends between two characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Sets what `path` (`finding_info.uid`) names within `root` to `value`.
fn set(root: &mut Map<String, Json>, path: &str, value: impl Into<Json>) {
    match path.split_once('.') {
        None => {
            root.insert(path.to_owned(), value.into());
        }
        Some((first, rest)) => {
            let inner = root.entry(first).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

/// `value` as most formats in JSON write it: shares in percent, times as text, severities by the name that is theirs.
fn json_of(value: Value, severity: impl Fn(&SeverityNames) -> Json) -> Json {
    match value {
        Value::Absent => Json::Null,
        Value::Text(text) => text.into(),
        Value::Texts(texts) => texts.into(),
        Value::Number(value) => number(value),
        Value::Count(count) => count.into(),
        Value::Share(share) => percent(share).into(),
        Value::Time(at) => at.to_string().into(),
        Value::Severity(ours) => severity(map::severity(ours)),
    }
}

/// `share` (0 to 1) in percent.
fn percent(share: f64) -> u64 {
    // Between 0 and 100 by the clamp.
    (share.clamp(0.0, 1.0) * 100.0).round() as u64
}

/// A number as JSON has it: whole ones without a fraction, so that a count reads as one.
fn number(value: f64) -> Json {
    // Every whole f64 below 2^53 is an i64.
    if value.fract() == 0.0 && value.abs() < 9e15 { Json::from(value as i64) } else { Json::from(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!((cut("aé", 2), cut("aé", 3), cut("aé", 9), cut("é", 1)), ("a", "aé", "aé", ""));
    }

    #[test]
    fn a_path_makes_the_objects_on_its_way() {
        let mut root = Map::new();
        set(&mut root, "a.b.c", 1);
        set(&mut root, "a.d", "x");
        assert_eq!(Json::Object(root), serde_json::json!({"a": {"b": {"c": 1}, "d": "x"}}));
    }
}
