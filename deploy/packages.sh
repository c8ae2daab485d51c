#!/usr/bin/env bash
# Installs the packages of deploy/packages.txt that this machine lacks.
#
# usage: packages.sh [-y] [-n] PURPOSE...     purposes: build lab check bench peers detection
#        -y  do not ask (CI=true means the same)
#        -n  only print what is missing
#
# Does nothing, and needs no privileges, when nothing is missing. Exit status: 0 everything is there,
# 1 something is missing and was not installed, 2 usage.
set -euo pipefail

list=$(dirname "$0")/packages.txt
ask=yes install=yes
[ "${CI:-}" = true ] && ask=no
while getopts yn flag; do
    case $flag in
        y) ask=no ;;
        n) install=no ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { echo "packages.sh: name a purpose: build, lab, check, bench, peers or detection" >&2; exit 2; }

command -v dpkg-query >/dev/null || {
    echo "packages.sh: this is not Debian or Ubuntu; install the equivalents of $list by hand" >&2
    exit 0
}

wanted=()
for purpose in "$@"; do
    mapfile -t -O "${#wanted[@]}" wanted < <(awk -v purpose="$purpose" '$1 == purpose { print $2 }' "$list")
done
[ ${#wanted[@]} -gt 0 ] || { echo "packages.sh: no package is listed for: $*" >&2; exit 2; }

missing=()
for package in "${wanted[@]}"; do
    # An installed package with another name that provides this one (pkgconf for pkg-config) has its status too.
    status=$(dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | head -n 1 || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "missing packages: ${missing[*]}"
[ "$install" = yes ] || exit 1

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "packages.sh: become root and run: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
if [ "$ask" = yes ]; then
    [ -t 0 ] || { echo "packages.sh: run this first: apt-get install ${missing[*]}" >&2; exit 1; }
    read -r -p "install them with apt-get now? [Y/n] " answer
    case $answer in
        '' | y | Y | yes) ;;
        *) echo "packages.sh: nothing installed" >&2; exit 1 ;;
    esac
fi

get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
# The lists of a fresh machine are empty or old: refresh them once when the first try fails.
"${get[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null || {
    "${get[@]}" update
    "${get[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
}
echo "installed: ${missing[*]}"
