//! Puts the records of several jobs in the one order that does not depend on their number. Pure.
//!
//! Every job goes through the same steps. Within a step a flow's records stand in the order in which they were made, which only one job
//! does, and flows in that of their ids. A block is let go of when its last step is merged, so that memory holds at most a block or two of each job.

use crate::flow_table::Records;

/// What one job made in some steps one after another.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// The records of all steps.
    pub(super) records: Records,
    /// Of each step in turn.
    pub(super) steps: Vec<Step>,
}

/// One step of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// How many records of the block belong to this step or one before it.
    pub(super) records_end: usize,
    /// Flows in the job's table after it.
    pub(super) live: u64,
}

impl Block {
    /// Takes everything out; the memory stays.
    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.steps.clear();
    }
}

/// Merges the blocks of some jobs.
#[derive(Debug)]
pub(super) struct Merge {
    streams: Vec<Stream>,
    /// The records of the step under way: flow, job, and place in its block.
    order: Vec<(u64, usize, usize)>,
    flows_peak: u64,
}

/// The block of a job that is being merged.
#[derive(Debug, Default)]
struct Stream {
    block: Block,
    /// Steps and records of it that were merged.
    steps: usize,
    records: usize,
}

impl Merge {
    /// For so many jobs.
    pub(super) fn new(jobs: usize) -> Self {
        let streams = (0..jobs).map(|_| Stream::default()).collect();
        Self { streams, order: Vec::new(), flows_peak: 0 }
    }

    /// A job whose next block is needed before the next step can be merged.
    pub(super) fn lacks(&self) -> Option<usize> {
        self.streams.iter().position(|stream| stream.steps == stream.block.steps.len())
    }

    /// Takes the next block of a job that it [`lacks`](Self::lacks), and gives the one before back.
    pub(super) fn put(&mut self, job: usize, block: Block) -> Block {
        let stream = &mut self.streams[job];
        debug_assert_eq!(stream.steps, stream.block.steps.len(), "the block before is not merged yet");
        std::mem::replace(stream, Stream { block, steps: 0, records: 0 }).block
    }

    /// Hands the records of the next step to `each`; only when no job [`lacks`](Self::lacks) a block.
    ///
    /// # Errors
    /// Whatever `each` returns.
    pub(super) fn step<E>(&mut self, mut each: impl FnMut(&Records, usize) -> Result<(), E>) -> Result<(), E> {
        let mut live = 0;
        self.order.clear();
        for (job, stream) in self.streams.iter_mut().enumerate() {
            let step = stream.block.steps[stream.steps];
            let places = stream.records..step.records_end;
            self.order.extend(places.map(|place| (stream.block.records.flow_id(place), job, place)));
            stream.steps += 1;
            stream.records = step.records_end;
            live += step.live;
        }
        self.flows_peak = self.flows_peak.max(live);
        self.order.sort_unstable();
        self.order.iter().try_for_each(|&(_, job, place)| each(&self.streams[job].block.records, place))
    }

    /// The most flows that all jobs together had at the end of a step.
    pub(super) const fn flows_peak(&self) -> u64 {
        self.flows_peak
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spanwatch_common::flow::FlowRecord;

    use super::*;

    /// The records of each step: flow id, and a number that tells records of one flow apart.
    type Steps = Vec<Vec<(u64, u64)>>;

    /// Merges `jobs` streams of blocks of `steps_max` steps each, in which each flow is that of one job.
    fn merged(steps: &Steps, jobs: usize, steps_max: usize) -> (Steps, u64) {
        let block = |job: usize, steps: &[Vec<(u64, u64)>]| {
            let is_ours = |flow: u64| flow as usize * 7 % jobs == job;
            let (mut records, mut ends) = (Vec::new(), Vec::new());
            for step in steps {
                let ours = step.iter().filter(|(flow, _)| is_ours(*flow));
                records.extend(ours.clone().map(|&(flow_id, n)| FlowRecord {
                    flow_id,
                    packets: [n, 0],
                    ..FlowRecord::default()
                }));
                ends.push(Step { records_end: records.len(), live: ours.count() as u64 });
            }
            Block { records: records.into_iter().collect(), steps: ends }
        };
        let mut blocks: Vec<_> = (0..jobs).map(|job| steps.chunks(steps_max + job).map(move |steps| block(job, steps))).collect();
        let mut merge = Merge::new(jobs);
        let mut out = Vec::new();
        loop {
            while let Some(job) = merge.lacks() {
                let Some(block) = blocks[job].next() else { return (out, merge.flows_peak()) };
                merge.put(job, block);
            }
            let mut step = Vec::new();
            let each = |records: &Records, place| {
                let record = records.get(place);
                step.push((record.flow_id, record.packets[0]));
                Ok::<(), ()>(())
            };
            merge.step(each).unwrap();
            out.push(step);
        }
    }

    proptest! {
        #[test]
        fn any_number_of_jobs_gives_the_same_records_in_the_same_order(
            flows in proptest::collection::vec(proptest::collection::vec(0..9_u64, 0..12), 0..30),
            jobs in 1..5_usize,
            steps_max in 1..6_usize,
        ) {
            // Numbered as they were made.
            let mut n = 0;
            let steps: Steps = flows.iter().map(|step| step.iter().map(|&flow| { n += 1; (flow, n) }).collect()).collect();
            let expected: Steps = steps.iter().map(|step| { let mut step = step.clone(); step.sort_by_key(|(flow, _)| *flow); step }).collect();
            let peak = steps.iter().map(|step| step.len() as u64).max().unwrap_or(0);
            prop_assert_eq!(merged(&steps, jobs, steps_max), (expected, peak));
        }
    }
}
