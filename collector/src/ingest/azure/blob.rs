//! A container of Blob Storage: listing, reading from an offset, and the list of blocks that a blob is made of.
//!
//! `object_store` does everything but the block list, which is one request more with the same credential.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::azure::{AzureAuthorizer, AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, RetryConfig};
use reqwest::{StatusCode, Url};

use super::secret::{Credential, redact};
use super::whole;

/// Requests are tried again within this time; what lasts longer is told.
const RETRY_LIMIT: Duration = Duration::from_secs(20);
const RETRIES_MAX: usize = 4;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A request may take so long: an hour of a busy interface over a slow line.
const REQUEST_LIMIT: Duration = Duration::from_secs(600);
/// Longest block list: 50,000 blocks, the most that a blob has, of 200 bytes.
const BLOCK_LIST_MAX: usize = 16 << 20;

/// Why Blob Storage did not give what was asked for, in a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// 404.
    #[error("{0} is not there: is the name right, and does the flow log write into this container?")]
    Missing(String),
    /// 401 or 403.
    #[error(
        "the credential does not permit to {0}: it needs to read and to list, and may have expired (for a SAS: sp=rl, se= in the future)"
    )]
    Forbidden(&'static str),
    /// Nothing to log in with.
    #[error(
        "there is no credential, and this machine has no identity in Azure: set AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_ACCOUNT_KEY \
         (in the settings: credential_file)"
    )]
    NoCredential,
    /// 403 because of the time.
    #[error(
        "the storage account refuses the time of this request: set the clock of this machine (chronyc tracking), or renew a SAS that is not valid now"
    )]
    Clock,
    /// 429 or 503.
    #[error("the storage account has no capacity for us at the moment ({0}); trying again, more slowly")]
    Busy(String),
    /// 412: it changed between two requests.
    #[error("the blob changed while it was read; trying again")]
    Changed,
    /// No answer at all.
    #[error("the storage account cannot be reached ({0}): are account, endpoint and proxy right, and is the way there open?")]
    Unreachable(String),
    /// An answer that makes no sense.
    #[error("{0}")]
    Other(String),
}

impl BlobError {
    fn of(error: &object_store::Error, deed: &'static str) -> Self {
        match error {
            object_store::Error::NotFound { path, .. } => Self::Missing(redact(path)),
            object_store::Error::Precondition { .. } | object_store::Error::NotModified { .. } => Self::Changed,
            other => {
                let denied =
                    matches!(other, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. });
                Self::said(&whole(other), denied, deed)
            }
        }
    }

    /// From what was said about a request that failed; the service's bodies name the reason.
    fn said(text: &str, denied: bool, deed: &'static str) -> Self {
        const CLOCK: [&str; 3] = ["date header", "not valid in the specified time frame", "RequestTimeTooSkewed"];
        const DENIED: [&str; 2] = ["403 Forbidden", "401 Unauthorized"];
        const BUSY: [&str; 4] = ["ServerBusy", "429 Too Many Requests", "503 Service Unavailable", "OperationTimedOut"];
        const SILENT: [&str; 2] = ["HTTP error", "error sending request"];
        let has = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
        // What the library puts before a ` - ` is how often it tried and how long it took. Bodies are XML of many lines, of which the
        // first says enough.
        let reason = || redact(text.rsplit(" - ").next().unwrap_or(text).lines().next().unwrap_or_default());
        if has(&["token request"]) {
            Self::NoCredential
        } else if has(&CLOCK) {
            Self::Clock
        } else if denied || has(&DENIED) {
            Self::Forbidden(deed)
        } else if has(&BUSY) {
            Self::Busy(if text.contains("429") { "429" } else { "503" }.to_owned())
        } else if has(&["ContainerNotFound"]) {
            Self::Missing("the container".to_owned())
        } else if has(&SILENT) {
            Self::Unreachable(reason())
        } else {
            Self::Other(format!("{deed}: {}", reason()))
        }
    }
}

/// One block of a block blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its id, in base64.
    pub id: String,
    /// Its length in bytes.
    pub len: u64,
}

/// The committed blocks of a blob, and of which version of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// The version.
    pub e_tag: Option<String>,
    /// In the order in which they make up the blob.
    pub blocks: Vec<Block>,
}

/// The id of the block with which Azure closes an hour's document: `Z` and 32 zeros. It is replaced at each append.
const CLOSER: &str = "WjAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw";

impl Blocks {
    /// Bytes of the blob before its closer `]}`.
    pub fn data_len(&self) -> u64 {
        self.data().map(|block| block.len).sum()
    }

    /// The last data block, with the offset at which it ends.
    pub fn last(&self) -> Option<(&str, u64)> {
        self.data().last().map(|block| (block.id.as_str(), self.data_len()))
    }

    /// Where the block `id` ends; none when the blob has no such block.
    pub fn end_of(&self, id: &str) -> Option<u64> {
        let mut end = 0;
        self.data().find_map(|block| {
            end += block.len;
            (block.id == id).then_some(end)
        })
    }

    fn data(&self) -> impl Iterator<Item = &Block> {
        let closed = self.blocks.last().is_some_and(|block| block.id == CLOSER);
        self.blocks.iter().take(self.blocks.len() - usize::from(closed))
    }

    /// From the XML of Get Block List. It knows no attributes, and ids are base64, so nothing in it is escaped.
    fn parse(xml: &str, e_tag: Option<String>) -> Option<Self> {
        let committed = match xml.split_once("<CommittedBlocks>") {
            Some((_, rest)) => rest.split_once("</CommittedBlocks>")?.0,
            None => xml.contains("<CommittedBlocks").then_some("")?,
        };
        let within = |text: &str, tag: &str| {
            let (_, rest) = text.split_once(&format!("<{tag}>"))?;
            Some(rest.split_once(&format!("</{tag}>"))?.0.trim().to_owned())
        };
        let block = |text| Some(Block { id: within(text, "Name")?, len: within(text, "Size")?.parse().ok()? });
        let blocks = committed.split("<Block>").skip(1).map(block).collect::<Option<_>>()?;
        Some(Self { e_tag, blocks })
    }
}

/// A blob, or a part of it, on its way.
pub struct Fetched {
    /// Which version of it.
    pub e_tag: Option<String>,
    /// Length of the whole blob.
    pub size: u64,
    /// The bytes.
    pub body: BoxStream<'static, Result<Bytes, BlobError>>,
}

/// Where a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Name of the storage account.
    pub account: String,
    /// Name of the container.
    pub container: String,
    /// `https://ACCOUNT.blob.core.windows.net` unless it says otherwise (other clouds, Azurite).
    pub endpoint: Option<String>,
}

impl Address {
    fn endpoint(&self) -> String {
        self.endpoint.clone().unwrap_or_else(|| format!("https://{}.blob.core.windows.net", self.account))
    }
}

/// An open container. Nothing is asked of the service before the first request.
#[derive(Debug)]
pub struct Container {
    store: MicrosoftAzure,
    address: Address,
    http: reqwest::Client,
}

impl Container {
    /// Prepares to speak with the container at `address`.
    ///
    /// # Errors
    /// The endpoint is no URL, or the credential is no credential.
    pub fn open(address: Address, credential: &Credential) -> anyhow::Result<Self> {
        let endpoint = address.endpoint();
        let client = ClientOptions::new().with_connect_timeout(CONNECT_LIMIT).with_timeout(REQUEST_LIMIT);
        let retry = RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_LIMIT, ..RetryConfig::default() };
        let builder = match credential {
            Credential::Environment => MicrosoftAzureBuilder::from_env(),
            Credential::Sas(token) => MicrosoftAzureBuilder::new().with_config(AzureConfigKey::SasKey, token),
            Credential::Key(key) => MicrosoftAzureBuilder::new().with_access_key(key),
        };
        let store = builder
            .with_client_options(client)
            .with_allow_http(endpoint.starts_with("http://"))
            .with_account(&address.account)
            .with_container_name(&address.container)
            .with_endpoint(endpoint)
            .with_retry(retry)
            .build()
            .map_err(|error| anyhow::anyhow!("{}", whole(&error)))
            .with_context(|| format!("open the container {} of {}", address.container, address.account))?;
        let http = reqwest::Client::builder().connect_timeout(CONNECT_LIMIT).timeout(REQUEST_LIMIT).build()?;
        Ok(Self { store, address, http })
    }

    /// Its name for people: `az://account/container`.
    pub fn name(&self) -> String {
        format!("az://{}/{}", self.address.account, self.address.container)
    }

    /// All blobs under `prefix`.
    pub fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, BlobError>> {
        self.store.list(prefix).map(|found| found.map_err(|error| BlobError::of(&error, "list the container"))).boxed()
    }

    /// The folders right under `prefix`, and whether there are blobs beside them.
    ///
    /// # Errors
    /// As the service says.
    pub async fn folders(&self, prefix: Option<&Path>) -> Result<Vec<Path>, BlobError> {
        let found = self.store.list_with_delimiter(prefix).await;
        found.map(|found| found.common_prefixes).map_err(|error| BlobError::of(&error, "list the container"))
    }

    /// The bytes of a blob from `from` up to `to` or its end; if `version` is given, of that version or not at all.
    ///
    /// # Errors
    /// [`BlobError::Changed`] if the version is another; otherwise as the service says.
    pub async fn get(&self, path: &Path, from: u64, to: Option<u64>, version: Option<String>) -> Result<Fetched, BlobError> {
        let range = match to {
            Some(to) => Some(GetRange::Bounded(from..to)),
            None => (from > 0).then_some(GetRange::Offset(from)),
        };
        let options = GetOptions { range, if_match: version, ..GetOptions::default() };
        let deed = "read a blob";
        let result = self.store.get_opts(path, options).await.map_err(|error| BlobError::of(&error, deed))?;
        let (e_tag, size) = (result.meta.e_tag.clone(), result.meta.size);
        let body = result.into_stream().map(move |bytes| bytes.map_err(|error| BlobError::of(&error, deed))).boxed();
        Ok(Fetched { e_tag, size, body })
    }

    /// The blocks that a blob is made of.
    ///
    /// # Errors
    /// As the service says. A blob that is no block blob, or a credential that may only read, gives an error too.
    pub async fn blocks(&self, path: &Path) -> Result<Blocks, BlobError> {
        let deed = "list the blocks of a blob";
        let other = |error: &dyn std::error::Error| BlobError::said(&whole(error), false, deed);
        let mut url = Url::parse(&self.address.endpoint()).map_err(|error| other(&error))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push(&self.address.container).extend(path.parts().map(|part| part.as_ref().to_owned()));
        }
        url.set_query(Some("comp=blocklist&blocklisttype=committed"));
        let mut request = HttpRequest::new(HttpRequestBody::from(Bytes::new()));
        *request.uri_mut() = url.as_str().parse().map_err(|error| other(&error))?;
        let credential = self.store.credentials().get_credential().await.map_err(|error| BlobError::of(&error, "log in"))?;
        AzureAuthorizer::new(&credential, &self.address.account).authorize(&mut request);

        let send = self.http.get(request.uri().to_string()).headers(request.headers().clone()).send();
        let mut response = send.await.map_err(|error| other(&error.without_url()))?;
        let status = response.status();
        let e_tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(|error| other(&error.without_url()))? {
            if body.len() + bytes.len() > BLOCK_LIST_MAX {
                return Err(BlobError::Other(format!("the block list of {path} is longer than any may be")));
            }
            body.extend_from_slice(&bytes);
        }
        let body = String::from_utf8_lossy(&body);
        match status {
            StatusCode::OK => Blocks::parse(&body, e_tag).ok_or_else(|| BlobError::Other(format!("{deed}: no block list came"))),
            StatusCode::NOT_FOUND => Err(BlobError::Missing(path.to_string())),
            StatusCode::PRECONDITION_FAILED => Err(BlobError::Changed),
            _ => {
                let denied = matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED);
                Err(BlobError::said(&format!("{status} {body}"), denied, deed))
            }
        }
    }
}

/// A container that several sources share.
pub type SharedContainer = Arc<Container>;

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList><CommittedBlocks>\
        <Block><Name>QTAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw</Name><Size>12</Size></Block>\
        <Block><Name>RDE=</Name><Size>100</Size></Block><Block><Name>RDI=</Name><Size>50</Size></Block>\
        <Block><Name>WjAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw</Name><Size>2</Size></Block></CommittedBlocks></BlockList>";

    #[test]
    fn the_closer_is_no_data() {
        let blocks = Blocks::parse(LIST, None).unwrap();
        assert_eq!((blocks.blocks.len(), blocks.data_len()), (4, 162));
        assert_eq!(blocks.last(), Some(("RDI=", 162)));
        assert_eq!((blocks.end_of("RDE="), blocks.end_of("RDM=")), (Some(112), None));
        assert_eq!(Blocks::parse("<BlockList><CommittedBlocks /></BlockList>", None), Some(Blocks::default()));
        assert_eq!(Blocks::parse("<html>", None), None);
    }

    #[test]
    fn what_the_service_says_becomes_a_sentence_that_says_what_to_do() {
        let said = |text, denied| BlobError::said(text, denied, "read a blob").to_string();
        assert!(said("403 AuthenticationFailed: Signature not valid in the specified time frame", true).contains("clock"));
        assert!(said("403 AuthorizationPermissionMismatch", true).contains("sp=rl"));
        assert!(said("429 Too Many Requests", false).contains("capacity"));
        assert!(
            said("Error performing GET REDACTED in 1.0ms - Server returned non-2xx status code: 403 Forbidden: <Error>", false)
                .contains("sp=rl")
        );
        // The same trouble gives the same sentence, however long it took.
        let refused = said(
            "GET REDACTED in 5.1s, after 4 retries - HTTP error: error sending request for https://a.example/c?sig=SECRET : refused\n<xml>",
            false,
        );
        assert_eq!(
            refused,
            BlobError::Unreachable("HTTP error: error sending request for https://a.example/c : refused".to_owned()).to_string()
        );
    }
}
