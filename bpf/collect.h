/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Collection of idle state, in the kernel: user space only starts a round. Forward mappings go by their
 * time-outs; reverse ones go when their forward half has been missing for the grace period, looked up again
 * at that moment.
 */
#ifndef ROUTERD_COLLECT_H
#define ROUTERD_COLLECT_H

#include "nat.h"

struct bpf_map; /* the callbacks get it and do not look at it */

struct round {
	struct settings *settings;
	struct collected *result;
	__u64 time;
};

static __always_inline __u64 idle_limit(const struct settings *settings, __u8 protocol, __u8 seen_out,
					__u8 seen_in)
{
	__u8 either = seen_out | seen_in;
	__u32 seconds = settings->udp_seconds;

	if (protocol == IPPROTO_ICMP)
		seconds = settings->icmp_seconds;
	if (protocol == IPPROTO_TCP) {
		seconds = settings->tcp_established_seconds;
		if (!seen_in || !seen_out ||
		    (either & SEEN_RST)) /* RFC 7857, section 2.2: 4 minutes after RST */
			seconds = settings->tcp_opening_seconds;
		if (seen_out & seen_in & SEEN_FIN)
			seconds = settings->tcp_closing_seconds;
	}
	return seconds * NS_PER_SECOND;
}

static __always_inline bool is_idle(const struct round *round, __u64 last_seen, __u64 limit)
{
	return round->time > last_seen && round->time - last_seen > limit;
}

static long collect_flow(struct bpf_map *map, const void *raw_key, void *raw_value, void *context)
{
	const struct flow_key *key = raw_key;
	struct flow_value *value = raw_value;
	struct round *round = context;

	if (is_idle(round, value->last_seen,
		    idle_limit(round->settings, key->protocol, value->seen_out, value->seen_in))) {
		struct flow_key copy = *key;

		bpf_map_delete_elem(&flows, &copy);
		round->result->flows++;
	} else {
		round->result->flows_live++;
	}
	return 0;
}

static long collect_mapping(struct bpf_map *map, const void *raw_key, void *raw_value, void *context)
{
	const struct nat_key *key = raw_key;
	struct nat_value *value = raw_value;
	struct round *round = context;
	struct reverse_value *back = reverse_of(key, value);
	__u64 last_seen = value->last_seen;
	__u8 seen_in = 0;

	if (back) {
		seen_in = back->seen_in;
		if (back->last_seen > last_seen)
			last_seen = back->last_seen;
	}
	if (!back ||
	    is_idle(round, last_seen, idle_limit(round->settings, key->protocol, value->seen_out, seen_in))) {
		struct nat_key copy = *key;

		bpf_map_delete_elem(&nat, &copy);
		round->result->mappings++;
	} else {
		round->result->mappings_live++;
	}
	return 0;
}

static __always_inline bool has_forward(const struct reverse_key *key, const struct reverse_value *value)
{
	struct nat_key forward_key = {
	    .pod = value->pod,
	    .remote = key->remote,
	    .group = value->group,
	    .pod_port = value->pod_port,
	    .remote_port = key->remote_port,
	    .protocol = key->protocol,
	};
	struct nat_value *forward = bpf_map_lookup_elem(&nat, &forward_key);

	return forward && forward->egress_port == key->egress_port &&
	       ip_equal(&forward->egress_ip, &key->egress_ip);
}

static long collect_reverse(struct bpf_map *map, const void *raw_key, void *raw_value, void *context)
{
	const struct reverse_key *key = raw_key;
	struct reverse_value *value = raw_value;
	struct round *round = context;

	if (has_forward(key, value)) {
		value->orphaned = 0;
		round->result->reverses_live++;
	} else if (!value->orphaned) {
		value->orphaned = round->time;
		round->result->reverses_live++;
	} else if (round->time - value->orphaned >= round->settings->orphan_seconds * NS_PER_SECOND) {
		struct reverse_key copy = *key;

		bpf_map_delete_elem(&reverse, &copy);
		round->result->reverses++;
	} else {
		round->result->reverses_live++;
	}
	return 0;
}

#endif
