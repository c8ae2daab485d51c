//! Times as text: written by `Timestamp`'s `Display`, read back from exactly that.

use serde::{Deserialize, Deserializer, Serializer, de::Error};
use spanwatch_common::time::Timestamp;
use time::{Date, Month, Time};

pub(crate) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(at)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(from)?;
    read(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no time; write it as 2026-11-21T10:00:00.000000000Z")))
}

fn read(text: &str) -> Option<Timestamp> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok();
    let shape = text.len() == 30 && text.ends_with('Z');
    let month = Month::try_from(u8::try_from(number(5, 7)?).ok()?).ok()?;
    let date = Date::from_calendar_date(i32::try_from(number(0, 4)?).ok()?, month, u8::try_from(number(8, 10)?).ok()?).ok()?;
    let part = |from: usize, to: usize| u8::try_from(number(from, to)?).ok();
    let clock = Time::from_hms_nano(part(11, 13)?, part(14, 16)?, part(17, 19)?, number(20, 29)?).ok()?;
    let nanos = date.with_time(clock).assume_utc().unix_timestamp_nanos();
    i64::try_from(nanos).ok().filter(|_| shape).map(Timestamp::from_nanos)
}
