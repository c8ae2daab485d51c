//! Following a container: the loop that reads what Azure appends, minute by minute, each row once.
//!
//! ```text
//! list the recent hours ▷ blocks of each blob that changed ▷ bytes behind the last record read ▷ records
//!      ▷ store: rows and how far each blob has been read, in one commit ▷ detectors
//! ```
//! An hour's document ends with a block of its own, `]}`, which Azure replaces when it appends. It is never read past: where a
//! blob goes on is behind the last whole record. The block list says whether everything before that place is still what it was;
//! where the credential does not permit to ask for it, the byte before that place must be the end of a record.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use object_store::ObjectMeta;
use object_store::path::Path;
use spanwatch_azure::Options;
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::time::Timestamp;
use spanwatch_common::wire::Batch;
use tokio::sync::watch;
use tokio::time::Instant;

use super::blob::{Address, BlobError, Blocks, Container};
use super::hour::BlobHour;
use super::secret::Credential;
use super::settings::AzureSettings;
use super::state::{self, BlobState, TailState};
use crate::ingest::recorded::Decoder;
use crate::ingest::{Outlets, stopped};
use crate::metrics::Vitals;
use crate::store::{Importer, StoreError, StoreSettings};

/// What the names begin with under which the store keeps how far containers have been read.
pub const IMPORT_PREFIX: &str = "azure-";
/// Rows that make a commit happen before a round is over.
const COMMIT_ROWS: usize = 100_000;
/// The folders above the hours are looked for anew this often: a flow log was added.
const ROOTS_INTERVAL: Duration = Duration::from_secs(600);
/// Flow logs in one container, and folders on the way to them.
const ROOTS_MAX: usize = 10_000;
/// Blobs whose duplicates are remembered from one round to the next.
const DECODERS_MAX: usize = 64;
/// How far back a duplicate is recognised in a blob.
const DUPLICATES_REMEMBERED: usize = 1 << 15;
/// The longest that trouble makes us wait.
const BACK_OFF_MAX: Duration = Duration::from_secs(300);
/// Follows the container of `settings` until `stopping` turns true.
pub async fn follow(
    settings: AzureSettings,
    store: StoreSettings,
    outlets: Outlets,
    vitals: Arc<Vitals>,
    clock: fn() -> Timestamp,
    mut stopping: watch::Receiver<bool>,
) {
    let name = settings.name.clone();
    let mut failures = 0_u32;
    let mut tail = None;
    loop {
        let result = tokio::select! {
            result = round(&mut tail, &settings, &store, &outlets, &vitals, clock) => result,
            () = stopped(&mut stopping) => return,
        };
        let interval = Duration::from_secs(settings.poll_interval_secs);
        let pause = match result {
            Ok(()) => {
                if std::mem::take(&mut failures) > 0 {
                    tracing::info!("azure {name}: works again");
                }
                vitals.azure(&name, |vitals| vitals.trouble = None);
                interval
            }
            Err(trouble) => {
                let sentence = super::secret::redact(&trouble.to_string());
                vitals.azure(&name, |vitals| {
                    vitals.failed_rounds += 1;
                    if vitals.trouble.as_ref() != Some(&sentence) {
                        tracing::warn!("azure {name}: {sentence}");
                    }
                    vitals.trouble = Some(sentence);
                });
                failures += 1;
                interval.max(Duration::from_secs(1 << failures.min(10))).min(BACK_OFF_MAX)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopped(&mut stopping) => return,
        }
    }
}

/// Why a round could not be completed.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// Opens what is not open yet, and reads everything that is new.
async fn round(
    tail: &mut Option<Tail>,
    settings: &AzureSettings,
    store: &StoreSettings,
    outlets: &Outlets,
    vitals: &Arc<Vitals>,
    clock: fn() -> Timestamp,
) -> Result<(), Trouble> {
    if tail.is_none() {
        let (importer, state) = Importer::open(store.clone(), &format!("{IMPORT_PREFIX}{}", settings.name)).await?;
        let state = state.map(|state| state::from_bytes(&state)).transpose()?.unwrap_or_default();
        *tail = Some(Tail::new(settings.clone(), importer, state, outlets.clone(), Arc::clone(vitals)));
    }
    let Some(tail) = tail else { return Ok(()) };
    // What an earlier commit could not store comes first.
    tail.commit().await?;
    let result = tail.round(clock).await;
    // What was read before trouble came is as good as any.
    let committed = tail.commit().await;
    if result.is_err() {
        // Decoders may have taken bytes that did not come to records; they are read again.
        tail.decoders.clear();
    }
    result.and(committed)
}

struct Tail {
    settings: AzureSettings,
    importer: Importer,
    state: TailState,
    /// What the store knows of it.
    committed: TailState,
    outlets: Outlets,
    vitals: Arc<Vitals>,
    container: Option<(Credential, Container)>,
    /// The folders whose children are years, and when they were looked for.
    roots: Vec<Path>,
    roots_found: Option<Instant>,
    /// Whether block lists may be asked for; looked at again with the roots.
    may_list_blocks: bool,
    /// They remember the duplicates of the blobs that were read last.
    decoders: HashMap<String, Kept>,
    rounds: u64,
    /// Read, not yet with the importer.
    rows: Vec<FlowRecord>,
    /// With the importer, not yet shown to the detectors.
    unseen: Vec<FlowRecord>,
    newest: Timestamp,
}

/// A decoder that may be asked again.
struct Kept {
    decoder: Decoder,
    used: u64,
}

impl Tail {
    fn new(settings: AzureSettings, importer: Importer, state: TailState, outlets: Outlets, vitals: Arc<Vitals>) -> Self {
        Self {
            settings,
            importer,
            committed: state.clone(),
            state,
            outlets,
            vitals,
            container: None,
            roots: Vec::new(),
            roots_found: None,
            may_list_blocks: true,
            decoders: HashMap::new(),
            rounds: 0,
            rows: Vec::new(),
            unseen: Vec::new(),
            newest: Timestamp::NONE,
        }
    }

    async fn round(&mut self, clock: fn() -> Timestamp) -> Result<(), Trouble> {
        self.rounds += 1;
        self.open()?;
        self.find_roots().await?;
        let current = BlobHour::of(clock());
        let mut waiting = 0;
        for hour in self.state.hours(current, self.settings.hours_back, self.settings.catch_up_hours_max) {
            let mut found = self.blobs_of(hour).await?;
            found.sort_by(|a, b| a.location.cmp(&b.location));
            for blob in found {
                if !self.state.blobs.contains_key(blob.location.as_ref()) && self.state.blobs.len() >= self.settings.blobs_max {
                    waiting += 1;
                    continue;
                }
                self.read(&blob).await?;
            }
        }
        self.state.looked_at(current, self.settings.hours_back);
        self.commit().await?;
        let (now, newest) = (clock(), self.newest);
        let (blobs, refused) = (self.state.blobs.len(), self.state.blobs.values().filter(|blob| blob.refused).count());
        let held_back = self.state.blobs.values().map(|blob| blob.held_back).sum();
        self.vitals.azure(&self.settings.name, |vitals| {
            (vitals.blobs, vitals.blobs_waiting, vitals.refused) = (blobs as u64, waiting, refused as u64);
            vitals.held_back = held_back;
            vitals.rounds += 1;
            if newest.is_some() {
                vitals.lag_secs = now.since(newest).as_secs();
            }
        });
        Ok(())
    }

    /// Opens the container, again when the credential file has changed.
    fn open(&mut self) -> Result<(), Trouble> {
        let file = &self.settings.credential_file;
        let credential = match file.as_os_str().is_empty() {
            true => Credential::Environment,
            false => Credential::read(file)?,
        };
        if self.container.as_ref().is_none_or(|(known, _)| *known != credential) {
            let endpoint = Some(self.settings.endpoint.trim_end_matches('/').to_owned()).filter(|endpoint| !endpoint.is_empty());
            let address =
                Address { account: self.settings.account.clone(), container: self.settings.container.clone(), endpoint };
            self.container = Some((credential.clone(), Container::open(address, &credential)?));
            self.may_list_blocks = true;
        }
        Ok(())
    }

    fn container(&self) -> Result<&Container, Trouble> {
        self.container.as_ref().map(|(_, container)| container).ok_or_else(|| anyhow::anyhow!("the container is not open").into())
    }

    /// Finds the folders right above `y=…`, so that an hour can be listed without listing the years.
    async fn find_roots(&mut self) -> Result<(), Trouble> {
        if self.roots_found.is_some_and(|found| found.elapsed() < ROOTS_INTERVAL) && !self.roots.is_empty() {
            return Ok(());
        }
        let prefix = self.settings.prefix.trim_matches('/');
        let start = match prefix.is_empty() {
            true => None,
            false => Some(Path::parse(prefix).map_err(|error| anyhow::anyhow!("prefix: {error}"))?),
        };
        let mut roots = Vec::new();
        let mut folders = vec![start];
        let mut looked_at = 0;
        while let Some(folder) = folders.pop() {
            looked_at += 1;
            if looked_at > ROOTS_MAX {
                return Err(anyhow::anyhow!("more than {ROOTS_MAX} folders lead to flow logs; set a prefix").into());
            }
            let children = self.container()?.folders(folder.as_ref()).await?;
            if children.iter().any(|child| child.filename().is_some_and(|name| name.starts_with("y="))) {
                roots.push(folder.unwrap_or_default());
            } else {
                folders.extend(children.into_iter().map(Some));
            }
        }
        roots.sort();
        self.roots = roots;
        self.roots_found = Some(now());
        self.may_list_blocks = true;
        Ok(())
    }

    async fn blobs_of(&self, hour: BlobHour) -> Result<Vec<ObjectMeta>, Trouble> {
        let mut found = Vec::new();
        for root in &self.roots {
            let path = match root.as_ref() {
                "" => hour.to_string(),
                root => format!("{root}/{hour}"),
            };
            let path = Path::parse(&path).map_err(|error| anyhow::anyhow!("{path}: {error}"))?;
            let mut blobs = self.container()?.list(Some(&path));
            while let Some(blob) = blobs.next().await {
                let blob = blob?;
                if blob.location.filename().is_some_and(is_log) {
                    found.push(blob);
                }
            }
        }
        Ok(found)
    }

    /// Reads what is new in a blob, if anything is.
    async fn read(&mut self, blob: &ObjectMeta) -> Result<(), Trouble> {
        let path = blob.location.as_ref().to_owned();
        let known = self.state.blobs.get(&path);
        let listed = unquoted(blob.e_tag.as_deref());
        if known.is_some_and(|known| known.e_tag.is_some() && known.e_tag == listed) {
            return Ok(());
        }
        let mut known = known.cloned().unwrap_or_default();
        let blocks = self.blocks(&blob.location).await?;
        if self.was_replaced(blob, &known, blocks.as_ref()).await? {
            tracing::warn!("azure {}: {path} has been replaced; it is read anew", self.settings.name);
            self.vitals.azure(&self.settings.name, |vitals| vitals.replaced += 1);
            known = BlobState::default();
            self.decoders.remove(&path);
        }
        if known.refused {
            known.e_tag = listed;
            self.state.blobs.insert(path, known);
            return Ok(());
        }
        let (to, version) = match &blocks {
            Some(blocks) => (Some(blocks.data_len()), blocks.e_tag.clone()),
            None => (None, None),
        };
        let from = known.resume.byte_offset;
        let mut complete = BlobState { e_tag: listed, ..known.clone() };
        if to.unwrap_or(blob.size) > from {
            let fetched = match self.container()?.get(&blob.location, from, to, version).await {
                // Azure appended between the two requests: the next round reads it.
                Err(BlobError::Changed) => return Ok(()),
                other => other?,
            };
            complete.e_tag = unquoted(fetched.e_tag.as_deref());
            let Some(decoder) = self.decode(&path, &known, fetched.body).await? else { return Ok(()) };
            (complete.resume, complete.held_back) = (decoder.resume_point(), decoder.part().held_back);
            self.keep(&path, decoder);
        }
        complete.last_block = blocks.as_ref().and_then(Blocks::last).map(|(id, end)| (id.to_owned(), end));
        self.state.blobs.insert(path, complete);
        Ok(())
    }

    /// The blocks of a blob; none where that may not be asked.
    async fn blocks(&mut self, path: &Path) -> Result<Option<Blocks>, Trouble> {
        if !self.may_list_blocks {
            return Ok(None);
        }
        match self.container()?.blocks(path).await {
            Ok(blocks) if blocks.blocks.is_empty() => Ok(None), // put as a whole: it has no blocks
            Ok(blocks) => Ok(Some(blocks)),
            Err(error @ (BlobError::Clock | BlobError::Busy(_))) => Err(error.into()),
            Err(error) => {
                tracing::info!("azure {}: block lists are not to be had ({error}); going by byte offsets", self.settings.name);
                self.may_list_blocks = false;
                Ok(None)
            }
        }
    }

    /// Whether what was read of the blob is no longer what it begins with.
    async fn was_replaced(&self, blob: &ObjectMeta, known: &BlobState, blocks: Option<&Blocks>) -> Result<bool, Trouble> {
        let offset = known.resume.byte_offset;
        if offset == 0 {
            return Ok(false);
        }
        if blob.size < offset {
            return Ok(true);
        }
        if let (Some(blocks), Some((id, end))) = (blocks, &known.last_block) {
            return Ok(blocks.end_of(id) != Some(*end));
        }
        let mut before = self.container()?.get(&blob.location, offset - 1, Some(offset), None).await?.body;
        while let Some(bytes) = before.next().await {
            if let Some(byte) = bytes?.first() {
                return Ok(*byte != b'}');
            }
        }
        Ok(false)
    }

    /// Turns the bytes into records and takes note of how far they reach. None when the blob holds what we cannot read.
    async fn decode(
        &mut self,
        path: &str,
        known: &BlobState,
        mut body: futures::stream::BoxStream<'static, Result<bytes::Bytes, BlobError>>,
    ) -> Result<Option<Decoder>, Trouble> {
        let options =
            Options { ta_parity: self.settings.ta_parity, duplicates_remembered: DUPLICATES_REMEMBERED, ..Options::default() };
        let name = format!("{}/{path}", self.container()?.name());
        let mut decoder = match self.decoders.remove(path) {
            Some(mut kept) => {
                kept.decoder.rewind();
                kept.decoder
            }
            None => Decoder::resume(&name, options, known.resume.clone()),
        };
        let before = decoder.part();
        let mut blob = known.clone();
        blob.e_tag = None;
        let refused = loop {
            let piece = body.next().await.transpose()?;
            let rows = &mut self.rows;
            let result = match &piece {
                Some(piece) => decoder.push(piece, &mut |_, record| rows.push(record)),
                None => decoder.finish(&mut |_, record| rows.push(record)),
            };
            blob.resume = decoder.resume_point();
            self.state.blobs.insert(path.to_owned(), blob.clone());
            if let Err(error) = result {
                break Some(error);
            }
            if piece.is_none() {
                break None;
            }
            self.hand_over().await?;
        };
        let part = decoder.part();
        self.vitals.azure(&self.settings.name, |vitals| {
            vitals.bytes += part.bytes - before.bytes;
            vitals.duplicates += part.duplicates - before.duplicates;
        });
        self.hand_over().await?;
        match refused {
            None => Ok(Some(decoder)),
            Some(error) => {
                tracing::warn!("azure {}: {error}; the blob is left out from here on", self.settings.name);
                self.state.blobs.insert(path.to_owned(), BlobState { refused: true, ..blob });
                Ok(None)
            }
        }
    }

    /// Keeps a decoder for the next round, and lets the one go that was not needed for the longest.
    fn keep(&mut self, path: &str, decoder: Decoder) {
        self.decoders.insert(path.to_owned(), Kept { decoder, used: self.rounds });
        if self.decoders.len() > DECODERS_MAX
            && let Some(oldest) = self.decoders.iter().min_by_key(|(_, kept)| kept.used).map(|(path, _)| path.clone())
        {
            self.decoders.remove(&oldest);
        }
    }

    /// Gives the rows to the importer, and commits when they are many.
    async fn hand_over(&mut self) -> Result<(), Trouble> {
        if self.rows.len() + self.unseen.len() >= COMMIT_ROWS {
            self.commit().await?;
        }
        Ok(())
    }

    /// Makes the rows durable together with how far each blob has been read, then shows them to the detectors.
    async fn commit(&mut self) -> Result<(), Trouble> {
        if self.rows.is_empty() && self.importer.buffered_rows() == 0 && self.state == self.committed {
            return Ok(());
        }
        let turn = self.outlets.import_turn().await;
        let rows = std::mem::take(&mut self.rows);
        if !rows.is_empty() {
            let copy = rows.clone();
            if let Err(rows) = self.importer.push(rows) {
                // An earlier commit failed, and nothing more is read until it succeeds; the state must not run ahead of the rows.
                self.rows = rows;
                return Err(anyhow::anyhow!("the store takes no more rows until a commit succeeds").into());
            }
            self.unseen.extend(copy);
        }
        self.importer.commit(&state::to_bytes(&self.state)).await?;
        self.committed.clone_from(&self.state);
        let seen = std::mem::take(&mut self.unseen);
        let newest = seen.iter().map(FlowRecord::first).max().unwrap_or(Timestamp::NONE);
        self.newest = self.newest.max(newest);
        self.vitals.azure(&self.settings.name, |vitals| vitals.rows += seen.len() as u64);
        if !seen.is_empty() {
            // A record of Azure's names its own observer; the batch's name is only for those that do not.
            turn.watch(Arc::new(Batch { sensor: self.settings.name.clone(), records: seen, ..Batch::default() })).await;
        }
        Ok(())
    }
}

/// Headers put a version in quotes, lists do not.
fn unquoted(e_tag: Option<&str>) -> Option<String> {
    e_tag.map(|tag| tag.trim_matches('"').to_owned())
}

#[expect(clippy::disallowed_methods, reason = "this loop owns the requests, and when it last looked for folders")]
fn now() -> Instant {
    Instant::now()
}

/// What a blob of logs is called: `PT1H.json` for flow logs, `PT05M.json` for a table that Log Analytics exports.
fn is_log(name: &str) -> bool {
    name.starts_with("PT") && name.ends_with(".json")
}
