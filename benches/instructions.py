#!/usr/bin/env python3
"""Instructions per packet (or record) of the bench stages, counted by callgrind.

usage: instructions.py BENCH_BINARY [STAGE...]

Runs each stage under callgrind once with one round and once with two; the difference is one round, without its preparation.
Repeatable to about 1e-5, whatever else the machine does.
"""
import re
import subprocess
import sys
import tempfile

WRAPPED = ["decode_" + name for name in
           "vlan mpls pppoe gretap erspan2 erspan3 vxlan geneve ipip hsr prp goose".split()]
PACKETS = {"table_scan": 500_000, "wire_encode": 16 * 4096, "wire_decode": 16 * 4096} | dict.fromkeys(WRAPPED, 1 << 17)
STAGES = ["decode", *WRAPPED, "table_10k", "table_1m", "table_scan", "line_10k", "line_1m", "line_dedup", "wire_encode",
          "wire_decode"]


def instructions(binary, stage, rounds):
    with tempfile.NamedTemporaryFile() as out:
        run = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out.name}", binary, "--count", stage, str(rounds)],
            capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode or not found:
        sys.exit(f"instructions.py: {stage}: {run.stderr.strip()}")
    return int(found.group(1))


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    binary, stages = sys.argv[1], sys.argv[2:] or STAGES
    for stage in stages:
        per_round = instructions(binary, stage, 2) - instructions(binary, stage, 1)
        print(f"{stage:<14} {per_round / PACKETS.get(stage, 1 << 20):8.1f} instructions", flush=True)


if __name__ == "__main__":
    main()
