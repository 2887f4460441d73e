/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packet -> struct packet. Reads only; offsets are from the start of the Ethernet header. */
#ifndef ROUTERD_PARSE_H
#define ROUTERD_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "icmp.h"
#include "types.h"

#define IP_OFFSET      ((__u32)sizeof(struct ethhdr))
#define IP_DF	       0x4000
#define IP_MF_OR_LATER 0x3fff /* more fragments, or an offset */
#define IP_HEADER_MAX  15     /* words of 4 bytes */

enum parsed {
	PARSED_FLOW,	    /* TCP, UDP or ICMP echo: ports are set */
	PARSED_ICMP_ERROR,  /* ICMP that quotes a packet */
	PARSED_FRAGMENT,    /* addresses only */
	PARSED_UNSUPPORTED, /* addresses only */
	PARSED_NOT_IPV4,
	PARSED_MALFORMED,
};

struct packet {
	struct ip source;
	struct ip destination;
	__be16 source_port; /* echo request and reply: the identifier, on the side of the one who asks */
	__be16 destination_port;
	__u32 l4_offset;
	__u32 total_length; /* of the IP packet, bytes */
	__u8 protocol;
	__u8 ttl;
	__u8 tcp_flags; /* byte 13 of the TCP header */
	__u8 icmp_type;
	bool dont_fragment;
	bool plain_header; /* no IP options */
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

static __always_inline struct ip ip_from_v4(__be32 address)
{
	struct ip mapped = {.w = {0, 0, bpf_htonl(0xffff), address}};

	return mapped;
}

static __always_inline bool ip_is_none(const struct ip *address)
{
	return !(address->w[0] | address->w[1] | address->w[2] | address->w[3]);
}

static __always_inline bool ip_equal(const struct ip *a, const struct ip *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

/* The Internet checksum (RFC 1071) of what `sum` adds up; 0 over data that carries a right one. */
static __always_inline __u16 fold(__s64 sum)
{
	__u32 folded = sum & 0xffff;

	folded += (sum >> 16) & 0xffff;
	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

/* Whether the IPv4 header at `offset` bears its own checksum. No device computes that one, so it is right in
 * whatever a stack has sent. */
static __always_inline bool has_own_checksum(struct __sk_buff *skb, __u32 offset, const struct iphdr *ip)
{
	const __be16 *words = (const __be16 *)ip;
	__be16 option[2];
	__u32 sum = 0;

	for (__u32 i = 0; i < sizeof(*ip) / 2; i++)
		sum += words[i];
	for (__u32 i = 5; i < IP_HEADER_MAX && i < ip->ihl; i++) {
		if (bpf_skb_load_bytes(skb, offset + i * sizeof(option), option, sizeof(option)))
			return false;
		sum += option[0] + option[1];
	}
	return !fold(sum);
}

/* Length of the packet by its header; 0 if the frame does not hold it, or the header does not fit into it.
 * Bytes behind it are Ethernet's padding. A packet that is to be cut into segments has none; one of more than
 * 64 KiB says 0. */
static __always_inline __u32 length_of(const struct __sk_buff *skb, __u32 offset, const struct iphdr *ip)
{
	__u32 length = bpf_ntohs(ip->tot_len), present = skb->len - offset;

	if (skb->gso_size)
		return !length || length == present ? present : 0;
	return length < ip->ihl * 4 || length > present ? 0 : length;
}

/* Ports (or echo identifier) at `offset`, in `room` bytes; the sides are as seen from the sender of this
 * header. The transport's checksum is left to its receiver, as any router does: what a device is still to
 * compute is not to be told from what is wrong, and what is wrong stays so through every rewrite. */
static __always_inline enum parsed parse_l4(struct __sk_buff *skb, __u32 offset, __u32 room,
					    struct packet *packet)
{
	if (packet->protocol == IPPROTO_TCP) {
		struct tcphdr tcp;

		if (bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)) || tcp.doff < 5 || tcp.doff * 4 > room)
			return PARSED_MALFORMED;
		packet->source_port = tcp.source;
		packet->destination_port = tcp.dest;
		packet->tcp_flags = ((__u8 *)&tcp)[13];
		return PARSED_FLOW;
	}
	if (packet->protocol == IPPROTO_UDP) {
		struct udphdr udp;

		if (bpf_skb_load_bytes(skb, offset, &udp, sizeof(udp)) || bpf_ntohs(udp.len) < sizeof(udp) ||
		    bpf_ntohs(udp.len) > room)
			return PARSED_MALFORMED;
		packet->source_port = udp.source;
		packet->destination_port = udp.dest;
		return PARSED_FLOW;
	}
	if (packet->protocol == IPPROTO_ICMP) {
		struct icmphdr icmp;

		if (room < sizeof(icmp) || bpf_skb_load_bytes(skb, offset, &icmp, sizeof(icmp)))
			return PARSED_MALFORMED;
		packet->icmp_type = icmp.type;
		if (icmp.type == ICMP_ECHO) {
			packet->source_port = icmp.un.echo.id;
			return PARSED_FLOW;
		}
		if (icmp.type == ICMP_ECHOREPLY) {
			packet->destination_port = icmp.un.echo.id;
			return PARSED_FLOW;
		}
		if (icmp.type == ICMP_DEST_UNREACH || icmp.type == ICMP_TIME_EXCEEDED ||
		    icmp.type == ICMP_PARAMETERPROB)
			return PARSED_ICMP_ERROR;
	}
	return PARSED_UNSUPPORTED;
}

/* The IPv4 header at `offset`, and what follows it. */
static __always_inline enum parsed parse_ipv4(struct __sk_buff *skb, __u32 offset, struct packet *packet)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return PARSED_MALFORMED;
	packet->source = ip_from_v4(ip.saddr);
	packet->destination = ip_from_v4(ip.daddr);
	packet->protocol = ip.protocol;
	packet->ttl = ip.ttl;
	packet->total_length = length_of(skb, offset, &ip);
	packet->dont_fragment = ip.frag_off & bpf_htons(IP_DF);
	packet->plain_header = ip.ihl == 5;
	packet->l4_offset = offset + ip.ihl * 4;
	if (!packet->total_length || !has_own_checksum(skb, offset, &ip))
		return PARSED_MALFORMED;
	if (ip.frag_off & bpf_htons(IP_MF_OR_LATER))
		return PARSED_FRAGMENT;
	return parse_l4(skb, packet->l4_offset, packet->total_length - ip.ihl * 4, packet);
}

/* With a tag, also a second one behind a tag that the kernel has taken off already. A redirect would carry
 * the tag along, and what is behind two tags is not seen here at all. */
static __always_inline bool is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) ||
	       skb->protocol == bpf_htons(ETH_P_8021AD);
}

static __always_inline enum parsed parse(struct __sk_buff *skb, struct packet *packet)
{
	__builtin_memset(packet, 0, sizeof(*packet));
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return PARSED_NOT_IPV4;
	return parse_ipv4(skb, IP_OFFSET, packet);
}

#endif
