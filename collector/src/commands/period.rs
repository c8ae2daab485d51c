//! A stretch of time as people type it.

use std::ops::Range;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use spanwatch_common::time::Timestamp;

/// Which records to look at.
#[derive(Clone, Debug, Args)]
pub struct PeriodArgs {
    /// From when: a time such as 2026-11-21T10:00:00Z, or how long ago, such as 24h or 7d.
    #[arg(long, default_value = "7d", value_name = "TIME")]
    pub since: String,
    /// Until when, likewise; now when absent.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

impl PeriodArgs {
    /// The stretch that was typed at `now`, without its end.
    ///
    /// # Errors
    /// It is not a stretch of time; a sentence that says what can be written.
    pub fn span(&self, now: Timestamp) -> anyhow::Result<Range<Timestamp>> {
        let time = |key: &str, text: &str| parse(text, now).map_err(|sentence| anyhow!("{key}: {sentence}"));
        let since = time("--since", &self.since)?;
        let until = self.until.as_deref().map_or(Ok(now), |text| time("--until", text))?;
        if since >= until {
            bail!("--since {} is not before --until {}", self.since, self.until.as_deref().unwrap_or("now"));
        }
        Ok(since..until)
    }
}

/// The time that `text` means at `now`: `2026-11-21T10:00:00Z`, `2026-11-21T11:00+01:00`, `2026-11-21` (its beginning in UTC), or how
/// long ago: `90m`, `24h`, `7d`, `2w`.
///
/// # Errors
/// It is neither; a sentence that says what can be written.
fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let found = ago(text).map(|ago| now.minus(ago)).or_else(|| instant(text));
    found.ok_or_else(|| {
        format!("{text:?} is no time; write one such as 2026-11-21T10:00:00Z, or how long ago, such as 90m, 24h, 7d or 2w")
    })
}

fn ago(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let secs = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u32>().ok().map(u64::from)?.checked_mul(secs)?))
}

/// RFC 3339, with the time of day, its seconds and the offset optional: without them midnight, zero and UTC.
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    let (date, rest) = match text.split_once(['T', 't', ' ']) {
        Some((date, rest)) => (date, Some(rest)),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year = digits(parts.next()?, 4)?;
    let month = time::Month::try_from(u8::try_from(digits(parts.next()?, 2)?).ok()?).ok()?;
    let day = u8::try_from(digits(parts.next()?, 2)?).ok()?;
    let date = time::Date::from_calendar_date(i32::try_from(year).ok()?, month, day).ok()?;
    if parts.next().is_some() {
        return None;
    }
    let midnight = date.midnight().assume_utc().unix_timestamp();
    let nanos = rest.map_or(Some(0), time_of_day)?;
    Some(Timestamp::from_nanos(midnight.checked_mul(1_000_000_000)?.checked_add(nanos)?))
}

/// Nanoseconds after midnight in UTC; negative, or more than a day's, where the offset makes it so.
fn time_of_day(text: &str) -> Option<i64> {
    let (clock, offset_secs) = match text.find(['Z', 'z', '+', '-']) {
        None => (text, 0),
        Some(at) => (&text[..at], offset(&text[at..])?),
    };
    let mut parts = clock.split(':');
    let (hour, minute) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let (second, nanos) = match parts.next() {
        None => (0, 0),
        Some(second) => match second.split_once('.') {
            None => (digits(second, 2)?, 0),
            Some((second, fraction)) if (1..=9).contains(&fraction.len()) => {
                let scale = 10_i64.pow(9 - u32::try_from(fraction.len()).ok()?);
                (digits(second, 2)?, digits(fraction, fraction.len())? * scale)
            }
            Some(_) => return None,
        },
    };
    let in_range = hour < 24 && minute < 60 && second < 60 && parts.next().is_none();
    in_range.then_some((hour * 3_600 + minute * 60 + second - offset_secs) * 1_000_000_000 + nanos)
}

fn offset(text: &str) -> Option<i64> {
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return (text.len() == 1).then_some(0),
    };
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    Some(sign * (digits(hours, 2)? * 3_600 + digits(minutes, 2)? * 60))
}

fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ages_are_understood() {
        let now = Timestamp::from_secs(1_763_719_200); // 2025-11-21T10:00:00Z
        for (text, secs) in [
            ("2025-11-21T10:00:00Z", 1_763_719_200),
            ("2025-11-21T11:30:00+01:30", 1_763_719_200),
            ("2025-11-21 10:00", 1_763_719_200),
            ("2025-11-21", 1_763_683_200),
            ("24h", 1_763_632_800),
            ("7d", 1_763_114_400),
            ("0s", 1_763_719_200),
        ] {
            assert_eq!(parse(text, now), Ok(Timestamp::from_secs(secs)), "{text}");
        }
        assert_eq!(parse("1970-01-01T00:00:00.5Z", now), Ok(Timestamp::from_nanos(500_000_000)));
        for text in
            ["", "d", "ä", "-1h", "7 days", "2025-13-01", "2025-11-31", "2025-11-21T24:00:00Z", "2025-11-21T10:00:00+1", "10:00"]
        {
            assert!(parse(text, now).is_err(), "{text}");
        }
    }
}
