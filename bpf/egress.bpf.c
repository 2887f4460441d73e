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
#include "rewrite.h"

#include <linux/pkt_cls.h>

#define NEXT	    TC_ACT_UNSPEC /* the same number as TCX_NEXT */
#define GROUP_GONE  -100	  /* no verdict: kept within from_pod */
#define FAMILY_IPV4 2
#define FAMILY_IPV6 10
#define HOST_PREFIX 128
#define LOCAL_NODE  ((struct ip){})

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

static __always_inline bool in_cluster(const struct ip *address)
{
	struct cidr_key key = {.prefixlen = HOST_PREFIX, .address = *address};

	return bpf_map_lookup_elem(&cluster, &key);
}

static __always_inline bool is_node(const struct ip *address)
{
	return bpf_map_lookup_elem(&nodes, address);
}

/* --- tunnel */

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
	struct bpf_tunnel_key key = {
	    .tunnel_id = group, .remote_ipv4 = bpf_ntohl(endpoint->w[3]), .tunnel_ttl = 64};

	if (clamp_mss(skb, packet, config->tunnel_mtu))
		return drop(skb, REWRITE_ERROR);
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
		return drop(skb, TUNNEL_ERROR);
	return sent(skb, bpf_redirect(config->tunnel_ifindex, 0), done);
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

/* A reply from a gateway whose flow has been collected here: the gateway still knows it, so it goes on.
 * Without this, `to_pod` would take the reply for the beginning of a flow from outside, and the pod's next
 * packet would be left alone. A full table is no obstacle: `to_pod` drops the reply then. */
static __always_inline void restore_flow(const struct flow_key *key, __u32 group)
{
	struct flow_value flow = {.last_seen = now(), .group = group};

	if (!bpf_map_lookup_elem(&flows, key))
		bpf_map_update_elem(&flows, key, &flow, BPF_NOEXIST);
}

/* To a pod on this node, by its host-side device, with the Ethernet header that the host would write. */
static __always_inline int deliver(struct __sk_buff *skb, const struct local_pod *pod, enum reason done)
{
	if (bpf_skb_store_bytes(skb, 0, pod->pod_mac, ETH_ALEN, 0) ||
	    bpf_skb_store_bytes(skb, ETH_ALEN, pod->device_mac, ETH_ALEN, 0))
		return drop(skb, REWRITE_ERROR);
	return sent(skb, bpf_redirect(pod->ifindex, 0), done);
}

/* --- gateway */

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

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	struct settings *config = read_settings();
	struct bpf_tunnel_key key = {};
	struct local_pod *pod;
	struct flow_key flow;
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
	if (pod && parsed == PARSED_FLOW) {
		flow = flow_to_pod(&packet);
		restore_flow(&flow, key.tunnel_id);
	}
	if (pod && (parsed == PARSED_FLOW || parsed == PARSED_ICMP_ERROR))
		return deliver(skb, pod, DELIVERED);
	if (parsed == PARSED_MALFORMED)
		return drop(skb, MALFORMED);
	if (parsed == PARSED_FRAGMENT)
		return drop(skb, FRAGMENT);
	if (!may_begin(parsed, &packet))
		return drop(skb, UNSUPPORTED_PROTOCOL);
	if (in_cluster(&packet.destination)) /* a reply whose pod has gone */
		return drop(skb, UNKNOWN_POD);
	return translate(skb, &packet, config, key.tunnel_id, &node);
}

/* A packet whose destination is rewritten to the pod's goes on to the pod: here, or through the tunnel to its
 * node. `flow`: the pod's, if the packet is of one. */
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
	if (flow)
		restore_flow(flow, mapping->group);
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
	__u32 inner = packet->l4_offset + sizeof(struct icmphdr);
	__u32 checksum = packet->l4_offset + CHECKSUM_OFFSET_ICMP;
	struct reverse_value *mapping;
	__be32 old_address, new_address;
	__be16 old_port, new_port;
	struct packet quoted = {};
	struct iphdr header;
	__u32 port_at;
	__be16 ports[2];

	if (bpf_skb_load_bytes(skb, inner, &header, sizeof(header)) || header.ihl < 5)
		return not_ours(skb, address, MALFORMED);
	quoted.protocol = header.protocol;
	quoted.source = ip_from_v4(header.saddr);
	quoted.destination = ip_from_v4(header.daddr);
	quoted.l4_offset = inner + header.ihl * 4;
	port_at = port_offset(&quoted, SIDE_SOURCE);
	if (bpf_skb_load_bytes(skb, port_at, ports, sizeof(ports)))
		return not_ours(skb, address, MALFORMED);
	old_port = ports[0];
	mapping = find_reverse(&quoted.source, &quoted.destination, old_port,
			       header.protocol == IPPROTO_ICMP ? 0 : ports[1], header.protocol);
	if (!mapping)
		return not_ours(skb, address, NO_MAPPING);
	if (packet->ttl <= 1)
		return drop(skb, TTL_EXPIRED);
	old_address = header.saddr;
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
	return return_to_pod(skb, packet, config, mapping, NULL);
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

/* --- source node */

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
		return drop_if_strict(skb, SPOOFED_SOURCE);
	if (parsed == PARSED_FLOW && forges_tunnel(&packet, config))
		return drop(skb, TUNNEL_PORT);
	pod_key.address = packet.source;
	pod = bpf_map_lookup_elem(&pods, &pod_key);
	if (!pod)
		return drop_if_strict(skb, SPOOFED_SOURCE);
	if (in_cluster(&packet.destination))
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
	if (!pod || in_cluster(&packet.source))
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

/* --- collection */

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
