//! Reading settings from TOML so that a mistake is shown with file, line, column and a hint.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A mistake in a settings file.
#[derive(Debug)]
pub struct SettingsError {
    /// The file.
    pub path: PathBuf,
    /// Line from 1 and column from 1, where the mistake has a place.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl std::error::Error for SettingsError {}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Reads `text`, the content of `path`.
///
/// # Errors
/// Syntax, a value of the wrong kind, or an unknown key (where `T` denies those), each with its place.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, SettingsError> {
    toml::from_str(text).map_err(|error| SettingsError {
        path: path.to_owned(),
        place: error.span().map(|span| place(text, span.start)),
        message: with_hint(error.message()),
    })
}

/// A mistake that only a later check can see: a value out of range, two settings that contradict each other.
///
/// `key` is a dotted path such as `flow_table.flows_max`, or names a section; its line is looked up in `text`.
pub fn mistake(path: &Path, text: &str, key: &str, message: impl Into<String>) -> SettingsError {
    let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = "";
    let mut found = None;
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if let Some(header) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            current = header.trim_matches('[').trim();
            if current == key {
                found = found.or(Some((number + 1, 1)));
            }
        } else if current == table && trimmed.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('=')) {
            found = Some((number + 1, line.len() - line.trim_start().len() + 1));
        }
    }
    SettingsError { path: path.to_owned(), place: found, message: format!("{key}: {}", message.into()) }
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

/// Adds "did you mean" to serde's sentence about an unknown key or variant.
fn with_hint(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown ") {
        return message.to_owned();
    }
    let Some(typed) = quoted.next() else { return message.to_owned() };
    let closest = quoted.map(|known| (strsim::jaro_winkler(typed, known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((likeness, known)) if likeness > 0.75 => format!("unknown {} `{typed}`; did you mean `{known}`?", kind(message)),
        _ => message.to_owned(),
    }
}

fn kind(message: &str) -> &str {
    message
        .strip_prefix("unknown ")
        .and_then(|rest| rest.split(" `").next())
        .map_or("key", |word| if word == "field" { "key" } else { word })
}

/// Section `[metrics]` of either program; `PORT` is its default port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSettings<const PORT: u16> {
    /// Address and port of `/metrics` (Prometheus) and `/healthz`. Anyone who reaches it may read, so it is on loopback
    /// unless you decide otherwise. Empty for none.
    #[serde(default = "on_loopback::<PORT>")]
    pub listen: String,
}

impl<const PORT: u16> Default for MetricsSettings<PORT> {
    fn default() -> Self {
        Self { listen: on_loopback::<PORT>() }
    }
}

fn on_loopback<const PORT: u16>() -> String {
    format!("127.0.0.1:{PORT}")
}

impl<const PORT: u16> MetricsSettings<PORT> {
    /// Checks the values.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.listen.is_empty() || self.listen.parse::<SocketAddr>().is_ok() {
            return Ok(());
        }
        Err(("listen", format!("{:?} must be an address and a port such as \"127.0.0.1:{PORT}\", or empty", self.listen)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(rename = "interface")]
        _interface: String,
    }

    #[test]
    fn an_unknown_key_is_shown_with_its_place_and_the_likely_one() {
        let error = parse::<Sample>(Path::new("x.toml"), "# sensor\nintreface = \"eno2\"\n").expect_err("a typo");
        assert_eq!(error.to_string(), "x.toml:2:1: unknown key `intreface`; did you mean `interface`?");
    }

    #[test]
    fn a_later_mistake_finds_its_line() {
        let text = "[capture]\nmode = \"auto\"\n[flow_table]\n  flows_max = 0\n";
        let error = mistake(Path::new("x.toml"), text, "flow_table.flows_max", "must be at least 64");
        assert_eq!(error.to_string(), "x.toml:4:3: flow_table.flows_max: must be at least 64");
    }
}
