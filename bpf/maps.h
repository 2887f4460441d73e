/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps, one comment each. All are pinned by name; sizes of the large ones are set by the loader. No LRU
 * for flows: two LRU maps drift apart and black-hole live flows, so a full table refuses new flows and says
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

/* (device beneath, MAC) -> policy set of the selected pod whose device has it, whatever it sends as. */
PINNED_MAP(pod_macs, BPF_MAP_TYPE_HASH, struct pod_mac_key, __u32, 4096, BPF_F_NO_PREALLOC);

/* Address of a selected pod -> its device: what the host forwards does not tell that of a bridge's pods. */
PINNED_MAP(pod_devices, BPF_MAP_TYPE_HASH, struct ip, __u32, 4096, BPF_F_NO_PREALLOC);

/* Devices with a selected pod: a source address that `pods` does not know is dropped there. */
PINNED_MAP(strict_devices, BPF_MAP_TYPE_HASH, __u32, __u32, 4096, BPF_F_NO_PREALLOC);

/* (policy set, destination) -> rules, longest prefix. */
PINNED_MAP(policies, BPF_MAP_TYPE_LPM_TRIE, struct policy_key, struct policy_value, 262144,
	   BPF_F_NO_PREALLOC);

/* Prefix -> PLACE_…; none of them is ever sent out: pods, nodes, services, VIPs, the link's own, nobody's.
 */
PINNED_MAP(cluster, BPF_MAP_TYPE_LPM_TRIE, struct cidr_key, __u32, 262144, BPF_F_NO_PREALLOC);

/* Group -> its gateways, and this node's ports of its egress IPs. */
PINNED_MAP(groups, BPF_MAP_TYPE_HASH, __u32, struct group_value, 65536, BPF_F_NO_PREALLOC);

/* Changes whenever `groups` has changed, or by which ways nodes are reached: each flow then asks once more
 * whether its gateway and way are good. One element. */
PINNED_MAP(epoch, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);

/* Egress IPs that this node is a gateway of. One allocation: each of these large values by itself would begin
 * at a multiple of 4 KiB, and their beginnings would share a few lines of each cache. */
PINNED_MAP(egress_ips, BPF_MAP_TYPE_HASH, struct ip, struct egress_ip_value, 4096, 0);

/* Tunnel endpoint -> node number: tunnel packets of others are dropped. */
PINNED_MAP(nodes, BPF_MAP_TYPE_HASH, struct ip, __u32, 65536, BPF_F_NO_PREALLOC);

/* Node number -> tunnel endpoint. Mapped, so that the agent reads the few that are there in no time. */
PINNED_MAP(node_numbers, BPF_MAP_TYPE_ARRAY, __u32, struct node_value, NODE_NUMBERS, BPF_F_MMAPABLE);

/* A way to a node (its number, or with WAY_DIRECT) -> whether it answers there as a gateway. Written by the
 * programs alone. */
PINNED_MAP(liveness, BPF_MAP_TYPE_ARRAY, __u32, struct liveness, WAYS, 0);

/* A way to a node -> the last probes that were sent there. */
PINNED_MAP(probes, BPF_MAP_TYPE_HASH, __u32, struct probes, WAYS, BPF_F_NO_PREALLOC);

/* Source of Ethernet frames -> number of the node that sends them: who needs no tunnel. */
PINNED_MAP(neighbours, BPF_MAP_TYPE_HASH, struct neighbour_key, __u32, 65536, BPF_F_NO_PREALLOC);

/* Egress IPs of which this node has ports: answers to them may come without the tunnel. */
PINNED_MAP(own_egress_ips, BPF_MAP_TYPE_HASH, struct ip, __u32, 65536, BPF_F_NO_PREALLOC);

/* Devices by which translated traffic may leave. */
PINNED_MAP(uplinks, BPF_MAP_TYPE_HASH, __u32, __u32, 64, BPF_F_NO_PREALLOC);

/* Live flows of local pods, with the verdict and the port that their first packet got. */
PINNED_MAP(flows, BPF_MAP_TYPE_HASH, struct flow_key, struct flow_value, 262144, BPF_F_NO_PREALLOC);

/* Ports in use and at rest, towards each remote. Claimed before the flow is recorded, so a port has one
 * owner. Larger than `flows`, as ports at rest live here. */
PINNED_MAP(reverse, BPF_MAP_TYPE_HASH, struct reverse_key, struct reverse_value, 524288, BPF_F_NO_PREALLOC);

/* Flows that bear ports of a granule of an egress IP: what tells which blocks are unused. */
PINNED_MAP(granules, BPF_MAP_TYPE_HASH, struct granule_key, struct granule_use, 65536, BPF_F_NO_PREALLOC);

/* Device -> what its pod has of `flows` and `reverse`; ALL_PODS -> the sum. */
PINNED_MAP(uses, BPF_MAP_TYPE_HASH, __u32, struct use, 16384, BPF_F_NO_PREALLOC);

/* Groups in which searches for a port grow long: this node needs more of them. */
PINNED_MAP(pressures, BPF_MAP_TYPE_HASH, __u32, struct pressure, 65536, BPF_F_NO_PREALLOC);

/* What trials of port sets bear, and echoes of them must; one element. */
PINNED_MAP(trial_token, BPF_MAP_TYPE_ARRAY, __u32, struct trial_token, 1, 0);

/* What this gateway has relayed lately, by CPU; one element. */
PINNED_MAP(relays, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct relays, 1, 0);

/* By a hash of where they come from -> when tunnel packets were left to the tunnel device. */
PINNED_MAP(left_to_device, BPF_MAP_TYPE_ARRAY, __u32, struct left, 1 << LEFT_SHIFT, 0);

/* First fragments, for as long as others may follow (30 s). LRU: who sends many of them, a pod or the world,
 * shortens that time for all and stops nobody's; a full table would. */
PINNED_MAP(fragments, BPF_MAP_TYPE_LRU_HASH, struct fragment_key, struct fragment_value, 16384, 0);

/* Whose turn it is among the ids of fragments, by a hash of where to. */
PINNED_MAP(sequences, BPF_MAP_TYPE_ARRAY, __u32, struct sequence, ID_SEQUENCES, 0);

/* Packets and bytes by outcome (enum reason). */
PINNED_MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, REASON_LIMIT, 0);

/* Result of the last round of collection; one element. */
PINNED_MAP(collected, BPF_MAP_TYPE_ARRAY, __u32, struct collected, 1, 0);

#endif
