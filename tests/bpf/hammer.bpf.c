// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The source table alone, under random operations as fast as a CPU can do them: each run finds a
 * random one of a few sources, charges it or gives it a slot, and now and then makes it one that is
 * kept, so that buckets fill up, are fought over and empty again.
 */
#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "../../bpf/ntpguard.h"

#define SEPARATE __attribute__((noinline))

const volatile struct constants constants SEC(".rodata.constants");
struct inputs inputs;

#include "../../bpf/inputs.h"
#include "../../bpf/gcra.h"
#include "../../bpf/sources.h"

enum { KEYS = 64 };

struct operations {
	__u64 found;
	__u64 inserted;
	__u64 refused;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct operations);
} operations SEC(".maps");

SEC("xdp")
int hammer(struct xdp_md *ctx)
{
	struct limit limit = {.emission_interval = 20ULL << GCRA_TAT_SHIFT,
			      .burst_tolerance = 60ULL << GCRA_TAT_SHIFT};
	__u32 zero = 0;
	__u32 chance = bpf_get_prandom_u32();
	__u64 now = gcra_clock(bpf_ktime_get_ns());
	__u64 key = NTPGUARD_KEY_IPV4_TAG | chance % KEYS;
	__u64 hash = keyed_hash(key);
	struct slot slot = {};
	struct operations *count = bpf_map_lookup_elem(&operations, &zero);

	if (!count || !source_find(&slot, key, hash))
		return XDP_ABORTED;
	__u32 way = slot.way;
	if (way == NO_WAY) {
		struct newcomer newcomer = {
			.key = key,
			.owner = slot.owner,
			.aux = AUX_SET(0, EXCESS, chance >> 28 == 0),
			.now = now,
			.interval = limit.emission_interval,
		};
		way = source_insert(slot.bucket, slot.beside, &newcomer);
		if (way != NO_WAY)
			count->inserted++;
		else
			count->refused++;
		return XDP_PASS;
	}
	if (way >= NTPGUARD_WAYS) {
		count->refused++;
		return XDP_PASS;
	}
	way = bound_way(way);
	if (gcra(&slot.bucket->gcra[way], slot.owner, &limit, now, true) == GCRA_LOST)
		count->refused++;
	else
		count->found++;
	__sync_fetch_and_add(&slot.bucket->stat[way], 1ULL << STAT_REQUESTS_SHIFT);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
