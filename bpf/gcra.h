/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The rate limit: the generic cell rate algorithm (ITU-T I.371, virtual scheduling) on one word that
 * every CPU may swap. Pure arithmetic, no map in it. Words and limits are in gcra units in the bits
 * from GCRA_TAT_SHIFT on; the bits below belong to the word's owner and are never changed here.
 */
#ifndef NTPGUARD_GCRA_H
#define NTPGUARD_GCRA_H

#define GCRA_OWNER_MASK ((1ULL << GCRA_TAT_SHIFT) - 1)

enum { GCRA_TRIES = 4 };

/* 10 ms, at HZ=100: so far at most is a finer clock ahead of the coarse one */
#define LONGEST_TICK (10LL * 1000000 >> GCRA_UNIT_SHIFT << GCRA_TAT_SHIFT)

static __always_inline __u64 gcra_clock(__u64 now_ns)
{
	return now_ns >> GCRA_UNIT_SHIFT << GCRA_TAT_SHIFT;
}

enum gcra { GCRA_CONFORMS, GCRA_EXCESS, GCRA_LOST };

/* While a source keeps its slot: passes <= burst + rate * elapsed. Excess does not push the tat out,
 * so a source that slows down is served again at once. A tat further ahead than this limit can have
 * put it, by any CPU's clock, is an older policy's, and is taken for the furthest at which a request
 * conforms: who was silent does not wait for what no longer holds. Not so if it is not this limit's own:
 * two limits that share a word would give each other passes.
 *
 * GCRA_LOST: the word has another owner by now. Four lost swaps count as excess.
 */
static __always_inline int gcra(__u64 *word, __u64 owner, const struct limit *limit, __u64 now,
				bool own)
{
	__u64 interval = limit->emission_interval;
	__s64 tolerance = limit->burst_tolerance;

#pragma unroll
	for (int i = 0; i < GCRA_TRIES; i++) {
		__u64 seen = *(volatile __u64 *)word;
		if ((seen & GCRA_OWNER_MASK) != owner)
			return GCRA_LOST;
		__s64 ahead = (seen & ~GCRA_OWNER_MASK) - now;
		if (own && ahead > tolerance + (__s64)interval + LONGEST_TICK)
			ahead = tolerance;
		if (ahead > tolerance)
			return GCRA_EXCESS;
		__u64 tat = ahead > 0 ? now + ahead : now;
		if (__sync_val_compare_and_swap(word, seen, (tat + interval) | owner) == seen)
			return GCRA_CONFORMS;
	}
	return GCRA_EXCESS;
}

/* A word that is a tat and nothing else. */
SEPARATE int conforms(__u64 *tat, const struct limit *limit, __u64 now)
{
	return tat && limit && gcra(tat, 0, limit, now, true) == GCRA_CONFORMS;
}

#endif
