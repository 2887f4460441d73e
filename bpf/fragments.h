/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* IP fragments: the first of a datagram bears its ports and is what any packet of its flow is. It is
 * remembered for as long as a receiver waits for the others (RFC 791, section 3.2; RFC 8200, section 4.5: 60
 * s; Linux: 30 s), and these follow it. One that comes before its first is dropped: nothing says whose it is.
 *
 * Several nodes share an egress IP, and a receiver tells datagrams apart by address and id (RFC 6864). So a
 * node puts in an id out of its own port sets: of IPv4 the id is a port's number, of IPv6 its upper 16 bits
 * are, and the lower ones are random. Gateways ask whose that number is as they ask it of ports.
 *
 * What overlaps the first could change what was decided by it, and is dropped (RFC 1858, RFC 5722); what
 * overlaps others is left to the receiver. Two firsts of one id are two datagrams here, and get two ids.
 */
#ifndef ROUTERD_FRAGMENTS_H
#define ROUTERD_FRAGMENTS_H

#include "flows.h"

#define FRAGMENTS_FOLLOW (30 * NS_PER_SECOND)
#define TURN_ATTEMPTS	 4
#define FROM_WORLD	 0 /* in place of a pod's device */

static __always_inline void fragment_key_of(const struct packet *packet, __u32 ifindex,
					    struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->source = packet->source;
	key->destination = packet->destination;
	key->ifindex = ifindex;
	key->id = packet->id;
	key->protocol = packet->ipv6 ? 0 : packet->protocol;
}

/* False when there is no memory for it. */
static __always_inline bool remember_first(const struct packet *packet, __u32 ifindex, __u32 sent_id)
{
	__u32 begin = packet->ipv6 ? packet->id_offset + sizeof(packet->id) : packet->l4_offset;
	struct scratch *room = read_scratch();

	if (!room)
		return false;
	fragment_key_of(packet, ifindex, &room->fragment_key);
	__builtin_memset(&room->fragment, 0, sizeof(room->fragment));
	room->fragment.begun = now();
	room->fragment.sent_id = sent_id;
	room->fragment.source_port = packet->source_port;
	room->fragment.destination_port = packet->destination_port;
	room->fragment.length = IP_OFFSET + packet->total_length - begin;
	room->fragment.protocol = packet->protocol;
	room->fragment.handed_in = packet->handed_in;
	return !bpf_map_update_elem(&fragments, &room->fragment_key, &room->fragment, BPF_ANY);
}

/* A later fragment as a packet of its first one's flow; PARSED_FRAGMENT = that is not known. */
static __always_inline enum parsed follow_first(struct packet *packet, __u32 ifindex)
{
	struct scratch *room = read_scratch();
	struct fragment_value *first;

	if (!room)
		return PARSED_FRAGMENT;
	fragment_key_of(packet, ifindex, &room->fragment_key);
	first = bpf_map_lookup_elem(&fragments, &room->fragment_key);
	if (!first || now() - first->begun > FRAGMENTS_FOLLOW)
		return PARSED_FRAGMENT;
	if (packet->position < first->length)
		return PARSED_BAD_FRAGMENT;
	packet->source_port = first->source_port;
	packet->destination_port = first->destination_port;
	packet->protocol = first->protocol;
	packet->sent_id = first->sent_id;
	packet->handed_in = first->handed_in;
	return PARSED_FLOW;
}

/* The port whose node may send a fragment of this id. */
static __always_inline __be16 port_of_id(const struct packet *packet)
{
	return bpf_htons(packet->ipv6 ? packet->id >> 16 : packet->id);
}

struct block_search {
	const struct group_value *group;
	struct ip egress_ip;
	__u16 port;
	__u16 first; /* of the block that holds it */
	__u16 mask;
};

static long find_block(__u32 index, void *context)
{
	struct block_search *search = context;
	const struct block *block = &search->group->blocks[index & (MAX_BLOCKS - 1)];

	if (index >= search->group->block_count)
		return 1;
	if (!holds(block, &search->egress_ip, search->port))
		return 0;
	search->first = block->first;
	search->mask = (1U << (block->shift & 15)) - 1;
	return 1;
}

/* Datagrams to one destination take turns: ids come again as late as they can. */
static __always_inline __u32 next_turn(const struct ip *to)
{
	__u32 index = ((to->w[0] ^ to->w[1] ^ to->w[2] ^ to->w[3]) * 0x9e3779b1U) >> 22;
	struct sequence *sequence = bpf_map_lookup_elem(&sequences, &index);
	__u64 turn;

	/* bcc's clang has no fetch-and-add. */
	for (int attempt = 0; sequence && attempt < TURN_ATTEMPTS; attempt++) {
		turn = sequence->turn;
		if (__sync_val_compare_and_swap(&sequence->turn, turn, turn + 1) == turn)
			return turn;
	}
	return bpf_get_prandom_u32();
}

/* An id of this node towards the packet's destination, in the block that the flow's port is in: that one is
 * the node's own for as long as the flow lives. */
static __always_inline __u32 fresh_id(const struct packet *packet, __u32 group, const struct ip *egress_ip,
				      __be16 port)
{
	struct block_search search = {
	    .group = bpf_map_lookup_elem(&groups, &group),
	    .egress_ip = *egress_ip,
	    .port = bpf_ntohs(port),
	    .mask = (1 << GRANULE_SHIFT) - 1,
	};
	__u32 number;

	search.first = search.port & ~search.mask;
	if (search.group)
		bpf_loop(MAX_BLOCKS, find_block, &search, 0);
	number = search.first + (next_turn(&packet->destination) & search.mask);
	return packet->ipv6 ? number << 16 | (bpf_get_prandom_u32() & 0xffff) : number;
}

#endif
