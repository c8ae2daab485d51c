//! Every peculiarity of Azure's files that is known, one test each.

mod support;

use proptest::prelude::*;
use spanwatch_azure::{ErrorKind, Options, Reader, Resume, State};
use spanwatch_common::cloud::{Action, Direction, Origin};
use spanwatch_common::flow::FlowState;
use spanwatch_common::time::Timestamp;
use support::{document, nsg, read, read_pieces, read_with, vnet};

const BEGIN: &str = "1795255200123,10.0.0.4,192.0.2.10,40000,443,6,O,B,NX,0,0,0,0";
const GOES_ON: &str = "1795255201123,10.0.0.4,192.0.2.10,40000,443,6,O,C,NX,1021,588096,8005,4610880";
const END: &str = "1795255202123,10.0.0.4,192.0.2.10,40000,443,6,O,E,NX,52,29952,47,27072";
const DENIED: &str = "1795255203123,198.51.100.7,10.0.0.4,50000,22,6,I,D,NX,0,0,0,0";

fn millis(millis: i64) -> Timestamp {
    Timestamp::from_nanos(millis * 1_000_000)
}

#[test]
fn the_documented_conversation_adds_up() {
    let outcome = read(document(&[vnet(&[BEGIN, GOES_ON, END])]));
    let total = |pair: fn(&spanwatch_common::flow::FlowRecord) -> [u64; 2]| outcome.rows.iter().flat_map(pair).sum::<u64>();
    assert_eq!(total(|row| row.packets), 9_125);
    assert_eq!(total(|row| row.octets), 5_256_000);
    assert!(outcome.rows.iter().all(|row| row.flow_id == outcome.rows[0].flow_id), "one flow has one id");
}

#[test]
fn a_vnet_tuple_becomes_a_record_with_all_it_says() {
    let outcome = read(document(&[vnet(&[GOES_ON, DENIED])]));
    let row = &outcome.rows[0];
    assert_eq!((row.source.to_string(), row.destination.to_string()), ("10.0.0.4".into(), "192.0.2.10".into()));
    assert_eq!((row.source_port, row.destination_port, row.protocol), (40000, 443, 6));
    assert_eq!((row.packets, row.octets), ([1021, 8005], [588_096, 4_610_880]));
    assert_eq!((row.state, row.first(), row.last()), (FlowState::Continue, millis(1_795_255_201_123), millis(1_795_255_201_123)));
    assert_eq!((row.source_mac, row.destination_mac), ([0x11, 0x22, 0x33, 0x44, 0x55, 0x66], [0; 6]), "outbound: the source's");
    let cloud = row.cloud.as_ref().unwrap();
    assert_eq!((cloud.origin, cloud.action, cloud.direction), (Origin::VnetV4, Action::Allow, Direction::Outbound));
    assert_eq!(&*cloud.context.observer, "112233445566");
    assert_eq!(&*cloud.context.resource, "/subscriptions/x/virtualNetworks/net");
    assert_eq!((&*cloud.context.acl, &*cloud.context.rule), ("acl-1", "DefaultRule_AllowInternetOutBound"));
    assert_eq!(&*cloud.context.encryption, "NX");
    let denied = outcome.rows[1].cloud.as_ref().unwrap();
    assert_eq!((outcome.rows[1].state, denied.action, denied.direction), (FlowState::Begin, Action::Deny, Direction::Inbound));
}

#[test]
fn versions_mix_in_one_file_and_arity_counts_tuple_by_tuple() {
    let v1 = "1795255200,198.51.100.7,10.0.0.4,50000,22,T,I,D";
    let begin = "1795255201,10.0.0.4,192.0.2.53,40000,53,U,O,A,B,,,,";
    let end = "1795255202,10.0.0.4,192.0.2.53,40000,53,U,O,A,E,1,70,1,182";
    let outcome = read(document(&[nsg(1, &[v1]), nsg(2, &[v1, begin, end]), vnet(&[BEGIN])]));
    let origins: Vec<_> = outcome.rows.iter().map(|row| row.origin()).collect();
    // The same tuple in another record of the same rule is a duplicate.
    assert_eq!(origins, [Origin::NsgV1, Origin::NsgV2, Origin::NsgV2, Origin::VnetV4]);
    assert_eq!(outcome.finished().counts.duplicates, 1);
    let [denied, begun, ended, _] = &outcome.rows[..] else { panic!("four rows") };
    assert_eq!((denied.state, denied.protocol, denied.cloud.as_ref().unwrap().action), (FlowState::Begin, 6, Action::Deny));
    assert_eq!(denied.first(), Timestamp::from_secs(1_795_255_200));
    assert_eq!((begun.state, begun.packets, begun.protocol), (FlowState::Begin, [0, 0], 17));
    assert_eq!((ended.state, ended.packets, ended.octets), (FlowState::End, [1, 1], [70, 182]));
    assert_eq!(&*ended.cloud.as_ref().unwrap().context.observer, "AABBCCDDEEFF", "the inner MAC is the interface's");
}

#[test]
fn seconds_and_empty_counters_are_read_in_vnet_logs_too() {
    let outcome = read(document(&[vnet(&["1795255200,10.0.0.4,192.0.2.10,40000,443,6,O,B,X,,,,"])]));
    assert_eq!(outcome.rows[0].first(), Timestamp::from_secs(1_795_255_200));
    assert_eq!(outcome.rows[0].packets, [0, 0]);
}

#[test]
fn keys_come_in_any_order_with_any_space_and_case() {
    let plain = read(document(&[vnet(&[GOES_ON, DENIED])]));
    let shuffled = format!(
        r#"
        {{ "records" :
          [ {{ "flowRecords" : {{ "flows" : [ {{ "flowGroups" : [ {{ "flowTuples" : [ "{GOES_ON}" ,
               "{DENIED}" ] , "rule" : "DefaultRule_AllowInternetOutBound" }} ] , "aclID" : "acl-1" , "new": [{{}}, "]"] }} ] }} ,
          "targetResourceId" : "\/subscriptions\/x\/virtualNetworks\/net" , "FLOWLOGRESOURCEID" : "/SUBSCRIPTIONS/X/FLOWLOGS/LOG",
          "later" : {{ "a" : [1, 2.5e3, null, true, "\"}}"] }} , "flowLogVersion" : "4" ,
          "macAddress" : "112233445566" , "category" : "FlowLogFlowEvent" , "time" : "2026-11-21T10:00:52.5625085Z" }} ] }}
        "#
    );
    let outcome = read(shuffled);
    outcome.finished();
    assert_eq!(outcome.rows, plain.rows);
}

#[test]
fn documents_lines_and_fragments_are_all_read() {
    let (a, b) = (vnet(&[BEGIN]), vnet(&[END]));
    let whole = read(document(&[a.clone(), b.clone()])).rows;
    for file in [
        format!(",{a},{b}]}}"),
        format!("{{\"records\":[{a},{b}"),
        format!(",{a},{b}"),
        format!("[{a},\r\n{b}]"),
        format!("{a}\n{b}\n"),
        format!("\u{feff}{{\"records\":[{a}]}}\n{{\"records\":[{b}]}}"),
        format!("\u{feff}\n {a}{b}"),
        format!("{{ \n\t\"records\"{}:[{a},{b}]}}", " ".repeat(4_000)),
    ] {
        let outcome = read(&file);
        assert_eq!(outcome.finished().held_back, 0, "{file}");
        assert_eq!(outcome.rows, whole, "{file}");
    }
    for empty in ["", "\u{feff}", " \n", "{\"records\":[]}", "{\"records\":[", "]}", "[]"] {
        let outcome = read(empty);
        assert_eq!((outcome.rows.len(), outcome.finished().counts.records), (0, 0), "{empty:?}");
    }
}

#[test]
fn a_record_without_its_end_is_held_back_and_read_later() {
    let records = [vnet(&[BEGIN]), vnet(&[GOES_ON, DENIED]), nsg(2, &["1795255202,10.0.0.4,192.0.2.53,4,53,U,O,A,E,1,70,1,182"])];
    let file = document(&records);
    let whole = read(&file);
    for cut in 0..file.len() {
        let (head, _) = file.split_at(cut);
        let first = read(head);
        let finished = first.finished();
        assert!(first.rows.len() <= whole.rows.len());
        let resume = Resume { byte_offset: finished.resume.byte_offset, ..finished.resume.clone() };
        let tail = &file.as_bytes()[usize::try_from(resume.byte_offset).unwrap()..];
        let second = read_pieces(Reader::resume(Options::default(), resume), [tail]);
        second.finished();
        assert_eq!([first.rows, second.rows].concat(), whole.rows, "cut at {cut}");
        assert_eq!([first.places, second.places].concat(), whole.places, "cut at {cut}");
    }
    // The closer is not behind the point to resume from: Azure puts the next record before it.
    assert_eq!(whole.finished().resume.byte_offset, file.len() as u64 - 2);
}

#[test]
fn a_blob_that_grows_is_read_on_without_reading_twice() {
    let records = [vnet(&[BEGIN]), vnet(&[GOES_ON, BEGIN]), vnet(&[END])];
    let mut reader = Reader::new(Options::default());
    let mut rows = 0;
    for grown in 0..=records.len() {
        let blob = document(&records[..grown]);
        let from = usize::try_from(reader.resume_point().byte_offset).unwrap();
        reader.rewind();
        // The last push ends within a record that the next one brings whole.
        let torn = format!("{},{{\"time\":\"20", &blob[from..blob.len() - 2]);
        reader.push(if grown == 1 { torn.as_bytes() } else { &blob.as_bytes()[from..] }, |_| rows += 1).unwrap();
        reader.finish(|_| rows += 1).unwrap();
    }
    assert_eq!((rows, reader.counts().records, reader.counts().duplicates), (3, 3, 1));
}

#[test]
fn exact_duplicates_are_left_out_and_counted() {
    let outcome = read(document(&[vnet(&[BEGIN, GOES_ON, BEGIN]), vnet(&[BEGIN]), vnet(&[END])]));
    assert_eq!(outcome.places, ["0:0", "0:1", "2:0"], "a duplicate keeps its number");
    assert_eq!((outcome.finished().counts.tuples, outcome.finished().counts.duplicates), (5, 2));
    // The same words under another rule, list or interface are another row.
    let other = vnet(&[BEGIN]).replace("acl-1", "acl-2");
    assert_eq!(read(document(&[vnet(&[BEGIN]), other])).rows.len(), 2);
    let other = vnet(&[BEGIN]).replace("112233445566", "112233445567");
    assert_eq!(read(document(&[vnet(&[BEGIN]), other])).rows.len(), 2);
    let keep = Options { duplicates_remembered: 0, ..Options::default() };
    assert_eq!(read_with(keep, document(&[vnet(&[BEGIN, BEGIN])])).rows.len(), 2);
}

#[test]
fn unknown_encryption_and_opaque_lists_pass_through() {
    let tuples = [
        BEGIN.replace(",NX,", ",NX_HW_NOT_SUPPORTED,"),
        END.replace(",NX,", ",NX_SOMETHING_NEW,"),
        DENIED.replace(",NX,", ",X,"),
    ];
    let acl = "/subscriptions/x/resourceGroups/y/providers/Microsoft.Network/networkSecurityGroups/nsg";
    let record = vnet(&tuples.each_ref().map(String::as_str))
        .replace("acl-1", acl)
        .replace("DefaultRule_AllowInternetOutBound", "PlatformRule");
    let outcome = read(document(&[record]));
    let contexts: Vec<_> = outcome.rows.iter().map(|row| row.cloud.as_ref().unwrap().context.clone()).collect();
    assert_eq!(contexts.iter().map(|c| &*c.encryption).collect::<Vec<_>>(), ["NX_HW_NOT_SUPPORTED", "NX_SOMETHING_NEW", "X"]);
    assert!(contexts.iter().all(|context| &*context.acl == acl && context.is_platform()));
}

#[test]
fn addresses_of_ipv6_and_protocols_without_ports() {
    let outcome = read(document(&[vnet(&[
        "1795255200123,2001:db8::4,2001:db8::10,40000,443,6,O,B,NX,0,0,0,0",
        "1795255200123,10.0.0.4,192.0.2.10,,,1,O,B,NX,0,0,0,0",
        "1795255200123,10.0.0.4,192.0.2.10,0,0,1,O,E,NX,1,84,1,84",
    ])]));
    assert_eq!(outcome.pairs()[0], "2001:db8::4 > 2001:db8::10");
    assert_eq!(outcome.rows[0].ethernet_type, 0x86dd);
    assert_eq!((outcome.rows[1].protocol, outcome.rows[1].source_port), (1, 0));
}

#[test]
fn another_services_log_is_refused_by_its_category() {
    let foreign = r#"{"time":"2026-11-21T10:00:00Z","category":"StorageRead","operationName":"GetBlob","properties":{"x":1}}"#;
    let outcome = read(format!("{foreign}\n{foreign}\n"));
    let error = outcome.end.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ForeignCategory { category: "StorageRead".into() });
    assert!(error.to_string().contains("StorageRead") && error.to_string().contains("FlowLogFlowEvent"), "{error}");
    // Among flow logs, what stands before is kept.
    let outcome = read(document(&[vnet(&[BEGIN]), foreign.into()]));
    assert_eq!(outcome.rows.len(), 1);
    assert_eq!(outcome.end.unwrap_err().record, 1);
}

#[test]
fn what_is_no_flow_log_is_refused_with_a_sentence_that_helps() {
    let not_azure = |file: &[u8]| read(file).end.unwrap_err().kind;
    assert!(matches!(not_azure(b"hello world\n"), ErrorKind::NotAzure { .. }));
    assert!(matches!(not_azure(b"a,b,c\n1,2,3\n"), ErrorKind::NotAzure { .. }));
    assert_eq!(not_azure(b"\x1f\x8b\x08\x00"), ErrorKind::Gzip);
    assert_eq!(not_azure(b"\xff\xfe{\x00"), ErrorKind::Utf16);
    assert!(matches!(not_azure(br#"{"a":1,"b":{"c":2}}"#), ErrorKind::ForeignRecord { keys } if keys == "a, b"));
    assert!(matches!(not_azure(br#"{"properties":{"flows":[]}}"#), ErrorKind::ForeignRecord { .. }));
    let version = vnet(&[BEGIN]).replace("\"flowLogVersion\":4", "\"flowLogVersion\":5");
    assert!(matches!(not_azure(version.as_bytes()), ErrorKind::Version { version, .. } if version == "5"));
}

#[test]
fn a_damaged_tuple_is_named_with_its_place_and_what_stood_before_is_kept() {
    for (damaged, says) in [
        ("1795255200123,10.0.0.4,192.0.2.10,40000,443,6,O,B,NX,0,0,0", "13 fields"),
        ("1795255200123,10.0.0.4,192.0.2.10,40000,443,6,O,B,NX,0,0,0,0,0", "13 fields"),
        ("1795255200123,10.0.0.4,192.0.2.10,40000,443,6,O,Q,NX,0,0,0,0", "the state is \"Q\""),
        ("1795255200123,10.0.0,192.0.2.10,40000,443,6,O,B,NX,0,0,0,0", "the source address is \"10.0.0\""),
        ("1795255200123,10.0.0.4,192.0.2.10,70000,443,6,O,B,NX,0,0,0,0", "the source port is \"70000\""),
        ("0,10.0.0.4,192.0.2.10,40000,443,6,O,B,NX,0,0,0,0", "the time is \"0\""),
        ("1795255200123,10.0.0.4,192.0.2.10,40000,443,6,O,B,NX,0,0,0,-1", "a counter is \"-1\""),
        ("1795255200123,10.0.0.4,192.0.2.10,40000,443,6,O,B,ZZ,0,0,0,0", "the encryption is \"ZZ\""),
    ] {
        let file = document(&[vnet(&[BEGIN]), vnet(&[END, damaged, GOES_ON])]);
        let mut reader = Reader::new(Options::default()).named("PT1H.json");
        let mut rows = 0;
        let error = reader.push(file.as_bytes(), |_| rows += 1).unwrap_err();
        assert_eq!(rows, 2, "{damaged}");
        assert_eq!((error.record, error.tuple), (1, Some(1)));
        assert_eq!(&file[usize::try_from(error.byte_offset).unwrap()..][..damaged.len()], damaged);
        let text = error.to_string();
        assert!(text.starts_with("PT1H.json: record 1, tuple 1, byte ") && text.contains(says), "{text}");
        assert_eq!(reader.push(b"{}", |_| ()).unwrap_err(), error, "a reader that failed says so again");
    }
}

#[test]
fn memory_is_bounded_by_the_longest_record_allowed() {
    let options = Options { record_len_max: 2_000, ..Options::default() };
    let small = vnet(&[BEGIN]);
    let mut reader = Reader::new(options);
    let mut rows = 0;
    for _ in 0..1_000 {
        reader.push(small.as_bytes(), |_| rows += 1).unwrap();
    }
    assert_eq!(rows, 1, "all but the first are duplicates");
    let endless =
        std::iter::repeat_n(&b"{\"records\":[{\"flowRecords\":"[..], 1).chain(std::iter::repeat(&b"[[[[[[[[[[[[[[[["[..]));
    let error = endless.take(1_000).try_for_each(|piece| reader.push(piece, |_| rows += 1)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::RecordTooLong { limit: 2_000 });
}

#[test]
fn a_tuple_knows_its_state_and_place() {
    let mut states = Vec::new();
    let file = document(&[vnet(&[BEGIN, GOES_ON]), vnet(&[END, DENIED])]);
    let mut reader = Reader::new(Options::default());
    reader
        .push(file.as_bytes(), |row| {
            let record = &file[usize::try_from(row.position.byte_offset).unwrap()..];
            assert!(record.starts_with("{\"time\""));
            states.push((row.position.record, row.position.tuple, row.state.unwrap()));
        })
        .unwrap();
    assert_eq!(states, [(0, 0, State::Begin), (0, 1, State::Continue), (1, 0, State::End), (1, 1, State::Deny)]);
}

proptest! {
    #[test]
    fn any_cut_into_pieces_gives_the_same_rows(cuts in prop::collection::vec(0_usize..100_000, 0..12), which in 0_usize..3) {
        let file = match which {
            0 => document(&[vnet(&[BEGIN, GOES_ON, END]), nsg(1, &["1795255200,198.51.100.7,10.0.0.4,50000,22,T,I,D"]), vnet(&[DENIED])]),
            1 => analytics::JSON_LINES.to_owned(),
            _ => analytics::CSV.to_owned(),
        };
        let whole = read(&file);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (file.len() + 1)).collect();
        cuts.sort_unstable();
        let edges: Vec<usize> = [0].into_iter().chain(cuts).chain([file.len()]).collect();
        let pieces = edges.windows(2).map(|edge| &file.as_bytes()[edge[0]..edge[1]]);
        let outcome = read_pieces(Reader::new(Options::default()), pieces);
        prop_assert_eq!(outcome.finished().counts, whole.finished().counts);
        prop_assert_eq!(outcome.rows, whole.rows);
        prop_assert_eq!(outcome.places, whole.places);
    }
}

mod analytics {
    use super::*;

    pub(super) const JSON_LINES: &str = concat!(
        r#"{"TimeGenerated":"2026-11-21T10:20:00Z","SubType":"FlowLog","FlowType":"IntraVNet","FlowStartTime":"2026-11-21T10:00:01Z","#,
        r#""FlowEndTime":"2026-11-21T10:09:00Z","SrcIp":"10.0.0.4","DestIp":"10.0.0.5","DestPort":443,"L4Protocol":"T","#,
        r#""FlowDirection":"Outbound","FlowStatus":"Allowed","AclGroup":"acl","AclRule":"rule","MacAddress":"11-22-33-44-55-66","#,
        r#""SrcVm":"group/web","DestVm":"group/db","AllowedInFlows":0,"AllowedOutFlows":12,"DeniedInFlows":0,"DeniedOutFlows":0,"#,
        r#""PacketsSrcToDest":100,"PacketsDestToSrc":90.0,"BytesSrcToDest":"64000","BytesDestToSrc":57600,"FlowEncryption":"NX"}"#,
        "\n",
        r#"{"TimeGenerated":"2026-11-21T10:20:00Z","SubType":"Topology","Name":"x"}"#,
        "\n",
        r#"{"TimeGenerated":"2026-11-21T10:20:00Z","SubType":"FlowLog","FlowType":"ExternalPublic","FlowStartTime":"2026-11-21T10:00:01Z","#,
        r#""FlowEndTime":null,"SrcIp":"","SrcPublicIps":"198.51.100.7|3|0|3|0|120|0 2001:db8::7|1|1|5|4|300|200","DestIp":"10.0.0.4","#,
        r#""DestPort":22,"L4Protocol":"TCP","FlowDirection":"I","FlowStatus":"D","DeniedInFlows":4,"IsFlowCapturedAtUdrHop":true}"#,
        "\n",
    );

    pub(super) const CSV: &str = concat!(
        "TimeGenerated [UTC],SubType_s,FlowType_s,FlowStartTime_t [UTC],FlowEndTime_t [UTC],SrcIP_s,DestIP_s,DestPort_d,L4Protocol_s,",
        "FlowDirection_s,FlowStatus_s,NSGList_s,NSGRule_s,VM1_s,VM2_s,AllowedInFlows_d,AllowedOutFlows_d,InboundPackets_d,",
        "OutboundPackets_d,InboundBytes_d,OutboundBytes_d,SrcPublicIPs_s,DestPublicIPs_s,\"Comment, of ours\"\r\n",
        "\"11/21/2026, 10:20:00.000 AM\",FlowLog,ExternalPublic,\"11/21/2026, 10:00:01.000 AM\",\"11/21/2026, 10:09:00.000 AM\",",
        "10.0.0.4,,443,T,O,A,x/y/nsg,allow-web,g/web,,0,2,20,10,9000,1000,,192.0.2.10|2|2|10|20|1000|9000,\"said \"\"so\"\",\nand more\"\r\n",
        "\"11/21/2026, 10:20:00.000 AM\",FlowLog,IntraVNet,\"11/21/2026, 10:00:01.000 AM\",,10.0.0.4,10.0.0.5,53,U,I,D,x/y/nsg,deny,,g/db,",
        "0,0,0,0,0,0,,,"
    );

    #[test]
    fn json_lines_of_the_newer_table() {
        let outcome = read(JSON_LINES);
        assert_eq!(outcome.finished().counts.other_rows, 1);
        assert_eq!(outcome.pairs(), ["10.0.0.4 > 10.0.0.5", "198.51.100.7 > 10.0.0.4", "2001:db8::7 > 10.0.0.4"]);
        assert_eq!(outcome.places, ["0:0", "2:0", "2:1"]);
        let row = &outcome.rows[0];
        assert_eq!((row.packets, row.octets, row.destination_port, row.protocol), ([100, 90], [64_000, 57_600], 443, 6));
        assert_eq!((row.first(), row.last()), (Timestamp::from_secs(1_795_255_201), Timestamp::from_secs(1_795_255_740)));
        let cloud = row.cloud.as_ref().unwrap();
        assert_eq!(
            (cloud.origin, cloud.action, cloud.direction, cloud.events),
            (Origin::TaVnet, Action::Allow, Direction::Outbound, 12)
        );
        assert_eq!(cloud.ingested, Timestamp::from_secs(1_795_256_400));
        assert_eq!((&*cloud.context.source_vm, &*cloud.context.flow_type), ("group/web", "IntraVNet"));
        assert_eq!(row.source_mac, [0x11, 0x22, 0x33, 0x44, 0x55, 0x66]);
        let expanded = &outcome.rows[1];
        let cloud = expanded.cloud.as_ref().unwrap();
        assert_eq!((expanded.packets, expanded.octets, cloud.events, cloud.action), ([3, 0], [120, 0], 3, Action::Deny));
    }

    #[test]
    fn the_older_table_as_csv_from_the_portal() {
        let outcome = read(CSV);
        outcome.finished();
        assert_eq!(outcome.pairs(), ["10.0.0.4 > 192.0.2.10", "10.0.0.4 > 10.0.0.5"]);
        let row = &outcome.rows[0];
        assert_eq!((row.packets, row.octets), ([10, 20], [1000, 9000]), "outbound is from source to destination");
        let cloud = row.cloud.as_ref().unwrap();
        assert_eq!((cloud.origin, cloud.events), (Origin::TaNsg, 2));
        assert_eq!((&*cloud.context.acl, &*cloud.context.rule, &*cloud.context.source_vm), ("x/y/nsg", "allow-web", "g/web"));
        assert_eq!(outcome.rows[1].cloud.as_ref().unwrap().action, Action::Deny);
    }

    #[test]
    fn parity_keeps_the_blank_that_the_queries_see() {
        let outcome = read_with(Options { ta_parity: true, ..Options::default() }, JSON_LINES);
        assert_eq!(outcome.rows.len(), 2);
        assert!(!outcome.rows[1].source.is_some());
        assert_eq!(outcome.rows[1].cloud.as_ref().unwrap().events, 4);
    }

    #[test]
    fn arrays_and_wrapped_rows_are_the_same() {
        let rows: Vec<&str> = JSON_LINES.lines().collect();
        let whole = read(JSON_LINES).rows;
        assert_eq!(read(format!("[{}]", rows.join(",\n  "))).rows, whole);
        assert_eq!(read(document(&rows.iter().map(ToString::to_string).collect::<Vec<_>>())).rows, whole);
    }

    #[test]
    fn a_csv_file_is_resumed_with_its_header() {
        let (head, tail) = CSV.split_at(CSV.find("11/21/2026, 10:20:00.000 AM\",FlowLog,IntraVNet").unwrap() + 10);
        let first = read(head);
        assert_eq!(first.rows.len(), 1);
        let resume = first.finished().resume.clone();
        let rest = &CSV.as_bytes()[usize::try_from(resume.byte_offset).unwrap()..];
        assert!(rest.ends_with(tail.as_bytes()));
        let second = read_pieces(Reader::resume(Options::default(), resume), [rest]);
        assert_eq!([first.rows, second.rows].concat(), read(CSV).rows);
    }

    #[test]
    fn what_a_table_lacks_is_said() {
        let kind = |file: &str| read(file).end.unwrap_err().kind;
        assert!(matches!(kind(r#"{"SrcIp":"10.0.0.1","DestIp":"10.0.0.2"}"#), ErrorKind::Missing { column: "FlowStartTime" }));
        assert!(matches!(kind("SrcIp,DestIp,FlowStartTime [Local]\n"), ErrorKind::TimeZone { .. }));
        assert!(matches!(kind("SrcIp,DestIp,FlowStartTime\n10.0.0.1,10.0.0.2\n"), ErrorKind::CsvWidth { fields: 2, columns: 3 }));
        let wrong = r#"{"SrcIp":"10.0.0.1","FlowStartTime":"2026-11-21T10:00:00Z","FlowStatus":"Perhaps"}"#;
        assert!(matches!(kind(wrong), ErrorKind::Field { field: "FlowStatus", .. }));
    }
}
