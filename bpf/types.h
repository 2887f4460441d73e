/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Keys and values of the maps: the contract between the datapath and user space (bpf/layout.py mirrors it,
 * and a test holds the mirror against the object's BTF). Addresses are 128 bits, IPv4 as ::ffff:a.b.c.d, so
 * that both families share one layout. Types named __be* are in network byte order, all others in the host's.
 * No implicit padding: every key is compared byte by byte.
 *
 * An egress IP's ports are given to nodes in granules of 64: a node translates within the blocks that are its
 * own, and a gateway needs no more than "granule -> node number" to know who may send and who gets an answer.
 * ICMP echo identifiers count as ports.
 */
#ifndef ROUTERD_TYPES_H
#define ROUTERD_TYPES_H

#include <linux/types.h>

#define LAYOUT_VERSION 3

#define MAX_RULES     8	    /* rules of one (policy set, prefix) */
#define MAX_GATEWAYS  16    /* gateways of one group */
#define MAX_BLOCKS    128   /* port blocks of one group on one node: 8 of each of 16 egress IPs */
#define GRANULE_SHIFT 6	    /* a granule has 64 ports */
#define GRANULES      1024  /* of one address */
#define VIP_PORTS     32768 /* `host_below` of a Service's address */
#define ALL_PORTS     65536 /* of one that is the node's own */
#define NODE_NUMBERS  65536
#define ID_SEQUENCES  1024
#define NO_NODE	      0 /* no node has this number */
#define WAY_DIRECT                                                                                           \
	0x10000 /* with a node's number: the way to it without the tunnel, else the one through it */
#define WAYS	    (2 * NODE_NUMBERS)
#define PROBES_KEPT 8 /* of each gateway; more than may be on their way at once */

/* What becomes of destinations in a prefix of `cluster`, whatever policies say. */
#define PLACE_INSIDE  1 /* of the cluster or the link: left alone */
#define PLACE_NOWHERE 2 /* no host has such an address: what policies cover of it is dropped */

struct ip {
	__be32 w[4];
};

/* One element: what the agent tells the programs. */
struct settings {
	__u32 layout_version; /* this and the next are the first words in every release: others read them */
	__u32 hands_over; /* 1 = nothing new begins: a release with other maps is about to go on from here */
	struct ip node_address; /* this node's end of every tunnel */
	struct ip icmp_source4; /* sources of the ICMP errors that we send; none in all words = send none */
	struct ip icmp_source6;
	struct ip
	    way_out4; /* a gateway in service has a route to it by an uplink; none in all words = not asked */
	struct ip way_out6;
	__u64 object_digest; /* of the object that the pinned programs came from */
	__u64 probe_grace;   /* ns until an answer may be missed, unless two round trips are longer */
	__u32 tunnel_ifindex;
	__u32 tunnel_mtu; /* largest inner IP packet, bytes */
	__u32 tcp_established_seconds;
	__u32 tcp_opening_seconds;
	__u32 tcp_closing_seconds;
	__u32 udp_seconds;
	__u32 icmp_seconds;
	__u32 flow_room;     /* elements of `flows` */
	__u32 port_room;     /* of `reverse` */
	__u32 flows_per_pod; /* most that the pod behind one device may begin; 0 = there are no quotas */
	__u32 ports_per_pod;
	__u32 outside_flows;	/* most flows that began outside, of all pods */
	__u32 probe_multiplier; /* unanswered probes that make a gateway silent; 0 = nobody is watched */
	__u32 out_of_service;	/* enum service: why this node is not to be used as a gateway; 0 = it is */
	__u32 network_policy;	/* enum network_policy: the way of a flow's first packet */
	__u32 forward_mark;	/* the bit of it while the host has it */
	__u32 deadline_seconds; /* of a flow that no policy sends its way any more */
	__u32 direct_ifindex;	/* the device by which nodes send without the tunnel; 0 = nobody does */
	__u32 flow_mtu;		/* largest IP packet that each way carries which a flow may have, bytes */
	__u32 underlay_ifindex; /* the device of other nodes by which the programs send and take tunnel
				   packets themselves; 0 = the tunnel device does all of it */
	__u16 tunnel_port;
	__u8 tunnels; /* 1 = packets may go through the tunnel; what gateways relay always does */
	__u8 reserved;
	__u32 reserved2;
};

/* Who may look at the first packet of a flow before it leaves. */
enum network_policy {
	POLICY_DIRECT = 0,  /* nobody: no CNI enforces NetworkPolicies here */
	POLICY_FORWARD = 1, /* the host's forward hook, see handing.h */
	POLICY_REFUSED = 2, /* who should is bypassed: no flow begins */
};

struct pod_key {
	__u32 ifindex; /* the host-side device */
	struct ip address;
};

struct pod_value {
	__u32 policy_set; /* 0 = decided: no policy */
	__u8 pod_mac[6];
	__u8 device_mac[6];
};

/* What frames of a pod's device bear that lies upon another one, and has a MAC of its own. */
struct pod_mac_key {
	__u32 ifindex; /* the device beneath */
	__u8 mac[6];
	__u8 reserved[2];
};

/* Keys of longest-prefix matches begin with the family: a short IPv6 prefix holds the mapped IPv4 addresses
 * too. */
#define PREFIX_IPV6 0x80000000U

/* LPM over the destinations of one policy set; prefixlen counts from policy_set on: 32 + 128 at most. */
struct policy_key {
	__u32 prefixlen;
	__u32 policy_set; /* | PREFIX_IPV6 */
	struct ip destination;
};

struct rule {
	__u32 group;	  /* 0 = none published: drop */
	__u16 first_port; /* 0 = any */
	__u16 last_port;
	__u8 protocol;	 /* IPPROTO_*, ICMP for both families' echo; 0 = any */
	__u8 exit_local; /* 1 = out by this node itself; answers come by the group's gateways */
	__u8 reserved[2];
};

struct policy_value {
	__u32 count;
	struct rule rules[MAX_RULES]; /* the first that matches decides; none: leave the packet alone */
};

struct cidr_key {
	__u32 prefixlen; /* from family on */
	__u32 family;	 /* 0 or PREFIX_IPV6 */
	struct ip address;
};

struct node_value {
	struct ip address; /* tunnel endpoint; none in all words = no node has this number */
	struct ip
	    link_local; /* next hop of IPv6 packets that need no tunnel; none in all words = it has none */
	__u32 local;	/* 1 = this node itself */
	__u32 direct;	/* 1 = it is on the link of direct_ifindex, and what goes to it needs no tunnel */
};

/* A node's own device on the link that nodes share. */
struct neighbour_key {
	__u8 mac[6];
	__u8 reserved[2];
};

struct gateway {
	__u16 node; /* number */
	__u8 up;
	__u8 order; /* it is used while none of a lower one is good; all have 0 where they share the flows */
};

/* A power of two of ports, aligned. */
struct block {
	struct ip egress_ip;
	__u16 first; /* port */
	__u8 shift;  /* 2^shift ports */
	__u8 closed; /* 1 = asked back: nothing new begins here */
	__u32 reserved;
	/* By which gateways, a bit for each place in `gateways`, from ECHOED_DIRECT on of those that did so
	 * without the tunnel: they know that the ports are this node's. Of this entry the programs write
	 * these words alone, see trial.h. */
	__u64 echoed;
};

#define ECHOED_DIRECT 32

/* What a source node knows of a group: by whom its packets leave, and as which ports. */
struct group_value {
	__u32 gateway_count;
	__u32 block_count;
	struct gateway gateways[MAX_GATEWAYS];
	struct block blocks[MAX_BLOCKS];
};

/* What a gateway knows of an egress IP: the node of each granule. */
struct egress_ip_value {
	__u32 host_below;      /* what is to a port below and to no node's is the host's; 0 = nothing is */
	__u32 group;	       /* whose gateways serve it; 0 = of none any more */
	__u16 nodes[GRANULES]; /* numbers */
};

/* A live flow as its pod's node sees it. For ICMP echo pod_port is the identifier and remote_port 0. The
 * device belongs to the key: what another device sends with the pod's address finds nothing.
 */
struct flow_key {
	struct ip pod;
	struct ip remote;
	__u32 ifindex;
	__be16 pod_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 reserved[3];
};

struct flow_value {
	__u64 last_seen; /* CLOCK_MONOTONIC, ns, coarse */
	__u64 id;	 /* of its half in `reverse`; 0 = it has none */
	struct ip egress_ip;
	__u32 group; /* 0 = begun from outside: leave it alone */
	__u32 epoch; /* of `epoch`, when its gateway was found good; another = it stands in for one */
	__be16 egress_port;
	__u16 gateway;	      /* node number */
	__u8 seen_out;	      /* enum seen, pod to remote */
	__u8 seen_in;	      /* only of flows begun from outside; the others' is in `reverse` */
	__u8 exit_local;      /* of its rule, when it began */
	__u8 direct;	      /* 1 = its gateway gets it without the tunnel */
	__u64 unwanted_since; /* CLOCK_MONOTONIC, ns: no policy sends it this way any more; 0 = one does */
};

enum seen {
	SEEN_PACKET = 1,
	SEEN_FIN = 2,
	SEEN_RST = 4,
	SEEN_FIN_FIRST = 8, /* the FIN of this side came before the other's */
	SEEN_END = 16,	    /* in seen_out: the connection has ended, its port rests */
	SEEN_AGAIN = 32,    /* in seen_in, begun from outside: who began it spoke again after the pod had */
	SEEN_BEFORE = 64,   /* in seen_out, of no group: begun by the pod before a policy selected it */
};

struct reverse_key {
	struct ip egress_ip;
	struct ip remote;
	__be16 egress_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 reserved[3];
};

/* Whose a port is, towards one remote. `owner` is a state in its two highest bits and the flow's id below: a
 * port passes from one flow to the next by one compare-and-swap of that word.
 */
struct reverse_value {
	__u64 owner;
	__u64 last_seen; /* of an answer; when it began before there was one */
	__u64 rests_until;
	struct ip pod;
	__u32 ifindex;
	__u32 group;
	__be16 pod_port;
	__u16 gateway; /* node number of the one that brought the last answer */
	__u8 pod_mac[6];
	__u8 device_mac[6];
	__u8 seen_in;
	__u8 reserved[7];
};

#define OWNER_ID      0x3fffffffffffffffULL
#define OWNER_CLAIMED 0x0000000000000000ULL /* its fields are being written */
#define OWNER_LIVE    0x4000000000000000ULL
#define OWNER_RESTING 0x8000000000000000ULL
#define OWNER_DYING   0xc000000000000000ULL /* collected in the next round */

/* A datagram of which the first fragment has passed. */
struct fragment_key {
	struct ip source;
	struct ip destination;
	__u32 ifindex; /* of the pod that sends it; 0 = it comes from the world */
	__u32 id;
	__u8 protocol; /* of IPv4; IPv6 tells datagrams apart without it */
	__u8 reserved[3];
};

/* What the others cannot say themselves. */
struct fragment_value {
	__u64 begun;   /* CLOCK_MONOTONIC, ns, coarse */
	__u32 sent_id; /* in place of the pod's own */
	__be16 source_port;
	__be16 destination_port;
	__u16 length; /* of the first, bytes of the datagram */
	__u8 protocol;
	__u8 handed_in; /* 1 = to the host, which may be putting them together */
	__u8 reserved[4];
};

/* How many datagrams have been sent in fragments to some destination. */
struct sequence {
	__u64 turn;
};

/* How many flows bear ports of a granule, counted by collection. */
struct granule_key {
	struct ip egress_ip;
	__u32 granule; /* port >> GRANULE_SHIFT */
};

struct granule_use {
	__u64 round; /* in which it was counted: the time of its beginning */
	__u64 ports; /* live and resting, towards whichever remote */
};

/* What of the tables the pod behind a device has. Programs count as they add and take away; collection counts
 * anew, as user space takes away, too. */
struct use {
	__u64 round;   /* that counts, or counted last: the time of its beginning */
	__s32 flows;   /* begun by the pod */
	__s32 outside; /* flows begun from outside */
	__s32 ports;   /* in use and at rest */
	__s32 counted_flows;
	__s32 counted_outside;
	__s32 counted_ports;
	__u32 pressed; /* since the last round: it wanted more than seven eighths of what it may have */
	__u32 reserved;
};

#define ALL_PODS 0 /* the key of their sum; no device has this index */

/* Searches for a port of a group that took long, or found none. */
struct pressure {
	__u64 last_seen; /* CLOCK_MONOTONIC, ns, coarse */
	__u64 searches;
};

#define TRIAL_PORT    9 /* UDP; discard (RFC 863) */
#define TRIAL_TTL     255
#define TRIAL_REQUEST 1
#define TRIAL_REPLY   2

/* What the trial of a port set carries, see trial.h. */
struct trial {
	__u8 kind;
	__u8 direct;   /* 1 = it goes without the tunnel */
	__u16 gateway; /* number of the node that it is sent to */
	__u32 group;
	__u64 token; /* that nobody guesses */
};

/* What all trials of this node bear. */
struct trial_token {
	__u64 token; /* 0 = none has been drawn */
};

/* Answers that a CPU has relayed since then; only so many within RELAY_WINDOW. */
struct relays {
	__u64 since; /* CLOCK_MONOTONIC, ns, coarse */
	__u64 packets;
};

#define LEFT_SHIFT 12 /* 2^12 of them, see outer.h */

/* When a tunnel packet was left to the tunnel device last. */
struct left {
	__u64 at; /* CLOCK_MONOTONIC, ns, coarse */
};

/* --- liveness of gateways: see probe.h */

#define PROBE_PORT	 3785 /* UDP; RFC 5881, section 4 */
#define PROBE_TTL	 255
#define PROBE_REQUEST	 1
#define PROBE_REPLY	 2
#define PROBE_MAC	 0x02726400 /* of a probe on its way into the tunnel: the gateway's number follows */
#define TRIAL_MAC	 0x02726404 /* of a trial, the same */
#define DIRECT_PROBE_MAC 0x02726402 /* of one that is to go without it */
#define DIRECT_TRIAL_MAC 0x02726403
#define BOTH_WAYS	 1 /* a request: its sender gets our answers without the tunnel */

/* What a probe carries. */
struct probe {
	__u8 kind;
	__u8 service; /* of a reply: enum service; of a request without the tunnel: BOTH_WAYS, or 0 */
	__u8 reserved[6];
	__u64 token; /* that nobody guesses */
};

/* Why a gateway asks sources to use others: it says so in its answers to probes. */
enum service {
	SERVICE_DRAINING = 1,
	SERVICE_NO_SESSION = 2, /* no router hears of it by BGP */
	SERVICE_NO_UPLINK = 4,
	SERVICE_NO_ROUTE = 8,	  /* found by the program that answers */
	SERVICE_NO_UPSTREAM = 16, /* targets that it asks do not answer */
};

/* What this node knows of a way to another one, for every packet to read. Probes are numbered from 1 on. */
struct liveness {
	__u32 sent;
	__u32 heard;   /* the last one that was answered */
	__u32 service; /* as that answer said */
	__u32 asked; /* when the other node said last that it gets what we send this way: see clock_of_asks */
};

struct sent_probe {
	__u64 token; /* 0 = answered */
	__u64 at;    /* CLOCK_MONOTONIC, ns */
};

/* The probes of one gateway: number n is at n % PROBES_KEPT. */
struct probes {
	struct sent_probe kept[PROBES_KEPT];
	__u64 answered;
	__u64 round_trip; /* ns, smoothed */
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* What one round of collection did; written by `collect`, read by the agent. */
struct collected {
	__u64 flows;
	__u64 flows_live;
	__u64 ports;
	__u64 ports_live;
	__u64 ports_resting;
	__u64 round;	       /* of `granule_use` */
	__u64 ports_uncounted; /* for which `granules` had no room */
	__u64 granules;	       /* in use */
};

#endif
