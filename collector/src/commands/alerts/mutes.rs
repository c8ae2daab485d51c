//! `alerts mute`, `unmute`, `mutes`: who wants to hear no more of what, until when and why.

use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use spanwatch_common::time::Timestamp;

use super::list::columns;
use crate::alert::Muted;
use crate::alert::mute::{self, Mute, Target};
use crate::alert::terminal::{printable, to_the_second};
use crate::commands::period;

/// What to mute.
#[derive(Clone, Debug, Args)]
pub(super) struct TargetArgs {
    /// An alert: its id, or the beginning of it. As often as it re-opens, but not what comes a day later.
    #[arg(conflicts_with_all = ["rule", "subject"])]
    id: Option<String>,
    /// Or whatever this rule, such as AZ-01, says about --subject.
    #[arg(long, requires = "subject", value_name = "ID")]
    rule: Option<String>,
    /// A subject as `alerts` shows it ("10.0.0.9 > 10.0.0.2"), or the address or prefix of the initiator.
    #[arg(long, requires = "rule")]
    subject: Option<String>,
}

impl TargetArgs {
    /// What is meant; `full_id` completes an id.
    pub(super) fn target(&self, full_id: impl FnOnce(&str) -> anyhow::Result<String>) -> anyhow::Result<Target> {
        match (&self.id, &self.rule, &self.subject) {
            (Some(id), _, _) => Ok(Target::Alert { id: full_id(id)? }),
            (None, Some(rule), Some(subject)) => {
                Ok(Target::Subject { rule: rule.to_uppercase(), subject: subject.trim().to_owned() })
            }
            _ => bail!("say what to mute: the id of an alert, or --rule and --subject"),
        }
    }
}

/// Who answers for it.
#[derive(Clone, Debug, Args)]
pub(super) struct TermsArgs {
    /// Who answers for it.
    #[arg(long)]
    owner: String,
    /// Until when: a day (its beginning in UTC) or a time, such as 2027-01-31 or 2027-01-31T18:00:00Z; a year ahead at most.
    #[arg(long, value_name = "TIME")]
    until: String,
    /// Why, for whoever wonders later.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// Sets a mute beside the alert file `path`. A running collector sees it within a second.
pub(super) fn mute(target: &Target, terms: &TermsArgs, path: &Path, now: Timestamp) -> anyhow::Result<String> {
    let until = period::instant(&terms.until).with_context(|| {
        format!("--until: {:?} is no time; write one such as 2027-01-31 or 2027-01-31T18:00:00Z", terms.until)
    })?;
    let muted = Muted { owner: terms.owner.trim().to_owned(), until, reason: terms.reason.trim().to_owned() };
    let mute = Mute::new(target.clone(), muted, now).map_err(anyhow::Error::msg)?;
    change(path, |mutes| mutes.add(mute, now).map_err(io::Error::other))?;
    Ok(format!("{target} is muted until {}; it goes on being recorded\n", to_the_second(until)))
}

/// Ends the mute of `target`.
pub(super) fn unmute(target: &Target, path: &Path, now: Timestamp) -> anyhow::Result<String> {
    let mut found = false;
    change(path, |mutes| {
        found = mutes.remove(target, now);
        Ok(())
    })?;
    if !found {
        bail!("{target} is not muted; `alerts mutes` shows what is");
    }
    Ok(format!("{target} is not muted any more\n"))
}

/// All mutes, those that hold first.
pub(super) fn list(path: &Path, now: Timestamp) -> anyhow::Result<String> {
    let path = mute::path_beside(path);
    let mutes = mute::read(&path).with_context(|| format!("read {}", path.display()))?;
    if mutes.all().is_empty() {
        return Ok("nothing is muted\n".to_owned());
    }
    let heading = ["holds", "until", "since", "owner", "what", "reason"].map(str::to_owned);
    let mut rows: Vec<&Mute> = mutes.all().iter().collect();
    rows.sort_by_key(|mute| (!mute.holds(now), mute.muted.until));
    let rows = rows.into_iter().map(|mute| {
        [
            if mute.holds(now) { "yes" } else { "ended" }.to_owned(),
            to_the_second(mute.muted.until),
            to_the_second(mute.since),
            mute.muted.owner.clone(),
            mute.target.to_string(),
            mute.muted.reason.clone(),
        ]
        .map(|cell| printable(&cell))
    });
    Ok(columns(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))
}

fn change(alert_file: &Path, change: impl FnOnce(&mut mute::Mutes) -> io::Result<()>) -> anyhow::Result<()> {
    let path = mute::path_beside(alert_file);
    mute::change(&path, change)
        .with_context(|| format!("change {} (may this user write there? is `alerts.file` right?)", path.display()))
}
