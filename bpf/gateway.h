/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A gateway's work: out with an egress IP, and back to the pod, ICMP errors included. */
#ifndef ROUTERD_GATEWAY_H
#define ROUTERD_GATEWAY_H

#include "tunnel.h"

#define FAMILY_IPV4 2
#define FAMILY_IPV6 10

/* Out by the route that the kernel has for (egress IP, destination); the neighbour is resolved on the way. */
static __always_inline int forward(struct __sk_buff *skb, const struct packet *packet,
				   const struct settings *config, const struct ip *egress_ip)
{
	struct bpf_fib_lookup route = {
	    .family = FAMILY_IPV4,
	    .l4_protocol = packet->protocol,
	    .ifindex = config->tunnel_ifindex,
	    .ipv4_src = egress_ip->w[3],
	    .ipv4_dst = packet->destination.w[3],
	};
	struct bpf_redir_neigh next_hop = {};
	long found = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	__u32 device = route.ifindex;

	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return drop(skb, NO_ROUTE);
	if (!bpf_map_lookup_elem(&uplinks, &device))
		return drop(skb, NOT_UPLINK);
	next_hop.nh_family = route.family;
	if (route.family == FAMILY_IPV6)
		__builtin_memcpy(next_hop.ipv6_nh, route.ipv6_dst, sizeof(next_hop.ipv6_nh));
	else
		next_hop.ipv4_nh = route.ipv4_dst;
	return sent(skb, bpf_redirect_neigh(device, &next_hop, sizeof(next_hop), 0), TRANSLATED);
}

/* Whether a packet may begin a flow of its own: an echo reply answers a question, and has no port to map. */
static __always_inline bool may_begin(enum parsed parsed, const struct packet *packet)
{
	return parsed == PARSED_FLOW &&
	       !(packet->protocol == IPPROTO_ICMP && packet->icmp_type == ICMP_ECHOREPLY);
}

/* The gateway's part of the way out: find or make the mapping, rewrite the source, forward. `node` is where
 * replies go. */
static __always_inline int translate(struct __sk_buff *skb, const struct packet *packet,
				     const struct settings *config, __u32 vni, const struct ip *node)
{
	struct group_value *group = bpf_map_lookup_elem(&groups, &vni);
	enum reason reason = NAT_TABLE_FULL;
	struct nat_value *mapping;
	struct ip egress_ip;

	if (!group)
		return drop(skb, UNKNOWN_GROUP);
	if (packet->ttl <= 1)
		return drop(skb, TTL_EXPIRED);
	mapping = find_mapping(packet, vni, group, node, &reason);
	if (!mapping)
		return drop(skb, reason);
	egress_ip = mapping->egress_ip;
	if (rewrite_side(skb, packet, SIDE_SOURCE, &egress_ip, mapping->egress_port) ||
	    decrement_ttl(skb, packet))
		return drop(skb, REWRITE_ERROR);
	return forward(skb, packet, config, &egress_ip);
}

/* A packet whose destination is rewritten to the pod's goes on to the pod: here, or through the tunnel to its
 * node. `flow`: the pod's, which it answers or reports an error of. */
static __always_inline int return_to_pod(struct __sk_buff *skb, struct packet *packet,
					 const struct settings *config, const struct reverse_value *mapping,
					 const struct flow_key *flow)
{
	struct ip node = mapping->node;
	struct local_pod *pod;

	if (!ip_is_none(&node))
		return encapsulate(skb, packet, config, mapping->group, &node, REVERSED);
	pod = bpf_map_lookup_elem(&local_pods, &mapping->pod);
	if (!pod)
		return drop(skb, UNKNOWN_POD);
	if (!is_answer(flow, mapping->group, &node))
		return drop(skb, UNKNOWN_FLOW);
	return deliver(skb, pod, REVERSED);
}

/* What is addressed to an egress IP and to no flow of ours: the host's, if the address is its own. */
static __always_inline int not_ours(struct __sk_buff *skb, const struct egress_ip_value *address,
				    enum reason reason)
{
	return address->node_address ? NEXT : drop(skb, reason);
}

static __always_inline struct reverse_value *find_reverse(const struct ip *egress_ip, const struct ip *remote,
							  __be16 egress_port, __be16 remote_port,
							  __u8 protocol)
{
	struct reverse_key key = {
	    .egress_ip = *egress_ip,
	    .remote = *remote,
	    .egress_port = egress_port,
	    .remote_port = remote_port,
	    .protocol = protocol,
	};

	return bpf_map_lookup_elem(&reverse, &key);
}

/* An ICMP error about a translated packet (path MTU discovery lives by it): its quote gets the pod's address
 * and port back, so that the pod's stack finds the socket (RFC 5508, section 4.2). The quoted transport
 * checksum stays as it is: receivers do not verify it, as the quote may be cut. */
static __always_inline int reverse_icmp_error(struct __sk_buff *skb, struct packet *packet,
					      const struct settings *config,
					      const struct egress_ip_value *address)
{
	__u32 checksum = packet->l4_offset + CHECKSUM_OFFSET_ICMP;
	__u32 inner = packet->l4_offset + sizeof(struct icmphdr);
	struct reverse_value *mapping;
	__be32 old_address, new_address;
	__be16 old_port, new_port;
	struct packet quoted = {};
	struct flow_key flow;
	__u32 port_at;

	if (!parse_quote(skb, packet, &quoted))
		return not_ours(skb, address, MALFORMED);
	port_at = port_offset(&quoted, SIDE_SOURCE);
	old_port = quoted.source_port;
	mapping = find_reverse(&quoted.source, &quoted.destination, old_port, quoted.destination_port,
			       quoted.protocol);
	if (!mapping)
		return not_ours(skb, address, NO_MAPPING);
	if (packet->ttl <= 1)
		return drop(skb, TTL_EXPIRED);
	old_address = quoted.source.w[3];
	new_address = mapping->pod.w[3];
	new_port = mapping->pod_port;
	/* The quoted header's own checksum changes by as much as its address does, so the ICMP checksum sees
	 * only the port and that pair, which cancel out: one correction for the port is left. */
	if (bpf_l3_csum_replace(skb, inner + CHECKSUM_OFFSET_IP, old_address, new_address, 4) ||
	    bpf_skb_store_bytes(skb, inner + offsetof(struct iphdr, saddr), &new_address, 4, 0) ||
	    bpf_l4_csum_replace(skb, checksum, old_port, new_port, 2) ||
	    bpf_skb_store_bytes(skb, port_at, &new_port, 2, 0) ||
	    bpf_l3_csum_replace(skb, IP_OFFSET + CHECKSUM_OFFSET_IP, packet->destination.w[3], new_address,
				4) ||
	    bpf_skb_store_bytes(skb, IP_OFFSET + offsetof(struct iphdr, daddr), &new_address, 4, 0) ||
	    decrement_ttl(skb, packet))
		return drop(skb, REWRITE_ERROR);
	quoted.source = mapping->pod;
	quoted.source_port = new_port;
	flow = flow_from_pod(&quoted);
	return return_to_pod(skb, packet, config, mapping, &flow);
}

#endif
