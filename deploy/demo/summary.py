#!/usr/bin/env python3
"""Adds up what the demo's kernel, sensor, store and detectors counted, each by itself.

usage: summary.py DIRECTORY SCANNER

DIRECTORY holds what demo.sh left there: ledger.json, stored.json, alerts.json, the mirror port's counters, the probes as tcpdump saw them leave the scanner (address SCANNER), and the programs' exit statuses.
Exit status: 0 everything holds; 1 something does not, and its line says NOT.
"""

import datetime
import json
import pathlib
import re
import sys

# The rules look at whole minutes: the sixth host, or the third port of one host, is still silent (deploy/rules/scans.toml).
WINDOW_SECS = 60
HOSTS_SILENT_MAX = 6
PORTS_SILENT_MAX = 3
# From the probe that crosses the threshold to the alert.
ALERT_SECS_MAX = 2.0

COLOURS = sys.stdout.isatty()
failures = 0


def main(directory, scanner):
    directory = pathlib.Path(directory)
    ledger = json.loads(read(directory / "ledger.json") or "{}")
    title("Summary")
    processes(directory)
    mirror_port(directory, ledger)
    equations(ledger)
    store(directory, ledger)
    alerts(directory, scanner)
    print()
    if failures:
        print(f"{failures} of these lines do NOT hold")
        return 1
    print("Every packet is accounted for, and both scans were found.")
    return 0


def processes(directory):
    for name in ("sensor", "collector"):
        status = read(directory / f"{name}.exit").strip()
        line(f"{name} ended with exit status {status or '(still running)'}", status == "0")


def mirror_port(directory, ledger):
    """The kernel's count is independent of the sensor's: veth counts each packet as it arrives, before XDP sees it."""
    kernel = number(directory / "rx_packets") - number(directory / "rx_packets.before")
    sent = number(directory / "tx_packets")
    delivered, dropped = ledger.get("delivered", -1), total(ledger.get("dropped"))
    line(
        f"kernel: {kernel:,} packets at the mirror port = sensor: {delivered:,} delivered + {dropped:,} dropped",
        kernel == delivered + dropped and kernel > 0,
    )
    line(f"kernel: the mirror port sent {sent:,} packets", sent == 0)
    if lost := number(directory / "cable_lost"):
        print(f"    {lost:,} more were lost on the lab's cable before they reached the mirror port")


def equations(ledger):
    """The ledger's own promises, as common/src/ledger.rs states them."""
    count = lambda name: ledger.get(name, -1)  # noqa: E731
    for left, right in {
        "wire": {"delivered": count("delivered"), "dropped": total(ledger.get("dropped"))},
        "delivered": {"metered": count("metered"), "ignored": total(ledger.get("ignored"))},
        "metered": {name: count(name) for name in ("exported", "live")},
        "exported": {name: count(name) for name in ("acknowledged", "queued", "not_sent")},
    }.items():
        terms = " + ".join(f"{value:,} {name}" for name, value in right.items())
        line(f"ledger: {count(left):,} {left} = {terms}", count(left) == sum(right.values()))
    waiting = count("queued") + count("not_sent") + count("live")
    line(f"ledger: {waiting:,} packets stayed behind when the sensor stopped", waiting == 0)


def store(directory, ledger):
    rows = records(directory / "stored.json")
    stored = rows[0] if rows else {}
    for what, acknowledged in (
        ("records", (ledger.get("flows") or {}).get("records_acknowledged", -1)),
        ("packets", ledger.get("acknowledged", -1)),
    ):
        held = stored.get(what) or 0
        line(f"store: {held:,} {what} = {acknowledged:,} {what} acknowledged", held == acknowledged)


def alerts(directory, scanner):
    raised = records(directory / "alerts.json")
    probes = probes_of(directory / "probes.log")
    for rule, scan, start in (("AZ-01", "horizontal", "sweep.start"), ("AZ-02", "vertical", "ports.start")):
        mine = [a for a in raised if a["rule"].startswith(rule) and scanner in json.dumps(a.get("subject"))]
        begun = float(read(directory / start) or 0)
        first = next((at for at, _, _ in probes if at >= begun), None)
        crossing = crossed_hosts(probes) if rule == "AZ-01" else crossed_ports(probes)
        if not mine or first is None or crossing is None:
            line(f"alert {rule}: the {scan} scan of {scanner} was found", False)
            continue
        seen = min(seconds(a["detected"]) for a in mine)
        line(
            f"alert {rule}: {seen - first:.2f} s after the first probe of the {scan} scan,"
            f" {seen - crossing:.2f} s after the probe that crossed the threshold",
            seen - crossing <= ALERT_SECS_MAX,
        )
    others = sorted({f"{a['rule']} {a.get('subject')}" for a in raised if scanner not in json.dumps(a)})
    line(f"alerts about anyone but the scanner: {', '.join(others) or 'none'}", not others)


def probes_of(path):
    """(time, host, port) of each probe, from lines like `1700000000.123456 IP 10.0.0.1.4000 > 10.0.0.2.502: Flags [S]…`."""
    pattern = re.compile(r"^(\d+\.\d+) IP \S+ > (\d+\.\d+\.\d+\.\d+)\.(\d+): Flags \[S\]", re.MULTILINE)
    return [(float(at), host, int(port)) for at, host, port in pattern.findall(read(path))]


def crossed_hosts(probes):
    """When a minute first held more distinct hosts than the rule leaves alone."""
    return crossed(((at, "", host) for at, host, _ in probes), HOSTS_SILENT_MAX)


def crossed_ports(probes):
    """When a minute first held more distinct ports of one host than the rule leaves alone."""
    return crossed(((at, host, port) for at, host, port in probes), PORTS_SILENT_MAX)


def crossed(events, silent_max):
    distinct = {}
    for at, key, value in events:
        seen = distinct.setdefault((key, at // WINDOW_SECS), set())
        seen.add(value)
        if len(seen) > silent_max:
            return at
    return None


def seconds(when):
    """Seconds since 1970 of an RFC 3339 time, or of nanoseconds."""
    if isinstance(when, int):
        return when / 1e9
    whole, fraction = re.fullmatch(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(\.\d+)?(?:Z|\+00:00)", when).groups()
    moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.timezone.utc)
    return moment.timestamp() + float(fraction or 0)


def records(path):
    """The rows of a JSON array, or of one object per line."""
    text = read(path).strip()
    if text.startswith("["):
        return json.loads(text)
    return [json.loads(row) for row in text.splitlines() if row]


def total(counts):
    return sum((counts or {}).values())


def number(path):
    return int(read(path) or 0)


def read(path):
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def title(text):
    print(f"\n\033[1m{text}\033[0m" if COLOURS else f"\n== {text}")


def line(text, holds):
    global failures
    failures += not holds
    mark = "ok " if holds else "NOT"
    if COLOURS:
        mark = f"\033[{32 if holds else 31}m{mark}\033[0m"
    print(f"{mark} {text}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
