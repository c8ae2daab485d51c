//! How far each output is: a file `NAME.cursor` with the number of the first alert that it may still lack.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The cursor of the output `name`; None if it has none yet. A file that holds no number, as a power cut may leave, stands for the beginning:
/// better twice than never.
pub(super) fn read(directory: &Path, name: &str) -> io::Result<Option<u64>> {
    match fs::read_to_string(path(directory, name)) {
        Ok(text) => Ok(Some(text.strip_suffix('\n').and_then(|number| number.parse().ok()).unwrap_or(0))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => Ok(Some(0)),
        Err(error) => Err(error),
    }
}

/// Replaces the cursor as a whole. It is not waited for the disk: an older one only means that something is sent again.
pub(super) fn write(directory: &Path, name: &str, cursor: u64) -> io::Result<()> {
    let path = path(directory, name);
    let new = path.with_extension("cursor.new");
    fs::write(&new, format!("{cursor}\n"))?;
    fs::rename(new, path)
}

fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.cursor"))
}
