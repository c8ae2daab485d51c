//! The alert file: one JSON object per line and event, appended. The newest line of an id is the state of that alert.
//!
//! When the file exceeds its size it is renamed to `NAME.1`, replacing the one before, so alerts take at most twice that size on
//! disk. A restart reads both; an alert of which neither has a line is forgotten. A line torn by a crash is passed over.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Alert, AlertSink};

/// Longer lines are no alerts: they are passed over, and never held as a whole.
pub const LINE_LEN_MAX: u64 = 1 << 20;

/// Where alerts are kept.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The alert file.
    pub file: PathBuf,
    /// It is renamed to NAME.1 when it would exceed this size.
    pub file_bytes_max: u64,
    /// Alerts held in memory, open ones and those that could re-open.
    pub alerts_max: usize,
    /// New alerts of one rule that are told in an hour of event time. Further ones are in the alert file, and one summary, a storm, speaks
    /// for them. Fewer keep a phone quieter; more tell each by itself.
    pub rule_alerts_per_hour_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            file: PathBuf::from("/var/lib/spanwatch/alerts.ndjson"),
            file_bytes_max: 64 << 20,
            alerts_max: 10_000,
            rule_alerts_per_hour_max: 50,
        }
    }
}

impl Settings {
    /// Whether every value lies in its range.
    ///
    /// # Errors
    /// The first that does not: its key, and what to write instead.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.file.file_name().is_none() {
            return Err(("file", "must name a file, such as /var/lib/spanwatch/alerts.ndjson".to_owned()));
        }
        if self.file_bytes_max < 1 << 16 {
            return Err(("file_bytes_max", format!("must be at least 65536, not {}", self.file_bytes_max)));
        }
        if !(16..=10_000_000).contains(&self.alerts_max) {
            return Err(("alerts_max", format!("must be 16 to 10000000, not {}", self.alerts_max)));
        }
        if !(1..=1_000_000).contains(&self.rule_alerts_per_hour_max) {
            let sentence = format!("must be 1 to 1000000, not {}", self.rule_alerts_per_hour_max);
            return Err(("rule_alerts_per_hour_max", sentence));
        }
        Ok(())
    }
}

/// The alert file, open for appending.
pub struct AlertFile {
    path: PathBuf,
    file: File,
    len: u64,
    bytes_max: u64,
    /// A line may have been written in part, as a full disk does.
    torn: bool,
}

impl AlertFile {
    /// Opens the file, making it if need be.
    ///
    /// # Errors
    /// What the system says about the path.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let (file, len) = open_for_appending(&settings.file)?;
        Ok(Self { path: settings.file.clone(), file, len, bytes_max: settings.file_bytes_max, torn: false })
    }

    /// Whether the path still names the open file: somebody may have removed or renamed it.
    fn is_current(&self) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AlertSink for AlertFile {
    fn put(&mut self, alert: &Alert) -> io::Result<()> {
        // Readers pass over half a line, but not over the whole one that would continue it.
        let mut line = if self.torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut line, alert)?;
        line.push(b'\n');
        if !self.is_current()? {
            (self.file, self.len) = open_for_appending(&self.path)?;
        }
        if self.len > 0 && self.len + line.len() as u64 > self.bytes_max {
            fs::rename(&self.path, rotated(&self.path))?;
            (self.file, self.len) = open_for_appending(&self.path)?;
        }
        self.torn = true;
        self.file.write_all(&line)?;
        self.torn = false;
        self.len += line.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The file and its length; ends a torn last line.
pub(crate) fn open_for_appending(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
    let mut len = file.metadata()?.len();
    if len > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != [b'\n'] {
            file.write_all(b"\n")?;
            len += 1;
        }
    }
    Ok((file, len))
}

fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// What the alert file and its predecessor say.
#[derive(Debug, Default)]
pub struct Told {
    /// The newest state of every alert, in the order in which the alerts first appear.
    pub alerts: Vec<Alert>,
    /// Lines that are no alerts.
    pub unreadable: u64,
}

/// Reads the alert file at `path` and its predecessor. No file is an empty file.
///
/// # Errors
/// What the system says about the path.
pub fn read(path: &Path) -> io::Result<Told> {
    let mut told = Told::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    for path in [rotated(path), path.to_owned()] {
        let mut lines = match File::open(&path) {
            Ok(file) => BufReader::new(file),
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut line = Vec::new();
        while next_line(&mut lines, &mut line)? {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let Ok(alert) = serde_json::from_slice::<Alert>(&line) else {
                told.unreadable += 1;
                continue;
            };
            match places.get(&alert.id) {
                Some(&place) => told.alerts[place] = alert,
                None => {
                    places.insert(alert.id.clone(), told.alerts.len());
                    told.alerts.push(alert);
                }
            }
        }
    }
    Ok(told)
}

/// Reads one line into `line`, without its line feed; one that is too long comes cut short. False at the end.
fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    from.by_ref().take(LINE_LEN_MAX).read_until(b'\n', line)?;
    if line.is_empty() {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else {
        from.skip_until(b'\n')?;
    }
    Ok(true)
}
