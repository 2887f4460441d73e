/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Collection of idle state, in the kernel: user space only starts a round. Flows go by their time-outs, and
 * take their port to its rest; ports go a round after they have rested, so that nobody still writes them.
 */
#ifndef ROUTERD_COLLECT_H
#define ROUTERD_COLLECT_H

#include "source.h"

struct bpf_map; /* the callbacks get it and do not look at it */

/* Where a pod, or all of them, come near their share, what nobody has answered goes after so long. A
 * handshake is through by then; who asks again begins anew. What began outside goes first. */
#define OUTSIDE_GIVES_WAY (2 * NS_PER_SECOND)
#define POD_GIVES_WAY	  (5 * NS_PER_SECOND)

struct round {
	struct settings *settings;
	struct collected *result;
	__u64 time;
	bool pressed; /* some pod is */
	struct use sum;
};

static __always_inline bool is_of_icmp(__u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == PROTOCOL_ICMP6;
}

static __always_inline __u64 idle_limit(const struct settings *settings, __u8 protocol, __u8 seen_out,
					__u8 seen_in)
{
	__u8 either = seen_out | seen_in;
	__u32 seconds = settings->udp_seconds;

	if (is_of_icmp(protocol))
		seconds = settings->icmp_seconds;
	if (protocol == IPPROTO_TCP) {
		seconds = settings->tcp_established_seconds;
		if (!seen_in || !seen_out ||
		    (either & SEEN_RST)) /* RFC 7857, section 2.2: 4 minutes after RST */
			seconds = settings->tcp_opening_seconds;
		if ((seen_out & seen_in & SEEN_FIN) || (seen_out & SEEN_END))
			seconds = settings->tcp_closing_seconds;
	}
	return seconds * NS_PER_SECOND;
}

static __always_inline bool is_idle(const struct round *round, __u64 last_seen, __u64 limit)
{
	return round->time > last_seen && round->time - last_seen > limit;
}

/* A mapping that timed out leaves nothing at the remote but with TCP. */
static __always_inline __u64 rest_of_idle(__u8 protocol, __u8 seen_out)
{
	return protocol == IPPROTO_TCP ? rest_after(seen_out) : 0;
}

/* The device's use in this round. */
static __always_inline struct use *count_anew(const struct round *round, __u32 device)
{
	struct use *use = use_of(device);

	if (use && use->round != round->time) {
		use->round = round->time;
		use->counted_flows = use->counted_outside = use->counted_ports = 0;
	}
	return use;
}

/* Whether the pod's policies would send the flow by its group, if it began now. Of a pod that is not known
 * any more user space purges the flows. */
static __always_inline bool is_wanted(const struct flow_key *key, const struct flow_value *value)
{
	struct pod_key pod_key = {.ifindex = key->ifindex, .address = key->pod};
	struct pod_value *pod = bpf_map_lookup_elem(&pods, &pod_key);
	struct packet packet = {
	    .destination = key->remote,
	    .destination_port = key->remote_port,
	    .protocol = key->protocol,
	    .ipv6 = !ip_is_v4(&key->remote),
	};
	struct rule *rule;

	if (!pod)
		return true;
	rule = pod->policy_set && !is_inside(&key->remote) ? decide(pod->policy_set, &packet, PARSED_FLOW)
							   : NULL;
	return rule && rule->group == value->group;
}

/* A changed policy cuts nothing, but what it left ends in the end, also if it never pauses: its next packet
 * begins anew, by the policies of then. */
static __always_inline bool outlives_policy(const struct round *round, const struct flow_key *key,
					    struct flow_value *value)
{
	bool wanted = is_wanted(key, value);

	if (wanted && value->unwanted_since)
		value->unwanted_since = 0;
	if (wanted)
		return false;
	if (!value->unwanted_since)
		value->unwanted_since = round->time;
	return is_idle(round, value->unwanted_since, round->settings->deadline_seconds * NS_PER_SECOND);
}

static long collect_flow(struct bpf_map *map, const void *raw_key, void *raw_value, void *context)
{
	struct flow_key key = *(const struct flow_key *)raw_key;
	struct flow_value *value = raw_value;
	struct round *round = context;
	struct reverse_value *port = value->group ? own_port(&key, value) : NULL;
	struct use *use = count_anew(round, key.ifindex);
	__u64 last_seen = value->last_seen, limit, gives_way = OUTSIDE_GIVES_WAY;
	/* An answer of the pod's tells nothing: it answers forged sources, too. */
	__u8 seen_in = value->seen_in & SEEN_AGAIN ? value->seen_in : 0;
	bool lost = value->group && !port, pressed = round->pressed;

	if (port) {
		seen_in = port->seen_in;
		if (port->last_seen > last_seen)
			last_seen = port->last_seen;
		pressed = use && use->pressed;
		gives_way = POD_GIVES_WAY;
	}
	limit = idle_limit(round->settings, key.protocol, value->seen_out, seen_in);
	if (pressed && !seen_in && limit > gives_way)
		limit = gives_way;
	if (port && outlives_policy(round, &key, value))
		lost = true;
	if (!lost && !is_idle(round, last_seen, limit)) {
		round->result->flows_live++;
		if (use && value->group)
			use->counted_flows++;
		else if (use)
			use->counted_outside++;
		return 0;
	}
	if (port)
		rest(port, value->id, rest_of_idle(key.protocol, value->seen_out));
	bpf_map_delete_elem(&flows, &key);
	round->result->flows++;
	return 0;
}

static __always_inline bool has_flow(const struct reverse_key *key, const struct reverse_value *value)
{
	struct flow_key flow_key = flow_of(key, value);
	struct flow_value *flow = bpf_map_lookup_elem(&flows, &flow_key);

	return flow && is_owned_by(value, flow->id);
}

static __always_inline void count_in_granule(const struct round *round, const struct reverse_key *key)
{
	struct granule_key granule = {.egress_ip = key->egress_ip,
				      .granule = bpf_ntohs(key->egress_port) >> GRANULE_SHIFT};
	struct granule_use first = {.round = round->time, .ports = 1};
	struct granule_use *use = bpf_map_lookup_elem(&granules, &granule);

	if (use && use->round == round->time)
		use->ports++;
	else if (bpf_map_update_elem(&granules, &granule, &first, BPF_ANY))
		round->result->ports_uncounted++;
}

/* What no port of this round was counted for makes room. */
static long collect_granule(struct bpf_map *map, const void *key, void *raw_value, void *context)
{
	const struct granule_use *use = raw_value;
	const struct round *round = context;
	struct granule_key granule = *(const struct granule_key *)key;

	if (use->round != round->time)
		bpf_map_delete_elem(&granules, &granule);
	else
		round->result->granules++;
	return 0;
}

static long collect_port(struct bpf_map *map, const void *raw_key, void *raw_value, void *context)
{
	struct reverse_key key = *(const struct reverse_key *)raw_key;
	struct reverse_value *value = raw_value;
	struct round *round = context;
	__u64 owner = value->owner, id = owner & OWNER_ID;
	struct use *use;

	if (owner_state(owner) == OWNER_DYING) {
		bpf_map_delete_elem(&reverse, &key);
		round->result->ports++;
		return 0;
	}
	count_in_granule(round, &key);
	use = count_anew(round, value->ifindex);
	if (use)
		use->counted_ports++;
	if (owner_state(owner) == OWNER_RESTING) {
		if (value->rests_until <= now()) /* flows of this very round have set it */
			swap_owner(value, owner, OWNER_DYING | id);
		round->result->ports_resting++;
		return 0;
	}
	/* A flow is recorded after its port: one without is on its way, or was purged with its pod. */
	if (!has_flow(&key, value) && is_idle(round, value->last_seen, NS_PER_SECOND))
		rest(value, id, key.protocol == IPPROTO_TCP ? REST_REMOTE_FIRST : 0);
	round->result->ports_live++;
	return 0;
}

/* What was counted is what there is. A flow that another CPU began meanwhile may be missing until the next
 * round. */
static __always_inline void put_use(struct use *use, __s32 flows, __s32 outside, __s32 ports)
{
	use->flows = flows;
	use->outside = outside;
	use->ports = ports;
	use->pressed = 0;
}

static long collect_use(struct bpf_map *map, const void *key, void *value, void *context)
{
	__u32 device = *(const __u32 *)key;
	struct round *round = context;
	struct use *use = value;

	if (device == ALL_PODS)
		return 0;
	if (use->round != round->time) { /* nothing is its own */
		bpf_map_delete_elem(&uses, &device);
		return 0;
	}
	put_use(use, use->counted_flows, use->counted_outside, use->counted_ports);
	round->sum.flows += use->flows;
	round->sum.outside += use->outside;
	round->sum.ports += use->ports;
	return 0;
}

static __always_inline void put_sum(const struct round *round)
{
	struct use *all = use_of(ALL_PODS);

	if (all)
		put_use(all, round->sum.flows, round->sum.outside, round->sum.ports);
}

#endif
