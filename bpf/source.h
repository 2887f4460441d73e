/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The work of a pod's own node: which rule and which gateway a flow has, and when one begins or ends. */
#ifndef ROUTERD_SOURCE_H
#define ROUTERD_SOURCE_H

#include "gateway.h"

#define GROUP_GONE -100 /* no verdict: kept within from_pod */
#define LOCAL_NODE ((struct ip){})

/* The ports of a fragment are not known, so it may belong to any of its protocol. */
static __always_inline bool rule_matches(const struct rule *rule, const struct packet *packet,
					 enum parsed parsed)
{
	__u16 port = bpf_ntohs(packet->destination_port);

	if (rule->protocol && rule->protocol != packet->protocol)
		return false;
	return !rule->first_port || parsed == PARSED_FRAGMENT ||
	       (port >= rule->first_port && port <= rule->last_port);
}

/* The rule that decides about the packet, or NULL. */
static __always_inline struct rule *decide(__u32 policy_set, const struct packet *packet, enum parsed parsed)
{
	struct policy_key key = {
	    .prefixlen = 32 + HOST_PREFIX, .policy_set = policy_set, .destination = packet->destination};
	struct policy_value *value = bpf_map_lookup_elem(&policies, &key);

	if (!value)
		return NULL;
	for (__u32 i = 0; i < MAX_RULES; i++) {
		if (i >= value->count)
			return NULL;
		if (rule_matches(&value->rules[i], packet, parsed))
			return &value->rules[i];
	}
	return NULL;
}

/* The gateway of the flow's slot while it is up, else the first that is. */
static __always_inline struct gateway *pick_gateway(__u32 group, const struct flow_value *flow)
{
	struct path_value *path = bpf_map_lookup_elem(&paths, &group);
	struct gateway *first = NULL;

	if (!path)
		return NULL;
	for (__u32 i = 0; i < MAX_GATEWAYS; i++) {
		struct gateway *gateway = &path->gateways[i];

		if (i >= path->count)
			break;
		if (!gateway->up)
			continue;
		if (!first)
			first = gateway;
		if (!flow || flow->slot == gateway->slot)
			return gateway;
	}
	return first;
}

static __always_inline int leave(struct __sk_buff *skb, const struct packet *packet,
				 const struct settings *config, __u32 group, const struct gateway *gateway)
{
	struct ip endpoint = gateway->address;
	struct ip local = LOCAL_NODE;

	if (cut_padding(skb, packet))
		return drop(skb, REWRITE_ERROR);
	if (gateway->local)
		return translate(skb, packet, config, group, &local);
	if (exceeds_tunnel(skb, packet, config))
		return refuse_too_big(skb, packet, config);
	return encapsulate(skb, packet, config, group, &endpoint, ENCAPSULATED);
}

/* The first packet of a flow decides, and its verdict is kept: later changes of policy do not cut what runs.
 */
static __always_inline int begin_flow(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				      const struct settings *config, __u32 policy_set)
{
	struct flow_value flow = {.last_seen = now(), .seen_out = seen_of(packet)};
	struct flow_key key = flow_from_pod(packet);
	struct gateway *gateway;
	struct rule *rule;

	rule = policy_set ? decide(policy_set, packet, parsed) : NULL;
	if (!rule)
		return NEXT;
	if (is_nowhere(&packet->destination))
		return drop(skb, BOGUS_DESTINATION);
	if (parsed == PARSED_FRAGMENT)
		return drop(skb, FRAGMENT);
	if (!may_begin(parsed, packet))
		return drop(skb, UNSUPPORTED_PROTOCOL);
	flow.group = rule->group;
	if (!flow.group)
		return drop(skb, NO_GROUP);
	gateway = pick_gateway(flow.group, NULL);
	if (!gateway)
		return drop(skb, NO_GATEWAY);
	flow.slot = gateway->slot;
	if (!record_flow(&key, &flow))
		return drop(skb, FLOW_TABLE_FULL);
	return leave(skb, packet, config, flow.group, gateway);
}

/* GROUP_GONE when the flow's group is there no more: the caller decides anew. */
static __always_inline int continue_flow(struct __sk_buff *skb, const struct packet *packet,
					 const struct settings *config, struct flow_value *flow)
{
	__u32 group = flow->group;
	struct gateway *gateway;

	if (!group) {
		refresh(&flow->last_seen, &flow->seen_out, seen_of(packet));
		return NEXT;
	}
	gateway = pick_gateway(group, flow);
	if (!gateway)
		return bpf_map_lookup_elem(&paths, &group) ? drop(skb, NO_GATEWAY) : GROUP_GONE;
	if (flow->slot != gateway->slot)
		flow->slot = gateway->slot;
	refresh(&flow->last_seen, &flow->seen_out, seen_of(packet));
	return leave(skb, packet, config, group, gateway);
}

/* A connection that opens again on the ports of one that has ended is a new flow, and decided anew. */
static __always_inline bool has_ended(const struct flow_value *flow, const struct packet *packet)
{
	__u8 either = flow->seen_out | flow->seen_in;

	return opens_connection(packet) &&
	       ((either & SEEN_RST) || (flow->seen_out & flow->seen_in & SEEN_FIN));
}

/* A pod may not forge tunnel packets: a masquerading CNI would lend it the node's address. */
static __always_inline bool forges_tunnel(const struct packet *packet, const struct settings *config)
{
	return packet->protocol == IPPROTO_UDP &&
	       packet->destination_port == bpf_htons(config->tunnel_port) && is_node(&packet->destination);
}

/* Where no pod is selected, what is not understood is none of our business. */
static __always_inline int drop_if_strict(struct __sk_buff *skb, enum reason reason)
{
	__u32 device = skb->ifindex;

	return bpf_map_lookup_elem(&strict_devices, &device) ? drop(skb, reason) : NEXT;
}

/* Whether a packet to the pod begins a flow (an answer to one of the pod's own finds its flow before this is
 * asked). */
static __always_inline bool begins_from_outside(const struct packet *packet)
{
	if (packet->protocol == IPPROTO_TCP)
		return opens_connection(packet);
	if (packet->protocol == IPPROTO_ICMP)
		return packet->icmp_type == ICMP_ECHO;
	return true;
}

#endif
