//! Any bytes as a file of Azure. It is read or refused with a place, the same however it is cut into pieces; and what is read can be
//! written and read again.
#![no_main]

use std::collections::BTreeMap;
use std::time::Duration;

use spanwatch_azure::{AzureError, Finished, Format, Labels, Limits, Options, Reader, Writer};
use spanwatch_common::flow::FlowRecord;

/// Small, so that its limit is met.
const RECORD_LEN_MAX: usize = 2_048;

fn read<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<FlowRecord>, Result<Finished, AzureError>) {
    let options = Options { record_len_max: RECORD_LEN_MAX, duplicates_remembered: 4, ..Options::default() };
    let mut reader = Reader::new(options);
    let mut rows = Vec::new();
    let pushed = pieces.into_iter().try_for_each(|piece| reader.push(piece, |row| rows.push(row.to_record())));
    let end = pushed.and_then(|()| reader.finish(|row| rows.push(row.to_record())));
    (rows, end)
}

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let (rows, end) = read([file]);
    // Any length of piece will do, and this one needs no byte of the seeds.
    let (rows_of_pieces, end_of_pieces) = read(file.chunks(1 + file.len() % 61));
    match (&end, &end_of_pieces) {
        (Ok(whole), Ok(pieces)) => {
            assert_eq!((whole.held_back, &whole.resume, whole.counts), (pieces.held_back, &pieces.resume, pieces.counts));
            assert_eq!(rows, rows_of_pieces);
        }
        (Err(error), _) | (_, Err(error)) => {
            assert!(error.byte_offset <= file.len() as u64, "{error}");
            // Where a record grows too long is noticed sooner in pieces; what stands before is the same.
            let common = rows.len().min(rows_of_pieces.len());
            assert_eq!(rows[..common], rows_of_pieces[..common]);
        }
    }
    for format in [Format::VnetFlowLog, Format::NsgFlowLog, Format::Nta] {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut sink = |path: &str, text: &[u8]| {
            assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path}");
            files.entry(path.to_owned()).or_default().extend_from_slice(text);
            Ok(())
        };
        let mut writer = Writer::new(format, &Labels::default(), Duration::from_secs(600), Limits::default());
        for row in &rows {
            writer.write(row, |address| address.is_private(), &mut sink).expect("a sink in memory");
        }
        let written = writer.finish(&mut sink).expect("a sink in memory");
        let mut tuples = 0;
        for file in files.values() {
            let mut reader = Reader::new(Options::default());
            reader.push(file, |_| ()).expect("our own file");
            let finished = reader.finish(|_| ()).expect("our own file");
            assert_eq!(finished.held_back, 0);
            tuples += finished.counts.tuples;
        }
        assert!(tuples >= written.rows, "{tuples} of {} in {format:?}", written.rows);
    }
});
