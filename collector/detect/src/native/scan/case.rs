//! The file that is kept on a source once it has failed a few times: rows that speak against it, and what was told.

use serde::{Deserialize, Serialize};

use super::limits::{SCALES, Shape};
use super::sample::Target;
use super::source::{Kind, Scope, Verdict};
use crate::finding::{EVIDENCE_ROWS_MAX, Sighting};
use crate::row::Row;
use crate::snapshot::Names;

/// After so many of one shape a source is told of as a whole.
const SAME_SHAPE_MAX: usize = 2;
/// Octets of a row kept, with its texts.
const ROW_OCTETS: usize = size_of::<Sighting>() + 32;

/// Rows and what was told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Case {
    /// The earliest rows that belong to nothing told.
    rows: Vec<Sighting>,
    /// Who saw them.
    pub(super) observers: Names,
    /// What was told and is not over.
    pub(super) told: Vec<Told>,
}

/// Something told that is not over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) kind: Kind,
    pub(super) shape: Shape,
    pub(super) scope: Scope,
    pub(super) threshold: u64,
    /// The stretch in which the threshold was crossed, in seconds.
    pub(super) scale: u32,
    /// Targets tried from then on belong to it, in seconds since 1970.
    pub(super) since: u32,
    /// The last target that was tried.
    pub(super) last: u32,
    /// Start of the window of the last finding.
    pub(super) window: u32,
    /// What was told last.
    pub(super) value: f64,
    /// Targets that may come before it can have doubled.
    patience: u32,
    /// What it came to was told since the last target.
    #[serde(skip)]
    pub(super) has_rested: bool,
    rows: Vec<Sighting>,
}

impl Told {
    /// Length of its windows, in seconds: after two of silence it is over.
    pub(super) const fn window_secs(&self) -> u32 {
        window_secs(self.scale)
    }

    /// Start of the window in which `at` lies.
    pub(super) const fn window_of(&self, at: u32) -> u32 {
        at - at % self.window_secs()
    }

    /// Whether it is over at `now`.
    pub(super) const fn is_over(&self, now: u32) -> bool {
        now > self.last.saturating_add(self.window_secs() * 2)
    }

    /// Whether it pauses at `now`, and what it came to was not told yet.
    pub(super) const fn rests(&self, now: u32) -> bool {
        !self.has_rested && now > self.last.saturating_add(self.window_secs() / 6)
    }

    /// Whether one of ND-01 to ND-03 tells it.
    pub(super) const fn is_of_shape(&self) -> bool {
        matches!(self.kind, Kind::Shape | Kind::Control)
    }

    /// Whether `target` is part of it.
    pub(super) fn has(&self, target: &Target) -> bool {
        target.at >= self.since && self.scope.has(target)
    }

    /// One more target has come; whether what was told can have doubled by now.
    pub(super) fn may_have_doubled(&mut self) -> bool {
        let may = self.patience == 0;
        self.patience = self.patience.saturating_sub(1);
        may
    }

    /// It adds up to `value` now, and each further target stands for `factor`.
    pub(super) fn looked(&mut self, value: f64, factor: u64) {
        self.patience = ((self.value * 2.0 - value) / factor as f64).max(0.0) as u32;
    }

    /// The earliest rows that speak for it.
    pub(super) fn rows(&self) -> Vec<Sighting> {
        self.rows.clone()
    }
}

/// The slower a scan, the longer it may pause.
const fn window_secs(scale: u32) -> u32 {
    match scale {
        ..=60 => 60,
        61..=3_600 => scale,
        _ if scale <= SCALES[3] => 21_600,
        _ => 86_400,
    }
}

impl Case {
    /// Keeps `row`, if there is room, with what it belongs to.
    pub(super) fn keep(&mut self, row: &Row, target: &Target) {
        self.observers.insert(&row.observer);
        let told = self.place_of(target, false).and_then(|place| self.told.get_mut(place));
        let is_loose = told.is_none();
        let rows = told.map_or(&mut self.rows, |told| &mut told.rows);
        if rows.len() >= EVIDENCE_ROWS_MAX && is_loose {
            // What is older than a day belongs to no scan that is told from now on, but to ND-05, which has enough of the newer.
            let horizon = row.at.as_nanos() - i64::from(SCALES[3]) * 1_000_000_000;
            if rows.first().is_some_and(|first| first.at < horizon) {
                rows.retain(|kept| kept.at >= horizon);
            }
        }
        if rows.len() < EVIDENCE_ROWS_MAX {
            let seen = Sighting::of(row);
            let place = rows.partition_point(|kept| kept.at <= seen.at);
            if rows.len() == rows.capacity() {
                // Doubled, but never more than there can be.
                rows.reserve_exact(rows.len().clamp(1, EVIDENCE_ROWS_MAX - rows.len()));
            }
            rows.insert(place, seen);
        }
    }

    /// Opens what `verdict` says at `at`, and returns it.
    pub(super) fn open(&mut self, verdict: &Verdict, at: u32) -> &mut Told {
        let Verdict { kind, shape, scope, threshold, scale, mut since } = *verdict;
        if kind == Kind::Shape && scope == Scope::All {
            // The whole takes over what was told in part.
            let (parts, rest) = std::mem::take(&mut self.told).into_iter().partition::<Vec<_>, _>(Told::is_of_shape);
            self.told = rest;
            for part in parts {
                since = since.min(part.since);
                self.rows.extend(part.rows);
            }
            self.rows.sort_by_key(|row| row.at);
            self.rows.truncate(EVIDENCE_ROWS_MAX);
        }
        let belongs = |row: &Sighting| {
            row.at >= i64::from(since) * 1_000_000_000
                && match scope {
                    Scope::Host(host) => row.destination == host,
                    Scope::Service(service) => service == u32::from(row.protocol) << 16 | u32::from(row.port),
                    Scope::All => true,
                }
        };
        let mut rows: Vec<Sighting> = self.rows.iter().filter(|row| belongs(row)).cloned().collect();
        rows.shrink_to_fit();
        if matches!(kind, Kind::Shape | Kind::Control) {
            self.rows.retain(|row| !belongs(row));
            self.rows.shrink_to_fit();
        }
        let window = at - at % window_secs(scale);
        self.told.push(Told {
            kind,
            shape,
            scope,
            threshold,
            scale,
            since,
            last: at,
            window,
            value: 0.0,
            patience: 0,
            has_rested: false,
            rows,
        });
        let last = self.told.len() - 1;
        &mut self.told[last]
    }

    /// Whether `target` belongs to a shape that was told. What ND-04 and ND-05 tell of may still turn out to have one.
    pub(super) fn claims(&self, target: &Target) -> bool {
        self.told.iter().any(|told| told.is_of_shape() && told.has(target))
    }

    /// Whether a rule that knows no shapes has told, and it is not over.
    pub(super) fn has_told(&self, kind: Kind) -> bool {
        self.told.iter().any(|told| told.kind == kind)
    }

    /// The place of what was told to which `target` belongs: that of a shape, or (`shapeless`) of ND-04 or ND-05.
    pub(super) fn place_of(&self, target: &Target, shapeless: bool) -> Option<usize> {
        self.told.iter().rposition(|told| told.is_of_shape() != shapeless && told.has(target))
    }

    /// Whether so much was told of single hosts or services that the next is told of the whole.
    pub(super) fn is_spread(&self) -> bool {
        let of = |shape| self.told.iter().filter(|told| told.kind == Kind::Shape && told.shape == shape).count();
        of(Shape::Vertical) >= SAME_SHAPE_MAX || of(Shape::Horizontal) >= SAME_SHAPE_MAX
    }

    /// Octets held.
    pub(super) fn octets(&self) -> usize {
        let rows = self.rows.len() + self.told.iter().map(|told| told.rows.len()).sum::<usize>();
        size_of::<Self>() + rows * ROW_OCTETS + self.told.len() * size_of::<Told>()
    }
}
