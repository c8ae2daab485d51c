#!/usr/bin/env python3
"""Scans made with real tools, and what becomes of them: how many are found, and how long after the 25th failed probe.

    lab.py [--bin DIRECTORY] [--only WORD] [--json FILE]        as root; about eight minutes

Builds the lab of deploy/demo/lab.sh, runs collector and sensor in it with their shipped files, lets ordinary tools make ordinary
traffic, and then every case of CASES, each from an address of its own. The time of a probe is that of its packet at the scanner
(tcpdump there); the time of an alert is when the collector detected it. Both are clocks of the same machine.

Exit status: 0 every case was found in time and nothing else was; 1 not so; 77 this machine lacks something.
Nothing outside the namespaces is touched, and they go with the program.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DEMO = ROOT / "deploy/demo"
HOST_A, HOST_B, OTHER_B, COLLECTOR = "10.77.0.1", "10.77.0.21", "10.77.0.22", "10.78.0.1"
LATE_AFTER = 2.0
PROBES = 25
SCANS = {"ND-01", "ND-02", "ND-03", "ND-04", "ND-05", "ND-06"}

# name, rules of which one must speak, whether the time to the alert counts, command; {b} host B, {c} its second address, {me} the case's own,
# {mac} host B's station address. What a probe is, is read from the packets.
# Every command is bounded; masscan waits for a last packet that may never come.
NMAP = "timeout 90 nmap -n -Pn --host-timeout 60s "
CASES = [
    ("SYN scan, 1000 ports", SCANS, True, NMAP + "-sS -p 1-1000 {b}"),
    ("connect scan, 1000 ports", SCANS, True, NMAP + "-sT -p 1-1000 {b}"),
    ("UDP scan, 200 ports", SCANS, True, NMAP + "-sU -p 1-200 --max-retries 0 -T5 {b}"),
    ("FIN scan, 500 ports", SCANS, True, NMAP + "-sF -p 1-500 {b}"),
    ("XMAS scan, 500 ports", SCANS, True, NMAP + "-sX -p 1-500 {b}"),
    ("NULL scan, 500 ports", SCANS, True, NMAP + "-sN -p 1-500 {b}"),
    ("ACK scan, 500 ports", SCANS, True, NMAP + "-sA -p 1-500 {b}"),
    ("Maimon scan, 500 ports", SCANS, True, NMAP + "-sM -p 1-500 {b}"),
    ("SYN scan behind decoys", SCANS, True, NMAP + "-sS -p 1-300 -D 10.77.0.201,10.77.0.202,ME {b}"),
    ("SYN scan in fragments", SCANS, True, NMAP + "-sS -f -p 1-300 {b}"),
    ("SYN scan, ten a second", SCANS, True, NMAP + "-sS -p 1-100 --scan-delay 100ms --max-retries 0 {b}"),
    ("SYN scan, ports in order", SCANS, True, NMAP + "-sS -r -p 1-300 {b}"),
    ("sweep of port 502 over a /24", SCANS, True, NMAP + "-sS -p 502 10.80.1.0/24"),
    ("sweep of three ports over a /25", SCANS, True, NMAP + "-sS -p 22,102,44818 --randomize-hosts 10.80.2.0/25"),
    ("ping sweep of a /24", SCANS, True, "timeout 90 nmap -n -sn -PE --host-timeout 60s 10.80.3.0/24"),
    ("masscan, 1000 ports", SCANS, True, "timeout 12 masscan {b} -p 1-1000 --rate 500 --wait 1 --adapter e0 --adapter-ip {me} --router-mac {mac}"),
    ("masscan, 20 ports of a /26", SCANS, True,
     "timeout 12 masscan 10.80.4.0/26 -p 20-39 --rate 400 --wait 1 --adapter e0 --adapter-ip {me} --router-mac {mac}"),
    ("hping3 port sweep", SCANS, True, "timeout 20 hping3 -a {me} -S -p ++1 -i u5000 -c 400 -q {b}"),
    ("hping3 --scan", SCANS, True, "timeout 30 hping3 -a {me} --scan 1-500 -S {b}"),
    ("hping3 SYN flood, forged sources", {"ND-07"}, False, "timeout 4 hping3 -S -p 8080 --flood --rand-source -q {b}"),
    ("hping3 SYN flood, one source", {"ND-07"}, False, "timeout 4 hping3 -a {me} -S -p 80 --flood -q {c}"),
    ("hydra on FTP", {"ND-17"}, False, "timeout 60 hydra -l operator -P {work}/words -t 4 -I ftp://{b}"),
]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--bin", type=Path, default=ROOT / "target/release")
    arguments.add_argument("--only", default="", help="cases whose name has this word")
    arguments.add_argument("--json", type=Path, help="the results as JSON as well")
    arguments = arguments.parse_args()
    for tool in "ip tc ethtool tcpdump nmap masscan hping3 hydra curl".split():
        if not shutil.which(tool):
            print(f"the lab needs {tool}: deploy/packages.sh lab detection", file=sys.stderr)
            sys.exit(77)
    lab = Lab(arguments.bin)
    # So that the namespaces go whatever ends the program.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        lab.build()
        results = [lab.silence()] + [lab.case(number, *case) for number, case in enumerate(CASES) if arguments.only in case[0]]
        results.append(lab.strays())
    finally:
        lab.take_down()
    print_table(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(0 if all(result["good"] for result in results) else 1)


class Lab:
    """The namespaces, the two programs, and what runs in them."""

    def __init__(self, programs):
        self.bin = programs.resolve()
        self.name = f"sw-det-{os.getpid()}-{secrets.token_hex(3)}"
        self.work = Path(tempfile.mkdtemp(prefix="spanwatch-detection."))
        self.children = []

    def shell(self, function, check=True):
        """A function of lab.sh."""
        script = f"PATH=$PATH:/usr/sbin:/sbin; lab={self.name}; . {DEMO}/lab.sh; {function}"
        return subprocess.run(["bash", "-c", script], check=check)

    def command(self, space, words):
        return ["ip", "netns", "exec", f"{self.name}-{space}"] + words

    def start(self, space, words, log):
        with open(self.work / f"{log}.log", "wb") as out:
            child = subprocess.Popen(self.command(space, [str(word) for word in words]), stdin=subprocess.DEVNULL, stdout=out,
                                     stderr=subprocess.STDOUT, start_new_session=True)
        self.children.append(child)
        return child

    def stop(self, child, patience=10):
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(patience)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def build(self):
        if self.shell("lab_check && lab_build", check=False).returncode:
            sys.exit(77)
        # A /24 of addresses for the scanner's cases, each its own.
        for last in range(100, 100 + len(CASES)):
            self.run("scanner", f"ip addr add 10.77.0.{last}/24 dev e0")
        self.mac = self.run("b", "cat /sys/class/net/e0/address").strip()
        self.configure()
        collector = self.start("collector", [self.bin / "spanwatch-collector", "run", "--config", self.work / "collector.toml"], "collector")
        self.healthy("collector", "127.0.0.1:9478", collector)
        sensor = self.start("sensor", [self.bin / "spanwatch-sensor", "run", "--config", self.work / "sensor.toml"], "sensor")
        self.healthy("sensor", "127.0.0.1:9477", sensor)
        self.shell("mirror_on")
        (self.work / "www").mkdir()
        (self.work / "www/firmware.img").write_bytes(os.urandom(2_000_000))
        (self.work / "words").write_text("".join(f"guess{number}\n" for number in range(300)))
        self.start("b", ["python3", DEMO / "traffic.py", "serve", HOST_B], "modbus")
        self.start("b", ["python3", "-m", "http.server", "--bind", HOST_B, "--directory", self.work / "www", "8080"], "http")
        self.start("b", ["python3", HERE / "ftp.py", HOST_B, "21"], "ftp")
        time.sleep(1)
        self.start("a", ["python3", DEMO / "traffic.py", "poll", HOST_B, "0"], "poller")

    def configure(self):
        """The shipped files, with only the places changed."""
        say = lambda *words: subprocess.run([self.bin / "spanwatch-collector", *words], check=True, stdout=subprocess.DEVNULL)
        say("pki", "init", "--dir", self.work / "pki", "--name", COLLECTOR)
        say("pki", "issue", "plant1", "--dir", self.work / "pki")
        places = {
            "collector": {"[ingest] listen": "0.0.0.0:4740", "[pki] directory": self.work / "pki",
                          "[store] directory": self.work / "store", "[alerts] file": self.work / "alerts.ndjson"},
            "sensor": {"[capture] interface": "mon0", "[uplink] collector": f"{COLLECTOR}:4740",
                       "[uplink] identity": self.work / "pki/plant1.pem"},
        }
        for program, changes in places.items():
            section, lines = "", []
            for line in (ROOT / f"deploy/{program}.toml").read_text().splitlines():
                section = line if line.startswith("[") else section
                key = line.lstrip("# ").split("=")[0].strip()
                place = f"{section} {key}"
                lines.append(f'{key} = "{changes.pop(place)}"' if "=" in line and place in changes else line)
            assert not changes, f"deploy/{program}.toml has no {list(changes)}"
            (self.work / f"{program}.toml").write_text("\n".join(lines) + "\n")

    def healthy(self, space, address, child):
        for _ in range(300):
            if child.poll() is not None:
                break
            asked = subprocess.run(self.command(space, ["curl", "-fsS", "--max-time", "2", "-o", "/dev/null", f"http://{address}/healthz"]),
                                   stderr=subprocess.DEVNULL)
            if asked.returncode == 0:
                return
            time.sleep(0.1)
        sys.exit(f"the {space} was not ready: {(self.work / (space + '.log')).read_text()[-2000:]}")

    def run(self, space, command):
        return subprocess.run(self.command(space, command.split()), check=True, capture_output=True, text=True).stdout

    def alerts(self):
        """Every line of the alert file, oldest first."""
        try:
            lines = (self.work / "alerts.ndjson").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def silence(self):
        """A load test, downloads, pings and the poller: nothing may be said."""
        begun = time.time()
        load = self.start("a", ["python3", HERE / "load.py", HOST_B, "8080", "3000"], "load")
        for _ in range(3):
            self.run("a", f"curl -fsS -o /dev/null http://{HOST_B}:8080/firmware.img")
            self.run("a", f"ping -q -c 10 -i 0.2 {HOST_B}")
        load.wait(60)
        time.sleep(3)
        said = [alert for alert in self.alerts() if alert["class"] == "detection"]
        return {"case": f"load test, downloads, poller ({time.time() - begun:.0f} s)", "good": not said and load.returncode == 0,
                "said": sorted({alert["rule"] for alert in said}), "delay": None, "probes": 0}

    def case(self, number, name, rules, timed, command):
        me = f"10.77.0.{100 + number}"
        self.run("scanner", f"ip route replace 10.77.0.0/24 dev e0 src {me}")
        # Nobody lives there; host B, who is asked to pass it on, does not.
        self.run("scanner", f"ip route replace 10.80.0.0/16 via {HOST_B} src {me}")
        pcap = self.work / f"case{number}.pcap"
        before = len(self.alerts())
        # The flood's packets would only fill the disk.
        dump = self.start("scanner", ["tcpdump", "-n", "-i", "e0", "-s", "96", "-U", "-w", pcap, "-c", "20000", f"host {me}"], f"dump{number}")
        time.sleep(0.7)
        words = command.format(b=HOST_B, c=OTHER_B, me=me, mac=self.mac, work=self.work).split()
        done = subprocess.run(self.command("scanner", words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        deadline = time.time() + 12
        while time.time() < deadline:
            said = [alert for alert in self.alerts()[before:] if alert["state"] == "open"]
            mine = [alert for alert in said if alert["rule"] in rules and self.concerns(alert, me, timed)]
            if mine:
                break
            time.sleep(0.2)
        time.sleep(0.5)
        self.stop(dump)
        said = [alert for alert in self.alerts()[before:] if alert["state"] == "open" and self.concerns(alert, me, timed)]
        mine = [alert for alert in said if alert["rule"] in rules]
        failed = failed_probes(pcap, me)
        delay = None
        if timed and mine and len(failed) >= PROBES:
            delay = min(seconds(alert["detected"]) for alert in mine) - failed[PROBES - 1]
        good = bool(mine) and (not timed or delay is not None and delay <= LATE_AFTER)
        if len(failed) < PROBES and timed:
            print(f"{name}: only {len(failed)} failed probes were seen: {done.stderr[-300:]}", file=sys.stderr)
        result = {"case": name, "good": good, "said": sorted({alert["rule"] for alert in said}), "delay": delay, "probes": len(failed),
                  "sentence": mine[0]["sentence"] if mine else ""}
        print(row(result), flush=True)
        return result

    @staticmethod
    def concerns(alert, me, timed):
        """A scan is its source's; a flood is its victim's."""
        return alert.get("source") == me or not timed and any(host in alert["subject"] for host in (HOST_B, OTHER_B))

    def strays(self):
        """Alerts about hosts that did nothing."""
        flood = {"ND-07", "ND-08", "ND-09"}
        strays = [alert for alert in self.alerts() if alert["state"] == "open" and alert["class"] == "detection"
                  and alert["rule"] not in flood and alert.get("source") in {HOST_A, HOST_B}]
        for alert in strays:
            print(f"about a host that did nothing: {alert['rule']} {alert['sentence']}", file=sys.stderr)
        return {"case": "alerts about hosts that did nothing", "good": not strays,
                "said": sorted({alert["rule"] for alert in strays}), "delay": None, "probes": 0}

    def take_down(self):
        for child in reversed(self.children):
            self.stop(child)
        self.shell("lab_remove", check=False)
        if os.environ.get("KEEP_WORK"):
            print(f"kept {self.work}", file=sys.stderr)
        else:
            shutil.rmtree(self.work, ignore_errors=True)


def failed_probes(pcap, me):
    """Packet times of the first probe to each (host, port) that no conversation came of, ascending."""
    first, talked = {}, set()
    for at, packet in packets(pcap):
        protocol, source, destination = packet[9], packet[12:16], packet[16:20]
        address = bytes(int(part) for part in me.split("."))
        later = int.from_bytes(packet[6:8], "big") & 0x1FFF
        rest = packet[(packet[0] & 15) * 4:]
        if later or len(rest) < 4:
            continue
        ports = struct.unpack(">HH", rest[:4]) if protocol in (6, 17) else (0, 0)
        if source == address:
            first.setdefault((protocol, destination, ports[1]), at)
        elif protocol == 6 and len(rest) > 13 and rest[13] & 0x12 == 0x12 or protocol == 17 or protocol == 1 and rest[0] == 0:
            talked.add((protocol, source, ports[0]))
    return sorted(at for probe, at in first.items() if probe not in talked and probe[1] is not None)


def packets(pcap):
    """Time and IPv4 packet of each frame of a little-endian pcap file of Ethernet."""
    content = pcap.read_bytes() if pcap.exists() else b""
    place = 24
    while place + 16 <= len(content):
        secs, micros, length, _ = struct.unpack("<IIII", content[place:place + 16])
        frame = content[place + 16:place + 16 + length]
        place += 16 + length
        if len(frame) >= 34 and frame[12:14] == b"\x08\x00":
            yield secs + micros / 1e6, frame[14:]


def seconds(text):
    """Of 2026-11-22T10:00:00.123456789Z since 1970."""
    whole, fraction = text.rstrip("Z").split(".")
    return time.mktime(time.strptime(whole + " UTC", "%Y-%m-%dT%H:%M:%S %Z")) - time.timezone + float("0." + fraction)


def row(result):
    delay = "" if result["delay"] is None else f"{result['delay']:+.2f} s"
    return f"{'ok  ' if result['good'] else 'MISS'}  {result['case']:<42} {delay:>9}  {' '.join(result['said'])}"


def print_table(results):
    print(f"\n      {'case':<42} {'alert':>9}  rules that spoke (time after the {PROBES}th failed probe)")
    for result in results:
        print(row(result))
    timed = sorted(result["delay"] for result in results if result["delay"] is not None)
    found = sum(result["good"] for result in results)
    if timed:
        print(f"\n{found} of {len(results)} as they should be; time to alert: median {timed[len(timed) // 2]:.2f} s, worst {timed[-1]:.2f} s")


if __name__ == "__main__":
    main()
