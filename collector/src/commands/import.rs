//! `spanwatch-collector import`: recorded flows into the store, each row once, however often it is asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use spanwatch_azure::Options;
use spanwatch_common::flow::FlowRecord;

use crate::config::Config;
use crate::ingest::azure::open::{Network, Opened, open};
use crate::ingest::azure::source::{self, Source};
use crate::ingest::azure::state::{self, FileState, FilesState, Head};
use crate::ingest::recorded::{Account, Decoder, InputArgs, readable};
use crate::store::Importer;

/// The name under which the store keeps how far `import` has come.
const NAME: &str = "import";
/// Bytes read at once.
const PIECE: usize = 1 << 18;
/// Without a terminal, progress is told after so many bytes.
const TOLD_EVERY: u64 = 256 << 20;

/// What `import` is told.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// What to read.
    #[command(flatten)]
    pub inputs: InputArgs,
    /// Read and count everything, store nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Imports, shows how far it is, and prints a summary.
///
/// # Errors
/// The store cannot be written, what was typed names nothing, or a file could not be read to its end; what could be read is stored.
pub fn run(args: &ImportArgs, config: &Config) -> anyhow::Result<()> {
    let network = Arc::new(Network::new()?);
    let sources = source::find(&args.inputs.inputs, &network)?;
    let progress = Progress::new(&sources);
    let options = Options { ta_parity: args.inputs.ta_parity, ..Options::default() };
    let target = match args.dry_run {
        true => None,
        false => Some(network.wait(Importer::open(config.store.clone(), NAME))?),
    };
    let mut import = Import::new(target, network, options, progress)?;
    let mut summary = Summary { found: sources.len() as u64, dry_run: args.dry_run, ..Summary::default() };
    for source in &sources {
        import.source(source, &mut summary)?;
    }
    import.commit()?;
    import.progress.bar.finish_and_clear();
    summary.stored = import.committed;
    summary.forgotten = import.forgotten;
    print!("{summary}");
    for failure in &summary.account.failures {
        eprintln!("{failure}");
    }
    match summary.account.files_failed {
        0 => Ok(()),
        failed => bail!("{failed} of {} sources could not be read to their end; what came before is stored", summary.found),
    }
}

struct Import {
    /// None in a dry run.
    importer: Option<Importer>,
    state: FilesState,
    network: Arc<Network>,
    options: Options,
    progress: Progress,
    /// Taken from the decoder, not yet given to the importer.
    rows: Vec<FlowRecord>,
    committed: u64,
    forgotten: usize,
}

impl Import {
    fn new(
        target: Option<(Importer, Option<Vec<u8>>)>,
        network: Arc<Network>,
        options: Options,
        progress: Progress,
    ) -> anyhow::Result<Self> {
        let (importer, state) = target.map_or((None, None), |(importer, state)| (Some(importer), state));
        let mut state: FilesState = state.map(|state| state::from_bytes(&state)).transpose()?.unwrap_or_default();
        state.import += 1;
        Ok(Self { importer, state, network, options, progress, rows: Vec::new(), committed: 0, forgotten: 0 })
    }

    /// One source from where an earlier import stopped to its end. Only what is wrong with the store is an error.
    fn source(&mut self, source: &Source, summary: &mut Summary) -> anyhow::Result<()> {
        self.progress.begin(source);
        let opened = match open(source, &self.network, &self.progress.taken) {
            Ok(opened) => opened,
            Err(error) => {
                summary.account.fail(format!("{}: {}", source.name, readable(&error)));
                return Ok(());
            }
        };
        let head = Head::of(&opened.head);
        // Standard input has no name to be known by.
        let identity = match source.is_standard_input() {
            true => format!("{}#{}", source.identity(), head.digest()),
            false => source.identity(),
        };
        let mut known = self.state.files.get(&identity).cloned();
        if known.as_ref().is_some_and(|known| !known.head.is_of(&opened.head)) {
            summary.replaced += 1;
            known = None;
        }
        if let Some(known) = &mut known {
            known.import = self.state.import;
        }
        if let Some(known) = known.as_ref().filter(|known| known.done.is_some() && known.done == source.size) {
            self.state.files.insert(identity, known.clone());
            summary.known += 1;
            self.progress.skip(source);
            return Ok(());
        }
        summary.resumed += u64::from(known.as_ref().is_some_and(|known| known.resume.byte_offset > 0));
        let mut decoder = match &known {
            Some(known) if known.is_lines => Decoder::resume_ours(&source.name, known.resume.clone()),
            Some(known) => Decoder::resume(&source.name, self.options.clone(), known.resume.clone()),
            None => Decoder::new(&source.name, self.options.clone()),
        };
        let offset = known.as_ref().map_or(0, |known| known.resume.byte_offset);
        let head = known.map_or(head, |known| known.head);
        let read = self.read(opened, offset, &mut decoder, &identity, &head, source)?;
        let part = decoder.part();
        let done = (read.is_ok() && part.held_back == 0).then_some(source.size).flatten();
        self.take(&decoder, &identity, &head, done)?;
        match read {
            Ok(()) => summary.account.files += 1,
            Err(sentence) => summary.account.fail(sentence),
        }
        summary.account.add(&part);
        Ok(())
    }

    /// Reads and stores. The inner result is about the source, the outer one about the store.
    fn read(
        &mut self,
        opened: Opened,
        offset: u64,
        decoder: &mut Decoder,
        identity: &str,
        head: &Head,
        source: &Source,
    ) -> anyhow::Result<Result<(), String>> {
        let unreadable = |error: std::io::Error| format!("{}: {}", source.name, readable(&error));
        let mut body = match opened.from(offset) {
            Ok(body) => body,
            Err(error) => return Ok(Err(unreadable(error))),
        };
        let mut piece = vec![0; PIECE];
        loop {
            let count = match body.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Err(unreadable(error))),
            };
            let rows = &mut self.rows;
            if let Err(error) = decoder.push(&piece[..count], &mut |_, record| rows.push(record)) {
                return Ok(Err(error.to_string()));
            }
            self.progress.tell(self.committed + self.waiting());
            self.take(decoder, identity, head, None)?;
        }
        let rows = &mut self.rows;
        Ok(decoder.finish(&mut |_, record| rows.push(record)).map_err(|error| error.to_string()))
    }

    /// Hands over what has gathered, together with how far the source has been read by it.
    fn take(&mut self, decoder: &Decoder, identity: &str, head: &Head, done: Option<u64>) -> anyhow::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let Some(importer) = &mut self.importer else {
            self.committed += rows.len() as u64;
            return Ok(());
        };
        let refused = if rows.is_empty() { None } else { importer.push(rows).err() };
        if let Some(rows) = refused {
            // The state is still that of the rows before these.
            self.commit()?;
            if let Some(importer) = &mut self.importer
                && importer.push(rows).is_err()
            {
                bail!("one record holds more rows than store.buffer_rows_max; raise it");
            }
        }
        let file = FileState {
            head: head.clone(),
            resume: decoder.resume_point(),
            is_lines: decoder.is_ours(),
            done,
            import: self.state.import,
        };
        self.state.files.insert(identity.to_owned(), file);
        if self.importer.as_ref().is_some_and(Importer::wants_commit) {
            self.commit()?;
        }
        Ok(())
    }

    fn waiting(&self) -> u64 {
        self.importer.as_ref().map_or(0, |importer| importer.buffered_rows() as u64)
    }

    fn commit(&mut self) -> anyhow::Result<()> {
        let waiting = self.waiting();
        let Some(importer) = &mut self.importer else { return Ok(()) };
        self.forgotten += self.state.forget();
        let state = state::to_bytes(&self.state);
        self.network.wait(importer.commit(&state)).context("nothing was lost: import the same again to go on")?;
        self.committed += waiting;
        Ok(())
    }
}

/// A bar on a terminal, else a line now and then.
struct Progress {
    bar: ProgressBar,
    /// Bytes that came in.
    taken: Arc<AtomicU64>,
    told: u64,
    is_terminal: bool,
}

impl Progress {
    fn new(sources: &[Source]) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let total: Option<u64> = sources.iter().map(|source| source.size).sum();
        let (bar, shape) = match total {
            Some(total) => (ProgressBar::new(total), "{bar:20} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}  {wide_msg}"),
            None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec}  {wide_msg}"),
        };
        if let Ok(style) = ProgressStyle::with_template(shape) {
            bar.set_style(style);
        }
        Self { bar, taken: Arc::default(), told: 0, is_terminal }
    }

    fn begin(&self, source: &Source) {
        // The end of a path tells more than its beginning.
        let from = source.name.char_indices().rev().nth(50).map_or(0, |(at, _)| at);
        self.bar.set_message(source.name.get(from..).unwrap_or_default().to_owned());
    }

    fn skip(&self, source: &Source) {
        self.taken.fetch_add(source.size.unwrap_or_default(), Ordering::Relaxed);
    }

    fn tell(&mut self, rows: u64) {
        let taken = self.taken.load(Ordering::Relaxed);
        self.bar.set_position(taken);
        if !self.is_terminal && taken - self.told >= TOLD_EVERY {
            self.told = taken;
            eprintln!("{} MB read, {rows} rows", taken / 1_000_000);
        }
    }
}

/// What an import came to. Each line adds up.
#[derive(Default)]
struct Summary {
    dry_run: bool,
    found: u64,
    known: u64,
    resumed: u64,
    replaced: u64,
    stored: u64,
    forgotten: usize,
    account: Account,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = &self.account;
        let (failed, known) = (account.files_failed, self.known);
        writeln!(
            f,
            "sources    {} = {} read + {known} imported before + {failed} not read to the end",
            self.found, account.files
        )?;
        if self.resumed > 0 {
            writeln!(f, "           {} of them continued where an earlier import had stopped", self.resumed)?;
        }
        if self.replaced > 0 {
            writeln!(f, "           {} of them have other content than at the last import, and were read anew", self.replaced)?;
        }
        writeln!(f, "bytes      {}", account.total.bytes)?;
        writeln!(f, "records    {}", account.total.records)?;
        let stored = if self.dry_run { "rows, not stored" } else { "rows stored" };
        writeln!(f, "tuples     {} = {} {stored} + {} duplicates", account.total.tuples, self.stored, account.total.duplicates)?;
        if account.total.other_rows > 0 {
            writeln!(f, "other      {} table rows that are no flows", account.total.other_rows)?;
        }
        if account.total.held_back > 0 {
            let (bytes, files) = (account.total.held_back, account.files_held_back);
            writeln!(f, "held back  {bytes} bytes in {files} sources whose last record has not ended; import again when it has")?;
        }
        for (reason, count) in reasons(&account.failures) {
            writeln!(f, "refused    {count}: {reason}")?;
        }
        if self.forgotten > 0 {
            writeln!(f, "forgotten  {} files of earlier imports: importing those again would store them twice", self.forgotten)?;
        }
        Ok(())
    }
}

/// Failures by reason: what is left of a sentence without the file's name and the place in it.
fn reasons(failures: &[String]) -> BTreeMap<&str, u64> {
    let mut reasons = BTreeMap::new();
    for failure in failures {
        let reason = failure.rsplit_once(": ").map_or(failure.as_str(), |(_, reason)| reason);
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
}
