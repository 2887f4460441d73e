/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Between nodes on one link, without a tunnel: a translated packet goes to its gateway as it is, and the
 * answer, which still bears the egress IP, to the node of its port. The frame's source tells which node sent
 * it, as the outer source does in the tunnel: no more and no less of a secret.
 *
 * What the VNI says there, the addresses say here: from an egress IP that this node is a gateway of a packet
 * is on its way out; to one of which it has ports, an answer; from an address to itself, a probe or a trial.
 * Answers to egress IPs that this node is a gateway of are taken as if they had come from the world
 * (hand_back).
 */
#ifndef ROUTERD_DIRECT_H
#define ROUTERD_DIRECT_H

#include "gateway.h"

/* No verdict: the packet came by the link, and not as one of ours. */
#define NOT_DIRECT -103

/* From an address to itself. A router's own echo (RFC 9747), too, comes so: it is from no node. */
static __always_inline int take_own(struct __sk_buff *skb, const struct packet *packet, enum parsed parsed,
				    const struct settings *config, const struct peer *peer, __u16 sender)
{
	struct scratch *room = read_scratch();

	if (!room)
		return NEXT;
	if (packet->destination_port == bpf_htons(PROBE_PORT))
		return sender == NO_NODE ? NEXT : take_probe(skb, packet, parsed, config, peer, sender);
	if (!bpf_map_lookup_elem(&egress_ips, &packet->source) &&
	    !bpf_map_lookup_elem(&own_egress_ips, &packet->source))
		return NEXT;
	if (sender == NO_NODE)
		return drop(skb, UNKNOWN_NEIGHBOUR);
	if (!read_trial(skb, packet, parsed, &room->trial))
		return drop(skb, BAD_TRIAL);
	return room->trial.kind == TRIAL_REPLY ? hear_trial(skb, packet, parsed, sender, true)
					       : forward(skb, packet, parsed, config, peer,
							 bpf_map_lookup_elem(&egress_ips, &packet->source));
}

/* `to`: what this gateway knows of the destination. Who sent it is asked only of what may be ours. */
static __always_inline int take_direct(struct __sk_buff *skb, struct packet *packet, enum parsed parsed,
				       const struct settings *config, const struct egress_ip_value *to)
{
	bool is_own = ip_equal(&packet->source, &packet->destination);
	const struct egress_ip_value *from = NULL;
	struct peer peer = {};
	__u16 sender;

	if (is_own) {
		if (packet->destination_port != bpf_htons(PROBE_PORT) &&
		    packet->destination_port != bpf_htons(TRIAL_PORT))
			return NOT_DIRECT;
	} else {
		from = to ? NULL : bpf_map_lookup_elem(&egress_ips, &packet->source);
		if (to || (!from && !bpf_map_lookup_elem(&own_egress_ips, &packet->destination)))
			return NOT_DIRECT;
	}
	sender = sender_of(skb);
	peer.on_link = sender == NO_NODE ? NULL : node_of(sender);
	if (peer.on_link)
		peer.endpoint = peer.on_link->address;
	else
		sender = NO_NODE;
	if (is_own)
		return take_own(skb, packet, parsed, config, &peer, sender);
	if (sender == NO_NODE)
		return drop(skb, UNKNOWN_NEIGHBOUR);
	if (parsed == PARSED_FRAGMENT && !from)
		parsed = follow_first(packet, FROM_WORLD);
	if (parsed == PARSED_BAD_FRAGMENT)
		return drop(skb, BAD_FRAGMENT);
	if (parsed == PARSED_UNSUPPORTED)
		return drop(skb, UNSUPPORTED_PROTOCOL);
	if (from)
		return forward(skb, packet, parsed, config, &peer, from);
	return parsed == PARSED_FRAGMENT ? drop(skb, FRAGMENT)
					 : return_to_pod(skb, packet, parsed, config, sender);
}

#endif
