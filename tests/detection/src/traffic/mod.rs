//! Traffic in virtual time: actors that do things, and the records that a sensor makes of it, in the order in which it makes them.
//!
//! `dice` chance · `flow` a conversation and its records · `calendar` when people work.

mod calendar;
mod dice;
mod flow;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use spanwatch_common::flow::FlowRecord;
use spanwatch_common::net::Address;
use spanwatch_common::time::Timestamp;

pub(crate) use calendar::{DAY, HOUR, MINUTE, Presence};
pub(crate) use dice::Dice;
pub(crate) use flow::{Course, Flow, mac};

use flow::Life;

/// Somebody who does something now and then: does it, and says when next. None: never again.
pub(crate) type Actor = Box<dyn FnMut(Timestamp, &mut Scene) -> Option<Timestamp>>;

/// Where flows go: the sensor's flow table.
#[derive(Default)]
pub(crate) struct Scene {
    due: BinaryHeap<Reverse<(Timestamp, u64, usize)>>,
    lives: Vec<Option<Life>>,
    free: Vec<usize>,
    flows: u64,
    /// Hosts that are dead from some time on.
    dead: Vec<(Address, Timestamp)>,
}

impl Scene {
    /// A flow begins, now or a little later.
    pub(crate) fn flow(&mut self, mut flow: Flow) {
        let (source, destination) = (flow.source, flow.destination);
        for &(host, from) in self.dead.iter().filter(|(host, _)| *host == source || *host == destination) {
            if source == host && flow.at >= from {
                return;
            }
            if flow.at >= from {
                flow = flow.going(Course::Silent);
            }
            flow.lasts = flow.lasts.min(from.since(flow.at).max(Duration::from_secs(1)));
        }
        self.flows += 1;
        let life = Life::new(flow, self.flows);
        let due = life.due();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.lives.push(None);
            self.lives.len() - 1
        });
        self.lives[slot] = Some(life);
        self.due.push(Reverse((due, self.flows, slot)));
    }

    fn make(&mut self) -> Option<(Timestamp, FlowRecord)> {
        let Reverse((at, number, slot)) = self.due.pop()?;
        let life = self.lives[slot].as_mut()?;
        let (record, last) = life.make();
        if last {
            self.lives[slot] = None;
            self.free.push(slot);
        } else {
            self.due.push(Reverse((life.due(), number, slot)));
        }
        Some((at, record))
    }
}

/// All actors, and the records of what they do: `(when it is made, record)`.
pub(crate) struct Traffic {
    scene: Scene,
    actors: Vec<Actor>,
    turns: BinaryHeap<Reverse<(Timestamp, usize)>>,
    end: Timestamp,
}

impl Traffic {
    /// Nobody yet, and nothing from `end` on.
    pub(crate) fn until(end: Timestamp) -> Self {
        Self { scene: Scene::default(), actors: Vec::new(), turns: BinaryHeap::new(), end }
    }

    /// `actor` first acts at `at`.
    pub(crate) fn enter(&mut self, at: Timestamp, actor: Actor) {
        self.turns.push(Reverse((at, self.actors.len())));
        self.actors.push(actor);
    }

    /// `host` neither speaks nor answers from `from` on.
    pub(crate) fn dies(&mut self, host: Address, from: Timestamp) {
        self.scene.dead.push((host, from));
    }

    /// These flows, which are in the order of time.
    pub(crate) fn play(&mut self, flows: Vec<Flow>) {
        let mut flows = flows.into_iter().peekable();
        let Some(first) = flows.peek().map(|flow| flow.at) else { return };
        self.enter(
            first,
            Box::new(move |now, scene| {
                while let Some(flow) = flows.next_if(|flow| flow.at <= now) {
                    scene.flow(flow);
                }
                flows.peek().map(|flow| flow.at)
            }),
        );
    }
}

impl Iterator for Traffic {
    type Item = (Timestamp, FlowRecord);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let made = self.scene.due.peek().map(|Reverse((at, ..))| *at);
            match self.turns.peek() {
                Some(&Reverse((at, actor))) if at < self.end && made.is_none_or(|made| at <= made) => {
                    self.turns.pop();
                    if let Some(next) = self.actors[actor](at, &mut self.scene) {
                        self.turns.push(Reverse((next.max(at), actor)));
                    }
                }
                _ if made.is_some_and(|made| made < self.end) => return self.scene.make(),
                _ => return None,
            }
        }
    }
}
