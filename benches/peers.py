#!/usr/bin/env python3
"""The sensor against softflowd and nfpcapd, as Debian ships them, on the same captures and the same core.

usage: peers.py [--rounds N] [--core N] [--scratch DIRECTORY] SENSOR [CAPTURE.pcap...]

SENSOR is the built spanwatch-sensor. Without captures, those of captures.py are made in the scratch directory (kept for the next time). The
programs take turns; every one reads a capture that the page cache holds, and writes its records to where it usually does: softflowd to
a UDP socket on loopback, nfpcapd to files, the sensor to a file of wire batches. Figures are medians; a program's rate is packets of the
capture through seconds of processor time (user and system). What each counted is held against what is in the capture.

Takes root: everything runs in a network namespace of its own, whose only interface is loopback.
"""
import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import captures

OUTSIDE = "SPANWATCH_PEERS_OUTSIDE"
PORT = 29_995
TIMEOUT_SECS = 300


def enter_namespace():
    """Starts this program again in a network namespace that goes away with it."""
    here = os.readlink("/proc/self/ns/net")
    if OUTSIDE not in os.environ:
        os.execvpe("unshare", ["unshare", "--net", "--", sys.executable, *sys.argv], os.environ | {OUTSIDE: here})
    if os.environ[OUTSIDE] == here:
        sys.exit(f"peers.py: still in the network namespace of the machine; {OUTSIDE} is not to be set by hand")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Peer:
    """A program: how it is started on a capture, and how many packets it says it counted."""

    def __init__(self, name, command, counted):
        self.name, self.command, self.counted = name, command, counted
        self.wall, self.processor, self.memory, self.said = [], [], [], "nothing"

    def run(self, capture, core, scratch):
        shutil.rmtree(scratch, ignore_errors=True)
        os.makedirs(scratch)
        with open(os.path.join(scratch, "said"), "w+b") as said:
            begun = time.monotonic()
            command = ["taskset", "--cpu-list", str(core), *self.command(capture, scratch)]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            signal.signal(signal.SIGALRM, lambda *_: child.kill())
            signal.alarm(TIMEOUT_SECS)
            _, status, usage = os.wait4(child.pid, 0)
            signal.alarm(0)
            wall = time.monotonic() - begun
            said.seek(0)
            text = said.read().decode(errors="replace")
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            self.said = f"ended with {child.returncode}: {text.strip()[-200:]}"
            return
        self.wall.append(wall)
        self.processor.append(usage.ru_utime + usage.ru_stime)
        self.memory.append(usage.ru_maxrss / 1024)
        self.said = self.counted(text, scratch)


def softflowd(capture, scratch):
    # A table for every flow: with the default of 8192 it crashes on some captures and splits scans (measured).
    return ["softflowd", "-r", capture, "-v", "10", "-b", "-6", "-m", "1048576", "-n", f"127.0.0.1:{PORT}", "-d",
            "-p", f"{scratch}/pid", "-c", "none"]


def softflowd_counted(text, _):
    processed, ignored = (re.search(rf"{what}: (\d+)", text) for what in ("Packets processed", "Ignored packets"))
    return f"{processed[1] if processed else '?'} processed, {ignored[1].split()[0] if ignored else '?'} ignored"


def nfpcapd(capture, scratch):
    return ["nfpcapd", "-r", capture, "-w", scratch, "-e", "300,60", "-S", "0"]


def nfpcapd_counted(_, scratch):
    os.remove(os.path.join(scratch, "said"))
    text = subprocess.run(["nfdump", "-R", scratch, "-I"], capture_output=True, text=True).stdout
    packets = re.search(r"^Packets: (\d+)", text, re.MULTILINE)
    return f"{packets[1] if packets else '?'} in records"


def sensor(program):
    said = subprocess.run([program, "replay", "--help"], capture_output=True, text=True).stdout
    how = ["--format", "batch", "--output"] if "batch" in said else ["--format", "jsonl", "--output"]

    def command(capture, scratch):
        return [program, "replay", capture, *how, f"{scratch}/records", "--stats", f"{scratch}/stats"]

    def counted(_, scratch):
        with open(f"{scratch}/stats") as text:
            ledger = json.load(text)
        ignored = sum(ledger["ignored"].values())
        return f"{ledger['metered']} metered, {ignored} ignored, {ledger['flows']['observed']} flows"

    return Peer("spanwatch", command, counted)


def compare(capture, truth, peers, rounds, core, scratch):
    with open(capture, "rb") as file:
        while file.read(1 << 24):
            pass  # into the page cache
    for _ in range(rounds):
        for peer in peers:
            peer.run(capture, core, scratch)
    packets = truth["packets"]
    print(f"\n{os.path.basename(capture)}: {packets} packets ({truth['ip_packets']} of IP), {truth['octets']} octets; {rounds} rounds\n")
    print("| program | processor s | wall s | million packets/s (processor) | spanwatch is faster by | MiB | counted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    ours = statistics.median(peers[0].processor) if peers[0].processor else float("nan")
    for peer in peers:
        if not peer.processor:
            print(f"| {peer.name} | | | | | | {peer.said} |")
            continue
        processor, wall, memory = (statistics.median(values) for values in (peer.processor, peer.wall, peer.memory))
        print(f"| {peer.name} | {processor:.2f} ({min(peer.processor):.2f} to {max(peer.processor):.2f}) | {wall:.2f} "
              f"| {packets / processor / 1e6:.2f} | {processor / ours:.2f} | {memory:.0f} | {peer.said} |")


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=1)
    parser.add_argument("--scratch", default=os.path.join(tempfile.gettempdir(), "spanwatch-peers"))
    parser.add_argument("sensor")
    parser.add_argument("captures", nargs="*")
    arguments = parser.parse_args()
    enter_namespace()
    for program in ("softflowd", "nfpcapd", "nfdump", "taskset"):
        if not shutil.which(program):
            sys.exit(f"peers.py: {program} is not installed; deploy/packages.sh peers installs it")
    # softflowd's records go to a socket that nobody reads: what does not fit into its buffer the kernel drops.
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", PORT))
    made = [captures.make(arguments.scratch, name) for name in ("mix", "scan64")] if not arguments.captures else []
    for path in arguments.captures:
        with open(os.path.splitext(path)[0] + ".json") as text:
            made.append((path, json.load(text)))
    print(f"load average at the start: {open('/proc/loadavg').read().strip()}")
    for capture, truth in made:
        peers = [sensor(arguments.sensor), Peer("softflowd", softflowd, softflowd_counted), Peer("nfpcapd", nfpcapd, nfpcapd_counted)]
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            compare(capture, truth, peers, arguments.rounds, arguments.core, os.path.join(scratch, "records"))
    print(f"\nload average at the end: {open('/proc/loadavg').read().strip()}")


if __name__ == "__main__":
    main()
