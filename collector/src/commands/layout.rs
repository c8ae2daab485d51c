//! Text for a terminal of eighty columns.

/// Columns that every terminal has.
pub(super) const WIDTH: usize = 80;

/// `text` in lines of at most [`WIDTH`] columns, each behind `indent` spaces but the first, which stands behind `head` (as wide, or
/// on a line of its own). A word that is longer than a line stays whole.
pub(super) fn wrap(head: &str, indent: usize, text: &str) -> String {
    let mut out = String::new();
    let mut line = format!("{head:<indent$}");
    if line.chars().count() > indent {
        out.push_str(line.trim_end());
        out.push('\n');
        line = " ".repeat(indent);
    }
    let mut empty = true;
    for word in text.split_whitespace() {
        let space = usize::from(!empty);
        if !empty && line.chars().count() + space + word.chars().count() > WIDTH {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_between_words_and_hangs_below_its_head() {
        let text = "word ".repeat(20);
        let lines: Vec<String> = wrap("head", 6, &text).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("head  word") && lines[1].starts_with("      word"), "{lines:?}");
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(wrap("a long head", 6, "text"), "a long head\n      text\n");
    }
}
