//! A small Blob service, and flow logs to put into it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode};
use futures::stream;

/// The id of the first block of an hour's document, and that of its last.
const OPENER: &str = "QTAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw";
const CLOSER: &str = "WjAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw";
/// The signature that must never be seen again.
pub(crate) const SIGNATURE: &str = "TOPSECRETSIGNATURE";

/// What the service holds, and how it misbehaves.
#[derive(Default)]
pub(crate) struct Shelf {
    blobs: BTreeMap<String, Blob>,
    /// So many requests are answered with this status before all is well again.
    pub(crate) failures: Option<(u32, u16)>,
    /// So many bodies break off in the middle.
    pub(crate) breaks: u32,
    /// Block lists are not permitted.
    pub(crate) no_block_lists: bool,
    /// Requests answered, by what they asked for.
    pub(crate) asked: BTreeMap<&'static str, u32>,
    version: u32,
}

#[derive(Clone, Default)]
struct Blob {
    blocks: Vec<(String, Vec<u8>)>,
    version: u32,
}

impl Blob {
    fn bytes(&self) -> Vec<u8> {
        self.blocks.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }
}

impl Shelf {
    /// Puts a blob as a whole.
    pub(crate) fn put(&mut self, path: &str, bytes: &[u8]) {
        self.version += 1;
        self.blobs.insert(path.to_owned(), Blob { blocks: vec![(String::new(), bytes.to_vec())], version: self.version });
    }

    /// Appends records to an hour's document as Azure does: one block before the closer, which is replaced.
    pub(crate) fn append(&mut self, path: &str, records: &str) {
        self.version += 1;
        let version = self.version;
        let blob = self.blobs.entry(path.to_owned()).or_default();
        blob.version = version;
        if blob.blocks.is_empty() {
            blob.blocks.push((OPENER.to_owned(), b"{\"records\":[".to_vec()));
            blob.blocks.push((format!("RDAw{version:08}"), records.as_bytes().to_vec()));
        } else {
            blob.blocks.pop();
            blob.blocks.push((format!("RDAw{version:08}"), format!(",{records}").into_bytes()));
        }
        blob.blocks.push((CLOSER.to_owned(), b"]}".to_vec()));
    }

    /// Another document takes the place of this one.
    pub(crate) fn remove(&mut self, path: &str) {
        self.blobs.remove(path);
    }
}

/// A running service.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
    _runtime: tokio::runtime::Runtime,
}

impl Service {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shelf));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, shelf, _runtime: runtime }
    }

    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap()
    }
}

/// Answers like Blob Storage: List Blobs, Get Block List, Get Blob. A request without the signature is not permitted.
async fn answer(State(shelf): State<Arc<Mutex<Shelf>>>, request: Request) -> Response<Body> {
    let mut shelf = shelf.lock().unwrap();
    let query: BTreeMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decoded(value)))
        .collect();
    if query.get("sig").map(String::as_str) != Some(SIGNATURE) {
        return status(403, "<Error><Code>AuthenticationFailed</Code></Error>");
    }
    if let Some((left, code)) = shelf.failures.filter(|(left, _)| *left > 0) {
        shelf.failures = Some((left - 1, code));
        return status(code, "<Error><Code>ServerBusy</Code></Error>");
    }
    let path = decoded(request.uri().path());
    let blob_path = path.trim_start_matches('/').split_once('/').map_or("", |(_container, path)| path).to_owned();
    match query.get("comp").map(String::as_str) {
        Some("list") => {
            *shelf.asked.entry("list").or_default() += 1;
            list(&shelf, query.get("prefix").map_or("", String::as_str), query.contains_key("delimiter"))
        }
        Some("blocklist") => {
            *shelf.asked.entry("blocks").or_default() += 1;
            match shelf.blobs.get(&blob_path) {
                _ if shelf.no_block_lists => status(403, "<Error><Code>AuthorizationPermissionMismatch</Code></Error>"),
                None => status(404, "<Error><Code>BlobNotFound</Code></Error>"),
                Some(blob) => block_list(blob),
            }
        }
        _ => {
            *shelf.asked.entry("get").or_default() += 1;
            let breaks = shelf.breaks > 0;
            shelf.breaks = shelf.breaks.saturating_sub(1);
            match shelf.blobs.get(&blob_path) {
                None => status(404, "<Error><Code>BlobNotFound</Code></Error>"),
                Some(blob) => get(blob, request.headers(), breaks),
            }
        }
    }
}

fn status(code: u16, body: &'static str) -> Response<Body> {
    Response::builder().status(code).body(Body::from(body)).unwrap()
}

fn list(shelf: &Shelf, prefix: &str, by_folder: bool) -> Response<Body> {
    let mut xml = String::from("\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs>");
    let mut folders = Vec::new();
    for (path, blob) in shelf.blobs.range(prefix.to_owned()..).take_while(|(path, _)| path.starts_with(prefix)) {
        match path[prefix.len()..].split_once('/') {
            Some((folder, _)) if by_folder => folders.push(format!("{prefix}{folder}/")),
            _ => write!(
                xml,
                "<Blob><Name>{path}</Name><Properties><Last-Modified>Sat, 21 Nov 2026 10:00:00 GMT</Last-Modified><Etag>0x{:X}</Etag>\
                 <Content-Length>{}</Content-Length><Content-Type>application/octet-stream</Content-Type></Properties></Blob>",
                blob.version,
                blob.bytes().len()
            )
            .unwrap(),
        }
    }
    folders.dedup();
    for folder in folders {
        write!(xml, "<BlobPrefix><Name>{folder}</Name></BlobPrefix>").unwrap();
    }
    xml.push_str("</Blobs><NextMarker /></EnumerationResults>");
    Response::new(Body::from(xml))
}

fn block_list(blob: &Blob) -> Response<Body> {
    let mut xml = String::from("\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList><CommittedBlocks>");
    for (id, bytes) in blob.blocks.iter().filter(|(id, _)| !id.is_empty()) {
        write!(xml, "<Block><Name>{id}</Name><Size>{}</Size></Block>", bytes.len()).unwrap();
    }
    xml.push_str("</CommittedBlocks></BlockList>");
    Response::builder().header("etag", format!("\"0x{:X}\"", blob.version)).body(Body::from(xml)).unwrap()
}

fn get(blob: &Blob, headers: &HeaderMap, breaks: bool) -> Response<Body> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let e_tag = format!("\"0x{:X}\"", blob.version);
    if header("if-match").is_some_and(|wanted| wanted != e_tag) {
        return status(412, "<Error><Code>ConditionNotMet</Code></Error>");
    }
    let bytes = blob.bytes();
    let range = header("range").or(header("x-ms-range")).and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let (from, to) = range.map_or((0, bytes.len()), |(from, to)| {
        (from.parse().unwrap(), to.parse::<usize>().map_or(bytes.len(), |last| (last + 1).min(bytes.len())))
    });
    if from >= bytes.len() && range.is_some() {
        return status(416, "<Error><Code>InvalidRange</Code></Error>");
    }
    let part = Bytes::copy_from_slice(&bytes[from..to]);
    let mut response = Response::builder()
        .header("etag", e_tag)
        .header("last-modified", "Sat, 21 Nov 2026 10:00:00 GMT")
        .header("content-length", part.len());
    if range.is_some() {
        let content_range = format!("bytes {from}-{}/{}", to - 1, bytes.len());
        response = response.status(StatusCode::PARTIAL_CONTENT).header("content-range", content_range);
    }
    let body = match breaks {
        true => {
            let half = part.slice(..part.len() / 2);
            Body::from_stream(stream::iter([Ok(half), Err(std::io::Error::other("the cable was pulled"))]))
        }
        false => Body::from(part),
    };
    response.body(body).unwrap()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, rest.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok())) {
            (b'%', Some(meant)) => {
                bytes.push(meant);
                rest = &rest[2..];
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// One record of a VNet flow log: the conversations numbered `from..to`, each to an address of its own, at `millis`.
pub(crate) fn record(mac: &str, millis: i64, from: u32, to: u32) -> String {
    let tuples: Vec<String> = (from..to)
        .map(|n| format!("\"{millis},10.0.0.4,{},{},443,6,O,B,NX,0,0,0,0\"", address(n), 40_000 + n % 20_000))
        .collect();
    format!(
        "{{\"time\":\"2026-11-21T10:00:00Z\",\"flowLogVersion\":4,\"flowLogGUID\":\"00000000-0000-0000-0000-000000000000\",\
         \"macAddress\":\"{mac}\",\"category\":\"FlowLogFlowEvent\",\"flowLogResourceID\":\"/F\",\"targetResourceID\":\"/T\",\
         \"operationName\":\"FlowLogFlowEvent\",\"flowRecords\":{{\"flows\":[{{\"aclID\":\"acl\",\"flowGroups\":[{{\"rule\":\"rule\",\
         \"flowTuples\":[{}]}}]}}]}}}}",
        tuples.join(",")
    )
}

/// The destination of conversation `n`.
pub(crate) fn address(n: u32) -> String {
    let [_, b, c, d] = n.to_be_bytes();
    format!("10.{}.{c}.{d}", 1 + b)
}
