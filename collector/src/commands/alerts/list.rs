//! `alerts`: what the alert file says, now and as it grows.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::{AlertsFormat, ListArgs};
use crate::alert::Alert;
use crate::alert::file::{self, LINE_LEN_MAX};
use crate::alert::terminal::{self, Colour, printable, short_id, to_the_second};

/// How often `--follow` looks for new lines.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Prints the alerts of `path`.
pub(super) fn print(args: &ListArgs, path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    // The tail begins where the file ends before it is read: what is appended meanwhile may show twice, never not at all.
    let tail = if args.follow { Some(Tail::at_end(path)?) } else { None };
    let told = file::read(path).with_context(|| format!("read the alert file {}", path.display()))?;
    if !path.exists() {
        eprintln!("there is no alert file {} yet; is `alerts.file` right, and has a collector run with it?", path.display());
    }
    let shown = |alert: &Alert| !args.open || alert.is_open();
    let alerts: Vec<Alert> = told.alerts.into_iter().filter(shown).collect();
    match args.format {
        AlertsFormat::Table => out.write_all(table(&alerts).as_bytes())?,
        AlertsFormat::Json => {
            for alert in &alerts {
                writeln!(out, "{}", serde_json::to_string(alert)?)?;
            }
        }
    }
    out.flush()?;
    if told.unreadable > 0 {
        eprintln!("{} lines of {} are no alerts and were passed over", told.unreadable, path.display());
    }
    let Some(mut tail) = tail else { return Ok(()) };
    let colour = Colour::wanted(&io::stdout());
    loop {
        tail.each_new(path, |line| {
            let Ok(alert) = serde_json::from_slice::<Alert>(line) else { return Ok(()) };
            if shown(&alert) {
                match args.format {
                    AlertsFormat::Table if alert.is_quiet() => {}
                    AlertsFormat::Table => out.write_all(terminal::line(&alert, colour).as_bytes())?,
                    AlertsFormat::Json => writeln!(out, "{}", serde_json::to_string(&alert)?)?,
                }
                out.flush()?;
            }
            Ok(())
        })?;
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The growing end of a file that may be renamed away and made anew.
struct Tail {
    file: Option<BufReader<File>>,
    /// The beginning of a line whose end has not been written yet.
    partial: Vec<u8>,
}

impl Tail {
    fn at_end(path: &Path) -> io::Result<Self> {
        let mut tail = Self { file: open(path)?, partial: Vec::new() };
        if let Some(file) = &mut tail.file {
            io::Seek::seek(file, io::SeekFrom::End(0))?;
        }
        Ok(tail)
    }

    /// Hands every line that was completed since the last call to `each`.
    fn each_new(&mut self, path: &Path, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        loop {
            // Whether the path names another file is asked before the old one is read to its end, so that nothing is missed.
            let moved = !self.is_current(path)?;
            if let Some(file) = &mut self.file {
                while file.by_ref().take(LINE_LEN_MAX).read_until(b'\n', &mut self.partial)? > 0 {
                    if self.partial.last() == Some(&b'\n') || self.partial.len() as u64 >= LINE_LEN_MAX {
                        each(&self.partial)?;
                        self.partial.clear();
                    }
                }
            }
            if !moved {
                return Ok(());
            }
            self.partial.clear();
            self.file = open(path)?;
            if self.file.is_none() {
                return Ok(());
            }
        }
    }

    fn is_current(&self, path: &Path) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let ours = file.get_ref().metadata()?;
        match std::fs::metadata(path) {
            Ok(theirs) => Ok(ours.ino() == theirs.ino() && ours.dev() == theirs.dev()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Alerts in columns, with a heading.
pub(in crate::commands) fn table(alerts: &[Alert]) -> String {
    if alerts.is_empty() {
        return "no alerts\n".to_owned();
    }
    let heading = ["id", "first", "last", "severity", "sure", "rule", "state", "subject", "what happened"].map(str::to_owned);
    let rows = alerts.iter().map(|alert| {
        let rule = match alert.variant {
            crate::detect::Variant::Fixed => alert.rule.clone(),
            crate::detect::Variant::Exact => format!("{} exact", alert.rule),
        };
        [
            short_id(alert),
            to_the_second(alert.first),
            to_the_second(alert.last),
            alert.severity.to_string(),
            format!("{:.0} %", alert.confidence * 100.0),
            rule,
            state(alert),
            alert.subject.clone(),
            terminal::story(alert),
        ]
        .map(|cell| printable(&cell))
    });
    columns(&std::iter::once(heading).chain(rows).collect::<Vec<_>>())
}

/// Rows with each column as wide as its widest cell, but for the last.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = if column + 1 == row.len() {
                0
            } else {
                rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + 2
            };
            line.push_str(&format!("{cell:<width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `open`, or why nobody is told: `muted`, `in storm`, `see 3c0a29fc`.
fn state(alert: &Alert) -> String {
    match (&alert.muted, &alert.storm, &alert.spoken_for) {
        _ if !alert.is_open() => alert.state.to_string(),
        (Some(_), ..) => "muted".to_owned(),
        (None, Some(_), _) => "in storm".to_owned(),
        (None, None, Some(better)) => format!("see {}", better.get(..8).unwrap_or(better)),
        (None, None, None) => alert.state.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn following_survives_rotation_and_sees_every_line_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("alerts.ndjson");
        let mut seen = Vec::new();
        let append = |text: &str| {
            let mut file = File::options().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let mut tail = Tail::at_end(&path).unwrap();
        let mut look = |tail: &mut Tail| {
            let each = |line: &[u8]| {
                seen.push(String::from_utf8_lossy(line).trim().to_owned());
                Ok(())
            };
            tail.each_new(&path, each).unwrap();
            std::mem::take(&mut seen)
        };
        assert_eq!(look(&mut tail), Vec::<String>::new(), "no file yet");
        append("a\nb");
        assert_eq!(look(&mut tail), ["a"], "a line without its end waits");
        append("b\nc\n");
        std::fs::rename(&path, directory.path().join("alerts.ndjson.1")).unwrap();
        append("d\n");
        assert_eq!(look(&mut tail), ["bb", "c", "d"]);
        append("e\n");
        assert_eq!(look(&mut tail), ["e"]);
    }
}
