//! Where one record ends and the next begins, in text that arrives in pieces.
//!
//! Each framer looks at every byte once: it remembers how far it got when the text so far ends within a record.

use std::ops::Range;

use crate::error::Mistake;
use crate::json::find_quote_or_backslash;

/// Finds the outermost JSON objects: records in `{"records":[…]}`, in an array, in lines, or in a fragment of any of these.
#[derive(Debug, Default)]
pub(crate) struct JsonFramer {
    /// Everything before has been looked at.
    at: usize,
    /// Where the record that has not ended began.
    start: usize,
    /// Objects and arrays open around `at`, within the record; 0 between records.
    depth: usize,
    in_string: bool,
}

/// What the text so far says.
#[derive(Debug)]
pub(crate) enum Frame {
    /// A whole record.
    Record(Range<usize>),
    /// The text ends here; more of it may complete a record.
    More,
}

impl JsonFramer {
    /// The next record in `text`, the text from the first byte that has not been [dropped](Self::drop_front).
    pub(crate) fn next(&mut self, text: &[u8]) -> Result<Frame, Mistake> {
        if self.depth == 0 {
            loop {
                match text.get(self.at) {
                    None => return Ok(Frame::More),
                    // Which closers end what does not matter: a fragment begins and ends anywhere between records.
                    Some(b' ' | b'\n' | b'\r' | b'\t' | b',' | b'[' | b']' | b'}') => self.at += 1,
                    Some(b'{') => match wrapper(text.get(self.at..).unwrap_or_default()) {
                        Wrapper::Opens(length) => self.at += length,
                        Wrapper::Absent => break,
                        Wrapper::Unsure => return Ok(Frame::More),
                    },
                    Some(_) => return Err(Mistake::json(self.at, "a record")),
                }
            }
            self.start = self.at;
            self.at += 1;
            self.depth = 1;
        }
        while self.depth > 0 {
            if self.in_string {
                match find_quote_or_backslash(text, self.at) {
                    Some(end) if text.get(end) == Some(&b'"') => {
                        self.at = end + 1;
                        self.in_string = false;
                    }
                    // The escaped byte may not have come yet.
                    Some(backslash) if backslash + 1 >= text.len() => {
                        self.at = backslash;
                        return Ok(Frame::More);
                    }
                    Some(backslash) => self.at = backslash + 2,
                    None => {
                        self.at = text.len();
                        return Ok(Frame::More);
                    }
                }
                continue;
            }
            match text.get(self.at) {
                None => return Ok(Frame::More),
                Some(b'"') => self.in_string = true,
                Some(b'{' | b'[') => self.depth += 1,
                Some(b'}' | b']') => self.depth -= 1,
                Some(_) => {}
            }
            self.at += 1;
        }
        Ok(Frame::Record(self.start..self.at))
    }

    /// How many bytes at the front are done with.
    pub(crate) const fn done(&self) -> usize {
        if self.depth == 0 { self.at } else { self.start }
    }

    /// The front has been dropped up to [`done`](Self::done).
    pub(crate) const fn drop_front(&mut self) {
        let done = self.done();
        self.at -= done;
        self.start = 0;
    }
}

enum Wrapper {
    /// So many bytes open the list of records.
    Opens(usize),
    /// This is a record.
    Absent,
    /// Too few bytes to tell.
    Unsure,
}

/// Whether `text`, which begins with `{`, begins with `{"records":[`, white space allowed anywhere.
fn wrapper(text: &[u8]) -> Wrapper {
    /// Whoever puts more white space than this between four tokens does not mean to be read.
    const LOOK_MAX: usize = 4 << 10;
    let look = text.get(..LOOK_MAX).unwrap_or(text);
    let mut at = 0;
    for token in [&b"{"[..], b"\"records\"", b":", b"["] {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = look.get(at) {
            at += 1;
        }
        let rest = look.get(at..).unwrap_or_default();
        if !rest.starts_with(token) {
            let may_come = token.starts_with(rest) && look.len() < LOOK_MAX;
            return if may_come { Wrapper::Unsure } else { Wrapper::Absent };
        }
        at += token.len();
    }
    Wrapper::Opens(at)
}

/// Finds the lines of a CSV file (RFC 4180): a line ends outside quotes.
#[derive(Debug, Default)]
pub(crate) struct CsvFramer {
    at: usize,
    start: usize,
    in_quotes: bool,
}

impl CsvFramer {
    /// The next line without its end.
    pub(crate) fn next(&mut self, text: &[u8]) -> Frame {
        while let Some(&byte) = text.get(self.at) {
            self.at += 1;
            match byte {
                b'"' => self.in_quotes = !self.in_quotes,
                b'\n' if !self.in_quotes => {
                    let line = self.start..self.at - 1;
                    self.start = self.at;
                    return Frame::Record(line);
                }
                _ => {}
            }
        }
        Frame::More
    }

    /// The line that the end of the file ends; none if it ends within quotes or has no byte.
    pub(crate) fn last(&mut self, text: &[u8]) -> Option<Range<usize>> {
        let line = (!self.in_quotes && self.start < text.len()).then_some(self.start..text.len());
        if line.is_some() {
            self.start = text.len();
        }
        line
    }

    /// Takes back the line that began at `start`.
    pub(crate) const fn hold_back(&mut self, start: usize) {
        self.start = start;
    }

    /// How many bytes at the front are done with.
    pub(crate) const fn done(&self) -> usize {
        self.start
    }

    /// The front has been dropped up to [`done`](Self::done).
    pub(crate) const fn drop_front(&mut self) {
        self.at -= self.start;
        self.start = 0;
    }
}

/// Splits a line into its fields, quotes resolved.
pub(crate) fn csv_fields(line: &[u8]) -> Vec<Vec<u8>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut fields = Vec::new();
    let mut field = Vec::new();
    let mut in_quotes = false;
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'"' if in_quotes && rest.first() == Some(&b'"') => {
                field.push(b'"');
                rest = rest.get(1..).unwrap_or_default();
            }
            b'"' => in_quotes = !in_quotes,
            b',' if !in_quotes => fields.push(std::mem::take(&mut field)),
            _ => field.push(byte),
        }
    }
    fields.push(field);
    fields
}
