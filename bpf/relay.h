/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A gateway's table may be late: it is starting, or cut off from the store. An answer to a port whose node it
 * does not know goes once to another gateway of the egress IP, with a bit of the VNI that says so; that one
 * knows the node, or drops the packet. Nothing of it is rewritten: the second gateway is the hop that counts.
 *
 * Whether a port is given to nobody or to somebody unknown here cannot be told, so a stranger who sends to
 * many ports is relayed too: never more than RELAYS_MAX in a RELAY_WINDOW on a CPU.
 *
 * A ToR that hashes ports gives the later fragments of an answer, which have none, to another gateway than
 * the first. One whose first has not come by here goes round the gateways until it is at the one that knows
 * it. So it is always behind its first: that is why gateways do not meet at a third one for each datagram.
 */
#ifndef ROUTERD_RELAY_H
#define ROUTERD_RELAY_H

#include "probe.h"

#define RELAY_WINDOW (NS_PER_SECOND / 10)
#define RELAYS_MAX   2000
#define FIRST_PORT   1024 /* those below are given to no node */

/* Whether a packet to a port without a node may be for one that another gateway knows. What opens a
 * connection answers nothing, and an echo request has no port here. */
static __always_inline bool may_be_answer(const struct packet *packet, enum parsed parsed, __be16 port)
{
	return bpf_ntohs(port) >= FIRST_PORT && (parsed != PARSED_FLOW || !opens_connection(packet));
}

/* Of a group's gateways but this node, the one that the packet's flow prefers of the best. NO_NODE = there is
 * none.
 */
static __always_inline __u16 other_gateway(__u32 number, const struct packet *packet,
					   const struct settings *config)
{
	struct flow_key key = flow_to_pod(packet, 0); /* as far as it can be seen here */
	struct choice choice = {
	    .config = config,
	    .group = bpf_map_lookup_elem(&groups, &number),
	    .echoed = ~0ULL, /* of nobody's port set */
	    .hash = flow_hash(&key),
	    .excluded = node_number(&config->node_address),
	    .by_tunnel = true,
	};
	struct scratch *room = read_scratch();

	if (!choice.group || !room)
		return NO_NODE;
	choose(&choice, room, &key.pod);
	return room->pick.node;
}

static __always_inline bool is_within_limit(void)
{
	__u32 zero = 0;
	struct relays *lately = bpf_map_lookup_elem(&relays, &zero);
	__u64 time = now();

	if (!lately)
		return false;
	if ((__s64)(time - lately->since) > (__s64)RELAY_WINDOW) {
		lately->since = time;
		lately->packets = 0;
	}
	return lately->packets++ < RELAYS_MAX;
}

static __always_inline int relay(struct __sk_buff *skb, const struct settings *config,
				 const struct ip *endpoint, __u32 seen)
{
	if (!is_within_limit())
		return drop(skb, RELAY_LIMIT);
	return encapsulate(skb, VNI_RELAYED | (seen & VNI_SEEN), endpoint, RELAYED);
}

/* The gateway that is up and comes after this node in the group's list, which is a ring. NO_NODE = none. */
static __always_inline __u16 next_gateway(const struct group_value *group, const struct settings *config)
{
	__u16 here = node_number(&config->node_address), first = NO_NODE;
	bool passed = false;

	for (__u32 i = 0; i < MAX_GATEWAYS; i++) {
		const struct gateway *gateway = &group->gateways[i];

		if (i >= group->gateway_count)
			break;
		if (gateway->node == here)
			passed = true;
		else if (gateway->up && passed)
			return gateway->node;
		else if (gateway->up && first == NO_NODE)
			first = gateway->node;
	}
	return first;
}

#endif
