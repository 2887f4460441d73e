/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Tunnel packets (RFC 7348) that the programs make and take themselves, in place of the tunnel device. On the
 * wire they are the same, so each node and each packet is free to go either way. What is saved is the host's
 * stack: the device, its route look-up and the memory that describes a packet's tunnel, netfilter's hooks and
 * connection tracking, at both nodes.
 *
 * The device does what is rare: fragments, segments that a network card has put together, congestion marks,
 * IPv6 between the nodes, routes by another device than the nodes' own link.
 */
#ifndef ROUTERD_OUTER_H
#define ROUTERD_OUTER_H

#include "flows.h"

#include <linux/if_packet.h>

#define FAMILY_IPV4	   2
#define FAMILY_IPV6	   10
#define LOOPBACK_IFINDEX   1 /* in every network namespace; routes see it as the origin of the node's own */
#define VXLAN_HAS_VNI	   0x08000000U
#define OUTER_SOURCE_PORTS 49152 /* and up, as RFC 7348 asks for */
#define OUTER_TTL	   64
#define OUTER_LONGEST	   0xffff
#define OUTER_BYTES	   (sizeof(struct outer) - ETH_HLEN)
#define ECN_CE		   3
#define ECN_ECT_0	   2
#define LEFT_FOR	   (NS_PER_SECOND / 100)

#ifndef BPF_F_ADJ_ROOM_DECAP_L3_IPV4 /* Linux 6.3 */
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)
#endif

/* --- out ---------------------------------------------------------------------------------------- */

/* Spreads flows over paths and queues between two nodes. */
static __always_inline __be16 outer_source_port(const struct packet *packet)
{
	__u32 hash = (__u32)packet->source_port << 16 | packet->destination_port;

	hash ^= packet->source.w[3] ^ packet->destination.w[3] ^ packet->protocol;
	hash *= 0x9e3779b1U; /* 2^32 divided by the golden ratio */
	return bpf_htons(OUTER_SOURCE_PORTS | hash >> 18);
}

/* What a tunnel bears of congestion: RFC 6040, section 4.1, normal mode but for CE. `frame` is followed by
 * the packet's first two bytes. */
static __always_inline __u8 outer_ecn(const __u8 *frame, bool ipv6)
{
	__u8 ecn = (ipv6 ? frame[ETH_HLEN + 1] >> 4 : frame[ETH_HLEN + 1]) & 3;

	return ecn == ECN_CE ? ECN_ECT_0 : ecn;
}

static __always_inline __u16 header_checksum(const void *ip)
{
	const __be16 *words = ip;
	__u32 sum = 0;

	for (__u32 i = 0; i < sizeof(struct iphdr) / 2; i++)
		sum += words[i];
	return fold(sum);
}

/* `length`: of the outer packet. The frame is for the next hop later: what a pod sent to all of its link
 * would be dropped. */
static __always_inline void write_outer(struct scratch *room, const struct settings *config, __u32 length)
{
	struct outer *outer = &room->outer;

	__builtin_memset(outer, 0, sizeof(*outer));
	outer->frame.h_proto = bpf_htons(ETH_P_IP);
	outer->ip.version = 4;
	outer->ip.ihl = sizeof(outer->ip) / 4;
	outer->ip.tos = outer_ecn(room->frame, room->packet.ipv6);
	outer->ip.tot_len = bpf_htons(length);
	outer->ip.id = bpf_get_prandom_u32();
	outer->ip.ttl = OUTER_TTL;
	outer->ip.protocol = IPPROTO_UDP;
	outer->ip.saddr = config->node_address.w[3];
	outer->ip.daddr = room->endpoint.w[3];
	outer->ip.check = header_checksum(&outer->ip);
	outer->udp.source = outer_source_port(&room->packet);
	outer->udp.dest = bpf_htons(config->tunnel_port);
	outer->udp.len = bpf_htons(length - sizeof(outer->ip));
	outer->vxlan_flags = bpf_htonl(VXLAN_HAS_VNI);
	outer->vni = bpf_htonl(room->vni << 8);
	__builtin_memcpy(&outer->inner, room->frame, sizeof(outer->inner));
}

/* Whether the node's own packets to the endpoint leave by the link of nodes; room->route is then the route.
 * Of packets that will be cut into segments the shortest headers are counted. */
static __always_inline bool leaves_by_link(struct __sk_buff *skb, const struct settings *config,
					   struct scratch *room, __u32 length)
{
	struct bpf_fib_lookup *route = &room->route;
	long found;

	__builtin_memset(route, 0, sizeof(*route));
	route->family = FAMILY_IPV4;
	route->l4_protocol = IPPROTO_UDP;
	route->ifindex = LOOPBACK_IFINDEX;
	route->tot_len = skb->gso_size
			     ? skb->gso_size + sizeof(struct iphdr) + sizeof(struct tcphdr) + OUTER_BYTES
			     : length;
	route->ipv4_src = config->node_address.w[3];
	route->ipv4_dst = room->endpoint.w[3];
	found = bpf_fib_lookup(skb, route, sizeof(*route), 0);
	return (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) &&
	       route->ifindex == config->underlay_ifindex;
}

/* Whether the packet, as it is or in segments, is cut nowhere: the kernel cuts no packet that a program
 * sends. What may not be cut has been measured before. */
static __always_inline bool is_sent_whole(struct __sk_buff *skb, const struct scratch *room,
					  const struct settings *config)
{
	return room->packet.dont_fragment || skb->len <= config->tunnel_mtu + ETH_HLEN;
}

/* Puts the outer headers of room->tunnel on the packet, for room->route. False = it is left as it is, for the
 * device. */
static __always_inline bool wrap(struct __sk_buff *skb, const struct settings *config, struct scratch *room)
{
	const __u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
			    BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
			    BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN);
	__u32 length = skb->len - ETH_HLEN + OUTER_BYTES;

	if (!config->underlay_ifindex || !ip_is_v4(&room->endpoint) || length > OUTER_LONGEST ||
	    !is_sent_whole(skb, room, config) || !leaves_by_link(skb, config, room, length) ||
	    bpf_skb_load_bytes(skb, 0, room->frame, sizeof(room->frame)))
		return false;
	write_outer(room, config, length);
	return !bpf_skb_adjust_room(skb, OUTER_BYTES, BPF_ADJ_ROOM_MAC, flags);
}

/* --- in ----------------------------------------------------------------------------------------- */

static __always_inline bool is_tunnel_packet(const struct __sk_buff *skb, const struct packet *packet,
					     enum parsed parsed, const struct settings *config)
{
	return skb->ifindex == config->underlay_ifindex && parsed == PARSED_FLOW &&
	       packet->protocol == IPPROTO_UDP &&
	       packet->destination_port == bpf_htons(config->tunnel_port) &&
	       ip_equal(&packet->destination, &config->node_address);
}

/* As nearly all are: from a node, whole, without a checksum, and to be taken by this host. Segments that were
 * put together are not: a program cannot make the kernel forget that they were in a tunnel. Nor is what
 * expires: if a stack on this machine has sent it, and left its checksum to be computed, the error about it
 * would bear that. `hops` are the bytes of the packet that IPv6 and IPv4 count hops with. */
static __always_inline bool is_usual(struct __sk_buff *skb, const struct packet *packet,
				     const struct outer *outer, const __u8 *hops)
{
	__u16 inner = outer->inner.h_proto;

	return skb->pkt_type == PACKET_HOST && !skb->gso_size && packet->piece == WHOLE &&
	       packet->plain_header && packet->total_length == skb->len - ETH_HLEN &&
	       bpf_ntohs(outer->udp.len) == packet->total_length - sizeof(outer->ip) && !outer->udp.check &&
	       outer->vxlan_flags == bpf_htonl(VXLAN_HAS_VNI) && (outer->ip.tos & 3) != ECN_CE &&
	       ((inner == bpf_htons(ETH_P_IP) && hops[1] > 1) ||
		(inner == bpf_htons(ETH_P_IPV6) && hops[0] > 1));
}

/* When a packet like this was left to the device last. */
static __always_inline struct left *find_left(const struct packet *packet)
{
	__u32 place = (packet->source_port ^ packet->source.w[3]) * 0x9e3779b1U >> (32 - LEFT_SHIFT);

	return bpf_map_lookup_elem(&left_to_device, &place);
}

/* Takes the outer headers off. False = the packet is as it was, for the device. That one has a queue, so what
 * follows such a packet closely is left to it, too: none is to overtake. */
static __always_inline bool unwrap(struct __sk_buff *skb, const struct packet *packet, struct scratch *room)
{
	struct left *left = find_left(packet);
	struct outer *outer = &room->outer;
	__u64 time = now();
	__u8 hops[2];
	bool ipv6;

	if (!left || bpf_skb_load_bytes(skb, 0, outer, sizeof(*outer)) ||
	    bpf_skb_load_bytes(skb, sizeof(*outer) + offsetof(struct ipv6hdr, hop_limit), hops, sizeof(hops)))
		return false;
	if (!is_usual(skb, packet, outer, hops)) {
		left->at = time;
		return false;
	}
	if ((__s64)(time - left->at) < (__s64)LEFT_FOR)
		return false;
	ipv6 = outer->inner.h_proto == bpf_htons(ETH_P_IPV6);
	if (bpf_skb_adjust_room(skb, -(__s32)OUTER_BYTES, BPF_ADJ_ROOM_MAC,
				ipv6 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV6 : 0))
		return false;
	return true;
}

#endif
