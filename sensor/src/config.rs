//! The sensor's settings, gathered. Each section is explained where it is used, and in `deploy/sensor.toml`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use spanwatch_common::settings::{self, MetricsSettings, SettingsError};

use crate::capture::settings::Settings as CaptureSettings;
use crate::cores::settings::WorkerSettings;
use crate::decode::DecodeSettings;
use crate::export::ExportSettings;
use crate::flow_settings::FlowSettings;
use crate::flow_table::FlowTableSettings;
use crate::fragments::FragmentSettings;
use crate::overload::OverloadSettings;
use crate::uplink::identity::Identity;
use crate::uplink::settings::UplinkSettings;
use crate::worker::MeterSettings;

/// Where the settings are unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/spanwatch/sensor.toml";

/// Everything an operator may set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where packets come from.
    pub capture: CaptureSettings,
    /// The threads that read them.
    pub workers: WorkerSettings,
    /// What makes packets one flow.
    pub flow: FlowSettings,
    /// What is taken off frames.
    pub decode: DecodeSettings,
    /// How flows are kept.
    pub flow_table: FlowTableSettings,
    /// How fragments find their ports.
    pub fragments: FragmentSettings,
    /// What is shed when there is too much.
    pub overload: OverloadSettings,
    /// How records become batches.
    pub export: ExportSettings,
    /// The way to the collector.
    pub uplink: UplinkSettings,
    /// The sensor's own numbers.
    pub metrics: MetricsSettings<9477>,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, has unknown keys, or values out of range; with the place of the mistake.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path).map_err(|error| SettingsError {
            path: path.to_owned(),
            place: None,
            message: format!("cannot be read: {error}; copy deploy/sensor.toml there, or name another file with --config"),
        })?;
        let config = Self::parse(path, &text)?;
        Self::fail_at(path, &text, "capture", config.capture.check())?;
        Ok(config)
    }

    /// Reads the identity that the settings at `path` name, which a sensor cannot do without.
    ///
    /// # Errors
    /// The file is missing, damaged, or not this sensor's to read; with the line that names it.
    pub fn check_identity(&self, path: &Path) -> Result<(), SettingsError> {
        let text = fs::read_to_string(path).unwrap_or_default(); // for the line only
        let read = Identity::load(&self.uplink.identity).map(drop);
        Self::fail_at(path, &text, "uplink", read.map_err(|error| ("identity", error.to_string())))
    }

    /// Reads `text`, the content of `path`, without asking for an interface: what `replay` needs.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let config: Self = settings::parse(path, text)?;
        for (section, result) in [
            ("workers", config.workers.check()),
            ("flow", config.flow.check()),
            ("decode", config.decode.check()),
            ("flow_table", config.flow_table.check()),
            ("fragments", config.fragments.check()),
            ("overload", config.overload.check()),
            ("export", config.export.check()),
            ("uplink", config.uplink.check()),
            ("metrics", config.metrics.check()),
        ] {
            Self::fail_at(path, text, section, result)?;
        }
        Ok(config)
    }

    fn fail_at(path: &Path, text: &str, section: &str, result: Result<(), (&'static str, String)>) -> Result<(), SettingsError> {
        result.map_err(|(key, sentence)| settings::mistake(path, text, &format!("{section}.{key}"), sentence))
    }

    /// The part that the workers need.
    pub fn meter(&self) -> MeterSettings {
        MeterSettings {
            flow: self.flow.clone(),
            decode: self.decode.clone(),
            flow_table: self.flow_table.clone(),
            fragments: self.fragments.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cores::settings::Cores;

    #[test]
    fn the_file_that_is_shipped_shows_every_key_with_its_default() {
        let text = include_str!("../../deploy/sensor.toml");
        let shipped = Config::parse(Path::new("deploy/sensor.toml"), text).expect("our own file");
        let expected =
            Config { capture: CaptureSettings { interface: "eno2".into(), ..CaptureSettings::default() }, ..Config::default() };
        assert_eq!(shipped, expected);
        // Equal values could also come from keys that are absent: compare the keys as well.
        let written: toml::Table = text.parse().expect("TOML");
        let complete = toml::Table::try_from(Config::default()).expect("a table");
        for (section, keys) in &complete {
            let written = written.get(section).and_then(toml::Value::as_table);
            for key in keys.as_table().expect("sections only").keys() {
                assert!(written.is_some_and(|table| table.contains_key(key)), "{section}.{key} is missing");
            }
        }
    }

    #[test]
    fn an_identity_that_is_not_there_is_a_mistake_in_the_line_that_names_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s.toml");
        fs::write(&path, "[uplink]\nidentity = \"no/such.pem\"\n").expect("a file");
        let config = Config::parse(&path, &fs::read_to_string(&path).expect("the file")).expect("no other mistake");
        let error = config.check_identity(&path).expect_err("it is not there").to_string();
        assert!(error.contains("s.toml:2:1: uplink.identity: read identity no/such.pem: "), "{error}");
    }

    #[test]
    fn a_mistake_is_shown_with_its_place_and_a_hint() {
        let mistake = |text: &str| Config::parse(Path::new("s.toml"), text).expect_err("a mistake").to_string();
        assert_eq!(
            mistake("[capture]\nintreface = \"eno2\"\n"),
            "s.toml:2:1: unknown key `intreface`; did you mean `interface`?"
        );
        let cores = mistake("[workers]\ncores = \"outo\"\n");
        assert!(cores.contains("expected \"auto\", \"any\" or a list of cores such as [2, 3]"), "{cores}");
        let listed = Config::parse(Path::new("s.toml"), "[workers]\ncores = [2, 3]\n").expect("a list");
        assert_eq!(listed.workers.cores, Cores::These(vec![2, 3]));
        assert_eq!(
            mistake("[flow_table]\nflows_max = 3\n"),
            "s.toml:2:1: flow_table.flows_max: 3 is out of range; choose 64 to 100000000"
        );
    }
}
