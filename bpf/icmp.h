/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The ICMP header (RFC 792). <linux/icmp.h> would do, but it draws in <sys/socket.h>, and with it the C
 * library's headers of an architecture that BPF is not.
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
	} un;
};

#endif
