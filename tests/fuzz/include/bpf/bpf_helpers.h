/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* In the place of libbpf's: the packet path compiled for user space, with helpers of the fuzzer. */
#ifndef FUZZ_BPF_HELPERS_H
#define FUZZ_BPF_HELPERS_H

#include <linux/types.h>

#define SEC(name)
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define __array(name, value) typeof(value) *name[]
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

void *bpf_map_lookup_elem(void *map, void *key);
long bpf_map_update_elem(void *map, void *key, void *value, __u64 flags);
__u64 bpf_jiffies64(void);
__u64 bpf_ktime_get_coarse_ns(void);
__u64 bpf_ktime_get_ns(void);

#endif
