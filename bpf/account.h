/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Every judged packet is counted once, here. */
#ifndef NTPGUARD_ACCOUNT_H
#define NTPGUARD_ACCOUNT_H

/* Of this interface: each interface's program has its own. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NTPGUARD_CLASSES);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct offender);
} offenders SEC(".maps");

enum {
	/* 1/64 of excess, in 2^-32; the first since a pass besides */
	OFFENDER_SAMPLE = (1U << 26) - 1,
	/* To make room in the LRU costs more than the rest of a packet's judgement: so many on each CPU
	 * before the clock moves.
	 */
	OFFENDERS_AT_ONCE = 32,
};

/* Not on the stack, of which all frames together have 512 bytes. */
static const struct offender fresh_offender;

SEPARATE int note_offender(struct local *local, const struct packet *packet, __u32 verdict,
			   __u64 now_ns)
{
	if (!local || !packet)
		return 0;
	if (local->noted_ns != now_ns) {
		local->noted_ns = now_ns;
		local->noted = 0;
	}
	if (local->noted == OFFENDERS_AT_ONCE)
		return 0;
	local->noted++;
	__u64 key = packet->key; /* before Linux 6.2, a key must be on the stack */
	struct offender *offender = bpf_map_lookup_elem(&offenders, &key);

	if (!offender) {
		bpf_map_update_elem(&offenders, &key, &fresh_offender, BPF_NOEXIST);
		offender = bpf_map_lookup_elem(&offenders, &key);
		if (!offender)
			return 0;
		offender->first_seen_ns = now_ns;
	}
	offender->last_seen_ns = now_ns;
	if (verdict < VERDICTS)
		offender->sampled[verdict]++;
	offender->source_port = bpf_ntohs(packet->source_port);
	offender->ttl = packet->ttl;
	offender->header_bytes = NTPGUARD_HEADER_BYTES;
	__builtin_memcpy(offender->header, &packet->ntp, NTPGUARD_HEADER_BYTES);
	return 0;
}

struct decision {
	__u32 class;
	__u32 verdict;
	__u32 reason;
	bool observe;
};

/* Counts the decision and says what happens to the packet: in observe, it passes. */
static __always_inline __u32 account(const struct packet *packet, const struct decision *decision)
{
	__u32 class = decision->class & (NTPGUARD_CLASSES - 1);
	__u32 verdict = decision->verdict;
	__u32 reason = decision->reason & (REASON_ROOM - 1);
	__u32 family = packet->family & 1;
	struct counters *count = bpf_map_lookup_elem(&counters, &class);

	if (verdict >= VERDICTS)
		verdict = VERDICT_DROP;
	if (decision->observe) {
		if (count)
			count->observed[family][verdict][reason]++;
		if (verdict != VERDICT_PASS)
			reason = REASON_OBSERVED;
		verdict = VERDICT_PASS;
	}
	if (count) {
		count->packets[family][verdict][reason]++;
		count->bytes[family][verdict] += packet->frame;
	}
	return verdict;
}

#endif
