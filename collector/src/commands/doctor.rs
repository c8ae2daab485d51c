//! `spanwatch-collector doctor`: everything that a running collector needs, and what to do about what is missing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use spanwatch_common::checkup::{self, Check};
use spanwatch_common::time::Timestamp;

use crate::config::Config;
use crate::ingest::azure::secret::Credential;
use crate::ingest::azure::settings::AzureSettings;
use crate::ingest::tls;
use crate::pki::Pki;
use crate::run::clock;

/// Free space below which an operator should act, and below which nothing can be stored for long.
const FREE_WARN: u64 = 10 << 30;
const FREE_FAIL: u64 = 256 << 20;
/// Certificates that end within this many days deserve a word.
const DAYS_WARN: i64 = 45;
/// How long a running collector may take to answer, and how much it may say.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const ANSWER_LEN_MAX: u64 = 16 << 20;
/// Files that a collector has open beside its connections.
const FILES_RESERVE: u64 = 512;

/// Checks, prints, and fails if any check does.
///
/// # Errors
/// The rule file has a mistake.
pub fn run(config: &Config) -> anyhow::Result<ExitCode> {
    config.rules()?;
    let checks = examine(config, clock());
    print!("{}", checkup::render(&checks));
    Ok(if checkup::any_fails(&checks) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Looks at everything, in the order in which a start would need it.
pub fn examine(config: &Config, now: Timestamp) -> Vec<Check> {
    let alerts = config.alerts.file.parent().map(PathBuf::from).unwrap_or_default();
    let mut checks =
        vec![directory("store", &config.store.directory), free_space(&config.store.directory), directory("alerts", &alerts)];
    checks.extend(certificates(&Pki::new(&config.pki.directory), &config.pki.directory, now));
    checks.extend(config.azure.iter().filter_map(credential));
    checks.push(port("sensors", &config.ingest.listen, "ingest.listen"));
    if !config.metrics.listen.is_empty() {
        checks.push(port("metrics", &config.metrics.listen, "metrics.listen"));
    }
    checks.push(open_files(config.ingest.connections_max as u64));
    checks.push(time_service());
    if let Ok(address) = config.metrics.listen.parse() {
        checks.extend(rules_in_force(address));
        checks.extend(mirrors(address));
    }
    checks
}

/// The nearest directory that exists on the way to `path`.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn directory(name: &'static str, path: &Path) -> Check {
    let there = nearest(path);
    let probe = there.join(format!(".spanwatch-doctor-{}", std::process::id()));
    let written = fs::write(&probe, b"doctor").and_then(|()| fs::remove_file(&probe));
    match written {
        Ok(()) if there == path => Check::ok(name, format!("{} can be written", path.display())),
        Ok(()) => Check::ok(name, format!("{} does not exist yet and can be made", path.display())),
        Err(error) => {
            let says = format!("{} cannot be written: {error}", there.display());
            let remedy = format!("install -d -o USER -g USER {}, with the user that runs the collector", path.display());
            Check::fail(name, says, remedy)
        }
    }
}

fn free_space(path: &Path) -> Check {
    let name = "free space";
    let free = match rustix::fs::statvfs(nearest(path)) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => return Check::warn(name, format!("cannot be told: {error}"), format!("df {}", path.display())),
    };
    let says = format!("{:.1} GiB under {}", free as f64 / f64::from(1 << 30), path.display());
    let remedy = "free some, or lower `store.retention_days` or `store.retention_bytes_max`";
    match free {
        0..FREE_FAIL => Check::fail(name, says, remedy),
        FREE_FAIL..FREE_WARN => Check::warn(name, says, remedy),
        _ => Check::ok(name, says),
    }
}

/// Whether the credential of a container that is followed can be read.
fn credential(container: &AzureSettings) -> Option<Check> {
    let file = &container.credential_file;
    if file.as_os_str().is_empty() {
        return None;
    }
    let others_read = fs::metadata(file).is_ok_and(|metadata| metadata.mode() & 0o077 != 0);
    Some(match Credential::read(file) {
        Ok(_) if others_read => Check::warn(
            "azure",
            format!("{} can be read by other users of this machine", file.display()),
            format!("chmod 600 {}", file.display()),
        ),
        Ok(_) => Check::ok("azure", format!("{} can be read for {}", file.display(), container.name)),
        Err(error) => {
            Check::fail("azure", format!("{error:#}"), "then check it with: spanwatch-collector import --dry-run az://…")
        }
    })
}

/// The files of the authority, whether they fit together, and the days that they have left.
fn certificates(pki: &Pki, directory: &Path, now: Timestamp) -> Vec<Check> {
    let name = "certificates";
    if let Err(error) = tls::server_config(pki) {
        let remedy = format!("spanwatch-collector pki init --dir {}", directory.display());
        return vec![Check::fail(name, error.to_string(), remedy)];
    }
    let own = [pki.authority_path(), pki.collector_path()];
    let is_identity = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "pem") && !own.contains(path);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut identities: Vec<_> = entries.filter(is_identity).collect();
    identities.sort();
    let mut checks = Vec::new();
    for path in own.iter().chain(&identities) {
        let shown = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let remedy = match path.file_stem().and_then(|stem| stem.to_str()) {
            Some("ca") => "spanwatch-collector pki init --force, then a new identity for each sensor".to_owned(),
            Some("collector") => "spanwatch-collector pki init --renew, then restart the collector".to_owned(),
            stem => format!("spanwatch-collector pki issue {} --force, then copy the file to the sensor", stem.unwrap_or("NAME")),
        };
        checks.push(match pki.end_of(path) {
            Ok(end) => {
                let days = (end.as_nanos() - now.as_nanos()).div_euclid(86_400_000_000_000);
                match days {
                    ..0 => Check::fail(name, format!("{shown} has expired"), remedy),
                    0..DAYS_WARN => Check::warn(name, format!("{shown} ends in {days} days"), remedy),
                    _ => Check::ok(name, format!("{shown} is good for {days} days")),
                }
            }
            Err(error) => Check::warn(name, error.to_string(), remedy),
        });
    }
    checks
}

fn port(name: &'static str, address: &str, key: &str) -> Check {
    match TcpListener::bind(address) {
        Ok(_) => Check::ok(name, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Check::warn(
            name,
            format!("{address} is in use"),
            format!("fine if that is the running collector; else `ss -ltnp` shows by whom, or change `{key}`"),
        ),
        Err(error) => Check::fail(name, format!("{address}: {error}"), format!("change `{key}`")),
    }
}

/// What a running collector says of each of its rules. Nothing when there is none.
fn rules_in_force(metrics: SocketAddr) -> Vec<Check> {
    let Ok(page) = get(metrics, "/metrics") else { return Vec::new() };
    let mut checks: Vec<Check> = detectors(&page)
        .into_iter()
        .map(|(rule, [keys, late, evicted, refused])| {
            let says = format!("{rule}: {keys} keys held, {late} late, {evicted} evicted, {refused} refused");
            match (late, evicted + refused) {
                (0, 0) => Check::ok("rule", says),
                (_, 0) => Check::warn("rule", says, "raise its lateness_secs, or look whether the clocks of the sensors agree"),
                _ => Check::warn("rule", says, "raise its keys_max: what was let go was not looked at"),
            }
        })
        .collect();
    if let Some((_, error)) = get(metrics, "/healthz").ok().as_deref().and_then(|page| page.split_once("rules of before: ")) {
        let remedy = "spanwatch-collector rules test; then systemctl reload spanwatch-collector";
        checks.push(Check::warn("rules", format!("the running collector has those of before: {}", error.trim()), remedy));
    }
    checks
}

/// Keys, late, evicted and refused of each detector on a page of `/metrics`.
fn detectors(page: &str) -> BTreeMap<String, [u64; 4]> {
    const NAMES: [&str; 4] = ["detector_keys", "detector_late_total", "detector_evicted_total", "detector_refused_total"];
    let mut detectors: BTreeMap<String, [u64; 4]> = BTreeMap::new();
    for line in page.lines() {
        let place = NAMES.iter().position(|name| line.strip_prefix("spanwatch_").is_some_and(|rest| rest.starts_with(name)));
        let mut quoted = line.split('"').skip(1).step_by(2);
        let (Some(place), Some(rule), Some(variant)) = (place, quoted.next(), quoted.next()) else { continue };
        let value = line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(0);
        detectors.entry(format!("{rule} {variant}")).or_default()[place] = value;
    }
    detectors
}

/// What a running collector says of the sensors' mirror ports. Nothing when there is none.
fn mirrors(metrics: SocketAddr) -> Vec<Check> {
    let Ok(page) = get(metrics, "/metrics") else { return Vec::new() };
    let of = |(port, symptoms): (String, Vec<String>)| match symptoms.as_slice() {
        [] => Check::ok("mirror", format!("{port} showed what it should in its last minute")),
        symptoms => {
            let says = format!("{port}: {} in its last minute", symptoms.join(", "));
            Check::warn("mirror", says, "spanwatch-collector alerts --open says what was measured, and what to do on the switch")
        }
    };
    symptoms(&page).into_iter().map(of).collect()
}

/// The symptoms that each port shows on a page of `/metrics`: `eno2 at plant1`, `one_way`.
fn symptoms(page: &str) -> BTreeMap<String, Vec<String>> {
    let mut ports: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("spanwatch_collector_mirror_symptom{")) {
        let Some((labels, value)) = line.rsplit_once("} ") else { continue };
        let of = |key: &str| labels.split_once(&format!("{key}=\""))?.1.split_once('"').map(|(value, _)| value);
        let (Some(sensor), Some(interface), Some(symptom)) = (of("sensor"), of("interface"), of("symptom")) else { continue };
        let port = ports.entry(format!("{interface} at {sensor}")).or_default();
        port.extend((value == "1").then(|| symptom.replace('_', " ")));
    }
    ports
}

/// A page of the collector that runs on this machine.
fn get(from: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&from, ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {from}\r\n\r\n").as_bytes())?;
    let mut page = String::new();
    stream.take(ANSWER_LEN_MAX).read_to_string(&mut page)?;
    Ok(page)
}

fn open_files(connections_max: u64) -> Check {
    let name = "open files";
    let needed = connections_max + FILES_RESERVE;
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")).and_then(|rest| rest.split_whitespace().next());
    match soft.map(str::parse::<u64>) {
        Some(Ok(limit)) if limit < needed => Check::warn(
            name,
            format!("the limit is {limit}, but `ingest.connections_max` may need {needed}"),
            format!("LimitNOFILE={needed} in the service's unit, or `ulimit -n {needed}`"),
        ),
        Some(Ok(limit)) => Check::ok(name, format!("the limit is {limit}")),
        _ => Check::ok(name, "no limit"),
    }
}

fn time_service() -> Check {
    let name = "clock";
    // systemd-timesyncd leaves this file once it has set the clock; chrony and ntpd have their process directories.
    let synchronized = Path::new("/run/systemd/timesync/synchronized").exists();
    let others = ["/run/chrony", "/run/chronyd.pid", "/run/ntpd.pid", "/run/ntpsec"];
    if synchronized {
        Check::ok(name, "kept by systemd-timesyncd")
    } else if let Some(found) = others.iter().find(|path| Path::new(path).exists()) {
        Check::ok(name, format!("kept by a time service ({found})"))
    } else {
        let remedy = "install chrony or systemd-timesyncd here and on the sensors: windows and certificates depend on the time";
        Check::warn(name, "no time service seems to keep it", remedy)
    }
}

#[cfg(test)]
mod tests {
    use spanwatch_common::checkup::Verdict;

    use super::*;

    #[test]
    fn a_fresh_machine_is_told_to_make_certificates_and_a_prepared_one_how_long_they_last() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.pki.directory = directory.path().join("pki");
        config.store.directory = directory.path().join("not/yet/there");
        let now = Timestamp::from_secs(1_790_000_000);
        let of = |name: &'static str, now| {
            examine(&config, now).into_iter().filter(move |check| check.name == name).collect::<Vec<_>>()
        };
        let missing = of("certificates", now);
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].verdict, Verdict::Fail);
        assert!(missing[0].remedy.contains("pki init --dir"), "{:?}", missing[0]);
        assert_eq!(of("store", now)[0].verdict, Verdict::Ok);

        let pki = Pki::new(&config.pki.directory);
        pki.init(&[], now, crate::pki::Existing::Keep).unwrap();
        pki.issue("plant1", now, crate::pki::Existing::Keep).unwrap();
        let verdicts = |days: i64| {
            of("certificates", Timestamp::from_secs(1_790_000_000 + days * 86_400))
                .into_iter()
                .map(|check| check.verdict)
                .collect::<Vec<_>>()
        };
        assert_eq!(verdicts(0), [Verdict::Ok; 3]);
        assert_eq!(verdicts(700), [Verdict::Ok, Verdict::Warn, Verdict::Warn]);
        assert_eq!(verdicts(731), [Verdict::Ok, Verdict::Fail, Verdict::Fail]);
    }

    #[test]
    fn the_mirror_of_each_sensor_is_shown_with_what_it_does_wrong() {
        use spanwatch_common::health::SymptomKind;
        let vitals = crate::metrics::Vitals::default();
        let bad = SymptomKind::ALL.map(|kind| matches!(kind, SymptomKind::OneWay | SymptomKind::Duplicates));
        let good = [false; SymptomKind::ALL.len()];
        vitals.detect().mirrors =
            vec![("plant1".to_owned(), "eno2".to_owned(), bad), ("plant2".to_owned(), "eno1".to_owned(), good)];
        let shown = symptoms(&vitals.render());
        let words = vec!["one way".to_owned(), "duplicates".to_owned()];
        assert_eq!(shown, BTreeMap::from([("eno2 at plant1".to_owned(), words), ("eno1 at plant2".to_owned(), Vec::new())]));
    }

    #[test]
    fn each_rule_of_a_running_collector_is_shown_and_what_it_lost_deserves_a_word() {
        let vitals = crate::metrics::Vitals::default();
        let state = |rule, keys, evicted| crate::detect::State {
            rule,
            variant: crate::detect::Variant::Fixed,
            keys,
            bytes: 0,
            late: 0,
            evicted,
            refused: 0,
        };
        vitals.detect().detectors = vec![state("AZ-01", 12, 0), state("AZ-02", 7, 3)];
        let page = vitals.render();
        let expected = [("AZ-01 fixed".to_owned(), [12, 0, 0, 0]), ("AZ-02 fixed".to_owned(), [7, 0, 3, 0])];
        assert_eq!(detectors(&page), BTreeMap::from(expected));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for body in [page, "ok, but with the rules of before: r.toml:2:1: no\n".to_owned()] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let _ = stream.read(&mut request).unwrap();
                write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}").unwrap();
            }
        });
        let verdicts: Vec<Verdict> = rules_in_force(address).iter().map(|check| check.verdict).collect();
        server.join().unwrap();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warn, Verdict::Warn]);
    }
}
