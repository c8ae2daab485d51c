//! The header of RFC 5424, and the two ways to tell where a message ends on a stream (RFC 6587).

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{Fitted, Format, fit, map};
use crate::Alert;

/// How messages are told apart on TCP and TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Framing {
    /// RFC 6587 §3.4.1, and the only one of TLS (RFC 5425 §4.3): the length in decimal, a space, the message.
    #[default]
    OctetCounting,
    /// RFC 6587 §3.4.2: a line feed after each message.
    Lf,
}

impl Framing {
    /// Adds `message` to `stream`.
    pub fn put(self, message: &str, stream: &mut Vec<u8>) {
        match self {
            Self::OctetCounting => {
                stream.extend_from_slice(format!("{} ", message.len()).as_bytes());
                stream.extend_from_slice(message.as_bytes());
            }
            Self::Lf => {
                // Our formats write line ends as escapes, so there is none inside.
                stream.extend(message.bytes().map(|byte| if byte == b'\n' { b' ' } else { byte }));
                stream.push(b'\n');
            }
        }
    }
}

/// What all messages of one output have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// RFC 5424 §6.2.1, 0 to 23.
    pub facility: u8,
    /// Name of this machine; `-` where it has none.
    pub hostname: String,
    /// Private enterprise number of the structured data (RFC 5424 §7.2.2).
    pub enterprise_number: u32,
}

impl Header {
    /// `alert` in `format` as a message of at most `bytes_max` bytes.
    ///
    /// `<PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID [SD] MSG`, the time being when the alert was told. A message that is not plain ASCII
    /// begins with the byte order mark (§6.4).
    pub fn message(&self, alert: &Alert, format: Format, bytes_max: usize) -> Fitted {
        fit(alert, bytes_max, |alert| {
            let mut message = self.header(alert);
            let text = format.line(alert);
            message.push_str(if text.is_ascii() { "" } else { "\u{feff}" });
            message.push_str(&text);
            message
        })
    }

    fn header(&self, alert: &Alert) -> String {
        let priority = u16::from(self.facility) * 8 + u16::from(map::severity(alert.severity).syslog);
        // §6.2.3: at most six digits of a second.
        let time = alert.told.to_string();
        let time = time.get(..26).unwrap_or("1970-01-01T00:00:00.000000");
        let [host, id] = [name(&self.hostname, 255), name(&alert.rule, 32)];
        let mut header = format!("<{priority}>1 {time}Z {host} spanwatch - {id} [spanwatch@{}", self.enterprise_number);
        let parameters = [
            ("id", &*alert.id),
            ("class", map::class(alert.class)),
            ("state", &alert.state.to_string()),
            ("severity", &alert.severity.to_string()),
            ("confidence", &alert.confidence.to_string()),
            ("subject", &alert.subject),
        ];
        for (key, value) in parameters {
            // Writing into a String does not fail.
            let _ = write!(header, " {key}=\"{}\"", parameter(value));
        }
        header.push_str("] ");
        header
    }
}

/// PARAM-VALUE, §6.3.3: `"`, `\` and `]` are escaped with a backslash. Control characters are allowed but help nobody.
fn parameter(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for letter in value.chars().filter(|letter| !letter.is_control()) {
        if matches!(letter, '"' | '\\' | ']') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

/// §6: a name of the header is 1 to `len_max` printable ASCII characters without a blank, or `-`.
fn name(text: &str, len_max: usize) -> String {
    let name: String = text.chars().filter(char::is_ascii_graphic).take(len_max).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}
