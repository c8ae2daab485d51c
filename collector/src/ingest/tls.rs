//! Who may speak at all: TLS 1.3, and a certificate from our own authority on both sides.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore, ServerConfig};
use spanwatch_common::wire;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::pki::{self, Pki};

/// Why the collector cannot listen with what `pki init` made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(
        "read {}: {what}; `spanwatch-collector pki init --dir {}` makes it, and it must be readable for the user that runs the collector",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The files do not fit each other.
    #[error("the certificates in {} do not fit together: {what}; `spanwatch-collector pki init --renew` makes the collector's own anew", directory.display())]
    Unfit {
        /// Where they are.
        directory: PathBuf,
        /// What does not fit.
        what: String,
    },
}

/// What a TLS listener for sensors needs.
///
/// # Errors
/// A file is missing, unreadable, or does not fit the others.
pub fn server_config(pki: &Pki) -> Result<Arc<ServerConfig>, TlsError> {
    let file = |path: PathBuf| {
        move |error: rustls::pki_types::pem::Error| {
            let what = match error {
                rustls::pki_types::pem::Error::Io(error) => error.to_string(),
                rustls::pki_types::pem::Error::NoItemsFound => "what belongs there is not in it".to_owned(),
                other => other.to_string(),
            };
            TlsError::File { path, what }
        }
    };
    let directory = || pki.collector_path().parent().map(PathBuf::from).unwrap_or_default();
    let unfit = |what: String| TlsError::Unfit { directory: directory(), what };

    let authority = CertificateDer::from_pem_file(pki.authority_path()).map_err(file(pki.authority_path()))?;
    let certificate = CertificateDer::from_pem_file(pki.collector_path()).map_err(file(pki.collector_path()))?;
    let key = PrivateKeyDer::from_pem_file(pki.collector_key_path()).map_err(file(pki.collector_key_path()))?;

    // Sensors would find out, each at every attempt; the authority's name has the moment at which it was made.
    let names = |der: &CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unfit(error.to_string()))?;
        Ok::<_, TlsError>((certificate.issuer().as_raw().to_vec(), certificate.subject().as_raw().to_vec()))
    };
    if names(&certificate)?.0 != names(&authority)?.1 {
        return Err(unfit("the collector's is from another authority".to_owned()));
    }

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| unfit(error.to_string()))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| unfit(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unfit(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .map_err(|error| unfit(error.to_string()))?;
    config.alpn_protocols = vec![wire::ALPN.to_vec()];
    // A sensor connects once and stays: session tickets would only be more state to guard.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The name of the sensor in a verified certificate.
pub(super) fn sensor_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let name = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("sensor:"),
        _ => None,
    })?;
    pki::check_name(name).is_ok().then(|| name.to_owned())
}

/// Why a handshake failed, for the log.
pub(super) fn sentence(error: &std::io::Error) -> String {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage, NoCertificatesPresented, PeerIncompatible};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(NoCertificatesPresented) => {
            "it has no certificate; only sensors with an identity from `pki issue` may connect".to_owned()
        }
        Some(InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "its certificate is from another authority; issue its identity here with `spanwatch-collector pki issue`".to_owned()
        }
        Some(InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            "its certificate has expired; renew it with `spanwatch-collector pki issue --force`, or check the clocks".to_owned()
        }
        Some(InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. })) => {
            "its certificate is not valid yet; check the clocks".to_owned()
        }
        Some(InvalidCertificate(other)) => format!("its certificate is not acceptable: {other}"),
        Some(AlertReceived(alert)) => format!("it does not accept this collector's certificate or protocol ({alert:?})"),
        Some(InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        Some(PeerIncompatible(what)) => format!("it does not speak TLS 1.3 as a sensor does ({what:?})"),
        Some(other) => other.to_string(),
        None => error.to_string(),
    }
}
