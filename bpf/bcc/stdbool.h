/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* bcc compiles without the C library and clang's own headers: the kernel has the same. */
#include <linux/stddef.h>
