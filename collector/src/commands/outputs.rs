//! `spanwatch-collector outputs`: where alerts go, and whether they arrive.

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};

use crate::alert::deliver;
use crate::config::Config;

/// What `outputs` is told.
#[derive(Clone, Debug, Args)]
pub struct OutputsArgs {
    #[command(subcommand)]
    deed: Deed,
}

#[derive(Clone, Debug, Subcommand)]
enum Deed {
    /// The outputs that the settings name.
    List,
    /// What each field of an alert is called in CEF, OCSF, ECS and ASIM, as a table in Markdown.
    Map,
    /// Send an alert that says that it is a test, past the journal and the output's filters.
    Test {
        /// Name of the output in the settings.
        name: String,
    },
}

/// Does what was asked.
///
/// # Errors
/// There is no such output, or the test was not delivered, with what the receiver said.
pub async fn run(args: &OutputsArgs, config: &Config) -> anyhow::Result<()> {
    let names: Vec<&str> = config.outputs.iter().map(|output| &*output.name).collect();
    match &args.deed {
        Deed::List if names.is_empty() => println!("there are no outputs: the settings have no [[outputs]]"),
        Deed::List => println!("{}", names.join("\n")),
        Deed::Map => print!("{}", deliver::format::map::markdown()),
        Deed::Test { name } => {
            let Some(output) = config.outputs.iter().find(|output| output.name == *name) else {
                bail!("there is no output {name:?}; the settings have: {}", names.join(", "));
            };
            deliver::test(output).await.map_err(|why| anyhow!("the test did not arrive: {why}"))?;
            println!("delivered a test to {name}");
        }
    }
    Ok(())
}
