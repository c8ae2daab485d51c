//! `spanwatch-collector pki`: certificates for this collector and an identity for each sensor.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::config::Config;
use crate::pki::{Existing, Pki};
use crate::run::clock;

/// Make certificates.
#[derive(Clone, Debug, Args)]
pub struct PkiArgs {
    /// Where certificates and keys are. Without it `pki.directory` of the settings.
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum PkiCommand {
    /// Make the authority and this collector's certificate. Once, before the first start.
    Init {
        /// A further host name or address by which sensors check this collector. May be given several times. Not needed
        /// unless `uplink.server_name` is changed at a sensor: "collector" is always valid.
        #[arg(long = "name", value_name = "HOST-OR-IP")]
        names: Vec<String>,
        /// Overwrite. Every identity that was issued becomes worthless.
        #[arg(long, conflicts_with = "renew")]
        force: bool,
        /// Keep the authority and make only the collector's certificate anew. Restart the collector afterwards; sensors need nothing.
        #[arg(long)]
        renew: bool,
    },
    /// Make a sensor's identity: one file to copy to it as `uplink.identity`.
    Issue {
        /// Name of the sensor: 1 to 64 of a-z, 0-9, '.', '_', '-'.
        name: String,
        /// Overwrite the identity of that name. The old one stays valid until it ends.
        #[arg(long)]
        force: bool,
    },
}

/// Makes what was asked for.
///
/// # Errors
/// As [`Pki::init`], [`Pki::renew`] and [`Pki::issue`]; without `--dir` also those of the settings.
pub fn run(args: &PkiArgs, config: Option<&Path>) -> anyhow::Result<()> {
    let directory = match &args.dir {
        Some(directory) => directory.clone(),
        None => Config::load(config)?.pki.directory,
    };
    let pki = Pki::new(&directory);
    let existing = |force: &bool| if *force { Existing::Replace } else { Existing::Keep };
    match &args.command {
        PkiCommand::Init { names, renew: true, .. } => {
            pki.renew(names, clock())?;
            println!("{}: renewed; restart the collector to use it", pki.collector_path().display());
        }
        PkiCommand::Init { names, force, .. } => {
            pki.init(names, clock(), existing(force))?;
            println!("{}: authority and collector certificate made", directory.display());
            println!("next: spanwatch-collector pki issue NAME, once for each sensor");
        }
        PkiCommand::Issue { name, force } => {
            let path = pki.issue(name, clock(), existing(force))?;
            println!("{}: identity of sensor {name}", path.display());
            println!("next: copy it to the sensor as the file that `uplink.identity` names, readable for its owner only");
        }
    }
    Ok(())
}
