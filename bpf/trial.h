/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A port set is tried before it is used.
 *
 * The agent has `send_trial` send a packet through each gateway of the group that bears a port of the set:
 * UDP from the egress IP to itself, as a node need not have an address of that family. The gateway judges it
 * as all that comes out of the tunnel (forward), and sends it back to the node that has the port, not out.
 * That node's from_tunnel notes in the group which gateway has echoed which set, and from_pod lets flows
 * begin there by these gateways alone. Where both are on one link, another trial goes without the tunnel,
 * and comes back so: a link on which somebody filters sources looks like any other.
 *
 * A pod cannot send such a packet, nor anybody outside: what they send has made a hop, at the pod's node or
 * at a gateway, before a program sees it come out of a tunnel, and a trial has all 255 (RFC 5082). A node
 * takes an echo by its token alone.
 */
#ifndef ROUTERD_TRIAL_H
#define ROUTERD_TRIAL_H

#include "tunnel.h"

/* Which gateways have echoed ports of a group: those of one block, or all of a family where flows may begin.
 */
struct echoes {
	const struct group_value *group;
	struct ip egress_ip;
	__u64 by;     /* as `block.echoed` */
	__u64 picked; /* the bit of the gateway that was chosen for it, by the way that was */
	__u8 direct;  /* whether that is without the tunnel */
	__u16 port;   /* in the block; 0 = all */
	__u8 family;  /* 1 = IPv6 */
	__u8 open;    /* whether flows may begin in any */
};

static long add_echoes(__u32 index, void *context)
{
	struct echoes *echoes = context;
	const struct block *block = &echoes->group->blocks[index & (MAX_BLOCKS - 1)];

	if (index >= echoes->group->block_count)
		return 1;
	if (echoes->port ? !holds(block, &echoes->egress_ip, echoes->port)
			 : block->closed || ip_is_v4(&block->egress_ip) == echoes->family)
		return 0;
	echoes->open = 1;
	echoes->by |= block->echoed;
	return echoes->port != 0; /* no other block has it */
}

/* Reads the trial in a packet that another node sent; false = it is none. */
static __always_inline bool read_trial(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				       struct trial *trial)
{
	__u32 offset = packet->l4_offset + sizeof(struct udphdr);

	return parsed == PARSED_FLOW && packet->protocol == IPPROTO_UDP && packet->plain_header &&
	       !packet->piece && packet->ttl == TRIAL_TTL &&
	       packet->destination_port == bpf_htons(TRIAL_PORT) &&
	       ip_equal(&packet->source, &packet->destination) && skb->len == offset + sizeof(*trial) &&
	       !bpf_skb_load_bytes(skb, offset, trial, sizeof(*trial)) && trial->token;
}

/* --- at the gateway ------------------------------------------------------------------------------ */

/* The port is the sender's: the caller has looked. */
static __always_inline int echo_trial(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				      const struct settings *config, struct scratch *room,
				      const struct peer *peer)
{
	struct trial *trial = &room->trial;

	if (!read_trial(skb, packet, parsed, trial) || trial->kind != TRIAL_REQUEST)
		return drop(skb, BAD_TRIAL);
	trial->kind = TRIAL_REPLY;
	if (bpf_skb_store_bytes(skb, packet->l4_offset + sizeof(struct udphdr), trial, sizeof(*trial), 0))
		return drop(skb, REWRITE_ERROR);
	return send_back(skb, packet, config, peer, TRIAL_ECHOED);
}

/* --- at the node of the port set ------------------------------------------------------------------ */

struct echo {
	struct group_value *group;
	struct ip egress_ip;
	__u64 by;
	__u16 port;
	bool noted;
};

static long note_echo(__u32 index, void *context)
{
	struct echo *echo = context;
	struct block *block = &echo->group->blocks[index & (MAX_BLOCKS - 1)];

	if (index >= echo->group->block_count)
		return 1;
	if (!holds(block, &echo->egress_ip, echo->port))
		return 0;
	__sync_fetch_and_or(&block->echoed, echo->by);
	echo->noted = true;
	return 1;
}

/* A trial that came back from the gateway `sender`, by the way that it went. */
static __always_inline int hear_trial(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				      __u16 sender, bool direct)
{
	struct echo echo = {.egress_ip = packet->source, .port = bpf_ntohs(packet->source_port)};
	struct scratch *room = read_scratch();
	__u32 zero = 0;
	struct trial_token *known = bpf_map_lookup_elem(&trial_token, &zero);

	if (!room || !known || !read_trial(skb, packet, parsed, &room->trial) ||
	    room->trial.kind != TRIAL_REPLY || room->trial.token != known->token ||
	    room->trial.direct != direct)
		return drop(skb, BAD_TRIAL);
	echo.group = bpf_map_lookup_elem(&groups, &room->trial.group);
	if (!echo.group)
		return drop(skb, BAD_TRIAL);
	echo.by = place_bit(echo.group, sender) << (direct ? ECHOED_DIRECT : 0);
	if (echo.by)
		bpf_loop(MAX_BLOCKS, note_echo, &echo, 0);
	return drop(skb, echo.noted ? TRIAL_HEARD : BAD_TRIAL); /* nobody else is to get it */
}

/* The packet of one run, into the tunnel device, where to_tunnel takes it. A
 * redirect would wait for the end of the program, and a test run makes none. */
static __always_inline int put_trial(struct __sk_buff *skb, const struct settings *config)
{
	struct scratch *room = read_scratch();
	struct link_mark mark;
	struct node_value *node;

	if (!room ||
	    bpf_skb_load_bytes(skb, skb->len - sizeof(room->trial), &room->trial, sizeof(room->trial)))
		return drop(skb, BAD_TRIAL);
	node = node_of(room->trial.gateway);
	if (!node || ip_is_none(&node->address))
		return drop(skb, NO_GATEWAY);
	mark.mark = bpf_htonl(room->trial.direct ? DIRECT_TRIAL_MAC : TRIAL_MAC);
	mark.number = bpf_htons(room->trial.gateway);
	if (bpf_skb_store_bytes(skb, 0, &mark, ETH_ALEN, 0) ||
	    bpf_clone_redirect(skb, config->tunnel_ifindex, 0))
		return drop(skb, TUNNEL_ERROR);
	return NEXT;
}

#endif
