//! The listener for sensors, and one conversation per connection.
//!
//! A connection goes through: TLS handshake → hello → welcome → data, stats and acknowledgements until one side ends it. What
//! a stranger can make us do before the certificates are checked is one handshake of bounded duration; what a sensor can make
//! us keep is bounded by [`super::outlets`]. A connection that sends nonsense is closed; no other notices.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use spanwatch_common::wire::batch::FORM;
use spanwatch_common::wire::{self, Ack, Hello, Message, Reject, RejectCode, VERSION, Welcome};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::hold::Hold;
use super::registry::{Admission, Fate, Registry, Session};
use super::settings::IngestSettings;
use super::{Inquiry, LaterStart, Outlets, Shipment, stopped, tls};

/// The slowest that a frame may arrive.
const BYTES_PER_SEC_MIN: u64 = 16 << 10;
/// How often an acknowledgement is repeated, as a sign of life.
const ACK_INTERVAL: Duration = Duration::from_secs(10);
/// How long the store may think about how far a sensor has come.
const INQUIRY_LIMIT: Duration = Duration::from_secs(5);
/// How long the last words of a connection may take.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);
/// Addresses of which the last refusal is remembered; beyond that, all are forgotten.
const REFUSALS_MAX: usize = 1024;
/// The number of a boot that only asks whether it would be welcome (`spanwatch-sensor doctor`).
const ONLY_ASKING: u64 = 0;

/// What was counted at the door.
#[derive(Debug, Default)]
pub struct Door {
    /// Connections accepted by TCP.
    pub connections: AtomicU64,
    /// Connections closed at once because there were too many.
    pub crowded: AtomicU64,
    /// Handshakes that failed: no certificate, the wrong one, or no TLS at all.
    pub strangers: AtomicU64,
    /// Sensors turned away after the handshake, or closed for nonsense.
    pub rejected: AtomicU64,
}

/// Everything that conversations share.
#[derive(Debug)]
struct Ingest {
    settings: IngestSettings,
    acceptor: Acceptor,
    registry: Arc<Registry>,
    outlets: Outlets,
    door: Arc<Door>,
    /// What was last refused to each address, so that a log says it once and not at every attempt.
    refusals: Mutex<HashMap<IpAddr, String>>,
    stopping: watch::Receiver<bool>,
}

/// [`TlsAcceptor`] with a `Debug`.
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// Why a conversation ends.
enum End {
    /// The sensor hung up, or its connection broke.
    Gone(String),
    /// The collector has nothing more to say.
    Done,
    /// The collector will not go on.
    Reject(RejectCode, String),
}

/// Accepts sensors on `listener` until `stopping` turns true; returns when every conversation has ended, which they do once
/// [`Registry::close`] has been called.
pub async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    settings: IngestSettings,
    registry: Arc<Registry>,
    outlets: Outlets,
    door: Arc<Door>,
    mut stopping: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(settings.connections_max));
    let ingest = Arc::new(Ingest {
        settings,
        acceptor: Acceptor(TlsAcceptor::from(config)),
        registry,
        outlets,
        door,
        refusals: Mutex::default(),
        stopping: stopping.clone(),
    });
    let mut conversations = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = conversations.join_next() => continue,
            () = stopped(&mut stopping) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: some will come free.
                tracing::warn!("accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        ingest.door.connections.fetch_add(1, Ordering::Relaxed);
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            ingest.door.crowded.fetch_add(1, Ordering::Relaxed);
            continue; // dropping the stream closes it
        };
        let ingest = Arc::clone(&ingest);
        conversations.spawn(async move {
            ingest.attend(stream, peer).await;
            drop(place);
        });
    }
    drop(listener);
    while conversations.join_next().await.is_some() {}
}

impl Ingest {
    /// One connection from its first byte to its last.
    async fn attend(&self, stream: TcpStream, peer: SocketAddr) {
        let limit = Duration::from_secs(self.settings.handshake_timeout_secs);
        let stranger = |why: String| {
            self.door.strangers.fetch_add(1, Ordering::Relaxed);
            self.refused(peer, format!("connection from {} refused: {why}", peer.ip()));
        };
        let _ = stream.set_nodelay(true); // acknowledgements are small; late ones are no error
        let mut stream = match timeout(limit, self.acceptor.0.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return stranger(tls::sentence(&error)),
            Err(_) => return stranger(format!("its TLS handshake took longer than {} s", limit.as_secs())),
        };
        let Some(name) = peer_name(&stream) else {
            return stranger("its certificate names no sensor, or it does not speak spanwatch/1".to_owned());
        };
        let end = match self.welcome(&mut stream, &name).await {
            Ok(Some(session)) => {
                tracing::info!("sensor {name} connected from {peer}; batches up to {} are here", session.resume_after);
                self.refusals.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer.ip());
                let end = self.converse(&mut stream, &session).await;
                self.registry.leave(&session);
                end
            }
            Ok(None) => End::Done,
            Err(end) => end,
        };
        match end {
            End::Done => tracing::debug!("sensor {name} at {peer}: conversation over"),
            End::Gone(why) => tracing::info!("sensor {name} at {peer} disconnected: {why}"),
            End::Reject(code, reason) => {
                self.door.rejected.fetch_add(1, Ordering::Relaxed);
                self.refused(peer, format!("sensor {name} at {} turned away: {reason}", peer.ip()));
                let _ = timeout(LAST_WORDS_LIMIT, write(&mut stream, &Message::Reject(Reject { code, reason }))).await;
            }
        }
        let _ = timeout(LAST_WORDS_LIMIT, stream.shutdown()).await; // it may be gone already
    }

    /// Logs a refusal when it is news; whoever is refused tries again every few seconds. The counters count each.
    fn refused(&self, peer: SocketAddr, sentence: String) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.get(&peer.ip()) == Some(&sentence) {
            tracing::debug!("{sentence}");
            return;
        }
        tracing::warn!("{sentence}; not said again while it stays so");
        if refusals.len() >= REFUSALS_MAX {
            refusals.clear();
        }
        refusals.insert(peer.ip(), sentence);
    }

    /// Hears the hello and answers it. No session when the sensor only asked.
    async fn welcome(&self, stream: &mut TlsStream<TcpStream>, name: &str) -> Result<Option<Session>, End> {
        let limit = Duration::from_secs(self.settings.handshake_timeout_secs);
        let first = timeout(limit, self.read(stream)).await;
        let hello = match first.map_err(|_| End::Gone("it said no hello".to_owned()))?? {
            Message::Hello(hello) => hello,
            _ => return Err(End::Reject(RejectCode::Protocol, "the first message was no hello".to_owned())),
        };
        self.check(&hello, name)?;
        let batch_form = hello.batch_form.min(FORM);
        let mut welcome = Welcome { version: VERSION, resume_after: 0, credit: self.settings.credit_batches, batch_form };
        if hello.boot == ONLY_ASKING {
            return write(stream, &Message::Welcome(welcome)).await.map(|()| None);
        }
        let durable = match self.registry.durable(name, hello.boot) {
            Some(durable) => durable,
            None => self.inquire(name, hello.boot).await?,
        };
        let session = self.registry.welcome(name, hello.boot, durable).map_err(|newer| {
            if newer == 0 {
                return End::Reject(RejectCode::Superseded, "the collector knows too many sensors already".to_owned());
            }
            outlived(name)
        })?;
        welcome.resume_after = session.resume_after;
        match write(stream, &Message::Welcome(welcome)).await {
            Ok(()) => Ok(Some(session)),
            Err(end) => {
                self.registry.leave(&session);
                Err(end)
            }
        }
    }

    fn check(&self, hello: &Hello, name: &str) -> Result<(), End> {
        if hello.version != VERSION {
            let reason = format!(
                "it speaks version {} of the protocol, this collector version {VERSION}; upgrade the older of the two",
                hello.version
            );
            return Err(End::Reject(RejectCode::Version, reason));
        }
        if hello.sensor != name {
            let reason = format!("it calls itself {:?}, but its certificate is for {name:?}", hello.sensor);
            return Err(End::Reject(RejectCode::Name, reason));
        }
        Ok(())
    }

    /// Asks the store how far it has come.
    async fn inquire(&self, name: &str, boot: u64) -> Result<u64, End> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.outlets.inquiries.send(Inquiry { sensor: name.to_owned(), boot, reply }).await.ok()?;
            answer.await.ok()
        };
        match timeout(INQUIRY_LIMIT, asked).await {
            Ok(Some(Ok(durable))) => Ok(durable),
            Ok(Some(Err(LaterStart))) => Err(outlived(name)),
            _ => {
                let reason = "the store does not answer at the moment; the collector's log says why".to_owned();
                Err(End::Reject(RejectCode::Unavailable, reason))
            }
        }
    }

    /// Hears and speaks until either ends.
    async fn converse(&self, stream: &mut TlsStream<TcpStream>, session: &Session) -> End {
        let (mut reading, mut writing) = tokio::io::split(stream);
        let mut stopping = self.stopping.clone();
        let hear = async {
            tokio::select! {
                end = self.hear(&mut reading, session) => end,
                // Stop reading, but stay until the last acknowledgement has gone out.
                () = stopped(&mut stopping) => std::future::pending().await,
            }
        };
        tokio::select! {
            end = hear => end,
            end = speak(&mut writing, session) => end,
        }
    }

    /// Takes batches and accounts until the sensor ends or errs. Given up halfway, it loses nothing: what it holds was never acknowledged.
    async fn hear(&self, stream: &mut (impl AsyncRead + Unpin), session: &Session) -> End {
        let wait = Duration::from_millis(self.settings.join_wait_millis);
        let mut hold = Hold::new(wait, self.settings.credit_batches);
        loop {
            let message = match self.next(stream, session, &mut hold).await {
                Ok(message) => message,
                Err(end) => {
                    if matches!(end, End::Reject(RejectCode::Protocol, _)) {
                        self.registry.malformed(session);
                    }
                    // It is whole and in order, and need not come again.
                    if let Some(shipment) = hold.release() {
                        let _ = self.pass_on(shipment, session).await;
                    }
                    return end;
                }
            };
            match message {
                Message::Data(batch) if batch.sensor == session.sensor && batch.boot == session.boot && batch.sequence > 0 => {
                    match self.registry.preview(session, batch.sequence, hold.last()) {
                        Admission::New => {}
                        Admission::Repeat => continue,
                        Admission::Superseded => return superseded(),
                    }
                    if let Some(shipment) = hold.take(batch, now())
                        && let Some(end) = self.pass_on(shipment, session).await
                    {
                        return end;
                    }
                }
                Message::Stats(stats) if stats.boot == session.boot => self.registry.stats(session, stats),
                _ => {
                    self.registry.malformed(session);
                    let reason = "it sent a message that does not belong into this conversation".to_owned();
                    return End::Reject(RejectCode::Protocol, reason);
                }
            }
        }
    }

    /// The next message; passes on meanwhile what was held long enough.
    async fn next(&self, stream: &mut (impl AsyncRead + Unpin), session: &Session, hold: &mut Hold) -> Result<Message, End> {
        let mut message = pin!(self.read(stream)); // never given up halfway, or bytes would be lost
        while let Some(due) = hold.due() {
            if let Ok(message) = timeout_at(due, &mut message).await {
                return message;
            }
            if let Some(shipment) = hold.release()
                && let Some(end) = self.pass_on(shipment, session).await
            {
                return Err(end);
            }
        }
        message.await
    }

    /// Passes batches on if they are new. Waits while the store is behind, and with it the sensor.
    async fn pass_on(&self, shipment: Shipment, session: &Session) -> Option<End> {
        let Some(place) = self.outlets.place(shipment.batch.records.len()).await else { return Some(End::Done) };
        match place.send_if_new(shipment, |shipment| self.registry.admit(session, shipment)) {
            Admission::New | Admission::Repeat => None,
            Admission::Superseded => Some(superseded()),
        }
    }

    /// The next message.
    async fn read(&self, stream: &mut (impl AsyncRead + Unpin)) -> Result<Message, End> {
        let idle = Duration::from_secs(self.settings.idle_timeout_secs);
        let frame = Duration::from_secs(self.settings.frame_timeout_secs);
        let gone = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => End::Gone("it hung up".to_owned()),
            _ => End::Gone(error.to_string()),
        };
        let nonsense = |error: wire::WireError| End::Reject(RejectCode::Protocol, error.to_string());
        let slow = |_| End::Gone("a message took too long to arrive".to_owned());

        let mut head = [0; wire::HEADER_LEN];
        let (first, rest) = head.split_at_mut(1);
        timeout(idle, stream.read_exact(first))
            .await
            .map_err(|_| End::Gone(format!("it was silent for {} s", idle.as_secs())))?
            .map_err(gone)?;
        timeout(frame, stream.read_exact(rest)).await.map_err(slow)?.map_err(gone)?;
        let header = wire::Header::parse(&head).map_err(nonsense)?;
        let mut body = vec![0; header.body_len()];
        let patience = frame + Duration::from_secs(body.len() as u64 / BYTES_PER_SEC_MIN);
        timeout(patience, stream.read_exact(&mut body)).await.map_err(slow)?.map_err(gone)?;
        header.message(&body).map_err(nonsense)
    }
}

#[expect(clippy::disallowed_methods, reason = "the conversation owns its socket and how long it waits")]
fn now() -> Instant {
    Instant::now()
}

/// Sends every new acknowledgement, and repeats the last as a sign of life.
async fn speak(stream: &mut (impl AsyncWrite + Unpin), session: &Session) -> End {
    let mut standing = session.standing.clone();
    let mut told = session.resume_after;
    let mut life = tokio::time::interval(ACK_INTERVAL);
    life.tick().await; // the first is immediate, and the welcome has just said the same
    loop {
        let now = *standing.borrow_and_update();
        if now.up_to > told {
            if let Err(end) = acknowledge(stream, session, now.up_to).await {
                return end;
            }
            told = now.up_to;
        }
        match now.fate {
            Fate::Speak => {}
            Fate::Superseded => return superseded(),
            Fate::Closing => return End::Done,
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() {
                return End::Done;
            },
            _ = life.tick() => if let Err(end) = acknowledge(stream, session, told).await {
                return end;
            },
        }
    }
}

async fn acknowledge(stream: &mut (impl AsyncWrite + Unpin), session: &Session, up_to: u64) -> Result<(), End> {
    write(stream, &Message::Ack(Ack { boot: session.boot, up_to })).await
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &Message) -> Result<(), End> {
    let mut frame = Vec::new();
    wire::encode(message, &mut frame).map_err(|error| End::Gone(error.to_string()))?;
    let sent = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    sent.await.map_err(|error: std::io::Error| End::Gone(error.to_string()))
}

fn outlived(name: &str) -> End {
    let reason = format!(
        "a later start of {name} has been here: let no other sensor use its identity, set its clock if that is slow, and restart it"
    );
    End::Reject(RejectCode::Superseded, reason)
}

fn superseded() -> End {
    let reason = "another connection with this identity has taken over; are two sensors using the same file?".to_owned();
    End::Reject(RejectCode::Superseded, reason)
}

/// The verified name of the peer, if it also speaks our protocol.
fn peer_name(stream: &TlsStream<TcpStream>) -> Option<String> {
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(wire::ALPN) {
        return None;
    }
    tls::sensor_name(connection.peer_certificates()?.first()?)
}
