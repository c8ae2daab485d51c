//! From a source to its bytes: one `Read`, whether they lie in a file, come through a pipe or over the network; unpacked if they
//! are compressed, and from any offset. Nothing is ever held as a whole.

use std::fs::File;
use std::future::Future;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::header::{CONTENT_RANGE, ETAG, IF_MATCH, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use tokio::runtime::Runtime;

use super::blob::BlobError;
use super::source::{Place, Source};

/// So many first bytes tell whether a file is still the one that was read before.
pub const HEAD_LEN: usize = 4096;
/// Bytes asked for at once.
const PIECE: usize = 1 << 18;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A server may be silent for so long in the middle of a file.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// Requests for one file, the first included, before it is given up. Each that brings bytes starts the count anew.
const ATTEMPTS_MAX: u32 = 5;
const BACK_OFF: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// What sources over the network need: a runtime that drives them while somebody waits for bytes.
#[derive(Debug)]
pub struct Network {
    runtime: Runtime,
    http: OnceLock<reqwest::Client>,
}

impl Network {
    /// Starts the runtime. Nothing is connected before the first source needs it.
    ///
    /// # Errors
    /// The system gives no thread or no event queue.
    pub fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self { runtime, http: OnceLock::new() })
    }

    /// Waits for `deed` on this thread, which must not be one of a runtime.
    pub fn wait<T>(&self, deed: impl Future<Output = T>) -> T {
        self.runtime.block_on(deed)
    }

    fn http(&self) -> io::Result<&reqwest::Client> {
        if let Some(client) = self.http.get() {
            return Ok(client);
        }
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(SILENCE_LIMIT)
            .build()
            .map_err(|error| io::Error::other(error.without_url()))?;
        Ok(self.http.get_or_init(|| client))
    }
}

/// How a source is compressed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

/// A source whose first bytes are known.
pub struct Opened {
    /// The first bytes, unpacked; fewer than [`HEAD_LEN`] only when there are no more.
    pub head: Vec<u8>,
    /// Whether it is compressed, with gzip or zstd.
    pub is_packed: bool,
    /// Behind the head.
    body: Box<dyn Read>,
    source: Source,
    network: Arc<Network>,
    taken: Arc<AtomicU64>,
}

/// Opens `source` and looks at its beginning. `taken` counts the bytes that come in, compressed as they are.
///
/// # Errors
/// It cannot be read, with a reason that names no secret.
pub fn open(source: &Source, network: &Arc<Network>, taken: &Arc<AtomicU64>) -> io::Result<Opened> {
    let mut raw = body(source, network, taken, 0)?;
    let mut magic = Vec::with_capacity(4);
    raw.by_ref().take(4).read_to_end(&mut magic)?;
    let packing = match magic.as_slice() {
        [0x1f, 0x8b, ..] => Packing::Gzip,         // RFC 1952 §2.3.1
        [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd, // RFC 8878 §3.1.1
        _ => Packing::None,
    };
    let whole = Read::chain(Cursor::new(magic), raw);
    let mut body: Box<dyn Read> = match packing {
        Packing::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(PIECE, whole))),
        Packing::Zstd => Box::new(zstd::Decoder::new(whole)?),
        Packing::None => Box::new(whole),
    };
    let is_packed = packing != Packing::None;
    let mut head = Vec::with_capacity(HEAD_LEN);
    body.by_ref().take(HEAD_LEN as u64).read_to_end(&mut head)?;
    Ok(Opened { head, is_packed, body, source: source.clone(), network: Arc::clone(network), taken: Arc::clone(taken) })
}

impl Opened {
    /// The (unpacked) bytes from `offset` on. What can be passed over without reading is.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn from(self, offset: u64) -> io::Result<Box<dyn Read>> {
        let can_jump = !self.is_packed && !self.source.is_standard_input();
        if can_jump && offset > self.head.len() as u64 {
            drop(self.body);
            return body(&self.source, &self.network, &self.taken, offset);
        }
        let mut whole = Read::chain(Cursor::new(self.head), self.body);
        io::copy(&mut whole.by_ref().take(offset), &mut io::sink())?;
        Ok(Box::new(whole))
    }
}

/// The raw bytes of a source from `offset` on.
fn body(source: &Source, network: &Arc<Network>, taken: &Arc<AtomicU64>, offset: u64) -> io::Result<Box<dyn Read>> {
    let inner: Box<dyn Read> = match &source.place {
        Place::StandardInput => Box::new(io::stdin()),
        Place::File(path) => {
            let mut file = File::open(path)?;
            if offset > 0 {
                file.seek(SeekFrom::Start(offset))?;
            }
            Box::new(file)
        }
        Place::Url(url) => Box::new(UrlBody::open(url.clone(), Arc::clone(network), offset)?),
        Place::Blob(container, path) => {
            let fetched = network.wait(container.get(path, offset, None, None)).map_err(io::Error::other)?;
            Box::new(BlobBody { stream: fetched.body, network: Arc::clone(network), piece: Bytes::new() })
        }
    };
    Ok(Box::new(Counted { inner, taken: Arc::clone(taken) }))
}

struct Counted<R> {
    inner: R,
    taken: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// As much of `piece` as there is room for.
fn hand_over(piece: &mut Bytes, buffer: &mut [u8]) -> usize {
    let count = piece.len().min(buffer.len());
    piece.copy_to_slice(&mut buffer[..count]);
    count
}

/// A blob; the library behind the stream tries again by itself.
struct BlobBody {
    stream: BoxStream<'static, Result<Bytes, BlobError>>,
    network: Arc<Network>,
    piece: Bytes,
}

impl Read for BlobBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.network.wait(self.stream.next()) {
                Some(piece) => self.piece = piece.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        Ok(hand_over(&mut self.piece, buffer))
    }
}

/// A file on a web server. A connection that breaks is made again from where it broke, if the file is still the same.
struct UrlBody {
    url: Url,
    network: Arc<Network>,
    /// Bytes of the file handed over, or passed over.
    position: u64,
    version: Option<String>,
    response: Option<Response>,
    piece: Bytes,
    attempts: u32,
}

/// What a request came to.
enum Answer {
    Body(Response),
    /// There is nothing behind the offset.
    End,
    /// Worth another attempt, after this time.
    Later(Duration, String),
    Never(String),
}

impl UrlBody {
    fn open(url: Url, network: Arc<Network>, offset: u64) -> io::Result<Self> {
        let mut body = Self { url, network, position: offset, version: None, response: None, piece: Bytes::new(), attempts: 0 };
        body.connect()?;
        Ok(body)
    }

    /// Asks until there is an answer. None in `response` afterwards means the end of the file.
    fn connect(&mut self) -> io::Result<()> {
        loop {
            self.attempts += 1;
            match self.network.wait(self.ask())? {
                Answer::Body(response) => {
                    let version = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
                    // A server that does not know ranges sends all of it again.
                    let behind = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { self.position };
                    self.version = self.version.take().or(version);
                    self.response = Some(response);
                    return self.pass_over(behind);
                }
                Answer::End => {
                    self.response = None;
                    return Ok(());
                }
                Answer::Later(pause, why) if self.attempts < ATTEMPTS_MAX => {
                    tracing::info!("{why}; trying again in {:.1} s", pause.as_secs_f64());
                    // The timer needs the runtime around it when it is made.
                    self.network.wait(async { tokio::time::sleep(pause).await });
                }
                Answer::Later(_, why) => return Err(io::Error::other(format!("{why}, {ATTEMPTS_MAX} times; try again later"))),
                Answer::Never(why) => return Err(io::Error::other(why)),
            }
        }
    }

    async fn ask(&self) -> io::Result<Answer> {
        let pause = (BACK_OFF * 2_u32.saturating_pow(self.attempts.saturating_sub(1))).min(BACK_OFF_MAX);
        let mut request = self.network.http()?.get(self.url.clone());
        if self.position > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.position));
            if let Some(version) = &self.version {
                request = request.header(IF_MATCH, version);
            }
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Ok(Answer::Later(pause, super::whole(&error.without_url()))),
        };
        let status = response.status();
        let wanted = response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
        Ok(match status {
            StatusCode::OK => Answer::Body(response),
            StatusCode::PARTIAL_CONTENT if begins_at(&response, self.position) => Answer::Body(response),
            StatusCode::PARTIAL_CONTENT => Answer::Never("the server sent another part than was asked for".to_owned()),
            StatusCode::RANGE_NOT_SATISFIABLE => Answer::End,
            StatusCode::NOT_FOUND | StatusCode::GONE => Answer::Never("the server has no such file (404)".to_owned()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Answer::Never(format!(
                "the server does not permit it ({}); is the SAS complete, and not expired?",
                status.as_u16()
            )),
            StatusCode::PRECONDITION_FAILED => Answer::Never("the file changed while it was read; read it again".to_owned()),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                let pause = wanted.map_or(pause, Duration::from_secs).min(BACK_OFF_MAX);
                Answer::Later(pause, format!("the server is busy or broken ({})", status.as_u16()))
            }
            status => Answer::Never(format!("the server answered {}", status.as_u16())),
        })
    }

    /// The next bytes of the body that is under way; empty at its end.
    fn next_piece(&mut self) -> io::Result<Bytes> {
        loop {
            let Some(response) = &mut self.response else { return Ok(Bytes::new()) };
            match self.network.wait(response.chunk()) {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => {
                    self.attempts = 0;
                    return Ok(piece);
                }
                Ok(None) => {
                    self.response = None;
                    return Ok(Bytes::new());
                }
                Err(error) if self.attempts >= ATTEMPTS_MAX => return Err(io::Error::other(super::whole(&error.without_url()))),
                Err(error) => {
                    tracing::info!("the connection broke at byte {}: {}", self.position, super::whole(&error.without_url()));
                    self.connect()?;
                    if !self.piece.is_empty() {
                        return Ok(std::mem::take(&mut self.piece));
                    }
                }
            }
        }
    }

    fn pass_over(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let mut piece = match self.response.as_mut().map(|response| self.network.wait(response.chunk())) {
                Some(Ok(Some(piece))) => piece,
                _ => return Err(io::Error::other("the server knows no ranges, and the file ended before the place to go on")),
            };
            let passed = count.min(piece.len() as u64);
            piece.advance(usize::try_from(passed).unwrap_or(usize::MAX));
            self.piece = piece;
            count -= passed;
        }
        Ok(())
    }
}

impl Read for UrlBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            self.piece = self.next_piece()?;
        }
        let count = hand_over(&mut self.piece, buffer);
        self.position += count as u64;
        Ok(count)
    }
}

fn begins_at(response: &Response, position: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.trim().strip_prefix("bytes ").is_some_and(|rest| rest.starts_with(&format!("{position}-"))))
}
