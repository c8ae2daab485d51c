//! Reading JSON in place: one record at a time, borrowed, without recursion.
//!
//! Only what is looked at is checked; what is passed over need only balance.

use std::borrow::Cow;

use crate::error::{ErrorKind, Mistake};

/// Position of the next `"` or `\` at or after `from`.
#[inline]
pub(crate) fn find_quote_or_backslash(bytes: &[u8], from: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // A byte that equals the pattern becomes zero; the lowest zero byte gets the lowest high bit.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let mut at = from;
    let mut rest = bytes.get(from..)?;
    while let Some((word, after)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        let hit = zeros(word ^ (ONES * b'"' as u64)) | zeros(word ^ (ONES * b'\\' as u64));
        if hit != 0 {
            return Some(at + (hit.trailing_zeros() / 8) as usize);
        }
        at += 8;
        rest = after;
    }
    rest.iter().position(|&byte| byte == b'"' || byte == b'\\').map(|more| at + more)
}

/// A JSON string as it stands between its quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    raw: &'a [u8],
    escaped: bool,
    /// Where `raw` begins in the record.
    pub(crate) at: usize,
}

impl<'a> Text<'a> {
    /// The bytes as they stand, escapes and all.
    pub(crate) const fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The bytes meant, escapes resolved.
    #[inline]
    pub(crate) fn bytes(&self) -> Result<Cow<'a, [u8]>, Mistake> {
        if self.escaped { unescape(self.raw, self.at).map(Cow::Owned) } else { Ok(Cow::Borrowed(self.raw)) }
    }

    /// The text meant; `what` is named if it is not UTF-8.
    pub(crate) fn str(&self, what: &'static str) -> Result<Cow<'a, str>, Mistake> {
        let wrong = |_| Mistake::new(self.at, ErrorKind::Utf8 { what });
        match self.bytes()? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(wrong),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|e| wrong(e.utf8_error())),
        }
    }
}

/// Reads one record from its first byte on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next byte that is not white space; it is not consumed.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                byte => return byte.copied(),
            }
        }
    }

    #[inline]
    fn expect(&mut self, wanted: u8, expected: &'static str) -> Result<(), Mistake> {
        if self.peek() == Some(wanted) {
            self.at += 1;
            Ok(())
        } else {
            Err(Mistake::json(self.at, expected))
        }
    }

    /// Enters an object.
    pub(crate) fn object(&mut self) -> Result<(), Mistake> {
        self.expect(b'{', "an object")
    }

    /// Enters an array.
    pub(crate) fn array(&mut self) -> Result<(), Mistake> {
        self.expect(b'[', "an array")
    }

    /// The key of the next member, its colon consumed; none at the end of the object.
    pub(crate) fn key(&mut self, first: &mut bool) -> Result<Option<Text<'a>>, Mistake> {
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(None);
        }
        if !std::mem::take(first) {
            self.expect(b',', "`,` or `}`")?;
        }
        let key = self.string()?;
        self.expect(b':', "`:`")?;
        Ok(Some(key))
    }

    /// Whether another element follows; otherwise the end of the array is consumed.
    #[inline]
    pub(crate) fn element(&mut self, first: &mut bool) -> Result<bool, Mistake> {
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(false);
        }
        if !std::mem::take(first) {
            self.expect(b',', "`,` or `]`")?;
        }
        Ok(true)
    }

    /// A string.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<Text<'a>, Mistake> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        let mut escaped = false;
        let mut from = start;
        loop {
            match find_quote_or_backslash(self.bytes, from) {
                Some(end) if self.bytes.get(end) == Some(&b'"') => {
                    self.at = end + 1;
                    return Ok(Text { raw: self.bytes.get(start..end).unwrap_or_default(), escaped, at: start });
                }
                Some(backslash) => {
                    escaped = true;
                    from = backslash + 2;
                }
                None => return Err(Mistake::json(start, "the end of a string")),
            }
        }
    }

    /// A number, `true`, `false` or `null`, as it stands.
    pub(crate) fn literal(&mut self) -> Result<&'a [u8], Mistake> {
        self.peek();
        let start = self.at;
        while let Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'+' | b'-' | b'.') = self.bytes.get(self.at) {
            self.at += 1;
        }
        if self.at == start {
            Err(Mistake::json(start, "a value"))
        } else {
            Ok(self.bytes.get(start..self.at).unwrap_or_default())
        }
    }

    /// Passes over one value of any kind.
    pub(crate) fn skip(&mut self) -> Result<(), Mistake> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'{' | b'[') => {
                let start = self.at;
                let mut depth = 0_usize;
                while let Some(byte) = self.bytes.get(self.at) {
                    match byte {
                        b'"' => {
                            self.string()?;
                            continue;
                        }
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => depth -= 1,
                        _ => {}
                    }
                    self.at += 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                Err(Mistake::json(start, "the end of an object or array"))
            }
            _ => self.literal().map(drop),
        }
    }
}

fn unescape(raw: &[u8], at: usize) -> Result<Vec<u8>, Mistake> {
    let wrong = || Mistake::json(at, "a valid escape in the string");
    let mut meant = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            meant.push(byte);
            continue;
        }
        let (&escape, after) = rest.split_first().ok_or_else(wrong)?;
        rest = after;
        match escape {
            b'"' | b'\\' | b'/' => meant.push(escape),
            b'b' => meant.push(8),
            b'f' => meant.push(12),
            b'n' => meant.push(b'\n'),
            b'r' => meant.push(b'\r'),
            b't' => meant.push(b'\t'),
            b'u' => {
                let unit = hex4(&mut rest).ok_or_else(wrong)?;
                let scalar = if (0xd800..0xdc00).contains(&unit) {
                    let low = rest.strip_prefix(b"\\u").and_then(|mut tail| {
                        let low = hex4(&mut tail)?;
                        rest = tail;
                        Some(low)
                    });
                    let low = low.filter(|low| (0xdc00..0xe000).contains(low)).ok_or_else(wrong)?;
                    0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
                } else {
                    unit
                };
                let scalar = char::from_u32(scalar).ok_or_else(wrong)?;
                meant.extend_from_slice(scalar.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return Err(wrong()),
        }
    }
    Ok(meant)
}

fn hex4(rest: &mut &[u8]) -> Option<u32> {
    let (digits, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    digits.iter().try_fold(0, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_found_wherever_they_stand() {
        for length in 0..40 {
            for place in 0..length {
                for quote in [b'"', b'\\'] {
                    let mut bytes = vec![b'#'; length];
                    bytes[place] = quote;
                    assert_eq!(find_quote_or_backslash(&bytes, 0), Some(place));
                    assert_eq!(find_quote_or_backslash(&bytes, place + 1), None);
                }
            }
        }
    }

    #[test]
    fn escapes_mean_what_rfc_8259_says() {
        let mut cursor = Cursor::new(br#" "a\u00e9\/\"\ud83d\ude00\n" "#);
        assert_eq!(cursor.string().unwrap().str("it").unwrap(), "a\u{e9}/\"\u{1f600}\n");
        for broken in [r#""\x""#, r#""\ud83d""#, r#""\u12""#] {
            assert!(Cursor::new(broken.as_bytes()).string().unwrap().bytes().is_err(), "{broken}");
        }
    }
}
