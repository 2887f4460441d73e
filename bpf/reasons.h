/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The one table of outcomes: number, name in metrics and logs, meaning. Read by C (as an enum) and by
 * bpf/layout.py (as text); numbers are never reused, names never change. 1-31 went on, 32 and up were
 * dropped.
 */
#ifndef ROUTERD_REASONS_H
#define ROUTERD_REASONS_H

#define REASONS(R)                                                                                           \
	R(1, ENCAPSULATED, "sent through the tunnel to a gateway")                                           \
	R(2, TRANSLATED, "left this gateway with an egress IP")                                              \
	R(3, REVERSED, "reply to an egress IP, translated back")                                             \
	R(4, DELIVERED, "reply from a gateway, handed to the pod")                                           \
	R(5, TOO_BIG_ANSWERED, "larger than the tunnel carries: answered with ICMP fragmentation needed")    \
	R(32, NO_GROUP, "no egress group has been published for the policy")                                 \
	R(33, NO_GATEWAY, "no gateway of the egress group is up")                                            \
	R(34, UNSUPPORTED_PROTOCOL, "neither TCP, UDP nor ICMP echo")                                        \
	R(35, FRAGMENT, "IP fragment of a selected flow")                                                    \
	R(36, MALFORMED, "header cut short, or with a length or checksum that is wrong")                     \
	R(37, SPOOFED_SOURCE, "source address does not belong to the pod's device")                          \
	R(38, TUNNEL_PORT, "pod sent to a node's tunnel port")                                               \
	R(39, FLOW_TABLE_FULL, "no room for a new flow at the source node")                                  \
	R(40, NAT_TABLE_FULL, "no room for a new mapping at the gateway")                                    \
	R(41, NO_FREE_PORT, "no free source port of the egress IP towards this destination")                 \
	R(42, UNKNOWN_NODE, "tunnel packet from an address that is no known node")                           \
	R(43, UNKNOWN_GROUP, "tunnel packet with a VNI that names no egress group of this gateway")          \
	R(44, NO_MAPPING, "packet to an egress IP that belongs to no flow")                                  \
	R(45, NO_ROUTE, "the gateway has no route to the destination")                                       \
	R(46, NOT_UPLINK, "the gateway's route leads to a device that is no uplink")                         \
	R(47, TTL_EXPIRED, "time to live ran out")                                                           \
	R(48, TOO_BIG, "larger than the tunnel carries and not answerable")                                  \
	R(49, TUNNEL_ERROR, "the kernel refused to encapsulate or redirect")                                 \
	R(50, REWRITE_ERROR, "the kernel refused to rewrite the packet")                                     \
	R(51, UNKNOWN_POD, "reply for a pod that is not on this node")                                       \
	R(52, VLAN_TAGGED, "frame with a VLAN tag from a selected pod's device")                             \
	R(53, UNKNOWN_FLOW, "reply that answers no flow of the pod through a gateway of its group")          \
	R(54, BOGUS_DESTINATION, "destination that no host can have: 0/8, 127/8, 240/4")

enum reason {
	REASON_UNSPECIFIED = 0,
#define R(number, name, text) name = number,
	REASONS(R)
#undef R
	    REASON_LIMIT = 64,
};

#endif
