// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The egress datapath.
 *
 *   pod -- from_pod (SNAT, the node's ports) -- VXLAN, VNI = group -- from_tunnel (its sender's port?)
 *    |                                                                     |
 *    |                                                                  uplink -- world
 *    |                                                                     |
 *    '---- from_tunnel (reverse NAT) ------------ VXLAN, back ------ from_uplink (port -> node)
 *
 * from_tunnel's work is done by from_uplink where that takes the outer headers off: see outer.h.
 * Where both nodes are on one link there need be no tunnel: see direct.h.
 *
 * All state of a flow is on the pod's own node; gateways keep none, so any gateway of a group carries any
 * packet of it, out and back.
 *
 * What is not ours goes on to the next program and the host's stack; what is ours leaves by a redirect or is
 * dropped with a counted reason. A selected pod's packet never falls back to the host's stack with a source
 * of its own.
 */
#include "collect.h"
#include "direct.h"
#include "handing.h"

/* What came out of a tunnel. */
static __always_inline int take_tunnelled(struct __sk_buff *skb, const struct settings *config,
					  struct packet *packet, const struct peer *peer, __u32 vni)
{
	enum parsed parsed = parse(skb, packet);
	__u16 sender;

	if (vni == VNI_PROBE)
		return take_probe(skb, packet, parsed, config, peer, node_number(&peer->endpoint));
	if (parsed == PARSED_MALFORMED)
		return drop_from(skb, &peer->endpoint, MALFORMED);
	if (parsed == PARSED_FRAGMENT && vni & VNI_BACK)
		parsed = follow_first(packet, FROM_WORLD);
	if (parsed == PARSED_BAD_FRAGMENT)
		return drop_from(skb, &peer->endpoint, BAD_FRAGMENT);
	if (parsed == PARSED_UNSUPPORTED || parsed == PARSED_NOT_IP)
		return drop_from(skb, &peer->endpoint, UNSUPPORTED_PROTOCOL);
	if (!(vni & VNI_BACK))
		return forward(skb, packet, parsed, config, peer,
			       bpf_map_lookup_elem(&egress_ips, &packet->source));
	sender = node_number(&peer->endpoint);
	if (sender == NO_NODE)
		return drop(skb, UNKNOWN_NODE);
	if ((vni & VNI_RELAYED) == VNI_RELAYED)
		return take_relayed(skb, packet, parsed, config, sender, vni & VNI_SEEN);
	if (parsed == PARSED_FRAGMENT)
		return drop(skb, FRAGMENT);
	if (packet->ttl == TRIAL_TTL)
		return hear_trial(skb, packet, parsed, sender, false);
	return return_to_pod(skb, packet, parsed, config, sender);
}

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	struct settings *config = read_settings();
	struct scratch *room = read_scratch();
	struct peer peer = {};
	__u32 vni;

	if (!config || !room)
		return drop(skb, TUNNEL_ERROR);
	if (!read_tunnel(skb, &vni, &peer.endpoint))
		return drop(skb, UNKNOWN_NODE);
	return conclude(skb, config, take_tunnelled(skb, config, &room->packet, &peer, vni));
}

/* What comes from a pod or an uplink has its tunnel key; probes of this node's own process get one here. */
SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
	struct settings *config;
	struct link_mark gateway;

	if (skb->ingress_ifindex)
		return NEXT;
	config = read_settings();
	if (!config || bpf_skb_load_bytes(skb, 0, &gateway, ETH_ALEN))
		return NEXT;
	if (gateway.mark == bpf_htonl(DIRECT_PROBE_MAC) || gateway.mark == bpf_htonl(DIRECT_TRIAL_MAC))
		return send_marked(skb, config, &gateway);
	if (gateway.mark == bpf_htonl(TRIAL_MAC))
		return send_trial_on(skb, config, bpf_ntohs(gateway.number));
	if (gateway.mark != bpf_htonl(PROBE_MAC))
		return NEXT;
	return send_probe(skb, config, bpf_ntohs(gateway.number));
}

/* A tunnel packet for this node; the device, and before it the guard, gets what is not taken here. Nothing
 * comes by a link from this node itself. */
static __always_inline int take_outer(struct __sk_buff *skb, const struct settings *config,
				      struct scratch *room)
{
	struct peer peer = {.endpoint = room->packet.source};

	if (node_number(&peer.endpoint) == NO_NODE || ip_equal(&peer.endpoint, &config->node_address) ||
	    !unwrap(skb, &room->packet, room))
		return NEXT;
	/* The destination stays this node's own: by one to a group the kernel would drop it (send_to). */
	if (bpf_skb_store_bytes(skb, ETH_ALEN, room->outer.inner.h_source, ETH_HLEN - ETH_ALEN, 0))
		return drop(skb, REWRITE_ERROR);
	return take_tunnelled(skb, config, &room->packet, &peer, bpf_ntohl(room->outer.vni) >> 8);
}

static __always_inline int enter(struct __sk_buff *skb, const struct settings *config, struct scratch *room)
{
	struct packet *packet = &room->packet;
	struct egress_ip_value *address;
	enum parsed parsed = parse(skb, packet);
	int verdict;

	if (is_tagged(skb) || parsed == PARSED_NOT_IP || parsed == PARSED_MALFORMED)
		return NEXT; /* a tagged frame is for a device on top of this one */
	if (is_tunnel_packet(skb, packet, parsed, config))
		return take_outer(skb, config, room);
	address = bpf_map_lookup_elem(&egress_ips, &packet->destination);
	if (skb->ifindex == config->direct_ifindex) {
		verdict = take_direct(skb, packet, parsed, config, address);
		if (verdict != NOT_DIRECT)
			return verdict;
	}
	if (!address)
		return NEXT;
	if (parsed == PARSED_FRAGMENT)
		parsed = follow_first(packet, FROM_WORLD);
	return hand_back(skb, packet, parsed, config, address, BY_UPLINK, 0);
}

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct settings *config = read_settings();
	struct scratch *room = read_scratch();

	if (skb->pkt_type == PACKET_OTHERHOST)
		return NEXT; /* a switch that floods brings it to all of its link */
	/* Or the compiler keeps the field's address, which the verifier refuses. */
	asm volatile("" : "+r"(skb));
	return config && room ? conclude(skb, config, enter(skb, config, room)) : NEXT;
}

static __always_inline int leave_pod(struct __sk_buff *skb, const struct settings *config)
{
	struct scratch *room = read_scratch();
	struct packet *packet;
	struct pod_key pod_key = {.ifindex = skb->ifindex};
	struct flow_value *flow = NULL;
	struct pod_value *pod;
	struct flow_key key;
	struct rule *rule;
	enum parsed parsed;
	__u32 rank = RANK_SERVES;
	int verdict;

	if (!room)
		return drop(skb, MALFORMED);
	packet = &room->packet;
	if (is_tagged(skb))
		return drop_if_strict(skb, VLAN_TAGGED);
	parsed = parse(skb, packet);
	if (!config || parsed == PARSED_NOT_IP)
		return NEXT;
	if (parsed == PARSED_FRAGMENT)
		parsed = follow_first(packet, skb->ifindex);
	if (parsed == PARSED_MALFORMED || parsed == PARSED_BAD_FRAGMENT)
		return drop_if_strict(skb, parsed == PARSED_MALFORMED ? MALFORMED : BAD_FRAGMENT);
	if (stays_on_link(packet))
		return NEXT;
	if (parsed == PARSED_FLOW && forges_tunnel(packet, config))
		return drop(skb, TUNNEL_PORT);
	if (packet->handed_in && config->network_policy)
		return hand_in(skb, packet, config);
	key = flow_from_pod(packet, skb->ifindex);
	verdict = parsed == PARSED_FLOW ? resume(skb, packet, config, &key, &flow, &rank) : BEGIN_ANEW;
	if (verdict == SEND_OUT)
		goto send;
	if (verdict != BEGIN_ANEW)
		return verdict;
	pod_key.address = packet->source;
	pod = bpf_map_lookup_elem(&pods, &pod_key);
	if (!pod)
		return judge_stranger(skb, packet);
	if (is_inside(&packet->destination))
		return NEXT;
	if (parsed == PARSED_ICMP_ERROR) {
		verdict = report_error(skb, packet, pod->policy_set, &flow);
	} else {
		rule = begins_by(skb, packet, parsed, pod, &verdict);
		if (!rule)
			return verdict;
		if (config->network_policy)
			return hand_in(skb, packet, config);
		verdict = begin_flow(skb, packet, rule, config, &key, pod, &flow, &rank);
	}
	if (verdict != SEND_OUT)
		return verdict;
send:
	return send_out(skb, packet, parsed, config, flow, rank, NULL);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct settings *config = read_settings();

	return conclude(skb, config, leave_pod(skb, config));
}

/* What came by a bridge does not tell by which of its ports: from_pod has vouched for the source. */
static __always_inline int leave_host(struct __sk_buff *skb, const struct settings *config)
{
	struct scratch *room = read_scratch();
	struct flow_value *flow = NULL;
	struct packet *packet;
	struct home home = {};
	struct flow_key key;
	struct rule *rule;
	enum parsed parsed;
	__u32 rank = RANK_SERVES;
	int verdict;

	if (!config || !was_handed_in(skb, config))
		return NEXT;
	skb->mark &= ~config->forward_mark;
	count(skb, CAME_OUT);
	if (!room)
		return drop(skb, STRAY_MARK);
	packet = &room->packet;
	parsed = parse(skb, packet);
	if (parsed == PARSED_FRAGMENT)
		parsed = follow_first(packet, skb->ifindex);
	if (parsed == PARSED_FRAGMENT)
		return drop(skb, FRAGMENT);
	if (parsed != PARSED_FLOW || is_tagged(skb) || !find_home(&packet->source, &home) ||
	    is_inside(&packet->destination))
		return drop(skb, STRAY_MARK);
	key = flow_from_pod(packet, home.ifindex);
	verdict = resume(skb, packet, config, &key, &flow, &rank);
	if (verdict == BEGIN_ANEW) {
		rule = begins_by(skb, packet, parsed, home.pod, &verdict);
		if (!rule)
			return verdict == NEXT ? drop(skb, STRAY_MARK) : verdict;
		verdict = begin_flow(skb, packet, rule, config, &key, home.pod, &flow, &rank);
	}
	return verdict == SEND_OUT ? send_out(skb, packet, parsed, config, flow, rank, &home) : verdict;
}

SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	struct settings *config;

	if (!skb->mark) /* nearly all that leaves, what is established among it */
		return NEXT;
	config = read_settings();
	return conclude(skb, config, leave_host(skb, config));
}

/* The policy set of the selected pod that sent it, known by its device's MAC, else by an address of that. */
static __always_inline __u32 policies_beneath(struct __sk_buff *skb, const struct packet *packet)
{
	struct pod_mac_key frame = {.ifindex = skb->ifindex};
	struct pod_key key = {.ifindex = skb->ifindex, .address = packet->source};
	struct pod_value *pod;
	__u32 *policy_set;

	if (bpf_skb_load_bytes(skb, ETH_ALEN, frame.mac, sizeof(frame.mac)))
		return 0;
	policy_set = bpf_map_lookup_elem(&pod_macs, &frame);
	if (policy_set)
		return *policy_set;
	pod = bpf_map_lookup_elem(&pods, &key);
	return pod ? pod->policy_set : 0;
}

/* A device of the node that a pod's own lies upon (macvlan, ipvlan, VLAN): nothing here has seen, or can
 * translate, what comes from it. So nothing of a selected pod's goes where its policies lead, answers among
 * it. A tag that a VLAN puts is beside the frame. */
SEC("tc")
int to_beneath(struct __sk_buff *skb)
{
	struct scratch *room = read_scratch();
	struct packet *packet;
	enum parsed parsed;
	__u32 policy_set;

	if (!room)
		return NEXT;
	packet = &room->packet;
	parsed = parse(skb, packet);
	if (parsed == PARSED_NOT_IP || stays_on_link(packet) || is_inside(&packet->destination))
		return NEXT;
	policy_set = policies_beneath(skb, packet);
	if (parsed != PARSED_FLOW)
		parsed = PARSED_FRAGMENT; /* whatever its ports are */
	if (!policy_set || !decide(policy_set, packet, parsed))
		return NEXT;
	return drop(skb, UNHOOKED);
}

/* Flows begun from outside the cluster are recorded, so that the selected pod's answers go back the way they
 * came. */
SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct settings *config = read_settings();
	struct scratch *room = read_scratch();
	struct pod_key pod_key = {.ifindex = skb->ifindex};
	struct flow_value begun = {};
	struct flow_value *flow;
	struct pod_value *pod;
	struct packet *packet;
	struct flow_key key;
	struct shares shares;
	__u8 again;
	long error;

	if (skb->tc_index == DELIVERED_HERE) {
		skb->tc_index = 0; /* the pod may be a router */
		return NEXT;
	}
	if (!config || !room)
		return NEXT;
	packet = &room->packet;
	if (is_tagged(skb) || parse(skb, packet) != PARSED_FLOW)
		return NEXT; /* from_pod looks into no tagged frame of another pod's */
	key = flow_to_pod(packet, skb->ifindex);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && flow->group)
		return NEXT; /* an answer that was translated here */
	if (flow && !(opens_connection(packet) && is_over(flow->seen_out, flow->seen_in))) {
		again = flow->seen_out && !opens_connection(packet) ? SEEN_AGAIN : 0;
		refresh(&flow->last_seen, &flow->seen_in, seen_of(packet) | again);
		return NEXT;
	}
	if (flow)
		forget_flow(&key, flow);
	pod_key.address = packet->destination;
	pod = bpf_map_lookup_elem(&pods, &pod_key);
	if (!pod || !pod->policy_set || is_inside(&packet->source) || !begins_from_outside(packet))
		return NEXT;
	/* What is not recorded is dropped: its answer would be sent through the gateway. */
	if (config->hands_over)
		return drop(skb, HANDING_OVER);
	if (!find_uses(&shares, key.ifindex))
		return drop(skb, OUTSIDE_QUOTA);
	if (refuses_outside(config, &shares))
		return drop(skb, OUTSIDE_QUOTA);
	begun.last_seen = now();
	begun.seen_in = seen_of(packet);
	error = bpf_map_update_elem(&flows, &key, &begun, BPF_NOEXIST);
	if (!error)
		count_outside(&shares, 1);
	return !error || error == -EEXIST ? NEXT : drop(skb, FLOW_TABLE_FULL);
}

/* A trial of a port set, one for each run; the agent runs it with BPF_PROG_TEST_RUN. Never attached. */
SEC("tc")
int send_trial(struct __sk_buff *skb)
{
	struct settings *config = read_settings();

	return config ? put_trial(skb, config) : drop(skb, TUNNEL_ERROR);
}

/* One round; the agent runs it with BPF_PROG_TEST_RUN and reads `collected`. Never attached. */
SEC("tc")
int collect(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct round round = {.settings = read_settings(), .time = now()};
	struct use *all = use_of(ALL_PODS);

	round.result = bpf_map_lookup_elem(&collected, &zero);
	if (!round.settings || !round.result)
		return NEXT;
	/* The clock is a coarse one, and each round has a time of its own. */
	if (round.time <= round.result->round)
		round.time = round.result->round + 1;
	__builtin_memset(round.result, 0, sizeof(*round.result));
	round.result->round = round.time;
	round.pressed = all && all->pressed;
	bpf_for_each_map_elem(&flows, collect_flow, &round, 0);
	bpf_for_each_map_elem(&reverse, collect_port, &round, 0);
	bpf_for_each_map_elem(&granules, collect_granule, &round, 0);
	bpf_for_each_map_elem(&uses, collect_use, &round, 0);
	put_sum(&round);
	return NEXT;
}

/* "GPL" is what the kernel asks of programs that call its helpers; the source is dual-licensed as the first
 * line says. */
char LICENSE[] SEC("license") = "GPL";
