/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which gateways live: unaffiliated BFD echo (RFC 9747) by the way that packets take.
 *
 * `routerd bfd` puts a probe on the tunnel device for each gateway and interval. to_tunnel notes its token
 * and gives it the gateway's tunnel key; from_tunnel of the gateway sends it back, with what the gateway says
 * of itself; from_tunnel of the node that sent it notes the answer. from_pod asks what was noted. So no user
 * space takes part in the switch, neither here nor at the gateway, and who sends no probes finds nobody dead.
 *
 * Where both nodes are on one link, other probes go without the tunnel, straight from to_tunnel to the link
 * and back by the gateway's from_uplink: each way has its own liveness. By these a gateway learns, too, that
 * the node gets what comes that way, and sends answers so.
 *
 * A probe is a UDP packet from a tunnel endpoint to itself, without options. It is judged by programs alone,
 * and has no checksum in either family.
 */
#ifndef ROUTERD_PROBE_H
#define ROUTERD_PROBE_H

#include "trial.h"

/* Of a way to a node: its number, or with WAY_DIRECT. */
static __always_inline struct liveness *liveness_of(__u32 way)
{
	return bpf_map_lookup_elem(&liveness, &way);
}

static __always_inline struct probes *probes_of(__u32 way)
{
	return bpf_map_lookup_elem(&probes, &way);
}

/* About milliseconds, of which 32 bits last for 52 days. */
static __always_inline __u32 clock_of_asks(void)
{
	return now() >> 20;
}

/* For how long it holds that the other node gets what we send: until as many probes as make a gateway silent,
 * and half an interval, have passed. `probe_grace` is half an interval of our own. */
static __always_inline __u32 asks_last(const struct settings *config)
{
	return ((2 * config->probe_multiplier + 1) * config->probe_grace) >> 20;
}

/* --- who is alive ------------------------------------------------------------------------------- */

/* From the best to the worst. */
enum rank {
	RANK_SERVES,
	RANK_LEAVES, /* it answers, and asks to be left alone */
	RANK_SILENT,
	RANK_UNTRIED = 4, /* with each of these: it has not echoed the port set, see trial.h */
	RANK_NO_WAY = 8,
};

/* It answers, and says nothing against being used: what is so of nearly all packets. */
static __always_inline bool serves(const struct settings *config, __u32 way)
{
	struct liveness *known = liveness_of(way);

	return !config->probe_multiplier ||
	       (known && known->sent - known->heard < config->probe_multiplier && !known->service);
}

/* As many probes as make a gateway silent have got no answer, and the last of them has had its time for one.
 */
static __always_inline bool is_silent(const struct settings *config, __u32 way, const struct liveness *known)
{
	__u32 heard = known->heard, missing = known->sent - heard;
	struct probes *past;
	__u64 at, grace;

	if (missing < config->probe_multiplier)
		return false;
	past = probes_of(way);
	if (missing >= PROBES_KEPT || !past)
		return true;
	at = past->kept[(heard + config->probe_multiplier) & (PROBES_KEPT - 1)].at;
	grace = 2 * past->round_trip;
	if (grace < config->probe_grace)
		grace = config->probe_grace;
	return (__s64)(now() - at) >= (__s64)grace;
}

static __always_inline __u32 rank_of(const struct settings *config, __u32 way)
{
	struct liveness *known = liveness_of(way);

	if (!config->probe_multiplier || !known)
		return RANK_SERVES;
	if (is_silent(config, way, known))
		return RANK_SILENT;
	return known->service ? RANK_LEAVES : RANK_SERVES;
}

static __always_inline __u32 flow_hash(const struct flow_key *key)
{
	const __u32 *words = (const __u32 *)key;
	__u32 hash = 0;

	for (__u32 i = 0; i < sizeof(*key) / sizeof(*words); i++) {
		hash = (hash ^ words[i]) * 0x9e3779b1;
		hash ^= hash >> 15;
	}
	return hash;
}

/* MurmurHash3's last step: each bit of the result depends on all. */
static __always_inline __u32 mix(__u32 hash)
{
	hash = (hash ^ hash >> 16) * 0x85ebca6b;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* How much a flow prefers a gateway: rendezvous hashing, so that only flows of a gateway that goes move. No
 * two gateways have the same, as a mixed number can be unmixed. */
static __always_inline __u32 preference(__u32 hash, __u16 number)
{
	return mix(hash ^ number * 0x9e3779b1U);
}

struct choice {
	const struct settings *config;
	const struct group_value *group;
	struct pick *pick;
	__u64 echoed; /* by which gateways, as `block.echoed` */
	__u32 hash;   /* of the flow */
	__u32 latest; /* epoch */
	__u16 kept;
	__u16 excluded;
	__u32 by_tunnel; /* nothing else will do */
};

/* How good a way to a gateway is. This node itself is alive for its pods, and needs no way. */
static __always_inline __u32 rank_way(const struct choice *choice, const struct node_value *node,
				      __u16 number, __u32 place, bool direct)
{
	__u32 bit = direct ? place + ECHOED_DIRECT : place;
	__u32 tried = choice->echoed >> bit & 1 ? 0 : RANK_UNTRIED;

	if (node->local)
		return direct ? RANK_NO_WAY
			      : (choice->config->out_of_service ? RANK_LEAVES : RANK_SERVES) | tried;
	if (direct ? choice->by_tunnel || !is_on_link(choice->config, node, choice->pick->ipv6)
		   : !choice->by_tunnel && !choice->config->tunnels)
		return RANK_NO_WAY;
	return rank_of(choice->config, direct ? number | WAY_DIRECT : number) | tried;
}

/* Of each gateway both ways, the tunnel first. */
static long weigh_way(__u32 index, void *context)
{
	struct choice *choice = context;
	struct pick *pick = choice->pick;
	const struct gateway *gateway;
	__u32 place = index >> 1 & (MAX_GATEWAYS - 1), rank;
	bool direct = index & 1;
	struct node_value *node;
	__u64 score;

	if (place >= choice->group->gateway_count)
		return 1;
	gateway = &choice->group->gateways[place];
	node = node_of(gateway->node);
	if (!node || !gateway->up || gateway->node == choice->excluded)
		return 0;
	rank = rank_way(choice, node, gateway->node, place, direct);
	score = gateway->node == choice->kept ? 1ULL << 32 : preference(choice->hash, gateway->node);
	score = (score | (__u64)(MAX_GATEWAYS - gateway->order) << 33) << 1 | direct;
	if (rank == RANK_NO_WAY ||
	    (pick->node != NO_NODE && (rank > pick->rank || (rank == pick->rank && score <= pick->score))))
		return 0;
	pick->node = gateway->node;
	pick->direct = direct;
	pick->place = 1ULL << (direct ? place + ECHOED_DIRECT : place);
	pick->epoch = choice->latest + gateway->order;
	if (!direct && choice->echoed >> (place + ECHOED_DIRECT) & 1 &&
	    is_on_link(choice->config, node, choice->pick->ipv6))
		pick->epoch++; /* the other way was good, and may be again */
	pick->rank = rank;
	pick->score = score;
	return 0;
}

/* The best is room->pick. `end`: an address of the flow's family. */
static __always_inline void choose(struct choice *choice, struct scratch *room, const struct ip *end)
{
	__builtin_memset(&room->pick, 0, sizeof(room->pick));
	room->pick.ipv6 = !ip_is_v4(end);
	choice->pick = &room->pick;
	bpf_loop(2 * MAX_GATEWAYS, weigh_way, choice, 0);
}

/* The gateway of a flow in the blocks that `echoes` names: of the best the first in order; where all are
 * first the one that it has, else the one that it prefers. NO_NODE = there is none. *rank says how good it
 * is. *epoch is the latest one, and then what the flow is to bear: another one if its gateway stands in for
 * the first, or the tunnel for the way without it, so that it asks with each packet and goes back as soon as
 * that one is good. */
static __always_inline __u16 pick_gateway(const struct settings *config, const struct group_value *group,
					  const struct flow_key *key, __u16 kept, struct echoes *echoes,
					  __u32 *epoch, __u32 *rank)
{
	struct scratch *room = read_scratch();
	struct choice choice = {
	    .config = config,
	    .group = group,
	    .hash = flow_hash(key),
	    .kept = kept,
	    .latest = *epoch,
	};

	if (!room)
		return NO_NODE;
	echoes->group = group;
	bpf_loop(MAX_BLOCKS, add_echoes, echoes, 0);
	choice.echoed = echoes->by;
	choose(&choice, room, &key->pod);
	echoes->picked = room->pick.place;
	echoes->direct = room->pick.direct;
	*rank = room->pick.rank;
	*epoch = room->pick.epoch;
	return room->pick.node;
}

/* --- probes ------------------------------------------------------------------------------------- */

static __always_inline __u32 probe_offset(bool ipv6)
{
	return IP_OFFSET + (ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct udphdr);
}

/* Reads the probe in a packet that another node sent; false = it is none. */
static __always_inline bool read_probe(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				       struct probe *probe)
{
	__u32 offset = probe_offset(packet->ipv6);

	return parsed == PARSED_FLOW && packet->piece == WHOLE && packet->protocol == IPPROTO_UDP &&
	       packet->plain_header && packet->ttl == PROBE_TTL &&
	       packet->destination_port == bpf_htons(PROBE_PORT) &&
	       ip_equal(&packet->source, &packet->destination) && skb->len == offset + sizeof(*probe) &&
	       !bpf_skb_load_bytes(skb, offset, probe, sizeof(*probe)) && probe->token;
}

static __always_inline bool lacks_way_out(struct __sk_buff *skb, const struct settings *config,
					  struct bpf_fib_lookup *route)
{
	struct ip any = {};

	return (!ip_is_none(&config->way_out4) &&
		find_way(skb, config, false, &any, &config->way_out4, IPPROTO_UDP, route)) ||
	       (!ip_is_none(&config->way_out6) &&
		find_way(skb, config, true, &any, &config->way_out6, IPPROTO_UDP, route));
}

/* Back to the node that sent it, and to nobody else. */
static __always_inline int reflect(struct __sk_buff *skb, const struct packet *packet,
				   const struct settings *config, struct scratch *room,
				   const struct peer *peer, __u16 sender)
{
	struct liveness *known = liveness_of(sender | WAY_DIRECT);

	if (!ip_equal(&packet->destination, &peer->endpoint))
		return drop(skb, BAD_PROBE);
	if (peer->on_link && known && room->probe.service == BOTH_WAYS)
		known->asked = clock_of_asks();
	room->probe.kind = PROBE_REPLY;
	room->probe.service = config->out_of_service;
	if (lacks_way_out(skb, config, &room->route))
		room->probe.service |= SERVICE_NO_ROUTE;
	if (bpf_skb_store_bytes(skb, probe_offset(packet->ipv6), &room->probe, sizeof(room->probe), 0))
		return drop(skb, REWRITE_ERROR);
	if (peer->on_link)
		return is_on_link(config, peer->on_link, packet->ipv6)
			   ? send_direct(skb, config, peer->on_link, packet->ipv6, PROBE_REFLECTED)
			   : drop(skb, BAD_PROBE); /* it is to find out that this node does not send so */
	return encapsulate(skb, VNI_PROBE, &peer->endpoint, PROBE_REFLECTED);
}

/* The answer of a gateway to one of the last probes. It is taken once. */
static __always_inline int hear(struct __sk_buff *skb, const struct probe *probe, __u32 way)
{
	struct liveness *known = liveness_of(way);
	struct probes *past = probes_of(way);
	__u32 sent;
	__u64 took;

	if (!known || !past)
		return drop(skb, BAD_PROBE);
	sent = known->sent;
	for (__u32 back = 0; back < PROBES_KEPT; back++) {
		struct sent_probe *kept = &past->kept[(sent - back) & (PROBES_KEPT - 1)];

		if (kept->token != probe->token)
			continue;
		kept->token = 0;
		took = bpf_ktime_get_ns() - kept->at;
		past->round_trip = past->answered ? past->round_trip - past->round_trip / 8 + took / 8 : took;
		past->answered++;
		if ((__s32)(sent - back - known->heard) > 0) {
			known->service = probe->service;
			known->heard = sent - back;
		}
		return drop(skb, PROBE_HEARD); /* nobody else is to get it */
	}
	return drop(skb, BAD_PROBE);
}

/* What came as a probe from the node `sender`. */
static __always_inline int take_probe(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				      const struct settings *config, const struct peer *peer, __u16 sender)
{
	struct scratch *room = read_scratch();

	if (sender == NO_NODE)
		return drop(skb, UNKNOWN_NODE);
	if (!room || !read_probe(skb, packet, parsed, &room->probe))
		return drop(skb, BAD_PROBE);
	if (room->probe.kind == PROBE_REQUEST)
		return reflect(skb, packet, config, room, peer, sender);
	if (room->probe.kind == PROBE_REPLY)
		return hear(skb, &room->probe, sender | (peer->on_link ? WAY_DIRECT : 0));
	return drop(skb, BAD_PROBE);
}

/* Notes the probe as the next of its way. False = there is no room. */
static __always_inline bool note_sent(__u32 way, __u64 token)
{
	struct liveness *known = liveness_of(way);
	struct probes *past = probes_of(way);
	struct sent_probe *kept;

	if (!past) {
		struct probes none = {};

		bpf_map_update_elem(&probes, &way, &none, BPF_NOEXIST);
		past = probes_of(way);
	}
	if (!past || !known)
		return false;
	kept = &past->kept[(known->sent + 1) & (PROBES_KEPT - 1)];
	kept->token = token;
	kept->at = bpf_ktime_get_ns();
	known->sent++;
	return true;
}

/* As `wrap`, of a packet on its way into the tunnel device that no program has read. */
static __always_inline bool wrap_own(struct __sk_buff *skb, const struct settings *config,
				     struct scratch *room, const struct ip *endpoint, __u32 vni,
				     enum reason done)
{
	__builtin_memset(&room->packet, 0, sizeof(room->packet));
	room->packet.ipv6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	room->endpoint = *endpoint;
	room->vni = vni;
	room->into = done;
	return wrap(skb, config, room);
}

/* A probe on its way into the tunnel device, from this node's own process. What the device sends is a copy,
 * which knows no socket: the guard holds what bears one for a process's forgery. So the process is told that
 * the device had no room (ENOBUFS); what it put there is taken. */
static __always_inline int send_probe(struct __sk_buff *skb, const struct settings *config, __u16 number)
{
	bool ipv6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	struct node_value *node = node_of(number);
	__u32 offset = probe_offset(ipv6);
	struct scratch *room = read_scratch();
	__be32 passed = bpf_htonl(PROBE_MAC | 1); /* the copy is not taken for a probe to be sent */
	struct ip endpoint;

	if (!room || !node || ip_is_none(&node->address) || skb->len != offset + sizeof(room->probe) ||
	    bpf_skb_load_bytes(skb, offset, &room->probe, sizeof(room->probe)) || !room->probe.token)
		return drop(skb, BAD_PROBE);
	endpoint = node->address;
	if (!note_sent(number, room->probe.token))
		return drop(skb, TUNNEL_ERROR);
	if (wrap_own(skb, config, room, &endpoint, VNI_PROBE, PROBE_SENT))
		return send_wrapped(skb, room);
	if (set_tunnel(skb, config, VNI_PROBE, &endpoint) ||
	    bpf_skb_store_bytes(skb, 0, &passed, sizeof(passed), 0) ||
	    bpf_clone_redirect(skb, skb->ifindex, 0))
		return drop(skb, TUNNEL_ERROR);
	return drop(skb, PROBE_SENT);
}

/* A trial on its way into the tunnel device. */
static __always_inline int send_trial_on(struct __sk_buff *skb, const struct settings *config, __u16 number)
{
	struct node_value *node = node_of(number);
	struct scratch *room = read_scratch();
	struct ip endpoint;

	if (!room || !node ||
	    bpf_skb_load_bytes(skb, skb->len - sizeof(room->trial), &room->trial, sizeof(room->trial)))
		return drop(skb, BAD_TRIAL);
	endpoint = node->address;
	if (wrap_own(skb, config, room, &endpoint, room->trial.group, TRIAL_SENT))
		return send_wrapped(skb, room);
	if (set_tunnel(skb, config, room->trial.group, &endpoint))
		return drop(skb, TUNNEL_ERROR);
	count(skb, TRIAL_SENT);
	return NEXT;
}

/* What is to go without the tunnel, as it is: a trial, or a probe, which says whether answers come that way.
 */
static __always_inline int send_marked(struct __sk_buff *skb, const struct settings *config,
				       const struct link_mark *mark)
{
	bool ipv6 = skb->protocol == bpf_htons(ETH_P_IPV6),
	     probes = mark->mark == bpf_htonl(DIRECT_PROBE_MAC);
	__u16 number = bpf_ntohs(mark->number);
	__u32 offset = probe_offset(ipv6), way = number | WAY_DIRECT;
	struct node_value *node = node_of(number);
	struct liveness *known = liveness_of(way);
	struct scratch *room = read_scratch();

	if (!room || !known || !node || !is_on_link(config, node, ipv6))
		return drop(skb, probes ? BAD_PROBE : BAD_TRIAL);
	if (!probes)
		return send_direct(skb, config, node, ipv6, TRIAL_SENT);
	if (skb->len != offset + sizeof(room->probe) ||
	    bpf_skb_load_bytes(skb, offset, &room->probe, sizeof(room->probe)) || !room->probe.token)
		return drop(skb, BAD_PROBE);
	room->probe.service = known->heard && serves(config, way) ? BOTH_WAYS : 0;
	if (!note_sent(way, room->probe.token) ||
	    bpf_skb_store_bytes(skb, offset, &room->probe, sizeof(room->probe), 0))
		return drop(skb, REWRITE_ERROR);
	return send_direct(skb, config, node, ipv6, PROBE_SENT);
}

#endif
