//! ND-12: in all, one way or over a service, an observer sees far more or far less than usual at this hour of the week.
//!
//! Octets, flows, hosts and failures are counted in bins of ten minutes, for each observer (what two saw is not added up) in all, by
//! direction and by port of the services named in the settings. A bin is judged when it is over ([`forecast`]), and told when it is odd the
//! second time in a row, once in each hour while it lasts. What is odd in several places at once is told once. A bin in which the observer saw nothing is left out, and so is the one after
//! it, of which nobody knows how much was seen.
//!
//! The public rule for this (AZ-08) compares whole days, and tells at midnight.
//!
//! Innocent things that look alike: on a holiday there is no less than on some other day of the week at that time; a patch day comes four or
//! five weeks after the last, and is told once. A service that moves, a new application and a migration are told, and usual after days.
//!
//! Memory: 18 KiB per key. When full, new keys are refused and counted.

mod bins;
mod forecast;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanwatch_common::cloud::Direction;
use spanwatch_common::flow::protocol;
use spanwatch_common::time::Timestamp;

use self::bins::{Bins, Measure};
use self::forecast::{Basis, Forecast, Verdict, WEEK};
use crate::facts::{Facts, Interest};
use crate::finding::{Evidence, Finding, RuleCard, Severity, Stage, Subject, Window, clock_face, round2, service_name};
use crate::hash::Map;
use crate::native::in_bytes;
use crate::ports::PortSet;
use crate::row::{Part, Row};
use crate::rules::transfers::OddVolume as Settings;
use crate::rules::{Common, Exclude, Rule};
use crate::scan::is_countable;
use crate::snapshot::{RestoreError, pack, unpack};
use crate::{Detector, State};

/// Length of a bin in seconds.
const BIN_SECS: i64 = 600;
const HOUR: Duration = Duration::from_secs(3_600);
/// Memory of a key, about: four forecasts and two bins.
const TRACK_BYTES: usize = 18 * 1_024;
/// Bins of the past that are shown with a finding: six hours.
const SHOWN: usize = 36;
/// Surges that are remembered per key, and for how many days they make the next one known.
const SURGES_MAX: usize = 16;
const MONTH: std::ops::RangeInclusive<u32> = 26..=36;
/// The next surge may be so many times as large as the one a month before.
const AS_BEFORE: f64 = 1.5;
/// On the quietest day at that time there is at least this part of what a drop must be.
const QUIETEST: f64 = 0.1;
/// Over this many bins without a row there is nothing to go on with: four weeks.
const PAUSE_MAX: u32 = 4 * WEEK as u32;

/// What of an observer's traffic is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Kind {
    All,
    /// Number of a [`Direction`].
    Way(u8),
    /// IP protocol and port of the responder.
    Service(u8, u16),
}

impl Kind {
    /// `over TCP/443`, `inside`; none of all.
    fn place(self) -> Option<String> {
        match self {
            Self::All => None,
            Self::Way(way) => Some(way_name(way).to_owned()),
            Self::Service(protocol, port) => Some(format!("over {}", service_name(protocol, port))),
        }
    }
}

/// One number of one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Series {
    forecast: Forecast,
    /// The newest bins.
    shown: Vec<f32>,
    /// Bins in a row that were odd, and to the same side.
    odd: u32,
    above: bool,
    /// The hour in which it was last told, since 1970.
    told: u32,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Track {
    bins: Bins,
    /// By [`Measure`].
    series: Vec<Series>,
    /// Day since 1970, measure and value of surges.
    surges: Vec<(u32, Measure, f64)>,
}

impl Track {
    fn new() -> Self {
        let series = Measure::ALL.map(|measure| Series {
            forecast: Forecast::new(measure.unit()),
            shown: Vec::new(),
            odd: 0,
            above: false,
            told: 0,
        });
        Self { bins: Bins::new(), series: series.to_vec(), surges: Vec::new() }
    }

    /// Whether as much came a month ago; remembers what came now.
    fn came_a_month_ago(&mut self, day: u32, measure: Measure, value: f64) -> bool {
        let known = self
            .surges
            .iter()
            .any(|&(then, what, much)| what == measure && MONTH.contains(&(day - then)) && value <= AS_BEFORE * much);
        match self.surges.iter_mut().find(|(then, what, _)| (*then, *what) == (day, measure)) {
            Some((.., much)) => *much = much.max(value),
            None => {
                self.surges.retain(|(then, ..)| day - then <= *MONTH.end());
                if self.surges.len() >= SURGES_MAX {
                    self.surges.remove(0);
                }
                self.surges.push((day, measure, value));
            }
        }
        known
    }
}

/// One observer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Observer {
    name: String,
    /// Whether it saw anything in the bin before the oldest that is open.
    saw: bool,
    tracks: BTreeMap<Kind, Track>,
}

/// ND-12.
pub(crate) struct OddVolume {
    rule: Arc<RuleCard>,
    exclude: Exclude,
    settings: Settings,
    lateness: Duration,
    ports: PortSet,
    observers: Vec<Observer>,
    /// Name and place of the observer of the last row: rows of one come in runs.
    latest: Option<(Arc<str>, usize)>,
    /// Places of all that were looked for, by name.
    places: Map<Arc<str>, usize>,
    /// The oldest bin that is open, since 1970; 0 before the first row.
    bin: u32,
    state: State,
}

impl OddVolume {
    pub(crate) fn new(settings: &Settings, card: RuleCard) -> Self {
        let common = settings.common();
        Self {
            exclude: common.exclude,
            lateness: common.lateness,
            ports: PortSet::of(&settings.ports),
            settings: settings.clone(),
            observers: Vec::new(),
            latest: None,
            places: Map::default(),
            bin: 0,
            state: Common::state(&card),
            rule: Arc::new(card),
        }
    }

    fn observer(&mut self, name: &Arc<str>) -> Option<usize> {
        if let Some((latest, place)) = &self.latest
            && Arc::ptr_eq(latest, name)
        {
            return Some(*place);
        }
        let known = self.places.get(name).copied();
        let place = match known.or_else(|| self.observers.iter().position(|observer| *observer.name == **name)) {
            Some(place) => place,
            None if self.state.keys < self.settings.keys_max => {
                self.observers.push(Observer { name: name.to_string(), saw: false, tracks: BTreeMap::new() });
                self.observers.len() - 1
            }
            None => return None,
        };
        if known.is_none() {
            self.places.insert(name.clone(), place);
        }
        self.latest = Some((name.clone(), place));
        Some(place)
    }

    fn count(&mut self, place: usize, kind: Kind, bin: u32, row: &Row) {
        let tracks = &mut self.observers[place].tracks;
        if let Some(track) = tracks.get_mut(&kind) {
            track.bins.add(bin, row);
        } else if self.state.keys < self.settings.keys_max {
            tracks.entry(kind).or_insert_with(Track::new).bins.add(bin, row);
            self.state.keys += 1;
            self.state.bytes += TRACK_BYTES;
        } else {
            self.state.refused += 1;
        }
    }

    /// Judges the oldest open bin, which is over.
    fn close_bin(&mut self, findings: &mut Vec<Finding>) {
        let from = findings.len();
        let bin = self.bin;
        let settings = &self.settings;
        for observer in &mut self.observers {
            let sees = observer.tracks.values().any(|track| track.bins.has(bin));
            let whole = std::mem::replace(&mut observer.saw, sees) && sees;
            let mut odd_ones = Vec::new();
            for (&kind, track) in &mut observer.tracks {
                for measure in Measure::ALL {
                    let value = track.bins.count(bin, measure);
                    let series = &mut track.series[measure as usize];
                    if !whole {
                        series.odd = 0;
                        continue;
                    }
                    let Some(odd) = series.judge(bin, value, measure, settings) else { continue };
                    if odd.above && track.came_a_month_ago(bin / 144, measure, value) {
                        continue;
                    }
                    let series = &mut track.series[measure as usize];
                    let hour = bin / 6;
                    if series.told < hour {
                        series.told = hour;
                        let subject = (observer.name.as_str(), kind, measure);
                        let told = finding(&self.rule, settings, subject, (bin, value), &odd, series);
                        odd_ones.push((measure, odd.above, kind, told));
                    }
                }
            }
            findings.extend(one_for_each_cause(odd_ones));
        }
        self.bin = bin + 1;
        findings[from..].sort_by(Finding::order);
    }

    /// Closes bins until `bin` is one of the two that are open.
    fn open(&mut self, bin: u32, findings: &mut Vec<Finding>) {
        if bin > self.bin + PAUSE_MAX {
            (self.observers, self.latest, self.places, self.bin) = (Vec::new(), None, Map::default(), bin);
            (self.state.keys, self.state.bytes) = (0, 0);
        }
        while self.bin + 1 < bin {
            self.close_bin(findings);
        }
    }
}

/// A bin that is odd.
struct Odd {
    verdict: Verdict,
    above: bool,
    bins: u32,
}

impl Series {
    /// Takes in the value of the bin `bin`; returns in what it is odd if it has been for long enough.
    fn judge(&mut self, bin: u32, value: f64, measure: Measure, settings: &Settings) -> Option<Odd> {
        if self.shown.len() >= SHOWN {
            self.shown.remove(0);
        }
        self.shown.push(value as f32);
        // 1970 began on a Thursday; which day is the first of the week does not matter.
        let verdict = self.forecast.observe(bin as usize % WEEK, value, settings.threshold);
        let least = match measure {
            Measure::Octets => settings.octets_min,
            Measure::Flows => settings.flows_min,
            Measure::Hosts => settings.hosts_min,
            Measure::Failures => settings.failures_min,
        } as f64;
        let odd = verdict.filter(|verdict| {
            let (score, expected) = (verdict.score.abs(), verdict.expected);
            let above = value >= settings.ratio_min * expected && value - expected >= least;
            // As little as on the quietest day of the week at this time is no drop; and what that is takes a week.
            let below = verdict.basis == Basis::Weeks
                && expected - value >= least
                && value * settings.ratio_min <= verdict.least
                && verdict.least - value >= least * QUIETEST;
            score >= settings.threshold && (above || below && measure != Measure::Failures)
        });
        let Some(verdict) = odd else {
            self.odd = 0;
            return None;
        };
        let above = value > verdict.expected;
        self.odd = if self.odd > 0 && self.above == above { self.odd + 1 } else { 1 };
        self.above = above;
        (self.odd >= settings.bins_min).then_some(Odd { verdict, above, bins: self.odd })
    }
}

/// A finding about a number, whether it is too high, and where.
type OddOne = (Measure, bool, Kind, Finding);

/// What is odd in the same number and to the same side at the same time has one cause: of such findings the gravest, which names the
/// others.
fn one_for_each_cause(mut odd: Vec<OddOne>) -> Vec<Finding> {
    odd.sort_by(|(a_measure, a_above, _, a), (b_measure, b_above, _, b)| {
        let gravest = b.rule.severity.cmp(&a.rule.severity).then(b.score.total_cmp(&a.score));
        (a_measure, a_above).cmp(&(b_measure, b_above)).then(gravest).then_with(|| a.subject.cmp(&b.subject))
    });
    let of_one_cause = |a: &OddOne, b: &OddOne| (a.0, a.1) == (b.0, b.1);
    let tell = |odd: &[OddOne]| {
        let ((.., gravest), others) = odd.split_first()?;
        let mut gravest = gravest.clone();
        if !others.is_empty() {
            let places: Vec<String> =
                others.iter().map(|(_, _, kind, _)| kind.place().unwrap_or_else(|| "in all".to_owned())).collect();
            gravest.sentence.push_str(&format!("; at the same time {}", places.join(", ")));
        }
        Some(gravest)
    };
    odd.chunk_by(of_one_cause).filter_map(tell).collect()
}

fn finding(
    rule: &Arc<RuleCard>,
    settings: &Settings,
    (observer, kind, measure): (&str, Kind, Measure),
    (bin, value): (u32, f64),
    odd: &Odd,
    series: &Series,
) -> Finding {
    let Odd { verdict, above, bins } = odd;
    let at = Timestamp::from_secs(i64::from(bin) * BIN_SECS);
    let start = at.floor(HOUR);
    let number = |value: f64| match measure {
        Measure::Octets => in_bytes(value),
        Measure::Flows => format!("{value:.0} flows"),
        Measure::Hosts => format!("{value:.0} hosts"),
        Measure::Failures => format!("{value:.0} failed connections"),
    };
    let what = kind.place().map_or_else(|| "there were".to_owned(), |place| format!("{place} there were"));
    let usual = match verdict.basis {
        Basis::Weeks => "usual for this hour of the week",
        Basis::Days => "usual for this hour of the day",
    };
    let unit = match measure {
        Measure::Octets => "octets in 10 min",
        Measure::Flows => "flows in 10 min",
        Measure::Hosts => "hosts in 10 min",
        Measure::Failures => "failed connections in 10 min",
    };
    let facet = match (measure, kind) {
        (measure, Kind::Way(way)) => format!("{} {}", measure_name(measure), way_name(way)),
        (measure, _) => measure_name(measure).to_owned(),
    };
    let (protocol, port) = match kind {
        Kind::Service(protocol, port) => (Some(protocol), Some(port)),
        _ => (None, None),
    };
    let limit = if *above { verdict.expected * settings.ratio_min } else { verdict.least / settings.ratio_min };
    // Without weeks to compare with, what happens once a week looks odd.
    let rule = match verdict.basis {
        Basis::Weeks => rule.clone(),
        Basis::Days => Arc::new(RuleCard { severity: Severity::Informational, ..(**rule).clone() }),
    };
    Finding {
        rule,
        stage: Stage::Crossed,
        subject: Subject { protocol, port, observer: Some(observer.to_owned()), facet: Some(facet), ..Subject::default() },
        window: Window { start, end: start.plus(HOUR) },
        first: at,
        last: at,
        sentence: format!(
            "At {observer}, {what} {} in the 10 min from {}, against {} {usual}; {bins} times in a row {}",
            number(value),
            clock_face(at),
            number(verdict.expected),
            if *above { "too many" } else { "too few" },
        ),
        advice: if *above {
            "Look which hosts moved most in this time, and whether something new was started".to_owned()
        } else {
            "Look whether a server, a link or the mirror itself has stopped".to_owned()
        },
        score: round2(verdict.score.abs() / settings.threshold),
        confidence: if verdict.basis == Basis::Weeks { 0.6 } else { 0.4 },
        evidence: Evidence {
            value,
            threshold: limit.round(),
            unit: unit.to_owned(),
            octets: (measure == Measure::Octets).then_some(value as u64),
            baseline: Some(verdict.expected.round()),
            series: series.shown.iter().map(|&value| f64::from(value)).collect(),
            services: protocol.zip(port).map(|(protocol, port)| service_name(protocol, port)).into_iter().collect(),
            observers: vec![observer.to_owned()],
            ..Evidence::default()
        },
    }
}

const fn measure_name(measure: Measure) -> &'static str {
    match measure {
        Measure::Octets => "octets",
        Measure::Flows => "flows",
        Measure::Hosts => "hosts",
        Measure::Failures => "failures",
    }
}

const fn way_name(way: u8) -> &'static str {
    match way {
        way if way == Direction::Inbound as u8 => "inbound",
        way if way == Direction::Outbound as u8 => "outbound",
        way if way == Direction::Local as u8 => "inside",
        _ => "elsewhere",
    }
}

impl Detector for OddVolume {
    fn interest(&self) -> Interest {
        Interest::only(Facts::COUNTABLE).but_not(Facts::TAIL)
    }

    fn observe(&mut self, row: &Row, findings: &mut Vec<Finding>) {
        // Answers to forged addresses are no traffic of the hosts that they name.
        if row.part == Part::Tail || !(row.asked || row.aggregate) || !is_countable(row, &self.exclude) {
            return;
        }
        let bin = u32::try_from(row.at.as_nanos().div_euclid(BIN_SECS * 1_000_000_000)).unwrap_or(0);
        if self.bin == 0 {
            self.bin = bin;
        }
        if bin < self.bin {
            self.state.late += 1;
            return;
        }
        self.open(bin, findings);
        let Some(place) = self.observer(&row.observer) else {
            self.state.refused += 1;
            return;
        };
        self.count(place, Kind::All, bin, row);
        self.count(place, Kind::Way(row.direction as u8), bin, row);
        if matches!(row.protocol, protocol::TCP | protocol::UDP) && self.ports.contains(row.port) {
            self.count(place, Kind::Service(row.protocol, row.port), bin, row);
        }
    }

    fn advance(&mut self, newest: Timestamp, findings: &mut Vec<Finding>) {
        if self.bin == 0 {
            return;
        }
        let open = newest.minus(self.lateness).as_nanos().div_euclid(BIN_SECS * 1_000_000_000);
        let open = u32::try_from(open).unwrap_or(0);
        self.open(open, findings);
        while self.bin < open {
            self.close_bin(findings);
        }
    }

    fn flush(&mut self, _findings: &mut Vec<Finding>) {
        // A bin that is not over is not judged, not even at the end of the data: it would look like a drop.
    }

    fn adds_up(&self) -> bool {
        true
    }

    fn wants_order(&self) -> bool {
        true
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn lateness(&self) -> Duration {
        self.lateness
    }

    fn snapshot(&self) -> Vec<u8> {
        let State { late, refused, .. } = self.state;
        pack(&(&self.observers, self.bin, late, refused))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let (observers, bin, late, refused) = unpack::<(Vec<Observer>, u32, u64, u64)>(bytes)?;
        let sound = |track: &Track| {
            track.series.len() == Measure::ALL.len()
                && track.bins.is_sound()
                && track.series.iter().all(|series| series.forecast.is_sound())
        };
        if !observers.iter().flat_map(|observer| observer.tracks.values()).all(sound) {
            return Err(RestoreError::new("a week in it has not as many bins as a week has"));
        }
        let keys = observers.iter().map(|observer| observer.tracks.len()).sum();
        self.state = State { keys, late, refused, bytes: keys * TRACK_BYTES, ..self.state };
        (self.observers, self.bin, self.latest, self.places) = (observers, bin, None, Map::default());
        Ok(())
    }
}
