// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The egress datapath.
 *
 *   pod -- from_pod -- VXLAN, VNI = group -- from_tunnel (SNAT) -- uplink -- world
 *   pod -- to_pod   -- VXLAN              -- from_uplink (reverse NAT) ------'
 *
 * What is not ours goes on to the next program and the host's stack; what is ours leaves by a redirect or is
 * dropped with a counted reason. A selected pod's packet never falls back to the host's stack with a source
 * of its own.
 */
#include "collect.h"
#include "source.h"

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	struct settings *config = read_settings();
	struct bpf_tunnel_key key = {};
	struct local_pod *pod;
	struct packet packet;
	enum parsed parsed;
	struct ip node;

	if (!config || bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return drop(skb, TUNNEL_ERROR);
	node = ip_from_v4(bpf_htonl(key.remote_ipv4));
	if (!is_node(&node))
		return drop(skb, UNKNOWN_NODE);
	parsed = parse(skb, &packet);
	pod = bpf_map_lookup_elem(&local_pods, &packet.destination);
	if (pod && (parsed == PARSED_FLOW || parsed == PARSED_ICMP_ERROR))
		return deliver_answer(skb, &packet, parsed, pod, key.tunnel_id, &node);
	if (parsed == PARSED_MALFORMED)
		return drop(skb, MALFORMED);
	if (parsed == PARSED_FRAGMENT)
		return drop(skb, FRAGMENT);
	if (!may_begin(parsed, &packet))
		return drop(skb, UNSUPPORTED_PROTOCOL);
	if (is_inside(&packet.destination)) /* a reply whose pod has gone */
		return drop(skb, UNKNOWN_POD);
	if (is_nowhere(&packet.destination))
		return drop(skb, BOGUS_DESTINATION);
	return translate(skb, &packet, config, key.tunnel_id, &node);
}

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct settings *config = read_settings();
	struct egress_ip_value *address;
	struct reverse_value *mapping;
	struct packet packet;
	struct flow_key flow;
	enum parsed parsed;
	struct ip pod, node;

	parsed = parse(skb, &packet);
	if (!config || is_tagged(skb) || parsed == PARSED_NOT_IPV4 || parsed == PARSED_MALFORMED)
		return NEXT; /* a tagged frame is for a device on top of this one */
	address = bpf_map_lookup_elem(&egress_ips, &packet.destination);
	if (!address)
		return NEXT;
	if (parsed == PARSED_FRAGMENT)
		return not_ours(skb, address, FRAGMENT);
	if (parsed == PARSED_ICMP_ERROR)
		return reverse_icmp_error(skb, &packet, config, address);
	if (parsed != PARSED_FLOW)
		return not_ours(skb, address, UNSUPPORTED_PROTOCOL);
	mapping = find_reverse(&packet.destination, &packet.source, packet.destination_port,
			       packet.source_port, packet.protocol);
	if (!mapping)
		return not_ours(skb, address, NO_MAPPING);
	if (packet.ttl <= 1)
		return drop(skb, TTL_EXPIRED);
	refresh(&mapping->last_seen, &mapping->seen_in, seen_of(&packet));
	node = mapping->node;
	if (!ip_is_none(&node) && exceeds_tunnel(skb, &packet, config))
		return refuse_too_big(skb, &packet, config);
	pod = mapping->pod;
	if (rewrite_side(skb, &packet, SIDE_DESTINATION, &pod, mapping->pod_port) ||
	    decrement_ttl(skb, &packet))
		return drop(skb, REWRITE_ERROR);
	packet.destination = pod;
	packet.destination_port = mapping->pod_port;
	flow = flow_to_pod(&packet);
	return return_to_pod(skb, &packet, config, mapping, &flow);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct settings *config = read_settings();
	struct pod_key pod_key = {.ifindex = skb->ifindex};
	struct flow_value *flow;
	struct pod_value *pod;
	struct packet packet;
	struct flow_key key;
	enum parsed parsed;
	int verdict;

	if (is_tagged(skb))
		return drop_if_strict(skb, VLAN_TAGGED);
	parsed = parse(skb, &packet);
	if (!config || parsed == PARSED_NOT_IPV4)
		return NEXT;
	if (parsed == PARSED_MALFORMED)
		return drop_if_strict(skb, MALFORMED);
	if (parsed == PARSED_FLOW && forges_tunnel(&packet, config))
		return drop(skb, TUNNEL_PORT);
	pod_key.address = packet.source;
	pod = bpf_map_lookup_elem(&pods, &pod_key);
	if (!pod)
		return drop_if_strict(skb, SPOOFED_SOURCE);
	if (is_inside(&packet.destination))
		return NEXT;
	key = flow_from_pod(&packet);
	flow = parsed == PARSED_FLOW ? bpf_map_lookup_elem(&flows, &key) : NULL;
	if (flow && !has_ended(flow, &packet)) {
		verdict = continue_flow(skb, &packet, config, flow);
		if (verdict != GROUP_GONE)
			return verdict;
	}
	if (flow)
		bpf_map_delete_elem(&flows, &key);
	return begin_flow(skb, &packet, parsed, config, pod->policy_set);
}

/* Flows begun from outside the cluster are recorded, so that the selected pod's answers go back the way they
 * came. */
SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct pod_key pod_key = {.ifindex = skb->ifindex};
	struct flow_value begun = {.last_seen = now()};
	struct flow_value *flow;
	struct pod_value *pod;
	struct packet packet;
	struct flow_key key;

	if (parse(skb, &packet) != PARSED_FLOW)
		return NEXT;
	pod_key.address = packet.destination;
	pod = bpf_map_lookup_elem(&pods, &pod_key);
	if (!pod || is_inside(&packet.source))
		return NEXT;
	key = flow_to_pod(&packet);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && has_ended(flow, &packet)) {
		bpf_map_delete_elem(&flows, &key);
		flow = NULL;
	}
	if (flow) {
		refresh(&flow->last_seen, &flow->seen_in, seen_of(&packet));
		return NEXT;
	}
	if (!pod->policy_set || !begins_from_outside(&packet))
		return NEXT;
	begun.seen_in = seen_of(&packet);
	if (!record_flow(&key, &begun))
		return drop(skb, FLOW_TABLE_FULL); /* its answer would be sent through the gateway */
	return NEXT;
}

/* One round; the agent runs it with BPF_PROG_TEST_RUN and reads `collected`. Never attached. */
SEC("tc")
int collect(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct round round = {.settings = read_settings(), .time = now()};

	round.result = bpf_map_lookup_elem(&collected, &zero);
	if (!round.settings || !round.result)
		return NEXT;
	__builtin_memset(round.result, 0, sizeof(*round.result));
	bpf_for_each_map_elem(&flows, collect_flow, &round, 0);
	bpf_for_each_map_elem(&nat, collect_mapping, &round, 0);
	bpf_for_each_map_elem(&reverse, collect_reverse, &round, 0);
	return NEXT;
}

/* "GPL" is what the kernel asks of programs that call its helpers; the source is dual-licensed as the first
 * line says. */
char LICENSE[] SEC("license") = "GPL";
