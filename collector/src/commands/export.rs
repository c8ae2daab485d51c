//! `spanwatch-collector export`: stored records as Azure's own files.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use spanwatch_azure::{Format, Labels, Limits, Writer, Written};
use spanwatch_common::flow::FlowRecord;
use spanwatch_common::time::Timestamp;

use super::period::PeriodArgs;
use crate::config::Config;
use crate::store;

/// Files held open at once; of the others the end is opened again when needed.
const OPEN_MAX: usize = 128;

/// What `export` is told.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Which of Azure's formats.
    #[arg(long, value_enum)]
    pub format: ExportFormat,
    /// Directory for the files; they must not exist yet.
    #[arg(long, value_name = "DIRECTORY")]
    pub out: PathBuf,
    /// Which records.
    #[command(flatten)]
    pub period: PeriodArgs,
    /// Only what this sensor saw.
    #[arg(long, value_name = "NAME")]
    pub sensor: Option<String>,
    /// Also what was imported from Azure.
    #[arg(long)]
    pub imported: bool,
    /// Minutes that nta folds into a row: 10 or 60, as Traffic Analytics does.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_440))]
    pub interval_minutes: u64,
    /// Subscription id in resource names.
    #[arg(long, default_value_t = Labels::default().subscription, hide_default_value = true)]
    pub subscription: String,
    /// Resource group in resource names.
    #[arg(long, default_value_t = Labels::default().resource_group)]
    pub resource_group: String,
    /// Virtual network, or network security group, that the mirror port stands for.
    #[arg(long, default_value_t = Labels::default().network)]
    pub network: String,
}

/// Azure's formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// VNet flow log, version 4.
    VnetFlowLog,
    /// NSG flow log, version 2: TCP and UDP only.
    NsgFlowLog,
    /// Traffic Analytics: `NTANetAnalytics` as JSON lines.
    Nta,
}

impl From<ExportFormat> for Format {
    fn from(format: ExportFormat) -> Self {
        match format {
            ExportFormat::VnetFlowLog => Self::VnetFlowLog,
            ExportFormat::NsgFlowLog => Self::NsgFlowLog,
            ExportFormat::Nta => Self::Nta,
        }
    }
}

/// Writes the files and says on stderr what became of every record.
///
/// # Errors
/// The store cannot be read, a file exists already or cannot be written, or there would be too many files.
pub async fn run(args: &ExportArgs, config: &Config, now: Timestamp) -> anyhow::Result<()> {
    let written = export(args, config, now).await?;
    let skipped = written.skipped;
    eprintln!("{} records became {} rows in {} files below {}", written.records, written.rows, written.blobs, args.out.display());
    if skipped.total() > 0 {
        eprintln!(
            "{} records were left out: {} of layer 2, {} of a protocol that the format does not know, {} with a blank address, {} sums over many flows, {} without a time",
            skipped.total(),
            skipped.layer2,
            skipped.protocol,
            skipped.blank_address,
            skipped.aggregate,
            skipped.time,
        );
    }
    Ok(())
}

async fn export(args: &ExportArgs, config: &Config, now: Timestamp) -> anyhow::Result<Written> {
    check_empty(&args.out)?;
    let span = args.period.span(now)?;
    let sites = config.sites()?;
    let labels = Labels {
        subscription: args.subscription.clone(),
        resource_group: args.resource_group.clone(),
        network: args.network.clone(),
        security_group: args.network.clone(),
        ..Labels::default()
    };
    let interval = Duration::from_secs(args.interval_minutes * 60);
    let mut writer = Writer::new(args.format.into(), &labels, interval, Limits::default());
    let mut files = Files::new(&args.out);
    let mut trouble = None;
    let filter = filter(args);
    let mut take = |_: &str, record: FlowRecord| {
        let inside = |address| sites.number(address).is_some();
        writer.write(&record, inside, &mut |path, text| files.append(path, text)).map_err(|error| {
            trouble = Some(error);
            io::Error::other("the export cannot go on")
        })
    };
    let read = store::records(&config.store, span, filter.as_deref(), &mut take).await;
    if let Some(error) = trouble {
        return Err(error.into());
    }
    read?;
    let written = writer.finish(&mut |path, text| files.append(path, text))?;
    files.close().with_context(|| format!("write the files below {}", args.out.display()))?;
    Ok(written)
}

/// The condition on the stored columns.
fn filter(args: &ExportArgs) -> Option<String> {
    let seen_by = args.sensor.as_ref().map(|sensor| format!("sensor = '{}'", sensor.replace('\'', "''")));
    let own = (!args.imported).then(|| "(\"flowOrigin\" IS NULL OR \"flowOrigin\" = 'Sensor')".to_owned());
    let conditions: Vec<String> = seen_by.into_iter().chain(own).collect();
    (!conditions.is_empty()).then(|| conditions.join(" AND "))
}

/// The files of an export: each created once, appended to as often as needed, a bounded number open.
struct Files<'a> {
    root: &'a Path,
    begun: HashSet<String>,
    open: HashMap<String, BufWriter<File>>,
    /// In the order in which they were opened.
    order: VecDeque<String>,
}

impl<'a> Files<'a> {
    fn new(root: &'a Path) -> Self {
        Self { root, begun: HashSet::new(), open: HashMap::new(), order: VecDeque::new() }
    }

    fn append(&mut self, path: &str, text: &[u8]) -> io::Result<()> {
        if let Some(file) = self.open.get_mut(path) {
            return file.write_all(text);
        }
        if self.open.len() >= OPEN_MAX
            && let Some(oldest) = self.order.pop_front()
            && let Some(mut file) = self.open.remove(&oldest)
        {
            file.flush()?;
        }
        let place = self.root.join(path);
        let fresh = self.begun.insert(path.to_owned());
        if let Some(directory) = place.parent().filter(|_| fresh) {
            fs::create_dir_all(directory)?;
        }
        let file = File::options().append(true).create_new(fresh).open(&place)?;
        let mut file = BufWriter::with_capacity(1 << 16, file);
        file.write_all(text)?;
        self.order.push_back(path.to_owned());
        self.open.insert(path.to_owned(), file);
        Ok(())
    }

    fn close(self) -> io::Result<()> {
        self.open.into_values().try_for_each(|mut file| file.flush())
    }
}

/// Refuses at once what would be refused file by file.
fn check_empty(directory: &Path) -> anyhow::Result<()> {
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty; an export never adds to an older one, choose another directory", directory.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use spanwatch_common::flow::{FlowState, LAYER2, protocol};
    use spanwatch_common::wire::Batch;

    use super::*;
    use crate::ingest::recorded::{InputArgs, read_all};
    use crate::store::{Store, StoreSettings};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ExportArgs,
    }

    /// 2025-11-21T10:00:00Z.
    const TEN: i64 = 1_763_719_200;

    fn slice(port: u16, state: FlowState, secs: i64) -> FlowRecord {
        let at = Timestamp::from_secs(TEN + secs);
        let counted = if state == FlowState::Begin { 0 } else { 1 };
        FlowRecord {
            state,
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: "10.0.0.1".parse().unwrap(),
            destination: "198.51.100.7".parse().unwrap(),
            source_port: 40_000,
            destination_port: port,
            protocol: protocol::TCP,
            packets: [3 * counted, 2 * counted],
            octets: [300 * counted, 200 * counted],
            start: [at; 2],
            end: [at; 2],
            ..FlowRecord::default()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_exported_is_read_back_and_an_older_export_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let store = StoreSettings { directory: home.path().join("flows"), ..StoreSettings::default() };
        let config = Config { store: store.clone(), ..Config::default() };
        let records = vec![
            slice(443, FlowState::Begin, 1),
            slice(443, FlowState::End, 20),
            slice(22, FlowState::Continue, 3_700),
            FlowRecord { protocol: LAYER2, start: [Timestamp::from_secs(TEN); 2], ..FlowRecord::default() },
        ];
        let mut open = Store::open(store).await.unwrap();
        let batch = Batch { sensor: "plant1".to_owned(), boot: 1, sequence: 1, ledger: Default::default(), records };
        open.push(Arc::new(batch)).await.unwrap();
        open.commit().await.unwrap();

        let out = home.path().join("azure");
        let typed = |format| ["export", "--format", format, "--out", out.to_str().unwrap(), "--since", "1d"].map(str::to_owned);
        let now = Timestamp::from_secs(TEN + 7_200);
        let args = Line::parse_from(typed("vnet-flow-log")).args;
        let written = export(&args, &config, now).await.unwrap();
        assert_eq!((written.records, written.rows, written.blobs, written.skipped.layer2), (3, 3, 2, 1));
        let again = export(&args, &config, now).await.unwrap_err().to_string();
        assert!(again.contains("is not empty"), "{again}");

        let inputs = InputArgs { inputs: vec![out.to_str().unwrap().to_owned()], ta_parity: false };
        let mut back = Vec::new();
        let read = tokio::task::spawn_blocking(move || {
            let account = read_all(&inputs, &mut |observer, record| back.push((observer.to_owned(), record))).unwrap();
            (account.failures, back)
        });
        let (failures, mut back) = read.await.unwrap();
        assert_eq!(failures, Vec::<String>::new());
        back.sort_by_key(|(_, record)| record.first());
        let told: Vec<_> = back
            .iter()
            .map(|(_, r)| (r.state, r.destination_port, r.packets, r.octets, r.first().as_nanos() / 1_000_000_000 - TEN))
            .collect();
        assert_eq!(
            told,
            [
                (FlowState::Begin, 443, [0, 0], [0, 0], 1),
                (FlowState::End, 443, [3, 2], [300, 200], 20),
                (FlowState::Continue, 22, [3, 2], [300, 200], 3_700),
            ]
        );
        assert!(
            back.iter().all(|(_, record)| record.cloud.as_ref().is_some_and(|cloud| &*cloud.context.observer == "020000000001"))
        );
    }
}
