/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Keys and values of the maps: the contract between the datapath and user space (bpf/layout.py mirrors it,
 * and a test holds the mirror against the object's BTF). Addresses are 128 bits, IPv4 as ::ffff:a.b.c.d, so
 * that both families share one layout. Types named __be* are in network byte order, all others in the host's.
 * No implicit padding: every key is compared byte by byte.
 */
#ifndef ROUTERD_TYPES_H
#define ROUTERD_TYPES_H

#include <linux/types.h>

#define LAYOUT_VERSION 1

#define MAX_RULES    8	/* rules of one (policy set, prefix) */
#define MAX_GATEWAYS 16 /* gateways of one group */

/* What becomes of destinations in a prefix of `cluster`, whatever policies say. */
#define PLACE_INSIDE  1 /* of the cluster or the link: left alone */
#define PLACE_NOWHERE 2 /* no host has such an address: what policies cover of it is dropped */

#define NO_NODE 0 /* a mapping whose pod is on the gateway itself */

struct ip {
	__be32 w[4];
};

/* One element: what the agent tells the programs. */
struct settings {
	struct ip node_address; /* source of the ICMP errors that we send */
	__u64 object_digest;	/* of the object that the pinned programs came from */
	__u32 layout_version;
	__u32 tunnel_ifindex;
	__u32 tunnel_mtu; /* largest inner IP packet, bytes */
	__u16 tunnel_port;
	__u16 reserved;
	__u32 tcp_established_seconds;
	__u32 tcp_opening_seconds;
	__u32 tcp_closing_seconds;
	__u32 udp_seconds;
	__u32 icmp_seconds;
	__u32 orphan_seconds; /* how long a reverse mapping outlives its forward one */
};

struct pod_key {
	__u32 ifindex; /* the host-side device */
	struct ip address;
};

struct pod_value {
	__u32 policy_set; /* 0 = decided: no policy */
};

/* Where replies for a local pod go. */
struct local_pod {
	__u32 ifindex;
	__u8 pod_mac[6];
	__u8 device_mac[6];
};

/* LPM over the destinations of one policy set; prefixlen counts from policy_set on: 32 + 128 at most. */
struct policy_key {
	__u32 prefixlen;
	__u32 policy_set;
	struct ip destination;
};

struct rule {
	__u32 group;	  /* VNI; 0 = none published: drop */
	__u16 first_port; /* 0 = any */
	__u16 last_port;
	__u8 protocol; /* IPPROTO_*; 0 = any */
	__u8 reserved[3];
};

struct policy_value {
	__u32 count;
	struct rule rules[MAX_RULES]; /* the first that matches decides; none: leave the packet alone */
};

struct cidr_key {
	__u32 prefixlen;
	struct ip address;
};

struct gateway {
	struct ip address; /* tunnel endpoint */
	__u16 slot;
	__u8 up;
	__u8 local; /* this node itself */
};

struct path_value {
	__u32 count;
	struct gateway gateways[MAX_GATEWAYS]; /* in order of preference */
};

/* A group that this node is a gateway of. */
struct group_value {
	struct ip egress_ip;
	__u16 first_port; /* this gateway's part of the range */
	__u16 last_port;
};

struct egress_ip_value {
	__u32 node_address; /* 1 = the address is the node's own: what is not ours goes on to the host */
};

/* A live flow as its source node sees it. For ICMP echo pod_port is the identifier and remote_port 0. */
struct flow_key {
	struct ip pod;
	struct ip remote;
	__be16 pod_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 reserved[3];
};

struct flow_value {
	__u64 last_seen; /* CLOCK_MONOTONIC, ns, coarse */
	__u32 group;	 /* 0 = begun from outside: leave it alone */
	__u16 slot;
	__u8 seen_out; /* enum seen, pod to remote */
	__u8 seen_in;
};

enum seen {
	SEEN_PACKET = 1,
	SEEN_FIN = 2,
	SEEN_RST = 4,
};

struct nat_key {
	struct ip pod;
	struct ip remote;
	__u32 group;
	__be16 pod_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 reserved[3];
};

struct nat_value {
	__u64 last_seen;
	struct ip egress_ip;
	struct ip node; /* tunnel endpoint that the flow comes from; NO_NODE in all words = a local pod */
	__be16 egress_port;
	__u8 seen_out;
	__u8 reserved[5];
};

struct reverse_key {
	struct ip egress_ip;
	struct ip remote;
	__be16 egress_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 reserved[3];
};

struct reverse_value {
	__u64 last_seen;
	__u64 orphaned; /* when its forward mapping was found missing; 0 = it was there */
	struct ip pod;
	struct ip node;
	__u32 group;
	__be16 pod_port;
	__u8 seen_in;
	__u8 reserved;
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* What one round of collection did; written by `collect`, read by the agent. */
struct collected {
	__u64 flows;
	__u64 flows_live;
	__u64 mappings;
	__u64 mappings_live;
	__u64 reverses;
	__u64 reverses_live;
};

#endif
