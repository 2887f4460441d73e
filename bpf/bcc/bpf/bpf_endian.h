/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* bcc declares bpf_htons and its kin itself. */
