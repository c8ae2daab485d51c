//! A local object store whose objects survive a power cut once they are written.
//!
//! `object_store` writes local files without `fsync`. For a table whose commits are acknowledged that is not enough: an
//! acknowledged commit could vanish, and a log entry could survive as an empty file that makes the whole table unreadable.
//! Here an object is complete on disk before it gets its name, and its name is on disk before `put` returns.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use deltalake::Path;
use deltalake::datafusion::object_store::local::LocalFileSystem;
use deltalake::datafusion::object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use futures::stream::BoxStream;

/// End of the name of a file that is being written. Those that a crash leaves behind are removed by upkeep.
pub(crate) const STAGED: &str = ".staged";

/// The whole file system, each write durable.
#[derive(Debug)]
pub(crate) struct DurableStore {
    local: Arc<LocalFileSystem>,
}

impl DurableStore {
    pub(crate) fn new() -> Self {
        Self { local: Arc::new(LocalFileSystem::new()) }
    }
}

impl fmt::Display for DurableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DurableStore")
    }
}

#[async_trait]
impl ObjectStore for DurableStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let path = self.local.path_to_filesystem(location)?;
        let replace = match opts.mode {
            PutMode::Create => false,
            PutMode::Overwrite => true,
            PutMode::Update(_) => {
                return Err(Error::NotSupported { source: "a local file has no version to compare".into() });
            }
        };
        blocking(move || write(&path, &payload, replace).map_err(|source| named(&path, source))).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let path = self.local.path_to_filesystem(location)?;
        let upload = self.local.put_multipart_opts(location, opts).await?;
        Ok(Box::new(DurableUpload { upload, path }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.local.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.local.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.local.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.local.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.local.copy_opts(from, to, options).await?;
        self.sync(to).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.local.rename_opts(from, to, options).await?;
        self.sync(to).await
    }
}

impl DurableStore {
    async fn sync(&self, location: &Path) -> Result<()> {
        let path = self.local.path_to_filesystem(location)?;
        blocking(move || sync_named(&path).map_err(|source| named(&path, source))).await
    }
}

/// An upload in parts, as `object_store` does it, made durable when complete.
#[derive(Debug)]
struct DurableUpload {
    upload: Box<dyn MultipartUpload>,
    path: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.upload.complete().await?;
        let path = self.path.clone();
        blocking(move || sync_named(&path).map_err(|source| named(&path, source))).await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

async fn blocking<T: Send + 'static>(deed: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(deed).await.map_err(|error| Error::Generic { store: "DurableStore", source: error.into() })?
}

fn named(path: &FilePath, source: io::Error) -> Error {
    let path = path.display().to_string();
    match source.kind() {
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: source.into() },
        io::ErrorKind::NotFound => Error::NotFound { path, source: source.into() },
        _ => Error::Generic { store: "DurableStore", source: Box::new(source) },
    }
}

/// Writes `payload` under another name, syncs it, and only then gives it the name `path`. Nothing is left behind on failure.
fn write(path: &FilePath, payload: &PutPayload, replace: bool) -> io::Result<()> {
    let directory = parent(path);
    create_directory(directory)?;
    let staged = directory.join(format!("{}{STAGED}", uuid::Uuid::new_v4().simple()));
    let result = fill(&staged, payload).and_then(|()| {
        if replace {
            fs::rename(&staged, path)?;
        } else {
            // A hard link, unlike a rename, fails when the name is taken: that is what makes a commit exclusive.
            fs::hard_link(&staged, path)?;
        }
        sync_directory(directory).inspect_err(|_| {
            if !replace {
                let _ = fs::remove_file(path);
            }
        })
    });
    if !replace || result.is_err() {
        let _ = fs::remove_file(&staged);
    }
    result
}

fn fill(path: &FilePath, payload: &PutPayload) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    for piece in payload {
        file.write_all(piece)?;
    }
    file.sync_all()
}

/// Creates `directory` and what is missing above it, each durably entered in its parent.
fn create_directory(directory: &FilePath) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    create_directory(parent(directory))?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_directory(parent(directory))
}

fn sync_named(path: &FilePath) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    sync_directory(parent(path))
}

fn sync_directory(directory: &FilePath) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn parent(path: &FilePath) -> &FilePath {
    path.parent().unwrap_or(path)
}
