/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The work of a pod's own node: which rule, port and gateway a flow has, and the way back to the pod. */
#ifndef ROUTERD_SOURCE_H
#define ROUTERD_SOURCE_H

#include "fragments.h"
#include "probe.h"

/* No verdicts: kept within from_pod. */
#define BEGIN_ANEW -100
#define SEND_OUT   -101

/* Without its first, the ports of a fragment are not known: it may belong to any of its protocol. What IPv6
 * says of its protocol then its receiver does not look at (RFC 8200, section 4.5), and behind more extension
 * headers than are walked may be any. ICMP is both families'. */
static __always_inline bool rule_matches(const struct rule *rule, const struct packet *packet,
					 enum parsed parsed)
{
	__u8 protocol = packet->protocol == PROTOCOL_ICMP6 ? IPPROTO_ICMP : packet->protocol;
	bool any = packet->ipv6 && (parsed == PARSED_FRAGMENT || is_extension(protocol));
	__u16 port = bpf_ntohs(packet->destination_port);

	if (any)
		return true;
	if (rule->protocol && rule->protocol != protocol)
		return false;
	return !rule->first_port || parsed == PARSED_FRAGMENT ||
	       (port >= rule->first_port && port <= rule->last_port);
}

/* The rule that decides about the packet, or NULL. */
static __always_inline struct rule *decide(__u32 policy_set, const struct packet *packet, enum parsed parsed)
{
	struct policy_key key = {.prefixlen = HOST_PREFIX,
				 .policy_set = policy_set | (packet->ipv6 ? PREFIX_IPV6 : 0),
				 .destination = packet->destination};
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

static __always_inline __u32 read_epoch(void)
{
	__u32 zero = 0, *value = bpf_map_lookup_elem(&epoch, &zero);

	return value ? *value : 0;
}

/* None of ours; nor are the fragments that follow a first one. */
static __always_inline int leave_alone(struct __sk_buff *skb, const struct packet *packet)
{
	if (packet->piece == FIRST_PIECE)
		remember_first(packet, skb->ifindex, packet->id);
	return NEXT;
}

/* Whether a packet may begin a flow of its own: an echo reply answers a question, and has no port to map. */
static __always_inline bool may_begin(enum parsed parsed, const struct packet *packet)
{
	return parsed == PARSED_FLOW && (!is_icmp(packet) || packet->asks);
}

/* Where a pod of this node is. */
struct home {
	__u32 ifindex;
	const struct pod_value *pod;
};

/* An ICMP error about a pod's packet, by the way that it came: by the pod's device, or from there through the
 * host, which has made one hop of it. */
static __always_inline int answer_pod(struct __sk_buff *skb, const struct packet *packet,
				      const struct settings *config, const struct home *home,
				      enum error_kind kind, __u32 mtu)
{
	if (!home)
		return answer_back(skb, packet, config, kind, mtu);
	if (answer_error(skb, packet, config, kind, mtu))
		return drop(skb, TOO_BIG);
	return deliver(skb, home->ifindex, home->pod->pod_mac, home->pod->device_mac, TOO_BIG_ANSWERED);
}

/* Out with the flow's egress IP and port: by a gateway, or by this node where it is one, or the policy says
 * so. Answers may come by any gateway, and either way. One hop, like any router, unless the host has made it:
 * `home` is then where the pod is, else NULL. `rank`: of the gateway. Before the epoch says so the flow may
 * bear a way that is none by now: the tunnel is one.
 */
static __always_inline int send_out(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				    const struct settings *config, const struct flow_value *flow, __u32 rank,
				    const struct home *home)
{
	struct node_value *gateway = node_of(flow->gateway);
	struct ip egress_ip = flow->egress_ip, endpoint;
	struct scratch *room = read_scratch();
	__be16 port = flow->egress_port;
	__u8 ttl = home ? packet->ttl : packet->ttl - 1;
	__u32 id = packet->sent_id;
	__u32 group = flow->group, device = config->tunnel_ifindex, mtu;
	enum reason refusal;
	bool local;

	if (!gateway || !room || ip_is_none(&gateway->address))
		return drop(skb, NO_GATEWAY);
	local = gateway->local || flow->exit_local;
	endpoint = gateway->address;
	/* Without a branch: the verifier would follow each. */
	room->directly = flow->direct & gateway->direct & (config->direct_ifindex > 0);
	if (cut_padding(skb, packet))
		return drop(skb, REWRITE_ERROR);
	if (!home && packet->ttl <= 1)
		return answer_back(skb, packet, config, ERROR_TTL_EXPIRED, 0);
	if (local) {
		refusal = find_route(skb, packet, config, &egress_ip, &room->route);
		if (refusal)
			return drop(skb, refusal);
		device = room->route.ifindex;
	} else if (REREAD(room->directly)) {
		device = config->direct_ifindex;
	}
	if (exceeds(skb, packet, config, device, &mtu))
		return answer_pod(skb, packet, config, home, ERROR_TOO_BIG, mtu);
	if (packet->piece == FIRST_PIECE) {
		id = fresh_id(packet, group, &egress_ip, port);
		if (!remember_first(packet, skb->ifindex, id))
			return drop(skb, FRAGMENT);
	}
	if (parsed == PARSED_ICMP_ERROR
		? rewrite_error(skb, packet, &room->quoted, SIDE_SOURCE, &egress_ip, port, ttl)
		: rewrite_side(skb, packet, SIDE_SOURCE, &egress_ip, port, ttl, &room->crc))
		return drop(skb, REWRITE_ERROR);
	if (packet->piece && rewrite_id(skb, packet, id))
		return drop(skb, REWRITE_ERROR);
	if (clamp_mss(skb, packet, config->flow_mtu))
		return drop(skb, REWRITE_ERROR);
	if (local)
		return send_by(skb, &room->route, TRANSLATED);
	if (REREAD(room->directly))
		return send_direct(skb, config, gateway, packet->ipv6,
				   (rank & ~RANK_UNTRIED) == RANK_SILENT ? SENT_UNHEARD : SENT_DIRECT);
	return encapsulate(skb, group, &endpoint,
			   (rank & ~RANK_UNTRIED) == RANK_SILENT ? SENT_UNHEARD : ENCAPSULATED);
}

/* Finds a port for the flow and records both; fills in `flow`. REASON_UNSPECIFIED = done. */
static __always_inline enum reason open_flow(const struct packet *packet, const struct flow_key *key,
					     struct scratch *room, const struct group_value *group,
					     const struct pod_value *pod, const struct shares *shares,
					     __u64 gateway)
{
	struct flow_value *flow = &room->flow;
	struct reverse_value *claimed = &room->port;
	struct search search = {
	    .room = room,
	    .group = group,
	    .wanted = bpf_ntohs(key->pod_port),
	    .start = bpf_get_prandom_u32(),
	    .offset = bpf_get_prandom_u32(),
	    .family = packet->ipv6,
	    .gateway = gateway,
	    .error = -EEXIST,
	};
	struct reverse_value *port;
	long error, tries;

	__builtin_memset(&room->port_key, 0, sizeof(room->port_key));
	__builtin_memset(claimed, 0, sizeof(*claimed));
	room->port_key.remote = key->remote;
	room->port_key.remote_port = key->remote_port;
	room->port_key.protocol = key->protocol;
	flow->id = ((__u64)bpf_get_prandom_u32() << 30 ^ bpf_get_prandom_u32()) & OWNER_ID;
	claimed->owner = OWNER_LIVE | flow->id;
	claimed->last_seen = flow->last_seen;
	claimed->pod = key->pod;
	claimed->ifindex = key->ifindex;
	claimed->group = flow->group;
	claimed->pod_port = key->pod_port;
	claimed->gateway = flow->gateway;
	__builtin_memcpy(claimed->pod_mac, pod->pod_mac, sizeof(pod->pod_mac));
	__builtin_memcpy(claimed->device_mac, pod->device_mac, sizeof(pod->device_mac));
	tries = bpf_loop(PORT_ATTEMPTS, try_port, &search, 0);
	if (!search.open)
		return NO_PORT_SET;
	if (tries > LONG_SEARCH * group->block_count || tries == PORT_ATTEMPTS)
		note_pressure(flow->group);
	if (search.error == -EEXIST)
		take_oldest(&search);
	if (search.error)
		return search.error == -EEXIST ? NO_FREE_PORT : REVERSE_TABLE_FULL;
	flow->egress_ip = room->port_key.egress_ip;
	flow->egress_port = room->port_key.egress_port;
	count_port(shares, key->ifindex, search.before);
	error = bpf_map_update_elem(&flows, key, flow, BPF_NOEXIST);
	if (!error) {
		count_flow(shares, 1);
		return REASON_UNSPECIFIED;
	}
	port = bpf_map_lookup_elem(&reverse, &room->port_key);
	if (port && is_owned_by(port, flow->id))
		rest(port, flow->id, 0);
	if (error != -EEXIST)
		return FLOW_TABLE_FULL;
	return NO_FREE_PORT; /* replaced by the winner's below */
}

/* The rule by which the packet may begin a flow; NULL = *verdict is what becomes of it. */
static __always_inline struct rule *begins_by(struct __sk_buff *skb, const struct packet *packet,
					      enum parsed parsed, const struct pod_value *pod, int *verdict)
{
	struct rule *rule = pod->policy_set ? decide(pod->policy_set, packet, parsed) : NULL;

	if (!rule)
		*verdict = pod->policy_set ? leave_alone(skb, packet) : NEXT;
	else if (is_nowhere(&packet->destination))
		*verdict = drop(skb, BOGUS_DESTINATION);
	else if (packet->piece == LATER_PIECE)
		*verdict = drop(skb, FRAGMENT);
	else if (!may_begin(parsed, packet))
		*verdict = drop(skb, UNSUPPORTED_PROTOCOL);
	else
		return rule;
	return NULL;
}

/* The first packet of a flow decides, and its verdict is kept: later changes of policy do not cut what runs.
 * SEND_OUT: as *begun says, by a gateway of *rank. */
static __always_inline int begin_flow(struct __sk_buff *skb, const struct packet *packet,
				      const struct rule *rule, const struct settings *config,
				      const struct flow_key *key, const struct pod_value *pod,
				      struct flow_value **begun, __u32 *rank)
{
	struct scratch *room = read_scratch();
	struct group_value *group;
	struct flow_value *winner, *flow;
	enum reason refusal;
	struct shares shares;
	struct echoes echoes = {.family = packet->ipv6};

	if (config->hands_over)
		return drop(skb, HANDING_OVER);
	if (!room)
		return drop(skb, NO_GROUP);
	flow = &room->flow;
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->last_seen = now();
	flow->seen_out = seen_of(packet);
	flow->epoch = read_epoch();
	flow->group = rule->group;
	flow->exit_local = rule->exit_local;
	group = flow->group ? bpf_map_lookup_elem(&groups, &flow->group) : NULL;
	if (!group)
		return drop(skb, NO_GROUP);
	flow->gateway = pick_gateway(config, group, key, NO_NODE, &echoes, &flow->epoch, rank);
	flow->direct = echoes.direct;
	if (flow->gateway == NO_NODE)
		return drop(skb, NO_GATEWAY);
	if (*rank & RANK_UNTRIED)
		return drop(skb, echoes.open ? UNTRIED_PORT_SET : NO_PORT_SET);
	if (!find_uses(&shares, key->ifindex))
		return drop(skb, FLOW_QUOTA);
	refusal = refuse_flow(config, &shares);
	if (refusal)
		return drop(skb, refusal);
	refusal = open_flow(packet, key, room, group, pod, &shares, echoes.picked);
	if (refusal) {
		winner = bpf_map_lookup_elem(&flows, key);
		if (!winner || !winner->group)
			return drop(skb, refusal);
		flow = winner;
	}
	*begun = flow;
	return SEND_OUT;
}

/* The flow's gateway while it serves and is of the group, else another one of these. What is of the group is
 * asked again only when groups, or the ways to nodes, have changed since. */
static __always_inline enum reason keep_gateway(const struct settings *config, const struct flow_key *key,
						struct flow_value *flow, __u32 *rank)
{
	__u32 latest = read_epoch(), number = flow->group;
	struct echoes echoes = {.egress_ip = flow->egress_ip, .port = bpf_ntohs(flow->egress_port)};
	struct group_value *group;
	__u16 gateway;

	if (flow->epoch == latest && serves(config, flow->gateway | (flow->direct ? WAY_DIRECT : 0)))
		return REASON_UNSPECIFIED;
	group = bpf_map_lookup_elem(&groups, &number);
	if (!group)
		return NO_GROUP;
	gateway = pick_gateway(config, group, key, flow->gateway, &echoes, &latest, rank);
	if (gateway == NO_NODE)
		return NO_GATEWAY;
	if (flow->gateway != gateway)
		flow->gateway = gateway;
	if (flow->direct != echoes.direct)
		flow->direct = echoes.direct;
	if (flow->epoch != latest)
		flow->epoch = latest;
	return REASON_UNSPECIFIED;
}

/* BEGIN_ANEW when the flow's group, or its port, is its own no more, or it has had none yet; else SEND_OUT,
 * or a verdict. */
static __always_inline int continue_flow(struct __sk_buff *skb, const struct packet *packet,
					 const struct settings *config, const struct flow_key *key,
					 struct flow_value *flow, __u32 *rank)
{
	enum reason refusal;
	__u8 seen = seen_of(packet);

	if (flow->seen_out & SEEN_BEFORE)
		return BEGIN_ANEW;
	if (!flow->group) {
		refresh(&flow->last_seen, &flow->seen_out, seen);
		return leave_alone(skb, packet);
	}
	if ((flow->seen_out & SEEN_END) && !own_port(key, flow))
		return BEGIN_ANEW;
	refusal = keep_gateway(config, key, flow, rank);
	if (refusal)
		return refusal == NO_GROUP ? BEGIN_ANEW : drop(skb, refusal);
	refresh(&flow->last_seen, &flow->seen_out, seen);
	if (seen & (SEEN_FIN | SEEN_RST))
		note_end_out(key, flow);
	return SEND_OUT;
}

/* A connection that opens again on the ports of one that has ended is a new flow, and decided anew. So is one
 * that the pod opens where another one was opened to it: a SYN answers nothing. */
static __always_inline bool reopens(const struct flow_key *key, const struct flow_value *flow,
				    const struct packet *packet)
{
	struct reverse_value *port;

	if (!opens_connection(packet))
		return false;
	if (!flow->group)
		return true;
	port = own_port(key, flow);
	return !port || is_over(flow->seen_out, port->seen_in);
}

/* The flow is over; its port is free at once for whoever begins here next from the same pod's port. */
static __always_inline void end_flow(const struct flow_key *key, const struct flow_value *flow)
{
	struct reverse_value *port = flow->group ? own_port(key, flow) : NULL;

	if (port)
		rest(port, flow->id, rest_after(flow->seen_out));
	forget_flow(key, flow);
}

/* What becomes of the packet by the flow that is known, *found; BEGIN_ANEW where there is none, or it has
 * ended. */
static __always_inline int resume(struct __sk_buff *skb, const struct packet *packet,
				  const struct settings *config, const struct flow_key *key,
				  struct flow_value **found, __u32 *rank)
{
	struct flow_value *flow = bpf_map_lookup_elem(&flows, key);
	int verdict;

	if (!flow)
		return BEGIN_ANEW;
	verdict =
	    reopens(key, flow, packet) ? BEGIN_ANEW : continue_flow(skb, packet, config, key, flow, rank);
	if (verdict == BEGIN_ANEW)
		end_flow(key, flow);
	*found = flow;
	return verdict;
}

/* An ICMP error that a pod sends about an answer that it got (its own "port unreachable"), to who sent that:
 * SEND_OUT, as *about says. To anybody else it is what any packet is that no flow is known of. */
static __always_inline int report_error(struct __sk_buff *skb, const struct packet *packet, __u32 policy_set,
					struct flow_value **about)
{
	struct rule *rule = policy_set ? decide(policy_set, packet, PARSED_UNSUPPORTED) : NULL;
	struct scratch *room = read_scratch();
	struct flow_value *flow;
	struct flow_key key;

	if (!room || !parse_quote(skb, packet, &room->quoted) ||
	    !ip_equal(&room->quoted.destination, &packet->source) ||
	    !ip_equal(&room->quoted.source, &packet->destination))
		return rule ? drop(skb, UNSUPPORTED_PROTOCOL) : NEXT;
	key = flow_to_pod(&room->quoted, skb->ifindex);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && !flow->group)
		return NEXT;
	if (!flow)
		return rule ? drop(skb, UNSUPPORTED_PROTOCOL) : NEXT;
	*about = flow;
	return SEND_OUT;
}

/* A pod may not forge tunnel packets: a masquerading CNI would lend it the node's address. */
static __always_inline bool forges_tunnel(const struct packet *packet, const struct settings *config)
{
	return packet->protocol == IPPROTO_UDP &&
	       packet->destination_port == bpf_htons(config->tunnel_port) &&
	       node_number(&packet->destination) != NO_NODE;
}

/* Where no pod is selected, what is not understood is none of our business. */
static __always_inline int drop_if_strict(struct __sk_buff *skb, enum reason reason)
{
	__u32 device = skb->ifindex;

	return bpf_map_lookup_elem(&strict_devices, &device) ? drop(skb, reason) : NEXT;
}

/* An address that is not known on the device. What it begins with a selected pod would be taken for begun
 * outside: the answers to whomever it names would leave untranslated. Another node's pods meet the guard
 * there. */
static __always_inline int judge_stranger(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 device = skb->ifindex;

	if (bpf_map_lookup_elem(&strict_devices, &device))
		return drop(skb, SPOOFED_SOURCE);
	if (bpf_map_lookup_elem(&pod_devices, &packet->destination) && !is_inside(&packet->source))
		return drop(skb, FOREIGN_SOURCE);
	return NEXT;
}

/* What routers do not forward (RFC 4291, section 2.5.6, and link-local multicast): neighbour discovery lives
 * by it. */
static __always_inline bool stays_on_link(const struct packet *packet)
{
	__u32 head = bpf_ntohl(packet->destination.w[0]);

	return packet->ipv6 && ((head & 0xffc00000) == 0xfe800000 || (head & 0xff0f0000) == 0xff020000);
}

/* Whether a packet to the pod begins a flow (an answer to one of the pod's own finds its flow before this is
 * asked). */
static __always_inline bool begins_from_outside(const struct packet *packet)
{
	if (packet->protocol == IPPROTO_TCP)
		return opens_connection(packet);
	return !is_icmp(packet) || packet->asks;
}

/* --- back to the pod -------------------------------------------------------------------------- */

/* A Service's address, which any node may announce. */
static __always_inline bool is_vip(const struct ip *egress_ip)
{
	struct egress_ip_value *address = bpf_map_lookup_elem(&egress_ips, egress_ip);

	return address && address->host_below == VIP_PORTS;
}

/* Whether the node is a gateway of the port's group, or may be one that announces its VIP. */
static __always_inline bool brings_answers(struct reverse_value *port, const struct ip *egress_ip, __u16 node)
{
	if (port->gateway == node)
		return true;
	if (!is_gateway_of(port->group, node) && !is_vip(egress_ip))
		return false;
	port->gateway = node;
	return true;
}

/* The remote is told by this node's own route why its packet does not get to the pod: a gateway takes nothing
 * through the tunnel that bears a node's address. */
static __always_inline int tell_remote(struct __sk_buff *skb, const struct packet *packet,
				       const struct settings *config, enum error_kind kind, __u32 mtu)
{
	struct scratch *room = read_scratch();
	__u8 protocol = packet->ipv6 ? PROTOCOL_ICMP6 : IPPROTO_ICMP;

	if (!room ||
	    find_way(skb, config, packet->ipv6, icmp_source(config, packet), &packet->source, protocol,
		     &room->route) ||
	    answer_error(skb, packet, config, kind, mtu))
		return drop(skb, kind == ERROR_TOO_BIG ? TOO_BIG : TTL_EXPIRED);
	return send_by(skb, &room->route, kind == ERROR_TOO_BIG ? TOO_BIG_ANSWERED : TTL_ANSWERED);
}

/* To an egress IP and a port of this node, brought by the gateway `node`: an answer, or an error about what a
 * pod has sent (path MTU discovery and traceroute live by these). */
static __always_inline int return_to_pod(struct __sk_buff *skb, const struct packet *packet,
					 enum parsed parsed, const struct settings *config, __u16 node)
{
	struct reverse_key key = {.protocol = packet->protocol};
	struct scratch *room = read_scratch();
	struct reverse_value *port;
	__u8 pod_mac[ETH_ALEN], device_mac[ETH_ALEN];
	__be16 pod_port;
	__u32 ifindex, mtu;
	struct ip pod;

	if (!room)
		return drop(skb, UNKNOWN_FLOW);
	if (parsed == PARSED_ICMP_ERROR) {
		if (!parse_quote(skb, packet, &room->quoted) ||
		    !ip_equal(&room->quoted.source, &packet->destination))
			return drop(skb, UNKNOWN_FLOW);
		key.egress_ip = room->quoted.source;
		key.remote = room->quoted.destination;
		key.egress_port = room->quoted.source_port;
		key.remote_port = room->quoted.destination_port;
		key.protocol = room->quoted.protocol;
	} else {
		key.egress_ip = packet->destination;
		key.remote = packet->source;
		key.egress_port = packet->destination_port;
		key.remote_port = packet->source_port;
	}
	port = bpf_map_lookup_elem(&reverse, &key);
	if (!port || (owner_state(port->owner) != OWNER_LIVE && owner_state(port->owner) != OWNER_RESTING) ||
	    !brings_answers(port, &key.egress_ip, node))
		return drop(skb, UNKNOWN_FLOW);
	if (packet->ttl <= 1)
		return tell_remote(skb, packet, config, ERROR_TTL_EXPIRED, 0);
	ifindex = port->ifindex;
	if (exceeds(skb, packet, config, ifindex, &mtu))
		return tell_remote(skb, packet, config, ERROR_TOO_BIG, mtu);
	if (packet->piece == FIRST_PIECE && !remember_first(packet, FROM_WORLD, packet->id))
		return drop(skb, FRAGMENT);
	pod = port->pod;
	pod_port = port->pod_port;
	__builtin_memcpy(pod_mac, port->pod_mac, sizeof(pod_mac));
	__builtin_memcpy(device_mac, port->device_mac, sizeof(device_mac));
	if (parsed != PARSED_ICMP_ERROR) {
		__u8 seen = seen_of(packet);

		refresh(&port->last_seen, &port->seen_in, seen);
		if (seen & SEEN_FIN)
			note_end_in(&key, port);
		else if (owner_state(port->owner) == OWNER_RESTING && !(seen & SEEN_RST))
			rest_anew(&key, port);
	}
	if (parsed == PARSED_ICMP_ERROR
		? rewrite_error(skb, packet, &room->quoted, SIDE_DESTINATION, &pod, pod_port, packet->ttl - 1)
		: rewrite_side(skb, packet, SIDE_DESTINATION, &pod, pod_port, packet->ttl - 1, &room->crc))
		return drop(skb, REWRITE_ERROR);
	return deliver(skb, ifindex, pod_mac, device_mac, DELIVERED);
}

#endif
