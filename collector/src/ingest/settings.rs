//! Where sensors may connect, and how much the collector puts up with.

use serde::{Deserialize, Serialize};

/// Section `[ingest]` of the collector's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestSettings {
    /// Address and port for sensors. 4740 is IANA's port for flow records over TLS. Only holders of a certificate from
    /// `pki issue` get beyond the handshake, so every interface may listen.
    pub listen: String,
    /// Most connections at once. One sensor needs one, and two for a moment when it reconnects. 1 to 4096.
    pub connections_max: usize,
    /// How long a TLS handshake may take, in seconds. 1 to 60.
    pub handshake_timeout_secs: u64,
    /// How long the rest of a message may take once its first byte is here, in seconds, besides the time that its length
    /// needs at 16 KiB/s. 1 to 300.
    pub frame_timeout_secs: u64,
    /// How long a sensor may be silent, in seconds. It speaks every ten, so 20 is the least. 20 to 3600.
    pub idle_timeout_secs: u64,
    /// How many batches a sensor may have under way without acknowledgement. At two commits a second apart and batches of
    /// 4096 records the default lets one sensor send half a million records a second. 1 to 4096.
    pub credit_batches: u32,
    /// How long records of a sensor that sees the two directions of a flow apart (a card without symmetric hashing, the two fibres of a
    /// TAP) wait for their other halves, in milliseconds. Alerts about such a sensor come later by it; with less, more halves stay alone.
    /// 0 joins only what comes in one batch. 0 to 10000.
    pub join_wait_millis: u64,
}

impl Default for IngestSettings {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:4740".to_owned(),
            connections_max: 1024,
            handshake_timeout_secs: 5,
            frame_timeout_secs: 10,
            idle_timeout_secs: 60,
            credit_batches: 256,
            join_wait_millis: 3000,
        }
    }
}

impl IngestSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.listen.parse::<std::net::SocketAddr>().is_err() {
            return Err(("listen", "must be an address and a port such as \"0.0.0.0:4740\" or \"[::]:4740\"".to_owned()));
        }
        let numbers = [
            ("connections_max", self.connections_max as u64, 1..=4096),
            ("handshake_timeout_secs", self.handshake_timeout_secs, 1..=60),
            ("frame_timeout_secs", self.frame_timeout_secs, 1..=300),
            ("idle_timeout_secs", self.idle_timeout_secs, 20..=3600),
            ("credit_batches", u64::from(self.credit_batches), 1..=4096),
            ("join_wait_millis", self.join_wait_millis, 0..=10_000),
        ];
        for (key, value, range) in numbers {
            if !range.contains(&value) {
                return Err((key, format!("must be between {} and {}, not {value}", range.start(), range.end())));
            }
        }
        Ok(())
    }
}
