/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Paired NAT state. A mapping is one forward entry (`nat`) and one reverse entry (`reverse`). The reverse is
 * claimed first, with BPF_NOEXIST, so that a port has one owner; then the forward one, with BPF_NOEXIST; who
 * loses that race gives its reverse back and uses the winner's. Collection deletes the forward entry first,
 * the reverse one after a grace period in which no forward entry has come back for it.
 */
#ifndef ROUTERD_NAT_H
#define ROUTERD_NAT_H

#include "maps.h"
#include "parse.h"

#define EEXIST 17

#define PORT_ATTEMPTS 256 /* at 95 % use, 32 random tries fail for 19 %, 256 for 2 in a million */
#define NS_PER_SECOND 1000000000ULL
#define REFRESH_AFTER                                                                                        \
	(NS_PER_SECOND / 2) /* last_seen is written at most this often: its cache line is shared */

/* All programs run with coarse time: its grain is a tick, and time-outs are seconds. */
static __always_inline __u64 now(void)
{
	return bpf_ktime_get_coarse_ns();
}

static __always_inline __u8 seen_of(const struct packet *packet)
{
	__u8 seen = SEEN_PACKET;

	if (packet->protocol != IPPROTO_TCP)
		return seen;
	if (packet->tcp_flags & TCP_FIN)
		seen |= SEEN_FIN;
	if (packet->tcp_flags & TCP_RST)
		seen |= SEEN_RST;
	return seen;
}

static __always_inline bool opens_connection(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP && (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* A RST counts only until something else passes: anyone may send one, and only the ends know whether it was
 * valid. */
static __always_inline void refresh(__u64 *last_seen, __u8 *seen, __u8 new_seen)
{
	__u8 now_seen = (*seen & ~SEEN_RST) | new_seen;
	__u64 time = now();

	if (time - *last_seen > REFRESH_AFTER)
		*last_seen = time;
	if (now_seen != *seen)
		*seen = now_seen;
}

struct port_search {
	struct reverse_key key;
	struct reverse_value value;
	__u16 first;
	__u16 last;
	__u16 wanted; /* host order */
	long error;
};

/* One attempt: the wanted port first, if the range holds it, then random ones. 1 ends the loop. */
static long try_port(__u32 attempt, void *context)
{
	struct port_search *search = context;
	__u16 port = search->wanted;

	if (attempt > 0 || port < search->first || port > search->last)
		port = search->first + bpf_get_prandom_u32() % ((__u32)search->last - search->first + 1);
	search->key.egress_port = bpf_htons(port);
	search->error = bpf_map_update_elem(&reverse, &search->key, &search->value, BPF_NOEXIST);
	return search->error != -EEXIST;
}

/* A new mapping for the flow, or the one that a rival made meanwhile. NULL: *reason says why not. */
static __always_inline struct nat_value *make_mapping(const struct nat_key *key,
						      const struct group_value *group, const struct ip *node,
						      __u8 seen, enum reason *reason)
{
	struct port_search search = {
	    .key = {.egress_ip = group->egress_ip,
		    .remote = key->remote,
		    .remote_port = key->remote_port,
		    .protocol = key->protocol},
	    .value = {.last_seen = now(),
		      .pod = key->pod,
		      .node = *node,
		      .group = key->group,
		      .pod_port = key->pod_port},
	    .first = group->first_port,
	    .last = group->last_port,
	    .wanted = bpf_ntohs(key->pod_port),
	    .error = -EEXIST,
	};
	struct nat_value value = {.last_seen = search.value.last_seen,
				  .egress_ip = group->egress_ip,
				  .node = *node,
				  .seen_out = seen};
	long error;

	bpf_loop(PORT_ATTEMPTS, try_port, &search, 0);
	if (search.error) {
		*reason = search.error == -EEXIST ? NO_FREE_PORT : NAT_TABLE_FULL;
		return NULL;
	}
	value.egress_port = search.key.egress_port;
	error = bpf_map_update_elem(&nat, key, &value, BPF_NOEXIST);
	if (error)
		bpf_map_delete_elem(&reverse, &search.key);
	if (error && error != -EEXIST) {
		*reason = NAT_TABLE_FULL;
		return NULL;
	}
	*reason = NAT_TABLE_FULL; /* only if the winner's entry has gone again */
	return bpf_map_lookup_elem(&nat, key);
}

/* The reverse half of a mapping that is known by its forward half. */
static __always_inline struct reverse_value *reverse_of(const struct nat_key *key,
							const struct nat_value *value)
{
	struct reverse_key reverse_key = {
	    .egress_ip = value->egress_ip,
	    .remote = key->remote,
	    .egress_port = value->egress_port,
	    .remote_port = key->remote_port,
	    .protocol = key->protocol,
	};

	return bpf_map_lookup_elem(&reverse, &reverse_key);
}

/* A mapping whose reverse half is missing, or whose address the group no longer has, is of no use: gone, so
 * that the next lookup makes a new one. A pod that moved keeps its mapping: replies follow it. */
static __always_inline struct nat_value *usable_mapping(const struct nat_key *key,
							const struct group_value *group,
							const struct ip *node, const struct packet *packet)
{
	struct nat_value *value = bpf_map_lookup_elem(&nat, key);
	bool opening = opens_connection(packet);
	struct reverse_value *back;

	if (!value)
		return NULL;
	if (!ip_equal(&value->egress_ip, &group->egress_ip))
		goto stale;
	if (!opening && ip_equal(&value->node, node))
		return value;
	back = reverse_of(key, value);
	if (!back)
		goto stale;
	back->node = *node;
	value->node = *node;
	if (opening) { /* the pod uses its port again: the old connection's FIN and RST do not count */
		back->seen_in = 0;
		value->seen_out = 0;
	}
	return value;
stale:
	bpf_map_delete_elem(&nat, key);
	return NULL;
}

static __always_inline struct nat_value *find_mapping(const struct packet *packet, __u32 vni,
						      const struct group_value *group, const struct ip *node,
						      enum reason *reason)
{
	struct nat_key key = {
	    .pod = packet->source,
	    .remote = packet->destination,
	    .group = vni,
	    .pod_port = packet->source_port,
	    .remote_port = packet->destination_port,
	    .protocol = packet->protocol,
	};
	struct nat_value *value = usable_mapping(&key, group, node, packet);

	if (value) {
		refresh(&value->last_seen, &value->seen_out, seen_of(packet));
		return value;
	}
	return make_mapping(&key, group, node, seen_of(packet), reason);
}

#endif
