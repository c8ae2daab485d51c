//! Syslog against rsyslog from Debian, which the tests start on loopback: an independent reader of RFC 5424, 5425, 5426 and 6587.
//!
//! Without rsyslog the tests say so and end; with REQUIRE_PRIVILEGED=1 or CI=true that is a failure.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may fail loudly, and its name says what it is for")]

mod support;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use spanwatch_alert::Alert;
use spanwatch_alert::deliver::format::Format;
use spanwatch_alert::deliver::format::syslog::Framing;
use spanwatch_alert::deliver::settings::{Kind, Transport};
use spanwatch_alert::deliver::{OutputSettings, test};
use spanwatch_detect::finding::Severity;
use support::{Running, alert, ids, once, until};

const PROGRAM: &str = "/usr/sbin/rsyslogd";

/// Whether `paths` are there; if not, says so, or fails where tests must not be left out.
fn have(paths: &[&str]) -> bool {
    let Some(missing) = paths.iter().find(|path| !Path::new(path).exists()) else { return true };
    let is = |key: &str, value: &str| std::env::var_os(key).is_some_and(|set| set == value);
    assert!(!is("REQUIRE_PRIVILEGED", "1") && !is("CI", "true"), "no {missing}: install what deploy/packages.txt names");
    println!("left out: no {missing}; install what deploy/packages.txt names");
    false
}

/// Where Debian's rsyslog-gnutls puts its driver: below the directory of the architecture.
fn tls_driver() -> String {
    let below = |directory: PathBuf| directory.join("rsyslog/lmnsd_gtls.so");
    let directories = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let found = directories.map(below).find(|path| path.exists());
    found.unwrap_or_else(|| below(PathBuf::from("/usr/lib"))).to_string_lossy().into_owned()
}

/// One rsyslogd, which ends with the test.
struct Rsyslog {
    directory: PathBuf,
    child: Child,
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rsyslog {
    /// With `inputs` (modules and listeners). It writes what it understood of each message into a line, part by part.
    fn start(directory: &Path, inputs: &str) -> Self {
        let file = directory.join("received");
        let parts = ["pri", "timestamp", "hostname", "app-name", "procid", "msgid", "structured-data"];
        let parts: String =
            parts.iter().map(|part| format!("property(name=\"{part}\" {}) constant(value=\"\\t\")\n", date(part))).collect();
        let config = format!(
            "global(workDirectory=\"{}\" net.enableDNS=\"off\")\n{inputs}\n\
             template(name=\"parts\" type=\"list\") {{ {parts} property(name=\"msg\") constant(value=\"\\n\") }}\n\
             action(type=\"omfile\" file=\"{}\" template=\"parts\")\n",
            directory.display(),
            file.display()
        );
        fs::write(directory.join("rsyslog.conf"), config).unwrap();
        let child = Self::run(directory);
        Self { directory: directory.to_owned(), child }
    }

    fn run(directory: &Path) -> Child {
        let log = fs::File::create(directory.join("rsyslogd.log")).unwrap();
        let _ = fs::remove_file(directory.join("pid"));
        Command::new(PROGRAM)
            .args(["-n", "-f"])
            .arg(directory.join("rsyslog.conf"))
            .arg("-i")
            .arg(directory.join("pid"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::run(&self.directory);
    }

    /// Waits until it listens for TCP on `port`.
    async fn listens(&self, port: u16) {
        let log = || fs::read_to_string(self.directory.join("rsyslogd.log")).unwrap_or_default();
        until(&format!("rsyslogd listens: {}", log()), || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    }

    /// The parts of each message, in the order of arrival; the last is the message itself.
    fn received(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.directory.join("received")).unwrap_or_default();
        text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).filter(|parts: &Vec<_>| parts.len() == 8).collect()
    }

    fn ids(&self) -> Vec<String> {
        let id = |parts: &Vec<String>| {
            parts[6].split("id=\"").nth(1).map(|rest| rest.split('"').next().unwrap_or_default().to_owned())
        };
        self.received().iter().filter_map(id).filter(|id| id.starts_with("alert-")).collect()
    }
}

fn date(part: &str) -> &'static str {
    if part == "timestamp" { "dateFormat=\"rfc3339\"" } else { "" }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn syslog(name: &str, port: u16, transport: Transport) -> OutputSettings {
    OutputSettings {
        name: name.to_owned(),
        kind: Kind::Syslog,
        format: Format::Cef,
        transport,
        address: format!("127.0.0.1:{port}"),
        hostname: "collector1".to_owned(),
        timeout_secs: 5,
        ..OutputSettings::default()
    }
}

#[tokio::test]
async fn rsyslog_reads_every_part_over_tcp_in_both_framings_and_over_udp() {
    if !have(&[PROGRAM]) {
        return;
    }
    let [directory, outbox] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let tcp = free_port();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let inputs = format!(
        "module(load=\"imtcp\")\ninput(type=\"imtcp\" address=\"127.0.0.1\" port=\"{tcp}\")\n\
         module(load=\"imudp\")\ninput(type=\"imudp\" address=\"127.0.0.1\" port=\"{udp}\" rcvbufSize=\"1m\")"
    );
    let rsyslog = Rsyslog::start(directory.path(), &inputs);
    rsyslog.listens(tcp).await;

    let odd = Alert {
        severity: Severity::High,
        rule: "ND-10".to_owned(),
        subject: "10.0.4.7 at \"plant\\1\" [west]".to_owned(),
        sentence: "a=b | c\\d ± 3 s".to_owned(),
        ..alert(0)
    };
    for (name, output) in [
        ("counted", syslog("counted", tcp, Transport::Tcp)),
        ("lines", OutputSettings { framing: Framing::Lf, ..syslog("lines", tcp, Transport::Tcp) }),
        ("datagrams", syslog("datagrams", udp, Transport::Udp)),
    ] {
        let before = rsyslog.ids().len();
        let running = Running::start(&outbox.path().join(name), &[output]);
        running.outbox.put(&odd).unwrap();
        running.put(1..100);
        running.drained().await;
        until("rsyslog has them", || rsyslog.ids().len() == before + 100).await;
        assert_eq!(rsyslog.ids()[before..], ids(0..100), "{name}");
        running.stop().await;

        // local0.crit, 16 · 8 + 2; the escapes of structured data are still on, as rsyslog keeps it raw.
        let received = rsyslog.received();
        let parts = received.iter().filter(|parts| parts[6].contains("alert-0000")).nth_back(0).unwrap();
        let data = "[spanwatch@32473 id=\"alert-0000\" class=\"detection\" state=\"open\" severity=\"high\" confidence=\"1\" \
                    subject=\"10.0.4.7 at \\\"plant\\\\1\\\" [west\\]\"]";
        let expected = ["130", "2026-11-21T10:00:00.000000Z", "collector1", "spanwatch", "-", "ND-10", data];
        assert_eq!(parts[..7], expected, "{name}");
        let message = parts[7].trim_start_matches(['\u{feff}', ' ']);
        assert!(message.starts_with("CEF:0|Spanwatch|Spanwatch Collector|"), "{name}: {message}");
        assert!(message.ends_with(" msg=a\\=b | c\\\\d ± 3 s"), "{name}: {message}");
    }
}

#[tokio::test]
async fn what_is_under_way_when_rsyslog_dies_is_sent_again() {
    if !have(&[PROGRAM]) {
        return;
    }
    let [directory, outbox] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let port = free_port();
    let inputs = format!("module(load=\"imtcp\")\ninput(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")");
    let mut rsyslog = Rsyslog::start(directory.path(), &inputs);
    rsyslog.listens(port).await;
    let running = Running::start(outbox.path(), &[OutputSettings { batch_max: 20, ..syslog("siem", port, Transport::Tcp) }]);
    for round in 0..4 {
        running.put(100 * round..100 * round + 100);
        until("some are there", || rsyslog.ids().len() > 10).await;
        rsyslog.restart();
    }
    running.drained().await;
    until("all are there", || once(rsyslog.ids()).len() == 400).await;
    assert_eq!(once(rsyslog.ids()), ids(0..400));
    running.stop().await;
}

#[tokio::test]
async fn tls_reaches_rsyslog_with_a_certificate_of_ours_and_nobody_else() {
    if !have(&[PROGRAM, &tls_driver()]) {
        return;
    }
    let [directory, outbox] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let path = |name: &str| directory.path().join(name);
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), Issuer::new(params, key))
    };
    let issue = |issuer: &Issuer<'_, KeyPair>, name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (ca, issuer) = authority("ours");
    let (other_ca, _) = authority("other");
    let (server, server_key) = issue(&issuer, "127.0.0.1");
    let (client, client_key) = issue(&issuer, "collector1");
    for (name, text) in [
        ("ca.pem", ca),
        ("other.pem", other_ca),
        ("server.pem", server),
        ("server.key", server_key),
        ("client.pem", client + &client_key),
    ] {
        fs::write(path(name), text).unwrap();
    }
    let port = free_port();
    let inputs = format!(
        "global(defaultNetstreamDriver=\"gtls\" defaultNetstreamDriverCAFile=\"{}\" defaultNetstreamDriverCertFile=\"{}\" \
         defaultNetstreamDriverKeyFile=\"{}\")\n\
         module(load=\"imtcp\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\" streamDriver.authMode=\"x509/certvalid\")\n\
         input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")",
        path("ca.pem").display(),
        path("server.pem").display(),
        path("server.key").display()
    );
    let rsyslog = Rsyslog::start(directory.path(), &inputs);
    rsyslog.listens(port).await;

    let output =
        OutputSettings { ca_file: path("ca.pem"), identity_file: path("client.pem"), ..syslog("tls", port, Transport::Tls) };
    let running = Running::start(outbox.path(), std::slice::from_ref(&output));
    running.put(0..100);
    running.drained().await;
    until("rsyslog has them", || rsyslog.ids().len() >= 100).await;
    assert_eq!(rsyslog.ids(), ids(0..100));
    running.stop().await;

    let said = test(&OutputSettings { ca_file: path("other.pem"), ..output.clone() }).await.unwrap_err();
    assert!(said.contains("invalid peer certificate"), "{said}");
    let said = test(&OutputSettings { identity_file: PathBuf::new(), ..output }).await.unwrap_err();
    assert!(!said.is_empty());
    assert_eq!(rsyslog.ids().len(), 100);
}

#[tokio::test]
async fn a_machine_that_says_that_nobody_listens_is_believed() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for transport in [Transport::Udp, Transport::Tcp] {
        let said = test(&syslog("nobody", port, transport)).await.unwrap_err();
        assert!(said.starts_with(&format!("127.0.0.1:{port}: Connection refused")), "{said}");
    }
}
