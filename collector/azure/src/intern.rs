//! Names that repeat, kept once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use spanwatch_common::cloud::CloudContext;

use crate::seen::hash;

/// How many texts, and how many contexts, are kept before all are forgotten: a file names a few hundred rules, a hostile one as many
/// as it likes.
const KEPT_MAX: usize = 1 << 14;
/// A text longer than this is not kept: ARM ids end near 500 bytes.
const LENGTH_MAX: usize = 1 << 10;

/// The texts of a context, borrowed from the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names<'a> {
    pub(crate) observer: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) flow_log: &'a str,
    pub(crate) acl: &'a str,
    pub(crate) rule: &'a str,
    pub(crate) encryption: &'a str,
    pub(crate) source_vm: &'a str,
    pub(crate) destination_vm: &'a str,
    pub(crate) flow_type: &'a str,
}

impl<'a> Names<'a> {
    const fn all(&self) -> [&'a str; 9] {
        [
            self.observer,
            self.resource,
            self.flow_log,
            self.acl,
            self.rule,
            self.encryption,
            self.source_vm,
            self.destination_vm,
            self.flow_type,
        ]
    }

    /// Observer, rule list and rule in one number: what makes equal tuples different.
    pub(crate) fn identity(&self) -> u64 {
        [self.observer, self.resource, self.acl, self.rule].into_iter().fold(0, |seed, text| hash(seed, text.as_bytes()))
    }

    /// Whether these are the names of `context`.
    fn are(&self, context: &CloudContext) -> bool {
        let CloudContext { observer, resource, flow_log, acl, rule, encryption, source_vm, destination_vm, flow_type } = context;
        let theirs = [observer, resource, flow_log, acl, rule, encryption, source_vm, destination_vm, flow_type];
        // Some of them are always empty: not worth a call of memcmp.
        self.all()
            .into_iter()
            .zip(theirs)
            .all(|(ours, theirs)| ours.len() == theirs.len() && (ours.is_empty() || *ours == **theirs))
    }
}

/// Gives out one shared copy of each context.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: HashSet<Arc<str>>,
    contexts: HashMap<u64, Arc<CloudContext>>,
}

impl Interner {
    pub(crate) fn context(&mut self, names: &Names<'_>) -> Arc<CloudContext> {
        let key = names.all().into_iter().fold(0, |seed, text| hash(seed, text.as_bytes()));
        if let Some(kept) = self.contexts.get(&key).filter(|kept| names.are(kept)) {
            return Arc::clone(kept);
        }
        let context = Arc::new(CloudContext {
            observer: self.text(names.observer),
            resource: self.text(names.resource),
            flow_log: self.text(names.flow_log),
            acl: self.text(names.acl),
            rule: self.text(names.rule),
            encryption: self.text(names.encryption),
            source_vm: self.text(names.source_vm),
            destination_vm: self.text(names.destination_vm),
            flow_type: self.text(names.flow_type),
        });
        if names.all().into_iter().all(|text| text.len() <= LENGTH_MAX) {
            if self.contexts.len() >= KEPT_MAX {
                self.contexts.clear();
            }
            self.contexts.insert(key, Arc::clone(&context));
        }
        context
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(kept) = self.texts.get(text) {
            return Arc::clone(kept);
        }
        let shared: Arc<str> = text.into();
        if text.len() <= LENGTH_MAX {
            if self.texts.len() >= KEPT_MAX {
                self.texts.clear();
            }
            self.texts.insert(Arc::clone(&shared));
        }
        shared
    }
}
