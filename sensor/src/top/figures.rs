//! Numbers as people read them.

use std::time::Duration;

/// A rate in four characters and its prefix: `0`, `7.3`, `512`, `1.23 k`, `98.7 M`.
pub(super) fn short(value: f64) -> String {
    let (value, prefix) = match value {
        ..1e3 => (value, ""),
        ..1e6 => (value / 1e3, " k"),
        ..1e9 => (value / 1e6, " M"),
        ..1e12 => (value / 1e9, " G"),
        _ => (value / 1e12, " T"),
    };
    let digits = match value {
        _ if prefix.is_empty() && (value >= 10.0 || value.fract() == 0.0) => 0,
        ..9.995 => 2 - usize::from(prefix.is_empty()),
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{prefix}")
}

/// A share: `38.2 %`, `0.03 %`, `0 %`; `-` of nothing.
pub(super) fn share(count: u64, of: u64) -> String {
    match (count, of) {
        (_, 0) => "-".to_owned(),
        (0, _) => "0 %".to_owned(),
        _ => {
            let percent = 100.0 * count as f64 / of as f64;
            let digits = if percent < 1.0 { 2 } else { 1 };
            format!("{percent:.digits$} %")
        }
    }
}

/// A time in its two largest units: `3 d 4 h`, `12 min 5 s`, `8 s`.
pub(super) fn span(of: Duration) -> String {
    let secs = of.as_secs();
    match secs {
        ..60 => format!("{secs} s"),
        60..3600 => format!("{} min {} s", secs / 60, secs % 60),
        3600..86_400 => format!("{} h {} min", secs / 3600, secs / 60 % 60),
        _ => format!("{} d {} h", secs / 86_400, secs / 3600 % 24),
    }
}

/// The text in lines of at most `width` characters, broken between words where there are any.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let mut word: String = word.to_owned();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => {
                // A word longer than a line is broken where the line ends.
                while word.chars().count() > width.max(1) {
                    let rest = word.chars().skip(width.max(1)).collect();
                    lines.push(word.chars().take(width.max(1)).collect());
                    word = rest;
                }
                lines.push(word);
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_keep_three_digits() {
        let shown = [0.0, 7.31, 42.0, 999.4, 1_000.0, 12_345.0, 98_700_000.0, 1_234_567_890.0].map(short);
        assert_eq!(shown, ["0", "7.3", "42", "999", "1.00 k", "12.3 k", "98.7 M", "1.23 G"]);
        assert_eq!([(0, 0), (0, 5), (1, 3_000), (1, 3)].map(|(count, of)| share(count, of)), ["-", "0 %", "0.03 %", "33.3 %"]);
        let secs = [8, 725, 11_530, 273_600].map(|secs| span(Duration::from_secs(secs)));
        assert_eq!(secs, ["8 s", "12 min 5 s", "3 h 12 min", "3 d 4 h"]);
    }

    #[test]
    fn lines_break_between_words_and_long_words_where_they_must() {
        assert_eq!(wrapped("mirror one direction only", 10), ["mirror one", "direction", "only"]);
        assert_eq!(wrapped("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrapped("", 3), Vec::<String>::new());
    }
}
