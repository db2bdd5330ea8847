/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The source table: set-associative, no locks, in an array that user space maps read-only. A source's
 * slot is in its home bucket or, if that has no room, in the one beside it: four ways that nearly
 * always do, and eight where they do not. Memory is 64 bytes per source held at a load of one half,
 * at which 0.8 % of sources find both full (Poisson, mean 4 to a set of 8).
 *
 * A slot changes hands in this order, so that no source ever has two, none inherits another's state,
 * and a reader can tell a slot that is being filled:
 *
 *   gcra = mine|BUSY  (from what was seen)   key = mine   aux, stat   gcra = tat|mine
 *
 * A reader accepts a slot only if gcra is not BUSY, carries the key's fingerprint, and is unchanged
 * after the rest was read.
 */
#ifndef NTPGUARD_SOURCES_H
#define NTPGUARD_SOURCES_H

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 512); /* set by the loader */
	__type(key, __u32);
	__type(value, struct bucket);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct table_counters);
} table_counters SEC(".maps");

#define AUX_GET(word, field) ((word) >> AUX_##field##_SHIFT & ((1ULL << AUX_##field##_BITS) - 1))
#define AUX_SET(word, field, value)                                                                \
	(((word) & ~(((1ULL << AUX_##field##_BITS) - 1) << AUX_##field##_SHIFT)) |                 \
	 (__u64)(value) << AUX_##field##_SHIFT)

/* How long an established source is kept that does not come. */
#define ESTABLISHED_FOR (3600ULL * 1000000000 >> GCRA_UNIT_SHIFT << GCRA_TAT_SHIFT)

enum { ESTABLISHED_STEPS = 3 }; /* well-spaced requests after the first */

/* Where a source's slot is; NO_WAY: it has none. BUSY_WAY: another CPU is giving it one right now. */
enum { NO_WAY = NTPGUARD_WAYS, BUSY_WAY };

struct slot {
	struct bucket *bucket; /* no way: its home */
	struct bucket *beside; /* the other one it may be in; only if it is not at home */
	__u64 owner;	       /* the low bits of the gcra word: the fingerprint in place */
	__u64 aux;	       /* as it was before the limit was asked; 0: no way */
	__u32 way;
};

/* The same way: the compiler compares a copy that the verifier does not connect with this one. */
static __always_inline __u32 bound_way(__u32 way)
{
#ifdef __bpf__
	asm volatile("%0 &= 3" : "+r"(way));
#else /* the fuzzer's build, for user space */
	way &= 3;
#endif
	return way;
}
_Static_assert(NTPGUARD_WAYS == 4, "bound_way");

static __always_inline __u64 owner_of(__u64 hash)
{
	return hash >> (64 - GCRA_FINGERPRINT_BITS) << GCRA_FINGERPRINT_SHIFT;
}

static __always_inline __u32 family_of(__u64 key)
{
	return key >> KEY_TAG_SHIFT == NTPGUARD_KEY_IPV4_TAG >> KEY_TAG_SHIFT ? FAMILY_IPV4 :
										FAMILY_IPV6;
}

static __always_inline __u64 load(const __u64 *word)
{
	return *(const volatile __u64 *)word;
}

SEPARATE int source_scan(const struct bucket *bucket, __u64 key, __u64 owner)
{
	if (!bucket)
		return NO_WAY;
#pragma unroll
	for (__u32 way = 0; way < NTPGUARD_WAYS; way++) {
		__u64 word = load(&bucket->gcra[way]) & GCRA_OWNER_MASK;
		if (word == (owner | GCRA_BUSY))
			return BUSY_WAY;
		if (load(&bucket->key[way]) == key && word == owner)
			return way;
	}
	return NO_WAY;
}

static __always_inline bool source_find(struct slot *slot, __u64 key, __u64 hash)
{
	__u32 index = hash & constants.bucket_mask;

	slot->bucket = bpf_map_lookup_elem(&sources, &index);
	if (!slot->bucket)
		return false;
	slot->owner = owner_of(hash);
	slot->way = source_scan(slot->bucket, key, slot->owner);
	if (slot->way == NO_WAY) {
		index ^= 1;
		slot->beside = bpf_map_lookup_elem(&sources, &index);
		slot->way = source_scan(slot->beside, key, slot->owner);
		if (slot->way < NTPGUARD_WAYS && slot->beside)
			slot->bucket = slot->beside;
	}
	if (slot->way < NTPGUARD_WAYS)
		slot->aux = load(&slot->bucket->aux[bound_way(slot->way)]);
	return true;
}

/* How willingly a bucket gives a slot away: the way in the low bits, above them the rank, the least
 * first.
 */
#define RANK_EMPTY (-0x7fffffffffffffffLL - 1)
#define RANK_NONE 0x7fffffffffff0000LL
#define RANK(victim) ((__s64)((victim) & ~GCRA_OWNER_MASK))

/* Empty first, then the smallest tat: the one that expired longest ago, if one has. A source over its
 * limit is kept until it expires, so that a flood of newcomers cannot give an abuser a fresh burst;
 * an established one while it was seen within the hour.
 */
SEPARATE __s64 choose_victim(const struct bucket *bucket, __u64 now)
{
	__s64 victim = RANK_NONE;

	if (!bucket)
		return victim;
#pragma unroll
	for (__u32 way = 0; way < NTPGUARD_WAYS; way++) {
		__u64 word = load(&bucket->gcra[way]);
		if (word & GCRA_BUSY)
			continue;
		if (!load(&bucket->key[way]))
			return RANK_EMPTY | way;
		__s64 ahead = (word & ~GCRA_OWNER_MASK) - now;
		__u64 aux = load(&bucket->aux[way]);
		if (ahead > 0 && AUX_GET(aux, EXCESS))
			continue;
		if (ahead > -(__s64)ESTABLISHED_FOR && AUX_GET(aux, ESTABLISHED))
			continue;
		if (ahead < RANK(victim))
			victim = ahead | way;
	}
	return victim;
}

static __always_inline void count_replaced(struct table_counters *counters, __u64 key)
{
	if (key)
		counters->replaced[family_of(key)]++;
}

static __always_inline void count_gated(void)
{
	__u32 zero = 0;
	struct table_counters *counters = bpf_map_lookup_elem(&table_counters, &zero);

	if (counters)
		counters->gated++;
}

struct newcomer {
	__u64 key;
	__u64 owner;
	__u64 aux;
	__u64 now;
	__u64 interval;
};

/* Whether a way of the bucket but this one has the source, or is being given to it. */
static __always_inline bool has_twin(const struct bucket *bucket, __u32 but, __u64 key, __u64 busy)
{
#pragma unroll
	for (__u32 way = 0; way < NTPGUARD_WAYS; way++)
		if (way != but && ((load(&bucket->gcra[way]) & GCRA_OWNER_MASK) == busy ||
				   load(&bucket->key[way]) == key))
			return true;
	return false;
}

/* Gives a source whose first request is admitted a slot in one of its buckets: the way, with
 * BESIDE if it is not at home, or NO_WAY.
 */
enum { BESIDE = 8 };

SEPARATE int source_insert(struct bucket *home, struct bucket *beside,
			   const struct newcomer *newcomer)
{
	__u32 zero = 0;
	struct table_counters *counters = bpf_map_lookup_elem(&table_counters, &zero);

	if (!home || !beside || !newcomer || !counters)
		return NO_WAY;
	__u64 busy = newcomer->owner | GCRA_BUSY;
	__s64 victim = choose_victim(home, newcomer->now);
	__s64 other = choose_victim(beside, newcomer->now);
	bool away = RANK(other) < RANK(victim);
	if (away)
		victim = other;
	if (RANK(victim) == RANK_NONE) {
		counters->full++;
		return NO_WAY;
	}
	struct bucket *bucket = away ? beside : home;
	__u32 way = bound_way(victim);
	__u64 seen = load(&bucket->gcra[way]);
	if (seen & GCRA_BUSY ||
	    __sync_val_compare_and_swap(&bucket->gcra[way], seen, busy) != seen) {
		counters->lost++;
		return NO_WAY;
	}
	if (has_twin(bucket, way, newcomer->key, busy) ||
	    has_twin(away ? home : beside, NO_WAY, newcomer->key, busy)) {
		count_replaced(counters, __sync_lock_test_and_set(&bucket->key[way], 0));
		__sync_lock_test_and_set(&bucket->gcra[way], 0);
		counters->lost++;
		return NO_WAY;
	}
	count_replaced(counters, __sync_lock_test_and_set(&bucket->key[way], newcomer->key));
	*(volatile __u64 *)&bucket->aux[way] = newcomer->aux;
	*(volatile __u64 *)&bucket->stat[way] = 0;
	__sync_lock_test_and_set(&bucket->gcra[way],
				 (newcomer->now + newcomer->interval) | newcomer->owner);
	counters->inserted[family_of(newcomer->key)]++;
	return away ? way | BESIDE : way;
}

static __always_inline __u64 mark_clock(__u64 now_ns)
{
	return now_ns >> MARK_UNIT_SHIFT & ((1 << AUX_MARK_BITS) - 1);
}

/* A source that comes again at well-spaced times is established, and stays so whatever it sends later. */
static __always_inline bool is_step_due(__u64 aux, __u32 spacing, __u64 now_ns)
{
	__u64 elapsed = (mark_clock(now_ns) - AUX_GET(aux, MARK)) & ((1 << AUX_MARK_BITS) - 1);

	return elapsed >= spacing && !AUX_GET(aux, ESTABLISHED);
}

static __always_inline __u64 step(__u64 aux, __u64 now_ns)
{
	__u64 steps = AUX_GET(aux, STEPS) + 1;

	aux = AUX_SET(AUX_SET(aux, STEPS, steps), MARK, mark_clock(now_ns));
	return AUX_SET(aux, ESTABLISHED, steps == ESTABLISHED_STEPS);
}

#endif
