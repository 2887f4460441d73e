/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A pod's flows and the ports that they bear outside: one entry in `flows` and one in `reverse`, both on the
 * pod's own node.
 *
 * The port is claimed first, with BPF_NOEXIST, so that it has one owner towards its remote; then the flow is
 * recorded, with BPF_NOEXIST; who loses that race gives its port back and uses the winner's. A port rests
 * after its connection has ended, as the remote may still remember it; one that has rested enough passes to
 * the next flow by one compare-and-swap of its owner. The hot path deletes no port: a freed element is used
 * again at once, and would be written through a pointer that another CPU still holds. Collection marks it as
 * dying, and deletes it a round later. A flow that is over is deleted there: what another CPU then writes is
 * a time or flags of the flow that begins in its place, which lives a little longer for it, or ends too soon
 * and is begun anew by its next packet.
 */
#ifndef ROUTERD_FLOWS_H
#define ROUTERD_FLOWS_H

#include "maps.h"
#include "parse.h"
#include "quota.h"
#include "verdict.h"

#define EEXIST 17

#define PORT_ATTEMPTS 512
#define NS_PER_SECOND 1000000000ULL
#define REFRESH_AFTER                                                                                        \
	(NS_PER_SECOND / 2) /* last_seen is written at most this often: its cache line is shared */

/* For how long a port rests. After a FIN from the remote first, that end keeps TIME_WAIT: 60 s on Linux.
 * After one from the pod first the pod keeps it. A RST leaves nothing behind. What timed out without an end
 * may live on at the remote. */
#define REST_REMOTE_FIRST (60 * NS_PER_SECOND)
#define REST_POD_FIRST	  (10 * NS_PER_SECOND)
#define REST_RESET	  (4 * NS_PER_SECOND)

/* All programs run with coarse time: its grain is a tick, and time-outs are seconds. */
static __always_inline __u64 now(void)
{
	return bpf_ktime_get_coarse_ns();
}

static __always_inline __u64 owner_state(__u64 owner)
{
	return owner & ~OWNER_ID;
}

static __always_inline bool is_owned_by(const struct reverse_value *port, __u64 id)
{
	return (port->owner & OWNER_ID) == id;
}

static __always_inline bool swap_owner(struct reverse_value *port, __u64 before, __u64 after)
{
	return __sync_val_compare_and_swap(&port->owner, before, after) == before;
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

/* The key of a flow, from a packet that its pod sent by this device. */
static __always_inline struct flow_key flow_from_pod(const struct packet *packet, __u32 ifindex)
{
	struct flow_key key = {
	    .pod = packet->source,
	    .remote = packet->destination,
	    .ifindex = ifindex,
	    .pod_port = packet->source_port,
	    .remote_port = packet->destination_port,
	    .protocol = packet->protocol,
	};

	return key;
}

static __always_inline struct flow_key flow_to_pod(const struct packet *packet, __u32 ifindex)
{
	struct flow_key key = {
	    .pod = packet->destination,
	    .remote = packet->source,
	    .ifindex = ifindex,
	    .pod_port = packet->destination_port,
	    .remote_port = packet->source_port,
	    .protocol = packet->protocol,
	};

	return key;
}

static __always_inline struct reverse_key port_of(const struct flow_key *flow, const struct flow_value *value)
{
	struct reverse_key key = {
	    .egress_ip = value->egress_ip,
	    .remote = flow->remote,
	    .egress_port = value->egress_port,
	    .remote_port = flow->remote_port,
	    .protocol = flow->protocol,
	};

	return key;
}

static __always_inline struct flow_key flow_of(const struct reverse_key *port,
					       const struct reverse_value *value)
{
	struct flow_key key = {
	    .pod = value->pod,
	    .remote = port->remote,
	    .ifindex = value->ifindex,
	    .pod_port = value->pod_port,
	    .remote_port = port->remote_port,
	    .protocol = port->protocol,
	};

	return key;
}

/* The port's entry while it is this flow's, else NULL. */
static __always_inline struct reverse_value *own_port(const struct flow_key *key,
						      const struct flow_value *flow)
{
	struct reverse_key port_key = port_of(key, flow);
	struct reverse_value *port = bpf_map_lookup_elem(&reverse, &port_key);

	return port && is_owned_by(port, flow->id) ? port : NULL;
}

/* The port goes to rest if it is live; a second end does not prolong what the first began. */
static __always_inline void rest(struct reverse_value *port, __u64 id, __u64 duration)
{
	if (port->owner != (OWNER_LIVE | id))
		return;
	port->rests_until = now() + duration;
	swap_owner(port, OWNER_LIVE | id, OWNER_RESTING | id);
}

/* Both ends have ended the connection, or one has reset it. */
static __always_inline bool is_over(__u8 seen_out, __u8 seen_in)
{
	return ((seen_out | seen_in) & SEEN_RST) || (seen_out & seen_in & SEEN_FIN);
}

static __always_inline __u64 rest_after(__u8 seen_out)
{
	if (seen_out & SEEN_RST)
		return REST_RESET;
	return seen_out & SEEN_FIN_FIRST ? REST_POD_FIRST : REST_REMOTE_FIRST;
}

/* A FIN or RST from the pod. Packets that come after the end still pass: `seen_out` sends them by the way
 * that asks whose the port is. */
static __always_inline void note_end_out(const struct flow_key *key, struct flow_value *flow)
{
	struct reverse_value *port = own_port(key, flow);

	if (!port)
		return;
	if ((flow->seen_out & SEEN_FIN) && !(port->seen_in & SEEN_FIN))
		flow->seen_out |= SEEN_FIN_FIRST;
	if (!(flow->seen_out & SEEN_RST) && !(flow->seen_out & port->seen_in & SEEN_FIN))
		return;
	rest(port, flow->id, rest_after(flow->seen_out));
	flow->seen_out |= SEEN_END;
}

/* A FIN to the pod. */
static __always_inline void note_end_in(const struct reverse_key *port_key, struct reverse_value *port)
{
	struct flow_key key = flow_of(port_key, port);
	struct flow_value *flow = bpf_map_lookup_elem(&flows, &key);

	if (!flow || !is_owned_by(port, flow->id) || !(flow->seen_out & SEEN_FIN))
		return;
	rest(port, flow->id, rest_after(flow->seen_out));
	flow->seen_out |= SEEN_END;
}

/* Something else comes after the end. A FIN counts until then, as a RST does: anyone may send one, and the
 * port of a connection that goes on is not given to another. */
static __always_inline void rest_anew(const struct reverse_key *port_key, struct reverse_value *port)
{
	struct flow_key key = flow_of(port_key, port);
	struct flow_value *flow = bpf_map_lookup_elem(&flows, &key);

	if (flow && is_owned_by(port, flow->id))
		port->rests_until = now() + rest_after(flow->seen_out);
}

static __always_inline void forget_flow(const struct flow_key *key, const struct flow_value *flow)
{
	bool from_outside = !flow->group;

	if (!bpf_map_delete_elem(&flows, key))
		count_flow_away(key->ifindex, from_outside);
}

static __always_inline bool holds(const struct block *block, const struct ip *egress_ip, __u16 port)
{
	return port >> (block->shift & 15) == block->first >> (block->shift & 15) &&
	       ip_equal(&block->egress_ip, egress_ip);
}

/* --- a free port ------------------------------------------------------------------------------ */

struct search {
	struct scratch *room; /* port_key and port: the claim */
	const struct group_value *group;
	__u64 oldest; /* of the resting ports that were tried, when the first of them will have rested */
	__u64 oldest_owner; /* 0 = none */
	struct ip oldest_ip;
	__u32 before; /* the device that had the port; 0 = it was free */
	__be16 oldest_port;
	__u16 wanted;  /* the pod's own, host order */
	__u16 start;   /* block that is tried first */
	__u16 offset;  /* random: where the cycle through a block begins */
	__u8 open;     /* whether any block was open */
	__u8 family;   /* 1 = IPv6 */
	__u64 gateway; /* its bit in the echoes of blocks */
	long error;
};

/* A port at rest becomes this flow's by one word, if its owner is still who it was. */
static __always_inline bool take_over(struct search *search, struct reverse_value *port, __u64 before)
{
	__u64 id = search->room->port.owner & OWNER_ID;
	struct reverse_value *again;

	if (!swap_owner(port, before, OWNER_CLAIMED | id))
		return false;
	again = bpf_map_lookup_elem(&reverse, &search->room->port_key);
	if (!again || again->owner != (OWNER_CLAIMED | id)) /* it was deleted meanwhile */
		return false;
	search->before = again->ifindex;
	again->last_seen = search->room->port.last_seen;
	again->rests_until = 0;
	again->pod = search->room->port.pod;
	again->ifindex = search->room->port.ifindex;
	again->group = search->room->port.group;
	again->pod_port = search->room->port.pod_port;
	again->gateway = search->room->port.gateway;
	__builtin_memcpy(again->pod_mac, search->room->port.pod_mac, sizeof(again->pod_mac));
	__builtin_memcpy(again->device_mac, search->room->port.device_mac, sizeof(again->device_mac));
	again->seen_in = 0;
	swap_owner(again, OWNER_CLAIMED | id, OWNER_LIVE | id);
	return true;
}

static __always_inline bool is_same_pod(const struct search *search, const struct reverse_value *port)
{
	return port->ifindex == search->room->port.ifindex && port->pod_port == search->room->port.pod_port &&
	       ip_equal(&port->pod, &search->room->port.pod);
}

/* Claims the port of search->room->port_key. 1 = it is ours, or there is no use in trying others. */
static __always_inline long claim(struct search *search)
{
	struct reverse_value *port;
	__u64 owner;

	search->error =
	    bpf_map_update_elem(&reverse, &search->room->port_key, &search->room->port, BPF_NOEXIST);
	if (search->error != -EEXIST)
		return 1;
	port = bpf_map_lookup_elem(&reverse, &search->room->port_key);
	if (!port)
		return 0;
	owner = port->owner;
	if (owner_state(owner) != OWNER_RESTING)
		return 0;
	/* Its own pod comes back on the same port: that end knows what it does. */
	if (port->rests_until <= search->room->port.last_seen || is_same_pod(search, port)) {
		if (!take_over(search, port, owner))
			return 0;
		search->error = 0;
		return 1;
	}
	if (!search->oldest_owner || port->rests_until < search->oldest) {
		search->oldest = port->rests_until;
		search->oldest_owner = owner;
		search->oldest_ip = search->room->port_key.egress_ip;
		search->oldest_port = search->room->port_key.egress_port;
	}
	return 0;
}

/* The n-th port that is tried of a block with `mask` + 1 ports. The first is the pod's own, folded into the
 * block; then a full cycle with an odd stride of about 0.618 of the block, from a random place. A small
 * stride would walk through a run of ports that one pod has taken in a row. */
static __always_inline __u32 nth_port(const struct search *search, __u32 n, __u32 mask)
{
	__u32 stride = ((mask + 1) * 40503 >> 16) | 1;

	return (n ? search->offset + n * stride : search->wanted) & mask;
}

/* One attempt; blocks take turns. */
static long try_port(__u32 attempt, void *context)
{
	struct search *search = context;
	const struct group_value *group = search->group;
	__u32 count = group->block_count, mask, index, turn;
	const struct block *block;

	if (!count || count > MAX_BLOCKS)
		return 1;
	index = (search->start + attempt) % count;
	turn = attempt / count;
	asm volatile("" : "+r"(index)); /* the compiler knows its limit and the verifier does not */
	block = &group->blocks[index & (MAX_BLOCKS - 1)];
	mask = (1U << (block->shift & 15)) - 1;
	if (block->closed || !(block->echoed & search->gateway) ||
	    ip_is_v4(&block->egress_ip) == search->family || turn > mask + 1)
		return 0;
	search->open = 1;
	search->room->port_key.egress_ip = block->egress_ip;
	search->room->port_key.egress_port = bpf_htons(block->first + nth_port(search, turn, mask));
	return claim(search);
}

/* At 75 % use every tenth search needs more tries than this. */
#define LONG_SEARCH 8

static __always_inline void note_pressure(__u32 group)
{
	struct pressure first = {.last_seen = now(), .searches = 1};
	struct pressure *known = bpf_map_lookup_elem(&pressures, &group);

	if (!known) {
		bpf_map_update_elem(&pressures, &group, &first, BPF_NOEXIST);
		return;
	}
	known->last_seen = first.last_seen;
	known->searches++;
}

/* Nothing is free: the port that has rested longest of those that were tried. */
static __always_inline void take_oldest(struct search *search)
{
	struct reverse_value *port;

	if (!search->oldest_owner)
		return;
	search->room->port_key.egress_ip = search->oldest_ip;
	search->room->port_key.egress_port = search->oldest_port;
	port = bpf_map_lookup_elem(&reverse, &search->room->port_key);
	if (port && take_over(search, port, search->oldest_owner))
		search->error = 0;
}

#endif
