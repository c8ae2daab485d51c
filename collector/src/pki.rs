//! The collector's own certificate authority: two commands, one file to copy, no openssl.
//!
//! ```text
//! DIR/ca.pem  ca.key                 the authority; ca.key never leaves this machine
//! DIR/collector.pem  collector.key   the collector's certificate, and the key to it
//! DIR/NAME.pem                       a sensor's identity: key, certificate and ca.pem in one file
//! ```
//! Keys are ECDSA P-256. The authority lives ten years, certificates two. A sensor's certificate carries its name as
//! `sensor:NAME` in a URI of its alternative names (RFC 5280 §4.2.1.6); a collector's carries "collector" and its addresses.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use spanwatch_common::time::Timestamp;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Longest name of a sensor.
pub const NAME_LEN_MAX: usize = 64;
/// What every collector certificate is valid for, whatever its address.
const COLLECTOR_NAMES: [&str; 4] = ["collector", "localhost", "127.0.0.1", "::1"];
const AUTHORITY_LIFE: Duration = days(3653);
const CERTIFICATE_LIFE: Duration = days(730);
/// Certificates begin a little in the past, for sensors whose clock is slow.
const SLOW_CLOCK: Duration = Duration::from_secs(3600);

const fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// "read" or "write".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is no authority here yet.
    #[error("{} has no authority yet; run `spanwatch-collector pki init --dir {}` first", .0.display(), .0.display())]
    NoAuthority(PathBuf),
    /// It would overwrite something that others rely on.
    #[error("{} exists; {consequence}. Give --force if that is what you want", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
        /// What overwriting it would break.
        consequence: &'static str,
    },
    /// A name that the authority's own files have.
    #[error("{0:?} is the name of the collector's own files; choose another for the sensor")]
    Reserved(String),
    /// Not a name for a sensor.
    #[error(
        "a sensor's name has 1 to {NAME_LEN_MAX} characters of a-z, 0-9, '.', '_' and '-' and begins with a letter or digit; {0:?} does not"
    )]
    Name(String),
    /// Not a name for the collector.
    #[error("{0:?} is neither a host name nor an IP address")]
    Host(String),
    /// A file is not what its name says.
    #[error("{} is damaged: {what}; restore it from a backup or begin anew with `pki init --force`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Making a certificate failed.
    #[error("make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// What to do about files that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Keep,
    /// Overwrite.
    Replace,
}

/// The directory of an authority.
#[derive(Clone, Debug)]
pub struct Pki {
    directory: PathBuf,
}

impl Pki {
    /// The authority in `directory`, which need not exist yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The authority's certificate.
    pub fn authority_path(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The collector's certificate.
    pub fn collector_path(&self) -> PathBuf {
        self.directory.join("collector.pem")
    }

    /// The key to the collector's certificate.
    pub fn collector_key_path(&self) -> PathBuf {
        self.directory.join("collector.key")
    }

    fn authority_key_path(&self) -> PathBuf {
        self.directory.join("ca.key")
    }

    /// Makes an authority and the collector's certificate, valid also for `names`.
    ///
    /// # Errors
    /// There is one already and `existing` says to keep it; a name is none; a file cannot be written.
    pub fn init(&self, names: &[String], now: Timestamp, existing: Existing) -> Result<(), PkiError> {
        let path = self.authority_path();
        if existing == Existing::Keep && path.exists() {
            let consequence = "a new authority makes every sensor's identity worthless";
            return Err(PkiError::Exists { path, consequence });
        }
        let subject = collector_names(names.to_vec())?;
        let mut params = params(now, AUTHORITY_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // The serial number of the moment tells two authorities of one installation apart.
        let name = format!("Spanwatch authority of {now}");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        fs::create_dir_all(&self.directory).map_err(|source| PkiError::File {
            what: "create",
            path: self.directory.clone(),
            source,
        })?;
        self.write(&self.authority_key_path(), &key.serialize_pem())?;
        self.write(&path, &certificate.pem())?;
        self.certify_collector(subject, now)
    }

    /// Makes the collector's certificate anew, for the names it had and `names`. Sensors notice nothing.
    ///
    /// # Errors
    /// There is no authority or no certificate to renew, or a file cannot be written.
    pub fn renew(&self, names: &[String], now: Timestamp) -> Result<(), PkiError> {
        let der = self.read_certificate(&self.collector_path())?;
        let certificate = parse(&self.collector_path(), &der)?;
        let mut all = names.to_vec();
        for extension in certificate.subject_alternative_name().iter().flatten() {
            for name in &extension.value.general_names {
                match name {
                    GeneralName::DNSName(name) => all.push((*name).to_owned()),
                    GeneralName::IPAddress(octets) => all.extend(address(octets).map(|ip| ip.to_string())),
                    _ => {}
                }
            }
        }
        self.certify_collector(collector_names(all)?, now)
    }

    /// Makes a sensor's identity, and returns the file.
    ///
    /// # Errors
    /// There is no authority, the name is none or taken, or a file cannot be written.
    pub fn issue(&self, name: &str, now: Timestamp, existing: Existing) -> Result<PathBuf, PkiError> {
        check_name(name)?;
        let path = self.directory.join(format!("{name}.pem"));
        if ["ca", "collector"].contains(&name) {
            return Err(PkiError::Reserved(name.to_owned()));
        }
        if existing == Existing::Keep && path.exists() {
            return Err(PkiError::Exists { path, consequence: "this name has an identity, which would still be valid" });
        }
        let issuer = self.issuer()?;
        let mut params = params(now, CERTIFICATE_LIFE);
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::URI(format!("sensor:{name}").try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let authority = self.read(&self.authority_path())?;
        self.write(&path, &[key.serialize_pem(), certificate.pem(), authority].concat())?;
        Ok(path)
    }

    /// When the (first) certificate in a PEM file of this directory ends.
    ///
    /// # Errors
    /// The file cannot be read or is no certificate.
    pub fn end_of(&self, path: &Path) -> Result<Timestamp, PkiError> {
        let der = self.read_certificate(path)?;
        Ok(Timestamp::from_secs(parse(path, &der)?.validity().not_after.timestamp()))
    }

    fn certify_collector(&self, subject: Vec<SanType>, now: Timestamp) -> Result<(), PkiError> {
        let issuer = self.issuer()?;
        let mut params = params(now, CERTIFICATE_LIFE);
        params.distinguished_name.push(DnType::CommonName, "Spanwatch collector");
        params.subject_alt_names = subject;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        self.write(&self.collector_key_path(), &key.serialize_pem())?;
        self.write(&self.collector_path(), &certificate.pem())
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let (path, key_path) = (self.authority_path(), self.authority_key_path());
        let damaged = |path: &Path, error: rcgen::Error| PkiError::Damaged { path: path.to_owned(), what: error.to_string() };
        let key = KeyPair::from_pem(&self.read(&key_path)?).map_err(|error| damaged(&key_path, error))?;
        Issuer::from_ca_cert_pem(&self.read(&path)?, key).map_err(|error| damaged(&path, error))
    }

    fn read(&self, path: &Path) -> Result<String, PkiError> {
        fs::read_to_string(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => PkiError::NoAuthority(self.directory.clone()),
            _ => PkiError::File { what: "read", path: path.to_owned(), source },
        })
    }

    fn read_certificate(&self, path: &Path) -> Result<Vec<u8>, PkiError> {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let damaged = |error: rustls::pki_types::pem::Error| PkiError::Damaged { path: path.to_owned(), what: error.to_string() };
        Ok(CertificateDer::from_pem_slice(self.read(path)?.as_bytes()).map_err(damaged)?.to_vec())
    }

    /// Writes a file that only its owner may read, whole or not at all. It belongs to whom the directory belongs, so that
    /// root may prepare what the service's user reads.
    fn write(&self, path: &Path, text: &str) -> Result<(), PkiError> {
        let write = || {
            let unfinished = path.with_extension("unfinished");
            let _ = fs::remove_file(&unfinished); // left over from a crash, or not there
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            let (owner, mine) = (fs::metadata(&self.directory)?, file.metadata()?);
            if (owner.uid(), owner.gid()) != (mine.uid(), mine.gid()) {
                std::os::unix::fs::chown(&unfinished, Some(owner.uid()), Some(owner.gid()))?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&unfinished, path)
        };
        write().map_err(|source| PkiError::File { what: "write", path: path.to_owned(), source })
    }
}

/// Whether `name` may be a sensor's.
///
/// # Errors
/// [`PkiError::Name`].
pub fn check_name(name: &str) -> Result<(), PkiError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if begins_well && name.len() <= NAME_LEN_MAX && name.chars().all(allowed) {
        Ok(())
    } else {
        Err(PkiError::Name(name.to_owned()))
    }
}

fn params(now: Timestamp, life: Duration) -> CertificateParams {
    let at = |t: Timestamp| {
        let secs = t.as_nanos().div_euclid(1_000_000_000);
        OffsetDateTime::from_unix_timestamp(secs).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = at(now.minus(SLOW_CLOCK));
    params.not_after = at(now.plus(life));
    params.use_authority_key_identifier_extension = true;
    params
}

/// The names that every collector has, and `more`; each once.
fn collector_names(more: Vec<String>) -> Result<Vec<SanType>, PkiError> {
    let mut names: Vec<String> = COLLECTOR_NAMES.iter().map(|&name| name.to_owned()).collect();
    for name in more {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
        .into_iter()
        .map(|name| {
            if let Ok(address) = name.parse::<IpAddr>() {
                return Ok(SanType::IpAddress(address));
            }
            match rustls::pki_types::DnsName::try_from(name.as_str()) {
                Ok(_) => Ok(SanType::DnsName(name.try_into()?)),
                Err(_) => Err(PkiError::Host(name)),
            }
        })
        .collect()
}

fn parse<'a>(path: &Path, der: &'a [u8]) -> Result<X509Certificate<'a>, PkiError> {
    let damaged = |what: String| PkiError::Damaged { path: path.to_owned(), what };
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|error| damaged(error.to_string()))
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NOW: Timestamp = Timestamp::from_secs(1_790_000_000);

    #[test]
    fn an_authority_is_not_overwritten_by_accident_and_keys_are_for_their_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::new(directory.path().join("pki"));
        assert!(matches!(pki.issue("plant1", NOW, Existing::Keep), Err(PkiError::NoAuthority(_))));
        pki.init(&["192.0.2.7".to_owned()], NOW, Existing::Keep).unwrap();
        let identity = pki.issue("plant1", NOW, Existing::Keep).unwrap();
        for path in [&identity, &pki.collector_key_path(), &pki.authority_key_path()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
        let before = fs::read(&identity).unwrap();
        assert!(matches!(pki.init(&[], NOW, Existing::Keep), Err(PkiError::Exists { .. })));
        assert!(matches!(pki.issue("plant1", NOW, Existing::Keep), Err(PkiError::Exists { .. })));
        assert_eq!(fs::read(&identity).unwrap(), before);
        pki.issue("plant1", NOW, Existing::Replace).unwrap();
        assert_ne!(fs::read(&identity).unwrap(), before);
        assert_eq!(pki.end_of(&pki.collector_path()).unwrap(), NOW.plus(CERTIFICATE_LIFE));
    }

    #[test]
    fn renewing_keeps_the_names_and_the_authority() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::new(directory.path());
        pki.init(&["192.0.2.7".to_owned(), "collector.example".to_owned()], NOW, Existing::Keep).unwrap();
        let authority = fs::read(pki.authority_path()).unwrap();
        pki.renew(&["2001:db8::7".to_owned()], NOW.plus(days(700))).unwrap();
        assert_eq!(fs::read(pki.authority_path()).unwrap(), authority);
        let der = pki.read_certificate(&pki.collector_path()).unwrap();
        let certificate = parse(&pki.collector_path(), &der).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len();
        assert_eq!(names, COLLECTOR_NAMES.len() + 3);
        assert_eq!(pki.end_of(&pki.collector_path()).unwrap(), NOW.plus(days(700)).plus(CERTIFICATE_LIFE));
    }

    #[test]
    fn a_name_that_could_leave_the_directory_or_the_log_line_is_refused() {
        for name in ["", "../x", "a/b", "Plant", "a b", ".hidden", "-x", &"a".repeat(65), "ä"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["plant1", "a", "line-3.hall_2", &"a".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }
}
