//! The fields of tuples and table rows: bytes to values.

use std::net::Ipv6Addr;

use spanwatch_common::cloud::{Action, Direction};
use spanwatch_common::flow::{Mac, protocol};
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

/// Below this a time is in seconds, from it on in milliseconds: seconds pass it in the year 5138, milliseconds did in 1973.
const MILLIS_FROM: u64 = 100_000_000_000;

/// A whole number in decimal digits.
#[inline]
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for &byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// A counter of a table: a whole number, also where a real-valued column writes it as `12.0` or `1.2e+3`.
pub(crate) fn count(text: &[u8]) -> Option<u64> {
    /// The largest power of two whose whole numbers a double tells apart.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    number(text).or_else(|| {
        let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
        // Truncation is meant: counters are whole.
        (0.0..=EXACT_MAX).contains(&value).then_some(value as u64)
    })
}

/// An address of either family.
#[inline]
pub(crate) fn address(text: &[u8]) -> Option<Address> {
    match leading_v4(text) {
        Some((address, [])) => Some(address),
        _ => address_v6(text),
    }
}

/// The digits at the front as a number, and what follows; none if there are too many or none.
#[inline]
pub(crate) fn leading_number(text: &[u8]) -> Option<(u64, &[u8])> {
    /// Any number of so many digits fits.
    const DIGITS_MAX: usize = 19;
    let mut value = 0_u64;
    let mut digits = 0;
    while let Some(digit) = text.get(digits).map(|byte| byte.wrapping_sub(b'0')).filter(|&digit| digit <= 9) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        digits += 1;
    }
    if digits == 0 || digits > DIGITS_MAX { None } else { Some((value, text.get(digits..)?)) }
}

/// The IPv4 address at the front, and what follows its last digit.
#[inline]
pub(crate) fn leading_v4(text: &[u8]) -> Option<(Address, &[u8])> {
    let mut value = 0_u32;
    let mut rest = text;
    for place in 0..4 {
        let [first, after @ ..] = rest else { return None };
        let mut octet = u32::from(first.wrapping_sub(b'0'));
        if octet > 9 {
            return None;
        }
        rest = after;
        for _ in 0..2 {
            let [next, after @ ..] = rest else { break };
            let digit = u32::from(next.wrapping_sub(b'0'));
            if digit > 9 {
                break;
            }
            octet = octet * 10 + digit;
            rest = after;
        }
        if octet > 255 {
            return None;
        }
        value = value << 8 | octet;
        if place < 3 {
            let [b'.', after @ ..] = rest else { return None };
            rest = after;
        }
    }
    Some((Address::from_v4(value.to_be_bytes()), rest))
}

#[cold]
fn address_v6(text: &[u8]) -> Option<Address> {
    let text = std::str::from_utf8(text).ok()?;
    let v6: Ipv6Addr = text.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    Some(Address::from_v6(v6.octets())).filter(|address| address.is_some())
}

/// The protocol as any of the formats writes it: `T`, `U`, a name, or the IANA number.
#[inline]
pub(crate) fn protocol_number(text: &[u8]) -> Option<u8> {
    match text {
        [b'T' | b'6'] => Some(protocol::TCP),
        [b'U'] | [b'1', b'7'] => Some(protocol::UDP),
        _ => number(text).and_then(|number| u8::try_from(number).ok()).or_else(|| protocol_name(text)),
    }
}

fn protocol_name(text: &[u8]) -> Option<u8> {
    let is = |name: &[u8]| text.eq_ignore_ascii_case(name);
    match text {
        _ if is(b"TCP") || is(b"T") => Some(protocol::TCP),
        _ if is(b"UDP") || is(b"U") => Some(protocol::UDP),
        _ if is(b"ICMP") || is(b"I") => Some(protocol::ICMP),
        _ if is(b"ICMPv6") => Some(protocol::ICMPV6),
        _ => None,
    }
}

/// `I`, `O`, or in words.
#[inline]
pub(crate) fn direction(text: &[u8]) -> Option<Direction> {
    match text {
        [b'I'] => Some(Direction::Inbound),
        [b'O'] => Some(Direction::Outbound),
        _ if text.eq_ignore_ascii_case(b"Inbound") => Some(Direction::Inbound),
        _ if text.eq_ignore_ascii_case(b"Outbound") => Some(Direction::Outbound),
        _ => None,
    }
}

/// `A`, `D`, or in words.
#[inline]
pub(crate) fn action(text: &[u8]) -> Option<Action> {
    match text {
        [b'A'] => Some(Action::Allow),
        [b'D'] => Some(Action::Deny),
        _ if text.eq_ignore_ascii_case(b"Allowed") => Some(Action::Allow),
        _ if text.eq_ignore_ascii_case(b"Denied") => Some(Action::Deny),
        _ => None,
    }
}

/// The time of a tuple: seconds or milliseconds since the epoch, told apart by size. Zero is no time.
#[inline]
pub(crate) fn tuple_time(value: u64) -> Option<Timestamp> {
    if value == 0 {
        return None;
    }
    let nanos = value.checked_mul(if value < MILLIS_FROM { 1_000_000_000 } else { 1_000_000 })?;
    i64::try_from(nanos).ok().map(Timestamp::from_nanos)
}

/// Six bytes in hexadecimal, bare or with separators.
pub(crate) fn mac(text: &[u8]) -> Option<Mac> {
    let mut value = 0_u64;
    let mut digits = 0;
    for &byte in text {
        match char::from(byte).to_digit(16) {
            Some(digit) if digits < 12 => {
                value = value << 4 | u64::from(digit);
                digits += 1;
            }
            None if matches!(byte, b'-' | b':') => {}
            _ => return None,
        }
    }
    let [_, _, mac @ ..] = value.to_be_bytes();
    (digits == 12).then_some(mac)
}

/// A date and time in UTC: ISO 8601 (`2026-11-21T10:00:00.1234567Z`, also with a blank for the `T` and without the `Z`), or as the
/// portal writes it into CSV files (`11/21/2026, 10:00:00.123 AM`).
pub(crate) fn date_time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if text.as_bytes().get(4) == Some(&b'-') { iso_8601(text) } else { portal(text) }
}

fn iso_8601(text: &str) -> Option<Timestamp> {
    let (date, clock) = text.split_once(['T', 't', ' '])?;
    let mut parts = date.splitn(3, '-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let clock = clock.trim_end_matches(['Z', 'z']);
    let (clock, offset_secs) = match clock.rfind(['+', '-']) {
        Some(sign) => {
            let (clock, zone) = clock.split_at_checked(sign)?;
            (clock, zone_secs(zone)?)
        }
        None => (clock, 0),
    };
    let local = moment(year, month, day, clock, None)?;
    local.as_nanos().checked_sub(offset_secs * 1_000_000_000).map(Timestamp::from_nanos)
}

/// `+01:00` or `-0730` in seconds.
fn zone_secs(zone: &str) -> Option<i64> {
    let digits: String = zone.get(1..)?.chars().filter(|&c| c != ':').collect();
    let (hours, minutes) = digits.split_at_checked(2)?;
    let minutes = if minutes.is_empty() { 0 } else { small(minutes)? };
    let secs = i64::from(small(hours)? * 3600 + minutes * 60);
    Some(if zone.starts_with('-') { -secs } else { secs })
}

fn portal(text: &str) -> Option<Timestamp> {
    let (date, clock) = text.split_once(',').or_else(|| text.split_once(' '))?;
    let mut parts = date.splitn(3, '/');
    let (month, day, year) = (parts.next()?, parts.next()?, parts.next()?);
    let (clock, afternoon) = match clock.trim().rsplit_once(|c: char| c.is_whitespace()) {
        Some((clock, half)) if half.eq_ignore_ascii_case("AM") => (clock, Some(false)),
        Some((clock, half)) if half.eq_ignore_ascii_case("PM") => (clock, Some(true)),
        Some(_) => return None,
        None => (clock.trim(), None),
    };
    moment(year, month, day, clock, afternoon)
}

/// A number of at most four digits.
fn small(text: &str) -> Option<u32> {
    if text.len() > 4 { None } else { number(text.as_bytes()).and_then(|number| u32::try_from(number).ok()) }
}

/// `clock` is `h:m:s` with any number of fractional digits, of which nine count.
fn moment(year: &str, month: &str, day: &str, clock: &str, afternoon: Option<bool>) -> Option<Timestamp> {
    let month = time::Month::try_from(u8::try_from(small(month)?).ok()?).ok()?;
    let date = time::Date::from_calendar_date(small(year)?.try_into().ok()?, month, u8::try_from(small(day)?).ok()?).ok()?;
    let mut parts = clock.splitn(3, ':');
    let (hour, minute, second) = (small(parts.next()?)?, small(parts.next()?)?, parts.next().unwrap_or("0"));
    let hour = match afternoon {
        Some(_) if !(1..=12).contains(&hour) => return None,
        Some(afternoon) => hour % 12 + if afternoon { 12 } else { 0 },
        None => hour,
    };
    let (second, fraction) = second.split_once('.').unwrap_or((second, ""));
    let mut nanos = 0;
    for place in 0..9 {
        nanos = nanos * 10 + fraction.as_bytes().get(place).map_or(Some(0), |&b| char::from(b).to_digit(10))?;
    }
    let narrow = |value: u32| u8::try_from(value).ok();
    let clock = time::Time::from_hms_nano(narrow(hour)?, narrow(minute)?, narrow(small(second)?)?, nanos).ok()?;
    let nanos = time::PrimitiveDateTime::new(date, clock).assume_utc().unix_timestamp_nanos();
    i64::try_from(nanos).ok().map(Timestamp::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_apart_by_their_size() {
        assert_eq!(tuple_time(1_700_000_000), Some(Timestamp::from_secs(1_700_000_000)));
        assert_eq!(tuple_time(1_700_000_000_123), Some(Timestamp::from_nanos(1_700_000_000_123_000_000)));
        assert_eq!(tuple_time(99_999_999_999), None, "seconds of the year 5138 are beyond nanoseconds in 64 bits");
        assert_eq!(tuple_time(100_000_000_000), Some(Timestamp::from_secs(100_000_000)));
        assert_eq!(tuple_time(0), None);
        assert_eq!(tuple_time(u64::MAX), None);
    }

    #[test]
    fn dates_are_read_in_both_spellings() {
        // 2026-11-21T10:00:00Z is 1,795,255,200 s after the epoch (GNU date).
        let at = |nanos: i64| Some(Timestamp::from_nanos(1_795_255_200_000_000_000 + nanos));
        assert_eq!(date_time("2026-11-21T10:00:00Z"), at(0));
        assert_eq!(date_time("2026-11-21T10:00:00.1234567Z"), at(123_456_700));
        assert_eq!(date_time("2026-11-21 10:00:00"), at(0));
        assert_eq!(date_time("2026-11-21T11:30:00+01:30"), at(0));
        assert_eq!(date_time("11/21/2026, 10:00:00.123 AM"), at(123_000_000));
        assert_eq!(date_time("11/21/2026 10:00:00"), at(0));
        assert_eq!(date_time("11/20/2026, 12:00:00 AM"), Some(Timestamp::from_secs(1_795_132_800)));
        assert_eq!(date_time("11/20/2026, 12:00:00 PM"), Some(Timestamp::from_secs(1_795_176_000)));
        for no_date in ["", "yesterday", "2026-13-01T00:00:00Z", "2026-11-21", "13/13/2026, 1:00:00 AM", "1/1/2026, 13:00:00 PM"]
        {
            assert_eq!(date_time(no_date), None, "{no_date}");
        }
    }

    #[test]
    fn addresses_of_both_families_and_nothing_else() {
        for text in ["192.0.2.1", "255.255.255.255", "2001:db8::1", "::ffff:192.0.2.1"] {
            assert_eq!(address(text.as_bytes()), text.parse().ok(), "{text}");
        }
        for text in ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1..2.3", "1.2.3.", "0000.1.1.1", "2001:db8", "::", "host"] {
            assert_eq!(address(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn macs_with_and_without_separators() {
        let mac_bytes = Some([0x00, 0x22, 0x48, 0x71, 0xc2, 0x05]);
        assert_eq!(mac(b"00224871C205"), mac_bytes);
        assert_eq!(mac(b"00-22-48-71-c2-05"), mac_bytes);
        assert_eq!(mac(b"00224871C2"), None);
        assert_eq!(mac(b"00224871C20555"), None);
    }
}
