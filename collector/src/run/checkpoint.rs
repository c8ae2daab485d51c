//! Restart without forgetting: what the detectors have learned, on disk beside the records.
//!
//! A checkpoint says: *this is what the detectors knew when the table had this version, no more and no less*. It comes from a
//! [cut](crate::ingest::Outlets::cut) through the stream, and lies in the store's directory as `.detectors`. On start it is read back,
//! and the records that later versions of the table added are shown to the detectors; what was not committed the sensors send
//! again. So it does not matter when the collector was killed: every record is seen once.
//!
//! ```text
//! "SPWDETEC" ─ version of the table, u64, little-endian ─ snapshot
//! ```
//! The file is written under another name, synced, and renamed: it is whole or not there.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};

use super::clock;
use crate::ingest::{Outlets, stopped};
use crate::metrics::Vitals;

/// Name of the file in the store's directory.
const NAME: &str = ".detectors";
const MAGIC: &[u8; 8] = b"SPWDETEC";
/// A store that does not commit for so long has trouble, which is told elsewhere. The next cut will do.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What the detectors knew when the table had a certain version.
pub(super) struct Checkpoint {
    /// Version of the table.
    pub(super) version: u64,
    /// What the detectors and the alert book made of everything up to it.
    pub(super) snapshot: Vec<u8>,
}

impl Checkpoint {
    /// Reads the checkpoint of the store in `directory`; none when there is none.
    ///
    /// # Errors
    /// What the system says, or that it is no checkpoint.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(directory.join(NAME)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let parts = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_first_chunk());
        let (version, snapshot) = parts.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "it is no checkpoint"))?;
        Ok(Some(Self { version: u64::from_le_bytes(*version), snapshot: snapshot.to_vec() }))
    }

    /// Puts the checkpoint where the one before was. When it returns without error, a power cut does not undo it.
    ///
    /// # Errors
    /// What the system says; the checkpoint before is then still there.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(NAME);
        let staged = path.with_extension("new");
        let mut file = File::create(&staged)?;
        file.write_all(MAGIC)?;
        file.write_all(&self.version.to_le_bytes())?;
        file.write_all(&self.snapshot)?;
        file.sync_all()?;
        fs::rename(&staged, &path)?;
        File::open(directory)?.sync_all()
    }
}

/// Where checkpoints come from and go to.
#[derive(Clone, Debug)]
pub(super) struct Checkpoints {
    /// The stream to cut.
    pub(super) outlets: Outlets,
    /// The store's directory.
    pub(super) directory: PathBuf,
    /// The collector's numbers.
    pub(super) vitals: Arc<Vitals>,
}

impl Checkpoints {
    /// Makes a checkpoint every `interval` until `stopping` turns true.
    pub(super) async fn run(self, interval: Duration, mut stopping: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await; // the first is immediate
        let mut failing = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stopped(&mut stopping) => return,
            }
            match self.make().await {
                Ok(_) => failing = false,
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(
                        "what the detectors have learned cannot be written to {}: {error}; a restart would look at older records again",
                        self.directory.join(NAME).display()
                    );
                }
                Err(_) => {}
            }
        }
    }

    /// Makes one. False when store or detectors had a reason to give none; the one before stays.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) async fn make(&self) -> io::Result<bool> {
        let Some(cut) = self.outlets.cut().await else { return Ok(false) };
        let answers = timeout(ANSWER_LIMIT, async { (cut.version.await, cut.snapshot.await) }).await;
        let Ok((Ok(version), Ok(snapshot))) = answers else { return Ok(false) };
        let directory = self.directory.clone();
        let bytes = snapshot.len() as u64;
        let write = move || Checkpoint { version, snapshot }.write(&directory);
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
        let mut vitals = self.vitals.detect();
        (vitals.checkpoint_at, vitals.checkpoint_bytes) = (clock(), bytes);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_survives_and_a_torn_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Checkpoint::read(directory.path()).unwrap().is_none());
        Checkpoint { version: 7, snapshot: b"seven".to_vec() }.write(directory.path()).unwrap();
        Checkpoint { version: 8, snapshot: b"eight".to_vec() }.write(directory.path()).unwrap();
        let read = Checkpoint::read(directory.path()).unwrap().unwrap();
        assert_eq!((read.version, &*read.snapshot), (8, &b"eight"[..]));
        fs::write(directory.path().join(NAME), b"SPWDETEC\0\0\0").unwrap();
        assert!(Checkpoint::read(directory.path()).is_err());
    }
}
