/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a pod may have of the tables: no pod, and nobody who sends to one, takes the room of the others.
 *
 * A pod is what is behind one device. It may have its quota, and at most as many as are still free: one that
 * wants all leaves half, and however many want all, the next one finds room. An existing flow is never
 * refused. Whoever comes near its share is marked, and the next round of collection ends what nobody has
 * answered.
 */
#ifndef ROUTERD_QUOTA_H
#define ROUTERD_QUOTA_H

#include "maps.h"

/* NULL where the table of uses has no room for another pod. */
static __always_inline struct use *use_of(__u32 device)
{
	struct use *use = bpf_map_lookup_elem(&uses, &device);
	struct use none = {};

	if (use)
		return use;
	bpf_map_update_elem(&uses, &device, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&uses, &device);
}

static __always_inline bool has_share(struct use *own, struct use *all, __s32 has, __s32 share)
{
	if (has * 8 >= share * 7 && !(own->pressed && all->pressed))
		own->pressed = all->pressed = 1;
	return has >= share;
}

static __always_inline __s32 share_of(__u32 quota, __u32 room, __s32 taken)
{
	__s32 free = (__s32)room - taken;

	return free < (__s32)quota ? free : (__s32)quota;
}

/* What a pod has, and what all have. It is looked up once for a flow that begins: `collect` may have taken an
 * entry of nobody's away meanwhile, and counts anew. */
struct shares {
	struct use *own;
	struct use *all;
};

static __always_inline bool find_uses(struct shares *shares, __u32 device)
{
	shares->own = use_of(device);
	shares->all = use_of(ALL_PODS);
	return shares->own && shares->all;
}

/* Why the pod may begin no further flow; REASON_UNSPECIFIED = it may. */
static __always_inline enum reason refuse_flow(const struct settings *config, const struct shares *shares)
{
	struct use *own = shares->own, *all = shares->all;

	if (!config->flows_per_pod)
		return REASON_UNSPECIFIED;
	if (has_share(own, all, own->flows,
		      share_of(config->flows_per_pod, config->flow_room, all->flows + all->outside)))
		return FLOW_QUOTA;
	if (has_share(own, all, own->ports, share_of(config->ports_per_pod, config->port_room, all->ports)))
		return PORT_QUOTA;
	return REASON_UNSPECIFIED;
}

/* Whether no further flow may begin outside towards the pod. */
static __always_inline bool refuses_outside(const struct settings *config, const struct shares *shares)
{
	return config->outside_flows && has_share(shares->own, shares->all, shares->own->outside,
						  (__s32)config->outside_flows - shares->all->outside);
}

static __always_inline void count_flow(const struct shares *shares, __s32 difference)
{
	__sync_fetch_and_add(&shares->own->flows, difference);
	__sync_fetch_and_add(&shares->all->flows, difference);
}

static __always_inline void count_outside(const struct shares *shares, __s32 difference)
{
	__sync_fetch_and_add(&shares->own->outside, difference);
	__sync_fetch_and_add(&shares->all->outside, difference);
}

static __always_inline void count_flow_away(__u32 device, bool from_outside)
{
	__u32 devices[] = {device, ALL_PODS};

	for (__u32 i = 0; i < 2; i++) {
		struct use *use = bpf_map_lookup_elem(&uses, &devices[i]);

		if (use)
			__sync_fetch_and_add(from_outside ? &use->outside : &use->flows, -1);
	}
}

/* The pod of `device` has one port more, that of `before` one less (ALL_PODS: it was nobody's). */
static __always_inline void count_port(const struct shares *shares, __u32 device, __u32 before)
{
	struct use *loser;

	if (device == before)
		return;
	__sync_fetch_and_add(&shares->own->ports, 1);
	if (before == ALL_PODS) {
		__sync_fetch_and_add(&shares->all->ports, 1);
		return;
	}
	loser = bpf_map_lookup_elem(&uses, &before);
	if (loser)
		__sync_fetch_and_add(&loser->ports, -1);
}

#endif
