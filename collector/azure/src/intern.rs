//! Texts that repeat, kept once.

use std::collections::HashSet;
use std::sync::Arc;

/// How many texts are kept before all are forgotten: a file names a few hundred rules, a hostile one as many as it likes.
const KEPT_MAX: usize = 1 << 14;
/// A text longer than this is not kept: ARM ids end near 500 bytes.
const LENGTH_MAX: usize = 1 << 10;

/// Gives out one shared copy of each text.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    kept: HashSet<Arc<str>>,
}

impl Interner {
    pub(crate) fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(kept) = self.kept.get(text) {
            return Arc::clone(kept);
        }
        let shared: Arc<str> = text.into();
        if text.len() <= LENGTH_MAX {
            if self.kept.len() >= KEPT_MAX {
                self.kept.clear();
            }
            self.kept.insert(Arc::clone(&shared));
        }
        shared
    }
}
