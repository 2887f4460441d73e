/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The one table of outcomes: number, name in metrics and logs, meaning. Read by C (as an enum) and by
 * bpf/layout.py (as text); numbers are never reused, names never change. 1-31 went on, 32 and up were
 * dropped.
 */
#ifndef ROUTERD_REASONS_H
#define ROUTERD_REASONS_H

#define REASONS(R)                                                                                           \
	R(1, ENCAPSULATED, "sent through the tunnel to a gateway")                                           \
	R(2, TRANSLATED, "left this node with an egress IP")                                                 \
	R(3, REVERSED, "reply to an egress IP, sent to the node of its port set")                            \
	R(4, DELIVERED, "reply, translated back and handed to the pod")                                      \
	R(5, TOO_BIG_ANSWERED, "larger than the way carries: answered with an ICMP error")                   \
	R(6, TTL_ANSWERED, "time to live ran out: answered with an ICMP error")                              \
	R(7, SENT_UNHEARD, "sent through the tunnel, though no gateway of the group answers probes")         \
	R(8, PROBE_SENT, "liveness probe of this node, sent to a gateway")                                   \
	R(9, PROBE_REFLECTED, "liveness probe of another node, answered")                                    \
	R(10, PROBE_HEARD, "answer to a liveness probe of this node")                                        \
	R(11, RELAYED, "answer whose node is not known here, handed to another gateway")                     \
	R(12, TRIAL_SENT, "trial of a port set of this node, sent to a gateway")                             \
	R(13, TRIAL_ECHOED, "trial of another node's port set, sent back to it")                             \
	R(14, TRIAL_HEARD, "trial of a port set of this node, come back from a gateway")                     \
	R(20, HANDED_IN, "first packet of a flow, handed to the host's forward hook")                        \
	R(21, CAME_OUT, "what the host's forward hook let pass, taken up at an uplink")                      \
	R(24, SENT_DIRECT, "sent to a gateway on the same link, without the tunnel")                         \
	R(25, REVERSED_DIRECT,                                                                               \
	  "reply to an egress IP, sent to its node on the same link, without the tunnel")                    \
	R(32, NO_GROUP, "no egress group has been published for the policy")                                 \
	R(33, NO_GATEWAY, "no gateway of the egress group is up")                                            \
	R(34, UNSUPPORTED_PROTOCOL, "neither TCP, UDP, SCTP nor ICMP echo")                                  \
	R(35, FRAGMENT, "IP fragment whose first has not come before it")                                    \
	R(36, MALFORMED, "header cut short, or with a length or checksum that is wrong")                     \
	R(37, SPOOFED_SOURCE, "source address does not belong to the pod's device")                          \
	R(38, TUNNEL_PORT, "pod sent to a node's tunnel port")                                               \
	R(39, FLOW_TABLE_FULL, "no room for a new flow at the source node")                                  \
	R(41, NO_FREE_PORT, "no free port in this node's port sets towards this destination")                \
	R(42, UNKNOWN_NODE, "tunnel packet from an address that is no known node")                           \
	R(44, NO_MAPPING, "packet to a port of an egress IP that no node has")                               \
	R(45, NO_ROUTE, "the gateway has no route to the destination")                                       \
	R(46, NOT_UPLINK, "the gateway's route leads to a device that is no uplink")                         \
	R(47, TTL_EXPIRED, "time to live ran out, and not answerable")                                       \
	R(48, TOO_BIG, "larger than the way carries, and not answerable")                                    \
	R(49, TUNNEL_ERROR, "the kernel refused to encapsulate or redirect")                                 \
	R(50, REWRITE_ERROR, "the kernel refused to rewrite the packet")                                     \
	R(52, VLAN_TAGGED, "frame with a VLAN tag from a selected pod's device")                             \
	R(53, UNKNOWN_FLOW, "reply that answers no flow of a pod here, or comes from no gateway of it")      \
	R(54, BOGUS_DESTINATION, "destination that no host can have, or that is not behind a gateway")       \
	R(55, NO_PORT_SET, "this node has no port set of the group's egress IPs")                            \
	R(56, UNKNOWN_EGRESS_IP, "tunnel packet with an egress IP that this node is no gateway of")          \
	R(57, FOREIGN_PORT, "another node's packet from a port, or a fragment's id, that is not its own")    \
	R(58, REVERSE_TABLE_FULL, "no room for a new port in use at the source node")                        \
	R(59, BAD_PROBE, "liveness probe that is forged, replayed or cut short")                             \
	R(60, RELAY_LIMIT, "answer whose node is not known here, and too many were handed on")               \
	R(61, FLOW_QUOTA, "the pod has its share of the source node's flows")                                \
	R(62, PORT_QUOTA, "the pod has its share of the source node's ports in use and at rest")             \
	R(63, OUTSIDE_QUOTA, "the pod has its share of the flows that began outside")                        \
	R(64, FOREIGN_RELAY, "answer handed on by a node that is no gateway of the egress IP")               \
	R(65, BAD_FRAGMENT, "IP fragment that splits its transport header, or overlaps its first")           \
	R(66, UNTRIED_PORT_SET, "no gateway of the group has echoed a port set of this node yet")            \
	R(67, BAD_TRIAL, "trial of a port set, or its echo, that is forged or cut short")                    \
	R(68, HANDING_OVER, "new flow while another release takes over the maps")                            \
	R(72, FOREIGN_SOURCE, "from another pod to a selected one, with a source that is neither's")         \
	R(80, STRAY_MARK, "bears the mark of what was handed to the forward hook, and is none of it")        \
	R(81, UNENFORCED, "NetworkPolicies of this node's CNI would be bypassed")                            \
	R(82, UNHOOKED,                                                                                      \
	  "from a selected pod's device that leads past the programs, to what its policies cover")           \
	R(88, UNKNOWN_NEIGHBOUR, "packet from or to an egress IP, from a neighbour that is no node")

enum reason {
	REASON_UNSPECIFIED = 0,
#define R(number, name, text) name = number,
	REASONS(R)
#undef R
	    REASON_LIMIT = 96,
};

#endif
