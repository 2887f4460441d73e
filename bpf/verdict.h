/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every program ends with, and what every program asks: outcomes, counted; settings; whose an address
 * is. */
#ifndef ROUTERD_VERDICT_H
#define ROUTERD_VERDICT_H

#include "maps.h"
#include "parse.h"

#include <linux/pkt_cls.h>

#define NEXT	    TC_ACT_UNSPEC /* the same number as TCX_NEXT */
#define HOST_PREFIX 128

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
	struct cidr_key key = {.prefixlen = HOST_PREFIX, .address = *address};
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

static __always_inline bool is_node(const struct ip *address)
{
	return bpf_map_lookup_elem(&nodes, address);
}

#endif
