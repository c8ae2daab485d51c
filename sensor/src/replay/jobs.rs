//! The threads of a replay: a line for each job, and this one, which merges and writes.

use std::io;

use crossbeam::channel::{Receiver, Sender, bounded};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::ledger::Ledger;

use super::line::{Line, Turn};
use super::merge::{Block, Merge, Step};
use super::{ReplayError, Replayed};
use crate::capture::file::File;
use crate::worker::MeterSettings;

/// Records after which a block is handed on.
const BLOCK_RECORDS: usize = 4096;
/// Steps after which it is handed on in any case.
const BLOCK_STEPS: usize = 1024;
/// Blocks of each job that wait.
const BLOCKS_MAX: usize = 4;

/// What a replay is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Records, and the account.
    Records,
    /// The account alone.
    Account,
}

/// A block on its way, and how many octets of the file were read by then.
type Parcel = (Block, u64);

/// Replays a file with one job for each of `files`, which are [shared](File::open_shared), or one file alone. Hands the records one by one to
/// `each`, on this thread, in an order that does not depend on the number of jobs. `progress` is told how many octets of the file on disk
/// were read since it was last told.
///
/// # Errors
/// The flow tables' memory, threads, or whatever `each` returns.
pub fn replay_in_jobs(
    files: &mut [File],
    settings: &MeterSettings,
    wanted: Wanted,
    mut each: impl FnMut(FlowRecord) -> io::Result<()>,
    mut progress: impl FnMut(u64),
) -> Result<Replayed, ReplayError> {
    let jobs = files.len();
    std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(jobs);
        let mut queues = Vec::with_capacity(jobs);
        for (number, file) in files.iter_mut().enumerate() {
            let (parcels, queue) = bounded(BLOCKS_MAX);
            let (spent, blanks) = bounded(BLOCKS_MAX + 2);
            queues.push((queue, spent));
            let job = move || {
                let line = Line::new(file, settings, number, jobs).map_err(ReplayError::Memory)?;
                run(line, wanted, &parcels, &blanks)
            };
            let thread = std::thread::Builder::new().name(format!("replay {number}"));
            threads.push(thread.spawn_scoped(scope, job).map_err(ReplayError::Thread)?);
        }
        let mut merge = Merge::new(jobs);
        let merged = merge_all(&mut merge, &queues, &mut each, &mut progress);
        // A job that finds its queue closed stops.
        drop(queues);
        let mut sum = Replayed { ledger: Ledger::default(), health: Default::default(), damage: None };
        for thread in threads {
            let part = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            sum.ledger.add(&part.ledger);
            sum.health.add(&part.health);
            // Every job reads the same file, and finds the same damage.
            sum.damage = sum.damage.or(part.damage);
        }
        merged?;
        sum.ledger.flows.peak = merge.flows_peak();
        Ok(sum)
    })
}

/// Runs a job to its end, or until nobody takes its blocks any more.
fn run(mut line: Line<'_>, wanted: Wanted, parcels: &Sender<Parcel>, blanks: &Receiver<Block>) -> Result<Replayed, ReplayError> {
    let mut steps = Vec::with_capacity(BLOCK_STEPS);
    loop {
        let turn = line.turn();
        if wanted == Wanted::Account {
            line.records().clear();
        }
        if turn != Turn::Waits {
            steps.push(Step { records_end: line.records().len(), live: line.live() });
        }
        let is_due = steps.len() >= BLOCK_STEPS || line.records().len() >= BLOCK_RECORDS || turn != Turn::Stepped;
        if is_due && !steps.is_empty() {
            let mut block = blanks.try_recv().unwrap_or_default();
            std::mem::swap(&mut block.records, line.records());
            std::mem::swap(&mut block.steps, &mut steps);
            if parcels.send((block, line.octets_read())).is_err() {
                return line.account();
            }
        }
        match turn {
            Turn::Stepped => {}
            Turn::Waits => line.wait(),
            Turn::Ended => return line.account(),
        }
    }
}

/// Merges and hands on until every job has ended, or the first has and another died.
fn merge_all(
    merge: &mut Merge,
    queues: &[(Receiver<Parcel>, Sender<Block>)],
    each: &mut impl FnMut(FlowRecord) -> io::Result<()>,
    progress: &mut impl FnMut(u64),
) -> Result<(), ReplayError> {
    let mut told = 0;
    loop {
        while let Some(job) = merge.lacks() {
            let (queue, spent) = &queues[job];
            let Ok((block, octets)) = queue.recv() else { return Ok(()) };
            let mut before = merge.put(job, block);
            before.clear();
            // Where the job has blocks enough, the memory goes back to the system.
            let _ = spent.try_send(before);
            if job == 0 {
                progress(octets - told);
                told = octets;
            }
        }
        merge.step(|records, place| each(records.get(place)))?;
    }
}
