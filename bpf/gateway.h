/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A gateway's work, without state of any flow: out, if the port is the sender's; back, to the node of the
 * port. */
#ifndef ROUTERD_GATEWAY_H
#define ROUTERD_GATEWAY_H

#include "relay.h"
#include "source.h"

/* The node that has the port. */
static __always_inline __u16 node_of_port(const struct egress_ip_value *address, __be16 port)
{
	return address->nodes[(bpf_ntohs(port) >> GRANULE_SHIFT) & (GRANULES - 1)];
}

/* The port on an egress IP's side that a packet from it (SIDE_SOURCE) or to it bears; of an ICMP error, the
 * one in its quote. False = it bears none. */
static __always_inline bool egress_port(struct __sk_buff *skb, const struct packet *packet,
					enum parsed parsed, enum side side, __be16 *port)
{
	struct scratch *room = read_scratch();

	if (parsed == PARSED_FLOW) {
		*port = side == SIDE_SOURCE ? packet->source_port : packet->destination_port;
		return true;
	}
	if (!room || parsed != PARSED_ICMP_ERROR || !parse_quote(skb, packet, &room->quoted))
		return false;
	if (!ip_equal(address_of(&room->quoted, side == SIDE_SOURCE ? SIDE_DESTINATION : SIDE_SOURCE),
		      address_of(packet, side)))
		return false;
	*port = side == SIDE_SOURCE ? room->quoted.destination_port : room->quoted.source_port;
	return true;
}

/* An error about a translated packet goes back the way it came. */
static __always_inline int answer_node(struct __sk_buff *skb, const struct packet *packet,
				       const struct settings *config, enum error_kind kind, __u32 mtu,
				       const struct peer *peer)
{
	if (answer_error(skb, packet, config, kind, mtu))
		return drop(skb, kind == ERROR_TOO_BIG ? TOO_BIG : TTL_EXPIRED);
	return send_back(skb, packet, config, peer, kind == ERROR_TOO_BIG ? TOO_BIG_ANSWERED : TTL_ANSWERED);
}

/* Whether the port is of the node with this tunnel endpoint. */
static __always_inline bool owns(const struct ip *endpoint, const struct egress_ip_value *address,
				 __be16 port)
{
	__u16 number = node_of_port(address, port);
	struct node_value *owner = number == NO_NODE ? NULL : node_of(number);

	return owner && ip_equal(&owner->address, endpoint);
}

/* From another node, bearing an egress IP as its source: `address`, or NULL if it is none of this gateway's.
 * That the port's node is there says who sent it: asking `nodes` for every packet costs three more lines of
 * memory, which no cache holds where there are many nodes. */
static __always_inline int forward(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				   const struct settings *config, const struct peer *peer,
				   const struct egress_ip_value *address)
{
	const struct ip *endpoint = &peer->endpoint;
	struct scratch *room = read_scratch();
	enum reason refusal;
	__be16 port;
	__u32 mtu;

	if (!address || !room)
		return drop_from(skb, endpoint, UNKNOWN_EGRESS_IP);
	if (packet->piece && !owns(endpoint, address, port_of_id(packet)))
		return drop_from(skb, endpoint, FOREIGN_PORT);
	if (packet->piece != LATER_PIECE) {
		if (!egress_port(skb, packet, parsed, SIDE_SOURCE, &port))
			return drop_from(skb, endpoint, UNSUPPORTED_PROTOCOL);
		if (!owns(endpoint, address, port))
			return drop_from(skb, endpoint, FOREIGN_PORT);
	}
	if (packet->ttl == TRIAL_TTL)
		return echo_trial(skb, packet, parsed, config, room, peer);
	if (place_of(&packet->destination))
		return drop(skb, BOGUS_DESTINATION);
	if (packet->ttl <= 1)
		return answer_node(skb, packet, config, ERROR_TTL_EXPIRED, 0, peer);
	refusal = find_route(skb, packet, config, &packet->source, &room->route);
	if (refusal)
		return drop(skb, refusal);
	if (exceeds_route(skb, packet, config, &room->route, &mtu))
		return answer_node(skb, packet, config, ERROR_TOO_BIG, mtu, peer);
	if (decrement_ttl(skb, packet))
		return drop(skb, REWRITE_ERROR);
	return send_by(skb, &room->route, TRANSLATED);
}

/* By which way a packet to an egress IP came: from the world, or from another gateway that does not know
 * whose the port is. */
enum way { BY_UPLINK, BY_GATEWAY };

/* What is addressed to an egress IP and to no flow of ours: the host's, if the address is its own or a
 * Service's. */
static __always_inline int not_ours(struct __sk_buff *skb, const struct egress_ip_value *address,
				    enum way way, enum reason reason)
{
	return address->host_below && way == BY_UPLINK ? NEXT : drop(skb, reason);
}

static __always_inline bool is_hosts(const struct egress_ip_value *address, __be16 port)
{
	return bpf_ntohs(port) < address->host_below;
}

/* The world is told why a packet does not go on; what another gateway handed on has passed these tests there.
 */
static __always_inline int answer_world(struct __sk_buff *skb, const struct packet *packet,
					const struct settings *config, enum way way, enum error_kind kind,
					__u32 mtu)
{
	if (way == BY_GATEWAY)
		return drop(skb, kind == ERROR_TOO_BIG ? TOO_BIG : TTL_EXPIRED);
	return answer_back(skb, packet, config, kind, mtu);
}

/* The node that the port's packets go to: the one that has it, or another gateway (*relays) where none is
 * known. NULL = nobody. */
static __always_inline struct node_value *next_stop(const struct packet *packet, enum parsed parsed,
						    const struct settings *config,
						    const struct egress_ip_value *address, __be16 port,
						    enum way way, bool *relays)
{
	__u16 number = node_of_port(address, port);
	struct node_value *node = node_of(number);

	*relays = number == NO_NODE || !node || ip_is_none(&node->address);
	if (!*relays)
		return node;
	if (way == BY_GATEWAY || is_hosts(address, port) || !may_be_answer(packet, parsed, port))
		return NULL;
	number = other_gateway(address->group, packet, config);
	node = number == NO_NODE ? NULL : node_of(number);
	return node && !ip_is_none(&node->address) ? node : NULL;
}

/* A later fragment whose first has come by another gateway, if by any. `seen`: by how many so far. */
static __always_inline int ask_next(struct __sk_buff *skb, const struct packet *packet,
				    const struct settings *config, const struct egress_ip_value *address,
				    enum way way, __u32 seen)
{
	__u32 number = address->group, mtu;
	struct group_value *group = bpf_map_lookup_elem(&groups, &number);
	struct node_value *node = NULL;
	struct ip endpoint;
	__u16 next;

	seen++;
	if (group && seen < group->gateway_count) {
		next = next_gateway(group, config);
		node = next == NO_NODE ? NULL : node_of(next);
	}
	if (!node || ip_is_none(&node->address))
		return not_ours(skb, address, way, FRAGMENT);
	endpoint = node->address;
	if (exceeds(skb, packet, config, config->tunnel_ifindex, &mtu))
		return drop(skb, TOO_BIG);
	return relay(skb, config, &endpoint, seen);
}

/* Whether answers reach the node without the tunnel: where there is no other way, or as it has just said. */
static __always_inline bool is_reached_directly(const struct settings *config, const struct packet *packet,
						const struct node_value *node, __u16 number)
{
	struct liveness *known;

	if (!is_on_link(config, node, packet->ipv6))
		return false;
	if (!config->tunnels)
		return true;
	known = liveness_of(number | WAY_DIRECT);
	return known && known->asked && (__s32)(clock_of_asks() - known->asked) <= (__s32)asks_last(config);
}

/* To an egress IP. `seen`: see ask_next. */
static __always_inline int hand_back(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				     const struct settings *config, const struct egress_ip_value *address,
				     enum way way, __u32 seen)
{
	struct node_value *node;
	struct ip endpoint;
	struct scratch *room = read_scratch();
	__u32 device = config->tunnel_ifindex, mtu;
	bool relays;
	__be16 port;

	if (!room)
		return drop(skb, NO_MAPPING);
	if (parsed == PARSED_BAD_FRAGMENT)
		return not_ours(skb, address, way, BAD_FRAGMENT);
	if (parsed == PARSED_FRAGMENT)
		return ask_next(skb, packet, config, address, way, seen);
	if (!egress_port(skb, packet, parsed, SIDE_DESTINATION, &port))
		return not_ours(skb, address, way, UNSUPPORTED_PROTOCOL);
	node = next_stop(packet, parsed, config, address, port, way, &relays);
	if (!node && is_hosts(address, port)) {
		if (packet->piece == FIRST_PIECE)
			remember_first(packet, FROM_WORLD, packet->id);
		return not_ours(skb, address, way, NO_MAPPING);
	}
	if (!node)
		return drop(skb, NO_MAPPING);
	if (packet->ttl <= 1)
		return answer_world(skb, packet, config, way, ERROR_TTL_EXPIRED, 0);
	if (node->local)
		return return_to_pod(skb, packet, parsed, config, node_of_port(address, port));
	endpoint = node->address;
	room->directly = !relays && is_reached_directly(config, packet, node, node_of_port(address, port));
	if (packet->piece == FIRST_PIECE && !remember_first(packet, FROM_WORLD, packet->id))
		return drop(skb, FRAGMENT);
	if (REREAD(room->directly))
		device = config->direct_ifindex;
	if (exceeds(skb, packet, config, device, &mtu))
		return answer_world(skb, packet, config, way, ERROR_TOO_BIG, mtu);
	if (relays)
		return relay(skb, config, &endpoint, 0);
	if (clamp_mss(skb, packet, config->flow_mtu) || decrement_ttl(skb, packet))
		return drop(skb, REWRITE_ERROR);
	if (REREAD(room->directly))
		return send_direct(skb, config, node, packet->ipv6, REVERSED_DIRECT);
	return encapsulate(skb, VNI_BACK, &endpoint, REVERSED);
}

/* An answer that another gateway of the egress IP has relayed: as if it had come by this node's own uplink,
 * but that it is relayed no further, or as a fragment to those gateways that have not seen it. A Service's
 * address is announced by nodes that are no gateways, too. */
static __always_inline int take_relayed(struct __sk_buff *skb, const struct packet *packet,
					enum parsed parsed, const struct settings *config, __u16 sender,
					__u32 seen)
{
	struct egress_ip_value *address = bpf_map_lookup_elem(&egress_ips, &packet->destination);

	if (!address)
		return drop(skb, UNKNOWN_EGRESS_IP);
	if (address->host_below != VIP_PORTS && !is_gateway_of(address->group, sender))
		return drop(skb, FOREIGN_RELAY);
	return hand_back(skb, packet, parsed, config, address, BY_GATEWAY, seen);
}

#endif
