//! Who the sensor is: one PEM file with its key, its certificate and the authority that signed the collector's.
//!
//! `spanwatch-collector pki issue NAME` writes this file.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use spanwatch_common::time::Timestamp;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Key, certificate and authority of a sensor.
#[derive(Debug)]
pub struct Identity {
    /// Name of the sensor: what follows `sensor:` in the certificate's subject alternative name.
    pub name: String,
    /// When the certificate ends.
    pub ends: Timestamp,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) authorities: Vec<CertificateDer<'static>>,
}

/// Why a file is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("read identity {}: {source}; make it with `spanwatch-collector pki issue NAME` and copy it here", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something is missing in it, or damaged.
    #[error("identity {}: {what}; make it anew with `spanwatch-collector pki issue NAME` and copy it here", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Identity {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or lacks one of its parts.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let text = std::fs::read(path).map_err(|source| IdentityError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|what| IdentityError::Content { path: path.to_owned(), what })
    }

    fn parse(pem: &[u8]) -> Result<Self, String> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("has no usable private key ({error})"))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let mut certificates = certificates.map_err(|error| format!("has a damaged certificate ({error})"))?.into_iter();
        let certificate = certificates.next().ok_or("has no certificate")?;
        let authorities: Vec<_> = certificates.collect();
        if authorities.is_empty() {
            return Err("has no certificate of the authority after its own".to_owned());
        }
        let (name, ends) = read_certificate(&certificate)?;
        Ok(Self { name, ends, certificate, key, authorities })
    }
}

fn read_certificate(der: &CertificateDer<'_>) -> Result<(String, Timestamp), String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| format!("has an unreadable certificate ({error})"))?;
    let names = certificate.subject_alternative_name().map_err(|error| format!("has odd alternative names ({error})"))?;
    let name = names.iter().flat_map(|extension| &extension.value.general_names).find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("sensor:"),
        _ => None,
    });
    let name = name.ok_or("has a certificate that names no sensor (no `sensor:NAME` in its alternative names)")?;
    Ok((name.to_owned(), Timestamp::from_secs(certificate.validity().not_after.timestamp())))
}
