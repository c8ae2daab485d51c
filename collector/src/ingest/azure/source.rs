//! What can be read, found from what was typed: files, directories, globs, standard input, URLs, containers.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use futures::StreamExt;
use object_store::path::Path as BlobPath;
use reqwest::Url;

use super::blob::{Address, Container, SharedContainer};
use super::hour::BlobHour;
use super::open::Network;
use super::secret::Credential;

/// Most sources of one command.
const SOURCES_MAX: usize = 1_000_000;
/// What is taken from a directory. A file that is named is read whatever its name.
const ENDINGS: [&str; 8] = [".json", ".jsonl", ".ndjson", ".csv", ".json.gz", ".jsonl.gz", ".ndjson.gz", ".csv.gz"];
/// The variable with another endpoint than Azure's public one, for other clouds and for Azurite.
const ENDPOINT_VARIABLE: &str = "AZURE_STORAGE_ENDPOINT";

/// One thing to read.
#[derive(Clone, Debug)]
pub struct Source {
    /// For people, without any secret: a path, `standard input`, a URL without its query, `az://account/container/blob`.
    pub name: String,
    /// The hour that its path names.
    pub hour: Option<BlobHour>,
    /// Its length in bytes, compressed if it is, where that can be told beforehand.
    pub size: Option<u64>,
    pub(super) place: Place,
}

/// Where the bytes are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    StandardInput,
    File(PathBuf),
    Url(Url),
    Blob(SharedContainer, BlobPath),
}

impl Source {
    /// The same for the same source whoever asks, however it was typed and whatever the SAS.
    pub fn identity(&self) -> String {
        match &self.place {
            Place::File(path) => path.canonicalize().unwrap_or_else(|_| path.clone()).display().to_string(),
            Place::StandardInput | Place::Url(_) | Place::Blob(..) => self.name.clone(),
        }
    }

    /// Whether it can be read once only.
    pub const fn is_standard_input(&self) -> bool {
        matches!(self.place, Place::StandardInput)
    }

    fn standard_input() -> Self {
        Self { name: "standard input".to_owned(), hour: None, size: None, place: Place::StandardInput }
    }

    fn file(path: PathBuf) -> Self {
        let name = path.display().to_string();
        let size = fs::metadata(&path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len());
        Self { hour: BlobHour::in_path(&name), name, size, place: Place::File(path) }
    }

    fn url(url: Url) -> Self {
        let name = shown(&url);
        Self { hour: BlobHour::in_path(&name), name, size: None, place: Place::Url(url) }
    }

    fn blob(container: &SharedContainer, path: BlobPath, size: u64) -> Self {
        let name = format!("{}/{path}", container.name());
        Self { hour: BlobHour::in_path(&name), name, size: Some(size), place: Place::Blob(Arc::clone(container), path) }
    }
}

/// Everything that `typed` names, each once, by the hour in its path, else by name.
///
/// A directory gives its files whose names end like flow logs, however deep; `az://account/container/prefix`, and the https URL of
/// a container, give all blobs under it.
///
/// # Errors
/// A path that does not exist, a pattern that matches nothing, a container that cannot be listed.
pub fn find(typed: &[String], network: &Network) -> anyhow::Result<Vec<Source>> {
    let mut found = Vec::new();
    for word in typed {
        match word.as_str() {
            "-" => found.push(Source::standard_input()),
            url if url.starts_with("az://") => list(&container_of_az(url)?, network, &mut found)?,
            url if url.starts_with("https://") || url.starts_with("http://") => {
                let url = Url::parse(url).with_context(|| format!("{} is no URL", super::secret::redact(url)))?;
                match container_of_url(&url)? {
                    Some(place) => list(&place, network, &mut found)?,
                    None => found.push(Source::url(url)),
                }
            }
            path => local(path, &mut found)?,
        }
    }
    found.sort_by(|a, b| (a.hour, &a.name).cmp(&(b.hour, &b.name)));
    let mut known = HashSet::new();
    found.retain(|source| known.insert(source.identity()));
    Ok(found)
}

fn local(typed: &str, found: &mut Vec<Source>) -> anyhow::Result<()> {
    let path = Path::new(typed);
    if path.is_dir() {
        let before = found.len();
        walk(path, found)?;
        if found.len() == before {
            bail!("{typed} holds no flow logs: no file in it ends with .json, .jsonl, .csv, or one of these and .gz");
        }
        return Ok(());
    }
    // A name that exists means itself, also with [ in it.
    if path.exists() {
        return take(Source::file(path.to_owned()), found);
    }
    if !typed.contains(['*', '?', '[']) {
        bail!("{typed} does not exist");
    }
    let before = found.len();
    let matches = glob::glob(typed).with_context(|| format!("{typed} is no pattern"))?;
    for path in matches {
        let path = path.with_context(|| format!("look for {typed}"))?;
        if path.is_dir() {
            walk(&path, found)?;
        } else {
            take(Source::file(path), found)?;
        }
    }
    if found.len() == before {
        bail!("no file matches {typed}");
    }
    Ok(())
}

/// Symbolic links to directories are not followed: they may lead in circles.
fn walk(directory: &Path, found: &mut Vec<Source>) -> anyhow::Result<()> {
    let trouble = || format!("read the directory {}", directory.display());
    for entry in fs::read_dir(directory).with_context(trouble)? {
        let entry = entry.with_context(trouble)?;
        let path = entry.path();
        if entry.file_type().with_context(trouble)?.is_dir() {
            walk(&path, found)?;
        } else if path.is_file() && is_flow_log(&path.to_string_lossy()) {
            take(Source::file(path), found)?;
        }
    }
    Ok(())
}

fn is_flow_log(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn take(source: Source, found: &mut Vec<Source>) -> anyhow::Result<()> {
    if found.len() >= SOURCES_MAX {
        bail!("more than {SOURCES_MAX} files: name fewer, for example one month at a time");
    }
    found.push(source);
    Ok(())
}

/// A container, what opens it, and a prefix in it.
struct Listing {
    container: SharedContainer,
    prefix: String,
}

fn list(listing: &Listing, network: &Network, found: &mut Vec<Source>) -> anyhow::Result<()> {
    let Listing { container, prefix } = listing;
    let prefix = prefix.trim_start_matches('/');
    let name = format!("{}/{prefix}", container.name());
    // The library lists whole folders: a prefix that ends within a name is cut to its folder and compared here.
    let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
    let path = BlobPath::parse(folder).with_context(|| format!("{name} is no prefix"))?;
    let before = found.len();
    network.wait(async {
        let mut blobs = container.list((!folder.is_empty()).then_some(&path));
        while let Some(blob) = blobs.next().await {
            let blob = blob.with_context(|| name.clone())?;
            if blob.location.as_ref().starts_with(prefix) && is_flow_log(blob.location.as_ref()) {
                take(Source::blob(container, blob.location, blob.size), found)?;
            }
        }
        anyhow::Ok(())
    })?;
    if found.len() == before {
        bail!("{name} holds no flow logs: no blob under it ends with .json or .csv");
    }
    Ok(())
}

/// `az://account/container/prefix`, with the credential of the environment.
fn container_of_az(typed: &str) -> anyhow::Result<Listing> {
    let mut parts = typed.trim_start_matches("az://").splitn(3, '/');
    let (account, container) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if account.is_empty() || container.is_empty() {
        bail!("{typed} names no container; write az://ACCOUNT/CONTAINER or az://ACCOUNT/CONTAINER/PREFIX");
    }
    let address = Address {
        account: account.to_owned(),
        container: container.to_owned(),
        endpoint: std::env::var(ENDPOINT_VARIABLE).ok().filter(|endpoint| !endpoint.is_empty()),
    };
    let container = Container::open(address, &Credential::Environment)?;
    Ok(Listing { container: Arc::new(container), prefix: parts.next().unwrap_or_default().to_owned() })
}

/// Whether the URL is that of a whole container: of a storage account, with no more than the container's name, or with a `/` at the
/// end. Anything else is one file.
fn container_of_url(url: &Url) -> anyhow::Result<Option<Listing>> {
    let host = url.host_str().unwrap_or_default();
    let Some((account, "blob")) =
        host.split_once('.').map(|(account, rest)| (account, rest.split('.').next().unwrap_or_default()))
    else {
        return Ok(None);
    };
    let path = url.path().trim_start_matches('/');
    let (container, prefix) = path.split_once('/').unwrap_or((path, ""));
    if container.is_empty() || !(prefix.is_empty() || prefix.ends_with('/')) {
        return Ok(None);
    }
    let credential = match url.query() {
        Some(query) if query.contains("sig=") => Credential::Sas(query.to_owned()),
        _ => Credential::Environment,
    };
    let address = Address { account: account.to_owned(), container: container.to_owned(), endpoint: Some(origin(url)) };
    let container = Container::open(address, &credential)?;
    Ok(Some(Listing { container: Arc::new(container), prefix: prefix.to_owned() }))
}

/// Scheme, host and port of the URL.
fn origin(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

/// The URL without user, query and fragment.
fn shown(url: &Url) -> String {
    format!("{}{}", origin(url), url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(typed: &[String]) -> Vec<String> {
        let network = Network::new().unwrap();
        find(typed, &network).unwrap().into_iter().map(|source| source.name).collect()
    }

    #[test]
    fn directories_and_patterns_give_each_flow_log_once_by_hour_then_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let late = root.join("a/y=2026/m=11/d=21/h=10/m=00/macAddress=00224800000A/PT1H.json");
        let early = root.join("z/y=2026/m=11/d=21/h=09/m=00/macAddress=00224800000B/PT1H.json");
        for path in [&late, &early, &root.join("nta.csv"), &root.join("old.json.gz"), &root.join("notes.txt")] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let expected: Vec<String> =
            [&root.join("nta.csv"), &root.join("old.json.gz"), &early, &late].map(|path| path.display().to_string()).to_vec();
        let typed = |what: &str| root.join(what).display().to_string();
        assert_eq!(names(&[typed("")]), expected);
        assert_eq!(names(&[typed("*/y=2026/m=11/*/*/*/*/PT1H.json"), typed("nta.csv"), typed("")]), expected);
        // A file that is named is read whatever its name.
        assert_eq!(names(&[typed("notes.txt")]), [typed("notes.txt")]);
        let network = Network::new().unwrap();
        let mistake = |what: &str| find(&[typed(what)], &network).unwrap_err().to_string();
        assert!(mistake("*.parquet").starts_with("no file matches"));
        assert!(mistake("nothing.json").ends_with("nothing.json does not exist"));
    }

    #[test]
    fn a_url_is_known_without_its_signature() {
        let names =
            |sas: &str| names(&[format!("https://acct.example.org/c/y=2026/m=11/d=21/h=10/m=00/PT1H.json?sv=1&sig={sas}")]);
        assert_eq!(names("ONE"), names("TWO"));
        assert_eq!(names("ONE"), ["https://acct.example.org/c/y=2026/m=11/d=21/h=10/m=00/PT1H.json"]);
    }

    #[test]
    fn the_url_of_a_container_is_told_from_that_of_a_blob() {
        let is_container = |url: &str| container_of_url(&Url::parse(url).unwrap()).unwrap().map(|listing| listing.prefix);
        assert_eq!(is_container("https://acct.blob.core.windows.net/logs?sig=x"), Some(String::new()));
        assert_eq!(is_container("https://acct.blob.core.windows.net/logs/a=/b/?sig=x"), Some("a=/b/".to_owned()));
        assert_eq!(is_container("https://acct.blob.core.windows.net/logs/a/PT1H.json?sig=x"), None);
        assert_eq!(is_container("https://files.example.org/logs"), None);
    }
}
