//! A claim that lasts: told when it is first true, each time its value has doubled, and at the end of every window in which it was true,
//! so that its alert stays open as long as it lasts and no longer.

use serde::{Deserialize, Serialize};
use spanwatch_common::time::Timestamp;

use crate::finding::Stage;

/// One claim about one key. Windows are numbered: the number is the time divided by the window's length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lasting {
    /// The value told last; 0 while nothing is claimed.
    told: f64,
    open: Option<OpenWindow>,
    /// The newest window in which it was true.
    newest: i64,
}

/// A window in which the claim was true.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OpenWindow {
    pub(crate) number: i64,
    /// The highest value in it.
    pub(crate) peak: f64,
    /// The first and the last row in it by which the claim was true.
    pub(crate) first: Timestamp,
    pub(crate) last: Timestamp,
}

impl Lasting {
    /// The claim is true with `value`, by a row at `at`, in the window of `number`. Whether that is to be told now. Windows before it must
    /// have been [closed](Self::close_before).
    pub(crate) fn raise(&mut self, value: f64, number: i64, at: Timestamp) -> Option<Stage> {
        self.newest = self.newest.max(number);
        let fresh = OpenWindow { number, peak: value, first: at, last: at };
        let window = self.open.get_or_insert(fresh);
        window.peak = window.peak.max(value);
        window.first = window.first.min(at);
        window.last = window.last.max(at);
        if value < self.told * 2.0 {
            return None;
        }
        let stage = if self.told > 0.0 { Stage::Grown } else { Stage::Crossed };
        self.told = value;
        Some(stage)
    }

    /// Time has reached the window of `number`: the earlier one in which the claim was true, if it is not closed yet. After a whole window in
    /// which it was not, the claim is no more.
    pub(crate) fn close_before(&mut self, number: i64) -> Option<OpenWindow> {
        if self.newest + 1 < number {
            self.told = 0.0;
        }
        if self.open.is_some_and(|window| window.number < number) { self.open.take() } else { None }
    }

    /// The window in which the claim is true.
    pub(crate) const fn open(&self) -> Option<&OpenWindow> {
        self.open.as_ref()
    }

    /// Whether it is claimed now.
    pub(crate) fn is_told(&self) -> bool {
        self.told > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_at_first_when_doubled_and_at_each_windows_end_until_a_window_passes_without_it() {
        let at = Timestamp::from_secs(1);
        let mut claim = Lasting::default();
        assert_eq!(claim.raise(20.0, 7, at), Some(Stage::Crossed));
        assert_eq!(claim.raise(39.0, 7, at), None);
        assert_eq!(claim.raise(40.0, 7, at), Some(Stage::Grown));
        assert_eq!(claim.close_before(7), None);
        assert_eq!(claim.close_before(8).map(|window| (window.number, window.peak)), Some((7, 40.0)));
        assert_eq!(claim.raise(30.0, 8, at), None);
        assert_eq!(claim.close_before(9).map(|window| window.peak), Some(30.0));
        assert_eq!((claim.close_before(9), claim.is_told()), (None, true));
        assert_eq!((claim.close_before(10), claim.is_told()), (None, false));
        assert_eq!(claim.raise(20.0, 11, at), Some(Stage::Crossed));
    }
}
