#!/usr/bin/env python3
"""Instructions per packet (or record) of the bench stages, counted by callgrind.

usage: instructions.py BINARY [STAGE...]     prints them
       instructions.py --check BINARY        compares every stage with instructions.toml
       instructions.py --update BINARY       writes instructions.toml anew

BINARY is the program `stages`. Each stage runs at a 64th of its size, and only what is below its function `counted_round` is counted:
neither the preparation nor the first round. The same program gives the same number to the last instruction, whatever else the
machine does. Exit status: 0 counted (or nothing differs), 1 a figure differs, 2 usage, 3 counting failed.
"""
import concurrent.futures
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

FIGURES = pathlib.Path(__file__).with_name("instructions.toml")
# A compiler's moods stay below this; what is worth a line in a review does not.
TOLERANCE = 0.02
HEAD = """\
# Instructions per packet (wire_*: per record) of every stage, as `benches/instructions.py` counts them. `make test` fails when one differs
# by more than 2 %, to either side. Written by `make bench-update`; commit it with the change that moved a figure, and say why there.
# They depend on the compiler and a little on the C library (its memcpy); valgrind's processor stands for everybody's own.
"""


class Failed(Exception):
    """Something could not be counted; the sentence says why."""


def main():
    arguments = sys.argv[1:]
    mode = arguments.pop(0) if arguments and arguments[0].startswith("-") else None
    if not arguments or mode not in (None, "--check", "--update") or (mode and len(arguments) > 1):
        print(__doc__, file=sys.stderr)
        return 2
    binary, stages = arguments[0], arguments[1:]
    try:
        counted = count_all(binary, stages or run([binary, "--list"])[0].split(), tell=mode != "--check")
        if mode == "--update":
            FIGURES.write_text(HEAD + f'made_with = "{made_with()}"\n\n[instructions]\n'
                               + "".join(f"{stage} = {figure:.1f}\n" for stage, figure in counted.items()))
        return check(counted) if mode == "--check" else 0
    except Failed as failed:
        print(f"instructions.py: {failed}", file=sys.stderr)
        return 3


def count_all(binary, stages, tell):
    """Figures by stage, in the order of `stages`; a stage for each processor at a time."""
    counted = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for stage, figure in zip(stages, pool.map(lambda stage: count(binary, stage), stages)):
            counted[stage] = figure
            if tell:
                print(f"{stage:<14} {figure:8.1f} instructions", flush=True)
    return counted


def count(binary, stage):
    with tempfile.NamedTemporaryFile() as out:
        said, told = run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out.name}", "--toggle-collect=*counted_round*",
                          binary, "--count", stage])
    handled = re.match(r"(\d+) (packet|record)s$", said)
    found = re.search(r"Collected : (\d+)", told)
    if not handled or not found or found.group(1) == "0":
        raise Failed(f"{stage}: {said} {told}".strip())
    return int(found.group(1)) / int(handled.group(1))


def check(counted):
    if not FIGURES.exists():
        raise Failed(f"{FIGURES.name} is missing; write it with: make bench-update")
    text = FIGURES.read_text()
    committed = {stage: float(figure) for stage, figure in re.findall(r"^(\w+) = ([\d.]+)$", text, re.MULTILINE)}
    complaints = [f"{stage}: has no bench any more" for stage in committed if stage not in counted]
    for stage, figure in counted.items():
        if stage not in committed:
            complaints.append(f"{stage}: {figure:.1f}, and no figure was committed")
            continue
        change = figure / committed[stage] - 1
        if abs(change) > TOLERANCE:
            complaints.append(f"{stage}: {figure:.1f} instead of {committed[stage]:.1f} instructions, {change:+.1%}")
    if not complaints:
        print(f"{len(counted)} stages within {TOLERANCE:.0%} of {FIGURES.name}")
        return 0
    print("\n".join(complaints))
    before = re.search(r'made_with = "(.*)"', text)
    if before and before.group(1) != made_with():
        print(f"the committed figures were made with {before.group(1)}; here is {made_with()}")
    print("If that is as it should be, write the figures anew and commit them: make bench-update")
    return 1


def made_with():
    """What the figures depend on beside the code."""
    rustc = " ".join(run([os.environ.get("RUSTC", "rustc"), "--version"])[0].split()[:2])
    return f"{rustc}, {' '.join(platform.libc_ver())}, {run(['valgrind', '--version'])[0].strip()}, {platform.machine()}"


def run(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failed(f"{command[0]}: {error}") from error
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout, done.stderr


if __name__ == "__main__":
    sys.exit(main())
