//! Muting: somebody takes responsibility for silence, for a while.
//!
//! A muted alert goes on being recorded, each line with who muted it; it is told nobody. When the mute ends and it is still open, it is
//! told again. If it was told before it was muted, its end is told as well, so that nothing stays open elsewhere. Every mute has an
//! owner, a reason and an end.
//!
//! The mutes lie in a small file beside the alert file, which `alerts mute` replaces as a whole and a running collector reads when it
//! has changed.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::net::Prefix;
use spanwatch_common::time::Timestamp;

use crate::alert::{Alert, Muted};

/// Mutes that may stand at once.
pub const MUTES_MAX: usize = 10_000;
/// No mute lasts longer: it would outlive its reason.
pub const MUTE_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Mutes that have ended stay in the file for so long, for whoever asks.
const KEPT_FOR: Duration = Duration::from_secs(30 * 86_400);

/// What is muted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Target {
    /// One alert, as often as it re-opens; what comes a day later is another one.
    Alert {
        /// Its id.
        id: String,
    },
    /// Whatever a rule says about a subject.
    Subject {
        /// The rule: `AZ-01`.
        rule: String,
        /// As alerts have it (`10.0.0.9 > 10.0.0.2`), or the address or prefix of the initiator (`10.0.0.9`, `10.0.0.0/28`).
        subject: String,
    },
}

impl Target {
    /// Whether it is about `alert`.
    pub fn covers(&self, alert: &Alert) -> bool {
        match self {
            Self::Alert { id } => alert.id == *id,
            Self::Subject { rule, subject } => {
                let is_source =
                    || subject.parse::<Prefix>().ok().zip(alert.source).is_some_and(|(hosts, source)| hosts.contains(source));
                alert.rule.eq_ignore_ascii_case(rule) && (alert.subject == *subject || is_source())
            }
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alert { id } => write!(f, "alert {id}"),
            Self::Subject { rule, subject } => write!(f, "{rule} about {subject}"),
        }
    }
}

/// One mute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mute {
    /// Of what.
    pub target: Target,
    /// When it was set.
    #[serde(with = "crate::rfc3339")]
    pub since: Timestamp,
    /// Who answers for it, why, and until when.
    pub muted: Muted,
}

impl Mute {
    /// A mute set at `now`.
    ///
    /// # Errors
    /// It has no owner, no reason, or no end within a year; the sentence says what to write.
    pub fn new(target: Target, muted: Muted, now: Timestamp) -> Result<Self, String> {
        if muted.owner.trim().is_empty() {
            return Err("a mute needs an owner: --owner NAME says who answers for it".to_owned());
        }
        if muted.reason.trim().is_empty() {
            return Err("a mute needs a reason: --reason TEXT says why, for whoever wonders later".to_owned());
        }
        if muted.until <= now {
            return Err(format!("a mute needs an end that is still to come: {} is over", muted.until));
        }
        if muted.until > now.plus(MUTE_MAX) {
            return Err(
                "a mute lasts a year at most; what is to be silent for ever belongs into exclude_sources of its rule".to_owned()
            );
        }
        Ok(Self { target, since: now, muted })
    }

    /// Whether it holds at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        now < self.muted.until
    }
}

/// All mutes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mutes(Vec<Mute>);

impl Mutes {
    /// Every mute, those that have ended as well, in the order in which they were set.
    pub fn all(&self) -> &[Mute] {
        &self.0
    }

    /// Who mutes `alert` at `now`, if anybody does; of several the one that lasts longest.
    pub fn of(&self, alert: &Alert, now: Timestamp) -> Option<&Muted> {
        let holding = self.0.iter().filter(|mute| mute.holds(now) && mute.target.covers(alert));
        holding.map(|mute| &mute.muted).max_by_key(|muted| muted.until)
    }

    /// Adds a mute, in the place of one of the same target, and forgets those that ended long ago.
    ///
    /// # Errors
    /// There are too many.
    pub fn add(&mut self, mute: Mute, now: Timestamp) -> Result<(), String> {
        self.0.retain(|known| known.target != mute.target && known.muted.until.plus(KEPT_FOR) >= now);
        if self.0.len() >= MUTES_MAX {
            return Err(format!("there are {MUTES_MAX} mutes already; exclude what is innocent in the rule files instead"));
        }
        self.0.push(mute);
        Ok(())
    }

    /// Ends the mute of `target`. False when none holds.
    pub fn remove(&mut self, target: &Target, now: Timestamp) -> bool {
        let mut found = false;
        for mute in self.0.iter_mut().filter(|mute| mute.target == *target && mute.holds(now)) {
            mute.muted.until = now;
            found = true;
        }
        found
    }
}

/// Where the mutes of an alert file lie: `alerts.ndjson.mutes`.
pub fn path_beside(alert_file: &Path) -> PathBuf {
    let mut name = alert_file.as_os_str().to_owned();
    name.push(".mutes");
    PathBuf::from(name)
}

/// Reads the mutes. No file is no mutes.
///
/// # Errors
/// What the system says, or that it is no list of mutes.
pub fn read(path: &Path) -> io::Result<Mutes> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Mutes::default()),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&text).map(Mutes).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// Changes the mutes at `path` with `change`; two who do so at once wait for each other. Nothing is written when it fails.
///
/// # Errors
/// As [`read`]; what the system says about writing there; what `change` says.
pub fn change<E: From<io::Error>>(path: &Path, change: impl FnOnce(&mut Mutes) -> Result<(), E>) -> Result<(), E> {
    let beside = |ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let lock = File::options().create(true).append(true).open(beside(".lock"))?;
    lock.lock()?;
    let mut mutes = read(path)?;
    change(&mut mutes)?;
    let staged = beside(".new");
    let mut file = File::create(&staged)?;
    let text = serde_json::to_vec_pretty(&mutes.0).map_err(io::Error::other)?;
    file.write_all(&text)?;
    file.sync_all()?;
    // Who may read the alerts may read who muted them.
    if let Ok(metadata) = fs::metadata(path) {
        fs::set_permissions(&staged, metadata.permissions())?;
    }
    fs::rename(&staged, path)?;
    Ok(())
}

/// The file with the mutes, as a running collector looks at it.
#[derive(Debug)]
pub struct MuteFile {
    path: PathBuf,
    /// Which file it was: device, inode, length, time of change.
    seen: Option<[i64; 5]>,
}

impl MuteFile {
    /// Not looked at yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mutes, when the file is not the one that was looked at last.
    ///
    /// # Errors
    /// As [`read`]; the same file is not complained about twice.
    pub fn changed(&mut self) -> io::Result<Option<Mutes>> {
        let now = match fs::metadata(&self.path) {
            Ok(data) => {
                [data.dev().cast_signed(), data.ino().cast_signed(), data.len().cast_signed(), data.mtime(), data.mtime_nsec()]
            }
            Err(error) if error.kind() == ErrorKind::NotFound => [0; 5],
            Err(error) => return Err(error),
        };
        if self.seen.replace(now) == Some(now) {
            return Ok(None);
        }
        read(&self.path).map(Some)
    }
}
