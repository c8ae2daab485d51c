//! Alerts as lines for a person, coloured by severity where that helps.

use std::io::{self, IsTerminal, Write};

use spanwatch_common::time::Timestamp;

use super::{Alert, AlertSink, AlertState};
use spanwatch_detect::finding::Severity;

/// Writes one line per alert event.
pub struct Terminal<W> {
    to: W,
    colour: Colour,
}

/// Whether to colour lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// With ANSI escapes.
    Yes,
    /// Plain.
    No,
}

impl Colour {
    /// Colour when `stream` is a terminal and the user did not set `NO_COLOR` (no-color.org).
    pub fn wanted(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if stream.is_terminal() && !refused { Self::Yes } else { Self::No }
    }
}

impl<W: Write> Terminal<W> {
    /// Lines to `to`.
    pub const fn new(to: W, colour: Colour) -> Self {
        Self { to, colour }
    }
}

impl<W: Write + Send> AlertSink for Terminal<W> {
    fn put(&mut self, alert: &Alert) -> io::Result<()> {
        let line = line(alert, self.colour);
        self.to.write_all(line.as_bytes())?;
        self.to.flush()
    }
}

/// What happened, and what to do about it where that is known.
pub fn story(alert: &Alert) -> String {
    match &*alert.advice {
        "" => printable(&alert.sentence),
        advice => printable(&format!("{} {advice}", alert.sentence)),
    }
}

/// `2026-11-21 10:41:07  medium     70 %  AZ-01  open     23e006d4  10.0.0.9 tried …`, with a line feed: when it was told, how grave and
/// how sure it is, the rule, the state, and so much of the id as `alerts explain` needs.
pub fn line(alert: &Alert, colour: Colour) -> String {
    let Alert { severity, state, .. } = alert;
    let (rule, id) = (printable(&alert.rule), short_id(alert));
    let sure = alert.confidence * 100.0;
    let at = to_the_second(alert.told);
    let (on, off) = match colour {
        Colour::No => ("", ""),
        Colour::Yes => (escape(*severity, *state), "\x1b[0m"),
    };
    format!("{at}  {on}{severity:<8}{off}  {sure:>3.0} %  {rule}  {state:<7}  {id}  {}\n", story(alert))
}

/// So much of an alert's id as tells it from others; `alerts show` and `explain` take it.
pub fn short_id(alert: &Alert) -> String {
    printable(&alert.id).chars().take(8).collect()
}

/// `2026-11-21 10:41:07`.
pub fn to_the_second(at: Timestamp) -> String {
    at.to_string().chars().take(19).map(|letter| if letter == 'T' { ' ' } else { letter }).collect()
}

/// Text from an alert file without control characters: a terminal must not obey a file.
pub fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}

const fn escape(severity: Severity, state: AlertState) -> &'static str {
    match (state, severity) {
        (AlertState::Closed, _) => "\x1b[2m",
        (_, Severity::Critical) => "\x1b[1;97;41m",
        (_, Severity::High) => "\x1b[1;31m",
        (_, Severity::Medium) => "\x1b[33m",
        (_, Severity::Low) => "\x1b[36m",
        (_, Severity::Informational) => "\x1b[37m",
    }
}
