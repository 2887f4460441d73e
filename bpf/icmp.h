/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The headers of ICMP (RFC 792) and ICMPv6 (RFC 4443), which are laid out alike. <linux/icmp.h> would do, but
 * it draws in <sys/socket.h>, and with it the C library's headers of an architecture that BPF is not.
 */
#ifndef ROUTERD_ICMP_H
#define ROUTERD_ICMP_H

#include <linux/types.h>

enum icmp_type {
	ICMP_ECHOREPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
};

enum icmp6_type {
	ICMP6_DEST_UNREACH = 1,
	ICMP6_PACKET_TOO_BIG = 2,
	ICMP6_TIME_EXCEEDED = 3,
	ICMP6_PARAMETERPROB = 4,
	ICMP6_ECHO = 128,
	ICMP6_ECHOREPLY = 129,
};

#define ICMP_FRAG_NEEDED 4 /* code of ICMP_DEST_UNREACH */

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	union {
		struct {
			__be16 id;
			__be16 sequence;
		} echo;
		struct {
			__be16 unused;
			__be16 mtu;
		} frag;
		__be32 mtu6;
	} un;
};

#endif
