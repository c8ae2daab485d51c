/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the XDP program and the sensor share. Rust sees the twins that libbpf-cargo generates from BTF. */
#ifndef SPANWATCH_CAPTURE_H
#define SPANWATCH_CAPTURE_H

/* One entry per RX queue and CPU; packets = redirected + no_socket + shed. */
struct queue_counters {
	unsigned long long packets;    /* seen by the program */
	unsigned long long bytes;      /* their octets, all buffers, without FCS */
	unsigned long long redirected; /* sent to the queue's socket; XDP_STATISTICS says how many it did not take */
	unsigned long long no_socket;  /* no socket listens on the queue */
	unsigned long long shed;       /* left out on purpose: keep_one_in */
};

/* Constants, set between open and load. */
struct capture_config {
	unsigned int keep_one_in;    /* 1: every packet; n: at most one in n at random; 0 counts as 1 */
	unsigned int pass_unclaimed; /* a packet without a socket: 0 drop, 1 pass to the host */
	unsigned int queues;         /* entries of the maps less one; higher queues share the last entry */
};

#endif
