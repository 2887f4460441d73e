/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packet -> struct packet. Reads only; offsets are from the start of the Ethernet header. */
#ifndef ROUTERD_PARSE_H
#define ROUTERD_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "icmp.h"
#include "types.h"

#define IP_OFFSET	 ((__u32)sizeof(struct ethhdr))
#define IP_DF		 0x4000
#define IP_HEADER_MAX	 15	/* words of 4 bytes */
#define IP_MF_OR_LATER	 0x3fff /* more fragments, or an offset */
#define IP_POSITION	 0x1fff /* of a fragment, in words of 8 bytes */
#define IPV6_MF_OR_LATER 0xfff9 /* of the fragment header's second half word */
#define IPV6_POSITION	 0xfff8 /* bytes */
#define IPV6_HEADERS_MAX 6	/* extension headers that are walked; a packet with more is not understood */
#define NEXTHDR_HOP	 0
#define NEXTHDR_ROUTING	 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_AUTH	 51
#define NEXTHDR_DEST	 60
#define PROTOCOL_ICMP6	 58
#define FRAGMENT_HEADER	 8

enum parsed {
	PARSED_FLOW,	     /* TCP, UDP, SCTP or ICMP echo, whole or the first fragment: ports are set */
	PARSED_ICMP_ERROR,   /* ICMP that quotes a packet */
	PARSED_FRAGMENT,     /* a later one: addresses only, see fragments.h */
	PARSED_BAD_FRAGMENT, /* a first one without its transport header, or one that overlaps its first */
	PARSED_UNSUPPORTED,  /* addresses only */
	PARSED_NOT_IP,
	PARSED_MALFORMED,
};

enum piece { WHOLE, FIRST_PIECE, LATER_PIECE };

struct packet {
	struct ip source;
	struct ip destination;
	__be16 source_port; /* echo request and reply: the identifier, on the side of the one who asks */
	__be16 destination_port;
	__u32 l4_offset;
	__u32 total_length; /* of the IP packet, bytes */
	__u32 id;	    /* of a fragment's datagram; 16 bits of IPv4, 32 of IPv6 */
	__u32 sent_id;	    /* what the first fragment had it replaced by */
	__u32 id_offset;
	__u16 checksum; /* of the IPv4 header */
	__u16 position; /* of a fragment, bytes from the beginning of its datagram */
	__u8 piece;	/* enum piece */
	__u8 protocol;	/* of the transport */
	__u8 ttl;	/* IPv6: hop limit */
	__u8 tcp_flags; /* byte 13 of the TCP header */
	__u8 icmp_type;
	bool ipv6;
	bool dont_fragment; /* always of IPv6 */
	bool plain_header;  /* no IP options; at most a fragment's header between an IPv6 header and its
			       transport */
	bool asks;	    /* an echo request */
	bool reports;	    /* an ICMP error */
	bool handed_in;	    /* of a later fragment: its first was, see handing.h */
};

/* SCTP's common header; RFC 9260, section 3.1. */
struct sctp_header {
	__be16 source;
	__be16 destination;
	__be32 verification_tag;
	__u32
	    checksum; /* CRC-32C over all of the packet, with zeros here; its least significant byte first */
};

/* A frame to another node, as far as the frame in it; RFC 7348, section 5. */
struct outer {
	struct ethhdr frame;
	struct iphdr ip;
	struct udphdr udp;
	__be32 vxlan_flags;
	__be32 vni; /* in its upper 24 bits */
	struct ethhdr inner;
} __attribute__((packed));

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

static __always_inline struct ip ip_from_v4(__be32 address)
{
	struct ip mapped = {.w = {0, 0, bpf_htonl(0xffff), address}};

	return mapped;
}

static __always_inline struct ip ip_from_v6(const struct in6_addr *address)
{
	struct ip ip;

	__builtin_memcpy(&ip, address, sizeof(ip));
	return ip;
}

static __always_inline bool ip_is_none(const struct ip *address)
{
	return !(address->w[0] | address->w[1] | address->w[2] | address->w[3]);
}

static __always_inline bool ip_is_v4(const struct ip *address)
{
	return !(address->w[0] | address->w[1]) && address->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool ip_equal(const struct ip *a, const struct ip *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool is_icmp(const struct packet *packet)
{
	return packet->protocol == (packet->ipv6 ? PROTOCOL_ICMP6 : IPPROTO_ICMP);
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

/* Length of the packet by its header, which says `length`; 0 if the frame does not hold it, or it does not
 * hold its header. Bytes behind it are Ethernet's padding. A packet that is to be cut into segments has none;
 * one of more than 64 KiB says `unsaid`. */
static __always_inline __u32 length_of(const struct __sk_buff *skb, __u32 offset, __u32 length, __u32 unsaid,
				       __u32 header)
{
	__u32 present = skb->len - offset;

	if (skb->gso_size)
		return length == unsaid || length == present ? present : 0;
	return length < header || length > present ? 0 : length;
}

static __always_inline enum parsed parse_icmp(struct __sk_buff *skb, __u32 offset, __u32 room,
					      struct packet *packet)
{
	struct icmphdr icmp;
	bool asks, answers;

	if (room < sizeof(icmp) || bpf_skb_load_bytes(skb, offset, &icmp, sizeof(icmp)))
		return PARSED_MALFORMED;
	packet->icmp_type = icmp.type;
	if (packet->ipv6) {
		asks = icmp.type == ICMP6_ECHO;
		answers = icmp.type == ICMP6_ECHOREPLY;
		packet->reports = icmp.type >= ICMP6_DEST_UNREACH && icmp.type <= ICMP6_PARAMETERPROB;
	} else {
		asks = icmp.type == ICMP_ECHO;
		answers = icmp.type == ICMP_ECHOREPLY;
		packet->reports = icmp.type == ICMP_DEST_UNREACH || icmp.type == ICMP_TIME_EXCEEDED ||
				  icmp.type == ICMP_PARAMETERPROB;
	}
	packet->asks = asks;
	if (asks)
		packet->source_port = icmp.un.echo.id;
	if (answers)
		packet->destination_port = icmp.un.echo.id;
	if (asks || answers)
		return PARSED_FLOW;
	return packet->reports ? PARSED_ICMP_ERROR : PARSED_UNSUPPORTED;
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

		if (room < sizeof(udp) || bpf_skb_load_bytes(skb, offset, &udp, sizeof(udp)) ||
		    bpf_ntohs(udp.len) < sizeof(udp) || (!packet->piece && bpf_ntohs(udp.len) > room))
			return PARSED_MALFORMED;
		packet->source_port = udp.source;
		packet->destination_port = udp.dest;
		return PARSED_FLOW;
	}
	if (packet->protocol == IPPROTO_SCTP) {
		struct sctp_header sctp;

		if (room < sizeof(sctp) || bpf_skb_load_bytes(skb, offset, &sctp, sizeof(sctp)))
			return PARSED_MALFORMED;
		packet->source_port = sctp.source;
		packet->destination_port = sctp.destination;
		/* The checksum covers bytes that a first fragment does not have. */
		return packet->piece ? PARSED_UNSUPPORTED : PARSED_FLOW;
	}
	return is_icmp(packet) ? parse_icmp(skb, offset, room, packet) : PARSED_UNSUPPORTED;
}

static __always_inline enum parsed note_piece(struct packet *packet, __u16 position)
{
	packet->position = position;
	packet->piece = position ? LATER_PIECE : FIRST_PIECE;
	return position ? PARSED_FRAGMENT : PARSED_FLOW;
}

/* The IPv4 header at `offset`; PARSED_FLOW = what follows it is to be read. Of one that is quoted, and so
 * cut, neither length nor checksum is looked at. */
static __always_inline enum parsed parse_ipv4(struct __sk_buff *skb, __u32 offset, bool is_quoted,
					      struct packet *packet)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return PARSED_MALFORMED;
	packet->source = ip_from_v4(ip.saddr);
	packet->destination = ip_from_v4(ip.daddr);
	packet->protocol = ip.protocol;
	packet->ttl = ip.ttl;
	packet->checksum = ip.check;
	packet->total_length = length_of(skb, offset, bpf_ntohs(ip.tot_len), 0, ip.ihl * 4);
	packet->dont_fragment = ip.frag_off & bpf_htons(IP_DF);
	packet->plain_header = ip.ihl == 5;
	packet->l4_offset = offset + ip.ihl * 4;
	if (!is_quoted && (!packet->total_length || !has_own_checksum(skb, offset, &ip)))
		return PARSED_MALFORMED;
	if (!(ip.frag_off & bpf_htons(IP_MF_OR_LATER)))
		return PARSED_FLOW;
	packet->id = bpf_ntohs(ip.id);
	packet->id_offset = offset + offsetof(struct iphdr, id);
	return note_piece(packet, (bpf_ntohs(ip.frag_off) & IP_POSITION) * 8);
}

static __always_inline bool is_extension(__u8 next)
{
	return next == NEXTHDR_HOP || next == NEXTHDR_ROUTING || next == NEXTHDR_FRAGMENT ||
	       next == NEXTHDR_AUTH || next == NEXTHDR_DEST;
}

/* Walks over extension headers to the transport (RFC 8200, section 4). A datagram that is its own only
 * fragment is a whole one (RFC 6946). */
static __always_inline enum parsed skip_headers(struct __sk_buff *skb, struct packet *packet)
{
	for (int i = 0; i < IPV6_HEADERS_MAX; i++) {
		__u8 next = packet->protocol;
		__be32 words[2];
		__u8 *header = (__u8 *)words;
		__u16 piece;

		if (!is_extension(next))
			return PARSED_FLOW;
		if (bpf_skb_load_bytes(skb, packet->l4_offset, words, sizeof(words)))
			return PARSED_MALFORMED;
		packet->protocol = header[0];
		piece = next == NEXTHDR_FRAGMENT ? bpf_ntohl(words[0]) & IPV6_MF_OR_LATER : 0;
		if (!piece)
			packet->plain_header = false;
		if (next != NEXTHDR_FRAGMENT) {
			packet->l4_offset += next == NEXTHDR_AUTH ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
			continue;
		}
		packet->l4_offset += FRAGMENT_HEADER;
		if (!piece)
			continue;
		if (packet->piece) { /* a fragment of a fragment: of which protocol, is not seen */
			packet->protocol = NEXTHDR_FRAGMENT;
			return PARSED_UNSUPPORTED;
		}
		packet->id = bpf_ntohl(words[1]);
		packet->id_offset = packet->l4_offset - sizeof(words[1]);
		if (note_piece(packet, piece & IPV6_POSITION) == PARSED_FRAGMENT)
			return PARSED_FRAGMENT;
	}
	return PARSED_UNSUPPORTED;
}

static __always_inline enum parsed parse_ipv6(struct __sk_buff *skb, __u32 offset, bool is_quoted,
					      struct packet *packet)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 6)
		return PARSED_MALFORMED;
	packet->source = ip_from_v6(&ip.saddr);
	packet->destination = ip_from_v6(&ip.daddr);
	packet->protocol = ip.nexthdr;
	packet->ttl = ip.hop_limit;
	packet->total_length =
	    length_of(skb, offset, bpf_ntohs(ip.payload_len) + sizeof(ip), sizeof(ip), sizeof(ip));
	packet->ipv6 = true;
	packet->dont_fragment = true;
	packet->plain_header = true;
	packet->l4_offset = offset + sizeof(ip);
	/* Mapped IPv4 addresses are on no wire (RFC 4291, section 2.5.5.2): in our keys they stand for IPv4.
	 */
	if ((!is_quoted && !packet->total_length) || ip_is_v4(&packet->source) ||
	    ip_is_v4(&packet->destination))
		return PARSED_MALFORMED;
	return skip_headers(skb, packet);
}

/* With a tag, also a second one behind a tag that the kernel has taken off already. A redirect would carry
 * the tag along, and what is behind two tags is not seen here at all. */
static __always_inline bool is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) ||
	       skb->protocol == bpf_htons(ETH_P_8021AD);
}

/* The header at `offset` and its transport. */
static __always_inline enum parsed parse_at(struct __sk_buff *skb, __u32 offset, bool ipv6,
					    struct packet *packet)
{
	enum parsed parsed;
	__u32 end;

	__builtin_memset(packet, 0, sizeof(*packet));
	parsed = ipv6 ? parse_ipv6(skb, offset, false, packet) : parse_ipv4(skb, offset, false, packet);
	if (parsed != PARSED_FLOW)
		return parsed;
	end = offset + packet->total_length;
	if (packet->l4_offset > end)
		return PARSED_MALFORMED;
	parsed = parse_l4(skb, packet->l4_offset, end - packet->l4_offset, packet);
	if (packet->piece && parsed == PARSED_MALFORMED)
		return PARSED_BAD_FRAGMENT; /* the rest of the header in a later one: RFC 1858, RFC 3128 */
	if (packet->piece && parsed == PARSED_ICMP_ERROR)
		return PARSED_UNSUPPORTED; /* they are shorter than any link's MTU */
	return parsed;
}

static __always_inline enum parsed parse(struct __sk_buff *skb, struct packet *packet)
{
	bool ipv6 = skb->protocol == bpf_htons(ETH_P_IPV6);

	if (!ipv6 && skb->protocol != bpf_htons(ETH_P_IP)) {
		__builtin_memset(packet, 0, sizeof(*packet));
		return PARSED_NOT_IP;
	}
	return parse_at(skb, IP_OFFSET, ipv6, packet);
}

/* The packet that an ICMP error quotes, as far as its addresses and ports; false if it is cut short. */
static __always_inline bool parse_quote(struct __sk_buff *skb, const struct packet *error,
					struct packet *quoted)
{
	__u32 inner = error->l4_offset + sizeof(struct icmphdr);
	__be16 words[4]; /* no more of a transport header is sure to be there than 64 bits (RFC 792) */
	enum parsed parsed;
	__u8 type;

	__builtin_memset(quoted, 0, sizeof(*quoted));
	parsed = error->ipv6 ? parse_ipv6(skb, inner, true, quoted) : parse_ipv4(skb, inner, true, quoted);
	if (parsed != PARSED_FLOW || bpf_skb_load_bytes(skb, quoted->l4_offset, words, sizeof(words)))
		return false;
	if (!is_icmp(quoted)) {
		quoted->source_port = words[0];
		quoted->destination_port = words[1];
		return true;
	}
	type = *(__u8 *)words;
	quoted->asks = type == (quoted->ipv6 ? ICMP6_ECHO : ICMP_ECHO);
	if (quoted->asks)
		quoted->source_port = words[2];
	else
		quoted->destination_port = words[2];
	return quoted->asks || type == (quoted->ipv6 ? ICMP6_ECHOREPLY : ICMP_ECHOREPLY);
}

#endif
