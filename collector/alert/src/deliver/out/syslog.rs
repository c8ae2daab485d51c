//! Syslog over UDP (RFC 5426), TCP (RFC 6587) and TLS (RFC 5425).
//!
//! None of them has an acknowledgement. Over UDP, sent counts as delivered. On a stream, a batch counts as delivered when it was written and
//! the connection still stands [`WATCH`] later; a receiver that went away earlier gets the batch again. What a receiver's machine took in but
//! its program never read is lost with both: where that matters, use a webhook.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Sent, whole};
use crate::Alert;
use crate::deliver::courier::Outcome;
use crate::deliver::format::syslog::{Framing, Header};
use crate::deliver::settings::{OutputSettings, Transport};

/// How long a connection is watched after a batch: a receiver that resets it has not read everything.
const WATCH: Duration = Duration::from_millis(250);
/// So many datagrams go out at once; then there is a pause in which a receiver can empty its socket's buffer.
const DATAGRAMS_AT_ONCE: usize = 16;
const PAUSE: Duration = Duration::from_millis(5);

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

pub(in crate::deliver) struct SyslogOut {
    header: Header,
    settings: OutputSettings,
    stream: Option<Box<dyn Stream>>,
    socket: Option<UdpSocket>,
}

impl SyslogOut {
    pub(super) fn new(settings: OutputSettings) -> Self {
        let own = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let hostname = if settings.hostname.is_empty() { own().trim().to_owned() } else { settings.hostname.clone() };
        let header = Header { facility: settings.facility, hostname, enterprise_number: settings.enterprise_number };
        Self { header, settings, stream: None, socket: None }
    }

    pub(super) async fn send(&mut self, alerts: &[Alert]) -> Sent {
        let (format, bytes_max) = (self.settings.format, self.settings.message_len_max());
        let messages: Vec<_> = alerts.iter().map(|alert| self.header.message(alert, format, bytes_max)).collect();
        let shortened = messages.iter().filter(|message| message.shortened).count() as u64;
        let messages: Vec<String> = messages.into_iter().map(|message| message.text).collect();
        let sent = match self.settings.transport {
            Transport::Udp => self.send_datagrams(&messages).await,
            Transport::Tcp | Transport::Tls => self.send_stream(&messages).await,
        };
        let outcome = match sent {
            Ok(()) => Outcome::Delivered,
            Err(error) => {
                (self.stream, self.socket) = (None, None);
                Outcome::Failed(format!("{}: {}", self.settings.address, whole(&error)), None)
            }
        };
        Sent { tried: alerts.len(), shortened, outcome }
    }

    pub(super) async fn close(&mut self) {
        if let Some(mut stream) = self.stream.take() {
            // TLS says goodbye (RFC 5425 §4.4). Who no longer listens does not miss it.
            let _ = timeout(WATCH, stream.shutdown()).await;
        }
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.settings.timeout_secs)
    }

    async fn send_datagrams(&mut self, messages: &[String]) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.open_socket().await?,
        };
        for some in messages.chunks(DATAGRAMS_AT_ONCE) {
            for message in some {
                socket.send(message.as_bytes()).await?;
            }
            tokio::time::sleep(PAUSE).await;
        }
        // A machine without a listener has said so by now (ICMP port unreachable); other silence means nothing.
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        self.socket = Some(socket);
        Ok(())
    }

    async fn open_socket(&self) -> io::Result<UdpSocket> {
        let to = self.resolve().await?.into_iter().next().ok_or_else(|| io::Error::other("the name has no address"))?;
        let from: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(from).await?;
        socket.connect(to).await?;
        Ok(socket)
    }

    async fn send_stream(&mut self, messages: &[String]) -> io::Result<()> {
        let framing = if self.settings.transport == Transport::Tls { Framing::OctetCounting } else { self.settings.framing };
        let mut bytes = Vec::new();
        for message in messages {
            framing.put(message, &mut bytes);
        }
        let mut kept = self.stream.take();
        if let Some(stream) = &mut kept
            && !stands(stream, Duration::ZERO).await
        {
            kept = None;
        }
        let mut stream = match kept {
            Some(stream) => stream,
            None => timeout(self.limit(), self.connect()).await.map_err(|_| late("connecting"))??,
        };
        let write = async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        };
        timeout(self.limit(), write).await.map_err(|_| late("writing"))??;
        if !stands(&mut stream, WATCH).await {
            return Err(io::Error::other("the receiver closed the connection while it was sent to"));
        }
        self.stream = Some(stream);
        Ok(())
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let addresses = self.resolve().await?;
        let tcp = TcpStream::connect(&*addresses).await?;
        tcp.set_nodelay(true)?;
        if self.settings.transport != Transport::Tls {
            return Ok(Box::new(tcp));
        }
        let host = self.settings.address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(self.tls()?.connect(name, tcp).await?))
    }

    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let lookup =
            timeout(self.limit(), tokio::net::lookup_host(&self.settings.address)).await.map_err(|_| late("the name lookup"))?;
        Ok(lookup?.collect())
    }

    fn tls(&self) -> io::Result<TlsConnector> {
        let path = &self.settings.ca_file;
        let unusable =
            |path: &std::path::Path, what: &dyn std::fmt::Display| io::Error::other(format!("{}: {what}", path.display()));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, &error))? {
            roots.add(certificate.map_err(|error| unusable(path, &error))?).map_err(|error| unusable(path, &error))?;
        }
        if roots.is_empty() {
            return Err(unusable(path, &"holds no certificate"));
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        let path = &self.settings.identity_file;
        if path.as_os_str().is_empty() {
            return Ok(TlsConnector::from(Arc::new(builder.with_no_client_auth())));
        }
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, &error))?.collect();
        let chain = chain.map_err(|error| unusable(path, &error))?;
        let key = PrivateKeyDer::from_pem_file(path).map_err(|error| unusable(path, &error))?;
        let config = builder.with_client_auth_cert(chain, key).map_err(|error| unusable(path, &error))?;
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Whether the receiver keeps the connection open for `watch`. Syslog receivers say nothing; what one says is passed over.
async fn stands(stream: &mut Box<dyn Stream>, watch: Duration) -> bool {
    let listen = async {
        let mut heard = [0; 256];
        while stream.read(&mut heard).await.is_ok_and(|len| len > 0) {}
    };
    timeout(watch, listen).await.is_err()
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} took too long"))
}
