//! Where alerts go, and which.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spanwatch_detect::finding::Severity;

use super::format::Format;
use super::format::syslog::Framing;
use crate::{Alert, AlertState, Class};

/// A key that is wrong, and a sentence that says what it may be.
type Mistake = (&'static str, String);

/// Section `[delivery]`: the journal that keeps alerts until every output has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeliverySettings {
    /// Where the journal is. Without any `[[outputs]]` it is not made.
    pub directory: PathBuf,
    /// Size of the journal at which the oldest alerts are given up for the outputs that have not taken them yet; they are counted, and
    /// stand in the alert file. One alert takes about 2000 bytes. 1048576 (1 MiB) to 1099511627776 (1 TiB).
    pub journal_bytes_max: u64,
    /// Longest wait between two attempts to reach an output, in seconds. Waits begin at one second and double. Smaller notices sooner that it
    /// is back. 1 to 3600.
    pub retry_wait_max_secs: u64,
}

impl Default for DeliverySettings {
    fn default() -> Self {
        Self { directory: PathBuf::from("/var/lib/spanwatch/outbox"), journal_bytes_max: 256 << 20, retry_wait_max_secs: 60 }
    }
}

impl DeliverySettings {
    /// Checks the values.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), Mistake> {
        if self.directory.as_os_str().is_empty() {
            return Err(("directory", "must name a directory, such as /var/lib/spanwatch/outbox".to_owned()));
        }
        within("journal_bytes_max", self.journal_bytes_max, 1 << 20, 1 << 40)?;
        within("retry_wait_max_secs", self.retry_wait_max_secs, 1, 3_600)
    }
}

/// What an output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Lines in a file.
    #[default]
    File,
    /// RFC 5424 over UDP, TCP or TLS.
    Syslog,
    /// HTTP POST.
    Webhook,
    /// Microsoft Sentinel, by the Logs Ingestion API.
    Sentinel,
}

/// How syslog travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// RFC 5426. Nobody says whether a datagram arrived: sent counts as delivered.
    Udp,
    /// RFC 6587. Nobody says whether a message was read: written, on a connection that stands a quarter of a second later, counts as delivered.
    #[default]
    Tcp,
    /// RFC 5425. As TCP, encrypted, and with certificates.
    Tls,
}

/// What one POST of a webhook carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// One alert, as a JSON object.
    #[default]
    Object,
    /// A JSON array of alerts.
    Array,
    /// A line for each alert.
    Ndjson,
}

/// Section `[[outputs]]`; one for each place where alerts go besides the alert file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSettings {
    /// A name of your choice, for logs, metrics, and for the journal, which keeps under it what was delivered: with another name the
    /// output begins anew, with the alerts from then on. Letters, digits, `-`; at most 64.
    pub name: String,
    /// `file`, `syslog`, `webhook` or `sentinel`.
    pub kind: Kind,
    /// How an alert is written: `ndjson` (our own line), `cef`, `ocsf`, `ecs` or `asim`. Sentinel takes `asim` only; a webhook anything but
    /// `cef`.
    pub format: Format,
    /// With `ocsf`: whether each row of evidence follows its finding as a Network Activity (4001), where the output takes several objects:
    /// `file`, and `webhook` with `array` or `ndjson`.
    pub network_activity: bool,

    /// Alerts below this severity are left out: `informational`, `low`, `medium`, `high` or `critical`.
    pub severity_min: Severity,
    /// Alerts that are less sure than this are left out. Higher is quieter. 0 to 1.
    pub confidence_min: f64,
    /// What alerts may be about: `detection`, `incident`, `storm`, `health`.
    pub classes: BTreeSet<Class>,
    /// Which moments of an alert's life are told: `open`, `updated`, `closed`. Leave out `updated` for a pager.
    pub states: BTreeSet<AlertState>,
    /// Rules that are told, such as `ND-01`; a `*` at the end stands for anything. Empty for all.
    pub rules: Vec<String>,
    /// Whether alerts are told that are for the record only: muted ones, and those for which a storm or a better rule speaks.
    pub include_quiet: bool,

    /// `file`: the file. It is appended to, and made anew when it was renamed or removed, as logrotate does.
    pub path: PathBuf,

    /// `syslog`: host and port of the receiver, such as `192.0.2.10:514`; for TLS usually port 6514.
    pub address: String,
    /// `syslog`: `udp`, `tcp` or `tls`.
    pub transport: Transport,
    /// `syslog` over `tcp`: `octet-counting` (the length before each message) or `lf` (a line feed after it). TLS always counts.
    pub framing: Framing,
    /// `syslog`: facility, 0 to 23. 16 is local0.
    pub facility: u8,
    /// `syslog`: name of this machine in the header. Empty for what the system says.
    pub hostname: String,
    /// `syslog`: private enterprise number in the name of the structured data, `spanwatch@NUMBER`. 32473 is IANA's for examples (RFC
    /// 5612); take your own organisation's if a receiver insists on a real one.
    pub enterprise_number: u32,
    /// `syslog`: longest message, in bytes; longer ones lose evidence, then the end of the sentence, and are counted. 0 for what receivers
    /// must at least be able to take: 2048 over UDP (RFC 5426 §3.2), 8192 otherwise (RFC 5425 §4.3.1). 480 to 1000000, over UDP to 65000.
    pub message_bytes_max: usize,

    /// `syslog` over `tls`, `webhook`, `sentinel`: a PEM file with the authorities that may have signed the receiver's certificate. Syslog
    /// needs it; the others trust those of the system besides.
    pub ca_file: PathBuf,
    /// `syslog` over `tls`: a PEM file with our certificate and key, where the receiver asks for one. Empty for none.
    pub identity_file: PathBuf,

    /// `webhook`: where to POST, `https://…`.
    pub url: String,
    /// `webhook`: a file with a token that is sent as `Authorization: Bearer`. Empty for none. It is read again for each request.
    pub token_file: PathBuf,
    /// `webhook`: a file with a secret for the header `Spanwatch-Signature: t=SECONDS,v1=HEX`, HMAC-SHA256 over the seconds since 1970, a
    /// dot and the body as sent. Empty for none. It is read again for each request.
    pub hmac_key_file: PathBuf,
    /// `webhook`: what one POST carries: `object` (one alert), `array` (JSON), or `ndjson` (a line for each).
    pub body: Body,
    /// `webhook`: whether the body is packed with gzip. Sentinel's always is.
    pub gzip: bool,
    /// Alerts that are sent at once, at most. 1 to 10000.
    pub batch_max: usize,
    /// How long one attempt may take, in seconds. 1 to 300.
    pub timeout_secs: u64,

    /// `sentinel`: the logs ingestion endpoint of the data collection endpoint or rule,
    /// `https://NAME.REGION-1.ingest.monitor.azure.com`.
    pub endpoint: String,
    /// `sentinel`: immutable id of the data collection rule, `dcr-…`.
    pub rule_id: String,
    /// `sentinel`: the stream that the rule declares, such as `Custom-SpanwatchAlerts`.
    pub stream: String,
    /// `sentinel`: directory (tenant) id of the application that may write (role Monitoring Metrics Publisher on the rule).
    pub tenant_id: String,
    /// `sentinel`: application (client) id.
    pub client_id: String,
    /// `sentinel`: a file with the application's client secret. It is read again for each token.
    pub client_secret_file: PathBuf,
    /// `sentinel`: where tokens come from; another for other clouds.
    pub authority: String,
    /// `sentinel`: for what a token is asked; another for other clouds.
    pub scope: String,
}

impl Default for OutputSettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: Kind::File,
            format: Format::Ndjson,
            network_activity: false,
            severity_min: Severity::Informational,
            confidence_min: 0.0,
            classes: [Class::Detection, Class::Incident, Class::Storm, Class::Health].into(),
            states: [AlertState::Open, AlertState::Updated, AlertState::Closed].into(),
            rules: Vec::new(),
            include_quiet: false,
            path: PathBuf::new(),
            address: String::new(),
            transport: Transport::Tcp,
            framing: Framing::OctetCounting,
            facility: 16,
            hostname: String::new(),
            enterprise_number: 32_473,
            message_bytes_max: 0,
            ca_file: PathBuf::new(),
            identity_file: PathBuf::new(),
            url: String::new(),
            token_file: PathBuf::new(),
            hmac_key_file: PathBuf::new(),
            body: Body::Object,
            gzip: false,
            batch_max: 500,
            timeout_secs: 30,
            endpoint: String::new(),
            rule_id: String::new(),
            stream: String::new(),
            tenant_id: String::new(),
            client_id: String::new(),
            client_secret_file: PathBuf::new(),
            authority: "https://login.microsoftonline.com".to_owned(),
            scope: "https://monitor.azure.com/.default".to_owned(),
        }
    }
}

impl OutputSettings {
    /// Checks the values.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), Mistake> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(is_name) {
            return Err(("name", "must be 1 to 64 letters, digits and -".to_owned()));
        }
        if !(0.0..=1.0).contains(&self.confidence_min) {
            return Err(("confidence_min", format!("must be 0 to 1, not {}", self.confidence_min)));
        }
        for (key, empty) in [("classes", self.classes.is_empty()), ("states", self.states.is_empty())] {
            if empty {
                return Err((key, "must name at least one, or nothing is ever sent".to_owned()));
            }
        }
        within("batch_max", self.batch_max as u64, 1, 10_000)?;
        within("timeout_secs", self.timeout_secs, 1, 300)?;
        let several = matches!((self.kind, self.body), (Kind::File, _) | (Kind::Webhook, Body::Array | Body::Ndjson));
        if self.network_activity && !(several && self.format == Format::Ocsf) {
            let sentence = "works with format ocsf, to a file or to a webhook with body array or ndjson".to_owned();
            return Err(("network_activity", sentence));
        }
        match self.kind {
            Kind::File if self.path.file_name().is_none() => {
                Err(("path", "must name a file, such as /var/log/spanwatch/alerts.json".to_owned()))
            }
            Kind::File => Ok(()),
            Kind::Syslog => self.check_syslog(),
            Kind::Webhook => self.check_webhook(),
            Kind::Sentinel => self.check_sentinel(),
        }
    }

    fn check_syslog(&self) -> Result<(), Mistake> {
        let port = self.address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(("address", "must be host and port of the receiver, such as 192.0.2.10:514".to_owned()));
        }
        within("facility", u64::from(self.facility), 0, 23)?;
        let most = if self.transport == Transport::Udp { 65_000 } else { 1_000_000 };
        if self.message_bytes_max != 0 {
            within("message_bytes_max", self.message_bytes_max as u64, 480, most)?;
        }
        if self.transport == Transport::Tls && self.ca_file.as_os_str().is_empty() {
            let sentence = "must name a PEM file for TLS; for a public authority, /etc/ssl/certs/ca-certificates.crt";
            return Err(("ca_file", sentence.to_owned()));
        }
        Ok(())
    }

    fn check_webhook(&self) -> Result<(), Mistake> {
        check_url("url", &self.url)?;
        if !self.format.is_json() {
            return Err(("format", "must be ndjson, ocsf, ecs or asim for a webhook; cef goes by syslog or file".to_owned()));
        }
        Ok(())
    }

    fn check_sentinel(&self) -> Result<(), Mistake> {
        for (key, url) in [("endpoint", &self.endpoint), ("authority", &self.authority)] {
            check_url(key, url)?;
        }
        if self.format != Format::Asim {
            return Err(("format", "must be asim for Sentinel".to_owned()));
        }
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let words = [
            ("rule_id", &self.rule_id, "the immutable id that the data collection rule shows, dcr-…"),
            ("stream", &self.stream, "the stream that the data collection rule declares, such as Custom-SpanwatchAlerts"),
            ("tenant_id", &self.tenant_id, "the directory (tenant) id of the application"),
            ("client_id", &self.client_id, "the application (client) id"),
        ];
        for (key, word, what) in words {
            if word.is_empty() || !word.bytes().all(is_word) {
                return Err((key, format!("must be {what}")));
            }
        }
        if self.client_secret_file.as_os_str().is_empty() {
            return Err(("client_secret_file", "must name a file with the application's client secret".to_owned()));
        }
        Ok(())
    }

    /// Whether `alert` goes to this output.
    pub fn wants(&self, alert: &Alert) -> bool {
        let named = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => alert.rule.starts_with(beginning),
            None => alert.rule == *pattern,
        };
        alert.severity >= self.severity_min
            && alert.confidence >= self.confidence_min
            && self.classes.contains(&alert.class)
            && self.states.contains(&alert.state)
            && (self.rules.is_empty() || self.rules.iter().any(named))
            && (self.include_quiet || !alert.is_quiet())
    }

    /// Longest syslog message, in bytes.
    pub const fn message_len_max(&self) -> usize {
        match (self.message_bytes_max, self.transport) {
            (0, Transport::Udp) => 2_048,
            (0, _) => 8_192,
            (own, _) => own,
        }
    }
}

fn check_url(key: &'static str, url: &str) -> Result<(), Mistake> {
    if url.starts_with("https://") || url.starts_with("http://") {
        return Ok(());
    }
    Err((key, "must begin with https://".to_owned()))
}

fn within(key: &'static str, value: u64, least: u64, most: u64) -> Result<(), Mistake> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err((key, format!("must be {least} to {most}, not {value}")))
}
