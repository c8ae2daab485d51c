//! Azure files to read, said the way one would say them aloud, and rows to compare.
#![allow(dead_code, reason = "each test file uses its part")]

use spanwatch_azure::{AzureError, Finished, Options, Reader, Row};
use spanwatch_common::flow::FlowRecord;

/// What reading a file came to.
pub(crate) struct Outcome {
    /// In the order in which they were handed over.
    pub(crate) rows: Vec<FlowRecord>,
    /// `record:tuple` of each row.
    pub(crate) places: Vec<String>,
    pub(crate) end: Result<Finished, AzureError>,
}

impl Outcome {
    /// Of a file that must be good.
    pub(crate) fn finished(&self) -> &Finished {
        self.end.as_ref().expect("a good file")
    }

    /// `source > destination` of each row.
    pub(crate) fn pairs(&self) -> Vec<String> {
        self.rows.iter().map(|row| format!("{} > {}", row.source, row.destination)).collect()
    }
}

/// Reads a file that comes in `pieces`.
pub(crate) fn read_pieces<'p>(mut reader: Reader, pieces: impl IntoIterator<Item = &'p [u8]>) -> Outcome {
    let (mut rows, mut places) = (Vec::new(), Vec::new());
    let mut sink = |row: &Row<'_>| {
        rows.push(row.to_record());
        places.push(format!("{}:{}", row.position.record, row.position.tuple));
    };
    let pushed = pieces.into_iter().try_for_each(|piece| reader.push(piece, &mut sink));
    let end = pushed.and_then(|()| reader.finish(&mut sink));
    Outcome { rows, places, end }
}

pub(crate) fn read(file: impl AsRef<[u8]>) -> Outcome {
    read_with(Options::default(), file)
}

pub(crate) fn read_with(options: Options, file: impl AsRef<[u8]>) -> Outcome {
    read_pieces(Reader::new(options), [file.as_ref()])
}

pub(crate) fn document(records: &[String]) -> String {
    format!("{{\"records\":[{}]}}", records.join(","))
}

fn quoted(tuples: &[&str]) -> String {
    tuples.iter().map(|tuple| format!("\"{tuple}\"")).collect::<Vec<_>>().join(",")
}

/// A VNet record of one rule.
pub(crate) fn vnet(tuples: &[&str]) -> String {
    format!(
        concat!(
            r#"{{"time":"2026-11-21T10:00:52.5625085Z","flowLogVersion":4,"flowLogGUID":"66aa66aa-bb77-cc88-dd99-00ee00ee00ee","#,
            r#""macAddress":"112233445566","category":"FlowLogFlowEvent","flowLogResourceID":"/SUBSCRIPTIONS/X/FLOWLOGS/LOG","#,
            r#""targetResourceID":"/subscriptions/x/virtualNetworks/net","operationName":"FlowLogFlowEvent","#,
            r#""flowRecords":{{"flows":[{{"aclID":"acl-1","flowGroups":[{{"rule":"DefaultRule_AllowInternetOutBound","flowTuples":[{}]}}]}}]}}}}"#
        ),
        quoted(tuples)
    )
}

/// An NSG record of one rule that states `version`.
pub(crate) fn nsg(version: u8, tuples: &[&str]) -> String {
    format!(
        concat!(
            r#"{{"time":"2026-11-21T10:00:00.0000000Z","systemId":"66aa66aa-bb77-cc88-dd99-00ee00ee00ee","macAddress":"112233445566","#,
            r#""category":"NetworkSecurityGroupFlowEvent","resourceId":"/SUBSCRIPTIONS/X/NETWORKSECURITYGROUPS/NSG","#,
            r#""operationName":"NetworkSecurityGroupFlowEvents","properties":{{"Version":{},"flows":[{{"rule":"UserRule_ssh","#,
            r#""flows":[{{"mac":"AABBCCDDEEFF","flowTuples":[{}]}}]}}]}}}}"#
        ),
        version,
        quoted(tuples)
    )
}
