/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Time and chance. Tests hold both: that each rule can be tried exactly, through the real program. The
 * coarse clock and chance are what helpers called for every packet would give, at a fraction of the cost.
 */
#ifndef NTPGUARD_INPUTS_H
#define NTPGUARD_INPUTS_H

/* CLOCK_MONOTONIC, in steps of a tick. Jiffies, which cost nothing to read, say when to read it again:
 * they move just before the clock does, so it is read until it has moved too.
 */
static __always_inline __u64 clock_ns(struct local *local)
{
	if (constants.test & TEST_INPUTS)
		return *(volatile __u64 *)&inputs.clock_ns;
	__u64 jiffies = bpf_jiffies64();
	if (local->jiffies != jiffies) {
		__u64 now_ns = bpf_ktime_get_coarse_ns();
		if (now_ns != local->clock_ns)
			local->jiffies = jiffies;
		local->clock_ns = now_ns;
	}
	return local->clock_ns;
}

/* CLOCK_MONOTONIC, exactly: at the cost of a helper. */
static __always_inline __u64 fine_clock_ns(void)
{
	return constants.test & TEST_INPUTS ? *(volatile __u64 *)&inputs.clock_ns :
					      bpf_ktime_get_ns();
}

/* Keyed: who does not know the seed cannot aim at a bucket. Mirrored by abi.hash_key. */
static __always_inline __u64 keyed_hash(__u64 key)
{
	__u64 hash = (key ^ constants.seed[0]) * 0x9e3779b97f4a7c15ULL;

	hash ^= hash >> 32;
	hash *= constants.seed[1] | 1;
	hash ^= hash >> 29;
	hash *= 0xbf58476d1ce4e5b9ULL;
	return hash ^ hash >> 32;
}

/* 64 bits, of which the lowest are the least random: a linear congruential generator whose increment is
 * secret (Knuth's MMIX multiplier).
 */
static __always_inline __u64 chance(struct local *local)
{
	if (constants.test & TEST_INPUTS)
		return *(volatile __u32 *)&inputs.chance * 0x100000001ULL;
	local->drawn = local->drawn * 6364136223846793005ULL + (constants.seed[1] | 1);
	return local->drawn;
}

#endif
