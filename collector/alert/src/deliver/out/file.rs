//! Lines in a file.

use std::io::Write;

use super::{Sent, pack};
use crate::deliver::courier::Outcome;
use crate::deliver::settings::OutputSettings;
use crate::{Alert, file};

pub(in crate::deliver) struct FileOut {
    settings: OutputSettings,
}

impl FileOut {
    pub(super) const fn new(settings: OutputSettings) -> Self {
        Self { settings }
    }

    /// Appends and waits for the disk. The file is opened for each batch, so that whoever renames it gets a new one.
    pub(super) async fn send(&mut self, alerts: &[Alert]) -> Sent {
        let (lines, shortened) = pack(alerts, &self.settings, usize::MAX);
        let tried = lines.len();
        let path = self.settings.path.clone();
        let write = move || {
            let text = lines.join("\n") + "\n";
            let (mut file, len) = file::open_for_appending(&path)?;
            // What a full disk let through only in part would be half a line.
            file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).inspect_err(|_| drop(file.set_len(len)))
        };
        let path = self.settings.path.display();
        let outcome = match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => Outcome::Delivered,
            Ok(Err(error)) => {
                Outcome::Failed(format!("write {path}: {error}; does its directory exist, and may this user write there?"), None)
            }
            Err(error) => Outcome::Failed(format!("write {path}: {error}"), None),
        };
        Sent { tried, shortened, outcome }
    }
}
