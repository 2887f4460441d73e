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

/* Why the pod may begin no further flow; REASON_UNSPECIFIED = it may. */
static __always_inline enum reason refuse_flow(const struct settings *config, __u32 device)
{
	struct use *own, *all;

	if (!config->flows_per_pod)
		return REASON_UNSPECIFIED;
	own = use_of(device);
	all = use_of(ALL_PODS);
	if (!own || !all)
		return FLOW_QUOTA;
	if (has_share(own, all, own->flows,
		      share_of(config->flows_per_pod, config->flow_room, all->flows + all->outside)))
		return FLOW_QUOTA;
	if (has_share(own, all, own->ports, share_of(config->ports_per_pod, config->port_room, all->ports)))
		return PORT_QUOTA;
	return REASON_UNSPECIFIED;
}

/* Whether no further flow may begin outside towards the pod. */
static __always_inline bool refuses_outside(const struct settings *config, __u32 device)
{
	struct use *own, *all;

	if (!config->outside_flows)
		return false;
	own = use_of(device);
	all = use_of(ALL_PODS);
	return !own || !all || has_share(own, all, own->outside, (__s32)config->outside_flows - all->outside);
}

static __always_inline void count_flow(__u32 device, bool from_outside, __s32 difference)
{
	struct use *own = use_of(device), *all = use_of(ALL_PODS);

	if (!own || !all)
		return;
	__sync_fetch_and_add(from_outside ? &own->outside : &own->flows, difference);
	__sync_fetch_and_add(from_outside ? &all->outside : &all->flows, difference);
}

static __always_inline void count_port(__u32 device, __s32 difference)
{
	struct use *own = use_of(device);

	if (own)
		__sync_fetch_and_add(&own->ports, difference);
}

/* `device` has one port more, `before` one less (ALL_PODS: it was nobody's). */
static __always_inline void count_claim(__u32 device, __u32 before)
{
	if (device == before)
		return;
	count_port(device, 1);
	if (before == ALL_PODS)
		count_port(ALL_PODS, 1);
	else
		count_port(before, -1);
}

#endif
