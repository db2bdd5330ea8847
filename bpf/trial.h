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
	return hash >> PART_SHIFT & ((1 << PART_BITS) - 1);
}

static __always_inline __u32 group_of(__u64 hash)
{
	return part_of(hash) == PART_CONTROL ? GROUP_CONTROL : GROUP_KISSED;
}

SEPARATE int count_heeding(__u32 group, bool heeded)
{
	__u32 zero = 0;
	struct kod_counters *counters = bpf_map_lookup_elem(&kod_counters, &zero);

	if (!counters || group >= GROUPS)
		return 0;
	if (heeded)
		counters->heeded[group]++;
	else
		counters->unheeded[group]++;
	return 0;
}

static const struct trial fresh_trial;

/* `span_ns`: how long a trial is watched after its KoD; 0: the trial begins. */
SEPARATE int note_trial(const struct packet *packet, __u32 requests, __u64 now_ns, __u32 group,
			__u64 span_ns)
{
	if (!packet)
		return 0;
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
				return 0;
		}
		trial->begin_ns = now_ns;
		trial->begin_requests = requests;
		trial->source_port = bpf_ntohs(packet->source_port);
		trial->group = group;
		__builtin_memcpy(trial->header, &packet->ntp, NTPGUARD_HEADER_BYTES);
	}
	return 0;
}

/* A KoD is due and granted: whether it is sent, and what its source's aux word becomes. Where only
 * observed, nobody is kissed and there is no trial.
 */
static __always_inline bool is_sent(const struct packet *packet, __u64 hash, __u32 requests,
				    __u64 now_ns, __u16 interval, bool observe, __u64 *aux)
{
	__u32 part = part_of(hash);
	bool first = !AUX_GET(*aux, KOD_TIME);
	__u16 now = kod_clock(now_ns);

	if (part > PART_TRIED || observe) {
		*aux = kod_sent(*aux, now);
		return part != PART_CONTROL;
	}
	__u64 span_ns = (__u64)interval << (KOD_UNIT_SHIFT + 1);
	note_trial(packet, requests, now_ns, group_of(hash), first ? 0 : span_ns ? span_ns : 1);
	*aux = first ? kod_held(*aux, now) : kod_sent(*aux, now);
	return part == PART_TRIED && !first;
}

#endif
