/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Changes to a packet: addresses, ports, TTL, MSS, and the ICMP error that answers one too big. Every
 * function returns 0, or non-zero when the kernel refused. No map is read or written here.
 */
#ifndef ROUTERD_REWRITE_H
#define ROUTERD_REWRITE_H

#include "parse.h"

#define CHECKSUM_OFFSET_IP   offsetof(struct iphdr, check)
#define CHECKSUM_OFFSET_TCP  offsetof(struct tcphdr, check)
#define CHECKSUM_OFFSET_UDP  offsetof(struct udphdr, check)
#define CHECKSUM_OFFSET_ICMP offsetof(struct icmphdr, checksum)
#define ECHO_ID_OFFSET	     offsetof(struct icmphdr, un.echo.id)

#define TCP_OPTION_END	0
#define TCP_OPTION_NOP	1
#define TCP_OPTION_MSS	2
#define TCP_OPTIONS_MAX 20 /* steps of the walk; more options than that in one SYN have not been seen */
#define IP_TCP_OVERHEAD 40
#define ICMP_QUOTED	(sizeof(struct iphdr) + 8) /* RFC 792: the header and 64 bits */
#define ICMP_ERROR_ROOM (sizeof(struct iphdr) + sizeof(struct icmphdr))

enum side {
	SIDE_SOURCE,
	SIDE_DESTINATION,
};

/* The transport checksum covers the address through the pseudo header, and the port (or echo identifier)
 * itself. */
static __always_inline long fix_l4_checksum(struct __sk_buff *skb, const struct packet *packet,
					    __be32 old_address, __be32 new_address, __be16 old_port,
					    __be16 new_port)
{
	__u32 offset = packet->l4_offset;
	__u64 flags = 0;

	if (packet->protocol == IPPROTO_ICMP)
		return bpf_l4_csum_replace(skb, offset + CHECKSUM_OFFSET_ICMP, old_port, new_port, 2);
	if (packet->protocol == IPPROTO_UDP) {
		offset += CHECKSUM_OFFSET_UDP;
		flags = BPF_F_MARK_MANGLED_0; /* a checksum of zero means none (RFC 768): stays zero */
	} else {
		offset += CHECKSUM_OFFSET_TCP;
	}
	return bpf_l4_csum_replace(skb, offset, old_address, new_address, flags | BPF_F_PSEUDO_HDR | 4) ||
	       bpf_l4_csum_replace(skb, offset, old_port, new_port, flags | 2);
}

static __always_inline __u32 port_offset(const struct packet *packet, enum side side)
{
	if (packet->protocol == IPPROTO_ICMP)
		return packet->l4_offset + ECHO_ID_OFFSET;
	return packet->l4_offset + (side == SIDE_SOURCE ? 0 : 2);
}

/* One side's address and port of a TCP, UDP or ICMP echo packet. */
static __always_inline long rewrite_side(struct __sk_buff *skb, const struct packet *packet, enum side side,
					 const struct ip *address, __be16 port)
{
	__be32 old_address = side == SIDE_SOURCE ? packet->source.w[3] : packet->destination.w[3];
	__be16 old_port = side == SIDE_SOURCE ? packet->source_port : packet->destination_port;
	__be32 new_address = address->w[3];
	__u32 address_offset =
	    IP_OFFSET + (side == SIDE_SOURCE ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));

	return fix_l4_checksum(skb, packet, old_address, new_address, old_port, port) ||
	       bpf_skb_store_bytes(skb, port_offset(packet, side), &port, sizeof(port), 0) ||
	       bpf_l3_csum_replace(skb, IP_OFFSET + CHECKSUM_OFFSET_IP, old_address, new_address, 4) ||
	       bpf_skb_store_bytes(skb, address_offset, &new_address, sizeof(new_address), 0);
}

/* A gateway is a hop: the TTL goes down by one, as in any router. The caller has dropped packets whose TTL is
 * spent. */
static __always_inline long decrement_ttl(struct __sk_buff *skb, const struct packet *packet)
{
	__be16 old_word = bpf_htons(packet->ttl << 8 | packet->protocol);
	__u8 ttl = packet->ttl - 1;
	__be16 new_word = bpf_htons(ttl << 8 | packet->protocol);

	return bpf_l3_csum_replace(skb, IP_OFFSET + CHECKSUM_OFFSET_IP, old_word, new_word, 2) ||
	       bpf_skb_store_bytes(skb, IP_OFFSET + offsetof(struct iphdr, ttl), &ttl, sizeof(ttl), 0);
}

/* Lowers the MSS option of a SYN to what fits `mtu` (RFC 879); a SYN without the option means 536 and is
 * left. */
static __always_inline long clamp_mss(struct __sk_buff *skb, const struct packet *packet, __u32 mtu)
{
	__u32 offset = packet->l4_offset + sizeof(struct tcphdr);
	__u8 data_offset;
	__u32 end;

	if (packet->protocol != IPPROTO_TCP || !(packet->tcp_flags & TCP_SYN))
		return 0;
	if (bpf_skb_load_bytes(skb, packet->l4_offset + 12, &data_offset, 1))
		return 0;
	end = packet->l4_offset + (data_offset >> 4) * 4;
	for (int step = 0; step < TCP_OPTIONS_MAX; step++) {
		__u8 option[4] = {};
		__be16 old_mss, new_mss = bpf_htons(mtu - IP_TCP_OVERHEAD);

		if (offset + 4 > end || bpf_skb_load_bytes(skb, offset, option, 4) ||
		    option[0] == TCP_OPTION_END)
			return 0;
		if (option[0] == TCP_OPTION_NOP) {
			offset++;
			continue;
		}
		if (option[0] != TCP_OPTION_MSS) {
			if (option[1] < 2)
				return 0;
			offset += option[1];
			continue;
		}
		__builtin_memcpy(&old_mss, &option[2], 2);
		if (option[1] != 4 || bpf_ntohs(old_mss) <= mtu - IP_TCP_OVERHEAD)
			return 0;
		if (bpf_skb_store_bytes(skb, offset + 2, &new_mss, 2, 0))
			return -1;
		if ((offset - packet->l4_offset) % 2) { /* the sum is over words, which this one straddles */
			old_mss = __builtin_bswap16(old_mss);
			new_mss = __builtin_bswap16(new_mss);
		}
		return bpf_l4_csum_replace(skb, packet->l4_offset + CHECKSUM_OFFSET_TCP, old_mss, new_mss, 2);
	}
	return 0;
}

/* Takes off what a frame has behind its IP packet, as any stack does that gets it. */
static __always_inline long cut_padding(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 length = IP_OFFSET + packet->total_length;

	return skb->len > length ? bpf_skb_change_tail(skb, length, 0) : 0;
}

/* Turns the packet into "fragmentation needed" (RFC 1191, section 4) for its sender, with Ethernet addresses
 * swapped; the caller redirects it back. Only for headers without options, as their quote has a fixed size.
 */
static __always_inline long answer_too_big(struct __sk_buff *skb, const struct packet *packet, __u32 mtu,
					   const struct ip *from)
{
	struct {
		struct iphdr ip;
		struct icmphdr icmp;
		__u8 quoted[ICMP_QUOTED];
	} error = {};
	__u8 destination_mac[ETH_ALEN], source_mac[ETH_ALEN];

	if (!packet->plain_header || bpf_skb_load_bytes(skb, IP_OFFSET, error.quoted, sizeof(error.quoted)) ||
	    bpf_skb_load_bytes(skb, 0, destination_mac, ETH_ALEN) ||
	    bpf_skb_load_bytes(skb, ETH_ALEN, source_mac, ETH_ALEN))
		return -1;
	error.ip.version = 4;
	error.ip.ihl = 5;
	error.ip.ttl = 64;
	error.ip.protocol = IPPROTO_ICMP;
	error.ip.tot_len = bpf_htons(sizeof(error));
	error.ip.saddr = from->w[3];
	error.ip.daddr = packet->source.w[3];
	error.ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&error.ip, sizeof(error.ip), 0));
	error.icmp.type = ICMP_DEST_UNREACH;
	error.icmp.code = ICMP_FRAG_NEEDED;
	error.icmp.un.frag.mtu = bpf_htons(mtu);
	error.icmp.checksum =
	    fold(bpf_csum_diff(NULL, 0, (__be32 *)&error.icmp, sizeof(error.icmp) + sizeof(error.quoted), 0));
	return bpf_skb_change_tail(skb, IP_OFFSET + ICMP_QUOTED, 0) ||
	       bpf_skb_adjust_room(skb, ICMP_ERROR_ROOM, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET) ||
	       bpf_skb_store_bytes(skb, IP_OFFSET, &error, sizeof(error), BPF_F_RECOMPUTE_CSUM) ||
	       bpf_skb_store_bytes(skb, 0, source_mac, ETH_ALEN, 0) ||
	       bpf_skb_store_bytes(skb, ETH_ALEN, destination_mac, ETH_ALEN, 0);
}

#endif
