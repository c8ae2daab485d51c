#!/usr/bin/env bash
# From a mirror port to an alert, on this machine: builds the lab of lab.sh, runs a collector and a sensor in it as two
# processes with their normal configuration files, makes ordinary traffic, scans with nmap, and adds everything up.
#
# usage: demo.sh [--bin DIRECTORY] run           everything, then takes it down         (make demo)
#        demo.sh [--bin DIRECTORY] soak MINUTES  the same, after that much more traffic (make soak)
#        demo.sh [--bin DIRECTORY] keep          everything, and leaves it running      (make demo-keep)
#        demo.sh stop                            ends what `keep` left, and adds it up  (make demo-stop)
#
# DIRECTORY holds spanwatch-sensor and spanwatch-collector; default: target/release of this checkout.
# Exit status: 0 the ledger balances and both scans were found; 1 something of this is not so; 2 usage;
# 77 this machine lacks something the lab needs. Touches no interface, file or process that it did not make.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
deploy=$(dirname "$here")
PATH=$PATH:/usr/sbin:/sbin
# shellcheck source=deploy/demo/lab.sh
. "$here/lab.sh"

bin=$(dirname "$deploy")/target/release
kept=/run/spanwatch-demo    # where `keep` leaves word for `stop`: a directory only root can write to
sensor_health=127.0.0.1:9477
collector_health=127.0.0.1:9478

main() {
    if [ "${1:-}" = --bin ]; then
        bin=$(cd "${2:?--bin needs a directory}" && pwd)
        shift 2
    fi
    case $* in
        run)
            run_all 0
            finish
            ;;
        'soak '[1-9]*)
            run_all "$2"
            finish
            ;;
        keep) keep ;;
        stop) stop_kept ;;
        *) usage ;;
    esac
}

usage() {
    sed -n '5,8s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

# ---- the acts -------------------------------------------------------------------------------------------------------

# run_all MINUTES: everything up to the scans, which come after so many minutes of further traffic.
run_all() {
    lab_check || exit 77
    local minutes=$1 program
    for program in spanwatch-sensor spanwatch-collector; do
        [ -x "$bin/$program" ] || fail "$bin/$program is not there; build it with: make build"
    done
    lab=sw-demo-$$-$(od -An -N3 -tx1 /dev/urandom | tr -d ' \n')
    work=$(mktemp -d "${TMPDIR:-/tmp}/spanwatch-demo.XXXXXX")
    trap take_down EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP

    title "Lab: two hosts and a scanner on a switch, one mirror port"
    lab_build || exit 77
    echo "hosts $host_a and $host_b with ten addresses each, scanner $scanner, mirror port mon0 without an address"

    title "Certificates, collector and sensor"
    start_programs
    start_follower

    title "Ordinary traffic: Modbus polls, names, a download, pings"
    mirror_count rx_packets >"$work/rx_packets.before"
    mirror_on || exit 77
    ordinary_traffic "$minutes"

    title "Scans: nmap sweeps port 502, then scans 1000 ports of one host"
    scan
}

start_programs() {
    "$bin/spanwatch-collector" pki init --dir "$work/pki" --name "$collector_address" >"$work/pki.log" 2>&1 ||
        fail "spanwatch-collector pki init failed" pki
    "$bin/spanwatch-collector" pki issue plant1 --dir "$work/pki" >>"$work/pki.log" 2>&1 ||
        fail "spanwatch-collector pki issue failed" pki

    # The shipped files with only the places changed.
    configure collector \
        ingest.listen "0.0.0.0:4740" store.directory "$work/store" pki.directory "$work/pki" \
        alerts.file "$work/alerts.ndjson" metrics.listen "$collector_health"
    configure sensor \
        capture.interface mon0 uplink.collector "$collector_address:4740" uplink.identity "$work/pki/plant1.pem" \
        metrics.listen "$sensor_health"

    start collector collector "$bin/spanwatch-collector" run --config "$work/collector.toml"
    await_health collector "$collector_health"
    echo "collector: ready on $collector_address:4740, records in $work/store"
    start sensor sensor "$bin/spanwatch-sensor" run --config "$work/sensor.toml" --stats "$work/ledger.json"
    await_health sensor "$sensor_health"
    echo "sensor: ready; $(strip_colours <"$work/sensor.log" | sed -n 's/.*\(capturing on .*\)/\1/p')"
}

ordinary_traffic() {
    local end
    mkdir "$work/www"
    head -c 2000000 /dev/urandom >"$work/www/firmware.img"
    start modbus b python3 "$here/traffic.py" serve "$host_b"
    start http b python3 -m http.server --bind "$host_b" --directory "$work/www" 8080
    sleep 0.5
    start poller a python3 "$here/traffic.py" poll "$host_b" 0
    resident "at the start"
    end=$((SECONDS + $1 * 60))
    while
        in_ns a curl -fsS --max-time 20 --retry 5 --retry-connrefused --output /dev/null "http://$host_b:8080/firmware.img" ||
            fail "the download from host B failed" http
        in_ns a ping -q -c 5 -i 0.2 -W 2 "$host_b" >/dev/null || fail "host B does not answer host A"
        [ "$SECONDS" -lt "$end" ]
    do sleep 5; done
    resident "now"
    sleep 2
    # An alert about hosts that only talk to each other would be a false one.
    if [ -s "$work/alerts.ndjson" ]; then
        echo "an alert was raised by ordinary traffic:"
        cat "$work/alerts.ndjson"
        fail "ordinary traffic must stay silent"
    fi
    echo "no alert, as it should be"
}

# What both programs occupy: a soak should end with little more than it began.
resident() {
    local name
    for name in sensor collector; do
        awk -v name="$name" -v when="$1" '/^VmRSS/ { printf "%s: %d MiB resident %s\n", name, $2 / 1024, when }' \
            "/proc/$(<"$work/$name.pid")/status" || fail "the $name has gone" "$name"
    done
}

scan() {
    # When each probe left: SYN without ACK, in the scanner's own namespace.
    start probes scanner tcpdump -l -n -tt -i e0 "src host $scanner and tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"
    await "tcpdump to listen" 10 grep -q 'listening on' "$work/probes.log"

    date +%s.%N >"$work/sweep.start"
    in_ns scanner timeout --foreground 60 nmap -n -Pn -sS -p 502 10.77.0.1-30 >"$work/nmap.log" 2>&1 || fail "nmap failed" nmap
    await_alert AZ-01 || echo "no horizontal scan was found"
    date +%s.%N >"$work/ports.start"
    in_ns scanner timeout --foreground 60 nmap -n -Pn -sS -p 1-1000 "$host_b" >>"$work/nmap.log" 2>&1 || fail "nmap failed" nmap
    await_alert AZ-02 || echo "no vertical scan was found"
    sleep 1
    stop_follower
}

# Stops the traffic, then the sensor, then the collector, and adds up what each of them counted.
finish() {
    title "Stopping: the sensor sends what it holds"
    local name
    for name in poller modbus http probes; do stop "$name" TERM 5; done
    mirror_off
    sleep 0.5
    mirror_count rx_packets >"$work/rx_packets"
    mirror_count tx_packets >"$work/tx_packets"
    cable_lost >"$work/cable_lost"
    stop sensor TERM 30
    collector_says query --format json "SELECT count(*) AS records, sum(packetDeltaCount + reversePacketDeltaCount) AS packets
        FROM flows" >"$work/stored.json" || complain "the query failed" stderr
    collector_says alerts --format json >"$work/alerts.json" || complain "listing the alerts failed" stderr
    stop collector TERM 30

    python3 "$here/summary.py" "$work" "$scanner"
}

keep() {
    lab_check || exit 77
    [ ! -e "$kept" ] || fail "a demo is already running; see it with: cat $kept/how, end it with: make demo-stop"
    run_all 0
    mkdir -m 700 "$kept"
    printf 'lab=%q\nwork=%q\nbin=%q\n' "$lab" "$work" "$bin" >"$kept/state"
    local columns="SELECT time, flowState, sourceIPv6Address, destinationIPv6Address, destinationTransportPort, packetDeltaCount"
    cat >"$kept/how" <<HOW
The lab runs, with ordinary traffic. To look at it, as root:

  records    $bin/spanwatch-collector query "$columns FROM flows ORDER BY time DESC LIMIT 20" --config $work/collector.toml
  alerts     $bin/spanwatch-collector alerts --follow --config $work/collector.toml
  a scan     ip netns exec $lab-scanner nmap -n -Pn -sS -p 1-200 $host_a
  mirror     ip netns exec $lab-sensor tcpdump -n -i mon0
  sensor     ip netns exec $lab-sensor curl -s http://$sensor_health/metrics
  collector  ip netns exec $lab-collector curl -s http://$collector_health/metrics
  logs       $work/sensor.log and $work/collector.log

To end it and add it up: make demo-stop
HOW
    trap - EXIT INT TERM HUP
    title "Left running"
    cat "$kept/how"
}

stop_kept() {
    lab_check || exit 77
    [ -e "$kept/state" ] || fail "no demo is running"
    # shellcheck disable=SC1091 # written by keep
    . "$kept/state"
    trap take_down EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    rm -r "$kept"
    finish
}

# ---- processes ------------------------------------------------------------------------------------------------------

# start NAME SPACE COMMAND...: runs a command in a namespace, apart from the terminal's Ctrl-C, its output in NAME.log.
# NAME.pid appears with it and NAME.exit (its exit status) when it has ended: while there is no NAME.exit, the number in
# NAME.pid is ours.
start() {
    local name=$1 space=$2
    shift 2
    rm -f "$work/$name".{pid,exit,log}
    # shellcheck disable=SC2016 # the inner shell expands
    setsid bash -c 'file=$1; shift
        "$@" </dev/null >"$file.log" 2>&1 &
        echo $! >"$file.pid"
        wait $!
        echo $? >"$file.exit"' start "$work/$name" ip netns exec "$lab-$space" "$@" </dev/null >/dev/null 2>&1 &
    await "$name to start" 5 test -s "$work/$name.pid"
}

# stop NAME SIGNAL SECONDS: ends it if it runs, and with KILL if it has not ended by then.
stop() {
    local pid
    [ -s "$work/$1.pid" ] || return 0
    pid=$(<"$work/$1.pid")
    [ -e "$work/$1.exit" ] || kill -s "$2" "$pid" 2>/dev/null || true
    await_quietly "$3" test -s "$work/$1.exit" || kill -s KILL "$pid" 2>/dev/null || true
    await_quietly 2 test -s "$work/$1.exit" || true
}

# The alerts, printed as they come.
start_follower() {
    "$bin/spanwatch-collector" alerts --follow --config "$work/collector.toml" </dev/null 2>/dev/null &
    follower=$!
}

stop_follower() {
    [ -n "${follower:-}" ] || return 0
    kill "$follower" 2>/dev/null || true
    wait "$follower" 2>/dev/null || true
    follower=
}

# A command of the collector beside the running collector.
collector_says() {
    timeout --foreground 60 "$bin/spanwatch-collector" "$@" --config "$work/collector.toml" 2>"$work/stderr.log"
}

# Whatever happened: nothing of ours stays.
take_down() {
    local status=$? name
    trap '' INT TERM HUP
    stop_follower
    for name in probes poller modbus http sensor collector; do stop "$name" TERM 3; done
    lab_remove
    rm -rf "$work"
    return "$status"
}

# ---- waiting --------------------------------------------------------------------------------------------------------

# await_quietly SECONDS COMMAND...: until the command succeeds, or fails after SECONDS.
await_quietly() {
    local deadline=$((SECONDS + $1 + 1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

await() {
    local what=$1
    shift
    await_quietly "$@" || fail "waited $1 seconds in vain for $what"
}

await_health() {
    healthy_or_gone() {
        [ -e "$work/$1.exit" ] || in_ns "$1" curl -fsS --max-time 2 --output /dev/null "http://$2/healthz" 2>/dev/null
    }
    await_quietly 30 healthy_or_gone "$1" "$2" || fail "the $1 was not ready within 30 seconds" "$1"
    [ ! -e "$work/$1.exit" ] || fail "the $1 ended with exit status $(<"$work/$1.exit")" "$1"
}

await_alert() {
    raised() { grep -F "\"$1" "$work/alerts.ndjson" 2>/dev/null | grep -qF "$scanner"; }
    await_quietly 15 raised "$1"
}

# ---- the configuration files -----------------------------------------------------------------------------------------

# configure PROGRAM SECTION.KEY VALUE...: the shipped PROGRAM.toml with these strings in place of its own.
configure() {
    local program=$1 file=$work/$1.toml
    shift
    cp "$deploy/$program.toml" "$file"
    while [ $# -gt 0 ]; do
        awk -v section="${1%.*}" -v key="${1##*.}" -v value="$2" '
            /^\[/ { here = ($0 == "[" section "]") }
            here && !done && $0 ~ "^(# ?)?" key " *=" { print key " = \"" value "\""; done = 1; next }
            { print }
            END { exit !done }' "$file" >"$file.new" || fail "deploy/$program.toml has no key $1"
        mv "$file.new" "$file"
        shift 2
    done
}

# ---- words ----------------------------------------------------------------------------------------------------------

title() {
    if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
        printf '\n\033[1m%s\033[0m\n' "$1"
    else
        printf '\n== %s\n' "$1"
    fi
}

strip_colours() { sed 's/\x1b\[[0-9;]*m//g'; }

# complain SENTENCE [NAME]: says why, and shows the end of NAME.log.
complain() {
    echo "demo: $1" >&2
    if [ -n "${2:-}" ] && [ -s "$work/$2.log" ]; then
        echo "the last lines of $2.log:" >&2
        tail -n 10 "$work/$2.log" | strip_colours >&2
    fi
}

fail() {
    complain "$@"
    exit 1
}

main "$@"
