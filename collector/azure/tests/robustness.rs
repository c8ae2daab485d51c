//! Damaged files: read, held back or refused with a place, never a panic, and nothing lost of what stood before the damage.

mod support;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use spanwatch_azure::{Options, Reader};
use support::{document, nsg, read_pieces, vnet};

/// How many damaged files are tried.
const FILES: usize = 20_000;

const TABLE: &str = concat!(
    "TimeGenerated [UTC],SubType_s,FlowStartTime_t [UTC],SrcIP_s,DestIP_s,DestPort_d,L4Protocol_s,SrcPublicIPs_s\r\n",
    "\"11/21/2026, 10:20:00.000 AM\",FlowLog,\"11/21/2026, 10:00:01.000 AM\",10.0.0.4,10.0.0.5,443,T,\r\n",
    "\"11/21/2026, 10:20:00.000 AM\",FlowLog,2026-11-21T10:00:01Z,,10.0.0.5,443,T,198.51.100.7|3|0|3|0|120|0 2001:db8::7|1|1|5|4|300|200\n"
);

const LINES: &str = concat!(
    r#"{"TimeGenerated":"2026-11-21T10:20:00Z","SubType":"FlowLog","FlowStartTime":"2026-11-21T10:00:01Z","SrcIp":"10.0.0.4","#,
    r#""DestIp":"10.0.0.5","DestPort":443,"L4Protocol":"T","FlowDirection":"Outbound","FlowStatus":"Allowed","PacketsSrcToDest":100.0}"#,
    "\n",
    r#"{"TimeGenerated":"2026-11-21T10:20:00Z","SubType":"FlowLog","FlowStartTime":"2026-11-21T10:00:01Z","SrcIp":null,"#,
    r#""SrcPublicIps":"198.51.100.7|3|0|3|0|120|0","DestIp":"10.0.0.5","DeniedInFlows":3}"#,
    "\n"
);

fn sound() -> Vec<Vec<u8>> {
    let v2 = "1795255201,10.0.0.4,192.0.2.53,40000,53,U,O,A,B,,,,";
    let v4 = "1795255201123,10.0.0.4,2001:db8::10,40000,443,6,O,C,NX,1021,588096,8005,4610880";
    let denied = "1795255203123,198.51.100.7,10.0.0.4,50000,22,6,I,D,X,0,0,0,0";
    vec![
        document(&[vnet(&[v4, denied]), nsg(1, &["1795255200,198.51.100.7,10.0.0.4,50000,22,T,I,D"]), nsg(2, &[v2]), vnet(&[])])
            .into(),
        format!(",{}]}}", vnet(&[v4])).into(),
        format!("\u{feff}{}\n{}", nsg(2, &[v2]), vnet(&[denied]).replace("acl-1", "\\u00e9\\\"\\\\")).into(),
        TABLE.into(),
        LINES.into(),
    ]
}

/// One to four cuts, swaps, doublings or odd bytes. Says from which byte on the file differs.
fn damage(file: &mut Vec<u8>, rng: &mut TestRng) -> usize {
    /// What a reader cares about.
    const ODD: &[u8] = b"{}[]\",:\\,0159TIOABCEDX|\n\r \xff\x00";
    let mut intact = file.len();
    for _ in 0..=rng.next_u32() % 4 {
        let mut below = |limit: usize| rng.next_u64() as usize % limit.max(1);
        let at = below(file.len());
        let length = below(40).min(file.len() - at);
        intact = intact.min(at);
        match below(6) {
            0 => drop(file.drain(at..at + length)),
            1 => file.truncate(at),
            2 => {
                let piece = file[at..at + length].to_vec();
                file.splice(at..at, piece);
            }
            3 if !file.is_empty() => file[at] ^= 1 << below(8),
            4 if !file.is_empty() => {
                let other = below(file.len());
                intact = intact.min(other);
                file.swap(at, other);
            }
            _ => {
                let byte = ODD[below(ODD.len())];
                file.insert(at, byte);
            }
        }
    }
    intact
}

#[test]
fn twenty_thousand_damaged_files_end_in_a_place_or_in_peace() {
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let sound = sound();
    let (mut refused, mut held_back, mut whole) = (0, 0, 0);
    for number in 0..FILES {
        let origin = &sound[number % sound.len()];
        let mut file = origin.clone();
        let intact = damage(&mut file, &mut rng);
        let options = Options { record_len_max: 1 << 16, ..Options::default() };
        let piece = 1 + rng.next_u32() as usize % 300;
        let outcome = read_pieces(Reader::new(options.clone()), file.chunks(piece));
        // What the undamaged front says by itself, the damaged file says too.
        let mut before = Vec::new();
        Reader::new(options).push(&origin[..intact], |row| before.push(row.to_record())).unwrap();
        assert!(outcome.rows.starts_with(&before), "{number}: {}", String::from_utf8_lossy(&file));
        match &outcome.end {
            Ok(finished) if finished.held_back > 0 => held_back += 1,
            Ok(_) => whole += 1,
            Err(error) => {
                refused += 1;
                assert!(error.byte_offset <= file.len() as u64, "{error}");
                assert!(error.to_string().starts_with("record "), "{error}");
            }
        }
    }
    assert!(
        refused > FILES / 4 && held_back > FILES / 20 && whole > FILES / 20,
        "{refused} refused, {held_back} held back, {whole} read"
    );
}
