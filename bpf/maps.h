/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps, one comment each. All are pinned by name; sizes of the large ones are set by the loader. No LRU
 * anywhere: two LRU maps drift apart and black-hole live flows, so a full table refuses new flows and says
 * so.
 */
#ifndef ROUTERD_MAPS_H
#define ROUTERD_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "reasons.h"
#include "types.h"

#ifndef PINNED_MAP /* bcc has its own, from bcc/bpf/bpf_helpers.h */
#define PINNED_MAP(map_name, map_type, key_type, value_type, entries, map_flags_)                            \
	struct {                                                                                             \
		__uint(type, map_type);                                                                      \
		__type(key, key_type);                                                                       \
		__type(value, value_type);                                                                   \
		__uint(max_entries, entries);                                                                \
		__uint(map_flags, map_flags_);                                                               \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                                                         \
	} map_name SEC(".maps")
#endif

/* What the agent tells the programs; one element. */
PINNED_MAP(settings, BPF_MAP_TYPE_ARRAY, __u32, struct settings, 1, 0);

/* (device, pod address) -> policy set. */
PINNED_MAP(pods, BPF_MAP_TYPE_HASH, struct pod_key, struct pod_value, 4096, BPF_F_NO_PREALLOC);

/* Devices with a selected pod: a source address that `pods` does not know is dropped there. */
PINNED_MAP(strict_devices, BPF_MAP_TYPE_HASH, __u32, __u32, 4096, BPF_F_NO_PREALLOC);

/* Pod address -> its device, for replies. */
PINNED_MAP(local_pods, BPF_MAP_TYPE_HASH, struct ip, struct local_pod, 4096, BPF_F_NO_PREALLOC);

/* (policy set, destination) -> rules, longest prefix. */
PINNED_MAP(policies, BPF_MAP_TYPE_LPM_TRIE, struct policy_key, struct policy_value, 262144,
	   BPF_F_NO_PREALLOC);

/* Prefix -> PLACE_…; none of them is ever sent out: pods, nodes, services, VIPs, the link's own, nobody's.
 */
PINNED_MAP(cluster, BPF_MAP_TYPE_LPM_TRIE, struct cidr_key, __u32, 262144, BPF_F_NO_PREALLOC);

/* Group -> its gateways in order: failover is one write here. */
PINNED_MAP(paths, BPF_MAP_TYPE_HASH, __u32, struct path_value, 65536, BPF_F_NO_PREALLOC);

/* Groups that this node is a gateway of. */
PINNED_MAP(groups, BPF_MAP_TYPE_HASH, __u32, struct group_value, 65536, BPF_F_NO_PREALLOC);

/* Egress IPs that this node may receive replies for. */
PINNED_MAP(egress_ips, BPF_MAP_TYPE_HASH, struct ip, struct egress_ip_value, 65536, BPF_F_NO_PREALLOC);

/* Tunnel endpoints of the cluster's nodes: tunnel packets of others are dropped. */
PINNED_MAP(nodes, BPF_MAP_TYPE_HASH, struct ip, __u32, 16384, BPF_F_NO_PREALLOC);

/* Devices by which translated traffic may leave. */
PINNED_MAP(uplinks, BPF_MAP_TYPE_HASH, __u32, __u32, 64, BPF_F_NO_PREALLOC);

/* Live flows of local pods, with the verdict that their first packet got. */
PINNED_MAP(flows, BPF_MAP_TYPE_HASH, struct flow_key, struct flow_value, 262144, BPF_F_NO_PREALLOC);

/* Forward half of the NAT state. */
PINNED_MAP(nat, BPF_MAP_TYPE_HASH, struct nat_key, struct nat_value, 262144, BPF_F_NO_PREALLOC);

/* Reverse half; claimed first, so a port has one owner. Larger than `nat`, as halves in their grace period
 * live here. */
PINNED_MAP(reverse, BPF_MAP_TYPE_HASH, struct reverse_key, struct reverse_value, 327680, BPF_F_NO_PREALLOC);

/* Packets and bytes by outcome (enum reason). */
PINNED_MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, REASON_LIMIT, 0);

/* Result of the last round of collection; one element. */
PINNED_MAP(collected, BPF_MAP_TYPE_ARRAY, __u32, struct collected, 1, 0);

#endif
