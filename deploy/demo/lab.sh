# shellcheck shell=bash disable=SC2154,SC2034 # the caller sets lab, and uses the addresses
# A switch with a mirror port, made of network namespaces. Sourced by demo.sh.
#
#   host A   10.77.0.1 .. 10   e0 --- pA \
#   host B   10.77.0.21 .. 30  e0 --- pB  [ bridge br0 ]  m0 --- mon0  sensor   u0 ------- c0  collector
#   scanner  10.77.0.66        e0 --- pS /                no address         10.78.0.2   10.78.0.1
#
# The mirror copies what ENTERS the bridge on each of its three ports, so that every frame is seen exactly once; copying
# both directions of several ports would show a frame that crosses two of them twice.
#
# Everything is born inside namespaces of this run and dies with them: nothing else on the machine is touched.
# Callers set `lab` (a name that is unique on the machine) and call lab_check, lab_build, mirror_on, mirror_off, lab_remove.

host_a=10.77.0.1 host_b=10.77.0.21 scanner=10.77.0.66 collector_address=10.78.0.1
lab_ports=(pA pB pS)
lab_spaces=(a b scanner bridge sensor collector)

# Runs a command in one of the lab's namespaces: `in_ns sensor ip link`.
in_ns() {
    local space=$1
    shift
    ip netns exec "$lab-$space" "$@"
}

# Says what this machine lacks, and fails.
lab_check() {
    [ "$(id -u)" = 0 ] || { echo "the lab needs root, for network namespaces" >&2; return 1; }
    local tool
    for tool in ip tc ethtool; do
        command -v "$tool" >/dev/null || { echo "the lab needs the command $tool; see deploy/packages.txt" >&2; return 1; }
    done
}

# Builds everything but the mirror. On failure says what was missing; the caller removes what was made.
lab_build() {
    local space port
    for space in "${lab_spaces[@]}"; do
        ip netns add "$lab-$space" || { echo "this machine does not allow network namespaces" >&2; return 1; }
        # Before any interface exists, so that no router solicitation or duplicate-address probe is ever sent.
        # shellcheck disable=SC2016 # $file belongs to the inner shell
        in_ns "$space" sh -c 'for file in all default; do
            file=/proc/sys/net/ipv6/conf/$file/disable_ipv6
            [ ! -e "$file" ] || echo 1 >"$file"
        done'
        ip -n "$lab-$space" link set lo up
    done

    ip -n "$lab-bridge" link add br0 type bridge stp_state 0 || { echo "this kernel has no bridge" >&2; return 1; }
    # The bridge asks for multicast groups now and then; a frame of its own would not be ordinary traffic.
    ip -n "$lab-bridge" link set br0 type bridge mcast_snooping 0 2>/dev/null || true
    cable a e0 bridge pA && cable b e0 bridge pB && cable scanner e0 bridge pS || return 1
    cable sensor mon0 bridge m0 && cable sensor u0 collector c0 || return 1
    for port in "${lab_ports[@]}"; do
        ip -n "$lab-bridge" link set "$port" master br0 || return 1
    done

    addresses a e0 "$host_a" 10
    addresses b e0 "$host_b" 10
    addresses scanner e0 "$scanner" 1
    addresses collector c0 "$collector_address" 1
    addresses sensor u0 10.78.0.2 1

    # Up last, and the mirror's far end first, so that no frame is lost to a port that is still down.
    ip -n "$lab-sensor" link set mon0 up promisc on
    for port in m0 "${lab_ports[@]}" br0; do ip -n "$lab-bridge" link set "$port" up; done
    for space in a b scanner; do ip -n "$lab-$space" link set e0 up; done
    ip -n "$lab-sensor" link set u0 up
    ip -n "$lab-collector" link set c0 up
}

# Starts mirroring. `u32 match u32 0 0` matches every frame; matchall is not in every kernel.
mirror_on() {
    local port
    for port in "${lab_ports[@]}"; do
        tc -n "$lab-bridge" qdisc add dev "$port" clsact || { echo "this kernel has no clsact" >&2; return 1; }
        tc -n "$lab-bridge" filter add dev "$port" ingress protocol all prio 1 \
            u32 match u32 0 0 action mirred egress mirror dev m0 ||
            { echo "this kernel has no cls_u32 or no act_mirred" >&2; return 1; }
    done
}

mirror_off() {
    local port
    for port in "${lab_ports[@]}"; do tc -n "$lab-bridge" qdisc del dev "$port" clsact 2>/dev/null || true; done
}

# A counter of the mirror port as the kernel keeps it: `mirror_count rx_packets`. Not rx_dropped: on veth it also holds
# packets that were received, counted, and then found no room in a socket's ring.
mirror_count() {
    in_ns sensor cat "/sys/class/net/mon0/statistics/$1"
}

# Packets that never arrived at the mirror port, because the 256 places of the veth's own ring were taken.
cable_lost() {
    in_ns bridge cat /sys/class/net/m0/statistics/tx_dropped
}

# Removes the namespaces and with them every interface.
lab_remove() {
    local space
    for space in "${lab_spaces[@]}"; do ip netns del "$lab-$space" 2>/dev/null || true; done
}

# cable SPACE INTERFACE SPACE INTERFACE: a veth pair that carries what a wire would. No 64 KB segments, no unfinished
# checksums, no tags taken off: a mirror would pass them on as frames that never were on a wire.
cable() {
    local feature
    ip -n "$lab-$1" link add "$2" type veth peer name "$4" netns "$lab-$3" || { echo "this kernel has no veth" >&2; return 1; }
    for feature in tso gso gro lro tx rx rxvlan txvlan; do
        in_ns "$1" ethtool -K "$2" "$feature" off >/dev/null 2>&1 || true
        in_ns "$3" ethtool -K "$4" "$feature" off >/dev/null 2>&1 || true
    done
}

# addresses SPACE INTERFACE FIRST COUNT: COUNT consecutive addresses of a /24.
addresses() {
    local i
    for ((i = 0; i < $4; i++)); do
        ip -n "$lab-$1" addr add "${3%.*}.$((${3##*.} + i))/24" dev "$2"
    done
}
