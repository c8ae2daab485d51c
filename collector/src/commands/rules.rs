//! `spanwatch-collector rules`: what is looked for, why, and with which numbers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::detect;
use super::layout::wrap;
use super::replay::{Keep, Replay, replay};
use crate::config::Config;
use crate::detect::rules::{CATALOGUE, Rule, SHIPPED};
use crate::detect::{RuleFile, Variant};
use crate::ingest::recorded::InputArgs;

/// Settings that every rule has; what is not here makes the rule fire or not.
const COMMON: [&str; 11] = [
    "variants",
    "enabled",
    "time_axis",
    "window_secs",
    "lateness_secs",
    "severity",
    "attack",
    "exclude_sources",
    "exclude_destinations",
    "exclude_ports",
    "keys_max",
];
/// Where text hangs in the screens of `list` and `explain`.
const LIST_INDENT: usize = 7;
const EXPLAIN_INDENT: usize = 12;

/// What `rules` is told.
#[derive(Clone, Debug, Args)]
pub struct RulesArgs {
    /// Rule file or directory. Without it `detect.rules` of the settings, or the rules that come with the collector.
    #[arg(long, global = true, value_name = "FILE|DIR")]
    rules: Option<PathBuf>,
    #[command(subcommand)]
    deed: Deed,
}

#[derive(Clone, Debug, Subcommand)]
enum Deed {
    /// All rules: severity, forms that run, numbers, ATT&CK techniques, and the public rule that each restates.
    List {
        /// How to print.
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
    /// One rule: what it counts in both forms and why they differ, its settings and where they come from, what looks like it.
    Explain {
        /// Which, such as AZ-05.
        rule: String,
    },
    /// Check rule files; with recordings, also say how often each rule would have fired.
    Test {
        /// Recordings to try the rules on, as `detect` reads them.
        #[arg(long = "on", value_name = "PATH", num_args = 1..)]
        recordings: Vec<String>,
        /// Rule file or directory; the same as --rules.
        #[arg(value_name = "FILE|DIR")]
        files: Option<PathBuf>,
    },
}

/// How to print the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    /// For people.
    Table,
    /// One JSON array.
    Json,
}

/// Does what was asked.
///
/// # Errors
/// The rules have a mistake (a `SettingsError`, for exit code 78), a recording cannot be read, there is no such rule.
pub fn run(args: &RulesArgs, config: &Config) -> anyhow::Result<()> {
    let place = args.rules.clone().or_else(|| Some(config.detect.rules.clone()).filter(|path| !path.as_os_str().is_empty()));
    let text = match &args.deed {
        Deed::List { format: ListFormat::Table } => list(&detect::rules(place.as_deref())?),
        Deed::List { format: ListFormat::Json } => list_json(&detect::rules(place.as_deref())?)?,
        Deed::Explain { rule } => explain(&detect::rules(place.as_deref())?, place.as_deref(), rule)?,
        Deed::Test { recordings, files } => test(files.as_deref().or(place.as_deref()), recordings, config)?,
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("write the answer"),
        _ => Ok(()),
    }
}

fn list(rules: &RuleFile) -> String {
    let mut text = String::new();
    for (entry, rule) in rules.rules() {
        let common = rule.common();
        text.push_str(&format!(
            "{:<LIST_INDENT$}{:<44} {:<14}{}\n",
            entry.id,
            entry.title,
            common.severity,
            if entry.public_id.is_empty() && !common.variants.is_empty() { "on".to_owned() } else { forms(&common.variants) }
        ));
        text.push_str(&wrap("", LIST_INDENT, &format!("{}; {}", numbers(rule), common.attack.join(" "))));
        if !entry.public_id.is_empty() {
            text.push_str(&wrap("", LIST_INDENT, &format!("restates {} ({})", entry.public_name, entry.public_id)));
        }
    }
    text
}

/// `fixed`, `exact fixed` or `off`.
fn forms(variants: &[Variant]) -> String {
    if variants.is_empty() {
        return "off".to_owned();
    }
    variants.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What makes the rule fire: `threshold_ports 50, window 300 s`.
fn numbers(rule: &dyn Rule) -> String {
    let mut parts: Vec<String> = rule
        .settings()
        .iter()
        .filter(|(key, _)| !COMMON.contains(&key.as_str()))
        .map(|(key, value)| match value {
            toml::Value::Array(entries) if entries.len() > 3 => format!("{key}: {} entries", entries.len()),
            value => format!("{key} {value}"),
        })
        .collect();
    parts.push(format!("window {} s", rule.common().window.as_secs()));
    parts.join(", ")
}

fn list_json(rules: &RuleFile) -> anyhow::Result<String> {
    let rules: Vec<serde_json::Value> = rules
        .rules()
        .map(|(entry, rule)| {
            json!({
                "id": entry.id,
                "title": entry.title,
                "tactics": entry.tactics,
                "public": { "id": entry.public_id, "name": entry.public_name },
                "exact": entry.exact,
                "fixed": entry.fixed,
                "innocent": entry.innocent,
                "settings": rule.settings(),
            })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&rules)? + "\n")
}

fn explain(rules: &RuleFile, place: Option<&Path>, id: &str) -> anyhow::Result<String> {
    let Some((entry, rule)) = rules.rules().find(|(entry, _)| entry.id.eq_ignore_ascii_case(id)) else {
        let known: Vec<&str> = CATALOGUE.iter().map(|entry| entry.id).collect();
        bail!("there is no rule {id}; there are {}", known.join(", "));
    };
    let common = rule.common();
    let paragraphs = [
        ("restates", format!("{} ({})", entry.public_name, entry.public_id)),
        ("tactics", format!("{}; {}", entry.tactics, common.attack.join(", "))),
        ("exact", entry.exact.to_owned()),
        ("fixed", entry.fixed.to_owned()),
        ("look-alikes", entry.innocent.to_owned()),
        ("runs", forms(&common.variants)),
    ];
    let mut text = format!("{}  {}\n\n", entry.id, entry.title);
    let ours = entry.public_id.is_empty();
    for (head, paragraph) in paragraphs {
        let head = match head {
            "restates" | "exact" | "runs" if ours => continue,
            "fixed" if ours => "does",
            head => head,
        };
        text.push_str(&wrap(head, EXPLAIN_INDENT, &paragraph));
    }
    text.push_str("\nsettings in force, and where they stand\n");
    let written = origins(place, entry.id)?;
    for (key, value) in rule.settings() {
        let origin = written.get(&key).map_or("default", String::as_str);
        text.push_str(&wrap(&format!("  {key} ="), 26, &format!("{value}  # {origin}")));
    }
    text.push_str("\nwhat each number does, in the words of the shipped file\n");
    let comments = SHIPPED.iter().find_map(|(_, text)| section(text, entry.id)).unwrap_or_default();
    text.push_str(&prose(&comments));
    Ok(text)
}

/// Where comments of a rule file begin.
const MARGIN: usize = 2;

/// Lines of a rule file for reading: comments as paragraphs, settings below them.
fn prose(lines: &[&str]) -> String {
    let mut text = String::new();
    let mut paragraph = (0, String::new());
    let end = |(indent, words): &mut (usize, String), text: &mut String| {
        if !words.is_empty() {
            text.push_str(&wrap("", *indent, words));
            words.clear();
        }
    };
    for line in lines {
        let Some(comment) = line.strip_prefix('#') else {
            end(&mut paragraph, &mut text);
            text.push_str(&wrap("", 4, line));
            continue;
        };
        let indent = 1 + comment.len() - comment.trim_start().len();
        // At the margin a line goes on with the one before; further in, one that hangs below the beginning does.
        let goes_on = if paragraph.0 <= MARGIN { indent == paragraph.0 } else { indent > paragraph.0 };
        if !goes_on || paragraph.1.is_empty() {
            end(&mut paragraph, &mut text);
            paragraph.0 = indent;
        }
        paragraph.1.push_str(comment);
    }
    end(&mut paragraph, &mut text);
    text
}

/// Where each setting of the rule is written: by key, `scans.toml:12`. Empty without a place, or where it only has defaults.
fn origins(place: Option<&Path>, id: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let Some(place) = place else { return Ok(BTreeMap::new()) };
    let mut files = vec![place.to_owned()];
    if place.is_dir() {
        files = fs::read_dir(place)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    }
    let mut origins = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let mut current = "";
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                current = header.trim_matches('[').trim();
            } else if let Some((key, _)) = line.split_once('=')
                && current == id
                && !line.starts_with('#')
            {
                origins.insert(key.trim().to_owned(), format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    Ok(origins)
}

/// The section of rule `id` in the text of a rule file, with what is said above it.
fn section<'a>(text: &'a str, id: &str) -> Option<Vec<&'a str>> {
    let lines: Vec<&str> = text.lines().collect();
    let header = lines.iter().position(|line| line.trim() == format!("[{id}]"))?;
    let before = lines.get(..header)?.iter().rev().take_while(|line| line.starts_with('#')).count();
    let after = lines.get(header + 1..)?;
    let next = after.iter().position(|line| line.starts_with('[')).unwrap_or(after.len());
    // What is said above the next section belongs to that.
    let own =
        after.get(..next)?.iter().rposition(|line| !line.starts_with('#') && !line.trim().is_empty()).map_or(0, |last| last + 1);
    lines.get(header - before..header + 1 + own).map(<[&str]>::to_vec)
}

/// Checks the files, and counts what the rules would have found in `recordings`.
fn test(place: Option<&Path>, recordings: &[String], config: &Config) -> anyhow::Result<String> {
    let rules = detect::rules(place)?;
    let name = place.map_or("the rules that come with the collector".to_owned(), |place| place.display().to_string());
    let running = rules.rules().filter(|(_, rule)| !rule.common().variants.is_empty()).count();
    let mut text = format!("{name}: good; {running} of {} rules are on\n", CATALOGUE.len());
    if recordings.is_empty() {
        return Ok(text);
    }
    let inputs = InputArgs { inputs: recordings.to_vec(), ta_parity: false };
    let replay = replay(&inputs, &rules, (config.sites()?, config.roles()?), Keep::Both)?;
    eprint!("{}", replay.losses());
    text.push_str(&fired(&replay));
    Ok(text)
}

/// How often each rule fired, and on how many keys.
fn fired(replay: &Replay) -> String {
    let mut text = format!("{:<14} {:>10} {:>10}   {}\n", "rule", "findings", "alerts", "title");
    for state in replay.detection.states() {
        let is_its = |rule: &str, variant: Variant| rule == state.rule && variant == state.variant;
        let findings = replay.lines.iter().filter(|line| is_its(line.rule, line.variant)).count();
        let alerts = replay.alerts.iter().filter(|alert| is_its(&alert.rule, alert.variant)).count();
        let title = CATALOGUE.iter().find(|entry| entry.id == state.rule).map_or("", |entry| entry.title);
        let rule = format!("{} {}", state.rule, state.variant);
        text.push_str(&format!("{rule:<14} {findings:>10} {alerts:>10}   {title}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::layout::WIDTH;
    use super::*;

    #[test]
    fn every_screen_fits_eighty_columns_and_forgets_no_rule() {
        let rules = RuleFile::default();
        let mut screens = list(&rules);
        for (entry, _) in rules.rules() {
            assert!(screens.contains(&format!("\n{} ", entry.id)) || screens.starts_with(entry.id), "{}", entry.id);
            screens.push_str(&explain(&rules, None, &entry.id.to_lowercase()).unwrap());
        }
        let long: Vec<&str> = screens.lines().filter(|line| line.chars().count() > WIDTH).collect();
        assert!(long.is_empty(), "{long:#?}");
        assert!(explain(&rules, None, "AZ-99").unwrap_err().to_string().starts_with("there is no rule AZ-99; there are AZ-01, "));
    }

    #[test]
    fn a_setting_says_where_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mine.toml");
        fs::write(&file, "# mine\n[AZ-02]\nthreshold_ports = 9\n[AZ-01]\n# threshold_hosts = 1\nthreshold_hosts = 12\n").unwrap();
        for place in [&*file, directory.path()] {
            let text = explain(&RuleFile::load(place).unwrap(), Some(place), "AZ-01").unwrap();
            assert!(text.contains("threshold_hosts = ") && text.contains("mine.toml:6"), "{text}");
            assert!(!text.contains("mine.toml:3") && text.contains("# default"), "{text}");
        }
    }

    #[test]
    fn comments_of_a_rule_file_read_as_paragraphs() {
        let lines = ["# One two", "# three.", "#   exact: four", "#          five", "# Six.", "key = 1", "# Seven."];
        let expected = "  One two three.\n    exact: four five\n  Six.\n    key = 1\n  Seven.\n";
        assert_eq!(prose(&lines), expected);
    }
}
