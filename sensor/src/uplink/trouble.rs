//! What can go wrong between sensor and collector, each in one sentence that says what to do.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};
use spanwatch_common::wire::{RejectCode, WireError};

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The name of the collector means nothing to DNS.
    #[error("collector {collector}: the name does not resolve ({source}); check `uplink.collector` and DNS")]
    Resolve {
        /// As configured.
        collector: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("collector {collector}: {source}; is `spanwatch-collector run` up and is the port open in between?")]
    Connect {
        /// As configured.
        collector: String,
        /// What the system says.
        source: io::Error,
    },
    /// Nothing happened for too long.
    #[error("collector {collector}: {what} took longer than {} s; the collector or the network is stuck", limit.as_secs())]
    Timeout {
        /// As configured.
        collector: String,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// One end does not accept the certificate of the other, or TLS fails otherwise.
    #[error("collector {collector}: {}", tls_sentence(source))]
    Tls {
        /// As configured.
        collector: String,
        /// What rustls says.
        source: rustls::Error,
    },
    /// It speaks TLS but not our protocol.
    #[error("collector {collector}: the other end does not speak spanwatch/1; is this the address of a Spanwatch collector?")]
    Protocol {
        /// As configured.
        collector: String,
    },
    /// The collector turned us away.
    #[error("collector {collector} refuses this sensor: {reason} ({code:?})")]
    Rejected {
        /// As configured.
        collector: String,
        /// For programs.
        code: RejectCode,
        /// For people.
        reason: String,
    },
    /// The connection broke.
    #[error("collector {collector}: connection lost: {source}")]
    Lost {
        /// As configured.
        collector: String,
        /// What the system says.
        source: io::Error,
    },
    /// The other end sent what nobody understands.
    #[error("collector {collector}: {source}")]
    Wire {
        /// As configured.
        collector: String,
        /// What is wrong with it.
        source: WireError,
    },
    /// The other end said something that does not belong there.
    #[error("collector {collector} {what}; the connection starts afresh")]
    Confused {
        /// As configured.
        collector: String,
        /// What it did.
        what: String,
    },
}

impl Trouble {
    /// Sorts an error of a TLS stream: rustls hides its own inside `io::Error`.
    pub(super) fn from_stream(collector: &str, source: io::Error) -> Self {
        let collector = collector.to_owned();
        match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::Tls { collector, source: tls.clone() },
            None if source.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Lost { collector, source: io::Error::other("it hung up") }
            }
            None => Self::Lost { collector, source },
        }
    }
}

fn tls_sentence(error: &rustls::Error) -> String {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is not from our authority; was `pki init` run again? Issue this sensor's identity anew with `spanwatch-collector pki issue`".to_owned()
        }
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired, or this machine's clock is wrong; renew it with `spanwatch-collector pki init --renew` on the collector".to_owned()
        }
        InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "its certificate is not valid yet; check the clocks of both machines".to_owned()
        }
        InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "its certificate is for another name; set `uplink.server_name` to a name in the certificate (`pki init` always puts \"collector\" in)".to_owned()
        }
        InvalidCertificate(CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }) => {
            "its certificate is not that of a collector; is a sensor's identity installed there?".to_owned()
        }
        InvalidCertificate(other) => format!("its certificate is not acceptable: {other}"),
        AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            "it does not know the authority of this sensor's certificate; issue the identity on that collector with `spanwatch-collector pki issue`".to_owned()
        }
        AlertReceived(AlertDescription::CertificateExpired) => {
            "it says that this sensor's certificate has expired; issue a new identity with `spanwatch-collector pki issue --force`, or check the clocks".to_owned()
        }
        AlertReceived(AlertDescription::CertificateRequired | AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate) => {
            "it does not accept this sensor's certificate; `uplink.identity` must be a file made with `spanwatch-collector pki issue`".to_owned()
        }
        AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "it does not speak spanwatch/1; is this the address of a Spanwatch collector of the same generation?".to_owned()
        }
        AlertReceived(AlertDescription::ProtocolVersion) => "it does not speak TLS 1.3".to_owned(),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS; is this the collector's port for sensors?".to_owned(),
        other => format!("TLS fails: {other}"),
    }
}
