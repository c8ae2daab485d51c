//! What a `doctor` command found out, one check at a time, and how it is shown.

use std::fmt::Write as _;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It runs, but not as well, or not for long.
    Warn,
    /// It does not run like this.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What: one or two words.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub says: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

impl Check {
    /// As it should be.
    pub fn ok(name: &'static str, says: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, says: says.into(), remedy: String::new() }
    }

    /// It runs, but not as well as it could.
    pub fn warn(name: &'static str, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, says: says.into(), remedy: remedy.into() }
    }

    /// It does not run like this.
    pub fn fail(name: &'static str, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, says: says.into(), remedy: remedy.into() }
    }
}

/// Whether anything must be mended.
pub fn any_fails(checks: &[Check]) -> bool {
    checks.iter().any(|check| check.verdict == Verdict::Fail)
}

/// The checks as a person reads them: a line each, and another one for what to do.
pub fn render(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, verdict, says, remedy } in checks {
        let word = match verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let _ = writeln!(text, "{word}  {name:<width$}  {says}");
        if !remedy.is_empty() {
            let _ = writeln!(text, "      {:<width$}  -> {remedy}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_stands_below_its_finding() {
        let checks = [Check::ok("kernel", "Linux 6.18"), Check::fail("clock", "not set", "run chrony")];
        assert_eq!(render(&checks), "ok    kernel  Linux 6.18\nFAIL  clock   not set\n              -> run chrony\n");
        assert!(any_fails(&checks));
    }
}
