//! What the tests of delivery share: alerts by number, outboxes that run for a while, and an HTTP receiver.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use spanwatch_alert::Alert;
use spanwatch_alert::deliver::{DeliverySettings, Outbox, OutputSettings, test_alert};
use spanwatch_common::time::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Alert number `number`; its id is `alert-0007`.
pub(crate) fn alert(number: usize) -> Alert {
    let at = Timestamp::from_secs(1_795_255_200 + number as i64);
    let (id, told) = (format!("alert-{number:04}"), at);
    Alert { id, rule: "ND-01".to_owned(), first: at, last: at, told, ..test_alert("test", at) }
}

/// Their ids.
pub(crate) fn ids(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("alert-{number:04}")).collect()
}

/// `seen` without what came before already; the order in which each came first.
pub(crate) fn once(seen: Vec<String>) -> Vec<String> {
    let mut known = std::collections::HashSet::new();
    seen.into_iter().filter(|id| known.insert(id.clone())).collect()
}

pub(crate) fn delivery(directory: &Path) -> DeliverySettings {
    DeliverySettings { directory: directory.to_owned(), retry_wait_max_secs: 1, ..DeliverySettings::default() }
}

/// An outbox at work.
pub(crate) struct Running {
    pub(crate) outbox: Arc<Outbox>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(directory: &Path, outputs: &[OutputSettings]) -> Self {
        let outbox = Outbox::open(&delivery(directory), outputs).unwrap();
        let (shutdown, over) = watch::channel(false);
        let task = tokio::spawn(Arc::clone(&outbox).run(1, over));
        Self { outbox, shutdown, task }
    }

    pub(crate) fn put(&self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            self.outbox.put(&alert(number)).unwrap();
        }
        self.outbox.sync().unwrap();
    }

    /// Waits until nothing waits, for at most half a minute.
    pub(crate) async fn drained(&self) {
        let drained = || self.outbox.status().iter().all(|status| status.waiting == 0);
        until("all alerts are out", drained).await;
    }

    pub(crate) async fn stop(self) {
        self.shutdown.send_replace(true);
        self.task.await.unwrap();
    }

    /// Ends it where it stands, without a goodbye.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub(crate) async fn until(what: &str, mut met: impl FnMut() -> bool) {
    for _ in 0..1_500 {
        if met() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited half a minute until {what}");
}

/// What came in one request, unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    /// As it was sent.
    pub(crate) raw: Vec<u8>,
    pub(crate) body: String,
    /// What was answered.
    pub(crate) status: u16,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The ids of the alerts in its body, whatever their format.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.body.split("alert-").skip(1).map(|rest| format!("alert-{}", &rest[..4])).collect()
    }
}

type Answer = Arc<dyn Fn(&Seen) -> Option<(u16, String)> + Send + Sync>;

/// In a script: what `answer` says.
pub(crate) const AS_USUAL: u16 = 0;
/// In a script: takes the request, and never answers.
pub(crate) const SILENCE: u16 = 1;

/// An HTTP server on loopback. It answers in turn what it was told to, then what `answer` says, then 204.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<VecDeque<u16>>>,
    answer: Answer,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Receiver {
    pub(crate) async fn start(script: &[u16], answer: impl Fn(&Seen) -> Option<(u16, String)> + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script, answer).await
    }

    pub(crate) async fn start_at(
        address: SocketAddr,
        script: &[u16],
        answer: impl Fn(&Seen) -> Option<(u16, String)> + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            script: Arc::new(Mutex::new(script.iter().copied().collect())),
            answer: Arc::new(answer),
            seen: Arc::default(),
        };
        let app = Router::new().fallback(take).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        receiver
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The ids of all alerts in requests that were taken, in order.
    pub(crate) fn taken(&self) -> Vec<String> {
        self.seen().iter().filter(|seen| seen.status < 300).flat_map(Seen::ids).collect()
    }
}

async fn take(State(receiver): State<Receiver>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let raw = axum::body::to_bytes(body, 16 << 20).await.unwrap().to_vec();
    let body = if parts.headers.get("content-encoding").is_some_and(|value| value == "gzip") {
        let mut text = String::new();
        flate2::read::GzDecoder::new(&*raw).read_to_string(&mut text).unwrap();
        text
    } else {
        String::from_utf8(raw.clone()).unwrap()
    };
    let mut seen = Seen { path: parts.uri.to_string(), headers: parts.headers, raw, body, status: 204 };
    let scripted = receiver.script.lock().unwrap().pop_front().filter(|status| *status != AS_USUAL);
    let (status, text) = match scripted {
        Some(status) => (status, "as told".to_owned()),
        None => (receiver.answer)(&seen).unwrap_or((204, String::new())),
    };
    seen.status = status;
    receiver.seen.lock().unwrap().push(seen);
    if status == SILENCE {
        return std::future::pending().await;
    }
    let code = StatusCode::from_u16(status).unwrap();
    if status == 429 { (code, [("retry-after", "1")], text).into_response() } else { (code, text).into_response() }
}
