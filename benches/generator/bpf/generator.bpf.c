/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Makes packets: the kernel runs `generate` over and over on copies of one template frame (BPF_PROG_TEST_RUN with
 * BPF_F_TEST_XDP_LIVE_FRAMES); the program makes each copy the next frame of the traffic that was asked for, and sends it to an interface.
 * A copy keeps what was written to it when it comes round again, so everything that differs between frames is written into each.
 *
 * Checksums: those of IPv4 headers are right; that of TCP stays zero, as where a host leaves it to its card; UDP's zero means none.
 */

/* The few kernel definitions that are needed. All of them are stable UAPI (linux/bpf.h). */
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed int __s32;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

enum { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };
enum { BPF_MAP_TYPE_PERCPU_ARRAY = 6 };

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "generator.h"

enum { ETHERNET = 14, IPV4 = 20, TCP = 20, UDP = 8 };
enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

struct ipv4 {
	__u8 version_length, service;
	__be16 length, id, fragment;
	__u8 ttl, protocol;
	__u16 checksum;
	__be32 source, destination;
} __attribute__((packed));

/* TCP's header; its first four octets are UDP's, too, and UDP's length lies where `sequence` begins. */
struct tcp {
	__be16 source, destination;
	__be32 sequence, acknowledgement;
	__u8 offset, flags;
	__be16 window, checksum, urgent;
} __attribute__((packed));

struct segment {
	struct ipv4 ip;
	struct tcp tcp;
} __attribute__((packed));

const volatile struct generator_config config;
struct generator_state state;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct generator_seen);
} seen SEC(".maps");

/* One frame of a conversation: way 0 is the client's. */
struct turn {
	__u32 client, server;
	__u16 client_port, server_port;
	__u32 way, sequence, acknowledgement;
	__u8 protocol, flags;
	__u16 size;
};

/* Scatters the bits of a number (the finalizer of SplitMix64); a bijection. */
static __always_inline __u64 scattered(__u64 n)
{
	n = (n ^ n >> 30) * 0xbf58476d1ce4e5b9ULL;
	n = (n ^ n >> 27) * 0x94d049bb133111ebULL;
	return n ^ n >> 31;
}

static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Whether the next frame is to be sent now. Looks at the clock only when all that were due at the last look have been sent. */
static __always_inline int is_due(__u64 n)
{
	__u64 now;

	if (n >= config.count)
		return 0;
	if (n && (!config.packets_per_sec || n < state.due))
		return 1;
	now = bpf_ktime_get_ns();
	if (!n)
		state.began = now;
	if (config.packets_per_sec)
		state.due = (now - state.began) * config.packets_per_sec / 1000000000 + 1;
	return n < state.due || !config.packets_per_sec;
}

/* The marked conversation: a handshake, then segments without data from either end in turn. */
static __always_inline struct turn marked(__u64 k)
{
	struct turn turn = {
		.client = 0xcb007107, .server = 0xc6336407, .client_port = 50000, .server_port = 502, /* 203.0.113.7, 198.51.100.7 */
		.way = k & 1, .protocol = 6, .flags = ACK, .sequence = 1, .acknowledgement = 1, .size = 60,
	};

	if (k == 0) {
		turn.flags = SYN;
		turn.sequence = turn.acknowledgement = 0;
	} else if (k == 1) {
		turn.flags = SYN | ACK;
		turn.sequence = 0;
	}
	return turn;
}

static __always_inline struct turn ordinary(__u64 n)
{
	struct turn turn = { .server = 0xc6336401, .protocol = 6, .flags = ACK }; /* 198.51.100.1 */
	__u64 hash, pass = 0;
	__u32 flow, slot, payload;

	if (config.is_random) {
		hash = scattered(n);
		flow = (hash >> 32) * config.flows >> 32;
		turn.way = hash & 1;
	} else {
		pass = n / config.flows;
		flow = n - pass * config.flows;
		turn.way = pass & 1;
	}
	slot = flow % SIZES;
	asm volatile("" : "+r"(slot)); /* the compiler knows that it is in range; the kernel's verifier wants to see it */
	turn.size = config.sizes[slot < SIZES ? slot : 0];
	turn.client_port = 1024 + (flow & 0x7fff);
	turn.server_port = 502;
	turn.client = 0x0a000000 + flow; /* 10.0.0.0 */
	switch (config.shape) {
	case SHAPE_UDP:
		turn.protocol = 17;
		break;
	case SHAPE_SCAN: /* one client asks rising addresses for one port */
		turn.server = turn.client;
		turn.client = 0xcb007101; /* 203.0.113.1 */
		turn.client_port = 40000;
		turn.way = 0;
		turn.flags = SYN;
		break;
	case SHAPE_FLOOD: /* clients from all over a /8: multiplied by an odd number, modulo 2^24, no two are the same */
		turn.client = 0x0a000000 | (flow * 0x9e3779b1u & 0xffffff);
		turn.client_port = 1024 + (scattered(flow) & 0x7fff);
		turn.way = 0;
		turn.flags = SYN;
		break;
	default:
		/* Flow after flow, each pass adds one segment: so what each end has sent follows from the number of the pass. */
		payload = turn.size > ETHERNET + IPV4 + TCP + 6 ? turn.size - ETHERNET - IPV4 - TCP : 0;
		turn.sequence = 1 + payload * (__u32)(pass >> 1);
		turn.acknowledgement = 1 + payload * (__u32)((pass + 1) >> 1);
	}
	return turn;
}

/* The outer headers say how long the frame is, and which it is. */
static __always_inline void write_outer(void *data, __u32 len, __u64 n, __u32 flow_port)
{
	struct ipv4 *ip = data + ETHERNET;
	__u16 total = len - ETHERNET;

	ip->length = bpf_htons(total);
	/* 198.18.0.1 to 198.18.0.2, RFC 2544 */
	ip->checksum = bpf_htons(folded(0x4500 + total + 64 * 256 + ip->protocol + 0xc612 + 0x0001 + 0xc612 + 0x0002));
	if (config.outer == OUTER_VXLAN) {
		__be16 *udp = (void *)(ip + 1);
		/* RFC 7348 §5: the source port is a hash of the inner headers, from 49152 up. */
		udp[0] = bpf_htons(49152 | (flow_port & 0x3fff));
		udp[2] = bpf_htons(total - IPV4);
	} else {
		*(__be32 *)((void *)(ip + 1) + 4) = bpf_htonl(n); /* GRE's sequence number */
	}
}

static __always_inline void write_inner(__u8 *macs, struct segment *segment, const struct turn *turn, __u64 n)
{
	__u16 total = turn->size - ETHERNET;
	__u32 source = turn->way ? turn->server : turn->client, destination = turn->way ? turn->client : turn->server;

	/* A segment without data is shorter than the shortest frame, which is padded. */
	if (turn->protocol == 6 && turn->size == 60)
		total = IPV4 + TCP;
	macs[5] = 2 - turn->way;
	macs[11] = 1 + turn->way;
	segment->ip.length = bpf_htons(total);
	segment->ip.id = bpf_htons((__u16)n); /* so that no frame is another's copy */
	segment->ip.protocol = turn->protocol;
	segment->ip.source = bpf_htonl(source);
	segment->ip.destination = bpf_htonl(destination);
	segment->ip.checksum = bpf_htons(folded(0x4500 + total + (__u16)n + 64 * 256 + turn->protocol + (source >> 16) + (source & 0xffff) +
					      (destination >> 16) + (destination & 0xffff)));
	segment->tcp.source = bpf_htons(turn->way ? turn->server_port : turn->client_port);
	segment->tcp.destination = bpf_htons(turn->way ? turn->client_port : turn->server_port);
	if (turn->protocol == 17) {
		segment->tcp.sequence = bpf_htonl((total - IPV4) << 16);
		return;
	}
	segment->tcp.sequence = bpf_htonl(turn->sequence);
	segment->tcp.acknowledgement = bpf_htonl(turn->acknowledgement);
	segment->tcp.flags = turn->flags;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u64 n = state.sent;
	struct turn turn;
	void *data;
	__u32 len;

	if (!is_due(n))
		return XDP_DROP; /* and the copy comes round again */
	if (config.marked_one_in && n % config.marked_one_in == 0) {
		turn = marked(state.marked);
		state.marked++;
	} else {
		/* Numbered among themselves, so that in order means in order. */
		turn = ordinary(n - state.marked);
	}
	len = config.network_at - ETHERNET + turn.size;
	if (len < config.template_len && bpf_xdp_adjust_tail(ctx, (int)len - (int)config.template_len))
		return XDP_ABORTED; /* cannot happen: the template is the longest of the sizes */
	data = (void *)(long)ctx->data;
	if (data + config.network_at + sizeof(struct segment) > (void *)(long)ctx->data_end)
		return XDP_ABORTED; /* nor this */
	if (config.outer == OUTER_VXLAN || config.outer == OUTER_ERSPAN)
		write_outer(data, len, n, turn.client_port);
	write_inner(data + config.macs_at, data + config.network_at, &turn, n);
	state.sent = n + 1;
	state.octets += len;
	if (n + 1 == config.count)
		state.ended = bpf_ktime_get_ns();
	return bpf_redirect(config.ifindex, 0);
}

/* Stands at the other end where no sensor does. */
SEC("xdp")
int count_and_drop(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct generator_seen *count = bpf_map_lookup_elem(&seen, &key);

	if (!count)
		return XDP_ABORTED;
	count->frames++;
	count->octets += ctx->data_end - ctx->data;
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
