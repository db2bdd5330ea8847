/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Does a KoD help here? A trial: by the keyed hash, which no client knows, one source in 16 is never
 * kissed (control), and another one has its first KoD held back for one kod.interval (kissed). What is
 * due to either is decided by the same code, so that both are watched from the same moment for the same
 * time: begin, an interval without a KoD; the first (would-be) KoD; end, with the first that is due two
 * intervals later. A source that stops has no end: user space counts what it sent since.
 */
#ifndef NTPGUARD_TRIAL_H
#define NTPGUARD_TRIAL_H

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct trial);
} trials SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kod_counters);
} kod_counters SEC(".maps");

static __always_inline __u32 part_of(__u64 hash)
{
	__u32 part = hash >> PART_SHIFT & ((1 << PART_BITS) - 1);

	return constants.test & TEST_NO_TRIAL ? PART_TRIED + 1 : part;
}

static __always_inline __u32 group_of(__u64 hash)
{
	return part_of(hash) == PART_CONTROL ? GROUP_CONTROL : GROUP_KISSED;
}

/* What changes in a source's memory of KoDs when one is heeded or not. */
#define AUX_HEEDING                                                                                \
	((((1ULL << AUX_AFTER_KOD_BITS) - 1) << AUX_AFTER_KOD_SHIFT) |                             \
	 (((1ULL << AUX_UNHEEDED_BITS) - 1) << AUX_UNHEEDED_SHIFT))

SEPARATE int count_heeding(__u64 before, __u64 after, __u64 hash)
{
	__u32 zero = 0;
	struct kod_counters *counters = bpf_map_lookup_elem(&kod_counters, &zero);
	__u32 group = group_of(hash);

	if (!counters || group >= GROUPS)
		return 0;
	if (AUX_GET(after, UNHEEDED) > AUX_GET(before, UNHEEDED))
		counters->unheeded[group]++;
	else if (!AUX_GET(after, EXCESS) && AUX_GET(after, AFTER_KOD) == AFTER_TOLD)
		counters->heeded[group]++;
	return 0;
}

/* What is added to the aux word of a source that conforms. */
static __always_inline __u64 after_conforming(__u64 aux, __u16 now)
{
	return is_heeded(aux, now) ? (__u64)AFTER_TOLD << AUX_AFTER_KOD_SHIFT : 0;
}

static const struct trial fresh_trial;

/* `span_ns`: how long a trial is watched after its KoD; 0: the trial begins. */
static __always_inline void note_trial(const struct packet *packet, __u32 requests, __u64 now_ns,
				       __u32 group, __u64 span_ns)
{
	__u64 key = packet->key; /* before Linux 6.2, a key must be on the stack */
	struct trial *trial = bpf_map_lookup_elem(&trials, &key);

	if (span_ns && trial) {
		if (!trial->kod_ns) {
			trial->kod_requests = requests;
			trial->kod_ns = now_ns;
		} else if (!trial->end_ns && now_ns - trial->kod_ns >= span_ns) {
			trial->end_requests = requests;
			trial->end_ns = now_ns;
		}
	} else if (!span_ns && !(trial && trial->kod_ns)) { /* one trial for each source */
		if (!trial) {
			bpf_map_update_elem(&trials, &key, &fresh_trial, BPF_NOEXIST);
			trial = bpf_map_lookup_elem(&trials, &key);
			if (!trial)
				return;
		}
		trial->begin_ns = now_ns;
		trial->begin_requests = requests;
		trial->source_port = bpf_ntohs(packet->source_port);
		trial->group = group;
		__builtin_memcpy(trial->header, &packet->ntp, NTPGUARD_HEADER_BYTES);
	}
}

enum {
	TRIAL_FIRST = 1 << 16, /* the lower bits: kod.interval */
	TRIAL_OBSERVE = 1 << 17,
	TRY_SENT = 4, /* the lower bits: AFTER_KOD */
};

static __always_inline __u32 trial_options(__u64 aux, const struct policy *policy, bool observe)
{
	return policy->kod_interval | (AUX_GET(aux, KOD_TIME) ? 0 : TRIAL_FIRST) |
	       (observe ? TRIAL_OBSERVE : 0);
}

/* A KoD is due and granted: whether it is sent, and what its source's AFTER_KOD becomes: of one that
 * is held back, there is nothing to heed. Where only observed, nobody is kissed: no trial.
 */
SEPARATE int try_kod(const struct packet *packet, __u64 hash, __u32 requests, __u64 now_ns,
		     __u32 options)
{
	__u32 part = part_of(hash);

	if (!packet)
		return 0;
	if (part > PART_TRIED || options & TRIAL_OBSERVE)
		return part == PART_CONTROL ? 0 : TRY_SENT;
	__u64 span_ns = (__u64)(options & 0xffff) << (KOD_UNIT_SHIFT + 1);
	if (options & TRIAL_FIRST)
		span_ns = 0;
	else if (!span_ns)
		span_ns = 1;
	note_trial(packet, requests, now_ns, group_of(hash), span_ns);
	if (options & TRIAL_FIRST)
		return UNHEEDED_EXCESS;
	return part == PART_TRIED ? TRY_SENT : 0;
}

#endif
