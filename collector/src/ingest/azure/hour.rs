//! The hour that a blob of flow logs covers, as its path says it.

use std::fmt;

use spanwatch_common::time::Timestamp;
use time::{Date, Month, OffsetDateTime};

const NANOS_PER_HOUR: i64 = 3_600_000_000_000;

/// An hour of UTC, counted from the epoch. It shows as Azure writes it in paths: `y=2026/m=11/d=21/h=10`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobHour(i64);

impl BlobHour {
    /// The hour in which `time` lies.
    pub const fn of(time: Timestamp) -> Self {
        Self(time.as_nanos().div_euclid(NANOS_PER_HOUR))
    }

    /// From its number.
    pub const fn from_number(hours_since_epoch: i64) -> Self {
        Self(hours_since_epoch)
    }

    /// Hours since the epoch.
    pub const fn number(self) -> i64 {
        self.0
    }

    /// The hour named in a path: the last run of `y=…/m=…/d=…/h=…` in it. None if there is no such run, or no such hour.
    pub fn in_path(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split(['/', '\\']).collect();
        parts.windows(4).rev().find_map(|four| {
            let [year, month, day, hour] = four else { return None };
            let year = year.strip_prefix("y=")?.parse().ok()?;
            let month = Month::try_from(month.strip_prefix("m=")?.parse::<u8>().ok()?).ok()?;
            let day = day.strip_prefix("d=")?.parse().ok()?;
            let hour: i64 = hour.strip_prefix("h=")?.parse().ok().filter(|hour| (0..24).contains(hour))?;
            let midnight = Date::from_calendar_date(year, month, day).ok()?.midnight().assume_utc().unix_timestamp();
            Some(Self(midnight.div_euclid(3600) + hour))
        })
    }
}

impl fmt::Display for BlobHour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp(self.0.saturating_mul(3600)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        write!(f, "y={:04}/m={:02}/d={:02}/h={:02}", at.year(), u8::from(at.month()), at.day(), at.hour())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_of_azure_name_their_hour_and_the_hour_names_its_path() {
        let nsg = "resourceId=/SUBSCRIPTIONS/S/RESOURCEGROUPS/R/PROVIDERS/MICROSOFT.NETWORK/NETWORKSECURITYGROUPS/N/y=2026/m=11/d=21/h=10/m=00/macAddress=0022481A2B3C/PT1H.json";
        let flat = "flowLogResourceID=/S_NETWORKWATCHERRG/NETWORKWATCHER_WESTEUROPE_F/y=1970/m=01/d=02/h=03/m=00/macAddress=0022481A2B3C/PT1H.json";
        // 2026-11-21 is day 20,778.
        assert_eq!(BlobHour::in_path(nsg), Some(BlobHour::from_number(20_778 * 24 + 10)));
        assert_eq!(BlobHour::in_path(flat), Some(BlobHour::from_number(27)));
        assert_eq!(BlobHour::in_path(nsg).map(|hour| hour.to_string()).as_deref(), Some("y=2026/m=11/d=21/h=10"));
        for none in ["PT1H.json", "y=2026/m=13/d=01/h=00/x", "y=2026/m=02/d=30/h=00/x", "y=2026/m=02/d=20/h=24/x"] {
            assert_eq!(BlobHour::in_path(none), None, "{none}");
        }
    }
}
