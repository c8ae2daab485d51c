//! Who works: the units of all detectors, on the caller's thread or on threads of their own.
//!
//! A thread has its units, takes tasks in the order in which they were posted, and shares nothing. Units keep their place in the order of
//! all wherever they are, and so do the answers. When a thread panics, the caller does, with the same words, at the next task.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use crate::shards::Unit;

/// Tasks that wait for a thread at most; then who posts one waits.
const TASKS_MAX: usize = 8;

type Task = Box<dyn FnOnce(&mut [(usize, Unit)]) + Send>;

/// All units, each with its place in the order of all.
pub(crate) enum Crew {
    /// On the caller's thread.
    Here(Vec<(usize, Unit)>),
    /// On threads of their own.
    Apart(Vec<Worker>),
}

impl Crew {
    /// All of `units` here.
    pub(crate) fn here(units: impl Iterator<Item = Unit>) -> Self {
        Self::Here(units.enumerate().collect())
    }

    /// The same units on so many threads; on the caller's if it is one.
    pub(crate) fn spread(mut self, threads: usize) -> Self {
        let mut units = match &mut self {
            Self::Here(units) => std::mem::take(units),
            Self::Apart(workers) => workers.iter_mut().flat_map(Worker::dismiss).collect(),
        };
        units.sort_unstable_by_key(|(place, _)| *place);
        if threads <= 1 {
            return Self::Here(units);
        }
        let mut shares: Vec<Vec<(usize, Unit)>> = (0..threads).map(|_| Vec::new()).collect();
        for (place, unit) in units {
            shares[place % threads].push((place, unit));
        }
        Self::Apart(shares.into_iter().map(Worker::hire).collect())
    }

    /// Every unit does `task`, soon, and after all tasks that were posted before.
    pub(crate) fn post(&mut self, task: impl Fn(&mut Unit) + Clone + Send + 'static) {
        match self {
            Self::Here(units) => units.iter_mut().for_each(|(_, unit)| task(unit)),
            Self::Apart(workers) => {
                for worker in workers {
                    let task = task.clone();
                    worker.post(Box::new(move |units| units.iter_mut().for_each(|(_, unit)| task(unit))));
                }
            }
        }
    }

    /// What every unit answers, in the order of units, after all tasks that were posted before.
    pub(crate) fn ask<A: Send + 'static>(&mut self, question: impl Fn(&mut Unit) -> A + Clone + Send + 'static) -> Vec<A> {
        let workers = match self {
            Self::Here(units) => return units.iter_mut().map(|(_, unit)| question(unit)).collect(),
            Self::Apart(workers) => workers,
        };
        let asked: Vec<Receiver<Vec<(usize, A)>>> = workers
            .iter_mut()
            .map(|worker| {
                let (answer, answered) = channel();
                let question = question.clone();
                worker.post(Box::new(move |units| {
                    // Whoever asked waits, unless it panics.
                    let _ = answer.send(units.iter_mut().map(|(place, unit)| (*place, question(unit))).collect());
                }));
                answered
            })
            .collect();
        let mut answers = Vec::new();
        for (worker, answered) in workers.iter_mut().zip(asked) {
            match answered.recv() {
                Ok(some) => answers.extend(some),
                Err(_) => worker.fail(),
            }
        }
        answers.sort_unstable_by_key(|(place, _)| *place);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

/// A thread and its units.
pub(crate) struct Worker {
    /// None once it was dismissed.
    tasks: Option<SyncSender<Task>>,
    thread: Option<JoinHandle<Vec<(usize, Unit)>>>,
}

impl Worker {
    fn hire(mut units: Vec<(usize, Unit)>) -> Self {
        let (tasks, posted) = sync_channel::<Task>(TASKS_MAX);
        let thread = std::thread::spawn(move || {
            for task in posted {
                task(&mut units);
            }
            units
        });
        Self { tasks: Some(tasks), thread: Some(thread) }
    }

    fn post(&mut self, task: Task) {
        if self.tasks.as_ref().is_none_or(|tasks| tasks.send(task).is_err()) {
            self.fail();
        }
    }

    /// It takes no tasks any more, which only a panic can have caused: goes on with it here.
    fn fail(&mut self) -> ! {
        self.dismiss();
        panic!("a thread of the detectors ended");
    }

    /// Its units, when it has done all that was posted; panics if it did.
    fn dismiss(&mut self) -> Vec<(usize, Unit)> {
        self.tasks = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(units)) => units,
            Some(Err(panic)) => resume_unwind(panic),
            None => Vec::new(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // A panic that nobody met at a task was printed by its thread; a second one here would end the process.
            let _ = thread.join();
        }
    }
}
