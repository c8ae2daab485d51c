/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Counts each packet by RX queue and gives it to the AF_XDP socket of that queue. It reads no packet bytes, so there is
 * nothing here that a packet could upset; everything clever belongs to user space.
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
enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6, BPF_MAP_TYPE_XSKMAP = 17 };

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

#include <bpf/bpf_helpers.h>

#include "capture.h"

const volatile struct capture_config config;

/* The maps are sized by the sensor before loading. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct queue_counters);
} counters SEC(".maps");

/* What the sensor asks for under overload: one packet in so many, by RX queue; 0 as long as it asks for nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sampling SEC(".maps");

/* The sensor's wish, and never more packets than the settings allow. */
static __always_inline __u32 keep_one_in(__u32 entry)
{
	__u32 *wish = bpf_map_lookup_elem(&sampling, &entry);

	return wish && *wish > config.keep_one_in ? *wish : config.keep_one_in;
}

static __always_inline int count_and_redirect(struct xdp_md *ctx, __u64 bytes)
{
	__u32 queue = ctx->rx_queue_index;
	__u32 entry = queue < config.queues ? queue : config.queues;
	struct queue_counters *count = bpf_map_lookup_elem(&counters, &entry);

	if (!count)
		return XDP_ABORTED; /* cannot happen: there are config.queues + 1 entries */
	count->packets++;
	count->bytes += bytes;

	__u32 one_in = keep_one_in(entry);
	if (one_in > 1 && bpf_get_prandom_u32() % one_in) {
		count->shed++;
		return config.pass_unclaimed ? XDP_PASS : XDP_DROP;
	}
	if (!bpf_map_lookup_elem(&sockets, &queue)) {
		count->no_socket++;
		return config.pass_unclaimed ? XDP_PASS : XDP_DROP;
	}
	count->redirected++;
	return bpf_redirect_map(&sockets, queue, config.pass_unclaimed ? XDP_PASS : XDP_DROP);
}

/* For every MTU; needs Linux 5.18. */
SEC("xdp.frags")
int capture_frags(struct xdp_md *ctx)
{
	return count_and_redirect(ctx, bpf_xdp_get_buff_len(ctx));
}

/* For older kernels, whose drivers refuse XDP at jumbo MTUs: a packet is one buffer there. */
SEC("xdp")
int capture_linear(struct xdp_md *ctx)
{
	return count_and_redirect(ctx, ctx->data_end - ctx->data);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
