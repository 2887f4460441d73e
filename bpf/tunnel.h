/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Ways out of a program: to another node, through the tunnel or straight over the link that both are on, by
 * an uplink to the world, to a pod here, and back to the sender with an ICMP error.
 */
#ifndef ROUTERD_TUNNEL_H
#define ROUTERD_TUNNEL_H

#include "outer.h"

/* The VNI says which way a packet goes: to the world with the number of its group, or back to the node of its
 * port set. */
#define VNI_BACK    (1U << 23)
#define VNI_RELAYED (VNI_BACK | 1U << 22) /* from gateway to gateway, see relay.h */
#define VNI_SEEN    0x1f		  /* of a fragment that is relayed: how many gateways have seen it */
#define VNI_PROBE   0xffffffU		  /* neither: see probe.h */

/* Too big for the device, as it is or as the segments it will be cut into. What may be fragmented goes into
 * the tunnel as it is, as the kernel cuts the outer packet; no other device cuts what a program sends by it:
 * its sender is told as well, and cuts it if it heeds that. For a device that has gone nothing is too big: no
 * sender must be told of an MTU that is none. */
static __always_inline bool exceeds(struct __sk_buff *skb, const struct packet *packet,
				    const struct settings *config, __u32 device, __u32 *mtu)
{
	bool is_cut = !packet->dont_fragment && device == config->tunnel_ifindex;

	*mtu = 0;
	return !is_cut && bpf_check_mtu(skb, device, mtu, 0, BPF_MTU_CHK_SEGS) > 0;
}

/* Too big for the device of a route that has been found. */
static __always_inline bool exceeds_route(struct __sk_buff *skb, const struct packet *packet,
					  const struct settings *config, const struct bpf_fib_lookup *route,
					  __u32 *mtu)
{
	*mtu = 0;
	if (!skb->gso_size && packet->total_length <= route->mtu_result)
		return false;
	return exceeds(skb, packet, config, route->ifindex, mtu);
}

static __always_inline const struct ip *icmp_source(const struct settings *config,
						    const struct packet *packet)
{
	return packet->ipv6 ? &config->icmp_source6 : &config->icmp_source4;
}

/* Turns the packet into an error about itself, for its sender. Only for headers without options, as their
 * quote has one of few sizes; never about an error or a later fragment (RFC 1122, section 3.2.2; RFC 4443,
 * section 2.4). */
static __always_inline long answer_error(struct __sk_buff *skb, const struct packet *packet,
					 const struct settings *config, enum error_kind kind, __u32 mtu)
{
	const struct ip *from = icmp_source(config, packet);
	struct scratch *room = read_scratch();

	if (!room || !packet->plain_header || packet->reports || packet->piece == LATER_PIECE ||
	    ip_is_none(from))
		return -1;
	if (packet->ipv6)
		return answer_error6(skb, packet, &room->error6, &room->pseudo6, kind, mtu, from);
	return answer_error4(skb, packet, &room->error4, kind, mtu, from);
}

/* The sender gets an error about its packet, by the device that it came from and before anything in it is
 * rewritten: it must know its own packet in the quote. */
static __always_inline int answer_back(struct __sk_buff *skb, const struct packet *packet,
				       const struct settings *config, enum error_kind kind, __u32 mtu)
{
	if (answer_error(skb, packet, config, kind, mtu))
		return drop(skb, kind == ERROR_TOO_BIG ? TOO_BIG : TTL_EXPIRED);
	return sent(skb, bpf_redirect(skb->ifindex, 0),
		    kind == ERROR_TOO_BIG ? TOO_BIG_ANSWERED : TTL_ANSWERED);
}

/* Where the tunnel device is to send the packet. The checksum of the outer UDP header is left out where IPv4
 * allows it; over IPv6 a receiver drops what has none (RFC 6935 asks it to be configured otherwise). */
static __always_inline long set_tunnel(struct __sk_buff *skb, const struct settings *config, __u32 vni,
				       const struct ip *endpoint)
{
	/* Others know this node by one address, whichever the route would prefer. */
	struct bpf_tunnel_key key = {.tunnel_id = vni, .tunnel_ttl = 64};
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	if (ip_is_v4(endpoint)) {
		key.remote_ipv4 = bpf_ntohl(endpoint->w[3]);
		key.local_ipv4 = bpf_ntohl(config->node_address.w[3]);
	} else {
		__builtin_memcpy(key.remote_ipv6, endpoint, sizeof(key.remote_ipv6));
		__builtin_memcpy(key.local_ipv6, &config->node_address, sizeof(key.local_ipv6));
		flags = BPF_F_TUNINFO_IPV6;
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
}

/* No verdict: what a program has last to do with a packet that goes through the tunnel. */
#define INTO_TUNNEL -102

/* To the node with this tunnel endpoint. It is noted, and done in one place of each program (conclude). */
static __always_inline int encapsulate(struct __sk_buff *skb, __u32 vni, const struct ip *endpoint,
				       enum reason done)
{
	struct scratch *room = read_scratch();

	if (!room)
		return drop(skb, TUNNEL_ERROR);
	room->endpoint = *endpoint;
	room->vni = vni;
	room->into = done;
	return INTO_TUNNEL;
}

/* Whether the node can be reached without the tunnel by packets of this family. Settings and nodes are
 * written one after the other: both must say so. */
static __always_inline bool is_on_link(const struct settings *config, const struct node_value *node,
				       bool ipv6)
{
	bool by_link_local = ipv6 || !ip_is_v4(&node->address);

	return config->direct_ifindex && node->direct && (!by_link_local || !ip_is_none(&node->link_local));
}

/* To a next hop whose MAC the kernel finds out. It takes no frame to a group for that, whatever its packet
 * is: a pod's first bytes are the pod's own words. */
static __always_inline int send_to(struct __sk_buff *skb, __u32 ifindex, struct bpf_redir_neigh *next_hop,
				   enum reason done)
{
	__u8 nobody[ETH_ALEN] = {};

	if ((skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST) &&
	    bpf_skb_store_bytes(skb, 0, nobody, ETH_ALEN, 0))
		return drop(skb, REWRITE_ERROR);
	return sent(skb, bpf_redirect_neigh(ifindex, next_hop, sizeof(*next_hop), 0), done);
}

/* As it is to a node on the link, which knows this one by the frame's source. */
static __always_inline int send_direct(struct __sk_buff *skb, const struct settings *config,
				       const struct node_value *node, bool ipv6, enum reason done)
{
	bool by_link_local = ipv6 || !ip_is_v4(&node->address);
	struct bpf_redir_neigh next_hop = {.nh_family = by_link_local ? FAMILY_IPV6 : FAMILY_IPV4};

	if (by_link_local)
		__builtin_memcpy(next_hop.ipv6_nh, &node->link_local, sizeof(next_hop.ipv6_nh));
	else
		next_hop.ipv4_nh = node->address.w[3];
	return send_to(skb, config->direct_ifindex, &next_hop, done);
}

/* How a process of this node marks in the destination of a frame what is to go without the tunnel, and where
 * to.
 */
struct link_mark {
	__be32 mark;
	__be16 number;
};

/* The node on the link that sent the frame, or NO_NODE. */
static __always_inline __u16 sender_of(struct __sk_buff *skb)
{
	struct neighbour_key key = {};
	__u32 *number;

	if (bpf_skb_load_bytes(skb, ETH_ALEN, key.mac, sizeof(key.mac)))
		return NO_NODE;
	number = bpf_map_lookup_elem(&neighbours, &key);
	return number ? *number : NO_NODE;
}

/* What a packet bore in the tunnel, and the end that it came from. False = it came by no tunnel. */
static __always_inline bool read_tunnel(struct __sk_buff *skb, __u32 *vni, struct ip *endpoint)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		*endpoint = ip_from_v4(bpf_htonl(key.remote_ipv4));
	} else {
		if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
			return false;
		__builtin_memcpy(endpoint, key.remote_ipv6, sizeof(*endpoint));
	}
	*vni = key.tunnel_id;
	return true;
}

/* The node that a packet came from. */
struct peer {
	struct ip endpoint;
	const struct node_value *on_link; /* NULL = it came out of the tunnel */
};

/* To the node that sent the packet, the way it came. */
static __always_inline int send_back(struct __sk_buff *skb, const struct packet *packet,
				     const struct settings *config, const struct peer *peer, enum reason done)
{
	if (peer->on_link && is_on_link(config, peer->on_link, packet->ipv6))
		return send_direct(skb, config, peer->on_link, packet->ipv6, done);
	return encapsulate(skb, VNI_BACK, &peer->endpoint, done);
}

/* Of a packet that came out of the tunnel from `endpoint`: that no node is there counts before `reason`. */
static __always_inline int drop_from(struct __sk_buff *skb, const struct ip *endpoint, enum reason reason)
{
	return drop(skb, node_number(endpoint) == NO_NODE ? UNKNOWN_NODE : reason);
}

/* The route to the world that the kernel has; route->mtu_result is then what its device carries, where the
 * kernel says so (0 = it does not). A packet that is too long for it has a route, and its sender is told. */
static __always_inline enum reason find_way(struct __sk_buff *skb, const struct settings *config, bool ipv6,
					    const struct ip *source, const struct ip *destination,
					    __u8 protocol, struct bpf_fib_lookup *route)
{
	__u32 device;
	long found;

	__builtin_memset(route, 0, sizeof(*route));
	route->l4_protocol = protocol;
	route->ifindex = config->tunnel_ifindex;
	if (ipv6) {
		route->family = FAMILY_IPV6;
		__builtin_memcpy(route->ipv6_src, source, sizeof(route->ipv6_src));
		__builtin_memcpy(route->ipv6_dst, destination, sizeof(route->ipv6_dst));
	} else {
		route->family = FAMILY_IPV4;
		route->ipv4_src = source->w[3];
		route->ipv4_dst = destination->w[3];
	}
	found = bpf_fib_lookup(skb, route, sizeof(*route), 0);
	device = route->ifindex;
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH &&
	    found != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return NO_ROUTE;
	return bpf_map_lookup_elem(&uplinks, &device) ? REASON_UNSPECIFIED : NOT_UPLINK;
}

/* The one for a translated packet. */
static __always_inline enum reason find_route(struct __sk_buff *skb, const struct packet *packet,
					      const struct settings *config, const struct ip *egress_ip,
					      struct bpf_fib_lookup *route)
{
	return find_way(skb, config, packet->ipv6, egress_ip, &packet->destination, packet->protocol, route);
}

/* Out by that route; the neighbour is resolved on the way. */
static __always_inline int send_by(struct __sk_buff *skb, const struct bpf_fib_lookup *route,
				   enum reason done)
{
	struct bpf_redir_neigh next_hop = {.nh_family = route->family};

	if (route->family == FAMILY_IPV6)
		__builtin_memcpy(next_hop.ipv6_nh, route->ipv6_dst, sizeof(next_hop.ipv6_nh));
	else
		next_hop.ipv4_nh = route->ipv4_dst;
	return send_to(skb, route->ifindex, &next_hop, done);
}

#define DELIVERED_HERE 0x7264 /* skb->tc_index of what a program sends to a pod: to_pod leaves it alone */

/* To a pod on this node, by its host-side device, with the Ethernet header that the host would write. */
static __always_inline int deliver(struct __sk_buff *skb, __u32 ifindex, const __u8 *pod_mac,
				   const __u8 *device_mac, enum reason done)
{
	if (bpf_skb_store_bytes(skb, 0, pod_mac, ETH_ALEN, 0) ||
	    bpf_skb_store_bytes(skb, ETH_ALEN, device_mac, ETH_ALEN, 0))
		return drop(skb, REWRITE_ERROR);
	skb->tc_index = DELIVERED_HERE;
	return sent(skb, bpf_redirect(ifindex, 0), done);
}

/* By the headers that `wrap` was asked for. */
static __always_inline int send_wrapped(struct __sk_buff *skb, struct scratch *room)
{
	if (bpf_skb_store_bytes(skb, 0, &room->outer, sizeof(room->outer), 0))
		return drop(skb, TUNNEL_ERROR);
	return send_by(skb, &room->route, room->into);
}

/* The verdict of a program whose judgement is `verdict`. */
static __always_inline int conclude(struct __sk_buff *skb, const struct settings *config, int verdict)
{
	struct scratch *room = read_scratch();

	if (verdict != INTO_TUNNEL)
		return verdict;
	if (!config || !room)
		return drop(skb, TUNNEL_ERROR);
	if (wrap(skb, config, room))
		return send_wrapped(skb, room);
	if (set_tunnel(skb, config, room->vni, &room->endpoint))
		return drop(skb, TUNNEL_ERROR);
	return sent(skb, bpf_redirect(config->tunnel_ifindex, 0), room->into);
}

#endif
