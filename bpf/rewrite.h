/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Changes to a packet of either family: addresses, ports, TTL, MSS, and the ICMP errors that answer one.
 * Every function returns 0, or non-zero when the kernel refused. No map is read or written here.
 *
 * Checksums are corrected by the helpers alone, the address with BPF_F_PSEUDO_HDR and the port without: the
 * checksum of a packet that its sender's NIC would compute (CHECKSUM_PARTIAL) covers only the pseudo header,
 * and which kind a packet is cannot be seen here.
 */
#ifndef ROUTERD_REWRITE_H
#define ROUTERD_REWRITE_H

#include "parse.h"

#define CHECKSUM_OFFSET_IP   offsetof(struct iphdr, check)
#define CHECKSUM_OFFSET_TCP  offsetof(struct tcphdr, check)
#define CHECKSUM_OFFSET_UDP  offsetof(struct udphdr, check)
#define CHECKSUM_OFFSET_ICMP offsetof(struct icmphdr, checksum)
#define ECHO_ID_OFFSET	     offsetof(struct icmphdr, un.echo.id)

#define TCP_OPTION_END	 0
#define TCP_OPTION_NOP	 1
#define TCP_OPTION_MSS	 2
#define TCP_OPTIONS_MAX	 20 /* steps of the walk; more options than that in one SYN have not been seen */
#define IP_TCP_OVERHEAD	 40
#define IP6_TCP_OVERHEAD 60

enum side {
	SIDE_SOURCE,
	SIDE_DESTINATION,
};

static __always_inline const struct ip *address_of(const struct packet *packet, enum side side)
{
	return side == SIDE_SOURCE ? &packet->source : &packet->destination;
}

/* Where the header at `ip_offset` has the address of a side. */
static __always_inline __u32 address_offset(__u32 ip_offset, bool ipv6, enum side side)
{
	if (ipv6)
		return ip_offset + (side == SIDE_SOURCE ? offsetof(struct ipv6hdr, saddr)
							: offsetof(struct ipv6hdr, daddr));
	return ip_offset +
	       (side == SIDE_SOURCE ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));
}

/* Where the port of a side is: the echo identifier is on the side of the one who asks. */
static __always_inline __u32 port_offset(const struct packet *packet, enum side side)
{
	if (is_icmp(packet))
		return packet->l4_offset + ECHO_ID_OFFSET;
	return packet->l4_offset + (side == SIDE_SOURCE ? 0 : 2);
}

/* What the sum over 16 bytes changes by. */
static __always_inline __s64 sum_change(const struct ip *before, const struct ip *after)
{
	return bpf_csum_diff((__be32 *)before, sizeof(*before), (__be32 *)after, sizeof(*after), 0);
}

/* Corrects a transport checksum at `offset` for an address, which it covers by the pseudo header. */
static __always_inline long fix_for_address(struct __sk_buff *skb, __u32 offset, bool ipv6,
					    const struct ip *before, const struct ip *after, __u64 flags)
{
	if (ipv6)
		return bpf_l4_csum_replace(skb, offset, 0, sum_change(before, after),
					   flags | BPF_F_PSEUDO_HDR);
	return bpf_l4_csum_replace(skb, offset, before->w[3], after->w[3], flags | BPF_F_PSEUDO_HDR | 4);
}

/* --- SCTP's checksum --------------------------------------------------------------------------- */

#define CRC32C	    0x82f63b78U /* its polynomial, x^0 in the highest bit (RFC 9260, appendix A) */
#define X_TO_THE_8  0x00800000U
#define LENGTH_BITS 16
#define BITS_A_STEP 8 /* fewer cost calls, more cost the verifier */
#define STEPS	    (32 / BITS_A_STEP)

/* `change` times x to the power of 8 times `bytes`, in the field of that polynomial. For each bit of `bytes`
 * there are two products with `factor`, bit by bit of the other one: of the change, and of the power itself.
 */
struct crc_change {
	__u32 change;
	__u32 bytes;
	__u32 power; /* x to the power of 8, 16, 32, … */
	__u32 factor;
	__u32 shifted;
	__u32 square;
};

static long shift_change(__u32 step, void *context)
{
	struct crc_change *crc = *(struct crc_change **)context;
	__u32 take = -(crc->bytes & 1), change = crc->change, power = crc->power, factor = crc->factor;

	for (int i = 0; i < BITS_A_STEP; i++) {
		crc->shifted ^= factor & -(change >> 31);
		crc->square ^= factor & -(power >> 31);
		change = change << 1 | change >> 31;
		power = power << 1 | power >> 31;
		factor = factor >> 1 ^ (CRC32C & -(factor & 1));
	}
	crc->change = change;
	crc->power = power;
	crc->factor = factor;
	if (step % STEPS != STEPS - 1)
		return 0;
	crc->change = (crc->shifted & take) | (change & ~take);
	crc->power = crc->factor = crc->square;
	crc->shifted = crc->square = 0;
	crc->bytes >>= 1;
	return !crc->bytes;
}

/* Corrects the checksum of a whole packet for a port at `offset`. A CRC is linear: it changes by the CRC of
 * the change, which is that times x to the power of the bits from the port to the end; so the packet is not
 * read. Zero is left to who computes it, a device or the stack behind us: one of 2^32 packets has it by
 * itself, and is lost. Unlike the Internet checksum it does not make up for the change in a sum over the
 * packet (CHECKSUM_COMPLETE). */
static __always_inline long fix_sctp(struct __sk_buff *skb, const struct packet *packet, __u32 offset,
				     __be16 old_port, __be16 new_port, struct crc_change *crc)
{
	__u32 at = packet->l4_offset + offsetof(struct sctp_header, checksum), checksum;

	if (bpf_skb_load_bytes(skb, at, &checksum, sizeof(checksum)))
		return -1;
	if (!checksum)
		return 0;
	crc->change = old_port ^ new_port;
	crc->bytes = IP_OFFSET + packet->total_length - offset;
	crc->power = crc->factor = X_TO_THE_8;
	crc->shifted = crc->square = 0;
	bpf_loop(LENGTH_BITS * STEPS, shift_change, &crc, 0);
	checksum ^= crc->change;
	return bpf_skb_store_bytes(skb, at, &checksum, sizeof(checksum), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline long fix_transport(struct __sk_buff *skb, const struct packet *packet,
					  const struct ip *before, const struct ip *after, __be16 old_port,
					  __be16 new_port)
{
	__u32 offset = packet->l4_offset;
	bool covers_address = true;
	__u64 flags = 0;

	if (packet->protocol == IPPROTO_TCP) {
		offset += CHECKSUM_OFFSET_TCP;
	} else if (packet->protocol == IPPROTO_UDP) {
		offset += CHECKSUM_OFFSET_UDP;
		flags = BPF_F_MARK_MANGLED_0; /* a checksum of zero means none (RFC 768): stays zero */
	} else {
		offset += CHECKSUM_OFFSET_ICMP;
		/* ICMP has no pseudo header, ICMPv6 has (RFC 4443, section 2.3). */
		covers_address = packet->ipv6;
	}
	return (covers_address && fix_for_address(skb, offset, packet->ipv6, before, after, flags)) ||
	       bpf_l4_csum_replace(skb, offset, old_port, new_port, flags | 2);
}

/* What the sum of an IPv4 header becomes when `ttl` and the addresses are written into it (RFC 1624, equation
 * 3). */
static __always_inline __u16 changed_checksum(const struct packet *packet, const struct iphdr *ip)
{
	__u32 old_hop = bpf_htons(packet->ttl << 8), new_hop = bpf_htons(ip->ttl << 8);
	__u64 sum = (__u16)~packet->checksum;

	sum += (__u64)(__u32)~packet->source.w[3] + (__u32)~packet->destination.w[3] + (__u16)~old_hop;
	sum += (__u64)ip->saddr + ip->daddr + new_hop;
	sum = (sum >> 32) + (__u32)sum;
	return fold((sum >> 32) + (__u32)sum);
}

/* The packet's own header as it leaves: `ttl`, and another address on one side. What is written lies side by
 * side, so one call does it. The stack's own sum over an IPv6 packet (CHECKSUM_COMPLETE) is corrected with
 * it: nothing else in the header makes up for the change. */
static __always_inline long write_header(struct __sk_buff *skb, const struct packet *packet, enum side side,
					 const struct ip *address, __u8 ttl)
{
	const struct ip *source = side == SIDE_SOURCE ? address : &packet->source;
	const struct ip *destination = side == SIDE_SOURCE ? &packet->destination : address;
	struct ipv6hdr ip6;
	struct iphdr ip;

	if (packet->ipv6) {
		ip6.hop_limit = ttl;
		__builtin_memcpy(&ip6.saddr, source, sizeof(ip6.saddr));
		__builtin_memcpy(&ip6.daddr, destination, sizeof(ip6.daddr));
		return bpf_skb_store_bytes(skb, IP_OFFSET + offsetof(struct ipv6hdr, hop_limit),
					   &ip6.hop_limit, sizeof(ip6) - offsetof(struct ipv6hdr, hop_limit),
					   BPF_F_RECOMPUTE_CSUM);
	}
	ip.ttl = ttl;
	ip.protocol = packet->protocol; /* the header's, as IPv4 has no other */
	ip.saddr = source->w[3];
	ip.daddr = destination->w[3];
	ip.check = changed_checksum(packet, &ip);
	return bpf_skb_store_bytes(skb, IP_OFFSET + offsetof(struct iphdr, ttl), &ip.ttl,
				   sizeof(ip) - offsetof(struct iphdr, ttl), 0);
}

/* One side's port, and the checksum that covers it and the address. */
static __always_inline long rewrite_port(struct __sk_buff *skb, const struct packet *packet, enum side side,
					 const struct ip *address, __be16 port, struct crc_change *crc)
{
	__be16 old_port = side == SIDE_SOURCE ? packet->source_port : packet->destination_port;
	__u32 at = port_offset(packet, side);

	if (packet->protocol == IPPROTO_SCTP)
		return fix_sctp(skb, packet, at, old_port, port, crc) ||
		       bpf_skb_store_bytes(skb, at, &port, sizeof(port), BPF_F_RECOMPUTE_CSUM);
	return fix_transport(skb, packet, address_of(packet, side), address, old_port, port) ||
	       bpf_skb_store_bytes(skb, at, &port, sizeof(port), 0);
}

/* One side's address and port of a TCP, UDP, SCTP or ICMP echo packet, and its TTL; a later fragment has no
 * port, nor the checksum. */
static __always_inline long rewrite_side(struct __sk_buff *skb, const struct packet *packet, enum side side,
					 const struct ip *address, __be16 port, __u8 ttl,
					 struct crc_change *crc)
{
	if (packet->piece != LATER_PIECE && rewrite_port(skb, packet, side, address, port, crc))
		return -1;
	return write_header(skb, packet, side, address, ttl);
}

/* Which datagram a fragment is of; no transport checksum covers that. */
static __always_inline long rewrite_id(struct __sk_buff *skb, const struct packet *packet, __u32 id)
{
	__be16 before = bpf_htons(packet->id), after = bpf_htons(id);
	__be32 wide = bpf_htonl(id);

	if (packet->ipv6)
		return bpf_skb_store_bytes(skb, packet->id_offset, &wide, sizeof(wide), BPF_F_RECOMPUTE_CSUM);
	return bpf_l3_csum_replace(skb, IP_OFFSET + CHECKSUM_OFFSET_IP, before, after, sizeof(after)) ||
	       bpf_skb_store_bytes(skb, packet->id_offset, &after, sizeof(after), 0);
}

/* An ICMP error: its own header, with the address of one side, and the other side of the packet that it
 * quotes, which is of the same host. The quoted transport checksum stays as it is: receivers do not verify
 * it, as the quote may be cut (RFC 5508, section 4.2). The sum of a quoted IPv4 header changes by as much as
 * its address does, so the ICMP checksum sees only the port there. */
static __always_inline long rewrite_error(struct __sk_buff *skb, const struct packet *error,
					  const struct packet *quoted, enum side side,
					  const struct ip *address, __be16 port, __u8 ttl)
{
	enum side inner_side = side == SIDE_SOURCE ? SIDE_DESTINATION : SIDE_SOURCE;
	__be16 old_port = inner_side == SIDE_SOURCE ? quoted->source_port : quoted->destination_port;
	__u32 inner = error->l4_offset + sizeof(struct icmphdr);
	__u32 at = address_offset(inner, error->ipv6, inner_side);
	__u32 checksum = error->l4_offset + CHECKSUM_OFFSET_ICMP;
	const struct ip *old_inner = address_of(quoted, inner_side);

	if (error->ipv6) {
		if (fix_for_address(skb, checksum, true, address_of(error, side), address, 0) ||
		    bpf_l4_csum_replace(skb, checksum, 0, sum_change(old_inner, address), 0) ||
		    bpf_skb_store_bytes(skb, at, address, sizeof(*address), 0))
			return -1;
	} else if (bpf_l3_csum_replace(skb, inner + CHECKSUM_OFFSET_IP, old_inner->w[3], address->w[3], 4) ||
		   bpf_skb_store_bytes(skb, at, &address->w[3], sizeof(address->w[3]), 0)) {
		return -1;
	}
	return bpf_l4_csum_replace(skb, checksum, old_port, port, 2) ||
	       bpf_skb_store_bytes(skb, port_offset(quoted, inner_side), &port, sizeof(port), 0) ||
	       write_header(skb, error, side, address, ttl);
}

/* A hop: the TTL goes down by one, as in any router. The caller has dealt with packets whose TTL is spent. */
static __always_inline long decrement_ttl(struct __sk_buff *skb, const struct packet *packet)
{
	return write_header(skb, packet, SIDE_SOURCE, &packet->source, packet->ttl - 1);
}

/* Lowers the MSS option of a SYN to what fits `mtu` (RFC 879); a SYN without the option means 536 and is
 * left. */
static __always_inline long clamp_mss(struct __sk_buff *skb, const struct packet *packet, __u32 mtu)
{
	__u32 limit = mtu - (packet->ipv6 ? IP6_TCP_OVERHEAD : IP_TCP_OVERHEAD);
	__u32 offset = packet->l4_offset + sizeof(struct tcphdr);
	__u8 data_offset;
	__u32 end;

	if (packet->protocol != IPPROTO_TCP || !(packet->tcp_flags & TCP_SYN))
		return 0;
	if (bpf_skb_load_bytes(skb, packet->l4_offset + 12, &data_offset, 1))
		return 0;
	end = packet->l4_offset + (data_offset >> 4) * 4;
	for (int step = 0; step < TCP_OPTIONS_MAX; step++) {
		__be16 old_mss, new_mss = bpf_htons(limit);
		__u8 option[4] = {};

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
		if (option[1] != 4 || bpf_ntohs(old_mss) <= limit)
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

/* --- ICMP errors of our own ------------------------------------------------------------------- */

enum error_kind {
	ERROR_TOO_BIG,	   /* RFC 1191, section 4; RFC 4443, section 3.2 */
	ERROR_TTL_EXPIRED, /* RFC 792; RFC 4443, section 3.3 */
};

/* The header and 64 bits (RFC 792), and all of a TCP header: the kernel cuts no packet before a checksum that
 * the NIC is to fill in, and such are all that a pod sends through a veth, but for fragments. */
#define QUOTED_MAX sizeof(struct tcphdr)

static __always_inline __u32 quoted_transport(const struct packet *packet)
{
	if (packet->ipv6 && packet->piece)
		return FRAGMENT_HEADER + 8;
	return packet->protocol == IPPROTO_TCP ? QUOTED_MAX : 8;
}

struct error4 {
	struct iphdr ip;
	struct icmphdr icmp;
	__u8 quoted[sizeof(struct iphdr) + QUOTED_MAX];
};

struct error6 {
	struct ipv6hdr ip;
	struct icmphdr icmp;
	__u8 quoted[sizeof(struct ipv6hdr) + QUOTED_MAX];
};

struct pseudo6 {
	struct in6_addr source;
	struct in6_addr destination;
	__be32 length;
	__be32 next;
};

/* Longer than what comes before the transport's checksum begins, and what of the packet stays. */
#define CUT_FROM (IP_OFFSET + 160)
#define LAST_CUT 8

/* To `length` bytes, which are all written anew. They are cut off at the beginning, in two cuts: at the
 * second one the kernel sees that where a NIC was to begin its checksum (CHECKSUM_PARTIAL: of a stack on this
 * machine, of segments that were put together) has gone, and asks none for that any more. A packet that it
 * takes for one in a tunnel, as behind outer headers that a stack on this machine had put on, gets no other
 * end: a short one is cut once.
 */
static __always_inline long shorten(struct __sk_buff *skb, __u32 length)
{
	__s32 cut;

	bpf_skb_change_tail(skb, CUT_FROM, 0);
	cut = (__s32)(skb->len - length);
	if (cut <= LAST_CUT)
		return bpf_skb_adjust_room(skb, -cut, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET);
	return bpf_skb_adjust_room(skb, LAST_CUT - cut, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET) ||
	       bpf_skb_adjust_room(skb, -LAST_CUT, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET);
}

/* The packet becomes the `size` bytes that `error` holds, the last `quoted` of which are its own; Ethernet
 * addresses swap. */
static __always_inline long put_error(struct __sk_buff *skb, const void *error, __u32 size, __u32 quoted)
{
	__u8 destination_mac[ETH_ALEN], source_mac[ETH_ALEN];

	if (bpf_skb_load_bytes(skb, 0, destination_mac, ETH_ALEN) ||
	    bpf_skb_load_bytes(skb, ETH_ALEN, source_mac, ETH_ALEN))
		return -1;
	return shorten(skb, IP_OFFSET + quoted) ||
	       bpf_skb_adjust_room(skb, size - quoted, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET) ||
	       bpf_skb_store_bytes(skb, IP_OFFSET, error, size, BPF_F_RECOMPUTE_CSUM) ||
	       bpf_skb_store_bytes(skb, 0, source_mac, ETH_ALEN, 0) ||
	       bpf_skb_store_bytes(skb, ETH_ALEN, destination_mac, ETH_ALEN, 0);
}

static __always_inline long answer_error4(struct __sk_buff *skb, const struct packet *packet,
					  struct error4 *error, enum error_kind kind, __u32 mtu,
					  const struct ip *from)
{
	__u32 quoted = sizeof(struct iphdr) + quoted_transport(packet);

	__builtin_memset(error, 0, sizeof(*error));
	if (bpf_skb_load_bytes(skb, IP_OFFSET, error->quoted, quoted))
		return -1;
	error->ip.version = 4;
	error->ip.ihl = 5;
	error->ip.ttl = 64;
	error->ip.protocol = IPPROTO_ICMP;
	error->ip.tot_len = bpf_htons(sizeof(error->ip) + sizeof(error->icmp) + quoted);
	error->ip.saddr = from->w[3];
	error->ip.daddr = packet->source.w[3];
	error->ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&error->ip, sizeof(error->ip), 0));
	if (kind == ERROR_TOO_BIG) {
		error->icmp.type = ICMP_DEST_UNREACH;
		error->icmp.code = ICMP_FRAG_NEEDED;
		error->icmp.un.frag.mtu = bpf_htons(mtu);
	} else {
		error->icmp.type = ICMP_TIME_EXCEEDED;
	}
	error->icmp.checksum =
	    fold(bpf_csum_diff(NULL, 0, (__be32 *)&error->icmp, sizeof(error->icmp) + quoted, 0));
	return put_error(skb, error, sizeof(error->ip) + sizeof(error->icmp) + quoted, quoted);
}

static __always_inline long answer_error6(struct __sk_buff *skb, const struct packet *packet,
					  struct error6 *error, struct pseudo6 *pseudo, enum error_kind kind,
					  __u32 mtu, const struct ip *from)
{
	__u32 quoted = sizeof(struct ipv6hdr) + quoted_transport(packet);
	__s64 sum;

	__builtin_memset(error, 0, sizeof(*error));
	if (bpf_skb_load_bytes(skb, IP_OFFSET, error->quoted, quoted))
		return -1;
	error->ip.version = 6;
	error->ip.hop_limit = 64;
	error->ip.nexthdr = PROTOCOL_ICMP6;
	error->ip.payload_len = bpf_htons(sizeof(error->icmp) + quoted);
	__builtin_memcpy(&error->ip.saddr, from, sizeof(*from));
	__builtin_memcpy(&error->ip.daddr, &packet->source, sizeof(packet->source));
	if (kind == ERROR_TOO_BIG) {
		error->icmp.type = ICMP6_PACKET_TOO_BIG;
		error->icmp.un.mtu6 = bpf_htonl(mtu);
	} else {
		error->icmp.type = ICMP6_TIME_EXCEEDED;
	}
	pseudo->length = bpf_htonl(sizeof(error->icmp) + quoted);
	pseudo->next = bpf_htonl(PROTOCOL_ICMP6);
	pseudo->source = error->ip.saddr;
	pseudo->destination = error->ip.daddr;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)pseudo, sizeof(*pseudo), 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&error->icmp, sizeof(error->icmp) + quoted, sum);
	error->icmp.checksum = fold(sum);
	return put_error(skb, error, sizeof(error->ip) + sizeof(error->icmp) + quoted, quoted);
}

#endif
