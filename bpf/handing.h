/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* NetworkPolicies that a CNI enforces in the host's forward hook: a redirect would pass by them. So the first
 * packet of a flow goes there, by its natural route, and to_uplink takes up what has come through. Until then
 * it bears one bit of the mark: by that the guard has connection tracking, and so every NAT, leave it alone,
 * and lets it leave by no device but one where to_uplink is. What follows it is redirected by from_pod.
 *
 * The host may put the fragments of a datagram together, so all of them go the way of the first.
 */
#ifndef ROUTERD_HANDING_H
#define ROUTERD_HANDING_H

#include "source.h"

/* How a flow begins where not by a redirect. */
static __always_inline int hand_in(struct __sk_buff *skb, struct packet *packet,
				   const struct settings *config)
{
	if (config->network_policy != POLICY_FORWARD)
		return drop(skb, UNENFORCED);
	packet->handed_in = true;
	if (packet->piece == FIRST_PIECE && !remember_first(packet, skb->ifindex, packet->id))
		return drop(skb, FRAGMENT);
	skb->mark |= config->forward_mark;
	count(skb, HANDED_IN);
	return NEXT;
}

/* Whether the packet is one that was handed in: the sockets of this host may bear any mark. */
static __always_inline bool was_handed_in(const struct __sk_buff *skb, const struct settings *config)
{
	return skb->mark & config->forward_mark && skb->ingress_ifindex;
}

/* Where the pod with this address is; false = no selected pod has it. */
static __always_inline bool find_home(const struct ip *address, struct home *home)
{
	struct pod_key key = {.address = *address};
	__u32 *device = bpf_map_lookup_elem(&pod_devices, address);
	struct pod_value *pod;

	if (!device)
		return false;
	key.ifindex = *device;
	pod = bpf_map_lookup_elem(&pods, &key);
	if (!pod)
		return false;
	home->ifindex = key.ifindex;
	home->pod = pod;
	return true;
}

#endif
