/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What stands in for libbpf's header of the same name when bcc compiles the sources. bcc has declared the
 * helpers before this is read; here they get the types that the sources expect of them.
 *
 * bcc knows neither maps by their address nor callbacks. Both become instructions that load a number, with
 * the kernel's own mark for "the number of a map" and "the number of a function"; bpf/linking.py puts the
 * real ones in. MAP_name and CALLBACK_name are the numbers, made by bpf/bcc_compile.py.
 */
#ifndef ROUTERD_BCC_HELPERS_H
#define ROUTERD_BCC_HELPERS_H

#undef __always_inline
#define __always_inline inline __attribute__((__always_inline__))

#define SEC(name) /* bcc gives every program a section of its own */

#define PSEUDO_MAP  1 /* BPF_PSEUDO_MAP_FD */
#define PSEUDO_FUNC 4 /* BPF_PSEUDO_FUNC */

#define TABLE_BPF_MAP_TYPE_HASH		"hash"
#define TABLE_BPF_MAP_TYPE_LRU_HASH	"lru_hash"
#define TABLE_BPF_MAP_TYPE_ARRAY	"array"
#define TABLE_BPF_MAP_TYPE_PERCPU_ARRAY "percpu_array"
#define TABLE_BPF_MAP_TYPE_LPM_TRIE	"lpm_trie"

/* The table tells bcc the sizes. The type that carries the number in the length of an array stands for the
 * map in the programs; no such object exists. */
#define PINNED_MAP(map_name, map_type, key_type, value_type, entries, map_flags_)                            \
	BPF_F_TABLE(TABLE_##map_type, key_type, value_type, table_##map_name, entries, map_flags_);          \
	extern struct {                                                                                      \
		char (*number)[MAP_##map_name + 1];                                                          \
	} map_name

#define MAP_OF(map)    ((void *)bpf_pseudo_fd(PSEUDO_MAP, sizeof(*(map)->number) - 1))
#define CALLBACK_OF(f) ((void *)bpf_pseudo_fd(PSEUDO_FUNC, CALLBACK_##f))

#define bpf_map_lookup_elem(map, key) (bpf_map_lookup_elem)(MAP_OF(map), (void *)(key))
#define bpf_map_delete_elem(map, key) (bpf_map_delete_elem)(MAP_OF(map), (void *)(key))
#define bpf_map_update_elem(map, key, value, flags)                                                          \
	(bpf_map_update_elem)(MAP_OF(map), (void *)(key), (void *)(value), flags)
#define bpf_loop(times, f, context, flags) (bpf_loop)(times, CALLBACK_OF(f), context, flags)
#define bpf_for_each_map_elem(map, f, context, flags)                                                        \
	(bpf_for_each_map_elem)(MAP_OF(map), CALLBACK_OF(f), context, flags)

#define bpf_skb_store_bytes(skb, offset, from, length, flags)                                                \
	(bpf_skb_store_bytes)(skb, offset, (void *)(from), length, flags)
/* bcc 0.26 declares it without the length of the parameters. */
#define bpf_redirect_neigh(device, parameters, length, flags)                                                \
	((long (*)(__u32, void *, int, __u64))BPF_FUNC_redirect_neigh)(device, parameters, length, flags)

#endif
