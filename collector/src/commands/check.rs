//! `spanwatch-collector check`: are the settings good?

use std::path::Path;

use spanwatch_common::settings::SettingsError;

use crate::config::{Config, DEFAULT_PATH};

/// Reads the settings and the rule file that they name.
///
/// # Errors
/// The first mistake, with file, line, column and a hint.
pub fn run(path: Option<&Path>) -> Result<(), SettingsError> {
    let config = Config::load(path)?;
    config.rules()?;
    match path {
        Some(path) => println!("{}: good", path.display()),
        None if Path::new(DEFAULT_PATH).exists() => println!("{DEFAULT_PATH}: good"),
        None => println!("no settings file: the defaults apply"),
    }
    Ok(())
}
