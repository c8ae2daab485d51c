/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the generating program and its driver share. Rust sees the twins that libbpf-cargo generates from BTF. */
#ifndef SPANWATCH_GENERATOR_H
#define SPANWATCH_GENERATOR_H

#define SIZES 12

enum shape { SHAPE_TCP, SHAPE_UDP, SHAPE_SCAN, SHAPE_FLOOD };
enum outer { OUTER_NONE, OUTER_VLAN, OUTER_VXLAN, OUTER_ERSPAN };

/* Constants, set between open and load. Lengths are octets of the whole frame without FCS. */
struct generator_config {
	unsigned long long count;           /* frames to send in all */
	unsigned long long packets_per_sec; /* 0: as fast as it goes */
	unsigned int ifindex;               /* the interface they leave by */
	unsigned int flows;                 /* different conversations; at least 1 */
	unsigned int is_random;             /* 0: flow after flow, then again the other way; 1: any flow, any way */
	unsigned int shape;                 /* enum shape */
	unsigned int outer;                 /* enum outer */
	unsigned int macs_at;               /* where the inner frame begins, with its MAC addresses */
	unsigned int network_at;            /* where its IPv4 header begins; a tag may stand in between */
	unsigned int template_len;          /* length of the template: the longest of the sizes */
	unsigned int marked_one_in;         /* one frame in so many belongs to the marked conversation; 0: none */
	unsigned int sizes[SIZES];          /* of the inner frame without tag, by flow */
	unsigned int reserved;              /* so that the size is a multiple of eight */
};

/* What was done so far. Only the one CPU that runs the program writes it. */
struct generator_state {
	unsigned long long sent;    /* frames handed to the interface */
	unsigned long long marked;  /* those of the marked conversation */
	unsigned long long octets;  /* of all of them, without FCS */
	unsigned long long began;   /* bpf_ktime_get_ns of the first frame */
	unsigned long long ended;   /* and of the last one */
	unsigned long long due;     /* frames that may have been sent by the time of the last look at the clock */
};

/* What reached the other end, when nobody else listens there. */
struct generator_seen {
	unsigned long long frames;
	unsigned long long octets;
};

#endif
