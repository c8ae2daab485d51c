//! Which containers a running collector follows.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Section `[[azure]]` of the collector's settings; one for each container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AzureSettings {
    /// A name of your choice, for logs, metrics, and for the store, which keeps under it how far the container has been read: with
    /// another name it is read anew. Letters, digits, `-`; at most 64.
    pub name: String,
    /// The storage account.
    pub account: String,
    /// The container: `insights-logs-flowlogflowevent` for VNet flow logs, `insights-logs-networksecuritygroupflowevent` for NSG
    /// flow logs.
    pub container: String,
    /// Only blobs under this folder, to follow one flow log of several. Empty for all.
    pub prefix: String,
    /// A file with a SAS token (it needs `sp=rl`), an account key or a connection string. It is read again when it changes. Empty for
    /// what the environment offers: `AZURE_STORAGE_SAS_TOKEN`, `AZURE_STORAGE_ACCOUNT_KEY`, a service principal, or the managed
    /// identity of this machine.
    pub credential_file: PathBuf,
    /// Another address than `https://ACCOUNT.blob.core.windows.net`: for other clouds, private endpoints, or Azurite.
    pub endpoint: String,
    /// How often it is looked for new rows, in seconds. Azure appends once a minute. 1 to 3600.
    pub poll_interval_secs: u64,
    /// How many hours before the current one are looked at, because Azure may write an hour's last rows late. When the collector
    /// starts for the first time, it begins so far back. 1 to 48.
    pub hours_back: u32,
    /// After a longer standstill, at most so many hours are caught up with; what lies before is left to `import`. 1 to 8760.
    pub catch_up_hours_max: u32,
    /// Blobs that are followed at once: one for each network interface and hour. Further ones wait and are counted. 1 to 1000000.
    pub blobs_max: usize,
    /// Leave a blank source or destination of Traffic Analytics blank, as `import --ta-parity`.
    pub ta_parity: bool,
}

impl Default for AzureSettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            account: String::new(),
            container: "insights-logs-flowlogflowevent".to_owned(),
            prefix: String::new(),
            credential_file: PathBuf::new(),
            endpoint: String::new(),
            poll_interval_secs: 30,
            hours_back: 2,
            catch_up_hours_max: 168,
            blobs_max: 50_000,
            ta_parity: false,
        }
    }
}

impl AzureSettings {
    /// Checks the values.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(is_name) {
            return Err(("name", "must be 1 to 64 letters, digits and -".to_owned()));
        }
        for (key, value) in [("account", &self.account), ("container", &self.container)] {
            if value.is_empty() || !value.bytes().all(|byte| is_name(byte) || byte == b'$') {
                return Err((key, "must be the name that Azure shows: letters, digits and -".to_owned()));
            }
        }
        if !self.endpoint.is_empty() && !self.endpoint.starts_with("https://") && !self.endpoint.starts_with("http://") {
            return Err(("endpoint", "must begin with https://, or be empty".to_owned()));
        }
        let numbers = [
            ("poll_interval_secs", self.poll_interval_secs, 1..=3_600),
            ("hours_back", u64::from(self.hours_back), 1..=48),
            ("catch_up_hours_max", u64::from(self.catch_up_hours_max), 1..=8_760),
            ("blobs_max", self.blobs_max as u64, 1..=1_000_000),
        ];
        for (key, value, range) in numbers {
            if !range.contains(&value) {
                return Err((key, format!("must be between {} and {}, not {value}", range.start(), range.end())));
            }
        }
        Ok(())
    }
}
