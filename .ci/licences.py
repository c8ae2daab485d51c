#!/usr/bin/env python3
"""Checks that everything linked into Spanwatch may be shipped under Apache-2.0 OR MIT.

usage: licences.py [--all] [BINARY...]

Reads `cargo metadata` for the Linux targets and fails when a crate has no licence or offers no acceptable choice.
BINARY: also checks that it needs no shared library beyond those below.  --all: prints one line per crate.
Exit status: 0 all acceptable, 1 something is not, 2 usage.
"""

import collections
import json
import re
import subprocess
import sys

# Permissive licences whose only wish is to be named.
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "ISC", "MIT", "MIT-0", "Unicode-3.0", "Unlicense", "Zlib", "bzip2-1.0.6",
    # Copyleft per file: changed files of that crate must stay open; ours, and the binary, are not touched by it.
    "MPL-2.0",
}  # fmt: skip

# Shared libraries of the system that our binaries may need. libelf is LGPL-3.0-or-later (or GPL-2.0-or-later): linked
# dynamically, from the system's own package. libz is Zlib, libpcap BSD-3-Clause; the rest is glibc and GCC's runtime.
ALLOWED_LIBRARIES = {
    "libelf.so", "libz.so", "libpcap.so", "libc.so", "libm.so", "libgcc_s.so", "libpthread.so", "libdl.so", "librt.so",
    "ld-linux-x86-64.so", "ld-linux-aarch64.so",
}  # fmt: skip

TARGETS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"]


def main():
    arguments = sys.argv[1:]
    show_all = "--all" in arguments
    binaries = [a for a in arguments if not a.startswith("-")]
    if any(a.startswith("-") and a != "--all" for a in arguments):
        print(__doc__, file=sys.stderr)
        return 2

    crates = linked_crates()
    refused = [c for c in crates if not acceptable(c["license"])]
    if show_all:
        for crate in crates:
            print(f"{crate['name']:32} {crate['version']:14} {crate['license'] or 'none'}")
    counts = collections.Counter(normal(c["license"]) for c in crates)
    for expression, count in counts.most_common():
        print(f"{count:5}  {expression}")
    print(f"{len(crates):5}  crates")
    for crate in refused:
        licence = crate["license"] or "no licence in its Cargo.toml"
        print(f"licences: {crate['name']} {crate['version']} is not acceptable: {licence}", file=sys.stderr)

    foreign = [(b, library) for b in binaries for library in needed_libraries(b) if not known_library(library)]
    for binary, library in foreign:
        print(f"licences: {binary} needs {library}, which is not on the list of system libraries", file=sys.stderr)
    if refused or foreign:
        print("licences: choose another crate, or add the licence to .ci/licences.py with the reason", file=sys.stderr)
        return 1
    print("licences: all acceptable")
    return 0


def linked_crates():
    """The crates of the resolved graph on our targets, development dependencies included, each once, by name."""
    crates = {}
    for target in TARGETS:
        metadata = json.loads(
            subprocess.run(
                ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target],
                check=True, stdout=subprocess.PIPE,
            ).stdout
        )  # fmt: skip
        resolved = {node["id"] for node in metadata["resolve"]["nodes"]}
        crates |= {package["id"]: package for package in metadata["packages"] if package["id"] in resolved}
    return sorted(crates.values(), key=lambda c: (c["name"], c["version"]))


def needed_libraries(binary):
    """The NEEDED entries of an ELF file."""
    text = subprocess.run(["readelf", "-d", binary], check=True, stdout=subprocess.PIPE, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*?)\]", text)


def known_library(name):
    return re.sub(r"\.so.*", ".so", name) in ALLOWED_LIBRARIES


def normal(expression):
    """One spelling for `MIT/Apache-2.0` and `Apache-2.0 OR MIT`; other expressions as they are."""
    if not expression:
        return "none"
    words = [w.strip() for w in expression.replace("/", " OR ").split(" OR ")]
    return expression if "(" in expression or " AND " in expression else " OR ".join(sorted(words))


def acceptable(expression):
    """Whether an SPDX expression (also in the old form `MIT/Apache-2.0`) can be met with ALLOWED licences alone."""
    if not expression:
        return False
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def either():
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = both() or value
        return value

    def both():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one():
        if not tokens:
            return False
        name = tokens.pop(0)
        if name == "(":
            value = either()
            return bool(tokens) and tokens.pop(0) == ")" and value
        if tokens[:1] == ["WITH"]:
            name += " WITH " + tokens[1] if len(tokens) > 1 else ""
            del tokens[:2]
        return name in ALLOWED

    return either() and not tokens


if __name__ == "__main__":
    sys.exit(main())
