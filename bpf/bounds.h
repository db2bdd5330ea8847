/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The bounds that all sources share: KoDs, newcomers, new slots, the ceiling. A word that every CPU
 * swapped for every packet would be the slowest thing here: a CPU takes a batch with one swap, spends
 * it locally, and after a refusal does not look again before the clock moves.
 *
 * Grants of one bound <= burst + rate * elapsed + CPUs * PRIORITIES * (batch - 1).
 */
#ifndef NTPGUARD_BOUNDS_H
#define NTPGUARD_BOUNDS_H

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct local);
} local SEC(".maps");

/* A bound that refused this lately bites: who is new is not trusted meanwhile. */
#define BITES_FOR (1ULL << (MARK_UNIT_SHIFT - GCRA_UNIT_SHIFT + GCRA_TAT_SHIFT))

/* Whether it is known without asking that a bound grants nothing before the clock moves. */
static __always_inline bool is_used_up(const struct share *share, const struct bound *bound,
				       __u64 now, __u32 priority)
{
	return bound->limit.emission_interval && !share->tokens[priority] &&
	       share->refused[priority] == now;
}

SEPARATE int bound_grants(__u64 *word, struct share *share, const struct bound *bound, __u64 now,
			  __u32 priority)
{
	if (!word || !share || !bound)
		return false;
	priority &= PRIORITIES - 1;
	__u64 interval = bound->limit.emission_interval;
	__s64 full = bound->limit.burst_tolerance;
	__s64 tolerance = priority == PRIORITY_HIGH ? full : full >> 1;

	if (!interval)
		return true;
	if (is_used_up(share, bound, now, priority))
		return false;
	if (share->tokens[priority]) {
		share->tokens[priority]--;
		return true;
	}
#pragma unroll
	for (int i = 0; i < GCRA_TRIES; i++) {
		__u64 seen = *(volatile __u64 *)word;
		__s64 ahead = seen - now;
		if (ahead < 0)
			ahead = 0;
		if (ahead > tolerance) {
			__s64 most = full + interval;
			if (ahead > most) /* an older policy's */
				__sync_val_compare_and_swap(word, seen, now + most);
			share->refused[priority] = now;
			return false;
		}
		__u32 batch = bound->batch;
		__u64 cost = batch * interval;
		if (ahead + (__s64)(cost - interval) > tolerance) {
			batch = 1;
			cost = interval;
		}
		if (__sync_val_compare_and_swap(word, seen, now + ahead + cost) == seen) {
			share->tokens[priority] = batch - 1;
			return true;
		}
	}
	return false;
}

static __always_inline bool bites(const struct local *local, __u32 bound, __u64 now)
{
	const struct share *share = &local->shares[bound];

	/* the refusal's clock may be a finer one, ahead of now */
	now += LONGEST_TICK;
	return now - share->refused[PRIORITY_LOW] < BITES_FOR + LONGEST_TICK ||
	       now - share->refused[PRIORITY_HIGH] < BITES_FOR + LONGEST_TICK;
}

#endif
