//! The collector's settings, gathered. Each section is explained where it is used, and in `deploy/collector.toml`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spanwatch_common::settings::{self, MetricsSettings, SettingsError};
use spanwatch_kql::Compat;

use crate::alert::deliver::{DeliverySettings, OutputSettings};
use crate::alert::file::Settings as AlertSettings;
use crate::detect::{RoleSettings, Roles, RuleFile, SHARDS, SiteSettings, Sites};
use crate::health::HealthSettings;
use crate::ingest::azure::settings::AzureSettings;
use crate::ingest::settings::IngestSettings;
use crate::store::StoreSettings;

/// Where the settings are unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/spanwatch/collector.toml";

/// Everything an operator may set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How sensors connect.
    pub ingest: IngestSettings,
    /// Certificates.
    pub pki: PkiSettings,
    /// Where records are kept.
    pub store: StoreSettings,
    /// What is looked for in them.
    pub detect: DetectSettings,
    /// How queries read KQL where Kusto is silent. Rules have keys of their own for it.
    pub kql_compat: Compat,
    /// What is said of the sensors' mirror ports.
    pub health: HealthSettings,
    /// Where alerts go.
    pub alerts: AlertSettings,
    /// How alerts wait for the outputs.
    pub delivery: DeliverySettings,
    /// The collector's own numbers.
    pub metrics: MetricsSettings<9478>,
    /// Where addresses belong. Without any, all private space is one site.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteSettings>,
    /// What hosts are for: who is innocent of what.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<RoleSettings>,
    /// Containers with Azure's flow logs that a running collector follows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub azure: Vec<AzureSettings>,
    /// Where alerts go besides the alert file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputSettings>,
}

/// Section `[pki]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PkiSettings {
    /// Where `pki init` and `pki issue` keep certificates and keys. Only `ca.key` is secret beyond this machine's own needs:
    /// whoever has it can make sensors.
    pub directory: PathBuf,
}

impl Default for PkiSettings {
    fn default() -> Self {
        Self { directory: PathBuf::from("/var/lib/spanwatch/pki") }
    }
}

impl PkiSettings {
    /// Checks the values.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.directory.as_os_str().is_empty() {
            return Err(("directory", "must name a directory, such as /var/lib/spanwatch/pki".to_owned()));
        }
        Ok(())
    }
}

/// Section `[detect]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectSettings {
    /// The rules: a file, or a directory of which every *.toml counts. Empty for the rules that come with the collector, which are
    /// those of `deploy/rules`. Read again on SIGHUP.
    pub rules: PathBuf,
    /// How often what the detectors have learned is written beside the records, in seconds. After a restart, records since then are
    /// looked at again. 5 to 3600.
    pub checkpoint_interval_secs: u64,
    /// On how many threads the detectors work, each on its share of the hosts. What they find does not depend on it. One is enough for
    /// some three hundred thousand records a second. 1 to 8.
    pub threads: usize,
}

impl Default for DetectSettings {
    fn default() -> Self {
        Self { rules: PathBuf::new(), checkpoint_interval_secs: 60, threads: 1 }
    }
}

impl DetectSettings {
    /// Checks the values.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence that says what it may be.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(5..=3_600).contains(&self.checkpoint_interval_secs) {
            return Err(("checkpoint_interval_secs", format!("must be 5 to 3600, not {}", self.checkpoint_interval_secs)));
        }
        if !(1..=SHARDS).contains(&self.threads) {
            return Err(("threads", format!("must be 1 to {SHARDS}, not {}", self.threads)));
        }
        Ok(())
    }
}

impl Config {
    /// Reads the file at `path`, or [`DEFAULT_PATH`] if there is one, or takes the defaults.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, has unknown keys, or values out of range; with the place of the mistake.
    pub fn load(path: Option<&Path>) -> Result<Self, SettingsError> {
        let default = Path::new(DEFAULT_PATH);
        match path {
            Some(path) => Self::read(path),
            None if default.exists() => Self::read(default),
            None => Ok(Self::default()),
        }
    }

    fn read(path: &Path) -> Result<Self, SettingsError> {
        Self::parse(path, &read_text(path)?)
    }

    /// Reads `text`, the content of `path`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let mut config: Self = settings::parse(path, text)?;
        let sections = [
            ("ingest", config.ingest.check()),
            ("pki", config.pki.check()),
            ("store", config.store.check()),
            ("kql_compat", config.kql_compat.check()),
            ("detect", config.detect.check()),
            ("health", config.health.check()),
            ("alerts", config.alerts.check()),
            ("delivery", config.delivery.check()),
            ("metrics", config.metrics.check()),
        ];
        for (section, result) in sections {
            if let Err((key, sentence)) = result {
                return Err(settings::mistake(path, text, &format!("{section}.{key}"), sentence));
            }
        }
        config.store.kql_compat = config.kql_compat.clone();
        for (number, azure) in config.azure.iter().enumerate() {
            if let Err((key, sentence)) = azure.check() {
                return Err(settings::mistake(path, text, &format!("azure.{key}"), sentence));
            }
            if config.azure.iter().take(number).any(|other| other.name == azure.name) {
                let sentence = format!("two containers are named {:?}; how far each was read is kept by its name", azure.name);
                return Err(settings::mistake(path, text, "azure.name", sentence));
            }
        }
        for (number, output) in config.outputs.iter().enumerate() {
            if let Err((key, sentence)) = output.check() {
                return Err(settings::mistake(path, text, &format!("outputs.{key}"), sentence));
            }
            if config.outputs.iter().take(number).any(|other| other.name == output.name) {
                let sentence = format!("two outputs are named {:?}; what each has got is kept by its name", output.name);
                return Err(settings::mistake(path, text, "outputs.name", sentence));
            }
        }
        Sites::new(&config.sites).map_err(|sentence| settings::mistake(path, text, "sites", sentence))?;
        Roles::new(&config.roles).map_err(|sentence| settings::mistake(path, text, "roles", sentence))?;
        Ok(config)
    }

    /// Where addresses belong.
    ///
    /// # Errors
    /// The sites contradict each other; [`parse`](Self::parse) has seen to that for settings from a file.
    pub fn sites(&self) -> anyhow::Result<Sites> {
        Sites::new(&self.sites).map_err(anyhow::Error::msg)
    }

    /// What hosts are for.
    ///
    /// # Errors
    /// A role is not complete; [`parse`](Self::parse) has seen to that for settings from a file.
    pub fn roles(&self) -> anyhow::Result<Roles> {
        Roles::new(&self.roles).map_err(anyhow::Error::msg)
    }

    /// The rules that the settings name.
    ///
    /// # Errors
    /// A rule file cannot be read, or has a mistake; with its place.
    pub fn rules(&self) -> Result<RuleFile, SettingsError> {
        let path = &self.detect.rules;
        if path.as_os_str().is_empty() {
            return Ok(RuleFile::default());
        }
        RuleFile::load(path)
    }
}

/// The content of a settings or rule file.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read_text(path: &Path) -> Result<String, SettingsError> {
    fs::read_to_string(path).map_err(|error| SettingsError {
        path: path.to_owned(),
        place: None,
        message: format!("cannot be read: {error}; does it exist, and may this user read it?"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_is_shipped_shows_every_key_with_its_default() {
        let text = include_str!("../../deploy/collector.toml");
        let shipped = Config::parse(Path::new("deploy/collector.toml"), text).unwrap();
        assert_eq!(shipped, Config::default());
        // Equal values could also come from keys that are absent: compare the keys as well.
        let written: toml::Table = text.parse().unwrap();
        let complete = toml::Table::try_from(Config::default()).unwrap();
        for (section, keys) in &complete {
            let written = written.get(section).and_then(toml::Value::as_table);
            for key in keys.as_table().unwrap().keys() {
                assert!(written.is_some_and(|table| table.contains_key(key)), "{section}.{key} is missing");
            }
        }
    }

    #[test]
    fn the_sites_that_the_shipped_file_shows_as_an_example_are_good() {
        let text = include_str!("../../deploy/collector.toml");
        let lines = text.lines().skip_while(|line| *line != "#[[sites]]").take_while(|line| line.starts_with('#'));
        let example: String = lines.map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
        let config = Config::parse(Path::new("c.toml"), &example).unwrap();
        assert_eq!(config.sites.len(), 2);
        assert_eq!(config.sites().unwrap().name("10.7.0.9".parse().unwrap()), Some("cell 7"));
    }

    #[test]
    fn the_roles_that_the_shipped_file_shows_as_an_example_are_good() {
        let text = include_str!("../../deploy/collector.toml");
        let lines = text.lines().skip_while(|line| *line != "#[[roles]]").take_while(|line| line.starts_with('#'));
        let example: String = lines.map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
        let config = Config::parse(Path::new("c.toml"), &example).unwrap();
        assert_eq!(config.roles.len(), 2);
        let roles = config.roles().unwrap().of("10.1.0.7".parse().unwrap(), spanwatch_common::time::Timestamp::from_secs(1));
        assert!(roles.has(crate::detect::roles::Role::Scanner));
    }

    #[test]
    fn the_example_of_a_container_shows_every_key_with_its_default() {
        let text = include_str!("../../deploy/collector.toml");
        let example = text.split("#[[azure]]").nth(1).unwrap().split("\n\n").next().unwrap();
        let example: Vec<&str> =
            example.lines().filter(|line| !line.starts_with("# ")).map(|line| line.trim_start_matches('#')).collect();
        let written: toml::Table = example.join("\n").parse().unwrap();
        let expected = AzureSettings { name: "plant".to_owned(), account: "plantlogs".to_owned(), ..AzureSettings::default() };
        assert_eq!(written, toml::Table::try_from(&expected).unwrap());
        expected.check().unwrap();
    }

    #[test]
    fn a_mistake_is_shown_with_its_place_and_a_hint() {
        let mistake = |text: &str| Config::parse(Path::new("c.toml"), text).unwrap_err().to_string();
        assert_eq!(mistake("[store]\ndirectry = \"/x\"\n"), "c.toml:2:1: unknown key `directry`; did you mean `directory`?");
        assert_eq!(
            mistake("[ingest]\ncredit_batches = 0\n"),
            "c.toml:2:1: ingest.credit_batches: must be between 1 and 4096, not 0"
        );
        let twice = mistake("[[azure]]\nname = \"a\"\naccount = \"x\"\n[[azure]]\nname = \"a\"\naccount = \"y\"\n");
        assert!(twice.starts_with("c.toml:5:1: azure.name: two containers are named \"a\""), "{twice}");
        let sites = mistake("[[sites]]\nname = \"a\"\ncidrs = []\n");
        assert!(sites.starts_with("c.toml:1:1: sites: site \"a\" needs a name and at least one prefix"), "{sites}");
        let role = "[[roles]]\nrole = \"admin\"\ncidrs = [\"10.1.0.9\"]\nowner = \"\"\nuntil = \"2027-06-30\"\n";
        assert!(mistake(role).starts_with("c.toml:1:1: roles: role admin needs an owner"), "{}", mistake(role));
        assert_eq!(
            mistake("[kql_compat]\nkappa = 0.0\n"),
            "c.toml:2:1: kql_compat.kappa: must be between 0.1 and 100, not 0; leave it out for the usual 2.7144"
        );
    }

    #[test]
    fn queries_read_kql_as_its_section_says() {
        let config = Config::parse(Path::new("c.toml"), "[kql_compat]\nkappa = 2.5\nperiod_score = \"unbiased\"\n").unwrap();
        assert_eq!((config.store.kql_compat.kappa, &config.store.kql_compat), (Some(2.5), &config.kql_compat));
    }
}
