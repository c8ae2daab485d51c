//! Where the collector is and how patient the sensor is with it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The port of a collector whose address names none: IANA's `ipfixs`, flow records over TLS.
pub const DEFAULT_PORT: u16 = 4740;

/// The way to the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UplinkSettings {
    /// Address of the collector: `host`, `host:port`, `192.0.2.1:4740` or `[2001:db8::1]:4740`. The port is 4740 unless given.
    pub collector: String,
    /// This sensor's identity: the one file that `spanwatch-collector pki issue NAME` wrote.
    pub identity: PathBuf,
    /// The name that the collector's certificate must carry. `pki init` puts "collector" into every one, so that the
    /// collector's address may change.
    pub server_name: String,
    /// How long connecting, the TLS handshake and the welcome may take, in seconds each. 1 to 300.
    pub connect_timeout_secs: u64,
    /// How long the collector may be silent before the connection counts as dead, in seconds. It answers the account that
    /// the sensor sends every ten seconds, so 30 is the least. 30 to 3600.
    pub silence_secs_max: u64,
    /// The longest pause between two attempts to connect, in seconds. The first pause is half a second; each doubles. 1 to 3600.
    pub retry_secs_max: u64,
    /// How long a stopping sensor waits for its last records to be acknowledged, in seconds. 0 to 3600.
    pub flush_timeout_secs: u64,
}

impl Default for UplinkSettings {
    fn default() -> Self {
        Self {
            collector: "localhost:4740".to_owned(),
            identity: PathBuf::from("/etc/spanwatch/identity.pem"),
            server_name: "collector".to_owned(),
            connect_timeout_secs: 10,
            silence_secs_max: 60,
            retry_secs_max: 30,
            flush_timeout_secs: 15,
        }
    }
}

impl UplinkSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let seconds = [
            ("connect_timeout_secs", self.connect_timeout_secs, 1..=300),
            ("silence_secs_max", self.silence_secs_max, 30..=3600),
            ("retry_secs_max", self.retry_secs_max, 1..=3600),
            ("flush_timeout_secs", self.flush_timeout_secs, 0..=3600),
        ];
        for (key, value, range) in seconds {
            if !range.contains(&value) {
                return Err((key, format!("must be between {} and {}", range.start(), range.end())));
            }
        }
        if self.address().is_none() {
            let sentence = "must be an address such as \"collector.example:4740\" or \"[2001:db8::1]:4740\"";
            return Err(("collector", sentence.to_owned()));
        }
        if rustls::pki_types::ServerName::try_from(self.server_name.as_str()).is_err() {
            return Err(("server_name", "must be a host name or an address".to_owned()));
        }
        Ok(())
    }

    /// Host and port, ready to be resolved.
    pub(super) fn address(&self) -> Option<(&str, u16)> {
        let text = self.collector.as_str();
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, rest.strip_prefix(':'))
            }
            // An IPv6 address without brackets has no port.
            None if text.matches(':').count() > 1 => (text, None),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(DEFAULT_PORT), str::parse).ok()?;
        (!host.is_empty() && port != 0 && !host.contains(char::is_whitespace)).then_some((host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_out_its_port() {
        let address = |collector: &str| {
            let settings = UplinkSettings { collector: collector.to_owned(), ..UplinkSettings::default() };
            settings.address().map(|(host, port)| (host.to_owned(), port))
        };
        let at = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(address("collector.example"), at("collector.example", 4740));
        assert_eq!(address("192.0.2.1:5000"), at("192.0.2.1", 5000));
        assert_eq!(address("2001:db8::1"), at("2001:db8::1", 4740));
        assert_eq!(address("[2001:db8::1]:5000"), at("2001:db8::1", 5000));
        assert_eq!(address("[2001:db8::1]"), at("2001:db8::1", 4740));
        for wrong in ["", ":4740", "host:", "host:http", "host:70000", "host:0", "two words"] {
            assert_eq!(address(wrong), None, "{wrong:?}");
        }
    }
}
