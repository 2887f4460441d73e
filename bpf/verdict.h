/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every program ends with, and what every program asks: outcomes, counted; settings; whose an address
 * is. */
#ifndef ROUTERD_VERDICT_H
#define ROUTERD_VERDICT_H

#include "maps.h"
#include "parse.h"
#include "rewrite.h"

#include <linux/pkt_cls.h>

#define NEXT	    TC_ACT_UNSPEC /* the same number as TCX_NEXT */
#define HOST_PREFIX (32 + 128)	  /* of a key that begins with the family */

/* What a map holds, read anew: of what it remembers, the verifier follows each case to the end. */
#define REREAD(field) (*(const volatile typeof(field) *)&(field))

/* The best way to a gateway so far, see probe.h. */
struct pick {
	__u64 score;
	__u64 place; /* its bit in `block.echoed` */
	__u32 rank;  /* enum rank */
	__u32 epoch;
	__u16 node; /* NO_NODE = none */
	__u8 direct;
	__u8 ipv6; /* the flow's family */
	__u8 reserved[4];
};

/* What is too large for the 512 bytes of a program's stack; one of each for a packet, which stays on its CPU
 * with soft interrupts off until its program has ended. */
struct scratch {
	struct packet packet; /* on the stack, the verifier would follow each of its cases to the end */
	struct packet quoted; /* by an ICMP error */
	struct flow_value flow;
	struct reverse_key port_key; /* of the port that is claimed */
	struct reverse_value port;
	struct pick pick;
	__u32 directly; /* whether it is sent without the tunnel */
	struct fragment_key fragment_key;
	struct fragment_value fragment;
	struct bpf_fib_lookup route;
	struct crc_change crc;
	struct probe probe;
	struct trial trial;
	struct ip endpoint; /* of what goes into the tunnel: to which node, */
	__u32 vni;
	enum reason into;	  /* and how it is counted */
	__u8 frame[ETH_HLEN + 2]; /* its Ethernet header, and the first bytes of the packet */
	struct outer outer;
	union {
		struct error4 error4;
		struct {
			struct error6 error6;
			struct pseudo6 pseudo6;
		};
	};
};

PINNED_MAP(scratch, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct scratch, 1, 0);

static __always_inline struct scratch *read_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

static __always_inline void count(struct __sk_buff *skb, __u32 reason)
{
	struct counter *counter = bpf_map_lookup_elem(&counters, &reason);

	if (!counter)
		return;
	counter->packets++;
	counter->bytes += skb->len;
}

static __always_inline int drop(struct __sk_buff *skb, enum reason reason)
{
	count(skb, reason);
	return TC_ACT_SHOT;
}

/* A redirect that the kernel took is counted as `done`, any other outcome is a drop. */
static __always_inline int sent(struct __sk_buff *skb, long action, enum reason done)
{
	if (action != TC_ACT_REDIRECT)
		return drop(skb, TUNNEL_ERROR);
	count(skb, done);
	return action;
}

static __always_inline struct settings *read_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

/* 0 = in none of the prefixes. */
static __always_inline __u32 place_of(const struct ip *address)
{
	struct cidr_key key = {
	    .prefixlen = HOST_PREFIX, .family = ip_is_v4(address) ? 0 : PREFIX_IPV6, .address = *address};
	__u32 *place = bpf_map_lookup_elem(&cluster, &key);

	return place ? *place : 0;
}

static __always_inline bool is_inside(const struct ip *address)
{
	return place_of(address) == PLACE_INSIDE;
}

static __always_inline bool is_nowhere(const struct ip *address)
{
	return place_of(address) == PLACE_NOWHERE;
}

/* The number of the node with this tunnel endpoint, or NO_NODE. */
static __always_inline __u16 node_number(const struct ip *address)
{
	__u32 *number = bpf_map_lookup_elem(&nodes, address);

	return number ? *number : NO_NODE;
}

/* A bit for the node's place among the group's gateways; 0 = it is none of them. */
static __always_inline __u64 place_bit(const struct group_value *group, __u16 node)
{
	for (__u32 i = 0; i < MAX_GATEWAYS; i++) {
		if (i >= group->gateway_count)
			break;
		if (group->gateways[i].node == node)
			return 1ULL << i;
	}
	return 0;
}

static __always_inline bool is_gateway_of(__u32 number, __u16 node)
{
	struct group_value *group = bpf_map_lookup_elem(&groups, &number);

	return group && place_bit(group, node);
}

static __always_inline struct node_value *node_of(__u16 number)
{
	__u32 key = number;

	return bpf_map_lookup_elem(&node_numbers, &key);
}

#endif
