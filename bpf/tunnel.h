/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Through the tunnel to another node, and out of it to a pod on this one. */
#ifndef ROUTERD_TUNNEL_H
#define ROUTERD_TUNNEL_H

#include "nat.h"
#include "rewrite.h"
#include "verdict.h"

/* Too big for the tunnel, as it is or as the segments it will be cut into, and not to be fragmented. */
static __always_inline bool exceeds_tunnel(struct __sk_buff *skb, const struct packet *packet,
					   const struct settings *config)
{
	__u32 mtu = 0;

	return packet->dont_fragment &&
	       bpf_check_mtu(skb, config->tunnel_ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) != 0;
}

/* A packet that is too big and may not be fragmented is answered to its sender, by the device that it came
 * from and before anything in it is rewritten: the sender must know its own packet in the quote. */
static __always_inline int refuse_too_big(struct __sk_buff *skb, const struct packet *packet,
					  const struct settings *config)
{
	if (answer_too_big(skb, packet, config->tunnel_mtu, &config->node_address))
		return drop(skb, TOO_BIG);
	return sent(skb, bpf_redirect(skb->ifindex, 0), TOO_BIG_ANSWERED);
}

/* To the node at `endpoint`. One that is too big is left to the outer header's fragmentation. */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct packet *packet,
				       const struct settings *config, __u32 group, const struct ip *endpoint,
				       enum reason done)
{
	/* Others know this node by one address, whichever the route would prefer. */
	struct bpf_tunnel_key key = {.tunnel_id = group,
				     .remote_ipv4 = bpf_ntohl(endpoint->w[3]),
				     .local_ipv4 = bpf_ntohl(config->node_address.w[3]),
				     .tunnel_ttl = 64};

	if (clamp_mss(skb, packet, config->tunnel_mtu))
		return drop(skb, REWRITE_ERROR);
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
		return drop(skb, TUNNEL_ERROR);
	return sent(skb, bpf_redirect(config->tunnel_ifindex, 0), done);
}

/* The key of a flow, from a packet that its pod sent. */
static __always_inline struct flow_key flow_from_pod(const struct packet *packet)
{
	struct flow_key key = {
	    .pod = packet->source,
	    .remote = packet->destination,
	    .pod_port = packet->source_port,
	    .remote_port = packet->destination_port,
	    .protocol = packet->protocol,
	};

	return key;
}

static __always_inline struct flow_key flow_to_pod(const struct packet *packet)
{
	struct flow_key key = {
	    .pod = packet->destination,
	    .remote = packet->source,
	    .pod_port = packet->destination_port,
	    .remote_port = packet->source_port,
	    .protocol = packet->protocol,
	};

	return key;
}

/* False when the table took nothing: full, out of memory, or busy. That another CPU was faster is as good. */
static __always_inline bool record_flow(const struct flow_key *key, const struct flow_value *flow)
{
	long error = bpf_map_update_elem(&flows, key, flow, BPF_NOEXIST);

	return !error || error == -EEXIST;
}

/* Whether the node at `endpoint`, or this node itself if that is none, is a gateway of the group. */
static __always_inline bool is_gateway(__u32 group, const struct ip *endpoint)
{
	struct path_value *path = bpf_map_lookup_elem(&paths, &group);

	for (__u32 i = 0; path && i < MAX_GATEWAYS; i++) {
		struct gateway *gateway = &path->gateways[i];

		if (i >= path->count)
			break;
		if (ip_is_none(endpoint) ? gateway->local : ip_equal(&gateway->address, endpoint))
			return true;
	}
	return false;
}

/* A pod takes answers to what it has sent through the group, by one of the group's gateways. All else would
 * be somebody's who can make a tunnel packet: a way into the pod, and into another group for its flows. So
 * what comes for a flow that has been collected here is dropped, too, though the gateway may know it still.
 */
static __always_inline bool is_answer(const struct flow_key *key, __u32 group, const struct ip *gateway)
{
	struct flow_value *flow = bpf_map_lookup_elem(&flows, key);

	return flow && flow->group == group && is_gateway(group, gateway);
}

/* The packet that an ICMP error quotes, as far as its addresses and ports; false if it is cut short. */
static __always_inline bool parse_quote(struct __sk_buff *skb, const struct packet *error,
					struct packet *quoted)
{
	__u32 inner = error->l4_offset + sizeof(struct icmphdr);
	struct iphdr header;
	__be16 ports[2];

	if (bpf_skb_load_bytes(skb, inner, &header, sizeof(header)) || header.ihl < 5)
		return false;
	quoted->protocol = header.protocol;
	quoted->source = ip_from_v4(header.saddr);
	quoted->destination = ip_from_v4(header.daddr);
	quoted->l4_offset = inner + header.ihl * 4;
	if (bpf_skb_load_bytes(skb, port_offset(quoted, SIDE_SOURCE), ports, sizeof(ports)))
		return false;
	quoted->source_port = ports[0];
	quoted->destination_port = header.protocol == IPPROTO_ICMP ? 0 : ports[1];
	return true;
}

/* To a pod on this node, by its host-side device, with the Ethernet header that the host would write. */
static __always_inline int deliver(struct __sk_buff *skb, const struct local_pod *pod, enum reason done)
{
	if (bpf_skb_store_bytes(skb, 0, pod->pod_mac, ETH_ALEN, 0) ||
	    bpf_skb_store_bytes(skb, ETH_ALEN, pod->device_mac, ETH_ALEN, 0))
		return drop(skb, REWRITE_ERROR);
	return sent(skb, bpf_redirect(pod->ifindex, 0), done);
}

/* Out of the tunnel from the node at `endpoint`: an answer, or an error about what the pod has sent. */
static __always_inline int deliver_answer(struct __sk_buff *skb, const struct packet *packet,
					  enum parsed parsed, const struct local_pod *pod, __u32 group,
					  const struct ip *endpoint)
{
	struct flow_key flow = flow_to_pod(packet);
	struct packet quoted = {};

	if (parsed == PARSED_ICMP_ERROR) {
		if (!parse_quote(skb, packet, &quoted) || !ip_equal(&quoted.source, &packet->destination))
			return drop(skb, UNKNOWN_FLOW);
		flow = flow_from_pod(&quoted);
	}
	if (!is_answer(&flow, group, endpoint))
		return drop(skb, UNKNOWN_FLOW);
	return deliver(skb, pod, DELIVERED);
}

#endif
