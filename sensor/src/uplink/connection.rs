//! One connection to the collector, from the name lookup to its end.

use std::time::Duration;

use rustls::pki_types::ServerName;
use spanwatch_common::wire::batch::FORM;
use spanwatch_common::wire::{self, Ack, Hello, Message, Stats, VERSION, Welcome};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::settings::UplinkSettings;
use super::trouble::Trouble;
use super::{SOFTWARE, Shared};

/// How often the account travels without records.
const STATS_INTERVAL: Duration = Duration::from_secs(10);
/// The number of a boot that only asks whether it would be welcome.
const ONLY_ASKING: u64 = 0;

/// Reaches the collector and proves to each other who we are.
pub(super) async fn connect(settings: &UplinkSettings, tls: &TlsConnector) -> Result<TlsStream<TcpStream>, Trouble> {
    let collector = || settings.collector.clone();
    let limit = Duration::from_secs(settings.connect_timeout_secs);
    let late = |what| move |_| Trouble::Timeout { collector: settings.collector.clone(), what, limit };
    let unresolved = |source| Trouble::Resolve { collector: collector(), source };

    let address = settings.address().ok_or_else(|| unresolved(std::io::Error::other("not an address")))?;
    let addresses: Vec<_> =
        timeout(limit, tokio::net::lookup_host(address)).await.map_err(late("the name lookup"))?.map_err(unresolved)?.collect();
    let tcp = timeout(limit, TcpStream::connect(&*addresses))
        .await
        .map_err(late("connecting"))?
        .map_err(|source| Trouble::Connect { collector: collector(), source })?;
    tcp.set_nodelay(true).map_err(|source| Trouble::Connect { collector: collector(), source })?;

    let name = ServerName::try_from(settings.server_name.clone())
        .map_err(|_| Trouble::Confused { collector: collector(), what: "has an impossible `uplink.server_name`".to_owned() })?;
    let stream = timeout(limit, tls.connect(name, tcp))
        .await
        .map_err(late("the TLS handshake"))?
        .map_err(|source| Trouble::from_stream(&settings.collector, source))?;
    match stream.get_ref().1.alpn_protocol() {
        Some(protocol) if protocol == wire::ALPN => Ok(stream),
        _ => Err(Trouble::Protocol { collector: collector() }),
    }
}

/// Introduces the sensor, and waits for the welcome.
async fn introduce(stream: &mut TlsStream<TcpStream>, settings: &UplinkSettings, hello: Hello) -> Result<Welcome, Trouble> {
    let limit = Duration::from_secs(settings.connect_timeout_secs);
    write(stream, settings, &Message::Hello(hello)).await?;
    match read(stream, settings, "the welcome", limit).await? {
        Message::Welcome(welcome) => Ok(welcome),
        other => Err(unexpected(settings, &other)),
    }
}

fn hello(sensor: &str, boot: u64, next: u64) -> Hello {
    let (sensor, software) = (sensor.to_owned(), SOFTWARE.to_owned());
    Hello { version: VERSION, sensor, boot, next, software, batch_form: FORM }
}

/// Whether a collector would take this sensor; disturbs no connection that the sensor has.
pub(super) async fn ask(settings: &UplinkSettings, tls: &TlsConnector, sensor: &str) -> Result<(), Trouble> {
    let mut stream = connect(settings, tls).await?;
    introduce(&mut stream, settings, hello(sensor, ONLY_ASKING, 1)).await?;
    let _ = stream.shutdown().await; // it has answered; how it hangs up says nothing
    Ok(())
}

/// Ships batches until the connection breaks, or until the sensor stops and everything is acknowledged.
pub(super) async fn converse(
    mut stream: TlsStream<TcpStream>,
    settings: &UplinkSettings,
    shared: &Shared,
) -> Result<(), Trouble> {
    let hello = {
        let mut exporter = shared.exporter();
        let next = exporter.queue().oldest();
        hello(exporter.sensor(), exporter.boot(), next)
    };
    let boot = hello.boot;
    let welcome = introduce(&mut stream, settings, hello).await?;
    {
        let mut exporter = shared.exporter();
        if welcome.resume_after >= exporter.queue().next_sequence() {
            let what = format!("holds batch {} of this start, which was never made", welcome.resume_after);
            return Err(Trouble::Confused { collector: settings.collector.clone(), what });
        }
        exporter.queue().resume_after(welcome.resume_after);
    }
    shared.connected(settings, &welcome);
    let (mut reading, mut writing) = tokio::io::split(stream);
    tokio::select! {
        ended = hear(&mut reading, settings, shared, boot) => ended,
        ended = speak(&mut writing, settings, shared, boot, &welcome) => ended,
    }
}

/// Takes acknowledgements until the connection ends.
async fn hear(
    stream: &mut (impl AsyncRead + Unpin),
    settings: &UplinkSettings,
    shared: &Shared,
    boot: u64,
) -> Result<(), Trouble> {
    let limit = Duration::from_secs(settings.silence_secs_max);
    loop {
        match read(stream, settings, "the next sign of life", limit).await? {
            Message::Ack(Ack { boot: of, up_to }) if of == boot => {
                let mut exporter = shared.exporter();
                if up_to >= exporter.queue().next_sequence() {
                    let what = format!("acknowledges batch {up_to}, which was never made");
                    return Err(Trouble::Confused { collector: settings.collector.clone(), what });
                }
                exporter.queue().acknowledge(up_to);
                drop(exporter);
                shared.wake.notify_one();
            }
            other => return Err(unexpected(settings, &other)),
        }
    }
}

/// Sends what is there within the credit, and the account every ten seconds and at the very end.
async fn speak(
    stream: &mut (impl AsyncWrite + Unpin),
    settings: &UplinkSettings,
    shared: &Shared,
    boot: u64,
    welcome: &Welcome,
) -> Result<(), Trouble> {
    let credit = welcome.credit.max(1);
    let lost = |source| Trouble::from_stream(&settings.collector, source);
    let stats = || {
        let ledger = shared.exporter().ledger();
        Message::Stats(Stats { boot, ledger, capture: shared.capture.clone(), ports: shared.ports() })
    };
    let mut ticks = tokio::time::interval(STATS_INTERVAL);
    loop {
        // A name for the frame, so that the lock is gone before the write.
        while let Some(frame) = { shared.exporter().queue().next(credit) } {
            if welcome.batch_form >= FORM {
                stream.write_all(&frame).await.map_err(lost)?;
            } else {
                let garbled = |source| Trouble::Wire { collector: settings.collector.clone(), source };
                stream.write_all(&in_first_form(&frame).map_err(garbled)?).await.map_err(lost)?;
            }
        }
        stream.flush().await.map_err(lost)?;
        if shared.is_done() {
            write(stream, settings, &stats()).await?;
            return stream.shutdown().await.map_err(lost);
        }
        tokio::select! {
            () = shared.wake.notified() => {}
            _ = ticks.tick() => write(stream, settings, &stats()).await?,
        }
    }
}

/// A batch as collectors understand it that do not know the newest form.
fn in_first_form(frame: &[u8]) -> Result<Vec<u8>, wire::WireError> {
    let mut first = Vec::new();
    if let Some((message, _)) = wire::decode(frame)? {
        wire::encode(&message, &mut first)?;
    }
    Ok(first)
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), settings: &UplinkSettings, message: &Message) -> Result<(), Trouble> {
    let mut frame = Vec::new();
    wire::encode(message, &mut frame).map_err(|source| Trouble::Wire { collector: settings.collector.clone(), source })?;
    stream.write_all(&frame).await.map_err(|source| Trouble::from_stream(&settings.collector, source))?;
    stream.flush().await.map_err(|source| Trouble::from_stream(&settings.collector, source))
}

/// The next message, `what`, within `limit`. A rejection is trouble.
async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    settings: &UplinkSettings,
    what: &'static str,
    limit: Duration,
) -> Result<Message, Trouble> {
    let collector = || settings.collector.clone();
    let message = async {
        let lost = |source| Trouble::from_stream(&settings.collector, source);
        let garbled = |source| Trouble::Wire { collector: collector(), source };
        let mut head = [0; wire::HEADER_LEN];
        stream.read_exact(&mut head).await.map_err(lost)?;
        let header = wire::Header::parse(&head).map_err(garbled)?;
        let mut body = vec![0; header.body_len()];
        stream.read_exact(&mut body).await.map_err(lost)?;
        header.message(&body).map_err(garbled)
    };
    match timeout(limit, message).await {
        Ok(Ok(Message::Reject(reject))) => {
            Err(Trouble::Rejected { collector: collector(), code: reject.code, reason: reject.reason })
        }
        Ok(result) => result,
        Err(_) => Err(Trouble::Timeout { collector: collector(), what, limit }),
    }
}

fn unexpected(settings: &UplinkSettings, message: &Message) -> Trouble {
    let kind = match message {
        Message::Hello(_) => "a hello",
        Message::Welcome(_) => "a second welcome",
        Message::Data(_) => "data",
        Message::Ack(_) => "an acknowledgement out of place",
        Message::Stats(_) => "stats",
        Message::Reject(_) => "a rejection",
    };
    Trouble::Confused { collector: settings.collector.clone(), what: format!("sent {kind}") }
}
