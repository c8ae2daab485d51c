//! Which core each thread runs on.
//!
//! A queue's packets go through two hands: the kernel's receive loop (NAPI), which runs where the queue's interrupt arrives, and the
//! worker that reads the queue's socket. On one core the loop takes all the time there is and the worker none: a receive livelock,
//! measured at 0.04 to 0.55 of 2.4 million packets/s. On two near cores the packet is still in their common cache.
//!
//! * [`settings`] — what the operator may say
//! * [`topology`] — what the machine is like: the rind, which reads sysfs
//! * this file — the [`Plan`]: pure, from a [`Topology`] and the [`Queue`]s to cores

pub mod settings;
pub mod topology;

use std::cmp::Reverse;

use settings::Cores;
use topology::{Core, Napi, Queue, Topology};

/// Where every thread of the sensor runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One for each worker, in the order of the queues.
    pub workers: Vec<Place>,
    /// The cores of all other threads; empty when these may run anywhere.
    pub others: Vec<usize>,
}

/// Where a worker runs, and with whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The core; `None` where the kernel chooses.
    pub core: Option<usize>,
    /// The receive loop of its own queue may run on it.
    pub has_own_napi: bool,
    /// The receive loop of another queue may.
    pub has_other_napi: bool,
    /// Another worker runs on it.
    pub has_other_worker: bool,
}

/// Plans for one worker per queue.
///
/// # Errors
/// The settings name a core that the machine has not got; a sentence.
pub fn plan(topology: &Topology, queues: &[Queue], settings: &Cores) -> Result<Plan, String> {
    let chosen: Vec<usize> = match settings {
        Cores::Any => return Ok(Plan { workers: vec![Place::default(); queues.len()], others: Vec::new() }),
        Cores::These(list) => {
            let known = |core: &usize| topology.cores.iter().any(|known| known.number == *core);
            if let Some(unknown) = list.iter().find(|core| !known(core)) {
                let last = topology.cores.iter().map(|core| core.number).max().unwrap_or(0);
                return Err(format!("this machine has no core {unknown}; name cores from 0 to {last}, or write \"auto\""));
            }
            list.iter().copied().cycle().take(queues.len()).collect()
        }
        Cores::Auto => choose(topology, queues),
    };
    let place = |(n, &core): (usize, &usize)| Place {
        core: Some(core),
        has_own_napi: runs_on(topology, &queues[n].napi, core),
        has_other_napi: queues.iter().enumerate().any(|(m, other)| m != n && runs_on(topology, &other.napi, core)),
        has_other_worker: chosen.iter().enumerate().any(|(m, other)| m != n && *other == core),
    };
    Ok(Plan { workers: chosen.iter().enumerate().map(place).collect(), others: others(topology, queues, &chosen) })
}

impl Plan {
    /// A line for each worker: where it runs and why.
    pub fn lines(&self, queues: &[Queue]) -> Vec<String> {
        let line = |(place, queue): (&Place, &Queue)| {
            let whose = format!("{} queue {}", queue.port, queue.number);
            match place.core {
                None => format!("{whose}: on whatever core the kernel chooses"),
                Some(core) => format!("{whose}: worker on core {core}, {}", queue.napi.describe()),
            }
        };
        self.workers.iter().zip(queues).map(line).collect()
    }

    /// What is wrong with it: a sentence and the remedy, for each worker that it concerns.
    pub fn troubles(&self, topology: &Topology, queues: &[Queue]) -> Vec<(String, String)> {
        let trouble = |(place, queue): (&Place, &Queue)| {
            let core = place.core?;
            let whose = format!("{} queue {}", queue.port, queue.number);
            if place.has_own_napi {
                let says = format!("{whose}: the worker shares core {core} with the kernel's receive loop, which can starve it");
                let is_free = |other: &&Core| !self.workers.iter().any(|place| place.core == Some(other.number));
                let elsewhere = topology.cores.iter().find(is_free).or(topology.cores.iter().find(|other| other.number != core));
                let remedy = match elsewhere {
                    Some(elsewhere) => queue.napi.move_command(elsewhere.number),
                    None => "give the machine a second core".to_owned(),
                };
                return Some((says, remedy));
            }
            let says = format!("{whose}: the worker shares core {core} with another queue's receive loop");
            place.has_other_napi.then(|| (says, fewer_queues(topology, queues)))
        };
        let mut troubles: Vec<_> = self.workers.iter().zip(queues).filter_map(trouble).collect();
        let mut shared: Vec<usize> =
            self.workers.iter().filter(|place| place.has_other_worker).filter_map(|place| place.core).collect();
        if !shared.is_empty() {
            let workers = shared.len();
            shared.sort_unstable();
            shared.dedup();
            let says = format!("{workers} workers share core {}, and lose packets in bursts", topology::list(&shared));
            troubles.push((says, fewer_queues(topology, queues)));
        }
        troubles
    }
}

/// What leaves half of the cores to the kernel: fewer queues on the port that has most, if it has several.
fn fewer_queues(topology: &Topology, queues: &[Queue]) -> String {
    let of_port = |port: &str| queues.iter().filter(|queue| queue.port == port).count();
    match queues.iter().max_by_key(|queue| of_port(&queue.port)) {
        Some(most) if of_port(&most.port) > 1 => {
            let ports = queues.iter().filter(|queue| queue.number == 0).count().max(1);
            let fewer = (topology.allowed.len() / 2 / ports).max(1);
            format!("use fewer queues: ethtool -L {} {} {fewer}", most.port, most.channels)
        }
        _ => "give the machine more cores, or this sensor fewer interfaces".to_owned(),
    }
}

/// Whether the receive loop is known to run on this core. One that may run on every core is not known to run anywhere.
fn runs_on(topology: &Topology, napi: &Napi, core: usize) -> bool {
    let cores = napi.cores();
    let is_everywhere = topology.allowed.len() > 1 && topology.allowed.iter().all(|core| cores.contains(core));
    cores.contains(&core) && !is_everywhere
}

/// The best core for each queue, one queue after the other.
fn choose(topology: &Topology, queues: &[Queue]) -> Vec<usize> {
    let mut chosen: Vec<usize> = Vec::with_capacity(queues.len());
    let housekeeping = topology.allowed.iter().min();
    for queue in queues {
        let near = topology.cores.iter().find(|core| runs_on(topology, &queue.napi, core.number));
        let node = queue.node.or(near.map(|core| core.node));
        // The worse a reason, the further to the front; what counts is the first that differs.
        let cost = |core: &&Core| {
            let others_napi = || queues.iter().filter(|other| !std::ptr::eq(*other, queue));
            let siblings = topology.cores.iter().filter(|other| other.physical == core.physical && other.number != core.number);
            let crowd: usize = siblings
                .map(|sibling| {
                    let workers = chosen.iter().filter(|worker| **worker == sibling.number).count();
                    workers + usize::from(queues.iter().any(|queue| runs_on(topology, &queue.napi, sibling.number)))
                })
                .sum();
            (
                runs_on(topology, &queue.napi, core.number),
                others_napi().any(|other| runs_on(topology, &other.napi, core.number)),
                chosen.iter().filter(|worker| **worker == core.number).count(),
                node.is_some_and(|node| core.node != node),
                crowd,
                near.is_some_and(|near| core.cache != near.cache),
                Some(&core.number) == housekeeping,
                // Interrupts that nobody moved tend to be on the first cores.
                Reverse(core.number),
            )
        };
        let best = topology.cores.iter().filter(|core| topology.allowed.contains(&core.number)).min_by_key(cost);
        chosen.push(best.map_or(0, |core| core.number));
    }
    chosen
}

/// The cores of everything else: neither workers' nor receive loops', nor twins of workers' cores, as far as that leaves any.
fn others(topology: &Topology, queues: &[Queue], workers: &[usize]) -> Vec<usize> {
    let mut cores: Vec<&Core> = topology.cores.iter().filter(|core| topology.allowed.contains(&core.number)).collect();
    let mut keep = |is_kept: &dyn Fn(&Core) -> bool| {
        let kept: Vec<&Core> = cores.iter().copied().filter(|core| is_kept(core)).collect();
        if !kept.is_empty() {
            cores = kept;
        }
    };
    keep(&|core| !workers.contains(&core.number));
    keep(&|core| !queues.iter().any(|queue| runs_on(topology, &queue.napi, core.number)));
    let is_twin =
        |core: &Core| topology.cores.iter().any(|other| other.physical == core.physical && workers.contains(&other.number));
    keep(&|core| !is_twin(core));
    cores.iter().map(|core| core.number).collect()
}

#[cfg(test)]
mod tests;
