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

/* Whether a packet that came by the link is one of ours, `address` being what is known of its destination. */
static __always_inline bool may_be_direct(const struct packet *packet, const struct egress_ip_value *address)
{
	if (ip_equal(&packet->source, &packet->destination))
		return packet->destination_port == bpf_htons(PROBE_PORT) ||
		       packet->destination_port == bpf_htons(TRIAL_PORT);
	return !address && (bpf_map_lookup_elem(&egress_ips, &packet->source) ||
			    bpf_map_lookup_elem(&own_egress_ips, &packet->destination));
}

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
					       : forward(skb, packet, parsed, config, peer);
}

static __always_inline int take_direct(struct __sk_buff *skb, struct packet *packet, enum parsed parsed,
				       const struct settings *config)
{
	__u16 sender = sender_of(skb);
	struct peer peer = {.on_link = sender == NO_NODE ? NULL : node_of(sender)};
	bool answers;

	if (peer.on_link)
		peer.endpoint = peer.on_link->address;
	else
		sender = NO_NODE;
	if (ip_equal(&packet->source, &packet->destination))
		return take_own(skb, packet, parsed, config, &peer, sender);
	if (sender == NO_NODE)
		return drop(skb, UNKNOWN_NEIGHBOUR);
	answers = !bpf_map_lookup_elem(&egress_ips, &packet->source);
	if (parsed == PARSED_FRAGMENT && answers)
		parsed = follow_first(packet, FROM_WORLD);
	if (parsed == PARSED_BAD_FRAGMENT)
		return drop(skb, BAD_FRAGMENT);
	if (parsed == PARSED_UNSUPPORTED)
		return drop(skb, UNSUPPORTED_PROTOCOL);
	if (!answers)
		return forward(skb, packet, parsed, config, &peer);
	return parsed == PARSED_FRAGMENT ? drop(skb, FRAGMENT)
					 : return_to_pod(skb, packet, parsed, config, sender);
}

#endif
